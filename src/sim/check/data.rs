//! What a CQE says is true of the bytes. The model: a slot belongs to one client and to one op at
//! a time, so what lay in it before an op and what lies in it after is all there is to know.

use std::collections::BTreeSet;

use super::hold;
use crate::abi::{CQE_MAYBE_DONE, CQE_RETRYABLE, Cqe, Opcode, errno};
use crate::sim::client::Out;

/// What a CQE says by itself.
pub(in crate::sim) fn consistent(out: &Out, cqe: &Cqe) {
    let good = cqe.res >= 0;
    let both = CQE_MAYBE_DONE | CQE_RETRYABLE;
    hold!(Data, good || cqe.flags & both != both, "maybe done and retryable: {cqe:?}");
    let moves = !matches!(out.opcode, Opcode::Nop | Opcode::Join | Opcode::Cancel);
    let whole = !good || u32::try_from(cqe.res).ok() == Some(out.bytes);
    hold!(Data, !moves || whole, "bytes: {cqe:?} {out:?}");
    // Its edges may be wrong, and refused.
    let refused = cqe.record == 0 && out.tied;
    let fails = !good && cqe.res != -errno::ECANCELED && !refused;
    let nop = matches!(out.opcode, Opcode::Nop | Opcode::Join) && fails;
    hold!(Data, !nop, "a NOP that failed: {cqe:?}");
}

/// What a WRITE or READ left in the slot and in the buffer; `before` is what the slot held, as far
/// as that is known.
pub(in crate::sim) fn moved(
    out: &Out,
    cqe: &Cqe,
    before: Option<&[u8]>,
    slot: &[u8],
    buffer: &[u8],
) {
    let bytes = out.bytes as usize;
    let same = cqe.res < 0 || slot[..bytes] == buffer[..bytes];
    hold!(Data, same, "bytes differ: {out:?} {cqe:?}");
    if out.opcode == Opcode::Read || cqe.res == -errno::ETIME {
        let same = before.is_none_or(|before| before == slot);
        hold!(Data, same, "changed what it was only to read, or not to start: {cqe:?}");
    }
}

/// The old value that an add was given: no two are given the same.
pub(in crate::sim) fn fresh(olds: &mut BTreeSet<u64>, old: u64) {
    hold!(Data, olds.insert(old), "two adds were given the old value {old}");
}
