//! Keys in sealed files: the embedded default.
//!
//! Laws: as `envelope` and `files` say; every key is opened and proved when the ring is, so that a damaged one is found
//! at start and not at the next rotation; making and destroying run one at a time, and to their end even when nobody
//! waits for them any more. Not here: where the sealing key comes from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{Signature, SigningAlgorithm, ToBeSigned};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::envelope::Protection;
use crate::files::{Directory, Exposure};
use crate::sealing::SealingKeys;
use crate::shelf::Shelf;
use crate::signer::{Signer, adopted, blocking, generate_pkcs8, unavailable};

/// A key ring in a directory: one file for each key, sealed under [`SealingKeys`]. One process uses it at a time.
pub struct SealedFileKeyRing {
    inner: Arc<Inner>,
    /// Held, by the work itself, while a key is made or destroyed.
    changing: Arc<Mutex<()>>,
}

struct Inner {
    directory: Directory,
    protection: Protection,
    shelf: Shelf,
}

impl SealedFileKeyRing {
    /// Opens the ring in `directory` (made, with mode 0700, when it is not there) and proves every key in it. What lies
    /// under another of the sealing keys than the first is sealed anew under the first.
    ///
    /// # Errors
    /// [`KeyRingError::Sealed`] when a key was sealed under another sealing key; [`KeyRingError::Corrupt`] when a file
    /// is damaged, was altered, or belongs to another key; [`KeyRingError::Unavailable`] when the file system refuses.
    pub async fn open(
        directory: &Path,
        sealing_keys: impl Into<Arc<SealingKeys>>,
    ) -> Result<Self, KeyRingError> {
        Self::open_with(directory.to_owned(), Protection::Sealed(sealing_keys.into()), Exposure::Mend).await
    }

    /// Opens a ring whose files are **not sealed**: whoever reads the directory, or a backup of it, has the keys. For
    /// trying things out on one's own machine. The caller must say so aloud at every start; nothing is printed here.
    ///
    /// # Errors
    /// As [`SealedFileKeyRing::open`]; and a directory or file that others can read is refused.
    pub async fn open_danger_unsealed(directory: &Path) -> Result<Self, KeyRingError> {
        Self::open_with(directory.to_owned(), Protection::DangerUnsealed, Exposure::Refuse).await
    }

    async fn open_with(
        path: PathBuf,
        protection: Protection,
        exposure: Exposure,
    ) -> Result<Self, KeyRingError> {
        let inner = blocking(move || Inner::open(&path, protection, exposure)).await?;
        Ok(Self { inner: Arc::new(inner), changing: Arc::default() })
    }

    /// Runs `change` alone, and to its end even when the caller goes away: what it holds, it holds itself.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Inner) -> Result<T, KeyRingError> + Send + 'static,
    ) -> Result<T, KeyRingError> {
        let turn = Arc::clone(&self.changing).lock_owned().await;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let outcome = change(&inner);
            drop(turn);
            outcome
        })
        .await
    }
}

impl Inner {
    fn open(path: &Path, protection: Protection, exposure: Exposure) -> Result<Self, KeyRingError> {
        let directory = Directory::open(path, exposure)?;
        let shelf = Shelf::default();
        for id in directory.ids()? {
            let text = directory.read(&id)?;
            let (signer, anew) = protection.open_anew(&id, &text)?;
            if let Some(anew) = anew {
                directory.write(&id, &anew)?;
            }
            shelf.put(signer);
        }
        Ok(Self { directory, protection, shelf })
    }

    fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        if let Some(existing) = self.shelf.find(id) {
            existing.expect(purpose, algorithm)?;
            return Ok(existing.info().clone());
        }
        let pkcs8 = generate_pkcs8(algorithm).map_err(|defect| unavailable(&defect))?;
        let signer =
            Signer::prove(id.clone(), purpose, algorithm, &pkcs8).map_err(|defect| unavailable(&defect))?;
        self.keep(&signer, &pkcs8)
    }

    fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        let existing = self.shelf.find(id);
        let existing = existing.as_ref().map(|existing| existing.info());
        self.keep(&adopted(existing, id, purpose, algorithm, pkcs8)?, pkcs8)
    }

    fn keep(&self, signer: &Signer, pkcs8: &[u8]) -> Result<KeyInfo, KeyRingError> {
        let id = &signer.info().id;
        self.directory.write(id, &self.protection.close(signer.info(), pkcs8)?)?;
        // What is on the disk is what the next start will see: prove that, not what was meant to be there.
        let reread = self.protection.open(id, &self.directory.read(id)?)?;
        Ok(self.shelf.put(reread))
    }

    fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        self.shelf.remove(id);
        self.directory.remove(id)
    }
}

#[async_trait]
impl KeyRing for SealedFileKeyRing {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        let id = id.clone();
        self.change(move |inner| inner.generate(&id, purpose, algorithm)).await
    }

    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        self.inner.shelf.info(id)
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        self.inner.shelf.sign(id, message).await
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        self.inner.shelf.sign_token(id, token).await
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        Ok(self.inner.shelf.infos())
    }

    async fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        let (id, pkcs8) = (id.clone(), Zeroizing::new(pkcs8.to_vec()));
        self.change(move |inner| inner.import(&id, purpose, algorithm, &pkcs8)).await
    }

    /// Removes the file and the key in memory. Overwriting the file first would prove nothing: journals, copy-on-write
    /// and flash translation keep old blocks. What makes a destroyed key unreadable for good is that its remains are
    /// sealed: they are worth nothing without the sealing key.
    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        let id = id.clone();
        self.change(move |inner| inner.destroy(&id)).await
    }
}

/// Names only.
impl fmt::Debug for SealedFileKeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inner, changing: _ } = self;
        let Inner { directory, protection, shelf } = &**inner;
        f.debug_struct("SealedFileKeyRing")
            .field("directory", directory)
            .field("sealed", &matches!(protection, Protection::Sealed(_)))
            .field("keys", shelf)
            .finish()
    }
}

#[cfg(test)]
#[path = "sealed_file_tests.rs"]
mod tests;
