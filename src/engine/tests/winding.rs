//! Winding up: rings released or drained with ops in every state, regions and imports taken back
//! under load, and sessions that leave nothing behind.

use super::script::{Script, Stage};
use super::watched::entries;
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, World, arm, cancel, failed, flush, moved, nop, outcome, revoke,
};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_MAYBE_DONE, CQE_RETRYABLE, Class, Counter, Detail, ENGINE_CLOSING, Sqe,
    errno,
};
use crate::engine::{Command, Limits, Reply, Wind};

fn held(limits: Limits) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(limits, stage.fabric(limits)), 16);
    stage.hold();
    (stage, pair)
}

const CLOSING: (i32, u16, u16) = (-errno::ESHUTDOWN, CQE_RETRYABLE, Detail::Closing as u16);

/// Ops in every state, by number: posted whole, posted in part, queued, an ARM, a FLUSH that waits.
fn load(pair: &mut Pair<Script>) {
    let sqes = [
        pair.write_as(Class::High, 0, 64),
        pair.write_as(Class::Medium, 512, 600),
        pair.write_as(Class::Low, 2048, 64),
        arm(pair.near, 3),
        flush(pair.near),
    ];
    for sqe in sqes {
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
}

#[test]
fn f17_a_ring_wound_up_by_cancel_ends_ops_in_every_state() {
    let (stage, mut pair) = held(Limits { window_wrs: 2, ..LIMITS });
    load(&mut pair);
    assert_eq!(stage.held(), 2);
    let token = pair.world.wind(SENDER, Wind::Cancel);
    // What stands in the SQ is not taken any more.
    let late = pair.world.push(SENDER, nop());
    (0..4).for_each(|_| {
        pair.world.turn();
    });
    assert_eq!(pair.world.flags(SENDER), ENGINE_CLOSING);
    assert!(pair.world.reply(token).is_none(), "two slices are with the fabric");
    stage.complete_all();
    (0..4).for_each(|_| {
        pair.world.turn();
    });
    let reply = pair.world.reply(token);
    let Some(Reply::RingGone { ring, .. }) = reply else { panic!("{reply:?}") };
    assert_eq!(ring.id(), pair.world.clients[SENDER].ring);
    let cqes = pair.world.pop(SENDER);
    let end = |number: u64| {
        let mut ends = cqes.iter().filter(|cqe| cqe.user_data == number);
        let end = outcome(ends.next().unwrap());
        assert!(ends.next().is_none());
        end
    };
    assert_eq!(end(0), moved(64));
    assert_eq!(end(1), failed(errno::ESHUTDOWN, CQE_MAYBE_DONE, Detail::Closing));
    assert_eq!(end(2), CLOSING);
    assert_eq!(end(3), failed(errno::ESHUTDOWN, 0, Detail::Closing));
    assert_eq!(end(4), (0, 0, 0), "a FLUSH runs to its end");
    assert_eq!((cqes.len(), pair.world.clients[SENDER].taken()), (5, late));
    assert_eq!(entries(&pair.world.clients[SENDER].heap), []);
    assert_eq!(stage.plan().taken.len(), 2);
    pair.world.expect_rest();
}

#[test]
fn a_ring_wound_up_by_draining_finishes_what_it_took() {
    let (stage, mut pair) = held(Limits { window_wrs: 2, ..LIMITS });
    load(&mut pair);
    let token = pair.world.wind(SENDER, Wind::Drain);
    pair.world.turn();
    stage.release();
    pair.world.settle();
    let reply = pair.world.reply(token);
    assert!(matches!(reply, Some(Reply::RingGone { .. })), "{reply:?}");
    let mut ends: Vec<_> =
        pair.world.pop(SENDER).iter().map(|cqe| (cqe.user_data, outcome(cqe))).collect();
    ends.sort_unstable();
    let armed = failed(errno::ESHUTDOWN, 0, Detail::Closing);
    let must = [moved(64), moved(600), moved(64), armed, (0, 0, 0)];
    assert_eq!(ends, (0..).zip(must).collect::<Vec<_>>());
    pair.world.expect_rest();
}

/// A drain that takes too long is followed by a cancel; the first command is answered, too.
#[test]
fn a_drain_can_be_hurried() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    for at in 0..5 {
        let sqe = pair.write(at * 64, 64);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let drain = pair.world.wind(SENDER, Wind::Drain);
    (0..3).for_each(|_| {
        pair.world.turn();
    });
    assert_eq!(pair.world.pop(SENDER), []);
    let hurry = pair.world.wind(SENDER, Wind::Cancel);
    pair.world.turn();
    assert_eq!(pair.world.pop(SENDER).len(), 4, "what was queued is taken back");
    stage.complete_all();
    (0..2).for_each(|_| {
        pair.world.turn();
    });
    assert!(matches!(pair.world.reply(drain), Some(Reply::Done { .. })));
    assert!(matches!(pair.world.reply(hurry), Some(Reply::RingGone { .. })));
    let again = pair.world.wind(SENDER, Wind::Cancel);
    let reply = pair.world.reply(again);
    let gone = matches!(reply, Some(Reply::Failed { detail: Detail::Ring, .. }));
    assert!(gone, "{reply:?}");
}

/// Long rings are wound up in bounded steps, also while a CANCEL searches and ops end under the
/// cursor of the winding.
#[test]
fn a_long_ring_is_wound_up_with_everything_in_motion() {
    for mode in [Wind::Cancel, Wind::Drain] {
        for leaving in 250..262 {
            let limits = Limits { records: 2048, window_wrs: 4, intake_budget: 2048, ..LIMITS };
            let stage = Stage::new();
            let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 1024);
            stage.hold();
            pair.world.audited = false;
            for at in 0..800 {
                let class = if at == leaving { Class::High } else { Class::Low };
                let sqe = pair.write_as(class, at * 64, 8);
                pair.world.push(SENDER, sqe);
            }
            pair.world.turn();
            pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 5_000));
            pair.world.turn();
            let token = pair.world.wind(SENDER, mode);
            pair.world.turn();
            stage.release();
            pair.world.settle();
            let reply = pair.world.reply(token);
            assert!(matches!(reply, Some(Reply::RingGone { .. })), "{reply:?}");
            let cqes = pair.world.pop(SENDER);
            assert_eq!(cqes.len(), 801);
            let good = cqes.iter().filter(|cqe| cqe.res == 8).count();
            let queued = cqes.iter().filter(|cqe| outcome(cqe) == CLOSING).count();
            assert_eq!(good + queued, 801, "{mode:?}");
            assert!(if mode == Wind::Drain { queued == 1 } else { queued > 700 }, "{queued}");
            pair.world.audited = true;
            pair.world.turn();
            pair.world.expect_rest();
        }
    }
}

#[test]
fn a_region_taken_back_under_load_ends_importers_ops() {
    let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
    for at in 0..4 {
        let sqe = pair.write(at * 64, 64);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let token = pair.world.remove(pair.target);
    (0..4).for_each(|_| {
        pair.world.turn();
    });
    assert!(pair.world.reply(token).is_none(), "one op is with the fabric");
    let again = pair.world.remove(pair.target);
    let reply = pair.world.reply(again);
    assert!(matches!(reply, Some(Reply::Failed { errno: errno::ENOENT, .. })), "{reply:?}");
    stage.complete_all();
    (0..4).for_each(|_| {
        pair.world.turn();
    });
    let reply = pair.world.reply(token);
    assert!(matches!(reply, Some(Reply::RegionGone { memory: Some(_), .. })), "{reply:?}");
    let stale = failed(errno::ESTALE, 0, Detail::Revoked);
    let ends: Vec<_> = pair.world.pop(SENDER).iter().map(outcome).collect();
    assert_eq!(ends, [stale, stale, stale, moved(64)]);
    let sqe = pair.write(0, 64);
    pair.world.push(SENDER, sqe);
    pair.world.settle();
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), stale);
}

#[test]
fn an_own_region_and_an_import_are_free_when_their_ops_are_over() {
    for import in [false, true] {
        let (stage, mut pair) = held(Limits { window_wrs: 1, ..LIMITS });
        for at in 0..3 {
            let sqe = pair.write(at * 64, 64);
            pair.world.push(SENDER, sqe);
        }
        pair.world.turn();
        let region = if import { pair.far } else { pair.near };
        let token = pair.world.remove(region);
        let sqe = pair.write(1024, 64);
        pair.world.push(SENDER, sqe);
        (0..3).for_each(|_| {
            pair.world.turn();
        });
        let cqes = pair.world.pop(SENDER);
        let detail = if import { Detail::RemoteRegion } else { Detail::LocalRegion };
        assert_eq!(outcome(&cqes[0]), failed(errno::EINVAL, 0, detail), "no new op names it");
        for left in (0..3).rev() {
            assert!(pair.world.reply(token).is_none(), "{left} ops name it");
            stage.complete_all();
            pair.world.turn();
        }
        let reply = pair.world.reply(token);
        let Some(Reply::RegionGone { memory, .. }) = reply else { panic!("{reply:?}") };
        assert_eq!(memory.is_none(), import, "imports have no memory");
        assert_eq!(pair.world.pop(SENDER).len(), 3);
        pair.world.expect_rest();
    }
}

/// A session leaves with everything under way, and what it had goes to the next one.
#[test]
fn a_session_that_left_leaves_nothing() {
    let (stage, mut pair) = held(Limits { window_wrs: 2, ..LIMITS });
    let receiver = pair.world.clients[RECEIVER].session;
    let back = pair.world.import(receiver, pair.near);
    for round in 0..3 {
        load(&mut pair);
        let strange = Sqe { local_region: pair.target.0, remote_region: back.0, ..pair.tell(1) };
        pair.world.push(RECEIVER, strange);
        pair.world.turn();
        pair.world.push(SENDER, revoke(pair.near));
        pair.world.turn();
        let ring = pair.world.wind(SENDER, Wind::Cancel);
        let region = pair.world.remove(pair.near);
        let import = pair.world.remove(pair.far);
        stage.release();
        pair.world.settle();
        for token in [ring, region, import] {
            let reply = pair.world.reply(token);
            let gone = matches!(reply, Some(Reply::RingGone { .. } | Reply::RegionGone { .. }));
            assert!(gone, "{reply:?}");
        }
        let session = pair.world.clients[SENDER].session;
        let token = pair.world.token();
        pair.world.engine.command(Command::RemoveSession { session, token });
        pair.world.expect_done(token);
        pair.world.expect_rest();
        let stale = failed(errno::ESTALE, 0, Detail::Revoked);
        assert_eq!(pair.world.pop(RECEIVER).iter().map(outcome).collect::<Vec<_>>(), [stale]);
        let token = pair.world.token();
        pair.world.engine.command(Command::Stats { session: None, token });
        let reply = pair.world.reply(token);
        let Some(Reply::Stats { counters, .. }) = reply else { panic!("{reply:?}") };
        let count = |counter: Counter| counters[counter as usize];
        assert_eq!(count(Counter::Taken), 7 * (round + 1), "counters of the departed stay");
        assert_eq!(count(Counter::Taken), count(Counter::Completed));
        assert_eq!(count(Counter::InFlight), 0);
        assert_eq!(count(Counter::Refused), round, "once its target is gone, it is not taken");
        // The next one, in the same places.
        pair.world.session(session.0);
        let client = pair.world.ring(session, 16, 16);
        pair.world.clients.swap(SENDER, client);
        pair.world.clients.truncate(2);
        pair.near = pair.world.region(session, super::world::REGION_BYTES);
        pair.far = pair.world.import(session, pair.target);
        stage.hold();
    }
}

/// Two sessions of one uid share its ops; a second uid has its own.
#[test]
fn ops_of_one_uid_are_limited_together() {
    let stage = Stage::new();
    let mut world = World::new(LIMITS, stage.fabric(LIMITS));
    stage.hold();
    let mut clients = Vec::new();
    for (place, owner) in [(0, 0), (1, 0), (2, 1)] {
        let session = world.session_of(place, owner, 6, Class::High);
        clients.push(world.ring(session, 16, 16));
        let near = world.region(session, 4096);
        let own = world.import(session, near);
        for _ in 0..10 {
            let sqe = Sqe {
                opcode: crate::abi::Opcode::Write as u8,
                local_region: near.0,
                remote_region: own.0,
                remote_offset: 2048,
                bytes: 8,
                ..nop()
            };
            world.push(clients[place as usize], sqe);
        }
    }
    world.turn();
    world.turn();
    let taken: Vec<u64> = clients.iter().map(|&client| world.clients[client].taken()).collect();
    assert_eq!((taken[0] + taken[1], taken[2]), (6, 6));
    stage.release();
    world.settle();
    assert!(clients.iter().all(|&client| world.pop(client).len() == 10));
}
