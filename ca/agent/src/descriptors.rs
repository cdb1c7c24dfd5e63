//! Room for connections: each takes a descriptor, or two at the agent, and shells and service managers give few of them
//! until asked. The server has its room from here, too.
//!
//! Laws: the soft limit is raised to the hard one and never beyond, because the hard one is the operator's word; that
//! it could not be raised is no reason not to serve. Not here: how many connections are let in (`socket`, and the server's settings).
//! Sources: getrlimit(2); systemd.exec(5), `LimitNOFILE=` (1024 soft, 524288 hard by default).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the number of descriptors that this process may have open to the most that the system allows it, and says
/// so in the log.
pub fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::info!(from = current, to = maximum, "raised the limit of open files"),
        Err(cause) => {
            tracing::warn!(%cause, limit = current, "the limit of open files could not be raised");
        }
    }
}
