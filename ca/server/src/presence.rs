//! Who is connected now, and since when: what `node list` and the bundle's subscribers show beside the record.
//!
//! Laws: presence is not evidence; it is forgotten with the process. What was acknowledged is a document.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rhizome_id::Timestamp;
use rhizome_proto::node::v1::{ServedIssuer, ServedIssuers};

/// Issuers kept of one report: a node serves certificates of one or two, a few more while they rotate. Whoever says as many
/// may serve more.
pub(crate) const SERVED_ISSUERS: usize = 64;

/// What is known about a connected caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Present {
    /// Open streams.
    pub(crate) streams: usize,
    /// Last sign of life.
    pub(crate) last_seen: Timestamp,
    /// What it calls its own version.
    pub(crate) agent_version: String,
    /// Issuers of the certificates it serves, as it last reported.
    pub(crate) serves: Vec<ServedIssuer>,
    /// Whether the certificate by which it calls is among them.
    pub(crate) with_own: bool,
    /// When it last said so; `None`: not yet.
    pub(crate) reported_at: Option<Timestamp>,
    /// The generation of revocation lists that its newest stream was told.
    pub(crate) crls: u64,
}

/// Everybody connected, by the stable text of the principal.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    callers: Arc<Mutex<BTreeMap<String, Present>>>,
    own_uid: OnceLock<u32>,
}

impl Presence {
    /// Notes an open stream of `who` until the guard is dropped.
    pub(crate) fn enter(&self, who: &str, agent_version: &str, now: Timestamp) -> PresenceGuard {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = callers.entry(who.to_owned()).or_insert_with(|| Present {
            streams: 0,
            last_seen: now,
            agent_version: String::new(),
            serves: Vec::new(),
            with_own: false,
            reported_at: None,
            crls: 0,
        });
        entry.streams = entry.streams.saturating_add(1);
        entry.last_seen = now;
        entry.agent_version = agent_version.chars().take(64).collect();
        // The new stream has been told nothing yet.
        entry.crls = 0;
        PresenceGuard { callers: Arc::clone(&self.callers), who: who.to_owned() }
    }

    /// Notes which issuers' certificates `who` serves.
    pub(crate) fn serves(&self, who: &str, said: ServedIssuers, now: Timestamp) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = callers.get_mut(who) {
            present.with_own = said.with_own;
            present.serves = said.issuers.into_iter().take(SERVED_ISSUERS).collect();
            present.reported_at = Some(now);
        }
    }

    /// What is known about `who`, if it is connected.
    pub(crate) fn of(&self, who: &str) -> Option<Present> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).get(who).cloned()
    }

    /// Everybody connected, with what is known about them.
    pub(crate) fn all(&self) -> Vec<(String, Present)> {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.iter().map(|(who, present)| (who.clone(), present.clone())).collect()
    }

    /// Whether anybody connected was not told of the revocation lists of this generation.
    pub(crate) fn any_not_told(&self, generation: u64) -> bool {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.values().any(|present| present.crls < generation)
    }

    /// How many callers are connected.
    pub(crate) fn count(&self) -> usize {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Remembers under which user this server runs.
    pub(crate) fn set_own_uid(&self, uid: u32) {
        // Set once, at start; a second start in one process runs as the same user.
        self.own_uid.get_or_init(|| uid);
    }

    /// Under which user this server runs, once known.
    pub(crate) fn own_uid(&self) -> Option<u32> {
        self.own_uid.get().copied()
    }
}

/// An open stream; dropping it closes the entry.
#[derive(Debug)]
pub(crate) struct PresenceGuard {
    callers: Arc<Mutex<BTreeMap<String, Present>>>,
    who: String,
}

impl PresenceGuard {
    /// Notes a sign of life.
    pub(crate) fn seen(&self, now: Timestamp) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = callers.get_mut(&self.who) {
            present.last_seen = now;
        }
    }
}

impl PresenceGuard {
    /// Notes that revocation lists of this generation were handed to the stream.
    pub(crate) fn told_crls(&self, generation: u64) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = callers.get_mut(&self.who) {
            present.crls = present.crls.max(generation);
        }
    }
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = callers.get_mut(&self.who) {
            present.streams = present.streams.saturating_sub(1);
            if present.streams == 0 {
                callers.remove(&self.who);
            }
        }
    }
}
