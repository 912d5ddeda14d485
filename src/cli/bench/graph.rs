//! Graphs of ops for one ring, as `verbring bench chain` pushes them: which op each node is, and
//! how far back its predecessors lie.
//!
//! A graph is made once and pushed over and over: with its edges, or without them, so that what
//! differs is what edges cost.
//! **Tests**: here, for the counts of nodes and edges and for who waits for whom.

use serde::{Deserialize, Serialize};
use verbring::abi::{EDGE_ORDER_ONLY, Opcode, Sqe};

/// What a graph looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// WRITEs, each behind the one before.
    Chain { length: u32 },
    /// WRITEs by fours: one, two behind it, and one behind these.
    Diamonds { count: u32 },
    /// A WRITE and so many behind it.
    FanOut { width: u32 },
    /// So many WRITEs and, by JOINs of JOINs, one behind all of them.
    FanIn { width: u32 },
    /// Nodes with predecessors drawn among the `reach` before them; `nops`: all but one in
    /// [`NODES_A_WRITE`] move nothing.
    Random { nodes: u32, edges: u32, reach: u32, nops: bool },
}

/// With which edges a graph is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edges {
    None,
    /// They carry failures.
    Hard,
    /// They carry none.
    OrderOnly,
}

/// An op of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) opcode: Opcode,
    /// Each predecessor, as a distance back.
    pub(super) back: Vec<u16>,
}

impl Form {
    /// Its name in rows.
    pub(super) fn name(self) -> String {
        match self {
            Self::Chain { length } => format!("chain_{length}"),
            Self::Diamonds { count } => format!("diamonds_{count}"),
            Self::FanOut { width } => format!("fan_out_{width}"),
            Self::FanIn { width } => format!("fan_in_{width}"),
            Self::Random { nodes, nops: false, .. } => format!("random_{nodes}"),
            Self::Random { nodes, nops: true, .. } => format!("random_nops_{nodes}"),
        }
    }

    /// Its nodes, in the order in which they are pushed.
    pub(super) fn nodes(self) -> Vec<Node> {
        let write = |back: &[u16]| Node { opcode: Opcode::Write, back: back.to_vec() };
        match self {
            Self::Chain { length } => {
                let mut nodes = vec![write(&[1]); length as usize];
                nodes[0].back.clear();
                nodes
            }
            Self::Diamonds { count } => {
                let one = [write(&[]), write(&[1]), write(&[2]), write(&[1, 2])];
                one.iter().cycle().take(4 * count as usize).cloned().collect()
            }
            Self::FanOut { width } => {
                let behind = (1..=width).map(|at| write(&[distance(at)]));
                std::iter::once(write(&[])).chain(behind).collect()
            }
            Self::FanIn { width } => fan_in(width),
            Self::Random { nodes, edges, reach, nops } => random(nodes, edges, reach, nops),
        }
    }
}

/// Leaves, and joins of as many as one can name until a single node is behind all.
fn fan_in(width: u32) -> Vec<Node> {
    let leaf = Node { opcode: Opcode::Write, back: Vec::new() };
    let mut nodes = vec![leaf; width as usize];
    // The nodes that nobody waits for yet: from the first of them to the end.
    let mut first = 0;
    while nodes.len() - first > JOIN_EDGES as usize {
        let end = nodes.len();
        while first < end {
            let group = JOIN_EDGES.min(u32::try_from(end - first).unwrap_or(1));
            let from = u32::try_from(nodes.len() - first).unwrap_or(u32::MAX);
            let back = (0..group).map(|at| distance(from - at)).collect();
            nodes.push(Node { opcode: Opcode::Join, back });
            first += group as usize;
        }
    }
    let left = u32::try_from(nodes.len() - first).unwrap_or(u32::MAX);
    nodes.push(Node { opcode: Opcode::Join, back: (1..=left).map(distance).collect() });
    nodes
}

/// Each node but the first few waits for one or two of those before it; one in [`NODES_A_JOIN`] is
/// a JOIN of ten. The edges are spread evenly and are as many as asked for, as far as this allows.
fn random(nodes: u32, edges: u32, reach: u32, nops: bool) -> Vec<Node> {
    let mut draws = Draws(0x2545_f491_4f6c_dd1d);
    let (mut all, mut have): (Vec<Node>, u64) = (Vec::with_capacity(nodes as usize), 0);
    for at in 0..nodes {
        let opcode = match at {
            _ if at % NODES_A_JOIN == NODES_A_JOIN - 1 => Opcode::Join,
            _ if nops && at % NODES_A_WRITE != 0 => Opcode::Nop,
            _ => Opcode::Write,
        };
        let due = u64::from(edges) * u64::from(at + 1) / u64::from(nodes);
        let wanted = match opcode {
            Opcode::Join => JOIN_EDGES,
            _ => u32::try_from(due.saturating_sub(have)).unwrap_or(2).clamp(1, 2),
        };
        let reach = reach.min(at);
        let mut back = Vec::new();
        while back.len() < wanted.min(reach) as usize {
            let drawn = distance(1 + draws.below(reach));
            if !back.contains(&drawn) {
                back.push(drawn);
            }
        }
        have += back.len() as u64;
        all.push(Node { opcode, back });
    }
    all
}

/// The fewest and the most edges of a random graph with so many nodes, of which the first few have
/// less to wait for.
pub(super) fn random_edges(nodes: u32) -> [u32; 2] {
    let joins = nodes / NODES_A_JOIN;
    let more = joins * (JOIN_EDGES - 1);
    [nodes + more, 2 * nodes + more - joins].map(|edges| edges - 1)
}

impl Node {
    /// As it is pushed: its edges, and no more. An op with one or two has them in `edges`; a JOIN's
    /// others lie in `arg`.
    pub(super) fn sqe(&self, edges: Edges) -> Sqe {
        let mut sqe = Sqe { opcode: self.opcode as u8, ..Sqe::default() };
        let kind = match edges {
            Edges::None => return sqe,
            Edges::Hard => 0,
            Edges::OrderOnly => EDGE_ORDER_ONLY,
        };
        for (at, back) in self.back.iter().map(|back| back | kind).enumerate() {
            match at {
                0 | 1 => sqe.edges[at] = back,
                _ => sqe.arg[(at - 2) / 4] |= u64::from(back) << (16 * ((at - 2) % 4)),
            }
        }
        sqe
    }
}

/// Edges of all nodes.
pub(super) fn edges(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| node.back.len() as u64).sum()
}

fn distance(back: u32) -> u16 {
    u16::try_from(back).unwrap_or(u16::MAX)
}

/// Numbers that look random and are the same in every run (xorshift).
struct Draws(u64);

impl Draws {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 16) % u64::from(end)).unwrap_or(0)
    }
}

/// What a JOIN can name: two edges as any op, and eight more.
const JOIN_EDGES: u32 = 10;

/// One node in so many of a random graph is a JOIN.
const NODES_A_JOIN: u32 = 33;

/// One in so many of a graph of NOPs is a WRITE all the same: NOPs alone end as they are taken, so
/// that nobody would ever wait.
const NODES_A_WRITE: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow way: everything that a node waits for, near and far.
    fn waits_for(nodes: &[Node], last: usize) -> Vec<usize> {
        let mut seen = vec![false; nodes.len()];
        let mut open = vec![last];
        while let Some(at) = open.pop() {
            for &back in &nodes[at].back {
                let before = at - usize::from(back);
                if !seen[before] {
                    seen[before] = true;
                    open.push(before);
                }
            }
        }
        (0..nodes.len()).filter(|at| seen[*at]).collect()
    }

    #[test]
    fn a_chain_waits_for_all_before_and_a_fan_for_one() {
        let chain = Form::Chain { length: 16 }.nodes();
        assert_eq!(waits_for(&chain, 15), (0..15).collect::<Vec<_>>());
        assert_eq!((edges(&chain), edges(&Form::Chain { length: 1 }.nodes())), (15, 0));
        let fan = Form::FanOut { width: 1_024 }.nodes();
        assert_eq!((fan.len(), edges(&fan)), (1_025, 1_024));
        assert!((1..fan.len()).all(|at| waits_for(&fan, at) == [0]));
    }

    #[test]
    fn diamonds_stand_side_by_side() {
        let nodes = Form::Diamonds { count: 3 }.nodes();
        assert_eq!((nodes.len(), edges(&nodes)), (12, 12));
        assert_eq!(waits_for(&nodes, 11), [8, 9, 10]);
        assert_eq!(waits_for(&nodes, 10), [8], "the two of the middle go side by side");
        assert_eq!(waits_for(&nodes, 4), [] as [usize; 0]);
    }

    #[test]
    fn the_last_of_a_fan_in_waits_for_every_leaf_whatever_the_width() {
        for width in [1, 2, 9, 10, 11, 99, 100, 101, 1_024] {
            let nodes = Form::FanIn { width }.nodes();
            let all: Vec<usize> = (0..nodes.len() - 1).collect();
            assert_eq!(waits_for(&nodes, nodes.len() - 1), all, "{width}");
            // Whoever is not the last has exactly one behind it.
            assert_eq!(edges(&nodes), nodes.len() as u64 - 1, "{width}");
            assert!(nodes.iter().all(|node| node.back.len() <= JOIN_EDGES as usize));
        }
    }

    #[test]
    fn a_random_graph_has_as_many_nodes_and_edges_as_was_said() {
        for nops in [false, true] {
            let form = Form::Random { nodes: 66_000, edges: 133_000, reach: 64, nops };
            let nodes = form.nodes();
            assert_eq!(nodes.len(), 66_000);
            assert!(edges(&nodes).abs_diff(133_000) <= 10, "{}", edges(&nodes));
            for (at, node) in nodes.iter().enumerate() {
                let most = if node.opcode == Opcode::Join { 10 } else { 2 };
                assert!(node.back.len() <= most && (at == 0 || !node.back.is_empty()), "{at}");
                assert!(node.back.iter().all(|&back| (1..=64).contains(&back)));
                assert!(node.back.iter().all(|&back| usize::from(back) <= at), "{at}");
            }
            let writes = nodes.iter().filter(|node| node.opcode == Opcode::Write).count();
            assert_eq!(writes, if nops { 1_001 } else { 64_000 });
            assert_eq!(form.nodes(), nodes, "the same in every run");
        }
        for limit in random_edges(3_300) {
            let form = Form::Random { nodes: 3_300, edges: limit, reach: 64, nops: false };
            assert!(edges(&form.nodes()).abs_diff(limit.into()) <= 10, "{limit}");
        }
    }

    #[test]
    fn edges_lie_where_the_engine_looks_for_them() {
        let back: Vec<u16> = (1..=10).collect();
        let join = Node { opcode: Opcode::Join, back };
        let sqe = join.sqe(Edges::Hard);
        assert_eq!(sqe.edges, [1, 2]);
        assert_eq!(sqe.arg, [0x0006_0005_0004_0003, 0x000a_0009_0008_0007]);
        let sqe = join.sqe(Edges::OrderOnly);
        assert_eq!(sqe.edges, [0x8001, 0x8002]);
        assert_eq!(sqe.arg, [0x8006_8005_8004_8003, 0x800a_8009_8008_8007]);
        assert_eq!((join.sqe(Edges::None).edges, join.sqe(Edges::None).arg), ([0; 2], [0; 2]));
    }
}
