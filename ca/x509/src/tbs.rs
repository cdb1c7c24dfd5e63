//! Bytes to be signed: the only things a key ring signs.
//!
//! Laws: a [`ToBeSigned`] is made in this crate only, from bytes that passed the lint or from the fixed probe; a
//! [`Linted`] becomes at most one certificate, and its bytes go into that certificate unchanged.
//! Not here: the lint (`lint.rs`), the signing (`rhizome-keys`). Sources: RFC 5280 §4.1.

use std::sync::Arc;

use rhizome_id::{Digest, Serial, Timestamp};

use crate::certificate::Certificate;
use crate::der::{self, Reader};
use crate::key::{PublicKey, SignatureError, SigningAlgorithm};
use crate::lint::Passed;
use crate::signature::{Provenance, Signature};

/// Bytes a key ring may sign. There is no way to make one from bytes of one's own:
///
/// ```compile_fail,E0451
/// use rhizome_x509::{SigningAlgorithm, ToBeSigned};
/// let forged = ToBeSigned { bytes: b"anything", algorithm: SigningAlgorithm::EcdsaP256Sha256 };
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ToBeSigned<'a> {
    bytes: &'a [u8],
    algorithm: SigningAlgorithm,
}

impl<'a> ToBeSigned<'a> {
    /// Only for bytes that passed a lint of this crate.
    pub(crate) const fn linted(bytes: &'a [u8], algorithm: SigningAlgorithm) -> Self {
        Self { bytes, algorithm }
    }

    /// The message.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What to sign it with.
    pub const fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }
}

/// Fixed bytes that a key ring signs, and verifies, to prove a P-256 key when it loads it; see [`probe_for`].
pub const fn probe() -> ToBeSigned<'static> {
    probe_for(SigningAlgorithm::EcdsaP256Sha256)
}

/// The probe for keys of the given algorithm. The text is no DER, so the signature is worth nothing elsewhere.
pub const fn probe_for(algorithm: SigningAlgorithm) -> ToBeSigned<'static> {
    ToBeSigned {
        bytes: b"rhizome: proof that a private key belongs to its public key; not a certificate",
        algorithm,
    }
}

/// A TBSCertificate that passed the lint and waits for its signature. Made by the `prepare_…` functions only, and
/// used up by [`Linted::seal`]:
///
/// ```compile_fail,E0451
/// fn unchecked(linted: rhizome_x509::Linted) -> rhizome_x509::Linted {
///     rhizome_x509::Linted { tbs: b"other bytes".to_vec(), ..linted }
/// }
/// ```
///
/// ```compile_fail,E0599
/// fn twice(linted: rhizome_x509::Linted) -> (rhizome_x509::Linted, rhizome_x509::Linted) {
///     (linted.clone(), linted)
/// }
/// ```
#[derive(Debug)]
pub struct Linted {
    tbs: Vec<u8>,
    algorithm: SigningAlgorithm,
    issuer_key: Arc<PublicKey>,
    serial: Serial,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Only the lint makes one.
    _passed: Passed,
}

impl Linted {
    pub(crate) const fn new(
        tbs: Vec<u8>,
        algorithm: SigningAlgorithm,
        issuer_key: Arc<PublicKey>,
        facts: (Serial, Timestamp, Timestamp),
        passed: Passed,
    ) -> Self {
        let (serial, not_before, not_after) = facts;
        Self { tbs, algorithm, issuer_key, serial, not_before, not_after, _passed: passed }
    }

    /// What to sign, with what.
    pub fn to_be_signed(&self) -> ToBeSigned<'_> {
        ToBeSigned { bytes: &self.tbs, algorithm: self.algorithm }
    }

    /// SHA-256 of the TBSCertificate: what the ledger records before anything is signed.
    pub fn digest(&self) -> Digest {
        der::sha256(&self.tbs)
    }

    /// The serial number.
    pub const fn serial(&self) -> Serial {
        self.serial
    }

    /// First second of validity.
    pub const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Last second of validity.
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Puts the certificate together: TBSCertificate, algorithm, signature (RFC 5280 §4.1.1).
    ///
    /// An external signature is always verified with the issuer's key. One from this process is verified for one
    /// serial in 64 (its last byte is random): its key was proved at load, and a verification costs three times the
    /// signature itself. Its shape is checked always.
    ///
    /// # Errors
    /// [`SealError`] when the signature is not an `ECDSA-Sig-Value` in DER, or does not verify.
    #[expect(clippy::needless_pass_by_value, reason = "a signature is used up with what it signed")]
    pub fn seal(self, signature: Signature) -> Result<Certificate, SealError> {
        check_shape(signature.as_bytes(), self.algorithm)?;
        if signature.provenance() == Provenance::External || self.is_sampled() {
            self.issuer_key.verify(&self.tbs, &signature, self.algorithm).map_err(SealError::Signature)?;
        }
        let identifier = self.algorithm.identifier();
        let capacity =
            self.tbs.len().saturating_add(identifier.len()).saturating_add(signature.as_bytes().len());
        let mut bits = Vec::with_capacity(128);
        der::write(&mut bits, der::BIT_STRING, &[&[0], signature.as_bytes()]);
        let mut certificate = Vec::with_capacity(capacity.saturating_add(16));
        der::write(&mut certificate, der::SEQUENCE, &[&self.tbs, identifier, &bits]);
        Ok(Certificate::sealed(certificate, self.serial, self.not_before, self.not_after))
    }

    fn is_sampled(&self) -> bool {
        let [.., last] = self.serial.as_bytes();
        last & 0x3f == 0
    }
}

/// `SEQUENCE { r INTEGER, s INTEGER }`, both positive and no longer than the curve's order.
pub(crate) fn check_shape(signature: &[u8], algorithm: SigningAlgorithm) -> Result<(), SealError> {
    let longest = match algorithm {
        SigningAlgorithm::EcdsaP256Sha256 => 33,
        SigningAlgorithm::EcdsaP384Sha384 => 49,
    };
    let number = |reader: &mut Reader<'_>| {
        let value = reader.value(der::INTEGER).ok()?;
        let positive = matches!(value, [1..=0x7f, ..] | [0, 0x80..=0xff, ..]);
        (positive && value.len() <= longest).then_some(())
    };
    let read = || {
        let mut outer = Reader::new(signature);
        let mut inner = outer.enter(der::SEQUENCE).ok()?;
        number(&mut inner)?;
        number(&mut inner)?;
        inner.finish().and_then(|()| outer.finish()).ok()
    };
    read().ok_or(SealError::Malformed)
}

/// Why a certificate was not sealed: always a fault of the key ring, never of the requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not an `ECDSA-Sig-Value` in DER.
    #[error("the key ring gave a signature that is not an ECDSA-Sig-Value in DER")]
    Malformed,
    /// It does not verify with the issuer's key over the linted bytes.
    #[error("the key ring's signature does not belong to the issuer's key and the linted bytes")]
    Signature(#[source] SignatureError),
}
