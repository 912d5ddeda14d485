//! COALESCE: what is folded, what is not, and how those end that were (F24, F25). Every audit
//! looks at the index and the groups, at what owners are charged, and at the fate tables.

use std::collections::BTreeMap;

use super::cancel::{held, held_under};
use super::script::{BROKEN, Script, Stage};
use super::watched::entries;
use super::why::why;
use super::world::{
    LIMITS, Pair, RECEIVER, SENDER, STEP_NS, World, arm, cancel, failed, flush, moved, nop, outcome,
};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_COALESCED, CQE_DEP_FAILED, CQE_NOTIFY, CQE_RETRYABLE, Class, Counter,
    Cqe, Detail, FATE_ACCEPTED, Opcode, Page, SQE_COALESCE, SQE_DRAIN, SQE_HARDLINK, SQE_LINK,
    SQE_NO_MERGE, SQE_NOTIFY, SQE_SKIP_SUCCESS, SQE_SUPERSEDE, STATE_FOLDED, STATE_QUEUED, Sqe,
    WAIT_SURVIVOR, errno,
};
use crate::engine::{Limits, Reply, Wind};
use crate::fold::FOLDED_MAX;
use crate::ids::RingId;
use crate::ring::Word;
use crate::sched::{Contract, Policy};

/// Outcomes of attempts, in the order of their counters.
const OUTCOMES: [Counter; 6] = [
    Counter::FoldHit,
    Counter::FoldNone,
    Counter::FoldDisabled,
    Counter::FoldEdges,
    Counter::FoldKey,
    Counter::FoldStarted,
];

pub(super) fn counter(pair: &Pair<Script>, counter: Counter) -> u64 {
    pair.world.engine.sessions[0].counters[counter as usize]
}

pub(super) fn outcomes(pair: &Pair<Script>) -> [u64; 6] {
    OUTCOMES.map(|outcome| counter(pair, outcome))
}

/// An op that holds the window, and nothing completes by itself.
pub(super) fn blocked(entries: u32) -> (Stage, Pair<Script>) {
    let (stage, mut pair) = held(entries);
    let first = pair.write(60 << 10, 64);
    pair.world.push(SENDER, first);
    pair.world.turn();
    assert_eq!(stage.held(), 1);
    (stage, pair)
}

pub(super) fn folds(sqe: Sqe) -> Sqe {
    Sqe { flags: sqe.flags | SQE_COALESCE, ..sqe }
}

fn refresh(pair: &Pair<Script>) -> Sqe {
    folds(pair.write(0, 64))
}

/// CQEs by number.
pub(super) fn end(stage: &Stage, pair: &mut Pair<Script>) -> BTreeMap<u64, Cqe> {
    stage.release();
    pair.world.settle();
    let cqes = pair.world.pop(SENDER);
    let count = cqes.len();
    let by_number: BTreeMap<u64, Cqe> = cqes.into_iter().map(|cqe| (cqe.user_data, cqe)).collect();
    assert_eq!(by_number.len(), count, "two CQEs for one op");
    pair.world.expect_rest();
    by_number
}

/// What a CQE says, and whether it was folded into another op.
fn ended(cqe: &Cqe) -> ((i32, u16, u16), bool) {
    let (res, flags, detail) = outcome(cqe);
    ((res, flags & !CQE_COALESCED, detail), flags & CQE_COALESCED != 0)
}

#[test]
fn w22_six_alike_and_one_that_differs_are_two_transfers_and_seven_completions() {
    let (stage, mut pair) = blocked(16);
    let (same, other) = (refresh(&pair), folds(pair.write(128, 64)));
    for sqe in [same, same, same, other, same, same, same] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    assert_eq!(outcomes(&pair), [5, 2, 0, 0, 0, 0]);
    let cqes = end(&stage, &mut pair);
    assert_eq!(stage.plan().taken.len(), 3, "the blocker, and two");
    let survivor = cqes[&1].record;
    for (number, cqe) in cqes.iter().filter(|(number, _)| **number > 0) {
        let folded = ![1, 4].contains(number);
        assert_eq!(ended(cqe), (moved(64), folded), "{number}");
        assert_eq!(cqe.record == survivor, *number != 4, "{number}");
    }
    assert_eq!(counter(&pair, Counter::Bytes), 3 * 64, "bytes are moved once");
    assert_eq!(counter(&pair, Counter::Completed), 8);
}

#[test]
fn in_one_look_at_a_ring_ops_fold_before_the_first_is_posted() {
    let (stage, mut pair) = held(16);
    stage.release();
    let sqe = refresh(&pair);
    (0..6).for_each(|_| _ = pair.world.push(SENDER, sqe));
    let cqes = end(&stage, &mut pair);
    assert_eq!((cqes.len(), stage.plan().taken.len()), (6, 1));
    assert_eq!(outcomes(&pair), [5, 1, 0, 0, 0, 0]);
}

#[test]
fn every_part_of_the_key_tells_ops_apart() {
    let (stage, mut pair) = blocked(64);
    let session = pair.world.clients[SENDER].session;
    let (target, near) = (pair.target, pair.near);
    let again = pair.world.import(session, target);
    let own = pair.world.region(session, 1 << 10);
    let back = pair.world.import(session, near);
    let base = Sqe { flags: SQE_NOTIFY | SQE_COALESCE, immediate: 7, ..pair.write(4096, 64) };
    let near_too = Sqe { local_offset: 128, remote_region: back.0, ..base };
    let apart = [
        Sqe { opcode: Opcode::Read as u8, ..base },
        Sqe { local_offset: 4160, ..base },
        Sqe { remote_offset: 4160, ..base },
        Sqe { bytes: 63, ..base },
        Sqe { bytes: 0, ..base },
        Sqe { immediate: 8, ..base },
        Sqe { flags: SQE_COALESCE, immediate: 0, ..base },
        Sqe { remote_region: again.0, ..base },
        Sqe { local_region: own.0, local_offset: 0, ..base },
        near_too,
    ];
    pair.world.push(SENDER, base);
    for sqe in apart {
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(outcomes(&pair)[0], 0, "{:?}", outcomes(&pair));
    // The same place, and something else: another source, immediate, or nobody told.
    assert_eq!(outcomes(&pair), [0, 11 - 4, 0, 0, 4, 0]);
    // Each is found again by its like.
    for sqe in [base].into_iter().chain(apart) {
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(outcomes(&pair)[0], 11);
    // What says nothing of the effect is no part of the key.
    let alike = [
        Sqe { class: 2, ..base },
        Sqe { flags: base.flags | SQE_NO_MERGE | SQE_SKIP_SUCCESS, ..base },
        Sqe { arg: [5_000_000, 99], ..base },
        Sqe { user_data: 1 << 40, ..base },
    ];
    for sqe in alike {
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(outcomes(&pair)[0], 15);
    assert_eq!(end(&stage, &mut pair).len(), 1 + 22 + 3);
    assert_eq!(stage.plan().taken.len(), 12);
}

#[test]
fn rings_and_sessions_are_never_folded_together() {
    let (stage, mut pair) = blocked(16);
    let session = pair.world.clients[SENDER].session;
    let other = pair.world.ring(session, 16, 16);
    let (near, target) = (pair.near, pair.target);
    let receiver = pair.world.clients[RECEIVER].session;
    let sqe = refresh(&pair);
    let (back, own) = (pair.world.import(receiver, near), target);
    let theirs = Sqe { local_region: own.0, remote_region: back.0, ..sqe };
    for (client, sqe) in [(SENDER, sqe), (other, sqe), (RECEIVER, theirs)] {
        pair.world.push(client, sqe);
        pair.world.turn();
    }
    assert_eq!(outcomes(&pair), [0, 2, 0, 0, 0, 0]);
    stage.release();
    pair.world.settle();
    assert_eq!(stage.plan().taken.len(), 4);
    assert_eq!([SENDER, other, RECEIVER].map(|client| pair.world.pop(client).len()), [2, 1, 1]);
}

/// Every mix of two ops that ask for it or not, and READs as well.
#[test]
fn only_ops_that_ask_for_it_are_folded_and_only_together() {
    for opcode in [Opcode::Write, Opcode::Read] {
        for notify in [0, SQE_NOTIFY] {
            for (first, second) in [(0, 0), (0, SQE_COALESCE), (SQE_COALESCE, 0)] {
                let (stage, mut pair) = blocked(16);
                for flags in [first, second] {
                    let sqe = Sqe { flags: flags | notify, ..pair.op(opcode, 0, 64) };
                    pair.world.push(SENDER, sqe);
                }
                pair.world.turn();
                assert_eq!(outcomes(&pair)[0], 0);
                let attempts = u64::from((first | second) / SQE_COALESCE);
                assert_eq!(outcomes(&pair).iter().sum::<u64>(), attempts);
                assert_eq!(end(&stage, &mut pair).len(), 3);
                assert_eq!(stage.plan().taken.len(), 3, "{opcode:?} {first} {second}");
            }
            let (stage, mut pair) = blocked(16);
            let sqe = folds(Sqe { flags: notify, ..pair.op(opcode, 0, 64) });
            (0..2).for_each(|_| _ = pair.world.push(SENDER, sqe));
            pair.world.turn();
            assert_eq!(outcomes(&pair)[0], 1);
            assert_eq!(end(&stage, &mut pair).len(), 3);
            assert_eq!(stage.plan().taken.len(), 2, "{opcode:?}");
        }
    }
}

#[test]
fn flags_of_folding_are_refused_where_they_mean_nothing() {
    let (stage, mut pair) = held(16);
    stage.release();
    let pages = [Page { local_offset: 0, remote_offset: 0 }];
    let (write, read) = (pair.write(0, 64), pair.op(Opcode::Read, 0, 64));
    let lists = [Opcode::Writev, Opcode::Readv].map(|opcode| pair.list(opcode, &pages, 32));
    let add = Sqe { bytes: 0, ..pair.op(Opcode::FetchAdd, 64, 0) };
    let swap = Sqe { opcode: Opcode::CmpSwap as u8, ..add };
    let others =
        [lists[0], lists[1], add, swap, nop(), flush(pair.near), arm(pair.near, 1), cancel(1, 0)];
    let both = SQE_COALESCE | SQE_SUPERSEDE;
    let mut bad = vec![(write, both), (read, SQE_SUPERSEDE), (read, both)];
    for flags in [SQE_COALESCE, SQE_SUPERSEDE, both] {
        bad.extend(others.map(|sqe| (sqe, flags)));
    }
    for (sqe, flags) in bad {
        let cqe = pair.world.run(SENDER, Sqe { flags, ..sqe });
        assert_eq!(outcome(&cqe), failed(errno::EINVAL, 0, Detail::Flags), "{sqe:?} {flags:#x}");
        assert_eq!(cqe.record, 0);
    }
    for (sqe, flags) in [(write, SQE_COALESCE), (write, SQE_SUPERSEDE), (read, SQE_COALESCE)] {
        assert_eq!(outcome(&pair.world.run(SENDER, Sqe { flags, ..sqe })), moved(64));
    }
}

/// C3: whatever ties an op to others keeps it from being folded, and from being folded into.
#[test]
fn an_op_that_is_tied_to_others_goes_by_itself() {
    for flags in [SQE_LINK, SQE_HARDLINK, SQE_DRAIN, SQE_LINK | SQE_DRAIN] {
        // The newcomer bears the flag; then the older one does.
        for older in [false, true] {
            let (stage, mut pair) = blocked(16);
            let sqe = refresh(&pair);
            let tied = Sqe { flags: sqe.flags | flags, ..sqe };
            let ops = if older { [tied, nop(), sqe] } else { [sqe, tied, nop()] };
            for sqe in ops {
                pair.world.push(SENDER, sqe);
            }
            pair.world.turn();
            // What comes behind a DRAIN is tied to that.
            let both = older && flags & SQE_DRAIN != 0;
            let ties = 1 + u64::from(both);
            assert_eq!(outcomes(&pair), [0, 2 - ties, 0, ties, 0, 0], "{flags} {older}");
            assert_eq!(end(&stage, &mut pair).len(), 4);
            assert_eq!(stage.plan().taken.len(), 3);
        }
    }
    // What it follows is over or not, linked or named; and a JOIN in front of it.
    let (first, link) = (nop(), Sqe { flags: SQE_LINK, ..nop() });
    for (before, edges) in [(first, [1, 0]), (link, [0, 0]), (first, [3, 0]), (first, [1, 2])] {
        let (stage, mut pair) = blocked(16);
        let sqe = refresh(&pair);
        pair.world.push(SENDER, sqe);
        pair.world.push(SENDER, before);
        pair.world.push(SENDER, Sqe { edges, ..sqe });
        pair.world.turn();
        assert_eq!(outcomes(&pair), [0, 1, 0, 1, 0, 0], "{edges:?}");
        assert_eq!(end(&stage, &mut pair).len(), 4);
        assert_eq!(stage.plan().taken.len(), 3);
    }
}

/// Those that wait for a folded op wait for its survivor, and fail with it.
#[test]
fn what_depends_on_a_folded_op_goes_on_when_its_survivor_is_over() {
    for errno in [0, BROKEN] {
        let (stage, mut pair) = blocked(16);
        let sqe = refresh(&pair);
        let after = Sqe { edges: [1, 0], ..pair.write(512, 64) };
        for sqe in [sqe, sqe, after] {
            pair.world.push(SENDER, sqe);
        }
        pair.world.turn();
        stage.complete(0, 0);
        pair.world.turn();
        assert_eq!(stage.held(), 1);
        stage.complete(0, errno);
        let cqes = end(&stage, &mut pair);
        let last = outcome(&cqes[&3]);
        assert_eq!(last.0, if errno == 0 { 64 } else { -errno::ECANCELED });
        assert_eq!(last.1 & CQE_DEP_FAILED != 0, errno != 0);
        assert_eq!(stage.plan().taken.len(), if errno == 0 { 3 } else { 2 });
    }
}

/// C6: the survivor goes as early as the most urgent of those folded into it, and whoever waits
/// for one of them.
#[test]
fn a_survivor_is_as_urgent_as_the_most_urgent_in_its_group() {
    for by_edge in [false, true] {
        let (stage, mut pair) = blocked(16);
        let medium = pair.write_as(Class::Medium, 512, 64);
        let low = folds(pair.write_as(Class::Low, 0, 64));
        let high = Sqe { class: Class::High as u8, ..low };
        let after = Sqe { edges: [1, 0], ..pair.write_as(Class::High, 1024, 64) };
        let ops = if by_edge { [medium, low, low, after] } else { [medium, low, low, high] };
        for sqe in ops {
            pair.world.push(SENDER, sqe);
        }
        (0..3).for_each(|_| _ = pair.world.turn());
        stage.complete_all();
        pair.world.turn();
        assert_eq!(stage.plan().held[0].local_offset, 0, "by an edge: {by_edge}");
        assert_eq!(end(&stage, &mut pair).len(), 5);
    }
}

#[test]
fn with_folding_off_each_op_is_carried_out() {
    let policy = Policy { coalesce: false, ..LIMITS.policy };
    let limits = Limits { window_wrs: 1, policy, ..LIMITS };
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 16);
    stage.hold();
    let (sqe, replaces) = (refresh(&pair), Sqe { flags: SQE_SUPERSEDE, ..pair.write(512, 64) });
    for sqe in [sqe, sqe, sqe, replaces, replaces] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    assert_eq!(outcomes(&pair), [0, 0, 3, 0, 0, 0]);
    assert!(end(&stage, &mut pair).values().all(|cqe| ended(cqe) == (moved(64), false)));
    assert_eq!(stage.plan().taken.len(), 5);
    assert_eq!(counter(&pair, Counter::Superseded), 0);
}

/// F25: whatever of an op is posted, nothing is folded into it any more; if the device did not
/// take it, it is queued as before.
#[test]
fn f25_nothing_is_folded_into_what_has_begun() {
    for bytes in [64, 600] {
        let (stage, mut pair) = held(16);
        let sqe = folds(pair.write(0, bytes));
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        assert_eq!(stage.held(), 1);
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        assert_eq!(outcomes(&pair), [0, 1, 0, 0, 0, 1]);
        // The second is queued, so that the third goes along with it.
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        assert_eq!(outcomes(&pair), [1, 1, 0, 0, 0, 1]);
        let cqes = end(&stage, &mut pair);
        assert_eq!([0, 1, 2].map(|number| ended(&cqes[&number]).1), [false, false, true]);
        assert_eq!(cqes[&2].record, cqes[&1].record);
    }
    let (stage, mut pair) = held(16);
    let sqe = refresh(&pair);
    stage.take_only(&[0, 0, 0]);
    for _ in 0..4 {
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    assert_eq!(outcomes(&pair), [3, 1, 0, 0, 0, 0], "nothing was taken when they came");
    assert_eq!(end(&stage, &mut pair).len(), 4);
    assert_eq!(stage.plan().taken.len(), 1);
}

/// F24: the survivor fails; each is told so, in the same words.
#[test]
fn f24_a_failure_is_told_to_everyone_in_the_group() {
    let (stage, mut pair) = blocked(16);
    let sqe = refresh(&pair);
    let quiet = Sqe { flags: sqe.flags | SQE_SKIP_SUCCESS, ..sqe };
    for sqe in [sqe, quiet, sqe] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    stage.complete(0, 0);
    pair.world.turn();
    stage.complete(0, BROKEN);
    let cqes = end(&stage, &mut pair);
    for number in 1..=3 {
        let told = (failed(BROKEN, 0, Detail::None), number > 1);
        assert_eq!(ended(&cqes[&number]), told);
        assert_eq!(cqes[&number].record, cqes[&1].record);
    }
    assert_eq!(counter(&pair, Counter::Failed), 3);
}

const TAKEN_BACK: (i32, u16, u16) = (-errno::ECANCELED, CQE_RETRYABLE, Detail::Cancelled as u16);

/// F24: who is taken back, of a group of four; the others are carried out, once.
#[test]
fn f24_cancel_takes_back_one_and_the_others_go_on() {
    // Each order of up to three that are taken back.
    for order in 0..4 * 4 * 4 {
        for in_ring in [true, false] {
            let (stage, mut pair) = blocked(16);
            let sqe = refresh(&pair);
            (0..4).for_each(|_| _ = pair.world.push(SENDER, sqe));
            pair.world.turn();
            let mut gone: Vec<u64> = vec![1 + order % 4, 1 + order / 4 % 4, 1 + order / 16];
            gone.dedup();
            let mut asked = 0;
            for number in &gone {
                asked += u64::from(in_ring);
                if in_ring {
                    let ask = cancel(CANCEL_BY_NUMBER, *number);
                    pair.world.push(SENDER, Sqe { user_data: 100 + asked, ..ask });
                } else {
                    pair.world.query(SENDER, CANCEL_BY_NUMBER, *number, true);
                }
                pair.world.turn();
            }
            gone.sort_unstable();
            gone.dedup();
            let cqes = end(&stage, &mut pair);
            assert_eq!(cqes.len() as u64, 5 + asked);
            let mut alone = Vec::new();
            for number in 1..=4 {
                let told = ended(&cqes[&number]);
                if gone.contains(&number) {
                    assert_eq!(told, (TAKEN_BACK, false), "{number} of {gone:?}");
                } else {
                    assert_eq!(told.0, moved(64), "{number} of {gone:?}");
                    alone.extend((!told.1).then_some(cqes[&number].record));
                }
            }
            assert_eq!(alone.len(), 1, "one survivor");
            for number in (1..=4).filter(|number| !gone.contains(number)) {
                assert_eq!(cqes[&number].record, alone[0]);
            }
            assert_eq!(stage.plan().taken.len(), 2, "carried out once");
        }
    }
}

#[test]
fn f24_what_has_begun_cannot_be_taken_back_by_anyone_in_the_group() {
    let (stage, mut pair) = held(16);
    let sqe = refresh(&pair);
    (0..3).for_each(|_| _ = pair.world.push(SENDER, sqe));
    pair.world.turn();
    for number in 0..3 {
        let token = pair.world.query(SENDER, CANCEL_BY_NUMBER, number, true);
        pair.world.turn();
        let reply = pair.world.reply(token);
        assert!(matches!(reply, Some(Reply::Failed { errno: errno::EALREADY, .. })), "{reply:?}");
    }
    assert!(end(&stage, &mut pair).values().all(|cqe| ended(cqe).0 == moved(64)));
}

/// Each keeps its own deadline: the survivor's ends it alone, a folded op's that one alone.
#[test]
fn f24_deadlines_end_one_each_and_the_others_go_on() {
    let late = failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline);
    // Microseconds of three alike, and of what is first in the queue or not.
    for deadlines in [[10, 0, 0], [0, 10, 0], [0, 0, 10], [20, 10, 0], [10, 20, 0], [0, 10, 20]] {
        for behind in [false, true] {
            let (stage, mut pair) = blocked(16);
            if behind {
                let other = pair.write(512, 64);
                pair.world.push(SENDER, Sqe { user_data: 50, ..other });
            }
            let sqe = refresh(&pair);
            for (number, us) in (1..).zip(deadlines) {
                pair.world.push(SENDER, Sqe { user_data: number, arg: [us, 0], ..sqe });
            }
            (0..30_000 / STEP_NS).for_each(|_| _ = pair.world.turn());
            let cqes = end(&stage, &mut pair);
            for (number, us) in (1..).zip(deadlines) {
                let told = ended(&cqes[&number]).0;
                assert_eq!(told, if us > 0 { late } else { moved(64) }, "{deadlines:?}");
            }
            assert_eq!(stage.plan().taken.len(), 2 + usize::from(behind));
        }
    }
}

/// What is late when its survivor is posted is not carried along.
#[test]
fn a_deadline_that_has_passed_when_the_survivor_goes_is_kept() {
    // More records than one turn's sweep looks at: it does not come by in the turn that matters.
    let limits = Limits { records: 2048, window_wrs: 1, ..LIMITS };
    let (stage, mut pair) = held_under(limits, 16);
    let (blocker, sqe) = (pair.write(512, 64), refresh(&pair));
    for sqe in [blocker, sqe, Sqe { arg: [2, 0], ..sqe }] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.turn();
    stage.complete_all();
    pair.world.now_ns += 10_000;
    pair.world.turn();
    assert_eq!(stage.held(), 1);
    assert_eq!(pair.world.pop(SENDER).len(), 2, "the blocker, and what is late");
    let mut cqes = end(&stage, &mut pair);
    assert_eq!(cqes.remove(&1).map(|cqe| ended(&cqe).0), Some(moved(64)));
    assert!(cqes.is_empty());
}

#[test]
fn a_folded_op_that_is_late_says_so() {
    let (stage, mut pair) = blocked(16);
    let sqe = refresh(&pair);
    pair.world.push(SENDER, sqe);
    pair.world.push(SENDER, Sqe { arg: [2, 0], ..sqe });
    (0..10).for_each(|_| _ = pair.world.turn());
    let cqes = end(&stage, &mut pair);
    assert_eq!(ended(&cqes[&1]).0, moved(64));
    assert_eq!(ended(&cqes[&2]).0, failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline));
}

#[test]
fn a_group_has_so_many_ops_and_the_next_begins_another() {
    let (stage, mut pair) = blocked(128);
    let sqe = refresh(&pair);
    for _ in 0..=FOLDED_MAX + 2 {
        pair.world.push(SENDER, sqe);
        pair.world.turn();
    }
    let hits = u64::from(FOLDED_MAX) + 1;
    assert_eq!(outcomes(&pair), [hits, 2, 0, 0, 0, 0]);
    assert_eq!(end(&stage, &mut pair).len() as u64, 1 + hits + 2);
    assert_eq!(stage.plan().taken.len(), 3);
}

#[test]
fn a_notification_is_sent_once() {
    let (stage, mut pair) = blocked(16);
    let listen = arm(pair.target, 4);
    pair.world.push(RECEIVER, listen);
    let sqe = folds(pair.tell(9));
    (0..5).for_each(|_| _ = pair.world.push(SENDER, sqe));
    assert_eq!(pair.world.turn().taken, 6);
    let ring = pair.world.clients[RECEIVER].ring;
    stage.release();
    pair.world.settle();
    let told: Vec<Cqe> = pair.world.pop(RECEIVER);
    assert_eq!((told.len(), told[0].res, told[0].queued), (1, 1, 9));
    assert!(told[0].flags & CQE_NOTIFY != 0);
    assert_eq!(pair.world.pop(SENDER).len(), 6);
    assert_eq!(ring, RingId(1));
}

#[test]
fn a_flush_waits_for_what_was_folded_before_it() {
    let (stage, mut pair) = blocked(16);
    let sqe = refresh(&pair);
    let quiet = flush(pair.near);
    for sqe in [sqe, sqe, quiet, sqe] {
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..5 {
        pair.world.turn();
    }
    assert_eq!(pair.world.pop(SENDER), []);
    stage.complete_all();
    for _ in 0..5 {
        pair.world.turn();
    }
    assert_eq!(pair.world.pop(SENDER).len(), 1, "the blocker alone");
    let cqes = end(&stage, &mut pair);
    assert_eq!([1, 2, 3, 4].map(|number| cqes[&number].res), [64, 64, 0, 64]);
}

#[test]
fn bytes_count_once_against_the_quota() {
    let (stage, mut pair) = held(16);
    let contract = Contract { bytes_max: 200, ..Contract::of_ops(128) };
    pair.world.engine.owners[0].sign(&contract);
    let blocker = pair.write(512, 64);
    pair.world.push(SENDER, blocker);
    pair.world.turn();
    let sqe = refresh(&pair);
    (0..8).for_each(|_| _ = pair.world.push(SENDER, sqe));
    pair.world.turn();
    pair.world.turn();
    assert_eq!(pair.world.clients[SENDER].taken(), 9);
    assert_eq!(pair.world.engine.owners[0].bytes, 128);
    // Whoever goes on in its place asks for the same.
    pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 1));
    pair.world.turn();
    assert_eq!(pair.world.engine.owners[0].bytes, 128);
    assert_eq!(end(&stage, &mut pair).len(), 10);
}

#[test]
fn why_tells_of_the_survivor() {
    let (stage, mut pair) = blocked(16);
    let sqe = refresh(&pair);
    (0..2).for_each(|_| _ = pair.world.push(SENDER, sqe));
    pair.world.turn();
    let said = why(&mut pair, SENDER, 1).unwrap();
    assert_eq!(said.state, STATE_QUEUED);
    let said = why(&mut pair, SENDER, 2).unwrap();
    assert_eq!((said.state, said.wait, said.rails), (STATE_FOLDED, WAIT_SURVIVOR, 0));
    assert_eq!(end(&stage, &mut pair).len(), 3);
}

/// In both modes, with the survivor queued and posted.
#[test]
fn rings_wind_up_with_what_is_folded_in_them() {
    for mode in [Wind::Drain, Wind::Cancel] {
        for posted in [false, true] {
            let (stage, mut pair) = if posted { held(16) } else { blocked(16) };
            let sqe = refresh(&pair);
            let replaces = Sqe { flags: SQE_SUPERSEDE, ..pair.write(512, 64) };
            for sqe in [sqe, sqe, sqe, replaces, replaces, replaces] {
                pair.world.push(SENDER, Sqe { user_data: 7, ..sqe });
            }
            pair.world.turn();
            let token = pair.world.wind(SENDER, mode);
            (0..3).for_each(|_| _ = pair.world.turn());
            stage.release();
            pair.world.settle();
            let reply = pair.world.reply(token);
            assert!(matches!(reply, Some(Reply::RingGone { .. })), "{reply:?}");
            let cqes = pair.world.pop(SENDER);
            assert_eq!(cqes.len(), 6 + usize::from(!posted));
            let closing = failed(errno::ESHUTDOWN, CQE_RETRYABLE, Detail::Closing);
            let told = cqes.iter().filter(|cqe| cqe.user_data == 7).map(|cqe| ended(cqe).0);
            let done = told.clone().filter(|told| *told == moved(64)).count();
            assert_eq!(done + told.filter(|told| *told == closing).count(), 6);
            let begun = match (mode, posted) {
                (Wind::Drain, _) => 6,
                (Wind::Cancel, true) => 3,
                (Wind::Cancel, false) => 0,
            };
            assert_eq!(done, begun, "{mode:?}, posted: {posted}");
            assert_eq!(pair.world.engine.ledger.open_count(), 0);
        }
    }
}

/// What is posted runs to its end, and reads as done; the rest stays in the fate table, accepted.
#[test]
fn a_broken_ring_takes_its_groups_along() {
    for posted in [false, true] {
        let (stage, mut pair) = if posted { held(16) } else { blocked(16) };
        let sqe = refresh(&pair);
        (0..3).for_each(|_| _ = pair.world.push(SENDER, sqe));
        pair.world.turn();
        let client = &pair.world.clients[SENDER];
        client.store(Word::SqTail, client.load(Word::SqTail).wrapping_add(100));
        (0..3).for_each(|_| _ = pair.world.turn());
        assert_eq!(pair.world.faults().len(), 1);
        stage.release();
        pair.world.settle();
        assert_eq!(pair.world.engine.ledger.open_count(), 0);
        let left = entries(&pair.world.clients[SENDER].heap);
        let accepted: &[(u64, u64)] = &[1, 2, 3].map(|number| (number, FATE_ACCEPTED));
        assert_eq!(left, if posted { &[] } else { accepted });
    }
}
