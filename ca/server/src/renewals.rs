//! Orders to renew: planned from who is on record and what is known to be served, kept as documents, told on the sync
//! stream.
//!
//! Laws: an order stands in the store and in the ledger before the first node hears of it, so that it outlives this
//! process and reaches the nodes of every replica; each node that it concerns is told once for each stream, also one that
//! connects later, until the window ends. Orders do not cancel each other: a node obeys the earliest slot.
//! Not here: who renews when (`rhizome_core::renewals`), forgetting orders that are over (`housekeeping`), what a node
//! does (`rhizome-agent`).
//! Sources: ca/docs/issuance.md, Renewal.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rhizome_core::documents::Transaction;
use rhizome_core::nodes::NodeRecord;
use rhizome_core::renewals::{Holder, Order, RenewalOrder, Schedule, schedule};
use rhizome_core::state::State;
use rhizome_id::{ClusterName, Timestamp, Ttl};
use rhizome_proto::node::v1 as wire;
use rhizome_proto::node::v1::directive;

use crate::api::convert;
use crate::ca::Ca;
use crate::error::{ApiError, IssueError};

/// Documents of orders in force. Each is looked at for every stream that opens; an operator gives one or two.
const MOST_IN_FORCE: usize = 256;
/// Certificates that a node is believed to serve: a report beyond that would push everybody else together.
const MOST_PER_NODE: u32 = 10_000;

/// Whom an order concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The node of this id.
    Node(String),
    /// The nodes of one cluster.
    Cluster(ClusterName),
    /// Every node.
    All,
    /// These principals, with how many certificates each has to renew at least.
    These(BTreeMap<String, u32>),
}

/// What is to be ordered.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) whom: Whom,
    /// Over how long the renewals are spread, from now on.
    pub(crate) window: Ttl,
    /// Authority key identifiers (raw bytes) of the issuers whose certificates are meant. Empty: all.
    pub(crate) issuers: &'a [Vec<u8>],
    /// The stable text of a principal, or `server`.
    pub(crate) by: &'a str,
    pub(crate) reason: &'a str,
}

/// An order as it would be given.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) order: Order,
    pub(crate) schedule: Schedule,
    /// How many of the nodes are connected to this replica; the others are told when they connect.
    pub(crate) connected: usize,
    subject: String,
}

impl Ca {
    /// Plans an order: who would renew when. Changes nothing.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] when the one node that is meant is not on record.
    pub(crate) fn plan_renewal(&self, wish: &Wish<'_>, now: Timestamp) -> Result<Planned, ApiError> {
        let state = self.state();
        let (records, subject): (Vec<&NodeRecord>, String) = match &wish.whom {
            Whom::Node(id) => {
                let known = state.nodes().get(id);
                let unknown = || ApiError::NotFound { what: "node", name: id.chars().take(400).collect() };
                (vec![&*known.ok_or_else(unknown)?.value], id.clone())
            }
            Whom::Cluster(cluster) => {
                let all = state.nodes().values().map(|it| &*it.value);
                (all.filter(|it| it.cluster == *cluster).collect(), format!("cluster {cluster}"))
            }
            Whom::All => (state.nodes().values().map(|it| &*it.value).collect(), "all nodes".to_owned()),
            Whom::These(them) => {
                let all = state.nodes().values().map(|it| &*it.value);
                let meant = |it: &&NodeRecord| them.contains_key(&it.principal().to_string());
                (all.filter(meant).collect(), format!("{} nodes", them.len()))
            }
        };
        let lives = |it: &&NodeRecord| it.lives(now);
        let mut connected: usize = 0;
        let holders = records.into_iter().filter(lives).map(|record| {
            let (mut holder, present) = self.holder_of(record, wish.issuers);
            if let Whom::These(them) = &wish.whom {
                let known = them.get(&holder.principal).copied().unwrap_or_default();
                holder.certificates = holder.certificates.max(known.min(MOST_PER_NODE));
            }
            connected = connected.saturating_add(usize::from(present));
            holder
        });
        let schedule = schedule(holders.collect(), now, wish.window);
        let order = Order {
            name: self.order_name(now)?,
            given_at: now,
            deadline: now.plus(wish.window.seconds()),
            by: wish.by.to_owned(),
            reason: wish.reason.to_owned(),
            issuers: wish.issuers.iter().map(hex::encode).collect(),
        };
        Ok(Planned { order, schedule, connected, subject })
    }

    /// What a node would have to renew, as far as it has said; and whether it is connected here.
    fn holder_of(&self, record: &NodeRecord, issuers: &[Vec<u8>]) -> (Holder, bool) {
        let principal = record.principal().to_string();
        let present = self.presence.of(&principal);
        let meant = |id: &Bytes| issuers.is_empty() || issuers.iter().any(|issuer| *issuer == **id);
        let served = present.iter().flat_map(|it| &it.serves).filter(|it| meant(&it.authority_key_id));
        // Its own is among those that it reports. Agents of earlier releases left it out: one too few harms nobody.
        let unsaid = present.as_ref().is_none_or(|it| it.reported_at.is_none());
        let (mut certificates, mut first_end) = (u32::from(unsaid), record.not_after);
        for issuer in served {
            certificates = certificates.saturating_add(issuer.count);
            let end = issuer.earliest_not_after.as_ref().map(|end| Timestamp::from_unix(end.seconds));
            first_end = end.map_or(first_end, |end| end.min(first_end));
        }
        (
            Holder { principal, certificates: certificates.clamp(1, MOST_PER_NODE), first_end },
            present.is_some(),
        )
    }

    fn order_name(&self, now: Timestamp) -> Result<String, ApiError> {
        let mut random = [0; 4];
        self.ports.entropy.fill(&mut random).map_err(|_opaque| IssueError::NoEntropy)?;
        let date: String = now.to_string().chars().filter(char::is_ascii_digit).take(8).collect();
        Ok(format!("renewal-{date}-{}", hex::encode(random)))
    }

    /// Gives the order; whoever is connected hears of it at once.
    ///
    /// # Errors
    /// [`ApiError::Conflict`] when too many are in force; [`ApiError::Store`].
    pub(crate) async fn order_renewal(self: &Arc<Self>, planned: &Planned) -> Result<(), ApiError> {
        let now = self.ports.clock.now();
        let in_force = self.state().renewals().values().filter(|it| it.value.order.deadline > now).count();
        let parts = RenewalOrder::parts(&planned.order, &planned.schedule);
        if in_force.saturating_add(parts.len()) > MOST_IN_FORCE {
            return Err(ApiError::Conflict {
                what: "order to renew",
                name: planned.order.name.clone(),
                problem: "is one too many; wait until the windows of others have ended",
            });
        }
        let Order { by, reason, .. } = &planned.order;
        let detail = format!(
            "{}: {} nodes, {} certificates until {}: {reason}",
            planned.order.name,
            planned.schedule.turns.len(),
            planned.schedule.certificates,
            planned.order.deadline
        );
        let entry = self.changed(by, "node.renew", &planned.subject, &detail);
        let transaction = Transaction::named("order renewal").record(entry);
        let put = |transaction: Transaction, part: &RenewalOrder| transaction.put(part);
        self.commit(parts.iter().fold(transaction, put)).await?;
        tracing::warn!(by, subject = planned.subject, detail, "renewal ordered");
        Ok(())
    }
}

/// What `who` is told of every order in force.
pub(crate) fn orders_for(state: &State, who: &str, now: Timestamp) -> Vec<wire::Directive> {
    state.renewals().values().filter_map(|part| order_for(&part.value, who, now)).collect()
}

/// What `who` is told of one order (or a part of one), if it concerns it and is not over.
pub(crate) fn order_for(part: &RenewalOrder, who: &str, now: Timestamp) -> Option<wire::Directive> {
    let slot = part.slot(who, now)?;
    let Order { name, given_at: _, deadline, by: _, reason, issuers } = &part.order;
    let order = wire::RenewBy {
        deadline: Some(convert::timestamp(*deadline)),
        slot: Some(convert::timestamp(slot)),
        reason: reason.clone(),
        authority_key_ids: issuers.iter().filter_map(|id| hex::decode(id).ok()).map(Bytes::from).collect(),
        name: name.clone(),
    };
    Some(wire::Directive { order: Some(directive::Order::RenewBy(order)) })
}
