//! What all rounds that compare engines have in common: flags, figures of runs, and how they are
//! told.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;
use verbring::sched::Mode;

use super::cores::{self, Cores};
use super::crew::Arm;
use super::engine_process::settings_for;
use super::quiet::Disturbance;
use super::slice::histogram;
use super::statistics::{median, spread};
use crate::cli::{Failure, complain, say, say_json};

/// Flags of every round.
#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Times that each of the compared is run, in turn.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) runs: u32,
    /// Cores: the engines', then the clients' [default: all that are allowed, in order].
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pin: Vec<usize>,
    /// A setting of the engines, as in `verbring serve`: intake_budget=64. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Draws the rows into an SVG file.
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
    /// Prints one JSON object a row instead of a table.
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    pub(super) fn cores(&self) -> Result<Cores, Failure> {
        Cores::choose(&self.pin, &cores::allowed()?)
    }

    /// An engine with a round's settings, what makes it this arm, and what was asked for beside.
    pub(super) fn arm(
        &self,
        name: &str,
        cores: &Cores,
        settings: &[String],
    ) -> Result<Arm, Failure> {
        let mut all = vec![format!("pin={}", cores.engine), "verbs=off".to_string()];
        all.extend_from_slice(settings);
        all.extend_from_slice(&self.set);
        settings_for(&all)?;
        Ok(Arm { name: name.to_string(), settings: all })
    }

    /// An engine for each mode.
    pub(super) fn arms(
        &self,
        modes: &[Mode],
        cores: &Cores,
        settings: &[String],
    ) -> Result<Vec<Arm>, Failure> {
        let mut modes = modes.to_vec();
        let mut seen = Vec::new();
        modes.retain(|mode| {
            !seen.contains(mode) && {
                seen.push(*mode);
                true
            }
        });
        let arm = |mode: &Mode| {
            let all = [settings, &[format!("mode={mode}")]].concat();
            self.arm(mode.name(), cores, &all)
        };
        modes.iter().map(arm).collect()
    }

    /// Tells rows: as objects, or under a head.
    pub(super) fn tell<R: Serialize>(
        &self,
        head: &str,
        rows: &[R],
        line: impl Fn(&R) -> String,
    ) -> Result<(), Failure> {
        if !self.json {
            say(head)?;
            return rows.iter().try_for_each(|row| say(&line(row)));
        }
        for row in rows {
            let value = serde_json::to_value(row)
                .map_err(|error| Failure::of("cannot write a row", &error))?;
            say_json(&value)?;
        }
        Ok(())
    }

    /// Tells people what no row holds.
    pub(super) fn remark(&self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { say(text) }
    }
}

/// Complains of a machine that was not quiet.
pub(super) fn complain_of(disturbance: &Disturbance) {
    for complaint in disturbance.complaints() {
        complain(&format!("the machine is not quiet: {complaint}"));
    }
}

/// Of a figure: its value in each run.
#[derive(Clone, Debug, Default)]
pub(super) struct Figure(pub(super) Vec<f64>);

impl Figure {
    pub(super) fn median(&self) -> f64 {
        median(&self.0)
    }

    pub(super) fn median_ns(&self) -> u64 {
        whole(self.median())
    }

    pub(super) fn spread(&self) -> f64 {
        spread(&self.0)
    }
}

/// A time or a count, rounded.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52 of anything is counted")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// Puts together what several clients have seen.
pub(super) fn merged<'a>(all: impl IntoIterator<Item = &'a [(u64, u64)]>) -> Histogram<u64> {
    let mut merged = histogram();
    for (value, count) in all.into_iter().flatten() {
        merged.saturating_record_n(*value, *count);
    }
    merged
}

/// Long enough that all clients have heard of what is to begin.
pub(super) const HEAD_START: Duration = Duration::from_millis(2);

pub(super) fn read_mode(text: &str) -> Result<Mode, String> {
    text.parse().map_err(|error: verbring::sched::policy::NoMode| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_of_clients_add_up() {
        let (a, b) = ([(10, 3), (20, 1)], [(10, 1), (500, 5)]);
        let all = merged([&a[..], &b[..]]);
        assert_eq!((all.len(), all.count_at(10), all.max()), (10, 4, 500));
        assert_eq!(merged([]).len(), 0);
    }

    #[test]
    fn figures_are_medians_of_runs() {
        let figure = Figure(vec![3.0, 1.4, 2.0]);
        assert_eq!((figure.median(), Figure(vec![1.6]).median_ns()), (2.0, 2));
        assert!(figure.spread() > 0.0 && Figure::default().spread() == 0.0);
        assert_eq!((whole(-1.0), whole(f64::NAN)), (0, 0));
    }

    #[test]
    fn modes_are_read_by_name() {
        assert_eq!(read_mode("strict"), Ok(Mode::Strict));
        assert!(read_mode("lifo").unwrap_err().contains("weighted"));
    }
}
