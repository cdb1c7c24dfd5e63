//! `kill -9` at random moments under load: what a caller ever received stands in the ledger.
//!
//! Laws: the moment is an event, the Nth certificate that callers received in that round, and N is drawn from a seed
//! that is printed; `RHIZOME_KILL9_SEED` replays the draws and `RHIZOME_KILL9_ROUNDS` changes their number.
//! What SIGKILL cannot show: the loss of the page cache at a power cut, so whether the store syncs before it answers
//! (`synchronous=FULL`) is not seen here; and an answer a moment before its commit, because the kernel keeps what was
//! written by then. The full disk (`disk`) finds the latter. What this finds is an answer whose record is still in an
//! open transaction, or in memory.
//! Sources: ca/docs/attacks.md §2 (1, 2, 10).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rhizome_core::ledger::{Head, Position};
use rhizome_id::Digest;
use rhizome_proto::admin::v1::GetHeadRequest;
use rhizome_proto::admin::v1::ledger_service_client::LedgerServiceClient;
use tokio::runtime::Runtime;

use crate::client::{Seen, local, runtime};
use crate::ledger::Ledger;
use crate::load::{Load, Witness};
use crate::server::{Home, Server};
use crate::support::{Draws, must, setting};

const ROUNDS: u64 = 50;
/// The kill comes after at most this many certificates of a round.
const MOST: u64 = 1_000;
/// Far more than a round takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The load is above what people are allowed.
const NO_QUOTA: &str = "limits: { per_identity_per_second: 1000000, per_source_per_second: 100000 }\n";

#[test]
fn whatever_a_caller_received_is_in_the_ledger_after_fifty_kills_under_load() {
    let rounds = setting("RHIZOME_KILL9_ROUNDS").unwrap_or(ROUNDS);
    let mut draws = Draws::from_setting("RHIZOME_KILL9_SEED");
    let runtime = runtime();
    let witness = Arc::new(Witness::default());
    let mut server = Home::new(NO_QUOTA).serve();
    let node = server.join_node("n1");
    let mut heads = Vec::new();
    for round in 1..=rounds {
        heads.push(head(&runtime, &server));
        let count = draws.below(MOST);
        // At 0 the server dies while its callers connect and send, before anybody has an answer.
        witness.server_is_dying(count == 0);
        let load = Load::start(&runtime, &server, &node, &witness);
        let (victim, dying) = (server.killer(), Arc::clone(&witness));
        let moment = (count > 0).then(|| {
            witness.after(count.try_into().unwrap(), move || {
                dying.server_is_dying(true);
                victim();
            })
        });
        if let Some(moment) = moment {
            moment.recv_timeout(PATIENCE).unwrap_or_else(|late| {
                panic!("round {round}: no {count} certificates ({late}): {:?}", witness.faults())
            });
        }
        server.kill();
        load.end(&runtime);
        assert_eq!(witness.faults(), [""; 0], "round {round}, {draws}");
        server.start_again();
    }
    must(&mut server.admin(&["ledger", "verify"]));
    assert!(server.stop().success());
    judge(&server, &witness, &heads, rounds, &draws);
}

fn judge(server: &Server, witness: &Witness, heads: &[Head], rounds: u64, draws: &Draws) {
    let ledger = Ledger::read(&server.home().database());
    let seen = witness.seen();
    let (lost, received) = (ledger.lost(&seen), seen.iter().collect::<BTreeSet<_>>().len());
    let doubled = ledger.doubled.len() + (seen.len() - received);
    println!(
        "{rounds} kills, {} certificates seen, {} ledger records, {} lost, {doubled} doubled ({} nodes joined; {draws})",
        seen.len(),
        ledger.head.position.0,
        lost.len(),
        witness.joins(),
    );
    assert_eq!(lost, [], "{draws}");
    let forged = seen.first().map(|it| Seen { tbs: Digest::ZERO, ..*it });
    assert_eq!(ledger.lost(&forged).len(), forged.iter().len(), "a loss would be found");
    assert_eq!(doubled, 0, "{draws}: {:?}", ledger.doubled);
    let rewritten: Vec<_> = heads.iter().filter(|head| !ledger.contains(**head)).collect();
    assert_eq!(rewritten, [&Head::EMPTY; 0], "{draws}: heads that the chain no longer goes through");
}

/// The end of the chain, as an administrator would keep it elsewhere.
fn head(runtime: &Runtime, server: &Server) -> Head {
    runtime.block_on(async {
        let mut client = LedgerServiceClient::new(local(server).await);
        let head = client.get_head(GetHeadRequest {}).await.unwrap().into_inner().head.unwrap();
        let hash = Digest::from_bytes(head.digest.as_ref().try_into().unwrap());
        Head { position: Position(head.sequence), hash }
    })
}

#[test]
fn a_server_killed_at_any_step_of_its_founding_comes_up_with_one_root() {
    let mut steps = 0;
    loop {
        let home = Home::new("");
        let (said, founded) = home.killed_after_lines(steps);
        let mut server = home.serve();
        let node = server.join_node("n1");
        must(&mut server.request_certificate(&node, "web", &server.scratch().join("web")));
        let listed = must(&mut server.admin(&["authority", "list", "--output", "json"]));
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let of_kind = |kind: &str| {
            let all = listed["authorities"].as_array().unwrap();
            all.iter().filter(|it| it["kind"] == kind && it["state"] == "active").count()
        };
        assert_eq!((of_kind("root"), of_kind("issuer")), (1, 1), "killed after {said:?}: {listed}");
        assert!(server.stop().success());
        assert_eq!(Ledger::read(&server.home().database()).doubled, []);
        if founded {
            println!("killed after each of {steps} lines of the founding's log");
            return;
        }
        steps += 1;
    }
}
