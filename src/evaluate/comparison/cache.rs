//! A cache of results: each is a JSON file, named by the SHA-256 of everything that it depends on.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::files::write_atomically;
use crate::tensors::TensorError;

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] TensorError),
    /// Another process has it open.
    #[error("{}: another run uses this cache; wait until it ends, or choose another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

/// What a cache holds for a key.
#[derive(Debug)]
pub enum Lookup<R> {
    /// The result.
    Found(R),
    /// No result.
    Absent,
    /// A file that is not a result of this key.
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// A directory of results, locked against other processes while it is open.
pub struct Cache {
    directory: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// SHA-256 of key and result.
    sha256: String,
    key: Value,
    result: Value,
}

/// SHA-256 of the compact text of a JSON value, in hexadecimal.
pub fn digest(value: &Value) -> String {
    base16ct::lower::encode_string(&Sha256::digest(value.to_string()))
}

impl Cache {
    /// Opens a directory, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`CacheError`]: it cannot be created, or is open elsewhere.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        fs::create_dir_all(directory).map_err(TensorError::io(directory))?;
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(TensorError::io(&path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Cache { directory: directory.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(CacheError::InUse { path: directory.into() }),
            Err(TryLockError::Error(error)) => Err(TensorError::io(&path)(error).into()),
        }
    }

    /// The path of the result of a key.
    pub fn path(&self, key: &Value) -> PathBuf {
        self.directory.join(format!("{}.json", digest(key)))
    }

    /// Looks for a result.
    pub fn get<R: DeserializeOwned>(&self, key: &Value) -> Lookup<R> {
        let path = self.path(key);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Lookup::Absent,
            Err(error) => return Lookup::Damaged { path, detail: error.to_string() },
        };
        let entry = serde_json::from_str::<Entry>(&text).map_err(|error| error.to_string());
        let result = entry.and_then(|Entry { sha256, key: of, result }| {
            if of != *key || sha256 != digest(&json!([of, result])) {
                return Err("its content was changed".into());
            }
            serde_json::from_value(result).map_err(|error| error.to_string())
        });
        match result {
            Ok(result) => Lookup::Found(result),
            Err(detail) => Lookup::Damaged { path, detail },
        }
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// [`CacheError::File`] when it cannot be written.
    pub fn put<R: Serialize>(&self, key: &Value, result: &R) -> Result<(), CacheError> {
        let result = serde_json::to_value(result).expect("a result is plain data");
        let sha256 = digest(&json!([key, result]));
        let text = json!(Entry { sha256, key: key.clone(), result });
        Ok(write_atomically(&self.path(key), format!("{text:#}\n").as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_and_what_was_changed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let (key, other) = (json!({"p": 0.1, "of": "a"}), json!({"p": 0.2, "of": "a"}));
        let result = vec![1.0 / 3.0, f64::MIN_POSITIVE, -0.0];
        cache.put(&key, &result).unwrap();
        let get = |key| cache.get::<Vec<f64>>(key);
        assert!(matches!(get(&key), Lookup::Found(found) if found == result));
        assert!(matches!(get(&other), Lookup::Absent));

        let path = cache.path(&key);
        let whole = fs::read_to_string(&path).unwrap();
        let damage = [
            whole[..whole.len() / 2].to_string(),
            String::new(),
            whole.replace("0.3333", "0.3334"),
            whole.replace("\"a\"", "\"b\""),
        ];
        for text in damage {
            assert_ne!(text, whole);
            fs::write(&path, &text).unwrap();
            assert!(matches!(get(&key), Lookup::Damaged { path: named, .. } if named == path), "{text}");
        }
        // The result of another key under this one's name.
        cache.put(&other, &result).unwrap();
        fs::copy(cache.path(&other), &path).unwrap();
        assert!(matches!(get(&key), Lookup::Damaged { .. }));
        // A result of another kind.
        cache.put(&key, &"text").unwrap();
        assert!(matches!(get(&key), Lookup::Damaged { .. }));
    }

    #[test]
    fn two_runs_do_not_share_a_directory_at_the_same_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = Cache::open(directory.path()).unwrap();
        assert!(matches!(Cache::open(directory.path()), Err(CacheError::InUse { .. })));
        drop(first);
        Cache::open(directory.path()).unwrap();
    }
}
