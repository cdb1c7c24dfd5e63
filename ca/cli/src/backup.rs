//! `rhizome backup`: a consistent copy of the server's state.
//!
//! Laws: the file appears only when it is complete and its size and SHA-256 are those of the manifest; it is readable
//! by its owner only, because sealed keys may be in it. Not here: restoring (`rhizome restore`, which talks to no
//! server).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rhizome_id::Timestamp;
use rhizome_proto::admin::v1::backup_response::Part;
use rhizome_proto::admin::v1::server_service_client::ServerServiceClient;
use rhizome_proto::admin::v1::{BackupManifest, BackupRequest, BackupResponse};
use ring::digest::{Context, SHA256};
use serde::Serialize;
use tonic::Status;

use crate::exit::{Exit, Failure};
use crate::files::{self, NewFile};
use crate::output::{View, details};
use crate::session::Session;
use crate::wire;

/// The newest format that this program knows.
const FORMAT: u32 = 1;

/// Where the copy goes.
#[derive(Args, Clone, Debug)]
pub struct BackupVerb {
    /// The file to write; its manifest goes beside it, with .json appended
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Replace the file if it is there already
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(wish: BackupVerb, session: &mut Session<'_, '_>) -> Result<Exit, Failure> {
    if wish.file.exists() && !wish.force {
        let message = format!("{} is there already", wish.file.display());
        return Err(Failure::new(Exit::Failed, "already_there", message)
            .hint("choose another name, or replace it with --force"));
    }
    let mut client = ServerServiceClient::new(session.channel().await?);
    let mut parts = client.backup(BackupRequest {}).await?.into_inner();
    let manifest = receive(&wish, async || parts.message().await).await?;
    let view = backed_up(&manifest, &wish.file)?;
    let beside = format!("{:#}\n", view.json);
    files::write(&manifest_path(&wish.file), beside.as_bytes(), files::PRIVATE)?;
    session.show(&view)?;
    Ok(Exit::Done)
}

/// Writes the parts that `next` gives into the file, and answers with the manifest that they fit.
async fn receive(
    wish: &BackupVerb,
    mut next: impl AsyncFnMut() -> Result<Option<BackupResponse>, Status>,
) -> Result<BackupManifest, Failure> {
    let part = |response: Option<BackupResponse>| response.and_then(|response| response.part);
    let Some(Part::Manifest(manifest)) = part(next().await?) else {
        return Err(Failure::protocol("the backup does not begin with its manifest"));
    };
    if manifest.format != FORMAT {
        let message =
            format!("the backup has format {}, this program knows format {FORMAT}", manifest.format);
        return Err(Failure::new(Exit::Failed, "backup_format", message)
            .hint("use the program of the server's version"));
    }
    let bar = ProgressBar::new(manifest.size);
    if let Ok(style) = ProgressStyle::with_template("Backing up {wide_bar} {bytes}/{total_bytes} ({eta})") {
        bar.set_style(style);
    }
    let mut file = NewFile::begin(&wish.file, files::PRIVATE)?;
    let mut hash = Context::new(&SHA256);
    let mut size = 0u64;
    while let Some(response) = next().await? {
        let Some(Part::Chunk(chunk)) = response.part else {
            return Err(Failure::protocol("the backup has a second manifest"));
        };
        size = size.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if size > manifest.size {
            return Err(Failure::protocol("the backup is longer than its manifest says"));
        }
        hash.update(&chunk);
        file.write(&chunk)?;
        bar.set_position(size);
    }
    bar.finish_and_clear();
    if size != manifest.size || hash.finish().as_ref() != manifest.digest.as_ref() {
        let message = "what arrived is not the backup that the manifest describes";
        return Err(
            Failure::new(Exit::Failed, "backup_damaged", message).hint("nothing was written; try again")
        );
    }
    file.finish(&wish.file, wish.force)?;
    Ok(manifest)
}

fn manifest_path(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".json");
    PathBuf::from(name)
}

#[derive(Serialize)]
struct ManifestRow {
    file: String,
    format: u32,
    trust_domain: String,
    server_version: String,
    created_at: Option<Timestamp>,
    size: u64,
    sha256: Option<String>,
    ledger_sequence: u64,
    ledger_digest: Option<String>,
    includes_sealed_keys: bool,
}

fn backed_up(manifest: &BackupManifest, file: &Path) -> Result<View, Failure> {
    let head = manifest.ledger_head.clone().unwrap_or_default();
    let row = ManifestRow {
        file: file.display().to_string(),
        format: manifest.format,
        trust_domain: manifest.trust_domain.clone(),
        server_version: manifest.server_version.clone(),
        created_at: wire::instant(manifest.created_at.as_ref()),
        size: manifest.size,
        sha256: wire::hexadecimal(&manifest.digest),
        ledger_sequence: head.sequence,
        ledger_digest: wire::hexadecimal(&head.digest),
        includes_sealed_keys: manifest.includes_sealed_keys,
    };
    let keys = if row.includes_sealed_keys {
        "included, sealed; the sealing key is not: keep it too"
    } else {
        "not included; keep them apart"
    };
    let text = details([
        ("written to", row.file.clone()),
        ("trust domain", row.trust_domain.clone()),
        ("size", format!("{} bytes", row.size)),
        ("sha256", row.sha256.clone().unwrap_or_default()),
        ("ledger", format!("{} entries", row.ledger_sequence)),
        ("private keys", keys.to_owned()),
    ]);
    View::new(&row, text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bytes::Bytes;
    use ring::digest::digest;

    use super::*;

    fn parts(content: &[u8], promised: &[u8]) -> std::vec::IntoIter<BackupResponse> {
        let manifest = BackupManifest {
            format: FORMAT,
            size: u64::try_from(promised.len()).unwrap(),
            digest: Bytes::copy_from_slice(digest(&SHA256, promised).as_ref()),
            ..BackupManifest::default()
        };
        let mut parts = vec![BackupResponse { part: Some(Part::Manifest(manifest)) }];
        parts.extend(
            content
                .chunks(3)
                .map(|chunk| BackupResponse { part: Some(Part::Chunk(Bytes::copy_from_slice(chunk))) }),
        );
        parts.into_iter()
    }

    async fn backup(content: &[u8], promised: &[u8]) -> (tempfile::TempDir, Result<BackupManifest, Failure>) {
        let folder = tempfile::tempdir().unwrap();
        let wish = BackupVerb { file: folder.path().join("copy"), force: false };
        let mut parts = parts(content, promised);
        let outcome = receive(&wish, async || Ok(parts.next())).await;
        (folder, outcome)
    }

    #[tokio::test]
    async fn a_complete_backup_is_written() {
        let (folder, outcome) = backup(b"the whole state", b"the whole state").await;
        outcome.unwrap();
        assert_eq!(fs::read(folder.path().join("copy")).unwrap(), b"the whole state");
    }

    #[tokio::test]
    async fn a_backup_that_is_short_long_or_changed_leaves_no_file() {
        for content in [&b"the whole stat"[..], b"the whole state!", b"the whole stAte", b""] {
            let (folder, outcome) = backup(content, b"the whole state").await;
            assert!(outcome.is_err(), "{content:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[tokio::test]
    async fn a_stream_without_a_manifest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wish = BackupVerb { file: folder.path().join("copy"), force: false };
        let mut chunks = parts(b"abc", b"abc").skip(1);
        assert_eq!(receive(&wish, async || Ok(chunks.next())).await.unwrap_err().code(), "protocol");
        assert_eq!(receive(&wish, async || Ok(None)).await.unwrap_err().code(), "protocol");
    }

    #[test]
    fn the_manifest_stands_beside_the_file() {
        assert_eq!(manifest_path(Path::new("/b/state.db")), Path::new("/b/state.db.json"));
    }
}
