//! Keys that die with the process: for tests, and for `rhizome dev` without a directory.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{Signature, SigningAlgorithm, ToBeSigned};

use crate::shelf::Shelf;
use crate::signer::{Signer, adopted, generate_pkcs8, unavailable};

/// A key ring in memory.
#[derive(Debug, Default)]
pub struct MemoryKeyRing {
    shelf: Shelf,
    /// One key is made at a time, so that two callers who ask for one name get one key.
    making: Mutex<()>,
}

impl MemoryKeyRing {
    /// An empty ring.
    pub fn new() -> Self {
        Self::default()
    }

    fn make(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(existing) = self.shelf.find(id) {
            existing.expect(purpose, algorithm)?;
            return Ok(existing.info().clone());
        }
        let pkcs8 = generate_pkcs8(algorithm).map_err(|defect| unavailable(&defect))?;
        let signer = Signer::prove(id.clone(), purpose, algorithm, &pkcs8);
        Ok(self.shelf.put(signer.map_err(|defect| unavailable(&defect))?))
    }
}

#[async_trait]
impl KeyRing for MemoryKeyRing {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        self.make(id, purpose, algorithm)
    }

    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        self.shelf.info(id)
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        self.shelf.sign(id, message).await
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        self.shelf.sign_token(id, token).await
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        Ok(self.shelf.infos())
    }

    async fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let existing = self.shelf.find(id);
        let existing = existing.as_ref().map(|existing| existing.info());
        Ok(self.shelf.put(adopted(existing, id, purpose, algorithm, pkcs8)?))
    }

    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        self.shelf.remove(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn the_memory_ring_keeps_every_promise_of_the_port() {
        conformance::suite(|| std::future::ready(MemoryKeyRing::new())).await;
    }
}
