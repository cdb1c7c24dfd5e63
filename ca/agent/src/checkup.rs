//! A look at an agent's state directory, from outside and without touching it.
//!
//! Laws: nothing is written, renamed or asked for; what is wrong is said with what to do. Not here: the running agent's
//! own status (`status`).

use std::path::Path;

use rhizome_core::ports::Clock;
use rhizome_id::{SpiffeId, Timestamp};

use crate::bootstrap::servers;
use crate::node::{self, Node};
use crate::sealed::{NodeRenewal, Sealed};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkup {
    /// Which node this is.
    pub node: Option<SpiffeId>,
    /// Last second of the node's certificate.
    pub node_not_after: Option<Timestamp>,
    /// When the node's certificate is renewed, about.
    pub node_renew_at: Option<Timestamp>,
    /// Addresses of the servers, in order of preference.
    pub servers: Vec<String>,
    /// Sequence of the sealed bundle; `None` without sealed state.
    pub bundle: Option<u64>,
    /// How many revocation lists are sealed.
    pub revocation_lists: usize,
    /// The sealed identities of workloads.
    pub identities: Vec<SealedIdentity>,
    /// What is wrong, and what to do.
    pub troubles: Vec<String>,
}

/// One identity in the sealed state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedIdentity {
    /// Whose.
    pub spiffe_id: SpiffeId,
    /// Its last second.
    pub not_after: Timestamp,
}

/// Looks at the state in `directory`. Blocks on the disk.
pub fn checkup(directory: &Path, clock: &dyn Clock) -> Checkup {
    let now = clock.now();
    let mut found = Checkup::default();
    match Node::new(directory).load(&NodeRenewal::default()) {
        Ok((certificate, _)) => {
            let (id, end) = (&certificate.spiffe_id, certificate.not_after);
            found.node_not_after = Some(end);
            found.node_renew_at = Some(certificate.renew_at);
            if end < now {
                found.troubles.push(format!("the node certificate of {id} expired at {end}; join again"));
            }
            found.node = Some(certificate.spiffe_id);
        }
        Err(cause) => found.troubles.push(cause.to_string()),
    }
    if let Some(cause) = node::refused(directory) {
        found.troubles.push(cause);
    }
    match servers(directory) {
        Ok(addresses) => found.servers = addresses,
        Err(cause) => found.troubles.push(cause.to_string()),
    }
    match Sealed::peek(directory, found.node.as_ref()) {
        Ok(Some(restored)) => {
            found.revocation_lists = restored.snapshot.crls.len();
            found.bundle = Some(restored.snapshot.bundle.as_ref().map_or(0, |bundle| bundle.sequence()));
            let identity = |svid: &crate::holdings::Svid| SealedIdentity {
                spiffe_id: svid.spiffe_id.clone(),
                not_after: svid.not_after,
            };
            found.identities = restored.snapshot.svids.iter().map(|kept| identity(&kept.svid)).collect();
        }
        Ok(None) => {}
        Err(cause) => found.troubles.push(format!("the sealed state is of no use: {cause}")),
    }
    found
}
