//! The agent's process: joining, running, and a look at what is there.
//!
//! Laws: flags are read here and nowhere else; a failure is one sentence and an exit code (as `rhizome` has them).
//! Not here: anything that the agent does (`rhizome_agent`).

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use rhizome_agent::socket::{Doors, DoorsSettings, Socket, serve};
use rhizome_agent::{Checkup, Ports, Settings, SystemClock, SystemEntropy, checkup, join, start};
use rhizome_core::ports::Clock;
use rhizome_tls::{JoinString, MAX_JOIN_STRING_BYTES};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

/// Identities on this machine, for workloads that never heard of Rhizome
#[derive(Parser)]
#[command(name = "rhizome-agent", version)]
struct Program {
    /// The directory of this node's identity and sealed state
    #[arg(
        long,
        value_name = "DIR",
        env = "RHIZOME_AGENT_STATE",
        default_value = "/var/lib/rhizome-agent",
        global = true
    )]
    state: PathBuf,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Join with a join string from `rhizome token create`
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

#[derive(Args)]
struct Run {
    /// The Unix socket on which workloads are served
    #[arg(long, value_name = "PATH", default_value = "/run/rhizome/agent.sock")]
    socket: PathBuf,

    /// A file with a join string, with which to join when there is no usable node certificate
    #[arg(long, value_name = "FILE")]
    join_file: Option<PathBuf>,
}

/// Exit codes, as `rhizome --help` lists them.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CHECK_FAILED: u8 = 6;

struct Failure(u8, String);

impl Failure {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that map_err takes")]
    fn failed(cause: impl ToString) -> Self {
        Self(FAILED, cause.to_string())
    }
}

fn main() -> ExitCode {
    let program = Program::parse();
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return told(&Failure::failed(cause)),
    };
    match runtime.block_on(dispatch(program)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => told(&failure),
    }
}

fn told(Failure(code, cause): &Failure) -> ExitCode {
    tracing::error!("{cause}");
    ExitCode::from(*code)
}

async fn dispatch(program: Program) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match program.verb {
        Verb::Join { join_string, force } => {
            let text = if join_string == "-" { read(None)? } else { Zeroizing::new(join_string) };
            let string = decode(&text)?;
            if checkup(&program.state, &*clock).node.is_some() && !force {
                let place = program.state.display();
                return Err(Failure(
                    FAILED,
                    format!("{place} holds an identity already; replace it with --force"),
                ));
            }
            let node = join(&program.state, &string, &clock).await.map_err(Failure::failed)?;
            tracing::info!(node, "this machine is a node now; start `rhizome-agent run`");
            Ok(())
        }
        Verb::Run(wish) => run(program.state, wish, clock).await,
        Verb::Check => {
            let Checkup { node, lines, troubles } = checkup(&program.state, &*clock);
            tracing::info!(node = node.map(|id| id.to_string()), "this node");
            lines.iter().for_each(|line| tracing::info!("{line}"));
            troubles.iter().for_each(|trouble| tracing::warn!("{trouble}"));
            if troubles.is_empty() {
                Ok(())
            } else {
                Err(Failure(CHECK_FAILED, "something is wrong".to_owned()))
            }
        }
    }
}

async fn run(state: PathBuf, wish: Run, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    let join = wish.join_file.map(|path| decode(&read(Some(&path))?)).transpose()?;
    let ports = Ports { clock, entropy: Arc::new(SystemEntropy::default()) };
    let now = Arc::clone(&ports.clock);
    let agent = start(Settings { state, join }, ports).map_err(Failure::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let doors = Doors::new(agent.identities(), now, agent.spawner().clone(), DoorsSettings::default());
    let serving = serve(doors, Socket::bind(&wish.socket).map_err(Failure::failed)?);
    tokio::pin!(serving);
    tracing::info!(socket = %wish.socket.display(), "running");
    tokio::select! {
        _received = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::failed)?,
        ended = &mut serving => {
            agent.stop().await;
            return ended.map_err(Failure::failed);
        }
    }
    // Open calls end, then the socket goes, while what is held is sealed.
    let ((), ended) = tokio::join!(agent.stop(), serving);
    ended.map_err(Failure::failed)
}

fn decode(text: &str) -> Result<JoinString, Failure> {
    JoinString::decode(text).map_err(|error| Failure(USAGE, error.to_string()))
}

/// A join string from a file, or from standard input.
fn read(path: Option<&PathBuf>) -> Result<Zeroizing<String>, Failure> {
    use std::io::Read;
    let limit = u64::try_from(MAX_JOIN_STRING_BYTES).unwrap_or(u64::MAX).saturating_add(2);
    let mut text = Zeroizing::new(String::with_capacity(MAX_JOIN_STRING_BYTES.saturating_add(3)));
    let read = match path {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
        None => std::io::stdin().lock().take(limit).read_to_string(&mut text),
    };
    let place = path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    read.map_err(|cause| Failure(USAGE, format!("cannot read {place}: {cause}")))?;
    Ok(text)
}
