//! What the state knows of the keys of JWT-SVIDs, and who must hear of them.

use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::{AuthorityId, KeyId, ReplicaName, Timestamp};

use super::{State, Subscriber};
use crate::authority::{Authority, AuthorityState, JwtAuthority, Records};
use crate::clusters::ClusterState;
use crate::documents::Versioned;
use crate::issuance::jwt::ActiveJwtKey;

impl State {
    /// All keys for JWT-SVIDs, by id.
    pub const fn jwt_authorities(&self) -> &OrdMap<AuthorityId, Versioned<Arc<JwtAuthority>>> {
        &self.jwt_authorities
    }

    /// The key that this replica signs JWT-SVIDs with, if there is one.
    pub const fn jwt_key(&self) -> Option<&Arc<ActiveJwtKey>> {
        self.jwt_key.as_ref()
    }

    /// Whether a token that was prepared for `key` may still be signed: some JWT key of this replica names it, and none
    /// that is tainted. One that was merely replaced finishes what it began.
    pub fn may_sign_tokens(&self, key: &KeyId) -> bool {
        let named = |it: &&Versioned<Arc<JwtAuthority>>| it.value.key == *key;
        let mut naming = self.jwt_authorities.values().filter(named).peekable();
        naming.peek().is_some() && naming.all(|it| it.value.state != AuthorityState::Tainted)
    }

    /// Living subscribers of the bundle ([`NodeRecord::lives`](crate::nodes::NodeRecord::lives)).
    pub fn live_subscribers(&self, now: Timestamp) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.subscribers
            .values()
            .map(|it| &it.value)
            .filter(move |it| self.node_of(&it.principal).is_some_and(|node| node.value.lives(now)))
    }

    /// The lowest bundle sequence that anybody has in each cluster with a Rhizome of its own, of those that live.
    fn clusters_hold(&self, now: Timestamp) -> impl Iterator<Item = u64> {
        let living = self.clusters().values().map(|it| &it.value).filter(move |it| {
            it.state == ClusterState::Active && it.matters_until().is_some_and(|until| until >= now)
        });
        living.map(|it| {
            let report = self.cluster_reports().get(&it.name);
            report.and_then(|it| it.value.reported.holds).map_or(0, |held| held.sequence)
        })
    }

    /// Every authority, for the machine that replaces them.
    pub fn authority_records(&self, now: Timestamp) -> Records {
        Records {
            acknowledged: self
                .live_subscribers(now)
                .map(|it| it.sequence)
                .chain(self.clusters_hold(now))
                .min(),
            certifying: self.authorities.values().map(|it| Authority::clone(&it.value)).collect(),
            jwt: self.jwt_authorities.values().map(|it| JwtAuthority::clone(&it.value)).collect(),
        }
    }
}

/// The key that `replica` signs tokens with: the newest active one, should a race have left two for a moment.
pub(super) fn jwt_key_of(
    authorities: &OrdMap<AuthorityId, Versioned<Arc<JwtAuthority>>>,
    replica: &ReplicaName,
) -> Option<Arc<ActiveJwtKey>> {
    let mine = authorities.values().map(|it| &it.value).filter(|it| it.replica == *replica);
    let active = mine.filter(|it| it.state == AuthorityState::Active);
    let newest = active.max_by_key(|it| (it.activated_at, it.id.clone()))?;
    Some(Arc::new(ActiveJwtKey::of(newest)))
}
