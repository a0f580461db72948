//! The boards that hwm knows by name: for planning without a card, for simulated nodes and for the fake.
//!
//! At run time a card's own answer is the truth, and these tables are not asked. Figures of the H200, the
//! B200 and the RTX PRO 6000 beyond names and placements are inferred from the boards beside them.

use std::fmt;

use hwm_core::units::Bytes;

use crate::geometry::{Engines, Geometry, InvalidGeometry, Profile};

/// A generation of cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// A30, A100: a change of MIG mode needs a reset of the card.
    Ampere,
    /// H100, H200: MIG mode changes live.
    Hopper,
    /// B200, RTX PRO 6000: MIG mode changes live.
    Blackwell,
}

impl Architecture {
    /// Whether MIG mode changes without a reset.
    pub const fn switches_live(self) -> bool {
        match self {
            Self::Ampere => false,
            Self::Hopper | Self::Blackwell => true,
        }
    }
}

/// A kind of card.
#[derive(Debug, Clone, Copy)]
pub struct Board {
    /// Its name in `sim:` and in the fake, for example `a100-40gb`.
    pub name: &'static str,
    /// Its name as the driver gives it.
    pub model: &'static str,
    /// Its generation.
    pub architecture: Architecture,
    /// PCI device and vendor, as NVML gives them.
    pub pci_id: u32,
    /// Memory of the whole card, in MiB.
    pub memory_mib: u64,
    /// The most power it draws, in W.
    pub power_watts: u32,
    /// NVLinks; none where it has none.
    pub nvlinks: u8,
    rows: &'static [Row],
}

impl Board {
    /// How it can be cut.
    ///
    /// # Errors
    ///
    /// None for the boards of this file, as a test shows.
    pub fn geometry(&self) -> Result<Geometry, InvalidGeometry> {
        Geometry::new(self.rows.iter().map(Row::profile).collect())
    }
}

/// Every board.
pub const BOARDS: &[Board] = &[
    A30,
    A100_40,
    A100_80,
    H100_80,
    H100_94,
    H100_96,
    H200,
    B200,
    RTX_PRO_6000,
];

/// The board of this name.
pub fn board(name: &str) -> Option<&'static Board> {
    BOARDS.iter().find(|b| b.name == name)
}

/// Some cards of a simulated node.
#[derive(Debug, Clone, Copy)]
pub struct SimulatedCards {
    /// Their kind.
    pub board: &'static Board,
    /// Whether MIG is on.
    pub mig: bool,
    /// How many.
    pub count: u32,
}

/// A text that describes no simulated cards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCards {
    /// The board has no description.
    #[error("{name} is not a board; there are {}", Names)]
    UnknownBoard {
        /// The name.
        name: String,
    },
    /// The number is not one of 1 to 16.
    #[error("{text} is not a number of cards from 1 to 16")]
    Count {
        /// The number.
        text: String,
    },
}

struct Names;

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, board) in BOARDS.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, board.name)?;
        }
        Ok(())
    }
}

/// Reads a list such as `a100-40gb+mig*2,a30*1`, with or without `sim:` before it.
///
/// # Errors
///
/// A board that has no description, or a number of cards beyond 1 to 16.
pub fn parse_cards(text: &str) -> Result<Vec<SimulatedCards>, InvalidCards> {
    let list = text.strip_prefix("sim:").unwrap_or(text);
    list.split(',')
        .map(|item| {
            let (kind, count) = item.trim().split_once('*').unwrap_or((item.trim(), "1"));
            let (name, mig) = kind
                .strip_suffix("+mig")
                .map_or((kind, false), |name| (name, true));
            let board = board(name).ok_or_else(|| InvalidCards::UnknownBoard {
                name: name.to_owned(),
            })?;
            let count = count.parse().ok().filter(|n| (1..=16).contains(n));
            let count = count.ok_or_else(|| InvalidCards::Count {
                text: item.trim().to_owned(),
            })?;
            Ok(SimulatedCards { board, mig, count })
        })
        .collect()
}

#[derive(Debug, Clone, Copy)]
struct Row {
    id: u32,
    constant: u32,
    name: &'static str,
    slices: u8,
    mib: u64,
    size: u8,
    starts: &'static [u8],
    max: u8,
    sm: u16,
    copy: u8,
    /// Decoders, encoders, JPEG, OFA.
    engines: [u8; 4],
}

impl Row {
    fn profile(&self) -> Profile {
        let [decoders, encoders, jpeg, ofa] = self.engines;
        Profile {
            id: self.id,
            constant: self.constant,
            name: self.name.to_owned(),
            slices: self.slices,
            memory: Bytes::from_mb(self.mib),
            size: self.size,
            starts: self.starts.to_vec(),
            max: self.max,
            multiprocessors: self.sm,
            copy_engines: self.copy,
            engines: Engines {
                decoders,
                encoders,
                jpeg,
                ofa,
            },
        }
    }
}

/// Names and memory of the seven profiles of a card with eight slots: ids 19, 20, 15, 14, 9, 5, 0.
struct Eight {
    names: [&'static str; 7],
    mib: [u64; 7],
    sm: [u16; 7],
    copy: [u8; 7],
    engines: [[u8; 4]; 7],
}

/// Id, NVML's constant, slices, slots, starts, how many at most.
type Places = (u32, u32, u8, u8, &'static [u8], u8);

const fn eight(t: &Eight) -> [Row; 7] {
    const PLACES: [Places; 7] = [
        (19, 0, 1, 1, &[0, 1, 2, 3, 4, 5, 6], 7),
        (20, 7, 1, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
        (15, 9, 1, 2, &[0, 2, 4, 6], 4),
        (14, 1, 2, 2, &[0, 2, 4], 3),
        (9, 2, 3, 4, &[0, 4], 2),
        (5, 3, 4, 4, &[0], 1),
        (0, 4, 7, 8, &[0], 1),
    ];
    let empty = Row {
        id: 0,
        constant: 0,
        name: "",
        slices: 0,
        mib: 0,
        size: 0,
        starts: &[],
        max: 0,
        sm: 0,
        copy: 0,
        engines: [0; 4],
    };
    let mut rows = [empty; 7];
    let mut i = 0;
    while i < 7 {
        let (id, constant, slices, size, starts, max) = PLACES[i];
        rows[i] = Row {
            id,
            constant,
            name: t.names[i],
            slices,
            mib: t.mib[i],
            size,
            starts,
            max,
            sm: t.sm[i],
            copy: t.copy[i],
            engines: t.engines[i],
        };
        i += 1;
    }
    rows
}

const GA100_SM: [u16; 7] = [14, 14, 14, 28, 42, 56, 98];
const GA100_COPY: [u8; 7] = [1, 1, 1, 2, 3, 4, 7];
const GA100_ENGINES: [[u8; 4]; 7] = [
    [0, 0, 0, 0],
    [1, 0, 1, 1],
    [1, 0, 0, 0],
    [1, 0, 0, 0],
    [2, 0, 0, 0],
    [2, 0, 0, 0],
    [5, 0, 1, 1],
];
const GH100_SM: [u16; 7] = [16, 16, 26, 32, 60, 64, 132];
const GH100_COPY: [u8; 7] = [1, 1, 1, 2, 3, 4, 8];
const GH100_ENGINES: [[u8; 4]; 7] = [
    [1, 0, 1, 0],
    [1, 0, 1, 1],
    [1, 0, 1, 0],
    [2, 0, 2, 0],
    [3, 0, 3, 0],
    [4, 0, 4, 0],
    [7, 0, 7, 1],
];

const A100_40: Board = Board {
    name: "a100-40gb",
    model: "NVIDIA A100-SXM4-40GB",
    architecture: Architecture::Ampere,
    pci_id: 0x20B0_10DE,
    memory_mib: 40960,
    power_watts: 400,
    nvlinks: 12,
    rows: &eight(&Eight {
        names: [
            "1g.5gb",
            "1g.5gb+me",
            "1g.10gb",
            "2g.10gb",
            "3g.20gb",
            "4g.20gb",
            "7g.40gb",
        ],
        mib: [4864, 4864, 9856, 9856, 19968, 19968, 40192],
        sm: GA100_SM,
        copy: GA100_COPY,
        engines: GA100_ENGINES,
    }),
};

const NAMES_80: [&str; 7] = [
    "1g.10gb",
    "1g.10gb+me",
    "1g.20gb",
    "2g.20gb",
    "3g.40gb",
    "4g.40gb",
    "7g.80gb",
];

const A100_80: Board = Board {
    name: "a100-80gb",
    model: "NVIDIA A100-SXM4-80GB",
    architecture: Architecture::Ampere,
    pci_id: 0x20B2_10DE,
    memory_mib: 81920,
    power_watts: 400,
    nvlinks: 12,
    rows: &eight(&Eight {
        names: NAMES_80,
        mib: [9856, 9856, 19968, 19968, 40192, 40192, 80384],
        sm: GA100_SM,
        copy: GA100_COPY,
        engines: GA100_ENGINES,
    }),
};

const H100_80: Board = Board {
    name: "h100-80gb",
    model: "NVIDIA H100 80GB HBM3",
    architecture: Architecture::Hopper,
    pci_id: 0x2330_10DE,
    memory_mib: 81559,
    power_watts: 700,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: NAMES_80,
        mib: [9984, 9984, 20096, 20096, 40448, 40448, 81152],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

const H100_94: Board = Board {
    name: "h100-94gb",
    model: "NVIDIA H100 NVL",
    architecture: Architecture::Hopper,
    pci_id: 0x2321_10DE,
    memory_mib: 95830,
    power_watts: 400,
    nvlinks: 12,
    rows: &eight(&Eight {
        names: [
            "1g.12gb",
            "1g.12gb+me",
            "1g.24gb",
            "2g.24gb",
            "3g.47gb",
            "4g.47gb",
            "7g.94gb",
        ],
        mib: [11776, 11776, 23808, 23808, 47616, 47616, 95488],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

const H100_96: Board = Board {
    name: "h100-96gb",
    model: "NVIDIA GH200 96GB HBM3",
    architecture: Architecture::Hopper,
    pci_id: 0x2342_10DE,
    memory_mib: 97871,
    power_watts: 700,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: [
            "1g.12gb",
            "1g.12gb+me",
            "1g.24gb",
            "2g.24gb",
            "3g.48gb",
            "4g.48gb",
            "7g.96gb",
        ],
        mib: [12032, 12032, 24192, 24192, 48512, 48512, 97408],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

const H200: Board = Board {
    name: "h200",
    model: "NVIDIA H200",
    architecture: Architecture::Hopper,
    pci_id: 0x2335_10DE,
    memory_mib: 143_771,
    power_watts: 700,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: [
            "1g.18gb",
            "1g.18gb+me",
            "1g.35gb",
            "2g.35gb",
            "3g.71gb",
            "4g.71gb",
            "7g.141gb",
        ],
        mib: [17792, 17792, 35712, 35712, 71552, 71552, 143_360],
        sm: GH100_SM,
        copy: GH100_COPY,
        engines: GH100_ENGINES,
    }),
};

const B200: Board = Board {
    name: "b200",
    model: "NVIDIA B200",
    architecture: Architecture::Blackwell,
    pci_id: 0x2901_10DE,
    memory_mib: 183_359,
    power_watts: 1000,
    nvlinks: 18,
    rows: &eight(&Eight {
        names: [
            "1g.23gb",
            "1g.23gb+me",
            "1g.45gb",
            "2g.45gb",
            "3g.90gb",
            "4g.90gb",
            "7g.180gb",
        ],
        mib: [22784, 22784, 45696, 45696, 91520, 91520, 182_912],
        sm: [18, 18, 30, 36, 70, 72, 148],
        copy: [2, 2, 2, 4, 6, 8, 16],
        engines: GH100_ENGINES,
    }),
};

const A30: Board = Board {
    name: "a30",
    model: "NVIDIA A30",
    architecture: Architecture::Ampere,
    pci_id: 0x20B7_10DE,
    memory_mib: 24576,
    power_watts: 165,
    nvlinks: 4,
    rows: &[
        a30(14, 0, "1g.6gb", 1, 5952, &[0, 1, 2, 3], 4, [0, 0, 0, 0]),
        a30(21, 7, "1g.6gb+me", 1, 5952, &[0, 1, 2, 3], 1, [1, 0, 1, 1]),
        a30(5, 1, "2g.12gb", 2, 12032, &[0, 2], 2, [2, 0, 0, 0]),
        a30(6, 8, "2g.12gb+me", 2, 12032, &[0, 2], 1, [2, 0, 1, 1]),
        a30(0, 3, "4g.24gb", 4, 24192, &[0], 1, [4, 0, 1, 1]),
    ],
};

#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn a30(
    id: u32,
    constant: u32,
    name: &'static str,
    slices: u8,
    mib: u64,
    starts: &'static [u8],
    max: u8,
    engines: [u8; 4],
) -> Row {
    Row {
        id,
        constant,
        name,
        slices,
        mib,
        size: slices,
        starts,
        max,
        sm: 14 * slices as u16,
        copy: slices,
        engines,
    }
}

const RTX_PRO_6000: Board = Board {
    name: "rtx-pro-6000",
    model: "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    architecture: Architecture::Blackwell,
    pci_id: 0x2BB5_10DE,
    memory_mib: 97887,
    power_watts: 600,
    nvlinks: 0,
    rows: &[
        pro(14, 0, "1g.24gb", 1, 4, [1, 1, 1, 0]),
        pro(21, 7, "1g.24gb+me", 1, 1, [1, 1, 1, 1]),
        pro(47, 10, "1g.24gb+gfx", 1, 4, [1, 1, 1, 0]),
        pro(65, 15, "1g.24gb+me.all", 1, 1, [4, 4, 4, 1]),
        pro(67, 13, "1g.24gb-me", 1, 4, [0, 0, 0, 0]),
        pro(5, 1, "2g.48gb", 2, 2, [2, 2, 2, 0]),
        pro(35, 11, "2g.48gb+gfx", 2, 2, [2, 2, 2, 0]),
        pro(64, 16, "2g.48gb+me.all", 2, 1, [4, 4, 4, 1]),
        pro(66, 14, "2g.48gb-me", 2, 2, [0, 0, 0, 0]),
        pro(0, 3, "4g.96gb", 4, 1, [4, 4, 4, 1]),
        pro(32, 12, "4g.96gb+gfx", 4, 1, [4, 4, 4, 1]),
    ],
};

const fn pro(id: u32, constant: u32, name: &'static str, slices: u8, max: u8, engines: [u8; 4]) -> Row {
    let (mib, starts, sm): (u64, &[u8], u16) = match slices {
        1 => (24192, &[0, 3, 6, 9], 46),
        2 => (48512, &[0, 6], 94),
        _ => (97280, &[0], 188),
    };
    Row {
        id,
        constant,
        name,
        slices,
        mib,
        size: 3 * slices,
        starts,
        max,
        sm,
        copy: slices,
        engines,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(geometry: &Geometry, wanted: &[&str]) -> Vec<usize> {
        wanted.iter().map(|n| geometry.named(n).unwrap()).collect()
    }

    #[test]
    fn an_empty_card_with_eight_slots_has_19_maximal_layouts_and_78_with_double_memory() {
        for board in BOARDS
            .iter()
            .filter(|b| !matches!(b.name, "a30" | "rtx-pro-6000"))
        {
            let geometry = board.geometry().unwrap();
            assert_eq!(geometry.slots(), 8, "{}", board.name);
            let by_id = |ids: &[u32]| -> Vec<usize> {
                ids.iter()
                    .map(|id| geometry.profiles().iter().position(|p| p.id == *id).unwrap())
                    .collect()
            };
            assert_eq!(
                geometry.maximal_layouts(&by_id(&[19, 14, 9, 5, 0])).len(),
                19,
                "{}",
                board.name
            );
            assert_eq!(
                geometry.maximal_layouts(&by_id(&[19, 15, 14, 9, 5, 0])).len(),
                78,
                "{}",
                board.name
            );
        }
    }

    #[test]
    fn only_what_can_run_out_before_the_slots_is_a_limit() {
        let names = |board: Board| -> Vec<String> {
            board
                .geometry()
                .unwrap()
                .limits()
                .iter()
                .map(|l| format!("{}×{}", l.name, l.total))
                .collect()
        };
        assert_eq!(names(A100_40), ["profile-20×1"]);
        assert_eq!(names(RTX_PRO_6000), ["dec×4", "enc×4", "jpeg×4", "ofa×1"]);
    }

    #[test]
    fn one_slice_with_media_extensions_leaves_room_for_none_other() {
        let geometry = A100_40.geometry().unwrap();
        let me = plain(&geometry, &["1g.5gb+me"])[0];
        let taken = geometry.with(
            crate::geometry::Occupancy::default(),
            crate::geometry::Slot {
                profile: me,
                start: 0,
            },
        );
        assert!(!geometry.fits(
            &taken,
            crate::geometry::Slot {
                profile: me,
                start: 1
            }
        ));
        let one = plain(&geometry, &["1g.5gb"])[0];
        assert!(geometry.fits(
            &taken,
            crate::geometry::Slot {
                profile: one,
                start: 1
            }
        ));
    }

    #[test]
    fn a_list_of_cards_is_read() {
        let cards = parse_cards("sim:a100-40gb+mig*2,a30*1").unwrap();
        let read: Vec<_> = cards.iter().map(|c| (c.board.name, c.mig, c.count)).collect();
        assert_eq!(read, [("a100-40gb", true, 2), ("a30", false, 1)]);
        assert!(matches!(
            parse_cards("sim:v100*1"),
            Err(InvalidCards::UnknownBoard { .. })
        ));
        for wrong in ["a30*0", "a30*17", "a30*x", "a30*"] {
            assert!(
                matches!(parse_cards(wrong), Err(InvalidCards::Count { .. })),
                "{wrong}"
            );
        }
    }
}
