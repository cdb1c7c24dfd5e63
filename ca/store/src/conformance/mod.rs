//! What every store promises, as clauses that run against any backend.
//!
//! Laws: what is not a clause here is not promised; a clause says nothing about one backend. Each clause gets stores
//! of its own and fails by panicking with what it saw. Not here: files, damage and crashes (the backends' own tests).
//! Sources: ca/docs/CONTRIBUTING.md, a store; ca/docs/attacks.md §1.3.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a clause fails by panicking; it runs in tests only"
)]

mod changes;
mod documents;
mod ledger;
mod serials;

use std::sync::Arc;

use rhizome_core::documents::{DocumentKey, Kind, Transaction, Version, Write};
use rhizome_core::ledger::{Entry, Event, Issuance, Profile};
use rhizome_core::ports::Store;
use rhizome_id::{Digest, ReplicaNumber, Serial, SerialCounter, Timestamp};

/// A kind of store, as the suite needs it.
pub trait Backend {
    /// What outlives a store that is closed: a directory, a schema, or the content itself.
    type Place;
    /// The store.
    type Store: Store;

    /// A new, empty place.
    fn place(&self) -> Self::Place;

    /// Opens the store at `place`. The suite closes a store before it opens its place again.
    fn open(&self, place: &Self::Place) -> Self::Store;
}

/// Runs every clause against stores of `backend`. Call it on a tokio runtime.
///
/// # Panics
/// When a clause does not hold.
pub async fn suite<B: Backend>(backend: B) {
    documents::a_transaction_happens_whole_or_not_at_all(&backend).await;
    documents::a_failed_requirement_names_its_document_and_changes_nothing(&backend).await;
    documents::versions_grow_over_the_whole_store_and_never_come_back(&backend).await;
    documents::documents_are_paged_in_the_byte_order_of_their_ids(&backend).await;
    documents::deleting_what_is_not_there_changes_nothing(&backend).await;
    documents::of_a_hundred_racing_commits_with_one_requirement_exactly_one_wins(&backend).await;
    documents::a_refused_transaction_does_not_hurt_those_committed_beside_it(&backend).await;
    documents::later_writes_of_one_transaction_win(&backend).await;
    documents::ids_are_one_to_512_bytes(&backend).await;
    documents::bodies_that_are_no_json_or_too_large_are_refused(&backend).await;
    documents::everything_is_there_after_reopening(&backend).await;
    ledger::an_empty_ledger_has_the_empty_head(&backend).await;
    ledger::records_are_linked_from_the_first_to_the_head(&backend).await;
    ledger::receipts_come_in_the_order_of_entries_and_match_the_records(&backend).await;
    ledger::racing_entries_make_one_chain(&backend).await;
    ledger::records_are_paged_by_position(&backend).await;
    ledger::an_issuance_is_found_by_its_counter_and_nothing_else_is(&backend).await;
    ledger::a_serial_is_recorded_once(&backend).await;
    ledger::entries_too_large_are_refused(&backend).await;
    ledger::the_chain_goes_on_after_reopening(&backend).await;
    changes::everything_after_a_version_is_told_once_in_order_and_deletions_too(&backend).await;
    changes::whoever_waits_is_woken_by_a_newer_version(&backend).await;
    serials::blocks_never_overlap(&backend).await;
    serials::serials_never_repeat_across_reopening(&backend).await;
    serials::a_block_starts_no_lower_than_the_clock(&backend).await;
    serials::a_block_starts_behind_every_recorded_serial(&backend).await;
    serials::blocks_that_do_not_fit_or_are_empty_are_refused(&backend).await;
    everything_checks_out(&backend).await;
}

async fn everything_checks_out<B: Backend>(backend: &B) {
    let place = backend.place();
    let store = backend.open(&place);
    let issued = Transaction::named("issue").record(issued(7));
    store.commit(Transaction { writes: vec![put("a", "1")], ..issued }).await.unwrap();
    store.check_integrity().await.unwrap();
    assert_eq!(crate::verify_ledger(&store).await, store.head().await);
}

// What the clauses are made of.

fn key(id: &str) -> DocumentKey {
    DocumentKey::new(Kind::Rule, id)
}

fn put(id: &str, body: &str) -> Write {
    Write::Put(key(id), body.into())
}

fn writing(writes: Vec<Write>) -> Transaction {
    Transaction { writes, ..Transaction::named("write") }
}

fn recording(entries: Vec<Entry>) -> Transaction {
    Transaction { entries, ..Transaction::named("record") }
}

fn changed(subject: &str) -> Entry {
    let (by, action) = ("local:uid=0".to_owned(), "rule.put".to_owned());
    let event = Event::Changed { by, action, subject: subject.to_owned(), detail: String::new() };
    Entry::new(Timestamp::from_unix(1_000), &event)
}

fn counter(value: u64) -> SerialCounter {
    SerialCounter::new(value).unwrap()
}

/// An issuance of about the size of a real one, under the serial of `number`.
pub fn issued(number: u64) -> Entry {
    let issuance = Issuance {
        profile: Profile::Workload,
        spiffe_id: "spiffe://example.org/ns/shop/sa/cart".parse().unwrap(),
        dns_names: Vec::new(),
        serial: Serial::compose(ReplicaNumber::new(1).unwrap(), counter(number), [7; Serial::RANDOM_BYTES]),
        not_before: Timestamp::from_unix(1_000),
        not_after: Timestamp::from_unix(4_600),
        public_key: Digest::from_bytes([1; 32]),
        tbs: Digest::from_bytes([2; 32]),
        issuer: "i-2026-11-22".parse().unwrap(),
        key: "issuer-1".parse().unwrap(),
        caller: "node:prod/join_token/vm-1".to_owned(),
        rule: Some("default-ns-sa".to_owned()),
        request: None,
        bundle: 1,
        attributes: Vec::new(),
    };
    Entry::new(Timestamp::from_unix(1_000), &Event::Issued(issuance))
}

async fn version_of(store: &impl Store, id: &str) -> Option<Version> {
    store.document(&key(id)).await.unwrap().map(|document| document.version)
}

async fn body_of(store: &impl Store, id: &str) -> Option<Arc<str>> {
    store.document(&key(id)).await.unwrap().map(|document| document.body)
}
