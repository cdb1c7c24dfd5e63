//! Who is at the other end: processes that end, whose numbers are used again, and a umask.
//!
//! A test starts this very program again with a part to play, told by an environment variable. A connection is left
//! behind by giving it to `cat` as its standard input: `cat` outlives the process that connected, and what the agent
//! sends to it appears on the standard output that both share with the test.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Host, soon};

const PART: &str = "RHIZOME_SOCKETS_PART";
const SOCKET: &str = "RHIZOME_SOCKETS_PATH";
const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
const FIRST_LEAF: &str = "leaf-of-the-process-that-connected";
const LATER_LEAF: &str = "leaf-of-whoever-has-its-number";
/// Attempts to be given a number; other processes of the machine start in between.
const ATTEMPTS: usize = 5000;

/// Plays the part that the environment names.
pub(crate) fn play() {
    let (Some(part), Some(path)) = (std::env::var_os(PART), std::env::var_os(SOCKET)) else { return };
    match part.to_str() {
        // Connects, asks, leaves the connection to `cat`, and ends when its standard input does.
        Some("ask and leave") => {
            let mut connection = UnixStream::connect(&path).unwrap();
            connection.write_all(&request()).unwrap();
            let kept = Stdio::from(OwnedFd::from(connection));
            let cat = Command::new("cat").stdin(kept).spawn().unwrap();
            // Left behind on purpose: it outlives this process.
            std::mem::forget(cat);
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        Some(umask) => {
            let bits = u32::from_str_radix(umask, 8).unwrap();
            rustix::process::umask(rustix::fs::Mode::from_bits_retain(bits));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let socket = runtime.block_on(async { rhizome_agent::socket::Socket::bind(Path::new(&path)) });
            // Looked at by the test; not removed, which dropping it would do.
            std::mem::forget(socket.unwrap());
        }
        None => panic!("an unknown part"),
    }
    std::process::exit(0);
}

fn helper(part: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--nocapture"])
        .env(PART, part)
        .env(SOCKET, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// `FetchX509SVID` as bytes: what a client writes on a fresh connection (RFC 9113; RFC 7541 §6.2.2 literals).
fn request() -> Vec<u8> {
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ] {
        headers.push(0);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).unwrap());
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for (kind, flags, stream, payload) in [(4, 0, 0, &[][..]), (1, 4, 1, &headers), (0, 1, 1, &[0; 5])] {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        bytes.extend_from_slice(&length[1..]);
        bytes.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// Ends a helper and reaps it, so that its number is free; returns the number and what is left of its output.
fn end(mut helper: Child) -> (u32, std::process::ChildStdout) {
    let output = helper.stdout.take().unwrap();
    drop(helper.stdin.take());
    let number = helper.id();
    assert!(helper.wait().unwrap().success());
    (number, output)
}

/// A process with this number; `None` where the test may not choose numbers, which CI does not accept.
fn reuse(number: u32) -> Option<Child> {
    for _ in 0..ATTEMPTS {
        if let Err(cause) = std::fs::write(LAST_PID, (number - 1).to_string()) {
            assert!(std::env::var_os("CI").is_none(), "CI runs as root: {cause}");
            eprintln!("NOT TESTED: reuse of a process number, which needs root: {cause}");
            return None;
        }
        let mut other = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        if other.id() == number {
            return Some(other);
        }
        drop(other.stdin.take());
        other.wait().unwrap();
    }
    panic!("the number {number} was not given out in {ATTEMPTS} attempts");
}

fn finish(mut other: Child) {
    drop(other.stdin.take());
    other.wait().unwrap();
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Reads until `text` has come; panics when the output ends before.
fn read_until(output: &mut impl std::io::Read, text: &str) {
    let (mut all, mut byte) = (Vec::new(), [0]);
    while !holds(&all, text) {
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&all));
        all.push(byte[0]);
    }
}

fn read_all(mut output: impl std::io::Read) -> Vec<u8> {
    let mut all = Vec::new();
    output.read_to_end(&mut all).unwrap();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_the_number_of_a_process_that_connected_gets_no_identity() {
    let host = Host::idle(|_| {});
    host.identities.set(host.view(1, FIRST_LEAF));
    // Listening, but nothing is accepted yet: the worst moment to end.
    let socket = host.bind();
    let mut helper = helper("ask and leave", &host.path());
    // Its connection is in the queue once `cat` runs; the helper is told to end only then, by its input ending.
    let (number, output) = {
        wait_for_child(helper.id());
        drop(helper.stdin.take());
        end(helper)
    };
    let Some(other) = reuse(number) else { return };
    host.serve(socket);
    let all = soon(tokio::task::spawn_blocking(move || read_all(output))).await.unwrap();
    assert!(!holds(&all, FIRST_LEAF), "an identity went to a connection of a process that has ended");
    assert!(host.identities.asked.lock().unwrap().is_empty(), "the other process was attested in its place");
    finish(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_process_and_later_identities_do_not_reach_it() {
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, FIRST_LEAF));
    let mut helper = helper("ask and leave", &host.path());
    let mut output = helper.stdout.take().unwrap();
    // Also the proof that this harness would see an identity that is sent.
    let read = tokio::task::spawn_blocking(move || {
        read_until(&mut output, FIRST_LEAF);
        output
    });
    helper.stdout = Some(soon(read).await.unwrap());
    let (number, output) = end(helper);
    let other = reuse(number);
    host.identities.set(host.view(2, LATER_LEAF));
    let all = soon(tokio::task::spawn_blocking(move || read_all(output))).await.unwrap();
    assert!(!holds(&all, LATER_LEAF), "an identity went to a connection of a process that has ended");
    host.identities.until_all_gone().await;
    other.into_iter().for_each(finish);
}

/// Connections that say nothing, in all.
const HALF_OPEN: u64 = 10_000;
/// Descriptors that everything else in this program may need.
const SPARE: u64 = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_connections_of_one_process_keep_no_other_from_its_identity() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let number = HALF_OPEN.min(limit.saturating_sub(SPARE));
    if number < HALF_OPEN {
        eprintln!(
            "NOT TESTED: {HALF_OPEN} half-open connections; {number}, by the limit of open files ({limit})"
        );
    }
    let host = Host::serving(|_| {});
    host.identities.set(host.view(1, FIRST_LEAF));
    let path = host.path();
    let connect = move || -> Vec<UnixStream> {
        (0..number)
            .map(|n| {
                let mut stream = UnixStream::connect(&path).unwrap();
                // Half of them have begun to speak. The agent may have hung up already.
                if n % 2 == 0 {
                    drop(stream.write_all(b"PRI * HTTP/2.0\r\n"));
                }
                stream
            })
            .collect()
    };
    let half_open = soon(tokio::task::spawn_blocking(connect)).await.unwrap();
    assert!(host.doors.open_connections() <= 64, "one process's share");
    let mut other = helper("ask and leave", &host.path());
    let mut output = other.stdout.take().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        read_until(&mut output, FIRST_LEAF);
        output
    });
    other.stdout = Some(soon(read).await.unwrap());
    end(other);
    drop(half_open);
}

/// Waits until a process has a child, which `/proc` tells.
fn wait_for_child(number: u32) {
    let children = || {
        let tasks = std::fs::read_dir(format!("/proc/{number}/task")).unwrap();
        tasks
            .flatten()
            .any(|task| std::fs::read_to_string(task.path().join("children")).is_ok_and(|it| !it.is_empty()))
    };
    while !children() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn folder_and_socket_have_their_modes_whatever_the_umask() {
    use std::os::unix::fs::MetadataExt as _;
    for umask in ["000", "022", "077", "777"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent/api.sock");
        end(helper(umask, &path));
        let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(&path), 0o777, "umask {umask}");
        for made in ["run/agent", "run"] {
            assert_eq!(mode(&folder.path().join(made)), 0o755, "umask {umask}");
        }
    }
}
