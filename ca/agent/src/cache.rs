//! The book behind a lock, with the wake-ups that follow from what is written into it.
//!
//! Laws: the lock is held for the time of one entry and never across a wait; whoever sleeps until something changes is
//! woken by the entry that changes it. Not here: any decision (`book`, `renewal`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rhizome_core::attributes::Attributes;
use rhizome_core::caller::Principal;
use rhizome_core::ports::Clock;
use rhizome_id::{Digest, SpiffeId, Timestamp, TrustDomain};
use rhizome_proto::node::v1::CrlSet;
use rhizome_x509::Bundle;
use tokio::sync::{Notify, watch};

use crate::book::{Book, Failure, ForeignChange, InForce, Insight, Offered, RuleChange, Snapshot};
use crate::crls::Taken;
use crate::holdings::{Identities, NotYet, Standing, Svid, View};
use crate::observe::Tallies;
use crate::renewal::{Entitlement, Plan};
use crate::spawn::Spawner;
use crate::tokens::{TokenStore, Tokens};

/// What the agent knows and holds, shared between the sockets and the connection to the authority.
pub struct Cache {
    domain: TrustDomain,
    book: Mutex<Book>,
    clock: Arc<dyn Clock>,
    /// Something may be due for asking.
    planning: Notify,
    /// Counts what is to be sealed on disk.
    durable: watch::Sender<u64>,
    /// Counts changes of the certificates held.
    served: watch::Sender<u64>,
    /// The bundle that may be acknowledged.
    acknowledgeable: watch::Sender<Option<(u64, Digest)>>,
    /// The foreign bundles that may be told to be in force, with their generation.
    foreign_in_force: watch::Sender<Option<(u64, Vec<InForce>)>>,
    tokens: TokenStore,
    /// Whether anybody can be served.
    ready: watch::Sender<bool>,
    tally: Tally,
}

/// What came of asking, since the start.
#[derive(Default)]
struct Tally {
    issued: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
}

impl Cache {
    pub(crate) fn new(domain: TrustDomain, clock: Arc<dyn Clock>, spawner: Spawner) -> Self {
        Self {
            book: Mutex::new(Book::new(domain.clone())),
            domain,
            tokens: TokenStore::new(Arc::clone(&clock), spawner),
            clock,
            planning: Notify::new(),
            durable: watch::Sender::new(0),
            served: watch::Sender::new(0),
            acknowledgeable: watch::Sender::new(None),
            foreign_in_force: watch::Sender::new(None),
            ready: watch::Sender::new(false),
            tally: Tally::default(),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic inside cannot leave a half-written entry that matters: views are replaced whole.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_at_readiness(&self, book: &Book) {
        let found = book.can_serve();
        self.ready.send_if_modified(|known| std::mem::replace(known, found) != found);
    }

    fn seal(&self) {
        self.durable.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn look_at_acknowledgement(&self, book: &Book) {
        let now = self.now();
        let found = book.acknowledgeable(now);
        self.acknowledgeable.send_if_modified(|known| std::mem::replace(known, found) != found);
        let told = self.foreign_in_force.borrow().as_ref().map_or(0, |(generation, _)| *generation);
        // Looking costs something for every stream; what was told once is told.
        if told != book.foreign_generation()
            && let Some(found) = book.foreign_in_force(now)
        {
            drop(self.foreign_in_force.send_replace(Some(found)));
        }
    }

    /// Drops the tokens of the identities that the rules took from somebody here. Those of who is not here at the moment
    /// stay: nobody gets one before it is judged anew, and a workload that only asks now and then would have none left
    /// when the authority is away.
    fn drop_lost(&self, before: &BTreeSet<SpiffeId>, book: &Book) {
        let after = book.granted();
        self.tokens.forget(&before.difference(&after).cloned().collect());
    }

    pub(crate) fn restore(&self, snapshot: Snapshot) {
        let mut book = self.book();
        book.restore(snapshot, self.now());
        self.tokens.set_bundle(book.bundle().cloned());
        self.look_at_acknowledgement(&book);
        self.look_at_readiness(&book);
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.book().snapshot()
    }

    /// Of which generation the foreign bundles are: asked before [`Self::snapshot`], told to [`Self::set_foreign_sealed`].
    pub(crate) fn foreign_generation(&self) -> u64 {
        self.book().foreign_generation()
    }

    /// The foreign bundles of this generation are safely on disk.
    pub(crate) fn set_foreign_sealed(&self, generation: u64) {
        let mut book = self.book();
        book.set_foreign_sealed(generation);
        self.look_at_acknowledgement(&book);
    }

    /// The foreign bundles that may be told to be in force.
    pub(crate) fn foreign_in_force(&self) -> watch::Receiver<Option<(u64, Vec<InForce>)>> {
        self.foreign_in_force.subscribe()
    }

    pub(crate) fn set_node(&self, node: Principal) {
        let mut book = self.book();
        let before = book.granted();
        book.set_node(node, self.now());
        self.drop_lost(&before, &book);
        self.look_at_readiness(&book);
        drop(book);
        self.planning.notify_one();
    }

    pub(crate) fn cursor(&self) -> u64 {
        self.book().cursor()
    }

    /// The bundle in force.
    pub fn bundle(&self) -> Option<Arc<Bundle>> {
        self.book().bundle().cloned()
    }

    /// The sequences of the foreign bundles held, by trust domain.
    pub(crate) fn foreign(&self) -> BTreeMap<String, u64> {
        self.book().foreign_bundles().map(|it| (it.trust_domain().to_string(), it.sequence())).collect()
    }

    /// Every certificate held.
    pub fn svids(&self) -> Vec<Arc<Svid>> {
        self.book().svids().map(Arc::clone).collect()
    }

    pub(crate) fn apply(&self, change: RuleChange) {
        let mut book = self.book();
        let before = book.granted();
        book.apply(change, self.now());
        self.drop_lost(&before, &book);
        self.look_at_readiness(&book);
        drop(book);
        self.seal();
        self.planning.notify_one();
    }

    pub(crate) fn offer(&self, bundle: Bundle) -> Offered {
        let mut book = self.book();
        let outcome = book.offer(bundle, self.now());
        self.tokens.set_bundle(book.bundle().cloned());
        self.look_at_acknowledgement(&book);
        self.look_at_readiness(&book);
        drop(book);
        if outcome == Offered::InForce {
            self.seal();
            self.planning.notify_one();
        }
        outcome
    }

    /// Applies a change of the foreign bundles.
    pub(crate) fn apply_foreign(&self, change: ForeignChange) -> bool {
        let mut book = self.book();
        let changed = book.apply_foreign(change, self.now());
        self.look_at_acknowledgement(&book);
        drop(book);
        if changed {
            self.seal();
        }
        changed
    }

    pub(crate) fn take_crls(&self, sent: &CrlSet) -> Taken {
        let taken = self.book().take_crls(sent, self.now());
        if taken.changed {
            self.seal();
        }
        taken
    }

    pub(crate) fn stop(&self, serials: &[String]) -> Vec<String> {
        let mut book = self.book();
        let revoked = book.svids().filter(|svid| serials.contains(&svid.serial));
        self.tokens.forget(&revoked.map(|svid| svid.spiffe_id.clone()).collect());
        let stopped = book.stop(serials, self.now());
        drop(book);
        if !stopped.is_empty() {
            self.seal();
            self.changed_svids();
        }
        stopped
    }

    pub(crate) fn renew_by(&self, order: &str, slot: Timestamp, concerns: impl Fn(Option<&[u8]>) -> bool) {
        self.book().renew_by(order, slot, concerns);
        // Or a restart would forget the order.
        self.seal();
        self.planning.notify_one();
    }

    /// Whether the order of that name was carried out before.
    pub(crate) fn carried_out(&self, order: &str) -> bool {
        self.book().carried_out(order)
    }

    pub(crate) fn plan(&self, room: usize) -> Plan {
        self.tick();
        self.book().plan(self.now(), room)
    }

    /// Lets go of what is over by time alone; when the next thing will be.
    pub(crate) fn tick(&self) -> Option<Timestamp> {
        let mut book = self.book();
        let now = self.now();
        let expired = book.tick(now);
        let next = book.expires_next(now);
        self.look_at_acknowledgement(&book);
        drop(book);
        if expired {
            self.seal();
            self.changed_svids();
        }
        next
    }

    /// What is held, by issuer: how many certificates, and the last second of the first to expire.
    pub(crate) fn issuers(&self) -> BTreeMap<Vec<u8>, (u32, Timestamp)> {
        self.book().issuers()
    }

    pub(crate) fn ask(&self, entitlement: &Entitlement) -> Option<Attributes> {
        self.book().ask(entitlement)
    }

    pub(crate) fn issued(&self, entitlement: &Entitlement, svid: Arc<Svid>) {
        self.tally.issued.fetch_add(1, Ordering::Relaxed);
        self.book().issued(entitlement, svid, self.now());
        self.seal();
        self.changed_svids();
    }

    pub(crate) fn failed(&self, entitlement: &Entitlement, failure: Failure, draw: u64) {
        let tally = match &failure {
            Failure::Denied(_) => &self.tally.refused,
            Failure::Passing { .. } => &self.tally.failed,
            Failure::Lost => &self.tally.lost,
        };
        tally.fetch_add(1, Ordering::Relaxed);
        self.book().failed(entitlement, failure, self.now(), draw);
        self.planning.notify_one();
    }

    /// What came of asking, since the start.
    pub(crate) fn tallies(&self) -> Tallies {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Tally { issued, refused, failed, lost } = &self.tally;
        Tallies { issued: read(issued), refused: read(refused), failed: read(failed), lost: read(lost) }
    }

    /// Why a workload with these attested attributes has what it has; `None` before the rules are known.
    pub(crate) fn insight(&self, attributes: &Attributes) -> Option<Insight> {
        self.book().insight(attributes)
    }

    /// The bundle of this sequence is safely on disk.
    pub(crate) fn set_sealed(&self, sequence: u64) {
        let mut book = self.book();
        book.set_sealed(sequence);
        self.look_at_acknowledgement(&book);
    }

    fn changed_svids(&self) {
        self.served.send_modify(|count| *count = count.wrapping_add(1));
        self.planning.notify_one();
    }

    /// The tokens of the workloads.
    pub(crate) const fn token_store(&self) -> &TokenStore {
        &self.tokens
    }

    /// Waits until something may be due for asking.
    pub(crate) async fn planning(&self) {
        self.planning.notified().await;
    }

    /// Lets whoever plans look at the clock again.
    pub(crate) fn look_again(&self) {
        self.planning.notify_one();
    }

    pub(crate) fn durable(&self) -> watch::Receiver<u64> {
        self.durable.subscribe()
    }

    /// Says that there is something new to seal, besides what is in the book.
    pub(crate) fn seal_again(&self) {
        self.seal();
    }

    pub(crate) fn served(&self) -> watch::Receiver<u64> {
        self.served.subscribe()
    }

    /// The bundle that may be acknowledged: it is sealed, and every open stream was given it that still needs one.
    pub fn acknowledgeable(&self) -> watch::Receiver<Option<(u64, Digest)>> {
        self.acknowledgeable.subscribe()
    }
}

impl Identities for Cache {
    fn follow(&self, attributes: Attributes) -> watch::Receiver<Result<Arc<View>, NotYet>> {
        let receiver = self.book().follow(attributes, self.now());
        self.planning.notify_one();
        receiver
    }

    fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    fn tokens(&self) -> Option<Arc<dyn Tokens>> {
        Some(Arc::new(self.tokens.clone()))
    }

    fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    fn open(&self) -> u64 {
        let mut book = self.book();
        let stream = book.open();
        self.look_at_acknowledgement(&book);
        stream
    }

    fn stands(&self, subscriber: u64, standing: Standing) {
        let mut book = self.book();
        book.stands(subscriber, standing);
        self.look_at_acknowledgement(&book);
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("trust_domain", &self.domain).finish_non_exhaustive()
    }
}
