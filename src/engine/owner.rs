//! One uid: what its ops in flight ask for, what of class high is posted, and its bounds.
//!
//! A bound in bytes cannot be left to whoever comes first: a large op of one ring would wait for
//! ever behind small ones of another. So the ring whose SQE lacks bytes is the next of its uid, and
//! the others wait until it was served, or is no longer looked at.
//!
//! **Invariants**: `bytes` is the sum of what the open records of its sessions ask for, and beyond
//! its bound only if one op asks for all of it; `high` likewise, of requests in the fabric.

use crate::ledger::NIL;
use crate::sched::Contract;

/// All sessions of one uid together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) ops: u32,
    pub(super) ops_max: u32,
    /// Bytes that its ops in flight ask for.
    pub(super) bytes: u64,
    pub(super) bytes_max: u64,
    /// Edges of its ops that wait.
    pub(super) edges: u32,
    pub(super) edges_max: u32,
    /// The ring whose SQE waits for bytes, before those of other rings; or [`NIL`].
    next: u32,
    /// Bytes of class high of its ops that are in the fabric.
    pub(super) high: u64,
    pub(super) high_max: u64,
    /// Its high ops are out of turn until a request of so many bytes may be posted.
    pub(super) wants_high: Option<u32>,
}

impl Owner {
    pub(super) const NONE: Self = Self {
        ops: 0,
        ops_max: 0,
        bytes: 0,
        bytes_max: 0,
        edges: 0,
        edges_max: 0,
        next: NIL,
        high: 0,
        high_max: 0,
        wants_high: None,
    };

    /// From now on these are its bounds.
    pub(super) fn sign(&mut self, contract: &Contract) {
        self.ops_max = contract.ops_max;
        self.bytes_max = contract.bytes_max;
        self.edges_max = contract.edges_max;
        self.high_max = contract.high_bytes_max;
    }

    /// Bytes that ops of a ring may ask for, beside those that are in flight.
    #[inline]
    pub(super) fn left(&self, ring: u32) -> u64 {
        if self.next == NIL || self.next == ring {
            self.bytes_max.saturating_sub(self.bytes)
        } else {
            0
        }
    }

    /// True if an op of a ring may be taken that asks for so many bytes. If not, that ring is the
    /// next, unless another one is.
    pub(super) fn admits(&mut self, ring: u32, asked: u64) -> bool {
        let in_turn = self.next == NIL || self.next == ring;
        if asked == 0 || (in_turn && (self.bytes == 0 || asked <= self.left(ring))) {
            return true;
        }
        if in_turn {
            self.next = ring;
        }
        false
    }

    /// Ops of a ring were taken.
    #[inline]
    pub(super) fn take(&mut self, ring: u32, ops: u32, bytes: u64) {
        self.ops += ops;
        self.bytes += bytes;
        self.pass_by(ring);
    }

    /// An op that was folded into another one is to be done itself.
    pub(super) fn charge(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Ops have ended, in whatever way.
    #[inline]
    pub(super) fn give(&mut self, ops: u32, bytes: u64) {
        self.ops -= ops;
        self.bytes -= bytes;
    }

    /// A ring lacks no bytes, or is not looked at any more: others need not wait for it.
    #[inline]
    pub(super) fn pass_by(&mut self, ring: u32) {
        if self.next == ring {
            self.next = NIL;
        }
    }

    /// True if a request of class high and of so many bytes may be posted: within its bound, or
    /// alone.
    #[inline]
    pub(super) fn admits_high(&self, bytes: u32) -> bool {
        self.high == 0 || u64::from(bytes) <= self.high_max.saturating_sub(self.high)
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeds::property;

    proptest! {
        #![proptest_config(property(500))]

        /// Against a list of the ops in flight, and the order in which rings began to wait.
        #[test]
        fn bytes_are_bounded_returned_and_go_to_who_waited_first(
            bytes_max in 1..100u64,
            steps in proptest::collection::vec((0..3u32, 0..150u64, 0..4u32), 1..300),
        ) {
            let mut owner = Owner::NONE;
            owner.sign(&Contract { bytes_max, ..Contract::of_ops(1_000) });
            let (mut open, mut first): (Vec<u64>, Option<u32>) = (Vec::new(), None);
            for (ring, asked, what) in steps {
                let sum: u64 = open.iter().sum();
                match what {
                    0 => if let Some(ended) = open.pop() { owner.give(1, ended) },
                    1 if asked < 20 => {
                        owner.pass_by(ring);
                        first = first.filter(|waits| *waits != ring);
                    }
                    _ => {
                        let others = first.is_some_and(|waits| waits != ring);
                        let room = sum == 0 || sum + asked <= bytes_max;
                        let may = asked == 0 || (!others && room);
                        // A burst takes what fits beside others, never what goes alone.
                        if asked > 0 && asked <= owner.left(ring) {
                            prop_assert!(may);
                        }
                        prop_assert_eq!(owner.admits(ring, asked), may);
                        if may {
                            owner.take(ring, 1, asked);
                            open.push(asked);
                            first = first.filter(|waits| *waits != ring);
                        } else {
                            first = first.or(Some(ring));
                        }
                    }
                }
                let sum: u64 = open.iter().sum();
                prop_assert_eq!((owner.bytes, owner.ops as usize), (sum, open.len()));
                let alone = open.iter().filter(|asked| **asked > 0).count() <= 1;
                prop_assert!(sum <= bytes_max || alone);
            }
        }
    }

    #[test]
    fn one_request_of_class_high_goes_alone_and_none_overflows() {
        let mut owner = Owner::NONE;
        owner.sign(&Contract { high_bytes_max: 10, ..Contract::of_ops(1) });
        assert!(owner.admits_high(11) && owner.admits_high(u32::MAX));
        owner.high = 4;
        assert!(owner.admits_high(6) && !owner.admits_high(7) && !owner.admits_high(u32::MAX));
        owner.high = 11;
        assert!(owner.admits_high(0) && !owner.admits_high(1));
    }
}
