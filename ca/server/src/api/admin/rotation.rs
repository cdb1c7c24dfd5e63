//! The change of the root, as administrators see and command it.
//!
//! Laws: what is shown is one reading of the world, shared by everybody who asks within a second, with its gate computed as
//! the machine computes it; a command names the rotation and version that were seen, where it names any.
//! Not here: what is allowed when (`rhizome_core::rotation`), performing it (`rotate_root`).

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::limits::ROTATION_SETTLE_SECONDS;
use rhizome_core::rotation::gate::{self, Blocker, Loss, Place, Progress};
use rhizome_core::rotation::{
    Choices, Exemption, Gate, Heading, Mode, Order, Outcome, Phase, Refusal, Rotation, World, plan,
};
use rhizome_id::{AuthorityId, Digest, RotationName, Timestamp};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::rotation_service_server::RotationService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};

use super::read_required_reason;
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::rotate_root_look::{LOOK_GAP, Reading};
use crate::rotate_root_words::one_line;
use crate::status::{Answer, Broken, Outgoing};

/// Blockers, losses and dependents in one answer.
const MOST_NAMED: usize = 1_000;
/// How long after [`LOOK_GAP`] a watcher is told though nothing changed: evidence comes without a change of the record.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// A soak time below which nobody notices in time.
const SHORT_SOAK_SECONDS: i64 = 3_600;
/// The longest exemption: a year, after which it is no exemption.
const MOST_EXEMPT_SECONDS: u64 = 366 * 86_400;

#[tonic::async_trait]
impl RotationService for Api {
    async fn plan_rotation(
        &self,
        request: Request<wire::PlanRotationRequest>,
    ) -> Answer<wire::PlanRotationResponse> {
        self.0.caller(&request)?;
        let (mode, choices) = self.0.read_choices(&request.into_inner().choices.unwrap_or_default())?;
        let now = self.0.ports.clock.now();
        let reading = self.0.root_reading(None, now).await?;
        let world = &reading.world;
        let plan = plan::plan(world, mode, &choices, &self.0.own_name(), now);
        let shared = self.0.ports.store.is_shared();
        let places = plan.subscribers.into_iter().map(|(place, total)| {
            let away =
                plan.absent.iter().filter(|it| (it.cluster.as_str(), it.kind) == (place.0.as_str(), place.1));
            let away = u32::try_from(away.count()).unwrap_or(u32::MAX);
            shown_place(place, Progress { done: total.saturating_sub(away), total })
        });
        let blockers = plan.absent.iter().take(MOST_NAMED).map(|it| wire::RotationBlocker {
            name: it.name.clone(),
            kind: it.kind.to_string(),
            cluster: it.cluster.clone(),
            why: match (it.obeys, shared) {
                (true, false) => "is not connected",
                (true, true) => "is not connected to this server",
                (false, _) => "has no stream: what it holds counts until it has expired",
            }
            .to_owned(),
            last_contact: it.last_contact.map(convert::timestamp),
            matters_until: it.until.map(convert::timestamp),
        });
        Ok(Response::new(wire::PlanRotationResponse {
            old: plan.old.map(String::from).unwrap_or_default(),
            places: places.collect(),
            blockers: blockers.collect(),
            blocker_count: u32::try_from(plan.absent.len()).unwrap_or(u32::MAX),
            renewals: plan.renewals,
            renewals_per_second: plan.renewals_per_second,
            least_seconds: u64::try_from(plan.seconds).unwrap_or_default(),
            latest: plan.latest.map(convert::timestamp),
            warnings: self.0.root_warnings(mode, &choices, world, None, now),
            choices: Some(shown_choices(mode, &choices)),
        }))
    }

    async fn start_rotation(
        &self,
        request: Request<wire::StartRotationRequest>,
    ) -> Answer<wire::StartRotationResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = one_line(read_required_reason(&request.reason)?);
        let (mode, choices) = self.0.read_choices(&request.choices.unwrap_or_default())?;
        let (name, new) = self.0.rotation_names()?;
        tracing::warn!(by, reason, %name, "rotation of the root begins");
        let order = Order::Start { name, new, mode, choices: choices.clone(), reason: reason.clone() };
        let same = |it: &Rotation| {
            (&it.started_by, &it.reason, it.mode, &it.choices) == (&by, &reason, mode, &choices)
        };
        match self.0.command_root(&by, &reason, None, order).await {
            // The same person said the very same before, and did not hear the answer.
            Err(ApiError::Rotation(Refusal::InProgress { .. }))
                if self.0.state().rotation().is_some_and(|it| same(&it.value)) => {}
            outcome => drop(outcome?),
        }
        Ok(Response::new(wire::StartRotationResponse { rotation: self.0.rotation_shown().await? }))
    }

    async fn get_rotation(
        &self,
        request: Request<wire::GetRotationRequest>,
    ) -> Answer<wire::GetRotationResponse> {
        self.0.caller(&request)?;
        Ok(Response::new(wire::GetRotationResponse { rotation: self.0.rotation_shown().await? }))
    }

    type WatchRotationStream = Outgoing<wire::WatchRotationResponse>;

    async fn watch_rotation(
        &self,
        request: Request<wire::WatchRotationRequest>,
    ) -> Answer<Self::WatchRotationStream> {
        self.0.caller(&request)?;
        let (answers, outgoing) = mpsc::channel(1);
        let ca = Arc::clone(&self.0);
        self.0.spawner.spawn_until_stop("watch rotation", async move {
            if let Err(error) = ca.tell_rotation(&answers).await {
                drop(answers.send(Err(error)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn advance_rotation(
        &self,
        request: Request<wire::AdvanceRotationRequest>,
    ) -> Answer<wire::AdvanceRotationResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let seen = read_seen(request.seen)?;
        let accept = convert::read_optional::<Digest>("accept_loss", &request.accept_loss)?;
        let accept = accept.map(|digest| self.0.consent(digest));
        let outcome = self.0.command_root(&by, "", as_seen(&seen), Order::Advance { accept }).await;
        if let Err(ApiError::Rotation(Refusal::NeedsConsent { loss })) = &outcome
            && let Some(rotation) = self.0.state().rotation()
        {
            self.0.name_loss(&rotation.value, loss);
        }
        drop(outcome?);
        Ok(Response::new(wire::AdvanceRotationResponse { rotation: self.0.rotation_shown().await? }))
    }

    async fn abort_rotation(
        &self,
        request: Request<wire::AbortRotationRequest>,
    ) -> Answer<wire::AbortRotationResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = read_required_reason(&request.reason)?;
        let seen = read_seen(request.seen)?;
        self.0.command_root(&by, reason, as_seen(&seen), Order::Abort).await?;
        Ok(Response::new(wire::AbortRotationResponse { rotation: self.0.rotation_shown().await? }))
    }

    async fn exempt_subscriber(
        &self,
        request: Request<wire::ExemptSubscriberRequest>,
    ) -> Answer<wire::ExemptSubscriberResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = read_required_reason(&request.reason)?.to_owned();
        let seen = read_seen(request.seen)?;
        if request.seconds == 0 || request.seconds > MOST_EXEMPT_SECONDS {
            let problem = "say for how many seconds, at most a year".to_owned();
            return Err(ApiError::Invalid { field: "seconds", problem }.into());
        }
        let seconds = i64::try_from(request.seconds).unwrap_or(i64::MAX);
        let exemption = Exemption {
            subscriber: request.subscriber,
            reason,
            approver: by.clone(),
            expires_at: to_the_minute(self.0.ports.clock.now().plus(seconds)),
        };
        self.0.command_root(&by, "", as_seen(&seen), Order::Exempt(exemption)).await?;
        Ok(Response::new(wire::ExemptSubscriberResponse { rotation: self.0.rotation_shown().await? }))
    }

    async fn list_dependents(
        &self,
        request: Request<wire::ListDependentsRequest>,
    ) -> Answer<wire::ListDependentsResponse> {
        self.0.caller(&request)?;
        let asked = convert::read_optional::<AuthorityId>("root", &request.get_ref().root)?;
        let now = self.0.ports.clock.now();
        let state = self.0.state();
        let rotation = state.rotation().map(|it| Arc::clone(&it.value));
        let underway = rotation.filter(|it| it.phase != Phase::Stable);
        let reading = self.0.root_reading(underway.clone(), now).await?;
        let world = &reading.world;
        let underway = underway.map(|it| it.old.clone());
        let root = asked.or(underway).or_else(|| world.facts.active_root().cloned());
        let root = root.ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        if !world.facts.roots.contains_key(&root) {
            return Err(ApiError::NotFound { what: "root", name: root.to_string() }.into());
        }
        let all = || gate::who_depends_on(&root, world, now);
        let dependents = all().take(MOST_NAMED).map(|(subscriber, presented)| wire::Dependent {
            name: subscriber.name.clone(),
            kind: subscriber.kind.to_string(),
            cluster: subscriber.cluster.clone(),
            certificates: presented.count,
            not_after: Some(convert::timestamp(presented.until)),
            last_contact: subscriber.last_contact.map(convert::timestamp),
        });
        Ok(Response::new(wire::ListDependentsResponse {
            dependents: dependents.collect(),
            count: u32::try_from(all().count()).unwrap_or(u32::MAX),
            root: root.to_string(),
        }))
    }
}

type Answers = mpsc::Sender<Result<wire::WatchRotationResponse, Broken>>;

impl Ca {
    async fn tell_rotation(self: &Arc<Self>, answers: &Answers) -> Result<(), Broken> {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let rotation = self.rotation_shown().await?;
            let ended = rotation.as_ref().is_none_or(|it| !it.outcome.is_empty());
            if answers.send(Ok(wire::WatchRotationResponse { rotation })).await.is_err() || ended {
                return Ok(());
            }
            // Whatever changes within a second is told at once.
            tokio::time::sleep(LOOK_GAP).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = tokio::time::sleep(TELL_EVERY) => {}
            }
        }
    }

    /// The rotation on record with its gate.
    async fn rotation_shown(&self) -> Result<Option<wire::Rotation>, ApiError> {
        let Some(rotation) = self.state().rotation().map(|it| Arc::clone(&it.value)) else { return Ok(None) };
        let now = self.ports.clock.now();
        let reading = self.root_reading(Some(Arc::clone(&rotation)), now).await?;
        let Reading { world, gate: Some(gate), .. } = &*reading else { return Ok(None) };
        let warnings = self.root_warnings(rotation.mode, &rotation.choices, world, Some(&rotation), now);
        let loss = gate.loss();
        if let Some(loss) = &loss {
            self.name_loss(&rotation, loss);
        }
        let canary = super::rotation_canary::status(&self.state(), &rotation, world, now);
        Ok(Some(wire::Rotation { warnings, canary, ..shown(&rotation, gate, loss) }))
    }

    /// Names that nobody had before: of a rotation, and of the root that it makes.
    fn rotation_names(&self) -> Result<(RotationName, AuthorityId), ApiError> {
        let mut random = [0; 4];
        self.ports.entropy.fill(&mut random).map_err(|_opaque| IssueError::NoEntropy)?;
        let date: String =
            self.ports.clock.now().to_string().chars().filter(char::is_ascii_digit).take(8).collect();
        let text = format!("{date}-{}", hex::encode(random));
        let bug = |cause: rhizome_id::NameError| ApiError::Bug(cause.to_string());
        Ok((format!("rotation-{text}").parse().map_err(bug)?, format!("root-{text}").parse().map_err(bug)?))
    }
}

/// The end of the minute of `at`: who repeats an exemption because no answer came says the same again.
fn to_the_minute(at: Timestamp) -> Timestamp {
    at.plus(at.unix().wrapping_neg().rem_euclid(60))
}

fn shown(rotation: &Rotation, gate: &Gate, loss: Option<Loss>) -> wire::Rotation {
    let blockers = gate.blockers.iter().take(MOST_NAMED).map(shown_blocker);
    let exemptions = rotation.exemptions.iter().map(|it| wire::RotationExemption {
        subscriber: it.subscriber.clone(),
        reason: it.reason.clone(),
        approver: it.approver.clone(),
        expires_at: Some(convert::timestamp(it.expires_at)),
    });
    wire::Rotation {
        name: rotation.name.to_string(),
        version: rotation.version,
        mode: shown_mode(rotation.mode).into(),
        phase: shown_phase(rotation.phase).into(),
        back: rotation.heading == Heading::Back,
        outcome: match rotation.outcome {
            None => String::new(),
            Some(Outcome::Rotated) => "rotated".to_owned(),
            Some(Outcome::Aborted) => "aborted".to_owned(),
        },
        old: rotation.old.to_string(),
        new: rotation.new.to_string(),
        started_by: rotation.started_by.clone(),
        reason: rotation.reason.clone(),
        started_at: Some(convert::timestamp(rotation.started_at)),
        since: Some(convert::timestamp(rotation.since)),
        gate: Gate::in_words(rotation).to_owned(),
        gate_open: gate.is_open(),
        waits: gate.waits.iter().map(ToString::to_string).collect(),
        blockers: blockers.collect(),
        blocker_count: u32::try_from(gate.blockers.len()).unwrap_or(u32::MAX),
        places: gate.progress.iter().map(|(place, progress)| shown_place(place.clone(), *progress)).collect(),
        exemptions: exemptions.collect(),
        lost_workloads: loss.as_ref().map_or(0, |it| it.workloads),
        loss_count: loss.as_ref().map_or(0, |it| u32::try_from(it.subscribers.len()).unwrap_or(u32::MAX)),
        loss_digest: loss.as_ref().map(|it| it.digest.to_string()).unwrap_or_default(),
        losses: loss.map(|it| it.subscribers.into_iter().take(MOST_NAMED).collect()).unwrap_or_default(),
        bundle_sequence: rotation.published.map_or(0, |it| it.sequence),
        choices: Some(shown_choices(rotation.mode, &rotation.choices)),
        warnings: Vec::new(),
        latest: latest(gate).map(convert::timestamp),
        accepted: rotation.accepted.as_ref().map(crate::rotate_root_words::lost).unwrap_or_default(),
        canary: None,
    }
}

fn shown_blocker(it: &Blocker) -> wire::RotationBlocker {
    wire::RotationBlocker {
        name: it.name.clone(),
        kind: it.kind.to_string(),
        cluster: it.cluster.clone(),
        why: it.to_string(),
        last_contact: it.last_contact.map(convert::timestamp),
        matters_until: it.until.map(convert::timestamp),
    }
}

fn shown_place((cluster, kind): Place, progress: Progress) -> wire::RotationPlace {
    wire::RotationPlace { cluster, kind: kind.to_string(), done: progress.done, total: progress.total }
}

const fn shown_mode(mode: Mode) -> wire::RotationMode {
    match mode {
        Mode::Planned => wire::RotationMode::Planned,
        Mode::Compromised => wire::RotationMode::Compromised,
        Mode::Expired => wire::RotationMode::Expired,
    }
}

const fn shown_phase(phase: Phase) -> wire::RotationPhase {
    match phase {
        Phase::Stable => wire::RotationPhase::Stable,
        Phase::Staged => wire::RotationPhase::Staged,
        Phase::Distributing => wire::RotationPhase::Distributing,
        Phase::Canary => wire::RotationPhase::Canary,
        Phase::Active => wire::RotationPhase::Active,
        Phase::Untrusting => wire::RotationPhase::Untrusting,
        Phase::Retired => wire::RotationPhase::Retired,
    }
}

/// When the last of those who hold up the gate stops mattering by itself.
fn latest(gate: &Gate) -> Option<Timestamp> {
    let ends: Option<Vec<Timestamp>> = gate.blockers.iter().map(|it| it.until).collect();
    ends?.into_iter().max()
}

fn shown_choices(mode: Mode, choices: &Choices) -> wire::RotationChoices {
    let seconds = |it: i64| Some(u64::try_from(it).unwrap_or_default());
    wire::RotationChoices {
        mode: shown_mode(mode).into(),
        manual: choices.manual,
        until_expiry: choices.until_expiry,
        soak_seconds: seconds(choices.soak_seconds),
        settle_seconds: seconds(choices.settle_seconds),
        window_seconds: seconds(choices.window_seconds),
        renewals_per_second: Some(choices.renewals_per_second),
        without_bridge: choices.unbridged,
        canary: choices.canary.as_ref().map(super::rotation_canary::shown),
    }
}

impl Ca {
    fn read_choices(&self, wished: &wire::RotationChoices) -> Result<(Mode, Choices), ApiError> {
        let mode = match wished.mode() {
            wire::RotationMode::Unspecified | wire::RotationMode::Planned => Mode::Planned,
            wire::RotationMode::Compromised => Mode::Compromised,
            wire::RotationMode::Expired => Mode::Expired,
        };
        let usual = self.settings.root_rotation.clone();
        let seconds = |field: &'static str, wished: Option<u64>, usual: i64| match wished {
            None => Ok(usual),
            Some(seconds) if seconds <= MOST_EXEMPT_SECONDS => Ok(i64::try_from(seconds).unwrap_or(usual)),
            Some(_) => Err(ApiError::Invalid { field, problem: "at most a year".to_owned() }),
        };
        let choices = Choices {
            manual: wished.manual,
            until_expiry: wished.until_expiry,
            soak_seconds: seconds("soak_seconds", wished.soak_seconds, usual.soak_seconds)?,
            settle_seconds: seconds("settle_seconds", wished.settle_seconds, usual.settle_seconds)?,
            window_seconds: seconds("window_seconds", wished.window_seconds, usual.window_seconds)?,
            renewals_per_second: wished.renewals_per_second.unwrap_or(usual.renewals_per_second),
            unbridged: wished.without_bridge,
            canary: wished.canary.as_ref().map(super::rotation_canary::read).transpose()?,
            ..usual
        };
        Ok((mode, choices))
    }

    /// What deserves a second look before a change of the root begins, and while it goes on.
    fn root_warnings(
        &self,
        mode: Mode,
        choices: &Choices,
        world: &World,
        rotation: Option<&Rotation>,
        now: Timestamp,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        let ended = rotation.is_some_and(|it| it.phase == Phase::Stable);
        if ended {
            return warnings;
        }
        if choices.settle_seconds < ROTATION_SETTLE_SECONDS {
            warnings.push(format!(
                "the settling time is {} s, less than {ROTATION_SETTLE_SECONDS} s: what is under way when the root \
                 changes, with clocks ten minutes off, may be missed",
                choices.settle_seconds
            ));
        }
        if mode == Mode::Planned && choices.soak_seconds < SHORT_SOAK_SECONDS {
            warnings.push(format!(
                "the soak time is {} s, less than an hour: after it nothing can be taken back",
                choices.soak_seconds
            ));
        }
        if rotation.is_none() && self.ports.store.is_shared() {
            let problem = "who is connected is known of this server alone: the others write it down once a change is under way";
            warnings.push(problem.to_owned());
        }
        if world.facts.unreadable > 0 {
            warnings.push(format!(
                "this release cannot read {} entries of the ledger: let a server of the newest release do it",
                world.facts.unreadable
            ));
        }
        if let Some(problem) = missing_bridge(mode, world, rotation, now) {
            warnings.push(problem);
        }
        warnings
    }
}

/// Why verifiers that hold only one of the two roots would refuse what is below the other.
fn missing_bridge(mode: Mode, world: &World, rotation: Option<&Rotation>, now: Timestamp) -> Option<String> {
    if mode == Mode::Expired {
        return None;
    }
    let facts = &world.facts;
    match rotation {
        None => {
            let old = facts.active_root()?;
            let missing = !facts.keys.contains(old);
            missing.then(|| {
                format!(
                    "the key of {old} is not at this server: no chain below the new root can reach {old}, and whoever \
                     does not have the new root when it begins to sign breaks; start it where the key is, or choose to go without"
                )
            })
        }
        Some(it) => {
            let made = |id: &AuthorityId| {
                let cross = facts.roots.get(id).and_then(|root| root.cross.as_ref());
                cross.is_some_and(|cross| cross.not_after >= now)
            };
            let late = it.phase != Phase::Staged && it.phase < Phase::Retired;
            (late && !made(&it.new)).then(|| {
                format!(
                    "there is no bridge from {} to {}: whoever holds only {} refuses what is below {}",
                    it.new, it.old, it.old, it.new
                )
            })
        }
    }
}

fn read_seen(seen: Option<wire::SeenRotation>) -> Result<Option<(RotationName, u64)>, ApiError> {
    seen.map(|it| Ok((convert::read("seen.name", &it.name)?, it.version))).transpose()
}

fn as_seen(seen: &Option<(RotationName, u64)>) -> Option<(&RotationName, u64)> {
    seen.as_ref().map(|(name, version)| (name, *version))
}
