//! How good and how fast placement is.
//!
//! `quality` plays arrivals and departures of slices on 32 A100-40GB under hwm's choice, its peers' and a
//! bound that moves what runs, on identical seeds. `speed` times decisions on 64 and on 10,000 cards.
//! Without an argument both run.
#![allow(clippy::print_stderr, reason = "a bench reports")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use hwm_benches::Figure;
use hwm_gpu::boards::board;
use hwm_gpu::fleet::{Fleet, Place, Wanted};
use hwm_gpu::geometry::{Geometry, Occupancy, Slot};

const BENCH: &str = "placement";
const CARDS: usize = 32;
const ARRIVALS: usize = 6_000;
const SEEDS: u64 = 30;
/// The six plain profiles, by the card's numbers.
const IDS: [u32; 6] = [19, 15, 14, 9, 5, 0];
const MIXES: [(&str, [f64; 6]); 3] = [
    ("uniform", [1.0; 6]),
    ("no 7g", [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
    ("mostly small", [0.6, 0.08, 0.08, 0.08, 0.08, 0.08]),
];
const LOADS: [f64; 3] = [0.7, 0.9, 1.1];

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn exponential(&mut self) -> f64 {
        -self.unit().ln()
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

struct World {
    geometry: Arc<Geometry>,
    /// Where each of the six stands in the geometry.
    profiles: [usize; 6],
}

struct Arrival {
    kind: usize,
    at: f64,
    leaves: f64,
}

/// Load is the slots asked for over the slots there are.
fn arrivals(world: &World, seed: u64, mix: &[f64; 6], load: f64) -> Vec<Arrival> {
    let mut random = Random(seed.wrapping_mul(7919).wrapping_add(17));
    let total: f64 = mix.iter().sum();
    let size = |k: usize| f64::from(world.geometry.profiles()[world.profiles[k]].size);
    let mean: f64 = (0..6).map(|k| mix[k] * size(k)).sum::<f64>() / total;
    let rate = load * (CARDS * usize::from(world.geometry.slots())) as f64 / mean;
    let mut at = 0.0;
    (0..ARRIVALS)
        .map(|_| {
            at += random.exponential() / rate;
            let mut left = random.unit() * total;
            let kind = (0..6)
                .find(|k| {
                    left -= mix[*k];
                    left < 0.0
                })
                .unwrap_or(0);
            Arrival {
                kind,
                at,
                leaves: at + random.exponential(),
            }
        })
        .collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Policy {
    Random,
    /// The first card that fits, at its lowest start.
    Dra,
    /// The first card that fits; 1g and 3g at the highest start, others at the lowest.
    Hami,
    /// The fullest card that fits, at its lowest start.
    BestFit,
    Ours,
    /// Whatever fits when all that runs may be moved.
    Repack,
}

const POLICIES: [(&str, Policy); 6] = [
    ("random", Policy::Random),
    ("DRA order", Policy::Dra),
    ("HAMi order", Policy::Hami),
    ("best-fit low", Policy::BestFit),
    ("hwm", Policy::Ours),
    ("repack bound", Policy::Repack),
];

/// Shares of requests accepted, and of the slots they asked for.
fn play(world: &World, policy: Policy, seed: u64, arrivals: &[Arrival]) -> (f64, f64) {
    let mut fleet = Fleet::default();
    let geometry = fleet.add_geometry(world.geometry.clone());
    for _ in 0..CARDS {
        fleet.add_card(geometry, Occupancy::default());
    }
    let mut random = Random(seed ^ 0xA5A5);
    let mut running = [0i64; 6];
    let mut departures: BinaryHeap<Reverse<(u64, usize, usize)>> = BinaryHeap::new();
    let mut places: Vec<Option<Place>> = Vec::new();
    let (mut accepted, mut slots, mut wanted_slots) = (0u32, 0u32, 0u32);
    for arrival in arrivals {
        while let Some(Reverse((when, id, kind))) = departures.peek().copied() {
            // Times are positive, so their bits are in the order of their values.
            if f64::from_bits(when) > arrival.at {
                break;
            }
            departures.pop();
            running[kind] -= 1;
            if let Some(place) = places[id] {
                fleet.vacate(place);
            }
        }
        let profile = world.profiles[arrival.kind];
        let size = u32::from(world.geometry.profiles()[profile].size);
        wanted_slots += size;
        let place = match policy {
            Policy::Repack => {
                running[arrival.kind] += 1;
                if !fits_when_moved(&running) {
                    running[arrival.kind] -= 1;
                    continue;
                }
                running[arrival.kind] -= 1;
                None
            }
            Policy::Ours => match fleet.choose(&[Wanted { geometry, profile }]) {
                Some(place) => Some(place),
                None => continue,
            },
            Policy::Random | Policy::Dra | Policy::Hami | Policy::BestFit => {
                match peer(world, policy, &fleet, profile, &mut random) {
                    Some(place) => Some(place),
                    None => continue,
                }
            }
        };
        if let Some(place) = place {
            assert!(fleet.occupy(place), "a policy chose a place that is taken");
        }
        running[arrival.kind] += 1;
        departures.push(Reverse((arrival.leaves.to_bits(), places.len(), arrival.kind)));
        places.push(place);
        accepted += 1;
        slots += size;
    }
    (
        f64::from(accepted) / arrivals.len() as f64,
        f64::from(slots) / f64::from(wanted_slots),
    )
}

fn peer(world: &World, policy: Policy, fleet: &Fleet, profile: usize, random: &mut Random) -> Option<Place> {
    let p = &world.geometry.profiles()[profile];
    let open = |card: usize| {
        let taken = fleet.taken(card).slots;
        p.starts.iter().copied().filter(move |s| taken & p.mask(*s) == 0)
    };
    let place = |card: usize, start: u8| Place {
        card,
        slot: Slot { profile, start },
    };
    match policy {
        Policy::Random => {
            let all: Vec<Place> = (0..CARDS)
                .flat_map(|c| open(c).map(move |s| place(c, s)))
                .collect();
            (!all.is_empty()).then(|| all[random.below(all.len())])
        }
        Policy::Hami if matches!(p.slices, 1 | 3) && p.size != 2 => {
            (0..CARDS).find_map(|c| open(c).next_back().map(|s| place(c, s)))
        }
        Policy::Dra | Policy::Hami => (0..CARDS).find_map(|c| open(c).next().map(|s| place(c, s))),
        Policy::BestFit => (0..CARDS)
            .filter_map(|c| {
                open(c)
                    .next()
                    .map(|s| (Reverse(fleet.taken(c).slots.count_ones()), c, s))
            })
            .min()
            .map(|(_, c, s)| place(c, s)),
        Policy::Ours | Policy::Repack => None,
    }
}

/// Whether so many of each of the six can be on the cards at once. Exact: a card is a half of four slots and
/// a half of three and a tail that only a 3g or a double 1g can use; 3g take either half, the rest pairs.
fn fits_when_moved(n: &[i64; 6]) -> bool {
    let [ones, doubles, twos, threes, fours, sevens] = *n;
    let cards = CARDS as i64 - sevens;
    let left = cards - fours;
    left >= 0
        && (0..=threes.min(cards)).any(|on_right| {
            let left = left - (threes - on_right);
            let right = cards - on_right;
            // A pair before the tail takes anything of two slots, a tail pair a double 1g or one 1g.
            let pairs = 2 * left + right - twos;
            let in_tail = doubles.min(right);
            let pairs = pairs - (doubles - in_tail);
            left >= 0 && pairs >= 0 && 2 * left + right >= twos && 2 * pairs + (right - in_tail) >= ones
        })
}

fn interval(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // Student's t for 29 degrees of freedom.
    (mean, 2.045 * (variance / n).sqrt())
}

/// Answers whether hwm is better than its peers in every mix and load, by the lower end of the interval.
fn quality(world: &World) -> bool {
    type Pick = fn(&(f64, f64)) -> f64;
    const SHARES: [(&str, Pick); 2] = [("requests", |s| s.0), ("slots", |s| s.1)];
    let mut all_above = true;
    eprintln!("{CARDS} x A100-40GB, {ARRIVALS} arrivals, {SEEDS} seeds: requests accepted (slots accepted)");
    for (mix_name, mix) in &MIXES {
        for load in LOADS {
            eprint!("{mix_name:13} {load}");
            let traces: Vec<_> = (0..SEEDS).map(|seed| arrivals(world, seed, mix, load)).collect();
            let mut results = Vec::new();
            for (name, policy) in POLICIES {
                let shares: Vec<(f64, f64)> = traces
                    .iter()
                    .enumerate()
                    .map(|(seed, t)| play(world, policy, seed as u64, t))
                    .collect();
                let mean = |pick: Pick| shares.iter().map(pick).sum::<f64>() / SEEDS as f64;
                eprint!(" | {name} {:.4} ({:.4})", mean(|s| s.0), mean(|s| s.1));
                results.push((name, policy, mean(|s| s.0), mean(|s| s.1), shares));
            }
            eprintln!();
            let bound = results.last().map_or((1.0, 1.0), |r| (r.2, r.3));
            for (name, _, requests, slots, _) in &results {
                for (what, value, most) in [("requests", requests, bound.0), ("slots", slots, bound.1)] {
                    Figure {
                        name: format!("{mix_name}, load {load}, {name}: {what} accepted"),
                        value: value * 100.0,
                        unit: "%",
                        beside: Some(("repack bound", most * 100.0)),
                        target: None,
                    }
                    .print(BENCH);
                }
            }
            let shares = |policy| {
                let found = results.iter().find(|(_, p, ..)| *p == policy);
                &found.expect("a known policy").4
            };
            let ours = shares(Policy::Ours);
            for (name, other) in [("DRA order", Policy::Dra), ("HAMi order", Policy::Hami)] {
                for (what, pick) in SHARES {
                    let difference: Vec<f64> = ours
                        .iter()
                        .zip(shares(other))
                        .map(|(a, b)| pick(a) - pick(b))
                        .collect();
                    let (mean, half) = interval(&difference);
                    all_above &= mean - half > 0.0;
                    eprintln!("    hwm - {name}, {what}: {mean:+.4} ± {half:.4}");
                    Figure {
                        name: format!(
                            "{mix_name}, load {load}, hwm - {name}: {what}, low end of the 95 % interval of paired differences"
                        ),
                        value: (mean - half) * 100.0,
                        unit: "points",
                        beside: Some(("mean", mean * 100.0)),
                        target: Some("above 0"),
                    }
                    .print(BENCH);
                }
            }
        }
    }
    all_above
}

/// Decisions a second on cards that are held as `mix` would hold them, each with its release.
fn speed(world: &World, cards: usize, mix: &[f64; 6], full: bool) -> f64 {
    let mut fleet = Fleet::default();
    let geometry = fleet.add_geometry(world.geometry.clone());
    for _ in 0..cards {
        fleet.add_card(geometry, Occupancy::default());
    }
    let mut random = Random(7);
    let total: f64 = mix.iter().sum();
    let mut draw = || {
        let mut left = random.unit() * total;
        (0..6)
            .find(|k| {
                left -= mix[*k];
                left < 0.0
            })
            .unwrap_or(0)
    };
    let mut held = Vec::new();
    let goal = if full { cards * 7 } else { cards * 2 };
    let mut misses = 0;
    while held.len() < goal && misses < 200 {
        let profile = world.profiles[draw()];
        match fleet.choose(&[Wanted { geometry, profile }]) {
            Some(place) => {
                assert!(fleet.occupy(place));
                held.push(place);
            }
            None => misses += 1,
        }
    }
    let mut random = Random(11);
    let rounds = 400_000;
    let begun = Instant::now();
    for _ in 0..rounds {
        let at = random.below(held.len());
        let gone = held[at];
        fleet.vacate(gone);
        let wanted = Wanted {
            geometry,
            profile: gone.slot.profile,
        };
        let place = black_box(fleet.choose(black_box(&[wanted]))).expect("room was just made");
        assert!(fleet.occupy(place));
        held[at] = place;
    }
    let rate = f64::from(rounds) / begun.elapsed().as_secs_f64();
    eprintln!(
        "{cards:6} cards, {:6} slices held: {rate:>9.0} decisions/s, place and release included",
        held.len()
    );
    rate
}

fn main() {
    let geometry = board("a100-40gb")
        .and_then(|b| b.geometry().ok())
        .expect("the board is described");
    let profiles = IDS.map(|id| {
        geometry
            .profiles()
            .iter()
            .position(|p| p.id == id)
            .expect("a known profile")
    });
    let world = World {
        geometry: Arc::new(geometry),
        profiles,
    };
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let runs = |name: &str| only.as_deref().is_none_or(|o| o == name);
    if runs("speed") {
        let ones = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        for (name, mix, full) in [("1g only", ones, true), ("uniform", MIXES[0].1, false)] {
            eprintln!("{name}");
            let few = speed(&world, 64, &mix, full);
            let many = speed(&world, 10_000, &mix, full);
            eprintln!("       per decision {:.2} times that on 64 cards", few / many);
            Figure {
                name: format!("decisions on 64 cards, {name}, place and release included"),
                value: few,
                unit: "1/s",
                beside: None,
                target: Some("at least 100,000"),
            }
            .print(BENCH);
            Figure {
                name: format!("a decision on 10,000 cards, {name}"),
                value: 1e6 / many,
                unit: "µs",
                beside: Some(("on 64 cards", 1e6 / few)),
                target: Some("at most 2 × with 70,000 slices held"),
            }
            .print(BENCH);
        }
    }
    if runs("quality") && !quality(&world) {
        eprintln!("NOT better than its peers in every mix and load");
        std::process::exit(1);
    }
}
