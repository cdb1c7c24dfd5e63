//! How a database is reached: the address, the schema, TLS and the password.
//!
//! Laws: an address never holds a password, because addresses are shown; over TCP the server's certificate is verified
//! in full (chain, name and dates) unless danger was asked for by name; a password file is read anew for every
//! connection, so that a changed password needs no restart. Not here: dialling (`link`).
//! Sources: postgresql.org/docs/15/libpq-connect.html#LIBPQ-CONNSTRING; libpq-ssl.html (why not `require`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhizome_core::entropy::Entropy;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use zeroize::Zeroizing;

use crate::limits::{CONNECT_TIMEOUT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, TCP_TIMEOUT};

/// The schema unless another is named.
pub const DEFAULT_SCHEMA: &str = "rhizome";

/// Longest identifier of PostgreSQL (`NAMEDATALEN` − 1), less what a channel's name adds.
const MAX_SCHEMA_BYTES: usize = 48;

/// Largest password file that is read.
const MAX_PASSWORD_BYTES: u64 = 4_096;

/// Why an address, a CA file or a password will not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostgresOptionsError {
    /// The address is none.
    #[error("not an address of a PostgreSQL database: {0}; write postgresql://USER@HOST:5432/DATABASE")]
    Address(String),
    /// The address holds a password.
    #[error("a password stands in the address, which is shown and logged; put it into a file")]
    PasswordInAddress,
    /// The schema's name will not do.
    #[error(
        "`{0}` is no name for a schema; use small letters, digits and `_`, at most 48, not beginning with a digit or `pg_`"
    )]
    Schema(String),
    /// No way to verify the server.
    #[error("the database is reached over TCP, and nothing says how to verify it; name its CA file")]
    NoCa,
    /// The CA file cannot be used.
    #[error("the CA file {}: {cause}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// Where the password comes from.
#[derive(Clone)]
pub enum PostgresPassword {
    /// There is none: a Unix socket's `peer` authentication, or trust.
    None,
    /// The first line of a file, read for every connection.
    File(PathBuf),
    /// Given.
    Text(Zeroizing<String>),
}

impl fmt::Debug for PostgresPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

/// How a database is reached.
#[derive(Clone)]
pub struct PostgresOptions {
    pub(super) config: Config,
    pub(super) schema: String,
    pub(super) password: PostgresPassword,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions").field("place", &self.to_string()).finish_non_exhaustive()
    }
}

/// Where the database is, without anything secret.
impl fmt::Display for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let hosts: Vec<_> = hosts.collect();
        let database = self.config.get_dbname().unwrap_or_default();
        write!(f, "PostgreSQL database {database} on {}, schema {}", hosts.join(", "), self.schema)
    }
}

/// Checks an address without dialling it: what `--check-config` can know.
///
/// # Errors
/// [`PostgresOptionsError::Address`] or [`PostgresOptionsError::PasswordInAddress`].
pub fn check_address(address: &str) -> Result<(), PostgresOptionsError> {
    parse(address).map(drop)
}

/// Whether the database at `address` is reached over TCP, so that its certificate must be verified.
pub fn is_over_tcp(address: &str) -> bool {
    parse(address).is_ok_and(|config| over_tcp(&config))
}

/// Checks the name of a schema.
///
/// # Errors
/// [`PostgresOptionsError::Schema`].
pub fn check_schema(schema: &str) -> Result<(), PostgresOptionsError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let fine =
        begins && schema.len() <= MAX_SCHEMA_BYTES && schema.chars().all(plain) && !schema.starts_with("pg_");
    if fine { Ok(()) } else { Err(PostgresOptionsError::Schema(schema.to_owned())) }
}

fn over_tcp(config: &Config) -> bool {
    !config.get_hostaddrs().is_empty() || config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)))
}

fn parse(address: &str) -> Result<Config, PostgresOptionsError> {
    let refused = |what: &str| PostgresOptionsError::Address(what.to_owned());
    if address.contains("sslmode") {
        return Err(refused("sslmode has no place in it: TLS is always verified in full"));
    }
    let config: Config = address.parse().map_err(|cause: tokio_postgres::Error| {
        let source = std::error::Error::source(&cause).map(ToString::to_string);
        PostgresOptionsError::Address(source.unwrap_or_else(|| cause.to_string()))
    })?;
    if config.get_password().is_some() {
        return Err(PostgresOptionsError::PasswordInAddress);
    }
    if config.get_hosts().is_empty() {
        return Err(refused("it names no host"));
    }
    if config.get_user().is_none() {
        return Err(refused("it names no user"));
    }
    if config.get_dbname().is_none() {
        return Err(refused("it names no database"));
    }
    Ok(config)
}

impl PostgresOptions {
    /// The database at `address`, a URL or `key=value` pairs as libpq takes them, with the default schema and no
    /// password. Reaching it over TCP needs [`Self::verified_by`] or [`Self::danger_plaintext`].
    ///
    /// # Errors
    /// [`PostgresOptionsError`].
    pub fn new(address: &str, entropy: Arc<dyn Entropy>) -> Result<Self, PostgresOptionsError> {
        let mut config = parse(address)?;
        let mode = if over_tcp(&config) { SslMode::Require } else { SslMode::Disable };
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(TCP_TIMEOUT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(mode)
            .application_name("rhizome");
        Ok(Self {
            config,
            schema: DEFAULT_SCHEMA.to_owned(),
            password: PostgresPassword::None,
            tls: None,
            entropy,
        })
    }

    /// In another schema than the default one.
    ///
    /// # Errors
    /// [`PostgresOptionsError::Schema`].
    pub fn in_schema(mut self, schema: &str) -> Result<Self, PostgresOptionsError> {
        check_schema(schema)?;
        schema.clone_into(&mut self.schema);
        Ok(self)
    }

    /// With a password.
    #[must_use]
    pub fn with_password(mut self, password: PostgresPassword) -> Self {
        self.password = password;
        self
    }

    /// Verifies the server by the CA certificates (PEM) in `path`: chain, host name and dates.
    ///
    /// # Errors
    /// [`PostgresOptionsError::Ca`].
    pub fn verified_by(mut self, path: &Path) -> Result<Self, PostgresOptionsError> {
        let bad = |cause: String| PostgresOptionsError::Ca { path: path.to_owned(), cause };
        let pem = std::fs::read(path).map_err(|cause| bad(cause.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|cause| bad(cause.to_string()))?;
            roots.add(certificate).map_err(|cause| bad(cause.to_string()))?;
        }
        if roots.is_empty() {
            return Err(bad("no CERTIFICATE block in it".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|cause| bad(cause.to_string()))?;
        self.tls = Some(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()));
        Ok(self)
    }

    /// Reaches the database over TCP without TLS: whoever is on the way reads and changes everything.
    #[must_use]
    pub fn danger_plaintext(mut self) -> Self {
        self.config.ssl_mode(SslMode::Disable);
        self.tls = None;
        self
    }

    /// Whether everything that is needed to dial is there.
    pub(super) fn check(&self) -> Result<(), PostgresOptionsError> {
        let unverified = self.config.get_ssl_mode() != SslMode::Disable && self.tls.is_none();
        if unverified { Err(PostgresOptionsError::NoCa) } else { Ok(()) }
    }

    /// What to dial with, the password included.
    pub(super) fn dialling(&self) -> Result<Config, String> {
        let mut config = self.config.clone();
        match &self.password {
            PostgresPassword::None => {}
            PostgresPassword::Text(text) => {
                config.password(text.as_bytes());
            }
            PostgresPassword::File(path) => {
                let text = read_password(path);
                let text = text.map_err(|cause| format!("the password file {}: {cause}", path.display()))?;
                config.password(text.lines().next().unwrap_or_default());
            }
        }
        Ok(config)
    }
}

fn read_password(path: &Path) -> std::io::Result<Zeroizing<String>> {
    use std::io::Read as _;

    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?.take(MAX_PASSWORD_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_host_user_or_database_is_refused_and_so_is_one_with_a_password() {
        for (address, told) in [
            ("postgresql://rhizome@db.example.org/rhizome", None),
            ("postgresql://rhizome@a.example.org:5432,b.example.org:5433/rhizome", None),
            ("host=/run/postgresql user=rhizome dbname=rhizome", None),
            ("postgresql://rhizome:secret@db.example.org/rhizome", Some("password")),
            ("postgresql://db.example.org/rhizome", Some("user")),
            ("postgresql://rhizome@db.example.org", Some("database")),
            ("user=rhizome dbname=rhizome", Some("host")),
            ("postgresql://rhizome@db.example.org/rhizome?sslmode=disable", Some("sslmode")),
            ("mysql://rhizome@db.example.org/rhizome", Some("not an address")),
            ("", Some("host")),
        ] {
            match (check_address(address), told) {
                (Ok(()), None) => {}
                (Err(error), Some(told)) => {
                    let text = error.to_string();
                    assert!(text.contains(told) && !text.contains("secret"), "{address}: {text}");
                }
                (found, _) => panic!("{address}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_schema_is_a_plain_name() {
        for fine in ["rhizome", "_r2", "a"] {
            assert_eq!(check_schema(fine), Ok(()));
        }
        for bad in ["", "Rhizome", "1a", "a\"b", "a;b", "pg_catalog", &"a".repeat(49)] {
            assert!(check_schema(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tcp_without_a_ca_is_refused_and_a_socket_needs_none() {
        struct Zeros;
        impl Entropy for Zeros {
            fn fill(&self, bytes: &mut [u8]) -> Result<(), rhizome_core::entropy::EntropyError> {
                bytes.fill(0);
                Ok(())
            }
        }
        let new = |address| PostgresOptions::new(address, Arc::new(Zeros)).unwrap();
        let tcp = new("postgresql://rhizome@db.example.org/rhizome");
        assert_eq!(tcp.check(), Err(PostgresOptionsError::NoCa));
        assert_eq!(tcp.danger_plaintext().check(), Ok(()));
        assert_eq!(new("host=/run/postgresql user=rhizome dbname=rhizome").check(), Ok(()));
        let shown = new("postgresql://rhizome@db.example.org/rhizome")
            .with_password(PostgresPassword::Text(Zeroizing::new("secret".to_owned())));
        assert!(!format!("{shown:?}{shown}{:?}", shown.password).contains("secret"));
    }
}
