//! Revocation lists in practice: signs what `rhizome_core::crl` says is due, and shows all of them to nodes.
//!
//! Laws: never on the way of an issuance. The ledger's record is durable before the signature, the document before
//! anybody is told; a restart serves the same lists. An issuer signs nothing before its own list is stored, and when it
//! is put to work by hand not before every connected node was told. One signing at a time: what is revoked meanwhile is
//! in the next list, together.
//! Not here: what is due and what it says (`rhizome_core::crl`), telling nodes (`api::sync`). Sources: ADR 0013.

use std::sync::Arc;
use std::time::Duration;

use rhizome_core::authority::AuthorityKind;
use rhizome_core::crl::{self, CrlRecord, Due, Reason};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction};
use rhizome_core::ports::StoreError;
use rhizome_core::state::State;
use rhizome_id::Timestamp;
use rhizome_proto::node::v1 as wire;
use rhizome_x509::{CrlSpec, prepare_crl};

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

/// How often it looks when nothing changes: entries expire by themselves.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Wait after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an issuer that is put to work by hand waits for connected nodes to be told of its list. A node that does not
/// read its stream for this long holds nobody up further.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks whether they were told.
const GLANCE: Duration = Duration::from_millis(10);
/// Nodes named when they were not told.
const NAMED: usize = 10;

/// Every list as it goes over the wire.
pub(crate) struct WireCrls {
    /// As the state counts.
    pub(crate) generation: u64,
    pub(crate) set: wire::CrlSet,
}

impl WireCrls {
    /// Every issuer's certificate is there, also of one without a list: nodes then know that the set is not whole.
    pub(crate) fn of(state: &State) -> Self {
        let issuers = state.authorities().values().filter(|it| it.value.kind == AuthorityKind::Issuer);
        let set = wire::CrlSet {
            crls_der: state.crls().values().map(|it| it.value.crl.der().to_vec().into()).collect(),
            issuers_der: issuers.map(|it| it.value.certificate.der().to_vec().into()).collect(),
        };
        Self { generation: state.crl_generation(), set }
    }
}

impl Ca {
    /// Keeps the lists in order until the process stops.
    pub(crate) async fn keep_crls(self: Arc<Self>) {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            let wait = match self.sign_crls().await {
                Ok(()) => LOOK_EVERY,
                Err(cause) => {
                    self.metrics.crl_failures.inc();
                    tracing::error!(%cause, "a revocation list could not be signed; trying again");
                    AGAIN
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Signs every list that is due.
    pub(crate) async fn sign_crls(self: &Arc<Self>) -> Result<(), ApiError> {
        let _one_at_a_time = self.signing_crls.lock().await;
        let now = self.now()?;
        for due in crl::due(&self.state(), now) {
            match self.sign_crl(&due, now).await {
                // Somebody else signed it, or its issuer is gone: the next look tells.
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                outcome => outcome?,
            }
        }
        self.count_crls(now);
        Ok(())
    }

    /// Records, signs, stores: the same order as for certificates.
    async fn sign_crl(self: &Arc<Self>, due: &Due, now: Timestamp) -> Result<(), ApiError> {
        let state = self.state();
        let Some(issuer) = state.authorities().get(&due.issuer) else { return Ok(()) };
        let spec = CrlSpec {
            issuer: &issuer.value.certificate,
            number: due.number,
            this_update: due.this_update,
            next_update: due.next_update,
            revoked: &due.revoked,
        };
        let bug = |cause: String| ApiError::Bug(cause);
        let linted = prepare_crl(&spec).map_err(|refused| bug(refused.to_string()))?;
        let count = due.revoked.len();
        let detail =
            format!("number {}, {count} entries, tbs {}: {}", due.number, linted.digest(), due.reason);
        let entry = self.changed("server", "crl.sign", due.issuer.as_str(), &detail);
        self.commit(Transaction::named("record crl").record(entry)).await?;
        let signature = self.ports.keys.sign(&issuer.value.key, &linted.to_be_signed()).await;
        let crl = linted.seal(signature.map_err(IssueError::from)?).map_err(|bad| bug(bad.to_string()))?;
        let record = CrlRecord { issuer: due.issuer.clone(), signed_at: now, crl };
        let authority = DocumentKey::new(Kind::Authority, due.issuer.to_string());
        let transaction = Transaction::named("store crl").require_unchanged(authority, issuer.version);
        let transaction = match due.replaces {
            None => transaction.require_absent(record.key()),
            Some(version) => transaction.require_unchanged(record.key(), version),
        };
        self.commit(transaction.put(&record)).await?;
        self.metrics.crls_signed.inc();
        tracing::info!(issuer = %due.issuer, number = due.number, entries = count, reason = %due.reason, "revocation list signed");
        if due.left_out > 0 {
            tracing::error!(issuer = %due.issuer, left_out = due.left_out, "the revocation list is full; rotate the issuer");
        }
        Ok(())
    }

    fn count_crls(&self, now: Timestamp) {
        let state = self.state();
        let entries: usize = state.crls().values().map(|it| it.value.crl.revoked().len()).sum();
        self.metrics.crl_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.metrics.crls_behind.set(i64::try_from(self.crls_behind(&state, now).len()).unwrap_or(i64::MAX));
    }

    /// Issuers of this replica whose list lacks a revoked certificate, or that have none, with the reason.
    pub(crate) fn crls_behind(&self, state: &State, now: Timestamp) -> Vec<String> {
        let behind = crl::due(state, now).into_iter().filter(|it| it.reason != Reason::Expired);
        behind.map(|it| format!("{}: {}", it.issuer, it.reason)).collect()
    }

    /// Waits until every connected node was told of the lists there are now, for [`PATIENCE`] at most; then names those
    /// with a valid certificate that were not, connected or away.
    pub(crate) async fn nodes_without_crls(&self) -> Vec<String> {
        let generation = self.state().crl_generation();
        let told = async {
            while self.presence.any_not_told(generation) {
                tokio::time::sleep(GLANCE).await;
            }
        };
        if tokio::time::timeout(PATIENCE, told).await.is_err() {
            tracing::warn!("connected nodes were not told of a new revocation list in time");
        }
        let (state, now) = (self.state(), self.ports.clock.now());
        let alive = state.nodes().iter().filter(|(_, node)| node.value.not_after >= now);
        let missed = alive.filter(|(_, node)| {
            let present = self.presence.of(&node.value.principal().to_string());
            present.is_none_or(|present| present.crls < generation)
        });
        missed.map(|(id, _)| id.clone()).take(NAMED).collect()
    }
}
