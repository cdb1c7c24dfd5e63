//! What every backend refuses or computes alike: the shape of a transaction, and where serials start.
//!
//! Laws: a malformed transaction never reaches a backend; it is a fault of ours ([`StoreError::Bug`]), since callers
//! bound what people send. Not here: requirements, which depend on what is stored.

use std::collections::BTreeSet;

use rhizome_core::documents::{DocumentKey, Requirement, Transaction, Version, Write};
use rhizome_core::ledger::{Entry, Record};
use rhizome_core::ports::StoreError;
use rhizome_id::{Digest, SerialCounter, Timestamp};
use ring::digest::{Context, SHA256};
use serde::de::IgnoredAny;

use crate::limits::{MAX_DOCUMENT_BYTES, MAX_ENTRY_BYTES, MAX_ID_BYTES, MAX_TRANSACTION_PARTS};

/// Checks everything about a transaction that does not depend on what is stored.
///
/// # Errors
/// [`StoreError::Bug`] names the part that no store may keep.
pub(crate) fn check(transaction: &Transaction) -> Result<(), StoreError> {
    let Transaction { name, requirements, writes, entries } = transaction;
    let parts = requirements.len().saturating_add(writes.len()).saturating_add(entries.len());
    if parts > MAX_TRANSACTION_PARTS {
        return Err(bug(format!("transaction {name} has {parts} parts, above {MAX_TRANSACTION_PARTS}")));
    }
    let mut keys = requirements.iter().map(Requirement::key).chain(writes.iter().map(Write::key));
    keys.try_for_each(check_key)?;
    writes.iter().try_for_each(check_write)?;
    check_entries(name, entries)
}

fn check_key(key: &DocumentKey) -> Result<(), StoreError> {
    if key.id.is_empty() || key.id.len() > MAX_ID_BYTES {
        let (kind, bytes) = (key.kind.as_str(), key.id.len());
        return Err(bug(format!("an id of kind {kind} has {bytes} bytes; allowed are 1 to {MAX_ID_BYTES}")));
    }
    Ok(())
}

fn check_write(write: &Write) -> Result<(), StoreError> {
    let Write::Put(key, body) = write else {
        return Ok(());
    };
    if body.len() > MAX_DOCUMENT_BYTES {
        let bytes = body.len();
        return Err(bug(format!("the body of {key} has {bytes} bytes, above {MAX_DOCUMENT_BYTES}")));
    }
    match serde_json::from_str::<IgnoredAny>(body) {
        Ok(_) => Ok(()),
        Err(cause) => Err(bug(format!("the body of {key} is not JSON: {cause}"))),
    }
}

fn check_entries(name: &str, entries: &[Entry]) -> Result<(), StoreError> {
    for entry in entries {
        let bytes = entry.body().len();
        // Entries are made by `Entry::new` alone, whose body is JSON or, should serialising ever fail, empty: parsing
        // it here again would cost as much as writing it.
        if bytes == 0 || bytes > MAX_ENTRY_BYTES {
            return Err(bug(format!(
                "a {} entry of {name} has {bytes} bytes; allowed are 1 to {MAX_ENTRY_BYTES}",
                entry.event_name()
            )));
        }
    }
    if entries.len() > 1 {
        let mut seen = BTreeSet::new();
        if let Some(twice) = entries.iter().filter_map(Entry::counter).find(|counter| !seen.insert(*counter))
        {
            return Err(used_serial(twice));
        }
    }
    Ok(())
}

/// About how many bytes a transaction adds to a batch.
pub(crate) fn weight(transaction: &Transaction) -> usize {
    let writes = transaction.writes.iter().map(|write| match write {
        Write::Put(key, body) => key.id.len().saturating_add(body.len()),
        Write::Delete(key) => key.id.len(),
    });
    let entries = transaction.entries.iter().map(|entry| entry.body().len());
    writes.chain(entries).fold(0, usize::saturating_add)
}

/// A serial that the ledger already has: issuing must stop there, two certificates never share one.
pub(crate) fn used_serial(counter: SerialCounter) -> StoreError {
    bug(format!("serial counter {} was recorded before; nothing is issued under it again", counter.value()))
}

pub(crate) const fn bug(cause: String) -> StoreError {
    StoreError::Bug { cause }
}

/// Counters set aside: the first, and the first one that is free after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) first: SerialCounter,
    pub(crate) next: u64,
}

/// Where a block of `count` counters starts: behind everything given out (`next`) or recorded (`highest`), and no
/// lower than the clock says, so that an older copy of the database never gives one out twice.
///
/// # Errors
/// [`StoreError::Bug`] for an empty block, and when no 56-bit counters are left.
pub(crate) fn reserve(
    next: u64,
    highest: Option<SerialCounter>,
    count: u32,
    now: Timestamp,
) -> Result<Block, StoreError> {
    if count == 0 {
        return Err(bug("a block of no serials was asked for".to_owned()));
    }
    let clock = u64::try_from(now.unix()).unwrap_or(0).saturating_mul(SERIALS_PER_SECOND);
    let recorded = highest.map_or(0, |counter| counter.value().saturating_add(1));
    let start = next.max(recorded).max(clock);
    let end = start.saturating_add(u64::from(count));
    match (SerialCounter::new(start), SerialCounter::new(end.saturating_sub(1))) {
        (Some(first), Some(_last)) => Ok(Block { first, next: end }),
        _ => Err(bug(format!("serial counters are used up: {start} and {count} more pass 2^56"))),
    }
}

/// Counters per second of the clock: `Store::reserve_serials` promises that blocks start no lower than this many
/// times the seconds since 1970.
const SERIALS_PER_SECOND: u64 = 1 << 20;

/// The highest counter among `records`, or `before`.
pub(crate) fn highest(before: Option<SerialCounter>, records: &[Record]) -> Option<SerialCounter> {
    records.iter().filter_map(|record| record.counter).chain(before).max()
}

/// Detects bytes that changed on disk; it is no defence against somebody who may write the file.
pub(crate) fn checksum(kind: &str, id: &str, version: Version, body: &str) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(b"rhizome.document.v1\0");
    for part in [kind, id, body] {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.update(&version.0.to_be_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Digest::from_bytes(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(value: u64) -> SerialCounter {
        SerialCounter::new(value).unwrap()
    }

    #[test]
    fn a_block_starts_behind_the_clock_the_last_block_and_the_last_record() {
        let start = |next, highest: Option<u64>, now| {
            reserve(next, highest.map(counter), 10, Timestamp::from_unix(now)).unwrap().first.value()
        };
        assert_eq!(start(0, None, 3), 3 << 20);
        assert_eq!(start(9 << 20, None, 3), 9 << 20);
        assert_eq!(start(0, Some(9 << 20), 3), (9 << 20) + 1);
    }

    #[test]
    fn the_last_counter_is_given_out_and_none_beyond_it() {
        let last = SerialCounter::MAX.value();
        assert_eq!(reserve(last, None, 1, Timestamp::EPOCH).unwrap().first, SerialCounter::MAX);
        assert!(reserve(last, None, 2, Timestamp::EPOCH).is_err());
        assert!(reserve(0, Some(SerialCounter::MAX), 1, Timestamp::EPOCH).is_err());
        assert!(reserve(u64::MAX, None, u32::MAX, Timestamp::MAX).is_err());
    }

    #[test]
    fn an_empty_block_is_refused() {
        assert!(reserve(0, None, 0, Timestamp::EPOCH).is_err());
    }
}
