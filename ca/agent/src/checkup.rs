//! A look at an agent's state directory, from outside and without touching it.
//!
//! Laws: nothing is written, renamed or asked for; what is wrong is said with what to do. Not here: the running agent's
//! own status (`status`).

use std::path::Path;

use rhizome_core::ports::Clock;
use rhizome_id::SpiffeId;

use crate::bootstrap::servers;
use crate::node::Node;
use crate::sealed::{NodeRenewal, Sealed};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkup {
    /// Which node this is.
    pub node: Option<SpiffeId>,
    /// What it holds, for people.
    pub lines: Vec<String>,
    /// What is wrong, and what to do.
    pub troubles: Vec<String>,
}

/// Looks at the state in `directory`. Blocks on the disk.
pub fn checkup(directory: &Path, clock: &dyn Clock) -> Checkup {
    let now = clock.now();
    let mut found = Checkup::default();
    match Node::new(directory).load(&NodeRenewal::default()) {
        Ok((certificate, _)) => {
            let (id, end) = (&certificate.spiffe_id, certificate.not_after);
            found.lines.push(format!("node certificate until {end}, renewed about {}", certificate.renew_at));
            if end < now {
                found.troubles.push(format!("the node certificate of {id} expired at {end}; join again"));
            }
            found.node = Some(certificate.spiffe_id);
        }
        Err(cause) => found.troubles.push(cause.to_string()),
    }
    match servers(directory) {
        Ok(addresses) => found.lines.push(format!("servers: {}", addresses.join(", "))),
        Err(cause) => found.troubles.push(cause.to_string()),
    }
    match Sealed::peek(directory, found.node.as_ref()) {
        Ok(Some(restored)) => {
            let sequence = restored.snapshot.bundle.as_ref().map_or(0, |bundle| bundle.sequence());
            found.lines.push(format!("bundle {sequence}, {} identities:", restored.snapshot.svids.len()));
            for (_, svid) in &restored.snapshot.svids {
                let state = if svid.not_after < now { "expired" } else { "valid" };
                found.lines.push(format!("{} {state} until {}", svid.spiffe_id, svid.not_after));
            }
        }
        Ok(None) => found.lines.push("no sealed state yet".to_owned()),
        Err(cause) => found.troubles.push(format!("the sealed state is of no use: {cause}")),
    }
    found
}
