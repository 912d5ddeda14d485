//! No turn is longer than its budgets, whatever is piled up: what a turn ends, takes, looks at or
//! posts is counted by its effects.

use super::script::{Script, Stage};
use super::world::{
    LIMITS, Pair, RECEIVER, REGION_BYTES, SENDER, STEP_NS, World, arm, cancel, flush, nop, revoke,
};
use crate::abi::{CANCEL_BY_NUMBER, Class, Sqe};
use crate::engine::{Limits, RINGS_PER_TURN, STEPS_PER_TURN, Wind};
use crate::ring::{Memory as _, Word};

const LARGE: Limits =
    Limits { records: 8192, window_wrs: 4, intake_budget: 4096, rings_max: 512, ..LIMITS };

/// Nothing completes by itself, and no turn is audited: there is too much of everything.
fn held(limits: Limits) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 2048);
    pair.world.audited = false;
    stage.hold();
    (stage, pair)
}

/// CQEs that clients could read since the start.
fn written(pair: &Pair<Script>) -> u32 {
    let count = |client: &super::world::Client| {
        client.load(Word::CqTail).wrapping_sub(client.heap.first_index())
    };
    pair.world.clients.iter().map(count).sum()
}

/// Makes turns until `all` more CQEs are there; the most that one turn wrote.
fn most_a_turn(pair: &mut Pair<Script>, all: u32) -> u32 {
    let begin = written(pair);
    let (mut before, mut most) = (begin, 0);
    for _ in 0..2_000 {
        pair.world.turn();
        let now = written(pair);
        most = most.max(now - before);
        before = now;
        if now - begin >= all {
            return most;
        }
    }
    panic!("{} of {all} CQEs", before - begin);
}

fn fill(pair: &mut Pair<Script>, client: usize, count: u64, sqe: Sqe) {
    for _ in 0..count {
        pair.world.push(client, sqe);
    }
    pair.world.turn();
}

#[test]
fn ops_whose_target_is_revoked_end_in_portions() {
    let (_stage, mut pair) = held(LARGE);
    let sqe = pair.write_as(Class::Low, 0, 8);
    fill(&mut pair, SENDER, 2_000, sqe);
    pair.world.push(RECEIVER, revoke(pair.target));
    let most = most_a_turn(&mut pair, 1_900);
    assert!((STEPS_PER_TURN / 2..=STEPS_PER_TURN).contains(&most), "{most} in one turn");
}

#[test]
fn ops_whose_deadline_has_passed_end_in_portions() {
    let (_stage, mut pair) = held(LARGE);
    let sqe = Sqe { arg: [3, 0], ..pair.write_as(Class::Low, 0, 8) };
    fill(&mut pair, SENDER, 2_000, sqe);
    pair.world.now_ns += 10_000 * STEP_NS;
    // By the sweep, and at the head.
    let most = most_a_turn(&mut pair, 1_900);
    assert!(most <= 2 * STEPS_PER_TURN, "{most} in one turn");
}

#[test]
fn rings_are_wound_up_in_portions() {
    for rings in [1, 4] {
        let (_stage, mut pair) = held(LARGE);
        let session = pair.world.clients[SENDER].session;
        let mut clients = vec![SENDER];
        while clients.len() < rings {
            clients.push(pair.world.ring(session, 2048, 2048));
        }
        let each = 2_000 / rings as u64;
        for &client in &clients {
            let sqe = pair.write_as(Class::Low, 0, 8);
            fill(&mut pair, client, each, sqe);
        }
        for &client in &clients {
            pair.world.wind(client, Wind::Cancel);
        }
        let most = most_a_turn(&mut pair, 1_990);
        assert!(most <= STEPS_PER_TURN, "{most} in one turn, of {rings} rings");
    }
}

/// The command only begins it; once all ARMs were taken back at once.
#[test]
fn the_arms_of_a_region_are_taken_back_in_portions() {
    let (_stage, mut pair) = held(LARGE);
    let target = pair.target;
    fill(&mut pair, RECEIVER, 2_000, arm(target, 1));
    let token = pair.world.remove(target);
    let most = most_a_turn(&mut pair, 2_000);
    assert!(most <= STEPS_PER_TURN, "{most} in one turn");
    pair.world.turn();
    assert!(pair.world.reply(token).is_some());
}

/// Each of these CANCELs looks at 1,000 ops; a queue of them must not multiply the budget.
#[test]
fn searches_of_one_ring_share_their_steps() {
    let (_stage, mut pair) = held(LARGE);
    let sqe = pair.write_as(Class::Low, 0, 8);
    fill(&mut pair, SENDER, 1_000, sqe);
    for _ in 0..100 {
        pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 1 << 40));
    }
    let before = pair.world.engine.turns();
    most_a_turn(&mut pair, 100);
    let turns = pair.world.engine.turns() - before;
    assert!(turns >= 100 * 1_000 / u64::from(STEPS_PER_TURN), "{turns} turns");
    // Short searches share, too: 250 steps leave room for one.
    let (_stage, mut pair) = held(LARGE);
    let sqe = pair.write_as(Class::Low, 0, 8);
    fill(&mut pair, SENDER, 250, sqe);
    for _ in 0..100 {
        pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 1 << 40));
    }
    let most = most_a_turn(&mut pair, 100);
    assert!(most <= 2, "{most} searches in one turn");
}

#[test]
fn flushes_share_their_steps() {
    let (stage, mut pair) = held(LARGE);
    let sqe = pair.write_as(Class::Low, 0, 8);
    fill(&mut pair, SENDER, 1, sqe);
    for _ in 0..10 {
        pair.world.push(SENDER, flush(pair.near));
    }
    pair.world.turn();
    stage.complete_all();
    // Each passes over the whole ledger, since none of them is alone with its region.
    let before = pair.world.engine.turns();
    most_a_turn(&mut pair, 9);
    let turns = pair.world.engine.turns() - before;
    let scan = u64::from(LARGE.records / STEPS_PER_TURN);
    assert!((5 * scan..=10 * scan + 10).contains(&turns), "{turns} turns");
}

#[test]
fn intake_is_bounded_a_ring_and_goes_round() {
    let limits = Limits { intake_budget: 16, ..LARGE };
    let (_stage, mut pair) = held(limits);
    for client in [SENDER, RECEIVER] {
        for _ in 0..1_000 {
            pair.world.push(client, nop());
        }
    }
    for turn in 1..=60 {
        assert_eq!(pair.world.turn().taken, 32);
        for client in [SENDER, RECEIVER] {
            assert_eq!(pair.world.clients[client].taken(), 16 * turn);
        }
    }
}

#[test]
fn rings_beyond_a_turns_looks_are_served_in_turn() {
    let limits = Limits { records: 8192, rings_max: 512, ..LIMITS };
    let (_stage, mut pair) = held(limits);
    let session = pair.world.clients[SENDER].session;
    while pair.world.clients.len() < 500 {
        pair.world.ring(session, 2, 2);
    }
    for round in 1..5 {
        for client in 0..500 {
            pair.world.push(client, nop());
        }
        for _ in 0..2 {
            let taken = pair.world.turn().taken as usize;
            assert!(taken <= RINGS_PER_TURN, "{taken}");
        }
        for client in 0..500 {
            assert_eq!(pair.world.clients[client].taken(), round, "ring {client}");
            pair.world.pop(client);
        }
    }
}

/// One slice's bytes a turn, so that what is finished is published before the next copy.
#[test]
fn the_same_host_fabric_copies_a_slice_a_turn() {
    let limits = Limits { window_wrs: 64, window_bytes: 1 << 20, ..LIMITS };
    let mut pair = Pair::new(World::local(limits), 64);
    let sqe = pair.write(0, u32::try_from(REGION_BYTES / 4).unwrap());
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    for _ in 0..REGION_BYTES / 4 / u64::from(limits.slice_bytes) {
        assert_eq!(pair.world.turn().reaped, 1);
    }
    assert_eq!(pair.world.pop(SENDER).len(), 1);
    for _ in 0..60 {
        let sqe = pair.write(0, 100);
        pair.world.push(SENDER, sqe);
    }
    for turn in 0..30 {
        assert!(pair.world.turn().reaped <= 2, "200 bytes of 256, in turn {turn}");
    }
    pair.world.settle();
}

/// A turn posts no more than the window, however much is queued.
#[test]
fn a_turn_posts_at_most_a_window() {
    let limits = Limits { window_wrs: 32, window_bytes: 1 << 20, ..LARGE };
    let (stage, mut pair) = held(limits);
    let sqe = pair.write(0, 0);
    fill(&mut pair, SENDER, 2_000, sqe);
    for _ in 0..10 {
        stage.complete_all();
        let turn = pair.world.turn();
        assert_eq!((turn.posted, turn.reaped), (32, 32));
    }
}
