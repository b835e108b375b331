//! Code in the pages: `{{#include ../src/file.rs:name}}` is replaced by the lines between `ANCHOR: name` and
//! `ANCHOR_END: name` of that file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

const OPEN: &str = "{{#include ";
const CLOSE: &str = "}}";

/// The text of a page with every include replaced; paths are relative to the page.
///
/// # Errors
/// A file or an anchor that is missing, an anchor without lines, a directive that is none.
pub fn include(text: &str, page: &Path) -> Result<String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPEN) {
        let (target, after) = after.split_once(CLOSE).context("an include without its end")?;
        let (file, anchor) = target.split_once(':').context("an include names a file and an anchor")?;
        let folder = page.parent().context("a page lies in a folder")?;
        let source = fs::read_to_string(folder.join(file)).with_context(|| file.to_string())?;
        result += before;
        result += &anchored(&source, anchor).with_context(|| format!("{file}: anchor `{anchor}`"))?;
        rest = after;
    }
    result += rest;
    if let Some((_, unknown)) = result.split_once("{{#") {
        bail!("unknown directive {{{{#{}", unknown.lines().next().unwrap_or_default());
    }
    Ok(result)
}

/// The lines of an anchor, moved to the left margin, without those of other anchors.
fn anchored(source: &str, name: &str) -> Result<String> {
    let marks = |line: &str, mark: &str| line.split_once(mark).is_some_and(|(_, found)| found.trim() == name);
    let mut lines = source.lines().skip_while(|line| !marks(line, "ANCHOR: "));
    lines.next().context("it does not begin")?;
    let mut block = Vec::new();
    loop {
        let line = lines.next().context("it does not end")?;
        if marks(line, "ANCHOR_END: ") {
            break;
        }
        if !line.contains("ANCHOR: ") && !line.contains("ANCHOR_END: ") {
            block.push(line);
        }
    }
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let margin = block.iter().filter(|line| !line.trim().is_empty()).map(indent).min();
    let margin = margin.context("nothing is in it")?;
    let moved: Vec<&str> = block.iter().map(|line| line.get(margin..).unwrap_or_default()).collect();
    Ok(moved.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "mod a {\n    // ANCHOR: whole\n    fn f() {\n        // ANCHOR: part\n        one();\n        // ANCHOR_END: part\n    }\n    // ANCHOR_END: whole\n    // ANCHOR: open\n}\n";

    fn page(text: &str) -> Result<String> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("docs"))?;
        fs::write(folder.path().join("code.rs"), SOURCE)?;
        include(text, &folder.path().join("docs/page.md"))
    }

    #[test]
    fn anchors_may_nest_and_move_to_the_margin() {
        let text = page("a\n{{#include ../code.rs:whole}}\nb {{#include ../code.rs:part}}").unwrap();
        assert_eq!(text, "a\nfn f() {\n    one();\n}\nb one();");
    }

    #[test]
    fn what_is_missing_is_refused_by_name() {
        let refused = |text: &str| format!("{:#}", page(text).unwrap_err());
        assert!(refused("{{#include ../code.rs:nowhere}}").contains("anchor `nowhere`: it does not begin"));
        assert!(refused("{{#include ../code.rs:open}}").contains("anchor `open`: it does not end"));
        assert!(refused("{{#include ../gone.rs:whole}}").contains("../gone.rs"));
        assert!(refused("{{#playground ../code.rs}}").contains("unknown directive {{#playground"));
    }
}
