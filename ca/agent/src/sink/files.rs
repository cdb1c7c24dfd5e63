//! A sink's files: written so that a reader sees all of the old or all of the new, with owner and mode set each time.
//!
//! Laws: a file with a private key is closed to others before its first byte; one file is replaced by one rename; split
//! files lie in a directory of their own, reached by one link that is swapped when all of them are there and safe, so
//! the key behind it always belongs to the certificate behind it. No link that somebody planted is followed: everything
//! happens relative to an open directory. What could not be finished is taken away again.
//! Not here: when (`plan`). Blocks on the disk.

use std::borrow::Cow;
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rhizome_id::Timestamp;
use rhizome_x509::{Bundle, inspect};
use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, mkdirat, openat, readlinkat, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::folder;
use super::plan::Content;
use super::settings::{KeyMode, Owner, SinkSettings};
use crate::sds::pem;

/// The split file with the certificate and those above it.
const CHAIN: &str = "svid.pem";
/// The link to the newest split files.
const CURRENT: &str = "current";
/// What the name of a file with the roots of a foreign trust domain begins and ends with.
const FEDERATED: (&str, &str) = ("federated-", ".pem");
/// Longest name of a file on Linux, `NAME_MAX`.
const NAME_BYTES: usize = 255;
/// More than a file of ours ever has.
const FILE_BYTES: u64 = 4 * 1024 * 1024;
/// What directories of split files begin with.
const VERSION: &str = "v-";
/// What is not finished ends with.
const UNFINISHED: &str = ".rhizome-new";
/// Everybody may read certificates.
const PUBLIC: u32 = 0o644;
/// Everybody may go through to the files, which have modes of their own.
const FOLDER: u32 = 0o755;
/// Bytes of the databases of users and groups that are read.
const DATABASE_BYTES: u64 = 1024 * 1024;

/// Why files were not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
    /// Others decide which folder it is.
    #[error(
        "{}: {} belongs to user {owner} and has mode {mode:04o}, so others could put another folder there; \
         chown it to root or the agent's user and chmod it go-w", path.display(), folder.display()
    )]
    Untrusted { path: PathBuf, folder: PathBuf, owner: u32, mode: u32 },
    /// There is no such user or group.
    #[error("there is no {what} `{name}` on this machine")]
    NoOwner { what: &'static str, name: String },
}

impl FileError {
    pub(super) fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), cause }
    }

    /// Whether it is only not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |cause| FileError::Io { action, path, cause }
}

fn errno(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> FileError {
    let inner = io_error(action, path);
    move |cause| inner(cause.into())
}

/// Where a sink writes, and as whose.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    file: Option<PathBuf>,
    directory: Option<PathBuf>,
    owner: Option<Owner>,
    mode: KeyMode,
}

/// One file to be.
struct Plain {
    name: Cow<'static, str>,
    mode: u32,
    bytes: Zeroizing<Vec<u8>>,
}

type Ids = (Option<u32>, Option<u32>);

impl Targets {
    pub(super) fn of(settings: &SinkSettings) -> Self {
        let path = |it: &Option<super::settings::AbsolutePath>| it.as_ref().map(|it| it.as_path().to_owned());
        Self {
            file: path(&settings.file),
            directory: path(&settings.directory),
            owner: settings.owner.clone(),
            mode: settings.mode,
        }
    }

    /// Whether any of the files is there.
    pub(super) fn any(&self) -> bool {
        let current = self.directory.as_ref().map(|directory| directory.join(CURRENT));
        [self.file.as_ref(), current.as_ref()]
            .into_iter()
            .flatten()
            .any(|path| path.symlink_metadata().is_ok())
    }

    /// Until when the certificates in the files are valid, the last of them; `None` when there are none that can be read.
    pub(super) fn expiry(&self) -> Option<Timestamp> {
        let split = self.directory.as_ref().map(|directory| directory.join(CURRENT).join(CHAIN));
        let found = [self.file.clone(), split].into_iter().flatten().map(|path| leaf_expiry(&path));
        // Whatever cannot be read may hold anything.
        let found: Option<Vec<Option<Timestamp>>> = found.collect();
        found?.into_iter().flatten().max()
    }

    /// Writes everything anew.
    pub(super) fn write(&self, content: &Content) -> Result<(), FileError> {
        let ids = self.owner.as_ref().map_or(Ok((None, None)), ids_of)?;
        if let Some(path) = &self.file {
            let (folder, name) = parts(path)?;
            let folder = folder::open(folder)?;
            let bytes = combined(content);
            let plain = Plain { name: Cow::Borrowed(""), mode: self.mode.bits(), bytes };
            replace(&folder, path, &name, &plain, ids)?;
        }
        if let Some(path) = &self.directory {
            write_split(path, &split(content, self.mode), ids)?;
        }
        Ok(())
    }

    /// Whether the files are as [`Self::write`] left them: content, owner and mode.
    pub(super) fn is_as_written(&self, content: &Content) -> bool {
        let Ok(ids) = self.owner.as_ref().map_or(Ok((None, None)), ids_of) else { return false };
        let as_it_was = |path: &Path, mode, bytes: &[u8]| is_so(path, mode, ids, bytes);
        let file =
            self.file.as_ref().is_none_or(|path| as_it_was(path, self.mode.bits(), &combined(content)));
        file && self.directory.as_ref().is_none_or(|path| {
            let current = path.join(CURRENT);
            let is_so = |it: &Plain| as_it_was(&current.join(&*it.name), it.mode, &it.bytes);
            split(content, self.mode).iter().all(is_so)
        })
    }

    /// Takes every file away.
    pub(super) fn remove(&self) -> Result<(), FileError> {
        if let Some(path) = &self.file {
            let (folder, name) = parts(path)?;
            if let Some(folder) = open_if_there(folder)? {
                unlink(&folder, &name).map_err(io_error("remove", path))?;
                sync(&folder, path)?;
            }
        }
        if let Some(path) = &self.directory
            && let Some(folder) = open_if_there(path)?
        {
            unlink(&folder, CURRENT).map_err(io_error("remove", path))?;
            for version in versions(&folder, path)? {
                remove_version(&folder, &version).map_err(io_error("remove", path))?;
            }
            sync(&folder, path)?;
        }
        Ok(())
    }
}

/// Key, chain, roots: what HAProxy and many others take in one file.
fn combined(content: &Content) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(room(content)));
    pem::append(&mut out, pem::PRIVATE_KEY, &content.svid.key_pkcs8_der);
    content.svid.chain_der.iter().for_each(|der| pem::append(&mut out, pem::CERTIFICATE, der));
    content.bundle.anchors().iter().for_each(|root| pem::append(&mut out, pem::CERTIFICATE, root.der()));
    out
}

fn split(content: &Content, mode: KeyMode) -> Vec<Plain> {
    let file = |name: &'static str, mode, label, ders: Vec<&[u8]>| {
        let mut bytes = Zeroizing::new(Vec::with_capacity(room(content)));
        ders.into_iter().for_each(|der| pem::append(&mut bytes, label, der));
        Plain { name: Cow::Borrowed(name), mode, bytes }
    };
    let chain = content.svid.chain_der.iter().map(Vec::as_slice).collect();
    let roots = content.bundle.anchors().iter().map(|root| root.der()).collect();
    let mut files = vec![
        file(CHAIN, PUBLIC, pem::CERTIFICATE, chain),
        file("key.pem", mode.bits(), pem::PRIVATE_KEY, vec![&content.svid.key_pkcs8_der]),
        file("bundle.pem", PUBLIC, pem::CERTIFICATE, roots),
    ];
    if !content.crls.is_empty() {
        files.push(file("crl.pem", PUBLIC, pem::CRL, content.crls.iter().map(Vec::as_slice).collect()));
    }
    files.extend(content.foreign.iter().filter_map(|bundle| federated(bundle)));
    files
}

/// The roots of a foreign trust domain, in a file of their own: whoever puts them together with others lets each domain
/// speak for all. None for a domain without roots, or with a name that is too long for a file.
fn federated(bundle: &Bundle) -> Option<Plain> {
    let name = format!("{}{}{}", FEDERATED.0, bundle.trust_domain(), FEDERATED.1);
    if bundle.anchors().is_empty() || name.len() > NAME_BYTES {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::new());
    bundle.anchors().iter().for_each(|root| pem::append(&mut bytes, pem::CERTIFICATE, root.der()));
    Some(Plain { name: Cow::Owned(name), mode: PUBLIC, bytes })
}

/// Until when the first certificate of a file is valid. `Some(None)` when there is no file, `None` when it cannot be read.
fn leaf_expiry(path: &Path) -> Option<Option<Timestamp>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Some(None),
        Err(_) => return None,
    };
    let mut content = Zeroizing::new(String::new());
    file.take(FILE_BYTES).read_to_string(&mut content).ok()?;
    let der = pem::first(&content, pem::CERTIFICATE)?;
    Some(Some(inspect(&der).ok()?.not_after))
}

/// Room for everything at once: a buffer that grows leaves unwiped copies behind.
fn room(content: &Content) -> usize {
    let ders = content.svid.chain_der.iter().chain(content.crls.iter()).map(Vec::len);
    let roots = content.bundle.anchors().iter().map(|root| root.der().len());
    let total: usize =
        ders.chain(roots).chain([content.svid.key_pkcs8_der.len()]).map(|bytes| bytes + 64).sum();
    total.saturating_mul(2)
}

fn parts(path: &Path) -> Result<(&Path, String), FileError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let bad = || io_error("use", path)(io::Error::from(io::ErrorKind::InvalidFilename));
    path.parent().zip(name).map(|(folder, name)| (folder, name.to_owned())).ok_or_else(bad)
}

/// A folder that is gone holds no files that would have to be removed.
fn open_if_there(path: &Path) -> Result<Option<OwnedFd>, FileError> {
    match folder::open(path) {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates a file that was not there; gone again when that fails.
fn create(
    folder: &OwnedFd,
    path: &Path,
    name: &str,
    plain: &Plain,
    (uid, gid): Ids,
) -> Result<(), FileError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(errno("create a file for", path))?;
    let mut file = File::from(opened);
    let mut fill = || -> io::Result<()> {
        file.write_all(&plain.bytes)?;
        if uid.is_some() || gid.is_some() {
            std::os::unix::fs::fchown(&file, uid, gid)?;
        }
        file.set_permissions(Permissions::from_mode(plain.mode))?;
        file.sync_all()
    };
    fill().map_err(|cause| {
        // It is of no use, and on a full disk in the way.
        drop(unlink(folder, name));
        io_error("write", path)(cause)
    })
}

/// Replaces one file by another in one step.
fn replace(folder: &OwnedFd, path: &Path, name: &str, plain: &Plain, ids: Ids) -> Result<(), FileError> {
    let unfinished = format!(".{name}{UNFINISHED}");
    unlink(folder, &unfinished).map_err(io_error("clear the way for", path))?;
    create(folder, path, &unfinished, plain, ids)?;
    if let Err(cause) = renameat(folder, &unfinished, folder, name) {
        drop(unlink(folder, &unfinished));
        return Err(errno("replace", path)(cause));
    }
    sync(folder, path)
}

fn write_split(path: &Path, files: &[Plain], ids: Ids) -> Result<(), FileError> {
    let folder = folder::open_or_make(path, FOLDER)?;
    let known = versions(&folder, path)?;
    let before = readlinkat(&folder, CURRENT, Vec::new()).ok().and_then(|link| link.into_string().ok());
    let last = known.iter().filter_map(|name| name.strip_prefix(VERSION)?.parse::<u64>().ok()).max();
    let version = format!("{VERSION}{:010}", last.unwrap_or_default().saturating_add(1));
    if let Err(error) = fill_version(&folder, path, &version, files, ids) {
        drop(remove_version(&folder, &version));
        return Err(error);
    }
    // Whoever opened a file of the version before may still be reading the others; older ones nobody can be reading.
    for old in known.iter().filter(|old| Some(*old) != before.as_ref()) {
        if let Err(cause) = remove_version(&folder, old) {
            tracing::warn!(directory = %path.display(), version = old, %cause, "old files are still there");
        }
    }
    Ok(())
}

fn fill_version(
    folder: &OwnedFd,
    path: &Path,
    version: &str,
    files: &[Plain],
    ids: Ids,
) -> Result<(), FileError> {
    mkdirat(folder, version, Mode::from_raw_mode(FOLDER)).map_err(errno("make a directory in", path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(folder, version, flags, Mode::empty()).map_err(errno("open a directory in", path))?;
    let inner_file = File::from(inner.try_clone().map_err(io_error("open a directory in", path))?);
    inner_file
        .set_permissions(Permissions::from_mode(FOLDER))
        .map_err(io_error("make a directory in", path))?;
    for file in files {
        create(&inner, path, &file.name, file, ids)?;
    }
    sync(&inner, path)?;
    let unfinished = format!(".{CURRENT}{UNFINISHED}");
    unlink(folder, &unfinished).map_err(io_error("clear the way in", path))?;
    symlinkat(version, folder, &unfinished).map_err(errno("make a link in", path))?;
    if let Err(cause) = renameat(folder, &unfinished, folder, CURRENT) {
        drop(unlink(folder, &unfinished));
        return Err(errno("swap the link in", path)(cause));
    }
    sync(folder, path)
}

fn sync(folder: &OwnedFd, path: &Path) -> Result<(), FileError> {
    rustix::fs::fsync(folder).map_err(errno("write the directory of", path))
}

/// Removes what may not be there.
fn unlink(folder: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

/// The names of all directories of split files.
fn versions(folder: &OwnedFd, path: &Path) -> Result<Vec<String>, FileError> {
    names(folder, |name| name.starts_with(VERSION)).map_err(io_error("list", path))
}

fn names(folder: &OwnedFd, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && wanted(name)
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn remove_version(folder: &OwnedFd, version: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = match openat(folder, version, flags, Mode::empty()) {
        Ok(inner) => inner,
        Err(Errno::NOENT) => return Ok(()),
        Err(cause) => return Err(cause.into()),
    };
    for name in names(&inner, |name| name != "." && name != "..")? {
        unlink(&inner, &name)?;
    }
    unlinkat(folder, version, AtFlags::REMOVEDIR).map_err(io::Error::from)
}

fn is_so(path: &Path, mode: u32, (uid, gid): Ids, bytes: &[u8]) -> bool {
    // Nothing that was put in the file's place is waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = openat(CWD, path, flags, Mode::empty()).map(File::from) else { return false };
    let Ok(found) = file.metadata() else { return false };
    let right = |wanted: Option<u32>, found: u32| wanted.is_none_or(|wanted| wanted == found);
    if !found.is_file()
        || found.mode() & 0o7777 != mode
        || !right(uid, found.uid())
        || !right(gid, found.gid())
    {
        return false;
    }
    let limit = bytes.len().saturating_add(1);
    let mut content = Zeroizing::new(Vec::with_capacity(limit));
    let read = file.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut content);
    read.is_ok() && *content == bytes
}

/// The numbers of an owner, as the files in `/etc` have them; directories behind NSS are not asked.
fn ids_of(owner: &Owner) -> Result<Ids, FileError> {
    let (uid, own_group) = match owner.user.parse::<u32>() {
        Ok(uid) => (uid, None),
        Err(_name) => {
            let fields = database("/etc/passwd", &owner.user, "user")?;
            let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
            let none = || FileError::NoOwner { what: "user", name: owner.user.clone() };
            (number(2).ok_or_else(none)?, number(3))
        }
    };
    let gid = match &owner.group {
        None => own_group,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => Some(gid),
            Err(_name) => {
                let fields = database("/etc/group", group, "group")?;
                let none = || FileError::NoOwner { what: "group", name: group.clone() };
                Some(fields.get(2).and_then(|field| field.parse().ok()).ok_or_else(none)?)
            }
        },
    };
    Ok((Some(uid), gid))
}

/// The fields of the line of `name`.
fn database(path: &str, name: &str, what: &'static str) -> Result<Vec<String>, FileError> {
    let mut text = String::new();
    let path = Path::new(path);
    let file = File::open(path).map_err(io_error("read", path))?;
    file.take(DATABASE_BYTES).read_to_string(&mut text).map_err(io_error("read", path))?;
    let mut lines = text.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
    let found = lines.find(|fields| fields.first().is_some_and(|first| first == name));
    found.ok_or_else(|| FileError::NoOwner { what, name: name.to_owned() })
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
