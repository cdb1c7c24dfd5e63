//! The one crypto provider: ring, handed to every configuration by hand.
//!
//! Laws: nothing here reads or installs rustls's process-wide default, so that no dependency can change the crypto.

use std::sync::{Arc, LazyLock};

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;

/// Newest first. TLS 1.2 stays for peers that are bound to it; rustls speaks only its AEAD, forward-secret suites.
pub(crate) static VERSIONS: &[&SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The protocol that both ends speak (RFC 9113 §3.3).
pub(crate) const ALPN_H2: &[u8] = b"h2";

static RING: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&RING)
}

/// The three methods by which a verifier, of servers or of clients, checks the handshake's signature: always, with
/// ring, whatever it thinks of the certificate. A macro, since rustls asks for them in two traits.
macro_rules! checks_handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::provider::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &rustls::pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let algorithms = &$crate::provider::provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::provider::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}
pub(crate) use checks_handshake_signatures;
