//! The telemetry page: one memfd an engine, in which it keeps count of what goes through it.
//!
//! A header page, then blocks of 64-bit words: one for each lane, rail and session. The engine
//! alone writes them; whoever holds the descriptor can read them, also when the engine is dead,
//! and nobody but the engine can map them for writing: the memory is sealed before it is handed
//! out. Each block has a sequence, odd while it is written, so that a look at it is whole.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Class;

/// First eight bytes of a telemetry page: `VRMETERS` read as a little-endian integer.
pub const TELEMETRY_MAGIC: u64 = u64::from_le_bytes(*b"VRMETERS");
/// Bytes of the header page, to the first block.
pub const TELEMETRY_HEADER_BYTES: u32 = 4096;
/// Bytes from one block to the next in this version.
pub const BLOCK_STRIDE: u32 = 4096;
/// Words of a block before its histograms, in this version.
pub const BLOCK_COUNTERS: u32 = 32;
/// Buckets of a histogram in this version.
pub const HISTOGRAM_BUCKETS: u32 = 240;
/// Nanoseconds to a unit of a histogram.
pub const HISTOGRAM_UNIT_NS: u32 = 16;
/// Buckets to an octave of a histogram; those below so many units are one unit wide.
pub const HISTOGRAM_STEPS: u32 = 8;
/// Lanes: three classes, each of users and of the engine itself.
pub const TELEMETRY_LANES: u32 = 6;
/// Wait reasons that are counted apart, `WAIT_*` numbers from 0.
pub const WAIT_REASONS: u32 = 16;
/// PROBE feature: TELEMETRY is served.
pub const FEATURE_TELEMETRY: u64 = 1 << 1;

/// The start of a telemetry page, written once, before anybody sees it.
///
/// Behind it lie the blocks, `block_stride` bytes each: those of the lanes (class high, medium,
/// low; of each that of users, then that of the engine's own work), of the rails from 0, one for
/// all sessions that are gone, and those of the sessions from 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TelemetryHeader {
    /// [`TELEMETRY_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`](super::ABI_VERSION).
    pub abi_version: u32,
    /// Byte offset of block 0.
    pub header_bytes: u32,
    /// Bytes from one block to the next: readers must use it, so that blocks can grow.
    pub block_stride: u32,
    /// Words of a block before its first histogram.
    pub counters: u32,
    /// Words of each of its two histograms.
    pub buckets: u32,
    /// Nanoseconds to a unit of theirs.
    pub unit_ns: u32,
    /// Buckets to an octave, a power of two.
    pub steps: u32,
    /// Blocks of lanes.
    pub lanes: u32,
    /// Blocks of rails.
    pub rails: u32,
    /// Blocks of sessions.
    pub sessions: u32,
    /// Drawn at random when the engine started.
    pub boot_id: [u64; 2],
    /// The engine's number, as in record ids.
    pub engine: u32,
    /// The engine's process.
    pub engine_pid: u32,
}

/// Words of a block, by place.
///
/// What is counted goes by ops in lanes and sessions. At a rail it goes by requests, of which an op
/// has one a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tally {
    /// Not a count: odd while the block is written, and another number afterwards.
    Sequence = 0,
    /// Queued after intake. Rails: 0.
    Enqueued = 1,
    /// Posted, in part or whole.
    Dispatched = 2,
    /// Ended well, after they were posted.
    Completed = 3,
    /// Bytes that they moved.
    Bytes = 4,
    /// Ended without a lane: NOPs and what else moves nothing. Rails: 0.
    Passed = 5,
    /// Not a count: queued now, nothing posted. Rails: 0.
    Queued = 6,
    /// Not a count: posted and not ended.
    InFlight = 7,
    /// Ended badly, after they were posted.
    Failed = 8,
    /// Ended while nothing of them was posted: cancelled, too late, or their region or ring gone.
    /// Rails: 0.
    Withdrawn = 9,
    /// Of these, taken back by CANCEL.
    Cancelled = 10,
    /// Queued again, nothing of them having been taken. Rails: handed back undone.
    Requeued = 11,
    /// Requests of them that a rail handed back undone, to go by another. Rails: 0.
    Returned = 12,
    /// Times one was to go on and lacked something.
    Defers = 13,
    /// Not a count: how often this session's place was taken and left; odd if it is in use. 0 for
    /// lanes and rails.
    Uses = 14,
    /// Not used.
    Spare = 15,
    /// The first of [`WAIT_REASONS`] words: of the defers, those for the lack of this `WAIT_*`.
    Waits = 16,
}

impl Tally {
    /// All of them, by place; words from [`Tally::Waits`] on are told apart by wait reason.
    pub const ALL: [Self; 17] = [
        Self::Sequence,
        Self::Enqueued,
        Self::Dispatched,
        Self::Completed,
        Self::Bytes,
        Self::Passed,
        Self::Queued,
        Self::InFlight,
        Self::Failed,
        Self::Withdrawn,
        Self::Cancelled,
        Self::Requeued,
        Self::Returned,
        Self::Defers,
        Self::Uses,
        Self::Spare,
        Self::Waits,
    ];
}

/// The block of a lane: `origin` is 0 for users and 1 for the engine's own work.
#[inline]
#[must_use]
pub fn lane_block(class: Class, origin: u8) -> u32 {
    // Classes count from 1, the most urgent first.
    (class as u32 - 1) * 2 + u32::from(origin & 1)
}

/// The bucket of a time.
#[inline]
#[must_use]
pub fn bucket_of(time_ns: u64) -> u32 {
    const STEPS: u64 = HISTOGRAM_STEPS as u64;
    const STEP_BITS: u32 = HISTOGRAM_STEPS.trailing_zeros();
    // What is longer than the histogram goes into its last bucket.
    let units = (time_ns / HISTOGRAM_UNIT_NS as u64).min(u32::MAX as u64);
    let octave = (units | STEPS).ilog2() - STEP_BITS;
    // The leading bit of `units` counts for one octave more. What is left has four bits.
    octave * HISTOGRAM_STEPS + (units >> octave & 15) as u32
}

/// The first nanosecond of a bucket, and of the one behind it, in histograms with units and steps
/// as a header tells them; the last that 64 bits hold for what is beyond.
#[must_use]
pub fn bucket_bounds_ns(bucket: u32, unit_ns: u32, steps: u32) -> [u64; 2] {
    let first = |bucket: u32| {
        let octave = (bucket / steps.max(1)).saturating_sub(1);
        let units = u64::from(bucket - octave * steps) * u64::from(unit_ns);
        if octave <= units.leading_zeros() { units << octave } else { u64::MAX }
    };
    [first(bucket), first(bucket.saturating_add(1))]
}

impl TelemetryHeader {
    /// Lays out a page for so many rails and sessions; identity fields are left zero.
    #[must_use]
    pub fn lay_out(rails: u32, sessions: u32) -> Self {
        Self {
            magic: TELEMETRY_MAGIC,
            abi_version: u32::from(super::ABI_VERSION),
            header_bytes: TELEMETRY_HEADER_BYTES,
            block_stride: BLOCK_STRIDE,
            counters: BLOCK_COUNTERS,
            buckets: HISTOGRAM_BUCKETS,
            unit_ns: HISTOGRAM_UNIT_NS,
            steps: HISTOGRAM_STEPS,
            lanes: TELEMETRY_LANES,
            rails,
            sessions,
            ..Self::default()
        }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        u64::from(self.lanes) + u64::from(self.rails) + 1 + u64::from(self.sessions)
    }

    /// Bytes of the whole page.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.header_bytes) + self.blocks() * u64::from(self.block_stride)
    }

    /// The block of a rail.
    #[must_use]
    pub fn rail_block(&self, rail: u32) -> u32 {
        self.lanes + rail
    }

    /// The block of all sessions that are gone.
    #[must_use]
    pub fn gone_block(&self) -> u32 {
        self.lanes + self.rails
    }

    /// The block of a session.
    #[must_use]
    pub fn session_block(&self, session: u32) -> u32 {
        self.gone_block() + 1 + session
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<TelemetryHeader>() == 72 && offset_of!(TelemetryHeader, boot_id) == 48);
    assert!((BLOCK_COUNTERS + 2 * HISTOGRAM_BUCKETS) * 8 == BLOCK_STRIDE);
    assert!(Tally::Waits as u32 + WAIT_REASONS == BLOCK_COUNTERS);
    assert!(HISTOGRAM_STEPS == 8);
    // Units of a histogram have 32 bits: 29 octaves behind the first buckets.
    assert!(HISTOGRAM_BUCKETS == HISTOGRAM_STEPS * (32 - HISTOGRAM_STEPS.trailing_zeros() + 1));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_hold_what_lies_between_their_bounds() {
        let mut next = 0;
        for bucket in 0..HISTOGRAM_BUCKETS {
            let [low, high] = bucket_bounds_ns(bucket, HISTOGRAM_UNIT_NS, HISTOGRAM_STEPS);
            assert_eq!(low, next, "bucket {bucket}");
            for time_ns in [low, high - 1] {
                assert_eq!(bucket_of(time_ns), bucket, "{time_ns} ns");
            }
            let finest = u64::from(HISTOGRAM_UNIT_NS);
            assert!(high - low == finest || (high - low) * 8 <= low, "{low}..{high}");
            next = high;
        }
        assert_eq!(next, 1 << 36);
        let beyond = bucket_bounds_ns(u32::MAX, u32::MAX, 1);
        assert_eq!(beyond, [u64::MAX; 2], "no bucket of ours");
        assert_eq!(bucket_of(u64::MAX), HISTOGRAM_BUCKETS - 1);
    }

    #[test]
    fn every_word_has_its_place() {
        for (place, tally) in (0..).zip(Tally::ALL) {
            assert_eq!(tally as u8, place);
        }
        let lanes: Vec<u32> = Class::ALL
            .into_iter()
            .flat_map(|class| [0, 1].map(|origin| lane_block(class, origin)))
            .collect();
        assert_eq!(lanes, [0, 1, 2, 3, 4, 5]);
        let header = TelemetryHeader::lay_out(3, 5);
        let blocks = [header.rail_block(2), header.gone_block(), header.session_block(4)];
        assert_eq!(blocks, [8, 9, 14]);
        assert_eq!(header.bytes(), 4096 * (1 + 6 + 3 + 1 + 5));
    }
}
