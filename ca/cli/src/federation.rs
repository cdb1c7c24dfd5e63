//! `rhizome federation`: foreign trust domains whose bundles this authority fetches.
//!
//! Laws: what widens trust is said in so many words: domain, address, how the endpoint proves itself, and by what the
//! first bundle is known. A fetch that brought nothing is no failure of the verb that asked for something else, and is
//! said. Not here: fetching and judging (the server).
//! Sources: SPIFFE Federation §5 and §7.2.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use rhizome_id::{Digest, SpiffeId, Timestamp, TrustDomain};
use rhizome_proto::admin::v1::federation_service_client::FederationServiceClient;
use rhizome_proto::admin::v1::{
    CreateRelationshipRequest, DeleteRelationshipRequest, EndpointProfile, GetRelationshipRequest,
    ListRelationshipsRequest, RefreshRelationshipRequest, Relationship, RelationshipOutlook,
    SetFederatedBundleRequest,
};
use rhizome_x509::{Bundle, CaCertificate};
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::files::read_limited;
use crate::output::{View, details, instant_with_distance, printable, relative, table, yes_no};
use crate::session::{Session, call};
use crate::wire;

/// Manage federation: foreign trust domains whose bundles this authority fetches
#[derive(Subcommand, Clone, Debug)]
pub enum FederationVerb {
    /// Begin to trust a foreign trust domain, for those workloads whose rule federates with it
    Add(Box<AddRelationship>),
    /// List foreign trust domains, and how fresh their bundles are
    List,
    /// Show one: its bundle, how fetching goes, and which nodes have it
    Show {
        /// The foreign trust domain
        trust_domain: TrustDomain,
    },
    /// Fetch its bundle now; exit code 6 when that fails
    Refresh {
        /// The foreign trust domain
        trust_domain: TrustDomain,
    },
    /// Put a bundle in force by hand, whatever its sequence
    SetBundle {
        /// The foreign trust domain
        trust_domain: TrustDomain,
        /// The bundle as a SPIFFE document (JSON), or - for standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Trust nothing of a foreign trust domain any more
    Remove {
        /// The foreign trust domain
        trust_domain: TrustDomain,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
}

/// How an endpoint proves itself, on the command line.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub enum ProfileArgument {
    /// By a certificate of the public web for its host name
    HttpsWeb,
    /// By an X509-SVID with the identity that --endpoint-id says
    HttpsSpiffe,
}

/// With whom, and how they are known.
#[derive(Args, Clone, Debug)]
pub struct AddRelationship {
    /// The foreign trust domain
    trust_domain: TrustDomain,

    /// Where it publishes its bundle: https://…
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    url: String,

    /// How that endpoint proves itself
    #[arg(long, value_enum)]
    profile: ProfileArgument,

    /// The endpoint's SPIFFE ID, with --profile https_spiffe
    #[arg(long, value_name = "SPIFFE-ID", required_if_eq("profile", "https_spiffe"))]
    endpoint_id: Option<SpiffeId>,

    /// A root that the first bundle must hold: its SHA-256, as `bundle show` prints it there. An endpoint that proves
    /// itself by the very bundle that is fetched needs this or --bundle
    #[arg(long, value_name = "SHA256")]
    first_fetch_fingerprint: Option<Digest>,

    /// Begin with this bundle, a SPIFFE document (JSON), or - for standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    bundle: Option<PathBuf>,

    /// The endpoint's host may have an address that is not public; redirects to other hosts never may
    #[arg(long)]
    allow_private_addresses: bool,
}

type Client = FederationServiceClient<tonic::transport::Channel>;

pub(crate) async fn run(verb: FederationVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = FederationServiceClient::new(session.channel().await?);
    let relationship = match verb {
        FederationVerb::Add(wish) => {
            let request = wish.request()?;
            client.create_relationship(call(request)).await?.into_inner().relationship
        }
        FederationVerb::List => {
            let answer = client.list_relationships(call(ListRelationshipsRequest {})).await?.into_inner();
            session.show(&list(answer.relationships, session.now())?)?;
            return Ok(Exit::Done);
        }
        FederationVerb::Show { trust_domain } => {
            let request = GetRelationshipRequest { trust_domain: trust_domain.into() };
            client.get_relationship(call(request)).await?.into_inner().relationship
        }
        FederationVerb::Refresh { trust_domain } => return refresh(trust_domain, &mut client, session).await,
        FederationVerb::SetBundle { trust_domain, file, reason } => {
            let bundle_json = read_bundle(&file)?;
            let request =
                SetFederatedBundleRequest { trust_domain: trust_domain.into(), bundle_json, reason };
            client.set_federated_bundle(call(request)).await?.into_inner().relationship
        }
        FederationVerb::Remove { trust_domain, reason } => {
            let request = DeleteRelationshipRequest { trust_domain: trust_domain.into(), reason };
            let relationship = client.delete_relationship(call(request)).await?.into_inner().relationship;
            session.show(&removed(wire::promised(relationship, "the relationship")?)?)?;
            return Ok(Exit::Done);
        }
    };
    session.show(&one(wire::promised(relationship, "the relationship")?, session.now())?)?;
    Ok(Exit::Done)
}

async fn refresh(
    trust_domain: TrustDomain,
    client: &mut Client,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Failure> {
    let request = RefreshRelationshipRequest { trust_domain: trust_domain.into() };
    let relationship = client.refresh_relationship(call(request)).await?.into_inner().relationship;
    let relationship = wire::promised(relationship, "the relationship")?;
    let failed = !relationship.trouble_code.is_empty();
    session.show(&one(relationship, session.now())?)?;
    Ok(if failed { Exit::CheckFailed } else { Exit::Done })
}

impl AddRelationship {
    fn request(self) -> Result<CreateRelationshipRequest, Failure> {
        let profile = match self.profile {
            ProfileArgument::HttpsWeb => EndpointProfile::HttpsWeb,
            ProfileArgument::HttpsSpiffe => EndpointProfile::HttpsSpiffe,
        };
        let fingerprint = self.first_fetch_fingerprint.map(|digest| digest.as_bytes().to_vec());
        Ok(CreateRelationshipRequest {
            trust_domain: self.trust_domain.into(),
            url: self.url,
            profile: profile.into(),
            endpoint_spiffe_id: self.endpoint_id.map(String::from).unwrap_or_default(),
            first_fetch_sha256: fingerprint.unwrap_or_default().into(),
            private_addresses: self.allow_private_addresses,
            bundle_json: self.bundle.as_deref().map(read_bundle).transpose()?.unwrap_or_default(),
        })
    }
}

fn read_bundle(path: &Path) -> Result<String, Failure> {
    let limit = u64::try_from(Bundle::MAX_JSON_BYTES).unwrap_or(u64::MAX);
    let bytes = read_limited(path, limit)?;
    String::from_utf8(bytes).map_err(|_binary| Failure::usage(format!("{} is not text", path.display())))
}

#[derive(Serialize)]
struct RelationshipRow {
    trust_domain: String,
    url: String,
    profile: &'static str,
    endpoint_spiffe_id: Option<String>,
    first_fetch_sha256: Option<String>,
    private_addresses: bool,
    created_at: Option<Timestamp>,
    created_by: String,
    outlook: &'static str,
    /// Absent: no bundle is in force.
    sequence: Option<u64>,
    digest: Option<String>,
    root_sha256: Vec<String>,
    jwt_kids: Vec<String>,
    refresh_hint_seconds: Option<i64>,
    in_force_since: Option<Timestamp>,
    set_by: Option<String>,
    tried_at: Option<Timestamp>,
    succeeded_at: Option<Timestamp>,
    next_fetch_at: Option<Timestamp>,
    failures: u32,
    trouble_code: Option<String>,
    trouble_detail: Option<String>,
    trouble_since: Option<Timestamp>,
    ignored_entries: u64,
    holder_count: u64,
    behind_count: u64,
    behind: Vec<String>,
}

impl From<Relationship> for RelationshipRow {
    fn from(it: Relationship) -> Self {
        let profile = match it.profile() {
            EndpointProfile::HttpsWeb => "https_web",
            EndpointProfile::HttpsSpiffe => "https_spiffe",
            EndpointProfile::Unspecified => "unknown",
        };
        let outlook = match it.outlook() {
            RelationshipOutlook::Awaited => "awaited",
            RelationshipOutlook::Current => "current",
            RelationshipOutlook::Failing => "failing",
            RelationshipOutlook::Refused => "refused",
            RelationshipOutlook::Old => "old",
            RelationshipOutlook::Unspecified => "unknown",
        };
        let bundle = it.bundle.as_ref();
        let roots = bundle.iter().flat_map(|bundle| &bundle.anchors_der);
        let fingerprint = |der: &bytes::Bytes| CaCertificate::parse(der).ok();
        Self {
            profile,
            outlook,
            sequence: bundle.map(|bundle| bundle.sequence),
            digest: bundle.and_then(|bundle| wire::hexadecimal(&bundle.digest)),
            root_sha256: roots.filter_map(fingerprint).map(|root| root.fingerprint().to_string()).collect(),
            jwt_kids: bundle.iter().flat_map(|bundle| &bundle.jwt_keys).map(|key| key.kid.clone()).collect(),
            refresh_hint_seconds: bundle.map(|bundle| bundle.refresh_hint_seconds),
            endpoint_spiffe_id: wire::text(it.endpoint_spiffe_id),
            first_fetch_sha256: wire::hexadecimal(&it.first_fetch_sha256),
            created_at: wire::instant(it.created_at.as_ref()),
            in_force_since: wire::instant(it.in_force_since.as_ref()),
            set_by: wire::text(it.set_by),
            tried_at: wire::instant(it.tried_at.as_ref()),
            succeeded_at: wire::instant(it.succeeded_at.as_ref()),
            next_fetch_at: wire::instant(it.next_fetch_at.as_ref()),
            trouble_code: wire::text(it.trouble_code),
            trouble_detail: wire::text(it.trouble_detail),
            trouble_since: wire::instant(it.trouble_since.as_ref()),
            trust_domain: it.trust_domain,
            url: it.url,
            private_addresses: it.private_addresses,
            created_by: it.created_by,
            failures: it.failures,
            ignored_entries: it.ignored_entries,
            holder_count: it.holder_count,
            behind_count: it.behind_count,
            behind: it.behind,
        }
    }
}

fn list(relationships: Vec<Relationship>, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<RelationshipRow> = relationships.into_iter().map(RelationshipRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.trust_domain.clone(),
            row.outlook.to_owned(),
            row.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string()),
            relative(row.succeeded_at, now),
            relative(row.next_fetch_at, now),
            held(row),
            row.profile.to_owned(),
            row.url.clone(),
        ]
    });
    let heading = ["TRUST DOMAIN", "STATE", "SEQUENCE", "FETCHED", "NEXT", "NODES", "PROFILE", "URL"];
    let nothing = "no foreign trust domains; `rhizome federation add` begins with one";
    View::list("relationships", &rows, false, table(&heading, cells, nothing))
}

fn held(row: &RelationshipRow) -> String {
    format!("{} of {}", row.holder_count, row.holder_count.saturating_add(row.behind_count))
}

fn one(relationship: Relationship, now: Timestamp) -> Result<View, Failure> {
    let row = RelationshipRow::from(relationship);
    let trouble = match (&row.trouble_code, &row.trouble_detail) {
        (Some(code), detail) => format!("{} ({code})", detail.clone().unwrap_or_default()),
        (None, _) => String::new(),
    };
    let (roots, keys) = (row.root_sha256.len(), row.jwt_kids.len());
    let bundle = row.sequence.map(|sequence| format!("sequence {sequence}, {roots} roots, {keys} JWT keys"));
    let bundle = bundle.unwrap_or_else(|| "none yet".to_owned());
    let text = details([
        ("trust domain", row.trust_domain.clone()),
        ("state", row.outlook.to_owned()),
        ("trouble", trouble),
        ("trouble since", instant_with_distance(row.trouble_since, now)),
        ("bundle", bundle),
        ("roots sha256", row.root_sha256.join(" ")),
        ("JWT keys", row.jwt_kids.join(" ")),
        ("in force since", instant_with_distance(row.in_force_since, now)),
        ("set by", row.set_by.clone().unwrap_or_default()),
        ("url", row.url.clone()),
        ("profile", row.profile.to_owned()),
        ("endpoint", row.endpoint_spiffe_id.clone().unwrap_or_default()),
        ("first fetch sha256", row.first_fetch_sha256.clone().unwrap_or_default()),
        ("private addresses", yes_no(row.private_addresses)),
        ("fetched", instant_with_distance(row.succeeded_at, now)),
        ("tried", instant_with_distance(row.tried_at, now)),
        ("next fetch", instant_with_distance(row.next_fetch_at, now)),
        ("failures", row.failures.to_string()),
        ("ignored entries", row.ignored_entries.to_string()),
        ("nodes", held(&row)),
        ("behind", row.behind.join(" ")),
        ("begun", instant_with_distance(row.created_at, now)),
        ("begun by", row.created_by.clone()),
    ]);
    View::new(&row, text)
}

/// What ending a relationship did; the record as it was goes to programs only.
fn removed(relationship: Relationship) -> Result<View, Failure> {
    let row = RelationshipRow::from(relationship);
    let text = format!(
        "removed {}: its bundle is taken from every node, and nothing of it is trusted\n",
        printable(&row.trust_domain)
    );
    View::new(&json!({ "removed": true, "relationship": row }), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Relationship {
        Relationship {
            trust_domain: "partner.example".to_owned(),
            url: "https://partner.example/bundle".to_owned(),
            profile: EndpointProfile::HttpsWeb.into(),
            outlook: RelationshipOutlook::Refused.into(),
            trouble_code: "older_sequence".to_owned(),
            trouble_detail: "older\u{1b}[1m".to_owned(),
            succeeded_at: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
            failures: 2,
            holder_count: 1,
            behind_count: 1,
            behind: vec!["node:prod/join_token/vm-1".to_owned()],
            ..Relationship::default()
        }
    }

    #[test]
    fn foreign_domains_are_listed_with_how_fresh_their_bundles_are_and_who_has_them() {
        let view = list(vec![sample()], Timestamp::EPOCH).unwrap();
        assert_eq!(
            view.text,
            "TRUST DOMAIN     STATE    SEQUENCE  FETCHED  NEXT  NODES   PROFILE    URL\n\
             partner.example  refused  -         in 1m    -     1 of 2  https_web  https://partner.example/bundle\n"
        );
        assert_eq!(view.json["relationships"][0]["outlook"], "refused");
        let nothing = list(Vec::new(), Timestamp::EPOCH).unwrap();
        assert!(nothing.text.contains("federation add"), "{}", nothing.text);
    }

    #[test]
    fn one_is_shown_with_its_trouble_and_whoever_is_behind() {
        let view = one(sample(), Timestamp::EPOCH).unwrap();
        for part in ["refused", "older_sequence", "none yet", "1 of 2", "node:prod/join_token/vm-1"] {
            assert!(view.text.contains(part), "{part}: {}", view.text);
        }
        assert!(!view.text.contains('\u{1b}'), "{:?}", view.text);
    }
}
