//! State of the world: each response holds every secret that the stream asked for.
//!
//! Laws: pure. A response is made for the first request, for other names, and for a view in which one of the secrets
//! changed; not for an answer to a response, and not for a view that changes nothing here. A request that speaks of an
//! older response is ignored whole. A refusal is kept to: the same secrets are not sent again, its names still count.
//! No names at first means everything; no names later means nothing. While nothing can be served nothing is sent, since
//! a proxy takes an empty response for a fault; once something was, an empty response says that it is gone.
//! Sources: Envoy's xDS protocol document, "State of the World"; spiffe/spire SDS v3 handler.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};

use super::protocol::{Heard, InForce, Nonces, Proxy, Reply, Told, check_names, check_type, resource_errors};
use super::secrets::{Catalogue, Resource, SECRET, Unserved};
use crate::refusal::Refusal;

/// One stream.
#[derive(Default)]
pub(super) struct Sotw {
    pub(super) proxy: Proxy,
    pub(super) in_force: InForce,
    nonces: Nonces,
    wanted: Wanted,
    /// Names and versions sent last; `None` when the names have changed since.
    sent: Option<Vec<(String, String)>>,
    ever_sent: bool,
    told: Told,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Wanted {
    #[default]
    Unasked,
    Everything,
    Names(Vec<String>),
}

impl Sotw {
    /// Takes in a request.
    pub(super) fn hear(&mut self, request: DiscoveryRequest) -> Result<Heard, Refusal> {
        check_type(&request.type_url)?;
        check_names(&request.resource_names)?;
        self.proxy.learn(request.node.as_ref());
        let mut heard = self.nonces.hear(&request.response_nonce, request.error_detail.as_ref());
        if heard == Heard::Accepts && !self.nonces.is_of_last(&request.version_info) {
            // It asks for something else before it has said anything about the last response.
            heard = Heard::Asks;
        }
        if heard == Heard::Stale {
            return Ok(heard);
        }
        self.in_force.heard(&heard);
        let wanted = match (&self.wanted, request.resource_names) {
            (Wanted::Unasked | Wanted::Everything, names) if names.is_empty() => Wanted::Everything,
            (Wanted::Unasked | Wanted::Everything | Wanted::Names(_), names) => {
                Wanted::Names(once_each(names))
            }
        };
        if wanted != self.wanted {
            self.wanted = wanted;
            self.sent = None;
        }
        Ok(heard)
    }

    /// The response that the stream needs now, if any.
    pub(super) fn reply(&mut self, catalogue: &Catalogue<'_>) -> Reply<DiscoveryResponse> {
        let (resources, unserved) = self.collect(catalogue);
        let news = self.told.news(&unserved);
        let now: Vec<_> = resources.iter().map(|it| (it.name.clone(), it.version.clone())).collect();
        // What is on its way is not gone: the proxy keeps what it has.
        let waits = unserved.iter().any(|(_, why)| *why == Unserved::OnItsWay);
        let nothing_yet = now.is_empty() && (waits || !self.ever_sent);
        let nothing_asked = now.is_empty() && self.wanted == Wanted::Names(Vec::new());
        if nothing_yet || nothing_asked || self.sent.as_ref() == Some(&now) {
            self.in_force.unchanged(catalogue.view.version);
            return Reply { response: None, unserved: news };
        }
        self.sent = Some(now);
        self.ever_sent = true;
        self.in_force.sent(catalogue.view.version);
        let nonce = self.nonces.draw();
        let response = response(self.nonces.count().to_string(), nonce, resources, &unserved);
        Reply { response: Some(response), unserved: news }
    }

    fn collect(&self, catalogue: &Catalogue<'_>) -> (Vec<Resource>, Vec<(String, Unserved)>) {
        match &self.wanted {
            Wanted::Unasked => (Vec::new(), Vec::new()),
            Wanted::Everything => (catalogue.everything(), Vec::new()),
            Wanted::Names(names) => collect(catalogue, names),
        }
    }
}

/// The answer to a request that is no stream.
pub(super) fn fetch(
    request: DiscoveryRequest,
    catalogue: &Catalogue<'_>,
) -> Result<DiscoveryResponse, Refusal> {
    let names = once_each(request.resource_names);
    let (resources, unserved) = match names.is_empty() {
        true => (catalogue.everything(), Vec::new()),
        false => collect(catalogue, &names),
    };
    if resources.is_empty() && unserved.iter().any(|(_, why)| *why == Unserved::OnItsWay) {
        return Err(Refusal::Starting);
    }
    if resources.is_empty() {
        let why: Vec<_> = unserved.iter().map(|(name, why)| format!("`{name}`: {why}")).collect();
        return Err(Refusal::NoSecret(why.join(", ")));
    }
    Ok(response(catalogue.view.version.to_string(), String::new(), resources, &unserved))
}

fn collect(catalogue: &Catalogue<'_>, names: &[String]) -> (Vec<Resource>, Vec<(String, Unserved)>) {
    let (mut resources, mut unserved) = (Vec::new(), Vec::new());
    for name in names {
        match catalogue.serve(name) {
            Ok(resource) => resources.push(resource),
            Err(why) => unserved.push((name.clone(), why)),
        }
    }
    (resources, unserved)
}

fn response(
    version_info: String,
    nonce: String,
    resources: Vec<Resource>,
    unserved: &[(String, Unserved)],
) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info,
        resources: resources.into_iter().map(|resource| resource.body).collect(),
        type_url: SECRET.to_owned(),
        nonce,
        resource_errors: resource_errors(unserved),
        ..Default::default()
    }
}

fn once_each(names: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(name.clone())).collect()
}
