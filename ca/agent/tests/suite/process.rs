//! The program as it is run: joining, checking, serving a workload on its socket, stopping when told.

use std::io::{BufRead as _, BufReader, Write as _};
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
