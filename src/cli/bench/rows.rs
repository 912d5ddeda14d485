//! What is told: one row a contestant and point, for programs and for people.

use serde::Serialize;

use super::conductor::{Measured, Terms, Track};
use super::shape::{OpKind, Shape};
use super::statistics::{Ratio, median, spread};
use super::who::{Carrier, Who};

/// One contestant at one point of a sweep.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// `pipelined`, `lock-step` or `sleep`.
    pub(super) bench: &'static str,
    pub(super) who: Who,
    /// What carries the engine's ops.
    pub(super) fabric: Carrier,
    /// NOP for contestants that move no payload.
    pub(super) op: OpKind,
    pub(super) size_bytes: u64,
    pub(super) pages: u64,
    /// Payload bytes of an op at this point of the sweep, also where a contestant moves none.
    pub(super) point_bytes: u64,
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
    /// Of the minute before.
    pub(super) load_average: f64,
    pub(super) quiet: bool,
    pub(super) disturbed_by: Vec<String>,
    /// Why it did not run.
    pub(super) skipped: Option<String>,
}

/// The rows of one point, the engine's first.
pub(super) fn rows(measured: &Measured, shape: &Shape, terms: &Terms) -> Vec<Row> {
    let disturbed_by = measured.disturbance.complaints();
    let subject = measured.tracks.iter().find(|track| track.who == Who::Verbring);
    let point_bytes = shape.op_bytes();
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
            fabric: terms.carrier,
            op: shape.op,
            size_bytes: shape.size_bytes,
            pages: shape.pages,
            point_bytes,
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
            load_average: measured.disturbance.load_average,
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

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use verbring::abi::Class;

    use super::*;
    use crate::cli::bench::cores::Cores;
    use crate::cli::bench::quiet::Disturbance;
    use crate::cli::bench::shape::Wish;
    use crate::cli::bench::slice::histogram;

    fn track(who: Who, rates: &[f64], latencies: &[u64]) -> Track {
        let mut track = Track {
            who,
            ops: 100,
            rates: rates.to_vec(),
            medians_ns: rates.iter().map(|rate| 1e9 / rate).collect(),
            latencies: histogram(),
            skipped: None,
        };
        for latency in latencies {
            track.latencies.record(*latency).unwrap();
        }
        track
    }

    /// What a measurement of 4 KiB WRITEs (or of pages of this size) might come to.
    pub(in crate::cli::bench) fn sample(size_bytes: u64, sleep: bool) -> Vec<Row> {
        let shape = Shape::settle(Wish {
            op: OpKind::Write,
            size_bytes,
            pages: 8,
            batch: 1,
            depth: 1,
            class: Class::Low,
            working_set_bytes: None,
        });
        let mut sqpoll = track(Who::IoUringSqpoll, &[], &[]);
        sqpoll.skipped = Some("forbidden".to_string());
        let tracks = vec![
            track(Who::Verbring, &[1e6, 2e6, 3e6], &[100, 200, 300]),
            track(Who::Bare, &[2e6, 4e6, 6e6], &[50]),
            track(Who::BareMemcpy, &[1e6, 2e6, 3e6], &[100]),
            sqpoll,
        ];
        let disturbance = Disturbance { stolen: 0.5, ..Disturbance::default() };
        let terms = Terms {
            cores: Cores { engine: 0, clients: vec![1] },
            clients: 1,
            settings: Vec::new(),
            carrier: Carrier::Local,
            far_settings: None,
            verbs: None,
            slice: Duration::from_millis(10),
            time: Duration::from_secs(1),
            contestants: Vec::new(),
            idle_rings: 0,
            sleep,
        };
        rows(&Measured { tracks, disturbance }, &shape.unwrap(), &terms)
    }

    #[test]
    fn a_row_tells_medians_and_the_ratio_to_verbring() {
        let rows = sample(4096, false);
        let [verbring, bare, memcpy, sqpoll] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((verbring.ops_per_s, verbring.bytes_per_s), (2e6, 2e6 * 4096.0));
        assert_eq!((verbring.p50_ns, verbring.p99_ns, verbring.runs), (200, 300, 3));
        assert_eq!((verbring.ratio, verbring.class, verbring.bench), (None, 3, "lock-step"));
        assert!(!verbring.quiet && verbring.disturbed_by.len() == 1);
        assert_eq!(
            (bare.ratio, bare.ratio_low, bare.ratio_high),
            (Some(0.5), Some(0.5), Some(0.5))
        );
        assert_eq!((bare.op, bare.bytes_per_s, bare.point_bytes), (OpKind::Nop, 0.0, 4096));
        assert_eq!(
            (memcpy.ratio, memcpy.size_bytes, memcpy.working_set_bytes),
            (Some(1.0), 4096, 8192)
        );
        assert_eq!((sqpoll.ratio, sqpoll.ops_per_s, sqpoll.runs), (None, 0.0, 0));
    }

    #[test]
    fn from_sleep_the_ratio_is_one_of_latencies() {
        let rows = sample(64, true);
        assert_eq!(
            (rows[1].bench, rows[1].ratio, rows[1].ratio_of),
            ("sleep", Some(2.0), Some("p50_ns"))
        );
    }

    #[test]
    fn a_line_has_a_column_for_each_of_the_head() {
        let rows = sample(4096, false);
        let line = rows[1].line();
        let cells: Vec<&str> = line.split_whitespace().collect();
        let expected = [
            "bare",
            "nop",
            "0",
            "1",
            "1",
            "100",
            "0.0",
            "4.000",
            "0.050",
            "0.050",
            "0.050",
            "80.0%",
            "0.500",
            "(0.500-0.500)",
        ];
        assert_eq!(cells, expected);
        assert_eq!(rows[3].line(), "io_uring_sqpoll      not run: forbidden\n");
        assert_eq!(rows[0].line().trim_end(), rows[0].line().trim_end_matches('\n'));
    }
}
