//! A golden file: refused with a message, or a report of its stages.

#![no_main]

use duogpt::verify::golden::verify_file;
use duogpt_fuzz::Directory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let directory = Directory::unpack(data, &["golden.safetensors"]);
    let path = directory.file("golden.safetensors");
    match (verify_file::<f64>(&path), verify_file::<f32>(&path)) {
        (Err(error), _) | (_, Err(error)) => {
            assert!(error.to_string().contains("golden.safetensors"), "{error} names no file");
        }
        (Ok(report), Ok(_)) => assert!(report.kind.is_some() || !report.not_compared.is_empty()),
    }
});
