//! `rhizome root`: changing the root for another, with evidence at every step.
//!
//! Laws: without `--yes` nothing is changed, and what would be is shown; a change names the rotation and version that were
//! seen, so that two administrators do not undo each other. Not here: what is allowed when (`rhizome_core::rotation`).

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rhizome_id::{AuthorityId, Timestamp, Ttl};
use rhizome_proto::admin::v1::rotation_service_client::RotationServiceClient;
use rhizome_proto::admin::v1::{
    AbortRotationRequest, AdvanceRotationRequest, ExemptSubscriberRequest, GetRotationRequest,
    ListDependentsRequest, ListDependentsResponse, PlanRotationRequest, PlanRotationResponse, Rotation,
    RotationBlocker, RotationChoices, RotationMode, RotationPhase, RotationPlace, SeenRotation,
    StartRotationRequest, WatchRotationRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::exit::{Exit, Failure};
use crate::offline_root::OfflineVerb;
use crate::output::{View, details, instant_with_distance, or_dash, printable, span, table};
use crate::session::{Session, call};
use crate::wire;

/// Blockers shown to people; `--output json` has all of them.
const SHOWN: usize = 10;

/// Change the root for another, bring one from elsewhere, or keep its key offline
#[derive(Subcommand, Clone, Debug)]
pub enum RootVerb {
    /// Begin to change the root; without --yes, show whom it would meet and how long it would take
    Rotate(RotateRoot),
    /// Show the change of the root: phase, gate, who holds it up
    Status {
        /// Follow it until it ends
        #[arg(long)]
        watch: bool,
    },
    /// Follow the change of the root until it ends
    Watch,
    /// Leave the phase now, if its gate is open; without --yes, show the gate
    Advance(AdvanceRoot),
    /// Take the change back: the machine goes the same way backwards; without --yes, show where it stands
    Abort(AbortRoot),
    /// Do not wait for one subscriber; without --yes, show where it stands
    Exempt(ExemptRoot),
    /// List who presents certificates below a root
    WhoDependsOn {
        /// The root's id, as `rhizome authority list` shows it [default: the one that goes, or the active one]
        #[arg(value_name = "ID")]
        root: Option<AuthorityId>,
    },
    /// While no server runs.
    #[command(flatten)]
    Offline(OfflineVerb),
}

/// What kind of change, and how.
#[derive(Args, Clone, Debug)]
pub struct RotateRoot {
    /// Why, for the audit log
    #[arg(long, default_value = "")]
    reason: String,

    /// The old root is in wrong hands: it goes even if somebody breaks; who, is asked before
    #[arg(long, conflicts_with = "expired")]
    compromised: bool,

    /// The old root has expired
    #[arg(long)]
    expired: bool,

    /// Leave each phase only at `rhizome root advance`, besides the evidence
    #[arg(long)]
    manual: bool,

    /// Count a certificate until it has expired, even when its holder reports that it has another one
    #[arg(long)]
    until_expiry: bool,

    /// Go without cross-certificates, when the old root's key is not at the server: who was not reached breaks
    #[arg(long)]
    without_bridge: bool,

    /// How long only the new root is trusted before the old key is destroyed [default: as configured, 24h]
    #[arg(long, value_name = "TTL")]
    soak: Option<Ttl>,

    /// How long to wait after the last issuer changed; below 21m is unsafe [default: as configured, 21m]
    #[arg(long, value_name = "TTL")]
    settle: Option<Ttl>,

    /// Over how long ordered renewals are spread [default: as configured, 10m]
    #[arg(long, value_name = "TTL")]
    window: Option<Ttl>,

    /// Do it; without this, only show the plan
    #[arg(long)]
    yes: bool,
}

/// Whether the loss is accepted.
#[derive(Args, Clone, Debug)]
pub struct AdvanceRoot {
    /// The digest of the loss that is accepted, as `rhizome root status` shows it; only of a compromised root
    #[arg(long, value_name = "DIGEST", default_value = "")]
    accept_loss: String,

    /// Do it; without this, only show the gate
    #[arg(long)]
    yes: bool,
}

/// Why it is taken back.
#[derive(Args, Clone, Debug)]
pub struct AbortRoot {
    /// Why, for the audit log
    #[arg(long)]
    reason: String,

    /// Do it; without this, only show where it stands
    #[arg(long)]
    yes: bool,
}

/// Whom not to wait for.
#[derive(Args, Clone, Debug)]
pub struct ExemptRoot {
    /// The subscriber's name, as `rhizome root status` shows it
    #[arg(value_name = "NAME")]
    subscriber: String,

    /// Why, for the audit log
    #[arg(long)]
    reason: String,

    /// For how many hours
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    hours: u32,

    /// Do it; without this, only show where it stands
    #[arg(long)]
    yes: bool,
}

type Client = RotationServiceClient<Channel>;

pub(crate) async fn run(verb: RootVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    if let RootVerb::Offline(_) = verb {
        return Err(Failure::usage("this program has no store and no keys; use the whole `rhizome`"));
    }
    let mut client = RotationServiceClient::new(session.channel().await?);
    match verb {
        RootVerb::Offline(_) => {}
        RootVerb::Rotate(wish) => return rotate(wish, &mut client, session).await,
        RootVerb::Status { watch: false } => match current(&mut client).await? {
            Some(rotation) => session.show(&status(&rotation, session.now())?)?,
            None => session.show(&View::new(&Value::Null, "the root was never changed\n".to_owned())?)?,
        },
        RootVerb::Status { watch: true } | RootVerb::Watch => return watch(&mut client, session).await,
        RootVerb::Advance(wish) => {
            let seen = underway(&mut client).await?;
            let rotation = if wish.yes {
                let request =
                    AdvanceRotationRequest { seen: Some(named(&seen)), accept_loss: wish.accept_loss };
                client.advance_rotation(call(request)).await?.into_inner().rotation
            } else {
                Some(seen)
            };
            show(rotation, wish.yes, "advance", session)?;
        }
        RootVerb::Abort(wish) => {
            let seen = underway(&mut client).await?;
            let rotation = if wish.yes {
                let request = AbortRotationRequest { seen: Some(named(&seen)), reason: wish.reason };
                client.abort_rotation(call(request)).await?.into_inner().rotation
            } else {
                Some(seen)
            };
            show(rotation, wish.yes, "abort", session)?;
        }
        RootVerb::Exempt(wish) => {
            let seen = underway(&mut client).await?;
            let rotation = if wish.yes {
                let request = ExemptSubscriberRequest {
                    seen: Some(named(&seen)),
                    subscriber: wish.subscriber,
                    reason: wish.reason,
                    seconds: u64::from(wish.hours).saturating_mul(3_600),
                };
                client.exempt_subscriber(call(request)).await?.into_inner().rotation
            } else {
                Some(seen)
            };
            show(rotation, wish.yes, "exempt", session)?;
        }
        RootVerb::WhoDependsOn { root } => {
            let request = ListDependentsRequest { root: root.map(String::from).unwrap_or_default() };
            let answer = client.list_dependents(call(request)).await?.into_inner();
            session.show(&dependents(&answer, session.now())?)?;
        }
    }
    Ok(Exit::Done)
}

async fn rotate(
    wish: RotateRoot,
    client: &mut Client,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Failure> {
    let mode = match (wish.compromised, wish.expired) {
        (true, _) => RotationMode::Compromised,
        (false, true) => RotationMode::Expired,
        (false, false) => RotationMode::Planned,
    };
    let choices = RotationChoices {
        mode: mode.into(),
        manual: wish.manual,
        until_expiry: wish.until_expiry,
        soak_seconds: wish.soak.map(seconds),
        settle_seconds: wish.settle.map(seconds),
        window_seconds: wish.window.map(seconds),
        renewals_per_second: None,
        without_bridge: wish.without_bridge,
    };
    if !wish.yes {
        let request = PlanRotationRequest { choices: Some(choices) };
        let answer = client.plan_rotation(call(request)).await?.into_inner();
        session.show(&plan(&answer, session.now())?)?;
        session.remark("nothing was changed; repeat with --reason and --yes to rotate");
        return Ok(Exit::Done);
    }
    let request = StartRotationRequest { choices: Some(choices), reason: wish.reason };
    let answer = client.start_rotation(call(request)).await?.into_inner();
    let rotation = wire::promised(answer.rotation, "the rotation")?;
    session.show(&status(&rotation, session.now())?)?;
    Ok(Exit::Done)
}

fn seconds(ttl: Ttl) -> u64 {
    u64::try_from(ttl.seconds()).unwrap_or_default()
}

async fn current(client: &mut Client) -> Result<Option<Rotation>, Failure> {
    Ok(client.get_rotation(call(GetRotationRequest {})).await?.into_inner().rotation)
}

async fn underway(client: &mut Client) -> Result<Rotation, Failure> {
    let rotation = current(client).await?.filter(|it| it.outcome.is_empty());
    rotation
        .ok_or_else(|| Failure::new(Exit::NotFound, "rotation_none", "no rotation of the root is under way"))
}

fn named(rotation: &Rotation) -> SeenRotation {
    SeenRotation { name: rotation.name.clone(), version: rotation.version }
}

fn show(
    rotation: Option<Rotation>,
    done: bool,
    verb: &str,
    session: &mut Session<'_, '_>,
) -> Result<(), Failure> {
    let rotation = wire::promised(rotation, "the rotation")?;
    session.show(&status(&rotation, session.now())?)?;
    if !done {
        session.remark(&format!("nothing was changed; repeat with --yes to {verb}"));
    }
    Ok(())
}

/// Shows it until it ends: bars on a terminal, one status after the other elsewhere.
async fn watch(client: &mut Client, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut stream = client.watch_rotation(tonic::Request::new(WatchRotationRequest {})).await?.into_inner();
    let mut bars = session.terminal().then(Bars::new);
    let mut last = None;
    while let Some(answer) = stream.message().await? {
        let Some(rotation) = answer.rotation else {
            session.remark("the root was never changed");
            return Ok(Exit::Done);
        };
        match &mut bars {
            Some(bars) => bars.tell(&rotation),
            // Only what is new is worth a line.
            None if last.as_ref() != Some(&rotation) => session.show(&status(&rotation, session.now())?)?,
            None => {}
        }
        last = Some(rotation);
    }
    if let (Some(bars), Some(rotation)) = (bars, &last) {
        bars.end();
        session.show(&status(rotation, session.now())?)?;
    }
    Ok(Exit::Done)
}

/// One line for the phase, and a bar for each cluster and kind.
struct Bars {
    all: MultiProgress,
    phase: ProgressBar,
    places: BTreeMap<(String, String), ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let phase = all.add(ProgressBar::new_spinner());
        Self { all, phase, places: BTreeMap::new() }
    }

    fn tell(&mut self, rotation: &Rotation) {
        let first =
            rotation.blockers.first().map_or_else(String::new, |it| format!("; {}", printable(&it.why)));
        let waits = rotation.waits.first().map_or_else(String::new, |it| format!("; {}", printable(it)));
        self.phase.set_message(format!("{}: {}{waits}{first}", phase_of(rotation), rotation.gate));
        for RotationPlace { cluster, kind, done, total } in &rotation.places {
            let bar = self.places.entry((cluster.clone(), kind.clone())).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(u64::from(*total)));
                if let Ok(style) = ProgressStyle::with_template("{prefix:28} [{bar:30}] {pos}/{len}") {
                    bar.set_style(style);
                }
                bar.with_prefix(format!("{} {kind}", printable(&or_dash(cluster))))
            });
            bar.set_length(u64::from(*total));
            bar.set_position(u64::from(*done));
        }
        self.phase.tick();
    }

    fn end(self) {
        drop(self.all.clear());
    }
}

fn phase_of(rotation: &Rotation) -> String {
    let phase = match rotation.phase() {
        RotationPhase::Unspecified => "unknown",
        RotationPhase::Stable => "stable",
        RotationPhase::Staged => "staged",
        RotationPhase::Distributing => "distributing",
        RotationPhase::Canary => "canary",
        RotationPhase::Active => "active",
        RotationPhase::Untrusting => "untrusting",
        RotationPhase::Retired => "retired",
    };
    if rotation.back { format!("{phase}, backwards") } else { phase.to_owned() }
}

fn mode_of(rotation: &Rotation) -> &'static str {
    match rotation.mode() {
        RotationMode::Unspecified | RotationMode::Planned => "planned",
        RotationMode::Compromised => "compromised",
        RotationMode::Expired => "expired",
    }
}

fn status(rotation: &Rotation, now: Timestamp) -> Result<View, Failure> {
    let at = |instant: Option<&prost_types::Timestamp>| instant_with_distance(wire::instant(instant), now);
    let ended = !rotation.outcome.is_empty();
    let mut fields = vec![
        ("rotation", format!("{} ({}), version {}", rotation.name, mode_of(rotation), rotation.version)),
        ("phase", if ended { rotation.outcome.clone() } else { phase_of(rotation) }),
        ("since", at(rotation.since.as_ref())),
        ("old root", rotation.old.clone()),
        ("new root", rotation.new.clone()),
        ("started", format!("{} by {}", at(rotation.started_at.as_ref()), printable(&rotation.started_by))),
    ];
    if !ended {
        let open = if rotation.gate_open { "open" } else { "shut" };
        fields.push(("gate", format!("{} ({open})", rotation.gate)));
        fields.extend(rotation.waits.iter().map(|it| ("waits for", printable(it))));
    }
    fields.extend(rotation.warnings.iter().map(|it| ("warning", printable(it))));
    if let Some(latest) = wire::instant(rotation.latest.as_ref()) {
        fields.push(("nobody matters after", instant_with_distance(Some(latest), now)));
    }
    if !rotation.accepted.is_empty() {
        fields.push(("accepted loss", printable(&rotation.accepted)));
    }
    for it in &rotation.exemptions {
        let until = at(it.expires_at.as_ref());
        let text = format!("{} until {until} by {}: {}", it.subscriber, it.approver, it.reason);
        fields.push(("exempted", printable(&text)));
    }
    if !rotation.loss_digest.is_empty() {
        let names = rotation.losses.join(", ");
        fields.push(("would break", printable(&format!("{} workloads: {names}", rotation.lost_workloads))));
        fields.push(("loss digest", rotation.loss_digest.clone()));
    }
    let mut text = details(fields.iter().map(|(name, value)| (*name, value.clone())));
    if !ended {
        text.push('\n');
        text.push_str(&places(&rotation.places));
        text.push_str(&blockers(&rotation.blockers, rotation.blocker_count));
    }
    View::new(&as_json(rotation), text)
}

fn places(places: &[RotationPlace]) -> String {
    let rows = places
        .iter()
        .map(|it| vec![or_dash(&it.cluster), it.kind.clone(), format!("{}/{}", it.done, it.total)]);
    table(&["CLUSTER", "KIND", "READY"], rows, "nobody depends on the root")
}

fn blockers(blockers: &[RotationBlocker], count: u32) -> String {
    if blockers.is_empty() {
        return String::new();
    }
    let mut text = format!("\nheld up by {count}:\n");
    for it in blockers.iter().take(SHOWN) {
        text.push_str(&format!("  {}\n", printable(&it.why)));
    }
    let more = count.saturating_sub(u32::try_from(SHOWN).unwrap_or(u32::MAX));
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    text
}

fn place_json(it: &RotationPlace) -> Value {
    json!({ "cluster": it.cluster, "kind": it.kind, "done": it.done, "total": it.total })
}

fn blocker_json(it: &RotationBlocker) -> Value {
    json!({
        "name": it.name,
        "kind": it.kind,
        "cluster": it.cluster,
        "why": it.why,
        "last_contact": wire::instant(it.last_contact.as_ref()),
        "matters_until": wire::instant(it.matters_until.as_ref()),
    })
}

fn as_json(rotation: &Rotation) -> Value {
    json!({
        "name": rotation.name,
        "version": rotation.version,
        "mode": mode_of(rotation),
        "phase": phase_of(rotation).split(',').next().unwrap_or_default(),
        "back": rotation.back,
        "outcome": wire::text(rotation.outcome.clone()),
        "old": rotation.old,
        "new": rotation.new,
        "started_by": rotation.started_by,
        "started_at": wire::instant(rotation.started_at.as_ref()),
        "since": wire::instant(rotation.since.as_ref()),
        "gate": rotation.gate,
        "gate_open": rotation.gate_open,
        "waits": rotation.waits,
        "blockers": rotation.blockers.iter().map(blocker_json).collect::<Vec<_>>(),
        "blocker_count": rotation.blocker_count,
        "places": rotation.places.iter().map(place_json).collect::<Vec<_>>(),
        "exemptions": rotation.exemptions.iter().map(|it| json!({
            "subscriber": it.subscriber,
            "reason": it.reason,
            "approver": it.approver,
            "expires_at": wire::instant(it.expires_at.as_ref()),
        })).collect::<Vec<_>>(),
        "losses": rotation.losses,
        "lost_workloads": rotation.lost_workloads,
        "loss_digest": wire::text(rotation.loss_digest.clone()),
        "bundle_sequence": rotation.bundle_sequence,
        "choices": choices_json(rotation.choices.as_ref()),
        "warnings": rotation.warnings,
        "latest": wire::instant(rotation.latest.as_ref()),
        "accepted": wire::text(rotation.accepted.clone()),
    })
}

fn choices_json(choices: Option<&RotationChoices>) -> Value {
    choices.map_or(Value::Null, |it| {
        json!({
            "manual": it.manual,
            "until_expiry": it.until_expiry,
            "without_bridge": it.without_bridge,
            "settle_seconds": it.settle_seconds,
            "soak_seconds": it.soak_seconds,
            "window_seconds": it.window_seconds,
            "renewals_per_second": it.renewals_per_second,
        })
    })
}

fn plan(plan: &PlanRotationResponse, now: Timestamp) -> Result<View, Failure> {
    let least = i64::try_from(plan.least_seconds).unwrap_or(i64::MAX);
    let mut fields = vec![
        ("old root", or_dash(&plan.old)),
        ("renewals", format!("{}, {} a second", plan.renewals, plan.renewals_per_second)),
        ("takes at least", span(least)),
    ];
    if let Some(it) = &plan.choices {
        let part =
            |seconds: Option<u64>| span(i64::try_from(seconds.unwrap_or_default()).unwrap_or(i64::MAX));
        fields.push(("settles for", part(it.settle_seconds)));
        fields.push(("soaks for", part(it.soak_seconds)));
        let rate = it.renewals_per_second.unwrap_or_default();
        fields.push(("renews over", format!("{}, at most {rate} a second", part(it.window_seconds))));
    }
    fields.extend(plan.warnings.iter().map(|it| ("warning", printable(it))));
    if let Some(latest) = wire::instant(plan.latest.as_ref()) {
        fields.push(("nobody away matters after", instant_with_distance(Some(latest), now)));
    }
    let mut text = details(fields.iter().map(|(name, value)| (*name, value.clone())));
    text.push('\n');
    text.push_str(&places(&plan.places));
    let count = u32::try_from(plan.blockers.len()).unwrap_or(u32::MAX);
    if !plan.blockers.is_empty() {
        text.push_str(&format!("\n{count} would hold it up as things are:\n"));
        for it in plan.blockers.iter().take(SHOWN) {
            let until = instant_with_distance(wire::instant(it.matters_until.as_ref()), now);
            text.push_str(&format!("  {} {}, matters until {until}\n", printable(&it.name), it.why));
        }
    }
    let json = json!({
        "old": wire::text(plan.old.clone()),
        "places": plan.places.iter().map(place_json).collect::<Vec<_>>(),
        "blockers": plan.blockers.iter().map(blocker_json).collect::<Vec<_>>(),
        "renewals": plan.renewals,
        "renewals_per_second": plan.renewals_per_second,
        "least_seconds": plan.least_seconds,
        "latest": wire::instant(plan.latest.as_ref()),
        "choices": choices_json(plan.choices.as_ref()),
        "warnings": plan.warnings,
    });
    View::new(&json, text)
}

fn dependents(answer: &ListDependentsResponse, now: Timestamp) -> Result<View, Failure> {
    let rows = answer.dependents.iter().map(|it| {
        vec![
            it.name.clone(),
            it.kind.clone(),
            or_dash(&it.cluster),
            it.certificates.to_string(),
            instant_with_distance(wire::instant(it.not_after.as_ref()), now),
        ]
    });
    let heading = ["NAME", "KIND", "CLUSTER", "CERTIFICATES", "UNTIL"];
    let text = table(&heading, rows, &format!("nobody depends on {}", answer.root));
    let json = json!({
        "root": answer.root,
        "count": answer.count,
        "dependents": answer.dependents.iter().map(|it| json!({
            "name": it.name,
            "kind": it.kind,
            "cluster": it.cluster,
            "certificates": it.certificates,
            "not_after": wire::instant(it.not_after.as_ref()),
            "last_contact": wire::instant(it.last_contact.as_ref()),
        })).collect::<Vec<_>>(),
    });
    View::new(&json, text)
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
