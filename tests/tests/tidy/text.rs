//! What the text of the tracked files must and must not hold.
//!
//! Laws: a rule sees paths as git names them and whole texts; an item under `#[cfg(test)]` is no product code. Words that may not stand in the repository are spelled in two halves here, or this file would break its rule.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// One tracked text file.
#[derive(Debug, Clone)]
struct Source {
    path: String,
    text: String,
}

const MAX_LINES: usize = 600;

/// Every call of a constructor named `assertion`: file, type, number of calls. These are the doors where evidence
/// becomes a fact that nobody checks again, so each change here is a decision.
const ASSERTIONS: &[(&str, &str, usize)] = &[
    // An active node record, read from the state.
    ("ca/core/src/nodes.rs", "AttestedCaller", 1),
    // A peer's uid; a verified client certificate with its node record; the same with its administrator's record.
    ("ca/server/src/gate.rs", "AttestedCaller", 3),
    // A join token, redeemed in the same transaction.
    ("ca/server/src/api/nodes.rs", "AttestedCaller", 1),
    // Whoever an administrator asks about, for an explanation that grants nothing.
    ("ca/server/src/api/admin/explain.rs", "AttestedCaller", 1),
    // The server itself, for its own certificate.
    ("ca/server/src/serving.rs", "AttestedCaller", 1),
    // A record that is in the ledger.
    ("ca/store/src/memory.rs", "Receipt", 1),
    ("ca/store/src/conformance/ledger.rs", "Receipt", 1),
    // A peer's certificate after `verify_peer`.
    ("ca/tls/src/client.rs", "ServerCertVerified", 2),
    ("ca/tls/src/server.rs", "ClientCertVerified", 1),
];

/// The one file that turns our errors into the wire's.
const STATUS_FILE: &str = "ca/server/src/status.rs";

/// Machine paths and registry hosts, each in two halves.
const FOREIGN_WORDS: &[(&str, &str)] = &[
    ("/wo", "rk/"),
    ("/tmp/ba", "sh"),
    ("index.crates", ".io"),
    ("static.crates", ".io"),
    ("pypi", ".org"),
    ("registry.npm", "js.org"),
    ("proxy.go", "lang.org"),
    ("repo1.mav", "en.org"),
    ("deb.deb", "ian.org"),
    ("artifact", "ory"),
];

/// Documents of others that we cite, as their repositories name them.
const DOCUMENTS_OF_OTHERS: &[&str] = &["docs/ISSUANCE-CYCLE.md", "SPIFFE_Workload_API.md"];

/// How a section of the map used to be cited, which no reader could follow; in two halves.
const BARE_SECTION: (&str, &str) = ("architec", "ture §");

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_generated(&self) -> bool {
        self.path.starts_with("proto/src/gen/")
    }

    /// Written by hand and shipped: the sources of `ca/` and `proto/` that are no tests.
    fn is_product(&self) -> bool {
        let ships = self.path.starts_with("ca/") || self.path.starts_with("proto/");
        let test_files = ["/tests.rs", "/testing.rs", "_tests.rs"];
        let tests = self.path.contains("/tests/") || test_files.iter().any(|name| self.path.ends_with(name));
        self.is_rust() && ships && !tests && !self.is_generated()
    }

    /// The lines that ship, numbered from 1, without comments: an item under `#[cfg(test)]` at the margin does not.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut lines = self.text.lines().enumerate();
        std::iter::from_fn(move || {
            let (mut at, mut line) = lines.next()?;
            while line == "#[cfg(test)]" {
                let ends_item = |line: &str| line == "}" || (line.ends_with(';') && !line.starts_with(' '));
                lines.find(|(_, line)| ends_item(line))?;
                (at, line) = lines.next()?;
            }
            Some((at + 1, line.split("//").next().unwrap_or_default()))
        })
    }
}

fn long_files(sources: &[Source]) -> Vec<String> {
    let ours = sources.iter().filter(|source| source.is_rust() && !source.is_generated());
    let long =
        ours.map(|source| (source, source.text.lines().count())).filter(|(_, lines)| *lines > MAX_LINES);
    long.map(|(source, lines)| format!("{} has {lines} lines of {MAX_LINES}", source.path)).collect()
}

fn modules_without_a_duty(sources: &[Source]) -> Vec<String> {
    let product = sources.iter().filter(|source| source.is_product());
    let mute = product.filter(|source| !source.text.starts_with("//!"));
    mute.map(|source| format!("{} does not open with //!", source.path)).collect()
}

fn unfinished_or_silenced(sources: &[Source]) -> Vec<String> {
    const WORDS: [&str; 5] = ["todo!", "unimplemented!", "#[allow(", "#![allow(", "unsafe {"];
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.is_product()) {
        for (at, line) in source.product_lines() {
            if let Some(word) = WORDS.iter().find(|word| line.contains(**word)) {
                complaints.push(format!("{}:{at} has {word}", source.path));
            }
        }
    }
    complaints
}

fn wire_errors_outside_their_file(sources: &[Source]) -> Vec<String> {
    let server = sources.iter().filter(|source| source.path.starts_with("ca/server/src/"));
    let elsewhere = server.filter(|source| source.path != STATUS_FILE && names_wire_status(&source.text));
    elsewhere.map(|source| format!("{} names tonic::Status; only {STATUS_FILE} does", source.path)).collect()
}

/// `tonic::Status`, or `Status` in the braces of a `use tonic::{…}`.
fn names_wire_status(text: &str) -> bool {
    let imports = text.split("use tonic::{").skip(1);
    let mut lists = imports.map(|rest| rest.split(';').next().unwrap_or_default());
    let names = |list: &str| list.split(|c: char| !c.is_alphanumeric()).any(|word| word == "Status");
    text.contains("tonic::Status") || lists.any(names)
}

fn assertions_unlike(table: &[(&str, &str, usize)], sources: &[Source]) -> Vec<String> {
    let mut counts: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for (path, of, listed) in table {
        counts.entry((path, of)).or_default().0 = *listed;
    }
    for source in sources.iter().filter(|source| source.is_product()) {
        for (_, line) in source.product_lines() {
            if let Some((before, _)) = line.split_once("::assertion(") {
                let of = before.rsplit(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
                counts.entry((&source.path, of)).or_default().1 += 1;
            }
        }
    }
    let wrong = counts.into_iter().filter(|(_, (listed, found))| listed != found);
    wrong
        .map(|((path, of), (listed, found))| {
            format!("{path} calls {of}::assertion {found} times; ASSERTIONS lists {listed}")
        })
        .collect()
}

fn foreign_words(sources: &[Source]) -> Vec<String> {
    let words: Vec<String> = FOREIGN_WORDS.iter().map(|(first, second)| format!("{first}{second}")).collect();
    let mut complaints = Vec::new();
    for source in sources {
        for (at, line) in source.text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(word.as_str())) {
                complaints.push(format!("{}:{} holds {word}", source.path, at + 1));
            }
        }
    }
    complaints
}

/// Documents that comments and documents name and that are not in the repository: from its root or, in a document, from
/// where that stands. The words of a link may be short; its target is looked for, too.
fn documents_that_are_not_here(sources: &[Source]) -> Vec<String> {
    let here: BTreeSet<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    let bare = format!("{}{}", BARE_SECTION.0, BARE_SECTION.1);
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_generated()) {
        let directory = source.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        for (at, line) in source.text.lines().enumerate() {
            let said = if source.is_rust() { line.split_once("//").map_or("", |it| it.1) } else { line };
            if said.contains(&bare) {
                complaints.push(format!("{}:{} cites {bare} without a path", source.path, at + 1));
            }
            for name in documents_named(said) {
                let beside = source.path.ends_with(".md")
                    && (here.contains(&*joined(directory, name)) || said.contains(&format!("[{name}](")));
                if !beside && !here.contains(name) && !DOCUMENTS_OF_OTHERS.contains(&name) {
                    complaints.push(format!("{}:{} cites {name}, which is not here", source.path, at + 1));
                }
            }
        }
    }
    complaints
}

/// Every word that ends in `.md` and is no address of the web.
fn documents_named(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|c: char| !c.is_ascii_alphanumeric() && !"._-/".contains(c));
    let names = words.map(|word| word.trim_end_matches('.'));
    names.filter(|name| name.len() > 3 && name.ends_with(".md") && !name.starts_with("//"))
}

/// `name` as seen from `directory`, with `..` followed.
fn joined(directory: &str, name: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Every text file that is tracked or about to be.
fn tracked() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listing = Command::new("git").arg("-C").arg(&root).args(list).output().unwrap();
    assert!(listing.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listing.stderr));
    let listing = String::from_utf8(listing.stdout).unwrap();
    let paths = listing.split('\0').filter(|path| !path.is_empty());
    let read = |path: &str| {
        let text = std::fs::read_to_string(root.join(path)).ok()?;
        Some(Source { path: path.to_owned(), text })
    };
    paths.filter_map(read).collect()
}

#[test]
fn the_tracked_files_are_found() {
    let sources = tracked();
    assert!(sources.iter().any(Source::is_product));
    assert!(sources.iter().any(|source| source.path == "Cargo.lock"));
}

#[test]
fn no_file_is_longer_than_one_sitting() {
    assert_eq!(long_files(&tracked()), [""; 0]);
}

#[test]
fn every_module_says_its_duty_first() {
    assert_eq!(modules_without_a_duty(&tracked()), [""; 0]);
}

#[test]
fn product_code_is_finished_and_silences_no_lint() {
    assert_eq!(unfinished_or_silenced(&tracked()), [""; 0]);
}

#[test]
fn one_file_of_the_server_names_the_wires_error() {
    assert_eq!(wire_errors_outside_their_file(&tracked()), [""; 0]);
}

#[test]
fn facts_are_asserted_only_at_the_listed_doors() {
    assert_eq!(assertions_unlike(ASSERTIONS, &tracked()), [""; 0]);
}

#[test]
fn no_tracked_file_names_a_machine_or_a_registry() {
    assert_eq!(foreign_words(&tracked()), [""; 0]);
}

#[test]
fn every_document_that_is_cited_is_in_the_repository() {
    assert_eq!(documents_that_are_not_here(&tracked()), [""; 0]);
}

mod planted {
    use super::*;

    fn source(path: &str, text: &str) -> [Source; 1] {
        [Source { path: path.to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn a_long_file_is_found_and_a_generated_one_is_not() {
        let long = "x\n".repeat(MAX_LINES + 1);
        assert_eq!(long_files(&source("ca/id/src/a.rs", &long)), ["ca/id/src/a.rs has 601 lines of 600"]);
        assert_eq!(long_files(&source("proto/src/gen/a.rs", &long)), [""; 0]);
        assert_eq!(long_files(&source("ca/id/src/a.rs", &"x\n".repeat(MAX_LINES))), [""; 0]);
    }

    #[test]
    fn a_module_without_a_duty_is_found() {
        assert_eq!(modules_without_a_duty(&source("ca/id/src/a.rs", "use x;\n")).len(), 1);
        assert_eq!(modules_without_a_duty(&source("ca/id/src/a.rs", "//! Duty.\n")), [""; 0]);
        assert_eq!(modules_without_a_duty(&source("ca/id/tests/a.rs", "use x;\n")), [""; 0]);
    }

    #[test]
    fn unfinished_and_silenced_code_is_found() {
        for word in ["todo!()", "unimplemented!()", "#[allow(dead_code)]", "#![allow(x)]", "unsafe { x }"] {
            let found = unfinished_or_silenced(&source("ca/id/src/a.rs", &format!("\n{word}\n")));
            assert_eq!(found.len(), 1, "{word}");
        }
        let around =
            "// todo!\n#[cfg(test)]\nuse x::y;\n#[cfg(test)]\nmod tests {\n    todo!()\n}\ntodo!()\n";
        let found = unfinished_or_silenced(&source("ca/id/src/a.rs", around));
        assert_eq!(found, ["ca/id/src/a.rs:8 has todo!"]);
    }

    #[test]
    fn a_wire_error_outside_its_file_is_found() {
        for text in
            ["fn a() -> tonic::Status", "use tonic::{Request, Status};", "use tonic::{\n    Status,\n};"]
        {
            assert_eq!(
                wire_errors_outside_their_file(&source("ca/server/src/a.rs", text)).len(),
                1,
                "{text}"
            );
            assert_eq!(wire_errors_outside_their_file(&source(STATUS_FILE, text)), [""; 0]);
        }
        let other = "use tonic::{Request, Response};\nuse crate::status::Status;";
        assert_eq!(wire_errors_outside_their_file(&source("ca/server/src/a.rs", other)), [""; 0]);
    }

    #[test]
    fn an_assertion_at_another_door_or_of_another_number_is_found() {
        let door = "ca/server/src/gate.rs";
        let call = source(door, "let caller = AttestedCaller::assertion(principal);");
        let listed = |count| [(door, "AttestedCaller", count)];
        assert_eq!(assertions_unlike(&listed(1), &call), [""; 0]);
        assert_eq!(assertions_unlike(&listed(2), &call).len(), 1);
        assert_eq!(assertions_unlike(&[], &call).len(), 1);
        assert_eq!(assertions_unlike(&[(door, "Receipt", 1)], &call).len(), 2);
        let in_a_test =
            source(door, "#[cfg(test)]\nmod tests {\n    AttestedCaller::assertion(principal)\n}\n");
        assert_eq!(assertions_unlike(&[], &in_a_test), [""; 0]);
    }

    #[test]
    fn a_machine_path_and_a_registry_are_found() {
        for (first, second) in FOREIGN_WORDS {
            let found = foreign_words(&source("README.md", &format!("see {first}{second}x")));
            assert_eq!(found.len(), 1, "{first}{second}");
        }
    }

    #[test]
    fn a_document_that_nobody_finds_is_found() {
        let here = source("ca/docs/attacks.md", "");
        let complaints = |path: &str, text: &str| {
            documents_that_are_not_here(&[here.as_slice(), &source(path, text)].concat()).len()
        };
        let (first, second) = BARE_SECTION;
        let bare = format!("// {first}{second}5");
        // This file is read by the rule, too.
        let comment = |name: &str| format!("//! Sources: {name}.md.");
        for text in [&*bare, &comment("attacks"), &comment("docs/attacks"), &comment("/ca/docs/attacks")] {
            assert_eq!(complaints("ca/id/src/a.rs", text), 1, "{text}");
        }
        let web = comment("https://example.org/a");
        for text in [&*web, &comment("ca/docs/attacks"), "let x = \"a.md\";"] {
            assert_eq!(complaints("ca/id/src/a.rs", text), 0, "{text}");
        }
        for (path, expected) in [("ca/docs/b.md", 0), ("ca/docs/adr/b.md", 1), ("README.md", 1)] {
            assert_eq!(complaints(path, "[attacks](attacks.md#x)"), expected, "{path}");
        }
        assert_eq!(complaints("ca/docs/adr/b.md", "see ../attacks.md."), 0);
    }
}
