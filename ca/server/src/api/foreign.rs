//! Foreign bundles on the sync stream: down to nodes, and what nodes say they have in force.
//!
//! Laws: a node is sent the bundle of every foreign trust domain there is, and its rules say which of its workloads get
//! which; a bundle that is large comes in a message of its own. What a node says is kept durably as it was said; it counts
//! where it is about the bundle that is in force.
//! Not here: fetching (`federation`), the rest of the stream (`sync`).

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use rhizome_core::documents::{DocumentKey, Stored as _, Transaction};
use rhizome_core::federation::{ForeignHolder, HeldAs};
use rhizome_core::limits::FEDERATIONS;
use rhizome_core::ports::StoreError;
use rhizome_core::state::State;
use rhizome_id::TrustDomain;
use rhizome_proto::ca::v1::Bundle as WireBundle;
use rhizome_proto::node::v1 as wire;

use super::convert;
use crate::ca::Ca;
use crate::error::{ApiError, AuthError};

/// Foreign bundles that together have more bytes come in messages of their own, so that none has more than 4 MiB.
const BESIDE_RULES_BYTES: usize = 512 * 1024;
/// How often a report is tried again when its node renews at the same moment.
const TRIES: usize = 4;

/// What a node is told of foreign domains.
#[derive(Default)]
pub(super) struct ForeignNews {
    upserts: Vec<WireBundle>,
    removed: Vec<String>,
}

impl ForeignNews {
    /// All there is.
    pub(super) fn everything(state: &State) -> Self {
        let bundles = state.foreign().values().filter_map(|it| it.value.bundle.as_ref());
        Self { upserts: bundles.map(|it| convert::bundle(&it.bundle)).collect(), removed: Vec::new() }
    }

    /// What became of the document `key`, which is about a foreign bundle.
    pub(super) fn note(&mut self, state: &State, key: &DocumentKey) {
        let domain = key.id.parse::<TrustDomain>().ok();
        let foreign = domain.and_then(|domain| state.foreign().get(&domain));
        match foreign.and_then(|it| it.value.bundle.as_ref()) {
            Some(bundle) => self.upserts.push(convert::bundle(&bundle.bundle)),
            None => self.removed.push(key.id.clone()),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }

    /// Puts it into a batch, of which the last message makes it count.
    pub(super) fn add_to(self, messages: &mut Vec<wire::SyncResponse>) {
        let Self { upserts, removed } = self;
        let Some(mut last) = messages.pop() else { return };
        last.removed_federated_domains = removed;
        let bytes: usize = upserts.iter().map(WireBundle::encoded_len).sum();
        if bytes <= BESIDE_RULES_BYTES {
            last.federated_bundles = upserts;
        } else {
            let alone = |bundle| wire::SyncResponse {
                federated_bundles: vec![bundle],
                ..wire::SyncResponse::default()
            };
            messages.extend(upserts.into_iter().map(alone));
        }
        messages.push(last);
    }
}

impl Ca {
    /// Keeps durably which foreign bundles `who` has in force.
    pub(super) async fn hold_foreign(
        self: &Arc<Self>,
        who: &str,
        said: &wire::FederatedBundlesInForce,
    ) -> Result<(), ApiError> {
        let mut claimed = BTreeMap::new();
        for one in said.bundles.iter().take(FEDERATIONS) {
            let domain: TrustDomain = convert::read("trust_domain", &one.trust_domain)?;
            let digest = convert::read_digest("digest", &one.digest)?;
            claimed.insert(domain, HeldAs { sequence: one.sequence, digest });
        }
        for _ in 0..TRIES {
            match self.try_to_hold(who, &claimed).await {
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        self.try_to_hold(who, &claimed).await
    }

    async fn try_to_hold(
        self: &Arc<Self>,
        who: &str,
        claimed: &BTreeMap<TrustDomain, HeldAs>,
    ) -> Result<(), ApiError> {
        let state = self.state();
        let node = state.node_of(who).ok_or_else(|| AuthError::Unknown { who: who.to_owned() })?;
        // As it was said, also of a bundle that this replica has not taken in yet; whoever counts compares.
        let held = claimed.clone();
        if state.foreign_holders().get(who).is_some_and(|known| known.value.held == held) {
            return Ok(());
        }
        let holder = ForeignHolder { principal: who.to_owned(), held, at: self.ports.clock.now() };
        let transaction = Transaction::named("note foreign bundles");
        let transaction = transaction.require_unchanged(node.value.key(), node.version);
        self.commit(transaction.put(&holder)).await?;
        Ok(())
    }
}
