//! The thin path: whole entries in, whole entries out, and sleep. For bindings and benches, and
//! what [`Ring`](super::Ring) is built on.
//!
//! **Invariants**: CQ slots are given back as soon as their CQEs were copied out, so that a client
//! that stops popping half-way holds nothing back. Every wait also watches the engine's pidfd and
//! the control socket, and hands out CQEs that came before the end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::Session;
use super::error::{ControlError, RingError};
use super::wire::{self, End};
use crate::abi::{self, Cqe, Sqe};
use crate::control::fds;
use crate::ring::{ClientEnd, Fault, Mapped, Memory, Verdict, Word};
use crate::sync::Ordering;

/// How large a ring is, and how long it spins before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// SQ slots: a power of two, 2 to 32,768.
    pub sq_entries: u32,
    /// CQ slots, which is also the most ops in flight: a power of two, 2 to 32,768.
    pub cq_entries: u32,
    /// How long a wait looks for completions before it sleeps in the kernel.
    pub spin: Duration,
}

impl Default for RingOptions {
    /// 64 SQ slots, 128 CQ slots, 20 microseconds.
    fn default() -> Self {
        Self { sq_entries: 64, cq_entries: 128, spin: Duration::from_micros(20) }
    }
}

impl RingOptions {
    /// Sets both entry counts; the rest is the default.
    #[must_use]
    pub fn new(sq_entries: u32, cq_entries: u32) -> Self {
        Self { sq_entries, cq_entries, ..Self::default() }
    }
}

/// A ring for whole entries, for one thread at a time.
///
/// `user_data` is the caller's. Nothing here knows of leases: an entry may name memory that is
/// lent to another op, and then the two mix their bytes (region memory is only ever copied, so
/// that is all that happens).
///
/// Dropping it leaves the ring with the engine until the session ends; [`RawRing::release`] gives
/// it back.
#[derive(Debug)]
pub struct RawRing {
    session: Session,
    end: ClientEnd<Mapped>,
    sq_bell: OwnedFd,
    cq_bell: OwnedFd,
    spin: Duration,
    submitted: u64,
    sleeps: u64,
    /// Looks in a row that found no CQE.
    empty_looks: u32,
}

/// A client that only ever pops asks whether the engine lives once in so many empty looks.
const LOOKS_PER_PULSE: u32 = 4096;

impl RawRing {
    pub(super) fn new(
        session: Session,
        memory: Mapped,
        bells: [OwnedFd; 2],
        spin: Duration,
    ) -> Self {
        let [sq_bell, cq_bell] = bells;
        let end = ClientEnd::new(memory);
        Self { session, end, sq_bell, cq_bell, spin, submitted: 0, sleeps: 0, empty_looks: 0 }
    }

    /// Writes an entry into the SQ; returns its number in this ring (0 for the first), or `None`
    /// if the SQ is full. The engine sees it after [`RawRing::submit`].
    #[inline]
    pub fn push(&mut self, sqe: Sqe) -> Option<u64> {
        self.end.push(sqe.to_words())
    }

    /// Writes entries into the SQ, as many as there is room for, and returns how many. Whoever has
    /// several to push saves time over pushing them one by one.
    #[inline]
    pub fn push_all(&mut self, sqes: impl IntoIterator<Item = Sqe>) -> u32 {
        self.end.push_all(sqes.into_iter().map(Sqe::to_words))
    }

    /// Returns how many entries can be pushed now.
    #[inline]
    pub fn room(&mut self) -> u32 {
        self.end.room()
    }

    /// True if so many entries can be pushed now.
    pub(super) fn has_room(&mut self, count: u32) -> bool {
        self.end.has_room(count)
    }

    /// Shows the engine what was pushed, and wakes it if it sleeps. Returns how many entries that
    /// were.
    #[inline]
    pub fn submit(&mut self) -> u64 {
        if self.end.publish() {
            fds::ring_bell(self.sq_bell.as_fd());
        }
        let fresh = self.end.pushed() - self.submitted;
        self.submitted = self.end.pushed();
        fresh
    }

    /// Returns how many CQEs can be popped now.
    ///
    /// # Errors
    /// [`RingError::Corrupt`] if the engine's tail cannot be.
    #[inline]
    pub fn ready(&mut self) -> Result<u32, RingError> {
        self.end.observe_tail().map_err(corrupt)
    }

    /// Pops a CQE. `None` if there is none now.
    ///
    /// # Errors
    /// [`RingError`] if there is none and never will be. A client that only pops and never waits
    /// learns of a dead engine within some thousand empty calls.
    #[inline(always)]
    pub fn pop(&mut self) -> Result<Option<Cqe>, RingError> {
        match self.end.pop().map_err(corrupt)? {
            Some(words) => {
                self.end.release();
                self.empty_looks = 0;
                Ok(Some(Cqe::from_words(words)))
            }
            None => self.nothing_popped(),
        }
    }

    /// Pops all CQEs that are there and hands each to `each`; returns how many that were. Whoever
    /// pops several saves time over popping them one by one.
    ///
    /// If `each` panics, the CQEs it was given may be handed out again.
    ///
    /// # Errors
    /// As [`RawRing::pop`].
    #[inline]
    pub fn pop_all(&mut self, mut each: impl FnMut(Cqe)) -> Result<u32, RingError> {
        let popped = self.end.pop_all(|words| each(Cqe::from_words(words))).map_err(corrupt)?;
        if popped > 0 {
            self.end.release();
            self.empty_looks = 0;
            return Ok(popped);
        }
        match self.nothing_popped()? {
            Some(cqe) => {
                each(cqe);
                Ok(1)
            }
            None => Ok(0),
        }
    }

    #[cold]
    #[inline(never)]
    fn nothing_popped(&mut self) -> Result<Option<Cqe>, RingError> {
        self.empty_looks += 1;
        let over = if let Some(reason) = self.fault() {
            RingError::Faulted { reason }
        } else if self.empty_looks >= LOOKS_PER_PULSE {
            self.empty_looks = 0;
            let Some(end) = self.ended(false)? else { return Ok(None) };
            end
        } else {
            return Ok(None);
        };
        // The CQEs that came just before the end are still to be had.
        if self.ready()? > 0 { self.pop() } else { Err(over) }
    }

    /// Waits until `want` CQEs are ready to be popped, or the time is up: spins first, then sleeps.
    /// Returns how many there are; less than `want` if the time is up, or if there will be no more.
    ///
    /// `want` is at most the number of CQ slots; more is taken for that.
    ///
    /// # Errors
    /// [`RingError`] if none is ready and none will come.
    pub fn wait(&mut self, want: u32, within: Option<Duration>) -> Result<u32, RingError> {
        let want = want.min(self.end.memory().cq_entries());
        let start = Instant::now();
        let until = within.and_then(|within| start.checked_add(within));
        let spin_until = start + within.map_or(self.spin, |within| within.min(self.spin));
        loop {
            for _ in 0..32 {
                let ready = self.ready()?;
                if ready >= want {
                    return Ok(ready);
                }
                std::hint::spin_loop();
            }
            if self.fault().is_some() || Instant::now() >= spin_until {
                break;
            }
        }
        loop {
            if let Some(reason) = self.fault() {
                return self.last(RingError::Faulted { reason });
            }
            if !self.end.arm_bell(want).map_err(corrupt)? {
                return self.ready();
            }
            self.wake_for_slots();
            let now = Instant::now();
            let left = until.map(|until| until.saturating_duration_since(now));
            if let Some(end) = self.sleep(left)? {
                return self.last(end);
            }
            let ready = self.ready()?;
            if ready >= want || until.is_some_and(|until| Instant::now() >= until) {
                return Ok(ready);
            }
        }
    }

    /// [`RawRing::submit`], then [`RawRing::wait`].
    ///
    /// # Errors
    /// As [`RawRing::wait`].
    pub fn submit_and_wait(
        &mut self,
        want: u32,
        within: Option<Duration>,
    ) -> Result<u32, RingError> {
        self.submit();
        self.wait(want, within)
    }

    /// Prepares for sleep in a reactor: true if fewer than `want` CQEs are ready and
    /// [`RawRing::as_fd`] will turn readable when there are (or when the ring is over); false if
    /// they are there already, so that nothing would come.
    ///
    /// # Errors
    /// [`RingError`] if none is ready and none will come.
    pub fn arm(&mut self, want: u32) -> Result<bool, RingError> {
        let open = fds::silence_bell(self.cq_bell.as_fd());
        if !self.end.arm_bell(want).map_err(corrupt)? {
            return Ok(false);
        }
        self.wake_for_slots();
        let over = match self.fault() {
            Some(reason) => Some(RingError::Faulted { reason }),
            None => self.ended(!open)?,
        };
        match over {
            Some(over) => self.last(over).map(|_| false),
            None => Ok(true),
        }
    }

    /// Judges an op whose CQE has not come. Final once [`Session::engine_gone`] and all CQEs are
    /// popped; before, it is a look at a moving thing.
    #[must_use]
    pub fn verdict(&mut self, number: u64) -> Verdict {
        self.end.verdict(number)
    }

    /// Returns the `abi::FAULT_*` reason if the engine has given this ring up.
    #[must_use]
    pub fn fault(&self) -> Option<u16> {
        let flags = self.end.engine_flags();
        let reason = u16::try_from(flags >> 16).unwrap_or(u16::MAX);
        (flags & abi::ENGINE_FAULTED != 0).then_some(reason)
    }

    /// True while the engine sleeps, or has put this ring aside because it was idle for long: the
    /// next [`RawRing::submit`] rings the doorbell.
    #[must_use]
    pub fn engine_sleeps(&self) -> bool {
        self.end.engine_flags() & abi::ENGINE_NEED_WAKEUP != 0
    }

    /// Returns how often a wait went to sleep in the kernel.
    #[must_use]
    pub fn sleeps(&self) -> u64 {
        self.sleeps
    }

    /// Returns how many entries were pushed: the number of the next one.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.end.pushed()
    }

    /// Returns the ring's number, as CANCEL and WHY on the control socket name it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.end.memory().header().ring
    }

    /// Returns the SQ slots.
    #[must_use]
    pub fn sq_entries(&self) -> u32 {
        self.end.memory().sq_entries()
    }

    /// Returns the CQ slots.
    #[must_use]
    pub fn cq_entries(&self) -> u32 {
        self.end.memory().cq_entries()
    }

    /// Returns the session this ring belongs to.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Gives the ring back. Its queued ops end; the call returns when nothing of this ring touches
    /// any memory any more. CQEs that were not popped are lost.
    ///
    /// # Errors
    /// [`ControlError`] if the engine refuses or is gone.
    pub fn release(self) -> Result<(), ControlError> {
        self.session.release_object(abi::OBJECT_RING, self.number())
    }

    /// An engine that sleeps is not told of CQ slots that were given back. If it left entries
    /// behind for want of slots, it has to look again. Called after a full fence.
    fn wake_for_slots(&self) {
        if self.end.engine_flags() & abi::ENGINE_NEED_WAKEUP == 0 {
            return;
        }
        let memory = self.end.memory();
        let word = |word| memory.word(word).load(Ordering::Relaxed);
        if word(Word::SqHead) != word(Word::SqTail) {
            fds::ring_bell(self.sq_bell.as_fd());
        }
    }

    /// Sleeps until the bell rings, the time is up, or the session or the engine is over.
    fn sleep(&mut self, within: Option<Duration>) -> Result<Option<RingError>, RingError> {
        if within != Some(Duration::ZERO) {
            self.sleeps += 1;
        }
        let mut closed = false;
        {
            let wire = self.session.wire();
            let mut watched = [
                PollFd::new(self.cq_bell.as_fd(), PollFlags::POLLIN),
                // No events: replies are for others, and a hang-up is always told.
                PollFd::new(wire.socket(), PollFlags::empty()),
                PollFd::new(self.session.pidfd(), PollFlags::POLLIN),
            ];
            wire::wait(&mut watched, within).map_err(failed)?;
            let [bell, socket, pidfd] = watched.map(|watched| wire::told(&watched));
            if pidfd {
                return Ok(Some(RingError::EngineGone));
            }
            if bell {
                closed = !fds::silence_bell(self.cq_bell.as_fd());
            }
            if socket {
                return Ok(Some(over(wire.end())));
            }
        }
        if closed { self.ended(true) } else { Ok(None) }
    }

    /// Looks, without waiting, whether the engine or the session is over. A closed bell means that
    /// it is.
    fn ended(&self, bell_closed: bool) -> Result<Option<RingError>, RingError> {
        let wire = self.session.wire();
        let mut watched = [
            PollFd::new(wire.socket(), PollFlags::empty()),
            PollFd::new(self.session.pidfd(), PollFlags::POLLIN),
        ];
        wire::wait(&mut watched, Some(Duration::ZERO)).map_err(failed)?;
        let [socket, pidfd] = watched.map(|watched| wire::told(&watched));
        Ok(if pidfd {
            Some(RingError::EngineGone)
        } else if socket || bell_closed {
            Some(over(wire.end()))
        } else {
            None
        })
    }

    /// CQEs that came before the end go first.
    fn last(&mut self, over: RingError) -> Result<u32, RingError> {
        match self.ready()? {
            0 => Err(over),
            ready => Ok(ready),
        }
    }
}

impl AsFd for RawRing {
    /// Returns the bell: readable after [`RawRing::arm`] said that it will be.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.cq_bell.as_fd()
    }
}

fn over(end: End) -> RingError {
    match end {
        End::EngineGone => RingError::EngineGone,
        End::SessionOver => RingError::SessionOver,
    }
}

fn corrupt(_: Fault) -> RingError {
    RingError::Corrupt { what: "a CQ tail that cannot be" }
}

fn failed(source: nix::errno::Errno) -> RingError {
    RingError::Os { call: "ppoll", source: source.into() }
}
