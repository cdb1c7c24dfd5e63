//! A configuration file is read the same way twice; one that is refused names at least one fault, within a limit.
#![no_main]

use libfuzzer_sys::fuzz_target;

use crate::config::{MAX_FAULTS, parse};

/// The module itself rather than its crate, which brings a database, a server and minutes of building.
#[expect(dead_code, unused_imports, reason = "the rest of the module is for its own crate")]
#[path = "../../../ca/src/config/mod.rs"]
mod config;

fuzz_target!(|bytes: &[u8]| match (parse(bytes), parse(bytes)) {
    (Ok(one), Ok(two)) => assert_eq!(one, two),
    (Err(one), Err(two)) => {
        assert!(one.count() > 0);
        let report = one.report("rhizome.yaml");
        assert!(!report.is_empty());
        assert!(report.lines().count() <= 4 * (MAX_FAULTS + 2));
        assert_eq!(report, two.report("rhizome.yaml"));
    }
    (one, two) => panic!("read two ways: {one:?} and {two:?}"),
});
