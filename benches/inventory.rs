//! What looking at 16 cards with 7 slices each costs beyond NVML's own calls, and reading all their figures in
//! one pass. On the fake: NVML's own time is the fake's and says nothing of a real driver's.
#![allow(clippy::print_stdout, reason = "a bench reports")]

use std::time::{Duration, Instant};

use hwm_core::accelerator::Accelerators;
use hwm_gpu::{HostRoots, NvmlAccelerators, Options};
use hwm_gpu_fake::{FaultKind, World};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let library = std::env::current_exe()?.with_file_name("libhwm_gpu_fake.so");
    let mut world = World::of("a100-40gb+mig*16")?;
    for card in 0..16 {
        for start in 0..7 {
            let kind = FaultKind::Foreign {
                card,
                profile: 19,
                start,
            };
            world.faults.push(hwm_gpu_fake::Fault {
                function: "nvmlSystemGetDriverVersion".into(),
                call: Some(1),
                kind,
            });
        }
    }
    let mut options = Options::new(folder.path().join("state"));
    options.library = Some(world.create(folder.path(), &library)?);
    options.roots = HostRoots {
        sys: folder.path().join("sys"),
        ..HostRoots::default()
    };
    let gpus = NvmlAccelerators::open(options).await?;
    World::edit(folder.path(), |w| w.set_faults(Vec::new()))?;
    gpus.refresh().await?;
    let inventory = gpus.inventory();
    let slices: Vec<String> = inventory
        .cards
        .iter()
        .flat_map(|c| c.instances.iter().map(|i| i.uuid.clone()))
        .collect();
    assert_eq!((inventory.cards.len(), slices.len()), (16, 112));

    let mut own: Vec<Duration> = Vec::new();
    let mut nvml: Vec<Duration> = Vec::new();
    for _ in 0..30 {
        gpus.refresh().await?;
        let look = gpus.last_look();
        own.push(look.own);
        nvml.push(look.nvml);
    }
    own.sort_unstable();
    nvml.sort_unstable();
    println!(
        "look at 16 cards, 112 slices: {:?} beyond NVML's calls (median; worst {:?})",
        own[15], own[29]
    );
    println!("                              {:?} in the fake's calls", nvml[15]);
    let begun = Instant::now();
    let figures = gpus.metrics(&slices).await?;
    println!(
        "figures of {} slices in one pass: {:?}, the fake's calls included",
        figures.len(),
        begun.elapsed()
    );
    if own[15] > Duration::from_millis(5) {
        return Err("more than 5 ms beyond NVML's own calls".into());
    }
    Ok(())
}
