//! WHY: where an op is, and what it waits for.

use super::cancel::{held, held_under, push_known};
use super::script::Script;
use super::world::{LIMITS, Pair, SENDER, World, arm, cancel, flush, nop, nop_skipped};
use crate::abi::{
    CANCEL_BY_NUMBER, CANCEL_BY_USER_DATA, Class, MODE_STRICT, Opcode, STATE_ARMED, STATE_FLUSHING,
    STATE_POSTED, STATE_QUEUED, STATE_UNTAKEN, Sqe, WAIT_BELL, WAIT_CLASS, WAIT_CLOSED, WAIT_CQ,
    WAIT_EARLIER, WAIT_FABRIC, WAIT_INTAKE, WAIT_LANE, WAIT_NONE, WAIT_NOTIFY, WAIT_PAGES,
    WAIT_QUOTA_OPS, WAIT_RECORDS, WAIT_SEARCH, WAIT_WINDOW_BYTES, WAIT_WINDOW_WRS, errno,
};
use crate::engine::{Limits, Reply, Why, Wind};
use crate::fabric::{Fabric, Local};
use crate::ring::Word;

pub(super) fn why(pair: &mut Pair<Script>, client: usize, number: u64) -> Option<Why> {
    ask(&mut pair.world, client, number)
}

fn ask<F: Fabric>(world: &mut World<F>, client: usize, number: u64) -> Option<Why>
where
    F::Memory: From<std::sync::Arc<crate::shm::Mapping>> + std::fmt::Debug,
{
    let token = world.query(client, CANCEL_BY_NUMBER, number, false);
    world.turn();
    match world.reply(token) {
        Some(Reply::Why { why, .. }) => Some(why),
        Some(Reply::Failed { errno: errno::ENOENT, .. }) => None,
        other => panic!("WHY was answered with {other:?}"),
    }
}

/// The search begins before intake and ends after it: it has not seen what was taken between.
#[test]
fn an_op_is_found_that_is_taken_in_the_turn_of_the_question() {
    for before in [0, 1, 3] {
        let (_stage, mut pair) = held(16);
        for at in 0..before {
            let sqe = pair.write(at * 64, 8);
            push_known(&mut pair, sqe);
            pair.world.turn();
        }
        let sqe = pair.write(1024, 8);
        let number = pair.world.push(SENDER, sqe);
        let token = pair.world.query(SENDER, CANCEL_BY_NUMBER, number, false);
        pair.world.turn();
        pair.world.turn();
        let reply = pair.world.reply(token);
        let Some(Reply::Why { why, .. }) = reply else { panic!("{before}: {reply:?}") };
        let state = if before == 0 { STATE_POSTED } else { STATE_QUEUED };
        assert_eq!((why.number, why.state), (number, state), "{before}");
    }
}

#[test]
fn why_says_where_an_op_is_and_what_it_waits_for() {
    let (stage, mut pair) = held(16);
    let sqes = [
        pair.write_as(Class::Medium, 0, 600),
        pair.write_as(Class::Low, 1024, 64),
        pair.write_as(Class::Medium, 2048, 64),
        pair.write_as(Class::Medium, 4096, 64),
        arm(pair.near, 2),
        flush(pair.near),
    ];
    for sqe in sqes {
        push_known(&mut pair, sqe);
    }
    pair.world.turn();
    let said = |why: Why| (why.state, why.wait, why.ahead);
    let mut ask = |number| why(&mut pair, SENDER, number).unwrap();
    let first = ask(0);
    assert_eq!(said(first), (STATE_POSTED, WAIT_WINDOW_WRS, 0));
    assert_eq!((first.bytes, first.bytes_done, first.opcode), (600, 0, Some(Opcode::Write)));
    assert!(first.queued_ns == 0 && first.age_ns > 0 && first.defers > 0, "{first:?}");
    assert_eq!(said(ask(1)), (STATE_QUEUED, WAIT_CLASS, 0));
    assert_eq!(said(ask(2)), (STATE_QUEUED, WAIT_LANE, 1));
    let third = ask(3);
    assert_eq!(said(third), (STATE_QUEUED, WAIT_LANE, 2));
    assert_eq!((third.number, third.user_data, third.class), (3, 1_003, Some(Class::Medium)));
    assert_eq!(said(ask(4)), (STATE_ARMED, WAIT_NOTIFY, 0));
    assert_eq!(said(ask(5)), (STATE_FLUSHING, WAIT_EARLIER, 0));
    assert!(why(&mut pair, SENDER, 6).is_none());
    stage.complete_all();
    pair.world.turn();
    stage.complete_all();
    pair.world.turn();
    let rest = why(&mut pair, SENDER, 0).unwrap();
    assert_eq!((rest.state, rest.wait, rest.bytes_done), (STATE_POSTED, WAIT_FABRIC, 512));
    assert_eq!(pair.world.engine.ledger.id(rest.record.slot()), rest.record);
    stage.release();
    pair.world.settle();
}

#[test]
fn why_names_the_bytes_of_the_window() {
    let limits = Limits { window_bytes: 100, ..LIMITS };
    let (stage, mut pair) = held_under(limits, 16);
    for at in 0..2 {
        let sqe = pair.write(at * 64, 64);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let second = why(&mut pair, SENDER, 1).unwrap();
    assert_eq!((second.state, second.wait), (STATE_QUEUED, WAIT_WINDOW_BYTES));
    assert_eq!((second.used, second.limit, second.wants), (64, 100, 64));
    assert_eq!((second.rails, second.mode, second.origin), (0, MODE_STRICT, 0));
    let first = why(&mut pair, SENDER, 0).unwrap();
    assert_eq!((first.state, first.wait, first.limit), (STATE_POSTED, WAIT_FABRIC, 0));
    assert_eq!((first.posts, first.in_fabric, first.session.0), (1, 1, 0));
    assert_eq!(first.taken_ns + first.age_ns, pair.world.now_ns);
    stage.release();
    pair.world.settle();
}

#[test]
fn why_counts_what_is_in_use_of_what_is_lacked() {
    let limits = Limits { window_wrs: 2, ..LIMITS };
    let (stage, mut pair) = held_under(limits, 16);
    for at in 0..3 {
        let sqe = pair.write(at * 512, 300);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let second = why(&mut pair, SENDER, 1).unwrap();
    assert_eq!((second.state, second.wait), (STATE_QUEUED, WAIT_WINDOW_WRS));
    assert_eq!((second.used, second.limit, second.wants, second.ahead), (2, 2, 1, 0));
    let third = why(&mut pair, SENDER, 2).unwrap();
    assert_eq!((third.wait, third.ahead, third.limit), (WAIT_LANE, 1, 0));
    // Whoever was before it is gone, and nobody has tried it since.
    let token = pair.world.query(SENDER, CANCEL_BY_NUMBER, 1, true);
    pair.world.engine.turn(pair.world.now_ns);
    assert!(matches!(pair.world.reply(token), Some(Reply::Cancelled { .. })));
    let third = why(&mut pair, SENDER, 2).unwrap();
    assert_eq!((third.wait, third.ahead), (WAIT_WINDOW_WRS, 0));
    stage.release();
    pair.world.settle();
}

/// A world with one client, whose SQ is longer than what may be taken.
fn crowded(limits: Limits, ops_max: u32, cq_entries: u32) -> (World<Local>, Sqe) {
    let mut world = World::local(limits);
    let session = world.session_of(0, 0, ops_max, Class::High);
    world.ring(session, 16, cq_entries);
    let region = world.region(session, 4096);
    (world, arm(region, 1))
}

/// What the next SQE that is pushed waits for; `ahead` others of its ring are before it.
fn untaken(world: &mut World<Local>, sqe: Sqe, ahead: u32) -> Why {
    let number = world.push(0, sqe);
    world.turn();
    let why = ask(world, 0, number).expect("it is known");
    assert_eq!((why.state, why.number, why.record.0), (STATE_UNTAKEN, number, 0));
    assert_eq!((why.ahead, why.posts, why.taken_ns), (ahead, 0, 0));
    why
}

#[test]
fn why_knows_sqes_that_are_not_taken_and_what_holds_them() {
    // Two ARMs have promised all slots of the CQ.
    let (mut world, arm) = crowded(LIMITS, 64, 2);
    world.push(0, arm);
    world.push(0, arm);
    let third = untaken(&mut world, Sqe { user_data: 7, ..arm }, 0);
    assert_eq!((third.wait, third.used, third.limit, third.wants), (WAIT_CQ, 2, 2, 1));
    let fourth = untaken(&mut world, nop(), 1);
    assert_eq!((fourth.wait, fourth.used), (WAIT_CQ, 2));
    assert_eq!(ask(&mut world, 0, 4).map(|why| why.state), None, "it was never pushed");
    // As many ops as its uid may have.
    let (mut world, arm) = crowded(LIMITS, 1, 16);
    world.push(0, arm);
    let second = untaken(&mut world, Sqe { user_data: 7, ..arm }, 0);
    assert_eq!((second.wait, second.used, second.limit), (WAIT_QUOTA_OPS, 1, 1));
    assert_eq!((second.opcode, second.user_data), (Some(Opcode::Arm), 7), "the copy is read");
    // As many records as it may have: half of eight, and the part of one of four.
    let (mut world, arm) = crowded(Limits { records: 8, ..LIMITS }, 64, 16);
    for _ in 0..5 {
        world.push(0, arm);
    }
    let last = untaken(&mut world, arm, 0);
    assert_eq!((last.wait, last.used, last.limit, last.wants), (WAIT_RECORDS, 5, 5, 1));
    // Nothing more is taken from a ring that is going.
    let token = world.wind(0, Wind::Drain);
    let ring = world.clients[0].ring;
    let last = world.engine.why_untaken(ring, 5).unwrap();
    assert_eq!((last.wait, last.ahead), (WAIT_CLOSED, 0));
    world.settle();
    assert!(world.reply(token).is_some() && world.engine.why_untaken(ring, 5).is_none());
}

#[test]
fn why_tells_a_bell_that_was_not_rung_from_a_look_that_is_to_come() {
    let (mut world, _) = crowded(LIMITS, 64, 16);
    world.settle();
    assert!(world.engine.fall_asleep());
    // Published, and the bell, which the client is asked to ring, is not.
    let end = &mut world.clients[0].end;
    let number = end.push(nop().to_words()).unwrap();
    assert!(end.publish(), "it is to ring");
    for _ in 0..3 {
        let why = ask(&mut world, 0, number).unwrap();
        assert_eq!((why.state, why.wait, why.class), (STATE_UNTAKEN, WAIT_BELL, None));
    }
    let ring = world.clients[0].ring;
    world.engine.wake(ring);
    world.turn();
    assert!(ask(&mut world, 0, number).is_none(), "it is over");
    assert_eq!(world.pop(0).len(), 1);
    // More than one turn takes: the rest is taken by the next.
    for _ in 0..10 {
        world.push(0, nop_skipped());
    }
    let last = ask(&mut world, 0, 10).unwrap();
    assert_eq!((last.wait, last.ahead), (WAIT_INTAKE, 1));
    for _ in 0..9 {
        world.push(0, nop_skipped());
    }
    let next = ask(&mut world, 0, 17).unwrap();
    assert_eq!((next.wait, next.ahead), (WAIT_NONE, 0));
    world.settle();
    // A tail that cannot be is none.
    world.clients[0].store(Word::SqTail, 0x7000_0000);
    assert!(ask(&mut world, 0, 20).is_none());
}

#[test]
fn why_knows_a_page_list_without_room_and_a_search_that_is_not_over() {
    let (stage, mut pair) = held_under(LIMITS, 16);
    let page = crate::abi::Page { local_offset: 0, remote_offset: 0 };
    // 32 blocks are for all, and a session's part is 8.
    for _ in 0..3 {
        let sqe = pair.list(Opcode::Writev, &[page; 1000], 4);
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let third = why(&mut pair, SENDER, 2).unwrap();
    assert_eq!((third.state, third.wait), (STATE_UNTAKEN, WAIT_PAGES));
    assert_eq!((third.used, third.limit, third.wants), (32, 40, 16));
    stage.release();
    pair.world.settle();
    let (stage, mut pair) = held_under(Limits { records: 2048, ..LIMITS }, 512);
    for _ in 0..400 {
        let sqe = arm(pair.near, 1);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    pair.world.push(SENDER, cancel(CANCEL_BY_USER_DATA, 7_777));
    let behind = pair.world.push(SENDER, nop());
    pair.world.turn();
    let ring = pair.world.clients[SENDER].ring;
    let why = pair.world.engine.why_untaken(ring, behind).unwrap();
    assert_eq!((why.state, why.wait), (STATE_UNTAKEN, WAIT_SEARCH));
    stage.release();
}
