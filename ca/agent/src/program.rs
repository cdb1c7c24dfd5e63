//! The agent's command line, the same for the small binary `rhizome-agent` and for `rhizome agent`.
//!
//! Laws: flags are read here and nowhere else; results go to standard output, everything else to standard error; a
//! failure is one sentence and an exit code with the same meaning as those of `rhizome`.
//! Not here: anything that the agent does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueHint};
use rhizome_core::ports::Clock;
use rhizome_tls::{JoinString, MAX_JOIN_STRING_BYTES};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{SystemClock, checkup, join};

mod config;
mod exit;
mod logging;
mod look;
mod output;
mod serve;
mod words;

pub use exit::{EXIT_CODES_HELP, Exit};
pub use logging::{LogFormat, LogLevel};
pub use output::OutputFormat;
pub use words::{NotUnderstood, asks_for_json};

use config::{Config, MetricsAddress};
use exit::Failure;
use output::{View, details};

/// Identities on this machine, for workloads that never heard of Rhizome
#[derive(Debug, Parser)]
#[command(name = "rhizome-agent", version, after_help = EXIT_CODES_HELP, max_term_width = 100)]
pub struct Program {
    #[command(flatten)]
    arguments: Arguments,

    /// How results are shown
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: OutputFormat,
}

/// What the agent can be asked to do.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    options: AgentOptions,

    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb. What is not given is as the configuration says.
#[derive(Args, Clone, Debug)]
struct AgentOptions {
    /// The configuration [default: /etc/rhizome/agent.yaml, if it is there]
    #[arg(
        long,
        value_name = "FILE",
        env = "RHIZOME_AGENT_CONFIG",
        hide_env_values = true,
        value_hint = ValueHint::FilePath,
        global = true
    )]
    config: Option<PathBuf>,

    /// The directory of this node's identity and sealed state [default: /var/lib/rhizome-agent]
    #[arg(
        long,
        value_name = "DIR",
        env = "RHIZOME_AGENT_STATE",
        hide_env_values = true,
        value_hint = ValueHint::DirPath,
        global = true
    )]
    state: Option<PathBuf>,

    /// The Unix socket on which workloads are served [default: /run/rhizome-agent/agent.sock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, global = true)]
    socket: Option<PathBuf>,

    /// The Unix socket on which the agent tells its own user and root how it is [default: that of workloads, ending in
    /// .admin.sock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, global = true)]
    admin_socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a node, with a join string from `rhizome token create`
    Join {
        /// The join string, or `-` to read it from standard input
        join_string: String,
        /// Replace the identity that is there
        #[arg(long)]
        force: bool,
    },
    /// Keep identities and serve them
    Run(Run),
    /// Check the configuration and what this agent keeps, and say what is wrong
    Check,
    /// Ask the running agent how it is: identities, expiry, bundle, sinks, problems
    Status,
    /// Ask the running agent why a process has the identities it has, or none
    Explain {
        /// Which process
        #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
        pid: i32,
    },
}

#[derive(Args, Debug)]
struct Run {
    /// A file with a join string, with which to join when there is no usable node certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    join_file: Option<PathBuf>,

    /// Serve Prometheus metrics and health over HTTP on this loopback address [default: off]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<MetricsAddress>,

    /// How log lines are written [default: json]
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,

    /// From which level on lines are logged [default: info]
    #[arg(long, value_enum, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

/// The configuration with the flags that override it.
struct Place {
    config: Config,
    state: PathBuf,
    socket: PathBuf,
    admin_socket: PathBuf,
}

impl AgentOptions {
    fn place(self) -> Result<Place, Failure> {
        let config = config::load(self.config.as_deref())?;
        let socket = self.socket.unwrap_or_else(|| config.socket());
        let beside = || socket.with_extension("admin.sock");
        Ok(Place {
            state: self.state.unwrap_or_else(|| config.state()),
            admin_socket: self.admin_socket.or_else(|| config.admin_socket()).unwrap_or_else(beside),
            socket,
            config,
        })
    }
}

/// Does what the words of the command line say, the program's name first, and gives how it ended.
pub fn main(words: &[OsString]) -> Exit {
    let Program { arguments, output } = match Program::try_parse_from(words) {
        Ok(program) => program,
        Err(error) if !error.use_stderr() || !asks_for_json(words) => {
            // Help, versions, and usage as people read it; when that cannot be written, there is nobody left to tell.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
        Err(error) => {
            let NotUnderstood { message, hint } = NotUnderstood::from(&error);
            let failure = Failure { exit: Exit::Usage, code: "usage", message, hint: Some(hint) };
            output::complain(OutputFormat::Json, &failure);
            return failure.exit;
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments, output)),
        Err(cause) => {
            let told = format!("threads cannot be started: {cause}");
            output::complain(output, &Failure::new(Exit::Failed, "threads", told));
            Exit::Failed
        }
    }
}

/// Does what the command line says, and gives how it ended. Call it inside a runtime.
pub async fn run(arguments: Arguments, output: OutputFormat) -> Exit {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match dispatch(arguments, output, clock).await {
        Ok(exit) => exit,
        Err(failure) => {
            output::complain(output, &failure);
            failure.exit
        }
    }
}

async fn dispatch(
    arguments: Arguments,
    output: OutputFormat,
    clock: Arc<dyn Clock>,
) -> Result<Exit, Failure> {
    let Arguments { options, verb } = arguments;
    let place = options.place()?;
    match verb {
        Verb::Join { join_string, force } => {
            let text = if join_string == "-" { read(None)? } else { Zeroizing::new(join_string) };
            become_node(&place.state, &decode(&text)?, force, output, &clock).await
        }
        Verb::Run(wish) => Box::pin(serve::run(place, wish, clock)).await.map(|()| Exit::Done),
        Verb::Check => look::check(&place, output, &*clock).await,
        Verb::Status => look::status(&place, output, &*clock).await,
        Verb::Explain { pid } => look::explain(&place, pid, output).await,
    }
}

async fn become_node(
    state: &Path,
    string: &JoinString,
    force: bool,
    output: OutputFormat,
    clock: &Arc<dyn Clock>,
) -> Result<Exit, Failure> {
    if checkup(state, &**clock).node.is_some() && !force {
        let told = format!("{} holds an identity already; replace it with --force", state.display());
        return Err(Failure::new(Exit::Failed, "already_joined", told));
    }
    let node = join(state, string, clock).await?;
    let domain = string.trust_domain();
    let json = json!({ "node_id": node, "trust_domain": domain.as_str(), "state": state });
    let text = details(&[
        ("node", node),
        ("trust domain", domain.to_string()),
        ("state", state.display().to_string()),
        ("next", "start the agent: `rhizome-agent run`, or its service".to_owned()),
    ]);
    output::show(output, &View { json, text })?;
    Ok(Exit::Done)
}

fn decode(text: &str) -> Result<JoinString, Failure> {
    JoinString::decode(text).map_err(|error| Failure::new(Exit::Usage, "join_string", error))
}

/// A join string from a file, or from standard input.
fn read(path: Option<&PathBuf>) -> Result<Zeroizing<String>, Failure> {
    use std::io::Read as _;
    let limit = u64::try_from(MAX_JOIN_STRING_BYTES).unwrap_or(u64::MAX).saturating_add(2);
    let mut text = Zeroizing::new(String::with_capacity(MAX_JOIN_STRING_BYTES.saturating_add(3)));
    let read = match path {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
        None => std::io::stdin().lock().take(limit).read_to_string(&mut text),
    };
    let place = path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    read.map_err(|cause| Failure::new(Exit::Usage, "file", format!("cannot read {place}: {cause}")))?;
    Ok(text)
}
