//! Looking at the agent: its configuration and state from outside, and the running one by asking it.
//!
//! Laws: the JSON of `status` and `explain` is what the agent answered; nothing is changed. Not here: what is wrong and
//! why (`checkup`, `observe`).

use std::collections::BTreeMap;

use rhizome_core::ports::Clock;
use rhizome_id::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::Place;
use super::exit::{Exit, Failure};
use super::output::{self, OutputFormat, View, details, printable};
use crate::observe::{AskError, Explained, Report, ask};
use crate::sink::SinkHealth;
use crate::{Checkup, checkup};

/// Checks configuration (it was read already), state, and the running agent if there is one.
pub(super) async fn check(place: &Place, output: OutputFormat, clock: &dyn Clock) -> Result<Exit, Failure> {
    let mut found = checkup(&place.state, clock);
    let running = match ask::<Report>(&place.admin_socket, "/v1/status").await {
        Ok(report) => {
            found.troubles.extend(report.problems);
            "running"
        }
        Err(AskError::Nobody { .. }) => "not running",
        Err(AskError::Stranger { .. }) => "running, and does not answer to this user",
        Err(error @ (AskError::Refused(_) | AskError::Answer(_))) => {
            found.troubles.push(error.to_string());
            "running"
        }
    };
    output::show(output, &checked(&found, running, place.config.sinks.len()))?;
    Ok(if found.troubles.is_empty() { Exit::Done } else { Exit::CheckFailed })
}

fn checked(found: &Checkup, running: &str, sinks: usize) -> View {
    let Checkup {
        node,
        node_not_after,
        node_renew_at,
        servers,
        bundle,
        revocation_lists,
        identities,
        troubles,
    } = found;
    let instant = |at: &Option<Timestamp>| at.map(|at| at.to_string());
    let row = |it: &crate::SealedIdentity| json!({ "spiffe_id": it.spiffe_id.as_str(), "expires": it.not_after.to_string() });
    let json = json!({
        "node": node.as_ref().map(|id| id.as_str()),
        "node_expires": instant(node_not_after),
        "node_renew_at": instant(node_renew_at),
        "servers": servers,
        "bundle_sequence": bundle,
        "revocation_lists": revocation_lists,
        "identities": identities.iter().map(row).collect::<Vec<_>>(),
        "sinks_configured": sinks,
        "agent": running,
        "problems": troubles,
    });
    let mut text = details(&[
        ("node", node.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("expires", instant(node_not_after).unwrap_or_default()),
        ("renew at", instant(node_renew_at).unwrap_or_default()),
        ("servers", servers.join(", ")),
        ("bundle", bundle.map(|sequence| sequence.to_string()).unwrap_or_default()),
        ("agent", running.to_owned()),
        ("sinks", sinks.to_string()),
        ("revocation lists", revocation_lists.to_string()),
        ("identities", identities.len().to_string()),
    ]);
    for it in identities {
        text.push_str(&format!("  {} until {}\n", it.spiffe_id, it.not_after));
    }
    text.push_str(&problems(troubles));
    View { json, text }
}

fn problems(all: &[String]) -> String {
    all.iter().map(|problem| format!("problem: {}\n", printable(problem))).collect()
}

/// Asks the running agent how it is.
pub(super) async fn status(place: &Place, output: OutputFormat, clock: &dyn Clock) -> Result<Exit, Failure> {
    let report: Report = ask(&place.admin_socket, "/v1/status").await?;
    output::show(output, &View { json: json(&report)?, text: status_text(&report, clock.now()) })?;
    Ok(Exit::Done)
}

fn json(value: &impl Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(value).map_err(Failure::failed)
}

fn status_text(report: &Report, now: Timestamp) -> String {
    let yes_no = |value| if value { "yes" } else { "no" }.to_owned();
    let number = |sequence: Option<u64>| sequence.map_or_else(|| "none".to_owned(), |it| it.to_string());
    let connected = match report.connected {
        true => "yes".to_owned(),
        false => {
            format!("no, for {} s, {} attempts failed", report.sync_lag_seconds, report.connect_failures)
        }
    };
    let bundle =
        format!("{}, acknowledged {}", number(report.bundle_sequence), number(report.bundle_acknowledged));
    let tally = report.certificates;
    let mut text = details(&[
        ("trust domain", report.trust_domain.clone()),
        ("ready", yes_no(report.ready)),
        ("connected", connected),
        ("node expires", report.node_expires.map(|at| at.to_string()).unwrap_or_default()),
        ("bundle", bundle),
        ("federated bundles", federated(&report.federated)),
        ("workloads", format!("{} connections, {} streams", report.connections, report.streams)),
        (
            "certificates",
            format!(
                "{} issued, {} refused, {} failed, {} lost",
                tally.issued, tally.refused, tally.failed, tally.lost
            ),
        ),
        ("identities", report.identities_held.to_string()),
    ]);
    for it in &report.identities {
        let left = it.expires.since(now) / 60;
        text.push_str(&format!(
            "  {} until {} ({left} min), serial {}\n",
            printable(&it.spiffe_id),
            it.expires,
            printable(&it.serial)
        ));
    }
    if !report.sinks.is_empty() {
        text.push_str("sinks\n");
    }
    for it in &report.sinks {
        let health = match it.health {
            SinkHealth::Waiting => "waiting for an identity",
            SinkHealth::InForce => "in force",
            SinkHealth::Denied => "denied",
            SinkHealth::Failing => "failing",
        };
        let until = it.expires.map(|at| format!(", until {at}")).unwrap_or_default();
        let federated = match federated(&it.federated) {
            none if none.is_empty() => none,
            some => format!(", federated {some}"),
        };
        let line = format!("  {}: {health}{until}{federated}", it.name);
        text.push_str(&format!("{}\n", printable(&line)));
    }
    text.push_str(&problems(&report.problems));
    text
}

/// Foreign bundles: each domain with its sequence.
fn federated(bundles: &BTreeMap<String, u64>) -> String {
    let each: Vec<_> = bundles.iter().map(|(domain, sequence)| format!("{domain} {sequence}")).collect();
    each.join(", ")
}

/// Asks the running agent about a process.
pub(super) async fn explain(place: &Place, pid: i32, output: OutputFormat) -> Result<Exit, Failure> {
    let explained: Explained = ask(&place.admin_socket, &format!("/v1/explain/{pid}")).await?;
    output::show(output, &View { json: json(&explained)?, text: explain_text(&explained) })?;
    Ok(if explained.granted.is_empty() { Exit::Denied } else { Exit::Done })
}

fn explain_text(explained: &Explained) -> String {
    let mut text = format!("process {} has these attributes:\n", explained.pid);
    for (name, values) in &explained.attributes {
        text.push_str(&format!("  {}\n", printable(&format!("{name} = {}", values.join(", ")))));
    }
    for it in &explained.granted {
        let state = match (&it.expires, &it.refused) {
            (Some(at), _) => format!("held until {at}"),
            (None, Some(reason)) => format!("refused by the authority: {reason}"),
            (None, None) => "not asked for yet: it is when the process connects".to_owned(),
        };
        text.push_str(&printable(&format!("granted: {} by rule {}; {state}\n", it.spiffe_id, it.rule)));
    }
    if let Some(denied) = &explained.denied {
        text.push_str(&printable(&format!("denied: {} [{}]\n", denied.message, denied.code)));
    }
    if !explained.matched.is_empty() {
        text.push_str(&printable(&format!("rules that match: {}\n", explained.matched.join(", "))));
    }
    if !explained.near.is_empty() {
        text.push_str("rules that nearly match:\n");
    }
    for miss in &explained.near {
        text.push_str(&format!("  {}\n", printable(&miss.rule)));
        for unmet in &miss.unmet {
            let found = if unmet.found.is_empty() { "nothing".to_owned() } else { unmet.found.join("|") };
            let line = format!("{} should be {}, is {found}", unmet.attribute, unmet.wanted.join("|"));
            text.push_str(&format!("    {}\n", printable(&line)));
        }
    }
    text
}
