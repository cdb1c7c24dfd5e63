//! A trust domain that parses prints as it was written, and so does the SPIFFE ID made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_id::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    let Ok(domain) = text.parse::<TrustDomain>() else {
        return;
    };
    assert_eq!(domain.to_string(), text);
    let id = SpiffeId::of_trust_domain(&domain);
    assert_eq!(id.trust_domain(), domain);
    assert_eq!(id.to_string().parse::<SpiffeId>(), Ok(id));
});
