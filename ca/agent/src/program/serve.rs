//! The running agent: what it serves on, until it is told to stop.
//!
//! Laws: the socket appears after what was sealed is there to be served; at the end open calls finish, then the socket
//! goes, while what is held is sealed. Not here: the parts themselves.

use std::path::PathBuf;
use std::sync::Arc;

use rhizome_core::ports::Clock;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::Failure;
use super::{Run, decode, read};
use crate::socket::{Doors, DoorsSettings, Socket, serve};
use crate::{Ports, Settings, SystemEntropy, start};

/// Runs until SIGTERM or SIGINT.
pub(super) async fn run(state: PathBuf, wish: Run, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    crate::descriptors::raise_limit();
    let join = wish.join_file.map(|path| decode(&read(Some(&path))?)).transpose()?;
    let ports = Ports { clock, entropy: Arc::new(SystemEntropy::default()) };
    let now = Arc::clone(&ports.clock);
    let agent = start(Settings { state, join }, ports)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    let doors = Doors::new(agent.identities(), now, agent.spawner().clone(), DoorsSettings::default());
    let serving = serve(doors, Socket::bind(&wish.socket)?);
    tokio::pin!(serving);
    tracing::info!(socket = %wish.socket.display(), "running");
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
