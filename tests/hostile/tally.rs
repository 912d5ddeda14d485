//! What an attack tried and what it was told, and the one line that says so.

use std::collections::BTreeMap;
use std::io::Write as _;

use verbring::abi::{Cqe, Detail};

use super::raw::Answer;

/// Counts of one attack.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Hostile acts: entries, messages, descriptors, whatever the attack is made of.
    pub(crate) attempts: u64,
    /// Of those, what was harmless and was done.
    pub(crate) granted: u64,
    /// What was refused, by errno and detail.
    pub(crate) refused: BTreeMap<(i32, u16), u64>,
    /// Rings that the engine gave up.
    pub(crate) faulted: u64,
    /// Sessions that the engine ended.
    pub(crate) ended: u64,
}

impl Tally {
    pub(crate) fn refuse(&mut self, errno: i32, detail: u16) {
        *self.refused.entry((errno, detail)).or_default() += 1;
    }

    /// Counts an answer to a control message, and hands it on.
    pub(crate) fn answer(&mut self, answer: Answer) -> Answer {
        self.attempts += 1;
        match &answer {
            Answer::Done(..) => self.granted += 1,
            Answer::Refused { errno, detail, .. } => {
                self.refuse(*errno, u16::try_from(*detail).unwrap());
            }
            Answer::Over => self.ended += 1,
        }
        answer
    }

    /// Counts a CQE.
    pub(crate) fn cqe(&mut self, cqe: &Cqe) {
        if cqe.res < 0 {
            self.refuse(-cqe.res, cqe.detail);
        } else {
            self.granted += 1;
        }
    }

    /// Refusals of this kind so far.
    pub(crate) fn refusals(&self, errno: i32, detail: Detail) -> u64 {
        self.refused.get(&(errno, detail as u16)).copied().unwrap_or(0)
    }

    /// Prints the line of an attack, past the test harness, which would keep it to itself.
    pub(crate) fn print(&self, name: &str, neighbour_ops: u64) {
        let mut outcomes: Vec<String> = Vec::new();
        for (&(errno, detail), count) in &self.refused {
            let errno = nix::errno::Errno::from_raw(errno);
            let detail = Detail::from_number(detail).unwrap();
            outcomes.push(match detail {
                Detail::None => format!("{count} {errno:?}"),
                detail => format!("{count} {errno:?}/{detail:?}"),
            });
        }
        for (count, what) in [
            (self.granted, "harmless"),
            (self.faulted, "rings faulted"),
            (self.ended, "sessions ended"),
        ] {
            if count > 0 {
                outcomes.push(format!("{count} {what}"));
            }
        }
        let line = format!(
            "hostile: {name}: {} attempts; {}; neighbour {neighbour_ops} ops verified, 0 errors\n",
            self.attempts,
            outcomes.join(", "),
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
}
