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

#[cfg(test)]
mod tests {
    use verbring::abi::Class;

    use super::*;
    use crate::cli::bench::shape::{OpKind, Wish};

    fn shape(op: OpKind) -> Shape {
        Shape::settle(Wish {
            op,
            size_bytes: 16,
            pages: 2,
            batch: 8,
            depth: 64,
            class: Class::Medium,
            working_set_bytes: Some(256),
        })
        .unwrap()
    }

    /// Far more entries than slots, so that every cursor wraps: each comes back, and in order.
    #[test]
    fn every_entry_comes_back_once() {
        let shape = shape(OpKind::Nop);
        let mapping = Arc::new(Mapping::anonymous(segment_bytes(&shape)).unwrap());
        let mut client = BareEnd::new(make(Arc::clone(&mapping), &shape).unwrap());
        let mut echo = EchoEnd::new(open(mapping).unwrap());
        let (mut seen, mut answered, mut timed) = (0, 0, 0);
        for round in 0..1_000_u32 {
            let mut rig = client.rig(shape.walk(0, 0));
            rig.submit(8, u64::from(round % 2)).unwrap();
            assert_eq!(rig.reap().unwrap(), (0, 0), "nobody has answered");
            answered += echo.answer(|sqe| {
                assert_eq!(sqe.opcode, Opcode::Nop as u8);
                seen += 1;
                0
            });
            let (popped, of_timed) = client.rig(shape.walk(0, 0)).reap().unwrap();
            assert_eq!(popped, 8);
            timed += of_timed;
        }
        assert_eq!((seen, answered, timed), (8_000, 8_000, 4_000));
        assert_eq!(echo.answer(|_| 0), 0);
        client.rig(shape.walk(0, 0)).submit(1, 0).unwrap();
        assert_eq!(echo.answer(|_| -5), 1);
        assert!(client.rig(shape.walk(0, 0)).reap().is_err(), "a failure is no success");
        assert!(!echo.dismissed(7));
        client.dismiss(7);
        assert!(echo.dismissed(7) && !echo.dismissed(8));
    }

    #[test]
    fn payload_is_moved_as_an_engine_would() {
        let filled = |op| {
            let shape = shape(op);
            let memory = Mapping::anonymous(4096).unwrap();
            memory.write(0, &[7; 128]);
            memory.write(128, &[9; 128]);
            let (base, lists) = shape.lists();
            memory.write(base, zerocopy::IntoBytes::as_bytes(lists.as_slice()));
            (shape.walk(0, 0), memory)
        };
        let bytes = |memory: &Mapping, at| {
            let mut bytes = [0; 32];
            memory.read(at, &mut bytes);
            bytes
        };
        let (mut walk, memory) = filled(OpKind::Write);
        assert_eq!(move_payload(&memory, &Sqe::from_words(walk.next(0))), 16);
        assert_eq!(bytes(&memory, 128)[..17], [&[7; 16][..], &[9]].concat());
        let (mut walk, memory) = filled(OpKind::Read);
        assert_eq!(move_payload(&memory, &Sqe::from_words(walk.next(0))), 16);
        assert_eq!(bytes(&memory, 0)[..17], [&[9; 16][..], &[7]].concat());
        let (mut walk, memory) = filled(OpKind::Writev);
        walk.next(0);
        assert_eq!(move_payload(&memory, &Sqe::from_words(walk.next(0))), 32);
        assert_eq!((bytes(&memory, 128), bytes(&memory, 160)), ([9; 32], [7; 32]));
        let (mut walk, memory) = filled(OpKind::FetchAdd);
        let old = memory.word64(128).load(Ordering::Relaxed);
        assert_eq!(move_payload(&memory, &Sqe::from_words(walk.next(0))), 8);
        assert_eq!(memory.word64(0).load(Ordering::Relaxed), old);
        assert_eq!(memory.word64(128).load(Ordering::Relaxed), old + 1);
    }
}
