//! Identities on the node: fetched, renewed, sealed, and served to workloads through any outage.
//!
//! Laws: private keys are made here and leave only towards the workload they are for; an outage of the authority takes
//! nothing from a workload that it held; a bundle is acknowledged only when it is in force for every open stream.
//! Not here: who may be whom (`rhizome_core::policy`, asked by the server; matched here only to know what to ask for).
//! Sources: architecture.md §2; SPIFFE Workload API and Workload Endpoint.

pub mod holdings;
mod spawn;
mod system;

pub use spawn::Spawner;
pub use system::{SystemClock, SystemEntropy};
