//! Callers that are too many, too slow or too restless: what they cost is bounded, and the others go on.
//!
//! Laws: the test waits for what the server does (it closes, it answers), never for time to pass.
//! Sources: ca/docs/attacks.md §1.4, §2 (20); CVE-2023-44487.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use futures::FutureExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::client::{identified, new_csr, runtime, sign, workload};
use crate::server::{Home, Server};
use crate::support::must;

/// Connections that say nothing.
const FLOOD: usize = 2_000;
/// What they may cost the server, KiB.
const FLOOD_KIB: u64 = 100 * 1024;
/// Above the server's deadline for handshakes (10 s); whoever waits longer waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Resident memory, KiB.
fn memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Room for either end of the flood, here and, inherited, in the server: shells often give 1,024 descriptors.
fn make_room() {
    let wanted = 2 * u64::try_from(FLOOD).unwrap();
    let given = getrlimit(Resource::Nofile);
    if given.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum: given.maximum };
        setrlimit(Resource::Nofile, raised).unwrap_or_else(|fault| {
            panic!("{wanted} descriptors are needed, {given:?} are given: {fault}; raise the hard limit")
        });
    }
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count()
}

fn dial(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits until the server closes.
fn is_closed(stream: &mut TcpStream) {
    let mut rest = [0; 1024];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return,
            Ok(_alert) => {}
            Err(fault) if fault.kind() == ErrorKind::ConnectionReset => return,
            Err(fault) => panic!("it was not closed: {fault}"),
        }
    }
}

#[test]
fn two_thousand_silent_connections_cost_little_and_are_cut_at_the_deadline() {
    make_room();
    let server = Server::start();
    let node = server.join_node("n1");
    let runtime = runtime();
    let channel = runtime.block_on(identified(&server, &node));
    let (memory_before, descriptors_before) = (memory(&server), descriptors(&server));
    let mut silent: Vec<_> = (0..FLOOD).map(|_| dial(&server)).collect();
    // The old connection answers, and new ones are served.
    for _ in 0..20 {
        runtime.block_on(sign(&channel, workload(new_csr()))).unwrap();
    }
    let another = runtime.block_on(identified(&server, &node));
    runtime.block_on(sign(&another, workload(new_csr()))).unwrap();
    must(&mut server.request_certificate(&node, "web", &server.scratch().join("web")));
    let grown = memory(&server).saturating_sub(memory_before);
    println!("{FLOOD} silent connections: {grown} KiB more");
    assert!(grown < FLOOD_KIB, "{grown} KiB for {FLOOD} connections");

    // Half a handshake is no more than none.
    for stream in silent.iter_mut().take(100) {
        stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    }
    silent.iter_mut().for_each(is_closed);
    let left = descriptors(&server);
    assert!(left <= descriptors_before + 16, "{descriptors_before} descriptors before, {left} after");
    runtime.block_on(sign(&channel, workload(new_csr()))).unwrap();
}

#[test]
fn what_is_no_handshake_is_closed_at_once() {
    let server = Server::start();
    let node = server.join_node("n1");
    let openings: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 64],
        &[0xff; 16_384],
        &[22, 3, 1, 0xff, 0xff, 1, 0, 0, 0],
    ];
    for opening in openings {
        let mut stream = dial(&server);
        // It may be cut while it still talks.
        drop(stream.write_all(opening));
        is_closed(&mut stream);
    }
    must(&mut server.request_certificate(&node, "web", &server.scratch().join("web")));
}

#[test]
fn connections_beyond_the_limit_are_closed_and_those_within_go_on() {
    let server = Home::new("limits: { connections: 50 }\n").serve();
    let node = server.join_node("n1");
    let runtime = runtime();
    let channel = runtime.block_on(identified(&server, &node));
    let mut flood: Vec<_> = (0..200).map(|_| dial(&server)).collect();
    // The last ones were refused at once: 50 places were taken long before.
    flood.iter_mut().rev().take(100).for_each(is_closed);
    runtime.block_on(sign(&channel, workload(new_csr()))).unwrap();
    drop(flood);
    must(&mut server.request_certificate(&node, "web", &server.scratch().join("web")));
}

#[test]
fn calls_that_are_cancelled_without_end_hurt_nobody_else() {
    let server = Server::start();
    let node = server.join_node("n1");
    runtime().block_on(async {
        let (restless, patient) = (identified(&server, &node).await, identified(&server, &node).await);
        let request = workload(new_csr());
        for turn in 0..5_000 {
            // Begun and dropped: the stream is reset.
            drop(Box::pin(sign(&restless, request.clone())).now_or_never());
            if turn % 50 == 0 {
                tokio::task::yield_now().await;
                sign(&patient, workload(new_csr())).await.unwrap();
            }
        }
        sign(&patient, workload(new_csr())).await.unwrap();
    });
    must(&mut server.admin(&["check"]));
}
