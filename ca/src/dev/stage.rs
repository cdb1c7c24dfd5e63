//! What runs during a trial: the authority, the agent and its sockets, two workloads.
//!
//! Laws: whatever was started is stopped by [`Stage::clear`], in the reverse order: workloads, agent, authority. The
//! authority keeps its addresses when it is stopped and started again.
//! Not here: what is done with them (`walk`, `mesh`).

use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rhizome_agent::socket::{Doors, DoorsSettings, Socket, serve};
use rhizome_agent::{Agent, Ports};
use rhizome_server::Running;
use rhizome_tls::JoinString;

use super::process::Process;
use super::walk::Place;
use crate::config::{self, Config, Loaded};
use crate::launch;

/// Longest path of a Unix socket, in bytes (`sockaddr_un.sun_path` without its NUL).
const MAX_SOCKET_PATH: usize = 107;
/// What the agent appends to its socket's path while it makes it.
const UNFINISHED: &str = ".new";
/// How long the agent may take to reach the authority: a slow machine, many times over.
const PATIENCE: Duration = Duration::from_secs(60);

/// What runs.
pub(super) struct Stage {
    pub(super) authority: Authority,
    pub(super) agent: Option<Agent>,
    pub(super) backend: Option<Process>,
    pub(super) web: Option<Process>,
    /// Clusters with a Rhizome of their own.
    pub(super) below: Vec<Below>,
}

/// A cluster with a Rhizome of its own, and what runs for it.
pub(super) struct Below {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) authority: Authority,
    pub(super) agent: Option<Agent>,
    /// A caller there, a caller in the first cluster, and whom that one calls.
    pub(super) workloads: Vec<Process>,
}

impl Below {
    /// Those that call somebody of the other cluster.
    pub(super) fn callers(&self) -> impl Iterator<Item = &Process> {
        self.workloads.iter().take(2)
    }

    /// Stops everything of it.
    async fn clear(mut self) {
        self.workloads.clear();
        if let Some(agent) = self.agent.take() {
            agent.stop().await;
        }
        self.authority.stop().await;
    }
}

impl Stage {
    /// Starts the authority; the rest comes later.
    ///
    /// # Errors
    /// One sentence, with the remedy.
    pub(super) async fn set(place: &Place, configuration: &str) -> Result<Self, String> {
        let unfinished = place.workload_api.as_os_str().len().saturating_add(UNFINISHED.len());
        let longest = unfinished.max(place.socket.as_os_str().as_bytes().len());
        if longest > MAX_SOCKET_PATH {
            let path = place.workload_api.display();
            return Err(format!("{path} is too long for a socket; name a shorter directory with --dir"));
        }
        for directory in [&place.data, &place.executables] {
            fs::DirBuilder::new().mode(0o700).create(directory).map_err(|cause| cause.to_string())?;
        }
        fs::write(&place.config, configuration).map_err(|cause| cause.to_string())?;
        let authority = Authority::start(&place.config).await?;
        Ok(Self { authority, agent: None, backend: None, web: None, below: Vec::new() })
    }

    /// Starts an agent that joins with `join`, and its sockets; waits until it follows the authority.
    ///
    /// # Errors
    /// One sentence.
    pub(super) async fn start_agent(&mut self, place: &Place, join: &str) -> Result<(), String> {
        // Kept at once, so that it is stopped whatever comes.
        let agent = self.agent.insert(run_agent(place, join)?);
        follows(agent, 0).await
    }

    /// Waits until the agent follows the authority, on a stream later than `syncs`.
    ///
    /// # Errors
    /// One sentence.
    pub(super) async fn agent_follows(&self, syncs: u64) -> Result<(), String> {
        follows(self.agent.as_ref().ok_or("there is no agent")?, syncs).await
    }

    /// How often the agent was brought up to date.
    pub(super) fn syncs(&self) -> u64 {
        self.agent.as_ref().map_or(0, |agent| agent.status().borrow().syncs)
    }

    /// The two workloads, once they run.
    ///
    /// # Errors
    /// One sentence: they do not run yet.
    pub(super) fn workloads(&self) -> Result<(&Process, &Process), String> {
        let both = self.web.as_ref().zip(self.backend.as_ref());
        both.ok_or_else(|| "the workloads do not run".to_owned())
    }

    /// Stops everything.
    pub(super) async fn clear(mut self) {
        drop((self.web.take(), self.backend.take()));
        while let Some(below) = self.below.pop() {
            below.clear().await;
        }
        if let Some(agent) = self.agent.take() {
            agent.stop().await;
        }
        self.authority.stop().await;
    }
}

/// Starts an agent that joins with `join`, and its sockets.
///
/// # Errors
/// One sentence.
pub(super) fn run_agent(place: &Place, join: &str) -> Result<Agent, String> {
    let join = Some(JoinString::decode(join).map_err(|error| error.to_string())?);
    let clock = Arc::new(rhizome_agent::SystemClock);
    let ports = Ports { clock: clock.clone(), entropy: Arc::new(rhizome_agent::SystemEntropy::default()) };
    let settings = rhizome_agent::Settings { state: place.agent.clone(), join };
    let socket = Socket::bind(&place.workload_api).map_err(|error| error.to_string())?;
    let agent = rhizome_agent::start(settings, ports).map_err(|error| error.to_string())?;
    let spawner = agent.spawner().clone();
    let doors = Doors::new(agent.identities(), clock, spawner.clone(), DoorsSettings::default());
    spawner.spawn("workload sockets", async move {
        if let Err(cause) = serve(doors, socket).await {
            tracing::error!(%cause, "the agent's sockets failed");
        }
    });
    Ok(agent)
}

/// Waits until `agent` follows its authority, on a stream later than `syncs`.
///
/// # Errors
/// One sentence.
pub(super) async fn follows(agent: &Agent, syncs: u64) -> Result<(), String> {
    let mut status = agent.status();
    let follows = status.wait_for(|status| status.connected && status.syncs > syncs);
    match tokio::time::timeout(PATIENCE, follows).await {
        Ok(Ok(_status)) => Ok(()),
        Ok(Err(_ended)) => Err("the agent ended".to_owned()),
        Err(_elapsed) => Err(format!("the agent did not reach the authority within {PATIENCE:?}")),
    }
}

/// The authority, running or stopped.
pub(super) struct Authority {
    config: Config,
    address: SocketAddr,
    web: Option<SocketAddr>,
    running: Option<Running>,
}

impl Authority {
    pub(super) async fn start(path: &Path) -> Result<Self, String> {
        let Loaded { config, .. } = config::load(path).map_err(|error| error.to_string())?;
        let running = open(&config, None).await?;
        let (address, web) = (running.address(), running.web_address());
        Ok(Self { config, address, web, running: Some(running) })
    }

    /// Where gRPC over mutual TLS is served.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and health are served, if at all.
    pub(super) const fn web(&self) -> Option<SocketAddr> {
        self.web
    }

    /// Stops it; nobody is served any more when this returns.
    pub(super) async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    /// Starts it again from its disk, where it was before.
    ///
    /// # Errors
    /// One sentence, with the remedy.
    pub(super) async fn start_again(&mut self) -> Result<(), String> {
        self.running = Some(open(&self.config, Some((self.address, self.web))).await?);
        Ok(())
    }
}

async fn open(config: &Config, at: Option<(SocketAddr, Option<SocketAddr>)>) -> Result<Running, String> {
    let launch::Launch { mut settings, ports } =
        launch::open(config).await.map_err(|error| error.to_string())?;
    if let Some((address, web)) = at {
        (settings.listen, settings.web) = (address, web);
    }
    rhizome_server::start(settings, ports).await.map_err(|error| error.to_string())
}
