//! What is told: one row a contestant and point, for programs and for people.

use serde::Serialize;

use super::conductor::{Measured, Terms, Track};
use super::shape::{OpKind, Shape};
use super::statistics::{Ratio, median, spread};
use super::who::Who;

/// One contestant at one point of a sweep.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// `pipelined`, `lock-step` or `sleep`.
    pub(super) bench: &'static str,
    pub(super) who: Who,
    /// NOP for contestants that move no payload.
    pub(super) op: OpKind,
    pub(super) size_bytes: u64,
    pub(super) pages: u64,
    pub(super) batch: u32,
    pub(super) depth: u32,
    pub(super) clients: usize,
    /// Idle rings of the same engine.
    pub(super) idle_rings: u32,
    pub(super) class: u8,
    pub(super) working_set_bytes: u64,
    pub(super) ops: u64,
    /// Medians over the slices.
    pub(super) ops_per_s: f64,
    pub(super) bytes_per_s: f64,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) p999_ns: u64,
    /// Slices.
    pub(super) runs: usize,
    /// From the 10th to the 90th percentile of the slices, as a part of the median.
    pub(super) spread: f64,
    /// Verbring's figure by this one's, over pairs of slices, and the ends of its 95 % interval.
    pub(super) ratio: Option<f64>,
    pub(super) ratio_low: Option<f64>,
    pub(super) ratio_high: Option<f64>,
    /// Which figure: a ratio of `ops_per_s` is better if larger, one of `p50_ns` if smaller.
    pub(super) ratio_of: Option<&'static str>,
    pub(super) quiet: bool,
    pub(super) disturbed_by: Vec<String>,
    /// Why it did not run.
    pub(super) skipped: Option<String>,
}

/// The rows of one point, the engine's first.
pub(super) fn rows(measured: &Measured, shape: &Shape, terms: &Terms) -> Vec<Row> {
    let disturbed_by = measured.disturbance.complaints();
    let subject = measured.tracks.iter().find(|track| track.who == Who::Verbring);
    let row = |track: &Track| {
        let shape = if track.who.moves_payload() { shape.clone() } else { shape.bare() };
        let ratio = subject.filter(|subject| subject.who != track.who).and_then(|subject| {
            match terms.sleep {
                true => Ratio::of_pairs(&subject.medians_ns, &track.medians_ns),
                false => Ratio::of_pairs(&subject.rates, &track.rates),
            }
        });
        let ops_per_s = median(&track.rates);
        #[expect(clippy::cast_precision_loss, reason = "an op has less than 2^31 bytes")]
        let op_bytes = shape.op_bytes() as f64;
        Row {
            bench: match (terms.sleep, shape.batch == shape.depth) {
                (true, _) => "sleep",
                (false, true) => "lock-step",
                (false, false) => "pipelined",
            },
            who: track.who,
            op: shape.op,
            size_bytes: shape.size_bytes,
            pages: shape.pages,
            batch: shape.batch,
            depth: shape.depth,
            clients: terms.clients,
            idle_rings: if track.who == Who::VerbringIdleRings { terms.idle_rings } else { 0 },
            class: shape.class,
            working_set_bytes: shape.working_set_bytes,
            ops: track.ops,
            ops_per_s,
            bytes_per_s: ops_per_s * op_bytes,
            p50_ns: track.latencies.value_at_quantile(0.5),
            p99_ns: track.latencies.value_at_quantile(0.99),
            p999_ns: track.latencies.value_at_quantile(0.999),
            runs: track.rates.len(),
            spread: spread(&track.rates),
            ratio: ratio.map(|it| it.middle),
            ratio_low: ratio.map(|it| it.low),
            ratio_high: ratio.map(|it| it.high),
            ratio_of: ratio.map(|_| if terms.sleep { "p50_ns" } else { "ops_per_s" }),
            quiet: disturbed_by.is_empty(),
            disturbed_by: disturbed_by.clone(),
            skipped: track.skipped.clone(),
        }
    };
    measured.tracks.iter().map(row).collect()
}

/// The head of the table for people, in the words of perftest.
pub(super) fn head() -> String {
    format!(
        "{:<20} {:<9} {:>9} {:>6} {:>6} {:>12} {:>15} {:>13} {:>15} {:>9} {:>9} {:>7}  {}\n",
        "who",
        "op",
        "#bytes",
        "batch",
        "depth",
        "#iterations",
        "BW avg[MB/s]",
        "MsgRate[Mpps]",
        "t_typical[usec]",
        "99%[usec]",
        "99.9%",
        "spread",
        "verbring / it (95 %)"
    )
}

impl Row {
    /// One line of the table for people.
    pub(super) fn line(&self) -> String {
        let name = self.who.name();
        if let Some(reason) = &self.skipped {
            return format!("{name:<20} not run: {reason}\n");
        }
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let [p50, p99, p999] =
            [self.p50_ns, self.p99_ns, self.p999_ns].map(|ns| ns as f64 / 1_000.0);
        let ratio = match (self.ratio, self.ratio_low, self.ratio_high) {
            (Some(middle), Some(low), Some(high)) => format!("{middle:.3} ({low:.3}-{high:.3})"),
            _ => String::new(),
        };
        let line = format!(
            "{name:<20} {:<9} {:>9} {:>6} {:>6} {:>12} {:>15.1} {:>13.3} {p50:>15.3} {p99:>9.3} \
             {p999:>9.3} {:>6.1}%  {ratio}",
            self.op.name(),
            self.size_bytes * self.pages,
            self.batch,
            self.depth,
            self.ops,
            self.bytes_per_s / 1e6,
            self.ops_per_s / 1e6,
            100.0 * self.spread,
        );
        line.trim_end().to_string() + "\n"
    }
}
