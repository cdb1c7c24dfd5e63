//! `rhizome bundle`: the trust bundle and who holds it.
//!
//! Laws: what is written out was checked to be the bundle whose digest the server states. Not here: fetching a bundle
//! from a server that has not been verified (`join.rs`).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rhizome_id::Timestamp;
use rhizome_proto::admin::v1::bundle_admin_service_client::BundleAdminServiceClient;
use rhizome_proto::admin::v1::{BundleSubscriber, ShowBundleRequest};
use rhizome_proto::ca::v1::GetBundleRequest;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_x509::{Bundle, CaCertificate};
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::files;
use crate::issued::bundle_of;
use crate::output::{View, details, relative, table, yes_no};
use crate::session::{Session, call};
use crate::wire;

/// See and fetch the trust bundle
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
    let text = format!("{head}\n{anchor_table}\n{}", subscriber_table(&subscribers, now));
    let json = json!({
        "trust_domain": bundle.trust_domain(),
        "sequence": bundle.sequence(),
        "digest": bundle.digest(),
        "refresh_hint_seconds": bundle.refresh_hint().seconds(),
        "anchors": anchors,
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
