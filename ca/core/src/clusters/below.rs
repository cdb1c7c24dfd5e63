//! The other side: what a cluster's own Rhizome believes of the one above it, and what it makes of that.

use rhizome_id::{AuthorityId, Digest, NameError, ReplicaName, Timestamp};
use rhizome_x509::{Bundle, CaCertificate, Issuer, IssuerError};

use crate::authority::{Authority, AuthorityKind, AuthorityState, Cross, Custody};

/// How far a sequence may jump: a restored store raises it by seconds since 1970 at most.
const FURTHEST_JUMP: u64 = 1 << 40;

/// Why an answer from above is refused. What is held stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AboveError {
    /// The bundle is of another trust domain.
    #[error("the bundle is of trust domain {found}")]
    OtherTrustDomain {
        /// Whose.
        found: String,
    },
    /// An older bundle than is held.
    #[error("the bundle has sequence {offered}, older than {held}, which is held")]
    Older {
        /// The sequence offered.
        offered: u64,
        /// The sequence held.
        held: u64,
    },
    /// Another bundle under the same sequence.
    #[error("the bundle of sequence {sequence} has another content than the one that is held under it")]
    Different {
        /// The sequence of both.
        sequence: u64,
    },
    /// A jump of the sequence that no change of the root makes.
    #[error("the bundle has sequence {offered}, far beyond {held}, which is held")]
    Beyond {
        /// The sequence offered.
        offered: u64,
        /// The sequence held.
        held: u64,
    },
    /// No root in common with what is held: whoever is above does not change all roots at once.
    #[error("none of the bundle's roots is held, and none of those held is in it")]
    Unrelated,
    /// A root that is in no bundle.
    #[error("the root {root} is not in the bundle")]
    UnknownRoot {
        /// SHA-256 of its certificate.
        root: Digest,
    },
    /// A bridge between other roots than those of the bundle, or for another key.
    #[error(
        "the certificate that bridges from the root {root} is not for its key, or names a root that is not in the bundle"
    )]
    Bridge {
        /// SHA-256 of the root's certificate.
        root: Digest,
    },
    /// No certificate.
    #[error("there is no intermediate in the answer")]
    Empty,
    /// A certificate for another key.
    #[error("the intermediate is for another key than the one that was asked for")]
    OtherKey,
    /// It may have authorities below it, or none that is bounded.
    #[error("the intermediate has path length {found:?}; it must be 0")]
    PathLength {
        /// What it has.
        found: Option<u32>,
    },
    /// It ends before it is of use.
    #[error(
        "the intermediate ends at {not_after}, and the clock says {now}; compare the clocks of both servers"
    )]
    Ended {
        /// Its last second.
        not_after: Timestamp,
        /// Now.
        now: Timestamp,
    },
    /// The chain does not hold together.
    #[error("the intermediate does not chain to its root: {0}")]
    Chain(#[from] IssuerError),
    /// A name that is none.
    #[error("the intermediate has no valid name: {0}")]
    Name(#[from] NameError),
}

/// Whether `offered` may follow `held`: `false` when it is the same.
///
/// # Errors
/// [`AboveError`].
pub fn judge_bundle(held: Option<&Bundle>, offered: &Bundle) -> Result<bool, AboveError> {
    let Some(held) = held else { return Ok(true) };
    if offered.trust_domain() != held.trust_domain() {
        return Err(AboveError::OtherTrustDomain { found: offered.trust_domain().to_string() });
    }
    let (sequence, known) = (offered.sequence(), held.sequence());
    if sequence < known {
        return Err(AboveError::Older { offered: sequence, held: known });
    }
    if sequence == known {
        let same = offered.digest() == held.digest();
        return if same { Ok(false) } else { Err(AboveError::Different { sequence }) };
    }
    if sequence.saturating_sub(known) > FURTHEST_JUMP {
        return Err(AboveError::Beyond { offered: sequence, held: known });
    }
    if !offered.anchors().iter().any(|anchor| held.anchors().contains(anchor)) {
        return Err(AboveError::Unrelated);
    }
    Ok(true)
}

/// A change of the records of roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootChange {
    /// Write this.
    Put(Box<Authority>),
    /// Remove this.
    Delete(AuthorityId),
}

/// A root's key, certified by another root: what chains below it carry while the one is changed for the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// SHA-256 of the root's certificate.
    pub root: Digest,
    /// SHA-256 of the certificate of the root that certified its key.
    pub by: Digest,
    /// The certificate.
    pub certificate: CaCertificate,
}

/// Which root signs, and what bridges to others, as the one above says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signing {
    /// SHA-256 of the certificate of the root that signs.
    pub root: Digest,
    /// The bridges that chains carry.
    pub bridges: Vec<Bridge>,
}

impl Signing {
    /// The bridge that chains below `anchor` carry.
    fn cross(&self, anchor: &CaCertificate, anchors: &[CaCertificate]) -> Result<Option<Cross>, AboveError> {
        let root = anchor.fingerprint();
        let Some(bridge) = self.bridges.iter().find(|it| it.root == root) else { return Ok(None) };
        if bridge.certificate.public_key() != anchor.public_key() {
            return Err(AboveError::Bridge { root });
        }
        // Nobody trusts the other one alone any more when it has left the bundle.
        let by = anchors.iter().find(|it| it.fingerprint() == bridge.by && **it != *anchor);
        let Some(by) = by else { return Ok(None) };
        let certificate = bridge.certificate.clone();
        Ok(Some(Cross { by: name_of(by)?, certificate, carried: true }))
    }
}

/// What the records of roots become when `anchors` are trusted and the one that signs is that of `above`: one record for
/// each, without a key, and only that one active. Empty when they are so already.
///
/// # Errors
/// [`AboveError::UnknownRoot`] when the one that signs is not among `anchors`, [`AboveError::Bridge`].
pub fn mirror_roots(
    known: &[&Authority],
    anchors: &[CaCertificate],
    above: &Signing,
    replica: &ReplicaName,
    now: Timestamp,
) -> Result<Vec<RootChange>, AboveError> {
    let signing = &above.root;
    if !anchors.iter().any(|anchor| anchor.fingerprint() == *signing) {
        return Err(AboveError::UnknownRoot { root: *signing });
    }
    let roots = || known.iter().filter(|it| it.kind == AuthorityKind::Root);
    let mut changes = Vec::new();
    for anchor in anchors {
        let signs = anchor.fingerprint() == *signing;
        let record = roots().find(|it| it.certificate == *anchor);
        let state = match (signs, record.map(|it| it.state)) {
            (true, _) => AuthorityState::Active,
            (false, None | Some(AuthorityState::Prepared)) => AuthorityState::Prepared,
            (false, Some(_)) => AuthorityState::Old,
        };
        let cross = above.cross(anchor, anchors)?;
        match record {
            Some(record) if record.state == state && record.cross == cross => {}
            Some(record) => {
                let begins = signs && record.state != AuthorityState::Active;
                let activated_at = if begins { Some(now) } else { record.activated_at };
                let next = Authority { state, activated_at, cross, ..Authority::clone(record) };
                changes.push(RootChange::Put(Box::new(next)));
            }
            None => {
                let next = Authority { cross, ..new_root(anchor, state, replica, now)? };
                changes.push(RootChange::Put(Box::new(next)));
            }
        }
    }
    let gone = roots().filter(|it| !anchors.contains(&it.certificate));
    changes.extend(gone.map(|it| RootChange::Delete(it.id.clone())));
    Ok(changes)
}

/// The name of a root's record here: it follows from its certificate.
fn name_of(anchor: &CaCertificate) -> Result<AuthorityId, AboveError> {
    let fingerprint: String = anchor.fingerprint().to_string().chars().take(16).collect();
    Ok(format!("root-{fingerprint}").parse()?)
}

fn new_root(
    anchor: &CaCertificate,
    state: AuthorityState,
    replica: &ReplicaName,
    now: Timestamp,
) -> Result<Authority, AboveError> {
    let id = name_of(anchor)?;
    let key = id.as_str().parse()?;
    Ok(Authority {
        id,
        kind: AuthorityKind::Root,
        replica: replica.clone(),
        // No ring knows it: the key is above.
        key,
        algorithm: rhizome_x509::SigningAlgorithm::default(),
        certificate: anchor.clone(),
        issuer: None,
        state,
        prepared_at: now,
        activated_at: (state == AuthorityState::Active).then_some(now),
        custody: Custody::Elsewhere,
        above: Vec::new(),
        cross: None,
        canary: false,
        retired_at: None,
    })
}

/// An intermediate that was asked for, once all of it was looked at.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The intermediate.
    pub certificate: CaCertificate,
    /// What stands between it and the root.
    pub between: Vec<CaCertificate>,
}

/// Judges the intermediate that came for the key whose SubjectPublicKeyInfo has the SHA-256 `own_key`. The first second of
/// its validity is not looked at: this clock may be slow, and comes to it.
///
/// # Errors
/// [`AboveError`].
pub fn accept_intermediate(
    chain: Vec<CaCertificate>,
    root: &CaCertificate,
    held: &[CaCertificate],
    own_key: &Digest,
    now: Timestamp,
) -> Result<Accepted, AboveError> {
    if !held.contains(root) {
        return Err(AboveError::UnknownRoot { root: root.fingerprint() });
    }
    let mut rest = chain.clone().into_iter();
    let certificate = rest.next().ok_or(AboveError::Empty)?;
    if certificate.public_key().digest() != *own_key {
        return Err(AboveError::OtherKey);
    }
    if certificate.path_len() != Some(0) {
        return Err(AboveError::PathLength { found: certificate.path_len() });
    }
    let limit = Issuer::new(chain, root.clone())?.not_after_limit();
    if limit <= now {
        return Err(AboveError::Ended { not_after: limit, now });
    }
    Ok(Accepted { certificate, between: rest.collect() })
}

#[cfg(test)]
#[path = "below_tests.rs"]
mod tests;
