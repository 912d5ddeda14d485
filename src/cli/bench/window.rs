//! `verbring bench window`: what a window costs in throughput and in waiting.
//!
//! A window is what an engine has given to its device and cannot take back: too small, and the
//! device runs dry between turns; too large, and a high op that comes waits behind all of it. For
//! each size there is an engine; low ops saturate it, high ops come at random, and the engines
//! take turns. The knee is the smallest window that still has nearly the best throughput.

use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use verbring::abi::Class;

use super::charts::{self, Lines};
use super::crew::Arm;
use super::engine_process::settings_for;
use super::quiet::Watch;
use super::round::{Common, Figure, complain_of, float, merged};
use super::streams::{Pace, Part, Played, Stage};
use super::sweep::{Sweep, read_bytes};
use crate::cli::Failure;

/// What of the window is swept over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Over {
    /// window_bytes, with ops and work requests to spare.
    Bytes,
    /// window_ops, with as many work requests, and bytes to spare.
    Ops,
}

/// Arguments of `verbring bench window`.
#[derive(Debug, Args)]
pub(super) struct WindowArgs {
    /// What is swept over.
    #[arg(long, value_enum, default_value = "bytes")]
    over: Over,
    /// Sizes of the window [default: 64K..16M, or 1..1024 ops].
    #[arg(long)]
    points: Option<Sweep>,
    /// High ops a second, at random times.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    high_per_s: u32,
    /// Bytes of a high op.
    #[arg(long, default_value = "4K", value_parser = read_bytes)]
    high_size: u64,
    /// Bytes of a low op [default: 1M, or 4K over ops].
    #[arg(long, value_parser = read_bytes)]
    low_size: Option<u64>,
    /// Milliseconds of one play, of which the first fifth is not counted.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(5..=60_000))]
    slice_ms: u32,
    #[command(flatten)]
    common: Common,
}

/// One window's figures.
#[derive(Debug, Default)]
struct Track {
    bytes_per_s: Figure,
    p50_ns: Figure,
    p99_ns: Figure,
}

/// One window's row.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    over: &'static str,
    mode: String,
    window_ops: u32,
    window_wrs: u32,
    window_bytes: u64,
    slice_bytes: u32,
    bytes_per_s: f64,
    high_p50_ns: u64,
    high_p99_ns: u64,
    knee: bool,
    runs: usize,
    /// The larger of those of throughput and p99, from the 10th to the 90th percentile of the
    /// runs, as a part of the median.
    spread: f64,
}

const HIGH: usize = 0;
const LOW: usize = 1;

impl WindowArgs {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let cores = self.common.cores()?;
        let arm = |point: &u64| self.common.arm(&point.to_string(), &cores, &self.settings(*point));
        let arms = self.points().iter().map(arm).collect::<Result<Vec<_>, _>>()?;
        let slice = Duration::from_millis(self.slice_ms.into());
        let mut stage = Stage::set(&arms, cores.of_client(0), &self.parts(), slice)?;
        let tracks = self.measure(&mut stage, &arms)?;
        let mut rows = Vec::new();
        for (arm, track) in arms.iter().zip(&tracks) {
            rows.push(self.row(arm, track)?);
        }
        let knee = knee(&tracks.iter().map(|it| it.bytes_per_s.median()).collect::<Vec<_>>());
        rows[knee].knee = true;
        self.common.tell(&head(), &rows, Row::line)?;
        let Row { window_ops, window_bytes, high_p99_ns, .. } = rows[knee];
        self.common.remark(&format!(
            "the knee: {window_ops} ops and {window_bytes} bytes, the smallest with {:.0} % of the \
             best throughput; high p99 {:.1} us\n",
            100.0 * NEAR_BEST,
            float(high_p99_ns) / 1e3
        ))?;
        self.common.plot.as_deref().map_or(Ok(()), |file| self.draw(file, &rows))
    }

    fn points(&self) -> Vec<u64> {
        let default = || match self.over {
            Over::Bytes => (16..=24).map(|shift| 1 << shift).collect(),
            Over::Ops => (0..=10).map(|shift| 1 << shift).collect(),
        };
        self.points.as_ref().map_or_else(default, |sweep| sweep.0.clone())
    }

    fn low_size(&self) -> u64 {
        self.low_size.unwrap_or(match self.over {
            Over::Bytes => 1 << 20,
            Over::Ops => 4 << 10,
        })
    }

    /// Slices are as large as the default, but not larger than the window.
    fn settings(&self, point: u64) -> Vec<String> {
        let (ops, bytes) = match self.over {
            Over::Bytes => (4_096, point),
            Over::Ops => (point, (point * self.low_size()).max(4 << 10)),
        };
        [
            ("window_ops", ops),
            ("window_wrs", if self.over == Over::Bytes { 16_384 } else { ops.max(1) }),
            ("window_bytes", bytes),
            ("slice_bytes", bytes.clamp(4 << 10, 128 << 10)),
        ]
        .map(|(name, value)| format!("{name}={value}"))
        .to_vec()
    }

    /// Low has twice the largest window in flight, so that the window is what bounds it.
    fn parts(&self) -> [Part; 2] {
        let largest = self.points().into_iter().max().unwrap_or(1);
        let ops = match self.over {
            Over::Bytes => largest.div_ceil(self.low_size().max(1)),
            Over::Ops => largest,
        };
        let depth = u32::try_from((2 * ops).clamp(16, 4_096)).unwrap_or(4_096);
        let part = |class, op_bytes: u64, depth| Part {
            class: class as u8,
            op_bytes,
            working_set_bytes: (8 << 20).max(8 * op_bytes),
            depth,
            deadline_us: 0,
        };
        [part(Class::High, self.high_size, 4_096), part(Class::Low, self.low_size(), depth)]
    }

    fn measure(&self, stage: &mut Stage, arms: &[Arm]) -> Result<Vec<Track>, Failure> {
        let depth = self.parts()[LOW].depth;
        let voices = [
            (HIGH, Pace::Open { per_s: self.high_per_s.into() }),
            (LOW, Pace::Closed { batch: 1, depth }),
        ];
        let mut tracks: Vec<Track> = arms.iter().map(|_| Track::default()).collect();
        let watch = Watch::start(stage.pids(), false)?;
        for run in 0..self.common.runs as usize {
            for turn in 0..arms.len() {
                let engine = (turn + run) % arms.len();
                let all = stage.play(engine, &voices)?;
                tracks[engine].add(&all, stage.counted_s());
            }
        }
        complain_of(&watch.end(stage.plays())?);
        Ok(tracks)
    }

    fn row(&self, arm: &Arm, track: &Track) -> Result<Row, Failure> {
        let settings = settings_for(&arm.settings)?;
        let config = settings.config();
        Ok(Row {
            over: if self.over == Over::Bytes { "bytes" } else { "ops" },
            mode: config.mode.to_string(),
            window_ops: config.window_ops,
            window_wrs: config.window_wrs,
            window_bytes: config.window_bytes,
            slice_bytes: config.slice_bytes,
            bytes_per_s: track.bytes_per_s.median(),
            high_p50_ns: track.p50_ns.median_ns(),
            high_p99_ns: track.p99_ns.median_ns(),
            knee: false,
            runs: track.p99_ns.0.len(),
            spread: track.bytes_per_s.spread().max(track.p99_ns.spread()),
        })
    }

    fn draw(&self, file: &Path, rows: &[Row]) -> Result<(), Failure> {
        let at = |row: &Row| match self.over {
            Over::Bytes => float(row.window_bytes),
            Over::Ops => f64::from(row.window_ops),
        };
        let line = |name: &str, value: fn(&Row) -> f64| {
            (name.to_string(), rows.iter().map(|row| (at(row), value(row))).collect())
        };
        let parameter = if self.over == Over::Bytes { "window, bytes" } else { "window, ops" };
        let rates = Lines {
            title: "verbring bench window: throughput of all",
            parameter,
            unit: "MB/s",
            series: vec![line("all", |row| row.bytes_per_s / 1e6)],
        };
        let waits = Lines {
            title: "latency of high beside saturating low",
            parameter,
            unit: "us",
            series: vec![
                line("p50", |row| float(row.high_p50_ns) / 1e3),
                line("p99", |row| float(row.high_p99_ns) / 1e3),
            ],
        };
        charts::draw_lines(file, &[rates, waits])
    }
}

impl Track {
    fn add(&mut self, all: &[Played], seconds: f64) {
        let bytes: u64 = all.iter().map(|it| it.bytes).sum();
        self.bytes_per_s.0.push(float(bytes) / seconds);
        let high = all.iter().filter(|it| it.part == HIGH);
        let latencies = merged(high.map(|it| it.latencies.as_slice()));
        self.p50_ns.0.push(float(latencies.value_at_quantile(0.5)));
        self.p99_ns.0.push(float(latencies.value_at_quantile(0.99)));
    }
}

/// The first of the points, which grow, that is near the best.
fn knee(rates: &[f64]) -> usize {
    let best = rates.iter().copied().fold(0.0, f64::max);
    rates.iter().position(|rate| *rate >= NEAR_BEST * best).unwrap_or(0)
}

fn head() -> String {
    format!(
        "{:>10} {:>10} {:>12} {:>11} {:>10} {:>12} {:>12} {:>5} {:>7}\n",
        "window_ops",
        "window_wrs",
        "window_bytes",
        "slice_bytes",
        "MB/s",
        "high p50[us]",
        "high p99[us]",
        "runs",
        "spread",
    )
}

impl Row {
    fn line(&self) -> String {
        format!(
            "{:>10} {:>10} {:>12} {:>11} {:>10.1} {:>12.2} {:>12.2} {:>5} {:>6.1}%{}\n",
            self.window_ops,
            self.window_wrs,
            self.window_bytes,
            self.slice_bytes,
            self.bytes_per_s / 1e6,
            float(self.high_p50_ns) / 1e3,
            float(self.high_p99_ns) / 1e3,
            self.runs,
            100.0 * self.spread,
            if self.knee { "  <- knee" } else { "" },
        )
    }
}

/// Whoever has this much of the best throughput gains little by a larger window.
const NEAR_BEST: f64 = 0.97;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_knee_is_the_smallest_window_that_is_nearly_as_good_as_the_best() {
        assert_eq!(knee(&[10.0, 90.0, 98.0, 99.0, 100.0, 97.5]), 2);
        assert_eq!(knee(&[100.0, 100.0]), 0, "flat: small is enough");
        assert_eq!((knee(&[]), knee(&[0.0, 0.0])), (0, 0));
    }
}
