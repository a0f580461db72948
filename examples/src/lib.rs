//! What the example server is made of. `server.rs` beside this folder is the program.
//!
//! | file | one job |
//! |---|---|
//! | `flags` | every flag and its environment variable |
//! | `datadir` | the data directory: its lock, the node's id, files that only the owner reads |
//! | `wiring` | which backends, and why |
//! | `token` | whose tokens are accepted; `server token` |
//! | `serve` | from the flags to a server that listens, and to its end |
//! | `memory` | what is free goes back to the system |
//! | `images` | `server images`: the images of machines |
//! | `demo` | the ten demo resources |
#![deny(unsafe_code)]

mod datadir;
mod demo;
mod failure;
mod flags;
mod images;
mod memory;
mod serve;
mod token;
mod wiring;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use failure::Failure;
use flags::{Cli, Command};

/// The program: reads the command line, serves until it is told to stop, and answers how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    listen_to_traces();
    let done = match cli.command {
        Some(Command::Token(request)) => token::print(&cli.serve.keys, &cli.serve.data_dir, &request),
        Some(Command::Images(request)) => images::run(&request, &cli.serve.data_dir),
        None => serve::run(cli.serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            ExitCode::FAILURE
        }
    }
}

/// Traces go to standard error, so that standard output holds nothing but the one line of a ready server.
fn listen_to_traces() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HWM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
}

/// A failure with its causes, on one line.
fn tell(failure: &Failure) {
    let mut line = format!("error: {failure}");
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // There is nobody left to tell when standard error is gone.
    let _ = writeln!(std::io::stderr(), "{line}");
}
