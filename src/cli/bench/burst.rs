//! `verbring bench burst`: clients that submit a burst of low ops and then of high ones, and look
//! for completions only afterwards; how long high waits, by mode.
//!
//! This is the workload by which Mooncake's TENT shows its queue (pull request 2655): 4 threads,
//! each 512 batches of 16 WRITEs of 4 KiB, half of them low and then half of them high, through a
//! window of 64 ops and 1 GiB. One run is one burst of all clients through one engine; the modes
//! take turns, each run beginning with another one.
//!
//! A queueing model (`model.rs`) stands beside what is measured: at the submit rate and the
//! service rate that were seen, no order of these ops can be better by much.

use std::path::Path;

use clap::Args;
use serde::Serialize;
use verbring::sched::Mode;

use super::burst_client::{BurstDone, BurstPlan};
use super::charts::{self, Bars};
use super::cores::Cores;
use super::crew::{Arm, Crew, out_of_turn};
use super::engine_process::settings_for;
use super::model;
use super::quiet::Watch;
use super::round::{Common, Figure, HEAD_START, complain_of, float, merged, read_mode};
use super::slice::now_ns;
use super::statistics::Ratio;
use super::sweep::read_bytes;
use super::talk::{Order, Report};
use crate::cli::Failure;

/// Arguments of `verbring bench burst`.
#[derive(Debug, Args)]
pub(super) struct BurstArgs {
    /// Modes to compare.
    #[arg(long, value_delimiter = ',', value_parser = read_mode,
          default_value = "weighted,strict,fifo,tent,direct")]
    modes: Vec<Mode>,
    /// Client processes, a ring each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    clients: u32,
    /// Batches of a burst: half of them low, then half of them high.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=4_096))]
    batches: u32,
    /// Ops of a batch.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    batch: u32,
    /// Bytes of an op.
    #[arg(long, default_value = "4K", value_parser = read_bytes)]
    size: u64,
    /// Bytes of sources and destinations of a client: by default it is memory that is copied.
    #[arg(long, default_value = "32M", value_name = "BYTES", value_parser = read_bytes)]
    working_set: u64,
    #[command(flatten)]
    common: Common,
}

/// One mode's figures.
#[derive(Debug, Default)]
struct Track {
    ops_per_s: Figure,
    submit_per_s: Figure,
    /// Of high, then of low.
    avg_ns: [Figure; 2],
    p99_ns: [Figure; 2],
}

/// One mode's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    mode: String,
    ops_per_s: f64,
    high_avg_ns: u64,
    high_p99_ns: u64,
    low_avg_ns: u64,
    low_p99_ns: u64,
    runs: usize,
    /// The largest of the five figures' spreads, each from the 10th to the 90th percentile of the
    /// runs as a part of the median.
    spread: f64,
}

impl BurstArgs {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let cores = self.common.cores()?;
        let plan = self.plan(&cores)?;
        let arms = self.common.arms(&self.modes, &cores, &self.settings(&plan))?;
        let tracks = self.measure(&plan, &cores, &arms)?;
        let rows: Vec<Row> =
            arms.iter().zip(&tracks).map(|(arm, track)| track.row(&arm.name)).collect();
        let direct = arms.iter().position(|arm| arm.name == Mode::Direct.name());
        let direct = direct.map(|at| &tracks[at]);
        let of = |row: &Row| arms.iter().position(|arm| arm.name == row.mode).unwrap_or(0);
        self.common.tell(&head(), &rows, |row| row.line(&tracks[of(row)], direct))?;
        if let Some(direct) = direct {
            let ops = plan.ops() as usize * self.clients as usize;
            self.common.remark(&modelled(&arms, &tracks, direct, ops)?)?;
        }
        self.common.plot.as_deref().map_or(Ok(()), |file| draw(file, &rows))
    }

    fn plan(&self, cores: &Cores) -> Result<BurstPlan, Failure> {
        let plan = BurstPlan {
            core: 0,
            crowded: self.clients as usize > cores.clients.len() || cores.is_one(),
            sockets: Vec::new(),
            batches: self.batches,
            batch: self.batch,
            op_bytes: self.size,
            working_set_bytes: self.working_set.max(2 * self.size),
        };
        let ops = u64::from(self.batches) * u64::from(self.batch);
        if !self.batches.is_multiple_of(2) {
            let text = format!("--batches is {}, but must be even", self.batches);
            return Err(Failure::Usage(text));
        }
        if ops > OPS_MAX {
            let text = format!("--batches times --batch is {ops}, but must be at most {OPS_MAX}");
            return Err(Failure::Usage(text));
        }
        plan.shape(verbring::abi::Class::Low)?;
        Ok(plan)
    }

    /// Room for whole bursts, which the engine takes in as fast as it can; the window is TENT's.
    fn settings(&self, plan: &BurstPlan) -> Vec<String> {
        let ops = plan.ops().next_power_of_two();
        let all = ops * self.clients.next_power_of_two();
        [
            ("records", u64::from(2 * all)),
            ("quota.ops", u64::from(2 * all)),
            ("sessions_max", 16),
            ("recorder_entries", u64::from(2 * ops.max(16))),
            ("window_ops", 64),
            ("window_bytes", 1 << 30),
            ("intake_budget", 1_024),
        ]
        .map(|(name, value)| format!("{name}={value}"))
        .to_vec()
    }

    fn measure(
        &self,
        plan: &BurstPlan,
        cores: &Cores,
        arms: &[Arm],
    ) -> Result<Vec<Track>, Failure> {
        let mut crew = Crew::start(arms, self.clients as usize, |index, sockets| {
            Order::PrepareBursts(BurstPlan {
                core: cores.of_client(index),
                sockets,
                ..plan.clone()
            })
        })?;
        let pids = crew.pids();
        let mut number = 0;
        let mut burst = |engine| {
            number += 1;
            let head_start_ns = u64::try_from(HEAD_START.as_nanos()).unwrap_or(0);
            let start_ns = now_ns() + head_start_ns;
            let reports = crew.play(&Order::Burst { engine, number, start_ns })?;
            let done = reports.into_iter().map(|report| match report {
                Report::Burst(done) => Ok(done),
                other => Err(out_of_turn(&other)),
            });
            done.collect::<Result<Vec<_>, _>>()
        };
        // Pages, caches and clocks settle in a run that is not counted.
        for engine in 0..arms.len() {
            burst(engine)?;
        }
        let watch = Watch::start(pids, true)?;
        let mut tracks: Vec<Track> = arms.iter().map(|_| Track::default()).collect();
        let runs = self.common.runs as usize;
        for run in 0..runs {
            for turn in 0..arms.len() {
                let engine = (turn + run) % arms.len();
                tracks[engine].add(&burst(engine)?);
            }
        }
        complain_of(&watch.end((runs * arms.len()) as u64)?);
        Ok(tracks)
    }
}

impl Track {
    /// Adds a run, of all clients.
    fn add(&mut self, all: &[BurstDone]) {
        let first_ns = all.iter().map(|it| it.first_submit_ns).min().unwrap_or(0);
        let submitted_ns = all.iter().map(|it| it.last_submit_ns).max().unwrap_or(0);
        let ended_ns = all.iter().map(|it| it.last_end_ns).max().unwrap_or(0);
        let mut ops = 0;
        for class in 0..2 {
            let latencies = || all.iter().map(|it| &it.latencies[class]);
            let merged = merged(latencies().map(|it| it.values.as_slice()));
            let sum_ns: u64 = latencies().map(|it| it.sum_ns).sum();
            ops += merged.len();
            self.avg_ns[class].0.push(float(sum_ns) / float(merged.len().max(1)));
            self.p99_ns[class].0.push(float(merged.value_at_quantile(0.99)));
        }
        let rate =
            |until_ns: u64| float(ops) * 1e9 / float(until_ns.saturating_sub(first_ns).max(1));
        self.ops_per_s.0.push(rate(ended_ns));
        self.submit_per_s.0.push(rate(submitted_ns));
    }

    fn figures(&self) -> [&Figure; 5] {
        let [high_avg, low_avg] = &self.avg_ns;
        let [high_p99, low_p99] = &self.p99_ns;
        [&self.ops_per_s, high_avg, high_p99, low_avg, low_p99]
    }

    fn row(&self, mode: &str) -> Row {
        let [ops, high_avg, high_p99, low_avg, low_p99] = self.figures();
        Row {
            mode: mode.to_string(),
            ops_per_s: ops.median(),
            high_avg_ns: high_avg.median_ns(),
            high_p99_ns: high_p99.median_ns(),
            low_avg_ns: low_avg.median_ns(),
            low_p99_ns: low_p99.median_ns(),
            runs: ops.0.len(),
            spread: self.figures().map(Figure::spread).into_iter().fold(0.0, f64::max),
        }
    }

    /// By how much its figures are off another's, run by run.
    fn changes(&self, other: &Self) -> [f64; 5] {
        let (ours, theirs) = (self.figures(), other.figures());
        std::array::from_fn(|at| {
            Ratio::of_pairs(&ours[at].0, &theirs[at].0).map_or(0.0, |ratio| ratio.middle - 1.0)
        })
    }
}

fn head() -> String {
    format!(
        "{:<9} {:>11} {:>8} {:>13} {:>8} {:>13} {:>8} {:>12} {:>8} {:>12} {:>8} {:>5} {:>7}\n",
        "mode",
        "ops/s",
        "direct",
        "high avg[us]",
        "direct",
        "high p99[us]",
        "direct",
        "low avg[us]",
        "direct",
        "low p99[us]",
        "direct",
        "runs",
        "spread",
    )
}

impl Row {
    /// One line for people: each figure, and its change against mode direct.
    fn line(&self, track: &Track, direct: Option<&Track>) -> String {
        let changes = direct.map(|direct| track.changes(direct));
        let change = |at: usize| {
            changes.map_or_else(|| "-".to_string(), |all| format!("{:+.1}%", 100.0 * all[at]))
        };
        let us = |ns: u64| format!("{:.1}", float(ns) / 1e3);
        format!(
            "{:<9} {:>11.0} {:>8} {:>13} {:>8} {:>13} {:>8} {:>12} {:>8} {:>12} {:>8} {:>5} \
             {:>6.1}%\n",
            self.mode,
            self.ops_per_s,
            change(0),
            us(self.high_avg_ns),
            change(1),
            us(self.high_p99_ns),
            change(2),
            us(self.low_avg_ns),
            change(3),
            us(self.low_p99_ns),
            change(4),
            self.runs,
            100.0 * self.spread,
        )
    }
}

/// What a queue could reach at the rates that were seen, beside what was.
fn modelled(arms: &[Arm], tracks: &[Track], direct: &Track, ops: usize) -> Result<String, Failure> {
    let serve_per_s = direct.ops_per_s.median();
    let mut text = String::new();
    for (arm, track) in arms.iter().zip(tracks) {
        let settings = settings_for(&arm.settings)?;
        let config = settings.config();
        let order = match config.mode {
            Mode::Strict => model::Order::Strict,
            Mode::Weighted => {
                let [high, _, low] = config.class_weights;
                model::Order::Weighted(high.into(), low.into())
            }
            _ => continue,
        };
        let burst = |track: &Track| model::Burst {
            ops,
            submit_per_s: track.submit_per_s.median(),
            serve_per_s,
            window_ops: config.window_ops as usize,
        };
        let base = model::run(&burst(direct), model::Order::Direct);
        let (avg, p99) = model::run(&burst(track), order).cut(&base);
        let [_, high_avg, high_p99, ..] = track.changes(direct);
        text += &format!(
            "{}: submitted at {:.2} M/s, served at {:.2} M/s; a queue could change high's average \
             by {:+.1} %, p99 by {:+.1} %; seen {:+.1} % and {:+.1} %\n",
            arm.name,
            track.submit_per_s.median() / 1e6,
            serve_per_s / 1e6,
            -100.0 * avg,
            -100.0 * p99,
            100.0 * high_avg,
            100.0 * high_p99,
        );
    }
    Ok(text)
}

fn draw(file: &Path, rows: &[Row]) -> Result<(), Failure> {
    let ms = |ns: u64| float(ns) / 1e6;
    let bars = Bars {
        title: "verbring bench burst: latency by class, medians of runs",
        unit: "ms",
        series: &["high avg", "high p99", "low avg", "low p99"],
        groups: rows
            .iter()
            .map(|row| {
                let all = [row.high_avg_ns, row.high_p99_ns, row.low_avg_ns, row.low_p99_ns];
                (row.mode.clone(), all.map(ms).to_vec())
            })
            .collect(),
    };
    charts::draw_bars(file, &bars)
}

/// A ring has no more SQ slots, and half of its CQ slots.
const OPS_MAX: u64 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::burst_client::Latencies;

    fn done(first: u64, last: u64, end: u64, high: &[u64], low: &[u64]) -> BurstDone {
        let latencies = |all: &[u64]| Latencies {
            sum_ns: all.iter().sum(),
            values: all.iter().map(|value| (*value, 1)).collect(),
        };
        BurstDone {
            first_submit_ns: first,
            last_submit_ns: last,
            last_end_ns: end,
            latencies: [latencies(high), latencies(low)],
        }
    }

    /// From the first client's first submit to the last one's last end, and all ops between.
    #[test]
    fn a_run_is_that_of_all_clients_together() {
        let mut track = Track::default();
        let one = done(1_000, 2_000, 9_000, &[100, 300], &[1_000, 1_000]);
        let other = done(2_000, 3_000, 11_000, &[200, 400], &[1_000, 3_000]);
        track.add(&[one, other]);
        let row = track.row("fifo");
        assert_eq!(row.ops_per_s, 8.0 * 1e9 / 10_000.0);
        assert_eq!(track.submit_per_s.median(), 8.0 * 1e9 / 2_000.0);
        assert_eq!((row.high_avg_ns, row.high_p99_ns), (250, 400));
        assert_eq!((row.low_avg_ns, row.runs), (1_500, 1));
        assert!((2_990..=3_010).contains(&row.low_p99_ns), "{row:?}");
    }

    #[test]
    fn changes_are_against_the_neighbour_and_the_largest_spread_is_told() {
        let (mut ours, mut direct) = (Track::default(), Track::default());
        for noise in [1, 10, 3] {
            let high = noise * 1_000;
            ours.add(&[done(0, 1, 1_000, &[high], &[high])]);
            direct.add(&[done(0, 1, 1_000, &[2 * high], &[high])]);
        }
        let [ops, high_avg, high_p99, low_avg, _] = ours.changes(&direct);
        assert_eq!((ops, high_avg, low_avg), (0.0, -0.5, 0.0));
        assert!((high_p99 + 0.5).abs() < 0.01, "{high_p99}");
        let row = ours.row("strict");
        assert!(row.spread > 1.0, "of the averages, not of the rates, which are all alike");
        let line = row.line(&ours, Some(&direct));
        assert!(line.contains("-50.0%") && line.contains("+0.0%"), "{line}");
        assert!(row.line(&ours, None).contains(" - "), "nothing to compare with");
    }
}
