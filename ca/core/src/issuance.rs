//! Issuance: the chain of evidence from a grant to a certificate that may be sent.
//!
//! Laws: [`Grant`] → [`Prepared`] (linted) → [`Intent`] (durable in the ledger) → [`Recorded`] → reply. Each link has
//! one maker and is consumed by the next, so a certificate that was not authorised, linted and recorded cannot be
//! made. The bytes that were linted are the bytes that are signed. A certificate never outlives any CA above it.
//! Not here: the order of the steps with their I/O (`rhizome_server::issue`), the policy (`policy`), the profiles
//! (`rhizome_x509`).
//! Sources: ca/docs/ARCHITECTURE.md §5; ca/docs/CONTRIBUTING.md, house rules 1 and 6; letsencrypt/boulder
//! `docs/ISSUANCE-CYCLE.md`.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use rhizome_id::{AuthorityId, Digest, KeyId, RequestId, Serial, SpiffeId, Timestamp, TrustDomain};
use rhizome_x509::{
    CaCertificate, Certificate, CrossSpec, DnsName, IntermediateSpec, Issuer, LeafSpec, Linted, PrepareError,
    PublicKey, RootSpec, SealError, ServerSpec, Signature, SigningAlgorithm, ToBeSigned, VerifiedCsr,
};

use crate::attributes::Attributes;
use crate::ledger::{Entry, Issuance, Position, Profile, Receipt};
use crate::policy::{Grant, GrantKind};
use crate::renewal::{self, Validity};

pub mod jwt;

/// The authority that signs leaves now, with everything about it that does not change from leaf to leaf.
#[derive(Debug)]
pub struct ActiveIssuer {
    /// Which authority.
    pub id: AuthorityId,
    /// The key in the key ring.
    pub key: KeyId,
    /// Its certificate, the chain above, and the template of what it signs.
    pub issuer: Issuer,
}

/// What an issuance needs to know besides the grant and the key.
#[derive(Clone, Debug)]
pub struct Circumstances<'a> {
    /// The one reading of the clock for this request.
    pub now: Timestamp,
    /// A serial nobody had before.
    pub serial: Serial,
    /// 64 random bits: the renewal instant is drawn from them, once.
    pub draw: u64,
    /// Sequence of the bundle that will go out with the certificate.
    pub bundle: u64,
    /// The caller's name for the request.
    pub request: Option<&'a RequestId>,
    /// What the caller vouched for.
    pub attributes: Option<&'a Attributes>,
}

/// Bytes that passed the lint, waiting to be recorded.
#[derive(Debug)]
pub struct Prepared {
    linted: Linted,
    issuance: Issuance,
}

/// A leaf that waits to be recorded, with what its reply will say.
#[derive(Debug)]
pub struct PreparedLeaf {
    prepared: Prepared,
    renew_at: Timestamp,
    clamped: bool,
    issuer: Arc<ActiveIssuer>,
}

/// Why a leaf could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuanceError {
    /// The chain above is not valid now, or has no room left for a leaf.
    #[error(
        "the issuing authority is valid from {not_before} to {not_after}, and the server's clock says {now}; {remedy}"
    )]
    ChainNotValid {
        /// From when all of the chain is valid.
        not_before: Timestamp,
        /// Until when all of the chain is valid.
        not_after: Timestamp,
        /// The server's clock.
        now: Timestamp,
        /// What to do.
        remedy: &'static str,
    },
    /// The lint refused the bytes, or they could not be built: a fault of ours.
    #[error("the certificate was not signed: {0}")]
    Prepare(#[from] PrepareError),
    /// The grant is for a token: a fault of ours.
    #[error("the grant is for a token; no certificate was signed")]
    WrongGrant,
    /// A receipt belongs to another certificate: a fault of ours.
    #[error("the ledger's receipt is for another certificate; nothing was signed")]
    WrongReceipt,
    /// The signature does not fit.
    #[error("the signature was refused: {0}")]
    Seal(#[from] SealError),
}

/// Prepares the leaf that `grant` allows, for the key whose possession `csr` proved.
///
/// # Errors
/// [`IssuanceError::ChainNotValid`] when no leaf can be valid now; [`IssuanceError::Prepare`] when the lint refuses.
pub fn prepare_leaf(
    grant: &Grant,
    csr: VerifiedCsr,
    issuer: &Arc<ActiveIssuer>,
    profile: Profile,
    around: &Circumstances<'_>,
) -> Result<PreparedLeaf, IssuanceError> {
    if grant.kind() == GrantKind::Token {
        return Err(IssuanceError::WrongGrant);
    }
    let validity = validity(grant, &issuer.issuer, around.now)?;
    let public_key = csr.into_public_key();
    let spec = LeafSpec {
        spiffe_id: grant.spiffe_id(),
        dns_names: grant.dns_names(),
        public_key: &public_key,
        serial: around.serial,
        not_before: validity.not_before,
        not_after: validity.not_after,
    };
    let linted = rhizome_x509::prepare_leaf(&spec, &issuer.issuer)?;
    Ok(leaf(grant, linted, &public_key, issuer, profile, validity, around))
}

/// Prepares this server's own serving certificate, with the names clients may dial.
///
/// # Errors
/// As [`prepare_leaf`].
pub fn prepare_server(
    grant: &Grant,
    public_key: &PublicKey,
    names: (&[DnsName], &[IpAddr]),
    issuer: &Arc<ActiveIssuer>,
    around: &Circumstances<'_>,
) -> Result<PreparedLeaf, IssuanceError> {
    let validity = validity(grant, &issuer.issuer, around.now)?;
    let spec = ServerSpec {
        spiffe_id: grant.spiffe_id(),
        dns_names: names.0,
        ip_addresses: names.1,
        public_key,
        serial: around.serial,
        not_before: validity.not_before,
        not_after: validity.not_after,
    };
    let linted = rhizome_x509::prepare_server(&spec, &issuer.issuer)?;
    Ok(leaf(grant, linted, public_key, issuer, Profile::Server, validity, around))
}

fn validity(grant: &Grant, issuer: &Issuer, now: Timestamp) -> Result<Validity, IssuanceError> {
    let (not_before, not_after) = (issuer.not_before_limit(), issuer.not_after_limit());
    renewal::validity(now, grant.ttl(), not_before, not_after).ok_or(IssuanceError::ChainNotValid {
        not_before,
        not_after,
        now,
        remedy: if now > not_after {
            "renew the authority (`rhizome authority list` shows it)"
        } else {
            "compare the server's clock with true time"
        },
    })
}

fn leaf(
    grant: &Grant,
    linted: Linted,
    public_key: &PublicKey,
    issuer: &Arc<ActiveIssuer>,
    profile: Profile,
    validity: Validity,
    around: &Circumstances<'_>,
) -> PreparedLeaf {
    let issuance = Issuance {
        profile,
        spiffe_id: grant.spiffe_id().clone(),
        dns_names: grant.dns_names().iter().map(ToString::to_string).collect(),
        serial: around.serial,
        not_before: validity.not_before,
        not_after: validity.not_after,
        public_key: public_key.digest(),
        tbs: linted.digest(),
        issuer: issuer.id.clone(),
        key: issuer.key.clone(),
        caller: grant.caller().to_owned(),
        rule: grant.rule().map(ToString::to_string),
        request: around.request.map(ToString::to_string),
        bundle: around.bundle,
        attributes: around.attributes.map(as_pairs).unwrap_or_default(),
    };
    PreparedLeaf {
        renew_at: renewal::renewal_instant(validity.not_before, validity.not_after, around.draw),
        clamped: grant.clamped() || validity.clamped,
        prepared: Prepared { linted, issuance },
        issuer: Arc::clone(issuer),
    }
}

fn as_pairs(attributes: &Attributes) -> Vec<String> {
    attributes.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

impl PreparedLeaf {
    /// What the ledger will say.
    pub const fn issuance(&self) -> &Issuance {
        &self.prepared.issuance
    }

    /// The ledger entry that must be durable before this is signed.
    pub fn entry(&self, now: Timestamp) -> Entry {
        self.prepared.entry(now)
    }

    /// Turns a store's receipt for exactly this leaf into the right to sign it.
    ///
    /// # Errors
    /// [`IssuanceError::WrongReceipt`] when the receipt is for something else.
    pub fn recorded(self, receipt: &Receipt) -> Result<LeafIntent, IssuanceError> {
        let Self { prepared, renew_at, clamped, issuer } = self;
        Ok(LeafIntent { intent: prepared.recorded(receipt)?, renew_at, clamped, issuer })
    }
}

/// A leaf whose entry is durable: it may be signed.
#[derive(Debug)]
pub struct LeafIntent {
    intent: Intent,
    renew_at: Timestamp,
    clamped: bool,
    issuer: Arc<ActiveIssuer>,
}

impl LeafIntent {
    /// The key to sign with.
    pub const fn key(&self) -> &KeyId {
        self.intent.key()
    }

    /// Its serial, for the entry that says that signing failed.
    pub const fn serial(&self) -> Serial {
        self.intent.issuance.serial
    }

    /// The bytes to sign.
    pub fn to_be_signed(&self) -> ToBeSigned<'_> {
        self.intent.to_be_signed()
    }

    /// Joins the signature to the bytes it is for.
    ///
    /// # Errors
    /// [`IssuanceError::Seal`] when the signature does not verify.
    pub fn seal(self, signature: Signature) -> Result<Recorded<IssuedLeaf>, IssuanceError> {
        let Self { intent, renew_at, clamped, issuer } = self;
        let Recorded { value: (certificate, issuance), position } = intent.seal_with_facts(signature)?;
        Ok(Recorded { value: IssuedLeaf { certificate, issuance, renew_at, clamped, issuer }, position })
    }
}

impl Prepared {
    /// Prepares a self-signed root for a key of the key ring.
    ///
    /// # Errors
    /// [`IssuanceError::Prepare`] when the lint refuses.
    pub fn root(spec: &RootSpec<'_>, key: &KeyId, by: &str) -> Result<Self, IssuanceError> {
        let linted = rhizome_x509::prepare_root(spec)?;
        let names = (spec.trust_domain, spec.generation, spec.generation);
        Ok(Self::authority(Profile::Root, linted, spec.public_key, names, key, by))
    }

    /// Prepares an intermediate under `above`.
    ///
    /// # Errors
    /// [`IssuanceError::Prepare`] when the lint refuses.
    pub fn intermediate(
        spec: &IntermediateSpec<'_>,
        above: (&AuthorityId, &CaCertificate, SigningAlgorithm),
        key: &KeyId,
        by: &str,
    ) -> Result<Self, IssuanceError> {
        let (issuer, certificate, algorithm) = above;
        let linted = rhizome_x509::prepare_intermediate(spec, certificate, algorithm)?;
        let names = (spec.trust_domain, spec.generation, issuer);
        Ok(Self::authority(Profile::Issuer, linted, spec.public_key, names, key, by))
    }

    /// Prepares a certificate for the key of the root `subject`, signed by the root `above`.
    ///
    /// # Errors
    /// [`IssuanceError::Prepare`] when the lint refuses.
    pub fn cross(
        spec: &CrossSpec<'_>,
        subject: &AuthorityId,
        above: (&AuthorityId, &CaCertificate, SigningAlgorithm),
        key: &KeyId,
        by: &str,
    ) -> Result<Self, IssuanceError> {
        let (issuer, certificate, algorithm) = above;
        let linted = rhizome_x509::prepare_cross(spec, certificate, algorithm)?;
        let names = (spec.trust_domain, subject, issuer);
        Ok(Self::authority(Profile::Issuer, linted, spec.root.public_key(), names, key, by))
    }

    fn authority(
        profile: Profile,
        linted: Linted,
        public_key: &PublicKey,
        (domain, subject, issuer): (&TrustDomain, &AuthorityId, &AuthorityId),
        key: &KeyId,
        by: &str,
    ) -> Self {
        let issuance = Issuance {
            profile,
            spiffe_id: SpiffeId::of_trust_domain(domain),
            dns_names: Vec::new(),
            serial: linted.serial(),
            not_before: linted.not_before(),
            not_after: linted.not_after(),
            public_key: public_key.digest(),
            tbs: linted.digest(),
            issuer: issuer.clone(),
            key: key.clone(),
            caller: by.to_owned(),
            rule: None,
            request: None,
            bundle: 0,
            attributes: vec![format!("authority={subject}")],
        };
        Self { linted, issuance }
    }

    /// The ledger entry that must be durable before this is signed.
    pub fn entry(&self, now: Timestamp) -> Entry {
        Entry::issued(now, &self.issuance)
    }

    /// Turns a store's receipt for exactly this certificate into the right to sign it. Serial counters are unique, so
    /// comparing them is comparing certificates.
    ///
    /// # Errors
    /// [`IssuanceError::WrongReceipt`] when the receipt is for something else.
    pub fn recorded(self, receipt: &Receipt) -> Result<Intent, IssuanceError> {
        if receipt.counter != Some(self.issuance.serial.counter()) {
            return Err(IssuanceError::WrongReceipt);
        }
        Ok(Intent { linted: self.linted, issuance: self.issuance, position: receipt.position })
    }
}

/// Bytes whose ledger entry is durable: the only thing that can be signed into a certificate.
///
/// It cannot be made by hand:
/// ```compile_fail
/// use rhizome_core::issuance::Intent;
/// let forged = Intent { ..unreachable!() };
/// ```
#[derive(Debug)]
pub struct Intent {
    linted: Linted,
    issuance: Issuance,
    position: Position,
}

impl Intent {
    /// The key to sign with.
    pub const fn key(&self) -> &KeyId {
        &self.issuance.key
    }

    /// The bytes to sign.
    pub fn to_be_signed(&self) -> ToBeSigned<'_> {
        self.linted.to_be_signed()
    }

    /// Joins the signature to the bytes it is for.
    ///
    /// # Errors
    /// [`IssuanceError::Seal`] when the signature does not verify.
    pub fn seal(self, signature: Signature) -> Result<Recorded<Certificate>, IssuanceError> {
        let Recorded { value: (certificate, _), position } = self.seal_with_facts(signature)?;
        Ok(Recorded { value: certificate, position })
    }

    fn seal_with_facts(
        self,
        signature: Signature,
    ) -> Result<Recorded<(Certificate, Issuance)>, IssuanceError> {
        let certificate = self.linted.seal(signature)?;
        Ok(Recorded { value: (certificate, self.issuance), position: self.position })
    }
}

/// Something signed whose entry stands in the ledger. Replies are made from nothing else.
///
/// ```compile_fail
/// use rhizome_core::issuance::Recorded;
/// let forged = Recorded { value: (), position: rhizome_core::ledger::Position(1) };
/// ```
#[derive(Debug)]
pub struct Recorded<T> {
    value: T,
    position: Position,
}

impl<T> Recorded<T> {
    /// Where its entry stands.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Gives up the evidence for the value.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Recorded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A leaf certificate and what its reply says.
#[derive(Debug)]
pub struct IssuedLeaf {
    certificate: Certificate,
    issuance: Issuance,
    renew_at: Timestamp,
    clamped: bool,
    issuer: Arc<ActiveIssuer>,
}

impl IssuedLeaf {
    /// The certificate.
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The intermediates to serve after it, DER, without the root.
    pub fn intermediates(&self) -> &[Arc<[u8]>] {
        self.issuer.issuer.chain_der()
    }

    /// What the ledger says about it.
    pub const fn issuance(&self) -> &Issuance {
        &self.issuance
    }

    /// SHA-256 of its DER SubjectPublicKeyInfo.
    pub const fn public_key(&self) -> &Digest {
        &self.issuance.public_key
    }

    /// When to renew: drawn once, for this certificate.
    pub const fn renew_at(&self) -> Timestamp {
        self.renew_at
    }

    /// Whether it lives shorter than was asked for.
    pub const fn clamped(&self) -> bool {
        self.clamped
    }
}
