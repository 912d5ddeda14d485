//! How calls of the client fail: one type per kind of call.
//!
//! A refusal carries the errno, the detail that names the field or the rule, and the engine's own
//! words. Numbers that this version does not know are kept as they came.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use super::region::Lease;
use crate::abi::{CQE_DEP_FAILED, CQE_MAYBE_DONE, CQE_RETRYABLE, Cqe, Detail, Kind};
use crate::ring::BadSegment;
use crate::shm::ShmError;

/// A request that the engine refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{request:?} refused: {} ({detail}): {text}", Errno::from_raw(*errno))]
#[non_exhaustive]
pub struct Refusal {
    /// What was asked.
    pub request: Kind,
    /// The errno, positive.
    pub errno: i32,
    /// The field or the rule it is about; [`Detail::None`] also for an unknown number.
    pub detail: Detail,
    /// The detail as it came.
    pub detail_number: u32,
    /// What the engine says about it.
    pub text: String,
}

/// A request on the control socket that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The engine refused; the session goes on.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine ended this session.
    #[error("the session is over")]
    SessionOver,
    /// The engine's process is gone.
    #[error("the engine is gone")]
    EngineGone,
    /// The engine sent what it must not; the session is given up.
    #[error("the engine broke the protocol: {what}")]
    Protocol {
        /// What was wrong.
        what: &'static str,
    },
    /// A name that no message can carry.
    #[error("a name has 1 to 64 bytes, none of them zero")]
    Name,
    /// A URL that no message can carry.
    #[error("a URL has 1 to 128 bytes, none of them zero")]
    Url,
    /// A system call failed.
    #[error("{call} failed")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// Shared memory could not be mapped, or is not what it must be.
    #[error("shared memory: {0}")]
    Memory(#[from] ShmError),
    /// The engine made a ring segment that cannot be.
    #[error("ring segment: {0}")]
    Segment(#[from] BadSegment),
}

impl ControlError {
    /// Returns the engine's refusal, if that is what happened.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// A session that could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there, or we may not.
    #[error("no engine at {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The engine did not take us.
    #[error("the engine did not open a session: {0}")]
    Hello(#[from] ControlError),
}

/// A ring that can go no further. CQEs that came before are handed out first.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The engine's process is gone; verdicts are final.
    #[error("the engine is gone")]
    EngineGone,
    /// The engine ended this session.
    #[error("the session is over")]
    SessionOver,
    /// The engine found this ring broken and left it.
    #[error("the engine faulted the ring, reason {reason}")]
    Faulted {
        /// An `abi::FAULT_*` number.
        reason: u16,
    },
    /// The engine wrote into the ring what cannot be.
    #[error("the engine broke the ring: {what}")]
    Corrupt {
        /// What was wrong.
        what: &'static str,
    },
    /// Waiting failed.
    #[error("{call} failed")]
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// A range that could not be lent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LendError {
    /// The range runs backwards or ends beyond the region.
    #[error("{}..{} is not a range of a region of {bytes} bytes", range.start, range.end)]
    Outside {
        /// What was asked for.
        range: Range<u64>,
        /// Bytes of the region.
        bytes: u64,
    },
    /// Part of the range is lent already.
    #[error("{}..{} overlaps {}..{}, which is lent", range.start, range.end, lent.start, lent.end)]
    Lent {
        /// What was asked for.
        range: Range<u64>,
        /// A lent range in its way.
        lent: Range<u64>,
    },
}

/// Why an op was not pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PushReason {
    /// The SQ is full, or as many ops as the ring can carry are in flight: reap, then push again.
    #[error("the ring is full")]
    Full,
    /// The op names a region, an import or an op of another session or ring.
    #[error("the op belongs to another session or ring")]
    Foreign,
    /// It is to wait for an op of another ring: edges lie within one.
    #[error("it is to wait for an op of ring {ring}, but edges do not lead to other rings")]
    OtherRing {
        /// The ring that was named.
        ring: u32,
    },
    /// It is to wait for an op that this ring has not seen: a ticket of an earlier ring, perhaps.
    #[error("it is to wait for op {number} of its ring, which was not pushed yet")]
    Unpushed {
        /// The number that was named.
        number: u64,
    },
    /// It is to wait for an op further back than an edge can say.
    #[error("it is to wait for the op {back} before it, but edges reach back 32767 at most")]
    TooFar {
        /// How many SQEs back.
        back: u64,
    },
    /// It is to wait for so many that the JOINs before it do not fit into the SQ with it: join
    /// some of them first, or make a larger ring.
    #[error("with the JOINs before it, it takes {needs} SQ slots, and its ring has {entries}")]
    TooMany {
        /// SQ slots that it takes.
        needs: u64,
        /// SQ slots that there are.
        entries: u32,
    },
}

/// An op that was not pushed, handed back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PushError<O> {
    /// The op, unchanged.
    pub op: O,
    /// Why.
    pub reason: PushReason,
}

impl<O> fmt::Debug for PushError<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<O> fmt::Display for PushError<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<O> std::error::Error for PushError<O> {}

/// Why an op could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnfitReason {
    /// An atomic's old value needs exactly one aligned u64.
    #[error("an atomic takes a lease of 8 bytes at a multiple of 8")]
    Word,
    /// No page, or too many.
    #[error("{count} pages, but an op moves 1 to 1024")]
    PageCount {
        /// Pages given.
        count: u64,
    },
    /// The page list ends beyond the lease.
    #[error("the page list does not lie in the lease")]
    List,
    /// A page ends beyond the lease.
    #[error("page {index} does not lie in the lease")]
    Page {
        /// Which one, from 0.
        index: usize,
    },
    /// As many far places are needed as there are pages.
    #[error("{pages} pages, but {remotes} places for them")]
    Remotes {
        /// Pages given.
        pages: usize,
        /// Far places given.
        remotes: usize,
    },
    /// All pages and their list lie in one region.
    #[error("page {index} lies in another region than the list")]
    PageRegion {
        /// Which one, from 0.
        index: usize,
    },
    /// All pages are of one length.
    #[error("page {index} is not as long as the first")]
    PageBytes {
        /// Which one, from 0.
        index: usize,
    },
    /// A page overlaps the page list.
    #[error("page {index} overlaps the page list")]
    PageInList {
        /// Which one, from 0.
        index: usize,
    },
}

/// An op that could not be built: hands its leases back.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct Unfit {
    /// The lease, or the list's, untouched.
    pub lease: Lease,
    /// The pages' leases, untouched, if each had its own.
    pub pages: Vec<Lease>,
    /// Why.
    pub reason: UnfitReason,
}

/// An op that was taken, or refused at intake, and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpError {
    /// The errno, positive.
    pub errno: i32,
    /// The field or the rule it is about; [`Detail::None`] also for an unknown number.
    pub detail: Detail,
    /// The detail as it came.
    pub detail_number: u16,
    /// The op certainly had no effect, or repeating it is harmless.
    pub retryable: bool,
    /// Whether the op took effect is not known.
    pub maybe_done: bool,
    /// The op did not run, since one that it waited for failed; `detail` is that of the first.
    pub dep_failed: bool,
}

impl OpError {
    /// Reads the failure that a CQE reports; `None` for a success.
    #[must_use]
    pub fn from_cqe(cqe: &Cqe) -> Option<Self> {
        (cqe.res < 0).then(|| Self {
            errno: cqe.res.saturating_neg(),
            detail: Detail::from_number(cqe.detail).unwrap_or(Detail::None),
            detail_number: cqe.detail,
            retryable: cqe.flags & CQE_RETRYABLE != 0,
            maybe_done: cqe.flags & CQE_MAYBE_DONE != 0,
            dep_failed: cqe.flags & CQE_DEP_FAILED != 0,
        })
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", Errno::from_raw(self.errno), self.detail)?;
        if self.dep_failed {
            f.write_str(", since an op before it failed")?;
        }
        if self.retryable {
            f.write_str(", may be tried again")?;
        }
        if self.maybe_done {
            f.write_str(", may have been done")?;
        }
        Ok(())
    }
}

impl std::error::Error for OpError {}
