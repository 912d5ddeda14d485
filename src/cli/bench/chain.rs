//! `verbring bench chain`: what it costs to have ops wait for others, and what a chain takes that
//! is wired when it is submitted.
//!
//! Chains, diamonds, fans and random graphs of WRITEs go through one ring: wired, so that what
//! waits for one op may go behind it at once; by edges for their order only, which are settled in
//! the engine; as the same ops without any; and, if a chain, one after the other, each pushed when
//! the client has seen the one before complete. They take turns in slices, so that all of them see
//! the machine in the same moods; what an edge costs is the difference of neighbours, divided by
//! the edges.

use std::path::Path;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::chain_client::{By, Case, ChainPlan, Weave, Woven};
use super::charts::{self, Lines};
use super::crew::{Crew, out_of_turn};
use super::graph::{self, Form};
use super::quiet::Watch;
use super::round::{Common, Figure, complain_of, float};
use super::statistics::{median, spread};
use super::sweep::Sweep;
use super::talk::{Order, Report};
use crate::cli::Failure;

/// Graphs besides chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// 256 of four WRITEs, side by side.
    Diamonds,
    /// 1,024 WRITEs behind one.
    FanOut,
    /// 1,024 WRITEs, and JOINs of JOINs behind them.
    FanIn,
    /// A random graph of WRITEs.
    Random,
    /// A random graph of NOPs, with a WRITE among 64 so that there is something to wait for.
    RandomNops,
    /// None: chains alone.
    None,
}

/// Arguments of `verbring bench chain`.
#[derive(Debug, Args)]
pub(super) struct ChainArgs {
    /// WRITEs of a chain: a number, a list, a range.
    #[arg(long, default_value = "1..1024*4")]
    lengths: Sweep,
    /// Bytes of a WRITE of a chain.
    #[arg(long, default_value = "64,4K", visible_alias = "bytes")]
    size: Sweep,
    /// Graphs besides chains, of WRITEs of 64 bytes.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "diamonds,fan-out,fan-in,random,random-nops"
    )]
    graphs: Vec<Pattern>,
    /// Nodes of a random graph.
    #[arg(long, default_value_t = 66_000, value_parser = nodes_range())]
    nodes: u32,
    /// Edges of a random graph: one or two for each node, ten for each JOIN.
    #[arg(long, default_value_t = 133_000)]
    edges: u32,
    /// How far back a predecessor lies at most in a random graph.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(10..=32_767))]
    reach: u32,
    /// Milliseconds of a slice, of which the first fifth is not counted; one graph at least is.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slice_ms: u32,
    #[command(flatten)]
    common: Common,
}

/// One contestant's figures over one graph.
#[derive(Debug)]
struct Track {
    case: Case,
    ops: u64,
    edges: u64,
    by: By,
    graph_ns: Figure,
    waited: u64,
    waited_for_none: u64,
}

/// One contestant's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    bench: &'static str,
    who: &'static str,
    shape: String,
    size_bytes: u64,
    ops: u64,
    edges: u64,
    ns_per_op: f64,
    /// What an edge costs over the same ops without; null without edges.
    ns_per_edge: Option<f64>,
    /// From the first push to the last completion.
    chain_ns: f64,
    /// Of ops with predecessors, those for which one was not over when they were taken.
    waited: Option<f64>,
    runs: usize,
    /// Of `chain_ns`, from the 10th to the 90th percentile of the runs, as a part of the median.
    spread: f64,
}

impl ChainArgs {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let cores = self.common.cores()?;
        let cases = self.cases()?;
        let arm = self.common.arm("chain", &cores, &settings())?;
        let mut crew = Crew::start(&[arm], 1, |_, sockets| {
            let core = cores.of_client(0);
            let socket = sockets.into_iter().next().unwrap_or_default();
            Order::PrepareChains(ChainPlan { core, socket, cases: cases.clone() })
        })?;
        let watch = Watch::start(crew.pids(), false)?;
        let (mut tracks, mut slices) = (Vec::new(), 0);
        for (at, case) in cases.iter().enumerate() {
            let measured = self.measure(&mut crew, at, case)?;
            slices += measured.len() * self.common.runs as usize;
            tracks.extend(measured);
        }
        complain_of(&watch.end(slices as u64)?);
        let rows: Vec<Row> = tracks.iter().map(|track| track.row(&tracks)).collect();
        self.common.tell(&head(), &rows, Row::line)?;
        for answer in answers(&tracks) {
            self.common.remark(&answer.line())?;
        }
        self.common.plot.as_deref().map_or(Ok(()), |file| draw(file, &rows))
    }

    fn cases(&self) -> Result<Vec<Case>, Failure> {
        let refuse = |text: String| Err(Failure::Usage(text));
        let (nodes, edges) = (self.nodes, self.edges);
        let [least, most] = graph::random_edges(nodes);
        if !(least..=most).contains(&edges) {
            return refuse(format!("--edges is {edges}, but must be {least} to {most}"));
        }
        let mut cases = Vec::new();
        for &size_bytes in &self.size.0 {
            for &length in &self.lengths.0 {
                let Some(length) = u32::try_from(length).ok().filter(|it| in_chain(*it)) else {
                    let limit = format!("1 to {LENGTH_MAX}");
                    return refuse(format!("--lengths is {length}, but must be {limit}"));
                };
                cases.push(Case { form: Form::Chain { length }, size_bytes });
            }
        }
        let random = |nops| Form::Random { nodes, edges, reach: self.reach, nops };
        for pattern in &self.graphs {
            let form = match pattern {
                Pattern::Diamonds => Form::Diamonds { count: 256 },
                Pattern::FanOut => Form::FanOut { width: 1_024 },
                Pattern::FanIn => Form::FanIn { width: 1_024 },
                Pattern::Random => random(false),
                Pattern::RandomNops => random(true),
                Pattern::None => continue,
            };
            let case = Case { form, size_bytes: GRAPH_BYTES };
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases.iter().try_for_each(|case| case.shape().map(|_| ()))?;
        Ok(cases)
    }

    /// All runs of one graph, by each contestant in turn.
    fn measure(&self, crew: &mut Crew, at: usize, case: &Case) -> Result<Vec<Track>, Failure> {
        let chain = matches!(case.form, Form::Chain { .. });
        let all = [By::Wired, By::Edge, By::Independent, By::OneByOne];
        let runs_it = |by: &&By| chain || **by != By::OneByOne;
        let nodes = case.form.nodes();
        let track = |by: &By| Track {
            case: *case,
            ops: nodes.len() as u64,
            edges: graph::edges(&nodes),
            by: *by,
            graph_ns: Figure::default(),
            waited: 0,
            waited_for_none: 0,
        };
        let mut tracks: Vec<Track> = all.iter().filter(runs_it).map(track).collect();
        let slice_ns = u64::from(self.slice_ms) * 1_000_000;
        for run in 0..self.common.runs as usize {
            for turn in 0..tracks.len() {
                let at_track = (turn + run) % tracks.len();
                let by = tracks[at_track].by;
                let reports = crew.play(&Order::Weave(Weave { case: at, by, slice_ns }))?;
                for report in reports {
                    let Report::Woven(woven) = report else { return Err(out_of_turn(&report)) };
                    tracks[at_track].add(woven);
                }
            }
        }
        Ok(tracks)
    }
}

/// Room for whole graphs, which the engine takes in as fast as it can.
fn settings() -> Vec<String> {
    [("records", 65_536), ("quota.ops", 65_536), ("intake_budget", 1_024)]
        .map(|(name, value)| format!("{name}={value}"))
        .to_vec()
}

fn nodes_range() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(33..=i64::from(LENGTH_MAX))
}

fn in_chain(length: u32) -> bool {
    (1..=LENGTH_MAX).contains(&length)
}

impl Track {
    fn add(&mut self, woven: Woven) {
        self.graph_ns.0.push(float(woven.graph_ns));
        self.waited += woven.waited;
        self.waited_for_none += woven.waited_for_none;
    }

    fn is(&self, by: By, form: Form, size_bytes: u64) -> bool {
        self.by == by && self.case == Case { form, size_bytes }
    }

    /// What its edges cost over the same ops without: the median of the runs' differences.
    fn ns_per_edge(&self, all: &[Self]) -> Option<f64> {
        if self.edges == 0 || self.by == By::Independent {
            return None;
        }
        let Case { form, size_bytes } = self.case;
        let plain = all.iter().find(|it| it.is(By::Independent, form, size_bytes))?;
        let pairs = self.graph_ns.0.iter().zip(&plain.graph_ns.0);
        let more: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
        Some(median(&more) / float(self.edges))
    }

    fn row(&self, all: &[Self]) -> Row {
        let had_edges = self.waited + self.waited_for_none;
        Row {
            bench: "chain",
            who: self.by.name(),
            shape: self.case.form.name(),
            size_bytes: self.case.size_bytes,
            ops: self.ops,
            edges: self.edges,
            ns_per_op: self.graph_ns.median() / float(self.ops),
            ns_per_edge: self.ns_per_edge(all),
            chain_ns: self.graph_ns.median(),
            waited: (had_edges > 0).then(|| float(self.waited) / float(had_edges)),
            runs: self.graph_ns.0.len(),
            spread: spread(&self.graph_ns.0),
        }
    }
}

/// What was promised, and whether it is so.
#[derive(Debug)]
struct Answer {
    what: String,
    found: String,
    holds: bool,
}

impl Answer {
    fn line(&self) -> String {
        let Self { what, found, holds } = self;
        format!("{what}: {found}: {}\n", if *holds { "yes" } else { "no" })
    }
}

/// The answers for which there are figures.
fn answers(all: &[Track]) -> Vec<Answer> {
    [edge_is_cheap(all), chain_is_nearly_free(all), chain_beats_the_client(all)]
        .into_iter()
        .flatten()
        .collect()
}

/// Over graphs, by edges that the engine settles: in a chain an edge also costs the wait that it is
/// there for.
fn edge_is_cheap(all: &[Track]) -> Option<Answer> {
    let graphs =
        all.iter().filter(|it| it.by == By::Edge && !matches!(it.case.form, Form::Chain { .. }));
    let costs: Vec<(String, f64)> =
        graphs.filter_map(|it| Some((it.case.form.name(), it.ns_per_edge(all)?))).collect();
    if costs.is_empty() {
        return None;
    }
    let told: Vec<String> = costs.iter().map(|(name, ns)| format!("{name} {ns:.1}")).collect();
    Some(Answer {
        what: format!("wiring and release, at most {EDGE_NS_MAX:.0} ns an edge"),
        found: told.join(", "),
        holds: costs.iter().all(|(_, ns)| *ns <= EDGE_NS_MAX),
    })
}

/// The time of a contestant over a chain of small WRITEs.
fn chain_ns(all: &[Track], by: By, length: u32) -> Option<f64> {
    let found = all.iter().find(|it| it.is(by, Form::Chain { length }, ANSWER_BYTES));
    found.map(|it| it.graph_ns.median())
}

fn chain_is_nearly_free(all: &[Track]) -> Option<Answer> {
    let chain = chain_ns(all, By::Wired, ANSWER_LENGTH)?;
    let one = chain_ns(all, By::Independent, 1)?;
    let more = f64::from(ANSWER_LENGTH - 1);
    let one_more = (chain_ns(all, By::Independent, ANSWER_LENGTH)? - one) / more;
    let most = one + more * one_more * ONE_MORE_MAX;
    Some(Answer {
        what: format!(
            "a chain of {ANSWER_LENGTH} WRITEs of {ANSWER_BYTES} B, at most one WRITE and {more} \
             times {ONE_MORE_MAX} of one more"
        ),
        found: format!(
            "{chain:.0} ns of {most:.0} (one {one:.0}, one more {one_more:.0}, a link of the chain \
             {:.0})",
            (chain - one) / more
        ),
        holds: chain <= most,
    })
}

fn chain_beats_the_client(all: &[Track]) -> Option<Answer> {
    let chain = chain_ns(all, By::Wired, ANSWER_LENGTH)?;
    let client = chain_ns(all, By::OneByOne, ANSWER_LENGTH)?;
    Some(Answer {
        what: format!(
            "a chain of {ANSWER_LENGTH} WRITEs of {ANSWER_BYTES} B, at least {FASTER_MIN} times \
             faster than one by one"
        ),
        found: format!("{chain:.0} ns by {client:.0}, {:.1} times", client / chain),
        holds: client >= FASTER_MIN * chain,
    })
}

fn head() -> String {
    format!(
        "{:<18} {:>7} {:<12} {:>7} {:>7} {:>9} {:>11} {:>13} {:>7} {:>5} {:>7}\n",
        "shape",
        "#bytes",
        "who",
        "ops",
        "edges",
        "ns/op",
        "ns/edge",
        "chain[ns]",
        "waited",
        "runs",
        "spread",
    )
}

impl Row {
    fn line(&self) -> String {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_string());
        format!(
            "{:<18} {:>7} {:<12} {:>7} {:>7} {:>9.1} {:>11} {:>13.0} {:>7} {:>5} {:>6.1}%\n",
            self.shape,
            self.size_bytes,
            self.who,
            self.ops,
            self.edges,
            self.ns_per_op,
            or_none(self.ns_per_edge.map(|ns| format!("{ns:.1}"))),
            self.chain_ns,
            or_none(self.waited.map(|share| format!("{:.0}%", 100.0 * share))),
            self.runs,
            100.0 * self.spread,
        )
    }
}

/// Time an op over the length of the chain, a chart for each size.
fn draw(file: &Path, rows: &[Row]) -> Result<(), Failure> {
    let chains: Vec<&Row> = rows.iter().filter(|row| row.shape.starts_with("chain_")).collect();
    let mut sizes: Vec<u64> = chains.iter().map(|row| row.size_bytes).collect();
    sizes.dedup();
    let titles: Vec<String> =
        sizes.iter().map(|size| format!("verbring bench chain: WRITEs of {size} B")).collect();
    let lines = sizes.iter().zip(&titles).map(|(size, title)| {
        let of = |by: By| {
            let rows = chains.iter().filter(|row| row.size_bytes == *size && row.who == by.name());
            (by.name().to_string(), rows.map(|row| (float(row.ops), row.ns_per_op)).collect())
        };
        let series = [By::Wired, By::Edge, By::Independent, By::OneByOne].map(of).to_vec();
        Lines { title, parameter: "ops of a chain", unit: "ns an op", series }
    });
    charts::draw_lines(file, &lines.collect::<Vec<_>>())
}

/// Bytes of the WRITEs of graphs that are no chains: what counts there is the edge.
const GRAPH_BYTES: u64 = 64;

/// Longer ones say what a random graph says.
const LENGTH_MAX: u32 = 1_000_000;

/// What the answers are asked of.
const ANSWER_LENGTH: u32 = 16;
const ANSWER_BYTES: u64 = 64;
const EDGE_NS_MAX: f64 = 30.0;
const ONE_MORE_MAX: f64 = 1.5;
const FASTER_MIN: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn track(form: Form, by: By, graph_ns: &[f64]) -> Track {
        let nodes = form.nodes();
        Track {
            case: Case { form, size_bytes: 64 },
            ops: nodes.len() as u64,
            edges: graph::edges(&nodes),
            by,
            graph_ns: Figure(graph_ns.to_vec()),
            waited: 3,
            waited_for_none: 1,
        }
    }

    /// What both have in common, in the same run, is no cost of an edge.
    #[test]
    fn an_edge_costs_what_neighbours_differ_by() {
        let fan = Form::FanOut { width: 100 };
        let with = track(fan, By::Edge, &[2_000.0, 9_000.0, 4_000.0]);
        let without = track(fan, By::Independent, &[1_000.0, 8_000.0, 3_000.0]);
        let all = [with, without];
        assert_eq!(all[0].ns_per_edge(&all), Some(10.0));
        assert_eq!(all[1].ns_per_edge(&all), None);
        let row = all[0].row(&all);
        assert_eq!((row.edges, row.ops, row.waited), (100, 101, Some(0.75)));
        assert_eq!(row.chain_ns, 4_000.0);
    }

    #[test]
    fn answers_are_those_of_figures_and_of_nothing_else() {
        assert!(answers(&[]).is_empty());
        let chain = |length, by, ns| track(Form::Chain { length }, by, &[ns]);
        let all = |edge| {
            [
                chain(1, By::Independent, 500.0),
                chain(16, By::Wired, edge),
                chain(16, By::Independent, 2_000.0),
                chain(16, By::OneByOne, 8_000.0),
            ]
        };
        // One WRITE and 15 times 1.5 of 100 is 2,750; a fifth of 8,000 is 1,600.
        let held = |edge| answers(&all(edge)).iter().map(|it| it.holds).collect::<Vec<_>>();
        assert_eq!(held(2_750.0), [true, false]);
        assert_eq!(held(2_751.0), [false, false]);
        assert_eq!(held(1_600.0), [true, true]);
        let fan = Form::FanOut { width: 100 };
        let of = |edge| [track(fan, By::Edge, &[edge]), track(fan, By::Independent, &[1_000.0])];
        assert!(answers(&of(4_000.0))[0].holds && !answers(&of(4_001.0))[0].holds);
        let line = answers(&of(4_000.0))[0].line();
        assert!(line.ends_with("fan_out_100 30.0: yes\n"), "{line}");
    }
}
