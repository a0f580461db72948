//! The node's GPUs.

use std::sync::Arc;

use hwm_core::accelerator::Accelerators;
use hwm_core::testing::sim::{Sim, SimBoard, SimCard, SimProfile, SimUnits};
use hwm_core::units::Bytes;
use hwm_gpu::boards::SimulatedCard;
use hwm_gpu::{Adopt, NvmlAccelerators, Options, Simulated};

use super::Place;
use crate::failure::Failure;
use crate::flags::Gpus;

/// Chooses, and says what was taken and why.
pub(super) async fn choose(
    wanted: &Gpus,
    place: &Place<'_>,
    sim: Option<&Sim>,
) -> Result<Option<Arc<dyn Accelerators>>, Failure> {
    match wanted {
        Gpus::None => {
            tracing::info!("gpus: none, as asked");
            Ok(None)
        }
        Gpus::Sim(cards) => {
            tracing::warn!(
                "gpus: {} SIMULATED, as asked; no GPU is really there",
                cards.len()
            );
            let boards = cards.iter().map(|card| card.board).collect();
            let simulated =
                |sim: &Sim| Simulated::new(sim.accelerators(), boards, place.flags.gpu_switch_mig);
            Ok(sim.map(|sim| Arc::new(simulated(sim)) as Arc<dyn Accelerators>))
        }
        Gpus::Nvml => {
            tracing::info!("gpus: nvml, as asked");
            Ok(Some(Arc::new(nvml(place).await?)))
        }
        Gpus::Auto => {
            let gpus = nvml(place).await?;
            let inventory = gpus.inventory();
            match (inventory.cards.len(), inventory.reason) {
                (cards, None) => {
                    tracing::info!("gpus: nvml with {cards} cards, because it answers");
                    Ok(Some(Arc::new(gpus)))
                }
                // All of them may be passed through to machines: the kernel knows them.
                (cards @ 1.., Some(reason)) => {
                    tracing::warn!(
                        "gpus: {cards} cards that the kernel knows, though NVML is away ({reason})"
                    );
                    Ok(Some(Arc::new(gpus)))
                }
                (0, Some(reason)) => {
                    tracing::info!("gpus: none, because NVML is away ({reason}); try --gpus sim:a100-40gb");
                    Ok(None)
                }
            }
        }
    }
}

async fn nvml(place: &Place<'_>) -> Result<NvmlAccelerators, Failure> {
    let flags = place.flags;
    let options = Options {
        switch_mig: flags.gpu_switch_mig,
        adopt: match flags.gpu_adopt.as_slice() {
            [] => Adopt::None,
            all if all.iter().any(|uuid| uuid == "all") => Adopt::All,
            these => Adopt::These(these.to_vec()),
        },
        also: flags.gpu_devices.clone(),
        ..Options::new(place.data.join("gpus"))
    };
    NvmlAccelerators::open(options)
        .await
        .map_err(|source| Failure::Backend {
            what: "NVML",
            source: Box::new(source),
        })
}

/// A card as the simulator has it, from hwm-gpu's description of its board.
pub(super) fn simulated(card: &SimulatedCard) -> SimCard {
    let board = card.board;
    // Every board has one, as a test of hwm-gpu shows.
    let geometry = board.geometry().ok();
    let limits = geometry.as_ref().map_or(&[][..], |g| g.limits());
    let profiles = geometry.iter().flat_map(|g| g.profiles()).enumerate();
    SimCard {
        board: SimBoard {
            name: board.name,
            model: board.model,
            memory: Bytes::from_mb(board.memory_mib),
            slots: geometry.as_ref().map_or(0, |g| g.slots().into()),
            units: limits
                .iter()
                .map(|limit| SimUnits {
                    name: limit.name.clone(),
                    total: limit.total.into(),
                })
                .collect(),
            live_mode_switch: board.architecture.switches_live(),
            profiles: profiles
                .map(|(at, profile)| SimProfile {
                    name: profile.name.clone(),
                    max: profile.max.into(),
                    starts: profile.starts.iter().map(|s| (*s).into()).collect(),
                    size: profile.size.into(),
                    units: limits.iter().map(|limit| limit.takes[at].into()).collect(),
                    memory: profile.memory,
                })
                .collect(),
        },
        mig: card.mig,
    }
}
