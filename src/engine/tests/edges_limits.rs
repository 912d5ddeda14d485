//! What edges are bounded by, one below, at, and one beyond: ten of a JOIN, 32,767 SQEs back, the
//! pool, a uid's quota, each session's part.

use super::board::{Board, Fate};
use super::edges::{ask, behind, join};
use super::script::{BROKEN, Stage};
use super::world::{LIMITS, World, arm, nop};
use crate::abi::{
    EDGE_ORDER_ONLY, Opcode, SQE_HARDLINK, STATE_UNTAKEN, STATE_WAITING, Sqe, WAIT_DISTANCE,
    WAIT_EDGES, WAIT_PREDECESSOR, WAIT_QUOTA_EDGES,
};
use crate::engine::Limits;
use crate::sched::Contract;
use crate::seeds::Random;

/// The farthest that an edge can name.
const FARTHEST: u16 = 32_767;

/// Each of ten alone holds a JOIN back, and each alone fails it.
#[test]
fn a_join_waits_for_each_of_ten_and_an_eleventh_cannot_be_said() {
    for last in 0..10 {
        for fate in [Fate::Well, Fate::Broken(BROKEN)] {
            let mut board = Board::new(Limits { window_wrs: 16, ..LIMITS }, 32);
            for at in 0..10 {
                let sqe = board.sqe(Opcode::Write);
                board.push(sqe, if at == last { fate } else { Fate::Well });
            }
            let user_data = board.sqe(Opcode::Join).user_data;
            let edges: Vec<u16> = (1..=10).collect();
            let number = board.push(Sqe { user_data, ..join(&edges) }, Fate::Well);
            board.turn();
            board.turn();
            assert_eq!(board.pair.world.engine.edges.in_use(), 10);
            // All but one.
            let place = |board: &Board| {
                let plan = board.stage.plan();
                plan.held.iter().position(|it| it.remote_offset / 64 != last)
            };
            while let Some(at) = place(&board) {
                board.complete(at);
                board.turn();
            }
            assert!(!board.graph.is_over(number), "it waits for the last");
            board.finish();
            assert_eq!(board.tally.inherited, u64::from(fate != Fate::Well));
        }
    }
}

/// A ring whose first op the fabric holds, and so many NOPs behind it.
fn held_and_far(nops: u16) -> Board {
    let mut board = Board::new(LIMITS, 64);
    board.pair.world.audited = false;
    board.looks_every = 1 << 20;
    let first = board.sqe(Opcode::Write);
    board.push(first, Fate::Broken(BROKEN));
    for _ in 0..nops {
        while !board.room() {
            board.turn();
        }
        let sqe = board.sqe(Opcode::Nop);
        board.push(sqe, Fate::Well);
    }
    while board.open() > 1 {
        board.turn();
    }
    board
}

/// One op stays open. 32,766 SQEs on, another one may wait for it; one more is not taken until it
/// is over, since the next could not be told apart from it.
#[test]
fn an_op_is_waited_for_up_to_32_766_sqes_back_and_intake_waits_for_it_at_32_767() {
    for (nops, taken) in [(FARTHEST - 2, true), (FARTHEST - 1, false)] {
        let mut board = held_and_far(nops);
        let sqe = Sqe { edges: [nops + 1, 0], ..board.sqe(Opcode::Write) };
        let number = board.push(sqe, Fate::Well);
        for _ in 0..5 {
            board.turn();
        }
        let why = ask(&mut board.pair.world, 0, number);
        if taken {
            assert_eq!((why.state, why.wait), (STATE_WAITING, WAIT_PREDECESSOR), "{why:?}");
        } else {
            assert_eq!((why.state, why.wait), (STATE_UNTAKEN, WAIT_DISTANCE), "{why:?}");
            assert_eq!((why.used, why.limit), (32_767, 32_767), "{why:?}");
        }
        board.finish();
        assert_eq!(board.tally.inherited, 1, "what failed 32,767 back is known: {:?}", board.tally);
    }
}

/// An ARM may stay for ever: it holds nobody back.
#[test]
fn an_arm_of_long_ago_holds_no_intake_back() {
    let mut board = Board::new(LIMITS, 64);
    board.pair.world.audited = false;
    board.looks_every = 1 << 20;
    let region = board.pair.near;
    let sqe = arm(region, 1);
    board.graph.push(&sqe);
    board.pair.world.push(0, Sqe { user_data: 1, ..sqe });
    for at in 0..40_000_u32 {
        while !board.room() {
            board.turn();
        }
        let drain = if at % 5_000 == 0 { crate::abi::SQE_DRAIN } else { 0 };
        let sqe = board.sqe(Opcode::Nop);
        board.push(Sqe { flags: drain, ..sqe }, Fate::Well);
    }
    board.finish();
    assert_eq!((board.tally.ran, board.pair.world.armed()), (40_000, 1));
}

/// 140,000 SQEs, of which some are refused, and some have two edges to anywhere within reach: what
/// is remembered of each goes round several times, and is each time of the right one.
#[test]
fn outcomes_of_the_last_32_767_sqes_are_told_apart_as_their_places_go_round() {
    let limits = Limits { intake_budget: 64, ..LIMITS };
    let mut board = Board::new(limits, 64);
    board.pair.world.audited = false;
    board.looks_every = 1 << 20;
    let mut random = Random::new(7);
    for at in 0..140_000_u64 {
        while !board.room() {
            board.turn();
        }
        let far = |random: &mut Random| {
            let reach = at.min(FARTHEST.into());
            // The farthest more often than others.
            let distance = if random.below(3) == 0 { reach } else { random.below(reach + 1) };
            let order = random.pick(&[0, EDGE_ORDER_ONLY]);
            u16::try_from(distance).unwrap() | if distance == 0 { 0 } else { order }
        };
        let edges =
            if random.below(8) == 0 { [far(&mut random), far(&mut random)] } else { [0; 2] };
        let flags = if random.below(50) == 0 { SQE_HARDLINK } else { 0 };
        let sqe = Sqe { edges, flags, ..board.sqe(Opcode::Nop) };
        let refused = random.below(16) == 0;
        board.push(sqe, if refused { Fate::Refused } else { Fate::Well });
    }
    board.finish();
    let tally = board.tally;
    assert!(tally.inherited > 1_000 && tally.passed > 500 && tally.refused > 5_000, "{tally:?}");
    board.pair.world.expect_rest();
}

/// One below, at, and one beyond what a uid may have.
#[test]
fn a_uids_edges_are_bounded_and_the_next_one_waits() {
    for ops in 14..=17_u16 {
        let contract = Contract { edges_max: 16, ..Contract::of_ops(128) };
        let (stage, mut world) = one_held(LIMITS, &[contract]);
        for at in 1..=ops {
            world.push(0, behind([at, 0]));
        }
        for _ in 0..20 {
            world.turn();
        }
        let taken = world.clients[0].taken();
        assert_eq!(taken, 1 + u64::from(ops.min(16)));
        assert_eq!(world.engine.edges.in_use(), u32::from(ops.min(16)));
        if ops > 16 {
            let why = ask(&mut world, 0, 17);
            let said = (why.state, why.wait, why.used, why.limit, why.wants);
            assert_eq!(said, (STATE_UNTAKEN, WAIT_QUOTA_EDGES, 16, 16, 1));
        }
        stage.release();
        world.settle();
        assert_eq!(world.pop(0).len(), usize::from(ops) + 1);
        world.expect_rest();
    }
}

/// Sessions with a ring and a WRITE each that the fabric holds.
fn one_held(limits: Limits, contracts: &[Contract]) -> (Stage, World<super::script::Script>) {
    let stage = Stage::new();
    let mut world = World::new(limits, stage.fabric(limits));
    stage.hold();
    for (at, contract) in (0..).zip(contracts) {
        let session = world.session_under(at, at, *contract);
        let client = world.ring(session, 128, 128);
        let near = world.region(session, 4096);
        let far = world.import(session, near);
        let sqe = Sqe {
            opcode: Opcode::Write as u8,
            local_region: near.0,
            remote_region: far.0,
            remote_offset: 2048,
            bytes: 8,
            ..Sqe::default()
        };
        world.push(client, sqe);
    }
    (stage, world)
}

/// However much of the pool the others have, each session has its part; and what needs no edge goes
/// by in every one.
#[test]
fn each_session_has_its_part_of_the_pool_whatever_others_hold() {
    let limits = Limits { records: 512, edges: 128, sessions_max: 4, window_wrs: 8, ..LIMITS };
    let (stage, mut world) = one_held(limits, &[Contract::of_ops(512); 4]);
    let part = limits.edges / limits.sessions_max / 2;
    // The first has all that it may, then the others, one after the other.
    for client in 0..4 {
        for at in 1..=100 {
            world.push(client, behind([at, 0]));
        }
        for _ in 0..30 {
            world.turn();
        }
        let has = u32::try_from(world.clients[client].taken()).unwrap() - 1;
        let open = limits.edges - 4 * part;
        assert_eq!(has, if client == 0 { part + open } else { part }, "session {client}");
        let why = ask(&mut world, client, u64::from(has) + 1);
        assert_eq!((why.state, why.wait, why.wants), (STATE_UNTAKEN, WAIT_EDGES, 1), "{why:?}");
    }
    assert_eq!(world.engine.edges.in_use(), limits.edges, "all of it");
    // The last one's head ends: its edges come back, whatever others hold.
    let last = stage.held() - 1;
    stage.complete(last, 0);
    for _ in 0..40 {
        world.turn();
    }
    assert_eq!(world.pop(3).len(), 101);
    world.push(3, nop());
    world.turn();
    world.turn();
    assert_eq!(world.pop(3).len(), 1);
    assert_eq!(world.pop(0).len() + world.pop(1).len() + world.pop(2).len(), 0);
    stage.release();
    world.settle();
    world.expect_rest();
}
