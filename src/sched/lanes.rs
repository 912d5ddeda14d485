//! Three lanes, one a class, strictly in order; first come, first served within.

use crate::abi::{Class, WAIT_LANE};
use crate::ledger::{LANE, Ledger, List};

/// The queued ops of an engine.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: [List<LANE>; 3],
}

impl Lanes {
    /// Queues an op behind those of its class.
    #[inline]
    pub fn push(&mut self, ledger: &mut Ledger, slot: u32) {
        let class = ledger[slot].class.index();
        if !self.lanes[class].is_empty() {
            ledger[slot].wait = WAIT_LANE;
        }
        self.lanes[class].push_back(ledger, slot);
    }

    /// Puts an op back where it was: before all others of its class.
    pub fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        let class = ledger[slot].class.index();
        self.lanes[class].push_front(ledger, slot);
    }

    /// Takes an op out of its lane.
    #[inline]
    pub fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let class = ledger[slot].class.index();
        self.lanes[class].remove(ledger, slot);
    }

    /// Puts an op in the place of a queued one of its class.
    pub fn replace(&mut self, ledger: &mut Ledger, slot: u32, by: u32) {
        let class = ledger[slot].class.index();
        self.lanes[class].replace(ledger, slot, by);
    }

    /// The op to serve next.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        self.lanes.iter().find(|lane| !lane.is_empty()).map(List::head)
    }

    /// The op at the head of one lane.
    pub fn head(&self, class: Class) -> Option<u32> {
        let lane = &self.lanes[class.index()];
        (!lane.is_empty()).then(|| lane.head())
    }

    /// True if nothing is queued.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(List::is_empty)
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{RingId, SessionId};
    use crate::ledger::Op;
    use crate::seeds::property;

    proptest! {
        #![proptest_config(property(300))]

        /// The model: one list of (class, place in line), kept sorted.
        #[test]
        fn the_most_urgent_and_oldest_is_first(
            steps in proptest::collection::vec((0..4u8, 0..32usize, 0..3usize), 1..300),
        ) {
            let mut ledger = Ledger::new(0, 32);
            let mut lanes = Lanes::default();
            let mut model: Vec<(Class, i64, u32)> = Vec::new();
            for (order, (step, at, class)) in (1..).zip(steps) {
                match step {
                    0 | 1 => {
                        let class = Class::ALL[class];
                        let op = Op { class, ..Op::NOP };
                        let Some(vacant) = ledger.vacant() else { continue };
                        *vacant = op;
                        let (slot, _) = ledger.open(SessionId(0), RingId(0), 0).unwrap();
                        if step == 0 {
                            lanes.push(&mut ledger, slot);
                            model.push((class, order, slot));
                        } else {
                            lanes.push_front(&mut ledger, slot);
                            model.push((class, -order, slot));
                        }
                        model.sort_unstable();
                    }
                    2 => {
                        let Some(slot) = lanes.first() else { continue };
                        prop_assert_eq!(slot, model.remove(0).2);
                        lanes.remove(&mut ledger, slot);
                        ledger.close(slot);
                    }
                    _ if at < model.len() => {
                        let (_, _, slot) = model.remove(at);
                        lanes.remove(&mut ledger, slot);
                        ledger.close(slot);
                    }
                    _ => {}
                }
                prop_assert_eq!(lanes.is_empty(), model.is_empty());
                prop_assert_eq!(lanes.first(), model.first().map(|entry| entry.2));
                for class in Class::ALL {
                    let head = model.iter().find(|entry| entry.0 == class);
                    prop_assert_eq!(lanes.head(class), head.map(|entry| entry.2));
                }
            }
        }
    }
}
