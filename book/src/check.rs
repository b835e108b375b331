//! What must not be missing: targets of links, files that the text names, tests of the examples.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use mdbook_preprocessor::book::Book;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use scraper::{Html, Selector};

/// Folders of the repository whose files are named in the text as code.
const FOLDERS: [&str; 10] = [
    "benches/",
    "book/",
    "docs/",
    "examples/",
    "fixtures/",
    "kernels/",
    "python/",
    "scripts/",
    "src/",
    "tests/",
];

/// Every path of the repository that the text names as code must exist.
///
/// # Errors
/// The first that does not.
pub fn paths(text: &str, root: &Path) -> Result<()> {
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        let Event::Code(code) = event else { continue };
        let is_path = FOLDERS.iter().any(|folder| code.starts_with(folder))
            && code.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
        if is_path && !root.join(&*code).exists() {
            bail!("it names `{code}`, which does not exist");
        }
    }
    Ok(())
}

/// Every page with a block of Rust must be among the documentation tests that `library` lists.
///
/// # Errors
/// The first page that is not.
pub fn examples_are_tested(book: &Book, library: &Path) -> Result<()> {
    let library = fs::read_to_string(library).with_context(|| library.display().to_string())?;
    let (_, list) = library.split_once("book_pages!(").context("src/lib.rs lists no pages to test")?;
    let (list, _) = list.split_once(')').context("the list of pages to test does not end")?;
    let tested: HashSet<&str> = list.split(',').map(str::trim).collect();
    for chapter in book.chapters() {
        let has_rust = Parser::new(&chapter.content).any(|event| {
            matches!(event, Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "rust")
        });
        let Some(page) = chapter.source_path.as_ref().and_then(|path| path.file_stem()) else { continue };
        let page = page.to_string_lossy();
        if has_rust && !tested.contains(&*page) {
            bail!(
                "docs/{page}.md has an example, but src/lib.rs does not list `{page}` among the pages to test"
            );
        }
    }
    Ok(())
}

/// Links of the built book that lead nowhere, and what it would load from a network.
///
/// # Errors
/// Pages that cannot be read.
pub fn links_of_book(output: &Path) -> Result<Vec<String>> {
    let mut pages = Pages::default();
    let mut dead = Vec::new();
    for file in html_files(output)? {
        // Served for any missing page: its links hold at the root of a site only.
        if file.ends_with("404.html") {
            continue;
        }
        let page = pages.read(&file)?.clone();
        for (link, loaded) in &page.links {
            let name = file.strip_prefix(output)?.display();
            if is_elsewhere(link) {
                if *loaded {
                    dead.push(format!("{name}: loads {link} from the network"));
                }
            } else if !pages.leads_somewhere(&file, link)? {
                dead.push(format!("{name}: {link}"));
            }
        }
    }
    Ok(dead)
}

/// Links of a Markdown file of the repository that lead nowhere. A fragment of a page of the book is looked up in
/// the built page.
///
/// # Errors
/// A file that cannot be read.
pub fn links_of_text(root: &Path, file: &Path, book: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(file)).with_context(|| file.display().to_string())?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut pages = Pages::default();
    let mut dead = Vec::new();
    for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
        let Event::Start(Tag::Link { dest_url: link, .. } | Tag::Image { dest_url: link, .. }) = event else {
            continue;
        };
        if is_elsewhere(&link) {
            continue;
        }
        let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
        let target = normal(&if path.is_empty() { file.to_path_buf() } else { folder.join(path) });
        let found = root.join(&target).exists()
            && match target.strip_prefix("docs") {
                _ if fragment.is_empty() => true,
                Ok(page) => pages.read(&book.join(page).with_extension("html"))?.ids.contains(fragment),
                Err(_) => headings(&fs::read_to_string(root.join(&target))?).contains(fragment),
            };
        if !found {
            dead.push(format!("{}: {link}", file.display()));
        }
    }
    Ok(dead)
}

fn is_elsewhere(link: &str) -> bool {
    ["http:", "https:", "mailto:", "data:", "//"].iter().any(|scheme| link.starts_with(scheme))
}

/// The fragments by which the headings of a Markdown file are reached where repositories are shown.
fn headings(text: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut heading: Option<String> = None;
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => found.extend(heading.take()),
            Event::Text(words) | Event::Code(words) => {
                if let Some(heading) = &mut heading {
                    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                    heading.extend(kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }));
                }
            }
            _ => {}
        }
    }
    found
}

/// `a/b/../c` as `a/c`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if normal.pop() => {}
            other => normal.push(other),
        }
    }
    normal
}

fn html_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(html_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "html") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a built page has.
#[derive(Clone)]
struct Page {
    ids: HashSet<String>,
    /// Where it leads, and whether it is loaded with the page.
    links: Vec<(String, bool)>,
}

/// Every page is read once.
#[derive(Default)]
struct Pages(HashMap<PathBuf, Page>);

impl Pages {
    fn read(&mut self, file: &Path) -> Result<&Page> {
        if !self.0.contains_key(file) {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let html = Html::parse_document(&text);
            let selector =
                Selector::parse("[id], [href], [src]").map_err(|error| anyhow::anyhow!("{error}"))?;
            let mut page = Page { ids: HashSet::new(), links: Vec::new() };
            for element in html.select(&selector).map(|element| element.value()) {
                page.ids.extend(element.attr("id").map(str::to_string));
                let loaded = element.name() != "a";
                let links = [element.attr("href"), element.attr("src")];
                page.links.extend(links.into_iter().flatten().map(|link| (link.to_string(), loaded)));
            }
            self.0.insert(file.to_path_buf(), page);
        }
        Ok(&self.0[file])
    }

    fn leads_somewhere(&mut self, from: &Path, link: &str) -> Result<bool> {
        let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
        let folder = from.parent().context("a page lies in a folder")?;
        let target = normal(&if path.is_empty() { from.to_path_buf() } else { folder.join(path) });
        if fragment.is_empty() || !target.is_file() {
            return Ok(target.exists());
        }
        Ok(self.read(&target)?.ids.contains(fragment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_links_and_fragments_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let one = "<h1 id=top>x</h1><a href=two.html#there></a><a href=two.html#gone></a><a href=three.html></a>\
                   <a href=#top></a><a href=https://example.org></a><script src=https://example.org/x.js></script>";
        fs::write(folder.path().join("one.html"), one).unwrap();
        fs::write(folder.path().join("two.html"), "<p id=there><img src=gone.svg>").unwrap();
        let dead = links_of_book(folder.path()).unwrap();
        let expected = [
            "one.html: two.html#gone",
            "one.html: three.html",
            "one.html: loads https://example.org/x.js from the network",
            "two.html: gone.svg",
        ];
        assert_eq!(dead, expected);
    }

    #[test]
    fn texts_may_link_to_files_headings_and_pages() {
        let folder = tempfile::tempdir().unwrap();
        let (root, book) = (folder.path(), folder.path().join("target/book"));
        fs::create_dir_all(root.join("docs")).unwrap();
        fs::create_dir_all(&book).unwrap();
        fs::write(book.join("page.html"), "<h2 id=how></h2>").unwrap();
        fs::write(root.join("docs/page.md"), "").unwrap();
        let text =
            "# A b: `c`\n[x](#a-b-c) [x](#a-d) [x](docs/page.md#how) [x](docs/page.md#why) [x](gone.md)";
        fs::write(root.join("README.md"), text).unwrap();
        let dead = links_of_text(root, Path::new("README.md"), &book).unwrap();
        assert_eq!(dead, ["README.md: #a-d", "README.md: docs/page.md#why", "README.md: gone.md"]);
    }

    #[test]
    fn files_that_the_text_names_must_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert!(paths("`book/src/check.rs` and `src/*.rs` and `verify`", root).is_ok());
        let error = paths("see `src/gone.rs`", root).unwrap_err().to_string();
        assert!(error.contains("`src/gone.rs`"), "{error}");
    }
}
