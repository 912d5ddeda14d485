//! The way to a peer: the cards by which it is reached, and what they carry.
//!
//! A card's window is shared by all that goes by the card, to whichever peer, and so is its rate.

use std::thread;
use std::time::{Duration, Instant};

use verbring::Session;
use verbring::abi::{JOINT_UP, PHASE_UP, Tally};
use verbring::client::{CardReport, Look, PeerReport};
use verbring::sched::Bounds;

use super::Failure;
use super::stat::per_second;

/// The cards by which a peer is reached now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// How many they are.
    pub(super) cards: u32,
    /// What may be in flight by all of them.
    pub(super) window: Bounds,
    /// Rails to this peer that are up.
    pub(super) rails: u32,
    /// By number: rails of all peers on these cards.
    shared: Vec<u8>,
}

impl Way {
    /// Asks an engine for its way to a place, called as `verbring peers` shows it.
    pub(super) fn ask(session: &Session, place: &str) -> Result<Self, Failure> {
        let cannot = |error| Failure::of("cannot have what the engine knows of others", &error);
        let (peers, cards) = (session.peers().map_err(cannot)?, session.cards().map_err(cannot)?);
        Self::among(&peers, &cards, place).ok_or_else(|| {
            Failure::Failed(format!(
                "no connection to {place} is up: a session must have asked for it, and verbring \
                 peers shows how it is called"
            ))
        })
    }

    fn among(peers: &[PeerReport], known: &[CardReport], place: &str) -> Option<Self> {
        let up = |peer: &&PeerReport| peer.place == place && peer.phase == PHASE_UP;
        let peer = peers.iter().find(up)?;
        let rails = peer.rails.iter().filter(|rail| rail.state == JOINT_UP);
        let mut cards: Vec<u8> = rails.clone().map(|rail| rail.card).collect();
        let count = u32::try_from(cards.len()).ok()?;
        cards.sort_unstable();
        cards.dedup();
        let all = peers.iter().flat_map(|peer| &peer.rails);
        let shared = all.filter(|rail| cards.contains(&rail.card)).map(|rail| rail.rail).collect();
        let mut window = Bounds { ops: 0, wrs: 0, bytes: 0 };
        for card in &cards {
            let known = known.iter().find(|known| known.card == *card)?;
            window.ops = window.ops.saturating_add(known.window_ops);
            window.wrs = window.wrs.saturating_add(known.window_wrs);
            window.bytes = window.bytes.saturating_add(known.window_bytes);
        }
        let cards = u32::try_from(cards.len()).ok().filter(|cards| *cards > 0)?;
        Some(Self { cards, window, rails: count, shared })
    }

    /// Bytes a second that the cards move for whoever uses them, over so long.
    pub(super) fn watched(&self, session: &Session, time: Duration) -> Result<u64, Failure> {
        let cannot = |error| Failure::of("cannot have the telemetry page", &error);
        let page = session.telemetry().map_err(cannot)?;
        let (before, start) = (page.look(), Instant::now());
        thread::sleep(time);
        let (after, time) = (page.look(), start.elapsed());
        match self.bytes(&after).saturating_sub(self.bytes(&before)) {
            0 => Err(Failure::Failed(
                "the cards moved nothing meanwhile: have them work, or give --rate".to_string(),
            )),
            bytes => Ok(per_second(bytes, time)),
        }
    }

    fn bytes(&self, look: &Look) -> u64 {
        let rails = self.shared.iter().filter_map(|rail| look.rails.get(usize::from(*rail)));
        rails.map(|rail| rail.of(Tally::Bytes)).sum()
    }
}

#[cfg(test)]
mod tests {
    use verbring::abi::{self, CardsReply, PeersReply};

    use super::*;

    fn peer(place: &str, phase: u8, rails: &[(u8, u8, u8)]) -> PeerReport {
        let mut reply = PeersReply { phase, direction: abi::PEER_OURS, ..PeersReply::default() };
        reply.place[..place.len()].copy_from_slice(place.as_bytes());
        reply.rails_count = u8::try_from(rails.len()).unwrap();
        for (told, (rail, card, state)) in reply.rails.iter_mut().zip(rails) {
            *told = abi::PeerRail { rail: *rail, card: *card, state: *state, ..*told };
        }
        PeerReport::read(&reply).unwrap()
    }

    #[test]
    fn a_way_has_the_cards_whose_rails_are_up_and_all_that_shares_them() {
        let peers = [
            peer("one", PHASE_UP, &[(2, 0, JOINT_UP), (3, 1, abi::JOINT_PUT_OFF)]),
            peer("two", PHASE_UP, &[(4, 0, JOINT_UP), (5, 1, JOINT_UP), (6, 1, JOINT_UP)]),
            peer("lost", abi::PHASE_LOST, &[(7, 0, JOINT_UP)]),
            peer("off", PHASE_UP, &[(8, 1, abi::JOINT_PUT_OFF)]),
        ];
        let card = |card: u32, window_ops| {
            let (window_wrs, window_bytes) = (10 * window_ops, 100 * u64::from(window_ops));
            let reply =
                CardsReply { card, window_ops, window_wrs, window_bytes, ..CardsReply::default() };
            CardReport::read(&reply).unwrap()
        };
        let cards = [card(0, 1), card(1, 7)];
        let window = Bounds { ops: 1, wrs: 10, bytes: 100 };
        let one = Way { cards: 1, window, rails: 1, shared: vec![2, 4, 7] };
        assert_eq!(Way::among(&peers, &cards, "one"), Some(one));
        let window = Bounds { ops: 8, wrs: 80, bytes: 800 };
        let two = Way { cards: 2, window, rails: 3, shared: vec![2, 3, 4, 5, 6, 7, 8] };
        assert_eq!(Way::among(&peers, &cards, "two"), Some(two));
        for nowhere in ["lost", "off", "three", ""] {
            assert_eq!(Way::among(&peers, &cards, nowhere), None, "{nowhere}");
        }
    }
}
