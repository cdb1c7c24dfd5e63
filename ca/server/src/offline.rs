//! What is done to an authority while no server runs on it: taking over one that was made elsewhere, and the ceremony of
//! a root whose key is on another machine.
//!
//! Laws: each step goes the way that a running server's goes: the key before the entry, the entry before the signature, one
//! transaction for all records. Nothing is taken into a store that has an authority already, but an issuer under its own
//! root. Whatever is signed here is in the ledger of the machine that signed it.
//! Not here: files and the command line (`rhizome`), what may be taken over (`rhizome_core::adoption`), the papers'
//! form (`rhizome_core::ceremony`).

use std::sync::Arc;

use rhizome_core::adoption::{self, Adoption, AdoptionError, Names, Offer, Part};
use rhizome_core::authority::{
    self, Authority, AuthorityKind, AuthorityState, Custody, Effect, FirstRoot, Reason, RotationPolicy,
};
use rhizome_core::ceremony::{Answer, PaperError, Request, RequestedKey, VERSION, Wanted};
use rhizome_core::documents::{Stored as _, Transaction};
use rhizome_core::issuance::Prepared;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRingError};
use rhizome_id::{AuthorityId, Digest, KeyId, ReplicaName, Timestamp, TrustDomain, Ttl};
use rhizome_x509::{
    AuthorityRequest, CaCertificate, IntermediateRole, IntermediateSpec, PublicKey, probe_for,
};
use zeroize::Zeroizing;

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::replicas::Right;
use crate::settings::{Ports, Settings};
use crate::spawn::Spawner;

/// Who did it, in the ledger: whoever may use the store and the keys without a server.
const BY: &str = "operator, offline";

/// Where the key of an authority that is taken over comes from.
pub enum OfferedKey {
    /// It stays where it is.
    None,
    /// PKCS#8 in DER: the key ring takes it.
    Given(Zeroizing<Vec<u8>>),
    /// The key ring has it under this name.
    InRing(KeyId),
}

/// What was taken over.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// What it became.
    pub part: Part,
    /// The stored records, by name.
    pub ids: Vec<AuthorityId>,
    /// What verifiers trust.
    pub anchor: CaCertificate,
    /// The last second in which what it signs can be valid.
    pub until: Timestamp,
}

/// Why it was not done. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is an authority already.
    #[error("there is an authority here already ({0}); an import needs a store without one")]
    NotEmpty(String),
    /// The authority may not be taken over.
    #[error(transparent)]
    Adoption(#[from] AdoptionError),
    /// A paper is refused.
    #[error(transparent)]
    Paper(#[from] PaperError),
    /// The key ring refuses.
    #[error(transparent)]
    Keys(#[from] KeyRingError),
    /// The key in the ring belongs to another certificate.
    #[error("the key {0} of the key ring does not belong to the certificate")]
    OtherKey(KeyId),
    /// This side has no root.
    #[error("there is no root here; {0}")]
    NoRoot(&'static str),
    /// This side's root is another one.
    #[error("the paper is about the root {wanted}; the one here is {found}")]
    OtherRoot {
        /// Digest of its certificate.
        wanted: Digest,
        /// Digest of the certificate here.
        found: Digest,
    },
    /// Nobody here asked for this certificate.
    #[error(
        "no key here belongs to `{subject}`; import it on the server, and for the replica, that asked for it"
    )]
    NotAsked {
        /// Whose key it is.
        subject: String,
    },
    /// What was asked for has come already.
    #[error("{0} has another certificate already; for another one, make another request")]
    Answered(AuthorityId),
    /// The configuration says that no root's key is here.
    #[error(
        "keys.root is `offline`: no root's key is taken in or made here; import the certificate without its key"
    )]
    KeyMustStayAway,
    /// More than this machine signs.
    #[error("{asked} is asked for, and the configuration of this machine allows {most} (`authority`)")]
    TooLong {
        /// How long it is to live.
        asked: Ttl,
        /// How long the signer allows.
        most: Ttl,
    },
    /// The answer is another replica's.
    #[error("the answer is for replica {0}; import it there")]
    OtherReplica(ReplicaName),
    /// A root that a ceremony made says so.
    #[error("the certificate of a root from a ceremony must be self-signed and name the trust domain {0}")]
    NotOurRoot(TrustDomain),
    /// This side makes issuers itself.
    #[error("the root's key is here: the server makes its issuers itself, and no ceremony is needed")]
    KeyIsHere,
    /// The root's key is on another machine.
    #[error("the root's key is not here; sign on the machine that has it")]
    KeyIsElsewhere,
    /// Something else.
    #[error(transparent)]
    Other(#[from] ApiError),
}

/// Takes an authority over that was made elsewhere, into a store that has none.
///
/// # Errors
/// [`OfflineError`].
pub async fn adopt(
    settings: Settings,
    ports: Ports,
    offer: &Offer,
    key: OfferedKey,
) -> Result<Adopted, OfflineError> {
    with(settings, ports, async |ca| {
        let id = ca.new_authority_name(AuthorityKind::Root, ca.now().map_err(ApiError::from)?)?;
        adopt_as(ca, offer, key, id).await
    })
    .await
}

async fn adopt_as(
    ca: &Arc<Ca>,
    offer: &Offer,
    key: OfferedKey,
    root: AuthorityId,
) -> Result<Adopted, OfflineError> {
    // Of two replicas one imports; the other one waits, and then finds an authority here. The right is part of the
    // transaction: whoever lost it meanwhile commits nothing.
    let right = ca.await_right().await?;
    must_be_empty(ca)?;
    let now = ca.now().map_err(ApiError::from)?;
    let adoption = adoption::judge(offer, &ca.settings.trust_domain, now)?;
    if adoption.part == Part::SignsIssuers && keeps_no_root_key(ca) {
        return Err(OfflineError::KeyMustStayAway);
    }
    let issuer = ca.new_authority_name(AuthorityKind::Issuer, now)?;
    let (purpose, named) = match adoption.part {
        Part::SignsWorkloads => (KeyPurpose::Issuer, &issuer),
        Part::SignsIssuers | Part::IsTrusted => (KeyPurpose::Root, &root),
    };
    let (taken, brought) = take_key(ca, &adoption, key, purpose, named).await?;
    let named = named.clone();
    let elsewhere =
        root.as_str().parse().map_err(|bad: rhizome_id::NameError| ApiError::Bug(bad.to_string()))?;
    let names = Names { root, issuer, key: taken, elsewhere, replica: ca.settings.replica.clone() };
    let records = adoption::records(&adoption, &names, now);
    let mut transaction = right.around(Transaction::named("import authority"));
    for record in &records {
        let detail = format!("{} {}", record.kind, record.certificate.fingerprint());
        let entry = ca.changed(BY, "authority.import", record.id.as_str(), &detail);
        transaction = transaction.require_absent(record.key()).put(record).record(entry);
    }
    let stored = ca.commit(transaction).await.map(drop).map_err(ApiError::from);
    match &brought {
        Some(key) => ca.placed(stored, &named, key).await?,
        None => stored?,
    }
    let path = || std::iter::once(&adoption.certificate).chain(&adoption.above);
    Ok(Adopted {
        part: adoption.part,
        ids: records.into_iter().map(|record| record.id).collect(),
        anchor: path().last().unwrap_or(&adoption.certificate).clone(),
        until: path().map(CaCertificate::not_after).min().unwrap_or(Timestamp::EPOCH),
    })
}

/// The key of the adopted authority, in the ring, and what was written there for it; a name that no ring knows when it
/// stays elsewhere.
async fn take_key(
    ca: &Ca,
    adoption: &Adoption,
    key: OfferedKey,
    purpose: KeyPurpose,
    named: &AuthorityId,
) -> Result<(KeyId, Option<KeyInfo>), OfflineError> {
    let bug = |cause: rhizome_id::NameError| ApiError::Bug(cause.to_string());
    let id: KeyId = named.as_str().parse().map_err(bug)?;
    let (keys, wanted) = (&ca.ports.keys, adoption.certificate.public_key());
    let belongs = |found: &KeyInfo| found.public_key == *wanted && found.purpose == purpose;
    match key {
        OfferedKey::None => Ok((id, None)),
        OfferedKey::Given(pkcs8) => {
            // An import that was cut off left it there.
            if let Some(left) = keys.keys().await?.into_iter().find(belongs) {
                return Ok((left.id, None));
            }
            let written = keys.import(&id, purpose, adoption.algorithm.unwrap_or_default(), &pkcs8).await?;
            if belongs(&written) {
                Ok((written.id.clone(), Some(written)))
            } else {
                ca.forget_key(&written).await;
                Err(OfflineError::OtherKey(written.id))
            }
        }
        OfferedKey::InRing(id) => match keys.key(&id).await? {
            found if belongs(&found) => Ok((found.id, None)),
            other => Err(OfflineError::OtherKey(other.id)),
        },
    }
}

/// What is asked for, in two forms.
#[derive(Clone, Debug)]
pub struct Asked {
    /// For a Rhizome.
    pub paper: Request,
    /// For any other CA, of an issuer: a certificate request (PKCS#10) in PEM.
    pub csr: Option<String>,
}

/// Writes what a server asks of a root whose key is elsewhere; for an issuer, after it has made its key.
///
/// # Errors
/// [`OfflineError`].
pub async fn request(
    settings: Settings,
    ports: Ports,
    wanted: Wanted,
    lifetime: Option<Ttl>,
) -> Result<Asked, OfflineError> {
    with(settings, ports, async |ca| request_of(ca, wanted, lifetime).await).await
}

async fn request_of(ca: &Arc<Ca>, wanted: Wanted, lifetime: Option<Ttl>) -> Result<Asked, OfflineError> {
    let now = ca.now().map_err(ApiError::from)?;
    let settings = &ca.settings;
    let paper = |id: AuthorityId, usual: Ttl| Request {
        version: VERSION,
        wanted,
        trust_domain: settings.trust_domain.clone(),
        replica: settings.replica.clone(),
        id,
        algorithm: settings.algorithm,
        lifetime: lifetime.unwrap_or(usual),
        requested_at: now,
        key: None,
        root_sha256: None,
    };
    match wanted {
        Wanted::Root => {
            must_be_empty(ca)?;
            let id = ca.new_authority_name(AuthorityKind::Root, now)?;
            Ok(Asked { paper: paper(id, settings.rotation.root_ttl), csr: None })
        }
        Wanted::Issuer => {
            let root = root(ca).ok_or(OfflineError::NoRoot("import the root's certificate first"))?;
            if root.custody == Custody::Here {
                return Err(OfflineError::KeyIsHere);
            }
            let (id, key) = ca.new_key(AuthorityKind::Issuer, now).await?;
            let proof = ca.ports.keys.sign(&key.id, &probe_for(key.algorithm)).await?;
            let csr = AuthorityRequest::prepare(&settings.trust_domain, &id, &key.public_key, key.algorithm);
            let csr = csr.map_err(|bad| ApiError::Bug(bad.to_string()))?;
            let signature = ca.ports.keys.sign(&key.id, &csr.to_be_signed()).await?;
            let csr = csr.seal(signature).map_err(|bad| ApiError::Bug(bad.to_string()))?;
            let paper = Request {
                key: Some(RequestedKey::new(&key.public_key, &proof)),
                root_sha256: Some(root.certificate.fingerprint()),
                ..paper(id, settings.rotation.issuer_ttl)
            };
            Ok(Asked { paper, csr: Some(csr) })
        }
    }
}

/// Signs what was asked for, on the machine that has the root's key; makes that key when a root is asked for.
///
/// # Errors
/// [`OfflineError`].
pub async fn sign(
    settings: Settings,
    ports: Ports,
    request: &Request,
    request_sha256: Digest,
) -> Result<Answer, OfflineError> {
    let key = request.check(&settings.trust_domain)?;
    let most = match request.wanted {
        Wanted::Root => settings.rotation.root_ttl,
        Wanted::Issuer => settings.rotation.issuer_ttl,
    };
    if request.lifetime > most {
        return Err(OfflineError::TooLong { asked: request.lifetime, most });
    }
    if settings.rotation.first_root == FirstRoot::Await {
        return Err(OfflineError::KeyMustStayAway);
    }
    let signing = async |ca: &Arc<Ca>| match &key {
        None => sign_root(ca, request).await,
        Some(key) => sign_issuer(ca, request, key).await,
    };
    let certificate = with(settings, ports, signing).await?;
    Ok(Answer {
        version: VERSION,
        wanted: request.wanted,
        replica: request.replica.clone(),
        request_sha256,
        id: request.id.clone(),
        certificate_sha256: certificate.fingerprint(),
        certificate,
    })
}

async fn sign_root(ca: &Arc<Ca>, request: &Request) -> Result<CaCertificate, OfflineError> {
    if let Some(known) = root(ca).filter(|known| known.id == request.id) {
        // The same paper again gets the same answer; activating it is repeated where that was cut off.
        activate_root(ca, &known.id).await?;
        return Ok(known.certificate.clone());
    }
    ca.await_right().await?;
    must_be_empty(ca)?;
    let now = ca.now().map_err(ApiError::from)?;
    let policy = RotationPolicy { root_ttl: request.lifetime, ..ca.settings.rotation };
    ca.make_root_called(&request.id, request.algorithm, now, &policy, "a ceremony").await?;
    activate_root(ca, &request.id).await?;
    let made = root(ca).ok_or_else(|| ApiError::Bug("the new root is not stored".into()))?;
    Ok(made.certificate.clone())
}

async fn activate_root(ca: &Arc<Ca>, id: &AuthorityId) -> Result<(), OfflineError> {
    let now = ca.now().map_err(ApiError::from)?;
    ca.await_right().await?;
    Ok(ca.perform(&Effect::Activate { id: id.clone(), reason: Reason::FirstRoot }, now).await?)
}

fn must_be_empty(ca: &Ca) -> Result<(), OfflineError> {
    let known: Vec<String> = ca.state().authorities().keys().map(ToString::to_string).collect();
    if known.is_empty() { Ok(()) } else { Err(OfflineError::NotEmpty(known.join(", "))) }
}

async fn sign_issuer(
    ca: &Arc<Ca>,
    request: &Request,
    key: &PublicKey,
) -> Result<CaCertificate, OfflineError> {
    let root = root(ca).ok_or(OfflineError::NoRoot("this machine never made or imported one"))?;
    if root.custody == Custody::Elsewhere {
        return Err(OfflineError::KeyIsElsewhere);
    }
    let found = root.certificate.fingerprint();
    let wanted = request.root_sha256.unwrap_or(found);
    if wanted != found {
        return Err(OfflineError::OtherRoot { wanted, found });
    }
    let now = ca.now().map_err(ApiError::from)?;
    let policy = RotationPolicy { issuer_ttl: request.lifetime, ..ca.settings.rotation };
    let validity = authority::issuer_validity(&root, now, &policy);
    let validity = validity.ok_or(ApiError::Issue(IssueError::NoAuthority))?;
    let serial = ca.serials.next(&*ca.ports.store, &*ca.ports.entropy, now).await;
    let spec = IntermediateSpec {
        role: IntermediateRole::Own,
        trust_domain: &ca.settings.trust_domain,
        generation: &request.id,
        public_key: key,
        algorithm: request.algorithm,
        serial: serial.map_err(ApiError::from)?.0,
        not_before: validity.not_before,
        not_after: validity.not_after,
    };
    let above = (&root.id, &root.certificate, root.algorithm);
    let prepared = Prepared::intermediate(&spec, above, &root.key, BY).map_err(IssueError::from);
    let certificate = ca.certify(prepared.map_err(ApiError::from)?, Right::Alone, now).await;
    let certificate = certificate.map_err(ApiError::from)?;
    let certificate = CaCertificate::parse(certificate.into_inner().der());
    Ok(certificate.map_err(|bad| ApiError::Bug(bad.to_string()))?)
}

/// Takes in what the root's side gave back.
///
/// # Errors
/// [`OfflineError`].
pub async fn take_in(settings: Settings, ports: Ports, answer: &Answer) -> Result<Adopted, OfflineError> {
    answer.check()?;
    let certificate = &answer.certificate;
    if answer.replica != settings.replica {
        return Err(OfflineError::OtherReplica(answer.replica.clone()));
    }
    let names_us = certificate.spiffe_id().is_some_and(|id| id.trust_domain() == settings.trust_domain);
    if answer.wanted == Wanted::Root && !(names_us && certificate.is_issued_by(certificate)) {
        return Err(OfflineError::NotOurRoot(settings.trust_domain));
    }
    let taking = async |ca: &Arc<Ca>| match answer.wanted {
        Wanted::Root => {
            let offer = Offer {
                certificate: answer.certificate.clone(),
                between: Vec::new(),
                roots: Vec::new(),
                with_key: false,
            };
            adopt_as(ca, &offer, OfferedKey::None, answer.id.clone()).await
        }
        Wanted::Issuer => {
            let bug = |cause: rhizome_id::NameError| ApiError::Bug(cause.to_string());
            let key = ca.ports.keys.key(&answer.id.as_str().parse().map_err(bug)?).await?;
            take_in_issuer(ca, &key, &answer.certificate, &[]).await
        }
    };
    with(settings, ports, taking).await
}

/// Takes in the certificate of an issuer that another CA made of our request; `between` stand between it and the root,
/// nearest first.
///
/// # Errors
/// [`OfflineError`].
pub async fn take_in_certificate(
    settings: Settings,
    ports: Ports,
    certificate: &CaCertificate,
    between: &[CaCertificate],
) -> Result<Adopted, OfflineError> {
    let taking = async |ca: &Arc<Ca>| {
        let keys = ca.ports.keys.keys().await?;
        let asked = |it: &KeyInfo| it.public_key == *certificate.public_key();
        let key = keys
            .into_iter()
            .find(asked)
            .ok_or_else(|| OfflineError::NotAsked { subject: certificate.subject().to_owned() })?;
        take_in_issuer(ca, &key, certificate, between).await
    };
    with(settings, ports, taking).await
}

async fn take_in_issuer(
    ca: &Arc<Ca>,
    key: &KeyInfo,
    certificate: &CaCertificate,
    between: &[CaCertificate],
) -> Result<Adopted, OfflineError> {
    let root = root(ca).ok_or(OfflineError::NoRoot("import the root's certificate first"))?;
    if key.public_key != *certificate.public_key() || key.purpose != KeyPurpose::Issuer {
        return Err(OfflineError::OtherKey(key.id.clone()));
    }
    let now = ca.now().map_err(ApiError::from)?;
    let until = adoption::judge_issuer(certificate, between, &root, &ca.settings.trust_domain, now)?;
    let bug = |cause: rhizome_id::NameError| ApiError::Bug(cause.to_string());
    let record = Authority {
        id: key.id.as_str().parse().map_err(bug)?,
        kind: AuthorityKind::Issuer,
        replica: ca.settings.replica.clone(),
        key: key.id.clone(),
        algorithm: key.algorithm,
        certificate: certificate.clone(),
        issuer: Some(root.id.clone()),
        state: AuthorityState::Prepared,
        prepared_at: now,
        activated_at: None,
        custody: Custody::Here,
        cross: None,
        canary: false,
        retired_at: None,
        above: between.to_vec(),
    };
    let known = ca.state().authorities().get(&record.id).map(|it| Arc::clone(&it.value));
    match known {
        // The same answer twice changes nothing.
        Some(known)
            if known.certificate == *certificate
                && known.replica == record.replica
                && matches!(known.state, AuthorityState::Prepared | AuthorityState::Active) => {}
        Some(known) => return Err(OfflineError::Answered(known.id.clone())),
        None => {
            let detail = format!("{} {}", record.kind, certificate.fingerprint());
            let entry = ca.changed(BY, "authority.import", record.id.as_str(), &detail);
            let transaction = Transaction::named("import issuer").require_absent(record.key());
            ca.commit(transaction.put(&record).record(entry)).await.map_err(ApiError::from)?;
        }
    }
    let anchor = root.anchor().clone();
    Ok(Adopted { part: Part::SignsWorkloads, ids: vec![record.id], anchor, until })
}

/// Does `work` as a replica that is not running otherwise: where another process has its name or its store, not at all.
async fn with<T>(
    settings: Settings,
    ports: Ports,
    work: impl AsyncFnOnce(&Arc<Ca>) -> Result<T, OfflineError>,
) -> Result<T, OfflineError> {
    let (ca, _refusals) = Ca::load(settings, ports, Spawner::default()).await?;
    let outcome = match ca.found_once(true).await {
        Ok(()) => work(&ca).await,
        Err(other_trust_domain) => Err(other_trust_domain.into()),
    };
    ca.settle_unplaced_keys().await;
    ca.say_good_bye().await;
    ca.spawner.shut_down().await;
    outcome
}

fn keeps_no_root_key(ca: &Ca) -> bool {
    ca.settings.rotation.first_root == FirstRoot::Await
}

/// The root that signs, or that will when a server starts.
fn root(ca: &Ca) -> Option<Arc<Authority>> {
    let state = ca.state();
    let prepared =
        |it: &&Arc<Authority>| it.kind == AuthorityKind::Root && it.state == AuthorityState::Prepared;
    let first = || state.authorities().values().map(|it| &it.value).find(prepared);
    state.active_root().or_else(first).cloned()
}

#[cfg(test)]
#[path = "offline_tests.rs"]
mod tests;
