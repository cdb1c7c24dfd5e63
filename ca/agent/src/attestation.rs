//! Attestation: what a process at the other end of a local socket is, as attributes that rules can match.
//!
//! Laws: everything said about a caller is read from one process, held by a pidfd, and checked to be the same process
//! before and after; what cannot be learnt is left out, never guessed, so a rule that needs it does not match. A caller
//! that makes reading slow delays only its own user.
//! Not here: which attributes grant what (`rhizome_core::policy`).

mod executable;
mod process;
mod systemd;
mod unix;

pub use process::{PeerError, PeerProcess};
pub use unix::{AttestError, Attested, UnixAttestor, UnixSettings};
