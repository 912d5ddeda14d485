//! CANCEL: in every state, by all three keys, in the ring and on the control socket, with
//! searches that take longer than a turn.

use super::script::{Script, Stage};
use super::why::why;
use super::world::{
    LIMITS, Pair, RECEIVER, REGION_BYTES, SENDER, World, arm, cancel, failed, flush, moved, nop,
    outcome, revoke,
};
use crate::abi::{
    CANCEL_BY_NUMBER, CANCEL_BY_RECORD, CANCEL_BY_USER_DATA, CQE_RETRYABLE, Class, Cqe, Detail,
    SQE_SKIP_SUCCESS, Sqe, errno,
};
use crate::engine::{Limits, Reply};

const KEYS: [u64; 3] = [CANCEL_BY_USER_DATA, CANCEL_BY_NUMBER, CANCEL_BY_RECORD];
const TAKEN_BACK: (i32, u16, u16) = (-errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled as u16);

/// One request at a time, and nothing completes by itself.
pub(super) fn held(entries: u32) -> (Stage, Pair<Script>) {
    let limits = Limits { window_wrs: 1, ..LIMITS };
    held_under(limits, entries)
}

pub(super) fn held_under(limits: Limits, entries: u32) -> (Stage, Pair<Script>) {
    let stage = Stage::new();
    let pair = Pair::new(World::new(limits, stage.fabric(limits)), entries);
    stage.hold();
    (stage, pair)
}

/// The key by which a target is known: as its `user_data`, number or record.
fn key(pair: &mut Pair<Script>, by: u64, number: u64) -> u64 {
    match by {
        CANCEL_BY_USER_DATA => 1_000 + number,
        CANCEL_BY_NUMBER => number,
        _ => why(pair, SENDER, number).map_or(7, |why| why.record.0),
    }
}

pub(super) fn push_known(pair: &mut Pair<Script>, sqe: Sqe) -> u64 {
    let number = pair.world.clients[SENDER].end.pushed();
    pair.world.push(SENDER, Sqe { user_data: 1_000 + number, ..sqe })
}

/// What CANCEL finds, and what must come of both.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    Queued,
    PostedInPart,
    PostedWhole,
    Done,
    Armed,
    ArmedAndDelivering,
    Flushing,
    Revoking,
    NeverThere,
}

const CASES: [Case; 9] = [
    Case::Queued,
    Case::PostedInPart,
    Case::PostedWhole,
    Case::Done,
    Case::Armed,
    Case::ArmedAndDelivering,
    Case::Flushing,
    Case::Revoking,
    Case::NeverThere,
];

/// Brings SQE 1 into the state to be tried; SQE 0 holds the window where that is needed.
fn prepare(stage: &Stage, pair: &mut Pair<Script>, case: Case) {
    let first = match case {
        Case::PostedInPart | Case::PostedWhole | Case::Done => nop(),
        _ => pair.write(0, 64),
    };
    push_known(pair, first);
    let sqe = match case {
        Case::Queued | Case::PostedWhole => pair.write(128, 64),
        Case::PostedInPart => pair.write(128, 600),
        Case::Done => nop(),
        Case::Armed => arm(pair.near, 3),
        Case::ArmedAndDelivering => arm(pair.near, 3),
        Case::Flushing => flush(pair.near),
        Case::Revoking => revoke(pair.near),
        Case::NeverThere => return,
    };
    push_known(pair, sqe);
    pair.world.turn();
    if case == Case::ArmedAndDelivering {
        let (receiver, region) = (pair.world.clients[RECEIVER].session, pair.near);
        let far = pair.world.import(receiver, region);
        let tell = Sqe { local_region: pair.target.0, remote_region: far.0, ..pair.tell(5) };
        pair.world.push(RECEIVER, tell);
        stage.complete_all();
        pair.world.turn();
        stage.complete_all();
        pair.world.turn();
    }
}

/// How the CANCEL is answered, and how its target ends.
fn answers(case: Case) -> (i32, Option<(i32, u16, u16)>) {
    match case {
        Case::Queued | Case::Armed | Case::ArmedAndDelivering => (0, Some(TAKEN_BACK)),
        Case::Flushing | Case::Revoking => (0, Some(TAKEN_BACK)),
        Case::PostedInPart => (-errno::EALREADY, Some(moved(600))),
        Case::PostedWhole => (-errno::EALREADY, Some(moved(64))),
        Case::Done => (-errno::ENOENT, Some((0, 0, 0))),
        Case::NeverThere => (-errno::ENOENT, None),
    }
}

#[test]
fn f16_cancel_in_every_state_and_by_every_key() {
    for case in CASES {
        for by in KEYS {
            for in_ring in [true, false] {
                let (stage, mut pair) = held(16);
                prepare(&stage, &mut pair, case);
                let target = key(&mut pair, by, 1);
                let (res, end) = answers(case);
                let said = if in_ring {
                    let number = pair.world.push(SENDER, cancel(by, target));
                    finish(&stage, &mut pair);
                    check(&mut pair, number, end)
                } else {
                    let token = pair.world.query(SENDER, by, target, true);
                    finish(&stage, &mut pair);
                    check(&mut pair, 99, end);
                    match pair.world.reply(token) {
                        Some(Reply::Cancelled { .. }) => 0,
                        Some(Reply::Failed { errno, .. }) => -errno,
                        other => panic!("{other:?}"),
                    }
                };
                assert_eq!(said, res, "{case:?} by {by}, in the ring: {in_ring}");
                pair.world.expect_rest();
            }
        }
    }
}

fn finish(stage: &Stage, pair: &mut Pair<Script>) {
    pair.world.turn();
    stage.release();
    pair.world.settle();
}

/// Reads all CQEs; SQE 1 must have ended like this, and before the CANCEL, whose `res` is returned.
fn check(pair: &mut Pair<Script>, number: u64, end: Option<(i32, u16, u16)>) -> i32 {
    let cqes = pair.world.pop(SENDER);
    let finals = |cqe: &&Cqe| cqe.flags & crate::abi::CQE_MORE == 0;
    let find = |user_data: u64| {
        let found: Vec<usize> = (0..cqes.len())
            .filter(|&at| finals(&&cqes[at]) && cqes[at].user_data == user_data)
            .collect();
        assert!(found.len() < 2, "two final CQEs: {cqes:?}");
        found.first().copied()
    };
    let target = find(1_001);
    assert_eq!(target.map(|at| outcome(&cqes[at])), end, "{cqes:?}");
    let Some(request) = find(number) else { return 1 };
    if cqes[request].res == 0 {
        assert!(target.unwrap() < request, "the target's CQE comes first: {cqes:?}");
    }
    assert_eq!((cqes[request].flags, cqes[request].detail), (0, 0));
    cqes[request].res
}

#[test]
fn a_cancel_finds_neither_itself_nor_others_of_its_kind() {
    let (_stage, mut pair) = held(16);
    let known = Sqe { user_data: 77, ..cancel(CANCEL_BY_USER_DATA, 77) };
    let cqe = pair.world.run(SENDER, known);
    assert_eq!(outcome(&cqe), (-errno::ENOENT, 0, 0));
    let cqe = pair.world.run(SENDER, cancel(CANCEL_BY_NUMBER, 1));
    assert_eq!(outcome(&cqe), (-errno::ENOENT, 0, 0));
}

#[test]
fn of_several_with_one_user_data_the_oldest_is_meant() {
    let (stage, mut pair) = held(16);
    for at in 0..4 {
        let sqe = Sqe { user_data: 9, ..pair.write(at * 64, 64) };
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    // The oldest is posted; that the others could be taken back does not matter.
    pair.world.push(SENDER, cancel(CANCEL_BY_USER_DATA, 9));
    pair.world.turn();
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), (-errno::EALREADY, 0, 0));
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 4);
}

#[test]
fn a_cancel_reaches_its_own_ring_only() {
    let (stage, mut pair) = held(16);
    for _ in 0..2 {
        let sqe = Sqe { user_data: 9, ..pair.write(0, 64) };
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    let record = why(&mut pair, SENDER, 1).unwrap().record;
    for sqe in [cancel(CANCEL_BY_USER_DATA, 9), cancel(CANCEL_BY_RECORD, record.0)] {
        pair.world.push(RECEIVER, sqe);
        pair.world.turn();
        assert_eq!(outcome(&pair.world.pop(RECEIVER)[0]), (-errno::ENOENT, 0, 0));
    }
    let sqe = cancel(CANCEL_BY_RECORD, record.0 ^ 1 << 32);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    let stale = outcome(&pair.world.pop(SENDER)[0]);
    assert_eq!(stale, (-errno::ENOENT, 0, 0), "another generation of the record");
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 2);
}

#[test]
fn rule_6_an_op_taken_back_never_reaches_the_fabric() {
    let (stage, mut pair) = held(16);
    for at in 0..8 {
        let sqe = Sqe { flags: SQE_SKIP_SUCCESS, ..pair.write(at * 64, 64) };
        pair.world.push(SENDER, sqe);
    }
    for number in [2, 3, 7] {
        pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, number));
    }
    pair.world.turn();
    pair.world.turn();
    stage.release();
    pair.world.settle();
    let offsets: Vec<u64> = stage.plan().taken.iter().map(|r| r.remote_offset / 64).collect();
    assert_eq!(offsets, [0, 1, 4, 5, 6]);
    let cqes = pair.world.pop(SENDER);
    let taken_back: Vec<u64> = cqes
        .iter()
        .filter_map(|cqe| (outcome(cqe) == TAKEN_BACK).then_some(cqe.user_data))
        .collect();
    assert_eq!((taken_back, cqes.len()), (vec![2, 3, 7], 6), "failures are not skipped");
}

/// 1,200 ops in flight on one ring: a search takes several turns. Once it was only moved on when
/// further SQEs came, and a CANCEL at the end of a burst was never answered.
#[test]
fn a_long_search_ends_by_itself() {
    let limits = Limits { window_wrs: 1, records: 4096, intake_budget: 2048, ..LIMITS };
    for by in [CANCEL_BY_USER_DATA, CANCEL_BY_NUMBER] {
        for target in [0, 600, 1_199, 5_000] {
            for in_ring in [true, false] {
                let (stage, mut pair) = held_under(limits, 2048);
                for at in 0..1_200 {
                    let sqe = pair.write(at % 1_000 * 64, 64);
                    push_known(&mut pair, sqe);
                }
                pair.world.turn();
                let target_key = key(&mut pair, by, target);
                let res = if in_ring {
                    pair.world.push(SENDER, cancel(by, target_key));
                    for _ in 0..8 {
                        pair.world.turn();
                    }
                    pair.world.pop(SENDER).last().map(|cqe| cqe.res)
                } else {
                    let token = pair.world.query(SENDER, by, target_key, true);
                    for _ in 0..8 {
                        pair.world.turn();
                    }
                    pair.world.reply(token).map(|reply| match reply {
                        Reply::Failed { errno, .. } => -errno,
                        _ => 0,
                    })
                };
                let must = match target {
                    0 => -errno::EALREADY,
                    5_000 => -errno::ENOENT,
                    _ => 0,
                };
                assert_eq!(res, Some(must), "{target} by {by}, in the ring: {in_ring}");
                pair.world.audited = false;
                stage.release();
                pair.world.settle();
                pair.world.expect_rest();
            }
        }
    }
}

/// The op that a search stands at leaves; the search goes on with the next.
#[test]
fn a_search_survives_the_op_under_its_cursor() {
    let limits = Limits { window_wrs: 4, records: 4096, intake_budget: 2048, ..LIMITS };
    for in_ring in [true, false] {
        for leaving in 250..262 {
            let (stage, mut pair) = held_under(limits, 2048);
            for at in 0..1_000 {
                // A few in the middle are first in line, so that they can end.
                let class = if at == leaving { Class::High } else { Class::Low };
                let sqe = pair.write_as(class, at % 1_000 * 64, 64);
                push_known(&mut pair, sqe);
            }
            pair.world.turn();
            let token = if in_ring {
                pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 999));
                0
            } else {
                pair.world.query(SENDER, CANCEL_BY_NUMBER, 999, true)
            };
            // One turn of searching, in which the cursor stops at 256, or near it; then the ops
            // around it end.
            pair.world.turn();
            stage.complete_all();
            for _ in 0..8 {
                pair.world.turn();
            }
            let cqes = pair.world.pop(SENDER);
            let back = cqes.iter().find(|cqe| cqe.user_data == 1_999).map(outcome);
            assert_eq!(back, Some(TAKEN_BACK), "{leaving} left, in the ring: {in_ring}");
            if !in_ring {
                let reply = pair.world.reply(token);
                assert!(matches!(reply, Some(Reply::Cancelled { .. })), "{reply:?}");
            }
        }
    }
}

/// While a CANCEL searches, its ring's later SQEs wait, and other rings do not.
#[test]
fn a_search_holds_its_own_ring_only() {
    let limits = Limits { window_wrs: 1, records: 4096, intake_budget: 2048, ..LIMITS };
    let (stage, mut pair) = held_under(limits, 2048);
    for at in 0..1_000 {
        let sqe = pair.write(at * 64, 64);
        push_known(&mut pair, sqe);
    }
    pair.world.turn();
    pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 999));
    pair.world.push(SENDER, nop());
    pair.world.push(RECEIVER, nop());
    pair.world.turn();
    assert_eq!(pair.world.clients[SENDER].taken(), 1_001);
    assert_eq!(pair.world.pop(RECEIVER).len(), 1);
    for _ in 0..8 {
        pair.world.turn();
    }
    let users: Vec<u64> = pair.world.pop(SENDER).iter().map(|cqe| cqe.user_data).collect();
    assert_eq!(users, [1_999, 1_000, 1_001], "the target, the CANCEL, the NOP");
    stage.release();
    pair.world.settle();
}

#[test]
fn a_query_about_a_ring_that_is_not_there_finds_nothing() {
    let (_stage, mut pair) = held(16);
    for ring in [5, 7, 8, u32::MAX] {
        let token = pair.world.token();
        pair.world.engine.command(crate::engine::Command::Query {
            ring: crate::ids::RingId(ring),
            by: CANCEL_BY_NUMBER,
            target: 0,
            cancel: true,
            token,
        });
        pair.world.turn();
        let reply = pair.world.reply(token);
        assert!(matches!(reply, Some(Reply::Failed { errno: errno::ENOENT, .. })), "{reply:?}");
    }
    let late = failed(errno::ENOENT, 0, Detail::None);
    assert_eq!(outcome(&pair.world.run(SENDER, cancel(CANCEL_BY_RECORD, REGION_BYTES))), late);
}
