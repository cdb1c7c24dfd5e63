//! The real clock and the real randomness: the only file of the shell that reads either.
//!
//! Laws: everything else receives a [`Clock`] or an [`Entropy`]. Waiting is `tokio::time`'s.

use std::time::{SystemTime, UNIX_EPOCH};

use rhizome_core::entropy::EntropyError;
use rhizome_core::ports::{Clock, Entropy};
use rhizome_id::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};

/// The machine's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }
}

/// The operating system's randomness.
#[derive(Debug)]
pub struct SystemEntropy(SystemRandom);

impl Default for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "this is the one place of the shell that opens the source")]
    fn default() -> Self {
        Self(SystemRandom::new())
    }
}

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.0.fill(bytes).map_err(|_opaque| EntropyError)
    }
}

/// 64 random bits for spreading things out; none at all is no reason to fail.
pub(crate) fn random(entropy: &dyn Entropy) -> u64 {
    let mut bytes = [0; 8];
    match entropy.fill(&mut bytes) {
        Ok(()) => u64::from_be_bytes(bytes),
        Err(EntropyError) => 0,
    }
}
