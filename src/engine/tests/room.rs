//! Rule 3: an SQE is taken only when a CQ slot can be reserved for it, so the CQ cannot overflow;
//! back-pressure is a full SQ and nothing else.

use std::sync::atomic::Ordering;

use super::script::Stage;
use super::world::{LIMITS, Pair, SENDER, World, arm, moved, nop, outcome};
use crate::abi::{CANCEL_BY_NUMBER, SQE_SKIP_SUCCESS};
use crate::engine::{Limits, Reply};
use crate::ring::{Memory as _, Word};

#[test]
fn rule_3_an_sqe_is_taken_only_when_a_cq_slot_can_be_reserved() {
    let mut world = World::local(LIMITS);
    let session = world.session(0);
    let client = world.ring(session, 16, 4);
    for _ in 0..16 {
        world.push(client, nop());
    }
    assert_eq!(world.try_push(client, nop()), None, "the SQ is full");
    for read in 0..=12u64 {
        world.turn();
        world.turn();
        assert_eq!(world.clients[client].taken(), read + 4);
        let client = &world.clients[client];
        let (head, tail) = (client.load(Word::CqHead), client.load(Word::CqTail));
        assert_eq!(tail.wrapping_sub(head), 4, "CQEs unread");
        let user_data = client.heap.cqe(head)[0].load(Ordering::Relaxed);
        assert_eq!(user_data, read);
        // One slot given back lets one more SQE in.
        client.store(Word::CqHead, head.wrapping_add(1));
    }
    world.turn();
    let client = &world.clients[client];
    assert_eq!(client.load(Word::CqTail).wrapping_sub(client.load(Word::CqHead)), 3);
    world.settle();
    world.expect_rest();
}

#[test]
fn rule_3_ops_under_way_hold_their_slots() {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 4);
    stage.hold();
    for _ in 0..4 {
        let sqe = pair.write(0, 8);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    for _ in 0..4 {
        pair.world.push(SENDER, nop());
    }
    pair.world.turn();
    assert_eq!(pair.world.clients[SENDER].taken(), 4, "the CQ is promised whole");
    stage.complete(0, 0);
    pair.world.turn();
    // Its CQE took the slot; reading it makes room.
    assert_eq!(pair.world.clients[SENDER].taken(), 4);
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(8));
    pair.world.turn();
    assert_eq!(pair.world.clients[SENDER].taken(), 5);
    stage.release();
}

#[test]
fn rule_3_an_arm_waits_for_all_its_slots() {
    let mut pair = Pair::new(World::local(LIMITS), 4);
    for _ in 0..2 {
        pair.world.push(SENDER, nop());
    }
    pair.world.turn();
    let sqe = arm(pair.near, 3);
    pair.world.push(SENDER, sqe);
    pair.world.push(SENDER, nop());
    pair.world.turn();
    assert_eq!(pair.world.clients[SENDER].taken(), 2, "two free slots are not three");
    pair.world.pop(SENDER);
    pair.world.turn();
    assert_eq!(pair.world.clients[SENDER].taken(), 4, "the ARM, and one more");
}

/// A skipped success needs no CQ slot, but a fate entry until its turn is published. With more of
/// them in one turn than the CQ has entries, intake once ran out of entries and panicked.
#[test]
fn rule_3_skipped_successes_wait_for_fate_entries() {
    let limits = Limits { intake_budget: 64, ..LIMITS };
    let mut pair = Pair::new(World::local(limits), 16);
    let session = pair.world.clients[SENDER].session;
    let client = pair.world.ring(session, 64, 2);
    for round in 0..4 {
        for _ in 0..32 {
            pair.world.push(client, super::world::nop_skipped());
            let sqe = crate::abi::Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(64, 8) };
            pair.world.push(client, sqe);
        }
        pair.world.settle();
        assert_eq!(pair.world.clients[client].taken(), 64 * (round + 1));
        assert_eq!(pair.world.pop(client), []);
    }
    pair.world.expect_rest();
}

#[test]
fn rule_3_the_control_socket_cancels_where_the_ring_is_full() {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 8);
    stage.hold();
    for _ in 0..8 {
        let sqe = pair.write(0, 8);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    for _ in 0..8 {
        let sqe = pair.write(0, 8);
        pair.world.push(SENDER, sqe);
    }
    assert_eq!(pair.world.try_push(SENDER, nop()), None, "the SQ is full");
    let token = pair.world.query(SENDER, CANCEL_BY_NUMBER, 7, true);
    pair.world.turn();
    let reply = pair.world.reply(token);
    let Some(Reply::Cancelled { record, .. }) = reply else { panic!("{reply:?}") };
    let cqes = pair.world.pop(SENDER);
    assert_eq!((cqes.len(), cqes[0].user_data, cqes[0].record), (1, 7, record.0));
    stage.release();
    pair.world.settle();
}

/// One session holds all the records it can get, for ever: whoever comes later has a part of its
/// own, as large as everybody's.
#[test]
fn a_newcomer_finds_its_part_of_the_records() {
    for present in [true, false] {
        let mut world = World::local(LIMITS);
        let hog = world.session(0);
        let part = LIMITS.records / LIMITS.sessions_max / 2;
        let mut newcomers = Vec::new();
        if present {
            newcomers = (1..LIMITS.sessions_max).map(|place| world.session(place)).collect();
        }
        let greedy = world.ring(hog, 256, 256);
        let near = world.region(hog, 4096);
        for _ in 0..256 {
            world.push(greedy, arm(near, 1));
        }
        for _ in 0..64 {
            world.turn();
        }
        let common = LIMITS.records - (LIMITS.sessions_max - 1) * part;
        assert_eq!(world.clients[greedy].taken(), u64::from(common));
        if !present {
            newcomers = (1..LIMITS.sessions_max).map(|place| world.session(place)).collect();
        }
        for session in newcomers {
            let client = world.ring(session, 64, 64);
            let own = world.region(session, 4096);
            for _ in 0..64 {
                world.push(client, arm(own, 1));
            }
            for _ in 0..16 {
                world.turn();
            }
            assert_eq!(world.clients[client].taken(), u64::from(part), "of {session:?}");
        }
    }
}
