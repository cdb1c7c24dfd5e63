//! The agent against a real server in the same process: real connections, real certificates, a clock that tests move.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at its first surprise")]

mod bundles;
mod joining;
mod outages;
mod serving;
mod support;
