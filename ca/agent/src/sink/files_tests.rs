//! Files as readers find them, and what is left when something goes wrong.

use std::fs;
use std::sync::Arc;

use rhizome_x509::{KeyAlgorithm, RequestKey};

use super::*;
use crate::holdings::Svid;
use crate::testing::{at, bundle, entitlement, root};

fn targets(folder: &Path) -> Targets {
    let mode = KeyMode::try_from("0640".to_owned()).unwrap();
    Targets { file: Some(folder.join("all.pem")), directory: Some(folder.join("split")), owner: None, mode }
}

fn content(serial: &str) -> Content {
    let key = RequestKey::generate(KeyAlgorithm::EcdsaP256).unwrap().pkcs8_der();
    let svid = Svid {
        spiffe_id: entitlement("/a").spiffe_id,
        chain_der: vec![format!("leaf {serial}").into_bytes(), b"intermediate".to_vec()],
        key_pkcs8_der: key,
        not_before: at(0),
        not_after: at(3_600),
        renew_at: at(1_800),
        serial: serial.to_owned(),
        hint: String::new(),
    };
    Content {
        svid: Arc::new(svid),
        bundle: Arc::new(bundle(1, &[&root("one")])),
        foreign: Vec::new(),
        crls: Arc::default(),
        version: 1,
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}

fn labels(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let begins = text.lines().filter_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    begins.map(str::to_owned).collect()
}

/// Everything below a folder, so that nothing unfinished stays behind unseen.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_hold_what_they_should_with_the_modes_that_were_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (targets, content) = (targets(folder.path()), content("01"));
    assert!(!targets.any());
    targets.write(&content).unwrap();
    assert!(targets.any() && targets.is_as_written(&content));
    let all = folder.path().join("all.pem");
    assert_eq!(labels(&all), ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE", "CERTIFICATE"]);
    assert_eq!(mode(&all), 0o640);
    let current = folder.path().join("split/current");
    assert_eq!(listing(&current), ["bundle.pem", "key.pem", "svid.pem"]);
    let modes = ["key.pem", "svid.pem", "bundle.pem"].map(|name| mode(&current.join(name)));
    assert_eq!(modes, [0o640, 0o644, 0o644]);
    assert_eq!(labels(&current.join("svid.pem")), ["CERTIFICATE", "CERTIFICATE"]);
    assert_eq!(listing(folder.path()), ["all.pem", "split"]);
    assert_eq!(listing(&folder.path().join("split")), ["current", "v-0000000001"]);
}

#[test]
fn each_foreign_trust_domain_has_a_file_of_its_own_and_none_is_in_with_the_own_roots() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = |domain: &str, anchors| {
        let hint = rhizome_id::Ttl::hours(1);
        Arc::new(Bundle::foreign(domain.parse().unwrap(), 4, hint, anchors, Vec::new()).unwrap())
    };
    let (partner, long) = (root("partner"), format!("{}.example", "a".repeat(240)));
    let foreign = vec![foreign(&long, vec![root("long")]), foreign("partner.example", vec![partner.clone()])];
    let (targets, with) = (targets(folder.path()), Content { foreign, ..content("01") });
    targets.write(&with).unwrap();
    assert!(targets.is_as_written(&with));
    let current = folder.path().join("split/current");
    let file = "federated-partner.example.pem";
    assert_eq!(listing(&current), ["bundle.pem", file, "key.pem", "svid.pem"], "no file has so long a name");
    let text = fs::read_to_string(current.join(file)).unwrap();
    assert_eq!(pem::first(&text, pem::CERTIFICATE).as_deref(), Some(partner.der()));
    assert_eq!((labels(&current.join(file)).len(), mode(&current.join(file))), (1, 0o644));
    assert_eq!(labels(&current.join("bundle.pem")).len(), 1);
    assert_eq!(labels(&folder.path().join("all.pem")).len(), 4, "one list of roots is for one domain");
    targets.write(&content("02")).unwrap();
    assert_eq!(listing(&current), ["bundle.pem", "key.pem", "svid.pem"]);
}

#[test]
fn files_of_an_earlier_process_say_until_when_they_are_of_use() {
    let folder = tempfile::tempdir().unwrap();
    let targets = targets(folder.path());
    assert_eq!(targets.expiry(), None, "there are none");
    targets.write(&content("01")).unwrap();
    assert_eq!(targets.expiry(), None, "they hold no certificate that can be read");
    let leaf = crate::testing::TestIssuer::new("one").leaf("/a");
    let svid = Svid { chain_der: vec![leaf], ..copy(&content("02").svid) };
    targets.write(&Content { svid: Arc::new(svid), ..content("02") }).unwrap();
    assert_eq!(targets.expiry(), Some(at(3_599)));
    fs::write(folder.path().join("all.pem"), "something else").unwrap();
    assert_eq!(targets.expiry(), None, "whatever that is");
}

fn copy(svid: &Svid) -> Svid {
    Svid {
        spiffe_id: svid.spiffe_id.clone(),
        chain_der: Vec::new(),
        key_pkcs8_der: svid.key_pkcs8_der.clone(),
        serial: svid.serial.clone(),
        hint: svid.hint.clone(),
        ..*svid
    }
}

#[test]
fn a_crl_comes_and_goes_with_its_state() {
    let folder = tempfile::tempdir().unwrap();
    let (targets, with) =
        (targets(folder.path()), Content { crls: Arc::new(vec![b"crl".to_vec()]), ..content("01") });
    let crl = folder.path().join("split/current/crl.pem");
    targets.write(&with).unwrap();
    assert_eq!(labels(&crl), ["X509 CRL"]);
    targets.write(&content("02")).unwrap();
    assert!(!crl.exists());
}

#[test]
fn owner_and_mode_are_applied_on_each_write_and_a_change_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (targets, content) = (targets(folder.path()), content("01"));
    targets.write(&content).unwrap();
    for name in ["all.pem", "split/current/key.pem", "split/current/svid.pem"] {
        let path = folder.path().join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
        assert!(!targets.is_as_written(&content), "{name}");
        targets.write(&content).unwrap();
        assert!(targets.is_as_written(&content), "{name}");
        fs::write(&path, "other").unwrap();
        assert!(!targets.is_as_written(&content), "{name}");
        targets.write(&content).unwrap();
    }
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let owner = Some(Owner { user: uid.to_string(), group: Some(gid.to_string()) });
    let targets = Targets { owner, ..targets };
    targets.write(&content).unwrap();
    assert!(targets.is_as_written(&content));
}

#[test]
fn names_of_users_and_groups_are_looked_up_and_a_missing_one_is_named() {
    let owner =
        |user: &str, group: Option<&str>| Owner { user: user.into(), group: group.map(str::to_owned) };
    assert_eq!(ids_of(&owner("root", None)).unwrap(), (Some(0), Some(0)));
    assert_eq!(ids_of(&owner("7", Some("root"))).unwrap(), (Some(7), Some(0)));
    assert_eq!(ids_of(&owner("7", None)).unwrap(), (Some(7), None));
    let error = ids_of(&owner("no-such-user", None)).unwrap_err().to_string();
    assert!(error.contains("no-such-user"), "{error}");
}

#[test]
fn a_reader_of_the_link_always_finds_a_key_that_belongs_to_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let targets = Targets { file: None, ..targets(folder.path()) };
    let contents: Vec<Content> = (0..40).map(|n| content(&n.to_string())).collect();
    targets.write(&contents[0]).unwrap();
    let split = folder.path().join("split");
    let pairs: Vec<(Vec<u8>, Vec<u8>)> = contents
        .iter()
        .map(|content| {
            let files = super::split(content, targets.mode);
            (files[0].bytes.to_vec(), files[1].bytes.to_vec())
        })
        .collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| contents.iter().for_each(|content| targets.write(content).unwrap()));
        while !writer.is_finished() {
            // A careful reader resolves the link once; the version before stays until the next swap.
            let version = fs::canonicalize(split.join("current")).unwrap();
            let read = |name: &str| fs::read(version.join(name));
            if let (Ok(chain), Ok(key)) = (read("svid.pem"), read("key.pem")) {
                assert!(pairs.contains(&(chain, key)));
            }
        }
    });
    assert_eq!(listing(&split).len(), 3, "the link, the newest and the one before");
}

#[test]
fn a_failed_write_leaves_what_was_there_and_nothing_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let split = folder.path().join("split");
    let one_file = Targets { directory: None, ..targets(folder.path()) };
    let directory = Targets { file: None, ..targets(folder.path()) };
    let (before, after) = (content("01"), content("02"));
    one_file.write(&before).unwrap();
    directory.write(&before).unwrap();
    // Nobody can replace a file by a full directory, nor a directory that holds something by a link: not even root.
    fs::remove_file(folder.path().join("all.pem")).unwrap();
    fs::create_dir_all(folder.path().join("all.pem/in the way")).unwrap();
    assert!(one_file.write(&after).is_err());
    fs::remove_file(split.join("current")).unwrap();
    fs::create_dir_all(split.join("current/in the way")).unwrap();
    assert!(directory.write(&after).is_err());
    assert_eq!(listing(folder.path()), ["all.pem", "split"]);
    assert_eq!(listing(&split), ["current", "v-0000000001"]);
    let vanished = targets(&folder.path().join("vanished"));
    assert!(matches!(vanished.write(&after), Err(FileError::Io { .. })));
}

#[test]
fn a_link_that_somebody_planted_is_replaced_and_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let targets = targets(folder.path());
    std::os::unix::fs::symlink(&victim, folder.path().join("all.pem")).unwrap();
    std::os::unix::fs::symlink(&victim, folder.path().join(".all.pem.rhizome-new")).unwrap();
    targets.write(&content("01")).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(folder.path().join("all.pem").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_directory_is_not_followed_out_of_a_folder_that_others_can_change() {
    let folder = tempfile::tempdir().unwrap();
    let (shared, other) = (folder.path().join("shared"), folder.path().join("other"));
    fs::create_dir(&shared).unwrap();
    fs::create_dir(&other).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(&other, shared.join("split")).unwrap();
    let targets = Targets { file: None, ..targets(&shared) };
    assert!(matches!(targets.write(&content("01")), Err(FileError::Untrusted { .. })));
    assert!(matches!(targets.remove(), Err(FileError::Untrusted { .. })));
    assert_eq!(listing(&other), [""; 0]);
    fs::remove_file(shared.join("split")).unwrap();
    assert!(matches!(targets.write(&content("01")), Err(FileError::Untrusted { .. })));
    assert_eq!(listing(&shared), [""; 0], "nor made");
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_seen_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (targets, content) = (targets(folder.path()), content("01"));
    targets.write(&content).unwrap();
    let all = folder.path().join("all.pem");
    fs::remove_file(&all).unwrap();
    rustix::fs::mknodat(CWD, &all, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(!targets.is_as_written(&content));
    targets.write(&content).unwrap();
    assert!(targets.is_as_written(&content));
}

#[test]
fn there_is_nothing_to_remove_where_the_folder_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let targets = targets(&folder.path().join("vanished"));
    targets.remove().unwrap();
}

#[test]
fn removing_takes_every_key_away() {
    let folder = tempfile::tempdir().unwrap();
    let targets = targets(folder.path());
    targets.write(&content("01")).unwrap();
    targets.write(&content("02")).unwrap();
    targets.remove().unwrap();
    assert!(!targets.any());
    assert_eq!(listing(folder.path()), ["split"]);
    assert_eq!(listing(&folder.path().join("split")), [""; 0]);
    targets.remove().unwrap();
}
