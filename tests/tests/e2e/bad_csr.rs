//! Certification requests that must be refused, and some that must not: bytes with the code they get.
//!
//! Sources: RFC 2986; the files were made by the openssl program (`ca/x509/testdata/make.sh`).

use bytes::Bytes;
use pem::{EncodeConfig, LineEnding, Pem};
use rhizome_proto::ca::v1::CertificateRequest;
use rhizome_proto::ca::v1::certificate_request::Csr;

use crate::bad_input::Case;
use crate::client::{new_csr, workload};
use crate::support::workspace;

/// A request that some program made.
fn file(name: &str) -> Vec<u8> {
    let path = workspace().join(format!("ca/x509/testdata/{name}.csr.der"));
    std::fs::read(&path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()))
}

pub(crate) fn armoured(label: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

fn pem_request(text: impl Into<String>) -> CertificateRequest {
    CertificateRequest { csr: Some(Csr::CsrPem(text.into())), ..workload(Bytes::new()) }
}

/// `info` of one request with algorithm and signature of another: all DER, but no proof of possession.
fn spliced() -> Vec<u8> {
    let (one, other) = (new_csr(), new_csr());
    let parts = |der: &[u8]| {
        let (header, _) = span(der);
        let (inner, length) = span(&der[header..]);
        let end = header + inner + length;
        (der[header..end].to_vec(), der[end..].to_vec())
    };
    let content = [parts(&one).0, parts(&other).1].concat();
    [&[0x30, 0x81, u8::try_from(content.len()).unwrap()], content.as_slice()].concat()
}

/// Bytes of header and content, where the content has fewer than 256.
fn span(der: &[u8]) -> (usize, usize) {
    if der[1] == 0x81 { (3, der[2].into()) } else { (2, der[1].into()) }
}

/// SEQUENCE in SEQUENCE in SEQUENCE.
fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(vec![5, 0], |inside, _| {
        let length = u16::try_from(inside.len()).unwrap().to_be_bytes();
        [&[0x30, 0x82, length[0], length[1]], inside.as_slice()].concat()
    })
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = der_cases();
    cases.extend(file_cases());
    cases.extend(pem_cases());
    cases
}

fn der_cases() -> Vec<Case> {
    let good = new_csr().to_vec();
    let with = |change: fn(&mut Vec<u8>)| {
        let mut der = new_csr().to_vec();
        change(&mut der);
        der
    };
    let padded = |bytes: usize| [good.clone(), vec![0; bytes - good.len()]].concat();
    let malformed = "csr_malformed";
    let mut all = vec![
        ("a good one", good.clone(), None),
        ("no bytes", Vec::new(), Some(malformed)),
        ("zeros", vec![0; 300], Some(malformed)),
        ("text", b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(), Some(malformed)),
        ("a certificate's outer shape", vec![0x30, 3, 0x30, 1, 0], Some(malformed)),
        ("indefinite length", [&[0x30, 0x80], &good[3..], &[0, 0]].concat(), Some(malformed)),
        ("a length of 2 GiB", vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff, 0x30], Some(malformed)),
        ("a length of 2^64", [&[0x30, 0x89, 1], [0; 8].as_slice()].concat(), Some(malformed)),
        (
            "a length in more bytes than it needs",
            [&[0x30, 0x82, 0, good[2]], &good[3..]].concat(),
            Some(malformed),
        ),
        ("4000 levels", nested(4_000), Some(malformed)),
        ("16 KiB of zeros behind", padded(16 * 1024), Some("csr_trailing_data")),
        ("16 KiB and a byte", padded(16 * 1024 + 1), Some("csr_too_large")),
        ("60 KB", vec![0x30; 60_000], Some("csr_too_large")),
        ("a byte too many", with(|der| der.push(0)), Some("csr_trailing_data")),
        ("two requests", [good.clone(), good.clone()].concat(), Some("csr_trailing_data")),
        (
            "the last bit of the signature",
            with(|der| *der.last_mut().unwrap() ^= 1),
            Some("csr_bad_signature"),
        ),
        ("another request's signature", spliced(), Some("csr_bad_signature")),
    ];
    for quarter in 1..4 {
        all.push(("a part of one", good[..good.len() * quarter / 4].to_vec(), Some(malformed)));
    }
    all.push(("all but a byte", good[..good.len() - 1].to_vec(), Some(malformed)));
    all.into_iter()
        .map(|(name, der, code)| Case::new(format!("DER: {name}"), workload(der.into()), code))
        .collect()
}

fn file_cases() -> Vec<Case> {
    let all = [
        ("rsa2048", None),
        ("rsa4096", None),
        ("p384", None),
        ("ed25519", None),
        // Names, usages and identifiers of somebody's choice: read and ignored.
        ("istio_agent", None),
        ("harmless", None),
        ("ca_true", Some("csr_requests_ca")),
        ("key_cert_sign", Some("csr_requests_ca")),
        ("crl_sign", Some("csr_requests_ca")),
        ("rsa1024", Some("csr_weak_key")),
        ("rsa4104", Some("csr_weak_key")),
        ("rsa2048_e3", Some("csr_weak_key")),
        ("p521", Some("csr_unsupported_key")),
        ("secp256k1", Some("csr_unsupported_key")),
        ("rsa2048_sha1", Some("csr_unsupported_signature")),
        ("challenge_password", Some("csr_unsupported_attribute")),
        ("must_staple", Some("csr_unsupported_extension")),
    ];
    all.into_iter()
        .map(|(name, code)| Case::new(format!("file {name}"), workload(file(name).into()), code))
        .collect()
}

fn pem_cases() -> Vec<Case> {
    let der = new_csr();
    let good = armoured("CERTIFICATE REQUEST", &der);
    let wrong = Some("csr_pem");
    let all = [
        ("a good one", good.clone(), None),
        ("the older label", armoured("NEW CERTIFICATE REQUEST", &der), None),
        ("white space at the end", format!("{good}\n \r\n"), None),
        ("no text", String::new(), wrong),
        ("two blocks", format!("{good}{good}"), wrong),
        ("a label for certificates", armoured("CERTIFICATE", &der), wrong),
        ("a label for keys", armoured("PRIVATE KEY", &der), wrong),
        ("text before", format!("hello\n{good}"), wrong),
        ("text after", format!("{good}hello\n"), wrong),
        ("white space before", format!(" {good}"), wrong),
        ("no end", good[..good.len() - 30].to_owned(), wrong),
        ("another end", good.replace("-----END CERTIFICATE REQUEST", "-----END CERTIFICATE"), wrong),
        ("a header", good.replacen("REQUEST-----\n", "REQUEST-----\nProc-Type: 4,ENCRYPTED\n\n", 1), wrong),
        ("letters outside base64", good.replacen("\nMI", "\n!!", 1), wrong),
        ("a NUL", good.replacen("\nMI", "\n\0MI", 1), wrong),
        ("nothing inside", armoured("CERTIFICATE REQUEST", b""), Some("csr_malformed")),
        ("garbage inside", armoured("CERTIFICATE REQUEST", b"garbage"), Some("csr_malformed")),
        (
            "a byte too many inside",
            armoured("CERTIFICATE REQUEST", &[&der[..], &[0]].concat()),
            Some("csr_trailing_data"),
        ),
        ("30 KB of line ends", format!("{good}{}", "\n".repeat(30_000)), Some("csr_too_large")),
    ];
    let mut cases: Vec<_> = all
        .into_iter()
        .map(|(name, text, code)| Case::new(format!("PEM: {name}"), pem_request(text), code))
        .collect();
    let nothing = CertificateRequest { csr: None, ..workload(Bytes::new()) };
    cases.push(Case::new("no request at all", nothing, "invalid_argument"));
    cases
}
