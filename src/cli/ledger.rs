//! `verbring ledger`: what became of ops, in words; of a live engine or of a dead one.

use std::path::PathBuf;

use clap::Args;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use verbring::Session;
use verbring::abi::{Detail, errno};
use verbring::client::{LedgerEntry, OpRef, Recorder, Why, wait_words};

use super::why::open_json;
use super::{Failure, class_name, say, say_json};

/// Arguments of `verbring ledger`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
#[command(group = clap::ArgGroup::new("where").required(true).multiple(true))]
pub(crate) struct Ledger {
    /// An op's record, as its completion names it: decimal, or hexadecimal with 0x.
    #[arg(value_name = "RECORD", group = "what", value_parser = read_record)]
    record: Option<u64>,
    /// Prints the so many ops that ended last, oldest first.
    #[arg(long, value_name = "COUNT", group = "what")]
    last: Option<usize>,
    /// Where the engine listens: all its sessions of this uid are looked at.
    #[arg(long, value_name = "PATH", env = "VERBRING_SOCKET", group = "where")]
    socket: Option<PathBuf>,
    /// A client's process, which keeps its flight recorders when the engine is dead. Goes before
    /// a socket.
    #[arg(long, value_name = "PID", group = "where")]
    pid: Option<u32>,
    /// Prints one JSON object an op instead of text.
    #[arg(long)]
    json: bool,
}

impl Ledger {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let (session, recorders) = self.recorders()?;
        let mut entries: Vec<LedgerEntry> = recorders.iter().flat_map(Recorder::records).collect();
        entries.sort_by_key(LedgerEntry::ended_ns);
        if let Some(count) = self.last {
            let from = entries.len().saturating_sub(count);
            return entries[from..].iter().try_for_each(|entry| self.tell(entry));
        }
        let record = self.record.unwrap_or_default();
        // A client of two engines may have two: each engine numbers its own.
        entries.retain(|entry| entry.record == record);
        if !entries.is_empty() {
            return entries.iter().try_for_each(|entry| self.tell(entry));
        }
        if let Some(session) = session
            && let Some(why) = open_op(&session, record)?
        {
            return if self.json { say_json(&open_json(&why)) } else { say(&format!("{why}\n")) };
        }
        Err(Failure::Failed(unknown(record, &recorders, self.pid.is_some())))
    }

    /// The recorders to look at, and the session to ask, if the engine lives.
    fn recorders(&self) -> Result<(Option<Session>, Vec<Recorder>), Failure> {
        if let Some(pid) = self.pid {
            return Ok((None, recorders_of(pid)?));
        }
        let path = self.socket.clone().unwrap_or_default();
        let session =
            Session::connect_unrecorded(path).map_err(|error| Failure::of("cannot ask", &error))?;
        let found = session
            .recorders()
            .map_err(|error| Failure::of("cannot have the flight recorders", &error))?;
        Ok((Some(session), found))
    }

    fn tell(&self, entry: &LedgerEntry) -> Result<(), Failure> {
        if self.json { say_json(&ended_json(entry)) } else { say(&to_text(entry, now_ns())) }
    }
}

/// The flight recorders of a process, at least one.
pub(super) fn recorders_of(pid: u32) -> Result<Vec<Recorder>, Failure> {
    let found =
        Recorder::of_process(pid).map_err(|error| Failure::of("no flight recorder", &error))?;
    if found.is_empty() {
        return Err(Failure::Failed(format!("process {pid} holds no flight recorder")));
    }
    Ok(found)
}

/// Asks the engine about an op that is not over; `None` if there is none such.
fn open_op(session: &Session, record: u64) -> Result<Option<Why>, Failure> {
    match session.why(OpRef::record_anywhere(record)) {
        Ok(why) => Ok(Some(why)),
        Err(error) => match error.refusal() {
            Some(refusal) if refusal.errno == errno::ENOENT => Ok(None),
            _ => Err(Failure::of("cannot ask about the op", &error)),
        },
    }
}

fn unknown(record: u64, recorders: &[Recorder], dead: bool) -> String {
    let held: u32 = recorders.iter().map(Recorder::capacity).sum();
    let looked = format!("{} flight recorders of {held} ops in all", recorders.len());
    let open = if dead { "it was still open when the engine died, " } else { "" };
    format!(
        "record {record:#x} is in none of {looked}: {open}it has been overwritten by later ones, \
         it was a NOP, or it never was"
    )
}

/// An op's story, behind how long ago it ended.
fn to_text(entry: &LedgerEntry, now_ns: u64) -> String {
    let ago = now_ns.saturating_sub(entry.ended_ns()) as f64 / 1e9;
    format!("{ago:.3} s ago, session {}: {entry}\n", entry.session)
}

pub(super) fn ended_json(entry: &LedgerEntry) -> Value {
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let carried = entry.res >= 0;
    json!({
        "record": entry.record,
        "session": entry.session,
        "ring": entry.ring,
        "user_data": entry.user_data,
        "state": "over",
        "opcode": entry.opcode.map(|opcode| format!("{opcode:?}")),
        "class": entry.class.map(class_name),
        "bytes": entry.bytes,
        "taken_ns": entry.taken_ns,
        "queued_ns": entry.queued.map(nanos),
        "service_ns": entry.service().map(nanos),
        "total_ns": nanos(entry.total),
        "defers": entry.defers,
        "wait": wait_words(entry.wait),
        "posts": entry.posts,
        "retries": entry.retries,
        "rail": entry.rail,
        "fabric": carried.then_some(entry.detail >> 8),
        "res": entry.res,
        "flags": entry.flags,
        "detail": entry.failed_by().map(|detail: Detail| detail.to_string()),
        "flushed": entry.flushed(),
        "cause": entry.cause,
        "story": entry.to_string(),
    })
}

pub(super) fn read_record(text: &str) -> Result<u64, String> {
    let read = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match read {
        Ok(0) | Err(_) => Err("not a record: a number above 0, or one with 0x".to_string()),
        Ok(record) => Ok(record),
    }
}

/// The clock of recorders, which all processes of a host share.
pub(super) fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        let part = |value: i64| u64::try_from(value).unwrap_or(0);
        part(now.tv_sec()) * 1_000_000_000 + part(now.tv_nsec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_in_both_ways() {
        assert_eq!(read_record("4294967301"), Ok(0x1_0000_0005));
        assert_eq!(read_record("0x100000005"), Ok(0x1_0000_0005));
        for bad in ["", "0", "0x", "-1", "five", "0x1g"] {
            assert!(read_record(bad).is_err(), "{bad}");
        }
    }
}
