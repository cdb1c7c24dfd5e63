//! What agents say that they serve, written down for the other servers that share the store.
//!
//! Laws: only while the root is changed, and only where there are other servers: presence is no evidence, and nobody else
//! needs it. What is written is what was said over a stream that is open now, and of whoever has said nothing yet, that its
//! stream is. Whoever acknowledges meanwhile costs the others of its batch nothing. Nobody waits for it; what could not be
//! written is written the next time. When it was written counts by the clock of whoever reads: a report is new when it is
//! another one than at the last look, whatever the writer's clock says.
//! Not here: what follows from it (`rotate_root_world`), acknowledgements (`acknowledge`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::documents::{Stored as _, Transaction, Version};
use rhizome_core::limits::{ROTATION_SKEW_SECONDS, WITHIN_REACH_SECONDS};
use rhizome_core::ports::StoreError;
use rhizome_core::rotation::Phase;
use rhizome_core::state::{ServedReport, State, Subscriber};
use rhizome_id::Timestamp;

use crate::ca::Ca;
use crate::error::ApiError;
use crate::rotate_root_world::served_by_key;

/// Between two writings: three of them fit into `WITHIN_REACH_SECONDS`.
const EVERY: Duration = Duration::from_secs(30);
/// Reports in one transaction.
const BATCH: usize = 256;
/// How often a batch is tried again without somebody who has changed meanwhile.
const TRIES: usize = 16;

/// When other servers were last seen to reach whom.
#[derive(Debug, Default)]
pub(crate) struct Sightings(BTreeMap<String, Sighting>);

#[derive(Debug)]
struct Sighting {
    /// When its stream was last seen open, by the clock of whoever wrote it.
    written: Timestamp,
    /// When this was first read here, by the clock of this server; `None`: it was old already.
    read: Option<Timestamp>,
}

impl Sightings {
    /// Who is within reach of some other server at `now`, as `state` and earlier looks show it.
    pub(crate) fn within_reach(&mut self, state: &State, now: Timestamp) -> BTreeSet<String> {
        let reports = state.subscribers().values().map(|it| &*it.value);
        self.look(reports.filter_map(|it| Some((it.principal.as_str(), it.report.as_ref()?.seen_at))), now)
    }

    fn look<'s>(
        &mut self,
        seen: impl Iterator<Item = (&'s str, Timestamp)>,
        now: Timestamp,
    ) -> BTreeSet<String> {
        let mut next = BTreeMap::new();
        for (name, written) in seen {
            let read = match self.0.get(name) {
                Some(known) if known.written == written => known.read,
                Some(_) => Some(now),
                // Read for the first time: nobody knows how old it is, but for what both clocks may be off.
                None => {
                    let apart = now.since(written).saturating_abs();
                    let recent = apart <= WITHIN_REACH_SECONDS.saturating_add(ROTATION_SKEW_SECONDS);
                    recent.then_some(now)
                }
            };
            next.insert(name.to_owned(), Sighting { written, read });
        }
        self.0 = next;
        let near = |it: &Sighting| it.read.is_some_and(|read| now.since(read) <= WITHIN_REACH_SECONDS);
        self.0.iter().filter(|(_, it)| near(it)).map(|(name, _)| name.clone()).collect()
    }
}

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
            let Some(known) = state.subscribers().get(&who) else { continue };
            let said = present.reported_at.map(|said_at| ServedReport {
                issuers: served_by_key(&present.serves),
                with_own: present.with_own,
                said_at,
                seen_at: now,
            });
            // What it said over an earlier stream stays said; whoever has said nothing says nothing, and is there.
            let before = known.value.report.clone().unwrap_or_else(|| ServedReport::silent(now));
            let report = said.unwrap_or(ServedReport { seen_at: now, ..before });
            let next = Subscriber { report: Some(report), ..Subscriber::clone(&known.value) };
            writes.push((known.version, next));
        }
        for batch in writes.chunks(BATCH) {
            self.write_batch_of_reports(batch.to_vec()).await?;
        }
        Ok(())
    }

    /// Who has acknowledged meanwhile is left for the next time.
    async fn write_batch_of_reports(
        self: &Arc<Self>,
        mut batch: Vec<(Version, Subscriber)>,
    ) -> Result<(), ApiError> {
        for _ in 0..TRIES {
            let put = |transaction: Transaction, (version, next): &(Version, Subscriber)| {
                transaction.require_unchanged(next.key(), *version).put(next)
            };
            let Err(cause) = self.commit(batch.iter().fold(Transaction::named("write reports"), put)).await
            else {
                return Ok(());
            };
            let StoreError::Conflict { key } = &cause else { return Err(cause.into()) };
            let all = batch.len();
            batch.retain(|(_, next)| next.key() != *key);
            if batch.is_empty() || batch.len() == all {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(2_000_000_000).plus(seconds)
    }

    #[test]
    fn whoever_another_server_writes_down_is_within_reach_however_wrong_that_servers_clock_is() {
        for wrong in [-600, 0, 600] {
            let mut sightings = Sightings::default();
            let mut reached = |written: i64, now: i64| {
                let seen = [("node:a", at(written + wrong))].into_iter();
                !sightings.look(seen, at(now)).is_empty()
            };
            assert!(reached(0, 0) && reached(30, 31) && reached(60, 61), "{wrong}");
            assert!(reached(60, 61 + WITHIN_REACH_SECONDS), "{wrong}");
            assert!(!reached(60, 62 + WITHIN_REACH_SECONDS), "its server has stopped writing: {wrong}");
            assert!(reached(400, 401), "it is back: {wrong}");
        }
    }

    #[test]
    fn what_was_written_long_ago_or_by_a_clock_that_nobody_believes_reaches_nobody() {
        for written in [-86_400, 86_400] {
            let mut sightings = Sightings::default();
            let mut reached =
                |now: i64| !sightings.look([("node:a", at(written))].into_iter(), at(now)).is_empty();
            assert!(!reached(0) && !reached(2), "{written}");
        }
    }
}
