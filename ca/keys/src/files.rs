//! A directory with one file for each key.
//!
//! Laws: the directory is 0700 and every file 0600, set before the first byte and whatever the umask; a file is
//! replaced whole (temporary file, fsync, rename, fsync of the directory), so that a crash leaves the old or the new
//! one; a path is the directory and a [`KeyId`], whose grammar has no separator and no leading dot, and nothing else.
//! Not here: what is in a file. Sources: ca/docs/attacks.md §1.5 "key file open to others" and
//! "path traversal in a name".

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rhizome_core::ports::KeyRingError;
use rhizome_id::KeyId;
use zeroize::Zeroizing;

const SUFFIX: &str = ".key.json";
const TEMPORARY_SUFFIX: &str = ".tmp";
/// Largest key file read, in bytes: a sealed P-384 key takes some 700.
const MAX_FILE_BYTES: u64 = 16 * 1024;
/// Most keys in one directory: a root and an issuer for each of a thousand rotations, destroyed by nobody.
const MAX_FILES: usize = 2000;

/// What to do with a directory or file that others can read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// Take their bits away: what lies there is sealed. (Kubernetes adds group bits to volumes at every start.)
    Mend,
    /// Refuse: what lies there is secret, and may be known.
    Refuse,
}

#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Opens the directory, making it when it is not there, and clears what a crash left behind.
    pub(crate) fn open(path: &Path, exposure: Exposure) -> Result<Self, KeyRingError> {
        let directory = Self { path: path.to_owned() };
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                restrict(path, 0o700)?;
                // The directory's own name must survive a crash, too.
                let above = path.parent().filter(|above| !above.as_os_str().is_empty());
                sync(above.unwrap_or_else(|| Path::new(".")))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                guard(path, 0o700, exposure)?;
            }
            Err(error) => return Err(failed("create", path, &error)),
        }
        for name in directory.names()? {
            let path = directory.path.join(&name);
            if name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX) {
                fs::remove_file(&path).map_err(|error| failed("remove", &path, &error))?;
            } else if name.ends_with(SUFFIX) {
                guard(&path, 0o600, exposure)?;
            }
        }
        Ok(directory)
    }

    /// The names of the keys that have a file, in order.
    pub(crate) fn ids(&self) -> Result<Vec<KeyId>, KeyRingError> {
        let mut ids = Vec::new();
        for name in self.names()? {
            let Some(stem) = name.strip_suffix(SUFFIX).filter(|_| !name.starts_with('.')) else {
                continue; // not ours
            };
            ids.push(stem.parse().map_err(|error| unavailable(&self.path.join(&name), &error))?);
        }
        if ids.len() > MAX_FILES {
            return Err(unavailable(&self.path, &format!("more than {MAX_FILES} keys")));
        }
        ids.sort();
        Ok(ids)
    }

    /// What is in a key's file.
    pub(crate) fn read(&self, id: &KeyId) -> Result<Zeroizing<Vec<u8>>, KeyRingError> {
        let path = self.file(id);
        let io = |error: io::Error| failed("read", &path, &error);
        let file = File::open(&path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length > MAX_FILE_BYTES {
            return Err(KeyRingError::Corrupt {
                id: id.clone(),
                cause: format!("its file has {length} bytes, no key file is that large"),
            });
        }
        // Room for all of it at once: a buffer that grows leaves unwiped copies behind.
        let room = usize::try_from(length).unwrap_or_default().saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// Writes a key's file whole; durable when this returns.
    pub(crate) fn write(&self, id: &KeyId, bytes: &[u8]) -> Result<(), KeyRingError> {
        let temporary = self.temporary(id);
        let io = |error: io::Error| failed("write", &temporary, &error);
        remove_if_there(&temporary)?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(io)?;
        // The umask may have taken bits away from us; nobody else ever had any.
        file.set_permissions(PermissionsExt::from_mode(0o600)).map_err(io)?;
        file.write_all(bytes).map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&temporary, self.file(id)).map_err(io)?;
        sync(&self.path)
    }

    /// Removes a key's file; it stays removed when this returns. Fine when there is none.
    pub(crate) fn remove(&self, id: &KeyId) -> Result<(), KeyRingError> {
        remove_if_there(&self.temporary(id))?;
        remove_if_there(&self.file(id))?;
        sync(&self.path)
    }

    fn names(&self) -> Result<Vec<String>, KeyRingError> {
        let io = |error: io::Error| failed("list", &self.path, &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io)? {
            // A name that is not UTF-8 is not one of ours.
            if let Ok(name) = entry.map_err(io)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn file(&self, id: &KeyId) -> PathBuf {
        self.path.join(format!("{id}{SUFFIX}"))
    }

    fn temporary(&self, id: &KeyId) -> PathBuf {
        self.path.join(format!(".{id}{TEMPORARY_SUFFIX}"))
    }
}

fn sync(directory: &Path) -> Result<(), KeyRingError> {
    File::open(directory).and_then(|open| open.sync_all()).map_err(|error| failed("sync", directory, &error))
}

fn remove_if_there(path: &Path) -> Result<(), KeyRingError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path, &error)),
    }
}

fn guard(path: &Path, mode: u32, exposure: Exposure) -> Result<(), KeyRingError> {
    let metadata = fs::metadata(path).map_err(|error| failed("read", path, &error))?;
    let found = metadata.mode() & 0o7777;
    if found & 0o077 == 0 {
        return Ok(());
    }
    match exposure {
        Exposure::Mend => restrict(path, mode),
        Exposure::Refuse => Err(unavailable(
            path,
            &format!(
                "open to others (mode {found:04o}), and keys lie there unsealed; replace them if they may be known, \
                 then run: chmod {mode:o} {}",
                path.display()
            ),
        )),
    }
}

fn restrict(path: &Path, mode: u32) -> Result<(), KeyRingError> {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(|error| failed("chmod", path, &error))
}

fn failed(action: &str, path: &Path, error: &io::Error) -> KeyRingError {
    KeyRingError::Unavailable { cause: format!("cannot {action} {}: {error}", path.display()) }
}

fn unavailable(path: &Path, cause: &dyn std::fmt::Display) -> KeyRingError {
    KeyRingError::Unavailable { cause: format!("{}: {cause}", path.display()) }
}
