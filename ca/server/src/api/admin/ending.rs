//! Certificates that end with their holder: what an evicted node or a removed administrator still holds.
//!
//! Laws: a name that is free again must not be reached with a certificate of its earlier life, so every unexpired one
//! is revoked in the transaction that frees the name, not only the newest. The ledger knows them all.
//! Not here: revoking single certificates (`certificates`).

use rhizome_core::documents::{Stored, Transaction};
use rhizome_core::ledger::{Event, Issuance, Position, Record};
use rhizome_core::state::Revocation;
use rhizome_id::{SpiffeId, Timestamp, Ttl};

use crate::ca::Ca;
use crate::error::ApiError;

/// Records read from the store in one go.
const READ_AT_ONCE: u64 = 2_000;
/// How far clocks of different moments may disagree before a record is missed: an hour, beyond any sane correction.
const CLOCK_SLACK_SECONDS: i64 = 3_600;

/// Who ends something, when and why.
pub(super) struct Ending<'a> {
    pub(super) by: &'a str,
    pub(super) reason: &'a str,
    pub(super) at: Timestamp,
}

impl Ca {
    /// The certificates of identity `id` that may be valid at `now`, newest first, not counting revoked ones. Reads
    /// the ledger back as far as the lifetime `longest` reaches.
    pub(super) async fn held_by(
        &self,
        id: &SpiffeId,
        longest: Ttl,
        now: Timestamp,
    ) -> Result<Vec<Issuance>, ApiError> {
        let reaches_to = now.minus(longest.seconds()).minus(CLOCK_SLACK_SECONDS);
        let mut held = Vec::new();
        let mut last = self.ports.store.head().await?.position.0;
        while last > 0 {
            let count = READ_AT_ONCE.min(last);
            let first = last.saturating_sub(count).saturating_add(1);
            let limit = usize::try_from(count).unwrap_or(usize::MAX);
            let records = self.ports.store.records(Position(first), limit).await?;
            // Most records are of others: only those that hold the very text are worth reading.
            let mentions = |record: &&Record| record.counter.is_some() && record.body.contains(id.as_str());
            for record in records.iter().rev().filter(mentions) {
                let (_, event) = record.read().map_err(|fault| ApiError::Bug(fault.to_string()))?;
                if let Event::Issued(issuance) = event
                    && issuance.spiffe_id == *id
                    && issuance.not_after >= now
                    && !self.state().is_revoked(&issuance.serial)
                {
                    held.push(issuance);
                }
            }
            let oldest = records.first().map(Record::read).transpose();
            if oldest.map_err(|fault| ApiError::Bug(fault.to_string()))?.is_none_or(|(at, _)| at < reaches_to) {
                break;
            }
            last = first.saturating_sub(1);
        }
        Ok(held)
    }

    /// Adds to `transaction` the revocation of `held`, whose `holder` is told to stop serving them.
    pub(super) fn revoking(
        &self,
        mut transaction: Transaction,
        held: &[Issuance],
        holder: &str,
        ending: &Ending<'_>,
    ) -> Transaction {
        for issuance in held {
            let revocation = Revocation {
                serial: issuance.serial,
                reason: ending.reason.to_owned(),
                by: ending.by.to_owned(),
                at: ending.at,
                not_after: issuance.not_after,
                spiffe_id: issuance.spiffe_id.clone(),
                holder: holder.to_owned(),
            };
            let entry =
                self.changed(ending.by, "certificate.revoke", &issuance.serial.to_string(), ending.reason);
            transaction = transaction.require_absent(revocation.key()).put(&revocation).record(entry);
        }
        transaction
    }
}
