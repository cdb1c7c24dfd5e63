//! A change of the root as people and programs see it.
//!
//! Laws: whatever is left out of a list is counted. Not here: what is said to the server (`root`).

use rhizome_id::Timestamp;
use rhizome_proto::admin::v1::{
    ListDependentsResponse, PlanRotationResponse, Rotation, RotationBlocker, RotationChoices, RotationMode,
    RotationPhase, RotationPlace,
};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{View, details, instant_with_distance, or_dash, printable, span, table};
use crate::root_canary;
use crate::wire;

/// Names shown to people; `--output json` has a thousand, and how many there are.
const SHOWN: usize = 10;

/// Phases that can be left, in their order.
pub(crate) const PHASES: [&str; 6] = ["staged", "distributing", "canary", "active", "untrusting", "retired"];

/// The phase by name.
pub(crate) fn phase(rotation: &Rotation) -> &'static str {
    match rotation.phase() {
        RotationPhase::Unspecified => "unknown",
        RotationPhase::Stable => "stable",
        RotationPhase::Staged => "staged",
        RotationPhase::Distributing => "distributing",
        RotationPhase::Canary => "canary",
        RotationPhase::Active => "active",
        RotationPhase::Untrusting => "untrusting",
        RotationPhase::Retired => "retired",
    }
}

/// The phase, and which way it is passed.
pub(crate) fn phase_of(rotation: &Rotation) -> String {
    let phase = phase(rotation);
    if rotation.back { format!("{phase}, backwards") } else { phase.to_owned() }
}

fn mode_of(rotation: &Rotation) -> &'static str {
    match rotation.mode() {
        RotationMode::Unspecified | RotationMode::Planned => "planned",
        RotationMode::Compromised => "compromised",
        RotationMode::Expired => "expired",
    }
}

pub(crate) fn status(rotation: &Rotation, now: Timestamp) -> Result<View, Failure> {
    let at = |instant: Option<&prost_types::Timestamp>| instant_with_distance(wire::instant(instant), now);
    let ended = !rotation.outcome.is_empty();
    let who = match rotation.reason.as_str() {
        "" => rotation.started_by.clone(),
        reason => format!("{}: {reason}", rotation.started_by),
    };
    let mut fields = vec![
        ("rotation", format!("{} ({}), version {}", rotation.name, mode_of(rotation), rotation.version)),
        ("phase", if ended { rotation.outcome.clone() } else { phase_of(rotation) }),
        ("since", at(rotation.since.as_ref())),
        ("old root", rotation.old.clone()),
        ("new root", rotation.new.clone()),
        ("started", format!("{} by {}", at(rotation.started_at.as_ref()), printable(&who))),
    ];
    if !ended {
        let open = if rotation.gate_open { "open" } else { "shut" };
        fields.push(("gate", format!("{} ({open})", rotation.gate)));
        fields.extend(rotation.waits.iter().map(|it| ("waits for", printable(it))));
    }
    fields.extend(root_canary::fields(rotation, now));
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
        let (workloads, count) = (rotation.lost_workloads, rotation.loss_count);
        let names: Vec<&str> = rotation.losses.iter().take(SHOWN).map(String::as_str).collect();
        let names = format!("{}{}", names.join(", "), more(count, names.len(), ", "));
        fields.push(("would break", printable(&format!("{workloads} workloads of {count}: {names}"))));
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
    text + &more_lines(count, blockers.len().min(SHOWN))
}

/// What is not shown of `count`, after the first few.
fn more(count: u32, shown: usize, before: &str) -> String {
    let more = count.saturating_sub(u32::try_from(shown).unwrap_or(u32::MAX));
    if more > 0 { format!("{before}and {more} more") } else { String::new() }
}

fn more_lines(count: u32, shown: usize) -> String {
    match more(count, shown, "  ") {
        nobody if nobody.is_empty() => nobody,
        more => format!("{more}\n"),
    }
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
        "phase": phase(rotation),
        "back": rotation.back,
        "outcome": wire::text(rotation.outcome.clone()),
        "old": rotation.old,
        "new": rotation.new,
        "started_by": rotation.started_by,
        "reason": wire::text(rotation.reason.clone()),
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
        "loss_count": rotation.loss_count,
        "lost_workloads": rotation.lost_workloads,
        "loss_digest": wire::text(rotation.loss_digest.clone()),
        "bundle_sequence": rotation.bundle_sequence,
        "choices": choices_json(rotation.choices.as_ref()),
        "warnings": rotation.warnings,
        "latest": wire::instant(rotation.latest.as_ref()),
        "accepted": wire::text(rotation.accepted.clone()),
        "canary": root_canary::status_json(rotation.canary.as_ref()),
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
            "canary": root_canary::choice_json(it.canary.as_ref()),
        })
    })
}

pub(crate) fn plan(plan: &PlanRotationResponse, now: Timestamp) -> Result<View, Failure> {
    let least = i64::try_from(plan.least_seconds).unwrap_or(i64::MAX);
    let mut fields = vec![
        ("old root", or_dash(&plan.old)),
        ("renewals", format!("{}, {} a second", plan.renewals, plan.renewals_per_second)),
        ("takes at least", span(least)),
    ];
    if let Some(it) = &plan.choices {
        let part =
            |seconds: Option<u64>| span(i64::try_from(seconds.unwrap_or_default()).unwrap_or(i64::MAX));
        fields.extend(it.canary.as_ref().map(|it| ("canary", root_canary::chosen(it))));
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
    let count = plan.blocker_count;
    if !plan.blockers.is_empty() {
        text.push_str(&format!("\n{count} would hold it up as things are:\n"));
        for it in plan.blockers.iter().take(SHOWN) {
            let until = instant_with_distance(wire::instant(it.matters_until.as_ref()), now);
            text.push_str(&format!("  {} {}, matters until {until}\n", printable(&it.name), it.why));
        }
        text.push_str(&more_lines(count, plan.blockers.len().min(SHOWN)));
    }
    let json = json!({
        "old": wire::text(plan.old.clone()),
        "places": plan.places.iter().map(place_json).collect::<Vec<_>>(),
        "blockers": plan.blockers.iter().map(blocker_json).collect::<Vec<_>>(),
        "blocker_count": count,
        "renewals": plan.renewals,
        "renewals_per_second": plan.renewals_per_second,
        "least_seconds": plan.least_seconds,
        "latest": wire::instant(plan.latest.as_ref()),
        "choices": choices_json(plan.choices.as_ref()),
        "warnings": plan.warnings,
    });
    View::new(&json, text)
}

pub(crate) fn dependents(answer: &ListDependentsResponse, now: Timestamp) -> Result<View, Failure> {
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
    let mut text = table(&heading, rows, &format!("nobody depends on {}", answer.root));
    text.push_str(&more_lines(answer.count, answer.dependents.len()));
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
#[path = "root_view_tests.rs"]
mod tests;
