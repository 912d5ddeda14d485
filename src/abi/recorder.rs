//! The flight recorder: one memfd a session, in which its ops' records lie when they are over.
//!
//! A header page, then a ring of entries, one cache line each, written by the engine alone. Whoever
//! holds the descriptor can read it, also when the engine is dead. Nobody but the engine can map it
//! for writing: it is sealed before it is handed out.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of a flight recorder: `VRECORDS` read as a little-endian integer.
pub const RECORDER_MAGIC: u64 = u64::from_le_bytes(*b"VRECORDS");
/// Bytes of the header page, to the first entry.
pub const RECORDER_HEADER_BYTES: u32 = 4096;
/// Bytes from one entry to the next in this version.
pub const RECORD_STRIDE: u32 = 64;
/// Most entries of a recorder; counts are powers of two.
pub const RECORDER_ENTRIES_MAX: u32 = 65_536;
/// [`RecordEntry::queued`] and [`RecordEntry::total`] are `ns << RECORD_TIME_SHIFT | count`.
pub const RECORD_TIME_SHIFT: u32 = 16;
/// PROBE feature: RECORDER is served, and WHY with [`RING_ANY`].
pub const FEATURE_RECORDER: u64 = 1 << 0;
/// RECORDER: this session's own, which is made if there is none.
pub const SESSION_OWN: u32 = u32::MAX;
/// WHY: the op with this record in any ring of this uid's sessions (of all, for root).
pub const RING_ANY: u32 = u32::MAX;

/// The start of a flight recorder, written once, before anybody sees it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecorderHeader {
    /// [`RECORDER_MAGIC`].
    pub magic: u64,
    /// [`ABI_VERSION`](super::ABI_VERSION).
    pub abi_version: u32,
    /// Byte offset of entry 0.
    pub header_bytes: u32,
    /// Bytes from one entry to the next: readers must use it, so that entries can grow.
    pub entry_stride: u32,
    /// Entries, a power of two.
    pub entries: u32,
    /// Drawn at random when the engine started.
    pub boot_id: [u64; 2],
    /// The engine's number, as in record ids.
    pub engine: u32,
    /// The session's number in its engine.
    pub session: u32,
    /// The engine's process.
    pub engine_pid: u32,
    /// The client's process.
    pub client_pid: u32,
    /// The client's uid.
    pub uid: u32,
    /// Zero.
    pub reserved: u32,
}

/// What is kept of an op that is over.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RecordEntry {
    /// 0: empty, or being written. Entry n, from 1, lies in place (n - 1) % entries. Wraps.
    pub sequence: u32,
    /// Its ring.
    pub ring: u16,
    /// 1 high, 2 medium, 3 low.
    pub class: u8,
    /// An [`Opcode`](super::Opcode). Never NOP.
    pub opcode: u8,
    /// Its ledger record, as in its CQE.
    pub record: u64,
    /// From its SQE.
    pub user_data: u64,
    /// When it was taken: CLOCK_MONOTONIC, in nanoseconds.
    pub taken_ns: u64,
    /// Nanoseconds from intake to first post << 16 | requests given to the fabric. Both saturate; 0
    /// if nothing was posted.
    pub queued: u64,
    /// Nanoseconds from intake to its end << 16 | times it found no credit. Both saturate.
    pub total: u64,
    /// As in its CQE. An ARM's: notifications delivered.
    pub res: i32,
    /// As in its CQE.
    pub flags: u16,
    /// As in its CQE.
    pub detail: u16,
    /// Bytes asked for; an ARM's: notifications.
    pub bytes: u32,
    /// The rail that it went by last.
    pub rail: u8,
    /// `WAIT_*`: what it lacked the last time it could not go on. If it lacked nothing and yet
    /// waited, who went before it: `WAIT_LANE`, `WAIT_TURN` or `WAIT_CLASS`. Else `WAIT_NONE`.
    pub wait: u8,
    /// errno of the first failure that was its own, not that of its queue pair; 0 without one.
    pub cause: u8,
    /// Times the fabric posted one of its requests again; saturates.
    pub retries: u8,
}

impl RecorderHeader {
    /// Lays out a recorder of so many entries; identity fields are left zero.
    #[must_use]
    pub fn lay_out(entries: u32) -> Self {
        Self {
            magic: RECORDER_MAGIC,
            abi_version: u32::from(super::ABI_VERSION),
            header_bytes: RECORDER_HEADER_BYTES,
            entry_stride: RECORD_STRIDE,
            entries,
            ..Self::default()
        }
    }

    /// Bytes of the whole recorder.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let entries = u64::from(self.entries) * u64::from(self.entry_stride);
        u64::from(self.header_bytes) + entries
    }
}

impl RecordEntry {
    /// Reads an entry from the eight words of its cache line.
    #[must_use]
    pub fn from_words(words: [u64; 8]) -> Self {
        zerocopy::transmute!(words)
    }

    /// Puts a time and a count into one word, as `queued` and `total` are; both saturate.
    #[inline]
    #[must_use]
    pub fn packed(time_ns: u64, count: u32) -> u64 {
        const TIME_MAX: u64 = u64::MAX >> RECORD_TIME_SHIFT;
        const COUNT_MAX: u32 = (1 << RECORD_TIME_SHIFT) - 1;
        time_ns.min(TIME_MAX) << RECORD_TIME_SHIFT | u64::from(count.min(COUNT_MAX))
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<RecorderHeader>() == 64 && offset_of!(RecorderHeader, boot_id) == 24);
    assert!(size_of::<RecordEntry>() == RECORD_STRIDE as usize);
    assert!(offset_of!(RecordEntry, record) == 8 && offset_of!(RecordEntry, total) == 40);
    assert!(offset_of!(RecordEntry, bytes) == 56 && offset_of!(RecordEntry, retries) == 63);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_eight_words() {
        let times = [RecordEntry::packed(13, 14), RecordEntry::packed(u64::MAX, u32::MAX)];
        assert_eq!(times, [13 << 16 | 14, u64::MAX]);
        let entry = RecordEntry::from_words([
            0x0803_0506_0102_0304,
            9 << 32 | 10,
            u64::MAX - 11,
            12 << 40,
            times[0],
            times[1],
            17 << 48 | 16 << 32 | 15,
            0x0716_1514_ffff_ffed,
        ]);
        let expected = RecordEntry {
            sequence: 0x0102_0304,
            ring: 0x0506,
            class: 3,
            opcode: 8,
            record: 9 << 32 | 10,
            user_data: u64::MAX - 11,
            taken_ns: 12 << 40,
            queued: times[0],
            total: times[1],
            res: 15,
            flags: 16,
            detail: 17,
            bytes: u32::MAX - 18,
            rail: 0x14,
            wait: 0x15,
            cause: 0x16,
            retries: 7,
        };
        assert_eq!(entry, expected);
    }
}
