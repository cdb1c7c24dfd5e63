//! Reasons: what is wrong with our own configuration, and why a server is not trusted.
//!
//! Laws: each sentence names the thing, what was found and, where there is one, the remedy; none holds key material.
//! A reason travels through rustls as [`rustls::CertificateError::Other`], which is one alert (certificate_unknown) to
//! the peer, and is taken out again here.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rhizome_id::{Digest, SpiffeId, Timestamp, TrustDomain};
use rhizome_x509::PeerError;
use rustls::{CertificateError, OtherError};

/// Why a chain and a key cannot be presented.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No certificate at all.
    #[error("the certificate chain is empty")]
    EmptyChain,
    /// Not a key that TLS can use.
    #[error("the private key is not PKCS#8 of a kind that TLS can use (P-256, P-384, Ed25519, RSA)")]
    Key,
    /// The key is not the leaf's.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The leaf cannot be read.
    #[error("the certificate cannot be used: {cause}")]
    Certificate {
        /// What is wrong.
        cause: String,
    },
}

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The identity to present is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// rustls refuses the configuration: a fault of ours.
    #[error("bug in the TLS configuration: {0}")]
    Configuration(#[from] rustls::Error),
    /// A handshake finished with a certificate that nobody verified, or the reverse: a fault of ours.
    #[error("bug in TLS: the handshake and its evidence do not agree")]
    Evidence,
}

/// Why a client does not trust the server it reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerRefusal {
    /// Its certificates lead to no anchor of ours.
    #[error(
        "its certificate was issued by `{issuer}` ({authority}), which no live anchor of {trust_domain} vouches for; \
         if the root was rotated while this machine was away, fetch the bundle again"
    )]
    UnknownAuthority {
        /// The trust domain whose anchors were used.
        trust_domain: TrustDomain,
        /// The name of the authority that issued the last certificate presented.
        issuer: String,
        /// That last certificate's fingerprint.
        authority: PresentedAuthority,
    },
    /// A certificate it presented is over.
    #[error(
        "its certificate `{subject}` expired at {not_after}, and this machine's clock says {now}; compare the clocks, or \
         wait for the server to renew"
    )]
    Expired {
        /// Whose certificate: a SPIFFE ID, or an authority's subject.
        subject: String,
        /// Last second of its validity, by the issuer's clock.
        not_after: Timestamp,
        /// The time here.
        now: Timestamp,
    },
    /// A certificate it presented has not begun.
    #[error(
        "its certificate `{subject}` is valid from {not_before}, and this machine's clock says {now}; compare the clocks"
    )]
    NotYetValid {
        /// Whose certificate: a SPIFFE ID, or an authority's subject.
        subject: String,
        /// First second of its validity, by the issuer's clock.
        not_before: Timestamp,
        /// The time here.
        now: Timestamp,
    },
    /// None of our own anchors is valid.
    #[error(
        "every root certificate this machine has for {trust_domain} is expired (or not yet valid) at {now}, by this \
         machine's clock; fetch the bundle again"
    )]
    AnchorsExpired {
        /// The trust domain whose anchors were used.
        trust_domain: TrustDomain,
        /// The time here.
        now: Timestamp,
    },
    /// It is somebody, but not who we asked for.
    #[error("it is {found}, expected was {expected}")]
    WrongIdentity {
        /// Who was asked for.
        expected: String,
        /// Who answered.
        found: SpiffeId,
    },
    /// Any other fault of its certificate.
    #[error("{0}")]
    Certificate(#[source] PeerError),
}

/// The topmost certificate a server presented, by fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresentedAuthority {
    /// The chain's last certificate is an authority's; SHA-256 of it.
    Intermediate(Digest),
    /// It sent nothing but its own certificate; SHA-256 of that.
    LeafOnly(Digest),
}

impl std::fmt::Display for PresentedAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Intermediate(digest) => write!(f, "above the intermediate sha256 {digest}"),
            Self::LeafOnly(digest) => write!(f, "above the certificate sha256 {digest}"),
        }
    }
}

pub(crate) fn into_rustls(reason: impl Error + Send + Sync + 'static) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

/// The reason that one of our verifiers gave, out of the I/O error that a handshake ended with.
pub(crate) fn reason_in<T: Error + 'static>(error: &io::Error) -> Option<&T> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) = error else {
        return None;
    };
    reason.downcast_ref::<T>()
}
