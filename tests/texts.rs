//! What needs texts that are not part of the repository. `DUOGPT_TEXTS` names a directory with
//! `text/wikitext2-{valid,test}.txt` and `models/tiny-llama/{upstream.json, tokens-{calibration,evaluation}.safetensors}`;
//! without it every test here is skipped by name.

mod common;

use std::path::PathBuf;

use common::{Published, fixture, read_json};
use duogpt::calibrate::windows::{Cut, Windows};
use duogpt::model::tokenizer::Tokenizer;
use duogpt::model::{Checkpoint, ModelConfig};
use libtest_mimic::{Arguments, Failed, Trial};

const RUNS: [&str; 12] = [
    "dense",
    "magnitude",
    "wanda",
    "wanda_65",
    "sparsegpt_natural",
    "sparsegpt_natural_65",
    "sparsegpt_paper",
    "duogpt_upstream",
    "duogpt_paper",
    "duogpt_natural_alpha0125",
    "duogpt_natural_65",
    "duogpt_2_4",
];

fn main() {
    let texts = std::env::var_os("DUOGPT_TEXTS").map(PathBuf::from);
    let skip = texts.is_none();
    let texts: &'static PathBuf = Box::leak(Box::new(texts.unwrap_or_default()));
    let file = |name: &str| texts.join("models/tiny-llama").join(name);
    let with_published = move |check: &dyn Fn(Published) -> Result<(), Failed>| {
        let json = read_json(&file("upstream.json"));
        check(Published {
            model: fixture("tiny-llama"),
            runs: &json["runs"],
            calibration: file("tokens-calibration.safetensors"),
            evaluation: file("tokens-evaluation.safetensors"),
        })
    };
    let mut trials = vec![
        Trial::test("wikitext_windows_equal_the_published_tokens", move || {
            let model = Checkpoint::open(&fixture("tiny-llama"))?;
            let text = texts.join("text/wikitext2-test.txt");
            let found = consecutive(&text, &model.config)?;
            let published =
                Windows::from_tokens(&file("tokens-evaluation.safetensors"), &model.config, None, None)?;
            if found.tokens == published.tokens { Ok(()) } else { Err("the windows differ".into()) }
        }),
        Trial::test("wikitext_order_of_methods::f32", move || {
            with_published(&|p| p.keeps_the_order::<f32>("duogpt_natural_alpha0125", "sparsegpt_natural"))
        }),
        Trial::test("wikitext_all_published_runs_are_listed", move || {
            let json = read_json(&file("upstream.json"));
            let missing = json["runs"].as_object().unwrap().keys().find(|run| !RUNS.contains(&run.as_str()));
            missing.map_or(Ok(()), |run| Err(format!("{run} is not repeated").into()))
        }),
    ];
    for name in RUNS {
        trials.push(Trial::test(format!("wikitext_{name}::f32"), move || {
            with_published(&|p| p.holds::<f32>(name))
        }));
        trials.push(Trial::test(format!("wikitext_{name}::f64"), move || {
            with_published(&|p| p.holds::<f64>(name))
        }));
    }
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(skip)).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn consecutive(text: &std::path::Path, config: &ModelConfig) -> Result<Windows, Failed> {
    let tokenizer = Tokenizer::read(&fixture("tiny-llama"))?;
    Ok(Windows::from_text(text, &tokenizer, config, 256, Cut::Consecutive { limit: Some(32) })?)
}
