//! The authority as one process holds it: ports, the current state behind one atomic pointer, and how it changes.
//!
//! Laws: the issuing path reads the state and never the database. A change is committed to the store first and taken
//! into the state after; when the outcome of a commit is unknown, the documents it wrote are read back before anybody
//! relies on them. Followers are told the new version and look for themselves.
//! Not here: issuing (`issue`), rotating (`rotate`), who may ask (`gate`).

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use rhizome_core::caller::AttestedCaller;
use rhizome_core::documents::{Document, DocumentKey, Kind, Transaction, Write};
use rhizome_core::issuance::{IssuedLeaf, Recorded};
use rhizome_core::ledger::{Entry, Event};
use rhizome_core::limits::CLOCK_BEHIND_SECONDS;
use rhizome_core::ports::{Committed, KeyInfo, StoreError};
use rhizome_core::state::{PublishedBundle, State};
use rhizome_id::{AuthorityId, KeyId, ReplicaNumber, Timestamp, TrustDomain};
use rhizome_proto::ca::v1 as wire;
use tokio::sync::{mpsc, oneshot, watch};

use crate::acknowledge::Acknowledgements;
use crate::api::convert;
use crate::clock::GuardedClock;
use crate::crl::{Setbacks, WireCrls};
use crate::error::{ApiError, IssueError};
use crate::federation::Federation;
use crate::follow::Following;
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::quota::Quota;
use crate::replicas::Standing;
use crate::rotate_root_world::RootRotation;
use crate::selfcheck::Lately;
use crate::serials::Serials;
use crate::settings::{Ports, Settings};
use crate::spawn::Spawner;
use crate::upstream::{Link, Upstream};

/// Documents read in one go while loading.
const PAGE: usize = 1_000;
/// Request names whose turns are kept; far more than can be in flight.
const REQUESTS_AT_ONCE: u64 = 100_000;
/// Bytes of certificates remembered for retries with the same request id, and for how long.
const REMEMBERED_BYTES: u64 = 32 << 20;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// How often a failing store is tried.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Refusals waiting to be recorded; more are counted and dropped, so that a flood of refusals costs no memory.
const WAITING_REFUSALS: usize = 1_024;

/// One authority process.
pub(crate) struct Ca {
    pub(crate) settings: Settings,
    /// Its clock is `clock`: nobody reads the machine's past the guard.
    pub(crate) ports: Ports,
    pub(crate) clock: Arc<GuardedClock>,
    pub(crate) serials: Serials,
    pub(crate) metrics: Metrics,
    pub(crate) quota: Quota,
    pub(crate) presence: Presence,
    pub(crate) acknowledgements: Acknowledgements,
    pub(crate) lately: Lately,
    /// How far it has followed what other replicas write.
    pub(crate) following: Following,
    /// Who it is among them; `None` where the store has one owner.
    pub(crate) standing: Option<Standing>,
    pub(crate) spawner: Spawner,
    pub(crate) federation: Federation,
    /// The Rhizome above, where this one is a cluster's own.
    pub(crate) upstream: Option<Upstream>,
    /// Whose turn it is among requests of one name.
    pub(crate) turns: Cache<(String, String), Arc<tokio::sync::Mutex<()>>>,
    pub(crate) recent: Cache<(String, String), Arc<Recorded<IssuedLeaf>>>,
    pub(crate) started_at: Timestamp,
    state: ArcSwap<State>,
    wire_bundle: ArcSwap<Option<Arc<wire::Bundle>>>,
    wire_crls: ArcSwap<WireCrls>,
    pub(crate) signing_crls: tokio::sync::Mutex<Setbacks>,
    /// Held by whoever changes authorities: a rotation by time and one by hand would undo each other.
    pub(crate) rotating: tokio::sync::Mutex<()>,
    /// Keys of roots and issuers whose records may or may not be stored.
    pub(crate) unplaced_keys: Mutex<Vec<(AuthorityId, KeyInfo)>>,
    /// Keys that nobody needs any more and that are still to be destroyed.
    pub(crate) spent_keys: Mutex<Vec<KeyId>>,
    /// When people were last told that an issuer is to be brought, in Unix seconds.
    pub(crate) asked_at: AtomicI64,
    /// What the change of the root needs to remember.
    pub(crate) root: RootRotation,
    /// A key made for JWT-SVIDs whose record may or may not be stored.
    pub(crate) spare_jwt_key: Mutex<Option<(AuthorityId, KeyInfo)>>,
    changes: watch::Sender<u64>,
    newest: AtomicI64,
    /// Of how many returns of the clock (`GuardedClock::returns`) `newest` knows.
    newest_after: AtomicU64,
    store_failed: AtomicBool,
    halted: AtomicBool,
    pub(crate) backing_up: tokio::sync::Mutex<()>,
    refusals: mpsc::Sender<Entry>,
}

impl Ca {
    /// Loads everything from the store.
    pub(crate) async fn load(
        settings: Settings,
        mut ports: Ports,
        spawner: Spawner,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Entry>), ApiError> {
        let clock = Arc::new(GuardedClock::new(Arc::clone(&ports.clock)));
        ports.clock = Arc::<GuardedClock>::clone(&clock);
        let shared = ports.store.is_shared();
        let since = ports.store.newest_version().await?;
        let state = load_state(&ports, settings.trust_domain.clone(), &settings).await?;
        let standing = if shared { Some(Standing::enter(&ports, &settings.replica).await?) } else { None };
        let alone = || ReplicaNumber::new(0).ok_or_else(|| ApiError::Bug("replica 0".into()));
        let number = standing.as_ref().map_or_else(alone, |it| Ok(it.number()))?;
        let recorded = newest_instant(&ports).await?;
        let newest = if settings.believe_clock { recorded.min(ports.clock.now()) } else { recorded };
        let (refusals, waiting) = mpsc::channel(WAITING_REFUSALS);
        let (changes, _) = watch::channel(state.cursor());
        let ca = Self {
            serials: Serials::new(number),
            metrics: Metrics::new(),
            quota: Quota::new(settings.limits),
            presence: Presence::default(),
            acknowledgements: Acknowledgements::default(),
            federation: Federation::new(settings.federation.web_roots.clone(), settings.limits),
            upstream: settings.upstream.clone().map(|it| Upstream::new(Link::new(it))),
            lately: Lately::default(),
            following: Following::from(shared, since),
            standing,
            recent: remembered(),
            turns: Cache::builder().max_capacity(REQUESTS_AT_ONCE).time_to_idle(REMEMBERED_FOR).build(),
            started_at: ports.clock.now(),
            wire_bundle: ArcSwap::from_pointee(wire_bundle(&state)),
            wire_crls: ArcSwap::from_pointee(WireCrls::of(&state)),
            signing_crls: tokio::sync::Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
            unplaced_keys: Mutex::default(),
            spent_keys: Mutex::default(),
            asked_at: AtomicI64::new(i64::MIN),
            root: RootRotation::default(),
            spare_jwt_key: Mutex::default(),
            state: ArcSwap::from_pointee(state),
            newest: AtomicI64::new(newest.unix()),
            newest_after: AtomicU64::new(0),
            clock,
            store_failed: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            backing_up: tokio::sync::Mutex::default(),
            settings,
            ports,
            spawner,
            changes,
            refusals,
        };
        let ca = Arc::new(ca);
        if newest < recorded {
            ca.record_step_back("the operator said so at the start", recorded).await?;
        }
        Ok((ca, waiting))
    }

    /// The current state: one atomic load.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The current bundle as it goes over the wire.
    pub(crate) fn wire_bundle(&self) -> Option<Arc<wire::Bundle>> {
        self.wire_bundle.load().as_ref().clone()
    }

    /// The current revocation lists as they go over the wire.
    pub(crate) fn wire_crls(&self) -> Arc<WireCrls> {
        self.wire_crls.load_full()
    }

    /// The current bundle.
    pub(crate) fn bundle(&self) -> Option<Arc<PublishedBundle>> {
        self.state.load().bundle().map(|it| Arc::clone(&it.value))
    }

    /// Tells of every change of the state.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// One reading of the clock, checked against the newest instant the ledger knows: a clock that went back would
    /// issue certificates that are not valid yet, or outlive what they should.
    ///
    /// # Errors
    /// [`IssueError::ClockWentBack`] beyond two minutes.
    pub(crate) fn now(self: &Arc<Self>) -> Result<Timestamp, IssueError> {
        let known = self.newest_after.load(Ordering::Acquire);
        let now = self.ports.clock.now();
        let seen = Timestamp::from_unix(self.newest.fetch_max(now.unix(), Ordering::AcqRel));
        let returns = self.clock.returns();
        if returns != known {
            // What was seen before the clock came back, and what was read before and noted after, was the future.
            let now = self.ports.clock.now();
            self.newest.store(now.unix(), Ordering::Release);
            if self.newest_after.swap(returns, Ordering::AcqRel) != returns {
                self.note_return(seen);
            }
            return Ok(now);
        }
        if seen.since(now) > CLOCK_BEHIND_SECONDS {
            return Err(IssueError::ClockWentBack { now, seen });
        }
        Ok(now)
    }

    /// Writes to the ledger that the clock came back, so that its last record tells the true time again, also to the
    /// next start.
    fn note_return(self: &Arc<Self>, seen: Timestamp) {
        let ca = Arc::clone(self);
        self.spawner.spawn("record the clock's return", async move {
            if let Err(cause) = ca.record_step_back("it came back from a step ahead", seen).await {
                tracing::warn!(%cause, "the return of the clock could not be recorded; the next record tells it");
            }
        });
    }

    async fn record_step_back(&self, why: &str, seen: Timestamp) -> Result<(), StoreError> {
        let now = self.ports.clock.now();
        tracing::warn!(%now, %seen, why, "the clock is believed though the ledger has seen a later instant");
        let detail = format!("{now} is believed after {seen}: {why}");
        let event = Event::Changed {
            by: "server".to_owned(),
            action: "clock.believe".to_owned(),
            subject: self.settings.replica.to_string(),
            detail,
        };
        let transaction = Transaction::named("believe the clock").record(Entry::new(now, &event));
        self.noting_failure(self.ports.store.commit(transaction).await).map(drop)
    }

    /// Seconds by which the clock lies behind the newest instant known; 0 when it does not.
    pub(crate) fn clock_behind(&self, now: Timestamp) -> i64 {
        Timestamp::from_unix(self.newest.load(Ordering::Relaxed)).since(now).max(0)
    }

    /// Commits `transaction` and takes what it wrote into the state. Once begun it is carried to its end, also when the
    /// caller goes away: a call that was cancelled in the middle would leave the state behind the store.
    pub(crate) async fn commit(self: &Arc<Self>, transaction: Transaction) -> Result<Committed, StoreError> {
        if transaction.writes.is_empty() {
            // Nothing of the state depends on it.
            let committed = self.noting_failure(self.ports.store.commit(transaction).await)?;
            // It was recorded after whatever others had written by then: that counts for what comes next.
            self.caught_up_to(committed.version).await?;
            return Ok(committed);
        }
        let ca = Arc::clone(self);
        self.to_the_end("commit", async move { ca.commit_writes(transaction).await }).await
    }

    /// Runs `work` to its end, whether or not the caller waits for it.
    pub(crate) async fn to_the_end<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        let (sender, outcome) = oneshot::channel();
        self.spawner.spawn(name, async move { drop(sender.send(work.await)) });
        let lost = || StoreError::Bug { cause: format!("`{name}` panicked") };
        outcome.await.unwrap_or_else(|_panicked| Err(lost().into()))
    }

    async fn commit_writes(self: &Arc<Self>, transaction: Transaction) -> Result<Committed, StoreError> {
        let writes = transaction.writes.clone();
        match self.noting_failure(self.ports.store.commit(transaction).await) {
            Ok(committed) => {
                self.take_in(&writes, &committed);
                self.following.took_in(committed.version);
                self.caught_up_to(committed.version).await?;
                Ok(committed)
            }
            Err(StoreError::Conflict { key }) => {
                // Perhaps the state is behind: the next try must see what the store has.
                let read = async {
                    self.catch_up().await?;
                    self.read_back(&key).await
                };
                if let Err(cause) = read.await {
                    tracing::warn!(%key, %cause, "cannot read back after a conflict");
                }
                Err(StoreError::Conflict { key })
            }
            Err(unknown) => {
                let ca = Arc::clone(self);
                self.spawner.spawn_until_stop("read back", async move {
                    for write in writes {
                        ca.read_back_for_sure(write.key()).await;
                    }
                });
                Err(unknown)
            }
        }
    }

    fn noting_failure<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        let failed = !matches!(outcome, Ok(_) | Err(StoreError::Conflict { .. }));
        self.store_failed.store(failed, Ordering::Relaxed);
        outcome
    }

    fn take_in(&self, writes: &[Write], committed: &Committed) {
        self.replace_state(|state| {
            for write in writes {
                let outcome = match write {
                    Write::Put(key, body) => {
                        let (key, version, body) = (key.clone(), committed.version, Arc::clone(body));
                        state.put(&Document { key, version, body })
                    }
                    Write::Delete(key) => state.delete(key, committed.version),
                };
                if let Err(cause) = outcome {
                    tracing::error!(%cause, "a change was committed but cannot be used; this is a bug");
                }
            }
        });
    }

    /// Reads the whole state anew: whoever follows it starts anew, too.
    pub(crate) async fn read_anew(&self) -> Result<(), StoreError> {
        let loaded = load_state(&self.ports, self.settings.trust_domain.clone(), &self.settings).await;
        let mut fresh = match loaded {
            Err(ApiError::Store(cause)) => return Err(cause),
            loaded => loaded.map_err(|cause| StoreError::Bug { cause: cause.to_string() })?,
        };
        fresh.begin_journal(fresh.cursor().max(self.state().cursor().saturating_add(1)));
        self.state.store(Arc::new(fresh));
        self.show_state();
        Ok(())
    }

    pub(crate) fn replace_state(&self, change: impl Fn(&mut State)) {
        self.state.rcu(|old| {
            let mut next = State::clone(old);
            change(&mut next);
            next
        });
        self.show_state();
    }

    /// Brings what goes over the wire in line with the state, and tells followers.
    fn show_state(&self) {
        let state = self.state.load();
        // Two changes at once may come here in either order: the bundle on the wire only ever moves forward.
        let fresh = wire_bundle(&state);
        self.wire_bundle.rcu(|old| {
            let sequence = |it: &Option<Arc<wire::Bundle>>| it.as_ref().map(|bundle| bundle.sequence);
            if sequence(&fresh) > sequence(old) { Arc::new(fresh.clone()) } else { Arc::clone(old) }
        });
        if self.wire_crls.load().generation < state.crl_generation() {
            let fresh = Arc::new(WireCrls::of(&state));
            self.wire_crls
                .rcu(|old| Arc::clone(if fresh.generation > old.generation { &fresh } else { old }));
        }
        self.changes.send_if_modified(|cursor| {
            let newer = state.cursor() > *cursor;
            *cursor = state.cursor().max(*cursor);
            newer
        });
    }

    /// Believes what the store says about `key`.
    async fn read_back(&self, key: &DocumentKey) -> Result<(), StoreError> {
        // Taken before the store is asked: a change that arrives meanwhile is newer than its answer.
        let held = self.state().version_of(key);
        match (self.ports.store.document(key).await?, held) {
            (Some(document), _) => self.replace_state(|state| {
                if let Err(cause) = state.put(&document) {
                    tracing::error!(%cause, "a stored document cannot be used");
                }
            }),
            (None, Some(held)) => self.replace_state(|state| {
                if let Err(cause) = state.delete(key, held) {
                    tracing::error!(%cause, "what remains cannot be used");
                }
            }),
            (None, None) => {}
        }
        Ok(())
    }

    /// After a commit of unknown outcome: asks until the store answers.
    async fn read_back_for_sure(&self, key: &DocumentKey) {
        while let Err(cause) = self.read_back(key).await {
            tracing::warn!(%key, %cause, "cannot read back after a failed commit; retrying");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether the last commit failed, so that nothing can be recorded and nothing is issued.
    pub(crate) fn store_has_failed(&self) -> bool {
        self.store_failed.load(Ordering::Relaxed)
    }

    /// Stops issuing until the process is restarted.
    pub(crate) fn halt(&self) {
        self.halted.store(true, Ordering::Relaxed);
    }

    /// Whether issuing goes on.
    ///
    /// # Errors
    /// [`IssueError::Halted`] after a signature was refused.
    pub(crate) fn check_not_halted(&self) -> Result<(), IssueError> {
        if self.halted.load(Ordering::Relaxed) { Err(IssueError::Halted) } else { Ok(()) }
    }

    /// Tries a small durable write while the store is failing, so that readiness comes back by itself.
    pub(crate) async fn probe_store(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PROBE_EVERY).await;
            if self.store_has_failed() {
                let probe = self.ports.store.reserve_serials(1, self.ports.clock.now()).await;
                if self.noting_failure(probe).is_ok() {
                    tracing::info!("the store writes again");
                }
            }
        }
    }

    /// Notes that an authenticated caller was refused: in the log now, in the ledger soon. At most a few a second for
    /// each caller reach the ledger, so that a refused caller cannot fill it.
    pub(crate) fn note_refusal(
        &self,
        caller: &AttestedCaller,
        action: &str,
        code: &'static str,
        detail: &str,
    ) {
        let by = caller.principal().to_string();
        tracing::info!(caller = %by, action, code, detail, "refused");
        if !self.quota.may_record_refusal(&by) {
            self.metrics.refusals_not_recorded.inc();
            return;
        }
        let event = Event::Refused {
            by,
            action: action.to_owned(),
            code: code.to_owned(),
            detail: detail.to_owned(),
        };
        if self.refusals.try_send(Entry::new(self.stamp(), &event)).is_err() {
            self.metrics.refusals_not_recorded.inc();
        }
    }

    /// Counts a refusal by its public code and passes it on.
    pub(crate) fn count_refusal(&self, error: ApiError) -> ApiError {
        self.metrics.refused(crate::status::public(&error).code);
        error
    }

    /// Writes noted refusals to the ledger, many at a time.
    pub(crate) async fn record_refusals(self: Arc<Self>, mut waiting: mpsc::Receiver<Entry>) {
        let mut batch = Vec::new();
        while waiting.recv_many(&mut batch, 64).await > 0 {
            let mut transaction = Transaction::named("record refusals");
            transaction.entries.append(&mut batch);
            let count = u64::try_from(transaction.entries.len()).unwrap_or(u64::MAX);
            if let Err(cause) = self.ports.store.commit(transaction).await {
                self.metrics.refusals_not_recorded.inc_by(count);
                tracing::warn!(%cause, count, "refusals could not be recorded");
            }
        }
    }

    /// A ledger entry saying that `caller` changed something.
    pub(crate) fn changed(&self, by: &str, action: &str, subject: &str, detail: &str) -> Entry {
        let event = Event::Changed {
            by: by.to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            detail: detail.to_owned(),
        };
        Entry::new(self.stamp(), &event)
    }

    /// The instant of an entry that is not an issuance: never before the newest one, so that the last record of the
    /// ledger tells the newest instant also after a restart.
    fn stamp(&self) -> Timestamp {
        let newest = Timestamp::from_unix(self.newest.load(Ordering::Relaxed));
        self.ports.clock.now().max(newest)
    }

    /// The time by which certificates of callers are judged: a clock that went back revives none that has expired.
    pub(crate) fn judging_time(&self) -> Timestamp {
        let newest = Timestamp::from_unix(self.newest.load(Ordering::Relaxed));
        self.ports.clock.now().max(newest.minus(CLOCK_BEHIND_SECONDS))
    }
}

/// Answered requests: what a retry with the same id gets. Bounded by bytes, since what a caller vouches for is kept.
fn remembered() -> Cache<(String, String), Arc<Recorded<IssuedLeaf>>> {
    let weigh = |(caller, id): &(String, String), leaf: &Arc<Recorded<IssuedLeaf>>| {
        let attributes: usize = leaf.issuance().attributes.iter().map(String::len).sum();
        let bytes = 2_048 + leaf.certificate().der().len() + caller.len() + id.len() + attributes;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    };
    Cache::builder().max_capacity(REMEMBERED_BYTES).weigher(weigh).time_to_live(REMEMBERED_FOR).build()
}

async fn load_state(ports: &Ports, domain: TrustDomain, settings: &Settings) -> Result<State, ApiError> {
    let mut state = State::empty(domain, settings.replica.clone());
    let mut authorities = Vec::new();
    for kind in Kind::ALL {
        if matches!(kind, Kind::Token | Kind::Setting | Kind::Key) {
            continue;
        }
        let mut after: Option<String> = None;
        loop {
            let page = ports.store.documents(kind, after.as_deref(), PAGE).await?;
            after = page.last().map(|document| document.key.id.clone());
            // Roots before the issuers below them: an issuer is only usable with its root at hand.
            if kind == Kind::Authority {
                authorities.extend(page);
            } else {
                page.iter()
                    .try_for_each(|document| state.put(document))
                    .map_err(|bad| ApiError::Bug(bad.to_string()))?;
            }
            if after.is_none() {
                break;
            }
        }
    }
    authorities.sort_by_key(|document| !document.body.contains("\"kind\":\"root\""));
    authorities
        .iter()
        .try_for_each(|document| state.put(document))
        .map_err(|bad| ApiError::Bug(bad.to_string()))?;
    state.begin_journal(journal_start(ports)?);
    Ok(state)
}

/// Where the cursors of this process begin: the second of its start above, twelve random bits for starts in the same
/// second, and room for a million changes below.
fn journal_start(ports: &Ports) -> Result<u64, ApiError> {
    let mut random = [0; 2];
    ports.entropy.fill(&mut random).map_err(|_opaque| IssueError::NoEntropy)?;
    let second = u64::try_from(ports.clock.now().unix()).unwrap_or_default();
    Ok((second << 32) + (u64::from(u16::from_be_bytes(random) >> 4) << 20))
}

async fn newest_instant(ports: &Ports) -> Result<Timestamp, ApiError> {
    let head = ports.store.head().await?;
    let last = ports.store.records(head.position, 1).await?;
    Ok(last.first().and_then(|record| record.read().ok()).map_or(Timestamp::EPOCH, |(at, _)| at))
}

fn wire_bundle(state: &State) -> Option<Arc<wire::Bundle>> {
    state.bundle().map(|it| Arc::new(convert::bundle(&it.value.bundle)))
}
