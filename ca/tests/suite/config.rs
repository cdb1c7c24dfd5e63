//! The configuration file: every fault at once, each at its place.

use proptest::prelude::*;
use rhizome::config::{Loaded, MAX_BYTES, MAX_FAULTS, Sealing, parse};

const SAMPLE: &str = include_str!("../../../deploy/config/rhizome.yaml");

const LEAST: &str = "trust_domain: example.org\nnames: [ca.example.org]\nkeys: {sealing_key_file: /k}\n";

fn faults_of(text: &str) -> Vec<String> {
    match parse(text.as_bytes()) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(ToString::to_string).collect(),
    }
}

fn loaded(text: &str) -> Loaded {
    parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{}", faults.report("sample")))
}

#[test]
fn the_sample_means_what_the_defaults_are() {
    let sample = loaded(SAMPLE);
    assert_eq!(sample.warnings, []);
    let mut config = sample.config;
    let least = loaded(LEAST).config;
    assert_eq!(config.keys.sealing, Some(Sealing::KeyFile("/var/lib/rhizome-sealing/sealing.key".into())));
    assert_eq!(config.ip_addresses, ["127.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(config.admin.uids.len(), 1);
    config.keys = least.keys.clone();
    config.ip_addresses = Vec::new();
    config.admin.uids.clear();
    config.web = None;
    assert_eq!(config, least, "the sample shows a default that is not the default");
}

#[test]
fn the_least_configuration_names_a_domain_a_host_and_a_seal() {
    let config = loaded(LEAST).config;
    assert_eq!(config.advertise[0].to_string(), "ca.example.org:8443");
    let config = loaded("trust_domain: td\nlisten: 192.0.2.1:443\nkeys: {sealing_key_env: KEY}\n").config;
    assert_eq!(config.advertise[0].to_string(), "192.0.2.1:443");
    assert_eq!(config.ip_addresses.len(), 1);
    let config = loaded("trust_domain: td\nlisten: 127.0.0.1:0\nkeys: {danger_unsealed: true}\n").config;
    assert_eq!(
        (config.advertise.len(), config.ip_addresses.len()),
        (0, 1),
        "the server advertises the port it gets"
    );
}

#[test]
fn all_faults_are_reported_at_once_with_line_column_field_and_remedy() {
    let text = "\
trust_domian: example.org
replica: -r1
listen: localhost
advertise: ca.example.org:8443
names:
  - CA.example.org
  - 0.0.0.0
data: lib/rhizome
admin:
  sockt: /run/admin.sock
  uids: {alice: operator, 7: root}
web: [1]
keys:
  sealing_key_file: key
  danger_unsealed: yes
authority: {algorithm: rsa, issuer_ttl: 1w}
policy:
  workload_ttl: 2h
  workload_max_ttl: 1h
  token_ttl:
limits: {connections: many, workers: \"4\"}
log: {level: loud, format: xml}
colour: blue
";
    let found = faults_of(text);
    let expected = [
        "1:1: trust_domain: required, but not given; add `trust_domain: example.org`",
        "1:1: trust_domian: unknown field; did you mean `trust_domain`?",
        "2:10: replica: the replica name holds byte 0x2d at offset 0;",
        "3:9: listen: `localhost` is not an address with a port; write ADDRESS:PORT",
        "4:12: advertise: a list belongs here, not a single value; write [a, b]",
        "6:5: names[0]: `CA.example.org` is neither a DNS name nor an IP address:",
        "7:5: names[1]: 0.0.0.0 is a wildcard, nobody can verify it; write the name",
        "8:7: data: `lib/rhizome` is not an absolute path; write an absolute path",
        "10:3: admin.sockt: unknown field; did you mean `socket`?",
        "11:10: admin.uids.alice: `alice` is not a user id; write the number that `id -u USER` prints",
        "11:30: admin.uids.7: `root` is not known here; write one of: viewer, operator, security",
        "12:6: web: fields belong here, not a list; write `name: value` lines",
        "14:21: keys.sealing_key_file: `key` is not an absolute path;",
        "15:20: keys.danger_unsealed: `yes` is not true or false; write true or false",
        "16:24: authority.algorithm: `rsa` is not known here; write one of: ecdsa-p256, ecdsa-p384",
        "16:41: authority.issuer_ttl: `1w` is not a lifetime between 1s and 36500d;",
        "18:17: policy.workload_ttl: 2h is more than workload_max_ttl (1h); shorten workload_ttl or lengthen",
        "20:12: policy.token_ttl: no value is given; write one, or remove the field",
        "21:23: limits.connections: `many` is not a whole number in range; write a number from 1 to 1000000",
        "21:38: limits.workers: `4` is not a whole number in range;",
        "22:14: log.level: `loud` is not known here; write one of: error, warn, info, debug, trace",
        "22:28: log.format: `xml` is not known here; write one of: json, text",
        "23:1: colour: unknown field; known here: trust_domain, ",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "\nfound    {found}\nexpected {expected}");
    }
}

#[test]
fn fields_that_contradict_each_other_are_faults() {
    let cases = [
        ("keys: {}\n", "1:1: keys: nothing says how private keys are sealed at rest; add `sealing_key_file:"),
        (
            "keys: {sealing_key_file: /k, sealing_key_env: K}\n",
            "1:47: keys: more than one way to seal private keys",
        ),
        (
            "keys: {sealing_key_file: /k, issuers: pkcs11, pkcs11: {module: /m, pin_env: P}}\n",
            "1:47: keys.pkcs11.token: required, but not given; write the token's label",
        ),
        (
            "keys: {root: pkcs11, issuers: pkcs11, pkcs11: {module: /m, token: t}}\n",
            "1:39: keys.pkcs11: nothing says where the token's PIN is; add pin_file or pin_env",
        ),
        (
            "keys: {sealing_key_file: /k, pkcs11: {module: /m, token: t, pin_file: /p}}\n",
            "1:47: keys.pkcs11: no key is in this token; write `root: pkcs11` or `issuers: pkcs11`",
        ),
        (
            "keys: {danger_unsealed: true, root: database}\n",
            "1:37: keys: keys in the database are always sealed",
        ),
        (
            "keys: {root: pkcs11, issuers: files, pkcs11: {module: /m, token: t, pin_env: P}}\n",
            "1:1: keys: nothing says how private keys are sealed at rest;",
        ),
        (
            "authority: {root_ttl: 10d}\n",
            "1:23: authority.issuer_ttl: issuers would live 30d, no shorter than",
        ),
        (
            "authority: {upstream: {servers: ['a:1']}}\n",
            "1:33: authority.upstream.join_file: required beside servers, but not given;",
        ),
        (
            "authority: {upstream: {join_file: /j}}\nstore: {postgres: \"host=/run/p user=r dbname=r\"}\n",
            "1:1: authority.upstream: a cluster's own Rhizome has one server so far",
        ),
        (
            "policy: {node_max_ttl: 60d}\n",
            "1:24: policy.node_max_ttl: 60d is more than authority.issuer_ttl (30d)",
        ),
        ("admin: {uids: {7: viewer, 07: operator}}\n", "1:15: admin.uids: one user id is given twice"),
        ("listen: '[::]:443'\nnames: []\n", "1:9: advertise: agents cannot dial [::]:443"),
        ("replica: r1\nreplica: r2\n", "2:1: replica: given twice; the first is at 1:1"),
    ];
    for (text, expected) in cases {
        let mut whole = text.to_owned();
        for line in LEAST.lines() {
            let name = line.split(':').next().unwrap();
            if !text.contains(&format!("{name}:")) {
                whole.push_str(line);
                whole.push('\n');
            }
        }
        let found = faults_of(&whole);
        assert_eq!(found.len(), 1, "{whole}{found:#?}");
        assert!(found[0].starts_with(expected), "\nfound    {}\nexpected {expected}", found[0]);
    }
}

#[test]
fn a_store_in_postgresql_is_verified_over_tcp_and_has_no_password_in_its_address() {
    let with = |store: &str| faults_of(&format!("{LEAST}store: {{{store}}}\n"));
    let tcp = "postgres: \"postgresql://rhizome@db.example.org/rhizome\"";
    for fine in [
        "postgres: \"host=/run/postgresql user=rhizome dbname=rhizome\"".to_owned(),
        format!("{tcp}, ca_file: /ca.pem, password_file: /password, schema: mesh"),
        format!("{tcp}, ca_file: /ca.pem, password_env: PGPASSWORD"),
    ] {
        assert_eq!(with(&fine), [""; 0], "{fine}");
    }
    for (faulty, told) in [
        (tcp.to_owned(), "store.ca_file"),
        (format!("{tcp}, ca_file: /ca.pem, danger_plaintext: true"), "store.danger_plaintext"),
        (format!("{tcp}, ca_file: /a, password_file: /b, password_env: C"), "store.password_env"),
        ("schema: mesh".to_owned(), "store.postgres"),
        (
            "postgres: \"postgresql://rhizome:secret@db/rhizome\"".to_owned(),
            "a password stands in the address",
        ),
        (format!("{tcp}, ca_file: /a, schema: Mesh"), "store.schema"),
    ] {
        let found = with(&faulty);
        assert!(
            found.len() == 1 && found[0].contains(told) && !found[0].contains("secret"),
            "{faulty}: {found:?}"
        );
    }
    let dangerous = loaded(&format!("{LEAST}store: {{{tcp}, danger_plaintext: true}}\n"));
    assert!(dangerous.warnings.iter().any(|it| it.text.contains("danger_plaintext")));
}

#[test]
fn a_fault_in_one_field_is_not_repeated_by_the_fields_that_depend_on_it() {
    let text = LEAST.to_owned()
        + "authority: {issuer_ttl: soon}\npolicy: {node_max_ttl: 300d, workload_ttl: never}\n";
    assert_eq!(faults_of(&text).len(), 2, "{:#?}", faults_of(&text));
}

#[test]
fn files_that_are_not_text_or_too_large_are_refused_with_a_place() {
    assert!(
        faults_of("a: 1\nb: \0\0\0\n")[0].starts_with("2:4: a NUL byte stands here; the file is damaged")
    );
    let faults = parse(b"a: 1\nbc: \xff\xfe\n").unwrap_err();
    assert!(faults.iter().next().unwrap().to_string().starts_with("2:5: the bytes here are not UTF-8"));
    let padding = "#".repeat(MAX_BYTES);
    assert!(faults_of(&(LEAST.to_owned() + &padding))[0].contains("more than 1 MiB"));
    let fits = format!("{LEAST}#{}\n", "#".repeat(MAX_BYTES - LEAST.len() - 2));
    assert!(parse(fits.as_bytes()).is_ok());
}

#[test]
fn an_empty_file_says_what_is_required() {
    for text in ["", "\n", "# nothing\n", "---\n", "{}\n", "~\n"] {
        let found = faults_of(text);
        assert!(found.iter().any(|fault| fault.contains("trust_domain: required")), "{text:?} {found:#?}");
        assert!(found.iter().any(|fault| fault.contains("keys: nothing says")), "{text:?} {found:#?}");
    }
}

#[test]
fn thousands_of_faults_are_counted_and_a_hundred_shown() {
    let text: String = (0..20_000).map(|line| format!("unknown{line}: 1\n")).collect();
    let faults = parse((LEAST.to_owned() + &text).as_bytes()).unwrap_err();
    assert_eq!(faults.count(), 20_000);
    assert_eq!(faults.iter().count(), MAX_FAULTS);
    assert!(faults.report("c.yaml").ends_with("c.yaml: and 19900 more\n"));
}

#[test]
fn unsafe_choices_and_a_missing_last_newline_are_warned_about() {
    let text = "trust_domain: td\nnames: [ca]\nkeys: {danger_unsealed: true}";
    let warnings = loaded(text).warnings;
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(warnings[0].text.contains("in the clear"));
    assert!(warnings[1].text.contains("cut off"));
}

#[test]
fn every_beginning_of_the_sample_is_accepted_or_has_faults_with_remedies() {
    for end in 0..=SAMPLE.len() {
        if let Err(faults) = parse(&SAMPLE.as_bytes()[..end]) {
            assert!(!faults.is_empty(), "cut off at byte {end}");
            for fault in faults.iter() {
                assert!(
                    !fault.problem.is_empty() && !fault.remedy.is_empty(),
                    "cut off at byte {end}: {fault}"
                );
                assert!(fault.at.line >= 1 && fault.at.column >= 1, "cut off at byte {end}: {fault}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Err(faults) = parse(&bytes) {
            prop_assert!(!faults.is_empty());
        }
    }

    #[test]
    fn no_yaml_punctuation_makes_the_reader_panic(text in "[-a:?\\[\\]{},&*!|>'\"%@` \n\t#~0]{0,120}") {
        if let Err(faults) = parse(text.as_bytes()) {
            prop_assert!(!faults.is_empty());
        }
    }

    #[test]
    fn a_sample_with_one_byte_changed_never_panics(at in 0..SAMPLE.len(), byte in any::<u8>()) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        bytes[at] = byte;
        if let Err(faults) = parse(&bytes) {
            prop_assert!(!faults.is_empty());
        }
    }
}
