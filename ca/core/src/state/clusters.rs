//! What the state knows of clusters with a Rhizome of their own.

use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::{ClusterName, NodeName};

use super::{State, StateError, shared};
use crate::caller::{AttestationMethod, Principal};
use crate::clusters::{Cluster, ClusterReport};
use crate::documents::{Document, DocumentKey, Kind, Version, Versioned};

/// Everything about clusters.
#[derive(Clone, Debug, Default)]
pub(super) struct Clusters {
    clusters: OrdMap<ClusterName, Versioned<Arc<Cluster>>>,
    reports: OrdMap<ClusterName, Versioned<Arc<ClusterReport>>>,
}

impl Clusters {
    pub(super) fn put(&mut self, document: &Document) -> Result<(), StateError> {
        if document.key.kind == Kind::Cluster {
            let cluster = shared(document.read::<Cluster>()?);
            self.clusters.insert(cluster.value.name.clone(), cluster);
        } else {
            let report = shared(document.read::<ClusterReport>()?);
            self.reports.insert(report.value.cluster.clone(), report);
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, key: &DocumentKey) {
        if let Ok(name) = key.id.parse::<ClusterName>() {
            match key.kind == Kind::Cluster {
                true => drop(self.clusters.remove(&name)),
                false => drop(self.reports.remove(&name)),
            }
        }
    }

    pub(super) fn version_of(&self, key: &DocumentKey) -> Option<Version> {
        let name = key.id.parse::<ClusterName>().ok()?;
        match key.kind == Kind::Cluster {
            true => self.clusters.get(&name).map(|it| it.version),
            false => self.reports.get(&name).map(|it| it.version),
        }
    }
}

impl State {
    /// Clusters with a Rhizome of their own, by name; removed ones are here until nothing of theirs is valid.
    pub const fn clusters(&self) -> &OrdMap<ClusterName, Versioned<Arc<Cluster>>> {
        &self.clusters.clusters
    }

    /// What is known of each.
    pub const fn cluster_reports(&self) -> &OrdMap<ClusterName, Versioned<Arc<ClusterReport>>> {
        &self.clusters.reports
    }

    /// The cluster whose Rhizome `principal` is, if it is one: such a node vouches for no workload, and stands in a change
    /// of the root for its whole cluster.
    pub fn cluster_of(&self, principal: &Principal) -> Option<&Versioned<Arc<Cluster>>> {
        let Principal::Node { cluster, method: AttestationMethod::JoinToken, name } = principal else {
            return None;
        };
        self.cluster_of_node(cluster, name)
    }

    /// The cluster whose Rhizome is, or will be, the node `name` of `cluster`.
    pub fn cluster_of_node(
        &self,
        cluster: &ClusterName,
        name: &NodeName,
    ) -> Option<&Versioned<Arc<Cluster>>> {
        self.clusters().get(cluster).filter(|it| it.value.node == *name)
    }
}
