//! `verbring bench mix`: high ops that come at random beside low ops that saturate the engine.
//!
//! How long a high op takes, from when it was due, at some parts of the rate that the engine could
//! carry if there were nothing else; with and without low beside it; and what is left to low. The
//! engines of all modes take turns, and so do their loads.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use verbring::abi::Class;
use verbring::sched::Mode;

use super::charts::{self, Bars};
use super::crew::Arm;
use super::quiet::Watch;
use super::round::{Common, Figure, complain_of, float, merged, read_mode};
use super::statistics::{Ratio, median};
use super::streams::{Pace, Part, Played, Stage};
use super::sweep::read_bytes;
use crate::cli::Failure;

/// Arguments of `verbring bench mix`.
#[derive(Debug, Args)]
pub(super) struct MixArgs {
    /// Modes to compare.
    #[arg(long, value_delimiter = ',', value_parser = read_mode,
          default_value = "weighted,strict,fifo,direct")]
    modes: Vec<Mode>,
    /// Loads of high: per cent of the rate of such ops that the first engine carries alone.
    #[arg(long, value_delimiter = ',', default_value = "5,25,50",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    loads: Vec<u32>,
    /// Bytes of a high op.
    #[arg(long, default_value = "4K", value_parser = read_bytes)]
    high_size: u64,
    /// Bytes of a low op.
    #[arg(long, default_value = "1M", value_parser = read_bytes)]
    low_size: u64,
    /// Low ops in flight: as many are always there.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    low_depth: u32,
    /// Milliseconds of one play, of which the first fifth is not counted.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(5..=60_000))]
    slice_ms: u32,
    #[command(flatten)]
    common: Common,
}

/// A mode at a load.
#[derive(Debug, Default)]
struct Track {
    offered_per_s: f64,
    /// At 50 %, 99 % and 99.9 %: beside low, and without it.
    mixed_ns: [Figure; 3],
    unloaded_ns: [Figure; 3],
    high_per_s: Figure,
    low_bytes_per_s: Figure,
    low_share: Figure,
    low_of_alone: Figure,
}

/// A mode's row at a load.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    mode: String,
    /// Part of the rate that the engine carries alone.
    load: f64,
    offered_per_s: f64,
    high_per_s: f64,
    high_p50_ns: u64,
    high_p99_ns: u64,
    high_p999_ns: u64,
    /// The same ops at the same rate, without low.
    unloaded_p50_ns: u64,
    unloaded_p99_ns: u64,
    unloaded_p999_ns: u64,
    /// p99 beside low by p99 without, run by run.
    p99_ratio: Option<f64>,
    low_bytes_per_s: f64,
    /// Low's part of all bytes.
    low_share: f64,
    /// Low's rate by that of low alone.
    low_of_alone: f64,
    runs: usize,
    /// Of high's p99 beside low: from the 10th to the 90th percentile of the runs, as a part of
    /// the median.
    spread: f64,
}

const HIGH: usize = 0;
const LOW: usize = 1;
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

impl MixArgs {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let cores = self.common.cores()?;
        let arms = self.common.arms(&self.modes, &cores, &[])?;
        let slice = Duration::from_millis(self.slice_ms.into());
        let mut stage = Stage::set(&arms, cores.of_client(0), &self.parts(), slice)?;
        let capacity = self.capacity(&mut stage)?;
        let rows = self.measure(&mut stage, &arms, capacity)?;
        self.common.tell(&head(), &rows, Row::line)?;
        self.common.remark(&format!(
            "loads are of {capacity:.0} ops/s, which mode {} carries of high alone\n",
            arms[0].name
        ))?;
        self.common.plot.as_deref().map_or(Ok(()), |file| draw(file, &rows))
    }

    fn parts(&self) -> [Part; 2] {
        let part = |class, op_bytes, working_set_bytes, depth| Part {
            class: class as u8,
            op_bytes,
            working_set_bytes,
            depth,
            deadline_us: 0,
        };
        let high = part(Class::High, self.high_size, 64 * self.high_size, HIGH_DEPTH);
        let low = part(Class::Low, self.low_size, 8 * self.low_size, self.low_depth);
        [high, low]
    }

    /// High ops a second of the first engine, with nothing beside them.
    fn capacity(&self, stage: &mut Stage) -> Result<f64, Failure> {
        let pace = Pace::Closed { batch: 16, depth: 256 };
        let mut rates = Vec::new();
        for _ in 0..3 {
            let all = stage.play(0, &[(HIGH, pace)])?;
            rates.push(all.iter().map(|it| float(it.ops)).sum::<f64>() / stage.counted_s());
        }
        match median(&rates) {
            rate if rate > 0.0 => Ok(rate),
            _ => Err(Failure::Failed("no high op ended in a whole play".to_string())),
        }
    }

    fn measure(&self, stage: &mut Stage, arms: &[Arm], capacity: f64) -> Result<Vec<Row>, Failure> {
        let low = (LOW, Pace::Closed { batch: 1, depth: self.low_depth });
        let offered = |load: u32| capacity * f64::from(load) / 100.0;
        let track = |load: &u32| Track { offered_per_s: offered(*load), ..Track::default() };
        let mut tracks: Vec<Vec<Track>> =
            arms.iter().map(|_| self.loads.iter().map(track).collect()).collect();
        let (watch, before) = (Watch::start(stage.pids(), false)?, stage.plays());
        for run in 0..self.common.runs as usize {
            for turn in 0..arms.len() {
                let engine = (turn + run) % arms.len();
                let alone = stage.play(engine, &[low])?;
                let alone = rate_of(&alone, LOW, stage);
                for track in &mut tracks[engine] {
                    let high = (HIGH, Pace::Open { per_s: track.offered_per_s });
                    let unloaded = stage.play(engine, &[high])?;
                    let mixed = stage.play(engine, &[high, low])?;
                    track.add(&unloaded, &mixed, alone, stage);
                }
            }
        }
        complain_of(&watch.end(stage.plays() - before)?);
        let mut rows = Vec::new();
        for (arm, tracks) in arms.iter().zip(&tracks) {
            rows.extend(self.loads.iter().zip(tracks).map(|(load, it)| it.row(&arm.name, *load)));
        }
        Ok(rows)
    }
}

/// Bytes a second of a part.
fn rate_of(all: &[Played], part: usize, stage: &Stage) -> f64 {
    let bytes = all.iter().filter(|it| it.part == part).map(|it| it.bytes).sum();
    float(bytes) / stage.counted_s()
}

impl Track {
    fn add(&mut self, unloaded: &[Played], mixed: &[Played], alone: f64, stage: &Stage) {
        for (figures, all) in [(&mut self.unloaded_ns, unloaded), (&mut self.mixed_ns, mixed)] {
            let high = all.iter().filter(|it| it.part == HIGH);
            let latencies = merged(high.map(|it| it.latencies.as_slice()));
            for (figure, quantile) in figures.iter_mut().zip(QUANTILES) {
                figure.0.push(float(latencies.value_at_quantile(quantile)));
            }
        }
        let [high, low] = [HIGH, LOW].map(|part| rate_of(mixed, part, stage));
        let ops: u64 = mixed.iter().filter(|it| it.part == HIGH).map(|it| it.ops).sum();
        self.high_per_s.0.push(float(ops) / stage.counted_s());
        self.low_bytes_per_s.0.push(low);
        self.low_share.0.push(low / (high + low).max(1.0));
        self.low_of_alone.0.push(low / alone.max(1.0));
    }

    fn row(&self, mode: &str, load: u32) -> Row {
        let [p50, p99, p999] = self.mixed_ns.each_ref().map(Figure::median_ns);
        let unloaded = self.unloaded_ns.each_ref().map(Figure::median_ns);
        let ratio = Ratio::of_pairs(&self.mixed_ns[1].0, &self.unloaded_ns[1].0);
        Row {
            mode: mode.to_string(),
            load: f64::from(load) / 100.0,
            offered_per_s: self.offered_per_s,
            high_per_s: self.high_per_s.median(),
            high_p50_ns: p50,
            high_p99_ns: p99,
            high_p999_ns: p999,
            unloaded_p50_ns: unloaded[0],
            unloaded_p99_ns: unloaded[1],
            unloaded_p999_ns: unloaded[2],
            p99_ratio: ratio.map(|ratio| ratio.middle),
            low_bytes_per_s: self.low_bytes_per_s.median(),
            low_share: self.low_share.median(),
            low_of_alone: self.low_of_alone.median(),
            runs: self.high_per_s.0.len(),
            spread: self.mixed_ns[1].spread(),
        }
    }
}

fn head() -> String {
    format!(
        "{:<9} {:>5} {:>11} {:>11} {:>11} {:>11} {:>11} {:>13} {:>6} {:>10} {:>7} {:>9} {:>5} \
         {:>7}\n",
        "mode",
        "load",
        "offered/s",
        "high/s",
        "p50[us]",
        "p99[us]",
        "p99.9[us]",
        "alone p99[us]",
        "ratio",
        "low[MB/s]",
        "share",
        "of alone",
        "runs",
        "spread",
    )
}

impl Row {
    fn line(&self) -> String {
        let us = |ns: u64| format!("{:.2}", float(ns) / 1e3);
        let ratio = self.p99_ratio.map_or_else(|| "-".to_string(), |ratio| format!("{ratio:.2}"));
        format!(
            "{:<9} {:>4.0}% {:>11.0} {:>11.0} {:>11} {:>11} {:>11} {:>13} {:>6} {:>10.1} {:>6.1}% \
             {:>8.1}% {:>5} {:>6.1}%\n",
            self.mode,
            100.0 * self.load,
            self.offered_per_s,
            self.high_per_s,
            us(self.high_p50_ns),
            us(self.high_p99_ns),
            us(self.high_p999_ns),
            us(self.unloaded_p99_ns),
            ratio,
            self.low_bytes_per_s / 1e6,
            100.0 * self.low_share,
            100.0 * self.low_of_alone,
            self.runs,
            100.0 * self.spread,
        )
    }
}

fn draw(file: &Path, rows: &[Row]) -> Result<(), Failure> {
    let us = |ns: u64| float(ns) / 1e3;
    let group = |row: &Row| {
        let name = format!("{} {:.0} %", row.mode, 100.0 * row.load);
        (name, vec![us(row.unloaded_p99_ns), us(row.high_p50_ns), us(row.high_p99_ns)])
    };
    let bars = Bars {
        title: "verbring bench mix: latency of high, medians of runs",
        unit: "us",
        series: &["p99 without low", "p50 beside low", "p99 beside low"],
        groups: rows.iter().map(group).collect(),
    };
    charts::draw_bars(file, &bars)
}

/// Beyond so many an open stream's ops wait at the client; their latency counts nevertheless.
const HIGH_DEPTH: u32 = 4_096;
