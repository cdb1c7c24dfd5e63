//! A certificate that was just issued to a key of ours: checked before it is kept, then kept or shown.
//!
//! Laws: what the server sent is believed only after it fits our key and verifies against the bundle; what is shown
//! about it comes from the certificate itself. Not here: asking for it (`join.rs`, `request.rs`, `admin.rs`).

use rhizome_id::{SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_proto::ca::v1 as ca;
use rhizome_tls::{ClientIdentity, IdentityDir, StoredIdentity};
use rhizome_x509::{
    Bundle, CaCertificate, JwtKey, PeerUsage, RequestKey, TrustAnchors, inspect, verify_peer,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::exit::{Exit, Failure};
use crate::pem;
use crate::session::identity_failure;
use crate::wire;

/// A certificate with its key and the bundle that goes with it; checked.
pub(crate) struct Issued {
    stored: StoredIdentity,
    pub(crate) spiffe_id: SpiffeId,
    /// Lower-case hexadecimal.
    pub(crate) serial: String,
    pub(crate) dns_names: Vec<String>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) renew_at: Option<Timestamp>,
    pub(crate) rule: Option<String>,
    pub(crate) ttl_clamped: bool,
}

impl Issued {
    /// Checks what the server sent for `key`: the leaf is for that key, names an identity of `domain`, and verifies
    /// at `now` against the bundle that came with it (or `known`, when none came).
    pub(crate) fn check(
        sent: ca::IssuedCertificate,
        key: &RequestKey,
        domain: &TrustDomain,
        known: Option<&Bundle>,
        now: Timestamp,
    ) -> Result<Self, Failure> {
        let bundle = match (&sent.bundle, known) {
            (Some(bundle), _) => bundle_of(bundle)?,
            (None, Some(known)) => known.clone(),
            (None, None) => return Err(Failure::protocol("the bundle is missing")),
        };
        if bundle.trust_domain() != domain {
            return Err(Failure::protocol("the bundle is of another trust domain"));
        }
        let (leaf, above) =
            sent.chain_der.split_first().ok_or_else(|| Failure::protocol("the chain is empty"))?;
        let facts = inspect(leaf).map_err(|error| Failure::protocol(&error.to_string()))?;
        let intermediates: Vec<&[u8]> = above.iter().map(AsRef::as_ref).collect();
        let anchors = TrustAnchors::from_bundle(&bundle);
        let peer =
            verify_peer(leaf, &intermediates, &anchors, PeerUsage::Client, now).map_err(unverifiable)?;
        let chain: Vec<Vec<u8>> = sent.chain_der.iter().map(|der| der.to_vec()).collect();
        let identity = ClientIdentity::new(chain, key.pkcs8_der()).map_err(unverifiable)?;
        Ok(Self {
            spiffe_id: peer.spiffe_id,
            serial: hex::encode(&facts.serial),
            dns_names: facts.dns_names,
            not_before: facts.not_before,
            not_after: facts.not_after,
            renew_at: wire::instant(sent.renew_at.as_ref()),
            rule: wire::text(sent.rule),
            ttl_clamped: sent.ttl_clamped,
            stored: StoredIdentity { identity, bundle },
        })
    }

    /// Keeps it in a directory: key, chain, bundle and trust domain.
    pub(crate) fn save(&self, directory: &IdentityDir) -> Result<(), Failure> {
        directory.save(&self.stored).map_err(|error| identity_failure(&error))
    }

    /// Key, chain and bundle in PEM, in this order.
    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        let chain = self.stored.identity.chain_der();
        let blocks: Vec<Zeroizing<String>> =
            std::iter::once(pem::encode(pem::PRIVATE_KEY, self.stored.identity.key_pkcs8_der()))
                .chain(chain.iter().map(|der| pem::encode(pem::CERTIFICATE, der)))
                .chain(std::iter::once(Zeroizing::new(self.stored.bundle.to_pem())))
                .collect();
        let room = blocks.iter().map(|block| block.len()).sum();
        let mut text = Zeroizing::new(String::with_capacity(room));
        blocks.iter().for_each(|block| text.push_str(block));
        text
    }
}

fn unverifiable(error: impl std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Failed,
        "unverifiable",
        format!("the certificate that the server sent cannot be used: {error}"),
    )
    .hint("check this machine's clock; otherwise the server is not what it seems")
}

/// A bundle as the server sent it.
pub(crate) fn bundle_of(sent: &ca::Bundle) -> Result<Bundle, Failure> {
    let nonsense = |error: &dyn std::fmt::Display| Failure::protocol(&format!("the bundle: {error}"));
    let domain: TrustDomain = sent.trust_domain.parse().map_err(|error| nonsense(&error))?;
    let anchors: Result<Vec<CaCertificate>, Failure> = sent
        .anchors_der
        .iter()
        .map(|der| CaCertificate::parse(der).map_err(|error| nonsense(&error)))
        .collect();
    let refresh = Ttl::from_seconds(sent.refresh_hint_seconds).map_err(|error| nonsense(&error))?;
    let jwt_keys: Result<Vec<JwtKey>, Failure> = sent
        .jwt_keys
        .iter()
        .map(|key| {
            let not_after = wire::instant(key.not_after.as_ref()).unwrap_or(Timestamp::EPOCH);
            JwtKey::from_spki_der(key.kid.clone(), &key.public_key_der, not_after)
                .map_err(|error| nonsense(&error))
        })
        .collect();
    let bundle = Bundle::new(domain, sent.sequence, refresh, anchors?).map_err(|error| nonsense(&error))?;
    let bundle = bundle.with_jwt_keys(jwt_keys?).map_err(|error| nonsense(&error))?;
    if bundle.digest() != wire::digest(&sent.digest)? {
        return Err(Failure::protocol("the bundle's digest is not the digest of the bundle"));
    }
    Ok(bundle)
}

/// An issued certificate as programs see it.
#[derive(Serialize)]
pub(crate) struct IssuedRow {
    spiffe_id: String,
    serial: String,
    dns_names: Vec<String>,
    not_before: Timestamp,
    not_after: Timestamp,
    renew_at: Option<Timestamp>,
    rule: Option<String>,
    ttl_clamped: bool,
    bundle_sequence: u64,
}

/// For programs.
pub(crate) fn row(issued: &Issued) -> IssuedRow {
    IssuedRow {
        spiffe_id: issued.spiffe_id.to_string(),
        serial: issued.serial.clone(),
        dns_names: issued.dns_names.clone(),
        not_before: issued.not_before,
        not_after: issued.not_after,
        renew_at: issued.renew_at,
        rule: issued.rule.clone(),
        ttl_clamped: issued.ttl_clamped,
        bundle_sequence: issued.stored.bundle.sequence(),
    }
}
