//! The reference model of the random streams: regions as byte arrays, and for every SQE what may
//! become of it. Ranges of ops under way are kept apart, so that the result of each is one value
//! whatever the order; one word a region is left to contended adds, whose sum is compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::garbage::MUTATIONS;
use super::script::BROKEN;
use super::world::pattern;
use crate::abi::{
    CANCEL_BY_NUMBER, CANCEL_BY_RECORD, CANCEL_BY_USER_DATA, CQE_MAYBE_DONE, CQE_MORE, CQE_NOTIFY,
    CQE_RETRYABLE, Cqe, Detail, FABRIC_LOCAL, Opcode, Page, SQE_HARDLINK, SQE_LINK, SQE_NOTIFY,
    SQE_REVOKE, SQE_SKIP_SUCCESS, Sqe, errno,
};
use crate::ids::RegionId;
use crate::seeds::Random;
use crate::shm::Mapping;

/// Bytes of every region of the model.
pub(super) const REGION_BYTES: u64 = 16 << 10;
/// Ranges are kept apart in units of this many bytes.
const CELL_BYTES: u64 = 32;
/// The last cells: a word for contended adds.
const SHARED_WORD: u64 = REGION_BYTES - CELL_BYTES;

/// One session's region, and everyone's import of it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: RegionId,
    pub(super) imports: Vec<RegionId>,
    /// The region as it is.
    real: Arc<Mapping>,
    /// The region as it must be.
    bytes: Vec<u8>,
    busy: Vec<bool>,
    /// Its export was revoked and is not yet offered again.
    pub(super) revoked: bool,
    /// Its owner left.
    pub(super) gone: bool,
    /// Successful notifications, and those that were heard of.
    pub(super) told: u64,
    pub(super) heard: u64,
    /// What contended adds have made of the shared word; `None` once one of them had an unknown
    /// outcome.
    shared: Option<u64>,
}

/// A range of the model: place, offset, bytes.
type Range = (usize, u64, u64);

/// What an op does when it succeeds.
#[derive(Clone, Debug)]
enum Effect {
    Nothing,
    Copy(Vec<(Range, Range)>),
    Add {
        word: Range,
        old: Range,
        by: u64,
    },
    Swap {
        word: Range,
        old: Range,
        expected: u64,
        new: u64,
    },
    /// Adds to a word that others add to as well.
    AddShared {
        place: usize,
        old: Range,
        by: u64,
    },
}

/// An SQE without its final CQE.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) sqe: Sqe,
    effect: Effect,
    ranges: Vec<Range>,
    target: Option<usize>,
    pub(super) refused: Option<(i32, Detail)>,
    /// A CANCEL was answered EALREADY.
    posted: bool,
}

/// What one ring's client knows.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) session: usize,
    cq_entries: u32,
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Record ids seen in CQEs.
    pub(super) records: Vec<u64>,
    /// Ops that were taken back (number and record), until the one who asked for it is answered.
    pub(super) taken_back: BTreeMap<u64, u64>,
    /// Its ring is being wound up.
    pub(super) winding: bool,
}

/// The whole model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) places: Vec<Place>,
    pub(super) sides: Vec<Side>,
    /// Completions may be errors of the fabric.
    pub(super) errors: bool,
    pub(super) finals: u64,
    pub(super) successes: u64,
    pub(super) tally: BTreeMap<(i32, u16), u64>,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            sides: Vec::new(),
            errors: false,
            finals: 0,
            successes: 0,
            tally: BTreeMap::new(),
        }
    }

    pub(super) fn add_place(&mut self, id: RegionId, real: Arc<Mapping>) {
        let bytes = (0..REGION_BYTES).map(|offset| pattern(id, offset)).collect();
        let cells = usize::try_from(REGION_BYTES / CELL_BYTES).unwrap();
        let mut place = Place {
            id,
            imports: Vec::new(),
            real,
            bytes,
            busy: vec![false; cells],
            revoked: false,
            gone: false,
            told: 0,
            heard: 0,
            shared: None,
        };
        place.busy[cells - 1] = true;
        place.shared = Some(place.word(SHARED_WORD));
        self.places.push(place);
    }

    pub(super) fn add_side(&mut self, session: usize, cq_entries: u32) {
        self.sides.push(Side {
            session,
            cq_entries,
            pending: BTreeMap::new(),
            records: Vec::new(),
            taken_back: BTreeMap::new(),
            winding: false,
        });
    }

    /// Draws a free range and marks it busy.
    fn draw(&mut self, random: &mut Random, place: usize, bytes: u64) -> Option<Range> {
        let cells = usize::try_from(bytes.div_ceil(CELL_BYTES).max(1)).unwrap();
        let state = &mut self.places[place];
        let first = random.index(state.busy.len() - cells);
        if state.busy[first..first + cells].contains(&true) {
            return None;
        }
        state.busy[first..first + cells].fill(true);
        Some((place, first as u64 * CELL_BYTES, bytes))
    }

    fn free(&mut self, ranges: &[Range]) {
        for &(place, offset, bytes) in ranges {
            let first = usize::try_from(offset / CELL_BYTES).unwrap();
            let cells = usize::try_from(bytes.div_ceil(CELL_BYTES).max(1)).unwrap();
            self.places[place].busy[first..first + cells].fill(false);
        }
    }

    /// Makes an SQE for a ring, with the model's expectation; `None` if the ranges drawn are busy.
    /// `memory` stores a page list.
    pub(super) fn make(
        &mut self,
        random: &mut Random,
        side: usize,
        number: u64,
        store: &mut dyn FnMut(RegionId, u64, &[Page]),
    ) -> Option<Pending> {
        let kind = random.below(100);
        let mut pending = match kind {
            0..55 => self.transfer(random, side)?,
            55..65 => self.list(random, side, store)?,
            65..77 => self.atomic(random, side)?,
            77..80 => plain(Sqe::default()),
            80..88 => self.cancel(random, side, number),
            88..94 => self.flush(random, side),
            _ => self.arm(random, side),
        };
        let opcode = Opcode::from_byte(pending.sqe.opcode).unwrap();
        if opcode != Opcode::Arm && random.chance(15) {
            pending.sqe.flags |= SQE_SKIP_SUCCESS;
        }
        pending.sqe.class = u8::try_from(random.below(4)).unwrap();
        if random.chance(8) && !self.anything_revoked() {
            let mutation = &MUTATIONS[random.index(MUTATIONS.len())];
            let mut sqe = pending.sqe;
            // An immediate is for nobody only without NOTIFY; revoked imports are judged first.
            sqe.flags &= !(SQE_NOTIFY | SQE_REVOKE);
            sqe.immediate = 0;
            let answer = mutation.apply(opcode, &mut sqe);
            // Ops here are tied to nobody; the next one would be tied to what is refused.
            let tied = sqe.flags & (SQE_LINK | SQE_HARDLINK) != 0;
            if let Some(answer) = answer.filter(|_| !tied) {
                self.free(&pending.ranges);
                let target = pending.target;
                pending = Pending { refused: Some(answer), target, ..plain(sqe) };
            }
        }
        pending.sqe.user_data = (side as u64) << 32 | number;
        Some(pending)
    }

    fn anything_revoked(&self) -> bool {
        self.places.iter().any(|place| place.revoked || place.gone)
    }

    /// A live place to aim at.
    fn aim(&self, random: &mut Random) -> usize {
        random.index(self.places.len())
    }

    fn base(&self, random: &mut Random, side: usize, opcode: Opcode, target: usize) -> Sqe {
        let session = self.sides[side].session;
        let mut sqe = Sqe {
            opcode: opcode as u8,
            local_region: self.places[session].id.0,
            remote_region: self.places[target].imports[session].0,
            ..Sqe::default()
        };
        if random.chance(15) {
            sqe.flags |= SQE_NOTIFY;
            sqe.immediate = random.below32(1000);
        }
        sqe
    }

    fn transfer(&mut self, random: &mut Random, side: usize) -> Option<Pending> {
        let target = self.aim(random);
        let opcode = random.pick(&[Opcode::Write, Opcode::Read]);
        let bytes = match random.below(10) {
            0 => 0,
            1..7 => random.below(200),
            _ => random.below(1800),
        };
        let session = self.sides[side].session;
        let near = self.draw(random, session, bytes)?;
        let Some(far) = self.draw(random, target, bytes) else {
            self.free(&[near]);
            return None;
        };
        let mut sqe = self.base(random, side, opcode, target);
        sqe.local_offset = near.1;
        sqe.remote_offset = far.1;
        sqe.bytes = u32::try_from(bytes).unwrap();
        if random.chance(20) {
            sqe.arg[0] = random.below(12) + 1;
        }
        let (from, to) = if opcode == Opcode::Write { (near, far) } else { (far, near) };
        let effect = Effect::Copy(vec![(from, to)]);
        Some(Pending { effect, ranges: vec![near, far], target: Some(target), ..plain(sqe) })
    }

    fn list(
        &mut self,
        random: &mut Random,
        side: usize,
        store: &mut dyn FnMut(RegionId, u64, &[Page]),
    ) -> Option<Pending> {
        let target = self.aim(random);
        let opcode = random.pick(&[Opcode::Writev, Opcode::Readv]);
        let session = self.sides[side].session;
        let count = random.below(100) + 1;
        let bytes = random.below(if count > 20 { 33 } else { 300 });
        let list = self.draw(random, session, 16 * count)?;
        let mut ranges = vec![list];
        let (mut pairs, mut pages) = (Vec::new(), Vec::new());
        let base = random.below(4) * CELL_BYTES;
        for _ in 0..count {
            let Some(near) = self.draw(random, session, bytes) else { continue };
            ranges.push(near);
            let Some(far) = self.draw(random, target, bytes) else { continue };
            ranges.push(far);
            if far.1 < base {
                continue;
            }
            pages.push(Page { local_offset: near.1, remote_offset: far.1 - base });
            pairs.push(if opcode == Opcode::Writev { (near, far) } else { (far, near) });
        }
        if pages.is_empty() {
            self.free(&ranges);
            return None;
        }
        let region = self.places[session].id;
        store(region, list.1, &pages);
        let stored = zerocopy::IntoBytes::as_bytes(&pages[..]);
        let at = usize::try_from(list.1).unwrap();
        self.places[session].bytes[at..at + stored.len()].copy_from_slice(stored);
        let mut sqe = self.base(random, side, opcode, target);
        sqe.local_offset = list.1;
        sqe.remote_offset = base;
        sqe.bytes = u32::try_from(bytes).unwrap();
        sqe.arg[0] = (pages.len() as u64) << 32;
        let effect = Effect::Copy(pairs);
        Some(Pending { effect, ranges, target: Some(target), ..plain(sqe) })
    }

    fn atomic(&mut self, random: &mut Random, side: usize) -> Option<Pending> {
        let target = self.aim(random);
        let session = self.sides[side].session;
        let old = self.draw(random, session, 8)?;
        let opcode = random.pick(&[Opcode::FetchAdd, Opcode::CmpSwap]);
        let mut sqe = self.base(random, side, opcode, target);
        sqe.local_offset = old.1;
        let by = random.next();
        if opcode == Opcode::FetchAdd && random.chance(50) {
            sqe.remote_offset = SHARED_WORD;
            sqe.arg[0] = by;
            let effect = Effect::AddShared { place: target, old, by };
            return Some(Pending { effect, ranges: vec![old], target: Some(target), ..plain(sqe) });
        }
        let Some(word) = self.draw(random, target, 8) else {
            self.free(&[old]);
            return None;
        };
        sqe.remote_offset = word.1;
        let effect = if opcode == Opcode::FetchAdd {
            sqe.arg[0] = by;
            Effect::Add { word, old, by }
        } else {
            let now = self.places[target].word(word.1);
            let expected = if random.chance(50) { now } else { by };
            sqe.arg = [expected, random.next()];
            Effect::Swap { word, old, expected, new: sqe.arg[1] }
        };
        Some(Pending { effect, ranges: vec![old, word], target: Some(target), ..plain(sqe) })
    }

    fn cancel(&mut self, random: &mut Random, side: usize, number: u64) -> Pending {
        let target = number.saturating_sub(1 + random.below(12));
        let records = &self.sides[side].records;
        let arg = match random.below(5) {
            0 | 1 => [target, CANCEL_BY_NUMBER],
            2 | 3 => [(side as u64) << 32 | target, CANCEL_BY_USER_DATA],
            _ if records.is_empty() => [random.next(), CANCEL_BY_RECORD],
            _ => [random.pick(records), CANCEL_BY_RECORD],
        };
        plain(Sqe { opcode: Opcode::Cancel as u8, arg, ..Sqe::default() })
    }

    fn flush(&self, random: &mut Random, side: usize) -> Pending {
        let session = self.sides[side].session;
        let own = &self.places[session];
        let mut sqe = super::world::flush(own.id);
        if random.chance(40) {
            sqe.local_region = self.places[random.index(self.places.len())].imports[session].0;
        } else if random.chance(10) && !own.revoked {
            sqe.flags |= SQE_REVOKE;
        }
        plain(sqe)
    }

    fn arm(&self, random: &mut Random, side: usize) -> Pending {
        let session = self.sides[side].session;
        let count = random.below32(3) + 1;
        let beyond = count > self.sides[side].cq_entries;
        let refused = beyond.then_some((errno::E2BIG, Detail::Bytes));
        Pending { refused, ..plain(super::world::arm(self.places[session].id, count)) }
    }

    /// A CQE of a ring. Returns the SQE it ended, if it was a final one.
    pub(super) fn judge(&mut self, side: usize, cqe: &Cqe) -> Option<Pending> {
        let number = cqe.user_data & 0xffff_ffff;
        assert_eq!(cqe.user_data >> 32, side as u64, "another ring's CQE: {cqe:?}");
        let session = self.sides[side].session;
        if cqe.flags & CQE_NOTIFY != 0 {
            self.places[session].heard += u64::try_from(cqe.res).unwrap();
        }
        if cqe.flags & CQE_MORE != 0 {
            assert!(self.sides[side].pending.contains_key(&number), "MORE after the end: {cqe:?}");
            return None;
        }
        let state = &mut self.sides[side];
        let pending = state.pending.remove(&number);
        let Some(pending) = pending else { panic!("a second final CQE, or nobody's: {cqe:?}") };
        state.records.extend((cqe.record != 0).then_some(cqe.record));
        self.finals += 1;
        let kind = if cqe.res < 0 { (cqe.res, cqe.detail) } else { (0, 0) };
        *self.tally.entry(kind).or_default() += 1;
        if cqe.res < 0 {
            self.failed(side, &pending, cqe);
        } else {
            self.succeeded(side, &pending, cqe);
        }
        Some(pending)
    }

    fn failed(&mut self, side: usize, pending: &Pending, cqe: &Cqe) {
        let said = (-cqe.res, cqe.flags, cqe.detail);
        let is = |errno: i32, flags: u16, detail: Detail| said == (errno, flags, detail as u16);
        let opcode = Opcode::from_byte(pending.sqe.opcode);
        let session = self.sides[side].session;
        let revoked = pending.target.is_some_and(|at| {
            let place = &self.places[at];
            let import = RegionId(pending.sqe.remote_region);
            place.revoked || place.gone || place.imports[session] != import
        });
        if let Some((errno, detail)) = pending.refused {
            let stale = is(errno::ESTALE, 0, Detail::Revoked) && revoked;
            assert!(is(errno, 0, detail) || stale, "{pending:?} {cqe:?}");
            assert_eq!(cqe.record, 0, "a record for garbage: {pending:?} {cqe:?}");
            return;
        }
        let winding = self.sides[side].winding;
        let data = pending.target.is_some();
        let arm = opcode == Some(Opcode::Arm);
        let late = data && pending.sqe.deadline_us() > 0 && atomic_free(&pending.sqe);
        let taken_back = is(errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled);
        let ok = taken_back
            || is(errno::ETIME, CQE_RETRYABLE, Detail::Deadline) && late
            || is(BROKEN, 0, Detail::None) && self.errors && data
            || is(errno::ESTALE, 0, Detail::Revoked) && revoked
            || is(errno::ESHUTDOWN, CQE_RETRYABLE, Detail::Closing) && winding
            || is(errno::ESHUTDOWN, 0, Detail::Closing) && winding && arm
            || is(errno::ESHUTDOWN, CQE_MAYBE_DONE, Detail::Closing) && winding && data
            || is(errno::ECANCELED, 0, Detail::Released) && arm && self.places[session].gone
            || opcode == Some(Opcode::Cancel) && self.cancel_failed(side, pending, cqe);
        assert!(ok, "{pending:?} {cqe:?}");
        if taken_back {
            let number = cqe.user_data & 0xffff_ffff;
            self.sides[side].taken_back.insert(number, cqe.record);
        }
        if cqe.flags & CQE_RETRYABLE != 0 {
            assert!(!pending.posted, "RETRYABLE, but posted: {pending:?} {cqe:?}");
        } else if cqe.record != 0 {
            self.take_over(&pending.effect);
        }
        self.free(&pending.ranges);
    }

    /// ENOENT: the target had ended. EALREADY: it is posted, and will not be cancelled.
    fn cancel_failed(&mut self, side: usize, pending: &Pending, cqe: &Cqe) -> bool {
        let [target, by] = pending.sqe.arg;
        let state = &mut self.sides[side];
        let known = by != CANCEL_BY_RECORD;
        let number = target & 0xffff_ffff;
        match -cqe.res {
            errno::ENOENT => {
                let skipped = |op: &Pending| op.sqe.flags & SQE_SKIP_SUCCESS != 0;
                let lives = known
                    && cqe.user_data & 0xffff_ffff != number
                    && state.pending.get(&number).is_some_and(|op| !skipped(op));
                assert!(!lives, "ENOENT for a live op: {cqe:?}");
            }
            errno::EALREADY => {
                assert!(!known || !state.taken_back.contains_key(&number), "EALREADY: {cqe:?}");
                if known && let Some(op) = state.pending.get_mut(&number) {
                    op.posted = true;
                }
            }
            _ => return false,
        }
        cqe.detail == Detail::None as u16 && cqe.flags == 0
    }

    fn succeeded(&mut self, side: usize, pending: &Pending, cqe: &Cqe) {
        assert!(pending.refused.is_none(), "garbage succeeded: {pending:?} {cqe:?}");
        assert!(pending.sqe.flags & SQE_SKIP_SUCCESS == 0, "not skipped: {pending:?} {cqe:?}");
        let opcode = Opcode::from_byte(pending.sqe.opcode).unwrap();
        let all = u64::from(pending.sqe.bytes) * u64::from(pending.sqe.pages().max(1));
        let bytes = i32::try_from(all).unwrap_or(-1);
        let data = u16::from(FABRIC_LOCAL) << 8;
        let (res, detail) = match opcode {
            Opcode::Write | Opcode::Read | Opcode::Writev | Opcode::Readv => (bytes, data),
            Opcode::FetchAdd | Opcode::CmpSwap => (8, data),
            Opcode::Arm => (cqe.res, 0),
            _ => (0, 0),
        };
        assert_eq!((cqe.res, cqe.detail), (res, detail), "{pending:?} {cqe:?}");
        let arm = opcode == Opcode::Arm;
        assert_eq!(cqe.flags, if arm { CQE_NOTIFY } else { 0 }, "{pending:?} {cqe:?}");
        assert_ne!(cqe.record, 0);
        self.apply(side, pending);
    }

    /// A success, told by a CQE or by the fate table.
    pub(super) fn apply(&mut self, side: usize, pending: &Pending) {
        self.successes += 1;
        match pending.effect.clone() {
            Effect::Nothing => {}
            Effect::Copy(pairs) => pairs.into_iter().for_each(|(from, to)| self.copy(from, to)),
            Effect::Add { word, old, by } => {
                let now = self.places[word.0].word(word.1);
                self.places[word.0].set_word(word.1, now.wrapping_add(by));
                self.places[old.0].set_word(old.1, now);
            }
            Effect::Swap { word, old, expected, new } => {
                let now = self.places[word.0].word(word.1);
                if now == expected {
                    self.places[word.0].set_word(word.1, new);
                }
                self.places[old.0].set_word(old.1, now);
            }
            // What it returns depends on the order.
            Effect::AddShared { place, old, by } => {
                let shared = &mut self.places[place].shared;
                *shared = shared.map(|sum| sum.wrapping_add(by));
                self.adopt(old);
            }
        }
        if pending.sqe.flags & SQE_NOTIFY != 0
            && let Some(target) = pending.target
        {
            self.places[target].told += 1;
        }
        self.free(&pending.ranges);
        if pending.sqe.opcode == Opcode::Cancel as u8 {
            let [target, by] = pending.sqe.arg;
            self.taken_back(side, by, target);
        }
    }

    /// Somebody was told that an op was taken back: its CQE must have come before.
    pub(super) fn taken_back(&mut self, side: usize, by: u64, target: u64) {
        let ops = &mut self.sides[side].taken_back;
        let number = match by {
            CANCEL_BY_RECORD => ops.iter().find(|(_, record)| **record == target).map(|at| *at.0),
            _ => Some(target & 0xffff_ffff),
        };
        let there = number.and_then(|number| ops.remove(&number));
        assert!(there.is_some(), "taken back, but its CQE did not come first: {by} {target:#x}");
    }

    /// After an unknown outcome: what may have been written is as it is.
    fn take_over(&mut self, effect: &Effect) {
        match effect.clone() {
            Effect::Nothing => {}
            Effect::Copy(pairs) => pairs.into_iter().for_each(|(_, to)| self.adopt(to)),
            Effect::Add { word, old, .. } | Effect::Swap { word, old, .. } => {
                self.adopt(word);
                self.adopt(old);
            }
            Effect::AddShared { place, old, .. } => {
                self.places[place].shared = None;
                self.adopt(old);
            }
        }
    }

    fn adopt(&mut self, (place, offset, bytes): Range) {
        let place = &mut self.places[place];
        let at = usize::try_from(offset).unwrap();
        let end = at + usize::try_from(bytes).unwrap();
        place.real.read(offset, &mut place.bytes[at..end]);
    }

    /// Compares all memory with the model; nothing may be under way.
    pub(super) fn compare(&mut self) {
        for place in &mut self.places {
            let end = usize::try_from(SHARED_WORD).unwrap();
            let mut real = vec![0; place.bytes.len()];
            place.real.read(0, &mut real);
            let differ = (0..end).find(|&at| real[at] != place.bytes[at]);
            assert_eq!(differ, None, "memory of {:?}", place.id);
            let shared = u64::from_le_bytes(real[end..end + 8].try_into().unwrap());
            assert!(place.shared.is_none_or(|sum| sum == shared), "a contended sum");
        }
    }

    fn copy(&mut self, from: Range, to: Range) {
        let range = |(_, offset, bytes): Range| {
            usize::try_from(offset).unwrap()..usize::try_from(offset + bytes).unwrap()
        };
        let bytes = self.places[from.0].bytes[range(from)].to_vec();
        self.places[to.0].bytes[range(to)].copy_from_slice(&bytes);
    }
}

impl Place {
    fn word(&self, offset: u64) -> u64 {
        let at = usize::try_from(offset).unwrap();
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn set_word(&mut self, offset: u64, word: u64) {
        let at = usize::try_from(offset).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

fn plain(sqe: Sqe) -> Pending {
    Pending {
        sqe,
        effect: Effect::Nothing,
        ranges: Vec::new(),
        target: None,
        refused: None,
        posted: false,
    }
}

/// True if `arg[0]` holds a deadline (the model gives atomics none).
fn atomic_free(sqe: &Sqe) -> bool {
    ![Opcode::FetchAdd as u8, Opcode::CmpSwap as u8].contains(&sqe.opcode)
}
