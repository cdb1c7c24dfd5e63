//! The keys of JWT-SVIDs in practice: made and published in one step, and taken out of service by hand.
//!
//! Laws: the record of a key and the bundle that shows it are written in one transaction, so a key is published before it
//! can sign, and gone from the bundle when its record is; the bundle's sequence grows with each change. A tainted key
//! leaves the bundle in the transaction that taints it.
//! Not here: which key signs when (`rhizome_core::authority`); activating, retiring and forgetting (`rotate`).

use std::sync::{Arc, MutexGuard, PoisonError};

use rhizome_core::authority::{self, AuthorityKind, AuthorityState, JwtAuthority};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction};
use rhizome_core::ports::{KeyInfo, StoreError};
use rhizome_core::renewal::Validity;
use rhizome_core::state::BundleRecord;
use rhizome_id::{AuthorityId, Timestamp};
use rhizome_x509::{Bundle, JwtKey};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

impl Ca {
    /// Makes a key and publishes it; it signs nothing yet. A key that comes to nothing is destroyed, and one of which that is
    /// not known is used again at the next try.
    pub(crate) async fn make_jwt_key(self: &Arc<Self>, now: Timestamp, reason: &str) -> Result<(), ApiError> {
        let validity = authority::jwt_validity(now, &self.settings.rotation);
        let validity = validity.ok_or_else(|| ApiError::Bug("a JWT key cannot be valid now".into()))?;
        let spare = self.spare_jwt_key().take();
        // One whose record was stored after all has its place.
        let spare = spare.filter(|(id, _)| !self.state().jwt_authorities().contains_key(id));
        let (was_spare, (id, key)) = match spare {
            Some(spare) => (true, spare),
            None => (false, self.new_key(AuthorityKind::Jwt, now).await?),
        };
        match self.store_jwt_key(&id, &key, validity, now, reason).await {
            Ok(()) => Ok(()),
            // Whether the record is stored is not known: by the next try it is.
            Err(unknown @ ApiError::Store(StoreError::Unavailable { .. } | StoreError::Bug { .. })) => {
                *self.spare_jwt_key() = Some((id, key));
                Err(unknown)
            }
            // The try before may have stored it, and the state does not know of it yet.
            Err(known) if was_spare => {
                let document = DocumentKey::new(Kind::JwtAuthority, id.to_string());
                match self.ports.store.document(&document).await {
                    Ok(None) => self.forget_key(&key).await,
                    Ok(Some(_)) => {}
                    Err(_) => *self.spare_jwt_key() = Some((id, key)),
                }
                Err(known)
            }
            Err(nothing_happened) => {
                self.forget_key(&key).await;
                Err(nothing_happened)
            }
        }
    }

    async fn store_jwt_key(
        self: &Arc<Self>,
        id: &AuthorityId,
        key: &KeyInfo,
        validity: Validity,
        now: Timestamp,
        reason: &str,
    ) -> Result<(), ApiError> {
        let jwt_key = JwtKey::new(id.to_string(), key.public_key.clone(), validity.not_after);
        let jwt_key = jwt_key.map_err(|bad| ApiError::Bug(bad.to_string()))?;
        let transaction = Transaction::named("prepare JWT key");
        let (transaction, published) = self.republishing(transaction, Some(jwt_key.clone()), None, now)?;
        let record = JwtAuthority {
            id: id.clone(),
            replica: self.settings.replica.clone(),
            key: key.id.clone(),
            algorithm: key.algorithm,
            jwt_key,
            not_before: validity.not_before,
            published,
            state: AuthorityState::Prepared,
            prepared_at: now,
            activated_at: None,
        };
        let entry = self.changed("server", "authority.prepare", id.as_str(), reason);
        self.commit(transaction.require_absent(record.key()).put(&record).record(entry)).await?;
        tracing::info!(authority = %id, reason, published, "JWT key prepared and published");
        Ok(())
    }

    fn spare_jwt_key(&self) -> MutexGuard<'_, Option<(AuthorityId, KeyInfo)>> {
        self.spare_jwt_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to `transaction` the bundle that follows the published one: with `added`, without `removed`, and, while the
    /// clock is settled, without what has expired at `now`. Adds nothing when that is no other bundle. Also the sequence
    /// of the bundle that is in force after the transaction.
    pub(crate) fn republishing(
        &self,
        transaction: Transaction,
        added: Option<JwtKey>,
        removed: Option<&str>,
        now: Timestamp,
    ) -> Result<(Transaction, u64), ApiError> {
        let state = self.state();
        let Some(published) = state.bundle() else { return Ok((transaction, 0)) };
        if self.upstream.is_some() {
            // It is the bundle of the Rhizome above, and changes there alone.
            return Ok((transaction, published.value.bundle.sequence()));
        }
        let detail = match (&added, removed) {
            (Some(key), _) => format!(", with JWT key {}", key.kid()),
            (None, Some(kid)) => format!(", without JWT key {kid}"),
            (None, None) => ", without expired JWT keys".to_owned(),
        };
        let record = BundleRecord::of(&published.value.bundle);
        // By a clock that may be wrong nothing has expired.
        let at = if self.clock.settled() { now } else { Timestamp::EPOCH };
        let sequence = record.sequence;
        let Some(next) = record.with_jwt_keys(added, removed, at) else { return Ok((transaction, sequence)) };
        // What is committed must be usable: 64 keys are the limit.
        Bundle::try_from(next.clone())
            .map_err(|full| ApiError::Bug(format!("no further JWT key: {full}")))?;
        let detail = format!("sequence {}{detail}", next.sequence);
        let entry = self.changed("server", "bundle.publish", next.trust_domain.as_str(), &detail);
        let transaction = transaction.require_unchanged(next.key(), published.version);
        Ok((transaction.put(&next).record(entry), next.sequence))
    }

    /// Takes a JWT key out of service for good: it signs no more, and it leaves the bundle, so that every token it signed
    /// is refused by whoever has the new bundle. Another key is made at once, and signs when its followers have heard of it or were waited
    /// for long enough. Tainting it again changes nothing.
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
            let (transaction, _) = self.republishing(transaction, None, Some(id.as_str()), now)?;
            self.commit(transaction).await.map_err(IssueError::from)?;
            tracing::warn!(authority = %id, by, reason, "JWT key tainted");
        }
        self.keep_authorities().await
    }
}
