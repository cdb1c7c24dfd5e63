//! The process that connected to a socket, held so that its number cannot come to mean another process.
//!
//! Laws: the process is named by a pidfd, not by its number. The kernel hands out the pidfd of whoever connected
//! (`SO_PEERPIDFD`, Linux 6.5). Older kernels do not: there it is opened from the number at once after accepting, which
//! leaves the moment between connecting and accepting unproved; [`PeerProcess::is_certain`] says which case it is.
//! `/proc/<pid>` is opened first and the pidfd asked afterwards whether its process still lives: only then does the
//! open folder belong to it, and it stays with that process whatever happens to the number.
//! Not here: what is read (`unix`). Sources: unix(7), pidfd_open(2), proc(5); spiffe/spire#6035.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

/// Bytes read of one file of `/proc/<pid>`; `status` with 65 536 groups is the largest, and we need fewer.
const PROC_FILE_BYTES: u64 = 64 * 1024;
/// Position of the start time among the fields of `stat` that follow the name in parentheses; field 22 of proc(5).
const START_TIME_FIELD: usize = 19;
/// Position of the state among the same; field 3.
const STATE_FIELD: usize = 0;

/// The process at the other end of a Unix socket.
#[derive(Debug)]
pub struct PeerProcess {
    pid: Pid,
    uid: u32,
    gid: u32,
    pidfd: AsyncFd<OwnedFd>,
    certain: bool,
    started: u64,
}

/// Why the other end of a socket cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel gave no credentials.
    #[error("the socket has no peer credentials: {0}")]
    Credentials(#[source] io::Error),
    /// The caller's process is not visible from here: it runs in a PID namespace above or beside ours.
    #[error("the caller's process is not in this PID namespace")]
    Invisible,
    /// The process has ended. Whoever holds its socket now is not it.
    #[error("the process that connected has ended")]
    Gone,
    /// The process is not what it was when it was first seen.
    #[error("the process that connected has changed its {0} since")]
    Changed(&'static str),
    /// `/proc` could not be read.
    #[error("cannot read {what} of process {pid}: {cause}")]
    Proc {
        /// The file.
        what: &'static str,
        /// Whose.
        pid: i32,
        /// The operating system's reason.
        cause: io::Error,
    },
}

impl PeerProcess {
    /// Names the process that connected `stream`. Call it at once after accepting, inside a runtime.
    ///
    /// # Errors
    /// [`PeerError`] when there is no such process any more or it cannot be seen.
    pub fn of(stream: &UnixStream) -> Result<Self, PeerError> {
        let credentials = stream.peer_cred().map_err(PeerError::Credentials)?;
        let pid = credentials.pid().and_then(Pid::from_raw).ok_or(PeerError::Invisible)?;
        let asked = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerPidfd);
        Self::named(&credentials, pid, asked)
    }

    /// As [`Self::of`], by what the kernel answered when it was asked for the pidfd of whoever connected.
    fn named(credentials: &UCred, pid: Pid, asked: nix::Result<OwnedFd>) -> Result<Self, PeerError> {
        let (pidfd, certain) = match asked {
            Ok(pidfd) => (pidfd, true),
            Err(nix::errno::Errno::ENOPROTOOPT) => {
                let opened =
                    pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|_no_such_process| PeerError::Gone)?;
                (opened, false)
            }
            Err(_reaped) => return Err(PeerError::Gone),
        };
        let pidfd = watched(pidfd).map_err(PeerError::Credentials)?;
        let mut peer =
            Self { pid, uid: credentials.uid(), gid: credentials.gid(), pidfd, certain, started: 0 };
        peer.started = peer.folder()?.start_time()?;
        peer.check()?;
        Ok(peer)
    }

    /// Names the process that has this number now: for an administrator who asks about it, never for a caller. Call it
    /// inside a runtime.
    ///
    /// # Errors
    /// [`PeerError`] when there is no such process or it cannot be seen.
    pub(crate) fn of_pid(pid: i32) -> Result<Self, PeerError> {
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(PeerError::Gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|_no_such_process| PeerError::Gone)?;
        let pidfd = watched(pidfd).map_err(PeerError::Credentials)?;
        let mut peer = Self { pid, uid: 0, gid: 0, pidfd, certain: false, started: 0 };
        let folder = peer.folder()?;
        peer.started = folder.start_time()?;
        let status = folder.text("status")?;
        let ids = effective(&status, "Uid:").zip(effective(&status, "Gid:"));
        (peer.uid, peer.gid) =
            ids.ok_or_else(|| folder.unreadable("status", io::ErrorKind::InvalidData.into()))?;
        peer.check()?;
        Ok(peer)
    }

    /// Sends it a signal: to this very process, whatever its number means by now.
    ///
    /// # Errors
    /// The operating system's reason.
    pub(crate) fn send(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// Its number when it connected, for logs: never for looking anything up.
    pub const fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Its effective user id when it connected.
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// Its effective group id when it connected.
    pub const fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether the kernel itself vouches that the pidfd is of the process that connected. Where it does not, the number
    /// may have been given to another process between connecting and accepting.
    pub const fn is_certain(&self) -> bool {
        self.certain
    }

    /// Whether the process is still running: it has not exited, reaped or not.
    pub fn is_alive(&self) -> bool {
        // A pidfd is readable from the exit of its process on. If that cannot be asked, the answer is the safe one.
        let mut asked = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut asked, Some(&at_once)), Ok(0))
    }

    /// Ready once the process has exited. Remembers one waker, so one task may poll it: the connection's.
    pub(crate) fn poll_exit(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.pidfd.poll_read_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_runtime_stops)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) if !self.is_alive() => return Poll::Ready(()),
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
            }
        }
    }

    /// Checks that it is alive and still the process with the credentials it connected with. An `exec` of a set-user-ID
    /// program between connecting and asking shows here.
    ///
    /// # Errors
    /// [`PeerError::Gone`], [`PeerError::Changed`] or [`PeerError::Proc`].
    pub fn check(&self) -> Result<(), PeerError> {
        let folder = self.folder()?;
        if folder.start_time()? != self.started {
            return Err(PeerError::Changed("start time"));
        }
        let status = folder.text("status")?;
        if effective(&status, "Uid:") != Some(self.uid) {
            return Err(PeerError::Changed("user"));
        }
        if effective(&status, "Gid:") != Some(self.gid) {
            return Err(PeerError::Changed("group"));
        }
        if self.is_alive() { Ok(()) } else { Err(PeerError::Gone) }
    }

    /// Its folder in `/proc`, proved to be its own.
    ///
    /// # Errors
    /// [`PeerError::Gone`] when it has exited, [`PeerError::Proc`] when `/proc` does not show it.
    pub(crate) fn folder(&self) -> Result<ProcFolder, PeerError> {
        let pid = self.pid();
        let path = format!("/proc/{pid}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        // Order matters. Alive now means that the number has been this process's all along, also at the opening.
        if !self.is_alive() {
            return Err(PeerError::Gone);
        }
        let folder =
            opened.map_err(|cause| PeerError::Proc { what: "the folder", pid, cause: cause.into() })?;
        Ok(ProcFolder { folder, pid })
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe; what could go wrong, the descriptor closing while it is watched, cannot with an \
              OwnedFd that stays inside"
)]
fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// The folder of one process in `/proc`. Reading from it fails once the process is gone, also when the number is used
/// again.
#[derive(Debug)]
pub(crate) struct ProcFolder {
    folder: OwnedFd,
    pid: i32,
}

impl ProcFolder {
    /// When the process started, in clock ticks since the machine did.
    fn start_time(&self) -> Result<u64, PeerError> {
        let stat = self.text("stat")?;
        let fields = || after_name(&stat).split_ascii_whitespace();
        if matches!(fields().nth(STATE_FIELD), Some("Z" | "X" | "x")) {
            return Err(PeerError::Gone);
        }
        let ticks = fields().nth(START_TIME_FIELD).and_then(|field| field.parse().ok());
        ticks.ok_or_else(|| self.unreadable("stat", io::Error::from(io::ErrorKind::InvalidData)))
    }

    /// A file of the folder, as text; at most 64 KiB of it.
    pub(crate) fn text(&self, name: &'static str) -> Result<String, PeerError> {
        let file = self.open(name)?;
        let mut bytes = Vec::new();
        file.take(PROC_FILE_BYTES).read_to_end(&mut bytes).map_err(|cause| self.unreadable(name, cause))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Opens a file of the folder. For `exe` that is the very file the process runs, whatever its path means here.
    pub(crate) fn open(&self, name: &'static str) -> Result<File, PeerError> {
        // Not blocking: an executable may not be a pipe, but nothing here relies on that.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = openat(self.folder.as_fd(), name, flags, Mode::empty());
        opened.map(File::from).map_err(|cause| self.unreadable(name, cause.into()))
    }

    /// Where a link of the folder points.
    pub(crate) fn link(&self, name: &'static str) -> Result<PathBuf, PeerError> {
        let target = rustix::fs::readlinkat(self.folder.as_fd(), name, Vec::new());
        let target = target.map_err(|cause| self.unreadable(name, cause.into()))?;
        Ok(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
            target.into_bytes(),
        )))
    }

    fn unreadable(&self, what: &'static str, cause: io::Error) -> PeerError {
        if cause.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) {
            return PeerError::Gone;
        }
        PeerError::Proc { what, pid: self.pid, cause }
    }
}

/// `stat` after the process's name, which may hold anything, also parentheses and spaces.
fn after_name(stat: &str) -> &str {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest)
}

/// The second number, the effective one, of the four in a line of `status` such as that of `Uid:`.
fn effective(status: &str, line: &str) -> Option<u32> {
    let values = status.lines().find_map(|it| it.strip_prefix(line))?;
    values.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_forge_its_start_time_by_its_name() {
        let stat = "7 (a) S 1 2 3) R 1 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(after_name(stat).split_ascii_whitespace().nth(STATE_FIELD), Some("R"));
        assert_eq!(after_name(stat).split_ascii_whitespace().nth(START_TIME_FIELD), Some("4242"));
    }

    #[test]
    fn the_effective_ids_are_the_second_of_four() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!((effective(status, "Uid:"), effective(status, "Gid:")), (Some(2), Some(6)));
        assert_eq!(effective("Name:\tUid:\n", "Uid:"), None);
    }

    #[tokio::test]
    async fn the_own_process_is_alive_and_the_same() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = PeerProcess::of(&one).unwrap();
        assert_eq!(u32::try_from(peer.pid()).unwrap(), std::process::id());
        assert!(peer.is_alive());
        peer.check().unwrap();
        assert_ne!(peer.started, 0);
    }

    /// A child that waits for its end of input, and the socket on which it is the peer: it is started before.
    fn child() -> std::process::Child {
        let mut command = std::process::Command::new("cat");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap()
    }

    /// What a kernel before 6.5 answers when it is asked for the peer's pidfd.
    const OLD_KERNEL: nix::Result<OwnedFd> = Err(nix::errno::Errno::ENOPROTOOPT);

    #[tokio::test]
    async fn on_an_old_kernel_the_process_is_found_by_its_number_and_said_to_be_uncertain() {
        let (one, _other) = UnixStream::pair().unwrap();
        let credentials = one.peer_cred().unwrap();
        let own = Pid::from_raw(credentials.pid().unwrap()).unwrap();
        let peer = PeerProcess::named(&credentials, own, OLD_KERNEL).unwrap();
        assert!(!peer.is_certain() && peer.is_alive());
        peer.check().unwrap();
        let (pid, uid) = (u32::try_from(peer.pid()).unwrap(), peer.uid());
        assert_eq!((pid, uid), (std::process::id(), rustix::process::geteuid().as_raw()));
    }

    #[tokio::test]
    async fn on_an_old_kernel_a_process_that_has_ended_is_nobody_whether_or_not_it_was_reaped() {
        let (one, _other) = UnixStream::pair().unwrap();
        let credentials = one.peer_cred().unwrap();
        let mut child = child();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let alive = PeerProcess::named(&credentials, pid, OLD_KERNEL).unwrap();
        drop(child.stdin.take());
        // Ended, and not reaped: its number is still taken.
        std::future::poll_fn(|cx| alive.poll_exit(cx)).await;
        assert!(matches!(alive.check(), Err(PeerError::Gone)));
        assert!(matches!(PeerProcess::named(&credentials, pid, OLD_KERNEL), Err(PeerError::Gone)));
        child.wait().unwrap();
        assert!(matches!(alive.check(), Err(PeerError::Gone)), "whoever has the number now is not it");
        assert!(matches!(PeerProcess::named(&credentials, pid, OLD_KERNEL), Err(PeerError::Gone)));
    }

    #[tokio::test]
    async fn on_an_old_kernel_a_number_that_went_to_another_users_process_is_refused() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI runs as root");
            eprintln!("SKIPPED: not root, so no process of another user can be made");
            return;
        }
        let (one, _other) = UnixStream::pair().unwrap();
        let credentials = one.peer_cred().unwrap();
        let mut command = std::process::Command::new("cat");
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let found = PeerProcess::named(&credentials, pid, OLD_KERNEL);
        assert!(matches!(found, Err(PeerError::Changed("user"))), "{found:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
