//! Regions, as queue pairs see them: pieces with an address and keys.

use std::sync::Arc;

use super::provider::Key;
use crate::shm::Mapping;

/// Cards that an engine's rails may be on; their numbers are below this.
pub const CARDS_MAX: usize = 4;

/// A memory's keys by card. Each card that it is registered with has keys for all of it, by
/// addresses and in pieces of its own; the others have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardKeys([Box<[Key]>; CARDS_MAX]);

impl CardKeys {
    /// Keys of card 0 alone.
    #[must_use]
    pub fn first(keys: Box<[Key]>) -> Self {
        let mut all = Self::default();
        all.put(0, keys);
        all
    }

    /// Sets what a card has.
    ///
    /// # Panics
    /// If there can be no such card.
    pub fn put(&mut self, card: u8, keys: Box<[Key]>) {
        self.0[usize::from(card)] = keys;
    }

    /// What a card has; nothing if the memory is not registered with it.
    #[inline]
    #[must_use]
    pub fn of(&self, card: u8) -> &[Key] {
        self.0.get(usize::from(card)).map_or(&[], |keys| keys)
    }

    /// The length that all cards agree on, bytes. `None` if the keys of one leave gaps, overlap or
    /// wrap round, if two differ, or if there are none.
    fn covered(&self) -> Option<u64> {
        let mut bytes = None;
        for keys in self.0.iter().filter(|keys| !keys.is_empty()) {
            let end = covered(keys)?;
            if *bytes.get_or_insert(end) != end {
                return None;
            }
        }
        bytes
    }
}

/// A region of ours, or one that a peer exported.
#[derive(Debug)]
pub struct Memory {
    /// Ours: where we can read page lists. Without it no request may use it as its local side.
    mapping: Option<Arc<Mapping>>,
    bytes: u64,
    keys: CardKeys,
    /// Ours: keys that admit what requests of this host do to it by a queue pair to itself. None
    /// if `keys` serve for that, too.
    home: Option<CardKeys>,
    /// What its owner calls it: the region of a notification.
    name: u32,
}

/// Where a part of a region is, for a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) lkey: u32,
    pub(super) rkey: u32,
    /// Bytes from there to the end of the piece.
    pub(super) bytes: u64,
}

impl Memory {
    /// Memory of this process, registered. Peers that are notified of it know it as `name`; it
    /// may be a request's local side, and by a queue pair to oneself its remote side, too.
    ///
    /// # Panics
    /// If a card's keys do not cover the mapping, or no card has any.
    #[must_use]
    pub fn own(mapping: Arc<Mapping>, keys: CardKeys, name: u32) -> Self {
        let bytes = mapping.bytes();
        assert!(keys.covered() == Some(bytes), "keys do not cover the mapping");
        Self { mapping: Some(mapping), bytes, keys, home: None, name }
    }

    /// Memory of a peer, by the keys that it sent (`lkey` is not looked at); `name` is the peer's.
    /// `None` if the keys of a card leave gaps, overlap, or wrap round, or two cards differ in
    /// length.
    #[must_use]
    pub fn peer(keys: CardKeys, name: u32) -> Option<Self> {
        let bytes = keys.covered()?;
        Some(Self { mapping: None, bytes, keys, home: None, name })
    }

    /// Its mapping, if it is ours.
    #[must_use]
    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.mapping.as_ref()
    }

    /// From now on requests of this host reach it as their remote side by `memory`'s keys.
    pub(super) fn set_home(&mut self, memory: Self) {
        assert!(memory.bytes == self.bytes, "keys of another memory");
        self.home = Some(memory.keys);
    }

    pub(super) fn name(&self) -> u32 {
        self.name
    }

    pub(super) fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.bytes)
    }

    /// Keys of a card for this memory as a local side; none if it cannot be one there.
    #[inline]
    pub(super) fn near(&self, card: u8) -> &[Key] {
        self.keys.of(card)
    }

    /// Keys of a card for this memory as a remote side.
    #[inline]
    pub(super) fn far(&self, card: u8) -> &[Key] {
        self.home.as_ref().unwrap_or(&self.keys).of(card)
    }
}

/// The piece that starts at an offset inside what `keys` cover.
#[inline]
pub(super) fn piece(keys: &[Key], offset: u64) -> Piece {
    let index = match keys.len() {
        1 => 0,
        _ => keys.partition_point(|key| key.offset <= offset) - 1,
    };
    let key = &keys[index];
    let into = offset - key.offset;
    Piece { address: key.address + into, lkey: key.lkey, rkey: key.rkey, bytes: key.bytes - into }
}

/// Where keys end that follow each other from 0 on.
fn covered(keys: &[Key]) -> Option<u64> {
    let mut end = 0_u64;
    for key in keys {
        let wraps = key.address.checked_add(key.bytes).is_none();
        if key.offset != end || key.bytes == 0 || wraps {
            return None;
        }
        end = end.checked_add(key.bytes)?;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(offset: u64, bytes: u64) -> Key {
        Key {
            offset,
            bytes,
            address: offset.wrapping_mul(2).wrapping_add(0x1000),
            lkey: 1,
            rkey: 2,
        }
    }

    #[test]
    fn pieces_end_where_their_key_ends() {
        let keys = CardKeys::first(Box::new([key(0, 100), key(100, 50), key(150, 1)]));
        let memory = Memory::peer(keys, 0).unwrap();
        let at = |offset| {
            let piece = piece(memory.near(0), offset);
            (piece.address - 0x1000, piece.bytes)
        };
        assert_eq!(at(0), (0, 100));
        assert_eq!(at(99), (99, 1));
        assert_eq!(at(100), (200, 50));
        assert_eq!(at(150), (300, 1));
        assert!(memory.holds(0, 151) && memory.holds(151, 0));
        assert!(!memory.holds(0, 152) && !memory.holds(u64::MAX, 2));
    }

    #[test]
    fn keys_of_a_peer_are_looked_at() {
        let tried = |keys: &[Key]| Memory::peer(CardKeys::first(keys.into()), 0).is_some();
        assert!(tried(&[key(0, 8)]));
        assert!(!tried(&[]));
        assert!(!tried(&[key(8, 8)]));
        assert!(!tried(&[key(0, 8), key(7, 8)]));
        assert!(!tried(&[key(0, 8), key(9, 8)]));
        assert!(!tried(&[key(0, 0)]));
        assert!(!tried(&[Key { address: u64::MAX, ..key(0, 8) }]));
        assert!(!tried(&[key(0, u64::MAX - 0x1000), key(u64::MAX - 0x1000, u64::MAX)]));
    }

    #[test]
    fn each_card_has_keys_of_its_own_for_all_of_it() {
        let mut keys = CardKeys::first(Box::new([key(0, 100)]));
        keys.put(2, Box::new([key(0, 60), Key { lkey: 7, rkey: 8, ..key(60, 40) }]));
        let memory = Memory::peer(keys.clone(), 0).unwrap();
        assert_eq!(piece(memory.near(0), 60).lkey, 1);
        assert_eq!(piece(memory.near(2), 60).lkey, 7);
        assert_eq!(piece(memory.far(2), 99), Piece { bytes: 1, ..piece(memory.near(2), 99) });
        assert!(memory.near(1).is_empty() && memory.far(200).is_empty());
        keys.put(3, Box::new([key(0, 99)]));
        assert!(Memory::peer(keys, 0).is_none(), "a card that has less of it");
    }
}
