//! Two rings as one: the keys of roots in one, all others in the other.
//!
//! Laws: the purpose decides where a key is made; one name is one key over both rings; what lies in one ring works while
//! the other does not answer. Not here: the rings.

use std::sync::Arc;

use async_trait::async_trait;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{Signature, SigningAlgorithm, ToBeSigned};

/// The keys of roots in one ring, those of issuers and for tokens in another.
pub struct RoutedKeyRing {
    roots: Arc<dyn KeyRing>,
    others: Arc<dyn KeyRing>,
}

impl RoutedKeyRing {
    /// Puts the two together.
    pub fn new(roots: Arc<dyn KeyRing>, others: Arc<dyn KeyRing>) -> Self {
        Self { roots, others }
    }

    fn of(&self, purpose: KeyPurpose) -> (&dyn KeyRing, &dyn KeyRing) {
        match purpose {
            KeyPurpose::Root => (&*self.roots, &*self.others),
            KeyPurpose::Issuer | KeyPurpose::Jwt => (&*self.others, &*self.roots),
        }
    }

    /// The ring that has the key called `id`. The one that signs often is asked first.
    async fn holder(&self, id: &KeyId) -> Result<&dyn KeyRing, KeyRingError> {
        match self.others.key(id).await {
            Ok(_) => Ok(&*self.others),
            Err(KeyRingError::NotFound { .. }) => Ok(&*self.roots),
            // It may be the other's: that one knows.
            Err(cause) => match self.roots.key(id).await {
                Ok(_) => Ok(&*self.roots),
                Err(_) => Err(cause),
            },
        }
    }
}

#[async_trait]
impl KeyRing for RoutedKeyRing {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        let (ring, other) = self.of(purpose);
        // A ring that does not answer has no say: names are drawn at random, and no key is made twice by chance.
        if let Ok(found) = other.key(id).await {
            let (found, wanted) = (found.purpose.as_str(), purpose.as_str());
            let cause = format!("it is a {found} key, asked for was a {wanted} key");
            return Err(KeyRingError::Mismatch { id: id.clone(), cause });
        }
        ring.generate(id, purpose, algorithm).await
    }

    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        match self.others.key(id).await {
            Ok(found) => Ok(found),
            Err(KeyRingError::NotFound { .. }) => self.roots.key(id).await,
            Err(cause) => self.roots.key(id).await.map_err(|_also| cause),
        }
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        match self.others.sign(id, message).await {
            Err(KeyRingError::NotFound { .. }) => self.roots.sign(id, message).await,
            Err(cause @ KeyRingError::Unavailable { .. }) => match self.roots.key(id).await {
                Ok(_) => self.roots.sign(id, message).await,
                Err(_) => Err(cause),
            },
            outcome => outcome,
        }
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        match self.others.sign_token(id, token).await {
            // Never there; but whether such a key exists, and is for something else, is said by the ring that has it.
            Err(KeyRingError::NotFound { .. }) => self.roots.sign_token(id, token).await,
            outcome => outcome,
        }
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        let mut all = self.others.keys().await?;
        all.extend(self.roots.keys().await?);
        all.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(all)
    }

    async fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        self.of(purpose).0.import(id, purpose, algorithm, pkcs8).await
    }

    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        self.holder(id).await?.destroy(id).await
    }
}

#[cfg(test)]
mod tests {
    use rhizome_store::{FaultyStore, MemoryStore};

    use super::*;
    use crate::{DatabaseKeyRing, MemoryKeyRing, SealingKey, conformance};

    const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

    fn id(name: &str) -> KeyId {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn two_rings_keep_every_promise_of_the_port_as_one() {
        conformance::suite(|| async {
            RoutedKeyRing::new(Arc::new(MemoryKeyRing::new()), Arc::new(MemoryKeyRing::new()))
        })
        .await;
    }

    #[tokio::test]
    async fn roots_lie_in_one_ring_and_all_others_in_the_other() {
        let (roots, others) = (Arc::new(MemoryKeyRing::new()), Arc::new(MemoryKeyRing::new()));
        let ring =
            RoutedKeyRing::new(Arc::<MemoryKeyRing>::clone(&roots), Arc::<MemoryKeyRing>::clone(&others));
        for (name, purpose) in [("r", KeyPurpose::Root), ("i", KeyPurpose::Issuer), ("j", KeyPurpose::Jwt)] {
            ring.generate(&id(name), purpose, P256).await.unwrap();
        }
        let names = |keys: Vec<KeyInfo>| keys.iter().map(|key| key.id.to_string()).collect::<Vec<_>>();
        assert_eq!(names(roots.keys().await.unwrap()), ["r"]);
        assert_eq!(names(others.keys().await.unwrap()), ["i", "j"]);
    }

    #[tokio::test]
    async fn issuers_sign_and_are_made_while_the_ring_of_roots_is_away_and_the_reverse() {
        let store = Arc::new(FaultyStore::new(MemoryStore::new()));
        let sealing_key = SealingKey::from_text(&format!("{}01", "00".repeat(31))).unwrap();
        let database =
            DatabaseKeyRing::open(Arc::<FaultyStore<_>>::clone(&store), sealing_key).await.unwrap();
        let (database, memory): (Arc<dyn KeyRing>, Arc<dyn KeyRing>) =
            (Arc::new(database), Arc::new(MemoryKeyRing::new()));
        let cause = "pulled".to_owned();
        let retry_after = std::time::Duration::from_secs(1);
        let away =
            || Some(rhizome_core::ports::StoreError::Unavailable { cause: cause.clone(), retry_after });
        let probe = rhizome_x509::probe();

        let ring = RoutedKeyRing::new(Arc::clone(&database), Arc::clone(&memory));
        ring.generate(&id("r"), KeyPurpose::Root, P256).await.unwrap();
        ring.generate(&id("i"), KeyPurpose::Issuer, P256).await.unwrap();
        store.fail_reads(away());
        ring.sign(&id("i"), &probe).await.unwrap();
        ring.generate(&id("i2"), KeyPurpose::Issuer, P256).await.unwrap();
        ring.destroy(&id("i2")).await.unwrap();
        assert!(matches!(ring.sign(&id("r"), &probe).await, Err(KeyRingError::Unavailable { .. })));
        assert!(matches!(ring.key(&id("r")).await, Err(KeyRingError::Unavailable { .. })));

        store.fail_reads(None);
        let reversed = RoutedKeyRing::new(memory, database);
        reversed.generate(&id("r2"), KeyPurpose::Root, P256).await.unwrap();
        store.fail_reads(away());
        reversed.sign(&id("r2"), &probe).await.unwrap();
        reversed.destroy(&id("r2")).await.unwrap();
    }
}
