//! Requests: how callers reach the one writer of a store, and what it takes on at once.
//!
//! Laws: what no store may keep is refused here, before it is queued; a caller that goes away after its request was
//! queued does not undo it; whoever comes while the queue is full waits at the door.
//! Not here: what a writer does with them (each backend), how they are answered (`answers`).
//! Sources: ca/docs/performance.md (a batch, not a timer).

use std::sync::atomic::{AtomicU64, Ordering};

use rhizome_core::documents::Transaction;
use rhizome_core::ports::{Committed, StoreError};
use rhizome_id::{SerialCounter, Timestamp};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::answers::Waiting;
use crate::limits::{BATCH_BYTES, BATCH_REQUESTS, QUEUE};
use crate::rules::{self, bug};

/// What the writer is asked, who waits for the answer, and on which runtime.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) work: Work,
    pub(crate) waiting: Waiting,
    pub(crate) runtime: Option<Handle>,
}

#[derive(Debug)]
pub(crate) enum Work {
    Commit(Transaction),
    Reserve { count: u32, now: Timestamp },
}

/// The callers' end of the queue.
#[derive(Debug)]
pub(crate) struct Queue {
    requests: Option<mpsc::Sender<Request>>,
}

impl Queue {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        (Self { requests: Some(requests) }, receiver)
    }

    /// Requests that may still be sent before callers wait.
    pub(crate) fn room(&self) -> usize {
        self.requests.as_ref().map_or(0, mpsc::Sender::capacity)
    }

    /// Lets the writer end once it has finished what is queued.
    pub(crate) fn close(&mut self) {
        drop(self.requests.take());
    }

    pub(crate) async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        rules::check(&transaction)?;
        self.ask(Work::Commit(transaction), Waiting::Commit).await
    }

    pub(crate) async fn reserve(&self, count: u32, now: Timestamp) -> Result<SerialCounter, StoreError> {
        self.ask(Work::Reserve { count, now }, Waiting::Reserve).await
    }

    async fn ask<T>(
        &self,
        work: Work,
        waiting: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Waiting,
    ) -> Result<T, StoreError> {
        let (sender, answer) = oneshot::channel();
        let request = Request { work, waiting: waiting(sender), runtime: Handle::try_current().ok() };
        let gone = || bug("the writer has stopped; see the log, and restart the server".to_owned());
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request).await.map_err(|_unsent| gone())?;
        answer.await.map_err(|_dropped| gone())?
    }
}

/// How much a writer has done since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: AtomicU64,
    batches: AtomicU64,
    failed_batches: AtomicU64,
}

impl Counts {
    /// Counts a batch that is about to be written.
    pub(crate) fn begun(&self, batch: &[Request]) {
        let requests = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a batch that was not written, or whose fate is unknown.
    pub(crate) fn failed(&self) {
        self.failed_batches.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn statistics(&self, queue: &Queue) -> Statistics {
        Statistics {
            requests: self.requests.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            failed_batches: self.failed_batches.load(Ordering::Relaxed),
            queue_room: queue.room(),
        }
    }
}

/// How much a store has written since it was opened. `requests / batches` is how many callers shared one sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Commits and reservations, also those that were refused.
    pub requests: u64,
    /// Durable writes.
    pub batches: u64,
    /// Durable writes that failed.
    pub failed_batches: u64,
    /// Requests that may still be sent before callers wait: the queue's free room.
    pub queue_room: usize,
}

/// `first` and whatever waits behind it, as far as one durable write goes.
pub(crate) fn gather(first: Request, requests: &mut mpsc::Receiver<Request>) -> Vec<Request> {
    let mut bytes = weight(&first);
    let mut batch = vec![first];
    while batch.len() < BATCH_REQUESTS && bytes < BATCH_BYTES {
        let Ok(next) = requests.try_recv() else { break };
        bytes = bytes.saturating_add(weight(&next));
        batch.push(next);
    }
    batch
}

fn weight(request: &Request) -> usize {
    match &request.work {
        Work::Commit(transaction) => rules::weight(transaction),
        Work::Reserve { .. } => 0,
    }
}
