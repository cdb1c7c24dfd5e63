//! JWT-SVIDs: a token is prepared from checked facts, signed elsewhere, sealed, and validated by whoever receives it.
//!
//! Laws: nothing here reads a clock or a random source, so the same arguments give the same answer; what is signed is
//! what was prepared ([`TokenToBeSigned`]), and nothing else can be signed with a key for tokens; a claim is believed
//! only out of a [`ValidatedJwt`], whose one maker is [`validate`]; a required claim is a field of a struct, so a token
//! without it cannot be read; the token is a bearer secret: never printed, copied or compared by accident.
//! Not here: who may have a token (`rhizome-core`), private keys (`rhizome-keys`), the keys' wire form
//! ([`rhizome_x509::Bundle`]), fetching and caching (`rhizome-agent`).
//! Sources: SPIFFE JWT-SVID §2–§6, RFC 7515 §3.1 and §5.2, RFC 7518 §3, RFC 7519 §4.1, RFC 8725.
//!
//! ```text
//! prepare ─→ TokenToBeSigned ─→ (a key ring) ─→ seal ─→ JwtSvid ─→ … ─→ validate ─→ ValidatedJwt
//! ```

mod algorithm;
mod json;
#[cfg(test)]
mod testing;
mod token;
mod validate;

pub use token::{
    JwtSpec, JwtSvid, MAX_AUDIENCE_BYTES, MAX_AUDIENCES, MAX_NAME_BYTES, PrepareError, SealError,
    TokenToBeSigned, prepare, probe_for,
};
pub use validate::{JwtError, LEEWAY_SECONDS, MAX_TOKEN_BYTES, ValidatedJwt, validate};
