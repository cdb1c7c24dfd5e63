//! The sealing key: 32 bytes under which key files are sealed, kept apart from them.
//!
//! Laws: it comes from a file that only this process's user can read, or from a text the caller was given; it cannot be
//! printed, compared or copied, and is zeroised on drop. Its *name* is public: eight bytes derived from it, by which a
//! key file says what it was sealed under. Not here: what is sealed, and how (`envelope`).
//! Sources: NIST SP 800-38D §8.2.2 (random nonces), ca/docs/attacks.md §1.5 "key file open to others".

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::{aead, hmac};
use zeroize::{Zeroize, Zeroizing};

use crate::random;
use crate::secret_file::{self, Problem};

/// Bytes of a sealing key: AES-256.
const LENGTH: usize = 32;
/// Largest sealing key file read, in bytes: 64 hexadecimal digits and some white space.
const MAX_FILE_BYTES: u64 = 256;
const NAME_CONTEXT: &[u8] = b"rhizome: name of a sealing key, version 1";

/// A sealing key.
///
/// It cannot be printed, compared or copied:
///
/// ```compile_fail,E0277
/// fn show(key: &rhizome_keys::SealingKey) -> String {
///     format!("{key:?}")
/// }
/// ```
///
/// ```compile_fail,E0599
/// fn copy(key: &rhizome_keys::SealingKey) -> rhizome_keys::SealingKey {
///     key.clone()
/// }
/// ```
///
/// ```compile_fail,E0369
/// fn compare(one: &rhizome_keys::SealingKey, other: &rhizome_keys::SealingKey) -> bool {
///     one == other
/// }
/// ```
pub struct SealingKey(Zeroizing<[u8; LENGTH]>);

impl SealingKey {
    /// Makes a new sealing key in the file `path` (mode 0600, base64 and a newline), which must not exist; durable when
    /// this returns. Whoever loses the file loses every key sealed under it.
    ///
    /// # Errors
    /// [`SealingKeyError::Exists`], or what the system said.
    pub fn generate_file(path: &Path) -> Result<Self, SealingKeyError> {
        let mut bytes = Zeroizing::new([0; LENGTH]);
        random::fill(bytes.as_mut_slice()).map_err(|_none| SealingKeyError::Randomness)?;
        let text = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        let io = |cause: io::Error| SealingKeyError::io("write", path, &cause);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
                if error.kind() == io::ErrorKind::AlreadyExists {
                    SealingKeyError::Exists { path: path.to_owned() }
                } else {
                    io(error)
                }
            })?;
        // The umask may have taken bits away from us; nobody else ever had any.
        file.set_permissions(PermissionsExt::from_mode(0o600)).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.write_all(b"\n").map_err(io)?;
        file.sync_all().map_err(io)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or_else(|| Path::new(".")))
            .and_then(|directory| directory.sync_all())
            .map_err(io)?;
        Ok(Self(bytes))
    }

    /// Reads a sealing key from a file that belongs to this process's user and that nobody else can read.
    ///
    /// # Errors
    /// [`SealingKeyError`], with the command that mends it.
    pub fn from_file(path: &Path) -> Result<Self, SealingKeyError> {
        Self::from_file_of(path, rustix::process::geteuid().as_raw())
    }

    fn from_file_of(path: &Path, user: u32) -> Result<Self, SealingKeyError> {
        let path = || path.to_owned();
        let text = secret_file::read(&path(), user, MAX_FILE_BYTES).map_err(|problem| match problem {
            Problem::Missing => SealingKeyError::Missing { path: path() },
            Problem::Unlike => SealingKeyError::in_file(&path(), SealingKeyError::Malformed),
            Problem::Owner(owner) => SealingKeyError::Owner { path: path(), owner, user },
            Problem::Exposed(mode) => SealingKeyError::Exposed { path: path(), mode },
            Problem::Io(cause) => SealingKeyError::io("read", &path(), &cause),
        })?;
        Self::from_text(&text).map_err(|cause| SealingKeyError::in_file(&path(), cause))
    }

    /// Reads a sealing key from 64 hexadecimal digits, or from base64 (either alphabet, padded or not); white space
    /// around it is ignored. For a value that the caller was handed, for example in its environment.
    ///
    /// # Errors
    /// [`SealingKeyError::Malformed`] when it is not 32 bytes in one of these forms;
    /// [`SealingKeyError::Trivial`] when all of them are the same.
    pub fn from_text(text: &str) -> Result<Self, SealingKeyError> {
        let text = text.trim_ascii();
        let mut bytes = Zeroizing::new([0; LENGTH]);
        if text.len() == 2 * LENGTH {
            hex::decode_to_slice(text, bytes.as_mut_slice())
                .map_err(|_not_hex| SealingKeyError::Malformed)?;
        } else {
            decode_base64(text, &mut bytes)?;
        }
        let [first, rest @ ..] = &*bytes;
        if rest.iter().all(|byte| byte == first) {
            return Err(SealingKeyError::Trivial);
        }
        Ok(Self(bytes))
    }

    /// The key's public name: 16 hexadecimal digits. It says nothing about the key.
    pub fn name(&self) -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice()), NAME_CONTEXT);
        tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn cipher(&self) -> Option<aead::LessSafeKey> {
        let unbound = aead::UnboundKey::new(&aead::AES_256_GCM, self.0.as_slice()).ok()?;
        Some(aead::LessSafeKey::new(unbound))
    }
}

/// The sealing key that a ring seals under, and others that it only opens with: what one of those opens is sealed anew
/// under the first when the ring is opened. That is how a sealing key is changed.
pub struct SealingKeys {
    first: SealingKey,
    others: Vec<SealingKey>,
}

impl From<SealingKey> for SealingKeys {
    fn from(first: SealingKey) -> Self {
        Self { first, others: Vec::new() }
    }
}

impl From<SealingKey> for Arc<SealingKeys> {
    fn from(first: SealingKey) -> Self {
        Self::new(first.into())
    }
}

impl SealingKeys {
    /// Also opens what was sealed under `other`.
    #[must_use]
    pub fn opening(mut self, other: SealingKey) -> Self {
        self.others.push(other);
        self
    }

    pub(crate) const fn first(&self) -> &SealingKey {
        &self.first
    }

    /// The key of that public name, if it is among these.
    pub(crate) fn named(&self, name: &str) -> Option<&SealingKey> {
        std::iter::once(&self.first).chain(&self.others).find(|key| key.name() == name)
    }
}

/// Public names only.
impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, others } = self;
        let others = others.iter().map(SealingKey::name);
        f.debug_list().entry(&first.name()).entries(others).finish()
    }
}

fn decode_base64(text: &str, bytes: &mut [u8; LENGTH]) -> Result<(), SealingKeyError> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    if text.len() > 44 {
        return Err(SealingKeyError::Malformed); // 32 bytes take 43 or 44 characters
    }
    [&alphabet::STANDARD, &alphabet::URL_SAFE]
        .into_iter()
        .find_map(|alphabet| {
            let mut room = Zeroizing::new([0; 48]);
            let engine = GeneralPurpose::new(alphabet, config);
            let length = engine.decode_slice(text, room.as_mut_slice()).ok()?;
            let decoded: &[u8; LENGTH] = room.get(..length)?.try_into().ok()?;
            bytes.zeroize();
            bytes.copy_from_slice(decoded);
            Some(())
        })
        .ok_or(SealingKeyError::Malformed)
}

/// Why there is no sealing key. Never holds any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealingKeyError {
    /// The file is not there.
    #[error("the sealing key {path} does not exist; without it, keys sealed under it stay sealed", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is there already.
    #[error("{path} exists already; a sealing key is never overwritten", path = path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Others can read it.
    #[error("the sealing key {path} is open to others (mode {mode:04o}); run: chmod 600 {path}", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the sealing key {path} belongs to uid {owner}, this process is uid {user}; run: chown {user} {path} && chmod 600 {path}",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// What a file holds will not do.
    #[error("{path}: {cause}", path = path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: Box<Self>,
    },
    /// Not a sealing key.
    #[error("not a sealing key: it is 32 bytes, written as 64 hexadecimal digits or in base64")]
    Malformed,
    /// All bytes are the same.
    #[error(
        "all bytes of the sealing key are the same; make a random one, for example: openssl rand -base64 32"
    )]
    Trivial,
    /// The system gave no randomness.
    #[error("the system gives no randomness")]
    Randomness,
    /// The file system refused.
    #[error("cannot {action} the sealing key {path}: {cause}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

impl SealingKeyError {
    fn in_file(path: &Path, cause: Self) -> Self {
        Self::InFile { path: path.to_owned(), cause: Box::new(cause) }
    }

    fn io(action: &'static str, path: &Path, cause: &io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), cause: cause.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn a_generated_file_reads_back_and_is_never_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sealing.key");
        let made = SealingKey::generate_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(SealingKey::from_file(&path).unwrap().name(), made.name());
        let before = fs::read(&path).unwrap();
        assert_eq!(
            SealingKey::generate_file(&path).err(),
            Some(SealingKeyError::Exists { path: path.clone() })
        );
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_mends_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sealing.key");
        SealingKey::generate_file(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o610, 0o602] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = SealingKey::from_file(&path).err().unwrap();
            assert_eq!(error, SealingKeyError::Exposed { path: path.clone(), mode });
            assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())));
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        assert!(SealingKey::from_file(&path).is_ok());
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sealing.key");
        SealingKey::generate_file(&path).unwrap();
        let owner = fs::metadata(&path).unwrap().uid();
        let error = SealingKey::from_file_of(&path, owner + 1).err().unwrap();
        assert!(error.to_string().contains(&format!("chown {} ", owner + 1)), "{error}");
    }

    #[test]
    fn hexadecimal_and_base64_in_every_usual_form_give_the_same_key() {
        let name = SealingKey::from_text(HEX).unwrap().name();
        let unpadded = BASE64.trim_end_matches('=');
        for text in [BASE64, unpadded, &format!("  {BASE64}\n"), &HEX.to_uppercase()] {
            assert_eq!(SealingKey::from_text(text).unwrap().name(), name, "{text}");
        }
        let (standard, url) = ("+".repeat(42) + "8", "-".repeat(42) + "8");
        assert_eq!(
            SealingKey::from_text(&standard).unwrap().name(),
            SealingKey::from_text(&url).unwrap().name()
        );
    }

    #[test]
    fn other_lengths_and_trivial_keys_are_refused_without_being_repeated() {
        for text in ["", "secret", &HEX[..62], &format!("{HEX}00"), &"zz".repeat(32), &BASE64[..40]] {
            let error = SealingKey::from_text(text).err().unwrap();
            assert_eq!(error, SealingKeyError::Malformed, "{text}");
        }
        assert_eq!(SealingKey::from_text(&"00".repeat(32)).err(), Some(SealingKeyError::Trivial));
        assert_eq!(SealingKey::from_text(&"ff".repeat(32)).err(), Some(SealingKeyError::Trivial));
    }

    #[test]
    fn missing_files_and_directories_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("none");
        assert_eq!(SealingKey::from_file(&path).err(), Some(SealingKeyError::Missing { path }));
        fs::set_permissions(home.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(SealingKey::from_file(home.path()).err(), Some(malformed_in(home.path())));
    }

    #[test]
    fn what_a_file_holds_is_refused_with_the_file_s_name_and_without_its_content() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        for content in [&b"not-a-key"[..], b"\xff\xfe", b""] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let error = SealingKey::from_file(&path).err().unwrap();
            assert_eq!(error, malformed_in(&path));
            assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
            assert!(!error.to_string().contains("not-a-key"), "{error}");
        }
    }

    fn malformed_in(path: &Path) -> SealingKeyError {
        SealingKeyError::InFile { path: path.to_owned(), cause: Box::new(SealingKeyError::Malformed) }
    }
}
