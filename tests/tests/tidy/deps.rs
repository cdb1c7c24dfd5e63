//! What other people's code we build on: its licences, where it comes from, and what we carry twice.
//!
//! Laws: a licence is one of the list, under the terms of each part of its expression; every package comes from the
//! public registry or is ours; a second version of a package has a reason here, and a reason that no longer has its
//! package is a complaint too.
//! Not here: advisories, which need a database that is fetched (`tests/run deps`).
//! Sources: SPDX licence expressions; ADR 0001.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{Metadata, MetadataCommand};

/// Licences whose terms we can keep by naming the package and its licence text.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages under another licence, and why that is well.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("imbl", "MPL-2.0: binds changes of its own files, and we change none"),
    ("imbl-sized-chunks", "MPL-2.0: binds changes of its own files, and we change none"),
    (
        "webpki-roots",
        "CDLA-Permissive-2.0: a list of certificates, whose licence asks that its text goes along",
    ),
];

/// Where packages may come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Packages that stand in the lock file more than once, and who holds the older one.
const TWICE: &[(&str, &str)] = &[
    ("const-oid", "x509-cert of tokio-postgres-rustls wants 0.9"),
    ("der", "x509-cert of tokio-postgres-rustls wants 0.7"),
    ("fallible-iterator", "tokio-postgres wants 0.2"),
    ("foldhash", "of petgraph's hashbrown"),
    ("getrandom", "ring 0.17 wants 0.2"),
    ("hashbrown", "petgraph, governor and dashmap each want an older one"),
    ("logos", "protox-parse wants 0.15; builds only"),
    ("logos-codegen", "of logos"),
    ("logos-derive", "of logos"),
    ("rand_core", "imbl wants 0.9"),
    ("spki", "x509-cert of tokio-postgres-rustls wants 0.7"),
    ("syn", "asn1-rs and prost have not moved to 3; builds only"),
    ("synstructure", "of asn1-rs; builds only"),
    ("unicode-width", "miette wants 0.1; builds only"),
    ("wasi", "of tokio-postgres's whoami; not built here"),
    ("windows-sys", "ring 0.17 wants 0.52; not built here"),
];

#[derive(Clone, Debug)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    source: Option<String>,
}

fn packages(metadata: &Metadata) -> Vec<Package> {
    let package = |it: &cargo_metadata::Package| Package {
        name: it.name.to_string(),
        version: it.version.to_string(),
        licence: it.license.clone(),
        source: it.source.as_ref().map(|source| source.repr.clone()),
    };
    metadata.packages.iter().map(package).collect()
}

/// Whether an SPDX expression can be met: one side of each `OR`, every side of each `AND`. The old `/` is an `OR`.
fn is_met(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (met, rest) = any_of(&words);
    met && rest.is_empty()
}

fn any_of<'w>(words: &'w [&'w str]) -> (bool, &'w [&'w str]) {
    let (mut met, mut rest) = all_of(words);
    while let [word, after @ ..] = rest
        && *word == "OR"
    {
        let (other, after) = all_of(after);
        (met, rest) = (met || other, after);
    }
    (met, rest)
}

fn all_of<'w>(words: &'w [&'w str]) -> (bool, &'w [&'w str]) {
    let (mut met, mut rest) = one(words);
    while let [word, after @ ..] = rest
        && *word == "AND"
    {
        let (other, after) = one(after);
        (met, rest) = (met && other, after);
    }
    (met, rest)
}

fn one<'w>(words: &'w [&'w str]) -> (bool, &'w [&'w str]) {
    match words {
        ["(", inner @ ..] => match any_of(inner) {
            (met, [word, rest @ ..]) if *word == ")" => (met, rest),
            (_, rest) => (false, rest),
        },
        [licence, with, exception, rest @ ..] if *with == "WITH" => {
            (LICENCES.contains(&format!("{licence} WITH {exception}").as_str()), rest)
        }
        [licence, rest @ ..] => (LICENCES.contains(licence), rest),
        [] => (false, &[]),
    }
}

fn complaints(packages: &[Package], twice: &[(&str, &str)]) -> Vec<String> {
    let foreign = || packages.iter().filter(|it| it.source.is_some());
    let excepted = |it: &&Package| EXCEPTIONS.iter().any(|(name, _)| *name == it.name);
    let licences = foreign()
        .filter(|it| !excepted(it) && !it.licence.as_deref().is_some_and(is_met))
        .map(|it| format!("{} {}: its licence {:?} is not on the list", it.name, it.version, it.licence));
    let sources = foreign()
        .filter(|it| it.source.as_deref() != Some(REGISTRY))
        .map(|it| format!("{} {}: it comes from {:?}", it.name, it.version, it.source));
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for it in foreign() {
        versions.entry(&it.name).or_default().insert(&it.version);
    }
    let known = |name: &str| twice.iter().any(|(it, _)| *it == name);
    let doubled = versions
        .iter()
        .filter(|(name, found)| found.len() > 1 && !known(name))
        .map(|(name, found)| format!("{name}: stands in the lock file as {found:?}, without a reason here"));
    let single = twice
        .iter()
        .filter(|(name, _)| versions.get(name).is_none_or(|found| found.len() < 2))
        .map(|(name, _)| format!("{name}: is there once at most; remove its reason"));
    licences.chain(sources).chain(doubled).chain(single).collect()
}

#[test]
fn licences_sources_and_second_versions_of_what_we_build_on_are_those_of_the_lists() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let metadata = MetadataCommand::new()
        .manifest_path(metadata.workspace_root.join("Cargo.toml"))
        .other_options(["--locked".to_owned()])
        .exec()
        .unwrap();
    let packages = packages(&metadata);
    let found = complaints(&packages, TWICE);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(packages.len() > 100, "{} packages", packages.len());
}

#[test]
fn planted_packages_are_complained_about() {
    let package = |name: &str, version: &str, licence: &str, source: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        licence: (!licence.is_empty()).then(|| licence.to_owned()),
        source: Some(source.to_owned()),
    };
    let good = package("a", "1.0.0", "MIT OR Apache-2.0", REGISTRY);
    let cases = [
        (package("b", "1.0.0", "GPL-3.0-only", REGISTRY), "licence"),
        (package("b", "1.0.0", "", REGISTRY), "licence"),
        (package("b", "1.0.0", "MIT AND AGPL-3.0-only", REGISTRY), "licence"),
        (package("b", "1.0.0", "MIT", "git+https://example.org/b"), "comes from"),
        (package("a", "2.0.0", "MIT", REGISTRY), "without a reason"),
    ];
    for (planted, part) in cases {
        let found = complaints(&[good.clone(), planted.clone()], &[]);
        assert!(found.len() == 1 && found.iter().all(|it| it.contains(part)), "{planted:?}: {found:?}");
    }
    assert!(complaints(&[good], &[("a", "why")]).iter().all(|it| it.contains("remove its reason")));
}

#[test]
fn licence_expressions_are_read_as_spdx_says() {
    for met in [
        "MIT",
        "MIT/Apache-2.0",
        "(Apache-2.0 OR MIT) AND BSD-3-Clause",
        "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        "GPL-2.0-only OR MIT AND ISC",
    ] {
        assert!(is_met(met), "{met}");
    }
    for unmet in ["", "GPL-2.0-only", "MIT AND", "(MIT", "MIT ISC", "GPL-2.0-only AND MIT OR GPL-3.0-only"] {
        assert!(!is_met(unmet), "{unmet}");
    }
}
