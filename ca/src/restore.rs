//! `rhizome restore`: a backup put back into place, marked as restored before anyone can serve from it.
//!
//! Laws: the database appears at its place whole, verified and marked, or not at all, whenever the process dies: it
//! is put together in a directory of its own and linked into place at the end, which fails when something is there.
//! A restored authority never gives a serial out twice (the store raises its counter), revokes every join token that
//! was outstanding, raises the bundle's sequence above all that was ever served, drops the revocation lists so that the
//! server signs new ones, and says so in the ledger.
//! Not here: copying and verifying (`rhizome_store`). Sources: ca/docs/attacks.md §2 (22).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_cli::{Exit, Failure, OutputFormat};
use rhizome_core::authority::{AuthorityState, JwtAuthority};
use rhizome_core::caller::Principal;
use rhizome_core::documents::{
    BadDocument, Document, DocumentKey, Kind, Stored as _, Transaction, Versioned,
};
use rhizome_core::ledger::{Entry, Event};
use rhizome_core::ports::{Clock as _, KeyRingError, Store, StoreError};
use rhizome_core::rotation::Restore;
use rhizome_core::state::{BundleRecord, Identity};
use rhizome_core::tokens::{JoinToken, TokenState};
use rhizome_id::{Timestamp, TrustDomain};
use rhizome_server::{Stopwatch, SystemClock};
use rhizome_store::{Options, SqliteStore};

use crate::command;
use crate::config::{self, Config, ConfigError, StoreChoice};
use crate::keyring::Secrets;
use crate::launch::{self, LaunchError};
use crate::serve::misconfigured;

/// Documents read at once, and tokens revoked in one transaction.
const PAGE: usize = 500;

/// How the directory begins in which a database is put together.
const WORKSHOP: &str = ".restoring-";

/// How long a step may take before something is said about it.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is said again.
const REMIND: Duration = Duration::from_secs(5);

/// Why a backup was not restored. Nothing is left in place then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The configuration has faults.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory will not do.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The state lives in PostgreSQL.
    #[error(
        "the configuration keeps the state in PostgreSQL: put its dump back with pg_restore while every server is \
         stopped, then run `rhizome store mark-restored`"
    )]
    Postgres,
    /// There is a database already.
    #[error("{} exists already and is not overwritten; stop the server and move it away (with -wal and -shm)", path.display())]
    Exists {
        /// The database.
        path: PathBuf,
    },
    /// The backup cannot be read.
    #[error("{}: the backup cannot be read: {cause}", path.display())]
    NoBackup {
        /// The backup.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It is somebody else's.
    #[error("{}: this backup is of trust domain {found}, the configuration says {configured}", path.display())]
    OtherTrustDomain {
        /// The backup.
        path: PathBuf,
        /// Whose it is.
        found: TrustDomain,
        /// Whose it should be.
        configured: TrustDomain,
    },
    /// It was never served from.
    #[error("{}: nothing in this backup says which trust domain it is of; it is no backup of an authority", path.display())]
    NoIdentity {
        /// The backup.
        path: PathBuf,
    },
    /// The store refuses the backup, or the marks.
    #[error("the backup cannot be restored: {0}")]
    Store(#[from] StoreError),
    /// A document in it cannot be read.
    #[error("the backup cannot be restored: {0}")]
    Document(#[from] BadDocument),
    /// The file system refuses.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A thread died.
    #[error("bug while restoring: {0}")]
    Bug(String),
}

impl RestoreError {
    /// Stable, for programs.
    const fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "configuration",
            Self::Launch(_) => "launch",
            Self::Postgres => "postgres",
            Self::Exists { .. } => "exists",
            Self::NoBackup { .. } | Self::Io { .. } => "file",
            Self::OtherTrustDomain { .. } => "other_trust_domain",
            Self::NoIdentity { .. } => "no_identity",
            Self::Store(_) | Self::Document(_) => "backup",
            Self::Bug(_) => "bug",
        }
    }
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Where the database is.
    pub database: PathBuf,
    /// Records in its ledger, those of the restore included.
    pub records: u64,
    /// Join tokens that were outstanding and are revoked now.
    pub revoked_tokens: usize,
    /// The bundle's sequence before and after, if a bundle was published.
    pub bundle: Option<(u64, u64)>,
}

/// Restores `backup` as the configuration file at `path` says, and reports.
pub async fn run(path: &Path, backup: &Path, output: OutputFormat) -> Exit {
    match restore(path, backup, output).await {
        Ok((config, restored)) => {
            let keys = missing_keys(&config, &restored.database).await;
            drop(io::stdout().write_all(report(&restored, &keys).as_bytes()));
            keys_checked(keys, output)
        }
        Err(RestoreError::Config(error)) => misconfigured(&error, output),
        Err(error) => command::failed(output, &Failure::new(Exit::Failed, error.code(), error.to_string())),
    }
}

/// How a restore ends that put everything into place; people have read about the keys in the report.
fn keys_checked(keys: Result<Vec<String>, String>, output: OutputFormat) -> Exit {
    let told = match keys {
        Ok(missing) if missing.is_empty() => return Exit::Done,
        Ok(missing) => format!("restored; private keys missing: {}", missing.join(", ")),
        Err(cause) => format!("restored; private keys not checked: {cause}"),
    };
    match output {
        OutputFormat::Table => Exit::CheckFailed,
        OutputFormat::Json => {
            let failure = Failure::new(Exit::CheckFailed, "keys", told);
            command::failed(output, &failure.hint("put the keys directory back before starting the server"))
        }
    }
}

async fn restore(
    path: &Path,
    backup: &Path,
    output: OutputFormat,
) -> Result<(Config, Restored), RestoreError> {
    let config = config::load(path)?.config;
    let restored = restore_into(&config, backup, SystemClock.now(), output).await?;
    Ok((config, restored))
}

/// Restores `backup` into the data directory of `config`; says on standard error what takes long, unless programs read.
///
/// # Errors
/// [`RestoreError`]; the data directory then has no database, as before.
pub async fn restore_into(
    config: &Config,
    backup: &Path,
    now: Timestamp,
    output: OutputFormat,
) -> Result<Restored, RestoreError> {
    if matches!(config.store, StoreChoice::Postgres(_)) {
        return Err(RestoreError::Postgres);
    }
    launch::check_data(&config.data)?;
    let target = launch::database(&config.data);
    let exists = fs::exists(&target).map_err(|cause| io_error("look for", &target, cause))?;
    if exists {
        return Err(RestoreError::Exists { path: target });
    }
    fs::File::open(backup).map_err(|cause| RestoreError::NoBackup { path: backup.to_owned(), cause })?;
    // In the data directory, so that the last step is a link within one file system; mode 0700; removed when dropped.
    remove_leftovers(&config.data);
    let workshop = tempfile::Builder::new().prefix(WORKSHOP).tempdir_in(&config.data);
    let workshop = workshop.map_err(|cause| io_error("make a directory in", &config.data, cause))?;
    let (from, draft) = (backup.to_owned(), workshop.path().join("draft.db"));
    let store = patiently(output, "copying and verifying the backup", async {
        let opening =
            tokio::task::spawn_blocking(move || SqliteStore::restore(&from, &draft, now, Options::default()));
        opening.await.map_err(|lost| RestoreError::Bug(lost.to_string()))
    });
    let store: Arc<dyn Store> = Arc::new(store.await??);
    check_identity(store.as_ref(), config, backup).await?;
    let (revoked_tokens, bundle) =
        patiently(output, "marking it as restored", mark(store.as_ref(), backup, now)).await?;
    let records = store.head().await?.position.0;
    let finished = workshop.path().join("finished.db");
    patiently(output, "writing the database", store.backup(&finished)).await?;
    drop(store);
    match fs::hard_link(&finished, &target) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
            return Err(RestoreError::Exists { path: target });
        }
        linked => linked.map_err(|cause| io_error("put into place", &target, cause))?,
    }
    let synced = fs::File::open(&config.data).and_then(|directory| directory.sync_all());
    synced.map_err(|cause| io_error("sync", &config.data, cause))?;
    Ok(Restored { database: target, records, revoked_tokens, bundle })
}

/// Removes what restores that were killed left behind. What cannot be removed harms nobody.
fn remove_leftovers(data: &Path) {
    for entry in fs::read_dir(data).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORKSHOP) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

pub(crate) async fn check_identity(
    store: &dyn Store,
    config: &Config,
    backup: &Path,
) -> Result<(), RestoreError> {
    let settings = store.documents(Kind::Setting, None, PAGE).await?;
    let identity = settings.iter().find_map(|document| document.read::<Identity>().ok());
    match identity {
        None => Err(RestoreError::NoIdentity { path: backup.to_owned() }),
        Some(found) if found.value.trust_domain == config.trust_domain => Ok(()),
        Some(found) => Err(RestoreError::OtherTrustDomain {
            path: backup.to_owned(),
            found: found.value.trust_domain,
            configured: config.trust_domain.clone(),
        }),
    }
}

/// Revokes outstanding tokens and raises the bundle's sequence, each with its record in the ledger.
pub(crate) async fn mark(
    store: &dyn Store,
    backup: &Path,
    now: Timestamp,
) -> Result<(usize, Option<(u64, u64)>), RestoreError> {
    let by = Principal::Local { uid: rustix::process::geteuid().as_raw(), user: None }.to_string();
    let revoked = revoke_tokens(store, &by, now).await?;
    let mut transaction = Transaction::named("restore");
    let bundle = raised_bundle(store, now).await?;
    if let Some((before, after)) = &bundle {
        transaction = transaction.require_unchanged(after.key(), before.version).put(after);
    }
    // Nodes hold lists with higher numbers than these; without them the server signs new ones before it serves, with
    // numbers of that second, above all that were ever given out.
    for crl in store.documents(Kind::Crl, None, PAGE).await? {
        transaction = transaction.require_unchanged(crl.key.clone(), crl.version).delete(crl.key);
    }
    let raised = bundle.map(|(before, after)| (before.value.sequence, after.sequence));
    let sequences = raised.map_or_else(String::new, |(from, to)| format!(", bundle sequence {from} -> {to}"));
    let event = Event::Changed {
        by,
        action: "store.restore".to_owned(),
        subject: backup.display().to_string(),
        detail: format!("{revoked} outstanding join tokens revoked{sequences}"),
    };
    let transaction = transaction.put(&Restore { restored_at: now });
    store.commit(transaction.record(Entry::new(now, &event))).await?;
    Ok((revoked, raised))
}

async fn revoke_tokens(store: &dyn Store, by: &str, now: Timestamp) -> Result<usize, RestoreError> {
    let mut revoked: usize = 0;
    let mut after: Option<String> = None;
    loop {
        let page = store.documents(Kind::Token, after.as_deref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(revoked) };
        after = Some(last.key.id.clone());
        let mut transaction = Transaction::named("restore: revoke tokens");
        for token in outstanding(&page)? {
            let event = Event::Changed {
                by: by.to_owned(),
                action: "token.revoke".to_owned(),
                subject: token.value.id.to_string(),
                detail: "outstanding when the store was restored from a backup".to_owned(),
            };
            transaction = transaction
                .require_unchanged(token.value.key(), token.version)
                .put(&token.value.revoked(by, now))
                .record(Entry::new(now, &event));
            revoked = revoked.saturating_add(1);
        }
        if !transaction.writes.is_empty() {
            store.commit(transaction).await?;
        }
    }
}

/// Tokens that somebody could still redeem, or may have redeemed after the backup was taken; and used ones, whose key
/// could retry although an administrator may have ended that since.
fn outstanding(page: &[Document]) -> Result<Vec<Versioned<JoinToken>>, BadDocument> {
    let mut found = Vec::new();
    for document in page {
        let token = document.read::<JoinToken>()?;
        if !matches!(token.value.state, TokenState::Revoked { .. }) {
            found.push(token);
        }
    }
    Ok(found)
}

/// The bundle as stored, and with a sequence above every one served since the backup: sequences start at 1 and grow by
/// one per change of roots, or were raised to the second of an earlier restore, so the present second is above them.
async fn raised_bundle(
    store: &dyn Store,
    now: Timestamp,
) -> Result<Option<(Versioned<BundleRecord>, BundleRecord)>, RestoreError> {
    let Some(document) = store.documents(Kind::Bundle, None, 1).await?.into_iter().next() else {
        return Ok(None);
    };
    let before = document.read::<BundleRecord>()?;
    let next = before.value.sequence.saturating_add(1);
    let sequence = next.max(u64::try_from(now.unix()).unwrap_or_default());
    let after = BundleRecord { sequence, ..before.value.clone() };
    Ok(Some((before, after)))
}

/// Keys that the restored authorities need and the key ring does not have.
async fn missing_keys(config: &Config, database: &Path) -> Result<Vec<String>, String> {
    let secrets = Secrets::gather(config).map_err(|error| error.to_string())?;
    let path = database.to_owned();
    let opening = tokio::task::spawn_blocking(move || SqliteStore::open(&path, Options::default()));
    let store = opening.await.map_err(|lost| lost.to_string())?.map_err(|error| error.to_string())?;
    let store: Arc<dyn Store> = Arc::new(store);
    let ring = secrets.open(config, Arc::clone(&store)).await.map_err(|error| error.to_string())?;
    let authorities =
        store.documents(Kind::Authority, None, PAGE).await.map_err(|error| error.to_string())?;
    let mut missing = Vec::new();
    for document in authorities {
        let authority =
            document.read::<rhizome_core::authority::Authority>().map_err(|error| error.to_string())?.value;
        if authority.custody == rhizome_core::authority::Custody::Elsewhere {
            continue;
        }
        if let Err(KeyRingError::NotFound { id }) = ring.key(&authority.key).await {
            missing.push(format!("{id} of {}", DocumentKey::new(Kind::Authority, authority.id.to_string())));
        }
    }
    let jwt = store.documents(Kind::JwtAuthority, None, PAGE).await.map_err(|error| error.to_string())?;
    for document in jwt {
        let authority = document.read::<JwtAuthority>().map_err(|error| error.to_string())?.value;
        let signs = matches!(authority.state, AuthorityState::Active | AuthorityState::Prepared);
        if signs && matches!(ring.key(&authority.key).await, Err(KeyRingError::NotFound { .. })) {
            let record = DocumentKey::new(Kind::JwtAuthority, authority.id.to_string());
            missing.push(format!("{} of {record}", authority.key));
        }
    }
    Ok(missing)
}

fn report(restored: &Restored, keys: &Result<Vec<String>, String>) -> String {
    let Restored { database, records, revoked_tokens, bundle } = restored;
    let mut text = format!("restored {}: {records} ledger records verified\n", database.display());
    text.push_str(&format!("outstanding join tokens revoked: {revoked_tokens}\n"));
    if let Some((before, after)) = bundle {
        text.push_str(&format!("bundle sequence raised: {before} -> {after}\n"));
    }
    match keys {
        Ok(missing) if missing.is_empty() => text.push_str("private keys: all there; start the server\n"),
        Ok(missing) => {
            for key in missing {
                text.push_str(&format!(
                    "private key missing: {key}; put the keys directory back before starting\n"
                ));
            }
        }
        Err(cause) => text.push_str(&format!("private keys not checked: {cause}\n")),
    }
    text
}

fn io_error(action: &'static str, path: &Path, cause: io::Error) -> RestoreError {
    RestoreError::Io { action, path: path.to_owned(), cause }
}

/// Waits for `work`, and says to people, on standard error, that it goes on once it has taken a second.
pub(crate) async fn patiently<T>(output: OutputFormat, doing: &str, work: impl Future<Output = T>) -> T {
    let watch = Stopwatch::start();
    tokio::pin!(work);
    let mut wait = PATIENCE;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(wait), if output == OutputFormat::Table => {
                drop(writeln!(io::stderr(), "{doing} … {} s", watch.elapsed().as_secs()));
                wait = REMIND;
            }
        }
    }
}
