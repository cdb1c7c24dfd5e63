//! The only shape in which randomness enters: a trait that the shell implements.
//!
//! Laws: nothing in this crate draws randomness by itself; pure functions take drawn values as arguments. A failed
//! draw is an error, never a default. Not here: the system's generator (`rhizome_server`), key generation
//! (`rhizome_keys`).
//! Sources: mozilla/neqo `test-fixture/src/sim/mod.rs`.

use std::sync::atomic::{AtomicU64, Ordering};

use ring::digest;

/// A source of random bytes.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with random bytes.
    ///
    /// # Errors
    /// [`EntropyError`] when the source failed; `bytes` must not be used then.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError>;
}

/// The source of randomness failed; the operation that needed it must not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of randomness failed")]
pub struct EntropyError;

/// A predictable source for tests and simulations: the same seed gives the same bytes. Never for keys or serials of
/// a real authority.
#[derive(Debug)]
pub struct SeededEntropy {
    seed: u64,
    block: AtomicU64,
}

impl SeededEntropy {
    /// A stream of bytes that depends on `seed` only.
    pub const fn new(seed: u64) -> Self {
        Self { seed, block: AtomicU64::new(0) }
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        for chunk in bytes.chunks_mut(digest::SHA256_OUTPUT_LEN) {
            let block = self.block.fetch_add(1, Ordering::SeqCst);
            let mut input = digest::Context::new(&digest::SHA256);
            input.update(&self.seed.to_be_bytes());
            input.update(&block.to_be_bytes());
            let output = input.finish();
            for (to, from) in chunk.iter_mut().zip(output.as_ref()) {
                *to = *from;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let draw = |seed| {
            let mut bytes = [0; 100];
            SeededEntropy::new(seed).fill(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn two_draws_from_one_source_differ() {
        let source = SeededEntropy::new(1);
        let (mut first, mut second) = ([0; 16], [0; 16]);
        source.fill(&mut first).unwrap();
        source.fill(&mut second).unwrap();
        assert_ne!(first, second);
    }
}
