//! A connection as the HTTP/2 layer sees it: bytes in, bytes out, and who is at the other end.
//!
//! Laws: what is written in one turn of a worker leaves in one TLS record and one system call, as far as it fits:
//! HTTP/2 flushes after every data frame, and a group commit answers many calls at one moment. A flush is therefore
//! kept until the connection's next turn, for which it asks at once; nothing waits for a timer, and nothing stays
//! behind when the connection is shut down. A connection that has nothing to say holds no buffer.
//! Not here: accepting, handshakes and limits (`listen`).
//! Sources: `h2::codec::FramedWrite` (a frame of more than 256 bytes is written and flushed alone),
//! `tokio_rustls::common::Stream` (every write is a record and a system call).

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::listen::Place;
use crate::peer::PeerInfo;

/// Bytes gathered before they are written: one TLS record (RFC 8446 §5.1).
const GATHERED_BYTES: usize = 16 * 1024;

/// A connection that a worker serves.
pub(crate) struct Connection {
    wire: Gathering<Wire>,
    peer: PeerInfo,
    /// When a connection without a credential is closed; the others stay.
    ends: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

/// What bytes travel over.
pub(crate) enum Wire {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connection {
    /// Puts a finished handshake, or an accepted local caller, before the HTTP/2 layer.
    pub(crate) const fn new(wire: Wire, peer: PeerInfo, ends: Option<Pin<Box<Sleep>>>, place: Place) -> Self {
        Self { wire: Gathering::new(wire), peer, ends, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Gathers what is written until the next time its owner reads.
///
/// It fits owners that read on every turn and that end with a shutdown, as an HTTP/2 connection does.
struct Gathering<S> {
    inner: S,
    /// At most [`GATHERED_BYTES`]; empty and without memory when there is nothing to write.
    gathered: Vec<u8>,
    /// How much of it has been written.
    written: usize,
    /// Whether what is gathered goes out at the next turn.
    due: bool,
}

impl<S> Gathering<S> {
    const fn new(inner: S) -> Self {
        Self { inner, gathered: Vec::new(), written: 0, due: false }
    }

    /// Takes as much of `buf` as there is room for.
    fn gather(&mut self, buf: &[u8]) -> usize {
        if self.gathered.is_empty() {
            self.gathered.reserve_exact(GATHERED_BYTES);
        }
        let room = GATHERED_BYTES.saturating_sub(self.gathered.len());
        let taken = buf.get(..room).unwrap_or(buf);
        self.gathered.extend_from_slice(taken);
        taken.len()
    }

    const fn is_full(&self) -> bool {
        self.gathered.len() >= GATHERED_BYTES
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Writes everything that is gathered.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.gathered.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written = self.written.saturating_add(count);
        }
        self.gathered = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Writes everything that is gathered, and what the layer below holds back.
    fn push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.due {
            match self.push(cx) {
                Poll::Ready(pushed) => {
                    pushed?;
                    self.due = false;
                }
                // The other end does not take it now; what it sends is read all the same.
                Poll::Pending => {}
            }
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_full() {
            ready!(self.drain(cx))?;
        }
        Poll::Ready(Ok(self.gather(buf)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_full() {
            ready!(self.drain(cx))?;
        }
        let mut taken = 0_usize;
        for slice in slices {
            let count = self.gather(slice);
            taken = taken.saturating_add(count);
            if count < slice.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Pin::new(&mut self.inner).poll_flush(cx);
        }
        if !self.due {
            self.due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
