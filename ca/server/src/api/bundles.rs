//! The trust bundle: read once, or followed with acknowledgements.
//!
//! Laws: a bundle is public, so reading it asks for no credential. An acknowledgement counts only for the bundle that
//! is published: right sequence, right digest; it is kept durably, since root rotation waits for it.

use std::sync::Arc;

use rhizome_core::documents::{Stored as _, Transaction};
use rhizome_core::ports::StoreError;
use rhizome_core::state::Subscriber;
use rhizome_id::TrustDomain;
use rhizome_proto::ca::v1 as wire;
use rhizome_proto::ca::v1::bundle_service_server::BundleService;
use rhizome_proto::ca::v1::watch_bundle_request::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Streaming};

use super::sync::ASK_AGAIN;
use super::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, AuthError, IssueError};
use crate::gate;
use crate::peer::PeerInfo;
use crate::status::{Answer, Broken, Outgoing};

/// How often an acknowledgement is tried again when its node renews at the same moment.
const TRIES: usize = 4;

#[tonic::async_trait]
impl BundleService for Api {
    async fn get_bundle(&self, request: Request<wire::GetBundleRequest>) -> Answer<wire::GetBundleResponse> {
        let asked = convert::read_optional::<TrustDomain>("trust_domain", &request.get_ref().trust_domain)?;
        self.0.check_domain(asked.as_ref())?;
        let bundle = self.0.wire_bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        Ok(Response::new(wire::GetBundleResponse { bundle: Some(wire::Bundle::clone(&bundle)) }))
    }

    type WatchBundleStream = Outgoing<wire::WatchBundleResponse>;

    async fn watch_bundle(
        &self,
        request: Request<Streaming<wire::WatchBundleRequest>>,
    ) -> Answer<Self::WatchBundleStream> {
        let peer = gate::peer(&request)?;
        let mut incoming = request.into_inner();
        let opening = match incoming.message().await?.and_then(|first| first.message) {
            Some(Message::Opening(opening)) => opening,
            Some(Message::Acknowledgement(_)) | None => {
                let problem = "the first message opens the stream".to_owned();
                return Err(ApiError::Invalid { field: "message", problem }.into());
            }
        };
        let asked = convert::read_optional::<TrustDomain>("trust_domain", &opening.trust_domain)?;
        self.0.check_domain(asked.as_ref())?;
        let (answers, outgoing) = mpsc::channel(1);
        let ca = Arc::clone(&self.0);
        self.0.spawner.spawn_until_stop("watch bundle", async move {
            if let Err(error) = ca.follow_bundle(&peer, opening.known_sequence, incoming, &answers).await {
                drop(answers.send(Err(error)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Answers = mpsc::Sender<Result<wire::WatchBundleResponse, Broken>>;

impl Ca {
    fn check_domain(&self, asked: Option<&TrustDomain>) -> Result<(), ApiError> {
        match asked {
            Some(other) if *other != self.settings.trust_domain => {
                Err(ApiError::NotFound { what: "bundle of trust domain", name: other.to_string() })
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn follow_bundle(
        self: &Arc<Self>,
        peer: &PeerInfo,
        known: u64,
        mut incoming: Streaming<wire::WatchBundleRequest>,
        answers: &Answers,
    ) -> Result<(), Broken> {
        let who = self.identify(peer)?.principal().to_string();
        let present = self.presence.enter(&who, "", self.ports.clock.now());
        let mut changes = self.changes();
        let mut sent = known;
        loop {
            changes.mark_unchanged();
            self.identify(peer)?;
            if let Some(bundle) = self.wire_bundle().filter(|bundle| bundle.sequence > sent) {
                sent = bundle.sequence;
                let answer = wire::WatchBundleResponse { bundle: Some(wire::Bundle::clone(&bundle)) };
                if answers.send(Ok(answer)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Ok(());
                },
                () = tokio::time::sleep(ASK_AGAIN) => {}
                message = incoming.message() => match self.counted(peer, message?)?.map(|it| it.message) {
                    None => return Ok(()),
                    Some(Some(Message::Acknowledgement(acknowledgement))) => {
                        present.seen(self.ports.clock.now());
                        self.acknowledge(&who, &acknowledgement).await?;
                    }
                    Some(Some(Message::Opening(_)) | None) => {
                        let problem = "only acknowledgements follow the opening".to_owned();
                        return Err(ApiError::Invalid { field: "message", problem }.into());
                    }
                },
            }
        }
    }

    /// Keeps durably that `who` has the published bundle in force. An acknowledgement of an older bundle is late, not
    /// wrong, and changes nothing; one of a bundle that was never published is refused.
    pub(crate) async fn acknowledge(
        self: &Arc<Self>,
        who: &str,
        acknowledgement: &wire::BundleAcknowledgement,
    ) -> Result<(), ApiError> {
        let digest = convert::read_digest("digest", &acknowledgement.digest)?;
        let bundle = self.bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let published = &bundle.bundle;
        if acknowledgement.sequence < published.sequence() {
            return Ok(());
        }
        if acknowledgement.sequence != published.sequence() || digest != published.digest() {
            let problem = format!(
                "bundle {} with digest {digest} is not the published one ({}, {}); fetch the bundle again",
                acknowledgement.sequence,
                published.sequence(),
                published.digest(),
            );
            return Err(ApiError::Invalid { field: "acknowledgement", problem });
        }
        let at = self.ports.clock.now();
        let subscriber = Subscriber { principal: who.to_owned(), sequence: published.sequence(), digest, at };
        for _ in 0..TRIES {
            match self.try_to_acknowledge(&subscriber).await {
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        self.try_to_acknowledge(&subscriber).await
    }

    /// An acknowledgement belongs to a node on record: one that was evicted while it spoke leaves nothing behind.
    async fn try_to_acknowledge(self: &Arc<Self>, subscriber: &Subscriber) -> Result<(), ApiError> {
        let state = self.state();
        let who = subscriber.principal.as_str();
        let node = who.strip_prefix("node:").and_then(|id| state.nodes().get(id));
        let node = node.ok_or_else(|| AuthError::Unknown { who: who.to_owned() })?;
        let known = state.subscribers().get(who).map(|it| (it.value.sequence, it.value.digest));
        if known == Some((subscriber.sequence, subscriber.digest)) {
            return Ok(());
        }
        let transaction = Transaction::named("acknowledge bundle");
        let transaction = transaction.require_unchanged(node.value.key(), node.version);
        self.commit(transaction.put(subscriber)).await?;
        Ok(())
    }
}
