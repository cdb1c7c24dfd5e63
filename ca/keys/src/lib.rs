//! Where private signing keys live: in memory, or in sealed files; one conformance suite for both.
//!
//! Laws: a private key leaves its ring only sealed, and nothing prints, compares or copies it; every key is proved
//! against its public key before it is first used, by signing a probe; a key moved to another name, purpose or
//! algorithm does not open. Our copies of private bytes are zeroised; the crypto library's own copy, inside a key that
//! is in use, is not ours to wipe and lives until the key is dropped. Not here: which key signs what, and when keys are
//! made and destroyed (`rhizome_core::authority`).
//! Sources: `rhizome_core::ports`, NIST SP 800-38D §8, ca/docs/attacks.md §1.5.

pub mod conformance;

mod envelope;
mod files;
mod memory;
mod random;
mod sealed_file;
mod sealing;
mod shelf;
mod signer;

pub use memory::MemoryKeyRing;
pub use sealed_file::SealedFileKeyRing;
pub use sealing::{SealingKey, SealingKeyError};
