//! The shell around the core: it listens, authenticates, calls the one issuance, keeps authorities in order, and
//! answers. Reading order: `issue` (the flow), `gate` (who may call), `rotate` (authorities), `status` (errors).
//!
//! Laws: nothing is decided here that the core can decide; no store, key ring or Kubernetes is named here, only their
//! ports. Time, randomness and tasks come from `system` and `spawn` alone.
//! Not here: the configuration file and the choice of backends (`rhizome`), the wire's shape (`rhizome-proto`).

mod acknowledge;
mod api;
mod authority_keys;
mod ca;
mod checks;
mod clock;
mod clusters;
mod connection;
mod crl;
mod error;
mod federation;
mod follow;
mod gate;
mod health;
mod housekeeping;
mod issue;
mod issue_token;
mod listen;
mod metrics;
pub mod offline;
mod outlet;
mod peer;
mod presence;
mod quota;
mod renewals;
mod replicas;
mod roles;
mod rotate;
mod rotate_jwt;
mod rotate_root;
mod rotate_root_canary;
mod rotate_root_look;
mod rotate_root_orders;
mod rotate_root_reports;
mod rotate_root_test;
mod rotate_root_words;
mod rotate_root_world;
mod run;
mod selfcheck;
mod serials;
mod serving;
mod settings;
mod spawn;
mod status;
mod system;
mod upstream;
mod web;

pub use error::{ApiError, AuthError, IssueError, Needed};
pub use roles::METHODS;
pub use run::{Running, StartError, start};
pub use settings::{DoorLimits, FederationSettings, Ports, Settings, UpstreamSettings, WebCertificate};
pub use system::{Stopwatch, SystemClock, SystemEntropy};
pub use upstream::UpstreamError;
