//! `scripts/gpu-check.sh` in a bundle whose programs only say that they were called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

/// Writes down its name, its arguments and what it was told; fails where a file `<name>.fails` says so.
const PROGRAM: &str = r#"#!/bin/sh
name=$(basename "$0")
echo "$name $*|require=$DUOGPT_REQUIRE_GPU|results=$DUOGPT_BENCH_RESULTS|peer=$DUOGPT_PEER_RESULTS" >> "$ROOT/calls"
[ ! -e "$ROOT/$name.fails" ]
"#;

/// A Python with PyTorch and a device.
const PYTHON: &str = r#"#!/bin/sh
case $1 in
    -) echo /nowhere/nvidia/cu13/lib ;;
    *peer.py) echo "peer|$LD_LIBRARY_PATH" >> "$ROOT/calls"
        while [ "$1" != --output ]; do shift; done
        echo '{}' > "$2" ;;
esac
"#;

/// One bundle at a time: a process that another thread starts while a program is written holds it open for a moment, and
/// what is open for writing cannot be run.
struct Bundle {
    directory: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Bundle {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let bundle = Bundle { directory: tempfile::tempdir().unwrap(), _alone: alone };
        let root = bundle.root();
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        for directory in ["bin", "scripts", "path", "fixtures"] {
            fs::create_dir(root.join(directory)).unwrap();
        }
        fs::copy(source.join("scripts/gpu-check.sh"), root.join("scripts/gpu-check.sh")).unwrap();
        fs::write(root.join("bundle.txt"), "commit: 0123\n").unwrap();
        for program in ["duogpt", "test-gpu", "test-golden", "test-cross_backend", "bench-gpu"] {
            bundle.program(&format!("bin/{program}"), PROGRAM);
        }
        bundle.program("path/nvidia-smi", "#!/bin/sh\necho 'NVIDIA H100 PCIe'\n");
        bundle.program("path/python3", PYTHON);
        bundle
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.root().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let path = format!("{}:{}", self.root().join("path").display(), std::env::var("PATH").unwrap());
        Command::new(self.root().join("scripts/gpu-check.sh"))
            .args(arguments)
            .env("ROOT", self.root())
            .env("PATH", path)
            .env_remove("PYTHON")
            .env_remove("DUOGPT_RESULTS")
            .current_dir("/")
            .output()
            .unwrap()
    }

    /// What was called, each once, in this order; without what only says where it runs.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.root().join("calls")).unwrap();
        calls.lines().filter(|call| !call.starts_with("duogpt verify --json")).map(String::from).collect()
    }
}

#[test]
fn tests_come_first_then_the_peer_then_benches() {
    let bundle = Bundle::new();
    let outcome = bundle.run(&["panel/"]);
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success(), "{text}{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(text.contains("commit: 0123") && text.contains("libcublas: "), "{text}");
    let calls = bundle.calls();
    let expected = [
        "test-gpu ",
        "test-golden cuda",
        "test-cross_backend cuda",
        "duogpt verify --backend cuda",
        "peer|",
        "bench-gpu --bench panel/",
    ];
    assert_eq!(calls.len(), expected.len(), "{calls:?}");
    for (call, expected) in calls.iter().zip(expected) {
        assert!(call.starts_with(expected), "{call}, expected {expected}");
    }
    assert!(calls[0].contains("|require=1|"), "{}", calls[0]);
    let root = bundle.root().canonicalize().unwrap();
    let libraries = calls[4].strip_prefix("peer|").unwrap();
    assert!(libraries.starts_with(root.join("lib").to_str().unwrap()), "{libraries}");
    assert!(libraries.ends_with(":/nowhere/nvidia/cu13/lib"), "{libraries}");
    let results = root.join("benches/results/NVIDIA-H100-PCIe");
    let named = |what: &str| {
        let value = calls[5].split('|').find_map(|part| part.strip_prefix(what)).unwrap();
        assert!(Path::new(value).starts_with(&results), "{value}");
        value.to_string()
    };
    assert!(named("results=").ends_with(".json"));
    assert!(fs::exists(named("peer=")).unwrap());
    let environment = fs::read_dir(&results).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(environment.filter(|path| path.extension().is_some_and(|e| e == "txt")).count(), 1);
}

#[test]
fn nothing_is_timed_behind_a_test_that_fails() {
    let bundle = Bundle::new();
    fs::write(bundle.root().join("test-golden.fails"), "").unwrap();
    let outcome = bundle.run(&[]);
    assert_eq!(outcome.status.code(), Some(1));
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert!(message.contains("nothing is timed: test vectors on the device"), "{message}");
    assert!(
        bundle.calls().iter().any(|call| call.starts_with("test-cross_backend")),
        "the other tests still run"
    );
    assert!(bundle.calls().iter().all(|call| !call.starts_with("bench-gpu")));
}

#[test]
fn benches_that_fail_are_reported() {
    let bundle = Bundle::new();
    fs::write(bundle.root().join("bench-gpu.fails"), "").unwrap();
    let outcome = bundle.run(&[]);
    assert_eq!(outcome.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("failed: benches"));
}

#[test]
fn without_a_device_tests_are_skipped_where_that_is_allowed() {
    let bundle = Bundle::new();
    bundle.program("path/nvidia-smi", "#!/bin/sh\nexit 9\n");
    let outcome = bundle.run(&["--allow-no-gpu"]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(text.contains("nvidia-smi: no device") && text.contains("skipped: the ratios"), "{text}");
    assert!(
        text.contains("no device was found: nothing was checked") && !text.contains("all is well"),
        "{text}"
    );
    let calls = bundle.calls();
    assert!(calls.iter().all(|call| call.contains("|require=|")), "{calls:?}");
    assert!(calls.iter().all(|call| !call.starts_with("duogpt verify --backend cuda")), "{calls:?}");
    assert!(calls.iter().any(|call| call.starts_with("bench-gpu")), "{calls:?}");
}
