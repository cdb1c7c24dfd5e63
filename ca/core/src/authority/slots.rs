//! What the machine looks at in an authority.
//!
//! Laws: a slot ends with its root, at the latest; issuers below the root of a canary are a line of their own.
//! Not here: what follows from it (the parent).

use rhizome_id::{AuthorityId, ReplicaName, Timestamp};

use super::{Authority, AuthorityKind, AuthorityState, Custody, JwtAuthority, Records};

impl Records {
    pub(super) fn slots(&self) -> Vec<Slot<'_>> {
        let jwt = self.jwt.iter().map(|it| Slot::of_jwt(it, self.acknowledged));
        let mut slots: Vec<_> = self.certifying.iter().map(Slot::of).chain(jwt).collect();
        // Nothing made here outlives its root; what came from elsewhere may, and ends with it all the same.
        for root in self.certifying.iter().filter(|it| it.kind == AuthorityKind::Root) {
            let below = slots.iter_mut().filter(|slot| slot.issuer == Some(&root.id));
            below.for_each(|slot| slot.not_after = slot.not_after.min(root.window().1));
        }
        for root in self.certifying.iter().filter(|it| it.is_canary()) {
            let below = slots.iter_mut().filter(|slot| slot.issuer == Some(&root.id));
            below.for_each(|slot| slot.canary = true);
        }
        slots
    }
}

/// What the machine looks at in an authority.
#[derive(Clone, Debug)]
pub(super) struct Slot<'a> {
    pub(super) id: &'a AuthorityId,
    pub(super) kind: AuthorityKind,
    pub(super) replica: &'a ReplicaName,
    pub(super) issuer: Option<&'a AuthorityId>,
    pub(super) custody: Custody,
    pub(super) state: AuthorityState,
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    pub(super) prepared_at: Timestamp,
    pub(super) activated_at: Option<Timestamp>,
    /// Whether whoever verifies what it signs knows of it already.
    pub(super) is_known: bool,
    /// Of the root of a canary, and of the issuers below it: a line of its own beside the one below the active root.
    pub(super) canary: bool,
}

impl<'a> Slot<'a> {
    pub(super) fn of(authority: &'a Authority) -> Self {
        let (not_before, not_after) = authority.window();
        Slot {
            id: &authority.id,
            kind: authority.kind,
            replica: &authority.replica,
            issuer: authority.issuer.as_ref(),
            custody: authority.custody,
            state: authority.state,
            not_before,
            not_after,
            prepared_at: authority.prepared_at,
            activated_at: authority.activated_at,
            // Its certificate goes out with everything that it signs.
            is_known: true,
            canary: authority.is_canary(),
        }
    }

    pub(super) fn of_jwt(authority: &'a JwtAuthority, acknowledged: Option<u64>) -> Self {
        Slot {
            id: &authority.id,
            kind: AuthorityKind::Jwt,
            replica: &authority.replica,
            issuer: None,
            custody: Custody::Here,
            state: authority.state,
            not_before: authority.not_before,
            not_after: authority.jwt_key.not_after(),
            prepared_at: authority.prepared_at,
            activated_at: authority.activated_at,
            is_known: acknowledged.is_none_or(|sequence| sequence >= authority.published),
            canary: false,
        }
    }

    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        now > self.not_after
    }

    /// The first second in which it is expired.
    pub(super) fn gone_at(&self) -> Timestamp {
        self.not_after.plus(1)
    }
}
