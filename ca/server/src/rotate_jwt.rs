//! The keys of JWT-SVIDs in practice: made and published in one step, and taken out of service by hand.
//!
//! Laws: the record of a key and the bundle that shows it are written in one transaction, so a key is published before it
//! can sign, and gone from the bundle when its record is; the bundle's sequence grows with each change. A tainted key
//! leaves the bundle in the transaction that taints it.
//! Not here: which key signs when (`rhizome_core::authority`); activating, retiring and forgetting (`rotate`).

use std::sync::Arc;

use rhizome_core::authority::{self, AuthorityKind, AuthorityState, JwtAuthority};
use rhizome_core::documents::{Stored, Transaction};
use rhizome_core::ports::StoreError;
use rhizome_core::state::BundleRecord;
use rhizome_id::{AuthorityId, Timestamp};
use rhizome_x509::{Bundle, JwtKey};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

impl Ca {
    /// Makes a key and publishes it; it signs nothing yet.
    pub(crate) async fn make_jwt_key(self: &Arc<Self>, now: Timestamp, reason: &str) -> Result<(), ApiError> {
        let validity = authority::jwt_validity(now, &self.settings.rotation);
        let validity = validity.ok_or_else(|| ApiError::Bug("a JWT key cannot be valid now".into()))?;
        let published = self.bundle().map_or(0, |it| it.bundle.sequence()).saturating_add(1);
        let (id, key) = self.new_key(AuthorityKind::Jwt, now).await?;
        let jwt_key = JwtKey::new(id.to_string(), key.public_key.clone(), validity.not_after);
        let record = JwtAuthority {
            id: id.clone(),
            replica: self.settings.replica.clone(),
            key: key.id.clone(),
            algorithm: key.algorithm,
            jwt_key: jwt_key.map_err(|bad| ApiError::Bug(bad.to_string()))?,
            not_before: validity.not_before,
            published,
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
        };
        let entry = self.changed("server", "authority.prepare", id.as_str(), reason);
        let transaction = Transaction::named("prepare JWT key").require_absent(record.key());
        let transaction = transaction.put(&record).record(entry);
        let transaction = self.republishing(transaction, Some(record.jwt_key.clone()), None, now)?;
        match self.commit(transaction).await {
            Ok(_committed) => {
                tracing::info!(authority = %id, reason, published, "JWT key prepared and published");
                Ok(())
            }
            // Nothing happened, so nothing names the key.
            Err(conflict @ StoreError::Conflict { .. }) => Err(self.give_up(&key, conflict.into()).await),
            Err(unknown) => Err(unknown.into()),
        }
    }

    /// Adds to `transaction` the bundle that follows the published one: with `added`, without `removed`, and, while the
    /// clock is settled, without what has expired at `now`. Adds nothing when that is no other bundle.
    pub(crate) fn republishing(
        &self,
        transaction: Transaction,
        added: Option<JwtKey>,
        removed: Option<&str>,
        now: Timestamp,
    ) -> Result<Transaction, ApiError> {
        let state = self.state();
        let Some(published) = state.bundle() else { return Ok(transaction) };
        let detail = match (&added, removed) {
            (Some(key), _) => format!(", with JWT key {}", key.kid()),
            (None, Some(kid)) => format!(", without JWT key {kid}"),
            (None, None) => ", without expired JWT keys".to_owned(),
        };
        let record = BundleRecord::of(&published.value.bundle);
        // By a clock that may be wrong nothing has expired.
        let at = if self.clock.settled() { now } else { Timestamp::EPOCH };
        let Some(next) = record.with_jwt_keys(added, removed, at) else { return Ok(transaction) };
        // What is committed must be usable: 64 keys are the limit.
        Bundle::try_from(next.clone())
            .map_err(|full| ApiError::Bug(format!("no further JWT key: {full}")))?;
        let detail = format!("sequence {}{detail}", next.sequence);
        let entry = self.changed("server", "bundle.publish", next.trust_domain.as_str(), &detail);
        Ok(transaction.require_unchanged(next.key(), published.version).put(&next).record(entry))
    }

    /// Takes a JWT key out of service for good: it signs no more, and it leaves the bundle, so that every token it signed
    /// is refused by whoever has the new bundle. Another key takes its place at once. Tainting it again changes nothing.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when there is no such key.
    pub(crate) async fn taint_jwt_key(
        self: &Arc<Self>,
        id: &AuthorityId,
        by: &str,
        reason: &str,
    ) -> Result<(), ApiError> {
        let now = self.now()?;
        let state = self.state();
        let missing = || ApiError::NotFound { what: "JWT key", name: id.to_string() };
        let held = state.jwt_authorities().get(id).ok_or_else(missing)?;
        if let Some(tainted) = held.value.tainted() {
            let entry = self.changed(by, "authority.taint", id.as_str(), reason);
            let transaction =
                Transaction::named("taint JWT key").require_unchanged(tainted.key(), held.version);
            let transaction = transaction.put(&tainted).record(entry);
            let transaction = self.republishing(transaction, None, Some(id.as_str()), now)?;
            self.commit(transaction).await.map_err(IssueError::from)?;
            tracing::warn!(authority = %id, by, reason, "JWT key tainted");
        }
        self.keep_authorities().await
    }
}
