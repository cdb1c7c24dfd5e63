//! What the tests share: a root, certificates under it, bundles and rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rhizome_core::attributes::Attributes;
use rhizome_core::caller::Principal;
use rhizome_core::rules::{Rule, RuleDraft};
use rhizome_id::{ReplicaNumber, Serial, SerialCounter, SpiffeId, Timestamp, Ttl};
use rhizome_jwt::JwtSpec;
use rhizome_proto::node::v1::CrlSet;
use rhizome_x509::{
    Bundle, CaCertificate, CrlSpec, IntermediateRole, IntermediateSpec, Issuer, JwtKey, KeyAlgorithm,
    LeafSpec, RequestKey, RevocationCode, Revoked, RootSpec, Signature, SigningAlgorithm, prepare_crl,
    prepare_intermediate, prepare_leaf, prepare_root,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use zeroize::Zeroizing;

use crate::holdings::Svid;
use crate::renewal::Entitlement;

/// 2026-01-01T00:00:00Z: when every test begins.
const NOW: i64 = 1_767_225_600;

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(NOW + seconds)
}

fn serial() -> Serial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let counter = SerialCounter::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
    Serial::compose(ReplicaNumber::new(1).unwrap(), counter, [7; Serial::RANDOM_BYTES])
}

/// A self-signed root of `example.org`, valid for thirty days around now.
pub(crate) fn root(generation: &str) -> CaCertificate {
    root_of(&SigningPair::new(), generation)
}

fn root_of(pair: &SigningPair, generation: &str) -> CaCertificate {
    let linted = prepare_root(&RootSpec {
        trust_domain: &"example.org".parse().unwrap(),
        generation: &generation.parse().unwrap(),
        public_key: pair.key.public_key(),
        algorithm: SigningAlgorithm::EcdsaP256Sha256,
        serial: serial(),
        not_before: at(-86_400),
        not_after: at(30 * 86_400),
    });
    let linted = linted.unwrap();
    let signature = pair.sign(linted.to_be_signed().as_bytes());
    CaCertificate::parse(linted.seal(signature).unwrap().der()).unwrap()
}

/// A key that signs.
struct SigningPair {
    key: RequestKey,
    pair: EcdsaKeyPair,
}

impl SigningPair {
    #[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
    fn new() -> Self {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random);
        Self { pair: pair.unwrap(), key }
    }

    #[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
    fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
        Signature::external(signature.as_ref().to_vec())
    }
}

/// An issuer under a root, with lists and leaves of its own.
pub(crate) struct TestIssuer {
    pair: SigningPair,
    pub(crate) root: CaCertificate,
    pub(crate) certificate: CaCertificate,
}

impl TestIssuer {
    pub(crate) fn new(generation: &str) -> Self {
        let (above, pair) = (SigningPair::new(), SigningPair::new());
        let root = root_of(&above, generation);
        let spec = IntermediateSpec {
            role: IntermediateRole::Own,
            trust_domain: &"example.org".parse().unwrap(),
            generation: &generation.parse().unwrap(),
            public_key: pair.key.public_key(),
            algorithm: SigningAlgorithm::EcdsaP256Sha256,
            serial: serial(),
            not_before: at(-3_600),
            not_after: at(20 * 86_400),
        };
        let linted = prepare_intermediate(&spec, &root, SigningAlgorithm::EcdsaP256Sha256).unwrap();
        let signature = above.sign(linted.to_be_signed().as_bytes());
        let certificate = CaCertificate::parse(linted.seal(signature).unwrap().der()).unwrap();
        Self { pair, root, certificate }
    }

    /// Its list with that number and so many entries, in DER.
    pub(crate) fn crl(&self, number: u64, entries: u64) -> Vec<u8> {
        let revoked: Vec<Revoked> = (0..entries)
            .map(|_| Revoked { serial: serial(), at: at(-60), code: RevocationCode::Unspecified })
            .collect();
        let linted = prepare_crl(&CrlSpec {
            issuer: &self.certificate,
            number,
            this_update: at(-60),
            next_update: self.certificate.not_after(),
            revoked: &revoked,
        });
        let linted = linted.unwrap();
        let signature = self.pair.sign(linted.to_be_signed().as_bytes());
        linted.seal(signature).unwrap().der().to_vec()
    }

    /// A leaf of it, for an hour.
    pub(crate) fn leaf(&self, path: &str) -> Vec<u8> {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let issuer = Issuer::new(vec![self.certificate.clone()], self.root.clone()).unwrap();
        let linted = prepare_leaf(
            &LeafSpec {
                spiffe_id: &entitlement(path).spiffe_id,
                dns_names: &[],
                public_key: key.public_key(),
                serial: serial(),
                not_before: at(0),
                not_after: at(3_599),
            },
            &issuer,
        );
        let linted = linted.unwrap();
        let signature = self.pair.sign(linted.to_be_signed().as_bytes());
        linted.seal(signature).unwrap().der().to_vec()
    }
}

/// What a server would send for these issuers and lists.
pub(crate) fn crl_set(issuers: &[&TestIssuer], crls: Vec<Vec<u8>>) -> CrlSet {
    CrlSet {
        crls_der: crls.into_iter().map(Into::into).collect(),
        issuers_der: issuers.iter().map(|it| it.certificate.der().to_vec().into()).collect(),
    }
}

pub(crate) fn bundle(sequence: u64, anchors: &[&CaCertificate]) -> Bundle {
    let anchors = anchors.iter().copied().cloned().collect();
    Bundle::new("example.org".parse().unwrap(), sequence, Ttl::hours(1), anchors).unwrap()
}

/// A key that signs tokens.
pub(crate) struct TokenKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pub(crate) public: JwtKey,
}

impl TokenKey {
    pub(crate) fn new(kid: &str) -> Self {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let public = JwtKey::new(kid.to_owned(), key.public_key().clone(), Timestamp::MAX).unwrap();
        Self { pkcs8: key.pkcs8_der(), public }
    }

    /// A token from `from` on for five minutes.
    #[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
    pub(crate) fn token(&self, id: &SpiffeId, audiences: &[String], from: Timestamp) -> String {
        let spec = JwtSpec {
            spiffe_id: id.clone(),
            audiences: audiences.to_vec(),
            issued_at: from,
            expires_at: from.plus(300),
            jti: "1".to_owned(),
            issuer: None,
            key: self.public.clone(),
        };
        let token = rhizome_jwt::prepare(spec).unwrap();
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.pkcs8, &random).unwrap();
        let signature = pair.sign(&random, token.as_bytes()).unwrap();
        let sealed = token.seal(Signature::external(signature.as_ref().to_vec())).unwrap();
        sealed.token().to_owned()
    }
}

pub(crate) fn node() -> Principal {
    let domain = "example.org".parse().unwrap();
    let id = "spiffe://example.org/rhizome/node/prod/join_token/vm-1".parse().unwrap();
    rhizome_core::caller::principal_of(&id, &domain).unwrap()
}

pub(crate) fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::from_pairs(pairs.iter().map(|(name, value)| (name.parse().unwrap(), *value))).unwrap()
}

/// A rule with one condition.
pub(crate) fn rule(name: &str, (attribute, value): (&str, &str), identity: &str) -> RuleDraft {
    RuleDraft {
        name: name.parse().unwrap(),
        when: [(attribute.parse().unwrap(), [value.to_owned()].into())].into(),
        identity: identity.to_owned(),
        ttl: None,
        dns_names: Vec::new(),
        federates_with: Vec::new(),
        comment: None,
    }
}

pub(crate) fn valid(draft: RuleDraft) -> Arc<Rule> {
    Arc::new(Rule::new(draft).unwrap())
}

pub(crate) fn entitlement(path: &str) -> Entitlement {
    let spiffe_id = format!("spiffe://example.org{path}").parse().unwrap();
    Entitlement { spiffe_id, dns_names: Vec::new(), ttl: None }
}

/// A certificate that nobody verifies, for an hour from `from`.
pub(crate) fn svid(path: &str, serial: &str, from: Timestamp) -> Arc<Svid> {
    Arc::new(Svid {
        spiffe_id: entitlement(path).spiffe_id,
        chain_der: vec![root("leaf").der().to_vec()],
        key_pkcs8_der: b"a private key".to_vec().into(),
        not_before: from,
        not_after: from.plus(3_599),
        renew_at: from.plus(1_800),
        serial: serial.to_owned(),
        hint: String::new(),
    })
}
