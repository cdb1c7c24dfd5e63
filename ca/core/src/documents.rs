//! Documents: the small pieces of state that administrators and the authority itself change, and the transactions
//! that change them.
//!
//! Laws: a [`Transaction`] is data: what must still be true, what becomes true, and what the ledger says about it; a
//! store applies all of it or nothing. Deciding happens before, in pure code; a store never decides. Versions only
//! grow, so "still as I read it" is one comparison. Bodies are JSON: readable in the database, and a field that a
//! newer release added is ignored by an older one (code runs on schema N and N−1).
//! Not here: how any of it is kept (`rhizome-store`), the ledger's chain (`ledger`).

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ledger::Entry;

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who may be whom.
    Rule,
    /// A join token.
    Token,
    /// A node that attested.
    Node,
    /// A signing authority.
    Authority,
    /// A key that signs JWT-SVIDs. Of its own kind, so that releases that know of none do not stumble over it.
    JwtAuthority,
    /// The published trust bundle.
    Bundle,
    /// An administrator's name and role.
    Admin,
    /// A revoked certificate.
    Revocation,
    /// An issuer's revocation list.
    Crl,
    /// Who holds which bundle.
    Subscriber,
    /// An order to renew.
    Renewal,
    /// A relationship with a foreign trust domain.
    Federation,
    /// The bundle of a foreign trust domain, and how fetching it goes.
    ForeignBundle,
    /// Which foreign bundles a node has in force.
    ForeignHolder,
    /// A cluster that may have an intermediate for a Rhizome of its own.
    Cluster,
    /// What is known of such a cluster.
    ClusterReport,
    /// The change of the root that is under way, or was last.
    Rotation,
    /// A single setting of this authority, such as its trust domain.
    Setting,
    /// A private key, sealed. Its own ring reads and writes it, and nobody else.
    Key,
}

impl Kind {
    /// Every kind, in the order in which a store is loaded.
    pub const ALL: [Self; 19] = [
        Self::Setting,
        Self::Authority,
        Self::JwtAuthority,
        Self::Bundle,
        Self::Rule,
        Self::Admin,
        Self::Node,
        Self::Revocation,
        Self::Crl,
        Self::Subscriber,
        Self::Renewal,
        Self::Rotation,
        Self::Token,
        Self::Key,
        Self::Federation,
        Self::ForeignBundle,
        Self::ForeignHolder,
        Self::Cluster,
        Self::ClusterReport,
    ];

    /// The stable name under which stores file it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Token => "token",
            Self::Node => "node",
            Self::Authority => "authority",
            Self::JwtAuthority => "jwt_authority",
            Self::Bundle => "bundle",
            Self::Admin => "admin",
            Self::Revocation => "revocation",
            Self::Crl => "crl",
            Self::Subscriber => "subscriber",
            Self::Rotation => "rotation",
            Self::Renewal => "renewal",
            Self::Setting => "setting",
            Self::Key => "key",
            Self::Federation => "federation",
            Self::ForeignBundle => "foreign_bundle",
            Self::ForeignHolder => "foreign_holder",
            Self::Cluster => "cluster",
            Self::ClusterReport => "cluster_report",
        }
    }

    /// The kind of that stable name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Names one document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentKey {
    /// What it is about.
    pub kind: Kind,
    /// Its name within the kind, at most 512 bytes.
    pub id: String,
}

impl DocumentKey {
    /// The key of document `id` of `kind`.
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.id)
    }
}

/// How often a document was written, over the whole store: every write gets the next number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// A document as a store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name.
    pub key: DocumentKey,
    /// When it was last written, in the store's own count.
    pub version: Version,
    /// JSON.
    pub body: Arc<str>,
}

impl Document {
    /// Reads the body as the type it was written from.
    ///
    /// # Errors
    /// [`BadDocument`] names the document when its body is not what this release understands.
    pub fn read<T: Stored>(&self) -> Result<Versioned<T>, BadDocument> {
        let bad = |cause: String| BadDocument { key: self.key.to_string(), cause };
        if self.key.kind != T::KIND {
            return Err(bad(format!("it was read as a {}", T::KIND.as_str())));
        }
        let value = serde_json::from_str(&self.body).map_err(|cause| bad(cause.to_string()))?;
        Ok(Versioned { version: self.version, value })
    }
}

/// A stored document cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stored {key} cannot be read: {cause}; run `rhizome check`, and restore a backup if the database is damaged"
)]
pub struct BadDocument {
    key: String,
    cause: String,
}

/// A value together with the version it was read at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The version to name when writing it back.
    pub version: Version,
    /// The value.
    pub value: T,
}

/// A type that is kept as a document.
pub trait Stored: Serialize + DeserializeOwned {
    /// Under which kind.
    const KIND: Kind;

    /// Under which name.
    fn id(&self) -> String;

    /// Its key.
    fn key(&self) -> DocumentKey {
        DocumentKey::new(Self::KIND, self.id())
    }
}

/// What must still be true when a transaction is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// No such document.
    Absent(DocumentKey),
    /// The document is still the one that was read.
    Unchanged(DocumentKey, Version),
}

impl Requirement {
    /// The document it speaks of.
    pub const fn key(&self) -> &DocumentKey {
        match self {
            Self::Absent(key) | Self::Unchanged(key, _) => key,
        }
    }

    /// Whether it holds, given the version the store has now (if any).
    pub fn holds(&self, found: Option<Version>) -> bool {
        match self {
            Self::Absent(_) => found.is_none(),
            Self::Unchanged(_, version) => found == Some(*version),
        }
    }
}

/// One change of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create or replace, with a JSON body.
    Put(DocumentKey, Arc<str>),
    /// Remove; removing what is not there changes nothing.
    Delete(DocumentKey),
}

impl Write {
    /// The document it changes.
    pub const fn key(&self) -> &DocumentKey {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// All or nothing: requirements, writes and ledger entries that belong together.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// What it does, for logs and metrics.
    pub name: &'static str,
    /// What must still be true.
    pub requirements: Vec<Requirement>,
    /// What becomes true.
    pub writes: Vec<Write>,
    /// What the ledger says about it, in order.
    pub entries: Vec<Entry>,
}

impl Transaction {
    /// An empty transaction called `name`.
    pub const fn named(name: &'static str) -> Self {
        Self { name, requirements: Vec::new(), writes: Vec::new(), entries: Vec::new() }
    }

    /// Demands that `key` does not exist yet.
    #[must_use]
    pub fn require_absent(mut self, key: DocumentKey) -> Self {
        self.requirements.push(Requirement::Absent(key));
        self
    }

    /// Demands that `key` is still at `version`.
    #[must_use]
    pub fn require_unchanged(mut self, key: DocumentKey, version: Version) -> Self {
        self.requirements.push(Requirement::Unchanged(key, version));
        self
    }

    /// Writes a document.
    #[must_use]
    pub fn put<T: Stored>(mut self, value: &T) -> Self {
        // Our documents are plain structs with string keys; serde_json cannot fail on them. Should one ever do,
        // an empty body is refused by the store as not JSON, so nothing half-made is kept.
        let body = serde_json::to_string(value).unwrap_or_default();
        self.writes.push(Write::Put(value.key(), body.into()));
        self
    }

    /// Removes a document.
    #[must_use]
    pub fn delete(mut self, key: DocumentKey) -> Self {
        self.writes.push(Write::Delete(key));
        self
    }

    /// Adds a ledger entry.
    #[must_use]
    pub fn record(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }
}
