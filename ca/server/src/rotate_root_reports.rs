//! What agents say that they serve, written down for the other servers that share the store.
//!
//! Laws: only while the root is changed, and only where there are other servers: presence is no evidence, and nobody else
//! needs it. What is written is what was said over a stream that is open now. Nobody waits for it; what could not be
//! written is written the next time.
//! Not here: what follows from it (`rotate_root_world`), acknowledgements (`acknowledge`).

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::documents::{Stored as _, Transaction};
use rhizome_core::ports::StoreError;
use rhizome_core::rotation::Phase;
use rhizome_core::state::{ServedReport, Subscriber};

use crate::ca::Ca;
use crate::error::ApiError;
use crate::rotate_root_world::served_by_key;

/// Between two writings: three of them fit into `WITHIN_REACH_SECONDS`.
const EVERY: Duration = Duration::from_secs(30);
/// Reports in one transaction.
const BATCH: usize = 256;

impl Ca {
    /// Writes what connected agents serve, while a change of the root is under way.
    pub(crate) async fn pass_reports_on(self: Arc<Self>) {
        if !self.ports.store.is_shared() {
            return;
        }
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let underway = self.state().rotation().is_some_and(|it| it.value.phase != Phase::Stable);
            if underway {
                if let Err(cause) = self.write_reports().await {
                    tracing::warn!(%cause, "what agents serve could not be written down; trying again");
                }
                tokio::time::sleep(EVERY).await;
                continue;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn write_reports(self: &Arc<Self>) -> Result<(), ApiError> {
        let (state, now) = (self.state(), self.now()?);
        let mut writes = Vec::new();
        for (who, present) in self.presence.all() {
            let (Some(known), Some(said_at)) = (state.subscribers().get(&who), present.reported_at) else {
                continue;
            };
            let report = ServedReport { issuers: served_by_key(&present.serves), said_at, seen_at: now };
            let next = Subscriber { report: Some(report), ..Subscriber::clone(&known.value) };
            writes.push((known.version, next));
        }
        for batch in writes.chunks(BATCH) {
            let mut transaction = Transaction::named("write reports");
            for (version, next) in batch {
                transaction = transaction.require_unchanged(next.key(), *version).put(next);
            }
            match self.commit(transaction).await {
                // Somebody acknowledged meanwhile: the next time.
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }
}
