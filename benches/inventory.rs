//! What looking at cards with 7 slices each costs beyond NVML's own calls, for 1 to 16 cards, and reading all their figures in
//! one pass. On the fake: NVML's own time is the fake's and says nothing of a real driver's.

use std::time::{Duration, Instant};

use hwm_benches::{Figure, median};
use hwm_core::accelerator::Accelerators;
use hwm_gpu::{HostRoots, NvmlAccelerators, Options};
use hwm_gpu_fake::{Fault, FaultKind, World};

const BENCH: &str = "inventory";
const ROUNDS: usize = 30;
const MOST: Duration = Duration::from_millis(5);

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut within = true;
    for (board, cards) in [
        ("a100-40gb", 1),
        ("a100-40gb", 2),
        ("a100-40gb", 4),
        ("a100-40gb", 8),
        ("a100-40gb", 16),
        // Its slices are measured by samples.
        ("h100-80gb", 16),
    ] {
        within &= look(board, cards).await?;
    }
    if within {
        Ok(())
    } else {
        Err("more than 5 ms beyond NVML's own calls".into())
    }
}

/// Answers whether it stayed within its goal.
async fn look(board: &str, cards: usize) -> Result<bool, Error> {
    let folder = tempfile::tempdir()?;
    let library = std::env::current_exe()?.with_file_name("libhwm_gpu_fake.so");
    let mut world = World::of(&format!("{board}+mig*{cards}"))?;
    for card in 0..cards {
        world.faults.extend((0..7).map(|start| Fault {
            function: "nvmlSystemGetDriverVersion".into(),
            call: Some(1),
            kind: FaultKind::Foreign {
                card,
                profile: 19,
                start,
            },
        }));
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
    let slices = inventory
        .cards
        .iter()
        .flat_map(|c| c.instances.iter().map(|i| i.uuid.clone()));
    let mut devices: Vec<String> = slices.collect();
    assert_eq!((inventory.cards.len(), devices.len()), (cards, cards * 7));
    devices.extend(inventory.cards.iter().map(|c| c.uuid.to_string()));

    let mut own: Vec<Duration> = Vec::new();
    let mut nvml: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        gpus.refresh().await?;
        let look = gpus.last_look();
        own.push(look.own);
        nvml.push(look.nvml);
    }
    let what = format!("{cards} {board} with 7 slices each");
    let (own, nvml) = (median(&mut own), median(&mut nvml));
    Figure {
        beside: Some(("the fake's own calls", nvml.as_secs_f64() * 1e6)),
        target: (cards == 16).then_some("at most 5,000 µs"),
        ..Figure::micros(format!("look at {what}, beyond NVML's calls"), own)
    }
    .print(BENCH);

    // The first time slices are watched for a moment.
    gpus.metrics(&devices).await?;
    let mut passes: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        assert_eq!(gpus.metrics(&devices).await?.len(), devices.len());
        passes.push(begun.elapsed());
    }
    Figure {
        target: (cards == 16).then_some("one pass"),
        ..Figure::micros(
            format!("figures of all devices of {what}, the fake's calls included"),
            median(&mut passes),
        )
    }
    .print(BENCH);
    Ok(own <= MOST)
}
