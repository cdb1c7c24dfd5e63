//! Revocation lists: which issuer needs a new one now, and what it says.
//!
//! Laws: every issuer of this replica whose certificates may be alive has a list, also an empty one, and it lists every
//! unexpired revoked certificate; its number only grows, across restores too (it is never below the second of its
//! signing times 2^20); it may be used until its issuer's end, so that an outage of the authority makes no list too old.
//! An entry leaves when its certificate has expired, and for that alone a list is signed at most once an hour.
//! Not here: signing and telling (`rhizome_server::crl`), the bytes (`rhizome_x509`).
//! Sources: RFC 5280 §5; ADR 0013.

use std::collections::BTreeSet;

use rhizome_id::{AuthorityId, ReplicaName, Serial, Timestamp};
use rhizome_x509::{Crl, MAX_CRL_ENTRIES, Revoked};
use serde::{Deserialize, Serialize};

use crate::authority::{Authority, AuthorityKind};
use crate::documents::{Stored, Version};
use crate::limits::BACKDATE_SECONDS;
use crate::state::{Revocation, State};

/// How long a list keeps entries of expired certificates before it is signed anew for that reason alone.
const STALE_SECONDS: i64 = 3_600;
/// Numbers in one second; a list is signed in milliseconds, and far less often.
const NUMBERS_PER_SECOND: u64 = 1 << 20;

/// An issuer's revocation list, as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlRecord {
    /// Whose certificates it speaks of, and who signed it.
    pub issuer: AuthorityId,
    /// When it was signed.
    pub signed_at: Timestamp,
    /// The list; base64 of the DER.
    pub crl: Crl,
}

/// A list that is to be signed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Whose list.
    pub issuer: AuthorityId,
    /// The version of the list that it replaces.
    pub replaces: Option<Version>,
    /// Its number.
    pub number: u64,
    /// From when it holds: a minute ago at most, for clocks that are slow.
    pub this_update: Timestamp,
    /// Until when it may be used: its issuer's end.
    pub next_update: Timestamp,
    /// What it lists, in the order in which it was revoked.
    pub revoked: Vec<Revoked>,
    /// Revoked certificates for which there is no room; those that expire first.
    pub left_out: usize,
    /// Why.
    pub reason: Reason,
}

/// Why a list is to be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its issuer has none.
    NewIssuer,
    /// A certificate was revoked that it does not list.
    Revoked,
    /// It holds only from a time that has not come yet: it was signed while the clock was wrong.
    Future,
    /// It lists certificates that have expired.
    Expired,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NewIssuer => "its issuer has none",
            Self::Revoked => "a certificate was revoked",
            Self::Future => "it is from the future: the clock came back",
            Self::Expired => "it lists certificates that have expired",
        })
    }
}

/// The lists that this replica has to sign at `now`.
pub fn due(state: &State, now: Timestamp) -> Vec<Due> {
    let own = |it: &&Authority| it.replica == *state.replica();
    living_issuers(state, now).filter(own).filter_map(|issuer| due_of(state, issuer, now)).collect()
}

/// The lists of every replica that do not say at `now` what they must: none, or without a revoked certificate, or not to be
/// used yet. Each with the replica that has to sign it, which may be one that nobody runs any more.
pub fn behind(state: &State, now: Timestamp) -> Vec<(ReplicaName, Due)> {
    let due = living_issuers(state, now)
        .filter_map(|issuer| Some((issuer.replica.clone(), due_of(state, issuer, now)?)));
    due.filter(|(_, due)| due.reason != Reason::Expired).collect()
}

fn living_issuers(state: &State, now: Timestamp) -> impl Iterator<Item = &Authority> {
    let authorities = state.authorities().values().map(|it| &*it.value);
    authorities.filter(move |it| it.kind == AuthorityKind::Issuer && it.certificate.not_after() >= now)
}

fn due_of(state: &State, issuer: &Authority, now: Timestamp) -> Option<Due> {
    let held = state.crls().get(&issuer.id);
    let (wanted, left_out) = wanted(state, &issuer.id, now);
    let listed: BTreeSet<Serial> =
        held.iter().flat_map(|it| it.value.crl.revoked()).map(|it| it.serial).collect();
    let this_update = now.minus(BACKDATE_SECONDS).max(issuer.certificate.not_before());
    let reason = match held {
        None => Reason::NewIssuer,
        Some(_) if wanted.iter().any(|it| !listed.contains(&it.serial)) => Reason::Revoked,
        // Verifiers refuse it until then. One of an issuer that itself is from the future gets no better.
        Some(held) if held.value.crl.this_update() > now.max(this_update) => Reason::Future,
        Some(held) if listed.len() > wanted.len() && now.since(held.value.signed_at) >= STALE_SECONDS => {
            Reason::Expired
        }
        Some(_) => return None,
    };
    let before = held.map(|it| it.value.crl.number());
    let at_least = u64::try_from(now.unix()).unwrap_or_default().saturating_mul(NUMBERS_PER_SECOND);
    let as_of = |it: Revoked| Revoked { at: it.at.min(this_update), ..it };
    Some(Due {
        issuer: issuer.id.clone(),
        replaces: held.map(|it| it.version),
        number: before.map_or(0, |number| number.saturating_add(1)).max(at_least),
        this_update,
        next_update: issuer.certificate.not_after(),
        revoked: wanted.into_iter().map(as_of).collect(),
        left_out,
        reason,
    })
}

/// What the list of `issuer` must say at `now`, and for how many certificates there is no room.
fn wanted(state: &State, issuer: &AuthorityId, now: Timestamp) -> (Vec<Revoked>, usize) {
    // A revocation of an earlier release does not say whose certificate it was: it is in every list, where the serial
    // of somebody else's certificate means nothing.
    let concerns = |it: &&Revocation| {
        it.not_after >= now && it.issuer.as_ref().is_none_or(|its_issuer| its_issuer == issuer)
    };
    let revocations = state.revocations().values().map(|it| &*it.value);
    let mut found: Vec<&Revocation> = revocations.filter(concerns).collect();
    let left_out = found.len().saturating_sub(MAX_CRL_ENTRIES);
    if left_out > 0 {
        found.sort_by_key(|it| (std::cmp::Reverse(it.not_after), it.serial));
        found.truncate(MAX_CRL_ENTRIES);
    }
    found.sort_by_key(|it| (it.at, it.serial));
    let entry = |it: &Revocation| Revoked { serial: it.serial, at: it.at, code: it.code };
    (found.into_iter().map(entry).collect(), left_out)
}

impl Stored for CrlRecord {
    const KIND: crate::documents::Kind = crate::documents::Kind::Crl;

    fn id(&self) -> String {
        self.issuer.to_string()
    }
}

#[cfg(test)]
#[path = "crl_tests.rs"]
mod tests;
