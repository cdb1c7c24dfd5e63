//! Reads: a few connections that only read, on threads that may block.
//!
//! Laws: a read never blocks the runtime and never waits for the writer; each sees one consistent state. A reader
//! given up by its caller finishes on its own and returns its connection.
//! Not here: what rows mean (`rows`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rhizome_core::ports::StoreError;
use rusqlite::Connection;
use tokio::sync::Semaphore;
use tokio::task;

use super::Options;
use super::schema::open_reader;
use crate::limits::READERS;
use crate::rules::bug;

/// The pool. A connection is opened when it is first needed, and again should one be lost.
#[derive(Clone, Debug)]
pub(super) struct Readers {
    path: PathBuf,
    options: Options,
    idle: Arc<Mutex<Vec<Connection>>>,
    free: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf, options: Options) -> Self {
        Self { path, options, idle: Arc::default(), free: Arc::new(Semaphore::new(READERS)) }
    }

    /// Runs `query` with a connection of its own.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.free).acquire_owned().await;
        let permit = permit.map_err(|closed| bug(format!("the readers are gone: {closed}")))?;
        let readers = self.clone();
        let work = task::spawn_blocking(move || {
            let connection = readers.take()?;
            let found = query(&connection);
            readers.give_back(connection);
            drop(permit);
            found
        });
        work.await.map_err(|lost| bug(format!("a reader stopped: {lost}")))?
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| open_reader(&self.path, &self.options), Ok)
    }

    fn give_back(&self, connection: Connection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}
