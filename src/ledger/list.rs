//! Lists of records, over the links that records have for them.

use super::{Ledger, NIL};

/// A first-in-first-out list of records over link pair `L`.
#[derive(Clone, Copy, Debug)]
pub struct List<const L: usize> {
    head: u32,
    tail: u32,
}

impl<const L: usize> Default for List<L> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const L: usize> List<L> {
    /// A list with nothing on it.
    pub const EMPTY: Self = Self { head: NIL, tail: NIL };

    /// The first record, or [`NIL`].
    #[inline]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// True if nothing is on it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// The record after `slot`, or [`NIL`].
    #[inline]
    pub fn next(ledger: &Ledger, slot: u32) -> u32 {
        ledger[slot].links[L][0]
    }

    /// The record before `slot`, or [`NIL`].
    #[inline]
    pub fn previous(ledger: &Ledger, slot: u32) -> u32 {
        ledger[slot].links[L][1]
    }

    /// Puts a record, which is on no list of this relation, at the end.
    #[inline]
    pub fn push_back(&mut self, ledger: &mut Ledger, slot: u32) {
        ledger[slot].links[L] = [NIL, self.tail];
        if self.tail == NIL {
            self.head = slot;
        } else {
            ledger[self.tail].links[L][0] = slot;
        }
        self.tail = slot;
    }

    /// Puts all of another list of this relation at the end.
    #[inline]
    pub fn append(&mut self, ledger: &mut Ledger, other: Self) {
        if other.head == NIL {
            return;
        }
        if self.tail == NIL {
            self.head = other.head;
        } else {
            ledger[self.tail].links[L][0] = other.head;
            ledger[other.head].links[L][1] = self.tail;
        }
        self.tail = other.tail;
    }

    /// Puts a record, which is on no list of this relation, back at the front.
    pub fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        ledger[slot].links[L] = [self.head, NIL];
        if self.head == NIL {
            self.tail = slot;
        } else {
            ledger[self.head].links[L][1] = slot;
        }
        self.head = slot;
    }

    /// Puts a record, which is on no list of this relation, in the place of one of this list.
    pub fn replace(&mut self, ledger: &mut Ledger, slot: u32, by: u32) {
        let [next, previous] = std::mem::replace(&mut ledger[slot].links[L], [NIL; 2]);
        ledger[by].links[L] = [next, previous];
        if previous == NIL {
            assert!(self.head == slot, "replaced a record of a list it is not on");
            self.head = by;
        } else {
            ledger[previous].links[L][0] = by;
        }
        if next == NIL {
            self.tail = by;
        } else {
            ledger[next].links[L][1] = by;
        }
    }

    /// The last record, or [`NIL`].
    #[must_use]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Takes a record of this list off it.
    #[inline]
    pub fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let [next, previous] = ledger[slot].links[L];
        if previous == NIL {
            assert!(self.head == slot, "removed a record from a list it is not on");
            self.head = next;
        } else {
            ledger[previous].links[L][0] = next;
        }
        if next == NIL {
            self.tail = previous;
        } else {
            ledger[next].links[L][1] = previous;
        }
        ledger[slot].links[L] = [NIL; 2];
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::super::{LANE, Op, RING};
    use super::*;
    use crate::ids::{RingId, SessionId};
    use crate::seeds::property;

    fn open(ledger: &mut Ledger, user_data: u64) -> Option<u32> {
        *ledger.vacant()? = Op { user_data, ..Op::NOP };
        ledger.open(SessionId(1), RingId(2), user_data).map(|(slot, _)| slot)
    }

    proptest! {
        #![proptest_config(property(300))]

        #[test]
        fn lists_are_queues_that_can_lose_any_member(
            steps in proptest::collection::vec((0..6u8, 0..16usize), 1..300),
        ) {
            let mut ledger = Ledger::new(0, 16);
            let slots: Vec<u32> = (0..16).filter_map(|at| open(&mut ledger, at)).collect();
            // Two relations over the same records do not know of each other.
            let (mut lane, mut ring) = (List::<LANE>::EMPTY, List::<RING>::default());
            let (mut lane_model, mut ring_model) = (VecDeque::new(), VecDeque::new());
            // What is to come to the lane, all at once.
            let (mut run, mut run_model) = (List::<LANE>::EMPTY, VecDeque::new());
            for (step, at) in steps {
                let slot = slots[at];
                if run_model.contains(&slot) && step < 5 {
                    continue;
                }
                match (step, lane_model.contains(&slot), ring_model.contains(&slot)) {
                    (0, false, _) => {
                        lane.push_back(&mut ledger, slot);
                        lane_model.push_back(slot);
                    }
                    (1, false, _) => {
                        lane.push_front(&mut ledger, slot);
                        lane_model.push_front(slot);
                    }
                    (2, true, _) => {
                        lane.remove(&mut ledger, slot);
                        lane_model.retain(|&member| member != slot);
                    }
                    (3, _, false) => {
                        ring.push_back(&mut ledger, slot);
                        ring_model.push_back(slot);
                    }
                    (3, _, true) => {
                        ring.remove(&mut ledger, slot);
                        ring_model.retain(|&member| member != slot);
                    }
                    (4, false, _) => {
                        run.push_back(&mut ledger, slot);
                        run_model.push_back(slot);
                    }
                    (5, ..) => {
                        lane.append(&mut ledger, std::mem::take(&mut run));
                        lane_model.append(&mut run_model);
                    }
                    _ => {}
                }
                prop_assert!(same(&ledger, &run, &run_model), "{run_model:?}");
                prop_assert!(same(&ledger, &lane, &lane_model), "{lane_model:?}");
                prop_assert!(same(&ledger, &ring, &ring_model), "{ring_model:?}");
            }
        }
    }

    /// True if a list, walked both ways, is this queue.
    fn same<const L: usize>(ledger: &Ledger, list: &List<L>, model: &VecDeque<u32>) -> bool {
        let some = |slot: u32| (slot != NIL).then_some(slot);
        let next = |slot: &u32| some(List::<L>::next(ledger, *slot));
        let previous = |slot: &u32| some(List::<L>::previous(ledger, *slot));
        let onward = std::iter::successors(some(list.head()), next).take(20);
        let back = std::iter::successors(model.back().copied(), previous).take(20);
        onward.eq(model.iter().copied())
            && back.eq(model.iter().rev().copied())
            && list.is_empty() == model.is_empty()
    }
}
