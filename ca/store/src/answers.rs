//! Answers: from a writer's thread back to those who wait.
//!
//! Laws: nobody is answered before the batch is durable; a caller that went away is skipped. Each runtime is woken
//! once per batch: waking a task from another thread costs a system call, so the answers of a runtime travel together
//! and wake its tasks from within (256 waiters on one thread: 1 write to its event file instead of 256).
//! Not here: what the answers are.

use rhizome_core::documents::Version;
use rhizome_core::ledger::{Receipt, Record};
use rhizome_core::ports::{Committed, StoreError};
use rhizome_id::SerialCounter;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::requests::{Request, Work};
use crate::rules::bug;

/// Who waits for a commit, or for serials.
#[derive(Debug)]
pub(crate) enum Waiting {
    Commit(oneshot::Sender<Result<Committed, StoreError>>),
    Reserve(oneshot::Sender<Result<SerialCounter, StoreError>>),
}

/// What became of one request, to be told once the batch is durable.
#[derive(Debug)]
pub(crate) enum Outcome {
    Applied { version: Version, records: Vec<Record> },
    Reserved(SerialCounter),
    Refused(StoreError),
}

/// The answers of one batch, by the runtime that waits for them.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    runtimes: Vec<(Handle, Vec<Answer>)>,
}

impl Answers {
    /// Adds what became of `request`. Where no runtime waits, it is told at once.
    pub(crate) fn add(&mut self, request: Request, outcome: Outcome) {
        let Request { work, waiting, runtime } = request;
        let answer = Answer { waiting, outcome, _done: work };
        let Some(runtime) = runtime else { return answer.give() };
        // As many runtimes as there are cores, at most.
        match self.runtimes.iter_mut().find(|(known, _)| known.id() == runtime.id()) {
            Some((_, answers)) => answers.push(answer),
            None => self.runtimes.push((runtime, vec![answer])),
        }
    }

    /// Gives every answer. Tasks that a runtime no longer runs are told nothing; they are gone.
    pub(crate) fn send(self) {
        for (runtime, answers) in self.runtimes {
            let alone = answers.len() == 1;
            let give_all = || answers.into_iter().for_each(Answer::give);
            if alone {
                give_all();
            } else {
                // Not a task of the server's: it waits for nothing and ends with its first poll.
                drop(runtime.spawn(async move { give_all() }));
            }
        }
    }
}

#[derive(Debug)]
struct Answer {
    waiting: Waiting,
    outcome: Outcome,
    /// Freed where it was allocated, not on the writer's thread.
    _done: Work,
}

impl Answer {
    fn give(self) {
        match (self.waiting, self.outcome) {
            (Waiting::Commit(sender), Outcome::Applied { version, records }) => {
                let receipts = records.iter().map(Receipt::assertion).collect();
                drop(sender.send(Ok(Committed { version, receipts })));
            }
            (Waiting::Reserve(sender), Outcome::Reserved(first)) => drop(sender.send(Ok(first))),
            (waiting, Outcome::Refused(error)) => refuse(waiting, error),
            (waiting @ Waiting::Commit(_), Outcome::Reserved(_))
            | (waiting @ Waiting::Reserve(_), Outcome::Applied { .. }) => {
                refuse(waiting, bug("the writer mixed up two requests".to_owned()));
            }
        }
    }
}

fn refuse(waiting: Waiting, error: StoreError) {
    match waiting {
        Waiting::Commit(sender) => drop(sender.send(Err(error))),
        Waiting::Reserve(sender) => drop(sender.send(Err(error))),
    }
}
