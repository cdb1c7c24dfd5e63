//! What the tests of several modules share: a root, an intermediate, keys that sign, and certificates with defects.

use rcgen::CertificateParams;
use rhizome_id::{ReplicaNumber, Serial, SerialCounter, SpiffeId, Timestamp, TrustDomain};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair};

use crate::certificate::{CaCertificate, Certificate};
use crate::der::{self, Reader};
use crate::issuer::{Issuer, IssuerNames};
use crate::key::{KeyAlgorithm, PublicKey, SigningAlgorithm};
use crate::profile::{self, IntermediateRole, IntermediateSpec, LeafSpec, RootSpec};
use crate::request::RequestKey;
use crate::signature::Signature;
use crate::tbs::Linted;

/// 2027-01-15T08:00:00Z.
pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(NOW + seconds)
}

/// A serial whose last byte is `random`, so that a test decides whether sealing verifies.
pub(crate) fn serial(counter: u64, random: u8) -> Serial {
    Serial::compose(ReplicaNumber::new(1).unwrap(), SerialCounter::new(counter).unwrap(), [random; 11])
}

pub(crate) fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

pub(crate) fn web() -> SpiffeId {
    "spiffe://example.org/ns/prod/sa/web".parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "ring takes its own source only")]
pub(crate) fn random() -> SystemRandom {
    SystemRandom::new()
}

/// An authority's or a requester's key.
pub(crate) struct TestKey {
    pair: EcdsaKeyPair,
    pub(crate) public: PublicKey,
    pub(crate) algorithm: SigningAlgorithm,
}

impl TestKey {
    pub(crate) fn p256() -> Self {
        Self::new(KeyAlgorithm::EcdsaP256)
    }

    pub(crate) fn new(algorithm: KeyAlgorithm) -> Self {
        let key = RequestKey::generate(algorithm).unwrap();
        let curve = match algorithm {
            KeyAlgorithm::EcdsaP384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
            KeyAlgorithm::EcdsaP256 | KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ed25519 => {
                &ECDSA_P256_SHA256_ASN1_SIGNING
            }
        };
        Self {
            pair: EcdsaKeyPair::from_pkcs8(curve, &key.pkcs8_der(), &random()).unwrap(),
            public: key.public_key().clone(),
            algorithm: SigningAlgorithm::of_key(algorithm).unwrap(),
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(&random(), message).unwrap().as_ref().to_vec()
    }

    pub(crate) fn seal(&self, linted: Linted) -> Certificate {
        let signature = Signature::external(self.sign(linted.to_be_signed().as_bytes()));
        linted.seal(signature).unwrap()
    }

    /// `SEQUENCE { signed, algorithm, signature }`: a certificate or a request, whatever it says.
    pub(crate) fn wrap(&self, signed: &[u8]) -> Vec<u8> {
        let bits = der::encode(der::BIT_STRING, &[&[0], &self.sign(signed)]);
        der::encode(der::SEQUENCE, &[signed, self.algorithm.identifier(), &bits])
    }

    /// A certificate that no lint has seen.
    pub(crate) fn forge(
        &self,
        params: &CertificateParams,
        key: &PublicKey,
        issuer: &CaCertificate,
    ) -> Vec<u8> {
        let names = IssuerNames::of(issuer).unwrap();
        self.wrap(&profile::encode(params, key, names.params(), self.algorithm).unwrap())
    }
}

/// A root and an intermediate under it.
pub(crate) struct Authority {
    pub(crate) root_key: TestKey,
    pub(crate) root: CaCertificate,
    pub(crate) key: TestKey,
    pub(crate) certificate: CaCertificate,
    pub(crate) issuer: Issuer,
}

impl Authority {
    pub(crate) const ROOT_LIFE: i64 = 86_400 * 365;
    pub(crate) const LIFE: i64 = 86_400 * 30;

    pub(crate) fn new() -> Self {
        Self::of(KeyAlgorithm::EcdsaP256, "g1")
    }

    pub(crate) fn of(algorithm: KeyAlgorithm, generation: &str) -> Self {
        let (root_key, key) = (TestKey::new(algorithm), TestKey::new(algorithm));
        let generation = generation.parse().unwrap();
        let root = profile::prepare_root(&RootSpec {
            trust_domain: &domain(),
            generation: &generation,
            public_key: &root_key.public,
            algorithm: root_key.algorithm,
            serial: serial(1, 0),
            not_before: at(-86_400),
            not_after: at(Self::ROOT_LIFE),
        });
        let root = CaCertificate::try_from(root_key.seal(root.unwrap())).unwrap();
        let spec = IntermediateSpec {
            role: IntermediateRole::Own,
            trust_domain: &domain(),
            generation: &generation,
            public_key: &key.public,
            algorithm: key.algorithm,
            serial: serial(2, 0),
            not_before: at(-3600),
            not_after: at(Self::LIFE),
        };
        let linted = profile::prepare_intermediate(&spec, &root, root_key.algorithm).unwrap();
        let certificate = CaCertificate::try_from(root_key.seal(linted)).unwrap();
        let issuer = Issuer::new(vec![certificate.clone()], root.clone()).unwrap();
        Self { root_key, root, key, certificate, issuer }
    }

    /// A leaf as the profile wants it, for one hour.
    pub(crate) fn leaf(&self, key: &PublicKey) -> Linted {
        let spec = LeafSpec {
            spiffe_id: &web(),
            dns_names: &[],
            public_key: key,
            serial: serial(3, 0),
            not_before: at(-60),
            not_after: at(3540),
        };
        profile::prepare_leaf(&spec, &self.issuer).unwrap()
    }
}

/// The elements inside the SEQUENCE `der`, each with its header.
pub(crate) fn parts(der: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = Reader::new(der).enter(der::SEQUENCE).unwrap();
    let mut parts = Vec::new();
    while !reader.is_empty() {
        parts.push(reader.any().unwrap().raw.to_vec());
    }
    parts
}

pub(crate) fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    der::encode(der::SEQUENCE, &[&parts.concat()])
}

/// An extension with these bytes as its value.
pub(crate) fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let oid = der::encode(der::OID, &[oid]);
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    der::encode(der::SEQUENCE, &[&oid, critical, &der::encode(der::OCTET_STRING, &[value])])
}

/// The same TBSCertificate with its parts changed: version, serial, algorithm, issuer, validity, subject, key,
/// extensions.
pub(crate) fn with_parts(tbs: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let mut all = parts(tbs);
    change(&mut all);
    sequence(&all)
}

/// The same TBSCertificate with its extensions changed.
pub(crate) fn with_extensions(tbs: &[u8], change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    with_parts(tbs, |all| {
        let mut extensions = parts(Reader::new(&all[7]).value(der::CONTEXT_3).unwrap());
        change(&mut extensions);
        all[7] = der::encode(der::CONTEXT_3, &[&sequence(&extensions)]);
    })
}

/// Replaces, removes (`None`) or leaves the extension whose OID is `oid`.
pub(crate) fn with_extension(tbs: &[u8], oid: &[u8], new: Option<Vec<u8>>) -> Vec<u8> {
    with_extensions(tbs, |extensions| {
        let at = extensions.iter().position(|extension| parts(extension)[0] == der::encode(der::OID, &[oid]));
        match new {
            Some(new) => extensions[at.unwrap()] = new,
            None => drop(extensions.remove(at.unwrap())),
        }
    })
}
