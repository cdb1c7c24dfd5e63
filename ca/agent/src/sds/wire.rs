//! The service on the wire, with our codec: what `envoy-types` generates sets aside 8 KiB for each direction of each
//! stream beforehand, and a proxy has a stream for each of its secrets.
//!
//! Laws: the same paths and messages as the generated server's; another path is `Unimplemented`. Not here: what is
//! answered (`super`), the codec (`rhizome_proto::codec`).

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService as _;
use rhizome_proto::codec::Codec;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::Sds;
use crate::refusal::Outgoing;

/// A request for secrets: names, and the node's metadata, of which some control planes write tens of kilobytes.
const MESSAGE_BYTES: usize = 1024 * 1024;

/// The service, ready to be routed to.
#[derive(Clone)]
pub(crate) struct SdsServer(Arc<Sds>);

impl SdsServer {
    pub(crate) fn new(sds: Sds) -> Self {
        Self(Arc::new(sds))
    }
}

impl NamedService for SdsServer {
    const NAME: &'static str = "envoy.service.secret.v3.SecretDiscoveryService";
}

impl Service<http::Request<Body>> for SdsServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let sds = Arc::clone(&self.0);
        let path = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(Self::NAME));
        match path {
            Some("/StreamSecrets") => Box::pin(async move {
                Ok(grpc::<DiscoveryResponse, DiscoveryRequest>().streaming(Stream(sds), request).await)
            }),
            Some("/DeltaSecrets") => Box::pin(async move {
                let mut grpc = grpc::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>();
                Ok(grpc.streaming(Delta(sds), request).await)
            }),
            Some("/FetchSecrets") => Box::pin(async move {
                Ok(grpc::<DiscoveryResponse, DiscoveryRequest>().unary(Fetch(sds), request).await)
            }),
            Some(_) | None => Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        }
    }
}

fn grpc<Out, In>() -> Grpc<Codec<Out, In>>
where
    Out: prost::Message + 'static,
    In: prost::Message + Default + 'static,
{
    Grpc::new(Codec::default()).max_decoding_message_size(MESSAGE_BYTES)
}

struct Stream(Arc<Sds>);
struct Delta(Arc<Sds>);
struct Fetch(Arc<Sds>);

impl StreamingService<DiscoveryRequest> for Stream {
    type Response = DiscoveryResponse;
    type ResponseStream = Outgoing<DiscoveryResponse>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let sds = Arc::clone(&self.0);
        Box::pin(async move { sds.stream_secrets(request).await })
    }
}

impl StreamingService<DeltaDiscoveryRequest> for Delta {
    type Response = DeltaDiscoveryResponse;
    type ResponseStream = Outgoing<DeltaDiscoveryResponse>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let sds = Arc::clone(&self.0);
        Box::pin(async move { sds.delta_secrets(request).await })
    }
}

impl UnaryService<DiscoveryRequest> for Fetch {
    type Response = DiscoveryResponse;
    type Future = BoxFuture<Response<DiscoveryResponse>, Status>;

    fn call(&mut self, request: Request<DiscoveryRequest>) -> Self::Future {
        let sds = Arc::clone(&self.0);
        Box::pin(async move { sds.fetch_secrets(request).await })
    }
}
