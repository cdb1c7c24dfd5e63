//! Revocation lists in practice: signs what `rhizome_core::crl` says is due, and shows all of them to nodes.
//!
//! Laws: never on the way of an issuance. The ledger's record is durable before the signature, the document before
//! anybody is told; a restart serves the same lists. An issuer signs nothing before its own list is stored, and when it
//! is put to work by hand not before every connected node was told. One signing at a time: what is revoked meanwhile is
//! in the next list, together. A list that cannot be signed holds up neither other lists nor the start; it is tried again
//! ever more slowly.
//! Not here: what is due and what it says (`rhizome_core::crl`), telling nodes (`api::sync`). Sources: ADR 0013.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::authority::AuthorityKind;
use rhizome_core::crl::{self, CrlRecord, Due};
use rhizome_core::documents::{DocumentKey, Kind, Stored, Transaction};
use rhizome_core::ports::{KeyRingError, StoreError};
use rhizome_core::state::State;
use rhizome_id::{AuthorityId, Timestamp};
use rhizome_proto::node::v1 as wire;
use rhizome_x509::{CrlSpec, prepare_crl};
use tokio::time::Instant;

use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

/// How often it looks when nothing changes: entries expire by themselves.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Wait after a failure: doubled with every further one of the same issuer, up to the latter.
const AGAIN: Duration = Duration::from_secs(1);
const AT_LATEST: Duration = Duration::from_secs(300);
/// How long an issuer that is put to work by hand waits for connected nodes to be told of its list. A node that does not
/// read its stream for this long holds nobody up further.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks whether they were told.
const GLANCE: Duration = Duration::from_millis(10);
/// Nodes named when they were not told.
const NAMED: usize = 10;

/// Issuers whose list could not be signed, how often in a row, and when to try again.
pub(crate) type Setbacks = BTreeMap<AuthorityId, Setback>;

/// A list that could not be signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setback {
    failures: u32,
    again_at: Instant,
}

impl Setback {
    fn after(earlier: Option<&Self>) -> Self {
        let failures = earlier.map_or(0, |it| it.failures);
        let wait = AGAIN.saturating_mul(2_u32.saturating_pow(failures)).min(AT_LATEST);
        Self { failures: failures.saturating_add(1), again_at: Instant::now() + wait }
    }
}

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
            let wait = if self.sign_crls_or_say().await { self.next_look_at_crls().await } else { AGAIN };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How long it may rest.
    async fn next_look_at_crls(&self) -> Duration {
        let next = self.signing_crls.lock().await.values().map(|it| it.again_at).min();
        next.map_or(LOOK_EVERY, |at| at.saturating_duration_since(Instant::now()).min(LOOK_EVERY))
    }

    /// Signs every list that is due, and says in the log which could not be. Whether it could see what is due.
    pub(crate) async fn sign_crls_or_say(self: &Arc<Self>) -> bool {
        let outcome = self.sign_crls(None).await;
        if let Err(cause) = &outcome {
            self.metrics.crl_failures.inc();
            tracing::error!(%cause, "revocation lists could not be looked at; trying again");
        }
        outcome.is_ok()
    }

    /// Sees to it that the list of `issuer` is stored, before that issuer signs anything. What becomes of the lists of
    /// others does not matter here.
    ///
    /// # Errors
    /// Why it could not be signed.
    pub(crate) async fn have_crl_of(self: &Arc<Self>, issuer: &AuthorityId) -> Result<(), ApiError> {
        let needs_one = |state: &State| {
            let authority = state.authorities().get(issuer);
            authority.is_some_and(|it| it.value.kind == AuthorityKind::Issuer)
                && !state.crls().contains_key(issuer)
        };
        self.sign_crls(Some(issuer)).await?;
        if needs_one(&self.state()) {
            let problem = "has no revocation list yet, so it may not sign; try again";
            return Err(ApiError::Conflict { what: "issuer", name: issuer.to_string(), problem });
        }
        Ok(())
    }

    /// Signs every list that is due and not waiting after a failure, and at any rate that of `needed`. One that cannot be
    /// signed, for want of its key, holds up no other.
    ///
    /// # Errors
    /// What was wrong with the list of `needed`, or with the clock.
    async fn sign_crls(self: &Arc<Self>, needed: Option<&AuthorityId>) -> Result<(), ApiError> {
        let mut setbacks = self.signing_crls.lock().await;
        let now = self.now()?;
        let mut due = crl::due(&self.state(), now);
        due.retain(|it| self.signs_list_of(&it.issuer));
        setbacks.retain(|issuer, _| due.iter().any(|it| it.issuer == *issuer));
        let mut outcome = Ok(());
        for due in due {
            let is_needed = needed == Some(&due.issuer);
            if !is_needed && setbacks.get(&due.issuer).is_some_and(|it| it.again_at > Instant::now()) {
                continue;
            }
            match self.sign_crl(&due, now).await {
                Ok(()) => {
                    setbacks.remove(&due.issuer);
                }
                // Somebody else signed it, or its issuer is gone: the next look tells.
                Err(ApiError::Store(StoreError::Conflict { .. })) => {}
                Err(cause) => {
                    self.metrics.crl_failures.inc();
                    tracing::error!(issuer = %due.issuer, %cause, "a revocation list could not be signed; trying again");
                    // A store that fails fails for all, and comes back for all.
                    let earlier = setbacks.get(&due.issuer).filter(|_| !matches!(cause, ApiError::Store(_)));
                    let setback = Setback::after(earlier);
                    setbacks.insert(due.issuer, setback);
                    if is_needed {
                        outcome = Err(cause);
                    }
                }
            }
        }
        drop(setbacks);
        self.count_crls(now);
        outcome
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
        // Before the record: a key that is missing, or another one beside a restored database, is met at every try.
        let key = self.ports.keys.key(&issuer.value.key).await.map_err(IssueError::from)?;
        if key.public_key != *issuer.value.certificate.public_key() {
            let cause = format!("it does not belong to the certificate of {}", due.issuer);
            return Err(IssueError::Keys(KeyRingError::Mismatch { id: key.id, cause }).into());
        }
        let count = due.revoked.len();
        let detail =
            format!("number {}, {count} entries, tbs {}: {}", due.number, linted.digest(), due.reason);
        let entry = self.changed("server", "crl.sign", due.issuer.as_str(), &detail);
        self.commit(Transaction::named("record crl").record(entry)).await?;
        let signature = self.ports.keys.sign(&issuer.value.key, &linted.to_be_signed()).await;
        let crl = match linted.seal(signature.map_err(IssueError::from)?) {
            Ok(crl) => crl,
            Err(cause) => {
                self.stop_for_a_bad_signature(&cause);
                return Err(bug(cause.to_string()));
            }
        };
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

    /// Issuers of all replicas whose list is not what it must be, with the replica that signs it and the reason.
    pub(crate) fn crls_behind(&self, state: &State, now: Timestamp) -> Vec<String> {
        let behind = crl::behind(state, now).into_iter();
        behind.map(|(replica, due)| format!("{} of replica {replica}: {}", due.issuer, due.reason)).collect()
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
