//! The stand-ins for CUDA's libraries: where they are, and the program run with them. See README.md in this directory.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// The directory of the libraries, built at first use.
pub fn libraries() -> &'static Path {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directory = root.join("target/fake-cuda");
        let outcome = Command::new(root.join("tests/fake_cuda/build.sh")).arg(&directory).output().unwrap();
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        directory
    });
    &BUILT
}

/// What a process did with the device.
pub struct Ran {
    /// What it ended with.
    pub output: Output,
    /// See `write_bill` of core.cpp. `Null` where the process ended by a signal.
    pub bill: Value,
}

impl Ran {
    /// What it said to standard error.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Whether it ended well, and gave back all that it had taken.
    ///
    /// # Panics
    /// If it did not.
    pub fn well(self) -> Self {
        assert!(self.output.status.success(), "{}", self.errors());
        assert_eq!(self.left(), Vec::<String>::new());
        assert_eq!(self.bill["broken"], "");
        self
    }

    /// What it has not given back, by kind.
    pub fn left(&self) -> Vec<String> {
        let left = self.bill["left"].as_object().expect("a bill");
        left.iter().filter(|(_, count)| **count != 0).map(|(what, count)| format!("{count} {what}")).collect()
    }

    /// How often a function of CUDA was called.
    pub fn calls(&self, name: &str) -> u64 {
        self.bill["calls"][name].as_u64().unwrap_or(0)
    }
}

/// Runs a program on the stand-ins, with settings of theirs.
pub fn run(program: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
    run_on(libraries(), program, arguments, settings)
}

/// The same with the libraries of a directory.
pub fn run_on(libraries: &Path, program: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
    let bill = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = Command::new(program)
        .args(arguments)
        .env("LD_LIBRARY_PATH", libraries)
        .env("FAKE_CUDA_BILL", bill.path())
        // Kernels that are compiled once for all tests.
        .env("XDG_CACHE_HOME", self::libraries().join("cache"))
        .envs(settings.iter().copied())
        .output()
        .expect("the program starts");
    let text = std::fs::read_to_string(bill.path()).unwrap();
    let bill = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("a bill") };
    Ran { output, bill }
}

/// Runs `duogpt` on the stand-ins.
pub fn duogpt(arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
    run(env!("CARGO_BIN_EXE_duogpt"), arguments, settings)
}
