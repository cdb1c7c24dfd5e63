//! The `rhizome` binary: a page. Everything is in the library beside it.

use std::process::ExitCode;

use clap::Parser as _;
use rhizome::command::{Arguments, run};

fn main() -> ExitCode {
    ExitCode::from(run(Arguments::parse()).code())
}
