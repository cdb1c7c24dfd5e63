//! The main path as a person walks it: the program, its exit codes and what it prints.
//!
//! Not here: what one crate can show by itself; what other people's validators say (`interop`).

use std::process::Output;

use rusqlite::Connection;

use crate::server::{Server, rhizome};
use crate::support::{must, run, said};

/// Denied, as `rhizome help` lists it.
const DENIED: i32 = 4;
/// Failed without a code of its own.
const FAILED: i32 = 1;

#[test]
fn a_node_gets_certificates_in_its_namespace_and_in_no_other() {
    let server = Server::start();
    let node = server.join_node("n1");
    let out = server.scratch().join("web");
    must(&mut server.request_certificate(&node, "web", &out));
    let mut elsewhere = rhizome();
    elsewhere.args(["cert", "request", "--namespace", "kube-system", "--service-account", "web"]);
    elsewhere.arg("--server").arg(server.url()).arg("--identity").arg(&node);
    let refusal = run(&mut elsewhere).unwrap();
    assert_eq!(refusal.status.code(), Some(DENIED), "{}", said(&refusal));
    assert!(said(&refusal).contains("namespace"), "{}", said(&refusal));
}

#[test]
fn a_grant_and_a_denial_are_explained() {
    let server = Server::start();
    server.join_node("n1");
    let explain = |namespace: &str| -> Output {
        let words =
            ["explain", "--node", "dev/join_token/n1", "--service-account", "web", "--namespace", namespace];
        run(&mut server.admin(&words)).unwrap()
    };
    let grant = explain("default");
    assert!(grant.status.success(), "{}", said(&grant));
    assert!(said(&grant).contains("spiffe://example.test/ns/default/sa/web"), "{}", said(&grant));
    let denial = explain("kube-system");
    assert_eq!(denial.status.code(), Some(DENIED), "{}", said(&denial));
    assert!(said(&denial).contains("denied"), "{}", said(&denial));
}

#[test]
fn the_ledger_verifies_until_one_byte_of_it_is_flipped() {
    let server = Server::start();
    let node = server.join_node("n1");
    must(&mut server.request_certificate(&node, "web", &server.scratch().join("web")));
    must(&mut server.admin(&["ledger", "verify"]));

    let database = Connection::open(server.scratch().join("data/rhizome.db")).unwrap();
    let last = "position = (SELECT max(position) FROM ledger)";
    let read = format!("SELECT body FROM ledger WHERE {last}");
    let body: String = database.query_row(&read, [], |row| row.get(0)).unwrap();
    let mut bytes = body.into_bytes();
    let middle = bytes.len() / 2;
    let at = middle + bytes[middle..].iter().position(u8::is_ascii_alphanumeric).unwrap();
    bytes[at] ^= 1;
    let spoiled = String::from_utf8(bytes).unwrap();
    let write = format!("UPDATE ledger SET body = ?1 WHERE {last}");
    assert_eq!(database.execute(&write, [spoiled]).unwrap(), 1);

    let verdict = run(&mut server.admin(&["ledger", "verify"])).unwrap();
    assert_eq!(verdict.status.code(), Some(FAILED), "{}", said(&verdict));
}
