//! Reaching a server: TCP or a Unix socket, TLS on top, one gRPC channel that reconnects by itself.
//!
//! Laws: over TCP there is no connection without TLS; every attempt has a deadline; a failure says which of three
//! things happened: nobody answered, we refused the server (and why), or the server refused us. Not here: retries of
//! calls, which server to prefer.
//! Sources: RFC 9113 §3.4 (connection preface), RFC 8446 §6.2 (alerts).

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::error::{ServerRefusal, reason_in};

/// For name resolution and TCP, and again for the TLS handshake. Ten seconds are three SYN retries (RFC 6298: 1, 2,
/// 4 s) and more than any handshake takes.
const STEP_DEADLINE: Duration = Duration::from_secs(10);
/// Notices a dead peer or a forgetful NAT (commonly 350 s at the cloud balancers) in less than a minute.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long a ping may stay unanswered.
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(10);

/// Connects to `address`, `HOST:PORT` or `unix:///PATH`, and keeps reconnecting to it for as long as the channel lives.
/// With `tls` it speaks TLS; without, it speaks plainly, which only a Unix socket allows.
///
/// # Errors
/// [`ConnectError`] when the first attempt fails. Failures of later attempts come with the calls; [`cause_of`] finds
/// them there. That the server refuses the client's certificate is seen at the first call (RFC 8446 §4.4.2.4: the
/// client is done before the server has judged it).
pub async fn connect(address: &str, tls: Option<Arc<ClientConfig>>) -> Result<Channel, ConnectError> {
    let target = Arc::new(Target::parse(address)?);
    if tls.is_none() && matches!(target.place, Place::Tcp { .. }) {
        return Err(ConnectError::Plaintext { address: target.text.clone() });
    }
    let bug = |error: tonic::transport::Error| ConnectError::Transport {
        address: address.to_owned(),
        cause: cause_of(&error),
    };
    let endpoint = Endpoint::try_from(target.authority.clone())
        .map_err(bug)?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .keep_alive_while_idle(true);
    let connector = tower::service_fn(move |_uri| {
        let (target, tls) = (Arc::clone(&target), tls.clone());
        async move { open(&target, tls).await.map(TokioIo::new) }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| find::<ConnectError>(&error).cloned().unwrap_or_else(|| bug(error)))
}

/// The sentence that helps, out of an error and everything below it: our own reason when there is one, else the
/// deepest cause. Give it a `tonic::Status` to learn why a call did not reach its server.
pub fn cause_of(error: &(dyn Error + 'static)) -> String {
    if let Some(ours) = find::<ConnectError>(error) {
        return ours.to_string();
    }
    let mut deepest = error;
    while let Some(below) = deepest.source() {
        deepest = below;
    }
    deepest.to_string()
}

/// Why a server could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The address has neither of the two forms.
    #[error("`{address}` is not an address; write HOST:PORT or unix:///PATH")]
    Address {
        /// The text given.
        address: String,
    },
    /// TCP without TLS.
    #[error("refusing to speak to {address} without TLS; only a unix:// address may be plain")]
    Plaintext {
        /// The address.
        address: String,
    },
    /// Nobody answers there.
    #[error("cannot reach {address}: {cause}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// We refused the server's certificate.
    #[error("{address} answered, but it is not to be trusted: {refusal}")]
    ServerRefused {
        /// The address.
        address: String,
        /// Why.
        refusal: ServerRefusal,
    },
    /// The server refused us, with an alert.
    #[error("{address} refused the connection: {cause}")]
    RefusedByServer {
        /// The address.
        address: String,
        /// The alert, in words.
        cause: String,
    },
    /// Something answered, but not with TLS as we speak it.
    #[error("{address} answered, but the TLS handshake failed: {cause}")]
    Handshake {
        /// The address.
        address: String,
        /// What went wrong.
        cause: String,
    },
    /// HTTP/2 could not be set up.
    #[error("the connection to {address} failed: {cause}")]
    Transport {
        /// The address.
        address: String,
        /// What went wrong.
        cause: String,
    },
}

struct Target {
    text: String,
    /// What goes into the requests' `:authority`; never used to find the server.
    authority: String,
    server_name: ServerName<'static>,
    place: Place,
}

enum Place {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Target {
    fn parse(address: &str) -> Result<Self, ConnectError> {
        let refuse = || ConnectError::Address { address: address.chars().take(300).collect() };
        if let Some(path) = address.strip_prefix("unix://") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(refuse());
            }
            return Ok(Self {
                text: address.to_owned(),
                authority: "http://localhost".to_owned(),
                server_name: ServerName::try_from("localhost").map_err(|_not_a_name| refuse())?,
                place: Place::Unix(PathBuf::from(path)),
            });
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(refuse)?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(refuse)?;
        let bare = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inside) => inside,
            None if host.contains(':') => return Err(refuse()),
            None => host,
        };
        let server_name = ServerName::try_from(bare.to_owned()).map_err(|_not_a_name| refuse())?;
        Ok(Self {
            text: address.to_owned(),
            authority: format!("http://{host}:{port}"),
            server_name,
            place: Place::Tcp { host: bare.to_owned(), port },
        })
    }
}

/// One connection, for whoever brings a protocol of its own.
pub struct Dialled {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// The certificate of the server, verified in this very handshake; in DER.
    pub server_leaf_der: Vec<u8>,
}

/// Connects once to `address`, `HOST:PORT`, with TLS. No application protocol is negotiated (ALPN).
///
/// # Errors
/// [`ConnectError`]. That the server refuses this client is seen at the first reading (RFC 8446 §4.4.2.4).
pub async fn dial(address: &str, tls: &ClientConfig) -> Result<Dialled, ConnectError> {
    let mut config = tls.clone();
    config.alpn_protocols.clear();
    let target = Target::parse(address)?;
    let Explained(stream) = secure(&target, Arc::new(config)).await?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let server_leaf_der = leaf.map(|leaf| leaf.to_vec()).unwrap_or_default();
    Ok(Dialled { stream: Box::new(Explained(stream)), server_leaf_der })
}

/// What is read from and written to.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn open(target: &Target, tls: Option<Arc<ClientConfig>>) -> Result<Box<dyn Stream>, ConnectError> {
    match tls {
        None => reach(target).await,
        Some(config) => Ok(Box::new(secure(target, config).await?)),
    }
}

async fn secure(
    target: &Target,
    config: Arc<ClientConfig>,
) -> Result<Explained<TlsStream<Box<dyn Stream>>>, ConnectError> {
    let plain = reach(target).await?;
    let handshake = TlsConnector::from(config).connect(target.server_name.clone(), plain);
    let failed = |cause: String| ConnectError::Handshake { address: target.text.clone(), cause };
    match tokio::time::timeout(STEP_DEADLINE, handshake).await {
        Ok(Ok(stream)) => Ok(Explained(stream)),
        Ok(Err(error)) => Err(match (reason_in::<ServerRefusal>(&error), alert_in(&error)) {
            (Some(refusal), _) => {
                ConnectError::ServerRefused { address: target.text.clone(), refusal: refusal.clone() }
            }
            (None, Some(cause)) => ConnectError::RefusedByServer { address: target.text.clone(), cause },
            (None, None) => failed(error.to_string()),
        }),
        Err(_elapsed) => Err(failed(format!("no answer within {STEP_DEADLINE:?}"))),
    }
}

async fn reach(target: &Target) -> Result<Box<dyn Stream>, ConnectError> {
    let attempt = async {
        let stream: Box<dyn Stream> = match &target.place {
            Place::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(stream)
    };
    let cause = match tokio::time::timeout(STEP_DEADLINE, attempt).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => io::Error::to_string(&error),
        Err(_elapsed) => format!("no answer within {STEP_DEADLINE:?}"),
    };
    Err(ConnectError::Unreachable { address: target.text.clone(), cause })
}

/// The server's alert in words, when that is what `error` is.
fn alert_in(error: &io::Error) -> Option<String> {
    use rustls::AlertDescription as Alert;

    let rustls::Error::AlertReceived(alert) = error.get_ref()?.downcast_ref::<rustls::Error>()? else {
        return None;
    };
    let ours = [
        Alert::CertificateUnknown,
        Alert::BadCertificate,
        Alert::CertificateExpired,
        Alert::UnknownCA,
        Alert::AccessDenied,
    ];
    Some(if ours.contains(alert) {
        format!(
            "it does not accept this client's certificate (alert {alert:?}); its log has the reason, the usual ones \
             are an expired certificate and one from another trust domain"
        )
    } else {
        format!("TLS alert {alert:?}")
    })
}

/// Puts an alert that comes after the handshake into words: HTTP/2 keeps only the text of an I/O error.
struct Explained<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf).map_err(|error| match alert_in(&error) {
            Some(words) => io::Error::new(error.kind(), AfterHandshake(words)),
            None => error,
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[derive(Debug)]
struct AfterHandshake(String);

impl fmt::Display for AfterHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server refused the connection: {}", self.0)
    }
}

impl Error for AfterHandshake {}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        current = error.source();
    }
    None
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
