//! What one uid has posted of class high at once is bounded, over all its sessions and devices:
//! its high ops then wait for bytes, and nobody else does. Every audit counts the bytes, too.

use super::script::{Script, Stage};
use super::world::{LIMITS, Pair, RECEIVER, SENDER, World};
use crate::abi::{Class, Counter, WAIT_CAP};
use crate::engine::Limits;
use crate::ids::{RegionId, SessionId};
use crate::ledger::State;
use crate::sched::{Mode, Policy};

/// A pair of which the sender's uid may have so many bytes of class high posted; the window has
/// room for more. Nothing completes by itself.
fn capped(mode: Mode, high_max: u64) -> (Stage, Pair<Script>) {
    let policy = Policy { mode, ..Policy::DEFAULT };
    let limits = Limits { window_wrs: 16, window_bytes: 4_096, policy, ..LIMITS };
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 32);
    pair.world.engine.owners[0].high_max = high_max;
    stage.hold();
    (stage, pair)
}

fn push(pair: &mut Pair<Script>, client: usize, class: Class, bytes: u32) {
    let sqe = pair.write_as(class, 0, bytes);
    pair.world.push(client, sqe);
}

/// Bytes of each request in the fabric.
fn posted(stage: &Stage) -> Vec<u32> {
    stage.plan().held.iter().map(|request| request.bytes).collect()
}

/// The same, whatever the order in which classes had their turns.
fn sorted(stage: &Stage) -> Vec<u32> {
    let mut posted = posted(stage);
    posted.sort_unstable();
    posted
}

/// Ends a request of so many bytes.
fn complete(stage: &Stage, bytes: u32) {
    let at = posted(stage).iter().position(|posted| *posted == bytes);
    stage.complete(at.unwrap(), 0);
}

fn waits(pair: &Pair<Script>, wait: u16) -> usize {
    let ledger = &pair.world.engine.ledger;
    let waits = |slot: &u32| ledger[*slot].state == State::Queued && ledger[*slot].wait == wait;
    (0..ledger.capacity()).filter(waits).count()
}

fn end(stage: &Stage, pair: &mut Pair<Script>) {
    stage.release();
    pair.world.settle();
    pair.world.expect_rest();
}

#[test]
fn high_ops_wait_at_their_uid_s_bound_and_others_pass() {
    for mode in [Mode::Weighted, Mode::Strict] {
        let (stage, mut pair) = capped(mode, 100);
        for _ in 0..4 {
            push(&mut pair, SENDER, Class::High, 40);
        }
        push(&mut pair, SENDER, Class::Medium, 7);
        push(&mut pair, SENDER, Class::Low, 8);
        pair.world.turn();
        assert_eq!(sorted(&stage), [7, 8, 40, 40], "{mode}: two of class high, and the others");
        assert_eq!(waits(&pair, WAIT_CAP), 1, "the one in turn says what it waits for");
        assert!(pair.world.engine.owners[0].wants_high.is_some());
        let counters = &pair.world.engine.sessions[0].counters;
        assert_eq!(counters[Counter::Defers as usize], 1);
        pair.world.turn();
        let counters = &pair.world.engine.sessions[0].counters;
        assert_eq!(counters[Counter::Defers as usize], 1, "nobody asks in vain meanwhile");
        complete(&stage, 8);
        pair.world.turn();
        assert_eq!(sorted(&stage), [7, 40, 40], "what is not of class high makes no room");
        complete(&stage, 40);
        pair.world.turn();
        assert_eq!(sorted(&stage), [7, 40, 40], "the third");
        end(&stage, &mut pair);
    }
}

#[test]
fn one_request_beyond_the_bound_goes_alone_slice_by_slice() {
    let (stage, mut pair) = capped(Mode::Weighted, 100);
    push(&mut pair, SENDER, Class::High, 600);
    push(&mut pair, SENDER, Class::High, 10);
    for left in [256, 256, 88] {
        pair.world.turn();
        assert_eq!(posted(&stage)[0], left);
        assert_eq!(posted(&stage).len(), 1 + usize::from(left == 88), "with the next, if it fits");
        stage.complete(0, 0);
    }
    end(&stage, &mut pair);
}

/// Sessions of one uid share the bound; those of another have their own.
#[test]
fn the_bound_is_the_uid_s() {
    let (stage, mut pair) = capped(Mode::Weighted, 100);
    let engine_max = pair.world.engine.limits.records;
    let second = pair.world.session_of(2, 0, engine_max, Class::High);
    pair.world.engine.owners[0].high_max = 100;
    let client = pair.world.ring(second, 8, 8);
    let near = pair.world.region(second, 4_096);
    let far = pair.world.import(second, pair.target);
    let own = |near: RegionId, far: RegionId| crate::abi::Sqe {
        local_region: near.0,
        remote_region: far.0,
        ..pair.write_as(Class::High, 0, 30)
    };
    let sqe = own(near, far);
    let receiver = SessionId(1);
    let other = (pair.target, pair.world.region(receiver, 4_096));
    let other = (other.0, pair.world.import(receiver, other.1));
    push(&mut pair, SENDER, Class::High, 90);
    pair.world.turn();
    pair.world.push(client, sqe);
    let theirs = crate::abi::Sqe {
        local_region: other.0.0,
        remote_region: other.1.0,
        ..pair.write_as(Class::High, 0, 99)
    };
    pair.world.push(RECEIVER, theirs);
    pair.world.turn();
    assert_eq!(posted(&stage), [90, 99], "the second session waits, the other uid does not");
    stage.complete(0, 0);
    pair.world.turn();
    assert_eq!(posted(&stage), [99, 30]);
    end(&stage, &mut pair);
}

/// What a device did not take was not posted.
#[test]
fn what_the_device_refuses_makes_room_again() {
    let (stage, mut pair) = capped(Mode::Weighted, 100);
    stage.plan().takes.push_back(1);
    for _ in 0..3 {
        push(&mut pair, SENDER, Class::High, 40);
    }
    pair.world.turn();
    assert_eq!(posted(&stage), [40]);
    pair.world.turn();
    assert_eq!(posted(&stage), [40, 40]);
    end(&stage, &mut pair);
}

/// In every mode all of it goes in the end, and the bound holds meanwhile.
#[test]
fn the_bound_holds_in_every_mode() {
    for mode in Mode::ALL {
        let (stage, mut pair) = capped(mode, 100);
        for at in 0..24 {
            let class = Class::ALL[at as usize % 3];
            push(&mut pair, SENDER, class, 30 * (at % 5));
        }
        stage.release();
        pair.world.settle();
        assert_eq!(pair.world.pop(SENDER).len(), 24, "{mode}");
        pair.world.expect_rest();
    }
}
