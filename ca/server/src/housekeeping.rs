//! Housekeeping: documents that have stopped mattering are forgotten, so that the state stays as large as what lives.
//!
//! Laws: only what time has made meaningless goes: revocations of certificates that have expired, join tokens that
//! have expired, orders to renew whose window has ended, acknowledgements of nodes that are gone, clusters that were removed, issuers (with their lists) and JWT keys of replicas that are gone, in the records and in the
//! bundle. The ledger keeps all of it for ever. Each deletion requires the document to be as it was read. While the
//! clock is in doubt, or has not been steady for hours, nothing goes: a clock that is wrong must not make the authority
//! forget what it revoked.
//! Not here: this replica's own keys, which its rotation forgets (`rotate`).

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::authority::AuthorityKind;
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction, Version};
use rhizome_core::tokens::JoinToken;
use rhizome_id::{ReplicaName, Timestamp};

use crate::ca::Ca;
use crate::clusters;
use crate::error::ApiError;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(600);
/// How long something that has ended is still shown: somebody may be looking for the reason of this morning's alarm.
const KEPT_SECONDS: i64 = 86_400;
/// Documents forgotten in one transaction.
const BATCH: usize = 500;

impl Ca {
    /// Forgets again and again until the process stops.
    pub(crate) async fn keep_house(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            match self.forget_ended().await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "documents that stopped mattering were forgotten"),
                Err(cause) => tracing::warn!(%cause, "housekeeping failed; trying again later"),
            }
        }
    }

    /// Forgets what ended more than a day ago.
    pub(crate) async fn forget_ended(self: &Arc<Self>) -> Result<usize, ApiError> {
        // One replica does it for all.
        if !self.clock.settled() || self.right().is_none() {
            return Ok(0);
        }
        let before = self.ports.clock.now().minus(KEPT_SECONDS);
        let mut ended = self.ended_in_state(before);
        ended.extend(self.ended_tokens(before).await?);
        self.prune_bundle(before).await?;
        for batch in ended.chunks(BATCH) {
            let forget = |transaction: Transaction, (key, version): &(DocumentKey, Version)| {
                transaction.require_unchanged(key.clone(), *version).delete(key.clone())
            };
            let transaction = self.fenced(Transaction::named("forget what ended"))?;
            self.commit(batch.iter().fold(transaction, forget)).await?;
        }
        Ok(ended.len())
    }

    pub(crate) fn ended_in_state(&self, before: Timestamp) -> Vec<(DocumentKey, Version)> {
        let state = self.state();
        let revocations = state
            .revocations()
            .values()
            .filter(|it| it.value.not_after < before)
            .map(|it| (DocumentKey::new(Kind::Revocation, it.value.serial.to_string()), it.version));
        let left =
            |principal: &str| state.node_of(principal).is_none_or(|node| node.value.not_after < before);
        let subscribers = state.subscribers().iter().filter(|(name, it)| left(name) && it.value.at < before);
        let subscribers =
            subscribers.map(|(name, it)| (DocumentKey::new(Kind::Subscriber, name.clone()), it.version));
        let holders = state.foreign_holders().iter().filter(|(name, it)| left(name) && it.value.at < before);
        let holders =
            holders.map(|(name, it)| (DocumentKey::new(Kind::ForeignHolder, name.clone()), it.version));
        // What ends of this replica's own is forgotten with its key, by the machine of authorities.
        let elsewhere = |replica: &ReplicaName| *replica != self.settings.replica;
        let issuers = state.authorities().values().filter(|it| {
            let authority = &it.value;
            authority.kind == AuthorityKind::Issuer
                && elsewhere(&authority.replica)
                && authority.certificate.not_after() < before
        });
        let issuers = issuers.flat_map(|it| {
            let list = state.crls().get(&it.value.id).map(|list| (list.value.key(), list.version));
            list.into_iter().chain([(it.value.key(), it.version)])
        });
        let foreign = state
            .jwt_authorities()
            .values()
            .filter(|it| elsewhere(&it.value.replica) && it.value.jwt_key.not_after() < before);
        let foreign =
            foreign.map(|it| (DocumentKey::new(Kind::JwtAuthority, it.value.id.to_string()), it.version));
        let renewals = state
            .renewals()
            .values()
            .filter(|it| it.value.order.deadline < before)
            .map(|it| (it.value.key(), it.version));
        let clusters = state.clusters().values().filter(|it| clusters::is_over(&it.value, before));
        let clusters = clusters.flat_map(|it| {
            let report = state.cluster_reports().get(&it.value.name);
            let report = report.map(|report| (report.value.key(), report.version));
            report.into_iter().chain([(it.value.key(), it.version)])
        });
        let ended = revocations.chain(clusters).chain(subscribers).chain(holders).chain(issuers);
        ended.chain(foreign).chain(renewals).collect()
    }

    /// Publishes the bundle without JWT keys that ended before `before`: those of replicas that did not come back.
    async fn prune_bundle(self: &Arc<Self>, before: Timestamp) -> Result<(), ApiError> {
        let transaction = self.fenced(Transaction::named("prune bundle"))?;
        let (transaction, _) = self.republishing(transaction, None, None, before)?;
        if !transaction.writes.is_empty() {
            self.commit(transaction).await?;
        }
        Ok(())
    }

    async fn ended_tokens(&self, before: Timestamp) -> Result<Vec<(DocumentKey, Version)>, ApiError> {
        let mut ended = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.ports.store.documents(Kind::Token, after.as_deref(), BATCH).await?;
            let Some(last) = page.last() else { return Ok(ended) };
            after = Some(last.key.id.clone());
            for document in page {
                let token = document.read::<JoinToken>().map_err(|bad| ApiError::Bug(bad.to_string()))?;
                if token.value.expires_at < before {
                    ended.push((document.key, token.version));
                }
            }
        }
    }
}
