//! The whole pipeline on a real model, statistically: its bf16 weights make exact ties, so whole-model numbers are
//! compared as distributions.

mod common;

use common::{Published, fixture, read_json};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

fn main() {
    // Lives as long as the process: trials must be 'static.
    let json: &'static Value = Box::leak(Box::new(read_json(&fixture("tiny-llama/upstream-sampled.json"))));
    let published = || Published {
        model: fixture("tiny-llama"),
        runs: &json["runs"],
        calibration: fixture("tiny-llama/tokens-sampled-calibration.safetensors"),
        evaluation: fixture("tiny-llama/tokens-sampled-evaluation.safetensors"),
    };
    let mut trials = vec![
        Trial::test("order_of_methods::f32", move || {
            published().keeps_the_order::<f32>("duogpt_natural_alpha0125", "sparsegpt_natural")
        }),
        Trial::test("order_of_methods::f64", move || {
            published().keeps_the_order::<f64>("duogpt_natural_alpha0125", "sparsegpt_natural")
        }),
    ];
    for name in json["runs"].as_object().unwrap().keys() {
        trials.push(Trial::test(format!("{name}::f32"), move || published().holds::<f32>(name)));
        trials.push(Trial::test(format!("{name}::f64"), move || published().holds::<f64>(name)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
