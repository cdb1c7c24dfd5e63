//! Between the wire and valid types. Reading can fail and names the field; writing cannot.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost_types::Timestamp as WireTimestamp;
use rhizome_core::attributes::Attributes;
use rhizome_core::issuance::{IssuedLeaf, Recorded};
use rhizome_core::rules::Rule;
use rhizome_id::{Digest, SpiffeId, Timestamp, Ttl};
use rhizome_jwt::JwtSvid;
use rhizome_proto::ca::v1 as wire;
use rhizome_x509::{Bundle, DnsName, JwtKey};

use crate::error::ApiError;

/// An instant as the wire has it.
pub(crate) const fn timestamp(at: Timestamp) -> WireTimestamp {
    WireTimestamp { seconds: at.unix(), nanos: 0 }
}

/// A digest as the wire has it: 32 raw bytes.
pub(crate) fn digest(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// A digest from the wire.
pub(crate) fn read_digest(field: &'static str, bytes: &[u8]) -> Result<Digest, ApiError> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_length| ApiError::Invalid {
        field,
        problem: format!("a SHA-256 digest has 32 bytes, this has {}", bytes.len()),
    })?;
    Ok(Digest::from_bytes(bytes))
}

/// A bundle as the wire has it.
pub(crate) fn bundle(bundle: &Bundle) -> wire::Bundle {
    wire::Bundle {
        trust_domain: bundle.trust_domain().to_string(),
        sequence: bundle.sequence(),
        digest: digest(&bundle.digest()),
        anchors_der: bundle.anchors().iter().map(|anchor| Bytes::copy_from_slice(anchor.der())).collect(),
        refresh_hint_seconds: bundle.refresh_hint().seconds(),
        jwt_keys: bundle.jwt_keys().iter().map(jwt_key).collect(),
    }
}

fn jwt_key(key: &JwtKey) -> wire::JwtKey {
    wire::JwtKey {
        kid: key.kid().to_owned(),
        public_key_der: Bytes::copy_from_slice(key.public_key().spki_der()),
        not_after: Some(timestamp(key.not_after())),
    }
}

/// The reply to an issuance: it can be made from recorded leaves only.
pub(crate) fn issued(leaf: &Recorded<IssuedLeaf>, bundle: Option<wire::Bundle>) -> wire::IssuedCertificate {
    let issuance = leaf.issuance();
    let mut chain_der = Vec::with_capacity(leaf.intermediates().len().saturating_add(1));
    chain_der.push(Bytes::copy_from_slice(leaf.certificate().der()));
    chain_der.extend(leaf.intermediates().iter().map(|der| Bytes::copy_from_slice(der)));
    wire::IssuedCertificate {
        chain_der,
        bundle,
        not_before: Some(timestamp(issuance.not_before)),
        not_after: Some(timestamp(issuance.not_after)),
        renew_at: Some(timestamp(leaf.renew_at())),
        serial: issuance.serial.to_string(),
        spiffe_id: issuance.spiffe_id.to_string(),
        rule: issuance.rule.clone().unwrap_or_default(),
        ttl_clamped: leaf.clamped(),
    }
}

/// A token as the wire has it: it can be made from recorded tokens only.
pub(crate) fn jwt_svid(token: &Recorded<JwtSvid>) -> wire::JwtSvid {
    wire::JwtSvid {
        token: token.token().to_owned(),
        spiffe_id: token.spiffe_id().to_string(),
        issued_at: Some(timestamp(token.issued_at())),
        expires_at: Some(timestamp(token.expires_at())),
        jti: token.jti().to_owned(),
        kid: token.kid().to_owned(),
    }
}

/// Reads a field through a validating constructor and names it when that refuses.
pub(crate) fn read<T>(field: &'static str, text: &str) -> Result<T, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|cause: T::Err| ApiError::Invalid { field, problem: cause.to_string() })
}

/// As [`read`], but the empty text means that nothing was said.
pub(crate) fn read_optional<T>(field: &'static str, text: &str) -> Result<Option<T>, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if text.is_empty() { Ok(None) } else { read(field, text).map(Some) }
}

/// A lifetime in seconds; 0 means that nothing was said.
pub(crate) fn read_ttl(field: &'static str, seconds: i64) -> Result<Option<Ttl>, ApiError> {
    if seconds == 0 {
        return Ok(None);
    }
    let ttl = Ttl::from_seconds(seconds);
    ttl.map(Some).map_err(|cause| ApiError::Invalid { field, problem: cause.to_string() })
}

/// Attributes from the wire.
pub(crate) fn read_attributes(pairs: &[wire::Attribute]) -> Result<Attributes, ApiError> {
    let invalid = |problem: String| ApiError::Invalid { field: "attributes", problem };
    let mut attributes = Attributes::default();
    for pair in pairs {
        let name = pair.name.parse().map_err(|cause| invalid(format!("{cause}")))?;
        attributes.insert(name, pair.value.clone()).map_err(|cause| invalid(cause.to_string()))?;
    }
    Ok(attributes)
}

/// Attributes as the wire has them.
pub(crate) fn attributes(attributes: &Attributes) -> Vec<wire::Attribute> {
    let pair = |(name, value): (&_, &str)| wire::Attribute {
        name: ToString::to_string(name),
        value: value.to_owned(),
    };
    attributes.iter().map(pair).collect()
}

/// DNS names from the wire.
pub(crate) fn read_dns_names(names: &[String]) -> Result<Vec<DnsName>, ApiError> {
    let read = |name: &String| {
        let problem = |cause: String| ApiError::Invalid { field: "dns_names", problem: cause };
        DnsName::try_from(name.clone()).map_err(|cause| problem(cause.to_string()))
    };
    names.iter().map(read).collect()
}

/// A SPIFFE ID that may be absent.
pub(crate) fn read_spiffe_id(text: &str) -> Result<Option<SpiffeId>, ApiError> {
    read_optional("spiffe_id", text)
}

/// A rule as the wire has it.
pub(crate) fn rule(rule: &Rule) -> wire::GrantRule {
    let condition = |(attribute, values): (&_, &BTreeSet<String>)| wire::Condition {
        attribute: ToString::to_string(attribute),
        values: values.iter().cloned().collect(),
    };
    wire::GrantRule {
        name: rule.name().to_string(),
        conditions: rule.when().iter().map(condition).collect(),
        identity: rule.identity().to_string(),
        ttl_seconds: rule.ttl().map_or(0, Ttl::seconds),
        dns_names: rule.dns_names().iter().map(ToString::to_string).collect(),
        federates_with: rule.federates_with().iter().map(ToString::to_string).collect(),
        comment: rule.comment().unwrap_or_default().to_owned(),
    }
}
