//! The SPIFFE Workload API: the caller's identities and bundles of the X.509 and the JWT profile.
//!
//! Laws: every request carries the security header exactly once, checked in one interceptor before any method, known or
//! not. The first message comes at once when there is anything to give; every message is the full state; a caller whose
//! identities vanish is told `PermissionDenied`, which redacts what it was given. Bundles wait for no identity: streams
//! of bundles have them as long as the rules give the caller one, and streams of identities that wait for the default one
//! have them with the identities they hold, in the order they hold them. No stream repeats itself. Hints are unique in a
//! message: of several the first keeps its.
//! Not here: the JWT profile's messages (`jwt`). The WIT profile is optional and not offered.
//! Key bytes leave in the answer's buffers, which nobody wipes; the keys behind them are wiped.
//! Sources: SPIFFE Workload API §4, §5, §8; SPIFFE Workload Endpoint §6.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain};
use rhizome_proto::workload as wire;
use rhizome_proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use rhizome_x509::Bundle;
use tonic::{Request, Response, Status};

use crate::call::{Outlet, Session, caller_of, end, outlet};
use crate::holdings::{Svid, View};
use crate::refusal::{Answer, Outgoing, Refusal};
use crate::socket::Doors;

mod jwt;

/// The metadata key that every request carries, with the value `true` (Workload Endpoint §6): a web page or a proxy that
/// is tricked into talking to the socket cannot set it.
const HEADER: &str = wire::SECURITY_HEADER;
/// Longest hint, in bytes (Workload API §5.2.1).
const HINT_BYTES: usize = 1024;

/// The service.
pub(crate) struct WorkloadApi(Arc<Doors>);

impl WorkloadApi {
    pub(crate) const fn new(doors: Arc<Doors>) -> Self {
        Self(doors)
    }

    async fn stream<T: Send + 'static>(
        &self,
        extensions: &tonic::Extensions,
        name: &'static str,
        mut answers: impl Answers<T>,
    ) -> Answer<Outgoing<T>> {
        let mut session = Session::open(&self.0, caller_of(extensions)?).await?;
        let (outlet, stream) = outlet();
        let doors = Arc::clone(&self.0);
        self.0.spawner.spawn(name, async move {
            let domain = doors.identities.trust_domain();
            let Err(refusal) = follow(&mut session, domain, &mut answers, &outlet).await;
            drop(session);
            end(&doors, &outlet, refusal).await;
        });
        Ok(Response::new(stream))
    }
}

/// How a kind of stream makes its messages.
trait Answers<T>: Send + Sync + 'static {
    /// The message for a view; `None` when the caller has just that already.
    fn answer(&mut self, view: &View, own: &TrustDomain) -> Result<Option<T>, Refusal>;

    /// Whether a view has what the caller wants; otherwise it waits for the next one.
    fn has_it(&self, _view: &View) -> bool {
        true
    }

    /// Until when what was given last is of use, where nothing new can be given without certificates.
    fn valid_until(&self) -> Option<Timestamp> {
        None
    }
}

async fn follow<T>(
    session: &mut Session,
    own: &TrustDomain,
    answers: &mut impl Answers<T>,
    outlet: &Outlet<T>,
) -> Result<std::convert::Infallible, Refusal> {
    let mut view = Some(session.first_with(|view| answers.has_it(view)).await?);
    loop {
        if let Some(view) = view.take_if(|view| !answers.has_it(view)) {
            tracing::debug!(version = view.version, "the default identity is on its way");
            session.waits();
        }
        if let Some(view) = view {
            if let Some(message) = answers.answer(&view, own)? {
                session.give(outlet, message).await?;
            }
            match answers.valid_until() {
                Some(until) => session.delivered_until(view.version, until),
                None => session.delivered(view.version),
            }
        }
        view = tokio::select! {
            next = session.next() => next?,
            () = outlet.closed() => return Err(Refusal::NotTheCaller),
        };
    }
}

/// Identities, with what was given last.
#[derive(Default)]
struct X509Svids {
    svids: Vec<Arc<Svid>>,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    crls: Arc<Vec<Vec<u8>>>,
}

impl X509Svids {
    /// The identities of a view in the order in which the caller is to have them; `None` when it has to wait.
    /// Clients take the first identity for the default one (Workload API §5.2.1), so while that is on its way the first
    /// one stays the one that the caller has in its place already.
    fn in_order(&self, view: &View) -> Option<Vec<Arc<Svid>>> {
        if view.default_svid().is_some() {
            return Some(view.svids.clone());
        }
        let mut rest = view.svids.clone();
        let mut take = |id: &SpiffeId| {
            let at = rest.iter().position(|svid| svid.spiffe_id == *id)?;
            Some(rest.remove(at))
        };
        let first = take(&self.svids.first()?.spiffe_id)?;
        let mut found = vec![first];
        found.extend(self.svids.iter().skip(1).filter_map(|svid| take(&svid.spiffe_id)));
        found.append(&mut rest);
        Some(found)
    }
}

impl Answers<wire::X509svidResponse> for X509Svids {
    fn answer(&mut self, view: &View, own: &TrustDomain) -> Result<Option<wire::X509svidResponse>, Refusal> {
        let svids = self.in_order(view).ok_or(Refusal::Starting)?;
        let same = svids.len() == self.svids.len()
            && svids.iter().zip(&self.svids).all(|(now, given)| Arc::ptr_eq(now, given));
        if same && self.bundles == view.bundles && self.crls == view.crls {
            return Ok(None);
        }
        let message = svid_response(&svids, view, own)?;
        *self = Self { svids, bundles: view.bundles.clone(), crls: Arc::clone(&view.crls) };
        Ok(Some(message))
    }

    fn has_it(&self, view: &View) -> bool {
        self.in_order(view).is_some()
    }

    fn valid_until(&self) -> Option<Timestamp> {
        self.svids.iter().map(|svid| svid.not_after).max()
    }
}

/// Bundles: a view with the same ones is not sent again (compare the bytes: a sequence alone changes nothing here).
#[derive(Default)]
struct X509Bundles {
    bundles: BTreeMap<String, Bytes>,
    crls: Arc<Vec<Vec<u8>>>,
}

impl Answers<wire::X509BundlesResponse> for X509Bundles {
    fn answer(
        &mut self,
        view: &View,
        own: &TrustDomain,
    ) -> Result<Option<wire::X509BundlesResponse>, Refusal> {
        let bundles = bundles(view);
        // §5.2.2: at least the server's own trust domain.
        if !bundles.contains_key(SpiffeId::of_trust_domain(own).as_str()) {
            return Err(Refusal::Starting);
        }
        if self.bundles == bundles && self.crls == view.crls {
            return Ok(None);
        }
        *self = Self { bundles: bundles.clone(), crls: Arc::clone(&view.crls) };
        Ok(Some(wire::X509BundlesResponse { crl: crls(view), bundles: bundles.into_iter().collect() }))
    }
}

/// The whole state of a view as `FetchX509SVID` sends it, its identities in this order.
fn svid_response(
    ordered: &[Arc<Svid>],
    view: &View,
    own: &TrustDomain,
) -> Result<wire::X509svidResponse, Refusal> {
    let mut hints = BTreeSet::new();
    let mut svids = Vec::new();
    for svid in ordered {
        let Some(bundle) = view.bundles.get(&svid.spiffe_id.trust_domain()) else {
            // A mandatory field would be empty, for which a client drops the whole message (§4.5).
            tracing::error!(id = %svid.spiffe_id, "an identity without the bundle of its trust domain is not served");
            continue;
        };
        let bundle = Bytes::from(bundle.to_der());
        svids.push(svid_message(svid, bundle, &mut hints));
    }
    if svids.is_empty() {
        return Err(Refusal::Starting);
    }
    let own = SpiffeId::of_trust_domain(own);
    let foreign = bundles(view).into_iter().filter(|(domain, _)| domain != own.as_str());
    Ok(wire::X509svidResponse { svids, crl: crls(view), federated_bundles: foreign.collect() })
}

fn svid_message<'a>(svid: &'a Svid, bundle: Bytes, hints: &mut BTreeSet<&'a str>) -> wire::X509svid {
    wire::X509svid {
        spiffe_id: svid.spiffe_id.to_string(),
        x509_svid: svid.chain_der.concat().into(),
        x509_svid_key: Bytes::copy_from_slice(&svid.key_pkcs8_der),
        bundle,
        hint: hint_of(svid, hints).to_owned(),
    }
}

/// The hint of an identity in a message that has given `hints` already; none where it would be one of those.
fn hint_of<'a>(svid: &'a Svid, hints: &mut BTreeSet<&'a str>) -> &'a str {
    match svid.hint.as_str() {
        hint if hint.is_empty() || hint.len() > HINT_BYTES => "",
        hint if hints.insert(hint) => hint,
        _taken => "",
    }
}

/// Every revocation list of a view, one element each.
fn crls(view: &View) -> Vec<Bytes> {
    view.crls.iter().map(|der| Bytes::copy_from_slice(der)).collect()
}

/// Every bundle of a view, concatenated DER by trust-domain ID.
fn bundles(view: &View) -> BTreeMap<String, Bytes> {
    // One that is for JWT-SVIDs alone verifies no certificate.
    let all = view.bundles.iter().filter(|(_, bundle)| !bundle.anchors().is_empty());
    all.map(|(domain, bundle)| (SpiffeId::of_trust_domain(domain).to_string(), bundle.to_der().into()))
        .collect()
}

/// Refuses requests without the security header, before any method.
pub(crate) fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => {}
        _missing_or_odd_or_doubled => return Err(Refusal::NoHeader.into()),
    }
    Ok(request)
}

const WIT: &str = "the WIT-SVID profile";

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Outgoing<wire::X509svidResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Answer<Self::FetchX509SVIDStream> {
        self.stream(request.extensions(), "FetchX509SVID", X509Svids::default()).await
    }

    type FetchX509BundlesStream = Outgoing<wire::X509BundlesResponse>;

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Answer<Self::FetchX509BundlesStream> {
        self.stream(request.extensions(), "FetchX509Bundles", X509Bundles::default()).await
    }

    async fn fetch_jwtsvid(&self, request: Request<wire::JwtsvidRequest>) -> Answer<wire::JwtsvidResponse> {
        Ok(Response::new(Box::pin(jwt::fetch(&self.0, request)).await?))
    }

    type FetchJWTBundlesStream = Outgoing<wire::JwtBundlesResponse>;

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Answer<Self::FetchJWTBundlesStream> {
        drop(jwt::tokens_of(&self.0)?);
        let bundles = jwt::JwtBundles::new(Arc::clone(&self.0.clock));
        self.stream(request.extensions(), "FetchJWTBundles", bundles).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Answer<wire::ValidateJwtsvidResponse> {
        Ok(Response::new(Box::pin(jwt::check(&self.0, request)).await?))
    }

    type FetchWITSVIDStream = Outgoing<wire::WitsvidResponse>;

    async fn fetch_witsvid(
        &self,
        _request: Request<wire::WitsvidRequest>,
    ) -> Answer<Self::FetchWITSVIDStream> {
        Err(Refusal::NotOffered(WIT).into())
    }

    type FetchWITBundlesStream = Outgoing<wire::WitBundlesResponse>;

    async fn fetch_wit_bundles(
        &self,
        _request: Request<wire::WitBundlesRequest>,
    ) -> Answer<Self::FetchWITBundlesStream> {
        Err(Refusal::NotOffered(WIT).into())
    }
}
