//! The administrators' services: each in a file of its own, all over the same authority.
//!
//! Laws: the gate has already decided by role; a handler names the caller in every ledger entry it causes. Every
//! change is one transaction that requires what the handler read to be unchanged, with its entry in the ledger.
//! Not here: who may call (`roles`), what may be issued (`rhizome_core::policy`).

use tonic::service::Routes;

use super::Api;
use crate::error::ApiError;

mod admins;
mod authorities;
mod explain;
mod nodes;
mod rules;
mod tokens;

/// Items of a page when nobody says how many.
const PAGE_SIZE: usize = 100;
/// The most items of one page: at a few hundred bytes each, far below a message's limit.
const MOST_PAGE_SIZE: usize = 1_000;
/// Bytes of a reason: a few sentences, and a ticket's address.
const REASON_BYTES: usize = 1024;

pub(super) fn add_to(routes: Routes, _api: &Api) -> Routes {
    routes
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
    let after = super::convert::read_optional("page_token", token);
    after.map_err(|error| match error {
        ApiError::Invalid { field, problem } => {
            let problem = format!("{problem}; send the `next_page_token` of the page before, or nothing");
            ApiError::Invalid { field, problem }
        }
        other => other,
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
