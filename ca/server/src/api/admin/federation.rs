//! Relationships with foreign trust domains: made, shown, refreshed and ended by administrators.
//!
//! Laws: whom to trust is decided by a person with role `security`, stands in the ledger with its reason, and takes
//! effect whole: a relationship goes together with the bundle that was trusted by it.
//! Not here: fetching (`federation`), what counts (`rhizome_core::federation`).

use std::sync::Arc;

use rhizome_core::documents::{DocumentKey, Kind, Stored as _, Transaction, Versioned};
use rhizome_core::federation::{
    EndpointProfile, ForeignRecord, Origin, Outlook, Refusal, Relationship, by_hand, outlook,
};
use rhizome_core::limits::FEDERATIONS;
use rhizome_core::state::State;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::federation_service_server::FederationService;
use tonic::{Request, Response};

use super::read_required_reason;
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::federation::in_words;
use crate::status::Answer;

/// Names of nodes that are behind, in one answer.
const BEHIND_SHOWN: usize = 20;

#[tonic::async_trait]
impl FederationService for Api {
    async fn create_relationship(
        &self,
        request: Request<wire::CreateRelationshipRequest>,
    ) -> Answer<wire::CreateRelationshipResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let relationship = self.0.create_relationship(&by, request.into_inner()).await?;
        Ok(Response::new(wire::CreateRelationshipResponse { relationship: Some(relationship) }))
    }

    async fn list_relationships(
        &self,
        request: Request<wire::ListRelationshipsRequest>,
    ) -> Answer<wire::ListRelationshipsResponse> {
        self.0.caller(&request)?;
        let state = self.0.state();
        let all = state.relationships().values().map(|it| self.0.shown(&state, &it.value));
        Ok(Response::new(wire::ListRelationshipsResponse { relationships: all.collect() }))
    }

    async fn get_relationship(
        &self,
        request: Request<wire::GetRelationshipRequest>,
    ) -> Answer<wire::GetRelationshipResponse> {
        self.0.caller(&request)?;
        let domain = convert::read("trust_domain", &request.get_ref().trust_domain)?;
        let relationship = Some(self.0.shown_by_name(&domain)?);
        Ok(Response::new(wire::GetRelationshipResponse { relationship }))
    }

    async fn delete_relationship(
        &self,
        request: Request<wire::DeleteRelationshipRequest>,
    ) -> Answer<wire::DeleteRelationshipResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let domain = convert::read("trust_domain", &request.trust_domain)?;
        let reason = read_required_reason(&request.reason)?;
        let relationship = Some(self.0.shown_by_name(&domain)?);
        self.0.delete_relationship(&by, &domain, reason).await?;
        Ok(Response::new(wire::DeleteRelationshipResponse { relationship }))
    }

    async fn refresh_relationship(
        &self,
        request: Request<wire::RefreshRelationshipRequest>,
    ) -> Answer<wire::RefreshRelationshipResponse> {
        self.0.caller(&request)?;
        let domain: TrustDomain = convert::read("trust_domain", &request.get_ref().trust_domain)?;
        self.0.fetch_domain(&domain).await?;
        let relationship = Some(self.0.shown_by_name(&domain)?);
        Ok(Response::new(wire::RefreshRelationshipResponse { relationship }))
    }

    async fn set_federated_bundle(
        &self,
        request: Request<wire::SetFederatedBundleRequest>,
    ) -> Answer<wire::SetFederatedBundleResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let domain = convert::read("trust_domain", &request.trust_domain)?;
        let reason = read_required_reason(&request.reason)?;
        self.0.set_foreign_bundle(&by, &domain, &request.bundle_json, reason).await?;
        let relationship = Some(self.0.shown_by_name(&domain)?);
        Ok(Response::new(wire::SetFederatedBundleResponse { relationship }))
    }
}

impl Ca {
    async fn create_relationship(
        self: &Arc<Self>,
        by: &str,
        request: wire::CreateRelationshipRequest,
    ) -> Result<wire::Relationship, ApiError> {
        let now = self.now()?;
        let relationship = read_relationship(&request, by, now)?;
        let has_bundle = !request.bundle_json.is_empty();
        relationship
            .check(&self.settings.trust_domain, has_bundle)
            .map_err(|cause| ApiError::Invalid { field: "relationship", problem: cause.to_string() })?;
        let state = self.state();
        let domain = relationship.trust_domain.clone();
        if state.relationships().contains_key(&domain) {
            let problem = "exists already; remove it first";
            return Err(ApiError::Conflict { what: "relationship", name: domain.to_string(), problem });
        }
        if state.relationships().len() >= FEDERATIONS {
            let problem = format!("there are {FEDERATIONS} relationships already, which is the limit");
            return Err(ApiError::Invalid { field: "relationship", problem });
        }
        let detail = quoted(&relationship);
        let entry = self.changed(by, "federation.create", domain.as_str(), &detail);
        let mut transaction = Transaction::named("create relationship")
            .require_absent(relationship.key())
            .require_absent(DocumentKey::new(Kind::ForeignBundle, domain.to_string()))
            .put(&relationship)
            .record(entry);
        if has_bundle {
            let given = by_hand(&relationship, &request.bundle_json, by, now).map_err(no_bundle)?;
            let detail = in_words(&given.bundle);
            let entry = self.changed(by, "federation.set_bundle", domain.as_str(), &detail);
            transaction = transaction.put(&ForeignRecord::empty(domain.clone()).given(given)).record(entry);
        }
        self.commit(transaction).await?;
        tracing::warn!(%domain, by, detail, "federation begins");
        // It has begun, whatever comes of this; the domain's own task goes on trying.
        if let Err(cause) = self.fetch_if_due(&domain).await {
            tracing::warn!(%domain, %cause, "what came of the first fetch could not be kept");
        }
        self.shown_by_name(&domain)
    }

    async fn delete_relationship(
        self: &Arc<Self>,
        by: &str,
        domain: &TrustDomain,
        reason: &str,
    ) -> Result<(), ApiError> {
        let state = self.state();
        let known = state.relationships().get(domain).ok_or_else(|| missing(domain))?;
        let entry = self.changed(by, "federation.delete", domain.as_str(), reason);
        let transaction = Transaction::named("delete relationship")
            .require_unchanged(known.value.key(), known.version)
            .delete(known.value.key())
            .delete(DocumentKey::new(Kind::ForeignBundle, domain.to_string()))
            .record(entry);
        self.commit(transaction).await?;
        tracing::warn!(%domain, by, reason, "federation ends");
        Ok(())
    }

    async fn set_foreign_bundle(
        self: &Arc<Self>,
        by: &str,
        domain: &TrustDomain,
        json: &str,
        reason: &str,
    ) -> Result<(), ApiError> {
        let now = self.now()?;
        let state = self.state();
        let relationship = state.relationships().get(domain).ok_or_else(|| missing(domain))?;
        let given = by_hand(&relationship.value, json, by, now).map_err(no_bundle)?;
        let detail = format!("{reason}: {}", in_words(&given.bundle));
        let known = state.foreign().get(domain);
        let record = known.map_or_else(
            || ForeignRecord::empty(domain.clone()),
            |known| ForeignRecord::clone(&known.value.record),
        );
        let record = record.given(given);
        let transaction = Transaction::named("set foreign bundle")
            .require_unchanged(relationship.value.key(), relationship.version)
            .put(&record)
            .record(self.changed(by, "federation.set_bundle", domain.as_str(), &detail));
        let transaction = match known {
            None => transaction.require_absent(record.key()),
            Some(Versioned { version, .. }) => transaction.require_unchanged(record.key(), *version),
        };
        self.commit(transaction).await?;
        tracing::warn!(%domain, by, reason, "a foreign bundle was set by hand");
        Ok(())
    }

    fn shown_by_name(&self, domain: &TrustDomain) -> Result<wire::Relationship, ApiError> {
        let state = self.state();
        let relationship = state.relationships().get(domain).ok_or_else(|| missing(domain))?;
        Ok(self.shown(&state, &relationship.value))
    }

    fn shown(&self, state: &State, relationship: &Relationship) -> wire::Relationship {
        let now = self.ports.clock.now();
        let domain = &relationship.trust_domain;
        let foreign = state.foreign().get(domain).map(|it| &it.value);
        let record = foreign.map(|it| &it.record);
        let held = record.and_then(|it| it.bundle.as_ref());
        let fetch = record.map(|it| it.fetch.clone()).unwrap_or_default();
        let trouble = fetch.trouble.as_ref();
        let (profile, endpoint) = match &relationship.profile {
            EndpointProfile::HttpsWeb => (wire::EndpointProfile::HttpsWeb, String::new()),
            EndpointProfile::HttpsSpiffe { endpoint_id } => {
                (wire::EndpointProfile::HttpsSpiffe, endpoint_id.to_string())
            }
        };
        let set_by = held.map(|held| match &held.origin {
            Origin::Endpoint => String::new(),
            Origin::Hand { by } => by.clone(),
        });
        let (holders, behind) = holders(state, domain, now);
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        wire::Relationship {
            trust_domain: domain.to_string(),
            url: relationship.url.to_string(),
            profile: profile.into(),
            endpoint_spiffe_id: endpoint,
            first_fetch_sha256: relationship.first_fetch.as_ref().map(convert::digest).unwrap_or_default(),
            private_addresses: relationship.private_addresses,
            created_at: Some(convert::timestamp(relationship.created_at)),
            created_by: relationship.created_by.clone(),
            outlook: shown_outlook(outlook(record, now)).into(),
            bundle: foreign.and_then(|it| it.bundle.as_ref()).map(|it| convert::bundle(&it.bundle)),
            in_force_since: held.map(|held| convert::timestamp(held.since)),
            set_by: set_by.unwrap_or_default(),
            tried_at: fetch.tried_at.map(convert::timestamp),
            succeeded_at: fetch.succeeded_at.map(convert::timestamp),
            next_fetch_at: fetch.next.map(convert::timestamp),
            failures: fetch.failures,
            trouble_code: trouble.map(|it| it.code.clone()).unwrap_or_default(),
            trouble_detail: trouble.map(|it| it.detail.clone()).unwrap_or_default(),
            trouble_since: trouble.map(|it| convert::timestamp(it.since)),
            ignored_entries: fetch.ignored,
            holder_count: count(holders),
            behind_count: count(behind.len()),
            behind: behind.into_iter().take(BEHIND_SHOWN).collect(),
        }
    }
}

/// How many living nodes have the bundle of `domain` in force, and the names of those that have not said so.
fn holders(state: &State, domain: &TrustDomain, now: Timestamp) -> (usize, Vec<String>) {
    let current = state.foreign().get(domain).and_then(|it| it.value.bundle.as_ref());
    let Some(current) = current.map(|it| (it.bundle.sequence(), it.bundle.digest())) else {
        return (0, Vec::new());
    };
    let nodes = state.nodes().values().map(|it| &it.value);
    let living = nodes.filter(|node| node.lives(now));
    let mut holders = 0_usize;
    let mut behind = Vec::new();
    for node in living {
        let name = node.principal().to_string();
        let held = state.foreign_holders().get(&name).and_then(|it| it.value.held.get(domain));
        if held.is_some_and(|held| (held.sequence, held.digest) == current) {
            holders = holders.saturating_add(1);
        } else {
            behind.push(name);
        }
    }
    (holders, behind)
}

const fn shown_outlook(outlook: Outlook) -> wire::RelationshipOutlook {
    match outlook {
        Outlook::Awaited => wire::RelationshipOutlook::Awaited,
        Outlook::Current => wire::RelationshipOutlook::Current,
        Outlook::Failing => wire::RelationshipOutlook::Failing,
        Outlook::Refused => wire::RelationshipOutlook::Refused,
        Outlook::Old => wire::RelationshipOutlook::Old,
    }
}

fn read_relationship(
    request: &wire::CreateRelationshipRequest,
    by: &str,
    now: Timestamp,
) -> Result<Relationship, ApiError> {
    let named = !request.endpoint_spiffe_id.is_empty();
    let invalid = |problem: &str| ApiError::Invalid { field: "profile", problem: problem.to_owned() };
    let profile = match (request.profile(), named) {
        (wire::EndpointProfile::HttpsWeb, false) => EndpointProfile::HttpsWeb,
        (wire::EndpointProfile::HttpsSpiffe, true) => {
            let endpoint_id: SpiffeId = convert::read("endpoint_spiffe_id", &request.endpoint_spiffe_id)?;
            EndpointProfile::HttpsSpiffe { endpoint_id }
        }
        (wire::EndpointProfile::HttpsWeb, true) => {
            return Err(invalid("https_web knows no endpoint identity; the host name is what counts"));
        }
        (wire::EndpointProfile::HttpsSpiffe, false) => {
            return Err(invalid("https_spiffe needs the endpoint's SPIFFE ID"));
        }
        (wire::EndpointProfile::Unspecified, _) => {
            return Err(invalid("say how the endpoint proves itself: https_web or https_spiffe"));
        }
    };
    let first_fetch = (!request.first_fetch_sha256.is_empty())
        .then(|| convert::read_digest("first_fetch_sha256", &request.first_fetch_sha256))
        .transpose()?;
    Ok(Relationship {
        trust_domain: convert::read("trust_domain", &request.trust_domain)?,
        url: convert::read("url", &request.url)?,
        profile,
        first_fetch,
        private_addresses: request.private_addresses,
        created_by: by.to_owned(),
        created_at: now,
    })
}

/// A relationship as the ledger quotes it.
fn quoted(relationship: &Relationship) -> String {
    let Relationship { url, profile, first_fetch, private_addresses, .. } = relationship;
    let profile = match profile {
        EndpointProfile::HttpsWeb => "https_web".to_owned(),
        EndpointProfile::HttpsSpiffe { endpoint_id } => format!("https_spiffe as {endpoint_id}"),
    };
    let pinned = first_fetch.map_or(String::new(), |root| format!(", first fetch must hold root {root}"));
    let private = if *private_addresses { ", private addresses allowed" } else { "" };
    format!("{url}, {profile}{pinned}{private}")
}

fn missing(domain: &TrustDomain) -> ApiError {
    ApiError::NotFound { what: "relationship", name: domain.to_string() }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
fn no_bundle(refusal: Refusal) -> ApiError {
    ApiError::Invalid { field: "bundle_json", problem: refusal.to_string() }
}
