//! `config.json`: refused, or a configuration whose sizes fit each other.

#![no_main]

use duogpt::model::config::Positions;
use duogpt::model::{Group, ModelConfig};
use duogpt_fuzz::Directory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let directory = Directory::unpack(data, &["config.json"]);
    let path = directory.file("config.json");
    match ModelConfig::read(&path) {
        Err(error) => assert!(error.to_string().contains("config.json"), "{error} names no file"),
        Ok(config) => {
            assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
            if let Positions::Rotary { theta, .. } = config.positions {
                assert!(config.head_dim.is_multiple_of(2) && theta > 0.0);
            }
            assert!(
                config.vocab_size > 0 && config.num_hidden_layers > 0 && config.max_position_embeddings > 0
            );
            for linear in config.linears() {
                let (rows, columns) = linear.shape(&config);
                assert!(rows.checked_mul(columns).is_some_and(|weights| weights > 0));
            }
            assert!(Group::ALL.iter().all(|group| group.channels(&config) > 0));
        }
    }
});
