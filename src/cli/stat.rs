//! `verbring stat`: an engine's counters once, or its telemetry page over and over.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};
use verbring::Session;
use verbring::abi::Counter;
use verbring::client::{Scope, Stats};

use super::{Failure, grouped, say, say_json, watch};

/// Arguments of `verbring stat`.
#[derive(Debug, Args)]
pub(crate) struct Stat {
    /// Where the engine listens.
    #[arg(long, value_name = "PATH", env = "VERBRING_SOCKET")]
    socket: PathBuf,
    /// Prints one JSON object a look instead of text.
    #[arg(long)]
    json: bool,
    /// Shows what goes through each lane, session and rail, every so many seconds, until
    /// interrupted. The engine is asked for nothing meanwhile.
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = read_period,
        num_args = 0..=1,
        default_missing_value = "1"
    )]
    watch: Option<Duration>,
}

impl Stat {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        if let Some(period) = self.watch {
            return watch::watch(&self.socket, period, self.json);
        }
        let session =
            Session::connect(&self.socket).map_err(|error| Failure::of("cannot ask", &error))?;
        let stats = session
            .stats(Scope::Engine)
            .map_err(|error| Failure::of("cannot have the counters", &error))?;
        if self.json { say_json(&to_json(&stats)) } else { say(&to_text(&stats)) }
    }
}

/// What a counter counts: its name for programs, and words for people.
const ROWS: [(Counter, &str, &str); Counter::ALL.len()] = [
    (Counter::Taken, "taken", "SQEs taken"),
    (Counter::Completed, "completed", "final outcomes"),
    (Counter::OpsHigh, "ops_high", "  of class high"),
    (Counter::OpsMedium, "ops_medium", "  of class medium"),
    (Counter::OpsLow, "ops_low", "  of class low"),
    (Counter::Refused, "refused", "refused for a bad field"),
    (Counter::Failed, "failed", "failed after they were accepted"),
    (Counter::Cancelled, "cancelled", "cancelled"),
    (Counter::Bytes, "bytes", "bytes moved"),
    (Counter::Notified, "notified", "notifications"),
    (Counter::InFlight, "in_flight", "ops in flight"),
    (Counter::Records, "records", "  of records in all"),
    (Counter::Sessions, "sessions", "sessions"),
    (Counter::Rings, "rings", "rings"),
    (Counter::Regions, "regions", "regions and imports"),
    (Counter::RegionBytes, "region_bytes", "bytes in regions"),
    (Counter::Descriptors, "descriptors", "descriptors of the engine's process"),
    (Counter::Turns, "turns", "turns"),
    (Counter::Sleeps, "sleeps", "times the engine slept"),
    (Counter::Defers, "defers", "times a first in lane found no credit"),
    (Counter::BellsRung, "bells_rung", "client bells rung"),
    (Counter::Faults, "faults", "rings faulted"),
    (Counter::Evicted, "evicted", "sessions refused or ended for a broken rule"),
    (Counter::EdgesOver, "edges_over", "ops with edges that waited for nothing"),
    (Counter::EdgesLive, "edges_live", "ops that waited for predecessors"),
    (Counter::DepFailed, "dep_failed", "ops that ended since a predecessor failed"),
    (Counter::FoldHit, "fold_hit", "COALESCE: folded into queued work"),
    (Counter::FoldNone, "fold_none", "COALESCE: nothing like it was under way"),
    (Counter::FoldDisabled, "fold_disabled", "COALESCE: folding is off"),
    (Counter::FoldEdges, "fold_edges", "COALESCE: it has edges"),
    (Counter::FoldKey, "fold_key", "COALESCE: what is queued differs"),
    (Counter::FoldStarted, "fold_started", "COALESCE: its like was posted already"),
    (Counter::Superseded, "superseded", "replaced by a later value"),
    (Counter::Merged, "merged", "ops that shared a work request"),
];

fn to_json(stats: &Stats) -> Value {
    let rows = ROWS.iter().map(|(counter, name, ..)| (name.to_string(), stats[*counter].into()));
    Value::Object(rows.collect::<Map<_, _>>())
}

/// A table of all counters.
fn to_text(stats: &Stats) -> String {
    let row = |(counter, _, words): &(Counter, &str, &str)| {
        format!("{words:44} {:>20}\n", grouped(stats[*counter]))
    };
    ROWS.iter().map(row).collect()
}

/// A whole rate; a count that passes 2^64 nanoseconds' worth is no count.
pub(super) fn per_second(count: u64, time: Duration) -> u64 {
    let rate = u128::from(count) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

pub(super) fn read_period(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    if !(0.01..=86_400.0).contains(&seconds) {
        return Err("must be 0.01 to 86400 seconds".to_string());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use verbring::abi::StatsReply;

    use super::*;

    fn stats(values: &[(Counter, u64)]) -> Stats {
        let mut reply = StatsReply::default();
        for (counter, value) in values {
            reply.counters[*counter as usize] = *value;
        }
        reply.into()
    }

    #[test]
    fn every_counter_has_one_row() {
        for counter in Counter::ALL {
            let rows = ROWS.iter().filter(|(other, ..)| *other == counter);
            assert_eq!(rows.count(), 1, "{counter:?}");
        }
        let object = to_json(&stats(&[(Counter::Bytes, u64::MAX), (Counter::OpsLow, 7)]));
        assert_eq!(object.as_object().unwrap().len(), Counter::ALL.len());
        assert_eq!((&object["bytes"], &object["ops_low"]), (&u64::MAX.into(), &7.into()));
    }

    #[test]
    fn counters_stand_in_a_table() {
        let text = to_text(&stats(&[(Counter::Taken, 6_000), (Counter::Rings, 9)]));
        let line = |words: &str| text.lines().find(|line| line.starts_with(words)).unwrap();
        assert!(line("SQEs taken").ends_with(" 6,000"), "{text}");
        assert!(line("rings  ").ends_with(" 9"), "{text}");
        assert_eq!(per_second(5_000, Duration::from_millis(2_500)), 2_000);
    }

    #[test]
    fn periods_are_seconds_in_range() {
        assert_eq!(read_period("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e9", "soon"] {
            assert!(read_period(bad).is_err(), "{bad}");
        }
    }
}
