//! What does a record of the ledger cost? Its life, the lists it is strung on, and the way back
//! from an id to it.
//!
//! A higher number at 1 record in flight means that a record's life has more steps. One that grows
//! with the records in flight means that they have become larger, or lie worse: every step here
//! takes the same instructions at any number of them, so the rest is the cache, 4,096 being more
//! than its first level holds. It is held against the 40 ns an op that `io_uring` needs for a NOP.
//! The goal: open -> post -> complete <= 25 ns, the entry in the flight recorder included.
//!
//! `life` is one op of those in flight completed, and one opened and posted in its place.
//! `recorded` is that with a flight recorder of as many entries as the argument says, 64 in flight;
//! `alloc` columns stay empty: a life allocates nothing.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use divan::{AllocProfiler, Bencher, black_box};
use verbring::abi::Opcode;
use verbring::ids::{RecordId, RingId, SessionId};
use verbring::ledger::{LANE, Ledger, List, Op, Outcome, RING, State};
use verbring::telemetry::Recorder;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// As many records as an engine has that was not asked for another number.
const CAPACITY: u32 = 16_384;
const IN_FLIGHT: [u32; 3] = [1, 64, 4_096];
/// Entries of a flight recorder, 64 bytes each.
const ENTRIES: [u32; 5] = [16, 256, 1_024, 4_096, 65_536];
const BYTES: u32 = 4_096;

const OP: Op =
    Op { opcode: Opcode::Write, local: 0, import: 1, target: 0, epoch: 1, bytes: BYTES, ..Op::NOP };

/// Opens a record as intake does: the op is written where it stays.
fn open(ledger: &mut Ledger, now_ns: u64) -> u32 {
    *ledger.vacant().expect("a record that is free") = black_box(OP);
    let (slot, record) =
        ledger.open(SessionId(0), RingId(0), now_ns).expect("a record that is free");
    record.fate = slot;
    record.number = now_ns;
    record.sequence = now_ns;
    record.checked = 0;
    slot
}

/// All of the op goes to the fabric, in one request.
fn post(ledger: &mut Ledger, slot: u32, now_ns: u64) {
    let record = &mut ledger[slot];
    record.state = State::Posted;
    record.in_fabric += 1;
    record.cursor = record.op.bytes;
    record.posts += 1;
    record.posted_whole = true;
    record.posted_ns = now_ns;
}

/// The request comes back, and what the CQE carries is read.
fn complete(ledger: &mut Ledger, slot: u32, now_ns: u64) {
    let record = &mut ledger[slot];
    record.in_fabric -= 1;
    record.done_bytes += u64::from(record.op.bytes);
    let times = [record.posted_ns - record.taken_ns, now_ns - record.posted_ns];
    black_box((record.op.user_data, record.id(), record.done_bytes, record.failure, times));
    ledger.close(slot);
}

/// A ledger, and the slots of its records in flight.
fn in_flight(count: u32) -> (Ledger, Vec<u32>) {
    let mut ledger = Ledger::new(0, CAPACITY);
    let slots = (0..count).map(|_| open(&mut ledger, 0)).collect();
    (ledger, slots)
}

/// Draws places of `count`: ops end in any order, and no cache is to foresee it.
struct Draw {
    state: u64,
    count: u32,
}

impl Draw {
    fn new(count: u32) -> Self {
        assert!(count.is_power_of_two());
        Self { state: 1, count }
    }

    /// A linear congruence with Knuth's factor, of which the high half is good: a nanosecond.
    fn place(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 32 & u64::from(self.count - 1)) as usize
    }
}

#[divan::bench(args = IN_FLIGHT)]
fn life(bencher: Bencher<'_, '_>, count: u32) {
    let (mut ledger, mut slots) = in_flight(count);
    for &slot in &slots {
        post(&mut ledger, slot, 0);
    }
    let mut draw = Draw::new(count);
    let mut now_ns = 0;
    bencher.bench_local(|| {
        let place = draw.place();
        now_ns += 100;
        complete(&mut ledger, slots[place], now_ns);
        let slot = open(&mut ledger, now_ns);
        post(&mut ledger, slot, now_ns);
        slots[place] = slot;
    });
    assert_eq!(ledger.open_count(), count);
}

/// What the engine does at an op's end before its record is closed.
fn record(ledger: &Ledger, recorder: &mut Recorder, slot: u32, now_ns: u64) {
    let record = &ledger[slot];
    let outcome = Outcome { res: 4_096, flags: 0, detail: black_box(1 << 8) };
    recorder.write(record.entry(outcome, now_ns));
}

#[divan::bench(args = ENTRIES)]
fn recorded(bencher: Bencher<'_, '_>, entries: u32) {
    const COUNT: u32 = 64;
    let (mut ledger, mut slots) = in_flight(COUNT);
    for &slot in &slots {
        post(&mut ledger, slot, 0);
    }
    let (mut recorder, _lines) = Recorder::on_heap(entries);
    let mut draw = Draw::new(COUNT);
    let mut now_ns = 0;
    bencher.bench_local(|| {
        let place = draw.place();
        now_ns += 100;
        record(&ledger, &mut recorder, slots[place], now_ns);
        complete(&mut ledger, slots[place], now_ns);
        let slot = open(&mut ledger, now_ns);
        post(&mut ledger, slot, now_ns);
        slots[place] = slot;
    });
    assert_eq!(ledger.open_count(), COUNT);
}

#[divan::bench(args = IN_FLIGHT)]
fn pass_through(bencher: Bencher<'_, '_>, count: u32) {
    let (mut ledger, _slots) = in_flight(count);
    bencher.bench_local(|| ledger.pass_through().expect("a record that is free"));
}

/// The way of an op through a lane: to the end, and off it when it is the first.
#[divan::bench(args = IN_FLIGHT)]
fn lane(bencher: Bencher<'_, '_>, count: u32) {
    let (mut ledger, slots) = in_flight(count);
    let mut list = List::<LANE>::EMPTY;
    for &slot in &slots {
        list.push_back(&mut ledger, slot);
    }
    // What is queued in an engine that has run for a while does not lie in a row.
    let mut draw = Draw::new(count);
    for _ in 0..4 * count {
        let slot = slots[draw.place()];
        list.remove(&mut ledger, slot);
        list.push_back(&mut ledger, slot);
    }
    bencher.bench_local(|| {
        let slot = list.head();
        list.remove(&mut ledger, slot);
        list.push_back(&mut ledger, slot);
    });
}

/// The way of an op through its ring's list: ops end in any order, so it leaves from the middle.
#[divan::bench(args = IN_FLIGHT)]
fn ring(bencher: Bencher<'_, '_>, count: u32) {
    let (mut ledger, slots) = in_flight(count);
    let mut list = List::<RING>::EMPTY;
    for &slot in &slots {
        list.push_back(&mut ledger, slot);
    }
    let mut draw = Draw::new(count);
    bencher.bench_local(|| {
        let slot = slots[draw.place()];
        list.remove(&mut ledger, slot);
        list.push_back(&mut ledger, slot);
    });
}

#[divan::bench(args = IN_FLIGHT)]
fn find(bencher: Bencher<'_, '_>, count: u32) {
    let (ledger, slots) = in_flight(count);
    let ids: Vec<RecordId> = slots.iter().map(|&slot| ledger.id(slot)).collect();
    let mut draw = Draw::new(count);
    bencher.bench_local(|| ledger.find(black_box(ids[draw.place()])).expect("an open record"));
}
