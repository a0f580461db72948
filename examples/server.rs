//! The server: everything of hwm behind one HTTP API.
//!
//! ```text
//! cargo run --release --example server -- --help
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    hwm_examples::main()
}
