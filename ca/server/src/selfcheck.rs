//! The standing self-check: certificates that were issued lately, judged again by another library than made them.
//!
//! Laws: it looks at what was really sent, verifies it with webpki against the published bundle as both client and
//! server, and never changes anything. A failure is an error in the log and a counter that must stay zero.
//! Sources: ca/docs/attacks.md §2 (24).

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
                // One whose root has left the bundle since it was issued cannot be judged any more.
                let too_late =
                    now > leaf.issuance().not_after || leaf.issuance().bundle != bundle.bundle.sequence();
                let judged = verify_peer(leaf.certificate().der(), &above, &bundle.anchors, usage, now);
                if let Err(cause) = judged
                    && !too_late
                {
                    self.metrics.self_check_failures.inc();
                    let serial = leaf.issuance().serial;
                    tracing::error!(%serial, %cause, "an issued certificate does not verify; stop and report this");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use rhizome_core::attributes::Attributes;

    use rhizome_core::caller::{AttestedCaller, Principal, Role, Scope};
    use rhizome_core::policy::Wish;

    use rhizome_keys::MemoryKeyRing;
    use rhizome_store::MemoryStore;
    use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};

    use super::*;
    use crate::issue::{Ask, Csr};
    use crate::{Ports, Running, Settings, SystemClock, SystemEntropy};

    async fn server() -> Running {
        let (domain, replica) = ("example.test".parse().unwrap(), "r1".parse().unwrap());
        let settings =
            Settings { workers: 1, ..Settings::new(domain, replica, "127.0.0.1:0".parse().unwrap()) };
        let ports = Ports {
            store: Arc::new(MemoryStore::new()),
            keys: Arc::new(MemoryKeyRing::new()),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy::default()),
        };
        crate::start(settings, ports).await.unwrap()
    }

    async fn issue(ca: &Arc<Ca>) {
        let csr = create_csr(&RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap()).unwrap();
        let root = Principal::Local { uid: 0, user: None };
        let caller = AttestedCaller::assertion(root, Attributes::default(), Scope::none());
        let wish = Wish::Admin { name: "alice".parse().unwrap(), ttl: None };
        let ask = Ask { csr: Csr::Der(&csr), wish, request: None };
        ca.issue(&caller.with_role(Role::Security), ask).await.unwrap();
    }

    #[tokio::test]
    async fn a_planted_certificate_of_another_authority_is_found_by_the_self_check() {
        let (ours, theirs) = (server().await, server().await);
        let ca = ours.ca();
        let counted = || (ca.metrics.self_checked.get(), ca.metrics.self_check_failures.get());
        issue(ca).await;
        ca.judge_lately();
        assert_eq!(counted(), (2, 0));

        issue(theirs.ca()).await;
        theirs.ca().lately.take().iter().for_each(|planted| ca.lately.note(planted));
        ca.judge_lately();
        assert_eq!(counted(), (4, 2), "as a client and as a server");
        let checks = ca.checks(None).await;
        let check = checks.iter().find(|it| it.name == "issuance.self_check").unwrap();
        assert!(!check.ok && check.remedy.contains("stop issuing"), "{check:?}");
        ours.stop().await;
        theirs.stop().await;
    }
}
