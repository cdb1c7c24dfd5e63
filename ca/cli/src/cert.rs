//! `rhizome cert`: certificates, as the ledger knows them.
//!
//! Laws: revoking is a dry run unless `--yes` is given. Not here: asking for a certificate (`request.rs`).

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rhizome_id::{Serial, SpiffeId, Timestamp};
use rhizome_proto::admin::v1::certificate_admin_service_client::CertificateAdminServiceClient;
use rhizome_proto::admin::v1::revoke_certificates_request::Target;
use rhizome_proto::admin::v1::{
    CertificateKind, CertificateRecord, GetCertificateRequest, ListCertificatesRequest,
    RevokeCertificatesRequest, RevokeCertificatesResponse,
};
use rhizome_x509::{LeafFacts, inspect};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::files;
use crate::node::NodeArgument;
use crate::output::{View, details, instant_with_distance, relative, table};
use crate::request::{self, RequestCertificate};
use crate::session::{Session, call};
use crate::wire;

/// Largest certificate file read, in bytes: a long chain takes some 20 KiB.
const FILE_LIMIT: u64 = 1024 * 1024;

/// See, ask for and revoke certificates
#[derive(Subcommand, Clone, Debug)]
pub enum CertVerb {
    /// List certificates, newest first
    List(ListCertificates),
    /// Show one certificate
    Show(ShowCertificate),
    /// Revoke certificates; without --yes, say which those are
    Revoke(RevokeCertificates),
    /// Make a key and get a certificate for a workload, as the node given by --identity
    Request(Box<RequestCertificate>),
}

/// Which certificates to list.
#[derive(Args, Clone, Debug)]
pub struct ListCertificates {
    /// Only those with this SPIFFE ID
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,

    /// Only those that this node asked for: CLUSTER/METHOD/NAME
    #[arg(long, value_name = "ID")]
    node: Option<NodeArgument>,

    /// Also show expired certificates
    #[arg(long)]
    all: bool,

    /// Show at most this many; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
}

/// Which certificate to show.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct ShowCertificate {
    /// The serial number, in hexadecimal, with or without colons: what the ledger says about it
    serial: Option<Serial>,

    /// A PEM file (- for standard input): what the certificates in it say; asks no server
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Which certificates to revoke.
#[derive(Args, Clone, Debug)]
pub struct RevokeCertificates {
    #[command(flatten)]
    target: RevocationTarget,

    /// Why, for the audit log
    #[arg(long)]
    reason: String,

    /// Do it; without this, only say what would be revoked
    #[arg(long)]
    yes: bool,
}

/// One certificate, or all of an identity or a node.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct RevocationTarget {
    /// The certificate with this serial number
    #[arg(long, value_name = "HEX")]
    serial: Option<Serial>,

    /// All unexpired certificates with this SPIFFE ID
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,

    /// All unexpired certificates that this node asked for, its own included: CLUSTER/METHOD/NAME
    #[arg(long, value_name = "ID")]
    node: Option<NodeArgument>,
}

pub(crate) async fn run(verb: CertVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    match verb {
        CertVerb::Request(wish) => return request::run(&wish, session).await,
        CertVerb::List(wish) => {
            let mut client = CertificateAdminServiceClient::new(session.channel().await?);
            let listed = wire::pages(wish.limit, async |page_size, page_token| {
                let page =
                    client.list_certificates(call(wish.page(page_size, page_token))).await?.into_inner();
                Ok((page.certificates, page.next_page_token))
            })
            .await?;
            session.show(&list(listed.items, listed.more, session.now())?)?;
            wire::remark_more(session, listed.more);
        }
        CertVerb::Show(ShowCertificate { file: Some(path), .. }) => {
            let pem = files::read_limited(&path, FILE_LIMIT)?;
            session.show(&inspected(&pem, session.now())?)?;
        }
        CertVerb::Show(ShowCertificate { serial, file: None }) => {
            let mut client = CertificateAdminServiceClient::new(session.channel().await?);
            let serial = serial.map(String::from).unwrap_or_default();
            let answer = client.get_certificate(call(GetCertificateRequest { serial })).await?.into_inner();
            session.show(&one(wire::promised(answer.certificate, "the certificate")?, session.now())?)?;
        }
        CertVerb::Revoke(wish) => {
            let mut client = CertificateAdminServiceClient::new(session.channel().await?);
            let answer = client.revoke_certificates(call(wish.into())).await?.into_inner();
            session.show(&revoked(&answer)?)?;
            if !answer.applied {
                session.remark("nothing was changed; repeat with --yes to revoke");
            }
        }
    }
    Ok(Exit::Done)
}

impl ListCertificates {
    fn page(&self, page_size: u32, page_token: String) -> ListCertificatesRequest {
        ListCertificatesRequest {
            page_size,
            page_token,
            spiffe_id: self.spiffe_id.as_ref().map(SpiffeId::to_string).unwrap_or_default(),
            node_id: self.node.clone().map(String::from).unwrap_or_default(),
            unexpired_only: !self.all,
        }
    }
}

impl From<RevokeCertificates> for RevokeCertificatesRequest {
    fn from(wish: RevokeCertificates) -> Self {
        let RevocationTarget { serial, spiffe_id, node } = wish.target;
        let target = serial
            .map(|serial| Target::Serial(serial.to_string()))
            .or_else(|| spiffe_id.map(|id| Target::SpiffeId(id.to_string())))
            .or_else(|| node.map(|node| Target::NodeId(node.into())));
        Self { target, reason: wish.reason, dry_run: !wish.yes }
    }
}

#[derive(Serialize)]
struct CertificateRow {
    serial: String,
    spiffe_id: String,
    kind: &'static str,
    caller: String,
    rule: Option<String>,
    issuer_id: String,
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
    recorded_at: Option<Timestamp>,
    key_digest: Option<String>,
    tbs_digest: Option<String>,
    dns_names: Vec<String>,
    ledger_sequence: u64,
    revoked_at: Option<Timestamp>,
    revoked_by: Option<String>,
    revocation_reason: Option<String>,
}

impl CertificateRow {
    fn state(&self, now: Timestamp) -> &'static str {
        if self.revoked_at.is_some() {
            "revoked"
        } else if self.not_after.is_some_and(|not_after| not_after < now) {
            "expired"
        } else {
            "valid"
        }
    }
}

impl From<CertificateRecord> for CertificateRow {
    fn from(record: CertificateRecord) -> Self {
        Self {
            kind: match record.kind() {
                CertificateKind::Workload => "workload",
                CertificateKind::Node => "node",
                CertificateKind::Admin => "admin",
                CertificateKind::Server => "server",
                CertificateKind::Authority => "authority",
                CertificateKind::Unspecified => "unknown",
            },
            not_before: wire::instant(record.not_before.as_ref()),
            not_after: wire::instant(record.not_after.as_ref()),
            recorded_at: wire::instant(record.recorded_at.as_ref()),
            revoked_at: wire::instant(record.revoked_at.as_ref()),
            key_digest: wire::hexadecimal(&record.key_digest),
            tbs_digest: wire::hexadecimal(&record.tbs_digest),
            serial: record.serial,
            spiffe_id: record.spiffe_id,
            caller: record.caller,
            rule: wire::text(record.rule),
            issuer_id: record.issuer_id,
            dns_names: record.dns_names,
            ledger_sequence: record.ledger_sequence,
            revoked_by: wire::text(record.revoked_by),
            revocation_reason: wire::text(record.revocation_reason),
        }
    }
}

fn list(records: Vec<CertificateRecord>, more: bool, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<CertificateRow> = records.into_iter().map(CertificateRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.serial.clone(),
            row.spiffe_id.clone(),
            row.state(now).to_owned(),
            relative(row.not_after, now),
            row.caller.clone(),
        ]
    });
    let heading = ["SERIAL", "SPIFFE ID", "STATE", "EXPIRES", "ASKED FOR BY"];
    let text = table(&heading, cells, "no certificates (--all also shows expired ones)");
    View::list("certificates", &rows, more, text)
}

fn one(record: CertificateRecord, now: Timestamp) -> Result<View, Failure> {
    let row = CertificateRow::from(record);
    let text = details([
        ("serial", row.serial.clone()),
        ("spiffe id", row.spiffe_id.clone()),
        ("kind", row.kind.to_owned()),
        ("state", row.state(now).to_owned()),
        ("revoked", instant_with_distance(row.revoked_at, now)),
        ("revoked by", row.revoked_by.clone().unwrap_or_default()),
        ("revocation reason", row.revocation_reason.clone().unwrap_or_default()),
        ("asked for by", row.caller.clone()),
        ("rule", row.rule.clone().unwrap_or_default()),
        ("issuer", row.issuer_id.clone()),
        ("dns names", row.dns_names.join(" ")),
        ("valid from", instant_with_distance(row.not_before, now)),
        ("valid until", instant_with_distance(row.not_after, now)),
        ("key sha256", row.key_digest.clone().unwrap_or_default()),
        ("tbs sha256", row.tbs_digest.clone().unwrap_or_default()),
        ("ledger entry", row.ledger_sequence.to_string()),
    ]);
    View::new(&row, text)
}

#[derive(Serialize)]
struct RevokedRow<'a> {
    applied: bool,
    count: u64,
    serials: &'a [String],
}

fn revoked(answer: &RevokeCertificatesResponse) -> Result<View, Failure> {
    let done = if answer.applied { "revoked" } else { "would revoke" };
    let mut text = format!("{done} {} certificate(s)\n", answer.count);
    for serial in &answer.serials {
        text.push_str(&format!("  {}\n", crate::output::printable(serial)));
    }
    let unlisted = answer.count.saturating_sub(u64::try_from(answer.serials.len()).unwrap_or(answer.count));
    if unlisted > 0 {
        text.push_str(&format!("  and {unlisted} more\n"));
    }
    let row = RevokedRow { applied: answer.applied, count: answer.count, serials: &answer.serials };
    View::new(&row, text)
}

#[derive(Serialize)]
struct InspectedRow {
    spiffe_id: Option<String>,
    subject: String,
    issuer: String,
    serial: String,
    dns_names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
    is_ca: bool,
    issuer_key_id: Option<String>,
    key_digest: String,
    fingerprint: String,
}

impl From<LeafFacts> for InspectedRow {
    fn from(facts: LeafFacts) -> Self {
        Self {
            spiffe_id: facts.spiffe_id.map(String::from),
            subject: facts.subject,
            issuer: facts.issuer,
            serial: hex::encode(facts.serial),
            dns_names: facts.dns_names,
            not_before: facts.not_before,
            not_after: facts.not_after,
            is_ca: facts.is_ca,
            issuer_key_id: facts.issuer_key_id.map(hex::encode),
            key_digest: facts.public_key_digest.to_string(),
            fingerprint: facts.fingerprint.to_string(),
        }
    }
}

fn inspected(pem: &[u8], now: Timestamp) -> Result<View, Failure> {
    let mut rows = Vec::new();
    for block in CertificateDer::pem_slice_iter(pem) {
        let der = block.map_err(|error| Failure::usage(format!("the file is not PEM: {error}")))?;
        let facts = inspect(&der).map_err(|error| Failure::usage(error.to_string()))?;
        rows.push(InspectedRow::from(facts));
    }
    if rows.is_empty() {
        return Err(Failure::usage("there is no certificate in the file"));
    }
    let blocks: Vec<String> = rows.iter().map(|row| inspected_details(row, now)).collect();
    View::list("certificates", &rows, false, blocks.join("\n"))
}

fn inspected_details(row: &InspectedRow, now: Timestamp) -> String {
    details([
        ("spiffe id", row.spiffe_id.clone().unwrap_or_default()),
        ("subject", row.subject.clone()),
        ("issuer", row.issuer.clone()),
        ("serial", row.serial.clone()),
        ("dns names", row.dns_names.join(" ")),
        ("valid from", instant_with_distance(Some(row.not_before), now)),
        ("valid until", instant_with_distance(Some(row.not_after), now)),
        ("authority", if row.is_ca { "yes".to_owned() } else { String::new() }),
        ("issuer key", row.issuer_key_id.clone().unwrap_or_default()),
        ("key sha256", row.key_digest.clone()),
        ("sha256", row.fingerprint.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_revoked_before_it_is_expired_before_it_is_valid() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let record = CertificateRecord { not_after: at(100), ..CertificateRecord::default() };
        let state = |record: &CertificateRecord, now| {
            CertificateRow::from(record.clone()).state(Timestamp::from_unix(now))
        };
        assert_eq!(state(&record, 100), "valid", "NotAfter is inclusive");
        assert_eq!(state(&record, 101), "expired");
        let revoked = CertificateRecord { revoked_at: at(50), ..record };
        assert_eq!(state(&revoked, 101), "revoked");
    }

    #[test]
    fn a_dry_run_never_says_that_something_was_revoked() {
        let answer = RevokeCertificatesResponse { serials: vec!["40".repeat(20)], count: 3, applied: false };
        let view = revoked(&answer).unwrap();
        assert_eq!(
            view.text,
            format!("would revoke 3 certificate(s)\n  {}\n  and 2 more\n", "40".repeat(20))
        );
        assert_eq!(view.json["applied"], false);
    }

    #[test]
    fn revoking_is_a_dry_run_unless_it_was_confirmed() {
        let wish = |yes| RevokeCertificates {
            target: RevocationTarget { serial: None, spiffe_id: None, node: "c/m/n".parse().ok() },
            reason: "stolen".into(),
            yes,
        };
        assert!(RevokeCertificatesRequest::from(wish(false)).dry_run);
        let sure = RevokeCertificatesRequest::from(wish(true));
        assert_eq!((sure.dry_run, sure.target), (false, Some(Target::NodeId("c/m/n".into()))));
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        assert_eq!(inspected(b"hello", Timestamp::EPOCH).unwrap_err().exit(), Exit::Usage);
    }
}
