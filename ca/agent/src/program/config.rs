//! The agent's configuration: one YAML file, all of it optional, checked before anything starts.
//!
//! Laws: unknown fields are faults, named with the nearest known one; a fault says where it stands; a file that others
//! may write is refused, because its sinks run commands; flags override what stands here.
//! Not here: what the settings do. The commented sample is `deploy/config/rhizome-agent.yaml`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Error;

use super::logging::{LogFormat, LogLevel};
use crate::sds::{RootCovers, SdsSettings};
use crate::sink::{AbsolutePath, SinkSettings};

/// Where the configuration is unless told otherwise; it need not be there.
pub(super) const DEFAULT_CONFIG: &str = "/etc/rhizome/agent.yaml";
/// Where identity and sealed state are unless told otherwise (systemd's `StateDirectory=rhizome-agent`).
const DEFAULT_STATE: &str = "/var/lib/rhizome-agent";
/// Where workloads connect unless told otherwise (systemd's `RuntimeDirectory=rhizome-agent`).
const DEFAULT_SOCKET: &str = "/run/rhizome-agent/agent.sock";
/// Bytes of a configuration file: the full sample has 5 KiB; more than this is the wrong file.
const MAX_BYTES: usize = 1024 * 1024;
/// Sinks of one agent: software that needs files is counted by the handful.
const MAX_SINKS: usize = 64;
/// Bytes of a secret's name: Envoy's configuration repeats it.
const SECRET_NAME_BYTES: usize = 253;

/// Everything the agent is told by its file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    state: Option<AbsolutePath>,
    socket: Option<AbsolutePath>,
    admin_socket: Option<AbsolutePath>,
    join_file: Option<AbsolutePath>,
    pub(super) attestation: Attestation,
    pub(super) workload_api: WorkloadApi,
    sds: Sds,
    pub(super) metrics: Metrics,
    pub(super) log: Log,
    pub(super) sinks: Vec<SinkSettings>,
}

/// What attestation looks at.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Attestation {
    pub(super) hash_executables: Option<bool>,
    pub(super) hash_limit_bytes: Option<u64>,
}

/// What the Workload API offers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WorkloadApi {
    /// The JWT profile; on unless it says `false`.
    pub(super) jwt: Option<bool>,
    pub(super) foreign_claims: BTreeSet<String>,
}

/// Names and forms of secrets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sds {
    default_svid_name: Option<String>,
    default_bundle_name: Option<String>,
    default_all_bundles_name: Option<String>,
    default_bundle_covers: Covers,
    validator: Validator,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Covers {
    #[default]
    Own,
    All,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Validator {
    #[default]
    Spiffe,
    Plain,
}

/// Metrics and health for monitoring.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) listen: Option<MetricsAddress>,
}

/// A loopback address with a port. From elsewhere, nothing of a node's identities is anybody's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct MetricsAddress(SocketAddr);

impl MetricsAddress {
    pub(super) const fn get(self) -> SocketAddr {
        self.0
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self(address)),
            Ok(_) | Err(_) => {
                Err("metrics are served on a loopback address with a port, such as 127.0.0.1:9464")
            }
        }
    }
}

impl std::str::FromStr for MetricsAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.to_owned())
    }
}

/// The log.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) format: LogFormat,
    pub(super) level: LogLevel,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// The file cannot be read.
    #[error("{}: the configuration cannot be read: {cause}; deploy/config/rhizome-agent.yaml is a sample", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// Somebody else could change it.
    #[error(
        "{}: user {owner} or, by mode {mode:04o}, others may change it, and so decide which commands the agent runs; \
         chown it to the agent's user and chmod it go-w", path.display()
    )]
    Open { path: PathBuf, owner: u32, mode: u32 },
    /// It has a fault.
    #[error("{}:{fault}", path.display())]
    Faulty { path: PathBuf, fault: String },
}

impl Config {
    pub(super) fn state(&self) -> PathBuf {
        self.state.as_ref().map_or_else(|| DEFAULT_STATE.into(), |path| path.as_path().to_owned())
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket.as_ref().map_or_else(|| DEFAULT_SOCKET.into(), |path| path.as_path().to_owned())
    }

    pub(super) fn admin_socket(&self) -> Option<PathBuf> {
        self.admin_socket.as_ref().map(|path| path.as_path().to_owned())
    }

    pub(super) fn join_file(&self) -> Option<PathBuf> {
        self.join_file.as_ref().map(|path| path.as_path().to_owned())
    }

    pub(super) fn sds(&self) -> SdsSettings {
        let Sds { default_svid_name, default_bundle_name, default_all_bundles_name, .. } = self.sds.clone();
        let usual = SdsSettings::default();
        SdsSettings {
            default_name: default_svid_name.unwrap_or(usual.default_name),
            root_name: default_bundle_name.unwrap_or(usual.root_name),
            all_name: default_all_bundles_name.unwrap_or(usual.all_name),
            root_covers: match self.sds.default_bundle_covers {
                Covers::Own => RootCovers::Own,
                Covers::All => RootCovers::All,
            },
            plain: matches!(self.sds.validator, Validator::Plain),
        }
    }

    /// What concerns several fields; the first fault in words.
    fn check(&self) -> Result<(), String> {
        let sds = self.sds();
        let names = [&sds.default_name, &sds.root_name, &sds.all_name];
        if names.iter().any(|name| name.is_empty() || name.len() > SECRET_NAME_BYTES) {
            return Err(format!("sds: a name of a secret has 1 to {SECRET_NAME_BYTES} bytes"));
        }
        if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
            return Err("sds: two kinds of secrets have the same name".to_owned());
        }
        if self.sinks.len() > MAX_SINKS {
            return Err(format!("sinks: {} sinks; the limit is {MAX_SINKS}", self.sinks.len()));
        }
        let mut taken = BTreeSet::new();
        for sink in &self.sinks {
            sink.check()?;
            if !taken.insert(sink.name.as_str().to_owned()) {
                return Err(format!("sinks: two are called `{}`", sink.name.as_str()));
            }
            for path in [&sink.file, &sink.directory].into_iter().flatten() {
                if !taken.insert(path.as_path().display().to_string()) {
                    return Err(format!("sinks: two write to {}", path.as_path().display()));
                }
            }
        }
        Ok(())
    }
}

/// Reads the configuration at `path`; without one, at the usual place, where it need not be.
pub(super) fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
    let place = path.unwrap_or_else(|| Path::new(DEFAULT_CONFIG));
    let unreadable = |cause| ConfigError::Unreadable { path: place.to_owned(), cause };
    let file = match File::open(place) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && path.is_none() => {
            return Ok(Config::default());
        }
        Err(cause) => return Err(unreadable(cause)),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    let config = parse(&bytes).map_err(|fault| ConfigError::Faulty { path: place.to_owned(), fault })?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let ours = owner == 0 || owner == rustix::process::geteuid().as_raw();
    if !config.sinks.is_empty() && (!ours || mode & 0o022 != 0) {
        return Err(ConfigError::Open { path: place.to_owned(), owner, mode });
    }
    Ok(config)
}

/// Reads a configuration; what is wrong begins with `LINE:COLUMN:` where that is known.
pub(super) fn parse(bytes: &[u8]) -> Result<Config, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!(
            " it has more than {MAX_BYTES} bytes; name the configuration file, this is another"
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|cause| format!(" it is not UTF-8: {cause}"))?;
    let options = serde_saphyr::options! { with_snippet: false };
    // Comments alone are a configuration, too: the usual one.
    let read = serde_saphyr::from_str_with_options::<Option<Config>>(text, options);
    let config = read.map_err(|error| fault(&error))?.unwrap_or_default();
    config.check().map_err(|fault| format!(" {fault}"))?;
    Ok(config)
}

fn fault(error: &Error) -> String {
    let place = error.location().map(|at| format!("{}:{}:", at.line(), at.column())).unwrap_or_default();
    let what = if let Error::SerdeUnknownField { field, expected, .. } = error {
        let remedy = match nearest(field, expected) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("known here: {}", expected.join(", ")),
        };
        format!("`{}`: unknown field; {remedy}", field.escape_debug())
    } else {
        error.to_string()
    };
    format!("{place} {what}")
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, nearest) = known.iter().map(|it| (strsim::damerau_levenshtein(name, it), *it)).min()?;
    (distance <= nearest.len().div_ceil(3).min(3)).then_some(nearest)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
