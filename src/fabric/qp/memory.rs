//! Regions, as queue pairs see them: pieces with an address and keys.

use std::sync::Arc;

use super::provider::{Key, Registration};
use crate::shm::Mapping;

/// A region of ours, or one that a peer exported.
#[derive(Debug)]
pub struct Memory {
    /// Ours: where we can read page lists. Without it no request may use it as its local side.
    mapping: Option<Arc<Mapping>>,
    keys: Box<[Key]>,
    /// Ours: keys that admit what requests of this host do to it by a queue pair to itself. None
    /// if `keys` serve for that, too.
    home: Option<Box<[Key]>>,
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
    #[must_use]
    pub fn own(mapping: Arc<Mapping>, registration: &Registration, name: u32) -> Self {
        let keys = registration.keys.clone();
        assert!(covers(&keys, Some(mapping.bytes())), "keys do not cover the mapping");
        Self { mapping: Some(mapping), keys, home: None, name }
    }

    /// Memory of a peer, by the keys that it sent (`lkey` is not looked at); `name` is the peer's.
    /// `None` if the keys leave gaps, overlap, or wrap round.
    #[must_use]
    pub fn peer(keys: Box<[Key]>, name: u32) -> Option<Self> {
        covers(&keys, None).then_some(Self { mapping: None, keys, home: None, name })
    }

    /// Its mapping, if it is ours.
    #[must_use]
    pub fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.mapping.as_ref()
    }

    /// From now on requests of this host reach it as their remote side by `memory`'s keys.
    pub(super) fn set_home(&mut self, memory: Self) {
        assert!(memory.bytes() == self.bytes(), "keys of another memory");
        self.home = Some(memory.keys);
    }

    pub(super) fn name(&self) -> u32 {
        self.name
    }

    fn bytes(&self) -> u64 {
        self.keys.last().map_or(0, |key| key.offset + key.bytes)
    }

    pub(super) fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.bytes())
    }

    /// The piece that starts at an offset inside, of a local side.
    #[inline]
    pub(super) fn piece(&self, offset: u64) -> Piece {
        piece(&self.keys, offset)
    }

    /// The piece that starts at an offset inside, of a remote side.
    #[inline]
    pub(super) fn far_piece(&self, offset: u64) -> Piece {
        piece(self.home.as_ref().unwrap_or(&self.keys), offset)
    }
}

#[inline]
fn piece(keys: &[Key], offset: u64) -> Piece {
    let index = match keys.len() {
        1 => 0,
        _ => keys.partition_point(|key| key.offset <= offset) - 1,
    };
    let key = &keys[index];
    let into = offset - key.offset;
    Piece { address: key.address + into, lkey: key.lkey, rkey: key.rkey, bytes: key.bytes - into }
}

/// True if keys follow each other from 0 on, and end where they should.
fn covers(keys: &[Key], bytes: Option<u64>) -> bool {
    let mut end = 0_u64;
    for key in keys {
        let wraps = key.address.checked_add(key.bytes).is_none();
        if key.offset != end || key.bytes == 0 || wraps {
            return false;
        }
        let Some(next) = end.checked_add(key.bytes) else { return false };
        end = next;
    }
    end > 0 && bytes.is_none_or(|bytes| bytes == end)
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
        let memory = Memory::peer(Box::new([key(0, 100), key(100, 50), key(150, 1)]), 0).unwrap();
        let at = |offset| (memory.piece(offset).address - 0x1000, memory.piece(offset).bytes);
        assert_eq!(at(0), (0, 100));
        assert_eq!(at(99), (99, 1));
        assert_eq!(at(100), (200, 50));
        assert_eq!(at(150), (300, 1));
        assert!(memory.holds(0, 151) && memory.holds(151, 0));
        assert!(!memory.holds(0, 152) && !memory.holds(u64::MAX, 2));
    }

    #[test]
    fn keys_of_a_peer_are_looked_at() {
        let tried = |keys: &[Key]| Memory::peer(keys.into(), 0).is_some();
        assert!(tried(&[key(0, 8)]));
        assert!(!tried(&[]));
        assert!(!tried(&[key(8, 8)]));
        assert!(!tried(&[key(0, 8), key(7, 8)]));
        assert!(!tried(&[key(0, 8), key(9, 8)]));
        assert!(!tried(&[key(0, 0)]));
        assert!(!tried(&[Key { address: u64::MAX, ..key(0, 8) }]));
        assert!(!tried(&[key(0, u64::MAX - 0x1000), key(u64::MAX - 0x1000, u64::MAX)]));
    }
}
