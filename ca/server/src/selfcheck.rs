//! The standing self-check: certificates that were issued lately, judged again by another library than made them.
//!
//! Laws: it looks at what was really sent, verifies it with webpki against the published bundle as both client and
//! server, and never changes anything. A failure is an error in the log and a counter that must stay zero.
//! Sources: attacks.md §2 invariant 24.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhizome_core::issuance::{IssuedLeaf, Recorded};
use rhizome_x509::{PeerUsage, verify_peer};

use crate::ca::Ca;

/// How many of the newest certificates wait to be judged; more are let go, oldest first.
const KEPT: usize = 64;
/// How often they are judged.
const EVERY: Duration = Duration::from_secs(30);

/// Certificates issued lately.
#[derive(Debug, Default)]
pub(crate) struct Lately(Mutex<VecDeque<Arc<Recorded<IssuedLeaf>>>>);

impl Lately {
    pub(crate) fn note(&self, leaf: &Arc<Recorded<IssuedLeaf>>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= KEPT {
            waiting.pop_front();
        }
        waiting.push_back(Arc::clone(leaf));
    }

    fn take(&self) -> VecDeque<Arc<Recorded<IssuedLeaf>>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ca {
    /// Judges again and again until the process stops.
    pub(crate) async fn check_itself(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            self.judge_lately();
        }
    }

    pub(crate) fn judge_lately(&self) {
        let Some(bundle) = self.bundle() else { return };
        let now = self.ports.clock.now();
        for leaf in self.lately.take() {
            let above: Vec<&[u8]> = leaf.intermediates().iter().map(AsRef::as_ref).collect();
            for usage in [PeerUsage::Client, PeerUsage::Server] {
                self.metrics.self_checked.inc();
                let expired = now > leaf.issuance().not_after;
                let judged = verify_peer(leaf.certificate().der(), &above, &bundle.anchors, usage, now);
                if let Err(cause) = judged
                    && !expired
                {
                    self.metrics.self_check_failures.inc();
                    let serial = leaf.issuance().serial;
                    tracing::error!(%serial, %cause, "an issued certificate does not verify; stop and report this");
                }
            }
        }
    }
}
