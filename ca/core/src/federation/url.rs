//! Addresses of bundle endpoints, and where a redirect may lead.
//!
//! Laws: an [`EndpointUrl`] is `https`, without user information and without fragment (FED §5.1); it is kept as it was
//! written. A redirect leads to another such address, never to `http`, and is followed for this one fetch only: the
//! relationship keeps its address (FED §7.5.1).
//! Not here: which addresses a host may have (`address`).
//! Sources: FED §5.1, §7.5.1; RFC 9110 §10.2.2 and §15.4, RFC 3986 §3.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use serde::{Deserialize, Serialize};

use crate::limits::{ENDPOINT_URL_BYTES, FEDERATION_REDIRECTS};

const SCHEME: &str = "https://";
const HTTPS_PORT: u16 = 443;

/// The address of a bundle endpoint, such as `https://partner.example/bundle`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointUrl {
    text: String,
    host: String,
    port: u16,
    target: String,
}

impl EndpointUrl {
    /// The host: a name, or an IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What the `Host` header says: the host with its port, if that is not 443.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == HTTPS_PORT { host } else { format!("{host}:{}", self.port) }
    }

    /// Path and query: the target of a request (RFC 9112 §3.2.1).
    pub fn target(&self) -> &str {
        &self.target
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where a redirect leads that this address answered as the fetch's `number`th (from 1), with that `location`.
    ///
    /// # Errors
    /// [`RedirectError`].
    pub fn redirected(&self, location: &str, number: usize) -> Result<Self, RedirectError> {
        if number > FEDERATION_REDIRECTS {
            return Err(RedirectError::TooMany);
        }
        // A path alone stays on the host; every other relative form is more than an endpoint needs (RFC 3986 §4.2).
        let absolute = match location.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => format!("https://{}{location}", self.authority()),
            Some(_) | None => location.to_owned(),
        };
        absolute.parse().map_err(|cause| match cause {
            UrlError::NotHttps => RedirectError::NotHttps,
            other
            @ (UrlError::UserInfo | UrlError::Fragment | UrlError::TooLong | UrlError::Malformed(_)) => {
                RedirectError::Malformed(other)
            }
        })
    }
}

/// Why a text is not the address of a bundle endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme, or none.
    #[error("a bundle endpoint's address begins with https://")]
    NotHttps,
    /// User information, which FED §5.1 forbids.
    #[error("a bundle endpoint's address holds no user name and no password")]
    UserInfo,
    /// A fragment means nothing to a server.
    #[error("a bundle endpoint's address has no fragment (#…)")]
    Fragment,
    /// Too long.
    #[error("a bundle endpoint's address has at most 2048 bytes")]
    TooLong,
    /// Not an address.
    #[error("not an address such as https://partner.example/bundle: {0}")]
    Malformed(String),
}

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedirectError {
    /// More than three.
    #[error("it redirects more than three times")]
    TooMany,
    /// To another scheme than `https`.
    #[error("it redirects to an address that is not https")]
    NotHttps,
    /// To nowhere.
    #[error("it redirects to what is no address of an endpoint: {0}")]
    Malformed(UrlError),
}

impl FromStr for EndpointUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > ENDPOINT_URL_BYTES {
            return Err(UrlError::TooLong);
        }
        if text.contains('#') {
            return Err(UrlError::Fragment);
        }
        if !text.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME)) {
            return Err(UrlError::NotHttps);
        }
        let malformed = |what: &str| UrlError::Malformed(what.to_owned());
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("it holds spaces or characters that must be encoded"));
        }
        let uri: Uri = text.parse().map_err(|cause: http::uri::InvalidUri| malformed(&cause.to_string()))?;
        let authority = uri.authority().ok_or_else(|| malformed("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        let written = authority.host();
        let host = written.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(written);
        if host.is_empty() || host.ends_with('.') || host.contains('%') {
            return Err(malformed("its host is empty, ends with a dot or is percent-encoded"));
        }
        let port = match authority.as_str().strip_prefix(written) {
            Some("") | None => HTTPS_PORT,
            Some(_) => authority.port_u16().filter(|port| *port > 0).ok_or_else(|| malformed("its port"))?,
        };
        let target = uri.path_and_query().map_or("/", |it| it.as_str());
        let target = if target.is_empty() { "/" } else { target }.to_owned();
        Ok(Self { text: text.to_owned(), host: host.to_ascii_lowercase(), port, target })
    }
}

impl TryFrom<String> for EndpointUrl {
    type Error = UrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EndpointUrl> for String {
    fn from(url: EndpointUrl) -> Self {
        url.text
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> EndpointUrl {
        text.parse().unwrap()
    }

    fn parts(text: &str) -> (String, u16, String, String) {
        let it = url(text);
        (it.host().to_owned(), it.port(), it.target().to_owned(), it.authority())
    }

    #[test]
    fn an_address_falls_into_host_port_and_target() {
        let own = |host: &str, port, target: &str, authority: &str| {
            (host.to_owned(), port, target.to_owned(), authority.to_owned())
        };
        assert_eq!(parts("https://Partner.example"), own("partner.example", 443, "/", "partner.example"));
        let found = parts("https://p.example:8443/a/b?c=d");
        assert_eq!(found, own("p.example", 8443, "/a/b?c=d", "p.example:8443"));
        assert_eq!(parts("https://[2001:db8::1]:8443/"), own("2001:db8::1", 8443, "/", "[2001:db8::1]:8443"));
        assert_eq!(parts("https://192.0.2.1/x"), own("192.0.2.1", 443, "/x", "192.0.2.1"));
        assert_eq!(parts("https://p.example:443/"), own("p.example", 443, "/", "p.example"));
    }

    #[test]
    fn what_is_no_endpoints_address_is_refused_and_said_why() {
        let refused = |text: &str| text.parse::<EndpointUrl>().unwrap_err();
        for text in ["http://p.example/", "ftp://p.example/", "p.example", "/bundle", "HTTP://p.example", ""]
        {
            assert_eq!(refused(text), UrlError::NotHttps, "{text}");
        }
        assert_eq!(refused("https://user@p.example/"), UrlError::UserInfo);
        assert_eq!(refused("https://user:secret@p.example/"), UrlError::UserInfo);
        assert_eq!(refused("https://p.example/#top"), UrlError::Fragment);
        assert_eq!(refused(&format!("https://p.example/{}", "a".repeat(2048))), UrlError::TooLong);
        for text in [
            "https:///bundle",
            "https://p.example:0/",
            "https://p.example:99999/",
            "https://p.example:/",
            "https://p.exa mple/",
            "https://p.example./",
            "https://p%2eexample/",
            "https://pärtner.example/",
            "https://p.example/\r\nHost: x",
        ] {
            assert!(matches!(refused(text), UrlError::Malformed(_)), "{text}: {:?}", refused(text));
        }
    }

    #[test]
    fn a_redirect_leads_to_https_alone_and_not_for_ever() {
        let from = url("https://p.example:8443/bundle");
        let to = |location: &str| from.redirected(location, 1).map(|it| it.as_str().to_owned());
        assert_eq!(to("/elsewhere?x=1").unwrap(), "https://p.example:8443/elsewhere?x=1");
        assert_eq!(to("https://other.example/b").unwrap(), "https://other.example/b");
        assert_eq!(to("http://p.example/b"), Err(RedirectError::NotHttps));
        assert_eq!(to("file:///etc/passwd"), Err(RedirectError::NotHttps));
        assert!(matches!(to("https://u:p@p.example/"), Err(RedirectError::Malformed(UrlError::UserInfo))));
        for odd in ["//other.example/b", "b", "../b", "", "https://"] {
            assert!(to(odd).is_err(), "{odd}");
        }
        assert!(from.redirected("/b", FEDERATION_REDIRECTS).is_ok());
        assert_eq!(from.redirected("/b", FEDERATION_REDIRECTS + 1), Err(RedirectError::TooMany));
    }

    #[test]
    fn an_address_is_kept_as_it_was_written() {
        let json = serde_json::to_string(&url("https://Partner.example/b")).unwrap();
        assert_eq!(json, "\"https://Partner.example/b\"");
        assert_eq!(serde_json::from_str::<EndpointUrl>(&json).unwrap(), url("https://Partner.example/b"));
        assert!(serde_json::from_str::<EndpointUrl>("\"http://p.example\"").is_err());
    }
}
