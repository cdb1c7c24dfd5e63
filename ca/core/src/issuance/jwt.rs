//! JWT-SVIDs: the chain of evidence from a grant to a token that may be sent; the same links as for certificates.
//!
//! Laws: [`Grant`] of kind `Token` → [`PreparedToken`] → [`TokenIntent`] (durable in the ledger) → [`Recorded`] → reply.
//! A token's `jti` comes from the counter of serial numbers, so no two tokens share one; a token never outlives the key
//! that signs it; the ledger holds the hash of what is signed and never the token.
//! Not here: the bytes of a token (`rhizome-jwt`), the order of the steps with their I/O (`rhizome_server`).
//! Sources: JWT-SVID §3 and §4; ca/docs/issuance.md, JWT-SVIDs; ca/docs/CONTRIBUTING.md, house rules 1 and 6.

use std::sync::Arc;

use rhizome_id::{AuthorityId, KeyId, Serial, Timestamp};
use rhizome_jwt::{JwtSpec, JwtSvid, TokenToBeSigned};
use rhizome_x509::{JwtKey, Signature};

use super::{Circumstances, Recorded, as_pairs};
use crate::authority::JwtAuthority;
use crate::ledger::{Entry, Event, JwtIssuance, Position, Receipt};
use crate::policy::{Grant, GrantKind};

/// The key that signs tokens now.
#[derive(Clone, Debug)]
pub struct ActiveJwtKey {
    /// Which authority.
    pub id: AuthorityId,
    /// The key in the key ring.
    pub key: KeyId,
    /// What the bundle says of it.
    pub jwt_key: JwtKey,
    /// From when on it may sign.
    pub not_before: Timestamp,
}

impl ActiveJwtKey {
    /// What signing needs to know of `authority`.
    pub fn of(authority: &JwtAuthority) -> Self {
        Self {
            id: authority.id.clone(),
            key: authority.key.clone(),
            jwt_key: authority.jwt_key.clone(),
            not_before: authority.not_before,
        }
    }
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenIssuanceError {
    /// The key may not sign now.
    #[error(
        "the JWT key {id} signs from {not_before} to {not_after}, and the server's clock says {now}; it is replaced by \
         itself: read the server's log"
    )]
    KeyNotValid {
        /// Which.
        id: AuthorityId,
        /// From when on.
        not_before: Timestamp,
        /// Until when.
        not_after: Timestamp,
        /// The server's clock.
        now: Timestamp,
    },
    /// The grant is for a certificate: a fault of ours.
    #[error("the grant is not for a token; nothing was signed")]
    WrongGrant,
    /// The facts make no token.
    #[error("the token was not signed: {0}")]
    Prepare(#[from] rhizome_jwt::PrepareError),
    /// A receipt belongs to something else: a fault of ours.
    #[error("the ledger's receipt is for something else; nothing was signed")]
    WrongReceipt,
    /// The signature does not fit.
    #[error("the signature of a token was refused: {0}")]
    Seal(#[from] rhizome_jwt::SealError),
}

/// A token that waits to be recorded.
#[derive(Debug)]
pub struct PreparedToken {
    token: TokenToBeSigned,
    issuance: JwtIssuance,
    clamped: bool,
}

/// Prepares the token that `grant` allows, for `audiences`, to be signed by `key`; `issuer` is the address that relying
/// parties of OpenID Connect know this authority by, where there is one.
///
/// # Errors
/// [`TokenIssuanceError`] when the key may not sign now, the grant is not for a token, or the audiences are not 1 to 16
/// of 1 to 256 bytes.
pub fn prepare(
    grant: &Grant,
    audiences: Vec<String>,
    issuer: Option<&str>,
    key: &Arc<ActiveJwtKey>,
    around: &Circumstances<'_>,
) -> Result<PreparedToken, TokenIssuanceError> {
    if grant.kind() != GrantKind::Token {
        return Err(TokenIssuanceError::WrongGrant);
    }
    let (now, not_after) = (around.now, key.jwt_key.not_after());
    // `exp` is exclusive and the key's last second inclusive; the second between the two is given away.
    if now < key.not_before || now >= not_after {
        let (id, not_before) = (key.id.clone(), key.not_before);
        return Err(TokenIssuanceError::KeyNotValid { id, not_before, not_after, now });
    }
    let wanted = now.plus(grant.ttl().seconds());
    let expires_at = wanted.min(not_after);
    let token = rhizome_jwt::prepare(JwtSpec {
        spiffe_id: grant.spiffe_id().clone(),
        audiences: audiences.clone(),
        issued_at: now,
        expires_at,
        jti: around.serial.to_string(),
        issuer: issuer.map(str::to_owned),
        key: key.jwt_key.clone(),
    })?;
    let issuance = JwtIssuance {
        spiffe_id: grant.spiffe_id().clone(),
        jti: around.serial,
        audiences,
        issued_at: now,
        expires_at,
        input: token.digest(),
        authority: key.id.clone(),
        key: key.key.clone(),
        caller: grant.caller().to_owned(),
        rule: grant.rule().map(ToString::to_string),
        attributes: around.attributes.map(as_pairs).unwrap_or_default(),
    };
    Ok(PreparedToken { token, issuance, clamped: grant.clamped() || expires_at < wanted })
}

impl PreparedToken {
    /// What the ledger will say.
    pub const fn issuance(&self) -> &JwtIssuance {
        &self.issuance
    }

    /// Whether it lives shorter than was asked for.
    pub const fn clamped(&self) -> bool {
        self.clamped
    }

    /// The ledger entry that must be durable before this is signed.
    pub fn entry(&self, now: Timestamp) -> Entry {
        Entry::new(now, &Event::JwtIssued(self.issuance.clone()))
    }

    /// Turns a store's receipt for exactly this token into the right to sign it.
    ///
    /// # Errors
    /// [`TokenIssuanceError::WrongReceipt`] when the receipt is for something else.
    pub fn recorded(self, receipt: &Receipt) -> Result<TokenIntent, TokenIssuanceError> {
        if receipt.counter != Some(self.issuance.jti.counter()) {
            return Err(TokenIssuanceError::WrongReceipt);
        }
        Ok(TokenIntent { token: self.token, issuance: self.issuance, position: receipt.position })
    }
}

/// A token whose entry is durable: the only thing that can be signed into a JWT-SVID.
///
/// It cannot be made by hand:
/// ```compile_fail
/// use rhizome_core::issuance::jwt::TokenIntent;
/// let forged = TokenIntent { ..unreachable!() };
/// ```
#[derive(Debug)]
pub struct TokenIntent {
    token: TokenToBeSigned,
    issuance: JwtIssuance,
    position: Position,
}

impl TokenIntent {
    /// The key to sign with.
    pub const fn key(&self) -> &KeyId {
        &self.issuance.key
    }

    /// Its `jti`, for the entry that says that signing failed.
    pub const fn jti(&self) -> Serial {
        self.issuance.jti
    }

    /// What to sign.
    pub const fn token(&self) -> &TokenToBeSigned {
        &self.token
    }

    /// Joins the signature to the token it is for.
    ///
    /// # Errors
    /// [`TokenIssuanceError::Seal`] when the signature is not one, or does not verify.
    pub fn seal(self, signature: Signature) -> Result<Recorded<JwtSvid>, TokenIssuanceError> {
        let value = self.token.seal(signature)?;
        Ok(Recorded { value, position: self.position })
    }
}
