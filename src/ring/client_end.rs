//! The client's end: pushes SQEs, pops CQEs, goes to sleep, and reads the verdict after a death.
//!
//! The engine may be hostile too: its head and tail are compared before they are believed.

use super::{Fault, Memory, Word, fences, order};
use crate::abi;
use crate::sync::Ordering;

/// What became of an op whose engine died without sending its CQE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It had no effect, and never will.
    NotStarted,
    /// It may or may not have taken effect, in whole or in part.
    Indeterminate,
    /// It was done (a success whose CQE was skipped).
    Done,
}

/// The client's private view of one ring.
#[derive(Debug)]
pub struct ClientEnd<M> {
    memory: M,
    /// SQEs pushed, as a number that does not wrap.
    pushed: u64,
    /// SQEs published.
    published: u64,
    /// SQEs taken, as last seen.
    taken: u64,
    /// CQEs popped.
    popped: u32,
    /// `cq_tail` as last seen.
    cq_tail: u32,
}

impl<M: Memory> ClientEnd<M> {
    /// Takes the client's end of ring memory that no client has used before.
    pub fn new(memory: M) -> Self {
        let first = memory.first_index();
        Self { memory, pushed: 0, published: 0, taken: 0, popped: first, cq_tail: first }
    }

    /// Returns how many SQEs can be pushed now.
    #[inline]
    pub fn room(&mut self) -> u32 {
        let room = self.known_room();
        if room > 0 {
            return room;
        }
        self.observe_taken();
        self.known_room()
    }

    fn known_room(&self) -> u32 {
        // At most sq_entries are out, so the difference fits.
        self.memory.sq_entries() - low32(self.pushed - self.taken)
    }

    fn observe_taken(&mut self) {
        // sync: sqe-free, fate-visible (acquire)
        let head = self.memory.word(Word::SqHead).load(order::TAKEN_OBSERVE);
        let advance = head.wrapping_sub(self.index(self.taken));
        // A head that cannot be is not believed: the ring then looks full for ever.
        if u64::from(advance) <= self.published - self.taken {
            self.taken += u64::from(advance);
        }
    }

    /// Writes an SQE; returns its number in this ring (0 for the first), or `None` if the SQ is
    /// full. It is seen after [`Self::publish`].
    #[inline]
    pub fn push(&mut self, words: [u64; 8]) -> Option<u64> {
        if self.room() == 0 {
            return None;
        }
        let number = self.pushed;
        let slot = self.memory.sqe(self.index(number));
        for (at, word) in words.into_iter().enumerate() {
            slot[at].store(word, Ordering::Relaxed);
        }
        self.pushed += 1;
        Some(number)
    }

    /// Publishes what was pushed; true if the engine sleeps and its doorbell must be rung.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.pushed {
            return false;
        }
        self.published = self.pushed;
        // sync: sqe-visible (release)
        self.memory.word(Word::SqTail).store(self.index(self.pushed), order::SQE_PUBLISH);
        // sync: engine-sleep, the client's half: sq_tail before, engine_flags after.
        fences::client_published();
        self.memory.word(Word::EngineFlags).load(Ordering::Relaxed) & abi::ENGINE_NEED_WAKEUP != 0
    }

    /// Returns how many CQEs can be popped now; looks at the engine's tail if none is known.
    ///
    /// # Errors
    /// A [`Fault`] if the engine's tail cannot be.
    #[inline]
    pub fn ready(&mut self) -> Result<u32, Fault> {
        let known = self.cq_tail.wrapping_sub(self.popped);
        if known > 0 { Ok(known) } else { self.observe_tail() }
    }

    /// Looks at the engine's tail; returns how many CQEs can be popped.
    ///
    /// # Errors
    /// A [`Fault`] if it cannot be.
    #[inline]
    pub fn observe_tail(&mut self) -> Result<u32, Fault> {
        // sync: cqe-visible (acquire)
        let tail = self.memory.word(Word::CqTail).load(order::CQE_OBSERVE);
        let ready = tail.wrapping_sub(self.popped);
        if ready > self.memory.cq_entries() || ready < self.cq_tail.wrapping_sub(self.popped) {
            return Err(Fault::CqHead);
        }
        self.cq_tail = tail;
        Ok(ready)
    }

    /// Pops a CQE. The slot is given back with [`Self::release`].
    ///
    /// # Errors
    /// A [`Fault`] if the engine's tail cannot be.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<[u64; 4]>, Fault> {
        if self.ready()? == 0 {
            return Ok(None);
        }
        let slot = self.memory.cqe(self.popped);
        let words = core::array::from_fn(|at| slot[at].load(Ordering::Relaxed));
        self.popped = self.popped.wrapping_add(1);
        Ok(Some(words))
    }

    /// Gives popped slots back to the engine.
    #[inline]
    pub fn release(&mut self) {
        // sync: cqe-free (release)
        self.memory.word(Word::CqHead).store(self.popped, order::POPPED);
    }

    /// Asks for the bell once `want` CQEs (at least 1) are ready; true if the client may sleep
    /// now, false if they are there already.
    ///
    /// # Errors
    /// A [`Fault`] if the engine's tail cannot be.
    pub fn arm_bell(&mut self, want: u32) -> Result<bool, Fault> {
        let want = want.clamp(1, self.memory.cq_entries());
        // "Passes" means: the bell is due when cq_tail moves beyond bell_at.
        let bell_at = self.popped.wrapping_add(want - 1);
        self.memory.word(Word::BellAt).store(bell_at, Ordering::Relaxed);
        // sync: client-sleep, the client's half: bell_at before, cq_tail after.
        fences::client_sleeps();
        Ok(self.observe_tail()? < want)
    }

    /// Returns the `ENGINE_*` bits and the fault reason.
    #[inline]
    pub fn engine_flags(&self) -> u32 {
        // sync: last-words (acquire)
        self.memory.word(Word::EngineFlags).load(order::FLAGS_OBSERVE)
    }

    /// SQEs pushed so far: the number of the next one.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// The ring's memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Judges an SQE whose CQE is not among those popped. Final once the engine's pidfd is
    /// readable and all CQEs are popped; before, it is a snapshot.
    #[must_use]
    pub fn verdict(&mut self, number: u64) -> Verdict {
        self.observe_taken();
        let taken = self.taken;
        for place in 0..self.memory.cq_entries() {
            let entry = self.memory.fate(place);
            // sync: fate-entry (acquire)
            let word = entry[1].load(order::FATE_OBSERVE);
            if word >> abi::FATE_SHIFT == number {
                match word & ((1 << abi::FATE_SHIFT) - 1) {
                    abi::FATE_ACCEPTED => return Verdict::NotStarted,
                    abi::FATE_POSTED => return Verdict::Indeterminate,
                    _ => {}
                }
            }
        }
        if number < taken { Verdict::Done } else { Verdict::NotStarted }
    }

    fn index(&self, number: u64) -> u32 {
        self.memory.first_index().wrapping_add(low32(number))
    }
}

const fn low32(number: u64) -> u32 {
    (number & 0xffff_ffff) as u32
}
