//! The canary in practice: a share is issued below the new root first, and handshakes show in both directions that whoever
//! holds either bundle accepts what is below either root.
//!
//! Laws: nothing is decided here. Each server has an issuer of its own below the new root, made and put to work by the same
//! machine as the regular one (`rhizome_core::authority`), and ends it itself; whoever cannot make one issues all below the
//! old root. A probe is a whole TLS handshake in memory, configured as live ones are, with two certificates that were made for
//! it, one below each root, recorded as everything else; their keys are dropped with it. What keeps a probe from being held
//! says nothing about the roots. A failure stands until the same direction succeeds again.
//! Not here: what follows from a probe (`rhizome_core::rotation`), who belongs to the share (`rhizome_core::state`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhizome_core::authority::{Authority, AuthorityKind, AuthorityState};
use rhizome_core::issuance::{ActiveIssuer, IssuedLeaf, Recorded};
use rhizome_core::ledger::{Issuance, Profile};
use rhizome_core::rotation::evidence::{Direction, Probe};
use rhizome_core::rotation::{Heading, Mode, Phase, Rotation};
use rhizome_core::state::State;
use rhizome_id::{AuthorityId, RequestId, RotationName, Timestamp};
use rhizome_tls::{RehearsalError, RehearsedEnd, rehearse};
use rhizome_x509::{Bundle, RequestKey, TrustAnchors};

use crate::ca::Ca;
use crate::error::ApiError;
use crate::rotate_root::Held;
use crate::rotate_root_test::PROBE;

/// Between two rounds of handshakes.
const EVERY_SECONDS: i64 = 30;
/// Probes remembered; of more, the oldest are let go. A day has 5 760.
const MOST_PROBES: usize = 8_192;

/// What this process found by handshakes in the phase that is under way.
#[derive(Default)]
pub(crate) struct Probes(Mutex<Found>);

#[derive(Default)]
struct Found {
    /// The rotation, and since when it is in its phase.
    of: Option<(RotationName, Timestamp)>,
    tried_at: Option<Timestamp>,
    probes: Vec<Probe>,
}

impl Probes {
    /// What was found since `rotation` entered its phase.
    pub(crate) fn of(&self, rotation: &Rotation) -> Vec<Probe> {
        let found = self.found();
        let same =
            found.of.as_ref().is_some_and(|(name, at)| *name == rotation.name && *at == rotation.since);
        if same { found.probes.clone() } else { Vec::new() }
    }

    /// Whether the next round is due; it counts as tried then.
    fn is_due(&self, rotation: &Rotation, now: Timestamp) -> bool {
        let mut found = self.found();
        let of = Some((rotation.name.clone(), rotation.since));
        if found.of != of {
            *found = Found { of, ..Found::default() };
        }
        let rests = found.tried_at.is_some_and(|at| (0..EVERY_SECONDS).contains(&now.since(at)));
        if !rests {
            found.tried_at = Some(now);
        }
        !rests
    }

    fn note(&self, round: Vec<Probe>) {
        let mut found = self.found();
        for probe in round {
            if probe.failure.is_none() {
                found.probes.retain(|it| it.direction != probe.direction || it.failure.is_none());
            }
            found.probes.push(probe);
        }
        let more = found.probes.len().saturating_sub(MOST_PROBES);
        found.probes.drain(..more);
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("probes", &self.found().probes.len()).finish_non_exhaustive()
    }
}

/// Whether a certificate was made for a probe: nobody has its key any more.
pub(crate) fn is_probe(issuance: &Issuance) -> bool {
    let named = issuance.request.as_ref().is_some_and(|it| it.starts_with(PROBE));
    issuance.profile == Profile::Server && named
}

/// The servers that have an issuer below the root of a canary, and those that have none.
pub(crate) fn replicas(state: &State, new: &AuthorityId) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut with, mut all) = (BTreeSet::new(), BTreeSet::new());
    let signs = |it: &&Authority| it.kind == AuthorityKind::Issuer && it.state == AuthorityState::Active;
    for issuer in state.authorities().values().map(|it| &*it.value).filter(signs) {
        all.insert(issuer.replica.to_string());
        if issuer.issuer.as_ref() == Some(new) {
            with.insert(issuer.replica.to_string());
        }
    }
    let without = all.difference(&with).cloned().collect();
    (with, without)
}

impl Ca {
    /// Lets a share be issued under `root`, or under none beside the active one.
    pub(crate) async fn set_canary(
        self: &Arc<Self>,
        held: &Held,
        root: Option<&AuthorityId>,
        reason: &str,
    ) -> Result<(), ApiError> {
        let state = self.state();
        let others =
            state.authorities().values().filter(|it| it.value.is_canary() && Some(&it.value.id) != root);
        for other in others {
            self.change_root(held, &other.value.id, "root.canary.end", reason, |it| it.canary = false)
                .await?;
        }
        if let Some(root) = root {
            self.change_root(held, root, "root.canary", reason, |it| it.canary = true).await?;
        }
        // Issuers follow at once. A server that has no key to make one with goes on without.
        if let Err(cause) = self.keep_authorities().await {
            tracing::warn!(%cause, "this server's issuers do not follow the canary yet; trying again");
        }
        Ok(())
    }

    /// Holds a round of handshakes when one is due: whatever it finds is part of the world from then on.
    pub(crate) async fn probe_canary(self: &Arc<Self>, rotation: &Rotation, now: Timestamp) {
        let under_way = rotation.phase == Phase::Canary && rotation.heading == Heading::Forward;
        let state = self.state();
        let (Some(canary), Some(regular)) = (state.canary(), state.issuer()) else { return };
        if !under_way || rotation.mode == Mode::Expired || !self.root.probes.is_due(rotation, now) {
            return;
        }
        match self.probe(rotation, &state, (canary.issuer(), regular), now).await {
            Ok(round) => {
                for probe in round.iter().filter(|it| it.failure.is_some()) {
                    tracing::error!(rotation = %rotation.name, direction = %probe.direction, cause = probe.failure,
                        "a handshake of the canary failed");
                }
                self.root.probes.note(round);
            }
            Err(cause) => tracing::warn!(%cause, "the canary could not be probed; trying again"),
        }
    }

    async fn probe(
        self: &Arc<Self>,
        rotation: &Rotation,
        state: &State,
        (canary, regular): (&Arc<ActiveIssuer>, &Arc<ActiveIssuer>),
        now: Timestamp,
    ) -> Result<Vec<Probe>, ApiError> {
        let bug = |cause: &dyn fmt::Display| ApiError::Bug(format!("a probe of the canary: {cause}"));
        let name: RequestId = format!("{PROBE}{}", rotation.name).parse().map_err(|cause| bug(&cause))?;
        let below_new = Shown::of(self.own_leaf(canary, Some(&name)).await?);
        let below_old = Shown::of(self.own_leaf(regular, Some(&name)).await?);
        let published = state.bundle().ok_or_else(|| bug(&"there is no bundle"))?;
        let mut holders = vec![("both roots", Arc::clone(&published.value.anchors))];
        let root = |id: &AuthorityId| state.authorities().get(id).map(|it| &it.value);
        let bridge = root(&rotation.new).and_then(|it| it.cross.as_ref());
        let carries =
            bridge.is_some_and(|it| it.carried && it.by == rotation.old && it.certificate.not_after() >= now);
        if let Some(old) = root(&rotation.old).filter(|_| carries) {
            let (domain, hint) = (self.settings.trust_domain.clone(), self.settings.refresh_hint);
            let bundle = Bundle::new(domain, 1, hint, vec![old.anchor().clone()]).map_err(|it| bug(&it))?;
            holders.push(("the old root alone", Arc::new(TrustAnchors::from_bundle(&bundle))));
        }
        judge(&below_new, &below_old, &holders, now).map_err(|cause| bug(&cause))
    }
}

/// A certificate that is shown in probes, and its key.
struct Shown {
    leaf: Recorded<IssuedLeaf>,
    chain_der: Vec<Vec<u8>>,
    key: RequestKey,
}

impl Shown {
    fn of((leaf, key): (Recorded<IssuedLeaf>, RequestKey)) -> Self {
        let mut chain_der = vec![leaf.certificate().der().to_vec()];
        chain_der.extend(leaf.intermediates().iter().map(|der| der.to_vec()));
        Self { leaf, chain_der, key }
    }

    fn trusting<'e>(&'e self, key_pkcs8_der: &'e [u8], trusts: &'e Arc<TrustAnchors>) -> RehearsedEnd<'e> {
        let spiffe_id = &self.leaf.issuance().spiffe_id;
        RehearsedEnd { chain_der: &self.chain_der, key_pkcs8_der, spiffe_id, trusts }
    }
}

/// Shows the certificate below the new root to each of `holders`, who show the one below the old root to whoever holds the
/// bundle of the first of them: as clients, and as servers.
fn judge(
    below_new: &Shown,
    below_old: &Shown,
    holders: &[(&str, Arc<TrustAnchors>)],
    now: Timestamp,
) -> Result<Vec<Probe>, RehearsalError> {
    let (new_key, old_key) = (below_new.key.pkcs8_der(), below_old.key.pkcs8_der());
    let Some((_, both)) = holders.first() else { return Ok(Vec::new()) };
    let (mut to_old, mut to_new) = (None, None);
    for (holder, trusts) in holders {
        let new = below_new.trusting(&new_key, both);
        let old = below_old.trusting(&old_key, trusts);
        for (outcome, holder_calls) in [(rehearse(new, old, now), true), (rehearse(old, new, now), false)] {
            let (cause, caller_refuses) = match outcome {
                Ok(()) => continue,
                Err(RehearsalError::ClientRefuses { cause }) => (cause, true),
                Err(RehearsalError::ServerRefuses { cause }) => (cause, false),
                Err(bug @ RehearsalError::Bug { .. }) => return Err(bug),
            };
            let role = if caller_refuses { "client" } else { "server" };
            if holder_calls == caller_refuses {
                to_old.get_or_insert_with(|| format!("a holder of {holder}, as a {role}: {cause}"));
            } else {
                to_new.get_or_insert_with(|| format!("a holder of both roots, as a {role}: {cause}"));
            }
        }
    }
    let probe = |direction, failure| Probe { direction, at: now, failure };
    Ok(vec![probe(Direction::NewToOld, to_old), probe(Direction::OldToNew, to_new)])
}

#[cfg(test)]
#[path = "rotate_root_canary_tests.rs"]
mod tests;
