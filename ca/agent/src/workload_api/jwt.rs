//! The JWT profile of the Workload API: tokens, the keys that verify them, and verifying them.
//!
//! Laws: a token is given only for an identity that the caller has before and after it was fetched; an identity that is
//! unknown and one that is not the caller's are answered alike; validation is local, by the keys of the trust domain in
//! the token alone, and says nothing about a token that did not pass; of a foreign trust domain's token the caller sees
//! the claims that the standard defines, and those that the operator allows.
//! Not here: fetching and keeping (`tokens`), what a valid token is (`rhizome_jwt`).
//! Sources: SPIFFE Workload API §6, §8; spiffe/spire `pkg/agent/endpoints/workload/handler.go` (claims of foreign
//! tokens).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use prost_types::value::Kind;
use rhizome_core::ports::Clock;
use rhizome_id::{SpiffeId, TrustDomain};
use rhizome_jwt::{MAX_AUDIENCE_BYTES, MAX_AUDIENCES, ValidatedJwt, validate};
use rhizome_proto::workload as wire;
use serde_json::Value;
use tonic::Request;

use super::{Answers, hint_of};
use crate::call::{Session, caller_of};
use crate::holdings::{NotYet, View};
use crate::refusal::Refusal;
use crate::socket::Doors;
use crate::tokens::{NoToken, TokenWish, Tokens};

const PROFILE: &str = "the JWT-SVID profile";
/// What a token of a foreign trust domain always shows, as SPIRE's agent does.
const FOREIGN_CLAIMS: [&str; 3] = ["sub", "exp", "aud"];

/// Where tokens come from, unless the profile is off.
pub(super) fn tokens_of(doors: &Doors) -> Result<Arc<dyn Tokens>, Refusal> {
    doors.identities.tokens().filter(|_| !doors.jwt_off).ok_or(Refusal::NotOffered(PROFILE))
}

/// `FetchJWTSVID`: a token for each identity of the caller, or for the one it names.
pub(super) async fn fetch(
    doors: &Arc<Doors>,
    request: Request<wire::JwtsvidRequest>,
) -> Result<wire::JwtsvidResponse, Refusal> {
    let tokens = tokens_of(doors)?;
    let caller = caller_of(request.extensions())?;
    let wire::JwtsvidRequest { audience, spiffe_id } = request.into_inner();
    let audiences = read_audiences(audience)?;
    let named = read_id(&spiffe_id)?;
    let mut session = Session::open(doors, caller).await?;
    // One that is on its way is none that the caller does not have, and no other one is the default meanwhile.
    let has_it = |view: &View| match &named {
        Some(named) => !matches!(view.svid(named), Err(NotYet::Starting)),
        None => view.default_svid().is_some(),
    };
    let view = session.first_with(has_it).await?;
    session.takes_nothing();
    let wanted = chosen(&view, named.as_ref()).ok_or_else(|| session.not_its_own(&spiffe_id))?;
    let wish = |id: &SpiffeId| TokenWish {
        spiffe_id: id.clone(),
        audiences: audiences.clone(),
        attributes: session.attributes().clone(),
    };
    let fetched = join_all(wanted.iter().map(|id| tokens.token(wish(id)))).await;
    // Fetching may have taken a while: rules and certificates may have changed, the process may have ended.
    let view = session.current()?;
    if !has_it(&view) {
        return Err(Refusal::Starting);
    }
    let mut hints = BTreeSet::new();
    let mut svids = Vec::new();
    for (id, outcome) in wanted.iter().zip(fetched) {
        let Some(held) = view.svids.iter().find(|svid| svid.spiffe_id == *id) else { continue };
        match outcome {
            Ok(token) => svids.push(wire::Jwtsvid {
                spiffe_id: id.to_string(),
                svid: token.expose().to_owned(),
                hint: hint_of(held, &mut hints).to_owned(),
            }),
            // Its loss is its own; the caller keeps the others.
            Err(NoToken::Denied(_)) => {}
            Err(NoToken::Refused(reason)) => return Err(Refusal::Malformed(reason)),
            Err(NoToken::NotOffered) => return Err(Refusal::NotOffered(PROFILE)),
            // Left out, it would look as if the identity were lost, and another would become the default one.
            Err(NoToken::Away(_)) => return Err(Refusal::Away),
        }
    }
    if svids.is_empty() {
        return Err(Refusal::NoIdentity);
    }
    session.check()?;
    Ok(wire::JwtsvidResponse { svids })
}

/// `ValidateJWTSVID`: by the bundles that the caller has.
pub(super) async fn check(
    doors: &Arc<Doors>,
    request: Request<wire::ValidateJwtsvidRequest>,
) -> Result<wire::ValidateJwtsvidResponse, Refusal> {
    drop(tokens_of(doors)?);
    let caller = caller_of(request.extensions())?;
    let wire::ValidateJwtsvidRequest { audience, svid } = request.into_inner();
    // Workload API §4.5: a mandatory field left at its default.
    for (name, value) in [("audience", &audience), ("svid", &svid)] {
        if value.is_empty() {
            return Err(Refusal::Malformed(format!("{name} must be specified")));
        }
    }
    let mut session = Session::open(doors, caller).await?;
    let view = session.first().await?;
    session.takes_nothing();
    let keys_of = |domain: &TrustDomain| view.bundles.get(domain).map(|bundle| bundle.jwt_keys());
    let valid = validate(&svid, &audience, keys_of, doors.clock.now()).map_err(|cause| {
        tracing::info!(code = cause.code(), %cause, "a token was not valid");
        Refusal::Malformed(cause.to_string())
    })?;
    session.check()?;
    let foreign = !valid.spiffe_id().is_member_of(doors.identities.trust_domain());
    let shown =
        |name: &str| !foreign || FOREIGN_CLAIMS.contains(&name) || doors.foreign_claims.contains(name);
    Ok(wire::ValidateJwtsvidResponse {
        spiffe_id: valid.spiffe_id().to_string(),
        claims: Some(claims(&valid, shown)),
    })
}

/// Keys: a view with the same ones is not sent again.
pub(super) struct JwtBundles {
    clock: Arc<dyn Clock>,
    sent: Option<BTreeMap<String, Bytes>>,
}

impl JwtBundles {
    pub(super) const fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, sent: None }
    }
}

impl Answers<wire::JwtBundlesResponse> for JwtBundles {
    fn answer(
        &mut self,
        view: &View,
        own: &TrustDomain,
    ) -> Result<Option<wire::JwtBundlesResponse>, Refusal> {
        if !view.bundles.contains_key(own) {
            return Err(Refusal::Starting);
        }
        let now = self.clock.now();
        let jwks = |(domain, bundle): (&TrustDomain, &Arc<rhizome_x509::Bundle>)| {
            (SpiffeId::of_trust_domain(domain).to_string(), Bytes::from(bundle.to_jwks_json(now)))
        };
        let bundles: BTreeMap<String, Bytes> = view.bundles.iter().map(jwks).collect();
        if self.sent.as_ref() == Some(&bundles) {
            return Ok(None);
        }
        self.sent = Some(bundles.clone());
        Ok(Some(wire::JwtBundlesResponse { bundles: bundles.into_iter().collect() }))
    }
}

/// Sorted, each once: the same audiences in another order are the same token.
fn read_audiences(audiences: Vec<String>) -> Result<Vec<String>, Refusal> {
    let audiences: BTreeSet<String> = audiences.into_iter().collect();
    let odd = |audience: &String| {
        audience.is_empty() || audience.len() > MAX_AUDIENCE_BYTES || audience.contains(char::is_control)
    };
    if audiences.is_empty() {
        return Err(Refusal::Malformed("audience must be specified".to_owned()));
    }
    if audiences.len() > MAX_AUDIENCES || audiences.iter().any(odd) {
        let limits = format!(
            "a token has 1 to {MAX_AUDIENCES} audiences of 1 to {MAX_AUDIENCE_BYTES} bytes without control characters"
        );
        return Err(Refusal::Malformed(limits));
    }
    Ok(audiences.into_iter().collect())
}

fn read_id(text: &str) -> Result<Option<SpiffeId>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|cause| Refusal::Malformed(format!("spiffe_id: {cause}")))
}

/// The caller's identities, each once, the default one first; or the one named, if it has it.
fn chosen(view: &View, named: Option<&SpiffeId>) -> Option<Vec<SpiffeId>> {
    let mut seen = BTreeSet::new();
    let ids = view.svids.iter().map(|svid| &svid.spiffe_id);
    let ids = ids.filter(|id| named.is_none_or(|named| named == *id)).filter(|id| seen.insert(*id));
    let ids: Vec<SpiffeId> = ids.cloned().collect();
    (!ids.is_empty()).then_some(ids)
}

/// The claims that are shown, `aud` always as a list.
fn claims(valid: &ValidatedJwt, shown: impl Fn(&str) -> bool) -> prost_types::Struct {
    let all = valid.claims().iter().filter(|(name, _)| shown(name));
    let mut fields: BTreeMap<String, prost_types::Value> =
        all.map(|(name, value)| (name.clone(), of_json(value))).collect();
    let audiences = valid.audiences().iter().map(|audience| Value::String(audience.clone())).collect();
    fields.insert("aud".to_owned(), of_json(&Value::Array(audiences)));
    prost_types::Struct { fields }
}

/// As `google.protobuf.Value`. Validation bounds the depth.
fn of_json(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(prost_types::NullValue::NullValue.into()),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(of_json).collect() })
        }
        Value::Object(members) => {
            let fields = members.iter().map(|(name, value)| (name.clone(), of_json(value)));
            Kind::StructValue(prost_types::Struct { fields: fields.collect() })
        }
    };
    prost_types::Value { kind: Some(kind) }
}
