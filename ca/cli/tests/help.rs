//! What `--help` says, verb by verb, in plain files. `RHIZOME_BLESS=1` rewrites them; the difference is the review.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _, Parser};
use rhizome_cli::{EXIT_CODES_HELP, Options, Verb};

/// The verbs as the binary has them, without its own.
#[derive(Parser)]
#[command(name = "rhizome", after_help = EXIT_CODES_HELP)]
struct Program {
    #[command(flatten)]
    options: Options,

    #[command(subcommand)]
    verb: Verb,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help")
}

/// Help of `command` and of all below it, by file name.
fn collect(command: &mut Command, path: &str, pages: &mut BTreeMap<String, String>) {
    pages.insert(format!("{path}.txt"), command.render_long_help().to_string());
    for below in command.get_subcommands_mut() {
        if below.get_name() != "help" {
            let path = format!("{path}-{}", below.get_name());
            collect(below, &path, pages);
        }
    }
}

#[test]
fn help_says_what_it_said() {
    let mut command = Program::command().term_width(100);
    command.build();
    let mut pages = BTreeMap::new();
    collect(&mut command, "rhizome", &mut pages);

    if std::env::var_os("RHIZOME_BLESS").is_some() {
        for entry in fs::read_dir(folder()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, page) in &pages {
            fs::write(folder().join(name), page).unwrap();
        }
    }
    let mut committed: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    committed.sort();
    assert_eq!(committed, pages.keys().cloned().collect::<Vec<_>>(), "run with RHIZOME_BLESS=1");
    for (name, page) in &pages {
        assert_eq!(
            &fs::read_to_string(folder().join(name)).unwrap(),
            page,
            "{name}: run with RHIZOME_BLESS=1"
        );
    }
}

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Program::command().debug_assert();
}

/// clap looks a global option up by its name: a verb's own option of that name would be taken for it.
#[test]
fn no_verb_has_an_option_named_like_a_global_one() {
    fn check(command: &Command, globals: &[String]) {
        for below in command.get_subcommands() {
            let own = below.get_arguments().filter(|argument| !argument.is_global_set());
            for argument in own {
                let name = argument.get_id().as_str();
                assert!(!globals.iter().any(|global| global == name), "{}: {name}", below.get_name());
            }
            check(below, globals);
        }
    }
    let command = Program::command();
    let globals: Vec<String> =
        command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
    assert!(globals.len() >= 3);
    check(&command, &globals);
}

fn accepts(line: &str) -> bool {
    Program::try_parse_from(std::iter::once("rhizome").chain(line.split(' '))).is_ok()
}

#[test]
fn what_widens_trust_must_be_said() {
    assert!(accepts("token create --cluster prod --namespace shop"));
    assert!(accepts("token create --cluster prod --all-namespaces"));
    assert!(!accepts("token create --cluster prod"), "no scope is not every scope");
    assert!(!accepts("token create --cluster prod --all-namespaces --namespace shop"));
}

#[test]
fn exactly_one_target_is_revoked() {
    assert!(accepts("cert revoke --node c/m/n --reason stolen"));
    assert!(!accepts("cert revoke --reason stolen"));
    assert!(!accepts("cert revoke --node c/m/n --spiffe-id spiffe://td/a --reason stolen"));
    assert!(!accepts("cert revoke --node c/m/n"), "without a reason");
}

#[test]
fn a_rule_comes_from_a_file_or_from_flags() {
    assert!(accepts("rule put rule.yaml"));
    assert!(accepts("rule put --name web --when namespace=shop --grant /web --yes"));
    assert!(!accepts("rule put rule.yaml --name web"));
    assert!(!accepts("rule put --name web"));
    assert!(!accepts("rule put"));
}

#[test]
fn global_options_stand_before_or_after_the_verb() {
    assert!(accepts("--server https://a:1 status"));
    assert!(accepts("status --server https://a:1 --output json"));
}
