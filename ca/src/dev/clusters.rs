//! Clusters with a Rhizome of their own below the trial's root: each with an agent and workloads that call, and are called
//! by, those of the first cluster.
//!
//! Laws: as in `walk` and `mesh`. A process has the same identity in every cluster, and everybody trusts one bundle.
//! Not here: what a cluster may do (`rhizome_core::clusters`), how a change of the root waits for it (`rotation`).

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::TRUST_DOMAIN;
use super::mesh::{BACKEND, Pace, WEB, id_of, rules};
use super::process::Process;
use super::stage::{Authority, Below, Stage, follows, run_agent};
use super::walk::{NAMESPACE, Place, Walk, done, locally, path, text};

/// The clusters after the first one.
pub(super) const NAMES: [&str; 3] = ["east", "west", "north"];
/// The node that a cluster's agent is.
const HOST: &str = "host";
/// How long a cluster may take to follow the root: it reports every five seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Calls in each direction before that counts as shown.
const CALLS: u64 = 10;

impl Walk {
    /// `count` clusters join, the first one included, and workloads of all call each other.
    pub(super) async fn clusters(
        &mut self,
        place: &Place,
        stage: &mut Stage,
        count: u8,
        pace: Pace,
    ) -> Option<()> {
        for name in NAMES.into_iter().take(usize::from(count.saturating_sub(1))) {
            self.step("cluster joins", Box::pin(joins(place, stage, name))).await?;
            self.step("its agent", agent(stage)).await?;
            self.step("its workloads", workloads(place, stage, pace)).await?;
            self.step("calls across", calls_across(stage)).await?;
        }
        Some(())
    }
}

/// A cluster is added at the root, and its own Rhizome starts with nothing but one string.
async fn joins(place: &Place, stage: &mut Stage, name: &'static str) -> Result<((), String), String> {
    let wish = ["cluster", "add", name, "--namespace", NAMESPACE, "--max-ttl", "1h"];
    let join = text(&done(locally(place, &wish).await?)?, "/join_string")?;
    let directory = place.clusters.join(name);
    let its = Place::below(&directory);
    for made in [&place.clusters, &directory, &its.data, &its.executables] {
        match fs::DirBuilder::new().mode(0o700).create(made) {
            Err(cause) if !made.is_dir() => return Err(format!("{}: {cause}", made.display())),
            Ok(()) | Err(_) => {}
        }
    }
    let file = directory.join("upstream.join");
    fs::write(&file, join).map_err(|cause| cause.to_string())?;
    fs::write(&its.config, configuration(&its, &file, name)?).map_err(|cause| cause.to_string())?;
    let authority = Authority::start(&its.config).await?;
    let address = authority.address();
    stage.below.push(Below { name, place: its, authority, agent: None, workloads: Vec::new() });
    Ok(((), format!("{name}: its own Rhizome serves on {address}, with an intermediate below the one root")))
}

/// Its agent joins at its own Rhizome.
async fn agent(stage: &mut Stage) -> Result<((), String), String> {
    let below = stage.below.last_mut().ok_or("no cluster joined")?;
    let wish = ["token", "create", "--cluster", below.name, "--node", HOST, "--namespace", NAMESPACE];
    let join = text(&done(locally(&below.place, &wish).await?)?, "/join_string")?;
    // Kept at once, so that it is stopped whatever comes.
    let agent = below.agent.insert(run_agent(&below.place, &join)?);
    follows(agent, 0).await?;
    Ok(((), format!("serves {}", below.place.workload_api.display())))
}

/// Workloads there call one here, and one here calls one there.
async fn workloads(place: &Place, stage: &mut Stage, pace: Pace) -> Result<((), String), String> {
    let (_, here) = stage.workloads()?;
    let address_here = here.now().address.unwrap_or_default();
    let below = stage.below.last_mut().ok_or("no cluster joined")?;
    let ((), seen) = rules(&below.place, pace).await?;
    let its = &below.place;
    let task = ["serve", "--caller", &id_of(WEB)];
    let backend = Process::start(&its.executables, BACKEND, &its.workload_api, &task)?;
    let serving = backend.until("serve", |seen| seen.address.is_some()).await?;
    let address_there = serving.address.unwrap_or_default();
    let call = |address: &str, from: &Place| {
        let task = ["call", "--address", address, "--callee", &id_of(BACKEND), "--every", pace.every()];
        Process::start(&from.executables, WEB, &from.workload_api, &task)
    };
    below.workloads = vec![call(&address_here, its)?, call(&address_there, place)?, backend];
    Ok(((), seen))
}

async fn calls_across(stage: &Stage) -> Result<((), String), String> {
    let below = stage.below.last().ok_or("no cluster joined")?;
    let mut calls = 0_u64;
    for caller in below.callers() {
        let seen = caller.until("call", |seen| seen.calls >= CALLS).await?;
        calls = calls.saturating_add(seen.calls);
    }
    let name = below.name;
    Ok((
        (),
        format!(
            "{WEB} of {name} calls {BACKEND} here, and {WEB} here calls {BACKEND} of {name}: {calls} handshakes"
        ),
    ))
}

/// What becomes true of each cluster: it trusts what the root's Rhizome trusts, byte for byte.
pub(super) async fn same_bundle(place: &Place, stage: &Stage) -> Result<(), String> {
    let here = shown(place).await?;
    for below in &stage.below {
        let follows = async {
            loop {
                let there = shown(&below.place).await?;
                if there == here {
                    return Ok::<(), String>(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        match tokio::time::timeout(PATIENCE, follows).await {
            Ok(followed) => followed?,
            Err(_elapsed) => return Err(format!("{} has another bundle than the root, {here}", below.name)),
        }
    }
    Ok(())
}

/// The bundle's sequence and digest.
async fn shown(place: &Place) -> Result<String, String> {
    let bundle = done(locally(place, &["bundle", "show"]).await?)?;
    let sequence = bundle.pointer("/sequence").map(Value::to_string).unwrap_or_default();
    Ok(format!("{sequence} {}", text(&bundle, "/digest")?))
}

/// The configuration of a cluster's own Rhizome; a trial is in a hurry.
fn configuration(place: &Place, join: &Path, name: &str) -> Result<String, String> {
    let text = |it: &Path| serde_json::to_string(path(it)?).map_err(|error| error.to_string());
    let (data, socket, key) = (text(&place.data)?, text(&place.socket)?, text(&place.sealing_key)?);
    let join = text(join)?;
    Ok(format!(
        "trust_domain: {TRUST_DOMAIN}\n\
         replica: {name}\n\
         listen: 127.0.0.1:0\n\
         names: [localhost]\n\
         data: {data}\n\
         admin: {{socket: {socket}}}\n\
         keys: {{sealing_key_file: {key}}}\n\
         authority: {{upstream: {{join_file: {join}}}}}\n\
         rotation: {{settle: 1s, window: 1s}}\n\
         log: {{format: text}}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn the_configuration_of_a_cluster_is_valid_wherever_its_directory_is() {
        for directory in ["/tmp/rhizome-dev-1/clusters/east", "/tmp/with space: and # \"quotes\" {more}"] {
            let place = Place::below(Path::new(directory));
            let text = configuration(&place, &Path::new(directory).join("upstream.join"), "east").unwrap();
            let loaded = config::parse(text.as_bytes());
            let loaded = loaded.unwrap_or_else(|faults| panic!("{}", faults.report("dev")));
            assert_eq!(loaded.config.data, place.data);
            assert!(loaded.config.authority.upstream.is_some());
        }
    }
}
