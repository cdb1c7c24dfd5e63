//! A disk that is full while the server issues: a real small one, mounted for the test.
//!
//! Laws: mounting needs root; as root with `CI=true` it must work, elsewhere the skip is loud.
//! Sources: ca/docs/attacks.md §1.3 (state lost when the store fails), §2 (12).

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rhizome_proto::admin::v1::GetHeadRequest;
use rhizome_proto::admin::v1::ledger_service_client::LedgerServiceClient;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

use crate::client::{
    Refusal, Seen, anonymous, attest, identified, local, new_csr, runtime, sign, token, workload,
};
use crate::ledger::Ledger;
use crate::server::{Home, Server};
use crate::support::{in_ci, must, run, said};

/// Far more certificates than records of them fit into what is left of the disk.
const MANY: usize = 1_000;

/// A file system of a few MiB.
struct SmallDisk {
    at: TempDir,
}

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount() -> Option<Self> {
        let at = TempDir::new().unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs"]).arg(at.path());
        let output = run(&mut command);
        if output.as_ref().is_some_and(|it| it.status.success()) {
            return Some(Self { at });
        }
        let why = output.map_or_else(|| "no mount program".to_owned(), |it| said(&it));
        let root = said(&must(Command::new("id").arg("-u"))) == "0";
        assert!(!(root && in_ci()), "a small disk cannot be mounted: {why}");
        eprintln!("\n!!! NOT TESTED: a full disk\n!!! it needs root and the right to mount: {why}\n");
        None
    }

    fn path(&self) -> &Path {
        self.at.path()
    }

    /// Takes all room but a little.
    fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        let mut length = 0;
        loop {
            match ballast.write(&[0; 4096]) {
                Ok(written) => length += u64::try_from(written).unwrap(),
                Err(full) if full.kind() == ErrorKind::StorageFull => break,
                Err(fault) => panic!("{fault}"),
            }
        }
        ballast.set_len(length - 64 * 1024).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(self.path()).status());
    }
}

#[track_caller]
fn is_full<T: std::fmt::Debug>(answer: Result<T, Refusal>) {
    let refusal = answer.unwrap_err();
    assert_eq!((refusal.grpc, refusal.code.as_str()), (Code::Unavailable, "store_full"), "{refusal:?}");
    assert!(refusal.retry_after_ms.is_some_and(|delay| delay > 0), "{refusal:?}");
}

async fn head(administrator: &Channel) -> u64 {
    let mut client = LedgerServiceClient::new(administrator.clone());
    client.get_head(GetHeadRequest {}).await.unwrap().into_inner().head.unwrap().sequence
}

#[test]
fn a_full_disk_stops_issuing_with_a_delay_and_nothing_half_made_until_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let mut server = Home::on(TempDir::new().unwrap(), disk.path().to_owned(), "").serve();
    let node = server.join_node("n1");
    let seen = runtime().block_on(fills_up_and_goes_on(&server, &disk, &node));
    must(&mut server.admin(&["ledger", "verify"]));
    must(&mut server.admin(&["check"]));
    assert!(server.stop().success());
    let ledger = Ledger::read(&server.home().database());
    assert_eq!(ledger.lost(&seen), []);
    assert_eq!(ledger.doubled, []);
}

async fn fills_up_and_goes_on(server: &Server, disk: &SmallDisk, node: &Path) -> Vec<Seen> {
    let (channel, administrator) = (identified(server, node).await, local(server).await);
    let secret = token(&administrator, "n2", 0).await.unwrap();
    let mut seen = Vec::new();
    disk.fill();
    let first = loop {
        match sign(&channel, workload(new_csr())).await {
            Ok(issued) => seen.push(Seen::of(&issued)),
            Err(refusal) => break refusal,
        }
        assert!(seen.len() < MANY, "certificates without end, and no room for their records");
    };
    println!("full after {} certificates: {first:?}", seen.len());
    is_full::<()>(Err(first));

    let stands = head(&administrator).await;
    for _ in 0..20 {
        is_full(sign(&channel, workload(new_csr())).await);
    }
    is_full(token(&administrator, "n3", 0).await);
    is_full(attest(&anonymous(server).await, &secret, new_csr()).await);
    assert_eq!(head(&administrator).await, stands, "nothing was recorded");
    // Reading goes on, and a backup onto the full disk leaves nothing there.
    must(&mut server.admin(&["ledger", "verify"]));
    let backup = disk.path().join("backup");
    let refused = run(&mut server.admin(&["backup", backup.to_str().unwrap()])).unwrap();
    assert!(!refused.status.success(), "{}", said(&refused));
    let mut left: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    let expected = ["ballast", "keys", "rhizome.db", "rhizome.db-shm", "rhizome.db-wal", "rhizome.db.lock"];
    assert_eq!(left, expected);

    disk.free();
    // On the same connection, at once, and without a restart.
    seen.push(Seen::of(&sign(&channel, workload(new_csr())).await.unwrap()));
    // The token was consumed by nobody while the disk was full: another key may have it.
    seen.push(Seen::of(&attest(&anonymous(server).await, &secret, new_csr()).await.unwrap()));
    assert!(head(&administrator).await > stands);
    seen
}

#[test]
fn a_server_does_not_start_on_a_full_disk_and_says_why() {
    let Some(disk) = SmallDisk::mount() else { return };
    disk.fill();
    fs::write(disk.path().join("rest"), [0; 60 * 1024]).unwrap();
    let home = Home::on(TempDir::new().unwrap(), disk.path().to_owned(), "");
    let Err((code, log)) = home.try_serve() else { panic!("it started on a full disk") };
    assert_eq!(code, Some(1), "{log}");
    assert!(!log.contains("panicked") && (log.contains("full") || log.contains("No space")), "{log}");
}
