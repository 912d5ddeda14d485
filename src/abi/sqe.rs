//! The submission entry: 64 bytes, one cache line.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One submission queue entry, as it lies in the ring.
///
/// Plain integers only: any 64 bytes are a valid value, so a hostile ring can at worst hold a
/// wrong entry, never an invalid one. The engine copies it once and judges the copy.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Sqe {
    /// What to do: one of [`Opcode`].
    pub opcode: u8,
    /// 0 default (medium), 1 high, 2 medium, 3 low.
    pub class: u8,
    /// `SQE_*` bits.
    pub flags: u16,
    /// Two edges: bits 0-14 how many SQEs back in this ring (0 = none), bit 15 order only.
    pub edges: [u16; 2],
    /// Handed back in the CQE, never looked at.
    pub user_data: u64,
    /// A region of this session: the near side.
    pub local_region: u32,
    /// An import of this session: the far side.
    pub remote_region: u32,
    /// Byte offset into the local region. For WRITEV and READV: where the page list lies.
    pub local_offset: u64,
    /// Byte offset into the remote region. For WRITEV and READV: added to each page's offset.
    pub remote_offset: u64,
    /// Bytes to move, at most `OP_BYTES_MAX`. WRITEV and READV: bytes of each page. Atomics
    /// (always 8 bytes): the deadline in microseconds. ARM: the number of notifications.
    pub bytes: u32,
    /// Carried by NOTIFY.
    pub immediate: u32,
    /// By opcode: see [`Sqe::deadline_us`], [`Sqe::pages`], [`Sqe::tag`], [`Sqe::operand`].
    pub arg: [u64; 2],
}

impl Sqe {
    /// Returns `arg[0]`'s low half: microseconds from intake until a queued op is given up with
    /// ETIME; 0 is never. Not for atomics (theirs is in `bytes`) and CANCEL.
    #[must_use]
    pub fn deadline_us(&self) -> u32 {
        low(self.arg[0])
    }

    /// Returns `arg[0]`'s high half: the number of pages of a WRITEV or READV.
    #[must_use]
    pub fn pages(&self) -> u32 {
        low(self.arg[0] >> 32)
    }

    /// Returns `arg[1]`: a tag for logs and traces, and for SUPERSEDE.
    #[must_use]
    pub fn tag(&self) -> u64 {
        self.arg[1]
    }

    /// Returns `arg[0]` of an atomic: the addend of FETCH_ADD, the expected value of CMP_SWAP; of
    /// CANCEL: the target.
    #[must_use]
    pub fn operand(&self) -> u64 {
        self.arg[0]
    }

    /// Returns the entry as the eight words that are stored into a slot.
    #[inline]
    #[must_use]
    pub fn to_words(self) -> [u64; 8] {
        zerocopy::transmute!(self)
    }

    /// Reads an entry from the eight words copied out of a slot: by shifts, as
    /// [`Cqe::from_words`](super::Cqe::from_words).
    #[inline]
    #[must_use]
    pub fn from_words(words: [u64; 8]) -> Self {
        let [opcode, class, f0, f1, e0, e1, g0, g1] = words[0].to_le_bytes();
        Self {
            opcode,
            class,
            flags: u16::from_le_bytes([f0, f1]),
            edges: [u16::from_le_bytes([e0, e1]), u16::from_le_bytes([g0, g1])],
            user_data: words[1],
            local_region: low(words[2]),
            remote_region: low(words[2] >> 32),
            local_offset: words[3],
            remote_offset: words[4],
            bytes: low(words[5]),
            immediate: low(words[5] >> 32),
            arg: [words[6], words[7]],
        }
    }
}

#[inline]
const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

/// One page of a WRITEV or READV: 16 bytes in the local region, copied once at intake.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Page {
    /// Byte offset into the local region.
    pub local_offset: u64,
    /// Byte offset into the remote region, on top of the SQE's `remote_offset`.
    pub remote_offset: u64,
}

/// What an SQE asks for. Numbers only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Nothing; completes with 0.
    Nop = 0,
    /// Local range to remote range.
    Write = 1,
    /// Remote range to local range.
    Read = 2,
    /// Scattered pages to scattered pages, local to remote.
    Writev = 3,
    /// Scattered pages to scattered pages, remote to local.
    Readv = 4,
    /// Adds to a remote u64; the old value lands at the local offset.
    FetchAdd = 5,
    /// Replaces a remote u64 if it is as expected; the old value lands at the local offset.
    CmpSwap = 6,
    /// Nothing, once up to ten others are over: completes with 0, or fails as they did.
    Join = 7,
    /// Takes back an op that is still queued.
    Cancel = 8,
    /// Completes when no hardware touches a region on behalf of earlier ops.
    Flush = 9,
    /// Reserves CQ slots for notifications of a region.
    Arm = 10,
    /// Reserved: runs a prepared graph.
    Run = 11,
}

impl Opcode {
    /// All opcodes, by number.
    pub const ALL: [Self; 12] = [
        Self::Nop,
        Self::Write,
        Self::Read,
        Self::Writev,
        Self::Readv,
        Self::FetchAdd,
        Self::CmpSwap,
        Self::Join,
        Self::Cancel,
        Self::Flush,
        Self::Arm,
        Self::Run,
    ];

    /// Reads an opcode byte; `None` for a number that no ABI defines yet.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// An op's priority. `Medium` is the default, so that nothing is urgent by accident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Before all others.
    High = 1,
    /// The default.
    #[default]
    Medium = 2,
    /// When nothing else is ready.
    Low = 3,
}

impl Class {
    /// All classes, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Medium, Self::Low];

    /// Reads a class byte, where 0 is the default; `None` beyond 3.
    #[inline]
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::High),
            0 | 2 => Some(Self::Medium),
            3 => Some(Self::Low),
            _ => None,
        }
    }

    /// Returns 0, 1 or 2 for high, medium, low: an index for tables by class.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self as u8) - 1
    }
}

/// The next SQE waits for this one; a failure travels.
pub const SQE_LINK: u16 = 1 << 0;
/// The next SQE waits for this one; a failure stays here.
pub const SQE_HARDLINK: u16 = 1 << 1;
/// Waits for all earlier SQEs, and later ones wait for it.
pub const SQE_DRAIN: u16 = 1 << 2;
/// May be folded into queued work of identical effect.
pub const SQE_COALESCE: u16 = 1 << 3;
/// Replaces queued work with the same tag.
pub const SQE_SUPERSEDE: u16 = 1 << 4;
/// Never shares a work request with a neighbour.
pub const SQE_NO_MERGE: u16 = 1 << 5;
/// The remote region's owner is told, with `immediate`, once all bytes are placed.
pub const SQE_NOTIFY: u16 = 1 << 6;
/// No CQE on success.
pub const SQE_SKIP_SUCCESS: u16 = 1 << 7;
/// FLUSH only: ends the region's exports first.
pub const SQE_REVOKE: u16 = 1 << 8;

/// Edge bit: order only, carries no failure.
pub const EDGE_ORDER_ONLY: u16 = 1 << 15;

/// CANCEL, `arg[1]`: the target in `arg[0]` is a `user_data` (the oldest op with it is meant).
pub const CANCEL_BY_USER_DATA: u64 = 0;
/// CANCEL, `arg[1]`: the target is an SQE number of this ring (0 for its first).
pub const CANCEL_BY_NUMBER: u64 = 1;
/// CANCEL, `arg[1]`: the target is a record id of this ring.
pub const CANCEL_BY_RECORD: u64 = 2;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Sqe>() == 64 && align_of::<Sqe>() == 8 && size_of::<Page>() == 16);
    assert!(offset_of!(Sqe, flags) == 2 && offset_of!(Sqe, edges) == 4);
    assert!(offset_of!(Sqe, user_data) == 8 && offset_of!(Sqe, local_region) == 16);
    assert!(offset_of!(Sqe, remote_region) == 20 && offset_of!(Sqe, local_offset) == 24);
    assert!(offset_of!(Sqe, remote_offset) == 32 && offset_of!(Sqe, bytes) == 40);
    assert!(offset_of!(Sqe, immediate) == 44 && offset_of!(Sqe, arg) == 48);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_and_casts_tell_the_same() {
        // Every bit alone, so that none can be in another's place.
        for bit in 0..512 {
            let mut words = [0; 8];
            words[bit / 64] = 1u64 << (bit % 64);
            let sqe: Sqe = zerocopy::transmute!(words);
            assert_eq!((Sqe::from_words(words), sqe.to_words()), (sqe, words));
        }
        for bit in 0..256 {
            let mut words = [0; 4];
            words[bit / 64] = 1u64 << (bit % 64);
            let cqe: super::super::Cqe = zerocopy::transmute!(words);
            assert_eq!((super::super::Cqe::from_words(words), cqe.to_words()), (cqe, words));
        }
    }
}
