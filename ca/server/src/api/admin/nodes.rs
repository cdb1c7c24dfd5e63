//! Nodes: listed, shown, ordered to renew, banned, evicted.
//!
//! Laws: a banned node is nobody from the commit on, and its name stays taken; an evicted one is forgotten together
//! with every certificate it holds and the tokens it joined with, so that only a new token brings the name back.
//! Not here: joining and renewing (`api::nodes`), planning and keeping orders (`renewals`), what a ban means for a caller (`gate`).

use std::ops::Bound;
use std::sync::Arc;

use rhizome_core::caller::AttestationMethod;
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Versioned};
use rhizome_core::limits::NODE_MAX_TTL;
use rhizome_core::nodes::{NodeRecord, NodeState};
use rhizome_core::ports::StoreError;
use rhizome_core::state::{Revocation, State};
use rhizome_core::tokens::{JoinToken, TokenState};
use rhizome_id::{ClusterName, NodeName, Timestamp, Ttl};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::node_admin_service_server::NodeAdminService;
use rhizome_proto::admin::v1::renew_nodes_request::Target;
use rhizome_x509::RevocationCode;
use tonic::{Request, Response};

use super::ending::{Ending, TRIES};
use super::{page_size, read_page_token, read_reason, read_required_reason, tokens};
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::renewals::{Planned, Whom, Wish};
use crate::status::Answer;

/// Tokens read from the store in one go.
const TOKENS_AT_ONCE: usize = 1_000;
/// The longest window of an order to renew: no certificate of a node lives longer.
const LONGEST_WINDOW: Ttl = NODE_MAX_TTL;

#[tonic::async_trait]
impl NodeAdminService for Api {
    async fn list_nodes(&self, request: Request<wire::ListNodesRequest>) -> Answer<wire::ListNodesResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let after = read_page_token::<NodeId>(&request.page_token)?;
        let cluster = convert::read_optional::<ClusterName>("cluster", &request.cluster)?;
        let limit = page_size(request.page_size);
        let state = self.0.state();
        let now = self.0.ports.clock.now();
        let from = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(&after.0));
        let mut matching = state
            .nodes()
            .range::<_, String>((from, Bound::Unbounded))
            .map(|(_, it)| &it.value)
            .filter(|it| cluster.as_ref().is_none_or(|cluster| it.cluster == *cluster));
        let nodes: Vec<wire::Node> =
            matching.by_ref().take(limit).map(|it| self.0.node_shown(&state, it, now)).collect();
        let more = matching.next().is_some();
        let next_page_token = nodes.last().filter(|_| more).map(|it| it.id.clone()).unwrap_or_default();
        Ok(Response::new(wire::ListNodesResponse { nodes, next_page_token }))
    }

    async fn get_node(&self, request: Request<wire::GetNodeRequest>) -> Answer<wire::GetNodeResponse> {
        self.0.caller(&request)?;
        let state = self.0.state();
        let record = known(&state, &request.get_ref().id)?;
        let node = Some(self.0.node_shown(&state, &record.value, self.0.ports.clock.now()));
        Ok(Response::new(wire::GetNodeResponse { node }))
    }

    async fn ban_node(&self, request: Request<wire::BanNodeRequest>) -> Answer<wire::BanNodeResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = read_required_reason(&request.reason)?.to_owned();
        let at = self.0.ports.clock.now();
        let ca = Arc::clone(&self.0);
        let work = async move { ca.ban_node(&request.id, &Ending { by: &by, reason: &reason, at }).await };
        let banned = self.0.to_the_end("ban node", work).await?;
        let node = Some(self.0.node_shown(&self.0.state(), &banned, at));
        Ok(Response::new(wire::BanNodeResponse { node }))
    }

    async fn evict_node(&self, request: Request<wire::EvictNodeRequest>) -> Answer<wire::EvictNodeResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = read_reason(&request.reason)?.to_owned();
        let at = self.0.ports.clock.now();
        let ca = Arc::clone(&self.0);
        // Looking through a long ledger may outlast the call; what was begun is finished all the same.
        let work = async move { ca.evict_node(&request.id, &Ending { by: &by, reason: &reason, at }).await };
        let evicted = self.0.to_the_end("evict node", work).await?;
        let node = Some(self.0.node_shown(&self.0.state(), &evicted, at));
        Ok(Response::new(wire::EvictNodeResponse { node }))
    }

    async fn renew_nodes(
        &self,
        request: Request<wire::RenewNodesRequest>,
    ) -> Answer<wire::RenewNodesResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let wire::RenewNodesRequest { target, window_seconds, reason, dry_run } = request.into_inner();
        let wish = Wish {
            whom: read_target(target)?,
            window: read_window(window_seconds)?,
            issuers: &[],
            by: &by,
            reason: read_required_reason(&reason)?,
        };
        let planned = self.0.plan_renewal(&wish, self.0.ports.clock.now())?;
        let applied = !dry_run && !planned.schedule.turns.is_empty();
        if applied {
            self.0.order_renewal(&planned).await?;
        }
        Ok(Response::new(renewal_shown(&planned, applied)))
    }
}

impl Ca {
    /// Bans a node and revokes its current certificate. One that is banned already stays banned as it was.
    async fn ban_node(self: &Arc<Self>, id: &str, ending: &Ending<'_>) -> Result<NodeRecord, ApiError> {
        for _ in 0..TRIES {
            match self.try_to_ban(id, ending, false).await {
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        // It renews without pause. Whatever it renewed meanwhile, a banned record is what must stand.
        self.try_to_ban(id, ending, true).await
    }

    async fn try_to_ban(
        self: &Arc<Self>,
        id: &str,
        ending: &Ending<'_>,
        insist: bool,
    ) -> Result<NodeRecord, ApiError> {
        let state = self.state();
        let Versioned { version, value: record } = known(&state, id)?;
        if let NodeState::Banned { .. } = record.state {
            return Ok(NodeRecord::clone(record));
        }
        let banned = record.banned(ending.by, ending.reason, ending.at);
        let entry = self.changed(ending.by, "node.ban", id, ending.reason);
        let mut transaction = Transaction::named("ban node").put(&banned).record(entry);
        if !insist {
            transaction = transaction.require_unchanged(record.key(), *version);
        }
        if record.not_after >= ending.at && !state.is_revoked(&record.serial) {
            let revocation = Revocation {
                serial: record.serial,
                reason: ending.reason.to_owned(),
                by: ending.by.to_owned(),
                at: ending.at,
                not_after: record.not_after,
                spiffe_id: record
                    .spiffe_id(state.trust_domain())
                    .map_err(|bad| ApiError::Bug(bad.to_string()))?,
                holder: record.principal().to_string(),
                // The record does not say who issued it: it goes into every list.
                issuer: None,
                code: RevocationCode::PrivilegeWithdrawn,
            };
            let entry =
                self.changed(ending.by, "certificate.revoke", &record.serial.to_string(), ending.reason);
            transaction = transaction.require_absent(revocation.key()).put(&revocation).record(entry);
        }
        self.commit(transaction).await?;
        tracing::warn!(node = %id, by = ending.by, reason = ending.reason, "node banned");
        Ok(banned)
    }

    /// Forgets a node, and with it what it acknowledged and every certificate it holds for itself.
    async fn evict_node(self: &Arc<Self>, id: &str, ending: &Ending<'_>) -> Result<NodeRecord, ApiError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_evict(id, ending).await {
                Err(ApiError::Store(StoreError::Conflict { .. })) if tries < TRIES => {
                    // It renewed at the same moment. Once banned it cannot, and holds still.
                    self.ban_node(id, ending).await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_to_evict(self: &Arc<Self>, id: &str, ending: &Ending<'_>) -> Result<NodeRecord, ApiError> {
        let state = self.state();
        let Versioned { version, value: record } = known(&state, id)?;
        let own = record.spiffe_id(state.trust_domain()).map_err(|bad| ApiError::Bug(bad.to_string()))?;
        let longest = self.settings.policy.node.max.max(NODE_MAX_TTL);
        let held = self.held_by(&own, longest, ending.at).await?;
        let holder = record.principal().to_string();
        let entry = self.changed(ending.by, "node.evict", id, ending.reason);
        let transaction = Transaction::named("evict node")
            .require_unchanged(record.key(), *version)
            .delete(record.key())
            .delete(DocumentKey::new(Kind::Subscriber, holder.clone()))
            .delete(DocumentKey::new(Kind::ForeignHolder, holder.clone()))
            .record(entry);
        let transaction = self.without_retries(transaction, record, ending).await?;
        self.end(transaction, &held, &holder, ending).await?;
        tracing::warn!(node = %id, by = ending.by, revoked = held.len(), "node evicted");
        Ok(NodeRecord::clone(record))
    }

    /// Adds to `transaction` the end of the tokens by which the node joined: while one lives, the same key may join
    /// with it again after a lost answer, and so it would be back. Tokens that were never used are left alone.
    async fn without_retries(
        &self,
        mut transaction: Transaction,
        record: &NodeRecord,
        ending: &Ending<'_>,
    ) -> Result<Transaction, ApiError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.ports.store.documents(Kind::Token, after.as_deref(), TOKENS_AT_ONCE).await?;
            let Some(last) = page.last() else { return Ok(transaction) };
            after = Some(last.key.id.clone());
            for document in &page {
                let stored = document.read::<JoinToken>().map_err(|bad| ApiError::Bug(bad.to_string()))?;
                let Versioned { version, value: token } = stored;
                let of_this_node = token.cluster == record.cluster && token.node == record.name;
                let lives = matches!(token.state, TokenState::Used { .. }) && ending.at < token.expires_at;
                if of_this_node && lives {
                    let entry =
                        self.changed(ending.by, "token.revoke", token.id.as_str(), "its node is evicted");
                    let ended = token.revoked(ending.by, ending.at);
                    transaction =
                        transaction.require_unchanged(token.key(), version).put(&ended).record(entry);
                }
            }
        }
    }

    fn node_shown(&self, state: &State, record: &NodeRecord, now: Timestamp) -> wire::Node {
        let principal = record.principal().to_string();
        let present = self.presence.of(&principal);
        let (standing, ban) = match &record.state {
            NodeState::Banned { at, by, reason } => {
                (wire::NodeState::Banned, Some((*at, by.clone(), reason.clone())))
            }
            NodeState::Active if now > record.not_after => (wire::NodeState::Expired, None),
            NodeState::Active => (wire::NodeState::Active, None),
        };
        let banned_at = ban.as_ref().map(|(at, ..)| convert::timestamp(*at));
        let (banned_by, ban_reason) = ban.map(|(_, by, reason)| (by, reason)).unwrap_or_default();
        wire::Node {
            id: record.id(),
            spiffe_id: record.spiffe_id(state.trust_domain()).map(|id| id.to_string()).unwrap_or_default(),
            cluster: record.cluster.to_string(),
            method: record.method.to_string(),
            name: record.name.to_string(),
            scope: Some(tokens::scope(&record.scope)),
            attributes: convert::attributes(&record.attributes),
            key_digest: convert::digest(&record.key),
            serial: record.serial.to_string(),
            not_after: Some(convert::timestamp(record.not_after)),
            attested_at: Some(convert::timestamp(record.attested_at)),
            renewals: record.renewals,
            state: standing.into(),
            banned_at,
            banned_by,
            ban_reason,
            connected: present.is_some(),
            last_seen: present.as_ref().map(|it| convert::timestamp(it.last_seen)),
            acknowledged_sequence: state.subscribers().get(&principal).map_or(0, |it| it.value.sequence),
            agent_version: present.map(|it| it.agent_version).unwrap_or_default(),
        }
    }
}

fn read_target(target: Option<Target>) -> Result<Whom, ApiError> {
    match target {
        Some(Target::NodeId(id)) => Ok(Whom::Node(id)),
        Some(Target::Cluster(name)) => {
            let problem = |cause: rhizome_id::NameError| cause.to_string();
            let name = name.parse::<ClusterName>().map_err(problem);
            name.map(Whom::Cluster).map_err(|problem| ApiError::Invalid { field: "cluster", problem })
        }
        Some(Target::All(wire::AllNodes {})) => Ok(Whom::All),
        None => {
            let problem = "say which nodes: one, those of a cluster, or all".to_owned();
            Err(ApiError::Invalid { field: "target", problem })
        }
    }
}

fn read_window(seconds: i64) -> Result<Ttl, ApiError> {
    let invalid = |problem: String| ApiError::Invalid { field: "window_seconds", problem };
    let window = Ttl::from_seconds(seconds).map_err(|cause| invalid(cause.to_string()))?;
    if window > LONGEST_WINDOW {
        return Err(invalid(format!("it is longer than {LONGEST_WINDOW}")));
    }
    Ok(window)
}

fn renewal_shown(planned: &Planned, applied: bool) -> wire::RenewNodesResponse {
    let count = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
    let Planned { order, schedule, connected, .. } = planned;
    wire::RenewNodesResponse {
        name: if applied { order.name.clone() } else { String::new() },
        node_count: count(schedule.turns.len()),
        connected_count: count(*connected),
        certificate_count: schedule.certificates,
        most_per_second: schedule.most_per_second,
        deadline: Some(convert::timestamp(order.deadline)),
        applied,
    }
}

fn known<'a>(state: &'a State, id: &str) -> Result<&'a Versioned<Arc<NodeRecord>>, ApiError> {
    state
        .nodes()
        .get(id)
        .ok_or_else(|| ApiError::NotFound { what: "node", name: id.chars().take(400).collect() })
}

/// The text of a node's id, `CLUSTER/METHOD/NAME`, well-formed.
struct NodeId(String);

impl std::str::FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || "it is not of the form CLUSTER/METHOD/NAME".to_owned();
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or_else(wrong);
        part()?.parse::<ClusterName>().map_err(|cause| cause.to_string())?;
        part()?.parse::<AttestationMethod>().map_err(|cause| cause.to_string())?;
        part()?.parse::<NodeName>().map_err(|cause| cause.to_string())?;
        Ok(Self(text.to_owned()))
    }
}
