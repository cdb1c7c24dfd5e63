//! The sync stream: what a node must know, pushed as it changes; what a node knows, told back.
//!
//! Laws: the first answer brings a node from its cursor to now, as a delta where this process remembers far enough
//! back and whole otherwise; every later change follows as a delta. A cursor counts only on the last message of a
//! batch, so a stream that breaks half-way resumes from the batch's beginning. Acknowledgements are kept durably.
//! A banned, evicted or revoked node's stream ends; the last that it hears is what it must stop serving, for it hears
//! nothing more. A node is told of every order to renew that is in force and concerns it, on
//! each stream again: it knows an order by its name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::attributes::AttributeName;
use rhizome_core::caller::{AttestedCaller, Principal};
use rhizome_core::documents::{DocumentKey, Kind};
use rhizome_core::rules::Rule;
use rhizome_core::state::{Revocation, State};
use rhizome_id::{RuleName, Serial, Timestamp};
use rhizome_proto::ca::v1::Bundle;
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::directive::Order;
use rhizome_proto::node::v1::sync_request::Message;
use tonic::{Response, Streaming};

use super::convert;
use super::foreign::ForeignNews;
use crate::ca::Ca;
use crate::crl::WireCrls;
use crate::error::ApiError;
use crate::outlet::{Outlet, outlet};
use crate::peer::PeerInfo;
use crate::presence::PresenceGuard;
use crate::renewals;
use crate::status::{Answer, Broken, Outgoing};

/// Rules in one message. A rule has at most 32 KiB as it is stored (`api::admin::rules`), so a message has at most
/// 3.2 MB, below the 4 MiB that gRPC clients accept unless told otherwise.
const RULES_PER_MESSAGE: usize = 100;
/// Revocation lists larger than this come in a message of their own, so that no message has more than 4 MiB.
const CRLS_BESIDE_RULES_BYTES: usize = 512 * 1024;
/// Messages waiting for a slow node; the stream then waits for it and nobody else does.
const WAITING_MESSAGES: usize = 4;

/// How often the other end of a quiet stream is asked who it is.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(30);

type Answers = Outlet<wire::SyncResponse>;

impl Ca {
    pub(crate) async fn start_sync(
        self: &Arc<Self>,
        peer: PeerInfo,
        mut incoming: Streaming<wire::SyncRequest>,
    ) -> Answer<Outgoing<wire::SyncResponse>> {
        let hello = match incoming.message().await?.and_then(|first| first.message) {
            Some(Message::Hello(hello)) => hello,
            Some(
                Message::BundleAcknowledgement(_) | Message::ServedIssuers(_) | Message::FederatedBundles(_),
            )
            | None => {
                let problem = "the first message says hello".to_owned();
                return Err(ApiError::Invalid { field: "message", problem }.into());
            }
        };
        let (answers, outgoing) = outlet(WAITING_MESSAGES);
        let ca = Arc::clone(self);
        self.spawner.spawn_until_stop("sync", async move {
            if let Err(broken) = ca.sync(&peer, &hello, &mut incoming, &answers).await {
                answers.end(broken).await;
            }
        });
        Ok(Response::new(outgoing))
    }

    async fn sync(
        self: &Arc<Self>,
        peer: &PeerInfo,
        hello: &wire::Hello,
        incoming: &mut Streaming<wire::SyncRequest>,
        answers: &Answers,
    ) -> Result<(), Broken> {
        let who = self.identify(peer)?.principal().to_string();
        let present = self.presence.enter(&who, &hello.agent_version, self.ports.clock.now());
        let mut follower = Follower { cursor: hello.cursor, bundle: 0, crls: 0, first: true };
        let outcome = self.follow(peer, (&who, &present), incoming, (&mut follower, answers)).await;
        if outcome.is_err()
            && let Some(last) = follower.farewell(&self.state(), &who)
        {
            answers.give(last).await;
        }
        outcome
    }

    /// What it holds while it waits, a fleet holds ten thousand times.
    async fn follow(
        self: &Arc<Self>,
        peer: &PeerInfo,
        (who, present): (&str, &PresenceGuard),
        incoming: &mut Streaming<wire::SyncRequest>,
        (follower, answers): (&mut Follower, &Answers),
    ) -> Result<(), Broken> {
        let mut changes = self.changes();
        let mut told = 0;
        loop {
            changes.mark_unchanged();
            for message in self.news(peer, who, follower)? {
                if !answers.give(message).await {
                    return Ok(());
                }
            }
            if follower.crls != told {
                told = follower.crls;
                present.told_crls(told);
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Ok(());
                },
                // Certificates expire without anything changing.
                () = tokio::time::sleep(ASK_AGAIN) => {}
                message = incoming.message() => {
                    let Some(message) = self.counted(peer, message?)? else { return Ok(()) };
                    present.seen(self.ports.clock.now());
                    Box::pin(self.heard(who, message)).await?;
                }
            }
        }
    }

    /// What `peer` has not been told yet. The state is let go of before anything is waited for: a stream that kept the
    /// one it saw last would keep it from being freed.
    fn news(
        &self,
        peer: &PeerInfo,
        who: &str,
        follower: &mut Follower,
    ) -> Result<Vec<wire::SyncResponse>, ApiError> {
        let state = self.state();
        let caller = self.identify(peer)?;
        // After the state, so that these are of that state or newer.
        let (bundle, crls) = (self.wire_bundle(), self.wire_crls());
        let hearer = Hearer { caller: &caller, who, now: self.ports.clock.now() };
        Ok(follower.catch_up(&state, bundle.as_deref(), &crls, &hearer))
    }

    /// What a node says after its hello.
    async fn heard(self: &Arc<Self>, who: &str, message: wire::SyncRequest) -> Result<(), ApiError> {
        match message.message {
            Some(Message::BundleAcknowledgement(acknowledgement)) => {
                self.acknowledge(who, &acknowledgement).await
            }
            Some(Message::ServedIssuers(served)) => {
                self.presence.serves(who, served, self.ports.clock.now());
                Ok(())
            }
            Some(Message::FederatedBundles(bundles)) => self.hold_foreign(who, &bundles).await,
            Some(Message::Hello(_)) | None => {
                let problem = "hello is said once, at the beginning".to_owned();
                Err(ApiError::Invalid { field: "message", problem })
            }
        }
    }
}

/// How far a node has been told.
struct Follower {
    cursor: u64,
    bundle: u64,
    /// Generation of the revocation lists.
    crls: u64,
    first: bool,
}

impl Follower {
    /// The messages that bring the node to `state`; none when nothing concerns it.
    fn catch_up(
        &mut self,
        state: &State,
        bundle: Option<&Bundle>,
        crls: &WireCrls,
        hearer: &Hearer<'_>,
    ) -> Vec<wire::SyncResponse> {
        let first = std::mem::replace(&mut self.first, false);
        // A cursor from before this process began to remember, or from a future that a restored backup does not know,
        // cannot be followed: start anew.
        let changes = if first && self.cursor == 0 { None } else { state.changes_since(self.cursor) };
        let full = changes.is_none();
        let told = match changes {
            None => everything(state, hearer),
            Some(changes) => changed(state, hearer, changes),
        };
        let Told { upserts, removed_rules, directives, foreign } = told;
        let published = bundle.filter(|it| first || it.sequence > self.bundle);
        self.bundle = published.map_or(self.bundle, |it| it.sequence);
        self.cursor = state.cursor();
        let fresh_crls = (first || crls.generation > self.crls).then(|| crls.set.clone());
        self.crls = self.crls.max(crls.generation);
        let nothing = upserts.is_empty()
            && removed_rules.is_empty()
            && published.is_none()
            && directives.is_empty()
            && foreign.is_empty()
            && fresh_crls.is_none();
        if nothing && !first {
            return Vec::new();
        }
        let mut messages: Vec<wire::SyncResponse> = upserts
            .chunks(RULES_PER_MESSAGE)
            .map(|chunk| wire::SyncResponse { upserts: chunk.to_vec(), ..wire::SyncResponse::default() })
            .collect();
        // The last message carries everything else, and the cursor that makes the batch count.
        let last = messages.pop().unwrap_or_default();
        messages.push(wire::SyncResponse { removed_rules, bundle: published.cloned(), directives, ..last });
        foreign.add_to(&mut messages);
        // Revocation lists are verified against the bundle, so they never come before it; large ones come alone.
        if fresh_crls.as_ref().is_some_and(|set| bytes_of(set) > CRLS_BESIDE_RULES_BYTES) {
            messages.push(wire::SyncResponse::default());
        }
        if let Some(last) = messages.last_mut() {
            last.crls = fresh_crls;
            last.cursor = self.cursor;
        }
        if let Some(message) = messages.first_mut() {
            message.full = full;
        }
        messages
    }
}

impl Follower {
    /// What `who` must stop serving and was not told yet, in a message that leaves its cursor where it is.
    fn farewell(&self, state: &State, who: &str) -> Option<wire::SyncResponse> {
        let directives: Vec<wire::Directive> = match state.changes_since(self.cursor) {
            Some(changes) if !self.first => {
                let keys: BTreeSet<&DocumentKey> = changes.collect();
                keys.into_iter().filter_map(|key| revoked(state, key, who)).collect()
            }
            Some(_) | None => revoked_of(state, who).collect(),
        };
        (!directives.is_empty()).then(|| wire::SyncResponse { directives, ..wire::SyncResponse::default() })
    }
}

type WireRule = rhizome_proto::ca::v1::GrantRule;

/// Who is told, and when.
struct Hearer<'a> {
    caller: &'a AttestedCaller,
    /// The stable text of its principal.
    who: &'a str,
    now: Timestamp,
}

/// What a node is told besides the bundle.
#[derive(Default)]
struct Told {
    upserts: Vec<WireRule>,
    removed_rules: Vec<String>,
    directives: Vec<wire::Directive>,
    foreign: ForeignNews,
}

fn everything(state: &State, hearer: &Hearer<'_>) -> Told {
    let Hearer { caller, who, now } = *hearer;
    let applies = state.rules().values().filter(|it| may_apply(&it.value, caller));
    Told {
        upserts: applies.map(|it| convert::rule(&it.value)).collect(),
        removed_rules: Vec::new(),
        directives: revoked_of(state, who).chain(renewals::orders_for(state, who, now)).collect(),
        foreign: ForeignNews::everything(state),
    }
}

/// Costs what changed, not what there is.
fn changed<'a>(state: &State, hearer: &Hearer<'_>, changes: impl Iterator<Item = &'a DocumentKey>) -> Told {
    let Hearer { caller, who, now } = *hearer;
    let mut told = Told::default();
    // Each once, however often it changed.
    let keys: BTreeSet<&DocumentKey> = changes.collect();
    for key in keys {
        if key.kind == Kind::Rule {
            let rule = key.id.parse().ok().and_then(|name: RuleName| state.rules().get(&name));
            match rule.filter(|it| may_apply(&it.value, caller)) {
                Some(rule) => told.upserts.push(convert::rule(&rule.value)),
                // Deleted, or changed so that it cannot apply (any more).
                None => told.removed_rules.push(key.id.clone()),
            }
        } else if key.kind == Kind::ForeignBundle {
            told.foreign.note(state, key);
        } else if key.kind == Kind::Revocation {
            told.directives.extend(revoked(state, key, who));
        } else if key.kind == Kind::Renewal {
            let order = state.renewals().get(&key.id);
            told.directives.extend(order.and_then(|it| renewals::order_for(&it.value, who, now)));
        }
    }
    told
}

/// Whether `rule` could ever grant something to a workload of this node: its conditions on the node itself must hold.
fn may_apply(rule: &Rule, caller: &AttestedCaller) -> bool {
    let Principal::Node { cluster, method, name } = caller.principal() else { return false };
    rule.when().iter().all(|(attribute, values)| {
        let allows = |value: &str| values.contains("*") || values.contains(value);
        match attribute {
            AttributeName::Cluster => allows(cluster.as_str()),
            AttributeName::Node => allows(name.as_str()),
            AttributeName::Method => allows(method.as_str()),
            AttributeName::Namespace => {
                values.contains("*") || values.iter().any(|value| caller.scope().allows_namespace(value))
            }
            // What only the workload's own attestation can tell.
            AttributeName::Platform
            | AttributeName::ServiceAccount
            | AttributeName::Pod
            | AttributeName::UnixUid
            | AttributeName::UnixGid
            | AttributeName::UnixUser
            | AttributeName::UnixPath
            | AttributeName::UnixSha256
            | AttributeName::UnixCgroup
            | AttributeName::SystemdUnit
            | AttributeName::Label(_) => true,
        }
    })
}

fn bytes_of(set: &wire::CrlSet) -> usize {
    set.crls_der.iter().chain(&set.issuers_der).map(|der| der.len()).sum()
}

/// Everything that `who` must stop serving.
fn revoked_of(state: &State, who: &str) -> impl Iterator<Item = wire::Directive> {
    let mine = state.revocations().values().filter(move |it| it.value.holder == who);
    mine.map(|it| stop_serving(&it.value))
}

/// What the changed document says that `who` must stop serving.
fn revoked(state: &State, key: &DocumentKey, who: &str) -> Option<wire::Directive> {
    let serial: Serial = key.id.parse().ok().filter(|_| key.kind == Kind::Revocation)?;
    let revocation = state.revocations().get(&serial.counter())?;
    (revocation.value.holder == who).then(|| stop_serving(&revocation.value))
}

fn stop_serving(revocation: &Revocation) -> wire::Directive {
    let order =
        wire::StopServing { serials: vec![revocation.serial.to_string()], reason: revocation.reason.clone() };
    wire::Directive { order: Some(Order::StopServing(order)) }
}
