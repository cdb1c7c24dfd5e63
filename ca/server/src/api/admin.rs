//! The administrators' services.

use tonic::service::Routes;

use super::Api;

pub(super) fn add_to(routes: Routes, _api: &Api) -> Routes {
    routes
}
