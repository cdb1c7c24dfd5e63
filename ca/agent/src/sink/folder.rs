//! Opening the folder of a sink's files, so that nobody but root and the agent decides which folder that is.
//!
//! Laws: every folder on the way belongs to root or the agent's user and cannot be changed by others; the last one may
//! be anybody's, because what happens in it happens relative to its descriptor. A link is followed only where nobody
//! else could have made it. In a sticky folder, such as `/tmp`, others can make things but not replace ours.
//! Not here: the files (`files`). Blocks on the disk.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RawMode, Stat, fstat, mkdirat, openat, readlinkat};
use rustix::io::Errno;

use super::files::FileError;

/// Links that are followed on one way: as many as Linux itself follows.
const LINKS: usize = 40;
const WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const LAST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a folder to work in.
///
/// # Errors
/// [`FileError::Untrusted`] when others decide which folder that is, else what the operating system says.
pub(super) fn open(path: &Path) -> Result<OwnedFd, FileError> {
    let failed = |action| move |cause: Errno| FileError::io(action, path, cause.into());
    let mut left: Vec<OsString> = Vec::new();
    push(&mut left, path);
    let (mut way, mut shown) = (root(WAY).map_err(failed("open"))?, PathBuf::from("/"));
    let mut links = 0;
    while let Some(name) = left.pop() {
        let stat = fstat(&way).map_err(failed("open"))?;
        trust(&stat, &shown, path)?;
        let flags = if left.is_empty() { LAST } else { WAY };
        match openat(&way, &name, flags, Mode::empty()) {
            Ok(next) if left.is_empty() => return Ok(next),
            Ok(next) => {
                way = next;
                shown.push(&name);
            }
            Err(cause @ (Errno::NOTDIR | Errno::LOOP)) => {
                // Others can make links in a sticky folder; of those, none is followed.
                let link = readlinkat(&way, &name, Vec::new()).map_err(|_no_link| failed("open")(cause))?;
                links = usize::saturating_add(links, 1);
                if links > LINKS || is_open(&stat) {
                    return Err(failed("open")(Errno::LOOP));
                }
                let target = PathBuf::from(OsString::from_vec(link.into_bytes()));
                if target.is_absolute() {
                    (way, shown) = (root(WAY).map_err(failed("open"))?, PathBuf::from("/"));
                }
                push(&mut left, &target);
            }
            Err(cause) => return Err(failed("open")(cause)),
        }
    }
    root(LAST).map_err(failed("open"))
}

/// Opens a folder, made with this mode if it is not there.
///
/// # Errors
/// As [`open`].
pub(super) fn open_or_make(path: &Path, mode: RawMode) -> Result<OwnedFd, FileError> {
    match open(path) {
        Err(error) if error.is_missing() => {}
        found => return found,
    }
    let failed = |cause: Errno| FileError::io("make", path, cause.into());
    let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(|| failed(Errno::INVAL))?;
    let above = open(parent)?;
    trust(&fstat(&above).map_err(failed)?, parent, path)?;
    mkdirat(&above, name, Mode::from_raw_mode(mode)).map_err(failed)?;
    let made = openat(&above, name, LAST, Mode::empty()).map_err(failed)?;
    // The umask may have taken bits away.
    rustix::fs::fchmod(&made, Mode::from_raw_mode(mode)).map_err(failed)?;
    Ok(made)
}

fn root(flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(CWD, "/", flags, Mode::empty())
}

/// Puts the names of a path before what is left; the next one is the last of the list.
fn push(left: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    left.extend(names);
}

/// Whether others may make things in a folder.
const fn is_open(stat: &Stat) -> bool {
    stat.st_mode & 0o022 != 0
}

/// Checks that nobody else can put another folder, or a link, where `path` leads through this one.
fn trust(stat: &Stat, folder: &Path, path: &Path) -> Result<(), FileError> {
    let (owner, mode) = (stat.st_uid, stat.st_mode & 0o7777);
    let ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    let sticky = mode & 0o1000 != 0;
    if ours && (!is_open(stat) || sticky) {
        return Ok(());
    }
    Err(FileError::Untrusted { path: path.to_owned(), folder: folder.to_owned(), owner, mode })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_others_could_replace_by_a_link_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let (open_to_all, other) = (base.path().join("open"), base.path().join("other"));
        fs::create_dir_all(open_to_all.join("mine")).unwrap();
        fs::create_dir(&other).unwrap();
        set_mode(&open_to_all, 0o777);
        let refused = open(&open_to_all.join("mine")).unwrap_err();
        assert!(matches!(refused, FileError::Untrusted { .. }), "{refused}");
        assert!(refused.to_string().contains("open"), "{refused}");
        assert!(matches!(open_or_make(&open_to_all.join("new"), 0o755), Err(FileError::Untrusted { .. })));
        open(&open_to_all).unwrap();
        // Sticky: nobody replaces what is ours, but anybody makes links.
        set_mode(&open_to_all, 0o1777);
        open(&open_to_all.join("mine")).unwrap();
        symlink(&other, open_to_all.join("link")).unwrap();
        assert!(matches!(open(&open_to_all.join("link")), Err(FileError::Io { .. })));
        assert!(open_or_make(&open_to_all.join("link"), 0o755).is_err());
    }

    #[test]
    fn links_that_only_root_or_the_agent_can_have_made_are_followed() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("real/inner")).unwrap();
        symlink("real", base.path().join("relative")).unwrap();
        symlink(base.path().join("relative/inner"), base.path().join("absolute")).unwrap();
        symlink("round", base.path().join("round")).unwrap();
        let found = open(&base.path().join("absolute")).unwrap();
        let expected = open(&base.path().join("real/inner")).unwrap();
        assert_eq!(fstat(&found).unwrap().st_ino, fstat(&expected).unwrap().st_ino);
        assert!(open(&base.path().join("round")).is_err());
        assert!(open(&base.path().join("away")).unwrap_err().is_missing());
        fs::write(base.path().join("file"), "").unwrap();
        assert!(open(&base.path().join("file")).is_err());
    }
}
