//! An op's story in a line: what it was, what it waited for, how it was posted, how it ended, and
//! what began that.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use nix::errno::Errno;

use super::records::LedgerEntry;
use crate::abi::{self, Opcode};

pub(super) fn tell(entry: &LedgerEntry, f: &mut Formatter<'_>) -> fmt::Result {
    let seconds = Duration::from_nanos(entry.taken_ns).as_secs_f64();
    write!(f, "record {:#x}: {}", entry.record, What(entry))?;
    write!(f, ", taken at {seconds:.6} s; ")?;
    waiting(entry, f)?;
    posting(entry, f)?;
    ending(entry, f)
}

/// What an op was to do.
struct What<'e>(&'e LedgerEntry);

impl Display for What<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let LedgerEntry { opcode, class, bytes, user_data, ring, .. } = self.0;
        match opcode {
            Some(Opcode::Arm) => write!(f, "ARM of {bytes} notifications")?,
            Some(op @ (Opcode::Flush | Opcode::Cancel | Opcode::Nop | Opcode::Join)) => {
                write!(f, "{}", name(*op))?
            }
            Some(op) => write!(f, "{} of {bytes} bytes", name(*op))?,
            None => write!(f, "an op of an unknown kind")?,
        }
        if let Some(class) = class {
            write!(f, ", class {}", format!("{class:?}").to_lowercase())?;
        }
        write!(f, ", user_data {user_data:#x}, ring {ring}")
    }
}

/// An opcode as the ABI spells it.
pub(super) fn name(opcode: Opcode) -> &'static str {
    match opcode {
        Opcode::Nop => "NOP",
        Opcode::Write => "WRITE",
        Opcode::Read => "READ",
        Opcode::Writev => "WRITEV",
        Opcode::Readv => "READV",
        Opcode::FetchAdd => "FETCH_ADD",
        Opcode::CmpSwap => "CMP_SWAP",
        Opcode::Join => "JOIN",
        Opcode::Cancel => "CANCEL",
        Opcode::Flush => "FLUSH",
        Opcode::Arm => "ARM",
        Opcode::Run => "RUN",
    }
}

/// What an op waits for, in words; `None` for a number that this version does not know.
#[must_use]
pub fn wait_words(wait: u16) -> Option<&'static str> {
    Some(match wait {
        abi::WAIT_NONE => "nothing",
        abi::WAIT_LANE => "ops before it in its lane",
        abi::WAIT_CLASS => "a more urgent class",
        abi::WAIT_WINDOW_OPS => "the window's ops",
        abi::WAIT_WINDOW_BYTES => "the window's bytes",
        abi::WAIT_FABRIC => "the fabric",
        abi::WAIT_EARLIER => "earlier ops on its region",
        abi::WAIT_NOTIFY => "a notification",
        abi::WAIT_RAIL => "its rail",
        abi::WAIT_CREDIT => "its peer's credit for a notification",
        abi::WAIT_WINDOW_WRS => "room in the window, in work requests",
        abi::WAIT_PEER => "room in the window towards its peer",
        abi::WAIT_TURN => "its turn beside other users, sessions or peers",
        abi::WAIT_CAP => "the cap on its uid's bytes of class high",
        abi::WAIT_BELL => "its ring's bell, which was not rung since it was pushed",
        abi::WAIT_INTAKE => "SQEs before it in its ring",
        abi::WAIT_CQ => "room in the CQ: its client has to take completions",
        abi::WAIT_RECORDS => "records, of which its session has its part",
        abi::WAIT_QUOTA_OPS => "its uid's quota of ops in flight",
        abi::WAIT_QUOTA_BYTES => "its uid's quota of bytes in flight",
        abi::WAIT_PAGES => "room for its page list, of which its session has its part",
        abi::WAIT_SEARCH => "a CANCEL before it, which still looks for its op",
        abi::WAIT_CLOSED => "nothing that will come: no more is taken from its ring",
        abi::WAIT_REVOKED => "revocations that are yet to be told",
        abi::WAIT_PREDECESSOR => "ops that it comes after",
        abi::WAIT_SURVIVOR => "the op that it was folded into",
        abi::WAIT_EDGES => "edges, of which its session has its part",
        abi::WAIT_QUOTA_EDGES => "its uid's quota of edges",
        abi::WAIT_DISTANCE => "an op 32767 or more SQEs before it, which is not over",
        _ => return None,
    })
}

fn waiting(entry: &LedgerEntry, f: &mut Formatter<'_>) -> fmt::Result {
    let waited = match entry.opcode {
        // They are not posted: all they do is wait.
        Some(Opcode::Arm) => return write!(f, "waited {} for notifications", Short(entry.total)),
        Some(Opcode::Flush) => return write!(f, "waited {} for earlier ops", Short(entry.total)),
        Some(Opcode::Cancel) => return write!(f, "looked for its op for {}", Short(entry.total)),
        Some(Opcode::Join) => return write!(f, "waited {} for others", Short(entry.total)),
        _ => entry.queued.unwrap_or(entry.total),
    };
    write!(f, "waited {}", Short(waited))?;
    if entry.defers > 0 {
        let what = wait_words(entry.wait).unwrap_or("something unknown");
        return write!(
            f,
            ", because it found no credit {}, last for want of {what}",
            Times(entry.defers)
        );
    }
    if entry.wait != abi::WAIT_NONE {
        let what = wait_words(entry.wait).unwrap_or("something unknown");
        write!(f, ", because of {what}")?;
    }
    Ok(())
}

/// Why it waited, and how long it was served.
pub(super) fn answer(entry: &LedgerEntry, f: &mut Formatter<'_>) -> fmt::Result {
    waiting(entry, f)?;
    match entry.service() {
        Some(served) => write!(f, "; served in {}", Short(served)),
        None if passes(entry) => Ok(()),
        None if carried(entry) => write!(f, "; carried by another op"),
        None => write!(f, "; never served"),
    }?;
    if entry.res < 0 {
        write!(f, "; failed: {}", Errno::from_raw(entry.res.saturating_neg()))?;
    }
    if entry.flags & abi::CQE_DEP_FAILED != 0 {
        write!(f, ", since an op that it waited for failed")?;
    }
    Ok(())
}

/// True for an op that is never posted.
fn passes(entry: &LedgerEntry) -> bool {
    matches!(entry.opcode, Some(Opcode::Arm | Opcode::Flush | Opcode::Cancel | Opcode::Join))
}

/// True for an op that ended along with another one, into which it was folded, or which replaced
/// it.
fn carried(entry: &LedgerEntry) -> bool {
    entry.flags & abi::CQE_COALESCED != 0
}

fn posting(entry: &LedgerEntry, f: &mut Formatter<'_>) -> fmt::Result {
    if passes(entry) {
        return Ok(());
    }
    match entry.posts {
        0 if carried(entry) => return write!(f, "; carried by another op"),
        0 => return write!(f, "; never posted"),
        1 => write!(f, "; posted as 1 request")?,
        posts => write!(f, "; posted as {posts} requests")?,
    }
    match entry.rail {
        0 => write!(f, " on this host")?,
        rail => write!(f, " on rail {rail}")?,
    }
    if entry.retries > 0 {
        write!(f, ", repeated {} when its queue pair had failed", Times(entry.retries))?;
    }
    Ok(())
}

fn ending(entry: &LedgerEntry, f: &mut Formatter<'_>) -> fmt::Result {
    let LedgerEntry { res, flags, cause, .. } = *entry;
    if res >= 0 {
        return match entry.opcode {
            Some(Opcode::Arm) => write!(f, "; done: {res} notifications"),
            Some(Opcode::Flush | Opcode::Cancel | Opcode::Join) => write!(f, "; done"),
            _ if carried(entry) => write!(f, "; done with it: {res} bytes"),
            _ => {
                let took = Short(entry.service().unwrap_or_default());
                write!(f, "; done after {took} more: {res} bytes")
            }
        };
    }
    write!(f, "; failed")?;
    if let Some(took) = entry.service() {
        write!(f, " after {} more", Short(took))?;
    }
    let errno = res.saturating_neg();
    write!(f, ": {}", Errno::from_raw(errno))?;
    match entry.failed_by() {
        Some(abi::Detail::None) => {}
        Some(detail) => write!(f, " ({detail})")?,
        None => write!(f, " (detail {})", entry.detail)?,
    }
    if flags & abi::CQE_DEP_FAILED != 0 {
        write!(f, ", since an op that it waited for failed")?;
    }
    if flags & abi::CQE_RETRYABLE != 0 {
        write!(f, ", may be repeated")?;
    }
    if flags & abi::CQE_MAYBE_DONE != 0 {
        write!(f, ", may have been done")?;
    }
    if entry.flushed() {
        write!(f, "; cause: none of its own, it was flushed with its queue pair")
    } else {
        write!(f, "; cause: {}", Errno::from_raw(cause))
    }
}

/// A time in the unit that suits it.
pub(super) struct Short(pub(super) Duration);

impl Display for Short {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        match self.0.as_nanos() {
            nanos @ 0..1_000 => write!(f, "{nanos} ns"),
            1_000..1_000_000 => write!(f, "{:.1} us", seconds * 1e6),
            1_000_000..1_000_000_000 => write!(f, "{:.1} ms", seconds * 1e3),
            _ => write!(f, "{seconds:.2} s"),
        }
    }
}

/// How often.
pub(super) struct Times(pub(super) u32);

impl Display for Times {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => write!(f, "once"),
            2 => write!(f, "twice"),
            times => write!(f, "{times} times"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{
        CQE_COALESCED, CQE_DEP_FAILED, CQE_FLUSHED, CQE_MAYBE_DONE, CQE_RETRYABLE, Class, Detail,
        WAIT_PREDECESSOR, WAIT_RAIL, WAIT_SURVIVOR, WAIT_WINDOW_BYTES,
    };

    fn entry() -> LedgerEntry {
        LedgerEntry {
            record: 0x1_0000_0005,
            session: 0,
            ring: 3,
            user_data: 0x2a,
            opcode: Some(Opcode::Write),
            class: Some(Class::High),
            taken_ns: 12_345_678_900,
            queued: Some(Duration::from_nanos(1_500)),
            total: Duration::from_micros(4_000),
            posts: 1,
            retries: 0,
            defers: 0,
            wait: 0,
            rail: 0,
            bytes: 4096,
            res: 4096,
            flags: 0,
            detail: 1 << 8,
            cause: 0,
        }
    }

    #[test]
    fn a_success_is_told() {
        let told = "record 0x100000005: WRITE of 4096 bytes, class high, user_data 0x2a, ring 3, \
                    taken at 12.345679 s; waited 1.5 us; posted as 1 request on this host; done \
                    after 4.0 ms more: 4096 bytes";
        assert_eq!(entry().to_string(), told);
    }

    #[test]
    fn waits_posts_and_repeats_are_told() {
        let entry = LedgerEntry {
            defers: 3,
            wait: WAIT_WINDOW_BYTES,
            posts: 2,
            retries: 1,
            rail: 4,
            ..entry()
        };
        let told = "waited 1.5 us, because it found no credit 3 times, last for want of the \
                    window's bytes; posted as 2 requests on rail 4, repeated once when its queue \
                    pair had failed;";
        assert!(entry.to_string().contains(told), "{entry}");
    }

    #[test]
    fn a_failure_is_told_with_its_cause() {
        let failed = LedgerEntry {
            res: -5,
            flags: CQE_FLUSHED | CQE_RETRYABLE,
            detail: Detail::Wire as u16,
            ..entry()
        };
        let told = "failed after 4.0 ms more: EIO: I/O error (wire), may be repeated; cause: none \
                    of its own, it was flushed with its queue pair";
        assert!(failed.to_string().ends_with(told), "{failed}");
        let own = LedgerEntry { cause: 13, flags: CQE_FLUSHED | CQE_MAYBE_DONE, ..failed };
        let told = ", may have been done; cause: EACCES: Permission denied";
        assert!(own.to_string().ends_with(told), "{own}");
    }

    #[test]
    fn what_failed_with_a_predecessor_names_the_first_cause() {
        let failed = LedgerEntry {
            queued: None,
            posts: 0,
            res: -125,
            flags: CQE_DEP_FAILED | CQE_RETRYABLE,
            detail: Detail::Deadline as u16,
            cause: 62,
            wait: WAIT_PREDECESSOR,
            ..entry()
        };
        let told = "waited 4.0 ms, because of ops that it comes after; never posted; failed: \
                    ECANCELED: Operation canceled (deadline), since an op that it waited for \
                    failed, may be repeated; cause: ETIME: Timer expired";
        assert!(failed.to_string().ends_with(told), "{failed}");
        let told = "; never served; failed: ECANCELED: Operation canceled, since an op that it \
                    waited for failed";
        assert!(failed.summary().ends_with(told), "{}", failed.summary());
        let join = LedgerEntry { opcode: Some(Opcode::Join), bytes: 0, ..failed };
        assert!(join.to_string().contains(": JOIN, class high"), "{join}");
        let told = "waited 4.0 ms for others; failed: ECANCELED: Operation canceled (deadline), ";
        assert!(join.to_string().contains(told), "{join}");
        let done = LedgerEntry { res: 0, flags: 0, detail: 0, cause: 0, ..join };
        assert!(done.to_string().ends_with("waited 4.0 ms for others; done"), "{done}");
        assert_eq!(done.summary(), "waited 4.0 ms for others");
    }

    #[test]
    fn what_was_folded_is_told() {
        let folded = LedgerEntry {
            queued: None,
            posts: 0,
            flags: CQE_COALESCED,
            wait: WAIT_SURVIVOR,
            ..entry()
        };
        let told = "waited 4.0 ms, because of the op that it was folded into; carried by another \
                    op; done with it: 4096 bytes";
        assert!(folded.to_string().ends_with(told), "{folded}");
        assert!(folded.summary().ends_with("folded into; carried by another op"));
    }

    #[test]
    fn what_was_never_posted_is_told() {
        let late = LedgerEntry {
            queued: None,
            posts: 0,
            defers: 1,
            wait: WAIT_RAIL,
            res: -62,
            detail: Detail::Deadline as u16,
            cause: 62,
            ..entry()
        };
        let told = "waited 4.0 ms, because it found no credit once, last for want of its rail; \
                    never posted; failed: ETIME: Timer expired (deadline); cause: ETIME: Timer \
                    expired";
        assert!(late.to_string().ends_with(told), "{late}");
    }
}
