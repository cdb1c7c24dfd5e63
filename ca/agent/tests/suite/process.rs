//! The program as it is run: joining, checking, serving a workload on its socket, stopping when told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rhizome_agent::SystemClock;
use rhizome_core::ports::Clock as _;
use rhizome_proto::workload::X509svidRequest;
use rhizome_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;
use tonic::Request;

use crate::support::Authority;

fn program(state: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rhizome-agent"));
    command.arg("--state").arg(state).args(words).env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end, beside the server that lives in this process.
async fn run(mut command: Command, input: String) -> (Option<i32>, String) {
    let run = move || -> std::io::Result<Output> {
        let mut child = command.spawn()?;
        child.stdin.take().unwrap().write_all(input.as_bytes())?;
        child.wait_with_output()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// A process that does not outlive its test.
struct Running(Child);

impl Running {
    async fn start(mut command: Command) -> Self {
        let start = move || {
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("running")), "it ended before it ran");
            // Whoever writes into a closed pipe dies: keep reading.
            std::thread::spawn(move || lines.for_each(drop));
            Self(child)
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    }

    async fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        tokio::task::spawn_blocking(move || self.0.wait().unwrap()).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        drop(self.0.kill());
    }
}

#[tokio::test]
async fn one_pasted_string_is_all_it_takes_to_serve_a_workload() {
    let authority = Authority::start_at(SystemClock.now()).await;
    let uid = getuid().as_raw().to_string();
    authority.put_rule("me", &uid).await;
    let folder = TempDir::new().unwrap();
    let (state, socket) = (folder.path().join("state"), folder.path().join("agent.sock"));
    assert_eq!(run(program(&state, &["check"]), String::new()).await.0, Some(6), "nothing there yet");

    let string = authority.join_string("vm-1", &[]).await.encode().unwrap();
    let (code, said) = run(program(&state, &["join", "-"]), format!("{string}\n")).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(program(&state, &["join", &string]), String::new()).await;
    assert!(code == Some(1) && said.contains("--force"), "{said}");
    assert_eq!(run(program(&state, &["join", "rhz1.AAAA"]), String::new()).await.0, Some(2));

    let agent = Running::start(program(&state, &["run", "--socket", socket.to_str().unwrap()])).await;
    let mode = |name: &str| folder.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("agent.sock"), mode("agent.admin.sock")), (0o777, 0o600));
    let channel = rhizome_tls::connect(&format!("unix://{}", socket.display()), None).await.unwrap();
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    let mut answers =
        SpiffeWorkloadApiClient::new(channel).fetch_x509svid(request).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.svids[0].spiffe_id, "spiffe://example.test/unix/me");
    drop(answers);

    assert!(agent.terminate().await.success());
    assert!(!socket.exists());
    let (code, said) = run(program(&state, &["check"]), String::new()).await;
    assert!(code == Some(0) && said.contains("spiffe://example.test/unix/me until"), "{said}");
}

/// A page of the admin socket, with its head.
fn page(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// This very process is explained: what it has, and, once the rule is for somebody else, what that rule lacks.
async fn explains(authority: &Authority, with_config: &impl Fn(&[&str]) -> Command) {
    let uid = getuid().as_raw();
    let own = std::process::id().to_string();
    let (code, said) = run(with_config(&["explain", "--pid", &own]), String::new()).await;
    assert!(
        code == Some(0) && said.contains("granted: spiffe://example.test/unix/me by rule me; held"),
        "{said}"
    );
    let (code, said) = run(with_config(&["explain", "--pid", "2147483647"]), String::new()).await;
    assert!(code == Some(3), "{said}");
    authority.delete_rule("me").await;
    authority.put_rule("me", "4294967294").await;
    let denied = async {
        loop {
            let (code, said) = run(with_config(&["explain", "--pid", &own]), String::new()).await;
            if code == Some(4) && said.contains(&format!("unix.uid should be 4294967294, is {uid}")) {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(std::time::Duration::from_secs(60), denied).await.unwrap();
    assert!(said.contains("rules that nearly match:\n") && said.contains("[no_rule]"), "{said}");
}

#[tokio::test]
async fn the_program_says_how_it_is_and_why_and_writes_files_as_configured() {
    let mut authority = Authority::start_at(SystemClock.now()).await;
    let uid = getuid().as_raw();
    authority.put_rule("me", &uid.to_string()).await;
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (state, socket) = (at("state"), at("agent.sock"));
    let told = at("told");
    let config = format!(
        "socket: {socket}\nsinks:\n  - name: web\n    attributes: {{unix.uid: {uid}}}\n    file: {file}\n    \
         reload: {{command: {{argv: [/bin/sh, -c, 'echo x >> {told}']}}}}\n  - name: other\n    attributes: \
         {{unix.uid: 4294967294}}\n    file: {other}\n",
        socket = socket.display(),
        file = at("web.pem").display(),
        other = at("other.pem").display(),
        told = told.display(),
    );
    std::fs::write(at("agent.yaml"), &config).unwrap();
    let file = at("agent.yaml").to_str().unwrap().to_owned();
    let with_config = |words: &[&str]| program(&state, &[words, &["--config", &file]].concat());
    let string = authority.join_string("vm-1", &[]).await.encode().unwrap();
    let (code, said) = run(with_config(&["join", "-", "--output", "json"]), string).await;
    assert!(code == Some(0) && said.contains("\"node_id\": \"prod/join_token/vm-1\""), "{said}");
    let (code, said) = run(with_config(&["status"]), String::new()).await;
    assert!(code == Some(5) && said.contains("no agent answers"), "{said}");
    let (code, said) = run(with_config(&["check"]), String::new()).await;
    assert!(code == Some(0) && said.contains("not running"), "{said}");

    let agent = Running::start(with_config(&["run"])).await;
    let admin = at("agent.admin.sock");
    authority.acknowledges("vm-1", 2).await;
    // A sink that was given nothing holds no older bundle, so the acknowledgement does not wait for its first file.
    let in_force = async {
        loop {
            let (code, said) = run(with_config(&["status"]), String::new()).await;
            if said.contains("web: in force") && said.contains("other: denied") {
                return code;
            }
        }
    };
    let code = tokio::time::timeout(std::time::Duration::from_secs(60), in_force).await.unwrap();
    assert_eq!(code, Some(0));
    assert!(told.exists() && at("web.pem").exists() && !at("other.pem").exists());
    let (code, said) = run(with_config(&["status", "--output", "json"]), String::new()).await;
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &report["bundle_acknowledged"], &report["ready"]), (Some(0), &2.into(), &true.into()));
    let (code, said) = run(with_config(&["check"]), String::new()).await;
    assert!(code == Some(6) && said.contains("problem: sink other: no identity"), "{said}");

    explains(&authority, &with_config).await;

    authority.stop_server().await;
    let page = tokio::task::spawn_blocking(move || {
        let ready = page(&admin, "/readyz");
        assert!(ready.starts_with("HTTP/1.0 200"), "an outage of the authority is no reason: {ready}");
        page(&admin, "/metrics")
    });
    let page = page.await.unwrap();
    for metric in [
        "rhizome_agent_ready 1",
        "rhizome_agent_sink_in_force{sink=\"web\"}",
        "rhizome_agent_bundle_sequence 2",
    ] {
        assert!(page.contains(metric), "{metric}: {page}");
    }
    assert!(agent.terminate().await.success());
    assert!(!socket.exists() && !at("agent.admin.sock").exists());
}

#[tokio::test]
async fn a_configuration_with_a_fault_starts_nothing_and_ends_with_2() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("agent.yaml");
    std::fs::write(&path, "sockett: /x\n").unwrap();
    for verb in ["check", "run"] {
        let command = program(folder.path(), &[verb, "--config", path.to_str().unwrap()]);
        let (code, said) = run(command, String::new()).await;
        assert!(
            code == Some(2)
                && said.contains("agent.yaml:1:1: `sockett`: unknown field; did you mean `socket`?"),
            "{said}"
        );
    }
    let (code, said) =
        run(program(folder.path(), &["check", "--config", "/nonexistent/x.yaml"]), String::new()).await;
    assert!(code == Some(2) && said.contains("cannot be read"), "{said}");
}

#[tokio::test]
async fn programs_are_told_as_json_that_a_command_line_was_not_understood() {
    let state = TempDir::new().unwrap();
    let (code, said) = run(program(state.path(), &["--output", "json", "stauts"]), String::new()).await;
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    let expected = serde_json::json!({ "error": {
        "code": "usage",
        "message": "unrecognized subcommand 'stauts'",
        "hint": "a similar subcommand exists: 'status'",
        "exit_code": 2,
    }});
    assert_eq!((code, told), (Some(2), expected));
    let (code, said) = run(program(state.path(), &["--output", "json", "--version"]), String::new()).await;
    assert_eq!((code, said.trim_end()), (Some(0), concat!("rhizome-agent ", env!("CARGO_PKG_VERSION"))));
}
