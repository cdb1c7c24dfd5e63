//! The agent's command line, the same for the small binary `rhizome-agent` and for `rhizome agent`.
//!
//! Laws: flags are read here and nowhere else; results go to standard output, everything else to standard error; a
//! failure is one sentence and an exit code with the same meaning as those of `rhizome`.
//! Not here: anything that the agent does.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand, ValueHint};
use rhizome_core::ports::Clock;
use rhizome_tls::{JoinString, MAX_JOIN_STRING_BYTES};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{Checkup, SystemClock, checkup, join};

mod exit;
mod logging;
mod output;
mod serve;

pub use exit::{EXIT_CODES_HELP, Exit};
pub use logging::{LogFormat, LogLevel};
pub use output::OutputFormat;

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

/// Options of every verb.
#[derive(Args, Clone, Debug)]
struct AgentOptions {
    /// The directory of this node's identity and sealed state
    #[arg(
        long,
        value_name = "DIR",
        env = "RHIZOME_AGENT_STATE",
        hide_env_values = true,
        default_value = "/var/lib/rhizome-agent",
        value_hint = ValueHint::DirPath,
        global = true
    )]
    state: PathBuf,
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
    /// Say what this agent holds and what is wrong with it
    Check,
}

#[derive(Args, Debug)]
struct Run {
    /// The Unix socket on which workloads are served
    #[arg(long, value_name = "PATH", default_value = "/run/rhizome/agent.sock", value_hint = ValueHint::FilePath)]
    socket: PathBuf,

    /// A file with a join string, with which to join when there is no usable node certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    join_file: Option<PathBuf>,

    /// How log lines are written
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,

    /// From which level on lines are logged
    #[arg(long, value_enum, default_value_t, value_name = "LEVEL")]
    log_level: LogLevel,
}

impl Program {
    /// Does what the command line says, and gives how it ended. Call it inside a runtime.
    pub async fn run(self) -> Exit {
        run(self.arguments, self.output).await
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
    let Arguments { options: AgentOptions { state }, verb } = arguments;
    match verb {
        Verb::Join { join_string, force } => {
            let text = if join_string == "-" { read(None)? } else { Zeroizing::new(join_string) };
            let string = decode(&text)?;
            if checkup(&state, &*clock).node.is_some() && !force {
                let place = state.display();
                let told = format!("{place} holds an identity already; replace it with --force");
                return Err(Failure::new(Exit::Failed, "already_joined", told));
            }
            let node = join(&state, &string, &clock).await?;
            let json =
                json!({ "node_id": node, "trust_domain": string.trust_domain().as_str(), "state": state });
            let text = details(&[
                ("node", node),
                ("trust domain", string.trust_domain().to_string()),
                ("state", state.display().to_string()),
                ("next", "rhizome-agent run".to_owned()),
            ]);
            output::show(output, &View { json, text })?;
            Ok(Exit::Done)
        }
        Verb::Run(wish) => {
            logging::start(wish.log_format, wish.log_level);
            Box::pin(serve::run(state, wish, clock)).await.map(|()| Exit::Done)
        }
        Verb::Check => {
            let found = checkup(&state, &*clock);
            output::show(output, &checked(&found))?;
            Ok(if found.troubles.is_empty() { Exit::Done } else { Exit::CheckFailed })
        }
    }
}

fn checked(found: &Checkup) -> View {
    let Checkup { node, node_not_after, node_renew_at, servers, bundle, identities, troubles } = found;
    let instant = |at: &Option<rhizome_id::Timestamp>| at.map(|at| at.to_string());
    let rows = identities
        .iter()
        .map(|it| json!({ "spiffe_id": it.spiffe_id.as_str(), "expires": it.not_after.to_string() }));
    let json = json!({
        "node": node.as_ref().map(|id| id.as_str()),
        "node_expires": instant(node_not_after),
        "node_renew_at": instant(node_renew_at),
        "servers": servers,
        "bundle_sequence": bundle,
        "identities": rows.collect::<Vec<_>>(),
        "problems": troubles,
    });
    let mut text = details(&[
        ("node", node.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("expires", instant(node_not_after).unwrap_or_default()),
        ("renew at", instant(node_renew_at).unwrap_or_default()),
        ("servers", servers.join(", ")),
        ("bundle", bundle.map(|sequence| sequence.to_string()).unwrap_or_default()),
        ("identities", identities.len().to_string()),
    ]);
    for it in identities {
        text.push_str(&format!("  {} until {}\n", it.spiffe_id, it.not_after));
    }
    for trouble in troubles {
        text.push_str(&format!("problem: {}\n", output::printable(trouble)));
    }
    View { json, text }
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
