//! `rhizome check` and `rhizome status`: what is wrong or about to be, and how the server is.
//!
//! Laws: a check that fails with more than a note makes the exit code 6, so that a cron job notices.

use clap::Args;
use rhizome_id::{Timestamp, Ttl};
use rhizome_proto::admin::v1::server_service_client::ServerServiceClient;
use rhizome_proto::admin::v1::{
    Check, CheckSeverity, GetStatusRequest, GetStatusResponse, RunChecksRequest, RunChecksResponse,
};
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::output::{View, details, instant_with_distance, printable, relative, table, yes_no};
use crate::session::{Session, call, patiently};
use crate::wire;

/// What to look for.
#[derive(Args, Clone, Copy, Debug)]
pub struct CheckVerb {
    /// Fail when something expires within this time, such as 7d [default: the server's]
    #[arg(long, value_name = "LIFETIME")]
    fail_within: Option<Ttl>,
}

pub(crate) async fn run(wish: CheckVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = ServerServiceClient::new(session.channel().await?);
    let request = RunChecksRequest { fail_within_seconds: wish.fail_within.map_or(0, Ttl::seconds) };
    let answer = patiently("Checking".to_owned(), client.run_checks(call(request))).await?.into_inner();
    let exit = verdict(&answer);
    session.show(&checked(answer, session.now())?)?;
    Ok(exit)
}

pub(crate) async fn status(session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = ServerServiceClient::new(session.channel().await?);
    let answer = client.get_status(call(GetStatusRequest {})).await?.into_inner();
    session.show(&stated(answer, session.now())?)?;
    Ok(Exit::Done)
}

fn verdict(answer: &RunChecksResponse) -> Exit {
    let matters = |check: &Check| !check.ok && check.severity() != CheckSeverity::Note;
    if !answer.ok || answer.checks.iter().any(matters) { Exit::CheckFailed } else { Exit::Done }
}

#[derive(Serialize)]
struct CheckRow {
    name: String,
    ok: bool,
    severity: &'static str,
    summary: String,
    remedy: Option<String>,
    expires_at: Option<Timestamp>,
}

impl From<Check> for CheckRow {
    fn from(check: Check) -> Self {
        Self {
            severity: match check.severity() {
                CheckSeverity::Note => "note",
                CheckSeverity::Warning => "warning",
                CheckSeverity::Critical => "critical",
                CheckSeverity::Unspecified => "unknown",
            },
            expires_at: wire::instant(check.expires_at.as_ref()),
            name: check.name,
            ok: check.ok,
            summary: check.summary,
            remedy: wire::text(check.remedy),
        }
    }
}

fn checked(answer: RunChecksResponse, now: Timestamp) -> Result<View, Failure> {
    let ok = verdict(&answer) == Exit::Done;
    let rows: Vec<CheckRow> = answer.checks.into_iter().map(CheckRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            if row.ok { "ok" } else { row.severity }.to_owned(),
            row.name.clone(),
            relative(row.expires_at, now),
            row.summary.clone(),
        ]
    });
    let mut text = table(&["RESULT", "CHECK", "EXPIRES", "FOUND"], cells, "the server ran no checks");
    for row in rows.iter().filter(|row| !row.ok) {
        if let Some(remedy) = &row.remedy {
            text.push_str(&format!("\n{}: {}\n", printable(&row.name), printable(remedy)));
        }
    }
    View::new(&json!({ "ok": ok, "checks": rows }), text)
}

#[derive(Serialize)]
struct StatusRow {
    trust_domain: String,
    version: String,
    replica: String,
    started_at: Option<Timestamp>,
    now: Option<Timestamp>,
    ready: bool,
    problems: Vec<String>,
    bundle_sequence: u64,
    bundle_digest: Option<String>,
    active_root: Option<String>,
    root_not_after: Option<Timestamp>,
    active_issuer: Option<String>,
    issuer_not_after: Option<Timestamp>,
    ledger_sequence: u64,
    ledger_digest: Option<String>,
    nodes: u64,
    connected_nodes: u64,
    rules: u64,
    issued: u64,
    refused: u64,
}

impl From<GetStatusResponse> for StatusRow {
    fn from(status: GetStatusResponse) -> Self {
        let head = status.ledger_head.unwrap_or_default();
        Self {
            started_at: wire::instant(status.started_at.as_ref()),
            now: wire::instant(status.now.as_ref()),
            root_not_after: wire::instant(status.root_not_after.as_ref()),
            issuer_not_after: wire::instant(status.issuer_not_after.as_ref()),
            bundle_digest: wire::hexadecimal(&status.bundle_digest),
            ledger_sequence: head.sequence,
            ledger_digest: wire::hexadecimal(&head.digest),
            trust_domain: status.trust_domain,
            version: status.version,
            replica: status.replica,
            ready: status.ready,
            problems: status.problems,
            bundle_sequence: status.bundle_sequence,
            active_root: wire::text(status.active_root),
            active_issuer: wire::text(status.active_issuer),
            nodes: status.nodes,
            connected_nodes: status.connected_nodes,
            rules: status.rules,
            issued: status.issued,
            refused: status.refused,
        }
    }
}

fn stated(status: GetStatusResponse, now: Timestamp) -> Result<View, Failure> {
    let row = StatusRow::from(status);
    let until = |id: &Option<String>, end| match id {
        Some(id) => format!("{id}, expires {}", relative(end, now)),
        None => "none".to_owned(),
    };
    let text = details([
        ("trust domain", row.trust_domain.clone()),
        ("server", format!("{} (replica {})", row.version, row.replica)),
        ("ready", yes_no(row.ready)),
        ("problems", row.problems.join("; ")),
        ("started", instant_with_distance(row.started_at, now)),
        ("root", until(&row.active_root, row.root_not_after)),
        ("issuer", until(&row.active_issuer, row.issuer_not_after)),
        ("bundle", row.bundle_sequence.to_string()),
        ("ledger", format!("{} entries", row.ledger_sequence)),
        ("nodes", format!("{}, of them {} connected here", row.nodes, row.connected_nodes)),
        ("rules", row.rules.to_string()),
        ("certificates", format!("{} issued, {} refused since the start", row.issued, row.refused)),
    ]);
    View::new(&row, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ok: bool, severity: CheckSeverity) -> RunChecksResponse {
        let check = Check {
            name: "root_expiry".into(),
            severity: severity.into(),
            ok,
            summary: "the root expires soon".into(),
            remedy: if ok { String::new() } else { "rotate it".into() },
            expires_at: Some(prost_types::Timestamp { seconds: 86_400, nanos: 0 }),
        };
        RunChecksResponse { ok, checks: vec![check] }
    }

    #[test]
    fn what_matters_makes_the_exit_code_and_a_note_does_not() {
        assert_eq!(verdict(&answer(true, CheckSeverity::Critical)), Exit::Done);
        assert_eq!(verdict(&answer(false, CheckSeverity::Warning)), Exit::CheckFailed);
        let noted = RunChecksResponse { ok: true, ..answer(false, CheckSeverity::Note) };
        assert_eq!(verdict(&noted), Exit::Done);
        let overlooked = RunChecksResponse { ok: true, ..answer(false, CheckSeverity::Critical) };
        assert_eq!(verdict(&overlooked), Exit::CheckFailed, "one failed check outweighs a cheerful summary");
    }

    #[test]
    fn failed_checks_are_followed_by_what_to_do() {
        let view = checked(answer(false, CheckSeverity::Warning), Timestamp::EPOCH).unwrap();
        assert_eq!(
            view.text,
            "RESULT   CHECK        EXPIRES  FOUND\nwarning  root_expiry  in 1d    the root expires soon\n\nroot_expiry: rotate it\n"
        );
        assert_eq!(view.json["ok"], false);
    }

    #[test]
    fn a_server_without_authorities_says_none() {
        let view = stated(GetStatusResponse::default(), Timestamp::EPOCH).unwrap();
        assert!(view.text.contains("root          none"), "{}", view.text);
    }
}
