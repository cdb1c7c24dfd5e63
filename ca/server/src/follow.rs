//! Following: takes in what other replicas wrote to a store that they share.
//!
//! Laws: a replica that has taken in everything up to a version has missed nothing before it. A commit tells the newest
//! version there is, so nothing is signed on a state that is older than the certificate's own record: a ban, a rule or a
//! revocation that was committed anywhere before it counts. Being woken makes it fast, looking now and then makes it
//! sure. Where nobody else writes, none of this costs anything.
//! Not here: who the other replicas are (`replicas`), how a store tells (`rhizome_store`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rhizome_core::authority::AuthorityKind;
use rhizome_core::changes::{Changed, Changes};
use rhizome_core::documents::{Document, Kind, Version};
use rhizome_core::ports::StoreError;
use rhizome_core::state::{State, StateError};

use crate::ca::Ca;

/// How often it looks without being woken.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Wait after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// Documents read in one go.
const PAGE: usize = 1_000;

/// How far a replica has followed.
#[derive(Debug)]
pub(crate) struct Following {
    shared: bool,
    /// Everything up to this version has been taken in.
    through: AtomicU64,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Following {
    /// From `since` on, which was asked for before the state was loaded.
    pub(crate) fn from(shared: bool, since: Version) -> Self {
        Self { shared, through: AtomicU64::new(since.0), one_at_a_time: tokio::sync::Mutex::default() }
    }

    fn through(&self) -> Version {
        Version(self.through.load(Ordering::Acquire))
    }

    /// Notes that what was committed at `version` has been taken in, where it came next.
    pub(crate) fn took_in(&self, version: Version) {
        let before = version.0.saturating_sub(1);
        // Otherwise another replica wrote in between, or a commit of ours is still on its way: it will be asked for.
        let _asked_for =
            self.through.compare_exchange(before, version.0, Ordering::AcqRel, Ordering::Acquire).is_err();
    }
}

impl Ca {
    /// Follows until the process stops.
    pub(crate) async fn follow_others(self: Arc<Self>) {
        if !self.following.shared {
            return;
        }
        let mut fails = false;
        loop {
            tokio::select! {
                () = self.ports.store.wait_for_change(self.following.through()) => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match self.catch_up().await {
                Ok(()) => fails = false,
                Err(cause) => {
                    if !fails {
                        tracing::warn!(%cause, "cannot see what other replicas write; trying again");
                    }
                    fails = true;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Sees to it that everything up to `version` has been taken in.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot tell.
    pub(crate) async fn caught_up_to(&self, version: Version) -> Result<(), StoreError> {
        if !self.following.shared || self.following.through() >= version {
            return Ok(());
        }
        let _one_at_a_time = self.following.one_at_a_time.lock().await;
        // Whoever held it before may have brought it.
        if self.following.through() >= version { Ok(()) } else { self.catch_up_alone().await }
    }

    /// Takes in everything that there is.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot tell.
    pub(crate) async fn catch_up(&self) -> Result<(), StoreError> {
        if !self.following.shared {
            return Ok(());
        }
        let _one_at_a_time = self.following.one_at_a_time.lock().await;
        self.catch_up_alone().await
    }

    async fn catch_up_alone(&self) -> Result<(), StoreError> {
        let mut since = self.following.through();
        let (mut all, mut anew) = (Vec::new(), false);
        loop {
            match self.ports.store.changes(since, PAGE).await? {
                Changes::These { changed, through, more } => {
                    all.extend(changed);
                    since = through;
                    if !more {
                        break;
                    }
                }
                Changes::Forgotten => {
                    tracing::warn!("away for too long to be told what changed; reading everything anew");
                    let newest = self.ports.store.newest_version().await?;
                    self.read_anew().await?;
                    since = newest;
                    anew = true;
                    all.clear();
                }
            }
        }
        if !all.is_empty() {
            // An issuer is only usable with its root at hand, which may have been written again since.
            all.sort_by_key(|change| !is_root(change));
            self.replace_state(|state| take_in(state, &all));
        }
        if anew {
            // The store may know less than it did: a failover, or a dump that was put back.
            self.following.through.store(since.0, Ordering::Release);
        } else {
            self.following.through.fetch_max(since.0, Ordering::AcqRel);
        }
        Ok(())
    }
}

fn is_root(change: &Changed) -> bool {
    let root = format!("\"kind\":\"{}\"", AuthorityKind::Root);
    change.key.kind == Kind::Authority && change.body.as_ref().is_some_and(|body| body.contains(&root))
}

fn take_in(state: &mut State, changes: &[Changed]) {
    // What leans on another change of these comes again after it.
    let leaning: Vec<_> = changes.iter().filter(|change| apply(state, change).is_err()).collect();
    for change in leaning {
        if let Err(cause) = apply(state, change) {
            tracing::error!(key = %change.key, %cause, "a change of another replica cannot be used");
        }
    }
}

fn apply(state: &mut State, change: &Changed) -> Result<(), StateError> {
    let Changed { key, version, body } = change;
    match body {
        Some(body) => state.put(&Document { key: key.clone(), version: *version, body: Arc::clone(body) }),
        None => state.delete(key, *version),
    }
}
