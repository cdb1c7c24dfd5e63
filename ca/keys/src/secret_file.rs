//! Small secrets in files: a sealing key, the PIN of a token.
//!
//! Laws: the file belongs to this process's user and nobody else can read it, checked on the open file, so that what is
//! checked is what is read; what was read is wiped. Not here: what the text means, and what to tell people.
//! Sources: ca/docs/attacks.md §1.5 "key file open to others".

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

/// Why there is no secret.
#[derive(Debug)]
pub(crate) enum Problem {
    /// No such file.
    Missing,
    /// Not a file, too long, or not text.
    Unlike,
    /// It belongs to this user.
    Owner(u32),
    /// Others can read it: its permission bits.
    Exposed(u32),
    /// What the system said.
    Io(io::Error),
}

/// The text of the file `path`, which must belong to `user` and have at most `most` bytes.
pub(crate) fn read(path: &Path, user: u32, most: u64) -> Result<Zeroizing<String>, Problem> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Problem::Missing),
        opened => opened.map_err(Problem::Io)?,
    };
    let metadata = file.metadata().map_err(Problem::Io)?;
    if !metadata.is_file() || metadata.len() > most {
        return Err(Problem::Unlike);
    }
    if metadata.uid() != user {
        return Err(Problem::Owner(metadata.uid()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Problem::Exposed(mode));
    }
    // Room for all of it at once: a buffer that grows leaves unwiped copies behind.
    let room = usize::try_from(most).unwrap_or_default().saturating_add(1);
    let mut text = Zeroizing::new(String::with_capacity(room));
    match file.take(most).read_to_string(&mut text) {
        Ok(_length) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Problem::Unlike),
        Err(error) => Err(Problem::Io(error)),
    }
}
