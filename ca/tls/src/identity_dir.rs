//! An identity in a directory: `key.pem`, `chain.pem`, `bundle.pem`, `trust-domain`.
//!
//! Laws: each file is replaced whole (temporary file, fsync, rename, fsync of the directory), with its mode set before
//! its first byte and whatever the umask: 0600 for the key, 0644 for the rest, 0700 for the directory; a crash at any
//! point leaves a directory that loads as the old or as the new identity, never a key beside another key's chain; two
//! writers take turns; a key that others can read is refused. Not here: asking for certificates, sealing.
//! Sources: ca/docs/attacks.md §1.5 "key file open to others", §2 (17); RFC 7468 §5 and §10.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rhizome_id::{TrustDomain, Ttl};
use rhizome_x509::{Bundle, BundleError, CaCertificate, CaCertificateError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::error::IdentityError;
use crate::identity::ClientIdentity;

const KEY: &str = "key.pem";
/// The next key, while an identity is being replaced.
const NEXT_KEY: &str = "key.next.pem";
const CHAIN: &str = "chain.pem";
const BUNDLE: &str = "bundle.pem";
const TRUST_DOMAIN: &str = "trust-domain";

/// Largest file read, in bytes: a bundle of 100 anchors takes some 100 KiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Times a load is tried again while somebody else replaces the files.
const LOAD_ATTEMPTS: usize = 3;
const PEM_LINE: usize = 64; // RFC 7468 §2
/// What a bundle read from a file says about refreshing: nothing is known, so the usual five minutes (SPIFFE Trust
/// Domain and Bundle §4.1.3 leaves it open).
const REFRESH_HINT_SECONDS: i64 = 300;

/// A directory that holds one identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityDir {
    path: PathBuf,
}

/// An identity with the trust that belongs to it.
pub struct StoredIdentity {
    /// Chain and key.
    pub identity: ClientIdentity,
    /// The anchors by which servers are judged. A bundle that was loaded has sequence 0: the files do not keep it.
    pub bundle: Bundle,
}

impl IdentityDir {
    /// The identity kept in `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether an identity was saved here.
    pub fn exists(&self) -> bool {
        self.path.join(CHAIN).exists()
    }

    /// Writes `stored`, replacing what is there; durable when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// [`IdentityDirError::Io`]; the directory then loads as before (perhaps with the new bundle), or as `stored`.
    pub fn save(&self, stored: &StoredIdentity) -> Result<(), IdentityDirError> {
        let StoredIdentity { identity, bundle } = stored;
        let _turn = self.lock()?;
        self.write_bundle(bundle)?;
        // The order is what makes a crash harmless: see `load_pair`, which also looks at the next key.
        self.write(NEXT_KEY, key_pem(identity.key_pkcs8_der()).as_bytes(), 0o600)?;
        self.write(CHAIN, chain_pem(identity.chain_der()).as_bytes(), 0o644)?;
        self.rename(NEXT_KEY, KEY)
    }

    /// Writes only the bundle and its trust domain; durable when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// [`IdentityDirError::Io`].
    pub fn save_bundle(&self, bundle: &Bundle) -> Result<(), IdentityDirError> {
        let _turn = self.lock()?;
        self.write_bundle(bundle)
    }

    fn write_bundle(&self, bundle: &Bundle) -> Result<(), IdentityDirError> {
        let domain = format!("{}\n", bundle.trust_domain());
        self.write(TRUST_DOMAIN, domain.as_bytes(), 0o644)?;
        self.write(BUNDLE, bundle.to_pem().as_bytes(), 0o644)
    }

    /// Reads the identity back. Blocks on the disk.
    ///
    /// # Errors
    /// [`IdentityDirError`] naming the file and what to do.
    pub fn load(&self) -> Result<StoredIdentity, IdentityDirError> {
        Ok(StoredIdentity { identity: self.load_identity()?, bundle: self.load_bundle()? })
    }

    /// Reads only the bundle. Blocks on the disk.
    ///
    /// # Errors
    /// [`IdentityDirError`] naming the file and what to do.
    pub fn load_bundle(&self) -> Result<Bundle, IdentityDirError> {
        let bad = |file: &str, cause: String| self.malformed(file, cause);
        let domain = self.read(TRUST_DOMAIN)?;
        let domain = std::str::from_utf8(&domain).unwrap_or_default().trim_end();
        let domain: TrustDomain = domain
            .parse()
            .map_err(|error: rhizome_id::TrustDomainError| bad(TRUST_DOMAIN, error.to_string()))?;
        let anchors: Result<Vec<CaCertificate>, CaCertificateError> =
            self.certificates(BUNDLE)?.iter().map(|der| CaCertificate::parse(der)).collect();
        let anchors = anchors.map_err(|error| bad(BUNDLE, error.to_string()))?;
        let hint = Ttl::from_seconds(REFRESH_HINT_SECONDS).map_err(|error| bad(BUNDLE, error.to_string()))?;
        Bundle::new(domain, 0, hint, anchors).map_err(|error: BundleError| bad(BUNDLE, error.to_string()))
    }

    fn load_identity(&self) -> Result<ClientIdentity, IdentityDirError> {
        let mut outcome = self.load_pair();
        for _ in 1..LOAD_ATTEMPTS {
            match outcome {
                Err(IdentityDirError::Identity { cause: IdentityError::KeyMismatch, .. }) => {
                    outcome = self.load_pair()
                } // read in the middle of somebody's save
                settled => return settled,
            }
        }
        outcome
    }

    /// The chain with the key that fits it. A save that was cut off between its two renames left the new chain and,
    /// still under its other name, the new key.
    fn load_pair(&self) -> Result<ClientIdentity, IdentityDirError> {
        let chain = self.certificates(CHAIN)?;
        let with = |name: &str| {
            let key = self.read_key(name)?;
            ClientIdentity::new(chain.clone(), key)
                .map_err(|cause| IdentityDirError::Identity { path: self.path.clone(), cause })
        };
        with(KEY).or_else(|first| with(NEXT_KEY).map_err(|_no_better| first))
    }

    fn read_key(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, IdentityDirError> {
        let pem = self.read(name)?;
        let mut decoded = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_says_nothing_secret| {
            self.malformed(name, "no PKCS#8 private key in PEM".to_owned())
        })?;
        let key = Zeroizing::new(decoded.secret_pkcs8_der().to_vec());
        decoded.zeroize();
        Ok(key)
    }

    fn certificates(&self, name: &str) -> Result<Vec<Vec<u8>>, IdentityDirError> {
        let pem = self.read(name)?;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let parsed = parsed.map_err(|error| self.malformed(name, error.to_string()))?;
        if parsed.is_empty() {
            return Err(self.malformed(name, "no certificate in PEM".to_owned()));
        }
        Ok(parsed.into_iter().map(|der| der.to_vec()).collect())
    }

    fn read(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, IdentityDirError> {
        let path = self.path.join(name);
        let io = |cause: io::Error| IdentityDirError::io("read", &path, &cause);
        let file = File::open(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                IdentityDirError::Missing { path: path.clone() }
            } else {
                io(error)
            }
        })?;
        let metadata = file.metadata().map_err(io)?;
        let mode = metadata.mode() & 0o777;
        if (name == KEY || name == NEXT_KEY) && mode & 0o077 != 0 {
            return Err(IdentityDirError::Exposed { path, mode });
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(self.malformed(name, format!("larger than {MAX_FILE_BYTES} bytes")));
        }
        // Room for all of it at once: a buffer that grows leaves unwiped copies behind.
        let room = usize::try_from(metadata.len()).unwrap_or_default().saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// Makes the directory when it is not there, and waits until nobody else writes into it; until the result drops.
    fn lock(&self) -> Result<File, IdentityDirError> {
        self.create()?;
        File::open(&self.path)
            .and_then(|directory| directory.lock().map(|()| directory))
            .map_err(|cause| IdentityDirError::io("lock", &self.path, &cause))
    }

    fn create(&self) -> Result<(), IdentityDirError> {
        let io = |cause: io::Error| IdentityDirError::io("create", &self.path, &cause);
        if self.path.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(io)?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o700)).map_err(io)?;
        // The directory's own name must survive a crash, too.
        let above = self.path.parent().filter(|above| !above.as_os_str().is_empty());
        File::open(above.unwrap_or_else(|| Path::new("."))).and_then(|above| above.sync_all()).map_err(io)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), IdentityDirError> {
        let temporary = format!(".{name}.tmp");
        let path = self.path.join(&temporary);
        let io = |cause: io::Error| IdentityDirError::io("write", &path, &cause);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(io)?;
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(io)?;
        file.write_all(bytes).map_err(io)?;
        file.sync_all().map_err(io)?;
        self.rename(&temporary, name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), IdentityDirError> {
        let path = self.path.join(to);
        fs::rename(self.path.join(from), &path)
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|cause| IdentityDirError::io("write", &path, &cause))
    }

    fn malformed(&self, name: &str, cause: String) -> IdentityDirError {
        IdentityDirError::Malformed { path: self.path.join(name), cause }
    }
}

fn chain_pem(chain_der: &[Vec<u8>]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for der in chain_der {
        push_pem(&mut text, "CERTIFICATE", der);
    }
    text
}

fn key_pem(pkcs8_der: &[u8]) -> Zeroizing<String> {
    // Room for all of it at once: a string that grows leaves unwiped copies behind.
    let mut text =
        Zeroizing::new(String::with_capacity(pkcs8_der.len().saturating_mul(2).saturating_add(128)));
    push_pem(&mut text, "PRIVATE KEY", pkcs8_der);
    text
}

/// RFC 7468 §2: 64 characters a line, one newline at the end.
fn push_pem(text: &mut String, label: &str, der: &[u8]) {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = encoded.as_str();
    while let Some((line, after)) = rest.split_at_checked(PEM_LINE) {
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    if !rest.is_empty() {
        text.push_str(rest);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
}

/// Why an identity cannot be read or written. Never holds key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityDirError {
    /// A file is not there.
    #[error("{path} does not exist; join or ask for a certificate first", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Others can read the key.
    #[error(
        "{path} can be read by others (mode {mode:04o}); replace this key if they may have, then: chmod 600 {path}",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged: {cause}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        cause: String,
    },
    /// Chain and key cannot be used together.
    #[error("the identity in {path} cannot be used: {cause}", path = path.display())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: IdentityError,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {cause}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

impl IdentityDirError {
    fn io(action: &'static str, path: &Path, cause: &io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), cause: cause.to_string() }
    }
}

#[cfg(test)]
#[path = "identity_dir_tests.rs"]
mod tests;
