//! Envoy's secret discovery service, version 3: the caller's identities and roots as secrets by name.
//!
//! Laws: who asks is the process at the other end, never what it says in its request; names only choose among what it
//! has. Any mix of names is served in one stream; a name that cannot be served is left out, logged and reported, and
//! takes nothing from the others. The caller's identities gone, the stream ends with `PermissionDenied`. There is no
//! security header here: Envoy cannot set one. A proxy that does not answer loses its connection.
//! Not here: the `file-root:` and `file-cert:` names of Istio's own agent.
//! Sources: Envoy `sds.proto`, xDS protocol document; SPIFFE Workload Endpoint §6 (no header outside the Workload API).

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use rhizome_id::TrustDomain;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Response, Streaming};

use crate::call::{Outlet, Session, caller_of, end, outlet, place_for};
use crate::holdings::View;
use crate::refusal::{Answer, Outgoing, Refusal};
use crate::socket::{Caller, Doors, StreamPlace};

mod delta;
pub(crate) mod pem;
mod protocol;
mod secrets;
mod sotw;
#[cfg(test)]
mod tests;
mod wire;

use delta::Delta;
use protocol::{Heard, InForce, Proxy, Reply, check_names, check_type};
use secrets::Catalogue;
pub use secrets::{RootCovers, SdsSettings};
use sotw::Sotw;
pub(crate) use wire::SdsServer;

/// The service.
pub(crate) struct Sds(Arc<Doors>);

/// One form of the protocol: pure state, asked after each request and each new view.
trait Protocol: Default + Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn hear(&mut self, request: Self::Request) -> Result<Heard, Refusal>;
    fn reply(&mut self, catalogue: &Catalogue<'_>) -> Reply<Self::Response>;
    fn proxy(&self) -> &Proxy;
    fn in_force(&mut self) -> &mut InForce;
}

impl Sds {
    pub(crate) const fn new(doors: Arc<Doors>) -> Self {
        Self(doors)
    }

    fn stream<P: Protocol>(
        &self,
        request: Request<Streaming<P::Request>>,
        name: &'static str,
    ) -> Answer<Outgoing<P::Response>> {
        let caller = caller_of(request.extensions())?;
        // Taken before the first question, so that streams that ask nothing count, too.
        let place = place_for(&self.0, &caller)?;
        let mut requests = request.into_inner();
        let (outlet, stream) = outlet();
        let doors = Arc::clone(&self.0);
        self.0.spawner.spawn(name, async move {
            if let Err(refusal) = follow::<P>(&doors, (caller, place), &mut requests, &outlet).await {
                end(&doors, &outlet, refusal).await;
            }
        });
        Ok(Response::new(stream))
    }
}

/// Serves one stream until either side ends it.
async fn follow<P: Protocol>(
    doors: &Arc<Doors>,
    (caller, place): (Arc<Caller>, StreamPlace),
    requests: &mut Streaming<P::Request>,
    outlet: &Outlet<P::Response>,
) -> Result<(), Refusal> {
    // Asked before subscribed: a stream that asks nothing holds up nothing.
    let first = tokio::select! {
        () = doors.spawner.stopping().cancelled() => return Err(Refusal::Stopping),
        first = timeout(doors.limits.answer, requests.message()) => first,
    };
    let first = first.map_err(|_elapsed| Refusal::Slow("ask"))?;
    let Ok(Some(first)) = first else { return Ok(()) };
    let mut state = P::default();
    state.hear(first)?;
    let mut session = Session::open_at(place, doors, caller).await?;
    let mut view: Option<Arc<View>> = None;
    let mut answer_by = Instant::now() + doors.limits.answer;
    loop {
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => note(&state.hear(request)?, session.caller()),
                // The proxy has closed the stream, or it is broken: nobody is left to be told anything.
                Ok(None) | Err(_) => return Ok(()),
            },
            next = session.next() => view = next?,
            () = sleep_until(answer_by), if state.in_force().is_awaited() => {
                session.caller().hang_up();
                return Err(Refusal::Slow("accept or refuse a secret"));
            }
        }
        if let Some(view) = &view {
            let reply = reply(&mut state, view, doors);
            report(&reply, session.caller());
            if let Some(response) = reply.response {
                session.give(outlet, response).await?;
                answer_by = Instant::now() + doors.limits.answer;
            }
            if let Some(version) = state.in_force().take() {
                session.delivered(version);
            }
        }
    }
}

fn reply<P: Protocol>(state: &mut P, view: &View, doors: &Doors) -> Reply<P::Response> {
    let form = state.proxy().form(doors.sds.plain);
    let own = doors.identities.trust_domain();
    state.reply(&Catalogue { view, own, settings: &doors.sds, form })
}

/// Logs a refusal. The proxy's words are shown escaped and cut.
fn note(heard: &Heard, caller: &Caller) {
    if let Heard::Refuses(complaint) = heard {
        let (pid, uid) = (caller.peer.pid(), caller.peer.uid());
        tracing::warn!(pid, uid, ?complaint, "a proxy refused its secrets and keeps those it had");
    }
}

fn report<T>(reply: &Reply<T>, caller: &Caller) {
    for (name, why) in &reply.unserved {
        let (pid, uid) = (caller.peer.pid(), caller.peer.uid());
        tracing::warn!(pid, uid, ?name, %why, "a secret is not served");
    }
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn hear(&mut self, request: DiscoveryRequest) -> Result<Heard, Refusal> {
        Self::hear(self, request)
    }

    fn reply(&mut self, catalogue: &Catalogue<'_>) -> Reply<DiscoveryResponse> {
        Self::reply(self, catalogue)
    }

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    fn in_force(&mut self) -> &mut InForce {
        &mut self.in_force
    }
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, Refusal> {
        Self::hear(self, request)
    }

    fn reply(&mut self, catalogue: &Catalogue<'_>) -> Reply<DeltaDiscoveryResponse> {
        Self::reply(self, catalogue)
    }

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    fn in_force(&mut self) -> &mut InForce {
        &mut self.in_force
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = Outgoing<DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Answer<Self::StreamSecretsStream> {
        self.stream::<Sotw>(request, "StreamSecrets")
    }

    type DeltaSecretsStream = Outgoing<DeltaDiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Answer<Self::DeltaSecretsStream> {
        self.stream::<Delta>(request, "DeltaSecrets")
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Answer<DiscoveryResponse> {
        let caller = caller_of(request.extensions())?;
        let request = request.into_inner();
        check_type(&request.type_url)?;
        check_names(&request.resource_names)?;
        let mut session = Session::open(&self.0, caller).await?;
        let view = session.first().await?;
        let mut proxy = Proxy::default();
        proxy.learn(request.node.as_ref());
        let own: &TrustDomain = self.0.identities.trust_domain();
        let form = proxy.form(self.0.sds.plain);
        let response = sotw::fetch(request, &Catalogue { view: &view, own, settings: &self.0.sds, form })?;
        session.check()?;
        Ok(Response::new(response))
    }
}
