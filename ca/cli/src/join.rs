//! `rhizome node join`: from a join string to a node identity.
//!
//! Laws: nothing is believed before the roots have been compared with the pins of the join string: the first
//! connection proves nothing and carries nothing but the question for the bundle; the token goes only over the
//! second, which has verified the server. The key is on disk before the token is spent, so that a join whose answer
//! was lost can be repeated with the same key (the server refuses another one).
//! Not here: the join string's form and its pins, how servers are verified (`rhizome_tls`).
//! Sources: kubeadm's discovery by token; spiffe/spire#2454 (lost answer).

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rhizome_id::Timestamp;
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::node::v1::attest_request::Evidence;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::{AttestRequest, JoinTokenEvidence};
use rhizome_tls::{IdentityDir, JoinError, JoinString, discover};
use rhizome_x509::{KeyAlgorithm, RequestKey, create_csr};
use serde_json::json;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::exit::{Exit, Failure};
use crate::files;
use crate::issued::{self, Issued};
use crate::node::JoinNode;
use crate::output::{View, details, instant_with_distance};
use crate::session::{Session, call, patiently, unreachable, verified};
use crate::wire;

/// Where the key waits, in PKCS #8 DER, between being made and being certified.
const PENDING_KEY: &str = "key.pending.der";

/// Largest pending key file, in bytes: an EC key takes some 150.
const PENDING_KEY_LIMIT: u64 = 4096;

pub(crate) async fn run(wish: &JoinNode, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    let join = read_join_string(&wish.join_string)?;
    let directory = IdentityDir::new(&wish.out);
    if directory.exists() && !wish.force {
        return Err(Failure::new(
            Exit::Failed,
            "already_joined",
            format!("{} holds an identity already", wish.out.display()),
        )
        .hint("choose another directory with --out, or replace the identity with --force"));
    }

    let (address, bundle) =
        patiently("Fetching the bundle".to_owned(), discover(&join)).await.map_err(refused)?;
    let channel =
        patiently(format!("Connecting to {address}"), verified(&address, &bundle, None, session.clock()))
            .await?;
    let key = pending_key(&wish.out)?;
    let (identity, node_id) = patiently("Attesting".to_owned(), attest(channel, &join, &key)).await?;

    let issued = Issued::check(identity, &key, join.trust_domain(), Some(&bundle), session.now())?;
    issued.save(&directory)?;
    files::remove(&pending_path(&wish.out))?;
    session.show(&joined(&node_id, &issued, &wish.out, session.now())?)?;
    Ok(Exit::Done)
}

fn read_join_string(argument: &str) -> Result<JoinString, Failure> {
    let limit = u64::try_from(rhizome_tls::MAX_JOIN_STRING_BYTES).unwrap_or(u64::MAX).saturating_add(2);
    let text = if argument == "-" {
        let bytes = Zeroizing::new(files::read_limited(Path::new("-"), limit)?);
        Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
    } else {
        Zeroizing::new(argument.to_owned())
    };
    JoinString::decode(&text).map_err(|error| {
        Failure::usage(error.to_string()).hint("`rhizome token create` on the server makes a new one")
    })
}

/// What went wrong before anything was sent that matters.
fn refused(error: JoinError) -> Failure {
    match error {
        JoinError::Connect(error) => unreachable(&error),
        JoinError::Call(status) => Failure::from(*status),
        JoinError::Tls(_) => Failure::new(Exit::Failed, "tls", error.to_string()),
        JoinError::Answer(what) => Failure::protocol(&what),
        JoinError::WrongTrustDomain { .. } => Failure::new(Exit::Denied, "wrong_trust_domain", error.to_string()),
        JoinError::RootMismatch { .. } => Failure::new(Exit::Denied, "root_mismatch", error.to_string())
            .hint("someone may be in between, or the root has changed since: compare with `rhizome bundle show` on the server, then make a new join string"),
    }
}

fn pending_path(directory: &Path) -> PathBuf {
    directory.join(PENDING_KEY)
}

/// The key of an earlier attempt whose answer was lost, or a new one that is on disk before it is used.
fn pending_key(directory: &Path) -> Result<RequestKey, Failure> {
    let path = pending_path(directory);
    if path.exists() {
        let der = Zeroizing::new(files::read_limited(&path, PENDING_KEY_LIMIT)?);
        return RequestKey::from_pkcs8_der(&der).map_err(|error| {
            Failure::new(Exit::Failed, "key", format!("{} is damaged: {error}", path.display()))
                .hint("remove it and join with a new join string")
        });
    }
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256)
        .map_err(|error| Failure::new(Exit::Failed, "key", error.to_string()))?;
    files::private_directory(directory)?;
    files::write(&path, &key.pkcs8_der(), files::PRIVATE)?;
    Ok(key)
}

async fn attest(
    channel: Channel,
    join: &JoinString,
    key: &RequestKey,
) -> Result<(ca::IssuedCertificate, String), Failure> {
    let csr = create_csr(key).map_err(|error| Failure::new(Exit::Failed, "csr", error.to_string()))?;
    let request = AttestRequest {
        evidence: Some(Evidence::JoinToken(JoinTokenEvidence { token: join.token().to_owned() })),
        csr_der: Bytes::from(csr),
    };
    let answer = NodeServiceClient::new(channel).attest(call(request)).await;
    let answer = answer
        .map_err(|status| {
            let failure = Failure::from(status);
            if failure.exit() == Exit::Denied {
                failure.hint("the token may be used, revoked or expired: make a new join string with `rhizome token create`")
            } else {
                failure
            }
        })?
        .into_inner();
    Ok((wire::promised(answer.identity, "the identity")?, answer.node_id))
}

fn joined(node_id: &str, issued: &Issued, directory: &Path, now: Timestamp) -> Result<View, Failure> {
    let text = details([
        ("node", node_id.to_owned()),
        ("spiffe id", issued.spiffe_id.to_string()),
        ("serial", issued.serial.clone()),
        ("expires", instant_with_distance(Some(issued.not_after), now)),
        ("renew at", instant_with_distance(issued.renew_at, now)),
        ("written to", directory.display().to_string()),
    ]);
    let json = json!({ "node_id": node_id, "certificate": issued::row(issued), "directory": directory });
    View::new(&json, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_answer_is_retried_with_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("identity");
        let first = pending_key(&directory).unwrap();
        let second = pending_key(&directory).unwrap();
        assert_eq!(first.pkcs8_der(), second.pkcs8_der());
    }
}
