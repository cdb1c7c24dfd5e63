//! Clusters with a Rhizome of their own: added, narrowed, suspended, removed by administrators.
//!
//! Laws: who may sign below our root is decided by a person with role `security` and stands in the ledger with its reason.
//! What is withdrawn is withdrawn from the commit on: the cluster's node is shut out in the same transaction. The secret
//! of a join token leaves this process once.
//! Not here: granting intermediates (`clusters`), what a scope allows (`rhizome_core::clusters`).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_core::caller::Scope;
use rhizome_core::clusters::{Cluster, ClusterScope, ClusterState, Ended, IdentityPattern};
use rhizome_core::documents::{DocumentKey, Kind, Stored as _, Transaction, Versioned};
use rhizome_core::limits::{CLUSTER_INTERMEDIATE_TTL, CLUSTERS, WORKLOAD_MAX_TTL};
use rhizome_core::nodes::NodeState;
use rhizome_core::ports::StoreError;
use rhizome_core::state::State;
use rhizome_core::tokens::{JoinToken, TokenPurpose};
use rhizome_id::{ClusterName, Timestamp, Ttl};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::cluster_service_server::ClusterService;
use tonic::{Request, Response};

use super::read_required_reason;
use crate::api::admin::tokens::{Invitation, namespaces, read_namespaces};
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::clusters::own_issuer_keys;
use crate::error::ApiError;
use crate::status::Answer;

/// How often a change is tried again when the cluster got an intermediate, or its node renewed, at the same moment.
const TRIES: usize = 16;

#[tonic::async_trait]
impl ClusterService for Api {
    async fn add_cluster(
        &self,
        request: Request<wire::AddClusterRequest>,
    ) -> Answer<wire::AddClusterResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        Ok(Response::new(self.0.add_cluster(&by, request.into_inner()).await?))
    }

    async fn list_clusters(
        &self,
        request: Request<wire::ListClustersRequest>,
    ) -> Answer<wire::ListClustersResponse> {
        self.0.caller(&request)?;
        let (state, now) = (self.0.state(), self.0.ports.clock.now());
        let all = state.clusters().values().map(|it| shown(&state, &it.value, now));
        Ok(Response::new(wire::ListClustersResponse { clusters: all.collect() }))
    }

    async fn get_cluster(
        &self,
        request: Request<wire::GetClusterRequest>,
    ) -> Answer<wire::GetClusterResponse> {
        self.0.caller(&request)?;
        let name = convert::read("name", &request.get_ref().name)?;
        Ok(Response::new(wire::GetClusterResponse { cluster: Some(self.0.cluster_shown(&name)?) }))
    }

    async fn set_cluster_scope(
        &self,
        request: Request<wire::SetClusterScopeRequest>,
    ) -> Answer<wire::SetClusterScopeResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let name = convert::read("name", &request.name)?;
        let reason = read_required_reason(&request.reason)?;
        let (scope, intermediate_ttl) = self.0.read_cluster_scope(request.scope)?;
        let detail = format!("{scope}, intermediates of {} s: {reason}", intermediate_ttl.seconds());
        let change = |cluster: &Cluster, _now| {
            Some(Cluster { scope: scope.clone(), intermediate_ttl, ..cluster.clone() })
        };
        self.0.change_cluster(&name, (&by, "cluster.set_scope", &detail), Node::Stays, change).await?;
        Ok(Response::new(wire::SetClusterScopeResponse { cluster: Some(self.0.cluster_shown(&name)?) }))
    }

    async fn suspend_cluster(
        &self,
        request: Request<wire::SuspendClusterRequest>,
    ) -> Answer<wire::SuspendClusterResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let name = convert::read("name", &request.name)?;
        let reason = read_required_reason(&request.reason)?;
        let ended = |at| Ended { at, by: by.clone(), reason: reason.to_owned() };
        let change = |cluster: &Cluster, now| Some(cluster.suspended(ended(now)));
        self.0.change_cluster(&name, (&by, "cluster.suspend", reason), Node::IsShutOut, change).await?;
        Ok(Response::new(wire::SuspendClusterResponse { cluster: Some(self.0.cluster_shown(&name)?) }))
    }

    async fn resume_cluster(
        &self,
        request: Request<wire::ResumeClusterRequest>,
    ) -> Answer<wire::ResumeClusterResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let name = convert::read("name", &request.name)?;
        let reason = read_required_reason(&request.reason)?;
        let change = |cluster: &Cluster, _now| cluster.resumed();
        self.0.change_cluster(&name, (&by, "cluster.resume", reason), Node::IsLetIn, change).await?;
        Ok(Response::new(wire::ResumeClusterResponse { cluster: Some(self.0.cluster_shown(&name)?) }))
    }

    async fn remove_cluster(
        &self,
        request: Request<wire::RemoveClusterRequest>,
    ) -> Answer<wire::RemoveClusterResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let name = convert::read("name", &request.name)?;
        let reason = read_required_reason(&request.reason)?;
        let ended = |at| Ended { at, by: by.clone(), reason: reason.to_owned() };
        let change = |cluster: &Cluster, now| Some(cluster.removed(ended(now)));
        self.0.change_cluster(&name, (&by, "cluster.remove", reason), Node::IsShutOut, change).await?;
        Ok(Response::new(wire::RemoveClusterResponse { cluster: Some(self.0.cluster_shown(&name)?) }))
    }
}

/// What becomes of a cluster's node together with the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Stays,
    IsShutOut,
    IsLetIn,
}

impl Ca {
    async fn add_cluster(
        self: &Arc<Self>,
        by: &str,
        request: wire::AddClusterRequest,
    ) -> Result<wire::AddClusterResponse, ApiError> {
        let name: ClusterName = convert::read("name", &request.name)?;
        if self.upstream.is_some() {
            let problem =
                "cannot be here: this Rhizome is below another one, and its intermediate signs leaves only";
            return Err(ApiError::Conflict { what: "cluster", name: name.to_string(), problem });
        }
        let (scope, intermediate_ttl) = self.read_cluster_scope(request.scope)?;
        let ttl = self.read_token_ttl("token_ttl_seconds", request.token_ttl_seconds)?;
        let Invitation { secret, addresses, root_digests } = self.invitation()?;
        // Nobody had this name before, and from here on no other token may name it.
        let node = convert::read("node", &format!("rhizome-{}", JoinToken::id_of(&secret)))?;
        let now = self.now()?;
        let expires_at = now.plus(ttl.seconds());
        let purpose = TokenPurpose {
            cluster: name.clone(),
            node: Clone::clone(&node),
            scope: Scope::none(),
            created_by: by.to_owned(),
            expires_at,
        };
        let token = JoinToken::new(&secret, purpose, now);
        let cluster = Cluster {
            name: name.clone(),
            node,
            scope,
            intermediate_ttl,
            state: ClusterState::Active,
            created_by: by.to_owned(),
            created_at: now,
            granted: Vec::new(),
        };
        let detail = format!("{}, intermediates of {} s", cluster.scope, intermediate_ttl.seconds());
        let transaction = self.adding(cluster)?.require_absent(token.key()).put(&token);
        let added = self.changed(by, "cluster.add", name.as_str(), &detail);
        let detail = format!("for the Rhizome of cluster {name}, until {expires_at}");
        let created = self.changed(by, "token.create", token.id.as_str(), &detail);
        self.commit(transaction.record(added).record(created)).await?;
        tracing::warn!(cluster = %name, by, "cluster added");
        Ok(wire::AddClusterResponse {
            cluster: Some(self.cluster_shown(&name)?),
            secret: URL_SAFE_NO_PAD.encode(secret),
            token_expires_at: Some(convert::timestamp(expires_at)),
            trust_domain: self.settings.trust_domain.to_string(),
            addresses,
            root_digests,
            issuer_key_digests: own_issuer_keys(&self.state(), now).iter().map(convert::digest).collect(),
        })
    }

    /// The transaction that puts `cluster` on record: as a new one, or after one of that name that was removed, whose
    /// intermediates may still be valid. Its ledger begins anew.
    fn adding(&self, mut cluster: Cluster) -> Result<Transaction, ApiError> {
        let state = self.state();
        let transaction = Transaction::named("add cluster");
        let Some(known) = state.clusters().get(&cluster.name) else {
            if state.clusters().len() >= CLUSTERS {
                let problem = format!("there are {CLUSTERS} clusters already, which is the limit");
                return Err(ApiError::Invalid { field: "name", problem });
            }
            return Ok(transaction.require_absent(cluster.key()).put(&cluster));
        };
        if !matches!(known.value.state, ClusterState::Removed(_)) {
            let problem = "exists already; remove it first, or change what it may issue with `cluster set`";
            return Err(ApiError::Conflict { what: "cluster", name: cluster.name.to_string(), problem });
        }
        cluster.granted.clone_from(&known.value.granted);
        let transaction = transaction.require_unchanged(cluster.key(), known.version).put(&cluster);
        Ok(match state.cluster_reports().get(&cluster.name) {
            None => transaction,
            Some(report) => {
                let kept = report.value.begun_anew();
                transaction.require_unchanged(kept.key(), report.version).put(&kept)
            }
        })
    }

    /// Changes the record of cluster `name`, and what its node may, in one transaction.
    async fn change_cluster(
        self: &Arc<Self>,
        name: &ClusterName,
        (by, action, detail): (&str, &str, &str),
        node: Node,
        change: impl Fn(&Cluster, Timestamp) -> Option<Cluster>,
    ) -> Result<(), ApiError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let now = self.now()?;
            let state = self.state();
            let Versioned { version, value: cluster } = known(&state, name)?;
            let next = change(cluster, now).ok_or_else(|| ApiError::Conflict {
                what: "cluster",
                name: name.to_string(),
                problem: "is not suspended",
            })?;
            if matches!(cluster.state, ClusterState::Removed(_)) && next.state == cluster.state {
                let problem = "was removed; `cluster add` begins with it anew";
                return Err(ApiError::Conflict { what: "cluster", name: name.to_string(), problem });
            }
            if next == **cluster {
                return Ok(());
            }
            let entry = self.changed(by, action, name.as_str(), detail);
            let transaction = Transaction::named("change cluster")
                .require_unchanged(next.key(), *version)
                .put(&next)
                .record(entry);
            // A token that was not used yet ends with what it was for.
            let removed = matches!(next.state, ClusterState::Removed(_));
            let token = next.node.as_str().strip_prefix("rhizome-").filter(|_| removed);
            let transaction = match token {
                Some(token) => transaction.delete(DocumentKey::new(Kind::Token, token)),
                None => transaction,
            };
            let transaction = with_node(&state, transaction, &next, node, (by, detail, now));
            match self.commit(transaction).await {
                Err(StoreError::Conflict { .. }) if tries < TRIES => {}
                outcome => {
                    outcome?;
                    tracing::warn!(cluster = %name, by, action, detail, "cluster changed");
                    return Ok(());
                }
            }
        }
    }

    fn cluster_shown(&self, name: &ClusterName) -> Result<wire::Cluster, ApiError> {
        let state = self.state();
        let cluster = known(&state, name)?;
        Ok(shown(&state, &cluster.value, self.ports.clock.now()))
    }

    /// A scope from the wire. It must be given: what a cluster may issue is never guessed.
    fn read_cluster_scope(&self, scope: Option<wire::ClusterScope>) -> Result<(ClusterScope, Ttl), ApiError> {
        let invalid = |problem: String| ApiError::Invalid { field: "scope", problem };
        let missing = || invalid("it is missing; name the namespaces that the cluster may issue for".into());
        let scope = scope.ok_or_else(missing)?;
        let namespaces = read_namespaces(scope.all_namespaces, scope.namespaces)?;
        let identities = scope.identities.iter().map(|text| convert::read::<IdentityPattern>("scope", text));
        let max_ttl = convert::read_ttl("max_ttl_seconds", scope.max_ttl_seconds)?;
        let intermediate = convert::read_ttl("intermediate_ttl_seconds", scope.intermediate_ttl_seconds)?;
        let intermediate = intermediate.unwrap_or(CLUSTER_INTERMEDIATE_TTL);
        let scope = ClusterScope {
            namespaces,
            identities: identities.collect::<Result<_, _>>()?,
            max_ttl: max_ttl.unwrap_or(WORKLOAD_MAX_TTL),
        };
        let checked = scope.check(&self.settings.trust_domain, intermediate);
        checked.map_err(|cause| invalid(cause.to_string()))?;
        Ok((scope, intermediate))
    }
}

fn known<'s>(state: &'s State, name: &ClusterName) -> Result<&'s Versioned<Arc<Cluster>>, ApiError> {
    let known = state.clusters().get(name);
    known.ok_or_else(|| ApiError::NotFound { what: "cluster", name: name.to_string() })
}

/// Adds what becomes of the cluster's node, where it has joined.
fn with_node(
    state: &State,
    transaction: Transaction,
    cluster: &Cluster,
    what: Node,
    (by, reason, now): (&str, &str, Timestamp),
) -> Transaction {
    let Some(node) = state.nodes().get(&cluster.node_id()) else { return transaction };
    let next = match what {
        Node::Stays => return transaction,
        Node::IsShutOut => node.value.banned(by, reason, now),
        Node::IsLetIn => node.value.unbanned(),
    };
    if next == *node.value {
        transaction
    } else {
        transaction.require_unchanged(next.key(), node.version).put(&next)
    }
}

fn shown(state: &State, cluster: &Cluster, now: Timestamp) -> wire::Cluster {
    let report = state.cluster_reports().get(&cluster.name).map(|it| &*it.value);
    let reported = report.map(|it| it.reported.clone()).unwrap_or_default();
    let node = state.nodes().get(&cluster.node_id()).map(|it| &it.value.state);
    let (standing, ended) = match &cluster.state {
        ClusterState::Active if node.is_none() => (wire::ClusterState::Awaited, None),
        ClusterState::Active => (wire::ClusterState::Active, None),
        ClusterState::Suspended(ended) => (wire::ClusterState::Suspended, Some(ended)),
        ClusterState::Removed(ended) => (wire::ClusterState::Removed, Some(ended)),
    };
    let intermediates = cluster.granted.iter().map(|granted| {
        let served = report.and_then(|it| it.issued.get(&granted.id));
        wire::GrantedIntermediate {
            authority_id: granted.id.to_string(),
            root_id: granted.root.to_string(),
            serial: granted.serial.to_string(),
            granted_at: Some(convert::timestamp(granted.granted_at)),
            not_after: Some(convert::timestamp(granted.not_after)),
            issued_count: served.map_or(0, |it| it.count),
            issued_until: served.map(|it| convert::timestamp(it.until)),
        }
    });
    let alarms = report.map(|it| it.recent.as_slice()).unwrap_or_default().iter();
    let alarms = alarms.map(|alarm| wire::ClusterAlarm {
        code: alarm.code.clone(),
        subject: alarm.subject.clone(),
        detail: alarm.detail.clone(),
        position: alarm.position,
        found_at: Some(convert::timestamp(alarm.at)),
    });
    let counts = reported.counts.into_iter().map(|(kind, count)| wire::ClusterCount { kind, count });
    wire::Cluster {
        name: cluster.name.to_string(),
        state: standing.into(),
        scope: Some(shown_scope(cluster)),
        node_id: cluster.node_id(),
        created_by: cluster.created_by.clone(),
        created_at: Some(convert::timestamp(cluster.created_at)),
        ended_at: ended.map(|it| convert::timestamp(it.at)),
        ended_by: ended.map(|it| it.by.clone()).unwrap_or_default(),
        end_reason: ended.map(|it| it.reason.clone()).unwrap_or_default(),
        intermediates: intermediates.collect(),
        reported_at: report.map(|it| convert::timestamp(it.at)),
        connected: matches!(node, Some(NodeState::Active)) && report.is_some_and(|it| it.is_heard(now)),
        version: reported.version,
        bundle_sequence: reported.holds.map_or(0, |it| it.sequence),
        counts: counts.collect(),
        behind_count: reported.behind_count,
        behind: reported.behind,
        ledger_read_to: report.map_or(0, |it| it.read_to),
        ledger_hash: report
            .filter(|it| it.read_to > 0)
            .map(|it| convert::digest(&it.read_hash))
            .unwrap_or_default(),
        ledger_last: reported.last_record,
        alarm_count: report.map_or(0, |it| it.alarms),
        alarms: alarms.collect(),
    }
}

fn shown_scope(cluster: &Cluster) -> wire::ClusterScope {
    let scope = &cluster.scope;
    let (all_namespaces, namespaces) = namespaces(&scope.namespaces);
    wire::ClusterScope {
        all_namespaces,
        namespaces,
        identities: scope.identities.iter().map(ToString::to_string).collect(),
        max_ttl_seconds: scope.max_ttl.seconds(),
        intermediate_ttl_seconds: cluster.intermediate_ttl.seconds(),
    }
}
