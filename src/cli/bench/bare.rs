//! The bare ring: the same entries through the same memory, and nothing in between.
//!
//! It is the limit that the engine is held against: 64-byte SQEs one way, 32-byte CQEs the other,
//! relaxed words between a release and an acquire of cursors that lie 128 bytes apart, and each
//! side's last look at the other's cursor kept. Nothing is checked, recorded, scheduled, fenced or
//! woken. The far end echoes, or first moves the payload by a plain memcpy.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use verbring::abi::{Cqe, Opcode, Page, SegmentHeader, Sqe};
use verbring::ring::{Mapped, Memory, Word};
use verbring::shm::Mapping;

use super::shape::{Shape, Walk};
use super::slice::{Rig, TIMED};
use crate::cli::Failure;

/// Bytes of the segment of a ring for this shape.
pub(super) fn segment_bytes(shape: &Shape) -> u64 {
    SegmentHeader::lay_out(shape.entries(), shape.entries()).segment_bytes
}

/// Makes ring memory in a fresh segment.
pub(super) fn make(mapping: Arc<Mapping>, shape: &Shape) -> Result<Mapped, Failure> {
    Mapped::create(mapping, SegmentHeader::lay_out(shape.entries(), shape.entries()))
        .map_err(|error| Failure::of("cannot make a bare ring", &error))
}

/// Takes ring memory that the parent has made.
pub(super) fn open(mapping: Arc<Mapping>) -> Result<Mapped, Failure> {
    Mapped::open(mapping).map_err(|error| Failure::of("cannot open a bare ring", &error))
}

/// The client's end.
pub(super) struct BareRig<'a> {
    end: &'a mut BareEnd,
    walk: Walk,
}

/// The client's cursors, which live as long as the ring.
pub(super) struct BareEnd {
    memory: Mapped,
    pushed: u32,
    /// What the far end has taken, as last seen.
    taken: u32,
    popped: u32,
}

impl BareEnd {
    pub(super) fn new(memory: Mapped) -> Self {
        let first = memory.first_index();
        Self { memory, pushed: first, taken: first, popped: first }
    }

    /// Ops go to the places of `walk`.
    pub(super) fn rig(&mut self, walk: Walk) -> BareRig<'_> {
        BareRig { end: self, walk }
    }

    /// The ring's memory.
    pub(super) fn memory(&self) -> &Mapped {
        &self.memory
    }

    /// Tells the far end that the slice with this number is over.
    pub(super) fn dismiss(&self, slice: u32) {
        self.memory.word(Word::BellAt).store(slice, Ordering::Release);
    }
}

impl Rig for BareRig<'_> {
    #[inline]
    fn submit(&mut self, count: u32, tag: u64) -> Result<(), Failure> {
        let end = &mut *self.end;
        while end.memory.sq_entries() - end.pushed.wrapping_sub(end.taken) < count {
            end.taken = end.memory.word(Word::SqHead).load(Ordering::Acquire);
        }
        let mut pushed = end.pushed;
        for _ in 0..count {
            let slot = end.memory.sqe(pushed);
            for (at, word) in self.walk.next(tag).into_iter().enumerate() {
                slot[at].store(word, Ordering::Relaxed);
            }
            pushed = pushed.wrapping_add(1);
        }
        end.pushed = pushed;
        end.memory.word(Word::SqTail).store(end.pushed, Ordering::Release);
        Ok(())
    }

    #[inline]
    fn reap(&mut self) -> Result<(u32, u32), Failure> {
        let end = &mut *self.end;
        let tail = end.memory.word(Word::CqTail).load(Ordering::Acquire);
        let ready = tail.wrapping_sub(end.popped);
        let (mut timed, mut worst) = (0, 0);
        for ahead in 0..ready {
            let slot = end.memory.cqe(end.popped.wrapping_add(ahead));
            let cqe = Cqe::from_words(std::array::from_fn(|at| slot[at].load(Ordering::Relaxed)));
            worst = worst.min(cqe.res);
            timed += u32::from(cqe.user_data == TIMED);
        }
        if worst < 0 {
            return Err(Failure::Failed(format!("the echo process answered {worst}")));
        }
        end.popped = tail;
        if ready > 0 {
            end.memory.word(Word::CqHead).store(end.popped, Ordering::Release);
        }
        Ok((ready, timed))
    }

    fn check(&mut self) -> Result<(), Failure> {
        // A far end that is gone has closed nothing here: silence tells.
        Ok(())
    }

    fn at_rest(&mut self) -> bool {
        // It waits for its parent's word as soon as it has been dismissed.
        true
    }
}

/// The far end.
pub(super) struct EchoEnd {
    memory: Mapped,
    taken: u32,
    /// Slots that may be written: up to what the client has popped, as last seen, plus all.
    answered: u32,
    popped: u32,
}

impl EchoEnd {
    pub(super) fn new(memory: Mapped) -> Self {
        let first = memory.first_index();
        Self { memory, taken: first, answered: first, popped: first }
    }

    /// The ring's memory.
    pub(super) fn memory(&self) -> &Mapped {
        &self.memory
    }

    /// True once the client has nothing more to ask in this slice.
    pub(super) fn dismissed(&self, slice: u32) -> bool {
        self.memory.word(Word::BellAt).load(Ordering::Acquire) == slice
    }

    /// Answers what is there, each SQE by what `work` makes of it. Returns how many that were.
    #[inline]
    pub(super) fn answer(&mut self, mut work: impl FnMut(&Sqe) -> i32) -> u32 {
        let tail = self.memory.word(Word::SqTail).load(Ordering::Acquire);
        let ready = tail.wrapping_sub(self.taken).min(LOT);
        if ready == 0 {
            return 0;
        }
        while self.memory.cq_entries() - self.answered.wrapping_sub(self.popped) < ready {
            self.popped = self.memory.word(Word::CqHead).load(Ordering::Acquire);
        }
        let (taken, answered) = (self.taken, self.answered);
        for ahead in 0..ready {
            let slot = self.memory.sqe(taken.wrapping_add(ahead));
            let words = std::array::from_fn(|at| slot[at].load(Ordering::Relaxed));
            let sqe = Sqe::from_words(words);
            let cqe = Cqe { user_data: sqe.user_data, res: work(&sqe), ..Cqe::default() };
            let slot = self.memory.cqe(answered.wrapping_add(ahead));
            for (at, word) in cqe.to_words().into_iter().enumerate() {
                slot[at].store(word, Ordering::Relaxed);
            }
        }
        self.taken = taken.wrapping_add(ready);
        self.answered = answered.wrapping_add(ready);
        self.memory.word(Word::CqTail).store(self.answered, Ordering::Release);
        self.memory.word(Word::SqHead).store(self.taken, Ordering::Release);
        ready
    }
}

/// Does what an engine would, with the payload alone: no check, no record.
#[inline]
pub(super) fn move_payload(memory: &Mapping, sqe: &Sqe) -> i32 {
    let bytes = u64::from(sqe.bytes);
    let moved = match Opcode::from_byte(sqe.opcode) {
        Some(Opcode::Write) => {
            Mapping::copy(memory, sqe.local_offset, memory, sqe.remote_offset, bytes);
            bytes
        }
        Some(Opcode::Read) => {
            Mapping::copy(memory, sqe.remote_offset, memory, sqe.local_offset, bytes);
            bytes
        }
        Some(Opcode::FetchAdd) => {
            let word = memory.word64(sqe.remote_offset);
            let old = word.fetch_add(sqe.operand(), Ordering::AcqRel);
            memory.word64(sqe.local_offset).store(old, Ordering::Relaxed);
            8
        }
        Some(Opcode::Writev) => {
            let list_bytes = size_of::<Page>() as u64;
            for page in 0..u64::from(sqe.pages()) {
                let entry = sqe.local_offset + page * list_bytes;
                let from = memory.word64(entry).load(Ordering::Relaxed);
                let to = memory.word64(entry + 8).load(Ordering::Relaxed);
                Mapping::copy(memory, from, memory, to, bytes);
            }
            bytes * u64::from(sqe.pages())
        }
        _ => 0,
    };
    i32::try_from(moved).unwrap_or(i32::MAX)
}

/// SQEs answered before the client is told.
const LOT: u32 = 32;
