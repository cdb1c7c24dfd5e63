//! A request in PEM that parses is one block with nothing before it and not a second one behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_x509::{MAX_CSR_DER_BYTES, PublicKey, VerifiedCsr};

fuzz_target!(|text: &str| match VerifiedCsr::parse_pem(text) {
    Ok(csr) => {
        assert!(text.len() <= MAX_CSR_DER_BYTES * 3 / 2);
        assert!(text.starts_with("-----BEGIN "));
        let key = csr.public_key();
        assert_eq!(PublicKey::from_spki_der(key.spki_der()).as_ref(), Ok(key));
        assert!(VerifiedCsr::parse_pem(&format!("x{text}")).is_err());
        assert!(VerifiedCsr::parse_pem(&format!("{text}\n{text}")).is_err());
    }
    Err(refusal) => {
        assert!(!refusal.code().is_empty());
        assert!(!refusal.to_string().is_empty());
    }
});
