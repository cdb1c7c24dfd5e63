//! Signatures on their way from a key ring to a certificate.
//!
//! Laws: where a signature was made is part of it; one from outside this process is verified before it is used.

use std::fmt;

/// An ECDSA signature, DER of `ECDSA-Sig-Value` (RFC 3279 §2.2.3), and where it was made.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature {
    bytes: Vec<u8>,
    provenance: Provenance,
}

impl Signature {
    /// Made by a key in this process, which was proved against its public key when it was loaded.
    pub const fn in_process(bytes: Vec<u8>) -> Self {
        Self { bytes, provenance: Provenance::InProcess }
    }

    /// Made by another process or device (PKCS#11, a cloud key service).
    pub const fn external(bytes: Vec<u8>) -> Self {
        Self { bytes, provenance: Provenance::External }
    }

    /// DER of `ECDSA-Sig-Value`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where it was made.
    pub const fn provenance(&self) -> Provenance {
        self.provenance
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:?}, {} bytes)", self.provenance, self.bytes.len())
    }
}

/// Where a signature was made: it decides how often [`crate::Linted::seal`] verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// By a proved key in this process.
    InProcess,
    /// Anywhere else.
    External,
}
