//! A request that parses carries a key that parses again, within its limit, with nothing after it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rhizome_x509::{MAX_CSR_DER_BYTES, PublicKey, VerifiedCsr};

fuzz_target!(|der: &[u8]| match VerifiedCsr::parse(der) {
    Ok(csr) => {
        assert!(der.len() <= MAX_CSR_DER_BYTES);
        let key = csr.public_key();
        assert_eq!(PublicKey::from_spki_der(key.spki_der()).as_ref(), Ok(key));
        assert!(VerifiedCsr::parse(&[der, &[0]].concat()).is_err());
    }
    Err(refusal) => {
        assert!(!refusal.code().is_empty());
        assert!(!refusal.to_string().is_empty());
    }
});
