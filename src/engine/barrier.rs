//! FLUSH and REVOKE: proof that earlier ops on a region are over.
//!
//! A FLUSH walks the ledger's slots once, a bounded number a turn, and waits at each that holds an
//! earlier op on its region. One pass is enough: once such an op has left its slot, whatever comes
//! into it later is younger than the FLUSH.

use crate::abi::{Opcode, SQE_REVOKE};
use crate::fabric::Fabric;
use crate::ledger::State;
use crate::plant::{Plant, planted};
use crate::ring::Memory;

use super::{Engine, Event, STEPS_PER_TURN};

impl<F: Fabric, M: Memory> Engine<F, M> {
    pub(super) fn begin_flush(&mut self, slot: u32) {
        self.ledger[slot].state = State::Flushing;
        let op = self.ledger[slot].op;
        if op.flags & SQE_REVOKE != 0 {
            let region = &mut self.regions[op.local as usize];
            region.epoch = region.epoch.wrapping_add(1);
            region.revocations = region.revocations.wrapping_add(1);
            self.withdrawn += 1;
            if let Some(id) = region.id {
                self.events.push_back(Event::Revoked { region: id });
            }
            self.purge();
        }
        self.flushes.push_back(&mut self.ledger, slot);
    }

    /// Moves the flushes under way, each by a bounded number of steps. False if each waits for
    /// an op, or for a rail that has its region.
    pub(super) fn step_flushes(&mut self) -> bool {
        let mut budget = STEPS_PER_TURN;
        let mut moved = false;
        let last = self.flushes.head();
        let mut first = true;
        while budget > 0 && !self.flushes.is_empty() {
            let slot = self.flushes.head();
            if slot == last && !first {
                return moved;
            }
            first = false;
            self.flushes.remove(&mut self.ledger, slot);
            let before = self.ledger[slot].cursor;
            if self.step_flush(slot, &mut budget) {
                moved = true;
                self.finish(slot);
                if slot == last {
                    return moved;
                }
            } else {
                moved |= self.ledger[slot].cursor != before;
                self.flushes.push_back(&mut self.ledger, slot);
            }
        }
        moved || !self.flushes.is_empty()
    }

    /// True once nothing earlier on the region is under way.
    fn step_flush(&mut self, slot: u32, budget: &mut u32) -> bool {
        let record = &self.ledger[slot];
        let (session, barrier, op) = (record.session, record.sequence, record.op);
        let region = &self.regions[op.local as usize];
        let held = region.remote_refs > 0 || region.lent != 0;
        if op.flags & SQE_REVOKE != 0 && held && !planted(Plant::RevokedEarly) {
            return false;
        }
        // The FLUSH itself is one of the references.
        let alone = region.refs == 1 && region.remote_refs == 0;
        let mut cursor = record.cursor;
        if alone {
            cursor = self.ledger.capacity();
        }
        while cursor < self.ledger.capacity() && *budget > 0 {
            let other = &self.ledger[cursor];
            let named = [other.op.local, other.op.import, other.op.target];
            let waits = other.state != State::Free
                && other.sequence < barrier
                && other.session == session
                && named.contains(&op.local)
                && !matches!(other.op.opcode, Opcode::Arm | Opcode::Flush);
            *budget -= 1;
            if waits {
                break;
            }
            cursor += 1;
        }
        self.ledger[slot].cursor = cursor;
        cursor == self.ledger.capacity()
    }
}
