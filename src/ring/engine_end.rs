//! The engine's end: takes SQEs, keeps fates, publishes CQEs, puts the ring to sleep.

use thiserror::Error;

use super::{Memory, Word, fences, order};
use crate::abi::{self, RingCounter};
use crate::sync::Ordering;

/// What a client wrote that cannot be. Ends that ring, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// `sq_tail` is more than the SQ ahead of what was taken.
    #[error("sq_tail is more than sq_entries ahead of sq_head")]
    SqTailBeyond,
    /// `sq_tail` ran back behind a value already seen.
    #[error("sq_tail ran back")]
    SqTailBack,
    /// `cq_head` ran back, or passed `cq_tail`.
    #[error("cq_head ran back or passed cq_tail")]
    CqHead,
}

impl Fault {
    /// Returns the `FAULT_*` reason clients see.
    #[must_use]
    pub fn reason(self) -> u16 {
        match self {
            Self::SqTailBeyond => abi::FAULT_SQ_TAIL_BEYOND,
            Self::SqTailBack => abi::FAULT_SQ_TAIL_BACK,
            Self::CqHead => abi::FAULT_CQ_HEAD,
        }
    }
}

/// The engine's private view of one ring.
///
/// CQ slots are reserved before an SQE is taken and used one by one, so the CQ cannot overflow:
/// `cq_tail - cq_head + reserved <= cq_entries`, always.
#[derive(Debug)]
pub struct EngineEnd<M> {
    memory: M,
    /// Taken so far, free-running; published as `sq_head`.
    sq_head: u32,
    /// The last `sq_tail` seen and found possible.
    sq_tail: u32,
    /// CQEs written, free-running; published as `cq_tail`.
    cq_tail: u32,
    /// `cq_tail` as last published.
    cq_published: u32,
    /// The last `cq_head` seen and found possible.
    cq_head: u32,
    /// Slots promised to SQEs taken whose CQEs are not yet written.
    reserved: u32,
    flags: u32,
    counters: [u64; 8],
}

impl<M: Memory> EngineEnd<M> {
    /// Takes the engine's end of fresh ring memory.
    pub fn new(memory: M) -> Self {
        let first = memory.first_index();
        Self {
            memory,
            sq_head: first,
            sq_tail: first,
            cq_tail: first,
            cq_published: first,
            cq_head: first,
            reserved: 0,
            flags: 0,
            counters: [0; 8],
        }
    }

    /// Looks for new SQEs: returns how many wait.
    ///
    /// # Errors
    /// A [`Fault`] if the client's tail cannot be.
    #[inline]
    pub fn look(&mut self) -> Result<u32, Fault> {
        // sync: sqe-visible (acquire)
        let tail = self.memory.word(Word::SqTail).load(order::SQE_OBSERVE);
        let waiting = tail.wrapping_sub(self.sq_head);
        if waiting > self.memory.sq_entries() {
            return Err(if self.sq_tail.wrapping_sub(tail) <= self.memory.sq_entries() {
                Fault::SqTailBack
            } else {
                Fault::SqTailBeyond
            });
        }
        if waiting < self.sq_tail.wrapping_sub(self.sq_head) {
            return Err(Fault::SqTailBack);
        }
        self.sq_tail = tail;
        Ok(waiting)
    }

    /// SQEs that were seen and not yet taken, without another look.
    #[inline]
    pub fn waiting(&self) -> u32 {
        self.sq_tail.wrapping_sub(self.sq_head)
    }

    /// Copies the SQE that lies `ahead` of the head, once; the caller has seen that it waits.
    #[inline]
    pub fn peek(&self, ahead: u32) -> [u64; 8] {
        debug_assert!(ahead < self.sq_tail.wrapping_sub(self.sq_head));
        let slot = self.memory.sqe(self.sq_head.wrapping_add(ahead));
        core::array::from_fn(|at| slot[at].load(Ordering::Relaxed))
    }

    /// Consumes the SQE at the head, promising it `slots` CQ slots, which [`Self::room`] has shown.
    #[inline]
    pub fn take(&mut self, slots: u32) {
        assert!(self.sq_head != self.sq_tail, "took an SQE that is not there");
        self.sq_head = self.sq_head.wrapping_add(1);
        self.reserved += slots;
        self.count(RingCounter::Taken);
        assert!(self.reserved <= self.memory.cq_entries(), "promised more CQ slots than there are");
    }

    /// Publishes `sq_head`: everything taken has its fate entry by now.
    #[inline]
    pub fn publish_taken(&mut self) {
        // sync: sqe-free, fate-visible (release)
        self.memory.word(Word::SqHead).store(self.sq_head, order::TAKEN);
    }

    /// Returns how many CQ slots can still be promised; looks at the client's head if `want` asks
    /// for more than is known.
    ///
    /// # Errors
    /// A [`Fault`] if the client's head cannot be.
    #[inline]
    pub fn room(&mut self, want: u32) -> Result<u32, Fault> {
        let room = self.known_room();
        if room >= want {
            return Ok(room);
        }
        self.observe_head()?;
        Ok(self.known_room())
    }

    /// Compares the client's head with what can be, and keeps it.
    ///
    /// # Errors
    /// A [`Fault`] if it ran back or passed `cq_tail`.
    pub fn observe_head(&mut self) -> Result<(), Fault> {
        // sync: cqe-free (acquire)
        let head = self.memory.word(Word::CqHead).load(order::POPPED_OBSERVE);
        let popped = head.wrapping_sub(self.cq_head);
        if popped > self.cq_published.wrapping_sub(self.cq_head) {
            return Err(Fault::CqHead);
        }
        self.cq_head = head;
        Ok(())
    }

    fn known_room(&self) -> u32 {
        let unread = self.cq_tail.wrapping_sub(self.cq_head);
        self.memory.cq_entries() - unread - self.reserved
    }

    /// Writes a CQE into a promised slot. It is seen after [`Self::publish`].
    #[inline]
    pub fn push(&mut self, words: [u64; 4]) {
        assert!(self.reserved > 0, "a CQE without a promised slot");
        self.reserved -= 1;
        let slot = self.memory.cqe(self.cq_tail);
        for (at, word) in words.into_iter().enumerate() {
            slot[at].store(word, Ordering::Relaxed);
        }
        self.cq_tail = self.cq_tail.wrapping_add(1);
    }

    /// Gives back promised slots that will not be used (a skipped success, an ARM taken back).
    #[inline]
    pub fn forgo(&mut self, slots: u32) {
        assert!(self.reserved >= slots, "gave back a CQ slot that was not promised");
        self.reserved -= slots;
    }

    /// Publishes what was pushed; true if the client asked for its bell at one of these CQEs.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.cq_tail == self.cq_published {
            return false;
        }
        let old = self.cq_published;
        self.cq_published = self.cq_tail;
        // sync: cqe-visible (release)
        self.memory.word(Word::CqTail).store(self.cq_tail, order::CQE_PUBLISH);
        self.count(RingCounter::Heartbeat);
        // sync: client-sleep, the engine's half: cq_tail before, bell_at after.
        fences::engine_published();
        let bell_at = self.memory.word(Word::BellAt).load(Ordering::Relaxed);
        // The bell is due if `bell_at` lies in old..cq_tail; a stale one lies before and stays mute.
        let due =
            self.cq_tail.wrapping_sub(bell_at).wrapping_sub(1) < self.cq_tail.wrapping_sub(old);
        if due {
            self.count(RingCounter::BellsRung);
        }
        due
    }

    /// True if CQEs were pushed since the last [`Self::publish`].
    #[inline]
    pub fn unpublished(&self) -> bool {
        self.cq_tail != self.cq_published
    }

    /// Enters an op into the fate table as accepted. Its place is the caller's to choose.
    #[inline]
    pub fn fate_accepted(&self, place: u32, record: u64, number: u64) {
        let entry = self.memory.fate(place);
        entry[0].store(record, Ordering::Relaxed);
        // sync: fate-entry (release): whoever sees the number sees its record, and what became of
        // the op that had this place before.
        entry[1].store((number << abi::FATE_SHIFT) | abi::FATE_ACCEPTED, order::ACCEPTED);
    }

    /// Marks an accepted op as posted. [`Self::fates_posted`] must follow before the post.
    #[inline]
    pub fn fate_posted(&self, place: u32, number: u64) {
        let word = (number << abi::FATE_SHIFT) | abi::FATE_POSTED;
        // sync: fate-entry (release): the place's last op may have been a skipped success, of
        // which this mark is all that the client sees.
        self.memory.fate(place)[1].store(word, order::MARKED);
    }

    /// Orders all posted marks before the posts that follow.
    #[inline]
    pub fn fates_posted() {
        fences::posts_follow();
    }

    /// Takes an op out of the fate table: its CQE is published, or it was a skipped success.
    #[inline]
    pub fn fate_freed(&self, place: u32) {
        // sync: fate-entry (release): a client that no longer sees the entry sees the op's effect
        // and its CQE.
        self.memory.fate(place)[1].store(abi::FATE_FREE, order::FREED);
    }

    /// Asks to be woken; false (and awake again) if SQEs came in the meantime.
    ///
    /// # Errors
    /// A [`Fault`] if the client's tail cannot be.
    pub fn fall_asleep(&mut self) -> Result<bool, Fault> {
        self.set_flags(self.flags | abi::ENGINE_NEED_WAKEUP);
        // sync: engine-sleep, the engine's half: NEED_WAKEUP before, sq_tail after.
        fences::engine_sleeps();
        match self.look() {
            Ok(0) => {
                self.count(RingCounter::Sleeps);
                Ok(true)
            }
            Ok(_) => {
                self.wake();
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Ends the wish to be woken.
    pub fn wake(&mut self) {
        self.set_flags(self.flags & !abi::ENGINE_NEED_WAKEUP);
    }

    /// True between a successful [`Self::fall_asleep`] and [`Self::wake`].
    #[inline]
    pub fn asleep(&self) -> bool {
        self.flags & abi::ENGINE_NEED_WAKEUP != 0
    }

    /// Tells the client that no further SQE is taken.
    pub fn close(&mut self) {
        self.set_flags(self.flags | abi::ENGINE_CLOSING);
    }

    /// Tells the client that it broke its ring, and how. What was taken and pushed until now is
    /// published first, so that the fate table stays true: a slot that is freed from now on
    /// belongs to an op whose number and CQE can be seen.
    ///
    /// The caller rings the client's bell in any case.
    pub fn fault(&mut self, fault: Fault) {
        self.publish_taken();
        self.publish();
        let reason = u32::from(fault.reason()) << 16;
        self.set_flags(self.flags | abi::ENGINE_FAULTED | reason);
    }

    /// Adds one to a counter of the header page.
    #[inline]
    pub fn count(&mut self, counter: RingCounter) {
        let at = counter as u8;
        let value = &mut self.counters[usize::from(at & 7)];
        *value += 1;
        self.memory.counter(at).store(*value, Ordering::Relaxed);
    }

    /// Slots promised and not yet used.
    pub fn reserved(&self) -> u32 {
        self.reserved
    }

    /// CQ slots of this ring.
    pub fn cq_entries(&self) -> u32 {
        self.memory.cq_entries()
    }

    /// The ring's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    fn set_flags(&mut self, flags: u32) {
        self.flags = flags;
        self.memory.word(Word::EngineFlags).store(flags, order::FLAGS);
    }
}
