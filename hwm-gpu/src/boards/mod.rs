//! The boards that hwm knows by name: for planning without a card, for simulated nodes and for the fake.
//!
//! At run time a card's own answer is the truth, and these tables are not asked. Figures of the H200, the
//! B200 and the RTX PRO 6000 beyond names and placements are inferred from the boards beside them.

mod list;
mod tables;

pub use list::{InvalidCards, SimulatedCard, parse_cards};
use tables::Row;

use crate::geometry::{Geometry, InvalidGeometry};

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
    tables::A30,
    tables::A100_40,
    tables::A100_80,
    tables::H100_80,
    tables::H100_94,
    tables::H100_96,
    tables::H200,
    tables::B200,
    tables::RTX_PRO_6000,
];

/// The board of this name.
pub fn board(name: &str) -> Option<&'static Board> {
    BOARDS.iter().find(|b| b.name == name)
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
        assert_eq!(names(tables::A100_40), ["profile-20×1"]);
        assert_eq!(names(tables::RTX_PRO_6000), ["dec×4", "enc×4", "jpeg×4", "ofa×1"]);
    }

    #[test]
    fn one_slice_with_media_extensions_leaves_room_for_none_other() {
        let geometry = tables::A100_40.geometry().unwrap();
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
}
