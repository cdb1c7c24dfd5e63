//! What both forms of the discovery protocol share: the proxy behind a stream, names, nonces, what counts as in force.
//!
//! Laws: pure; no socket, clock or randomness. The proxy's description is kept from the first message that has one. A
//! view counts as in force once the proxy has accepted the last response made from it, or when it changed nothing for
//! this proxy since one that was accepted; what a proxy refused is not in force.
//! Sources: Envoy's xDS protocol document (ACK, NACK, nonces); spiffe/spire SDS v3 handler (when plain roots are sent).

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::{ResourceError, ResourceName};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::rpc::Status as Detail;

use super::secrets::{Form, SECRET, Unserved};
use crate::refusal::Refusal;

/// Names one stream may ask for. Envoy asks for one or two per stream; some control planes for one per identity.
const MAX_NAMES: usize = 256;
/// Longest name: an ID of 2048 bytes (SPIFFE-ID §2.3).
const NAME_BYTES: usize = 2048;
/// Metadata with which a proxy asks for plain roots.
const PLAIN: &str = "disable_spiffe_cert_validation";
/// The first version of Envoy with the SPIFFE validator.
const FIRST_WITH_VALIDATOR: (u32, u32) = (1, 18);
/// Characters of a proxy's complaint that are logged.
const COMPLAINT_CHARS: usize = 300;
/// gRPC's number for `PERMISSION_DENIED`, in a resource's error.
const PERMISSION_DENIED: i32 = 7;

/// What a request said about the response before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing: it asks.
    Asks,
    /// It accepts the last response.
    Accepts,
    /// It refuses the last response, and why.
    Refuses(String),
    /// It speaks of an older response than the last.
    Stale,
}

/// A response, and the names that are not in it.
pub(super) struct Reply<T> {
    /// `None` when the proxy has it all already.
    pub(super) response: Option<T>,
    /// Names that cannot be served, told once until they change.
    pub(super) unserved: Vec<(String, Unserved)>,
}

/// The form in which the proxy of a stream takes roots, from the first message that describes it.
#[derive(Debug, Default)]
pub(super) struct Proxy(Option<Form>);

impl Proxy {
    pub(super) fn learn(&mut self, node: Option<&Node>) {
        if let (None, Some(node)) = (self.0, node) {
            self.0 = Some(if wants_plain(node) { Form::Plain } else { Form::Spiffe });
        }
    }

    pub(super) fn form(&self, always_plain: bool) -> Form {
        if always_plain { Form::Plain } else { self.0.unwrap_or(Form::Spiffe) }
    }
}

fn wants_plain(node: &Node) -> bool {
    let metadata = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(PLAIN));
    let says = match metadata.and_then(|value| value.kind.as_ref()) {
        Some(Kind::BoolValue(says)) => *says,
        Some(Kind::StringValue(says)) => says.eq_ignore_ascii_case("true") || says == "1",
        Some(Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StructValue(_) | Kind::ListValue(_))
        | None => false,
    };
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build.version.as_ref(),
        Some(UserAgentVersionType::UserAgentVersion(_)) | None => None,
    };
    says || version.is_some_and(|it| (it.major_number, it.minor_number) < FIRST_WITH_VALIDATOR)
}

/// Nonces of one stream: they need be different, not secret.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    count: u64,
    last: Option<String>,
    /// Whether the last response was refused. It stays so: a later request with its nonce asks, and accepts nothing.
    refused: bool,
}

impl Nonces {
    pub(super) fn draw(&mut self) -> String {
        self.count = self.count.saturating_add(1);
        let nonce = format!("{:08x}", self.count);
        self.last = Some(nonce.clone());
        self.refused = false;
        nonce
    }

    /// Responses so far.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// What a request with this nonce and this complaint says.
    pub(super) fn hear(&mut self, nonce: &str, complaint: Option<&Detail>) -> Heard {
        if nonce.is_empty() {
            return Heard::Asks;
        }
        if self.last.as_deref() != Some(nonce) {
            return Heard::Stale;
        }
        match complaint {
            None if self.refused => Heard::Asks,
            None => Heard::Accepts,
            Some(detail) => {
                self.refused = true;
                Heard::Refuses(detail.message.chars().take(COMPLAINT_CHARS).collect())
            }
        }
    }

    /// Whether a request that names this version as the one in force can mean the last response.
    pub(super) fn is_of_last(&self, version: &str) -> bool {
        version.is_empty() || version == self.count.to_string()
    }
}

/// Which view is in force at the proxy.
#[derive(Debug, Default)]
pub(super) struct InForce {
    /// Version of the view that the last response, or the last one that changed nothing, came from.
    newest: Option<u64>,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Standing {
    /// Nothing is to be told.
    #[default]
    Told,
    /// The proxy has to answer.
    Awaited,
    /// The proxy refused.
    Refused,
    /// In force, and nobody was told yet.
    InForce,
}

impl InForce {
    pub(super) const fn sent(&mut self, version: u64) {
        self.newest = Some(version);
        self.standing = Standing::Awaited;
    }

    /// A view that changes nothing for the proxy.
    pub(super) fn unchanged(&mut self, version: u64) {
        if self.newest != Some(version) {
            self.newest = Some(version);
            if self.standing == Standing::Told {
                self.standing = Standing::InForce;
            }
        }
    }

    pub(super) const fn heard(&mut self, heard: &Heard) {
        match heard {
            Heard::Accepts => self.standing = Standing::InForce,
            Heard::Refuses(_) => self.standing = Standing::Refused,
            Heard::Asks | Heard::Stale => {}
        }
    }

    /// Whether the proxy still has to answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.standing == Standing::Awaited
    }

    /// The view that has come into force since this was asked last.
    pub(super) fn take(&mut self) -> Option<u64> {
        if self.standing != Standing::InForce {
            return None;
        }
        self.standing = Standing::Told;
        self.newest
    }
}

/// Checks the type of a request; an empty one means the only type there is.
pub(super) fn check_type(type_url: &str) -> Result<(), Refusal> {
    if type_url.is_empty() || type_url == SECRET {
        return Ok(());
    }
    Err(Refusal::Malformed(format!("this service has resources of type {SECRET} only")))
}

/// Checks how many names there are and how long they are.
pub(super) fn check_names<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), Refusal> {
    let mut count = 0usize;
    for name in names {
        count = count.saturating_add(1);
        if name.len() > NAME_BYTES {
            return Err(Refusal::Malformed(format!("a name is longer than {NAME_BYTES} bytes")));
        }
    }
    if count > MAX_NAMES {
        return Err(Refusal::Malformed(format!("more than {MAX_NAMES} names")));
    }
    Ok(())
}

/// Remembers which names were already said to be unserved.
#[derive(Debug, Default)]
pub(super) struct Told(BTreeSet<(String, Unserved)>);

impl Told {
    /// What of `now` was not said before; what is served again may be said again.
    pub(super) fn news(&mut self, now: &[(String, Unserved)]) -> Vec<(String, Unserved)> {
        let before = std::mem::replace(&mut self.0, now.iter().cloned().collect());
        self.0.difference(&before).cloned().collect()
    }
}

/// The names that are not served, as the protocol says it to the proxy.
pub(super) fn resource_errors(unserved: &[(String, Unserved)]) -> Vec<ResourceError> {
    let error = |(name, why): &(String, Unserved)| ResourceError {
        resource_name: Some(ResourceName { name: name.clone(), ..Default::default() }),
        error_detail: Some(Detail { code: PERMISSION_DENIED, message: why.to_string(), details: Vec::new() }),
    };
    // What is on its way is no error: it is sent when it is there.
    unserved.iter().filter(|(_, why)| *why != Unserved::OnItsWay).map(error).collect()
}
