//! The server as its callers see it: real connections, real certificates, a store and keys in memory.
//!
//! Laws: every test starts a server of its own and speaks to it through a door, over the Unix socket or mTLS; its
//! clock stands still until the test moves it; nothing sleeps.
//! Not here: the binary, its configuration and its exit codes (`ca/tests`), other people's verifiers (`tests`).

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking, their helpers too")]

mod admins;
mod authorities;
mod clock;
mod clusters;
mod explain;
mod faults;
mod federation;
mod joining;
mod jwt;
mod late_bodies;
mod nodes;
mod renewals;
mod replicas;
mod roles;
mod rotation;
mod rotation_canary;
mod rules;
mod streams;
mod support;
mod tokens;
mod upstream;
