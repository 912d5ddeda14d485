//! What is left of an op: its outcome, and the entry in its session's flight recorder.

use crate::abi::{CQE_FLUSHED, FABRIC_NONE, Opcode, RecordEntry};
use crate::fabric::Fabric;
use crate::ledger::Record;
use crate::ring::Memory;

use super::Engine;
use super::rails::goes_along;

/// How an op ended, as its CQE tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) res: i32,
    pub(super) flags: u16,
    pub(super) detail: u16,
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// How an op ends now.
    #[inline]
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
    #[inline]
    pub(super) fn keep_record(&mut self, slot: u32, outcome: Outcome) {
        let record = &self.ledger[slot];
        let Some(recorder) = &mut self.recorders[record.session.0 as usize] else { return };
        // Nearly all NOPs have no record of their own; none has an entry.
        if record.op.opcode != Opcode::Nop {
            recorder.write(entry_of(record, outcome, self.now_ns).to_words());
        }
    }
}

#[inline]
fn entry_of(record: &Record, Outcome { res, flags, detail }: Outcome, now_ns: u64) -> RecordEntry {
    let [rail, wait] = [record.rail, record.lacked].map(|number| (number & 0xff) as u8);
    let queued_ns = if record.posts == 0 { 0 } else { record.posted_ns - record.taken_ns };
    // Indices of rings are below 2^16, page lists hold at most 2^31 bytes.
    let ring = (record.ring.0 & 0xffff) as u16;
    let bytes = record.op.bytes.wrapping_mul(record.op.pages.max(1));
    RecordEntry {
        sequence: 0,
        ring,
        class: record.op.class as u8,
        retries: u8::try_from(record.retries).unwrap_or(u8::MAX),
        record: record.id().0,
        user_data: record.op.user_data,
        taken_ns: record.taken_ns,
        queued: RecordEntry::packed(queued_ns, record.posts),
        total: RecordEntry::packed(now_ns - record.taken_ns, record.defers),
        res,
        flags,
        detail,
        bytes,
        opcode: record.op.opcode as u8,
        rail,
        wait,
        cause: cause_of(record),
    }
}

/// errno of the first failure that was an op's own.
#[inline]
fn cause_of(record: &Record) -> u8 {
    let Some(failure) = record.failure else { return 0 };
    let along = goes_along(failure.errno, failure.flags & CQE_FLUSHED != 0);
    let cause = if along { record.cause } else { failure.errno };
    u8::try_from(cause).unwrap_or(u8::MAX)
}
