//! Certificates that end with their holder: what an evicted node or a removed administrator still holds.
//!
//! Laws: a name that is free again must not be reached with a certificate of its earlier life, so every unexpired one
//! is revoked before the name is free, not only the newest; the ledger knows them all. Whoever is to be ended cannot
//! hold that up by changing its record again and again.
//! Not here: revoking single certificates (`certificates`).

use std::sync::Arc;

use rhizome_core::documents::{Stored, Transaction};
use rhizome_core::ledger::{Event, Issuance, Position, Record};
use rhizome_core::ports::StoreError;
use rhizome_core::state::Revocation;
use rhizome_id::{SpiffeId, Timestamp, Ttl};
use rhizome_x509::RevocationCode;

use crate::ca::Ca;
use crate::error::ApiError;

/// Records read from the store in one go.
const READ_AT_ONCE: u64 = 2_000;
/// How far clocks of different moments may disagree before a record is missed: an hour, beyond any sane correction.
const CLOCK_SLACK_SECONDS: i64 = 3_600;

/// Certificates revoked in one transaction: three parts each, of the ten thousand that a store takes.
const REVOKED_AT_ONCE: usize = 1_000;
/// How often an ending is tried again when the record changed at the same moment, such as by a renewal.
pub(super) const TRIES: usize = 16;

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
            if oldest.map_err(|fault| ApiError::Bug(fault.to_string()))?.is_none_or(|(at, _)| at < reaches_to)
            {
                break;
            }
            last = first.saturating_sub(1);
        }
        Ok(held)
    }

    /// Performs `last`, the transaction that frees a name, together with the revocation of `held`, whose `holder` is
    /// told to stop serving them. Should they be more than one transaction takes, the oldest are revoked beforehand.
    pub(super) async fn end(
        self: &Arc<Self>,
        last: Transaction,
        held: &[Issuance],
        holder: &str,
        ending: &Ending<'_>,
    ) -> Result<(), StoreError> {
        let (newest, others) = held.split_at(held.len().min(REVOKED_AT_ONCE));
        for some in others.chunks(REVOKED_AT_ONCE) {
            let before = Transaction::named("revoke certificates of an ending holder");
            self.commit(self.revoking(before, some, holder, ending)).await?;
        }
        self.commit(self.revoking(last, newest, holder, ending)).await?;
        Ok(())
    }

    fn revoking(
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
                issuer: Some(issuance.issuer.clone()),
                code: RevocationCode::PrivilegeWithdrawn,
            };
            let serial = issuance.serial.to_string();
            let entry = self.changed(ending.by, "certificate.revoke", &serial, ending.reason);
            transaction = transaction.require_absent(revocation.key()).put(&revocation).record(entry);
        }
        transaction
    }
}
