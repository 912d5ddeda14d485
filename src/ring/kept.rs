//! Entries that were copied out of a ring in one go, and are kept until each has its turn.
//!
//! They are private, and yet their words are atomic: that keeps the compiler from reading two of
//! them with one load. A load that spans two stores which have not left the core yet has to wait
//! until they have, and they wait in turn behind every store to a line that lies in the other
//! side's cache. So read, an entry costs a hundred nanoseconds instead of two.

use core::sync::atomic::{AtomicU64, Ordering};

/// Up to [`KEPT`] entries of `N` words.
#[derive(Debug)]
pub struct Kept<const N: usize> {
    entries: [[AtomicU64; N]; KEPT as usize],
    from: u32,
    to: u32,
}

/// Entries copied in one go: about as many lines as a core can have on order.
pub const KEPT: u32 = 16;

impl<const N: usize> Kept<N> {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        let entries = core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(0)));
        Self { entries, from: 0, to: 0 }
    }

    /// Entries that are left.
    #[inline]
    #[must_use]
    pub fn count(&self) -> u32 {
        self.to - self.from
    }

    /// Keeps `count` entries, at most [`KEPT`], in place of all that were kept: each as `entry`
    /// gives it, 0 first.
    #[inline]
    pub fn keep(&mut self, count: u32, mut entry: impl FnMut(u32) -> [u64; N]) {
        (self.from, self.to) = (0, count.min(KEPT));
        for at in 0..self.to {
            let words = entry(at);
            for (kept, word) in self.entries[at as usize].iter().zip(words) {
                kept.store(word, Ordering::Relaxed);
            }
        }
    }

    /// The entry that lies `ahead` of the first; there must be one.
    #[inline]
    #[must_use]
    pub fn entry(&self, ahead: u32) -> [u64; N] {
        debug_assert!(ahead < self.count());
        let entry = &self.entries[((self.from + ahead) % KEPT) as usize];
        core::array::from_fn(|at| entry[at].load(Ordering::Relaxed))
    }

    /// Lets go of the first `count`.
    #[inline]
    pub fn pass(&mut self, count: u32) {
        assert!(count <= self.count(), "passed an entry that is not there");
        self.from += count;
    }
}

impl<const N: usize> Default for Kept<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_and_go_once() {
        let mut kept = Kept::<2>::new();
        assert_eq!(kept.count(), 0);
        kept.keep(40, |at| [u64::from(at), 7]);
        assert_eq!(kept.count(), KEPT);
        assert_eq!([kept.entry(0), kept.entry(3)], [[0, 7], [3, 7]]);
        kept.pass(2);
        assert_eq!((kept.count(), kept.entry(0)), (KEPT - 2, [2, 7]));
        kept.keep(1, |_| [9, 9]);
        assert_eq!((kept.count(), kept.entry(0)), (1, [9, 9]), "in place of all others");
    }

    #[test]
    #[should_panic(expected = "not there")]
    fn none_is_passed_twice() {
        let mut kept = Kept::<1>::new();
        kept.keep(1, |_| [0]);
        kept.pass(1);
        kept.pass(1);
    }
}
