//! `tokenizer.json` and the files beside it: refused, or a tokenizer that encodes a text.

#![no_main]

use duogpt::model::tokenizer::Tokenizer;
use duogpt_fuzz::Directory;
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

fuzz_target!(|data: &[u8]| {
    let directory = Directory::unpack(data, &FILES);
    match Tokenizer::read(directory.path()) {
        Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{error} names no file"),
        Ok(tokenizer) => {
            let _ = tokenizer.prefix_token();
            for text in
                ["", "the <s>quick</s> brown\tfox's 1234\n\n", "na\u{ef}ve \u{6f22}\u{5b57} \u{1f98a}\u{0}"]
            {
                let _ = tokenizer.encode(text);
                let _ = tokenizer.encode_plain(text);
            }
        }
    }
});
