//! A disk that is full or read-only while the agent works: a real small one, mounted for the test.
//!
//! Laws: mounting needs root; as root with `CI=true` it must work, elsewhere the skip is loud.
//! Sources: ca/docs/attacks.md §2 (12).

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rhizome_agent::SystemEntropy;
use rhizome_agent::sink::{SinkBoard, SinkHealth, SinkPorts, start_sinks};

use crate::support::{Authority, Machine, follow_web, renewed, status, view, wait};

/// A machine whose state lies on a file system of one MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(machine: &Machine) -> Option<Self> {
        let at = machine.folder.path().to_owned();
        let options = ["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(&at).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        let must =
            rustix::process::geteuid().is_root() && std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!must, "a small disk cannot be mounted: {mounted:?}");
        eprintln!(
            "\n!!! NOT TESTED: a full and a read-only disk\n!!! it needs root and the right to mount\n"
        );
        None
    }

    fn remount(&self, how: &str) {
        let option = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &option]).arg(&self.0).status().unwrap().success());
    }

    /// Takes all the room there is.
    fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        loop {
            match ballast.write(&[0; 4096]) {
                Ok(written) => assert!(written > 0),
                Err(full) => {
                    assert_eq!(full.kind(), ErrorKind::StorageFull);
                    return;
                }
            }
        }
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

async fn is_so(board: &SinkBoard, wanted: SinkHealth) {
    let waiting = async {
        while board.all().iter().any(|sink| sink.health != wanted) {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(waited.is_ok(), "{:?}", board.all());
}

#[tokio::test]
async fn a_full_disk_takes_nothing_from_workloads_and_is_caught_up_with_when_there_is_room() {
    let authority = Authority::start().await;
    authority.put_rule("files", "7").await;
    let machine = Machine::new(&authority);
    let Some(disk) = SmallDisk::mount(&machine) else { return };
    let join = authority.join_string("vm-1", &[]).await;
    rhizome_agent::join(&machine.state(), &join, &machine.clock()).await.unwrap();
    let agent = machine.start(None);
    let file = machine.folder.path().join("all.pem");
    let settings = format!("[{{name: a, attributes: {{unix.uid: 7}}, file: {}}}]", file.display());
    let ports = SinkPorts {
        identities: agent.identities(),
        clock: machine.clock(),
        entropy: Arc::new(SystemEntropy::default()),
    };
    let settings = serde_saphyr::from_str(&settings).unwrap();
    let board = start_sinks(settings, &ports, agent.spawner()).unwrap();
    let mut seen = follow_web(&agent);
    let before = view(&mut seen).await.svids[0].serial.clone();
    is_so(&board, SinkHealth::InForce).await;
    authority.acknowledges("vm-1", 2).await;

    disk.fill();
    let in_files = fs::read(&file).unwrap();
    for svid in agent.identities().svids() {
        authority.revoke(&svid.serial).await;
    }
    let after = renewed(&mut seen, &before).await.svids[0].serial.clone();
    status(&agent, |it| it.unsealed > 0).await;
    is_so(&board, SinkHealth::Failing).await;
    assert_eq!(fs::read(&file).unwrap(), in_files, "nothing half-written");

    fs::remove_file(disk.ballast()).unwrap();
    // Retries look at the clock that the test holds.
    machine.clock.advance(60);
    is_so(&board, SinkHealth::InForce).await;
    assert_ne!(fs::read(&file).unwrap(), in_files);
    wait(&mut agent.status(), |it| it.unsealed == 0).await;
    agent.stop().await;
    let agent = machine.start(None);
    assert_eq!(follow_web(&agent).borrow().clone().unwrap().svids[0].serial, after, "sealed in the end");
    agent.stop().await;
}

/// An agent joins, is served `web`'s identity, and stops: what is sealed then, by its serial.
async fn sealed_by_an_agent(authority: &Authority, machine: &Machine) -> String {
    let join = authority.join_string("vm-1", &[]).await;
    rhizome_agent::join(&machine.state(), &join, &machine.clock()).await.unwrap();
    let agent = machine.start(None);
    let serial = view(&mut follow_web(&agent)).await.svids[0].serial.clone();
    agent.stop().await;
    serial
}

#[tokio::test]
async fn a_read_only_state_is_served_from_and_sealed_once_it_can_be() {
    let authority = Authority::start().await;
    let machine = Machine::new(&authority);
    let Some(disk) = SmallDisk::mount(&machine) else { return };
    let before = sealed_by_an_agent(&authority, &machine).await;

    disk.remount("ro");
    let agent = machine.start(None);
    assert_eq!(follow_web(&agent).borrow().clone().unwrap().svids[0].serial, before);
    status(&agent, |it| it.connected && it.unsealed > 0).await;
    disk.remount("rw");
    status(&agent, |it| it.unsealed == 0).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_damaged_state_on_a_disk_that_can_only_be_read_is_no_reason_not_to_start_and_is_not_lost() {
    let authority = Authority::start().await;
    let machine = Machine::new(&authority);
    let Some(disk) = SmallDisk::mount(&machine) else { return };
    let before = sealed_by_an_agent(&authority, &machine).await;
    let (sealed, aside) =
        (machine.state().join("state.sealed"), machine.state().join("state.sealed.aside-1"));
    for name in ["state.sealed", "state.key"] {
        fs::write(machine.state().join(name), b"damaged").unwrap();
    }
    disk.remount("ro");

    let agent = machine.start(None);
    let after = view(&mut follow_web(&agent)).await.svids[0].serial.clone();
    assert_ne!(after, before, "what was sealed is of no use; it was fetched anew");
    status(&agent, |it| it.connected && it.unsealed > 0 && it.aside == 2).await;
    assert_eq!(fs::read(&sealed).unwrap(), b"damaged");
    disk.remount("rw");
    status(&agent, |it| it.unsealed == 0).await;
    assert_eq!(fs::read(&aside).unwrap(), b"damaged", "kept before anything was written");
    assert_eq!(fs::read(machine.state().join("state.key.aside-1")).unwrap(), b"damaged");
    agent.stop().await;
    let agent = machine.start(None);
    assert_eq!(follow_web(&agent).borrow().clone().unwrap().svids[0].serial, after);
    agent.stop().await;
}
