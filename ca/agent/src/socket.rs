//! The Unix socket: its folder, its modes, and what an agent that died left behind.
//!
//! Laws: whatever the umask, the folder is 0755 when this makes it and the socket 0777: every local process may connect,
//! because who it is comes from the kernel and not from who could open a file (SPIFFE Workload Endpoint §3, §4). The
//! socket appears under its name only with its mode set. A folder that others can write to is refused, since they could
//! put a socket of their own there; a sticky one is not, since they could not replace ours. One agent owns a socket, by
//! a lock beside it; only a socket that nobody answers on is replaced, nothing else is ever removed.
//! Not here: who connects (`attestation`), what is served (`workload_api`, `sds`).
//! Sources: unix(7); SPIFFE Workload Endpoint §3.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

mod authority;
mod connection;
mod counted;
mod limits;
mod serve;

pub(crate) use connection::{Caller, Place as StreamPlace};
pub use limits::Limits;
pub use serve::{Doors, DoorsSettings, SERVICES, serve};

/// Everybody may enter and list; only the owner may put sockets there.
const FOLDER_MODE: u32 = 0o755;
/// Everybody may connect: connecting to a Unix socket needs write permission on it.
const SOCKET_MODE: u32 = 0o777;
/// Only the owner may connect.
const PRIVATE_MODE: u32 = 0o600;
/// Only the owner may lock.
const LOCK_MODE: u32 = 0o600;
/// The longest path a socket address holds on Linux (unix(7): 108 with the final zero).
const ADDRESS_BYTES: usize = 107;
/// What the socket is called until its mode is set.
const UNFINISHED: &str = ".new";
const LOCK: &str = ".lock";

/// A listening socket that removes itself.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    _lock: File,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path cannot be a socket's.
    #[error("`{}` cannot be the path of a socket: {problem}", path.display())]
    Path {
        /// As configured.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Others could replace what is in the folder.
    #[error(
        "the folder `{}` belongs to user {owner} and has mode {mode:04o}; others could put a socket of theirs there. \
         Use a folder that only the agent's user can write to",
        path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// Another agent, or something else, serves there.
    #[error("`{}` is in use by a running process; stop it or choose another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket, or is not ours, is in the way.
    #[error("`{}` exists and is {what}; it is left alone. Remove it or choose another path", path.display())]
    InTheWay {
        /// What is in the way.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} `{}`: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
}

impl Socket {
    /// Listens at `path`, an absolute one. Call it inside a runtime.
    ///
    /// # Errors
    /// [`SocketError`], with nothing removed that may belong to somebody else.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_with(path, SOCKET_MODE)
    }

    /// The same, but only the agent's own user and root may connect.
    ///
    /// # Errors
    /// As for [`Self::bind`].
    pub fn bind_private(path: &Path) -> Result<Self, SocketError> {
        Self::bind_with(path, PRIVATE_MODE)
    }

    fn bind_with(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let bad = |problem| SocketError::Path { path: path.to_owned(), problem };
        if !path.is_absolute() {
            return Err(bad("it is not absolute"));
        }
        let unfinished = with_suffix(path, UNFINISHED);
        if unfinished.as_os_str().as_bytes().len() > ADDRESS_BYTES {
            return Err(bad("it is longer than 103 bytes"));
        }
        let (Some(folder), Some(_)) = (path.parent(), path.file_name()) else {
            return Err(bad("it names a folder"));
        };
        prepare_folder(folder)?;
        let lock = take_lock(path)?;
        make_way(path)?;
        make_way(&unfinished)?;
        remove_if_there(&unfinished)?;
        let listener = UnixListener::bind(&unfinished).map_err(io_error("bind", &unfinished))?;
        fs::set_permissions(&unfinished, Permissions::from_mode(mode))
            .map_err(io_error("set the mode of", &unfinished))?;
        let made = unfinished.symlink_metadata().map_err(io_error("look at", &unfinished))?;
        fs::rename(&unfinished, path).map_err(io_error("rename into place", path))?;
        let identity = (made.dev(), made.ino());
        Ok(Self { listener, path: path.to_owned(), identity, _lock: lock })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Only what this made; the lock is still held, so nobody of ours replaces it in between.
        let ours = self.path.symlink_metadata().is_ok_and(|it| (it.dev(), it.ino()) == self.identity);
        if ours && let Err(cause) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %cause, "cannot remove the socket");
        }
    }
}

/// Makes what is missing of `folder` and refuses one that others can write to.
fn prepare_folder(folder: &Path) -> Result<(), SocketError> {
    match folder.metadata() {
        Ok(_) => {}
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            if let Some(above) = folder.parent() {
                prepare_ancestor(above)?;
            }
            make_folder(folder)?;
        }
        Err(cause) => return Err(io_error("look at", folder)(cause)),
    }
    let found = folder.metadata().map_err(io_error("look at", folder))?;
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    let mine = owner == 0 || owner == rustix::process::geteuid().as_raw();
    let sticky = mode & 0o1000 != 0;
    if !found.is_dir() {
        return Err(SocketError::InTheWay { path: folder.to_owned(), what: "no folder" });
    }
    if !mine || (mode & 0o022 != 0 && !sticky) {
        return Err(SocketError::Folder { path: folder.to_owned(), owner, mode });
    }
    Ok(())
}

fn prepare_ancestor(folder: &Path) -> Result<(), SocketError> {
    if folder.exists() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        prepare_ancestor(above)?;
    }
    make_folder(folder)
}

fn make_folder(folder: &Path) -> Result<(), SocketError> {
    match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        // The umask may have taken bits away; it cannot have added any.
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))
            .map_err(io_error("set the mode of", folder)),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(cause) => Err(io_error("make", folder)(cause)),
    }
}

/// Takes the lock of the socket; it is let go with the file, also when the process dies.
fn take_lock(path: &Path) -> Result<File, SocketError> {
    let lock = with_suffix(path, LOCK);
    let mut options = OpenOptions::new();
    // Not through a link that somebody planted in a sticky folder.
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits();
    options.create(true).truncate(false).write(true).mode(LOCK_MODE).custom_flags(no_links.cast_signed());
    let file = options.open(&lock).map_err(io_error("open", &lock))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(cause)) => Err(io_error("lock", &lock)(cause)),
    }
}

/// Checks that nothing at `path` would be lost by putting a socket there.
fn make_way(path: &Path) -> Result<(), SocketError> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(io_error("look at", path)(cause)),
    };
    let in_the_way = |what| SocketError::InTheWay { path: path.to_owned(), what };
    if !found.file_type().is_socket() {
        return Err(in_the_way("no socket"));
    }
    if found.uid() != 0 && found.uid() != rustix::process::geteuid().as_raw() {
        return Err(in_the_way("another user's socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(cause) if matches!(cause.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            Ok(())
        }
        Err(cause) if cause.kind() != io::ErrorKind::WouldBlock => Err(io_error("connect to", path)(cause)),
        Ok(_) | Err(_) => Err(SocketError::InUse { path: path.to_owned() }),
    }
}

fn remove_if_there(path: &Path) -> Result<(), SocketError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(cause)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |cause| SocketError::Io { action, path, cause }
}

#[cfg(test)]
#[path = "socket/tests.rs"]
mod tests;
