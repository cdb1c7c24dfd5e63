//! How the agent is: what an administrator, a readiness probe or a test asks.
//!
//! Laws: a status says what is, never why in words that could hold a secret; it is told to whoever waits for a change.

use rhizome_id::Timestamp;
use tokio::sync::watch;

/// How the agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether the sync stream is open and has brought this node up to date.
    pub connected: bool,
    /// When the authority was heard last, while not connected.
    pub heard_at: Option<Timestamp>,
    /// How often it has been brought up to date by a new stream or a change.
    pub syncs: u64,
    /// The cursor of the last change.
    pub cursor: u64,
    /// Sequence of the bundle acknowledged last.
    pub acknowledged: Option<u64>,
    /// Bundles refused: of a lower sequence, of another trust domain, or other than the one of the same sequence.
    pub refused_bundles: u64,
    /// Revocation lists, or issuers of lists, that were refused: not signed by an issuer under the bundle, or with a lower
    /// number than the list held.
    pub refused_crls: u64,
    /// Serial of the node's own certificate; empty before the first join.
    pub node_serial: String,
    /// Last second of the node's own certificate.
    pub node_not_after: Option<Timestamp>,
    /// Whether the authority refuses this node's certificate: it was evicted, banned or revoked. What is held is served
    /// until it expires; nothing is renewed, and the authority is asked only every few minutes.
    pub refused: bool,
    /// Attempts to connect, join or renew that failed in a row.
    pub failures: u32,
    /// Writes of the sealed state that failed in a row.
    pub unsealed: u32,
    /// Files of the state that were of no use and are kept aside.
    pub aside: usize,
}

impl Status {
    /// The stream is closed. It was heard until now, if it was open.
    pub(crate) fn disconnected(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.connected) {
            self.heard_at = Some(now);
        }
    }

    pub(crate) const fn synced(&mut self, cursor: u64) {
        self.connected = true;
        self.refused = false;
        self.failures = 0;
        self.cursor = cursor;
        self.syncs = self.syncs.saturating_add(1);
    }
}

/// Where the status is posted.
#[derive(Debug, Default)]
pub(crate) struct StatusBoard(watch::Sender<Status>);

impl StatusBoard {
    /// Changes the status; whoever waits is told if that changed anything.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    pub(crate) fn follow(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }
}
