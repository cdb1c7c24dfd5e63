//! One open call of one workload: attested, subscribed, checked again before each answer.
//!
//! Laws: nothing is given before the caller is attested, and nothing afterwards without a fresh look that it is still
//! the same process. What the transport has taken, and nothing else, counts as delivered; it takes one message more than
//! a caller leaves it room for, so a caller that stopped reading is noticed at the message after that. It then loses its
//! connection, so that it holds up no acknowledgement.
//! Not here: the wire forms (`workload_api`, `sds`).

use std::sync::Arc;

use futures::StreamExt as _;
use rhizome_core::attributes::Attributes;
use rhizome_id::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Extensions;

use crate::attestation::{AttestError, Attested, PeerError};
use crate::holdings::{NotYet, Subscription, View};
use crate::refusal::{Item, Outgoing, Refusal};
use crate::socket::{Caller, Doors, StreamPlace};

/// One open call.
pub(crate) struct Session {
    doors: Arc<Doors>,
    caller: Arc<Caller>,
    attested: Attested,
    subscription: Subscription,
    stop: CancellationToken,
    _place: StreamPlace,
}

/// The caller of a request.
pub(crate) fn caller_of(extensions: &Extensions) -> Result<Arc<Caller>, Refusal> {
    extensions.get::<Arc<Caller>>().cloned().ok_or_else(|| {
        tracing::error!("a request without its connection; this is a bug");
        Refusal::Bug
    })
}

/// A place among the open calls, to be taken before anything is waited for.
pub(crate) fn place_for(doors: &Doors, caller: &Caller) -> Result<StreamPlace, Refusal> {
    doors.streams.enter(&caller.peer, doors.stream_quota()).ok_or(Refusal::Busy)
}

impl Session {
    /// Attests the caller and opens a subscription for what it is.
    pub(crate) async fn open(doors: &Arc<Doors>, caller: Arc<Caller>) -> Result<Self, Refusal> {
        let place = place_for(doors, &caller)?;
        Self::open_at(place, doors, caller).await
    }

    /// The same for a call that has its place already.
    pub(crate) async fn open_at(
        place: StreamPlace,
        doors: &Arc<Doors>,
        caller: Arc<Caller>,
    ) -> Result<Self, Refusal> {
        let attested = doors.attestor.attest(&caller.peer).await.map_err(|cause| {
            tracing::info!(pid = caller.peer.pid(), uid = caller.peer.uid(), %cause, "attestation failed");
            match cause {
                AttestError::Peer(PeerError::Gone | PeerError::Changed(_)) => Refusal::NotTheCaller,
                AttestError::Stopping => Refusal::Stopping,
                AttestError::Peer(
                    PeerError::Credentials(_) | PeerError::Invisible | PeerError::Proc { .. },
                )
                | AttestError::TooSlow
                | AttestError::Attribute(_) => Refusal::Attestation,
            }
        })?;
        let subscription = Subscription::open(Arc::clone(&doors.identities), attested.attributes.clone());
        let stop = doors.spawner.stopping().clone();
        Ok(Self { doors: Arc::clone(doors), caller, attested, subscription, stop, _place: place })
    }

    /// What the caller may have: at once the first time, then when it changes; `None` while there is nothing to give.
    /// Cancelling this loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Arc<View>>, Refusal> {
        let next = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Refusal::Stopping),
            next = self.subscription.next() => next,
        };
        match next {
            None => Err(Refusal::Stopping),
            Some(Ok(view)) => Ok(Some(view)),
            Some(Err(NotYet::Starting)) => Ok(None),
            Some(Err(NotYet::Denied(reason))) => Err(self.denied(&reason)),
        }
    }

    /// The first view, or why there is none within the time callers wait.
    pub(crate) async fn first(&mut self) -> Result<Arc<View>, Refusal> {
        self.first_with(|_any| true).await
    }

    /// The first view that has what the caller wants, or why there is none within the time callers wait.
    pub(crate) async fn first_with(
        &mut self,
        has_it: impl Fn(&View) -> bool + Send,
    ) -> Result<Arc<View>, Refusal> {
        let deadline = Instant::now() + self.doors.limits.patience;
        loop {
            let next = timeout_at(deadline, self.next()).await.map_err(|_elapsed| Refusal::Starting)?;
            if let Some(view) = next? {
                if has_it(&view) {
                    return Ok(view);
                }
                self.subscription.waits();
            }
        }
    }

    /// The caller is given nothing of the view that has come: what it wants is on its way.
    pub(crate) fn waits(&self) {
        self.subscription.waits();
    }

    /// The call is not a stream of bundles: it holds up no acknowledgement while it waits for something else.
    pub(crate) fn takes_nothing(&self) {
        self.subscription.takes_nothing();
    }

    /// What the caller may have at this moment.
    pub(crate) fn current(&self) -> Result<Arc<View>, Refusal> {
        match self.subscription.current() {
            Ok(view) => Ok(view),
            Err(NotYet::Starting) => Err(Refusal::Starting),
            Err(NotYet::Denied(reason)) => Err(self.denied(&reason)),
        }
    }

    /// What was attested about the caller.
    pub(crate) const fn attributes(&self) -> &Attributes {
        &self.attested.attributes
    }

    /// The caller named an identity that it does not have; whether anybody has it is not said.
    pub(crate) fn not_its_own(&self, id: &str) -> Refusal {
        self.denied(&format!("it asked for {id:?}"))
    }

    /// Looks again at the caller; called directly before each answer.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.doors.attestor.recheck(&self.caller.peer, &self.attested).map_err(|cause| {
            tracing::info!(pid = self.caller.peer.pid(), %cause, "a stream was ended");
            Refusal::NotTheCaller
        })
    }

    /// The caller has what concerns it of the view of this version.
    pub(crate) fn delivered(&mut self, version: u64) {
        self.subscription.delivered(version);
    }

    /// The same for a caller that is given bundles only together with certificates: the last of those it has now is valid
    /// until then.
    pub(crate) fn delivered_until(&mut self, version: u64, until: Timestamp) {
        self.subscription.delivered_until(version, until);
    }

    /// Checks the caller, hands `message` over and waits until the transport took it.
    pub(crate) async fn give<T>(&mut self, outlet: &Outlet<T>, message: T) -> Result<(), Refusal> {
        let stall = self.doors.limits.stall;
        let slow = |_elapsed| {
            tracing::info!(
                pid = self.caller.peer.pid(),
                uid = self.caller.peer.uid(),
                "a caller does not read"
            );
            self.caller.hang_up();
            Refusal::Slow("read")
        };
        let gone = |_closed| Refusal::NotTheCaller;
        let room = timeout(stall, outlet.reserve()).await.map_err(slow)?.map_err(gone)?;
        self.check()?;
        self.subscription.gives();
        room.send(Box::new(Ok(message)));
        // There is room for one, so room again means that it was taken.
        timeout(stall, outlet.reserve()).await.map_err(slow)?.map_err(gone)?;
        Ok(())
    }

    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    fn denied(&self, reason: &str) -> Refusal {
        let (pid, uid) = (self.caller.peer.pid(), self.caller.peer.uid());
        tracing::info!(pid, uid, attributes = ?self.attested.attributes, reason, "no identity issued");
        Refusal::NoIdentity
    }
}

/// Where the messages of a stream go; holds one. In a place of its own: a channel has room for 32 of what it carries from
/// its first message on, and there is a channel for each open stream.
pub(crate) type Outlet<T> = mpsc::Sender<Box<Item<T>>>;

/// An outlet and the stream it feeds.
pub(crate) fn outlet<T: Send + 'static>() -> (Outlet<T>, Outgoing<T>) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Box::pin(ReceiverStream::new(receiver).map(|message: Box<Item<T>>| *message)))
}

/// Tells a caller why its stream ends, if it still listens.
pub(crate) async fn end<T>(doors: &Doors, outlet: &Outlet<T>, refusal: Refusal) {
    // Whoever does not take the reason in time gets none; the stream ends all the same.
    drop(timeout(doors.limits.stall, outlet.send(Box::new(Err(refusal.into())))).await);
}
