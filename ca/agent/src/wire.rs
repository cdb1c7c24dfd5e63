//! From the wire's messages to what this crate believes, and back. Reading can fail and says what makes no sense.
//!
//! Laws: a certificate is believed only when it is for our key, for the identity asked for, and verifies against the
//! bundle in force; a bundle only when its digest is its own. Not here: which bundle is in force (`book`).

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use rhizome_core::attributes::Attributes;
use rhizome_core::rules::{Conditions, Rule, RuleDraft};
use rhizome_id::{SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_proto::ca::v1 as wire;
use rhizome_x509::{
    Bundle, CaCertificate, JwtKey, LeafFacts, PeerUsage, RequestKey, TrustAnchors, inspect, verify_peer,
};
use zeroize::Zeroizing;

use crate::holdings::Svid;
use crate::tokens::{Token, TokenWish};

/// What a server sent makes no sense, or is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's answer is not usable: {0}")]
pub struct Nonsense(String);

impl Nonsense {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
    pub(crate) fn of<T: ToString>(what: T) -> Self {
        Self(what.to_string())
    }
}

fn read<T: FromStr<Err: Display>>(text: &str) -> Result<T, Nonsense> {
    text.parse().map_err(|cause: T::Err| Nonsense::of(cause))
}

/// A bundle as the server sent it.
pub(crate) fn read_bundle(sent: &wire::Bundle) -> Result<Bundle, Nonsense> {
    let bundle = read_foreign_bundle(sent)?;
    if bundle.anchors().is_empty() {
        return Err(Nonsense::of("the bundle has no anchor"));
    }
    Ok(bundle)
}

/// A bundle of a foreign trust domain as the server sent it: it may be for JWT-SVIDs alone.
pub(crate) fn read_foreign_bundle(sent: &wire::Bundle) -> Result<Bundle, Nonsense> {
    let domain: TrustDomain = read(&sent.trust_domain)?;
    let anchors: Result<Vec<CaCertificate>, _> =
        sent.anchors_der.iter().map(|der| CaCertificate::parse(der)).collect();
    let refresh = Ttl::from_seconds(sent.refresh_hint_seconds).map_err(Nonsense::of)?;
    let jwt_keys: Result<Vec<JwtKey>, _> = sent.jwt_keys.iter().map(read_jwt_key).collect();
    let anchors = anchors.map_err(Nonsense::of)?;
    let bundle = Bundle::foreign(domain, sent.sequence, refresh, anchors, jwt_keys?).map_err(Nonsense::of)?;
    if bundle.digest().as_bytes().as_slice() != &*sent.digest {
        return Err(Nonsense::of("the bundle's digest is not the digest of the bundle"));
    }
    Ok(bundle)
}

fn read_jwt_key(sent: &wire::JwtKey) -> Result<JwtKey, Nonsense> {
    let not_after = sent.not_after.as_ref().ok_or_else(|| Nonsense::of("a JWT key does not say how long"))?;
    let not_after = Timestamp::from_unix(not_after.seconds);
    JwtKey::from_spki_der(sent.kid.clone(), &sent.public_key_der, not_after).map_err(Nonsense::of)
}

/// A rule as the server sent it.
pub(crate) fn read_rule(sent: &wire::GrantRule) -> Result<Rule, Nonsense> {
    let mut when = Conditions::new();
    for condition in &sent.conditions {
        let attribute = read(&condition.attribute)?;
        when.insert(attribute, condition.values.iter().cloned().collect());
    }
    let federates_with: Result<Vec<TrustDomain>, Nonsense> =
        sent.federates_with.iter().map(|it| read(it)).collect();
    let ttl = (sent.ttl_seconds != 0).then(|| Ttl::from_seconds(sent.ttl_seconds)).transpose();
    let draft = RuleDraft {
        name: read(&sent.name)?,
        when,
        identity: sent.identity.clone(),
        ttl: ttl.map_err(Nonsense::of)?,
        dns_names: sent.dns_names.clone(),
        federates_with: federates_with?,
        comment: None,
    };
    Rule::new(draft).map_err(Nonsense::of)
}

/// Attributes as the wire has them.
pub(crate) fn attributes(attributes: &Attributes) -> Vec<wire::Attribute> {
    let pair = |(name, value): (&_, &str)| wire::Attribute {
        name: ToString::to_string(name),
        value: value.to_owned(),
    };
    attributes.iter().map(pair).collect()
}

/// A certificate that was checked, with what it says.
pub(crate) struct Checked {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) chain_der: Vec<Vec<u8>>,
    pub(crate) facts: LeafFacts,
    pub(crate) renew_at: Timestamp,
}

/// Checks what was issued to `key` against `bundle` at `now`.
pub(crate) fn check(
    sent: &wire::IssuedCertificate,
    key: &RequestKey,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<Checked, Nonsense> {
    let (leaf, above) = sent.chain_der.split_first().ok_or_else(|| Nonsense::of("the chain is empty"))?;
    let above: Vec<&[u8]> = above.iter().map(AsRef::as_ref).collect();
    let anchors = TrustAnchors::from_bundle(bundle);
    let peer = verify_peer(leaf, &above, &anchors, PeerUsage::Client, now).map_err(Nonsense::of)?;
    let facts = inspect(leaf).map_err(Nonsense::of)?;
    if facts.public_key_digest != key.public_key().digest() {
        return Err(Nonsense::of("the certificate is for another key"));
    }
    let renew_at = sent.renew_at.as_ref().map(|at| Timestamp::from_unix(at.seconds));
    let renew_at = renew_at.filter(|at| facts.not_before < *at && *at < facts.not_after);
    let renew_at = renew_at.unwrap_or_else(|| crate::renewal::own_draw(&facts));
    let chain_der = sent.chain_der.iter().map(|der| der.to_vec()).collect();
    Ok(Checked { spiffe_id: peer.spiffe_id, chain_der, facts, renew_at })
}

/// What was issued for a workload, checked: it must be the identity that was asked for.
pub(crate) fn read_svid(
    sent: &wire::IssuedCertificate,
    key: &RequestKey,
    wanted: &SpiffeId,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<Arc<Svid>, Nonsense> {
    let checked = check(sent, key, bundle, now)?;
    if checked.spiffe_id != *wanted {
        return Err(Nonsense::of(format!("asked for {wanted}, got {}", checked.spiffe_id)));
    }
    Ok(Arc::new(Svid {
        spiffe_id: checked.spiffe_id,
        chain_der: checked.chain_der,
        key_pkcs8_der: key.pkcs8_der(),
        not_before: checked.facts.not_before,
        not_after: checked.facts.not_after,
        renew_at: checked.renew_at,
        serial: hex::encode(&checked.facts.serial),
        hint: sent.rule.clone(),
    }))
}

/// A token that was signed for a workload, checked: it verifies against `bundle` and says what was asked for, no less
/// and no more.
pub(crate) fn read_token(
    sent: wire::JwtSvid,
    wish: &TokenWish,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<Token, Nonsense> {
    let token = Zeroizing::new(sent.token);
    let audience = wish.audiences.first().ok_or_else(|| Nonsense::of("no audience was asked for"))?;
    let keys_of = |domain: &TrustDomain| (domain == bundle.trust_domain()).then(|| bundle.jwt_keys());
    let valid = rhizome_jwt::validate(&token, audience, keys_of, now).map_err(Nonsense::of)?;
    if *valid.spiffe_id() != wish.spiffe_id {
        return Err(Nonsense::of(format!("asked for {}, got {}", wish.spiffe_id, valid.spiffe_id())));
    }
    let mut audiences = valid.audiences().to_vec();
    audiences.sort_unstable();
    if audiences != wish.audiences {
        return Err(Nonsense::of("the token is for other audiences than asked for"));
    }
    let life = (valid.issued_at().unwrap_or(now), valid.expires_at());
    Ok(Token::new(token, wish.spiffe_id.clone(), audiences, life))
}
