//! One run of one verb: where the server is, who we are, and where to speak.
//!
//! Laws: the connection is made when the first call needs it; every unary call has a deadline; what takes longer than
//! a second says so on standard error. Not here: TLS (`rhizome_tls`), what verbs do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rhizome_id::Timestamp;
use rhizome_tls::{
    ClientIdentity, ConnectError, ExpectedServer, IdentityDir, IdentityDirError, StoredIdentity, TlsError,
    is_address,
};
use rhizome_x509::{Bundle, TrustAnchors};
use tonic::transport::Channel;

use crate::exit::{Exit, Failure};
use crate::output::{Clock, Console, OutputFormat, View};

/// Where the server listens for local administrators, unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/rhizome/admin.sock";

/// The default of `--server`: [`DEFAULT_SOCKET`].
pub const DEFAULT_SERVER: &str = "unix:///run/rhizome/admin.sock";

/// How long a call may take. Issuing takes milliseconds; this allows for a server that is recovering.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Patience before something is said to take long.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a spinner turns.
const SPIN: Duration = Duration::from_millis(120);

/// Options of every verb.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Where the server is: unix:///PATH or https://HOST:PORT
    #[arg(
        long,
        global = true,
        env = "RHIZOME_SERVER",
        hide_env_values = true,
        default_value = DEFAULT_SERVER,
        value_name = "ADDRESS",
        help_heading = "Global options"
    )]
    pub server: ServerArgument,

    /// Directory with the identity to use: key.pem, chain.pem, bundle.pem and trust-domain. Needed for https://
    #[arg(
        long,
        global = true,
        env = "RHIZOME_IDENTITY",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub identity: Option<PathBuf>,

    /// How results are shown
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub output: OutputFormat,
}

/// Where a server is, as it was written. Read by the verbs that speak to the server and not before: a bad
/// `RHIZOME_SERVER` is nothing to `rhizome completions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerArgument(String);

impl From<String> for ServerArgument {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl ServerArgument {
    fn address(&self) -> Result<ServerAddress, Failure> {
        let told = |error| Failure::usage(format!("--server or RHIZOME_SERVER, {:?}: {error}", self.0));
        self.0.parse().map_err(told)
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    /// The absolute path of a Unix socket.
    Unix(String),
    /// `HOST:PORT`, spoken to over TLS.
    Https(String),
}

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.starts_with('/') {
                return Ok(Self::Unix(path.to_owned()));
            }
            return Err(
                "after unix:// comes an absolute path, as in unix:///run/rhizome/admin.sock".to_owned()
            );
        }
        match text.strip_prefix("https://").map(|rest| rest.trim_end_matches('/')) {
            Some(address) if is_address(address) => Ok(Self::Https(address.to_owned())),
            Some(_) => {
                Err("after https:// come a host and a port, as in https://ca.example.org:8443".to_owned())
            }
            None => Err("write unix:///PATH or https://HOST:PORT".to_owned()),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Https(address) => write!(f, "https://{address}"),
        }
    }
}

/// One run of one verb.
pub(crate) struct Session<'a, 'c> {
    pub(crate) options: &'a Options,
    console: &'a mut Console<'c>,
    channel: Option<Channel>,
}

impl<'a, 'c> Session<'a, 'c> {
    pub(crate) const fn new(options: &'a Options, console: &'a mut Console<'c>) -> Self {
        Self { options, console, channel: None }
    }

    /// The moment that relative times are counted from.
    pub(crate) fn now(&self) -> Timestamp {
        (self.console.clock)()
    }

    /// The clock that certificates are judged by.
    pub(crate) fn clock(&self) -> Clock {
        Arc::clone(&self.console.clock)
    }

    /// True when results go to a terminal.
    pub(crate) const fn terminal(&self) -> bool {
        self.console.terminal
    }

    /// Shows a result.
    pub(crate) fn show(&mut self, view: &View) -> Result<(), Failure> {
        self.console.show(self.options.output, view)
    }

    /// Writes a result as it is.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.console.write(bytes)
    }

    /// A remark for people beside the result.
    pub(crate) fn remark(&mut self, remark: &str) {
        self.console.remark(self.options.output, remark);
    }

    /// The connection to the server.
    pub(crate) async fn channel(&mut self) -> Result<Channel, Failure> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let server = self.options.server.address()?;
        let connecting = connect(&server, self.options, self.clock());
        let made = patiently(format!("Connecting to {server}"), connecting).await?;
        self.channel = Some(made.clone());
        Ok(made)
    }

    /// The directory of the identity to use.
    pub(crate) fn identity_dir(&self) -> Result<&Path, Failure> {
        identity_dir(self.options)
    }
}

fn identity_dir(options: &Options) -> Result<&Path, Failure> {
    options.identity.as_deref().ok_or_else(|| {
        Failure::usage("this needs an identity")
            .hint("give --identity DIR or set RHIZOME_IDENTITY; `rhizome admin add` and `rhizome node join` make one")
    })
}

async fn connect(server: &ServerAddress, options: &Options, clock: Clock) -> Result<Channel, Failure> {
    match server {
        ServerAddress::Unix(_) => {
            rhizome_tls::connect(&server.to_string(), None).await.map_err(|error| unreachable(&error))
        }
        ServerAddress::Https(address) => {
            let StoredIdentity { identity, bundle } = load_identity(identity_dir(options)?)?;
            verified(address, &bundle, Some(identity), clock).await
        }
    }
}

/// Reads the identity kept in a directory.
pub(crate) fn load_identity(path: &Path) -> Result<StoredIdentity, Failure> {
    IdentityDir::new(path).load().map_err(|error| identity_failure(&error))
}

/// What went wrong with an identity directory; the sentence already says what to do.
pub(crate) fn identity_failure(error: &IdentityDirError) -> Failure {
    Failure::new(Exit::Failed, "identity", error.to_string())
}

/// A connection to `HOST:PORT` that believes only a Rhizome server of the bundle's trust domain.
pub(crate) async fn verified(
    address: &str,
    bundle: &Bundle,
    identity: Option<ClientIdentity>,
    clock: Clock,
) -> Result<Channel, Failure> {
    let expected = ExpectedServer::ServerOf(bundle.trust_domain().clone());
    let config =
        rhizome_tls::client_config(Arc::new(TrustAnchors::from_bundle(bundle)), identity, expected, clock)
            .map_err(|error: TlsError| Failure::new(Exit::Failed, "tls", error.to_string()))?;
    rhizome_tls::connect(address, Some(Arc::new(config))).await.map_err(|error| unreachable(&error))
}

/// What went wrong when connecting.
pub(crate) fn unreachable(error: &ConnectError) -> Failure {
    let (exit, code, hint) = match error {
        ConnectError::Address { .. } | ConnectError::Plaintext { .. } => (Exit::Usage, "address", None),
        ConnectError::Unreachable { .. } => {
            let hint = "check that the server runs, and that --server or RHIZOME_SERVER names it";
            (Exit::Unavailable, "unreachable", Some(hint))
        }
        ConnectError::ServerRefused { .. } => {
            let hint =
                "check this machine's clock and that the identity's bundle is of the right trust domain";
            (Exit::Denied, "server_refused", Some(hint))
        }
        ConnectError::RefusedByServer { .. } => (Exit::Denied, "refused_by_server", None),
        ConnectError::Handshake { .. } | ConnectError::Transport { .. } => {
            (Exit::Unavailable, "handshake", Some("check that a Rhizome server listens there"))
        }
    };
    let failure = Failure::new(exit, code, error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A request with the deadline of unary calls.
pub(crate) fn call<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

/// Waits for `work`, and says so on standard error once it has taken a second.
pub(crate) async fn patiently<T>(doing: String, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(PATIENCE) => {}
    }
    let spinner = ProgressBar::new_spinner().with_message(doing);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(SPIN);
    let done = work.await;
    spinner.finish_and_clear();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_read_and_print() {
        for text in ["unix:///run/rhizome/admin.sock", "https://ca.example.org:8443", "https://[::1]:8443"] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), text);
        }
        assert_eq!("https://a:1/".parse::<ServerAddress>(), Ok(ServerAddress::Https("a:1".to_owned())));
    }

    #[test]
    fn plain_text_and_half_addresses_are_refused() {
        for text in ["", "http://a:1", "a:1", "https://a", "https://a:1/path", "unix://relative", "unix://"] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_server_is_the_default_socket() {
        assert_eq!(
            DEFAULT_SERVER.parse::<ServerAddress>(),
            Ok(ServerAddress::Unix(DEFAULT_SOCKET.to_owned()))
        );
    }
}
