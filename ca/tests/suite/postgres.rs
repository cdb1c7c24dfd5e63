//! The binary over PostgreSQL: founded there, moved there, restarted, marked after a dump, and away.

use std::fs;

use rhizome_store::cluster::Cluster;

use crate::process::{Home, rhizome, stderr, stdout};

/// The section of a configuration for the database at `address`.
fn section(address: &str) -> String {
    format!("store: {{postgres: \"{address}\"}}\n")
}

fn append(home: &Home, more: &str) {
    let text = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), text + more).unwrap();
}

fn join(home: &Home, node: &str) {
    let (made, token) =
        home.admin(&["token", "create", "--cluster", "prod", "--node", node, "--namespace", "shop"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let join = token["join_string"].as_str().unwrap();
    let (joined, _) = home.admin(&["node", "join", "--out", &home.text(node), join]);
    assert!(joined.status.success(), "{}", stderr(&joined));
}

fn verified_position(home: &Home) -> u64 {
    let (verified, head) = home.admin(&["ledger", "verify"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let found = head.pointer("/head/sequence");
    found.and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{head}"))
}

#[test]
fn a_server_over_postgresql_issues_restarts_and_keeps_one_ledger() {
    let Some(cluster) = Cluster::shared() else { return };
    let home = Home::new(&section(&cluster.database()));
    let checked = rhizome(&["server", "--config", &home.config(), "--check-config"]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    let server = home.serve();
    join(&home, "vm-1");
    let before = verified_position(&home);
    assert!(!home.data().join("rhizome.db").exists());
    let (refused, _) = home.admin(&["backup", &home.text("backup.db")]);
    assert!(stderr(&refused).contains("pg_dump"), "{}", stderr(&refused));
    assert!(server.stop().success());
    let server = home.serve();
    join(&home, "vm-2");
    assert!(verified_position(&home) > before);
    let (_, nodes) = home.admin(&["node", "list"]);
    assert!(nodes.to_string().contains("vm-1") && nodes.to_string().contains("vm-2"), "{nodes}");
    assert!(server.stop().success());
}

#[test]
fn an_authority_moves_from_the_embedded_database_to_postgresql_and_not_back_by_mistake() {
    let Some(cluster) = Cluster::shared() else { return };
    let home = Home::new("");
    let server = home.serve();
    join(&home, "vm-1");
    let before = verified_position(&home);
    let (_, bundle) = home.admin(&["bundle", "show"]);
    assert!(server.stop().success());
    let migrate = || rhizome(&["store", "migrate", "--config", &home.config()]);
    let unsaid = migrate();
    assert!(stderr(&unsaid).contains("names no PostgreSQL"), "{}", stderr(&unsaid));
    let address = cluster.database();
    append(&home, &section(&address));
    let moved = migrate();
    assert_eq!(moved.status.code(), Some(0), "{}{}", stdout(&moved), stderr(&moved));
    assert!(stdout(&moved).contains("ledger records verified"), "{}", stdout(&moved));
    let again = migrate();
    assert!(stderr(&again).contains("nothing to move"), "{}", stderr(&again));

    // Interrupted before the old database was renamed: the same command finishes it.
    fs::rename(home.data().join("rhizome.db.migrated"), home.data().join("rhizome.db")).unwrap();
    let finished = migrate();
    assert_eq!(finished.status.code(), Some(0), "{}", stderr(&finished));
    assert!(stdout(&finished).contains("copied before"), "{}", stdout(&finished));

    let server = home.serve();
    join(&home, "vm-2");
    assert!(verified_position(&home) > before);
    let (_, after) = home.admin(&["bundle", "show"]);
    assert_eq!(after, bundle, "the roots changed on the way");
    let (_, entries) = home.admin(&["ledger", "list", "--limit", "0"]);
    assert!(entries.to_string().contains("store.migrate"), "{entries}");
    assert!(server.stop().success());

    // Into what is not empty nothing moves.
    let other = Home::new("");
    assert!(other.serve().stop().success());
    append(&other, &section(&address));
    let refused = rhizome(&["store", "migrate", "--config", &other.config()]);
    assert!(stderr(&refused).contains("not empty"), "{}", stderr(&refused));
    assert!(other.data().join("rhizome.db").exists());

    // The old configuration does not found another authority beside this one.
    let text = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), text.replace(&section(&address), "")).unwrap();
    let mistaken = rhizome(&["server", "--config", &home.config()]);
    assert!(stderr(&mistaken).contains("the state was moved to PostgreSQL"), "{}", stderr(&mistaken));
}

#[test]
fn a_dump_that_was_put_back_is_marked_before_anybody_serves_from_it() {
    let Some(cluster) = Cluster::shared() else { return };
    let address = cluster.database();
    let home = Home::new(&section(&address));
    let server = home.serve();
    let (_, before) = home.admin(&["status"]);
    let (made, _) =
        home.admin(&["token", "create", "--cluster", "prod", "--node", "vm-1", "--namespace", "shop"]);
    assert!(made.status.success());
    assert!(server.stop().success());
    let marked = rhizome(&["store", "mark-restored", "--config", &home.config()]);
    assert_eq!(marked.status.code(), Some(0), "{}", stderr(&marked));
    assert!(stdout(&marked).contains("outstanding join tokens revoked: 1"), "{}", stdout(&marked));
    let server = home.serve();
    let (_, after) = home.admin(&["status"]);
    assert!(after["bundle_sequence"].as_u64() > before["bundle_sequence"].as_u64(), "{before} {after}");
    assert!(server.stop().success());
    let embedded = rhizome(&["restore", "--config", &home.config(), "backup.db"]);
    assert!(stderr(&embedded).contains("mark-restored"), "{}", stderr(&embedded));
}

#[test]
fn a_database_that_is_away_at_the_start_is_named() {
    let home = Home::new(
        "store: {postgres: \"postgresql://rhizome@127.0.0.1:1/rhizome\", danger_plaintext: true}\n",
    );
    let refused = rhizome(&["server", "--config", &home.config()]);
    let told = stderr(&refused);
    assert!(told.contains("PostgreSQL database rhizome on 127.0.0.1") && told.contains("refused"), "{told}");
}

#[test]
fn a_server_whose_database_goes_away_says_when_to_come_back_and_recovers_by_itself() {
    let Some(cluster) = Cluster::start() else { return };
    let home = Home::new(&section(&cluster.database()));
    let server = home.serve();
    join(&home, "vm-1");
    let before = verified_position(&home);
    let token = || {
        let words = ["token", "create", "--cluster", "prod", "--node", "vm-2", "--namespace", "shop"];
        home.admin(&words).0
    };
    for crash in [false, true] {
        if crash {
            cluster.crash()
        } else {
            cluster.stop()
        }
        let refused = token();
        assert!(!refused.status.success());
        assert!(stderr(&refused).contains("store_unavailable"), "{}", stderr(&refused));
        cluster.start_again();
        // Nobody does anything but ask again: a process that has found its database tells nobody.
        let came_back = (0..600).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            token().status.success()
        });
        assert!(came_back, "it did not find its database again");
    }
    join(&home, "vm-3");
    assert!(verified_position(&home) > before);
    assert!(server.stop().success());
}
