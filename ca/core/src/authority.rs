//! Authorities: which key signs, which is only trusted, and when each changes. One slot machine for roots, issuers and
//! the keys of JWT-SVIDs.
//!
//! Laws, each a test of that name: while the root lives there is an active issuer; at most one authority of a kind is
//! active in a replica; an issuer never outlives its root; a JWT key is there until the last token that it signed has
//! expired, and it signs when every live follower of the bundle has acknowledged it or was waited for long enough;
//! `step` is a function of its arguments, and performing an effect twice, or crashing between any two, ends in the same
//! state; a tainted authority never returns; time alone never makes, activates or ends a *root*, except the very first
//! one: what verifiers trust changes by decision; where the root's key is elsewhere, issuers are asked for and not made.
//! Not here: keys, certificates, storage (`rhizome_server::rotate`), the acknowledged change of roots (`rotation`).
//! Sources: ca/docs/ARCHITECTURE.md §8; spiffe/spire `pkg/server/ca/manager/slot.go` (thresholds); RFC 5280 §6.1.

use std::cmp::Reverse;
use std::fmt;

use rhizome_id::{AuthorityId, KeyId, ReplicaName, Timestamp, Ttl};

use crate::limits::{
    ACKNOWLEDGE_PATIENCE_SECONDS, ACTIVATE_CAP_SECONDS, ACTIVATE_FRACTION, BACKDATE_FRACTION,
    BACKDATE_SECONDS, CLOCK_BEHIND_SECONDS, PREPARE_CAP_SECONDS, PREPARE_FRACTION,
};
use crate::renewal::{Validity, validity};

mod records;
mod slots;

pub use records::{
    Authority, AuthorityKind, AuthorityState, Cross, Custody, FirstRoot, JwtAuthority, Records,
    RotationPolicy,
};
use slots::Slot;

/// Something to be done. Each is idempotent when performed as [`changes`] says: what was done already changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make a key and a self-signed root with [`root_validity`], and store it as `Prepared`.
    MakeRoot {
        /// Why.
        reason: Reason,
    },
    /// Make a key and an issuer for this replica under the active root with [`issuer_validity`], and store it as
    /// `Prepared`.
    MakeIssuer {
        /// Why.
        reason: Reason,
    },
    /// Make a key and an issuer for this replica under the root of a canary with [`issuer_validity`], and store it as
    /// `Prepared`.
    MakeCanary {
        /// The root.
        root: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// An issuer for this replica is due, and the active root's key is elsewhere: ask whoever has it. What comes from
    /// there is stored as `Prepared`, as if it had been made here. Due until then, so nothing may wait for it.
    AskForIssuer {
        /// Why.
        reason: Reason,
    },
    /// Make a key for JWT-SVIDs of this replica with [`jwt_validity`]; store it as `Prepared` and put it into the bundle,
    /// both in one transaction, so that it is published before it can sign.
    MakeJwtKey {
        /// Why.
        reason: Reason,
    },
    /// Let it sign, and let no other of its kind and replica: [`changes`] has both in one.
    Activate {
        /// Which.
        id: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// It signs no more.
    Retire {
        /// Which.
        id: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Remove its record, then destroy its key.
    Forget {
        /// Which.
        id: AuthorityId,
        /// Why.
        reason: Reason,
    },
    /// Nothing to do until then. Comes alone.
    WakeAt(Timestamp),
}

/// Why something is to be done: for the ledger and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// There has never been a root.
    FirstRoot,
    /// Nothing of this kind signs.
    NothingActive,
    /// The active one has passed its preparation threshold.
    SuccessorDue,
    /// The active one has passed its activation threshold.
    ActivationDue,
    /// The active root is another one now.
    RootChanged,
    /// A newer one of its kind is active.
    Superseded,
    /// Its last second has passed.
    Expired,
    /// Its root is gone or tainted, or ends before it.
    RootUnusable,
    /// It was made while the clock was wrong, and is not valid for a long time.
    Future,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstRoot => "there has never been a root",
            Self::NothingActive => "nothing of its kind signs",
            Self::SuccessorDue => "the active one passed its preparation threshold",
            Self::ActivationDue => "the active one passed its activation threshold",
            Self::RootChanged => "the active root is another one now",
            Self::Superseded => "another one of its kind serves",
            Self::Expired => "its last second has passed",
            Self::Future => "the clock came back; it is from the time before that",
            Self::RootUnusable => "its root is gone, tainted, or ends before it",
        })
    }
}

/// What `replica` has to do at `now`, in an order in which it can be done: perform the effects, then step again, until
/// the answer is nothing or a single [`Effect::WakeAt`]. `records` are those of all replicas; issuers of others
/// are left to them.
pub fn step(
    records: &Records,
    replica: &ReplicaName,
    now: Timestamp,
    policy: &RotationPolicy,
) -> Vec<Effect> {
    let slots = records.slots();
    let mut plan = Plan::default();
    plan_certifying(&slots, replica, now, policy, &mut plan);
    plan_jwt(&slots, replica, now, policy, &mut plan);
    plan.due(now)
}

/// What takes the JWT keys of `replica` out of service that were made ahead of `now`, by a clock that has come back since:
/// they would sign nothing until then, and no other would be made. To be asked only when the clock is believed to have come
/// back, not when it may come forward again.
pub fn leaving_the_future(records: &Records, replica: &ReplicaName, now: Timestamp) -> Vec<Effect> {
    let serves = |it: &&JwtAuthority| matches!(it.state, AuthorityState::Active | AuthorityState::Prepared);
    let ahead = |it: &&JwtAuthority| it.not_before.since(now) > CLOCK_BEHIND_SECONDS;
    let mine = records.jwt.iter().filter(|it| it.replica == *replica);
    let retire = |it: &JwtAuthority| Effect::Retire { id: it.id.clone(), reason: Reason::Future };
    mine.filter(serves).filter(ahead).map(retire).collect()
}

/// A change of one stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write this.
    Put(Box<Authority>),
    /// Delete the record; then, and only then, destroy the key.
    Delete {
        /// Which record.
        id: AuthorityId,
        /// Which key.
        key: KeyId,
    },
    /// Write this. The bundle stays as it is.
    PutJwt(Box<JwtAuthority>),
    /// Delete the record and take the key out of the bundle; then, and only then, destroy the key.
    DeleteJwt {
        /// Which record.
        id: AuthorityId,
        /// Which key.
        key: KeyId,
    },
}

/// The changes of records that perform `effect`, to be committed in one transaction. Records that are as they should
/// be already are not among them, so performing an effect twice changes nothing. Empty for effects that make keys.
pub fn changes(effect: &Effect, records: &Records, now: Timestamp) -> Vec<Change> {
    let slots = records.slots();
    let moves = transitions(effect, &slots);
    let to = |id: &AuthorityId| moves.iter().find(|(moved, _)| *moved == id).map(|(_, state)| *state);
    let begun = |state| (state == AuthorityState::Active).then_some(now);
    let ended = |state| (state == AuthorityState::Old).then_some(now);
    let certifying = records.certifying.iter().filter_map(|it| {
        Some(match to(&it.id)? {
            None => Change::Delete { id: it.id.clone(), key: it.key.clone() },
            Some(state) => {
                let activated_at = begun(state).or(it.activated_at);
                let retired_at = ended(state).or(it.retired_at);
                Change::Put(Box::new(Authority { state, activated_at, retired_at, ..it.clone() }))
            }
        })
    });
    let jwt = records.jwt.iter().filter_map(|it| {
        Some(match to(&it.id)? {
            None => Change::DeleteJwt { id: it.id.clone(), key: it.key.clone() },
            Some(state) => {
                let activated_at = begun(state).or(it.activated_at);
                Change::PutJwt(Box::new(JwtAuthority { state, activated_at, ..it.clone() }))
            }
        })
    });
    certifying.chain(jwt).collect()
}

/// When the successor of an authority valid from `not_before` to `not_after` is prepared: when half of its life
/// remains, or 30 days.
pub fn prepare_at(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    threshold(not_before, not_after, PREPARE_FRACTION, PREPARE_CAP_SECONDS)
}

/// When its successor is activated: when a sixth of its life remains, or 7 days.
pub fn activate_at(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    threshold(not_before, not_after, ACTIVATE_FRACTION, ACTIVATE_CAP_SECONDS)
}

fn threshold(not_before: Timestamp, not_after: Timestamp, fraction: i64, cap: i64) -> Timestamp {
    let life = not_after.since(not_before).saturating_add(1);
    let remaining = life.checked_div(fraction).unwrap_or(life).min(cap);
    not_after.minus(remaining)
}

/// The validity of a root made at `now`.
pub fn root_validity(now: Timestamp, policy: &RotationPolicy) -> Option<Validity> {
    validity(now, policy.root_ttl, Timestamp::EPOCH, Timestamp::MAX)
}

/// The validity of an issuer made at `now` under `root`: within the root's and that of everything above it. `None` when
/// they are not valid now.
pub fn issuer_validity(root: &Authority, now: Timestamp, policy: &RotationPolicy) -> Option<Validity> {
    let (from, until) = root.window();
    validity(now, policy.issuer_ttl, from, until)
}

/// From when to when a JWT key made at `now` signs. It stands by itself: no certificate is above it.
pub fn jwt_validity(now: Timestamp, policy: &RotationPolicy) -> Option<Validity> {
    validity(now, policy.jwt_key_ttl, Timestamp::EPOCH, Timestamp::MAX)
}

/// Effects due now, and the next instant at which something may become due.
#[derive(Debug, Default)]
struct Plan {
    effects: Vec<Effect>,
    wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }

    fn due(self, now: Timestamp) -> Vec<Effect> {
        match self.wake_at {
            // Times that have passed need no waking; a step that has effects is followed by another step anyway.
            Some(at) if self.effects.is_empty() && at > now => vec![Effect::WakeAt(at)],
            Some(_) | None => self.effects,
        }
    }
}

fn plan_certifying(
    slots: &[Slot<'_>],
    replica: &ReplicaName,
    now: Timestamp,
    policy: &RotationPolicy,
    plan: &mut Plan,
) {
    let root = plan_roots(slots, now, policy.first_root, plan);
    let line = Line {
        kind: AuthorityKind::Issuer,
        ttl: policy.issuer_ttl,
        ground: Ground::Root(root),
        canary: false,
    };
    plan_line(slots, replica, &line, now, plan);
    // While the root is changed for another, a share may be issued below the new one first.
    let new = slots.iter().find(|slot| slot.kind == AuthorityKind::Root && slot.canary);
    if let Some(new) = new {
        let ground = Ground::Root(Some(new).filter(|it| it.not_before <= now && !it.is_expired(now)));
        plan_line(slots, replica, &Line { ground, canary: true, ..line }, now, plan);
    }
}

/// JWT keys live apart from certificates, but in the same bundle: before the first root is active there is none.
fn plan_jwt(
    slots: &[Slot<'_>],
    replica: &ReplicaName,
    now: Timestamp,
    policy: &RotationPolicy,
    plan: &mut Plan,
) {
    let is_founded =
        |slot: &Slot<'_>| slot.kind == AuthorityKind::Root && slot.state != AuthorityState::Prepared;
    if policy.jwt_keys && slots.iter().any(is_founded) {
        let (kind, ttl) = (AuthorityKind::Jwt, policy.jwt_key_ttl);
        let line = Line { kind, ttl, ground: Ground::Itself, canary: false };
        plan_line(slots, replica, &line, now, plan);
    }
}

/// The authorities of one kind of which each replica has its own, one after the other.
struct Line<'s, 'a> {
    kind: AuthorityKind,
    ttl: Ttl,
    ground: Ground<'s, 'a>,
    /// Whether they are those below the root of a canary, which is not the active one.
    canary: bool,
}

/// What the authorities of a line stand on.
#[derive(Clone, Copy)]
enum Ground<'s, 'a> {
    /// The active root, when one is valid now.
    Root(Option<&'s Slot<'a>>),
    /// Nothing.
    Itself,
}

impl Line<'_, '_> {
    fn make(&self, reason: Reason) -> Effect {
        match self.ground {
            Ground::Root(Some(root)) if self.canary => Effect::MakeCanary { root: root.id.clone(), reason },
            Ground::Root(Some(Slot { custody: Custody::Elsewhere, .. })) => Effect::AskForIssuer { reason },
            Ground::Root(_) => Effect::MakeIssuer { reason },
            Ground::Itself => Effect::MakeJwtKey { reason },
        }
    }
}

/// Roots: the first one is made and activated here; every other change of an active root is a decision (law). So an
/// expired or tainted root stays where it is, and a clock that jumped does no harm that its return does not undo.
fn plan_roots<'s, 'a>(
    slots: &'s [Slot<'a>],
    now: Timestamp,
    first_root: FirstRoot,
    plan: &mut Plan,
) -> Option<&'s Slot<'a>> {
    let roots = || slots.iter().filter(|slot| slot.kind == AuthorityKind::Root);
    let active = roots()
        .filter(|slot| slot.state == AuthorityState::Active)
        .max_by_key(|slot| (slot.activated_at, slot.id));
    let Some(active) = active else {
        let first = roots().min_by_key(|slot| (slot.prepared_at, slot.id));
        let never_active = roots().all(|slot| slot.state == AuthorityState::Prepared);
        match first {
            None if first_root == FirstRoot::Await => {}
            None => plan.effects.push(Effect::MakeRoot { reason: Reason::FirstRoot }),
            Some(first) if never_active => {
                plan.effects.push(Effect::Activate { id: first.id.clone(), reason: Reason::FirstRoot })
            }
            Some(_) => {}
        }
        return None;
    };
    for slot in roots() {
        let finished = matches!(slot.state, AuthorityState::Old | AuthorityState::Tainted);
        let superseded = slot.state == AuthorityState::Active && slot.id != active.id;
        if superseded {
            plan.effects.push(Effect::Retire { id: slot.id.clone(), reason: Reason::Superseded });
        } else if finished && slot.is_expired(now) && !active.is_expired(now) {
            plan.effects.push(Effect::Forget { id: slot.id.clone(), reason: Reason::Expired });
        } else if finished && !slot.is_expired(now) {
            plan.wake(slot.gone_at());
        }
    }
    if now < active.not_before {
        plan.wake(active.not_before);
        return None;
    }
    (!active.is_expired(now)).then_some(active)
}

fn plan_line(
    slots: &[Slot<'_>],
    replica: &ReplicaName,
    line: &Line<'_, '_>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let (mut active, mut prepared) = (Vec::new(), Vec::new());
    let mine =
        |slot: &&Slot<'_>| slot.kind == line.kind && slot.replica == replica && slot.canary == line.canary;
    for slot in slots.iter().filter(mine) {
        let serves = match slot.state {
            AuthorityState::Prepared => &mut prepared,
            AuthorityState::Active => &mut active,
            AuthorityState::Old | AuthorityState::Tainted => {
                if slot.is_expired(now) {
                    plan.effects.push(Effect::Forget { id: slot.id.clone(), reason: Reason::Expired });
                } else {
                    plan.wake(slot.gone_at());
                }
                continue;
            }
        };
        match unusable(slot, slots, line.ground, now) {
            Some(reason) => plan.effects.push(Effect::Retire { id: slot.id.clone(), reason }),
            None => serves.push(slot),
        }
    }
    // After a race there may be two. The newest active one serves, the oldest prepared one waits; what was the canary's
    // serves once its root is the active one.
    let root = if let Ground::Root(root) = line.ground { root.map(|it| it.id) } else { None };
    active.sort_by_key(|slot| Reverse((slot.issuer == root, slot.activated_at, slot.id)));
    prepared.sort_by_key(|slot| (slot.prepared_at, slot.id));
    for extra in active.iter().skip(1).chain(prepared.iter().skip(1)) {
        plan.effects.push(Effect::Retire { id: extra.id.clone(), reason: Reason::Superseded });
    }
    plan_succession((active.first().copied(), prepared.first().copied()), line, now, plan);
}

/// Why an issuer or a JWT key can serve no more. Never because the clock says it is not valid *yet*: a clock that stepped back
/// comes forward again.
fn unusable(slot: &Slot<'_>, slots: &[Slot<'_>], ground: Ground<'_, '_>, now: Timestamp) -> Option<Reason> {
    if slot.is_expired(now) {
        return Some(Reason::Expired);
    }
    let root = match ground {
        Ground::Itself => return None,
        Ground::Root(root) => root,
    };
    let above = slots.iter().find(|other| other.kind == AuthorityKind::Root && Some(other.id) == slot.issuer);
    let Some(above) = above else {
        return Some(Reason::RootUnusable);
    };
    if above.state == AuthorityState::Tainted || slot.not_after > above.not_after {
        return Some(Reason::RootUnusable);
    }
    // It was a canary's, and there is none any more.
    if slot.state == AuthorityState::Active && above.state == AuthorityState::Prepared && !slot.canary {
        return Some(Reason::RootChanged);
    }
    let waits = slot.state == AuthorityState::Prepared;
    let other_root = root.is_some_and(|root| root.id != above.id);
    (waits && other_root).then_some(Reason::RootChanged)
}

fn plan_succession(
    (active, prepared): (Option<&Slot<'_>>, Option<&Slot<'_>>),
    line: &Line<'_, '_>,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(active) = active {
        plan.wake(active.gone_at());
    }
    let root = match line.ground {
        Ground::Itself => None,
        Ground::Root(Some(root)) => Some(root),
        // Without a root that is valid now nothing new can be made; what serves goes on serving.
        Ground::Root(None) => return,
    };
    if let Some(root) = root {
        plan.wake(root.gone_at());
    }
    let changed = root.is_some_and(|root| active.is_some_and(|active| active.issuer != Some(root.id)));
    match (active, prepared) {
        (None, None) => plan.effects.push(line.make(Reason::NothingActive)),
        (None, Some(next)) => {
            let latest = next.prepared_at.plus(ACKNOWLEDGE_PATIENCE_SECONDS);
            if next.is_known || now >= latest || now < next.prepared_at {
                plan.effects.push(activate(next, Reason::NothingActive));
            } else {
                plan.wake(latest);
            }
        }
        (Some(_), None) if changed => plan.effects.push(line.make(Reason::RootChanged)),
        (Some(_), Some(next)) if changed => plan.effects.push(activate(next, Reason::RootChanged)),
        (Some(active), None) => match successor_due(active, root, line.ttl) {
            Some(at) if now >= at => plan.effects.push(line.make(Reason::SuccessorDue)),
            Some(at) => plan.wake(at),
            None => {}
        },
        (Some(active), Some(next)) => {
            let due = activate_at(active.not_before, active.not_after);
            // Whoever has not heard of the next one by then is waited for, but not for all that is left.
            let at = if next.is_known { due } else { due.plus(active.not_after.since(due) / 2) };
            if now >= at {
                plan.effects.push(activate(next, Reason::ActivationDue));
            } else {
                plan.wake(at);
            }
        }
    }
}

/// When a successor is worth making: past the threshold, and not before it would live longer than the active one.
/// Towards the end of a root no successor can, so none is made, instead of ever more of ever shorter life.
fn successor_due(active: &Slot<'_>, root: Option<&Slot<'_>>, ttl: Ttl) -> Option<Timestamp> {
    if root.is_some_and(|root| root.not_after <= active.not_after) {
        return None;
    }
    // The backdating is part of the lifetime (see `renewal::validity`).
    let ttl = ttl.seconds();
    let ahead = ttl.saturating_sub(BACKDATE_SECONDS.min(ttl / BACKDATE_FRACTION));
    let outlives_from = active.gone_at().minus(ahead.saturating_sub(1));
    let others_choose_its_life = root.is_some_and(|root| root.custody == Custody::Elsewhere);
    let prepare = prepare_at(active.not_before, active.not_after);
    Some(if others_choose_its_life { prepare } else { prepare.max(outlives_from) })
}

fn activate(slot: &Slot<'_>, reason: Reason) -> Effect {
    Effect::Activate { id: slot.id.clone(), reason }
}

/// The states that performing `effect` leaves behind, `None` for removal; only for slots that are not there yet.
fn transitions<'a>(effect: &Effect, slots: &[Slot<'a>]) -> Vec<(&'a AuthorityId, Option<AuthorityState>)> {
    let find = |id: &AuthorityId| slots.iter().find(|slot| slot.id == id);
    match effect {
        Effect::MakeRoot { .. }
        | Effect::MakeIssuer { .. }
        | Effect::MakeCanary { .. }
        | Effect::AskForIssuer { .. }
        | Effect::MakeJwtKey { .. }
        | Effect::WakeAt(_) => Vec::new(),
        Effect::Activate { id, .. } => match find(id) {
            // A tainted authority never returns, and an old one only through the rotation of roots.
            Some(chosen) if chosen.state == AuthorityState::Prepared => slots
                .iter()
                .filter_map(|slot| {
                    let rival = slot.kind == chosen.kind
                        && (slot.kind == AuthorityKind::Root
                            || (slot.replica == chosen.replica && slot.canary == chosen.canary));
                    if slot.id == chosen.id {
                        Some((slot.id, Some(AuthorityState::Active)))
                    } else if rival && slot.state == AuthorityState::Active {
                        Some((slot.id, Some(AuthorityState::Old)))
                    } else {
                        None
                    }
                })
                .collect(),
            Some(_) | None => Vec::new(),
        },
        Effect::Retire { id, .. } => match find(id) {
            Some(slot) if matches!(slot.state, AuthorityState::Prepared | AuthorityState::Active) => {
                vec![(slot.id, Some(AuthorityState::Old))]
            }
            Some(_) | None => Vec::new(),
        },
        Effect::Forget { id, .. } => match find(id) {
            Some(slot) if matches!(slot.state, AuthorityState::Old | AuthorityState::Tainted) => {
                vec![(slot.id, None)]
            }
            Some(_) | None => Vec::new(),
        },
    }
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "authority_record_tests.rs"]
mod record_tests;
