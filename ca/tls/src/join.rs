//! The first contact: the bundle of a server that has proved nothing, reduced to what a join string pins.
//!
//! Laws: the connection that fetches carries nothing but the question, and is dropped; of what comes back only roots
//! whose fingerprint is pinned are believed; the only configuration that trusts anyone is named in this file alone.
//! Not here: sending the token, which needs a connection anew, verified against the pinned bundle (`client_config`).
//! Sources: kubeadm's discovery by token.

use std::sync::Arc;
use std::time::Duration;

use rhizome_id::{Digest, TrustDomain, Ttl};
use rhizome_proto::ca::v1 as wire;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use rhizome_x509::{Bundle, CaCertificate};
use tonic::{Request, Status};

use crate::client::danger_unverified_client_config;
use crate::connect::{ConnectError, connect};
use crate::error::TlsError;
use crate::join_string::JoinString;

/// For one question to a server that answers from memory.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// The first address that answers, with the bundle that it gave, reduced to what the join string pins.
///
/// # Errors
/// [`JoinError`]: the last address's when none answers; a server that answers wrongly ends the search.
pub async fn discover(join: &JoinString) -> Result<(String, Bundle), JoinError> {
    let mut last = JoinError::Answer("the join string has no address".to_owned());
    for address in join.addresses() {
        match offered_by(address, join.trust_domain()).await {
            Ok(offered) => return Ok((address.clone(), pinned(&offered, join)?)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks a server that has proved nothing for its bundle; the answer proves nothing either.
async fn offered_by(address: &str, domain: &TrustDomain) -> Result<wire::Bundle, JoinError> {
    let config = danger_unverified_client_config()?;
    let channel = connect(address, Some(Arc::new(config))).await?;
    let mut request = Request::new(wire::GetBundleRequest { trust_domain: domain.to_string() });
    request.set_timeout(CALL_DEADLINE);
    let answer = BundleServiceClient::new(channel).get_bundle(request).await;
    let answer = answer.map_err(|status| JoinError::Call(Box::new(status)))?.into_inner();
    answer.bundle.ok_or_else(|| JoinError::Answer("the bundle is missing".to_owned()))
}

/// Keeps of an unproven bundle only the anchors that the join string pins, and no JWT keys.
///
/// # Errors
/// [`JoinError::WrongTrustDomain`], [`JoinError::RootMismatch`], or [`JoinError::Answer`].
pub fn pinned(offered: &wire::Bundle, join: &JoinString) -> Result<Bundle, JoinError> {
    if offered.trust_domain != join.trust_domain().as_str() {
        let offered = offered.trust_domain.chars().take(255).collect();
        return Err(JoinError::WrongTrustDomain { offered, wanted: join.trust_domain().clone() });
    }
    if offered.anchors_der.len() > Bundle::MAX_ANCHORS {
        return Err(JoinError::Answer("the bundle has more than 64 anchors".to_owned()));
    }
    let anchors = offered.anchors_der.iter().filter_map(|der| CaCertificate::parse(der).ok());
    let (believed, other): (Vec<_>, Vec<_>) =
        anchors.partition(|anchor| join.root_sha256().contains(&anchor.fingerprint()));
    if believed.is_empty() {
        let offered = other.iter().map(CaCertificate::fingerprint).collect();
        return Err(JoinError::RootMismatch { pinned: join.root_sha256().to_vec(), offered });
    }
    let refresh = Ttl::from_seconds(offered.refresh_hint_seconds).unwrap_or_else(|_absent| Ttl::hours(1));
    // The JWT keys are not believed: nothing pins them. The whole bundle comes over a verified connection.
    Bundle::new(join.trust_domain().clone(), offered.sequence, refresh, believed)
        .map_err(|error| JoinError::Answer(error.to_string()))
}

/// Why the first contact came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No server could be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A server answered with an error.
    #[error("the server did not give its bundle: {0}")]
    Call(Box<Status>),
    /// A fault of ours.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The answer makes no sense.
    #[error("the server's answer makes no sense: {0}")]
    Answer(String),
    /// It speaks for somebody else.
    #[error("the server speaks for trust domain `{offered}`, the join string is for `{wanted}`")]
    WrongTrustDomain {
        /// Whom it speaks for.
        offered: String,
        /// Whom the join string is for.
        wanted: TrustDomain,
    },
    /// None of its roots is pinned.
    #[error(
        "the server's roots are not the pinned ones: pinned sha256 {}; offered sha256 {}",
        list(pinned),
        list(offered)
    )]
    RootMismatch {
        /// Fingerprints in the join string.
        pinned: Vec<Digest>,
        /// Fingerprints of the roots that could be read.
        offered: Vec<Digest>,
    },
}

fn list(digests: &[Digest]) -> String {
    if digests.is_empty() {
        return "none that can be read".to_owned();
    }
    let texts: Vec<String> = digests.iter().map(Digest::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn join_for(pins: Vec<Digest>) -> JoinString {
        JoinString::new(vec!["a:1".into()], "example.org".parse().unwrap(), pins, "token".into()).unwrap()
    }

    #[test]
    fn a_root_that_is_not_pinned_is_refused_with_both_fingerprints() {
        let offered = wire::Bundle {
            trust_domain: "example.org".into(),
            anchors_der: vec![Bytes::from_static(b"not a certificate")],
            ..wire::Bundle::default()
        };
        let refusal = pinned(&offered, &join_for(vec![Digest::from_bytes([7; 32])])).unwrap_err();
        assert!(matches!(refusal, JoinError::RootMismatch { .. }), "{refusal}");
        let text = refusal.to_string();
        assert!(text.contains(&"07".repeat(32)) && text.contains("none that can be read"), "{text}");
    }

    #[test]
    fn a_bundle_of_another_trust_domain_is_refused() {
        let offered = wire::Bundle { trust_domain: "evil.org".into(), ..wire::Bundle::default() };
        let refusal = pinned(&offered, &join_for(vec![Digest::from_bytes([0; 32])])).unwrap_err();
        assert!(matches!(refusal, JoinError::WrongTrustDomain { .. }), "{refusal}");
    }
}
