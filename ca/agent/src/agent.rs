//! One agent: what it holds is there before anything else starts; then it connects, asks and seals until it is stopped.
//!
//! Laws: what was sealed is served as soon as [`start`] returns, whether or not the authority answers; what changes is
//! sealed, the newest state last; a failed write is repeated and never stops anything else.
//! Not here: the sockets (`workload_api`, `sds`), which take [`Agent::identities`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::caller::principal_of;
use rhizome_core::ports::{Clock, Entropy};
use rhizome_tls::JoinString;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::fetch::{LOOK_EVERY, until};
use crate::link::Link;
use crate::node::Node;
use crate::sealed::{Aside, NodeRenewal, Restored, Sealed, SealedError};
use crate::spawn::Spawner;
use crate::status::{Status, StatusBoard};

/// Wait after the state could not be written.
const SEAL_AGAIN: Duration = Duration::from_secs(5);

/// What an agent is told at start.
#[derive(Debug)]
pub struct Settings {
    /// The directory of identity and sealed state.
    pub state: PathBuf,
    /// With which to join when there is no node certificate, or an expired one.
    pub join: Option<JoinString>,
}

/// What an agent is plugged into.
#[derive(Clone)]
pub struct Ports {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ports { .. }")
    }
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] SealedError),
    /// It never joined, and has nothing to join with.
    #[error("{0}; join first: `rhizome-agent join JOIN-STRING`")]
    NeverJoined(String),
}

/// An agent that runs.
pub struct Agent {
    cache: Arc<Cache>,
    status: Arc<StatusBoard>,
    nudge: Arc<Notify>,
    spawner: Spawner,
    aside: Vec<Aside>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("status", &self.status).finish_non_exhaustive()
    }
}

/// Starts an agent: first what is on disk, then the connection. Call it inside a runtime.
///
/// # Errors
/// [`StartError`] when there is nothing to start from, or nowhere to keep state.
pub fn start(settings: Settings, ports: Ports) -> Result<Agent, StartError> {
    let Settings { state, join } = settings;
    let node = Arc::new(Node::new(&state));
    let (own, missing) = match node.load(&NodeRenewal::default()) {
        Ok(own) => (Some(own), None),
        Err(cause) => (None, Some(cause)),
    };
    let mut sealed = Sealed::open(&state, Arc::clone(&ports.entropy))?;
    let restored = sealed.load(own.as_ref().map(|(certificate, _)| &certificate.spiffe_id))?;
    let domain = own
        .as_ref()
        .map(|(_, bundle)| bundle.trust_domain().clone())
        .or_else(|| restored.as_ref().map(|restored| restored.node.trust_domain()))
        .or_else(|| join.as_ref().map(|join| join.trust_domain().clone()));
    let Some(domain) = domain else {
        return Err(StartError::NeverJoined(missing.map_or_else(String::new, |cause| cause.to_string())));
    };
    let spawner = Spawner::default();
    let cache = Arc::new(Cache::new(domain, Arc::clone(&ports.clock), spawner.clone()));
    if let Some(Restored { node: id, snapshot, renewal }) = restored {
        tracing::info!(identities = snapshot.svids.len(), "state restored");
        cache.restore(snapshot);
        if let Some(principal) = principal_of(&id, &id.trust_domain()) {
            cache.set_node(principal);
        }
        if own.is_some()
            && let Err(cause) = node.load(&renewal)
        {
            tracing::warn!(%cause, "the node's identity went away while it was read");
        }
    }
    if let Some((certificate, bundle)) = own {
        cache.set_node(certificate.principal);
        if cache.bundle().is_none() {
            cache.offer(bundle);
        }
    }
    let aside = sealed.aside().to_vec();
    let agent = Agent { cache, status: Arc::default(), nudge: Arc::default(), spawner, aside };
    agent.status.set(|status| status.aside = agent.aside.len());
    let clock = Arc::clone(&ports.clock);
    let link = Link {
        state,
        join,
        cache: Arc::clone(&agent.cache),
        node: Arc::clone(&node),
        clock: ports.clock,
        entropy: ports.entropy,
        status: Arc::clone(&agent.status),
        nudge: Arc::clone(&agent.nudge),
    };
    let (cache, status) = (Arc::clone(&agent.cache), Arc::clone(&agent.status));
    let sealer = Sealer { cache, node, sealed: Arc::new(sealed), status, beside: 0 };
    agent.spawner.spawn("seal", sealer.run(agent.spawner.stopping().clone()));
    agent.spawner.spawn_until_stop("link", link.run());
    agent.spawner.spawn_until_stop("clock", watch_clock(Arc::clone(&agent.cache), clock));
    Ok(agent)
}

impl Agent {
    /// What the sockets serve from.
    pub fn identities(&self) -> Arc<Cache> {
        Arc::clone(&self.cache)
    }

    /// How the agent is, now and after every change.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.follow()
    }

    /// Files of the state that were of no use at start, where they are now, and why.
    pub fn kept_aside(&self) -> &[Aside] {
        &self.aside
    }

    /// Looks at the clock and the network now: after the clock was set, or the machine was suspended.
    pub fn nudge(&self) {
        self.nudge.notify_one();
        self.cache.look_again();
    }

    /// Starts tasks that end with this agent.
    pub const fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// Stops everything; what is held is sealed when this returns, if the disk lets it.
    pub async fn stop(self) {
        self.spawner.shut_down().await;
    }
}

/// Lets go of what expires and of who leaves, whether or not the authority can be reached.
async fn watch_clock(cache: Arc<Cache>, clock: Arc<dyn Clock>) {
    loop {
        let next = cache.tick();
        // Certificates may come meanwhile, but none that expires before this looks again.
        tokio::time::sleep(next.map_or(LOOK_EVERY, |at| until(at, clock.now()))).await;
    }
}

/// Writes what is to be kept.
struct Sealer {
    cache: Arc<Cache>,
    node: Arc<Node>,
    sealed: Arc<Sealed>,
    status: Arc<StatusBoard>,
    /// Sequence of the bundle that lies beside the identity.
    beside: u64,
}

impl Sealer {
    /// Writes whenever something has changed, and a last time before the agent stops.
    async fn run(mut self, stopping: CancellationToken) {
        let mut changes = self.cache.durable();
        changes.mark_changed();
        loop {
            let wait = tokio::select! {
                changed = changes.changed() => changed.is_ok(),
                () = stopping.cancelled() => false,
            };
            if !wait && !changes.has_changed().unwrap_or(false) {
                return;
            }
            changes.mark_unchanged();
            if self.write().await || !wait {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(SEAL_AGAIN) => changes.mark_changed(),
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Writes what there is now. Whether that worked, or there is nothing to write yet.
    async fn write(&mut self) -> bool {
        let Some(id) = self.node.current().map(|it| it.spiffe_id) else { return true };
        let foreign = self.cache.foreign_generation();
        let (snapshot, renewal, sealed) =
            (self.cache.snapshot(), self.node.renewal(), Arc::clone(&self.sealed));
        let sequence = snapshot.bundle.as_ref().map_or(0, |bundle| bundle.sequence());
        let (directory, beside) = (self.node.directory().clone(), self.beside);
        let written = tokio::task::spawn_blocking(move || {
            sealed.save(&id, &snapshot, &renewal)?;
            // Beside the identity, for whoever reads that, and to connect with should the sealed state be lost.
            if let Some(bundle) = snapshot.bundle.as_ref().filter(|bundle| bundle.sequence() != beside) {
                match directory.save_bundle(bundle) {
                    Ok(()) => return Ok(bundle.sequence()),
                    Err(cause) => tracing::warn!(%cause, "the bundle beside the identity was not replaced"),
                }
            }
            Ok::<u64, SealedError>(beside)
        });
        match written.await {
            Ok(Ok(beside)) => {
                self.beside = beside;
                self.status.set(|status| status.unsealed = 0);
                self.cache.set_sealed(sequence);
                self.cache.set_foreign_sealed(foreign);
                true
            }
            Ok(Err(cause)) => {
                tracing::error!(%cause, "the state was not sealed; a restart would serve what was sealed before");
                self.status.set(|status| status.unsealed = status.unsealed.saturating_add(1));
                false
            }
            Err(cause) => {
                tracing::error!(%cause, "sealing the state was cut off");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use rhizome_id::Timestamp;

    use super::*;
    use crate::book::RuleChange;
    use crate::holdings::Identities as _;
    use crate::testing::{at, attributes, bundle, entitlement, node, root, rule, svid, valid};

    struct SetClock(AtomicI64);

    impl Clock for SetClock {
        fn now(&self) -> Timestamp {
            at(self.0.load(Ordering::SeqCst))
        }
    }

    #[tokio::test]
    async fn what_expires_is_taken_away_also_without_a_connection() {
        let (clock, spawner) = (Arc::new(SetClock(AtomicI64::new(0))), Spawner::default());
        let cache =
            Cache::new("example.org".parse().unwrap(), Arc::<SetClock>::clone(&clock), spawner.clone());
        let cache = Arc::new(cache);
        cache.set_node(node());
        let upserts = vec![valid(rule("all", ("unix.uid", "*"), "/any"))];
        cache.apply(RuleChange { full: true, upserts, removed: Vec::new(), cursor: 1 });
        cache.offer(bundle(1, &[&root("r1")]));
        let mut seen = cache.follow(attributes(&[("unix.uid", "1")]));
        cache.issued(&entitlement("/any"), svid("/any", "a1", at(0)));
        assert!(seen.borrow_and_update().as_ref().is_ok_and(|view| !view.svids.is_empty()));
        clock.0.store(3_600, Ordering::SeqCst);
        spawner.spawn_until_stop("clock", watch_clock(Arc::clone(&cache), clock));
        tokio::time::timeout(Duration::from_secs(60), seen.changed()).await.unwrap().unwrap();
        assert!(seen.borrow().as_ref().is_ok_and(|view| view.svids.is_empty()));
        spawner.shut_down().await;
    }
}
