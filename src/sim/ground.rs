//! The regions of a simulated world: rows of slots, one row a client, and a counter.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::check::effects::{Heard, Tally};
use crate::shm::Mapping;

/// Bytes of a slot, and of a client's buffer: a few slices.
pub(super) const SLOT_BYTES: u64 = 512;
pub(super) const SLOT_SIZE: usize = 512;
const _: () = assert!(SLOT_SIZE as u64 == SLOT_BYTES);
/// Slots that a client has in each region.
pub(super) const SLOTS: usize = 4;
/// Buffers of a client: data ops under way.
pub(super) const BUFFERS: usize = 16;

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
    pub(super) heard: Heard,
}

impl Ground {
    pub(super) fn memory(&self) -> &Mapping {
        &self.memory
    }

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
            heard: Heard::default(),
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
}
