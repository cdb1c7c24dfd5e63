//! The connection to the Rhizome above, and the node identity that it is made with: joined once, renewed at half of its
//! life, kept in a directory.
//!
//! Laws: the first connection carries nothing but the question for the bundle, and what comes back is compared with the
//! join string's fingerprints; the token goes only over a connection that was verified by them, and the key is on disk
//! before it goes. From then on the server above is verified by the bundle in force at each new connection.
//! Not here: what is asked and believed (the parent).
//! Sources: kubeadm's discovery by token; spiffe/spire#2454 (lost answer).

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rhizome_core::authority::{Authority, AuthorityKind};
use rhizome_core::caller::{Principal, principal_of};
use rhizome_core::clusters::AboveError;
use rhizome_core::ports::{Clock, StoreError};
use rhizome_core::state::State;
use rhizome_id::{ClusterName, Digest, Timestamp, TrustDomain};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::node::v1 as node;
use rhizome_proto::node::v1::attest_request::Evidence;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::upstream::v1::upstream_service_client::UpstreamServiceClient;
use rhizome_tls::{
    ClientIdentity, ConnectError, ExpectedServer, IdentityDir, IdentityDirError, IdentityError, JoinError,
    MAX_ISSUERS, StoredIdentity, TlsError, client_config, connect, discover,
};
use rhizome_x509::{
    Bundle, CaCertificate, Issuer, KeyAlgorithm, PeerUsage, RequestError, RequestKey, TrustAnchors,
    create_csr, inspect, verify_peer,
};
use tonic::Request;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::ca::Ca;
use crate::error::ApiError;
use crate::settings::UpstreamSettings;
use crate::status::{Refusal, heard};

/// How soon an identity is renewed again because of the root it is below, in seconds.
const RENEW_AGAIN_SECONDS: i64 = 10;
/// For one answer of a server that may be recovering.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Where the key waits, in PKCS #8 DER, between being made and being certified.
const PENDING_KEY: &str = "key.pending.der";
/// SHA-256 of the keys of the issuers above, one in a line.
const ISSUERS: &str = "issuers";
/// An EC key takes some 150 bytes.
const PENDING_KEY_BYTES: u64 = 4_096;
/// Answers to reports: a bundle of 64 roots.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Why nothing comes from the Rhizome above.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It was never joined, and there is nothing to join with.
    #[error(
        "authority.upstream: {} holds no identity, and there is no join string; make one with `rhizome cluster add` on the \
         server above, and name its file as `join_file`", path.display()
    )]
    NothingToJoinWith {
        /// The directory.
        path: PathBuf,
    },
    /// The first contact came to nothing.
    #[error("authority.upstream: {0}")]
    Join(#[from] JoinError),
    /// The join string was refused.
    #[error("authority.upstream: the join string was refused: {0}")]
    JoinRefused(String),
    /// It joined as somebody else.
    #[error("authority.upstream: {path} holds the identity of {found}, not of cluster {wanted}", path = .path.display())]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose.
        found: String,
        /// Which cluster the join string is for.
        wanted: ClusterName,
    },
    /// It cannot be reached.
    #[error("the Rhizome above cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    /// It refused a call.
    #[error("the Rhizome above refused: {0}")]
    Refused(String),
    /// It did not answer a call.
    #[error("the Rhizome above did not answer: {0}")]
    Call(String),
    /// What it says is refused.
    #[error("what the Rhizome above says is refused: {0}")]
    Above(#[from] AboveError),
    /// What it says makes no sense.
    #[error("what the Rhizome above says makes no sense: {0}")]
    Nonsense(String),
    /// The identity on disk.
    #[error("authority.upstream: {0}")]
    Directory(#[from] IdentityDirError),
    /// A file beside it.
    #[error("authority.upstream: {}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A fault of ours.
    #[error(transparent)]
    Own(Box<ApiError>),
}

impl UpstreamError {
    /// Whether trying again without anybody's help is of no use.
    pub(crate) const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NothingToJoinWith { .. }
                | Self::JoinRefused(_)
                | Self::OtherCluster { .. }
                | Self::Directory(_)
                | Self::Connect(ConnectError::ServerRefused { .. })
                | Self::Join(JoinError::RootMismatch { .. } | JoinError::WrongTrustDomain { .. })
        )
    }
}

impl From<ApiError> for UpstreamError {
    fn from(cause: ApiError) -> Self {
        Self::Own(Box::new(cause))
    }
}

impl From<StoreError> for UpstreamError {
    fn from(cause: StoreError) -> Self {
        ApiError::from(cause).into()
    }
}

impl From<IdentityError> for UpstreamError {
    fn from(cause: IdentityError) -> Self {
        Self::Nonsense(cause.to_string())
    }
}

impl From<TlsError> for UpstreamError {
    fn from(cause: TlsError) -> Self {
        ApiError::Bug(cause.to_string()).into()
    }
}

impl From<RequestError> for UpstreamError {
    fn from(cause: RequestError) -> Self {
        ApiError::Bug(cause.to_string()).into()
    }
}

/// The identity in memory.
struct Identity {
    presented: ClientIdentity,
    renew_at: Timestamp,
    not_after: Timestamp,
    /// When it was taken into use.
    since: Timestamp,
    /// What signed it, nearest first.
    above: Vec<CaCertificate>,
    /// The roots that were believed when it was stored: for the first connection, before any bundle is taken over.
    trusted: Bundle,
}

impl Identity {
    /// Which of `roots` it is below, without going round by a bridge to another one. `None`: nobody can say.
    fn root_among<'r>(&self, roots: impl Iterator<Item = &'r CaCertificate>) -> Option<&'r CaCertificate> {
        let reaches = |root: &CaCertificate| {
            (1..=self.above.len()).find(|many| {
                let between = self.above.get(..*many).unwrap_or_default().to_vec();
                Issuer::new(between, root.clone()).is_ok()
            })
        };
        roots.filter_map(|root| Some((reaches(root)?, root))).min_by_key(|(many, _)| *many).map(|(_, it)| it)
    }
}

/// A connection, and the sequence of the bundle that its servers are verified by.
struct Open {
    channel: Channel,
    sequence: u64,
}

/// The way to the Rhizome above.
pub(crate) struct Link {
    settings: UpstreamSettings,
    directory: IdentityDir,
    identity: Mutex<Option<Arc<Identity>>>,
    open: Mutex<Option<Open>>,
    /// Who signs the certificates of the servers above; empty until it was looked up.
    issuers: Mutex<Vec<Digest>>,
}

/// A call with its deadline.
pub(super) fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

impl Link {
    pub(crate) fn new(settings: UpstreamSettings) -> Self {
        let directory = IdentityDir::new(&settings.identity);
        Self {
            settings,
            directory,
            identity: Mutex::default(),
            open: Mutex::default(),
            issuers: Mutex::default(),
        }
    }

    fn identity(&self) -> MutexGuard<'_, Option<Arc<Identity>>> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an identity: joins where there is none, renews it at half of its life, and when it is below another root than
    /// `signing`, which signs now.
    pub(super) async fn keep_identity(
        &self,
        ours: &Ca,
        bundle: Option<&Bundle>,
        signing: Option<&CaCertificate>,
    ) -> Result<(), UpstreamError> {
        let now = ours.ports.clock.now();
        if self.identity().is_none() {
            if !self.directory.exists() {
                self.join(ours).await?;
            }
            let loaded = self.load(&ours.settings.trust_domain, now).await?;
            *self.identity() = Some(Arc::new(loaded));
        }
        let anchors = bundle.map(Bundle::anchors).unwrap_or_default();
        let is_due = |it: &Arc<Identity>| {
            let below = it.root_among(anchors.iter());
            // The servers above may still sign with what they had a moment ago: not at once again.
            let elsewhere = below.zip(signing).is_some_and(|(below, signing)| below != signing);
            now >= it.renew_at || elsewhere && now.since(it.since) >= RENEW_AGAIN_SECONDS
        };
        let due = self.identity().as_ref().is_some_and(is_due);
        if due && let Err(cause) = self.renew(ours, bundle).await {
            // It is valid for as long again.
            tracing::warn!(%cause, "the identity for the Rhizome above could not be renewed; trying again");
        }
        Ok(())
    }

    /// Says below which root its identity is, and until when. One that nobody can place may be below any.
    pub(super) fn presents(&self, state: &State, mut tell: impl FnMut(&Authority, Timestamp)) {
        let Some(identity) = self.identity().clone() else { return };
        let roots = || {
            let records = state.authorities().values().map(|it| &*it.value);
            records.filter(|it| it.kind == AuthorityKind::Root)
        };
        let below = identity.root_among(roots().map(|it| it.anchor()));
        for root in roots().filter(|it| below.is_none_or(|below| it.anchor() == below)) {
            tell(root, identity.not_after);
        }
    }

    async fn load(&self, domain: &TrustDomain, now: Timestamp) -> Result<Identity, UpstreamError> {
        let directory = self.directory.clone();
        let stored = on_disk(move || directory.load()).await?;
        let StoredIdentity { identity: presented, bundle: trusted } = stored?;
        let facts =
            inspect(presented.leaf_der()).map_err(|cause| UpstreamError::Nonsense(cause.to_string()))?;
        if let Some((_, wanted)) = &self.settings.join {
            let found = facts.spiffe_id.as_ref().and_then(|id| principal_of(id, domain));
            let same = matches!(&found, Some(Principal::Node { cluster, .. }) if cluster == wanted);
            if !same {
                let found = facts.spiffe_id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
                let (path, wanted) = (self.directory.path().to_owned(), wanted.clone());
                return Err(UpstreamError::OtherCluster { path, found, wanted });
            }
        }
        let life = facts.not_after.since(facts.not_before);
        let above = presented.chain_der().iter().skip(1).filter_map(|der| CaCertificate::parse(der).ok());
        Ok(Identity {
            above: above.collect(),
            presented,
            renew_at: facts.not_before.plus(life / 2),
            not_after: facts.not_after,
            since: now,
            trusted,
        })
    }

    async fn join(&self, ours: &Ca) -> Result<(), UpstreamError> {
        let nothing = || UpstreamError::NothingToJoinWith { path: self.directory.path().to_owned() };
        let (join, cluster) = self.settings.join.as_ref().ok_or_else(nothing)?;
        if join.trust_domain() != &ours.settings.trust_domain {
            let (offered, wanted) = (join.trust_domain().to_string(), ours.settings.trust_domain.clone());
            return Err(JoinError::WrongTrustDomain { offered, wanted }.into());
        }
        let (address, bundle) = discover(join).await?;
        let channel = Self::dial(ours, &address, &bundle, None, join.issuer_sha256().to_vec()).await?;
        let key = self.pending_key().await?;
        let evidence = Evidence::JoinToken(node::JoinTokenEvidence { token: join.token().to_owned() });
        let request = node::AttestRequest { csr_der: csr(&key)?, evidence: Some(evidence) };
        let answer = NodeServiceClient::new(channel).attest(call(request)).await;
        let answer = answer.map_err(|status| match heard(&status) {
            Refusal::Unknown(words) | Refusal::Denied(words) => UpstreamError::JoinRefused(format!(
                "{words}; it may be used, or too old: `rhizome cluster remove` and `cluster add` make a new one"
            )),
            Refusal::NoAnswer(cause) => UpstreamError::Call(cause),
        })?;
        let issued = answer.into_inner().identity.unwrap_or_default();
        self.keep(&issued, &key, bundle).await?;
        let pending = self.pending_path();
        on_disk(move || drop(std::fs::remove_file(pending))).await?;
        tracing::info!(%cluster, %address, "joined the Rhizome above");
        Ok(())
    }

    /// Replaces the certificate, for the same key: a lost answer then costs nothing.
    async fn renew(&self, ours: &Ca, bundle: Option<&Bundle>) -> Result<(), UpstreamError> {
        let Some(identity) = self.identity().clone() else { return Ok(()) };
        let key = RequestKey::from_pkcs8_der(identity.presented.key_pkcs8_der())?;
        let request = node::RenewRequest { csr_der: csr(&key)? };
        let channel = self.channel(ours).await?;
        let answer = NodeServiceClient::new(channel).renew(call(request)).await;
        let issued =
            answer.map_err(|status| self.refused(heard(&status)))?.into_inner().identity.unwrap_or_default();
        let trusted = bundle.map_or_else(|| identity.trusted.clone(), Clone::clone);
        self.keep(&issued, &key, trusted).await?;
        let loaded = self.load(&ours.settings.trust_domain, ours.ports.clock.now()).await?;
        *self.identity() = Some(Arc::new(loaded));
        *self.open() = None;
        Ok(())
    }

    /// Checks what was issued, and stores it.
    async fn keep(
        &self,
        issued: &ca::IssuedCertificate,
        key: &RequestKey,
        bundle: Bundle,
    ) -> Result<(), UpstreamError> {
        let nonsense = |cause: String| UpstreamError::Nonsense(cause);
        let (leaf, above) =
            issued.chain_der.split_first().ok_or_else(|| nonsense("it gave no certificate".to_owned()))?;
        let above_der: Vec<&[u8]> = above.iter().map(AsRef::as_ref).collect();
        let facts = inspect(leaf).map_err(|cause| nonsense(cause.to_string()))?;
        if facts.public_key_digest != key.public_key().digest() {
            return Err(nonsense("the identity is for another key".to_owned()));
        }
        // At its own first second: this clock may be slow, and the one above judges by its own.
        let anchors = TrustAnchors::from_bundle(&bundle);
        verify_peer(leaf, &above_der, &anchors, PeerUsage::Client, facts.not_before.plus(1))
            .map_err(|cause| nonsense(cause.to_string()))?;
        let chain = issued.chain_der.iter().map(|der| der.to_vec()).collect();
        let stored = StoredIdentity { identity: ClientIdentity::new(chain, key.pkcs8_der())?, bundle };
        let directory = self.directory.clone();
        Ok(on_disk(move || directory.save(&stored)).await??)
    }

    /// Connects to `address`, whose server is verified by `bundle`.
    async fn dial(
        ours: &Ca,
        address: &str,
        bundle: &Bundle,
        identity: Option<&ClientIdentity>,
        issuers: Vec<Digest>,
    ) -> Result<Channel, UpstreamError> {
        let anchors = Arc::new(TrustAnchors::from_bundle(bundle));
        let copied = |it: &ClientIdentity| {
            ClientIdentity::new(it.chain_der().to_vec(), Zeroizing::new(it.key_pkcs8_der().to_vec()))
        };
        let presented = identity.map(copied).transpose()?;
        let clock: Arc<dyn Clock> = Arc::clone(&ours.ports.clock);
        let expected = ExpectedServer::IssuedBy(ours.settings.trust_domain.clone(), issuers);
        let tls = client_config(anchors, presented, expected, Arc::new(move || clock.now()))?;
        Ok(connect(address, Some(Arc::new(tls))).await?)
    }

    /// A connection that is verified by the bundle in force.
    async fn channel(&self, ours: &Ca) -> Result<Channel, UpstreamError> {
        let nobody = || UpstreamError::NothingToJoinWith { path: self.directory.path().to_owned() };
        let identity = self.identity().clone().ok_or_else(nobody)?;
        let held = ours.bundle();
        let bundle = held.as_ref().map_or(&identity.trusted, |it| &it.bundle);
        let sequence = bundle.sequence();
        let known = self.open().as_ref().filter(|it| it.sequence == sequence).map(|it| it.channel.clone());
        if let Some(channel) = known {
            return Ok(channel);
        }
        let issuers = self.issuers_above().await?;
        let mut last = None;
        for address in &self.settings.servers {
            match Self::dial(ours, address, bundle, Some(&identity.presented), issuers.clone()).await {
                Ok(channel) => {
                    *self.open() = Some(Open { channel: channel.clone(), sequence });
                    return Ok(channel);
                }
                Err(cause) => last = Some(cause),
            }
        }
        Err(last.unwrap_or_else(|| UpstreamError::Nonsense("there is no address".to_owned())))
    }

    pub(super) async fn client(&self, ours: &Ca) -> Result<UpstreamServiceClient<Channel>, UpstreamError> {
        let client = UpstreamServiceClient::new(self.channel(ours).await?);
        Ok(client.max_decoding_message_size(ANSWER_BYTES))
    }

    /// A refusal, or a call that came to nothing; then the next one connects anew, perhaps to another server.
    pub(super) fn refused(&self, refusal: Refusal) -> UpstreamError {
        match refusal {
            Refusal::Denied(words) => UpstreamError::Refused(words),
            Refusal::Unknown(words) => {
                *self.open() = None;
                UpstreamError::Refused(format!(
                    "{words}; this cluster may be suspended or removed there: `rhizome cluster show` there says so"
                ))
            }
            Refusal::NoAnswer(cause) => {
                *self.open() = None;
                UpstreamError::Call(cause)
            }
        }
    }

    fn issuers(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.issuers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who signs the certificates of the servers above: as they said last, or else as the join string says.
    async fn issuers_above(&self) -> Result<Vec<Digest>, UpstreamError> {
        let known = self.issuers().clone();
        if !known.is_empty() {
            return Ok(known);
        }
        let path = self.directory.path().join(ISSUERS);
        let stored = on_disk(move || std::fs::read_to_string(path)).await?;
        let mut found: Vec<Digest> = match stored {
            Ok(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
            Err(_none_yet) => Vec::new(),
        };
        if found.is_empty() {
            found = self
                .settings
                .join
                .as_ref()
                .map(|(join, _)| join.issuer_sha256().to_vec())
                .unwrap_or_default();
        }
        self.issuers().clone_from(&found);
        Ok(found)
    }

    /// Keeps who signs the certificates of the servers above, as one of them says.
    pub(super) async fn keep_issuers(&self, issuers: Vec<Digest>) -> Result<(), UpstreamError> {
        if issuers.is_empty() || issuers.len() > MAX_ISSUERS {
            return Err(UpstreamError::Nonsense(format!("it names {} issuers of its own", issuers.len())));
        }
        if *self.issuers() == issuers {
            return Ok(());
        }
        let text: String = issuers.iter().map(|it| format!("{it}\n")).collect();
        let (directory, path) = (self.directory.path().to_owned(), self.directory.path().join(ISSUERS));
        let failed = path.clone();
        let written = on_disk(move || replace(&directory, &path, text.as_bytes())).await?;
        written.map_err(|cause| UpstreamError::File { path: failed, cause })?;
        *self.issuers() = issuers;
        Ok(())
    }

    fn pending_path(&self) -> PathBuf {
        self.directory.path().join(PENDING_KEY)
    }

    /// The key of an earlier attempt whose answer was lost, or a new one that is on disk before it is used.
    async fn pending_key(&self) -> Result<RequestKey, UpstreamError> {
        let (path, directory) = (self.pending_path(), self.directory.path().to_owned());
        on_disk(move || {
            let failed = |cause| UpstreamError::File { path: path.clone(), cause };
            if path.exists() {
                let der = Zeroizing::new(read_limited(&path).map_err(failed)?);
                return Ok(RequestKey::from_pkcs8_der(&der)?);
            }
            let key = RequestKey::generate(KeyAlgorithm::EcdsaP256)?;
            write_private(&directory, &path, &key.pkcs8_der()).map_err(failed)?;
            Ok(key)
        })
        .await?
    }
}

fn csr(key: &RequestKey) -> Result<Bytes, UpstreamError> {
    Ok(Bytes::from(create_csr(key)?))
}

/// Runs what blocks on the disk where that harms nobody.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, UpstreamError> {
    let lost = |cause: tokio::task::JoinError| UpstreamError::from(ApiError::Bug(cause.to_string()));
    tokio::task::spawn_blocking(work).await.map_err(lost)
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(PENDING_KEY_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// Replaces a file whole.
fn replace(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|failed| failed.error)?;
    std::fs::File::open(directory)?.sync_all()
}

fn write_private(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::File::open(directory)?.sync_all()
}
