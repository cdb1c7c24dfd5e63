//! A revocation list that parses is taken byte for byte and with nothing after it, survives being put away, and is believed
//! by nobody whose list it is not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_x509::{Crl, CrlError, MAX_CRL_DER_BYTES};

fuzz_target!(|der: &[u8]| {
    let longer = [der, &[0]].concat();
    let Ok(crl) = Crl::parse(der) else { return };
    assert_eq!(crl.der(), der);
    assert!(der.len() <= MAX_CRL_DER_BYTES);
    assert!(Crl::parse(&longer).is_err());
    assert_eq!(Crl::verify(der, &[]), Err(CrlError::UnknownIssuer));
    let kept = String::from(crl.clone());
    assert_eq!(Crl::try_from(kept), Ok(crl));
});
