//! What the targets share: one input unpacked into the files of a directory.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Stands between two files of an input. `seeds.py` writes the same.
const SEPARATOR: &[u8] = b"\n%%%%\n";

/// A directory in memory with the files of one input.
pub struct Directory(TempDir);

impl Directory {
    /// `data` is the content of the files in `names`, in this order, with a separator between two. A file beyond the
    /// last separator is not there.
    pub fn unpack(data: &[u8], names: &[&str]) -> Self {
        let directory = TempDir::new_in("/dev/shm").expect("a directory in memory");
        let mut rest = Some(data);
        for name in names {
            let Some(content) = rest else { break };
            let end = content.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
            let file = &content[..end.unwrap_or(content.len())];
            rest = end.map(|end| &content[end + SEPARATOR.len()..]);
            // The empty file says "none", so that a later one can be there.
            if !file.is_empty() {
                fs::write(directory.path().join(name), file).expect("room for a file in memory");
            }
        }
        Directory(directory)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A name inside it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}
