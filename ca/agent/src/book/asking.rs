//! What the book wants asked for, and what comes of asking.
//!
//! Laws: a failure of one identity is that identity's alone; a denial by the authority stands until the authority answers
//! otherwise. Not here: when what falls due (`renewal`), asking (`fetch`).

use std::sync::Arc;

use rhizome_core::attributes::Attributes;
use rhizome_id::Timestamp;
use ring::digest::{SHA256, digest};

use super::{Book, Failure};
use crate::crls::issuer_of;
use crate::holdings::Svid;
use crate::renewal::{Candidate, DENIED_SECONDS, Entitlement, Plan, not_at_once, plan, retry_at};

/// Over how many seconds a fleet asks again for what was denied, after a rule changed.
const ASK_AGAIN_SECONDS: i64 = 15;

impl Book {
    /// What to ask for now, and when to look again.
    pub(crate) fn plan(&self, now: Timestamp, room: usize) -> Plan {
        if self.rules.is_none() || self.bundle.is_none() {
            return Plan::default();
        }
        let wanted = self.holdings.iter().filter(|(_, holding)| {
            // Whoever left may come back; until then nothing is renewed for it, only watched until it expires.
            !holding.followers.is_empty() || holding.svid.is_some()
        });
        let candidates = wanted.map(|(entitlement, holding)| Candidate {
            entitlement,
            held: holding
                .svid
                .as_ref()
                .map(|svid| (holding.renew_at.unwrap_or(svid.renew_at), svid.not_after)),
            not_before: holding.not_before,
            asked: holding.asked || holding.followers.is_empty(),
        });
        plan(candidates, now, room)
    }

    /// Notes that `entitlement` is being asked for, and says with which attributes; `None` when nobody wants it.
    pub(crate) fn ask(&mut self, entitlement: &Entitlement) -> Option<Attributes> {
        let holding = self.holdings.get_mut(entitlement)?;
        let first = holding.followers.first()?;
        let attributes = self.followers.get(first)?.attributes.clone();
        holding.asked = true;
        Some(attributes)
    }

    /// A certificate has come.
    pub(crate) fn issued(&mut self, entitlement: &Entitlement, svid: Arc<Svid>, now: Timestamp) {
        let overtaken = self.stopped.contains(&svid.serial);
        let Some(holding) = self.holdings.get_mut(entitlement) else { return };
        holding.asked = false;
        holding.failures = 0;
        holding.not_before = None;
        holding.denied = None;
        if overtaken {
            return;
        }
        holding.renew_at = Some(not_at_once(svid.renew_at, now, svid.not_after));
        holding.issuer = issuer_of(&svid);
        holding.svid = Some(svid);
        let followers = holding.followers.clone();
        // A certificate of an issuer whose list is not here: better no lists than some.
        if self.choose_crls() {
            self.show_everyone(now);
        } else {
            self.show(followers, now);
        }
    }

    /// No certificate has come. `draw` is 64 random bits.
    pub(crate) fn failed(&mut self, entitlement: &Entitlement, failure: Failure, now: Timestamp, draw: u64) {
        let Some(holding) = self.holdings.get_mut(entitlement) else { return };
        holding.asked = false;
        let not_after = holding.svid.as_ref().map(|svid| svid.not_after);
        match failure {
            Failure::Lost => {}
            Failure::Passing { wait } => {
                holding.failures = holding.failures.saturating_add(1);
                let own = retry_at(now, holding.failures, draw, not_after);
                holding.not_before = Some(wait.map_or(own, |wait| own.max(now.plus(wait))));
            }
            Failure::Denied(reason) => {
                holding.failures = holding.failures.saturating_add(1);
                holding.not_before = Some(now.plus(DENIED_SECONDS));
                holding.denied = Some(reason);
                let followers = holding.followers.clone();
                self.show(followers, now);
            }
        }
    }

    /// A rule came, so what the authority denied may be granted now: it is asked again soon, each node and each identity
    /// at an instant of its own, and is denied until the answer says otherwise.
    pub(super) fn ask_denied_again(&mut self, now: Timestamp) {
        let node = format!("{:?} {}", self.node, self.cursor);
        for (entitlement, holding) in self.holdings.iter_mut().filter(|(_, it)| it.denied.is_some()) {
            let drawn = digest(&SHA256, format!("{node} {}", entitlement.spiffe_id).as_bytes());
            let byte = drawn.as_ref().first().copied().unwrap_or_default();
            let soon = now.plus(i64::from(byte) % ASK_AGAIN_SECONDS);
            holding.not_before = Some(holding.not_before.map_or(soon, |at| at.min(soon)));
        }
    }
}
