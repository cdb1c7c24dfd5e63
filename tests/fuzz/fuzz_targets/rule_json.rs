//! A rule that parses prints to a text that parses to the same rule.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_core::rules::Rule;

fuzz_target!(|text: &str| {
    let Ok(rule) = serde_json::from_str::<Rule>(text) else {
        return;
    };
    let printed = serde_json::to_string(&rule).unwrap();
    assert_eq!(serde_json::from_str::<Rule>(&printed).unwrap(), rule);
});
