//! Revocation lists as others read them: accepted, refused with a flipped byte, and obeyed by `openssl verify`.
//!
//! Laws: as in `judges`; a list is judged beside the chain whose leaf it may list.
//! Sources: RFC 5280 §5 and §6.3; the judges' programs are in `tests/judges`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::server::Server;
use crate::support::{in_ci, must, run, said, tools, workspace};

/// Two chains of one issuer with its list beside each; the first leaf is revoked.
fn directories(server: &Server) -> [PathBuf; 2] {
    let node = server.join_node("n1");
    let both = ["web", "shop"].map(|account| {
        let directory = server.scratch().join(account);
        must(&mut server.request_certificate(&node, account, &directory));
        directory
    });
    let mut serial = Command::new("openssl");
    serial.args(["x509", "-noout", "-serial", "-in"]).arg(both[0].join("chain.pem"));
    let serial = said(&must(&mut serial)).trim_start_matches("serial=").to_lowercase();
    must(&mut server.admin(&["cert", "revoke", "--serial", &serial, "--reason", "test", "--yes"]));
    let list = server.scratch().join("crl.pem");
    let list_text = list.display().to_string();
    // The list is signed beside the revocation, not within it.
    let listed = |_: &u32| {
        must(&mut server.admin(&["bundle", "crl", "--format", "pem", "--out", &list_text]));
        let mut text = Command::new("openssl");
        text.args(["crl", "-noout", "-text", "-in"]).arg(&list);
        said(&must(&mut text)).to_lowercase().contains(&serial)
    };
    assert!((0..1_000).find(listed).is_some(), "the revocation is listed");
    for directory in &both {
        fs::copy(&list, directory.join("crl.pem")).unwrap();
    }
    both
}

/// The same directory with one bit of the list's signature flipped.
fn flipped(good: &Path) -> tempfile::TempDir {
    let scratch = tempfile::TempDir::new().unwrap();
    for name in ["chain.pem", "bundle.pem"] {
        fs::copy(good.join(name), scratch.path().join(name)).unwrap();
    }
    let list = pem::parse(fs::read(good.join("crl.pem")).unwrap()).unwrap();
    let mut der = list.contents().to_vec();
    *der.last_mut().unwrap() ^= 1;
    fs::write(scratch.path().join("crl.pem"), pem::encode(&pem::Pem::new("X509 CRL", der))).unwrap();
    scratch
}

/// Whether a judge takes the list, in its own words; `None` when it is not installed.
type Verdict = Option<(bool, String)>;
type Ask = fn(&Path) -> Verdict;

fn spoken(command: &mut Command) -> Verdict {
    let words = said(&run(command)?);
    let accepted = words.starts_with("ACCEPTED ");
    assert!(accepted || words.starts_with("REFUSED "), "{command:?} gave no verdict: {words}");
    Some((accepted, words))
}

fn pyca(directory: &Path) -> Verdict {
    let program = workspace().join("tests/judges/pyca_crl.py");
    spoken(Command::new(tools().join("python/bin/python")).arg(program).arg(directory))
}

fn go(directory: &Path) -> Verdict {
    let mut command = Command::new("go");
    command.args(["run", "."]).arg(directory).arg("crl").current_dir(workspace().join("tests/judges/go"));
    spoken(command.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod"))
}

fn certtool(directory: &Path) -> Verdict {
    let chain = pem::parse_many(fs::read(directory.join("chain.pem")).unwrap()).unwrap();
    let issuer = directory.join("issuer.pem");
    fs::write(&issuer, pem::encode(&chain[1])).unwrap();
    let mut command = Command::new("certtool");
    command.arg("--verify-crl").arg("--load-ca-certificate").arg(issuer);
    let output = run(command.arg("--infile").arg(directory.join("crl.pem")))?;
    let words = said(&output);
    let refused = words.contains("Not verified");
    assert!(refused || words.contains("Verified"), "{command:?} gave no verdict: {words}");
    Some((!refused, words))
}

fn openssl_crl(directory: &Path) -> Verdict {
    let mut command = Command::new("openssl");
    command.args(["crl", "-noout", "-verify", "-in"]).arg(directory.join("crl.pem"));
    command.arg("-CAfile").arg(directory.join("issuer.pem"));
    let words = said(&run(&mut command)?);
    assert!(words.contains("verify OK") || words.contains("verify failure"), "{words}");
    Some((words.contains("verify OK"), words))
}

/// `openssl verify -crl_check`: the leaf against its issuer's list.
fn verify(directory: &Path) -> Output {
    let chain = directory.join("chain.pem");
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-crl_check", "-no-CApath", "-no-CAstore"]);
    command.arg("-CAfile").arg(directory.join("bundle.pem"));
    command.arg("-CRLfile").arg(directory.join("crl.pem")).arg("-untrusted").arg(&chain).arg(&chain);
    run(&mut command).expect("openssl is installed")
}

#[test]
fn every_judge_takes_the_list_and_openssl_refuses_the_leaf_that_it_lists_and_no_other() {
    let server = Server::start();
    let [revoked, other] = directories(&server);
    let spoiled = flipped(&revoked);
    let judges: [(&str, Ask); 4] =
        [("certtool", certtool), ("openssl crl", openssl_crl), ("cryptography", pyca), ("Go", go)];
    for (name, judge) in judges {
        for (directory, wanted) in [(revoked.as_path(), true), (spoiled.path(), false)] {
            match judge(directory) {
                None => assert!(!in_ci(), "{name} is not installed; `tests/run e2e` installs it"),
                Some((accepted, words)) => {
                    println!("{name}: {words}");
                    assert_eq!(accepted, wanted, "{name}: {words}");
                }
            }
        }
    }
    let refused = verify(&revoked);
    assert!(
        !refused.status.success() && said(&refused).contains("certificate revoked"),
        "{}",
        said(&refused)
    );
    let accepted = verify(&other);
    assert!(accepted.status.success(), "{}", said(&accepted));
    let unverified = verify(spoiled.path());
    assert!(said(&unverified).contains("CRL signature failure"), "{}", said(&unverified));
    server_restart_serves_the_same(server, &revoked);
}

fn server_restart_serves_the_same(mut server: Server, directory: &Path) {
    assert!(server.stop().success());
    server.start_again();
    let again = must(&mut server.admin(&["bundle", "crl", "--format", "pem"]));
    assert_eq!(again.stdout, fs::read(directory.join("crl.pem")).unwrap(), "the same list, byte for byte");
}
