//! Asking a running agent over its private socket.
//!
//! Laws: the answer is bounded in size and time. Not here: what can be asked (`web`).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::report::Refused;

/// Bytes of an answer: 10 000 identities of some 250 bytes leave room.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// An explanation may have to read a large executable.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error("no agent answers at {}: {cause}; start it with `rhizome-agent run`, or name its socket with --admin-socket", path.display())]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// The operating system's reason.
        cause: io::Error,
    },
    /// Not for this user.
    #[error("{}: only the agent's own user and root may ask it", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
    },
    /// The agent refused, and said why.
    #[error("{}", .0.message)]
    Refused(Refused),
    /// The answer makes no sense.
    #[error("the agent's answer makes no sense: {0}; compare the versions of this program and of the agent")]
    Answer(String),
}

/// Asks the agent at `socket` for `path`.
///
/// # Errors
/// [`AskError`].
pub async fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AskError> {
    let asked = tokio::time::timeout(PATIENCE, fetch(socket, path)).await;
    let (code, body) = asked.map_err(|_elapsed| AskError::Answer(format!("none within {PATIENCE:?}")))??;
    let nonsense = |error: serde_json::Error| AskError::Answer(error.to_string());
    if code == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(nonsense);
    }
    Err(AskError::Refused(serde_json::from_slice(&body).map_err(nonsense)?))
}

async fn fetch(socket: &Path, path: &str) -> Result<(StatusCode, Vec<u8>), AskError> {
    let here = || socket.to_owned();
    let stream = UnixStream::connect(socket).await.map_err(|cause| {
        let stranger = cause.kind() == io::ErrorKind::PermissionDenied;
        if stranger { AskError::Stranger { path: here() } } else { AskError::Nobody { path: here(), cause } }
    })?;
    let broken = |error: hyper::Error| {
        // A stranger is hung up on.
        if error.is_parse() {
            AskError::Answer(error.to_string())
        } else {
            AskError::Stranger { path: here() }
        }
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(path).header(header::HOST, "agent").body(Body::empty());
    let request = request.map_err(|error| AskError::Answer(error.to_string()))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let code = answer.status();
        let body = to_bytes(Body::new(answer.into_body()), ANSWER_BYTES).await;
        Ok((code, body.map_err(|error| AskError::Answer(error.to_string()))?.to_vec()))
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = connection => {
            ended.map_err(broken)?;
            answer.await
        }
    }
}
