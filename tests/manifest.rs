//! Every fixture is the file that its manifest entry describes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn files(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path.strip_prefix(fixtures()).unwrap().to_str().unwrap().to_string());
        }
    }
}

#[test]
fn every_fixture_has_its_recorded_hash_and_provenance() {
    let manifest: toml::Table =
        fs::read_to_string(fixtures().join("MANIFEST.toml")).unwrap().parse().unwrap();
    let mut unlisted = BTreeSet::new();
    files(&fixtures(), &mut unlisted);
    unlisted.remove("MANIFEST.toml");
    unlisted.remove("README.md");
    for entry in manifest["file"].as_array().unwrap() {
        let text = |key: &str| entry[key].as_str().filter(|text| !text.is_empty()).unwrap();
        let (path, _) = (text("path"), (text("source"), text("version"), text("made")));
        assert!(unlisted.remove(path), "{path} is listed, but missing or listed twice");
        let hash = Sha256::digest(fs::read(fixtures().join(path)).unwrap());
        let hash = base16ct::lower::encode_string(&hash);
        assert_eq!(hash, text("sha256"), "{path} is not the file that its entry describes");
    }
    assert!(unlisted.is_empty(), "without an entry in MANIFEST.toml: {unlisted:?}");
}
