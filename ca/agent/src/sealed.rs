//! What the agent holds, encrypted on disk: certificates with their keys, the bundle, the rules and the cursor.
//!
//! Laws: AES-256-GCM with a fresh random nonce for every write, under a key file of mode 0600 beside it; a file is
//! replaced whole (temporary file, fsync, rename, fsync of the directory); what cannot be decrypted, or belongs to another
//! node, is kept aside under another name and reported, and is never fatal; a key file that others can read is kept
//! aside, too. What the disk does not let us read is not known to be of no use: it stays where it is and the start fails.
//! One entry that cannot be used costs that entry. A directory that others can write to is not used. The sealing protects copies of the state that are not copies of the key: backups, snapshots, images.
//! What is of no use and cannot be put aside, on a disk that can only be read, does not stop the start (`owed`).
//! Not here: the node's own identity (`rhizome_tls::IdentityDir`), what to keep (`book`).
//! Sources: NIST SP 800-38D §8.2.2 (random nonces: 2^32 writes per key; ours come by the second),
//! spiffe/spire#1847 (a restart during an outage).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rhizome_core::ports::Entropy;
use rhizome_core::rules::Rule;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_x509::{Bundle, CaCertificate, JwtKey, inspect};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::book::{Kept, Snapshot};
use crate::crls::Crls;
use crate::holdings::Svid;
use crate::renewal::Entitlement;

mod owed;

use owed::Owed;

const STATE: &str = "state.sealed";
const KEY: &str = "state.key";
/// What the file begins with, and what is authenticated beside the content.
const HEADER: &[u8] = b"rhizome-agent state 1\n";
/// AES-256.
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
    key: LessSafeKey,
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
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).map(LessSafeKey::new);
        let key = key.map_err(|_unspecified| SealedError::Crypto("the key cannot be used"))?;
        Ok(Self { directory: directory.to_owned(), key, entropy, aside, owed })
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
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).map(LessSafeKey::new);
        let key = key.map_err(|_unspecified| "the key cannot be used")?;
        read_state(directory, &key, node).map_err(Unusable::into_words)
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
        let stored = Stored::of(node, snapshot, renewal);
        // Room for all of it at once: a buffer that grows leaves unwiped copies behind.
        let mut sealed = Zeroizing::new(Vec::with_capacity(stored.room()));
        let plain = serde_json::to_writer(&mut *sealed, &stored);
        plain.map_err(|_strings_only| SealedError::Crypto("the state cannot be encoded"))?;
        let mut nonce = [0; NONCE_LEN];
        self.entropy.fill(&mut nonce).map_err(|_none| SealedError::Crypto("no randomness"))?;
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(unique, Aad::from(HEADER), &mut *sealed)
            .map_err(|_unspecified| SealedError::Crypto("encryption failed"))?;
        write(&self.directory, STATE, &[HEADER, &nonce, &sealed])
    }
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

fn read_state(
    directory: &Path,
    key: &LessSafeKey,
    node: Option<&SpiffeId>,
) -> Result<Option<Restored>, Unusable> {
    let Some(bytes) = read_limited(&directory.join(STATE), MAX_STATE_BYTES)? else { return Ok(None) };
    decrypt(bytes, key, node).map(Some).map_err(Unusable::Useless)
}

fn decrypt(
    mut bytes: Zeroizing<Vec<u8>>,
    key: &LessSafeKey,
    node: Option<&SpiffeId>,
) -> Result<Restored, String> {
    let body =
        bytes.strip_prefix(HEADER).ok_or("it does not begin as a state of this agent's release does")?;
    let (nonce, _) = body.split_first_chunk::<NONCE_LEN>().ok_or("it is cut off")?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let from = HEADER.len().saturating_add(NONCE_LEN);
    let sealed = bytes.get_mut(from..).ok_or("it is cut off")?;
    let plain = key.open_in_place(nonce, Aad::from(HEADER), sealed);
    let plain = plain.map_err(|_unspecified| "it is damaged, or was sealed under another key")?;
    let stored: Stored =
        serde_json::from_slice(plain).map_err(|error| format!("its content cannot be read: {error}"))?;
    if let Some(node) = node.filter(|node| stored.node != **node) {
        return Err(format!("it belongs to {}, this is {node}", stored.node));
    }
    let (node, renewal) = (stored.node.clone(), stored.renewal.clone());
    Ok(Restored { node, snapshot: stored.snapshot(), renewal })
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

/// The content, as JSON. Unknown fields are ignored, and entries that cannot be read are left out, so that a release can be
/// taken back.
#[derive(Serialize, Deserialize)]
struct Stored {
    node: SpiffeId,
    renewal: NodeRenewal,
    cursor: u64,
    rules: Option<Entries<Arc<Rule>>>,
    #[serde(deserialize_with = "if_readable")]
    bundle: Option<StoredBundle>,
    #[serde(default, deserialize_with = "if_readable")]
    crls: Crls,
    /// Older releases know of none.
    #[serde(default, deserialize_with = "if_readable")]
    orders: Vec<String>,
    svids: Entries<StoredSvid>,
}

/// A list of which each entry is read by itself.
struct Entries<T> {
    read: Vec<T>,
    /// Entries that could not be read.
    lost: usize,
}

/// One of them. Decoding borrows the text, so that no copies of secrets are left behind.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry<T> {
    Read(T),
    Lost(IgnoredAny),
}

impl<T> Entries<T> {
    const fn of(read: Vec<T>) -> Self {
        Self { read, lost: 0 }
    }
}

impl<T: Serialize> Serialize for Entries<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.read.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut entries = Self::of(Vec::new());
        for entry in Vec::<Entry<T>>::deserialize(deserializer)? {
            match entry {
                Entry::Read(entry) => entries.read.push(entry),
                Entry::Lost(_) => entries.lost = entries.lost.saturating_add(1),
            }
        }
        Ok(entries)
    }
}

/// Something that the authority sends anew: nothing, where it cannot be read.
fn if_readable<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    Ok(match Entry::deserialize(deserializer)? {
        Entry::Read(value) => value,
        Entry::Lost(_) => {
            tracing::error!(
                what = std::any::type_name::<T>(),
                "a part of the sealed state cannot be read; it is left out"
            );
            T::default()
        }
    })
}

#[derive(Serialize, Deserialize)]
struct StoredBundle {
    trust_domain: TrustDomain,
    sequence: u64,
    refresh_hint: Ttl,
    anchors: Vec<CaCertificate>,
    /// Older releases know of none.
    #[serde(default)]
    jwt_keys: Vec<JwtKey>,
}

#[derive(Serialize, Deserialize)]
struct StoredSvid {
    entitlement: Entitlement,
    chain: Vec<String>,
    key: Secret,
    renew_at: Timestamp,
    hint: String,
}

/// Base64 of what must be wiped.
struct Secret(Zeroizing<String>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl Stored {
    fn of(node: &SpiffeId, snapshot: &Snapshot, renewal: &NodeRenewal) -> Self {
        let Snapshot { cursor, rules, bundle, crls, orders, svids } = snapshot;
        let bundle = bundle.as_ref().map(|it| StoredBundle {
            trust_domain: it.trust_domain().clone(),
            sequence: it.sequence(),
            refresh_hint: it.refresh_hint(),
            anchors: it.anchors().to_vec(),
            jwt_keys: it.jwt_keys().to_vec(),
        });
        let svid = |Kept { entitlement, svid, renew_at }: &Kept| StoredSvid {
            entitlement: entitlement.clone(),
            chain: svid.chain_der.iter().map(|der| STANDARD.encode(der)).collect(),
            key: Secret(Zeroizing::new(STANDARD.encode(&*svid.key_pkcs8_der))),
            renew_at: *renew_at,
            hint: svid.hint.clone(),
        };
        Self {
            node: node.clone(),
            renewal: renewal.clone(),
            cursor: *cursor,
            rules: rules.clone().map(Entries::of),
            bundle,
            crls: crls.clone(),
            orders: orders.clone(),
            svids: Entries::of(svids.iter().map(svid).collect()),
        }
    }

    /// At least as many bytes as the JSON takes, unless the rules are unusually long.
    fn room(&self) -> usize {
        let chains = self.svids.read.iter().flat_map(|svid| &svid.chain).map(String::len).sum::<usize>();
        let anchors = self.bundle.iter().flat_map(|it| &it.anchors).map(|it| it.der().len()).sum::<usize>();
        let rules = self.rules.as_ref().map_or(0, |rules| rules.read.len());
        let jwt_keys = self.bundle.iter().flat_map(|it| &it.jwt_keys).count();
        chains
            .saturating_add(jwt_keys.saturating_mul(2_048))
            .saturating_add(anchors.saturating_mul(2))
            .saturating_add(self.crls.room())
            .saturating_add(self.svids.read.len().saturating_mul(4_096))
            .saturating_add(rules.saturating_mul(2_048))
            .saturating_add(self.orders.iter().map(|name| name.len().saturating_add(4)).sum())
            .saturating_add(8_192)
    }

    /// What of it can be used; what cannot is said in the log.
    fn snapshot(self) -> Snapshot {
        let bundle = self.bundle.and_then(|it| {
            Bundle::new(it.trust_domain, it.sequence, it.refresh_hint, it.anchors)
                .and_then(|bundle| bundle.with_jwt_keys(it.jwt_keys))
                .inspect_err(|cause| tracing::error!(%cause, "the sealed bundle is of no use"))
                .ok()
        });
        let (lost_rules, lost_svids) = (self.rules.as_ref().map_or(0, |rules| rules.lost), self.svids.lost);
        if lost_rules > 0 || lost_svids > 0 {
            tracing::error!(
                lost_rules,
                lost_svids,
                "entries of the sealed state cannot be read; they are left out"
            );
        }
        // Without some rules this node is not where the cursor says: it asks for all of them.
        let cursor = if lost_rules > 0 { 0 } else { self.cursor };
        let usable = |stored: StoredSvid| {
            let id = stored.entitlement.spiffe_id.clone();
            let kept = stored.kept();
            kept.inspect_err(|cause| tracing::error!(%id, cause, "a sealed identity is of no use")).ok()
        };
        Snapshot {
            cursor,
            rules: self.rules.map(|rules| rules.read),
            bundle: bundle.map(Arc::new),
            crls: self.crls,
            orders: self.orders,
            svids: self.svids.read.into_iter().filter_map(usable).collect(),
        }
    }
}

impl StoredSvid {
    fn kept(self) -> Result<Kept, String> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
        let chain_der: Vec<Vec<u8>> = self.chain.iter().map(|text| decode(text)).collect::<Result<_, _>>()?;
        let leaf = chain_der.first().ok_or("a chain is empty")?;
        let facts = inspect(leaf).map_err(|error| error.to_string())?;
        let spiffe_id = facts.spiffe_id.ok_or("a certificate without a SPIFFE ID")?;
        let svid = Svid {
            spiffe_id,
            key_pkcs8_der: Zeroizing::new(decode(&self.key.0)?),
            not_before: facts.not_before,
            not_after: facts.not_after,
            renew_at: self.renew_at,
            serial: hex::encode(&facts.serial),
            hint: self.hint,
            chain_der,
        };
        Ok(Kept { entitlement: self.entitlement, svid: Arc::new(svid), renew_at: self.renew_at })
    }
}

/// `None` when there is no file; why it cannot be used otherwise.
fn read_limited(path: &Path, limit: u64) -> Result<Option<Zeroizing<Vec<u8>>>, Unusable> {
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
    let room = usize::try_from(metadata.len()).unwrap_or_default().saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit).read_to_end(&mut bytes).map_err(unread)?;
    Ok(Some(bytes))
}

fn read_key(path: &Path) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, Unusable> {
    let Some(text) = read_limited(path, MAX_KEY_BYTES)? else { return Ok(None) };
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

/// Replaces a file whole, with mode 0600 before its first byte; durable when this returns.
pub(crate) fn write(directory: &Path, name: &str, parts: &[&[u8]]) -> Result<(), SealedError> {
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
    for part in parts {
        file.write_all(part).map_err(io)?;
    }
    file.sync_all().map_err(io)?;
    fs::rename(&temporary, &path).map_err(io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
