//! The small binary: a page. Everything is in the library beside it.

use std::process::ExitCode;

use clap::Parser as _;
use rhizome_agent::program::{Exit, Program};

fn main() -> ExitCode {
    let program = Program::parse();
    let exit = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(program.run()),
        Err(cause) => {
            eprintln!("error: threads cannot be started: {cause}");
            Exit::Failed
        }
    };
    ExitCode::from(exit.code())
}
