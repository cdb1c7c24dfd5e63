//! Changes: what others wrote to a store that many servers share.
//!
//! Laws: versions are given out in the order of commits, so whoever has taken in everything up to a version has missed
//! nothing before it. A document that changed twice shows its last state alone; one that was deleted shows as a
//! tombstone. Tombstones are not kept for ever: whoever was away for too long is told to read everything anew.
//! Not here: how a server takes them in (`rhizome_server`), how a store keeps them (`rhizome-store`).

use std::sync::Arc;

use crate::documents::{DocumentKey, Version};

/// A document that was written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Which.
    pub key: DocumentKey,
    /// When it was last written, in the store's own count.
    pub version: Version,
    /// JSON; `None`: it was deleted.
    pub body: Option<Arc<str>>,
}

/// An answer to "what changed after this version?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These, by ascending version.
    These {
        /// Each document at most once.
        changed: Vec<Changed>,
        /// Whoever takes them in knows everything up to here.
        through: Version,
        /// There are more after that.
        more: bool,
    },
    /// It is not known any more: read everything anew.
    Forgotten,
}
