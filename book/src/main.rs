//! Builds the book of `docs/` into `target/book` and checks it: `make docs`.
//!
//! mdBook makes the pages. What is ours: code comes out of the sources by named anchors ([`source`]), formulas become
//! MathML while the book is built, so that no page loads anything from a network ([`math`]), and every link, fragment,
//! anchor and path is checked ([`check`]). Whatever is missing fails the build.

mod check;
mod math;
mod source;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use mdbook_driver::MDBook;
use mdbook_preprocessor::book::Book;
use mdbook_preprocessor::{Preprocessor, PreprocessorContext};

/// Puts code and formulas into the pages.
struct Pages {
    /// The root of the repository.
    root: PathBuf,
}

impl Preprocessor for Pages {
    fn name(&self) -> &str {
        "pages"
    }

    fn run(&self, _: &PreprocessorContext, mut book: Book) -> Result<Book> {
        let mut failure = None;
        book.for_each_chapter_mut(|chapter| {
            let Some(path) = &chapter.source_path else { return };
            let page = self.root.join("docs").join(path);
            let text = source::include(&chapter.content, &page)
                .and_then(|text| check::paths(&text, &self.root).map(|()| text))
                .and_then(|text| math::to_mathml(&text));
            match text {
                Ok(text) => chapter.content = text,
                Err(error) => _ = failure.get_or_insert(error.context(format!("docs/{}", path.display()))),
            }
        });
        failure.map_or(Ok(book), Err)
    }
}

fn main() -> ExitCode {
    match build() {
        Ok(index) => println!("{}", index.display()),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Builds and checks the book; returns its first page.
fn build() -> Result<PathBuf> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the builder lies in the repository")?;
    let mut book = MDBook::load(root.join("docs"))?;
    book.with_preprocessor(Pages { root: root.to_path_buf() });
    check::examples_are_tested(&book.book, &root.join("src/lib.rs"))?;
    let output = root.join("target/book"); // as docs/book.toml says
    book.build()?;

    let mut dead = check::links_of_book(&output)?;
    for text in [
        "README.md",
        "CHANGELOG.md",
        "benches/README.md",
        "fixtures/README.md",
        "kernels/README.md",
        "python/README.md",
    ] {
        dead.extend(check::links_of_text(root, Path::new(text), &output)?);
    }
    ensure!(dead.is_empty(), "{} dead links:\n{}", dead.len(), dead.join("\n"));
    Ok(output.join("index.html"))
}
