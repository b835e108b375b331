//! `duogpt demo`: one table of perplexities that says what its results say; on a terminal a curve; and the same runs as
//! those of `compare`.

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output};

use common::{fixture, read_json};
use duogpt::tensors::{Dtype, TensorWriter};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with nano-llama in place of the demo's model, which is larger.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { directory: tempfile::tempdir().unwrap() };
        let model = place.path("tiny-llama");
        fs::create_dir(&model).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture("nano-llama").join(name), model.join(name)).unwrap();
        }
        for (seed, name) in [(3, "calibration"), (5, "evaluation")] {
            let (windows, length) = (32, 16);
            let token = |i: i64| (i * i * 37 + i * seed) % 320;
            let bytes: Vec<u8> = (0..windows * length).flat_map(|i| token(i).to_le_bytes()).collect();
            let shape = [windows as usize, length as usize];
            let path = model.join(format!("tokens-sampled-{name}.safetensors"));
            let header = [("tokens", Dtype::I64, &shape[..])];
            let writer = TensorWriter::create(&path, header, &HashMap::new()).unwrap();
            writer.write("tokens", &bytes).unwrap();
            writer.sync().unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duogpt"));
        command.current_dir(self.directory.path()).args(arguments);
        command
    }

    fn demo(&self, flags: &[&str]) -> Output {
        let outcome = self.command(&[&["demo", "--fixtures", "."], flags].concat()).output().unwrap();
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        outcome
    }

    /// The results of the last demo.
    fn results(&self) -> Value {
        read_json(&self.path("demo/comparison.json"))
    }
}

/// Runs a command whose stdout and stderr are a terminal, and returns what that shows.
fn on_a_terminal(mut command: Command) -> String {
    let (mut master, mut slave) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: both numbers are written before they are read; a name, settings and a size are not asked for.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
    assert_eq!(opened, 0, "no pseudo-terminal: {}", std::io::Error::last_os_error());
    // SAFETY: both were opened just now and have no other owner.
    let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let mut child = command.stdout(slave.try_clone().unwrap()).stderr(slave).spawn().unwrap();
    drop(command); // with it the terminal's other end, so that reading ends with the child
    let mut shown = Vec::new();
    // The kernel's way to say that nobody writes any more is an error.
    let _ = fs::File::from(master).read_to_end(&mut shown);
    assert!(child.wait().unwrap().success(), "{}", String::from_utf8_lossy(&shown));
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

fn mean(row: &Value, quantity: &str) -> f64 {
    row["quantities"][quantity]["mean"].as_f64().unwrap()
}

/// Two perplexities, in this order.
const QUANTITIES: [&str; 2] = ["perplexity_dense_activations", "perplexity"];

#[test]
fn the_table_and_its_sentence_are_those_of_the_results() {
    let place = Place::new();
    let outcome = place.demo(&["--sparsities", "0.25,0.5"]);
    let text = String::from_utf8(outcome.stdout).unwrap();
    let results = place.results();
    let points = results["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    for (number, name) in
        ["none (dense model)", "magnitude", "wanda", "sparsegpt", "duogpt"].iter().enumerate()
    {
        let numbers = points.iter().flat_map(|point| QUANTITIES.map(|of| mean(&point["rows"][number], of)));
        let expected: Vec<String> = numbers.map(|number| format!("{number:.2}")).collect();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line[name.len()..].split_whitespace().collect::<Vec<_>>(), expected, "{text}");
    }
    let head = |start: &str| -> String {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap();
        line[start.len()..].split_whitespace().collect()
    };
    assert_eq!((head("weights pruned"), head("activations pruned")), ("25%50%".into(), "0%25%0%50%".into()));
    for absent in ["tasks", "gap", "AMBIGUOUS", "┤"] {
        assert!(!text.contains(absent), "{absent} is in: {text}");
    }

    // The sentence names the lowest of each column, dense weights left out.
    let lowest = |point: &Value, quantity: &str| -> String {
        let pruned = point["rows"].as_array().unwrap()[1..].iter();
        let best = pruned.min_by(|a, b| mean(a, quantity).total_cmp(&mean(b, quantity))).unwrap();
        best["method"].as_str().unwrap().into()
    };
    for (start, quantity) in
        [("When activations are pruned too", QUANTITIES[1]), ("when only weights are pruned", QUANTITIES[0])]
    {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap();
        let named = match [lowest(&points[0], quantity), lowest(&points[1], quantity)] {
            [first, second] if first == second => format!("that of {first} at 25 % and 50 %"),
            [first, second] => format!("that of {first} at 25 %, {second} at 50 %"),
        };
        assert!(line.contains(&named), "`{named}` is not in: {line}");
    }
    let plot = fs::read_to_string(place.path("demo/comparison.svg")).unwrap();
    assert!(plot.contains("perplexity, sparse activations"));
}

#[test]
fn on_a_terminal_there_is_a_curve_and_no_lines_of_a_log() {
    let place = Place::new();
    let demo = |flags: &[&str]| place.command(&[&["demo", "--fixtures", "."], flags].concat());
    let two = ["--sparsities", "0.25,0.5"];
    let shown = on_a_terminal(demo(&two));
    assert!(
        shown.contains(" ┤") && shown.contains(". dense   m magnitude   w wanda   s sparsegpt   d duogpt"),
        "{shown}"
    );
    assert!(!shown.contains("comparing: "), "{shown}");
    // The axis ends at the largest and the smallest perplexity that is drawn.
    let results = place.results();
    let rows =
        results["points"].as_array().unwrap().iter().flat_map(|point| point["rows"].as_array().unwrap());
    let perplexities: Vec<f64> = rows.map(|row| mean(row, "perplexity")).collect();
    for end in [f64::max, f64::min].map(|end| perplexities.iter().copied().reduce(end).unwrap()) {
        assert!(shown.contains(&format!("{end:.1} ┤")), "{end} is not in: {shown}");
    }
    // One sparsity makes no curve, and JSON stays JSON.
    assert!(!on_a_terminal(demo(&["--sparsities", "0.5"])).contains(" ┤"));
    let json = on_a_terminal(demo(&[&two[..], &["--json"]].concat()));
    let json = &json[json.find('{').unwrap()..=json.rfind('}').unwrap()];
    assert_eq!(serde_json::from_str::<Value>(json).unwrap(), place.results());
}

#[test]
fn the_demo_is_a_preset_of_compare() {
    let place = Place::new();
    place.demo(&["--sparsities", "0.5"]);
    let demo = place.results();
    let compare = [
        "compare",
        "--model",
        "tiny-llama",
        "--calibration",
        "tiny-llama/tokens-sampled-calibration.safetensors",
        "--evaluation",
        "tiny-llama/tokens-sampled-evaluation.safetensors",
        "--hessian-scale",
        "1",
        "--cache",
        "demo/cache",
        "--json",
    ];
    let outcome = place.command(&compare).output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let compared: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let steps =
        |of: &Value| ["pruned", "measured", "from_cache"].map(|key| of["steps"][key].as_u64().unwrap());
    // Five models at two activation sparsities, and four pruning runs.
    assert_eq!((steps(&demo), steps(&compared)), ([4, 10, 0], [0, 0, 14]));
    assert_eq!(demo["points"], compared["points"]);
}
