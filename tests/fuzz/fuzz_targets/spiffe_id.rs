//! A SPIFFE ID that parses prints as it was written, has a valid trust domain and is rebuilt from its segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_id::SpiffeId;

fuzz_target!(|text: &str| {
    let Ok(id) = text.parse::<SpiffeId>() else {
        return;
    };
    assert_eq!(id.to_string(), text);
    assert!(text.len() <= SpiffeId::MAX_LENGTH);
    let domain = id.trust_domain();
    assert!(id.is_member_of(&domain));
    assert_eq!(SpiffeId::from_segments(&domain, id.segments()), Ok(id));
});
