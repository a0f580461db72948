//! Lists of simulated cards, as flags and the fake write them.

use std::fmt;

use super::{BOARDS, Board, board};

/// The most cards of a node.
const MOST: usize = 16;

/// A card of a simulated node.
#[derive(Debug, Clone, Copy)]
pub struct SimulatedCard {
    /// Its kind.
    pub board: &'static Board,
    /// Whether MIG is on.
    pub mig: bool,
}

/// A text that describes no simulated cards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCards {
    /// The board has no description.
    #[error("no board {name}; there are {}", Names)]
    UnknownBoard {
        /// The name.
        name: String,
    },
    /// The number is not one of 1 to 16, or there are more than 16 in all.
    #[error("{text} is not a number of cards from 1 to 16, or there are more than 16 in all")]
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
pub fn parse_cards(text: &str) -> Result<Vec<SimulatedCard>, InvalidCards> {
    let list = text.strip_prefix("sim:").unwrap_or(text);
    let mut cards = Vec::new();
    for item in list.split(',').map(str::trim) {
        let (kind, count) = item.split_once('*').unwrap_or((item, "1"));
        let (name, mig) = kind
            .strip_suffix("+mig")
            .map_or((kind, false), |name| (name, true));
        let board = board(name).ok_or_else(|| InvalidCards::UnknownBoard {
            name: name.to_owned(),
        })?;
        let count = count
            .parse()
            .ok()
            .filter(|n| (1..=MOST - cards.len()).contains(n));
        let count = count.ok_or_else(|| InvalidCards::Count {
            text: item.to_owned(),
        })?;
        cards.extend(std::iter::repeat_n(SimulatedCard { board, mig }, count));
    }
    Ok(cards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cards_is_read() {
        let cards = parse_cards("sim:a100-40gb+mig*2,a30*1").unwrap();
        let read: Vec<_> = cards.iter().map(|c| (c.board.name, c.mig)).collect();
        assert_eq!(read, [("a100-40gb", true), ("a100-40gb", true), ("a30", false)]);
        assert!(matches!(
            parse_cards("sim:v100*1"),
            Err(InvalidCards::UnknownBoard { .. })
        ));
        for wrong in ["a30*0", "a30*17", "a30*x", "a30*", "a30*9,a30*8"] {
            assert!(
                matches!(parse_cards(wrong), Err(InvalidCards::Count { .. })),
                "{wrong}"
            );
        }
    }
}
