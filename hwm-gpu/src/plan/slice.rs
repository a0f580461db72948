//! Where a slice goes.

use hwm_core::accelerator::{Placement, PlacementKind, PlacementRefusal};
use hwm_core::error::Violation;
use hwm_core::id::GpuUuid;

use super::view::View;
use super::{Plan, Result, profile};
use crate::fleet::{Fleet, Place, Wanted};
use crate::geometry::Slot;
use crate::node::{CardState, MigMode};

/// A card that has a profile that would do.
pub(super) struct Offer {
    /// How well it fits, then whether the card would have to be switched.
    pub(super) rank: (profile::Fit, bool),
    /// Its place among the cards.
    pub(super) card: usize,
    pub(super) profile: usize,
}

impl Plan<'_> {
    pub(super) fn slice(&self, wanted: &str) -> Result<Vec<Placement>> {
        let field = "gpuConfig.migProfile";
        if let Some(refusal) = self.no_cards() {
            return Err(refusal);
        }
        let asked = profile::Asked::parse(wanted).ok_or_else(|| {
            let message = format!(
                "\"{wanted}\" is no MIG profile; one looks like 1g.5gb, or 1g for the smallest memory"
            );
            PlacementRefusal::Invalid(vec![Violation::new(field, message)])
        })?;
        let mut offers: Vec<Offer> = Vec::new();
        for (at, view) in self.cards.iter().enumerate() {
            let Some(geometry) = &view.card.geometry else {
                continue;
            };
            if let Some((profile, fit)) = asked.find(geometry) {
                let switch = view.card.mig != MigMode::On;
                offers.push(Offer {
                    rank: (fit, switch),
                    card: at,
                    profile,
                });
            }
        }
        if offers.is_empty() {
            let message = profile::none_has_it(wanted, self.cards.iter().map(|v| v.card));
            return Err(PlacementRefusal::Invalid(vec![Violation::new(field, message)]));
        }
        let reasons: Vec<Option<String>> = offers
            .iter()
            .map(|o| self.cannot_be_cut(self.cards[o.card].card))
            .collect();
        if reasons.iter().all(Option::is_some) {
            let mut reasons: Vec<String> = reasons.into_iter().flatten().collect();
            reasons.dedup();
            return Err(PlacementRefusal::Unsupported(reasons.join("; ")));
        }
        let mut able: Vec<Offer> = offers
            .into_iter()
            .zip(reasons)
            .filter(|(_, why)| why.is_none())
            .map(|(offer, _)| offer)
            .collect();
        able.sort_by_key(|o| o.rank);
        let ranks = able.chunk_by(|a, b| a.rank == b.rank);
        for same in ranks {
            if let Some((view, slot)) = self.best(same) {
                let Some(geometry) = &view.card.geometry else {
                    continue;
                };
                let profile = &geometry.profiles()[slot.profile];
                return Ok(vec![Placement {
                    card: GpuUuid::new(&*view.card.uuid),
                    parts: view.parts(geometry, slot),
                    memory: Some(profile.memory),
                    kind: PlacementKind::Slice {
                        profile: profile.name.clone(),
                        start: slot.start.into(),
                        size: profile.size.into(),
                    },
                    reason: profile::explain(wanted, &profile.name),
                }]);
            }
        }
        Err(self.no_room(wanted, &able))
    }

    /// The best place among cards that are equally welcome.
    fn best(&self, offers: &[Offer]) -> Option<(&View<'_>, Slot)> {
        let mut fleet = Fleet::default();
        let mut cards = Vec::new();
        let mut wanted: Vec<Wanted> = Vec::new();
        for offer in offers {
            let view = &self.cards[offer.card];
            let Some(geometry) = &view.card.geometry else {
                continue;
            };
            // A card that is to be switched must be empty.
            if offer.rank.1 && !view.is_free() {
                continue;
            }
            let kind = Wanted {
                geometry: fleet.add_geometry(geometry.clone()),
                profile: offer.profile,
            };
            fleet.add_card(kind.geometry, view.taken);
            cards.push(view);
            if !wanted.contains(&kind) {
                wanted.push(kind);
            }
        }
        let Place { card, slot } = fleet.choose(&wanted)?;
        Some((cards[card], slot))
    }

    /// Why a card can never be cut for this kind of workload, as it is now.
    fn cannot_be_cut(&self, card: &CardState) -> Option<String> {
        if let Some(why) = card.unusable() {
            return Some(why);
        }
        if self.is_machine() && card.vgpu.is_none() {
            return Some(format!(
                "{} gives no slices to machines: a MIG slice has no PCI function, and this host has neither the vGPU \
                 host driver's virtual functions nor mediated devices",
                card.label()
            ));
        }
        if !card.visible {
            let driver = card.driver.as_deref().unwrap_or("(none)");
            return Some(format!(
                "{} is on the driver {driver}, so it cannot be cut",
                card.label()
            ));
        }
        match card.mig {
            MigMode::On => None,
            MigMode::Off { live: true } if self.node.may_switch => None,
            MigMode::Off { live: true } => Some(format!(
                "MIG is off on {}: the operator switches it on (`nvidia-smi -i {} -mig 1`) or lets hwm do it",
                card.label(),
                card.index
            )),
            MigMode::Off { live: false } => Some(format!(
                "MIG is off on {}, and switching it on needs a reset of the card: the operator runs \
                 `nvidia-smi -i {} -mig 1` and resets it while nothing uses it",
                card.label(),
                card.index
            )),
            MigMode::None => Some(format!("{} has no MIG", card.label())),
        }
    }
}
