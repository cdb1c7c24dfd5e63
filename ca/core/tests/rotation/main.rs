//! The rotation machine against the world: a model check over every order of events, and a seeded simulation.
//!
//! Laws: both drive the real `rhizome_core::rotation::step`, and ask the invariants of `rhizome_core::rotation::invariants`
//! after every event. Not here: single steps (`ca/core/src/rotation_tests.rs`), the shell and real processes.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking, their helpers too; numbers of servers and agents are small and known"
)]

mod broken;
mod model;
mod parts;
mod search;
mod seeds;
mod simulation;
mod store;
mod subs;
mod verdicts;
