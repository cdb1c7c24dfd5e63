//! Certificates with their keys, as each end presents them.
//!
//! Laws: a chain is never empty and its leaf is for the key beside it; key bytes are zeroised on drop and cannot be
//! printed, compared or cloned. Not here: the files they are kept in (`identity_dir`), asking for them.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::error::IdentityError;

/// What a client presents: a certificate chain and its private key.
///
/// It cannot be printed, compared or copied:
///
/// ```compile_fail,E0277
/// fn show(identity: &rhizome_tls::ClientIdentity) -> String {
///     format!("{identity:?}")
/// }
/// ```
///
/// ```compile_fail,E0599
/// fn copy(identity: &rhizome_tls::ClientIdentity) -> rhizome_tls::ClientIdentity {
///     identity.clone()
/// }
/// ```
pub struct ClientIdentity {
    chain_der: Vec<Vec<u8>>,
    key_pkcs8_der: Zeroizing<Vec<u8>>,
}

impl ClientIdentity {
    /// From a chain in DER, leaf first and without the root, and the leaf's private key in PKCS#8 DER.
    ///
    /// # Errors
    /// [`IdentityError`] when the chain is empty, the key cannot be used, or it is not the leaf's key.
    pub fn new(chain_der: Vec<Vec<u8>>, key_pkcs8_der: Zeroizing<Vec<u8>>) -> Result<Self, IdentityError> {
        certified_key(&chain_der, &key_pkcs8_der)?;
        Ok(Self { chain_der, key_pkcs8_der })
    }

    /// The chain in DER, leaf first.
    pub fn chain_der(&self) -> &[Vec<u8>] {
        &self.chain_der
    }

    /// The leaf in DER.
    pub fn leaf_der(&self) -> &[u8] {
        self.chain_der.first().map(Vec::as_slice).unwrap_or_default()
    }

    /// The private key in PKCS#8 DER. Whoever copies it must zeroise the copy.
    pub fn key_pkcs8_der(&self) -> &[u8] {
        &self.key_pkcs8_der
    }

    pub(crate) fn certified(&self) -> Result<CertifiedKey, IdentityError> {
        certified_key(&self.chain_der, &self.key_pkcs8_der)
    }
}

/// What a server presents; can be changed while it serves, and the next handshake uses the new one.
pub struct ServingIdentity {
    current: ArcSwap<CertifiedKey>,
}

impl ServingIdentity {
    /// From a chain in DER, leaf first and without the root, and the leaf's private key in PKCS#8 DER.
    ///
    /// # Errors
    /// [`IdentityError`] when the chain is empty, the key cannot be used, or it is not the leaf's key.
    pub fn new(chain_der: &[Vec<u8>], key_pkcs8_der: &[u8]) -> Result<Self, IdentityError> {
        Ok(Self { current: ArcSwap::from_pointee(certified_key(chain_der, key_pkcs8_der)?) })
    }

    /// Presents another certificate from the next handshake on; connections that exist go on unchanged.
    ///
    /// # Errors
    /// As [`ServingIdentity::new`]; the identity served so far stays.
    pub fn set(&self, chain_der: &[Vec<u8>], key_pkcs8_der: &[u8]) -> Result<(), IdentityError> {
        self.current.store(Arc::new(certified_key(chain_der, key_pkcs8_der)?));
        Ok(())
    }

    pub(crate) fn of(certified: CertifiedKey) -> Self {
        Self { current: ArcSwap::from_pointee(certified) }
    }

    pub(crate) fn replace(&self, certified: CertifiedKey) {
        self.current.store(Arc::new(certified));
    }

    /// The leaf presented now, in DER.
    pub fn leaf_der(&self) -> Vec<u8> {
        let current = self.current.load();
        current.cert.first().map(|leaf| leaf.to_vec()).unwrap_or_default()
    }
}

impl ResolvesServerCert for ServingIdentity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl fmt::Debug for ServingIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { current } = self;
        f.debug_struct("ServingIdentity")
            .field("certificates", &current.load().cert.len())
            .finish_non_exhaustive()
    }
}

fn certified_key(chain_der: &[Vec<u8>], key_pkcs8_der: &[u8]) -> Result<CertifiedKey, IdentityError> {
    // Borrowed: no copy of the key is left behind unwiped by us.
    let borrowed = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8_der));
    certified_with(chain_der.iter().cloned().map(CertificateDer::from).collect(), &borrowed)
}

/// A chain, leaf first, joined to the leaf's key.
pub(crate) fn certified_with(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Result<CertifiedKey, IdentityError> {
    if chain.is_empty() {
        return Err(IdentityError::EmptyChain);
    }
    let key = rustls::crypto::ring::sign::any_supported_type(key)
        .map_err(|_says_nothing_useful| IdentityError::Key)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(IdentityError::KeyMismatch),
        Err(other) => Err(IdentityError::Certificate { cause: other.to_string() }),
    }
}
