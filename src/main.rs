//! The program: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sync_server::cli::run(std::env::args_os(), std::env::vars_os())
}
