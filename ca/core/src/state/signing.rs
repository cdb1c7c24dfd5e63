//! Which authorities of a state sign now: the root, this replica's issuer with the chain above it, and the one of a canary.
//!
//! Laws: below a root that was never active nothing signs but a canary, and that only while the rotation's record says that
//! there is one, forward: it ends with the record that ends it, whether its issuer has been retired or not.

use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::{AuthorityId, ReplicaName, RotationName, SpiffeId};
use rhizome_x509::Issuer;

use super::{State, StateError};
use crate::authority::{Authority, AuthorityKind, AuthorityState};
use crate::documents::Versioned;
use crate::issuance::ActiveIssuer;
use crate::rotation::{Canary, Heading, Phase, Rotation};

type Authorities = OrdMap<AuthorityId, Versioned<Arc<Authority>>>;

/// The issuer that signs a share of what this replica issues, below the root that comes.
#[derive(Debug)]
pub struct CanaryIssuer {
    rotation: RotationName,
    canary: Canary,
    issuer: Arc<ActiveIssuer>,
}

impl CanaryIssuer {
    /// The issuer.
    pub const fn issuer(&self) -> &Arc<ActiveIssuer> {
        &self.issuer
    }

    /// Whether the identity belongs to its share.
    pub fn takes(&self, id: &SpiffeId) -> bool {
        self.canary.takes(&self.rotation, id.path())
    }
}

impl State {
    /// The root that signs: of several that are active the newest.
    pub fn active_root(&self) -> Option<&Arc<Authority>> {
        let roots = self.authorities.values().map(|it| &it.value).filter(|it| it.kind == AuthorityKind::Root);
        let active = roots.filter(|it| it.state == AuthorityState::Active);
        active.max_by_key(|it| (it.activated_at, it.id.clone()))
    }

    /// The authority that this replica signs a leaf of `id` with: that of the canary where it belongs to its share.
    pub fn issuer_for(&self, id: &SpiffeId) -> Option<&Arc<ActiveIssuer>> {
        match &self.canary {
            Some(canary) if canary.takes(id) => Some(&canary.issuer),
            Some(_) | None => self.issuer.as_ref(),
        }
    }

    /// What this replica signs the share of a canary with, while there is one.
    pub const fn canary(&self) -> Option<&Arc<CanaryIssuer>> {
        self.canary.as_ref()
    }
}

/// The active issuer of `replica` with the chain above it, or `None` while there is none. After a race, or while the root
/// is changed, there may be two for a moment: that below the active root comes first.
pub(super) fn issuer_of(
    authorities: &Authorities,
    replica: &ReplicaName,
) -> Result<Option<Arc<ActiveIssuer>>, StateError> {
    let root_of = |it: &Authority| it.issuer.as_ref().and_then(|id| authorities.get(id)).map(|it| &it.value);
    let is_canary = |it: &Authority| root_of(it).is_some_and(|root| root.state == AuthorityState::Prepared);
    let chosen = active_issuers(authorities, replica).filter(|it| !is_canary(it)).max_by_key(|it| {
        let regular = root_of(it).is_some_and(|root| root.state == AuthorityState::Active);
        (regular, it.activated_at, it.id.clone())
    });
    chosen.map_or(Ok(None), |it| signer_of(authorities, it))
}

/// The canary's issuer of `replica`, while `rotation` says that there is one. What does not fit together signs nothing, and
/// the regular issuer goes on.
pub(super) fn canary_of(
    authorities: &Authorities,
    rotation: Option<&Rotation>,
    replica: &ReplicaName,
) -> Option<Arc<CanaryIssuer>> {
    let rotation = rotation.filter(|it| it.phase == Phase::Canary && it.heading == Heading::Forward)?;
    let root = authorities.get(&rotation.new).filter(|it| it.value.is_canary())?;
    let below = active_issuers(authorities, replica).filter(|it| it.issuer.as_ref() == Some(&root.value.id));
    let active = below.max_by_key(|it| (it.activated_at, it.id.clone()))?;
    let issuer = signer_of(authorities, active).ok().flatten()?;
    let (rotation, canary) = (rotation.name.clone(), rotation.choices.canary.clone()?);
    Some(Arc::new(CanaryIssuer { rotation, canary, issuer }))
}

fn active_issuers<'a>(
    authorities: &'a Authorities,
    replica: &'a ReplicaName,
) -> impl Iterator<Item = &'a Arc<Authority>> {
    authorities.values().map(|it| &it.value).filter(move |it| {
        it.kind == AuthorityKind::Issuer && it.state == AuthorityState::Active && it.replica == *replica
    })
}

fn signer_of(
    authorities: &Authorities,
    active: &Arc<Authority>,
) -> Result<Option<Arc<ActiveIssuer>>, StateError> {
    let broken = |cause: String| StateError::Authority { id: active.id.clone(), cause };
    // Without its root (changed for another while its replica was away) it signs no more, and a new one is made.
    let Some(root) = active.issuer.as_ref().and_then(|id| authorities.get(id)) else { return Ok(None) };
    let below = std::iter::once(&active.certificate).chain(&active.above);
    let reaching = |cross: Option<&rhizome_x509::CaCertificate>, root: &Authority| {
        let chain = below.clone().chain(cross).chain(root.served()).cloned();
        Issuer::new(chain.collect(), root.anchor().clone())
    };
    // While the root is changed for another, chains below it reach the other one too.
    let cross = root.value.cross.as_ref().filter(|it| it.carried);
    let bridged = cross.and_then(|it| reaching(Some(&it.certificate), &authorities.get(&it.by)?.value).ok());
    let issuer =
        bridged.map_or_else(|| reaching(None, &root.value), Ok).map_err(|cause| broken(cause.to_string()))?;
    Ok(Some(Arc::new(ActiveIssuer { id: active.id.clone(), key: active.key.clone(), issuer })))
}
