//! Join tokens: made, listed, revoked.
//!
//! Laws: a secret leaves this process once, in the answer to the call that made it; what is stored is its digest, and
//! neither log nor ledger nor list ever holds more than the token's public handle. What a node may vouch for is said
//! by whoever makes the token: there is no default.
//! Not here: redeeming a token (`api::nodes`), what redeeming means (`rhizome_core::tokens`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use rhizome_core::attributes::{AttributeName, validate_value};
use rhizome_core::caller::{AttestationMethod, NamespaceScope, Scope};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Versioned};
use rhizome_core::limits::JOIN_TOKEN_SECRET_BYTES;
use rhizome_core::nodes::NodeState;
use rhizome_core::ports::StoreError;
use rhizome_core::tokens::{JoinToken, TokenPurpose, TokenState};
use rhizome_id::{ClusterName, NodeName, Timestamp, TokenId, Ttl};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::token_service_server::TokenService;
use tonic::{Request, Response};

use super::{page_size, read_page_token};
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::status::Answer;

/// Tokens read from the store in one go.
const READ_AT_ONCE: usize = 1_000;
/// Namespaces of one scope, as the protocol says.
const SCOPE_NAMESPACES: usize = 256;
/// Addresses of one join string, as the protocol says: it is pasted by people.
const JOIN_ADDRESSES: usize = 8;

#[tonic::async_trait]
impl TokenService for Api {
    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Answer<wire::CreateTokenResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        Ok(Response::new(self.0.create_token(&by, request.into_inner()).await?))
    }

    async fn list_tokens(
        &self,
        request: Request<wire::ListTokensRequest>,
    ) -> Answer<wire::ListTokensResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let after = read_page_token::<Place>(&request.page_token)?;
        let limit = page_size(request.page_size);
        let now = self.0.ports.clock.now();
        let mut page =
            self.0.tokens_after(after, limit.saturating_add(1), request.include_ended, now).await?;
        let more = page.len() > limit;
        if more {
            page.pop_last();
        }
        let last = page.last_key_value().filter(|_| more).map(|(place, _)| place.to_string());
        let tokens = page.into_values().map(|token| shown(&token, now)).collect();
        Ok(Response::new(wire::ListTokensResponse { tokens, next_page_token: last.unwrap_or_default() }))
    }

    async fn revoke_token(
        &self,
        request: Request<wire::RevokeTokenRequest>,
    ) -> Answer<wire::RevokeTokenResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let id: TokenId = convert::read("id", &request.get_ref().id)?;
        let token = self.0.revoke_token(&by, &id).await?;
        let token = Some(shown(&token, self.0.ports.clock.now()));
        Ok(Response::new(wire::RevokeTokenResponse { token }))
    }
}

impl Ca {
    async fn create_token(
        self: &Arc<Self>,
        by: &str,
        request: wire::CreateTokenRequest,
    ) -> Result<wire::CreateTokenResponse, ApiError> {
        let cluster: ClusterName = convert::read("cluster", &request.cluster)?;
        let node = convert::read_optional::<NodeName>("node", &request.node)?;
        let scope = read_scope(request.scope)?;
        let ttl = self.read_token_ttl("ttl_seconds", request.ttl_seconds)?;
        let Invitation { secret, addresses, root_digests } = self.invitation()?;
        let node = match node {
            Some(node) => node,
            None => convert::read("node", &format!("node-{}", JoinToken::id_of(&secret)))?,
        };
        self.refuse_clusters_own(&cluster, &node)?;
        self.refuse_banned(&cluster, &node)?;
        let now = self.now()?;
        let expires_at = now.plus(ttl.seconds());
        let purpose = TokenPurpose { cluster, node, scope, created_by: by.to_owned(), expires_at };
        let token = JoinToken::new(&secret, purpose, now);

        let detail =
            format!("for node {}/{}, until {expires_at}, {}", token.cluster, token.node, said(&token.scope));
        let entry = self.changed(by, "token.create", token.id.as_str(), &detail);
        let transaction = Transaction::named("create token").require_absent(token.key());
        self.commit(transaction.put(&token).record(entry)).await?;
        Ok(wire::CreateTokenResponse {
            token: Some(shown(&token, now)),
            secret: URL_SAFE_NO_PAD.encode(secret),
            trust_domain: self.settings.trust_domain.to_string(),
            addresses,
            root_digests,
        })
    }

    /// The lifetime of a join token from the wire.
    pub(super) fn read_token_ttl(&self, field: &'static str, seconds: i64) -> Result<Ttl, ApiError> {
        let ttl = convert::read_ttl(field, seconds)?.unwrap_or(self.settings.token_ttl);
        let longest = self.settings.token_max_ttl;
        if ttl > longest {
            let problem = format!("a join token lives at most {} seconds here", longest.seconds());
            return Err(ApiError::Invalid { field, problem });
        }
        Ok(ttl)
    }

    /// What a join string is made of besides the name of the trust domain.
    pub(super) fn invitation(&self) -> Result<Invitation, ApiError> {
        let bundle = self.bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let mut secret = [0; JOIN_TOKEN_SECRET_BYTES];
        self.ports.entropy.fill(&mut secret).map_err(|_opaque| IssueError::NoEntropy)?;
        let anchors = bundle.bundle.anchors().iter();
        Ok(Invitation {
            secret,
            addresses: self.settings.advertise.iter().take(JOIN_ADDRESSES).cloned().collect(),
            root_digests: anchors.map(|it| convert::digest(&it.fingerprint())).collect(),
        })
    }

    /// Whoever joins as the node of a cluster's Rhizome gets intermediates: that is decided with role `security`.
    fn refuse_clusters_own(&self, cluster: &ClusterName, node: &NodeName) -> Result<(), ApiError> {
        match self.state().cluster_of_node(cluster, node) {
            Some(_) => Err(ApiError::Conflict {
                what: "node",
                name: format!("{cluster}/{node}"),
                problem: "is the Rhizome of a cluster; `rhizome cluster remove` and `cluster add` give it a new token",
            }),
            None => Ok(()),
        }
    }

    /// A token for a banned node could never be redeemed; better said now, to whoever can do something about it.
    fn refuse_banned(&self, cluster: &ClusterName, node: &NodeName) -> Result<(), ApiError> {
        let id = format!("{cluster}/{}/{node}", AttestationMethod::JoinToken);
        match self.state().nodes().get(&id).map(|it| &it.value.state) {
            Some(NodeState::Banned { .. }) => Err(ApiError::Conflict {
                what: "node",
                name: id,
                problem: "is banned; let it in again with `rhizome node evict`, then create the token",
            }),
            Some(NodeState::Active) | None => Ok(()),
        }
    }

    /// The first `limit` tokens after `after`, newest first. However many there are, only `limit` are kept at a time.
    async fn tokens_after(
        &self,
        after: Option<Place>,
        limit: usize,
        include_ended: bool,
        now: Timestamp,
    ) -> Result<BTreeMap<Place, JoinToken>, ApiError> {
        let mut page = BTreeMap::new();
        let mut read_to: Option<String> = None;
        loop {
            let documents = self.ports.store.documents(Kind::Token, read_to.as_deref(), READ_AT_ONCE).await?;
            let Some(last) = documents.last() else { return Ok(page) };
            read_to = Some(last.key.id.clone());
            for document in &documents {
                let token = document.read::<JoinToken>().map_err(|bad| ApiError::Bug(bad.to_string()))?.value;
                let place = Place { created_at: Reverse(token.created_at), id: token.id.clone() };
                let wanted = include_ended || token.is_redeemable(now);
                if wanted && after.as_ref().is_none_or(|after| place > *after) {
                    page.insert(place, token);
                }
                if page.len() > limit {
                    page.pop_last();
                }
            }
        }
    }

    /// Revokes a token; of a used one, that ends the retries of the key that used it. One that has ended already is left
    /// as it is.
    async fn revoke_token(self: &Arc<Self>, by: &str, id: &TokenId) -> Result<JoinToken, ApiError> {
        let Versioned { version, value: token } = self.token(id).await?;
        let ended = |token: &JoinToken| {
            matches!(token.state, TokenState::Revoked { .. }) || token.expires_at <= self.ports.clock.now()
        };
        if ended(&token) {
            return Ok(token);
        }
        let revoked = token.revoked(by, self.ports.clock.now());
        let detail = format!("it was for node {}/{}", token.cluster, token.node);
        let entry = self.changed(by, "token.revoke", token.id.as_str(), &detail);
        let transaction = Transaction::named("revoke token").require_unchanged(token.key(), version);
        match self.commit(transaction.put(&revoked).record(entry)).await {
            Ok(_committed) => Ok(revoked),
            Err(conflict @ StoreError::Conflict { .. }) => {
                // It ended at the same moment, by a node or by another administrator: that is an answer.
                let now_there = self.token(id).await?.value;
                if ended(&now_there) { Ok(now_there) } else { Err(conflict.into()) }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn token(&self, id: &TokenId) -> Result<Versioned<JoinToken>, ApiError> {
        let document = self.ports.store.document(&DocumentKey::new(Kind::Token, id.as_str())).await?;
        let document =
            document.ok_or_else(|| ApiError::NotFound { what: "join token", name: id.to_string() })?;
        document.read::<JoinToken>().map_err(|bad| ApiError::Bug(bad.to_string()))
    }
}

/// Where a token stands in the list: newest first, then by handle. Its text is the page token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    created_at: Reverse<Timestamp>,
    id: TokenId,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.created_at.0.unix(), self.id)
    }
}

impl std::str::FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "it is not a place in the list of tokens";
        let (created_at, id) = text.split_once('.').ok_or(wrong)?;
        let created_at = created_at.parse().map_err(|_not_a_number| wrong)?;
        let id = id.parse().map_err(|_not_a_name| wrong)?;
        Ok(Self { created_at: Reverse(Timestamp::from_unix(created_at)), id })
    }
}

fn shown(token: &JoinToken, now: Timestamp) -> wire::JoinToken {
    let (state, ended_at, revoked_by) = match &token.state {
        TokenState::Unused if now >= token.expires_at => (wire::JoinTokenState::Expired, None, ""),
        TokenState::Unused => (wire::JoinTokenState::Unused, None, ""),
        TokenState::Used { at, .. } => (wire::JoinTokenState::Used, Some(*at), ""),
        TokenState::Revoked { at, by } => (wire::JoinTokenState::Revoked, Some(*at), by.as_str()),
    };
    wire::JoinToken {
        id: token.id.to_string(),
        cluster: token.cluster.to_string(),
        node: token.node.to_string(),
        scope: Some(scope(&token.scope)),
        state: state.into(),
        created_by: token.created_by.clone(),
        created_at: Some(convert::timestamp(token.created_at)),
        expires_at: Some(convert::timestamp(token.expires_at)),
        ended_at: ended_at.map(convert::timestamp),
        revoked_by: revoked_by.to_owned(),
    }
}

/// A secret, where to come with it, and whom to believe there.
pub(super) struct Invitation {
    pub(super) secret: [u8; JOIN_TOKEN_SECRET_BYTES],
    pub(super) addresses: Vec<String>,
    pub(super) root_digests: Vec<Bytes>,
}

/// A scope as the wire has it.
pub(super) fn scope(scope: &Scope) -> wire::Scope {
    let (all_namespaces, namespaces) = namespaces(&scope.namespaces);
    wire::Scope { all_namespaces, namespaces }
}

/// Namespaces as the wire has them: all, or these.
pub(super) fn namespaces(namespaces: &NamespaceScope) -> (bool, Vec<String>) {
    match namespaces {
        NamespaceScope::All => (true, Vec::new()),
        NamespaceScope::Only(names) => (false, names.iter().cloned().collect()),
    }
}

/// A scope from the wire. It must be given: what a node may vouch for is never guessed.
fn read_scope(scope: Option<wire::Scope>) -> Result<Scope, ApiError> {
    let problem =
        || "it is missing; name the namespaces that the node may vouch for, or all of them".to_owned();
    let missing = || ApiError::Invalid { field: "scope", problem: problem() };
    let wire::Scope { all_namespaces, namespaces } = scope.ok_or_else(missing)?;
    Ok(Scope { namespaces: read_namespaces(all_namespaces, namespaces)? })
}

/// Namespaces from the wire: all, or these.
pub(super) fn read_namespaces(all: bool, namespaces: Vec<String>) -> Result<NamespaceScope, ApiError> {
    let invalid = |problem: String| ApiError::Invalid { field: "scope", problem };
    if all && namespaces.is_empty() {
        return Ok(NamespaceScope::All);
    }
    if all {
        return Err(invalid("it says all namespaces and also names some; say one of the two".into()));
    }
    if namespaces.len() > SCOPE_NAMESPACES {
        let found = namespaces.len();
        return Err(invalid(format!("it names {found} namespaces; the limit is {SCOPE_NAMESPACES}")));
    }
    for namespace in &namespaces {
        validate_value(&AttributeName::Namespace, namespace).map_err(|cause| invalid(cause.to_string()))?;
        if namespace == rhizome_core::rules::ANY {
            return Err(invalid("`*` is no namespace; say `all_namespaces` to mean every one".into()));
        }
    }
    Ok(NamespaceScope::Only(BTreeSet::from_iter(namespaces)))
}

/// A scope in words, for the ledger.
fn said(scope: &Scope) -> String {
    format!("may vouch for {}", scope.namespaces)
}
