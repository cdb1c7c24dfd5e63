//! A store that fails or stalls on demand: the tests' way to meet a full disk, a lost answer, an unknown outcome, and
//! whatever happens while a commit takes its time.
//!
//! Laws: what it does not fail it hands to the store below, unchanged. Not here: what a caller does about it.
//! Sources: ca/docs/attacks.md §1.3 (state durable before effect; fail the 1st, 2nd, … store call).

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rhizome_core::changes::Changes;
use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction, Version};
use rhizome_core::ledger::{Head, Position, Record};
use rhizome_core::ports::{Committed, Store, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use tokio::sync::oneshot;

use crate::limits::RETRY_AFTER;

/// When a commit or a reservation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing happened.
    Before,
    /// It happened, durably, but the caller is told that it failed: the unknown outcome.
    After,
}

/// A store that fails on demand.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    commits: u64,
    reservations: u64,
    failing_commits: Vec<(u64, Moment, StoreError)>,
    failing_reservations: Vec<(u64, Moment, StoreError)>,
    failing_reads: Option<StoreError>,
    failing_pages: Option<StoreError>,
    held_commits: Vec<(u64, Moment, Hold)>,
}

#[derive(Debug)]
struct Hold {
    reached: oneshot::Sender<()>,
    released: oneshot::Receiver<()>,
}

/// A commit that waits. Dropping this lets it go on.
#[derive(Debug)]
pub struct HeldCommit {
    reached: oneshot::Receiver<()>,
    _release: oneshot::Sender<()>,
}

impl HeldCommit {
    /// Waits until the commit has come to where it is held; `false` when it never will.
    pub async fn reached(&mut self) -> bool {
        (&mut self.reached).await.is_ok()
    }
}

impl<S: Store> FaultyStore<S> {
    /// A wrapper that fails nothing yet.
    pub fn new(inner: S) -> Self {
        Self { inner, plan: Mutex::default() }
    }

    /// The store below.
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Commits asked for so far, failed ones too.
    pub fn commits(&self) -> u64 {
        self.plan().commits
    }

    /// Makes the `nth` commit from now fail as unavailable; 1 is the next one.
    pub fn fail_commit(&self, nth: u64, moment: Moment) {
        self.fail_commit_with(nth, moment, unavailable());
    }

    /// Makes the `nth` commit from now fail with `error`; 1 is the next one.
    pub fn fail_commit_with(&self, nth: u64, moment: Moment, error: StoreError) {
        let mut plan = self.plan();
        let at = plan.commits.saturating_add(nth);
        plan.failing_commits.push((at, moment, error));
    }

    /// Makes the `nth` reservation of serials from now fail as unavailable; 1 is the next one.
    pub fn fail_reservation(&self, nth: u64, moment: Moment) {
        let mut plan = self.plan();
        let at = plan.reservations.saturating_add(nth);
        plan.failing_reservations.push((at, moment, unavailable()));
    }

    /// Makes the `nth` commit from now wait, before it happens or after it happened, until the answer of this is
    /// dropped; 1 is the next one.
    pub fn hold_commit(&self, nth: u64, moment: Moment) -> HeldCommit {
        let (reaching, reached) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let mut plan = self.plan();
        let at = plan.commits.saturating_add(nth);
        plan.held_commits.push((at, moment, Hold { reached: reaching, released }));
        HeldCommit { reached, _release: release }
    }

    /// Makes every read, backup and check fail with `error`, until it is set to `None`.
    pub fn fail_reads(&self, error: Option<StoreError>) {
        self.plan().failing_reads = error;
    }

    /// Makes every reading of more than one record of the ledger fail with `error`, until it is set to `None`.
    pub fn fail_pages(&self, error: Option<StoreError>) {
        self.plan().failing_pages = error;
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<&S, StoreError> {
        self.plan().failing_reads.clone().map_or(Ok(&self.inner), Err)
    }
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { cause: "a test made it fail".to_owned(), retry_after: RETRY_AFTER }
}

impl Hold {
    async fn wait(self) {
        // Nobody may be listening; and whoever held it lets go by dropping the other end.
        let _nobody = self.reached.send(());
        let _released = self.released.await;
    }
}

fn due(failing: &mut Vec<(u64, Moment, StoreError)>, now: u64) -> Option<(Moment, StoreError)> {
    let index = failing.iter().position(|(at, ..)| *at == now)?;
    let (_, moment, error) = failing.swap_remove(index);
    Some((moment, error))
}

#[async_trait]
impl<S: Store> Store for FaultyStore<S> {
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        let (fault, held) = {
            let mut plan = self.plan();
            plan.commits = plan.commits.saturating_add(1);
            let now = plan.commits;
            let held = plan.held_commits.iter().position(|(at, ..)| *at == now);
            let held = held.map(|index| plan.held_commits.swap_remove(index));
            (due(&mut plan.failing_commits, now), held.map(|(_, moment, hold)| (moment, hold)))
        };
        let (mut before, mut after) = (None, None);
        match held {
            Some((Moment::Before, hold)) => before = Some(hold),
            Some((Moment::After, hold)) => after = Some(hold),
            None => {}
        }
        if let Some(hold) = before {
            hold.wait().await;
        }
        let outcome = match fault {
            None => self.inner.commit(transaction).await,
            Some((Moment::Before, error)) => Err(error),
            Some((Moment::After, error)) => self.inner.commit(transaction).await.and(Err(error)),
        };
        if let Some(hold) = after {
            hold.wait().await;
        }
        outcome
    }

    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        self.read()?.document(key).await
    }

    async fn documents(
        &self,
        kind: Kind,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        self.read()?.documents(kind, after, limit).await
    }

    async fn records(&self, from: Position, limit: usize) -> Result<Vec<Record>, StoreError> {
        let failure = self.plan().failing_pages.clone().filter(|_| limit > 1);
        failure.map_or(Ok(()), Err)?;
        self.read()?.records(from, limit).await
    }

    async fn record_of_serial(&self, counter: SerialCounter) -> Result<Option<Record>, StoreError> {
        self.read()?.record_of_serial(counter).await
    }

    async fn head(&self) -> Result<Head, StoreError> {
        self.read()?.head().await
    }

    async fn reserve_serials(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError> {
        let fault = {
            let mut plan = self.plan();
            plan.reservations = plan.reservations.saturating_add(1);
            let at = plan.reservations;
            due(&mut plan.failing_reservations, at)
        };
        match fault {
            None => self.inner.reserve_serials(count, now).await,
            Some((Moment::Before, error)) => Err(error),
            Some((Moment::After, error)) => self.inner.reserve_serials(count, now).await.and(Err(error)),
        }
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn newest_version(&self) -> Result<Version, StoreError> {
        self.read()?.newest_version().await
    }

    async fn changes(&self, since: Version, limit: usize) -> Result<Changes, StoreError> {
        self.read()?.changes(since, limit).await
    }

    async fn wait_for_change(&self, known: Version) {
        self.inner.wait_for_change(known).await;
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        self.read()?.backup(to).await
    }

    async fn check_integrity(&self) -> Result<(), StoreError> {
        self.read()?.check_integrity().await
    }
}
