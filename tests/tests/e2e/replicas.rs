//! Two real servers over one real PostgreSQL, killed and cut off while agents and callers are at work.
//!
//! Laws: what a caller ever received stands in the one ledger, once; a token is redeemed once, whoever is asked; agents
//! know both addresses and nobody lends them a hand. PostgreSQL is a cluster of the test's own; without it the stories
//! are skipped loudly, and fail with `CI=true`.
//! Not here: servers in the test's own process (`rhizome-server` tests those), the store by itself (`rhizome-store`).
//! Sources: ca/docs/operations.md, Several servers; ca/docs/attacks.md §2 (1, 2, 3, 10).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rhizome_store::cluster::Cluster;
use spiffe::WorkloadApiClient;
use tokio::runtime::Runtime;
use tonic::Code;

use crate::agent::{Agent, grant};
use crate::client::{Answer, anonymous, attest, identified, local, new_csr, runtime, sign, token, workload};
use crate::ledger::Ledger;
use crate::load::{Load, Witness};
use crate::process::{quiet_port, until};
use crate::server::{Home, Server};
use crate::support::{Draws, must, setting};

/// The load is above what people are allowed.
const NO_QUOTA: &str = "limits: { per_identity_per_second: 1000000, per_source_per_second: 100000 }\n";
const ROUNDS: u64 = 6;
/// The kill comes after at most this many certificates of a round.
const MOST: u64 = 500;
/// Far more than a round takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rounds of two rivals for one token.
const TOKENS: usize = 20;

/// The two servers, `r1` and `r2`, and where their database is.
struct Pair {
    servers: [Server; 2],
    database: String,
}

impl Pair {
    /// Both over a new database of `cluster`, each advertising both.
    fn start(cluster: &Cluster) -> Self {
        let database = cluster.database();
        let ports = [quiet_port(), quiet_port()];
        let advertise = ports.map(|port| format!("127.0.0.1:{port}")).join(", ");
        let more = format!("store: {{ postgres: \"{database}\" }}\nadvertise: [{advertise}]\n{NO_QUOTA}");
        let server = |name: &str, port: u16| {
            let home = Home::new(&more).named(name).listening_on(port);
            // The same for both: it is given and never made.
            let file = home.path().join("sealing.key");
            let key: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
            fs::write(&file, key).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            home.with_keys("  root: database\n", None).serve()
        };
        Self { servers: [server("r1", ports[0]), server("r2", ports[1])], database }
    }

    /// A node that both know.
    fn node(&self, runtime: &Runtime, name: &str) -> PathBuf {
        let directory = self.servers[0].join_node(name);
        for server in &self.servers {
            wait_to_issue(runtime, server, &directory);
        }
        directory
    }
}

async fn ask(server: &Server, node: &Path) -> Answer<rhizome_proto::ca::v1::IssuedCertificate> {
    sign(&identified(server, node).await, workload(new_csr())).await
}

/// Waits until that server issues to that node.
fn wait_to_issue(runtime: &Runtime, server: &Server, node: &Path) {
    until("a certificate", || {
        let answer = runtime.block_on(ask(server, node));
        answer.map(drop).map_err(|refusal| format!("{refusal:?}"))
    });
}

/// What the agent serves to this test: the leaf and what it was issued by, in DER.
fn served(runtime: &Runtime, agent: &Agent) -> Result<(Vec<u8>, Vec<u8>), String> {
    runtime.block_on(async {
        let endpoint = format!("unix:{}", agent.socket().display());
        let client = WorkloadApiClient::connect_to(&endpoint).await.map_err(|fault| fault.to_string())?;
        let svid = client.fetch_x509_svid().await.map_err(|fault| fault.to_string())?;
        let chain: Vec<_> = svid.cert_chain().iter().map(|it| it.as_bytes().to_vec()).collect();
        Ok((chain[0].clone(), chain[1].clone()))
    })
}

#[test]
fn an_agent_goes_on_with_the_other_server_when_its_own_is_killed_and_nothing_is_lost_or_recorded_twice() {
    let Some(cluster) = Cluster::shared() else { return };
    let rounds = setting("RHIZOME_KILL9_ROUNDS").map_or(ROUNDS, |rounds| rounds.min(ROUNDS));
    let mut draws = Draws::from_setting("RHIZOME_KILL9_SEED");
    let (runtime, witness) = (runtime(), Arc::new(Witness::default()));
    let mut pair = Pair::start(cluster);
    let node = pair.node(&runtime, "n1");
    let agent = Agent::join(&pair.servers[0], "n2");
    grant(&pair.servers[0], "web", &std::env::current_exe().unwrap(), "/web", "20s");
    let (_, mut issuer) = until("an identity", || served(&runtime, &agent));
    for round in 0..rounds {
        let victim = usize::try_from(round % 2).unwrap();
        let count = 1 + draws.below(MOST);
        let load = Load::start(&runtime, &pair.servers[victim], &node, &witness);
        let (kill, dying) = (pair.servers[victim].killer(), Arc::clone(&witness));
        let moment = witness.after(count.try_into().unwrap(), move || {
            dying.server_is_dying(true);
            kill();
        });
        moment.recv_timeout(PATIENCE).unwrap_or_else(|late| {
            panic!("round {round}: no {count} certificates ({late}): {:?}", witness.faults())
        });
        pair.servers[victim].kill();
        load.end(&runtime);
        assert_eq!(witness.faults(), [""; 0], "round {round}, {draws}");
        if round < 2 {
            // Each issues by a key of its own, so the new issuer is the other server.
            let other = until("a certificate by the other server", || match served(&runtime, &agent)? {
                (_, same) if same == issuer => Err("it is still one of the killed server".to_owned()),
                (_, other) => Ok(other),
            });
            issuer = other;
        }
        pair.servers[victim].start_again();
        wait_to_issue(&runtime, &pair.servers[victim], &node);
        witness.server_is_dying(false);
    }
    for server in &mut pair.servers {
        must(&mut server.admin(&["ledger", "verify"]));
        assert!(server.stop().success());
    }
    let ledger = Ledger::read_postgres(&pair.database);
    let seen = witness.seen();
    let (lost, received) = (ledger.lost(&seen), seen.iter().collect::<BTreeSet<_>>().len());
    let doubled = ledger.doubled.len() + (seen.len() - received);
    println!(
        "{rounds} kills of one of two servers, {} certificates seen, {} ledger records, {} lost, {doubled} doubled ({} \
         nodes joined; {draws})",
        seen.len(),
        ledger.head.position.0,
        lost.len(),
        witness.joins(),
    );
    assert_eq!((lost.as_slice(), doubled), ([].as_slice(), 0), "{draws}");
}

#[test]
fn a_join_token_that_is_shown_to_both_servers_at_once_is_redeemed_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let runtime = runtime();
    let pair = Pair::start(cluster);
    runtime.block_on(async {
        let [one, two] = &pair.servers;
        let (administrator, doors) = (local(one).await, (anonymous(one).await, anonymous(two).await));
        for round in 0..TOKENS {
            let secret = token(&administrator, &format!("vm-{round}"), 0).await.unwrap();
            let (csr, rival) = (new_csr(), new_csr());
            let outcomes = tokio::join!(attest(&doors.0, &secret, csr), attest(&doors.1, &secret, rival));
            let won = usize::from(outcomes.0.is_ok()) + usize::from(outcomes.1.is_ok());
            assert_eq!(won, 1, "round {round}: {:?} and {:?}", outcomes.0.err(), outcomes.1.err());
        }
    });
    must(&mut pair.servers[1].admin(&["ledger", "verify"]));
}

#[test]
fn without_its_database_a_server_says_when_to_come_back_and_all_goes_on_by_itself_when_it_is_there_again() {
    let Some(cluster) = Cluster::start() else { return };
    let runtime = runtime();
    let pair = Pair::start(&cluster);
    let node = pair.node(&runtime, "n1");
    let mut agent = Agent::join(&pair.servers[0], "n2");
    grant(&pair.servers[0], "web", &std::env::current_exe().unwrap(), "/web", "1h");
    let mut held = until("an identity", || served(&runtime, &agent));
    for outage in ["stopped", "crashed"] {
        match outage {
            "stopped" => cluster.stop(),
            _ => cluster.crash(),
        }
        for server in &pair.servers {
            let refusal = runtime.block_on(ask(server, &node)).unwrap_err();
            assert_eq!(refusal.grpc, Code::Unavailable, "{outage}: {refusal:?}");
            assert!(refusal.retry_after_ms.is_some_and(|wait| wait > 0), "{outage}: {refusal:?}");
        }
        assert_eq!(served(&runtime, &agent).unwrap(), held, "{outage}: the agent serves what it holds");
        agent.start_again();
        assert_eq!(until("what was sealed", || served(&runtime, &agent)), held);

        cluster.start_again();
        for server in &pair.servers {
            wait_to_issue(&runtime, server, &node);
        }
        // Long enough for an agent that still looks for a server to hear of it.
        let words = ["node", "renew", "dev/join_token/n2", "--within", "20s", "--reason", outage, "--yes"];
        until("an administrator's order", || {
            let output = pair.servers[1].admin(&words).output().unwrap();
            output.status.success().then_some(()).ok_or_else(|| crate::support::said(&output))
        });
        held = until("a certificate of after the outage", || match served(&runtime, &agent)? {
            same if same == held => Err("the same one".to_owned()),
            renewed => Ok(renewed),
        });
    }
    for server in &pair.servers {
        must(&mut server.admin(&["ledger", "verify"]));
    }
}
