//! Traffic: a service that says who called it, and callers that make a new connection for each call.
//!
//! Laws: each call is a connection, so each is a handshake behind the proxies; nothing is retried; every call that was
//! not answered as expected is counted and named.
//! Not here: load on the authority (`load`).

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::process::until;

/// A call through two proxies takes milliseconds; on a machine that is busy with other things, longer.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Callers at once, and the pause that each makes between two calls.
const CALLERS: usize = 2;
const PAUSE: Duration = Duration::from_millis(10);

/// An HTTP service that answers with the value of `x-forwarded-client-cert`.
pub(crate) struct Service {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // One that broke is the caller's to report.
                drop(connection.and_then(|connection| answer(&connection)));
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut connection: &TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(CALL_LIMIT))?;
    let mut caller = String::new();
    for line in BufReader::new(connection).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("x-forwarded-client-cert")
        {
            value.clone_into(&mut caller);
        }
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", caller.len());
    connection.write_all((head + &caller).as_bytes())
}

/// One HTTP call over a connection of its own: the body of a 200.
pub(crate) fn get(address: &str, path: &str) -> Result<String, String> {
    let call = || -> io::Result<String> {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(CALL_LIMIT))?;
        connection.set_write_timeout(Some(CALL_LIMIT))?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        connection.write_all(request.as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = call().map_err(|fault| fault.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
    match head.lines().next() {
        Some(first) if first.contains(" 200 ") => match head.contains("transfer-encoding: chunked") {
            true => whole(body).ok_or_else(|| format!("broken chunks: {body:?}")),
            false => Ok(body.to_owned()),
        },
        first => Err(format!("{first:?} {body}")),
    }
}

/// A body that came in chunks (RFC 9112 §7.1).
fn whole(mut chunks: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, rest) = chunks.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.push_str(rest.get(..length)?);
        chunks = rest.get(length..)?.strip_prefix("\r\n")?;
    }
}

/// Callers at work.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Vec<String>>>,
}

impl Traffic {
    /// Calls `address` without end and expects answers that hold `expected`.
    pub(crate) fn start(address: &str, expected: &str) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let caller = |_| {
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            let (address, expected) = (address.to_owned(), expected.to_owned());
            thread::spawn(move || press(&address, &expected, &stop, &made))
        };
        let callers = (0..CALLERS).map(caller).collect();
        Self { stop, made, callers }
    }

    /// Waits for that many more calls.
    pub(crate) fn wait_for_more(&self, count: usize) {
        self.wait_for(self.made.load(Ordering::SeqCst) + count);
    }

    /// Waits until there have been that many calls.
    pub(crate) fn wait_for(&self, goal: usize) {
        until(&format!("{goal} calls"), || match self.made.load(Ordering::SeqCst) {
            enough if enough >= goal => Ok(()),
            fewer => Err(format!("{fewer} so far")),
        });
    }

    /// Ends it: calls made, those that failed included, and what failed.
    pub(crate) fn end(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let failed = self.callers.drain(..).flat_map(|caller| caller.join().unwrap()).collect();
        (self.made.load(Ordering::SeqCst), failed)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn press(address: &str, expected: &str, stop: &AtomicBool, made: &AtomicUsize) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        match get(address, "/") {
            Ok(answer) if answer.contains(expected) => {}
            Ok(other) => failed.push(format!("answered {other:?}")),
            Err(fault) => failed.push(fault),
        }
        made.fetch_add(1, Ordering::SeqCst);
        // Several calls a second are the point, not as many as possible.
        thread::sleep(PAUSE);
    }
    failed
}
