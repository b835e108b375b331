//! Disks that are full, read-only, or not the one of the model: clear errors, nothing half-written, and a run that goes
//! on when there is room. The disks are small file systems in memory, mounted in a namespace of their own; where that
//! is not permitted the tests are skipped by name.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{content, fixture};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let permitted = mounted(tempfile::tempdir().expect("a directory").path(), "true");
    let skip = !permitted.is_ok_and(|outcome| outcome.status.success());
    type Test = fn() -> Result<(), Failed>;
    let tests: [(&str, Test); 6] = [
        ("full_from_the_beginning", full_from_the_beginning),
        ("full_after_some_layers", full_after_some_layers),
        ("full_for_the_compressed_copy", full_for_the_compressed_copy),
        ("read_only", read_only),
        ("read_only_model", read_only_model),
        ("another_file_system", another_file_system),
    ];
    let mut trials: Vec<_> = tests.map(|(name, test)| Trial::test(name, test).with_ignored_flag(skip)).into();
    let skip = !unprivileged("true").output().is_ok_and(|outcome| outcome.status.success());
    trials.push(Trial::test("read_only_files", read_only_files).with_ignored_flag(skip));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Runs a shell script in a mount namespace. There `$disk` is an empty directory to mount on, `prune` prunes nano-llama
/// into `$disk/pruned` and prints `code <exit code>`, `show` prints what is on the disk, and `$outside` remains after
/// the end.
fn mounted(outside: &Path, script: &str) -> std::io::Result<Output> {
    let functions = r#"
        disk=$outside/disk; mkdir -p "$disk"
        mount -t tmpfs -o size=1m tmpfs "$disk"; umount "$disk"
        prune() {
            code=0
            "$program" prune --model "$model" --tokens "$model/tokens-calibration.safetensors" --block-size 32 \
                --output "$disk/pruned" "$@" > "$outside/stdout" || code=$?
            echo "code $code"
        }
        show() { (cd "$disk" && find . -mindepth 1 | sort); }
    "#;
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-euc", &format!("{functions}\n{script}")])
        .env("outside", outside)
        .env("program", env!("CARGO_BIN_EXE_duogpt"))
        .env("model", fixture("nano-llama"))
        .output()
}

/// Runs a script that must succeed; returns what it wrote to stdout and stderr.
fn run(outside: &Path, script: &str) -> Result<(String, String), Failed> {
    let outcome = mounted(outside, script)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&outcome.stdout), text(&outcome.stderr));
    match outcome.status.success() {
        true => Ok((stdout, stderr)),
        false => Err(format!("the script failed: {stdout}{stderr}").into()),
    }
}

/// A shell script run by a user whom permissions bind.
fn unprivileged(script: &str) -> Command {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = Command::new(if root { "setpriv" } else { "sh" });
    if root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh"]);
    }
    command.args(["-euc", script]).env("program", env!("CARGO_BIN_EXE_duogpt"));
    command
}

fn expect(condition: bool, what: impl Into<String>) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(what.into().into()) }
}

/// The result of a run that nothing interrupts, on the disk of the other results.
fn undisturbed(outside: &Path) -> Result<Vec<(String, Vec<u8>)>, Failed> {
    let (stdout, stderr) = run(outside, "prune; mv $disk/pruned $outside/whole")?;
    expect(stdout == "code 0\n", stderr)?;
    Ok(content(&outside.join("whole")))
}

fn full_from_the_beginning() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let outside = directory.path();
    let script = "
        mount -t tmpfs -o size=256k tmpfs $disk; prune; show
        mount -o remount,size=16m $disk; prune --resume; cp -r $disk/pruned $outside";
    let (stdout, stderr) = run(outside, script)?;
    expect(stdout == "code 2\ncode 0\n", format!("{stdout}{stderr}"))?;
    expect(stderr.contains("pruned.partial/model.safetensors: No space left on device"), stderr)?;
    expect(content(&outside.join("pruned")) == undisturbed(outside)?, "the result differs")
}

/// Pages are lacking for the record of finished layers, or for the report. How many there are to spare decides where
/// the run stops.
fn full_after_some_layers() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let outside = directory.path();
    let whole = undisturbed(outside)?;
    let weights = |(name, _): &&(String, Vec<u8>)| name != "prune-report.json";
    let pages: usize = whole.iter().filter(weights).map(|(_, bytes)| bytes.len().div_ceil(4096)).sum();
    let mut continued = 0;
    for spare in 0..4 {
        let size = pages + spare;
        let script = format!(
            "mount -t tmpfs -o size={} tmpfs $disk; prune; show
             mount -o remount,size=16m $disk; prune --resume; cp -r $disk/pruned $outside/pruned{spare}",
            size * 4096
        );
        let (stdout, stderr) = run(outside, &script)?;
        let shown = format!("{spare} pages to spare: {stdout}{stderr}");
        if stdout.starts_with("code 0") {
            continue;
        }
        expect(stdout.starts_with("code 2\n") && stdout.ends_with("code 0\n"), &shown)?;
        expect(stderr.contains("No space left on device"), &shown)?;
        if stderr.contains("make room, then continue with --resume") {
            continued += 1;
            expect(stdout.contains("./pruned.partial/resume.json\n"), &shown)?;
        } else {
            expect(stdout == "code 2\ncode 0\n", &shown)?; // no layer was finished, nothing is left
        }
        expect(
            content(&outside.join(format!("pruned{spare}"))) == whole,
            format!("the result differs; {shown}"),
        )?;
    }
    expect(continued > 0, "no run stopped between two layers")
}

/// There is room for the dense weights, but not for the compressed copy beside them: refused before the first layer.
fn full_for_the_compressed_copy() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let outside = directory.path();
    let dense: usize =
        undisturbed(outside)?.iter().map(|(_, bytes)| bytes.len().next_multiple_of(4096)).sum();
    let script = format!(
        "mount -t tmpfs -o size={} tmpfs $disk; prune --format sparse-bitmask; show
         mount -o remount,size=16m $disk; prune --format sparse-bitmask; cp -r $disk/pruned $outside/tight
         mount -o remount,size=64m $disk; rm -r $disk/pruned; prune --format sparse-bitmask; cp -r $disk/pruned $outside/wide",
        dense + 65536
    );
    let (stdout, stderr) = run(outside, &script)?;
    expect(stdout == "code 2\ncode 0\ncode 0\n", format!("{stdout}{stderr}"))?;
    expect(stderr.contains("besides the dense weights: make room, or choose --format dense"), &stderr)?;
    let before = stderr.split("make room").next().unwrap_or_default();
    expect(!before.contains("finished layer"), &stderr)?;
    expect(content(&outside.join("tight")) == content(&outside.join("wide")), "the result differs")
}

fn read_only() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let (stdout, stderr) = run(directory.path(), "mount -t tmpfs -o ro tmpfs $disk; prune; show")?;
    expect(stdout == "code 2\n", format!("{stdout}{stderr}"))?;
    let expected =
        "pruned.partial: cannot be created (Read-only file system (os error 30)); choose another --output";
    expect(stderr.contains(expected), stderr)
}

/// The model's own directory may be read-only: nothing is written there.
fn read_only_model() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let outside = directory.path();
    let script = "
        mkdir $outside/model; cp $model/config.json $model/*.safetensors $outside/model
        mount --bind $outside/model $outside/model; mount -o remount,bind,ro $outside/model
        model=$outside/model; prune; mv $disk/pruned $outside";
    let (stdout, stderr) = run(outside, script)?;
    expect(stdout == "code 0\n", format!("{stdout}{stderr}"))?;
    expect(content(&outside.join("pruned")) == undisturbed(outside)?, "the result differs")
}

/// A model whose files and folder nobody may write gives new files that their owner may write, at once and resumed.
fn read_only_files() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let (outside, source) = (directory.path(), directory.path().join("source"));
    let permit = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    std::fs::create_dir(&source)?;
    for file in ["config.json", "model.safetensors", "tokens-calibration.safetensors"] {
        std::fs::copy(fixture("nano-llama").join(file), source.join(file))?;
        permit(&source.join(file), 0o444)?;
    }
    std::fs::write(source.join("generation_config.json"), "{}")?;
    permit(&source.join("generation_config.json"), 0o444)?;
    permit(&source, 0o555)?;
    std::fs::create_dir(outside.join("new"))?;
    permit(&outside.join("new"), 0o777)?;
    permit(outside, 0o755)?;
    let script = r#"
        cd "$outside/new"
        prune() {
            output=$1; shift
            exec "$program" prune --model ../source --tokens ../source/tokens-calibration.safetensors --block-size 32 \
                --precision f64 --output "$output" "$@" > /dev/null
        }
        (prune compressed --format sparse-bitmask)
        (prune f32 --dtype f32)
        "$program" convert --model ../source --format sparse-bitmask --output converted
        prune resumed --format sparse-bitmask & run=$!
        while [ ! -f resumed.partial/resume.json ] && kill -0 $run; do sleep 0.01; done
        kill -9 $run; wait $run || :
        [ -d resumed.partial ]
        (prune resumed --format sparse-bitmask --resume)
        for file in */*; do [ -w "$file" ] || { echo "$file cannot be written"; exit 1; }; done
        "#;
    let outcome = unprivileged(script).env("outside", outside).output()?;
    permit(&source, 0o755)?; // so that it can be removed
    expect(outcome.status.success(), format!("{:?}", outcome))?;
    let new = |name: &str| content(&outside.join("new").join(name));
    expect(new("resumed") == new("compressed"), "the resumed run gives another result")
}

fn another_file_system() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let outside = directory.path();
    let script = "mount -t tmpfs -o size=16m tmpfs $disk; prune; show; cp -r $disk/pruned $outside";
    let (stdout, stderr) = run(outside, script)?;
    let files =
        "code 0\n./pruned\n./pruned/config.json\n./pruned/model.safetensors\n./pruned/prune-report.json\n";
    expect(stdout == files, format!("{stdout}{stderr}"))?;
    expect(content(&outside.join("pruned")) == undisturbed(outside)?, "the result differs")
}
