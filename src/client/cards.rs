//! What our engine reaches other engines by.

use std::net::Ipv6Addr;

use super::peers::text;
use super::{ControlError, Session, unserved};
use crate::abi::{self, CardsReply, Kind, errno};

/// A card of our engine: a port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CardReport {
    /// Its number, as rails name it ([`PeerRail::card`](super::PeerRail::card)).
    pub card: u8,
    /// Device and port.
    pub name: String,
    /// Ops that may be in flight by it, over all its rails.
    pub window_ops: u32,
    /// Work requests (slices and pages) likewise.
    pub window_wrs: u32,
    /// Bytes likewise.
    pub window_bytes: u64,
    /// Its port's addresses that rails may use, at most four, best first.
    pub addresses: Vec<Ipv6Addr>,
}

impl Session {
    /// Asks for the cards that our engine reaches others by, in order: for root and the engine's
    /// own uid. None if it reaches nobody.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with EACCES for anybody else, and with EOPNOTSUPP if the engine
    /// does not tell.
    pub fn cards(&self) -> Result<Vec<CardReport>, ControlError> {
        if self.probe()?.features & abi::FEATURE_CARDS == 0 {
            return Err(unserved(Kind::Cards, "this engine does not tell of its cards"));
        }
        let mut found = Vec::new();
        for card in 0..=u8::MAX {
            let request = |head| abi::CardsRequest { head, card: card.into(), reserved: 0 };
            let reply: CardsReply = match self.wire().call(Kind::Cards, request, None) {
                Ok((reply, [])) => reply,
                Err(ControlError::Refused(refusal)) if refusal.errno == errno::ENOENT => break,
                Err(error) => return Err(error),
            };
            let known = CardReport::read(&reply).filter(|known| known.card == card);
            found.push(known.ok_or(ControlError::Protocol { what: "a card that cannot be" })?);
        }
        Ok(found)
    }
}

impl CardReport {
    /// Reads a reply to CARDS; `None` if it cannot be one.
    #[must_use]
    pub fn read(reply: &CardsReply) -> Option<Self> {
        let addresses = reply.addresses.get(..usize::from(reply.addresses_count))?;
        Some(Self {
            card: u8::try_from(reply.card).ok()?,
            name: text(&reply.name)?,
            window_ops: reply.window_ops,
            window_wrs: reply.window_wrs,
            window_bytes: reply.window_bytes,
            addresses: addresses.iter().copied().map(Ipv6Addr::from).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, card};
    use super::*;

    #[test]
    fn all_cards_are_asked_for_one_by_one() {
        let (session, fake) = Fake::attach();
        assert_eq!(session.cards().unwrap(), []);
        fake.has([card(0), card(1)]);
        let cards = session.cards().unwrap();
        assert_eq!(cards.len(), 2);
        let CardReport { card, name, window_ops, window_wrs, window_bytes, addresses } = &cards[1];
        assert_eq!((*card, name.as_str()), (1, "mlx5_1 port 2"));
        assert_eq!((*window_ops, *window_wrs, *window_bytes), (64, 256, 2 << 20));
        let expected: [Ipv6Addr; 2] =
            ["::ffff:10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(addresses[..], expected);
    }

    #[test]
    fn a_card_that_cannot_be_is_not_believed() {
        let sound = card(0);
        let mut name = sound.name;
        name[79] = b'x';
        for wrong in [
            CardsReply { card: 1, ..sound },
            CardsReply { card: 256, ..sound },
            CardsReply { addresses_count: 5, ..sound },
            CardsReply { name, ..sound },
        ] {
            let (session, fake) = Fake::attach();
            fake.has([wrong]);
            let error = session.cards().unwrap_err();
            assert!(matches!(error, ControlError::Protocol { .. }), "{wrong:?}: {error}");
        }
    }
}
