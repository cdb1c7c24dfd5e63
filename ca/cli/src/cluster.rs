//! `rhizome cluster`: clusters with a Rhizome of their own below this one.
//!
//! Laws: what a cluster may issue is said in so many words, nothing is guessed; the join string is shown once, by the verb
//! that makes it. Not here: what a scope allows (`rhizome_core::clusters`), the other side (`authority.upstream`).

use clap::{Args, Subcommand};
use rhizome_id::{ClusterName, Timestamp, Ttl};
use rhizome_proto::admin::v1 as api;
use rhizome_proto::admin::v1::cluster_service_client::ClusterServiceClient;
use rhizome_proto::admin::v1::{AddClusterRequest, AddClusterResponse, Cluster, ClusterState};
use rhizome_tls::JoinString;
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::output::{View, details, instant_with_distance, or_dash, printable, relative, table, yes_no};
use crate::session::{Session, call};
use crate::wire;

/// Manage clusters with a Rhizome of their own below this one
#[derive(Subcommand, Clone, Debug)]
pub enum ClusterVerb {
    /// Add a cluster, and make the join string for its Rhizome
    Add(AddCluster),
    /// List clusters, and how it stands there
    List,
    /// Show one: what it may issue, its intermediates, who lags behind, and alarms
    Show {
        /// The cluster
        name: ClusterName,
    },
    /// Replace what a cluster may issue; what it issued before is valid until its end
    Set {
        /// The cluster
        name: ClusterName,
        /// All that it may issue from now on
        #[command(flatten)]
        scope: ScopeArguments,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Cut a cluster off until `resume`: no intermediate, no bundle; what it holds is valid until its end
    Suspend {
        /// The cluster
        name: ClusterName,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended cluster in again
    Resume {
        /// The cluster
        name: ClusterName,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Cut a cluster off for good; it is listed until nothing of what it was granted is valid
    Remove {
        /// The cluster
        name: ClusterName,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
}

/// A new cluster.
#[derive(Args, Clone, Debug)]
pub struct AddCluster {
    /// Its name; its nodes' identities are below spiffe://TD/rhizome/node/NAME
    name: ClusterName,

    #[command(flatten)]
    scope: ScopeArguments,

    /// How long the join string can be used, such as 15m or 1h [default: the server's]
    #[arg(long, value_name = "LIFETIME")]
    token_ttl: Option<Ttl>,

    /// Print nothing but the join string
    #[arg(long, short)]
    quiet: bool,
}

/// What a cluster may issue.
#[derive(Args, Clone, Debug)]
#[group(required = false, multiple = true)]
pub struct ScopeArguments {
    /// It may issue spiffe://TD/ns/NAMESPACE/…; may be repeated
    #[arg(long = "namespace", value_name = "NAMESPACE", required_unless_present_any = ["all_namespaces", "identities"])]
    namespaces: Vec<String>,

    /// It may issue for every namespace
    #[arg(long, conflicts_with = "namespaces")]
    all_namespaces: bool,

    /// It may issue this identity, or with /* at its end every one below that path; may be repeated
    #[arg(long = "spiffe-id", value_name = "SPIFFE-ID")]
    identities: Vec<String>,

    /// The longest lifetime of a workload's certificate, such as 1h [default: 24h]
    #[arg(long, value_name = "LIFETIME")]
    max_ttl: Option<Ttl>,

    /// The longest lifetime of its intermediates, at least twice --max-ttl: what is withdrawn ends within it, and the root
    /// may be away for half of it [default: 168h]
    #[arg(long, value_name = "LIFETIME")]
    intermediate_ttl: Option<Ttl>,
}

impl From<ScopeArguments> for api::ClusterScope {
    fn from(scope: ScopeArguments) -> Self {
        Self {
            all_namespaces: scope.all_namespaces,
            namespaces: scope.namespaces,
            identities: scope.identities,
            max_ttl_seconds: scope.max_ttl.map_or(0, Ttl::seconds),
            intermediate_ttl_seconds: scope.intermediate_ttl.map_or(0, Ttl::seconds),
        }
    }
}

pub(crate) async fn run(verb: ClusterVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let mut client = ClusterServiceClient::new(session.channel().await?);
    let cluster = match verb {
        ClusterVerb::Add(wish) => {
            let AddCluster { name, scope, token_ttl, quiet } = wish;
            let token_ttl_seconds = token_ttl.map_or(0, Ttl::seconds);
            let request =
                AddClusterRequest { name: name.to_string(), scope: Some(scope.into()), token_ttl_seconds };
            let answer = client.add_cluster(call(request)).await?.into_inner();
            let join = join_string(&answer, name)?;
            if quiet {
                session.write(format!("{join}\n").as_bytes())?;
            } else {
                session.show(&added(answer, &join, session.now())?)?;
            }
            return Ok(Exit::Done);
        }
        ClusterVerb::List => {
            let clusters =
                client.list_clusters(call(api::ListClustersRequest {})).await?.into_inner().clusters;
            session.show(&list(clusters, session.now())?)?;
            return Ok(Exit::Done);
        }
        ClusterVerb::Show { name } => {
            let request = api::GetClusterRequest { name: name.into() };
            client.get_cluster(call(request)).await?.into_inner().cluster
        }
        ClusterVerb::Set { name, scope, reason } => {
            let request =
                api::SetClusterScopeRequest { name: name.into(), scope: Some(scope.into()), reason };
            client.set_cluster_scope(call(request)).await?.into_inner().cluster
        }
        ClusterVerb::Suspend { name, reason } => {
            let request = api::SuspendClusterRequest { name: name.into(), reason };
            client.suspend_cluster(call(request)).await?.into_inner().cluster
        }
        ClusterVerb::Resume { name, reason } => {
            let request = api::ResumeClusterRequest { name: name.into(), reason };
            client.resume_cluster(call(request)).await?.into_inner().cluster
        }
        ClusterVerb::Remove { name, reason } => {
            let request = api::RemoveClusterRequest { name: name.into(), reason };
            client.remove_cluster(call(request)).await?.into_inner().cluster
        }
    };
    session.show(&one(wire::promised(cluster, "the cluster")?, session.now())?)?;
    Ok(Exit::Done)
}

fn join_string(answer: &AddClusterResponse, name: ClusterName) -> Result<String, Failure> {
    let roots: Result<Vec<_>, Failure> = answer.root_digests.iter().map(|raw| wire::digest(raw)).collect();
    let issuers: Result<Vec<_>, Failure> =
        answer.issuer_key_digests.iter().map(|raw| wire::digest(raw)).collect();
    let issuers = issuers?;
    let trust_domain = answer.trust_domain.parse().map_err(|error| Failure::protocol(&format!("{error}")))?;
    JoinString::new(answer.addresses.clone(), trust_domain, roots?, answer.secret.clone())
        .and_then(|join| join.for_cluster(name, issuers).encode())
        .map_err(|error| {
            Failure::protocol(&error.to_string())
                .hint("check the addresses that the server's configuration advertises")
        })
}

#[derive(Serialize)]
struct ClusterRow {
    name: String,
    state: &'static str,
    /// Absent: all namespaces.
    namespaces: Option<Vec<String>>,
    identities: Vec<String>,
    max_ttl_seconds: i64,
    intermediate_ttl_seconds: i64,
    node_id: String,
    created_by: String,
    created_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    ended_by: Option<String>,
    end_reason: Option<String>,
    intermediates: Vec<IntermediateRow>,
    reported_at: Option<Timestamp>,
    connected: bool,
    version: Option<String>,
    /// Absent: not known.
    bundle_sequence: Option<u64>,
    agents: u64,
    replicas: u64,
    behind_count: u64,
    behind: Vec<String>,
    ledger_read_to: u64,
    ledger_sha256: Option<String>,
    ledger_last: u64,
    alarm_count: u64,
    alarms: Vec<AlarmRow>,
}

#[derive(Serialize)]
struct IntermediateRow {
    authority_id: String,
    root_id: String,
    serial: String,
    granted_at: Option<Timestamp>,
    not_after: Option<Timestamp>,
    issued_count: u64,
    issued_until: Option<Timestamp>,
}

#[derive(Serialize)]
struct AlarmRow {
    code: String,
    subject: String,
    detail: String,
    position: u64,
    found_at: Option<Timestamp>,
}

impl From<Cluster> for ClusterRow {
    fn from(it: Cluster) -> Self {
        let state = match it.state() {
            ClusterState::Awaited => "awaited",
            ClusterState::Active => "active",
            ClusterState::Suspended => "suspended",
            ClusterState::Removed => "removed",
            ClusterState::Unspecified => "unknown",
        };
        let count = |kind: &str| it.counts.iter().find(|it| it.kind == kind).map_or(0, |it| it.count);
        let (agents, replicas) = (count("agent"), count("replica"));
        let scope = it.scope.unwrap_or_default();
        Self {
            state,
            agents,
            replicas,
            namespaces: (!scope.all_namespaces).then_some(scope.namespaces),
            identities: scope.identities,
            max_ttl_seconds: scope.max_ttl_seconds,
            intermediate_ttl_seconds: scope.intermediate_ttl_seconds,
            created_at: wire::instant(it.created_at.as_ref()),
            ended_at: wire::instant(it.ended_at.as_ref()),
            ended_by: wire::text(it.ended_by),
            end_reason: wire::text(it.end_reason),
            intermediates: it.intermediates.into_iter().map(IntermediateRow::from).collect(),
            reported_at: wire::instant(it.reported_at.as_ref()),
            connected: it.connected,
            version: wire::text(it.version),
            bundle_sequence: (it.bundle_sequence > 0).then_some(it.bundle_sequence),
            behind_count: it.behind_count,
            behind: it.behind,
            ledger_read_to: it.ledger_read_to,
            ledger_sha256: wire::hexadecimal(&it.ledger_hash),
            ledger_last: it.ledger_last,
            alarm_count: it.alarm_count,
            alarms: it.alarms.into_iter().map(AlarmRow::from).collect(),
            name: it.name,
            node_id: it.node_id,
            created_by: it.created_by,
        }
    }
}

impl From<api::GrantedIntermediate> for IntermediateRow {
    fn from(it: api::GrantedIntermediate) -> Self {
        Self {
            granted_at: wire::instant(it.granted_at.as_ref()),
            not_after: wire::instant(it.not_after.as_ref()),
            issued_until: wire::instant(it.issued_until.as_ref()),
            issued_count: it.issued_count,
            authority_id: it.authority_id,
            root_id: it.root_id,
            serial: it.serial,
        }
    }
}

impl From<api::ClusterAlarm> for AlarmRow {
    fn from(it: api::ClusterAlarm) -> Self {
        Self {
            found_at: wire::instant(it.found_at.as_ref()),
            position: it.position,
            code: it.code,
            subject: it.subject,
            detail: it.detail,
        }
    }
}

impl ClusterRow {
    fn may_issue(&self) -> String {
        let mut parts = Vec::new();
        match &self.namespaces {
            None => parts.push("every namespace".to_owned()),
            Some(names) if names.is_empty() => {}
            Some(names) => parts.push(format!("namespaces {}", names.join(", "))),
        }
        parts.extend(self.identities.iter().cloned());
        parts.join("; ")
    }

    fn bundle(&self) -> String {
        self.bundle_sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string())
    }

    /// The last second of the newest intermediate.
    fn until(&self) -> Option<Timestamp> {
        self.intermediates.iter().filter_map(|it| it.not_after).max()
    }
}

fn list(clusters: Vec<Cluster>, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<ClusterRow> = clusters.into_iter().map(ClusterRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.name.clone(),
            row.state.to_owned(),
            relative(row.reported_at, now),
            relative(row.until(), now),
            row.bundle(),
            row.agents.to_string(),
            row.behind_count.to_string(),
            row.alarm_count.to_string(),
            or_dash(&row.may_issue()),
        ]
    });
    let heading =
        ["CLUSTER", "STATE", "REPORTED", "ISSUER ENDS", "BUNDLE", "AGENTS", "BEHIND", "ALARMS", "MAY ISSUE"];
    let nothing = "no clusters; `rhizome cluster add` begins with one";
    View::list("clusters", &rows, false, table(&heading, cells, nothing))
}

fn fields(row: &ClusterRow, now: Timestamp) -> Vec<(&'static str, String)> {
    let seconds = |value: i64| format!("{value} s");
    let intermediate = |it: &IntermediateRow| {
        let until = instant_with_distance(it.not_after, now);
        format!("{} under {} until {until}, {} certificates", it.authority_id, it.root_id, it.issued_count)
    };
    let alarm = |it: &AlarmRow| {
        let at = instant_with_distance(it.found_at, now);
        format!("{at}: {}: {}: {} (its record {})", it.code, it.subject, it.detail, it.position)
    };
    let mut fields = vec![
        ("cluster", row.name.clone()),
        ("state", row.state.to_owned()),
        ("ended", instant_with_distance(row.ended_at, now)),
        ("ended by", row.ended_by.clone().unwrap_or_default()),
        ("reason", row.end_reason.clone().unwrap_or_default()),
        ("may issue", row.may_issue()),
        ("longest certificate", seconds(row.max_ttl_seconds)),
        ("longest intermediate", seconds(row.intermediate_ttl_seconds)),
        ("node", row.node_id.clone()),
        ("added", instant_with_distance(row.created_at, now)),
        ("added by", row.created_by.clone()),
        ("reported", instant_with_distance(row.reported_at, now)),
        ("connected", yes_no(row.connected)),
        ("version", row.version.clone().unwrap_or_default()),
        ("bundle", row.bundle()),
        ("agents", row.agents.to_string()),
        ("replicas", row.replicas.to_string()),
        ("behind", format!("{} {}", row.behind_count, row.behind.join(" ")).trim_end().to_owned()),
        ("ledger read to", format!("{} of {}", row.ledger_read_to, row.ledger_last)),
        ("ledger sha256", row.ledger_sha256.clone().unwrap_or_default()),
        ("alarms", row.alarm_count.to_string()),
    ];
    fields.extend(row.intermediates.iter().map(|it| ("intermediate", intermediate(it))));
    fields.extend(row.alarms.iter().map(|it| ("alarm", alarm(it))));
    fields
}

fn one(cluster: Cluster, now: Timestamp) -> Result<View, Failure> {
    let row = ClusterRow::from(cluster);
    View::new(&row, details(fields(&row, now)))
}

fn added(answer: AddClusterResponse, join: &str, now: Timestamp) -> Result<View, Failure> {
    let expires = wire::instant(answer.token_expires_at.as_ref());
    let row = ClusterRow::from(wire::promised(answer.cluster, "the cluster")?);
    let head = details([
        ("cluster", row.name.clone()),
        ("may issue", row.may_issue()),
        ("longest certificate", format!("{} s", row.max_ttl_seconds)),
        ("longest intermediate", format!("{} s", row.intermediate_ttl_seconds)),
        ("join before", instant_with_distance(expires, now)),
    ]);
    let text = format!(
        "{head}\nThis is for the cluster's Rhizome, and can be used once. This release has the root's side only: no server\n\
         can use it yet.\n\n{}\n",
        printable(join)
    );
    View::new(&json!({ "cluster": row, "join_string": join, "join_before": expires }), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Cluster {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        Cluster {
            name: "east".to_owned(),
            state: ClusterState::Active.into(),
            scope: Some(api::ClusterScope {
                namespaces: vec!["shop".to_owned()],
                identities: vec!["spiffe://example.org/edge/*".to_owned()],
                max_ttl_seconds: 3_600,
                intermediate_ttl_seconds: 86_400,
                ..api::ClusterScope::default()
            }),
            reported_at: at(0),
            connected: true,
            bundle_sequence: 3,
            counts: vec![api::ClusterCount { kind: "agent".to_owned(), count: 2 }],
            behind_count: 1,
            behind: vec!["node:east/join_token/vm-\u{1b}[1m1".to_owned()],
            intermediates: vec![api::GrantedIntermediate {
                authority_id: "issuer-1".to_owned(),
                root_id: "root-1".to_owned(),
                not_after: at(86_400),
                issued_count: 7,
                ..api::GrantedIntermediate::default()
            }],
            alarm_count: 1,
            alarms: vec![api::ClusterAlarm {
                code: "outside_scope".to_owned(),
                subject: "spiffe://example.org/ns/pay/sa/x".to_owned(),
                ..api::ClusterAlarm::default()
            }],
            ..Cluster::default()
        }
    }

    #[test]
    fn clusters_are_listed_with_who_lags_behind_and_how_many_alarms_there_are() {
        let view = list(vec![sample()], Timestamp::EPOCH).unwrap();
        for part in ["east", "active", "in 1d", "3", "namespaces shop; spiffe://example.org/edge/*"] {
            assert!(view.text.contains(part), "{part}: {}", view.text);
        }
        assert_eq!(view.json["clusters"][0]["alarm_count"], 1);
        let nothing = list(Vec::new(), Timestamp::EPOCH).unwrap();
        assert!(nothing.text.contains("cluster add"), "{}", nothing.text);
    }

    #[test]
    fn one_is_shown_with_its_intermediates_and_alarms() {
        let view = one(sample(), Timestamp::EPOCH).unwrap();
        for part in ["issuer-1 under root-1", "7 certificates", "outside_scope", "ns/pay", "node:east"] {
            assert!(view.text.contains(part), "{part}: {}", view.text);
        }
        assert!(!view.text.contains('\u{1b}'), "{:?}", view.text);
    }

    #[test]
    fn the_join_string_names_the_cluster_and_stands_where_it_is_asked_for() {
        let answer = AddClusterResponse {
            cluster: Some(sample()),
            secret: "c2VjcmV0".to_owned(),
            trust_domain: "example.org".to_owned(),
            addresses: vec!["root:8443".to_owned()],
            root_digests: vec![vec![7; 32].into()],
            issuer_key_digests: vec![vec![8; 32].into()],
            token_expires_at: None,
        };
        let join = join_string(&answer, "east".parse().unwrap()).unwrap();
        let (read, cluster) = JoinString::decode_for_cluster(&join).unwrap();
        assert_eq!((read.token(), cluster.as_str()), ("c2VjcmV0", "east"));
        let view = added(answer, &join, Timestamp::EPOCH).unwrap();
        assert!(view.text.contains(&join) && view.json["join_string"] == join);
    }
}
