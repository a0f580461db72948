//! Descriptions of GPU boards, and the flag that puts them into a node: `sim:a100-40gb*2,a30+mig`.

use crate::units::Bytes;

/// A GPU as it leaves the factory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimBoard {
    /// Its name in the flag, for example `a100-40gb`.
    pub name: &'static str,
    /// Its model, as its driver says it.
    pub model: &'static str,
    /// Its memory.
    pub memory: Bytes,
    /// How many memory slots MIG cuts it into.
    pub slots: u32,
    /// What MIG hands out beside slots, one by one.
    pub units: Vec<SimUnits>,
    /// Whether MIG mode changes without a reset (Hopper and newer).
    pub live_mode_switch: bool,
    /// The slices that can be cut from it.
    pub profiles: Vec<SimProfile>,
}

/// Something that a board has a few of, such as media engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimUnits {
    /// Its name in claims.
    pub name: String,
    /// How many there are.
    pub total: u32,
}

/// A kind of slice of a board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimProfile {
    /// Its name, for example `1g.5gb`.
    pub name: String,
    /// How many there can be at once.
    pub max: u32,
    /// The slots at which it can begin.
    pub starts: Vec<u32>,
    /// How many slots it takes.
    pub size: u32,
    /// How many of each of the board's units it takes.
    pub units: Vec<u32>,
    /// Its memory.
    pub memory: Bytes,
}

impl SimBoard {
    /// The board of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|b| b.name == name)
    }

    /// Three boards, one of each kind that matters for tests. A server may bring descriptions of its own.
    pub fn all() -> Vec<Self> {
        let media = |total| SimUnits {
            name: "media".to_owned(),
            total,
        };
        let eight = [
            (7, &[0, 1, 2, 3, 4, 5, 6][..], 1, 0),
            (1, &[0, 1, 2, 3, 4, 5, 6], 1, 1),
            (4, &[0, 2, 4, 6], 2, 0),
            (3, &[0, 2, 4], 2, 0),
            (2, &[0, 4], 4, 0),
            (1, &[0], 4, 0),
            (1, &[0], 8, 1),
        ];
        let profiles = |names: [&str; 7], mb: [u64; 7]| {
            let rows = eight.iter().zip(names).zip(mb);
            rows.map(|(((max, starts, size, units), name), mb)| {
                profile(name, *max, starts, *size, *units, mb)
            })
            .collect()
        };
        vec![
            Self {
                name: "a30",
                model: "NVIDIA A30",
                memory: Bytes::from_mb(24_576),
                slots: 4,
                units: vec![media(1)],
                live_mode_switch: false,
                profiles: vec![
                    profile("1g.6gb", 4, &[0, 1, 2, 3], 1, 0, 5952),
                    profile("1g.6gb+me", 1, &[0, 1, 2, 3], 1, 1, 5952),
                    profile("2g.12gb", 2, &[0, 2], 2, 0, 11_968),
                    profile("2g.12gb+me", 1, &[0, 2], 2, 1, 11_968),
                    profile("4g.24gb", 1, &[0], 4, 1, 24_000),
                ],
            },
            Self {
                name: "a100-40gb",
                model: "NVIDIA A100-SXM4-40GB",
                memory: Bytes::from_mb(40_960),
                slots: 8,
                units: vec![media(1)],
                live_mode_switch: false,
                profiles: profiles(
                    [
                        "1g.5gb",
                        "1g.5gb+me",
                        "1g.10gb",
                        "2g.10gb",
                        "3g.20gb",
                        "4g.20gb",
                        "7g.40gb",
                    ],
                    [4864, 4864, 9856, 9856, 19_968, 19_968, 40_192],
                ),
            },
            Self {
                name: "h100-80gb",
                model: "NVIDIA H100 80GB HBM3",
                memory: Bytes::from_mb(81_559),
                slots: 8,
                units: vec![media(1)],
                live_mode_switch: true,
                profiles: profiles(
                    [
                        "1g.10gb",
                        "1g.10gb+me",
                        "1g.20gb",
                        "2g.20gb",
                        "3g.40gb",
                        "4g.40gb",
                        "7g.80gb",
                    ],
                    [9856, 9856, 19_968, 19_968, 40_192, 40_192, 80_384],
                ),
            },
        ]
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<&SimProfile> {
        self.profiles.iter().find(|p| p.name == name)
    }

    /// What a claim of the whole board names: its slots, then its units.
    pub fn parts(&self) -> Vec<String> {
        let slots = (0..self.slots).map(slot);
        slots.chain(self.units.iter().flat_map(SimUnits::parts)).collect()
    }

    /// The units that a profile takes of those that are not taken; none where there are too few.
    pub(super) fn units_for(
        &self,
        profile: &SimProfile,
        taken: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let mut parts = Vec::new();
        for (units, wanted) in self.units.iter().zip(&profile.units) {
            let before = parts.len();
            parts.extend(units.parts().filter(|p| !taken(p)).take(*wanted as usize));
            if parts.len() - before < *wanted as usize {
                return None;
            }
        }
        Some(parts)
    }
}

impl SimUnits {
    /// The parts that they are claimed as.
    pub(super) fn parts(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.total).map(|n| format!("{}-{n}", self.name))
    }
}

/// The part that a slot is claimed as.
pub(super) fn slot(number: u32) -> String {
    format!("slot-{number}")
}

fn profile(name: &str, max: u32, starts: &[u32], size: u32, units: u32, memory_mb: u64) -> SimProfile {
    SimProfile {
        name: name.to_owned(),
        max,
        starts: starts.to_vec(),
        size,
        units: vec![units],
        memory: Bytes::from_mb(memory_mb),
    }
}

/// A card of a simulated node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimCard {
    /// What board it is.
    pub board: SimBoard,
    /// Whether MIG mode is on at first.
    pub mig: bool,
}

/// A text that describes no simulated cards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCards {
    /// It does not begin with `sim:`.
    #[error("simulated cards are written sim:BOARD[+mig][*COUNT],…, for example sim:a100-40gb*2,a30+mig")]
    Form,
    /// There is no description of this board.
    #[error("no board {name}; there are {}", names().join(", "))]
    Board {
        /// What was asked for.
        name: String,
    },
    /// A count is not 1..16, or there are more than 16 cards in all.
    #[error("{0} is not a number of cards from 1 to 16, or there are more than 16 in all")]
    Count(String),
}

fn names() -> Vec<&'static str> {
    SimBoard::all().into_iter().map(|b| b.name).collect()
}

const MOST_CARDS: usize = 16;

/// Reads the flag: `sim:a100-40gb*2,a30+mig*1`.
///
/// ```
/// let cards = hwm_core::testing::sim::parse_cards("sim:a100-40gb+mig*2,a30").unwrap();
/// assert_eq!(cards.len(), 3);
/// assert!(cards[1].mig && !cards[2].mig);
/// ```
pub fn parse_cards(text: &str) -> Result<Vec<SimCard>, InvalidCards> {
    let list = text.strip_prefix("sim:").ok_or(InvalidCards::Form)?;
    let mut cards = Vec::new();
    for item in list.split(',') {
        let item = item.trim();
        let (item, count) = match item.split_once('*') {
            None => (item, 1),
            Some((item, count)) => match count.parse() {
                Ok(n) if (1..=MOST_CARDS).contains(&n) => (item, n),
                _ => return Err(InvalidCards::Count(count.to_owned())),
            },
        };
        let (name, mig) = match item.strip_suffix("+mig") {
            Some(name) => (name, true),
            None => (item, false),
        };
        let board = SimBoard::find(name).ok_or_else(|| InvalidCards::Board {
            name: name.to_owned(),
        })?;
        if cards.len() + count > MOST_CARDS {
            return Err(InvalidCards::Count((cards.len() + count).to_string()));
        }
        cards.extend(std::iter::repeat_n(SimCard { board, mig }, count));
    }
    Ok(cards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_every_profile_is_on_the_board() {
        for board in SimBoard::all() {
            for p in &board.profiles {
                assert!(
                    board.units_for(p, |_| false).is_some(),
                    "{} {}",
                    board.name,
                    p.name
                );
                assert!(p.memory <= board.memory, "{} {}", board.name, p.name);
                assert!(
                    p.starts.iter().all(|s| s + p.size <= board.slots),
                    "{} {}",
                    board.name,
                    p.name
                );
                assert!(p.starts.len() as u32 >= p.max, "{} {}", board.name, p.name);
            }
        }
    }

    #[test]
    fn every_board_is_found_by_its_name_with_and_without_mig_and_count() {
        for board in SimBoard::all() {
            let cards = parse_cards(&format!("sim:{0},{0}+mig,{0}*2,{0}+mig*3", board.name)).unwrap();
            let mig: Vec<bool> = cards.iter().map(|c| c.mig).collect();
            assert_eq!(mig, [false, true, false, false, true, true, true]);
            assert!(cards.iter().all(|c| c.board == board));
        }
    }

    #[test]
    fn what_is_no_card_is_refused() {
        assert_eq!(parse_cards("a30"), Err(InvalidCards::Form));
        assert_eq!(
            parse_cards("sim:a31"),
            Err(InvalidCards::Board { name: "a31".into() })
        );
        assert_eq!(
            parse_cards("sim:"),
            Err(InvalidCards::Board { name: String::new() })
        );
        for bad in ["sim:a30*0", "sim:a30*17", "sim:a30*x", "sim:a30*9,a30*8"] {
            assert!(matches!(parse_cards(bad), Err(InvalidCards::Count(_))), "{bad}");
        }
    }
}
