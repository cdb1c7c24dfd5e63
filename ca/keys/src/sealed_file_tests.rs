//! The sealed ring on a real directory.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::TempDir;

use super::*;
use crate::{SealingKey, conformance};

const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;

fn sealing_key(last: u8) -> SealingKey {
    SealingKey::from_text(&format!("{}{last:02x}", "00".repeat(31))).unwrap()
}

fn id(name: &str) -> KeyId {
    name.parse().unwrap()
}

async fn open(home: &TempDir) -> SealedFileKeyRing {
    SealedFileKeyRing::open(&home.path().join("keys"), sealing_key(1)).await.unwrap()
}

async fn refusal(home: &TempDir, last: u8) -> KeyRingError {
    let opened = SealedFileKeyRing::open(&home.path().join("keys"), sealing_key(last)).await;
    opened.err().unwrap()
}

async fn with_keys(ids: &[&str]) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let ring = open(&home).await;
    for name in ids {
        ring.generate(&id(name), KeyPurpose::Issuer, P256).await.unwrap();
    }
    home
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn the_sealed_ring_keeps_every_promise_of_the_port() {
    let home = tempfile::tempdir().unwrap();
    let next = Cell::new(0);
    conformance::suite(|| {
        let path = home.path().join(next.replace(next.get() + 1).to_string());
        async move { SealedFileKeyRing::open(&path, sealing_key(1)).await.unwrap() }
    })
    .await;
}

#[tokio::test]
async fn the_dangerously_unsealed_ring_keeps_every_promise_of_the_port() {
    let home = tempfile::tempdir().unwrap();
    let next = Cell::new(0);
    conformance::suite(|| {
        let path = home.path().join(next.replace(next.get() + 1).to_string());
        async move { SealedFileKeyRing::open_danger_unsealed(&path).await.unwrap() }
    })
    .await;
}

#[tokio::test]
async fn sealed_keys_survive_reopening() {
    let home = tempfile::tempdir().unwrap();
    conformance::survives_reopening(|| open(&home)).await;
}

#[tokio::test]
async fn dangerously_unsealed_keys_survive_reopening() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("keys");
    conformance::survives_reopening(|| async {
        SealedFileKeyRing::open_danger_unsealed(&path).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn the_directory_and_every_file_are_for_the_owner_alone_whatever_the_umask() {
    // The most careless umask there is; the other tests of this process do not mind it.
    rustix::process::umask(rustix::fs::Mode::empty());
    let home = with_keys(&["a", "b"]).await;
    let keys = home.path().join("keys");
    assert_eq!(mode(&keys), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(&keys).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 2, "and nothing else is left there");
}

#[tokio::test]
async fn bits_that_others_were_given_on_sealed_files_are_taken_away_again() {
    let home = with_keys(&["a"]).await;
    let keys = home.path().join("keys");
    let file = keys.join("a.key.json");
    fs::set_permissions(&keys, PermissionsExt::from_mode(0o2770)).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o664)).unwrap();
    open(&home).await;
    assert_eq!((mode(&keys), mode(&file)), (0o700, 0o600));
}

#[tokio::test]
async fn unsealed_keys_that_others_can_read_are_refused_with_the_command_that_mends_it() {
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("keys");
    let ring = SealedFileKeyRing::open_danger_unsealed(&keys).await.unwrap();
    ring.generate(&id("a"), KeyPurpose::Issuer, P256).await.unwrap();
    let file = keys.join("a.key.json");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
    let said = SealedFileKeyRing::open_danger_unsealed(&keys).await.err().unwrap().to_string();
    assert!(said.contains(&format!("chmod 600 {}", file.display())), "{said}");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(&keys, PermissionsExt::from_mode(0o750)).unwrap();
    let said = SealedFileKeyRing::open_danger_unsealed(&keys).await.err().unwrap().to_string();
    assert!(said.contains(&format!("chmod 700 {}", keys.display())), "{said}");
}

#[tokio::test]
async fn the_wrong_sealing_key_opens_nothing_and_the_refusal_names_the_remedy() {
    let home = with_keys(&["a"]).await;
    let error = refusal(&home, 2).await;
    assert!(matches!(error, KeyRingError::Sealed { .. }), "{error}");
    assert!(error.to_string().contains("give the one it was sealed under"), "{error}");
}

#[tokio::test]
async fn a_truncated_file_is_damage_of_that_key() {
    let home = with_keys(&["a", "b"]).await;
    let file = home.path().join("keys/b.key.json");
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 3] {
        fs::write(&file, &whole[..length]).unwrap();
        let error = refusal(&home, 1).await;
        assert!(matches!(&error, KeyRingError::Corrupt { id, .. } if id.as_str() == "b"), "{error}");
    }
}

#[tokio::test]
async fn an_oversized_file_is_refused_unread() {
    let home = with_keys(&["a"]).await;
    fs::write(home.path().join("keys/a.key.json"), vec![b' '; 17 * 1024]).unwrap();
    let error = refusal(&home, 1).await;
    assert!(matches!(error, KeyRingError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_file_put_in_the_place_of_another_key_is_refused() {
    let home = with_keys(&["a", "b"]).await;
    let keys = home.path().join("keys");
    fs::copy(keys.join("a.key.json"), keys.join("b.key.json")).unwrap();
    let said = refusal(&home, 1).await.to_string();
    assert!(said.contains("key b is damaged: the file holds the key called a"), "{said}");
    let text = fs::read_to_string(keys.join("a.key.json")).unwrap();
    fs::write(keys.join("b.key.json"), text.replace("\"id\": \"a\"", "\"id\": \"b\"")).unwrap();
    let said = refusal(&home, 1).await.to_string();
    assert!(said.contains("key b is damaged: its seal is broken"), "{said}");
}

#[tokio::test]
async fn an_unsealed_key_planted_in_a_sealed_ring_is_refused() {
    let home = with_keys(&["a"]).await;
    let elsewhere = home.path().join("elsewhere");
    let ring = SealedFileKeyRing::open_danger_unsealed(&elsewhere).await.unwrap();
    ring.generate(&id("planted"), KeyPurpose::Root, P256).await.unwrap();
    let name = "planted.key.json";
    fs::copy(elsewhere.join(name), home.path().join("keys").join(name)).unwrap();
    let error = refusal(&home, 1).await;
    assert!(matches!(error, KeyRingError::Sealed { .. }), "{error}");
}

#[tokio::test]
async fn what_a_crash_left_behind_is_cleared_and_foreign_files_are_left_alone() {
    let home = with_keys(&["a"]).await;
    let keys = home.path().join("keys");
    fs::write(keys.join(".b.tmp"), "half a key").unwrap();
    fs::write(keys.join("README"), "hello").unwrap();
    let ring = open(&home).await;
    assert_eq!(ring.keys().await.unwrap().len(), 1);
    assert!(!keys.join(".b.tmp").exists());
    assert!(keys.join("README").exists());
}

#[tokio::test]
async fn a_file_whose_name_is_no_key_name_is_refused() {
    let home = with_keys(&["a"]).await;
    fs::write(home.path().join("keys/-x.key.json"), "{}").unwrap();
    let error = refusal(&home, 1).await;
    assert!(error.to_string().contains("-x.key.json"), "{error}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_said_with_its_path() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("no/such/place");
    let error = SealedFileKeyRing::open(&path, sealing_key(1)).await.err().unwrap();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}

#[tokio::test]
async fn a_key_that_cannot_be_written_does_not_exist() {
    let home = with_keys(&["a"]).await;
    let ring = open(&home).await;
    fs::remove_dir_all(home.path().join("keys")).unwrap();
    let made = ring.generate(&id("b"), KeyPurpose::Issuer, P256).await;
    assert!(matches!(made, Err(KeyRingError::Unavailable { .. })));
    assert!(matches!(ring.key(&id("b")).await, Err(KeyRingError::NotFound { .. })));
}

#[tokio::test]
async fn a_key_whose_maker_went_away_is_whole_or_absent() {
    let home = with_keys(&[]).await;
    let ring = open(&home).await;
    let (wanted, other) = (id("k"), id("other"));
    {
        let abandoned = ring.generate(&wanted, KeyPurpose::Issuer, P256);
        let mut abandoned = std::pin::pin!(abandoned);
        // One poll starts the work; then the caller drops it.
        std::future::poll_fn(|cx| {
            let _started = abandoned.as_mut().poll(cx);
            std::task::Poll::Ready(())
        })
        .await;
    }
    // The next change waits for its turn behind the abandoned one.
    ring.generate(&other, KeyPurpose::Issuer, P256).await.unwrap();
    let in_memory = ring.keys().await.unwrap();
    assert_eq!(open(&home).await.keys().await.unwrap(), in_memory);
}

#[tokio::test]
async fn nothing_secret_is_printed_by_debug() {
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("keys");
    let ring = SealedFileKeyRing::open_danger_unsealed(&keys).await.unwrap();
    ring.generate(&id("k"), KeyPurpose::Issuer, P256).await.unwrap();
    let memory = crate::MemoryKeyRing::new();
    memory.generate(&id("k"), KeyPurpose::Issuer, P256).await.unwrap();
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(keys.join("k.key.json")).unwrap()).unwrap();
    let secret = file["danger_unsealed"].as_str().unwrap();
    let said = format!("{ring:?} {memory:?} {:?}", ring.keys().await.unwrap());
    assert!(said.contains("KeyId(k)"));
    for at in 0..secret.len() - 12 {
        // The public key stands at the end of the PKCS#8, so its own text may not be in there either.
        assert!(!said.contains(&secret[at..at + 12]), "{said}");
    }
}
