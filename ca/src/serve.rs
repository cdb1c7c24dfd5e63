//! `rhizome server`: run until told to stop.
//!
//! Laws: SIGTERM and SIGINT drain and stop, a second one stops at once; SIGHUP reads the file again, applies the log
//! level and says what needs a restart. Not here: serving (`rhizome_server`).

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use rhizome_cli::{Exit, Failure, OutputFormat};
use rhizome_core::documents::DocumentKey;
use rhizome_core::documents::Kind;
use rhizome_core::ports::Store;
use rhizome_core::state::BundleRecord;
use rhizome_id::{Digest, TrustDomain};
use rhizome_server::{Running, Settings};
use rhizome_x509::Bundle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{self, Config, ConfigError, Loaded, Warning};
use crate::logging::{self, LevelHandle};
use crate::{command, launch};

/// Checks the configuration file and says what is wrong with it, or that nothing is.
pub fn check_config(path: &Path, output: OutputFormat) -> Exit {
    match config::load(path) {
        Ok(Loaded { config, warnings }) => {
            let mut text = warnings.iter().map(|warning| warned(path, warning)).collect::<String>();
            text.push_str(&format!("{}: valid; trust domain {}\n", path.display(), config.trust_domain));
            drop(io::stdout().write_all(text.as_bytes()));
            Exit::Done
        }
        Err(error) => misconfigured(&error, output),
    }
}

/// Tells the faults of a configuration: to people one a line that begins with its place, so that editors jump there.
pub(crate) fn misconfigured(error: &ConfigError, output: OutputFormat) -> Exit {
    match output {
        OutputFormat::Table => {
            drop(writeln!(io::stderr(), "{error}"));
            Exit::Usage
        }
        OutputFormat::Json => {
            let told = error.to_string().trim_end().to_owned();
            command::failed(output, &Failure::new(Exit::Usage, "configuration", told))
        }
    }
}

fn warned(path: &Path, warning: &Warning) -> String {
    match warning.at {
        Some(at) => format!("{}:{at}: warning: {}\n", path.display(), warning.text),
        None => format!("{}: warning: {}\n", path.display(), warning.text),
    }
}

/// Runs the server that the configuration file at `path` describes, until a signal stops it. With `believe_clock` it
/// starts although the ledger has seen a later time than the clock tells.
pub async fn run(path: &Path, believe_clock: bool, output: OutputFormat) -> Exit {
    let Loaded { config, warnings } = match config::load(path) {
        Ok(loaded) => loaded,
        Err(error) => return misconfigured(&error, output),
    };
    let level = logging::start(config.log);
    for warning in warnings {
        tracing::warn!(file = %path.display(), line = warning.at.map(|at| at.line), "{}", warning.text);
    }
    rhizome_agent::descriptors::raise_limit();
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(cause) => return failed(Exit::Failed, output, "signals", "cannot listen for signals", &cause),
    };
    let launched = match launch::open(&config).await {
        Ok(launched) => launched,
        Err(error) => return failed(error.exit(), output, "launch", "cannot start", &error),
    };
    let store = Arc::clone(&launched.ports.store);
    let settings = Settings { believe_clock, ..launched.settings };
    let running = match rhizome_server::start(settings, launched.ports).await {
        Ok(running) => running,
        Err(error) => return failed(Exit::Failed, output, "start", "cannot start", &error),
    };
    let bundle = bundle_digest(store.as_ref(), &config.trust_domain).await;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        trust_domain = %config.trust_domain,
        replica = %config.replica,
        address = %running.address(),
        web = running.web_address().map(tracing::field::display),
        admin_socket = %config.admin.socket.display(),
        bundle_sequence = bundle.map(|(sequence, _)| sequence),
        bundle_digest = bundle.map(|(_, digest)| tracing::field::display(digest)),
        "ready"
    );
    drop(store);
    if until_stopped(running, signals, path, &config, &level).await {
        return Exit::Done;
    }
    let told = "stopped at once; open calls were cut off";
    match output {
        OutputFormat::Table => Exit::Failed,
        OutputFormat::Json => command::failed(output, &Failure::new(Exit::Failed, "cut_off", told)),
    }
}

/// Tells why there is no server: people and whoever collects it in the log, programs that asked for it as they asked.
fn failed(exit: Exit, output: OutputFormat, code: &str, what: &str, error: &dyn std::error::Error) -> Exit {
    match output {
        OutputFormat::Table => {
            tracing::error!(cause = %error, "{what}");
            exit
        }
        OutputFormat::Json => command::failed(output, &Failure::new(exit, code, format!("{what}: {error}"))),
    }
}

/// Sequence and digest of the bundle in the store, for the log.
pub async fn bundle_digest(store: &dyn Store, trust_domain: &TrustDomain) -> Option<(u64, Digest)> {
    let key = DocumentKey::new(Kind::Bundle, trust_domain.to_string());
    let document = store.document(&key).await.ok().flatten()?;
    let bundle = Bundle::try_from(document.read::<BundleRecord>().ok()?.value).ok()?;
    Some((bundle.sequence(), bundle.digest()))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

enum Told {
    Stop(&'static str),
    Reread,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.hang_up.recv() => Told::Reread,
        }
    }
}

/// Serves until a signal; whether all calls that were open then came to their end.
async fn until_stopped(
    running: Running,
    mut signals: Signals,
    path: &Path,
    config: &Config,
    level: &LevelHandle,
) -> bool {
    loop {
        match signals.next().await {
            Told::Reread => reread(path, config, level),
            Told::Stop(signal) => {
                tracing::info!(
                    signal,
                    "draining: open calls finish, new ones are refused; again to stop at once"
                );
                break;
            }
        }
    }
    let stopping = running.stop();
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            () = &mut stopping => return true,
            told = signals.next() => if let Told::Stop(signal) = told {
                tracing::warn!(signal, "stopped at once; open calls were cut off");
                return false;
            },
        }
    }
}

fn reread(path: &Path, running: &Config, level: &LevelHandle) {
    match config::load(path) {
        Err(error) => {
            tracing::error!(%error, "the configuration was not read again; the old one stays in force")
        }
        Ok(Loaded { config: new, .. }) => {
            level.set(new.log.level);
            let same = Config { log: running.log, ..new } == *running;
            if same {
                tracing::info!("the log's level was read again; nothing else has changed");
            } else {
                tracing::warn!("the log's level was read again; what else has changed needs a restart");
            }
        }
    }
}
