//! `rhizome server` as a process: starting, refusing to start, and stopping.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::deploy::metrics_in_alerts;
use crate::process::{Home, rhizome, stderr};

#[test]
fn it_founds_a_trust_domain_serves_drains_and_comes_back_the_same() {
    let home = Home::new("");
    let server = home.serve();
    assert_eq!(server.ready["trust_domain"], "example.org");
    let (address, digest) = (server.ready["address"].clone(), server.ready["bundle_digest"].clone());
    assert!(address.as_str().unwrap().starts_with("127.0.0.1:") && digest.is_string(), "{}", server.ready);
    let said = server.lines.concat();
    assert!(said.contains("back it up now"), "{said}");
    let mode = fs::metadata(home.path("sealing.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(server.stop().success());

    let again = home.serve();
    assert_eq!(again.ready["bundle_digest"], digest);
    assert!(!again.lines.concat().contains("back it up now"));
    assert!(again.stop().success());
}

#[test]
fn it_may_open_as_many_files_as_the_system_allows_and_not_as_few_as_its_shell_does() {
    let home = Home::new("");
    let mut frugal = Command::new("sh");
    frugal.args(["-c", r#"ulimit -Sn 256 && exec "$0" "$@""#, env!("CARGO_BIN_EXE_rhizome")]);
    let server = home.serve_by(frugal);
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard, _unit] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
    assert!(soft == hard && soft != "256", "{line}");
    assert!(server.lines.concat().contains("raised the limit of open files"), "{:#?}", server.lines);
    assert!(server.stop().success());
}

#[test]
fn a_hang_up_reads_the_log_level_again_and_says_what_needs_a_restart() {
    let home = Home::new("");
    let mut server = home.serve();
    server.signal("HUP");
    server.hears("nothing else has changed");
    let text = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), text.clone() + "bundle: {refresh_hint: 1h}\n").unwrap();
    server.signal("HUP");
    server.hears("needs a restart");
    fs::write(home.config(), text + "bundle: {refresh_hint: soon}\n").unwrap();
    server.signal("HUP");
    let line = server.hears("the old one stays in force");
    assert!(line["error"].as_str().unwrap().contains("bundle.refresh_hint"), "{line}");
    assert!(server.stop().success());
}

#[test]
fn what_is_missing_is_said_with_the_command_that_mends_it() {
    let home = Home::new("");
    fs::remove_dir(home.data()).unwrap();
    refuses(&home, &format!("install -d -m 0700 -o {} {}", own_uid(&home), home.data().display()));
    fs::write(home.data(), "a file").unwrap();
    refuses(&home, "cannot write to");
    fs::remove_file(home.data()).unwrap();
    fs::create_dir(home.data()).unwrap();
    if own_uid(&home) == 0 {
        std::os::unix::fs::chown(home.data(), Some(65_532), None).unwrap();
        refuses(&home, "sudo -u '#65532'");
        std::os::unix::fs::chown(home.data(), Some(0), None).unwrap();
    }

    let elsewhere = home.path("nowhere/admin.sock");
    let text = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), text.replace(&home.text("admin.sock"), elsewhere.to_str().unwrap())).unwrap();
    refuses(&home, "admin.socket: the directory");
}

#[test]
fn a_lost_sealing_key_is_never_replaced_by_a_new_one() {
    let home = Home::new("");
    assert!(home.serve().stop().success());
    let key = home.path("sealing.key");
    let away = home.path("sealing.key.away");
    fs::rename(&key, &away).unwrap();
    refuses(&home, "put the key back from its backup");
    assert!(!key.exists());
    fs::rename(&away, &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refuses(&home, "chmod 600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(home.serve().stop().success());
}

#[test]
fn a_sealing_key_in_the_environment_must_be_set() {
    let home = Home::new("");
    let text = fs::read_to_string(home.config()).unwrap();
    let file = format!("sealing_key_file: {}", home.text("sealing.key"));
    fs::write(home.config(), text.replace(&file, "sealing_key_env: RHIZOME_TEST_UNSET")).unwrap();
    refuses(&home, "the variable RHIZOME_TEST_UNSET is not set");
}

#[test]
fn an_address_or_a_database_in_use_is_named() {
    let home = Home::new("");
    let server = home.serve();
    refuses(&home, "is in use by another server");
    let other = Home::new("");
    let taken = server.ready["address"].as_str().unwrap();
    let text = fs::read_to_string(other.config()).unwrap();
    fs::write(other.config(), text.replace("127.0.0.1:0", taken)).unwrap();
    refuses(&other, &format!("cannot listen on {taken}"));
    assert!(server.stop().success());
}

#[test]
fn the_administrators_socket_refuses_a_user_without_a_role() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI runs as root");
        eprintln!("SKIPPED: not root, so nobody else can be made to call");
        return;
    }
    let home = Home::new("admin: {socket: SOCKET, uids: {12345: viewer}}\n");
    let text = fs::read_to_string(home.config()).unwrap();
    let socket = home.text("admin.sock");
    let lines = text.lines().filter(|line| !line.starts_with("admin: {socket: /"));
    let text: String = lines.map(|line| line.replace("SOCKET", &socket) + "\n").collect();
    fs::write(home.config(), text).unwrap();
    // Others may come as far as the socket; who they are is the kernel's word, not the folder's modes.
    fs::set_permissions(home.directory(), fs::Permissions::from_mode(0o711)).unwrap();
    let program = home.path("program");
    fs::copy(env!("CARGO_BIN_EXE_rhizome"), &program).unwrap();
    let server = home.serve();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
    let call = |uid: u32, arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--server", &format!("unix://{socket}")]).args(arguments).uid(uid).gid(uid);
        command.env_remove("RHIZOME_SERVER").env_remove("RHIZOME_IDENTITY").current_dir("/");
        command.output().unwrap()
    };
    let create = ["token", "create", "--cluster", "prod", "--node", "vm-1", "--namespace", "shop"];
    for arguments in [&["status"][..], &["node", "list"], &create] {
        let refused = call(65_534, arguments);
        assert_eq!(refused.status.code(), Some(4), "{arguments:?}: {}", stderr(&refused));
        assert_eq!(refused.stdout, b"");
    }
    assert!(call(12_345, &["status"]).status.success(), "a user with a role");
    assert_eq!(call(12_345, &create).status.code(), Some(4), "that role is not enough for this");
    assert!(call(0, &["status"]).status.success());
    assert!(server.stop().success());
}

#[test]
fn the_server_has_every_metric_that_an_alert_is_about() {
    let home = Home::new("web: {listen: 127.0.0.1:0}\n");
    let server = home.serve();
    let address = server.ready["web"].as_str().unwrap().to_owned();
    let metrics = get(&address, "/metrics");
    for name in metrics_in_alerts() {
        let sample = |line: &str| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with([' ', '{']));
        assert!(metrics.lines().any(sample), "no {name} in\n{metrics}");
    }
    assert!(get(&address, "/healthz").contains("200 OK"));
    assert!(get(&address, "/readyz").contains("200 OK"));
    assert!(server.stop().success());
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn refuses(home: &Home, reason: &str) {
    let output = rhizome(&["server", "--config", &home.config()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains(reason), "{reason} is not in {}", stderr(&output));
}

/// Who owns what this process makes.
fn own_uid(home: &Home) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(home.directory()).unwrap().uid()
}
