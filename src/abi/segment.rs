//! The ring's segment: one header page, then SQ, CQ and fate table, each from a page boundary.
//!
//! Words written by different sides, or at different rates, lie 128 bytes apart: on the CPUs we
//! know, the neighbouring line is fetched along, so 64 would still share.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The part of the header that is written once, before the client sees the segment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SegmentHeader {
    /// [`MAGIC`](super::MAGIC).
    pub magic: u64,
    /// [`ABI_VERSION`](super::ABI_VERSION).
    pub abi_version: u32,
    /// Bytes of this page, to the SQ.
    pub header_bytes: u32,
    /// Feature bits in force.
    pub features: u64,
    /// SQ slots, a power of two.
    pub sq_entries: u32,
    /// CQ slots and fate entries, a power of two.
    pub cq_entries: u32,
    /// Byte offset of SQ slot 0.
    pub sq_offset: u64,
    /// Byte offset of CQ slot 0.
    pub cq_offset: u64,
    /// Byte offset of fate entry 0.
    pub fate_offset: u64,
    /// Bytes from one SQ slot to the next: clients must use it, so that entries can grow.
    pub sqe_stride: u32,
    /// Bytes from one CQ slot to the next.
    pub cqe_stride: u32,
    /// Bytes from one fate entry to the next.
    pub fate_stride: u32,
    /// First value of all four cursors. Not 0, so that wrap-around is met on the first day.
    pub first_index: u32,
    /// Bytes of the whole segment.
    pub segment_bytes: u64,
    /// Drawn at random when the engine started.
    pub boot_id: [u64; 2],
    /// The engine's number, as in record ids.
    pub engine: u32,
    /// The ring's number, as in CANCEL and WHY.
    pub ring: u32,
}

/// Written by the client: SQEs pushed, free-running.
pub const AT_SQ_TAIL: u64 = 256;
/// Written by the client: CQEs popped, free-running.
pub const AT_CQ_HEAD: u64 = 384;
/// Written by the client: ring my bell when `cq_tail` passes this.
pub const AT_BELL_AT: u64 = 512;
/// Written by the engine: SQEs taken, free-running.
pub const AT_SQ_HEAD: u64 = 640;
/// Written by the engine: CQEs published, free-running.
pub const AT_CQ_TAIL: u64 = 768;
/// Written by the engine: `ENGINE_*` bits, and the fault reason in bits 16-31.
pub const AT_ENGINE_FLAGS: u64 = 896;
/// Written by the engine: u64 counters from here on, in the order of [`RingCounter`].
pub const AT_COUNTERS: u64 = 1024;

/// Bytes of the header page.
pub const HEADER_BYTES: u32 = 4096;
/// Bytes from one SQ slot to the next in this version.
pub const SQE_STRIDE: u32 = 64;
/// Bytes from one CQ slot to the next in this version.
pub const CQE_STRIDE: u32 = 32;
/// Bytes from one fate entry to the next in this version.
pub const FATE_STRIDE: u32 = 16;

/// The engine does not look at this ring until its bell is rung.
pub const ENGINE_NEED_WAKEUP: u32 = 1 << 0;
/// The session is ending; no further SQE is taken.
pub const ENGINE_CLOSING: u32 = 1 << 1;
/// The ring broke a rule; bits 16-31 hold a `FAULT_*` reason. It gets no more CQEs.
pub const ENGINE_FAULTED: u32 = 1 << 2;

/// Fault reason: `sq_tail` is more than `sq_entries` ahead.
pub const FAULT_SQ_TAIL_BEYOND: u16 = 1;
/// Fault reason: `sq_tail` ran back.
pub const FAULT_SQ_TAIL_BACK: u16 = 2;
/// Fault reason: `cq_head` ran back or passed `cq_tail`.
pub const FAULT_CQ_HEAD: u16 = 3;

/// The u64 counters in the header page, eight bytes each from [`AT_COUNTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RingCounter {
    /// Turns in which the engine touched this ring. Not a sign of life: the pidfd is.
    Heartbeat = 0,
    /// SQEs taken.
    Taken = 1,
    /// Final CQEs published.
    Completed = 2,
    /// SQEs refused for a bad field.
    Refused = 3,
    /// Client bells rung.
    BellsRung = 4,
    /// Times this ring was put to sleep (NEED_WAKEUP set).
    Sleeps = 5,
    /// Successes dropped by SKIP_SUCCESS.
    Skipped = 6,
}

/// Stage of a fate entry: not in use.
pub const FATE_FREE: u64 = 0;
/// Stage: taken, not begun. After the engine's death: NOT_STARTED.
pub const FATE_ACCEPTED: u64 = 1;
/// Stage: given to the fabric. After the engine's death: INDETERMINATE.
pub const FATE_POSTED: u64 = 2;
/// A fate entry's second word is `SQE number << FATE_SHIFT | stage`.
pub const FATE_SHIFT: u32 = 2;

impl SegmentHeader {
    /// Lays out a segment for the given entry counts; identity fields are left zero.
    #[must_use]
    pub fn lay_out(sq_entries: u32, cq_entries: u32) -> Self {
        let page = |bytes: u64| bytes.next_multiple_of(u64::from(HEADER_BYTES));
        let sq_offset = u64::from(HEADER_BYTES);
        let cq_offset = sq_offset + page(u64::from(sq_entries) * u64::from(SQE_STRIDE));
        let fate_offset = cq_offset + page(u64::from(cq_entries) * u64::from(CQE_STRIDE));
        let segment_bytes = fate_offset + page(u64::from(cq_entries) * u64::from(FATE_STRIDE));
        Self {
            magic: super::MAGIC,
            abi_version: u32::from(super::ABI_VERSION),
            header_bytes: HEADER_BYTES,
            features: super::FEATURES,
            sq_entries,
            cq_entries,
            sq_offset,
            cq_offset,
            fate_offset,
            sqe_stride: SQE_STRIDE,
            cqe_stride: CQE_STRIDE,
            fate_stride: FATE_STRIDE,
            segment_bytes,
            ..Self::default()
        }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SegmentHeader>() == 104);
    assert!(size_of::<SegmentHeader>() as u64 <= AT_SQ_TAIL);
    assert!(offset_of!(SegmentHeader, sq_entries) == 24);
    assert!(offset_of!(SegmentHeader, sq_offset) == 32);
    assert!(offset_of!(SegmentHeader, sqe_stride) == 56);
    assert!(offset_of!(SegmentHeader, segment_bytes) == 72);
};
