//! What the server is told at start, already validated.
//!
//! Not here: the YAML file and its faults (`rhizome`'s `config`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rhizome_core::authority::{FirstRoot, RotationPolicy};
use rhizome_core::caller::Role;
use rhizome_core::limits;
use rhizome_core::policy::PolicyLimits;
use rhizome_core::ports::{Clock, Entropy, KeyRing, Store};
use rhizome_core::rotation::Choices;
use rhizome_id::{ClusterName, ReplicaName, TrustDomain, Ttl};
use rhizome_tls::{JoinString, WebRoots};
use rhizome_x509::{DnsName, SigningAlgorithm};

/// The settings of one server process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose authority this is.
    pub trust_domain: TrustDomain,
    /// The name of this process among the servers of the trust domain.
    pub replica: ReplicaName,
    /// Where gRPC over mTLS is served; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Addresses (`host:port`) that join strings carry; empty means the address that is listened on.
    pub advertise: Vec<String>,
    /// DNS names in the serving certificate.
    pub dns_names: Vec<DnsName>,
    /// IP addresses in the serving certificate.
    pub ip_addresses: Vec<IpAddr>,
    /// The administrators' Unix socket, if one is wanted.
    pub admin_socket: Option<PathBuf>,
    /// Roles of local users on that socket, besides root and the server's own user, who hold `security`.
    pub admin_uids: BTreeMap<u32, Role>,
    /// Where metrics and health are served over plain HTTP, if at all.
    pub web: Option<SocketAddr>,
    /// Lifetimes.
    pub policy: PolicyLimits,
    /// Lifetimes of authorities.
    pub rotation: RotationPolicy,
    /// What a change of the root waits for, when nothing else is asked for.
    pub root_rotation: Choices,
    /// What new authorities sign with.
    pub algorithm: SigningAlgorithm,
    /// How often followers of the bundle without a stream should look.
    pub refresh_hint: Ttl,
    /// Lifetime of a join token when none is asked for.
    pub token_ttl: Ttl,
    /// Longest lifetime of a join token.
    pub token_max_ttl: Ttl,
    /// Limits at the doors.
    pub limits: DoorLimits,
    /// Start although the ledger has seen a later instant than the clock tells: the operator says that the clock is
    /// right and what was written from the future is not.
    pub believe_clock: bool,
    /// Where a backup is put together before it is sent; the system's directory for temporary files if nowhere.
    pub scratch: Option<PathBuf>,
    /// Worker threads, each with its own single-threaded runtime; 0 means one per core.
    pub workers: usize,
    /// Federation with foreign trust domains, and OpenID Connect's discovery.
    pub federation: FederationSettings,
    /// The Rhizome above, where this one is a cluster's own.
    pub upstream: Option<UpstreamSettings>,
}

impl Settings {
    /// A server of `trust_domain` that is told nothing else: no administrators' socket, no metrics page, no names in its
    /// certificate, and the lifetimes and limits that the configuration file has by default.
    pub fn new(trust_domain: TrustDomain, replica: ReplicaName, listen: SocketAddr) -> Self {
        Self {
            trust_domain,
            replica,
            listen,
            advertise: Vec::new(),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            admin_socket: None,
            admin_uids: BTreeMap::new(),
            web: None,
            policy: PolicyLimits::default(),
            rotation: RotationPolicy {
                root_ttl: limits::ROOT_TTL,
                issuer_ttl: limits::ISSUER_TTL,
                jwt_key_ttl: limits::JWT_KEY_TTL,
                first_root: FirstRoot::Make,
                jwt_keys: true,
            },
            root_rotation: Choices::default(),
            algorithm: SigningAlgorithm::default(),
            refresh_hint: limits::BUNDLE_REFRESH_HINT,
            token_ttl: limits::JOIN_TOKEN_DEFAULT_TTL,
            token_max_ttl: limits::JOIN_TOKEN_MAX_TTL,
            limits: DoorLimits::default(),
            believe_clock: false,
            scratch: None,
            workers: 0,
            federation: FederationSettings::default(),
            upstream: None,
        }
    }

    /// The same as a cluster's own Rhizome below another one: root and bundle come from there, and so do the keys of
    /// JWT-SVIDs in it.
    #[must_use]
    pub fn below(self, upstream: UpstreamSettings) -> Self {
        // How long an issuer lives is said above; the next one is asked for at half of that, whatever is said here.
        let issuer_ttl = self.rotation.root_ttl;
        let rotation =
            RotationPolicy { first_root: FirstRoot::Await, jwt_keys: false, issuer_ttl, ..self.rotation };
        Self { rotation, upstream: Some(upstream), ..self }
    }
}

/// The Rhizome above.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// What to join with, and as which cluster. Needed until it has joined.
    pub join: Option<(JoinString, ClusterName)>,
    /// Where its servers are, `host:port` each, in order of preference.
    pub servers: Vec<String>,
    /// Directory of the identity as which this one calls.
    pub identity: PathBuf,
}

/// Federation with foreign trust domains, and OpenID Connect's discovery for JWT-SVIDs.
#[derive(Clone, Debug)]
pub struct FederationSettings {
    /// Where our bundle endpoint is, if there is one.
    pub listen: Option<SocketAddr>,
    /// The path of the bundle on it; begins with a slash, of letters, digits and `-._~/`.
    pub path: String,
    /// What it presents (profile `https_web`); this server's own SVID without one (profile `https_spiffe`).
    pub web_certificate: Option<WebCertificate>,
    /// The address that stands as `iss` in JWT-SVIDs, and below which discovery is served: `https://…`.
    pub oidc_issuer: Option<String>,
    /// Whom foreign endpoints of the public web are believed by; the list built in without one.
    pub web_roots: Option<WebRoots>,
}

impl Default for FederationSettings {
    fn default() -> Self {
        Self {
            listen: None,
            path: "/bundle".to_owned(),
            web_certificate: None,
            oidc_issuer: None,
            web_roots: None,
        }
    }
}

/// A certificate of the public Web PKI, in files that somebody else renews.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebCertificate {
    /// The chain in PEM, leaf first.
    pub chain: PathBuf,
    /// The leaf's private key in PEM.
    pub key: PathBuf,
}

/// How much one caller, one address and the whole process may ask for.
#[derive(Clone, Copy, Debug)]
pub struct DoorLimits {
    /// Requests a second from one address that has not proved who it is; bursts of twice as many.
    pub per_source_per_second: u32,
    /// Requests a second from one authenticated caller; bursts of twice as many.
    pub per_identity_per_second: u32,
    /// Connections held open at once.
    pub connections: usize,
}

impl Default for DoorLimits {
    fn default() -> Self {
        Self {
            per_source_per_second: limits::REQUESTS_PER_SOURCE,
            per_identity_per_second: limits::REQUESTS_PER_IDENTITY,
            connections: usize::try_from(limits::CONNECTIONS).unwrap_or(usize::MAX),
        }
    }
}

/// What the server is plugged into.
#[derive(Clone)]
pub struct Ports {
    /// State and ledger.
    pub store: Arc<dyn Store>,
    /// Private keys.
    pub keys: Arc<dyn KeyRing>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ports { .. }")
    }
}
