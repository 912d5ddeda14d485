//! What an outage looks like from a ring: time-outs in the queue and on the wire, ops that are
//! taken back or left behind while a queue pair has them, barriers, and clocks that leap.

use super::two::{ME, Two, add, rails_of, transfer};
use super::world::{STEP_NS, cancel, failed, flush, outcome};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Counter, Detail, FABRIC_VERBS,
    Opcode, RIGHTS_ALL, SQE_NOTIFY, Sqe, errno,
};
use crate::engine::{Command, Reply, Wind};
use crate::fabric::qp::RailState;
use crate::fabric::qp::provider::WcStatus;
use crate::fabric::qp::sim::WorkPlan;
use crate::ids::RegionId;

const RAIL: u16 = 1;

struct Route {
    two: Two,
    ids: (RegionId, RegionId),
    target: RegionId,
}

fn route() -> Route {
    let mut two = Two::new(1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [RAIL; 3]);
    Route { two, ids: (near, far), target }
}

fn carried(bytes: i32) -> (i32, u16, u16) {
    (bytes, 0, u16::from(FABRIC_VERBS) << 8 | RAIL)
}

/// What expires before it is posted had no effect and says so; what the wire does not answer may
/// have had one, and says that.
#[test]
fn x2_a_timeout_in_the_queue_is_etime_and_one_on_the_wire_etimedout() {
    let Route { mut two, ids, .. } = route();
    two.served = false;
    two.net.break_pair(two.join.number(RAIL, 0));
    two.steps(40);
    assert_ne!(two.state(0, RAIL), RailState::Ready);
    two.push(0, Sqe { arg: [20, 0], ..transfer(Opcode::Write, ids, 0, 64) });
    two.steps(1_100);
    let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
    assert_eq!(ends, [failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline)]);
    two.served = true;
    two.settle();
    // The answer to an atomic that was carried out never comes.
    let number = two.join.number(RAIL, 0);
    let status = WcStatus::RetryExceeded;
    two.net.plan_work(number, WorkPlan { after: 0, status, effect: true });
    let wire = failed(errno::ETIMEDOUT, CQE_FLUSHED | CQE_MAYBE_DONE, Detail::Wire);
    assert_eq!(outcome(&two.run(0, add(ids, 0, 1))), wire);
    two.expect_rest();
}

/// A completion that is never delivered: the op ends once both ends are quiet, and not before.
#[test]
fn f08_an_op_whose_completion_is_lost_ends_as_timed_out() {
    let Route { mut two, ids, .. } = route();
    two.net.lose_completions(two.join.number(RAIL, 0), 1);
    two.push(0, add(ids, 0, 1));
    two.steps(20);
    assert_eq!(two.pop(0), []);
    // Time goes faster: the device's own is not waited for, only ours.
    for _ in 0..20 {
        for world in &mut two.worlds {
            world.now_ns += super::two::CONFIG.lost_ns / 4;
        }
        two.step();
    }
    two.settle();
    let cqes = two.pop(0);
    let wire = failed(errno::ETIMEDOUT, CQE_FLUSHED | CQE_MAYBE_DONE, Detail::Wire);
    assert_eq!(cqes.iter().map(outcome).collect::<Vec<_>>(), [wire]);
    assert_eq!(rails_of(&mut two.worlds[0]).counts().silent, 1);
    assert_eq!(outcome(&two.run(0, transfer(Opcode::Write, ids, 64, 64))), carried(64));
    two.expect_rest();
}

/// What is with a queue pair cannot be taken back, and nobody on it notices that it was tried.
#[test]
fn f16_an_op_that_a_queue_pair_has_is_not_taken_back_and_no_neighbour_notices() {
    let Route { mut two, ids, .. } = route();
    two.net.delay(two.join.number(RAIL, 0), 50_000);
    let posted: Vec<_> =
        (0..3).map(|at| two.push(0, transfer(Opcode::Write, ids, at * 1024, 200))).collect();
    two.steps(3);
    two.push(0, Sqe { user_data: 77, ..cancel(CANCEL_BY_NUMBER, posted[1]) });
    two.steps(3);
    let answer: Vec<_> = two.pop(0).iter().map(|cqe| (cqe.user_data, cqe.res)).collect();
    assert_eq!(answer, [(77, -errno::EALREADY)]);
    two.settle();
    assert_eq!(two.pop(0).iter().map(outcome).collect::<Vec<_>>(), [carried(200); 3]);
    assert_eq!(rails_of(&mut two.worlds[0]).counts().degraded, 0);
    two.expect_rest();
}

/// A client is killed while a queue pair works for it: what was queued ends, what was posted is
/// waited for, and only then its memory is let go.
#[test]
fn f17_a_dead_clients_memory_stays_until_its_queue_pair_is_done_with_it() {
    for fails in [false, true] {
        let Route { mut two, ids, .. } = route();
        let number = two.join.number(RAIL, 0);
        two.net.delay(number, 50_000);
        for at in 0..20 {
            two.push(0, transfer(Opcode::Write, ids, at * 1024, 900));
        }
        two.steps(4);
        assert!(two.net.pending(number) > 0);
        let ring = two.worlds[0].wind(ME, Wind::Cancel);
        let [own, import] = [ids.0, ids.1].map(|region| two.worlds[0].remove(region));
        if fails {
            two.net.break_pair(number);
        }
        for _ in 0..4_000 {
            two.step();
            let open = two.worlds[0].engine.posts.open_posts().count();
            for token in [own, import] {
                let gone = two.worlds[0].reply(token);
                assert!(gone.is_none() || open == 0, "let go while {open} are in flight");
                if let Some(reply) = gone {
                    assert!(matches!(reply, Reply::RegionGone { .. }), "{reply:?}");
                }
            }
        }
        assert!(matches!(two.worlds[0].reply(ring), Some(Reply::RingGone { .. })));
        let left: Vec<_> = two.worlds[0].engine.regions.iter().filter_map(|it| it.id).collect();
        assert_eq!(left, [], "nothing of it is left");
        two.expect_rest();
        assert_eq!(two.state(0, RAIL), RailState::Ready, "the rail serves others");
    }
}

/// The bytes are in place and the notification is not: the op failed, and its bytes are counted.
#[test]
fn f15_bytes_that_arrived_are_counted_though_their_notification_failed() {
    let notification = (1, WcStatus::RemoteOperation, 64, (errno::EIO, CQE_MAYBE_DONE));
    let data = (0, WcStatus::RemoteAccess, 0, (errno::EACCES, 0));
    for (after, status, bytes, (errno, flags)) in [notification, data] {
        let Route { mut two, ids, target } = route();
        let plan = WorkPlan { after, status, effect: false };
        two.net.plan_work(two.join.number(RAIL, 0), plan);
        let sqe = transfer(Opcode::Write, ids, 0, 64);
        let cqe = two.run(0, Sqe { flags: SQE_NOTIFY, immediate: 1, ..sqe });
        assert_eq!(outcome(&cqe), failed(errno, flags, Detail::Wire));
        let token = two.told(0, |token| Command::Stats { session: None, token });
        let reply = two.worlds[0].reply(token);
        let Some(Reply::Stats { counters, .. }) = reply else { panic!("{reply:?}") };
        assert_eq!(counters[Counter::Bytes as usize], bytes);
        let landed = two.worlds[0].bytes(ids.0)[..64] == two.worlds[1].bytes(target)[..64];
        assert_eq!(landed, bytes > 0);
        two.expect_rest();
    }
}

/// FLUSH is answered when no card touches the region any more, also where packets land late.
#[test]
fn x3_a_barrier_waits_for_what_a_queue_pair_may_still_touch() {
    for fails in [false, true] {
        let Route { mut two, ids, target } = route();
        let number = two.join.number(RAIL, 0);
        two.net.land_late(true);
        two.net.delay(number, 40_000);
        for at in 0..6 {
            two.push(0, add(ids, at * 8, 1));
        }
        two.steps(3);
        let barrier = two.push(0, Sqe { user_data: 99, ..flush(ids.0) });
        if fails {
            two.net.break_pair(number);
        }
        let mut seen = None;
        for _ in 0..4_000 {
            two.step();
            if two.pop(0).iter().any(|cqe| cqe.user_data == 99) {
                seen = Some((two.worlds[0].bytes(ids.0), two.worlds[1].bytes(target)));
                assert_eq!(two.net.pending(number), 0, "SQE {barrier}");
                break;
            }
        }
        let (near, far) = seen.expect("an answer");
        two.settle();
        two.steps(500);
        assert!(two.worlds[0].bytes(ids.0) == near, "an answer landed after the barrier");
        assert!(two.worlds[1].bytes(target) == far, "a packet landed after the barrier");
        two.expect_rest();
    }
}

/// An engine that makes no turn for 100 ms goes on where it was: only deadlines have passed.
#[test]
fn f26_an_engine_that_stood_still_for_100_ms_goes_on_where_it_was() {
    for at in 0..30 {
        let Route { mut two, ids, .. } = route();
        for n in 0..10 {
            let deadline_us = if n % 2 == 0 { 0 } else { 50_000 };
            let sqe = transfer(Opcode::Write, ids, n * 2048, 1500);
            two.push(0, Sqe { arg: [deadline_us, 0], ..sqe });
        }
        two.steps(at);
        two.net.advance(100_000_000);
        for world in &mut two.worlds {
            world.now_ns += 100_000_000;
        }
        two.settle();
        let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
        assert_eq!(ends.len(), 10);
        let late = failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline);
        assert!(ends.iter().all(|end| *end == carried(1500) || *end == late), "{ends:?}");
        assert!(ends.iter().filter(|end| **end == late).count() <= 5);
        assert_eq!(rails_of(&mut two.worlds[0]).counts().degraded, 0);
        two.expect_rest();
    }
}

/// The host gives monotonic time. Should it run back or leap all the same, ops end once, and as
/// they would.
#[test]
fn f27_a_clock_that_runs_back_or_leaps_breaks_nothing() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let Route { mut two, ids, .. } = route();
    two.worlds[0].now_ns += HOUR_NS;
    two.step();
    for (round, leap) in (0..).zip([HOUR_NS, 0, 7 * HOUR_NS, 1, 24 * HOUR_NS]) {
        for at in 0..12 {
            two.push(0, transfer(Opcode::Write, ids, at * 1024, 700));
        }
        // Some are queued, some are with the queue pair.
        two.steps(2 + round);
        let world = &mut two.worlds[0];
        world.now_ns = if round % 2 == 0 { world.now_ns + leap } else { STEP_NS };
        two.settle();
        let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
        assert_eq!(ends, [carried(700); 12], "round {round}");
    }
    assert_eq!(rails_of(&mut two.worlds[0]).counts().degraded, 0);
    two.expect_rest();
}
