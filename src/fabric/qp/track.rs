//! A queue in an array: entries keep their position, and leave at either end.
//!
//! Positions run on freely and wrap; the array's length is a power of two, so that they may.

/// Entries between two positions.
#[derive(Debug)]
pub(super) struct Track<T> {
    slots: Box<[T]>,
    head: u32,
    tail: u32,
}

impl<T: Copy> Track<T> {
    /// Room for `capacity` entries at least; `fill` is what unused slots hold.
    pub(super) fn new(capacity: u32, fill: T) -> Self {
        let slots = vec![fill; capacity.next_power_of_two() as usize].into_boxed_slice();
        // Close to the wrap, so that every use crosses it.
        Self { slots, head: u32::MAX - 2, tail: u32::MAX - 2 }
    }

    pub(super) fn capacity(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn head(&self) -> u32 {
        self.head
    }

    pub(super) fn tail(&self) -> u32 {
        self.tail
    }

    pub(super) fn len(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// Where a position lies in the array.
    pub(super) fn slot(&self, at: u32) -> usize {
        at as usize & (self.slots.len() - 1)
    }

    /// The position in use that lies in a slot.
    pub(super) fn position(&self, slot: u16) -> Option<u32> {
        let slot = u32::from(slot);
        if slot >= self.capacity() {
            return None;
        }
        let ahead = slot.wrapping_sub(self.head) & (self.capacity() - 1);
        (ahead < self.len()).then(|| self.head.wrapping_add(ahead))
    }

    pub(super) fn contains(&self, at: u32) -> bool {
        at.wrapping_sub(self.head) < self.len()
    }

    pub(super) fn push(&mut self, entry: T) {
        assert!(self.len() < self.capacity(), "a queue beyond its array");
        self.slots[self.slot(self.tail)] = entry;
        self.tail = self.tail.wrapping_add(1);
    }

    pub(super) fn pop_front(&mut self) {
        assert!(!self.is_empty());
        self.head = self.head.wrapping_add(1);
    }

    pub(super) fn pop_back(&mut self) {
        assert!(!self.is_empty());
        self.tail = self.tail.wrapping_sub(1);
    }

    /// Drops everything from a position on.
    pub(super) fn cut(&mut self, at: u32) {
        assert!(at == self.tail || self.contains(at));
        self.tail = at;
    }
}

impl<T: Copy> std::ops::Index<u32> for Track<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: u32) -> &T {
        debug_assert!(self.contains(at), "position {at} is not in use");
        &self.slots[self.slot(at)]
    }
}

impl<T: Copy> std::ops::IndexMut<u32> for Track<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        debug_assert!(self.contains(at), "position {at} is not in use");
        let slot = self.slot(at);
        &mut self.slots[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f28_positions_find_their_slots_across_the_wrap() {
        let mut track = Track::new(3, 0_u64);
        assert_eq!(track.capacity(), 4);
        for round in 0..40_u64 {
            for entry in 0..4 {
                track.push(round * 4 + entry);
            }
            for (entry, ahead) in (0..4).zip(0..) {
                let at = track.head().wrapping_add(ahead);
                assert_eq!(track[at], round * 4 + entry);
                let slot = u16::try_from(track.slot(at)).unwrap();
                assert_eq!(track.position(slot), Some(at));
            }
            assert_eq!(track.position(4), None);
            track.pop_front();
            track.pop_back();
            let left = track.head();
            assert!(track.contains(left) && !track.contains(track.tail()));
            track.cut(left);
            assert!(track.is_empty());
            assert!((0..4).all(|slot| track.position(slot).is_none()));
        }
    }
}
