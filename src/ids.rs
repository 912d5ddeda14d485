//! Identities: what the core calls sessions, rings, regions and records. No arithmetic on them.

/// A session's place in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u32);

/// A ring's place in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId(pub u32);

/// A region or import: generation << 20 | index. Never 0, since generations start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u32);

impl RegionId {
    /// Bits of the index.
    pub const INDEX_BITS: u32 = 20;
    /// Generations run from 1 to this and round again.
    pub const GENERATION_MAX: u32 = (1 << (32 - Self::INDEX_BITS)) - 1;

    /// Composes an id.
    #[must_use]
    pub fn new(generation: u32, index: u32) -> Self {
        assert!((1..=Self::GENERATION_MAX).contains(&generation) && index < 1 << Self::INDEX_BITS);
        Self(generation << Self::INDEX_BITS | index)
    }

    /// The place in the engine's region table.
    #[must_use]
    pub fn index(self) -> u32 {
        self.0 & ((1 << Self::INDEX_BITS) - 1)
    }

    /// How often that place was used before, roughly.
    #[must_use]
    pub fn generation(self) -> u32 {
        self.0 >> Self::INDEX_BITS
    }
}

/// An op's entry in the ledger: generation << 32 | engine << 24 | slot. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub u64);

impl RecordId {
    /// Bits of the slot.
    pub const SLOT_BITS: u32 = 24;

    /// Composes an id.
    #[must_use]
    pub fn new(generation: u32, engine: u8, slot: u32) -> Self {
        assert!(generation > 0 && slot < 1 << Self::SLOT_BITS);
        Self(u64::from(generation) << 32 | u64::from(engine) << Self::SLOT_BITS | u64::from(slot))
    }

    /// The place in the ledger.
    #[must_use]
    pub fn slot(self) -> u32 {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as u32
    }

    /// How often that place was used before, plus 1.
    #[must_use]
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
