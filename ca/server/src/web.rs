//! Metrics and health over plain HTTP, on an address of their own.
//!
//! Laws: it reads counters and flags and nothing else: no identity, no key, no debug surface. Liveness never depends
//! on issuing; readiness is false only when this process cannot issue.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::ca::Ca;

/// Serves until the process stops.
pub(crate) async fn serve(ca: Arc<Ca>, listener: TcpListener) {
    let stop = ca.spawner.stopping().clone();
    let app = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(ca);
    let served = axum::serve(listener, app).with_graceful_shutdown(async move { stop.cancelled().await });
    if let Err(cause) = served.await {
        tracing::error!(%cause, "the metrics listener failed");
    }
}

/// Opens the listener.
///
/// # Errors
/// The operating system's reason.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn ready(State(ca): State<Arc<Ca>>) -> impl IntoResponse {
    let problems = ca.problems();
    if problems.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", problems.join("\n")))
    }
}

async fn metrics(State(ca): State<Arc<Ca>>) -> impl IntoResponse {
    ca.refresh_gauges();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], ca.metrics.render())
}
