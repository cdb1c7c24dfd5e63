//! The ring in a PKCS#11 token, on SoftHSM.
//!
//! Laws: every test is a process of its own with tokens of its own, since a module belongs to its process and reads its
//! configuration from the environment once. Not run where SoftHSM is not installed; with CI=true that is a failure.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use rhizome_core::ports::{KeyInfo, KeyPurpose, KeyRing, KeyRingError};
use rhizome_id::KeyId;
use rhizome_keys::{Pin, Pkcs11KeyRing, TokenOptions, conformance};
use rhizome_x509::{Provenance, SigningAlgorithm, probe_for};

const P256: SigningAlgorithm = SigningAlgorithm::EcdsaP256Sha256;
const P384: SigningAlgorithm = SigningAlgorithm::EcdsaP384Sha384;
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];
const PIN: &str = "847201";
/// Where the tokens of the process are, set for the process that tests.
const HOME: &str = "RHIZOME_TEST_TOKENS";

/// Runs `body` in a process of its own in which there are tokens called `t0`, `t1`, …
fn with_tokens<F: Future<Output = ()>>(test: &str, tokens: usize, body: impl FnOnce(PathBuf) -> F) {
    if let Some(home) = std::env::var_os(HOME) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(body(home.into()));
    }
    if module().is_none() || Command::new("softhsm2-util").arg("--version").output().is_err() {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!ci, "SoftHSM is missing: apt-get install softhsm2");
        eprintln!("!!! NOT TESTED: PKCS#11 tokens; apt-get install softhsm2");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let configuration = home.path().join("softhsm2.conf");
    fs::create_dir(home.path().join("tokens")).unwrap();
    let tokens_dir = home.path().join("tokens");
    fs::write(&configuration, format!("directories.tokendir = {}\n", tokens_dir.display())).unwrap();
    for number in 0..tokens {
        let label = format!("t{number}");
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", &label, "--pin", PIN, "--so-pin", "so-pin"])
            .env("SOFTHSM2_CONF", &configuration)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    let tested = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("pkcs11::{test}"), "--nocapture"])
        .env("SOFTHSM2_CONF", &configuration)
        .env(HOME, home.path())
        .output()
        .unwrap();
    let said = [tested.stdout, tested.stderr].concat();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&said));
    assert!(String::from_utf8_lossy(&said).contains("1 passed"), "the test of that name ran");
    assert!(!String::from_utf8_lossy(&said).contains(PIN), "the PIN is nowhere");
}

fn module() -> Option<&'static Path> {
    MODULES.iter().map(Path::new).find(|path| path.exists())
}

fn options(label: &str, pin: &str) -> TokenOptions {
    let pin = Pin::from_text(pin).unwrap();
    TokenOptions { module: module().unwrap().to_owned(), label: label.to_owned(), pin, sessions: None }
}

async fn open(label: &str) -> Pkcs11KeyRing {
    Pkcs11KeyRing::open(options(label, PIN)).await.unwrap()
}

fn id(name: &str) -> KeyId {
    name.parse().unwrap()
}

async fn made(ring: &Pkcs11KeyRing, name: &str) -> KeyInfo {
    ring.generate(&id(name), KeyPurpose::Root, P256).await.unwrap()
}

async fn signs(ring: &Pkcs11KeyRing, key: &KeyInfo) -> Result<(), KeyRingError> {
    let probe = probe_for(key.algorithm);
    let signature = ring.sign(&key.id, &probe).await?;
    assert_eq!(signature.provenance(), Provenance::External, "so that it is verified wherever it is used");
    key.public_key.verify(probe.as_bytes(), &signature, key.algorithm).unwrap();
    Ok(())
}

/// A session of our own, beside the ring's.
fn session(label: &str) -> (Pkcs11, Session) {
    let pkcs11 = Pkcs11::new(module().unwrap()).unwrap();
    // The ring did it already, or will find it done.
    let _initialised = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let labelled = |slot: &cryptoki::slot::Slot| pkcs11.get_token_info(*slot).unwrap().label() == label;
    let slot = pkcs11.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap();
    let session = pkcs11.open_rw_session(slot).unwrap();
    let _or_already = session.login(UserType::User, Some(&AuthPin::from(PIN)));
    (pkcs11, session)
}

#[test]
fn the_ring_in_a_token_keeps_every_promise_of_the_port() {
    with_tokens("the_ring_in_a_token_keeps_every_promise_of_the_port", 16, |_home| async {
        let next = Cell::new(0);
        conformance::suite(|| {
            let label = format!("t{}", next.replace(next.get() + 1));
            async move { open(&label).await }
        })
        .await;
    });
}

#[test]
fn keys_in_a_token_survive_reopening() {
    with_tokens("keys_in_a_token_survive_reopening", 1, |_home| async {
        conformance::survives_reopening(|| open("t0")).await;
    });
}

#[test]
fn many_callers_at_once_share_a_few_sessions() {
    with_tokens("many_callers_at_once_share_a_few_sessions", 1, |_home| async {
        let ring =
            Pkcs11KeyRing::open(TokenOptions { sessions: Some(2), ..options("t0", PIN) }).await.unwrap();
        let key = made(&ring, "root-1").await;
        let eight = || async {
            let (a, b, c, d) =
                tokio::join!(signs(&ring, &key), signs(&ring, &key), signs(&ring, &key), signs(&ring, &key));
            assert!(a.is_ok() && b.is_ok() && c.is_ok() && d.is_ok(), "{a:?} {b:?} {c:?} {d:?}");
        };
        tokio::join!(eight(), eight(), eight(), eight());
    });
}

#[test]
fn a_private_key_cannot_be_taken_out_of_the_token() {
    with_tokens("a_private_key_cannot_be_taken_out_of_the_token", 1, |home| async move {
        let ring = open("t0").await;
        made(&ring, "root-1").await;
        let (_module, session) = session("t0");
        let private = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
        let found = session.find_objects(&private).unwrap();
        let value = session.get_attribute_info(found[0], &[AttributeType::Value]).unwrap();
        assert!(matches!(value[0], AttributeInfo::Sensitive), "{value:?}");
        drop(home);
    });
}

/// Puts a key pair of our making into the token, called as ours are.
fn plant(session: &Session, name: &str, extractable: bool) {
    let named = || {
        let label = format!("rhizome:root:{name}").into_bytes();
        [Attribute::Id(name.as_bytes().to_vec()), Attribute::Label(label), Attribute::Token(true)]
    };
    let curve = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07".to_vec();
    let public = [&named()[..], &[Attribute::EcParams(curve), Attribute::Verify(true)]].concat();
    let kept =
        [Attribute::Sensitive(!extractable), Attribute::Extractable(extractable), Attribute::Sign(true)];
    let private = [&named()[..], &kept[..]].concat();
    session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private).unwrap();
}

#[test]
fn a_key_that_the_token_would_give_out_and_two_of_one_name_are_refused() {
    with_tokens("a_key_that_the_token_would_give_out_and_two_of_one_name_are_refused", 1, |_home| async {
        let ring = open("t0").await;
        let (_module, session) = session("t0");
        plant(&session, "loose", true);
        let refused = ring.key(&id("loose")).await.unwrap_err();
        assert!(matches!(refused, KeyRingError::Mismatch { .. }), "{refused}");
        plant(&session, "kept", false);
        signs(&ring, &ring.key(&id("kept")).await.unwrap()).await.unwrap();
        plant(&session, "kept", false);
        let refused = ring.key(&id("kept")).await.unwrap_err();
        assert!(matches!(refused, KeyRingError::Corrupt { .. }), "{refused}");
        ring.destroy(&id("kept")).await.unwrap();
        assert!(matches!(ring.key(&id("kept")).await, Err(KeyRingError::NotFound { .. })), "both are gone");
    });
}

#[test]
fn a_token_pulled_out_is_unavailable_by_name_and_comes_back_by_itself() {
    with_tokens("a_token_pulled_out_is_unavailable_by_name_and_comes_back_by_itself", 2, |home| async move {
        let (ring, other) = (open("t0").await, open("t1").await);
        let key = made(&ring, "root-1").await;
        let high = ring.generate(&id("root-2"), KeyPurpose::Root, P384).await.unwrap();
        let beside = made(&other, "root-3").await;
        signs(&ring, &key).await.unwrap();
        let (here, away) = (home.join("tokens"), home.join("away"));
        for _ in 0..2 {
            fs::rename(&here, &away).unwrap();
            fs::create_dir(&here).unwrap();
            for outcome in [
                signs(&ring, &key).await,
                ring.key(&key.id).await.map(drop),
                ring.keys().await.map(drop),
                ring.destroy(&key.id).await,
                ring.generate(&id("new"), KeyPurpose::Root, P256).await.map(drop),
                signs(&other, &beside).await,
            ] {
                let refused = outcome.unwrap_err();
                assert!(matches!(refused, KeyRingError::Unavailable { .. }), "{refused}");
                assert!(refused.to_string().contains("the PKCS#11 token `t"), "{refused}");
            }
            fs::remove_dir_all(&here).unwrap();
            fs::rename(&away, &here).unwrap();
            signs(&ring, &key).await.unwrap();
            signs(&ring, &high).await.unwrap();
            signs(&other, &beside).await.unwrap();
            assert_eq!(ring.keys().await.unwrap(), [key.clone(), high.clone()]);
        }
    });
}

#[test]
fn a_server_may_start_without_its_token_and_finds_it_later() {
    with_tokens("a_server_may_start_without_its_token_and_finds_it_later", 1, |home| async move {
        let (here, away) = (home.join("tokens"), home.join("away"));
        fs::rename(&here, &away).unwrap();
        fs::create_dir(&here).unwrap();
        let (ring, silent) = Pkcs11KeyRing::open_or_wait(options("t0", PIN)).await.unwrap();
        assert!(silent.unwrap().to_string().contains("no token of that label"));
        fs::remove_dir_all(&here).unwrap();
        fs::rename(&away, &here).unwrap();
        let key = made(&ring, "root-1").await;
        signs(&ring, &key).await.unwrap();
    });
}

#[test]
fn a_refused_pin_is_said_without_the_pin_and_never_tried_again() {
    with_tokens("a_refused_pin_is_said_without_the_pin_and_never_tried_again", 1, |_home| async {
        let refused = Pkcs11KeyRing::open(options("t0", "000000")).await.unwrap_err();
        assert!(matches!(refused, KeyRingError::Sealed { .. }), "{refused}");
        assert!(refused.to_string().contains("`t0`") && !refused.to_string().contains("000000"), "{refused}");
        let ring = open("t0").await;
        let key = made(&ring, "root-1").await;
        // The PIN changes, and the ring has to log in again.
        let (module, session) = session("t0");
        session.set_pin(&AuthPin::from(PIN), &AuthPin::from("other-pin")).unwrap();
        drop(session);
        module.finalize().unwrap();
        let refused = signs(&ring, &key).await.unwrap_err();
        assert!(refused.to_string().contains("refuses the PIN"), "{refused}");
        let refused = signs(&ring, &key).await.unwrap_err();
        assert!(refused.to_string().contains("is not tried again"), "{refused}");
    });
}

#[test]
fn a_module_that_is_none_and_a_token_that_is_not_there_are_named() {
    with_tokens("a_module_that_is_none_and_a_token_that_is_not_there_are_named", 1, |home| async move {
        let path = home.join("softhsm2.conf");
        let wrong = TokenOptions { module: path.clone(), ..options("t0", PIN) };
        let refused = Pkcs11KeyRing::open(wrong).await.unwrap_err();
        assert!(refused.to_string().contains(&path.display().to_string()), "{refused}");
        let refused = Pkcs11KeyRing::open(options("t7", PIN)).await.unwrap_err();
        assert!(refused.to_string().contains("`t7`"), "{refused}");
    });
}
