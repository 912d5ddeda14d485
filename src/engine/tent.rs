//! The window as mode tent has it: in whole ops and their bytes, given back when the op is over.
//!
//! An op that was picked leaves the queue at once and is posted slice by slice, as the device takes
//! it, before others are picked. For comparison only; on this host's own device.

use crate::fabric::Fabric;
use crate::ledger::{Aside, Record};
use crate::ring::Memory;
use crate::sched::Mode;
use crate::sched::credits::{Ask, Window};

use super::Engine;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// True if ops are let into the window as a whole.
    #[inline]
    pub(super) fn whole_ops(&self) -> bool {
        self.limits.policy.mode == Mode::Tent
    }

    /// Picks ops while the window has room for them.
    #[cold]
    pub(super) fn admit_whole(&mut self) {
        let (ops, bytes) = self.window.left();
        // With nothing in flight what is larger than the window goes alone.
        let idle = self.window.wrs() == 0 && self.admitted.is_empty();
        self.lanes.begin(ops, bytes);
        while let Some(slot) = self.lanes.first(&self.ledger) {
            self.admit(slot);
        }
        if idle && self.admitted.is_empty() && !self.lanes.is_empty() {
            self.lanes.begin(1, u64::MAX);
            if let Some(slot) = self.lanes.first(&self.ledger) {
                self.admit(slot);
            }
        }
    }

    fn admit(&mut self, slot: u32) {
        let bytes = bytes_of(&self.ledger[slot]);
        self.lanes.charge(&self.ledger, slot, bytes);
        self.lanes.remove(&mut self.ledger, slot);
        let record = &mut self.ledger[slot];
        record.aside = Aside::Returned;
        record.whole = true;
        self.window.hold(bytes, record.origin != 0);
        self.admitted.push_back(&mut self.ledger, slot);
    }

    /// What a slice of such an op asks of the window: its op has the bytes, and its own credit.
    pub(super) fn ask_within(&self, slot: u32) -> Ask {
        Ask { bytes: 0, enters: false, internal: self.ledger[slot].origin != 0 }
    }
}

/// An op that was let in as a whole is over, or is taken back.
#[cold]
pub(super) fn release_whole(window: &mut Window, record: &mut Record) {
    record.whole = false;
    window.release(bytes_of(record), record.origin != 0);
}

/// At most 2^31 over all pages.
fn bytes_of(record: &Record) -> u32 {
    record.op.bytes.wrapping_mul(record.op.pages.max(1))
}
