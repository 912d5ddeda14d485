//! Deadlines: an op that waits too long for its post ends with ETIME and certainly had no effect;
//! one that was posted in time is no longer bound by it.

use super::script::{Script, Stage};
use super::world::{LIMITS, Pair, SENDER, STEP_NS, World, failed, moved, outcome};
use crate::abi::{CQE_RETRYABLE, Class, Detail, Opcode, Page, SQE_SKIP_SUCCESS, Sqe, errno};
use crate::engine::Limits;

const LATE: (i32, u16, u16) = (-errno::ETIME, CQE_RETRYABLE, Detail::Deadline as u16);

fn held(limits: Limits) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(limits, stage.fabric(limits)), 64);
    stage.hold();
    (stage, pair)
}

/// Turns until `us` microseconds have passed.
fn pass_us(pair: &mut Pair<Script>, us: u64) {
    for _ in 0..us * 1_000 / STEP_NS {
        pair.world.turn();
    }
}

#[test]
fn a_deadline_in_the_queue_ends_an_op_on_time() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    let first = pair.write(0, 64);
    pair.world.push(SENDER, first);
    for us in [20, 10, 30] {
        let sqe = Sqe { arg: [us, 77], ..pair.write(64, 64) };
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let mut ends = Vec::new();
    for us in 1..40 {
        pass_us(&mut pair, 1);
        for cqe in pair.world.pop(SENDER) {
            assert_eq!(outcome(&cqe), LATE);
            ends.push((us, cqe.user_data));
        }
    }
    assert_eq!(ends, [(10, 2), (20, 1), (30, 3)], "behind a head that is not late");
    stage.release();
    pair.world.settle();
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(64));
    assert_eq!(stage.plan().taken.len(), 1, "what ends by its deadline had no effect");
    pair.world.expect_rest();
}

#[test]
fn a_deadline_is_kept_by_every_kind_of_op() {
    let pages = [64u64, 128].map(|at| Page { local_offset: at, remote_offset: at });
    for (opcode, list) in [
        (Opcode::Write, false),
        (Opcode::Read, false),
        (Opcode::Writev, true),
        (Opcode::Readv, true),
        (Opcode::FetchAdd, false),
        (Opcode::CmpSwap, false),
    ] {
        for flags in [0, SQE_SKIP_SUCCESS] {
            let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
            let first = pair.write(0, 64);
            pair.world.push(SENDER, first);
            let mut sqe = if list { pair.list(opcode, &pages, 32) } else { pair.op(opcode, 64, 9) };
            // An atomic keeps its deadline in `bytes`.
            if !matches!(opcode, Opcode::FetchAdd | Opcode::CmpSwap) {
                sqe.arg[0] |= 9;
            }
            sqe.flags = flags;
            pair.world.push(SENDER, sqe);
            pass_us(&mut pair, 9);
            assert_eq!(pair.world.pop(SENDER), []);
            pass_us(&mut pair, 1);
            assert_eq!(outcome(&pair.world.pop(SENDER)[0]), LATE, "{opcode:?}");
            stage.release();
            pair.world.settle();
            assert_eq!(stage.plan().taken.len(), 1);
            pair.world.expect_rest();
        }
    }
}

#[test]
fn a_deadline_does_not_bind_what_is_posted() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    let sqe = Sqe { arg: [5, 0], ..pair.write(0, 600) };
    pair.world.push(SENDER, sqe);
    pass_us(&mut pair, 50);
    assert_eq!(pair.world.pop(SENDER), []);
    stage.release();
    pair.world.settle();
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(600));
}

#[test]
fn a_zero_deadline_is_none_and_the_longest_does_not_overflow() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    for us in [0, 0, u64::from(u32::MAX)] {
        let sqe = Sqe { arg: [us, 0], ..pair.write(0, 64) };
        pair.world.push(SENDER, sqe);
    }
    pass_us(&mut pair, 1);
    pair.world.now_ns += u64::from(u32::MAX) * 1_000;
    assert_eq!(pair.world.pop(SENDER), []);
    pass_us(&mut pair, 2);
    let cqes = pair.world.pop(SENDER);
    assert_eq!((cqes.len(), outcome(&cqes[0]), cqes[0].user_data), (1, LATE, 2));
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 2);
}

/// The sweep passes over all records in a bounded number of turns.
#[test]
fn a_deadline_behind_a_blocked_head_is_met_within_a_sweep() {
    let limits = Limits { records: 2048, window_wrs: 1, intake_budget: 64, ..LIMITS };
    let (stage, mut pair) = held(limits);
    pair.world.audited = false;
    let session = pair.world.clients[SENDER].session;
    let crowd = pair.world.ring(session, 1024, 1024);
    for at in 0..900u64 {
        let class = if at % 2 == 0 { Class::Low } else { Class::Medium };
        let arg = [if at % 3 == 0 { 40 } else { 0 }, 0];
        let sqe = Sqe { arg, ..pair.write_as(class, at * 64, 8) };
        pair.world.push(crowd, sqe);
    }
    pass_us(&mut pair, 60);
    let sweep_turns = u64::from(limits.records.div_ceil(256));
    pass_us(&mut pair, sweep_turns);
    let cqes = pair.world.pop(crowd);
    assert!(cqes.iter().all(|cqe| outcome(cqe) == LATE));
    // SQE 0 is not the one that was posted: SQE 1 is of a higher class.
    assert_eq!(cqes.len(), 300);
    pair.world.audited = true;
    pair.world.turn();
    pair.world.audited = false;
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(crowd).len(), 600);
    let none = failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline);
    assert_eq!(none, LATE);
    pair.world.expect_rest();
}
