//! The binary's parts: configuration, the wiring of ports into the server, restore, and `rhizome dev`.
//!
//! Laws: this is the only place that wires stores and keys into the server. Not here: what the server does
//! (`rhizome_server`), the administrators' verbs (`rhizome_cli`).

pub mod command;
pub mod config;
pub mod dev;
pub mod keyring;
pub mod launch;
pub mod logging;
pub mod offline_root;
pub mod restore;
pub mod serve;
pub mod store;
