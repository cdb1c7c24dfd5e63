//! Nodes: joining with a one-time token, renewing, and staying in step.
//!
//! Laws: a token is consumed in the very transaction that records the node's certificate, so of a hundred racing
//! uses exactly one wins; a lost answer may be retried with the same key and no other. A renewal must present the
//! node's newest certificate, or the one before after a lost answer; anything else is a copy of the node's key.
//! Not here: the token's and the record's own rules (`rhizome_core::{tokens, nodes}`), the stream (`sync`).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_core::attributes::Attributes;
use rhizome_core::caller::{AttestationMethod, AttestedCaller, Principal};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Versioned};
use rhizome_core::ledger::Issuance;
use rhizome_core::nodes::{NewCertificate, NodeRecord, NodeState};
use rhizome_core::policy::Wish;
use rhizome_core::ports::StoreError;
use rhizome_core::tokens::{JoinToken, TokenError};
use rhizome_id::Serial;
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::attest_request::Evidence;
use rhizome_proto::node::v1::node_service_server::NodeService;
use tonic::{Request, Response, Streaming};

use super::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, AuthError, IssueError};
use crate::gate;
use crate::issue::Csr;
use crate::peer::Peer;
use crate::status::{Answer, Outgoing};

/// How often a join is tried again when somebody else changed the token or the node at the same moment.
const TRIES: usize = 4;

#[tonic::async_trait]
impl NodeService for Api {
    async fn attest(&self, request: Request<wire::AttestRequest>) -> Answer<wire::AttestResponse> {
        if let Some(Peer::Remote { certificate: Some(_), .. }) = gate::peer(&request).ok().as_deref() {
            let what = "a client certificate beside the evidence";
            return Err(ApiError::from(AuthError::TwoCredentials { what }).into());
        }
        let request = request.into_inner();
        let Some(Evidence::JoinToken(evidence)) = request.evidence else {
            let problem = "it is missing; send a join token".to_owned();
            return Err(ApiError::Invalid { field: "evidence", problem }.into());
        };
        let joined = self.0.join(&evidence.token, &request.csr_der).await;
        let (identity, node_id) = joined.map_err(|error| self.0.count_refusal(error))?;
        Ok(Response::new(wire::AttestResponse { identity: Some(identity), node_id }))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Answer<wire::RenewResponse> {
        let caller = self.0.caller(&request)?;
        let presented = match gate::peer(&request).ok().as_deref() {
            Some(Peer::Remote { certificate: Some(certificate), .. }) => certificate.serial,
            _ => return Err(ApiError::from(AuthError::NoCredential).into()),
        };
        let renewed = self.0.renew_node(&caller, presented, &request.get_ref().csr_der).await;
        let identity = renewed.map_err(|error| self.0.count_refusal(error))?;
        Ok(Response::new(wire::RenewResponse { identity: Some(identity) }))
    }

    type SyncStream = Outgoing<wire::SyncResponse>;

    async fn sync(&self, request: Request<Streaming<wire::SyncRequest>>) -> Answer<Self::SyncStream> {
        let peer = gate::peer(&request)?;
        self.0.start_sync(peer, request.into_inner()).await
    }
}

type Issued = rhizome_proto::ca::v1::IssuedCertificate;

impl Ca {
    /// Joins a node: all or nothing, and again for the same key while the token lives.
    async fn join(self: &Arc<Self>, secret: &str, csr_der: &[u8]) -> Result<(Issued, String), ApiError> {
        let malformed = || ApiError::NoSuchToken { id: "(malformed)".to_owned() };
        let secret = URL_SAFE_NO_PAD.decode(secret).map_err(|_opaque| malformed())?;
        let id = JoinToken::id_of(&secret);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_to_join(&secret, &id.to_string(), csr_der).await {
                Err(ApiError::Issue(IssueError::Store(StoreError::Conflict { .. }))) if tries < TRIES => {}
                outcome => return outcome,
            }
        }
    }

    async fn try_to_join(
        self: &Arc<Self>,
        secret: &[u8],
        id: &str,
        csr_der: &[u8],
    ) -> Result<(Issued, String), ApiError> {
        // The cheap checks first: a caller without a living token costs one read by key and no signature check.
        let now = self.now()?;
        let document = self.ports.store.document(&DocumentKey::new(Kind::Token, id)).await?;
        let document = document.ok_or_else(|| ApiError::NoSuchToken { id: id.to_owned() })?;
        let Versioned { version, value: token } =
            document.read::<JoinToken>().map_err(|bad| ApiError::Bug(bad.to_string()))?;
        if now >= token.expires_at {
            return Err(TokenError::Expired { at: token.expires_at }.into());
        }
        let caller = bearer(&token)?;
        let csr = Csr::Der(csr_der).verify()?;
        let key = csr.public_key().digest();
        let redemption = token.redeem(secret, &key, now).inspect_err(|refused| {
            self.note_refusal(&caller, "node.join", refused.code(), &refused.to_string());
        })?;

        let state = self.state();
        let node_id = format!("{}/{}/{}", token.cluster, AttestationMethod::JoinToken, token.node);
        let known = state.nodes().get(&node_id).cloned();
        if let Some(known) = &known
            && let NodeState::Banned { .. } = known.value.state
        {
            return Err(ApiError::BannedNode { id: node_id });
        }
        let after = redemption.token;
        // A cluster that was suspended or removed before its Rhizome joined.
        let cluster = state.cluster_of_node(&token.cluster, &token.node).cloned();
        if let Some(cluster) = &cluster {
            cluster.value.check_active()?;
        }
        let ttl = cluster.as_ref().map(|it| it.value.intermediate_ttl);
        let alongside = |issuance: &Issuance| {
            let record = first_record(&token, issuance, now);
            let node_key = record.key();
            let transaction =
                Transaction::named("join node").require_unchanged(after.key(), version).put(&after);
            let transaction = match &known {
                None => transaction.require_absent(node_key),
                Some(known) => transaction.require_unchanged(node_key, known.version),
            };
            let transaction = match &cluster {
                None => transaction,
                Some(cluster) => transaction.require_unchanged(cluster.value.key(), cluster.version),
            };
            let detail = format!("token {} created by {}", token.id, token.created_by);
            transaction.put(&record).record(self.changed(
                &token_name(&token),
                "node.join",
                &record.id(),
                &detail,
            ))
        };
        let leaf = self.issue_with(&caller, csr, Wish::Node { ttl }, None, alongside).await?;
        Ok((convert::issued(&leaf, self.wire_bundle().as_deref().cloned()), node_id))
    }

    async fn renew_node(
        self: &Arc<Self>,
        caller: &AttestedCaller,
        presented: Serial,
        csr_der: &[u8],
    ) -> Result<Issued, ApiError> {
        let Principal::Node { cluster, method, name } = caller.principal() else {
            return Err(AuthError::NotAPrincipal { id: caller.principal().to_string() }.into());
        };
        let id = format!("{cluster}/{method}/{name}");
        let state = self.state();
        let record = state.nodes().get(&id).cloned();
        let record = record.ok_or_else(|| AuthError::Unknown { who: caller.principal().to_string() })?;
        let csr = Csr::Der(csr_der).verify()?;
        if let Err(refused) = record.value.check_renewal(&presented, &csr.public_key().digest()) {
            tracing::error!(node = %id, code = refused.code(), cause = %refused, "a node's renewal was refused");
            self.note_refusal(caller, "node.renew", refused.code(), &refused.to_string());
            return Err(refused.into());
        }
        let alongside = |issuance: &Issuance| {
            let new = new_certificate(issuance);
            let transaction = Transaction::named("renew node")
                .require_unchanged(DocumentKey::new(Kind::Node, id.clone()), record.version);
            match record.value.renew(&presented, new) {
                Ok(renewed) => transaction.put(&renewed),
                // Checked above for the same key; kept so that the record could not be lost even so.
                Err(_checked_before) => transaction.put(&*record.value),
            }
        };
        // A cluster's Rhizome must find its way back for as long as its intermediate lives.
        let ttl = state.cluster_of(caller.principal()).map(|it| it.value.intermediate_ttl);
        let leaf = self.issue_with(caller, csr, Wish::Node { ttl }, None, alongside).await?;
        Ok(convert::issued(&leaf, self.wire_bundle().as_deref().cloned()))
    }
}

/// The bearer of a token as a caller: it may become the node that the token names, and nothing else.
fn bearer(token: &JoinToken) -> Result<AttestedCaller, ApiError> {
    use rhizome_core::attributes::AttributeName;
    let mut attributes = Attributes::default();
    let pairs = [
        (AttributeName::Cluster, token.cluster.to_string()),
        (AttributeName::Node, token.node.to_string()),
        (AttributeName::Method, AttestationMethod::JoinToken.to_string()),
    ];
    for (name, value) in pairs {
        attributes.insert(name, value).map_err(|cause| ApiError::Bug(cause.to_string()))?;
    }
    let principal = Principal::Token { id: token.id.clone() };
    Ok(AttestedCaller::assertion(principal, attributes, token.scope.clone()))
}

fn token_name(token: &JoinToken) -> String {
    Principal::Token { id: token.id.clone() }.to_string()
}

const fn new_certificate(issuance: &Issuance) -> NewCertificate {
    NewCertificate { key: issuance.public_key, serial: issuance.serial, not_after: issuance.not_after }
}

fn first_record(token: &JoinToken, issuance: &Issuance, now: rhizome_id::Timestamp) -> NodeRecord {
    NodeRecord {
        cluster: token.cluster.clone(),
        method: AttestationMethod::JoinToken,
        name: token.node.clone(),
        scope: token.scope.clone(),
        attributes: Attributes::default(),
        key: issuance.public_key,
        serial: issuance.serial,
        previous: None,
        not_after: issuance.not_after,
        attested_at: now,
        renewals: 0,
        state: NodeState::Active,
    }
}
