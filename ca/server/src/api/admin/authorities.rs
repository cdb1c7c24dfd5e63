//! Authorities: listed with what comes next, the issuer rotated and a JWT key tainted by hand.
//!
//! Laws: what comes next is computed from the thresholds of the machine that will do it; a rotation by hand takes the
//! same steps as one by time, sooner.
//! Not here: the machine (`rhizome_core::authority`), performing it (`rotate`).

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;
use rhizome_core::authority::{self, Authority, AuthorityKind, AuthorityState, Custody, JwtAuthority};
use rhizome_core::state::State;
use rhizome_id::{AuthorityId, ReplicaName, Timestamp};
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::authority_service_server::AuthorityService;
use tonic::{Request, Response};

use super::{page_size, read_page_token, read_required_reason};
use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::status::Answer;

#[tonic::async_trait]
impl AuthorityService for Api {
    async fn list_authorities(
        &self,
        request: Request<wire::ListAuthoritiesRequest>,
    ) -> Answer<wire::ListAuthoritiesResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let state = self.0.state();
        let certifying = state.authorities().values().map(|it| Listed::Certifying(&it.value));
        let jwt = state.jwt_authorities().values().map(|it| Listed::Jwt(&it.value));
        let mut all: Vec<Listed<'_>> = certifying.chain(jwt).collect();
        all.sort_by_key(Listed::order);
        let first = match read_page_token::<AuthorityId>(&request.page_token)? {
            None => 0,
            Some(last) => {
                let place = all.iter().position(|it| *it.id() == last).ok_or_else(|| ApiError::Invalid {
                    field: "page_token",
                    problem: format!("authority {last} is gone meanwhile; list from the beginning"),
                })?;
                place.saturating_add(1)
            }
        };
        let limit = page_size(request.page_size);
        let page = all.iter().skip(first).take(limit);
        let more = all.len() > first.saturating_add(limit);
        let last = page.clone().next_back().filter(|_| more).map(|it| it.id().to_string());
        let authorities = page.map(|it| it.shown(&state)).collect();
        let next_page_token = last.unwrap_or_default();
        Ok(Response::new(wire::ListAuthoritiesResponse { authorities, next_page_token }))
    }

    async fn rotate_issuer(
        &self,
        request: Request<wire::RotateIssuerRequest>,
    ) -> Answer<wire::RotateIssuerResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = read_required_reason(&request.reason)?;
        self.0.must_be_here(convert::read_optional("replica", &request.replica)?)?;
        let steps = self.0.steps_of_rotation()?;
        if request.dry_run {
            return Ok(Response::new(wire::RotateIssuerResponse { steps, applied: false, active: None }));
        }
        let id = self.0.rotate_issuer_now(&by, reason).await?;
        let state = self.0.state();
        let active = state.authorities().get(&id).map(|it| shown(&it.value, &state));
        Ok(Response::new(wire::RotateIssuerResponse { steps, applied: true, active }))
    }

    async fn taint_jwt_key(
        &self,
        request: Request<wire::TaintJwtKeyRequest>,
    ) -> Answer<wire::TaintJwtKeyResponse> {
        let by = self.0.caller(&request)?.principal().to_string();
        let request = request.into_inner();
        let reason = read_required_reason(&request.reason)?;
        let id: AuthorityId = convert::read("id", &request.id)?;
        let steps = steps_of_tainting(&id, &self.0.state())?;
        if request.dry_run {
            return Ok(Response::new(wire::TaintJwtKeyResponse {
                steps,
                applied: false,
                bundle_sequence: 0,
            }));
        }
        self.0.taint_jwt_key(&id, &by, reason).await?;
        let bundle_sequence = self.0.bundle().map_or(0, |it| it.bundle.sequence());
        Ok(Response::new(wire::TaintJwtKeyResponse { steps, applied: true, bundle_sequence }))
    }
}

/// An authority in the list.
#[derive(Clone, Copy)]
enum Listed<'a> {
    Certifying(&'a Authority),
    Jwt(&'a JwtAuthority),
}

impl Listed<'_> {
    const fn id(&self) -> &AuthorityId {
        match self {
            Self::Certifying(it) => &it.id,
            Self::Jwt(it) => &it.id,
        }
    }

    fn order(&self) -> (AuthorityKind, Reverse<(Timestamp, AuthorityId)>) {
        match self {
            Self::Certifying(it) => (it.kind, Reverse((it.prepared_at, it.id.clone()))),
            Self::Jwt(it) => (AuthorityKind::Jwt, Reverse((it.prepared_at, it.id.clone()))),
        }
    }

    fn shown(&self, state: &State) -> wire::Authority {
        match self {
            Self::Certifying(it) => shown(it, state),
            Self::Jwt(it) => shown_jwt(it, state),
        }
    }
}

/// What tainting a JWT key does, one sentence each.
fn steps_of_tainting(id: &AuthorityId, state: &State) -> Result<Vec<String>, ApiError> {
    let missing = || ApiError::NotFound { what: "JWT key", name: id.to_string() };
    let held = &state.jwt_authorities().get(id).ok_or_else(missing)?.value;
    let mut steps = vec![
        format!("take {id} out of the bundle: whoever has the new one refuses every token that it signed"),
        format!("never let {id} sign again"),
    ];
    if held.state == AuthorityState::Active {
        let next = "let another key sign, as soon as every connected agent knows it, or after 5 minutes";
        steps.push(next.to_owned());
    }
    Ok(steps)
}

impl Ca {
    fn must_be_here(&self, replica: Option<ReplicaName>) -> Result<(), ApiError> {
        match replica {
            Some(other) if other != self.settings.replica => {
                let problem = format!(
                    "replica {other} rotates its own issuer; this is {}: ask that one",
                    self.settings.replica
                );
                Err(ApiError::Invalid { field: "replica", problem })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What rotating the issuer now does, one sentence each.
    fn steps_of_rotation(self: &Arc<Self>) -> Result<Vec<String>, ApiError> {
        let now = self.now()?;
        let state = self.state();
        let root = state.active_root();
        let root = root.ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        crate::rotate::can_sign_issuers(root)?;
        let validity = authority::issuer_validity(root, now, &self.settings.rotation);
        let validity = validity.ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let mut steps = vec![
            format!("make a key and an issuer under root {}, valid until {}", root.id, validity.not_after),
            "let the new issuer sign every certificate from now on".to_owned(),
        ];
        if let Some(old) = active_issuer(&state, &self.settings.replica) {
            steps.push(format!(
                "keep issuer {} until {}, so that what it signed stays valid; then destroy its key",
                old.id,
                old.certificate.not_after(),
            ));
        }
        steps
            .push("replace the server's own certificate by one of the new issuer, within seconds".to_owned());
        Ok(steps)
    }
}

fn active_issuer<'a>(state: &'a State, replica: &ReplicaName) -> Option<&'a Arc<Authority>> {
    state.authorities().values().map(|it| &it.value).find(|it| {
        it.kind == AuthorityKind::Issuer && it.state == AuthorityState::Active && it.replica == *replica
    })
}

const fn shown_state(state: AuthorityState) -> wire::AuthorityState {
    match state {
        AuthorityState::Prepared => wire::AuthorityState::Prepared,
        AuthorityState::Active => wire::AuthorityState::Active,
        AuthorityState::Old => wire::AuthorityState::Old,
        AuthorityState::Tainted => wire::AuthorityState::Tainted,
    }
}

fn shown_jwt(authority: &JwtAuthority, state: &State) -> wire::Authority {
    let public_key = authority.jwt_key.public_key();
    let next = next_step_of_jwt(authority, state);
    wire::Authority {
        id: authority.id.to_string(),
        kind: wire::AuthorityKind::Jwt.into(),
        state: shown_state(authority.state).into(),
        replica: authority.replica.to_string(),
        key_id: authority.key.to_string(),
        algorithm: authority.algorithm.to_string(),
        fingerprint: convert::digest(&public_key.digest()),
        not_before: Some(convert::timestamp(authority.not_before)),
        not_after: Some(convert::timestamp(authority.jwt_key.not_after())),
        prepared_at: Some(convert::timestamp(authority.prepared_at)),
        activated_at: authority.activated_at.map(convert::timestamp),
        next_step: next.map(|(step, _)| step.to_owned()).unwrap_or_default(),
        next_step_at: next.map(|(_, at)| convert::timestamp(at)),
        public_key_der: Bytes::copy_from_slice(public_key.spki_der()),
        ..wire::Authority::default()
    }
}

/// What happens to a JWT key next by itself, and when.
fn next_step_of_jwt(authority: &JwtAuthority, state: &State) -> Option<(&'static str, Timestamp)> {
    let (from, to) = (authority.not_before, authority.jwt_key.not_after());
    let of_this_replica = |it: &&Arc<JwtAuthority>| it.replica == authority.replica;
    let mut others = state.jwt_authorities().values().map(|it| &it.value).filter(of_this_replica);
    match authority.state {
        AuthorityState::Old => Some(("it leaves the bundle and its key is destroyed", to.plus(1))),
        AuthorityState::Tainted => Some(("its key is destroyed", to.plus(1))),
        AuthorityState::Prepared => {
            let before = others.find(|it| it.state == AuthorityState::Active)?;
            let at = authority::activate_at(before.not_before, before.jwt_key.not_after());
            Some(("it begins to sign", at))
        }
        AuthorityState::Active if others.any(|it| it.state == AuthorityState::Prepared) => {
            Some(("its successor begins to sign", authority::activate_at(from, to)))
        }
        AuthorityState::Active => Some(("its successor is made", authority::prepare_at(from, to))),
    }
}

fn shown(authority: &Authority, state: &State) -> wire::Authority {
    let certificate = &authority.certificate;
    let next = next_step(authority, state);
    wire::Authority {
        id: authority.id.to_string(),
        kind: match authority.kind {
            AuthorityKind::Root => wire::AuthorityKind::Root,
            AuthorityKind::Issuer => wire::AuthorityKind::Issuer,
            AuthorityKind::Jwt => wire::AuthorityKind::Jwt,
        }
        .into(),
        state: shown_state(authority.state).into(),
        replica: authority.replica.to_string(),
        key_id: authority.key.to_string(),
        algorithm: match authority.custody {
            Custody::Here => authority.algorithm.to_string(),
            Custody::Elsewhere => certificate.public_key().algorithm().to_string(),
        },
        certificate_der: Bytes::copy_from_slice(certificate.der()),
        fingerprint: convert::digest(&certificate.fingerprint()),
        subject: certificate.subject().to_owned(),
        issuer_id: authority.issuer.as_ref().map(ToString::to_string).unwrap_or_default(),
        not_before: Some(convert::timestamp(certificate.not_before())),
        not_after: Some(convert::timestamp(certificate.not_after())),
        prepared_at: Some(convert::timestamp(authority.prepared_at)),
        activated_at: authority.activated_at.map(convert::timestamp),
        next_step: next.map(|(step, _)| step.to_owned()).unwrap_or_default(),
        next_step_at: next.map(|(_, at)| convert::timestamp(at)),
        public_key_der: Bytes::copy_from_slice(certificate.public_key().spki_der()),
    }
}

/// What happens to `authority` next by itself, and when.
fn next_step(authority: &Authority, state: &State) -> Option<(&'static str, Timestamp)> {
    let (from, to) = (authority.certificate.not_before(), authority.certificate.not_after());
    let gone_at = to.plus(1);
    match (authority.kind, authority.state) {
        (_, AuthorityState::Old | AuthorityState::Tainted) => Some(("its key is destroyed", gone_at)),
        (AuthorityKind::Root, AuthorityState::Active) => {
            Some(("it expires, and no root takes its place by itself", gone_at))
        }
        (AuthorityKind::Root, AuthorityState::Prepared) | (AuthorityKind::Jwt, _) => None,
        (AuthorityKind::Issuer, AuthorityState::Prepared) => {
            let before = active_issuer(state, &authority.replica)?;
            let certificate = &before.certificate;
            let at = authority::activate_at(certificate.not_before(), certificate.not_after());
            Some(("it begins to sign", at))
        }
        (AuthorityKind::Issuer, AuthorityState::Active) => {
            let of_this_replica =
                |it: &&Arc<Authority>| it.kind == authority.kind && it.replica == authority.replica;
            let mut others = state.authorities().values().map(|it| &it.value).filter(of_this_replica);
            let root = authority.issuer.as_ref().and_then(|root| state.authorities().get(root));
            if others.any(|it| it.state == AuthorityState::Prepared) {
                Some(("its successor begins to sign", authority::activate_at(from, to)))
            } else if root.is_some_and(|root| root.value.certificate.not_after() <= to) {
                Some(("it expires together with its root", gone_at))
            } else {
                Some(("its successor is made", authority::prepare_at(from, to)))
            }
        }
    }
}
