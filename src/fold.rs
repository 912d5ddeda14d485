//! Folding: which queued op another one may end together with, and who ends with whom.
//!
//! Two relations. The **index** finds, among the ops that others may be folded into, one of the
//! same effect: a hash table whose buckets are lists through the records, newest first. An op is
//! in it from its intake to its end; whether it may still be folded into is its record's state to
//! say, and since one thread takes ops in and posts them, nothing lies between the look and the
//! fold. A **group** is an op that is queued or posted, its survivor, and those folded into it, on
//! a list in the order in which they were. When the survivor ends, its group parts: each of the
//! others ends as it did, a bounded number a turn.
//!
//! COALESCE folds the newcomer into what is queued; its key is the whole effect. SUPERSEDE has
//! the newcomer take the place of what is queued; its key is where it writes, and a tag.
//!
//! **Invariants**: a record is in the index at most once, and never once it is folded; of the ops
//! in a group exactly one is its survivor, until that is over. Everything is allocated in
//! [`Folds::new`], and a look costs the same however much is queued.
//! **Deliberately absent**: queues, rings, credits. **Tests**: against a list of ops, here; of
//! what clients see, in `engine::tests::fold`.

use std::hint::black_box;

use crate::abi::{
    Counter, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK, SQE_LINK, SQE_NOTIFY, SQE_SUPERSEDE, Sqe,
    WAIT_SURVIVOR,
};
use crate::ids::{RecordId, RegionId, RingId};
use crate::ledger::{Failure, LANE, Ledger, List, NIL, Op, Outcome, Record, State};

/// Ops that are folded into one by COALESCE, at most: their entries in the fate table are marked
/// when it is posted, all in one go.
pub const FOLDED_MAX: u32 = 64;

/// Flags of ops that may be folded.
pub const FOLDS: u16 = SQE_COALESCE | SQE_SUPERSEDE;

/// Flags that tie an op to others of its ring.
const TIES: u16 = SQE_LINK | SQE_HARDLINK | SQE_DRAIN;

/// Ops of a bucket that one look goes through. What is at one place and differs is in one bucket,
/// and whoever queues so much of it finds less.
const STEPS_MAX: u32 = 16;

/// As `STEPS_MAX`, for SUPERSEDE: nothing but its like shares a bucket, but for chance.
const STEPS_MAX_SUPERSEDE: u32 = 64;

/// In `indexed[1]`: the record is the first of its bucket, whose number the other bits are.
const FIRST: u32 = 1 << 31;

/// What became of an attempt to fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// Folded into this op.
    Into(u32),
    /// There is nothing like it that is queued and has room for one more.
    None,
    /// What is queued for the same place differs in something.
    Differs,
    /// Its like has been posted.
    Started,
    /// It has edges, or is linked.
    Tied,
    /// Nothing is folded.
    Off,
}

impl Tried {
    /// The counter of this outcome.
    #[must_use]
    pub fn counter(self) -> Counter {
        match self {
            Self::Into(_) => Counter::FoldHit,
            Self::None => Counter::FoldNone,
            Self::Differs => Counter::FoldKey,
            Self::Started => Counter::FoldStarted,
            Self::Tied => Counter::FoldEdges,
            Self::Off => Counter::FoldDisabled,
        }
    }
}

/// How a survivor ended: so do those folded into it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// As its CQE tells it.
    pub outcome: Outcome,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// Its id.
    pub record: RecordId,
    /// When its first part was posted, ns; 0 if none was.
    pub posted_ns: u64,
    /// The rail that it went by last.
    pub rail: u16,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    /// The op that is queued or posted; [`NIL`] once it is over.
    survivor: u32,
    folded: List<LANE>,
    count: u32,
    /// The fate entries of the folded ops say that they are posted.
    posted: bool,
    /// How the survivor ended.
    end: Option<End>,
    /// The next group that parts, or the next that is free.
    next: u32,
}

/// The index, and all groups.
#[derive(Debug)]
pub struct Folds {
    on: bool,
    key: u64,
    /// By bucket: the op that came last.
    buckets: Box<[u32]>,
    groups: Vec<Group>,
    free: u32,
    /// Groups that part, in the order in which their survivors ended.
    parting: [u32; 2],
}

impl Folds {
    /// Makes an index for a ledger of so many records; with `on` false nothing is folded. Where
    /// ops lie in it depends on `key`: who does not know it cannot have them all in one bucket.
    #[must_use]
    pub fn new(records: u32, on: bool, key: u64) -> Self {
        let buckets = if on { 2 * records.next_power_of_two() } else { 1 };
        Self {
            on,
            key,
            buckets: vec![NIL; buckets as usize].into(),
            groups: Vec::with_capacity(if on { records as usize } else { 0 }),
            free: NIL,
            parting: [NIL; 2],
        }
    }

    /// Folds an op with COALESCE, that was just taken and is queued nowhere, into one of the same
    /// effect; or has others find it. A tied one does neither.
    pub fn take_in(&mut self, ledger: &mut Ledger, slot: u32, tied: bool) -> Tried {
        let bucket = self.bucket_of(&ledger[slot]);
        self.take_in_at(ledger, slot, tied, bucket)
    }

    /// [`Folds::take_in`] of an op whose bucket is known, by [`Folds::bucket_of_sqe`].
    #[inline]
    pub fn take_in_at(&mut self, ledger: &mut Ledger, slot: u32, tied: bool, bucket: u32) -> Tried {
        if !self.on || tied || ledger[slot].op.flags & TIES != 0 {
            return self.tied();
        }
        debug_assert_eq!(bucket, self.bucket_of(&ledger[slot]), "another one's bucket");
        let tried = self.look(ledger, slot, bucket);
        match tried {
            Tried::Into(survivor) => self.fold(ledger, slot, survivor),
            _ => self.insert(ledger, slot, bucket),
        }
        tried
    }

    /// Where the op of an SQE with COALESCE will be looked for, if the SQE is good.
    #[inline]
    #[must_use]
    pub fn bucket_of_sqe(&self, ring: RingId, sqe: &Sqe) -> u32 {
        let import = RegionId(sqe.remote_region).index();
        self.bucket((ring, import), sqe.remote_offset, [sqe.bytes, kind(sqe.flags, sqe.opcode)], 0)
    }

    /// Looks at buckets, and at the ops that they begin with, without a use for what is there: so
    /// all of it is on its way to the cache at once, before each is needed. [`NIL`] is no bucket.
    #[inline]
    pub fn fetch<const N: usize>(&self, ledger: &Ledger, buckets: &[u32; N]) {
        let first = |&bucket: &u32| self.buckets.get(bucket as usize).copied().unwrap_or(NIL);
        let firsts = buckets.each_ref().map(first);
        for &slot in black_box(&firsts) {
            if slot != NIL {
                let Record { op, state, ring, group, .. } = &ledger[slot];
                black_box((op.remote_offset, op.flags, *state, *ring, *group));
            }
        }
    }

    /// What becomes of a COALESCE op that is tied to others of its ring.
    #[must_use]
    pub fn tied(&self) -> Tried {
        if self.on { Tried::Tied } else { Tried::Off }
    }

    /// Has others find an op with SUPERSEDE, that was just taken; returns the one that it replaces,
    /// which is queued. A tied one replaces nothing.
    pub fn take_over(&mut self, ledger: &mut Ledger, slot: u32, tied: bool) -> Option<u32> {
        if !self.on || tied || ledger[slot].op.flags & TIES != 0 {
            return None;
        }
        let bucket = self.bucket_of(&ledger[slot]);
        let older = self.older(ledger, slot, bucket);
        self.insert(ledger, slot, bucket);
        older
    }

    /// Folds an op, whose place in its queue another one has taken, into that one; with it go those
    /// that were folded into it.
    pub fn replace(&mut self, ledger: &mut Ledger, older: u32, slot: u32) {
        self.forget(ledger, older);
        let group = self.group_of(ledger, older);
        self.groups[group as usize].survivor = slot;
        ledger[slot].group = group;
        self.join(ledger, older, group);
    }

    /// What a COALESCE op may be folded into.
    fn look(&self, ledger: &Ledger, slot: u32, bucket: u32) -> Tried {
        let record = &ledger[slot];
        let mut at = self.buckets[bucket as usize];
        let mut found = Tried::None;
        for _ in 0..STEPS_MAX {
            if at == NIL {
                break;
            }
            let other = &ledger[at];
            if same_place(record, other) {
                match (same_effect(&record.op, &other.op), other.state) {
                    (true, State::Queued) if self.has_room(other.group) => return Tried::Into(at),
                    (true, State::Posted) => found = Tried::Started,
                    (false, State::Queued) if found == Tried::None => found = Tried::Differs,
                    _ => {}
                }
            }
            at = other.indexed[0];
        }
        found
    }

    /// The queued op that a SUPERSEDE op replaces.
    fn older(&self, ledger: &Ledger, slot: u32, bucket: u32) -> Option<u32> {
        let record = &ledger[slot];
        let mut at = self.buckets[bucket as usize];
        for _ in 0..STEPS_MAX_SUPERSEDE {
            if at == NIL {
                break;
            }
            let other = &ledger[at];
            let same = same_place(record, other) && same_slot(&record.op, &other.op);
            if same && other.state == State::Queued {
                return Some(at);
            }
            at = other.indexed[0];
        }
        None
    }

    fn has_room(&self, group: u32) -> bool {
        group == NIL || self.groups[group as usize].count < FOLDED_MAX
    }

    fn fold(&mut self, ledger: &mut Ledger, slot: u32, survivor: u32) {
        let group = self.group_of(ledger, survivor);
        self.join(ledger, slot, group);
    }

    /// The group whose survivor an op is, which is made if there is none.
    fn group_of(&mut self, ledger: &mut Ledger, survivor: u32) -> u32 {
        let group = ledger[survivor].group;
        if group != NIL {
            return group;
        }
        let fresh =
            Group { survivor, folded: List::EMPTY, count: 0, posted: false, end: None, next: NIL };
        let place = self.free;
        let place = if let Some(group) = self.groups.get_mut(place as usize) {
            self.free = group.next;
            *group = fresh;
            place
        } else {
            // Each has an op of its own on its list: there is room for as many as records.
            self.groups.push(fresh);
            u32::try_from(self.groups.len() - 1).unwrap_or(NIL)
        };
        ledger[survivor].group = place;
        place
    }

    fn join(&mut self, ledger: &mut Ledger, slot: u32, group: u32) {
        let record = &mut ledger[slot];
        record.state = State::Folded;
        record.group = group;
        record.wait = WAIT_SURVIVOR;
        (record.line, record.rail) = (0, 0);
        let group = &mut self.groups[group as usize];
        group.folded.push_back(ledger, slot);
        group.count += 1;
    }

    /// Takes a folded op out of its group, which is no more once nobody else is in it.
    pub fn leave(&mut self, ledger: &mut Ledger, slot: u32) {
        let place = std::mem::replace(&mut ledger[slot].group, NIL);
        let group = &mut self.groups[place as usize];
        group.folded.remove(ledger, slot);
        group.count -= 1;
        if group.count == 0 && group.end.is_none() {
            ledger[group.survivor].group = NIL;
            self.dissolve(place);
        }
    }

    fn dissolve(&mut self, place: u32) {
        self.groups[place as usize].next = std::mem::replace(&mut self.free, place);
    }

    /// The survivor of a group, which is queued, is to end alone: another op, which is returned,
    /// is from now on its survivor, and queued. It is the one that came last: of SUPERSEDE that is
    /// the last value that was not taken back.
    pub fn hand_on(&mut self, ledger: &mut Ledger, survivor: u32) -> Option<u32> {
        let group = ledger[survivor].group;
        let heir = self.groups.get(group as usize)?.folded.tail();
        self.leave(ledger, heir);
        self.forget(ledger, survivor);
        if ledger[survivor].group != NIL {
            ledger[survivor].group = NIL;
            ledger[heir].group = group;
            self.groups[group as usize].survivor = heir;
        }
        ledger[heir].state = State::Queued;
        let bucket = self.bucket_of(&ledger[heir]);
        self.insert(ledger, heir, bucket);
        Some(heir)
    }

    /// An op that others may be folded into is over; so will be those that were, as it is.
    pub fn ends(&mut self, ledger: &mut Ledger, survivor: u32, end: End) {
        self.forget(ledger, survivor);
        let place = std::mem::replace(&mut ledger[survivor].group, NIL);
        let Some(group) = self.groups.get_mut(place as usize) else { return };
        (group.survivor, group.end, group.next) = (NIL, Some(end), NIL);
        let last = std::mem::replace(&mut self.parting[1], place);
        match self.groups.get_mut(last as usize) {
            Some(last) => last.next = place,
            None => self.parting[0] = place,
        }
    }

    /// True if ops wait for their end though their survivor is over.
    #[inline]
    #[must_use]
    pub fn parts(&self) -> bool {
        self.parting[0] != NIL
    }

    /// The next op whose survivor is over: it has left its group, and is to end in this way.
    pub fn part(&mut self, ledger: &mut Ledger) -> Option<(u32, End)> {
        let place = self.parting[0];
        let group = self.groups.get(place as usize)?;
        let (slot, end, next) = (group.folded.head(), group.end?, group.next);
        self.leave(ledger, slot);
        self.pass_parted();
        debug_assert!(next == NIL || self.parting[0] != NIL);
        Some((slot, end))
    }

    /// Groups of which nothing is left do not part any more.
    fn pass_parted(&mut self) {
        while let Some(group) = self.groups.get(self.parting[0] as usize)
            && group.count == 0
        {
            let place = std::mem::replace(&mut self.parting[0], group.next);
            self.dissolve(place);
        }
        if self.parting[0] == NIL {
            self.parting[1] = NIL;
        }
    }

    /// The survivor of a folded op; `None` once it is over.
    #[must_use]
    pub fn survivor(&self, ledger: &Ledger, slot: u32) -> Option<u32> {
        let group = self.groups.get(ledger[slot].group as usize)?;
        (group.survivor != NIL).then_some(group.survivor)
    }

    /// True if a folded op still may be taken back: nothing of its survivor is posted.
    #[must_use]
    pub fn waits(&self, ledger: &Ledger, slot: u32) -> bool {
        let survivor = self.survivor(ledger, slot);
        survivor.is_some_and(|survivor| ledger[survivor].state == State::Queued)
    }

    /// The first of the ops folded into one; the next follow on [`LANE`].
    #[must_use]
    pub fn first(&self, ledger: &Ledger, survivor: u32) -> u32 {
        let group = self.groups.get(ledger[survivor].group as usize);
        group.map_or(NIL, |group| group.folded.head())
    }

    /// Notes what the fate entries of those folded into an op say.
    pub fn mark(&mut self, ledger: &Ledger, survivor: u32, posted: bool) {
        if let Some(group) = self.groups.get_mut(ledger[survivor].group as usize) {
            group.posted = posted;
        }
    }

    /// True if the fate entry of a folded op says that it is posted.
    #[must_use]
    pub fn is_posted(&self, ledger: &Ledger, slot: u32) -> bool {
        self.groups.get(ledger[slot].group as usize).is_some_and(|group| group.posted)
    }

    fn insert(&mut self, ledger: &mut Ledger, slot: u32, bucket: u32) {
        let next = std::mem::replace(&mut self.buckets[bucket as usize], slot);
        ledger[slot].indexed = [next, FIRST | bucket];
        if next != NIL {
            ledger[next].indexed[1] = slot;
        }
    }

    /// Nobody finds an op any more.
    #[inline]
    pub fn forget(&mut self, ledger: &mut Ledger, slot: u32) {
        let [next, previous] = std::mem::replace(&mut ledger[slot].indexed, [NIL; 2]);
        if previous == NIL {
            return;
        }
        if next != NIL {
            ledger[next].indexed[1] = previous;
        }
        if previous & FIRST != 0 {
            self.buckets[(previous & !FIRST) as usize] = next;
        } else {
            ledger[previous].indexed[0] = next;
        }
    }

    /// Where an op is looked for: by its place, and of SUPERSEDE by its tag as well.
    fn bucket_of(&self, record: &Record) -> u32 {
        let op = &record.op;
        let tag = if op.flags & SQE_SUPERSEDE == 0 { 0 } else { op.arg[1] };
        let what = [op.bytes, kind(op.flags, op.opcode as u8)];
        self.bucket((record.ring, op.import), op.remote_offset, what, tag)
    }

    #[inline(always)]
    fn bucket(
        &self,
        (ring, import): (RingId, u32),
        offset: u64,
        [bytes, kind]: [u32; 2],
        tag: u64,
    ) -> u32 {
        let from = u64::from(ring.0) << 32 | u64::from(import);
        let what = u64::from(bytes) << 32 | u64::from(kind);
        let near = mixed(from ^ self.key, what ^ self.key.rotate_left(32));
        let far = mixed(offset ^ near, tag ^ self.key.rotate_left(17));
        let last = self.buckets.len() as u64 - 1;
        u32::try_from((far ^ near.rotate_left(29)) & last).unwrap_or(0)
    }
}

/// What an op is, as far as it matters to which one it may be folded into.
#[inline]
fn kind(flags: u16, opcode: u8) -> u32 {
    u32::from(flags & FOLDS) << 8 | u32::from(opcode)
}

/// Both halves of a product, together: every bit of it depends on most of either factor.
#[inline]
fn mixed(a: u64, b: u64) -> u64 {
    let (a, b) = (a ^ 0xbf58_476d_1ce4_e5b9, b ^ 0x9e37_79b9_7f4a_7c15);
    let high = (u128::from(a) * u128::from(b)) >> 64;
    a.wrapping_mul(b) ^ u64::try_from(high).unwrap_or(0)
}

/// True if two ops of one kind and ring have one range of one import at their far end.
#[inline]
fn same_place(a: &Record, b: &Record) -> bool {
    a.op.remote_offset == b.op.remote_offset
        && a.ring == b.ring
        && a.op.import == b.op.import
        && a.op.bytes == b.op.bytes
        && a.op.opcode == b.op.opcode
        && (a.op.flags ^ b.op.flags) & FOLDS == 0
}

/// True if whatever one of two ops at one place does, the other does as well.
#[inline]
fn same_effect(a: &Op, b: &Op) -> bool {
    a.local_offset == b.local_offset
        && a.local == b.local
        && a.target == b.target
        && a.epoch == b.epoch
        && a.immediate == b.immediate
        && (a.flags ^ b.flags) & SQE_NOTIFY == 0
}

/// True if the later of two ops at one place replaces the earlier.
#[inline]
fn same_slot(a: &Op, b: &Op) -> bool {
    a.arg[1] == b.arg[1]
        && a.target == b.target
        && a.epoch == b.epoch
        && (a.flags ^ b.flags) & SQE_NOTIFY == 0
}

#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
impl Folds {
    /// What must hold whenever nothing is under way: of all records, those that are open and not
    /// are told by their state.
    ///
    /// # Panics
    /// If lists, groups and records do not tell one story.
    pub(crate) fn audit(&self, ledger: &Ledger) {
        let slots = || (0..ledger.capacity()).filter(|&slot| ledger[slot].state != State::Free);
        let mut listed = vec![false; ledger.capacity() as usize];
        for (bucket, &head) in (0..).zip(&self.buckets) {
            let (mut at, mut before) = (head, FIRST | bucket);
            while at != NIL {
                let record = &ledger[at];
                assert!(matches!(record.state, State::Queued | State::Posted), "found: {record:?}");
                assert_eq!(record.indexed[1], before, "the index goes one way only");
                assert_eq!(self.bucket_of(record), bucket, "in another's bucket");
                assert!(!std::mem::replace(&mut listed[at as usize], true), "found twice");
                (before, at) = (at, record.indexed[0]);
            }
        }
        for slot in slots() {
            let found = ledger[slot].indexed != [NIL; 2];
            assert_eq!(found, listed[slot as usize], "in the index: {:?}", ledger[slot]);
        }
        let mut folded = vec![false; ledger.capacity() as usize];
        let mut groups = vec![false; self.groups.len()];
        for slot in slots().filter(|&slot| ledger[slot].group != NIL) {
            let (record, place) = (&ledger[slot], ledger[slot].group as usize);
            let group = &self.groups[place];
            if !std::mem::replace(&mut groups[place], true) {
                let mut count = 0;
                let mut at = group.folded.head();
                while at != NIL {
                    assert!(!std::mem::replace(&mut folded[at as usize], true), "folded twice");
                    assert_eq!(ledger[at].group as usize, place, "in another's group");
                    count += 1;
                    at = List::<LANE>::next(ledger, at);
                }
                assert_eq!(count, group.count, "ops of a group");
                let over = group.survivor == NIL;
                assert_eq!(over, group.end.is_some(), "a group without a survivor");
            }
            let survives = group.survivor == slot;
            assert_ne!(survives, record.state == State::Folded, "a survivor: {record:?}");
        }
        for slot in slots() {
            let state = ledger[slot].state == State::Folded;
            assert_eq!(state, folded[slot as usize], "on a group's list: {:?}", ledger[slot]);
        }
        let live = groups.iter().filter(|live| **live).count();
        let free = std::iter::successors(self.groups.get(self.free as usize), |group| {
            self.groups.get(group.next as usize)
        });
        assert_eq!(live + free.count(), self.groups.len(), "groups");
    }
}
