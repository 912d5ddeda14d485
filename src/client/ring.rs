//! The ring for typed ops: leases go in with an op and come back with its completion.
//!
//! Every op in flight has a place in a slab that is as large as the ring can carry, so that
//! pushing and reaping allocate nothing. An entry's `user_data` is its place and the low half of
//! its number; a CQE whose two do not agree was not written by an engine that keeps the rules.
//!
//! **Invariants**: a lease leaves the slab with the final CQE of its op, when the ring has been
//! released, or when the engine is dead; never before.

use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use slab::Slab;

use super::Session;
use super::error::{ControlError, OpError, PushError, PushReason, RingError};
use super::ops::{Held, Home, Op};
use super::raw::RawRing;
use super::region::Lease;
use crate::abi::{self, Cqe};
use crate::ring::Verdict;

/// A ring for typed ops, for one thread at a time.
///
/// Dropping a ring while ops are in flight leaves their ranges lent for as long as the region
/// lives: nothing would say when they are free again. [`Ring::release`] waits for the ops and
/// frees the ranges; so does dropping the ring once the engine is gone.
///
/// # Examples
/// ```
/// use verbring::{Engine, Rights, RingOptions, Write};
///
/// let engine = Engine::builder().spawn()?;
/// let session = engine.connect()?; // or Session::connect(path), for one in another process
/// let region = session.alloc(1 << 20)?;
/// let secret = region.export("mine", Rights::ALL)?;
/// let import = session.import("mine", None, &secret)?;
///
/// let mut ring = session.ring(RingOptions::new(64, 128))?;
/// let mut lease = region.lend(0..5)?;
/// lease.write(0, b"hello");
/// let ticket = ring.push(Write::new(lease, import.at(4096)))?;
/// ring.submit_and_wait(1, None)?;
/// let completion = ring.reap()?.expect("one is ready");
/// assert_eq!(completion.ticket, ticket);
/// assert_eq!(completion.result?, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Ring {
    pub(super) raw: RawRing,
    in_flight: Slab<InFlight>,
    /// CQEs that were popped to reach a verdict, or to see which are a caller's; they are reaped
    /// first.
    pub(super) popped: VecDeque<Cqe>,
    /// Ops were pushed that no caller knows of: see [`HELPER`].
    pub(super) helped: bool,
    released: bool,
    /// One thread at a time may hold a reference: room for state behind `&self`.
    not_sync: PhantomData<Cell<()>>,
}

#[derive(Debug)]
struct InFlight {
    number: u64,
    held: Held,
}

/// One op of one ring: what [`Ring::push`] returns, and its completions carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket {
    ring: u32,
    number: u64,
}

impl Ticket {
    /// Returns the ring's number.
    #[must_use]
    pub fn ring(self) -> u32 {
        self.ring
    }

    /// Returns the op's number in its ring, 0 for the first.
    #[must_use]
    pub fn number(self) -> u64 {
        self.number
    }
}

/// The end of an op, or one notification of an [`Arm`](super::Arm).
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The op.
    pub ticket: Ticket,
    /// The op's ledger record; 0 if the engine refused it at intake.
    pub record: u64,
    /// Bytes moved, or why not. For a notification: how many it stands for.
    pub result: Result<u32, OpError>,
    /// The `abi::CQE_*` bits as they came.
    pub flags: u16,
    /// What carried a success, an `abi::FABRIC_*` number; 0 otherwise.
    pub fabric: u8,
    /// Which of the engine's rails did; 0 for this host's own, and otherwise.
    pub rail: u8,
    /// From intake to first post, in steps of 16 ns; at most 68 s. Zero for a notification.
    pub queued: Duration,
    /// From first post to completion, likewise.
    pub service: Duration,
    /// The op's lease, free to be used again: for [`Writev::scattered`](super::Writev::scattered)
    /// and its like, the list's. With `more` it is still to come.
    pub lease: Option<Lease>,
    /// The leases of the pages, if the op was built from scattered ones.
    pub pages: Vec<Lease>,
    /// What a peer had to say, if this is a notification.
    pub notification: Option<Notification>,
    /// True if the same op will have further completions.
    pub more: bool,
}

impl Completion {
    /// True if the op was folded into another one of the same effect, or replaced by a later value:
    /// then it ended as that one did, and `record` is that one's.
    #[must_use]
    pub fn coalesced(&self) -> bool {
        self.flags & abi::CQE_COALESCED != 0
    }
}

/// Word from a peer that has placed bytes in an exported region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The peer's 32 bits; of several merged notifications, the last one's.
    pub immediate: u32,
    /// How many notifications this stands for.
    pub count: u32,
}

/// What became of an op whose engine died before its completion.
#[derive(Debug)]
#[non_exhaustive]
pub struct Lost {
    /// The op.
    pub ticket: Ticket,
    /// Whether it was done.
    pub verdict: Verdict,
    /// Its lease: no engine touches it any more.
    pub lease: Option<Lease>,
    /// The leases of its pages, likewise.
    pub pages: Vec<Lease>,
}

/// In place of a slab key: the op has no place, since its success will not be told.
const NO_PLACE: u32 = u32::MAX;
/// In place of a slab key: a JOIN that was put before an op with many edges. Whoever pushed that op
/// hears of a failure by it, and nothing of the JOIN.
const HELPER: u32 = u32::MAX - 1;

impl Ring {
    pub(super) fn new(raw: RawRing) -> Self {
        // An op is in flight from its SQ slot until its CQ slot is popped.
        let most = raw.sq_entries() + raw.cq_entries();
        Self {
            in_flight: Slab::with_capacity(most as usize),
            raw,
            popped: VecDeque::new(),
            helped: false,
            released: false,
            not_sync: PhantomData,
        }
    }

    /// Writes an op into the SQ. The engine sees it after [`Ring::submit`].
    ///
    /// An op that waits for more than two others (a [`Join`](super::Join): ten) brings JOINs along,
    /// which take SQ slots and numbers of their own, but have no completions here. All are pushed,
    /// or none.
    ///
    /// # Examples
    /// A graph: each op waits for those that it names, and for no others.
    /// ```
    /// # use verbring::{Engine, Read, Rights, RingOptions, Write};
    /// # let engine = Engine::builder().spawn()?;
    /// # let session = engine.connect()?;
    /// # let region = session.alloc(1 << 16)?;
    /// # let secret = region.export("graph", Rights::ALL)?;
    /// # let import = session.import("graph", None, &secret)?;
    /// # let mut ring = session.ring(RingOptions::default())?;
    /// let [head, body, check] = [0..64, 64..4096, 4096..4160].map(|range| region.lend(range));
    /// let head = ring.push(Write::new(head?, import.at(8192)))?;
    /// let body = ring.push(Write::new(body?, import.at(16384)))?;
    /// let check = ring.push(Read::new(check?, import.at(8192)).after(&head))?;
    /// let all = ring.join([head, body, check])?;
    /// # let _ = all;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`PushError`] hands the op back if there is no room, if it names a region, an import or
    /// an op of another session or ring, or if it is to wait for one that it cannot wait for.
    #[inline]
    pub fn push<O: Op>(&mut self, op: O) -> Result<Ticket, PushError<O>> {
        let at_home = match op.home() {
            Home::Any => true,
            Home::Session(uid) => uid == self.raw.session().uid(),
            Home::Ring(number) => number == self.raw.number(),
            Home::Nowhere => false,
        };
        if !at_home {
            return Err(PushError { op, reason: PushReason::Foreign });
        }
        if self.in_flight.len() == self.in_flight.capacity() || self.raw.room() == 0 {
            return Err(PushError { op, reason: PushReason::Full });
        }
        let (mut sqe, held) = if op.edges().is_empty() {
            let (sqe, held, _) = op.into_parts();
            (sqe, held)
        } else {
            if let Err(reason) = self.may_wait(op.edges(), op.edges_max()) {
                return Err(PushError { op, reason });
            }
            let (sqe, held, edges) = op.into_parts();
            (self.wired(sqe, edges), held)
        };
        let number = self.raw.pushed();
        let place = if sqe.flags & abi::SQE_SKIP_SUCCESS == 0 {
            let key = self.in_flight.insert(InFlight { number, held });
            u32::try_from(key).unwrap_or(NO_PLACE)
        } else {
            NO_PLACE
        };
        sqe.user_data = number << 32 | u64::from(place);
        let pushed = self.raw.push(sqe);
        debug_assert_eq!(pushed, Some(number));
        Ok(Ticket { ring: self.raw.number(), number })
    }

    /// Shows the engine what was pushed, and wakes it if it sleeps. Returns how many ops that
    /// were.
    #[inline]
    pub fn submit(&mut self) -> u64 {
        self.raw.submit()
    }

    /// Takes the next completion. `None` if there is none now.
    ///
    /// # Errors
    /// [`RingError`] if there is none and never will be. A client that only reaps and never waits
    /// learns of a dead engine within some thousand empty calls.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Completion>, RingError> {
        loop {
            let cqe = match self.popped.pop_front() {
                Some(cqe) => cqe,
                None => match self.raw.pop()? {
                    Some(cqe) => cqe,
                    None => return Ok(None),
                },
            };
            if !of_helper(&cqe) {
                return self.complete(&cqe).map(Some);
            }
        }
    }

    fn complete(&mut self, cqe: &Cqe) -> Result<Completion, RingError> {
        let more = cqe.flags & abi::CQE_MORE != 0;
        let [place, low_number] = halves(cqe.user_data);
        let (number, held) = if place == NO_PLACE {
            (self.number_ending_in(low_number), Held::default())
        } else {
            let key = place as usize;
            let op = self.in_flight.get(key).filter(|op| halves(op.number)[0] == low_number);
            let Some(op) = op else {
                return Err(RingError::Corrupt { what: "a CQE for no op in flight" });
            };
            let number = op.number;
            (number, if more { Held::default() } else { self.in_flight.remove(key).held })
        };
        let notified = cqe.flags & abi::CQE_NOTIFY != 0;
        let count = u32::try_from(cqe.res).unwrap_or(0);
        let error = OpError::from_cqe(cqe);
        let [rail, fabric] = if error.is_none() { cqe.detail.to_le_bytes() } else { [0, 0] };
        Ok(Completion {
            ticket: Ticket { ring: self.raw.number(), number },
            record: cqe.record,
            result: error.map_or(Ok(count), Err),
            flags: cqe.flags,
            fabric,
            rail,
            queued: if notified { Duration::ZERO } else { span(cqe.queued) },
            service: span(cqe.service),
            lease: held.lease,
            pages: held.pages,
            notification: notified.then_some(Notification { immediate: cqe.queued, count }),
            more,
        })
    }

    /// The latest number that ends in these 32 bits: fewer than 2^32 ops are in flight.
    fn number_ending_in(&self, low: u32) -> u64 {
        let pushed = self.raw.pushed();
        let behind = halves(pushed)[0].wrapping_sub(low);
        pushed.saturating_sub(u64::from(behind))
    }

    /// Waits until `want` completions are ready to be reaped, or the time is up: spins first, then
    /// sleeps. Returns how many there are; less than `want` if the time is up, or if there will be
    /// no more.
    ///
    /// `want` is at most the number of CQ slots; more is taken for that.
    ///
    /// # Errors
    /// [`RingError`] if none is ready and none will come.
    pub fn wait(&mut self, want: usize, within: Option<Duration>) -> Result<usize, RingError> {
        if self.helped {
            return self.wait_for_callers(want, within);
        }
        let kept = self.popped.len();
        if kept >= want && kept > 0 {
            return Ok(kept + self.raw.ready()? as usize);
        }
        let want = u32::try_from(want - kept).unwrap_or(u32::MAX);
        match self.raw.wait(want, within) {
            Ok(ready) => Ok(kept + ready as usize),
            Err(_) if kept > 0 => Ok(kept),
            Err(over) => Err(over),
        }
    }

    /// [`Ring::submit`], then [`Ring::wait`].
    ///
    /// # Errors
    /// As [`Ring::wait`].
    pub fn submit_and_wait(
        &mut self,
        want: usize,
        within: Option<Duration>,
    ) -> Result<usize, RingError> {
        self.submit();
        self.wait(want, within)
    }

    /// Prepares for sleep in a reactor: true if fewer than `want` completions are ready and
    /// [`Ring::as_fd`] will turn readable when there are, or when the ring is over; false if they
    /// are there already, so that nothing would come.
    ///
    /// # Errors
    /// [`RingError`] if none is ready and none will come.
    ///
    /// # Examples
    /// ```no_run
    /// # fn f(ring: &mut verbring::Ring) -> Result<(), Box<dyn std::error::Error>> {
    /// # fn readable(fd: std::os::fd::BorrowedFd<'_>) {}
    /// use std::os::fd::AsFd;
    /// loop {
    ///     while let Some(completion) = ring.reap()? {
    ///         println!("{:?}", completion.result);
    ///     }
    ///     if ring.arm(1)? {
    ///         readable(ring.as_fd()); // epoll, tokio's AsyncFd, or what you have
    ///     }
    /// }
    /// # }
    /// ```
    pub fn arm(&mut self, want: usize) -> Result<bool, RingError> {
        if self.helped {
            self.keep_completions();
        }
        let kept = self.popped.len();
        if kept > 0 && kept >= want {
            return Ok(false);
        }
        match self.raw.arm(u32::try_from(want - kept).unwrap_or(u32::MAX)) {
            Err(_) if kept > 0 => Ok(false),
            armed => armed,
        }
    }

    /// Judges an op whose completion has not come, once the engine is gone; `None` while it
    /// lives. For an op that has completed the answer means nothing.
    pub fn verdict(&mut self, op: &Ticket) -> Option<Verdict> {
        if !self.raw.session().engine_gone() || op.ring != self.raw.number() {
            return None;
        }
        self.keep_completions();
        Some(self.raw.verdict(op.number))
    }

    /// Judges all ops whose completions have not come, and hands out their leases, once the engine
    /// is gone; `None` while it lives. Completions that did come can still be reaped, before or
    /// after; their ops are not judged.
    ///
    /// Ops with `skip_success` are not among them: ask [`Ring::verdict`].
    pub fn verdicts(&mut self) -> Option<Vec<Lost>> {
        if !self.raw.session().engine_gone() {
            return None;
        }
        self.keep_completions();
        let mut told: Vec<u64> = self.popped.iter().map(|cqe| cqe.user_data).collect();
        told.sort_unstable();
        let open: Vec<usize> = self
            .in_flight
            .iter()
            .filter(|(key, op)| told.binary_search(&(op.number << 32 | *key as u64)).is_err())
            .map(|(key, _)| key)
            .collect();
        let mut lost = Vec::with_capacity(open.len());
        for key in open {
            let InFlight { number, held: Held { lease, pages } } = self.in_flight.remove(key);
            let ticket = Ticket { ring: self.raw.number(), number };
            lost.push(Lost { ticket, verdict: self.raw.verdict(number), lease, pages });
        }
        lost.sort_by_key(|lost| lost.ticket);
        Some(lost)
    }

    /// Pops what the engine left, for `reap` to find.
    pub(super) fn keep_completions(&mut self) {
        // A ring that ends in an error has no CQE behind it.
        while let Ok(Some(cqe)) = self.raw.pop() {
            if !of_helper(&cqe) {
                self.popped.push_back(cqe);
            }
        }
    }

    /// Returns the reason, an `abi::FAULT_*` number, if the engine has given this ring up.
    #[must_use]
    pub fn fault(&self) -> Option<u16> {
        self.raw.fault()
    }

    /// Returns how often a wait went to sleep in the kernel.
    #[must_use]
    pub fn sleeps(&self) -> u64 {
        self.raw.sleeps()
    }

    /// Returns how many ops are in flight: pushed, and their last completion not yet reaped. Ops
    /// with `skip_success` are not counted.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Returns the ring's number, as [`OpRef`](super::OpRef) names it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.raw.number()
    }

    /// Returns the session this ring belongs to.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.raw.session()
    }

    /// Gives the ring back. Its queued ops end; the call returns when nothing of this ring touches
    /// any memory any more, and all ranges lent to its ops are free. Completions that were not
    /// reaped are lost.
    ///
    /// # Errors
    /// [`ControlError`] if the engine refuses or is gone.
    pub fn release(mut self) -> Result<(), ControlError> {
        self.raw.session().release_object(abi::OBJECT_RING, self.raw.number())?;
        self.released = true;
        Ok(())
    }
}

impl AsFd for Ring {
    /// Returns the bell: readable after [`Ring::arm`] said that it will be.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight.is_empty() || self.released || self.raw.session().engine_gone() {
            return;
        }
        for op in self.in_flight.drain() {
            op.held.lease.into_iter().chain(op.held.pages).for_each(Lease::abandon);
        }
    }
}

/// True for the end of an op that no caller knows of.
#[inline]
fn of_helper(cqe: &Cqe) -> bool {
    halves(cqe.user_data)[0] == HELPER
}

/// What such an op is called.
pub(super) fn helper_name(number: u64) -> u64 {
    number << 32 | u64::from(HELPER)
}

/// The low and the high half.
fn halves(word: u64) -> [u32; 2] {
    zerocopy::transmute!(word)
}

/// A CQE's time.
fn span(units: u32) -> Duration {
    Duration::from_nanos(u64::from(units) * abi::CQE_TIME_UNIT_NS)
}
