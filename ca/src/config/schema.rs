//! The schema: which fields a configuration has, their defaults, and how they bear on each other.
//!
//! Laws: reading a section asks for every field it has, so what is not asked for is unknown; relations are checked
//! only between fields that are sound in themselves, so one mistake gives one fault.
//! Not here: what a value looks like (`values`). The commented sample is `deploy/config/rhizome.yaml`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use rhizome_core::limits;
use rhizome_id::{ReplicaName, TrustDomain, Ttl};

use super::faults::{Faults, Position, quoted};
use super::keys;
use super::section::{Refusal, Scalar, Section};
use super::store;
use super::tree::Node;
use super::values::{self, Endpoint, Host};
use super::{
    Admin, Authority, Config, Federation, Limits, Log, LogFormat, LogLevel, Policy, Rotation, Sealing,
    Upstream, Warning,
};

/// Values in one list: replicas, names and administrators are counted in tens.
const MAX_LIST: usize = 64;

/// Where the server listens unless told otherwise: all IPv4 addresses, port 8443.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

/// Where state lives unless told otherwise (systemd's `StateDirectory=rhizome`).
const DATA: &str = "/var/lib/rhizome";

/// Where administrators connect unless told otherwise (systemd's `RuntimeDirectory=rhizome`).
const SOCKET: &str = "/run/rhizome/admin.sock";

/// Where the bundle is on our bundle endpoint unless told otherwise.
const BUNDLE_PATH: &str = "/bundle";

/// What stands below the issuer's address (OpenID Connect Discovery 1.0 §4).
const DISCOVERY_PATHS: [&str; 2] = ["/.well-known/openid-configuration", "/keys"];

/// What a change of the root waits for unless told otherwise: `limits::ROTATION_*_SECONDS` as lifetimes.
const SETTLE: Ttl = Ttl::minutes(21);
const SOAK: Ttl = Ttl::hours(24);
const WINDOW: Ttl = Ttl::minutes(10);

/// Upper bound of every rate: no server issues faster.
const MAX_RATE: u32 = 1_000_000;
/// Upper bound of connections: file descriptors are the real limit.
const MAX_CONNECTIONS: u32 = 1_000_000;
/// Upper bound of worker threads.
const MAX_WORKERS: usize = 1_024;

type Shared<'n> = &'n RefCell<Faults>;

/// Reads a configuration out of a tree. `None` when there are faults.
pub(super) fn read(root: Option<&Node>, faults: Shared<'_>) -> Option<(Config, Vec<Warning>)> {
    let mut file = Section::root(root, faults);
    let trust_domain =
        file.required("trust_domain", "add `trust_domain: example.org`", values::trust_domain).given();
    let replica = file.value("replica", values::replica).given().or_else(|| "r1".parse().ok());
    let reach = reach(&mut file);
    let data = file.value("data", values::path).or(PathBuf::from(DATA));
    let (store, plaintext) = store::read(file.section("store"));
    let admin = admin(file.section("admin"));
    let mut web = file.section("web");
    let web_listen = web.value("listen", values::listen).given();
    web.finish();
    let (keys, unsealed_at) = keys::read(file.section("keys"));
    let (authority, bounds) = authority(file.section("authority"));
    refuse_many_below(&mut file, &authority, &store);
    let policy = policy(file.section("policy"), bounds);
    let limits = read_limits(file.section("limits"));
    let mut bundle = file.section("bundle");
    let refresh_hint = bundle.value("refresh_hint", values::ttl).or(limits::BUNDLE_REFRESH_HINT);
    bundle.finish();
    let (rotation, hasty) = rotation(file.section("rotation"));
    let federation = federation(file.section("federation"));
    let log = log(file.section("log"));
    file.finish();
    if !faults.borrow().is_empty() {
        return None;
    }
    let mut warnings = Vec::new();
    if keys.sealing == Some(Sealing::DangerUnsealed) {
        let text = "keys.danger_unsealed: private keys are stored in the clear".to_owned();
        warnings.push(Warning { at: unsealed_at, text });
    }
    if let Some(at) = plaintext {
        let text =
            "store.danger_plaintext: whoever is between here and the database reads and changes everything";
        warnings.push(Warning { at: Some(at), text: text.to_owned() });
    }
    if let Some(at) = hasty {
        let text = "rotation.settle: less than 21m: whatever is under way when the root changes, with clocks ten minutes \
                    off, may be missed";
        warnings.push(Warning { at: Some(at), text: text.to_owned() });
    }
    let Reach { listen, advertise, names } = reach;
    let (dns_names, ip_addresses) = split(&names);
    let (trust_domain, replica): (TrustDomain, ReplicaName) = (trust_domain?, replica?);
    let web = web_listen;
    let config = Config {
        trust_domain,
        replica,
        listen,
        advertise,
        dns_names,
        ip_addresses,
        data,
        store,
        admin,
        web,
        keys,
        authority,
        policy,
        limits,
        refresh_hint,
        rotation,
        federation,
        log,
    };
    Some((config, warnings))
}

/// A cluster's own Rhizome is one server.
fn refuse_many_below(file: &mut Section<'_>, authority: &Authority, store: &super::StoreChoice) {
    if authority.upstream.is_some() && matches!(store, super::StoreChoice::Postgres(_)) {
        let problem = "a cluster's own Rhizome has one server so far, and PostgreSQL is for many";
        let refusal = Refusal::new(problem, "remove `store:`, or `authority.upstream`");
        file.fault("authority.upstream", None, refusal);
    }
}

/// Where the server is and what it is called.
struct Reach {
    listen: SocketAddr,
    advertise: Vec<Endpoint>,
    names: Vec<Host>,
}

fn reach(file: &mut Section<'_>) -> Reach {
    let listen_field = file.value("listen", values::listen);
    let advertise_field = file.list("advertise", MAX_LIST, values::endpoint);
    let names_field = file.list("names", MAX_LIST, values::host);
    let faulty = listen_field.is_faulty() || advertise_field.is_faulty() || names_field.is_faulty();
    let at = advertise_field.position().or_else(|| listen_field.position());
    let listen = listen_field.or(LISTEN);
    let mut names = names_field.or(Vec::new());
    let mut advertise = advertise_field.or(Vec::new());
    let wildcard = listen.ip().is_unspecified();
    if !wildcard && advertise.is_empty() {
        names.push(Host::Ip(listen.ip()));
    }
    if advertise.is_empty() && listen.port() > 0 {
        let hosts = if wildcard { names.clone() } else { vec![Host::Ip(listen.ip())] };
        advertise = hosts.into_iter().map(|host| Endpoint { host, port: listen.port() }).collect();
    }
    // Port 0 on one address: the server advertises what it gets.
    if advertise.is_empty() && !faulty && (wildcard || listen.port() > 0) {
        let problem =
            format!("agents cannot dial {listen}, and nothing else says where they reach this server");
        let remedy = "add `advertise: [ca.example.org:8443]` with the host and port they dial";
        file.fault("advertise", at, Refusal::new(problem, remedy));
    }
    for endpoint in &advertise {
        if !names.contains(&endpoint.host) {
            names.push(endpoint.host.clone());
        }
    }
    Reach { listen, advertise, names }
}

fn split(names: &[Host]) -> (Vec<rhizome_x509::DnsName>, Vec<IpAddr>) {
    let mut dns_names = Vec::new();
    let mut ip_addresses = Vec::new();
    for name in names {
        match name {
            Host::Dns(name) if !dns_names.contains(name) => dns_names.push(name.clone()),
            Host::Ip(address) if !ip_addresses.contains(address) => ip_addresses.push(*address),
            Host::Dns(_) | Host::Ip(_) => {}
        }
    }
    (dns_names, ip_addresses)
}

fn admin(mut section: Section<'_>) -> Admin {
    let socket = section.value("socket", values::socket_path).or(PathBuf::from(SOCKET));
    let uid = |value: Scalar<'_>| {
        values::number(0..=u32::MAX - 1)(value).map_err(|_refusal| {
            Refusal::new(
                format!("{} is not a user id", quoted(value.text)),
                "write the number that `id -u USER` prints",
            )
        })
    };
    let field = section.pairs("uids", MAX_LIST, uid, values::one_of(values::ROLES));
    let at = field.position();
    let pairs = field.or(Vec::new());
    let uids: BTreeMap<u32, _> = pairs.iter().copied().collect();
    if uids.len() < pairs.len() {
        // Two spellings of one number, such as 7 and 007; the same spelling twice is found by the tree.
        section.fault("uids", at, Refusal::new("one user id is given twice", "keep one of the two"));
    }
    section.finish();
    Admin { socket, uids }
}

/// What bounds the lifetimes of what is issued, where it is sound.
#[derive(Clone, Copy)]
struct Bounds {
    issuer_ttl: Option<Ttl>,
    jwt_key_ttl: Option<Ttl>,
}

/// The authority's settings, and how they bound what is issued.
fn authority(mut section: Section<'_>) -> (Authority, Bounds) {
    let algorithm = section.value("algorithm", values::one_of(values::ALGORITHMS));
    let root = section.value("root_ttl", values::ttl);
    let issuer = section.value("issuer_ttl", values::ttl);
    let jwt_key = section.value("jwt_key_ttl", values::ttl);
    let upstream = upstream(section.section("upstream"));
    let jwt_sound = !jwt_key.is_faulty();
    let jwt_key_ttl = jwt_key.or(limits::JWT_KEY_TTL);
    let sound = !root.is_faulty() && !issuer.is_faulty();
    let at = issuer.position().or_else(|| root.position());
    let (root_ttl, issuer_ttl) = (root.or(limits::ROOT_TTL), issuer.or(limits::ISSUER_TTL));
    if sound && issuer_ttl >= root_ttl {
        let problem =
            format!("issuers would live {issuer_ttl}, no shorter than the root above them ({root_ttl})");
        section.fault("issuer_ttl", at, Refusal::new(problem, "make issuer_ttl shorter than root_ttl"));
    }
    section.finish();
    let algorithm = algorithm.given().unwrap_or_default();
    let bounds =
        Bounds { issuer_ttl: sound.then_some(issuer_ttl), jwt_key_ttl: jwt_sound.then_some(jwt_key_ttl) };
    (Authority { algorithm, root_ttl, issuer_ttl, jwt_key_ttl, upstream }, bounds)
}

/// The Rhizome above; `None` when nothing is said of one.
fn upstream(mut section: Section<'_>) -> Option<Upstream> {
    let join_file = section.value("join_file", values::path);
    let servers = section.list("servers", MAX_LIST, values::endpoint);
    if let (true, Some(at)) = (join_file.is_absent(), servers.position()) {
        let remedy =
            "write what `rhizome cluster add` printed on the server above into a file, and name it here";
        section.fault("join_file", Some(at), Refusal::new("required beside servers, but not given", remedy));
    }
    section.finish();
    Some(Upstream { join_file: join_file.given()?, servers: servers.or(Vec::new()) })
}

fn policy(mut section: Section<'_>, bounds: Bounds) -> Policy {
    let by_issuer = bounds.issuer_ttl.map(|ttl| ("authority.issuer_ttl", ttl, "certificate"));
    let by_jwt_key = bounds.jwt_key_ttl.map(|ttl| ("authority.jwt_key_ttl", ttl, "token"));
    let mut pair = |name, max_name, default, max, bound: Option<(&str, Ttl, &str)>| {
        let (usual, longest) = (section.value(name, values::ttl), section.value(max_name, values::ttl));
        let sound = !usual.is_faulty() && !longest.is_faulty();
        let (at, at_longest) = (usual.position().or_else(|| longest.position()), longest.position());
        let given = at.is_some();
        let (usual, longest) = (usual.or(default), longest.or(max));
        if sound && usual > longest {
            let problem = format!("{usual} is more than {max_name} ({longest})");
            section.fault(name, at, Refusal::new(problem, format!("shorten {name} or lengthen {max_name}")));
        }
        if let Some((field, above, what)) = bound.filter(|(_, ttl, _)| sound && given && longest > *ttl) {
            let problem = format!("{longest} is more than {field} ({above}), which no {what} outlives");
            let remedy = format!("shorten {max_name} or lengthen {field}");
            section.fault(max_name, at_longest.or(at), Refusal::new(problem, remedy));
        }
        (usual, longest)
    };
    let (workload_ttl, workload_max_ttl) = pair(
        "workload_ttl",
        "workload_max_ttl",
        limits::WORKLOAD_DEFAULT_TTL,
        limits::WORKLOAD_MAX_TTL,
        by_issuer,
    );
    let (jwt_ttl, jwt_max_ttl) =
        pair("jwt_ttl", "jwt_max_ttl", limits::JWT_DEFAULT_TTL, limits::JWT_MAX_TTL, by_jwt_key);
    let (node_ttl, node_max_ttl) =
        pair("node_ttl", "node_max_ttl", limits::NODE_DEFAULT_TTL, limits::NODE_MAX_TTL, by_issuer);
    let (admin_ttl, admin_max_ttl) =
        pair("admin_ttl", "admin_max_ttl", limits::ADMIN_DEFAULT_TTL, limits::ADMIN_MAX_TTL, by_issuer);
    let (token_ttl, token_max_ttl) =
        pair("token_ttl", "token_max_ttl", limits::JOIN_TOKEN_DEFAULT_TTL, limits::JOIN_TOKEN_MAX_TTL, None);
    let server_ttl = section.value("server_ttl", values::ttl).or(limits::SERVER_TTL);
    section.finish();
    Policy {
        workload_ttl,
        workload_max_ttl,
        jwt_ttl,
        jwt_max_ttl,
        node_ttl,
        node_max_ttl,
        admin_ttl,
        admin_max_ttl,
        server_ttl,
        token_ttl,
        token_max_ttl,
    }
}

fn read_limits(mut section: Section<'_>) -> Limits {
    let rate = values::number(1..=MAX_RATE);
    let per_source_per_second = section.value("per_source_per_second", &rate).or(limits::REQUESTS_PER_SOURCE);
    let per_identity_per_second =
        section.value("per_identity_per_second", &rate).or(limits::REQUESTS_PER_IDENTITY);
    let connections =
        section.value("connections", values::number(1..=MAX_CONNECTIONS)).or(limits::CONNECTIONS);
    let workers = section.value("workers", values::number(0..=MAX_WORKERS)).or(0);
    section.finish();
    Limits { per_source_per_second, per_identity_per_second, connections, workers }
}

/// And where the settling time is too short to be safe.
fn rotation(mut section: Section<'_>) -> (Rotation, Option<Position>) {
    let settle_field = section.value("settle", values::ttl);
    let at = settle_field.position();
    let settle = settle_field.or(SETTLE);
    let soak = section.value("soak", values::ttl).or(SOAK);
    let window = section.value("window", values::ttl).or(WINDOW);
    let rate = values::number(1..=MAX_RATE);
    let renewals_per_second =
        section.value("renewals_per_second", &rate).or(limits::ROTATION_RENEWALS_PER_SECOND);
    section.finish();
    let hasty = at.filter(|_| settle.seconds() < limits::ROTATION_SETTLE_SECONDS);
    (Rotation { settle, soak, window, renewals_per_second }, hasty)
}

fn federation(mut section: Section<'_>) -> Federation {
    let listen = section.value("listen", values::listen).given();
    let path_field = section.value("path", values::url_path);
    let at_path = path_field.position();
    let path = path_field.or(BUNDLE_PATH.to_owned());
    let certificate = section.value("certificate_file", values::path);
    let key = section.value("key_file", values::path);
    let at = certificate.position().or_else(|| key.position());
    let sound = !certificate.is_faulty() && !key.is_faulty();
    let certificate = match (certificate.given(), key.given()) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            if sound {
                let problem = "a certificate and its key go together";
                let remedy =
                    "give both certificate_file and key_file, or neither to present this server's own SVID";
                section.fault("certificate_file", at, Refusal::new(problem, remedy));
            }
            None
        }
    };
    let web_roots_file = section.value("web_roots_file", values::path).given();
    let issuer = section.value("oidc_issuer", values::issuer);
    let at_issuer = issuer.position();
    let oidc_issuer = issuer.given();
    if let Some(issuer) = oidc_issuer.as_deref().filter(|_| listen.is_none()) {
        let problem = format!("nothing serves the discovery of {issuer}");
        let remedy =
            "add `listen: 0.0.0.0:8444` to this section, at the address that the issuer's name leads to";
        section.fault("oidc_issuer", at_issuer, Refusal::new(problem, remedy));
    }
    let below = oidc_issuer.as_deref().map(values::issuer_path).unwrap_or_default();
    let taken = |path: &str| DISCOVERY_PATHS.iter().any(|end| path == format!("{below}{end}"));
    if oidc_issuer.is_some() && taken(&path) {
        let problem = format!("{path} is where discovery is served");
        section.fault("path", at_path, Refusal::new(problem, "choose another path, such as /bundle"));
    }
    section.finish();
    Federation { listen, path, certificate, web_roots_file, oidc_issuer }
}

fn log(mut section: Section<'_>) -> Log {
    let format =
        section.value("format", values::one_of(&[("json", LogFormat::Json), ("text", LogFormat::Text)]));
    let level = section.value(
        "level",
        values::one_of(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]),
    );
    section.finish();
    Log { format: format.or(LogFormat::Json), level: level.or(LogLevel::Info) }
}
