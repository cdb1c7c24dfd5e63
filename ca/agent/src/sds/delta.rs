//! Incremental: each response holds what changed of what the stream subscribed to.
//!
//! Laws: pure. A secret is sent when it differs from what the proxy has; a proxy that comes back says what it has and
//! is not sent it again; one that subscribes again to a name gets it again. A name that cannot be served, or no longer,
//! is said to be removed. Subscriptions count whatever the nonce; acceptance and refusal only with the last one.
//! Sources: Envoy's xDS protocol document, "Incremental".

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};

use super::protocol::{Heard, InForce, Nonces, Proxy, Reply, Told, check_names, check_type, resource_errors};
use super::secrets::{Catalogue, Resource, SECRET, Unserved};
use crate::refusal::Refusal;

/// The name that stands for everything.
const WILDCARD: &str = "*";

/// One stream.
#[derive(Default)]
pub(super) struct Delta {
    pub(super) proxy: Proxy,
    pub(super) in_force: InForce,
    nonces: Nonces,
    asked: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the proxy has: a version, or `None` for a name it was told to be removed.
    has: BTreeMap<String, Option<String>>,
    told: Told,
}

impl Delta {
    /// Takes in a request.
    pub(super) fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Refusal> {
        check_type(&request.type_url)?;
        self.proxy.learn(request.node.as_ref());
        let heard = self.nonces.hear(&request.response_nonce, request.error_detail.as_ref());
        self.in_force.heard(&heard);
        if !self.asked {
            self.asked = true;
            // A first request without names means everything (the protocol's old way of saying "*").
            self.wildcard = request.resource_names_subscribe.is_empty();
            check_names(request.initial_resource_versions.keys())?;
            let had = request.initial_resource_versions.into_iter();
            self.has = had.map(|(name, version)| (name, Some(version))).collect();
        } else {
            // Subscribing again asks for the secret again.
            for name in &request.resource_names_subscribe {
                self.has.remove(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            }
            self.names.remove(&name);
            self.has.remove(&name);
        }
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                self.wildcard = true;
            } else {
                self.names.insert(name);
            }
        }
        check_names(&self.names)?;
        Ok(heard)
    }

    /// The response that the stream needs now, if any.
    pub(super) fn reply(&mut self, catalogue: &Catalogue<'_>) -> Reply<DeltaDiscoveryResponse> {
        let (resources, unserved) = self.collect(catalogue);
        let news = self.told.news(&unserved);
        let present: BTreeSet<&str> = resources.iter().map(|it| it.name.as_str()).collect();
        let gone = |name: &&String| !present.contains(name.as_str()) && !catalogue.keeps(name);
        let lost =
            self.has.iter().filter(|(_, version)| version.is_some()).map(|(name, _)| name).filter(gone);
        // A name that is on its way is not said to be removed, unless the proxy had it and goes on with another one: what
        // was revoked must go.
        let never = unserved.iter().filter(|(_, why)| *why != Unserved::OnItsWay).map(|(name, _)| name);
        let never = never.filter(|name| !self.has.contains_key(*name));
        let removed: BTreeSet<String> = lost.chain(never).cloned().collect();
        let has = |it: &Resource| self.has.get(&it.name).and_then(Option::as_deref) == Some(&it.version);
        let changed: Vec<Resource> = resources.into_iter().filter(|it| !has(it)).collect();
        if changed.is_empty() && removed.is_empty() {
            self.in_force.unchanged(catalogue.view.version);
            return Reply { response: None, unserved: news };
        }
        self.has.extend(removed.iter().map(|name| (name.clone(), None)));
        self.has.extend(changed.iter().map(|it| (it.name.clone(), Some(it.version.clone()))));
        self.in_force.sent(catalogue.view.version);
        let nonce = self.nonces.draw();
        let response = DeltaDiscoveryResponse {
            system_version_info: self.nonces.count().to_string(),
            resources: changed.into_iter().map(wire).collect(),
            type_url: SECRET.to_owned(),
            removed_resources: removed.into_iter().collect(),
            nonce,
            resource_errors: resource_errors(&unserved),
            ..Default::default()
        };
        Reply { response: Some(response), unserved: news }
    }

    fn collect(&self, catalogue: &Catalogue<'_>) -> (Vec<Resource>, Vec<(String, Unserved)>) {
        let mut unserved = Vec::new();
        let mut resources: BTreeMap<String, Resource> = BTreeMap::new();
        if self.wildcard {
            resources.extend(catalogue.everything().into_iter().map(|it| (it.name.clone(), it)));
        }
        for name in &self.names {
            match catalogue.serve(name) {
                Ok(resource) => drop(resources.insert(name.clone(), resource)),
                Err(why) => unserved.push((name.clone(), why)),
            }
        }
        (resources.into_values().collect(), unserved)
    }
}

fn wire(resource: Resource) -> WireResource {
    let Resource { name, version, body } = resource;
    WireResource { name, version, resource: Some(body), ..Default::default() }
}
