//! Which cards of two engines are joined: those that reach each other best.
//!
//! The engine that is reached decides, by what each card's port is addressed: as many pairs as both
//! have cards and rails for, of these as many as possible in which both have an address of one
//! kind, of these the nearest altogether. What is equal goes by the cards' places, lowest first:
//! cards that are near to the engine's memory come first there. Link-local addresses say nothing of
//! networks, and count as little as can be. Cards that share no kind of address, or tell none, are
//! paired by what is left: InfiniBand needs no address.
//!
//! **The first cards**: atomics on an engine's memory all go by its first card, its own too, since
//! no card excludes another. So of ways to pair in which as many pairs share a kind of address,
//! those that have the first card of both come before others, and then the nearest.
//!
//! **Deliberately absent**: what becomes of it. A pair is told by the numbers that each engine has
//! for its own cards; between the engines it has the number of its place in the list.
//! **Tests**: against all ways to pair.

use std::net::Ipv6Addr;

use super::paths::nearness;
use crate::fabric::qp::CARDS_MAX;

/// Addresses that are told of a card, at most.
pub(super) const TOLD_MAX: usize = 4;

/// Addresses of one card, best first; zeros where there is none.
pub(super) type Ports = [[u8; 16]; TOLD_MAX];

/// A card here, and the one at the other engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) own: u8,
    pub(super) other: u8,
}

/// How well two cards reach each other; 0 if they share no kind of address.
fn reach(one: &Ports, other: &Ports) -> u32 {
    let known = |told: &&[u8; 16]| **told != [0; 16];
    let near = |gid: &[u8; 16]| {
        let narrow = Ipv6Addr::from(*gid).is_unicast_link_local();
        let near = other.iter().filter(known).map(|it| nearness(*gid, *it)).max();
        near.map(|near| if narrow { near.min(1) } else { near })
    };
    one.iter().filter(known).filter_map(near).max().unwrap_or(0)
}

/// What speaks for a way to pair: how many pairs share a kind of address, how many of the two first
/// cards are there, and how near the pairs are.
fn merits(own: &[Ports], others: &[Ports], pairs: &[Pair]) -> (usize, usize, u32) {
    let has = |of: fn(&Pair) -> u8| usize::from(pairs.iter().any(|pair| of(pair) == 0));
    let firsts = has(|pair| pair.own) + has(|pair| pair.other);
    let of = |pair: &Pair| reach(&own[usize::from(pair.own)], &others[usize::from(pair.other)]);
    let each = pairs.iter().map(of).filter(|reach| *reach > 0);
    each.fold((0, firsts, 0), |(count, _, sum), reach| (count + 1, firsts, sum + reach))
}

/// Pairs so many cards, or as many as there are at both. Own cards are in order.
pub(super) fn pair(own: &[Ports], others: &[Ports], most: usize) -> Vec<Pair> {
    let count = most.min(own.len()).min(others.len()).min(CARDS_MAX);
    let mut search = Search { own, others, count, laid: Vec::new(), best: None };
    search.go_on(0);
    search.best.map_or_else(Vec::new, |(_, pairs)| pairs)
}

/// All ways to pair, at most a few hundred.
struct Search<'a> {
    own: &'a [Ports],
    others: &'a [Ports],
    count: usize,
    laid: Vec<Pair>,
    best: Option<((usize, usize, u32), Vec<Pair>)>,
}

impl Search<'_> {
    /// Lays the rest from this card of ours on; the lowest places first, and what is as good as the
    /// best does not take its place.
    fn go_on(&mut self, from: usize) {
        if self.laid.len() == self.count {
            let merits = merits(self.own, self.others, &self.laid);
            if self.best.as_ref().is_none_or(|(best, _)| merits > *best) {
                self.best = Some((merits, self.laid.clone()));
            }
            return;
        }
        for own in from..self.own.len().min(CARDS_MAX) {
            for other in 0..self.others.len().min(CARDS_MAX) {
                let (Ok(ours), Ok(other)) = (u8::try_from(own), u8::try_from(other)) else { break };
                if self.laid.iter().any(|pair| pair.other == other) {
                    continue;
                }
                self.laid.push(Pair { own: ours, other });
                self.go_on(own + 1);
                self.laid.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn card(texts: &[&str]) -> Ports {
        let mut told = Ports::default();
        for (place, text) in told.iter_mut().zip(texts) {
            *place = text.parse::<Ipv6Addr>().unwrap().octets();
        }
        told
    }

    fn paired(own: &[Ports], others: &[Ports], most: usize) -> Vec<(u8, u8)> {
        pair(own, others, most).into_iter().map(|pair| (pair.own, pair.other)).collect()
    }

    #[test]
    fn cards_of_one_network_meet_in_whatever_order_they_are() {
        let (a, b) = (card(&["::ffff:10.1.0.1"]), card(&["::ffff:10.2.0.1", "fe80::1"]));
        let (c, d) = (card(&["fe80::2", "::ffff:10.1.0.9"]), card(&["::ffff:10.2.0.9"]));
        assert_eq!(paired(&[a, b], &[c, d], 4), [(0, 0), (1, 1)]);
        assert_eq!(paired(&[a, b], &[d, c], 4), [(0, 1), (1, 0)]);
        // Of two that are left to choose from it is the nearer one, by what tells networks apart.
        assert_eq!(paired(&[b, a], &[c, c, d], 2), [(0, 2), (1, 0)]);
        // Where there is room for one, it is the first of both, if these share a kind of address.
        assert_eq!(paired(&[b, a], &[c, d], 1), [(0, 0)]);
        assert_eq!(paired(&[card(&["fd00::1"]), a], &[d], 1), [(1, 0)]);
        let far = card(&["::ffff:172.16.0.1"]);
        assert_eq!(paired(&[far, a], &[d, c], 2), [(0, 0), (1, 1)], "what is left, too");
    }

    #[test]
    fn cards_that_tell_nothing_are_paired_by_place() {
        let none = Ports::default();
        assert_eq!(paired(&[none; 3], &[none; 2], 4), [(0, 0), (1, 1)]);
        assert_eq!(paired(&[none; 2], &[none; 4], 4), [(0, 0), (1, 1)]);
        assert_eq!(paired(&[none; 2], &[none; 2], 0), []);
        assert_eq!(paired(&[], &[none], 4), []);
        let same = card(&["fe80::1"]);
        assert_eq!(paired(&[same; 4], &[same; 4], 4), [(0, 0), (1, 1), (2, 2), (3, 3)]);
    }

    fn some_cards() -> impl Strategy<Value = Vec<Ports>> {
        let addresses = proptest::sample::subsequence(
            vec![
                "::ffff:10.1.0.1",
                "::ffff:10.1.0.2",
                "::ffff:10.2.0.1",
                "::ffff:192.168.0.1",
                "fd00::1",
                "fd01::1",
                "fe80::1",
                "fe80::2",
            ],
            0..=2,
        );
        let card = addresses.prop_map(|texts| card(&texts));
        proptest::collection::vec(card, 0..=4)
    }

    /// All ways to give so many of our cards one of the others each, written out: every one of
    /// the 5^4 ways to give each card one of the others or none.
    fn all_ways(own: usize, others: usize, count: usize) -> Vec<Vec<Pair>> {
        let mut ways = Vec::new();
        for code in 0..5_usize.pow(4) {
            let given = [code % 5, code / 5 % 5, code / 25 % 5, code / 125];
            let pairs: Vec<Pair> = (0..4_u8)
                .zip(given)
                .filter(|(_, other)| *other < 4)
                .map(|(own, other)| Pair { own, other: u8::try_from(other).unwrap() })
                .collect();
            let there = |it: &Pair| usize::from(it.own) < own && usize::from(it.other) < others;
            let mut taken: Vec<u8> = pairs.iter().map(|it| it.other).collect();
            taken.sort_unstable();
            taken.dedup();
            if pairs.len() == count && taken.len() == count && pairs.iter().all(there) {
                ways.push(pairs);
            }
        }
        ways
    }

    proptest! {
        #![proptest_config(crate::seeds::property(1_000))]

        /// No way to pair is better, and of those that are as good none comes first by place.
        #[test]
        fn no_way_to_pair_is_better(
            own in some_cards(),
            others in some_cards(),
            most in 0..=5_usize,
        ) {
            let found = pair(&own, &others, most);
            let count = most.min(own.len()).min(others.len());
            let ways = all_ways(own.len(), others.len(), count);
            let best = ways.iter().map(|pairs| merits(&own, &others, pairs)).max().unwrap();
            let first = ways
                .into_iter()
                .filter(|pairs| merits(&own, &others, pairs) == best)
                .min()
                .unwrap();
            prop_assert_eq!(found, first);
        }
    }
}
