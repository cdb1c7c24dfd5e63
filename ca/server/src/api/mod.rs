//! The gRPC services: requests read into valid types, one call into the authority, answers written.
//!
//! Laws: nothing is decided here. A handler takes its caller from the gate, reads the request with the constructors
//! of `rhizome-id` and `rhizome-core`, and answers through `status`. Message sizes are limited per service.

use std::sync::Arc;

use rhizome_proto::FILE_DESCRIPTOR_SET;
use rhizome_proto::ca::v1::bundle_service_server::BundleServiceServer;
use rhizome_proto::ca::v1::certificate_service_server::CertificateServiceServer;
use rhizome_proto::ca::v1::jwt_service_server::JwtServiceServer;
use rhizome_proto::node::v1::node_service_server::NodeServiceServer;
use rhizome_proto::upstream::v1::upstream_service_server::UpstreamServiceServer;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::ca::Ca;

mod admin;
mod bundles;
mod certificates;
pub(crate) mod convert;
mod foreign;
mod health;
mod jwt;
mod nodes;
mod sync;
pub(crate) mod upstream;

/// A request of the CSR API: a CSR of at most 16 KiB, attributes, names.
const CSR_MESSAGE_BYTES: usize = 64 * 1024;
/// A report of a cluster's Rhizome: 1 MiB of its ledger, and what stands around it.
const REPORT_MESSAGE_BYTES: usize = (1024 + 128) * 1024;
/// A message of an administrator: a rule and its conditions.
pub(crate) const ADMIN_MESSAGE_BYTES: usize = 1024 * 1024;

/// The services behind the gate, each over the same authority.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Arc<Ca>);

/// Every service of the process.
pub(crate) fn routes(ca: &Arc<Ca>) -> Routes {
    let api = Api(Arc::clone(ca));
    let mut routes =
        Routes::new(CertificateServiceServer::new(api.clone()).max_decoding_message_size(CSR_MESSAGE_BYTES))
            .add_service(JwtServiceServer::new(api.clone()).max_decoding_message_size(CSR_MESSAGE_BYTES))
            .add_service(BundleServiceServer::new(api.clone()).max_decoding_message_size(CSR_MESSAGE_BYTES))
            .add_service(NodeServiceServer::new(api.clone()).max_decoding_message_size(CSR_MESSAGE_BYTES))
            .add_service(
                UpstreamServiceServer::new(api.clone()).max_decoding_message_size(REPORT_MESSAGE_BYTES),
            )
            .add_service(HealthServer::new(api.clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
    match reflection.build_v1() {
        Ok(reflection) => routes = routes.add_service(reflection),
        Err(cause) => tracing::error!(%cause, "reflection is off; this is a bug"),
    }
    admin::add_to(routes, &api).prepare()
}
