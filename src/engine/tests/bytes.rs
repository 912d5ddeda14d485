//! A2: the bytes that a uid's ops in flight ask for are bounded, over all its rings and sessions.
//! What would pass the bound waits in its SQ, the first ring that waits is served first, and every
//! way out gives all of it back once. The random streams and every audit count them, too.

use super::script::{Script, Stage};
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, World, arm, cancel, flush, moved, nop, outcome, revoke,
};
use crate::abi::{CANCEL_BY_NUMBER, Opcode, Page, SQE_SKIP_SUCCESS, Sqe};
use crate::engine::{Limits, Wind};
use crate::ring::Word;

/// A pair of which the sender's uid may have so many bytes in flight; nothing completes by itself.
fn bounded(bytes_max: u64) -> (Stage, Pair<Script>) {
    let limits = Limits { window_wrs: 64, window_bytes: 1 << 20, slice_bytes: 1 << 20, ..LIMITS };
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 16);
    pair.world.engine.owners[0].bytes_max = bytes_max;
    stage.hold();
    (stage, pair)
}

fn push(pair: &mut Pair<Script>, client: usize, bytes: u32) {
    let sqe = pair.write(0, bytes);
    pair.world.push(client, sqe);
    pair.world.turn();
}

fn taken(pair: &Pair<Script>, client: usize) -> u64 {
    pair.world.clients[client].taken()
}

fn second_ring(pair: &mut Pair<Script>) -> usize {
    let session = pair.world.clients[SENDER].session;
    pair.world.ring(session, 16, 16)
}

/// Everything completes; nothing is left of it.
fn end(stage: &Stage, pair: &mut Pair<Script>) {
    stage.release();
    while pair.world.turn().worked() {
        for client in 0..pair.world.clients.len() {
            pair.world.pop(client);
        }
    }
    pair.world.expect_rest();
}

#[test]
fn a2_bytes_go_up_to_the_bound_and_one_more_waits() {
    for (last, may) in [(40, 3), (41, 2)] {
        let (stage, mut pair) = bounded(100);
        push(&mut pair, SENDER, 50);
        push(&mut pair, SENDER, 10);
        push(&mut pair, SENDER, last);
        assert_eq!(taken(&pair, SENDER), may);
        // All at once, as a burst.
        push(&mut pair, RECEIVER, 0);
        end(&stage, &mut pair);
        assert_eq!(taken(&pair, SENDER), 3);
    }
}

#[test]
fn a2_a_burst_ends_where_the_bound_is() {
    let (stage, mut pair) = bounded(100);
    for _ in 0..8 {
        let sqe = pair.write(0, 30);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    assert_eq!(taken(&pair, SENDER), 3);
    stage.complete(0, 0);
    pair.world.turn();
    assert_eq!(taken(&pair, SENDER), 4, "what one gave back lets one in");
    end(&stage, &mut pair);
    assert_eq!(taken(&pair, SENDER), 8);
}

#[test]
fn a2_one_op_beyond_the_bound_goes_alone() {
    let (stage, mut pair) = bounded(100);
    push(&mut pair, SENDER, 1);
    push(&mut pair, SENDER, 101);
    push(&mut pair, SENDER, 1);
    assert_eq!(taken(&pair, SENDER), 1);
    stage.complete(0, 0);
    pair.world.turn();
    assert_eq!(taken(&pair, SENDER), 2, "alone");
    let other = second_ring(&mut pair);
    pair.world.push(other, nop());
    push(&mut pair, other, 0);
    push(&mut pair, other, 1);
    assert_eq!(taken(&pair, other), 2, "what asks for no bytes passes");
    stage.complete(0, 0);
    pair.world.turn();
    end(&stage, &mut pair);
    assert_eq!((taken(&pair, SENDER), taken(&pair, other)), (3, 3));
}

/// A7: no sum wraps, however much is asked for.
#[test]
fn a7_the_largest_of_bounds_and_ops_do_not_wrap() {
    let (stage, mut pair) = bounded(u64::MAX);
    pair.world.engine.owners[0].bytes = u64::MAX - 10;
    for (bytes, may) in [(11, false), (10, true)] {
        assert_eq!(pair.world.engine.owners[0].admits(0, bytes), may);
    }
    pair.world.engine.owners[0].pass_by(0);
    pair.world.engine.owners[0].bytes = 0;
    end(&stage, &mut pair);
}

#[test]
fn a2_lists_count_every_page_and_arms_nothing() {
    for (bytes_max, may) in [(4 * 25, 1), (4 * 25 - 1, 0)] {
        let (stage, mut pair) = bounded(bytes_max);
        let other = second_ring(&mut pair);
        let held = pair.write(0, 1);
        let pages: Vec<Page> =
            (0..4).map(|at| Page { local_offset: 64 * at, remote_offset: 64 * at }).collect();
        let list = pair.list(Opcode::Writev, &pages, 25);
        // Not alone: something else asks for a byte.
        pair.world.engine.owners[0].bytes_max += 1;
        pair.world.push(other, held);
        pair.world.turn();
        pair.world.push(SENDER, list);
        let armed = arm(pair.near, 9);
        pair.world.push(other, armed);
        pair.world.turn();
        assert_eq!((taken(&pair, SENDER), taken(&pair, other)), (may, 2));
        let token = pair.world.wind(other, Wind::Cancel);
        end(&stage, &mut pair);
        assert!(pair.world.reply(token).is_some());
    }
}

/// Small ops of one ring do not keep a large one of another out for ever.
#[test]
fn a2_the_ring_that_waits_first_is_served_first() {
    let (stage, mut pair) = bounded(100);
    let other = second_ring(&mut pair);
    push(&mut pair, SENDER, 60);
    push(&mut pair, other, 90);
    for _ in 0..4 {
        push(&mut pair, SENDER, 10);
    }
    assert_eq!((taken(&pair, SENDER), taken(&pair, other)), (1, 0), "the large one is next");
    pair.world.push(RECEIVER, nop());
    pair.world.turn();
    assert_eq!(taken(&pair, RECEIVER), 1, "another uid is not its neighbour's keeper");
    stage.complete(0, 0);
    pair.world.turn();
    pair.world.turn();
    assert_eq!((taken(&pair, SENDER), taken(&pair, other)), (2, 1));
    end(&stage, &mut pair);
    assert_eq!(taken(&pair, SENDER), 5);
}

/// Who cannot be served for another reason, or is gone, is not waited for.
#[test]
fn a2_a_ring_that_goes_or_wants_something_else_holds_nobody_back() {
    for leave in 0..3 {
        let (stage, mut pair) = bounded(100);
        let other = second_ring(&mut pair);
        push(&mut pair, SENDER, 60);
        push(&mut pair, other, 90);
        push(&mut pair, SENDER, 10);
        assert_eq!((taken(&pair, SENDER), taken(&pair, other)), (1, 0));
        match leave {
            0 => drop(pair.world.wind(other, Wind::Cancel)),
            1 => pair.world.clients[other].store(Word::SqTail, 77),
            // Its target is withdrawn: it is refused, and asks for nothing.
            _ => {
                let target = pair.target;
                pair.world.push(RECEIVER, revoke(target));
                stage.complete(0, 0);
            }
        }
        pair.world.turn();
        pair.world.turn();
        assert_eq!(taken(&pair, SENDER), 2, "way out {leave}");
        end(&stage, &mut pair);
    }
}

/// Done, skipped, cancelled, revoked, wound up, faulted: what is held goes back once. `turn`
/// audits the sum each time.
#[test]
fn a2_every_way_out_gives_all_of_it_back() {
    let (stage, mut pair) = bounded(10_000);
    let other = second_ring(&mut pair);
    let (near, target) = (pair.near, pair.target);
    let skipped = Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(0, 33) };
    let late = Sqe { arg: [1, 0], ..pair.write(0, 44) };
    for sqe in [pair.write(0, 11), skipped, late, pair.write(0, 55), flush(near)] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 3));
    for _ in 0..3 {
        push(&mut pair, other, 66);
    }
    assert!(pair.world.engine.owners[0].bytes > 0);
    pair.world.push(RECEIVER, revoke(target));
    pair.world.turn();
    pair.world.clients[other].store(Word::SqTail, 77);
    pair.world.turn();
    stage.complete(0, 0);
    pair.world.turn();
    let cqes = pair.world.pop(SENDER);
    let first = cqes.iter().find(|cqe| cqe.user_data == 0).unwrap();
    assert_eq!(outcome(first), moved(11));
    assert!(cqes.iter().any(|cqe| cqe.user_data == 3 && cqe.res < 0), "taken back");
    end(&stage, &mut pair);
}
