//! A workload: one `FetchX509SVID` stream over the agent's socket, spoken by hand in a few frames, so that a process
//! with nothing but this costs next to nothing and a thousand of them fit beside what is measured.
//!
//! Sources: RFC 9113 (frames), RFC 7541 §6.2.2 (literal headers); SPIFFE Workload Endpoint §6 (the header).

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use prost::Message as _;
use rhizome_proto::workload::{X509svid, X509svidResponse};

/// The word by which this program is told to be a workload that holds a stream.
pub(crate) const VERB: &str = "hold";
/// What such a workload writes once it has been given an identity.
const SERVED: &[u8] = b"served\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An open stream.
pub(crate) struct Identities {
    socket: UnixStream,
    data: Vec<u8>,
}

impl Identities {
    /// Opens a stream, as soon as there is anybody at `path`; gives up when `until` says so.
    pub(crate) fn open(path: &Path, mut until: impl FnMut() -> bool) -> Self {
        let mut socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(_not_yet) => assert!(!until(), "nobody serves {}", path.display()),
            }
            // Not spinning: the agent needs the processor.
            std::thread::sleep(Duration::from_micros(200));
        };
        socket.write_all(&request()).expect("the agent reads");
        Self { socket, data: Vec::new() }
    }

    /// The next message.
    ///
    /// # Errors
    /// When the agent ended the stream or the connection.
    pub(crate) fn next(&mut self) -> io::Result<X509svidResponse> {
        loop {
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            self.take_frame()?;
        }
    }

    fn message(&mut self) -> io::Result<Option<X509svidResponse>> {
        let Some((prefix, rest)) = self.data.split_at_checked(5) else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]));
        let length = length.map_err(io::Error::other)?;
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = X509svidResponse::decode(message).map_err(io::Error::other)?;
        self.data.drain(..5 + length);
        Ok(Some(message))
    }

    fn take_frame(&mut self) -> io::Result<()> {
        let mut header = [0; 9];
        self.socket.read_exact(&mut header)?;
        let [a, b, c, kind, flags, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.socket.read_exact(&mut payload)?;
        match kind {
            DATA if !payload.is_empty() => {
                let credit = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
                self.data.append(&mut payload);
                let updates = [frame(WINDOW_UPDATE, 0, 0, &credit), frame(WINDOW_UPDATE, 0, 1, &credit)];
                self.socket.write_all(&updates.concat())
            }
            SETTINGS if flags & ACK == 0 => self.socket.write_all(&frame(SETTINGS, ACK, 0, &[])),
            PING if flags & ACK == 0 => self.socket.write_all(&frame(PING, ACK, 0, &payload)),
            HEADERS if flags & END_STREAM != 0 => Err(io::Error::other("the agent ended the stream")),
            RESET | GO_AWAY => Err(io::Error::other("the agent hung up")),
            _of_no_concern => Ok(()),
        }
    }
}

/// The leaf and what is above it, as sent, of the identity with this path.
pub(crate) fn identity<'a>(message: &'a X509svidResponse, path: &str) -> Option<&'a X509svid> {
    message.svids.iter().find(|svid| svid.spiffe_id.ends_with(path))
}

/// Holds a stream until this process is ended, and says when it was served.
pub(crate) fn hold(socket: &Path) {
    let mut tries = 0;
    let mut identities = Identities::open(socket, || {
        tries += 1;
        tries > 10_000
    });
    while let Ok(message) = identities.next() {
        if !message.svids.is_empty() {
            io::stdout().write_all(SERVED).expect("a reader");
        }
    }
}

/// Waits until a process that holds a stream says that it was served.
pub(crate) fn wait_until_served(output: &mut impl io::Read) {
    let mut said = [0; SERVED.len()];
    output.read_exact(&mut said).expect("a workload is served");
}

/// What a client writes on a fresh connection to call `FetchX509SVID`.
fn request() -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("workload.spiffe.io", "true"),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let literal = |(name, value): (&str, &str)| [vec![0], text(name), text(value)].concat();
    let frames = [
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, &headers.map(literal).concat()),
        frame(DATA, END_STREAM, 1, &[0; 5]),
    ];
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frames.concat()].concat()
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}
