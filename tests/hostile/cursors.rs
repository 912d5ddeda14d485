//! Cursors that cannot be: each faults the ring it belongs to, with its reason, and no other.

use std::os::unix::fs::FileExt;

use verbring::abi::{
    AT_CQ_HEAD, AT_SQ_TAIL, Counter, FAULT_CQ_HEAD, FAULT_SQ_TAIL_BACK, FAULT_SQ_TAIL_BEYOND,
    OBJECT_RING, SegmentHeader, Sqe,
};
use verbring::client::RingError;
use verbring::{Nop, RingOptions};
use zerocopy::IntoBytes;

use super::chance::Chance;
use super::raw::{HandRing, Wire};
use super::stage::{PATIENCE, Stage, until};

const SQ: u32 = 16;
const CQ: u32 = 16;

/// Waits for the fault of a ring, and looks that nothing but the ring is lost.
fn expect_fault(stage: &mut Stage, wire: &mut Wire, ring: &HandRing, reason: u16) {
    until("the ring is faulted", || ring.fault().is_some());
    assert_eq!(ring.fault(), Some(reason));
    stage.tally.attempts += 1;
    stage.tally.faulted += 1;
    // The session goes on, its other rings too; the broken one can be given back.
    let mut other = wire.ring(SQ, CQ);
    other.push(&Sqe { user_data: 7, ..Sqe::default() });
    let cqe = other.next();
    assert_eq!((cqe.user_data, cqe.res), (7, 0));
    assert_eq!(ring.ready(), 0, "a faulted ring gets no more CQEs");
    wire.release(OBJECT_RING, other.number).done();
    wire.release(OBJECT_RING, ring.number).done();
}

#[test]
fn f19_tails_that_jump() {
    let mut stage = Stage::set("sq_tail beyond the ring");
    let mut wire = stage.wire();
    let mut chance = Chance::new(3);
    let faults = stage.counter(Counter::Faults);
    while stage.goes_on() {
        let ring = wire.ring(SQ, CQ);
        let first = ring.header.first_index;
        let jumps = [SQ + 1, SQ + 2, 2 * SQ, 1 << 16, (1 << 31) - 1, SQ + 1 + chance.u32() % 9999];
        ring.store(AT_SQ_TAIL, first.wrapping_add(chance.of(&jumps)));
        ring.ring_bell();
        expect_fault(&mut stage, &mut wire, &ring, FAULT_SQ_TAIL_BEYOND);
    }
    assert_eq!(stage.counter(Counter::Faults) - faults, stage.tally.faulted);
    drop(wire);
    stage.finish();
}

#[test]
fn f19_tails_that_run_back() {
    let mut stage = Stage::set("sq_tail runs back");
    let mut wire = stage.wire();
    let mut chance = Chance::new(4);
    while stage.goes_on() {
        let mut ring = wire.ring(SQ, CQ);
        for _ in 0..=chance.below(3) {
            ring.push(&Sqe::default());
            ring.next();
        }
        ring.store(AT_SQ_TAIL, ring.tail.wrapping_sub(1 + chance.u32() % SQ));
        ring.ring_bell();
        expect_fault(&mut stage, &mut wire, &ring, FAULT_SQ_TAIL_BACK);
    }
    drop(wire);
    stage.finish();
}

/// A tail that runs back while entries behind it wait for a CQ slot: they were seen, and the
/// shared word says that they were not there.
#[test]
fn tails_that_take_back_what_was_seen() {
    let mut stage = Stage::set("sq_tail takes back what was seen");
    let mut wire = stage.wire();
    while stage.goes_on() {
        let mut ring = wire.ring(SQ, 2);
        for _ in 0..8 {
            ring.write(&Sqe::default());
        }
        ring.publish();
        until("the CQ is full", || ring.ready() == 2);
        ring.store(AT_SQ_TAIL, ring.tail.wrapping_sub(3));
        ring.ring_bell();
        until("the ring is faulted", || ring.fault().is_some());
        assert_eq!(ring.fault(), Some(FAULT_SQ_TAIL_BACK));
        assert_eq!(ring.taken(), 2, "what was not taken has not started");
        stage.tally.attempts += 1;
        stage.tally.faulted += 1;
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop(wire);
    stage.finish();
}

#[test]
fn f19_heads_that_cannot_be() {
    let mut stage = Stage::set("cq_head runs back or ahead");
    let mut wire = stage.wire();
    let mut chance = Chance::new(5);
    while stage.goes_on() {
        let mut ring = wire.ring(SQ, CQ);
        let popped = chance.u32() % 8;
        for _ in 0..8 {
            ring.push(&Sqe::default());
        }
        until("eight CQEs are there", || ring.ready() == 8);
        for _ in 0..popped {
            ring.pop();
        }
        // The head counts once the engine needs room beyond what it knows of. Of the eight slots
        // that are left it makes use without a look.
        let wrong = if chance.once_in(2) {
            ring.header.first_index.wrapping_add(8 + 1 + chance.u32() % 4096)
        } else {
            ring.header.first_index.wrapping_sub(1 + chance.u32() % 4096)
        };
        ring.store(AT_CQ_HEAD, wrong);
        for _ in 0..SQ {
            ring.write(&Sqe::default());
        }
        ring.publish();
        until("the ring is faulted", || ring.fault().is_some());
        assert_eq!(ring.fault(), Some(FAULT_CQ_HEAD));
        stage.tally.attempts += 1;
        stage.tally.faulted += 1;
        assert_eq!(ring.taken(), 16, "eight more were taken, and the engine says so");
        wire.release(OBJECT_RING, ring.number).done();
    }
    drop(wire);
    stage.finish();
}

/// What an honest client sees of a fault: the CQEs before it, then `RingError::Faulted`; then its
/// session and its other rings go on.
#[test]
fn a_fault_as_the_client_sees_it() {
    let mut stage = Stage::with("a fault under an honest client", |config| {
        // The ring stays in the poll set, so that the engine looks without being told to.
        (config.ring_idle_ms, config.spin_us) = (60_000, 1_000_000);
    });
    let session = stage.session();
    while stage.goes_on() {
        let mut ring = session.ring(RingOptions::new(SQ, CQ)).unwrap();
        ring.push(Nop::new()).unwrap();
        assert_eq!(ring.submit_and_wait(1, None).unwrap(), 1);
        overwrite(ring.number(), AT_SQ_TAIL, 12_345);
        assert_eq!(ring.reap().unwrap().expect("the CQE before the fault").result, Ok(0));
        match ring.wait(1, Some(PATIENCE)) {
            Err(RingError::Faulted { reason }) => assert_eq!(reason, FAULT_SQ_TAIL_BEYOND),
            other => panic!("{other:?}"),
        }
        stage.tally.attempts += 1;
        stage.tally.faulted += 1;
        ring.release().unwrap();
    }
    drop(session);
    stage.finish();
}

/// Writes a word into a ring's segment, past the client that has it mapped.
fn overwrite(ring: u32, at: u64, value: u32) {
    let memory = std::fs::OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines().filter(|line| line.contains("/memfd:verbring-ring")) {
        let start = u64::from_str_radix(line.split_once('-').unwrap().0, 16).unwrap();
        let mut header = SegmentHeader::default();
        memory.read_exact_at(header.as_mut_bytes(), start).unwrap();
        if header.ring == ring {
            return memory.write_all_at(&value.to_le_bytes(), start + at).unwrap();
        }
    }
    panic!("ring {ring} is not mapped");
}
