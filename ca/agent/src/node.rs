//! The node's own certificate: which one it is, when it is renewed, and what is left when it has expired.
//!
//! Laws: a key is on disk before it is used in a request, and a request whose answer was lost is repeated with the same
//! key (the server takes any other for a copy of the node); the identity on disk is the newest; a certificate is
//! renewed at the instant drawn for it, or at the server's order, and never by a clock of its own.
//! Not here: the first join (`bootstrap`), the connection (`link`).
//! Sources: `rhizome_core::nodes` (lost answers and copies); ca/docs/issuance.md, Renewal (drawn once).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rhizome_core::caller::{Principal, principal_of};
use rhizome_id::{SpiffeId, Timestamp};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::node::v1::RenewRequest;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_tls::{ClientIdentity, IdentityDir, IdentityDirError, IdentityError, StoredIdentity};
use rhizome_x509::{Bundle, KeyAlgorithm, RequestKey, create_csr, inspect};
use tonic::transport::Channel;
use tonic::{Request, Status};
use zeroize::Zeroizing;

use crate::renewal;
use crate::sealed::{self, NodeRenewal, SealedError, on_disk};
use crate::wire::{self, Nonsense};

/// Where the identity lies below the state directory.
const IDENTITY: &str = "identity";
/// There while the authority refuses this node; what it says is for people.
const REFUSED: &str = "refused";
/// A key that may have been sent and has no certificate yet; PKCS #8 in DER, mode 0600.
const PENDING_KEY: &str = "key.pending.der";
/// An EC key takes some 150 bytes.
const PENDING_KEY_LIMIT: usize = 4_096;
/// For one answer of a server that may be recovering.
pub(crate) const CALL_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// What the node is at the moment.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) principal: Principal,
    pub(crate) serial: String,
    pub(crate) not_after: Timestamp,
    pub(crate) renew_at: Timestamp,
    /// As on disk: chain and key.
    presented: Arc<ClientIdentity>,
}

impl Certificate {
    /// What to present on a connection.
    pub(crate) fn identity(&self) -> Result<ClientIdentity, IdentityError> {
        let key = Zeroizing::new(self.presented.key_pkcs8_der().to_vec());
        ClientIdentity::new(self.presented.chain_der().to_vec(), key)
    }

    /// The certificate itself, in DER.
    pub(crate) fn leaf(&self) -> Option<Vec<u8>> {
        self.presented.chain_der().first().cloned()
    }
}

/// Why the node's identity could not be read, written or renewed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The identity on disk.
    #[error(transparent)]
    Identity(#[from] IdentityDirError),
    /// A file beside it.
    #[error(transparent)]
    File(#[from] SealedError),
    /// What is on disk is the identity of something else.
    #[error("{path} does not hold a node's identity; join with another directory", path = .path.display())]
    NotANode {
        /// The directory.
        path: PathBuf,
    },
    /// No key could be made, or no request.
    #[error("a key cannot be made: {0}")]
    Key(#[from] rhizome_x509::RequestError),
    /// The server said no, or could not be reached.
    #[error("{}", rhizome_tls::cause_of(.0))]
    Call(Box<Status>),
    /// The server's answer is of no use.
    #[error(transparent)]
    Answer(#[from] Nonsense),
}

impl From<Status> for NodeError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// The node's identity in its directory.
pub(crate) struct Node {
    state: PathBuf,
    directory: IdentityDir,
    current: Mutex<Option<Certificate>>,
    /// Held while the identity is read or replaced, so that what was read before never takes the place of what was kept.
    disk: Mutex<()>,
}

impl Node {
    pub(crate) fn new(state: &Path) -> Self {
        let directory = IdentityDir::new(state.join(IDENTITY));
        Self { state: state.to_owned(), directory, current: Mutex::new(None), disk: Mutex::new(()) }
    }

    pub(crate) const fn directory(&self) -> &IdentityDir {
        &self.directory
    }

    pub(crate) fn current(&self) -> Option<Certificate> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn renewal(&self) -> NodeRenewal {
        self.current()
            .map_or_else(NodeRenewal::default, |it| NodeRenewal { serial: it.serial, at: Some(it.renew_at) })
    }

    /// Reads what is on disk, where somebody may have joined anew meanwhile; `known` is the drawn instant of the
    /// certificate that was there before. Blocks on the disk.
    pub(crate) fn load(&self, known: &NodeRenewal) -> Result<(Certificate, Bundle), NodeError> {
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let StoredIdentity { identity, bundle } = self.directory.load()?;
        let not_a_node = || NodeError::NotANode { path: self.directory.path().to_owned() };
        let facts = inspect(identity.leaf_der()).map_err(Nonsense::of)?;
        let spiffe_id = facts.spiffe_id.clone().ok_or_else(not_a_node)?;
        let principal = principal_of(&spiffe_id, bundle.trust_domain());
        let principal = principal.filter(|it| matches!(it, Principal::Node { .. })).ok_or_else(not_a_node)?;
        let serial = hex::encode(&facts.serial);
        let drawn = known.at.filter(|_| known.serial == serial);
        let certificate = Certificate {
            spiffe_id,
            principal,
            not_after: facts.not_after,
            renew_at: drawn.unwrap_or_else(|| renewal::own_draw(&facts)),
            serial,
            presented: Arc::new(identity),
        };
        self.set(certificate.clone());
        Ok((certificate, bundle))
    }

    fn set(&self, certificate: Certificate) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(certificate);
    }

    /// Brings the renewal forward, by the server's order.
    pub(crate) fn renew_by(&self, slot: Timestamp) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_mut() {
            current.renew_at = current.renew_at.min(slot);
        }
    }

    /// Asks for the next certificate over a connection that presents the current one, and keeps it.
    pub(crate) async fn renew(
        self: &Arc<Self>,
        channel: Channel,
        bundle: Arc<Bundle>,
        now: Timestamp,
    ) -> Result<(), NodeError> {
        let node = Arc::clone(self);
        let key = on_disk(move || node.pending_key()).await??;
        let mut request = Request::new(RenewRequest { csr_der: Bytes::from(create_csr(&key)?) });
        request.set_timeout(CALL_DEADLINE);
        let answer = NodeServiceClient::new(channel).renew(request).await?.into_inner();
        let sent = answer.identity.ok_or_else(|| Nonsense::of("the identity is missing"))?;
        let node = Arc::clone(self);
        on_disk(move || node.keep(&sent, &key, &bundle, now)).await?
    }

    /// Checks and keeps an identity that was issued for the pending key. Blocks on the disk.
    pub(crate) fn keep(
        &self,
        sent: &ca::IssuedCertificate,
        key: &RequestKey,
        bundle: &Bundle,
        now: Timestamp,
    ) -> Result<(), NodeError> {
        let checked = wire::check(sent, key, bundle, now)?;
        let principal = principal_of(&checked.spiffe_id, bundle.trust_domain());
        let principal = principal.filter(|it| matches!(it, Principal::Node { .. }));
        let principal = principal.ok_or_else(|| Nonsense::of("the certificate is not a node's"))?;
        let known = self.current().filter(|known| known.principal != principal);
        if let Some(known) = known {
            tracing::warn!(before = %known.spiffe_id, now = %checked.spiffe_id, "this machine is another node now");
        }
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let identity =
            || ClientIdentity::new(checked.chain_der.clone(), key.pkcs8_der()).map_err(Nonsense::of);
        self.directory.save(&StoredIdentity { identity: identity()?, bundle: bundle.clone() })?;
        self.forget_pending_key()?;
        self.set(Certificate {
            serial: hex::encode(&checked.facts.serial),
            not_after: checked.facts.not_after,
            renew_at: renewal::not_at_once(checked.renew_at, now, checked.facts.not_after),
            presented: Arc::new(identity()?),
            spiffe_id: checked.spiffe_id,
            principal,
        });
        Ok(())
    }

    /// The key of an earlier attempt whose answer was lost, or a new one that is on disk before it is used. Blocks on
    /// the disk.
    pub(crate) fn pending_key(&self) -> Result<RequestKey, NodeError> {
        let path = self.state.join(PENDING_KEY);
        match std::fs::read(&path).map(Zeroizing::new) {
            Ok(der) if der.len() <= PENDING_KEY_LIMIT => match RequestKey::from_pkcs8_der(&der) {
                Ok(key) => return Ok(key),
                Err(cause) => {
                    tracing::error!(file = %path.display(), %cause, "a pending key is of no use; making a new one")
                }
            },
            Ok(_too_long) => {
                tracing::error!(file = %path.display(), "a pending key is of no use; making a new one")
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", path, &error).into()),
        }
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256)?;
        sealed::write(&self.state, PENDING_KEY, &[&key.pkcs8_der()])?;
        Ok(key)
    }

    /// Notes, for `check`, that the authority refuses this node, or that it does no more.
    pub(crate) async fn note_refusal(self: &Arc<Self>, cause: Option<String>) {
        let node = Arc::clone(self);
        let noted = on_disk(move || node.keep_refusal(cause.as_deref())).await;
        if let Err(cause) = noted.and_then(std::convert::identity) {
            tracing::warn!(%cause, "that the authority refuses this node could not be noted");
        }
    }

    fn keep_refusal(&self, cause: Option<&str>) -> Result<(), SealedError> {
        match cause {
            Some(cause) => sealed::write(&self.state, REFUSED, &[cause.as_bytes(), b"\n"]),
            None => match std::fs::remove_file(self.state.join(REFUSED)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("remove", self.state.join(REFUSED), &error))
                }
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }

    /// Lets go of a pending key: it has its certificate, or the server will never take it.
    pub(crate) fn forget_pending_key(&self) -> Result<(), SealedError> {
        let path = self.state.join(PENDING_KEY);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// What was noted when the authority last refused this node, if it still does. Blocks on the disk.
pub(crate) fn refused(state: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state.join(REFUSED)).ok()?;
    Some(text.trim_end().chars().take(1_024).collect())
}

fn failed(action: &'static str, path: PathBuf, error: &io::Error) -> SealedError {
    SealedError::Io { action, path, cause: error.to_string() }
}
