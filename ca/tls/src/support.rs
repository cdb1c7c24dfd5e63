//! What the tests share: authorities that issue, a trust that can be changed, a handshake in memory.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rhizome_id::{ReplicaNumber, Serial, SerialCounter, SpiffeId, Timestamp, TrustDomain, Ttl};
use rhizome_x509::{
    Bundle, CaCertificate, IntermediateRole, IntermediateSpec, Issuer, KeyAlgorithm, LeafSpec, Linted,
    PublicKey, RequestKey, RootSpec, Signature, SigningAlgorithm, TrustAnchors, prepare_intermediate,
    prepare_leaf, prepare_root,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::DuplexStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::{
    AcceptError, Accepted, ClientIdentity, ClientTrust, ExpectedServer, ServerTls, ServingIdentity,
    client_config,
};

/// 2026-01-01T00:00:00Z: when every test happens, unless it says otherwise.
pub(crate) const NOW: i64 = 1_767_225_600;
pub(crate) const HOUR: i64 = 3600;
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

pub(crate) fn at(seconds_from_now: i64) -> Timestamp {
    Timestamp::from_unix(NOW + seconds_from_now)
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

pub(crate) fn spiffe_id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A key that signs certificates.
struct SigningKey {
    pair: EcdsaKeyPair,
    public_key: PublicKey,
    random: SystemRandom,
}

impl SigningKey {
    #[expect(clippy::disallowed_methods, reason = "throw-away keys for tests")]
    fn new() -> Self {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pkcs8_der(), &random).unwrap();
        Self { pair, public_key: key.public_key().clone(), random }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(&self.random, message).unwrap().as_ref().to_vec()
    }

    fn seal(&self, linted: Linted) -> Vec<u8> {
        let signature = Signature::external(self.sign(linted.to_be_signed().as_bytes()));
        linted.seal(signature).unwrap().der().to_vec()
    }
}

/// A root with one intermediate.
pub(crate) struct Authority {
    pub(crate) root: CaCertificate,
    issuer: Issuer,
    key: SigningKey,
}

/// A chain with its key.
pub(crate) struct Issued {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: Zeroizing<Vec<u8>>,
}

impl Issued {
    pub(crate) fn identity(&self) -> ClientIdentity {
        ClientIdentity::new(self.chain.clone(), self.key.clone()).unwrap()
    }

    pub(crate) fn serving(&self) -> Arc<ServingIdentity> {
        Arc::new(ServingIdentity::new(&self.chain, &self.key).unwrap())
    }
}

fn serial() -> Serial {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let counter = SerialCounter::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap();
    Serial::compose(ReplicaNumber::new(1).unwrap(), counter, [7; Serial::RANDOM_BYTES])
}

impl Authority {
    /// Valid from a day ago for thirty days.
    pub(crate) fn new(domain: &str, generation: &str) -> Self {
        Self::lasting(domain, generation, 30 * 24 * HOUR, 29 * 24 * HOUR)
    }

    /// With a root and an intermediate that end so many seconds from now.
    pub(crate) fn lasting(name: &str, generation: &str, root_ends: i64, issuer_ends: i64) -> Self {
        let (trust_domain, generation) = (domain(name), generation.parse().unwrap());
        let (root_key, key) = (SigningKey::new(), SigningKey::new());
        let (not_before, root_ends, issuer_ends) = (at(-24 * HOUR), at(root_ends), at(issuer_ends));
        let root = prepare_root(&RootSpec {
            trust_domain: &trust_domain,
            generation: &generation,
            public_key: &root_key.public_key,
            algorithm: P256,
            serial: serial(),
            not_before,
            not_after: root_ends,
        });
        let root = CaCertificate::parse(&root_key.seal(root.unwrap())).unwrap();
        let intermediate = IntermediateSpec {
            role: IntermediateRole::Own,
            trust_domain: &trust_domain,
            generation: &generation,
            public_key: &key.public_key,
            algorithm: P256,
            serial: serial(),
            not_before,
            not_after: issuer_ends,
        };
        let intermediate = prepare_intermediate(&intermediate, &root, P256).unwrap();
        let intermediate = CaCertificate::parse(&root_key.seal(intermediate)).unwrap();
        let issuer = Issuer::new(vec![intermediate], root.clone()).unwrap();
        Self { root, issuer, key }
    }

    /// A leaf valid from an hour ago for another hour.
    pub(crate) fn issue(&self, id: &str) -> Issued {
        self.issue_for(id, -HOUR, HOUR)
    }

    pub(crate) fn issue_for(&self, id: &str, from: i64, until: i64) -> Issued {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let leaf = self.key.seal(self.prepare(id, &key, from, until));
        self.issued(leaf, &key)
    }

    /// A leaf whose extKeyUsage has e-mail protection in place of one of the two TLS usages.
    pub(crate) fn issue_without_usage(&self, id: &str, missing: u8) -> Issued {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let linted = self.prepare(id, &key, -HOUR, HOUR);
        let mut tbs = linted.to_be_signed().as_bytes().to_vec();
        let usage = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, missing];
        let found = tbs.windows(usage.len()).position(|window| window == usage).unwrap();
        tbs[found + usage.len() - 1] = 4; // id-kp-emailProtection
        let mut bits = vec![0];
        bits.extend(self.key.sign(&tbs));
        let algorithm = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
        let leaf = der(0x30, &[&tbs, algorithm.as_slice(), &der(0x03, &bits)].concat());
        self.issued(leaf, &key)
    }

    fn prepare(&self, id: &str, key: &RequestKey, from: i64, until: i64) -> Linted {
        let spec = LeafSpec {
            spiffe_id: &spiffe_id(id),
            dns_names: &[],
            public_key: key.public_key(),
            serial: serial(),
            not_before: at(from),
            not_after: at(until),
        };
        prepare_leaf(&spec, &self.issuer).unwrap()
    }

    fn issued(&self, leaf: Vec<u8>, key: &RequestKey) -> Issued {
        let above = self.issuer.chain_der().iter().map(|der| der.to_vec());
        Issued { chain: std::iter::once(leaf).chain(above).collect(), key: key.pkcs8_der() }
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header = match content.len() {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [header.as_slice(), content].concat()
}

pub(crate) fn bundle(name: &str, authorities: &[&Authority]) -> Bundle {
    let anchors = authorities.iter().map(|authority| authority.root.clone()).collect();
    Bundle::new(domain(name), 1, Ttl::hours(1), anchors).unwrap()
}

pub(crate) fn anchors(name: &str, authorities: &[&Authority]) -> Arc<TrustAnchors> {
    Arc::new(TrustAnchors::from_bundle(&bundle(name, authorities)))
}

/// A trust that tests change under the server's feet.
pub(crate) struct Trust {
    anchors: Mutex<Arc<TrustAnchors>>,
    now: Mutex<Timestamp>,
}

impl Trust {
    pub(crate) fn new(anchors: Arc<TrustAnchors>) -> Arc<Self> {
        Arc::new(Self { anchors: Mutex::new(anchors), now: Mutex::new(at(0)) })
    }

    pub(crate) fn set_anchors(&self, anchors: Arc<TrustAnchors>) {
        *self.anchors.lock().unwrap() = anchors;
    }

    pub(crate) fn set_now(&self, now: Timestamp) {
        *self.now.lock().unwrap() = now;
    }
}

impl ClientTrust for Trust {
    fn anchors(&self) -> Arc<TrustAnchors> {
        Arc::clone(&self.anchors.lock().unwrap())
    }

    fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }
}

/// A client of `td`'s servers that trusts `anchors`.
pub(crate) fn client(anchors: Arc<TrustAnchors>, identity: Option<ClientIdentity>) -> ClientConfig {
    let expected = ExpectedServer::ServerOf(anchors.trust_domain().clone());
    client_config(anchors, identity, expected, Arc::new(|| at(0))).unwrap()
}

pub(crate) type ClientStream = tokio_rustls::client::TlsStream<DuplexStream>;

/// One handshake in memory, seen from both ends.
pub(crate) async fn handshake(
    server: &ServerTls,
    config: &Arc<ClientConfig>,
) -> (Result<Accepted<DuplexStream>, AcceptError>, io::Result<ClientStream>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("anything.invalid").unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    tokio::join!(server.accept(far, DEADLINE), connector.connect(name, near))
}
