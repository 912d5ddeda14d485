//! `verbring bench coalesce`: what it gives to do redundant work once, and what it costs where
//! there is none.
//!
//! One client keeps ops in flight of which some repeat others, with and without leave to fold them,
//! in alternating slices. The engine's counters must account for every attempt, or there are no
//! figures; and where there were duplicates, none of them folded is a failure.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::charts::{self, Lines};
use super::coalesce_client::{CoalescePlan, Load, OUTCOMES, Pattern, Refresh, Refreshed};
use super::crew::{Crew, out_of_turn};
use super::quiet::Watch;
use super::round::{Common, Figure, complain_of, float};
use super::statistics::{Ratio, median};
use super::sweep::{Sweep, read_bytes};
use super::talk::{Order, Report};
use crate::cli::Failure;

/// Arguments of `verbring bench coalesce`.
#[derive(Debug, Args)]
pub(super) struct CoalesceArgs {
    /// Of a hundred ops, those that repeat another; a list.
    #[arg(long, default_value = "0,10,50,90")]
    duplicates: Sweep,
    /// Ops pushed at once; a list or a range.
    #[arg(long, default_value = "1,32,256")]
    batch: Sweep,
    /// Places that the others go to, one after the other; a list or a range.
    #[arg(long, default_value = "1..10000*100")]
    keys: Sweep,
    /// Ops in flight at most.
    #[arg(long, default_value_t = 2_048, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    backlog: u32,
    /// Bytes of an op.
    #[arg(long, default_value = "4K", value_parser = read_bytes)]
    size: u64,
    /// Bytes of the sources, and of the destinations, of the round that asks for speed.
    #[arg(long, default_value = "64M", value_parser = read_bytes)]
    memory: u64,
    /// Milliseconds of a slice.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    slice_ms: u32,
    #[command(flatten)]
    common: Common,
}

/// One load's figures: by plain ops, then by such as may be folded.
#[derive(Debug)]
struct Track {
    load: Load,
    ns_per_op: [Figure; 2],
    sums: [Refreshed; 2],
}

/// One contestant's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    bench: &'static str,
    who: &'static str,
    shape: String,
    size_bytes: u64,
    /// Of a hundred; null for a shape that is not drawn.
    duplicates: Option<u32>,
    keys: Option<u32>,
    batch: u32,
    backlog: u32,
    ns_per_op: f64,
    /// Always null: nothing waits for another.
    ns_per_edge: Option<f64>,
    chain_ns: Option<f64>,
    /// How many times faster than the same ops plain.
    ratio: Option<f64>,
    ops: u64,
    transfers: u64,
    fold_hit: u64,
    fold_none: u64,
    fold_disabled: u64,
    fold_edges: u64,
    fold_key: u64,
    fold_started: u64,
    runs: usize,
    /// Of `ns_per_op`, from the 10th to the 90th percentile of the runs, as a part of the median.
    spread: f64,
}

const PLAIN: usize = 0;
const COALESCE: usize = 1;

impl CoalesceArgs {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let cores = self.common.cores()?;
        let loads = self.loads()?;
        let arm = self.common.arm("coalesce", &cores, &settings())?;
        let mut crew = Crew::start(&[arm], 1, |_, sockets| {
            let core = cores.of_client(0);
            let socket = sockets.into_iter().next().unwrap_or_default();
            Order::PrepareRefreshes(CoalescePlan { core, socket, loads: loads.clone() })
        })?;
        let watch = Watch::start(crew.pids(), false)?;
        let measured = loads.iter().enumerate().map(|(at, load)| self.measure(&mut crew, at, load));
        let tracks = measured.collect::<Result<Vec<_>, _>>()?;
        let slices = 2 * tracks.len() * self.common.runs as usize;
        complain_of(&watch.end(slices as u64)?);
        let rows: Vec<Row> = tracks.iter().flat_map(Track::rows).collect();
        self.common.tell(&head(), &rows, Row::line)?;
        for answer in answers(&tracks) {
            self.common.remark(&answer)?;
        }
        self.common.plot.as_deref().map_or(Ok(()), |file| draw(file, &rows))
    }

    /// What is measured: six and one, the rates, the speed, and the cost of a miss.
    fn loads(&self) -> Result<Vec<Load>, Failure> {
        let narrow = |name: &str, value: u64, most: u32| {
            let found = u32::try_from(value).ok().filter(|it| *it <= most);
            let refused =
                || Failure::Usage(format!("{name} is {value}, but must be at most {most}"));
            found.ok_or_else(refused)
        };
        let load = |name: &str, size_bytes, pattern, batch, backlog| Load {
            name: name.to_string(),
            reads: false,
            size_bytes,
            pattern,
            batch,
            backlog,
        };
        let mut loads =
            vec![Load { reads: true, ..load(SIX_AND_ONE, self.size, Pattern::SixAndOne, 7, 7) }];
        // Sizes that cannot be are refused before they are divided by.
        loads[0].shape()?;
        for &keys in &self.keys.0 {
            let keys = narrow("--keys", keys, KEYS_MAX)?;
            for &duplicates in &self.duplicates.0 {
                let duplicates = narrow("--duplicates", duplicates, 100)?;
                for &batch in &self.batch.0 {
                    let batch = narrow("--batch", batch, self.backlog)?;
                    let name = format!("keys_{keys}_duplicates_{duplicates}_batch_{batch}");
                    let pattern = Pattern::Drawn { duplicates, keys };
                    loads.push(load(&name, self.size, pattern, batch, self.backlog));
                }
            }
        }
        let batch = SPEED_BATCH.min(self.backlog);
        let keys = narrow("--memory", self.memory / self.size.max(1), KEYS_MAX)?;
        let half = Pattern::Drawn { duplicates: 50, keys };
        loads.push(load(SPEED, self.size, half, batch, self.backlog));
        let none = Pattern::Drawn { duplicates: 0, keys: MISS_KEYS };
        loads.push(load(MISS, MISS_BYTES, none, batch, self.backlog));
        loads.iter().try_for_each(|load| load.shape().map(|_| ()))?;
        Ok(loads)
    }

    /// All runs of one load, both ways in turn.
    fn measure(&self, crew: &mut Crew, at: usize, load: &Load) -> Result<Track, Failure> {
        let slice_ns = u64::from(self.slice_ms) * 1_000_000;
        let mut track = Track::new(load);
        // Pages and caches settle in a slice that is not counted.
        play(crew, at, PLAIN, slice_ns)?;
        for run in 0..self.common.runs as usize {
            for turn in 0..2 {
                let way = (turn + run) % 2;
                track.add(way, play(crew, at, way, slice_ns)?);
            }
        }
        track.check()?;
        Ok(track)
    }
}

fn play(crew: &mut Crew, load: usize, way: usize, slice_ns: u64) -> Result<Refreshed, Failure> {
    let order = Order::Refresh(Refresh { load, coalesce: way == COALESCE, slice_ns });
    match crew.play(&order)?.pop() {
        Some(Report::Refreshed(refreshed)) => Ok(refreshed),
        Some(other) => Err(out_of_turn(&other)),
        None => Ok(Refreshed::default()),
    }
}

/// Room for what is in flight, which the engine takes in as fast as it can.
fn settings() -> Vec<String> {
    [("records", 65_536), ("quota.ops", 65_536), ("intake_budget", 1_024)]
        .map(|(name, value)| format!("{name}={value}"))
        .to_vec()
}

impl Track {
    fn new(load: &Load) -> Self {
        Self { load: load.clone(), ns_per_op: Default::default(), sums: Default::default() }
    }

    fn add(&mut self, way: usize, one: Refreshed) {
        self.ns_per_op[way].0.push(float(one.elapsed_ns) / float(one.ops.max(1)));
        let sum = &mut self.sums[way];
        sum.elapsed_ns += one.elapsed_ns;
        sum.ops += one.ops;
        sum.coalesced += one.coalesced;
        sum.transfers += one.transfers;
        for (sum, one) in sum.outcomes.iter_mut().zip(one.outcomes) {
            *sum += one;
        }
    }

    /// Duplicates of which none folds are a failure: that would go unseen otherwise.
    fn check(&self) -> Result<(), Failure> {
        let duplicates = match self.load.pattern {
            Pattern::Drawn { duplicates, keys } => duplicates > 0 || keys == 1,
            Pattern::SixAndOne => true,
        };
        let Refreshed { ops, outcomes: [hits, _, disabled, ..], .. } = self.sums[COALESCE];
        // One op in flight has none to fold into.
        if duplicates && self.load.backlog >= BACKLOG_MIN && hits == 0 && disabled == 0 {
            let text = format!("{}: of {ops} ops none was folded", self.load.name);
            return Err(Failure::Failed(text));
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        [PLAIN, COALESCE].map(|way| self.row(way)).to_vec()
    }

    fn row(&self, way: usize) -> Row {
        let (duplicates, keys) = match self.load.pattern {
            Pattern::Drawn { duplicates, keys } => (Some(duplicates), Some(keys)),
            Pattern::SixAndOne => (None, None),
        };
        let Refreshed { ops, transfers, outcomes, .. } = self.sums[way];
        let [fold_hit, fold_none, fold_disabled, fold_edges, fold_key, fold_started] = outcomes;
        Row {
            bench: "coalesce",
            who: if way == COALESCE { "coalesce" } else { "plain" },
            shape: self.load.name.clone(),
            size_bytes: self.load.size_bytes,
            duplicates,
            keys,
            batch: self.load.batch,
            backlog: self.load.backlog,
            ns_per_op: self.ns_per_op[way].median(),
            ns_per_edge: None,
            chain_ns: None,
            ratio: (way == COALESCE).then(|| self.ratio()).flatten(),
            ops,
            transfers,
            fold_hit,
            fold_none,
            fold_disabled,
            fold_edges,
            fold_key,
            fold_started,
            runs: self.ns_per_op[way].0.len(),
            spread: self.ns_per_op[way].spread(),
        }
    }

    /// How many times faster with leave to fold, run by run.
    fn ratio(&self) -> Option<f64> {
        let [plain, coalesce] = &self.ns_per_op;
        Ratio::of_pairs(&plain.0, &coalesce.0).map(|ratio| ratio.middle)
    }

    /// What it takes more with leave to fold, run by run.
    fn more_ns(&self) -> f64 {
        let [plain, coalesce] = &self.ns_per_op;
        let pairs = plain.0.iter().zip(&coalesce.0);
        median(&pairs.map(|(plain, coalesce)| coalesce - plain).collect::<Vec<_>>())
    }
}

/// What was promised, and whether it is so.
fn answers(tracks: &[Track]) -> Vec<String> {
    let named = |name: &str| tracks.iter().find(|track| track.load.name == name);
    let line = |what: &str, found: String, holds: bool| {
        format!("{what}: {found}: {}\n", if holds { "yes" } else { "no" })
    };
    let mut all = Vec::new();
    if let Some(track) = named(SIX_AND_ONE) {
        let Refreshed { ops, transfers, coalesced, .. } = track.sums[COALESCE];
        let rounds = ops / 7;
        all.push(line(
            "six refreshes of one key and one of another are two transfers and seven CQEs",
            format!("{transfers} transfers, {ops} CQEs, {coalesced} of them COALESCED"),
            rounds > 0 && (transfers, coalesced) == (2 * rounds, 5 * rounds),
        ));
    }
    if let Some(track) = named(SPEED) {
        let ratio = track.ratio().unwrap_or(0.0);
        let Refreshed { ops, outcomes: [hits, ..], .. } = track.sums[COALESCE];
        all.push(line(
            &format!("half of them duplicates, at least {RATIO_MIN} times faster"),
            format!("{ratio:.2} times, {:.1} % folded", 100.0 * float(hits) / float(ops.max(1))),
            ratio >= RATIO_MIN,
        ));
    }
    if let Some(track) = named(MISS) {
        let more_ns = track.more_ns();
        all.push(line(
            &format!("a miss, at most {MISS_NS_MAX:.0} ns"),
            format!("{more_ns:.1} ns"),
            more_ns <= MISS_NS_MAX,
        ));
    }
    all
}

fn head() -> String {
    format!(
        "{:<36} {:>7} {:<9} {:>9} {:>6} {:>9} {:>9}{} {:>5} {:>7}\n",
        "shape",
        "#bytes",
        "who",
        "ns/op",
        "ratio",
        "ops",
        "transfers",
        OUTCOMES.map(|counter| format!(" {:>9}", outcome_name(counter))).concat(),
        "runs",
        "spread",
    )
}

/// An outcome's name, without what all of them have in common.
fn outcome_name(counter: verbring::abi::Counter) -> String {
    format!("{counter:?}").trim_start_matches("Fold").to_lowercase()
}

impl Row {
    fn line(&self) -> String {
        let outcomes = [
            self.fold_hit,
            self.fold_none,
            self.fold_disabled,
            self.fold_edges,
            self.fold_key,
            self.fold_started,
        ];
        format!(
            "{:<36} {:>7} {:<9} {:>9.1} {:>6} {:>9} {:>9}{} {:>5} {:>6.1}%\n",
            self.shape,
            self.size_bytes,
            self.who,
            self.ns_per_op,
            self.ratio.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.2}")),
            self.ops,
            self.transfers,
            outcomes.map(|count| format!(" {count:>9}")).concat(),
            self.runs,
            100.0 * self.spread,
        )
    }
}

/// Time an op by the share of duplicates, a chart for each number of keys, at the largest batch.
fn draw(file: &Path, rows: &[Row]) -> Result<(), Failure> {
    let batch = rows.iter().filter(|row| row.keys.is_some()).map(|row| row.batch).max();
    let drawn: Vec<&Row> = rows
        .iter()
        .filter(|row| row.shape.starts_with("keys_") && Some(row.batch) == batch)
        .collect();
    let mut keys: Vec<u32> = drawn.iter().filter_map(|row| row.keys).collect();
    keys.dedup();
    let titles: Vec<String> =
        keys.iter().map(|keys| format!("verbring bench coalesce: {keys} keys")).collect();
    let charts = keys.iter().zip(&titles).map(|(keys, title)| {
        let series = ["plain", "coalesce"].map(|who| {
            let of = drawn.iter().filter(|row| row.keys == Some(*keys) && row.who == who);
            let at = |row: &&Row| (f64::from(row.duplicates.unwrap_or(0)), row.ns_per_op);
            (who.to_string(), of.map(at).collect())
        });
        Lines {
            title,
            parameter: "duplicates of a hundred",
            unit: "ns an op",
            series: series.to_vec(),
        }
    });
    charts::draw_lines(file, &charts.collect::<Vec<_>>())
}

const SIX_AND_ONE: &str = "six_and_one";
const SPEED: &str = "half_duplicates";
const MISS: &str = "miss";

/// As many ops at once as keep a backlog full without showing it.
const SPEED_BATCH: u32 = 64;

/// Small, so that the op itself hides little; more places than ops are in flight.
const MISS_BYTES: u64 = 64;
const MISS_KEYS: u32 = 16_384;

/// With fewer in flight it may be that none of them is still queued.
const BACKLOG_MIN: u32 = 7;

/// Places are numbered in 32 bits, and lie in memory that a bench may have.
const KEYS_MAX: u32 = 1 << 20;

const RATIO_MIN: f64 = 1.4;
const MISS_NS_MAX: f64 = 25.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn track(name: &str, pattern: Pattern, backlog: u32) -> Track {
        Track::new(&Load {
            name: name.to_string(),
            reads: false,
            size_bytes: 64,
            pattern,
            batch: 1,
            backlog,
        })
    }

    fn one(ops: u64, hits: u64, elapsed_ns: u64) -> Refreshed {
        Refreshed {
            elapsed_ns,
            ops,
            coalesced: hits,
            transfers: ops - hits,
            outcomes: [hits, ops - hits, 0, 0, 0, 0],
        }
    }

    #[test]
    fn duplicates_of_which_none_folds_are_a_failure() {
        let held = |duplicates, keys, backlog, hits| {
            let mut track = track("it", Pattern::Drawn { duplicates, keys }, backlog);
            track.add(COALESCE, one(100, hits, 1_000));
            track.check().is_ok()
        };
        assert!(held(50, 100, 1_024, 1) && !held(50, 100, 1_024, 0));
        assert!(held(0, 100, 1_024, 0) && !held(0, 1, 1_024, 0));
        assert!(held(50, 100, 1, 0), "alone in flight");
    }

    #[test]
    fn answers_are_those_of_figures_and_of_nothing_else() {
        assert!(answers(&[]).is_empty());
        let drawn = Pattern::Drawn { duplicates: 0, keys: 9 };
        let holds = |name, pattern, plain, coalesce| {
            let mut track = track(name, pattern, 1_024);
            track.add(PLAIN, plain);
            track.add(COALESCE, coalesce);
            let told = answers(&[track]);
            assert_eq!(told.len(), 1);
            told[0].ends_with(": yes\n")
        };
        assert!(holds(SIX_AND_ONE, Pattern::SixAndOne, one(14, 0, 9), one(14, 10, 9)));
        assert!(!holds(SIX_AND_ONE, Pattern::SixAndOne, one(14, 0, 9), one(14, 9, 9)));
        assert!(holds(SPEED, drawn, one(100, 0, 14_000), one(100, 50, 10_000)));
        assert!(!holds(SPEED, drawn, one(100, 0, 13_900), one(100, 50, 10_000)));
        assert!(holds(MISS, drawn, one(100, 0, 10_000), one(100, 0, 12_500)));
        assert!(!holds(MISS, drawn, one(100, 0, 10_000), one(100, 0, 12_600)));
    }

    #[test]
    fn runs_add_up_and_are_told_by_their_middle() {
        let mut track = track("it", Pattern::SixAndOne, 7);
        for ns in [100, 900, 200] {
            track.add(PLAIN, one(10, 0, 2 * ns));
            track.add(COALESCE, one(10, 5, ns));
        }
        let [plain, coalesce] = [PLAIN, COALESCE].map(|way| track.row(way));
        assert_eq!((plain.ns_per_op, plain.ratio, plain.runs), (40.0, None, 3));
        assert_eq!((coalesce.ns_per_op, coalesce.ratio), (20.0, Some(2.0)));
        assert_eq!((coalesce.ops, coalesce.transfers, coalesce.fold_hit), (30, 15, 15));
        assert!(coalesce.line().contains(" 2.00 "), "{}", coalesce.line());
    }
}
