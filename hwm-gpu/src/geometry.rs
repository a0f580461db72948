//! How a card can be cut into MIG slices: profiles, memory slots, media engines. Pure.
//!
//! A slice takes a run of memory slots at one of its profile's starts, and some of the card's media
//! engines. Two slices never overlap, and together they never take more engines than there are. Nothing
//! here assumes eight slots or a fixed list of profiles: a [`Geometry`] is built from a board's description
//! or from what a card says of itself.

use std::fmt;

use hwm_core::units::Bytes;

/// The most slots that a geometry can have.
pub const MAX_SLOTS: u8 = 32;
/// The most kinds of limits, beyond slots, that a geometry can have.
pub const MAX_LIMITS: usize = 8;

/// Media engines: of a card, or of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Engines {
    /// NVDEC.
    pub decoders: u8,
    /// NVENC.
    pub encoders: u8,
    /// NVJPG.
    pub jpeg: u8,
    /// Optical flow.
    pub ofa: u8,
}

impl Engines {
    const NAMES: [&'static str; 4] = ["dec", "enc", "jpeg", "ofa"];

    const fn counts(self) -> [u8; 4] {
        [self.decoders, self.encoders, self.jpeg, self.ofa]
    }
}

/// A kind of slice that a card can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The card's own number for it (`nvidia-smi mig -lgip`), not NVML's profile constant.
    pub id: u32,
    /// NVML's profile constant, `NVML_GPU_INSTANCE_PROFILE_*`.
    pub constant: u32,
    /// Its name without `MIG`, for example `1g.5gb+me`.
    pub name: String,
    /// Compute slices: the number before `g`.
    pub slices: u8,
    /// Memory.
    pub memory: Bytes,
    /// Memory slots that it takes.
    pub size: u8,
    /// Slots at which it may start, ascending.
    pub starts: Vec<u8>,
    /// How many of it a card can have at once.
    pub max: u8,
    /// Streaming multiprocessors.
    pub multiprocessors: u16,
    /// Copy engines.
    pub copy_engines: u8,
    /// Media engines.
    pub engines: Engines,
}

impl Profile {
    /// The slots it takes at `start`, as a mask.
    pub const fn mask(&self, start: u8) -> u32 {
        run(start, self.size)
    }

    /// What the name says beyond slices and memory, for example `+me`; empty where it says nothing.
    pub fn attributes(&self) -> &str {
        self.name.find(['+', '-']).map_or("", |at| &self.name[at..])
    }
}

const fn run(start: u8, size: u8) -> u32 {
    // In 64 bits, so that a run of 32 slots does not overflow.
    (((1u64 << size) - 1) << start) as u32
}

/// Something that limits a layout beyond its slots: a media engine, or the number of slices of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Its name in claims, for example `ofa`.
    pub name: String,
    /// How much there is.
    pub total: u8,
    /// How much each profile takes, by the profile's place in the geometry.
    pub takes: Vec<u8>,
}

/// How a card can be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    slots: u8,
    profiles: Vec<Profile>,
    limits: Vec<Limit>,
    shapes: Vec<Shape>,
}

/// Profiles that differ in nothing but engines and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    masks: Vec<u32>,
    /// What one open start is worth.
    weight: u64,
}

/// A description that is no geometry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a MIG geometry: {0}")]
pub struct InvalidGeometry(String);

/// What is taken of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Occupancy {
    /// Slots, as a mask.
    pub slots: u32,
    /// How much of each limit, by its place in [`Geometry::limits`].
    pub limits: [u8; MAX_LIMITS],
}

/// A slice at its place: which profile, by its place in the geometry, and where it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Place of the profile in [`Geometry::profiles`].
    pub profile: usize,
    /// Its first slot.
    pub start: u8,
}

impl Geometry {
    /// A geometry of these profiles.
    ///
    /// # Errors
    ///
    /// A profile with no slots, a start beyond [`MAX_SLOTS`], or more than [`MAX_LIMITS`] limits.
    pub fn new(mut profiles: Vec<Profile>) -> Result<Self, InvalidGeometry> {
        let mut slots = 0;
        for p in &mut profiles {
            p.starts.sort_unstable();
            p.starts.dedup();
            let end = p.starts.last().and_then(|s| s.checked_add(p.size));
            match end {
                Some(end) if p.size > 0 && end <= MAX_SLOTS => slots = slots.max(end),
                _ => {
                    return Err(InvalidGeometry(format!(
                        "{} takes {} slots at {:?}",
                        p.name, p.size, p.starts
                    )));
                }
            }
        }
        // Fewest slots first, then the plain one of several: what is looked up by name wants that order.
        profiles.sort_by(|a, b| (a.size, a.slices, &a.name).cmp(&(b.size, b.slices, &b.name)));
        let limits = limits(&profiles);
        if limits.len() > MAX_LIMITS {
            return Err(InvalidGeometry(format!("{} kinds of limits", limits.len())));
        }
        let shapes = shapes(&profiles);
        Ok(Self {
            slots,
            profiles,
            limits,
            shapes,
        })
    }

    /// How many memory slots there are.
    pub const fn slots(&self) -> u8 {
        self.slots
    }

    /// The profiles, smallest first.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// What limits layouts beyond slots. An engine that can never run out before the slots is not here.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// The place of the profile with this name.
    pub fn named(&self, name: &str) -> Option<usize> {
        self.profiles.iter().position(|p| p.name == name)
    }

    /// Whether a slice fits beside what is taken.
    pub fn fits(&self, taken: &Occupancy, slot: Slot) -> bool {
        let Some(profile) = self.profiles.get(slot.profile) else {
            return false;
        };
        profile.starts.contains(&slot.start)
            && taken.slots & profile.mask(slot.start) == 0
            && self.within_limits(taken, slot.profile)
    }

    fn within_limits(&self, taken: &Occupancy, profile: usize) -> bool {
        self.limits.iter().zip(taken.limits).all(|(limit, used)| {
            used.saturating_add(limit.takes[profile]) <= limit.total || limit.takes[profile] == 0
        })
    }

    /// What is taken with one slice more. The slice must fit.
    #[must_use]
    pub fn with(&self, mut taken: Occupancy, slot: Slot) -> Occupancy {
        taken.slots |= self.profiles[slot.profile].mask(slot.start);
        for (used, limit) in taken.limits.iter_mut().zip(&self.limits) {
            *used = used.saturating_add(limit.takes[slot.profile]);
        }
        taken
    }

    /// What is taken with one slice less. The slice must be part of it.
    #[must_use]
    pub fn without(&self, mut taken: Occupancy, slot: Slot) -> Occupancy {
        taken.slots &= !self.profiles[slot.profile].mask(slot.start);
        for (used, limit) in taken.limits.iter_mut().zip(&self.limits) {
            *used = used.saturating_sub(limit.takes[slot.profile]);
        }
        taken
    }

    /// What a card with these slots taken can still offer: for each size of slice, the memory that it could
    /// be asked for at the starts that are still open, every size counting the same on an empty card when
    /// weighed by its slots.
    pub fn offer(&self, slots: u32) -> u64 {
        self.shapes
            .iter()
            .map(|s| s.weight * s.masks.iter().filter(|m| slots & **m == 0).count() as u64)
            .sum()
    }

    /// The start that leaves the card the most to offer, the lowest of several, and what is lost by it.
    pub fn best_start(&self, taken: &Occupancy, profile: usize) -> Option<(u64, u8)> {
        if !self.within_limits(taken, profile) {
            return None;
        }
        let before = self.offer(taken.slots);
        let p = &self.profiles[profile];
        let open = p.starts.iter().filter(|s| taken.slots & p.mask(**s) == 0);
        open.map(|s| (before - self.offer(taken.slots | p.mask(*s)), *s))
            .min()
    }

    /// Every layout to which no slice of these profiles can be added.
    pub fn maximal_layouts(&self, profiles: &[usize]) -> Vec<Vec<Slot>> {
        let places: Vec<Slot> = profiles
            .iter()
            .flat_map(|p| {
                self.profiles[*p].starts.iter().map(|s| Slot {
                    profile: *p,
                    start: *s,
                })
            })
            .collect();
        let mut found = Vec::new();
        self.extend(&places, 0, Occupancy::default(), &mut Vec::new(), &mut found);
        found
    }

    fn extend(
        &self,
        places: &[Slot],
        from: usize,
        taken: Occupancy,
        layout: &mut Vec<Slot>,
        found: &mut Vec<Vec<Slot>>,
    ) {
        if !places.iter().any(|p| self.fits(&taken, *p)) {
            found.push(layout.clone());
        }
        for (i, place) in places.iter().enumerate().skip(from) {
            if self.fits(&taken, *place) {
                layout.push(*place);
                self.extend(places, i + 1, self.with(taken, *place), layout, found);
                layout.pop();
            }
        }
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.profiles.iter().enumerate() {
            let lead = if i == 0 { "" } else { ", " };
            write!(f, "{lead}{}", p.name)?;
        }
        Ok(())
    }
}

/// How many slices of a profile fit on an empty card by their slots alone.
fn disjoint(profile: &Profile) -> u8 {
    let (mut count, mut end) = (0, 0);
    for start in &profile.starts {
        if *start >= end {
            count += 1;
            end = start + profile.size;
        }
    }
    count
}

fn limits(profiles: &[Profile]) -> Vec<Limit> {
    let mut limits = Vec::new();
    for (engine, name) in Engines::NAMES.iter().enumerate() {
        let takes: Vec<u8> = profiles.iter().map(|p| p.engines.counts()[engine]).collect();
        let total = takes.iter().copied().max().unwrap_or(0);
        if most(profiles, &takes) > u32::from(total) {
            limits.push(Limit {
                name: (*name).to_owned(),
                total,
                takes,
            });
        }
    }
    for (i, p) in profiles.iter().enumerate() {
        let by_engines = limits
            .iter()
            .any(|l| l.takes[i] > 0 && l.total / l.takes[i] <= p.max);
        if p.max < disjoint(p) && !by_engines {
            let takes = (0..profiles.len()).map(|other| u8::from(other == i)).collect();
            limits.push(Limit {
                name: format!("profile-{}", p.id),
                total: p.max,
                takes,
            });
        }
    }
    limits
}

/// The most that a layout could take of something if only slots and the profiles' own counts of one limited it.
fn most(profiles: &[Profile], takes: &[u8]) -> u32 {
    let single: Vec<usize> = (0..profiles.len())
        .filter(|i| profiles[*i].max == 1 && takes[*i] > 0 && disjoint(&profiles[*i]) > 1)
        .take(8)
        .collect();
    let slots = profiles
        .iter()
        .filter_map(|p| Some(p.starts.last()? + p.size))
        .max()
        .unwrap_or(0);
    // best[slot][which single ones were used]: the most below that slot.
    let sets = 1 << single.len();
    let mut best = vec![vec![0u32; sets]; usize::from(slots) + 1];
    for end in 1..=usize::from(slots) {
        for set in 0..sets {
            best[end][set] = best[end - 1][set];
            for (i, p) in profiles.iter().enumerate() {
                let Some(start) = end.checked_sub(usize::from(p.size)) else {
                    continue;
                };
                if !p.starts.iter().any(|s| usize::from(*s) == start) {
                    continue;
                }
                let rest = match single.iter().position(|s| *s == i) {
                    Some(bit) if set & (1 << bit) == 0 => continue,
                    Some(bit) => set & !(1 << bit),
                    None => set,
                };
                best[end][set] = best[end][set].max(best[start][rest] + u32::from(takes[i]));
            }
        }
    }
    best.last().and_then(|sets| sets.last()).copied().unwrap_or(0)
}

/// Divisible by every number of starts up to sixteen, so that weights are whole numbers.
const COMMON: u64 = 720_720;

fn shapes(profiles: &[Profile]) -> Vec<Shape> {
    let mut keys: Vec<(u8, &[u8])> = profiles.iter().map(|p| (p.size, p.starts.as_slice())).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .map(|(size, starts)| Shape {
            masks: starts.iter().map(|s| run(*s, size)).collect(),
            weight: u64::from(size) * COMMON / starts.len() as u64,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::boards::BOARDS;

    #[test]
    fn no_reachable_layout_overlaps_and_every_slice_comes_off_again() {
        for board in BOARDS {
            let geometry = board.geometry().unwrap();
            let places: Vec<Slot> = (0..geometry.profiles().len())
                .flat_map(|p| {
                    geometry.profiles()[p].starts.iter().map(move |s| Slot {
                        profile: p,
                        start: *s,
                    })
                })
                .collect();
            let mut reached = BTreeSet::from([Occupancy::default()]);
            let mut open = vec![Occupancy::default()];
            while let Some(taken) = open.pop() {
                for slot in &places {
                    let mask = geometry.profiles()[slot.profile].mask(slot.start);
                    if !geometry.fits(&taken, *slot) {
                        continue;
                    }
                    let with = geometry.with(taken, *slot);
                    assert_eq!(taken.slots & mask, 0, "{} {slot:?}", board.name);
                    assert_eq!(with.slots, taken.slots | mask);
                    assert_eq!(geometry.without(with, *slot), taken, "{} {slot:?}", board.name);
                    for (limit, used) in geometry.limits().iter().zip(with.limits) {
                        assert!(used <= limit.total, "{} has too many {}", board.name, limit.name);
                    }
                    assert!(geometry.offer(with.slots) < geometry.offer(taken.slots));
                    if reached.insert(with) {
                        open.push(with);
                    }
                }
            }
            assert!(reached.len() > 10, "{}: {}", board.name, reached.len());
        }
    }

    #[test]
    fn a_description_that_is_no_geometry_is_refused() {
        let profile = |size, starts: &[u8]| Profile {
            id: 0,
            constant: 0,
            name: "1g.1gb".to_owned(),
            slices: 1,
            memory: Bytes(1),
            size,
            starts: starts.to_vec(),
            max: 1,
            multiprocessors: 1,
            copy_engines: 1,
            engines: Engines::default(),
        };
        assert!(Geometry::new(vec![profile(0, &[0])]).is_err());
        assert!(Geometry::new(vec![profile(1, &[])]).is_err());
        assert!(Geometry::new(vec![profile(8, &[250])]).is_err());
        assert!(Geometry::new(vec![profile(2, &[31])]).is_err());
        assert!(Geometry::new(vec![profile(32, &[0])]).is_ok());
    }
}
