//! Every variant of `fixtures/configs` (a field of `config.json` missing, null or another; other names of tensors; other
//! indexes) gives what transformers gives, or is refused by name. Another number without a word is what must not be.
//!
//! Where transformers 5 has a number, it is ours; where only 4.49 has one, that is ours, or a refusal. The variants that
//! transformers 5 reads and this suite refuses are those of [`REFUSED`].

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::fs;
use std::path::Path;

use duogpt::backend::Cpu;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::perplexity;
use duogpt::model::Checkpoint;
use duogpt::model::tokenizer::Tokenizer;
use duogpt::progress::Silent;
use duogpt::tensors::{FloatType, TensorFile};
use half::f16;
use ndarray::{Array2, Ix2};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

mod common;
use common::{fixture, read_json};

/// The version that is followed, and the one before it.
const FOLLOWED: &str = "5.23.0";
const OLDER: &str = "4.49.0";

/// What a refusal may name although transformers 5 has a number.
const REFUSED: [(&str, &str); 17] = [
    ("num_hidden_layers", "layers in the file would be left out"),
    ("num_attention_heads", "heads of odd width"),
    ("head_dim", "odd"),
    ("hidden_act", "only SiLU and ReLU are supported"),
    ("activation_function", "only SiLU and ReLU are supported"),
    ("rms_norm_eps", "negative"),
    ("rope_scaling", "types other than llama3, and values that make no sense"),
    ("rope_parameters", "the same"),
    ("partial_rotary_factor", "4.49 goes by it"),
    ("sliding_window", "not positive"),
    ("max_window_layers", "negative"),
    ("layer_norm_elementwise_affine", "norms without weights are not supported"),
    ("model_type", "an architecture that is not supported"),
    ("down_proj.weight", "stored as integers, or in 8 bits"),
    ("weights/", "an index that leads out of the directory"),
    ("model.", "twice before the names of tensors"),
    ("model.decoder.", "the same"),
];

/// Fields that change no number. (Transformers 5 is strict about their types.)
const IDLE: [&str; 3] = ["attention_dropout", "dropout", "_attn_implementation"];

/// Variants that say all that is needed, although neither version reads them.
const READ_ALL_THE_SAME: [&str; 2] = ["llama3: index without metadata", "qwen2-window: return_dict false"];

/// A tensor of a variant in the making: type, shape, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Weight files by name.
#[derive(Default)]
struct Weights(BTreeMap<String, BTreeMap<String, Tensor>>);

impl Weights {
    fn read(directory: &Path) -> Self {
        let mut weights = Weights::default();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            if name.starts_with("model") && name.ends_with(".safetensors") {
                let bytes = fs::read(&path).unwrap();
                let file = SafeTensors::deserialize(&bytes).unwrap();
                let tensor = |(name, view): (String, TensorView)| {
                    (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
                };
                weights.0.insert(name, file.tensors().into_iter().map(tensor).collect());
            }
        }
        weights
    }

    fn take(&mut self, name: &str) -> Tensor {
        self.0.values_mut().find_map(|file| file.remove(name)).expect("a tensor that is there")
    }

    fn put(&mut self, name: &str, tensor: Tensor) {
        self.0.values_mut().for_each(|file| drop(file.remove(name)));
        self.0.values_mut().next().unwrap().insert(name.into(), tensor);
    }

    /// The edits that `make.py` describes.
    fn edit(&mut self, edit: &[Value]) {
        let text = |i: usize| edit[i].as_str().unwrap();
        let name = text(1);
        match text(0) {
            "remove" => drop(self.take(name)),
            "rename" => {
                for file in self.0.values_mut() {
                    let renamed = |(tensor, value): (String, Tensor)| match tensor.strip_prefix(name) {
                        Some(rest) => (format!("{}{rest}", text(2)), value),
                        None => (tensor, value),
                    };
                    *file = std::mem::take(file).into_iter().map(renamed).collect();
                }
            }
            "copy" => {
                let tensor = self.take(name);
                self.put(name, tensor.clone());
                self.put(text(2), tensor);
            }
            "negate" => {
                let tensor = self.take(name);
                self.put(name, map(&tensor, tensor.0, |x| -x));
            }
            "pattern" => {
                let shape: Vec<usize> =
                    edit[2].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                let values =
                    (0..shape.iter().product()).map(|i: usize| (37 * i % 19) as f32 / 16.0 - 9.0 / 16.0);
                let bytes = values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
                self.put(name, (Dtype::F16, shape, bytes));
            }
            "cast" => {
                let tensor = self.take(name);
                let cast = match text(2) {
                    "F32" => map(&tensor, Dtype::F32, |x| x),
                    "F64" => map(&tensor, Dtype::F64, |x| x),
                    "BF16" => map(&tensor, Dtype::BF16, |x| x),
                    // Refused for their type.
                    "I8" => (Dtype::I8, tensor.1.clone(), vec![1; tensor.1.iter().product()]),
                    _ => (Dtype::F8_E4M3, tensor.1.clone(), vec![1; tensor.1.iter().product()]),
                };
                self.put(name, cast);
            }
            "rows" => {
                let (dtype, mut shape, mut bytes) = self.take(name);
                let row = bytes.len() / shape[0];
                shape[0] = edit[2].as_u64().unwrap() as usize;
                bytes.truncate(shape[0] * row);
                self.put(name, (dtype, shape, bytes));
            }
            "transpose" => {
                let (dtype, shape, bytes) = self.take(name);
                let (rows, columns, size) = (shape[0], shape[1], bytes.len() / shape[0] / shape[1]);
                let places = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
                let turned = places.flat_map(|place| bytes[place * size..][..size].to_vec()).collect();
                self.put(name, (dtype, vec![columns, rows], turned));
            }
            other => panic!("no such edit: {other}"),
        }
    }

    fn write(&self, directory: &Path) {
        for (file, tensors) in &self.0 {
            let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
                (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
            safetensors::serialize_to_file(views, None, &directory.join(file)).unwrap();
        }
        if self.0.len() > 1 {
            let of = |(file, tensors): (&String, &BTreeMap<String, Tensor>)| {
                tensors.keys().map(|name| (name.clone(), json!(file))).collect::<Vec<_>>()
            };
            let weight_map: Map<String, Value> = self.0.iter().flat_map(of).collect();
            write_json(directory, Checkpoint::INDEX, &json!({"metadata": {}, "weight_map": weight_map}));
        }
    }
}

/// Values through a function, in another type.
fn map((dtype, shape, bytes): &Tensor, to: Dtype, f: impl Fn(f64) -> f64) -> Tensor {
    let values: Vec<f64> = match dtype {
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        other => panic!("no base has {other:?}"),
    };
    let float = FloatType::of(to).unwrap();
    let values = values.into_iter().map(|x| float.round(f(x))).collect::<Vec<f64>>();
    let values = Array2::from_shape_vec((1, values.len()), values).unwrap();
    (to, shape.clone(), float.encode(values.view()))
}

fn write_json(directory: &Path, name: &str, value: &Value) {
    fs::write(directory.join(name), value.to_string()).unwrap();
}

/// Edits of files that are written.
fn edit_files(directory: &Path, edit: &[Value]) {
    let text = |i: usize| edit[i].as_str().unwrap();
    let edit_index = |change: &dyn Fn(&mut Value)| {
        let mut index = read_json(&directory.join(Checkpoint::INDEX));
        change(&mut index);
        write_json(directory, Checkpoint::INDEX, &index);
    };
    match text(0) {
        "index" => edit_index(&|index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            for (name, file) in edit[1].as_object().unwrap() {
                map.remove(name);
                if !file.is_null() {
                    map.insert(name.clone(), file.clone());
                }
            }
        }),
        "index_prefix" => edit_index(&|index| {
            for file in index["weight_map"].as_object_mut().unwrap().values_mut() {
                *file = format!("{}{}", text(1), file.as_str().unwrap()).into();
            }
        }),
        "index_metadata" => edit_index(&|index| index["metadata"] = edit[1].clone()),
        "single" => {
            let sign = edit[1].as_f64().unwrap();
            let all = Weights::read(directory).0.into_values().flatten();
            let all = all.map(|(name, tensor)| (name, map(&tensor, tensor.0, |x| sign * x))).collect();
            Weights(BTreeMap::from([("model.safetensors".into(), all)])).write(directory);
        }
        "move" => {
            let to = directory.join(text(2));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(directory.join(text(1)), to).unwrap();
        }
        "write" => fs::write(directory.join(text(1)), text(2)).unwrap(),
        "remove" => fs::remove_file(directory.join(text(1))).unwrap(),
        other => panic!("no such edit: {other}"),
    }
}

/// Entries of a field that is a list.
fn list<'a>(case: &'a Value, key: &str) -> &'a [Value] {
    case[key].as_array().map_or(&[], Vec::as_slice)
}

fn build(case: &Value, source: &Path, directory: &Path) {
    let mut config = read_json(&source.join("config.json"));
    let fields = config.as_object_mut().unwrap();
    for key in list(case, "remove") {
        fields.remove(key.as_str().unwrap()).expect("a field that is there");
    }
    fields.extend(
        case["set"].as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())),
    );
    write_json(directory, "config.json", &config);
    let mut weights = Weights::read(source);
    list(case, "tensors").iter().for_each(|edit| weights.edit(edit.as_array().unwrap()));
    weights.write(directory);
    list(case, "files").iter().for_each(|edit| edit_files(directory, edit.as_array().unwrap()));
}

/// The mean negative log-likelihood, with the reader's warnings.
fn likelihood(directory: &Path, tokens: &Path) -> Result<(f64, Vec<String>), String> {
    let text = |error: &dyn Display| error.to_string();
    let checkpoint = Checkpoint::open(directory).map_err(|error| text(&error))?;
    let tokens = TensorFile::open(tokens).unwrap().integers::<Ix2>("tokens").unwrap();
    let windows = Windows { tokens: tokens.mapv(|token| token as u32), source: String::new() };
    let found = perplexity::<f64, _>(&checkpoint, &windows, Activations::default(), &Cpu, &Silent);
    Ok((found.map_err(|error| text(&error))?.mean_nll, checkpoint.warnings))
}

/// What a refusal may name: the fields, tensors and files that are edited, and the tensor that transformers makes up.
fn names(case: &Value) -> Vec<String> {
    let fields = case["set"].as_object().into_iter().flatten().map(|(key, _)| key.clone());
    let edits = ["tensors", "files"].into_iter().flat_map(|kind| list(case, kind));
    let strings =
        edits.flat_map(|edit| edit.as_array().unwrap()[1..].iter()).flat_map(|argument| match argument {
            Value::String(text) => vec![text.clone()],
            Value::Object(entries) => entries.keys().cloned().collect(),
            _ => Vec::new(),
        });
    let removed = list(case, "remove").iter().map(|key| key.as_str().unwrap().to_string());
    let made_up =
        [FOLLOWED, OLDER].into_iter().filter_map(|version| case["outcome"][version]["made_up"].as_str());
    let index = list(case, "files").iter().filter(|edit| edit[0].as_str().unwrap().starts_with("index"));
    let index = index.map(|_| Checkpoint::INDEX.to_string());
    fields
        .chain(strings)
        .chain(removed)
        .chain(made_up.map(Into::into))
        .chain(index)
        .filter(|name| !name.is_empty())
        .collect()
}

/// What is wrong with what we make of a variant.
fn fault(
    case: &Value,
    bases: &HashMap<String, f64>,
    found: &Result<(f64, Vec<String>), String>,
) -> Option<String> {
    let name = case["name"].as_str().unwrap();
    let of = |version: &str| case["outcome"][version]["nll"].as_f64();
    let (followed, older) = (of(FOLLOWED), of(OLDER));
    let mut fields = case["set"].as_object().into_iter().flatten();
    let as_it_is = READ_ALL_THE_SAME.contains(&name)
        || case["set"].is_object() && fields.all(|(field, _)| IDLE.contains(&field.as_str()));
    let as_it_is = as_it_is.then(|| bases[case["base"].as_str().unwrap()]);
    match found {
        Ok((nll, warnings)) => match followed.or(as_it_is).or(older) {
            Some(expected) if (nll - expected).abs() > 1e-6 => {
                Some(format!("{nll:.6}, expected {expected:.6}"))
            }
            Some(_) => {
                let wanted = case["warns"].as_str()?;
                let said = warnings.iter().any(|warning| warning.contains(wanted));
                (!said).then(|| format!("warnings are {warnings:?}, expected one of {wanted:?}"))
            }
            None => Some(format!("{nll:.6}, where transformers fails ({})", case["outcome"][FOLLOWED])),
        },
        Err(message) => {
            let names = names(case);
            if !names.iter().any(|name| message.contains(name)) {
                return Some(format!("refused without naming one of {names:?}: {message}"));
            }
            let listed = REFUSED
                .iter()
                .any(|(field, _)| message.contains(field) && names.iter().any(|name| name.ends_with(field)));
            (followed.is_some() && !listed)
                .then(|| format!("refused, though transformers 5 has {:.6}: {message}", followed.unwrap()))
        }
    }
}

#[test]
fn every_variant_is_read_as_transformers_reads_it_or_refused_by_name() {
    let all = read_json(&fixture("configs/cases.json"));
    let cases = all["cases"].as_array().unwrap();
    let as_it_is = cases.iter().filter(|case| case["name"].as_str().unwrap().ends_with(": as it is"));
    let bases: HashMap<String, f64> = as_it_is
        .map(|case| {
            (case["base"].as_str().unwrap().into(), case["outcome"][FOLLOWED]["nll"].as_f64().unwrap())
        })
        .collect();
    let judge = |case: &Value| {
        let base = &all["bases"][case["base"].as_str().unwrap()];
        let at = |i: usize| fixture(base[i].as_str().unwrap());
        let directory = tempfile::tempdir().unwrap();
        build(case, &at(0), directory.path());
        let found = likelihood(directory.path(), &at(1));
        let fault = fault(case, &bases, &found);
        (fault.map(|fault| format!("{}: {fault}", case["name"].as_str().unwrap())), found.is_ok())
    };
    let judged: Vec<(Option<String>, bool)> = cases.par_iter().map(judge).collect();
    let faults: Vec<&String> = judged.iter().filter_map(|(fault, _)| fault.as_ref()).collect();
    assert!(
        faults.is_empty(),
        "{} of {} variants:\n{}",
        faults.len(),
        cases.len(),
        faults.iter().map(|fault| format!("{fault}\n")).collect::<String>()
    );
    // A reader that refuses more than it did is no better.
    let read = judged.iter().filter(|(_, read)| *read).count();
    assert!(4 * read > 2 * cases.len(), "only {read} of {} variants are read", cases.len());
}

/// The tokens of the texts, with what the tokenizer's reader says.
fn tokens(case: &Value, texts: &[Value]) -> Result<(Value, Vec<String>), String> {
    let directory = tempfile::tempdir().unwrap();
    let source = fixture("tiny-llama");
    for (file, edits) in [("tokenizer.json", "set_tokenizer"), ("tokenizer_config.json", "set")] {
        let mut json = read_json(&source.join(file));
        let fields = case[edits].as_object().into_iter().flatten();
        json.as_object_mut().unwrap().extend(fields.map(|(key, value)| (key.clone(), value.clone())));
        write_json(directory.path(), file, &json);
    }
    for (file, content) in case["write"].as_object().into_iter().flatten() {
        write_json(directory.path(), file, content);
    }
    let tokenizer = Tokenizer::read(directory.path()).map_err(|error| error.to_string())?;
    let of = |text: &Value| tokenizer.encode(text.as_str().unwrap());
    let tokens = texts.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    Ok((json!(tokens), tokenizer.warnings))
}

/// Where the flags for the tokens around a text ask for others than tokenizer.json gives, 4.49 may go by them: that is said.
#[test]
fn every_variant_of_a_tokenizer_gives_the_tokens_of_transformers() {
    let all = read_json(&fixture("configs/tokenizers.json"));
    let texts = all["texts"].as_array().unwrap();
    let mut faults = Vec::new();
    for case in all["cases"].as_array().unwrap() {
        let (name, outcome) = (case["name"].as_str().unwrap(), &case["outcome"]);
        let misplaced = ["one token more, at the end", "one token more, in place of another"].contains(&name);
        match tokens(case, texts) {
            Err(message) if misplaced && message.contains("`added_tokens_decoder.") => {}
            Ok((found, warnings)) if found == outcome[FOLLOWED] && !misplaced => {
                let flags = ["add_bos_token", "add_eos_token"]
                    .into_iter()
                    .filter(|flag| case["set"][*flag].is_boolean());
                let flags: Vec<&str> = flags.collect();
                let said = warnings.iter().any(|warning| flags.iter().any(|flag| warning.contains(flag)));
                if !flags.is_empty() && outcome[OLDER] != outcome[FOLLOWED] && !said {
                    faults.push(format!("{name}: nothing is said of {flags:?}"));
                }
            }
            other => faults.push(format!("{name}: {other:?}, expected {}", outcome[FOLLOWED])),
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
