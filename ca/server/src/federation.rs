//! Federation in practice: one task for each foreign trust domain fetches its bundle when that is due.
//!
//! Laws: nothing is decided here that `rhizome_core::federation` can decide. A domain that is slow, hostile or away costs
//! its own task and nothing else; whether there is a foreign bundle or not, issuing goes on. What was fetched counts when
//! it is stored, and only for the relationship as it was when it was asked.
//! Not here: the request itself (`fetch`), our own endpoint (`endpoint`), administrators' verbs (`api::admin`).
//! Sources: SPIFFE Federation §4 and §7; ca/docs/federation.md; ADR 0018.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rhizome_core::documents::{Stored as _, Transaction, Versioned};
use rhizome_core::federation::{EndpointProfile, ForeignRecord, HeldBundle, Relationship, Trouble, judge};
use rhizome_core::ledger::{Entry, Event};
use rhizome_core::ports::StoreError;
use rhizome_core::state::{Foreign, State};
use rhizome_id::{Digest, SpiffeId, Timestamp, TrustDomain};
use rhizome_tls::{EndpointConnection, EndpointTrust, WebRoots};
use rhizome_x509::{Bundle, SpiffeDocument, TrustAnchors};
use tokio_util::sync::CancellationToken;

use crate::ca::Ca;
use crate::error::ApiError;
use crate::quota::Quota;
use crate::settings::DoorLimits;

mod endpoint;
mod fetch;

pub(crate) use endpoint::Endpoint;
use fetch::{FetchError, Fetched};

/// How often a domain's task looks whether a fetch is due: a set clock and a hand-given bundle are noticed soon.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often new and ended relationships are looked for when nothing says that there are any.
const SUPERVISE_EVERY: Duration = Duration::from_secs(10);

/// Fingerprints told when none fits.
const ROOTS_TOLD: usize = 4;

/// What federation needs of the process.
pub(crate) struct Federation {
    /// Whom endpoints of the public web are believed by.
    web_roots: WebRoots,
    /// One fetch of a domain at a time.
    turns: Mutex<BTreeMap<TrustDomain, Arc<tokio::sync::Mutex<()>>>>,
    /// Callers of our endpoint, counted apart from those of the other doors.
    pub(crate) quota: Quota,
}

impl Federation {
    pub(crate) fn new(web_roots: Option<WebRoots>, limits: DoorLimits) -> Self {
        let web_roots = web_roots.unwrap_or_else(WebRoots::public);
        Self { web_roots, turns: Mutex::default(), quota: Quota::new(limits) }
    }

    fn turn(&self, domain: &TrustDomain) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(domain.clone()).or_default())
    }

    fn forget(&self, domain: &TrustDomain) {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(domain);
    }
}

/// The task of one domain: ended by the token; alive while somebody holds what the weak reference points to.
type Task = (CancellationToken, Weak<()>);

impl Ca {
    /// Keeps one task for each relationship until the process stops.
    pub(crate) async fn keep_federation(self: Arc<Self>) {
        let mut changes = self.changes();
        let mut tasks: BTreeMap<TrustDomain, Task> = BTreeMap::new();
        loop {
            changes.mark_unchanged();
            self.supervise(&mut tasks);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(SUPERVISE_EVERY) => {}
            }
        }
    }

    fn supervise(self: &Arc<Self>, tasks: &mut BTreeMap<TrustDomain, Task>) {
        let state = self.state();
        tasks.retain(|domain, (stop, _)| {
            let stays = state.relationships().contains_key(domain);
            if !stays {
                stop.cancel();
                self.federation.forget(domain);
                self.metrics.forget_federation(domain);
            }
            stays
        });
        for domain in state.relationships().keys() {
            let runs = tasks.get(domain).is_some_and(|(_, alive)| alive.strong_count() > 0);
            if runs {
                continue;
            }
            let (stop, alive) = (CancellationToken::new(), Arc::new(()));
            tasks.insert(domain.clone(), (stop.clone(), Arc::downgrade(&alive)));
            let (ca, domain) = (Arc::clone(self), domain.clone());
            self.spawner.spawn_until_stop("federation", async move {
                let _alive = alive;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = ca.follow_domain(&domain) => {}
                }
            });
        }
    }

    async fn follow_domain(self: &Arc<Self>, domain: &TrustDomain) {
        loop {
            if self.is_ours_to_fetch(domain) {
                match self.fetch_if_due(domain).await {
                    Ok(()) | Err(ApiError::NotFound { .. }) => {}
                    Err(cause) => {
                        tracing::warn!(%domain, %cause, "what came of a fetch could not be kept; trying again");
                        tokio::time::sleep(SUPERVISE_EVERY).await;
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether the bundle of `domain` is to be fetched by this replica now: one of them does, whoever has the lease.
    pub(crate) fn is_ours_to_fetch(&self, domain: &TrustDomain) -> bool {
        self.right().is_some() && self.is_due(domain)
    }

    fn is_due(&self, domain: &TrustDomain) -> bool {
        let state = self.state();
        let now = self.ports.clock.now();
        state.foreign().get(domain).is_none_or(|it| it.value.record.is_due(now))
    }

    /// Fetches the bundle of `domain` unless somebody else just did.
    ///
    /// # Errors
    /// As [`Ca::fetch_domain`].
    pub(crate) async fn fetch_if_due(self: &Arc<Self>, domain: &TrustDomain) -> Result<(), ApiError> {
        let turn = self.federation.turn(domain);
        let _turn = turn.lock().await;
        if self.is_due(domain) { self.fetch_in_turn(domain).await } else { Ok(()) }
    }

    /// Fetches the bundle of `domain` now and keeps what came of it, be it a failure.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] without a relationship; otherwise when it could not be kept.
    pub(crate) async fn fetch_domain(self: &Arc<Self>, domain: &TrustDomain) -> Result<(), ApiError> {
        self.relationship(domain)?;
        let turn = self.federation.turn(domain);
        let _turn = turn.lock().await;
        self.fetch_in_turn(domain).await
    }

    fn relationship(&self, domain: &TrustDomain) -> Result<Versioned<Arc<Relationship>>, ApiError> {
        let missing = || ApiError::NotFound { what: "relationship", name: domain.to_string() };
        self.state().relationships().get(domain).cloned().ok_or_else(missing)
    }

    async fn fetch_in_turn(self: &Arc<Self>, domain: &TrustDomain) -> Result<(), ApiError> {
        let relationship = self.relationship(domain)?;
        // Before anything is asked: what is set meanwhile, by hand or by another replica, makes keeping it a conflict.
        let held = self.state().foreign().get(domain).cloned();
        let fetched = self.ask(&relationship.value).await;
        let now = self.now()?;
        match self.keep(&relationship, held.as_ref(), fetched, now).await {
            // Somebody else was faster, or the relationship has changed: the next look sees what there is.
            Err(StoreError::Conflict { .. }) => Ok(()),
            kept => Ok(kept?),
        }
    }

    /// Asks the endpoint, and makes sure that it is the one.
    async fn ask(&self, relationship: &Relationship) -> Result<Fetched, Trouble> {
        let trust = self.trust_in(relationship, &self.state())?;
        let clock = self.judging_clock();
        let fetched = fetch::fetch(relationship, &trust, clock).await.map_err(|cause| trouble_of(&cause))?;
        if let (EndpointTrust::Pinned, EndpointProfile::HttpsSpiffe { endpoint_id }) =
            (&trust, &relationship.profile)
        {
            verify_pinned(relationship, endpoint_id, &fetched, self.judging_time())?;
        }
        Ok(fetched)
    }

    /// By what the endpoint is to be believed now.
    fn trust_in(&self, relationship: &Relationship, state: &State) -> Result<EndpointTrust, Trouble> {
        let EndpointProfile::HttpsSpiffe { endpoint_id } = &relationship.profile else {
            return Ok(EndpointTrust::Web(self.federation.web_roots.clone()));
        };
        let domain = endpoint_id.trust_domain();
        let own = state.bundle().filter(|_| domain == *state.trust_domain()).map(|it| &*it.value);
        let foreign = state.foreign().get(&domain).and_then(|it| it.value.bundle.as_ref());
        if let Some(bundle) = own.or(foreign) {
            return Ok(EndpointTrust::Spiffe {
                anchors: Arc::clone(&bundle.anchors),
                id: endpoint_id.clone(),
            });
        }
        if domain == relationship.trust_domain && relationship.first_fetch.is_some() {
            return Ok(EndpointTrust::Pinned);
        }
        Err(Trouble {
            code: "no_bundle".to_owned(),
            detail: format!(
                "there is no bundle of {domain} yet, by which the endpoint {endpoint_id} is known"
            ),
            since: Timestamp::EPOCH,
            refused: false,
        })
    }

    fn judging_clock(&self) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let now = self.judging_time();
        Arc::new(move || now)
    }

    async fn keep(
        self: &Arc<Self>,
        asked: &Versioned<Arc<Relationship>>,
        known: Option<&Versioned<Arc<Foreign>>>,
        fetched: Result<Fetched, Trouble>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let domain = &asked.value.trust_domain;
        let mut draw = [0; 8];
        let drawn = self.ports.entropy.fill(&mut draw);
        // Without randomness the next fetch is at the hint's very end.
        let draw = drawn.map_or(0, |()| u64::from_be_bytes(draw));
        let record = known.map_or_else(
            || ForeignRecord::empty(domain.clone()),
            |known| ForeignRecord::clone(&known.value.record),
        );
        // By the very record that is replaced.
        let outcome = fetched.and_then(|fetched| {
            let judged = judge(&asked.value, record.bundle.as_ref(), &fetched.text, now);
            judged.map_err(|refusal| refused(refusal.code(), refusal.to_string()))
        });
        let label = outcome.as_ref().map_or_else(|trouble| trouble.code.clone(), |_judged| "ok".to_owned());
        self.metrics.federation_fetched(domain, &label);
        let (next, entry) = match outcome {
            Ok(judged) => {
                let (next, changed) = record.fetched(judged, now, draw);
                (next.clone(), changed.then(|| self.told(&next)).flatten())
            }
            Err(trouble) => {
                let (refused, detail) = (trouble.refused, trouble.detail.clone());
                let code = trouble.code.clone();
                let (next, new) = record.failed(trouble, now, draw);
                if refused {
                    tracing::error!(%domain, code, detail, "a foreign bundle was refused; the old one stays");
                } else {
                    tracing::warn!(%domain, code, detail, "a foreign bundle could not be fetched");
                }
                let entry = (refused && new).then(|| alarm(domain, code, detail, now));
                (next, entry)
            }
        };
        let transaction = Transaction::named("keep foreign bundle")
            .require_unchanged(asked.value.key(), asked.version)
            .put(&next);
        let transaction = match known {
            None => transaction.require_absent(next.key()),
            Some(known) => transaction.require_unchanged(next.key(), known.version),
        };
        let transaction = entry.into_iter().fold(transaction, Transaction::record);
        self.commit(transaction).await.map(drop)
    }

    /// The ledger's entry about a foreign bundle that is in force from now on.
    fn told(&self, record: &ForeignRecord) -> Option<Entry> {
        let held = record.bundle.as_ref()?;
        let detail = in_words(held);
        tracing::info!(domain = %record.trust_domain, detail, "a foreign bundle is in force");
        Some(self.changed("server", "federation.bundle", record.trust_domain.as_str(), &detail))
    }
}

/// What a foreign bundle holds, for the ledger and the log.
pub(crate) fn in_words(held: &HeldBundle) -> String {
    let roots: Vec<String> = held.anchors.iter().map(|anchor| anchor.fingerprint().to_string()).collect();
    format!("sequence {}, {} JWT keys, roots {}", held.sequence, held.jwt_keys.len(), roots.join(" "))
}

fn alarm(domain: &TrustDomain, code: String, detail: String, now: Timestamp) -> Entry {
    let by = format!("federation:{domain}");
    Entry::new(now, &Event::Refused { by, action: "federation.fetch".to_owned(), code, detail })
}

fn refused(code: &str, detail: String) -> Trouble {
    Trouble { code: code.to_owned(), detail, since: Timestamp::EPOCH, refused: true }
}

fn trouble_of(cause: &FetchError) -> Trouble {
    Trouble {
        code: cause.code().to_owned(),
        detail: cause.to_string(),
        since: Timestamp::EPOCH,
        refused: cause.is_refusal(),
    }
}

/// After a first fetch from whoever answered: the pinned root is in what came, and vouches for who it was.
fn verify_pinned(
    relationship: &Relationship,
    id: &SpiffeId,
    fetched: &Fetched,
    now: Timestamp,
) -> Result<(), Trouble> {
    let domain = &relationship.trust_domain;
    let malformed = |cause: rhizome_x509::BundleError| refused("document", cause.to_string());
    let document = SpiffeDocument::parse(domain.clone(), &fetched.text).map_err(malformed)?;
    let pinned = |fingerprint: Digest| Some(fingerprint) == relationship.first_fetch;
    let root = document.bundle.anchors().iter().find(|anchor| pinned(anchor.fingerprint()));
    let Some(root) = root else {
        let found: Vec<String> =
            document.bundle.anchors().iter().map(|anchor| anchor.fingerprint().to_string()).collect();
        let found = found.get(..ROOTS_TOLD).unwrap_or(&found).join(", ");
        let detail =
            format!("no root of the first bundle has the fingerprint that was named; it has {found}");
        return Err(refused("fingerprint", detail));
    };
    let (sequence, hint) = (document.bundle.sequence(), document.bundle.refresh_hint());
    let alone = Bundle::new(domain.clone(), sequence, hint, vec![root.clone()]).map_err(malformed)?;
    EndpointConnection::verify(&fetched.chain_der, id, &TrustAnchors::from_bundle(&alone), now)
        .map_err(|refusal| refused("identity", refusal.to_string()))
}
