//! Chooses where a slice goes, over any number of cards. Pure and deterministic.
//!
//! Of all places that fit, the one is taken that leaves the cards the most to offer
//! ([`Geometry::offer`](crate::geometry::Geometry::offer)); of several, the one on the fullest card; then by
//! which slots are taken, and the lowest card. Cards that are equally taken are one class, and for each profile
//! the classes stand in the order of that choice, so that a decision looks at one class and not at every card.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::geometry::{Geometry, Occupancy, Slot};

/// A kind of slice that would do, on cards of one geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The geometry, as [`Fleet::add_geometry`] answered it.
    pub geometry: usize,
    /// The profile's place in it.
    pub profile: usize,
}

/// A place for a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The card, as [`Fleet::add_card`] answered it.
    pub card: usize,
    /// The slice on it.
    pub slot: Slot,
}

/// Cards and what is taken of them.
#[derive(Debug, Default)]
pub struct Fleet {
    geometries: Vec<Kind>,
    cards: Vec<Held>,
    classes: Vec<Class>,
}

#[derive(Debug)]
struct Kind {
    geometry: Arc<Geometry>,
    classes: HashMap<Occupancy, usize>,
    /// For each profile, the classes that have a card and room, best first.
    ranks: Vec<BTreeSet<Rank>>,
}

/// Smaller is better. Holds nothing of the history, so the same cards lead to the same choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    lost: u64,
    free: u32,
    taken: Occupancy,
    start: u8,
    class: usize,
}

#[derive(Debug)]
struct Class {
    geometry: usize,
    taken: Occupancy,
    cards: BTreeSet<usize>,
}

#[derive(Debug)]
struct Held {
    geometry: usize,
    taken: Occupancy,
    class: usize,
}

impl Fleet {
    /// Makes a geometry known. The same one is kept once.
    pub fn add_geometry(&mut self, geometry: Arc<Geometry>) -> usize {
        if let Some(known) = self.geometries.iter().position(|k| *k.geometry == *geometry) {
            return known;
        }
        let ranks = vec![BTreeSet::new(); geometry.profiles().len()];
        self.geometries.push(Kind {
            geometry,
            classes: HashMap::new(),
            ranks,
        });
        self.geometries.len() - 1
    }

    /// Adds a card of which something may be taken.
    pub fn add_card(&mut self, geometry: usize, taken: Occupancy) -> usize {
        let card = self.cards.len();
        let class = self.class(geometry, taken);
        self.cards.push(Held {
            geometry,
            taken,
            class,
        });
        self.join(card, class);
        card
    }

    /// How the cards of a geometry are cut.
    pub fn geometry(&self, geometry: usize) -> &Arc<Geometry> {
        &self.geometries[geometry].geometry
    }

    /// What is taken of a card.
    pub fn taken(&self, card: usize) -> Occupancy {
        self.cards[card].taken
    }

    /// The best place for a slice of any of these kinds, which count the same.
    pub fn choose(&self, wanted: &[Wanted]) -> Option<Place> {
        wanted
            .iter()
            .filter_map(|w| {
                let rank = self.geometries[w.geometry].ranks[w.profile].first()?;
                let card = *self.classes[rank.class].cards.first()?;
                Some(((rank.lost, rank.free, card, rank.start), w.profile))
            })
            .min()
            .map(|((_, _, card, start), profile)| Place {
                card,
                slot: Slot { profile, start },
            })
    }

    /// Takes a place; false, and nothing changes, where it is not free.
    pub fn occupy(&mut self, place: Place) -> bool {
        let held = &self.cards[place.card];
        let geometry = &self.geometries[held.geometry].geometry;
        if !geometry.fits(&held.taken, place.slot) {
            return false;
        }
        let taken = geometry.with(held.taken, place.slot);
        self.move_to(place.card, taken);
        true
    }

    /// Gives a place back that was taken.
    pub fn vacate(&mut self, place: Place) {
        let held = &self.cards[place.card];
        let taken = self.geometries[held.geometry]
            .geometry
            .without(held.taken, place.slot);
        self.move_to(place.card, taken);
    }

    fn move_to(&mut self, card: usize, taken: Occupancy) {
        self.leave(card);
        let class = self.class(self.cards[card].geometry, taken);
        self.cards[card].taken = taken;
        self.cards[card].class = class;
        self.join(card, class);
    }

    fn class(&mut self, geometry: usize, taken: Occupancy) -> usize {
        let next = self.classes.len();
        let class = *self.geometries[geometry].classes.entry(taken).or_insert(next);
        if class == next {
            self.classes.push(Class {
                geometry,
                taken,
                cards: BTreeSet::new(),
            });
        }
        class
    }

    fn join(&mut self, card: usize, class: usize) {
        self.classes[class].cards.insert(card);
        if self.classes[class].cards.len() == 1 {
            let (geometry, ranks) = self.ranks_of(class);
            for (rank, profile) in ranks {
                self.geometries[geometry].ranks[profile].insert(rank);
            }
        }
    }

    fn leave(&mut self, card: usize) {
        let class = self.cards[card].class;
        self.classes[class].cards.remove(&card);
        if self.classes[class].cards.is_empty() {
            let (geometry, ranks) = self.ranks_of(class);
            for (rank, profile) in ranks {
                self.geometries[geometry].ranks[profile].remove(&rank);
            }
        }
    }

    fn ranks_of(&self, class: usize) -> (usize, Vec<(Rank, usize)>) {
        let Class { geometry, taken, .. } = &self.classes[class];
        let kind = &self.geometries[*geometry].geometry;
        let free = u32::from(kind.slots()) - taken.slots.count_ones();
        let ranks = (0..kind.profiles().len())
            .filter_map(|profile| {
                let (lost, start) = kind.best_start(taken, profile)?;
                Some((
                    Rank {
                        lost,
                        free,
                        taken: *taken,
                        start,
                        class,
                    },
                    profile,
                ))
            })
            .collect();
        (*geometry, ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards::{BOARDS, board};
    use proptest::prelude::*;

    /// The same choice by looking at every card.
    fn by_scan(fleet: &Fleet, wanted: Wanted) -> Option<Place> {
        let geometry = fleet.geometry(wanted.geometry);
        (0..fleet.cards.len())
            .filter(|c| fleet.cards[*c].geometry == wanted.geometry)
            .filter_map(|card| {
                let taken = fleet.taken(card);
                let (lost, start) = geometry.best_start(&taken, wanted.profile)?;
                let free = geometry.slots() - taken.slots.count_ones() as u8;
                Some(((lost, free, taken, start, card), card))
            })
            .min()
            .map(|((_, _, _, start, _), card)| Place {
                card,
                slot: Slot {
                    profile: wanted.profile,
                    start,
                },
            })
    }

    proptest! {
        #[test]
        fn the_index_chooses_what_a_scan_of_every_card_chooses(
            which in 0..BOARDS.len(),
            steps in prop::collection::vec((0usize..20, any::<bool>(), any::<prop::sample::Index>()), 1..120),
        ) {
            let mut fleet = Fleet::default();
            let geometry = fleet.add_geometry(Arc::new(BOARDS[which].geometry().unwrap()));
            for _ in 0..5 { fleet.add_card(geometry, Occupancy::default()); }
            let profiles = fleet.geometry(geometry).profiles().len();
            let mut held = Vec::new();
            for (profile, leave, index) in steps {
                if leave && !held.is_empty() {
                    fleet.vacate(held.swap_remove(index.index(held.len())));
                    continue;
                }
                let wanted = Wanted { geometry, profile: profile % profiles };
                let place = fleet.choose(&[wanted]);
                prop_assert_eq!(place, by_scan(&fleet, wanted));
                if let Some(place) = place {
                    prop_assert!(fleet.occupy(place));
                    held.push(place);
                }
            }
            let total: u32 = (0..5).map(|c| fleet.taken(c).slots.count_ones()).sum();
            let sizes: u32 = held.iter().map(|p| u32::from(fleet.geometry(geometry).profiles()[p.slot.profile].size)).sum();
            prop_assert_eq!(total, sizes, "slices overlap");
            for place in held { fleet.vacate(place); }
            for card in 0..5 { prop_assert_eq!(fleet.taken(card), Occupancy::default()); }
        }
    }

    #[test]
    fn a_small_slice_goes_where_it_spoils_least() {
        let mut fleet = Fleet::default();
        let geometry = fleet.add_geometry(Arc::new(board("a100-40gb").unwrap().geometry().unwrap()));
        fleet.add_card(geometry, Occupancy::default());
        fleet.add_card(geometry, Occupancy::default());
        let named = |name| Wanted {
            geometry,
            profile: fleet.geometry(geometry).named(name).unwrap(),
        };
        let (one, three, seven) = (named("1g.5gb"), named("3g.20gb"), named("7g.40gb"));
        let first = fleet.choose(&[one]).unwrap();
        // Slot 6 is of no use to a 2g, and a 4g still fits below.
        assert_eq!((first.card, first.slot.start), (0, 6));
        assert!(fleet.occupy(first));
        let second = fleet.choose(&[three]).unwrap();
        assert_eq!((second.card, second.slot.start), (0, 0));
        assert!(fleet.occupy(second));
        assert_eq!(fleet.choose(&[seven]).unwrap().card, 1);
    }

    #[test]
    fn a_place_that_is_taken_is_not_taken_again() {
        let mut fleet = Fleet::default();
        let geometry = fleet.add_geometry(Arc::new(board("a30").unwrap().geometry().unwrap()));
        fleet.add_card(geometry, Occupancy::default());
        let place = Place {
            card: 0,
            slot: Slot { profile: 0, start: 1 },
        };
        assert!(fleet.occupy(place));
        assert!(!fleet.occupy(place));
    }
}
