//! Ring memory in a mapped segment: the header is read once, checked, and never read again.
#![expect(unsafe_code, reason = "turns checked offsets of a mapping into references to atomics")]

use std::sync::Arc;

use thiserror::Error;
use zerocopy::FromBytes;

use super::{Memory, Word};
use crate::abi::{self, SegmentHeader};
use crate::shm::Mapping;
use crate::sync::{AtomicU32, AtomicU64};

/// A segment whose header cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("segment header field {field} is {value}, {limit}")]
pub struct BadSegment {
    field: &'static str,
    value: u64,
    limit: &'static str,
}

/// Ring memory in a segment shared with another process.
///
/// Entry counts, offsets and strides are private copies, checked at construction: every slot of
/// every index lies inside the mapping, which is kept alive here.
#[derive(Debug, Clone)]
pub struct Mapped {
    mapping: Arc<Mapping>,
    header: SegmentHeader,
}

impl Mapped {
    /// Writes the header of a fresh, zeroed segment and takes it as ring memory.
    ///
    /// # Errors
    /// [`BadSegment`] if the header does not fit the mapping.
    pub fn create(mapping: Arc<Mapping>, header: SegmentHeader) -> Result<Self, BadSegment> {
        Self::check(&header, mapping.bytes())?;
        mapping.write(0, zerocopy::IntoBytes::as_bytes(&header));
        let ring = Self { mapping, header };
        let first = header.first_index;
        let relaxed = crate::sync::Ordering::Relaxed;
        for word in [Word::SqTail, Word::CqHead, Word::SqHead, Word::CqTail] {
            ring.word(word).store(first, relaxed);
        }
        ring.word(Word::BellAt).store(first.wrapping_sub(1), relaxed);
        Ok(ring)
    }

    /// Takes a segment that an engine has made.
    ///
    /// # Errors
    /// [`BadSegment`] if its header cannot be, or is of another ABI.
    pub fn open(mapping: Arc<Mapping>) -> Result<Self, BadSegment> {
        let mut bytes = [0; size_of::<SegmentHeader>()];
        if mapping.bytes() < u64::from(abi::HEADER_BYTES) {
            return Err(BadSegment {
                field: "segment_bytes",
                value: mapping.bytes(),
                limit: "less than a header page",
            });
        }
        mapping.read(0, &mut bytes);
        let Ok(header) = SegmentHeader::read_from_bytes(&bytes) else {
            unreachable!("the array has the header's size");
        };
        Self::check(&header, mapping.bytes())?;
        Ok(Self { mapping, header })
    }

    /// The header as it was when the segment was taken.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    fn check(header: &SegmentHeader, bytes: u64) -> Result<(), BadSegment> {
        let bad = |field, value, limit| Err(BadSegment { field, value, limit });
        if header.magic != abi::MAGIC {
            return bad("magic", header.magic, "not a verbring segment");
        }
        if header.abi_version != u32::from(abi::ABI_VERSION) {
            return bad("abi_version", u64::from(header.abi_version), "and only 1 is known");
        }
        for (field, entries) in
            [("sq_entries", header.sq_entries), ("cq_entries", header.cq_entries)]
        {
            let range = abi::ENTRIES_MIN..=abi::ENTRIES_MAX;
            if !entries.is_power_of_two() || !range.contains(&entries) {
                return bad(field, u64::from(entries), "not a power of two from 2 to 32768");
            }
        }
        let parts = [
            ("sq", header.sq_offset, header.sq_entries, header.sqe_stride, abi::SQE_STRIDE),
            ("cq", header.cq_offset, header.cq_entries, header.cqe_stride, abi::CQE_STRIDE),
            ("fate", header.fate_offset, header.cq_entries, header.fate_stride, abi::FATE_STRIDE),
        ];
        for (field, offset, entries, stride, stride_min) in parts {
            if stride < stride_min || !stride.is_multiple_of(8) || stride > 4096 {
                return bad(field, u64::from(stride), "not a stride of whole words, large enough");
            }
            let end = offset.checked_add(u64::from(entries) * u64::from(stride));
            let low = offset < u64::from(abi::HEADER_BYTES) || !offset.is_multiple_of(8);
            if low || end.is_none_or(|end| end > bytes) {
                return bad(field, offset, "not inside the segment");
            }
        }
        Ok(())
    }

    /// The `N` words at a checked offset.
    #[inline]
    fn words<const N: usize>(&self, offset: u64) -> &[AtomicU64; N] {
        debug_assert!(self.mapping.holds(offset, 8 * N as u64) && offset.is_multiple_of(8));
        #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits")]
        // SAFETY: `check` has shown that every entry of every table lies inside the mapping, and
        // callers mask their index to the table's entries.
        let at = unsafe { self.mapping.base().add(offset as usize) };
        // SAFETY: aligned to 8, since base is to a page and offset and stride are multiples of 8;
        // atomics may be shared with the other process; `mapping` outlives `&self`.
        unsafe { at.cast::<[AtomicU64; N]>().as_ref() }
    }
}

impl Memory for Mapped {
    #[inline]
    fn sq_entries(&self) -> u32 {
        self.header.sq_entries
    }

    #[inline]
    fn cq_entries(&self) -> u32 {
        self.header.cq_entries
    }

    fn first_index(&self) -> u32 {
        self.header.first_index
    }

    #[inline]
    fn word(&self, word: Word) -> &AtomicU32 {
        self.mapping.word32(match word {
            Word::SqTail => abi::AT_SQ_TAIL,
            Word::CqHead => abi::AT_CQ_HEAD,
            Word::BellAt => abi::AT_BELL_AT,
            Word::SqHead => abi::AT_SQ_HEAD,
            Word::CqTail => abi::AT_CQ_TAIL,
            Word::EngineFlags => abi::AT_ENGINE_FLAGS,
        })
    }

    #[inline]
    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        let slot = index & (self.header.sq_entries - 1);
        self.words(self.header.sq_offset + u64::from(slot) * u64::from(self.header.sqe_stride))
    }

    #[inline]
    fn cqe(&self, index: u32) -> &[AtomicU64; 4] {
        let slot = index & (self.header.cq_entries - 1);
        self.words(self.header.cq_offset + u64::from(slot) * u64::from(self.header.cqe_stride))
    }

    #[inline]
    fn fate(&self, index: u32) -> &[AtomicU64; 2] {
        let slot = index & (self.header.cq_entries - 1);
        self.words(self.header.fate_offset + u64::from(slot) * u64::from(self.header.fate_stride))
    }

    #[inline]
    fn counter(&self, at: u8) -> &AtomicU64 {
        self.mapping.word64(abi::AT_COUNTERS + 8 * u64::from(at & 7))
    }
}
