//! Telling software that its files are new: a signal to a process, or a command.
//!
//! Laws: a signal goes to a process that is held by a pidfd and runs the program that was configured, so a stale
//! process id hits nobody else; a command is run without a shell, with an empty environment but for a path, in a process
//! group of its own that is killed when its time is over; what it prints is bounded. Not here: when (`plan`).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::future::{Either, select};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;

use super::settings::{Reload, ReloadCommand, ReloadSignal, SignalName};
use crate::attestation::{PeerError, PeerProcess};

/// Bytes of a file with a process id.
const PID_FILE_BYTES: u64 = 64;
/// Bytes kept of what a command prints; the rest is read and dropped.
const OUTPUT_BYTES: usize = 2048;
/// How long a command that has ended may still be heard: what it left running may hold its output open for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What a command finds its own commands with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why software was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// The file with the process id is of no use.
    #[error("{path}: {cause}", path = .path.display())]
    PidFile { path: std::path::PathBuf, cause: String },
    /// There is no such process, or it runs something else.
    #[error("process {pid} is not told: {cause}")]
    Process { pid: i32, cause: String },
    /// The command could not be started.
    #[error("`{program}` cannot be started: {cause}")]
    Start { program: String, cause: std::io::Error },
    /// The command failed.
    #[error("`{program}` ended with {status}; it said: {said}")]
    Command { program: String, status: String, said: String },
}

/// Who was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The software, or there is none to be told.
    Everybody,
    /// Nobody: the software does not run, and will read the files when it starts. It may be starting right now, so it
    /// is to be looked for again.
    Nobody,
}

/// Tells the software. Call it inside a runtime.
pub(super) async fn tell(reload: &Reload) -> Result<Told, ReloadError> {
    let mut told = Told::Everybody;
    if let Some(signal) = reload.signal.clone() {
        // Off the runtime: the file may lie where nothing answers.
        let path = signal.pid_file.as_path().to_owned();
        let sent = tokio::task::spawn_blocking(move || send(&signal)).await;
        told = sent.map_err(|lost| ReloadError::PidFile { path, cause: lost.to_string() })??;
    }
    if let Some(command) = &reload.command {
        run(command).await?;
    }
    Ok(told)
}

fn send(wish: &ReloadSignal) -> Result<Told, ReloadError> {
    let path = wish.pid_file.as_path();
    let found = pid_in(path).map_err(|cause| ReloadError::PidFile { path: path.to_owned(), cause })?;
    let Some(pid) = found else { return Ok(Told::Nobody) };
    let refused = |cause: String| ReloadError::Process { pid, cause };
    let process = match PeerProcess::of_pid(pid) {
        Ok(process) => process,
        Err(PeerError::Gone) => return Ok(Told::Nobody),
        Err(cause) => return Err(refused(cause.to_string())),
    };
    let program = wish.program.as_path();
    if !runs(&process, program).map_err(|cause| refused(cause.to_string()))? {
        return Err(refused(format!("it does not run {}", program.display())));
    }
    let signal = match wish.signal {
        SignalName::Hup => Signal::HUP,
        SignalName::Usr1 => Signal::USR1,
        SignalName::Usr2 => Signal::USR2,
    };
    process.send(signal).map_err(|cause| refused(cause.to_string()))?;
    Ok(Told::Everybody)
}

/// The process id in a file; `None` without the file.
fn pid_in(path: &Path) -> Result<Option<i32>, String> {
    // Whoever may write there, usually the software's user, makes the agent neither wait nor follow.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(cause) => return Err(cause.to_string()),
    };
    if !file.metadata().map_err(|cause| cause.to_string())?.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut text = String::new();
    file.take(PID_FILE_BYTES).read_to_string(&mut text).map_err(|cause| cause.to_string())?;
    let pid = text.trim().parse::<i32>().map_err(|_not_a_number| "it holds no process id")?;
    if pid <= 1 || u32::try_from(pid) == Ok(std::process::id()) {
        return Err(format!("{pid} is no process that could be told"));
    }
    Ok(Some(pid))
}

/// Whether the process runs this program: the very file, or, after an upgrade, the file that was there before.
fn runs(process: &PeerProcess, program: &Path) -> Result<bool, PeerError> {
    let link = process.folder()?.link("exe")?;
    let real = program.canonicalize().unwrap_or_else(|_gone| program.to_owned());
    let shown = link.to_string_lossy();
    Ok(Path::new(shown.strip_suffix(" (deleted)").unwrap_or(&shown)) == real)
}

async fn run(command: &ReloadCommand) -> Result<(), ReloadError> {
    let program = command.argv.first().cloned().unwrap_or_default();
    let started = Command::new(&program)
        .args(command.argv.iter().skip(1))
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = started.map_err(|cause| ReloadError::Start { program: program.clone(), cause })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut said = (Vec::new(), Vec::new());
    let outcome = {
        let words = std::pin::pin!(async { tokio::join!(keep(out, &mut said.0), keep(err, &mut said.1)) });
        let ended = async {
            match select(std::pin::pin!(child.wait()), words).await {
                Either::Left((status, words)) => {
                    drop(tokio::time::timeout(LAST_WORDS, words).await);
                    status
                }
                Either::Right((_, wait)) => wait.await,
            }
        };
        tokio::time::timeout(command.timeout(), ended).await
    };
    let text = [said.0, said.1].concat();
    let said = String::from_utf8_lossy(&text).trim().escape_debug().to_string();
    let failed =
        |status: String| Err(ReloadError::Command { program: program.clone(), status, said: said.clone() });
    match outcome {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => failed(status.to_string()),
        Ok(Err(cause)) => failed(cause.to_string()),
        Err(_elapsed) => {
            if let Some(group) = group {
                // Its children, too; whoever has ended already needs none.
                if let Err(cause) = rustix::process::kill_process_group(group, Signal::KILL) {
                    tracing::debug!(%cause, "a command that took too long has ended by itself");
                }
            }
            failed(format!("no answer within {:?}", command.timeout()))
        }
    }
}

/// Reads to the end, so that the command never waits for a reader, and keeps the beginning.
async fn keep(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut chunk = [0; 1024];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        let room = OUTPUT_BYTES.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str, seconds: i64) -> ReloadCommand {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        ReloadCommand { argv, timeout: Some(rhizome_id::Ttl::from_seconds(seconds).unwrap()) }
    }

    #[tokio::test]
    async fn a_command_that_works_is_enough_and_one_that_fails_says_why() {
        run(&command("exit 0", 30)).await.unwrap();
        let failed = run(&command("echo out; echo bad configuration >&2; exit 3", 30)).await.unwrap_err();
        let said = failed.to_string();
        assert!(
            said.contains("exit status: 3") && said.contains("bad configuration") && said.contains("out"),
            "{said}"
        );
        let none = ReloadCommand { argv: vec!["/nonexistent/x".to_owned()], timeout: None };
        assert!(matches!(run(&none).await, Err(ReloadError::Start { .. })));
    }

    #[tokio::test]
    async fn a_command_sees_no_environment_and_its_output_is_bounded() {
        run(&command("test -z \"$HOME$CARGO_MANIFEST_DIR\" && test -n \"$PATH\"", 30)).await.unwrap();
        let flood = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 1";
        let said = run(&command(flood, 60)).await.unwrap_err().to_string();
        assert!(said.len() < 3 * OUTPUT_BYTES, "{}", said.len());
    }

    #[tokio::test]
    async fn a_command_may_leave_something_running() {
        run(&command("sleep 60 & exit 0", 30)).await.unwrap();
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("child");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let said = run(&command(&script, 1)).await.unwrap_err().to_string();
        assert!(said.contains("no answer within"), "{said}");
        let child: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        // Killed, though perhaps not yet buried.
        while PeerProcess::of_pid(child).is_ok() {
            tokio::task::yield_now().await;
        }
    }

    fn wish(pid_file: &Path, program: &str) -> ReloadSignal {
        ReloadSignal {
            pid_file: pid_file.to_str().unwrap().to_owned().try_into().unwrap(),
            program: program.to_owned().try_into().unwrap(),
            // Not HUP: whoever starts the tests may have had it ignored, and a child inherits that.
            signal: SignalName::Usr1,
        }
    }

    #[tokio::test]
    async fn software_that_does_not_run_needs_not_be_told() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let reload =
            Reload { signal: Some(wish(&pid_file, "/bin/sleep")), ..serde_saphyr::from_str("{}").unwrap() };
        assert_eq!(tell(&reload).await.unwrap(), Told::Nobody);
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        std::fs::write(&pid_file, child.id().to_string()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(tell(&reload).await.unwrap(), Told::Nobody);
    }

    #[tokio::test]
    async fn a_pipe_or_a_link_in_the_place_of_the_pid_file_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [&pipe, &link] {
            assert!(matches!(send(&wish(path, "/bin/sleep")), Err(ReloadError::PidFile { .. })));
        }
    }

    #[tokio::test]
    async fn a_signal_goes_to_the_configured_program_only() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let mut child = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        let wish = |program: &str| wish(&pid_file, program);
        for nonsense in ["", "x", "0", "1", "-5", "99999999999"] {
            std::fs::write(&pid_file, nonsense).unwrap();
            assert!(send(&wish("/bin/sleep")).is_err(), "{nonsense}");
        }
        std::fs::write(&pid_file, format!("{}\n", child.id())).unwrap();
        // Right after the fork it may still run this test's program.
        let other = send(&wish("/bin/cat")).unwrap_err();
        assert!(matches!(other, ReloadError::Process { .. }), "{other}");
        while send(&wish("/bin/sleep")).is_err() {
            tokio::task::yield_now().await;
        }
        use std::os::unix::process::ExitStatusExt as _;
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::USR1.as_raw()));
    }
}
