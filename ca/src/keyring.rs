//! Private keys: from the configuration to the ring that the server signs with.
//!
//! Laws: a sealing key is made only for files, and only where there is nothing yet that an older one sealed; the one for
//! the database is given by the operator, since every replica needs the same. Secrets are read before anything is
//! opened. A token that does not answer keeps nobody from starting: what does not need it goes on.
//! Not here: the rings (`rhizome_keys`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhizome_core::ports::{KeyRing, KeyRingError, Store};
use rhizome_keys::{
    DatabaseKeyRing, RoutedKeyRing, SealedFileKeyRing, SealingKey, SealingKeyError, SealingKeys,
};
#[cfg(feature = "pkcs11")]
use rhizome_keys::{Pin, PinError, Pkcs11KeyRing, TokenOptions};

use crate::config::{Config, Place, Sealing, Secret, secret_variable};
use crate::launch;

/// The directory of sealed private keys below the data directory.
pub const FILES: &str = "keys";

/// Why there are no private keys. Each text begins with the rest of a field's name, or with a colon.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The sealing key is gone while keys sealed under it are here.
    #[error(
        ".sealing_key_file: {} does not exist, but {} was used before; put the key back from its backup: a new \
         one could not open the private keys", path.display(), data.display()
    )]
    SealingKeyLost {
        /// The file.
        path: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// The sealing key of the database was not given.
    #[error(
        ".sealing_key_file: {path} does not exist; keys in the database need the same one on every replica: give \
         the one the others have, or make the first: (umask 077; openssl rand -base64 32 > {path})", path = path.display()
    )]
    SealingKeyNotGiven {
        /// The file.
        path: PathBuf,
    },
    /// The environment has no sealing key.
    #[error(
        ".sealing_key_env: the variable {name} is not set; set it to what `openssl rand -base64 32` printed when \
         this authority was founded, or prints now if it is new"
    )]
    NoSealingVariable {
        /// The variable.
        name: String,
    },
    /// What the environment has is no sealing key.
    #[error(".sealing_key_env: the variable {name}: {cause}")]
    SealingVariable {
        /// The variable.
        name: String,
        /// Why not.
        cause: SealingKeyError,
    },
    /// A further secret cannot be had.
    #[error(".{field}: {cause}")]
    Secret {
        /// The field that names it.
        field: &'static str,
        /// Why not.
        cause: String,
    },
    /// The sealing key cannot be had.
    #[error(": {0}")]
    SealingKey(#[from] SealingKeyError),
    /// A ring cannot be opened.
    #[error(": {0}")]
    Ring(#[from] KeyRingError),
    /// The configuration asks for what this program was built without.
    #[error(
        ".pkcs11: this program was built without PKCS#11; take one that was built with the feature `pkcs11`"
    )]
    NoTokens,
}

/// What opens the rings, read from wherever the configuration says.
pub struct Secrets {
    sealing: Option<Arc<SealingKeys>>,
    #[cfg(feature = "pkcs11")]
    pin: Option<Pin>,
}

impl Secrets {
    /// Reads every secret; makes the sealing key of files where everything is new.
    ///
    /// # Errors
    /// [`KeysError`], with the remedy.
    pub fn gather(config: &Config) -> Result<Self, KeysError> {
        let keys = &config.keys;
        #[cfg(not(feature = "pkcs11"))]
        if keys.token.is_some() {
            return Err(KeysError::NoTokens);
        }
        Ok(Self {
            sealing: sealing_keys(config)?.map(Arc::new),
            #[cfg(feature = "pkcs11")]
            pin: keys.token.as_ref().map(|token| pin(&token.pin)).transpose()?,
        })
    }

    /// Opens the rings that `config` names.
    ///
    /// # Errors
    /// [`KeysError::Ring`].
    pub async fn open(
        mut self,
        config: &Config,
        store: Arc<dyn Store>,
    ) -> Result<Arc<dyn KeyRing>, KeysError> {
        let (root, issuers) = (config.keys.root, config.keys.issuers);
        let others = self.ring(issuers, config, Arc::clone(&store)).await?;
        if root == issuers || root == Place::Offline {
            return Ok(others);
        }
        let roots = self.ring(root, config, store).await?;
        Ok(Arc::new(RoutedKeyRing::new(roots, others)))
    }

    async fn ring(
        &mut self,
        place: Place,
        config: &Config,
        store: Arc<dyn Store>,
    ) -> Result<Arc<dyn KeyRing>, KeysError> {
        let directory = config.data.join(FILES);
        Ok(match (place, self.sealing.clone()) {
            (Place::Files, Some(sealing)) => Arc::new(SealedFileKeyRing::open(&directory, sealing).await?),
            (Place::Files, None) => {
                tracing::warn!(directory = %directory.display(), "danger: private keys are stored in the clear");
                Arc::new(SealedFileKeyRing::open_danger_unsealed(&directory).await?)
            }
            (Place::Database, Some(sealing)) => Arc::new(DatabaseKeyRing::open(store, sealing).await?),
            // The configuration says one, or it has a fault.
            (Place::Database, None) => return Err(KeysError::SealingKey(SealingKeyError::Malformed)),
            (Place::Token, _) => self.token(config).await?,
            // Only roots', and asked for by nobody.
            (Place::Offline, _) => return Err(KeysError::NoTokens),
        })
    }

    #[cfg(feature = "pkcs11")]
    async fn token(&mut self, config: &Config) -> Result<Arc<dyn KeyRing>, KeysError> {
        let (Some(token), Some(pin)) = (config.keys.token.clone(), self.pin.take()) else {
            return Err(KeysError::NoTokens);
        };
        let options =
            TokenOptions { module: token.module, label: token.label, pin, sessions: token.sessions };
        let (ring, silent) = Pkcs11KeyRing::open_or_wait(options).await?;
        if let Some(cause) = silent {
            tracing::error!(%cause, "the keys in it cannot be used until it is there");
        }
        Ok(Arc::new(ring))
    }

    #[cfg(not(feature = "pkcs11"))]
    async fn token(&mut self, _config: &Config) -> Result<Arc<dyn KeyRing>, KeysError> {
        Err(KeysError::NoTokens)
    }
}

#[cfg(feature = "pkcs11")]
fn pin(secret: &Secret) -> Result<Pin, KeysError> {
    match secret {
        Secret::File(path) => Pin::from_file(path).map_err(|cause| refused("pkcs11.pin_file", &cause)),
        Secret::Environment(name) => {
            let unset = || refused("pkcs11.pin_env", &format!("the variable {name} is not set"));
            let text = secret_variable(name).ok_or_else(unset)?;
            Pin::from_text(&text).map_err(|cause: PinError| refused("pkcs11.pin_env", &cause))
        }
    }
}

fn refused(field: &'static str, cause: &impl std::fmt::Display) -> KeysError {
    KeysError::Secret { field, cause: cause.to_string() }
}

/// The sealing keys; `None` when nothing is sealed.
fn sealing_keys(config: &Config) -> Result<Option<SealingKeys>, KeysError> {
    let keys = &config.keys;
    let in_database = [keys.root, keys.issuers].contains(&Place::Database);
    let first = match &keys.sealing {
        None | Some(Sealing::DangerUnsealed) => return Ok(None),
        Some(Sealing::KeyFile(path)) if in_database => given(path)?,
        Some(Sealing::KeyFile(path)) => given_or_made(path, &config.data)?,
        Some(Sealing::KeyEnvironment(name)) => {
            let unset = || KeysError::NoSealingVariable { name: name.clone() };
            let text = secret_variable(name).ok_or_else(unset)?;
            SealingKey::from_text(&text)
                .map_err(|cause| KeysError::SealingVariable { name: name.clone(), cause })?
        }
    };
    let sealing = SealingKeys::from(first);
    Ok(Some(match &keys.other_sealing {
        None => sealing,
        Some(Secret::File(path)) => {
            let other = SealingKey::from_file(path);
            sealing.opening(other.map_err(|cause| refused("other_sealing_key_file", &cause))?)
        }
        Some(Secret::Environment(name)) => {
            let field = "other_sealing_key_env";
            let unset = || refused(field, &format!("the variable {name} is not set"));
            let text = secret_variable(name).ok_or_else(unset)?;
            sealing.opening(SealingKey::from_text(&text).map_err(|cause| refused(field, &cause))?)
        }
    }))
}

fn given(path: &Path) -> Result<SealingKey, KeysError> {
    match SealingKey::from_file(path) {
        Err(SealingKeyError::Missing { path }) => Err(KeysError::SealingKeyNotGiven { path }),
        found => Ok(found?),
    }
}

fn given_or_made(path: &Path, data: &Path) -> Result<SealingKey, KeysError> {
    match SealingKey::from_file(path) {
        Err(SealingKeyError::Missing { path }) => {
            if was_used(data) {
                return Err(KeysError::SealingKeyLost { path, data: data.to_owned() });
            }
            let key = SealingKey::generate_file(&path)?;
            let (file, name) = (path.display(), key.name());
            tracing::warn!(%file, key = name, "made the sealing key; back it up now, apart from the database");
            Ok(key)
        }
        found => Ok(found?),
    }
}

/// Whether anything of an authority is in `data` already. What cannot be read counts as used.
fn was_used(data: &Path) -> bool {
    let keys = fs::read_dir(data.join(FILES)).map(|mut entries| entries.next().is_some());
    let keys = keys.unwrap_or_else(|cause| cause.kind() != io::ErrorKind::NotFound);
    let there = |path: PathBuf| fs::exists(path).unwrap_or(true);
    keys || there(launch::database(data)) || there(launch::migrated(data))
}
