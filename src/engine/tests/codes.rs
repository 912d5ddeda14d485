//! Every way in which an op ends has a code of its own, and says whether to try again: a table of
//! what produces each, held against the list of all codes.

use std::collections::BTreeSet;

use super::cancel::held;
use super::two::{Two, add, transfer};
use super::world::{LIMITS, Pair, SENDER, World, arm, cancel, flush, nop, outcome};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_DEP_FAILED, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Detail, Opcode,
    RIGHT_READ, RIGHTS_ALL, SQE_LINK, Sqe, errno,
};
use crate::engine::Wind;
use crate::fabric::qp::provider::WcStatus;
use crate::fabric::qp::sim::WorkPlan;

/// Only control messages are answered with these.
const CONTROL: [(&str, i32); 5] = [
    ("ENOMEM", errno::ENOMEM),
    ("EEXIST", errno::EEXIST),
    ("EPROTO", errno::EPROTO),
    ("ENETUNREACH", errno::ENETUNREACH),
    ("EDQUOT", errno::EDQUOT),
];

type Code = (i32, u16, Detail);

/// What this host alone can say.
fn at_home(sqe: impl Fn(&mut Pair<crate::fabric::Local>) -> Sqe) -> (i32, u16, u16) {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let sqe = sqe(&mut pair);
    outcome(&pair.world.run(SENDER, sqe))
}

/// The end of SQE 1, which is queued behind one that the fabric holds, after something happens.
fn while_queued(
    sqe: impl Fn(&Pair<super::script::Script>) -> Sqe,
    then: impl Fn(&mut Pair<super::script::Script>),
) -> (i32, u16, u16) {
    let (stage, mut pair) = held(16);
    let first = pair.write(0, 64);
    let second = sqe(&pair);
    pair.world.push(SENDER, Sqe { user_data: 1_000, ..first });
    pair.world.turn();
    pair.world.push(SENDER, Sqe { user_data: 1_001, ..second });
    pair.world.turn();
    then(&mut pair);
    for _ in 0..20 {
        pair.world.turn();
    }
    stage.release();
    pair.world.settle();
    let cqes = pair.world.pop(SENDER);
    outcome(cqes.iter().find(|cqe| cqe.user_data == 1_001).expect("its CQE"))
}

/// The end of an op to a peer, of whose work requests some fail.
fn abroad(atomic: bool, fails: WcStatus, times: u32, gone: bool) -> (i32, u16, u16) {
    let mut two = Two::new(1);
    let (near, target) = (two.region(0), two.region(1));
    let ids = (near, two.offer(1, target, RIGHTS_ALL, [1; 3]));
    let number = two.join.number(1, 0);
    for _ in 0..times {
        two.net.plan_work(number, WorkPlan { after: 0, status: fails, effect: false });
    }
    let sqe = if atomic { add(ids, 0, 1) } else { transfer(Opcode::Write, ids, 0, 64) };
    two.push(0, sqe);
    if gone {
        two.net.kill(two.join.number(1, 1));
        two.steps(5);
        two.join.lose(1);
        two.stopped = Some(1);
        two.net.break_pair(number);
    }
    two.settle();
    outcome(&two.pop(0)[0])
}

fn produced() -> Vec<((i32, u16, u16), Code)> {
    let lost = CQE_FLUSHED | CQE_RETRYABLE;
    let maybe = CQE_FLUSHED | CQE_MAYBE_DONE;
    let again = CQE_RETRYABLE;
    let wire = Detail::Wire;
    let refused = WcStatus::RemoteAccess;
    let silent = WcStatus::RetryExceeded;
    vec![
        (at_home(|pair| pair.write(u64::MAX, 8)), (errno::EINVAL, 0, Detail::LocalOffset)),
        (
            at_home(|_| Sqe { opcode: Opcode::Run as u8, ..nop() }),
            (errno::EOPNOTSUPP, 0, Detail::Opcode),
        ),
        (at_home(|pair| arm(pair.near, 17)), (errno::E2BIG, 0, Detail::Bytes)),
        (
            at_home(|pair| {
                let (session, target) = (pair.world.clients[SENDER].session, pair.target);
                let far = pair.world.import_of(session, target, RIGHT_READ).unwrap();
                Sqe { remote_region: far.0, ..pair.write(0, 8) }
            }),
            (errno::EACCES, 0, Detail::Rights),
        ),
        (
            at_home(|pair| {
                let token = pair.world.remove(pair.target);
                pair.world.settle();
                assert!(pair.world.reply(token).is_some());
                pair.write(0, 8)
            }),
            (errno::ESTALE, 0, Detail::Revoked),
        ),
        (
            while_queued(|pair| Sqe { arg: [5, 0], ..pair.write(64, 64) }, |_| {}),
            (errno::ETIME, again, Detail::Deadline),
        ),
        (
            while_queued(
                |pair| pair.write(64, 64),
                |pair| {
                    pair.world.push(SENDER, cancel(CANCEL_BY_NUMBER, 1));
                },
            ),
            (errno::ECANCELED, again, Detail::Cancelled),
        ),
        (
            while_queued(
                |pair| pair.write(64, 64),
                |pair| {
                    pair.world.wind(SENDER, Wind::Cancel);
                },
            ),
            (errno::ESHUTDOWN, again, Detail::Closing),
        ),
        (while_queued(|_| cancel(CANCEL_BY_NUMBER, 0), |_| {}), (errno::EALREADY, 0, Detail::None)),
        (at_home(|_| cancel(CANCEL_BY_NUMBER, 9)), (errno::ENOENT, 0, Detail::None)),
        (abroad(false, refused, 1, false), (errno::EACCES, 0, wire)),
        (abroad(false, WcStatus::RemoteOperation, 1, false), (errno::EIO, 0, wire)),
        (abroad(false, WcStatus::Flushed, 9, false), (errno::EIO, lost, wire)),
        (abroad(true, WcStatus::Flushed, 1, false), (errno::EIO, maybe, wire)),
        (abroad(false, silent, 9, false), (errno::ETIMEDOUT, lost, wire)),
        (abroad(true, silent, 1, false), (errno::ETIMEDOUT, maybe, wire)),
        (abroad(false, silent, 0, true), (errno::EHOSTDOWN, lost, Detail::Peer)),
        (abroad(true, silent, 0, true), (errno::EHOSTDOWN, maybe, Detail::Peer)),
    ]
}

/// The codes that `abi::status` has, by its own source: name and number.
fn all_codes() -> BTreeSet<(String, i32)> {
    let source = include_str!("../../abi/status.rs");
    let errnos = source.split("pub mod errno {").nth(1).expect("a module of codes");
    let errnos = errnos.split("\n}").next().expect("its end");
    errnos
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .filter_map(|line| line.split_once(": i32 = "))
        .map(|(name, value)| (name.to_string(), value.trim_end_matches(';').parse().unwrap()))
        .collect()
}

#[test]
fn r14_every_code_of_an_op_is_produced_and_says_whether_to_try_again() {
    let mut seen = BTreeSet::new();
    for (found, (code, flags, detail)) in produced() {
        assert_eq!(found, (-code, flags, detail as u16));
        // Never both, and never neither where nothing is known for good.
        assert_ne!(flags & (CQE_RETRYABLE | CQE_MAYBE_DONE), CQE_RETRYABLE | CQE_MAYBE_DONE);
        seen.insert(code);
    }
    // A success is not in doubt, and ops that only look on have no other code.
    assert_eq!(at_home(|_| nop()).0, 0);
    assert_eq!(at_home(|pair| flush(pair.near)).0, 0);
    let control: BTreeSet<_> = CONTROL.iter().map(|(_, code)| *code).collect();
    let all = all_codes();
    assert!(all.len() > 15, "{all:?}");
    for (name, code) in &all {
        let both = (seen.contains(code), control.contains(code));
        assert!(both == (true, false) || both == (false, true), "{name} is produced by {both:?}");
    }
    assert_eq!(all.len(), seen.len() + control.len());
}

/// A failure travels along edges, and by links, and not where only the order is asked for.
#[test]
fn f22_what_depends_on_a_failure_fails_unless_only_the_order_matters() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let dep_failed = |detail| (-errno::ECANCELED, CQE_DEP_FAILED | CQE_RETRYABLE, detail);
    let wrong = Sqe { flags: SQE_LINK, ..pair.write(u64::MAX, 64) };
    let good = |pair: &mut Pair<_>, edges| Sqe { edges, ..pair.write(256, 64) };
    let (linked, after, in_order) =
        (good(&mut pair, [0; 2]), good(&mut pair, [1, 0]), good(&mut pair, [1 << 15 | 3, 0]));
    for sqe in [wrong, linked, after, in_order] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.settle();
    let ends: Vec<_> = pair.world.pop(SENDER).iter().map(outcome).collect();
    let detail = Detail::LocalOffset as u16;
    assert_eq!(ends[0], (-errno::EINVAL, 0, detail));
    assert_eq!(ends[1..3], [dep_failed(detail), dep_failed(detail)]);
    assert_eq!(ends[3].0, 64);
    pair.world.expect_rest();
}

/// What is not served is refused, and has no effect.
#[test]
fn run_is_refused_until_it_is_served() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let sqe = Sqe { opcode: Opcode::Run as u8, ..pair.write(128, 64) };
    let before = pair.world.bytes(pair.target);
    let right = pair.write(256, 64);
    for sqe in [sqe, right] {
        pair.world.push(SENDER, sqe);
    }
    pair.world.settle();
    let ends: Vec<_> = pair.world.pop(SENDER).iter().map(outcome).collect();
    assert_eq!(ends.len(), 2);
    assert_eq!(ends[0], (-errno::EOPNOTSUPP, 0, Detail::Opcode as u16));
    assert_eq!(ends[1].0, 64);
    assert!(pair.world.bytes(pair.target)[128..192] == before[128..192], "it had an effect");
    pair.world.expect_rest();
}
