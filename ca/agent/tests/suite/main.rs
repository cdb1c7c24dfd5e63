//! The agent against a real server in the same process: real connections, real certificates, a clock that tests move.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test stops at its first surprise"
)]

mod bundles;
mod disk;
mod joining;
mod outages;
mod process;
mod renewals;
mod revocation;
mod serving;
mod support;
mod tokens;
