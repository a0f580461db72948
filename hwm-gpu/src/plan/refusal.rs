//! Why there is no room, who holds what is in the way, and the least that would have to end.

use std::collections::BTreeSet;

use hwm_core::accelerator::PlacementRefusal;
use hwm_core::id::ResourceId;

use super::slice::Offer;
use super::view::View;
use super::{Plan, count_of};
use crate::geometry::{Geometry, Slot};

/// A set of resources whose end would make room.
struct WayOut {
    /// Smaller is better: how many end, how many parts they give up, then where.
    rank: (usize, usize, usize, u8),
    holders: Vec<ResourceId>,
}

impl Plan<'_> {
    pub(super) fn whole_is_taken(&self, view: &View<'_>) -> PlacementRefusal {
        let holders = view.holders();
        let remedy = if holders.is_empty() {
            format!(
                "{} must go first: hwm never removes what it did not make",
                in_the_way(view)
            )
        } else {
            "delete the holder, or ask for another GPU".to_owned()
        };
        PlacementRefusal::Taken {
            wanted: view.card.label(),
            holders,
            remedy,
        }
    }

    pub(super) fn too_few_whole(&self, able: &[&View<'_>], free: usize, count: usize) -> PlacementRefusal {
        // Cards with the fewest holders first; those that nobody's end would free are of no use.
        let mut held: Vec<(usize, &View<'_>)> = able
            .iter()
            .filter(|v| !v.is_free() && v.unclaimed.slots == 0)
            .map(|v| (v.holders().len(), *v))
            .collect();
        held.sort_by_key(|(holders, v)| (*holders, v.card.index));
        let missing = count - free;
        let holders: BTreeSet<ResourceId> =
            held.iter().take(missing).flat_map(|(_, v)| v.holders()).collect();
        let remedy = if held.len() < missing {
            let blocked = able
                .iter()
                .filter(|v| v.unclaimed.slots != 0)
                .map(|v| in_the_way(v));
            format!("{} must go first", blocked.collect::<Vec<_>>().join("; "))
        } else {
            format!(
                "ending these frees enough; {} free now",
                count_of(free, "whole GPU")
            )
        };
        PlacementRefusal::Taken {
            wanted: count_of(count, "whole GPU"),
            holders: holders.into_iter().collect(),
            remedy,
        }
    }

    pub(super) fn no_room(&self, wanted: &str, able: &[Offer]) -> PlacementRefusal {
        let mut ways: Vec<WayOut> = Vec::new();
        for offer in able {
            let view = &self.cards[offer.card];
            let Some(geometry) = &view.card.geometry else {
                continue;
            };
            for start in &geometry.profiles()[offer.profile].starts {
                let slot = Slot {
                    profile: offer.profile,
                    start: *start,
                };
                ways.extend(way_out(view, geometry, slot, offer));
            }
        }
        let best = ways
            .into_iter()
            .min_by(|a, b| (a.rank, &a.holders).cmp(&(b.rank, &b.holders)));
        let instead = self.fits_now(able);
        match best {
            Some(way) => {
                let view = &self.cards[way.rank.2];
                let remedy = format!(
                    "ending {} makes room at slot {} of {}{instead}",
                    if way.holders.len() == 1 { "it" } else { "these" },
                    way.rank.3,
                    view.card.label()
                );
                PlacementRefusal::Taken {
                    wanted: format!("a {wanted}"),
                    holders: way.holders,
                    remedy,
                }
            }
            None => {
                let mut seen: Vec<String> = able.iter().map(|o| in_the_way(&self.cards[o.card])).collect();
                seen.dedup();
                let remedy = format!(
                    "{} must go first: hwm never removes what it did not make{instead}",
                    seen.join("; ")
                );
                PlacementRefusal::Taken {
                    wanted: format!("a {wanted}"),
                    holders: Vec::new(),
                    remedy,
                }
            }
        }
    }

    /// The largest slice that fits, for who would take less.
    fn fits_now(&self, able: &[Offer]) -> String {
        let fitting = able.iter().filter(|o| !o.rank.1).filter_map(|o| {
            let view = &self.cards[o.card];
            let geometry = view.card.geometry.as_ref()?;
            let profiles = geometry.profiles().iter().enumerate().rev();
            profiles
                .filter(|(_, p)| p.attributes().is_empty())
                .find_map(|(i, p)| {
                    geometry
                        .best_start(&view.taken, i)
                        .map(|_| (p.memory, p.slices, p.name.clone()))
                })
        });
        fitting.max().map_or_else(
            || "; no slice fits now".to_owned(),
            |(.., name)| format!("; a {name} fits now"),
        )
    }
}

/// Whose end would make room at this place; none where what is in the way has no holder.
fn way_out(view: &View<'_>, geometry: &Geometry, slot: Slot, offer: &Offer) -> Option<WayOut> {
    let switching = offer.rank.1;
    let mask = if switching {
        u32::MAX
    } else {
        geometry.profiles()[slot.profile].mask(slot.start)
    };
    if view.unclaimed.slots & mask != 0 {
        return None;
    }
    let in_mask = |part: &str| {
        let number = part.strip_prefix("slot-").and_then(|n| n.parse::<u32>().ok());
        number
            .and_then(|n| 1u32.checked_shl(n))
            .is_some_and(|bit| mask & bit != 0)
    };
    let mut ending: BTreeSet<ResourceId> = view
        .held
        .iter()
        .filter(|(p, _)| switching || in_mask(p))
        .map(|(_, h)| *h)
        .collect();
    for (i, limit) in geometry.limits().iter().enumerate() {
        let takes = limit.takes[slot.profile];
        let units = |holder: ResourceId| {
            view.held
                .iter()
                .filter(|(p, h)| *h == holder && p.rsplit_once('-').is_some_and(|(n, _)| n == limit.name))
                .count()
        };
        let mut free = i64::from(limit.total) - i64::from(view.taken.limits[i]);
        free += ending.iter().map(|h| units(*h) as i64).sum::<i64>();
        let mut others = view.holders();
        others.retain(|h| !ending.contains(h) && units(*h) > 0);
        others.sort_by_key(|h| (std::cmp::Reverse(units(*h)), *h));
        let mut others = others.into_iter();
        while takes > 0 && free < i64::from(takes) {
            let next = others.next()?;
            free += units(next) as i64;
            ending.insert(next);
        }
    }
    let given_up = view.held.iter().filter(|(_, h)| ending.contains(h)).count();
    Some(WayOut {
        rank: (ending.len(), given_up, offer.card, slot.start),
        holders: ending.into_iter().collect(),
    })
}

/// What is on a card that nobody claims.
fn in_the_way(view: &View<'_>) -> String {
    let Some(geometry) = &view.card.geometry else {
        return view.card.label();
    };
    let seen = view
        .seen(geometry)
        .into_iter()
        .filter(|(o, _)| view.unclaimed.slots & o.slots != 0)
        .map(|(_, w)| w);
    let seen: Vec<String> = seen.collect();
    if seen.is_empty() {
        view.card.label()
    } else {
        format!("{} on {}", seen.join(", "), view.card.label())
    }
}
