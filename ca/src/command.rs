//! The command line: every verb of `rhizome`, and which module does it.
//!
//! Laws: whatever a verb fails at is told in the form that `--output` asks for, on standard error.
//! Not here: what administrators' verbs do and their options (`rhizome_cli`).

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use rhizome_agent::program::{self, NotUnderstood, asks_for_json};
use rhizome_cli::{CONFIG, Console, EXIT_CODES_HELP, Exit, Failure, Options, OutputFormat, complain};
use rhizome_core::ports::Clock as _;
use rhizome_id::Timestamp;
use rhizome_server::SystemClock;
use tokio::runtime::{Builder, Runtime};

use crate::{dev, offline_root, restore, serve, store};

/// Threads for what the server does beside serving: rotation, sealing, metrics. Serving has threads of its own.
const BACKGROUND_THREADS: usize = 2;

/// A certificate authority for a service mesh
#[derive(Debug, Parser)]
#[command(name = "rhizome", version, after_help = EXIT_CODES_HELP, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Try everything: authority, agent and two workloads on loopback, in a scratch directory, until Ctrl-C
    Dev {
        /// Walk the path once, check each step, print a summary, and exit 0 or 1
        #[arg(long)]
        check: bool,
        /// Change the root, too, while the workloads call each other: once whole, and once taken back
        #[arg(long)]
        rotate: bool,
        /// How many clusters there are; each after the first has a Rhizome of its own, below the one root
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=dev::MOST_CLUSTERS))]
        clusters: u8,
        /// Keep everything in this directory, which must be empty or new, instead of a scratch directory
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Not for people: a workload of `dev`
    #[command(hide = true, name = dev::WORKLOAD_VERB)]
    DevWorkload(dev::Workload),
    /// Run the certificate authority
    Server {
        /// The configuration
        #[arg(long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// Check the configuration, report every fault with its line and column, and exit
        #[arg(long)]
        check_config: bool,
        /// Start although the ledger has seen a later time than the clock tells: the clock is right, the ledger was
        /// written while it was wrong
        #[arg(long, conflicts_with = "check_config")]
        believe_clock: bool,
    },
    /// Be the agent of this machine: the same program as the small binary `rhizome-agent`
    #[command(after_help = program::EXIT_CODES_HELP)]
    Agent(Box<program::Arguments>),
    #[command(flatten)]
    Admin(rhizome_cli::Verb),
    /// Put a backup back into place, offline
    Restore {
        /// The configuration of the server to restore
        #[arg(long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
        config: PathBuf,
        /// The file that `rhizome backup` wrote
        #[arg(value_name = "BACKUP", value_hint = ValueHint::FilePath)]
        backup: PathBuf,
    },
    /// Move or mend the database itself, offline
    #[command(subcommand)]
    Store(store::Verb),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Does what the words of the command line say, the program's name first, and gives how it ended.
pub fn main(words: &[OsString]) -> Exit {
    match Arguments::try_parse_from(words) {
        Ok(arguments) => run(arguments),
        Err(error) if !error.use_stderr() || !asks_for_json(words) => {
            // Help, versions, and usage as people read it; when that cannot be written, there is nobody left to tell.
            drop(error.print());
            if error.use_stderr() { Exit::Usage } else { Exit::Done }
        }
        Err(error) => {
            let NotUnderstood { message, hint } = NotUnderstood::from(&error);
            failed(OutputFormat::Json, &Failure::usage(message).hint(hint))
        }
    }
}

/// Tells why a verb failed, and gives how the process ends.
pub(crate) fn failed(output: OutputFormat, failure: &Failure) -> Exit {
    complain(&mut io::stderr(), output, failure);
    failure.exit()
}

fn run(arguments: Arguments) -> Exit {
    let Arguments { options, verb } = arguments;
    let output = options.output;
    let many = || Builder::new_multi_thread().worker_threads(BACKGROUND_THREADS).enable_all().build();
    let one = || Builder::new_current_thread().enable_all().build();
    match verb {
        Verb::Server { config, check_config: true, .. } => serve::check_config(&config, output),
        Verb::Server { config, check_config: false, believe_clock } => {
            on(many(), output, serve::run(&config, believe_clock, output))
        }
        Verb::Dev { check, rotate, clusters, dir } => {
            on(many(), output, dev::run(dev::Way { check, rotate, clusters }, dir.as_deref(), output))
        }
        Verb::DevWorkload(wish) => on(one(), output, dev::run_workload(wish)),
        Verb::Restore { config, backup } => on(one(), output, restore::run(&config, &backup, output)),
        Verb::Store(verb) => on(one(), output, store::run(verb, output)),
        Verb::Agent(arguments) => on(one(), output, agent(*arguments, output)),
        Verb::Completions { shell } => {
            // In memory first: the library panics when what it writes to does not take it.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "rhizome", &mut script);
            let mut out = io::stdout();
            match out.write_all(&script).and_then(|()| out.flush()) {
                Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
                    failed(output, &Failure::file("write to", "standard output".as_ref(), &cause))
                }
                Ok(()) | Err(_) => Exit::Done,
            }
        }
        Verb::Admin(command) => {
            let command = match command.into_offline() {
                Ok(verb) => return on(one(), output, offline_root::run(verb, output)),
                Err(command) => *command,
            };
            let terminal = io::stdout().is_terminal();
            let (mut out, mut err) = (io::stdout(), io::stderr());
            let mut console = Console { out: &mut out, err: &mut err, clock: clock(), terminal };
            on(one(), output, rhizome_cli::run(&options, command, &mut console))
        }
    }
}

/// Does what `rhizome-agent` would do with the same words; its exit codes are ours.
async fn agent(arguments: program::Arguments, output: OutputFormat) -> Exit {
    let output = match output {
        OutputFormat::Table => program::OutputFormat::Table,
        OutputFormat::Json => program::OutputFormat::Json,
    };
    match program::run(arguments, output).await {
        program::Exit::Done => Exit::Done,
        program::Exit::Failed => Exit::Failed,
        program::Exit::Usage => Exit::Usage,
        program::Exit::NotFound => Exit::NotFound,
        program::Exit::Denied => Exit::Denied,
        program::Exit::Unavailable => Exit::Unavailable,
        program::Exit::CheckFailed => Exit::CheckFailed,
    }
}

/// Runs an administrators' verb as if it had been typed: `arguments` without the program's name.
///
/// # Errors
/// What clap says about arguments that are not a verb.
pub(crate) async fn typed(arguments: &[String], console: &mut Console<'_>) -> Result<Exit, clap::Error> {
    let program = std::iter::once("rhizome".to_owned());
    let Arguments { options, verb } = Arguments::try_parse_from(program.chain(arguments.iter().cloned()))?;
    match verb {
        Verb::Admin(command) => Ok(rhizome_cli::run(&options, command, console).await),
        Verb::Dev { .. }
        | Verb::DevWorkload(_)
        | Verb::Server { .. }
        | Verb::Agent(_)
        | Verb::Restore { .. }
        | Verb::Store(_)
        | Verb::Completions { .. } => Ok(Exit::Usage),
    }
}

/// The machine's clock, as administrators' verbs and TLS take it.
pub(crate) fn clock() -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
    Arc::new(|| SystemClock.now())
}

fn on(runtime: io::Result<Runtime>, output: OutputFormat, work: impl Future<Output = Exit>) -> Exit {
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(cause) => {
            let told = format!("threads cannot be started: {cause}");
            failed(output, &Failure::new(Exit::Failed, "threads", told))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
