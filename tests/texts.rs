//! What needs texts that are not part of the repository. `DUOGPT_TEXTS` names a directory with
//! `text/wikitext2-{valid,test}.txt`, `models/tiny-llama/{upstream.json, tokens-{calibration,evaluation}.safetensors}`,
//! `real/tasks/*.jsonl` and `real/lm-eval-smollm2.json`; without it every test here is skipped by name. The last two need the
//! model that `make real` leaves in `target/real` besides.

mod common;

use std::path::{Path, PathBuf};

use common::{Published, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::{Cut, Windows};
use duogpt::evaluate::zero_shot::evaluate;
use duogpt::evaluate::zero_shot::tasks::Task;
use duogpt::model::tokenizer::Tokenizer;
use duogpt::model::{Checkpoint, ModelConfig};
use duogpt::progress::Silent;
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
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/real/SmolLM2-135M-Instruct");
    let no_model = !model.is_dir();
    for task in Task::ALL {
        let model = model.clone();
        let trial = Trial::test(format!("real_model_{task}_equals_the_harness"), move || {
            let expected = &read_json(&texts.join("real/lm-eval-smollm2.json"))["results"][task.name()];
            let data = [task.read(&texts.join("real/tasks"), None)?];
            let checkpoint = Checkpoint::open(&model)?;
            let tokenizer = Tokenizer::of(&checkpoint)?;
            let dense = Activations::default();
            let outcome = &evaluate::<f32, _>(&checkpoint, &tokenizer, &data, dense, &Cpu, &Silent)?[0];
            let metrics = [("acc", Some(outcome.accuracy.acc)), ("acc_norm", outcome.accuracy.acc_norm)];
            for (name, metric) in metrics {
                let (mean, error) =
                    (&expected[format!("{name},none")], &expected[format!("{name}_stderr,none")]);
                match (metric, mean.as_f64(), error.as_f64()) {
                    (None, None, None) => {}
                    (Some(found), Some(mean), Some(error))
                        if (found.mean - mean).abs() < 1e-12
                            && found.standard_error.is_some_and(|found| (found - error).abs() < 1e-12) => {}
                    (found, ..) => {
                        return Err(format!("{name} is {found:?}, expected {mean} +- {error}").into());
                    }
                }
            }
            Ok(())
        });
        trials.push(trial.with_ignored_flag(no_model));
    }
    let trials =
        trials.into_iter().map(|trial| if skip { trial.with_ignored_flag(true) } else { trial }).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn consecutive(text: &std::path::Path, config: &ModelConfig) -> Result<Windows, Failed> {
    let tokenizer = Tokenizer::read(&fixture("tiny-llama"))?;
    Ok(Windows::from_text(text, &tokenizer, config, 256, Cut::Consecutive { limit: Some(32) })?)
}
