use std::sync::Arc;

use hwm_core::accelerator::{GpuHealth, PlacementKind, PlacementRefusal};
use hwm_core::id::{NodeId, ResourceId};
use hwm_core::ledger::ClaimKey;

use super::*;
use crate::boards::board;
use crate::geometry::Slot;
use crate::node::{self, InstanceState, Owner};

fn card(index: u32, board_name: &str, mig: bool) -> CardState {
    let board = board(board_name).unwrap();
    let geometry = Arc::new(board.geometry().unwrap());
    CardState {
        index,
        uuid: format!("GPU-0000000{index}-0000-4000-8000-000000000000"),
        address: format!("0000:{:02x}:00.0", 0x10 + index),
        model: board.model.to_owned(),
        memory: None,
        visible: true,
        mig: if mig {
            MigMode::On
        } else {
            MigMode::Off {
                live: board.architecture.switches_live(),
            }
        },
        parts: node::parts(Some(&geometry)),
        geometry: Some(geometry),
        instances: Vec::new(),
        doubtful: Vec::new(),
        health: GpuHealth::Ok,
        reason: None,
        hot: false,
        numa: Some(0),
        path: Vec::new(),
        nvlinks: Vec::new(),
        driver: Some("nvidia".to_owned()),
        vgpu: None,
        no_passthrough: None,
        handed_to: None,
    }
}

fn node(cards: Vec<CardState>) -> Node {
    Node {
        cards,
        iommu: true,
        ..Node::default()
    }
}

const CONTAINER: ResourceType = ResourceType::ApplicationContainer;
const MACHINE: ResourceType = ResourceType::VirtualMachine;

fn resource(n: u128) -> ResourceId {
    ResourceId::from_u128(n)
}

fn claims(holder: u128, placements: &[Placement]) -> Vec<Claim> {
    let keys = placements.iter().flat_map(|p| {
        p.parts
            .iter()
            .map(|part| ClaimKey::Gpu(p.card.clone(), part.clone()))
    });
    keys.map(|key| Claim {
        node: NodeId::new("n"),
        key,
        holder: resource(holder),
        amount: 1,
    })
    .collect()
}

fn slice(profile: &str) -> GpuRequest {
    GpuRequest::Slice(profile.to_owned())
}

fn named(names: &[&str]) -> GpuRequest {
    GpuRequest::Named(names.iter().map(|n| (*n).to_owned()).collect())
}

#[test]
fn a_card_has_many_names() {
    let node = node(vec![card(0, "a30", false), card(1, "a30", false)]);
    for name in [
        "1",
        "GPU-1",
        "GPU-00000001-0000-4000-8000-000000000000",
        "0000:11:00.0",
        "00000000:11:00.0",
    ] {
        let placed = plan(&node, &named(&[name]), CONTAINER, &[]).unwrap();
        assert_eq!(placed[0].card.as_str(), node.cards[1].uuid, "{name}");
    }
}

#[test]
fn every_unknown_name_is_reported_with_its_field() {
    let node = node(vec![card(0, "a30", false)]);
    let Err(PlacementRefusal::Invalid(wrong)) =
        plan(&node, &named(&["7", "0", "GPU-0", "x"]), CONTAINER, &[])
    else {
        panic!("must be refused");
    };
    let fields: Vec<&str> = wrong.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["gpuDeviceIds[0]", "gpuDeviceIds[2]", "gpuDeviceIds[3]"]);
    let Err(PlacementRefusal::Invalid(wrong)) = plan(&node, &named(&["7"]), MACHINE, &[]) else {
        panic!("must be refused");
    };
    assert_eq!(wrong[0].field, "gpuConfig.deviceIds[0]");
}

#[test]
fn a_slice_keeps_the_whole_card_from_others_and_the_other_way_round() {
    let node = node(vec![card(0, "h100-80gb", true)]);
    let first = plan(&node, &slice("1g.10gb"), CONTAINER, &[]).unwrap();
    let held = claims(1, &first);
    let mut whole = node.clone();
    whole.cards[0].mig = MigMode::Off { live: true };
    match plan(&whole, &named(&["0"]), MACHINE, &held) {
        Err(PlacementRefusal::Taken { holders, .. }) => assert_eq!(holders, [resource(1)]),
        other => panic!("{other:?}"),
    }
    let held = claims(2, &plan(&whole, &named(&["0"]), MACHINE, &[]).unwrap());
    match plan(&node, &slice("1g.10gb"), CONTAINER, &held) {
        Err(PlacementRefusal::Taken { holders, .. }) => assert_eq!(holders, [resource(2)]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_cards_lead_to_the_same_place_until_they_are_full() {
    let node = node(vec![card(0, "a100-40gb", true)]);
    let mut held = Vec::new();
    for n in 0..7 {
        let placed = plan(&node, &slice("1g"), CONTAINER, &held).unwrap();
        assert_eq!(placed, plan(&node, &slice("1g"), CONTAINER, &held).unwrap());
        held.extend(claims(n, &placed));
    }
    assert!(matches!(
        plan(&node, &slice("1g"), CONTAINER, &held),
        Err(PlacementRefusal::Taken { .. })
    ));
}

#[test]
fn a_refusal_names_the_fewest_that_would_have_to_end() {
    let node = node(vec![card(0, "a100-40gb", true), card(1, "a100-40gb", true)]);
    let mut held = Vec::new();
    // Four small ones and a 3g on the first card, one 7g on the second.
    for n in 1..=2 {
        held.extend(claims(n, &plan(&node, &slice("3g"), CONTAINER, &held).unwrap()));
    }
    held.extend(claims(3, &plan(&node, &slice("7g"), CONTAINER, &held).unwrap()));
    let Err(PlacementRefusal::Taken {
        holders,
        remedy,
        wanted,
    }) = plan(&node, &slice("4g.20gb"), CONTAINER, &held)
    else {
        panic!("must be refused");
    };
    assert_eq!((holders.len(), wanted.as_str()), (1, "a 4g.20gb"));
    assert!(
        holders[0] == resource(1) || holders[0] == resource(2),
        "the 7g gives up more: {holders:?}"
    );
    assert!(
        remedy.contains("slot 0 of") && remedy.contains("no slice fits now"),
        "{remedy}"
    );
}

#[test]
fn a_foreign_instance_is_taken_and_no_holder_is_blamed_for_it() {
    let mut foreign = card(0, "a30", true);
    let geometry = foreign.geometry.clone().unwrap();
    let whole = Slot {
        profile: geometry.named("4g.24gb").unwrap(),
        start: 0,
    };
    foreign.instances.push(InstanceState {
        id: 0,
        slot: whole,
        uuid: Some("MIG-f".into()),
        owner: Owner::Foreign,
    });
    let node = node(vec![foreign]);
    let Err(PlacementRefusal::Taken { holders, remedy, .. }) = plan(&node, &slice("1g"), CONTAINER, &[])
    else {
        panic!("must be refused");
    };
    assert!(
        holders.is_empty() && remedy.contains("4g.24gb at slot 0"),
        "{remedy}"
    );
    assert!(matches!(
        plan(&node, &named(&["MIG-f"]), CONTAINER, &[]),
        Err(PlacementRefusal::Invalid(_))
    ));
}

#[test]
fn an_adopted_instance_is_handed_out_once() {
    let mut card = card(0, "a30", true);
    let geometry = card.geometry.clone().unwrap();
    let slot = Slot {
        profile: geometry.named("2g.12gb").unwrap(),
        start: 2,
    };
    card.instances.push(InstanceState {
        id: 2,
        slot,
        uuid: Some("MIG-a".into()),
        owner: Owner::Adopted,
    });
    let node = node(vec![card]);
    let placed = plan(&node, &named(&["MIG-a"]), CONTAINER, &[]).unwrap();
    assert_eq!(placed[0].kind, PlacementKind::Existing { uuid: "MIG-a".into() });
    assert_eq!(placed[0].parts, ["slot-2", "slot-3"]);
    let held = claims(1, &placed);
    assert!(matches!(
        plan(&node, &named(&["MIG-a"]), CONTAINER, &held),
        Err(PlacementRefusal::Taken { .. })
    ));
    assert!(matches!(
        plan(&node, &named(&["MIG-a"]), MACHINE, &[]),
        Err(PlacementRefusal::Invalid(_))
    ));
}

#[test]
fn mig_mode_is_switched_only_where_that_is_live_and_allowed() {
    let off = |board| node(vec![card(0, board, false)]);
    let refused = |node: &Node| match plan(node, &slice("1g"), CONTAINER, &[]) {
        Err(PlacementRefusal::Unsupported(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(refused(&off("a100-40gb")).contains("needs a reset"));
    assert!(refused(&off("h100-80gb")).contains("lets hwm do it"));
    let mut allowed = off("h100-80gb");
    allowed.may_switch = true;
    assert!(plan(&allowed, &slice("1g"), CONTAINER, &[]).is_ok());
    let mut ampere = off("a100-40gb");
    ampere.may_switch = true;
    assert!(refused(&ampere).contains("needs a reset"));
    // A card that is on already is preferred to one that would have to be switched.
    let mut both = node(vec![card(0, "h100-80gb", false), card(1, "h100-80gb", true)]);
    both.may_switch = true;
    assert_eq!(
        plan(&both, &slice("1g"), CONTAINER, &[]).unwrap()[0]
            .card
            .as_str(),
        both.cards[1].uuid
    );
}

#[test]
fn a_machine_gets_no_slice_where_the_host_has_no_vgpu_and_no_card_without_an_iommu() {
    let mig = node(vec![card(0, "a100-40gb", true)]);
    assert!(
        matches!(plan(&mig, &slice("1g"), MACHINE, &[]), Err(PlacementRefusal::Unsupported(why)) if why.contains("no PCI function"))
    );
    let mut bare = node(vec![card(0, "a100-40gb", false)]);
    bare.iommu = false;
    assert!(
        matches!(plan(&bare, &named(&["0"]), MACHINE, &[]), Err(PlacementRefusal::Unsupported(why)) if why.contains("IOMMU"))
    );
}

#[test]
fn a_name_is_better_served_than_an_alias() {
    let node = node(vec![card(0, "a100-80gb", true), card(1, "a100-40gb", true)]);
    let placed = plan(&node, &slice("2g.10gb"), CONTAINER, &[]).unwrap();
    assert_eq!(placed[0].card.as_str(), node.cards[1].uuid);
    let placed = plan(&node, &slice("3g.40gb"), CONTAINER, &[]).unwrap();
    assert_eq!(placed[0].card.as_str(), node.cards[0].uuid);
    assert!(matches!(
        plan(&node, &slice("9g"), CONTAINER, &[]),
        Err(PlacementRefusal::Invalid(_))
    ));
}

#[test]
fn the_units_of_a_limited_engine_are_claimed() {
    let node = node(vec![card(0, "a100-40gb", true)]);
    let first = plan(&node, &slice("1g.5gb+me"), CONTAINER, &[]).unwrap();
    assert!(
        first[0].parts.contains(&"profile-20-0".to_owned()),
        "{:?}",
        first[0].parts
    );
    assert!(node.cards[0].parts.contains(&"profile-20-0".to_owned()));
    match plan(&node, &slice("1g.5gb+me"), CONTAINER, &claims(5, &first)) {
        Err(PlacementRefusal::Taken { holders, .. }) => assert_eq!(holders, [resource(5)]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whole_cards_are_counted_and_the_cheapest_holders_are_named() {
    let node = node((0..4).map(|i| card(i, "h200", false)).collect());
    let two = plan(&node, &GpuRequest::Whole(2), CONTAINER, &[]).unwrap();
    assert_eq!(two.len(), 2);
    let mut held = claims(1, &two);
    held.extend(claims(
        2,
        &plan(&node, &GpuRequest::Whole(1), CONTAINER, &held).unwrap(),
    ));
    match plan(&node, &GpuRequest::Whole(2), CONTAINER, &held) {
        Err(PlacementRefusal::Taken { holders, remedy, .. }) => {
            assert_eq!(
                (holders.len(), remedy.contains("1 whole GPU free now")),
                (1, true),
                "{remedy}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        plan(&node, &GpuRequest::Whole(5), CONTAINER, &[]),
        Err(PlacementRefusal::Invalid(_))
    ));
}
