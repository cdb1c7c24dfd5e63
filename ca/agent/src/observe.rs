//! The agent seen from outside: status, metrics, readiness, and why a process has what it has.
//!
//! Laws: looking changes nothing; no private key and no token can be seen; readiness is false only while nobody can be
//! served, and an outage of the authority is not that. Metrics and health are open to the machine; the rest is for the
//! agent's own user and root.
//! Not here: the wiring (`program`).

mod metrics;
mod private;
mod report;
mod web;

pub use private::{AskError, ask};
pub use report::{
    Explained, IdentityReport, NearReport, Observer, Refused, Report, Tallies, UnmetReport, WhatIsGiven,
};
pub use web::{serve_private, serve_public};
