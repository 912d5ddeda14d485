//! The completion entry: 32 bytes, two to a cache line.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One completion queue entry, as it lies in the ring.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Cqe {
    /// The SQE's `user_data`.
    pub user_data: u64,
    /// The op's ledger record id; 0 if the SQE was refused.
    pub record: u64,
    /// Bytes moved, or a negative errno. In a NOTIFY CQE: how many notifications it stands for.
    pub res: i32,
    /// `CQE_*` bits.
    pub flags: u16,
    /// On failure a `DETAIL_*` code; on success fabric << 8 | rail; rail 0 is this engine.
    pub detail: u16,
    /// Intake to first post, in units of 16 ns, saturating. In a NOTIFY CQE: the immediate.
    pub queued: u32,
    /// First post to completion, in units of 16 ns, saturating.
    pub service: u32,
}

impl Cqe {
    /// Returns the entry as the four words that are stored into a slot: by shifts, as
    /// [`Cqe::from_words`].
    #[inline]
    #[must_use]
    pub fn to_words(self) -> [u64; 4] {
        let [r0, r1, r2, r3] = self.res.to_le_bytes();
        let [f0, f1] = self.flags.to_le_bytes();
        let [d0, d1] = self.detail.to_le_bytes();
        let outcome = u64::from_le_bytes([r0, r1, r2, r3, f0, f1, d0, d1]);
        let times = u64::from(self.queued) | u64::from(self.service) << 32;
        [self.user_data, self.record, outcome, times]
    }

    /// Reads an entry from the four words copied out of a slot.
    ///
    /// By shifts, not by a cast: a cast may go through memory, where a load of two words that were
    /// just stored one by one has to wait for both to leave the core.
    #[inline]
    #[must_use]
    pub fn from_words([user_data, record, outcome, times]: [u64; 4]) -> Self {
        let [r0, r1, r2, r3, f0, f1, d0, d1] = outcome.to_le_bytes();
        let [queued, service] = [(times & 0xffff_ffff) as u32, (times >> 32) as u32];
        Self {
            user_data,
            record,
            res: i32::from_le_bytes([r0, r1, r2, r3]),
            flags: u16::from_le_bytes([f0, f1]),
            detail: u16::from_le_bytes([d0, d1]),
            queued,
            service,
        }
    }
}

/// The op certainly had no effect, or repeating it is harmless.
pub const CQE_RETRYABLE: u16 = 1 << 0;
/// Whether the op took effect is not known.
pub const CQE_MAYBE_DONE: u16 = 1 << 1;
/// Folded into the op whose record this CQE carries, or replaced by it.
pub const CQE_COALESCED: u16 = 1 << 2;
/// Ended because a predecessor failed.
pub const CQE_DEP_FAILED: u16 = 1 << 3;
/// Ended because its queue pair was flushed.
pub const CQE_FLUSHED: u16 = 1 << 4;
/// A notification: `queued` is the immediate, `res` the count.
pub const CQE_NOTIFY: u16 = 1 << 5;
/// Not the final CQE of its SQE (ARM).
pub const CQE_MORE: u16 = 1 << 6;

/// `detail >> 8` of a success: the engine itself (NOP, CANCEL, FLUSH, ARM).
pub const FABRIC_NONE: u8 = 0;
/// `detail >> 8` of a success: the same-host copy fabric.
pub const FABRIC_LOCAL: u8 = 1;
/// `detail >> 8` of a success: queue pairs. `detail & 0xff` is the rail, from 1.
pub const FABRIC_VERBS: u8 = 2;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Cqe>() == 32 && align_of::<Cqe>() == 8);
    assert!(offset_of!(Cqe, record) == 8 && offset_of!(Cqe, res) == 16);
    assert!(offset_of!(Cqe, flags) == 20 && offset_of!(Cqe, detail) == 22);
    assert!(offset_of!(Cqe, queued) == 24 && offset_of!(Cqe, service) == 28);
};
