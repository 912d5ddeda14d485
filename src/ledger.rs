//! The ledger: one record for every op from intake to its final CQE.
//!
//! Records live in one array made at start. A record's id carries a generation, so that whatever
//! arrives late for an earlier use of its slot is recognised. The slot closed last is opened next,
//! while its lines are still in the cache; a slot that was used often goes to the end of the free
//! list, so that 2^32 uses of one slot take long. Once all are closed they are opened in the order
//! of their places again: ops that end in another order than they came would else leave a list that
//! leads all over the memory, and each record of a later burst would be fetched alone. Records are
//! strung on intrusive lists, one link pair a relation: [`LANE`] (a lane, the ARMs of a region, the
//! flushes under way, or the ops folded into one: an op is on one of them at most) and [`RING`]
//! (all ops of a ring, in order of intake).
//!
//! **Invariants**: a slot is on the free list or open, never both; a closed record is on no list.
//! **Deliberately absent**: rings, fabrics, time sources. **Tests**: against a `BTreeMap`.

mod list;

use crate::abi::{
    CQE_DEP_FAILED, CQE_FLUSHED, Class, Opcode, RecordEntry, WAIT_CLASS, WAIT_NONE, WAIT_TURN,
    errno,
};
use crate::ids::{RecordId, RingId, SessionId};

pub use list::List;

/// "No record" in a link.
pub const NIL: u32 = u32::MAX;
/// Link pair of lanes, ARM lists, the flush list, and what is folded together.
pub const LANE: usize = 0;
/// Link pair of a ring's ops.
pub const RING: usize = 1;

/// Where an op is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The slot is free.
    Free,
    /// It waits for predecessors; on no list but its ring's.
    Waiting,
    /// In its lane, nothing posted.
    Queued,
    /// Posted in part or whole; the rest, if any, is in its lane.
    Posted,
    /// An ARM, on its region's list.
    Armed,
    /// A FLUSH, on the list of flushes.
    Flushing,
    /// Folded into another op, whose end is its own: on the list of its group ([`crate::fold`]).
    Folded,
}

/// Why an op failed: a positive errno, the `DETAIL_*` code, and CQE flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Positive errno.
    pub errno: i32,
    /// A `Detail` number.
    pub detail: u16,
    /// `CQE_*` bits.
    pub flags: u16,
}

impl Failure {
    /// True if it is not the op's own: it was flushed with its queue pair, or cancelled along with
    /// what it depends on.
    #[inline]
    #[must_use]
    pub fn goes_along(&self) -> bool {
        let along = self.flags & (CQE_FLUSHED | CQE_DEP_FAILED) != 0;
        along && matches!(self.errno, errno::EIO | errno::ECANCELED)
    }
}

/// How an op ended, as its CQE tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes, or a negative errno.
    pub res: i32,
    /// `CQE_*` bits.
    pub flags: u16,
    /// A `Detail` number, or fabric << 8 | rail.
    pub detail: u16,
}

impl Outcome {
    /// As it lies in an entry.
    #[inline]
    fn to_word(self) -> u64 {
        let [r0, r1, r2, r3] = self.res.to_le_bytes();
        let [f0, f1] = self.flags.to_le_bytes();
        let [d0, d1] = self.detail.to_le_bytes();
        u64::from_le_bytes([r0, r1, r2, r3, f0, f1, d0, d1])
    }
}

/// What an op is to do, parsed from its SQE and checked.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// The verb.
    pub opcode: Opcode,
    /// Its lane.
    pub class: Class,
    /// `SQE_*` bits in force.
    pub flags: u16,
    /// For the CQE.
    pub user_data: u64,
    /// Index of the local region, or [`NIL`].
    pub local: u32,
    /// Index of the import, or [`NIL`].
    pub import: u32,
    /// Index of the region behind the import, or [`NIL`].
    pub target: u32,
    /// The target's export epoch when the op was taken.
    pub epoch: u32,
    /// Byte offset into the local region.
    pub local_offset: u64,
    /// Byte offset into the remote region.
    pub remote_offset: u64,
    /// Bytes of the op, or of each page, or notifications of an ARM.
    pub bytes: u32,
    /// Pages of a list, 0 without one.
    pub pages: u32,
    /// First block of the page list, or [`NIL`].
    pub list: u32,
    /// For NOTIFY.
    pub immediate: u32,
    /// Deadline in microseconds from intake, 0 for none.
    pub deadline_us: u32,
    /// Operands of atomics, or CANCEL's target.
    pub arg: [u64; 2],
}

impl Op {
    /// An op that touches nothing.
    pub const NOP: Self = Self {
        opcode: Opcode::Nop,
        class: Class::Medium,
        flags: 0,
        user_data: 0,
        local: NIL,
        import: NIL,
        target: NIL,
        epoch: 0,
        local_offset: 0,
        remote_offset: 0,
        bytes: 0,
        pages: 0,
        list: NIL,
        immediate: 0,
        deadline_us: 0,
        arg: [0; 2],
    };

    /// Places of the regions it names: local, import, target.
    #[inline]
    #[must_use]
    pub fn names(&self) -> [u32; 3] {
        [self.local, self.import, self.target]
    }

    /// Bytes that it asks for, over all pages: what counts against its owner's bound.
    #[inline]
    #[must_use]
    pub fn asked(&self) -> u64 {
        match self.opcode {
            Opcode::Arm => 0,
            _ => u64::from(self.bytes) * u64::from(self.pages.max(1)),
        }
    }
}

/// One entry of the ledger: four cache lines, so that none is fetched for a neighbour's sake.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Record {
    links: [[u32; 2]; 2],
    /// This use's id; of a free slot, the last one's.
    id: RecordId,
    /// Where the op is.
    pub state: State,
    /// Its session.
    pub session: SessionId,
    /// Its ring.
    pub ring: RingId,
    /// Its entry in the ring's fate table.
    pub fate: u32,
    /// Its SQE number.
    pub number: u64,
    /// Place in the order of intake over all rings.
    pub sequence: u64,
    /// What it is to do.
    pub op: Op,
    /// Requests with the fabric.
    pub in_fabric: u32,
    /// Next page to post.
    pub page: u32,
    /// Block of the page list that holds `page`.
    pub block: u32,
    /// Bytes of the op (or of the current page) that are posted; for a FLUSH the next slot to look
    /// at, for an ARM the notifications delivered.
    pub cursor: u32,
    /// All of it is with the fabric or done.
    pub posted_whole: bool,
    /// Each part of it was posted once, to a peer; what was handed back may still be left.
    pub laid: bool,
    /// Bytes placed.
    pub done_bytes: u64,
    /// First failure.
    pub failure: Option<Failure>,
    /// The engine's count of withdrawn regions when its own were checked.
    pub checked: u64,
    /// When it was taken, ns.
    pub taken_ns: u64,
    /// When its first part was posted, ns; 0 before.
    pub posted_ns: u64,
    /// Times it found no credit at the head of its lane.
    pub defers: u32,
    /// `WAIT_*` of the last time it found none; before that, how it was queued: behind others of
    /// its flow or not.
    pub wait: u16,
    /// The line of rails that it waits in; 0 if it stays on this host.
    pub line: u16,
    /// Requests given to the fabric; saturates.
    pub posts: u16,
    /// As an entry's last word has it: what it lacked the last time it could not go on, or who went
    /// before it; errno of the first failure that was its own, if `failure` was that of its queue
    /// pair; times the fabric posted one of its requests again. Of an op that waited for nothing,
    /// and did not fail, it is 0.
    trouble: u32,
    /// The rail that took it last.
    pub rail: u16,
    /// What it has stepped aside for in its line.
    pub aside: Aside,
    /// It is in the window as a whole, in mode tent.
    pub whole: bool,
    /// The card that it counts on as in flight.
    pub entered: u8,
    /// The engine's turn in which a part of it was laid last, for a peer; its low half, which goes
    /// round: what is laid 2^32 turns later goes where it went before, for no reason.
    pub laid_turn: u32,
    /// Who made it: 0 a user, 1 the engine itself.
    pub origin: u8,
    /// What it is scheduled as: the class that was asked for, or that of somebody who waits for it.
    pub class: Class,
    /// It waited for so long that it is scheduled as if its class were high.
    pub aged: bool,
    /// The first of its posts that were handed back, or [`NIL`]: none is left when
    /// the record is closed.
    pub returned: u32,
    /// The last of them, if there are any.
    pub returned_last: u32,
    /// Who waits for it: a list of the engine's edges, or [`NIL`]; none is left when the record is
    /// closed.
    pub dependents: u32,
    /// What it waits for: edges, and its own DRAIN; 0 when the record is closed.
    pub awaits: u32,
    /// Of an op that has waited: the edges of its SQE, and `TIE_*`.
    pub edges: [u16; 2],
    /// `TIE_*` bits; 0 when the record is closed.
    pub ties: u8,
    /// Its neighbours in the index of ops that others may be folded into. They, and its group, are
    /// [`NIL`] again when the record is closed.
    pub indexed: [u32; 2],
    /// The ops that it ends together with, or [`NIL`].
    pub group: u32,
}

const _: () = assert!(size_of::<Record>() == 256);

/// What a queued op has stepped aside for, so that others may pass it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// Nothing: it waits in order.
    No,
    /// A credit for its notification.
    Credit,
    /// Something of it was handed back: it goes before others.
    Returned,
    /// The one rail that may take it.
    Rail,
}

/// All records of an engine.
#[derive(Debug)]
pub struct Ledger {
    records: Vec<Record>,
    /// Opened next: those closed last, then from `fresh` on, then `worn`.
    free: u32,
    /// The last of `worn`; of all that are free, if there is no `fresh`.
    free_last: u32,
    open: u32,
    /// The next of those that were not opened since all were closed, and how many they are.
    fresh: u32,
    fresh_left: u32,
    /// Where those begin.
    fresh_first: u32,
    /// What was used often since all were closed.
    worn: u32,
}

/// [`Record::ties`]: it follows a LINK.
pub const TIE_LINK: u8 = 1 << 0;
/// [`Record::ties`]: it follows a HARDLINK.
pub const TIE_ORDER: u8 = 1 << 1;
/// [`Record::ties`]: it is a DRAIN that waits for all before it.
pub const TIE_DRAIN: u8 = 1 << 2;
/// [`Record::ties`]: it waits to have its predecessors raised to its class.
pub const TIE_RAISING: u8 = 1 << 3;
/// [`Record::ties`]: it is posted behind what it waits for, as a link of a chain.
pub const TIE_RIDES: u8 = 1 << 4;
/// [`Record::ties`]: it has ridden, and was handed back: it waits for its predecessor, and may have
/// taken effect.
pub const TIE_HELD: u8 = 1 << 6;
/// [`Record::ties`]: it has ridden, and counts as queued since.
pub const TIE_COUNTED: u8 = 1 << 5;

/// A slot goes to the end of the free list when this divides its generation.
const USES_IN_A_ROW: u32 = if cfg!(test) { 4 } else { 1024 };

impl Record {
    /// Goes by another class from now on, where it is in no flow: what it gained by its age in its
    /// old one does not count there.
    pub(crate) fn rise(&mut self, class: Class) {
        self.class = class;
        self.aged = false;
    }

    /// The id that its CQE carries.
    #[inline]
    #[must_use]
    pub fn id(&self) -> RecordId {
        self.id
    }

    /// What is to be kept of it, now that it is over: the words of an `abi::RecordEntry`.
    ///
    /// By shifts, and with nothing looked at that a success does not have: this is on the way of
    /// every op.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, outcome: Outcome, now_ns: u64) -> [u64; 8] {
        let (op, taken_ns) = (&self.op, self.taken_ns);
        let kind = u64::from(op.class as u8) << 48 | u64::from(op.opcode as u8) << 56;
        // Nothing was posted before it was taken: what never was has waited 0 ns.
        let queued_ns = self.posted_ns.saturating_sub(taken_ns);
        let trouble = if self.failure.is_some() { self.trouble_failed() } else { self.trouble };
        // At most 2^31 over all pages.
        let bytes = op.bytes.wrapping_mul(op.pages.max(1));
        let rest = u64::from(trouble | u32::from(self.rail & 0xff)) << 32;
        [
            // There are at most 2^16 rings.
            u64::from(self.ring.0 & 0xffff) << 32 | kind,
            self.id.0,
            op.user_data,
            taken_ns,
            RecordEntry::packed(queued_ns, self.posts.into()),
            RecordEntry::packed(now_ns.wrapping_sub(taken_ns), self.defers),
            outcome.to_word(),
            u64::from(bytes) | rest,
        ]
    }

    /// [`Record::trouble`] of an op that failed.
    #[cold]
    fn trouble_failed(&self) -> u32 {
        match self.failure {
            Some(failure) if !failure.goes_along() => {
                self.trouble & !(0xff << CAUSE) | byte(failure.errno) << CAUSE
            }
            _ => self.trouble,
        }
    }

    /// Notes that it cannot go on, and what it lacks.
    #[cold]
    pub fn lacks(&mut self, wait: u16) {
        self.wait = wait;
        self.defers = self.defers.saturating_add(1);
        self.trouble = self.trouble & !(0xff << LACKED) | u32::from(wait & 0xff) << LACKED;
    }

    /// Notes that its first part is posted. `held` is the class of the op that those before it in
    /// turn have waited for last, if there was one.
    #[inline]
    pub fn starts(&mut self, now_ns: u64, held: Option<Class>) {
        self.posted_ns = now_ns;
        self.waited(now_ns, held);
    }

    /// Notes who went before it, if it has waited and never lacked anything itself.
    #[inline]
    pub fn waited(&mut self, now_ns: u64, held: Option<Class>) {
        if now_ns > self.taken_ns && self.trouble & 0xff << LACKED == 0 {
            let others = match held {
                Some(class) if class != self.class => WAIT_CLASS,
                _ => WAIT_TURN,
            };
            let reason = if self.wait == WAIT_NONE { others } else { self.wait };
            self.trouble |= u32::from(reason & 0xff) << LACKED;
        }
    }

    /// Notes that it has waited for somebody, and may go on now.
    #[inline]
    pub fn released(&mut self, wait: u16) {
        self.trouble = self.trouble & !(0xff << LACKED) | u32::from(wait & 0xff) << LACKED;
    }

    /// `WAIT_*`: what it lacked the last time it could not go on, or who went before it.
    #[must_use]
    pub fn reason(&self) -> u16 {
        (self.trouble >> LACKED & 0xff) as u16
    }

    /// Notes another failure behind the one that its CQE tells. A flush says nothing of the cause.
    #[cold]
    pub fn fails_again(&mut self, failure: Failure) {
        if self.trouble >> CAUSE & 0xff == 0 && !failure.goes_along() {
            self.trouble |= byte(failure.errno) << CAUSE;
        }
    }

    /// Notes the errno of the first cause of its failure, which was another op's.
    #[cold]
    pub fn caused_by(&mut self, errno: u8) {
        self.trouble = self.trouble & !(0xff << CAUSE) | u32::from(errno) << CAUSE;
    }

    /// The errno of the first cause of its failure.
    #[must_use]
    pub fn first_cause(&self, failure: Failure) -> u8 {
        let noted = self.trouble.to_le_bytes()[CAUSE as usize / 8];
        if failure.flags & CQE_DEP_FAILED != 0 && noted != 0 {
            return noted;
        }
        u8::try_from(failure.errno).unwrap_or(u8::MAX)
    }

    /// Notes that the fabric posted a request again, so many times.
    #[inline]
    pub fn repeated(&mut self, times: u8) {
        if times > 0 {
            self.repeats(times);
        }
    }

    #[cold]
    fn repeats(&mut self, times: u8) {
        let retries = (self.trouble >> RETRIES) + u32::from(times);
        self.trouble = self.trouble & !(0xff << RETRIES) | retries.min(0xff) << RETRIES;
    }
}

/// Places in [`Record::trouble`].
const LACKED: u32 = 8;
const CAUSE: u32 = 16;
const RETRIES: u32 = 24;

/// An errno in a byte: Linux has no more.
fn byte(errno: i32) -> u32 {
    u32::from(u8::try_from(errno).unwrap_or(u8::MAX))
}

impl Ledger {
    /// Makes a ledger of `capacity` records, 1 to 2^24.
    #[must_use]
    pub fn new(engine: u8, capacity: u32) -> Self {
        assert!((1..=1 << RecordId::SLOT_BITS).contains(&capacity));
        let blank = |slot: u32| Record {
            links: [[if slot + 1 < capacity { slot + 1 } else { NIL }, NIL], [NIL, NIL]],
            id: RecordId(u64::from(engine) << RecordId::SLOT_BITS | u64::from(slot)),
            state: State::Free,
            session: SessionId(0),
            ring: RingId(0),
            fate: 0,
            number: 0,
            sequence: 0,
            op: Op::NOP,
            in_fabric: 0,
            page: 0,
            block: NIL,
            cursor: 0,
            posted_whole: false,
            laid: false,
            done_bytes: 0,
            failure: None,
            checked: 0,
            taken_ns: 0,
            posted_ns: 0,
            defers: 0,
            wait: 0,
            line: 0,
            posts: 0,
            trouble: 0,
            rail: 0,
            aside: Aside::No,
            origin: 0,
            class: Class::Medium,
            aged: false,
            entered: 0,
            whole: false,
            laid_turn: 0,
            returned: NIL,
            returned_last: NIL,
            dependents: NIL,
            awaits: 0,
            edges: [0; 2],
            ties: 0,
            indexed: [NIL; 2],
            group: NIL,
        };
        let records = (0..capacity).map(blank).collect();
        let fresh_left = capacity;
        let (free, fresh, fresh_first) = (0, 0, 0);
        let (free_last, worn, open) = (NIL, NIL, 0);
        Self { records, free, free_last, open, fresh, fresh_left, fresh_first, worn }
    }

    /// The op of the record that [`Ledger::open`] will open next, to be written in place; `None`
    /// if all are in use.
    #[inline]
    pub fn vacant(&mut self) -> Option<&mut Op> {
        self.records.get_mut(self.free as usize).map(|record| &mut record.op)
    }

    /// Opens a record for the op that was written to [`Ledger::vacant`]; `None` if all are in use.
    /// What [`Record`] has beside the op and the arguments, but for `fate`, `number`, `sequence`,
    /// `checked`, `line`, `rail`, `aside`, `aged`, `laid` and `returned`, begins at zero, its class
    /// is the op's, and nothing is tied to it.
    #[inline]
    pub fn open(
        &mut self,
        session: SessionId,
        ring: RingId,
        now_ns: u64,
    ) -> Option<(u32, &mut Record)> {
        let slot = self.free;
        self.records.get(slot as usize)?;
        self.take_first();
        let record = &mut self.records[slot as usize];
        self.open += 1;
        record.id = later(record.id);
        record.links = [[NIL; 2]; 2];
        record.state = State::Queued;
        record.session = session;
        record.ring = ring;
        record.in_fabric = 0;
        record.page = 0;
        record.block = record.op.list;
        record.cursor = 0;
        record.posted_whole = false;
        record.done_bytes = 0;
        record.failure = None;
        record.taken_ns = now_ns;
        record.posted_ns = 0;
        record.defers = 0;
        record.wait = 0;
        record.posts = 0;
        record.trouble = 0;
        record.origin = 0;
        record.class = record.op.class;
        Some((slot, record))
    }

    /// Closes a record whose final CQE is written; it must be on no list.
    #[inline]
    pub fn close(&mut self, slot: u32) {
        let record = &mut self.records[slot as usize];
        assert!(record.state != State::Free, "closed a record twice");
        assert!(record.in_fabric == 0, "closed a record that the fabric still works on");
        debug_assert!(record.returned == NIL, "closed a record with something handed back");
        debug_assert!(record.dependents == NIL, "closed a record that others wait for");
        debug_assert!(record.awaits == 0 && record.ties == 0, "closed a record that waits");
        debug_assert!(record.links == [[NIL; 2]; 2], "closed a record that is on a list");
        debug_assert!(record.indexed == [NIL; 2] && record.group == NIL, "closed what is folded");
        record.state = State::Free;
        let used_often = record.id.generation().is_multiple_of(USES_IN_A_ROW);
        self.open -= 1;
        if self.open == 0 {
            self.begin_again(slot, used_often);
        } else {
            self.put_back(slot, used_often);
        }
    }

    /// Opens and closes a record in one step, for an op that ends where it begins; returns the id
    /// it had. `None` if all are in use.
    #[inline]
    pub fn pass_through(&mut self) -> Option<RecordId> {
        let slot = self.free;
        let record = self.records.get_mut(slot as usize)?;
        let id = later(record.id);
        record.id = id;
        if id.generation().is_multiple_of(USES_IN_A_ROW) {
            self.take_first();
            self.put_back(slot, true);
        }
        Some(id)
    }

    /// Takes the first free slot, of which there is one, off the free list.
    #[inline]
    fn take_first(&mut self) {
        if self.free != self.fresh {
            self.free = self.records[self.free as usize].links[LANE][0];
            return;
        }
        self.fresh_left -= 1;
        if self.fresh_left == 0 {
            self.fresh = NIL;
            self.free = std::mem::replace(&mut self.worn, NIL);
        } else {
            self.fresh = self.after(self.fresh);
            self.free = self.fresh;
        }
    }

    /// All are free: they are opened in the order of their places. From time to time they begin
    /// with the next one, so that the first is not used for ever.
    #[inline]
    fn begin_again(&mut self, slot: u32, used_often: bool) {
        if used_often {
            self.fresh_first = self.after(slot);
        }
        (self.fresh, self.fresh_left) = (self.fresh_first, self.capacity());
        (self.free, self.worn) = (self.fresh, NIL);
    }

    /// The place behind this one, round about.
    #[inline]
    fn after(&self, slot: u32) -> u32 {
        if slot + 1 == self.capacity() { 0 } else { slot + 1 }
    }

    /// Puts a slot on the free list: in front, or at the end.
    #[inline]
    fn put_back(&mut self, slot: u32, at_end: bool) {
        if at_end && self.fresh != NIL && self.worn == NIL {
            self.records[slot as usize].links[LANE] = [NIL; 2];
            (self.worn, self.free_last) = (slot, slot);
            return;
        }
        if self.free == NIL {
            self.free_last = slot;
        } else if at_end {
            self.records[slot as usize].links[LANE] = [NIL; 2];
            self.records[self.free_last as usize].links[LANE][0] = slot;
            self.free_last = slot;
            return;
        }
        self.records[slot as usize].links[LANE] = [self.free, NIL];
        self.free = slot;
    }

    /// The id that CQEs of this record carry.
    #[inline]
    pub fn id(&self, slot: u32) -> RecordId {
        self.records[slot as usize].id
    }

    /// Finds the open record with this id.
    pub fn find(&self, id: RecordId) -> Option<u32> {
        let record = self.records.get(id.slot() as usize)?;
        (record.state != State::Free && self.id(id.slot()) == id).then_some(id.slot())
    }

    /// Records in use.
    pub fn open_count(&self) -> u32 {
        self.open
    }

    /// Records in all.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.records.len()).unwrap_or(u32::MAX)
    }
}

/// The id of a slot's next use. Generation 0 would make id 0 possible; after 2^32 uses of one slot
/// it is skipped.
#[inline]
fn later(id: RecordId) -> RecordId {
    const ONE: u64 = 1 << 32;
    let next = id.0.wrapping_add(ONE);
    RecordId(if next < ONE { next + ONE } else { next })
}

impl std::ops::Index<u32> for Ledger {
    type Output = Record;
    #[inline]
    fn index(&self, slot: u32) -> &Record {
        &self.records[slot as usize]
    }
}

impl std::ops::IndexMut<u32> for Ledger {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Record {
        &mut self.records[slot as usize]
    }
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::seeds::property;

    const ENGINE: u8 = 7;

    fn open(ledger: &mut Ledger, user_data: u64) -> Option<u32> {
        *ledger.vacant()? = Op { user_data, ..Op::NOP };
        ledger.open(SessionId(1), RingId(2), user_data).map(|(slot, _)| slot)
    }

    proptest! {
        #![proptest_config(property(300))]

        #[test]
        fn ledger_is_a_map_whose_keys_never_come_again(
            capacity in 1..20u32,
            steps in proptest::collection::vec((0..100u8, any::<u64>()), 1..300),
        ) {
            let mut ledger = Ledger::new(ENGINE, capacity);
            let mut model: BTreeMap<RecordId, u64> = BTreeMap::new();
            let mut gone: BTreeSet<RecordId> = BTreeSet::new();
            for (step, value) in steps {
                if step < 15 {
                    // An op that ends where it begins: its id is as good as any, and it is gone.
                    let id = ledger.pass_through();
                    prop_assert_eq!(id.is_none(), model.len() == capacity as usize);
                    if let Some(id) = id {
                        prop_assert!(gone.insert(id) && !model.contains_key(&id));
                    }
                } else if step < 60 {
                    let full = model.len() == capacity as usize;
                    let slot = open(&mut ledger, value);
                    prop_assert_eq!(slot.is_none(), full);
                    if let Some(slot) = slot {
                        let id = ledger.id(slot);
                        prop_assert!(id.0 != 0 && id.slot() == slot);
                        prop_assert_eq!(id.0 >> RecordId::SLOT_BITS & 0xff, u64::from(ENGINE));
                        prop_assert!(!gone.contains(&id), "an id came again");
                        prop_assert!(model.insert(id, value).is_none(), "a slot opened twice");
                        prop_assert_eq!(ledger[slot].state, State::Queued);
                        prop_assert_eq!(ledger[slot].taken_ns, value);
                    }
                } else if let Some(&id) = model.keys().nth((value % 20) as usize) {
                    ledger.close(id.slot());
                    model.remove(&id);
                    gone.insert(id);
                }
                prop_assert_eq!(ledger.open_count() as usize, model.len());
                for (&id, &value) in &model {
                    prop_assert_eq!(ledger.find(id), Some(id.slot()));
                    prop_assert_eq!(ledger[id.slot()].op.user_data, value);
                }
                for &id in &gone {
                    prop_assert_eq!(ledger.find(id), None);
                }
                prop_assert_eq!(ledger.find(RecordId(value)).is_some(),
                    model.contains_key(&RecordId(value)));
            }
        }
    }

    /// Whatever the order in which ops end, the next burst finds its records side by side.
    #[test]
    fn once_all_are_closed_records_are_opened_in_the_order_of_their_places() {
        const CAPACITY: u32 = 64;
        let mut ledger = Ledger::new(0, CAPACITY);
        for step in [1, 7, 13, 63, 5, 5] {
            let mut open: Vec<u32> = (0..CAPACITY - 3)
                .map(|_| {
                    *ledger.vacant().unwrap() = Op::NOP;
                    ledger.open(SessionId(0), RingId(0), 0).unwrap().0
                })
                .collect();
            let in_order = open.windows(2).all(|pair| pair[1] == (pair[0] + 1) % CAPACITY);
            assert!(in_order, "{open:?}");
            let mut at = 0;
            while !open.is_empty() {
                at = (at + step) % open.len();
                ledger.close(open.swap_remove(at));
            }
            assert_eq!(ledger.open_count(), 0);
        }
    }

    /// One at a time, every slot has its turn.
    #[test]
    fn no_slot_is_used_for_ever() {
        const CAPACITY: u32 = 8;
        let mut ledger = Ledger::new(0, CAPACITY);
        let mut uses = [0; CAPACITY as usize];
        for _ in 0..CAPACITY * USES_IN_A_ROW {
            *ledger.vacant().unwrap() = Op::NOP;
            let (slot, _) = ledger.open(SessionId(0), RingId(0), 0).unwrap();
            uses[slot as usize] += 1;
            ledger.close(slot);
        }
        assert!(uses.iter().all(|count| *count > 0), "{uses:?}");
    }

    #[test]
    fn f28_a_generation_that_goes_round_skips_zero() {
        let mut ledger = Ledger::new(ENGINE, 1);
        ledger.records[0].id = RecordId::new(u32::MAX - 1, ENGINE, 0);
        let mut ids = Vec::new();
        for _ in 0..3 {
            let slot = open(&mut ledger, 0).unwrap();
            ids.push(ledger.id(slot).generation());
            ledger.close(slot);
        }
        assert_eq!(ids, [u32::MAX, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "closed a record twice")]
    fn a_record_is_closed_once() {
        let mut ledger = Ledger::new(ENGINE, 2);
        let slot = open(&mut ledger, 0).unwrap();
        ledger.close(slot);
        ledger.close(slot);
    }

    #[test]
    #[should_panic(expected = "that the fabric still works on")]
    fn a_record_in_the_fabric_is_not_closed() {
        let mut ledger = Ledger::new(ENGINE, 2);
        let slot = open(&mut ledger, 0).unwrap();
        ledger[slot].in_fabric = 1;
        ledger.close(slot);
    }
}
