//! Edges that are wrong, failures along each kind of them at each depth, and a pool that is full.

use super::board::{Board, Fate};
use super::script::{BROKEN, Script, Stage};
use super::why::why;
use super::world::{LIMITS, Pair, RECEIVER, SENDER, World, arm, failed, nop, outcome};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_DEP_FAILED, CQE_RETRYABLE, Detail, EDGE_ORDER_ONLY, Opcode, SQE_DRAIN,
    SQE_HARDLINK, SQE_LINK, STATE_UNTAKEN, STATE_WAITING, Sqe, WAIT_EARLIER, WAIT_EDGES,
    WAIT_PREDECESSOR, WAIT_QUOTA_EDGES, errno,
};
use crate::engine::{Limits, Reply, Why};
use crate::fabric::{Fabric, Local};
use crate::sched::Contract;

/// An op behind a failure whose detail is this.
fn inherited(detail: Detail) -> (i32, u16, u16) {
    failed(errno::ECANCELED, CQE_DEP_FAILED | CQE_RETRYABLE, detail)
}

pub(super) fn join(edges: &[u16]) -> Sqe {
    let mut sqe = Sqe { opcode: Opcode::Join as u8, ..Sqe::default() };
    for (at, &edge) in edges.iter().enumerate() {
        match at {
            0..2 => sqe.edges[at] = edge,
            2..6 => sqe.arg[0] |= u64::from(edge) << (16 * (at - 2)),
            _ => sqe.arg[1] |= u64::from(edge) << (16 * (at - 6)),
        }
    }
    sqe
}

pub(super) fn behind(edges: [u16; 2]) -> Sqe {
    Sqe { edges, ..nop() }
}

/// What becomes of each of some SQEs that are pushed together.
fn ends(sqes: &[Sqe]) -> Vec<(i32, u16, u16)> {
    let mut pair: Pair<Local> = Pair::new(World::local(LIMITS), 16);
    for sqe in sqes {
        pair.world.push(SENDER, *sqe);
    }
    pair.world.settle();
    let mut cqes = pair.world.pop(SENDER);
    cqes.sort_by_key(|cqe| cqe.user_data);
    pair.world.expect_rest();
    cqes.iter().map(outcome).collect()
}

const DONE: (i32, u16, u16) = (0, 0, 0);

/// An op cannot name itself or a later one: 0 is no edge, and a distance has no sign. So there is
/// no cycle either, through however many chains; and no word for another ring's ops.
#[test]
fn f21_an_edge_that_names_nothing_is_refused_and_one_to_itself_cannot_be_said() {
    let wrong = failed(errno::EINVAL, 0, Detail::Edges);
    assert_eq!(ends(&[behind([0, 0])]), [DONE], "no edge");
    for edges in [[1, 0], [0, 1], [0x7fff, 0], [EDGE_ORDER_ONLY, 0], [0, EDGE_ORDER_ONLY]] {
        assert_eq!(ends(&[behind(edges)]), [wrong], "{edges:?}");
    }
    // To the first, and to one before it.
    let all =
        [nop(), nop(), nop(), behind([3, 0]), behind([5, 0]), behind([4 | EDGE_ORDER_ONLY, 6])];
    assert_eq!(ends(&all), [DONE, DONE, DONE, DONE, wrong, wrong]);
    for at in 0..10 {
        let mut edges = [1; 10];
        edges[at] = 2;
        assert_eq!(ends(&[nop(), join(&edges)]), [DONE, wrong], "edge {at} of a JOIN");
        edges[at] = EDGE_ORDER_ONLY;
        assert_eq!(ends(&[nop(), join(&edges)]), [DONE, wrong], "edge {at} of a JOIN");
    }
    assert_eq!(ends(&[join(&[])]), [DONE], "a JOIN of nothing");
}

#[test]
fn f21_an_arm_is_nobodys_predecessor_and_may_have_some() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let wrong = failed(errno::EINVAL, 0, Detail::Edges);
    let arm = arm(pair.near, 1);
    pair.world.push(SENDER, arm);
    assert_eq!(outcome(&pair.world.run(SENDER, behind([1, 0]))), wrong);
    assert_eq!(outcome(&pair.world.run(SENDER, join(&[1, 2 | EDGE_ORDER_ONLY]))), wrong);
    for flag in [SQE_LINK, SQE_HARDLINK, SQE_DRAIN] {
        let cqe = pair.world.run(SENDER, Sqe { flags: flag, ..arm });
        assert_eq!(outcome(&cqe), failed(errno::EINVAL, 0, Detail::Flags));
        // What it says of the next one holds.
        let next = outcome(&pair.world.run(SENDER, nop()));
        assert_eq!(next, if flag == SQE_LINK { inherited(Detail::Flags) } else { DONE });
    }
    // A DRAIN passes over it.
    assert_eq!(outcome(&pair.world.run(SENDER, Sqe { flags: SQE_DRAIN, ..nop() })), DONE);
    // One behind a failure inherits that.
    let bad = Sqe { class: 9, flags: SQE_LINK, ..nop() };
    pair.world.push(SENDER, bad);
    assert_eq!(pair.world.armed(), 1);
    pair.world.push(SENDER, arm);
    pair.world.settle();
    let cqes = pair.world.pop(SENDER);
    assert_eq!(cqes.iter().map(outcome).collect::<Vec<_>>()[1], inherited(Detail::Class));
}

#[test]
fn f21_an_op_that_ended_long_ago_is_over_and_how_it_ended_is_known() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let bad = Sqe { class: 9, ..nop() };
    assert_eq!(outcome(&pair.world.run(SENDER, bad)), failed(errno::EINVAL, 0, Detail::Class));
    for back in 1..300 {
        let order = back | EDGE_ORDER_ONLY;
        // In turn one that inherits, and is not in the way of the next.
        let edges = [[back, 0], [order, 0], [order, back]][usize::from(back) % 3];
        let found = outcome(&pair.world.run(SENDER, behind(edges)));
        let expected = if back % 3 == 1 { DONE } else { inherited(Detail::Class) };
        assert_eq!(found, expected, "{back} back");
    }
}

#[test]
fn f21_the_same_op_twice_is_one_edge_that_carries_failure_if_either_does() {
    let order = 1 | EDGE_ORDER_ONLY;
    for (edges, carries) in
        [([1, 1], true), ([1, order], true), ([order, 1], true), ([order, order], false)]
    {
        for fails in [false, true] {
            let mut board = Board::new(LIMITS, 16);
            let sqe = board.sqe(Opcode::Write);
            board.push(sqe, if fails { Fate::Broken(BROKEN) } else { Fate::Well });
            let sqe = Sqe { edges, ..board.sqe(Opcode::Write) };
            board.push(sqe, Fate::Well);
            board.turn();
            assert_eq!(board.pair.world.engine.edges.in_use(), 1, "{edges:?}");
            board.finish();
            assert_eq!(board.tally.inherited, u64::from(fails && carries), "{edges:?}");
        }
    }
    // By a link and by edges, all ten of them.
    for (link, edge, carries) in [
        (SQE_LINK, order, true),
        (SQE_HARDLINK, 1, true),
        (SQE_HARDLINK, order, false),
        (SQE_LINK | SQE_HARDLINK, order, false),
    ] {
        let mut board = Board::new(LIMITS, 16);
        let sqe = board.sqe(Opcode::Write);
        board.push(Sqe { flags: link, ..sqe }, Fate::Broken(BROKEN));
        let user_data = board.sqe(Opcode::Join).user_data;
        board.push(Sqe { user_data, ..join(&[edge; 10]) }, Fate::Well);
        board.turn();
        assert_eq!(board.pair.world.engine.edges.in_use(), 1);
        board.finish();
        assert_eq!(board.tally.inherited, u64::from(carries), "{link} {edge:#x}");
    }
}

/// The ways of one op to fail.
const FAILS: [Fate; 3] = [Fate::Broken(BROKEN), Fate::Refused, Fate::TakenBack];

/// A chain of eight, of each kind; the one at each depth fails, and one edge behind it may be of
/// another kind, which lets all behind it go.
#[test]
fn f22_a_failure_travels_along_edges_and_links_to_any_depth_and_no_further_than_order() {
    const LENGTH: usize = 8;
    for (linked, fate) in [false, true].into_iter().flat_map(|linked| FAILS.map(|f| (linked, f))) {
        for bad in 0..LENGTH {
            for cut in bad + 1..=LENGTH {
                let mut board = Board::new(LIMITS, 32);
                // Something in front that holds all of it back.
                let first = board.sqe(Opcode::Write);
                board.push(Sqe { flags: SQE_HARDLINK, ..first }, Fate::Well);
                for at in 0..LENGTH {
                    let mut sqe = board.sqe(Opcode::Write);
                    let order = at == cut;
                    if linked {
                        sqe.flags |= if at + 1 == cut { SQE_HARDLINK } else { SQE_LINK };
                    } else if at > 0 {
                        sqe.edges[at % 2] = 1 | if order { EDGE_ORDER_ONLY } else { 0 };
                    }
                    if linked && at + 1 == LENGTH {
                        sqe.flags = 0;
                    }
                    board.push(sqe, if at == bad { fate } else { Fate::Well });
                }
                board.turn();
                board.finish();
                let expected = cut - bad - 1;
                let case = (linked, fate, bad, cut);
                assert_eq!(board.tally.inherited, expected as u64, "{case:?} {:?}", board.tally);
                board.pair.world.expect_rest();
            }
        }
    }
}

/// Late, each at its own depth: what waits for it goes by its kind.
#[test]
fn f22_a_deadline_counts_from_intake_also_for_what_waits() {
    let stage = Stage::new();
    stage.plan().unchained = true;
    let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 16);
    stage.hold();
    let first = pair.write(0, 8);
    let mut late = pair.write(64, 8);
    late.edges = [1, 0];
    late.arg[0] = 5;
    let mut behind_it = pair.write(128, 8);
    behind_it.edges = [1, 0];
    let mut ordered = pair.write(192, 8);
    ordered.edges = [2 | EDGE_ORDER_ONLY, 0];
    for sqe in [first, late, behind_it, ordered] {
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..4 {
        pair.world.turn();
    }
    assert_eq!(pair.world.pop(SENDER), [], "nothing is late yet");
    for _ in 0..10 {
        pair.world.turn();
    }
    let cqes: Vec<_> =
        pair.world.pop(SENDER).iter().map(|cqe| (cqe.user_data, outcome(cqe))).collect();
    let late = failed(errno::ETIME, CQE_RETRYABLE, Detail::Deadline);
    assert_eq!(cqes, [(1, late), (2, inherited(Detail::Deadline))]);
    let held: Vec<_> = stage.plan().held.iter().map(|request| request.remote_offset).collect();
    assert_eq!(held, [0, 192], "what only came after it");
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 2);
    pair.world.expect_rest();
}

/// Small tables, and a session that fills its part of them behind an op that the fabric holds.
fn full(contract: Contract) -> (Stage, Pair<Script>, u64) {
    let limits = Limits { records: 512, edges: 128, ..LIMITS };
    let stage = Stage::new();
    let mut world = World::new(limits, stage.fabric(limits));
    let sender = world.session_under(0, 0, contract);
    let receiver = world.session(1);
    world.ring(sender, 256, 256);
    world.ring(receiver, 256, 256);
    let near = world.region(sender, super::world::REGION_BYTES);
    let target = world.region(receiver, super::world::REGION_BYTES);
    let far = world.import(sender, target);
    stage.hold();
    let mut pair = Pair { world, near, far, target };
    let head = pair.write(0, 8);
    pair.world.push(SENDER, head);
    for at in 1..=200 {
        pair.world.push(SENDER, behind([at, 0]));
    }
    for _ in 0..60 {
        pair.world.turn();
    }
    let taken = pair.world.clients[SENDER].taken();
    (stage, pair, taken)
}

/// WHY, as an operator reads it on the control socket.
pub(super) fn ask<F: Fabric>(world: &mut World<F>, client: usize, number: u64) -> Why
where
    F::Memory: From<std::sync::Arc<crate::shm::Mapping>> + std::fmt::Debug,
{
    let token = world.query(client, CANCEL_BY_NUMBER, number, false);
    world.turn();
    match world.reply(token) {
        Some(Reply::Why { why, .. }) => why,
        other => panic!("WHY was answered with {other:?}"),
    }
}

#[test]
fn f23_a_full_pool_behind_a_slow_op_waits_and_says_why_and_goes_on() {
    let (stage, mut pair, taken) = full(Contract::of_ops(512));
    let edges = u64::from(pair.world.engine.limits.edges);
    assert!(taken > 10 && taken <= edges + 1, "{taken} are taken");
    let waits = ask(&mut pair.world, SENDER, taken);
    assert_eq!((waits.state, waits.wait), (STATE_UNTAKEN, WAIT_EDGES), "{waits:?}");
    // What to raise: this many are in use, of so many, and it wants one more.
    assert_eq!((waits.used, waits.wants), (taken - 1, 1), "{waits:?}");
    assert!(waits.limit >= waits.used && waits.limit <= edges, "{waits:?}");
    // What waits for the head says so.
    let behind = why(&mut pair, SENDER, 1).unwrap();
    assert_eq!((behind.state, behind.wait), (STATE_WAITING, WAIT_PREDECESSOR), "{behind:?}");
    // Slow is not stuck: for 1.3 s nothing ends, and nothing is lost.
    for _ in 0..1_300 {
        pair.world.now_ns += 1_000_000;
        pair.world.turn();
    }
    assert_eq!(pair.world.pop(SENDER), []);
    assert_eq!(pair.world.clients[SENDER].taken(), taken);
    // Another session has its part.
    let other = taken_beside(&mut pair);
    assert!(other >= 10, "another session's intake is held up at {other}");
    stage.release();
    pair.world.settle();
    assert_eq!(pair.world.pop(SENDER).len(), 201);
    pair.world.expect_rest();
}

/// What another session can have taken that waits, while one has all that it may have; it waits for
/// an op of its own that the fabric holds.
fn taken_beside(pair: &mut Pair<Script>) -> u64 {
    let import = pair.world.import(pair.world.clients[RECEIVER].session, pair.target);
    let sqe = Sqe {
        opcode: Opcode::Write as u8,
        local_region: pair.target.0,
        remote_region: import.0,
        remote_offset: 512,
        bytes: 8,
        ..Sqe::default()
    };
    pair.world.push(RECEIVER, sqe);
    for at in 1..=10 {
        pair.world.push(RECEIVER, behind([at, 0]));
    }
    for _ in 0..20 {
        pair.world.turn();
    }
    let taken = pair.world.clients[RECEIVER].taken();
    // And what waits for nothing goes by.
    taken - 1
}

#[test]
fn f23_what_can_never_fit_is_refused_at_once() {
    for (edges_max, fits) in [(9, false), (10, true), (11, true)] {
        let contract = Contract { edges_max, ..Contract::of_ops(128) };
        let limits = LIMITS;
        let stage = Stage::new();
        let mut world = World::new(limits, stage.fabric(limits));
        let sender = world.session_under(0, 0, contract);
        world.ring(sender, 32, 32);
        let near = world.region(sender, 4096);
        let far = world.import(sender, near);
        stage.hold();
        for at in 0..10 {
            let sqe = Sqe {
                opcode: Opcode::Write as u8,
                local_region: near.0,
                remote_region: far.0,
                remote_offset: 2048 + at * 8,
                bytes: 8,
                ..Sqe::default()
            };
            world.push(0, sqe);
        }
        let edges: Vec<u16> = (1..=10).collect();
        world.push(0, Sqe { flags: SQE_LINK, ..join(&edges) });
        world.push(0, nop());
        for _ in 0..5 {
            world.turn();
        }
        let cqes: Vec<_> = world.pop(0).iter().map(outcome).collect();
        if fits {
            // The NOP behind it needs another edge.
            assert_eq!(cqes, []);
            let taken = world.clients[0].taken();
            assert_eq!(taken, 11 + u64::from(edges_max > 10), "{edges_max}");
            if edges_max == 10 {
                let waits = ask(&mut world, 0, 11);
                let said = (waits.state, waits.wait, waits.used, waits.limit, waits.wants);
                assert_eq!(said, (STATE_UNTAKEN, WAIT_QUOTA_EDGES, 10, 10, 1));
            }
        } else {
            let never = failed(errno::E2BIG, 0, Detail::Edges);
            assert_eq!(cqes, [never, inherited(Detail::Edges)]);
        }
        stage.release();
        world.settle();
        assert_eq!(world.pop(0).len(), if fits { 12 } else { 10 });
        world.expect_rest();
    }
}

/// A DRAIN waits for all before it, whatever their outcome; all behind it wait for it.
#[test]
fn a_drain_waits_for_all_before_it_and_says_so() {
    let (stage, mut pair) = super::cancel::held_under(LIMITS, 16);
    for at in 0..3 {
        let sqe = pair.write(at * 64, 8);
        pair.world.push(SENDER, sqe);
    }
    let drain = Sqe { flags: SQE_DRAIN, ..pair.write(256, 8) };
    pair.world.push(SENDER, drain);
    let after = pair.write(512, 8);
    pair.world.push(SENDER, after);
    pair.world.turn();
    assert_eq!(stage.held(), 3);
    let said = |why: Why| (why.state, why.wait);
    assert_eq!(said(why(&mut pair, SENDER, 3).unwrap()), (STATE_WAITING, WAIT_EARLIER));
    assert_eq!(said(why(&mut pair, SENDER, 4).unwrap()), (STATE_WAITING, WAIT_PREDECESSOR));
    for errno in [0, BROKEN] {
        stage.complete(0, errno);
        pair.world.turn();
        pair.world.turn();
        assert!(stage.plan().held.iter().all(|request| request.remote_offset < 256));
    }
    for (offset, left) in [(256, 1), (512, 1)] {
        stage.complete(0, 0);
        pair.world.turn();
        pair.world.turn();
        assert_eq!(stage.held(), left);
        assert_eq!(stage.plan().held[0].remote_offset, offset);
    }
    stage.release();
    pair.world.settle();
    let ends: Vec<i32> = pair.world.pop(SENDER).iter().map(|cqe| cqe.res).collect();
    assert_eq!(ends, [8, -BROKEN, 8, 8, 8]);
    pair.world.expect_rest();
}
