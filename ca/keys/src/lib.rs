//! Where private signing keys live: in memory, in sealed files, sealed in the database, or in a PKCS#11 token; one
//! conformance suite for all.
//!
//! Laws: a private key leaves its ring only sealed, and nothing prints, compares or copies it; every key is proved
//! against its public key before it is first used, by signing a probe; a key moved to another name, purpose or
//! algorithm does not open. Our copies of private bytes are zeroised; the crypto library's own copy, inside a key that
//! is in use, is not ours to wipe and lives until the key is dropped. Not here: which key signs what, and when keys are
//! made and destroyed (`rhizome_core::authority`).
//! Sources: `rhizome_core::ports`, NIST SP 800-38D §8, ca/docs/attacks.md §1.5.

pub mod conformance;

mod database;
mod envelope;
mod files;
mod memory;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod random;
mod routed;
mod sealed_file;
mod sealing;
mod secret_file;
mod shelf;
mod signer;

pub use database::DatabaseKeyRing;
pub use memory::MemoryKeyRing;
#[cfg(feature = "pkcs11")]
pub use pkcs11::{Pin, PinError, Pkcs11KeyRing, TokenOptions};
pub use routed::RoutedKeyRing;
pub use sealed_file::SealedFileKeyRing;
pub use sealing::{SealingKey, SealingKeyError, SealingKeys};
