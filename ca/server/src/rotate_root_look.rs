//! When the change of the root is looked at, and by whom: the machine's own look, and the one reading that whoever asks
//! for a status shares with it.
//!
//! Laws: what the facts alone decide is done without asking anybody, and first; so it is before anything is issued after a
//! start, while the ledger is unread. A phase is left only on a reading that was made for that, never on a shared one, and
//! no reading is made before the ledger is read to its end. Between two looks of the machine lies a second, however much
//! changes; an administrator's word is a look of its own. Gauges tell of the gate only while this server leads a change.
//! Not here: what follows from a reading (`rhizome_core::rotation`), performing that (`rotate_root`), making one
//! (`rotate_root_world`).
//! Sources: ca/docs/rotation.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::ports::StoreError;
use rhizome_core::rotation::evidence::SubscriberKind;
use rhizome_core::rotation::{Effect, Gate, Outcome, Phase, Rotation, Step, World, at_gate, gate, on_facts};
use rhizome_id::Timestamp;

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::metrics::{ByCluster, ByKind};
use crate::rotate_root::SERVER;
use crate::system::Stopwatch;

/// What lies at least between two looks, and how old a reading may be that somebody else is shown.
pub(crate) const LOOK_GAP: Duration = Duration::from_secs(1);
/// How often it looks while a change is under way though nothing changed, and while none is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_SELDOM: Duration = Duration::from_secs(30);
/// Steps in one go; the longest phase has seven.
const MOST_STEPS: usize = 32;
/// How long a server waits at its start for the one that has the lease, and how often it looks.
const START_PATIENCE: Duration = Duration::from_secs(60);
const START_GLANCE: Duration = Duration::from_millis(250);

/// One reading of the world, and the gate of the phase in it.
pub(crate) struct Reading {
    pub(crate) world: World,
    /// `None` where nothing is on record.
    pub(crate) gate: Option<Gate>,
    /// Of which rotation, and of which version of it.
    of: Option<Arc<Rotation>>,
    at: Timestamp,
    made: Stopwatch,
}

impl Reading {
    fn is_fresh(&self, rotation: Option<&Rotation>, now: Timestamp) -> bool {
        let of = self.of.as_ref().map(|it| (&it.name, it.version));
        let same = of == rotation.map(|it| (&it.name, it.version));
        same && self.made.elapsed() < LOOK_GAP && now.since(self.at).abs() <= 1
    }
}

/// What is done now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// What the facts alone decide.
    Nobody,
    /// Everything that is due.
    Everybody,
}

impl Ca {
    /// Keeps the change of the root going until the process stops.
    pub(crate) async fn rotate_root_forever(self: Arc<Self>) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            if let Err(cause) = self.keep_root().await {
                tracing::error!(%cause, "the change of the root does not go on; trying again");
            }
            // What changes together is looked at together.
            tokio::time::sleep(LOOK_GAP).await;
            let underway = || self.state().rotation().is_some_and(|it| it.value.phase != Phase::Stable);
            let (wait, any) =
                if underway() { (LOOK_EVERY.saturating_sub(LOOK_GAP), true) } else { (LOOK_SELDOM, false) };
            let changed = async {
                loop {
                    if changes.changed().await.is_err() || any || underway() {
                        return;
                    }
                }
            };
            drop(tokio::time::timeout(wait, changed).await);
        }
    }

    /// Performs what is due now, and moves on where a gate is open. Roots are everybody's: whoever has the lease sees to
    /// them, and the others only count.
    pub(crate) async fn keep_root(self: &Arc<Self>) -> Result<(), ApiError> {
        self.step_root(Asks::Everybody).await
    }

    /// What is due before anything is issued: whoever was put back from a backup carries its bridges first. No ledger is
    /// read for it.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when that cannot be done, and nobody else does it within a minute; [`ApiError::Store`].
    pub(crate) async fn prepare_root(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut waited = Duration::ZERO;
        loop {
            if let Err(cause) = self.step_root(Asks::Nobody).await {
                tracing::error!(%cause, "the change of the root does not go on; trying again");
            }
            let Some(rotation) = self.restored_rotation().await? else { return Ok(()) };
            if waited >= START_PATIENCE {
                let problem = "was restored from a backup, and what that demands is not done yet: without it nobody issues";
                return Err(ApiError::Conflict {
                    what: "rotation",
                    name: rotation.name.to_string(),
                    problem,
                });
            }
            tokio::time::sleep(START_GLANCE).await;
            waited += START_GLANCE;
            self.stand().await?;
            self.catch_up().await?;
        }
    }

    /// The rotation under way, while what follows from a restore is not done.
    async fn restored_rotation(self: &Arc<Self>) -> Result<Option<Arc<Rotation>>, ApiError> {
        let (state, now) = (self.state(), self.now()?);
        let Some(rotation) = state.rotation().map(|it| Arc::clone(&it.value)) else { return Ok(None) };
        let facts = self.root_facts(&state, Some(&rotation), now).await?;
        let Some(Step { moved, effects }) = on_facts(&rotation, &facts, now) else { return Ok(None) };
        let unseen = moved.is_some_and(|next| next.restored > rotation.restored);
        // A key that is still there endangers nobody.
        let undone = effects.iter().any(|it| !matches!(it, Effect::DestroyKey { .. }));
        let open = unseen || (rotation.rewound && undone && rotation.phase != Phase::Stable);
        Ok(open.then_some(rotation))
    }

    async fn step_root(self: &Arc<Self>, asks: Asks) -> Result<(), ApiError> {
        let _one_at_a_time = self.root.turn.lock().await;
        for _ in 0..MOST_STEPS {
            let state = self.state();
            let Some(held) = state.rotation().cloned() else { return Ok(()) };
            self.note_phase(&held.value);
            if self.right().is_none() {
                self.metrics.rotation.forget_gate();
                return Ok(());
            }
            if self.clock.shaken() {
                tracing::warn!(
                    "the change of the root rests: the clock stepped ahead, and what it calls expired may live"
                );
                return Ok(());
            }
            let now = self.now()?;
            let facts = self.root_facts(&state, Some(&held.value), now).await?;
            let mut reading = None;
            let Step { moved, effects } = match on_facts(&held.value, &facts, now) {
                Some(step) => step,
                None if asks == Asks::Nobody => return Ok(()),
                None => {
                    self.probe_canary(&held.value, now).await;
                    self.step_at_gate(reading.insert(self.look_at_root(&held.value, now).await?), now)
                }
            };
            if let Some(next) = &moved
                && self.is_hasty(&held.value, next, now)
            {
                return Ok(());
            }
            let outcome = match (moved, effects.first()) {
                (Some(next), _) => self.move_root(Some(&held), *next, SERVER, "").await,
                (None, None | Some(Effect::WakeAt(_))) => return Ok(()),
                (None, Some(Effect::OrderRenewals { root, whom, reason })) => {
                    let Some(Reading { world, .. }) = reading.as_deref() else { return Ok(()) };
                    let reason = format!("{}: {reason}", held.value.name);
                    let told = (root, whom.as_slice(), reason.as_str());
                    let choices = &held.value.choices;
                    return self.order_renewals(choices, &world.subscribers, told, now).await;
                }
                (None, Some(effect)) => self.perform_root(&held, effect, now).await,
            };
            match outcome {
                // Somebody else did it, or changed the ground it stood on: look again.
                Ok(()) => {}
                Err(
                    ApiError::Store(StoreError::Conflict { key })
                    | ApiError::Issue(IssueError::Store(StoreError::Conflict { key })),
                ) => self.lost_if_lease(&key),
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// The machine's own look, which others may share.
    async fn look_at_root(&self, rotation: &Arc<Rotation>, now: Timestamp) -> Result<Arc<Reading>, ApiError> {
        let reading = self.read_root(Some(Arc::clone(rotation)), now).await?;
        *self.root.reading.lock().await = Some(Arc::clone(&reading));
        Ok(reading)
    }

    /// What follows from asking everybody.
    fn step_at_gate(&self, reading: &Reading, now: Timestamp) -> Step {
        let Reading { world, gate: Some(gate), of: Some(rotation), .. } = reading else {
            return Step::default();
        };
        self.note_gate(gate);
        // The ledger may tell more of restores than was known without it.
        let again = on_facts(rotation, &world.facts, now);
        again.unwrap_or_else(|| at_gate(rotation, world, gate, now))
    }

    /// The world as `rotation` sees it, as one that begins would where there is none: a reading that is a second old at
    /// most, shared by everybody who asks.
    pub(crate) async fn root_reading(
        &self,
        rotation: Option<Arc<Rotation>>,
        now: Timestamp,
    ) -> Result<Arc<Reading>, ApiError> {
        let mut last = self.root.reading.lock().await;
        if let Some(reading) = last.as_ref().filter(|it| it.is_fresh(rotation.as_deref(), now)) {
            return Ok(Arc::clone(reading));
        }
        let reading = self.read_root(rotation, now).await?;
        *last = Some(Arc::clone(&reading));
        Ok(reading)
    }

    async fn read_root(
        &self,
        rotation: Option<Arc<Rotation>>,
        now: Timestamp,
    ) -> Result<Arc<Reading>, ApiError> {
        let watch = Stopwatch::start();
        let world = self.root_world(rotation.as_deref(), now).await?;
        let gate = rotation.as_deref().map(|it| gate::of(it, &world, now));
        self.metrics.rotation.look.set(watch.elapsed().as_secs_f64());
        Ok(Arc::new(Reading { world, gate, of: rotation, at: now, made: Stopwatch::start() }))
    }

    fn note_phase(&self, rotation: &Rotation) {
        let phase = Phase::ALL.iter().position(|it| *it == rotation.phase).unwrap_or_default();
        self.metrics.rotation.phase.set(i64::try_from(phase).unwrap_or(i64::MAX));
        if rotation.outcome == Some(Outcome::Rotated) {
            self.metrics.rotation.duration.set(rotation.since.since(rotation.started_at));
        }
        if rotation.phase == Phase::Stable {
            self.metrics.rotation.forget_gate();
        }
    }

    /// Brings the gauges up to date.
    fn note_gate(&self, gate: &Gate) {
        let metrics = &self.metrics.rotation;
        for kind in SubscriberKind::ALL {
            let count = gate.blockers.iter().filter(|it| it.kind == kind).count();
            let gauge = metrics.blockers.get_or_create(&ByKind { kind: kind.as_str() });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut clusters: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for ((cluster, _), progress) in &gate.progress {
            let (done, total) = clusters.entry(cluster).or_default();
            *done = done.saturating_add(progress.done);
            *total = total.saturating_add(progress.total);
        }
        // Those of clusters that are gone go with them.
        metrics.acknowledged.clear();
        for (cluster, (done, total)) in clusters {
            let label = ByCluster { cluster: cluster.to_owned() };
            metrics.acknowledged.get_or_create(&label).set(f64::from(done) / f64::from(total.max(1)));
        }
    }
}

#[cfg(test)]
#[path = "rotate_root_look_tests.rs"]
mod tests;
