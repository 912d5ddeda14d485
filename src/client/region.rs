//! Memory: regions of ours, the ranges of them that are lent out, and imports of others'.
//!
//! Region memory may change under us at any time, by ops of ours and of peers, so it is only ever
//! copied in and out; no reference into it exists. What [`Lease`] adds is order among our own ops:
//! a range that is lent to an op is in nobody else's hands until the op's completion brings it
//! back, unless it was shared on purpose.
//!
//! **Deliberately absent**: any protection against peers that hold an import of the region, and
//! against entries pushed through [`RawRing`](super::RawRing): neither asks for a lease.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::{BitOr, Range};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Session;
use super::error::{ControlError, LendError};
use crate::abi;
use crate::shm::Mapping;

/// Memory registered with the engine: the near side of ops, and what can be exported.
///
/// Dropping a region leaves it registered until the session ends; [`Region::release`] gives it
/// back at once. The memory stays mapped as long as a [`Lease`] of it lives.
#[derive(Debug)]
pub struct Region {
    shared: Arc<Shared>,
}

/// What a region and its leases hold together.
#[derive(Debug)]
struct Shared {
    session: Session,
    id: u32,
    huge: bool,
    mapping: Mapping,
    /// Lent ranges by their start. They do not overlap and none is empty.
    lent: Mutex<BTreeMap<u64, Lent>>,
}

#[derive(Debug)]
struct Lent {
    end: u64,
    /// Leases of just this range.
    holders: u32,
}

impl Region {
    pub(super) fn new(session: Session, id: u32, huge: bool, mapping: Mapping) -> Self {
        let lent = Mutex::new(BTreeMap::new());
        Self { shared: Arc::new(Shared { session, id, huge, mapping, lent }) }
    }

    /// Returns the region's id, as entries of a [`RawRing`](super::RawRing) name it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.shared.id
    }

    /// Returns the region's length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.mapping.bytes()
    }

    /// True if the region lies in huge pages.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.shared.huge
    }

    /// Lends a range of bytes, to be filled and given to an op. Until it comes back and is dropped,
    /// no overlapping range is lent. An empty range is never in the way.
    ///
    /// # Errors
    /// [`LendError`] if the range is not inside the region or overlaps one that is lent.
    ///
    /// # Examples
    /// ```
    /// # let engine = verbring::Engine::builder().spawn()?;
    /// # let session = engine.connect()?;
    /// let region = session.alloc(1 << 20)?;
    /// let mut lease = region.lend(0..4096)?;
    /// lease.write(0, b"hello");
    /// assert!(region.lend(4095..8192).is_err());
    /// drop(lease);
    /// assert!(region.lend(4095..8192).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lend(&self, range: Range<u64>) -> Result<Lease, LendError> {
        if range.start > range.end || range.end > self.bytes() {
            return Err(LendError::Outside { range, bytes: self.bytes() });
        }
        if !range.is_empty() {
            let mut lent = self.shared.lent();
            // Lent ranges do not overlap, so the last one that begins before our end ends last.
            if let Some((&start, &Lent { end, .. })) = lent.range(..range.end).next_back()
                && end > range.start
            {
                return Err(LendError::Lent { range, lent: start..end });
            }
            lent.insert(range.start, Lent { end: range.end, holders: 1 });
        }
        Ok(Lease { shared: Arc::clone(&self.shared), range, frees: true })
    }

    /// Offers the region under a name, unique for this uid, with some rights. Returns the secret
    /// that an importer must show.
    ///
    /// # Errors
    /// [`ControlError::Name`] for a name that is empty, holds a zero, or has more than 64 bytes;
    /// a refusal with EEXIST if the name is taken.
    pub fn export(&self, name: &str, rights: Rights) -> Result<Secret, ControlError> {
        self.shared.session.export(self.id(), name, rights)
    }

    /// Gives the region back. Queued ops on it end with `Detail::Released`; the call returns when
    /// nothing touches the memory any more. Leases stay good as plain memory.
    ///
    /// # Errors
    /// [`ControlError`] if the engine refuses or is gone.
    pub fn release(self) -> Result<(), ControlError> {
        self.shared.session.release_object(abi::OBJECT_REGION, self.id())
    }

    pub(super) fn session_uid(&self) -> u64 {
        self.shared.session.uid()
    }
}

impl Shared {
    fn lent(&self) -> MutexGuard<'_, BTreeMap<u64, Lent>> {
        // Nothing can panic between the two steps of a change, so a poisoned map is a sound one.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range of a region in one pair of hands: yours, or those of the op it was given to.
///
/// It goes into an op by value and comes back in the op's completion. Dropping it frees the range.
///
/// ```compile_fail,E0382
/// # use verbring::{Import, Lease, Ring, Write};
/// fn touch_too_early(ring: &mut Ring, lease: Lease, import: &Import) {
///     ring.push(Write::new(lease, import.at(0))).unwrap();
///     let mut bytes = [0; 8];
///     lease.read(0, &mut bytes); // the op has it now
/// }
/// ```
///
/// The same, in the right order:
///
/// ```
/// # use verbring::{Import, Lease, Ring, Write};
/// fn touch_in_time(ring: &mut Ring, lease: Lease, import: &Import) {
///     ring.push(Write::new(lease, import.at(0))).unwrap();
///     ring.submit_and_wait(1, None).unwrap();
///     let completion = ring.reap().unwrap().unwrap();
///     let mut bytes = [0; 8];
///     completion.lease.unwrap().read(0, &mut bytes);
/// }
/// ```
pub struct Lease {
    shared: Arc<Shared>,
    range: Range<u64>,
    /// False once the range must stay lent although the lease goes.
    frees: bool,
}

impl Lease {
    /// Copies bytes into the range, from `at` on.
    ///
    /// # Panics
    /// If they end beyond the range.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let offset = self.place(at, bytes.len() as u64);
        self.shared.mapping.write(offset, bytes);
    }

    /// Fills the whole range with one byte.
    pub fn fill(&mut self, byte: u8) {
        self.shared.mapping.fill(self.range.start, self.bytes(), byte);
    }

    /// Stores a u64, little-endian like everything in the ABI, at once and with release order.
    ///
    /// # Panics
    /// If it ends beyond the range, or its offset in the region is not a multiple of 8.
    pub fn set_u64(&mut self, at: u64, value: u64) {
        let offset = self.place(at, 8);
        self.shared.mapping.word64(offset).store(value, Ordering::Release);
    }

    /// Copies bytes out of the range, from `at` on.
    ///
    /// # Panics
    /// If they end beyond the range.
    pub fn read(&self, at: u64, bytes: &mut [u8]) {
        let offset = self.place(at, bytes.len() as u64);
        self.shared.mapping.read(offset, bytes);
    }

    /// Loads a u64, at once and with acquire order.
    ///
    /// # Panics
    /// If it ends beyond the range, or its offset in the region is not a multiple of 8.
    #[must_use]
    pub fn u64(&self, at: u64) -> u64 {
        let offset = self.place(at, 8);
        self.shared.mapping.word64(offset).load(Ordering::Acquire)
    }

    /// Makes another lease of the same range, for ops that move it to the same effect: those that
    /// [`coalesce`](super::Write::coalesce). The range is free once all its leases are gone.
    ///
    /// Until they are back, whoever reads or writes through one of them may meet what the ops of
    /// the others move: bytes mix, as with a peer that writes there.
    ///
    /// # Panics
    /// If there are 2^32 - 1 of this range.
    ///
    /// # Examples
    /// ```
    /// # let engine = verbring::Engine::builder().spawn()?;
    /// # let region = engine.connect()?.alloc(1 << 20)?;
    /// let page = region.lend(0..4096)?;
    /// let again = page.share();
    /// drop(page);
    /// assert!(region.lend(0..1).is_err());
    /// drop(again);
    /// assert!(region.lend(0..1).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn share(&self) -> Self {
        if let Some(lent) = self.shared.lent().get_mut(&self.range.start)
            && !self.range.is_empty()
        {
            let holders = lent.holders.checked_add(1);
            lent.holders = holders.expect("so many leases fit into no memory");
        }
        Self { shared: Arc::clone(&self.shared), range: self.range.clone(), frees: true }
    }

    /// Returns the range's length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Returns where in the region the range begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.range.start
    }

    /// Returns the id of the region.
    #[must_use]
    pub fn region_id(&self) -> u32 {
        self.shared.id
    }

    pub(super) fn session_uid(&self) -> u64 {
        self.shared.session.uid()
    }

    pub(super) fn same_region(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Lets go of the memory but leaves the range lent: an op that nobody waits for may still
    /// write into it.
    pub(super) fn abandon(mut self) {
        self.frees = false;
    }

    fn place(&self, at: u64, length: u64) -> u64 {
        let end = at.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.bytes()), "a range outside its lease");
        self.range.start + at
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.frees && !self.range.is_empty() {
            let mut lent = self.shared.lent();
            if let Entry::Occupied(mut range) = lent.entry(self.range.start) {
                range.get_mut().holders -= 1;
                if range.get().holders == 0 {
                    range.remove();
                }
            }
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shared, range, .. } = self;
        f.debug_struct("Lease").field("region", &shared.id).field("range", range).finish()
    }
}

/// A peer's region, taken up under its name and secret: the far side of ops.
///
/// Clones mean the same import. Dropping the last one leaves it open until the session ends;
/// [`Import::release`] gives it back at once.
#[derive(Clone, Debug)]
pub struct Import {
    session: Session,
    id: u32,
    rights: Rights,
    start: u64,
    bytes: u64,
}

impl Import {
    pub(super) fn new(session: Session, id: u32, rights: Rights, bytes: u64) -> Self {
        Self { session, id, rights, start: 0, bytes }
    }

    /// Names the place `offset` bytes from the start of the import (or slice): where an op's far
    /// side begins. Whether the op ends inside the region is for the engine to say.
    #[must_use]
    pub fn at(&self, offset: u64) -> Remote {
        let offset = self.start.saturating_add(offset);
        Remote { session: self.session.uid(), region: self.id, offset }
    }

    /// Returns the part of this import from `offset` on, `bytes` long; `None` if it is not inside.
    ///
    /// A slice is an address that starts elsewhere, not a fence: an op that begins in it may end
    /// beyond it, up to the end of the region.
    #[must_use]
    pub fn slice(&self, offset: u64, bytes: u64) -> Option<Self> {
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes).then(|| Self { start: self.start + offset, bytes, ..self.clone() })
    }

    /// Returns the import's id, as entries of a [`RawRing`](super::RawRing) name it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns the length of the import (or slice) in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns what the exporter granted.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Gives the import back, for all its clones and slices. Queued ops on it end with
    /// `Detail::Released`; the call returns when none of ours touches the peer's memory any more.
    ///
    /// # Errors
    /// [`ControlError`] if the engine refuses or is gone.
    pub fn release(self) -> Result<(), ControlError> {
        self.session.release_object(abi::OBJECT_REGION, self.id)
    }

    pub(super) fn session_uid(&self) -> u64 {
        self.session.uid()
    }
}

/// A place in an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    pub(super) session: u64,
    pub(super) region: u32,
    pub(super) offset: u64,
}

/// What an export lets importers do: a set of rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights(u32);

impl Rights {
    /// READ and READV.
    pub const READ: Self = Self(abi::RIGHT_READ);
    /// WRITE and WRITEV.
    pub const WRITE: Self = Self(abi::RIGHT_WRITE);
    /// FETCH_ADD and CMP_SWAP.
    pub const ATOMIC: Self = Self(abi::RIGHT_ATOMIC);
    /// Ops that notify the exporter.
    pub const NOTIFY: Self = Self(abi::RIGHT_NOTIFY);
    /// All of them.
    pub const ALL: Self = Self(abi::RIGHTS_ALL);

    /// Takes `abi::RIGHT_*` bits as they are.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Returns the `abi::RIGHT_*` bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// True if all of `other` are in this set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What an importer must show: 32 random bytes, made by the engine for one export. `Debug` does
/// not print them; [`Secret::to_hex`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; abi::SECRET_BYTES]);

impl Secret {
    /// Takes the bytes that an exporter passed on.
    #[must_use]
    pub fn from_bytes(bytes: [u8; abi::SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, to be passed on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; abi::SECRET_BYTES] {
        &self.0
    }

    /// Returns the secret as 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for Secret {
    type Err = BadSecret;

    fn from_str(hex: &str) -> Result<Self, BadSecret> {
        let digits = hex.as_bytes();
        let mut bytes = [0; abi::SECRET_BYTES];
        if digits.len() != 2 * bytes.len() {
            return Err(BadSecret);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Result<u8, BadSecret> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(BadSecret),
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Text that is not a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret is 64 hexadecimal digits")]
pub struct BadSecret;
