//! Where the messages of a stream of answers go.
//!
//! Laws: so many messages wait for a slow reader and no more. Each waits in a place of its own: a channel has room for 32
//! of what it carries from its first message on, and there is a channel for each of ten thousand open streams.

use std::future::Future;

use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::status::{Broken, Outgoing};

/// The near end of a stream of answers.
pub(crate) struct Outlet<T>(mpsc::Sender<Box<Result<T, Broken>>>);

/// A stream of answers in which `room` messages may wait, and where they are put.
pub(crate) fn outlet<T: Send + 'static>(room: usize) -> (Outlet<T>, Outgoing<T>) {
    let (sender, receiver) = mpsc::channel(room);
    (Outlet(sender), Box::pin(ReceiverStream::new(receiver).map(|message| *message)))
}

impl<T> Outlet<T> {
    /// Waits for room and gives a message; whether anybody is left to take it.
    pub(crate) fn give(&self, message: T) -> impl Future<Output = bool> {
        self.0.send(Box::new(Ok(message))).map(|sent| sent.is_ok())
    }

    /// Says why the stream ends, to whoever is left.
    pub(crate) fn end(&self, why: Broken) -> impl Future<Output = ()> {
        self.0.send(Box::new(Err(why))).map(drop)
    }

    /// Waits until nobody is left.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}
