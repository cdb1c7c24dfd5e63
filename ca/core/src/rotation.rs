//! Rotation of the root: what verifiers trust changes phase by phase, each left only on evidence, and can be taken back.
//!
//! Laws: for every live pair of workloads what the one presents reaches a root that the other trusts, before, during and
//! after (the invariants are functions in [`invariants`], each named as a sentence). A step either moves or acts, never
//! both: a move is durable before the first effect that follows from it. Effects are found by comparing the world with
//! what the phase demands, so each is idempotent, and whoever crashes, retries, takes over or does not know whether
//! something happened looks again and goes on. What the phase demands of the world depends on the phase alone; on the
//! way back the same phases are passed in the other order, under gates of their own.
//! Not here: issuers and their certificates, which follow the active root by themselves (`authority`); performing effects
//! (`rhizome_server`); what counts as evidence (`evidence`, `gate`).
//! Sources: ca/docs/rotation.md; RFC 5280 §6.1.

use std::collections::BTreeMap;

use rhizome_id::{AuthorityId, RotationName, Timestamp};

use crate::limits::{EXEMPTIONS, ROTATION_REASON_BYTES};

pub mod canary;
pub mod evidence;
pub mod gate;
pub mod holdings;
pub mod invariants;
pub mod pacing;
pub mod plan;
mod record;
mod refusal;
mod work;

pub use canary::Canary;
pub use evidence::{Facts, Published, World};
pub use gate::{Blocker, Consent, Gate};
pub use record::{
    Accepted, Choices, Exemption, Heading, Mode, Names, Outcome, Passage, Phase, Restore, Rotation, SelfTest,
};
pub use refusal::Refusal;
pub use work::{Effect, Reason, keys_that_matter};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// Time to look at the world.
    Look(&'a World),
    /// An administrator's word.
    Command {
        /// Whose: the stable text of a principal.
        by: &'a str,
        /// The rotation and version they have seen; `None`: that there is none under way, so they can only start one.
        seen: Option<(&'a RotationName, u64)>,
        /// What they want.
        order: Order,
        /// The world as it is.
        world: &'a World,
    },
    /// The self-test of a rotation has come to an end.
    SelfTested {
        /// Which rotation.
        rotation: &'a RotationName,
        /// What it found.
        verdict: SelfTest,
    },
}

/// What an administrator can want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Begin.
    Start {
        /// Its name, never used before.
        name: RotationName,
        /// The name of the root that will be made.
        new: AuthorityId,
        /// What kind of change it is.
        mode: Mode,
        /// What was chosen.
        choices: Choices,
        /// Why, in one line.
        reason: String,
    },
    /// Leave this phase, if its gate is open.
    Advance {
        /// The loss that is accepted, as it was named; only in [`Mode::Compromised`].
        accept: Option<Consent>,
    },
    /// Take it back.
    Abort,
    /// Do not wait for somebody.
    Exempt(Exemption),
}

/// What follows. Never both: a move is stored before anything is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The record to store, if it is still the one that was read; then step again.
    pub moved: Option<Box<Rotation>>,
    /// What to do, in order; each may have been done already.
    pub effects: Vec<Effect>,
}

/// What follows from `input` at `now` for the rotation on record, if there is one.
///
/// # Errors
/// [`Refusal`] of a command: nothing changes then. A look is never refused.
pub fn step(current: Option<&Rotation>, input: Input<'_>, now: Timestamp) -> Result<Step, Refusal> {
    match input {
        Input::Look(world) => Ok(current.map_or_else(Step::default, |rotation| look(rotation, world, now))),
        Input::Command { by, seen, order, world } => command(current, by, seen, order, world, now),
        Input::SelfTested { rotation: name, verdict } => {
            let asked = |it: &Rotation| matches!(it.phase, Phase::Staged | Phase::Distributing);
            let waits = |it: &&Rotation| it.name == *name && asked(it) && it.heading == Heading::Forward;
            let current = current.filter(waits).filter(|it| it.self_test.as_ref() != Some(&verdict));
            Ok(Step::to(current.map(|it| it.changed(|next| next.self_test = Some(verdict)))))
        }
    }
}

/// What follows from the facts alone, before anybody is asked; `None`: it depends on the gate.
pub fn on_facts(rotation: &Rotation, facts: &Facts, now: Timestamp) -> Option<Step> {
    if let Some(next) = rotation.overtaken(facts, now) {
        return Some(Step::to(Some(next)));
    }
    if let Some(effect) = work::due(rotation, facts, now) {
        return Some(Step { moved: None, effects: vec![effect] });
    }
    (rotation.phase == Phase::Stable).then(Step::default)
}

/// What follows where the facts are as the phase demands ([`on_facts`] has nothing to say): `gate` is that of the phase in
/// `world`.
pub fn at_gate(rotation: &Rotation, world: &World, gate: &Gate, now: Timestamp) -> Step {
    if let Some(back) = rotation.failed(world, now) {
        return Step::to(Some(back));
    }
    let may = !rotation.choices.manual || rotation.heading == Heading::Back;
    if gate.is_open() && may {
        return Step::to(Some(rotation.left("server", gate, world, now)));
    }
    Step { moved: None, effects: work::meanwhile(rotation, gate, now) }
}

fn look(rotation: &Rotation, world: &World, now: Timestamp) -> Step {
    let at_gate = || at_gate(rotation, world, &gate::of(rotation, world, now), now);
    on_facts(rotation, &world.facts, now).unwrap_or_else(at_gate)
}

fn command(
    current: Option<&Rotation>,
    by: &str,
    seen: Option<(&RotationName, u64)>,
    order: Order,
    world: &World,
    now: Timestamp,
) -> Result<Step, Refusal> {
    let underway = current.filter(|it| it.phase != Phase::Stable);
    if let Order::Start { name, new, mode, choices, reason } = order {
        match (underway, current) {
            (Some(same), _) if same.name == name => return Ok(Step::default()),
            (Some(other), _) => {
                return Err(Refusal::InProgress { rotation: other.name.clone(), phase: other.phase });
            }
            // Whoever is late with an old plan would destroy what the new one of that name has made.
            (None, Some(ended)) if ended.name == name => return Err(Refusal::NameUsed { rotation: name }),
            (None, Some(ended)) if [&ended.old, &ended.new].contains(&&new) => {
                return Err(Refusal::NameTaken { root: new });
            }
            (None, _) => {}
        }
        let begun = begin(by, name, new, mode, choices, world, now)?;
        return Ok(Step::to(Some(Rotation { reason, ..begun })));
    }
    let rotation = underway.ok_or(Refusal::NoneUnderWay)?;
    if seen != Some((&rotation.name, rotation.version)) {
        return Err(Refusal::Changed { rotation: rotation.name.clone(), version: rotation.version });
    }
    let overtaken = rotation.overtaken(&world.facts, now);
    let rotation = overtaken.as_ref().unwrap_or(rotation);
    match order {
        Order::Start { .. } => Ok(Step::default()),
        Order::Advance { accept } => advance(rotation, by, accept, world, now),
        Order::Abort => abort(rotation, by, world, now),
        Order::Exempt(exemption) => exempt(rotation, exemption, world, now),
    }
}

fn begin(
    by: &str,
    name: RotationName,
    new: AuthorityId,
    mode: Mode,
    choices: Choices,
    world: &World,
    now: Timestamp,
) -> Result<Rotation, Refusal> {
    let facts = &world.facts;
    let old = facts.active_root().ok_or(Refusal::NoRoot)?.clone();
    let end = facts.roots.get(&old).map_or(now, |root| root.not_after);
    match mode {
        Mode::Planned | Mode::Compromised if end < now => return Err(Refusal::Expired { root: old, end }),
        Mode::Expired if !evidence::gone(end, now) => return Err(Refusal::NotExpired { root: old, end }),
        Mode::Planned | Mode::Compromised | Mode::Expired => {}
    }
    if facts.roots.contains_key(&new) || facts.keys.contains(&new) {
        return Err(Refusal::NameTaken { root: new });
    }
    if mode != Mode::Expired && !choices.unbridged && !facts.keys.contains(&old) {
        return Err(Refusal::NoBridge { root: old });
    }
    check(&choices)?;
    if mode == Mode::Expired && choices.canary.is_some() {
        return Err(Refusal::BadChoice {
            what: "below an expired root nothing is left to compare a canary with",
        });
    }
    Ok(Rotation {
        name,
        version: 1,
        mode,
        phase: Phase::Staged,
        heading: Heading::Forward,
        outcome: None,
        old,
        new,
        choices,
        started_by: by.to_owned(),
        reason: String::new(),
        started_at: now,
        since: now,
        before: facts.bundle.anchors.clone(),
        published: None,
        self_test: None,
        exemptions: Vec::new(),
        accepted: None,
        restored: facts.restored,
        rewound: false,
        last: None,
    })
}

fn check(choices: &Choices) -> Result<(), Refusal> {
    let Choices { soak_seconds, settle_seconds, window_seconds, longest_seconds, .. } = *choices;
    let bad = |what| Err(Refusal::BadChoice { what });
    if [soak_seconds, settle_seconds, window_seconds, longest_seconds].iter().any(|it| *it < 0) {
        return bad("a duration is negative");
    }
    if choices.renewals_per_second == 0 {
        return bad("at least one renewal a second is needed");
    }
    match &choices.canary {
        Some(canary) if !canary.is_sound() => {
            bad("a canary takes 1 to 99 percent, or at least one namespace")
        }
        Some(_) | None => Ok(()),
    }
}

fn advance(
    rotation: &Rotation,
    by: &str,
    accept: Option<Consent>,
    world: &World,
    now: Timestamp,
) -> Result<Step, Refusal> {
    if rotation.heading == Heading::Back {
        return Ok(Step::default());
    }
    if matches!(rotation.self_test, Some(SelfTest::Failed { .. })) {
        return Ok(Step::to(Some(rotation.changed(|next| next.self_test = None))));
    }
    let gate = gate::of(rotation, world, now);
    let unready = work::due(rotation, &world.facts, now).is_some();
    if gate.is_open() && !unready {
        return Ok(Step::to(Some(rotation.left(by, &gate, world, now))));
    }
    match gate.loss() {
        Some(loss) if !unready && rotation.mode == Mode::Compromised => {
            let Some(consent) = accept.filter(|it| it.covers(&loss)) else {
                return Err(Refusal::NeedsConsent { loss: Box::new(loss) });
            };
            let accepted = Some(loss.accepted(rotation, by, consent.digest, now));
            let giving_up = Rotation { accepted, ..rotation.clone() };
            Ok(Step::to(Some(giving_up.left(by, &gate, world, now))))
        }
        Some(_) | None => Err(Refusal::blocked(rotation.phase, &gate)),
    }
}

fn abort(rotation: &Rotation, by: &str, world: &World, now: Timestamp) -> Result<Step, Refusal> {
    if rotation.heading == Heading::Back {
        return Ok(Step::default());
    }
    let phase = rotation.way_back(&world.facts, now)?;
    Ok(Step::to(Some(rotation.turned(phase, by, world, now))))
}

fn exempt(rotation: &Rotation, exemption: Exemption, world: &World, now: Timestamp) -> Result<Step, Refusal> {
    let bad = |what| Err(Refusal::BadExemption { what });
    let same = |it: &Exemption| {
        (&it.subscriber, &it.reason) == (&exemption.subscriber, &exemption.reason)
            && it.expires_at >= exemption.expires_at
    };
    if rotation.exemptions.iter().any(same) {
        return Ok(Step::default());
    }
    let reason = &exemption.reason;
    if reason.trim().is_empty() || reason.len() > ROTATION_REASON_BYTES || reason.contains(char::is_control) {
        return bad("a reason of at most 1024 bytes in one line is needed");
    }
    if exemption.expires_at <= now {
        return bad("it must expire later than now");
    }
    if rotation.exemptions.len() >= EXEMPTIONS {
        return bad("there are 250 already");
    }
    if !gate::knows(world, &exemption.subscriber) {
        return bad("nobody of that name depends on the roots");
    }
    Ok(Step::to(Some(rotation.changed(|next| {
        next.exemptions.retain(|it| it.subscriber != exemption.subscriber);
        next.exemptions.push(exemption);
    }))))
}

impl Step {
    fn to(moved: Option<Rotation>) -> Self {
        Self { moved: moved.map(Box::new), effects: Vec::new() }
    }
}

impl Rotation {
    /// Everybody who depends on either root, by cluster and kind: what progress bars count.
    pub fn progress(&self, world: &World, now: Timestamp) -> BTreeMap<gate::Place, gate::Progress> {
        gate::of(self, world, now).progress
    }

    /// The phase that an abort leads to, where it can be taken back.
    fn way_back(&self, facts: &Facts, now: Timestamp) -> Result<Phase, Refusal> {
        let signed = matches!(self.phase, Phase::Canary | Phase::Active | Phase::Untrusting);
        if self.mode == Mode::Compromised && (signed || self.rewound) {
            return Err(Refusal::Tainted { root: self.old.clone() });
        }
        let phase = match self.phase {
            // Nothing was signed below the new root, and nobody trusts it alone.
            Phase::Stable | Phase::Staged => return Ok(Phase::Staged),
            Phase::Distributing if !self.rewound => Phase::Staged,
            // The old root signs, and chains below it reach the new one too; whoever trusts that alone is asked.
            Phase::Distributing => Phase::Distributing,
            Phase::Canary | Phase::Active if !self.rewound => Phase::Distributing,
            // Some may trust the new root alone.
            Phase::Canary | Phase::Active | Phase::Untrusting => Phase::Active,
            Phase::Retired => return Err(Refusal::Irreversible { phase: self.phase }),
        };
        let end = facts.roots.get(&self.old).filter(|it| !it.tainted).map(|it| it.not_after);
        let Some(end) = end.filter(|end| *end >= now) else {
            return Err(Refusal::Irreversible { phase: self.phase });
        };
        let Choices { longest_seconds, settle_seconds, .. } = self.choices;
        if phase != Phase::Staged && end.since(now) <= longest_seconds.saturating_add(settle_seconds) {
            return Err(Refusal::TooLate { root: self.old.clone(), end });
        }
        Ok(phase)
    }

    /// The record once it says what has come over it: the store was put back from a backup, or the old root has ended.
    fn overtaken(&self, facts: &Facts, now: Timestamp) -> Option<Self> {
        if self.phase == Phase::Stable {
            return None;
        }
        if facts.restored > self.restored {
            // Nobody knows how far it had come: its bundle is published again, before anything else. What was staged in
            // secret when the backup was made may be all that somebody trusts now.
            return Some(self.changed(|next| {
                next.restored = facts.restored;
                next.rewound = true;
                next.published = None;
                let staged = next.phase == Phase::Staged && next.heading == Heading::Forward;
                if staged && facts.roots.contains_key(&next.new) {
                    next.phase = Phase::Distributing;
                    next.since = now;
                }
            }));
        }
        // Whoever waits for a root that is no more waits for ever, and there is no way back to it.
        let needs_old = match (self.phase, self.heading) {
            (Phase::Stable | Phase::Retired, _) | (Phase::Staged, Heading::Back) => false,
            (Phase::Staged | Phase::Distributing | Phase::Canary | Phase::Active | Phase::Untrusting, _) => {
                true
            }
        };
        let ended = facts.roots.get(&self.old).is_none_or(|it| evidence::gone(it.not_after, now));
        (needs_old && ended && self.mode != Mode::Expired).then(|| {
            self.changed(|next| {
                next.mode = Mode::Expired;
                next.heading = Heading::Forward;
                if next.trusted() != self.trusted() {
                    next.published = None;
                }
            })
        })
    }

    /// The record on its way back, once a probe of the canary has failed: its share is issued under the old root again. Where
    /// there is no way back it stays, and its gate stays shut.
    fn failed(&self, world: &World, now: Timestamp) -> Option<Self> {
        let under_way = self.phase == Phase::Canary && self.heading == Heading::Forward;
        let found = world.probes.iter().find(|it| it.at >= self.since && it.failure.is_some());
        let probe = found.filter(|_| under_way)?;
        let phase = self.way_back(&world.facts, now).ok()?;
        let cause = probe.failure.as_deref().unwrap_or_default();
        Some(self.turned(phase, &format!("a probe failed ({}): {cause}", probe.direction), world, now))
    }

    /// The record at the beginning of its way back.
    fn turned(&self, phase: Phase, by: &str, world: &World, now: Timestamp) -> Self {
        let gate = gate::of(self, world, now);
        let back = Self { heading: Heading::Back, ..self.clone() };
        back.entered(phase, Some(self.passage(by, &gate, world, now)), now)
    }

    fn changed(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        next.version = next.version.saturating_add(1);
        change(&mut next);
        next
    }

    /// The record after its gate let it go, at `by`'s word.
    fn left(&self, by: &str, gate: &Gate, world: &World, now: Timestamp) -> Self {
        let passage = Some(self.passage(by, gate, world, now));
        let next = match (self.phase, self.heading) {
            (Phase::Staged, Heading::Forward) => Phase::Distributing,
            (Phase::Distributing, Heading::Forward) if self.choices.canary.is_some() => Phase::Canary,
            (Phase::Distributing | Phase::Canary, Heading::Forward) => Phase::Active,
            (Phase::Active, Heading::Forward) => Phase::Untrusting,
            (Phase::Untrusting, Heading::Forward) => Phase::Retired,
            (Phase::Untrusting, Heading::Back) => Phase::Active,
            (Phase::Active, Heading::Back) => Phase::Distributing,
            (Phase::Canary | Phase::Distributing, Heading::Back) => Phase::Staged,
            (Phase::Retired | Phase::Stable, _) | (Phase::Staged, Heading::Back) => {
                let outcome = Some(match self.heading {
                    Heading::Forward => Outcome::Rotated,
                    Heading::Back => Outcome::Aborted,
                });
                return Self { outcome, ..self.entered(Phase::Stable, passage, now) };
            }
        };
        self.entered(next, passage, now)
    }

    fn entered(&self, phase: Phase, passage: Option<Passage>, now: Timestamp) -> Self {
        let before = self.trusted();
        self.changed(|next| {
            next.phase = phase;
            next.since = now;
            next.last = passage;
            if next.trusted() != before {
                next.published = None;
            }
        })
    }

    fn passage(&self, by: &str, gate: &Gate, world: &World, now: Timestamp) -> Passage {
        let failures = world.probes.iter().filter(|it| it.failure.is_some()).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Passage {
            from: self.phase,
            at: now,
            by: by.to_owned(),
            acknowledged: gate.acknowledged,
            count: gate.acknowledged_count,
            exempted: Names::of(&gate.exempted),
            accepted: self.accepted.clone().filter(|it| it.from == self.phase),
            probes: (count(world.probes.len()), count(failures)),
        }
    }
}

#[cfg(test)]
#[path = "rotation_found_tests.rs"]
mod found_tests;
#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
