//! Joining: from a join string to a node identity, and the addresses of the servers that it named.
//!
//! Laws: the token goes only over a connection that has verified the server against the pinned root; the key is on disk
//! before the token is spent, so that a join whose answer was lost can be repeated. The token is not kept.
//! Not here: the join string's form and its pins (`rhizome_tls`), what happens with the identity (`node`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rhizome_core::ports::Clock;
use rhizome_proto::node::v1::attest_request::Evidence;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::{AttestRequest, JoinTokenEvidence};
use rhizome_tls::{
    ConnectError, ExpectedServer, JoinError, JoinString, MAX_ADDRESSES, TlsError, discover, is_address,
};
use rhizome_x509::{TrustAnchors, create_csr};
use serde::{Deserialize, Serialize};
use tonic::Request;

use crate::node::{CALL_DEADLINE, Node, NodeError};
use crate::sealed::{self, SealedError, check_directory, on_disk};
use crate::wire::Nonsense;

const SERVERS: &str = "servers.json";

/// Why a machine could not join.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The first contact.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The second connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A fault of ours.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The attestation, or what came of it.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// Joins with `join`, and keeps identity and addresses below `state`. The node's id, `CLUSTER/METHOD/NAME`.
///
/// # Errors
/// [`BootstrapError`]; a later attempt with the same join string goes on where this one stopped.
pub async fn join(state: &Path, join: &JoinString, clock: &Arc<dyn Clock>) -> Result<String, BootstrapError> {
    join_as(&Arc::new(Node::new(state)), state, join, clock).await
}

pub(crate) async fn join_as(
    node: &Arc<Node>,
    state: &Path,
    join: &JoinString,
    clock: &Arc<dyn Clock>,
) -> Result<String, BootstrapError> {
    let (address, bundle) = discover(join).await?;
    let anchors = Arc::new(TrustAnchors::from_bundle(&bundle));
    let expected = ExpectedServer::ServerOf(join.trust_domain().clone());
    let now = Arc::clone(clock);
    let config = rhizome_tls::client_config(anchors, None, expected, Arc::new(move || now.now()))?;
    let channel = rhizome_tls::connect(&address, Some(Arc::new(config))).await?;

    let (here, place) = (Arc::clone(node), state.to_owned());
    let key = move || {
        make_directory(&place)?;
        here.pending_key()
    };
    let key = on_disk(key).await.map_err(NodeError::from)??;
    let evidence = JoinTokenEvidence { token: join.token().to_owned() };
    let csr_der = Bytes::from(create_csr(&key).map_err(NodeError::from)?);
    let mut request = Request::new(AttestRequest { evidence: Some(Evidence::JoinToken(evidence)), csr_der });
    request.set_timeout(CALL_DEADLINE);
    let answer = NodeServiceClient::new(channel).attest(request).await.map_err(NodeError::from)?.into_inner();
    let sent = answer.identity.ok_or_else(|| NodeError::from(Nonsense::of("the identity is missing")))?;
    let (here, place, addresses) = (Arc::clone(node), state.to_owned(), join.addresses().to_vec());
    let now = clock.now();
    let keep = move || {
        save_servers(&place, &addresses)?;
        here.keep(&sent, &key, &bundle, now)
    };
    on_disk(keep).await.map_err(NodeError::from)??;
    tracing::info!(node = answer.node_id, %address, "joined");
    Ok(answer.node_id)
}

#[derive(Serialize, Deserialize)]
struct Servers {
    addresses: Vec<String>,
}

fn make_directory(state: &Path) -> Result<(), SealedError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state);
    made.map_err(|cause| failed("create", state.to_owned(), &cause))?;
    check_directory(state)
}

fn save_servers(state: &Path, addresses: &[String]) -> Result<(), SealedError> {
    let servers = Servers { addresses: addresses.to_vec() };
    let text =
        serde_json::to_vec(&servers).map_err(|_strings| SealedError::Crypto("a list cannot be encoded"))?;
    sealed::write(state, SERVERS, &[&text])
}

/// Where the servers are, in order of preference, as the last join string said.
///
/// # Errors
/// [`SealedError`] naming the file and what is wrong with it.
pub(crate) fn servers(state: &Path) -> Result<Vec<String>, SealedError> {
    let path = state.join(SERVERS);
    let bad = |cause: String| SealedError::Io { action: "use", path: path.clone(), cause };
    let bytes = std::fs::read(&path).map_err(|cause| failed("read", path.clone(), &cause))?;
    let servers: Servers = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if !(1..=MAX_ADDRESSES).contains(&servers.addresses.len())
        || !servers.addresses.iter().all(|it| is_address(it))
    {
        return Err(bad("it does not hold 1 to 8 addresses host:port".to_owned()));
    }
    Ok(servers.addresses)
}

fn failed(action: &'static str, path: PathBuf, error: &io::Error) -> SealedError {
    SealedError::Io { action, path, cause: error.to_string() }
}
