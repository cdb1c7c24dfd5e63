//! What `rhizome dev` shows: one screen, with commands that work as they stand; then what happens, line by line.
//!
//! Laws: the screen has at most 25 lines; every path and address in a command is the real one. A line is said once,
//! when what it says has become so.

use std::env;
use std::io::{self, Write as _};
use std::path::Path;

use rhizome_core::ports::Clock as _;
use rhizome_server::SystemClock;

use super::TRUST_DOMAIN;
use super::mesh::{BACKEND, Mesh, WEB};
use super::process::Seen;
use super::stage::Stage;
use super::walk::{ACCOUNT, CLUSTER, FOREIGN, Facts, NAMESPACE, NODE, Workload};

/// One screen about a trial that went well.
pub(super) fn text(facts: &Facts, removed: bool) -> String {
    let Facts { place, address, web, root, root_until, node, workload, mesh, ledger, latency } = facts;
    let program = env::current_exe().map_or_else(|_unknown| "rhizome".to_owned(), |path| quoted(&path));
    let (socket, identity) = (quoted(&place.socket), quoted(&place.node));
    let metrics = web.as_ref().map_or_else(|| "off".to_owned(), |web| format!("http://{web}/metrics"));
    let end = if removed { "Ctrl-C stops it and removes everything." } else { "Ctrl-C stops it." };
    let vouch = format!("--namespace {NAMESPACE} --service-account {ACCOUNT}");
    let (configuration, entries, head) = (place.config.display(), ledger.entries, &ledger.head);
    let Mesh { agent, web, backend } = mesh;
    let Workload { spiffe_id, serial, valid_until, renew_at } = workload;
    format!(
        "Rhizome runs: an authority on loopback, an agent, and two workloads that speak mutual TLS.\n\
         \n\
         trust domain   {TRUST_DOMAIN}, configured by {configuration}\n\
         authority      {address} (gRPC, mutual TLS); metrics {metrics}\n\
         root           sha256 {root}, until {root_until}\n\
         node           {node}, which asked for\n\
         certificate    {serial} of {spiffe_id}, until {valid_until}, to be renewed at {renew_at}\n\
         one issuance   {latency}\n\
         agent          {agent}, which serves\n\
         workload API   SPIFFE_ENDPOINT_SOCKET=unix://{workload_api} and Envoy SDS\n\
         web, backend   {web} and {backend}\n\
         tokens         JWT-SVIDs too: {BACKEND} had one of {WEB} validated by the agent, and refused one for another\n\
         ledger         {entries} entries verified, head {head}\n\
         \n\
         Try next, in another terminal, and watch what happens below:\n\
         alias rhizome={program}; export RHIZOME_SERVER=unix://{socket}\n\
         rhizome cert list\n\
         rhizome cert revoke --spiffe-id {backend} --reason trial --yes\n\
         rhizome authority rotate --reason trial --yes\n\
         rhizome explain --node {CLUSTER}/join_token/{NODE} {vouch}\n\
         rhizome explain --node {CLUSTER}/join_token/{NODE} --namespace {FOREIGN} --service-account {ACCOUNT}\n\
         rhizome --server https://{address} --identity {identity} cert request {vouch} --out web\n\
         rhizome ledger verify\n\
         {end}\n",
        workload_api = place.workload_api.display(),
        web = web.spiffe_id,
        backend = backend.spiffe_id,
    )
}

/// Says what happens to the two workloads as it happens; ends when they do.
pub(super) async fn live(stage: &Stage) {
    let Ok((web, backend)) = stage.workloads() else { return };
    let (mut web, mut backend) = (web.follow(), backend.follow());
    let mut told = Told { turned_away: backend.borrow().turned_away.clone(), ..Told::default() };
    loop {
        let lines = told.lines(&web.borrow_and_update(), &backend.borrow_and_update());
        for line in lines {
            drop(writeln!(io::stdout(), "{} {line}", SystemClock.now()));
        }
        if told.ended {
            return;
        }
        let changed = tokio::select! {
            changed = web.changed() => changed,
            changed = backend.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What was told of the two workloads.
#[derive(Default)]
struct Told {
    serials: [String; 2],
    pair: Option<(String, String)>,
    turned_away: Option<String>,
    failures: u64,
    ended: bool,
}

impl Told {
    /// What is new about the two; one line for each thing.
    fn lines(&mut self, web: &Seen, backend: &Seen) -> Vec<String> {
        let mut lines = Vec::new();
        let [known_web, known_backend] = &mut self.serials;
        for (name, seen, known) in [(WEB, web, known_web), (BACKEND, backend, known_backend)] {
            let Some(identity) = seen.identity.as_ref().filter(|it| it.serial != *known) else { continue };
            let verb = if known.is_empty() { "has" } else { "has a new" };
            let (serial, until, issuer) = (&identity.serial, identity.not_after, short(&identity.issuer));
            lines.push(format!("{name:<7} {verb} certificate {serial} until {until}, by {issuer}"));
            known.clone_from(serial);
        }
        let pair = web.call.as_ref().map(|call| (call.caller_serial.clone(), call.server_serial.clone()));
        if pair != self.pair
            && let Some((caller, server)) = &pair
        {
            let (calls, failures) = (web.calls, web.failures);
            lines.push(format!(
                "{WEB} → {BACKEND}: handshake with {} and {}; {calls} so far, {failures} failed",
                end_of(caller),
                end_of(server)
            ));
            self.pair = pair;
        }
        if backend.turned_away != self.turned_away {
            self.turned_away.clone_from(&backend.turned_away);
            lines.extend(backend.turned_away.iter().map(|why| format!("{BACKEND} turned away: {why}")));
        }
        if web.failures != self.failures {
            self.failures = web.failures;
            let first = web.failure.as_deref().unwrap_or_default();
            lines.push(format!("{WEB} → {BACKEND}: {} failed; the first: {first}", web.failures));
        }
        self.ended = web.ended || backend.ended;
        lines.extend(self.ended.then(|| "a workload has ended".to_owned()));
        lines
    }
}

/// The generation in an issuer's name: its last word.
fn short(issuer: &str) -> &str {
    issuer.rsplit(' ').next().unwrap_or(issuer)
}

/// The last digits of a serial, by which people tell two apart.
fn end_of(serial: &str) -> String {
    format!("…{}", serial.get(serial.len().saturating_sub(8)..).unwrap_or(serial))
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rhizome_id::{Digest, Timestamp};

    use super::*;
    use crate::dev::walk::{Latency, Ledger, Place};
    use crate::dev::workload::{Call, Identity};

    fn identity(name: &str, serial: &str) -> Identity {
        Identity {
            spiffe_id: format!("spiffe://dev.example.org/ns/shop/sa/{name}").parse().unwrap(),
            serial: serial.into(),
            issuer: "O=td, CN=Rhizome issuer issuer-1".into(),
            not_after: Timestamp::EPOCH,
        }
    }

    #[test]
    fn a_renewal_is_told_once_and_the_first_handshake_with_it() {
        let (mut told, mut web, mut backend) = (Told::default(), Seen::default(), Seen::default());
        assert_eq!(told.lines(&web, &backend), [""; 0]);
        (web.identity, backend.identity) = (Some(identity("web", "aa")), Some(identity("backend", "bb")));
        assert_eq!(told.lines(&web, &backend).len(), 2);
        let call = |caller: &str, server: &str| Call {
            caller: "w".into(),
            caller_serial: caller.into(),
            server: "b".into(),
            server_serial: server.into(),
        };
        (web.call, web.calls) = (Some(call("aa", "bb")), 1);
        assert_eq!(
            told.lines(&web, &backend),
            ["web → backend: handshake with …aa and …bb; 1 so far, 0 failed"]
        );
        web.calls = 2;
        assert_eq!(told.lines(&web, &backend), [""; 0]);
        web.identity = Some(identity("web", "cc"));
        let renewed = "web     has a new certificate cc until 1970-01-01T00:00:00Z, by issuer-1";
        assert_eq!(told.lines(&web, &backend), [renewed]);
        web.call = Some(call("cc", "bb"));
        assert_eq!(told.lines(&web, &backend).len(), 1);
        (web.failures, web.failure, web.ended) = (1, Some("x".into()), true);
        assert_eq!(told.lines(&web, &backend).len(), 2);
        assert!(told.ended);
    }

    #[test]
    fn one_screen_has_at_most_25_lines_with_real_paths() {
        let workload = Workload {
            spiffe_id: "spiffe://dev.example.org/ns/shop/sa/web".into(),
            serial: "00".into(),
            valid_until: "2026-11-22T13:00:00Z".into(),
            renew_at: "2026-11-22T12:30:00Z".into(),
        };
        let facts = Facts {
            place: Place::below(Path::new("/tmp/it's here")),
            address: "127.0.0.1:1".into(),
            web: None,
            root: Digest::ZERO,
            root_until: Timestamp::EPOCH,
            node: "n".into(),
            workload,
            mesh: Mesh { agent: "a".into(), web: identity("web", "aa"), backend: identity("backend", "bb") },
            ledger: Ledger { entries: 3, head: "3:00".into() },
            latency: Latency { count: 1, median: Duration::ZERO, worst: Duration::ZERO },
        };
        let text = text(&facts, true);
        assert!(text.lines().count() <= 25, "{text}");
        assert!(text.contains(r"RHIZOME_SERVER=unix://'/tmp/it'\''s here/admin.sock'"), "{text}");
    }
}
