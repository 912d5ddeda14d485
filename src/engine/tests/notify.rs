//! Rule 8: ARM n reserves n CQ slots for notifications of a region; without a free one they merge
//! (exact count, last immediate) and appear at the next ARM; senders never wait for a receiver.

use super::script::{BROKEN, Stage};
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, World, arm, cancel, failed, flush, moved, nop, outcome,
};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_MORE, CQE_NOTIFY, CQE_RETRYABLE, Cqe, Detail, Opcode, SQE_NOTIFY,
    SQE_SKIP_SUCCESS, Sqe, errno,
};
use crate::engine::{Reply, Wind};
use crate::fabric::Local;
use crate::ring::Word;
use crate::seeds::{Random, each_seed};

fn pair() -> Pair<Local> {
    Pair::new(World::local(LIMITS), 16)
}

/// Sends notifications, one after another.
fn tell(pair: &mut Pair<Local>, immediates: std::ops::Range<u32>) {
    for immediate in immediates {
        let sqe = pair.tell(immediate);
        assert_eq!(outcome(&pair.world.run(SENDER, sqe)), moved(0), "senders never wait");
    }
}

/// What NOTIFY CQEs say: count, immediate, whether more follow.
fn heard(cqes: &[Cqe]) -> Vec<(i32, u32, bool)> {
    let said = |cqe: &Cqe| {
        assert!(cqe.flags & CQE_NOTIFY != 0 && cqe.record != 0, "{cqe:?}");
        assert_eq!((cqe.flags & !(CQE_NOTIFY | CQE_MORE), cqe.detail, cqe.service), (0, 0, 0));
        (cqe.res, cqe.queued, cqe.flags & CQE_MORE != 0)
    };
    cqes.iter().map(said).collect()
}

fn push_arm(pair: &mut Pair<Local>, count: u32) {
    let sqe = arm(pair.target, count);
    pair.world.push(RECEIVER, sqe);
    pair.world.turn();
}

#[test]
fn rule_8_an_arm_hears_each_of_its_notifications() {
    let mut pair = pair();
    push_arm(&mut pair, 3);
    tell(&mut pair, 10..13);
    let cqes = pair.world.pop(RECEIVER);
    assert_eq!(heard(&cqes), [(1, 10, true), (1, 11, true), (1, 12, false)]);
    assert!(cqes.iter().all(|cqe| cqe.user_data == 0 && cqe.record == cqes[0].record));
    pair.world.expect_rest();
}

#[test]
fn rule_8_without_an_arm_notifications_merge() {
    let mut pair = pair();
    tell(&mut pair, 0..50);
    assert_eq!(pair.world.pop(RECEIVER), []);
    push_arm(&mut pair, 2);
    assert_eq!(heard(&pair.world.pop(RECEIVER)), [(50, 49, true)], "exact count, last immediate");
    tell(&mut pair, 70..71);
    assert_eq!(heard(&pair.world.pop(RECEIVER)), [(1, 70, false)]);
    tell(&mut pair, 80..83);
    push_arm(&mut pair, 1);
    assert_eq!(heard(&pair.world.pop(RECEIVER)), [(3, 82, false)], "the merged ones end it");
    push_arm(&mut pair, 1);
    assert_eq!(pair.world.pop(RECEIVER), [], "and are told once");
}

#[test]
fn rule_8_arms_are_served_in_order_over_rings() {
    let mut pair = pair();
    let session = pair.world.clients[RECEIVER].session;
    let second = pair.world.ring(session, 4, 4);
    push_arm(&mut pair, 2);
    let sqe = arm(pair.target, 1);
    pair.world.push(second, sqe);
    pair.world.turn();
    push_arm(&mut pair, 1);
    tell(&mut pair, 0..5);
    let first = heard(&pair.world.pop(RECEIVER));
    assert_eq!(first, [(1, 0, true), (1, 1, false), (1, 3, false)]);
    assert_eq!(heard(&pair.world.pop(second)), [(1, 2, false)]);
    push_arm(&mut pair, 1);
    assert_eq!(heard(&pair.world.pop(RECEIVER)), [(1, 4, false)]);
}

#[test]
fn rule_8_an_arm_beyond_the_cq_is_e2big_and_one_of_all_slots_is_not() {
    let mut pair = pair();
    let sqe = arm(pair.target, 17);
    let cqe = pair.world.run(RECEIVER, sqe);
    assert_eq!((cqe.res, cqe.detail, cqe.record), (-errno::E2BIG, Detail::Bytes as u16, 0));
    push_arm(&mut pair, 16);
    tell(&mut pair, 0..16);
    assert_eq!(pair.world.pop(RECEIVER).len(), 16);
    pair.world.expect_rest();
}

#[test]
fn rule_8_every_data_op_can_notify_and_only_a_success_does() {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 16);
    stage.hold();
    let opcodes = [Opcode::Write, Opcode::Read, Opcode::FetchAdd, Opcode::CmpSwap];
    for (opcode, errno) in opcodes.into_iter().flat_map(|op| [(op, 0), (op, BROKEN)]) {
        let flags = SQE_NOTIFY | SQE_SKIP_SUCCESS;
        let op = pair.op(opcode, 64, 8);
        // The deadline of an atomic stands where others have their bytes.
        let sqe = Sqe { flags, immediate: 9, ..op };
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        stage.complete(0, errno);
        pair.world.turn();
        assert_eq!(pair.world.pop(SENDER).len(), usize::from(errno != 0));
    }
    let target = pair.target;
    pair.world.push(RECEIVER, arm(target, 1));
    pair.world.turn();
    assert_eq!(heard(&pair.world.pop(RECEIVER)), [(4, 9, false)]);
}

/// Not before the last byte is placed.
#[test]
fn rule_7_notify_follows_all_bytes_of_its_own_op() {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 16);
    stage.hold();
    let target = pair.target;
    pair.world.push(RECEIVER, arm(target, 1));
    let sqe = Sqe { flags: SQE_NOTIFY, immediate: 3, ..pair.write(0, 1024) };
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    while stage.held() > 0 {
        assert_eq!(pair.world.pop(RECEIVER), []);
        stage.complete(stage.held() / 2, 0);
        pair.world.turn();
    }
    assert_eq!(heard(&pair.world.pop(RECEIVER)), [(1, 3, false)]);
    assert!(pair.world.bytes(pair.near)[..1024] == pair.world.bytes(pair.target)[..1024]);
}

#[test]
fn rule_8_a_cancelled_arm_gives_its_slots_back() {
    for told in 0..3 {
        let mut pair = pair();
        push_arm(&mut pair, 16);
        tell(&mut pair, 0..told);
        let token = pair.world.query(RECEIVER, CANCEL_BY_NUMBER, 0, true);
        pair.world.turn();
        assert!(matches!(pair.world.reply(token), Some(Reply::Cancelled { .. })));
        let cqes = pair.world.pop(RECEIVER);
        let (last, before) = cqes.split_last().unwrap();
        assert_eq!(heard(before), (0..told).map(|at| (1, at, true)).collect::<Vec<_>>());
        assert_eq!(outcome(last), failed(errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled));
        tell(&mut pair, 40..42);
        push_arm(&mut pair, 1);
        assert_eq!(heard(&pair.world.pop(RECEIVER)), [(2, 41, false)]);
        pair.world.expect_rest();
    }
}

#[test]
fn rule_8_releasing_a_region_ends_its_arms() {
    let mut pair = pair();
    push_arm(&mut pair, 3);
    push_arm(&mut pair, 2);
    tell(&mut pair, 0..1);
    let token = pair.world.remove(pair.target);
    pair.world.settle();
    assert!(matches!(pair.world.reply(token), Some(Reply::RegionGone { .. })));
    let cqes = pair.world.pop(RECEIVER);
    assert_eq!(heard(&cqes[..1]), [(1, 0, true)]);
    for cqe in &cqes[1..] {
        assert_eq!(outcome(cqe), failed(errno::ECANCELED, 0, Detail::Released));
    }
    assert_eq!(cqes.len(), 3);
    let sqe = pair.tell(1);
    let cqe = pair.world.run(SENDER, sqe);
    assert_eq!(outcome(&cqe), failed(errno::ESTALE, 0, Detail::Revoked));
    pair.world.expect_rest();
}

/// A receiver that never reads, never arms, or is gone: its sender goes on.
#[test]
fn rule_8_senders_never_wait_for_a_receiver() {
    let mut pair = pair();
    push_arm(&mut pair, 4);
    for _ in 0..16 {
        let _ = pair.world.try_push(RECEIVER, nop());
    }
    pair.world.settle();
    tell(&mut pair, 0..1_000);
    let ready = pair.world.clients[RECEIVER].end.observe_tail().unwrap();
    assert_eq!(ready, 16, "a CQ full of CQEs that nobody reads");
    let token = pair.world.wind(RECEIVER, Wind::Cancel);
    pair.world.settle();
    assert!(matches!(pair.world.reply(token), Some(Reply::RingGone { .. })));
    tell(&mut pair, 0..10);
    pair.world.expect_rest();
}

/// DRAIN and FLUSH pass over ARM.
#[test]
fn rule_8_flush_passes_over_an_arm() {
    let mut pair = pair();
    push_arm(&mut pair, 2);
    let sqe = flush(pair.target);
    assert_eq!(outcome(&pair.world.run(RECEIVER, sqe)), (0, 0, 0));
    let sqe = cancel(CANCEL_BY_NUMBER, 0);
    pair.world.push(RECEIVER, sqe);
    pair.world.settle();
    assert_eq!(pair.world.pop(RECEIVER).len(), 2);
}

/// A notification that an ARM of a broken ring would have taken was lost: the region's owner still
/// has a count to keep, on its other rings.
#[test]
fn rule_8_a_broken_ring_loses_no_notification() {
    for live_arm in [false, true] {
        for armed in [1, 5] {
            let stage = Stage::new();
            let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 16);
            let session = pair.world.clients[RECEIVER].session;
            let second = pair.world.ring(session, 8, 8);
            stage.hold();
            let target = pair.target;
            pair.world.push(RECEIVER, arm(target, armed));
            if live_arm {
                pair.world.turn();
                pair.world.push(second, arm(target, 2));
            }
            for immediate in 0..3 {
                let sqe = pair.tell(immediate);
                pair.world.push(SENDER, sqe);
            }
            pair.world.turn();
            // The ring breaks at this turn's intake; completions of the next come before its ARM
            // is taken back.
            let tail = pair.world.clients[RECEIVER].load(Word::SqTail);
            pair.world.clients[RECEIVER].store(Word::SqTail, tail.wrapping_sub(1));
            pair.world.turn();
            assert_eq!(pair.world.faults().len(), 1);
            stage.complete_all();
            pair.world.turn();
            pair.world.turn();
            let told = heard(&pair.world.pop(second));
            let merged = [(3, 2, true)];
            assert_eq!(told, if live_arm { &merged[..] } else { &[] }, "armed for {armed}");
            pair.world.push(second, arm(target, 1));
            let sqe = pair.tell(7);
            pair.world.push(SENDER, sqe);
            stage.release();
            pair.world.settle();
            let told = heard(&pair.world.pop(second));
            let must = if live_arm { (1, 7, false) } else { (3, 2, false) };
            assert_eq!(told, [must], "armed for {armed}");
        }
    }
}

/// Any mixture of telling and arming: what is heard is what was told.
#[test]
fn rule_8_counts_are_exact() {
    each_seed(20, |seed| {
        let mut random = Random::new(seed);
        let mut pair = pair();
        let (mut told, mut counted, mut open, mut last) = (0, 0, 0, 0);
        for _ in 0..300 {
            if random.chance(60) {
                last = random.below32(1_000);
                let sqe = pair.tell(last);
                pair.world.run(SENDER, sqe);
                told += 1;
            } else if open < 8 {
                let count = 1 + random.below32(4);
                push_arm(&mut pair, count);
                open += count;
            }
            for (count, immediate, _) in heard(&pair.world.pop(RECEIVER)) {
                counted += count;
                open -= 1;
                assert!(counted < told || immediate == last);
            }
            assert!(counted == told || open == 0, "told {told}, heard {counted}, armed {open}");
        }
        assert!(counted > 50);
    });
}
