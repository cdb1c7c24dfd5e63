//! What the state knows of foreign trust domains: relationships, their bundles, and which node holds which.
//!
//! Laws: bundles stand side by side by trust domain and are never merged. Nodes hear of a foreign bundle when verifiers
//! get another one from it, and not of every fetch that brought nothing new.

use std::sync::Arc;

use imbl::OrdMap;
use rhizome_id::TrustDomain;
use rhizome_x509::TrustAnchors;

use super::{PublishedBundle, State, StateError, shared};
use crate::documents::{Document, DocumentKey, Kind, Version, Versioned};
use crate::federation::{ForeignHolder, ForeignRecord, Relationship};

/// A foreign trust domain as it stands.
#[derive(Debug)]
pub struct Foreign {
    /// As it is stored.
    pub record: ForeignRecord,
    /// The bundle in force, ready to verify with; absent while there is none.
    pub bundle: Option<PublishedBundle>,
}

/// Everything about foreign trust domains.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreigners {
    relationships: OrdMap<TrustDomain, Versioned<Arc<Relationship>>>,
    bundles: OrdMap<TrustDomain, Versioned<Arc<Foreign>>>,
    holders: OrdMap<String, Versioned<Arc<ForeignHolder>>>,
}

impl Foreigners {
    /// Takes a document in; whether it says anything new to those who are told of its kind.
    pub(super) fn put(&mut self, document: &Document) -> Result<bool, StateError> {
        if document.key.kind == Kind::Federation {
            let relationship = shared(document.read::<Relationship>()?);
            self.relationships.insert(relationship.value.trust_domain.clone(), relationship);
            return Ok(true);
        }
        if document.key.kind == Kind::ForeignHolder {
            self.holders.insert(document.key.id.clone(), shared(document.read::<ForeignHolder>()?));
            return Ok(true);
        }
        let Versioned { version, value: record } = document.read::<ForeignRecord>()?;
        let domain = record.trust_domain.clone();
        let before = self.bundles.get(&domain).and_then(|it| it.value.record.bundle.as_ref());
        let same = match (before, &record.bundle) {
            (Some(before), Some(after)) => before.verifies_as(after),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let bundle = record.bundle.as_ref().map(|held| held.bundle(domain.clone())).transpose()?;
        let bundle = bundle.map(|bundle| {
            let anchors = Arc::new(TrustAnchors::from_bundle(&bundle));
            PublishedBundle { bundle, anchors }
        });
        let value = Arc::new(Foreign { record, bundle });
        self.bundles.insert(domain, Versioned { version, value });
        Ok(!same)
    }

    pub(super) fn delete(&mut self, key: &DocumentKey) {
        if key.kind == Kind::ForeignHolder {
            self.holders.remove(&key.id);
        } else if let Ok(domain) = key.id.parse::<TrustDomain>() {
            match key.kind == Kind::Federation {
                true => drop(self.relationships.remove(&domain)),
                false => drop(self.bundles.remove(&domain)),
            }
        }
    }

    pub(super) fn version_of(&self, key: &DocumentKey) -> Option<Version> {
        if key.kind == Kind::ForeignHolder {
            return self.holders.get(&key.id).map(|it| it.version);
        }
        let domain = key.id.parse::<TrustDomain>().ok()?;
        match key.kind == Kind::Federation {
            true => self.relationships.get(&domain).map(|it| it.version),
            false => self.bundles.get(&domain).map(|it| it.version),
        }
    }
}

impl State {
    /// Relationships with foreign trust domains.
    pub const fn relationships(&self) -> &OrdMap<TrustDomain, Versioned<Arc<Relationship>>> {
        &self.foreigners.relationships
    }

    /// What there is of foreign trust domains; one may be here without a bundle.
    pub const fn foreign(&self) -> &OrdMap<TrustDomain, Versioned<Arc<Foreign>>> {
        &self.foreigners.bundles
    }

    /// Which foreign bundles nodes have in force, by principal.
    pub const fn foreign_holders(&self) -> &OrdMap<String, Versioned<Arc<ForeignHolder>>> {
        &self.foreigners.holders
    }
}
