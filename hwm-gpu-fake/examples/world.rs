//! Writes a world of simulated cards into a folder, for a server to find instead of NVIDIA's library:
//!
//! `cargo run -p hwm-gpu-fake --example world -- FOLDER a100-40gb+mig,a30`, then start the server with
//! `LD_LIBRARY_PATH=FOLDER` and `--gpus nvml`.
#![allow(clippy::print_stdout, reason = "a command prints its answer")]

use std::path::PathBuf;
use std::process::ExitCode;

use hwm_gpu_fake::World;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(cards)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: world FOLDER CARDS, for example: world /tmp/gpus a100-40gb+mig,a30");
        return ExitCode::from(2);
    };
    match write(&PathBuf::from(folder), &cards) {
        Ok(library) => {
            println!("{}", library.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the world was not written: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &std::path::Path, cards: &str) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let own = std::env::current_exe()?;
    let name = "libhwm_gpu_fake.so";
    // Beside the examples' folder, where cargo puts what the crate itself builds.
    let built = own
        .parent()
        .and_then(|examples| examples.parent())
        .map(|target| target.join(name));
    let library = built
        .filter(|p| p.exists())
        .ok_or("build the library first: cargo build -p hwm-gpu-fake")?;
    std::fs::create_dir_all(folder)?;
    Ok(World::of(cards)?.create(folder, &library)?)
}
