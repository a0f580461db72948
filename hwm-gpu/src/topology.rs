//! Which whole cards go together: NVLink first, then a shared PCIe switch, then a NUMA node. Pure.

/// Where a card is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Location {
    /// PCI address.
    pub address: String,
    /// PCI bridges above it, from the root.
    pub path: Vec<String>,
    /// NUMA node.
    pub numa: Option<i32>,
    /// Cards that it has NVLinks to, by address, and how many.
    pub nvlinks: Vec<(String, u32)>,
}

/// How near two cards are; larger is nearer. No number of a lower kind outweighs one of a higher.
fn nearness(a: &Location, b: &Location) -> u64 {
    let links = a
        .nvlinks
        .iter()
        .find(|(peer, _)| *peer == b.address)
        .map_or(0, |(_, n)| *n);
    // The first two are the host bridge and the root port; sharing more means sharing a switch.
    let shared = a.path.iter().zip(&b.path).take_while(|(a, b)| a == b).count();
    let numa = u64::from(a.numa.is_some() && a.numa == b.numa);
    (u64::from(links.min(255)) << 24) + (u64::from(shared > 1) << 12) + numa
}

/// Smaller is better: nearness inside, nearness to what is left.
type Rank = (std::cmp::Reverse<u64>, u64);

/// The subsets that are looked at in full; beyond that, the cards are taken greedily.
const EXHAUSTIVE: u64 = 20_000;

/// The `count` cards, as places in `free`, that are nearest to each other; of several such sets the one that
/// leaves the nearest cards for others, then the one with the lowest places. None where there are too few.
pub fn choose(free: &[Location], count: usize) -> Option<Vec<usize>> {
    if count == 0 || count > free.len() {
        return None;
    }
    let near: Vec<Vec<u64>> = free
        .iter()
        .map(|a| free.iter().map(|b| nearness(a, b)).collect())
        .collect();
    let inside = |set: &[usize]| -> u64 {
        set.iter()
            .enumerate()
            .flat_map(|(i, a)| set[i + 1..].iter().map(move |b| (a, b)))
            .map(|(a, b)| near[*a][*b])
            .sum()
    };
    let outside = |set: &[usize]| -> u64 {
        let rest = (0..free.len()).filter(|i| !set.contains(i));
        rest.map(|r| set.iter().map(|s| near[*s][r]).sum::<u64>()).sum()
    };
    if combinations(free.len() as u64, count as u64) <= EXHAUSTIVE {
        let mut best: Option<(Rank, Vec<usize>)> = None;
        let mut set: Vec<usize> = (0..count).collect();
        loop {
            let key = (std::cmp::Reverse(inside(&set)), outside(&set));
            // In order of places, so that the first of several equal ones is kept.
            if best.as_ref().is_none_or(|(b, _)| key < *b) {
                best = Some((key, set.clone()));
            }
            let Some(at) = (0..count).rev().find(|i| set[*i] < free.len() - count + i) else {
                break;
            };
            set[at] += 1;
            for i in at + 1..count {
                set[i] = set[i - 1] + 1;
            }
        }
        return best.map(|(_, set)| set);
    }
    let grown = (0..free.len()).map(|first| {
        let mut set = vec![first];
        while set.len() < count {
            let next = (0..free.len()).filter(|i| !set.contains(i));
            let best = next.max_by_key(|i| {
                (
                    set.iter().map(|s| near[*s][*i]).sum::<u64>(),
                    std::cmp::Reverse(*i),
                )
            });
            set.extend(best);
        }
        set.sort_unstable();
        set
    });
    grown.min_by_key(|set| (std::cmp::Reverse(inside(set)), outside(set), set.clone()))
}

fn combinations(n: u64, k: u64) -> u64 {
    (0..k.min(n - k)).fold(1u64, |c, i| c.saturating_mul(n - i) / (i + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(n: u32, switch: u32, numa: i32, peers: &[u32]) -> Location {
        Location {
            address: format!("0000:{n:02x}:00.0"),
            path: vec![
                format!("pci{numa}"),
                format!("root{}", switch / 2),
                format!("switch{switch}"),
            ],
            numa: Some(numa),
            nvlinks: peers.iter().map(|p| (format!("0000:{p:02x}:00.0"), 4)).collect(),
        }
    }

    #[test]
    fn linked_cards_go_before_near_ones_and_near_before_far() {
        // 0 and 3 are linked, 1 and 2 share a switch, 4 is alone on the other node.
        let cards = [
            card(0, 0, 0, &[3]),
            card(1, 2, 0, &[]),
            card(2, 2, 0, &[]),
            card(3, 4, 1, &[0]),
            card(4, 6, 1, &[]),
        ];
        assert_eq!(choose(&cards, 2), Some(vec![0, 3]));
        assert_eq!(choose(&cards[1..], 2), Some(vec![0, 1]));
        assert_eq!(choose(&cards, 6), None);
    }

    #[test]
    fn one_card_is_taken_where_it_breaks_no_pair() {
        let cards = [card(0, 0, 0, &[1]), card(1, 0, 0, &[0]), card(2, 2, 1, &[])];
        assert_eq!(choose(&cards, 1), Some(vec![2]));
    }

    #[test]
    fn many_cards_are_chosen_in_time() {
        let cards: Vec<_> = (0..64)
            .map(|n| card(n, n / 4, (n / 8) as i32, &[n ^ 1]))
            .collect();
        let chosen = choose(&cards, 16).unwrap();
        assert_eq!(chosen.len(), 16);
        assert!(chosen.chunks(2).all(|pair| pair[0] ^ 1 == pair[1]), "{chosen:?}");
    }
}
