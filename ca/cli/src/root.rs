//! `rhizome root`: changing the root for another, with evidence at every step.
//!
//! Laws: without `--yes` nothing is changed, and what would be is shown; a change names the rotation and version that were
//! seen, so that two administrators do not undo each other. Not here: what is allowed when (`rhizome_core::rotation`).

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rhizome_id::{AuthorityId, Ttl};
use rhizome_proto::admin::v1::rotation_service_client::RotationServiceClient;
use rhizome_proto::admin::v1::{
    AbortRotationRequest, AdvanceRotationRequest, ExemptSubscriberRequest, GetRotationRequest,
    ListDependentsRequest, PlanRotationRequest, Rotation, RotationChoices, RotationMode, RotationPlace,
    SeenRotation, StartRotationRequest, WatchRotationRequest,
};
use serde_json::Value;
use tonic::transport::Channel;

use crate::exit::{Exit, Failure};
use crate::offline_root::OfflineVerb;
use crate::output::{View, or_dash, printable};
use crate::root_canary::CanaryArgs;
use crate::root_view::{PHASES, dependents, phase, phase_of, plan, status};
use crate::session::{Session, call};
use crate::wire;

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
    /// Leave a phase, if its gate is open; without --yes, show the gate and what to say
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

    #[command(flatten)]
    canary: CanaryArgs,

    /// Do it; without this, only show the plan
    #[arg(long)]
    yes: bool,
}

/// Which phase is left, and whether the loss is accepted.
#[derive(Args, Clone, Debug)]
pub struct AdvanceRoot {
    /// The phase that is to be left; if it was left already, nothing is done
    #[arg(long, value_name = "PHASE", value_parser = PHASES, required_if_eq("yes", "true"))]
    from: Option<String>,

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
        RootVerb::Advance(wish) => return advance(wish, &mut client, session).await,
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
        canary: wish.canary.chosen()?,
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

/// What is left must be said: somebody else may have left it a moment ago, and this would leave the next.
async fn advance(
    wish: AdvanceRoot,
    client: &mut Client,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Failure> {
    let seen = underway(client).await?;
    if !wish.yes {
        session.show(&status(&seen, session.now())?)?;
        session.remark(&format!("nothing was changed; to leave this phase, say: {}", words_to_leave(&seen)));
        return Ok(Exit::Done);
    }
    let from = wish.from.unwrap_or_default();
    let order = |phase: &str| PHASES.iter().position(|it| *it == phase);
    if seen.back || order(phase(&seen)) < order(&from) {
        let problem = format!("it stands in {} and not in {from}; look at it again", phase_of(&seen));
        return Err(Failure::new(Exit::Failed, "rotation_changed", problem));
    }
    if phase(&seen) != from {
        session.show(&status(&seen, session.now())?)?;
        session.remark(&format!("nothing was changed; {from} was left already"));
        return Ok(Exit::Done);
    }
    let request = AdvanceRotationRequest { seen: Some(named(&seen)), accept_loss: wish.accept_loss };
    let rotation = client.advance_rotation(call(request)).await?.into_inner().rotation;
    show(rotation, true, "advance", session)?;
    Ok(Exit::Done)
}

/// The command that leaves the phase that was seen.
fn words_to_leave(seen: &Rotation) -> String {
    let loss = match seen.loss_digest.as_str() {
        "" => String::new(),
        digest => format!(" --accept-loss {digest}"),
    };
    format!("rhizome root advance --from {}{loss} --yes", phase(seen))
}

pub(crate) fn seconds(ttl: Ttl) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_leave_a_phase_name_it_and_the_loss_that_they_accept() {
        let phase = rhizome_proto::admin::v1::RotationPhase::Active.into();
        let seen = Rotation { phase, ..Rotation::default() };
        assert_eq!(words_to_leave(&seen), "rhizome root advance --from active --yes");
        let seen = Rotation { loss_digest: "ab12".into(), ..seen };
        assert_eq!(words_to_leave(&seen), "rhizome root advance --from active --accept-loss ab12 --yes");
    }
}
