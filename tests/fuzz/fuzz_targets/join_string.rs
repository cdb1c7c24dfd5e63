//! A join string that parses prints to one that parses to the same parts. Half of the effort goes below the base64.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;

use crate::join_string::{JoinString, MAX_BYTES};

/// The module itself rather than its crate, which brings a gRPC client and minutes of building.
#[expect(dead_code, reason = "the rest of the module is for its own crate")]
#[path = "../../../ca/tls/src/join_string.rs"]
mod join_string;

fuzz_target!(|text: &str| {
    check(text);
    check(&format!("rhz1.{}", URL_SAFE_NO_PAD.encode(text)));
});

fn check(text: &str) {
    match JoinString::decode(text) {
        Ok(join) => {
            let printed = join.encode().unwrap();
            assert!(printed.len() <= MAX_BYTES);
            assert_eq!(JoinString::decode(&printed), Ok(join));
        }
        Err(refusal) => assert!(refusal.to_string().len() < 200),
    }
}
