//! Starting and stopping one server process, in order.
//!
//! Laws: nothing is served before there is an authority to serve with; stopping first lets open calls finish, then
//! ends every task, so that no accepted request is lost half-way.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_tls::ServerTls;
use tokio::net::{TcpListener, UnixListener};

use crate::ca::Ca;
use crate::error::ApiError;
use crate::federation::Endpoint;
use crate::serving::CurrentTrust;
use crate::settings::{Ports, Settings};
use crate::spawn::Spawner;
use crate::{listen, web};

/// How often idle token buckets are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(30);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The authority could not be loaded or founded.
    #[error(transparent)]
    Authority(#[from] ApiError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}; is another server running there?")]
    Listen {
        /// The address.
        address: String,
        /// The operating system's reason.
        cause: std::io::Error,
    },
    /// The bundle endpoint cannot be had.
    #[error("federation: {0}")]
    Federation(String),
    /// The Unix socket cannot be made.
    #[error("cannot make the administrators' socket {path}: {cause}")]
    Socket {
        /// The path.
        path: PathBuf,
        /// The operating system's reason.
        cause: std::io::Error,
    },
    /// Threads cannot be started.
    #[error("cannot start worker threads: {0}")]
    Workers(std::io::Error),
}

/// A server that runs.
pub struct Running {
    ca: Arc<Ca>,
    address: SocketAddr,
    web: Option<SocketAddr>,
    federation: Option<SocketAddr>,
    socket: Option<PathBuf>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Running {
    #[cfg(test)]
    pub(crate) const fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// Where gRPC over mTLS is served.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and health are served, if at all.
    pub const fn web_address(&self) -> Option<SocketAddr> {
        self.web
    }

    /// Where our bundle endpoint is, if there is one.
    pub const fn federation_address(&self) -> Option<SocketAddr> {
        self.federation
    }

    /// Lets open calls finish, then stops everything.
    pub async fn stop(self) {
        let Self { ca, workers, socket, .. } = self;
        ca.say_good_bye().await;
        ca.spawner.shut_down().await;
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a worker thread panicked; this is a bug, please report it");
                }
            }
        });
        drop(joined.await);
        if let Some(socket) = socket {
            drop(std::fs::remove_file(socket));
        }
        tracing::info!("stopped");
    }
}

/// Starts a server: founds the trust domain where the store is empty, then serves.
///
/// # Errors
/// [`StartError`], naming what could not be had.
pub async fn start(mut settings: Settings, ports: Ports) -> Result<Running, StartError> {
    let listener = bind(settings.listen).await?;
    let address = local_address(&listener, settings.listen)?;
    if settings.advertise.is_empty() {
        settings.advertise = vec![address.to_string()];
    }
    let web_listener = match settings.web {
        Some(wanted) => {
            let listener = web::bind(wanted).await;
            Some(listener.map_err(|cause| StartError::Listen { address: wanted.to_string(), cause })?)
        }
        None => None,
    };
    let web = web_listener.as_ref().and_then(|it| it.local_addr().ok());
    let (socket, workers) = (settings.admin_socket.clone(), settings.workers);
    let (ca, refusals) = Ca::load(settings, ports, Spawner::default()).await?;
    ca.found().await?;
    // After a restore old chains carry their bridge before anything is issued.
    ca.prepare_root().await?;
    let identity = ca.start_serving().await?;
    let endpoint = Endpoint::open(&ca, &identity).await.map_err(StartError::Federation)?;
    let federation = endpoint.as_ref().and_then(Endpoint::address);
    let tls = ServerTls::new(identity, Arc::new(CurrentTrust::of(&ca)?));

    if let Some(path) = &socket {
        let listener = unix_socket(path).map_err(|cause| StartError::Socket { path: path.clone(), cause })?;
        ca.presence.set_own_uid(own_uid(path));
        ca.spawner.spawn("administrators", listen::serve_unix(Arc::clone(&ca), listener));
    }
    if let Some(listener) = web_listener {
        ca.spawner.spawn("metrics and health", web::serve(Arc::clone(&ca), listener));
    }
    if let Some(endpoint) = endpoint {
        ca.spawner.spawn_until_stop("bundle endpoint", endpoint.serve(Arc::clone(&ca)));
    }
    let count =
        if workers == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { workers };
    let (senders, threads) = listen::start_workers(&ca, &tls, count).map_err(StartError::Workers)?;
    ca.spawner.spawn("accept", listen::accept(Arc::clone(&ca), listener, senders));
    ca.spawner.spawn_until_stop("follow", Arc::clone(&ca).follow_others());
    ca.spawner.spawn_until_stop("standing", Arc::clone(&ca).keep_standing());
    ca.spawner.spawn_until_stop("rotate", Arc::clone(&ca).rotate_forever());
    ca.spawner.spawn_until_stop("rotate the root", Arc::clone(&ca).rotate_root_forever());
    ca.spawner.spawn_until_stop("pass reports on", Arc::clone(&ca).pass_reports_on());
    ca.spawner.spawn_until_stop("revocation lists", Arc::clone(&ca).keep_crls());
    ca.spawner.spawn_until_stop("self-check", Arc::clone(&ca).check_itself());
    ca.spawner.spawn_until_stop("record refusals", Arc::clone(&ca).record_refusals(refusals));
    ca.spawner.spawn_until_stop("probe store", Arc::clone(&ca).probe_store());
    ca.spawner.spawn_until_stop("federation", Arc::clone(&ca).keep_federation());
    ca.spawner.spawn_until_stop("upstream", Arc::clone(&ca).keep_upstream());
    ca.spawner.spawn_until_stop("housekeeping", Arc::clone(&ca).keep_house());
    let forgetting = Arc::clone(&ca);
    ca.spawner.spawn_until_stop("forget idle callers", async move {
        loop {
            tokio::time::sleep(FORGET_EVERY).await;
            forgetting.quota.forget_idle();
            forgetting.federation.quota.forget_idle();
        }
    });
    Ok(Running { ca, address, web, federation, socket, workers: threads })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|cause| StartError::Listen { address: address.to_string(), cause })
}

fn local_address(listener: &TcpListener, wanted: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|cause| StartError::Listen { address: wanted.to_string(), cause })
}

/// Makes the socket. The kernel checks peers, so any local user may connect and is told that it has no role; a stale
/// socket of a server that died is replaced, anything else at that path is left alone.
fn unix_socket(path: &Path) -> std::io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(std::io::Error::other("something that is not a socket is there; remove it"));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::other("another server answers on it; stop that one first"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// The user this process runs as: the owner of what it has just made.
fn own_uid(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0, |it| it.uid())
}
