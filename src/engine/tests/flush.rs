//! Rule 9: FLUSH covers the session's own ops on a region taken before it; with REVOKE the region's
//! exports end, new ops are refused, and it waits for what importers have posted.

use super::script::{Script, Stage};
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, World, arm, cancel, failed, flush, moved, nop, outcome, revoke,
};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_RETRYABLE, Detail, Opcode, Page, RIGHTS_ALL, SQE_SKIP_SUCCESS, Sqe, errno,
};
use crate::engine::{Event, Limits};
use crate::ids::RegionId;

fn held(limits: Limits) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(limits, stage.fabric(limits)), 64);
    stage.hold();
    (stage, pair)
}

/// True once SQE `number` of a client has ended.
fn ended(pair: &mut Pair<Script>, client: usize, number: u64) -> bool {
    let cqes = pair.world.pop(client);
    cqes.iter().any(|cqe| cqe.user_data == number)
}

#[test]
fn rule_9_flush_waits_for_earlier_ops_and_only_for_those() {
    // The op that is waited for names the region as its near side, through an import, or as what
    // is behind an import of its own.
    for through in ["near", "import", "target"] {
        let (stage, mut pair) = held(LIMITS);
        let session = pair.world.clients[SENDER].session;
        let own = pair.world.import(session, pair.near);
        let other = pair.world.region(session, 4096);
        let mut earlier = pair.write(0, 64);
        let region = match through {
            "near" => pair.near,
            "import" => pair.far,
            _ => {
                earlier = Sqe { local_region: other.0, remote_region: own.0, ..earlier };
                pair.near
            }
        };
        pair.world.push(SENDER, earlier);
        pair.world.push(SENDER, flush(region));
        let younger = pair.write(4096, 64);
        pair.world.push(SENDER, younger);
        pair.world.turn();
        assert_eq!(stage.held(), 2);
        // The younger one ends first, and changes nothing.
        stage.complete(1, 0);
        pair.world.turn();
        assert!(!ended(&mut pair, SENDER, 1), "{through}");
        let younger = pair.write(8192, 64);
        pair.world.push(SENDER, younger);
        pair.world.turn();
        stage.complete(0, 0);
        pair.world.turn();
        let cqes = pair.world.pop(SENDER);
        let ends: Vec<u64> = cqes.iter().map(|cqe| cqe.user_data).collect();
        assert_eq!(ends, [0, 1], "{through}: the younger one is still posted");
        assert_eq!(outcome(&cqes[1]), (0, 0, 0));
        stage.release();
        pair.world.settle();
    }
}

#[test]
fn rule_9_flush_covers_all_rings_of_its_session_and_no_other_session() {
    let (stage, mut pair) = held(LIMITS);
    let session = pair.world.clients[SENDER].session;
    let second = pair.world.ring(session, 16, 16);
    let receiver = pair.world.clients[RECEIVER].session;
    let back = pair.world.import(receiver, pair.near);
    let strange = Sqe { local_region: pair.target.0, remote_region: back.0, ..pair.write(0, 64) };
    pair.world.push(RECEIVER, strange);
    let sqe = pair.write(0, 64);
    pair.world.push(second, sqe);
    pair.world.turn();
    pair.world.push(SENDER, flush(pair.near));
    pair.world.turn();
    assert!(!ended(&mut pair, SENDER, 0));
    let mine = stage.plan().held.iter().position(|r| r.local == pair.near.index()).unwrap();
    stage.complete(mine, 0);
    pair.world.turn();
    assert!(ended(&mut pair, SENDER, 0), "a stranger's op on the region is not waited for");
    stage.release();
    pair.world.settle();
}

#[test]
fn rule_9_flush_ignores_other_regions_arms_and_flushes() {
    let (stage, mut pair) = held(LIMITS);
    let session = pair.world.clients[SENDER].session;
    let other = pair.world.region(session, 4096);
    let busy = Sqe { local_region: other.0, ..pair.write(0, 64) };
    pair.world.push(SENDER, busy);
    pair.world.push(SENDER, arm(pair.near, 4));
    // This one waits for the op on `other`, through the import.
    pair.world.push(SENDER, flush(pair.far));
    pair.world.push(SENDER, flush(pair.near));
    pair.world.push(SENDER, flush(pair.near));
    (0..4).for_each(|_| {
        pair.world.turn();
    });
    let ends: Vec<u64> = pair.world.pop(SENDER).iter().map(|cqe| cqe.user_data).collect();
    assert_eq!(ends, [3, 4]);
    stage.release();
    pair.world.settle();
    assert!(ended(&mut pair, SENDER, 2));
}

/// The scan is bounded a turn, and starts anywhere: many ops, many flushes.
#[test]
fn rule_9_flush_in_a_crowd() {
    let limits = Limits { records: 2048, window_wrs: 64, intake_budget: 64, ..LIMITS };
    let (stage, mut pair) = held(limits);
    pair.world.audited = false;
    let session = pair.world.clients[SENDER].session;
    let crowd = pair.world.ring(session, 1024, 1024);
    for at in 0..900 {
        let sqe = Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(at * 64, 8) };
        pair.world.push(crowd, sqe);
    }
    (0..30).for_each(|_| {
        pair.world.turn();
    });
    for _ in 0..20 {
        pair.world.push(SENDER, flush(pair.near));
        let sqe = Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(0, 8) };
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..14 {
        pair.world.turn();
        assert_eq!(pair.world.pop(SENDER), []);
        stage.complete_all();
    }
    // A FLUSH looks at every record, 256 a turn, and there are others.
    (0..8 * 20 + 20).for_each(|_| {
        pair.world.turn();
        stage.complete_all();
    });
    assert_eq!(pair.world.pop(SENDER).len(), 20);
    pair.world.audited = true;
    stage.release();
    pair.world.settle();
    pair.world.expect_rest();
}

#[test]
fn rule_9_revoke_refuses_new_ops_and_ends_queued_ones() {
    let limits = Limits { window_wrs: 1, ..LIMITS };
    let (stage, mut pair) = held(limits);
    for at in 0..3 {
        let sqe = pair.write(at * 64, 64);
        pair.world.push(SENDER, sqe);
    }
    let pages = [64u64, 128].map(|at| Page { local_offset: at, remote_offset: at });
    let sqe = pair.list(Opcode::Readv, &pages, 32);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    pair.world.push(RECEIVER, revoke(pair.target));
    pair.world.turn();
    assert_eq!(pair.world.events, [Event::Revoked { region: pair.target }]);
    let sqe = pair.write(512, 64);
    pair.world.push(SENDER, sqe);
    (0..4).for_each(|_| {
        pair.world.turn();
    });
    assert_eq!(pair.world.pop(RECEIVER), [], "an importer's op is with the fabric");
    let stale = failed(errno::ESTALE, 0, Detail::Revoked);
    let cqes = pair.world.pop(SENDER);
    let refused: Vec<bool> = cqes.iter().map(|cqe| cqe.record == 0).collect();
    assert!(cqes.iter().all(|cqe| outcome(cqe) == stale), "{cqes:?}");
    assert_eq!(refused.iter().filter(|&&refused| refused).count(), 1, "the one that came later");
    assert_eq!(cqes.len(), 4);
    stage.complete_all();
    (0..3).for_each(|_| {
        pair.world.turn();
    });
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(64), "posted before it was revoked");
    assert_eq!(outcome(&pair.world.pop(RECEIVER)[0]), (0, 0, 0));
    assert_eq!(stage.plan().taken.len(), 1, "nothing else was posted");
    pair.world.expect_rest();
}

#[test]
fn rule_9_a_half_posted_op_is_not_posted_further_after_revoke() {
    let (stage, mut pair) = held(Limits { window_wrs: 2, ..LIMITS });
    let sqe = pair.write(0, 2048);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    pair.world.push(RECEIVER, revoke(pair.target));
    pair.world.turn();
    stage.complete(0, 0);
    (0..3).for_each(|_| {
        pair.world.turn();
    });
    assert_eq!((pair.world.pop(SENDER), pair.world.pop(RECEIVER)), (vec![], vec![]));
    stage.complete(0, 0);
    (0..3).for_each(|_| {
        pair.world.turn();
    });
    let stale = failed(errno::ESTALE, 0, Detail::Revoked);
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), stale);
    assert_eq!(outcome(&pair.world.pop(RECEIVER)[0]), (0, 0, 0));
    assert_eq!(stage.plan().taken.len(), 2);
    pair.world.expect_rest();
}

#[test]
fn rule_9_a_region_can_be_offered_again_after_revoke() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let old = pair.far;
    pair.world.push(RECEIVER, revoke(pair.target));
    pair.world.settle();
    assert_eq!(outcome(&pair.world.pop(RECEIVER)[0]), (0, 0, 0));
    let session = pair.world.clients[SENDER].session;
    pair.far = pair.world.import(session, pair.target);
    let sqe = pair.write(0, 64);
    assert_eq!(outcome(&pair.world.run(SENDER, sqe)), moved(64));
    let sqe = Sqe { remote_region: old.0, ..sqe };
    let stale = failed(errno::ESTALE, 0, Detail::Revoked);
    assert_eq!(outcome(&pair.world.run(SENDER, sqe)), stale, "the old import stays stale");
    // Flushing what is stale is no mistake.
    assert_eq!(outcome(&pair.world.run(SENDER, flush(old))), (0, 0, 0));
}

/// A place in the region table is used again, even under the same id once generations have gone
/// round: imports of the former region must not reach the new one.
#[test]
fn rule_9_an_import_does_not_outlive_its_region() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let receiver = pair.world.clients[RECEIVER].session;
    for _ in 0..3 {
        let token = pair.world.remove(pair.target);
        pair.world.settle();
        assert!(pair.world.reply(token).is_some());
        pair.world.region_again(pair.target, receiver, 4096);
        let untouched = pair.world.bytes(pair.target);
        let sqe = pair.write(0, 64);
        let stale = failed(errno::ESTALE, 0, Detail::Revoked);
        assert_eq!(outcome(&pair.world.run(SENDER, sqe)), stale);
        assert!(untouched == pair.world.bytes(pair.target));
    }
}

#[test]
fn an_import_of_what_is_not_there_is_refused() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let session = pair.world.clients[SENDER].session;
    for target in [RegionId::new(2, pair.target.index()), RegionId::new(1, 60)] {
        let refused = pair.world.import_of(session, target, RIGHTS_ALL);
        assert_eq!(refused, Err((errno::ESTALE, Detail::Revoked)));
    }
}

#[test]
fn a_flush_taken_back_leaves_no_trace() {
    let (stage, mut pair) = held(LIMITS);
    let sqe = pair.write(0, 64);
    pair.world.push(SENDER, sqe);
    for sqe in [flush(pair.near), revoke(pair.near), flush(pair.near)] {
        pair.world.push(SENDER, sqe);
    }
    for number in [2, 1] {
        pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, number));
    }
    pair.world.turn();
    let back = failed(errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled);
    let cqes = pair.world.pop(SENDER);
    assert_eq!((outcome(&cqes[0]), outcome(&cqes[2])), (back, back));
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 2, "the op, and the last FLUSH");
    pair.world.push(SENDER, nop());
    pair.world.settle();
    pair.world.expect_rest();
}
