//! Which tokens are kept, and for how long one is given. Pure: time is an argument.
//!
//! Laws: a token is given as it is until half of its life is over, then only while no new one can be had, and never in
//! its last moments; there is room for so many bytes and so many tokens of one identity, and what expires first goes
//! first, so that no workload pushes out another's by asking for many audiences.
//! Sources: spiffe/spire `pkg/common/rotationutil/rotationutil.go` (half of the life).

use std::collections::BTreeMap;
use std::sync::Arc;

use rhizome_id::{SpiffeId, Timestamp};

use super::Token;

/// Bytes of tokens and audiences kept: some 10 000 usual tokens.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// Tokens kept for one identity: each peer it talks to is an audience.
const MAX_PER_IDENTITY: usize = 256;
/// How long the authority is left alone about a token after it gave none, while there is one to give.
const REST_SECONDS: i64 = 5;
/// A token is not given in the last tenth of its life, up to this many seconds: it has to reach somebody.
const MARGIN_SECONDS: i64 = 30;

/// The tokens kept.
#[derive(Default)]
pub(super) struct Shelf {
    kept: BTreeMap<SpiffeId, BTreeMap<Vec<String>, Kept>>,
    bytes: usize,
}

struct Kept {
    token: Arc<Token>,
    /// The authority is not asked again before.
    rest_until: Timestamp,
}

/// What there is.
#[derive(Debug)]
pub(super) enum Found {
    /// To be given as it is.
    Fresh(Arc<Token>),
    /// To be given if no new one can be had.
    Stale(Arc<Token>),
    /// Nothing that may be given.
    Nothing,
}

impl Shelf {
    pub(super) fn look(&self, id: &SpiffeId, audiences: &[String], now: Timestamp) -> Found {
        let Some(kept) = self.kept.get(id).and_then(|of| of.get(audiences)) else { return Found::Nothing };
        let Token { issued_at, expires_at, .. } = *kept.token;
        let life = expires_at.since(issued_at);
        let margin = (life / 10).clamp(1, MARGIN_SECONDS);
        if now >= expires_at.minus(margin) {
            return Found::Nothing;
        }
        let token = Arc::clone(&kept.token);
        // A clock that went back makes no token young again for ever: `now` before its beginning is odd, ask anew.
        let young = issued_at.minus(rhizome_jwt::LEEWAY_SECONDS) <= now && now < issued_at.plus(life / 2);
        if young || now < kept.rest_until { Found::Fresh(token) } else { Found::Stale(token) }
    }

    /// Keeps a token in the place of the one before.
    pub(super) fn keep(&mut self, token: Arc<Token>, now: Timestamp) {
        self.remove_where(|token| token.expires_at <= now);
        self.forget(&token.spiffe_id, &token.audiences);
        let size = size(&token);
        let crowded = |shelf: &Self| {
            let same = shelf.kept.get(&token.spiffe_id).map_or(0, BTreeMap::len);
            same >= MAX_PER_IDENTITY
        };
        if crowded(self) {
            self.remove_soonest(Some(&token.spiffe_id));
        }
        while self.bytes.saturating_add(size) > MAX_BYTES && self.remove_soonest(None) {}
        self.bytes = self.bytes.saturating_add(size);
        let of = self.kept.entry(token.spiffe_id.clone()).or_default();
        of.insert(token.audiences.clone(), Kept { token, rest_until: Timestamp::EPOCH });
    }

    /// The authority gave none: what there is is given for a while without asking.
    pub(super) fn rest(&mut self, id: &SpiffeId, audiences: &[String], now: Timestamp) {
        if let Some(kept) = self.kept.get_mut(id).and_then(|of| of.get_mut(audiences)) {
            kept.rest_until = now.plus(REST_SECONDS);
        }
    }

    pub(super) fn forget(&mut self, id: &SpiffeId, audiences: &[String]) {
        let Some(of) = self.kept.get_mut(id) else { return };
        if let Some(gone) = of.remove(audiences) {
            self.bytes = self.bytes.saturating_sub(size(&gone.token));
        }
        if of.is_empty() {
            self.kept.remove(id);
        }
    }

    pub(super) fn drop_where(&mut self, gone: impl Fn(&SpiffeId) -> bool) {
        self.remove_where(|token| gone(&token.spiffe_id));
    }

    fn remove_where(&mut self, gone: impl Fn(&Token) -> bool) {
        let bytes = &mut self.bytes;
        self.kept.retain(|_, of| {
            of.retain(|_, kept| {
                let goes = gone(&kept.token);
                if goes {
                    *bytes = bytes.saturating_sub(size(&kept.token));
                }
                !goes
            });
            !of.is_empty()
        });
    }

    /// Removes the token that expires first, of one identity or of all. Whether there was one.
    fn remove_soonest(&mut self, id: Option<&SpiffeId>) -> bool {
        let all = self.kept.iter().filter(|(of, _)| id.is_none_or(|id| id == *of));
        let tokens = all.flat_map(|(_, of)| of.values()).map(|kept| Arc::clone(&kept.token));
        let Some(soonest) = tokens.min_by_key(|token| token.expires_at) else { return false };
        self.forget(&soonest.spiffe_id, &soonest.audiences);
        true
    }
}

/// What a token costs: itself, and its audiences twice.
fn size(token: &Token) -> usize {
    let audiences: usize = token.audiences.iter().map(String::len).sum();
    token.expose().len().saturating_add(audiences.saturating_mul(2)).saturating_add(256)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::testing::{at, entitlement};

    fn token(path: &str, audience: &str, from: i64, until: i64) -> Arc<Token> {
        let text = Zeroizing::new(format!("token for {audience}"));
        let id = entitlement(path).spiffe_id;
        Arc::new(Token::new(text, id, vec![audience.to_owned()], (at(from), at(until))))
    }

    fn found(shelf: &Shelf, path: &str, audience: &str, now: i64) -> &'static str {
        match shelf.look(&entitlement(path).spiffe_id, &[audience.to_owned()], at(now)) {
            Found::Fresh(_) => "fresh",
            Found::Stale(_) => "stale",
            Found::Nothing => "nothing",
        }
    }

    #[test]
    fn a_token_is_given_until_half_of_its_life_and_in_need_until_shortly_before_its_end() {
        let mut shelf = Shelf::default();
        shelf.keep(token("/web", "a", 0, 300), at(0));
        for (now, expected) in [
            (-61, "stale"),
            (-60, "fresh"),
            (0, "fresh"),
            (149, "fresh"),
            (150, "stale"),
            (269, "stale"),
            (270, "nothing"),
            (300, "nothing"),
        ] {
            assert_eq!(found(&shelf, "/web", "a", now), expected, "{now}");
        }
        assert_eq!(found(&shelf, "/web", "b", 0), "nothing", "another audience");
        assert_eq!(found(&shelf, "/api", "a", 0), "nothing", "another identity");
    }

    #[test]
    fn after_a_failure_what_there_is_is_given_for_a_while_without_asking() {
        let mut shelf = Shelf::default();
        shelf.keep(token("/web", "a", 0, 300), at(0));
        shelf.rest(&entitlement("/web").spiffe_id, &["a".to_owned()], at(200));
        assert_eq!(found(&shelf, "/web", "a", 204), "fresh");
        assert_eq!(found(&shelf, "/web", "a", 205), "stale");
        shelf.rest(&entitlement("/web").spiffe_id, &["a".to_owned()], at(268));
        assert_eq!(found(&shelf, "/web", "a", 270), "nothing", "never in its last moments");
    }

    #[test]
    fn what_an_identity_loses_is_gone_with_all_its_audiences() {
        let mut shelf = Shelf::default();
        for (path, audience) in [("/web", "a"), ("/web", "b"), ("/api", "a")] {
            shelf.keep(token(path, audience, 0, 300), at(0));
        }
        shelf.drop_where(|id| id.path() == "/web");
        assert_eq!(
            [("/web", "a"), ("/web", "b"), ("/api", "a")].map(|(p, a)| found(&shelf, p, a, 1)),
            ["nothing", "nothing", "fresh"]
        );
        shelf.drop_where(|_| true);
        assert_eq!(shelf.bytes, 0);
    }

    #[test]
    fn many_audiences_of_one_identity_push_out_only_its_own() {
        let mut shelf = Shelf::default();
        shelf.keep(token("/api", "a", 0, 300), at(0));
        for number in 0..i64::try_from(MAX_PER_IDENTITY).unwrap() + 50 {
            shelf.keep(token("/web", &number.to_string(), 0, 301 + number), at(0));
        }
        assert_eq!(found(&shelf, "/api", "a", 1), "fresh");
        assert_eq!(shelf.kept[&entitlement("/web").spiffe_id].len(), MAX_PER_IDENTITY);
        assert_eq!(found(&shelf, "/web", "49", 1), "nothing", "what expires first went first");
        assert_eq!(found(&shelf, "/web", "50", 1), "fresh");
    }

    #[test]
    fn there_is_room_for_so_many_bytes_and_expired_tokens_take_none() {
        let mut shelf = Shelf::default();
        let large = "a".repeat(10_000);
        for number in 0..1_000 {
            shelf.keep(token(&format!("/{number}"), &format!("{large}{number}"), 0, 300), at(0));
            assert!(shelf.bytes <= MAX_BYTES);
        }
        assert!(shelf.kept.len() > 100);
        shelf.keep(token("/web", "a", 300, 600), at(300));
        assert_eq!(shelf.kept.len(), 1);
        shelf.keep(token("/web", "a", 301, 601), at(301));
        assert_eq!(shelf.kept.len(), 1);
        shelf.drop_where(|_| true);
        assert_eq!(shelf.bytes, 0);
    }
}
