//! Which profile of a card a text asks for: its name, or less than its name.

use crate::geometry::{Geometry, Profile};
use crate::node::CardState;

/// A profile as it is asked for: `1g`, `1g.5gb`, `1g.5gb+me`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    name: String,
    slices: u8,
    gigabytes: Option<u32>,
    attributes: String,
}

/// How well a profile fits what was asked; smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// It has the name.
    Exact,
    /// It has as many slices, and no less memory: so much, in bytes.
    Larger(u64),
}

impl Asked {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let name = text.trim().to_ascii_lowercase();
        let name = name.strip_prefix("mig ").unwrap_or(&name).to_owned();
        let (plain, attributes) = name.split_at(name.find(['+', '-']).unwrap_or(name.len()));
        let (slices, memory) = plain.split_once('g')?;
        let gigabytes = match memory {
            "" => None,
            _ => Some(memory.strip_prefix('.')?.strip_suffix("gb")?.parse().ok()?),
        };
        Some(Self {
            slices: slices.parse().ok()?,
            gigabytes,
            attributes: attributes.to_owned(),
            name,
        })
    }

    /// The profile of a card that would do: the one of that name, else the one with as many slices, the same
    /// attributes and the least memory that is no less than what was asked for.
    pub(super) fn find(&self, geometry: &Geometry) -> Option<(usize, Fit)> {
        if let Some(exact) = geometry.named(&self.name) {
            return Some((exact, Fit::Exact));
        }
        let enough = |p: &Profile| match (self.gigabytes, gigabytes(p)) {
            (None, _) => true,
            (Some(asked), Some(has)) => has >= asked,
            (Some(_), None) => false,
        };
        geometry
            .profiles()
            .iter()
            .enumerate()
            .filter(|(_, p)| p.slices == self.slices && p.attributes() == self.attributes && enough(p))
            .min_by_key(|(_, p)| (p.memory, p.size))
            .map(|(i, p)| (i, Fit::Larger(p.memory.0)))
    }
}

/// The memory in a profile's name.
fn gigabytes(profile: &Profile) -> Option<u32> {
    let rest = profile.name.split_once('.')?.1;
    rest.split_once("gb")?.0.parse().ok()
}

/// What was chosen for a request, where it is not what was asked for by name.
pub(super) fn explain(asked: &str, chosen: &str) -> Option<String> {
    (!asked.eq_ignore_ascii_case(chosen)).then(|| {
        format!("{asked} is {chosen} on this card: as many slices, and the least memory that is no less")
    })
}

/// Says which profiles there are.
pub(super) fn none_has_it<'a>(asked: &str, cards: impl Iterator<Item = &'a CardState>) -> String {
    let mut kinds: Vec<String> = cards
        .filter_map(|c| Some(format!("{} has {}", c.model, c.geometry.as_ref()?)))
        .collect();
    kinds.sort();
    kinds.dedup();
    if kinds.is_empty() {
        return format!("{asked} cannot be had: no GPU of this node has MIG");
    }
    format!(
        "no GPU of this node has {asked}, or more memory in as many slices: {}",
        kinds.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boards::board;

    fn find(board_name: &str, asked: &str) -> Option<String> {
        let geometry = board(board_name).unwrap().geometry().unwrap();
        let (profile, _) = Asked::parse(asked)?.find(&geometry)?;
        Some(geometry.profiles()[profile].name.clone())
    }

    #[test]
    fn a_profile_is_found_by_name_or_by_less() {
        for (board, asked, found) in [
            ("a100-40gb", "1g.5gb", Some("1g.5gb")),
            ("a100-40gb", "MIG 1g.5gb", Some("1g.5gb")),
            ("a100-40gb", "1G.5GB+ME", Some("1g.5gb+me")),
            ("a100-40gb", "1g", Some("1g.5gb")),
            ("a100-40gb", "1g.10gb", Some("1g.10gb")),
            ("a100-80gb", "1g.5gb", Some("1g.10gb")),
            ("a100-80gb", "1g.12gb", Some("1g.20gb")),
            ("a100-80gb", "2g.10gb", Some("2g.20gb")),
            ("rtx-pro-6000", "1g+gfx", Some("1g.24gb+gfx")),
            ("a100-40gb", "2g.20gb", None),
            ("a100-40gb", "5g", None),
            ("a100-40gb", "1g+gfx", None),
        ] {
            assert_eq!(find(board, asked).as_deref(), found, "{asked} on {board}");
        }
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in [
            "",
            "g",
            "1",
            "1x.5gb",
            "1g5gb",
            "1g.gb",
            "1g.5",
            "-1g",
            "999g",
            "1g.5gb\n..",
        ] {
            assert_eq!(
                Asked::parse(text).filter(|a| a.attributes.is_empty()),
                None,
                "{text}"
            );
        }
    }
}
