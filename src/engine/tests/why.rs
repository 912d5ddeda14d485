//! WHY: where an op is, and what it waits for.

use super::cancel::{held, held_under, push_known};
use super::script::Script;
use super::world::{LIMITS, Pair, SENDER, arm, flush};
use crate::abi::{
    CANCEL_BY_NUMBER, Class, Opcode, STATE_ARMED, STATE_FLUSHING, STATE_POSTED, STATE_QUEUED,
    WAIT_CLASS, WAIT_EARLIER, WAIT_FABRIC, WAIT_LANE, WAIT_NOTIFY, WAIT_WINDOW_BYTES,
    WAIT_WINDOW_WRS, errno,
};
use crate::engine::{Limits, Reply, Why};

pub(super) fn why(pair: &mut Pair<Script>, client: usize, number: u64) -> Option<Why> {
    let token = pair.world.query(client, CANCEL_BY_NUMBER, number, false);
    pair.world.turn();
    match pair.world.reply(token) {
        Some(Reply::Why { why, .. }) => Some(why),
        Some(Reply::Failed { errno: errno::ENOENT, .. }) => None,
        other => panic!("WHY was answered with {other:?}"),
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
    assert_eq!((first.bytes, first.bytes_done, first.opcode), (600, 0, Opcode::Write));
    assert!(first.queued_ns == 0 && first.age_ns > 0 && first.defers > 0, "{first:?}");
    assert_eq!(said(ask(1)), (STATE_QUEUED, WAIT_CLASS, 0));
    assert_eq!(said(ask(2)), (STATE_QUEUED, WAIT_LANE, 1));
    let third = ask(3);
    assert_eq!(said(third), (STATE_QUEUED, WAIT_LANE, 2));
    assert_eq!((third.number, third.user_data, third.class), (3, 1_003, Class::Medium));
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
    stage.release();
    pair.world.settle();
}
