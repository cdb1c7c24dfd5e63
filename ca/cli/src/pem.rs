//! PEM, for what is printed.
//!
//! Laws: 64 characters a line, line feeds, one newline at the end. Not here: reading PEM requests (`rhizome_x509`),
//! identity directories (`rhizome_tls`). Sources: RFC 7468 §2, §5 and §10.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Characters of base64 in a line (RFC 7468 §2).
const LINE: usize = 64;

/// Label of certificates.
pub(crate) const CERTIFICATE: &str = "CERTIFICATE";

/// Label of certificate revocation lists (RFC 7468 §6).
pub(crate) const CRL: &str = "X509 CRL";

/// Label of private keys in PKCS #8.
pub(crate) const PRIVATE_KEY: &str = "PRIVATE KEY";

/// One block.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    let newlines = encoded.len().div_ceil(LINE);
    let frame = "-----BEGIN -----\n-----END -----\n".len().saturating_add(label.len().saturating_mul(2));
    // Room for all of it at once: a string that grows leaves unwiped copies behind.
    let room = encoded.len().saturating_add(newlines).saturating_add(frame);
    let mut text = Zeroizing::new(String::with_capacity(room));
    let mut push = |parts: &[&str]| parts.iter().for_each(|part| text.push_str(part));
    push(&["-----BEGIN ", label, "-----\n"]);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(LINE).unwrap_or((rest, ""));
        push(&[line, "\n"]);
        rest = after;
    }
    push(&["-----END ", label, "-----\n"]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_lines_of_64_characters_and_one_newline_at_the_end() {
        for bytes in [0, 1, 47, 48, 49, 200] {
            let text = encode(CERTIFICATE, &vec![0xff; bytes]);
            let lines: Vec<&str> = text.lines().collect();
            let (body, end) = lines[1..].split_at(lines.len() - 2);
            assert_eq!((lines[0], end), ("-----BEGIN CERTIFICATE-----", &["-----END CERTIFICATE-----"][..]));
            assert!(body.iter().rev().skip(1).all(|line| line.len() == 64), "{bytes}");
            assert!(body.iter().all(|line| !line.is_empty()), "{bytes}");
            assert_eq!(STANDARD.decode(body.concat()).unwrap().len(), bytes);
            assert!(text.ends_with("-----\n") && !text.ends_with("\n\n"));
            assert_eq!(text.len(), text.capacity(), "nothing was reallocated: {bytes}");
        }
    }
}
