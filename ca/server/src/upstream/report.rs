//! What a cluster's own Rhizome says upwards: who has which bundle in force, what is still presented below which root, and
//! its ledger.
//!
//! Laws: what is said to be presented no more is so by the same evidence that a root's own change would need: the agents'
//! reports and the ledger, and never a guess. Its own certificate and its issuers are among what it presents.
//! Not here: what becomes of the answer (the parent), what the one above believes (`rhizome_core::clusters`).

use std::collections::BTreeMap;

use rhizome_core::authority::{Authority, AuthorityKind, AuthorityState};
use rhizome_core::ledger::Position;
use rhizome_core::rotation::evidence::{Subscriber, gone};
use rhizome_core::state::State;
use rhizome_id::{Digest, Timestamp};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::upstream::v1 as wire;

use super::{Upstream, UpstreamError};
use crate::api::convert;
use crate::api::upstream::{BEHIND, RECORDS};
use crate::ca::Ca;

/// Bytes of ledger records in one report, as the protocol says.
const RECORD_BYTES: usize = 1024 * 1024;
/// What stands around a record's body.
const AROUND_RECORD: usize = 128;

/// What is presented below each root, by SHA-256 of its certificate: how many, and until when.
type Presents = BTreeMap<Digest, (u64, Timestamp)>;

impl Ca {
    /// A report that continues the ledger at `first_record`; 0: without records.
    pub(super) async fn report(
        &self,
        upstream: &Upstream,
        first_record: u64,
    ) -> Result<wire::ReportRequest, UpstreamError> {
        let now = self.ports.clock.now();
        let (everybody, as_of) = self.everybody(now).await?;
        let state = self.state();
        let lives = |it: &&Subscriber| it.until.is_none_or(|until| !gone(until, now));
        let living = || everybody.iter().filter(lives);
        let published = state.bundle().map(|it| (it.value.bundle.sequence(), it.value.bundle.digest()));
        let held = |it: &Subscriber| it.holds.as_ref().and_then(|it| Some((it.sequence, it.digest?)));
        let lowest = living().filter_map(held).chain(published).min_by_key(|(sequence, _)| *sequence);
        let sequence = published.map_or(0, |(sequence, _)| sequence);
        let is_behind = |it: &&Subscriber| it.holds.as_ref().is_none_or(|it| it.sequence < sequence);
        let behind: Vec<&Subscriber> = living().filter(is_behind).collect();
        let agents = state.nodes().values().filter(|it| it.value.lives(now)).count();
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let (records, last_record) = self.records_from(first_record).await?;
        let mut presents = Presents::new();
        for it in living() {
            for below in it.presents.iter().filter(|it| it.count > 0 && !gone(it.until, now)) {
                let root = state.authorities().get(&below.root).map(|it| &*it.value);
                add(&mut presents, root, u64::from(below.count), below.until);
            }
        }
        own(&state, &mut presents);
        upstream.link.presents(&state, |root, until| add(&mut presents, Some(root), 1, until));
        let one = |(root, (count, until)): (Digest, (u64, Timestamp))| wire::PresentedBelow {
            root_sha256: convert::digest(&root),
            count,
            until: Some(convert::timestamp(until)),
        };
        Ok(wire::ReportRequest {
            holds: lowest.map(|(sequence, digest)| ca::BundleAcknowledgement {
                sequence,
                digest: convert::digest(&digest),
            }),
            counts: vec![
                wire::KindCount { kind: "agent".to_owned(), count: count(agents) },
                wire::KindCount { kind: "replica".to_owned(), count: 1 },
            ],
            behind_count: count(behind.len()),
            behind: behind.into_iter().take(BEHIND).map(|it| it.name.clone()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            last_record,
            records,
            presents: presents.into_iter().map(one).collect(),
            presents_as_of: as_of,
            bundle_sequence: sequence,
        })
    }

    /// Records of the ledger from `first` on, as many as one report holds, and the last one there is.
    async fn records_from(&self, first: u64) -> Result<(Vec<wire::LedgerRecord>, u64), UpstreamError> {
        let head = self.ports.store.head().await?;
        let stored = match first {
            0 => Vec::new(),
            first => self.ports.store.records(Position(first), RECORDS).await?,
        };
        let mut room = RECORD_BYTES;
        let mut records = Vec::with_capacity(stored.len());
        for record in stored {
            let size = record.body.len().saturating_add(AROUND_RECORD);
            if size > room && !records.is_empty() {
                break;
            }
            room = room.saturating_sub(size);
            records.push(wire::LedgerRecord {
                position: record.position.0,
                previous: convert::digest(&record.previous),
                hash: convert::digest(&record.hash),
                counter: record.counter.map(rhizome_id::SerialCounter::value),
                body: record.body.to_string(),
            });
        }
        Ok((records, head.position.0))
    }
}

/// Counts `count` certificates below `root`. Below one that is in no bundle any more nothing reaches anything.
fn add(presents: &mut Presents, root: Option<&Authority>, count: u64, until: Timestamp) {
    let Some(root) = root.filter(|it| it.kind == AuthorityKind::Root) else { return };
    let known = presents.entry(root.anchor().fingerprint()).or_insert((0, until));
    *known = (known.0.saturating_add(count), known.1.max(until));
}

/// Counts the issuers that sign, or will: what is below them a moment later is below their root. One that waits below a
/// root that signs no more never will.
fn own(state: &State, presents: &mut Presents) {
    let signing = state.active_root().map(|it| &it.id);
    let will = |it: &Authority| it.state == AuthorityState::Prepared && it.issuer.as_ref() == signing;
    let issuers = state.authorities().values().map(|it| &*it.value);
    let issuers = issuers.filter(|it| it.kind == AuthorityKind::Issuer);
    for issuer in issuers.filter(|it| it.state == AuthorityState::Active || will(it)) {
        let root = issuer.issuer.as_ref().and_then(|it| state.authorities().get(it));
        add(presents, root.map(|it| &*it.value), 1, issuer.certificate.not_after());
    }
}
