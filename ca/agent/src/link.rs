//! The connection to the authority, for ever: join, connect, follow, ask, renew; on failure the next address.
//!
//! Laws: one server at a time, chosen in the order of the join string, the next one after every failure; waits grow and
//! are jittered, and a connection that held for a while resets them; whoever answers must be a server of the
//! trust domain under the bundle in force; losing the authority takes nothing from any workload.
//! Not here: what is said on the streams (`sync`, `fetch`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::ports::{Clock, Entropy};
use rhizome_tls::{ExpectedServer, JoinString};
use rhizome_x509::TrustAnchors;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::bootstrap::{self, servers};
use crate::cache::Cache;
use crate::fetch::{Fetcher, until};
use crate::node::{Node, NodeError};
use crate::renewal::{reconnect_after, refused_pace};
use crate::sealed::on_disk;
use crate::status::StatusBoard;
use crate::sync::Sync;
use crate::system::random;
use crate::tokens;
use crate::wire::Nonsense;

/// A connection that held for so long was a good one: the next attempt comes soon. One that breaks as soon as it is
/// made is no better than none.
const SETTLED: Duration = Duration::from_secs(10);

/// What the connection needs.
pub(crate) struct Link {
    pub(crate) state: PathBuf,
    pub(crate) join: Option<JoinString>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) node: Arc<Node>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) status: Arc<StatusBoard>,
    /// Somebody wants the clock, or the network, looked at now.
    pub(crate) nudge: Arc<Notify>,
}

/// How a connection ended.
enum Ended {
    /// The node has a new certificate: connect anew with it.
    Renewed,
    /// It broke.
    Broken(String),
    /// The authority does not take this node's certificate (any more).
    Refused(String),
}

impl Link {
    /// Never comes back.
    pub(crate) async fn run(self) {
        let sync = Sync::new(Arc::clone(&self.cache), Arc::clone(&self.node), Arc::clone(&self.status));
        let mut fetcher =
            Fetcher::new(Arc::clone(&self.cache), Arc::clone(&self.clock), Arc::clone(&self.entropy));
        let (mut turn, mut failures): (usize, u32) = (0, 0);
        loop {
            let begun = Instant::now();
            let ended = Box::pin(self.once(&sync, &mut fetcher, turn)).await;
            let now = self.clock.now();
            self.status.set(|status| status.disconnected(now));
            let cause = match ended {
                Ended::Renewed => continue,
                Ended::Broken(cause) => cause,
                Ended::Refused(cause) => {
                    turn = turn.wrapping_add(1);
                    self.wait_refused(&cause).await;
                    continue;
                }
            };
            turn = turn.wrapping_add(1);
            failures = if begun.elapsed() < SETTLED { failures.saturating_add(1) } else { 1 };
            self.status.set(|status| status.failures = status.failures.saturating_add(1));
            let wait = reconnect_after(failures, random(&*self.entropy));
            tracing::warn!(cause, failures, ?wait, "no connection to the authority; what is held is served");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.nudge.notified() => {}
            }
        }
    }

    /// The authority said no to this node: it was evicted, banned or revoked, and asking at full pace would change
    /// nothing. What is held is served until it expires (the server ordered away what it revoked).
    async fn wait_refused(&self, cause: &str) {
        let advice = format!(
            "the authority refuses this node ({cause}): it was evicted, banned or its certificate revoked; an \
             administrator sees why with `rhizome node show`; join again with a new join string"
        );
        self.node.note_refusal(Some(advice.clone())).await;
        self.status.set(|status| {
            status.refused = true;
            status.failures = status.failures.saturating_add(1);
        });
        let wait = refused_pace(random(&*self.entropy));
        tracing::error!(?wait, "{advice}");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.nudge.notified() => {}
        }
    }

    async fn once(&self, sync: &Sync, fetcher: &mut Fetcher, turn: usize) -> Ended {
        if let Err(cause) = self.become_a_node().await {
            return Ended::Broken(cause);
        }
        let channel = match self.connect(turn).await {
            Ok(channel) => channel,
            Err(cause) => return Ended::Broken(cause),
        };
        let _tokens = self.cache.token_store().connected(tokens::over(channel.clone()));
        let broken = |status: Status| {
            let cause = rhizome_tls::cause_of(&status);
            // After a handshake that succeeded: it knows the certificate and does not take it.
            if status.code() == Code::Unauthenticated { Ended::Refused(cause) } else { Ended::Broken(cause) }
        };
        tokio::select! {
            status = sync.run(channel.clone()) => broken(status),
            status = fetcher.run(channel.clone()) => broken(status),
            ended = self.keep_node(channel) => ended,
        }
    }

    /// Makes sure that there is a node certificate to connect with: the one on disk, or a new one by the join string.
    async fn become_a_node(&self) -> Result<(), String> {
        // Somebody may have joined anew meanwhile: what is on disk counts.
        let node = Arc::clone(&self.node);
        let loaded = on_disk(move || node.load(&node.renewal())).await;
        let loaded = loaded.map_err(NodeError::from).and_then(std::convert::identity);
        let now = self.clock.now();
        let why = match loaded {
            Ok((certificate, bundle)) if certificate.not_after >= now => {
                if self.cache.bundle().is_none() {
                    self.cache.offer(bundle);
                }
                self.cache.set_node(certificate.principal);
                self.post_node();
                if self.is_refused(&certificate.serial)
                    && let Some(join) = &self.join
                {
                    // The join string that this process was started with may still be good; otherwise the old certificate
                    // is tried again, in case that the server's clock was wrong.
                    match bootstrap::join_as(&self.node, &self.state, join, &self.clock).await {
                        Ok(node) => tracing::warn!(node, "joined anew after the authority refused this node"),
                        Err(cause) => tracing::warn!(%cause, "joining anew failed, too"),
                    }
                    self.post_node();
                }
                return Ok(());
            }
            Ok((certificate, _)) => format!("this node's certificate expired at {}", certificate.not_after),
            Err(cause) => cause.to_string(),
        };
        let Some(join) = &self.join else {
            return Err(format!("{why}; join with a new join string (`rhizome-agent join`)"));
        };
        tracing::warn!(why, "joining with the join string");
        let joined = bootstrap::join_as(&self.node, &self.state, join, &self.clock).await;
        joined.map_err(|error| format!("{why}; joining failed: {error}"))?;
        if let Some(certificate) = self.node.current() {
            self.cache.set_node(certificate.principal);
        }
        let directory = self.node.directory().clone();
        if self.cache.bundle().is_none()
            && let Ok(Ok(bundle)) = on_disk(move || directory.load_bundle()).await
        {
            self.cache.offer(bundle);
        }
        self.post_node();
        Ok(())
    }

    fn is_refused(&self, serial: &str) -> bool {
        let status = self.status.follow();
        let status = status.borrow();
        status.refused && status.node_serial == serial
    }

    /// Tells and keeps which certificate the node has now.
    fn post_node(&self) {
        self.cache.seal_again();
        let current = self.node.current();
        self.status.set(|status| {
            status.node_serial = current.as_ref().map(|it| it.serial.clone()).unwrap_or_default();
            status.node_not_after = current.map(|it| it.not_after);
        });
    }

    async fn connect(&self, turn: usize) -> Result<Channel, String> {
        let state = self.state.clone();
        let addresses = on_disk(move || servers(&state)).await.and_then(std::convert::identity);
        let addresses = addresses.map_err(|error| error.to_string())?;
        let address =
            turn.checked_rem(addresses.len()).and_then(|at| addresses.get(at)).ok_or("no address")?;
        let bundle = self.cache.bundle().ok_or("no bundle to verify a server with")?;
        let node = self.node.current().ok_or("no node certificate")?;
        let identity = node.identity().map_err(|error| error.to_string())?;
        let expected = ExpectedServer::ServerOf(bundle.trust_domain().clone());
        let clock = Arc::clone(&self.clock);
        let anchors = Arc::new(TrustAnchors::from_bundle(&bundle));
        let config =
            rhizome_tls::client_config(anchors, Some(identity), expected, Arc::new(move || clock.now()));
        let config = config.map_err(|error| error.to_string())?;
        rhizome_tls::connect(address, Some(Arc::new(config))).await.map_err(|error| error.to_string())
    }

    /// Renews the node's certificate when it is due; comes back when that was done, or when it has expired.
    async fn keep_node(&self, channel: Channel) -> Ended {
        let mut failures: u32 = 0;
        loop {
            let Some(node) = self.node.current() else {
                return Ended::Broken("the node's certificate is gone".to_owned());
            };
            let now = self.clock.now();
            if now > node.not_after {
                return Ended::Broken(format!("this node's certificate expired at {}", node.not_after));
            }
            let wait = if now < node.renew_at {
                until(node.renew_at, now)
            } else {
                match self.renew(channel.clone()).await {
                    Ok(()) => return Ended::Renewed,
                    Err(cause) => {
                        failures = failures.saturating_add(1);
                        let wait = reconnect_after(failures, random(&*self.entropy));
                        let not_after = node.not_after;
                        tracing::error!(%cause, %not_after, ?wait, "the node's certificate was not renewed");
                        wait
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.nudge.notified() => {}
            }
        }
    }

    async fn renew(&self, channel: Channel) -> Result<(), NodeError> {
        let bundle = self.cache.bundle();
        let bundle = bundle.ok_or_else(|| Nonsense::of("there is no bundle to verify it with"))?;
        self.node.renew(channel, bundle, self.clock.now()).await?;
        self.post_node();
        let not_after = self.node.current().map(|it| it.not_after.to_string());
        tracing::info!(not_after, "node certificate renewed");
        Ok(())
    }
}
