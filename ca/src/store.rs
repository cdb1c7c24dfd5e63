//! `rhizome store`: the database itself, offline: moved from the embedded one to PostgreSQL, or marked after it was put
//! back from a dump.
//!
//! Laws: what is moved is verified on its way and again where it arrived; the old database is then called by another
//! name, so that it is never served from by mistake, and is kept. A move that was interrupted anywhere is begun again
//! by the same command. Not here: copying (`rhizome_store`), the marks (`restore`).

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::{Subcommand, ValueHint};
use rhizome_cli::{Exit, Failure, OutputFormat};
use rhizome_core::caller::Principal;
use rhizome_core::documents::Transaction;
use rhizome_core::ledger::{Entry, Event, Head};
use rhizome_core::ports::{Clock as _, Store as _, StoreError};
use rhizome_server::{Stopwatch, SystemClock};
use rhizome_store::{Imported, Progress, SqliteStore, verify_ledger};

use crate::config::{self, Config, ConfigError, Postgres, StoreChoice};
use crate::launch::{self, LaunchError};
use crate::restore::{self, RestoreError};
use crate::serve::misconfigured;

/// How often the progress is told.
const TELL_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Verbs about the database.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Move the state from the embedded database into the PostgreSQL that the configuration names, which must be empty
    Migrate {
        /// The configuration, which says where both are: `data` and `store`
        #[arg(long, value_name = "FILE", default_value = rhizome_cli::CONFIG, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
    /// After pg_restore: revoke outstanding join tokens and raise what must never go back, before any server starts
    MarkRestored {
        /// The configuration of a server
        #[arg(long, value_name = "FILE", default_value = rhizome_cli::CONFIG, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
}

/// Why the database was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum StoreVerbError {
    /// The configuration has faults.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A database cannot be opened.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Nothing says where to.
    #[error(
        "the configuration names no PostgreSQL; add `store:` with `postgres: postgresql://USER@HOST:5432/DATABASE`"
    )]
    NoPostgres,
    /// There is nothing to move.
    #[error("{} does not exist; there is nothing to move", .0.display())]
    NoDatabase(PathBuf),
    /// Something else is there.
    #[error("{0} is not empty, and holds something else; name another schema, or an empty database")]
    NotEmpty(String),
    /// The marks cannot be made.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What arrived is not what was sent.
    #[error(
        "the ledger that arrived ends at {arrived:?}, the one that was sent at {sent:?}; the old database is untouched"
    )]
    Differs {
        /// In PostgreSQL.
        arrived: Head,
        /// In the embedded database.
        sent: Head,
    },
    /// The old database cannot be renamed.
    #[error("everything is in PostgreSQL, but {} cannot be renamed to {}: {cause}; do that before starting", from.display(), to.display())]
    Rename {
        /// From.
        from: PathBuf,
        /// To.
        to: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

impl StoreVerbError {
    const fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "configuration",
            Self::Launch(_) => "launch",
            Self::NoPostgres => "no_postgres",
            Self::NoDatabase(_) => "no_database",
            Self::NotEmpty(_) => "not_empty",
            Self::Restore(_) | Self::Store(_) => "store",
            Self::Differs { .. } => "differs",
            Self::Rename { .. } => "file",
        }
    }
}

/// Does it, and reports.
pub async fn run(verb: Verb, output: OutputFormat) -> Exit {
    let done = match verb {
        Verb::Migrate { config } => match load(&config) {
            Ok((config, postgres)) => migrate(&config, &postgres, output).await,
            Err(error) => Err(error),
        },
        Verb::MarkRestored { config } => match load(&config) {
            Ok((config, postgres)) => mark_restored(&config, &postgres).await,
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(report) => {
            drop(io::stdout().write_all(report.as_bytes()));
            Exit::Done
        }
        Err(StoreVerbError::Config(error)) => misconfigured(&error, output),
        Err(error) => {
            crate::command::failed(output, &Failure::new(Exit::Failed, error.code(), error.to_string()))
        }
    }
}

fn load(path: &std::path::Path) -> Result<(Config, Postgres), StoreVerbError> {
    let config = config::load(path)?.config;
    match &config.store {
        StoreChoice::Postgres(postgres) => {
            let postgres = postgres.clone();
            Ok((config, postgres))
        }
        StoreChoice::Embedded => Err(StoreVerbError::NoPostgres),
    }
}

async fn migrate(
    config: &Config,
    postgres: &Postgres,
    output: OutputFormat,
) -> Result<String, StoreVerbError> {
    launch::check_data(&config.data)?;
    let (from, to) = (launch::database(&config.data), launch::migrated(&config.data));
    if !fs::exists(&from).unwrap_or(false) {
        return Err(StoreVerbError::NoDatabase(from));
    }
    let source = launch::open_embedded(&config.data).await?;
    let target = launch::open_postgres(postgres).await?;
    restore::check_identity(&source, config, &from).await?;
    if target.head().await? != source.head().await? {
        // Written before it is moved, so that it stands in both.
        note(&source, &target.place()).await?;
    }
    let sent = source.head().await?;
    let imported = target.import(&source, SystemClock.now(), telling(output)).await;
    let Imported { head, documents, already } = match imported {
        Err(StoreError::Exists { path }) => return Err(StoreVerbError::NotEmpty(path)),
        done => done?,
    };
    let arrived = restore::patiently(output, "verifying what arrived", verify_ledger(&target)).await?;
    target.check_integrity().await?;
    if arrived != sent {
        return Err(StoreVerbError::Differs { arrived, sent });
    }
    drop(source);
    let renamed = fs::rename(&from, &to).and_then(|()| fs::File::open(&config.data)?.sync_all());
    renamed.map_err(|cause| StoreVerbError::Rename { from: from.clone(), to: to.clone(), cause })?;
    let copied =
        if already { "they were copied before".to_owned() } else { format!("{documents} documents") };
    Ok(format!(
        "moved to {}: {} ledger records verified, {copied}\nthe old database is kept as {}; private keys stay where they are\n",
        target.place(),
        head.position.0,
        to.display()
    ))
}

/// Says in the ledger where it goes to.
async fn note(source: &SqliteStore, to: &str) -> Result<(), StoreError> {
    let now = SystemClock.now();
    let event = Event::Changed {
        by: Principal::Local { uid: rustix::process::geteuid().as_raw(), user: None }.to_string(),
        action: "store.migrate".to_owned(),
        subject: to.to_owned(),
        detail: String::new(),
    };
    source.commit(Transaction::named("migrate").record(Entry::new(now, &event))).await.map(drop)
}

/// Tells people, on standard error, how far it is.
fn telling(output: OutputFormat) -> impl FnMut(Progress) + Send {
    let mut last = Stopwatch::start();
    let live = io::stderr().is_terminal();
    move |Progress { records, of }| {
        let due = last.elapsed() >= TELL_EVERY || records == of;
        if output == OutputFormat::Table && due {
            let (begin, end) = if live && records < of { ("\r", "") } else { ("", "\n") };
            drop(write!(io::stderr(), "{begin}copying the ledger: {records} of {of} records{end}"));
            last = Stopwatch::start();
        }
    }
}

async fn mark_restored(config: &Config, postgres: &Postgres) -> Result<String, StoreVerbError> {
    let store = launch::open_postgres(postgres).await?;
    let place = PathBuf::from(store.place());
    restore::check_identity(&store, config, &place).await?;
    store.check_integrity().await?;
    let head = verify_ledger(&store).await?;
    let now = SystemClock.now();
    // Serials that were given out after the dump was taken are never given out again.
    store.reserve_serials(1, now).await?;
    let (revoked, bundle) = restore::mark(&store, &place, now).await?;
    let sequences =
        bundle.map_or_else(String::new, |(from, to)| format!("bundle sequence raised: {from} -> {to}\n"));
    Ok(format!(
        "marked as restored: {} ledger records verified\noutstanding join tokens revoked: {revoked}\n{sequences}",
        head.position.0
    ))
}
