//! Rule 5: an idle ring leaves the poll set and asks for its bell; nothing that comes is lost; and
//! a ring whose client cannot fence is read only after a bell.

use super::script::Stage;
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, STEP_NS, World, arm, cancel, moved, nop, outcome,
};
use crate::abi::{CANCEL_BY_NUMBER, ENGINE_NEED_WAKEUP};
use crate::engine::Limits;
use crate::fabric::Local;
use crate::ids::RingId;
use crate::ring::Word;

const IDLE: Limits = Limits { ring_idle_ns: 20 * STEP_NS, ..LIMITS };

fn pair() -> Pair<Local> {
    Pair::new(World::local(IDLE), 16)
}

fn asleep(pair: &Pair<Local>, client: usize) -> bool {
    pair.world.flags(client) & ENGINE_NEED_WAKEUP != 0
}

/// Pushes as a client that does not look at the engine's flags.
fn push_silently(pair: &mut Pair<Local>, client: usize) -> bool {
    let end = &mut pair.world.clients[client].end;
    end.push(nop().to_words()).unwrap();
    end.publish()
}

#[test]
fn rule_5_an_idle_ring_is_parked_and_woken_by_its_bell() {
    let mut pair = pair();
    pair.world.settle();
    for round in 0..5 {
        // One of the two is kept busy.
        for _ in 0..50 {
            pair.world.push(RECEIVER, nop());
            pair.world.turn();
            pair.world.pop(RECEIVER);
        }
        assert!(asleep(&pair, SENDER) && !asleep(&pair, RECEIVER), "round {round}");
        assert_eq!(pair.world.engine.polled, [1], "it costs nothing");
        assert!(push_silently(&mut pair, SENDER), "the bell is asked for");
        (0..5).for_each(|_| {
            pair.world.turn();
        });
        assert_eq!(pair.world.clients[SENDER].taken(), round, "not polled");
        pair.world.engine.wake(RingId(0));
        assert!(!asleep(&pair, SENDER));
        pair.world.turn();
        assert_eq!(pair.world.clients[SENDER].taken(), round + 1);
        pair.world.pop(SENDER);
    }
}

#[test]
fn rule_5_the_whole_engine_sleeps_only_when_nothing_is_left() {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(IDLE, stage.fabric(IDLE)), 16);
    stage.hold();
    let sqe = pair.write(0, 64);
    pair.world.push(SENDER, sqe);
    assert!(!pair.world.engine.fall_asleep(), "an SQE waits");
    pair.world.turn();
    assert!(!pair.world.engine.fall_asleep(), "an op is with the fabric");
    stage.release();
    pair.world.settle();
    assert!(pair.world.engine.fall_asleep());
    assert_eq!(pair.world.flags(SENDER) & pair.world.flags(RECEIVER), ENGINE_NEED_WAKEUP);
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(64));
    // One bell wakes one ring.
    assert_eq!(outcome(&pair.world.run(SENDER, nop())), (0, 0, 0));
    assert_eq!(pair.world.engine.polled, [0]);
    assert_eq!(pair.world.flags(RECEIVER), ENGINE_NEED_WAKEUP);
}

#[test]
fn rule_5_what_comes_while_the_ring_falls_asleep_is_seen() {
    let mut pair = pair();
    pair.world.settle();
    assert!(!push_silently(&mut pair, SENDER), "awake: no bell needed");
    assert!(!pair.world.engine.fall_asleep());
    assert!(!asleep(&pair, SENDER));
    pair.world.turn();
    assert_eq!(pair.world.pop(SENDER).len(), 1);
    assert!(!pair.world.engine.fall_asleep(), "its bell is looked at once more");
    pair.world.turn();
    assert!(pair.world.engine.fall_asleep());
}

/// A client that asks for its bell between publication and the engine's first look at it, or just
/// after that, is rung within a turn.
#[test]
fn rule_5_a_bell_asked_for_at_the_moment_of_publication_is_rung() {
    let mut pair = pair();
    pair.world.settle();
    pair.world.push(SENDER, nop());
    pair.world.turn();
    // As if the client had looked at cq_tail just before, and armed just after.
    let client = &pair.world.clients[SENDER];
    client.store(Word::BellAt, client.load(Word::CqTail).wrapping_sub(1));
    let ring = client.ring;
    assert!(pair.world.bells.is_empty());
    pair.world.turn();
    assert_eq!(pair.world.bells, [ring], "the bell of a CQE that was just published");
    pair.world.turn();
    assert_eq!(pair.world.bells, [ring], "once");
}

/// A notification is written into a ring that sleeps, and its client is rung.
#[test]
fn rule_5_a_sleeping_ring_still_gets_its_cqes() {
    let mut pair = pair();
    let target = pair.target;
    pair.world.push(RECEIVER, arm(target, 1));
    pair.world.settle();
    assert!(pair.world.engine.fall_asleep(), "an ARM keeps nobody awake");
    assert!(pair.world.clients[RECEIVER].end.arm_bell(1).unwrap());
    let sqe = pair.tell(5);
    assert_eq!(outcome(&pair.world.run(SENDER, sqe)), moved(0));
    assert_eq!(pair.world.bells, [RingId(1)]);
    assert_eq!(pair.world.pop(RECEIVER).len(), 1);
    assert!(asleep(&pair, RECEIVER));
}

#[test]
fn rule_5_bells_are_rung_where_they_were_asked_for() {
    for want in 1..=4 {
        let mut pair = pair();
        assert!(pair.world.clients[SENDER].end.arm_bell(want).unwrap());
        for count in 1..=6 {
            pair.world.push(SENDER, nop());
            pair.world.turn();
            let rung = u32::try_from(pair.world.bells.len()).unwrap();
            assert_eq!(rung, u32::from(count >= want), "{count} CQEs of {want}");
        }
    }
}

#[test]
fn rule_5_a_fenceless_ring_is_read_only_after_its_bell() {
    let mut pair = pair();
    let session = pair.world.clients[SENDER].session;
    let client = pair.world.ring_of(session, 16, 16, true, None);
    let ring = pair.world.clients[client].ring;
    pair.world.turn();
    let taken = |pair: &Pair<Local>| pair.world.clients[client].taken();
    for round in 0..4 {
        push_silently(&mut pair, client);
        // Neither turns, nor idling, nor falling asleep look at its tail.
        for _ in 0..60 {
            pair.world.turn();
        }
        assert!(pair.world.engine.fall_asleep());
        assert_eq!(taken(&pair), 3 * round);
        push_silently(&mut pair, client);
        pair.world.engine.wake(ring);
        assert!(!pair.world.engine.fall_asleep(), "its bell was heard");
        pair.world.turn();
        assert_eq!(taken(&pair), 3 * round + 2);
        // Awake, it is not looked at again without another bell.
        push_silently(&mut pair, client);
        (0..5).for_each(|_| {
            pair.world.turn();
        });
        assert_eq!(taken(&pair), 3 * round + 2);
        pair.world.engine.wake(ring);
        pair.world.turn();
        assert_eq!(taken(&pair), 3 * round + 3);
        assert_eq!(pair.world.pop(client).len(), 3);
    }
}

/// One bell for more SQEs than one turn takes.
#[test]
fn rule_5_one_bell_is_enough_for_a_fenceless_burst() {
    let limits = Limits { intake_budget: 2, ..IDLE };
    let mut pair = Pair::new(World::local(limits), 16);
    let session = pair.world.clients[SENDER].session;
    let client = pair.world.ring_of(session, 16, 16, true, None);
    pair.world.turn();
    for _ in 0..15 {
        push_silently(&mut pair, client);
    }
    pair.world.engine.wake(pair.world.clients[client].ring);
    pair.world.settle();
    assert_eq!(pair.world.clients[client].taken(), 15);
}

/// A ring that is searched for a CANCEL does not sleep before the answer.
#[test]
fn rule_5_no_ring_sleeps_in_the_middle_of_a_search() {
    let stage = Stage::new();
    let limits = Limits { records: 2048, window_wrs: 1, intake_budget: 2048, ..IDLE };
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 1024);
    let target = pair.target;
    for _ in 0..900 {
        pair.world.push(RECEIVER, arm(target, 1));
    }
    pair.world.turn();
    pair.world.push(RECEIVER, cancel(CANCEL_BY_NUMBER, 5_000));
    pair.world.turn();
    let mut turns = 0;
    while !pair.world.engine.fall_asleep() {
        pair.world.turn();
        turns += 1;
    }
    assert!(turns > 1);
    assert_eq!(pair.world.pop(RECEIVER).len(), 1, "answered before it slept");
}

/// A ring that cannot be served, because its CQ is full, is no reason to stay awake; once its
/// client reads, it is served, whatever other rings do in the meantime.
#[test]
fn rule_5_a_blocked_ring_sleeps_and_is_looked_at_again() {
    for noisy in [false, true] {
        let mut pair = pair();
        let session = pair.world.clients[SENDER].session;
        let blocked = pair.world.ring(session, 16, 2);
        let noise = pair.world.ring(session, 16, 2);
        for client in [blocked, noise] {
            for _ in 0..4 {
                pair.world.push(client, nop());
            }
        }
        pair.world.settle();
        for _ in 0..4 {
            pair.world.engine.fall_asleep();
            pair.world.turn();
        }
        assert!(pair.world.engine.fall_asleep());
        assert_eq!(pair.world.pop(blocked).len(), 2);
        let ring = pair.world.clients[noise].ring;
        // The other one rings its bell again and again, but does not read.
        let mut turns = 0;
        while pair.world.clients[blocked].taken() < 4 {
            turns += 1;
            assert!(turns < 10_000, "never looked at again, noisy: {noisy}");
            if noisy {
                pair.world.engine.wake(ring);
            }
            pair.world.turn();
            pair.world.engine.fall_asleep();
        }
    }
}
