//! A test vector: refused with a message that names the file, or a report of its stages.

#![no_main]

use duogpt::backend::Cpu;
use duogpt::verify::vectors::{Case, verify_case};
use duogpt_fuzz::Directory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let directory = Directory::unpack(data, &["case.json", "tensors.safetensors"]);
    let case = match Case::load(directory.path()) {
        Ok(case) => case,
        Err(error) => {
            let message = error.to_string();
            let named = message.contains("case.json") || message.contains("tensors.safetensors");
            return assert!(named, "{message} names no file");
        }
    };
    match (verify_case::<f64, _>(&case, &Cpu), verify_case::<f32, _>(&case, &Cpu)) {
        (Err(error), _) | (_, Err(error)) => assert!(!error.to_string().is_empty()),
        (Ok(report), Ok(_)) => assert!(report.case.is_some()),
    }
});
