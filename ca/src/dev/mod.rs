//! `rhizome dev`: an authority, an agent and two workloads on loopback, and the way of identities through them.
//!
//! Laws: no root, no configuration, nothing outside one directory, which is removed at the end unless it was named; no
//! process outlives this one. It is the real thing: the same configuration reader, server, agent, wire and
//! administrators' verbs as anywhere else, and workloads that are processes of their own.
//! Not here: the steps (`walk` for the authority, `mesh` for agent and workloads, `clusters`, `rotation` for the root), what runs meanwhile (`stage`,
//! `process`), what a workload does (`workload`), what is shown (`show`).

mod clusters;
mod mesh;
mod process;
mod rotation;
mod show;
mod stage;
mod walk;
mod workload;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rhizome_cli::{Exit, Failure, OutputFormat};
use rhizome_server::Stopwatch;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::process::VERB as WORKLOAD_VERB;
use self::stage::Stage;
use self::walk::{Place, Walk};
pub use self::workload::{Workload, run as run_workload};
use crate::config::{Log, LogFormat, LogLevel};
use crate::{command, logging};

/// The trust domain of a trial: a name that nobody can own (RFC 2606).
const TRUST_DOMAIN: &str = "dev.example.org";

/// How far the trial goes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Once through, with everything that is changed and stopped; else until a signal.
    pub check: bool,
    /// The root is changed, too.
    pub rotate: bool,
    /// How many clusters there are; each after the first has a Rhizome of its own below the one root.
    pub clusters: u8,
}

/// The most clusters of a trial.
pub const MOST_CLUSTERS: i64 = 4;

/// Runs the trial.
pub async fn run(way: Way, directory: Option<&Path>, output: OutputFormat) -> Exit {
    logging::start(Log { format: LogFormat::Text, level: LogLevel::Error });
    match trial(way, directory, output).await {
        Ok(exit) => exit,
        Err(error) => command::failed(output, &Failure::new(Exit::Failed, "failed", error)),
    }
}

async fn trial(way: Way, directory: Option<&Path>, output: OutputFormat) -> Result<Exit, String> {
    let check = way.check;
    let watch = Stopwatch::start();
    let mut signals = Signals::listen()?;
    let home = Home::make(directory)?;
    let place = Place::below(home.path());
    let mut stage = Stage::set(&place, &configuration(&place)?).await?;
    let mut walk = Walk::new(place, check || way.rotate);
    let walked = tokio::select! {
        facts = walk.all(&mut stage, way) => Some(facts),
        () = signals.any() => None,
    };
    let facts = walked.unwrap_or_else(|| {
        walk.interrupted();
        None
    });
    if check {
        walk.summarise(watch.elapsed());
    } else if let Some(facts) = &facts {
        drop(io::stdout().write_all(show::text(facts, home.is_scratch()).as_bytes()));
        tokio::select! {
            () = show::live(&stage) => {}
            () = signals.any() => {}
        }
    }
    // Before the directory goes: nothing writes there any more.
    stage.clear().await;
    if facts.is_some() {
        return Ok(Exit::Done);
    }
    Ok(match output {
        // The last line of the check said it.
        OutputFormat::Table if check => Exit::Failed,
        OutputFormat::Table | OutputFormat::Json => {
            command::failed(output, &Failure::new(Exit::Failed, "step_failed", walk.failure()))
        }
    })
}

/// The one directory that everything is in.
enum Home {
    Scratch(TempDir),
    Named(PathBuf),
}

impl Home {
    fn make(directory: Option<&Path>) -> Result<Self, String> {
        let Some(path) = directory else {
            let made = tempfile::Builder::new().prefix("rhizome-dev-").tempdir();
            return made
                .map(Self::Scratch)
                .map_err(|cause| format!("no scratch directory: {cause}; name one with --dir"));
        };
        let refuse = |cause: io::Error| format!("{}: {cause}", path.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(refuse)?;
        if fs::read_dir(path).map_err(refuse)?.next().is_some() {
            return Err(format!("{} is not empty; name a directory that is, or a new one", path.display()));
        }
        Ok(Self::Named(fs::canonicalize(path).map_err(refuse)?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Scratch(directory) => directory.path(),
            Self::Named(path) => path,
        }
    }

    const fn is_scratch(&self) -> bool {
        matches!(self, Self::Scratch(_))
    }
}

/// The trial's configuration file; the system chooses the ports.
fn configuration(place: &Place) -> Result<String, String> {
    // A JSON string is a YAML string.
    let text =
        |path: &Path| serde_json::to_string(path).map_err(|error| format!("{}: {error}", path.display()));
    let (data, socket, key) = (text(&place.data)?, text(&place.socket)?, text(&place.sealing_key)?);
    Ok(format!(
        "trust_domain: {TRUST_DOMAIN}\n\
         listen: 127.0.0.1:0\n\
         names: [localhost]\n\
         data: {data}\n\
         admin: {{socket: {socket}}}\n\
         web: {{listen: 127.0.0.1:0}}\n\
         keys: {{sealing_key_file: {key}}}\n\
         log: {{format: text}}\n"
    ))
}

/// What ends a trial.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self, String> {
        let deaf = |cause: io::Error| format!("cannot listen for signals: {cause}");
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(deaf)?,
            interrupt: signal(SignalKind::interrupt()).map_err(deaf)?,
            hang_up: signal(SignalKind::hangup()).map_err(deaf)?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_configuration_of_a_trial_is_valid_wherever_its_directory_is() {
        for directory in ["/tmp/rhizome-dev-1", "/tmp/with space: and # \"quotes\" 'and' {more}"] {
            let place = Place::below(Path::new(directory));
            let loaded = config::parse(configuration(&place).unwrap().as_bytes());
            let loaded = loaded.unwrap_or_else(|faults| panic!("{}", faults.report("dev")));
            assert_eq!((&loaded.config.data, loaded.warnings.len()), (&place.data, 0));
        }
    }

    #[test]
    fn a_directory_that_holds_something_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "x").unwrap();
        assert!(Home::make(Some(folder.path())).err().unwrap().contains("not empty"));
        assert!(Home::make(Some(&folder.path().join("new"))).is_ok());
    }
}
