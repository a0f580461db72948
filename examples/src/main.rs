//! The server of `server.rs`, as a program that can be installed and that tests can start.

use std::process::ExitCode;

fn main() -> ExitCode {
    hwm_examples::main()
}
