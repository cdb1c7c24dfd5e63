//! The system's randomness, as the crypto library wants it: for keys, nonces and signatures.
//!
//! Laws: this is the only place of the crate that opens it. Nothing here is drawn for a decision, so nothing here has
//! to be replayed in a test.

use std::sync::LazyLock;

use ring::rand::{SecureRandom, SystemRandom};

#[expect(
    clippy::disallowed_methods,
    reason = "keys and nonces need a generator that ring itself vouches for; its trait is sealed, so Entropy cannot be one"
)]
static SYSTEM: LazyLock<SystemRandom> = LazyLock::new(SystemRandom::new);

/// The generator, for ring's functions that take one.
pub(crate) fn system() -> &'static SystemRandom {
    &SYSTEM
}

/// The system gave no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no randomness")]
pub(crate) struct NoRandomness;

/// Fills `bytes`.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    system().fill(bytes).map_err(|_unspecified| NoRandomness)
}
