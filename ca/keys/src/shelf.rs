//! The proved keys of a ring, by name; shared by every ring that signs in this process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rhizome_core::ports::{KeyInfo, KeyRingError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{Signature, ToBeSigned};

use crate::signer::Signer;

#[derive(Default)]
pub(crate) struct Shelf {
    signers: RwLock<BTreeMap<KeyId, Arc<Signer>>>,
}

impl Shelf {
    pub(crate) fn find(&self, id: &KeyId) -> Option<Arc<Signer>> {
        // Poison safety here and below: every critical section is a single map operation.
        let signers = self.signers.read().unwrap_or_else(PoisonError::into_inner);
        signers.get(id).cloned()
    }

    pub(crate) fn put(&self, signer: Signer) -> KeyInfo {
        let info = signer.info().clone();
        let mut signers = self.signers.write().unwrap_or_else(PoisonError::into_inner);
        signers.insert(info.id.clone(), Arc::new(signer));
        info
    }

    pub(crate) fn remove(&self, id: &KeyId) {
        let mut signers = self.signers.write().unwrap_or_else(PoisonError::into_inner);
        signers.remove(id);
    }

    pub(crate) fn infos(&self) -> Vec<KeyInfo> {
        let signers = self.signers.read().unwrap_or_else(PoisonError::into_inner);
        signers.values().map(|signer| signer.info().clone()).collect()
    }

    pub(crate) fn info(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        Ok(self.get(id)?.info().clone())
    }

    pub(crate) async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        self.get(id)?.sign(message).await
    }

    pub(crate) async fn sign_token(
        &self,
        id: &KeyId,
        token: &TokenToBeSigned,
    ) -> Result<Signature, KeyRingError> {
        self.get(id)?.sign_token(token).await
    }

    fn get(&self, id: &KeyId) -> Result<Arc<Signer>, KeyRingError> {
        self.find(id).ok_or_else(|| KeyRingError::NotFound { id: id.clone() })
    }
}

/// Names only.
impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signers } = self;
        let signers = signers.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(signers.keys()).finish()
    }
}
