//! Background tasks that nobody loses: a panic is seen and counted, and shutdown waits for every one of them.
//!
//! Laws: the shell starts tasks only here; a tidy lint bans `tokio::spawn` elsewhere.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio_util::future::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts tasks on the current runtime and remembers them.
#[derive(Clone, Debug, Default)]
pub struct Spawner {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Spawner {
    /// A token that is cancelled when the process shuts down.
    pub const fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts `task`, called `name` in the log.
    ///
    /// Combinators, not `async` blocks, here and below: a block that awaits what it captured has room for it twice, and
    /// there is a task for each open stream.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        // A task owns what it works on; nothing of it is looked at after a panic.
        let task = AssertUnwindSafe(task).catch_unwind().map(move |outcome| {
            if outcome.is_err() {
                tracing::error!(task = name, "a background task panicked; this is a bug, please report it");
            }
        });
        self.tasks.spawn(task);
    }

    /// Starts `task` and drops it as soon as shutdown begins: for loops that hold nothing half-done between awaits.
    pub fn spawn_until_stop(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, task.with_cancellation_token_owned(self.stop.clone()).map(drop));
    }

    /// Asks every task to stop and waits until all of them have.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
