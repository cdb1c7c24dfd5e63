//! What the agent holds, encrypted on disk: certificates with their keys, the bundle, the rules and the cursor.
//!
//! Laws: authenticated encryption with a key of its own for every write (`pieces`), derived from a key file of mode 0600
//! beside it; a file is replaced whole (temporary file, fsync, rename, fsync of the directory) and is never in memory
//! whole; what cannot be decrypted, or belongs to another node, is kept aside under another name and reported, and is
//! never fatal; a key file that others can read is kept aside, too. What the disk does not let us read is not known to
//! be of no use: it stays where it is and the start fails. One entry that cannot be used costs that entry. A directory
//! that others can write to is not used. The sealing protects copies of the state that are not copies of the key:
//! backups, snapshots, images.
//! What is of no use and cannot be put aside, on a disk that can only be read, does not stop the start (`owed`).
//! Not here: the node's own identity (`rhizome_tls::IdentityDir`), what to keep (`book`).
//! Sources: ADR 0020; spiffe/spire#1847 (a restart during an outage).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhizome_core::ports::Entropy;
use rhizome_id::{SpiffeId, Timestamp};
use ring::hkdf::{HKDF_SHA256, Prk};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::book::Snapshot;

mod owed;
mod pieces;
mod stored;

use owed::Owed;
use pieces::{OpenError, Opening, SALT_BYTES, Sealing};
use stored::Gathering;

const STATE: &str = "state.sealed";
const KEY: &str = "state.key";
/// What the file begins with, and what is authenticated beside the content.
const HEADER: &[u8; 22] = b"rhizome-agent state 2\n";
/// As many as those of the keys derived from it.
const KEY_BYTES: usize = 32;
/// Largest state read, in bytes: 10 000 identities of 4 KiB and as many rules leave room.
const MAX_STATE_BYTES: u64 = 256 * 1024 * 1024;
/// 64 hexadecimal digits and a newline.
const MAX_KEY_BYTES: u64 = 80;
/// Names tried for a file that is kept aside.
const ASIDE_NAMES: u32 = 1_000;

/// The agent's state directory.
pub(crate) struct Sealed {
    directory: PathBuf,
    key: Prk,
    entropy: Arc<dyn Entropy>,
    /// What had to be kept aside to get here.
    aside: Vec<Aside>,
    owed: Owed,
}

/// A file that was of no use and is still there under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    /// Where it is now.
    pub path: PathBuf,
    /// What was wrong with it.
    pub cause: String,
}

/// The state directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
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
    /// The work on it was cut off.
    #[error("work on the disk was cut off")]
    CutOff,
    /// No randomness, or no encryption.
    #[error("the state cannot be sealed: {0}")]
    Crypto(&'static str),
}

impl SealedError {
    fn io(action: &'static str, path: &Path, cause: &io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), cause: cause.to_string() }
    }
}

impl Sealed {
    /// Opens `directory`, making it (0700) and its key where they are missing. Blocks on the disk.
    ///
    /// # Errors
    /// [`SealedError`] when the directory cannot be written, others can write to it, or the key cannot be read.
    pub(crate) fn open(directory: &Path, entropy: Arc<dyn Entropy>) -> Result<Self, SealedError> {
        if !directory.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o700)))
                .map_err(|cause| SealedError::io("create", directory, &cause))?;
        }
        check_directory(directory)?;
        let (mut aside, owed) = (Vec::new(), Owed::default());
        let path = directory.join(KEY);
        let bytes = match read_key(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => make_key(directory, &*entropy)?,
            Err(Unusable::Unread(cause)) => return Err(cause),
            Err(Unusable::Useless(cause)) => {
                let (kept, moved) = owed.put_aside(directory, KEY, cause);
                aside.push(kept);
                let key = random_key(&*entropy)?;
                if moved {
                    write_key(directory, &key)?;
                } else {
                    owed.write_key(key.clone());
                }
                key
            }
        };
        Ok(Self { directory: directory.to_owned(), key: key_of(&bytes), entropy, aside, owed })
    }

    /// Reads the state of `node` back (of any node, when it is not known which this is); nothing usable reads as
    /// nothing, and is kept aside. Blocks on the disk.
    ///
    /// # Errors
    /// [`SealedError`] when the disk does not let it be read.
    pub(crate) fn load(&mut self, node: Option<&SpiffeId>) -> Result<Option<Restored>, SealedError> {
        match read_state(&self.directory, &self.key, node) {
            Ok(found) => Ok(found),
            Err(Unusable::Unread(cause)) => Err(cause),
            Err(Unusable::Useless(cause)) => {
                self.aside.push(self.owed.put_aside(&self.directory, STATE, cause).0);
                Ok(None)
            }
        }
    }

    /// Reads the state without touching anything: for a look from outside.
    ///
    /// # Errors
    /// Why it is of no use, in words.
    pub(crate) fn peek(directory: &Path, node: Option<&SpiffeId>) -> Result<Option<Restored>, String> {
        let Some(bytes) = read_key(&directory.join(KEY)).map_err(Unusable::into_words)? else {
            return Ok(None);
        };
        read_state(directory, &key_of(&bytes), node).map_err(Unusable::into_words)
    }

    /// What was kept aside so far.
    pub(crate) fn aside(&self) -> &[Aside] {
        &self.aside
    }

    /// Replaces the state on disk; durable when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// [`SealedError`]; the state before is still there then.
    pub(crate) fn save(
        &self,
        node: &SpiffeId,
        snapshot: &Snapshot,
        renewal: &NodeRenewal,
    ) -> Result<(), SealedError> {
        self.owed.settle(&self.directory)?;
        let mut salt = [0; SALT_BYTES];
        self.entropy.fill(&mut salt).map_err(|_none| SealedError::Crypto("no randomness"))?;
        replace(&self.directory, STATE, |file| {
            file.write_all(HEADER)?;
            file.write_all(&salt)?;
            let sealing = Sealing::new(&self.key, &salt, HEADER, file);
            let mut sealing = sealing.ok_or_else(|| io::Error::other("no key can be derived"))?;
            stored::write(&mut sealing, node, snapshot, renewal)?;
            sealing.finish()
        })
    }
}

/// What the keys of files are derived from. The key file is random throughout, so nothing is extracted from it before
/// (RFC 5869 §3.3).
fn key_of(bytes: &Zeroizing<[u8; KEY_BYTES]>) -> Prk {
    Prk::new_less_safe(HKDF_SHA256, bytes.as_slice())
}

/// Why a file cannot be used.
enum Unusable {
    /// The system did not let it be read: it may be good.
    Unread(SealedError),
    /// What is in it is of no use.
    Useless(String),
}

impl Unusable {
    fn into_words(self) -> String {
        match self {
            Self::Unread(cause) => cause.to_string(),
            Self::Useless(cause) => cause,
        }
    }
}

fn read_state(directory: &Path, key: &Prk, node: Option<&SpiffeId>) -> Result<Option<Restored>, Unusable> {
    let path = directory.join(STATE);
    let Some(mut file) = open_limited(&path, MAX_STATE_BYTES)? else { return Ok(None) };
    let unread = |cause: io::Error| Unusable::Unread(SealedError::io("read", &path, &cause));
    let useless = |cause: &str| Unusable::Useless(cause.to_owned());
    let mut start = Vec::with_capacity(HEADER.len().saturating_add(SALT_BYTES));
    let wanted = u64::try_from(start.capacity()).unwrap_or_default();
    file.by_ref().take(wanted).read_to_end(&mut start).map_err(unread)?;
    let salt = start.strip_prefix(HEADER);
    let salt = salt.ok_or_else(|| useless("it does not begin as a state of this agent's release does"))?;
    let salt = <[u8; SALT_BYTES]>::try_from(salt).map_err(|_short| useless("it is cut off"))?;
    let mut opening =
        Opening::new(key, &salt, HEADER, file).ok_or_else(|| useless("no key can be derived"))?;
    let mut gathering = Gathering::default();
    let unusable = |error: OpenError| match error {
        OpenError::Unread(cause) => unread(cause),
        OpenError::Damaged => useless(&error.to_string()),
    };
    while let Some(piece) = opening.piece().map_err(unusable)? {
        gathering.take(piece, node).map_err(Unusable::Useless)?;
    }
    gathering.finish().map(Some).map_err(Unusable::Useless)
}

/// What an earlier process left.
pub(crate) struct Restored {
    /// Which node it was.
    pub(crate) node: SpiffeId,
    /// What it held.
    pub(crate) snapshot: Snapshot,
    /// About its own certificate.
    pub(crate) renewal: NodeRenewal,
}

/// When the node's own certificate is to be renewed, as drawn by the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRenewal {
    /// The certificate's serial.
    pub(crate) serial: String,
    /// The instant.
    pub(crate) at: Option<Timestamp>,
}

/// `None` when there is no file; why it cannot be used otherwise. Not more than `limit` bytes come from it.
fn open_limited(path: &Path, limit: u64) -> Result<Option<io::Take<File>>, Unusable> {
    let unread = |cause: io::Error| Unusable::Unread(SealedError::io("read", path, &cause));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unread(error)),
    };
    let metadata = file.metadata().map_err(unread)?;
    if !metadata.is_file() || metadata.len() > limit {
        return Err(Unusable::Useless(format!("it is no file, or larger than {limit} bytes")));
    }
    Ok(Some(file.take(limit)))
}

fn read_key(path: &Path) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, Unusable> {
    let Some(mut file) = open_limited(path, MAX_KEY_BYTES)? else { return Ok(None) };
    let room = usize::try_from(MAX_KEY_BYTES).unwrap_or_default();
    let mut text = Zeroizing::new(Vec::with_capacity(room));
    let read = file.read_to_end(&mut text);
    read.map_err(|cause| Unusable::Unread(SealedError::io("read", path, &cause)))?;
    let metadata = fs::metadata(path);
    let metadata = metadata.map_err(|cause| Unusable::Unread(SealedError::io("read", path, &cause)))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Unusable::Useless(format!("others can read it (mode {mode:04o})")));
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    let decoded = hex::decode_to_slice(text.trim_ascii(), bytes.as_mut_slice());
    decoded.map_err(|_not_hex| Unusable::Useless("it is not a key".to_owned()))?;
    Ok(Some(bytes))
}

fn make_key(directory: &Path, entropy: &dyn Entropy) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealedError> {
    let bytes = random_key(entropy)?;
    write_key(directory, &bytes)?;
    Ok(bytes)
}

fn random_key(entropy: &dyn Entropy) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealedError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    entropy.fill(bytes.as_mut_slice()).map_err(|_none| SealedError::Crypto("no randomness"))?;
    Ok(bytes)
}

fn write_key(directory: &Path, bytes: &[u8; KEY_BYTES]) -> Result<(), SealedError> {
    let text = Zeroizing::new(hex::encode(bytes));
    write(directory, KEY, &[text.as_bytes(), b"\n"])
}

/// Refuses a directory in which somebody else could put files: it holds who this node is and what it serves.
pub(crate) fn check_directory(directory: &Path) -> Result<(), SealedError> {
    let metadata = fs::metadata(directory).map_err(|cause| SealedError::io("look at", directory, &cause))?;
    let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
    let ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    let cause = match (ours, mode & 0o022) {
        (true, 0) => return Ok(()),
        (true, _) => format!("others can write to it (mode {mode:04o}); chmod it to 0700"),
        (false, _) => format!("it belongs to user {owner}, neither to this one nor to root"),
    };
    Err(SealedError::Io { action: "use", path: directory.to_owned(), cause })
}

/// Does what blocks on the disk where it holds up nothing else.
///
/// # Errors
/// [`SealedError::CutOff`] when the runtime ends, or the work panicked.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SealedError> {
    tokio::task::spawn_blocking(work).await.map_err(|_lost| SealedError::CutOff)
}

/// Renames a file of no use, so that nothing is lost.
fn keep_aside(directory: &Path, name: &str, cause: String) -> Result<Aside, SealedError> {
    let from = directory.join(name);
    let free =
        (1..ASIDE_NAMES).map(|n| directory.join(format!("{name}.aside-{n}"))).find(|path| !path.exists());
    let path = free.unwrap_or_else(|| directory.join(format!("{name}.aside-{ASIDE_NAMES}")));
    fs::rename(&from, &path).map_err(|error| SealedError::io("put aside", &from, &error))?;
    tracing::error!(file = %from.display(), aside = %path.display(), cause, "a file of the agent's state is of no use; it is kept aside");
    Ok(Aside { path, cause })
}

/// Replaces a file whole by `parts`, as [`replace`] does.
///
/// # Errors
/// As for [`replace`].
pub(crate) fn write(directory: &Path, name: &str, parts: &[&[u8]]) -> Result<(), SealedError> {
    replace(directory, name, |file| parts.iter().try_for_each(|part| file.write_all(part)))
}

/// Replaces a file whole, with mode 0600 before its first byte, by what `fill` writes; durable when this returns.
///
/// # Errors
/// [`SealedError::Io`]; the file before is still there then.
fn replace(
    directory: &Path,
    name: &str,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), SealedError> {
    let temporary = directory.join(format!(".{name}.tmp"));
    let path = directory.join(name);
    let io = |cause: io::Error| SealedError::io("write", &path, &cause);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        Ok(()) | Err(_) => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(io)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    fill(&mut file).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&temporary, &path).map_err(io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
