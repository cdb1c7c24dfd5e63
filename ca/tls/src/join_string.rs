//! The one-paste join string: everything that a machine needs to join, and to know whom it joins.
//!
//! Laws: `rhz1.` and base64url without padding of a JSON object, at most [`MAX_BYTES`]; at least one address, one
//! pinned root and a token; decoding checks every limit before it believes anything. The token is a secret: `Debug`
//! does not show it. Not here: the use of the pins (`join.rs`), the token's life (`rhizome_core::tokens`).
//! Sources: RFC 4648 §5; kubeadm's discovery token and `--discovery-token-ca-cert-hash` for the idea of the pin.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_id::{ClusterName, Digest, TrustDomain};
use serde::{Deserialize, Serialize};

/// Longest join string, in bytes: 8 addresses, 8 pins and a token take less than 4 KiB.
pub const MAX_BYTES: usize = 8 * 1024;

/// Most addresses in a join string: one for each replica, and some.
pub const MAX_ADDRESSES: usize = 8;

/// Most pinned roots in a join string: a rotation has two.
pub const MAX_ROOTS: usize = 8;

/// Most issuers of the servers in a cluster's join string: two for each of eight replicas.
pub const MAX_ISSUERS: usize = 16;

/// Longest address, in bytes: a DNS name of 253, a colon and a port of 5 digits.
const MAX_ADDRESS_BYTES: usize = 259;

/// Longest token, in bytes; the protocol's limit.
const MAX_TOKEN_BYTES: usize = 256;

const PREFIX: &str = "rhz1.";

/// Everything that a machine needs to join. Valid by construction.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinString {
    addresses: Vec<String>,
    trust_domain: TrustDomain,
    root_sha256: Vec<Digest>,
    token: String,
    /// For the Rhizome of this cluster. Absent: for a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterName>,
    /// With `cluster`: SHA-256 of the keys of the issuers that the servers have their certificates from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    issuer_sha256: Vec<Digest>,
}

/// Why a text is not a join string, or parts do not make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinStringError {
    /// More than [`MAX_BYTES`].
    #[error("the join string has {length} bytes; the limit is 8192")]
    TooLong {
        /// Bytes found.
        length: usize,
    },
    /// It does not start with `rhz1.`.
    #[error("this is not a join string: those start with `rhz1.`; paste the whole of it")]
    Prefix,
    /// What follows the prefix is not base64url without padding.
    #[error("the join string is damaged; paste the whole of it, without line breaks")]
    Encoding,
    /// The content is not the JSON object that it should be.
    #[error("the join string is damaged: {0}")]
    Content(String),
    /// No address, or too many.
    #[error("a join string has 1 to 8 addresses; this has {0}")]
    Addresses(usize),
    /// An address is not `host:port`.
    #[error("`{0}` in the join string is not an address; those are written host:port")]
    Address(String),
    /// No pinned root, or too many.
    #[error("a join string pins 1 to 8 roots; this pins {0}")]
    Roots(usize),
    /// It is for the Rhizome of a cluster, and a node read it.
    #[error(
        "this join string is for the Rhizome of cluster {0}, not for a node, and no server of this release can use it; \
         `rhizome token create` makes one for a node"
    )]
    ForCluster(ClusterName),
    /// It is for a node, and the Rhizome of a cluster read it.
    #[error("this join string is for a node; `rhizome cluster add` makes one for the Rhizome of a cluster")]
    ForNode,
    /// No issuer of the servers, or too many.
    #[error("a cluster's join string names 1 to 16 issuers of the servers; this names {0}")]
    Issuers(usize),
    /// The token is empty, too long, or has bytes outside printable ASCII.
    #[error("the token in the join string is not valid")]
    Token,
}

impl JoinString {
    /// Puts a join string together.
    ///
    /// # Errors
    /// [`JoinStringError`] when a part is missing or over its limit.
    pub fn new(
        addresses: Vec<String>,
        trust_domain: TrustDomain,
        root_sha256: Vec<Digest>,
        token: String,
    ) -> Result<Self, JoinStringError> {
        let join =
            Self { addresses, trust_domain, root_sha256, token, cluster: None, issuer_sha256: Vec::new() };
        join.validate()?;
        Ok(join)
    }

    /// The same for the Rhizome of `cluster`, which believes only servers with certificates of these issuers: nodes refuse
    /// it.
    #[must_use]
    pub fn for_cluster(self, cluster: ClusterName, issuer_sha256: Vec<Digest>) -> Self {
        Self { cluster: Some(cluster), issuer_sha256, ..self }
    }

    /// SHA-256 of the keys of the issuers that the servers have their certificates from; for the Rhizome of a cluster.
    pub fn issuer_sha256(&self) -> &[Digest] {
        &self.issuer_sha256
    }

    /// Reads a node's join string; white space around it is ignored.
    ///
    /// # Errors
    /// [`JoinStringError`], which never repeats the token.
    pub fn decode(text: &str) -> Result<Self, JoinStringError> {
        let join = Self::read(text)?;
        match &join.cluster {
            Some(cluster) => Err(JoinStringError::ForCluster(cluster.clone())),
            None => Ok(join),
        }
    }

    /// Reads the join string of a cluster's Rhizome, and says which cluster.
    ///
    /// # Errors
    /// [`JoinStringError`], which never repeats the token.
    pub fn decode_for_cluster(text: &str) -> Result<(Self, ClusterName), JoinStringError> {
        let join = Self::read(text)?;
        let cluster = join.cluster.clone().ok_or(JoinStringError::ForNode)?;
        if !(1..=MAX_ISSUERS).contains(&join.issuer_sha256.len()) {
            return Err(JoinStringError::Issuers(join.issuer_sha256.len()));
        }
        Ok((join, cluster))
    }

    fn read(text: &str) -> Result<Self, JoinStringError> {
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return Err(JoinStringError::TooLong { length: text.len() });
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(JoinStringError::Prefix)?;
        let json = URL_SAFE_NO_PAD.decode(encoded).map_err(|_not_base64| JoinStringError::Encoding)?;
        let join: Self =
            serde_json::from_slice(&json).map_err(|error| JoinStringError::Content(error_place(&error)))?;
        join.validate()?;
        Ok(join)
    }

    /// The text to paste.
    ///
    /// # Errors
    /// [`JoinStringError::TooLong`] when it would not be readable again.
    pub fn encode(&self) -> Result<String, JoinStringError> {
        let json = serde_json::to_vec(self).map_err(|error| JoinStringError::Content(error_place(&error)))?;
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json));
        if text.len() > MAX_BYTES {
            return Err(JoinStringError::TooLong { length: text.len() });
        }
        Ok(text)
    }

    /// Where the server can be reached, `host:port` each, in order of preference.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The trust domain to join.
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// SHA-256 fingerprints of the roots (of their DER) that may be believed.
    pub fn root_sha256(&self) -> &[Digest] {
        &self.root_sha256
    }

    /// The secret of the join token.
    pub fn token(&self) -> &str {
        &self.token
    }

    fn validate(&self) -> Result<(), JoinStringError> {
        if !(1..=MAX_ADDRESSES).contains(&self.addresses.len()) {
            return Err(JoinStringError::Addresses(self.addresses.len()));
        }
        if let Some(bad) = self.addresses.iter().find(|address| !is_address(address)) {
            return Err(JoinStringError::Address(bad.chars().take(80).collect()));
        }
        if !(1..=MAX_ROOTS).contains(&self.root_sha256.len()) {
            return Err(JoinStringError::Roots(self.root_sha256.len()));
        }
        let printable = self.token.bytes().all(|byte| byte.is_ascii_graphic());
        if self.token.is_empty() || self.token.len() > MAX_TOKEN_BYTES || !printable {
            return Err(JoinStringError::Token);
        }
        Ok(())
    }
}

/// Where in the JSON the trouble is, without repeating any of the content.
fn error_place(error: &serde_json::Error) -> String {
    format!("{:?} fault at column {}", error.classify(), error.column())
}

/// Whether `text` is `host:port`: a DNS name, an IPv4 address, or an IPv6 address in brackets, and a port from 1.
pub fn is_address(text: &str) -> bool {
    if text.len() > MAX_ADDRESS_BYTES {
        return false;
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let port_is_valid =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let host_is_valid = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    port_is_valid && host_is_valid
}

impl fmt::Debug for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addresses, trust_domain, root_sha256, token: _secret, cluster, issuer_sha256 } = self;
        f.debug_struct("JoinString")
            .field("addresses", addresses)
            .field("trust_domain", trust_domain)
            .field("root_sha256", root_sha256)
            .field("token", &"…")
            .field("cluster", cluster)
            .field("issuer_sha256", issuer_sha256)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> JoinString {
        JoinString::new(
            vec!["ca.example.org:8443".to_owned(), "[2001:db8::1]:8443".to_owned()],
            "example.org".parse().unwrap(),
            vec![Digest::from_bytes([7; 32])],
            "c2VjcmV0".to_owned(),
        )
        .unwrap()
    }

    fn encoded(json: &str) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    #[test]
    fn a_join_string_of_a_cluster_is_for_its_rhizome_alone_and_one_of_a_node_for_a_node() {
        let issuers = vec![Digest::from_bytes([3; 32])];
        let text = sample().for_cluster("east".parse().unwrap(), issuers.clone()).encode().unwrap();
        assert_eq!(JoinString::decode(&text), Err(JoinStringError::ForCluster("east".parse().unwrap())));
        let (join, cluster) = JoinString::decode_for_cluster(&text).unwrap();
        assert_eq!((join.token(), cluster.as_str()), (sample().token(), "east"));
        assert_eq!(join.issuer_sha256(), issuers);
        let none = sample().for_cluster("east".parse().unwrap(), Vec::new()).encode().unwrap();
        assert_eq!(JoinString::decode_for_cluster(&none), Err(JoinStringError::Issuers(0)));
        let node = sample().encode().unwrap();
        assert_eq!(JoinString::decode_for_cluster(&node), Err(JoinStringError::ForNode));
    }

    #[test]
    fn a_join_string_is_rhz1_and_base64url_of_json() {
        let text = sample().encode().unwrap();
        let json = URL_SAFE_NO_PAD.decode(text.strip_prefix("rhz1.").unwrap()).unwrap();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            format!(
                r#"{{"addresses":["ca.example.org:8443","[2001:db8::1]:8443"],"trust_domain":"example.org","root_sha256":["{}"],"token":"c2VjcmV0"}}"#,
                "07".repeat(32)
            )
        );
        assert_eq!(JoinString::decode(&format!(" {text}\n")).unwrap(), sample());
    }

    #[test]
    fn the_secret_is_not_printed_by_accident() {
        assert!(!format!("{:?}", sample()).contains("c2VjcmV0"));
        let damaged = encoded(r#"{"addresses":["a:1"],"trust_domain":"TD","token":"c2VjcmV0"}"#);
        assert!(!JoinString::decode(&damaged).unwrap_err().to_string().contains("c2VjcmV0"));
    }

    #[test]
    fn limits_hold_when_decoding_and_when_putting_together() {
        let long = format!("{PREFIX}{}", "A".repeat(MAX_BYTES));
        assert_eq!(JoinString::decode(&long), Err(JoinStringError::TooLong { length: MAX_BYTES + 5 }));
        let with = |count: usize| {
            JoinString::new(
                vec!["a:1".to_owned(); count],
                "td".parse().unwrap(),
                vec![Digest::ZERO],
                "t".into(),
            )
        };
        assert!(with(MAX_ADDRESSES).is_ok());
        assert_eq!(with(MAX_ADDRESSES + 1), Err(JoinStringError::Addresses(9)));
        assert_eq!(with(0), Err(JoinStringError::Addresses(0)));
        let pins = |count: usize| {
            JoinString::new(vec!["a:1".into()], "td".parse().unwrap(), vec![Digest::ZERO; count], "t".into())
        };
        assert_eq!(pins(0), Err(JoinStringError::Roots(0)), "a join string without a pin proves nothing");
        assert_eq!(pins(9), Err(JoinStringError::Roots(9)));
        let longest = JoinString::new(
            vec![format!("{}:65535", "a".repeat(253)); 8],
            "d".repeat(255).parse().unwrap(),
            vec![Digest::ZERO; 8],
            "t".repeat(256),
        );
        assert!(longest.unwrap().encode().is_ok(), "whatever is valid can be encoded");
    }

    #[test]
    fn damaged_texts_are_refused_with_the_reason() {
        assert_eq!(JoinString::decode("rhz2.AAAA"), Err(JoinStringError::Prefix));
        assert_eq!(JoinString::decode("rhz1.A A"), Err(JoinStringError::Encoding));
        assert_eq!(JoinString::decode("rhz1.e30="), Err(JoinStringError::Encoding));
        assert!(matches!(JoinString::decode(&encoded("{}")), Err(JoinStringError::Content(_))));
        let text = sample().encode().unwrap();
        assert!(JoinString::decode(&text[..text.len() - 3]).is_err());
    }

    #[test]
    fn unknown_fields_are_refused() {
        let json = format!(
            r#"{{"addresses":["a:1"],"trust_domain":"td","root_sha256":["{}"],"token":"t","insecure":true}}"#,
            "00".repeat(32)
        );
        assert!(JoinString::decode(&encoded(&json)).is_err());
    }

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for good in ["a:1", "ca.example.org:65535", "10.0.0.1:8443", "[::1]:8443"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "a",
            ":1",
            "a:0",
            "a:65536",
            "a:+1",
            "https://a:1",
            "::1:1",
            "[a]:1",
            "a b:1",
            "a/b:1",
            "u@a:1",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(text in "(rhz1\\.)?[ -~]{0,200}") {
            drop(JoinString::decode(&text));
        }

        #[test]
        fn what_is_encoded_is_decoded(port in 1u16.., pin: [u8; 32], token in "[!-~]{1,256}") {
            let join = JoinString::new(
                vec![format!("h:{port}")], "td".parse().unwrap(), vec![Digest::from_bytes(pin)], token,
            ).unwrap();
            prop_assert_eq!(JoinString::decode(&join.encode().unwrap()).unwrap(), join);
        }
    }
}
