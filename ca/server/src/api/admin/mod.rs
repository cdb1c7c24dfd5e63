//! The administrators' services: each in a file of its own, all over the same authority.
//!
//! Laws: the gate has already decided by role; a handler names the caller in every ledger entry it causes. Every
//! change is one transaction that requires what the handler read to be unchanged, with its entry in the ledger.
//! Not here: who may call (`roles`), what may be issued (`rhizome_core::policy`).

use tonic::service::Routes;

use super::Api;

mod admins;
mod authorities;
mod explain;
mod nodes;
mod rules;
mod tokens;

pub(super) fn add_to(routes: Routes, _api: &Api) -> Routes {
    routes
}
