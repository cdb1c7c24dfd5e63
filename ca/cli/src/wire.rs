//! Between the wire's fields and what verbs show.
//!
//! Laws: total; a field that the server left out or filled with nonsense is shown as absent, never as something else.

use rhizome_id::{Digest, Timestamp};
use rhizome_proto::admin::v1::{Role, Scope};
use rhizome_proto::ca::v1::Attribute;

use crate::exit::Failure;
use crate::session::Session;

/// The instant of an optional field.
pub(crate) fn instant(at: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    at.map(|at| Timestamp::from_unix(at.seconds))
}

/// Lower-case hexadecimal; absent for no bytes.
pub(crate) fn hexadecimal(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| hex::encode(bytes))
}

/// A digest of 32 raw bytes.
pub(crate) fn digest(bytes: &[u8]) -> Result<Digest, Failure> {
    let fixed: [u8; 32] =
        bytes.try_into().map_err(|_length| Failure::protocol("a digest does not have 32 bytes"))?;
    Ok(Digest::from_bytes(fixed))
}

/// Absent for the empty text.
pub(crate) fn text(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

/// A part of an answer that the protocol promises.
pub(crate) fn promised<T>(part: Option<T>, what: &str) -> Result<T, Failure> {
    part.ok_or_else(|| Failure::protocol(&format!("{what} is missing")))
}

/// `name=value` for each attribute.
pub(crate) fn attributes(attributes: &[Attribute]) -> String {
    let pairs: Vec<String> =
        attributes.iter().map(|attribute| format!("{}={}", attribute.name, attribute.value)).collect();
    pairs.join(" ")
}

/// What a node may vouch for, in words.
pub(crate) fn scope(scope: Option<&Scope>) -> String {
    match scope {
        Some(scope) if scope.all_namespaces => "all namespaces".to_owned(),
        Some(scope) if !scope.namespaces.is_empty() => scope.namespaces.join(","),
        Some(_) | None => "nothing".to_owned(),
    }
}

/// The namespaces of a scope; absent when it has all of them.
pub(crate) fn namespaces(scope: Option<&Scope>) -> Option<Vec<String>> {
    match scope {
        Some(scope) if scope.all_namespaces => None,
        Some(scope) => Some(scope.namespaces.clone()),
        None => Some(Vec::new()),
    }
}

/// A role's name; `unknown` for one that this program does not know.
pub(crate) fn role(number: i32) -> &'static str {
    match Role::try_from(number) {
        Ok(Role::Viewer) => "viewer",
        Ok(Role::Operator) => "operator",
        Ok(Role::Security) => "security",
        Ok(Role::Unspecified) | Err(_) => "unknown",
    }
}

/// A list that was fetched page by page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed<T> {
    pub(crate) items: Vec<T>,
    /// True when the limit cut it.
    pub(crate) more: bool,
}

/// Largest page the server gives.
const LARGEST_PAGE: usize = 1000;

/// Fetches pages until there are no more, or `limit` items (0: no limit). `fetch` takes a page size and a page token.
pub(crate) async fn pages<T>(
    limit: usize,
    mut fetch: impl AsyncFnMut(u32, String) -> Result<(Vec<T>, String), tonic::Status>,
) -> Result<Listed<T>, Failure> {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let wanted = limit.saturating_sub(items.len()).min(LARGEST_PAGE);
        let size = u32::try_from(wanted).unwrap_or(1);
        let (page, next) = fetch(size, token).await?;
        let stalled = page.is_empty();
        items.extend(page);
        let full = items.len() >= limit;
        if next.is_empty() || full || stalled {
            let more = !next.is_empty() || items.len() > limit;
            items.truncate(limit);
            return Ok(Listed { items, more });
        }
        token = next;
    }
}

/// Says on the side that a list was cut.
pub(crate) fn remark_more(session: &mut Session<'_, '_>, more: bool) {
    if more {
        session.remark("there are more; raise --limit, or give --limit 0 for all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with `total` numbers that gives at most 3 of them at a time.
    async fn list(total: usize, limit: usize) -> Listed<usize> {
        pages(limit, async |size, token| {
            let from: usize = token.parse().unwrap_or(0);
            let to = total.min(from + 3.min(usize::try_from(size).unwrap()));
            let next = if to < total { to.to_string() } else { String::new() };
            Ok(((from..to).collect(), next))
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn pages_are_followed_to_the_end_or_to_the_limit() {
        assert_eq!(list(7, 0).await, Listed { items: (0..7).collect(), more: false });
        assert_eq!(list(7, 4).await, Listed { items: (0..4).collect(), more: true });
        assert_eq!(list(7, 7).await, Listed { items: (0..7).collect(), more: false });
        assert_eq!(list(0, 5).await, Listed { items: vec![], more: false });
    }

    #[tokio::test]
    async fn a_server_that_gives_empty_pages_for_ever_is_left() {
        let listed = pages::<u8>(0, async |_size, _token| Ok((vec![], "again".to_owned()))).await.unwrap();
        assert!(listed.items.is_empty() && listed.more);
    }

    #[test]
    fn a_scope_is_never_shown_wider_than_it_is() {
        assert_eq!(scope(None), "nothing");
        assert_eq!(scope(Some(&Scope::default())), "nothing");
        let some = Scope { all_namespaces: false, namespaces: vec!["a".into(), "b".into()] };
        assert_eq!(scope(Some(&some)), "a,b");
        assert_eq!(namespaces(None), Some(vec![]));
    }
}
