//! `verbring stat --watch`: what goes through an engine, by lane, session and rail, over and over.
//!
//! It is read from the telemetry page: after the first moment the engine is asked for nothing.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use verbring::Session;
use verbring::abi::{Class, Tally};
use verbring::client::{Look, Tallies};
use verbring::telemetry::Histogram;

use super::stat::per_second;
use super::{Failure, class_name, grouped, say, say_json};

/// Shows the page every so often, until interrupted or the engine ends.
pub(super) fn watch(socket: &Path, period: Duration, as_json: bool) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: &dyn std::error::Error| Failure::of(what, error);
    let session =
        Session::connect_unrecorded(socket).map_err(|error| failed("cannot ask")(&error))?;
    let telemetry =
        session.telemetry().map_err(|error| failed("cannot have the telemetry page")(&error))?;
    let mut before: Option<(Instant, Look)> = None;
    loop {
        let (now, look) = (Instant::now(), telemetry.look());
        let since = before.as_ref().map(|(then, look)| (now - *then, look));
        if as_json {
            say_json(&to_json(&look, since))?;
        } else {
            say(&to_text(&look, since))?;
            say("\n")?;
        }
        if session.over() {
            let text = "the engine is gone, or has ended this session; that was the last look";
            return Err(Failure::Failed(text.to_string()));
        }
        before = Some((now, look));
        thread::sleep(period);
    }
}

/// Percentiles that are shown, in thousandths.
const PERCENTILES: [(u32, &str); 4] = [(500, "p50"), (900, "p90"), (990, "p99"), (999, "p99.9")];

/// A line of the table.
struct Row<'l> {
    /// What it is about: words for people, and fields for programs.
    name: String,
    fields: Vec<(&'static str, Value)>,
    now: &'l Tallies,
    /// The same at the last look, if there was one and it was there.
    then: Option<&'l Tallies>,
}

impl Row<'_> {
    fn grown(&self, tallies: &[Tally]) -> u64 {
        let sum = |of: &Tallies| tallies.iter().map(|tally| of.of(*tally)).sum::<u64>();
        sum(self.now).saturating_sub(self.then.map_or(0, sum))
    }

    /// What ended.
    fn ended(&self) -> u64 {
        self.grown(&[Tally::Completed, Tally::Failed, Tally::Withdrawn, Tally::Passed])
    }

    fn times(&self) -> [Histogram; 2] {
        let since = |now: &Histogram, then: Option<&Histogram>| match then {
            Some(then) => now.since(then),
            None => now.clone(),
        };
        let (wait, service) = (&self.now.wait, &self.now.service);
        [
            since(wait, self.then.map(|then| &then.wait)),
            since(service, self.then.map(|then| &then.service)),
        ]
    }

    /// Nothing ever came here, and nothing is here.
    fn blank(&self) -> bool {
        let counts = [Tally::Enqueued, Tally::Dispatched, Tally::Completed, Tally::Passed];
        counts.iter().all(|tally| self.now.of(*tally) == 0) && self.now.service.count() == 0
    }
}

/// The lanes, sessions and rails of a look, beside what they were at the look before.
fn rows<'l>(look: &'l Look, then: Option<&'l Look>) -> [Vec<Row<'l>>; 3] {
    let lanes = look.lanes.iter().enumerate().map(|(at, now)| {
        let class = Class::ALL.get(at / 2).map_or("?", |class| class_name(*class));
        let (origin, own) =
            if at.is_multiple_of(2) { ("user", "") } else { ("internal", " (internal)") };
        let fields = vec![("class", class.into()), ("origin", origin.into())];
        let then = then.and_then(|then| then.lanes.get(at));
        Row { name: format!("{class}{own}"), fields, now, then }
    });
    let sessions = look.sessions.iter().map(|(number, now)| {
        let known = then.into_iter().flat_map(|then| &then.sessions);
        let then = known.filter(|(other, then)| other == number && now.same_as(then));
        let fields = vec![("session", (*number).into())];
        Row { name: format!("session {number}"), fields, now, then: then.map(|(_, t)| t).next() }
    });
    let rails = look.rails.iter().enumerate().map(|(number, now)| {
        let name = if number == 0 { "this host".to_string() } else { format!("rail {number}") };
        let then = then.and_then(|then| then.rails.get(number));
        Row { name, fields: vec![("rail", number.into())], now, then }
    });
    [lanes.collect(), sessions.collect(), rails.collect()]
}

/// Three tables: ops by lane, ops by session, requests by rail. A row that is blank is left out,
/// but for users' lanes and this host.
fn to_text(look: &Look, since: Option<(Duration, &Look)>) -> String {
    let time = since.map(|(time, _)| time);
    let heads = ["lane", "session", "rail (requests)"];
    let mut out = String::new();
    for (head, rows) in heads.into_iter().zip(rows(look, since.map(|(_, look)| look))) {
        let rail = head.starts_with("rail");
        let always = |at: usize| head == "lane" && at.is_multiple_of(2) || rail && at == 0;
        let shown = rows.iter().enumerate().filter(|(at, row)| always(*at) || !row.blank());
        let lines: String = shown.map(|(_, row)| line(row, time, rail)).collect();
        if lines.is_empty() {
            continue;
        }
        let ops = if rail { "answers/s" } else { "ops/s" };
        out += &format!("{head:18}{ops:>12}{:>16}{:>9}{:>9}", "bytes/s", "queued", "flying");
        for what in ["wait", "service"] {
            let what = if rail && what == "wait" { "" } else { what };
            for (_, name) in PERCENTILES {
                let name = if what.is_empty() { String::new() } else { format!("{what} {name}") };
                out += &format!("{name:>14}");
            }
        }
        out = out.trim_end().to_string() + "\n" + &lines;
    }
    out
}

fn line(row: &Row<'_>, time: Option<Duration>, rail: bool) -> String {
    let none = || "-".to_string();
    let rate = |count| time.map_or_else(none, |time| grouped(per_second(count, time)));
    let count = |tally| grouped(row.now.of(tally));
    let queued = if rail { none() } else { count(Tally::Queued) };
    let mut out = format!(
        "{:18}{:>12}{:>16}{queued:>9}{:>9}",
        row.name,
        rate(row.ended()),
        rate(row.grown(&[Tally::Bytes])),
        count(Tally::InFlight),
    );
    for (times, shown) in row.times().into_iter().zip([!rail, true]) {
        for (thousandths, _) in PERCENTILES {
            let told = times.at_thousandths(thousandths).map_or_else(none, duration);
            out += &format!("{:>14}", if shown { told } else { String::new() });
        }
    }
    out.trim_end().to_string() + "\n"
}

/// A time in three digits.
fn duration(time_ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let ns = time_ns as f64;
    let (value, unit) = match time_ns {
        0..1_000 => (ns, "ns"),
        1_000..1_000_000 => (ns / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 && time_ns >= 1_000 { 2 } else { usize::from(value < 100.0) };
    let digits = if time_ns < 1_000 { 0 } else { digits };
    format!("{value:.digits$} {unit}")
}

/// Counts are of all time; rates and percentiles are since the look before. At the first look there
/// are no rates (null), and percentiles are of all time.
fn to_json(look: &Look, since: Option<(Duration, &Look)>) -> Value {
    let time = since.map(|(time, _)| time);
    let [lanes, sessions, rails] = rows(look, since.map(|(_, look)| look))
        .map(|rows| rows.iter().map(|row| object(row, time)).collect::<Vec<_>>());
    let gone = Row { name: String::new(), fields: Vec::new(), now: &look.gone, then: None };
    json!({
        "seconds": time.map(|time| time.as_secs_f64()),
        "lanes": lanes,
        "sessions": sessions,
        "sessions_gone": object(&gone, None),
        "rails": rails,
    })
}

fn object(row: &Row<'_>, time: Option<Duration>) -> Value {
    let mut out: Map<String, Value> =
        row.fields.iter().map(|(name, value)| ((*name).to_string(), value.clone())).collect();
    for (tally, name) in COUNTS {
        out.insert((*name).to_string(), row.now.of(*tally).into());
    }
    let waits: Map<String, Value> = (0..16)
        .map(|reason| (reason, row.now.waits(reason)))
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.to_string(), count.into()))
        .collect();
    out.insert("defers_by_wait".to_string(), waits.into());
    let rate = |count| time.map(|time| per_second(count, time));
    out.insert("ops_per_s".to_string(), rate(row.ended()).into());
    out.insert("bytes_per_s".to_string(), rate(row.grown(&[Tally::Bytes])).into());
    for (times, name) in row.times().iter().zip(["queue_wait_ns", "service_ns"]) {
        let told = PERCENTILES.iter().map(|(thousandths, name)| {
            (name.replace('.', ""), times.at_thousandths(*thousandths).into())
        });
        let mut told: Map<String, Value> = told.collect();
        told.insert("count".to_string(), times.count().into());
        out.insert(name.to_string(), told.into());
    }
    out.into()
}

/// What a count is called by programs.
const COUNTS: &[(Tally, &str)] = &[
    (Tally::Enqueued, "enqueued"),
    (Tally::Dispatched, "dispatched"),
    (Tally::Completed, "completed"),
    (Tally::Failed, "failed"),
    (Tally::Withdrawn, "withdrawn"),
    (Tally::Cancelled, "cancelled"),
    (Tally::Requeued, "requeued"),
    (Tally::Returned, "returned"),
    (Tally::Passed, "passed"),
    (Tally::Defers, "defers"),
    (Tally::Bytes, "bytes"),
    (Tally::Queued, "queued"),
    (Tally::InFlight, "in_flight"),
];

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use verbring::abi::{TelemetryHeader, lane_block};
    use verbring::client::Telemetry;
    use verbring::shm::{self, Mapping};
    use verbring::telemetry::{Page, SERVICE_AT, Tallies as Counting};

    use super::*;

    /// An engine's counts, on a page that is read as any other.
    fn counting() -> (Counting, Telemetry) {
        let counting = Counting::new(2, 3);
        let header = TelemetryHeader { engine_pid: 7, ..*counting.header() };
        let fd: OwnedFd = shm::create(c"verbring-test", header.bytes(), false).unwrap();
        let mapping = Mapping::shared(fd.as_fd(), header.bytes()).unwrap();
        let mut counting = counting;
        counting.copy_to(Page::create(mapping, &header));
        (counting, Telemetry::open(fd).unwrap())
    }

    fn add(counting: &mut Counting, block: u32, tally: Tally, by: u64) {
        counting.add(block, tally as usize, by);
    }

    #[test]
    fn rates_and_percentiles_are_since_the_look_before() {
        let (mut counting, telemetry) = counting();
        let high = lane_block(Class::High, 0);
        let session = counting.header().session_block(1);
        counting.begin_session(1);
        let mut looks = Vec::new();
        // 64 to 79 ns, then 1,024 to 1,151 ns.
        for (bucket, ops) in [(4, 100), (32, 50)] {
            for block in [high, session] {
                add(&mut counting, block, Tally::Enqueued, ops + 1);
                add(&mut counting, block, Tally::Dispatched, ops);
                add(&mut counting, block, Tally::Completed, ops);
                add(&mut counting, block, Tally::Bytes, ops * 1_000);
                counting.add(block, SERVICE_AT + bucket, ops);
            }
            counting.publish_all();
            looks.push(telemetry.look());
        }
        let since = Some((Duration::from_millis(500), &looks[0]));
        let text = to_text(&looks[1], since);
        for name in ["high ", "session 1 "] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            let words: Vec<&str> =
                line.split_whitespace().skip(name.split(' ').count() - 1).collect();
            assert_eq!(words[..4], ["100", "100,000", "2", "0"], "{text}");
            assert_eq!(words[4..8], ["-"; 4], "nothing has waited: {text}");
            assert_eq!(words[8..], ["1.15", "us", "1.15", "us", "1.15", "us", "1.15", "us"]);
        }
        assert!(text.lines().any(|line| line.starts_with("this host")), "{text}");
        assert!(!text.contains("rail 1") && !text.contains("internal"), "{text}");
        let object = to_json(&looks[1], since);
        let lane = &object["lanes"][0];
        assert_eq!((&lane["class"], &lane["origin"]), (&"high".into(), &"user".into()));
        assert_eq!((&lane["completed"], &lane["ops_per_s"]), (&150.into(), &100.into()));
        assert_eq!(lane["service_ns"]["p999"], 1_151);
        assert_eq!(object["sessions"][0]["session"], 1);
        let first = to_json(&looks[0], None);
        assert_eq!(first["lanes"][0]["ops_per_s"], Value::Null);
        assert_eq!(first["lanes"][0]["service_ns"]["p50"], 79);
        assert!(to_text(&looks[0], None).lines().nth(1).unwrap().contains(" - "));
    }

    #[test]
    fn another_session_in_the_same_place_begins_anew() {
        let (mut counting, telemetry) = counting();
        let session = counting.header().session_block(0);
        counting.begin_session(0);
        add(&mut counting, session, Tally::Passed, 70);
        counting.publish_all();
        let before = telemetry.look();
        counting.end_session(0);
        counting.begin_session(0);
        add(&mut counting, session, Tally::Passed, 8);
        counting.publish_all();
        let look = telemetry.look();
        let object = to_json(&look, Some((Duration::from_secs(1), &before)));
        assert_eq!(object["sessions"][0]["ops_per_s"], 8);
        assert_eq!(object["sessions_gone"]["passed"], 70);
    }

    #[test]
    fn times_are_told_in_three_digits() {
        let given = [0, 999, 1_151, 12_345, 123_456, 9_999_999, 70_000_000_000];
        let told = ["0 ns", "999 ns", "1.15 us", "12.3 us", "123 us", "10.00 ms", "70.0 s"];
        assert_eq!(given.map(duration), told);
    }
}
