//! Formulas in the pages: TeX between `` $` `` and `` `$ `` in a line of text, or in a code block `math`, becomes MathML.
//! Browsers draw that by themselves; a repository's own view of the pages knows the same notation.

use std::ops::Range;

use anyhow::{Result, anyhow};
use math_core::{LatexToMathML, MathCoreConfig, MathDisplay};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// The text of a page with every formula as MathML.
///
/// # Errors
/// A formula that is not TeX as far as it is understood here.
pub fn to_mathml(text: &str) -> Result<String> {
    let converter =
        LatexToMathML::new(MathCoreConfig::default()).map_err(|(error, ..)| anyhow!("{error}"))?;
    let mut result = String::with_capacity(text.len());
    let mut done = 0;
    for Formula { place, tex, display } in formulas(text) {
        let converted = converter
            .convert_with_local_state(&tex, display)
            .map_err(|error| anyhow!("the formula `{}`: {error}", tex.trim()))?;
        result += &text[done..place.start];
        // What Markdown would take for the end of a paragraph, of a table's cell, or for emphasis.
        result += &converted.mathml.replace('\n', "").replace('|', "&#124;").replace('*', "&#42;");
        done = place.end;
    }
    result += &text[done..];
    Ok(result)
}

struct Formula {
    /// Where it stands, its marks included.
    place: Range<usize>,
    tex: String,
    display: MathDisplay,
}

fn formulas(text: &str) -> Vec<Formula> {
    let mut found = Vec::new();
    let mut block: Option<Formula> = None;
    for (event, place) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) if &*language == "math" => {
                block = Some(Formula { place, tex: String::new(), display: MathDisplay::Block });
            }
            Event::End(TagEnd::CodeBlock) => found.extend(block.take()),
            Event::Text(line) => {
                if let Some(block) = &mut block {
                    block.tex += &line;
                }
            }
            Event::Code(tex) => {
                let marked = text[..place.start].ends_with('$') && text[place.end..].starts_with('$');
                if marked {
                    let place = place.start - 1..place.end + 1;
                    found.push(Formula { place, tex: tex.to_string(), display: MathDisplay::Inline });
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_become_mathml_and_code_stays() {
        let text = "With $`x_1`$ and `x_1`:\n\n```math\n\\frac{a}{b}\n```\n\n```text\n$`x_1`$\n```\n\n| $`y`$ |\n|---|\n";
        let page = to_mathml(text).unwrap();
        assert!(page.contains("With <math><msub>"), "{page}");
        assert!(page.contains("and `x_1`:"), "{page}");
        assert!(page.contains("<math display=\"block\"><mfrac>"), "{page}");
        assert!(page.contains("```text\n$`x_1`$\n```"), "{page}");
        assert!(page.contains("| <math><mi>y</mi></math> |"), "{page}");
        assert!(!to_mathml("$`|x| * y`$").unwrap().contains(['|', '*']));
    }

    #[test]
    fn what_is_no_tex_is_refused() {
        let error = to_mathml("$`\\frac{a}`$").unwrap_err().to_string();
        assert!(error.contains("the formula `\\frac{a}`"), "{error}");
    }
}
