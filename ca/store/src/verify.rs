//! Walks a store's ledger from its first record to its head.
//!
//! Not here: what makes a chain whole (`rhizome_core::ledger::Verifier`).

use rhizome_core::ledger::{Fault, Head, Position, Verifier};
use rhizome_core::ports::{Store, StoreError};

use crate::limits::WALK_PAGE;

/// Verifies the whole hash chain up to the head at the time of the call, and gives that head. Commits may go on.
///
/// # Errors
/// [`StoreError::Corrupt`] names the first position at which the chain does not hold; any other [`StoreError`] means
/// that the ledger could not be read.
pub async fn verify_ledger(store: &dyn Store) -> Result<Head, StoreError> {
    let head = store.head().await?;
    let mut verifier = Verifier::default();
    while verifier.head().position < head.position {
        let from = Position(verifier.head().position.0.saturating_add(1));
        let missing = head.position.0.saturating_sub(verifier.head().position.0);
        let limit = usize::try_from(missing).unwrap_or(WALK_PAGE).min(WALK_PAGE);
        let records = store.records(from, limit).await?;
        if records.is_empty() {
            break; // `finish` names what is missing.
        }
        records.iter().try_for_each(|record| verifier.check(record)).map_err(corrupt)?;
    }
    verifier.finish(head).map_err(corrupt)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn corrupt(fault: Fault) -> StoreError {
    StoreError::Corrupt { cause: fault.to_string() }
}
