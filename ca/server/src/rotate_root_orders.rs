//! What people and nodes are told while the root is changed: who would break, and who is to renew.
//!
//! Laws: whoever accepts a loss accepts also what is left of it when they have said so: who stood in the loss when its digest
//! was named, and has ever since, is covered by that digest, and nobody else. It is remembered by the server that named it;
//! another one knows only whether the loss is still the very same. Renewals are ordered from those alone who are waited for
//! and can be told, once until the window has ended.
//! Not here: who that is (`rhizome_core::rotation::gate`), who renews when (`rhizome_core::renewals`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use rhizome_core::renewals::RenewalOrder;
use rhizome_core::rotation::evidence::{Subscriber, SubscriberKind};
use rhizome_core::rotation::gate::Loss;
use rhizome_core::rotation::{Choices, Consent, Phase, Rotation, pacing};
use rhizome_core::state::State;
use rhizome_id::{AuthorityId, Digest, RotationName, Timestamp, Ttl};

use crate::ca::Ca;
use crate::error::ApiError;
use crate::renewals::{Whom, Wish};

/// Digests that are remembered: on a busy day each look names another one, and somebody types one of the last.
const MOST_NAMED: usize = 4_096;

/// Losses that were named in one phase of one rotation.
#[derive(Debug, Default)]
pub(crate) struct NamedLosses {
    of: Option<(RotationName, Phase)>,
    /// How many different ones were named.
    count: u64,
    /// Who stands in the newest, and in each since which.
    since: BTreeMap<String, u64>,
    /// Which one a digest named last.
    named: BTreeMap<Digest, u64>,
}

impl NamedLosses {
    fn name(&mut self, of: (RotationName, Phase), loss: &Loss) {
        if self.of.as_ref() != Some(&of) {
            *self = Self { of: Some(of), ..Self::default() };
        }
        if self.named.get(&loss.digest) == Some(&self.count) {
            return;
        }
        self.count = self.count.saturating_add(1);
        let count = self.count;
        let since = |it: &String| (it.clone(), self.since.get(it).copied().unwrap_or(count));
        self.since = loss.subscribers.iter().map(since).collect();
        if self.named.len() >= MOST_NAMED {
            let half = count.saturating_sub(u64::try_from(MOST_NAMED / 2).unwrap_or_default());
            self.named.retain(|_, it| *it > half);
        }
        self.named.insert(loss.digest, count);
    }

    fn consent(&self, of: &(RotationName, Phase), digest: Digest) -> Consent {
        let named = self.named.get(&digest).filter(|_| self.of.as_ref() == Some(of));
        let stood = |it: &(&String, &u64)| named.is_some_and(|named| it.1 <= named);
        let names: BTreeSet<String> = self.since.iter().filter(stood).map(|(name, _)| name.clone()).collect();
        Consent { digest, names }
    }
}

impl Ca {
    /// Remembers who would break, as it is being told to somebody.
    pub(crate) fn name_loss(&self, rotation: &Rotation, loss: &Loss) {
        let mut named = self.root.losses.lock().unwrap_or_else(PoisonError::into_inner);
        named.name((rotation.name.clone(), rotation.phase), loss);
    }

    /// What somebody accepts who says this digest now.
    pub(crate) fn consent(&self, digest: Digest) -> Consent {
        let Some(rotation) = self.state().rotation().map(|it| Arc::clone(&it.value)) else {
            return Consent::to(digest);
        };
        let named = self.root.losses.lock().unwrap_or_else(PoisonError::into_inner);
        named.consent(&(rotation.name.clone(), rotation.phase), digest)
    }

    /// Orders those who present certificates below a root to renew them, each in its slot; once, until the window has ended.
    pub(crate) async fn order_renewals(
        self: &Arc<Self>,
        choices: &Choices,
        subscribers: &[Subscriber],
        (root, whom, reason): (&AuthorityId, &[String], &str),
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let state = self.state();
        let in_force = |order: &RenewalOrder| order.order.reason == reason && order.order.deadline > now;
        if state.renewals().values().any(|it| in_force(&it.value)) {
            return Ok(());
        }
        let below = state.authorities().values().filter(|it| it.value.issuer.as_ref() == Some(root));
        let issuers: Vec<Vec<u8>> = below.map(|it| it.value.certificate.key_identifier().to_vec()).collect();
        let window = Ttl::from_seconds(choices.window_seconds.max(1));
        let window = window.map_err(|bad| ApiError::Bug(bad.to_string()))?;
        let whom = Whom::These(told(&state, subscribers, root, whom, now));
        let wish = Wish { whom, window, issuers: &issuers, by: "server", reason };
        let planned = self.plan_renewal(&wish, now)?;
        if planned.schedule.turns.is_empty() {
            return Ok(());
        }
        // As many a second as was chosen, however many there are.
        let count = u32::try_from(planned.schedule.certificates).unwrap_or(u32::MAX);
        let window = Ttl::from_seconds(pacing::window_seconds(count, choices).max(1));
        let window = window.map_err(|bad| ApiError::Bug(bad.to_string()))?;
        let planned = self.plan_renewal(&Wish { window, ..wish }, now)?;
        self.order_renewal(&planned).await
    }
}

/// The principals of those who are told, and how many certificates each has to renew, whichever server it is connected to.
fn told(
    state: &State,
    subscribers: &[Subscriber],
    root: &AuthorityId,
    whom: &[String],
    now: Timestamp,
) -> BTreeMap<String, u32> {
    let meant = subscribers.iter().filter(|it| whom.binary_search(&it.name).is_ok());
    let one = |it: &Subscriber| {
        if it.kind == SubscriberKind::Subordinate {
            // It renews what it signs with; what it signed renews below it.
            let clusters = state.clusters().values();
            let mut node = clusters.filter(|cluster| format!("cluster:{}", cluster.value.name) == it.name);
            return node.next().map(|cluster| (cluster.value.principal().to_string(), 1));
        }
        Some((it.name.clone(), it.presents_under(root, now).map_or(1, |presented| presented.count)))
    };
    meant.filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(names: &[&str], digest: u8) -> Loss {
        let subscribers = names.iter().map(|it| (*it).to_owned()).collect();
        Loss { workloads: 1, subscribers, digest: Digest::from_bytes([digest; 32]) }
    }

    fn active() -> (RotationName, Phase) {
        ("rotation-1".parse().unwrap(), Phase::Active)
    }

    fn covered(named: &NamedLosses, of: &(RotationName, Phase), digest: u8) -> Vec<String> {
        named.consent(of, Digest::from_bytes([digest; 32])).names.into_iter().collect()
    }

    #[test]
    fn a_digest_covers_those_who_stood_in_its_loss_and_have_ever_since() {
        let mut named = NamedLosses::default();
        named.name(active(), &loss(&["a", "b", "c"], 1));
        named.name(active(), &loss(&["b", "c"], 2));
        named.name(active(), &loss(&["b", "c", "d"], 3));
        named.name(active(), &loss(&["a", "b", "d"], 4));
        assert_eq!(covered(&named, &active(), 1), ["b"], "a was done, and is in it for another reason now");
        assert_eq!(covered(&named, &active(), 3), ["b", "d"]);
        assert_eq!(covered(&named, &active(), 9), [""; 0], "nobody was told that one");
        let of = ("rotation-1".parse().unwrap(), Phase::Distributing);
        assert_eq!(covered(&named, &of, 4), [""; 0], "another phase breaks others");
    }

    #[test]
    fn the_last_digests_are_remembered_however_many_were_named() {
        let mut named = NamedLosses::default();
        for number in 0..3 * MOST_NAMED {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            let one = Loss { digest: Digest::from_bytes(digest), ..loss(&["a"], 0) };
            named.name(active(), &one);
            assert_eq!(named.consent(&active(), one.digest).names.len(), 1);
        }
        assert!(named.named.len() <= MOST_NAMED);
    }
}
