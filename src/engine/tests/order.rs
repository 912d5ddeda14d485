//! Strict classes, slices, and the window in ops and bytes.

use super::script::{Script, Stage};
use super::world::{LIMITS, Pair, REGION_BYTES, SENDER, World, moved, outcome};
use crate::abi::{Class, Counter, Opcode, Page, Sqe};
use crate::engine::{Command, Limits, Reply};
use crate::fabric::Request;

fn held(limits: Limits) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(limits, stage.fabric(limits)), 64);
    stage.hold();
    (stage, pair)
}

fn bytes_held(stage: &Stage) -> u64 {
    stage.plan().held.iter().map(|request| u64::from(request.bytes)).sum()
}

/// The place in the order of posts of the first request at or beyond an offset.
fn place(stage: &Stage, offset: u64) -> usize {
    let at = |request: &Request| request.remote_offset == offset;
    stage.plan().taken.iter().position(at).unwrap()
}

/// One low op of 64 slices; a high op that comes at any moment goes before the next slice, so it
/// waits at most for what the window holds, plus one slice.
#[test]
fn a_high_op_overtakes_between_the_slices_of_a_low_one() {
    for moment in 0..62 {
        let limits = Limits { window_wrs: 3, window_bytes: 512, ..LIMITS };
        let (stage, mut pair) = held(limits);
        let sqe = pair.write_as(Class::Low, 0, 64 * 256);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        for _ in 0..moment {
            stage.complete(0, 0);
            pair.world.turn();
        }
        let before = stage.plan().taken.len();
        assert_eq!(before, moment + 2, "the window holds two slices");
        let sqe = pair.write_as(Class::High, 32 << 10, 256);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        stage.complete(0, 0);
        pair.world.turn();
        assert_eq!(place(&stage, 32 << 10), before, "posted next");
        stage.release();
        pair.world.audited = false;
        pair.world.settle();
        let ends: Vec<u64> = pair.world.pop(SENDER).iter().map(|cqe| cqe.user_data).collect();
        assert_eq!(ends, [1, 0]);
    }
}

#[test]
fn classes_are_served_strictly_and_in_order_within() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    let classes = [3, 0, 1, 2, 3, 1, 0, 2, 1, 3];
    for (at, &class) in (0u64..).zip(&classes) {
        let sqe = Sqe { class, ..pair.write(at * 64, 8) };
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..12 {
        pair.world.turn();
        stage.complete_all();
    }
    let order: Vec<u64> = stage.plan().taken.iter().map(|r| r.remote_offset / 64).collect();
    assert_eq!(order, [2, 5, 8, 1, 3, 6, 7, 0, 4, 9]);
}

/// A head that the window blocks holds back lower classes, even if their ops would fit.
#[test]
fn a_blocked_head_is_not_passed_by_smaller_ops() {
    let (stage, mut pair) = held(Limits { window_bytes: 300, ..LIMITS });
    for (class, at, bytes) in
        [(Class::Low, 0, 200), (Class::High, 1024, 200), (Class::Low, 2048, 10)]
    {
        let sqe = pair.write_as(class, at, bytes);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(stage.held(), 1);
    stage.complete_all();
    pair.world.turn();
    assert_eq!(place(&stage, 1024), 1);
    assert_eq!(place(&stage, 2048), 2);
}

#[test]
fn the_window_is_respected_in_ops_and_bytes_and_used_up() {
    for (window_wrs, window_bytes, size, full) in [
        (1, 1024, 100, 1),
        (3, 1024, 100, 3),
        (8, 1024, 200, 5),
        (8, 1024, 256, 4),
        (8, 1023, 256, 3),
        (8, 10, 0, 8),
        (8, 10, 10, 1),
        (8, 10, 11, 1),
    ] {
        let (stage, mut pair) = held(Limits { window_wrs, window_bytes, ..LIMITS });
        for at in 0..20 {
            let sqe = pair.write(at * 256, size);
            pair.world.push(SENDER, sqe);
        }
        pair.world.turn();
        pair.world.turn();
        for left in (0..20usize).rev() {
            assert_eq!(stage.held(), full.min(left + 1), "{window_wrs} {window_bytes} {size}");
            assert!(bytes_held(&stage) <= window_bytes || stage.held() == 1);
            stage.complete(0, 0);
            // Credits given back are used in the same turn.
            pair.world.turn();
            pair.world.turn();
        }
        assert_eq!(pair.world.pop(SENDER).len(), 20);
        pair.world.expect_rest();
    }
}

#[test]
fn rule_6_no_op_is_refused_for_being_larger_than_a_window() {
    for (slice_bytes, window_bytes) in [(256, 1), (256, 100), (1 << 20, 100), (1000, 999)] {
        let limits = Limits { slice_bytes, window_bytes, ..LIMITS };
        let mut pair = Pair::new(World::local(limits), 16);
        for opcode in [Opcode::Write, Opcode::Read] {
            let sqe = pair.op(opcode, 0, u32::try_from(REGION_BYTES).unwrap());
            let cqe = pair.world.run(SENDER, sqe);
            assert_eq!(outcome(&cqe), moved(i32::try_from(REGION_BYTES).unwrap()));
        }
        assert!(pair.world.bytes(pair.near) == pair.world.bytes(pair.target));
        pair.world.expect_rest();
    }
}

/// Slices cover an op exactly, whatever its size and place.
#[test]
fn slices_cover_an_op_exactly() {
    for bytes in [0, 1, 255, 256, 257, 511, 512, 513, 10_000] {
        let (stage, mut pair) = held(Limits { window_wrs: 64, window_bytes: 1 << 20, ..LIMITS });
        let sqe = Sqe { local_offset: 77, remote_offset: 1_111, ..pair.write(0, bytes) };
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        let requests = stage.plan().taken.clone();
        let mut at = 0;
        for request in &requests {
            let whole = at + 256 <= u64::from(bytes);
            assert_eq!((request.local_offset, request.remote_offset), (77 + at, 1_111 + at));
            assert!(request.bytes <= 256 && (!whole || request.bytes == 256));
            at += u64::from(request.bytes);
        }
        assert_eq!(at, u64::from(bytes));
        assert_eq!(requests.len(), usize::try_from(bytes.div_ceil(256).max(1)).unwrap());
        stage.release();
        pair.world.settle();
        assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(i32::try_from(bytes).unwrap()));
        let (near, far) = (pair.world.bytes(pair.near), pair.world.bytes(pair.target));
        let length = bytes as usize;
        assert_eq!(near[77..77 + length], far[1_111..1_111 + length]);
    }
}

/// Pages of a list are slices of their own; an urgent op passes between them.
#[test]
fn a_high_op_overtakes_between_the_pages_of_a_list() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    let pages: Vec<Page> =
        (0..100).map(|at| Page { local_offset: at * 64, remote_offset: at * 64 }).collect();
    let sqe = Sqe { class: Class::Low as u8, ..pair.list(Opcode::Writev, &pages, 64) };
    pair.world.push(SENDER, sqe);
    for _ in 0..50 {
        pair.world.turn();
        stage.complete_all();
    }
    let sqe = pair.write_as(Class::High, 32 << 10, 8);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    assert_eq!(place(&stage, 32 << 10), 50);
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 2);
}

/// Every wait of a head is counted, for the session whose op it was.
#[test]
fn defers_are_counted_for_whoever_waits() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    for at in 0..2 {
        let sqe = pair.write(at * 64, 8);
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..10 {
        pair.world.turn();
    }
    let token = pair.world.token();
    let session = Some(pair.world.clients[SENDER].session);
    pair.world.engine.command(Command::Stats { session, token });
    let reply = pair.world.reply(token);
    let Some(Reply::Stats { counters, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!(counters[Counter::Defers as usize], 10);
    stage.release();
    pair.world.settle();
}
