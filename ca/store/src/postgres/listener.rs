//! The listener: one session that hears when anybody has written documents, and forgets the tombstones of old ones.
//!
//! Laws: what is heard is only a reason to look; whoever was not heard is found by looking, so a lost notification
//! costs time and nothing else. After the session was lost everybody looks. Not here: looking (`mod`).
//! Sources: postgresql.org/docs/15/sql-notify.html.

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::ports::StoreError;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::types::Type;

use super::error::{translate, unavailable};
use super::link::{Link, Session};
use super::rows::{self, HEAD};
use crate::limits::{FORGET_EACH, RETRY_AFTER, STATEMENT_PATIENCE, TOMBSTONES_KEPT};

/// Between two sessions, so that a database that ends each one is not dialled without rest.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens until nobody waits any more. `newest` holds the newest version heard of.
pub(super) async fn listen(link: Arc<Link>, newest: watch::Sender<u64>) {
    // Whoever opened the store has just done it.
    let mut forgot_at = None;
    while !newest.is_closed() {
        let (heard, mut notifications) = mpsc::channel(1);
        match begin(&link, heard).await {
            Ok(session) => {
                if let Err(cause) = follow(&session, &newest, &mut notifications, &mut forgot_at).await {
                    tracing::warn!(%cause, "cannot hear of other servers' changes; trying again");
                }
                sleep(PAUSE).await;
            }
            Err(StoreError::Unavailable { retry_after, .. }) => sleep(retry_after).await,
            Err(cause) => {
                tracing::warn!(%cause, "cannot hear of other servers' changes; trying again");
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

async fn begin(link: &Link, heard: mpsc::Sender<()>) -> Result<Session, StoreError> {
    let session = link.open_hearing(Some(heard)).await?;
    // The name is plain (see `options::check_schema`), and PostgreSQL takes none as a parameter.
    let listen = format!("LISTEN {}", link.channel());
    let asked = timeout(STATEMENT_PATIENCE, session.client.batch_execute(&listen)).await;
    let late = |_late| unavailable("the database did not answer in time".to_owned());
    asked.map_err(late)?.map_err(translate)?;
    Ok(session)
}

/// Tells the newest version, now and after every notification, until the session is lost or nobody waits.
async fn follow(
    session: &Session,
    newest: &watch::Sender<u64>,
    notifications: &mut mpsc::Receiver<()>,
    forgot_at: &mut Option<u64>,
) -> Result<(), StoreError> {
    loop {
        let asked = timeout(STATEMENT_PATIENCE, session.client.query_typed(HEAD, &[])).await;
        let late = |_late| unavailable("the database did not answer in time".to_owned());
        let head = rows::head(&asked.map_err(late)?.map_err(translate)?)?;
        // It falls, too, when a standby took over that lacked the last commits.
        newest.send_if_modified(|known| {
            let differs = head.version.0 != *known;
            *known = head.version.0;
            differs
        });
        let last = *forgot_at.get_or_insert(head.version.0);
        if head.version.0.saturating_sub(last) >= FORGET_EACH {
            let forgotten = timeout(STATEMENT_PATIENCE, forget(session)).await.map_err(late)??;
            if forgotten > 0 {
                tracing::info!(forgotten, "tombstones were forgotten");
            }
            *forgot_at = Some(head.version.0);
        }
        tokio::select! {
            heard = notifications.recv() => if heard.is_none() {
                return Ok(());
            },
            () = newest.closed() => return Ok(()),
        }
    }
}

/// Forgets tombstones that nobody can be waiting for any more: a server that was away for longer reads everything anew.
pub(super) async fn forget(session: &Session) -> Result<u64, StoreError> {
    let client = &session.client;
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await.map_err(translate)?;
    let sql = format!("{HEAD} FOR UPDATE");
    let head = rows::head(&client.query_typed(&sql, &[]).await.map_err(translate)?)?;
    let before = rows::signed(head.version.0.saturating_sub(TOMBSTONES_KEPT))?;
    let forget = "DELETE FROM documents WHERE body IS NULL AND version <= $1";
    let gone = client.execute_typed(forget, &[(&before, Type::INT8)]).await.map_err(translate)?;
    if gone > 0 {
        let sql = "UPDATE head SET forgotten = greatest(forgotten, $1) WHERE one = 1";
        client.execute_typed(sql, &[(&before, Type::INT8)]).await.map_err(translate)?;
    }
    client.batch_execute("COMMIT").await.map_err(translate)?;
    Ok(gone)
}
