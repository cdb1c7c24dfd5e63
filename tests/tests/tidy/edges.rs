//! Which crate may import which, and where the heavy libraries live.
//!
//! Laws: arrows only go down; a heavy library has one home; the decisions (`id`, `x509`, `core`) reach no runtime, no
//! wire and no database, however far one follows their dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// What each crate may import of ours. A crate that is not here fails.
const ARROWS: &[(&str, &[&str])] = &[
    ("rhizome-id", &[]),
    ("rhizome-proto", &[]),
    ("rhizome-x509", &["rhizome-id"]),
    ("rhizome-tls", &["rhizome-id", "rhizome-x509", "rhizome-proto"]),
    ("rhizome-jwt", &["rhizome-id", "rhizome-x509"]),
    ("rhizome-core", &["rhizome-id", "rhizome-x509", "rhizome-jwt"]),
    ("rhizome-store", &["rhizome-id", "rhizome-x509", "rhizome-core"]),
    ("rhizome-keys", &["rhizome-id", "rhizome-x509", "rhizome-jwt", "rhizome-core"]),
    (
        "rhizome-server",
        &["rhizome-id", "rhizome-x509", "rhizome-jwt", "rhizome-core", "rhizome-proto", "rhizome-tls"],
    ),
    (
        "rhizome-agent",
        &["rhizome-id", "rhizome-x509", "rhizome-jwt", "rhizome-core", "rhizome-proto", "rhizome-tls"],
    ),
    ("rhizome-cli", &["rhizome-id", "rhizome-x509", "rhizome-proto", "rhizome-tls"]),
    (
        "rhizome",
        &[
            "rhizome-id",
            "rhizome-x509",
            "rhizome-core",
            "rhizome-store",
            "rhizome-keys",
            "rhizome-proto",
            "rhizome-tls",
            "rhizome-server",
            "rhizome-agent",
            "rhizome-cli",
        ],
    ),
    (
        "rhizome-tests",
        &[
            "rhizome",
            "rhizome-id",
            "rhizome-x509",
            "rhizome-core",
            "rhizome-store",
            "rhizome-keys",
            "rhizome-proto",
            "rhizome-tls",
            "rhizome-server",
            "rhizome-agent",
            "rhizome-cli",
        ],
    ),
];

/// Further arrows that only tests of a crate may use: doubles behind the ports.
const TEST_ARROWS: &[(&str, &[&str])] = &[
    ("rhizome-keys", &["rhizome-store"]),
    ("rhizome-server", &["rhizome-store", "rhizome-keys"]),
    ("rhizome-agent", &["rhizome-store", "rhizome-keys", "rhizome-server"]),
];

/// Heavy libraries and the crates that may name them. `rhizome-tests` may name any.
const HOMES: &[(&str, &[&str])] = &[
    ("axum", &["rhizome-server", "rhizome-agent"]),
    ("clap", &["rhizome-agent", "rhizome-cli", "rhizome"]),
    ("clap_complete", &["rhizome-cli", "rhizome"]),
    ("comfy-table", &["rhizome-cli"]),
    ("cryptoki", &["rhizome-keys"]),
    ("envoy-types", &["rhizome-agent"]),
    ("governor", &["rhizome-server"]),
    ("hyper", &["rhizome-agent", "rhizome-server"]),
    ("imbl", &["rhizome-core"]),
    ("indicatif", &["rhizome-cli"]),
    ("moka", &["rhizome-server"]),
    ("nix", &["rhizome-agent"]),
    ("pem", &["rhizome-x509"]),
    ("prometheus-client", &["rhizome-server", "rhizome-agent"]),
    ("protox", &["rhizome-proto"]),
    ("rcgen", &["rhizome-x509"]),
    ("refinery", &["rhizome-store"]),
    ("rusqlite", &["rhizome-store"]),
    ("rustls", &["rhizome-tls", "rhizome-server", "rhizome-store"]),
    ("rustls-webpki", &["rhizome-x509"]),
    ("serde-saphyr", &["rhizome-agent", "rhizome-cli", "rhizome"]),
    ("tokio-postgres", &["rhizome-store"]),
    ("tokio-postgres-rustls", &["rhizome-store"]),
    ("tokio-rustls", &["rhizome-tls", "rhizome-server"]),
    ("tonic", &["rhizome-proto", "rhizome-tls", "rhizome-server", "rhizome-agent", "rhizome-cli"]),
    ("tonic-health", &["rhizome-server", "rhizome-agent"]),
    ("tonic-prost-build", &["rhizome-proto"]),
    ("tonic-reflection", &["rhizome-server", "rhizome-agent"]),
    ("webpki-roots", &["rhizome-tls"]),
    ("tracing-subscriber", &["rhizome-agent", "rhizome"]),
    ("x509-parser", &["rhizome-x509"]),
];

/// What the pure crates must not reach over normal dependencies, at any distance.
const PURE: &[&str] = &["rhizome-id", "rhizome-x509", "rhizome-jwt", "rhizome-core"];
const IMPURE: &[&str] = &["tokio", "tonic", "rusqlite", "hyper", "axum", "tracing-subscriber"];

/// What the agent on every machine must not carry, at any distance: databases, clusters, the server, its stores.
const SMALL: &[&str] = &["rhizome-agent"];
const LARGE: &[&str] = &[
    "rhizome",
    "rhizome-cli",
    "rhizome-keys",
    "rhizome-server",
    "rhizome-store",
    "governor",
    "k8s-openapi",
    "kube",
    "libsqlite3-sys",
    "moka",
    "postgres",
    "refinery",
    "rusqlite",
    "tokio-postgres",
];

const TESTS: &str = "rhizome-tests";

/// One line of a manifest: who names whom, and whether only for tests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    for_tests: bool,
}

/// Normal dependencies by package name, over everything that was resolved.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn listed<'a>(table: &'a [(&str, &[&'a str])], name: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(row, _)| *row == name).map(|(_, values)| *values)
}

fn crates_without_a_row(members: &[String]) -> Vec<String> {
    let unknown = members.iter().filter(|name| listed(ARROWS, name).is_none());
    unknown.map(|name| format!("{name} has no row in ARROWS; say what it may import")).collect()
}

fn arrows_that_go_up(members: &[String], edges: &[Edge]) -> Vec<String> {
    let ours = edges.iter().filter(|edge| members.contains(&edge.to));
    let wrong = ours.filter(|edge| {
        let tests_only = edge.for_tests.then(|| listed(TEST_ARROWS, &edge.from)).flatten();
        let allowed = [listed(ARROWS, &edge.from), tests_only];
        !allowed.into_iter().flatten().any(|names| names.contains(&edge.to.as_str()))
    });
    wrong.map(|edge| format!("{} may not import {}", edge.from, edge.to)).collect()
}

fn libraries_away_from_home(edges: &[Edge]) -> Vec<String> {
    let wrong = edges.iter().filter(|edge| {
        edge.from != TESTS
            && listed(HOMES, &edge.to).is_some_and(|homes| !homes.contains(&edge.from.as_str()))
    });
    wrong.map(|edge| format!("{} may not name {}", edge.from, edge.to)).collect()
}

fn pure_crates_that_reach(graph: &Graph, pure: &[&str], impure: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    for start in pure {
        let mut seen = BTreeSet::from([*start]);
        let mut paths = vec![vec![*start]];
        while let Some(path) = paths.pop() {
            let Some(end) = path.last() else { continue };
            if impure.contains(end) {
                complaints.push(format!("{start} reaches {end}: {}", path.join(" → ")));
            }
            for next in graph.get(*end).into_iter().flatten() {
                if seen.insert(next) {
                    paths.push([path.as_slice(), &[next.as_str()]].concat());
                }
            }
        }
    }
    complaints
}

/// `direct` holds each resolved direct dependency of a member as (name, version).
fn libraries_in_two_versions(direct: &BTreeSet<(String, String)>) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, version) in direct {
        versions.entry(name).or_default().push(version);
    }
    let several = versions.into_iter().filter(|(_, found)| found.len() > 1);
    several.map(|(name, found)| format!("{name} in versions {}", found.join(", "))).collect()
}

/// A member's manifest takes lints and every version from the workspace.
fn manifests_on_their_own(manifests: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in manifests {
        if !text.contains("[lints]\nworkspace = true") {
            complaints.push(format!("{path} does not inherit the lints: add [lints] workspace = true"));
        }
        let mut in_dependencies = false;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if line.starts_with('[') {
                in_dependencies = line.trim_end_matches(']').ends_with("dependencies");
            } else if in_dependencies && !line.contains("workspace = true") {
                complaints.push(format!("{path}: `{line}` states its own version; use the workspace's"));
            }
        }
    }
    complaints
}

/// The workspace forbids unsafe code, and no member relaxes it (members cannot: they inherit every lint).
fn unsafe_code_is_forbidden(workspace_manifest: &str) -> Vec<String> {
    let lints = workspace_manifest.split("[workspace.lints.rust]").nth(1).unwrap_or_default();
    let table = lints.split("\n[").next().unwrap_or_default();
    match table.lines().any(|line| line.trim() == r#"unsafe_code = "forbid""#) {
        true => Vec::new(),
        false => vec![r#"[workspace.lints.rust] lacks unsafe_code = "forbid""#.to_owned()],
    }
}

fn metadata() -> Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    MetadataCommand::new()
        .cargo_path(env!("CARGO"))
        .manifest_path(manifest)
        .exec()
        .expect("cargo metadata answers")
}

fn member_names(metadata: &Metadata) -> Vec<String> {
    metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect()
}

fn edges(metadata: &Metadata) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            edges.push(Edge {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                for_tests: dependency.kind == DependencyKind::Development,
            });
        }
    }
    edges
}

/// The normal dependencies of everything, and the direct ones of our members with their versions.
fn resolved(metadata: &Metadata) -> (Graph, BTreeSet<(String, String)>) {
    let (mut graph, mut direct) = (Graph::new(), BTreeSet::new());
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    for node in &resolve.nodes {
        let from = &metadata[&node.id];
        for dependency in &node.deps {
            let to = &metadata[&dependency.pkg];
            if dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal) {
                graph.entry(from.name.to_string()).or_default().insert(to.name.to_string());
            }
            if metadata.workspace_members.contains(&node.id) {
                direct.insert((to.name.to_string(), to.version.to_string()));
            }
        }
    }
    (graph, direct)
}

#[test]
fn every_crate_imports_only_what_lies_below_it() {
    let metadata = metadata();
    let (members, edges) = (member_names(&metadata), edges(&metadata));
    assert_eq!(crates_without_a_row(&members), [""; 0]);
    assert_eq!(arrows_that_go_up(&members, &edges), [""; 0]);
}

#[test]
fn every_heavy_library_is_named_only_in_its_home() {
    assert_eq!(libraries_away_from_home(&edges(&metadata())), [""; 0]);
}

#[test]
fn the_decisions_reach_no_runtime_no_wire_and_no_database() {
    let (graph, _) = resolved(&metadata());
    assert!(graph.contains_key("rhizome-core"), "the graph has our crates");
    assert_eq!(pure_crates_that_reach(&graph, PURE, IMPURE), [""; 0]);
}

#[test]
fn the_agent_carries_no_database_no_cluster_and_no_server() {
    let (graph, _) = resolved(&metadata());
    assert!(graph["rhizome-agent"].contains("tonic"), "the graph has the agent");
    assert_eq!(pure_crates_that_reach(&graph, SMALL, LARGE), [""; 0]);
}

#[test]
fn every_library_we_name_has_one_version() {
    let (_, direct) = resolved(&metadata());
    assert_eq!(libraries_in_two_versions(&direct), [""; 0]);
}

#[test]
fn every_member_takes_lints_and_versions_from_the_workspace() {
    let metadata = metadata();
    let manifests: Vec<_> = metadata
        .workspace_packages()
        .iter()
        .map(|package| {
            let path = &package.manifest_path;
            (path.to_string(), std::fs::read_to_string(path).unwrap())
        })
        .collect();
    assert_eq!(manifests_on_their_own(&manifests), [""; 0]);
    let root = std::fs::read_to_string(metadata.workspace_root.join("Cargo.toml")).unwrap();
    assert_eq!(unsafe_code_is_forbidden(&root), [""; 0]);
}

mod planted {
    use super::*;

    fn edge(from: &str, to: &str, for_tests: bool) -> Edge {
        Edge { from: from.to_owned(), to: to.to_owned(), for_tests }
    }

    #[test]
    fn an_arrow_that_goes_up_is_found() {
        let members = ["rhizome-id", "rhizome-core", "rhizome-server", "rhizome-store"].map(str::to_owned);
        let up = edge("rhizome-id", "rhizome-core", false);
        let down = edge("rhizome-core", "rhizome-id", false);
        assert_eq!(arrows_that_go_up(&members, &[up, down]), ["rhizome-id may not import rhizome-core"]);
        let double = edge("rhizome-server", "rhizome-store", true);
        let shortcut = edge("rhizome-server", "rhizome-store", false);
        assert_eq!(
            arrows_that_go_up(&members, &[double, shortcut]),
            ["rhizome-server may not import rhizome-store"]
        );
        assert_eq!(crates_without_a_row(&["rhizome-new".to_owned()]).len(), 1);
    }

    #[test]
    fn a_library_away_from_home_is_found() {
        let astray = [edge("rhizome-core", "rusqlite", true), edge("rhizome-tests", "rusqlite", false)];
        assert_eq!(libraries_away_from_home(&astray), ["rhizome-core may not name rusqlite"]);
    }

    #[test]
    fn a_runtime_behind_two_libraries_is_found() {
        let graph: Graph = [("core", "a"), ("a", "b"), ("b", "tokio"), ("b", "a")].into_iter().fold(
            Graph::new(),
            |mut graph, (from, to)| {
                graph.entry(from.to_owned()).or_default().insert(to.to_owned());
                graph
            },
        );
        assert_eq!(
            pure_crates_that_reach(&graph, &["core"], &["tokio"]),
            ["core reaches tokio: core → a → b → tokio"]
        );
        assert_eq!(pure_crates_that_reach(&graph, &["core"], &["tonic"]), [""; 0]);
    }

    #[test]
    fn a_library_in_two_versions_is_found() {
        let direct = [("hex", "0.4.3"), ("hex", "0.3.0"), ("time", "0.3.1")];
        let direct = direct.map(|(name, version)| (name.to_owned(), version.to_owned())).into();
        assert_eq!(libraries_in_two_versions(&direct), ["hex in versions 0.3.0, 0.4.3"]);
    }

    #[test]
    fn a_manifest_on_its_own_is_found() {
        let alone = "[package]\nname = \"x\"\n[dependencies]\nhex = \"0.4\"\n".to_owned();
        assert_eq!(manifests_on_their_own(&[("x".to_owned(), alone)]).len(), 2);
        let inherits = "[dependencies]\nhex.workspace = true\n[lints]\nworkspace = true\n".to_owned();
        assert_eq!(manifests_on_their_own(&[("x".to_owned(), inherits)]), [""; 0]);
    }

    #[test]
    fn a_workspace_that_permits_unsafe_code_is_found() {
        assert_eq!(unsafe_code_is_forbidden("[workspace.lints.rust]\nunsafe_code = \"warn\"\n").len(), 1);
        let elsewhere = "[workspace.lints.rust]\nx = 1\n[other]\nunsafe_code = \"forbid\"\n";
        assert_eq!(unsafe_code_is_forbidden(elsewhere).len(), 1);
    }
}
