//! The sync stream: what a node must know, pushed as it changes; what a node knows, told back.
//!
//! Laws: the first answer brings a node from its cursor to now, as a delta where this process remembers far enough
//! back and whole otherwise; every later change follows as a delta. A cursor counts only on the last message of a
//! batch, so a stream that breaks half-way resumes from the batch's beginning. Acknowledgements are kept durably.
//! A banned or evicted node's stream ends.

use std::sync::Arc;

use rhizome_core::attributes::AttributeName;
use rhizome_core::caller::{AttestedCaller, Principal};
use rhizome_core::documents::Version;
use rhizome_core::rules::Rule;
use rhizome_core::state::State;
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::directive::Order;
use rhizome_proto::node::v1::sync_request::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Streaming};

use super::convert;
use crate::ca::Ca;
use crate::error::ApiError;
use crate::peer::PeerInfo;
use crate::status::{Answer, Broken, Outgoing};

/// Rules in one message. A rule has at most 32 KiB as it is stored (`api::admin::rules`), so a message has at most
/// 3.2 MB, below the 4 MiB that gRPC clients accept unless told otherwise.
const RULES_PER_MESSAGE: usize = 100;
/// Messages waiting for a slow node; the stream then waits for it and nobody else does.
const WAITING_MESSAGES: usize = 4;

type Answers = mpsc::Sender<Result<wire::SyncResponse, Broken>>;

impl Ca {
    pub(crate) async fn start_sync(
        self: &Arc<Self>,
        peer: PeerInfo,
        mut incoming: Streaming<wire::SyncRequest>,
    ) -> Answer<Outgoing<wire::SyncResponse>> {
        let hello = match incoming.message().await?.and_then(|first| first.message) {
            Some(Message::Hello(hello)) => hello,
            Some(Message::BundleAcknowledgement(_) | Message::ServedIssuers(_)) | None => {
                let problem = "the first message says hello".to_owned();
                return Err(ApiError::Invalid { field: "message", problem }.into());
            }
        };
        let (answers, outgoing) = mpsc::channel(WAITING_MESSAGES);
        let ca = Arc::clone(self);
        self.spawner.spawn_until_stop("sync", async move {
            if let Err(broken) = ca.sync(&peer, hello, incoming, &answers).await {
                drop(answers.send(Err(broken)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn sync(
        self: &Arc<Self>,
        peer: &PeerInfo,
        hello: wire::Hello,
        mut incoming: Streaming<wire::SyncRequest>,
        answers: &Answers,
    ) -> Result<(), Broken> {
        let who = self.identify(peer)?.principal().to_string();
        let present = self.presence.enter(&who, &hello.agent_version, self.ports.clock.now());
        let mut changes = self.changes();
        let mut follower = Follower { cursor: Version(hello.cursor), bundle: 0, first: true };
        loop {
            changes.mark_unchanged();
            let state = self.state();
            let caller = self.identify(peer)?;
            for message in follower.catch_up(&state, &caller, &who, self.remembers_since()) {
                if answers.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Ok(());
                },
                message = incoming.message() => match message?.map(|it| it.message) {
                    None => return Ok(()),
                    Some(Some(Message::BundleAcknowledgement(acknowledgement))) => {
                        present.seen(self.ports.clock.now());
                        self.acknowledge(&who, &acknowledgement).await?;
                    }
                    Some(Some(Message::ServedIssuers(served))) => {
                        present.seen(self.ports.clock.now());
                        self.presence.serves(&who, served.issuers);
                    }
                    Some(Some(Message::Hello(_)) | None) => {
                        let problem = "hello is said once, at the beginning".to_owned();
                        return Err(ApiError::Invalid { field: "message", problem }.into());
                    }
                },
            }
        }
    }
}

/// How far a node has been told.
struct Follower {
    cursor: Version,
    bundle: u64,
    first: bool,
}

impl Follower {
    /// The messages that bring the node to `state`; none when nothing concerns it.
    fn catch_up(
        &mut self,
        state: &State,
        caller: &AttestedCaller,
        who: &str,
        remembers_since: Version,
    ) -> Vec<wire::SyncResponse> {
        let first = std::mem::replace(&mut self.first, false);
        // A cursor from before this process began to remember deletions, or from a future that a restored backup
        // does not know, cannot be followed: start anew.
        let unknown = self.cursor < remembers_since || self.cursor > state.version();
        let full = first && (self.cursor == Version(0) || unknown);
        let since = if full { Version(0) } else { self.cursor };
        let (upserts, removed_rules) = rules_since(state, caller, since, full);
        let published =
            state.bundle().map(|it| &it.value.bundle).filter(|it| first || it.sequence() > self.bundle);
        self.bundle = published.map_or(self.bundle, rhizome_x509::Bundle::sequence);
        let directives = stop_orders(state, who, since);
        self.cursor = state.version();
        let nothing =
            upserts.is_empty() && removed_rules.is_empty() && published.is_none() && directives.is_empty();
        if nothing && !first {
            return Vec::new();
        }
        let mut messages: Vec<wire::SyncResponse> = upserts
            .chunks(RULES_PER_MESSAGE)
            .map(|chunk| wire::SyncResponse { upserts: chunk.to_vec(), ..wire::SyncResponse::default() })
            .collect();
        // The last message carries everything else, and the cursor that makes the batch count.
        let last = messages.pop().unwrap_or_default();
        messages.push(wire::SyncResponse {
            cursor: self.cursor.0,
            removed_rules,
            bundle: published.map(convert::bundle),
            directives,
            ..last
        });
        if let Some(message) = messages.first_mut() {
            message.full = full;
        }
        messages
    }
}

type WireRule = rhizome_proto::ca::v1::GrantRule;

fn rules_since(
    state: &State,
    caller: &AttestedCaller,
    since: Version,
    full: bool,
) -> (Vec<WireRule>, Vec<String>) {
    let mut upserts = Vec::new();
    let mut removed: Vec<String> = Vec::new();
    for (name, rule) in state.rules().iter().filter(|(_, rule)| full || rule.version > since) {
        if may_apply(&rule.value, caller) {
            upserts.push(convert::rule(&rule.value));
        } else if !full {
            // It may have applied before it was changed.
            removed.push(name.to_string());
        }
    }
    if !full {
        removed.extend(state.rules_deleted_since(since).map(ToOwned::to_owned));
    }
    (upserts, removed)
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
            | AttributeName::SystemdUnit
            | AttributeName::Label(_) => true,
        }
    })
}

fn stop_orders(state: &State, who: &str, since: Version) -> Vec<wire::Directive> {
    let mine = state.revocations().values().filter(|it| it.version > since && it.value.holder == who);
    mine.map(|it| {
        let order =
            wire::StopServing { serials: vec![it.value.serial.to_string()], reason: it.value.reason.clone() };
        wire::Directive { order: Some(Order::StopServing(order)) }
    })
    .collect()
}
