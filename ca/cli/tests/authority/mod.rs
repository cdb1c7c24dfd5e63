//! An authority for tests: a root, an issuer below it, and leaves for whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rhizome_id::{ReplicaNumber, Serial, SerialCounter, SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_proto::ca::v1 as ca;
use rhizome_x509::{
    Bundle, CaCertificate, IntermediateRole, IntermediateSpec, Issuer, KeyAlgorithm, LeafSpec, Linted,
    PublicKey, RequestKey, RootSpec, Signature, SigningAlgorithm, prepare_intermediate, prepare_leaf,
    prepare_root,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

/// 2026-01-01T00:00:00Z: when every test happens.
pub(crate) const NOW: i64 = 1_767_225_600;
const HOUR: i64 = 3600;
const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

pub(crate) fn at(seconds_from_now: i64) -> Timestamp {
    Timestamp::from_unix(NOW + seconds_from_now)
}

struct SigningKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
    random: SystemRandom,
}

impl SigningKey {
    #[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
    fn new() -> Self {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
        Self { pair, public: key.public_key().clone(), random }
    }

    fn seal(&self, linted: Linted) -> Vec<u8> {
        let signature = self.pair.sign(&self.random, linted.to_be_signed().as_bytes()).unwrap();
        linted.seal(Signature::external(signature.as_ref().to_vec())).unwrap().der().to_vec()
    }
}

pub(crate) struct Authority {
    domain: TrustDomain,
    pub(crate) root: CaCertificate,
    issuer: Issuer,
    key: SigningKey,
}

fn serial() -> Serial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let counter = SerialCounter::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
    Serial::compose(ReplicaNumber::new(1).unwrap(), counter, [7; Serial::RANDOM_BYTES])
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let domain: TrustDomain = name.parse().unwrap();
        let generation = "g1".parse().unwrap();
        let (root_key, key) = (SigningKey::new(), SigningKey::new());
        let (not_before, root_end, issuer_end) = (at(-HOUR), at(48 * HOUR), at(24 * HOUR));
        let root = prepare_root(&RootSpec {
            trust_domain: &domain,
            generation: &generation,
            public_key: &root_key.public,
            algorithm: P256,
            serial: serial(),
            not_before,
            not_after: root_end,
        });
        let root = CaCertificate::parse(&root_key.seal(root.unwrap())).unwrap();
        let spec = IntermediateSpec {
            role: IntermediateRole::Own,
            trust_domain: &domain,
            generation: &generation,
            public_key: &key.public,
            algorithm: P256,
            serial: serial(),
            not_before,
            not_after: issuer_end,
        };
        let issuer = root_key.seal(prepare_intermediate(&spec, &root, P256).unwrap());
        let issuer = Issuer::new(vec![CaCertificate::parse(&issuer).unwrap()], root.clone()).unwrap();
        Self { domain, root, issuer, key }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), 5, Ttl::hours(1), vec![self.root.clone()]).unwrap()
    }

    pub(crate) fn wire_bundle(&self) -> ca::Bundle {
        let bundle = self.bundle();
        ca::Bundle {
            trust_domain: self.domain.to_string(),
            sequence: bundle.sequence(),
            digest: Bytes::copy_from_slice(bundle.digest().as_bytes()),
            anchors_der: vec![Bytes::copy_from_slice(self.root.der())],
            refresh_hint_seconds: bundle.refresh_hint().seconds(),
            jwt_keys: Vec::new(),
        }
    }

    /// A chain for `id` and `key`, valid for an hour, leaf first.
    pub(crate) fn chain(&self, id: &str, key: &PublicKey) -> Vec<Vec<u8>> {
        let id: SpiffeId = id.parse().unwrap();
        let spec = LeafSpec {
            spiffe_id: &id,
            dns_names: &[],
            public_key: key,
            serial: serial(),
            not_before: at(-60),
            not_after: at(HOUR),
        };
        let leaf = self.key.seal(prepare_leaf(&spec, &self.issuer).unwrap());
        std::iter::once(leaf).chain(self.issuer.chain_der().iter().map(|der| der.to_vec())).collect()
    }
}
