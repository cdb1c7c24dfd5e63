//! Every decision of the authority, without clock, randomness or I/O.
//!
//! Laws: every function here is a function of its arguments; time and random bits are among them. Who calls is evidence
//! ([`caller::AttestedCaller`]), what they may have is evidence ([`policy::Grant`]), what may be sent is evidence
//! ([`issuance::Recorded`]); each has one maker. Stored documents ignore unknown fields, because the code runs on
//! schema N and N−1; what narrows a permission is therefore never a new field, but a new variant or attribute, which
//! older code refuses to read.
//! Not here: the shell that performs effects (`rhizome-server`), backends of the ports (`rhizome-store`,
//! `rhizome-keys`), bytes of certificates (`rhizome-x509`).
//!
//! Start with [`ports`], [`policy`] and [`issuance`]; then [`authority`] for what changes over the years.

pub mod adoption;
pub mod attributes;
pub mod authority;
pub mod caller;
pub mod ceremony;
pub mod changes;
pub mod clock;
pub mod clock_guard;
pub mod clusters;
pub mod crl;
pub mod documents;
pub mod entropy;
pub mod explain;
pub mod federation;
pub mod issuance;
pub mod ledger;
pub mod limits;
pub mod nodes;
pub mod policy;
pub mod ports;
pub mod renewal;
pub mod renewals;
pub mod replicas;
pub mod rotation;
pub mod rules;
pub mod state;
pub mod template;
pub mod tokens;
