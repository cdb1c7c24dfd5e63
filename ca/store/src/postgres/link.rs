//! The link to the database: dialling, what every session is set to, and when not to dial.
//!
//! Laws: a session is set up whole or closed; every statement has an end, on both sides, so that a database that
//! hangs holds nobody for ever; a transaction that its owner left open is ended by the database, so that a server that
//! was stopped in the middle holds others up for seconds only. Connections live on the store's own runtime.
//! Not here: what is asked (`writer`, `readers`, `schema`).
//! Sources: postgresql.org/docs/15/runtime-config-client.html, runtime-config-connection.html.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::stream::{self, Stream, StreamExt as _};
use rhizome_core::ports::StoreError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::backoff::Backoff;
use super::error::{translate, unavailable, unavailable_for};
use super::options::PostgresOptions;
use crate::limits::{IDLE_IN_TRANSACTION, LOCK_TIMEOUT, SESSION_TIMEOUT, STATEMENT_TIMEOUT};

/// Dials one database.
pub(super) struct Link {
    options: PostgresOptions,
    runtime: Handle,
    tries: Mutex<Tries>,
    /// A commit may still be on its way of which nobody knows whether it will be.
    unsettled: AtomicBool,
}

#[derive(Debug, Default)]
struct Tries {
    backoff: Backoff,
    last: String,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A connection that is set up. Dropping it closes it at once.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    task: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<AsyncMessage, tokio_postgres::Error>> + Send>>;

impl Link {
    /// A link that dials on `runtime`.
    pub(super) fn new(options: PostgresOptions, runtime: Handle) -> Self {
        Self { options, runtime, tries: Mutex::default(), unsettled: AtomicBool::new(false) }
    }

    pub(super) const fn options(&self) -> &PostgresOptions {
        &self.options
    }

    /// The name that notifications of this store go by.
    pub(super) fn channel(&self) -> String {
        format!("rhizome_{}", self.options.schema)
    }

    /// Notes that the fate of a commit is unknown: until it has ended nobody may take "not there" for "never will be".
    pub(super) fn unsettle(&self) {
        self.unsettled.store(true, Ordering::Release);
    }

    /// Notes that no commit of ours is on its way: the lock of the head row is ours.
    pub(super) fn settle(&self) {
        self.unsettled.store(false, Ordering::Release);
    }

    /// # Errors
    /// [`StoreError::Unavailable`] while the fate of a commit is unknown.
    pub(super) fn check_settled(&self) -> Result<(), StoreError> {
        if self.unsettled.load(Ordering::Acquire) {
            return Err(unavailable("what became of the last commit is not known yet".to_owned()));
        }
        Ok(())
    }

    /// A new session.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], at once while the database was away a moment ago.
    pub(super) async fn open(&self) -> Result<Session, StoreError> {
        self.open_hearing(None).await
    }

    /// A new session whose notifications go to `heard`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) async fn open_hearing(&self, heard: Option<mpsc::Sender<()>>) -> Result<Session, StoreError> {
        {
            let tries = self.tries();
            let wait = tries.backoff.wait(Instant::now());
            if !wait.is_zero() {
                return Err(unavailable_for(tries.last.clone(), wait));
            }
        }
        let dialled = timeout(SESSION_TIMEOUT, self.dial(heard)).await;
        let outcome =
            dialled.unwrap_or_else(|_late| Err(unavailable("no answer from the database".to_owned())));
        let mut tries = self.tries();
        match outcome {
            Ok(session) => {
                tries.backoff.succeeded();
                Ok(session)
            }
            Err(error) => {
                tries.backoff.failed(Instant::now(), self.draw());
                tries.last = if let StoreError::Unavailable { cause, .. } = &error {
                    cause.clone()
                } else {
                    error.to_string()
                };
                Err(error)
            }
        }
    }

    /// A number that differs from server to server.
    fn draw(&self) -> u64 {
        let mut bytes = [0; 8];
        match self.options.entropy.fill(&mut bytes) {
            Ok(()) => u64::from_le_bytes(bytes),
            Err(_none) => 0,
        }
    }

    fn tries(&self) -> MutexGuard<'_, Tries> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(&self, heard: Option<mpsc::Sender<()>>) -> Result<Session, StoreError> {
        let config = self.options.dialling().map_err(unavailable)?;
        let (client, messages) = match &self.options.tls {
            Some(tls) => {
                let tls = MakeRustlsConnect::new(rustls::ClientConfig::clone(tls));
                connect(&config, tls, &self.runtime).await?
            }
            None => connect(&config, NoTls, &self.runtime).await?,
        };
        let task = self.runtime.spawn(drive(messages, heard));
        let session = Session { client, task };
        session.client.batch_execute(&self.settings()).await.map_err(translate)?;
        Ok(session)
    }

    fn settings(&self) -> String {
        let schema = &self.options.schema;
        format!(
            "SET search_path = \"{schema}\", pg_temp; SET client_min_messages = warning; SET client_encoding = 'UTF8'; \
             SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
             SELECT set_config('synchronous_commit', 'on', false) \
             WHERE current_setting('synchronous_commit') = 'off'",
            STATEMENT_TIMEOUT.as_millis(),
            LOCK_TIMEOUT.as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
        )
    }
}

async fn connect<T>(config: &Config, tls: T, runtime: &Handle) -> Result<(Client, Messages), StoreError>
where
    T: tokio_postgres::tls::MakeTlsConnect<tokio_postgres::Socket> + Send + 'static,
    T::TlsConnect: Send,
    T::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    <T::TlsConnect as tokio_postgres::tls::TlsConnect<tokio_postgres::Socket>>::Future: Send,
{
    // Sockets belong to the runtime that made them: the store's, which outlives whoever asked.
    let config = config.clone();
    let dialled = runtime.spawn(async move { config.connect(tls).await });
    let (client, connection) = match dialled.await {
        Ok(outcome) => outcome.map_err(translate)?,
        Err(lost) => return Err(unavailable(format!("dialling stopped: {lost}"))),
    };
    Ok((client, messages(connection)))
}

fn messages<S, T>(mut connection: Connection<S, T>) -> Messages
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::pin(stream::poll_fn(move |context| connection.poll_message(context)))
}

/// Moves bytes until the connection ends.
async fn drive(mut messages: Messages, heard: Option<mpsc::Sender<()>>) {
    while let Some(message) = messages.next().await {
        match message {
            Ok(AsyncMessage::Notification(_)) => {
                // Full: whoever listens will look anyway.
                if let Some(heard) = &heard {
                    let _full_or_gone = heard.try_send(());
                }
            }
            Ok(AsyncMessage::Notice(notice)) => {
                tracing::debug!(message = notice.message(), "PostgreSQL notes")
            }
            Ok(_) => {}
            Err(cause) => {
                tracing::debug!(cause = %translate(cause), "a connection to the database ended");
                return;
            }
        }
    }
}
