//! One connection: whose it is, its place under the limits, and the end of it when its process ends or does not read.
//!
//! Laws: a connection ends at once when the process that made it exits, whoever else holds the socket; when somebody
//! hangs up on it; when it has not spoken HTTP/2 in time; and when what is written to it is not read in time. Its place
//! is given back with it.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::authority::Authorities;
use super::limits::Limits;
use crate::attestation::PeerProcess;

/// Bytes of the preface with which every HTTP/2 client begins (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) peer: Arc<PeerProcess>,
    hang_up: CancellationToken,
}

impl Caller {
    /// Ends the connection and every stream on it.
    pub(crate) fn hang_up(&self) {
        self.hang_up.cancel();
    }
}

/// A connection that is served.
pub(crate) struct Connection {
    stream: UnixStream,
    caller: Arc<Caller>,
    hung_up: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Bytes of the preface still to come, and until when.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    authorities: Authorities,
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, peer: PeerProcess, place: Place, limits: &Limits) -> Self {
        let hang_up = CancellationToken::new();
        let hung_up = Box::pin(hang_up.clone().cancelled_owned());
        let caller = Arc::new(Caller { peer: Arc::new(peer), hang_up });
        let preface = Some((PREFACE_BYTES, Box::pin(tokio::time::sleep(limits.preface))));
        let (authorities, stall) = (Authorities::default(), limits.stall);
        Self { stream, caller, hung_up, preface, authorities, stall, stalled: None, _place: place }
    }

    /// Whether the connection is over for a reason of its own; registers to be told.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.hung_up.as_mut().poll(cx).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the agent hung up"));
        }
        if self.caller.peer.poll_exit(cx).is_ready() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "the caller has exited"));
        }
        if let Some((_, deadline)) = &mut self.preface
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the caller says nothing"));
        }
        Poll::Pending
    }

    fn count_preface(&mut self, read: usize) {
        if let Some((missing, _)) = &mut self.preface {
            *missing = missing.saturating_sub(read);
            if *missing == 0 {
                self.preface = None;
            }
        }
    }

    /// Passes on the outcome of a write, and gives up on a reader that has kept it waiting too long.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        if stalled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the caller does not read")));
        }
        Poll::Pending
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(over) = self.poll_over(cx) {
            return Poll::Ready(Err(over));
        }
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().len().saturating_sub(before);
        self.count_preface(read);
        self.authorities.mend(buf.filled_mut().get_mut(before..).unwrap_or_default());
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Counts of what is open, in all, by user and by process.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_user: BTreeMap<u32, usize>,
    by_process: BTreeMap<i32, usize>,
}

/// How many may be open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quota {
    pub(crate) total: usize,
    pub(crate) per_user: usize,
    pub(crate) per_process: usize,
}

/// A place among the open; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    uid: u32,
    pid: i32,
}

impl Places {
    /// Takes a place, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, peer: &PeerProcess, quota: Quota) -> Option<Place> {
        self.enter_as(peer.uid(), peer.pid(), quota)
    }

    fn enter_as(self: &Arc<Self>, uid: u32, pid: i32, quota: Quota) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let user = open.by_user.get(&uid).copied().unwrap_or_default();
        let process = open.by_process.get(&pid).copied().unwrap_or_default();
        if open.total >= quota.total || user >= quota.per_user || process >= quota.per_process {
            return None;
        }
        open.total = open.total.saturating_add(1);
        open.by_user.insert(uid, user.saturating_add(1));
        open.by_process.insert(pid, process.saturating_add(1));
        Some(Place { places: Arc::clone(self), uid, pid })
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.total = open.total.saturating_sub(1);
        one_less(&mut open.by_user, self.uid);
        one_less(&mut open.by_process, self.pid);
    }
}

fn one_less<K: Ord + Copy>(counts: &mut BTreeMap<K, usize>, key: K) {
    let left = counts.get(&key).copied().unwrap_or_default().saturating_sub(1);
    if left == 0 {
        counts.remove(&key);
    } else {
        counts.insert(key, left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota = Quota { total: 4, per_user: 3, per_process: 2 };

    #[test]
    fn no_user_and_no_process_takes_every_place() {
        let places = Arc::new(Places::default());
        let enter = |uid, pid| places.enter_as(uid, pid, QUOTA);
        let first = [enter(1, 10), enter(1, 10)];
        assert!(first.iter().all(Option::is_some));
        assert!(enter(1, 10).is_none(), "one process");
        let third = enter(1, 11);
        assert!(third.is_some());
        assert!(enter(1, 12).is_none(), "one user");
        let other = enter(2, 20);
        assert!(other.is_some(), "another user still has a place");
        assert!(enter(3, 30).is_none(), "in all");
        assert_eq!(places.open(), 4);
        drop((first, third, other));
        assert_eq!(places.open(), 0);
        assert!(
            places.0.lock().unwrap().by_user.is_empty() && places.0.lock().unwrap().by_process.is_empty()
        );
    }
}
