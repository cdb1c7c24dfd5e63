//! The doors: connections accepted, handshakes finished, requests served.
//!
//! Laws: one thread accepts and hands connections to workers in turn; each worker is a thread with a single-threaded
//! runtime of its own, so a request never changes threads and responses of one moment leave in one write. A
//! connection costs nothing before its place is reserved, a handshake has a deadline, and a caller that is slow, idle
//! or dead is found by keepalive. Whoever connects to the administrators'
//! socket is judged by the kernel's word on who it is, not by the socket's mode.
//! Not here: who may call what (`gate`), TLS itself (`rhizome-tls`).
//! Sources: ADR 0007 (one single-threaded runtime per core), ca/docs/attacks.md §1.4.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rhizome_core::caller::principal_of;
use rhizome_id::{Serial, TrustDomain};
use rhizome_tls::ServerTls;
use rhizome_x509::VerifiedPeer;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::api;
use crate::ca::Ca;
use crate::connection::{Connection, Wire};
use crate::gate::GateLayer;
use crate::peer::{Peer, PeerCertificate};
use crate::spawn::Spawner;

/// A TLS handshake takes a round trip or two; whoever needs longer is slow on purpose.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection without a credential may stay: enough to fetch the bundle and to join, many times over.
const ANONYMOUS_LIFE: Duration = Duration::from_secs(60);
/// The longest any unary call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Requests in flight on one connection.
const STREAMS_PER_CONNECTION: u32 = 256;
/// Bytes of request headers; ours need a few hundred.
const HEADER_BYTES: u32 = 16 * 1024;
/// Streams a peer may reset before they are accepted (CVE-2023-44487, rapid reset).
const PENDING_RESETS: usize = 20;
/// How often an idle connection is asked for a sign of life, and how long it may take to give one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// How long open calls may take to finish once the server stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// Finished handshakes waiting for a worker.
const WAITING_CONNECTIONS: usize = 64;

/// A connection's place under the limit.
pub(crate) struct Place {
    ca: Arc<Ca>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(ca: &Arc<Ca>, permit: OwnedSemaphorePermit) -> Self {
        ca.metrics.connections.inc();
        Self { ca: Arc::clone(ca), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ca.metrics.connections.dec();
    }
}

pub(crate) type Raw = (std::net::TcpStream, SocketAddr, Place);

/// Where connections are handed to, and the threads to wait for.
pub(crate) type Workers = (Vec<mpsc::Sender<Raw>>, Vec<std::thread::JoinHandle<()>>);

/// Starts the workers; each serves the connections that its channel brings until the server stops.
///
/// # Errors
/// The operating system's reason for not giving a thread or a runtime.
pub(crate) fn start_workers(ca: &Arc<Ca>, tls: &ServerTls, count: usize) -> io::Result<Workers> {
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    for number in 0..count.max(1) {
        let (sender, connections) = mpsc::channel(WAITING_CONNECTIONS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (ca, tls) = (Arc::clone(ca), tls.clone());
        let work = move || {
            runtime.block_on(work(ca, tls, connections));
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(work)?);
        senders.push(sender);
    }
    Ok((senders, threads))
}

/// Accepts until the server stops and hands connections to the workers in turn.
pub(crate) async fn accept(ca: Arc<Ca>, listener: TcpListener, workers: Vec<mpsc::Sender<Raw>>) {
    let places = Arc::new(Semaphore::new(ca.settings.limits.connections));
    let stop = ca.spawner.stopping().clone();
    let mut turn = workers.iter().cycle();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(cause) => {
                // Out of descriptors, most likely: wait for some to come back instead of spinning.
                tracing::warn!(%cause, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if !ca.quota.admit_connection(source.ip()) {
            ca.metrics.connections_refused.inc();
            continue;
        }
        let Ok(permit) = Arc::clone(&places).try_acquire_owned() else {
            ca.metrics.connections_refused.inc();
            continue;
        };
        let place = Place::new(&ca, permit);
        drop(stream.set_nodelay(true));
        let (Ok(stream), Some(worker)) = (stream.into_std(), turn.next()) else { continue };
        if worker.send((stream, source, place)).await.is_err() {
            return;
        }
    }
}

/// One worker: finishes handshakes and serves.
async fn work(ca: Arc<Ca>, tls: ServerTls, mut raw: mpsc::Receiver<Raw>) {
    let handshakes = Spawner::default();
    let (finished, connections) = mpsc::channel(WAITING_CONNECTIONS);
    let inner = handshakes.clone();
    let receiving = Arc::clone(&ca);
    handshakes.spawn_until_stop("receive connections", async move {
        while let Some((stream, source, place)) = raw.recv().await {
            let (ca, tls, finished) = (Arc::clone(&receiving), tls.clone(), finished.clone());
            inner.spawn_until_stop("handshake", async move {
                if let Some(connection) = handshake(&ca, &tls, stream, source, place).await {
                    drop(finished.send(Ok::<_, io::Error>(connection)).await);
                }
            });
        }
    });
    serve(&ca, connections).await;
    handshakes.shut_down().await;
}

async fn handshake(
    ca: &Arc<Ca>,
    tls: &ServerTls,
    stream: std::net::TcpStream,
    source: SocketAddr,
    place: Place,
) -> Option<Connection> {
    let stream = TcpStream::from_std(stream).ok()?;
    match tls.accept(stream, HANDSHAKE_DEADLINE).await {
        Ok(accepted) => {
            let certificate =
                accepted.client.and_then(|peer| certificate_of(peer, &ca.settings.trust_domain));
            let ends = certificate.is_none().then(|| Box::pin(tokio::time::sleep(ANONYMOUS_LIFE)));
            let peer = Arc::new(Peer::Remote { source, certificate });
            Some(Connection::new(Wire::Tls(Box::new(accepted.stream)), peer, ends, place))
        }
        Err(cause) => {
            ca.metrics.handshakes_failed.inc();
            tracing::info!(%source, code = cause.code(), %cause, "handshake failed");
            None
        }
    }
}

fn certificate_of(peer: VerifiedPeer, domain: &TrustDomain) -> Option<PeerCertificate> {
    // Every certificate of this authority has a serial of our shape; another issuer's below the same root (a cluster's
    // own Rhizome) has one too, and is told apart by its key for every request.
    let serial = Serial::from_bytes(&peer.serial).ok()?;
    let name = principal_of(&peer.spiffe_id, domain)
        .map_or_else(|| format!("workload:{}", peer.spiffe_id), |principal| principal.to_string());
    let VerifiedPeer { spiffe_id, not_after, issuer_key_digest: issuer_key, .. } = peer;
    Some(PeerCertificate { spiffe_id, serial, not_after, issuer_key, name, judged: ArcSwapOption::empty() })
}

/// Serves a stream of connections until the server stops and open calls are done, or the drain deadline has passed.
async fn serve(ca: &Arc<Ca>, connections: mpsc::Receiver<io::Result<Connection>>) {
    let stop = ca.spawner.stopping().clone();
    let served = tonic::transport::Server::builder()
        .timeout(CALL_DEADLINE)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .layer(GateLayer(Arc::clone(ca)))
        .add_routes(api::routes(ca))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone().cancelled_owned());
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        outcome = served => if let Err(cause) = outcome {
            tracing::error!(%cause, "serving failed");
        },
        () = too_late => tracing::warn!("calls were still open after {DRAIN_DEADLINE:?}; they are cut off"),
    }
}

/// Serves administrators on the Unix socket until the server stops.
pub(crate) async fn serve_unix(ca: Arc<Ca>, listener: UnixListener) {
    let (sender, connections) = mpsc::channel(WAITING_CONNECTIONS);
    let accepting = Arc::clone(&ca);
    ca.spawner.spawn_until_stop("accept administrators", async move {
        let places = Arc::new(Semaphore::new(accepting.settings.limits.connections));
        loop {
            let Ok((stream, _address)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (Ok(credentials), Ok(permit)) = (stream.peer_cred(), Arc::clone(&places).try_acquire_owned())
            else {
                continue;
            };
            let peer = Arc::new(Peer::Local { uid: credentials.uid() });
            let place = Place::new(&accepting, permit);
            let connection = Connection::new(Wire::Unix(stream), peer, None, place);
            if sender.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    });
    serve(&ca, connections).await;
}
