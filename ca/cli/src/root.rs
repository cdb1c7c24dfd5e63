//! `rhizome root`: the root of trust, as administrators change it.
//!
//! Not here: issuers, which change by themselves (`authority`).

use clap::Subcommand;

use crate::exit::{Exit, Failure};
use crate::offline_root::OfflineVerb;

/// Bring a root from elsewhere, or keep its key offline
#[derive(Subcommand, Clone, Debug)]
pub enum RootVerb {
    /// While no server runs.
    #[command(flatten)]
    Offline(OfflineVerb),
}

pub(crate) fn run(verb: &RootVerb) -> Result<Exit, Failure> {
    match verb {
        RootVerb::Offline(_) => {
            Err(Failure::usage("this program has no store and no keys; use the whole `rhizome`"))
        }
    }
}
