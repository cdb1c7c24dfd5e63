//! The gate: who is calling, may they call this, and not too often. It stands before every handler.
//!
//! Laws: identity comes from the connection (a verified client certificate, or the kernel's word on a Unix socket)
//! and from nothing in the request; forwarded headers and bearer tokens are no credentials here. A method that is not
//! in the table of `roles` does not exist. Expiry, revocation, ban and removal are checked for every request, so a
//! connection kept for days gains nothing, and again when the body of a request has come: headers sent in good time gain
//! nothing either. Refusals are opaque outside and exact in the log.
//! Not here: what an identity may be issued (`rhizome_core::policy`).

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use rhizome_core::attributes::Attributes;
use rhizome_core::authority::{Authority, AuthorityKind};
use rhizome_core::caller::{AttestedCaller, Principal, Role, Scope, principal_of};
use rhizome_core::documents::Versioned;
use rhizome_core::nodes::{NodeRecord, NodeState};
use rhizome_core::state::State;
use rhizome_id::{Serial, Timestamp};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response, header};
use tower::{Layer, Service};

use crate::ca::Ca;
use crate::error::{ApiError, AuthError, Needed};
use crate::peer::{Judged, Peer, PeerCertificate, PeerInfo};
use crate::roles;
use crate::status;

/// Puts the gate before a service.
#[derive(Clone)]
pub(crate) struct GateLayer(pub(crate) Arc<Ca>);

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { ca: Arc::clone(&self.0), inner }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    ca: Arc<Ca>,
    inner: S,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.ca.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(error) => {
                self.ca.metrics.refused(status::public(&error).code);
                Either::Right(ready(Ok(status::refusal(error))))
            }
        }
    }
}

/// Whoever calls.
pub(crate) type Caller = Arc<AttestedCaller>;

/// What a request was let in for, put there by the gate; absent where anybody may call.
#[derive(Clone, Copy)]
struct Admitted {
    method: &'static str,
    needed: Needed,
}

/// The other end of the connection that a request came over.
///
/// # Errors
/// [`ApiError::Bug`] when there is none, which `listen` never lets happen.
pub(crate) fn peer<T>(request: &tonic::Request<T>) -> Result<PeerInfo, ApiError> {
    let peer = request.extensions().get::<PeerInfo>().cloned();
    peer.ok_or_else(|| ApiError::Bug("a connection without peer information".into()))
}

impl Ca {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), ApiError> {
        let path = request.uri().path();
        let no_such_method = || ApiError::NoSuchMethod { method: path.chars().take(200).collect() };
        let (method, needed) = roles::needed(path).ok_or_else(no_such_method)?;
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let peer = peer.ok_or_else(|| ApiError::Bug("a connection without peer information".into()))?;
        if needed == Needed::Nobody {
            return self.admit_anybody(&peer);
        }
        if request.headers().contains_key(header::AUTHORIZATION) {
            let what = "an `authorization` header beside the connection's own credential";
            return Err(AuthError::TwoCredentials { what }.into());
        }
        let caller = self.authenticate(&peer)?;
        let admitted = Admitted { method, needed };
        self.check_allowed(&caller, admitted)?;
        request.extensions_mut().insert(admitted);
        Ok(())
    }

    fn check_allowed(&self, caller: &AttestedCaller, admitted: Admitted) -> Result<(), ApiError> {
        let Admitted { method, needed } = admitted;
        let allowed = match needed {
            Needed::Nobody => true,
            Needed::Node => matches!(caller.principal(), Principal::Node { .. }),
            Needed::Role(role) => caller.role().is_some_and(|held| held >= role),
        };
        if allowed {
            return Ok(());
        }
        self.note_refusal(caller, method, "forbidden", &format!("it needs {needed}"));
        Err(ApiError::Forbidden { caller: caller.principal().to_string(), method: method.to_owned(), needed })
    }

    /// Who asks for `request`, whose body is there by now. The gate saw its headers, and whoever sends them may keep the
    /// body back for as long as it likes: who that is, and whether it may call this, is asked anew.
    ///
    /// # Errors
    /// [`ApiError::Auth`] when it is nobody (any more) or was let in without a name, [`ApiError::Forbidden`] when its role
    /// was lowered meanwhile.
    pub(crate) fn caller<T>(&self, request: &tonic::Request<T>) -> Result<Caller, ApiError> {
        let admitted = request.extensions().get::<Admitted>().copied();
        let admitted = admitted.ok_or(ApiError::Auth(AuthError::NoCredential))?;
        let peer = peer(request)?;
        let caller = self.identify(&peer)?;
        self.check_allowed(&caller, admitted)?;
        Ok(caller)
    }

    fn admit_anybody(&self, peer: &Peer) -> Result<(), ApiError> {
        let Some(source) = peer.source() else { return Ok(()) };
        self.quota
            .admit_source(source)
            .map_err(|retry_after| ApiError::Limited { who: source.to_string(), retry_after })
    }

    /// Counts a request of whoever is at the other end, and says who that is.
    ///
    /// # Errors
    /// [`ApiError::Limited`] or [`ApiError::Auth`].
    pub(crate) fn authenticate(&self, peer: &Peer) -> Result<Caller, ApiError> {
        match peer {
            Peer::Local { uid } => self.local(*uid),
            Peer::Remote { certificate: None, source } => {
                self.admit_anybody(peer)?;
                tracing::debug!(%source, "no client certificate");
                Err(AuthError::NoCredential.into())
            }
            Peer::Remote { certificate: Some(certificate), .. } => {
                self.quota.admit_identity(&certificate.name).map_err(|retry_after| ApiError::Limited {
                    who: certificate.name.clone(),
                    retry_after,
                })?;
                self.identify(peer)
            }
        }
    }

    /// Who is at the other end, as the state knows it now, without counting a request. Streams ask again for every
    /// item and after every change: a ban, an eviction, a revocation or expiry ends them too.
    ///
    /// # Errors
    /// [`ApiError::Auth`] when it is nobody (any more).
    pub(crate) fn identify(&self, peer: &Peer) -> Result<Caller, ApiError> {
        match peer {
            Peer::Local { uid } => self.local(*uid),
            Peer::Remote { certificate: None, .. } => Err(AuthError::NoCredential.into()),
            Peer::Remote { certificate: Some(certificate), .. } => {
                Ok(certified(&self.state(), certificate, self.judging_time())?)
            }
        }
    }

    /// Counts a message of an open stream like a call of its own.
    pub(crate) fn counted<T>(&self, peer: &Peer, message: Option<T>) -> Result<Option<T>, ApiError> {
        if message.is_some() {
            self.authenticate(peer)?;
        }
        Ok(message)
    }

    /// A process on this machine: root and the server's own user hold `security`, others what the settings say.
    fn local(&self, uid: u32) -> Result<Caller, ApiError> {
        let own = uid == 0 || Some(uid) == self.presence.own_uid();
        let role = if own { Some(Role::Security) } else { self.settings.admin_uids.get(&uid).copied() };
        let role = role.ok_or(AuthError::LocalUser { uid })?;
        let user = (uid == 0).then(|| "root".to_owned());
        let principal = Principal::Local { uid, user };
        Ok(Arc::new(
            AttestedCaller::assertion(principal, Attributes::default(), Scope::none()).with_role(role),
        ))
    }
}

/// The caller behind a verified client certificate, as the state knows it now. The same state knows the same caller:
/// only expiry is asked for every request, the rest when anything has changed.
fn certified(state: &State, certificate: &PeerCertificate, now: Timestamp) -> Result<Caller, AuthError> {
    let id = &certificate.spiffe_id;
    if now > certificate.not_after {
        return Err(AuthError::Expired { id: id.to_string(), not_after: certificate.not_after, now });
    }
    let revision = state.revision();
    if let Some(judged) = certificate.judged.load().as_ref()
        && judged.revision == revision
    {
        return Ok(Arc::clone(&judged.caller));
    }
    // Whoever has an intermediate below our root could write any name into a certificate: ours are those that our own
    // issuers signed.
    let ours = |it: &Versioned<Arc<Authority>>| {
        it.value.kind == AuthorityKind::Issuer
            && it.value.certificate.public_key().digest() == certificate.issuer_key
    };
    if !state.authorities().values().any(ours) {
        return Err(AuthError::ForeignIssuer { id: id.to_string() });
    }
    let principal = principal_of(id, state.trust_domain());
    let principal = principal.ok_or_else(|| AuthError::NotAPrincipal { id: id.to_string() })?;
    let found = on_record(state, &principal, &certificate.serial)?;
    let caller = Arc::new(found.caller(principal, &certificate.serial));
    certificate.judged.store(Some(Arc::new(Judged { caller: Arc::clone(&caller), revision })));
    Ok(caller)
}

/// `caller` as `state` knows it: for work that was begun on an older state. Expiry is not asked again: the caller was
/// in time when it asked.
///
/// # Errors
/// [`AuthError`] when it is nobody any more.
pub(crate) fn still<'c>(
    state: &State,
    caller: &'c AttestedCaller,
) -> Result<Cow<'c, AttestedCaller>, AuthError> {
    // Local processes and bearers of tokens: the latter's token is claimed in the transaction itself.
    let Some(serial) = caller.credential() else { return Ok(Cow::Borrowed(caller)) };
    let found = on_record(state, caller.principal(), serial)?;
    if found.is(caller) {
        return Ok(Cow::Borrowed(caller));
    }
    Ok(Cow::Owned(found.caller(caller.principal().clone(), serial)))
}

/// What the records say about whoever presents a certificate.
enum OnRecord<'s> {
    Node(&'s NodeRecord),
    Admin(Role),
}

impl OnRecord<'_> {
    /// Whether `caller` is just that.
    fn is(&self, caller: &AttestedCaller) -> bool {
        match self {
            Self::Node(node) => *caller.attributes() == node.attributes && *caller.scope() == node.scope,
            Self::Admin(role) => caller.role() == Some(*role),
        }
    }

    fn caller(&self, principal: Principal, serial: &Serial) -> AttestedCaller {
        let caller = match self {
            Self::Node(node) => {
                AttestedCaller::assertion(principal, node.attributes.clone(), node.scope.clone())
            }
            Self::Admin(role) => {
                AttestedCaller::assertion(principal, Attributes::default(), Scope::none()).with_role(*role)
            }
        };
        caller.with_credential(*serial)
    }
}

/// Whoever presents certificate `serial` as `principal`, as the state knows it.
fn on_record<'s>(
    state: &'s State,
    principal: &Principal,
    serial: &Serial,
) -> Result<OnRecord<'s>, AuthError> {
    let who = || principal.to_string();
    if state.is_revoked(serial) {
        return Err(AuthError::Revoked { id: who(), serial: serial.to_string() });
    }
    match principal {
        Principal::Node { cluster, method, name } => {
            let node = state.nodes().get(&format!("{cluster}/{method}/{name}"));
            let node = &node.ok_or_else(|| AuthError::Unknown { who: who() })?.value;
            if let NodeState::Banned { reason, .. } = &node.state {
                return Err(AuthError::Banned { who: who(), reason: reason.clone() });
            }
            if !node.may_present(serial) {
                return Err(AuthError::Superseded { who: who(), serial: serial.to_string() });
            }
            Ok(OnRecord::Node(node))
        }
        Principal::Admin { name } => {
            let admin = state.admins().get(name).ok_or_else(|| AuthError::Unknown { who: who() })?;
            Ok(OnRecord::Admin(admin.value.role))
        }
        Principal::Local { .. } | Principal::Token { .. } | Principal::Server { .. } => {
            Err(AuthError::NotAPrincipal { id: who() })
        }
    }
}
