//! All graphs of up to five ops in one ring, with every kind of edge between any two of them, and
//! every way in which each op may end; started, released and ended as the reference says.
//!
//! Of up to three ops each graph is run with every choice of ops, ends, DRAINs and orders of
//! completion. Of four and five each is run with every choice of ops that fail; how they fail,
//! what they are, which are DRAINs, and when what is pushed and completed, is drawn from the case's
//! number. `VERBRING_GRAPHS=1 cargo test --release --lib every_graph` runs them all, a larger
//! number every n-th of them; without it some of each are run.

use super::board::{Board, Fate, Tally};
use super::world::LIMITS;
use crate::abi::{EDGE_ORDER_ONLY, Opcode, SQE_DRAIN, SQE_HARDLINK, SQE_LINK};
use crate::engine::Limits;
use crate::seeds::Random;

const SMALL: Limits = Limits {
    records: 16,
    sessions_max: 2,
    rings_max: 2,
    regions_max: 8,
    window_wrs: 8,
    window_bytes: 4096,
    ..LIMITS
};

/// Distinct errnos, so that every cause is told from the others.
const ERRNOS: [i32; 5] = [5, 14, 32, 71, 110];

/// The ways of an op: what it is, and how it ends by itself.
const WAYS: [(Opcode, Fate); 7] = [
    (Opcode::Write, Fate::Well),
    (Opcode::Write, Fate::Broken(0)),
    (Opcode::Write, Fate::Refused),
    (Opcode::Write, Fate::TakenBack),
    (Opcode::Nop, Fate::Well),
    (Opcode::Join, Fate::Well),
    (Opcode::Join, Fate::TakenBack),
];

/// An op of a case.
#[derive(Clone, Debug)]
struct Node {
    edges: Vec<u16>,
    flags: u16,
    opcode: Opcode,
    fate: Fate,
}

/// One graph, and the order in which things happen to it.
#[derive(Clone, Debug)]
struct Case {
    nodes: Vec<Node>,
    steps: Steps,
}

#[derive(Clone, Debug)]
enum Steps {
    /// All pushed at once; completed in an order that a number stands for.
    Together(u64),
    /// Each is over before the next one is pushed.
    Apart,
    /// Anything at any time.
    Drawn(Random),
}

/// A number, read digit by digit in bases of their own.
struct Digits(u64);

impl Digits {
    fn pick(&mut self, base: u64) -> u64 {
        let digit = self.0 % base;
        self.0 /= base;
        digit
    }
}

fn pairs(nodes: u64) -> (u32, u32) {
    let adjacent = nodes - 1;
    let apart = nodes * (nodes - 1) / 2 - adjacent;
    (u32::try_from(adjacent).unwrap(), u32::try_from(apart).unwrap())
}

/// Graphs of so many ops: five kinds of ties between neighbours, three between others.
fn graphs(nodes: u64) -> u64 {
    let (adjacent, apart) = pairs(nodes);
    5_u64.pow(adjacent) * 3_u64.pow(apart)
}

/// The graph that the digits stand for; what its ops are is left open.
fn graph(nodes: u64, digits: &mut Digits) -> Vec<Node> {
    let blank = Node { edges: Vec::new(), flags: 0, opcode: Opcode::Write, fate: Fate::Well };
    let count = usize::try_from(nodes).unwrap();
    let mut made = vec![blank; count];
    for to in 1..count {
        for from in 0..to {
            let distance = u16::try_from(to - from).unwrap();
            match digits.pick(if distance == 1 { 5 } else { 3 }) {
                0 => {}
                1 => made[to].edges.push(distance),
                2 => made[to].edges.push(distance | EDGE_ORDER_ONLY),
                3 => made[from].flags |= SQE_LINK,
                _ => made[from].flags |= SQE_HARDLINK,
            }
        }
    }
    made
}

/// Cases of up to three ops, with all that may come of each.
fn whole_count(nodes: u64) -> u64 {
    let orders: u64 = (1..=nodes).product();
    let power = u32::try_from(nodes).unwrap();
    graphs(nodes) * 7_u64.pow(power) * 2_u64.pow(power) * (orders + 1)
}

fn whole(nodes: u64, number: u64) -> Case {
    let mut digits = Digits(number);
    let mut made = graph(nodes, &mut digits);
    for (at, node) in made.iter_mut().enumerate() {
        (node.opcode, node.fate) = WAYS[usize::try_from(digits.pick(7)).unwrap()];
        if let Fate::Broken(errno) = &mut node.fate {
            *errno = ERRNOS[at];
        }
        if digits.pick(2) == 1 {
            node.flags |= SQE_DRAIN;
        }
    }
    let steps = match digits.0 {
        0 => Steps::Apart,
        order => Steps::Together(order - 1),
    };
    Case { nodes: made, steps }
}

/// Cases of which each graph comes with every set of ops that fail, and the rest is drawn.
fn drawn_count(nodes: u64) -> u64 {
    graphs(nodes) << nodes
}

fn drawn(nodes: u64, number: u64) -> Case {
    let mut digits = Digits(number);
    let mut made = graph(nodes, &mut digits);
    let mut random = Random::new(number);
    for (at, node) in made.iter_mut().enumerate() {
        let fails = digits.pick(2) == 1;
        let joins = node.edges.len() > 2 || random.chance(20);
        node.opcode = match random.below(5) {
            _ if joins => Opcode::Join,
            0 if !fails => Opcode::Nop,
            _ => Opcode::Write,
        };
        node.fate = match random.below(4) {
            _ if !fails => Fate::Well,
            0 => Fate::Refused,
            1 => Fate::TakenBack,
            _ if joins => Fate::TakenBack,
            _ => Fate::Broken(ERRNOS[at]),
        };
        if random.chance(8) {
            node.flags |= SQE_DRAIN;
        }
    }
    Case { nodes: made, steps: Steps::Drawn(random) }
}

/// Pushes one op of a case.
fn push(board: &mut Board, node: &Node) {
    let mut sqe = board.sqe(node.opcode);
    sqe.flags |= node.flags;
    for (at, &edge) in node.edges.iter().enumerate() {
        match at {
            0..2 => sqe.edges[at] = edge,
            2..6 => sqe.arg[0] |= u64::from(edge) << (16 * (at - 2)),
            _ => sqe.arg[1] |= u64::from(edge) << (16 * (at - 6)),
        }
    }
    board.push(sqe, node.fate);
}

fn run(board: &mut Board, case: Case) {
    match case.steps {
        Steps::Together(order) => {
            case.nodes.iter().for_each(|node| push(board, node));
            board.turn();
            let mut digits = Digits(order);
            for left in (1..=case.nodes.len()).rev() {
                let at = usize::try_from(digits.pick(left as u64)).unwrap();
                board.take_back();
                if board.stage.held() > 0 {
                    board.complete(at % board.stage.held());
                }
                board.turn();
            }
        }
        Steps::Apart => {
            for node in &case.nodes {
                push(board, node);
                board.turn();
                board.finish();
            }
        }
        Steps::Drawn(mut random) => {
            let mut left = case.nodes.iter();
            while left.len() > 0 {
                match random.below(4) {
                    0 | 1 => push(board, left.next().expect("one more")),
                    2 if board.stage.held() > 0 => {
                        let at = random.index(board.stage.held());
                        board.complete(at);
                    }
                    3 => board.take_back(),
                    _ => {}
                }
                if random.chance(60) {
                    board.turn();
                }
            }
            while board.stage.held() > 0 {
                let at = random.index(board.stage.held());
                board.complete(at);
                if random.chance(30) {
                    board.take_back();
                }
                board.turn();
            }
        }
    }
    board.finish();
}

/// Runs every `stride`-th case; how many that were.
fn run_all(count: u64, stride: u64, case: impl Fn(u64) -> Case, tally: &mut Tally) -> u64 {
    let mut cases = 0;
    let mut board = Board::new(SMALL, 8);
    for number in (0..count).step_by(usize::try_from(stride).unwrap()) {
        let case = case(number);
        let told = case.clone();
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut board, case)));
        if let Err(panic) = ran {
            eprintln!("case {number} of {count}: {told:#?}");
            std::panic::resume_unwind(panic);
        }
        cases += 1;
        // Rings of their own now and then, so that what is kept of them stays small.
        if cases % 1024 == 0 {
            board.pair.world.expect_rest();
            add(tally, &board.tally);
            board = Board::new(SMALL, 8);
        }
    }
    board.pair.world.expect_rest();
    add(tally, &board.tally);
    cases
}

fn add(sum: &mut Tally, more: &Tally) {
    sum.ran += more.ran;
    sum.failed += more.failed;
    sum.inherited += more.inherited;
    sum.taken_back += more.taken_back;
    sum.refused += more.refused;
    sum.passed += more.passed;
    sum.waited += more.waited;
}

fn stride(default: u64) -> u64 {
    std::env::var("VERBRING_GRAPHS").map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_graph_of_up_to_three_ops_ends_as_the_reference_says_in_every_order() {
    let mut tally = Tally::default();
    let mut cases = 0;
    for (nodes, default) in [(1, 1), (2, 1), (3, 499)] {
        let case = |number| whole(nodes, number);
        cases += run_all(whole_count(nodes), stride(default), case, &mut tally);
    }
    println!("{cases} cases: {tally:?}");
    expect_all(&tally);
}

#[test]
fn every_graph_of_four_ops_ends_as_the_reference_says() {
    let mut tally = Tally::default();
    let cases = run_all(drawn_count(4), stride(11), |number| drawn(4, number), &mut tally);
    println!("{cases} cases: {tally:?}");
    expect_all(&tally);
}

#[test]
fn every_graph_of_five_ops_ends_as_the_reference_says() {
    let mut tally = Tally::default();
    let cases = run_all(drawn_count(5), stride(4_001), |number| drawn(5, number), &mut tally);
    println!("{cases} cases: {tally:?}");
    expect_all(&tally);
}

/// Cases in which nothing happens prove nothing.
fn expect_all(tally: &Tally) {
    let Tally { ran, failed, inherited, taken_back, refused, passed, waited } = *tally;
    let all = [ran, failed, inherited, taken_back, refused, passed, waited];
    assert!(!all.contains(&0), "{tally:?}");
}
