//! What `rhizome dev` shows: one screen, with commands that work as they stand.
//!
//! Laws: at most 25 lines; every path and address in a command is the real one.

use std::env;
use std::path::Path;

use super::TRUST_DOMAIN;
use super::walk::{ACCOUNT, CLUSTER, FOREIGN, Facts, NAMESPACE, NODE};

/// One screen about a trial that went well.
pub(super) fn text(facts: &Facts, removed: bool) -> String {
    let Facts { place, address, web, root, root_until, node, workload, ledger, latency } = facts;
    let program = env::current_exe().map_or_else(|_unknown| "rhizome".to_owned(), |path| quoted(&path));
    let (socket, identity) = (quoted(&place.socket), quoted(&place.node));
    let chain = quoted(&place.workload.join("chain.pem"));
    let web = web.as_ref().map_or_else(|| "off".to_owned(), |web| format!("http://{web}/metrics"));
    let end = if removed { "Ctrl-C stops it and removes everything." } else { "Ctrl-C stops it." };
    let vouch = format!("--namespace {NAMESPACE} --service-account {ACCOUNT}");
    let (configuration, entries, head) = (place.config.display(), ledger.entries, &ledger.head);
    format!(
        "Rhizome runs: a certificate authority on loopback, a node, and a workload's certificate.\n\
         \n\
         trust domain   {TRUST_DOMAIN}, configured by {configuration}\n\
         gRPC, mTLS     {address}\n\
         metrics        {web}\n\
         root           sha256 {root}, until {root_until}\n\
         node           {node}\n\
         workload       {spiffe_id}\n\
         serial         {serial}\n\
         valid until    {valid_until}, renewed at {renew_at}\n\
         verified       as client and as server, up to the pinned root\n\
         ledger         {entries} entries verified, head {head}\n\
         one issuance   {latency}\n\
         \n\
         Try next, in another terminal:\n\
         alias rhizome={program}; export RHIZOME_SERVER=unix://{socket}\n\
         rhizome cert list\n\
         rhizome explain --node {CLUSTER}/join_token/{NODE} {vouch}\n\
         rhizome explain --node {CLUSTER}/join_token/{NODE} --namespace {FOREIGN} --service-account {ACCOUNT}\n\
         rhizome --server https://{address} --identity {identity} cert request {vouch} --out web\n\
         openssl x509 -noout -text -in {chain}\n\
         rhizome ledger verify\n\
         {end}\n",
        spiffe_id = workload.spiffe_id,
        serial = workload.serial,
        valid_until = workload.valid_until,
        renew_at = workload.renew_at,
    )
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
    use crate::dev::walk::{Latency, Ledger, Place, Workload};

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
            ledger: Ledger { entries: 3, head: "3:00".into() },
            latency: Latency { count: 1, median: Duration::ZERO, worst: Duration::ZERO },
        };
        let text = text(&facts, true);
        assert!(text.lines().count() <= 25, "{text}");
        assert!(text.contains(r"RHIZOME_SERVER=unix://'/tmp/it'\''s here/admin.sock'"), "{text}");
    }
}
