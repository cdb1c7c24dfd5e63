//! The revocation lists that this node holds, and whether they may be handed out. Pure.
//!
//! Laws: a list is taken only when its issuer signed it and chains to the bundle in force, and never in place of one of
//! the same issuer with a higher number, or of another one with the same; whatever is refused leaves the list before it
//! in place. Lists are handed out all or none: none while an issuer that is known has none that was taken, because a
//! verifier that has some lists refuses the certificates of every issuer whose list it lacks, and an outage of the mesh
//! is worse than a revocation that comes late to some.
//! Not here: which certificates are revoked here (`book`, by the server's order). Sources: RFC 5280 §5, §6.3; ADR 0013.

use std::collections::BTreeSet;

use rhizome_proto::node::v1 as wire;
use rhizome_x509::{Bundle, CaCertificate, Crl, inspect, issuers_under};
use serde::{Deserialize, Serialize};

use crate::holdings::Svid;

/// Most issuers in a set: three for each of a hundred replicas, and room.
const MAX_ISSUERS: usize = 512;

/// The lists of this node's trust domain. Serialised as what goes to disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crls {
    held: Vec<Crl>,
    /// Key identifiers of every issuer that the server named, in hexadecimal.
    issuers: BTreeSet<String>,
}

/// What became of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Whether anything is other than before.
    pub(crate) changed: bool,
    /// Why lists or issuers were refused, one line for each.
    pub(crate) refused: Vec<String>,
}

impl Crls {
    /// Takes the set that the server sent in place of the one before.
    pub(crate) fn take(&mut self, sent: &wire::CrlSet, bundle: &Bundle) -> Taken {
        let mut refused = Vec::new();
        if sent.issuers_der.len() > MAX_ISSUERS || sent.crls_der.len() > MAX_ISSUERS {
            refused.push(format!("the set is larger than {MAX_ISSUERS}"));
            return Taken { changed: false, refused };
        }
        let mut named = Vec::new();
        for der in &sent.issuers_der {
            match CaCertificate::parse(der) {
                Ok(issuer) => named.push(issuer),
                Err(cause) => refused.push(cause.to_string()),
            }
        }
        let issuers = issuers_under(bundle, &named);
        let foreign = named.len().saturating_sub(issuers.len());
        if foreign > 0 {
            refused.push(format!("{foreign} issuers do not chain to the bundle"));
        }
        let mut held: Vec<Crl> = Vec::new();
        for der in &sent.crls_der {
            let (chosen, cause) = self.choose(der, &issuers);
            held.extend(chosen);
            refused.extend(cause);
        }
        held.sort_by(|one, other| one.issuer_key_id().cmp(other.issuer_key_id()));
        held.dedup_by(|one, other| one.issuer_key_id() == other.issuer_key_id());
        let named = issuers.iter().map(|it| hex::encode(it.key_identifier())).collect();
        let next = Self { held, issuers: named };
        let changed = *self != next;
        *self = next;
        Taken { changed, refused }
    }

    /// The list, or the one that stays in its place and why.
    fn choose(&self, der: &[u8], issuers: &[CaCertificate]) -> (Option<Crl>, Option<String>) {
        let crl = match Crl::verify(der, issuers) {
            Ok(crl) => crl,
            Err(cause) => {
                // Whose it claims to be, to keep what is held of that issuer.
                let claimed = Crl::parse(der).ok();
                let kept = claimed.and_then(|it| self.of(it.issuer_key_id()).cloned());
                return (kept, Some(cause.to_string()));
            }
        };
        let Some(held) = self.of(crl.issuer_key_id()) else { return (Some(crl), None) };
        let (number, before) = (crl.number(), held.number());
        if number < before {
            let cause = format!("list {number} was refused, {before} of the same issuer is held");
            return (Some(held.clone()), Some(cause));
        }
        if number == before && crl != *held {
            let cause = format!("another list with the number {number} of the same issuer was refused");
            return (Some(held.clone()), Some(cause));
        }
        (Some(crl), None)
    }

    fn of(&self, issuer_key_id: &[u8]) -> Option<&Crl> {
        self.held.iter().find(|it| it.issuer_key_id() == issuer_key_id)
    }

    /// What may be handed out when certificates of the issuers `serving` are served.
    pub(crate) fn shown<'a>(&self, serving: impl IntoIterator<Item = &'a [u8]>) -> &[Crl] {
        let listed = |key_id: &[u8]| self.of(key_id).is_some();
        let named = self.issuers.iter().all(|it| hex::decode(it).is_ok_and(|it| listed(&it)));
        if named && serving.into_iter().all(listed) { &self.held } else { &[] }
    }

    /// How many lists are held.
    pub(crate) const fn len(&self) -> usize {
        self.held.len()
    }
}

/// The authority key identifier of a certificate that is served, if it has one.
pub(crate) fn issuer_of(svid: &Svid) -> Option<Vec<u8>> {
    inspect(svid.chain_der.first()?).ok()?.issuer_key_id
}

#[cfg(test)]
#[path = "crls_tests.rs"]
mod tests;
