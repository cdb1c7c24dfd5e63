//! The running agent: what it serves on, until it is told to stop.
//!
//! Laws: the socket appears after what was sealed is there to be served, and nothing is served when one part of the
//! configuration cannot be; at the end open calls finish, then the socket goes,
//! while what is held is sealed. Not here: the parts themselves.

use std::sync::Arc;

use rhizome_core::ports::Clock;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Failure};
use super::{Place, Run, decode, logging, read};
use crate::attestation::UnixSettings;
use crate::observe::{Observer, serve_private, serve_public};
use crate::sink::{SinkPorts, start_sinks};
use crate::socket::{Doors, DoorsSettings, Socket, serve};
use crate::{Ports, Settings, SystemEntropy, start};

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(place: Place, wish: Run, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    let Place { config, state, socket: path, admin_socket } = place;
    logging::start(wish.log_format.unwrap_or(config.log.format), wish.log_level.unwrap_or(config.log.level));
    crate::descriptors::raise_limit();
    let join_file = wish.join_file.or_else(|| config.join_file());
    let join = join_file.map(|path| decode(&read(Some(&path))?)).transpose()?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let private = Socket::bind_private(&admin_socket)?;
    let metrics = match wish.metrics_listen.or(config.metrics.listen) {
        Some(address) => Some(listen(address.get()).await?),
        None => None,
    };

    let ports = Ports { clock: Arc::clone(&clock), entropy: Arc::new(SystemEntropy::default()) };
    let entropy = Arc::clone(&ports.entropy);
    let agent = start(Settings { state, join }, ports)?;
    let socket = Socket::bind(&path)?;
    let usual = UnixSettings::default();
    let unix = UnixSettings {
        hash_executables: config.attestation.hash_executables.unwrap_or(usual.hash_executables),
        hash_limit_bytes: config.attestation.hash_limit_bytes.unwrap_or(usual.hash_limit_bytes),
    };
    let sds = config.sds();
    let settings = DoorsSettings {
        sds,
        unix,
        jwt_off: config.workload_api.jwt == Some(false),
        foreign_claims: config.workload_api.foreign_claims,
        ..DoorsSettings::default()
    };
    let spawner = agent.spawner().clone();
    let doors = Doors::new(agent.identities(), Arc::clone(&clock), spawner.clone(), settings);
    let sink_ports = SinkPorts { identities: agent.identities(), clock: Arc::clone(&clock), entropy };
    let sinks = start_sinks(config.sinks, &sink_ports, &spawner);
    let sinks = sinks.map_err(|cause| Failure::new(Exit::Usage, "configuration", cause))?;
    let observer = Arc::new(Observer::new(&agent, &doors, &sinks, &clock));
    let stop = spawner.stopping().clone();
    spawner.spawn("private socket", serve_private(Arc::clone(&observer), private, stop.clone()));
    if let Some(listener) = metrics {
        spawner.spawn("metrics", serve_public(observer, listener, stop));
    }

    let serving = serve(doors, socket);
    tokio::pin!(serving);
    tracing::info!(socket = %path.display(), admin_socket = %admin_socket.display(), "running");
    tokio::select! {
        _received = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::failed)?,
        ended = &mut serving => {
            agent.stop().await;
            return ended.map_err(Failure::failed);
        }
    }
    // Open calls end, then the socket goes, while what is held is sealed.
    let ((), ended) = tokio::join!(agent.stop(), serving);
    ended.map_err(Failure::failed)
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).await;
    let listener = bound.map_err(|cause| {
        Failure::new(Exit::Failed, "metrics", format!("cannot listen on {address}: {cause}"))
    })?;
    // With port 0, the system chooses.
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics");
    }
    Ok(listener)
}
