//! Malformed checkpoints: each is a small valid one with one thing wrong. It is refused with the file, the tensor or
//! field and what was expected named, and before memory is allocated for what it claims.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use common::{fixture, position};
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::convert::convert;
use duogpt::calibrate::windows::{Cut, Windows};
use duogpt::model::sparse_bitmask::StorageFormat;
use duogpt::model::tokenizer::Tokenizer;
use duogpt::model::{Checkpoint, ModelConfig};
use duogpt::progress::Silent;
use duogpt::reference::{Method, PruneConfig};
use duogpt::tensors::{Dtype, TensorFile, TensorWriter};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// Remembers the largest single allocation of the thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes every call on; a `Cell` without a destructor neither allocates nor unwinds.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The valid checkpoints are smaller than 8 KiB, and so is what may be allocated for a malformed one.
const ENOUGH: usize = 64 << 10;

const INDEX: &str = Checkpoint::INDEX;
const SINGLE: &str = "model.safetensors";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const NORM: &str = "model.norm.weight";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";

/// The files of a model directory.
#[derive(Clone)]
struct Files(BTreeMap<&'static str, Vec<u8>>);

impl Files {
    /// One layer, hidden 8, intermediate 12, two query heads and one key-value head, vocabulary 6, f32.
    fn shapes() -> Vec<(&'static str, Vec<usize>)> {
        vec![
            ("model.embed_tokens.weight", vec![6, 8]),
            ("model.layers.0.input_layernorm.weight", vec![8]),
            (Q, vec![8, 8]),
            ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
            ("model.layers.0.self_attn.v_proj.weight", vec![4, 8]),
            ("model.layers.0.self_attn.o_proj.weight", vec![8, 8]),
            ("model.layers.0.post_attention_layernorm.weight", vec![8]),
            ("model.layers.0.mlp.gate_proj.weight", vec![12, 8]),
            (UP, vec![12, 8]),
            ("model.layers.0.mlp.down_proj.weight", vec![8, 12]),
            (NORM, vec![8]),
        ]
    }

    fn config() -> Vec<u8> {
        json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 6, "max_position_embeddings": 16,
            "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
        })
        .to_string()
        .into_bytes()
    }

    fn one_file() -> Self {
        let weights = safetensors(&Self::shapes());
        Files([("config.json", Self::config()), (SINGLE, weights)].into())
    }

    fn two_shards() -> Self {
        let (mlp, rest): (Vec<_>, Vec<_>) =
            Self::shapes().into_iter().partition(|(name, _)| name.contains("mlp"));
        let place = |shape: &(&str, Vec<usize>)| {
            (shape.0.to_string(), Value::from(if shape.0.contains("mlp") { SECOND } else { FIRST }))
        };
        let map: serde_json::Map<_, _> = Self::shapes().iter().map(place).collect();
        let index = json!({"metadata": {}, "weight_map": map}).to_string().into_bytes();
        Files(
            [
                ("config.json", Self::config()),
                (INDEX, index),
                (FIRST, safetensors(&rest)),
                (SECOND, safetensors(&mlp)),
            ]
            .into(),
        )
    }

    /// A random model of `fixtures/architectures`.
    fn of_architecture(model: &str) -> Self {
        let directory = fixture("architectures").join(model);
        Files(["config.json", SINGLE].map(|file| (file, fs::read(directory.join(file)).unwrap())).into())
    }

    fn json(&mut self, file: &'static str, edit: impl FnOnce(&mut Value)) {
        let content = self.0.get_mut(file).unwrap();
        let mut json = serde_json::from_slice(content).unwrap();
        edit(&mut json);
        *content = json.to_string().into_bytes();
    }

    /// Rewrites the text of a file.
    fn text(&mut self, file: &'static str, edit: impl FnOnce(String) -> String) {
        let text = String::from_utf8(self.0.remove(file).unwrap()).unwrap();
        self.0.insert(file, edit(text).into_bytes());
    }

    /// Rewrites the header of a safetensors file, and its length with it.
    fn header_text(&mut self, file: &'static str, edit: impl FnOnce(String) -> String) {
        let content = self.0.get_mut(file).unwrap();
        let end = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
        let header = edit(String::from_utf8(content[8..end].to_vec()).unwrap());
        let mut edited = (header.len() as u64).to_le_bytes().to_vec();
        edited.extend(header.bytes());
        edited.extend(&content[end..]);
        *content = edited;
    }

    fn header(&mut self, file: &'static str, edit: impl FnOnce(&mut Value)) {
        self.header_text(file, |text| {
            let mut json = serde_json::from_str(&text).unwrap();
            edit(&mut json);
            json.to_string()
        });
    }

    fn write(&self, directory: &Path) {
        for (name, content) in &self.0 {
            fs::write(directory.join(name), content).unwrap();
        }
    }
}

/// A file with these tensors, filled with 0.5.
fn safetensors(shapes: &[(&str, Vec<usize>)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let headers = shapes.iter().map(|(name, shape)| (*name, Dtype::F32, shape.as_slice()));
    let writer = TensorWriter::create(&path, headers, &HashMap::new()).unwrap();
    for (name, shape) in shapes {
        writer.write(name, &0.5f32.to_le_bytes().repeat(shape.iter().product())).unwrap();
    }
    fs::read(path).unwrap()
}

/// Writes the files and opens them: refused, with all of `expected` in the message and no large allocation.
fn refused(files: &Files, expected: &[&str]) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    files.write(directory.path());
    LARGEST.set(0);
    let outcome = Checkpoint::open(directory.path());
    let largest = LARGEST.get();
    let Err(error) = outcome else { return Err("it was accepted".into()) };
    holds(&error.to_string(), expected)?;
    if largest > ENOUGH {
        return Err(format!("{largest} bytes were allocated for it").into());
    }
    Ok(())
}

fn holds(message: &str, expected: &[&str]) -> Result<(), Failed> {
    match expected.iter().find(|part| !message.contains(**part)) {
        Some(part) => Err(format!("`{part}` is not in: {message}").into()),
        None => Ok(()),
    }
}

fn main() {
    let mut trials = vec![Trial::test("the_valid_ones_are_accepted", || {
        for files in [Files::one_file(), Files::two_shards()] {
            let directory = tempfile::tempdir()?;
            files.write(directory.path());
            Checkpoint::open(directory.path())?.layer::<f32>(0)?;
        }
        Ok(())
    })];
    headers(&mut trials);
    indices(&mut trials);
    configs(&mut trials);
    compressed(&mut trials);
    architectures(&mut trials);
    tokenizers(&mut trials);
    not_finite(&mut trials);
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn headers(trials: &mut Vec<Trial>) {
    let mut case = |name: &str, edit: fn(&mut Files), expected: &'static [&'static str]| {
        trials.push(Trial::test(format!("header::{name}"), move || {
            let mut files = Files::one_file();
            edit(&mut files);
            let mut all = vec![SINGLE];
            all.extend(expected);
            refused(&files, &all)
        }));
    };
    fn bytes(files: &mut Files) -> &mut Vec<u8> {
        files.0.get_mut(SINGLE).unwrap()
    }
    fn length(files: &mut Files, length: u64) {
        bytes(files)[..8].copy_from_slice(&length.to_le_bytes());
    }
    case("empty_file", |f| bytes(f).clear(), &["truncated", "0 bytes", "at least 8"]);
    case("seven_bytes", |f| bytes(f).truncate(7), &["truncated", "7 bytes", "at least 8"]);
    case("length_zero", |f| length(f, 0), &["header", "not JSON"]);
    case("length_beyond_the_file", |f| length(f, 1 << 40), &["truncated", "1099511627776 bytes"]);
    case("length_u64_max", |f| length(f, u64::MAX), &["truncated", "18446744073709551615 bytes"]);
    case("length_that_wraps", |f| length(f, u64::MAX - 7), &["truncated", "18446744073709551608 bytes"]);
    case("length_too_short", |f| length(f, 40), &["header", "not JSON"]);
    case(
        "length_too_long",
        |f| {
            let content = bytes(f);
            let longer = u64::from_le_bytes(content[..8].try_into().unwrap()) + 8;
            content[..8].copy_from_slice(&longer.to_le_bytes());
        },
        &["header", "malformed"],
    );
    case("not_utf8", |f| bytes(f)[9] = 0xff, &["header", "not UTF-8"]);
    case("not_json", |f| f.header_text(SINGLE, |text| text.replace(':', ";")), &["header", "not JSON"]);
    case("not_an_object", |f| f.header_text(SINGLE, |_| "[]".into()), &["header", "not a JSON object"]);
    case("deeply_nested", |f| f.header_text(SINGLE, |_| "[".repeat(5000)), &["header", "not JSON"]);
    case(
        "metadata_not_text",
        |f| f.header(SINGLE, |h| h["__metadata__"] = json!({"a": 1})),
        &["__metadata__"],
    );
    case("metadata_a_list", |f| f.header(SINGLE, |h| h["__metadata__"] = json!([])), &["__metadata__"]);
    case(
        "name_twice",
        |f| {
            f.header_text(SINGLE, |text| {
                let entry = &text[text.find(&format!("\"{NORM}\"")).unwrap()..text.trim_end().len() - 1];
                text.trim_end().strip_suffix('}').unwrap().to_string() + "," + entry + "}"
            });
        },
        &[NORM, "twice"],
    );
    case(
        "entry_key_twice",
        |f| f.header_text(SINGLE, |text| text.replacen("\"dtype\":", "\"dtype\":\"F16\",\"dtype\":", 1)),
        &["`dtype` is there twice"],
    );
    case("entry_not_an_object", |f| f.header(SINGLE, |h| h[NORM] = json!(3)), &[NORM]);
    case(
        "entry_without_dtype",
        |f| f.header(SINGLE, |h| drop(h[NORM].as_object_mut().unwrap().remove("dtype"))),
        &[NORM, "missing field `dtype`"],
    );
    case(
        "entry_without_shape",
        |f| f.header(SINGLE, |h| drop(h[NORM].as_object_mut().unwrap().remove("shape"))),
        &[NORM, "missing field `shape`"],
    );
    case(
        "entry_without_offsets",
        |f| f.header(SINGLE, |h| drop(h[NORM].as_object_mut().unwrap().remove("data_offsets"))),
        &[NORM, "missing field `data_offsets`"],
    );
    case(
        "dtype_unknown",
        |f| f.header(SINGLE, |h| h[NORM]["dtype"] = "F31".into()),
        &[NORM, "F31", "expected"],
    );
    case(
        "dtype_of_another_size",
        |f| f.header(SINGLE, |h| h[NORM]["dtype"] = "F64".into()),
        &[NORM, "take 64 bytes"],
    );
    case(
        "dtype_not_floating_point",
        |f| f.header(SINGLE, |h| h[NORM]["dtype"] = "I32".into()),
        &[NORM, "I32", "expected F64, F32, F16 or BF16"],
    );
    case(
        "dtype_below_a_byte",
        |f| {
            f.header(SINGLE, |h| {
                h[NORM]["dtype"] = "F4".into();
                h[NORM]["shape"] = json!([63]);
            });
        },
        &[NORM, "whole bytes"],
    );
    case("shape_negative", |f| f.header(SINGLE, |h| h[NORM]["shape"] = json!([-8])), &[NORM, "-8"]);
    case("shape_fraction", |f| f.header(SINGLE, |h| h[NORM]["shape"] = json!([8.5])), &[NORM, "8.5"]);
    case(
        "shape_text",
        |f| f.header(SINGLE, |h| h[NORM]["shape"] = "8".into()),
        &[NORM, "expected a sequence"],
    );
    case(
        "shape_of_more_bytes",
        |f| f.header(SINGLE, |h| h[NORM]["shape"] = json!([9])),
        &[NORM, "[9]", "take 36 bytes"],
    );
    case(
        "shape_overflows",
        |f| f.header(SINGLE, |h| h[NORM]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        &[NORM, "no such number of whole bytes"],
    );
    case(
        "shape_overflows_beside_a_zero",
        |f| {
            f.header(SINGLE, |h| {
                h["empty"] = json!({"dtype": "F32", "shape": [0, 1u64 << 62], "data_offsets": [0, 0]});
            });
        },
        &["`empty`", "no such number of whole bytes"],
    );
    case(
        "shape_other_than_the_config",
        |f| f.header(SINGLE, |h| h[UP]["shape"] = json!([8, 12])),
        &[UP, "[8, 12]", "expected [12, 8] (from config.json: `intermediate_size`"],
    );
    case(
        "shape_of_other_rank",
        |f| f.header(SINGLE, |h| h[NORM]["shape"] = json!([2, 4])),
        &[NORM, "[2, 4]", "expected [8] (from config.json: `hidden_size`"],
    );
    case(
        "offsets_of_three",
        |f| f.header(SINGLE, |h| h[NORM]["data_offsets"] = json!([0, 1, 2])),
        &[NORM, "invalid length 3"],
    );
    case("offset_negative", |f| f.header(SINGLE, |h| h[NORM]["data_offsets"][0] = json!(-4)), &[NORM, "-4"]);
    case(
        "offsets_reversed",
        |f| {
            f.header(SINGLE, |h| {
                let end = h[NORM]["data_offsets"][1].clone();
                h[NORM]["data_offsets"] = json!([end, 0]);
            });
        },
        &[NORM, "ends before it begins"],
    );
    case(
        "offset_beyond_the_file",
        |f| {
            f.header(SINGLE, |h| {
                let begin = h[NORM]["data_offsets"][0].as_u64().unwrap();
                h[NORM] = json!({
                    "dtype": "F32", "shape": [1u64 << 40], "data_offsets": [begin, begin + (4u64 << 40)]
                });
            });
        },
        &[NORM, "truncated", "there are only"],
    );
    case(
        "offset_that_wraps",
        // Eight such sizes add up to 2^64.
        |f| {
            f.header(SINGLE, |h| {
                let size = 1u64 << 61;
                for i in 0..8 {
                    let end = (i * size).saturating_add(size);
                    h[format!("big{i}")] =
                        json!({"dtype": "U8", "shape": [size], "data_offsets": [i * size, end]});
                }
            });
        },
        &["`big", "there are only"],
    );
    case(
        "sizes_that_add_up_to_2_to_the_64",
        // Without a gap up to the last byte that a u64 can number.
        |f| {
            f.header(SINGLE, |h| {
                *h = json!({});
                for i in 0..8 {
                    let (begin, size) = (i << 61, (1u64 << 61) - u64::from(i == 7));
                    h[format!("big{i}")] =
                        json!({"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]});
                }
            });
        },
        &["`big0`", "truncated", "there are only"],
    );
    case(
        "tensors_overlap",
        |f| {
            f.header(SINGLE, |h| {
                let (begin, end) = (&h[NORM]["data_offsets"][0], &h[NORM]["data_offsets"][1]);
                let earlier = json!([begin.as_u64().unwrap() - 4, end.as_u64().unwrap() - 4]);
                h[NORM]["data_offsets"] = earlier;
            });
        },
        &[NORM, "overlaps", "expected to begin at"],
    );
    case(
        "tensors_in_one_place",
        |f| {
            f.header(SINGLE, |h| {
                h[Q]["data_offsets"] = h["model.layers.0.self_attn.o_proj.weight"]["data_offsets"].clone();
            });
        },
        &["leaves a gap", "expected to begin at"],
    );
    case(
        "a_gap",
        |f| {
            f.header(SINGLE, |h| drop(h.as_object_mut().unwrap().remove(UP)));
        },
        &["model.layers.0.mlp.down_proj.weight", "leaves a gap"],
    );
    case("bytes_behind_the_last", |f| bytes(f).extend([0; 12]), &["12 bytes after the last tensor"]);
    case(
        "one_byte_missing",
        |f| {
            bytes(f).pop();
        },
        &[NORM, "truncated", "there are only"],
    );
    case(
        "a_tensor_missing",
        |f| {
            let shapes: Vec<_> = Files::shapes().into_iter().filter(|(name, _)| *name != UP).collect();
            *bytes(f) = safetensors(&shapes);
        },
        &[UP, "missing"],
    );
    case("no_tensors", |f| *bytes(f) = safetensors(&[]), &["model.embed_tokens.weight", "missing"]);
    trials.push(Trial::test("header::longer_than_the_format_allows", || {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("long.safetensors");
        let length: u64 = 100_000_001;
        fs::write(&path, length.to_le_bytes())?;
        fs::File::options().write(true).open(&path)?.set_len(8 + length)?; // a hole: no blocks
        LARGEST.set(0);
        let Err(error) = TensorFile::open(&path) else { return Err("it was accepted".into()) };
        holds(
            &error.to_string(),
            &["long.safetensors", "header", "100000001 bytes long", "at most 100000000"],
        )?;
        if LARGEST.get() > ENOUGH {
            return Err(format!("{} bytes were allocated for it", LARGEST.get()).into());
        }
        Ok(())
    }));
}

fn indices(trials: &mut Vec<Trial>) {
    let mut case = |name: &str, edit: fn(&mut Files), expected: &'static [&'static str]| {
        trials.push(Trial::test(format!("index::{name}"), move || {
            let mut files = Files::two_shards();
            edit(&mut files);
            refused(&files, expected)
        }));
    };
    case("not_json", |f| f.text(INDEX, |text| text[..40].into()), &[INDEX, "not JSON"]);
    case("not_an_object", |f| f.text(INDEX, |_| "[]".into()), &[INDEX, "no `weight_map`"]);
    case("no_weight_map", |f| f.json(INDEX, |j| j["weight_map"] = Value::Null), &[INDEX, "no `weight_map`"]);
    case(
        "weight_map_a_list",
        |f| f.json(INDEX, |j| j["weight_map"] = json!([])),
        &[INDEX, "no `weight_map`"],
    );
    case(
        "weight_map_empty",
        |f| f.json(INDEX, |j| j["weight_map"] = json!({})),
        &[INDEX, "model.embed_tokens", "missing"],
    );
    case("no_file_name", |f| f.json(INDEX, |j| j["weight_map"][Q] = json!(1)), &[INDEX, Q, "names no file"]);
    case(
        "a_tensor_in_two_shards",
        |f| {
            f.text(INDEX, |text| {
                text.replacen(&format!("\"{Q}\":"), &format!("\"{Q}\":\"{SECOND}\",\"{Q}\":"), 1)
            })
        },
        &[INDEX, Q, "twice"],
    );
    case("a_shard_that_is_missing", |f| drop(f.0.remove(SECOND)), &[SECOND, "missing", INDEX]);
    case(
        "shards_with_a_common_tensor",
        |f| {
            let mut shapes = Files::shapes();
            shapes.retain(|(name, _)| name.contains("mlp") || *name == NORM);
            f.0.insert(SECOND, safetensors(&shapes));
        },
        &[SECOND, NORM, "also in", FIRST],
    );
    case(
        "a_shard_with_a_broken_header",
        |f| f.header(SECOND, |h| h[UP]["shape"] = json!([1])),
        &[SECOND, UP, "take 4 bytes"],
    );
    for (name, place) in [
        ("parent_directory", "../model.safetensors"),
        ("absolute", "/etc/hostname"),
        ("parent_of_a_folder", "shards/../../model.safetensors"),
        ("dots", ".."),
        ("nothing", ""),
    ] {
        trials.push(Trial::test(format!("index::names_a_file_elsewhere_{name}"), move || {
            let mut files = Files::two_shards();
            files.json(INDEX, |j| j["weight_map"][Q] = place.into());
            refused(&files, &[INDEX, Q, &format!("`{place}`"), "outside this directory"])
        }));
    }
}

fn configs(trials: &mut Vec<Trial>) {
    let whole = "expected a whole number from 1 to 16777216";
    let mut values: Vec<(&'static str, Value, &'static str)> = Vec::new();
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    for key in sizes {
        let wrong = [
            json!(0),
            json!(-8),
            json!(8.5),
            json!(1u64 << 40),
            json!(u64::MAX),
            json!(1e300),
            json!("8"),
            json!([8]),
            json!(true),
        ];
        values.extend(wrong.map(|value| (key, value, whole)));
    }
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    {
        values.push((key, Value::Null, whole));
    }
    for (key, expected) in [
        ("rms_norm_eps", "expected a number that is not negative"),
        ("rope_theta", "expected a positive number"),
    ] {
        let wrong = [Value::Null, json!(-1e-5), json!("1e-5"), json!([])];
        values.extend(wrong.map(|value| (key, value, expected)));
    }
    for key in ["tie_word_embeddings", "attention_bias", "mlp_bias"] {
        values.extend(
            [Value::Null, json!(1), json!("true")].map(|value| (key, value, "expected true or false")),
        );
    }
    values.extend([
        ("num_attention_heads", json!(3), "`hidden_size` 8 is no multiple"),
        ("num_key_value_heads", json!(4), "no multiple of `num_key_value_heads` 4"),
        ("head_dim", json!(3), "odd"),
        ("vocab_size", json!(7), "expected [7, 8] (from config.json: `vocab_size`"),
        (
            "hidden_size",
            json!(1 << 24),
            "expected [6, 16777216] (from config.json: `vocab_size`, `hidden_size`",
        ),
        ("num_hidden_layers", json!(1 << 24), "model.layers.1."),
        ("tie_word_embeddings", json!(false), "lm_head.weight"),
        ("attention_bias", json!(true), "q_proj.bias"),
        ("hidden_act", json!("gelu"), "supported: \"silu\" (or \"swish\"), \"relu\""),
        ("rope_scaling", json!("linear"), "expected an object"),
        (
            "rope_scaling",
            json!({"rope_type": "linear"}),
            "`rope_scaling.rope_type` \"linear\" is not supported",
        ),
        ("rope_parameters", json!({"type": "yarn"}), "`rope_parameters.rope_type` \"yarn\" is not supported"),
        ("rope_parameters", json!({"rope_theta": 0}), "`rope_parameters.rope_theta` is 0"),
        ("rope_parameters", json!({"full_attention": {}}), "differ from layer to layer"),
        ("partial_rotary_factor", json!(0.5), "whose every entry is turned"),
        ("per_layer_config", json!({"0": {"head_dim": 2}}), "whose layers are alike"),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8}),
            "`rope_scaling.low_freq_factor` is missing",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 0}),
            "`rope_scaling.factor` is 0, expected a positive number",
        ),
        ("model_type", Value::Null, "`model_type` is missing"),
        ("model_type", json!("gpt2"), "supported: llama, mistral, qwen2, qwen3, opt"),
        ("model_type", json!(5), "supported: llama, mistral, qwen2, qwen3, opt"),
        ("quantization_config", json!({"bits": 4}), "quantised"),
    ]);
    for (key, value, expected) in values {
        trials.push(Trial::test(format!("config::{key}={value}"), move || {
            let mut files = Files::one_file();
            files.json("config.json", |j| j[key] = value.clone());
            // What contradicts the weights is reported where they are.
            let mut all = vec![expected];
            let of_weights = ["(from config.json", "model.layers.1.", "lm_head.weight", "q_proj.bias"];
            all.extend(if of_weights.iter().any(|part| expected.contains(part)) {
                vec![SINGLE]
            } else {
                vec!["config.json"]
            });
            refused(&files, &all)
        }));
    }
    let mut text = |name: &str, edit: fn(String) -> String, expected: &'static str| {
        trials.push(Trial::test(format!("config::{name}"), move || {
            let mut files = Files::one_file();
            files.text("config.json", edit);
            refused(&files, &["config.json", expected])
        }));
    };
    text("empty", |_| String::new(), "not JSON");
    text("cut_short", |text| text[..30].into(), "not JSON");
    text("a_list", |_| "[1]".into(), "not a JSON object");
    text("deeply_nested", |_| "[".repeat(5000), "not JSON");
    text("a_key_twice", |text| text.replacen('{', "{\"hidden_size\":16,", 1), "`hidden_size` is there twice");
    text("infinity", |text| text.replace("10000.0", "1e999"), "not JSON");
    trials.push(Trial::test("config::not_utf8", || {
        let mut files = Files::one_file();
        files.0.insert("config.json", vec![0xff, 0xfe]);
        refused(&files, &["config.json", "UTF-8"])
    }));
    trials.push(Trial::test("config::missing", || {
        let mut files = Files::one_file();
        files.0.remove("config.json");
        refused(&files, &["config.json", "expected a Hugging Face model directory"])
    }));
    trials.push(Trial::test("weights_missing", || {
        let mut files = Files::one_file();
        files.0.remove(SINGLE);
        refused(&files, &[SINGLE, INDEX, "must be converted to safetensors"])
    }));
}

const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

/// The checkpoint of one file with every third weight zero, in the sparse-bitmask layout.
fn compressed_file() -> Files {
    let directory = tempfile::tempdir().unwrap();
    let (source, output) = (directory.path().join("dense"), directory.path().join("compressed"));
    fs::create_dir(&source).unwrap();
    let mut files = Files::one_file();
    for (name, shape) in Files::shapes() {
        let content = files.0.get_mut(SINGLE).unwrap();
        let start = position(content, name);
        let values = content[start..][..4 * shape.iter().product::<usize>()].chunks_exact_mut(4);
        values.step_by(3).for_each(|value| value.fill(0));
    }
    files.write(&source);
    let checkpoint = Checkpoint::open(&source).unwrap();
    convert(&checkpoint, &output, StorageFormat::SparseBitmask, &Silent).unwrap();
    let read = |name| (name, fs::read(output.join(name)).unwrap());
    Files([read("config.json"), read(SINGLE)].into())
}

fn compressed(trials: &mut Vec<Trial>) {
    trials.push(Trial::test("compressed::the_valid_one_is_accepted", || {
        let directory = tempfile::tempdir()?;
        compressed_file().write(directory.path());
        Checkpoint::open(directory.path())?.layer::<f32>(0)?;
        Ok(())
    }));
    // What the header says: refused when it is opened.
    let mut header = |name: &str, edit: fn(&mut Value), expected: &'static [&'static str]| {
        trials.push(Trial::test(format!("compressed::{name}"), move || {
            let mut files = compressed_file();
            files.header(SINGLE, edit);
            refused(&files, &[&[SINGLE], expected].concat())
        }));
    };
    fn rename(header: &mut Value, from: &str, to: &str) {
        let entry = header.as_object_mut().unwrap().remove(from).unwrap();
        header[to] = entry;
    }
    const DOWN_BITS: &str = "model.layers.0.mlp.down_proj.bitmask";
    const DOWN_ROWS: &str = "model.layers.0.mlp.down_proj.row_offsets";
    const DOWN_VALUES: &str = "model.layers.0.mlp.down_proj.compressed";
    const DOWN_SHAPE: &str = "model.layers.0.mlp.down_proj.shape";
    header("bitmask_missing", |h| rename(h, DOWN_BITS, "bits"), &[DOWN_BITS, "missing"]);
    header("row_offsets_missing", |h| rename(h, DOWN_ROWS, "rows"), &[DOWN_ROWS, "missing"]);
    header("shape_missing", |h| rename(h, DOWN_SHAPE, "size"), &[DOWN_SHAPE, "missing"]);
    header("values_missing", |h| rename(h, DOWN_VALUES, "values"), &[DOWN, "missing"]);
    header("dense_too", |h| rename(h, NORM, DOWN), &[DOWN, "compressed as", DOWN_VALUES]);
    header(
        "bitmask_of_signed_bytes",
        |h| h[DOWN_BITS]["dtype"] = "I8".into(),
        &[DOWN_BITS, "I8", "expected U8"],
    );
    header(
        "row_offsets_of_floats",
        |h| h[DOWN_ROWS]["dtype"] = "F64".into(),
        &[DOWN_ROWS, "F64", "expected I64"],
    );
    header(
        "shape_of_unsigned",
        |h| h[DOWN_SHAPE]["dtype"] = "U64".into(),
        &[DOWN_SHAPE, "U64", "expected I64"],
    );
    header(
        "integer_values",
        |h| h[DOWN_VALUES]["dtype"] = "I32".into(),
        &[DOWN_VALUES, "I32", "expected F64, F32"],
    );
    header(
        "values_as_a_matrix",
        |h| h[DOWN_VALUES]["shape"] = json!([8, 8]),
        &[DOWN_VALUES, "[8, 8]", "8 x 12"],
    );
    header(
        "bitmask_of_another_shape",
        |h| h[DOWN_BITS]["shape"] = json!([4, 4]),
        &[DOWN_BITS, "[4, 4]", "expected [8, 2]"],
    );
    header(
        "row_offsets_as_a_matrix",
        |h| h[DOWN_ROWS]["shape"] = json!([8, 1]),
        &[DOWN_ROWS, "[8, 1]", "expected [8]"],
    );
    header(
        "shape_as_a_matrix",
        |h| h[DOWN_SHAPE]["shape"] = json!([1, 2]),
        &[DOWN_SHAPE, "[1, 2]", "expected [2]"],
    );
    trials.push(Trial::test("compressed::truncated", || {
        let mut files = compressed_file();
        files.0.get_mut(SINGLE).unwrap().pop();
        refused(&files, &[SINGLE, "truncated", "there are only"])
    }));
    trials.push(Trial::test("compressed::config_of_another_shape", || {
        let mut files = compressed_file();
        files.json("config.json", |j| j["intermediate_size"] = json!(13));
        refused(
            &files,
            &[
                SINGLE,
                "gate_proj.weight",
                "[12, 8]",
                "expected [13, 8] (from config.json: `intermediate_size`",
            ],
        )
    }));
    for (name, entry, expected) in [
        (
            "another_format",
            json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}),
            "`sparse-24-bitmask`",
        ),
        (
            "unknown_too",
            json!({"quant_method": "compressed-tensors", "transforms": 3, "sparsity_config": {"format": "sparse-bitmask"}}),
            "`quantization_config.transforms` is 3",
        ),
        (
            "quantised_too",
            json!({"quant_method": "compressed-tensors", "format": "int-quantized", "sparsity_config": {"format": "sparse-bitmask"}}),
            "`quantization_config.format`",
        ),
        ("another_method", json!({"quant_method": "gptq", "bits": 4}), "quantised"),
        ("no_object", json!(3), "quantised"),
    ] {
        trials.push(Trial::test(format!("compressed::config_{name}"), move || {
            let mut files = compressed_file();
            files.json("config.json", |j| j["quantization_config"] = entry.clone());
            refused(&files, &["config.json", expected])
        }));
    }

    // What `shape` claims: refused when it is opened, whatever it would take.
    for (dimension, value, expected) in [
        (0, -8, [DOWN_SHAPE, "damaged at byte", "-8 rows"]),
        (1, -1, [DOWN_SHAPE, "damaged at byte", "-1 rows or columns"]),
        (0, 9, [DOWN_BITS, "[8, 2]", "expected [9, 2]"]),
        (1, 17, [DOWN_BITS, "[8, 2]", "expected [8, 3]"]),
        (1, i64::MAX, [DOWN_BITS, "[8, 2]", "expected [8, 1152921504606846976]"]),
        // As many bytes per row of bits; the configuration knows better.
        (1, 11, [DOWN, "[8, 11]", "expected [8, 12]"]),
    ] {
        trials.push(Trial::test(format!("compressed::dimension_{dimension}_{value}"), move || {
            let mut files = compressed_file();
            let content = files.0.get_mut(SINGLE).unwrap();
            let at = position(content, DOWN_SHAPE) + 8 * dimension;
            content[at..][..8].copy_from_slice(&value.to_le_bytes());
            refused(&files, &[&[SINGLE], &expected[..]].concat())
        }));
    }

    // What the data say: refused when the weight is read, with the byte of the file.
    fn word(row: i64) -> impl Fn(&mut [u8]) {
        move |bytes| bytes[..8].copy_from_slice(&row.to_le_bytes())
    }
    type Edit = Box<dyn Fn(&mut [u8]) + Send + Sync>;
    let edits: [(&str, &'static str, usize, Edit, &[&str]); 10] = [
        ("first_offset_not_zero", DOWN_ROWS, 0, Box::new(word(1)), &["row 0", "value 1", "0 bits"]),
        ("offset_descends", DOWN_ROWS, 24, Box::new(word(3)), &["row 3", "value 3", "24 bits"]),
        ("offset_negative", DOWN_ROWS, 24, Box::new(word(-24)), &["row 3", "value -24"]),
        ("offset_behind_the_end", DOWN_ROWS, 56, Box::new(word(65)), &["row 7", "value 65 of 64"]),
        ("offset_huge", DOWN_ROWS, 56, Box::new(word(i64::MAX)), &["row 7", "9223372036854775807"]),
        ("a_bit_too_many", DOWN_BITS, 0, Box::new(|b| b[0] |= 1), &["row 1", "value 8", "9 bits"]),
        ("a_bit_too_few", DOWN_BITS, 2, Box::new(|b| b[0] &= !2), &["row 2", "value 16", "15 bits"]),
        ("a_bit_too_many_in_the_last_row", DOWN_BITS, 14, Box::new(|b| b[0] |= 1), &["64 values", "65 bits"]),
        ("a_bit_too_few_in_the_last_row", DOWN_BITS, 14, Box::new(|b| b[0] &= !2), &["64 values", "63 bits"]),
        (
            "a_bit_behind_the_last_column",
            DOWN_BITS,
            5,
            Box::new(|b| b[0] |= 0x10),
            &["row 2", "after its last column 11"],
        ),
    ];
    for (name, tensor, byte, edit, expected) in edits {
        let expected: Vec<String> = expected.iter().map(|part| part.to_string()).collect();
        trials.push(Trial::test(format!("compressed::{name}"), move || {
            let directory = tempfile::tempdir()?;
            let mut files = compressed_file();
            let content = files.0.get_mut(SINGLE).unwrap();
            let at = position(content, tensor) + byte;
            edit(&mut content[at..]);
            // A number of bits that does not fit shows at the next offset, or behind the last row at the values.
            let (named, at) = match (tensor, name.contains("behind"), byte) {
                (DOWN_BITS, false, 14) => (
                    DOWN_VALUES,
                    position(content, DOWN_VALUES) + 4 * if name.contains("few") { 63 } else { 64 },
                ),
                (DOWN_BITS, false, byte) => (DOWN_ROWS, position(content, DOWN_ROWS) + 8 * (byte / 2 + 1)),
                _ => (tensor, at),
            };
            files.write(directory.path());
            let checkpoint = Checkpoint::open(directory.path())?;
            LARGEST.set(0);
            let Err(error) = checkpoint.layer::<f32>(0) else { return Err("it was accepted".into()) };
            let mut all = vec![SINGLE, named];
            all.extend(expected.iter().map(String::as_str));
            let place = format!("damaged at byte {at} ");
            all.push(&place);
            holds(&error.to_string(), &all)?;
            if LARGEST.get() > ENOUGH { Err("more was allocated than a weight takes".into()) } else { Ok(()) }
        }));
    }
}

/// Fields and tensors that other architectures have and LLaMA has not.
fn architectures(trials: &mut Vec<Trial>) {
    let whole = "expected a whole number from 1 to 16777216";
    let count = "expected a whole number from 0 to 16777216";
    let mut values: Vec<(&'static str, &'static str, Value, &'static str)> = Vec::new();
    for (model, key) in [
        ("mistral", "sliding_window"),
        ("qwen2-window", "sliding_window"),
        ("opt", "word_embed_proj_dim"),
        ("opt", "ffn_dim"),
        ("opt", "num_attention_heads"),
    ] {
        let wrong = [json!(0), json!(-7), json!(7.5), json!(1u64 << 40), json!("7"), json!([7]), json!(true)];
        values.extend(wrong.map(|value| (model, key, value, whole)));
    }
    for (model, key) in [
        ("qwen2-window", "use_sliding_window"),
        ("opt", "do_layer_norm_before"),
        ("opt", "_remove_final_layer_norm"),
        ("opt", "enable_bias"),
        ("opt", "layer_norm_elementwise_affine"),
        ("opt", "tie_word_embeddings"),
    ] {
        values.extend([json!(1), json!("true")].map(|value| (model, key, value, "expected true or false")));
    }
    let listed = "\"full_attention\" or \"sliding_attention\" for each of the 3 layers";
    let slides = "`layer_types` has \"sliding_attention\"";
    let activations = "is not supported; supported: \"silu\" (or \"swish\"), \"relu\"";
    values.extend([
        ("qwen2-window", "max_window_layers", json!(-1), count),
        ("qwen2-window", "max_window_layers", json!("1"), count),
        ("qwen2-window", "layer_types", json!("sliding_attention"), listed),
        ("qwen2-window", "layer_types", json!(["full_attention", "sliding_attention"]), listed),
        (
            "qwen2-window",
            "layer_types",
            json!(["full_attention", "full_attention", "linear_attention"]),
            listed,
        ),
        ("qwen2-window", "layer_types", json!([0, 1, 1]), listed),
        ("qwen2-window", "use_sliding_window", json!(false), slides),
        ("qwen2-window", "sliding_window", Value::Null, slides),
        ("mistral", "hidden_act", json!("gelu"), activations),
        ("opt", "activation_function", json!("gelu_new"), activations),
        ("opt", "activation_function", json!(1), activations),
        ("opt", "layer_norm_elementwise_affine", json!(false), "norms have weight and bias"),
        ("opt", "ffn_dim", Value::Null, whole),
        ("qwen3", "head_dim", Value::Null, whole),
        ("qwen3", "head_dim", json!(8), "q_norm.weight` has shape [12], expected [8]"),
        ("qwen3", "attention_bias", json!(1), "expected true or false"),
        ("qwen3", "attention_bias", json!(true), "q_proj.bias` is missing"),
        ("qwen3-window", "use_sliding_window", json!(false), slides),
        ("opt", "num_attention_heads", json!(3), "`hidden_size` 32 is no multiple"),
        // What contradicts the weights.
        (
            "opt",
            "word_embed_proj_dim",
            json!(20),
            "embed_tokens.weight` has shape [96, 32], expected [96, 20]",
        ),
        ("opt", "ffn_dim", json!(63), "decoder.layers.0.fc1.weight` has shape [64, 32], expected [63, 32]"),
        (
            "opt",
            "max_position_embeddings",
            json!(63),
            "decoder.embed_positions.weight` has shape [66, 32], expected [65, 32]",
        ),
        ("opt", "tie_word_embeddings", json!(false), "lm_head.weight` is missing"),
        (
            "opt-post-norm",
            "do_layer_norm_before",
            json!(true),
            "model.decoder.final_layer_norm.weight` is missing",
        ),
        (
            "opt-post-norm",
            "word_embed_proj_dim",
            Value::Null,
            "embed_tokens.weight` has shape [96, 20], expected [96, 32]",
        ),
        ("opt-plain", "enable_bias", json!(true), "self_attn.q_proj.bias` is missing"),
        ("mistral", "num_key_value_heads", json!(2), "k_proj.weight` has shape [12, 32], expected [24, 32]"),
        ("mistral", "model_type", json!("qwen2"), "q_proj.bias` is missing"),
        ("qwen2", "model_type", json!("qwen3"), "q_norm.weight` is missing"),
        ("llama-biased", "model_type", json!("opt"), "`ffn_dim` is missing"),
    ]);
    for (model, key, value, expected) in values {
        trials.push(Trial::test(format!("architecture::{model}::{key}={value}"), move || {
            let mut files = Files::of_architecture(model);
            files.json("config.json", |j| j[key] = value.clone());
            let of_weights = expected.contains("weight`") || expected.contains("bias`");
            refused(&files, &[if of_weights { SINGLE } else { "config.json" }, expected])
        }));
    }
    for (model, tensor) in [
        ("opt", "decoder.layers.1.fc2.bias"),
        ("opt", "decoder.layers.0.self_attn_layer_norm.bias"),
        ("opt", "decoder.final_layer_norm.bias"),
        ("opt", "decoder.embed_positions.weight"),
        ("opt-post-norm", "model.decoder.project_in.weight"),
        ("opt-post-norm", "model.decoder.project_out.weight"),
        ("qwen2", "model.layers.1.self_attn.v_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.k_norm.weight"),
    ] {
        trials.push(Trial::test(format!("architecture::{model}::without_{tensor}"), move || {
            let mut files = Files::of_architecture(model);
            // Under another name: the file stays whole.
            files.header_text(SINGLE, |text| text.replace(&format!("\"{tensor}\""), "\"other\""));
            refused(&files, &[SINGLE, tensor, "is missing"])
        }));
    }

    let mut accepted =
        |name: &str, model: &'static str, edit: fn(&mut Value), holds: fn(&ModelConfig) -> bool| {
            trials.push(Trial::test(format!("architecture::{name}"), move || {
                let mut files = Files::of_architecture(model);
                files.json("config.json", edit);
                let directory = tempfile::tempdir()?;
                files.write(directory.path());
                let config = Checkpoint::open(directory.path())?.config;
                if holds(&config) { Ok(()) } else { Err(format!("{config:?}").into()) }
            }));
        };
    fn remove(json: &mut Value, key: &str) {
        json.as_object_mut().unwrap().remove(key).unwrap();
    }
    fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
        (0..config.num_hidden_layers).map(|layer| config.window(layer)).collect()
    }
    accepted(
        "model_type_alone",
        "opt",
        |j| remove(j, "architectures"),
        |c| c.architecture.class == "OPTForCausalLM",
    );
    accepted("window_null", "mistral", |j| j["sliding_window"] = Value::Null, |c| windows(c) == [None; 2]);
    accepted(
        "window_not_mentioned",
        "mistral",
        |j| remove(j, "sliding_window"),
        |c| windows(c) == [Some(4096); 2],
    );
    accepted("windows_off", "qwen2", |_| (), |c| windows(c) == [None; 2]);
    accepted(
        "windows_from_a_layer_on",
        "qwen2-window",
        |j| {
            remove(j, "layer_types");
            j["max_window_layers"] = json!(2);
        },
        |c| windows(c) == [None, None, Some(9)],
    );
    accepted(
        "windows_as_listed",
        "qwen2-window",
        |j| j["layer_types"].as_array_mut().unwrap().reverse(),
        |c| windows(c) == [Some(9), Some(9), None],
    );
}

fn tokenizers(trials: &mut Vec<Trial>) {
    let source = || fs::read_to_string(fixture("tiny-llama/tokenizer.json")).unwrap();
    let mut case = |name: &str, edit: fn(String) -> String, expected: &'static [&'static str]| {
        trials.push(Trial::test(format!("tokenizer::{name}"), move || {
            let directory = tempfile::tempdir()?;
            fs::write(directory.path().join("tokenizer.json"), edit(source()))?;
            let Err(error) = Tokenizer::read(directory.path()) else { return Err("it was accepted".into()) };
            let mut all = vec!["tokenizer.json", "not a tokenizer that is understood"];
            all.extend(expected);
            holds(&error.to_string(), &all)
        }));
    };
    case("empty", |_| String::new(), &[]);
    case("cut_short", |text| text[..text.len() / 2].into(), &[]);
    case("decoder_cut_short", |text| text[..text.find("\"decoder\"").unwrap() + 20].into(), &["not JSON"]);
    case(
        "normalizer_without_its_table",
        |text| {
            let broken = "\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AAAA\"}";
            text.replace("\"normalizer\": null", broken)
        },
        &[],
    );
    case("not_a_tokenizer", |_| "{\"model\": {}}".into(), &[]);
    case("unknown_model", |text| text.replace("\"type\": \"BPE\"", "\"type\": \"Magic\""), &[]);
    case(
        "a_merge_of_unknown_tokens",
        |text| text.replacen("\"merges\": [", "\"merges\": [[\"qqq\", \"zzz\"],", 1),
        &["qqq"],
    );

    trials.push(Trial::test("tokenizer::a_vocabulary_larger_than_the_embedding", || {
        let directory = tempfile::tempdir()?;
        Files::one_file().write(directory.path());
        fs::copy(fixture("tiny-llama/tokenizer.json"), directory.path().join("tokenizer.json"))?;
        let checkpoint = Checkpoint::open(directory.path())?;
        let Err(error) = Tokenizer::of(&checkpoint) else { return Err("it was accepted".into()) };
        holds(&error.to_string(), &["tokenizer.json", "2047", "model.embed_tokens.weight", "6 rows"])
    }));
    trials.push(Trial::test("tokenizer::an_added_token_outside_the_embedding", move || {
        // Padding tokens are added so, and never occur in a text: only using one is wrong.
        let directory = tempfile::tempdir()?;
        for file in ["config.json", SINGLE] {
            fs::copy(fixture("tiny-llama").join(file), directory.path().join(file))?;
        }
        let mut json: Value = serde_json::from_str(&source())?;
        let mut added = json["added_tokens"][0].clone();
        added["id"] = 2048.into();
        added["content"] = "<pad>".into();
        json["added_tokens"].as_array_mut().unwrap().push(added);
        fs::write(directory.path().join("tokenizer.json"), json.to_string())?;
        let checkpoint = Checkpoint::open(directory.path())?;
        let tokenizer = Tokenizer::of(&checkpoint)?;
        let windows = |text: &str| {
            let path = directory.path().join("text.txt");
            fs::write(&path, text).unwrap();
            Windows::from_text(&path, &tokenizer, &checkpoint.config, 4, Cut::Consecutive { limit: None })
        };
        windows("a text without padding in it")?;
        let Err(error) = windows("a text with <pad> in it") else { return Err("it was accepted".into()) };
        holds(&error.to_string(), &["text.txt", "token 2048", "vocabulary of 2048"])
    }));
}

/// Values that overflow on the way, in the second of three layers: the first place is named, and nothing is left.
fn not_finite(trials: &mut Vec<Trial>) {
    type Planted = &'static [(&'static str, f32)];
    let cases: [(&str, Planted, &[&str]); 9] = [
        ("weight", &[("1.mlp.up_proj", f32::INFINITY)], &[SINGLE, "1.mlp.up_proj", "not finite", "[0, 0]"]),
        ("norm", &[("1.input_layernorm", 3e38)], &["layer 1, input of q_proj"]),
        ("k_proj", &[("1.self_attn.k_proj", 3e38)], &["layer 1, output of k_proj"]),
        ("v_proj", &[("1.self_attn.v_proj", 3e38)], &["layer 1, output of v_proj"]),
        ("o_proj", &[("1.self_attn.o_proj", 3e38)], &["layer 1, output of o_proj"]),
        ("up_proj", &[("1.mlp.up_proj", 3e38)], &["layer 1, output of up_proj"]),
        (
            "gate_times_up",
            &[("1.mlp.gate_proj", 1e25), ("1.mlp.up_proj", 1e25)],
            &["layer 1, input of down_proj"],
        ),
        ("last", &[("2.mlp.down_proj", 3e38)], &["layer 2, output of down_proj"]),
        ("squares", &[("1.mlp.up_proj", 1e22)], &["layers.1.mlp.down_proj", "not finite"]),
    ];
    for (name, planted, expected) in cases {
        trials.push(Trial::test(format!("not_finite::{name}"), move || {
            let directory = tempfile::tempdir()?;
            let nano = fixture("nano-llama");
            fs::copy(nano.join("config.json"), directory.path().join("config.json"))?;
            let source = TensorFile::open(&nano.join(SINGLE))?;
            let infos = source.in_file_order();
            let headers = infos.iter().map(|(name, info)| (*name, info.dtype, info.shape.as_slice()));
            let writer = TensorWriter::create(&directory.path().join(SINGLE), headers, &HashMap::new())?;
            for (name, _) in &infos {
                let mut bytes = source.bytes(name)?.to_vec();
                let of_tensor = |(part, _): &&(&str, f32)| *name == format!("model.layers.{part}.weight");
                if let Some(&(_, value)) = planted.iter().find(of_tensor) {
                    let every = if value.is_finite() { 1 } else { bytes.len() };
                    for x in bytes.chunks_exact_mut(4).step_by(every) {
                        let sign = f32::from_le_bytes(x.try_into().unwrap()).signum();
                        x.copy_from_slice(&(sign * value).to_le_bytes());
                    }
                }
                writer.write(name, &bytes)?;
            }
            let checkpoint = Checkpoint::open(directory.path())?;
            let tokens = nano.join("tokens-calibration.safetensors");
            let windows = Windows::from_tokens(&tokens, &checkpoint.config, None, None)?;
            let output = directory.path().join("pruned");
            // One block per linear: between blocks the update of such weights would overflow first.
            let config = PruneConfig { block_size: 256, ..PruneConfig::default() };
            let job = PruneJob {
                windows: Some(&windows),
                activation_sparsity: 0.5,
                ..PruneJob::new(&checkpoint, Method::DuoGpt(config), &output)
            };
            let Err(error) = job.run::<f32, _>(&Cpu, &Silent) else { return Err("it was pruned".into()) };
            holds(&error.to_string(), expected)?;
            let left = fs::read_dir(directory.path())?.count();
            if left == 2 { Ok(()) } else { Err("something was written".into()) }
        }));
    }
}
