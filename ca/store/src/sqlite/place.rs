//! The files of a database: who may read them, and that one server at a time has them.
//!
//! Laws: a file is created with mode 0600 whatever the umask, and the mode is applied again at every open;
//! SQLite gives `-wal` and `-shm` the database's mode. `PATH.lock` is locked (`flock`) as long as a store is open, so
//! a second server on the same file is refused at once, and a killed one leaves no lock behind. The lock is a file of
//! its own because SQLite's POSIX locks on the database are lost when any descriptor of it is closed.
//! Not here: what is in the files.
//! Sources: ca/docs/attacks.md §1.5 (key file open to others); sqlite.org/howtocorrupt.html §2.2.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rhizome_core::ports::StoreError;

use crate::limits::RETRY_AFTER;

/// A locked database path: nobody else opens it while this lives.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    _lock: File,
}

impl Place {
    /// Checks the directory and takes the lock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the directory will not do, or another process has the database open.
    pub(super) fn claim(path: &Path) -> Result<Self, StoreError> {
        check_directory(path)?;
        let beside = with_suffix(path, ".lock");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(PRIVATE).open(&beside);
        let lock = lock.map_err(|cause| failed("open", &beside, &cause))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(unavailable(format!(
                "{} is in use by another server (its lock {} is held); stop that one first",
                path.display(),
                beside.display()
            ))),
            Err(TryLockError::Error(cause)) => Err(failed("lock", &beside, &cause)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the database is there. One that is shorter than SQLite's smallest page is not taken for a new one:
    /// databases appear at their path whole (see `copy`), so it was emptied. And where a log of a lost database lies,
    /// no other is made: SQLite would write that log into it (sqlite.org/howtocorrupt.html §1.4).
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it was emptied or lost.
    pub(super) fn is_taken(&self) -> Result<bool, StoreError> {
        match fs::metadata(&self.path) {
            Ok(found) if found.len() >= SMALLEST_PAGE => Ok(true),
            Ok(found) => {
                let (path, bytes) = (self.path.display(), found.len());
                Err(StoreError::Corrupt { cause: format!("{path} has only {bytes} bytes; it was emptied") })
            }
            Err(cause) if cause.kind() == ErrorKind::NotFound => self.refuse_orphans().map(|()| false),
            Err(cause) => Err(failed("look for", &self.path, &cause)),
        }
    }

    fn refuse_orphans(&self) -> Result<(), StoreError> {
        for suffix in ["-wal", "-journal"] {
            let log = with_suffix(&self.path, suffix);
            if fs::exists(&log).map_err(|cause| failed("look for", &log, &cause))? {
                let (log, path) = (log.display(), self.path.display());
                let cause = format!("{log} is there, but {path} is not; put it back, or move the log away");
                return Err(StoreError::Corrupt { cause });
            }
        }
        Ok(())
    }

    /// Closes the database, and what lies beside it, to everybody else.
    pub(super) fn secure(&self) -> Result<(), StoreError> {
        for suffix in ["", "-wal", "-shm"] {
            let file = with_suffix(&self.path, suffix);
            match fs::set_permissions(&file, Permissions::from_mode(PRIVATE)) {
                Err(cause) if cause.kind() != ErrorKind::NotFound => {
                    return Err(failed("close to others", &file, &cause));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Creates an empty file that only its owner may read; it must not exist.
///
/// # Errors
/// [`StoreError::Exists`] when it does.
fn create(path: &Path) -> Result<(), StoreError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path);
    match created.and_then(|file| file.set_permissions(Permissions::from_mode(PRIVATE))) {
        Ok(()) => Ok(()),
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
            Err(StoreError::Exists { path: path.display().to_string() })
        }
        Err(cause) => Err(failed("create", path, &cause)),
    }
}

/// A database file being written; it is removed, with what SQLite put beside it, unless it is kept.
#[derive(Debug)]
pub(super) struct Unfinished<'a> {
    path: &'a Path,
    kept: bool,
}

impl<'a> Unfinished<'a> {
    /// Creates the file; see [`create`].
    pub(super) fn create(path: &'a Path) -> Result<Self, StoreError> {
        create(path)?;
        Ok(Self { path, kept: false })
    }

    /// Makes the file and its name durable, and keeps it.
    pub(super) fn keep(mut self) -> Result<(), StoreError> {
        self.sync()?;
        sync_directory(self.path)?;
        self.kept = true;
        Ok(())
    }

    /// Gives the finished file its proper name, durably. Nothing is there: the caller holds the place's lock.
    pub(super) fn keep_as(mut self, place: &Place) -> Result<(), StoreError> {
        self.sync()?;
        fs::rename(self.path, &place.path).map_err(|cause| failed("rename", self.path, &cause))?;
        self.kept = true;
        sync_directory(&place.path)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let synced = File::open(self.path).and_then(|file| file.sync_all());
        synced.map_err(|cause| failed("sync", self.path, &cause))
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.kept {
            remove_database(self.path);
        }
    }
}

/// Removes a database that is not wanted, and what SQLite may have put beside it.
pub(super) fn remove_database(path: &Path) {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let file = with_suffix(path, suffix);
        match fs::remove_file(&file) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => {
                tracing::warn!(file = %file.display(), %cause, "an incomplete copy could not be removed");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Makes the directory entry of `path` durable.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = directory_of(path);
    let synced = File::open(directory).and_then(|opened| opened.sync_all());
    synced.map_err(|cause| failed("sync", directory, &cause))
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn failed(action: &str, path: &Path, cause: &io::Error) -> StoreError {
    let text = format!("cannot {action} {}: {cause}", path.display());
    if matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return StoreError::Full { cause: text };
    }
    unavailable(text)
}

pub(super) const fn unavailable(cause: String) -> StoreError {
    StoreError::Unavailable { cause, retry_after: RETRY_AFTER }
}

fn check_directory(path: &Path) -> Result<(), StoreError> {
    let directory = directory_of(path);
    let found = fs::metadata(directory).map_err(|cause| failed("use the directory", directory, &cause))?;
    if !found.is_dir() {
        return Err(unavailable(format!("{} is not a directory", directory.display())));
    }
    let mode = found.permissions().mode();
    // Group-writable is how Kubernetes mounts a volume with `fsGroup`. Writable for all without the sticky bit means
    // that any user of the host can put another database in place of ours.
    if mode & WRITABLE_BY_ALL != 0 && mode & STICKY == 0 {
        return Err(unavailable(format!(
            "everybody may replace files in {}; run `chmod o-w {}`",
            directory.display(),
            directory.display()
        )));
    }
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

const PRIVATE: u32 = 0o600;
/// sqlite.org/fileformat.html §1.3.2: pages have at least 512 bytes.
const SMALLEST_PAGE: u64 = 512;
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;
