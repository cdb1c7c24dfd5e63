//! Join tokens: one-time proof that an administrator expects this machine.
//!
//! Laws: the secret is never stored, only its SHA-256; a token is redeemed once, and after that only by the same key,
//! for the retry after a lost answer; nothing revives an expired, used or revoked token. Not here: the transaction
//! that consumes the token together with the issuing (`rhizome_store`), the one-paste join string (`rhizome_cli`).
//! Sources: SPIRE 1.14.6 (join token TOCTOU); spiffe/spire#2454 (lost answer); ca/docs/attacks.md §2 (10).

use rhizome_id::{ClusterName, Digest, NodeName, Timestamp, TokenId};
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::caller::Scope;
use crate::limits::JOIN_TOKEN_SECRET_BYTES;

/// A join token as it is stored: everything but the secret. JSON; unknown fields are ignored (schema N and N−1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The public handle: the first 16 hexadecimal digits of the SHA-256 of the secret.
    pub id: TokenId,
    /// SHA-256 of the secret's bytes.
    pub secret_digest: Digest,
    /// The cluster that the node will belong to.
    pub cluster: ClusterName,
    /// The name that the node will have.
    pub node: NodeName,
    /// What the node may vouch for.
    pub scope: Scope,
    /// The principal's audit text of whoever made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The first second at which it is no longer accepted.
    pub expires_at: Timestamp,
    /// Whether it has been used.
    pub state: TokenState,
}

/// Where a token stands in its life. It only moves forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenState {
    /// Not used yet.
    Unused,
    /// Redeemed.
    Used {
        /// When.
        at: Timestamp,
        /// SHA-256 of the subject public key info (DER) that redeemed it; the same key may retry until expiry.
        key: Digest,
    },
    /// Withdrawn by an administrator.
    Revoked {
        /// When.
        at: Timestamp,
        /// The principal's audit text of whoever did it.
        by: String,
    },
}

/// What a new token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPurpose {
    /// The cluster that the node will belong to.
    pub cluster: ClusterName,
    /// The name that the node will have.
    pub node: NodeName,
    /// What the node may vouch for.
    pub scope: Scope,
    /// The principal's audit text of whoever makes it.
    pub created_by: String,
    /// The first second at which it is no longer accepted.
    pub expires_at: Timestamp,
}

/// What redeeming a token left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redemption {
    /// The token as it must be stored, in the transaction that issues, before the answer goes out.
    pub token: JoinToken,
    /// Whether the same key redeemed it before: the retry after a lost answer. `token` is unchanged then.
    pub replay: bool,
}

/// Why a token was refused. All of them look alike from outside; the difference goes to the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("the join token expired at {at}; ask for a new one")]
    Expired {
        /// The first second at which it was no longer accepted.
        at: Timestamp,
    },
    /// Another key has used it.
    #[error("the join token has been used by another key")]
    Used,
    /// An administrator withdrew it.
    #[error("the join token has been revoked")]
    Revoked,
    /// The secret is not this token's.
    #[error("the secret does not belong to this join token")]
    WrongSecret,
}

impl TokenError {
    /// The stable code for metric and audit.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "token_expired",
            Self::Used => "token_used",
            Self::Revoked => "token_revoked",
            Self::WrongSecret => "token_wrong_secret",
        }
    }
}

impl JoinToken {
    /// Makes an unused token out of a freshly drawn secret, which is not kept.
    pub fn new(secret: &[u8; JOIN_TOKEN_SECRET_BYTES], purpose: TokenPurpose, now: Timestamp) -> Self {
        let TokenPurpose { cluster, node, scope, created_by, expires_at } = purpose;
        Self {
            id: Self::id_of(secret),
            secret_digest: Self::digest_of(secret),
            cluster,
            node,
            scope,
            created_by,
            created_at: now,
            expires_at,
            state: TokenState::Unused,
        }
    }

    /// The public handle of the token with this secret: the first 16 hexadecimal digits of its SHA-256. By it a
    /// token is found, so that a lookup never compares secrets.
    pub fn id_of(secret: &[u8]) -> TokenId {
        let text: String = String::from(Self::digest_of(secret)).chars().take(16).collect();
        TokenId::try_from(text).unwrap_or_else(|_| unreachable!("hexadecimal digits are a name"))
    }

    /// SHA-256 of the secret's bytes.
    pub fn digest_of(secret: &[u8]) -> Digest {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(digest::digest(&digest::SHA256, secret).as_ref()) {
            *to = *from;
        }
        Digest::from_bytes(bytes)
    }

    /// Whether anyone could still redeem it for the first time at `now`.
    pub fn is_redeemable(&self, now: Timestamp) -> bool {
        self.state == TokenState::Unused && now < self.expires_at
    }

    /// Redeems the token for the key whose subject public key info (DER) has the SHA-256 `key`.
    ///
    /// # Errors
    /// [`TokenError`]; a wrong secret is told first, so that it learns nothing about the token's state.
    pub fn redeem(&self, secret: &[u8], key: &Digest, now: Timestamp) -> Result<Redemption, TokenError> {
        // An ordinary comparison is enough. What time it takes depends on the first differing byte of two SHA-256
        // digests; to use that, an attacker would have to choose secrets by their digest, that is find preimages.
        // The stored digest may even be public: the secret has 256 random bits.
        if Self::digest_of(secret) != self.secret_digest {
            return Err(TokenError::WrongSecret);
        }
        if let TokenState::Revoked { .. } = self.state {
            return Err(TokenError::Revoked);
        }
        if now >= self.expires_at {
            return Err(TokenError::Expired { at: self.expires_at });
        }
        match &self.state {
            TokenState::Unused => Ok(Redemption {
                token: Self { state: TokenState::Used { at: now, key: *key }, ..self.clone() },
                replay: false,
            }),
            TokenState::Used { key: first, .. } if first == key => {
                Ok(Redemption { token: self.clone(), replay: true })
            }
            TokenState::Used { .. } => Err(TokenError::Used),
            TokenState::Revoked { .. } => Err(TokenError::Revoked),
        }
    }

    /// The token withdrawn by `by`. A used token can be revoked too, which ends retries; what it issued lives on
    /// until the node is banned. Revoking twice keeps the first record.
    #[must_use]
    pub fn revoked(&self, by: &str, now: Timestamp) -> Self {
        let state = match &self.state {
            first @ TokenState::Revoked { .. } => first.clone(),
            TokenState::Unused | TokenState::Used { .. } => {
                TokenState::Revoked { at: now, by: by.to_owned() }
            }
        };
        Self { state, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; 32] = [7; 32];
    const KEY: Digest = Digest::from_bytes([1; 32]);
    const OTHER_KEY: Digest = Digest::from_bytes([2; 32]);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn token() -> JoinToken {
        let purpose = TokenPurpose {
            cluster: "prod".parse().unwrap(),
            node: "vm-1".parse().unwrap(),
            scope: Scope::ALL,
            created_by: "admin:alice".to_owned(),
            expires_at: at(2_000),
        };
        JoinToken::new(&SECRET, purpose, at(1_000))
    }

    #[test]
    fn a_token_is_redeemed_once_and_by_the_same_key_again_after_a_lost_answer() {
        let first = token().redeem(&SECRET, &KEY, at(1_500)).unwrap();
        assert!(!first.replay);
        assert_eq!(first.token.state, TokenState::Used { at: at(1_500), key: KEY });
        let again = first.token.redeem(&SECRET, &KEY, at(1_999)).unwrap();
        assert!(again.replay);
        assert_eq!(again.token, first.token, "a replay changes nothing");
        assert_eq!(first.token.redeem(&SECRET, &OTHER_KEY, at(1_501)), Err(TokenError::Used));
    }

    #[test]
    fn a_token_ends_at_its_expiry_for_retries_too() {
        assert!(token().redeem(&SECRET, &KEY, at(1_999)).is_ok());
        assert_eq!(token().redeem(&SECRET, &KEY, at(2_000)), Err(TokenError::Expired { at: at(2_000) }));
        let used = token().redeem(&SECRET, &KEY, at(1_999)).unwrap().token;
        assert!(used.redeem(&SECRET, &KEY, at(2_000)).is_err());
        assert!(!used.is_redeemable(at(1_999)) && token().is_redeemable(at(1_999)));
        assert!(!token().is_redeemable(at(2_000)));
    }

    #[test]
    fn a_wrong_secret_learns_nothing_about_the_token() {
        let states = [
            token(),
            token().revoked("admin:alice", at(1_100)),
            token().redeem(&SECRET, &KEY, at(1_100)).unwrap().token,
        ];
        for state in states {
            for now in [at(1_500), at(3_000)] {
                assert_eq!(state.redeem(&[8; 32], &KEY, now), Err(TokenError::WrongSecret));
                assert_eq!(state.redeem(b"", &KEY, now), Err(TokenError::WrongSecret));
            }
        }
    }

    #[test]
    fn revoking_ends_a_token_and_keeps_the_first_record() {
        let revoked = token().revoked("admin:alice", at(1_100));
        assert_eq!(revoked.redeem(&SECRET, &KEY, at(1_200)), Err(TokenError::Revoked));
        assert_eq!(revoked.revoked("admin:bob", at(1_300)), revoked);
        let used = token().redeem(&SECRET, &KEY, at(1_100)).unwrap().token;
        let revoked = used.revoked("admin:alice", at(1_200));
        assert_eq!(revoked.redeem(&SECRET, &KEY, at(1_200)), Err(TokenError::Revoked));
    }

    #[test]
    fn the_handle_is_16_digits_of_the_digest_and_the_document_holds_no_secret() {
        let token = token();
        assert_eq!(token.id.as_str().len(), 16);
        assert_eq!(token.id, JoinToken::id_of(&SECRET));
        let json = serde_json::to_string(&token).unwrap();
        assert!(!json.contains(&hex::encode(SECRET)));
        assert_eq!(serde_json::from_str::<JoinToken>(&json).unwrap(), token);
        let newer = json.replacen('{', r#"{"from_schema_n_plus_1":true,"#, 1);
        assert_eq!(serde_json::from_str::<JoinToken>(&newer).unwrap(), token);
    }

    proptest! {
        #[test]
        fn whatever_the_order_of_attempts_at_most_one_key_ever_redeems_a_token(
            attempts in prop::collection::vec((0u8..4, 900i64..2_200, prop::bool::weighted(0.1)), 1..40),
        ) {
            let mut stored = token();
            let mut winners = std::collections::BTreeSet::new();
            for (key, now, revoke) in attempts {
                if revoke {
                    stored = stored.revoked("admin:alice", at(now));
                }
                let key = Digest::from_bytes([key; 32]);
                if let Ok(redemption) = stored.redeem(&SECRET, &key, at(now)) {
                    stored = redemption.token;
                    winners.insert(key);
                }
            }
            prop_assert!(winners.len() <= 1);
        }
    }
}
