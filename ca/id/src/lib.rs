//! The vocabulary of Rhizome: SPIFFE IDs, trust domains, serials, lifetimes, instants and typed names.
//!
//! Laws: a value of these types is valid; there is no way to hold an invalid one. Parsing is the only door, its
//! limits are constants beside the type, and every refusal names the thing, the limit and the offending byte.
//! Not here: what an identity may do (`rhizome-core`), how it looks in a certificate (`rhizome-x509`).
//! Sources: SPIFFE-ID §2, RFC 5280 §4.1.2.2 and §4.1.2.5.

mod digest;
mod name;
mod serial;
mod spiffe_id;
mod text;
mod time;
mod trust_domain;

pub use digest::{Digest, DigestError};
pub use name::{
    AdminName, AuthorityId, ClusterName, KeyId, NameError, NodeName, ReplicaName, RequestId, RotationName,
    RuleName, TokenId,
};
pub use serial::{ReplicaNumber, Serial, SerialCounter, SerialError};
pub use spiffe_id::{SpiffeId, SpiffeIdError};
pub use time::{Timestamp, TimestampError, Ttl, TtlError};
pub use trust_domain::{TrustDomain, TrustDomainError};
