//! What a configuration may hold, and what is said about one that it may not.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

const SAMPLE: &str = include_str!("../../../../deploy/config/rhizome-agent.yaml");

fn fault_of(text: &str) -> String {
    parse(text.as_bytes()).unwrap_err()
}

#[test]
fn the_sample_is_valid_and_shows_every_field() {
    let config = parse(SAMPLE.as_bytes()).unwrap();
    assert_eq!(config.sinks.len(), 2);
    assert_eq!(config.state(), Path::new("/var/lib/rhizome-agent"));
    for field in ["admin_socket", "join_file", "hash_executables", "hash_limit_bytes", "default_svid_name"]
        .into_iter()
        .chain([
            "default_bundle_name",
            "default_all_bundles_name",
            "default_bundle_covers",
            "validator",
            "listen",
            "jwt",
            "foreign_claims",
        ])
        .chain([
            "format",
            "level",
            "spiffe_id",
            "file",
            "directory",
            "owner",
            "mode",
            "pid_file",
            "argv",
            "timeout",
        ])
    {
        assert!(SAMPLE.contains(&format!("{field}:")), "{field}");
    }
    // Nothing in it says anything else than the defaults, the sinks and monitoring apart.
    let usual = Config::default();
    assert_eq!((config.socket(), config.state()), (usual.socket(), usual.state()));
    assert_eq!(format!("{:?}", config.sds()), format!("{:?}", usual.sds()));
    assert!(config.workload_api.jwt == Some(true) && config.workload_api.foreign_claims.is_empty());
}

#[test]
fn nothing_written_means_the_defaults() {
    for empty in ["", "# a comment\n", "---\n", "{}\n"] {
        let config = parse(empty.as_bytes()).unwrap();
        assert!(config.sinks.is_empty() && config.metrics.listen.is_none(), "{empty:?}");
    }
}

#[test]
fn an_unknown_field_is_named_with_its_place_and_the_nearest_known_one() {
    let fault = fault_of("state: /var/lib/x\nsokcet: /run/x\n");
    assert!(fault.starts_with("2:1: `sokcet`: unknown field; did you mean `socket`?"), "{fault}");
    let fault = fault_of("sds:\n  colour: blue\n");
    assert!(fault.contains("known here: default_svid_name"), "{fault}");
}

#[test]
fn values_are_refused_with_their_rule() {
    for (text, said) in [
        ("state: relative\n", "absolute"),
        ("metrics: {listen: '0.0.0.0:9464'}\n", "loopback"),
        ("log: {level: loud}\n", "loud"),
        ("sds: {validator: none}\n", "none"),
        ("sds: {default_svid_name: x, default_bundle_name: x}\n", "same name"),
        ("sinks: [{name: a, attributes: {unix.uid: 1}}]\n", "file"),
        ("sinks: [{name: a, attributes: {}, file: /a}]\n", "without attributes"),
        ("sinks: [{name: a, attributes: {namespace: shop}, file: /a}]\n", "namespace"),
        ("sinks: [{name: a, attributes: {unix.uid: 1}, file: /a, mode: '0644'}]\n", "everybody"),
        ("sinks: [{name: A, attributes: {unix.uid: 1}, file: /a}]\n", "a-z"),
        (
            "sinks: [{name: a, attributes: {unix.uid: 1}, file: /a, reload: {command: {argv: [true]}}}]\n",
            "absolute",
        ),
    ] {
        let fault = fault_of(text);
        assert!(fault.contains(said), "{text}: {fault}");
    }
    let one = "{name: a, attributes: {unix.uid: 1}, file: /a}";
    assert!(fault_of(&format!("sinks: [{one}, {one}]\n")).contains("two are called"));
    let other = one.replace("name: a", "name: b");
    assert!(fault_of(&format!("sinks: [{one}, {other}]\n")).contains("two write to"));
    assert!(!fault_of("a: [").is_empty());
}

#[test]
fn attributes_of_a_sink_are_numbers_texts_or_lists() {
    let text =
        "sinks: [{name: a, attributes: {unix.uid: 33, unix.gid: [33, '34'], unix.user: www}, file: /a}]\n";
    let attributes = parse(text.as_bytes()).unwrap().sinks[0].check().unwrap();
    let found: Vec<String> = attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(found, ["unix.uid=33", "unix.gid=33", "unix.gid=34", "unix.user=www"]);
}

#[test]
fn a_file_that_others_may_write_decides_no_commands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.yaml");
    std::fs::write(&path, "sinks: [{name: a, attributes: {unix.uid: 1}, file: /a}]\n").unwrap();
    for (mode, good) in [(0o644, true), (0o664, false), (0o646, false), (0o600, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(load(Some(&path)).is_ok(), good, "{mode:o}");
    }
    assert!(matches!(load(Some(Path::new("/nonexistent/x"))), Err(ConfigError::Unreadable { .. })));
}
