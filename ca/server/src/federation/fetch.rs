//! One fetch of a foreign bundle: a GET over TLS, from an address that was judged.
//!
//! Laws: every step has a deadline and the whole has one; an answer is read up to its limit and not further; nothing but
//! the question goes out: no cookie, no credential. A host's addresses are looked up once, judged, and connected to as
//! they were judged, so that a name that answers differently the next time leads nowhere else. Each redirect is judged as
//! the first address was, must satisfy the same profile, and is forgotten afterwards; one to another host never leads to
//! an address that is not public. What the endpoint sent is never echoed.
//! Not here: what the document says (`rhizome_core::federation`), whom to believe (`federation`).
//! Sources: SPIFFE Federation §5, §7.5.1; RFC 9110 §15.4; ca/docs/attacks.md §1.4 (SSRF).

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use futures::StreamExt as _;
use futures::future::{Either, select};
use hyper_util::rt::TokioIo;
use rhizome_core::federation::{EndpointUrl, RedirectError, Relationship, not_public};
use rhizome_core::limits::FOREIGN_BUNDLE_BYTES;
use rhizome_id::Timestamp;
use rhizome_tls::{EndpointConnection, EndpointError, EndpointTrust, secure_endpoint};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// For looking a name up, for connecting to one address, and for a handshake: three SYN retries would take 7 s.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// For all of it, redirects included.
const DEADLINE: Duration = Duration::from_secs(20);
/// Addresses of one host that are tried.
const ADDRESSES: usize = 4;
/// Bytes of an answer's head; hyper's least.
const HEAD_BYTES: usize = 16 * 1024;
const AGENT: &str = concat!("rhizome/", env!("CARGO_PKG_VERSION"));

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What came.
pub(super) struct Fetched {
    /// The document.
    pub(super) text: String,
    /// What the endpoint presented, leaf first, in DER.
    pub(super) chain_der: Vec<Vec<u8>>,
}

/// Why nothing came. No text of the endpoint's is in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the name {host} cannot be looked up: {cause}")]
    Lookup { host: String, cause: String },
    #[error("{host} is at {address}, {what}; allow it with --allow-private-addresses if it is meant")]
    Address { host: String, address: IpAddr, what: &'static str },
    #[error("a redirect leads to {host} at {address}, {what}")]
    RedirectAddress { host: String, address: IpAddr, what: &'static str },
    #[error("cannot connect to {host}: {cause}")]
    Connect { host: String, cause: String },
    #[error(transparent)]
    Tls(#[from] EndpointError),
    #[error("the answer is no HTTP as we speak it: {0}")]
    Http(String),
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error("it answers with status {0}")]
    Status(u16),
    #[error("its answer has more than {FOREIGN_BUNDLE_BYTES} bytes")]
    TooLarge,
    #[error("its answer is not UTF-8")]
    Encoding,
    #[error("it did not answer within {DEADLINE:?}")]
    TimedOut,
}

impl FetchError {
    /// A stable word.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Lookup { .. } => "lookup",
            Self::Address { .. } => "address",
            Self::RedirectAddress { .. } => "redirect_address",
            Self::Connect { .. } => "connect",
            Self::Tls(EndpointError::Refused(_)) => "identity",
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Redirect(_) => "redirect",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::Encoding => "encoding",
            Self::TimedOut => "timeout",
        }
    }

    /// Whether somebody answered with what must be refused; anything else may pass by itself.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::RedirectAddress { .. }
            | Self::Redirect(_)
            | Self::TooLarge
            | Self::Encoding
            | Self::Tls(EndpointError::Refused(_)) => true,
            Self::Lookup { .. }
            | Self::Connect { .. }
            | Self::Tls(_)
            | Self::Http(_)
            | Self::Status(_)
            | Self::TimedOut => false,
        }
    }
}

enum Answer {
    Document(Fetched),
    Redirect(String),
}

/// Fetches the bundle document of `relationship` from an endpoint that is believed by `trust`.
pub(super) async fn fetch(
    relationship: &Relationship,
    trust: &EndpointTrust,
    clock: Clock,
) -> Result<Fetched, FetchError> {
    let all = async {
        let mut url = relationship.url.clone();
        let mut redirects = 0_usize;
        loop {
            match Box::pin(once(relationship, &url, trust, &clock)).await? {
                Answer::Document(fetched) => return Ok(fetched),
                Answer::Redirect(location) => {
                    redirects = redirects.saturating_add(1);
                    url = url.redirected(&location, redirects)?;
                }
            }
        }
    };
    timeout(DEADLINE, all).await.unwrap_or(Err(FetchError::TimedOut))
}

async fn once(
    relationship: &Relationship,
    url: &EndpointUrl,
    trust: &EndpointTrust,
    clock: &Clock,
) -> Result<Answer, FetchError> {
    let tcp = connect(relationship, url).await?;
    let connection = secure_endpoint(tcp, url.host(), trust, Arc::clone(clock), STEP_DEADLINE).await?;
    ask(connection, url).await
}

/// Connects to an address of the host of `url` that may be connected to.
async fn connect(relationship: &Relationship, url: &EndpointUrl) -> Result<TcpStream, FetchError> {
    let host = || url.host().to_owned();
    let lookup = |cause: String| FetchError::Lookup { host: host(), cause };
    let found = timeout(STEP_DEADLINE, lookup_host((url.host(), url.port()))).await;
    let found = found.map_err(|_elapsed| lookup(format!("no answer within {STEP_DEADLINE:?}")))?;
    let found: Vec<SocketAddr> = found.map_err(|cause| lookup(cause.to_string()))?.collect();
    // The permission is for the host and port that the administrator named.
    let named = (url.host(), url.port()) == (relationship.url.host(), relationship.url.port());
    let anywhere = named && relationship.private_addresses;
    let mut refused = None;
    let mut last = FetchError::Lookup { host: host(), cause: "it has no address".to_owned() };
    for address in found.into_iter().take(ADDRESSES) {
        if let Some(what) = not_public(address.ip()).filter(|_| !anywhere) {
            let (host, address) = (host(), address.ip());
            refused = Some(match named {
                true => FetchError::Address { host, address, what },
                false => FetchError::RedirectAddress { host, address, what },
            });
            continue;
        }
        match timeout(STEP_DEADLINE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(cause)) => last = FetchError::Connect { host: host(), cause: cause.to_string() },
            Err(_elapsed) => {
                let cause = format!("no answer within {STEP_DEADLINE:?}");
                last = FetchError::Connect { host: host(), cause };
            }
        }
    }
    Err(refused.unwrap_or(last))
}

/// One question and its answer.
async fn ask(connection: EndpointConnection, url: &EndpointUrl) -> Result<Answer, FetchError> {
    let EndpointConnection { stream, chain_der } = connection;
    let broken = |error: hyper::Error| FetchError::Http(error.to_string());
    let mut http = hyper::client::conn::http1::Builder::new();
    let (mut sender, driver) =
        http.max_buf_size(HEAD_BYTES).handshake::<_, Body>(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(url.target())
        .header(header::HOST, url.authority())
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, AGENT)
        .header(header::CONNECTION, "close")
        .body(Body::empty())
        .map_err(|error| FetchError::Http(error.to_string()))?;
    let exchange = pin!(async move {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        if head.status.is_redirection() {
            let location = head.headers.get(header::LOCATION).and_then(|it| it.to_str().ok());
            return match location {
                Some(location) => Ok(Answer::Redirect(location.to_owned())),
                None => Err(FetchError::Status(head.status.as_u16())),
            };
        }
        if head.status != StatusCode::OK {
            return Err(FetchError::Status(head.status.as_u16()));
        }
        let text = read(Body::new(body)).await?;
        Ok(Answer::Document(Fetched { text, chain_der }))
    });
    // The driver moves the bytes; that it ends does not mean that everything was read.
    match select(exchange, pin!(driver)).await {
        Either::Left((answer, _driver)) => answer,
        Either::Right((_ended, exchange)) => exchange.await,
    }
}

async fn read(body: Body) -> Result<String, FetchError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| FetchError::Http(error.to_string()))?;
        if bytes.len().saturating_add(chunk.len()) > FOREIGN_BUNDLE_BYTES {
            return Err(FetchError::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_not_text| FetchError::Encoding)
}
