//! A workload of the trial: a process of its own that knows nothing of Rhizome but the SPIFFE Workload API.
//!
//! Laws: everything it has (certificate, key, whom to believe) comes from the Workload API and is kept in memory only;
//! each end checks the other's SPIFFE ID; each connection is a new handshake with what is newest. It says on standard
//! output what it sees, one [`Event`] a line, and it ends when its standard input does, so that it never outlives
//! whoever started it, however that one died.
//! Not here: starting it (`process`), what is expected of it (`mesh`).
//! Sources: SPIFFE Workload API §5.2.1, §6.2, SPIFFE Workload Endpoint §4 (`SPIFFE_ENDPOINT_SOCKET`).

use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use rhizome_agent::Spawner;
use rhizome_cli::Exit;
use rhizome_id::{SpiffeId, Timestamp, Ttl};
use rhizome_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use rhizome_proto::workload::{
    JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest, X509svidResponse, secured,
};
use rhizome_tls::{Accepted, ClientIdentity, ClientTrust, ExpectedServer, ServerTls, ServingIdentity};
use rhizome_x509::{Bundle, CaCertificate, TrustAnchors, inspect, split_certificates};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

use crate::command;

/// For one handshake, and again for what is said after it.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of an answer: two SPIFFE IDs and a serial.
const ANSWER_BYTES: u64 = 8192;
/// Bytes of the line with a token.
const TOKEN_BYTES: u64 = 16_384;
/// Wait after the Workload API gave nothing, or went away.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What a workload is told. Not for people: `rhizome dev` starts it.
#[derive(Args, Clone, Debug)]
pub struct Workload {
    /// The Workload API
    #[arg(long, value_name = "URI", env = "SPIFFE_ENDPOINT_SOCKET")]
    socket: String,
    #[command(subcommand)]
    task: Task,
}

#[derive(Clone, Debug, Subcommand)]
enum Task {
    /// Answer this caller and nobody else, on loopback
    Serve {
        /// Its identity
        #[arg(long, value_name = "ID")]
        caller: SpiffeId,
    },
    /// Call a server, with a new connection each time
    Call {
        /// Where it is
        #[arg(long, value_name = "HOST:PORT")]
        address: String,
        /// Who it must be
        #[arg(long, value_name = "ID")]
        callee: SpiffeId,
        /// Milliseconds between two calls; without, call once
        #[arg(long, value_name = "MILLISECONDS")]
        every: Option<u64>,
        /// Show a JWT-SVID for this audience, too
        #[arg(long, value_name = "AUDIENCE")]
        token_for: Option<String>,
    },
}

/// What a workload says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// The Workload API gave it an identity, the first or the next.
    Identity(Identity),
    /// The Workload API gave it nothing, or ended; it asks again.
    Nothing { cause: String },
    /// It serves.
    Listening { address: String },
    /// It turned a caller away.
    TurnedAway { cause: String },
    /// It called, both ends know each other, and it was answered.
    Called(Call),
    /// It called in vain, or cannot go on.
    Failed { cause: String },
}

/// An identity as its holder sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) spiffe_id: SpiffeId,
    pub(super) serial: String,
    pub(super) issuer: String,
    pub(super) not_after: Timestamp,
}

/// One connection: who was at each end, by the other end's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) caller: String,
    pub(super) caller_serial: String,
    pub(super) server: String,
    pub(super) server_serial: String,
}

/// Runs the workload; only a single call comes to an end by itself.
pub async fn run(wish: Workload) -> Exit {
    end_with_parent();
    let spawner = Spawner::default();
    let (sender, mut newest) = mpsc::channel(1);
    let Workload { socket, task } = wish;
    let followed = socket.clone();
    spawner.spawn_until_stop("identities", async move { follow(&followed, &sender).await });
    let outcome = match task {
        Task::Serve { caller } => {
            serve(&spawner, newest, Gate { socket, caller }).await.map(|never| match never {})
        }
        Task::Call { address, callee, every, token_for } => {
            let errand = Errand { socket, address, callee, token_for };
            keep_calling(&mut newest, &errand, every.map(Duration::from_millis)).await
        }
    };
    spawner.shut_down().await;
    match outcome {
        Ok(()) => Exit::Done,
        Err(cause) => {
            tell(&Event::Failed { cause });
            Exit::Failed
        }
    }
}

/// Ends this process as soon as nobody holds the other end of its standard input.
fn end_with_parent() {
    drop(std::thread::spawn(|| {
        drop(io::stdin().lock().read_to_end(&mut Vec::new()));
        std::process::exit(i32::from(Exit::Failed.code()));
    }));
}

/// Says what was seen. If nobody listens any more, `end_with_parent` is about to act.
fn tell(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        drop(writeln!(io::stdout().lock(), "{line}"));
    }
}

/// What the Workload API gave.
struct Held {
    identity: Identity,
    chain_der: Vec<Vec<u8>>,
    key_pkcs8_der: Zeroizing<Vec<u8>>,
    anchors: Arc<TrustAnchors>,
}

impl Held {
    /// The first identity of an answer: the one to use when nothing else is said (Workload API §5.3).
    fn read(answer: X509svidResponse) -> Result<Self, String> {
        let svid = answer.svids.into_iter().next().ok_or("the Workload API gave no identity")?;
        let key_pkcs8_der = Zeroizing::new(svid.x509_svid_key.to_vec());
        let text = |error: &dyn std::error::Error| error.to_string();
        let chain_der = split_certificates(&svid.x509_svid).map_err(|error| text(&error))?;
        let leaf = chain_der.first().ok_or("the Workload API gave an empty chain")?;
        let facts = inspect(leaf).map_err(|error| text(&error))?;
        let spiffe_id = facts.spiffe_id.clone().ok_or("the certificate has no SPIFFE ID")?;
        let roots = split_certificates(&svid.bundle).map_err(|error| text(&error))?;
        let roots = roots.iter().map(|der| CaCertificate::parse(der)).collect::<Result<Vec<_>, _>>();
        let roots = roots.map_err(|error| text(&error))?;
        let bundle = Bundle::new(spiffe_id.trust_domain(), 0, Ttl::hours(1), roots);
        let anchors = Arc::new(TrustAnchors::from_bundle(&bundle.map_err(|error| text(&error))?));
        let (serial, not_after) = (hexadecimal(&facts.serial), facts.not_after);
        let identity = Identity { spiffe_id, serial, issuer: facts.issuer, not_after };
        Ok(Self { identity, chain_der, key_pkcs8_der, anchors })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Follows the Workload API for ever: every identity that it pushes goes to `newest`.
async fn follow(socket: &str, newest: &mpsc::Sender<Arc<Held>>) {
    loop {
        let Err(cause) = follow_once(socket, newest).await;
        tell(&Event::Nothing { cause });
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn follow_once(socket: &str, newest: &mpsc::Sender<Arc<Held>>) -> Result<Infallible, String> {
    let channel = rhizome_tls::connect(socket, None).await.map_err(|error| error.to_string())?;
    let mut client = SpiffeWorkloadApiClient::new(channel);
    let opened = client.fetch_x509svid(secured(X509svidRequest {})).await;
    let mut answers =
        opened.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?.into_inner();
    loop {
        let answer = answers.message().await;
        let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
        let held = Held::read(answer.ok_or("the Workload API ended the stream")?)?;
        tell(&Event::Identity(held.identity.clone()));
        newest.send(Arc::new(held)).await.map_err(|_gone| "the workload ends")?;
    }
}

/// A JWT-SVID of this workload for `audience`.
async fn token(socket: &str, audience: &str) -> Result<Zeroizing<String>, String> {
    let wish = JwtsvidRequest { audience: vec![audience.to_owned()], spiffe_id: String::new() };
    let channel = rhizome_tls::connect(socket, None).await.map_err(|error| error.to_string())?;
    let answer = SpiffeWorkloadApiClient::new(channel).fetch_jwtsvid(secured(wish)).await;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    let first = answer.into_inner().svids.into_iter().next();
    Ok(Zeroizing::new(first.ok_or("the Workload API gave no token")?.svid))
}

/// Whose the token is, if it is valid and meant for `audience`.
async fn validated(socket: &str, audience: &SpiffeId, token: &str) -> Result<String, String> {
    let wish = ValidateJwtsvidRequest { audience: audience.to_string(), svid: token.to_owned() };
    let channel = rhizome_tls::connect(socket, None).await.map_err(|error| error.to_string())?;
    let answer = SpiffeWorkloadApiClient::new(channel).validate_jwtsvid(secured(wish)).await;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    Ok(answer.into_inner().spiffe_id)
}

/// The newest bundle and the machine's clock: whom a server believes, asked at each handshake.
struct Trust(watch::Receiver<Arc<Held>>);

impl ClientTrust for Trust {
    fn anchors(&self) -> Arc<TrustAnchors> {
        Arc::clone(&self.0.borrow().anchors)
    }

    fn now(&self) -> Timestamp {
        command::clock()()
    }
}

/// Who is answered, and who is asked about tokens.
struct Gate {
    socket: String,
    caller: SpiffeId,
}

async fn serve(
    spawner: &Spawner,
    mut newest: mpsc::Receiver<Arc<Held>>,
    gate: Gate,
) -> Result<Infallible, String> {
    let gate = Arc::new(gate);
    let first = newest.recv().await.ok_or("no identity came")?;
    let own = first.identity.spiffe_id.clone();
    let identity = ServingIdentity::new(&first.chain_der, &first.key_pkcs8_der);
    let identity = Arc::new(identity.map_err(|error| error.to_string())?);
    let (current, trust) = watch::channel(first);
    let tls = ServerTls::new(Arc::clone(&identity), Arc::new(Trust(trust)));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?.to_string();
    tell(&Event::Listening { address });
    loop {
        tokio::select! {
            next = newest.recv() => {
                let next = next.ok_or("no more identities come")?;
                let set = identity.set(&next.chain_der, &next.key_pkcs8_der);
                set.map_err(|error| error.to_string())?;
                drop(current.send_replace(next));
            }
            accepted = listener.accept() => {
                let (stream, _from) = accepted.map_err(|error| error.to_string())?;
                let (tls, gate, own) = (tls.clone(), Arc::clone(&gate), own.clone());
                spawner.spawn_until_stop("answer", async move { answer(&tls, stream, &gate, &own).await });
            }
        }
    }
}

/// One connection: the right caller is told who it is, everybody else is turned away.
async fn answer(tls: &ServerTls, stream: TcpStream, gate: &Gate, own: &SpiffeId) {
    let wanted = &gate.caller;
    let (mut stream, client) = match tls.accept(stream, DEADLINE).await {
        Ok(Accepted { stream, client }) => (stream, client),
        Err(cause) => return tell(&Event::TurnedAway { cause: cause.to_string() }),
    };
    match client {
        Some(peer) if peer.spiffe_id == *wanted => {
            match shown(&mut stream, gate, own).await {
                Ok(token) => {
                    let line = format!("{} {}{token}", peer.spiffe_id, hexadecimal(&peer.serial));
                    // Whoever does not read it counts the call as failed.
                    drop(stream.write_all(line.as_bytes()).await);
                }
                Err(cause) => {
                    tell(&Event::TurnedAway { cause: format!("the token of {}: {cause}", peer.spiffe_id) });
                }
            }
        }
        Some(peer) => {
            tell(&Event::TurnedAway { cause: format!("{} may not call, only {wanted} may", peer.spiffe_id) });
        }
        None => tell(&Event::TurnedAway { cause: "a caller without a certificate".to_owned() }),
    }
    drop(stream.shutdown().await);
}

/// Reads the line that every caller sends: empty, or a token. Says whose it is, after a space; of no token, nothing.
async fn shown(stream: &mut (impl AsyncRead + Unpin), gate: &Gate, own: &SpiffeId) -> Result<String, String> {
    let mut line = Zeroizing::new(String::new());
    let mut reader = BufReader::new(stream.take(TOKEN_BYTES));
    let read = tokio::time::timeout(DEADLINE, reader.read_line(&mut line)).await;
    let read = read.map_err(|_elapsed| "it did not come in time")?;
    let _bytes = read.map_err(|error| error.to_string())?;
    match line.trim_end() {
        "" => Ok(String::new()),
        token => Ok(format!(" {}", validated(&gate.socket, own, token).await?)),
    }
}

/// What a caller does.
struct Errand {
    socket: String,
    address: String,
    callee: SpiffeId,
    token_for: Option<String>,
}

async fn keep_calling(
    newest: &mut mpsc::Receiver<Arc<Held>>,
    errand: &Errand,
    every: Option<Duration>,
) -> Result<(), String> {
    let mut held = newest.recv().await.ok_or("no identity came")?;
    loop {
        while let Ok(next) = newest.try_recv() {
            held = next;
        }
        let outcome = tokio::time::timeout(DEADLINE, call(&held, errand)).await;
        match (outcome.unwrap_or_else(|_elapsed| Err("no answer in time".to_owned())), every) {
            (Ok(call), _) => tell(&Event::Called(call)),
            (Err(cause), Some(_)) => tell(&Event::Failed { cause }),
            (Err(cause), None) => return Err(cause),
        }
        let Some(every) = every else { return Ok(()) };
        tokio::time::sleep(every).await;
    }
}

/// One connection, one handshake, one answer.
async fn call(held: &Held, errand: &Errand) -> Result<Call, String> {
    let Errand { socket, address, callee: server, token_for } = errand;
    let key = Zeroizing::new(held.key_pkcs8_der.to_vec());
    let identity = ClientIdentity::new(held.chain_der.clone(), key).map_err(|error| error.to_string())?;
    let (anchors, expected) = (Arc::clone(&held.anchors), ExpectedServer::Exact(server.clone()));
    let tls = rhizome_tls::client_config(anchors, Some(identity), expected, command::clock());
    let tls = tls.map_err(|error| error.to_string())?;
    let token = match token_for {
        Some(audience) => token(socket, audience).await?,
        None => Zeroizing::default(),
    };
    let mut dialled = rhizome_tls::dial(address, &tls).await.map_err(|error| error.to_string())?;
    let facts = inspect(&dialled.server_leaf_der).map_err(|error| error.to_string())?;
    // If it cannot be sent, there is no answer either.
    for part in [token.as_bytes(), b"\n"] {
        drop(dialled.stream.write_all(part).await);
    }
    drop(dialled.stream.flush().await);
    let mut said = String::new();
    dialled.stream.take(ANSWER_BYTES).read_to_string(&mut said).await.map_err(|error| error.to_string())?;
    // By the other end's word: what it verified is what this end presented.
    let Identity { spiffe_id, serial, .. } = &held.identity;
    if said.is_empty() {
        return Err(format!("{server} closed the connection without an answer"));
    }
    let expected = match token_for {
        Some(_audience) => format!("{spiffe_id} {serial} {spiffe_id}"),
        None => format!("{spiffe_id} {serial}"),
    };
    if said != expected {
        return Err(format!("{server} took this caller for `{said}`"));
    }
    Ok(Call {
        caller: spiffe_id.to_string(),
        caller_serial: serial.clone(),
        server: facts.spiffe_id.map(|id| id.to_string()).unwrap_or_default(),
        server_serial: hexadecimal(&facts.serial),
    })
}
