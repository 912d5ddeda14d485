//! Rule 4: a final CQE comes only when no hardware can still touch the op's buffers, whatever
//! order completions come in, and however often.

use super::script::{BROKEN, Script, Stage};
use super::world::{LIMITS, Pair, SENDER, World, moved, outcome};
use crate::abi::{Cqe, Opcode};
use crate::engine::Reply;
use crate::fabric::Done;

fn held() -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 16);
    stage.hold();
    (stage, pair)
}

fn numbers(cqes: &[Cqe]) -> Vec<u64> {
    cqes.iter().map(|cqe| cqe.user_data).collect()
}

#[test]
fn rule_4_the_last_slice_ends_an_op() {
    for last in 0..4 {
        let (stage, mut pair) = held();
        let sqe = pair.write(0, 1024);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        assert_eq!(stage.held(), 4);
        // Slice `last` completes last; the others in descending order.
        for at in (0..4).rev().filter(|&at| at != last) {
            stage.complete(at, 0);
            pair.world.turn();
            assert_eq!(pair.world.pop(SENDER), []);
        }
        stage.complete(0, 0);
        pair.world.turn();
        assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(1024));
        assert!(pair.world.bytes(pair.near)[..1024] == pair.world.bytes(pair.target)[..1024]);
        pair.world.expect_rest();
    }
}

#[test]
fn rule_4_a_failed_op_ends_when_its_other_slices_are_back() {
    let (stage, mut pair) = held();
    // Two slices more than the window holds.
    let sqe = pair.write(0, 1536);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    stage.complete(2, BROKEN);
    pair.world.turn();
    assert_eq!(stage.held(), 3, "nothing more is posted of an op that failed");
    for left in (0..3).rev() {
        assert_eq!(pair.world.pop(SENDER), [], "{left} slices are with the fabric");
        stage.complete(left, 0);
        pair.world.turn();
    }
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), (-BROKEN, 0, 0));
    assert_eq!(stage.plan().taken.len(), 4);
    pair.world.expect_rest();
}

#[test]
fn rule_4_the_first_error_is_the_one_reported() {
    let (stage, mut pair) = held();
    let sqe = pair.write(0, 768);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    for errno in [7, 9, 0] {
        stage.complete(0, errno);
        pair.world.turn();
    }
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), (-7, 0, 0));
}

#[test]
fn rule_4_ops_end_in_the_order_of_their_completions() {
    let (stage, mut pair) = held();
    for at in 0..4 {
        let opcode = if at % 2 == 0 { Opcode::Write } else { Opcode::Read };
        let sqe = pair.op(opcode, at * 64, 64);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    for (at, number) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        stage.complete(at, 0);
        pair.world.turn();
        assert_eq!(numbers(&pair.world.pop(SENDER)), [number]);
    }
    pair.world.expect_rest();
}

/// A completion that comes again finds its place taken by another post, and once ended that one.
#[test]
fn rule_4_a_completion_that_comes_twice_ends_nothing() {
    let (stage, mut pair) = held();
    let mut old = Vec::new();
    for number in 0..20 {
        let sqe = pair.write(number * 64, 64);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        let ticket = stage.plan().held[0].ticket;
        old.push(Done::new(ticket, if number % 2 == 0 { 0 } else { BROKEN }));
        for done in &old[..old.len() - 1] {
            stage.stale(*done);
            stage.stale(Done { ticket: !done.ticket, ..*done });
            stage.stale(Done { ticket: done.ticket & 0xffff_ffff, ..*done });
        }
        for _ in 0..20 {
            pair.world.turn();
        }
        assert_eq!(pair.world.pop(SENDER), [], "its post is with the fabric");
        stage.complete(0, 0);
        pair.world.turn();
        let cqes = pair.world.pop(SENDER);
        assert_eq!((numbers(&cqes), outcome(&cqes[0])), (vec![number], moved(64)));
    }
    pair.world.expect_rest();
}

#[test]
fn rule_4_a_region_stays_while_the_fabric_works_on_it() {
    for target in [false, true] {
        let (stage, mut pair) = held();
        let sqe = pair.write(0, 512);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        let region = if target { pair.target } else { pair.near };
        let token = pair.world.remove(region);
        for _ in 0..2 {
            pair.world.turn();
            assert!(pair.world.reply(token).is_none(), "{} slices are held", stage.held());
            stage.complete(0, 0);
        }
        pair.world.turn();
        let reply = pair.world.reply(token);
        assert!(matches!(reply, Some(Reply::RegionGone { memory: Some(_), .. })), "{reply:?}");
        assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(512));
        pair.world.expect_rest();
    }
}
