//! The wiring: from a configuration to the settings and ports the server runs on.
//!
//! Laws: what is missing is said before anything is half-started, with the command that mends it.
//! Not here: what the server does with them (`rhizome_server`), reading the file (`config`), private keys (`keyring`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhizome_cli::Exit;
use rhizome_core::authority::{FirstRoot, RotationPolicy};
use rhizome_core::policy::{PolicyLimits, TtlLimits};
use rhizome_core::ports::{KeyRingError, Store, StoreError};
use rhizome_core::rotation::Choices;
use rhizome_id::Ttl;
use rhizome_server::{
    DoorLimits, FederationSettings, Ports, Settings, SystemClock, SystemEntropy, UpstreamSettings,
    WebCertificate,
};
use rhizome_store::{
    Options, PostgresOptions, PostgresOptionsError, PostgresPassword, PostgresStore, SqliteStore,
};
use rhizome_tls::{JoinString, WebRoots};

use crate::config::{
    Config, DatabasePassword, Place, Policy, Postgres, StoreChoice, Upstream, secret_variable,
};
use crate::keyring::{KeysError, Secrets};

/// The identity of a cluster's own Rhizome below the data directory.
const UPSTREAM: &str = "upstream";

/// The database's name below the data directory.
const DATABASE: &str = "rhizome.db";

/// Why a server could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The data directory is not there.
    #[error("data: {} does not exist; make it: install -d -m 0700 -o {user} {}", path.display(), path.display())]
    NoData {
        /// The directory.
        path: PathBuf,
        /// Who must own it.
        user: u32,
    },
    /// The data directory will not do.
    #[error(
        "data: uid {user} cannot write to {}: {cause}; let it: chown -R {user} {}", path.display(), path.display()
    )]
    DataNotWritable {
        /// The directory.
        path: PathBuf,
        /// Who tried.
        user: u32,
        /// What the system said.
        cause: io::Error,
    },
    /// Root would leave files that the directory's owner cannot read.
    #[error(
        "data: {} belongs to uid {owner}; files that root makes there would be closed to it: run this as that user, \
         with sudo -u '#{owner}'", path.display()
    )]
    WrongUser {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The administrators' socket has no directory to be in.
    #[error(
        "admin.socket: the directory {} does not exist; make it, or name a socket elsewhere", path.display()
    )]
    NoSocketDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The private keys cannot be had.
    #[error("keys{0}")]
    Keys(#[from] KeysError),
    /// The database cannot be opened.
    #[error("data: {0}")]
    Store(#[from] StoreError),
    /// The state is elsewhere.
    #[error(
        "data: the state was moved to PostgreSQL, and {} is what it was moved from: say so under `store:`; to go back to \
         it, and lose what happened since, rename it to {}", path.display(), database.display()
    )]
    Migrated {
        /// What it was moved from.
        path: PathBuf,
        /// What it would have to be called.
        database: PathBuf,
    },
    /// The address, the CA file or the schema will not do.
    #[error("store: {0}")]
    PostgresOptions(#[from] PostgresOptionsError),
    /// The environment has no password.
    #[error("store.password_env: the variable {name} is not set; set it to the database's password")]
    NoPasswordVariable {
        /// The variable.
        name: String,
    },
    /// PostgreSQL cannot be used.
    #[error("store: {place}: {cause}")]
    Postgres {
        /// Which database.
        place: String,
        /// Why not.
        cause: StoreError,
    },
    /// The join string of a cluster's own Rhizome cannot be had.
    #[error("authority.upstream.join_file: {}: {cause}", path.display())]
    Upstream {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The roots for foreign endpoints cannot be had.
    #[error("federation.web_roots_file: {}: {cause}", path.display())]
    WebRoots {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
    /// The database takes part in a thread that died.
    #[error("bug while opening the database: {0}")]
    Bug(String),
}

impl LaunchError {
    /// What the process ends with. What only a person can put right is [`Exit::Usage`], after which a supervisor does not
    /// start it again: a token counts wrong PINs, and locks.
    pub const fn exit(&self) -> Exit {
        if matches!(self, Self::Keys(KeysError::Ring(KeyRingError::Sealed { .. }))) {
            Exit::Usage
        } else {
            Exit::Failed
        }
    }
}

/// Everything needed to start: hand it to `rhizome_server::start`.
#[derive(Debug)]
pub struct Launch {
    /// The server's settings.
    pub settings: Settings,
    /// What it is plugged into.
    pub ports: Ports,
}

/// Opens what `config` names.
///
/// # Errors
/// [`LaunchError`], with the remedy.
pub async fn open(config: &Config) -> Result<Launch, LaunchError> {
    check_data(&config.data)?;
    check_socket(&config.admin.socket)?;
    open_without_server(config).await
}

/// As [`open`], for what is done while no server runs.
///
/// # Errors
/// [`LaunchError`], with the remedy.
pub async fn open_without_server(config: &Config) -> Result<Launch, LaunchError> {
    check_data(&config.data)?;
    let secrets = Secrets::gather(config)?;
    let store = open_store(config).await?;
    let keys = secrets.open(config, Arc::clone(&store)).await?;
    let ports =
        Ports { store, keys, clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy::default()) };
    let mut settings = settings(config);
    if let Some(upstream) = &config.authority.upstream {
        settings = settings.below(above(upstream, &config.data)?);
    }
    settings.federation.web_roots = config.federation.web_roots_file.as_deref().map(web_roots).transpose()?;
    Ok(Launch { settings, ports })
}

/// What is said of the Rhizome above. Once joined, only the addresses of the join string matter.
fn above(upstream: &Upstream, data: &Path) -> Result<UpstreamSettings, LaunchError> {
    let identity = data.join(UPSTREAM);
    let unusable = |cause: String| LaunchError::Upstream { path: upstream.join_file.clone(), cause };
    let joined = identity.join("chain.pem").exists();
    let text = match fs::read_to_string(&upstream.join_file) {
        Ok(text) => Some(zeroize::Zeroizing::new(text)),
        Err(_) if joined && !upstream.servers.is_empty() => None,
        Err(cause) => return Err(unusable(cause.to_string())),
    };
    let join = text.map(|text| JoinString::decode_for_cluster(&text)).transpose();
    let join = join.map_err(|cause| unusable(cause.to_string()))?;
    let mut servers: Vec<String> = upstream.servers.iter().map(ToString::to_string).collect();
    if let (true, Some((join, _))) = (servers.is_empty(), &join) {
        servers = join.addresses().to_vec();
    }
    Ok(UpstreamSettings { join, servers, identity })
}

fn web_roots(path: &Path) -> Result<WebRoots, LaunchError> {
    let unusable = |cause: String| LaunchError::WebRoots { path: path.to_owned(), cause };
    let pem = fs::read(path).map_err(|cause| unusable(cause.to_string()))?;
    WebRoots::from_pem(&pem).map_err(|cause| unusable(cause.to_string()))
}

/// Opens the store that `config` names.
///
/// # Errors
/// [`LaunchError`], with the remedy.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, LaunchError> {
    match &config.store {
        StoreChoice::Embedded => Ok(Arc::new(open_embedded(&config.data).await?)),
        StoreChoice::Postgres(postgres) => Ok(Arc::new(open_postgres(postgres).await?)),
    }
}

/// Opens the embedded database of the data directory `data`; makes it where there is none.
///
/// # Errors
/// [`LaunchError`], with the remedy; [`LaunchError::Migrated`] when the state has moved to PostgreSQL.
pub async fn open_embedded(data: &Path) -> Result<SqliteStore, LaunchError> {
    let moved = migrated(data);
    if fs::exists(&moved).unwrap_or(true) {
        return Err(LaunchError::Migrated { path: moved, database: database(data) });
    }
    let path = database(data);
    let opening = tokio::task::spawn_blocking(move || SqliteStore::open(&path, Options::default()));
    Ok(opening.await.map_err(|lost| LaunchError::Bug(lost.to_string()))??)
}

/// Opens the database that `postgres` names; makes the schema where there is none.
///
/// # Errors
/// [`LaunchError`], with the remedy.
pub async fn open_postgres(postgres: &Postgres) -> Result<PostgresStore, LaunchError> {
    let password = match &postgres.password {
        DatabasePassword::None => PostgresPassword::None,
        DatabasePassword::File(path) => PostgresPassword::File(path.clone()),
        DatabasePassword::Environment(name) => PostgresPassword::Text(
            secret_variable(name).ok_or_else(|| LaunchError::NoPasswordVariable { name: name.clone() })?,
        ),
    };
    let entropy = Arc::new(SystemEntropy::default());
    let mut options = PostgresOptions::new(&postgres.address, entropy)?.in_schema(&postgres.schema)?;
    options = options.with_password(password);
    if let Some(path) = &postgres.ca_file {
        options = options.verified_by(path)?;
    } else if postgres.danger_plaintext {
        options = options.danger_plaintext();
    }
    let place = options.to_string();
    let opening = tokio::task::spawn_blocking(move || PostgresStore::open(options));
    let opened = opening.await.map_err(|lost| LaunchError::Bug(lost.to_string()))?;
    opened.map_err(|cause| LaunchError::Postgres { place, cause })
}

/// The database of the data directory `data`.
pub fn database(data: &Path) -> PathBuf {
    data.join(DATABASE)
}

/// What the database of `data` is called once its state has moved to PostgreSQL.
pub fn migrated(data: &Path) -> PathBuf {
    data.join(format!("{DATABASE}.migrated"))
}

/// Checks that the data directory is there and can be written to.
///
/// # Errors
/// [`LaunchError::NoData`], [`LaunchError::WrongUser`] or [`LaunchError::DataNotWritable`].
pub fn check_data(path: &Path) -> Result<(), LaunchError> {
    let user = rustix::process::geteuid().as_raw();
    match fs::metadata(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            return Err(LaunchError::NoData { path: path.to_owned(), user });
        }
        Err(cause) => return Err(LaunchError::DataNotWritable { path: path.to_owned(), user, cause }),
        Ok(found) if !found.is_dir() => {
            let cause = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(LaunchError::DataNotWritable { path: path.to_owned(), user, cause });
        }
        Ok(_) => {}
    }
    check_owner(path, user)?;
    match tempfile::tempfile_in(path) {
        Ok(_probe) => Ok(()),
        Err(cause) => Err(LaunchError::DataNotWritable { path: path.to_owned(), user, cause }),
    }
}

/// Whoever may write into somebody else's directory without being root was let in on purpose (a group, as with
/// Kubernetes' `fsGroup`); root may by accident.
fn check_owner(path: &Path, user: u32) -> Result<(), LaunchError> {
    match fs::metadata(path).map(|found| found.uid()) {
        Ok(owner) if user == 0 && owner != 0 => Err(LaunchError::WrongUser { path: path.to_owned(), owner }),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn check_socket(socket: &Path) -> Result<(), LaunchError> {
    match socket.parent() {
        Some(directory) if !directory.is_dir() => {
            Err(LaunchError::NoSocketDirectory { path: directory.to_owned() })
        }
        Some(_) | None => Ok(()),
    }
}

/// The server's settings out of the configuration.
pub fn settings(config: &Config) -> Settings {
    let Config {
        trust_domain,
        replica,
        listen,
        advertise,
        dns_names,
        ip_addresses,
        data,
        store: _,
        admin,
        web,
        keys,
        authority,
        policy,
        limits,
        refresh_hint,
        rotation: change,
        federation,
        log: _,
    } = config.clone();
    let root_is_offline = keys.root == Place::Offline;
    Settings {
        trust_domain,
        replica,
        listen,
        advertise: advertise.iter().map(ToString::to_string).collect(),
        dns_names,
        ip_addresses,
        admin_socket: Some(admin.socket),
        admin_uids: admin.uids,
        web,
        policy: policy_limits(&policy),
        rotation: RotationPolicy {
            root_ttl: authority.root_ttl,
            issuer_ttl: authority.issuer_ttl,
            jwt_key_ttl: authority.jwt_key_ttl,
            first_root: if root_is_offline { FirstRoot::Await } else { FirstRoot::Make },
            jwt_keys: true,
        },
        root_rotation: Choices {
            soak_seconds: change.soak.seconds(),
            settle_seconds: change.settle.seconds(),
            window_seconds: change.window.seconds(),
            renewals_per_second: change.renewals_per_second,
            longest_seconds: longest(&policy),
            ..Choices::default()
        },
        algorithm: authority.algorithm,
        refresh_hint,
        token_ttl: policy.token_ttl,
        token_max_ttl: policy.token_max_ttl,
        limits: DoorLimits {
            per_source_per_second: limits.per_source_per_second,
            per_identity_per_second: limits.per_identity_per_second,
            connections: usize::try_from(limits.connections).unwrap_or(usize::MAX),
        },
        believe_clock: false,
        scratch: Some(data.clone()),
        workers: limits.workers,
        federation: FederationSettings {
            listen: federation.listen,
            path: federation.path,
            web_certificate: federation.certificate.map(|(chain, key)| WebCertificate { chain, key }),
            oidc_issuer: federation.oidc_issuer,
            web_roots: None,
        },
        upstream: None,
    }
}

/// The longest that any certificate of a subscriber lives, in seconds.
fn longest(policy: &Policy) -> i64 {
    let lives = [policy.workload_max_ttl, policy.node_max_ttl, policy.admin_max_ttl, policy.server_ttl];
    lives.map(Ttl::seconds).into_iter().max().unwrap_or_default()
}

fn policy_limits(policy: &Policy) -> PolicyLimits {
    let pair = |default, max| TtlLimits { default, max };
    PolicyLimits {
        workload: pair(policy.workload_ttl, policy.workload_max_ttl),
        token: pair(policy.jwt_ttl, policy.jwt_max_ttl),
        node: pair(policy.node_ttl, policy.node_max_ttl),
        admin: pair(policy.admin_ttl, policy.admin_max_ttl),
        server: pair(policy.server_ttl, policy.server_ttl),
    }
}
