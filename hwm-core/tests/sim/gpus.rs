use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hwm_core::accelerator::{
    Accelerators, Attachment, GpuHealth, Placement, PlacementKind, PlacementRefusal,
};
use hwm_core::backend::{BackendErrorKind, Call};
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::id::{NodeId, ResourceId};
use hwm_core::ledger::Claim;
use hwm_core::testing::backend_suite::samples;
use hwm_core::testing::env::SimEnvironment;
use hwm_core::testing::sim::{Sim, SimBoard, SimOptions, parse_cards};

const CONTAINER: ResourceType = ResourceType::ApplicationContainer;
const MACHINE: ResourceType = ResourceType::VirtualMachine;

fn node(cards: &str) -> (Sim, Arc<dyn Accelerators>) {
    let options = SimOptions {
        cards: parse_cards(cards).unwrap(),
        ..SimOptions::default()
    };
    let sim = Sim::new(Arc::new(SimEnvironment::new(1)), options);
    let gpus = sim.accelerators();
    (sim, gpus)
}

fn id(n: u128) -> ResourceId {
    ResourceId::from_u128(n)
}

fn call(generation: u64) -> Call {
    Call::new(generation, Duration::from_secs(60))
}

fn claims(holder: ResourceId, placements: &[Placement]) -> Vec<Claim> {
    let keys = placements.iter().flat_map(Placement::keys);
    keys.map(|key| Claim {
        node: NodeId::new("n"),
        key,
        holder,
        amount: 1,
    })
    .collect()
}

fn slice(profile: &str) -> GpuRequest {
    GpuRequest::Slice(profile.into())
}

#[tokio::test(start_paused = true)]
async fn slices_fill_a_card_without_overlap_and_then_name_who_is_in_the_way() {
    for board in SimBoard::all() {
        for profile in &board.profiles {
            let (_sim, gpus) = node(&format!("sim:{}+mig", board.name));
            let mut held: Vec<Claim> = Vec::new();
            let mut made = BTreeSet::new();
            for n in 1.. {
                match gpus.plan(&slice(&profile.name), CONTAINER, &held) {
                    Ok(places) => {
                        let grant = gpus
                            .prepare(&call(1), id(n), &places[0], CONTAINER)
                            .await
                            .unwrap();
                        assert_eq!(grant.memory, Some(profile.memory));
                        assert!(made.insert(grant.uuid), "{} {}", board.name, profile.name);
                        let more = claims(id(n), &places);
                        assert!(more.iter().all(|c| held.iter().all(|h| h.key != c.key)));
                        held.extend(more);
                    }
                    Err(PlacementRefusal::Taken { holders, remedy, .. }) => {
                        assert_eq!(n - 1, u128::from(profile.max), "{} {}", board.name, profile.name);
                        assert!(!holders.is_empty() && !remedy.is_empty());
                        break;
                    }
                    Err(other) => panic!("{} {}: {other:?}", board.name, profile.name),
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn preparing_twice_gives_the_same_device_and_making_it_again_another() {
    let (sim, gpus) = node("sim:a100-40gb+mig");
    let place = gpus.plan(&slice("2g.10gb"), CONTAINER, &[]).unwrap().remove(0);
    let first = gpus.prepare(&call(1), id(1), &place, CONTAINER).await.unwrap();
    assert_eq!(
        gpus.prepare(&call(1), id(1), &place, CONTAINER).await.unwrap(),
        first
    );
    assert_eq!(sim.holdings().instances.len(), 1);
    let error = gpus
        .prepare(&call(1), id(2), &place, CONTAINER)
        .await
        .unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Failed);
    for _ in 0..2 {
        gpus.release(&call(1), id(1), &place).await.unwrap();
    }
    assert!(sim.holdings().instances.is_empty());
    let second = gpus.prepare(&call(2), id(1), &place, CONTAINER).await.unwrap();
    assert_ne!(first.uuid, second.uuid);
    let late = gpus.release(&call(1), id(1), &place).await.unwrap_err();
    assert_eq!(late.kind, BackendErrorKind::Superseded);
}

#[tokio::test(start_paused = true)]
async fn cards_are_named_in_every_way_and_conflicts_name_the_holder() {
    let (sim, gpus) = node("sim:a100-40gb*2,a30+mig");
    let cards = gpus.inventory().cards;
    let first = &cards[0];
    for name in ["0", "GPU-0", first.uuid.as_str(), first.pci_address.as_str()] {
        let places = gpus
            .plan(&GpuRequest::Named(vec![name.into()]), MACHINE, &[])
            .unwrap();
        assert_eq!(
            (&places[0].card, &places[0].kind),
            (&first.uuid, &PlacementKind::Whole)
        );
    }
    let both = GpuRequest::Named(vec!["0".into(), "1".into()]);
    let places = gpus.plan(&both, MACHINE, &[]).unwrap();
    let held = claims(id(1), &places[..1]);
    let refused = gpus.plan(&both, MACHINE, &held).unwrap_err();
    assert!(matches!(refused, PlacementRefusal::Taken { holders, .. } if holders == [id(1)]));
    let twice = GpuRequest::Named(vec!["0".into(), first.uuid.to_string(), "9".into()]);
    match gpus.plan(&twice, CONTAINER, &[]).unwrap_err() {
        PlacementRefusal::Invalid(v) => {
            let fields: Vec<&str> = v.iter().map(|v| v.field.as_str()).collect();
            assert_eq!(fields, ["gpuDeviceIds[1]", "gpuDeviceIds[2]"]);
        }
        other => panic!("{other:?}"),
    }
    let in_mig_mode = gpus.plan(&GpuRequest::Named(vec!["2".into()]), CONTAINER, &[]);
    assert!(matches!(in_mig_mode, Err(PlacementRefusal::Unsupported(_))));
    let planted = sim.plant_instance(2, "1g.6gb", 0).unwrap();
    let there = gpus
        .plan(&GpuRequest::Named(vec![planted.clone()]), CONTAINER, &[])
        .unwrap();
    let grant = gpus.prepare(&call(1), id(2), &there[0], CONTAINER).await.unwrap();
    assert_eq!(grant.uuid, planted);
    gpus.release(&call(1), id(2), &there[0]).await.unwrap();
    assert_eq!(
        gpus.inventory().cards[2].instances.len(),
        1,
        "what is not ours stays"
    );
}

#[tokio::test(start_paused = true)]
async fn mig_mode_is_switched_only_where_that_is_live() {
    let (_sim, gpus) = node("sim:a100-40gb");
    assert!(matches!(
        gpus.plan(&slice("1g.5gb"), CONTAINER, &[]),
        Err(PlacementRefusal::Unsupported(_))
    ));
    let (_sim, gpus) = node("sim:h100-80gb");
    let place = gpus.plan(&slice("1g.10gb"), CONTAINER, &[]).unwrap().remove(0);
    gpus.prepare(&call(1), id(1), &place, CONTAINER).await.unwrap();
    assert!(gpus.inventory().cards[0].mig_enabled);
    gpus.release(&call(1), id(1), &place).await.unwrap();
    let whole = gpus.plan(&GpuRequest::Whole(1), MACHINE, &[]).unwrap().remove(0);
    let grant = gpus.prepare(&call(1), id(2), &whole, MACHINE).await.unwrap();
    assert!(matches!(grant.attachment, Attachment::Vfio { functions } if functions.len() == 2));
    assert!(!gpus.inventory().cards[0].mig_enabled);
}

#[tokio::test(start_paused = true)]
async fn foreign_instances_are_in_the_way_and_have_no_holder() {
    let (sim, gpus) = node("sim:a100-40gb+mig");
    sim.plant_instance(0, "3g.20gb", 0).unwrap();
    sim.plant_instance(0, "3g.20gb", 4).unwrap();
    match gpus.plan(&slice("7g.40gb"), CONTAINER, &[]).unwrap_err() {
        PlacementRefusal::Taken { holders, remedy, .. } => {
            assert!(holders.is_empty() && remedy.contains("did not make"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_sick_card_is_handed_out_to_nobody_until_it_is_well() {
    let (sim, gpus) = node("sim:a30");
    sim.gpu_event(0, true, "XID 48: double-bit ECC error");
    let card = gpus.inventory().cards.remove(0);
    assert_eq!(card.health, GpuHealth::Quarantined);
    let whole = GpuRequest::Whole(1);
    assert!(matches!(
        gpus.plan(&whole, CONTAINER, &[]),
        Err(PlacementRefusal::Unsupported(_))
    ));
    sim.set_gpu_sick(0, true);
    assert!(gpus.recover(&card.uuid).await.is_err());
    sim.set_gpu_sick(0, false);
    gpus.recover(&card.uuid).await.unwrap();
    assert!(gpus.plan(&whole, CONTAINER, &[]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_workload_starts_only_with_what_was_prepared_for_it_and_keeps_it() {
    let (sim, gpus) = node("sim:a30");
    let containers = sim.containers();
    let place = gpus
        .plan(&GpuRequest::Whole(1), CONTAINER, &[])
        .unwrap()
        .remove(0);
    let mut workload = samples::container(id(1), &[]);
    workload.grants = vec![gpus.prepare(&call(1), id(1), &place, CONTAINER).await.unwrap()];
    let mut thief = samples::container(id(2), &[]);
    thief.grants = workload.grants.clone();
    containers.create(&call(1), &workload).await.unwrap();
    containers.start(&call(1), &workload).await.unwrap();
    containers.create(&call(1), &thief).await.unwrap();
    assert!(containers.start(&call(1), &thief).await.is_err());
    assert!(gpus.release(&call(1), id(1), &place).await.is_err());
    assert_eq!(sim.breaches().len(), 2);
    sim.reboot_host();
    assert!(
        containers.start(&call(1), &workload).await.is_err(),
        "a reboot takes devices back"
    );
}
