//! Gates: what must be known before a phase is left, and who or what is missing, by name.
//!
//! Laws: a gate is a function of one reading of the world; it opens on what was acknowledged, has expired, or was exempted
//! by name, never on time alone. Unknown and offline subscribers hold it up until they acknowledge, their certificates
//! have expired, or they are exempted. In [`Mode::Compromised`] only those within reach are waited for, cluster by
//! cluster; who would break is named in the [`Loss`].
//! Sources: ca/docs/rotation.md, Gates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rhizome_id::{AuthorityId, Digest, Timestamp};
use ring::digest::{Context, SHA256};

use crate::limits::{BLOCKERS_NAMED, ROTATION_SKEW_SECONDS};

use super::evidence::{Direction, Held, Subscriber, SubscriberKind, World, gone};
use super::record::{Accepted, Names};
use super::{Heading, Mode, Phase, Rotation, SelfTest, work};

/// A cluster and a kind: what a progress bar stands for.
pub type Place = (String, SubscriberKind);

/// How far a place has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many do not hold up the gate.
    pub done: u32,
    /// How many there are.
    pub total: u32,
}

/// Whether a phase can be left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Who holds it up; who was not heard of for longest comes first.
    pub blockers: Vec<Blocker>,
    /// What else it waits for.
    pub waits: Vec<Wait>,
    /// By cluster and kind.
    pub progress: BTreeMap<Place, Progress>,
    /// Who would hold it up and is exempted.
    pub exempted: Vec<String>,
    /// SHA-256 over the names, sequences and digests of those who have acknowledged, in order of names.
    pub acknowledged: Digest,
    /// How many they are.
    pub acknowledged_count: u32,
    /// Who presents what this phase gets rid of, follows renewal orders, and is not exempted, in order of names.
    pub presenting: Vec<String>,
    /// Who would break if the phase were left now, in [`Mode::Compromised`]; they are among the blockers or out of reach.
    losses: BTreeMap<String, u32>,
}

/// Somebody who holds up a gate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocker {
    /// When it was last heard of; `None`: never.
    pub last_contact: Option<Timestamp>,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: SubscriberKind,
    /// Where it is; empty for what is in no cluster.
    pub cluster: String,
    /// What is missing.
    pub why: Why,
    /// When it stops mattering by itself; `None`: never.
    pub until: Option<Timestamp>,
}

/// What is missing of somebody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It has not acknowledged the bundle.
    NotAcknowledged {
        /// What it has; `None`: not known.
        holds: Option<u64>,
        /// What is waited for; `None`: it is not published yet.
        wanted: Option<u64>,
        /// Who below it lags behind.
        behind: Vec<String>,
    },
    /// It presents certificates that reach only the root that goes.
    Presents {
        /// How many.
        count: u32,
        /// The root.
        root: AuthorityId,
    },
    /// It signs under the root that goes.
    Signs {
        /// The root.
        root: AuthorityId,
    },
}

/// What else a gate waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// The self-test has not passed.
    SelfTest {
        /// Why not, when it failed.
        failure: Option<String>,
    },
    /// The cross-certificate is missing; a server that has the key of `by` makes it.
    Bridge {
        /// Of whose key.
        root: AuthorityId,
        /// Who signs it.
        by: AuthorityId,
    },
    /// A time must pass.
    Until {
        /// Until then.
        at: Timestamp,
        /// What it is for.
        what: &'static str,
    },
    /// A server that can read the whole ledger must look: what this one cannot read may be certificates.
    Unreadable {
        /// How many entries.
        count: u32,
    },
    /// Nothing was proved in this direction yet.
    Probe {
        /// Which direction.
        direction: Direction,
    },
    /// A probe failed.
    ProbeFailed {
        /// Which direction.
        direction: Direction,
        /// When.
        at: Timestamp,
        /// Why.
        cause: String,
    },
}

/// Who would break if a phase were left now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// How many certificates they present.
    pub workloads: u32,
    /// Who, in order of names.
    pub subscribers: Vec<String>,
    /// SHA-256 over their names, a line each: who accepts the loss says which one.
    pub digest: Digest,
}

/// A loss that somebody has seen and accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// Which: the digest of the loss as it was named.
    pub digest: Digest,
    /// Who stood in it then, and ever since, where that is still known: whoever accepts a loss accepts a smaller one.
    pub names: BTreeSet<String>,
}

impl Consent {
    /// To exactly the loss that was named by `digest`.
    pub const fn to(digest: Digest) -> Self {
        Self { digest, names: BTreeSet::new() }
    }

    /// Whether `loss` is the one that was accepted, or nothing but what is left of it.
    pub fn covers(&self, loss: &Loss) -> bool {
        self.digest == loss.digest || loss.subscribers.iter().all(|it| self.names.contains(it))
    }
}

/// The gate of the phase that `rotation` is in.
pub fn of(rotation: &Rotation, world: &World, now: Timestamp) -> Gate {
    let mut gate = Gate::begin();
    let demands = Demands::of(rotation);
    let mut acknowledged: BTreeMap<&str, &Held> = BTreeMap::new();
    for subscriber in world.subscribers.iter().filter(|it| it.is_live(now)) {
        let missing = missing(rotation, &demands, subscriber, world, now);
        let holds = rotation.published.filter(|wanted| subscriber.has(wanted, &world.facts.bundle, now));
        if let (Some(_), Some(held)) = (holds, &subscriber.holds) {
            acknowledged.insert(&subscriber.name, held);
        }
        gate.count(rotation, subscriber, missing, world, now);
    }
    if let Some(root) = demands.nothing_reaches_only {
        gate.settle(rotation, root, world, now);
    }
    if demands.acknowledged || demands.nothing_reaches_only.is_some() {
        gate.wait_for_the_forgotten(rotation, now);
        // Those whom nobody can name cannot be asked, either, whether they may be given up.
        if world.facts.unreadable > 0 && rotation.mode == Mode::Planned {
            gate.waits.push(Wait::Unreadable { count: world.facts.unreadable });
        }
    }
    gate.wait(rotation, world, now);
    gate.wait_for_what_is_issued_meanwhile(rotation, world, now);
    gate.acknowledged_count = u32::try_from(acknowledged.len()).unwrap_or(u32::MAX);
    gate.acknowledged = digest_of(acknowledged.iter().map(|(name, held)| {
        let digest = held.digest.map(|it| it.to_string()).unwrap_or_default();
        format!("{name} {} {digest}", held.sequence)
    }));
    gate.blockers.sort();
    gate.presenting.sort();
    gate
}

/// Whether anybody is called `name`.
pub fn knows(world: &World, name: &str) -> bool {
    let replica = |it: &super::evidence::IssuerFact| replica_name(&it.replica) == name;
    world.subscribers.iter().any(|it| it.name == name) || world.facts.issuers.iter().any(replica)
}

/// Who depends on `root` at `now`: presents certificates under it that may still be valid.
pub fn who_depends_on<'w>(
    root: &'w AuthorityId,
    world: &'w World,
    now: Timestamp,
) -> impl Iterator<Item = (&'w Subscriber, &'w super::evidence::Presented)> {
    let presents = move |it: &'w Subscriber| it.presents_under(root, now).map(|presented| (it, presented));
    world.subscribers.iter().filter(move |it| it.is_live(now)).filter_map(presents)
}

/// What a phase demands of subscribers before it is left.
struct Demands<'r> {
    acknowledged: bool,
    nothing_reaches_only: Option<&'r AuthorityId>,
}

impl<'r> Demands<'r> {
    fn of(rotation: &'r Rotation) -> Self {
        let (acknowledged, gone) = match (rotation.phase, rotation.heading) {
            (Phase::Stable | Phase::Staged | Phase::Retired, _) => (false, None),
            (Phase::Distributing | Phase::Canary | Phase::Untrusting, Heading::Forward) => (true, None),
            (Phase::Active, Heading::Forward) => (true, Some(&rotation.old)),
            (Phase::Untrusting | Phase::Active, Heading::Back) => (true, None),
            // Whoever was not asked before the old root signed again is asked now.
            (Phase::Canary | Phase::Distributing, Heading::Back) => (rotation.rewound, Some(&rotation.new)),
        };
        Self { acknowledged, nothing_reaches_only: gone }
    }
}

fn missing(
    rotation: &Rotation,
    demands: &Demands<'_>,
    subscriber: &Subscriber,
    world: &World,
    now: Timestamp,
) -> Option<Why> {
    let has = rotation.published.is_some_and(|wanted| subscriber.has(&wanted, &world.facts.bundle, now));
    if demands.acknowledged && !has {
        return Some(Why::NotAcknowledged {
            holds: subscriber.holds.as_ref().map(|it| it.sequence),
            wanted: rotation.published.map(|it| it.sequence),
            behind: subscriber.behind.clone(),
        });
    }
    // On the way back, too, nothing is waived for the bridge that it carries: its revocations end with its root.
    let root = demands.nothing_reaches_only?;
    let presented = subscriber.presents_under(root, now)?;
    Some(Why::Presents { count: presented.count, root: root.clone() })
}

/// A replica as a subscriber's name.
fn replica_name(replica: &str) -> String {
    format!("replica:{replica}")
}

impl Gate {
    const fn begin() -> Self {
        Self {
            blockers: Vec::new(),
            waits: Vec::new(),
            progress: BTreeMap::new(),
            exempted: Vec::new(),
            acknowledged: Digest::ZERO,
            acknowledged_count: 0,
            presenting: Vec::new(),
            losses: BTreeMap::new(),
        }
    }

    /// Whether the phase may be left.
    pub fn is_open(&self) -> bool {
        self.blockers.is_empty() && self.waits.is_empty() && self.losses.is_empty()
    }

    /// Who would break if the phase were left now; `None` when nobody would, or something else is missing that nobody
    /// can accept.
    pub fn loss(&self) -> Option<Loss> {
        // A replica that signs under the root that goes would go on making what nobody can verify: that is no loss to accept.
        let others = self.blockers.iter().any(|it| !self.losses.contains_key(&it.name));
        if self.losses.is_empty() || !self.waits.is_empty() || others {
            return None;
        }
        let digest = digest_of(self.losses.keys().cloned());
        Some(Loss {
            workloads: self.losses.values().fold(0, |sum, it| sum.saturating_add(*it)),
            subscribers: self.losses.keys().cloned().collect(),
            digest,
        })
    }

    /// The clusters that hold it up.
    pub fn clusters(&self) -> BTreeSet<&str> {
        self.blockers.iter().map(|it| it.cluster.as_str()).collect()
    }

    /// The gate in words.
    pub fn in_words(rotation: &Rotation) -> &'static str {
        match (rotation.phase, rotation.heading) {
            (Phase::Stable, _) => "nothing is under way",
            (Phase::Staged, Heading::Forward) => "a leaf below the new root must verify",
            (Phase::Distributing, Heading::Forward) => "every live subscriber must acknowledge both roots",
            (Phase::Canary, Heading::Forward) => {
                "probes in both directions must succeed, and none fail, for the time chosen"
            }
            (Phase::Active, Heading::Forward) => {
                "no certificate that reaches only the old root may be left, and every live subscriber must have the new one"
            }
            (Phase::Untrusting, Heading::Forward) => {
                "every live subscriber must acknowledge the new root alone, and the soak time must pass"
            }
            (Phase::Retired, _) => "the old key must be destroyed",
            (Phase::Untrusting | Phase::Active, Heading::Back) => {
                "every live subscriber must acknowledge both roots again"
            }
            (Phase::Canary | Phase::Distributing, Heading::Back) => {
                "no certificate below the new root may be left"
            }
            (Phase::Staged, Heading::Back) => "the new root must be gone",
        }
    }

    /// When to look again though nothing changed: when a time has passed, or somebody stops mattering.
    pub fn next_look(&self, now: Timestamp) -> Option<Timestamp> {
        let waits = self.waits.iter().filter_map(|wait| match wait {
            Wait::Until { at, .. } => Some(*at),
            Wait::SelfTest { .. }
            | Wait::Bridge { .. }
            | Wait::Unreadable { .. }
            | Wait::Probe { .. }
            | Wait::ProbeFailed { .. } => None,
        });
        let ends = self.blockers.iter().filter_map(|it| it.until.map(|until| until.plus(1)));
        waits.chain(ends).filter(|at| *at > now).min()
    }

    fn count(
        &mut self,
        rotation: &Rotation,
        subscriber: &Subscriber,
        why: Option<Why>,
        world: &World,
        now: Timestamp,
    ) {
        let place = (subscriber.cluster.clone(), subscriber.kind);
        let progress = self.progress.entry(place).or_default();
        progress.total = progress.total.saturating_add(1);
        let Some(why) = why else {
            progress.done = progress.done.saturating_add(1);
            return;
        };
        if rotation.exempts(&subscriber.name, now) {
            progress.done = progress.done.saturating_add(1);
            self.exempted.push(subscriber.name.clone());
            return;
        }
        if matches!(why, Why::Presents { .. }) && subscriber.kind.obeys_orders() {
            self.presenting.push(subscriber.name.clone());
        }
        if rotation.mode == Mode::Compromised {
            // What can be had without them is not waited for; who breaks by it is asked about. With the bridge, nobody
            // breaks before the old root leaves the bundle; without it, whoever lacks the new root does once that signs.
            let bridged = || world.facts.is_bridged(&rotation.new, &rotation.old, now);
            let breaks = match rotation.phase {
                Phase::Distributing | Phase::Canary => !bridged(),
                Phase::Active => true,
                Phase::Stable | Phase::Staged | Phase::Untrusting | Phase::Retired => false,
            };
            if breaks {
                self.losses.insert(subscriber.name.clone(), subscriber.workloads.max(1));
            }
            if !subscriber.connected {
                return;
            }
        }
        self.blockers.push(Blocker {
            last_contact: subscriber.last_contact,
            name: subscriber.name.clone(),
            kind: subscriber.kind,
            cluster: subscriber.cluster.clone(),
            why,
            until: subscriber.matters_until(),
        });
    }

    /// No issuer signs under `root` any more, and whatever was under way when the last one stopped has ended.
    fn settle(&mut self, rotation: &Rotation, root: &AuthorityId, world: &World, now: Timestamp) {
        let mut settled = rotation.since;
        for issuer in world.facts.issuers.iter().filter(|it| it.root == *root && !gone(it.not_after, now)) {
            if !issuer.active {
                settled = settled.max(issuer.since);
                continue;
            }
            let name = replica_name(&issuer.replica);
            if rotation.exempts(&name, now) {
                self.exempted.push(name);
                continue;
            }
            self.blockers.push(Blocker {
                last_contact: Some(issuer.since),
                name,
                kind: SubscriberKind::Replica,
                cluster: String::new(),
                why: Why::Signs { root: root.clone() },
                until: Some(issuer.not_after),
            });
        }
        self.wait_until(settled.plus(rotation.choices.settle_seconds), "issuances under way", now);
    }

    /// After a restore the ledger may know neither a certificate nor its holder: until the last of those has expired,
    /// nobody can be asked whether they have acknowledged, or what they present.
    fn wait_for_the_forgotten(&mut self, rotation: &Rotation, now: Timestamp) {
        if let Some(restored) = rotation.restored.filter(|_| rotation.mode == Mode::Planned) {
            // The clocks of whoever restored, issued, presents and looks may each be off.
            let longest = rotation.choices.longest_seconds.saturating_add(2 * ROTATION_SKEW_SECONDS);
            self.wait_until(
                restored.plus(longest),
                "certificates that the restored ledger does not know",
                now,
            );
        }
    }

    fn wait(&mut self, rotation: &Rotation, world: &World, now: Timestamp) {
        if rotation.heading == Heading::Back {
            return;
        }
        match rotation.phase {
            // After a restore nothing may be staged in secret any more: then it is tested while both are distributed.
            Phase::Staged | Phase::Distributing => self.wait_for_what_is_staged(rotation, world, now),
            // Below a root that has expired nothing is left that could be shown to anybody.
            Phase::Canary if rotation.mode != Mode::Expired => self.wait_for_probes(rotation, world, now),
            Phase::Untrusting if rotation.mode == Mode::Planned => {
                self.wait_until(rotation.since.plus(rotation.choices.soak_seconds), "the soak time", now);
            }
            Phase::Stable | Phase::Canary | Phase::Active | Phase::Untrusting | Phase::Retired => {}
        }
    }

    fn wait_for_what_is_staged(&mut self, rotation: &Rotation, world: &World, now: Timestamp) {
        let missing = work::missing_bridges(rotation, &world.facts, now);
        for (root, by) in missing.filter(|_| !rotation.choices.unbridged) {
            self.waits.push(Wait::Bridge { root: root.clone(), by: by.clone() });
        }
        match &rotation.self_test {
            None => self.waits.push(Wait::SelfTest { failure: None }),
            Some(SelfTest::Failed { cause }) => {
                self.waits.push(Wait::SelfTest { failure: Some(cause.clone()) });
            }
            Some(SelfTest::Passed) => {}
        }
    }

    /// Without a bridge whoever joins with the bundle of a server that has not seen the newest breaks once the other root
    /// signs: such an issuance must have ended, and its holder be known, before the gate says who has acknowledged.
    fn wait_for_what_is_issued_meanwhile(&mut self, rotation: &Rotation, world: &World, now: Timestamp) {
        let (root, other) = match (rotation.phase, rotation.heading) {
            (Phase::Distributing, Heading::Forward) => (&rotation.new, &rotation.old),
            (Phase::Active, Heading::Back) => (&rotation.old, &rotation.new),
            _ => return,
        };
        let Some(published) = rotation.published.filter(|_| rotation.mode != Mode::Expired) else { return };
        if !world.facts.is_bridged(root, other, now) {
            let settled = published.at.plus(rotation.choices.settle_seconds);
            self.wait_until(settled, "issuances under way with the bundle before", now);
        }
    }

    fn wait_for_probes(&mut self, rotation: &Rotation, world: &World, now: Timestamp) {
        let window = rotation.choices.canary.as_ref().map_or(0, |it| it.window_seconds);
        self.wait_until(rotation.since.plus(window), "the canary", now);
        let probes = || world.probes.iter().filter(|it| it.at >= rotation.since);
        for direction in [Direction::NewToOld, Direction::OldToNew] {
            if !probes().any(|it| it.direction == direction && it.failure.is_none()) {
                self.waits.push(Wait::Probe { direction });
            }
        }
        if let Some((failed, cause)) = probes().find_map(|it| it.failure.as_ref().map(|cause| (it, cause))) {
            let (direction, at, cause) = (failed.direction, failed.at, cause.clone());
            self.waits.push(Wait::ProbeFailed { direction, at, cause });
        }
    }

    fn wait_until(&mut self, at: Timestamp, what: &'static str, now: Timestamp) {
        if now < at {
            self.waits.push(Wait::Until { at, what });
        }
    }
}

fn digest_of(lines: impl Iterator<Item = String>) -> Digest {
    let mut context = Context::new(&SHA256);
    for line in lines {
        context.update(line.as_bytes());
        context.update(b"\n");
    }
    let digest = context.finish();
    digest.as_ref().try_into().map_or(Digest::ZERO, Digest::from_bytes)
}

impl Names {
    /// What is kept of `names`.
    pub(super) fn of(names: &[String]) -> Self {
        Self {
            count: u32::try_from(names.len()).unwrap_or(u32::MAX),
            digest: digest_of(names.iter().cloned()),
            first: names.iter().take(BLOCKERS_NAMED).cloned().collect(),
        }
    }
}

impl Loss {
    /// What is kept of it once `by` has accepted it in `rotation` as the one of `digest`.
    pub(super) fn accepted(&self, rotation: &Rotation, by: &str, digest: Digest, now: Timestamp) -> Accepted {
        let Names { count, first, .. } = Names::of(&self.subscribers);
        let workloads = self.workloads;
        Accepted { digest, count, workloads, first, from: rotation.phase, at: now, by: by.to_owned() }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match &self.why {
            Why::NotAcknowledged { holds, wanted, behind } => {
                match (holds, wanted) {
                    (Some(holds), Some(wanted)) => write!(f, " has bundle {holds}, not yet {wanted}")?,
                    (None, Some(wanted)) => write!(f, " has not acknowledged bundle {wanted}")?,
                    (_, None) => f.write_str(" waits for the bundle to be published")?,
                }
                if !behind.is_empty() {
                    write!(f, " (behind: {})", behind.join(", "))?;
                }
            }
            Why::Presents { count, root } => write!(f, " presents {count} certificates under {root}")?,
            Why::Signs { root } => write!(f, " signs under {root}")?,
        }
        match self.last_contact {
            Some(at) => write!(f, ", last heard of at {at}")?,
            None => f.write_str(", never heard of")?,
        }
        match self.until {
            Some(until) => write!(f, ", matters until {until}"),
            None => f.write_str(", matters until it is exempted"),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SelfTest { failure: None } => f.write_str("the self-test of the new root"),
            Self::SelfTest { failure: Some(cause) } => write!(f, "the self-test failed: {cause}"),
            Self::Bridge { root, by } => {
                write!(f, "the certificate of {root} by {by}, which a server that has the key of {by} makes")
            }
            Self::Unreadable { count } => write!(
                f,
                "{count} entries of the ledger that this release cannot read; let a server of the newest release look"
            ),
            Self::Until { at, what } => write!(f, "{what}, until {at}"),
            Self::Probe { direction } => write!(f, "a first probe: {direction}"),
            Self::ProbeFailed { direction, at, cause } => {
                write!(f, "a probe failed at {at} ({direction}): {cause}")
            }
        }
    }
}
