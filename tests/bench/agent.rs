//! The agent's part of the benchmark: the targets of an agent, and of the server towards very many of them.
//!
//! Laws: agent and server are the real programs, each in a process of its own, except where a fleet of simulated agents
//! (`fleet`) or a server that publishes its bundle anew (`republish`) must stand in, which is said beside the figure.

mod bundle;
mod change;
mod fleet;
mod herd;
mod machine;
mod memory;
mod rotation;
mod rules;
mod start;
mod subscribers;

pub(crate) use {bundle::run as bundle, change::run as change, herd::run as herd};
pub(crate) use {memory::run as memory, rotation::run as rotation, start::run as start};

/// How much of everything.
pub(crate) struct Sizes {
    /// Starts of the agent, of each kind.
    pub(crate) starts: usize,
    /// Workloads of one agent, each of another user.
    pub(crate) identities: usize,
    /// Simulated agents that are to hear of changes.
    pub(crate) hearing: usize,
    /// Changes of each kind.
    pub(crate) changes: usize,
    /// Simulated agents to which a bundle is pushed, and which restart at once.
    pub(crate) fleet: usize,
    /// Rows of the ledger behind a change of the root.
    pub(crate) rows: usize,
}

impl Sizes {
    /// As the targets say.
    pub(crate) const FULL: Self =
        Self { starts: 15, identities: 1_000, hearing: 1_000, changes: 20, fleet: 10_000, rows: 1_000_000 };
    /// To see that everything works.
    pub(crate) const QUICK: Self =
        Self { starts: 3, identities: 20, hearing: 50, changes: 3, fleet: 200, rows: 20_000 };
}
