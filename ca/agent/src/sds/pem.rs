//! PEM as Envoy reads it: 64 columns, line feeds. Source: RFC 7468 §2.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

pub(crate) const CERTIFICATE: &str = "CERTIFICATE";
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";
pub(crate) const CRL: &str = "X509 CRL";
const COLUMNS: usize = 64;

/// Appends one block to `out`. What is in between is wiped: it may be a private key.
pub(crate) fn append(out: &mut Vec<u8>, label: &str, der: &[u8]) {
    let text = Zeroizing::new(STANDARD.encode(der));
    out.extend_from_slice(format!("-----BEGIN {label}-----\n").as_bytes());
    for line in text.as_bytes().chunks(COLUMNS) {
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.extend_from_slice(format!("-----END {label}-----\n").as_bytes());
}

/// The first block of that kind in a text, in DER.
pub(crate) fn first(text: &str, label: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(&format!("-----BEGIN {label}-----"))?;
    let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_lines_of_64_columns_and_one_newline_at_its_end() {
        let mut out = b"before\n".to_vec();
        append(&mut out, CERTIFICATE, &[0; 49]);
        let text = String::from_utf8(out).unwrap();
        let expected = format!(
            "before\n-----BEGIN CERTIFICATE-----\n{}\nAA==\n-----END CERTIFICATE-----\n",
            "A".repeat(64)
        );
        assert_eq!(text, expected);
        assert_eq!(first(&text, CERTIFICATE), Some(vec![0; 49]));
        assert_eq!((first(&text, CRL), first("-----BEGIN X509 CRL-----!", CRL)), (None, None));
    }
}
