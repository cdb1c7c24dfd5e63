//! A certificate request for an issuer of ours (PKCS#10), for a CA that is not Rhizome: it shows that we have the key, and
//! says what the certificate has to be.
//!
//! Laws: it asks for what `prepare_intermediate` would make: the same subject, a CA with path length 0, keyCertSign and
//! cRLSign, the trust domain's SPIFFE ID. Its bytes cannot be taken for a certificate's: a name stands where a
//! TBSCertificate has an algorithm. What comes back is judged by what it is, not by what was asked for
//! (`rhizome_core::adoption`). Not here: requests of workloads (`request.rs`), which name nothing.
//! Sources: RFC 2986 §4, RFC 2985 §5.4.2, RFC 5280 §4.2.1.

use rhizome_id::{AuthorityId, SpiffeId, TrustDomain};

use crate::der;
use crate::key::{PublicKey, SigningAlgorithm};
use crate::pem_text;
use crate::profile::{self, AuthoritySubject, PrepareError};
use crate::signature::Signature;
use crate::tbs::{SealError, ToBeSigned, check_shape};

/// pkcs-9-at-extensionRequest.
const EXTENSION_REQUEST: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
/// uniformResourceIdentifier of a GeneralName.
const URI: u8 = 0x86;
/// keyCertSign and cRLSign, with the number of unused bits before them.
const SIGNS_CERTIFICATES_AND_LISTS: &[u8] = &[1, 0b0000_0110];

/// A request that waits for its signature.
#[derive(Debug)]
pub struct AuthorityRequest {
    info: Vec<u8>,
    key: PublicKey,
    algorithm: SigningAlgorithm,
}

impl AuthorityRequest {
    /// Prepares a request for the issuer `generation` of `trust_domain` with this key.
    ///
    /// # Errors
    /// [`PrepareError::AlgorithmMismatch`] when the algorithm does not belong to the key.
    pub fn prepare(
        trust_domain: &TrustDomain,
        generation: &AuthorityId,
        key: &PublicKey,
        algorithm: SigningAlgorithm,
    ) -> Result<Self, PrepareError> {
        profile::check_key(key, algorithm)?;
        let subject = AuthoritySubject::new(trust_domain, "issuer", generation).der();
        let name = SpiffeId::of_trust_domain(trust_domain);
        let constraints =
            [der::encode(der::BOOLEAN, &[&[0xff]]), der::encode(der::INTEGER, &[&[0]])].concat();
        let extensions = [
            extension(BASIC_CONSTRAINTS, true, &der::encode(der::SEQUENCE, &[&constraints])),
            extension(KEY_USAGE, true, &der::encode(der::BIT_STRING, &[SIGNS_CERTIFICATES_AND_LISTS])),
            extension(
                SUBJECT_ALT_NAME,
                false,
                &der::encode(der::SEQUENCE, &[&der::encode(URI, &[name.as_str().as_bytes()])]),
            ),
        ];
        let wanted = der::encode(der::SET, &[&der::encode(der::SEQUENCE, &[&extensions.concat()])]);
        let attribute = der::encode(der::SEQUENCE, &[&der::encode(der::OID, &[EXTENSION_REQUEST]), &wanted]);
        let info = der::encode(
            der::SEQUENCE,
            &[
                &der::encode(der::INTEGER, &[&[0]]),
                &subject,
                key.spki_der(),
                &der::encode(der::CONTEXT_0, &[&attribute]),
            ],
        );
        Ok(Self { info, key: key.clone(), algorithm })
    }

    /// What to sign, with what: with the issuer's own key.
    pub fn to_be_signed(&self) -> ToBeSigned<'_> {
        ToBeSigned::linted(&self.info, self.algorithm)
    }

    /// Puts the request together, in PEM with one newline at its end. The signature is verified always.
    ///
    /// # Errors
    /// [`SealError`] when the signature is no `ECDSA-Sig-Value` in DER, or does not verify.
    #[expect(clippy::needless_pass_by_value, reason = "a signature is used up with what it signed")]
    pub fn seal(self, signature: Signature) -> Result<String, SealError> {
        check_shape(signature.as_bytes(), self.algorithm)?;
        self.key.verify(&self.info, &signature, self.algorithm).map_err(SealError::Signature)?;
        let bits = der::encode(der::BIT_STRING, &[&[0], signature.as_bytes()]);
        let whole = der::encode(der::SEQUENCE, &[&self.info, self.algorithm.identifier(), &bits]);
        Ok(pem_text::encode(pem_text::CERTIFICATE_REQUEST, &whole))
    }
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let oid = der::encode(der::OID, &[oid]);
    let value = der::encode(der::OCTET_STRING, &[value]);
    if critical {
        der::encode(der::SEQUENCE, &[&oid, &der::encode(der::BOOLEAN, &[&[0xff]]), &value])
    } else {
        der::encode(der::SEQUENCE, &[&oid, &value])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csr::{CsrError, VerifiedCsr};
    use crate::key::KeyAlgorithm;
    use crate::testing::{TestKey, domain};

    fn sealed(key: &TestKey, by: &TestKey) -> Result<String, SealError> {
        let id = "issuer-1".parse().unwrap();
        let request = AuthorityRequest::prepare(&domain(), &id, &key.public, key.algorithm).unwrap();
        let signature = by.sign(request.to_be_signed().as_bytes());
        request.seal(Signature::external(signature))
    }

    #[test]
    fn it_is_a_request_for_a_ca_which_our_own_door_refuses_for_exactly_that() {
        for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384] {
            let key = TestKey::new(algorithm);
            let text = sealed(&key, &key).unwrap();
            assert_eq!(VerifiedCsr::parse_pem(&text), Err(CsrError::RequestsCa), "{text}");
        }
    }

    #[test]
    fn a_signature_by_another_key_makes_no_request() {
        let (key, other) = (TestKey::p256(), TestKey::p256());
        assert!(matches!(sealed(&key, &other), Err(SealError::Signature(_))));
    }

    #[test]
    fn an_algorithm_of_another_key_is_refused() {
        let (id, key) = ("issuer-1".parse().unwrap(), TestKey::p256());
        let refused =
            AuthorityRequest::prepare(&domain(), &id, &key.public, SigningAlgorithm::EcdsaP384Sha384);
        assert!(matches!(refused, Err(PrepareError::AlgorithmMismatch { .. })));
    }
}
