//! The file that a process runs: which one it is, and its SHA-256, computed once per file.
//!
//! Laws: a digest is of the very file that runs, opened through its process, not of whatever its path names; it is
//! remembered under everything that changes with the contents (device, inode, size, times of modification and of
//! change), and only once the last change is so long ago that a further one would show. The path is said only when the
//! agent sees the same file under it: a process in a mount namespace of its own names its files as it likes.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rhizome_id::Timestamp;
use ring::digest::{Context, SHA256};

/// Digests remembered. A host runs a few hundred different programs; a hundred bytes each.
const REMEMBERED: usize = 1024;
/// A file changed less than this many seconds ago may change again without its times showing it: file systems keep
/// times by the tick, some by the second or two.
const SETTLED_SECONDS: i64 = 3;
/// Bytes read at once.
const CHUNK_BYTES: usize = 128 * 1024;

/// A file in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileState {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether `path`, as the agent sees it, is this file.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        path.metadata().is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub(super) enum HashError {
    #[error("the executable has {bytes} bytes; the limit is {limit}")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("the executable changed while it was read")]
    Changing,
    #[error("cannot read the executable: {0}")]
    Io(#[from] io::Error),
}

/// Digests of executables, in 64 lower-case hexadecimal digits.
#[derive(Debug, Default)]
pub(super) struct Digests(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    digests: BTreeMap<FileState, String>,
    oldest_first: VecDeque<FileState>,
}

impl Digests {
    /// The digest of an open file; blocks while it reads. `state` is what the file was before.
    pub(super) fn digest(
        &self,
        file: &mut File,
        state: FileState,
        limit: u64,
        now: Timestamp,
    ) -> Result<String, HashError> {
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).digests.get(&state) {
            return Ok(known.clone());
        }
        if state.size > limit {
            return Err(HashError::TooLarge { bytes: state.size, limit });
        }
        let digest = hex::encode(read_through(file, limit)?);
        if FileState::of(&file.metadata()?) != state {
            return Err(HashError::Changing);
        }
        if state.changed.0.saturating_add(SETTLED_SECONDS) < now.unix() {
            self.remember(state, digest.clone());
        }
        Ok(digest)
    }

    fn remember(&self, state: FileState, digest: String) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.digests.insert(state, digest).is_none() {
            remembered.oldest_first.push_back(state);
        }
        while remembered.oldest_first.len() > REMEMBERED {
            if let Some(oldest) = remembered.oldest_first.pop_front() {
                remembered.digests.remove(&oldest);
            }
        }
    }
}

fn read_through(file: &mut File, limit: u64) -> Result<ring::digest::Digest, HashError> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0u64;
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(context.finish());
        }
        total = total.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if total > limit {
            return Err(HashError::TooLarge { bytes: total, limit });
        }
        context.update(chunk.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn open(path: &Path) -> (File, FileState) {
        let file = File::open(path).unwrap();
        let state = FileState::of(&file.metadata().unwrap());
        (file, state)
    }

    #[test]
    fn a_digest_is_remembered_only_once_the_file_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "").unwrap();
        let (mut file, state) = open(&path);
        let digests = Digests::default();
        let fresh = Timestamp::from_unix(state.changed.0);
        assert_eq!(digests.digest(&mut file, state, 10, fresh).unwrap(), EMPTY);
        assert!(digests.0.lock().unwrap().digests.is_empty());
        let later = Timestamp::from_unix(state.changed.0 + SETTLED_SECONDS + 1);
        assert_eq!(digests.digest(&mut file, state, 10, later).unwrap(), EMPTY);
        assert_eq!(digests.0.lock().unwrap().digests.len(), 1);
    }

    #[test]
    fn a_file_above_the_limit_has_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "12345").unwrap();
        let (mut file, state) = open(&path);
        let digests = Digests::default();
        let now = Timestamp::from_unix(0);
        assert!(matches!(
            digests.digest(&mut file, state, 4, now),
            Err(HashError::TooLarge { bytes: 5, .. })
        ));
        assert!(digests.digest(&mut file, state, 5, now).is_ok());
    }

    #[test]
    fn a_file_that_is_not_what_it_was_has_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "12345").unwrap();
        let (_, state) = open(&path);
        std::fs::write(&path, "123456").unwrap();
        let mut file = File::open(&path).unwrap();
        let outcome = Digests::default().digest(&mut file, state, 100, Timestamp::from_unix(0));
        assert!(matches!(outcome, Err(HashError::Changing)));
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let digests = Digests::default();
        let state = |inode| FileState { device: 1, inode, size: 0, modified: (0, 0), changed: (0, 0) };
        for inode in 0..=u64::try_from(REMEMBERED).unwrap() {
            digests.remember(state(inode), String::new());
        }
        let remembered = digests.0.lock().unwrap();
        assert_eq!(remembered.digests.len(), REMEMBERED);
        assert!(!remembered.digests.contains_key(&state(0)) && remembered.digests.contains_key(&state(1)));
    }

    #[test]
    fn another_file_under_the_same_path_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&path, "a").unwrap();
        std::fs::write(&other, "b").unwrap();
        let (_, state) = open(&path);
        assert!(state.is_at(&path) && !state.is_at(&other) && !state.is_at(&folder.path().join("c")));
    }
}
