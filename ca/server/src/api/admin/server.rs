//! The server itself: status, named checks, online backup.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rhizome_core::documents::Transaction;
use rhizome_id::Digest;
use rhizome_proto::admin::v1 as wire;
use rhizome_proto::admin::v1::backup_response::Part;
use rhizome_proto::admin::v1::server_service_server::ServerService;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};

use crate::api::{Api, convert};
use crate::ca::Ca;
use crate::error::ApiError;
use crate::status::{Answer, Broken, Outgoing};

/// How the directory begins in which a backup is put together.
const BACKING_UP: &str = ".backing-up-";

/// Bytes of one piece of a backup.
const CHUNK: usize = 256 * 1024;
/// The layout of a backup: a consistent SQLite database.
const BACKUP_FORMAT: u32 = 1;

#[tonic::async_trait]
impl ServerService for Api {
    async fn get_status(&self, request: Request<wire::GetStatusRequest>) -> Answer<wire::GetStatusResponse> {
        self.0.caller(&request)?;
        Ok(Response::new(self.0.status().await?))
    }

    async fn run_checks(&self, request: Request<wire::RunChecksRequest>) -> Answer<wire::RunChecksResponse> {
        self.0.caller(&request)?;
        let within = convert::read_ttl("fail_within_seconds", request.get_ref().fail_within_seconds)?;
        let checks = self.0.checks(within).await;
        let ok = checks.iter().all(|check| check.ok);
        Ok(Response::new(wire::RunChecksResponse { checks, ok }))
    }

    type BackupStream = Outgoing<wire::BackupResponse>;

    async fn backup(&self, request: Request<wire::BackupRequest>) -> Answer<Self::BackupStream> {
        let by = self.0.caller(&request)?.principal().to_string();
        let entry = self.0.changed(&by, "store.backup", self.0.settings.trust_domain.as_str(), "");
        let transaction = Transaction::named("note backup").record(entry);
        self.0.commit(transaction).await.map_err(ApiError::from)?;
        let (pieces, outgoing) = mpsc::channel(4);
        let ca = Arc::clone(&self.0);
        // A copy of a large database takes longer than a call may; the stream may take its time.
        self.0.spawner.spawn_until_stop("backup", async move {
            if let Err(error) = ca.send_backup(&pieces).await {
                drop(pieces.send(Err(error.into())).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

type Pieces = mpsc::Sender<Result<wire::BackupResponse, Broken>>;

/// Sends the manifest, with size and digest of the whole, and then the file. Runs on a blocking thread.
fn send_file(path: &PathBuf, mut manifest: wire::BackupManifest, pieces: &Pieces) {
    let sent = measure(path).and_then(|(size, digest)| {
        manifest.size = size;
        manifest.digest = convert::digest(&digest);
        let whole = |part| Ok(wire::BackupResponse { part: Some(part) });
        if pieces.blocking_send(whole(Part::Manifest(manifest))).is_err() {
            return Ok(());
        }
        each_chunk(path, |chunk| {
            pieces.blocking_send(whole(Part::Chunk(Bytes::copy_from_slice(chunk)))).is_ok()
        })
    });
    if let Err(cause) = sent {
        drop(pieces.blocking_send(Err(ApiError::Bug(format!("the backup cannot be read: {cause}")).into())));
    }
}

fn measure(path: &PathBuf) -> std::io::Result<(u64, Digest)> {
    let (mut size, mut context) = (0_u64, Context::new(&SHA256));
    each_chunk(path, |chunk| {
        size = size.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        context.update(chunk);
        true
    })?;
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((size, Digest::from_bytes(digest)))
}

fn each_chunk(path: &PathBuf, mut take: impl FnMut(&[u8]) -> bool) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = file.read(&mut buffer)?;
        match buffer.get(..read) {
            Some(chunk) if read > 0 && take(chunk) => {}
            Some(_) | None => return Ok(()),
        }
    }
}

impl Ca {
    /// One at a time: each needs room for a whole copy.
    async fn send_backup(&self, pieces: &Pieces) -> Result<(), ApiError> {
        let busy = || ApiError::Conflict {
            what: "backup of",
            name: self.settings.trust_domain.to_string(),
            problem: "is being made already; wait for it to end",
        };
        let _one = self.backing_up.try_lock().map_err(|_held| busy())?;
        // A directory of its own, mode 0700, gone with everything in it at the end.
        let directory = self.scratch_directory().map_err(|cause| ApiError::Bug(cause.to_string()))?;
        let path = directory.path().join("rhizome.db");
        // Read before the copy: the copy holds at least this much.
        let manifest = self.manifest(self.ledger_head().await?);
        self.ports.store.backup(&path).await?;
        let pieces = pieces.clone();
        let sent = tokio::task::spawn_blocking(move || send_file(&path, manifest, &pieces)).await;
        sent.map_err(|cause| ApiError::Bug(format!("a backup was not sent whole: {cause}")))
    }

    /// Beside the data, which has room for its like and is on a disk: a copy in the system's temporary directory may
    /// lie in memory. What a killed process left there is removed first; one backup is made at a time.
    fn scratch_directory(&self) -> std::io::Result<tempfile::TempDir> {
        let Some(scratch) = &self.settings.scratch else { return tempfile::tempdir() };
        for entry in std::fs::read_dir(scratch)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(BACKING_UP) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        tempfile::Builder::new().prefix(BACKING_UP).tempdir_in(scratch)
    }

    fn manifest(&self, head: wire::LedgerHead) -> wire::BackupManifest {
        wire::BackupManifest {
            format: BACKUP_FORMAT,
            trust_domain: self.settings.trust_domain.to_string(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: Some(convert::timestamp(self.ports.clock.now())),
            size: 0,
            digest: Bytes::new(),
            ledger_head: Some(head),
            includes_sealed_keys: false,
        }
    }

    async fn status(self: &Arc<Self>) -> Result<wire::GetStatusResponse, ApiError> {
        let state = self.state();
        let bundle = state.bundle().map(|it| &it.value.bundle);
        let active_root = state.active_root();
        let count = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
        let problems = self.problems();
        Ok(wire::GetStatusResponse {
            trust_domain: self.settings.trust_domain.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replica: self.settings.replica.to_string(),
            started_at: Some(convert::timestamp(self.started_at)),
            now: Some(convert::timestamp(self.ports.clock.now())),
            bundle_sequence: bundle.map_or(0, rhizome_x509::Bundle::sequence),
            bundle_digest: bundle.map(|it| convert::digest(&it.digest())).unwrap_or_default(),
            active_root: active_root.map(|it| it.id.to_string()).unwrap_or_default(),
            root_not_after: active_root.map(|it| convert::timestamp(it.window().1)),
            active_issuer: state.issuer().map(|it| it.id.to_string()).unwrap_or_default(),
            issuer_not_after: state
                .issuer()
                .map(|it| convert::timestamp(it.issuer.certificate().not_after())),
            ledger_head: Some(self.ledger_head().await?),
            nodes: count(state.nodes().len()),
            connected_nodes: count(self.presence.count()),
            rules: count(state.rules().len()),
            issued: self.metrics.issued_total(),
            refused: self.metrics.refused_total(),
            ready: problems.is_empty(),
            problems,
        })
    }
}
