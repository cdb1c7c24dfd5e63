//! Configuration: one YAML file, read once, wholly checked before anything starts.
//!
//! Laws: a [`Config`] exists only valid. One reading reports every fault, each with line, column, field, problem and
//! remedy; unknown fields are faults. A file that was cut off anywhere gives faults or a warning, never a panic. Unsafe
//! choices are spelled `danger_…`. This module is the only one that reads the environment.
//! Not here: what the settings do. The commented sample is `deploy/config/rhizome.yaml`.

mod faults;
mod keys;
mod schema;
mod section;
mod store;
mod tree;
mod values;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use rhizome_core::caller::Role;
use rhizome_id::{ReplicaName, TrustDomain, Ttl};
use rhizome_x509::{DnsName, SigningAlgorithm};
use zeroize::Zeroizing;

pub use faults::{Fault, Faults, MAX_FAULTS, Position};
pub use keys::{Keys, Place, Secret, Token};
pub use values::{Endpoint, Host};

/// Bytes of a configuration file: the full sample has 6 KiB; more than this is the wrong file.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Everything the server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whose authority this is.
    pub trust_domain: TrustDomain,
    /// This server's name among the servers of the trust domain.
    pub replica: ReplicaName,
    /// Where gRPC with mutual TLS is served.
    pub listen: SocketAddr,
    /// Where others reach it; join strings carry these. Empty only when the system chooses the port (`listen: HOST:0`).
    pub advertise: Vec<Endpoint>,
    /// DNS names of the serving certificate; those of `advertise` are among them.
    pub dns_names: Vec<DnsName>,
    /// Addresses of the serving certificate; those of `advertise` are among them.
    pub ip_addresses: Vec<IpAddr>,
    /// Directory of the embedded database and of key files.
    pub data: PathBuf,
    /// Where state and ledger live.
    pub store: StoreChoice,
    /// The administrators' local door.
    pub admin: Admin,
    /// Where metrics and health are served over plain HTTP, if at all.
    pub web: Option<SocketAddr>,
    /// Where private keys are.
    pub keys: Keys,
    /// The signing authorities.
    pub authority: Authority,
    /// Lifetimes.
    pub policy: Policy,
    /// What one caller and all together may ask for.
    pub limits: Limits,
    /// How often followers of the bundle without a stream should look.
    pub refresh_hint: Ttl,
    /// What a change of the root waits for, when nothing else is asked for.
    pub rotation: Rotation,
    /// Foreign trust domains, and OpenID Connect's discovery.
    pub federation: Federation,
    /// The log.
    pub log: Log,
}

/// The administrators' local door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// The Unix socket.
    pub socket: PathBuf,
    /// Roles of local users; root and the server's own user are `security` without being named.
    pub uids: BTreeMap<u32, Role>,
}

/// Where state and ledger live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreChoice {
    /// In a file of the data directory, for one server.
    Embedded,
    /// In PostgreSQL, for many.
    Postgres(Postgres),
}

/// A PostgreSQL database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postgres {
    /// Its address, without a password.
    pub address: String,
    /// The schema in it.
    pub schema: String,
    /// Where the password comes from.
    pub password: DatabasePassword,
    /// What its certificate is verified by, over TCP.
    pub ca_file: Option<PathBuf>,
    /// Over TCP without TLS.
    pub danger_plaintext: bool,
}

/// Where a database's password comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabasePassword {
    /// There is none.
    None,
    /// The first line of this file.
    File(PathBuf),
    /// This environment variable.
    Environment(String),
}

/// Foreign trust domains, and OpenID Connect's discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federation {
    /// Where our bundle endpoint is, if there is one.
    pub listen: Option<SocketAddr>,
    /// The path of the bundle on it.
    pub path: String,
    /// Files of the certificate that it presents, chain and key; this server's own SVID without.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Roots that foreign endpoints of the public web are believed by, in PEM; the list built in without.
    pub web_roots_file: Option<PathBuf>,
    /// The issuer in JWT-SVIDs, below which discovery is served.
    pub oidc_issuer: Option<String>,
}

/// How private keys are sealed at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// Under the key in this file, which is made on the first start.
    KeyFile(PathBuf),
    /// Under the key in this environment variable.
    KeyEnvironment(String),
    /// Not at all.
    DangerUnsealed,
}

/// The signing authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// How they sign.
    pub algorithm: SigningAlgorithm,
    /// Lifetime of a root.
    pub root_ttl: Ttl,
    /// Lifetime of an issuer, shorter than the root's.
    pub issuer_ttl: Ttl,
    /// Lifetime of a key for JWT-SVIDs.
    pub jwt_key_ttl: Ttl,
    /// The Rhizome above, where this one is a cluster's own.
    pub upstream: Option<Upstream>,
}

/// The Rhizome above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The file of the join string that `rhizome cluster add` printed there. It is used once; where its servers are is read
    /// from it ever after.
    pub join_file: PathBuf,
    /// Where its servers are instead.
    pub servers: Vec<Endpoint>,
}

/// Lifetimes of what is issued: the usual one, and the longest that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A workload's, usually.
    pub workload_ttl: Ttl,
    /// A workload's, at most.
    pub workload_max_ttl: Ttl,
    /// A JWT-SVID's, usually.
    pub jwt_ttl: Ttl,
    /// A JWT-SVID's, at most.
    pub jwt_max_ttl: Ttl,
    /// A node's, usually.
    pub node_ttl: Ttl,
    /// A node's, at most.
    pub node_max_ttl: Ttl,
    /// An administrator's, usually.
    pub admin_ttl: Ttl,
    /// An administrator's, at most.
    pub admin_max_ttl: Ttl,
    /// A server's.
    pub server_ttl: Ttl,
    /// A join token's, usually.
    pub token_ttl: Ttl,
    /// A join token's, at most.
    pub token_max_ttl: Ttl,
}

/// What one caller and all together may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests a second from one source address.
    pub per_source_per_second: u32,
    /// Requests a second of one identity.
    pub per_identity_per_second: u32,
    /// Connections at once.
    pub connections: u32,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
}

/// What a change of the root waits for, when nothing else is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// After the last issuer changed.
    pub settle: Ttl,
    /// While only the new root is trusted, before the old key is destroyed.
    pub soak: Ttl,
    /// Over how long ordered renewals are spread.
    pub window: Ttl,
    /// Renewals a second at most.
    pub renewals_per_second: u32,
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How lines are written.
    pub format: LogFormat,
    /// From which level on.
    pub level: LogLevel,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// From which level on lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs attention now.
    Error,
    /// And what will.
    Warn,
    /// And what happened.
    Info,
    /// And why.
    Debug,
    /// And how.
    Trace,
}

/// Something allowed that deserves a second look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where, when it is in one place.
    pub at: Option<Position>,
    /// What.
    pub text: String,
}

/// A configuration and what deserves a second look in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What deserves a second look.
    pub warnings: Vec<Warning>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: the configuration cannot be read: {cause}; name it with --config, see deploy/config/rhizome.yaml for a sample", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It has faults.
    #[error("{}{} in {}", faults.report(&path.display().to_string()), count(faults.count()), path.display())]
    Faulty {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Faults,
    },
}

fn count(faults: usize) -> String {
    if faults == 1 { "1 fault".to_owned() } else { format!("{faults} faults") }
}

/// Reads and checks the configuration file at `path`.
///
/// # Errors
/// [`ConfigError`], with every fault of the file.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let bytes = read_file(path).map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    parse(&bytes).map_err(|faults| ConfigError::Faulty { path: path.to_owned(), faults })
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks the content of a configuration file.
///
/// # Errors
/// Every fault, in the order of the file.
pub fn parse(bytes: &[u8]) -> Result<Loaded, Faults> {
    let mut faults = Faults::default();
    let text = match as_text(bytes) {
        Ok(text) => text,
        Err(fault) => {
            faults.add(fault);
            return Err(faults);
        }
    };
    let root = tree::read(text, &mut faults);
    let given_up = root.is_none() && !faults.is_empty();
    if given_up {
        return Err(faults.sorted());
    }
    let faults = RefCell::new(faults);
    let read = schema::read(root.as_ref(), &faults);
    match read {
        Some((config, mut warnings)) => {
            if !text.ends_with('\n') {
                let text = "the file does not end with a newline: it may have been cut off".to_owned();
                warnings.push(Warning { at: None, text });
            }
            Ok(Loaded { config, warnings })
        }
        None => Err(faults.into_inner().sorted()),
    }
}

fn as_text(bytes: &[u8]) -> Result<&str, Fault> {
    let whole = |at, problem: &str, remedy: &str| {
        Err(Fault { at, path: String::new(), problem: problem.to_owned(), remedy: remedy.to_owned() })
    };
    if bytes.len() > MAX_BYTES {
        return whole(
            Position::START,
            "the file has more than 1 MiB",
            "name the configuration file, this is another",
        );
    }
    let (text, cut) = match str::from_utf8(bytes) {
        Ok(text) => (text, false),
        Err(error) => {
            let (good, _) = bytes.split_at_checked(error.valid_up_to()).unwrap_or_default();
            (str::from_utf8(good).unwrap_or_default(), true)
        }
    };
    if let Some((before, _)) = text.split_once('\0') {
        let remedy = "the file is damaged, as after a crash while it was written: write it again";
        return whole(Position::after(before), "a NUL byte stands here", remedy);
    }
    if cut {
        let remedy = "save the file as UTF-8; if it was cut off, write it again";
        return whole(Position::after(text), "the bytes here are not UTF-8 text", remedy);
    }
    Ok(text)
}

/// Reads the environment variable that holds a secret. `None` when it is not set or not text.
pub fn secret_variable(name: &str) -> Option<Zeroizing<String>> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
    let value = std::env::var(name);
    value.ok().filter(|value| !value.is_empty()).map(Zeroizing::new)
}
