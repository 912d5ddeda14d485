//! What is left of an op: its outcome, and the entry in its session's flight recorder.

use crate::abi::{FABRIC_NONE, Opcode};
use crate::fabric::Fabric;
use crate::ledger::Outcome;
use crate::ring::Memory;

use super::Engine;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// How an op ends now.
    #[inline(always)]
    pub(super) fn outcome(&self, slot: u32) -> Outcome {
        let record = &self.ledger[slot];
        if let Some(failure) = record.failure {
            return Outcome { res: -failure.errno, flags: failure.flags, detail: failure.detail };
        }
        let detail = match &self.fabric {
            _ if record.posted_ns == 0 => u16::from(FABRIC_NONE) << 8,
            fabric if fabric.rails() > 1 => {
                u16::from(fabric.fabric_of(record.rail)) << 8 | record.rail
            }
            fabric => u16::from(fabric.limits().fabric) << 8,
        };
        let res = i32::try_from(record.done_bytes).unwrap_or(i32::MAX);
        Outcome { res, flags: 0, detail }
    }

    /// Leaves what is known of an op, which is about to leave, in its session's flight recorder.
    /// The CQE is not published yet: whoever pops it finds the entry.
    #[inline(always)]
    pub(super) fn keep_record(&mut self, slot: u32, outcome: Outcome) {
        let record = &self.ledger[slot];
        let Some(recorder) = &mut self.recorders[record.session.0 as usize] else { return };
        // Nearly all NOPs have no record of their own; none has an entry.
        if record.op.opcode != Opcode::Nop {
            recorder.write(record.entry(outcome, self.now_ns));
        }
    }
}
