//! Keys sealed in the database: any replica that was given the sealing key can take over.
//!
//! Laws: a key is a document, sealed as a key file is (`envelope`) and never changed but to be sealed anew; two replicas
//! that make one key at once both get the one that was written first; a key of a root is opened for each signature and
//! not kept in memory, so that one destroyed by any replica signs nowhere; the others are kept, since each belongs to
//! one replica and signs often. Not here: where the sealing key comes from, the database (`rhizome-store`).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use rhizome_core::documents::{Document, DocumentKey, Kind, Requirement, Transaction, Write};
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError, Store, StoreError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{Signature, SigningAlgorithm, ToBeSigned};
use zeroize::Zeroizing;

use crate::envelope::{Protection, Wiped};
use crate::sealing::SealingKeys;
use crate::shelf::Shelf;
use crate::signer::{Signer, adopted, blocking, generate_pkcs8, mismatch, unavailable};

/// Documents read in one go.
const PAGE: usize = 200;

/// A key ring in the database, sealed under [`SealingKeys`]. Any number of processes use it at a time.
pub struct DatabaseKeyRing {
    store: Arc<dyn Store>,
    protection: Arc<Protection>,
    /// Keys of issuers and for tokens that this process has used.
    shelf: Shelf,
}

impl DatabaseKeyRing {
    /// Opens the ring and proves every key in it. What lies under another of the sealing keys than the first is sealed
    /// anew under the first.
    ///
    /// # Errors
    /// [`KeyRingError::Sealed`] when a key was sealed under another sealing key; [`KeyRingError::Corrupt`] when a
    /// document is damaged, was altered, or belongs to another key; [`KeyRingError::Unavailable`] when the database does
    /// not answer.
    pub async fn open(
        store: Arc<dyn Store>,
        sealing_keys: impl Into<Arc<SealingKeys>>,
    ) -> Result<Self, KeyRingError> {
        let protection = Arc::new(Protection::Sealed(sealing_keys.into()));
        let ring = Self { store, protection, shelf: Shelf::default() };
        for document in ring.documents().await? {
            let (signer, anew) = ring.opened(&document).await?;
            if let Some(anew) = anew {
                ring.seal_anew(&signer.info().id, &document, &anew).await?;
            }
        }
        Ok(ring)
    }

    /// Somebody else who was faster did the same, or destroyed the key.
    async fn seal_anew(&self, id: &KeyId, document: &Document, text: &[u8]) -> Result<(), KeyRingError> {
        let mut transaction = Transaction::named("seal a key anew");
        let unchanged = Requirement::Unchanged(document.key.clone(), document.version);
        transaction.requirements.push(unchanged);
        transaction.writes.push(Write::Put(document.key.clone(), body(id, text)?));
        match self.store.commit(transaction).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(cause) => Err(silent(&cause)),
        }
    }

    async fn documents(&self) -> Result<Vec<Document>, KeyRingError> {
        let mut all: Vec<Document> = Vec::new();
        loop {
            let after = all.last().map(|document| document.key.id.clone());
            let page = self.store.documents(Kind::Key, after.as_deref(), PAGE).await;
            let page = page.map_err(|cause| silent(&cause))?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    async fn opened(&self, document: &Document) -> Result<(Signer, Option<Wiped>), KeyRingError> {
        let (protection, body) = (Arc::clone(&self.protection), Arc::clone(&document.body));
        let name = &document.key.id;
        let id: KeyId = name.parse().map_err(|bad| unavailable(&format!("key {name:?}: {bad}")))?;
        blocking(move || protection.open_anew(&id, body.as_bytes())).await
    }

    /// The key called `id` as the database has it now.
    async fn find(&self, id: &KeyId) -> Result<Option<Signer>, KeyRingError> {
        let document = self.store.document(&document_key(id)).await.map_err(|cause| silent(&cause))?;
        match document {
            Some(document) => Ok(Some(self.opened(&document).await?.0)),
            None => Ok(None),
        }
    }

    /// Writes a key where there is none; whoever was faster has its own there.
    async fn write(
        &self,
        id: &KeyId,
        make: impl FnOnce() -> Result<(Signer, Wiped), KeyRingError> + Send + 'static,
    ) -> Result<(), KeyRingError> {
        let (protection, name) = (Arc::clone(&self.protection), id.clone());
        let body = blocking(move || {
            let (signer, pkcs8) = make()?;
            body(&name, &protection.close(signer.info(), &pkcs8)?)
        })
        .await?;
        let mut transaction = Transaction::named("make a key").require_absent(document_key(id));
        transaction.writes.push(Write::Put(document_key(id), body));
        match self.store.commit(transaction).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(cause) => Err(silent(&cause)),
        }
    }

    async fn get(&self, id: &KeyId) -> Result<Signer, KeyRingError> {
        self.find(id).await?.ok_or_else(|| KeyRingError::NotFound { id: id.clone() })
    }

    /// The key called `id`, ready to sign: from memory when it is one that is kept there.
    async fn signer(&self, id: &KeyId) -> Result<Arc<Signer>, KeyRingError> {
        if let Some(known) = self.shelf.find(id) {
            return Ok(known);
        }
        let signer = self.get(id).await?;
        match signer.info().purpose {
            KeyPurpose::Root => Ok(Arc::new(signer)),
            KeyPurpose::Issuer | KeyPurpose::Jwt => {
                self.shelf.put(signer);
                self.shelf.find(id).ok_or_else(|| KeyRingError::NotFound { id: id.clone() })
            }
        }
    }
}

#[async_trait]
impl KeyRing for DatabaseKeyRing {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        if let Some(existing) = self.find(id).await? {
            existing.expect(purpose, algorithm)?;
            return Ok(existing.info().clone());
        }
        let name = id.clone();
        let made = move || {
            let pkcs8 = generate_pkcs8(algorithm).map_err(|defect| unavailable(&defect))?;
            let signer =
                Signer::prove(name, purpose, algorithm, &pkcs8).map_err(|defect| unavailable(&defect))?;
            Ok((signer, pkcs8))
        };
        self.write(id, made).await?;
        // What is in the database is what every replica will see: prove that, not what was meant to be there.
        let written = self.get(id).await?;
        written.expect(purpose, algorithm)?;
        Ok(written.info().clone())
    }

    async fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        let existing = self.find(id).await?;
        let signer = adopted(existing.as_ref().map(Signer::info), id, purpose, algorithm, pkcs8)?;
        let (wanted, pkcs8) = (signer.info().public_key.clone(), Zeroizing::new(pkcs8.to_vec()));
        self.write(id, move || Ok((signer, pkcs8))).await?;
        let written = self.get(id).await?;
        if written.info().public_key != wanted {
            return Err(mismatch(written.info(), "another key got that name meanwhile".to_owned()));
        }
        Ok(written.info().clone())
    }

    /// Asks the database, whatever is in memory.
    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        match self.find(id).await? {
            Some(found) => Ok(found.info().clone()),
            None => {
                self.shelf.remove(id);
                Err(KeyRingError::NotFound { id: id.clone() })
            }
        }
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        self.signer(id).await?.sign(message).await
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        self.signer(id).await?.sign_token(token).await
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        let mut infos = Vec::new();
        for document in self.documents().await? {
            infos.push(self.opened(&document).await?.0.info().clone());
        }
        infos.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(infos)
    }

    /// Removes the document. A database keeps old pages, logs and backups: what makes a destroyed key unreadable for
    /// good is that its remains are sealed, and worth nothing without the sealing key.
    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        self.shelf.remove(id);
        let transaction = Transaction::named("destroy a key").delete(document_key(id));
        self.store.commit(transaction).await.map_err(|cause| silent(&cause))?;
        self.shelf.remove(id);
        Ok(())
    }
}

/// Names only.
impl fmt::Debug for DatabaseKeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store: _, protection: _, shelf } = self;
        f.debug_struct("DatabaseKeyRing").field("kept", shelf).finish_non_exhaustive()
    }
}

fn document_key(id: &KeyId) -> DocumentKey {
    DocumentKey::new(Kind::Key, id.to_string())
}

fn body(id: &KeyId, text: &[u8]) -> Result<Arc<str>, KeyRingError> {
    let text = std::str::from_utf8(text).map_err(|_not_text| {
        let cause = "its sealed form is not text".to_owned();
        KeyRingError::Corrupt { id: id.clone(), cause }
    })?;
    Ok(text.trim_ascii_end().into())
}

fn silent(cause: &StoreError) -> KeyRingError {
    unavailable(&format!("the database that holds the keys: {cause}"))
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
