use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

/// Takes everything and notes in how many writes it came. Reads give nothing yet.
#[derive(Default)]
struct Noted {
    writes: Vec<Vec<u8>>,
    flushes: usize,
    shut: bool,
}

impl AsyncRead for Noted {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.push(buf.to_vec());
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

/// One turn of the owner: it writes frames, flushing after each as HTTP/2 does.
fn turn(connection: &mut Gathering<Noted>, frames: &[&[u8]]) {
    let mut cx = Context::from_waker(Waker::noop());
    for frame in frames {
        let slices = [IoSlice::new(&frame[..1]), IoSlice::new(&frame[1..])];
        let written = Pin::new(&mut *connection).poll_write_vectored(&mut cx, &slices);
        assert!(matches!(written, Poll::Ready(Ok(count)) if count == frame.len()), "{written:?}");
        assert!(Pin::new(&mut *connection).poll_flush(&mut cx).is_ready());
    }
}

fn read(connection: &mut Gathering<Noted>) {
    let (mut cx, mut space) = (Context::from_waker(Waker::noop()), [0; 8]);
    assert!(Pin::new(connection).poll_read(&mut cx, &mut ReadBuf::new(&mut space)).is_pending());
}

#[test]
fn frames_of_one_turn_leave_in_one_write_at_the_next() {
    let mut connection = Gathering::new(Noted::default());
    turn(&mut connection, &[b"head one", b"data one", b"head two"]);
    assert_eq!(connection.inner.writes, Vec::<Vec<u8>>::new());
    read(&mut connection);
    assert_eq!(connection.inner.writes, [b"head onedata onehead two".to_vec()]);
    assert_eq!(connection.inner.flushes, 1);
    read(&mut connection);
    assert_eq!((connection.inner.writes.len(), connection.inner.flushes), (1, 1));
}

#[test]
fn a_flush_asks_for_the_next_turn_once() {
    struct Counted(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let woken = Arc::new(Counted(0.into()));
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    let mut connection = Gathering::new(Noted::default());
    assert!(Pin::new(&mut connection).poll_flush(&mut cx).is_ready());
    assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 0, "there was nothing to flush");
    for _ in 0..3 {
        assert!(Pin::new(&mut connection).poll_write(&mut cx, b"x").is_ready());
        assert!(Pin::new(&mut connection).poll_flush(&mut cx).is_ready());
    }
    assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn a_full_record_does_not_wait_for_the_next_turn() {
    let mut connection = Gathering::new(Noted::default());
    let frame = vec![7; 9_000];
    turn(&mut connection, &[&frame]);
    let mut cx = Context::from_waker(Waker::noop());
    let second = Pin::new(&mut connection).poll_write(&mut cx, &frame);
    assert!(matches!(second, Poll::Ready(Ok(count)) if count == GATHERED_BYTES - 9_000), "{second:?}");
    assert!(Pin::new(&mut connection).poll_write(&mut cx, &frame).is_ready());
    assert_eq!(connection.inner.writes.iter().map(Vec::len).collect::<Vec<_>>(), [GATHERED_BYTES]);
}

#[test]
fn a_quiet_connection_holds_no_buffer() {
    let mut connection = Gathering::new(Noted::default());
    turn(&mut connection, &[b"something"]);
    assert_eq!(connection.gathered.capacity(), GATHERED_BYTES);
    read(&mut connection);
    assert_eq!(connection.gathered.capacity(), 0);
}

#[test]
fn nothing_stays_behind_at_the_end() {
    let mut connection = Gathering::new(Noted::default());
    turn(&mut connection, &[b"goodbye"]);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut connection).poll_shutdown(&mut cx).is_ready());
    assert_eq!(connection.inner.writes, [b"goodbye".to_vec()]);
    assert!(connection.inner.shut);
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order() {
    let (near, mut far) = duplex(100);
    let mut connection = Gathering::new(near);
    let sent: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let expected = sent.clone();
    let writing = async move {
        for chunk in sent.chunks(777) {
            connection.write_all(chunk).await.expect("written");
            connection.flush().await.expect("flushed");
        }
        // The owner reads on every turn; here that is what carries the last bytes out, besides the end.
        let mut space = [0; 1];
        assert_eq!(connection.read(&mut space).await.expect("the end"), 0);
        connection.shutdown().await.expect("shut down");
    };
    let reading = async move {
        let mut received = vec![0; expected.len()];
        far.read_exact(&mut received).await.expect("everything");
        assert!(received == expected);
    };
    tokio::join!(writing, reading);
}
