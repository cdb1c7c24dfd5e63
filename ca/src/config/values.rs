//! Readers of single values: text to a type that exists only valid, or a refusal with its remedy.
//!
//! Laws: a reader looks at one value and nothing else; numbers and booleans are written without quotes.
//! Not here: relations between fields (`schema`).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use rhizome_core::caller::Role;
use rhizome_core::federation::EndpointUrl;
use rhizome_id::{ReplicaName, TrustDomain, Ttl};
use rhizome_x509::{DnsName, SigningAlgorithm};

use super::faults::quoted;
use super::section::{Refusal, Scalar};

/// Bytes of a Unix socket's path, without the closing NUL (`sockaddr_un.sun_path` holds 108 on Linux).
const MAX_SOCKET_PATH: usize = 107;

/// Bytes of a path (Linux `PATH_MAX` is 4096 with the closing NUL).
const MAX_PATH: usize = 4095;

/// Bytes of the path of a document; a habit, not a limit of HTTP.
const MAX_URL_PATH: usize = 256;

/// Bytes of an environment variable's name; a habit, not a limit of the system.
const MAX_VARIABLE: usize = 128;

type Read<T> = Result<T, Refusal>;

/// A DNS name or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name.
    Dns(DnsName),
    /// An address, never a wildcard one.
    Ip(IpAddr),
}

/// Where others reach this server: a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: Host,
    /// The port, never 0.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => name.fmt(f),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Dns(name) => write!(f, "{name}:{}", self.port),
            Host::Ip(address) => SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

pub(super) fn trust_domain(value: Scalar<'_>) -> Read<TrustDomain> {
    let remedy = "write a lower-case name such as example.org, without spiffe://";
    value.text.parse().map_err(|error: rhizome_id::TrustDomainError| Refusal::new(error.to_string(), remedy))
}

pub(super) fn replica(value: Scalar<'_>) -> Read<ReplicaName> {
    let remedy = "write a short name such as r1";
    value.text.parse().map_err(|error: rhizome_id::NameError| Refusal::new(error.to_string(), remedy))
}

pub(super) fn ttl(value: Scalar<'_>) -> Read<Ttl> {
    let remedy = "write a whole number and a unit: 90s, 15m, 24h or 7d";
    let problem = || format!("{} is not a lifetime between 1s and 36500d", quoted(value.text));
    value.text.parse().map_err(|_error: rhizome_id::TtlError| Refusal::new(problem(), remedy))
}

pub(super) fn listen(value: Scalar<'_>) -> Read<SocketAddr> {
    let remedy = "write ADDRESS:PORT with a numeric address, such as 0.0.0.0:8443 or [::]:8443";
    let problem = || format!("{} is not an address with a port", quoted(value.text));
    value.text.parse().map_err(|_error: std::net::AddrParseError| Refusal::new(problem(), remedy))
}

pub(super) fn host(value: Scalar<'_>) -> Read<Host> {
    if let Ok(address) = value.text.parse::<IpAddr>() {
        if address.is_unspecified() {
            let problem = format!("{address} is a wildcard, nobody can verify it");
            return Err(Refusal::new(problem, "write the name or address that clients dial"));
        }
        return Ok(Host::Ip(address));
    }
    match DnsName::try_from(value.text.to_owned()) {
        Ok(name) => Ok(Host::Dns(name)),
        Err(error) => {
            let problem = format!("{} is neither a DNS name nor an IP address: {error}", quoted(value.text));
            Err(Refusal::new(problem, "write a lower-case name such as ca.example.org, or an address"))
        }
    }
}

pub(super) fn endpoint(value: Scalar<'_>) -> Read<Endpoint> {
    let remedy = "write HOST:PORT, such as ca.example.org:8443 or [2001:db8::1]:8443";
    let refuse = || Refusal::new(format!("{} is not a host with a port", quoted(value.text)), remedy);
    let (text, port) = value.text.rsplit_once(':').ok_or_else(refuse)?;
    let port = match port.parse() {
        Ok(port) if port > 0 && digits_only(value.text, port) => port,
        Ok(_) | Err(_) => return Err(refuse()),
    };
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if bare.is_none() && text.contains(':') {
        return Err(refuse());
    }
    let host = host(Scalar { text: bare.unwrap_or(text), plain: value.plain })?;
    Ok(Endpoint { host, port })
}

/// `+80` parses as a port; it is not how anyone writes one.
fn digits_only(text: &str, port: u16) -> bool {
    text.ends_with(&format!(":{port}"))
}

pub(super) fn path(value: Scalar<'_>) -> Read<PathBuf> {
    let remedy = "write an absolute path, such as /var/lib/rhizome; a relative one would depend on where rhizome starts";
    if !value.text.starts_with('/') {
        return Err(Refusal::new(format!("{} is not an absolute path", quoted(value.text)), remedy));
    }
    if value.text.len() > MAX_PATH || value.text.contains('\0') {
        return Err(Refusal::new("this cannot be the path of a file", remedy));
    }
    Ok(PathBuf::from(value.text))
}

/// The path of a document on a web server: plain, so that it means the same everywhere.
pub(super) fn url_path(value: Scalar<'_>) -> Read<String> {
    let remedy = "write a path such as /bundle, of letters, digits and - . _ ~ /";
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    if !value.text.starts_with('/') || value.text.len() > MAX_URL_PATH || !value.text.bytes().all(plain) {
        return Err(Refusal::new(format!("{} is not a path of an address", quoted(value.text)), remedy));
    }
    Ok(value.text.to_owned())
}

/// An issuer of OpenID Connect: `https://`, a host, perhaps a port and a path (OpenID Connect Discovery 1.0 §3).
pub(super) fn issuer(value: Scalar<'_>) -> Read<String> {
    let remedy =
        "write an address such as https://oidc.example.org, without query and without a slash at its end";
    let refuse = || Refusal::new(format!("{} is not an issuer's address", quoted(value.text)), remedy);
    let url: EndpointUrl = value.text.parse().map_err(|_cause| refuse())?;
    let path = issuer_path(value.text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    if !value.text.starts_with("https://")
        || value.text.ends_with('/')
        || url.target().contains('?')
        || !path.bytes().all(plain)
    {
        return Err(refuse());
    }
    Ok(value.text.to_owned())
}

/// The path of an issuer's address; empty when it has none.
pub(super) fn issuer_path(issuer: &str) -> &str {
    let rest = issuer.strip_prefix("https://").unwrap_or_default();
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or_default()
}

pub(super) fn socket_path(value: Scalar<'_>) -> Read<PathBuf> {
    if value.text.len() > MAX_SOCKET_PATH {
        let problem = format!("{} bytes; a socket's path has at most {MAX_SOCKET_PATH}", value.text.len());
        return Err(Refusal::new(problem, "choose a shorter path, such as /run/rhizome/admin.sock"));
    }
    path(value)
}

/// The name of an environment variable. A refused one is not quoted: it may be the secret itself.
pub(super) fn variable(value: Scalar<'_>) -> Read<String> {
    let good =
        |at: usize, byte: u8| byte == b'_' || byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
    let named = !value.text.is_empty() && value.text.bytes().enumerate().all(|(at, byte)| good(at, byte));
    if named && value.text.len() <= MAX_VARIABLE {
        return Ok(value.text.to_owned());
    }
    Err(Refusal::new(
        "not the name of an environment variable (not shown: it may be the key itself)",
        "write the variable's name, such as RHIZOME_SEALING_KEY, and never the key",
    ))
}

/// A token's label: 32 bytes of the token are for it (PKCS #11 v3.1 §3.3).
pub(super) fn token_label(value: Scalar<'_>) -> Read<String> {
    let printable = !value.text.is_empty() && value.text.chars().all(|c| !c.is_control());
    if printable && value.text.len() <= 32 && value.text.trim() == value.text {
        return Ok(value.text.to_owned());
    }
    let remedy =
        "write the label that `pkcs11-tool --list-token-slots` or `softhsm2-util --show-slots` prints";
    Err(Refusal::new(format!("{} is not the label of a token", quoted(value.text)), remedy))
}

pub(super) fn boolean(value: Scalar<'_>) -> Read<bool> {
    match (value.text, value.plain) {
        ("true", true) => Ok(true),
        ("false", true) => Ok(false),
        _ => Err(Refusal::new(format!("{} is not true or false", quoted(value.text)), "write true or false")),
    }
}

/// A whole number within `range`, without sign or quotes.
pub(super) fn number<N>(range: RangeInclusive<N>) -> impl Fn(Scalar<'_>) -> Read<N>
where
    N: std::str::FromStr + PartialOrd + fmt::Display,
{
    move |value| {
        let digits = value.plain && value.text.bytes().all(|byte| byte.is_ascii_digit());
        match value.text.parse::<N>() {
            Ok(number) if digits && range.contains(&number) => Ok(number),
            Ok(_) | Err(_) => {
                let problem = format!("{} is not a whole number in range", quoted(value.text));
                let remedy =
                    format!("write a number from {} to {}, without quotes", range.start(), range.end());
                Err(Refusal::new(problem, remedy))
            }
        }
    }
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(choices: &'static [(&'static str, T)]) -> impl Fn(Scalar<'_>) -> Read<T> {
    move |value| {
        let found = choices.iter().find(|(word, _)| *word == value.text);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let problem = format!("{} is not known here", quoted(value.text));
            Refusal::new(problem, format!("write one of: {}", words.join(", ")))
        })
    }
}

pub(super) const ALGORITHMS: &[(&str, SigningAlgorithm)] =
    &[("ecdsa-p256", SigningAlgorithm::EcdsaP256Sha256), ("ecdsa-p384", SigningAlgorithm::EcdsaP384Sha384)];

pub(super) const ROLES: &[(&str, Role)] =
    &[("viewer", Role::Viewer), ("operator", Role::Operator), ("security", Role::Security)];

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar<'_> {
        Scalar { text, plain: true }
    }

    #[test]
    fn endpoints_name_a_host_and_a_port() {
        for good in ["ca.example.org:8443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            assert_eq!(endpoint(plain(good)).unwrap().to_string(), good);
        }
        for bad in [
            "",
            ":",
            "ca",
            "ca:",
            "ca:0",
            "ca:65536",
            "ca:+80",
            "2001:db8::1:80",
            "0.0.0.0:80",
            "[::]:80",
            "a b:1",
        ] {
            assert!(endpoint(plain(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_whole_unquoted_and_in_range() {
        let read = number(1..=10_u32);
        assert_eq!(read(plain("10")).unwrap(), 10);
        for bad in ["0", "11", "+1", "-1", "1.0", "1e1", "0x1", "", "99999999999999999999"] {
            assert!(read(plain(bad)).is_err(), "{bad}");
        }
        assert!(read(Scalar { text: "1", plain: false }).is_err());
    }

    #[test]
    fn a_sealing_key_written_where_its_variable_belongs_is_not_repeated() {
        let key = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let refusal = variable(plain(key)).unwrap_err();
        assert!(!refusal.problem.contains("9f86") && !refusal.remedy.contains("9f86"));
        assert_eq!(variable(plain("RHIZOME_SEALING_KEY")).unwrap(), "RHIZOME_SEALING_KEY");
    }

    #[test]
    fn paths_are_absolute_and_sockets_short() {
        assert!(path(plain("var/lib")).is_err());
        assert!(socket_path(plain(&format!("/{}", "x".repeat(106)))).is_ok());
        assert!(socket_path(plain(&format!("/{}", "x".repeat(107)))).is_err());
    }
}
