//! The small binary: a page. Everything is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    ExitCode::from(rhizome_agent::program::main(&words).code())
}
