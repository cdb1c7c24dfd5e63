//! Which authorities of a state sign now: the root, and this replica's issuer with the chain above it.

use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::{AuthorityId, ReplicaName};
use rhizome_x509::Issuer;

use super::{State, StateError};
use crate::authority::{Authority, AuthorityKind, AuthorityState};
use crate::documents::Versioned;
use crate::issuance::ActiveIssuer;

impl State {
    /// The root that signs: of several that are active the newest.
    pub fn active_root(&self) -> Option<&Arc<Authority>> {
        let roots = self.authorities.values().map(|it| &it.value).filter(|it| it.kind == AuthorityKind::Root);
        let active = roots.filter(|it| it.state == AuthorityState::Active);
        active.max_by_key(|it| (it.activated_at, it.id.clone()))
    }
}

/// The active issuer of `replica` with the chain above it, or `None` while there is none.
pub(super) fn issuer_of(
    authorities: &OrdMap<AuthorityId, Versioned<Arc<Authority>>>,
    replica: &ReplicaName,
) -> Result<Option<Arc<ActiveIssuer>>, StateError> {
    let active = authorities.values().map(|it| &it.value).find(|it| {
        it.kind == AuthorityKind::Issuer && it.state == AuthorityState::Active && it.replica == *replica
    });
    let Some(active) = active else { return Ok(None) };
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
