//! JWT-SVIDs for workloads: asked for at the authority when a workload asks, and kept for half of their life.
//!
//! Laws: a token is kept in memory only, and never printed; a kept one is given only after the caller was found to have
//! the identity now; it is believed only when it verifies against the bundle in force and says what was asked for. While
//! the authority does not answer, a kept one is given until shortly before it expires; when the authority says no, it is
//! given no longer. Equal questions are asked once. What is revoked or no longer granted is dropped, also when it is
//! still on its way.
//! Not here: which tokens are kept (`shelf`), who may have which identity (`book`), wire forms (`workload_api`).
//! Sources: JWT-SVID §3.3 and §7.1; spiffe/spire `pkg/common/rotationutil/rotationutil.go` (half of the life).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use rhizome_core::attributes::Attributes;
use rhizome_core::ports::Clock;
use rhizome_id::{SpiffeId, Timestamp};
use rhizome_proto::ca::v1 as ca;
use rhizome_proto::ca::v1::jwt_service_client::JwtServiceClient;
use rhizome_x509::Bundle;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use crate::spawn::Spawner;
use crate::wire;

mod shelf;

use shelf::{Found, Shelf};

/// How long things may take, together less than a call on the socket may take.
#[derive(Clone, Copy)]
struct Patience {
    /// For a connection to the authority.
    connect: Duration,
    /// For a new token when there is one that is still valid.
    stale: Duration,
}

const PATIENCE: Patience = Patience { connect: Duration::from_secs(5), stale: Duration::from_secs(2) };
/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Most questions on their way at once, and most of them for one identity: no workload takes the connection alone.
const UNDER_WAY: usize = 256;
const UNDER_WAY_PER_IDENTITY: usize = 64;

/// A token with what it says. A bearer secret: wiped when the last holder lets go.
pub struct Token {
    token: Zeroizing<String>,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Whom it is meant for, sorted.
    pub audiences: Vec<String>,
    /// When it was made.
    pub issued_at: Timestamp,
    /// The first second at which it is not valid any more.
    pub expires_at: Timestamp,
}

impl Token {
    /// A token with what it was found to say.
    pub const fn new(
        token: Zeroizing<String>,
        spiffe_id: SpiffeId,
        audiences: Vec<String>,
        (issued_at, expires_at): (Timestamp, Timestamp),
    ) -> Self {
        Self { token, spiffe_id, audiences, issued_at, expires_at }
    }

    /// The token in JWS compact form. Whoever sees it can use it.
    pub fn expose(&self) -> &str {
        &self.token
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, spiffe_id, audiences: _, issued_at: _, expires_at } = self;
        write!(f, "Token({spiffe_id}, until {expires_at})")
    }
}

/// What a workload wants a token for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    /// One of its identities.
    pub spiffe_id: SpiffeId,
    /// Whom the token is meant for: sorted, each once, at least one.
    pub audiences: Vec<String>,
    /// What was attested about the workload.
    pub attributes: Attributes,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    /// The authority says no.
    #[error("the authority does not grant the token: {0}")]
    Denied(String),
    /// The authority finds the question malformed.
    #[error("the authority refused the question: {0}")]
    Refused(String),
    /// The authority signs no tokens.
    #[error("the authority signs no tokens")]
    NotOffered,
    /// It may come later.
    #[error("no token at the moment: {0}")]
    Away(String),
}

/// Implemented by the agent, asked by the sockets.
pub trait Tokens: Send + Sync + 'static {
    /// A token for one of the caller's identities, kept or new. The caller has been found to have the identity; whether
    /// it still has is to be looked at again afterwards.
    fn token(&self, wish: TokenWish) -> BoxFuture<'static, Result<Arc<Token>, NoToken>>;
}

/// How the authority is asked.
pub(crate) type Ask = Arc<
    dyn Fn(ca::SignJwtSvidRequest) -> BoxFuture<'static, Result<ca::SignJwtSvidResponse, Status>>
        + Send
        + Sync,
>;

/// Asks over the agent's connection.
pub(crate) fn over(channel: Channel) -> Ask {
    Arc::new(move |question| {
        let mut client = JwtServiceClient::new(channel.clone());
        Box::pin(async move {
            let mut request = Request::new(question);
            request.set_timeout(ANSWER_PATIENCE);
            client.sign_jwt_svid(request).await.map(tonic::Response::into_inner)
        })
    })
}

type Outcome = Result<Arc<Token>, NoToken>;

/// The tokens of one agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct TokenStore(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    spawner: Spawner,
    patience: Patience,
    desk: Mutex<Desk>,
    bundle: ArcSwapOption<Bundle>,
    authority: watch::Sender<Option<Ask>>,
}

#[derive(Default)]
struct Desk {
    shelf: Shelf,
    under_way: BTreeMap<TokenWish, Flight>,
}

/// A question on its way.
struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    /// The identity was revoked or lost after the question was asked.
    overtaken: bool,
}

/// The connection is there for as long as this is.
pub(crate) struct Connected(Arc<Inner>);

impl Drop for Connected {
    fn drop(&mut self) {
        drop(self.0.authority.send_replace(None));
    }
}

impl TokenStore {
    pub(crate) fn new(clock: Arc<dyn Clock>, spawner: Spawner) -> Self {
        Self::with_patience(clock, spawner, PATIENCE)
    }

    fn with_patience(clock: Arc<dyn Clock>, spawner: Spawner, patience: Patience) -> Self {
        Self(Arc::new(Inner {
            clock,
            spawner,
            patience,
            desk: Mutex::default(),
            bundle: ArcSwapOption::empty(),
            authority: watch::Sender::new(None),
        }))
    }

    /// There is a connection to ask over until the answer is dropped.
    pub(crate) fn connected(&self, ask: Ask) -> Connected {
        drop(self.0.authority.send_replace(Some(ask)));
        Connected(Arc::clone(&self.0))
    }

    /// The bundle that is in force now.
    pub(crate) fn set_bundle(&self, bundle: Option<Arc<Bundle>>) {
        self.0.bundle.store(bundle);
    }

    /// Drops every token of these identities, also those on their way.
    pub(crate) fn forget(&self, identities: &BTreeSet<SpiffeId>) {
        let gone = |id: &SpiffeId| identities.contains(id);
        let mut desk = self.0.desk();
        desk.shelf.drop_where(gone);
        for (_, flight) in desk.under_way.iter_mut().filter(|(wish, _)| gone(&wish.spiffe_id)) {
            flight.overtaken = true;
        }
    }
}

impl Tokens for TokenStore {
    fn token(&self, wish: TokenWish) -> BoxFuture<'static, Outcome> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.token(wish).await })
    }
}

impl Inner {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A panic inside leaves at worst a token that is asked for again.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(self: Arc<Self>, wish: TokenWish) -> Outcome {
        let found = self.desk().shelf.look(&wish.spiffe_id, &wish.audiences, self.clock.now());
        let stale = match found {
            Found::Fresh(token) => return Ok(token),
            Found::Stale(token) if self.authority.borrow().is_none() => return Ok(token),
            Found::Stale(token) => Some(token),
            Found::Nothing => None,
        };
        let mut flight = self.join(wish)?;
        let landed = async {
            let outcome = flight.wait_for(Option::is_some).await.ok().and_then(|it| it.clone());
            outcome.unwrap_or_else(|| Err(NoToken::Away("the question was cut off".to_owned())))
        };
        let Some(stale) = stale else { return landed.await };
        match timeout(self.patience.stale, landed).await {
            Ok(Err(NoToken::Away(cause))) => {
                tracing::warn!(id = %stale.spiffe_id, until = %stale.expires_at, cause, "a kept token is given");
                Ok(stale)
            }
            Ok(outcome) => outcome,
            Err(_elapsed) => Ok(stale),
        }
    }

    /// Waits with whoever asked the same already, or asks.
    fn join(self: &Arc<Self>, wish: TokenWish) -> Result<watch::Receiver<Option<Outcome>>, NoToken> {
        let mut desk = self.desk();
        // A question whose task is gone without an outcome was cut off.
        let alive = |flight: &&Flight| !flight.overtaken && flight.outcome.has_changed().is_ok();
        if let Some(flight) = desk.under_way.get(&wish).filter(alive) {
            return Ok(flight.outcome.clone());
        }
        let same = desk.under_way.keys().filter(|it| it.spiffe_id == wish.spiffe_id).count();
        if desk.under_way.len() >= UNDER_WAY || same >= UNDER_WAY_PER_IDENTITY {
            return Err(NoToken::Away("too many tokens are being asked for".to_owned()));
        }
        let (sender, outcome) = watch::channel(None);
        desk.under_way.insert(wish.clone(), Flight { outcome: outcome.clone(), overtaken: false });
        drop(desk);
        let inner = Arc::clone(self);
        self.spawner.spawn_until_stop("token", async move {
            let fetched = inner.fetch(&wish).await;
            let outcome = inner.land(&wish, fetched, &sender);
            drop(sender.send_replace(Some(outcome)));
        });
        Ok(outcome)
    }

    async fn fetch(&self, wish: &TokenWish) -> Outcome {
        let mut authority = self.authority.subscribe();
        let ask = timeout(self.patience.connect, authority.wait_for(Option::is_some)).await;
        let ask = ask.ok().and_then(Result::ok).and_then(|ask| ask.clone());
        let ask = ask.ok_or_else(|| NoToken::Away("there is no connection to the authority".to_owned()))?;
        let question = ca::SignJwtSvidRequest {
            attributes: wire::attributes(&wish.attributes),
            spiffe_id: wish.spiffe_id.to_string(),
            audiences: wish.audiences.clone(),
            ttl_seconds: 0,
        };
        let answer = timeout(ANSWER_PATIENCE, ask(question)).await;
        let answer = answer.map_err(|_elapsed| NoToken::Away("the authority did not answer".to_owned()))?;
        let sent = answer.map_err(|status| Self::refused(wish, &status))?.jwt_svid;
        let away = |cause: wire::Nonsense| {
            tracing::error!(id = %wish.spiffe_id, %cause, "a token is not to be used");
            NoToken::Away(cause.to_string())
        };
        let sent = sent.ok_or_else(|| away(wire::Nonsense::of("the token is missing")))?;
        let bundle = self.bundle.load_full();
        let bundle =
            bundle.ok_or_else(|| away(wire::Nonsense::of("there is no bundle to verify it with")))?;
        let token = wire::read_token(sent, wish, &bundle, self.clock.now()).map_err(away)?;
        Ok(Arc::new(token))
    }

    fn refused(wish: &TokenWish, status: &Status) -> NoToken {
        let (id, code) = (&wish.spiffe_id, status.code());
        tracing::warn!(%id, ?code, message = status.message(), "no token was signed");
        let said = status.message().to_owned();
        let lasting = [
            (Code::PermissionDenied, NoToken::Denied(said.clone())),
            (Code::InvalidArgument, NoToken::Refused(said)),
            (Code::Unimplemented, NoToken::NotOffered),
        ];
        let found = lasting.into_iter().find(|(of, _)| *of == code).map(|(_, refusal)| refusal);
        found.unwrap_or_else(|| NoToken::Away(rhizome_tls::cause_of(status)))
    }

    /// Keeps what came, and says what its callers are told.
    fn land(&self, wish: &TokenWish, fetched: Outcome, mine: &watch::Sender<Option<Outcome>>) -> Outcome {
        let mut desk = self.desk();
        let flight = desk.under_way.get(wish).filter(|it| it.outcome.same_channel(&mine.subscribe()));
        let overtaken = flight.is_none_or(|it| it.overtaken);
        if flight.is_some() {
            desk.under_way.remove(wish);
        }
        if overtaken {
            return Err(NoToken::Away("the identity changed while the token was asked for".to_owned()));
        }
        let now = self.clock.now();
        match &fetched {
            Ok(token) => desk.shelf.keep(Arc::clone(token), now),
            Err(NoToken::Away(_)) => desk.shelf.rest(&wish.spiffe_id, &wish.audiences, now),
            Err(NoToken::Denied(_) | NoToken::Refused(_) | NoToken::NotOffered) => {
                desk.shelf.forget(&wish.spiffe_id, &wish.audiences);
            }
        }
        fetched
    }
}

#[cfg(test)]
mod tests;
