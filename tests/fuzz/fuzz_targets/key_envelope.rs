//! A key file opens in a sealed ring or in an unsealed one, never in both, and whatever is refused has a reason. The
//! keys of the seeds are nobody's.
#![no_main]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use libfuzzer_sys::fuzz_target;
use rhizome_keys::{SealedFileKeyRing, SealingKey};

/// What the sealed seed is sealed under.
const SEALING_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fuzz_target!(|text: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("seed.key.json");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let sealing_key = SealingKey::from_text(SEALING_KEY).unwrap();
    let sealed = runtime.block_on(SealedFileKeyRing::open(folder.path(), sealing_key));
    let unsealed = runtime.block_on(SealedFileKeyRing::open_danger_unsealed(folder.path()));
    assert!(sealed.is_err() || unsealed.is_err());
    for refusal in [sealed.err(), unsealed.err()].into_iter().flatten() {
        assert!(!refusal.to_string().is_empty());
    }
});
