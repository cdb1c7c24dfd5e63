//! PEM as we write it, and the one strict way we read it.
//!
//! Laws: out: 64 columns, line feeds, exactly one newline after the last line. In: one block with the right label, no
//! headers, nothing around it but white space after its end. Sources: RFC 7468 §2 and §3.

use pem::{EncodeConfig, LineEnding, Pem};

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const CERTIFICATE_REQUEST: &str = "CERTIFICATE REQUEST";
pub(crate) const CRL: &str = "X509 CRL";

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// Why a text is not the one PEM block that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// The text does not start with the block.
    #[error("the text does not start with a PEM block of the right label")]
    Label,
    /// More text, or another block, follows.
    #[error("something follows the PEM block; send exactly one")]
    Surroundings,
    /// Headers, bad base64, or an end line that does not match.
    #[error("the PEM block has headers, is not base64, or does not end as it began")]
    Malformed,
}

/// Reads exactly one block whose label is one of `labels`.
pub(crate) fn decode_one(text: &str, labels: &[&str]) -> Result<Vec<u8>, PemError> {
    let text = text.trim_end();
    let label = labels
        .iter()
        .find(|label| {
            text.strip_prefix("-----BEGIN ")
                .and_then(|rest| rest.strip_prefix(**label))
                .is_some_and(|rest| rest.starts_with("-----"))
        })
        .ok_or(PemError::Label)?;
    let end = format!("-----END {label}-----");
    match text.find(&end) {
        None => return Err(PemError::Malformed),
        Some(at) if at.saturating_add(end.len()) != text.len() => return Err(PemError::Surroundings),
        Some(_) => {}
    }
    let block = pem::parse(text).map_err(|_malformed| PemError::Malformed)?;
    if block.tag() != *label || block.headers().iter().next().is_some() {
        return Err(PemError::Malformed);
    }
    Ok(block.into_contents())
}
