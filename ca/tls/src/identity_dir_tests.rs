//! The identity directory on a real file system.

use tempfile::TempDir;

use super::*;
use crate::support::{Authority, Issued, bundle};

const WEB: &str = "spiffe://td/rhizome/admin/alice";

struct Home {
    _home: TempDir,
    dir: IdentityDir,
    authority: Authority,
}

fn home() -> Home {
    let home = tempfile::tempdir().unwrap();
    Home {
        dir: IdentityDir::new(home.path().join("a/b/identity")),
        _home: home,
        authority: Authority::new("td", "g1"),
    }
}

impl Home {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stored(&self, issued: &Issued) -> StoredIdentity {
        StoredIdentity { identity: issued.identity(), bundle: bundle("td", &[&self.authority]) }
    }

    fn save(&self) -> Issued {
        let issued = self.authority.issue(WEB);
        self.dir.save(&self.stored(&issued)).unwrap();
        issued
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.file(name)).unwrap().mode() & 0o7777
    }

    fn refusal(&self) -> IdentityDirError {
        self.dir.load().err().unwrap()
    }
}

#[test]
fn an_identity_reads_back_as_it_was_saved() {
    let home = home();
    assert!(!home.dir.exists());
    let issued = home.save();
    assert!(home.dir.exists());
    let stored = home.dir.load().unwrap();
    assert_eq!(stored.identity.chain_der(), issued.chain);
    assert_eq!(stored.identity.leaf_der(), issued.chain[0]);
    assert_eq!(stored.identity.key_pkcs8_der(), issued.key.as_slice());
    assert_eq!(stored.bundle.anchors(), std::slice::from_ref(&home.authority.root));
    assert_eq!(stored.bundle.trust_domain().as_str(), "td");
}

#[test]
fn the_key_is_for_its_owner_alone_whatever_the_umask_and_nothing_temporary_stays() {
    // The most careless umask there is; the other tests of this process do not mind it.
    rustix::process::umask(rustix::fs::Mode::empty());
    let home = home();
    home.save();
    home.save();
    assert_eq!(home.mode(KEY), 0o600);
    assert_eq!(home.mode(""), 0o700);
    for name in [CHAIN, BUNDLE, TRUST_DOMAIN] {
        assert_eq!(home.mode(name), 0o644, "{name}");
    }
    let mut names: Vec<_> = fs::read_dir(home.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [BUNDLE, CHAIN, KEY, TRUST_DOMAIN]);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command_that_mends_it() {
    let home = home();
    home.save();
    fs::set_permissions(home.file(KEY), PermissionsExt::from_mode(0o640)).unwrap();
    let error = home.refusal();
    assert!(matches!(error, IdentityDirError::Exposed { mode: 0o640, .. }), "{error}");
    assert!(error.to_string().ends_with(&format!("chmod 600 {}", home.file(KEY).display())), "{error}");
}

#[test]
fn a_save_cut_off_after_any_of_its_writes_loads_as_the_old_or_the_new_identity() {
    let home = home();
    let old = home.save();
    let new = home.authority.issue(WEB);
    // After the next key was written: still the old identity.
    home.dir.write(NEXT_KEY, key_pem(&new.key).as_bytes(), 0o600).unwrap();
    assert_eq!(home.dir.load().unwrap().identity.chain_der(), old.chain);
    // After the chain was written: already the new one.
    home.dir.write(CHAIN, chain_pem(&new.chain).as_bytes(), 0o644).unwrap();
    let loaded = home.dir.load().unwrap().identity;
    assert_eq!(loaded.chain_der(), new.chain);
    assert_eq!(loaded.key_pkcs8_der(), new.key.as_slice());
    // And the next save is not hindered by what was left.
    let third = home.save();
    assert_eq!(home.dir.load().unwrap().identity.chain_der(), third.chain);
    assert!(!home.file(NEXT_KEY).exists());
}

#[test]
fn a_first_save_cut_off_before_its_key_was_renamed_loads() {
    let home = home();
    home.save();
    fs::rename(home.file(KEY), home.file(NEXT_KEY)).unwrap();
    assert!(home.dir.load().is_ok());
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let home = home();
    home.save();
    let other = home.authority.issue(WEB);
    home.dir.write(KEY, key_pem(&other.key).as_bytes(), 0o600).unwrap();
    let error = home.refusal();
    let expected =
        IdentityDirError::Identity { path: home.dir.path().to_owned(), cause: IdentityError::KeyMismatch };
    assert_eq!(error, expected);
}

#[test]
fn missing_and_damaged_files_are_named() {
    for name in [KEY, CHAIN, BUNDLE, TRUST_DOMAIN] {
        let home = home();
        home.save();
        fs::write(home.file(name), "junk\n/").unwrap();
        let error = home.refusal();
        assert!(matches!(error, IdentityDirError::Malformed { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{name}: {error}");
        fs::remove_file(home.file(name)).unwrap();
        let error = home.refusal();
        assert!(matches!(error, IdentityDirError::Missing { .. }), "{name}: {error}");
    }
}

#[test]
fn a_bundle_alone_can_be_replaced() {
    let home = home();
    let issued = home.save();
    let next = Authority::new("td", "g2");
    home.dir.save_bundle(&bundle("td", &[&home.authority, &next])).unwrap();
    let stored = home.dir.load().unwrap();
    assert_eq!(stored.bundle.anchors().len(), 2);
    assert_eq!(stored.identity.chain_der(), issued.chain);
}

#[test]
fn our_pem_is_what_other_parsers_expect() {
    let text = chain_pem(&[vec![0; 48], vec![1; 49]]);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 3 + 4);
    assert!(lines.iter().all(|line| line.len() <= 65 && line.ends_with('\n')));
}

#[test]
fn no_byte_of_the_key_is_in_any_refusal() {
    let home = home();
    let issued = home.save();
    let pem = fs::read_to_string(home.file(KEY)).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    fs::write(home.file(KEY), pem.replace("PRIVATE KEY", "SECRET KEY")).unwrap();
    fs::set_permissions(home.file(KEY), PermissionsExt::from_mode(0o600)).unwrap();
    let relabelled = home.refusal();
    fs::write(home.file(KEY), pem.replace("-----END", "-----END END")).unwrap();
    let said = format!("{relabelled} {relabelled:?} {} {:?}", home.refusal(), home.refusal());
    assert!(!body.is_empty() && !issued.key.is_empty());
    for at in 0..body.len() - 12 {
        assert!(!said.contains(&body[at..at + 12]), "{said}");
    }
}
