//! Identities on the node: fetched, renewed, sealed, and served to workloads through any outage.
//!
//! Laws: private keys are made here and leave only towards the workload they are for; an outage of the authority takes
//! nothing from a workload that it held; a bundle is acknowledged only when it is in force for every open stream.
//! Not here: what a JWT-SVID is (`rhizome_jwt`); who may be whom (`rhizome_core::policy`, asked by the server; matched here only to know what to ask for).
//! Sources: ca/docs/ARCHITECTURE.md §2; SPIFFE Workload API and Workload Endpoint.

mod agent;
pub mod attestation;
mod book;
mod bootstrap;
mod cache;
mod call;
mod checkup;
mod crls;
pub mod descriptors;
mod fetch;
pub mod holdings;
mod link;
mod node;
pub mod observe;
pub mod program;
mod refusal;
pub mod renewal;
pub mod sds;
mod sealed;
pub mod sink;
pub mod socket;
mod spawn;
mod status;
mod sync;
mod system;
#[cfg(test)]
mod testing;
pub mod tokens;
mod wire;
mod workload_api;

pub use agent::{Agent, Ports, Settings, StartError, start};
pub use bootstrap::{BootstrapError, join};
pub use cache::Cache;
pub use checkup::{Checkup, SealedIdentity, checkup};
pub use node::NodeError;
pub use sealed::{Aside, SealedError};
pub use spawn::Spawner;
pub use status::Status;
pub use system::{SystemClock, SystemEntropy};
pub use wire::Nonsense;
