//! The regions of a simulated world: rows of slots, one row a client, and a counter.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::shm::Mapping;

/// Bytes of a slot, and of a client's buffer: a few slices.
pub(super) const SLOT_BYTES: u64 = 512;
pub(super) const SLOT_SIZE: usize = 512;
const _: () = assert!(SLOT_SIZE as u64 == SLOT_BYTES);
/// Slots that a client has in each region.
pub(super) const SLOTS: usize = 4;
/// Buffers of a client: data ops under way.
pub(super) const BUFFERS: usize = 16;

/// How many were tried, and how they ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) tried: u64,
    pub(super) good: u64,
    pub(super) maybe: u64,
    pub(super) bad: u64,
    /// Took effect, and it was forgotten where they did.
    pub(super) lost: u64,
}

impl Tally {
    pub(super) fn end(&mut self, good: bool, maybe: bool) {
        match (good, maybe) {
            (true, _) => self.good += 1,
            (_, true) => self.maybe += 1,
            _ => self.bad += 1,
        }
    }

    /// Whoever counts them has died, after so many: no more are sure to be counted, of those under
    /// way neither.
    pub(super) fn forget(&mut self, counted: u64) {
        let most = self.tried - self.maybe - self.bad;
        self.lost = most.saturating_sub(counted);
    }

    /// True if so many took effect as their ends say.
    pub(super) fn agrees(&self, count: u64) -> bool {
        let least = self.good.saturating_sub(self.lost);
        (least..=self.good + self.maybe).contains(&count)
    }
}

/// A region that clients write to.
#[derive(Debug)]
pub(super) struct Ground {
    memory: Arc<Mapping>,
    rows: usize,
    /// Adds to the counter, and the old values that were given.
    pub(super) adds: Tally,
    pub(super) olds: BTreeSet<u64>,
    /// Notifications to its owner.
    pub(super) notices: Tally,
}

impl Ground {
    /// Bytes of a region for so many clients.
    pub(super) fn bytes(rows: usize) -> u64 {
        rows as u64 * SLOTS as u64 * SLOT_BYTES + SLOT_BYTES
    }

    pub(super) fn new(memory: Arc<Mapping>, rows: usize) -> Self {
        Self {
            memory,
            rows,
            adds: Tally::default(),
            olds: BTreeSet::new(),
            notices: Tally::default(),
        }
    }

    /// Where a slot is.
    pub(super) fn slot(&self, row: usize, slot: usize) -> u64 {
        assert!(row < self.rows && slot < SLOTS);
        (row * SLOTS + slot) as u64 * SLOT_BYTES
    }

    /// Where the counter is: behind all slots.
    pub(super) fn counter(&self) -> u64 {
        (self.rows * SLOTS) as u64 * SLOT_BYTES
    }

    pub(super) fn read(&self, row: usize, slot: usize) -> Vec<u8> {
        let mut bytes = vec![0; SLOT_SIZE];
        self.memory.read(self.slot(row, slot), &mut bytes);
        bytes
    }

    pub(super) fn all(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.memory.bytes()).unwrap_or(0)];
        self.memory.read(0, &mut bytes);
        bytes
    }

    /// The counter holds what the adds that took effect made of it.
    pub(super) fn judge_adds(&self) {
        let value = self.memory.word64(self.counter()).load(Ordering::Acquire);
        assert!(self.adds.agrees(value), "the counter is {value} after {:?}", self.adds);
        let beyond = self.olds.last().is_some_and(|old| *old >= value);
        assert!(!beyond, "an add was given {:?}, the counter is {value}", self.olds.last());
    }
}
