//! A client of graphs: pushes a whole graph, shows it to the engine, and takes its completions,
//! over and over for a slice.
//!
//! The time of a graph is from just before its first node is pushed until the last completion is
//! popped; nobody sleeps meanwhile. Before a graph is timed it is run once, and its completions
//! must come in an order that its edges allow.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use verbring::abi::{Class, Counter, Cqe, Opcode, Sqe};
use verbring::client::Scope;
use verbring::{RawRing, RingOptions, Session};

use super::cores::pin_to;
use super::graph::{Edges, Form, Node};
use super::shape::{OpKind, Shape, Wish};
use super::slice::{SILENCE_MAX, histogram, now_ns};
use super::talk::{Order, Report, misplaced, next_order, report};
use super::through_engine::{Memory, attach, memory, over};
use crate::cli::Failure;

/// What a client is to be ready for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ChainPlan {
    pub(super) core: usize,
    pub(super) socket: PathBuf,
    pub(super) cases: Vec<Case>,
}

/// A graph of WRITEs of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Case {
    pub(super) form: Form,
    pub(super) size_bytes: u64,
}

/// How the nodes of a graph come to run one behind the other, or do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum By {
    /// Each names those before it: what waits for one op may go behind it at once.
    Wired,
    /// The same, for their order only: each waits in the engine until they are over.
    Edge,
    /// None waits for another.
    Independent,
    /// The client pushes each of a chain when the one before has completed.
    OneByOne,
}

/// What is to be run in one slice.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Weave {
    /// Which of the plan's cases.
    pub(super) case: usize,
    pub(super) by: By,
    pub(super) slice_ns: u64,
}

/// What a slice came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Woven {
    /// The median of its graphs.
    pub(super) graph_ns: u64,
    /// Ops of all its graphs that had edges: those that waited, and those whose predecessors were
    /// all over.
    pub(super) waited: u64,
    pub(super) waited_for_none: u64,
}

impl By {
    /// Its name in rows.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Wired => "wired",
            Self::Independent => "independent",
            Self::OneByOne => "one_by_one",
        }
    }
}

impl Case {
    /// Ops lie side by side, up to [`PLACES_MAX`] of them.
    pub(super) fn shape(&self) -> Result<Shape, Failure> {
        let places = (self.form.nodes().len() as u64).min(PLACES_MAX);
        let wish = Wish {
            op: OpKind::Write,
            size_bytes: self.size_bytes,
            pages: 1,
            batch: 1,
            depth: places,
            class: Class::Medium,
            working_set_bytes: Some(2 * places * self.size_bytes),
        };
        Shape::settle(wish).map_err(|error| Failure::Usage(error.to_string()))
    }
}

/// Runs slices until no more is wanted.
pub(super) fn run(plan: &ChainPlan) -> Result<(), Failure> {
    pin_to(plan.core)?;
    let mut end = End::new(plan)?;
    report(&Report::Ready { skipped: Vec::new() })?;
    while let Some(order) = next_order()? {
        match order {
            Order::Weave(weave) if weave.case < end.graphs.len() => {
                report(&Report::Woven(end.slice(weave)?))?;
            }
            other => return Err(misplaced(&other)),
        }
    }
    Ok(())
}

/// A graph, ready to be pushed.
struct Graph {
    nodes: Vec<Node>,
    wired: Vec<Sqe>,
    edge: Vec<Sqe>,
    independent: Vec<Sqe>,
    /// Ways in which it was seen to run in order.
    proven: Vec<By>,
}

impl Graph {
    fn new(memory: &Memory, case: &Case) -> Result<Self, Failure> {
        let shape = case.shape()?;
        let nodes = case.form.nodes();
        let sqes = |edges: Edges| -> Vec<Sqe> {
            let mut walk = shape.walk(memory.near.id(), memory.import.id());
            let of = |(at, node): (usize, &Node)| {
                let bare = node.sqe(edges);
                // What each is to answer is kept beside its place in the graph.
                if node.opcode != Opcode::Write {
                    return Sqe { user_data: tag(at, 0), ..bare };
                }
                let write = Sqe::from_words(walk.next(tag(at, case.size_bytes)));
                Sqe { edges: bare.edges, ..write }
            };
            nodes.iter().enumerate().map(of).collect()
        };
        let [wired, edge, independent] = [Edges::Hard, Edges::OrderOnly, Edges::None].map(sqes);
        Ok(Self { nodes, wired, edge, independent, proven: Vec::new() })
    }

    fn sqes(&self, by: By) -> &[Sqe] {
        match by {
            By::Edge => &self.edge,
            By::Wired => &self.wired,
            By::Independent | By::OneByOne => &self.independent,
        }
    }
}

/// The client's end.
struct End {
    session: Session,
    ring: RawRing,
    graphs: Vec<Graph>,
    /// What all graphs lie in.
    _memory: Memory,
}

impl End {
    fn new(plan: &ChainPlan) -> Result<Self, Failure> {
        let session = attach(&plan.socket)?;
        let options = RingOptions::new(SQ_ENTRIES, CQ_ENTRIES);
        let ring =
            session.raw_ring(options).map_err(|error| Failure::of("cannot have a ring", &error))?;
        let shapes = plan.cases.iter().map(Case::shape).collect::<Result<Vec<_>, _>>()?;
        let none = || Failure::Failed("no graph to run".to_string());
        let largest = shapes.iter().max_by_key(|shape| shape.memory_bytes()).ok_or_else(none)?;
        let memory = memory(&session, largest)?;
        let graphs = plan.cases.iter().map(|case| Graph::new(&memory, case));
        let graphs = graphs.collect::<Result<_, _>>()?;
        Ok(Self { session, ring, graphs, _memory: memory })
    }

    fn slice(&mut self, weave: Weave) -> Result<Woven, Failure> {
        let Weave { case, by, slice_ns } = weave;
        let graph = &mut self.graphs[case];
        if !graph.proven.contains(&by) {
            prove(&mut self.ring, graph, by)?;
            graph.proven.push(by);
        }
        let before = waits(&self.session)?;
        let (sqes, mut graphs) = (graph.sqes(by), histogram());
        let start_ns = now_ns();
        loop {
            let from_ns = now_ns();
            match by {
                By::OneByOne => {
                    for sqe in sqes {
                        push_all(&mut self.ring, std::slice::from_ref(sqe), |_| ())?;
                    }
                }
                _ => push_all(&mut self.ring, sqes, |_| ())?,
            }
            let until_ns = now_ns();
            let warm = until_ns - start_ns < slice_ns / WARM_PART;
            if !warm {
                graphs.saturating_record(until_ns - from_ns);
            }
            if !graphs.is_empty() && until_ns - start_ns >= slice_ns {
                break;
            }
        }
        let after = waits(&self.session)?;
        Ok(Woven {
            graph_ns: graphs.value_at_quantile(0.5),
            waited: after[0] - before[0],
            waited_for_none: after[1] - before[1],
        })
    }
}

/// Runs a graph once and looks at the order of its completions.
fn prove(ring: &mut RawRing, graph: &Graph, by: By) -> Result<(), Failure> {
    let mut places = vec![0; graph.nodes.len()];
    let mut popped = 0;
    let mut note = |cqe: &Cqe| {
        popped += 1;
        places[place(cqe.user_data)] = popped;
    };
    match by {
        By::OneByOne => {
            for sqe in graph.sqes(by) {
                push_all(ring, std::slice::from_ref(sqe), &mut note)?;
            }
        }
        _ => push_all(ring, graph.sqes(by), note)?,
    }
    if by == By::Independent {
        return Ok(());
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        for &back in &node.back {
            let before = at - usize::from(back);
            if places[before] > places[at] {
                let text = format!("op {at} of a graph ended before op {before}, its predecessor");
                return Err(Failure::Failed(text));
            }
        }
    }
    Ok(())
}

/// Pushes ops, as many at once as there is room for, and waits without sleep until all are over.
fn push_all(ring: &mut RawRing, sqes: &[Sqe], mut each: impl FnMut(&Cqe)) -> Result<(), Failure> {
    let (mut pushed, mut popped, mut wrong) = (0, 0, None);
    let mut heard_ns = None;
    while popped < sqes.len() {
        if pushed < sqes.len() {
            let more = ring.push_all(sqes[pushed..].iter().copied());
            pushed += more as usize;
            if more > 0 {
                ring.submit();
            }
        }
        let now = ring.pop_all(|cqe| {
            if wrong.is_none() && i64::from(cqe.res) != result(cqe.user_data) {
                wrong = Some(cqe);
            }
            each(&cqe);
        });
        let now = now.map_err(over)?;
        popped += now as usize;
        if now > 0 {
            heard_ns = None;
        } else if is_silent(&mut heard_ns) {
            let text = format!("{} of {} ops did not complete", sqes.len() - popped, sqes.len());
            return Err(Failure::Failed(text));
        }
    }
    match wrong {
        Some(cqe) => {
            let detail = verbring::abi::Detail::from_number(cqe.detail);
            Err(Failure::Failed(format!("an op answered {} ({detail:?})", cqe.res)))
        }
        None => Ok(()),
    }
}

/// Looks at the clock now and then: true if nothing came for long.
pub(super) fn is_silent(since: &mut Option<(u64, u32)>) -> bool {
    std::hint::spin_loop();
    let (from_ns, looks) = since.get_or_insert_with(|| (0, 0));
    *looks += 1;
    if *looks < LOOKS {
        return false;
    }
    *looks = 0;
    let now = now_ns();
    if *from_ns == 0 {
        *from_ns = now;
    }
    u128::from(now - *from_ns) > SILENCE_MAX.as_nanos()
}

/// Ops of the session that waited for predecessors, and that had some, but none that was not over.
fn waits(session: &Session) -> Result<[u64; 2], Failure> {
    let stats = session
        .stats(Scope::Session)
        .map_err(|error| Failure::of("cannot ask for the counters", &error))?;
    Ok([stats[Counter::EdgesLive], stats[Counter::EdgesOver]])
}

/// What an op carries: what it is to answer, and its place in the graph.
fn tag(at: usize, result: u64) -> u64 {
    result << 32 | at as u64
}

fn place(tag: u64) -> usize {
    usize::try_from(tag & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

fn result(tag: u64) -> i64 {
    i64::try_from(tag >> 32).unwrap_or(i64::MAX)
}

/// More ops than these go to places where others of the graph went.
const PLACES_MAX: u64 = 1_024;

/// A chain or fan of 1,024 is pushed whole; more goes as room comes free.
const SQ_ENTRIES: u32 = 2_048;

/// Whoever waits has its slot.
const CQ_ENTRIES: u32 = 32_768;

/// One part in so many of a slice is not counted.
const WARM_PART: u64 = 5;

/// Looks for completions between two readings of the clock.
const LOOKS: u32 = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_says_what_is_to_come_and_of_whom() {
        let tag = tag(65_999, 4_096);
        assert_eq!((place(tag), result(tag)), (65_999, 4_096));
    }

    #[test]
    fn ops_of_a_graph_lie_side_by_side_as_far_as_there_are_places() {
        let bytes = |form, size_bytes| Case { form, size_bytes }.shape().unwrap().memory_bytes();
        assert_eq!(bytes(Form::Chain { length: 16 }, 64), 2 * 16 * 64);
        let nodes = 66_000;
        let form = Form::Random { nodes, edges: 133_000, reach: 64, nops: false };
        assert_eq!(bytes(form, 64), 2 * 1_024 * 64);
    }

    #[test]
    fn silence_is_told_by_the_clock_and_not_by_looks() {
        let mut since = None;
        assert!((0..3 * LOOKS).all(|_| !is_silent(&mut since)));
        let long_ago = now_ns() - 2 * u64::try_from(SILENCE_MAX.as_nanos()).unwrap();
        since = Some((long_ago, LOOKS));
        assert!(is_silent(&mut since));
    }
}
