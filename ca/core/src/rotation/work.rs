//! What is to be done in a phase: the first thing in which the world differs from what the phase demands.
//!
//! Laws: one effect at a time, in an order in which each stands on the one before; a thing that is as it should be gives
//! no effect, so performing one twice changes nothing. Every effect that writes to the store is conditional on the
//! rotation's record being the one that it follows from, so whoever was away meanwhile does nothing. Keys have names that
//! are never used again: making one twice gives one key, and destroying one late destroys nothing that lives.

use std::collections::BTreeSet;
use std::fmt;

use rhizome_id::{AuthorityId, Timestamp};

use super::evidence::Facts;
use super::gate::Gate;
use super::{Heading, Mode, Phase, Rotation};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Make the key of a root.
    MakeKey {
        /// The root's name, and the key's.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Make the root's certificate, signed by itself, and store it as prepared.
    SelfSign {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Make a certificate for the key of one root, signed by the other, and store it with the first. No chain carries it
    /// yet.
    CrossCertify {
        /// Whose key.
        root: AuthorityId,
        /// Who signs.
        by: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Sign a leaf below the new root with keys of the test's own, and verify it as a peer would.
    SelfTest {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Publish the bundle with these roots of the two, and without those; in the same transaction
    /// [`Rotation::with_published`].
    Publish {
        /// With these.
        with: BTreeSet<AuthorityId>,
        /// Without these.
        without: BTreeSet<AuthorityId>,
        /// Why.
        reason: Reason,
    },
    /// Let chains below a root carry its cross-certificate.
    Carry {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Make issuers under this root from now on, and under no other: issuers follow by themselves.
    Activate {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Issue the canary's share under this root, or under none beside the active one.
    SetCanary {
        /// Which root.
        root: Option<AuthorityId>,
        /// Why.
        reason: Reason,
    },
    /// Give a root up for good.
    Taint {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Let chains below a root carry no cross-certificate any more, and forget it.
    Uncross {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Remove a root's record.
    DeleteRecord {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Destroy a root's key.
    DestroyKey {
        /// Which root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Tell those who present certificates under this root to renew them, each in its slot ([`crate::renewals`]). Whoever was
    /// told already need not be told again.
    OrderRenewals {
        /// Which root.
        root: AuthorityId,
        /// Whom, in order of names: those who are waited for and can be told.
        whom: Vec<String>,
        /// Why.
        reason: Reason,
    },
    /// Nothing to do until then, unless something changes.
    WakeAt(Timestamp),
}

/// Why: for the ledger and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A new root is staged.
    Staging,
    /// Verifiers with one root only must accept chains below the other.
    Bridging,
    /// Both roots are distributed.
    Distributing,
    /// A share is issued under the new root.
    Canary,
    /// The new root signs.
    Activating,
    /// The old root is not trusted any more.
    Untrusting,
    /// The old root is in wrong hands.
    Compromised,
    /// The old root is not needed any more.
    Retiring,
    /// It was aborted.
    Aborting,
    /// The store was put back from a backup.
    Restored,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Staging => "a new root is staged",
            Self::Bridging => "verifiers with one root only must accept chains below the other",
            Self::Distributing => "both roots are distributed before either is relied on",
            Self::Canary => "a share is issued under the new root first",
            Self::Activating => "every live subscriber has the new root",
            Self::Untrusting => "nothing reaches only the old root any more",
            Self::Compromised => "the old root is in wrong hands",
            Self::Retiring => "nobody needs the old root any more",
            Self::Aborting => "the rotation was aborted",
            Self::Restored => "the store was put back from a backup",
        })
    }
}

/// The roots whose keys decide what is due, where `facts` are known but for the keys: no other need be asked for.
pub fn keys_that_matter<'r>(
    rotation: &'r Rotation,
    facts: &'r Facts,
    now: Timestamp,
) -> BTreeSet<&'r AuthorityId> {
    match rotation.phase {
        Phase::Stable => rotation.dead().into_iter().filter(|it| !facts.roots.contains_key(*it)).collect(),
        Phase::Staged | Phase::Retired => [&rotation.old, &rotation.new].into(),
        Phase::Distributing | Phase::Canary | Phase::Active => {
            missing_bridges(rotation, facts, now).map(|(_, by)| by).collect()
        }
        Phase::Untrusting => BTreeSet::new(),
    }
}

/// The first thing in which the world differs from what the phase demands.
pub(super) fn due(rotation: &Rotation, facts: &Facts, now: Timestamp) -> Option<Effect> {
    match (rotation.phase, rotation.heading) {
        (Phase::Stable, _) => sweep(rotation, facts),
        (Phase::Staged, Heading::Forward) => stage(rotation, facts, now),
        (Phase::Staged, Heading::Back) => publish(rotation, facts).or_else(|| withdraw(rotation, facts)),
        (Phase::Retired, _) => publish(rotation, facts)
            .or_else(|| sign(rotation, facts, now))
            .or_else(|| bury(&rotation.old, &rotation.new, facts, Reason::Retiring)),
        (Phase::Distributing | Phase::Canary | Phase::Active, _) => publish(rotation, facts)
            .or_else(|| bridge(rotation, facts, now))
            .or_else(|| test(rotation))
            .or_else(|| sign(rotation, facts, now)),
        (Phase::Untrusting, _) => publish(rotation, facts).or_else(|| sign(rotation, facts, now)),
    }
}

/// What is done while the gate is shut.
pub(super) fn meanwhile(rotation: &Rotation, gate: &Gate, now: Timestamp) -> Vec<Effect> {
    let leaving = match rotation.heading {
        Heading::Forward => (rotation.phase == Phase::Active).then_some((&rotation.old, Reason::Activating)),
        Heading::Back => (rotation.phase == Phase::Distributing).then_some((&rotation.new, Reason::Aborting)),
    };
    let mut effects = Vec::new();
    if let Some((root, reason)) = leaving.filter(|_| !gate.presenting.is_empty()) {
        effects.push(Effect::OrderRenewals { root: root.clone(), whom: gate.presenting.clone(), reason });
    }
    effects.extend(gate.next_look(now).map(Effect::WakeAt));
    effects
}

/// A dead root's key that came back: whoever was about to make it when the rotation ended did so after.
fn sweep(rotation: &Rotation, facts: &Facts) -> Option<Effect> {
    let dead = rotation.dead()?;
    let left = facts.keys.contains(dead) && !facts.roots.contains_key(dead);
    left.then(|| Effect::DestroyKey { root: dead.clone(), reason: Reason::Retiring })
}

fn stage(rotation: &Rotation, facts: &Facts, now: Timestamp) -> Option<Effect> {
    let Rotation { new, .. } = rotation;
    let reason = Reason::Staging;
    if !facts.roots.contains_key(new) {
        return Some(if facts.keys.contains(new) {
            Effect::SelfSign { root: new.clone(), reason }
        } else {
            Effect::MakeKey { root: new.clone(), reason }
        });
    }
    bridge(rotation, facts, now).or_else(|| test(rotation))
}

/// The cross-certificates that are still to be made, and by whom, before the old root expires: afterwards it is impossible.
pub(super) fn missing_bridges<'r>(
    rotation: &'r Rotation,
    facts: &'r Facts,
    now: Timestamp,
) -> impl Iterator<Item = (&'r AuthorityId, &'r AuthorityId)> {
    let Rotation { old, new, .. } = rotation;
    let lives = |id: &AuthorityId| facts.roots.get(id).is_some_and(|it| it.not_after >= now && !it.tainted);
    let possible = rotation.mode != Mode::Expired && lives(old) && lives(new);
    let bare = |id: &AuthorityId| facts.roots.get(id).is_some_and(|it| it.cross.is_none());
    [(new, old), (old, new)].into_iter().filter(move |(root, _)| possible && bare(root))
}

/// Makes one, where the key is that signs.
fn bridge(rotation: &Rotation, facts: &Facts, now: Timestamp) -> Option<Effect> {
    let (root, by) = missing_bridges(rotation, facts, now).find(|(_, by)| facts.keys.contains(*by))?;
    Some(Effect::CrossCertify { root: root.clone(), by: by.clone(), reason: Reason::Bridging })
}

/// Staged in secret, or, after a restore, while both are distributed.
fn test(rotation: &Rotation) -> Option<Effect> {
    let untested = rotation.self_test.is_none() && rotation.heading == Heading::Forward;
    let root = rotation.new.clone();
    untested.then_some(Effect::SelfTest { root, reason: Reason::Staging })
}

fn publish(rotation: &Rotation, facts: &Facts) -> Option<Effect> {
    let trusted = rotation.trusted();
    let both = [&rotation.old, &rotation.new];
    let is_so = both.iter().all(|id| trusted.contains(id) == facts.bundle.anchors.contains(*id));
    let counted = rotation.published.is_some() || matches!(rotation.phase, Phase::Staged | Phase::Stable);
    if is_so && counted {
        return None;
    }
    let reason = match (rotation.phase, rotation.heading) {
        _ if rotation.rewound => Reason::Restored,
        (_, Heading::Back) => Reason::Aborting,
        (Phase::Untrusting | Phase::Retired, _) => Reason::Untrusting,
        (Phase::Stable | Phase::Staged | Phase::Distributing | Phase::Canary | Phase::Active, _) => {
            Reason::Distributing
        }
    };
    let (with, without): (BTreeSet<_>, BTreeSet<_>) =
        both.into_iter().cloned().partition(|id| trusted.contains(id));
    Some(Effect::Publish { with, without, reason })
}

fn sign(rotation: &Rotation, facts: &Facts, now: Timestamp) -> Option<Effect> {
    let Rotation { old, new, .. } = rotation;
    let signs = rotation.signs();
    let reason = match rotation.heading {
        Heading::Forward => Reason::Activating,
        Heading::Back => Reason::Aborting,
    };
    // The bridge first, then whoever needs it. It carries nobody once it has expired.
    let bridged = |id: &AuthorityId| {
        let cross = facts.roots.get(id).and_then(|it| it.cross.as_ref());
        cross.is_none_or(|it| it.carried || it.not_after < now)
    };
    let canary = rotation.phase == Phase::Canary;
    if (signs == new || canary) && rotation.phase != Phase::Retired && !bridged(new) {
        return Some(Effect::Carry { root: new.clone(), reason: Reason::Bridging });
    }
    let unsure = rotation.heading == Heading::Back || rotation.rewound;
    if signs == old && unsure && !bridged(old) {
        return Some(Effect::Carry { root: old.clone(), reason: Reason::Bridging });
    }
    if facts.active_root() != Some(signs) && facts.roots.contains_key(signs) {
        return Some(Effect::Activate { root: signs.clone(), reason });
    }
    let share = canary.then_some(new);
    if facts.canary.as_ref() != share {
        return Some(Effect::SetCanary { root: share.cloned(), reason: Reason::Canary });
    }
    let gone = rotation.mode == Mode::Compromised
        && matches!(rotation.phase, Phase::Untrusting | Phase::Retired)
        && facts.roots.get(old).is_some_and(|it| !it.tainted);
    gone.then(|| Effect::Taint { root: old.clone(), reason: Reason::Compromised })
}

fn withdraw(rotation: &Rotation, facts: &Facts) -> Option<Effect> {
    if facts.canary.is_some() {
        return Some(Effect::SetCanary { root: None, reason: Reason::Aborting });
    }
    bury(&rotation.new, &rotation.old, facts, Reason::Aborting)
}

/// Removes `dead` and whatever binds `living` to it.
fn bury(dead: &AuthorityId, living: &AuthorityId, facts: &Facts, reason: Reason) -> Option<Effect> {
    let crossed = |id: &AuthorityId| facts.roots.get(id).is_some_and(|it| it.cross.is_some());
    if crossed(living) {
        return Some(Effect::Uncross { root: living.clone(), reason });
    }
    if facts.roots.contains_key(dead) {
        return Some(Effect::DeleteRecord { root: dead.clone(), reason });
    }
    facts.keys.contains(dead).then(|| Effect::DestroyKey { root: dead.clone(), reason })
}
