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
    /// How many media engines MIG hands out one by one.
    pub media: u32,
    /// Whether MIG mode changes without a reset (Hopper and newer).
    pub live_mode_switch: bool,
    /// The slices that can be cut from it.
    pub profiles: Vec<SimProfile>,
}

/// A kind of slice of a board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimProfile {
    /// Its id on this board.
    pub id: u32,
    /// Its name, for example `1g.5gb`.
    pub name: &'static str,
    /// How many there can be at once.
    pub max: u32,
    /// The slots at which it can begin.
    pub starts: Vec<u32>,
    /// How many slots it takes.
    pub size: u32,
    /// How many media engines it takes.
    pub media: u32,
    /// Its memory.
    pub memory: Bytes,
}

impl SimBoard {
    /// The board of that name.
    pub fn find(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|b| b.name == name)
    }

    /// Every board there is a description of.
    pub fn all() -> Vec<Self> {
        vec![
            a30(),
            eight_slots(
                "a100-40gb",
                "NVIDIA A100-SXM4-40GB",
                40_960,
                false,
                [
                    "1g.5gb",
                    "1g.5gb+me",
                    "1g.10gb",
                    "2g.10gb",
                    "3g.20gb",
                    "4g.20gb",
                    "7g.40gb",
                ],
                [4864, 9856, 9856, 19_968, 19_968, 40_192],
            ),
            eight_slots(
                "a100-80gb",
                "NVIDIA A100-SXM4-80GB",
                81_920,
                false,
                [
                    "1g.10gb",
                    "1g.10gb+me",
                    "1g.20gb",
                    "2g.20gb",
                    "3g.40gb",
                    "4g.40gb",
                    "7g.80gb",
                ],
                [9856, 19_968, 19_968, 40_192, 40_192, 80_384],
            ),
            eight_slots(
                "h100-80gb",
                "NVIDIA H100 80GB HBM3",
                81_559,
                true,
                [
                    "1g.10gb",
                    "1g.10gb+me",
                    "1g.20gb",
                    "2g.20gb",
                    "3g.40gb",
                    "4g.40gb",
                    "7g.80gb",
                ],
                [9856, 19_968, 19_968, 40_192, 40_192, 80_384],
            ),
            eight_slots(
                "h100-94gb",
                "NVIDIA H100 NVL",
                95_830,
                true,
                [
                    "1g.12gb",
                    "1g.12gb+me",
                    "1g.24gb",
                    "2g.24gb",
                    "3g.47gb",
                    "4g.47gb",
                    "7g.94gb",
                ],
                [11_008, 22_272, 22_272, 47_488, 47_488, 95_104],
            ),
            eight_slots(
                "h200-141gb",
                "NVIDIA H200",
                143_771,
                true,
                [
                    "1g.18gb",
                    "1g.18gb+me",
                    "1g.35gb",
                    "2g.35gb",
                    "3g.71gb",
                    "4g.71gb",
                    "7g.141gb",
                ],
                [16_384, 33_280, 33_280, 71_424, 71_424, 142_848],
            ),
            eight_slots(
                "b200-180gb",
                "NVIDIA B200",
                183_359,
                true,
                [
                    "1g.23gb",
                    "1g.23gb+me",
                    "1g.45gb",
                    "2g.45gb",
                    "3g.90gb",
                    "4g.90gb",
                    "7g.180gb",
                ],
                [22_272, 45_056, 45_056, 91_136, 91_136, 182_272],
            ),
            rtx_pro_6000(),
        ]
    }

    /// The profile of that name.
    pub fn profile(&self, name: &str) -> Option<&SimProfile> {
        self.profiles.iter().find(|p| p.name == name)
    }

    /// What a claim of the whole board names: its slots, then its media engines.
    pub fn parts(&self) -> Vec<String> {
        let slots = (0..self.slots).map(slot);
        slots.chain((0..self.media).map(media)).collect()
    }
}

/// The part that a slot is claimed as.
pub(super) fn slot(number: u32) -> String {
    format!("slot-{number}")
}

/// The part that a media engine is claimed as.
pub(super) fn media(number: u32) -> String {
    format!("media-{number}")
}

#[allow(clippy::too_many_arguments)]
fn profile(
    id: u32,
    name: &'static str,
    max: u32,
    starts: &[u32],
    size: u32,
    media: u32,
    memory_mb: u64,
) -> SimProfile {
    SimProfile {
        id,
        name,
        max,
        starts: starts.to_vec(),
        size,
        media,
        memory: Bytes::from_mb(memory_mb),
    }
}

/// A100 and its successors: `memory_mb` is of 1g, 1g with double memory, 2g, 3g, 4g, 7g.
fn eight_slots(
    name: &'static str,
    model: &'static str,
    board_mb: u64,
    live_mode_switch: bool,
    [one, one_me, one_double, two, three, four, seven]: [&'static str; 7],
    memory_mb: [u64; 6],
) -> SimBoard {
    let every = [0, 1, 2, 3, 4, 5, 6];
    SimBoard {
        name,
        model,
        memory: Bytes::from_mb(board_mb),
        slots: 8,
        media: 1,
        live_mode_switch,
        profiles: vec![
            profile(19, one, 7, &every, 1, 0, memory_mb[0]),
            profile(20, one_me, 1, &every, 1, 1, memory_mb[0]),
            profile(15, one_double, 4, &[0, 2, 4, 6], 2, 0, memory_mb[1]),
            profile(14, two, 3, &[0, 2, 4], 2, 0, memory_mb[2]),
            profile(9, three, 2, &[0, 4], 4, 0, memory_mb[3]),
            profile(5, four, 1, &[0], 4, 0, memory_mb[4]),
            profile(0, seven, 1, &[0], 8, 1, memory_mb[5]),
        ],
    }
}

fn a30() -> SimBoard {
    SimBoard {
        name: "a30",
        model: "NVIDIA A30",
        memory: Bytes::from_mb(24_576),
        slots: 4,
        media: 1,
        live_mode_switch: false,
        profiles: vec![
            profile(14, "1g.6gb", 4, &[0, 1, 2, 3], 1, 0, 5952),
            profile(21, "1g.6gb+me", 1, &[0, 1, 2, 3], 1, 1, 5952),
            profile(5, "2g.12gb", 2, &[0, 2], 2, 0, 11_968),
            profile(6, "2g.12gb+me", 1, &[0, 2], 2, 1, 11_968),
            profile(0, "4g.24gb", 1, &[0], 4, 1, 24_000),
        ],
    }
}

fn rtx_pro_6000() -> SimBoard {
    let (quarters, halves) = ([0, 3, 6, 9], [0, 6]);
    SimBoard {
        name: "rtx-pro-6000",
        model: "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        memory: Bytes::from_mb(97_887),
        slots: 12,
        // Four engines of each kind, and the one of which there is only one counts for three, so that two
        // slices with +me never fit and one beside three plain ones does.
        media: 7,
        live_mode_switch: true,
        profiles: vec![
            profile(14, "1g.24gb", 4, &quarters, 3, 1, 24_192),
            profile(21, "1g.24gb+me", 1, &quarters, 3, 4, 24_192),
            profile(47, "1g.24gb+gfx", 4, &quarters, 3, 1, 24_192),
            profile(65, "1g.24gb+me.all", 1, &quarters, 3, 7, 24_192),
            profile(67, "1g.24gb-me", 4, &quarters, 3, 0, 24_192),
            profile(5, "2g.48gb", 2, &halves, 6, 2, 48_512),
            profile(35, "2g.48gb+gfx", 2, &halves, 6, 2, 48_512),
            profile(64, "2g.48gb+me.all", 1, &halves, 6, 7, 48_512),
            profile(66, "2g.48gb-me", 2, &halves, 6, 0, 48_512),
            profile(0, "4g.96gb", 1, &[0], 12, 7, 97_280),
            profile(32, "4g.96gb+gfx", 1, &[0], 12, 7, 97_280),
        ],
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
                assert!(p.media <= board.media, "{} {}", board.name, p.name);
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
