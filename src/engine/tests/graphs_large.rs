//! Graphs that are long, wide or many: chains through a ring of few entries, fans, diamonds, and
//! random graphs through a pool that is full; started and ended as the reference says.

use super::board::{Board, Fate};
use super::script::BROKEN;
use super::world::LIMITS;
use crate::abi::{EDGE_ORDER_ONLY, Opcode, SQE_LINK, SQE_SKIP_SUCCESS, Sqe};
use crate::engine::Limits;
use crate::seeds::{Random, each_seed};

/// An engine with room for so many ops and edges.
fn wide(records: u32, edges: u32) -> Limits {
    Limits {
        records,
        edges,
        window_wrs: 256,
        window_bytes: 1 << 20,
        intake_budget: 64,
        sessions_max: 2,
        rings_max: 2,
        regions_max: 8,
        ..LIMITS
    }
}

fn board(limits: Limits, entries: u32) -> Board {
    let mut board = Board::new(limits, entries);
    board.pair.world.audited = limits.records <= 256;
    board.looks_every = 64;
    board
}

/// A turn now and then with an audit, where each would take too long.
fn turn(board: &mut Board, random: &mut Random) {
    board.turn();
    if random.below(64) == 0 {
        board.pair.world.engine.audit();
        board.pair.world.engine.audit_fates();
    }
}

/// An edge of a JOIN, by its place among all ten.
fn set_edge(sqe: &mut Sqe, at: usize, edge: u16) {
    match at {
        0..2 => sqe.edges[at] = edge,
        2..6 => sqe.arg[0] |= u64::from(edge) << (16 * (at - 2)),
        _ => sqe.arg[1] |= u64::from(edge) << (16 * (at - 6)),
    }
}

/// The ring holds 16 at a time; by edges, and by links.
#[test]
fn a_chain_of_100_000_nops_goes_through_a_ring_of_16() {
    for linked in [false, true] {
        let mut board = board(wide(64, 64), 16);
        let mut left = 100_000_u32;
        while left > 0 {
            while left > 0 && board.room() {
                let mut sqe = board.sqe(Opcode::Nop);
                if linked {
                    sqe.flags |=
                        SQE_LINK | if left.is_multiple_of(3) { SQE_SKIP_SUCCESS } else { 0 };
                } else if left < 100_000 {
                    sqe.edges[0] = 1;
                }
                board.push(sqe, Fate::Well);
                left -= 1;
            }
            board.turn();
        }
        board.finish();
        assert_eq!((board.tally.ran, board.tally.inherited), (100_000, 0));
        board.pair.world.expect_rest();
    }
}

/// All of it waits for one op, and is let go, or fails, from there: no deeper than one call, in
/// turns that each do a part.
#[test]
fn a_long_chain_behind_one_op_is_let_go_and_fails_without_recursion() {
    for fate in [Fate::Well, Fate::Broken(BROKEN)] {
        let mut board = board(wide(32_768, 32_768), 32_768);
        let head = board.sqe(Opcode::Write);
        board.push(head, fate);
        for _ in 0..16_000 {
            let sqe = Sqe { edges: [1, 0], ..board.sqe(Opcode::Nop) };
            board.push(sqe, Fate::Well);
        }
        for _ in 0..400 {
            board.turn();
        }
        assert_eq!(board.open(), 16_001, "all of it waits");
        board.complete_all();
        board.finish();
        let ends = (board.tally.ran, board.tally.inherited);
        assert_eq!(ends, if fate == Fate::Well { (16_001, 0) } else { (0, 16_000) });
        board.pair.world.expect_rest();
    }
}

#[test]
fn one_op_lets_1_024_go_and_1_024_let_one_go() {
    for fate in [Fate::Well, Fate::Broken(BROKEN)] {
        let mut board = board(wide(8192, 8192), 4096);
        let head = board.sqe(Opcode::Write);
        board.push(head, fate);
        for at in 1..=1024 {
            let sqe = Sqe { edges: [at, 0], ..board.sqe(Opcode::Write) };
            board.push(sqe, Fate::Well);
        }
        for _ in 0..40 {
            board.turn();
        }
        assert_eq!((board.stage.held(), board.open()), (1, 1025));
        // JOINs of JOINs, ten at a time, until one is left.
        let mut leaves: Vec<u64> = (1..=1024).collect();
        while leaves.len() > 1 {
            let ten = leaves.chunks(10).map(<[u64]>::to_vec).collect::<Vec<_>>();
            leaves = ten.iter().map(|ten| join(&mut board, ten)).collect();
        }
        let last = Sqe { edges: [1, 0], ..board.sqe(Opcode::Write) };
        let last = board.push(last, Fate::Well);
        let (mut random, mut turns) = (Random::new(1), 0);
        while !board.graph.is_over(last) {
            while board.stage.held() > 0 && random.below(8) > 0 {
                let at = random.index(board.stage.held());
                board.complete(at);
            }
            turn(&mut board, &mut random);
            turns += 1;
            assert!(turns < 10_000, "it does not end");
        }
        board.finish();
        assert_eq!(board.tally.inherited == 0, fate == Fate::Well);
        board.pair.world.expect_rest();
    }
}

/// Pushes a JOIN of up to ten ops; its number.
fn join(board: &mut Board, of: &[u64]) -> u64 {
    let mut sqe = board.sqe(Opcode::Join);
    let number = sqe.user_data - 1;
    for (at, before) in of.iter().enumerate() {
        set_edge(&mut sqe, at, u16::try_from(number - before).unwrap());
    }
    board.push(sqe, Fate::Well)
}

/// Two sides between a top and a bottom, one diamond behind the other; any of four may fail.
#[test]
fn diamonds_fail_and_pass_as_their_edges_say() {
    each_seed(50, |seed| {
        let mut random = Random::new(seed);
        let mut board = board(wide(256, 256), 64);
        let mut left = 60;
        while left > 0 || board.open() > 0 {
            while left > 0 && board.room() && random.chance(50) {
                let order = random.pick(&[0, 0, EDGE_ORDER_ONLY]);
                let edges =
                    [[1, 0], [1 | order, 0], [2, 0], [1, 2 | order]][4 - (left % 4 + 3) % 4 - 1];
                let first = left == 60;
                let edges = if first { [0, 0] } else { edges };
                let sqe = Sqe { edges, ..board.sqe(Opcode::Write) };
                let fails = random.chance(5);
                board.push(sqe, if fails { Fate::Broken(BROKEN) } else { Fate::Well });
                left -= 1;
            }
            if board.stage.held() > 0 {
                let at = random.index(board.stage.held());
                board.complete(at);
            }
            board.turn();
        }
        board.finish();
        board.pair.world.expect_rest();
    });
}

/// What a random graph is made of.
struct Shape {
    nodes: u32,
    entries: u32,
    /// Edges reach back so far.
    reach: u64,
    /// Of a thousand ops so many fail.
    fails: u64,
    limits: Limits,
}

/// Two edges for nearly every op; the number of edges.
fn random_graph(seed: u64, shape: &Shape) -> (Board, u64) {
    let mut random = Random::new(seed);
    let mut board = board(shape.limits, shape.entries);
    let (mut pushed, mut edges) = (0_u32, 0);
    while pushed < shape.nodes {
        while pushed < shape.nodes && board.room() {
            let opcode = [Opcode::Write, Opcode::Nop, Opcode::Join]
                [(random.below(8) / 6) as usize + usize::from(random.below(30) == 0)];
            let mut sqe = board.sqe(opcode);
            let count = if opcode == Opcode::Join { random.index(11) } else { 2 };
            for at in 0..count {
                let distance = 1 + random.below(shape.reach);
                if distance <= u64::from(pushed) {
                    let order = random.pick(&[0, EDGE_ORDER_ONLY]);
                    set_edge(&mut sqe, at, u16::try_from(distance).unwrap() | order);
                    edges += 1;
                }
            }
            if random.below(16) == 0 {
                sqe.flags |= SQE_SKIP_SUCCESS;
            }
            let fails = random.below(1000) < shape.fails;
            let fate = match opcode {
                _ if !fails => Fate::Well,
                Opcode::Write if random.chance(70) => Fate::Broken(BROKEN),
                _ => Fate::Refused,
            };
            board.push(sqe, fate);
            pushed += 1;
            if random.below(200) == 0 {
                break;
            }
        }
        while board.stage.held() > 0 && random.below(60) > 0 {
            let at = random.index(board.stage.held());
            board.complete(at);
        }
        turn(&mut board, &mut random);
    }
    board.finish();
    board.pair.world.expect_rest();
    (board, edges)
}

/// W19: 66,000 ops and twice as many edges through a pool of 16,384.
#[test]
fn w19_a_graph_of_66_000_ops_goes_through_a_pool_of_16_384_edges() {
    let limits = wide(16_384, 16_384);
    let shape = Shape { nodes: 66_000, entries: 16_384, reach: 8_000, fails: 1, limits };
    let (board, edges) = random_graph(1, &shape);
    assert!(edges > 125_000, "{edges} edges");
    println!("{edges} edges: {:?}", board.tally);
    assert!(board.tally.inherited > 0 && board.tally.passed > 0, "{:?}", board.tally);
}

/// Far more edges than there are places for them, ops that fail, every order of completion.
#[test]
fn random_graphs_go_through_small_pools() {
    each_seed(60, |seed| {
        let mut random = Random::new(seed);
        let mut limits = wide(random.pick(&[32, 128]), random.pick(&[40, 64]));
        limits.window_wrs = 1 + random.below32(16);
        limits.intake_budget = 1 + random.below32(16);
        let entries = random.pick(&[4, 16, 64]);
        let reach = random.pick(&[2, 10, 60]);
        let shape = Shape { nodes: 1_000, entries, reach, fails: 20, limits };
        let (board, edges) = random_graph(seed, &shape);
        assert!(edges > 1_000 && board.tally.ran > 100, "{:?}", board.tally);
    });
}
