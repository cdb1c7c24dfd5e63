//! The sync stream: what the authority says as it changes, and what this node says back.
//!
//! Laws: a batch of changes is applied whole, when its last message (the one with a cursor) has come; a bundle is
//! acknowledged when the book says that it may be, and once for every stream; an order to stop serving is carried out
//! before anything else is read. Not here: what follows from a change (`book`), the connection (`link`).
//! Sources: `rhizome/node/v1/node.proto`; ca/docs/ARCHITECTURE.md §2 (acknowledged trust).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost_types::Timestamp as WireTimestamp;
use rhizome_id::{Digest, Timestamp};
use rhizome_proto::ca::v1::BundleAcknowledgement;
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::directive::Order;
use rhizome_proto::node::v1::node_service_client::NodeServiceClient;
use rhizome_proto::node::v1::sync_request::Message;
use rhizome_x509::inspect;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::book::{ForeignChange, InForce, Offered, RuleChange};
use crate::cache::Cache;
use crate::crls::Taken;
use crate::fetch::offer;
use crate::node::Node;
use crate::status::StatusBoard;
use crate::wire::{read_foreign_bundle, read_rule};

/// Messages to the server that may wait: an acknowledgement and a report.
const WAITING: usize = 8;
/// Most bytes of one change of the rules, over all its messages: 2 000 of the largest rules, 100 000 usual ones.
const BATCH_BYTES: usize = 64 * 1024 * 1024;
/// What keeping a rule costs besides its text, roughly.
const ENTRY_BYTES: usize = 256;
/// Issuers in one report; the protocol's limit.
const ISSUERS: usize = 64;
/// Bytes of an order's name; the protocol's limit.
const ORDER_NAME_BYTES: usize = 64;

/// How often it is said again what is served though nothing has changed: a change of the root believes a report only when it
/// is younger than what was issued, by minutes.
const REPORT_AGAIN: Duration = Duration::from_secs(300);

/// Follows the authority.
pub(crate) struct Sync {
    cache: Arc<Cache>,
    node: Arc<Node>,
    status: Arc<StatusBoard>,
}

impl Sync {
    pub(crate) const fn new(cache: Arc<Cache>, node: Arc<Node>, status: Arc<StatusBoard>) -> Self {
        Self { cache, node, status }
    }

    /// Follows over `channel` until it breaks; the status says how.
    pub(crate) async fn run(&self, channel: Channel) -> Status {
        match self.follow(channel).await {
            Ok(()) => Status::unavailable("the server ended the stream"),
            Err(status) => status,
        }
    }

    async fn follow(&self, channel: Channel) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(WAITING);
        let hello = wire::Hello {
            cursor: self.cache.cursor(),
            agent_version: format!("rhizome-agent {}", env!("CARGO_PKG_VERSION")),
        };
        say(&requests, Message::Hello(hello)).await?;
        let stream = NodeServiceClient::new(channel).sync(ReceiverStream::new(outgoing)).await;
        let mut answers = stream?.into_inner();
        // The stream was let in.
        self.node.note_refusal(None).await;
        let (mut bundle, mut served) = (self.cache.acknowledgeable(), self.cache.served());
        let mut foreign = self.cache.foreign_in_force();
        let mut batch = Batch::default();
        // The server may have forgotten what an earlier stream said.
        bundle.mark_changed();
        served.mark_changed();
        foreign.mark_changed();
        let mut again = tokio::time::interval(REPORT_AGAIN);
        again.reset();
        loop {
            tokio::select! {
                // Orders come before anything that is said back.
                biased;
                answer = answers.message() => match answer? {
                    Some(answer) => self.take(answer, &mut batch)?,
                    None => return Ok(()),
                },
                changed = bundle.changed() => {
                    changed.map_err(gone)?;
                    self.acknowledge(&requests, &mut bundle).await?;
                }
                changed = served.changed() => {
                    changed.map_err(gone)?;
                    served.mark_unchanged();
                    let (issuers, with_own) = self.issuers();
                    say(&requests, Message::ServedIssuers(report(issuers, with_own))).await?;
                }
                _ = again.tick() => served.mark_changed(),
                changed = foreign.changed() => {
                    changed.map_err(gone)?;
                    let found = foreign.borrow_and_update().clone();
                    if let Some((_, bundles)) = found {
                        say(&requests, Message::FederatedBundles(in_force(&bundles))).await?;
                    }
                }
            }
        }
    }

    /// What is served, and what this node itself presents, by issuer.
    fn issuers(&self) -> (BTreeMap<Vec<u8>, (u32, Timestamp)>, bool) {
        let mut issuers = self.cache.issuers();
        let own = self.node.current();
        let issuer = own.as_ref().and_then(|node| inspect(&node.leaf()?).ok()?.issuer_key_id);
        let with_own = issuer.is_some();
        if let Some((issuer, node)) = issuer.zip(own) {
            let (count, earliest) = issuers.entry(issuer).or_insert((0, node.not_after));
            *count = count.saturating_add(1);
            *earliest = node.not_after.min(*earliest);
        }
        (issuers, with_own)
    }

    async fn acknowledge(
        &self,
        requests: &mpsc::Sender<wire::SyncRequest>,
        bundle: &mut watch::Receiver<Option<(u64, Digest)>>,
    ) -> Result<(), Status> {
        let Some((sequence, digest)) = *bundle.borrow_and_update() else { return Ok(()) };
        let digest = Bytes::copy_from_slice(digest.as_bytes());
        say(requests, Message::BundleAcknowledgement(BundleAcknowledgement { sequence, digest })).await?;
        tracing::info!(sequence, "bundle acknowledged");
        self.status.set(|status| status.acknowledged = Some(sequence));
        Ok(())
    }

    fn take(&self, answer: wire::SyncResponse, batch: &mut Batch) -> Result<(), Status> {
        if answer.full {
            let change = RuleChange { full: true, ..RuleChange::default() };
            *batch =
                Batch { change, foreign: ForeignChange { full: true, ..ForeignChange::default() }, bytes: 0 };
        }
        batch.weigh(&answer)?;
        let change = &mut batch.change;
        for rule in &answer.upserts {
            match read_rule(rule) {
                Ok(rule) => change.upserts.push(Arc::new(rule)),
                // A newer server's rule: without it this node grants less, never more.
                Err(cause) => tracing::error!(rule = rule.name, %cause, "a rule was left out"),
            }
        }
        change.removed.extend(answer.removed_rules.iter().filter_map(|name| name.parse().ok()));
        for sent in &answer.federated_bundles {
            match read_foreign_bundle(sent) {
                Ok(bundle) => batch.foreign.upserts.push(Arc::new(bundle)),
                // Nothing of that domain is trusted then, which is what is safe.
                Err(cause) => {
                    tracing::error!(domain = sent.trust_domain, %cause, "a foreign bundle was left out")
                }
            }
        }
        batch
            .foreign
            .removed
            .extend(answer.removed_federated_domains.iter().filter_map(|it| it.parse().ok()));
        for directive in answer.directives {
            match directive.order {
                Some(Order::StopServing(order)) => self.stop_serving(&order),
                Some(Order::RenewBy(order)) => self.renew_by(&order),
                None => tracing::warn!("an order that this release does not know"),
            }
        }
        if let Some(sent) = &answer.bundle {
            match offer(&self.cache, sent) {
                Ok(Offered::InForce | Offered::Known) => {}
                Ok(Offered::Lower { .. } | Offered::Conflict | Offered::Foreign) => {
                    self.status
                        .set(|status| status.refused_bundles = status.refused_bundles.saturating_add(1));
                }
                Err(cause) => tracing::error!(%cause, "a bundle was left out"),
            }
        }
        if let Some(sent) = &answer.crls {
            self.take_crls(sent);
        }
        if answer.cursor > 0 {
            let Batch { change, foreign, bytes: _ } = std::mem::take(batch);
            if self.cache.apply_foreign(foreign) {
                tracing::info!("other foreign bundles are in force");
            }
            self.cache.apply(RuleChange { cursor: answer.cursor, ..change });
            self.status.set(|status| status.synced(answer.cursor));
        }
        Ok(())
    }

    fn take_crls(&self, sent: &wire::CrlSet) {
        let Taken { changed, refused } = self.cache.take_crls(sent);
        if changed {
            tracing::info!(lists = sent.crls_der.len(), "new revocation lists are in force");
        }
        if !refused.is_empty() {
            tracing::error!(refused = refused.join("; "), "revocation lists were refused");
            let count = u64::try_from(refused.len()).unwrap_or(u64::MAX);
            self.status.set(|status| status.refused_crls = status.refused_crls.saturating_add(count));
        }
    }

    fn stop_serving(&self, order: &wire::StopServing) {
        let stopped = self.cache.stop(&order.serials);
        for serial in stopped {
            tracing::warn!(
                serial,
                reason = order.reason,
                "a certificate was revoked and is no longer served"
            );
        }
        let own = self.node.current().filter(|node| order.serials.contains(&node.serial));
        if let Some(own) = own {
            tracing::error!(
                serial = own.serial,
                reason = order.reason,
                "this node's own certificate was revoked; join again"
            );
        }
    }

    fn renew_by(&self, order: &wire::RenewBy) {
        let instant = |at: &WireTimestamp| Timestamp::from_unix(at.seconds);
        let (slot, deadline) = (order.slot.as_ref().map(instant), order.deadline.as_ref().map(instant));
        let Some(begin) = [slot, deadline].into_iter().flatten().min() else { return };
        // A name that is no name is not kept.
        let name = if order.name.len() <= ORDER_NAME_BYTES { order.name.as_str() } else { "" };
        if self.cache.carried_out(name) {
            // Told again on a new stream: what was renewed meanwhile is not renewed once more.
            return;
        }
        tracing::info!(slot = %begin, order = name, reason = order.reason, "the authority asks for renewal");
        let concerns = |issuer: Option<&[u8]>| {
            let of = |id: &Bytes| issuer.is_some_and(|issuer| *issuer == **id);
            order.authority_key_ids.is_empty() || order.authority_key_ids.iter().any(of)
        };
        let node = self.node.current().and_then(|node| node.leaf());
        let issuer = node.and_then(|leaf| inspect(&leaf).ok()?.issuer_key_id);
        // The node's own instant first: what the cache seals has both, or neither.
        if concerns(issuer.as_deref()) {
            self.node.renew_by(begin);
        }
        self.cache.renew_by(name, begin, concerns);
    }
}

/// What has come of a batch whose last message, the one with the cursor, has not come yet.
#[derive(Default)]
struct Batch {
    change: RuleChange,
    foreign: ForeignChange,
    bytes: usize,
}

impl Batch {
    /// Counts what would have to be remembered until the cursor comes; a server that never sends one is left.
    fn weigh(&mut self, answer: &wire::SyncResponse) -> Result<(), Status> {
        let rules: usize = answer.upserts.iter().map(prost::Message::encoded_len).sum();
        let names: usize = answer.removed_rules.iter().map(String::len).sum();
        let entries = answer.upserts.len().saturating_add(answer.removed_rules.len());
        let foreign: usize = answer.federated_bundles.iter().map(prost::Message::encoded_len).sum();
        let more = rules
            .saturating_add(foreign)
            .saturating_add(names)
            .saturating_add(entries.saturating_mul(ENTRY_BYTES));
        self.bytes = self.bytes.saturating_add(more);
        if self.bytes <= BATCH_BYTES {
            return Ok(());
        }
        let problem =
            format!("a change of the rules takes more than {BATCH_BYTES} bytes; the stream was left");
        tracing::error!("{problem}");
        Err(Status::resource_exhausted(problem))
    }
}

/// What is in force of foreign domains.
fn in_force(bundles: &[InForce]) -> wire::FederatedBundlesInForce {
    let one = |(domain, sequence, digest): &InForce| wire::FederatedBundleInForce {
        trust_domain: domain.to_string(),
        sequence: *sequence,
        digest: Bytes::copy_from_slice(digest.as_bytes()),
    };
    wire::FederatedBundlesInForce { bundles: bundles.iter().map(one).collect() }
}

/// What is served, by issuer.
fn report(issuers: BTreeMap<Vec<u8>, (u32, Timestamp)>, with_own: bool) -> wire::ServedIssuers {
    let served = issuers.into_iter().take(ISSUERS).map(|(issuer, (count, earliest))| wire::ServedIssuer {
        authority_key_id: Bytes::from(issuer),
        count,
        earliest_not_after: Some(WireTimestamp { seconds: earliest.unix(), nanos: 0 }),
    });
    wire::ServedIssuers { issuers: served.collect(), with_own }
}

async fn say(requests: &mpsc::Sender<wire::SyncRequest>, message: Message) -> Result<(), Status> {
    let sent = requests.send(wire::SyncRequest { message: Some(message) }).await;
    sent.map_err(|_closed| Status::unavailable("the stream was closed"))
}

fn gone(_closed: watch::error::RecvError) -> Status {
    Status::cancelled("the agent stops")
}

#[cfg(test)]
mod tests {
    use rhizome_core::ports::Clock;

    use super::*;
    use crate::spawn::Spawner;
    use crate::system::SystemClock;

    fn sync() -> (Sync, Arc<Cache>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let cache = Arc::new(Cache::new("example.org".parse().unwrap(), clock, Spawner::default()));
        let node = Arc::new(Node::new(folder.path()));
        (Sync::new(Arc::clone(&cache), node, Arc::default()), cache, folder)
    }

    /// A message of a change that never ends.
    fn endless() -> wire::SyncResponse {
        let rule = rhizome_proto::ca::v1::GrantRule {
            name: "web".to_owned(),
            comment: "x".repeat(1 << 20),
            ..Default::default()
        };
        wire::SyncResponse { upserts: vec![rule], ..wire::SyncResponse::default() }
    }

    #[test]
    fn a_change_that_never_ends_is_left_at_64_mib_and_nothing_of_it_is_applied() {
        let (sync, cache, _folder) = sync();
        let mut batch = Batch::default();
        let first = wire::SyncResponse { full: true, ..endless() };
        let mut taken = 0;
        let left = loop {
            let message = if taken == 0 { first.clone() } else { endless() };
            match sync.take(message, &mut batch) {
                Ok(()) => taken += 1,
                Err(left) => break left,
            }
        };
        assert_eq!((left.code(), taken), (tonic::Code::ResourceExhausted, 63), "{left}");
        assert_eq!(cache.cursor(), 0);
        let small = wire::SyncResponse { cursor: 5, ..wire::SyncResponse::default() };
        sync.take(small, &mut Batch::default()).unwrap();
        assert_eq!(cache.cursor(), 5, "the next stream begins anew");
    }

    #[test]
    fn a_beginning_anew_counts_from_nothing_and_so_does_the_change_after_a_whole_one() {
        let (sync, cache, _folder) = sync();
        let mut batch = Batch::default();
        for cursor in [1, 2] {
            for n in 0..40 {
                let message = wire::SyncResponse { full: n == 0, ..endless() };
                sync.take(message, &mut batch).unwrap();
            }
            let last = wire::SyncResponse { cursor, ..wire::SyncResponse::default() };
            sync.take(last, &mut batch).unwrap();
            assert_eq!(cache.cursor(), cursor);
        }
        // Many small entries are counted by what keeping them costs.
        let names = wire::SyncResponse {
            removed_rules: vec![String::new(); 100_000],
            ..wire::SyncResponse::default()
        };
        sync.take(names.clone(), &mut batch).unwrap();
        sync.take(names.clone(), &mut batch).unwrap();
        assert_eq!(sync.take(names, &mut batch).unwrap_err().code(), tonic::Code::ResourceExhausted);
    }
}
