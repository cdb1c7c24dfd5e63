//! The PIN of a token's user.
//!
//! Laws: it comes from a file that only this process's user can read, or from a text the caller was given; it cannot be
//! printed, compared or copied, and is wiped on drop. Not here: how often it is tried (`token`).

use std::path::{Path, PathBuf};

use cryptoki::types::AuthPin;

use crate::secret_file::{self, Problem};

/// Longest PIN file read, in bytes; modules take some dozens.
const MAX_FILE_BYTES: u64 = 1024;

/// A PIN.
///
/// It cannot be printed:
///
/// ```compile_fail,E0277
/// fn show(pin: &rhizome_keys::Pin) -> String {
///     format!("{pin:?}")
/// }
/// ```
pub struct Pin(AuthPin);

impl Pin {
    /// The PIN `text`; white space around it is ignored.
    ///
    /// # Errors
    /// [`PinError::Empty`].
    pub fn from_text(text: &str) -> Result<Self, PinError> {
        match text.trim_ascii() {
            "" => Err(PinError::Empty),
            text => Ok(Self(AuthPin::from(text))),
        }
    }

    /// The PIN in a file that belongs to this process's user and that nobody else can read.
    ///
    /// # Errors
    /// [`PinError`], with the command that mends it.
    pub fn from_file(path: &Path) -> Result<Self, PinError> {
        let user = rustix::process::geteuid().as_raw();
        let path_of = || path.to_owned();
        let text = secret_file::read(path, user, MAX_FILE_BYTES).map_err(|problem| match problem {
            Problem::Missing => PinError::Missing { path: path_of() },
            Problem::Unlike => PinError::Unlike { path: path_of() },
            Problem::Owner(owner) => PinError::Owner { path: path_of(), owner, user },
            Problem::Exposed(mode) => PinError::Exposed { path: path_of(), mode },
            Problem::Io(cause) => PinError::Io { path: path_of(), cause: cause.to_string() },
        })?;
        Self::from_text(&text)
    }

    pub(crate) const fn secret(&self) -> &AuthPin {
        &self.0
    }
}

/// Why there is no PIN. Never holds any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// Nothing but white space.
    #[error("the PIN is empty")]
    Empty,
    /// The file is not there.
    #[error("the PIN file {path} does not exist", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Not a small file of text.
    #[error("{path} holds no PIN: it must be a file with one line of text", path = path.display())]
    Unlike {
        /// The file.
        path: PathBuf,
    },
    /// Others can read it.
    #[error("the PIN file {path} is open to others (mode {mode:04o}); run: chmod 600 {path}", path = path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the PIN file {path} belongs to uid {owner}, this process is uid {user}; run: chown {user} {path} && chmod 600 {path}",
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
    /// The file system refused.
    #[error("cannot read the PIN file {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pin_file_that_others_can_read_is_refused_with_the_command_and_without_the_pin() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("pin");
        fs::write(&path, "847201\n").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let refused = Pin::from_file(&path).err().unwrap();
        let said = format!("{refused} {refused:?}");
        assert!(said.contains("chmod 600") && !said.contains("847201"), "{said}");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(Pin::from_file(&path).is_ok());
    }

    #[test]
    fn an_empty_pin_and_a_missing_file_are_refused() {
        assert_eq!(Pin::from_text(" \n").err(), Some(PinError::Empty));
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("none");
        assert_eq!(Pin::from_file(&path).err(), Some(PinError::Missing { path }));
    }
}
