//! The Unix attestor: user, groups, executable, control group and systemd unit of the process at the other end of a socket.
//!
//! Laws: user and group are those that the kernel noted when the process connected, and must still be its own. The
//! executable is the same before and after it was read. Groups that do not fit into a set of attributes are left out:
//! a rule may then not match, it never matches wrongly. Reading blocks, so it happens off the runtime, with a bound per
//! user: an executable on a file system that never answers holds up its own user and nobody else.
//! Whether a file that was unlinked ever was at the path that the kernel still shows cannot be seen any more, and in a
//! mount namespace of its own a user shows any path: a program that was replaced before it was attested has no path.
//! A path and a digest say which program a process runs *now*; whoever may run that program as the same user can be
//! it, so conditions on them belong beside one on `unix.uid`.
//! Sources: proc(5), credentials(7); issue texts of spiffe/spire #6035.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rhizome_core::attributes::{AttributeError, AttributeName, Attributes};
use rhizome_core::ports::Clock;
use tokio::sync::Semaphore;

use super::executable::{Digests, FileState};
use super::process::{PeerError, PeerProcess, ProcFolder};
use super::systemd;

/// Attestations of one user at the same time; each may occupy a thread for as long as a file system likes.
const AT_ONCE_PER_USER: usize = 4;
/// How long one attestation may take: a large executable on a slow disk, read once.
const DEADLINE: Duration = Duration::from_secs(10);
/// What the kernel writes behind the path of an executable that was unlinked.
const DELETED: &[u8] = b" (deleted)";
/// Bytes of the user database that are read.
const PASSWD_BYTES: u64 = 1024 * 1024;

/// What the attestor looks at.
#[derive(Clone, Debug)]
pub struct UnixSettings {
    /// Whether executables are hashed. Costs one reading of each program that ever asks.
    pub hash_executables: bool,
    /// Executables above this many bytes are not hashed; the largest proxies with their symbols stay below 512 MiB.
    pub hash_limit_bytes: u64,
}

impl Default for UnixSettings {
    fn default() -> Self {
        Self { hash_executables: true, hash_limit_bytes: 512 * 1024 * 1024 }
    }
}

/// What attestation found.
#[derive(Clone, Debug)]
pub struct Attested {
    /// The workload's attributes.
    pub attributes: Attributes,
    executable: Option<PathBuf>,
}

/// Why a caller could not be attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process is gone, has changed or cannot be read.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Its user's executables cannot be read in time.
    #[error("attestation took longer than {DEADLINE:?}")]
    TooSlow,
    /// An attribute that must exist was refused; a bug.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    /// The work was cut off because the agent stops.
    #[error("the agent is stopping")]
    Stopping,
}

/// Attests processes. Shared by all sockets.
#[derive(Debug)]
pub struct UnixAttestor(Arc<Inner>);

struct Inner {
    settings: UnixSettings,
    clock: Arc<dyn Clock>,
    digests: Digests,
    users: Mutex<BTreeMap<u32, Arc<Semaphore>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl UnixAttestor {
    /// An attestor that remembers nothing yet.
    pub fn new(settings: UnixSettings, clock: Arc<dyn Clock>) -> Self {
        let (digests, users) = (Digests::default(), Mutex::default());
        Self(Arc::new(Inner { settings, clock, digests, users }))
    }

    /// Learns what `peer` is.
    ///
    /// # Errors
    /// [`AttestError`]; the caller gets nothing then.
    pub async fn attest(&self, peer: &Arc<PeerProcess>) -> Result<Attested, AttestError> {
        let place = self.0.place_of(peer.uid());
        let (inner, peer) = (Arc::clone(&self.0), Arc::clone(peer));
        let work = async move {
            let permit = place.acquire_owned().await.map_err(|_closed| AttestError::Stopping)?;
            let work = tokio::task::spawn_blocking(move || {
                let outcome = inner.look(&peer);
                // Given back when the thread is free again, not when its caller lost patience.
                drop(permit);
                outcome
            });
            work.await.map_err(|_runtime_stops| AttestError::Stopping)?
        };
        tokio::time::timeout(DEADLINE, work).await.map_err(|_elapsed| AttestError::TooSlow)?
    }

    /// Checks, cheaply enough for every message, that `peer` is still what was attested: alive, the same credentials,
    /// an executable of the same path, or of that path before an upgrade put another file there. Nothing here asks the file system of the executable, so nothing can block.
    ///
    /// # Errors
    /// [`PeerError::Gone`] or [`PeerError::Changed`].
    pub fn recheck(&self, peer: &PeerProcess, attested: &Attested) -> Result<(), PeerError> {
        if let Some(executable) = &attested.executable
            && !peer.folder()?.link("exe").is_ok_and(|now| is_same(executable, &now))
        {
            // Either it ended in between or it runs something else.
            peer.check()?;
            return Err(PeerError::Changed("executable"));
        }
        peer.check()
    }
}

impl Inner {
    fn place_of(&self, uid: u32) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        // Users with nothing under way are forgotten, so the map is as large as what is going on.
        users.retain(|_, places| Arc::strong_count(places) > 1);
        Arc::clone(users.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_PER_USER))))
    }

    fn look(&self, peer: &PeerProcess) -> Result<Attested, AttestError> {
        peer.check()?;
        let folder = peer.folder()?;
        let mut attributes = Attributes::new();
        attributes.insert(AttributeName::UnixUid, peer.uid().to_string())?;
        attributes.insert(AttributeName::UnixGid, peer.gid().to_string())?;
        if let Some(name) = passwd().and_then(|text| user_name(&text, peer.uid()).map(str::to_owned)) {
            add(&mut attributes, peer, AttributeName::UnixUser, &name);
        }
        let cgroup = folder.text("cgroup").unwrap_or_default();
        if let Some(group) = systemd::group(&cgroup) {
            add(&mut attributes, peer, AttributeName::UnixCgroup, group);
        }
        if let Some(unit) = systemd::unit(&cgroup) {
            add(&mut attributes, peer, AttributeName::SystemdUnit, unit);
        }
        let file = self.look_at_executable(peer, &folder, &mut attributes)?;
        let status = folder.text("status")?;
        for group in groups(&status) {
            add(&mut attributes, peer, AttributeName::UnixGid, group);
        }
        if file != running(&folder).map(|(_, state)| state) {
            return Err(PeerError::Changed("executable").into());
        }
        let executable = folder.link("exe").ok();
        peer.check()?;
        Ok(Attested { attributes, executable })
    }

    fn look_at_executable(
        &self,
        peer: &PeerProcess,
        folder: &ProcFolder,
        attributes: &mut Attributes,
    ) -> Result<Option<FileState>, AttestError> {
        let Some((mut file, state)) = running(folder) else {
            tracing::debug!(pid = peer.pid(), "the caller's executable is not readable; no path, no digest");
            return Ok(None);
        };
        let path = folder.link("exe")?;
        if let Some(text) = path.to_str().filter(|_| state.is_at(&path)) {
            add(attributes, peer, AttributeName::UnixPath, text);
        }
        if self.settings.hash_executables {
            match self.digests.digest(&mut file, state, self.settings.hash_limit_bytes, self.clock.now()) {
                Ok(digest) => attributes.insert(AttributeName::UnixSha256, digest)?,
                Err(cause) => tracing::info!(pid = peer.pid(), %cause, "the caller has no unix.sha256"),
            }
        }
        Ok(Some(state))
    }
}

/// The file that a process runs, where the agent may see it.
fn running(folder: &ProcFolder) -> Option<(File, FileState)> {
    let file = folder.open("exe").ok()?;
    let metadata = file.metadata().ok().filter(|it| it.file_type().is_file())?;
    let state = FileState::of(&metadata);
    Some((file, state))
}

/// Whether a link to an executable, attested earlier, is the one there is now. An upgrade unlinks the file that a process
/// runs, which runs on and is no other program for that.
fn is_same(attested: &Path, now: &Path) -> bool {
    let (attested, now) = (attested.as_os_str().as_bytes(), now.as_os_str().as_bytes());
    now == attested || now.strip_suffix(DELETED) == Some(attested)
}

/// Adds what may be left out.
fn add(attributes: &mut Attributes, peer: &PeerProcess, name: AttributeName, value: &str) {
    if let Err(cause) = attributes.insert(name, value) {
        tracing::debug!(pid = peer.pid(), %cause, "an attribute of the caller is left out");
    }
}

/// The supplementary groups in the text of `/proc/<pid>/status`.
fn groups(status: &str) -> impl Iterator<Item = &str> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.into_iter().flat_map(str::split_ascii_whitespace)
}

fn passwd() -> Option<String> {
    let mut text = String::new();
    File::open(Path::new("/etc/passwd")).ok()?.take(PASSWD_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The first name of a user in the text of `/etc/passwd`; directories behind NSS are not asked.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use rhizome_core::clock::ManualClock;
    use rhizome_id::Timestamp;
    use tokio::net::UnixStream;

    use super::*;

    #[test]
    fn users_are_found_by_number_and_only_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n:x:7:7::/:\nbad\nweb:x:33:33::/:\nwww:x:33:33::/:\n";
        assert_eq!(user_name(passwd, 0), Some("root"));
        assert_eq!(user_name(passwd, 33), Some("web"));
        assert_eq!((user_name(passwd, 7), user_name(passwd, 8)), (None, None));
    }

    #[test]
    fn groups_are_those_of_their_line() {
        assert_eq!(groups("Name:\tGroups:\nGroups:\t4 24 27 \n").collect::<Vec<_>>(), ["4", "24", "27"]);
        assert_eq!(groups("Groups:\t\n").count(), 0);
    }

    #[tokio::test]
    async fn this_very_process_is_what_attestation_says() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Arc::new(PeerProcess::of(&one).unwrap());
        let clock = Arc::new(ManualClock::new(Timestamp::from_unix(4_000_000_000)));
        let attestor = UnixAttestor::new(UnixSettings::default(), clock);
        let attested = attestor.attest(&peer).await.unwrap();
        let found = &attested.attributes;
        assert_eq!(found.single(&AttributeName::UnixUid), Some(peer.uid().to_string().as_str()));
        assert!(found.contains(&AttributeName::UnixGid, &peer.gid().to_string()));
        let program = std::env::current_exe().unwrap();
        assert_eq!(found.single(&AttributeName::UnixPath), program.to_str());
        let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(program).unwrap());
        assert_eq!(found.single(&AttributeName::UnixSha256), Some(hex::encode(digest).as_str()));
        attestor.recheck(&peer, &attested).unwrap();
        let other = Attested { executable: Some(PathBuf::from("/")), ..attested };
        assert!(matches!(attestor.recheck(&peer, &other), Err(PeerError::Changed("executable"))));
    }

    fn start(program: &Path) -> std::process::Child {
        loop {
            match std::process::Command::new(program).arg("600").spawn() {
                Ok(child) => return child,
                // Another test's child has not closed its copy of the file that was just written.
                Err(cause) if cause.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now()
                }
                Err(cause) => panic!("{cause}"),
            }
        }
    }

    #[tokio::test]
    async fn a_program_replaced_by_an_upgrade_keeps_its_streams_and_has_no_path_when_it_connects_anew() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().canonicalize().unwrap().join("program");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = start(&program);
        let peer = Arc::new(PeerProcess::of_pid(i32::try_from(child.id()).unwrap()).unwrap());
        let clock = Arc::new(ManualClock::new(Timestamp::from_unix(4_000_000_000)));
        let attestor = UnixAttestor::new(UnixSettings::default(), clock);
        let attested = attestor.attest(&peer).await.unwrap();
        assert_eq!(attested.attributes.single(&AttributeName::UnixPath), program.to_str());
        std::fs::remove_file(&program).unwrap();
        std::fs::write(&program, "the new version").unwrap();
        attestor.recheck(&peer, &attested).unwrap();
        let anew = attestor.attest(&peer).await.unwrap();
        assert!(!anew.attributes.has(&AttributeName::UnixPath), "nobody can tell where it was");
        assert_eq!(
            anew.attributes.single(&AttributeName::UnixSha256),
            attested.attributes.single(&AttributeName::UnixSha256)
        );
        attestor.recheck(&peer, &anew).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(attestor.recheck(&peer, &attested).is_err());
    }
}
