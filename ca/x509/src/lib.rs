//! CSR in, certificate out: the only crate that names rcgen, x509-parser, webpki and pem.
//!
//! Laws: a request contributes a public key and nothing else ([`VerifiedCsr`]); the bytes that are linted are the bytes
//! that are signed ([`Linted`] → [`ToBeSigned`]); a signature from outside this process is verified before the
//! certificate exists ([`Linted::seal`]); every parser refuses what it does not understand and what is left over.
//! Not here: who may have which certificate (`rhizome-core`), private keys of authorities (`rhizome-keys`), what is
//! revoked and when (`rhizome-core`).
//! Sources: RFC 5280, RFC 2986, SPIFFE X509-SVID, SPIFFE Trust Domain and Bundle.
//!
//! The way of a leaf certificate, DER in, DER out:
//!
//! ```text
//! VerifiedCsr::parse ─→ PublicKey ─→ prepare_leaf ─→ Linted ─→ to_be_signed ─→ (a key ring) ─→ seal ─→ Certificate
//! ```

mod authority_request;
mod bundle;
mod certificate;
mod crl;
mod csr;
mod der;
mod foreign;
mod inspect;
mod issuer;
mod key;
mod lint;
mod names;
mod pem_text;
mod profile;
mod request;
mod signature;
mod tbs;
#[cfg(test)]
mod testing;
mod verify;

pub use authority_request::AuthorityRequest;
pub use bundle::{Bundle, BundleError, JwtKey, JwtKeyError, SpiffeDocument};
pub use certificate::{CaCertificate, CaCertificateError, Certificate, MAX_CERTIFICATE_DER_BYTES};
pub use crl::{
    Crl, CrlError, CrlSpec, LintedCrl, MAX_CRL_DER_BYTES, MAX_CRL_ENTRIES, RevocationCode, Revoked,
    issuers_under, prepare_crl,
};
pub use csr::{CsrError, MAX_CSR_DER_BYTES, PemError, VerifiedCsr};
pub use foreign::{ForeignError, MAX_PEM_BYTES, ca_certificates_from_pem, ca_key_from_pem, check_signs};
pub use inspect::{InspectError, LeafFacts, inspect, split_certificates};
pub use issuer::{Issuer, IssuerError, MAX_CHAIN_ABOVE_LEAF};
pub use key::{KeyAlgorithm, KeyError, PublicKey, SignatureError, SigningAlgorithm};
pub use lint::{CertificateField, LintError};
pub use names::{DnsName, DnsNameError};
pub use profile::{
    CrossSpec, IntermediateRole, IntermediateSpec, LeafSpec, PrepareError, RootSpec, ServerSpec,
    prepare_cross, prepare_intermediate, prepare_leaf, prepare_root, prepare_server,
};
pub use request::{RequestError, RequestKey, create_csr};
pub use signature::{Provenance, Signature};
pub use tbs::{Linted, SealError, ToBeSigned, probe, probe_for};
pub use verify::{MAX_PEER_CHAIN, PeerError, PeerUsage, TrustAnchors, VerifiedPeer, verify_peer};
