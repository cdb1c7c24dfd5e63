//! The keys of authorities in practice: made before anything is written about them, and destroyed once nobody names them.
//!
//! Laws: a key is called as its authority is; one whose record is known not to be stored is destroyed at once, one of which
//! that is not known as soon as the store says so; one whose ring does not answer is tried again.
//! Not here: authorities (`rotate`), the rings (`rhizome_keys`).

use std::sync::{MutexGuard, PoisonError};

use rhizome_core::authority::{Authority, AuthorityKind, AuthorityState, Custody};
use rhizome_core::documents::{DocumentKey, Kind, Stored as _, Transaction};
use rhizome_core::ports::{KeyInfo, KeyPurpose, StoreError};
use rhizome_id::{AuthorityId, KeyId, Timestamp};
use rhizome_x509::SigningAlgorithm;

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

/// What the ledger calls it when an issuer is forgotten because the root above it goes.
pub(crate) const FORGET_WITH_ROOT: &str = "authority.forget_with_root";

impl Ca {
    /// A name nobody had before, and a key of that name. The name is also the certificate's subject, or the `kid`.
    pub(crate) async fn new_key(
        &self,
        kind: AuthorityKind,
        now: Timestamp,
    ) -> Result<(AuthorityId, KeyInfo), ApiError> {
        let id = self.new_authority_name(kind, now)?;
        let purpose = match kind {
            AuthorityKind::Root => KeyPurpose::Root,
            AuthorityKind::Issuer => KeyPurpose::Issuer,
            AuthorityKind::Jwt => KeyPurpose::Jwt,
        };
        let key = self.key_called(&id, purpose, self.settings.algorithm).await?;
        Ok((id, key))
    }

    /// A name nobody had before.
    pub(crate) fn new_authority_name(
        &self,
        kind: AuthorityKind,
        now: Timestamp,
    ) -> Result<AuthorityId, ApiError> {
        let mut random = [0; 4];
        self.ports.entropy.fill(&mut random).map_err(|_opaque| IssueError::NoEntropy)?;
        let date: String = now.to_string().chars().filter(char::is_ascii_digit).take(8).collect();
        let text = format!("{kind}-{date}-{}", hex::encode(random));
        text.parse().map_err(|cause: rhizome_id::NameError| ApiError::Bug(cause.to_string()))
    }

    /// The key of the authority `id`, made when there is none: it is called as its authority is.
    pub(crate) async fn key_called(
        &self,
        id: &AuthorityId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, ApiError> {
        let key: Result<KeyId, rhizome_id::NameError> = id.as_str().parse();
        let key = key.map_err(|cause| ApiError::Bug(cause.to_string()))?;
        Ok(self.ports.keys.generate(&key, purpose, algorithm).await.map_err(IssueError::from)?)
    }

    /// Destroys a key that no document names and none will: trying again makes another one.
    pub(crate) async fn give_up(&self, key: &KeyInfo, cause: IssueError) -> ApiError {
        self.forget_key(key).await;
        cause.into()
    }

    /// Passes on what came of storing the record of `key`; where it is not stored, nobody will ever name the key.
    pub(crate) async fn placed(
        &self,
        stored: Result<(), ApiError>,
        id: &AuthorityId,
        key: &KeyInfo,
    ) -> Result<(), ApiError> {
        match &stored {
            Ok(()) => {}
            // Whether the record is stored is not known: by the next try it is.
            Err(ApiError::Store(StoreError::Unavailable { .. } | StoreError::Bug { .. })) => {
                self.unplaced_keys().push((id.clone(), key.clone()));
            }
            Err(_nothing_happened) => self.forget_key(key).await,
        }
        stored
    }

    fn unplaced_keys(&self) -> MutexGuard<'_, Vec<(AuthorityId, KeyInfo)>> {
        self.unplaced_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Destroys keys whose records turn out not to be stored.
    pub(crate) async fn settle_unplaced_keys(&self) {
        let unplaced = std::mem::take(&mut *self.unplaced_keys());
        for (id, key) in unplaced {
            match self.ports.store.document(&DocumentKey::new(Kind::Authority, id.to_string())).await {
                Ok(Some(_)) => {}
                Ok(None) => self.forget_key(&key).await,
                Err(_) => self.unplaced_keys().push((id, key)),
            }
        }
    }

    pub(crate) async fn forget_key(&self, key: &KeyInfo) {
        self.spent_keys().push(key.id.clone());
        self.destroy_spent_keys().await;
    }

    pub(crate) fn spent_keys(&self) -> MutexGuard<'_, Vec<KeyId>> {
        self.spent_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Destroys keys whose records are gone. One whose ring does not answer (a token that is pulled out) is tried again with
    /// every look at the authorities; the records are gone first, so that nobody relies on a key that is being destroyed.
    pub(crate) async fn destroy_spent_keys(&self) {
        let spent = std::mem::take(&mut *self.spent_keys());
        for key in spent {
            if let Err(kept) = self.ports.keys.destroy(&key).await {
                tracing::error!(%key, %kept, "a key that nobody needs could not be destroyed; trying again while this \
                    server runs: before you stop it, let it reach the key ring, or destroy the key there by hand");
                self.spent_keys().push(key);
            }
        }
    }
}

/// Errors when the root's key is elsewhere, and with it whoever can make an issuer.
pub(crate) fn can_sign_issuers(root: &Authority) -> Result<(), ApiError> {
    match root.custody {
        Custody::Here => Ok(()),
        Custody::Elsewhere => Err(ApiError::Conflict {
            what: "root",
            name: root.id.to_string(),
            problem: "has its key elsewhere, so this server makes no issuers: bring one with `rhizome root ceremony`",
        }),
    }
}

/// Forgets, with a root that goes, the issuers below it that sign no more, and their revocation lists: what they signed is
/// trusted by nobody, and their lists would be refused as foreign. Also gives the keys that then have no record.
pub(crate) fn forget_below(
    ca: &Ca,
    mut transaction: Transaction,
    root: &AuthorityId,
) -> (Transaction, Vec<KeyId>) {
    let (state, mut unused) = (ca.state(), Vec::new());
    let below = state.authorities().values().filter(|it| it.value.issuer.as_ref() == Some(root));
    for issuer in below.filter(|it| it.value.state != AuthorityState::Active) {
        let key = issuer.value.key();
        let crl = DocumentKey::new(Kind::Crl, issuer.value.id.to_string());
        let entry = ca.changed("server", FORGET_WITH_ROOT, issuer.value.id.as_str(), root.as_str());
        transaction = transaction.require_unchanged(key.clone(), issuer.version).delete(key).delete(crl);
        transaction = transaction.record(entry);
        unused.push(issuer.value.key.clone());
    }
    (transaction, unused)
}
