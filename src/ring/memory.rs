//! Ring memory as an argument: the same ends run over a mapped segment, a heap, or loom's atomics.

use crate::sync::{AtomicU32, AtomicU64};

/// A shared 32-bit word of the header page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Client: SQEs pushed.
    SqTail,
    /// Client: CQEs popped.
    CqHead,
    /// Client: ring my bell when `cq_tail` passes this.
    BellAt,
    /// Engine: SQEs taken.
    SqHead,
    /// Engine: CQEs published.
    CqTail,
    /// Engine: `ENGINE_*` bits.
    EngineFlags,
}

/// Ring memory, shared with a peer that may write anything at any time.
///
/// Entry counts are private copies that never change. Indices are masked by the implementation,
/// so every `u32` is a valid index.
pub trait Memory {
    /// SQ slots, a power of two.
    fn sq_entries(&self) -> u32;
    /// CQ slots and fate entries, a power of two.
    fn cq_entries(&self) -> u32;
    /// First value of all cursors.
    fn first_index(&self) -> u32;
    /// A header word.
    fn word(&self, word: Word) -> &AtomicU32;
    /// An SQ slot.
    fn sqe(&self, index: u32) -> &[AtomicU64; 8];
    /// A CQ slot.
    fn cqe(&self, index: u32) -> &[AtomicU64; 4];
    /// A fate entry.
    fn fate(&self, index: u32) -> &[AtomicU64; 2];
    /// A u64 counter of the header page, by `abi::RingCounter`.
    fn counter(&self, at: u8) -> &AtomicU64;
}

impl<M: Memory> Memory for std::sync::Arc<M> {
    fn sq_entries(&self) -> u32 {
        (**self).sq_entries()
    }
    fn cq_entries(&self) -> u32 {
        (**self).cq_entries()
    }
    fn first_index(&self) -> u32 {
        (**self).first_index()
    }
    fn word(&self, word: Word) -> &AtomicU32 {
        (**self).word(word)
    }
    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        (**self).sqe(index)
    }
    fn cqe(&self, index: u32) -> &[AtomicU64; 4] {
        (**self).cqe(index)
    }
    fn fate(&self, index: u32) -> &[AtomicU64; 2] {
        (**self).fate(index)
    }
    fn counter(&self, at: u8) -> &AtomicU64 {
        (**self).counter(at)
    }
}

/// Ring memory on the heap: for the core's own tests, for loom, and for benches.
#[derive(Debug)]
pub struct Heap {
    sq_entries: u32,
    cq_entries: u32,
    first_index: u32,
    words: [AtomicU32; 6],
    sqes: Vec<[AtomicU64; 8]>,
    cqes: Vec<[AtomicU64; 4]>,
    fates: Vec<[AtomicU64; 2]>,
    counters: [AtomicU64; 8],
}

impl Heap {
    /// Makes empty ring memory whose cursors start at `first_index`.
    ///
    /// # Panics
    /// If an entry count is not a power of two.
    #[must_use]
    pub fn new(sq_entries: u32, cq_entries: u32, first_index: u32) -> Self {
        assert!(sq_entries.is_power_of_two() && cq_entries.is_power_of_two());
        let start = [first_index; 5];
        let words = [start[0], start[1], start[2].wrapping_sub(1), start[3], start[4], 0];
        Self {
            sq_entries,
            cq_entries,
            first_index,
            words: words.map(AtomicU32::new),
            sqes: (0..sq_entries).map(|_| [0; 8].map(AtomicU64::new)).collect(),
            cqes: (0..cq_entries).map(|_| [0; 4].map(AtomicU64::new)).collect(),
            fates: (0..cq_entries).map(|_| [0; 2].map(AtomicU64::new)).collect(),
            counters: [0; 8].map(AtomicU64::new),
        }
    }
}

impl Memory for Heap {
    fn sq_entries(&self) -> u32 {
        self.sq_entries
    }
    fn cq_entries(&self) -> u32 {
        self.cq_entries
    }
    fn first_index(&self) -> u32 {
        self.first_index
    }
    fn word(&self, word: Word) -> &AtomicU32 {
        &self.words[word as usize]
    }
    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        &self.sqes[(index & (self.sq_entries - 1)) as usize]
    }
    fn cqe(&self, index: u32) -> &[AtomicU64; 4] {
        &self.cqes[(index & (self.cq_entries - 1)) as usize]
    }
    fn fate(&self, index: u32) -> &[AtomicU64; 2] {
        &self.fates[(index & (self.cq_entries - 1)) as usize]
    }
    fn counter(&self, at: u8) -> &AtomicU64 {
        &self.counters[usize::from(at & 7)]
    }
}
