//! A certificate that parses, as a leaf or as an authority, is taken byte for byte and with nothing after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_x509::{CaCertificate, inspect};

fuzz_target!(|der: &[u8]| {
    let longer = [der, &[0]].concat();
    if let Ok(facts) = inspect(der) {
        assert!(inspect(&longer).is_err());
        if let Some(id) = facts.spiffe_id {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }
    if let Ok(certificate) = CaCertificate::parse(der) {
        assert_eq!(certificate.der(), der);
        assert!(CaCertificate::parse(&longer).is_err());
        assert_eq!(CaCertificate::parse(certificate.der()), Ok(certificate));
    }
});
