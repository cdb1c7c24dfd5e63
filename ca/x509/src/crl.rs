//! Certificate revocation lists: those we make, and those we believe.
//!
//! Laws: a list is signed by the very issuer whose certificates it speaks of, and says all of it (no deltas, no
//! distribution points); the bytes that are linted are the bytes that are signed, and its signature is always verified
//! before it exists. A list that is believed was read strictly, verified with its issuer's key, and its issuer chains to
//! an anchor ([`issuers_under`]). Equal arguments give equal bytes.
//! Not here: what is revoked, when lists are made, which list is newer (`rhizome-core`, the agent).
//! Sources: RFC 5280 §5; clauses at the lines.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rhizome_id::{Digest, Serial, Timestamp};
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::certificate::CaCertificate;
use crate::der::{self, DerError, Reader};
use crate::issuer::{IssuerNames, signing_algorithm};
use crate::key::{PublicKey, SigningAlgorithm};
use crate::lint;
use crate::pem_text;
use crate::profile::{Capture, PrepareError, date_time};
use crate::signature::Signature;
use crate::tbs::{SealError, ToBeSigned, check_shape};

/// Largest list read or made, in bytes of DER.
pub const MAX_CRL_DER_BYTES: usize = 512 * 1024;
/// Most entries: each takes at most 53 bytes, so they fit below [`MAX_CRL_DER_BYTES`].
pub const MAX_CRL_ENTRIES: usize = 9_000;
/// Most CA certificates between a list's issuer and an anchor, the issuer included.
const MAX_DEPTH: usize = 3;

const REASON_CODE: &[u8] = b"\x55\x1d\x15";
const CRL_NUMBER: &[u8] = b"\x55\x1d\x14";
const AUTHORITY_KEY_ID: &[u8] = b"\x55\x1d\x23";
const ENUMERATED: u8 = 0x0a;
/// Context tag 0, primitive: the key identifier inside an authority key identifier.
const KEY_ID: u8 = 0x80;

/// Why a certificate was revoked, of RFC 5280 §5.3.1 those that can be true of a leaf here. Not among them: holds and
/// their removal (what is revoked stays revoked), reasons of CAs and of attribute certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevocationCode {
    /// Nobody said; in the list the code is then absent, as RFC 5280 §5.3.1 wants.
    #[default]
    Unspecified,
    /// Its private key is known or suspected to be known to others.
    KeyCompromise,
    /// Its holder is gone or was banned.
    PrivilegeWithdrawn,
}

impl RevocationCode {
    const fn encoder(self) -> Option<RevocationReason> {
        match self {
            Self::Unspecified => None,
            Self::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Self::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        }
    }

    /// The number in RFC 5280 §5.3.1.
    const fn number(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::PrivilegeWithdrawn => 9,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::KeyCompromise, Self::PrivilegeWithdrawn].into_iter().find(|code| code.number() == number)
    }
}

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Which certificate of the issuer.
    pub serial: Serial,
    /// When the revocation was recorded.
    pub at: Timestamp,
    /// Why.
    pub code: RevocationCode,
}

/// What a list is to say.
#[derive(Clone, Copy, Debug)]
pub struct CrlSpec<'a> {
    /// The issuer of the certificates; it signs the list, too.
    pub issuer: &'a CaCertificate,
    /// Only grows for one issuer (RFC 5280 §5.2.3).
    pub number: u64,
    /// From when the list holds: not in the future of any clock that reads it.
    pub this_update: Timestamp,
    /// Until when it may be used at the latest.
    pub next_update: Timestamp,
    /// Every unexpired revoked certificate of the issuer, in the order of the list. At most [`MAX_CRL_ENTRIES`].
    pub revoked: &'a [Revoked],
}

/// Builds and lints a list.
///
/// # Errors
/// [`PrepareError`] naming the rule the list would break.
pub fn prepare_crl(spec: &CrlSpec<'_>) -> Result<LintedCrl, PrepareError> {
    let CrlSpec { issuer, number, this_update, next_update, revoked } = *spec;
    if revoked.len() > MAX_CRL_ENTRIES {
        return Err(CrlError::TooLarge { bytes: revoked.len() }.into());
    }
    let algorithm = signing_algorithm(issuer)?;
    let entry = |it: &Revoked| {
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(it.serial.as_bytes()),
            revocation_time: date_time(it.at)?,
            reason_code: it.code.encoder(),
            invalidity_date: None,
        })
    };
    let params = CertificateRevocationListParams {
        this_update: date_time(this_update)?,
        next_update: date_time(next_update)?,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect::<Result<_, PrepareError>>()?,
        key_identifier_method: KeyIdMethod::PreSpecified(issuer.key_identifier().to_vec()),
    };
    let names = IssuerNames::of(issuer)?;
    let capture = Capture::new(algorithm);
    let signer = rcgen::Issuer::from_params(names.params(), &capture);
    params.signed_by(&signer).map_err(PrepareError::encoder)?;
    drop(signer);
    let tbs = capture.into_bytes();
    lint(&tbs, spec, algorithm)?;
    Ok(LintedCrl { tbs, algorithm, issuer_key: issuer.shared_public_key(), number })
}

/// Our own reading of the exact bytes that are about to be signed; shares no code with the encoder.
fn lint(tbs: &[u8], spec: &CrlSpec<'_>, algorithm: SigningAlgorithm) -> Result<(), CrlError> {
    let fields = Fields::read(tbs)?;
    let differs = |field| Err(CrlError::Differs { field });
    if fields.algorithm != algorithm.identifier() {
        return differs("signature algorithm");
    }
    // RFC 5280 §5.1.2.3: the issuer's subject, byte for byte.
    if fields.issuer != spec.issuer.subject_der() {
        return differs("issuer");
    }
    if (fields.this_update, fields.next_update) != (spec.this_update, spec.next_update) {
        return differs("dates");
    }
    // Within the issuer's life, so that no verifier finds a list of an issuer that was not there.
    if spec.this_update < spec.issuer.not_before() || spec.next_update > spec.issuer.not_after() {
        return differs("issuer's validity");
    }
    if fields.key_id != spec.issuer.key_identifier() {
        return differs("authority key identifier");
    }
    if fields.number != spec.number {
        return differs("number");
    }
    if fields.revoked.as_slice() != spec.revoked {
        return differs("entries");
    }
    let mut serials: Vec<&[u8; 20]> = spec.revoked.iter().map(|it| it.serial.as_bytes()).collect();
    serials.sort_unstable();
    if serials.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
        return Err(CrlError::DoubledEntry);
    }
    if spec.revoked.iter().any(|it| it.at > spec.this_update) {
        return differs("revocation dates");
    }
    Ok(())
}

/// A TBSCertList that passed the lint and waits for its signature.
#[derive(Debug)]
pub struct LintedCrl {
    tbs: Vec<u8>,
    algorithm: SigningAlgorithm,
    issuer_key: Arc<PublicKey>,
    number: u64,
}

impl LintedCrl {
    /// What to sign, with what.
    pub fn to_be_signed(&self) -> ToBeSigned<'_> {
        ToBeSigned::linted(&self.tbs, self.algorithm)
    }

    /// SHA-256 of the TBSCertList: what the ledger records before anything is signed.
    pub fn digest(&self) -> Digest {
        der::sha256(&self.tbs)
    }

    /// The list's number.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Puts the list together (RFC 5280 §5.1.1). The signature is always verified: lists are few.
    ///
    /// # Errors
    /// [`SealError`] when the signature is not an `ECDSA-Sig-Value` in DER, or does not verify.
    #[expect(clippy::needless_pass_by_value, reason = "a signature is used up with what it signed")]
    pub fn seal(self, signature: Signature) -> Result<Crl, SealError> {
        check_shape(signature.as_bytes(), self.algorithm)?;
        self.issuer_key.verify(&self.tbs, &signature, self.algorithm).map_err(SealError::Signature)?;
        let bits = der::encode(der::BIT_STRING, &[&[0], signature.as_bytes()]);
        let der = der::encode(der::SEQUENCE, &[&self.tbs, self.algorithm.identifier(), &bits]);
        Crl::parse(&der).map_err(|_linted| SealError::Malformed)
    }
}

/// A certificate revocation list. Equal if its DER is; serialised as base64 of the DER.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Crl {
    der: Vec<u8>,
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
    issuer_der: Vec<u8>,
    key_id: Vec<u8>,
    revoked: Vec<Revoked>,
}

impl Crl {
    /// Reads a list in DER of the shape that we make, without verifying it: for one that was verified before it was put
    /// away.
    ///
    /// # Errors
    /// [`CrlError`] naming what it breaks.
    pub fn parse(der: &[u8]) -> Result<Self, CrlError> {
        let Frame { tbs, identifier, signature: _ } = frame(der)?;
        let fields = Fields::read(tbs)?;
        // RFC 5280 §5.1.1.2: the same inside and outside.
        if fields.algorithm != identifier {
            return Err(CrlError::Differs { field: "signature algorithm" });
        }
        Ok(Self {
            der: der.to_vec(),
            number: fields.number,
            this_update: fields.this_update,
            next_update: fields.next_update,
            issuer_der: fields.issuer.to_vec(),
            key_id: fields.key_id.to_vec(),
            revoked: fields.revoked,
        })
    }

    /// Reads a list in DER and verifies it with that one of `issuers` whose list it is. Whether those are to be believed
    /// is said before, by [`issuers_under`].
    ///
    /// # Errors
    /// [`CrlError::UnknownIssuer`] when none of them is its issuer; [`CrlError::Signature`] when it did not sign this.
    pub fn verify(der: &[u8], issuers: &[CaCertificate]) -> Result<Self, CrlError> {
        let crl = Self::parse(der)?;
        let issuer = issuers.iter().find(|issuer| crl.is_of(issuer)).ok_or(CrlError::UnknownIssuer)?;
        let Frame { tbs, identifier, signature } = frame(der)?;
        let verified = issuer.public_key().verify_by_identifier(identifier, tbs, signature);
        verified.map_err(|_invalid| CrlError::Signature)?;
        Ok(crl)
    }

    /// Whether it speaks of the certificates of `issuer`, by name and key identifier.
    pub fn is_of(&self, issuer: &CaCertificate) -> bool {
        self.issuer_der == issuer.subject_der() && self.key_id == issuer.key_identifier()
    }

    /// The list in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The list in PEM, with one newline at its end.
    pub fn pem(&self) -> String {
        pem_text::encode(pem_text::CRL, &self.der)
    }

    /// Its number.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// From when it holds.
    pub const fn this_update(&self) -> Timestamp {
        self.this_update
    }

    /// Until when it may be used.
    pub const fn next_update(&self) -> Timestamp {
        self.next_update
    }

    /// The key identifier of its issuer: what the certificates that it speaks of carry as authority key identifier.
    pub fn issuer_key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// The revoked certificates, in the order of the list.
    pub fn revoked(&self) -> &[Revoked] {
        &self.revoked
    }
}

impl TryFrom<String> for Crl {
    type Error = CrlError;

    fn try_from(base64: String) -> Result<Self, Self::Error> {
        let der = STANDARD.decode(base64).map_err(|_malformed| CrlError::Unreadable { field: "base64" })?;
        Self::parse(&der)
    }
}

impl From<Crl> for String {
    fn from(crl: Crl) -> Self {
        STANDARD.encode(crl.der)
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.revoked.len();
        write!(f, "Crl({}, number {}, {entries} entries)", hex::encode(&self.key_id), self.number)
    }
}

/// Those of `certificates` that chain to an anchor of `bundle`: names, key identifiers and signatures, not validity
/// (an expired issuer's list does no harm).
pub fn issuers_under(bundle: &Bundle, certificates: &[CaCertificate]) -> Vec<CaCertificate> {
    let mut believed: Vec<CaCertificate> = Vec::new();
    for _ in 0..MAX_DEPTH {
        let above = || bundle.anchors().iter().chain(&believed);
        let fresh = |it: &&CaCertificate| {
            !believed.contains(it) && above().any(|above| it.check_issued_by(above).is_ok())
        };
        let found: Vec<CaCertificate> = certificates.iter().filter(fresh).cloned().collect();
        if found.is_empty() {
            break;
        }
        believed.extend(found);
    }
    believed
}

/// The three parts of a list.
struct Frame<'a> {
    tbs: &'a [u8],
    identifier: &'a [u8],
    signature: &'a [u8],
}

/// RFC 5280 §5.1.1, nothing left over.
fn frame(der: &[u8]) -> Result<Frame<'_>, CrlError> {
    if der.len() > MAX_CRL_DER_BYTES {
        return Err(CrlError::TooLarge { bytes: der.len() });
    }
    let mut outer = Reader::new(der);
    let mut inner = outer.enter(der::SEQUENCE).map_err(unreadable("frame"))?;
    outer.finish().map_err(unreadable("end"))?;
    let tbs = inner.element(der::SEQUENCE).map_err(unreadable("frame"))?.raw;
    let identifier = inner.element(der::SEQUENCE).map_err(unreadable("frame"))?.raw;
    let signature = inner.bits().map_err(unreadable("signature"))?;
    inner.finish().map_err(unreadable("end"))?;
    Ok(Frame { tbs, identifier, signature })
}

/// What a TBSCertList says.
struct Fields<'a> {
    algorithm: &'a [u8],
    issuer: &'a [u8],
    this_update: Timestamp,
    next_update: Timestamp,
    revoked: Vec<Revoked>,
    key_id: &'a [u8],
    number: u64,
}

impl<'a> Fields<'a> {
    /// RFC 5280 §5.1.2, strictly, and only the extensions that we write (§5.2: both are required, neither is critical).
    fn read(tbs: &'a [u8]) -> Result<Self, CrlError> {
        let mut outer = Reader::new(tbs);
        let mut fields = outer.enter(der::SEQUENCE).map_err(unreadable("frame"))?;
        outer.finish().map_err(unreadable("end"))?;
        // §5.1.2.1: version 2 is the INTEGER 1.
        if fields.value(der::INTEGER).map_err(unreadable("version"))? != [1] {
            return Err(CrlError::Unreadable { field: "version" });
        }
        let algorithm = fields.element(der::SEQUENCE).map_err(unreadable("signature algorithm"))?.raw;
        let issuer = fields.element(der::SEQUENCE).map_err(unreadable("issuer"))?.raw;
        let this_update = read_time(&mut fields, "thisUpdate")?;
        // §5.1.2.5: required of conforming issuers.
        let next_update = read_time(&mut fields, "nextUpdate")?;
        if next_update < this_update {
            return Err(CrlError::Unreadable { field: "nextUpdate" });
        }
        let revoked = if fields.next_tag() == Some(der::SEQUENCE) {
            read_entries(fields.enter(der::SEQUENCE).map_err(unreadable("entries"))?)?
        } else {
            Vec::new()
        };
        let mut wrapper = fields.enter(der::CONTEXT_0).map_err(unreadable("extensions"))?;
        fields.finish().map_err(unreadable("end"))?;
        let mut extensions = wrapper.enter(der::SEQUENCE).map_err(unreadable("extensions"))?;
        wrapper.finish().map_err(unreadable("extensions"))?;
        let (mut key_id, mut number) = (None, None);
        while !extensions.is_empty() {
            let extension = der::extension(&mut extensions).map_err(unreadable("extensions"))?;
            let doubled = match extension.oid {
                AUTHORITY_KEY_ID => key_id.replace(read_key_id(extension.value)?).is_some(),
                CRL_NUMBER => number.replace(read_number(extension.value)?).is_some(),
                _ => true,
            };
            if doubled || extension.critical {
                return Err(CrlError::Extension { oid: der::oid_text(extension.oid) });
            }
        }
        let (Some(key_id), Some(number)) = (key_id, number) else {
            return Err(CrlError::Unreadable { field: "extensions" });
        };
        Ok(Self { algorithm, issuer, this_update, next_update, revoked, key_id, number })
    }
}

fn read_time(fields: &mut Reader<'_>, field: &'static str) -> Result<Timestamp, CrlError> {
    lint::read_time(fields).map_err(|_not_a_time| CrlError::Unreadable { field })
}

/// §5.1.2.6: never empty where it is present.
fn read_entries(mut entries: Reader<'_>) -> Result<Vec<Revoked>, CrlError> {
    let mut revoked = Vec::new();
    loop {
        let mut entry = entries.enter(der::SEQUENCE).map_err(unreadable("entries"))?;
        let serial = entry.value(der::INTEGER).map_err(unreadable("serial"))?;
        let serial =
            Serial::from_bytes(serial).map_err(|_foreign| CrlError::Unreadable { field: "serial" })?;
        let at = read_time(&mut entry, "revocationDate")?;
        let code = if entry.is_empty() {
            RevocationCode::Unspecified
        } else {
            let mut extensions = entry.enter(der::SEQUENCE).map_err(unreadable("entry extensions"))?;
            let code = read_code(&mut extensions)?;
            extensions.finish().map_err(unreadable("entry extensions"))?;
            code
        };
        entry.finish().map_err(unreadable("entries"))?;
        revoked.push(Revoked { serial, at, code });
        if entries.is_empty() {
            return Ok(revoked);
        }
    }
}

/// §5.3.1, the only entry extension that we write.
fn read_code(extensions: &mut Reader<'_>) -> Result<RevocationCode, CrlError> {
    let extension = der::extension(extensions).map_err(unreadable("entry extensions"))?;
    if extension.oid != REASON_CODE || extension.critical {
        return Err(CrlError::Extension { oid: der::oid_text(extension.oid) });
    }
    let mut value = Reader::new(extension.value);
    let number = value.value(ENUMERATED).map_err(unreadable("reasonCode"))?;
    value.finish().map_err(unreadable("reasonCode"))?;
    let code = if let [number] = number { RevocationCode::of_number(*number) } else { None };
    code.ok_or(CrlError::Unreadable { field: "reasonCode" })
}

/// §5.2.1: by key identifier alone.
fn read_key_id(value: &[u8]) -> Result<&[u8], CrlError> {
    let read = || {
        let mut outer = Reader::new(value);
        let mut inner = outer.enter(der::SEQUENCE)?;
        outer.finish()?;
        let key_id = inner.value(KEY_ID)?;
        inner.finish()?;
        Ok(key_id)
    };
    read().map_err(unreadable("authority key identifier"))
}

/// §5.2.3: not negative, and ours fit 63 bits.
fn read_number(value: &[u8]) -> Result<u64, CrlError> {
    let mut outer = Reader::new(value);
    let content = outer.value(der::INTEGER).map_err(unreadable("number"))?;
    outer.finish().map_err(unreadable("number"))?;
    let minimal = matches!(content, [0..=0x7f] | [1..=0x7f, ..] | [0, 0x80..=0xff, ..]);
    if !minimal || content.len() > 8 {
        return Err(CrlError::Unreadable { field: "number" });
    }
    Ok(content.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
}

fn unreadable(field: &'static str) -> impl Fn(DerError) -> CrlError {
    move |_error| CrlError::Unreadable { field }
}

/// Why bytes are not a list that we make or believe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Larger than [`MAX_CRL_DER_BYTES`], or more entries than [`MAX_CRL_ENTRIES`].
    #[error("the list is too large ({bytes}); the limits are 524288 bytes and 9000 entries")]
    TooLarge {
        /// Bytes or entries found.
        bytes: usize,
    },
    /// Not a list of version 2 in DER, with all that RFC 5280 §5 requires.
    #[error("not a certificate revocation list as RFC 5280 §5 has it: {field}")]
    Unreadable {
        /// What could not be read.
        field: &'static str,
    },
    /// An extension that is critical, doubled or unknown.
    #[error("extension {oid} is critical, doubled or unknown")]
    Extension {
        /// Its OID in dots.
        oid: String,
    },
    /// A field is not what was asked for: a fault of ours.
    #[error("{field} is not as it should be")]
    Differs {
        /// Which.
        field: &'static str,
    },
    /// One certificate is listed twice.
    #[error("a certificate is listed twice")]
    DoubledEntry,
    /// None of the issuers known is this list's.
    #[error("no issuer under the bundle's roots has its name and key identifier")]
    UnknownIssuer,
    /// The signature is not its issuer's.
    #[error("its issuer did not sign it")]
    Signature,
}

#[cfg(test)]
mod tests;
