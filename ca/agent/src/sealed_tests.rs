//! Tests of the sealed state: what comes back, and what is kept aside.

use rhizome_core::entropy::SeededEntropy;
use rhizome_x509::inspect;
use tempfile::TempDir;

use super::*;
use crate::book::Kept;
use crate::crls::Crls;
use crate::holdings::Svid;
use crate::testing::{at, bundle, entitlement, root, rule, valid};

fn node(name: &str) -> SpiffeId {
    format!("spiffe://example.org/rhizome/node/prod/join_token/{name}").parse().unwrap()
}

fn open(folder: &TempDir) -> Sealed {
    Sealed::open(folder.path(), Arc::new(SeededEntropy::new(1))).unwrap()
}

fn snapshot() -> Snapshot {
    let leaf = root("leaf");
    let svid = Svid {
        // A root's own name, so that it can be read back from the certificate.
        spiffe_id: "spiffe://example.org".parse().unwrap(),
        chain_der: vec![leaf.der().to_vec()],
        key_pkcs8_der: b"the private key".to_vec().into(),
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
        renew_at: at(17),
        serial: hex::encode(inspect(leaf.der()).unwrap().serial),
        hint: "web".to_owned(),
    };
    Snapshot {
        foreign: Vec::new(),
        crls: Crls::default(),
        orders: vec!["renewal-1".to_owned()],
        cursor: 42,
        rules: Some(vec![valid(rule("web", ("unix.uid", "1000"), "/web"))]),
        bundle: Some(Arc::new(bundle(3, &[&root("a"), &root("b")]))),
        svids: vec![Kept { entitlement: entitlement("/web"), svid: Arc::new(svid), renew_at: at(17) }],
    }
}

fn save(folder: &TempDir) -> Snapshot {
    let snapshot = snapshot();
    let renewal = NodeRenewal { serial: "01".to_owned(), at: Some(at(5)) };
    open(folder).save(&node("vm-1"), &snapshot, &renewal).unwrap();
    snapshot
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn what_was_sealed_comes_back_whole() {
    let folder = TempDir::new().unwrap();
    let before = save(&folder);
    let restored = open(&folder).load(Some(&node("vm-1"))).unwrap().unwrap();
    assert_eq!(restored.node, node("vm-1"));
    assert_eq!(restored.renewal, NodeRenewal { serial: "01".to_owned(), at: Some(at(5)) });
    let after = restored.snapshot;
    assert_eq!((after.cursor, &after.rules, &after.bundle), (42, &before.rules, &before.bundle));
    assert_eq!(after.orders, ["renewal-1"]);
    let [Kept { entitlement: known, svid: old, .. }] = before.svids.as_slice() else { panic!() };
    let [Kept { entitlement: found, svid: new, .. }] = after.svids.as_slice() else { panic!() };
    assert_eq!((found, &new.chain_der, &new.key_pkcs8_der), (known, &old.chain_der, &old.key_pkcs8_der));
    assert_eq!(format!("{new:?}"), format!("{old:?}"));
    assert!(open(&folder).load(None).unwrap().is_some(), "also when it is not known which node this is");
}

#[test]
fn nothing_on_disk_can_be_read_by_others_or_without_the_key() {
    let folder = TempDir::new().unwrap();
    save(&folder);
    for name in [STATE, KEY] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
    let sealed = fs::read(folder.path().join(STATE)).unwrap();
    for secret in [&b"the private key"[..], b"dGhlIHByaXZhdGUga2V5", b"spiffe"] {
        assert!(!sealed.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn two_writes_of_the_same_state_differ() {
    let folder = TempDir::new().unwrap();
    let sealed = open(&folder);
    let read = || fs::read(folder.path().join(STATE)).unwrap();
    sealed.save(&node("vm-1"), &snapshot(), &NodeRenewal::default()).unwrap();
    let first = read();
    sealed.save(&node("vm-1"), &snapshot(), &NodeRenewal::default()).unwrap();
    assert_ne!(
        first[HEADER.len()..HEADER.len() + SALT_BYTES],
        read()[HEADER.len()..HEADER.len() + SALT_BYTES]
    );
}

#[test]
fn damaged_cut_off_and_foreign_states_are_kept_aside() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("a flipped bit", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("cut off", |bytes| bytes.truncate(30)),
        ("empty", Vec::clear),
        ("another release's", |bytes| bytes[20] = b'9'),
    ];
    for (what, damage) in damages {
        let folder = TempDir::new().unwrap();
        save(&folder);
        let path = folder.path().join(STATE);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let mut sealed = open(&folder);
        assert!(sealed.load(Some(&node("vm-1"))).unwrap().is_none(), "{what}");
        assert_eq!(fs::read(&sealed.aside()[0].path).unwrap(), bytes, "{what}: nothing is lost");
        assert!(!path.exists());
        save(&folder);
        assert!(open(&folder).load(Some(&node("vm-1"))).unwrap().is_some(), "{what}: life goes on");
    }
    let folder = TempDir::new().unwrap();
    save(&folder);
    let mut sealed = open(&folder);
    assert!(sealed.load(Some(&node("vm-2"))).unwrap().is_none());
    assert!(sealed.aside()[0].cause.contains("vm-1"), "{:?}", sealed.aside());
}

#[test]
fn a_lost_or_exposed_key_costs_the_state_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    save(&folder);
    fs::set_permissions(folder.path().join(KEY), Permissions::from_mode(0o644)).unwrap();
    let mut sealed = Sealed::open(folder.path(), Arc::new(SeededEntropy::new(2))).unwrap();
    assert!(sealed.load(Some(&node("vm-1"))).unwrap().is_none());
    assert_eq!(sealed.aside().len(), 2, "{:?}", sealed.aside());
    assert_eq!(mode(&folder.path().join(KEY)), 0o600);
    assert_eq!(open(&folder).aside(), [], "the new key is good");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "x").unwrap();
    let refused = Sealed::open(&path.join("state"), Arc::new(SeededEntropy::new(1))).err().unwrap();
    assert!(refused.to_string().contains("file"), "{refused}");
}

#[test]
fn what_the_disk_does_not_let_us_read_stays_where_it_is_and_the_start_fails() {
    let folder = TempDir::new().unwrap();
    save(&folder);
    let mut sealed = open(&folder);
    for name in [STATE, KEY] {
        // A link to itself: the system refuses to open it, also for root.
        let (path, away) = (folder.path().join(name), folder.path().join("away"));
        fs::rename(&path, &away).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let refused = match name {
            STATE => sealed.load(Some(&node("vm-1"))).err(),
            _key => Sealed::open(folder.path(), Arc::new(SeededEntropy::new(1))).err(),
        };
        assert!(matches!(refused, Some(SealedError::Io { action: "read", .. })), "{refused:?}");
        assert!(path.is_symlink(), "not put aside");
        fs::rename(&away, &path).unwrap();
    }
    assert!(open(&folder).load(Some(&node("vm-1"))).unwrap().is_some());
}

/// Changes the content of the sealed state.
fn change(folder: &TempDir, change: impl FnOnce(&mut Vec<serde_json::Value>)) {
    let (key, salt) = (open(folder).key, [7; SALT_BYTES]);
    let mut lines = Vec::new();
    stored::write(&mut lines, &node("vm-1"), &snapshot(), &NodeRenewal::default()).unwrap();
    let lines = lines.split_inclusive(|byte| *byte == b'\n');
    let mut records = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    change(&mut records);
    let mut sealed = Vec::new();
    let mut sealing = Sealing::new(&key, &salt, HEADER, &mut sealed).unwrap();
    records.iter().for_each(|record| writeln!(sealing, "{record}").unwrap());
    sealing.finish().unwrap();
    write(folder.path(), STATE, &[HEADER, &salt, &sealed]).unwrap();
}

/// Which record is of this kind.
fn of_kind(records: &[serde_json::Value], kind: &str) -> usize {
    records.iter().position(|record| record.get(kind).is_some()).unwrap()
}

#[test]
fn one_entry_that_cannot_be_used_costs_only_itself() {
    let folder = TempDir::new().unwrap();
    change(&folder, |records| {
        let good = records[of_kind(records, "svid")].clone();
        for (field, bad) in [
            ("chain", serde_json::json!(["bm8gY2VydGlmaWNhdGU="])),
            ("chain", "?".into()),
            ("key", "?".into()),
            ("entitlement", 5.into()),
            ("renew_at", "?".into()),
        ] {
            let mut changed = good.clone();
            changed["svid"][field] = bad;
            records.push(changed);
        }
        records.push(serde_json::json!({ "of_a_later_release": 1 }));
    });
    let restored = open(&folder).load(Some(&node("vm-1"))).unwrap().unwrap().snapshot;
    assert_eq!((restored.svids.len(), restored.cursor), (1, 42));
    assert!(restored.bundle.is_some() && restored.rules.is_some());

    change(&folder, |records| {
        let (node, crls, bundle) =
            (of_kind(records, "node"), of_kind(records, "crls"), of_kind(records, "bundle"));
        records[node]["node"]["rules"] = 2.into();
        records.push(serde_json::json!({ "rule": { "name": "of a later release" } }));
        records[crls]["crls"] = 5.into();
        records[bundle]["bundle"]["anchors"][0] = "?".into();
    });
    let mut sealed = open(&folder);
    let restored = sealed.load(Some(&node("vm-1"))).unwrap().unwrap().snapshot;
    assert_eq!(sealed.aside(), []);
    assert_eq!(restored.svids.len(), 1);
    assert_eq!((restored.rules.unwrap().len(), restored.cursor), (1, 0), "the lost rule is asked for again");
    assert!(restored.bundle.is_none() && restored.crls == Crls::default(), "they come anew");
}

#[test]
fn a_state_of_many_pieces_comes_back_whole() {
    let folder = TempDir::new().unwrap();
    let mut many = snapshot();
    let one = many.svids.pop().unwrap();
    many.svids = (0..500)
        .map(|number| Kept { entitlement: entitlement(&format!("/web-{number}")), ..one.clone() })
        .collect();
    open(&folder).save(&node("vm-1"), &many, &NodeRenewal::default()).unwrap();
    let bytes = fs::metadata(folder.path().join(STATE)).unwrap().len();
    assert!(bytes > 3 * 64 * 1024, "{bytes}");
    let restored = open(&folder).load(Some(&node("vm-1"))).unwrap().unwrap().snapshot;
    let entitlements = |snapshot: &Snapshot| -> Vec<_> {
        snapshot.svids.iter().map(|kept| kept.entitlement.clone()).collect()
    };
    assert!(entitlements(&restored) == entitlements(&many));
    assert!(restored.svids.iter().all(|kept| kept.svid.key_pkcs8_der == one.svid.key_pkcs8_der));
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let folder = TempDir::new().unwrap();
    for mode in [0o777, 0o1777, 0o770, 0o702] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let refused = Sealed::open(folder.path(), Arc::new(SeededEntropy::new(1))).err().unwrap();
        assert!(refused.to_string().contains("others can write to it"), "{mode:o}: {refused}");
    }
    for mode in [0o755, 0o700] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        assert!(Sealed::open(folder.path(), Arc::new(SeededEntropy::new(1))).is_ok(), "{mode:o}");
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
        let refused = check_directory(folder.path()).unwrap_err();
        assert!(refused.to_string().contains("65534"), "{refused}");
    }
}
