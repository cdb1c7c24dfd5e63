//! The published bundle, as a document, and the one that follows it.
//!
//! Laws: the sequence grows by one with every change; a record without JWT keys, as older releases stored it, reads as a
//! bundle without any, with the digest that it had.

use rhizome_id::{Timestamp, TrustDomain, Ttl};
use rhizome_x509::{Bundle, BundleError, CaCertificate, JwtKey};
use serde::{Deserialize, Serialize};

/// The published bundle, as a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// Whose roots these are.
    pub trust_domain: TrustDomain,
    /// Only grows.
    pub sequence: u64,
    /// How often followers without a stream should look.
    pub refresh_hint: Ttl,
    /// The roots.
    pub anchors: Vec<CaCertificate>,
    /// The keys for JWT-SVIDs. Older releases stored none.
    #[serde(default)]
    pub jwt_keys: Vec<JwtKey>,
}

impl BundleRecord {
    /// The record of `bundle`.
    pub fn of(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().clone(),
            sequence: bundle.sequence(),
            refresh_hint: bundle.refresh_hint(),
            anchors: bundle.anchors().to_vec(),
            jwt_keys: bundle.jwt_keys().to_vec(),
        }
    }

    /// The bundle that follows this one: with `added`, without the key called `removed`, and without keys that verify
    /// nothing any more at `now`. `None` when that is what it holds already.
    pub fn with_jwt_keys(
        &self,
        added: Option<JwtKey>,
        removed: Option<&str>,
        now: Timestamp,
    ) -> Option<Self> {
        let stays = |key: &&JwtKey| key.is_live(now) && removed != Some(key.kid());
        let jwt_keys: Vec<JwtKey> = self.jwt_keys.iter().filter(stays).cloned().chain(added).collect();
        let sequence = self.sequence.saturating_add(1);
        (jwt_keys != self.jwt_keys).then(|| Self { sequence, jwt_keys, ..self.clone() })
    }
}

impl TryFrom<BundleRecord> for Bundle {
    type Error = BundleError;

    fn try_from(record: BundleRecord) -> Result<Self, Self::Error> {
        let BundleRecord { trust_domain, sequence, refresh_hint, anchors, jwt_keys } = record;
        Self::new(trust_domain, sequence, refresh_hint, anchors)?.with_jwt_keys(jwt_keys)
    }
}

#[cfg(test)]
mod tests {
    use rhizome_x509::{KeyAlgorithm, RequestKey};

    use super::*;

    fn key(kid: &str, until: i64) -> JwtKey {
        let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        JwtKey::new(kid.to_owned(), key.public_key().clone(), Timestamp::from_unix(until)).unwrap()
    }

    fn record(jwt_keys: Vec<JwtKey>) -> BundleRecord {
        let trust_domain = "example.org".parse().unwrap();
        BundleRecord { trust_domain, sequence: 4, refresh_hint: Ttl::hours(1), anchors: Vec::new(), jwt_keys }
    }

    fn kids(record: Option<BundleRecord>) -> Option<(u64, Vec<String>)> {
        let kids = |it: &BundleRecord| it.jwt_keys.iter().map(|key| key.kid().to_owned()).collect();
        record.map(|it| (it.sequence, kids(&it)))
    }

    #[test]
    fn the_next_bundle_has_what_was_added_and_neither_what_was_removed_nor_what_has_expired() {
        let record = record(vec![key("a", 100), key("b", 200)]);
        let at = Timestamp::from_unix;
        let next = |added, removed, now| kids(record.with_jwt_keys(added, removed, at(now)));
        let found = |kids: &[&str]| Some((5, kids.iter().map(|kid| (*kid).to_owned()).collect()));
        assert_eq!(next(None, None, 100), None, "nothing changes");
        assert_eq!(next(Some(key("c", 300)), None, 100), found(&["a", "b", "c"]));
        assert_eq!(next(None, Some("a"), 100), found(&["b"]));
        assert_eq!(next(None, Some("z"), 100), None);
        assert_eq!(next(None, None, 101), found(&["b"]), "expired keys are pruned");
    }

    #[test]
    fn a_record_of_an_older_release_reads_as_a_bundle_without_keys() {
        let json = serde_json::to_string(&record(Vec::new())).unwrap();
        let older = json.replace(",\"jwt_keys\":[]", "");
        assert_ne!(older, json);
        assert_eq!(serde_json::from_str::<BundleRecord>(&older).unwrap(), record(Vec::new()));
    }
}
