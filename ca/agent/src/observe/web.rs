//! Metrics and health over plain HTTP, and, on the private socket, status and explanations as JSON.
//!
//! Laws: the public page holds numbers and the SPIFFE IDs of this node, and is for loopback; the private socket answers
//! to the agent's own user and to root, by what the kernel says about who connected. Nothing can be changed here.
//! A connection is one exchange, with bounds on its time; there are only so many, and the oldest gives way to one more, so
//! nobody who holds connections keeps others out; none holds up the agent's end.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::report::{Observer, Refused};
use crate::socket::Socket;

/// What `GET /metrics` is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
/// Connections at the same time: monitoring opens one whenever it looks.
const CONNECTIONS: usize = 32;
/// How long a connection may last, from accepting to the last byte of the answer; an explanation may take 10 s.
const EXCHANGE: Duration = Duration::from_secs(30);
/// How long a request may take to arrive: whoever asks is on this machine.
const HEAD: Duration = Duration::from_secs(5);
/// How long exchanges may go on when the agent stops.
const DRAIN: Duration = Duration::from_secs(1);
/// How long to wait when the process is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// Serves metrics and health until the agent stops.
pub async fn serve_public(observer: Arc<Observer>, listener: TcpListener, stop: CancellationToken) {
    serve_http(listener, public().with_state(observer), stop).await;
}

/// Serves everything on the private socket until the agent stops; the socket is removed then.
pub async fn serve_private(observer: Arc<Observer>, socket: Socket, stop: CancellationToken) {
    let app = public()
        .route("/v1/status", get(status))
        .route("/v1/explain/{pid}", get(explain))
        .with_state(observer);
    serve_http(Private(socket), app, stop).await;
}

/// Serves `app` until the agent stops, and lets what is under way end, for a while.
async fn serve_http<L: Listener>(mut listener: L, app: Router, stop: CancellationToken) {
    let mut open = FuturesUnordered::new();
    // By number, the oldest first: who is told to give way.
    let mut held: BTreeMap<u64, CancellationToken> = BTreeMap::new();
    let mut next = 0u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(number) = open.next() => drop(held.remove(&number)),
            (stream, _) = listener.accept() => {
                if held.len() >= CONNECTIONS && let Some((_, oldest)) = held.pop_first() {
                    tracing::debug!("many requests for metrics or status: the oldest is cut off");
                    oldest.cancel();
                }
                next = next.saturating_add(1);
                let (number, gives_way) = (next, CancellationToken::new());
                held.insert(number, gives_way.clone());
                let whole = exchange(stream, app.clone());
                open.push(async move {
                    gives_way.run_until_cancelled(whole).await;
                    number
                });
            }
        }
    }
    drop(listener);
    let ended = timeout(DRAIN, async { while open.next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::info!("requests on the private socket or for metrics were still open; they are cut off");
    }
}

/// One request and its answer.
async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: Router) {
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let connection =
        server.keep_alive(false).serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    match timeout(EXCHANGE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(cause)) => tracing::debug!(%cause, "a request for metrics or status failed"),
        Err(_elapsed) => tracing::debug!("a request for metrics or status took too long"),
    }
}

fn public() -> Router<Arc<Observer>> {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(page))
}

async fn ready(State(observer): State<Arc<Observer>>) -> (StatusCode, &'static str) {
    if observer.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "nobody can be served yet\n")
    }
}

async fn page(State(observer): State<Arc<Observer>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], metrics::render(&observer.report()))
}

async fn status(State(observer): State<Arc<Observer>>) -> Response {
    json(StatusCode::OK, &observer.report())
}

async fn explain(State(observer): State<Arc<Observer>>, Path(pid): Path<i32>) -> Response {
    match observer.explain(pid).await {
        Ok(explained) => json(StatusCode::OK, &explained),
        Err(refused) => {
            let code = match refused.code.as_str() {
                "not_found" => StatusCode::NOT_FOUND,
                _other => StatusCode::SERVICE_UNAVAILABLE,
            };
            json(code, &refused)
        }
    }
}

fn json(code: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (code, [(header::CONTENT_TYPE, JSON)], body).into_response(),
        Err(cause) => {
            let refused = Refused { code: "internal".to_owned(), message: cause.to_string() };
            (StatusCode::INTERNAL_SERVER_ERROR, refused.message).into_response()
        }
    }
}

/// The private socket: whoever is neither root nor this agent's user is hung up on.
struct Private(Socket);

impl Listener for Private {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            match self.0.listener().accept().await {
                Ok((stream, _unnamed)) if may_ask(&stream) => return (stream, ()),
                Ok(_stranger) => {}
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept a connection on the private socket");
                    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "somebody else knocks at the private socket");
            false
        }
        Err(cause) => {
            tracing::warn!(%cause, "a connection on the private socket has no credentials");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::spawn::Spawner;

    /// Longer than anything here takes; whoever waits that long waits for ever.
    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_request_that_is_never_finished_holds_up_neither_others_nor_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, spawner) = (listener.local_addr().unwrap(), Spawner::default());
        let app = Router::new().route("/healthz", get(async || "ok\n"));
        spawner.spawn("web", serve_http(listener, app, spawner.stopping().clone()));
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /healthz HTTP/1.1\r\nHost: agent\r\nX-Half").await.unwrap();
        let mut whole = TcpStream::connect(address).await.unwrap();
        whole.write_all(b"GET /healthz HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, whole.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
        timeout(DEADLINE, spawner.shut_down()).await.expect("the half request is cut off");
    }

    #[tokio::test]
    async fn whoever_holds_every_connection_keeps_nobody_out_the_oldest_gives_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, spawner) = (listener.local_addr().unwrap(), Spawner::default());
        let arrived = Arc::new(tokio::sync::Semaphore::new(0));
        let noted = Arc::clone(&arrived);
        let hold = move || {
            noted.add_permits(1);
            std::future::pending::<&'static str>()
        };
        let app = Router::new().route("/hold", get(hold)).route("/healthz", get(async || "ok\n"));
        spawner.spawn("web", serve_http(listener, app, spawner.stopping().clone()));
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /healthz HTTP/1.1\r\nX-Half").await.unwrap();
        let mut held = Vec::new();
        for _ in 1..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /hold HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
            timeout(DEADLINE, arrived.acquire()).await.unwrap().unwrap().forget();
            held.push(stream);
        }
        for oldest in [half, held.remove(0)] {
            let mut whole = TcpStream::connect(address).await.unwrap();
            whole.write_all(b"GET /healthz HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            timeout(DEADLINE, whole.read_to_string(&mut answer)).await.unwrap().unwrap();
            assert!(answer.ends_with("ok\n"), "{answer}");
            // Its place is free again; somebody else takes it.
            let mut next = TcpStream::connect(address).await.unwrap();
            next.write_all(b"GET /hold HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
            timeout(DEADLINE, arrived.acquire()).await.unwrap().unwrap().forget();
            held.push(next);
            closed(oldest).await;
        }
        spawner.shut_down().await;
    }

    /// Waits until the other side has closed a connection without an answer.
    async fn closed(mut stream: TcpStream) {
        let mut rest = Vec::new();
        // Closed with bytes unread, it is reset.
        drop(timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("it is closed"));
        assert_eq!(rest, b"");
    }
}
