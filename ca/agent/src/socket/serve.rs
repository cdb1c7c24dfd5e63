//! Serving a socket: every service on it, connections accepted under limits, an orderly end.
//!
//! Laws: a connection is named before it is served; what cannot be named or has no place is closed, which a client
//! takes for an agent that is not there and tries again. Reflection offers what the standard wants discoverable, the
//! Workload API; it never lists what this socket does not serve.
//! Sources: SPIFFE Workload Endpoint §6, §7; ca/docs/attacks.md §1.4 (CVE-2023-44487).

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Once};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use rhizome_core::ports::Clock;
use rhizome_proto::workload;
use rhizome_proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic_health::ServingStatus;

use super::Socket;
use super::connection::{Connection, Places, Quota};
use super::counted::Counted;
use super::limits::Limits;
use crate::attestation::{PeerError, PeerProcess, UnixAttestor, UnixSettings};
use crate::holdings::Identities;
use crate::sds::{Sds, SdsServer, SdsSettings};
use crate::spawn::Spawner;
use crate::workload_api::{WorkloadApi, check_header};

/// Bytes of request headers; ours need a few hundred.
const HEADER_BYTES: u32 = 16 * 1024;
/// Bytes a caller may send on a stream or a connection before the agent takes them: requests are small, and this times
/// the connections is what hostile callers can make the agent hold.
const WINDOW_BYTES: u32 = 64 * 1024;
/// Streams a peer may reset before they are accepted (CVE-2023-44487, rapid reset).
const PENDING_RESETS: usize = 20;
/// How often an idle connection is asked for a sign of life, and how long it may take to give one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// How long to wait when the process is out of descriptors.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);
/// Said once.
static OLD_KERNEL: Once = Once::new();
/// A request of the Workload API; the largest is a token to be validated.
const WORKLOAD_MESSAGE_BYTES: usize = 64 * 1024;

/// The services of the socket whose health is told, by their full names.
pub const SERVICES: [&str; 2] = ["SpiffeWorkloadAPI", "envoy.service.secret.v3.SecretDiscoveryService"];

/// What the operator may choose about the sockets.
#[derive(Clone, Debug, Default)]
pub struct DoorsSettings {
    /// What callers may take.
    pub limits: Limits,
    /// Names and forms of secrets.
    pub sds: SdsSettings,
    /// What attestation looks at.
    pub unix: UnixSettings,
    /// Whether the JWT profile of the Workload API is off.
    pub jwt_off: bool,
    /// Claims that validated tokens of foreign trust domains show besides `sub`, `exp` and `aud`.
    pub foreign_claims: BTreeSet<String>,
}

/// What every socket of the process shares.
pub struct Doors {
    pub(crate) identities: Arc<dyn Identities>,
    pub(crate) attestor: UnixAttestor,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) jwt_off: bool,
    pub(crate) foreign_claims: BTreeSet<String>,
    pub(crate) limits: Limits,
    pub(crate) sds: SdsSettings,
    pub(crate) spawner: Spawner,
    connections: Arc<Places>,
    pub(crate) streams: Arc<Places>,
}

impl Doors {
    /// Doors to `identities`; tasks are started on `spawner` and end when it stops.
    pub fn new(
        identities: Arc<dyn Identities>,
        clock: Arc<dyn Clock>,
        spawner: Spawner,
        settings: DoorsSettings,
    ) -> Arc<Self> {
        let DoorsSettings { limits, sds, unix, jwt_off, foreign_claims } = settings;
        let attestor = UnixAttestor::new(unix, Arc::clone(&clock));
        let (connections, streams) = (Arc::default(), Arc::default());
        Arc::new(Self {
            identities,
            attestor,
            clock,
            jwt_off,
            foreign_claims,
            limits,
            sds,
            spawner,
            connections,
            streams,
        })
    }

    /// Connections open now.
    pub fn open_connections(&self) -> usize {
        self.connections.open()
    }

    /// Streams open now.
    pub fn open_streams(&self) -> usize {
        self.streams.open()
    }

    pub(crate) const fn stream_quota(&self) -> Quota {
        let limits = &self.limits;
        // A process may have all the streams its connections allow; its user's share is what bounds it.
        Quota {
            total: limits.streams,
            per_user: limits.streams_per_user,
            per_process: limits.streams_per_user,
        }
    }

    const fn connection_quota(&self) -> Quota {
        let limits = &self.limits;
        Quota {
            total: limits.connections,
            per_user: limits.connections_per_user,
            per_process: limits.connections_per_process,
        }
    }
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doors").field("limits", &self.limits).field("sds", &self.sds).finish_non_exhaustive()
    }
}

/// Serves `socket` until the doors' spawner stops and open calls have ended, or the time for that is over. The socket
/// is removed then.
///
/// # Errors
/// The transport's reason for giving up; accepting goes on through errors of single connections.
pub async fn serve(doors: Arc<Doors>, socket: Socket) -> Result<(), tonic::transport::Error> {
    let stop = doors.spawner.stopping().clone();
    let limits = &doors.limits;
    let routes = routes(&doors).await;
    let served = tonic::transport::Server::builder()
        .timeout(limits.call)
        .max_concurrent_streams(limits.streams_per_connection)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(&doors, &socket), stop.clone().cancelled_owned());
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(limits.drain).await;
    };
    tokio::select! {
        outcome = served => outcome,
        () = too_late => {
            tracing::warn!("calls of workloads were still open after {:?}; they are cut off", limits.drain);
            Ok(())
        }
    }
}

/// Connections as they are accepted, named and with their places; ends when the agent stops.
fn incoming<'a>(
    doors: &'a Arc<Doors>,
    socket: &'a Socket,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'a {
    unfold((), move |()| async move {
        loop {
            let accepted = tokio::select! {
                () = doors.spawner.stopping().cancelled() => return None,
                accepted = socket.listener().accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _unnamed)) => stream,
                Err(cause) => {
                    tracing::warn!(%cause, "cannot accept a connection of a workload");
                    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                    continue;
                }
            };
            let peer = match PeerProcess::of(&stream) {
                Ok(peer) => peer,
                Err(cause @ (PeerError::Gone | PeerError::Changed(_))) => {
                    tracing::debug!(%cause, "a connection was closed");
                    continue;
                }
                Err(cause) => {
                    tracing::warn!(%cause, "a connection was closed: its process cannot be named");
                    continue;
                }
            };
            if !peer.is_certain() {
                OLD_KERNEL.call_once(|| {
                    tracing::warn!(
                        "this kernel does not say which process connected, only its number (Linux 6.5 does): a process \
                         that ends at once and whose number is given out again could be taken for the next"
                    );
                });
            }
            let Some(place) = doors.connections.enter(&peer, doors.connection_quota()) else {
                tracing::debug!(
                    pid = peer.pid(),
                    uid = peer.uid(),
                    "a connection was closed: too many are open"
                );
                continue;
            };
            return Some((Ok(Connection::new(stream, peer, place, &doors.limits)), ()));
        }
    })
}

/// Serving, unless nobody can be served; the empty name is the whole process.
async fn tell_health(reporter: &tonic_health::server::HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in SERVICES.into_iter().chain([""]) {
        reporter.set_service_status(service, status).await;
    }
}

async fn routes(doors: &Arc<Doors>) -> Routes {
    let workload_api = SpiffeWorkloadApiServer::new(WorkloadApi::new(Arc::clone(doors)))
        .max_decoding_message_size(WORKLOAD_MESSAGE_BYTES);
    let sds = SdsServer::new(Sds::new(Arc::clone(doors)));
    let (reporter, health) = tonic_health::server::health_reporter();
    let mut ready = doors.identities.readiness();
    let is_ready = *ready.borrow_and_update();
    tell_health(&reporter, is_ready).await;
    doors.spawner.spawn_until_stop("health", async move {
        while ready.changed().await.is_ok() {
            let is_ready = *ready.borrow_and_update();
            tell_health(&reporter, is_ready).await;
        }
    });
    let mut routes = Routes::new(InterceptedService::new(workload_api, check_header))
        .add_service(sds)
        .add_service(Counted::new(health, Arc::clone(doors)));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(workload::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(current), Ok(old)) => {
            let (current, old) =
                (Counted::new(current, Arc::clone(doors)), Counted::new(old, Arc::clone(doors)));
            routes = routes.add_service(current).add_service(old);
        }
        (Err(cause), _) | (_, Err(cause)) => tracing::error!(%cause, "reflection is off; this is a bug"),
    }
    routes.prepare()
}
