//! A backup taken while the server issues, restored at another place after the server was lost.
//!
//! Laws: what the restored server gives out is newer than anything the lost one did, also after the backup.
//! Not here: refusals of a restore, and its being killed (`ca/tests`).
//! Sources: ca/docs/attacks.md §2 (2, 13, 22).

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rhizome_id::SerialCounter;
use rhizome_proto::ca::v1::GetBundleRequest;
use rhizome_proto::ca::v1::bundle_service_client::BundleServiceClient;
use tokio::runtime::Runtime;

use crate::client::{
    Answer, Seen, anonymous, attest, identified, local, new_csr, runtime, sign, token, workload,
};
use crate::ledger::Ledger;
use crate::load::{Load, Witness};
use crate::server::{Home, Server, rhizome};
use crate::support::must;

const PATIENCE: Duration = Duration::from_secs(60);
const NO_QUOTA: &str = "limits: { per_identity_per_second: 1000000, per_source_per_second: 100000 }\n";

fn join_with(runtime: &Runtime, server: &Server, secret: &str) -> Answer<Seen> {
    let joined = runtime.block_on(async { attest(&anonymous(server).await, secret, new_csr()).await });
    joined.map(|issued| Seen::of(&issued))
}

fn new_token(runtime: &Runtime, server: &Server, name: &str) -> String {
    runtime.block_on(async { token(&local(server).await, name, 3_600).await }).unwrap()
}

fn bundle_sequence(runtime: &Runtime, server: &Server) -> u64 {
    runtime.block_on(async {
        let mut client = BundleServiceClient::new(local(server).await);
        client.get_bundle(GetBundleRequest::default()).await.unwrap().into_inner().bundle.unwrap().sequence
    })
}

/// The backup in a fresh data directory, with the keys that were kept apart from it.
fn restored(lost: &Home, backup: &Path) -> Server {
    let home = Home::new(NO_QUOTA);
    for name in ["data/keys", "sealing.key"] {
        must(Command::new("cp").arg("-a").arg(lost.path().join(name)).arg(home.path().join(name)));
    }
    let report = must(rhizome().arg("restore").arg("--config").arg(home.config()).arg(backup));
    print!("{}", String::from_utf8_lossy(&report.stdout));
    home.serve()
}

#[test]
fn a_backup_taken_under_load_comes_back_above_everything_that_was_ever_given_out() {
    let runtime = runtime();
    let witness = Arc::new(Witness::default());
    let mut server = Home::new(NO_QUOTA).serve();
    let node = server.join_node("n1");
    let consumed_before = new_token(&runtime, &server, "n2");
    join_with(&runtime, &server, &consumed_before).unwrap();
    let consumed_after = new_token(&runtime, &server, "n3");
    let outstanding = new_token(&runtime, &server, "n4");

    let warm = witness.after(300, || {});
    let load = Load::start(&runtime, &server, &node, &witness);
    warm.recv_timeout(PATIENCE).unwrap();
    let before_backup = witness.seen();
    let backup = server.scratch().join("backup");
    must(&mut server.admin(&["backup", backup.to_str().unwrap()]));
    let after_backup = witness.after(300, || {});
    let joined = join_with(&runtime, &server, &consumed_after).unwrap();
    after_backup.recv_timeout(PATIENCE).unwrap();
    let sequence = bundle_sequence(&runtime, &server);
    assert_eq!(witness.faults(), [""; 0], "issuing went on during the backup");
    witness.server_is_dying(true);
    server.kill();
    load.end(&runtime);

    let mut again = restored(server.home(), &backup);
    let seen = witness.seen();
    let highest = seen.iter().chain([&joined]).map(|it| it.serial.counter()).max().unwrap();
    assert_tokens_are_dead(&runtime, &again, [&consumed_before, &consumed_after, &outstanding]);
    let first = first_certificates(&runtime, &again, &node, highest);
    assert!(bundle_sequence(&runtime, &again) > sequence);
    let fresh = new_token(&runtime, &again, "n5");
    join_with(&runtime, &again, &fresh).unwrap();
    must(&mut again.admin(&["ledger", "verify"]));
    must(&mut again.admin(&["check"]));
    assert!(again.stop().success());
    let ledger = Ledger::read(&again.home().database());
    assert_eq!(ledger.lost(&before_backup), [], "what was seen before the backup is in it");
    assert_eq!(ledger.lost(&first), []);
    assert_eq!(ledger.doubled, []);
    println!(
        "{} certificates before the backup, {} until the server was lost, counters above {} after",
        before_backup.len(),
        seen.len(),
        highest.value()
    );
}

fn assert_tokens_are_dead(runtime: &Runtime, server: &Server, tokens: [&String; 3]) {
    for secret in tokens {
        let refusal = join_with(runtime, server, secret).unwrap_err();
        assert_eq!(refusal.code, "join_token_refused", "{refusal:?}");
    }
}

/// The node of before is still known; what it gets is above everything it ever got, by whatever clock.
fn first_certificates(runtime: &Runtime, server: &Server, node: &Path, highest: SerialCounter) -> Vec<Seen> {
    let first: Vec<_> = runtime.block_on(async {
        let channel = identified(server, node).await;
        let mut all = Vec::new();
        for _ in 0..20 {
            all.push(Seen::of(&sign(&channel, workload(new_csr())).await.unwrap()));
        }
        all
    });
    assert!(first.iter().all(|it| it.serial.counter() > highest), "{highest:?}: {first:?}");
    first
}
