//! Choosing places on the simulated GPUs: the first that fits. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::boards::{SimBoard, SimProfile, slot};
use crate::accelerator::{Card, GpuHealth, Instance, Placement, PlacementKind, PlacementRefusal};
use crate::config::{GpuRequest, ResourceType};
use crate::error::Violation;
use crate::id::ResourceId;
use crate::ledger::{Claim, ClaimKey};
use crate::units::Bytes;

/// A card, as far as planning is concerned.
pub(super) struct Candidate {
    pub(super) card: Card,
    pub(super) board: SimBoard,
    /// Its instances, with the parts and the memory that they have.
    pub(super) instances: Vec<(Instance, Vec<String>, Bytes)>,
    /// Whether its MIG mode may be changed for a request.
    pub(super) switchable: bool,
}

/// Who is in the way at a part: a resource, or somebody that hwm does not know.
type Taken = BTreeMap<String, Option<ResourceId>>;

type Planned = std::result::Result<Vec<Placement>, PlacementRefusal>;

pub(super) fn plan(
    cards: &[Candidate],
    request: &GpuRequest,
    workload: ResourceType,
    held: &[Claim],
) -> Planned {
    match request {
        GpuRequest::None => Ok(Vec::new()),
        GpuRequest::Named(names) => named(cards, names, workload, held),
        GpuRequest::Whole(count) => whole(cards, *count as usize, held),
        GpuRequest::Slice(profile) => slice(cards, profile, held),
    }
}

impl Candidate {
    fn is_well(&self) -> bool {
        match self.card.health {
            GpuHealth::Ok | GpuHealth::Degraded => true,
            GpuHealth::Quarantined | GpuHealth::Lost => false,
        }
    }

    /// What is taken of it: by instances that are there, and by claims, which know by whom.
    fn taken(&self, held: &[Claim]) -> Taken {
        let mut taken = Taken::new();
        for (_, parts, _) in &self.instances {
            taken.extend(parts.iter().map(|part| (part.clone(), None)));
        }
        for claim in held {
            if let ClaimKey::Gpu(card, part) = &claim.key
                && *card == self.card.uuid
            {
                taken.insert(part.clone(), Some(claim.holder));
            }
        }
        taken
    }

    fn can_be_whole(&self) -> bool {
        self.is_well()
            && (!self.card.mig_enabled || self.switchable)
            && self.instances.iter().all(|(i, ..)| i.ours)
    }

    fn as_whole(&self) -> Placement {
        Placement {
            card: self.card.uuid.clone(),
            parts: self.card.parts.clone(),
            memory: self.card.memory,
            kind: PlacementKind::Whole,
            reason: None,
        }
    }

    fn label(&self) -> String {
        format!("{} (index {})", self.card.uuid, self.card.index)
    }

    fn is_called(&self, name: &str) -> bool {
        let index = name.strip_prefix("GPU-").unwrap_or(name);
        self.card.index.to_string() == index
            || self.card.uuid.as_str() == name
            || self.card.pci_address.eq_ignore_ascii_case(name)
    }
}

fn whole(cards: &[Candidate], count: usize, held: &[Claim]) -> Planned {
    let able: Vec<&Candidate> = cards.iter().filter(|c| c.can_be_whole()).collect();
    if able.len() < count {
        return Err(PlacementRefusal::Unsupported(format!(
            "{count} whole GPUs were asked for, and the node has {} that can be handed out whole",
            able.len()
        )));
    }
    let mut by_holders: Vec<(BTreeSet<ResourceId>, bool, &Candidate)> = able
        .iter()
        .map(|c| {
            let taken = c.taken(held);
            (taken.values().flatten().copied().collect(), taken.is_empty(), *c)
        })
        .collect();
    // Free ones first, and of those the ones that need no change of mode.
    by_holders.sort_by_key(|(holders, free, c)| (!free, holders.len(), c.card.mig_enabled, c.card.index));
    let chosen = &by_holders[..count];
    if chosen.iter().all(|(_, free, _)| *free) {
        return Ok(chosen.iter().map(|(_, _, c)| c.as_whole()).collect());
    }
    let holders: BTreeSet<ResourceId> = chosen
        .iter()
        .flat_map(|(holders, ..)| holders.iter().copied())
        .collect();
    Err(PlacementRefusal::Taken {
        wanted: format!("{count} whole GPU{}", if count == 1 { "" } else { "s" }),
        holders: holders.into_iter().collect(),
        remedy: "delete the holders, or ask for fewer GPUs".to_owned(),
    })
}

fn slice(cards: &[Candidate], wanted: &str, held: &[Claim]) -> Planned {
    let with: Vec<(&Candidate, &SimProfile)> = cards
        .iter()
        .filter_map(|c| Some((c, c.board.profile(wanted)?)))
        .collect();
    if with.is_empty() {
        return Err(PlacementRefusal::Invalid(vec![Violation::new(
            "gpuConfig.migProfile",
            unknown_profile(cards),
        )]));
    }
    let mut able: Vec<(&Candidate, &SimProfile)> = with
        .into_iter()
        .filter(|(c, _)| c.is_well() && (c.card.mig_enabled || c.switchable))
        .collect();
    if able.is_empty() {
        return Err(PlacementRefusal::Unsupported(format!(
            "no GPU with {wanted} is well and in MIG mode: have the operator turn MIG on with nvidia-smi -mig 1"
        )));
    }
    able.sort_by_key(|(c, _)| (!c.card.mig_enabled, c.card.index));
    let mut fewest: Option<BTreeSet<ResourceId>> = None;
    for (candidate, profile) in able {
        let taken = candidate.taken(held);
        for start in &profile.starts {
            match at(candidate, profile, *start, &taken) {
                Ok(parts) => {
                    return Ok(vec![Placement {
                        card: candidate.card.uuid.clone(),
                        parts,
                        memory: Some(profile.memory),
                        kind: PlacementKind::Slice {
                            profile: profile.name.clone(),
                            start: *start,
                            size: profile.size,
                        },
                        reason: None,
                    }]);
                }
                Err(Some(holders)) if fewest.as_ref().is_none_or(|f| holders.len() < f.len()) => {
                    fewest = Some(holders);
                }
                Err(_) => {}
            }
        }
    }
    Err(PlacementRefusal::Taken {
        wanted: format!("a MIG slice {wanted}"),
        remedy: match &fewest {
            Some(_) => "delete the holders, or ask for a smaller slice".to_owned(),
            None => {
                "MIG instances that hwm did not make are in the way: have the operator remove them".to_owned()
            }
        },
        holders: fewest.unwrap_or_default().into_iter().collect(),
    })
}

/// The parts of a slice at a start, or who would have to go; none when that is not ours to say.
fn at(
    candidate: &Candidate,
    profile: &SimProfile,
    start: u32,
    taken: &Taken,
) -> std::result::Result<Vec<String>, Option<BTreeSet<ResourceId>>> {
    let mut parts: Vec<String> = (start..start + profile.size).map(slot).collect();
    let mut in_the_way: Vec<Option<ResourceId>> =
        parts.iter().filter_map(|p| taken.get(p).copied()).collect();
    match candidate
        .board
        .units_for(profile, |part| taken.contains_key(part))
    {
        Some(units) if in_the_way.is_empty() => {
            parts.extend(units);
            return Ok(parts);
        }
        Some(_) => {}
        None => {
            let of_it = |part: &String| {
                candidate
                    .board
                    .units
                    .iter()
                    .any(|u| u.parts().any(|p| p == *part))
            };
            in_the_way.extend(
                taken
                    .iter()
                    .filter(|(part, _)| of_it(part))
                    .map(|(_, holder)| *holder),
            );
        }
    }
    let known: Option<BTreeSet<ResourceId>> = in_the_way.into_iter().collect();
    Err(known)
}

fn unknown_profile(cards: &[Candidate]) -> String {
    let names: BTreeSet<&str> = cards
        .iter()
        .flat_map(|c| c.board.profiles.iter().map(|p| p.name.as_str()))
        .collect();
    if names.is_empty() {
        return "the node has no GPU".to_owned();
    }
    let names: Vec<&str> = names.into_iter().collect();
    format!("no GPU of the node has it; there are {}", names.join(", "))
}

fn named(cards: &[Candidate], names: &[String], workload: ResourceType, held: &[Claim]) -> Planned {
    let list = if workload.is_container() {
        "gpuDeviceIds"
    } else {
        "gpuConfig.deviceIds"
    };
    let mut placements: Vec<Placement> = Vec::new();
    let mut violations = Vec::new();
    let mut holders = BTreeSet::new();
    let mut wanted = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let mut violate = |message: String| violations.push(Violation::new(format!("{list}[{i}]"), message));
        let placement = if let Some(card) = cards.iter().find(|c| c.is_called(name)) {
            if let Some(refusal) = not_whole(card) {
                return Err(refusal);
            }
            let taken = card.taken(held);
            if !taken.is_empty() {
                wanted.push(card.label());
                holders.extend(taken.values().flatten().copied());
            }
            card.as_whole()
        } else if let Some((card, (instance, parts, memory))) = find_instance(cards, name) {
            if !workload.is_container() {
                violate("a MIG instance has no PCI function to pass through: name a card".to_owned());
                continue;
            }
            let of_it = |c: &&Claim| matches!(&c.key, ClaimKey::Gpu(u, p) if *u == card.card.uuid && parts.contains(p));
            let by: BTreeSet<ResourceId> = held.iter().filter(of_it).map(|c| c.holder).collect();
            if !by.is_empty() {
                wanted.push(instance.uuid.clone());
                holders.extend(by);
            }
            Placement {
                card: card.card.uuid.clone(),
                parts: parts.clone(),
                memory: Some(*memory),
                kind: PlacementKind::Existing {
                    uuid: instance.uuid.clone(),
                },
                reason: None,
            }
        } else {
            violate("the node has no such GPU: name it by index, UUID or PCI address".to_owned());
            continue;
        };
        if placements
            .iter()
            .any(|p| p.card == placement.card && p.parts.iter().any(|x| placement.parts.contains(x)))
        {
            violate("it is named twice".to_owned());
            continue;
        }
        placements.push(placement);
    }
    if !violations.is_empty() {
        return Err(PlacementRefusal::Invalid(violations));
    }
    if !wanted.is_empty() {
        return Err(PlacementRefusal::Taken {
            wanted: wanted.join(", "),
            holders: holders.into_iter().collect(),
            remedy: "delete the holders, or ask for another GPU".to_owned(),
        });
    }
    Ok(placements)
}

fn not_whole(card: &Candidate) -> Option<PlacementRefusal> {
    if !card.is_well() {
        let why = card.card.reason.as_deref().unwrap_or("it is not well");
        let message = format!("{} cannot be handed out: {why}; recover it first", card.label());
        return Some(PlacementRefusal::Unsupported(message));
    }
    if !card.can_be_whole() {
        let message = format!(
            "{} is in MIG mode: ask for a slice, or have the operator turn MIG off",
            card.label()
        );
        return Some(PlacementRefusal::Unsupported(message));
    }
    None
}

type Found<'a> = (&'a Candidate, &'a (Instance, Vec<String>, Bytes));

fn find_instance<'a>(cards: &'a [Candidate], name: &str) -> Option<Found<'a>> {
    let all = cards.iter().flat_map(|c| c.instances.iter().map(move |i| (c, i)));
    let mut all = all.filter(|(c, _)| c.is_well());
    all.find(|(_, (instance, ..))| instance.uuid == name)
}
