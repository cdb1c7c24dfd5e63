//! Our bundle endpoint: our bundle for federated domains, and OpenID Connect's discovery for our JWT-SVIDs.
//!
//! Laws: it serves what is public and nothing else, to anybody, and asks nobody who they are (FED §5.1). Callers have
//! their own limits: connections at once, connections and requests of one source, a deadline for the handshake, for the
//! head of a request and for the connection; whoever floods it touches no other door. A certificate from files is read
//! again while it serves; one that cannot be used changes nothing.
//! Not here: what the bundle holds (`rotate`), fetching others' (`fetch`).
//! Sources: SPIFFE Federation §5; TB §4; OpenID Connect Discovery 1.0 §3 and §4; RFC 9110 §8.8.3 (ETag).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rhizome_tls::{EndpointTls, ServingIdentity};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::ca::Ca;
use crate::settings::{FederationSettings, WebCertificate};

/// A TLS handshake takes a round trip or two.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// For the head of a request, and for the next one on the same connection.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// For a connection: a few documents, even to somebody slow.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// Connections at once: others fetch every few minutes.
const CONNECTIONS: usize = 512;
/// Connections at once of one source.
const CONNECTIONS_PER_SOURCE: usize = 16;
/// Bytes of a request's head; ours need a few hundred.
const HEAD_BYTES: usize = 16 * 1024;
/// How often files are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// How long to wait when the process is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);
const JSON: &str = "application/json";
/// What follows an issuer's path (OpenID Connect Discovery 1.0 §4).
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/keys";

/// The endpoint, bound and ready.
pub(crate) struct Endpoint {
    listener: TcpListener,
    tls: EndpointTls,
    app: Router,
    reload: Option<(Arc<ServingIdentity>, WebCertificate)>,
}

impl Endpoint {
    /// Opens the listener that the settings ask for; `own` is this server's own serving certificate.
    ///
    /// # Errors
    /// What cannot be had, in words.
    pub(crate) async fn open(ca: &Arc<Ca>, own: &Arc<ServingIdentity>) -> Result<Option<Self>, String> {
        let settings = &ca.settings.federation;
        let Some(address) = settings.listen else { return Ok(None) };
        let (identity, reload) = match &settings.web_certificate {
            None => (Arc::clone(own), None),
            Some(files) => {
                let (chain, key) = files.read().await?;
                let identity = ServingIdentity::from_pem(&chain, &key);
                let identity = identity.map_err(|cause| format!("{}: {cause}", files.chain.display()))?;
                let identity = Arc::new(identity);
                (Arc::clone(&identity), Some((identity, files.clone())))
            }
        };
        let tls = EndpointTls::new(identity).map_err(|cause| cause.to_string())?;
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|cause| format!("cannot listen on {address}: {cause}"))?;
        Ok(Some(Self { listener, tls, app: app(ca, settings), reload }))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until the process stops.
    pub(crate) async fn serve(self, ca: Arc<Ca>) {
        let Self { listener, tls, app, reload } = self;
        if let Some((identity, files)) = reload {
            ca.spawner.spawn_until_stop("reload the endpoint's certificate", keep_loaded(identity, files));
        }
        let (places, sources) = (Arc::new(Semaphore::new(CONNECTIONS)), Sources::default());
        loop {
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept a connection to the bundle endpoint");
                    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                    continue;
                }
            };
            let admitted = ca.federation.quota.admit_connection(source.ip());
            let share = sources.enter(source.ip()).filter(|_| admitted);
            let (Some(share), Ok(place)) = (share, Arc::clone(&places).try_acquire_owned()) else {
                ca.metrics.endpoint_refused.inc();
                continue;
            };
            let (tls, app, metrics) = (tls.clone(), app.clone(), Arc::clone(&ca));
            ca.spawner.spawn_until_stop("bundle endpoint", async move {
                let _places = (place, share);
                let served = timeout(CONNECTION_DEADLINE, exchange(stream, source.ip(), &tls, app)).await;
                if let Err(cause) = served.unwrap_or_else(|_elapsed| Err("it took too long".to_owned())) {
                    metrics.metrics.endpoint_failed.inc();
                    tracing::debug!(%source, cause, "a connection to the bundle endpoint failed");
                }
            });
        }
    }
}

async fn exchange(stream: TcpStream, source: IpAddr, tls: &EndpointTls, app: Router) -> Result<(), String> {
    let stream = tls.accept(stream, HANDSHAKE_DEADLINE).await.map_err(|cause| cause.to_string())?;
    let app = app.layer(axum::Extension(Source(source)));
    let mut http = hyper::server::conn::http1::Builder::new();
    let connection = http
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    connection.await.map_err(|cause| cause.to_string())
}

/// Connections open now, by where they come from: one source cannot take every place.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One connection of a source; dropping it gives its place back.
struct Share {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    /// A place for one more connection of `source`: an IPv4 address, or the /64 that one IPv6 host has to itself.
    fn enter(&self, source: IpAddr) -> Option<Share> {
        let source = match source.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(source).or_default();
        if *count >= CONNECTIONS_PER_SOURCE {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Share { sources: self.clone(), source })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

/// Where a request comes from.
#[derive(Clone, Copy)]
struct Source(IpAddr);

fn app(ca: &Arc<Ca>, settings: &FederationSettings) -> Router {
    let mut app = Router::new().route(&settings.path, get(bundle));
    if let Some(issuer) = &settings.oidc_issuer {
        let below = issuer_path(issuer);
        app = app
            .route(&format!("{below}{DISCOVERY}"), get(discovery))
            .route(&format!("{below}{KEYS}"), get(keys));
    }
    app.layer(from_fn_with_state(Arc::clone(ca), counted)).with_state(Arc::clone(ca))
}

/// The path of an issuer's address, without a slash at its end.
fn issuer_path(issuer: &str) -> &str {
    let below = issuer.strip_prefix("https://").and_then(|rest| rest.find('/').and_then(|at| rest.get(at..)));
    below.unwrap_or_default().trim_end_matches('/')
}

/// Counts a request before it costs anything.
async fn counted(State(ca): State<Arc<Ca>>, request: Request, next: Next) -> Response {
    let source = request.extensions().get::<Source>().copied();
    if let Some(Source(source)) = source
        && let Err(wait) = ca.federation.quota.admit_source(source)
    {
        ca.metrics.endpoint_refused.inc();
        let seconds = wait.as_secs().saturating_add(1).to_string();
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds)]).into_response();
    }
    next.run(request).await
}

async fn bundle(State(ca): State<Arc<Ca>>, headers: HeaderMap) -> Response {
    let Some(published) = ca.bundle() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    ca.metrics.endpoint_served("bundle");
    // As it was published, also when a root in it has expired: one sequence has one content (TB §4.1.1).
    document_response(published.bundle.to_spiffe_json(), &headers)
}

async fn keys(State(ca): State<Arc<Ca>>, headers: HeaderMap) -> Response {
    let Some(published) = ca.bundle() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    ca.metrics.endpoint_served("keys");
    document_response(published.bundle.to_oidc_jwks_json(ca.ports.clock.now()), &headers)
}

/// What a relying party needs to validate our tokens (OpenID Connect Discovery 1.0 §3). There is nobody to log in, so
/// there is no authorization endpoint; the member is required all the same.
#[derive(Serialize)]
struct Discovery<'a> {
    issuer: &'a str,
    jwks_uri: String,
    authorization_endpoint: &'static str,
    response_types_supported: [&'static str; 1],
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: [&'static str; 2],
}

async fn discovery(State(ca): State<Arc<Ca>>, headers: HeaderMap) -> Response {
    let Some(issuer) = ca.settings.federation.oidc_issuer.as_deref() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let document = Discovery {
        issuer,
        jwks_uri: format!("{}{KEYS}", issuer.trim_end_matches('/')),
        authorization_endpoint: "",
        response_types_supported: ["id_token"],
        subject_types_supported: ["public"],
        id_token_signing_alg_values_supported: ["ES256", "ES384"],
    };
    ca.metrics.endpoint_served("discovery");
    // Strings only, so writing cannot fail.
    document_response(serde_json::to_string(&document).unwrap_or_default(), &headers)
}

/// A document that caches may keep, when they ask each time whether it is still the one.
fn document_response(document: String, headers: &HeaderMap) -> Response {
    let tag = hex::encode(digest(&SHA256, document.as_bytes()).as_ref().get(..16).unwrap_or_default());
    let tag = format!("\"{tag}\"");
    let asked = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|it| it.to_str().ok());
    let known = asked.flat_map(|list| list.split(',')).any(|it| it.trim().trim_start_matches("W/") == tag);
    let tag = HeaderValue::from_str(&tag).unwrap_or_else(|_ascii| HeaderValue::from_static("\"\""));
    let about = [(header::ETAG, tag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if known {
        return (StatusCode::NOT_MODIFIED, about).into_response();
    }
    (about, [(header::CONTENT_TYPE, JSON)], document).into_response()
}

impl WebCertificate {
    /// Both files.
    async fn read(&self) -> Result<(Vec<u8>, zeroize::Zeroizing<Vec<u8>>), String> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path).await.map_err(|cause| format!("{}: {cause}", path.display()))
        };
        let chain = read(&self.chain).await?;
        Ok((chain, zeroize::Zeroizing::new(read(&self.key).await?)))
    }
}

/// Reads the files again and again; what can be used is served from the next handshake on.
async fn keep_loaded(identity: Arc<ServingIdentity>, files: WebCertificate) {
    let mut last: Option<(Vec<u8>, zeroize::Zeroizing<Vec<u8>>)> = files.read().await.ok();
    let mut said = String::new();
    loop {
        tokio::time::sleep(RELOAD_EVERY).await;
        let outcome = match files.read().await {
            Ok(found) if last.as_ref() == Some(&found) => continue,
            Ok(found) => {
                let set = identity.set_pem(&found.0, &found.1).map_err(|cause| cause.to_string());
                set.map(|()| last = Some(found))
            }
            Err(cause) => Err(cause),
        };
        match outcome {
            Ok(()) => {
                said.clear();
                tracing::info!(file = %files.chain.display(), "the bundle endpoint's certificate was read anew");
            }
            // A half-written pair mends itself; what does not is said once.
            Err(cause) if cause != said => {
                tracing::error!(
                    cause,
                    "the bundle endpoint's certificate cannot be used; the old one is served"
                );
                said = cause;
            }
            Err(_said) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_takes_its_share_of_the_places_and_no_more_and_gets_them_back() {
        let sources = Sources::default();
        let enter = |text: &str| sources.enter(text.parse().unwrap());
        let mut taken: Vec<_> = (0..CONNECTIONS_PER_SOURCE).map(|_| enter("2001:db8::1").unwrap()).collect();
        assert!(enter("2001:db8::2").is_none(), "the same host by another address");
        assert!(enter("2001:db8:0:1::1").is_some() && enter("192.0.2.1").is_some());
        taken.pop();
        let again = enter("2001:db8::3");
        assert!(again.is_some() && enter("2001:db8::3").is_none());
        drop((taken, again));
        assert!(sources.0.lock().unwrap().is_empty(), "who left is forgotten");
    }
}
