//! What `rhizome-agent --help` says, verb by verb, in a plain file. `RHIZOME_BLESS=1` rewrites it; the difference is
//! the review.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use rhizome_agent::program::Program;

fn collect(command: &mut Command, above: &str, text: &mut String) {
    command.build();
    let name = format!("{above} {}", command.get_name()).trim().to_owned();
    text.push_str(&format!("==== {name}\n{}\n", command.render_long_help()));
    for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
        collect(below, &name, text);
    }
}

#[test]
fn the_help_of_every_verb_is_the_one_in_the_golden_file() {
    let mut found = String::new();
    collect(&mut Program::command().term_width(100), "", &mut found);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
    if std::env::var_os("RHIZOME_BLESS").is_some() {
        fs::write(&path, &found).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), found, "RHIZOME_BLESS=1 rewrites it");
}

#[test]
fn the_definition_of_the_command_line_is_sound() {
    Program::command().debug_assert();
}
