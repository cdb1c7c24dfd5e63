//! Metrics and health over plain HTTP, and, on the private socket, status and explanations as JSON.
//!
//! Laws: the public page holds numbers and the SPIFFE IDs of this node, and is for loopback; the private socket answers
//! to the agent's own user and to root, by what the kernel says about who connected. Nothing can be changed here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::report::{Observer, Refused};
use crate::socket::Socket;

/// What `GET /metrics` is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
/// How long to wait when the process is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// Serves metrics and health until the agent stops.
pub async fn serve_public(observer: Arc<Observer>, listener: TcpListener, stop: CancellationToken) {
    let served = axum::serve(listener, public().with_state(observer));
    if let Err(cause) = served.with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%cause, "the metrics listener failed");
    }
}

/// Serves everything on the private socket until the agent stops; the socket is removed then.
pub async fn serve_private(observer: Arc<Observer>, socket: Socket, stop: CancellationToken) {
    let app = public()
        .route("/v1/status", get(status))
        .route("/v1/explain/{pid}", get(explain))
        .with_state(observer);
    let served = axum::serve(Private(socket), app);
    if let Err(cause) = served.with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%cause, "the private socket failed");
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
