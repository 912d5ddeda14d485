//! What a turn gives rails at most, and what becomes of an op that it does not come to then.

use super::two::{CONFIG, ME, Two, transfer};
use super::world::LIMITS;
use crate::abi::{Class, Opcode, RIGHTS_ALL, SQE_LINK, SQE_NOTIFY, Sqe};
use crate::engine::Limits;
use crate::fabric::qp;
use crate::ids::RecordId;
use crate::sched::{Bounds, Policy};

const SLICE: u32 = LIMITS.slice_bytes;
/// Slices that a turn may give.
const SLICES: usize = 4;

/// Work requests with bytes that side 0 has really posted, over all its rails.
fn posted(two: &Two, rails: u16) -> usize {
    let all = (1..=rails).flat_map(|rail| two.net.posted(two.join.number(rail, 0)));
    all.filter(|wr| wr.bytes > 0).count()
}

#[test]
fn a_turn_gives_all_rails_together_no_more_than_it_may() {
    assert_eq!(LIMITS.turn_bytes, SLICES as u64 * u64::from(SLICE));
    let mut two = Two::new(2);
    let (near, target) = (two.region(0), two.region(1));
    let fars = [1, 2].map(|rail| two.offer(1, target, RIGHTS_ALL, [rail; 3]));
    for far in fars {
        two.push(0, transfer(Opcode::Write, (near, far), 0, 5 * SLICE));
    }
    for turn in 1..=2 {
        // Nothing completes meanwhile.
        assert!(two.worlds[0].turn().busy);
        assert_eq!(posted(&two, 2), turn * SLICES);
    }
    two.worlds[0].turn();
    assert_eq!(posted(&two, 2), 10);
    two.settle();
    assert_eq!(two.pop(0).iter().map(|cqe| cqe.res).collect::<Vec<_>>(), [5 * 256; 2]);
    two.expect_rest();
}

/// What is beyond the limit by itself goes alone.
#[test]
fn a_slice_beyond_the_limit_goes() {
    let mut two = Two::with(Limits { turn_bytes: 1, ..LIMITS }, CONFIG, 1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    two.push(0, transfer(Opcode::Write, (near, far), 0, 2 * SLICE));
    for turn in 1..=2 {
        two.worlds[0].turn();
        assert_eq!(posted(&two, 1), turn);
    }
    two.settle();
    two.expect_rest();
}

/// Chains go on before all others; whoever waits has its turn all the same.
#[test]
fn chains_that_go_on_hold_nobody_back() {
    let limits = Limits { turn_bytes: u64::from(SLICE), ..LIMITS };
    let mut two = Two::with(limits, qp::Config { depth: 16, ..CONFIG }, 1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    let op = |class: Class, flags: u16| Sqe {
        class: class as u8,
        flags,
        ..transfer(Opcode::Write, (near, far), 0, SLICE)
    };
    for _ in 0..5 {
        two.push(0, op(Class::Low, SQE_LINK));
    }
    two.push(0, op(Class::Low, 0));
    // The first, and what rides behind it.
    two.worlds[0].turn();
    assert_eq!(posted(&two, 1), 2);
    two.push(0, op(Class::High, 0));
    // One more of the chain, the urgent one, and behind that nothing of the chain may ride.
    two.worlds[0].turn();
    assert_eq!(posted(&two, 1), 4);
    two.settle();
    assert_eq!(two.worlds[0].pop(ME).len(), 7);
    two.expect_rest();
}

/// An op for which a card's window is kept keeps it, though others take all that a turn may give.
#[test]
fn what_is_kept_for_an_op_is_kept_over_a_full_turn() {
    let bytes = 6 * u64::from(SLICE);
    let card = Bounds { bytes, ..Bounds::NONE };
    let limits = Limits { policy: Policy { card, ..LIMITS.policy }, ..LIMITS };
    let config = qp::Config { depth: 16, ..CONFIG };
    let mut two = Two::with(limits, config, 1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    let op = |class: Class, bytes: u32| Sqe {
        class: class as u8,
        ..transfer(Opcode::Write, (near, far), 0, bytes)
    };
    let high = |two: &mut Two, count: usize| {
        (0..count).for_each(|_| {
            two.push(0, op(Class::High, SLICE));
        });
    };
    let kept = |two: &Two| two.worlds[0].engine.abroad.cards[0].reserved.map(|(_, id)| id);
    high(&mut two, 5);
    two.push(0, op(Class::High, SLICE / 2));
    two.push(0, op(Class::Low, SLICE));
    // The first turn of two takes what fills the window but for half a slice.
    two.worlds[0].turn();
    two.worlds[0].turn();
    let low: Option<RecordId> = kept(&two);
    assert!(low.is_some());
    // All ends, and the turn in which that is seen gives others all it may.
    two.net.advance(1_000_000);
    high(&mut two, SLICES);
    two.worlds[0].turn();
    assert_eq!((posted(&two, 1), kept(&two)), (6 + SLICES, low));
    // What another one lacks then is not kept for that one instead.
    high(&mut two, SLICES);
    two.worlds[0].turn();
    assert_eq!((posted(&two, 1), kept(&two)), (6 + SLICES + 2, low));
    two.settle();
    assert_eq!(two.worlds[0].pop(ME).len(), 7 + 2 * SLICES);
    two.expect_rest();
}

/// An op that could not use what is kept for it has it no more, whatever the turn gives others.
#[test]
fn what_is_kept_for_an_op_that_cannot_go_is_not_kept_over_a_full_turn() {
    let card = Bounds { bytes: 6 * u64::from(SLICE), ..Bounds::NONE };
    let limits = Limits { policy: Policy { card, ..LIMITS.policy }, ..LIMITS };
    let mut two = Two::with(limits, qp::Config { depth: 32, ..CONFIG }, 1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    let op = |class: Class, flags: u16, bytes: u32| Sqe {
        class: class as u8,
        flags,
        ..transfer(Opcode::Write, (near, far), 0, bytes)
    };
    let kept = |two: &Two| two.worlds[0].engine.abroad.cards[0].reserved.is_some();
    for bytes in [SLICE, SLICE, SLICE, SLICE, SLICE, SLICE / 2] {
        two.push(0, op(Class::High, 0, bytes));
    }
    two.push(0, op(Class::Medium, SQE_NOTIFY, SLICE));
    two.worlds[0].turn();
    two.worlds[0].turn();
    assert!(kept(&two));
    // All of it ends. More urgent ones use up what notifications there may be, before low ones
    // take all that the turn gives.
    two.net.advance(1_000_000);
    for _ in 0..CONFIG.receives {
        two.push(0, op(Class::High, SQE_NOTIFY, 8));
    }
    for _ in 0..SLICES {
        two.push(0, op(Class::Low, 0, SLICE));
    }
    let before = posted(&two, 1);
    two.worlds[0].turn();
    assert!(posted(&two, 1) >= before + SLICES);
    assert!(!kept(&two));
    two.settle();
    two.expect_rest();
}
