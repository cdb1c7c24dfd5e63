//! A bundle that parses prints to a SPIFFE document that parses to the same bundle, in its PEM and DER forms too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_x509::{Bundle, SpiffeDocument};

fuzz_target!(|text: &str| {
    let Ok(document) = SpiffeDocument::parse("example.org".parse().unwrap(), text) else {
        return;
    };
    let bundle = document.bundle;
    assert!((1..=Bundle::MAX_ANCHORS).contains(&bundle.anchors().len()));
    let again = SpiffeDocument::parse("example.org".parse().unwrap(), &bundle.to_spiffe_json()).unwrap();
    assert_eq!(again.ignored, 0);
    assert_eq!(again.bundle.digest(), bundle.digest());
    assert_eq!(again.bundle, bundle);
    let total: usize = bundle.anchors().iter().map(|anchor| anchor.der().len()).sum();
    assert_eq!(bundle.to_der().len(), total);
});
