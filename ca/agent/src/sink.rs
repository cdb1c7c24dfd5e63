//! File sinks: identities as files, for software that knows neither API.
//!
//! Laws: a sink gets what the rules give to the attributes that the node's administrator stated for it, and follows it
//! like an open stream: a bundle counts as being in force only when it is in the files and the software was told, or the
//! certificate in the files has expired; what fails is tried again and reported, and harms no other sink and no stream.
//! Not here: the decisions (`plan`), the files (`files`, `folder`), the telling (`reload`).
//! Sources: ca/docs/ARCHITECTURE.md §2 (acknowledged trust); SECURITY.md, File sinks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhizome_core::attributes::Attributes;
use rhizome_core::ports::{Clock, Entropy};
use rhizome_id::{SpiffeId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::fetch::until;
use crate::holdings::{Identities, NotYet, Standing, View};
use crate::spawn::Spawner;
use crate::system::random;

mod files;
mod folder;
mod plan;
mod reload;
mod settings;

use files::Targets;
use plan::{Content, Course, Step};
use reload::Told;
pub use settings::{
    AbsolutePath, KeyMode, Owner, Reload, ReloadCommand, ReloadSignal, Scalar, SignalName, SinkName,
    SinkSettings, Values,
};

/// How often files are looked at, whether somebody removed or changed them.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How a sink is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkHealth {
    /// It has had nothing to write yet.
    #[default]
    Waiting,
    /// The files are right, and the software was told.
    InForce,
    /// The rules give it nothing.
    Denied,
    /// Something does not work; it is tried again.
    Failing,
}

/// How a sink is, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// What it is called.
    pub name: String,
    /// How it is.
    pub health: SinkHealth,
    /// The identity in the files.
    pub spiffe_id: Option<String>,
    /// Its last second.
    pub expires: Option<Timestamp>,
    /// Sequence of the bundle in the files.
    pub bundle_sequence: Option<u64>,
    /// Sequences of the bundles of foreign trust domains in the files.
    #[serde(default)]
    pub federated: BTreeMap<String, u64>,
    /// When the files were written last, by this process.
    pub written_at: Option<Timestamp>,
    /// When the software was told last, by this process.
    pub told_at: Option<Timestamp>,
    /// Attempts that failed in a row.
    pub failures: u32,
    /// Attempts that failed since the start.
    pub failures_total: u64,
    /// Why the last attempt failed, or why nothing is given.
    pub trouble: Option<String>,
}

/// How all sinks are.
#[derive(Debug, Default)]
pub struct SinkBoard(Mutex<BTreeMap<String, SinkStatus>>);

impl SinkBoard {
    /// All of them, by name.
    pub fn all(&self) -> Vec<SinkStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn set(&self, name: &SinkName, change: impl FnOnce(&mut SinkStatus)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(name.as_str().to_owned());
        change(
            entry.or_insert_with(|| SinkStatus { name: name.as_str().to_owned(), ..SinkStatus::default() }),
        );
    }
}

/// What sinks are plugged into.
#[derive(Clone)]
pub struct SinkPorts {
    /// Whom they follow.
    pub identities: Arc<dyn Identities>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for SinkPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SinkPorts { .. }")
    }
}

/// Starts every sink; they end with `spawner`.
///
/// # Errors
/// What is wrong with the settings of one, before any is started.
pub fn start_sinks(
    settings: Vec<SinkSettings>,
    ports: &SinkPorts,
    spawner: &Spawner,
) -> Result<Arc<SinkBoard>, String> {
    let board = Arc::new(SinkBoard::default());
    let checked: Result<Vec<_>, String> =
        settings.into_iter().map(|sink| sink.check().map(|attributes| (sink, attributes))).collect();
    for (settings, attributes) in checked? {
        board.set(&settings.name, |_usual| {});
        let targets = Targets::of(&settings);
        let sink = Sink { settings, targets, ports: ports.clone(), board: Arc::clone(&board) };
        spawner.spawn("sink", sink.run(attributes, spawner.stopping().clone()));
    }
    Ok(board)
}

struct Sink {
    settings: SinkSettings,
    targets: Targets,
    ports: SinkPorts,
    board: Arc<SinkBoard>,
}

/// A sink's place among the open streams.
struct Subscriber {
    identities: Arc<dyn Identities>,
    id: u64,
}

impl Subscriber {
    fn stands(&self, standing: Standing) {
        self.identities.stands(self.id, standing);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.stands(Standing::Gone);
    }
}

impl Sink {
    async fn run(self, attributes: Attributes, stop: CancellationToken) {
        let identities = Arc::clone(&self.ports.identities);
        // Until it is known what is in the files, an older bundle may be.
        let subscriber = Subscriber { id: identities.open(), identities: Arc::clone(&identities) };
        let mut seen = identities.follow(attributes);
        let targets = self.targets.clone();
        let look = move || Ok::<_, String>((targets.any(), targets.expiry()));
        let Some(Ok((files, expiry))) = self.off_runtime(&stop, look).await else { return };
        if let Some(until) = expiry {
            subscriber.stands(Standing::GivenUntil(0, until));
        }
        let mut course = Course::new(files);
        let mut newest = true;
        loop {
            if newest {
                if course.unsay_nothing() {
                    subscriber.stands(Standing::Taking);
                }
                let value = seen.borrow_and_update().clone();
                let held = course.written().map(|content| content.svid.spiffe_id.clone());
                course.see(value.as_deref(), |view| self.choose(view, held.as_ref()));
                newest = false;
            }
            let now = self.ports.clock.now();
            let wait = match course.next(now) {
                Step::InForce(version, until) => {
                    subscriber.stands(Standing::GivenUntil(version, until));
                    course.in_force(version);
                    Duration::ZERO
                }
                Step::Nothing => {
                    subscriber.stands(Standing::Nothing);
                    course.nothing();
                    Duration::ZERO
                }
                step @ (Step::Write(_) | Step::Remove | Step::Reload) => {
                    if !self.act(step, &mut course, &stop).await {
                        return;
                    }
                    Duration::ZERO
                }
                Step::Wait(at) => until(at, now),
                Step::Rest => LOOK_EVERY,
            };
            self.report(&course);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = seen.changed() => match changed {
                    Ok(()) => newest = true,
                    Err(_agent_stops) => return,
                },
                () = tokio::time::sleep(wait) => {
                    if wait == LOOK_EVERY && !self.look(&mut course, &stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// What of a view is to be in the files, in which there is an identity called `held`.
    fn choose(&self, view: &View, held: Option<&SpiffeId>) -> Result<Content, NotYet> {
        let svid = match &self.settings.spiffe_id {
            Some(id) => view.svid(id)?,
            // While the default one is on its way, that which is there stays, and is renewed.
            None => {
                let stays = || held.and_then(|id| view.svid(id).ok());
                view.default_svid().or_else(stays).ok_or(NotYet::Starting)?
            }
        };
        let own = svid.spiffe_id.trust_domain();
        let bundle = view.bundles.get(&own).ok_or(NotYet::Starting)?;
        let foreign = view.bundles.iter().filter(|(domain, _)| **domain != own);
        Ok(Content {
            svid: Arc::clone(svid),
            bundle: Arc::clone(bundle),
            foreign: foreign.map(|(_, bundle)| Arc::clone(bundle)).collect(),
            crls: Arc::clone(&view.crls),
            version: view.version,
        })
    }

    /// Does one thing. Whether to go on.
    async fn act(&self, step: Step, course: &mut Course, stop: &CancellationToken) -> bool {
        let targets = self.targets.clone();
        let outcome = match step {
            Step::Write(content) => {
                let kept = content.clone();
                let work = move || targets.write(&kept).map_err(|error| error.to_string());
                let Some(outcome) = self.off_runtime(stop, work).await else { return false };
                outcome.map(|()| {
                    course.wrote(content);
                    let at = self.ports.clock.now();
                    self.board.set(&self.settings.name, |status| status.written_at = Some(at));
                })
            }
            Step::Remove => {
                let work = move || targets.remove().map_err(|error| error.to_string());
                let Some(outcome) = self.off_runtime(stop, work).await else { return false };
                outcome.map(|()| {
                    course.removed();
                    tracing::warn!(
                        sink = self.settings.name.as_str(),
                        reason = course.denial(),
                        "the files were removed"
                    );
                })
            }
            Step::Reload => {
                let told = tokio::select! {
                    () = stop.cancelled() => return false,
                    told = reload::tell(&self.settings.reload) => told,
                };
                told.map_err(|error| error.to_string()).map(|told| {
                    if told == Told::Nobody {
                        if course.told_nobody() {
                            let sink = self.settings.name.as_str();
                            tracing::warn!(sink, "the files are written; nobody runs who could be told");
                        }
                        return;
                    }
                    course.reloaded();
                    let at = self.ports.clock.now();
                    self.board.set(&self.settings.name, |status| status.told_at = Some(at));
                    let version = course.written().map(|content| content.bundle.sequence());
                    tracing::info!(
                        sink = self.settings.name.as_str(),
                        bundle = version,
                        "the files are in force"
                    );
                })
            }
            Step::InForce(..) | Step::Nothing | Step::Wait(_) | Step::Rest => Ok(()),
        };
        if let Err(cause) = outcome {
            course.failed(self.ports.clock.now(), random(&*self.ports.entropy));
            let (sink, failures) = (self.settings.name.as_str(), course.failures());
            tracing::error!(sink, cause, failures, "a file sink does not work; it is tried again");
            self.board.set(&self.settings.name, |status| {
                status.failures_total = status.failures_total.saturating_add(1);
                status.trouble = Some(cause);
            });
        }
        true
    }

    /// Looks whether the files are as they were written. Whether to go on.
    async fn look(&self, course: &mut Course, stop: &CancellationToken) -> bool {
        course.look_for_somebody();
        let Some(content) = course.written().cloned() else { return true };
        let targets = self.targets.clone();
        let work = move || Ok::<_, String>(targets.is_as_written(&content));
        match self.off_runtime(stop, work).await {
            None => return false,
            Some(Ok(false)) => {
                tracing::warn!(
                    sink = self.settings.name.as_str(),
                    "somebody changed the files; they are written anew"
                );
                course.disturbed();
            }
            Some(Ok(true) | Err(_)) => {}
        }
        true
    }

    /// Does what blocks; `None` when the agent stops, which does not wait for a disk that hangs.
    async fn off_runtime<T: Send + 'static>(
        &self,
        stop: &CancellationToken,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Option<Result<T, String>> {
        tokio::select! {
            () = stop.cancelled() => None,
            done = tokio::task::spawn_blocking(work) => Some(done.unwrap_or_else(|lost| Err(lost.to_string()))),
        }
    }

    fn report(&self, course: &Course) {
        let content = course.written();
        self.board.set(&self.settings.name, |status| {
            status.failures = course.failures();
            status.health = match (course.failures(), course.denial(), course.is_done()) {
                (1.., _, _) => SinkHealth::Failing,
                (0, Some(_), _) => SinkHealth::Denied,
                (0, None, true) => SinkHealth::InForce,
                (0, None, false) => SinkHealth::Waiting,
            };
            if course.failures() == 0 {
                status.trouble = course.denial().map(str::to_owned);
            }
            status.spiffe_id = content.map(|it| it.svid.spiffe_id.to_string());
            status.expires = content.map(|it| it.svid.not_after);
            status.bundle_sequence = content.map(|it| it.bundle.sequence());
            let foreign = content.iter().flat_map(|it| &it.foreign);
            status.federated = foreign.map(|it| (it.trust_domain().to_string(), it.sequence())).collect();
        });
    }
}

#[cfg(test)]
#[path = "sink/tests.rs"]
mod tests;
