//! Acknowledgements of the bundle, kept durably, many in one write: a bundle that is pushed to ten thousand nodes is
//! acknowledged by all of them in the same second.
//!
//! Laws: an acknowledgement counts only for the bundle that is published: right sequence, right digest. Whoever comes
//! first writes for everybody who waits by then (a batch, not a timer), after whatever is runnable, so that a bundle goes
//! out to the others first. It belongs to a node on record: one that was evicted while it spoke leaves nothing behind.
//! Nobody is answered before the write is durable, and a node that changed meanwhile costs its batch one more try.
//! Not here: the streams that bring them (`api::sync`, `api::bundles`). Sources: ca/docs/performance.md.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhizome_core::documents::{DocumentKey, Kind, Stored as _, Transaction, Versioned};
use rhizome_core::nodes::NodeRecord;
use rhizome_core::ports::StoreError;
use rhizome_core::state::{State, Subscriber};
use rhizome_proto::ca::v1 as wire;
use tokio::sync::oneshot;

use crate::api::convert;
use crate::ca::Ca;
use crate::error::{ApiError, AuthError, IssueError};

/// How often an acknowledgement is tried again when its node renews at the same moment.
const TRIES: usize = 4;
/// Acknowledgements in one write.
const BATCH: usize = 256;

/// Acknowledgements that wait to be written.
#[derive(Default)]
pub(crate) struct Acknowledgements(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    /// Whether somebody writes, and will look here again.
    writing: bool,
    queue: Vec<Acknowledged>,
}

struct Acknowledged {
    subscriber: Subscriber,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Acknowledgements {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; whether nobody writes yet, so that whoever adds it must.
    fn add(&self, one: Acknowledged) -> bool {
        let mut waiting = self.waiting();
        waiting.queue.push(one);
        !std::mem::replace(&mut waiting.writing, true)
    }

    /// What is to be written next; nothing ends the turn of whoever asks.
    fn next_batch(&self) -> Vec<Acknowledged> {
        let mut waiting = self.waiting();
        let many = waiting.queue.len().min(BATCH);
        waiting.writing = many > 0;
        waiting.queue.drain(..many).collect()
    }
}

impl Acknowledged {
    fn tell(self, outcome: Result<(), StoreError>) {
        // Whoever has gone need not know.
        drop(self.answer.send(outcome));
    }

    /// The node that must not have changed.
    fn node(&self) -> DocumentKey {
        DocumentKey::new(Kind::Node, node_id(&self.subscriber).unwrap_or_default())
    }

    fn stands_on(&self, key: &DocumentKey) -> bool {
        self.node() == *key || self.subscriber.key() == *key
    }
}

/// The turn of whoever writes. Should it panic, whoever waits is told so and the next one writes.
struct Turn<'a> {
    of: &'a Acknowledgements,
    over: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.over {
            *self.of.waiting() = Waiting::default();
        }
    }
}

fn node_id(subscriber: &Subscriber) -> Option<&str> {
    subscriber.principal.strip_prefix("node:")
}

fn node_of<'a>(state: &'a State, subscriber: &Subscriber) -> Option<&'a Versioned<Arc<NodeRecord>>> {
    state.node_of(&subscriber.principal)
}

fn is_kept(state: &State, subscriber: &Subscriber) -> bool {
    let known = state.subscribers().get(&subscriber.principal);
    known.is_some_and(|it| (it.value.sequence, it.value.digest) == (subscriber.sequence, subscriber.digest))
}

/// One write of all that need it. The others are answered: what is kept already, and whoever looks again by itself,
/// because its node is not on record any more or it is here twice.
fn together(state: &State, batch: Vec<Acknowledged>) -> (Transaction, Vec<Acknowledged>) {
    let mut transaction = Transaction::named("acknowledge bundle");
    let (mut writes, mut seen) = (Vec::new(), BTreeSet::new());
    for one in batch {
        if is_kept(state, &one.subscriber) {
            one.tell(Ok(()));
            continue;
        }
        match node_of(state, &one.subscriber).filter(|_| seen.insert(one.subscriber.principal.clone())) {
            Some(node) => {
                let known = state.subscribers().get(&one.subscriber.principal);
                let report = known.and_then(|it| it.value.report.clone());
                let next = Subscriber { report, ..one.subscriber.clone() };
                // What another server wrote meanwhile of what it serves is not put back to what it was.
                if let Some(known) = known.filter(|_| next.report.is_some()) {
                    transaction = transaction.require_unchanged(next.key(), known.version);
                }
                transaction = transaction.require_unchanged(node.value.key(), node.version).put(&next);
                writes.push(one);
            }
            None => {
                let key = one.node();
                one.tell(Err(StoreError::Conflict { key }));
            }
        }
    }
    (transaction, writes)
}

impl Ca {
    /// Keeps durably that `who` has the published bundle in force. An acknowledgement of an older bundle is late, not
    /// wrong, and changes nothing; one of a bundle that was never published is refused.
    pub(crate) async fn acknowledge(
        self: &Arc<Self>,
        who: &str,
        acknowledgement: &wire::BundleAcknowledgement,
    ) -> Result<(), ApiError> {
        let digest = convert::read_digest("digest", &acknowledgement.digest)?;
        let bundle = self.bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let published = &bundle.bundle;
        if acknowledgement.sequence < published.sequence() {
            return Ok(());
        }
        if acknowledgement.sequence != published.sequence() || digest != published.digest() {
            let problem = format!(
                "bundle {} with digest {digest} is not the published one ({}, {}); fetch the bundle again",
                acknowledgement.sequence,
                published.sequence(),
                published.digest(),
            );
            return Err(ApiError::Invalid { field: "acknowledgement", problem });
        }
        let at = self.ports.clock.now();
        let subscriber = Subscriber {
            principal: who.to_owned(),
            sequence: published.sequence(),
            digest,
            at,
            report: None,
        };
        for _ in 0..TRIES {
            match self.write_with_others(subscriber.clone()).await {
                // Its node has changed, or is gone.
                Err(StoreError::Conflict { .. }) => {}
                outcome => return Ok(outcome?),
            }
            if node_of(&self.state(), &subscriber).is_none() {
                return Err(AuthError::Unknown { who: who.to_owned() }.into());
            }
        }
        Ok(self.write_with_others(subscriber).await?)
    }

    async fn write_with_others(self: &Arc<Self>, subscriber: Subscriber) -> Result<(), StoreError> {
        let (answer, outcome) = oneshot::channel();
        let first = self.acknowledgements.add(Acknowledged { subscriber, answer });
        if first {
            let ca = Arc::clone(self);
            self.spawner.spawn("write acknowledgements", async move { ca.write_acknowledgements().await });
        }
        let lost = || StoreError::Bug { cause: "writing acknowledgements panicked".to_owned() };
        outcome.await.unwrap_or_else(|_panicked| Err(lost()))
    }

    async fn write_acknowledgements(self: &Arc<Self>) {
        let mut turn = Turn { of: &self.acknowledgements, over: false };
        loop {
            // Whatever can go on goes on first: the bundle on its way to others, and others' acknowledgements.
            tokio::task::yield_now().await;
            let batch = self.acknowledgements.next_batch();
            turn.over = batch.is_empty();
            if turn.over {
                return;
            }
            self.write_batch(batch).await;
        }
    }

    /// Writes a batch. Whose node has changed meanwhile is told so; the others are tried again.
    async fn write_batch(self: &Arc<Self>, mut batch: Vec<Acknowledged>) {
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            let (transaction, writes) = together(&self.state(), batch);
            batch = writes;
            if batch.is_empty() {
                return;
            }
            outcome = self.commit(transaction).await.map(drop);
            let Err(StoreError::Conflict { key }) = &outcome else { break };
            let (changed, others) = batch.into_iter().partition(|one| one.stands_on(key));
            batch = others;
            let changed: Vec<Acknowledged> = changed;
            changed.into_iter().for_each(|one| one.tell(outcome.clone()));
        }
        batch.into_iter().for_each(|one| one.tell(outcome.clone()));
    }
}
