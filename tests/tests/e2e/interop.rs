//! Chains that every validator in the field accepts, and faults that each of them finds.
//!
//! Laws: the control chain is made without a line of our code. If a judge refuses the control, the judge or the
//! profile is at fault; if it accepts the control and refuses ours, we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::judges::{Spoil, hearing};
use crate::server::Server;
use crate::support::must;

#[test]
fn every_judge_accepts_the_profile_made_by_hand_and_refuses_it_spoiled() {
    let scratch = TempDir::new().unwrap();
    chain_by_hand(scratch.path());
    hearing(scratch.path(), |fault| spoiled(scratch.path(), fault));
}

#[test]
fn every_judge_accepts_a_chain_that_the_server_issued_and_refuses_it_spoiled() {
    let server = Server::start();
    let chain = issued_chain(&server);
    hearing(&chain, |fault| spoiled(&chain, fault));
}

/// Joins a node and asks for a certificate in its name, by the program alone: the directory with the three files.
fn issued_chain(server: &Server) -> PathBuf {
    let node = server.join_node("n1");
    let directory = server.scratch().join("web");
    must(&mut server.request_certificate(&node, "web", &directory));
    directory
}

/// A copy of a good directory with one fault planted.
fn spoiled(good: &Path, fault: Spoil) -> TempDir {
    let scratch = TempDir::new().unwrap();
    for name in ["key.pem", "chain.pem", "bundle.pem"] {
        fs::copy(good.join(name), scratch.path().join(name)).unwrap();
    }
    let chain_file = scratch.path().join("chain.pem");
    let mut chain = pem::parse_many(fs::read(&chain_file).unwrap()).unwrap();
    match fault {
        Spoil::ForeignRoot => {
            let stranger = TempDir::new().unwrap();
            chain_by_hand(stranger.path());
            fs::copy(stranger.path().join("bundle.pem"), scratch.path().join("bundle.pem")).unwrap();
        }
        Spoil::NoIntermediate => chain.truncate(1),
        Spoil::FlippedSignature => {
            let mut der = chain[0].contents().to_vec();
            *der.last_mut().unwrap() ^= 1;
            chain[0] = pem::Pem::new("CERTIFICATE", der);
        }
        Spoil::IntermediateFirst => chain.swap(0, 1),
        Spoil::ForeignKey => new_key(&scratch.path().join("key.pem")),
    }
    fs::write(&chain_file, pem::encode_many(&chain)).unwrap();
    scratch
}

/// The profile of the house, made with the openssl program: P-256 throughout, empty subject under a critical SAN,
/// path length 0 above the leaf, key identifiers only.
const EXTENSIONS: &str = "
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
subjectAltName = URI:spiffe://control.test
[issuer]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
subjectAltName = URI:spiffe://control.test
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
subjectAltName = critical, URI:spiffe://control.test/ns/default/sa/web
[req]
distinguished_name = name
[name]
";

/// Writes `key.pem`, `chain.pem` and `bundle.pem` of a fresh authority into a directory.
fn chain_by_hand(directory: &Path) {
    fs::write(directory.join("extensions.cnf"), EXTENSIONS).unwrap();
    for (name, subject) in
        [("root", "/O=control.test/CN=root 1"), ("issuer", "/O=control.test/CN=issuer 1"), ("leaf", "/")]
    {
        new_key(&directory.join(format!("{name}.key")));
        let request = format!("req -new -config extensions.cnf -key {name}.key -subj");
        let mut command = openssl(directory, &request);
        must(command.arg(subject).args(["-out", &format!("{name}.csr")]));
    }
    sign(directory, "root", "-signkey root.key");
    sign(directory, "issuer", "-CA root.pem -CAkey root.key -CAcreateserial");
    sign(directory, "leaf", "-CA issuer.pem -CAkey issuer.key -CAcreateserial");
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    fs::write(directory.join("chain.pem"), read("leaf.pem") + &read("issuer.pem")).unwrap();
    fs::write(directory.join("bundle.pem"), read("root.pem")).unwrap();
    fs::write(directory.join("key.pem"), read("leaf.key")).unwrap();
}

fn sign(directory: &Path, name: &str, by: &str) {
    let what = format!("x509 -req -sha256 -days 1 -in {name}.csr -out {name}.pem {by}");
    let how = format!("{what} -extfile extensions.cnf -extensions {name}");
    must(&mut openssl(directory, &how));
}

/// Writes a new P-256 key, PKCS#8 PEM.
fn new_key(file: &Path) {
    let directory = file.parent().unwrap();
    let mut command = openssl(directory, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out");
    must(command.arg(file));
}

fn openssl(directory: &Path, arguments: &str) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(directory).args(arguments.split_whitespace());
    command
}
