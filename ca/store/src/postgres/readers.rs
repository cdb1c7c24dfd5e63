//! Reads: a few sessions that only read.
//!
//! Laws: a read never waits for the writer, and each statement sees one consistent state; a session that was lost is
//! replaced once, so that a database that restarted meanwhile is not noticed. While the fate of a commit is unknown
//! nothing is read: what is not there might still come. A read given up by its caller closes its session. Not here: what rows mean (`rows`).

use std::sync::{Arc, Mutex, PoisonError};

use rhizome_core::ports::StoreError;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::error::{translate, unavailable};
use super::link::{Link, Session};
use crate::limits::{POSTGRES_READERS, STATEMENT_PATIENCE};
use crate::rules::bug;

/// A parameter and its type, so that no statement needs preparing.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The pool.
#[derive(Debug)]
pub(super) struct Readers {
    link: Arc<Link>,
    idle: Mutex<Vec<Session>>,
    free: Semaphore,
}

impl Readers {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, idle: Mutex::default(), free: Semaphore::new(POSTGRES_READERS) }
    }

    /// Runs one statement that reads.
    pub(super) async fn query(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        self.link.check_settled()?;
        let permit = self.free.acquire().await;
        let _permit = permit.map_err(|closed| bug(format!("the readers are gone: {closed}")))?;
        if let Some(session) = self.take()
            && let Ok(rows) = self.ask(session, sql, parameters).await?
        {
            return Ok(rows);
        }
        let session = self.link.open().await?;
        self.ask(session, sql, parameters).await?.map_err(|Lost(error)| error)
    }

    async fn ask(
        &self,
        session: Session,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Result<Vec<Row>, Lost>, StoreError> {
        let asked = timeout(STATEMENT_PATIENCE, session.client.query_typed(sql, parameters)).await;
        let Ok(outcome) = asked else {
            return Err(unavailable("the database did not answer in time".to_owned()));
        };
        match outcome {
            Ok(rows) => {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
                Ok(Ok(rows))
            }
            Err(error) if session.client.is_closed() => Ok(Err(Lost(translate(error)))),
            Err(error) => Err(translate(error)),
        }
    }

    fn take(&self) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|session| !session.client.is_closed());
        idle.pop()
    }
}

/// The session was lost; nothing was read.
struct Lost(StoreError);
