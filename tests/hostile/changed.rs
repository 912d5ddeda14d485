//! Memory that changes while the engine looks at it: entries after publication, and the words that
//! are the engine's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use verbring::abi::{
    AT_COUNTERS, AT_CQ_TAIL, AT_ENGINE_FLAGS, AT_SQ_HEAD, Counter, Detail, FABRIC_LOCAL,
    OBJECT_RING, Opcode, SegmentHeader, Sqe, errno,
};
use verbring::shm::Mapping;

use super::chance::Chance;
use super::raw::HandRing;
use super::stage::{Stage, until};

const REGION_BYTES: u64 = 64 << 10;
const BYTES: u32 = 64;

/// A thread flips every word of every slot between two entries. Each op must be as some mix of
/// the two says, word by word: judged and carried out from one copy. A second look at the slot
/// after the judgement would reach beyond the region.
#[test]
fn f18_entries_after_publication() {
    let mut stage = Stage::set("entries changed after publication");
    let mut wire = stage.wire();
    let mut ring = wire.ring(16, 64);
    let (near, near_memory) = wire.region(REGION_BYTES);
    let (far, far_memory) = wire.region(REGION_BYTES);
    let import = wire.own_import(far, "changed");
    near_memory.fill(0, REGION_BYTES, 0xA5);
    let good = Sqe {
        opcode: Opcode::Write as u8,
        local_region: near,
        remote_region: import,
        local_offset: 0,
        remote_offset: 4096,
        bytes: BYTES,
        ..Sqe::default()
    };
    let other = Sqe { class: 1, user_data: 1, remote_offset: 8192, ..good };
    let bad = Sqe {
        opcode: Opcode::Read as u8,
        user_data: 2,
        local_offset: u64::MAX - 8,
        remote_offset: REGION_BYTES - 8,
        bytes: u32::MAX,
        ..good
    };
    let forms = [good, other, good, bad].map(Sqe::to_words);
    let flipper = Mischief::on(&ring, move |memory, header, chance| {
        let slot = chance.below(u64::from(header.sq_entries));
        let word = chance.below(8);
        let at = header.sq_offset + slot * u64::from(header.sqe_stride) + 8 * word;
        memory.word64(at).store(chance.of(&forms)[word as usize], Ordering::Relaxed);
    });
    while stage.goes_on() || stage.tally.attempts < 50_000 {
        // No entry is written here: what lies in the slots is the thread's doing.
        ring.tail = ring.tail.wrapping_add(ring.header.sq_entries);
        ring.publish();
        for _ in 0..ring.header.sq_entries {
            let cqe = ring.next();
            let (res, detail, known) = (cqe.res, cqe.detail, cqe.user_data <= 2);
            let done = (res, detail) == (BYTES as i32, u16::from(FABRIC_LOCAL) << 8);
            let refused = res < 0 && cqe.record == 0;
            // NOPs lie in the slots before the thread has been there.
            assert!(known && (done || refused || res == 0), "no mix says so: {cqe:?}");
            stage.tally.cqe(&cqe);
            stage.tally.attempts += 1;
        }
    }
    drop(flipper);
    for detail in [Detail::LocalOffset, Detail::Bytes] {
        assert!(stage.tally.refusals(errno::EINVAL, detail) > 0, "no mix was bad for {detail}");
    }
    assert!(stage.tally.granted > 0);
    // What a mix may touch: 64 bytes at one near and at two far places.
    let mut seen = vec![0; REGION_BYTES as usize];
    far_memory.read(0, &mut seen);
    let mut strays: Vec<usize> = (0..seen.len()).filter(|&at| seen[at] != 0).collect();
    strays.retain(|at| !(4096..4160).contains(at) && !(8192..8256).contains(at));
    assert_eq!(strays, Vec::<usize>::new(), "bytes landed where no mix of the entries says");
    near_memory.read(0, &mut seen);
    assert!(seen[64..].iter().all(|byte| *byte == 0xA5), "likewise at the near side");
    drop((wire, ring, near_memory, far_memory));
    stage.finish();
}

/// The client writes into the words that are the engine's: it never reads them back, so that the
/// ring goes on as if nothing had been.
#[test]
fn words_of_the_engine() {
    let mut stage = Stage::set("the engine's own words overwritten");
    let mut wire = stage.wire();
    let mut ring = wire.ring(16, 16);
    let mut chance = Chance::new(7);
    let first = ring.header.first_index;
    while stage.goes_on() || stage.tally.attempts < 500 {
        for at in [AT_SQ_HEAD, AT_CQ_TAIL, AT_ENGINE_FLAGS] {
            ring.store(at, chance.u32());
        }
        for at in (0..104).step_by(4).chain((AT_COUNTERS..AT_COUNTERS + 64).step_by(4)) {
            ring.store(at, chance.u32());
        }
        let fates = ring.header.fate_offset..ring.header.segment_bytes;
        for at in fates.step_by(8) {
            ring.memory.word64(at).store(chance.u64(), Ordering::Relaxed);
        }
        ring.push(&Sqe { user_data: stage.tally.attempts, ..Sqe::default() });
        let pushed = ring.tail.wrapping_sub(first);
        until("the engine writes its own count", || {
            [AT_SQ_HEAD, AT_CQ_TAIL].map(|at| ring.load(at).wrapping_sub(first)) == [pushed; 2]
        });
        let cqe = ring.pop().unwrap();
        assert_eq!((cqe.user_data, cqe.res), (stage.tally.attempts, 0));
        stage.tally.attempts += 1;
        stage.tally.granted += 1;
    }
    wire.release(OBJECT_RING, ring.number).done();
    drop((wire, ring));
    stage.finish();
}

/// A thread scribbles over the whole segment: the ring is lost, and only the ring.
#[test]
fn whole_segments() {
    let mut stage = Stage::set("the whole segment scribbled over");
    let mut wire = stage.wire();
    let faults = stage.counter(Counter::Faults);
    while stage.goes_on() {
        let ring = wire.ring(16, 16);
        let scribbler = Mischief::on(&ring, |memory, _, chance| {
            let at = 8 * chance.below(memory.bytes() / 8);
            memory.word64(at).store(chance.u64(), Ordering::Relaxed);
        });
        // The segment itself says nothing that could be believed.
        until("the ring is faulted", || {
            ring.ring_bell();
            stage.counter(Counter::Faults) - faults > stage.tally.faulted
        });
        drop(scribbler);
        stage.tally.attempts += 1;
        stage.tally.faulted += 1;
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop(wire);
    stage.finish();
}

/// A thread that does something to a ring's memory over and over, until this is dropped.
struct Mischief {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mischief {
    fn on(
        ring: &HandRing,
        act: impl Fn(&Mapping, &SegmentHeader, &mut Chance) + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (memory, header, over) = (Arc::clone(&ring.memory), ring.header, Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut chance = Chance::new(u64::from(header.ring));
            while !over.load(Ordering::Relaxed) {
                act(&memory, &header, &mut chance);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Mischief {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}
