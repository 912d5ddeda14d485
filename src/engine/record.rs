//! What is left of an op: its outcome, and the entry in its session's flight recorder.

use crate::abi::{FABRIC_NONE, Opcode};
use crate::fabric::Fabric;
use crate::ledger::{Outcome, Record};
use crate::telemetry::Recorder;

/// How an op ends now.
#[inline(always)]
pub(super) fn outcome<F: Fabric>(record: &Record, fabric: &F) -> Outcome {
    if let Some(failure) = record.failure {
        return Outcome { res: -failure.errno, flags: failure.flags, detail: failure.detail };
    }
    let detail = match fabric {
        _ if record.posted_ns == 0 => u16::from(FABRIC_NONE) << 8,
        fabric if fabric.rails() > 1 => u16::from(fabric.fabric_of(record.rail)) << 8 | record.rail,
        fabric => u16::from(fabric.limits().fabric) << 8,
    };
    let res = i32::try_from(record.done_bytes).unwrap_or(i32::MAX);
    Outcome { res, flags: 0, detail }
}

/// Leaves what is known of an op, which is about to leave, in its session's flight recorder.
#[inline(always)]
pub(super) fn keep_record(recorder: &mut Recorder, record: &Record, outcome: Outcome, now_ns: u64) {
    // Nearly all NOPs have no record of their own; none has an entry.
    if record.op.opcode != Opcode::Nop {
        recorder.write(record.entry(outcome, now_ns));
    }
}
