//! The rules of the house, read off the source: who may import whom.
//!
//! An arrow runs from a file to the file whose items it names, through `use` or by a whole path. A re-export is followed
//! to the file that holds the item, and is no arrow itself, so that a folder's `mod.rs` may list its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path inside the crate (`reference::baseline::gptaq`) to its source, without tests and comments.
type Modules = BTreeMap<String, String>;

fn modules() -> Modules {
    fn walk(directory: &Path, root: &Path, found: &mut Modules) {
        for entry in fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().with_extension("");
                let name = name.to_str().unwrap().replace('/', "::");
                let name = name.strip_suffix("::mod").unwrap_or(&name).to_string();
                found.insert(name, code(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Modules::new();
    walk(&root, &root, &mut found);
    found.remove("lib");
    found
}

fn code(source: &str) -> String {
    let before_tests = source.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = before_tests.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths that a module names: `crate::`, `super::` and `self::` resolved, braces expanded.
fn paths(module: &str, is_folder: bool, source: &str, re_exports: bool) -> Vec<String> {
    let mut found = Vec::new();
    for statement in source.split(';') {
        let is_re_export = statement.contains("pub use ") || statement.contains("pub(super) use ");
        if is_re_export != re_exports {
            continue;
        }
        for start in ["crate::", "super::", "self::", "use "] {
            for (at, _) in statement.match_indices(start) {
                let preceded =
                    statement[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                if !preceded {
                    let path = if start == "use " { &statement[at + 4..] } else { &statement[at..] };
                    expand("", path, &mut found);
                }
            }
        }
    }
    let parent =
        |module: &str| module.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_string());
    let resolve = |path: String| {
        let here = if is_folder { module.to_string() } else { parent(module) };
        if let Some(rest) = path.strip_prefix("crate::") {
            return Some(rest.to_string());
        }
        if let Some(rest) = path.strip_prefix("self::") {
            return Some(format!("{here}::{rest}"));
        }
        let Some(mut rest) = path.strip_prefix("super::") else {
            // The first segment may be a file of this folder.
            return is_folder.then(|| format!("{module}::{path}"));
        };
        let mut base = parent(module);
        while let Some(further) = rest.strip_prefix("super::") {
            (base, rest) = (parent(&base), further);
        }
        Some(if base.is_empty() { rest.to_string() } else { format!("{base}::{rest}") })
    };
    found.into_iter().filter_map(resolve).collect()
}

/// `a::{b, c::d}` is `a::b` and `a::c::d`; what follows the path is left out.
fn expand(prefix: &str, text: &str, found: &mut Vec<String>) {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    if !text[end..].starts_with('{') {
        found.push(path.trim_end_matches(':').to_string());
        return;
    }
    let (mut depth, mut from) = (0, end + 1);
    for (at, c) in text.char_indices().skip(end) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || (c == '}' && depth == 0) {
            if !text[from..at].trim().is_empty() {
                expand(&path, &text[from..at], found);
            }
            from = at + 1;
        }
        if depth == 0 {
            return;
        }
    }
}

/// Module to the modules that it imports.
fn arrows(modules: &Modules) -> BTreeMap<String, BTreeSet<String>> {
    let is_folder = |name: &str| {
        let inside = format!("{name}::");
        modules.keys().any(|other| other.starts_with(&inside))
    };
    let mut re_exports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, source) in modules {
        re_exports.insert(name.clone(), paths(name, is_folder(name), source, true));
    }
    // The module of an item: the longest module that is a prefix, and then what that module re-exports under the name.
    let holder = |path: &str| -> Option<String> {
        let mut path = path.trim_end_matches("::self").to_string();
        loop {
            let mut prefix = path.as_str();
            while !modules.contains_key(prefix) {
                prefix = prefix.rsplit_once("::")?.0;
            }
            let item = path[prefix.len()..].trim_start_matches("::").split("::").next().unwrap_or_default();
            let exported =
                re_exports[prefix].iter().find(|e| e.rsplit("::").next() == Some(item) && **e != path);
            match exported {
                Some(exported) if !item.is_empty() => path = exported.clone(),
                _ => return Some(prefix.to_string()),
            }
        }
    };
    let mut arrows = BTreeMap::new();
    for (name, source) in modules {
        let named = paths(name, is_folder(name), source, false);
        let to: BTreeSet<String> =
            named.iter().filter_map(|path| holder(path)).filter(|to| to != name).collect();
        arrows.insert(name.clone(), to);
    }
    arrows
}

/// Ground floor: what every other part may import.
const GROUND: [&str; 6] = ["device_error", "files", "linalg", "progress", "tensors", "tensor_error"];

fn is_in(module: &str, folder: &str) -> bool {
    module == folder || module.strip_prefix(folder).is_some_and(|rest| rest.starts_with("::"))
}

#[test]
fn the_reference_imports_linalg_and_the_ground_floor_alone() {
    let modules = modules();
    let arrows = arrows(&modules);
    assert!(
        arrows["reference::prune"].contains("linalg")
            && arrows["reference::prune"].contains("reference::mask")
    );
    for (from, to) in arrows.iter().filter(|(from, _)| is_in(from, "reference")) {
        for to in to {
            let allowed = is_in(to, "reference") || GROUND.iter().any(|ground| is_in(to, ground));
            assert!(
                allowed,
                "{from} imports {to}: the reference knows the algorithm and the ground floor only"
            );
        }
    }
}

#[test]
fn the_ground_floor_imports_nothing_above() {
    let arrows = arrows(&modules());
    for (from, to) in arrows.iter().filter(|(from, _)| GROUND.iter().any(|ground| is_in(from, ground))) {
        for to in to {
            assert!(
                GROUND.iter().any(|ground| is_in(to, ground)),
                "{from} imports {to}, which stands above it"
            );
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    // A config is read by the table of architectures, each architecture describes itself in terms of the config.
    let table = ["model::architecture", "model::config", "model::forward"];
    let arrows = arrows(&modules());
    let inside = |module: &str| table.iter().any(|member| is_in(module, member));
    assert!(arrows["model::config"].iter().any(|to| inside(to)), "the exception has no reason any more");
    let mut circles = Vec::new();
    for start in arrows.keys() {
        let mut seen = BTreeSet::new();
        let mut ahead: Vec<Vec<&str>> = vec![vec![start]];
        while let Some(way) = ahead.pop() {
            let at = way[way.len() - 1];
            for to in arrows.get(at).into_iter().flatten().filter(|to| !(inside(at) && inside(to))) {
                if to == start {
                    circles.push(format!("{} -> {start}", way.join(" -> ")));
                } else if seen.insert(to) {
                    ahead.push([way.as_slice(), &[to]].concat());
                }
            }
        }
    }
    assert!(circles.is_empty(), "circles of imports:\n{}", circles.join("\n"));
}

/// `cuda` repeats the reference's names on purpose: there a name says which step runs on the device.
#[test]
fn a_public_type_has_a_name_of_its_own() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, source) in modules().iter().filter(|(module, _)| !is_in(module, "cuda")) {
        for keyword in ["struct", "enum", "trait", "type"] {
            let declared = format!("\npub {keyword} ");
            for rest in source.split(declared.as_str()).skip(1) {
                let name =
                    rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
                places.entry(name.to_string()).or_default().insert(module.clone());
            }
        }
    }
    assert!(places["PruneConfig"].contains("reference::config"));
    let shared: Vec<_> = places.iter().filter(|(_, modules)| modules.len() > 1).collect();
    assert!(shared.is_empty(), "one name, several meanings: {shared:?}");
}

#[test]
fn kinds_of_paths_are_understood() {
    let mut found = Vec::new();
    expand("", "crate::a::{self, b, c::{D, e}} as x", &mut found);
    assert_eq!(found, ["crate::a::self", "crate::a::b", "crate::a::c::D", "crate::a::c::e"]);
    let source = "use super::x::Y; fn f() -> crate::z::W {}";
    assert_eq!(paths("a::b", false, source, false), ["a::x::Y", "a::x::Y", "z::W"]);
}
