//! `rhizome bundle`: the trust bundle, who holds it, and the revocation lists.
//!
//! Laws: what is written out was checked to be the bundle whose digest the server states. Not here: fetching a bundle
//! from a server that has not been verified (`join.rs`).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rhizome_id::{AuthorityId, Timestamp};
use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::{BundleSubscriber, Crl, ListCrlsRequest, ShowBundleRequest};
use rhizome_proto::ca::v1::GetBundleRequest;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_x509::{Bundle, CaCertificate, JwtKey};
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::files;
use crate::issued::bundle_of;
use crate::output::{View, details, relative, table, yes_no};
use crate::pem;
use crate::session::{Session, call};
use crate::wire;

/// See and fetch the trust bundle and the revocation lists
#[derive(Subcommand, Clone, Debug)]
pub enum BundleVerb {
    /// Show the bundle, and who has acknowledged it
    Show {
        /// Show at most this many subscribers; 0 for all
        #[arg(long, value_name = "COUNT", default_value_t = 100)]
        limit: usize,
    },
    /// Fetch the bundle, for verifiers
    Get(FetchBundle),
    /// Show or fetch the certificate revocation lists, one for each issuer
    Crl(FetchCrls),
}

/// How to write the revocation lists.
#[derive(Args, Clone, Debug)]
pub struct FetchCrls {
    /// The form to write them in; without it they are listed
    #[arg(long, value_enum)]
    format: Option<CrlFormat>,

    /// The file to write [default: standard output]
    #[arg(long, value_name = "FILE", requires = "format")]
    out: Option<PathBuf>,

    /// Only the list of this issuer
    #[arg(long, value_name = "AUTHORITY")]
    issuer: Option<AuthorityId>,
}

/// Forms of revocation lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CrlFormat {
    /// PEM, one after the other
    Pem,
    /// DER of one list; name the --issuer when there are several
    Der,
}

/// How to write the bundle.
#[derive(Args, Clone, Debug)]
pub struct FetchBundle {
    /// The form to write it in
    #[arg(long, value_enum, default_value_t)]
    format: BundleFormat,

    /// The file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Forms of a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BundleFormat {
    /// Certificates in PEM, one after the other
    #[default]
    Pem,
    /// Certificates in DER, one after the other
    Der,
    /// The JSON document of SPIFFE Trust Domain and Bundle
    Spiffe,
}

pub(crate) async fn run(verb: BundleVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    match verb {
        BundleVerb::Show { limit } => show(limit, session).await?,
        BundleVerb::Get(wish) => fetch(&wish, session).await?,
        BundleVerb::Crl(wish) => crls(&wish, session).await?,
    }
    Ok(Exit::Done)
}

async fn show(limit: usize, session: &mut Session<'_, '_>) -> Result<(), Failure> {
    let mut client = BundleAdminServiceClient::new(session.channel().await?);
    let mut first = None;
    let listed = wire::pages(limit, async |page_size, page_token| {
        let request = ShowBundleRequest { page_size, page_token };
        let mut page = client.show_bundle(call(request)).await?.into_inner();
        let subscribers = std::mem::take(&mut page.subscribers);
        let next = std::mem::take(&mut page.next_page_token);
        first.get_or_insert(page);
        Ok((subscribers, next))
    })
    .await?;
    let first = wire::promised(first, "the bundle")?;
    let bundle = bundle_of(&wire::promised(first.bundle, "the bundle")?)?;
    let counts = Counts { subscribers: first.subscriber_count, behind: first.behind_count };
    session.show(&shown(&bundle, listed.items, listed.more, counts, session.now())?)?;
    wire::remark_more(session, listed.more);
    Ok(())
}

async fn fetch(wish: &FetchBundle, session: &mut Session<'_, '_>) -> Result<(), Failure> {
    let to_terminal = wish.out.is_none() && session.terminal();
    if wish.format == BundleFormat::Der && to_terminal {
        return Err(Failure::usage("DER is binary and would garble the terminal")
            .hint("give --out FILE, or redirect"));
    }
    let mut client = BundleServiceClient::new(session.channel().await?);
    let answer = client.get_bundle(call(GetBundleRequest::default())).await?.into_inner();
    let bundle = bundle_of(&wire::promised(answer.bundle, "the bundle")?)?;
    let bytes = match wish.format {
        BundleFormat::Pem => bundle.to_pem().into_bytes(),
        BundleFormat::Der => bundle.to_der(),
        BundleFormat::Spiffe => bundle.to_spiffe_json().into_bytes(),
    };
    let Some(path) = &wish.out else {
        return session.write(&bytes);
    };
    files::write(path, &bytes, files::PUBLIC)?;
    let json = json!({
        "trust_domain": bundle.trust_domain(),
        "sequence": bundle.sequence(),
        "digest": bundle.digest(),
        "file": path.display().to_string(),
    });
    let text = details([
        ("trust domain", bundle.trust_domain().to_string()),
        ("sequence", bundle.sequence().to_string()),
        ("sha256", bundle.digest().to_string()),
        ("written to", path.display().to_string()),
    ]);
    session.show(&View::new(&json, text)?)
}

async fn crls(wish: &FetchCrls, session: &mut Session<'_, '_>) -> Result<(), Failure> {
    let mut client = BundleAdminServiceClient::new(session.channel().await?);
    let mut found = client.list_crls(call(ListCrlsRequest {})).await?.into_inner().crls;
    if let Some(issuer) = &wish.issuer {
        found.retain(|it| it.issuer_id == issuer.as_str());
        if found.is_empty() {
            return Err(Failure::usage(format!("there is no revocation list of {issuer}"))
                .hint("`rhizome bundle crl` lists them"));
        }
    }
    let Some(format) = wish.format else {
        return session.show(&listed_crls(&found, session.now())?);
    };
    let bytes = match (format, found.as_slice()) {
        (CrlFormat::Pem, all) => all
            .iter()
            .map(|it| pem::encode(pem::CRL, &it.crl_der).to_string())
            .collect::<String>()
            .into_bytes(),
        (CrlFormat::Der, [_]) if wish.out.is_none() && session.terminal() => {
            return Err(Failure::usage("DER is binary and would garble the terminal")
                .hint("give --out FILE, or redirect"));
        }
        (CrlFormat::Der, [only]) => only.crl_der.to_vec(),
        (CrlFormat::Der, _) => {
            return Err(Failure::usage("DER holds one list, and there are several; name the --issuer")
                .hint("`rhizome bundle crl` lists them"));
        }
    };
    let Some(path) = &wish.out else {
        return session.write(&bytes);
    };
    files::write(path, &bytes, files::PUBLIC)?;
    let json = json!({ "lists": found.len(), "file": path.display().to_string() });
    let text = details([("lists", found.len().to_string()), ("written to", path.display().to_string())]);
    session.show(&View::new(&json, text)?)
}

#[derive(Serialize)]
struct CrlRow {
    issuer: String,
    number: u64,
    signed_at: Option<Timestamp>,
    next_update: Option<Timestamp>,
    revoked_count: u64,
    pem: String,
}

fn listed_crls(found: &[Crl], now: Timestamp) -> Result<View, Failure> {
    let row = |it: &Crl| CrlRow {
        issuer: it.issuer_id.clone(),
        number: it.number,
        signed_at: wire::instant(it.signed_at.as_ref()),
        next_update: wire::instant(it.next_update.as_ref()),
        revoked_count: it.revoked_count,
        pem: pem::encode(pem::CRL, &it.crl_der).to_string(),
    };
    let rows: Vec<CrlRow> = found.iter().map(row).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.issuer.clone(),
            row.number.to_string(),
            row.revoked_count.to_string(),
            relative(row.signed_at, now),
            relative(row.next_update, now),
        ]
    });
    let text = table(&["ISSUER", "NUMBER", "REVOKED", "SIGNED", "NEXT UPDATE"], cells, "no revocation lists");
    View::list("crls", &rows, false, text)
}

#[derive(Clone, Copy)]
struct Counts {
    subscribers: u64,
    behind: u64,
}

#[derive(Serialize)]
struct AnchorRow {
    fingerprint: String,
    subject: String,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl From<&CaCertificate> for AnchorRow {
    fn from(anchor: &CaCertificate) -> Self {
        Self {
            fingerprint: anchor.fingerprint().to_string(),
            subject: anchor.subject().to_owned(),
            not_before: anchor.not_before(),
            not_after: anchor.not_after(),
        }
    }
}

#[derive(Serialize)]
struct JwtKeyRow {
    kid: String,
    public_key_sha256: String,
    not_after: Timestamp,
}

impl From<&JwtKey> for JwtKeyRow {
    fn from(key: &JwtKey) -> Self {
        Self {
            kid: key.kid().to_owned(),
            public_key_sha256: key.public_key().digest().to_string(),
            not_after: key.not_after(),
        }
    }
}

#[derive(Serialize)]
struct SubscriberRow {
    name: String,
    kind: String,
    acknowledged_sequence: u64,
    acknowledged_digest: Option<String>,
    acknowledged_at: Option<Timestamp>,
    last_seen: Option<Timestamp>,
    live_until: Option<Timestamp>,
    connected: bool,
    behind: bool,
}

impl From<BundleSubscriber> for SubscriberRow {
    fn from(subscriber: BundleSubscriber) -> Self {
        Self {
            acknowledged_digest: wire::hexadecimal(&subscriber.acknowledged_digest),
            acknowledged_at: wire::instant(subscriber.acknowledged_at.as_ref()),
            last_seen: wire::instant(subscriber.last_seen.as_ref()),
            live_until: wire::instant(subscriber.live_until.as_ref()),
            name: subscriber.name,
            kind: subscriber.kind,
            acknowledged_sequence: subscriber.acknowledged_sequence,
            connected: subscriber.connected,
            behind: subscriber.behind,
        }
    }
}

fn shown(
    bundle: &Bundle,
    subscribers: Vec<BundleSubscriber>,
    more: bool,
    counts: Counts,
    now: Timestamp,
) -> Result<View, Failure> {
    let anchors: Vec<AnchorRow> = bundle.anchors().iter().map(AnchorRow::from).collect();
    let subscribers: Vec<SubscriberRow> = subscribers.into_iter().map(SubscriberRow::from).collect();
    let head = details([
        ("trust domain", bundle.trust_domain().to_string()),
        ("sequence", bundle.sequence().to_string()),
        ("sha256", bundle.digest().to_string()),
        ("subscribers", format!("{}, of them {} behind", counts.subscribers, counts.behind)),
    ]);
    let anchor_cells = anchors
        .iter()
        .map(|row| vec![row.fingerprint.clone(), row.subject.clone(), relative(Some(row.not_after), now)]);
    let anchor_table = table(&["ROOT SHA256", "SUBJECT", "EXPIRES"], anchor_cells, "no roots");
    let jwt_keys: Vec<JwtKeyRow> = bundle.jwt_keys().iter().map(JwtKeyRow::from).collect();
    let jwt_cells = jwt_keys
        .iter()
        .map(|row| vec![row.kid.clone(), row.public_key_sha256.clone(), relative(Some(row.not_after), now)]);
    let jwt_table = table(&["JWT KEY", "SHA256", "EXPIRES"], jwt_cells, "no JWT keys");
    let text = format!("{head}\n{anchor_table}\n{jwt_table}\n{}", subscriber_table(&subscribers, now));
    let json = json!({
        "trust_domain": bundle.trust_domain(),
        "sequence": bundle.sequence(),
        "digest": bundle.digest(),
        "refresh_hint_seconds": bundle.refresh_hint().seconds(),
        "anchors": anchors,
        "jwt_keys": jwt_keys,
        "subscribers": subscribers,
        "more": more,
        "subscriber_count": counts.subscribers,
        "behind_count": counts.behind,
    });
    View::new(&json, text)
}

fn subscriber_table(subscribers: &[SubscriberRow], now: Timestamp) -> String {
    let cells = subscribers.iter().map(|row| {
        vec![
            row.name.clone(),
            row.acknowledged_sequence.to_string(),
            yes_no(row.behind),
            yes_no(row.connected),
            relative(row.last_seen, now),
            relative(row.live_until, now),
        ]
    });
    let heading = ["SUBSCRIBER", "BUNDLE", "BEHIND", "CONNECTED", "LAST SEEN", "MATTERS UNTIL"];
    table(&heading, cells, "nobody has subscribed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_are_shown_with_what_they_acknowledged() {
        let row = SubscriberRow::from(BundleSubscriber {
            name: "node:prod/join_token/vm-1".into(),
            acknowledged_sequence: 3,
            behind: true,
            ..BundleSubscriber::default()
        });
        assert_eq!(
            subscriber_table(&[row], Timestamp::EPOCH),
            "SUBSCRIBER                 BUNDLE  BEHIND  CONNECTED  LAST SEEN  MATTERS UNTIL\n\
             node:prod/join_token/vm-1  3       yes     no         -          -\n"
        );
    }
}
