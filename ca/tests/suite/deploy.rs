//! Every file under `deploy/` is read by something here; what they say about the binary is true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use rhizome::command::Arguments;
use rhizome::config;
use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(name: &str) -> String {
    fs::read_to_string(deploy().join(name)).unwrap()
}

/// The names of the server's metrics in the alerts; those of the agent are compared in `rhizome_agent::observe`.
pub(crate) fn metrics_in_alerts() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rule in rules("rhizome") {
        let expression = rule["expr"].as_str().unwrap().to_owned();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        names.extend(words.filter(|word| word.starts_with("rhizome_")).map(str::to_owned));
    }
    names
}

fn rules(group: &str) -> Vec<Value> {
    let alerts: Value = serde_saphyr::from_str(&read("prometheus/alerts.yaml")).unwrap();
    let groups = alerts["groups"].as_array().unwrap();
    groups.iter().find(|it| it["name"] == group).unwrap()["rules"].as_array().unwrap().clone()
}

#[test]
fn no_file_is_without_a_test() {
    let known = [
        "config/rhizome-agent.yaml",
        "config/rhizome.yaml",
        "container/Containerfile",
        // Real proxies run on these two: tests/tests/e2e/proxies.rs.
        "envoy/client.yaml",
        "envoy/server.yaml",
        "prometheus/alerts.yaml",
        "systemd/rhizome-agent.service",
        "systemd/rhizome.service",
    ];
    let mut found = Vec::new();
    for directory in fs::read_dir(deploy()).unwrap() {
        let directory = directory.unwrap().path();
        for file in fs::read_dir(&directory).unwrap() {
            let path = file.unwrap().path();
            found.push(path.strip_prefix(deploy()).unwrap().display().to_string());
        }
    }
    found.sort();
    assert_eq!(found, known, "add a test for each file, and its name here");
}

#[test]
fn the_sample_configuration_is_valid_and_without_warnings() {
    let loaded = config::load(&deploy().join("config/rhizome.yaml")).unwrap();
    assert_eq!(loaded.warnings, []);
}

/// The settings of a unit, whose sections must be those of a service.
fn settings(unit: &str) -> Vec<(&str, &str)> {
    let mut sections = Vec::new();
    let mut settings = Vec::new();
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(section) => sections.push(section),
            None => settings.push(line.split_once('=').unwrap_or_else(|| panic!("not a setting: {line}"))),
        }
    }
    assert_eq!(sections, ["Unit", "Service", "Install"]);
    settings
}

#[test]
fn the_agents_service_starts_the_agent_where_its_defaults_are() {
    let unit = read("systemd/rhizome-agent.service");
    let settings = settings(&unit);
    let of = |name: &str| settings.iter().find(|(it, _)| *it == name).map_or("", |(_, value)| *value);
    // Its words are those of both binaries.
    rhizome_agent::program::Program::try_parse_from(of("ExecStart").split_whitespace()).unwrap();
    let words = of("ExecStart").split_whitespace().skip(1);
    Arguments::try_parse_from(["rhizome", "agent"].into_iter().chain(words)).unwrap();
    let sample = read("config/rhizome-agent.yaml");
    for path in
        [format!("/var/lib/{}", of("StateDirectory")), format!("/run/{}/agent.sock", of("RuntimeDirectory"))]
    {
        assert!(sample.contains(&path), "{path}");
    }
    // The socket's directory must be closed to others, and open to programs that connect.
    assert_eq!(of("RuntimeDirectoryMode"), "0755");
    let files: usize = of("LimitNOFILE").parse().unwrap();
    assert!(files > 2 * rhizome_agent::socket::Limits::default().connections);
    assert_eq!(of("RestartPreventExitStatus"), rhizome_agent::program::Exit::Usage.code().to_string());
}

#[test]
fn the_service_starts_the_binary_as_the_sample_configuration_expects() {
    let unit = read("systemd/rhizome.service");
    let settings = settings(&unit);
    let of = |name: &str| {
        settings.iter().filter(|(it, _)| *it == name).map(|(_, value)| *value).collect::<Vec<_>>()
    };
    for name in ["ExecStartPre", "ExecStart"] {
        for line in of(name) {
            Arguments::try_parse_from(line.split_whitespace())
                .unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
    let sample = config::load(&deploy().join("config/rhizome.yaml")).unwrap().config;
    let below = |directory: &str, names: &str| -> Vec<PathBuf> {
        names.split_whitespace().map(|name| Path::new(directory).join(name)).collect()
    };
    let state = below("/var/lib", of("StateDirectory")[0]);
    assert!(state.contains(&sample.data));
    let Some(config::Sealing::KeyFile(sealing)) = &sample.keys.sealing else {
        panic!("the sample seals with a file")
    };
    assert!(state.contains(&sealing.parent().unwrap().to_owned()), "the service can write nowhere else");
    assert!(!sealing.starts_with(&sample.data), "the sealing key is apart from what it seals");
    let runtime = below("/run", of("RuntimeDirectory")[0]);
    assert!(runtime.contains(&sample.admin.socket.parent().unwrap().to_owned()));
    let files: u32 = of("LimitNOFILE")[0].parse().unwrap();
    assert!(files > sample.limits.connections * 2);
    for hardening in
        ["NoNewPrivileges", "ProtectSystem", "PrivateTmp", "MemoryDenyWriteExecute", "SystemCallFilter"]
    {
        assert_eq!(of(hardening).len(), 1, "{hardening}");
    }
}

#[test]
fn every_alert_says_what_it_means_and_what_to_do() {
    let mut rules = rules("rhizome");
    rules.append(&mut self::rules("rhizome-agent"));
    let names: BTreeSet<&str> = rules.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert!(rules.len() >= 20 && names.len() == rules.len());
    for rule in &rules {
        for field in
            ["/alert", "/expr", "/labels/severity", "/annotations/summary", "/annotations/description"]
        {
            assert!(rule.pointer(field).is_some_and(Value::is_string), "{field} of {rule}");
        }
    }
    assert!(metrics_in_alerts().len() >= 8);
}

#[test]
fn the_container_builds_with_our_toolchain_and_runs_the_server() {
    let file = read("container/Containerfile");
    let manifest = fs::read_to_string(deploy().join("../Cargo.toml")).unwrap();
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(file.contains(&format!("FROM rust:{version}-")), "the toolchain is {version}");
    let list = |name: &str| -> Vec<String> {
        let line = file.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        serde_json::from_str(line.trim()).unwrap()
    };
    Arguments::try_parse_from(list("ENTRYPOINT").into_iter().chain(list("CMD"))).unwrap();
    for line in
        file.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"))
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        for source in &words[..words.len() - 1] {
            assert!(deploy().join("..").join(source).exists(), "{source}");
        }
    }
    let user = file.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(
        user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)),
        "a number, so that Kubernetes can see it"
    );
}
