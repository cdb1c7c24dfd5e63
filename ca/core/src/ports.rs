//! Ports: what the decisions need from the world, as traits. The binary plugs stores and key rings into them.
//!
//! Laws: a store's commit is durable when it returns, and it is all or nothing; a commit that reports an error other
//! than a conflict may or may not have happened ("unknown outcome"), and every caller is written for that. A key ring
//! signs [`ToBeSigned`] with keys for certificates and [`TokenToBeSigned`] with keys for tokens, and nothing else. Each port has a conformance suite beside its backends; what the suite does
//! not test is not promised. Not here: any backend.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use rhizome_id::{KeyId, SerialCounter, Timestamp};
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{PublicKey, Signature, SigningAlgorithm, ToBeSigned};
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::documents::{Document, DocumentKey, Kind, Transaction, Version};
use crate::ledger::{Head, Position, Receipt, Record};

pub use crate::clock::Clock;
pub use crate::entropy::Entropy;

/// Where documents, the ledger and the serial counter live.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies `transaction` whole or not at all; durable when this returns. Concurrent commits are gathered into one
    /// durable write.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a requirement does not hold (nothing happened); anything else leaves the outcome
    /// unknown.
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError>;

    /// One document, if it exists.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError>;

    /// Documents of `kind` in the byte order of their ids, after `after` (exclusive), at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn documents(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError>;

    /// Ledger records from `from` (inclusive, ascending), at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn records(&self, from: Position, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// The issuance filed under `counter`, if any.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn record_of_serial(&self, counter: SerialCounter) -> Result<Option<Record>, StoreError>;

    /// The end of the ledger's chain.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn head(&self) -> Result<Head, StoreError>;

    /// Sets `count` serial counters aside for this caller alone, durably, and gives the first. They start no lower
    /// than every counter given out before and than `now` in seconds times 2^20, so that a database put back from an
    /// older copy never gives a counter out twice (as long as fewer than 2^20 certificates a second are issued).
    ///
    /// # Errors
    /// [`StoreError`]; counters of a failed reservation are never given out again.
    async fn reserve_serials(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError>;

    /// Whether other processes may write to the same store, so that what they write must be asked for. Unless a store
    /// says otherwise it has one owner, and the three methods that follow answer accordingly.
    fn is_shared(&self) -> bool {
        false
    }

    /// The version of the newest write. Everything that is read after this was answered is at least as new.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn newest_version(&self) -> Result<Version, StoreError> {
        Ok(Version(0))
    }

    /// Documents that were written or deleted after `since`, by whoever, about `limit` of them at most: those of one
    /// transaction are never parted.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot answer.
    async fn changes(&self, since: Version, limit: usize) -> Result<Changes, StoreError> {
        let _everything = limit;
        Ok(Changes::These { changed: Vec::new(), through: since, more: false })
    }

    /// Returns when the store may hold something newer than `known`. It may return too early, and too late when the
    /// way by which it hears is cut off: ask now and then besides.
    async fn wait_for_change(&self, known: Version) {
        let _nothing_ever_is = known;
        std::future::pending::<()>().await;
    }

    /// Writes a consistent copy of everything to the file `to`, which must not exist, while commits go on.
    ///
    /// # Errors
    /// [`StoreError`]; an incomplete file is removed.
    async fn backup(&self, to: &Path) -> Result<(), StoreError>;

    /// Reads every page and reports damage.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] names the first damage found.
    async fn check_integrity(&self) -> Result<(), StoreError>;
}

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The version that every document written by the transaction now has.
    pub version: Version,
    /// One receipt per ledger entry, in the transaction's order.
    pub receipts: Vec<Receipt>,
}

/// Why a store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A requirement does not hold: somebody else was faster, or the thing exists (or is gone) already.
    #[error("{key} changed meanwhile; read it again and retry")]
    Conflict {
        /// The document that is not as required.
        key: DocumentKey,
    },
    /// The store cannot answer now; the outcome of a commit is unknown.
    #[error("the store is not available: {cause}")]
    Unavailable {
        /// For the log.
        cause: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// No room is left.
    #[error("the store's disk is full: {cause}; free space, issuing goes on by itself")]
    Full {
        /// For the log.
        cause: String,
    },
    /// What is stored is damaged.
    #[error("the store is damaged: {cause}; stop the server, keep the files, and restore a backup")]
    Corrupt {
        /// What was found, and where.
        cause: String,
    },
    /// The schema is newer than this release.
    #[error(
        "the store was written by a newer release (schema {found}, this one knows {known}); upgrade this server"
    )]
    Newer {
        /// Schema version found.
        found: i64,
        /// Newest schema version this release knows.
        known: i64,
    },
    /// A backup's target exists already.
    #[error("{path} exists already; name a file that does not exist")]
    Exists {
        /// The path.
        path: String,
    },
    /// This kind of store does not do that; something else does.
    #[error("{remedy}")]
    Unsupported {
        /// What to do instead.
        remedy: String,
    },
    /// A fault of ours.
    #[error("bug in the store: {cause}")]
    Bug {
        /// For the log.
        cause: String,
    },
}

/// What a key is for; bound into its sealed form, so that a key moved to another place does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPurpose {
    /// Signs a root certificate and the intermediates below it.
    Root,
    /// Signs leaves.
    Issuer,
    /// Signs JWT-SVIDs, and never a certificate.
    Jwt,
}

impl KeyPurpose {
    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuer => "issuer",
            Self::Jwt => "jwt",
        }
    }
}

/// A key as its ring shows it: never the private part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name.
    pub id: KeyId,
    /// What it is for.
    pub purpose: KeyPurpose,
    /// How it signs.
    pub algorithm: SigningAlgorithm,
    /// The public part.
    pub public_key: PublicKey,
}

/// Where private signing keys live. They never leave it.
#[async_trait]
pub trait KeyRing: Send + Sync + 'static {
    /// Makes a key called `id`, durable when this returns. Idempotent: a key of that name, purpose and algorithm that
    /// exists already is returned as it is.
    ///
    /// # Errors
    /// [`KeyRingError::Mismatch`] when `id` exists with another purpose or algorithm.
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError>;

    /// The key called `id`.
    ///
    /// # Errors
    /// [`KeyRingError::NotFound`] when there is none.
    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError>;

    /// Signs with the key called `id`. The algorithm of the bytes must be the key's.
    ///
    /// # Errors
    /// [`KeyRingError::NotFound`], or [`KeyRingError::Mismatch`] when the bytes are meant for another algorithm or the
    /// key is for tokens.
    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError>;

    /// Signs a JWT-SVID with the key called `id`, which must be one of [`KeyPurpose::Jwt`]. The algorithm of the token
    /// must be the key's. The signature is an `ECDSA-Sig-Value` in DER, as for certificates.
    ///
    /// # Errors
    /// [`KeyRingError::NotFound`], or [`KeyRingError::Mismatch`] when the token is meant for another algorithm or the key
    /// is for certificates.
    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError>;

    /// Every key, in the order of names.
    ///
    /// # Errors
    /// [`KeyRingError`] when the ring cannot answer.
    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError>;

    /// Takes a key in that was made elsewhere: PKCS#8 in DER, with the public key in it; durable when this returns. Only
    /// when an authority is imported.
    ///
    /// # Errors
    /// [`KeyRingError::Mismatch`] when a key is called so already, or the bytes are no key of `algorithm`;
    /// [`KeyRingError::Unavailable`] from a ring that takes none.
    async fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        let _taken_by_nobody = (purpose, algorithm, pkcs8);
        Err(KeyRingError::Unavailable { cause: format!("this key ring takes no keys from elsewhere ({id})") })
    }

    /// Destroys the key called `id` for good; a key that is not there is destroyed already.
    ///
    /// # Errors
    /// [`KeyRingError`] when it may still exist.
    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError>;
}

/// Why a key ring did not do as asked. Never holds key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
    /// No such key.
    #[error("there is no key called {id}")]
    NotFound {
        /// The name asked for.
        id: KeyId,
    },
    /// The key exists but is not what was asked for.
    #[error("key {id} is not what was asked for: {cause}")]
    Mismatch {
        /// The name.
        id: KeyId,
        /// What differs.
        cause: String,
    },
    /// Sealed keys cannot be opened.
    #[error("the sealed keys cannot be opened: {cause}")]
    Sealed {
        /// What to do about it.
        cause: String,
    },
    /// Stored keys are damaged.
    #[error("key {id} is damaged: {cause}; restore it from a backup")]
    Corrupt {
        /// The name.
        id: KeyId,
        /// What was found.
        cause: String,
    },
    /// The ring cannot answer now.
    #[error("the key ring is not available: {cause}")]
    Unavailable {
        /// For the log.
        cause: String,
    },
}
