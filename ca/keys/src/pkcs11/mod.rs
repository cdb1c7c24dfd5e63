//! Keys in a PKCS#11 token: a hardware security module, a smart card, SoftHSM.
//!
//! Laws: a private key is made in the token and cannot be taken out (sensitive, not extractable, read back and checked);
//! it is found by its identifier and label, which say its name and purpose; the token sees digests alone, and what it
//! gives back is marked as made elsewhere, so that every signature is verified before it is used. Calls run on the
//! blocking pool, a bounded number at a time, and nobody waits for a silent token for ever. A token that was pulled out
//! is `Unavailable` and comes back by itself; a PIN that was refused is not tried again.
//! Not here: the module and what its processes share (`module`), what is done in a session (`token`).
//! Sources: OASIS PKCS #11 v3.1 §2.3 (elliptic curves), §5.4 and §5.6 (initialisation, sessions).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError};
use rhizome_id::KeyId;
use rhizome_jwt::TokenToBeSigned;
use rhizome_x509::{Signature, SigningAlgorithm, ToBeSigned};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::signer::{Wanted, expect, may_sign, unavailable};

mod module;
mod pin;
mod token;
mod value;

pub use pin::{Pin, PinError};
use token::{Fault, Seat, Token};

/// How long a caller waits for the token, its turn included: a network module with a lost connection may take minutes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Sessions at once unless told otherwise: a token signs one thing at a time anyway, a module in the network some.
const SESSIONS: usize = 4;

/// Which token, and how to open it.
pub struct TokenOptions {
    /// The module: the shared library that its maker gives.
    pub module: PathBuf,
    /// The token's label.
    pub label: String,
    /// The user's PIN.
    pub pin: Pin,
    /// Sessions at once; `None` means 4.
    pub sessions: Option<usize>,
}

/// A key ring in a token.
pub struct Pkcs11KeyRing {
    token: Arc<Token>,
    /// As many calls at once as there may be sessions.
    turns: Arc<Semaphore>,
    /// One key is made at a time, so that two callers who ask for one name get one key.
    making: Mutex<()>,
}

impl Pkcs11KeyRing {
    /// Loads the module, opens the token, logs in and proves every key of ours in it.
    ///
    /// # Errors
    /// [`KeyRingError::Sealed`] when the token refuses the PIN; [`KeyRingError::Unavailable`] when there is no such
    /// token; [`KeyRingError::Mismatch`] or [`KeyRingError::Corrupt`] when a key in it will not do.
    pub async fn open(options: TokenOptions) -> Result<Self, KeyRingError> {
        let ring = Self::closed(options);
        ring.keys().await?;
        Ok(ring)
    }

    /// As [`Pkcs11KeyRing::open`], but a token that is not there now keeps nobody from starting: it is looked for when a
    /// key is asked for.
    ///
    /// # Errors
    /// As [`Pkcs11KeyRing::open`], without [`KeyRingError::Unavailable`]; the second part says why the token did not
    /// answer.
    pub async fn open_or_wait(options: TokenOptions) -> Result<(Self, Option<KeyRingError>), KeyRingError> {
        let ring = Self::closed(options);
        match ring.keys().await {
            Ok(_) => Ok((ring, None)),
            Err(cause @ KeyRingError::Unavailable { .. }) => Ok((ring, Some(cause))),
            Err(cause) => Err(cause),
        }
    }

    fn closed(options: TokenOptions) -> Self {
        let sessions = options.sessions.unwrap_or(SESSIONS).max(1);
        let token = Arc::new(Token::new(options.module, options.label, options.pin));
        Self { token, turns: Arc::new(Semaphore::new(sessions)), making: Mutex::default() }
    }

    /// Does `work` in a session, on the blocking pool, when it is its turn.
    async fn with<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Seat) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, KeyRingError> {
        let silent = || unavailable(&format!("{} did not answer within {PATIENCE:?}", self.token));
        let (token, turns) = (Arc::clone(&self.token), Arc::clone(&self.turns));
        let done = async move {
            let turn = turns.acquire_owned().await.map_err(|closed| unavailable(&closed))?;
            let doing = tokio::task::spawn_blocking(move || {
                let outcome = token.with_seat(work);
                drop(turn);
                outcome
            });
            doing.await.map_err(|stopped| unavailable(&stopped))?
        };
        timeout(PATIENCE, done).await.map_err(|_late| silent())?
    }

    async fn sign_bytes(
        &self,
        id: &KeyId,
        wanted: Wanted,
        bytes: &[u8],
        algorithm: SigningAlgorithm,
    ) -> Result<Signature, KeyRingError> {
        let (id, digest) = (id.clone(), value::digest(algorithm, bytes));
        let signed = self.with(move |seat| {
            let key = seat.key(&id)?;
            may_sign(&key.info, wanted, algorithm)?;
            seat.sign(&key, &digest)
        });
        Ok(Signature::external(signed.await?))
    }
}

#[async_trait]
impl KeyRing for Pkcs11KeyRing {
    async fn generate(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
    ) -> Result<KeyInfo, KeyRingError> {
        let _making = self.making.lock().await;
        let id = id.clone();
        self.with(move |seat| {
            if let Some(found) = seat.find(&id)? {
                expect(&found.info, purpose, algorithm)?;
                return Ok(found.info);
            }
            Ok(seat.make(&id, purpose, algorithm)?.info)
        })
        .await
    }

    /// Asks the token, whatever is known.
    async fn key(&self, id: &KeyId) -> Result<KeyInfo, KeyRingError> {
        let id = id.clone();
        self.with(move |seat| match seat.find(&id)? {
            Some(found) => Ok(found.info),
            None => Err(KeyRingError::NotFound { id: id.clone() }.into()),
        })
        .await
    }

    async fn sign(&self, id: &KeyId, message: &ToBeSigned<'_>) -> Result<Signature, KeyRingError> {
        self.sign_bytes(id, Wanted::Certificate, message.as_bytes(), message.algorithm()).await
    }

    async fn sign_token(&self, id: &KeyId, token: &TokenToBeSigned) -> Result<Signature, KeyRingError> {
        self.sign_bytes(id, Wanted::Token, token.as_bytes(), token.algorithm()).await
    }

    async fn keys(&self) -> Result<Vec<KeyInfo>, KeyRingError> {
        self.with(|seat| {
            let mut infos = Vec::new();
            for id in seat.ids()? {
                infos.extend(seat.find(&id)?.map(|found| found.info));
            }
            Ok(infos)
        })
        .await
    }

    async fn import(
        &self,
        id: &KeyId,
        purpose: KeyPurpose,
        algorithm: SigningAlgorithm,
        pkcs8: &[u8],
    ) -> Result<KeyInfo, KeyRingError> {
        let _not_sent = (algorithm, pkcs8);
        let name = format!("rhizome:{}:NAME", purpose.as_str());
        Err(unavailable(&format!(
            "{} makes its keys itself; bring this one in with the tools of its maker, labelled `{name}` with NAME as \
             identifier, and give --key-name NAME instead of the key ({id} was not written)",
            self.token
        )))
    }

    async fn destroy(&self, id: &KeyId) -> Result<(), KeyRingError> {
        let id = id.clone();
        self.with(move |seat| seat.destroy(&id)).await
    }
}

/// Names only.
impl fmt::Debug for Pkcs11KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, turns: _, making: _ } = self;
        f.debug_struct("Pkcs11KeyRing").field("token", &token.to_string()).finish_non_exhaustive()
    }
}
