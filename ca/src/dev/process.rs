//! The trial's workloads as processes: started, listened to, and gone with whoever holds them.
//!
//! Laws: a process ends when its [`Process`] is dropped, and by itself when this process dies, because its standard
//! input ends then; it has nothing of our environment but the address of the Workload API; what it says is gathered as
//! it says it, so that whoever looks sees how it is now. Its executable is a copy of ours under the workload's name:
//! the agent tells workloads of one user apart by the path of what they run.
//! Not here: what a workload does (`workload`).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tokio::sync::watch;

use super::workload::{Call, Event, Identity};

/// The hidden verb that a workload runs.
pub const VERB: &str = "dev-workload";

/// This program, whatever became of the file that it was started from.
const OURSELVES: &str = "/proc/self/exe";
/// How long a workload may take for anything: a slow machine, many times over.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most serials remembered.
const SERIALS: usize = 10_000;

/// Makes the executables `names` in `directory`: one copy of this program, and links to it.
///
/// # Errors
/// One sentence, with the remedy.
pub(super) fn make_executables(directory: &Path, names: &[&str]) -> Result<(), String> {
    let refuse = |cause: io::Error| {
        format!("no executables in {}: {cause}; name another directory with --dir", directory.display())
    };
    let Some((first, others)) = names.split_first() else { return Ok(()) };
    let first = directory.join(first);
    let _bytes = fs::copy(OURSELVES, &first).map_err(refuse)?;
    for name in others {
        let other = directory.join(name);
        // Where a file system has no hard links, another copy does as well.
        fs::hard_link(&first, &other)
            .or_else(|_no_links| fs::copy(&first, &other).map(drop))
            .map_err(refuse)?;
    }
    Ok(())
}

/// How a workload is, by its own word.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// The identity it holds.
    pub(super) identity: Option<Identity>,
    /// Why it has none, or had none for a moment.
    pub(super) nothing: Option<String>,
    /// Where it serves.
    pub(super) address: Option<String>,
    /// Whom it turned away last.
    pub(super) turned_away: Option<String>,
    /// Its last call.
    pub(super) call: Option<Call>,
    /// Calls that were answered.
    pub(super) calls: u64,
    /// Calls that were not.
    pub(super) failures: u64,
    /// Why the first of them was not.
    pub(super) failure: Option<String>,
    /// Every certificate, of either end, that was seen in its calls.
    pub(super) serials: BTreeSet<String>,
    /// Whether the process is gone.
    pub(super) ended: bool,
}

impl Seen {
    fn hear(&mut self, event: Event) {
        match event {
            Event::Identity(identity) => self.identity = Some(identity),
            Event::Nothing { cause } => self.nothing = Some(cause),
            Event::Listening { address } => self.address = Some(address),
            Event::TurnedAway { cause } => self.turned_away = Some(cause),
            Event::Called(call) => {
                self.calls = self.calls.saturating_add(1);
                if self.serials.len() < SERIALS {
                    self.serials.extend([call.caller_serial.clone(), call.server_serial.clone()]);
                }
                self.call = Some(call);
            }
            Event::Failed { cause } => {
                self.failures = self.failures.saturating_add(1);
                if self.failure.is_none() {
                    self.failure = Some(cause);
                }
            }
        }
    }

    /// Whether the fate of an only call is known.
    const fn is_over(&self) -> bool {
        self.ended || self.failure.is_some() || self.calls > 0
    }

    /// What is wrong with a workload that should do its work.
    fn trouble(&self) -> Option<String> {
        match (&self.failure, self.ended) {
            (Some(cause), _) => Some(format!("{} of its calls failed: {cause}", self.failures)),
            (None, true) => Some("its process ended".to_owned()),
            (None, false) => None,
        }
    }
}

/// A workload's process.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    seen: watch::Receiver<Seen>,
}

impl Process {
    /// Starts the workload `name` of `directory`, which finds the Workload API at `socket`.
    ///
    /// # Errors
    /// One sentence, with the remedy.
    pub(super) fn start(
        directory: &Path,
        name: &'static str,
        socket: &Path,
        task: &[&str],
    ) -> Result<Self, String> {
        let executable = directory.join(name);
        let refuse = |cause: io::Error| {
            let remedy = "if its file system forbids programs (noexec), name another directory with --dir";
            format!("cannot run {}: {cause}; {remedy}", executable.display())
        };
        let mut command = Command::new(&executable);
        command.arg(VERB).args(task).env_clear();
        command.env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", socket.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        // Ctrl-C is for us; we end what we started.
        let mut child = command.process_group(0).spawn().map_err(refuse)?;
        let (sender, seen) = watch::channel(Seen::default());
        let said = child.stdout.take();
        // If nobody can listen, it is dropped, and with it ended.
        let process = Self { name, child, seen };
        let listening = std::thread::Builder::new().name(name.to_owned());
        let listening = listening.spawn(move || listen(said, &sender));
        listening.map(|_detached| process).map_err(refuse)
    }

    /// How it is now.
    pub(super) fn now(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Tells of changes.
    pub(super) fn follow(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Waits until the workload is as hoped; `what` it should do is said when it does not.
    ///
    /// # Errors
    /// One sentence: what went wrong with it, or that it took too long.
    pub(super) async fn until(&self, what: &str, hope: impl Fn(&Seen) -> bool) -> Result<Seen, String> {
        let seen = self.wait(what, |seen| hope(seen) || seen.trouble().is_some()).await?;
        match seen.trouble() {
            None => Ok(seen),
            Some(trouble) => Err(format!("{} did not {what}: {trouble}", self.name)),
        }
    }

    /// Waits until the workload has ended or failed, and gives why.
    ///
    /// # Errors
    /// One sentence: it did what it should not have been able to, or nothing.
    pub(super) async fn until_failure(&self) -> Result<String, String> {
        let seen = self.wait("come to an end", Seen::is_over).await?;
        match seen.failure {
            Some(cause) if seen.calls == 0 => Ok(cause),
            Some(_) | None if seen.calls > 0 => Err(format!("{} was answered", self.name)),
            Some(_) | None => Err(format!("{} ended and did not say why", self.name)),
        }
    }

    /// Waits until the only call of the workload was answered.
    ///
    /// # Errors
    /// One sentence: it was not, or nothing happened.
    pub(super) async fn until_answered(&self) -> Result<(), String> {
        let seen = self.wait("come to an end", Seen::is_over).await?;
        match seen.failure {
            None if seen.calls > 0 => Ok(()),
            Some(cause) => Err(format!("{} was not answered: {cause}", self.name)),
            None => Err(format!("{} ended and did not say why", self.name)),
        }
    }

    async fn wait(&self, what: &str, over: impl Fn(&Seen) -> bool) -> Result<Seen, String> {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(over)).await;
        match waited {
            Ok(Ok(seen)) => Ok(seen.clone()),
            Ok(Err(_closed)) => Err(format!("{} did not {what}: its process ended", self.name)),
            Err(_elapsed) => {
                let nothing = self.now().nothing.map(|cause| format!("; the Workload API said {cause}"));
                let nothing = nothing.unwrap_or_default();
                Err(format!("{} did not {what} within {PATIENCE:?}{nothing}", self.name))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Hears a workload out; ends with it.
fn listen(said: Option<ChildStdout>, sender: &watch::Sender<Seen>) {
    let lines = said.map(BufReader::new).into_iter().flat_map(BufReader::lines);
    for line in lines.map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(event) => sender.send_modify(|seen| seen.hear(event)),
            Err(cause) => tracing::error!(%cause, "a workload said something else than an event"),
        }
    }
    sender.send_modify(|seen| seen.ended = true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_workload_says_is_read_as_it_was_meant() {
        let identity = Identity {
            spiffe_id: "spiffe://dev.example.org/ns/shop/sa/web".parse().unwrap(),
            serial: "40".into(),
            issuer: "CN=x".into(),
            not_after: rhizome_id::Timestamp::EPOCH,
        };
        let events = [
            Event::Identity(identity),
            Event::Nothing { cause: "a".into() },
            Event::Listening { address: "b".into() },
            Event::TurnedAway { cause: "c".into() },
            Event::Failed { cause: "d".into() },
        ];
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        }
    }

    #[test]
    fn the_first_failure_is_kept_and_all_are_counted() {
        let mut seen = Seen::default();
        assert_eq!(seen.trouble(), None);
        for cause in ["first", "second"] {
            seen.hear(Event::Failed { cause: cause.into() });
        }
        assert_eq!(seen.trouble().unwrap(), "2 of its calls failed: first");
    }

    #[test]
    fn executables_are_one_copy_under_several_names() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        make_executables(folder.path(), &["web", "backend"]).unwrap();
        let sizes = ["web", "backend"].map(|name| fs::metadata(folder.path().join(name)).unwrap().size());
        assert!(sizes[0] > 0 && sizes[0] == sizes[1]);
    }
}
