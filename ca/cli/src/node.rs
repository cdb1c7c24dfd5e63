//! `rhizome node`: the machines that vouch for workloads.
//!
//! Not here: joining (`join.rs`).

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use rhizome_id::{ClusterName, NodeName, Timestamp, Ttl};
use rhizome_proto::admin::v1::node_admin_service_client::NodeAdminServiceClient;
use rhizome_proto::admin::v1::renew_nodes_request::Target;
use rhizome_proto::admin::v1::{
    AllNodes, BanNodeRequest, EvictNodeRequest, GetNodeRequest, ListNodesRequest, Node, NodeState,
    RenewNodesRequest, RenewNodesResponse,
};
use serde::Serialize;
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::join;
use crate::output::{View, details, instant_with_distance, or_dash, printable, relative, table, yes_no};
use crate::session::{Session, call};
use crate::wire;

/// Manage nodes: the machines that vouch for workloads
#[derive(Subcommand, Clone, Debug)]
pub enum NodeVerb {
    /// List nodes
    List(ListNodes),
    /// Show one node
    Show {
        /// The node's id: CLUSTER/METHOD/NAME
        id: NodeArgument,
    },
    /// Refuse a node's certificate from now on; it cannot join again until it is evicted
    Ban {
        /// The node's id: CLUSTER/METHOD/NAME
        id: NodeArgument,
        /// Why, for the audit log
        #[arg(long)]
        reason: String,
    },
    /// Forget a node: its certificate is refused from now on, and it may join anew with a new token
    Evict {
        /// The node's id: CLUSTER/METHOD/NAME
        id: NodeArgument,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Order nodes to renew their certificates, spread over a window; without --yes, say how many that are
    Renew(RenewNodes),
    /// Make this machine a node, with a join string from `token create`
    Join(JoinNode),
}

/// A node's id on the command line: `CLUSTER/METHOD/NAME`. Whether there is such a node, the server knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeArgument(String);

impl FromStr for NodeArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [cluster, method, name]
                if cluster.parse::<ClusterName>().is_ok()
                    && name.parse::<NodeName>().is_ok()
                    && !method.is_empty() =>
            {
                Ok(Self(text.to_owned()))
            }
            _other => Err("write CLUSTER/METHOD/NAME, as in prod/join_token/vm-1".to_owned()),
        }
    }
}

impl From<NodeArgument> for String {
    fn from(node: NodeArgument) -> Self {
        node.0
    }
}

/// Which nodes to list.
#[derive(Args, Clone, Debug)]
pub struct ListNodes {
    /// Only nodes of this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,

    /// Show at most this many; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    limit: usize,
}

/// Which nodes are to renew, and over how long.
#[derive(Args, Clone, Debug)]
pub struct RenewNodes {
    #[command(flatten)]
    target: RenewalTarget,

    /// Over how long the renewals are spread, each node at its own instant
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    within: Ttl,

    /// Why, for the audit log and the nodes' logs
    #[arg(long)]
    reason: String,

    /// Do it; without this, only say what would be ordered
    #[arg(long)]
    yes: bool,
}

/// One node, those of a cluster, or all.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct RenewalTarget {
    /// This node: CLUSTER/METHOD/NAME
    #[arg(value_name = "NODE")]
    id: Option<NodeArgument>,

    /// The nodes of this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,

    /// Every node
    #[arg(long)]
    all: bool,
}

/// How to join.
#[derive(Args, Clone, Debug)]
pub struct JoinNode {
    /// The join string (rhz1.…), or - to read it from standard input, which keeps it out of the process list
    #[arg(value_name = "JOINSTRING")]
    pub(crate) join_string: String,

    /// The directory to put key.pem, chain.pem, bundle.pem and trust-domain into
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Replace the identity that is in the directory already
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) async fn run(verb: NodeVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    if let NodeVerb::Join(wish) = verb {
        return join::run(&wish, session).await;
    }
    let mut client = NodeAdminServiceClient::new(session.channel().await?);
    let node = match verb {
        NodeVerb::List(ListNodes { cluster, limit }) => {
            let cluster = cluster.map(String::from).unwrap_or_default();
            let listed = wire::pages(limit, async |page_size, page_token| {
                let request = ListNodesRequest { page_size, page_token, cluster: cluster.clone() };
                let page = client.list_nodes(call(request)).await?.into_inner();
                Ok((page.nodes, page.next_page_token))
            })
            .await?;
            session.show(&list(listed.items, listed.more, session.now())?)?;
            wire::remark_more(session, listed.more);
            return Ok(Exit::Done);
        }
        NodeVerb::Show { id } => {
            client.get_node(call(GetNodeRequest { id: id.into() })).await?.into_inner().node
        }
        NodeVerb::Ban { id, reason } => {
            let request = BanNodeRequest { id: id.into(), reason };
            client.ban_node(call(request)).await?.into_inner().node
        }
        NodeVerb::Evict { id, reason } => {
            let request = EvictNodeRequest { id: id.into(), reason };
            let node = client.evict_node(call(request)).await?.into_inner().node;
            session.show(&evicted(wire::promised(node, "the node")?)?)?;
            return Ok(Exit::Done);
        }
        NodeVerb::Renew(wish) => {
            let within = wish.within;
            let answer = client.renew_nodes(call(wish.into())).await?.into_inner();
            session.show(&renewal(&answer, within, session.now())?)?;
            if !answer.applied && answer.node_count > 0 {
                session.remark("nothing was ordered; repeat with --yes to order it");
            }
            return Ok(Exit::Done);
        }
        NodeVerb::Join(_) => None,
    };
    session.show(&one(wire::promised(node, "the node")?, session.now())?)?;
    Ok(Exit::Done)
}

impl From<RenewNodes> for RenewNodesRequest {
    fn from(wish: RenewNodes) -> Self {
        let RenewalTarget { id, cluster, all } = wish.target;
        let target = id
            .map(|id| Target::NodeId(id.into()))
            .or_else(|| cluster.map(|cluster| Target::Cluster(cluster.into())))
            .or_else(|| all.then_some(Target::All(AllNodes {})));
        Self { target, window_seconds: wish.within.seconds(), reason: wish.reason, dry_run: !wish.yes }
    }
}

#[derive(Serialize)]
struct RenewalRow {
    /// Absent: nothing was ordered.
    name: Option<String>,
    applied: bool,
    nodes: u64,
    connected: u64,
    certificates: u64,
    window_seconds: i64,
    per_second: f64,
    most_per_second: u64,
    deadline: Option<Timestamp>,
}

fn renewal(answer: &RenewNodesResponse, within: Ttl, now: Timestamp) -> Result<View, Failure> {
    let float = |it: u64| u32::try_from(it).map_or(f64::INFINITY, f64::from);
    let seconds = u64::try_from(within.seconds()).map_or(f64::INFINITY, float);
    let row = RenewalRow {
        name: wire::text(answer.name.clone()),
        applied: answer.applied,
        nodes: answer.node_count,
        connected: answer.connected_count,
        certificates: answer.certificate_count,
        window_seconds: within.seconds(),
        per_second: float(answer.certificate_count) / seconds,
        most_per_second: answer.most_per_second,
        deadline: wire::instant(answer.deadline.as_ref()),
    };
    let state = match (row.applied, row.nodes) {
        (true, _) => "ordered",
        (false, 0) => "no node with a valid certificate; there is nobody to tell",
        (false, _) => "a dry run",
    };
    let text = details([
        ("state", state.to_owned()),
        ("order", row.name.clone().unwrap_or_default()),
        ("nodes", format!("{}, of which {} connected", row.nodes, row.connected)),
        ("certificates", row.certificates.to_string()),
        ("rate", format!("{:.2} a second, at most {} in one", row.per_second, row.most_per_second)),
        ("until", instant_with_distance(row.deadline, now)),
    ]);
    View::new(&row, text)
}

#[derive(Serialize)]
struct NodeRow {
    id: String,
    spiffe_id: String,
    state: &'static str,
    cluster: String,
    method: String,
    name: String,
    /// Absent: all namespaces.
    namespaces: Option<Vec<String>>,
    attributes: Vec<AttributeRow>,
    key_digest: Option<String>,
    serial: String,
    not_after: Option<Timestamp>,
    attested_at: Option<Timestamp>,
    renewals: u32,
    banned_at: Option<Timestamp>,
    banned_by: Option<String>,
    ban_reason: Option<String>,
    connected: bool,
    last_seen: Option<Timestamp>,
    acknowledged_sequence: u64,
    agent_version: Option<String>,
    #[serde(skip)]
    scope: String,
}

/// An attribute as programs see it.
#[derive(Serialize)]
pub(crate) struct AttributeRow {
    name: String,
    value: String,
}

impl From<rhizome_proto::ca::v1::Attribute> for AttributeRow {
    fn from(attribute: rhizome_proto::ca::v1::Attribute) -> Self {
        Self { name: attribute.name, value: attribute.value }
    }
}

impl From<Node> for NodeRow {
    fn from(node: Node) -> Self {
        Self {
            state: match node.state() {
                NodeState::Active => "active",
                NodeState::Banned => "banned",
                NodeState::Expired => "expired",
                NodeState::Unspecified => "unknown",
            },
            namespaces: wire::namespaces(node.scope.as_ref()),
            scope: wire::scope(node.scope.as_ref()),
            not_after: wire::instant(node.not_after.as_ref()),
            attested_at: wire::instant(node.attested_at.as_ref()),
            banned_at: wire::instant(node.banned_at.as_ref()),
            last_seen: wire::instant(node.last_seen.as_ref()),
            attributes: node.attributes.into_iter().map(AttributeRow::from).collect(),
            key_digest: wire::hexadecimal(&node.key_digest),
            id: node.id,
            spiffe_id: node.spiffe_id,
            cluster: node.cluster,
            method: node.method,
            name: node.name,
            serial: node.serial,
            renewals: node.renewals,
            banned_by: wire::text(node.banned_by),
            ban_reason: wire::text(node.ban_reason),
            connected: node.connected,
            acknowledged_sequence: node.acknowledged_sequence,
            agent_version: wire::text(node.agent_version),
        }
    }
}

fn list(nodes: Vec<Node>, more: bool, now: Timestamp) -> Result<View, Failure> {
    let rows: Vec<NodeRow> = nodes.into_iter().map(NodeRow::from).collect();
    let cells = rows.iter().map(|row| {
        vec![
            row.id.clone(),
            row.state.to_owned(),
            yes_no(row.connected),
            relative(row.not_after, now),
            row.acknowledged_sequence.to_string(),
            row.scope.clone(),
            or_dash(row.agent_version.as_deref().unwrap_or_default()),
        ]
    });
    let heading = ["ID", "STATE", "CONNECTED", "EXPIRES", "BUNDLE", "MAY VOUCH FOR", "AGENT"];
    let text = table(&heading, cells, "no nodes; `rhizome token create` makes a join string for the first");
    View::list("nodes", &rows, more, text)
}

fn one(node: Node, now: Timestamp) -> Result<View, Failure> {
    let row = NodeRow::from(node);
    let attributes: Vec<String> =
        row.attributes.iter().map(|attribute| format!("{}={}", attribute.name, attribute.value)).collect();
    let text = details([
        ("id", row.id.clone()),
        ("spiffe id", row.spiffe_id.clone()),
        ("state", row.state.to_owned()),
        ("banned", instant_with_distance(row.banned_at, now)),
        ("banned by", row.banned_by.clone().unwrap_or_default()),
        ("ban reason", row.ban_reason.clone().unwrap_or_default()),
        ("may vouch for", row.scope.clone()),
        ("attributes", attributes.join(" ")),
        ("serial", row.serial.clone()),
        ("key sha256", row.key_digest.clone().unwrap_or_default()),
        ("expires", instant_with_distance(row.not_after, now)),
        ("attested", instant_with_distance(row.attested_at, now)),
        ("renewals", row.renewals.to_string()),
        ("connected", yes_no(row.connected)),
        ("last seen", instant_with_distance(row.last_seen, now)),
        ("bundle", row.acknowledged_sequence.to_string()),
        ("agent", row.agent_version.clone().unwrap_or_default()),
    ]);
    View::new(&row, text)
}

/// What an eviction did; the record as it was before goes to programs only.
fn evicted(node: Node) -> Result<View, Failure> {
    let row = NodeRow::from(node);
    let text = format!(
        "evicted {}: its certificate is refused from now on; the name is free, and a new token lets it join anew\n",
        printable(&row.id)
    );
    View::new(&json!({ "evicted": true, "node": row }), text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn sample() -> Node {
        Node {
            id: "prod/join_token/vm-1".to_owned(),
            spiffe_id: "spiffe://example.org/rhizome/node/prod/join_token/vm-1".to_owned(),
            state: NodeState::Banned.into(),
            ban_reason: "stolen\u{1b}[1m".to_owned(),
            key_digest: vec![1, 2].into(),
            not_after: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
            acknowledged_sequence: 4,
            ..Node::default()
        }
    }

    #[test]
    fn nodes_are_listed_with_their_state_and_bundle() {
        let view = list(vec![sample()], false, Timestamp::EPOCH).unwrap();
        assert_eq!(
            view.text,
            "ID                    STATE   CONNECTED  EXPIRES  BUNDLE  MAY VOUCH FOR  AGENT\n\
             prod/join_token/vm-1  banned  no         in 1m    4       nothing        -\n"
        );
    }

    #[test]
    fn an_eviction_says_what_happened_and_not_what_the_record_was() {
        let view = evicted(sample()).unwrap();
        assert!(view.text.starts_with("evicted prod/join_token/vm-1: "), "{}", view.text);
        assert!(view.text.contains("the name is free") && !view.text.contains("banned"), "{}", view.text);
        assert_eq!((&view.json["evicted"], &view.json["node"]["state"]), (&true.into(), &"banned".into()));
    }

    #[test]
    fn a_plan_of_renewals_tells_the_rate_and_whether_it_was_ordered() {
        let planned = RenewNodesResponse {
            node_count: 300,
            connected_count: 290,
            certificate_count: 900,
            most_per_second: 7,
            deadline: Some(prost_types::Timestamp { seconds: 3_600, nanos: 0 }),
            ..RenewNodesResponse::default()
        };
        let view = renewal(&planned, Ttl::hours(1), Timestamp::EPOCH).unwrap();
        assert!(
            view.text.contains("a dry run") && view.text.contains("0.25 a second, at most 7 in one"),
            "{}",
            view.text
        );
        assert_eq!((&view.json["applied"], &view.json["name"]), (&false.into(), &Value::Null));
        let ordered = RenewNodesResponse { name: "renewal-1".to_owned(), applied: true, ..planned };
        let view = renewal(&ordered, Ttl::hours(1), Timestamp::EPOCH).unwrap();
        assert!(view.text.contains("ordered") && !view.text.contains("dry run"), "{}", view.text);
        let nobody = renewal(&RenewNodesResponse::default(), Ttl::hours(1), Timestamp::EPOCH).unwrap();
        assert!(nobody.text.contains("nobody to tell"), "{}", nobody.text);
    }

    #[test]
    fn a_node_s_id_has_three_parts() {
        assert_eq!(
            String::from("prod/join_token/vm-1".parse::<NodeArgument>().unwrap()),
            "prod/join_token/vm-1"
        );
        for bad in ["", "vm-1", "prod/vm-1", "prod//vm-1", "prod/join_token/", "/join_token/vm-1", "a/b/c/d"]
        {
            assert!(bad.parse::<NodeArgument>().unwrap_err().contains("CLUSTER/METHOD/NAME"), "{bad}");
        }
    }

    #[test]
    fn one_node_is_shown_with_hexadecimal_digests_and_without_control_characters() {
        let view = one(sample(), Timestamp::EPOCH).unwrap();
        assert_eq!(view.json["key_digest"], "0102");
        assert_eq!(view.json["state"], "banned");
        assert!(view.text.contains(r"stolen\u{1b}[1m"), "{}", view.text);
    }
}
