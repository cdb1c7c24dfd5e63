//! Files that verbs read and write.
//!
//! Laws: what is read has a limit; what is written is complete or not there (temporary file, fsync, rename), and has
//! its mode before its first byte. Not here: identity directories (`rhizome_tls::IdentityDir`).

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::exit::Failure;

/// Mode of a file that only its owner may read.
pub(crate) const PRIVATE: u32 = 0o600;

/// Mode of a file that everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// Reads a whole file, or standard input for `-`, of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let read = |source: &mut dyn io::Read| {
        let mut bytes = Vec::new();
        source.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let outcome = if path == Path::new("-") {
        read(&mut io::stdin().lock())
    } else {
        File::open(path).and_then(|mut file| read(&mut file))
    };
    let bytes = outcome.map_err(|error| Failure::file("read", path, &error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= limit) {
        Ok(bytes)
    } else {
        Err(Failure::usage(format!("{} is larger than {limit} bytes", path.display())))
    }
}

/// A file that comes into being under its name only when it is [finished](Self::finish).
pub(crate) struct NewFile {
    temporary: NamedTempFile,
}

impl NewFile {
    /// Begins a file that will be put at `path` with `mode`.
    pub(crate) fn begin(path: &Path, mode: u32) -> Result<Self, Failure> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let begin = || {
            let temporary = NamedTempFile::new_in(folder)?;
            temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
            Ok(Self { temporary })
        };
        begin().map_err(|error| Failure::file("create", path, &error))
    }

    /// Appends.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.temporary.write_all(bytes).map_err(|error| Failure::file("write", self.temporary.path(), &error))
    }

    /// Makes it durable and gives it its name. Without `replace`, a file that is there already is a failure.
    pub(crate) fn finish(self, path: &Path, replace: bool) -> Result<(), Failure> {
        let finish = || -> io::Result<()> {
            self.temporary.as_file().sync_all()?;
            if replace {
                self.temporary.persist(path)?;
            } else {
                self.temporary.persist_noclobber(path)?;
            }
            match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
                Some(_) | None => File::open(".")?.sync_all(),
            }
        };
        finish().map_err(|error| Failure::file("write", path, &error))
    }
}

/// Writes a whole file, replacing what was there.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let mut file = NewFile::begin(path, mode)?;
    file.write(bytes)?;
    file.finish(path, true)
}

/// Makes a directory that only its owner may enter, unless it is there.
pub(crate) fn private_directory(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
        .map_err(|error| Failure::file("create", path, &error))
}

/// Removes a file that may not be there.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::file("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_has_its_mode_and_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for text in ["first", "second"] {
            write(&path, text.as_bytes(), PRIVATE).unwrap();
            assert_eq!(read_limited(&path, 6).unwrap(), text.as_bytes());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert!(read_limited(&path, 5).is_err(), "one byte more than the limit is refused");
    }

    #[test]
    fn an_unfinished_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NewFile::begin(&folder.path().join("backup"), PRIVATE).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_there_is_kept_unless_replacing_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("backup");
        write(&path, b"old", PUBLIC).unwrap();
        let mut file = NewFile::begin(&path, PUBLIC).unwrap();
        file.write(b"new").unwrap();
        assert!(file.finish(&path, false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
