//! Three lanes, one a class, strictly in order; first come, first served within.

use crate::abi::Class;
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
        let class = ledger[slot].op.class.index();
        self.lanes[class].push_back(ledger, slot);
    }

    /// Puts an op back where it was: before all others of its class.
    pub fn push_front(&mut self, ledger: &mut Ledger, slot: u32) {
        let class = ledger[slot].op.class.index();
        self.lanes[class].push_front(ledger, slot);
    }

    /// Takes an op out of its lane.
    #[inline]
    pub fn remove(&mut self, ledger: &mut Ledger, slot: u32) {
        let class = ledger[slot].op.class.index();
        self.lanes[class].remove(ledger, slot);
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
