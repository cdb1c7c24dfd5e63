//! Real proxies while the root is changed for another, and while that is taken back: not one handshake fails.
//!
//! Laws: two Rhizomes, the root's and one of a cluster below it, and a node of each with an agent of its own; calls go in
//! both directions all the time, each a new connection and a full handshake; every call from the beginning of a story to its
//! end is counted. The settling time is shortened in the configuration, which the plan names: everything here has the same
//! clock.
//! Not here: gates and names (`root_rotation`), other people's validators (`judges`).

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::{Agent, grant};
use crate::clusters::cluster_below;
use crate::envoy::{Envoy, Role, Sample, installed};
use crate::process::{quiet_port, until};
use crate::server::{Home, Server};
use crate::support::must;
use crate::traffic::{Service, Traffic};

/// Short enough for a test; `rhizome root rotate` warns of it.
const ROTATION: &str = "rotation: {settle: 5s, soak: 10s, window: 5s}\n";
/// Handshakes of a story that has to be sure.
const MANY: usize = 10_200;
/// Longer than any phase takes here; whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(180);

/// Two nodes, one of each Rhizome, and on each a proxy that serves and one that calls the other node's.
struct Mesh {
    servers: [Envoy; 2],
    clients: [Envoy; 2],
    traffic: [Traffic; 2],
    agents: [Agent; 2],
    _service: Service,
    below: Server,
    authority: Server,
}

impl Mesh {
    /// `None` where Envoy is not installed.
    fn start() -> Option<Self> {
        if !installed() {
            return None;
        }
        let authority = Home::new(ROTATION).listening_on(quiet_port()).serve();
        let identities =
            ["--spiffe-id", "spiffe://example.test/frontend", "--spiffe-id", "spiffe://example.test/backend"];
        let below = cluster_below(&authority, &identities, ROTATION);
        for server in [&authority, &below] {
            for role in [Role::Frontend, Role::Backend] {
                grant(server, role.name(), &role.executable(), &format!("/{}", role.name()), "30s");
            }
        }
        let agents = [Agent::join(&authority, "n1"), Agent::join_of(&below, "east", "n2")];
        let service = Service::start();
        let id = |role: Role| format!("spiffe://example.test/{}", role.name());
        // The samples have the frontend call the backend; the other direction is the same with the names exchanged.
        let directions = [(Role::Frontend, Role::Backend), (Role::Backend, Role::Frontend)];
        let pairs = directions.map(|(caller, called)| {
            let [here, there] = match caller {
                Role::Frontend => [&agents[0], &agents[1]],
                Role::Backend | Role::Stranger => [&agents[1], &agents[0]],
            };
            let sample = Sample::server(&there.socket(), service.port())
                .with("spiffe://example.test/frontend", &id(caller));
            let name = format!("{}-serves", called.name());
            let mut server = Envoy::start(authority.scratch(), called, &name, &sample);
            let sample = Sample::client(&here.socket(), &server.listener("inbound"))
                .with("spiffe://example.test/backend", &id(called));
            let name = format!("{}-calls", caller.name());
            let mut client = Envoy::start(authority.scratch(), caller, &name, &sample);
            let traffic = Traffic::start(&client.listener("outbound"), &format!("URI={}", id(caller)));
            (server, client, traffic)
        });
        let [(server, client, traffic), (other_server, other_client, other_traffic)] = pairs;
        Some(Self {
            servers: [server, other_server],
            clients: [client, other_client],
            traffic: [traffic, other_traffic],
            agents,
            _service: service,
            below,
            authority,
        })
    }

    fn proxies(&self) -> impl Iterator<Item = &Envoy> {
        self.servers.iter().chain(&self.clients)
    }

    fn root(&self, words: &[&str]) -> Value {
        let words = [&["root"], words, &["--output", "json"]].concat();
        serde_json::from_slice(&must(&mut self.authority.admin(&words)).stdout).unwrap()
    }

    fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        #[expect(clippy::disallowed_methods, reason = "a bounded wait on a condition")]
        let begun = Instant::now();
        loop {
            let status = self.root(&["status"]);
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it never was {what}: {status}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Begins a change, by hand, and goes on until everybody holds both roots.
    fn distribute(&self) {
        self.root(&["rotate", "--reason", "the story wants it", "--manual", "--yes"]);
        self.until("tested", |it| it["phase"] == "staged" && it["gate_open"] == true);
        self.root(&["advance", "--from", "staged", "--yes"]);
        self.until("distributed", |it| it["phase"] == "distributing" && it["gate_open"] == true);
    }

    /// SIGKILL to each process that hands out identities, one after the other, and each is started again.
    fn kill_everybody(&mut self) {
        self.authority.kill();
        self.more_calls();
        self.authority.start_again();
        self.below.kill();
        self.more_calls();
        self.below.start_again();
        for agent in &mut self.agents {
            agent.kill();
            for traffic in &self.traffic {
                traffic.wait_for_more(20);
            }
            agent.start_again();
        }
    }

    /// Goes on to the phase after `phase` as soon as its gate is open.
    fn advance(&self, phase: &str) {
        self.until(&format!("done with {phase}"), |it| it["phase"] == phase && it["gate_open"] == true);
        self.root(&["advance", "--from", phase, "--yes"]);
    }

    /// The roots as a proxy holds them.
    fn roots(&self) -> Vec<Value> {
        let roots = |proxy: &Envoy| {
            let context = proxy.secret("ROOTCA").unwrap()["validation_context"].clone();
            context["custom_validator_config"]["typed_config"]["trust_domains"].clone()
        };
        self.proxies().map(roots).collect()
    }

    /// Waits until every proxy presents a certificate below another issuer than `before`.
    fn wait_for_other_issuers(&self, before: &[u8]) {
        for proxy in self.proxies() {
            proxy.wait_for_other_than(1, before);
        }
    }

    /// Waits until no chain carries a cross-certificate any more: a leaf and its issuer, and nothing else.
    fn wait_for_plain_chains(&self) {
        for proxy in self.proxies() {
            until("a chain of two", || match proxy.chain()?.len() {
                2 => Ok(()),
                other => Err(format!("it has {other}")),
            });
        }
    }

    fn more_calls(&self) {
        for traffic in &self.traffic {
            traffic.wait_for_more(20);
        }
    }

    /// No call has failed since the beginning, as callers and proxies count.
    fn ends(self, story: &str) {
        let [one, other] = self.traffic.map(Traffic::end);
        let outbound = ["ssl.connection_error", "upstream_cx_connect_fail", "ssl.fail_verify_error"];
        let inbound = [".ssl.connection_error", ".ssl.fail_verify_error", ".ssl.fail_verify_san"];
        let counted: u64 = self
            .clients
            .iter()
            .flat_map(|it| outbound.map(|name| it.sum("cluster.backend.", name)))
            .chain(self.servers.iter().flat_map(|it| inbound.map(|name| it.sum("listener.", name))))
            .sum();
        let handshakes: u64 = self.clients.iter().map(|it| it.sum("cluster.backend.", "ssl.handshake")).sum();
        let resumed: u64 =
            self.clients.iter().map(|it| it.sum("cluster.backend.", "ssl.session_reused")).sum();
        let failed: Vec<String> = one.1.into_iter().chain(other.1).collect();
        let made = one.0 + other.0;
        println!(
            "handshakes through {story}: {made} made ({} one way, {} the other), {} failed; the proxies count {counted} failures",
            one.0,
            other.0,
            failed.len()
        );
        assert_eq!((failed.as_slice(), counted, resumed), ([].as_slice(), 0, 0));
        assert_eq!(handshakes, u64::try_from(made).unwrap(), "every call was a handshake");
    }

    /// Goes on until enough handshakes were made for a failure that is rare to show.
    fn until_many(&self) {
        for traffic in &self.traffic {
            traffic.wait_for(MANY / 2);
        }
    }
}

#[test]
fn no_handshake_fails_through_a_whole_change_of_the_root() {
    let Some(mut mesh) = Mesh::start() else { return };
    mesh.more_calls();
    let before = mesh.roots();
    let issuer = mesh.clients[0].chain().unwrap().remove(1);
    let plan = mesh.root(&["rotate"]);
    assert_eq!(plan["choices"]["settle_seconds"], 5, "{plan}");
    assert!(plan["warnings"].to_string().contains("settling time is 5 s"), "{plan}");

    // The cluster's own Rhizome is cut off half-way: it is waited for, by name.
    mesh.below.kill();
    mesh.root(&["rotate", "--reason", "the story wants it", "--yes"]);
    mesh.until("waiting for the cluster", |it| {
        let blockers = it["blockers"].as_array().into_iter().flatten();
        it["phase"] == "distributing" && blockers.map(|it| &it["name"]).any(|name| name == "cluster:east")
    });
    mesh.more_calls();
    mesh.below.start_again();
    mesh.until("active", |it| it["phase"] == "active");
    mesh.wait_for_other_issuers(&issuer);
    mesh.more_calls();
    let ended = mesh.until("rotated", |it| it["outcome"] == "rotated");
    mesh.more_calls();
    mesh.wait_for_plain_chains();
    let after = mesh.roots();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after && after.is_array()), "{ended}");
    mesh.ends("a whole change of the root");
}

#[test]
fn no_handshake_fails_when_a_change_is_taken_back_while_both_roots_are_distributed_and_once_the_new_one_signs()
 {
    let Some(mesh) = Mesh::start() else { return };
    mesh.more_calls();
    let before = mesh.roots();
    let issuer = mesh.clients[0].chain().unwrap().remove(1);

    mesh.distribute();
    assert!(before.iter().zip(mesh.roots()).all(|(before, now)| *before != now), "they hold both");
    mesh.more_calls();
    mesh.root(&["abort", "--reason", "second thoughts", "--yes"]);
    mesh.until("aborted", |it| it["outcome"] == "aborted");
    mesh.more_calls();

    mesh.distribute();
    mesh.root(&["advance", "--from", "distributing", "--yes"]);
    mesh.until("active", |it| it["phase"] == "active");
    mesh.wait_for_other_issuers(&issuer);
    mesh.more_calls();
    mesh.root(&["abort", "--reason", "third thoughts", "--yes"]);
    mesh.until("aborted", |it| it["outcome"] == "aborted");
    mesh.more_calls();
    mesh.wait_for_plain_chains();
    until("the roots as they were", || {
        let now = mesh.roots();
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    mesh.ends("two changes of the root that were taken back");
}

#[test]
fn no_handshake_fails_when_every_process_that_hands_out_identities_is_killed_in_every_phase() {
    let Some(mut mesh) = Mesh::start() else { return };
    mesh.more_calls();
    let before = mesh.roots();
    mesh.root(&["rotate", "--reason", "the story wants it", "--manual", "--yes"]);
    for phase in ["staged", "distributing", "active"] {
        mesh.until(phase, |it| it["phase"] == phase);
        mesh.kill_everybody();
        mesh.advance(phase);
    }
    // Also out of the last phase that can be left backwards there is a way back, and then forwards again.
    mesh.until("untrusting", |it| it["phase"] == "untrusting");
    mesh.kill_everybody();
    mesh.root(&["abort", "--reason", "fourth thoughts", "--yes"]);
    mesh.until("aborted", |it| it["outcome"] == "aborted");
    mesh.more_calls();
    mesh.wait_for_plain_chains();
    until("the roots as they were", || {
        let now = mesh.roots();
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    mesh.until_many();
    mesh.ends("kills in every phase, and a way back from the last");
}
