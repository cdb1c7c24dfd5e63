//! What a disk that let itself only be read kept the start from doing: done before the first write.
//!
//! Laws: in its order; what is of no use is put aside before anything takes its place, and a key is on disk before
//! anything is sealed under it. Not here: why a file is of no use (`super`).

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use super::{Aside, KEY_BYTES, SealedError, keep_aside, write_key};

/// What is still to be done.
#[derive(Default)]
pub(super) struct Owed(Mutex<Vec<Debt>>);

enum Debt {
    /// Putting a file of no use aside.
    Aside(&'static str, String),
    /// Writing the key.
    Key(Zeroizing<[u8; KEY_BYTES]>),
}

impl Owed {
    /// Puts a file of no use aside, now or later. Where it is now, and whether it was put aside.
    pub(super) fn put_aside(&self, directory: &Path, name: &'static str, cause: String) -> (Aside, bool) {
        let refused = match keep_aside(directory, name, cause.clone()) {
            Ok(kept) => return (kept, true),
            Err(refused) => refused,
        };
        let path = directory.join(name);
        tracing::error!(
            file = %path.display(),
            cause,
            %refused,
            "a file of the agent's state is of no use and cannot be put aside; it is left alone, and nothing is \
             written until it can"
        );
        self.add(Debt::Aside(name, cause.clone()));
        (Aside { path, cause }, false)
    }

    /// Writes this key later.
    pub(super) fn write_key(&self, key: Zeroizing<[u8; KEY_BYTES]>) {
        self.add(Debt::Key(key));
    }

    /// Does what is owed.
    ///
    /// # Errors
    /// [`SealedError`] of the first that cannot be done; it and what follows stay owed.
    pub(super) fn settle(&self, directory: &Path) -> Result<(), SealedError> {
        let mut debts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = debts.first() {
            match first {
                Debt::Aside(name, cause) => drop(keep_aside(directory, name, cause.clone())?),
                Debt::Key(key) => write_key(directory, key)?,
            }
            debts.remove(0);
        }
        Ok(())
    }

    fn add(&self, debt: Debt) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(debt);
    }
}
