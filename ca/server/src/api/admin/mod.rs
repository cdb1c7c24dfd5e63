//! The administrators' services: each in a file of its own, all over the same authority.
//!
//! Laws: the gate has already decided by role; a handler names the caller in every ledger entry it causes. Every
//! change is one transaction that requires what the handler read to be unchanged, with its entry in the ledger.
//! Not here: who may call (`roles`), what may be issued (`rhizome_core::policy`).

use rhizome_proto::admin::v1::admin_identity_service_server::AdminIdentityServiceServer;
use rhizome_proto::admin::v1::authority_service_server::AuthorityServiceServer;
use rhizome_proto::admin::v1::bundle_admin_service_server::BundleAdminServiceServer;
use rhizome_proto::admin::v1::certificate_admin_service_server::CertificateAdminServiceServer;
use rhizome_proto::admin::v1::cluster_service_server::ClusterServiceServer;
use rhizome_proto::admin::v1::explain_service_server::ExplainServiceServer;
use rhizome_proto::admin::v1::federation_service_server::FederationServiceServer;
use rhizome_proto::admin::v1::ledger_service_server::LedgerServiceServer;
use rhizome_proto::admin::v1::node_admin_service_server::NodeAdminServiceServer;
use rhizome_proto::admin::v1::rotation_service_server::RotationServiceServer;
use rhizome_proto::admin::v1::rule_service_server::RuleServiceServer;
use rhizome_proto::admin::v1::server_service_server::ServerServiceServer;
use rhizome_proto::admin::v1::token_service_server::TokenServiceServer;
use rhizome_x509::Bundle;
use tonic::service::Routes;

use super::{ADMIN_MESSAGE_BYTES, Api};
use crate::error::ApiError;

mod admins;
mod authorities;
mod bundle;
mod certificates;
mod clusters;
mod ending;
mod explain;
mod federation;
mod ledger;
mod nodes;
mod rotation;
mod rotation_canary;
mod rules;
mod server;
mod tokens;

/// Items of a page when nobody says how many.
const PAGE_SIZE: usize = 100;
/// The most items of one page: at a few hundred bytes each, far below a message's limit.
const MOST_PAGE_SIZE: usize = 1_000;
/// Bytes of a reason: a few sentences, and a ticket's address.
const REASON_BYTES: usize = 1024;

/// A request with a foreign bundle in it, and what stands around it.
const BUNDLE_MESSAGE_BYTES: usize = Bundle::MAX_JSON_BYTES + 64 * 1024;

/// Adds every service of administrators to `routes`.
pub(super) fn add_to(routes: Routes, api: &Api) -> Routes {
    routes
        .add_service(
            AdminIdentityServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES),
        )
        .add_service(AuthorityServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(
            BundleAdminServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES),
        )
        .add_service(
            CertificateAdminServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES),
        )
        .add_service(ClusterServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(ExplainServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(
            FederationServiceServer::new(api.clone()).max_decoding_message_size(BUNDLE_MESSAGE_BYTES),
        )
        .add_service(LedgerServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(NodeAdminServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(RotationServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(RuleServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(ServerServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
        .add_service(TokenServiceServer::new(api.clone()).max_decoding_message_size(ADMIN_MESSAGE_BYTES))
}

/// How many items a page has when the request says `asked`; 0 means that nothing was said.
fn page_size(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) => PAGE_SIZE,
        Ok(asked) => asked.min(MOST_PAGE_SIZE),
        Err(_beyond) => MOST_PAGE_SIZE,
    }
}

/// Where a page begins: after the item that its token names. The empty token asks for the first page.
fn read_page_token<T>(token: &str) -> Result<Option<T>, ApiError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if token.is_empty() {
        return Ok(None);
    }
    token.parse().map(Some).map_err(|cause: T::Err| ApiError::Invalid {
        field: "page_token",
        problem: format!("{cause}; send the `next_page_token` of the page before, or nothing"),
    })
}

/// Why an administrator does something, without the spaces around it; may be empty where the method allows that.
fn read_reason(reason: &str) -> Result<&str, ApiError> {
    let reason = reason.trim();
    if reason.len() > REASON_BYTES {
        let problem = format!("it has {} bytes; say why in at most {REASON_BYTES}", reason.len());
        return Err(ApiError::Invalid { field: "reason", problem });
    }
    Ok(reason)
}

/// As [`read_reason`], where a reason must be given.
fn read_required_reason(reason: &str) -> Result<&str, ApiError> {
    let reason = read_reason(reason)?;
    if reason.is_empty() {
        let problem = format!("say why, in 1 to {REASON_BYTES} bytes; it stands in the ledger for ever");
        return Err(ApiError::Invalid { field: "reason", problem });
    }
    Ok(reason)
}
