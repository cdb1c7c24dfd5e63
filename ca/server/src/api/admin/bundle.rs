//! The published bundle and who holds it, and the revocation lists.

use rhizome_core::documents::Versioned;
use rhizome_core::state::{State, Subscriber};
use rhizome_id::Timestamp;
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::bundle_admin_service_server::BundleAdminService;
use std::sync::Arc;
use tonic::{Request, Response};

use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};
use crate::status::Answer;

#[tonic::async_trait]
impl BundleAdminService for Api {
    async fn show_bundle(
        &self,
        request: Request<wire::ShowBundleRequest>,
    ) -> Answer<wire::ShowBundleResponse> {
        self.0.caller(&request)?;
        let request = request.into_inner();
        let state = self.0.state();
        let bundle = self.0.wire_bundle().ok_or(ApiError::Issue(IssueError::NoAuthority))?;
        let limit = super::page_size(request.page_size);
        let known = state.subscribers();
        let mut after = known.iter().skip_while(|(name, _)| **name <= request.page_token).peekable();
        let mut subscribers = Vec::new();
        while subscribers.len() < limit
            && let Some((_, it)) = after.next()
        {
            subscribers.push(self.0.subscriber(&state, it, bundle.sequence));
        }
        let more = after.peek().is_some();
        let next_page_token =
            subscribers.last().filter(|_| more).map(|it| it.name.clone()).unwrap_or_default();
        let count = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
        let behind = known.values().filter(|it| it.value.sequence < bundle.sequence).count();
        Ok(Response::new(wire::ShowBundleResponse {
            bundle: Some(rhizome_proto::ca::v1::Bundle::clone(&bundle)),
            subscribers,
            next_page_token,
            subscriber_count: count(known.len()),
            behind_count: count(behind),
        }))
    }

    async fn list_crls(&self, request: Request<wire::ListCrlsRequest>) -> Answer<wire::ListCrlsResponse> {
        self.0.caller(&request)?;
        let state = self.0.state();
        let crls = state.crls().values().map(|it| {
            let (record, crl) = (&it.value, &it.value.crl);
            wire::Crl {
                issuer_id: record.issuer.to_string(),
                number: crl.number(),
                signed_at: Some(convert::timestamp(record.signed_at)),
                next_update: Some(convert::timestamp(crl.next_update())),
                revoked_count: u64::try_from(crl.revoked().len()).unwrap_or(u64::MAX),
                crl_der: crl.der().to_vec().into(),
            }
        });
        Ok(Response::new(wire::ListCrlsResponse { crls: crls.collect() }))
    }
}

impl Ca {
    fn subscriber(
        &self,
        state: &State,
        it: &Versioned<Arc<Subscriber>>,
        published: u64,
    ) -> wire::BundleSubscriber {
        let it = &it.value;
        let present = self.presence.of(&it.principal);
        let (kind, id) = it.principal.split_once(':').unwrap_or(("", ""));
        let live_until: Option<Timestamp> = state.nodes().get(id).map(|node| node.value.not_after);
        wire::BundleSubscriber {
            name: it.principal.clone(),
            kind: kind.to_owned(),
            acknowledged_sequence: it.sequence,
            acknowledged_digest: convert::digest(&it.digest),
            acknowledged_at: Some(convert::timestamp(it.at)),
            last_seen: present.as_ref().map(|it| convert::timestamp(it.last_seen)),
            live_until: live_until.map(convert::timestamp),
            connected: present.is_some(),
            behind: it.sequence < published,
        }
    }
}
