//! `verbring stat`: an engine's counters, once or over and over.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Map, Value};
use verbring::Session;
use verbring::abi::Counter;
use verbring::client::{Scope, Stats};

use super::{Failure, grouped, say, say_json};

/// Arguments of `verbring stat`.
#[derive(Debug, Args)]
pub(crate) struct Stat {
    /// Where the engine listens.
    #[arg(long, value_name = "PATH", env = "VERBRING_SOCKET")]
    socket: PathBuf,
    /// Prints one JSON object a look instead of text.
    #[arg(long)]
    json: bool,
    /// Looks again every so many seconds, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = read_period)]
    watch: Option<Duration>,
}

impl Stat {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let session =
            Session::connect(&self.socket).map_err(|error| Failure::of("cannot ask", &error))?;
        let mut before: Option<(Instant, Stats)> = None;
        loop {
            let stats = session
                .stats(Scope::Engine)
                .map_err(|error| Failure::of("cannot have the counters", &error))?;
            let now = Instant::now();
            if self.json {
                say_json(&to_json(&stats))?;
            } else {
                let since = before.as_ref().map(|(then, stats)| (now - *then, stats));
                say(&to_text(&stats, since))?;
            }
            let Some(period) = self.watch else { return Ok(()) };
            if !self.json {
                say("\n")?;
            }
            before = Some((now, stats));
            thread::sleep(period);
        }
    }
}

/// What a counter counts: its name for programs, whether it only grows, and words for people.
const ROWS: [(Counter, &str, bool, &str); Counter::ALL.len()] = [
    (Counter::Taken, "taken", true, "SQEs taken"),
    (Counter::Completed, "completed", true, "final outcomes"),
    (Counter::OpsHigh, "ops_high", true, "  of class high"),
    (Counter::OpsMedium, "ops_medium", true, "  of class medium"),
    (Counter::OpsLow, "ops_low", true, "  of class low"),
    (Counter::Refused, "refused", true, "refused for a bad field"),
    (Counter::Failed, "failed", true, "failed after they were accepted"),
    (Counter::Cancelled, "cancelled", true, "cancelled"),
    (Counter::Bytes, "bytes", true, "bytes moved"),
    (Counter::Notified, "notified", true, "notifications"),
    (Counter::InFlight, "in_flight", false, "ops in flight"),
    (Counter::Records, "records", false, "  of records in all"),
    (Counter::Sessions, "sessions", false, "sessions"),
    (Counter::Rings, "rings", false, "rings"),
    (Counter::Regions, "regions", false, "regions and imports"),
    (Counter::RegionBytes, "region_bytes", false, "bytes in regions"),
    (Counter::Descriptors, "descriptors", false, "descriptors of the engine's process"),
    (Counter::Turns, "turns", true, "turns"),
    (Counter::Sleeps, "sleeps", true, "times the engine slept"),
    (Counter::Defers, "defers", true, "times a first in lane found no credit"),
    (Counter::BellsRung, "bells_rung", true, "client bells rung"),
    (Counter::Faults, "faults", true, "rings faulted"),
    (Counter::Evicted, "evicted", true, "sessions refused or ended for a broken rule"),
];

fn to_json(stats: &Stats) -> Value {
    let rows = ROWS.iter().map(|(counter, name, ..)| (name.to_string(), stats[*counter].into()));
    Value::Object(rows.collect::<Map<_, _>>())
}

/// A table of all counters; beside those that only grow, how fast they did since the last look.
fn to_text(stats: &Stats, since: Option<(Duration, &Stats)>) -> String {
    let mut out = String::new();
    for (counter, _, grows, words) in &ROWS {
        let value = stats[*counter];
        out += &format!("{words:44} {:>20}", grouped(value));
        if *grows && let Some((time, before)) = since {
            let more = value.saturating_sub(before[*counter]);
            out += &format!(" {:>16} /s", grouped(per_second(more, time)));
        }
        out += "\n";
    }
    out
}

/// A whole rate; a count that passes 2^64 nanoseconds' worth is no count.
fn per_second(count: u64, time: Duration) -> u64 {
    let rate = u128::from(count) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn read_period(text: &str) -> Result<Duration, String> {
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
    fn rates_stand_beside_what_only_grows() {
        let before = stats(&[(Counter::Taken, 1_000), (Counter::Rings, 1)]);
        let now = stats(&[(Counter::Taken, 6_000), (Counter::Rings, 9)]);
        let text = to_text(&now, Some((Duration::from_millis(2_500), &before)));
        let line = |words: &str| text.lines().find(|line| line.starts_with(words)).unwrap();
        assert!(line("SQEs taken").contains("6,000"), "{text}");
        assert!(line("SQEs taken").ends_with(" 2,000 /s"), "{text}");
        assert!(line("rings  ").ends_with(" 9"), "{text}");
        assert!(!to_text(&now, None).contains("/s"));
    }

    #[test]
    fn periods_are_seconds_in_range() {
        assert_eq!(read_period("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "1e9", "soon"] {
            assert!(read_period(bad).is_err(), "{bad}");
        }
    }
}
