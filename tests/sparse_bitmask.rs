//! The sparse-bitmask layout on disk: there and back byte for byte, as the compressed-tensors package reads and writes it,
//! and read by every command. `fixtures/sparse-bitmask` is described in `fixtures/README.md`.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use common::{content, duogpt, fixture, position, read_json};
use duogpt::model::Checkpoint;
use duogpt::model::forward::{Forward, Group, State, apply};
use duogpt::model::sparse_bitmask::{self, StorageFormat};
use duogpt::tensors::{TensorFile, TensorWriter};
use serde_json::{Value, json};

fn succeeds(arguments: &[&str]) -> String {
    let outcome = duogpt(arguments);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    String::from_utf8(outcome.stdout).unwrap()
}

fn convert(model: &Path, output: &Path, format: &str) -> String {
    let (model, output) = (model.to_str().unwrap(), output.to_str().unwrap());
    succeeds(&["convert", "--model", model, "--output", output, "--format", format])
}

fn package_fixture(name: &str) -> PathBuf {
    fixture("sparse-bitmask").join(name)
}

/// The same files with the same bytes (but for the times in a report).
fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (content(a), content(b));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert_eq!(a.iter().zip(b).position(|(a, b)| a != b), None, "{name} differs");
        assert_eq!(a.len(), b.len(), "{name}");
    }
}

/// Every tensor of a checkpoint, dense.
fn dense_tensors(checkpoint: &Checkpoint) -> Vec<(String, Vec<u8>)> {
    let shards = 0..checkpoint.shards().len();
    let names = shards.flat_map(|shard| checkpoint.tensors_of(shard)).map(|(name, _)| name);
    let mut tensors: Vec<_> =
        names.map(|name| (name.clone(), checkpoint.tensor_data(&name).unwrap().bytes.to_vec())).collect();
    tensors.sort();
    tensors
}

/// Compressed, the files are those from which the package made `decompressed.safetensors`; and back they are those that the
/// safetensors library wrote: shards, index, config.json.
#[test]
fn there_and_back_is_byte_for_byte_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (compressed, dense) = (directory.path().join("compressed"), directory.path().join("dense"));
    convert(&package_fixture("dense"), &compressed, "sparse-bitmask");
    assert_same_files(&compressed, &package_fixture("compressed"));
    convert(&compressed, &dense, "dense");
    assert_same_files(&dense, &package_fixture("dense"));
    // To the format that it has already: the same files.
    let again = directory.path().join("again");
    convert(&compressed, &again, "sparse-bitmask");
    assert_same_files(&again, &compressed);
}

/// What the package made of our files has every bit of the dense ones, -0 and denormals included.
#[test]
fn the_package_decompresses_every_bit() {
    let theirs = TensorFile::open(&package_fixture("decompressed.safetensors")).unwrap();
    let dense = Checkpoint::open(&package_fixture("dense")).unwrap();
    let ours = Checkpoint::open(&package_fixture("compressed")).unwrap();
    let tensors = dense_tensors(&dense);
    assert_eq!(tensors.len(), 21);
    assert_eq!(dense_tensors(&ours), tensors);
    let negative_zeros = |bytes: &[u8]| bytes.chunks_exact(2).filter(|value| *value == [0, 0x80]).count();
    assert!(tensors.iter().map(|(_, bytes)| negative_zeros(bytes)).sum::<usize>() > 100);
    for (name, bytes) in tensors {
        assert_eq!(theirs.bytes(&name).unwrap(), bytes, "{name}");
    }
}

/// The package's own files, whose tensors lie in another order and which know no -0.
#[test]
fn files_of_the_package_are_read() {
    let theirs = Checkpoint::open(&package_fixture("package")).unwrap();
    let mut dense = dense_tensors(&Checkpoint::open(&package_fixture("dense")).unwrap());
    for (_, bytes) in dense.iter_mut().filter(|(name, _)| name.contains("_proj")) {
        for value in bytes.chunks_exact_mut(2).filter(|value| **value == [0, 0x80]) {
            value.fill(0);
        }
    }
    assert_eq!(dense_tensors(&theirs), dense);
    for linear in theirs.linear_tensors() {
        assert_eq!(theirs.storage(&linear).unwrap().0, StorageFormat::SparseBitmask);
    }
}

/// `prune --format sparse-bitmask` writes what `prune` and `convert` write; it takes about 56 % of the bytes.
#[test]
fn pruned_models_are_written_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let model = fixture("tiny-llama");
    let prune = |output: &str, flags: &[&str]| {
        let output = at(output);
        let arguments = [
            "prune",
            "--method",
            "magnitude",
            "--model",
            model.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
        ];
        succeeds(&[&arguments, flags].concat());
    };
    prune("dense", &[]);
    prune("compressed", &["--format", "sparse-bitmask"]);
    convert(&at("compressed"), &at("back"), "dense");
    assert_same_files(&at("back"), &at("dense"));
    let entries: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(entries.len(), 3, "something is left over: {entries:?}");
    assert!(
        read_json(&at("compressed/config.json"))["quantization_config"]["sparsity_config"]["format"]
            == "sparse-bitmask"
    );

    let lines = succeeds(&["inspect", at("compressed").to_str().unwrap(), "--json"]);
    let lines: Value = serde_json::from_str(&lines).unwrap();
    let (mut bytes, mut dense) = (0, 0);
    for line in lines.as_array().unwrap().iter().filter(|line| !line["sparsity"].is_null()) {
        assert_eq!(line["format"], "sparse-bitmask");
        let shape = |dimension: usize| line["shape"][dimension].as_u64().unwrap();
        bytes += line["bytes"].as_u64().unwrap();
        dense += 2 * shape(0) * shape(1);
    }
    // 1/2 of the values less the one more than half of each block that goes, 1/16 of bits, an offset per row.
    let share = bytes as f64 / dense as f64;
    assert!((0.56..0.58).contains(&share), "{share}");

    // A compressed model pruned again is dense, and says so.
    let source = at("compressed");
    let again = at("again");
    let arguments = [
        "prune",
        "--method",
        "magnitude",
        "--model",
        source.to_str().unwrap(),
        "--output",
        again.to_str().unwrap(),
        "--weight-sparsity",
        "0.7",
        "--dtype",
        "f32",
    ];
    succeeds(&arguments);
    let config = read_json(&again.join("config.json"));
    assert!(config.get("quantization_config").is_none() && config["torch_dtype"] == "float32");
    assert!(Checkpoint::open(&again).unwrap().shards()[0].names().all(|name| !name.ends_with(".bitmask")));
}

/// What does not say how long something took, or where it lay.
fn result(mut report: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(entries) => {
                entries.retain(|key, _| {
                    !key.contains("seconds")
                        && !["model", "model_sha256", "model_args", "name"].contains(&&key[..])
                });
                entries.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut report);
    report
}

/// To every command that takes a model, a compressed one is what the dense one is.
#[test]
fn every_command_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (tiny, data) = (fixture("tiny-llama"), fixture("zero_shot").join("data"));
    let text = |path: &Path| path.to_str().unwrap().to_string();
    succeeds(&["prune", "--method", "magnitude", "--model", &text(&tiny), "--output", &text(&at("dense"))]);
    convert(&at("dense"), &at("compressed"), "sparse-bitmask");
    let calibration = text(&tiny.join("tokens-sampled-calibration.safetensors"));
    let evaluation = text(&tiny.join("tokens-sampled-evaluation.safetensors"));
    let data = text(&data);
    let calibrated = ["--tokens", &calibration, "--samples", "2"];
    let on = |model: &str, command: &[&str], flags: &[&str]| {
        succeeds(&[command, &["--model", &text(&at(model))], flags].concat())
    };
    let json = |model: &str, command: &[&str], flags: &[&str]| {
        result(serde_json::from_str(&on(model, command, &[flags, &["--json"]].concat())).unwrap())
    };
    let of = |model: &str| {
        let output = |name: &str| text(&at(&format!("{model}-{name}")));
        let (pruned, thresholds, comparison) = (output("pruned"), output("thresholds"), output("comparison"));
        on(
            model,
            &["prune"],
            &[&calibrated[..], &["--output", &pruned, "--weight-sparsity", "0.7"]].concat(),
        );
        on(model, &["thresholds"], &[&calibrated[..], &["--output", &thresholds]].concat());
        let sparse = ["--thresholds", &thresholds];
        let generated = ["--prompt-tokens", "1,2,3", "--max-tokens", "8", "--ignore-end"];
        let compared =
            ["--methods", "dense,wanda", "--calibration", &calibration, "--evaluation", &evaluation];
        let windows = ["--samples", "2", "--evaluation-samples", "2"];
        let reports = [
            json(
                model,
                &["eval", "perplexity"],
                &[&sparse[..], &["--tokens", &evaluation, "--limit", "2"]].concat(),
            ),
            json(model, &["eval", "zero-shot"], &["--data", &data, "--tasks", "boolq,piqa", "--limit", "2"]),
            json(model, &["generate"], &[&sparse[..], &generated].concat()),
            json(model, &["compare"], &[&compared[..], &windows, &["--output", &comparison]].concat()),
            result(read_json(Path::new(&thresholds))),
        ];
        (reports, dense_tensors(&Checkpoint::open(Path::new(&pruned)).unwrap()))
    };
    let ((dense, pruned_dense), (compressed, pruned_compressed)) = (of("dense"), of("compressed"));
    for (dense, compressed) in dense.iter().zip(&compressed) {
        assert_eq!(dense, compressed);
        // There is something left to compare.
        assert!(dense.to_string().len() > 100, "{dense}");
    }
    assert!(pruned_dense == pruned_compressed, "other weights from a compressed source");
}

#[test]
fn nothing_is_overwritten_or_left_half_written() {
    let directory = tempfile::tempdir().unwrap();
    let source = package_fixture("dense");
    let damaged = directory.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    for (name, bytes) in content(&package_fixture("compressed")) {
        fs::write(damaged.join(name), bytes).unwrap();
    }
    let shard = damaged.join("model-00002-of-00002.safetensors");
    let name = "model.layers.1.mlp.up_proj.row_offsets";
    let mut bytes = fs::read(&shard).unwrap();
    let third = position(&bytes, name) + 16;
    bytes[third] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let output = directory.path().join("output");
    for (source, parts) in [
        (&damaged, vec!["model-00002-of-00002.safetensors", name, &format!("byte {third} "), "row 2"]),
        (&source, vec!["damaged", "exists already"]),
    ] {
        let target = if source == &damaged { &output } else { &damaged };
        let outcome = duogpt(&[
            "convert",
            "--model",
            source.to_str().unwrap(),
            "--output",
            target.to_str().unwrap(),
            "--format",
            "dense",
        ]);
        let message = String::from_utf8(outcome.stderr).unwrap();
        assert_eq!(outcome.status.code(), Some(2), "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
    assert!(!output.exists() && fs::read_dir(directory.path()).unwrap().count() == 1);
}

/// The first tokens of the vocabulary, in some order.
const TOKENS: [u32; 12] = [3, 17, 8, 0, 39, 21, 5, 30, 11, 2, 26, 14];

fn logits(model: &Path) -> ndarray::Array2<f64> {
    let checkpoint = Checkpoint::open(model).unwrap();
    let embedding = checkpoint.embedding::<f64>().unwrap();
    let forward = Forward::new(&checkpoint.config, TOKENS.len());
    let mut state = State::embed(&embedding, ndarray::ArrayView1::from(&TOKENS));
    for number in 0..checkpoint.config.num_hidden_layers {
        let layer = checkpoint.layer::<f64>(number).unwrap();
        forward.enter(&layer, &mut state);
        for group in Group::ALL {
            let outputs = apply(layer.group(group), state.input.view());
            forward.advance(&layer, group, outputs, &mut state);
        }
    }
    forward.logits(&checkpoint.head().unwrap(), &state.hidden)
}

/// The package's first versions named the parts `<module>.weight.<part>`, and compressed the embedding too.
#[test]
fn the_names_of_the_first_versions_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let dense = package_fixture("dense");
    let source = Checkpoint::open(&dense).unwrap();
    let mut entries = Vec::new();
    for shard in 0..source.shards().len() {
        for (name, info) in source.tensors_of(shard) {
            let bytes = source.tensor_data(&name).unwrap().bytes.to_vec();
            match (name.contains("_proj") || name.contains("embed_tokens"), &info.shape[..]) {
                (true, &[n, k]) => {
                    let stored = sparse_bitmask::stored_values(&bytes, 2);
                    let parts = sparse_bitmask::parts(&name, &info, stored);
                    for ((part, dtype, shape), bytes) in
                        parts.into_iter().zip(sparse_bitmask::compress(&bytes, (n, k), 2))
                    {
                        let (_, part) = part.rsplit_once('.').unwrap();
                        entries.push((format!("{name}.{part}"), dtype, shape, bytes));
                    }
                }
                _ => entries.push((name, info.dtype, info.shape, bytes)),
            }
        }
    }
    let headers = entries.iter().map(|(name, dtype, shape, _)| (name.as_str(), *dtype, shape.as_slice()));
    let path = directory.path().join("model.safetensors");
    let writer = TensorWriter::create(&path, headers, &HashMap::new()).unwrap();
    entries.iter().for_each(|(name, _, _, bytes)| writer.write(name, bytes).unwrap());
    let mut config = read_json(&dense.join("config.json"));
    config["compression_config"] = json!({"quant_method": "compressed-tensors",
        "sparsity_config": {"format": "sparse-bitmask", "global_sparsity": 0.47, "sparsity_structure": "0:0"}});
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(logits(directory.path()), logits(&dense));
    // Dense again, nothing speaks of another format.
    let back = directory.path().join("back");
    convert(directory.path(), &back, "dense");
    let config = read_json(&back.join("config.json"));
    assert!(
        config.get("compression_config").is_none() && config.get("quantization_config").is_none(),
        "{config}"
    );
    assert_eq!(logits(&back), logits(&dense));
}

/// An entry of sparsity alone may speak of a quantisation that there is none of.
#[test]
fn an_entry_without_a_quantisation_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let source = package_fixture("package");
    fs::copy(source.join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
    let mut config = read_json(&source.join("config.json"));
    let entry = config["quantization_config"].as_object_mut().unwrap();
    entry.extend([
        ("format".to_string(), json!("dense")),
        ("quantization_status".into(), json!("compressed")),
        ("ignore".into(), json!([])),
        ("config_groups".into(), json!({})),
        ("kv_cache_scheme".into(), Value::Null),
    ]);
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(logits(directory.path()), logits(&package_fixture("dense")));
}

/// An index may place its shards in folders; what is made of them keeps their places.
#[test]
fn shards_in_folders_stay_in_their_folders() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let (source, plain) = (place("source"), fixture("llama3"));
    fs::create_dir_all(source.join("a/b")).unwrap();
    let mut index = read_json(&plain.join(Checkpoint::INDEX));
    let [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for (file, to) in
        [("config.json", "config.json"), (first, "a/first.safetensors"), (second, "a/b/second.safetensors")]
    {
        fs::copy(plain.join(file), source.join(to)).unwrap();
    }
    for file in index["weight_map"].as_object_mut().unwrap().values_mut() {
        *file = if file == first { "a/first.safetensors" } else { "./a/b/second.safetensors" }.into();
    }
    fs::write(source.join(Checkpoint::INDEX), index.to_string()).unwrap();
    assert_eq!(logits(&source), logits(&plain));

    let text = |path: &Path| path.to_str().unwrap().to_string();
    let prune = |model: &Path, output: &str, more: &[&str]| {
        let (model, output) = (text(model), text(&place(output)));
        let arguments = ["prune", "--method", "magnitude", "--model", &model, "--output", &output];
        succeeds(&[&arguments, more].concat());
    };
    prune(&plain, "expected", &[]);
    prune(&source, "pruned", &[]);
    prune(&source, "compressed", &["--format", "sparse-bitmask"]);
    convert(&source, &place("converted"), "sparse-bitmask");
    convert(&place("converted"), &place("dense"), "dense");
    for (made, of) in
        [("pruned", "expected"), ("compressed", "expected"), ("dense", "source"), ("converted", "source")]
    {
        let (made, of) = (place(made), place(of));
        assert_eq!(logits(&made), logits(&of), "{made:?}");
        let map = read_json(&made.join(Checkpoint::INDEX))["weight_map"].clone();
        let files: BTreeSet<&str> =
            map.as_object().unwrap().values().map(|file| file.as_str().unwrap()).collect();
        assert_eq!(files, BTreeSet::from(["a/first.safetensors", "a/b/second.safetensors"]), "{made:?}");
        assert!(files.iter().all(|file| made.join(file).is_file()), "{made:?}");
    }
}

/// A checkpoint that may only be read gives copies that may be written.
#[test]
fn copies_of_read_only_files_are_writable() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("source"), directory.path().join("output"));
    fs::create_dir(&source).unwrap();
    for entry in fs::read_dir(fixture("tiny-llama")).unwrap().map(Result::unwrap) {
        let to = source.join(entry.file_name());
        fs::copy(entry.path(), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o444)).unwrap();
    }
    let writable = |output: &Path| {
        for entry in fs::read_dir(output).unwrap().map(Result::unwrap) {
            let mode = entry.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o200, 0o200, "{:?}: {mode:o}", entry.path());
        }
    };
    convert(&source, &output, "sparse-bitmask");
    writable(&output);
    let pruned = directory.path().join("pruned");
    let (model, target) = (source.to_str().unwrap(), pruned.to_str().unwrap());
    succeeds(&["prune", "--method", "magnitude", "--model", model, "--output", target, "--dtype", "f32"]);
    writable(&pruned);
}
