//! The trust bundle: read once, or followed with acknowledgements.
//!
//! Laws: a bundle is public, so reading it asks for no credential. Not here: keeping acknowledgements (`acknowledge`).

use std::sync::Arc;

use rhizome_id::TrustDomain;
use rhizome_proto::ca::v1 as wire;
use rhizome_proto::ca::v1::bundle_service_server::BundleService;
use rhizome_proto::ca::v1::watch_bundle_request::Message;
use tonic::{Request, Response, Streaming};

use super::sync::ASK_AGAIN;
use super::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::gate;
use crate::outlet::{Outlet, outlet};
use crate::peer::PeerInfo;
use crate::status::{Answer, Broken, Outgoing};

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
        let (answers, outgoing) = outlet(1);
        let ca = Arc::clone(&self.0);
        self.0.spawner.spawn_until_stop("watch bundle", async move {
            if let Err(broken) =
                ca.follow_bundle(&peer, opening.known_sequence, &mut incoming, &answers).await
            {
                answers.end(broken).await;
            }
        });
        Ok(Response::new(outgoing))
    }
}

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
        incoming: &mut Streaming<wire::WatchBundleRequest>,
        answers: &Outlet<wire::WatchBundleResponse>,
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
                if !answers.give(answer).await {
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
                        Box::pin(self.acknowledge(&who, &acknowledgement)).await?;
                    }
                    Some(Some(Message::Opening(_)) | None) => {
                        let problem = "only acknowledgements follow the opening".to_owned();
                        return Err(ApiError::Invalid { field: "message", problem }.into());
                    }
                },
            }
        }
    }
}
