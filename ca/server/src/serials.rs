//! Serial numbers for this process: counters from durably reserved blocks, completed with randomness.
//!
//! Laws: a counter is used at most once, over restarts and restored backups too, because a block is reserved durably
//! before its first counter is used and whatever a stopped process did not use is lost, never given out again.
//! Sources: RFC 5280 §4.1.2.2; ADR 0002.

use std::sync::Mutex;

use rhizome_core::ports::{Entropy, Store, StoreError};
use rhizome_id::{ReplicaNumber, Serial, SerialCounter, Timestamp};

use crate::error::IssueError;

/// Counters per reservation: one durable write for 65,536 certificates.
const BLOCK: u32 = 1 << 16;

/// Gives out serials.
#[derive(Debug)]
pub(crate) struct Serials {
    replica: ReplicaNumber,
    block: Mutex<Block>,
    refill: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Block {
    next: u64,
    end: u64,
}

impl Block {
    fn take(&mut self) -> Option<SerialCounter> {
        if self.next >= self.end {
            return None;
        }
        let counter = SerialCounter::new(self.next)?;
        self.next = self.next.saturating_add(1);
        Some(counter)
    }
}

impl Serials {
    pub(crate) fn new(replica: ReplicaNumber) -> Self {
        Self { replica, block: Mutex::default(), refill: tokio::sync::Mutex::default() }
    }

    /// The next serial, and 64 more random bits drawn in the same go.
    pub(crate) async fn next(
        &self,
        store: &dyn Store,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<(Serial, u64), IssueError> {
        let counter = match self.take() {
            Some(counter) => counter,
            None => self.refilled(store, now).await?,
        };
        let mut random = [0; Serial::RANDOM_BYTES + 8];
        entropy.fill(&mut random).map_err(|_opaque| IssueError::NoEntropy)?;
        let (tail, draw) = random.split_at(Serial::RANDOM_BYTES);
        let tail: [u8; Serial::RANDOM_BYTES] = tail.try_into().unwrap_or_default();
        let draw: [u8; 8] = draw.try_into().unwrap_or_default();
        Ok((Serial::compose(self.replica, counter, tail), u64::from_be_bytes(draw)))
    }

    fn take(&self) -> Option<SerialCounter> {
        self.block.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// Reserves the next block; whoever waited meanwhile shares it. The async lock is held over the reservation, once
    /// in 65,536 certificates, and never by a request that finds a counter.
    async fn refilled(&self, store: &dyn Store, now: Timestamp) -> Result<SerialCounter, IssueError> {
        let _one_at_a_time = self.refill.lock().await;
        if let Some(counter) = self.take() {
            return Ok(counter);
        }
        let first = store.reserve_serials(BLOCK, now).await?;
        let mut block = self.block.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *block = Block { next: first.value(), end: first.value().saturating_add(u64::from(BLOCK)) };
        block.take().ok_or_else(|| StoreError::Bug { cause: "an empty block of serials".into() }.into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rhizome_core::entropy::EntropyError;
    use rhizome_store::MemoryStore;

    use super::*;

    /// The worst randomness there is: uniqueness must not need any.
    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
            bytes.fill(0);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_million_serials_are_unique_over_restarts_and_without_any_randomness() {
        let store = MemoryStore::new();
        let mut seen = HashSet::with_capacity(1_000_000);
        for process in 0..4 {
            let serials = Serials::new(ReplicaNumber::new(0).unwrap());
            for turn in 0..250_000 {
                // The clock moves on, and back.
                let now = Timestamp::from_unix(1_800_000_000 + (turn % 7) - process);
                let (serial, _) = serials.next(&store, &Zeros, now).await.unwrap();
                assert!(seen.insert(serial), "{serial}");
            }
        }
        assert_eq!(seen.len(), 1_000_000);
    }
}
