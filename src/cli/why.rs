//! `verbring why`: what one op waits for now, or why it waited, in sentences.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use verbring::Session;
use verbring::abi::errno;
use verbring::client::{ControlError, wait_words};
use verbring::client::{LedgerEntry, OpRef, Recorder, Why, mode_words, rail_words, state_words};

use super::ledger::{ended_json, now_ns, read_record, recorders_of};
use super::{Failure, class_name, say, say_json};

/// Arguments of `verbring why`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
#[command(group = clap::ArgGroup::new("where").required(true).multiple(true))]
pub(crate) struct AskWhy {
    /// An op's record, as its completion names it: decimal, or hexadecimal with 0x.
    #[arg(value_name = "RECORD", group = "what", value_parser = read_record)]
    record: Option<u64>,
    /// The SQE of this number in a ring, 0 for its first: also one that is not taken yet.
    #[arg(long, value_name = "NUMBER", group = "what", requires = "ring", conflicts_with = "pid")]
    number: Option<u64>,
    /// The oldest op with this `user_data` in a ring; of those that are over, the last one.
    #[arg(long, value_name = "DATA", group = "what", requires = "ring", value_parser = read_data)]
    user_data: Option<u64>,
    /// The number of the ring, of any session of this uid.
    #[arg(long, value_name = "RING")]
    ring: Option<u32>,
    /// Where the engine listens.
    #[arg(long, value_name = "PATH", env = "VERBRING_SOCKET", group = "where")]
    socket: Option<PathBuf>,
    /// A client's process, which keeps its flight recorders when the engine is dead. Goes before
    /// a socket.
    #[arg(long, value_name = "PID", group = "where")]
    pid: Option<u32>,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Which op is meant.
#[derive(Clone, Copy, Debug)]
enum Target {
    Record(u64),
    Number(u32, u64),
    UserData(u32, u64),
}

impl AskWhy {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let target = self.target();
        if let Some(pid) = self.pid {
            let found = recorders_of(pid)?;
            return self.over(target, &found, true);
        }
        let path = self.socket.clone().unwrap_or_default();
        let session =
            Session::connect_unrecorded(path).map_err(|error| Failure::of("cannot ask", &error))?;
        // An op that ends meanwhile has its entry by the time that it is not found any more.
        if let Some(why) = target.ask(&session)? {
            return if self.json { say_json(&open_json(&why)) } else { say(&format!("{why}\n")) };
        }
        let found = match session.recorders() {
            Ok(found) => found,
            Err(error) if errno_of(&error) == Some(errno::EOPNOTSUPP) => Vec::new(),
            Err(error) => return Err(Failure::of("cannot have the flight recorders", &error)),
        };
        self.over(target, &found, false)
    }

    fn target(&self) -> Target {
        let ring = self.ring.unwrap_or_default();
        match (self.record, self.number, self.user_data) {
            (Some(record), ..) => Target::Record(record),
            (_, Some(number), _) => Target::Number(ring, number),
            (.., data) => Target::UserData(ring, data.unwrap_or_default()),
        }
    }

    /// Answers for an op that is over, from the flight recorders.
    fn over(&self, target: Target, recorders: &[Recorder], dead: bool) -> Result<(), Failure> {
        let mut entries: Vec<LedgerEntry> = recorders.iter().flat_map(Recorder::records).collect();
        entries.retain(|entry| target.names(entry));
        entries.sort_by_key(LedgerEntry::ended_ns);
        if let Target::UserData(..) = target {
            entries.drain(..entries.len().saturating_sub(1));
        }
        if entries.is_empty() {
            return Err(Failure::Failed(target.unknown(recorders, dead)));
        }
        entries.iter().try_for_each(|entry| {
            if self.json { say_json(&over_json(entry)) } else { say(&over_text(entry, now_ns())) }
        })
    }
}

impl Target {
    /// Asks the engine; `None` if the op is not open.
    fn ask(self, session: &Session) -> Result<Option<Why>, Failure> {
        let op = match self {
            Self::Record(record) => OpRef::record_anywhere(record),
            Self::Number(ring, number) => OpRef::number(ring, number),
            Self::UserData(ring, data) => OpRef::user_data(ring, data),
        };
        match session.why(op) {
            Ok(why) => Ok(Some(why)),
            // A ring that is gone leaves records.
            Err(error) => match (errno_of(&error), self) {
                (Some(errno::ENOENT), _) | (Some(errno::EINVAL), Self::UserData(..)) => Ok(None),
                _ => Err(Failure::of("cannot ask about the op", &error)),
            },
        }
    }

    /// True if an entry is of the op that is meant.
    fn names(self, entry: &LedgerEntry) -> bool {
        match self {
            Self::Record(record) => entry.record == record,
            Self::Number(..) => false,
            Self::UserData(ring, data) => (entry.ring, entry.user_data) == (ring, data),
        }
    }

    fn unknown(self, recorders: &[Recorder], dead: bool) -> String {
        let held: u32 = recorders.iter().map(Recorder::capacity).sum();
        let looked = format!("{} flight recorders of {held} ops in all", recorders.len());
        let open = if dead { "it was still open when the engine died, " } else { "" };
        let lost =
            format!("{open}it has been overwritten by later ones, it was a NOP, or it never was");
        match self {
            Self::Record(record) => {
                format!("record {record:#x} is not open, and in none of {looked}: {lost}")
            }
            Self::UserData(ring, data) => format!(
                "no op of ring {ring} with user_data {data:#x} is open, and none is in {looked}: \
                 {lost}"
            ),
            Self::Number(ring, number) => format!(
                "SQE {number} of ring {ring} is over, or was not pushed yet; what is over is found \
                 by its record or its user_data"
            ),
        }
    }
}

fn errno_of(error: &ControlError) -> Option<i32> {
    error.refusal().map(|refusal| refusal.errno)
}

/// The answer, and behind it the op's story.
fn over_text(entry: &LedgerEntry, now_ns: u64) -> String {
    let ago = now_ns.saturating_sub(entry.ended_ns()) as f64 / 1e9;
    let answer = entry.summary();
    format!("{:#x} is over since {ago:.3} s: {answer}.\n{entry}\n", entry.record)
}

fn over_json(entry: &LedgerEntry) -> Value {
    let mut value = ended_json(entry);
    value["answer"] = entry.summary().into();
    value
}

pub(super) fn open_json(why: &Why) -> Value {
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let rails = why.rails.iter();
    let rails = rails.map(|(rail, state)| json!({"rail": rail, "state": rail_words(*state)}));
    json!({
        "record": why.record,
        "number": why.number,
        "ring": why.ring,
        "session": why.session,
        "user_data": why.user_data,
        "state": state_words(why.state),
        "opcode": why.opcode.map(|opcode| format!("{opcode:?}")),
        "class": why.class.map(class_name),
        "origin": why.origin,
        "mode": mode_words(why.mode),
        "bytes": why.bytes,
        "bytes_done": why.bytes_done,
        "taken_ns": why.taken_ns,
        "age_ns": nanos(why.age),
        "queued_ns": why.queued.map(nanos),
        "service_ns": why.service().map(nanos),
        "ahead": why.ahead,
        "flows": why.flows,
        "defers": why.defers,
        "wait": wait_words(why.wait),
        "wait_number": why.wait,
        "used": why.used.map(|(used, _)| used),
        "limit": why.used.map(|(_, limit)| limit),
        "wants": why.wants,
        "predecessors": why.after.map(|(count, _)| count),
        "predecessor": why.after.map(|(_, number)| number),
        "rail": why.rail,
        "rails": rails.collect::<Vec<_>>(),
        "posts": why.posts,
        "in_fabric": why.in_fabric,
        "answer": why.to_string(),
    })
}

fn read_data(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    read.map_err(|_| "not a number of 64 bits, decimal or with 0x".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_read_in_both_ways() {
        assert_eq!(read_data("0"), Ok(0));
        assert_eq!(read_data("0xffffffffffffffff"), Ok(u64::MAX));
        for bad in ["", "-1", "0x", "five", "0x10000000000000000"] {
            assert!(read_data(bad).is_err(), "{bad}");
        }
    }
}
