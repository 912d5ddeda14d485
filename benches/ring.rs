//! What does a slot of the ring cost? Each side's part of an op by itself, and both one behind the
//! other, over memory on the heap and over a mapped segment.
//!
//! A higher number here means that an end of the ring does more for a slot: cursors, checks of what
//! the other side wrote, the copy of 64 or 32 bytes; and, once a batch, the publication with its
//! full fence: what a batch of 1 costs beyond a slot of a batch of 32 is the publication. The
//! distance from `Heap` to `Mapped` is the price of offsets and strides that are read at run time.
//! Both ends are on one core and the entries stay in its cache, so no line travels: what that
//! costs, `verbring bench` shows. It is held against the 40 ns an op that `io_uring` needs for a
//! NOP: of them, a round of 32 is to be a small part.
//!
//! `client_pushes`, `engine_serves` and `client_pops` have one end each; the other side's cursors
//! are moved by hand, with one store a batch. `engine_sleeps` and `client_arms` are what the two
//! handshakes cost whoever goes to sleep, without the sleep.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use verbring::abi::SegmentHeader;
use verbring::ring::{ClientEnd, EngineEnd, Heap, Mapped, Memory, Word};
use verbring::shm::Mapping;

fn main() {
    divan::main();
}

/// The sizes of a ring that a client has not asked for otherwise.
const SQ_ENTRIES: u32 = 64;
const CQ_ENTRIES: u32 = 128;
/// SQEs pushed before the other side looks.
const BATCHES: [u32; 3] = [1, 8, 32];
const SQE: [u64; 8] = [7; 8];
const CQE: [u64; 4] = [9; 4];

/// Fresh ring memory, in the form in which two ends share it.
trait Fresh {
    type Shared: Memory + Clone;
    fn fresh() -> Self::Shared;
}

impl Fresh for Heap {
    type Shared = Arc<Self>;

    fn fresh() -> Arc<Self> {
        Arc::new(Self::new(SQ_ENTRIES, CQ_ENTRIES, 0))
    }
}

impl Fresh for Mapped {
    type Shared = Self;

    fn fresh() -> Self {
        let header = SegmentHeader::lay_out(SQ_ENTRIES, CQ_ENTRIES);
        let mapping = Mapping::anonymous(header.segment_bytes).expect("memory for a segment");
        mapping.populate().expect("pages for a segment");
        Self::create(Arc::new(mapping), header).expect("a header laid out for this mapping")
    }
}

/// The client's part of a batch, up to its publication.
fn push<M: Memory>(client: &mut ClientEnd<M>, batch: u32) {
    for _ in 0..batch {
        client.push(black_box(SQE));
    }
    black_box(client.publish());
}

/// The engine's part: answers whatever waits.
fn serve<M: Memory>(engine: &mut EngineEnd<M>) {
    let waiting = engine.look().expect("a tail that can be");
    for _ in 0..waiting {
        black_box(engine.peek(0));
        black_box(engine.room(1).expect("a head that can be"));
        engine.take(1);
        engine.push(black_box(CQE));
    }
    engine.publish_taken();
    black_box(engine.publish());
}

/// The client's part again: pops whatever is there, and returns how many that were.
fn pop<M: Memory>(client: &mut ClientEnd<M>) -> u32 {
    let mut popped = 0;
    while let Some(words) = client.pop().expect("a tail that can be") {
        black_box(words);
        popped += 1;
    }
    client.release();
    popped
}

/// One side's cursor, moved by hand.
struct Hand<M> {
    memory: M,
    word: Word,
    at: u32,
}

impl<M: Memory> Hand<M> {
    fn new(memory: M, word: Word) -> Self {
        let at = memory.first_index();
        Self { memory, word, at }
    }

    fn advance(&mut self, by: u32) {
        self.at = self.at.wrapping_add(by);
        self.memory.word(self.word).store(self.at, Ordering::Release);
    }
}

/// Where a cursor that began at 0 is after so many entries.
fn low32(number: u64) -> u32 {
    (number & 0xffff_ffff) as u32
}

#[divan::bench(types = [Heap, Mapped], args = BATCHES)]
fn client_pushes<M: Fresh>(bencher: Bencher<'_, '_>, batch: u32) {
    let memory = M::fresh();
    let mut client = ClientEnd::new(memory.clone());
    let mut sq_head = Hand::new(memory, Word::SqHead);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        push(&mut client, batch);
        sq_head.advance(batch);
    });
    assert_eq!(sq_head.at, low32(client.pushed()), "pushes were refused");
}

/// The same entries by `push_all`.
#[divan::bench(types = [Heap, Mapped], args = BATCHES)]
fn client_pushes_all<M: Fresh>(bencher: Bencher<'_, '_>, batch: u32) {
    let memory = M::fresh();
    let mut client = ClientEnd::new(memory.clone());
    let mut sq_head = Hand::new(memory, Word::SqHead);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        client.push_all((0..batch).map(|_| black_box(SQE)));
        black_box(client.publish());
        sq_head.advance(batch);
    });
    assert_eq!(sq_head.at, low32(client.pushed()), "pushes were refused");
}

#[divan::bench(types = [Heap, Mapped], args = BATCHES)]
fn engine_serves<M: Fresh>(bencher: Bencher<'_, '_>, batch: u32) {
    let memory = M::fresh();
    let mut engine = EngineEnd::new(memory.clone());
    let mut sq_tail = Hand::new(memory.clone(), Word::SqTail);
    let mut cq_head = Hand::new(memory, Word::CqHead);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        sq_tail.advance(batch);
        serve(&mut engine);
        cq_head.advance(batch);
    });
    assert_eq!(engine.room(CQ_ENTRIES), Ok(CQ_ENTRIES), "entries were not served");
}

#[divan::bench(types = [Heap, Mapped], args = BATCHES)]
fn client_pops<M: Fresh>(bencher: Bencher<'_, '_>, batch: u32) {
    let memory = M::fresh();
    let mut client = ClientEnd::new(memory.clone());
    let mut cq_tail = Hand::new(memory, Word::CqTail);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        cq_tail.advance(batch);
        assert_eq!(pop(&mut client), batch);
    });
}

#[divan::bench(types = [Heap, Mapped], args = BATCHES)]
fn round<M: Fresh>(bencher: Bencher<'_, '_>, batch: u32) {
    let memory = M::fresh();
    let mut client = ClientEnd::new(memory.clone());
    let mut engine = EngineEnd::new(memory);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        push(&mut client, batch);
        serve(&mut engine);
        assert_eq!(pop(&mut client), batch);
    });
}

/// NEED_WAKEUP, the fence, the last look, and awake again.
#[divan::bench(types = [Heap, Mapped])]
fn engine_sleeps<M: Fresh>(bencher: Bencher<'_, '_>) {
    let mut engine = EngineEnd::new(M::fresh());
    bencher.bench_local(|| {
        assert_eq!(engine.fall_asleep(), Ok(true));
        engine.wake();
    });
}

/// `bell_at`, the fence, the last look.
#[divan::bench(types = [Heap, Mapped])]
fn client_arms<M: Fresh>(bencher: Bencher<'_, '_>) {
    let mut client = ClientEnd::new(M::fresh());
    bencher.bench_local(|| assert_eq!(client.arm_bell(1), Ok(true)));
}
