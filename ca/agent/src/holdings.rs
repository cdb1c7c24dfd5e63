//! What a workload may be given now, and the one interface between who keeps it and who serves it.
//!
//! Laws: a [`View`] is immutable and whole: what it lacks is redacted. A private key is never printed, compared or
//! copied; it is shared by reference and wiped when the last holder lets go. A bundle counts as being in force only
//! when no open stream can hold an older one that it still needs, and no stream is taking one ([`Standing`]).
//! Not here: fetching and renewing (`cache`), sockets and their wire forms (`workload_api`, `sds`).
//! Sources: SPIFFE Workload API §4.3, §4.4 (full state, redaction); ca/docs/ARCHITECTURE.md §2 (acknowledged trust).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use rhizome_core::attributes::Attributes;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain};
use rhizome_x509::Bundle;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::tokens::Tokens;

/// What one workload may be given now. Immutable; replaced whole.
#[derive(Debug)]
pub struct View {
    /// Its identities, the default one first, unless that is awaited ([`Self::default_svid`]). None expired when the view
    /// was made. Empty only while all that there are for this workload are awaited: it is no denial, and the bundles are
    /// the workload's all the same.
    pub svids: Vec<Arc<Svid>>,
    /// Its identities that are not among them, but will be.
    pub awaited: Awaited,
    /// The bundle of its own trust domain and those of the federated ones. Never merged.
    pub bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// Certificate revocation lists of its own trust domain in DER, one for each issuer known; empty when one of them is
    /// missing, since a verifier that has some lists refuses the certificates of every issuer whose list it lacks.
    pub crls: Arc<Vec<Vec<u8>>>,
    /// Grows with every view the agent makes, over all workloads.
    pub version: u64,
}

/// Identities that the rules give to a workload, that the authority has not denied, and of which no certificate is held
/// now: never asked for yet, or revoked, or expired. Their absence from a view is no denial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Which ones.
    pub identities: BTreeSet<SpiffeId>,
    /// Whether the default identity is one of them. Then no other one is to be taken for it.
    pub default: bool,
}

impl View {
    /// The workload's default identity; `None` while it is on its way.
    pub fn default_svid(&self) -> Option<&Arc<Svid>> {
        self.svids.first().filter(|_| !self.awaited.default)
    }

    /// The identity called `id`; of one that is not granted, or not any more, a denial.
    ///
    /// # Errors
    /// [`NotYet`].
    pub fn svid(&self, id: &SpiffeId) -> Result<&Arc<Svid>, NotYet> {
        let held = self.svids.iter().find(|svid| svid.spiffe_id == *id);
        held.ok_or_else(|| match self.awaited.identities.contains(id) {
            true => NotYet::Starting,
            false => NotYet::Denied("the rules give another identity than this one".to_owned()),
        })
    }
}

/// One identity with its private key.
pub struct Svid {
    /// Who its holder is.
    pub spiffe_id: SpiffeId,
    /// The chain to present, each certificate in DER: leaf, then intermediates, no root.
    pub chain_der: Vec<Vec<u8>>,
    /// The private key, PKCS #8 in DER, unencrypted.
    pub key_pkcs8_der: Zeroizing<Vec<u8>>,
    /// First second at which it is valid.
    pub not_before: Timestamp,
    /// Last second at which it is valid: inclusive.
    pub not_after: Timestamp,
    /// When it is renewed; drawn once for this certificate.
    pub renew_at: Timestamp,
    /// Serial number, 40 lower-case hexadecimal digits.
    pub serial: String,
    /// What tells it apart from the workload's other identities; unique within a view, possibly empty.
    pub hint: String,
}

/// Why there is no view, or none any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// The workload may have no identity. What it was given before is redacted.
    #[error("no identity issued: {0}")]
    Denied(String),
    /// The agent does not know yet whether it may have one, or which bundle is in force. Of one identity of a view: it is
    /// awaited.
    #[error("the agent has no identity for this workload yet")]
    Starting,
}

/// Whether a follower that sees `other` must be told of `one`.
pub(crate) fn differs(one: &Result<Arc<View>, NotYet>, other: &Result<Arc<View>, NotYet>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => {
            let same_svids = one.svids.len() == other.svids.len()
                && one.svids.iter().zip(&other.svids).all(|(a, b)| Arc::ptr_eq(a, b));
            !same_svids
                || one.awaited != other.awaited
                || one.bundles != other.bundles
                || !Arc::ptr_eq(&one.crls, &other.crls)
        }
        (Err(one), Err(other)) => one != other,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => true,
    }
}

/// What the sockets know about what one open stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has been given nothing, and is about to take what there is.
    Taking,
    /// It was given nothing, and waits; or it was told that it may have nothing.
    Nothing,
    /// It was given the view of this version, or what in it concerns the stream.
    Given(u64),
    /// The same for a stream that can be given bundles only together with certificates: the last of those that it was
    /// given is valid until then, inclusive. From there on nobody accepts what it holds, and what it trusts no longer
    /// counts; whoever has no valid certificate is no live follower of a bundle.
    GivenUntil(u64, Timestamp),
    /// It ended.
    Gone,
}

impl Standing {
    /// Whether a stream that stands so holds a view for which `newest` holds, or none that counts at `now`.
    pub(crate) fn has(&self, now: Timestamp, newest: impl Fn(u64) -> bool) -> bool {
        match self {
            Self::Taking => false,
            Self::Given(version) => newest(*version),
            Self::GivenUntil(version, until) => *until < now || newest(*version),
            Self::Nothing | Self::Gone => true,
        }
    }
}

/// Implemented by the cache, asked by the sockets.
pub trait Identities: Send + Sync + 'static {
    /// Follows what a workload with these attested attributes may have. The first value is there at once when cached;
    /// identities are fetched lazily, on first subscription, and shared by all subscribers with the same identity.
    /// `attributes` are the workload's own: `platform`, `cluster`, `node` and `method` are added by the agent.
    fn follow(&self, attributes: Attributes) -> watch::Receiver<Result<Arc<View>, NotYet>>;

    /// The trust domain that the agent belongs to.
    fn trust_domain(&self) -> &TrustDomain;

    /// Whether anybody can be served, now and after every change.
    fn readiness(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    /// A number for a new open stream, which stands at [`Standing::Taking`] until told otherwise.
    fn open(&self) -> u64;

    /// Says where an open stream stands now.
    fn stands(&self, subscriber: u64, standing: Standing);

    /// Where the workloads' tokens come from; `None` when this agent does not offer the JWT profile.
    fn tokens(&self) -> Option<Arc<dyn Tokens>> {
        None
    }
}

/// One open stream of one workload: [`Identities::follow`] with the book-keeping that acknowledgements need.
pub struct Subscription {
    identities: Arc<dyn Identities>,
    subscriber: u64,
    receiver: watch::Receiver<Result<Arc<View>, NotYet>>,
    first: bool,
    /// Where it stands while there is nothing to give: what it was given stays with it.
    waiting: Standing,
}

impl Subscription {
    /// Opens a stream for a workload with these attested attributes.
    pub fn open(identities: Arc<dyn Identities>, attributes: Attributes) -> Self {
        let subscriber = identities.open();
        let receiver = identities.follow(attributes);
        Self { identities, subscriber, receiver, first: true, waiting: Standing::Nothing }
    }

    /// What the workload may have: the first time at once, then when it has changed. `None` when the agent stops.
    /// Report a view that was handed over with [`Self::delivered`]. Cancelling this loses nothing.
    pub async fn next(&mut self) -> Option<Result<Arc<View>, NotYet>> {
        if !self.first {
            self.receiver.changed().await.ok()?;
        }
        self.first = false;
        // Before looking: from here on this stream may come to hold whatever is current now.
        self.identities.stands(self.subscriber, Standing::Taking);
        let value = self.receiver.borrow_and_update().clone();
        match &value {
            // The workload still has the bundle that it was given, if it was given one.
            Err(NotYet::Starting) => self.waits(),
            // It is told so, and its stream ends.
            Err(NotYet::Denied(_)) => self.identities.stands(self.subscriber, Standing::Nothing),
            Ok(_) => {}
        }
        Some(value)
    }

    /// The workload is given nothing of what there is now; it has what it was given before.
    pub fn waits(&self) {
        self.identities.stands(self.subscriber, self.waiting);
    }

    /// The workload is about to be given something; until it is known that it was, it may hold either.
    pub const fn gives(&mut self) {
        if matches!(self.waiting, Standing::Nothing) {
            self.waiting = Standing::Taking;
        }
    }

    /// What the workload may have at this moment. It is not taken for being given.
    pub fn current(&self) -> Result<Arc<View>, NotYet> {
        self.receiver.borrow().clone()
    }

    /// The workload is given nothing that has to be acknowledged.
    pub fn takes_nothing(&self) {
        self.identities.stands(self.subscriber, Standing::Nothing);
    }

    /// The workload has been given the view of this version.
    pub fn delivered(&mut self, view_version: u64) {
        self.gave(Standing::Given(view_version));
    }

    /// The workload has been given the view of this version, and will be given another one only with certificates in it;
    /// the last of those that it has now is valid until then.
    pub fn delivered_until(&mut self, view_version: u64, until: Timestamp) {
        self.gave(Standing::GivenUntil(view_version, until));
    }

    fn gave(&mut self, standing: Standing) {
        self.waiting = standing;
        self.identities.stands(self.subscriber, standing);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.identities.stands(self.subscriber, Standing::Gone);
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spiffe_id, chain_der, key_pkcs8_der: _, not_before, not_after, renew_at, serial, hint } =
            self;
        f.debug_struct("Svid")
            .field("spiffe_id", spiffe_id)
            .field("chain", &chain_der.len())
            .field("not_before", not_before)
            .field("not_after", not_after)
            .field("renew_at", renew_at)
            .field("serial", serial)
            .field("hint", hint)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("subscriber", &self.subscriber).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::Offered;
    use crate::cache::Cache;
    use crate::spawn::Spawner;
    use crate::system::SystemClock;
    use crate::testing::{attributes, bundle, entitlement, node, root, rule, svid, valid};

    #[tokio::test]
    async fn a_workload_whose_only_identity_was_revoked_still_holds_the_bundle_it_was_given() {
        let clock = Arc::new(SystemClock);
        let cache =
            Cache::new("example.org".parse().unwrap(), Arc::<SystemClock>::clone(&clock), Spawner::default());
        let cache = Arc::new(cache);
        let (now, root) = (rhizome_core::ports::Clock::now(&*clock), root("r1"));
        let all = valid(rule("all", ("unix.uid", "*"), "/any"));
        cache.set_node(node());
        cache.apply(crate::book::RuleChange {
            full: true,
            upserts: vec![all],
            removed: Vec::new(),
            cursor: 1,
        });
        assert_eq!(cache.offer(bundle(1, &[&root])), Offered::InForce);
        cache.set_sealed(1);
        let mut stream = Subscription::open(Arc::<Cache>::clone(&cache), attributes(&[("unix.uid", "1")]));
        let acknowledged = || cache.acknowledgeable().borrow().map(|(sequence, _)| sequence);
        nothing(&mut stream).await;
        assert_eq!(acknowledged(), Some(1), "it was given nothing");
        cache.ask(&entitlement("/any")).unwrap();
        cache.issued(&entitlement("/any"), svid("/any", "a1", now));
        let view = stream.next().await.unwrap().unwrap();
        stream.delivered_until(view.version, now.plus(3_599));
        assert_eq!(acknowledged(), Some(1));

        cache.stop(&["a1".to_owned()]);
        nothing(&mut stream).await;
        assert_eq!(acknowledged(), Some(1));
        cache.offer(bundle(2, &[&root]));
        cache.set_sealed(2);
        nothing(&mut stream).await;
        assert_eq!(acknowledged(), None, "it holds the bundle before");
        cache.issued(&entitlement("/any"), svid("/any", "a2", now));
        let view = stream.next().await.unwrap().unwrap();
        stream.gives();
        cache.stop(&["a2".to_owned()]);
        nothing(&mut stream).await;
        assert_eq!(acknowledged(), None);
        stream.delivered_until(view.version, now.plus(3_599));
        assert_eq!(acknowledged(), Some(2));
        cache.offer(bundle(3, &[&root]));
        cache.set_sealed(3);
        nothing(&mut stream).await;
        assert_eq!(acknowledged(), None);
        stream.delivered_until(view.version, now.plus(-1));
        assert_eq!(acknowledged(), Some(3), "nobody accepts what it holds any more");
    }

    /// There is a view, and no identity in it: a stream of identities waits.
    async fn nothing(stream: &mut Subscription) {
        assert_eq!(stream.next().await.unwrap().unwrap().svids.len(), 0);
        stream.waits();
    }
}
