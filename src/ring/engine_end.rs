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

/// What [`EngineEnd::publish_first`] knows of the client's bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// Nothing was published.
    Silent,
    /// It must be rung.
    Due,
    /// It need not be, unless the client asks for it at this moment.
    Unsure,
}

/// The engine's private view of one ring.
///
/// CQ slots are reserved before an SQE is taken and used one by one, so the CQ cannot overflow:
/// `cq_tail - cq_head + reserved <= cq_entries`, always.
#[derive(Debug)]
#[repr(align(128))]
pub struct EngineEnd<M> {
    memory: M,
    /// Taken so far, free-running; published as `sq_head`.
    sq_head: u32,
    /// `sq_head` as last published.
    sq_head_shown: u32,
    /// The last `sq_tail` seen and found possible.
    sq_tail: u32,
    /// CQEs written, free-running; published as `cq_tail`.
    cq_tail: u32,
    /// `cq_tail` as last published.
    cq_published: u32,
    /// A bell asked for at a CQE before this one has been rung, or was looked for in vain.
    bell_from: u32,
    /// The last `cq_head` seen and found possible.
    cq_head: u32,
    /// Slots promised to SQEs taken whose CQEs are not yet written.
    reserved: u32,
    flags: u32,
    counters: [u64; 8],
    /// CQEs that are pushed and lie here yet: the last ones before `cq_tail`.
    staged: [[u64; 4]; STAGED as usize],
    staged_count: u32,
}

/// CQEs that are written to their slots in one go.
///
/// The slots' lines come from the client's cache. Stores leave a core in order, so that whatever
/// else is stored between two CQEs keeps their journeys from overlapping: they are collected, and
/// written one behind the other.
const STAGED: u32 = 32;

impl<M: Memory> EngineEnd<M> {
    /// Takes the engine's end of fresh ring memory.
    pub fn new(memory: M) -> Self {
        let first = memory.first_index();
        Self {
            memory,
            sq_head: first,
            sq_head_shown: first,
            sq_tail: first,
            cq_tail: first,
            cq_published: first,
            bell_from: first,
            cq_head: first,
            reserved: 0,
            flags: 0,
            counters: [0; 8],
            staged: [[0; 4]; STAGED as usize],
            staged_count: 0,
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

    /// True if the client's tail has moved since the last [`Self::look`].
    #[inline]
    pub fn stirred(&self) -> bool {
        self.memory.word(Word::SqTail).load(Ordering::Relaxed) != self.sq_tail
    }

    /// SQEs that were seen and not yet taken, without another look.
    #[inline]
    pub fn waiting(&self) -> u32 {
        self.sq_tail.wrapping_sub(self.sq_head)
    }

    /// SQEs that the client has published and that are not taken yet, as far as its tail can be
    /// believed. Nothing is kept of this look.
    #[must_use]
    pub fn offered(&self) -> u32 {
        let tail = self.memory.word(Word::SqTail).load(Ordering::Relaxed);
        let offered = tail.wrapping_sub(self.sq_head);
        if offered <= self.memory.sq_entries() {
            offered.max(self.waiting())
        } else {
            self.waiting()
        }
    }

    /// CQ slots that can still be promised, as far as the client's head can be believed. Nothing is
    /// kept of this look.
    #[must_use]
    pub fn free_slots(&self) -> u32 {
        let head = self.memory.word(Word::CqHead).load(Ordering::Relaxed);
        let popped = head.wrapping_sub(self.cq_head);
        let known = self.cq_published.wrapping_sub(self.cq_head);
        self.known_room() + if popped <= known { popped } else { 0 }
    }

    /// Copies the SQE that lies `ahead` of the head, once; the caller has seen that it waits.
    #[inline]
    pub fn peek(&self, ahead: u32) -> [u64; 8] {
        debug_assert!(ahead < self.sq_tail.wrapping_sub(self.sq_head));
        let slot = self.memory.sqe(self.sq_head.wrapping_add(ahead));
        core::array::from_fn(|at| slot[at].load(Ordering::Relaxed))
    }

    /// Consumes SQEs at the head that were seen to wait, promising each of them one CQ slot;
    /// returns how many of `want` there is room for.
    ///
    /// # Errors
    /// A [`Fault`] if the client's head cannot be.
    #[inline]
    pub fn take_many(&mut self, want: u32) -> Result<u32, Fault> {
        let mut room = self.known_room();
        if room < want {
            self.observe_head()?;
            room = self.known_room();
        }
        let count = want.min(room).min(self.waiting());
        self.sq_head = self.sq_head.wrapping_add(count);
        self.reserved += count;
        Ok(count)
    }

    /// Consumes the SQE at the head, promising it `slots` CQ slots, which [`Self::room`] has shown.
    #[inline]
    pub fn take(&mut self, slots: u32) {
        assert!(self.sq_head != self.sq_tail, "took an SQE that is not there");
        assert!(slots <= self.known_room(), "promised more CQ slots than there are");
        self.sq_head = self.sq_head.wrapping_add(1);
        self.reserved += slots;
    }

    /// Gives back the last `count` SQEs taken with one CQ slot each, which are not yet published.
    #[inline]
    pub fn put_back(&mut self, count: u32) {
        assert!(count <= self.sq_head.wrapping_sub(self.sq_head_shown) && count <= self.reserved);
        self.sq_head = self.sq_head.wrapping_sub(count);
        self.reserved -= count;
    }

    /// Publishes `sq_head`: everything taken has its fate entry by now.
    #[inline]
    pub fn publish_taken(&mut self) {
        // sync: sqe-free, fate-visible (release)
        self.memory.word(Word::SqHead).store(self.sq_head, order::TAKEN);
        let fresh = self.sq_head.wrapping_sub(self.sq_head_shown);
        self.sq_head_shown = self.sq_head;
        self.count(RingCounter::Taken, fresh);
        self.show(RingCounter::Taken);
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

    /// Pushes a CQE into a promised slot. It is seen after [`Self::publish`].
    #[inline]
    pub fn push(&mut self, words: [u64; 4]) {
        assert!(self.reserved > 0, "a CQE without a promised slot");
        self.reserved -= 1;
        if self.staged_count == STAGED {
            self.write_staged();
        }
        self.staged[(self.staged_count % STAGED) as usize] = words;
        self.staged_count += 1;
        self.cq_tail = self.cq_tail.wrapping_add(1);
    }

    /// Writes the CQEs that were collected to their slots.
    fn write_staged(&mut self) {
        let first = self.cq_tail.wrapping_sub(self.staged_count);
        for (ahead, words) in (0..self.staged_count).zip(&self.staged) {
            let slot = self.memory.cqe(first.wrapping_add(ahead));
            for (at, word) in words.iter().enumerate() {
                slot[at].store(*word, Ordering::Relaxed);
            }
        }
        self.staged_count = 0;
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
        match self.publish_first() {
            Bell::Silent => false,
            Bell::Due => true,
            Bell::Unsure => {
                Self::order_bells();
                self.bell_due()
            }
        }
    }

    /// The first half of [`Self::publish`]: CQEs are seen from here on, and a bell that was asked
    /// for some time ago is found. After [`Bell::Unsure`] the second half must follow, which finds
    /// one that is being asked for right now: [`Self::order_bells`], then [`Self::bell_due`].
    ///
    /// Between the two the stores of this half leave the core by themselves; the fence of the
    /// second has to wait for those that have not, for as long as their lines travel.
    #[inline]
    pub fn publish_first(&mut self) -> Bell {
        self.show(RingCounter::Skipped);
        if self.cq_tail == self.cq_published {
            return Bell::Silent;
        }
        self.write_staged();
        self.cq_published = self.cq_tail;
        // sync: cqe-visible (release)
        self.memory.word(Word::CqTail).store(self.cq_tail, order::CQE_PUBLISH);
        self.count(RingCounter::Heartbeat, 1);
        for counter in [RingCounter::Heartbeat, RingCounter::Completed, RingCounter::Refused] {
            self.show(counter);
        }
        if self.bell_asked() { Bell::Due } else { Bell::Unsure }
    }

    /// Orders publications, of all rings, before the looks at bells that follow.
    #[inline]
    pub fn order_bells() {
        // sync: client-sleep, the engine's half: cq_tail before, bell_at after.
        fences::engine_published();
    }

    /// True if the client asked for its bell at one of the CQEs published since the last call that
    /// said so, or the last one after [`Self::order_bells`]: this one.
    #[inline]
    pub fn bell_due(&mut self) -> bool {
        let due = self.bell_asked();
        // Whoever asks for an earlier one from now on finds its CQE without a bell.
        self.bell_from = self.cq_published;
        due
    }

    #[inline]
    fn bell_asked(&mut self) -> bool {
        let bell_at = self.memory.word(Word::BellAt).load(Ordering::Relaxed);
        // Due if `bell_at` lies in bell_from..cq_tail; a stale one lies before: mute.
        let fresh = self.cq_published.wrapping_sub(self.bell_from);
        let due = self.cq_published.wrapping_sub(bell_at).wrapping_sub(1) < fresh;
        if due {
            self.bell_from = self.cq_published;
            self.count(RingCounter::BellsRung, 1);
            self.show(RingCounter::BellsRung);
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
                self.count(RingCounter::Sleeps, 1);
                self.show(RingCounter::Sleeps);
                Ok(true)
            }
            Ok(_) => {
                self.wake();
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Asks to be woken, without a look: for a ring whose SQEs wait for something else, and for a
    /// client that rings after every publication.
    pub fn ask_for_bell(&mut self) {
        self.set_flags(self.flags | abi::ENGINE_NEED_WAKEUP);
        self.count(RingCounter::Sleeps, 1);
        self.show(RingCounter::Sleeps);
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

    /// Adds to a counter of the header page. It is seen with the next publication.
    #[inline]
    pub fn count(&mut self, counter: RingCounter, by: u32) {
        self.counters[usize::from(counter as u8 & 7)] += u64::from(by);
    }

    #[inline]
    fn show(&self, counter: RingCounter) {
        let at = counter as u8;
        self.memory.counter(at).store(self.counters[usize::from(at & 7)], Ordering::Relaxed);
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

#[cfg(test)]
#[cfg(not(verbring_loom))]
mod tests {
    use std::collections::VecDeque;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ring::Heap;
    use crate::seeds::property;

    const FIRST_INDEX: u32 = u32::MAX - 2;
    const SQ_ENTRIES: u32 = 4;
    const CQ_ENTRIES: u32 = 4;

    type End = EngineEnd<Arc<Heap>>;

    fn end() -> End {
        EngineEnd::new(Arc::new(Heap::new(SQ_ENTRIES, CQ_ENTRIES, FIRST_INDEX)))
    }

    fn index(number: i64) -> u32 {
        FIRST_INDEX.wrapping_add(count(number.rem_euclid(1 << 32)))
    }

    fn count(number: i64) -> u32 {
        u32::try_from(number).unwrap()
    }

    /// Writes a cursor as a client would that has moved it to `number`.
    fn set(end: &End, word: Word, number: i64) {
        end.memory.word(word).store(index(number), Ordering::Relaxed);
    }

    fn shown(end: &End, word: Word) -> u32 {
        end.memory.word(word).load(Ordering::Relaxed)
    }

    /// An end that has seen `seen` SQEs, taken `taken` of them and answered `answered` of those.
    fn end_after(seen: i64, taken: i64, answered: i64) -> End {
        let mut end = end();
        set(&end, Word::SqTail, seen);
        end.look().unwrap();
        for number in 0..taken {
            end.take(1);
            if number < answered {
                end.push([0; 4]);
            }
        }
        end.publish_taken();
        end.publish();
        end
    }

    /// The message of the assertion that `what` runs into.
    fn refusal(what: impl FnOnce()) -> &'static str {
        let panic = catch_unwind(AssertUnwindSafe(what)).expect_err("no assertion held it back");
        panic.downcast_ref::<&str>().copied().expect("a plain message")
    }

    #[test]
    fn f28_cursors_wrap_around() {
        let mut end = end();
        for number in 0..100 {
            let slot = end.memory.sqe(index(number));
            let words: [u64; 8] =
                core::array::from_fn(|at| 1000 * number.cast_unsigned() + at as u64);
            for (at, word) in words.into_iter().enumerate() {
                slot[at].store(word, Ordering::Relaxed);
            }
            set(&end, Word::SqTail, number + 1);
            assert_eq!(end.look(), Ok(1));
            assert_eq!(end.peek(0), words);
            // The client's head is looked at only when what is known has run out.
            assert_eq!(end.room(1), Ok(4 - count(number % 4)));
            end.take(1);
            end.publish_taken();
            assert_eq!(shown(&end, Word::SqHead), index(number + 1));
            end.push([number.cast_unsigned(); 4]);
            assert_eq!(shown(&end, Word::CqTail), index(number));
            end.publish();
            assert_eq!(shown(&end, Word::CqTail), index(number + 1));
            assert_eq!(
                end.memory.cqe(index(number))[3].load(Ordering::Relaxed),
                number.cast_unsigned()
            );
            set(&end, Word::CqHead, number + 1);
        }
    }

    #[test]
    fn several_are_taken_as_far_as_there_is_room_and_some_put_back() {
        let mut end = end();
        set(&end, Word::SqTail, 4);
        end.look().unwrap();
        assert_eq!(end.take_many(3), Ok(3));
        end.put_back(1);
        assert_eq!((end.waiting(), end.reserved()), (2, 2));
        end.publish_taken();
        assert_eq!(shown(&end, Word::SqHead), index(2));
        assert!(refusal(|| end.put_back(1)).starts_with("assertion failed"), "published is taken");
        for _ in 0..2 {
            end.push([0; 4]);
        }
        end.publish();
        set(&end, Word::SqTail, 6);
        end.look().unwrap();
        assert_eq!(end.take_many(4), Ok(2), "two CQEs are unread");
        set(&end, Word::CqHead, 3);
        assert_eq!(end.take_many(2), Err(Fault::CqHead));
    }

    #[test]
    fn a_full_sq_is_seen_whole() {
        let mut end = end();
        set(&end, Word::SqTail, 4);
        assert_eq!((end.look(), end.waiting()), (Ok(4), 4));
        for number in 0..4 {
            assert_eq!(end.waiting(), 4 - number);
            end.take(1);
        }
        assert_eq!((end.look(), end.waiting()), (Ok(0), 0));
        assert_eq!(refusal(|| end.take(0)), "took an SQE that is not there");
    }

    /// Every tail near the cursors, and some far away, after every history of four SQEs.
    #[test]
    fn a_tail_that_cannot_be_is_a_fault() {
        let far = [1 << 16, 1 << 31, -(1 << 30)];
        for (seen, taken) in (0..=4).flat_map(|seen| (0..=seen).map(move |taken| (seen, taken))) {
            for tail in (-12..=12).chain(far) {
                let mut end = end_after(seen, taken, 0);
                set(&end, Word::SqTail, tail);
                let expected = match tail {
                    _ if (seen..=taken + 4).contains(&tail) => Ok(count(tail - taken)),
                    _ if (seen - 4..seen).contains(&tail) => Err(Fault::SqTailBack),
                    _ => Err(Fault::SqTailBeyond),
                };
                assert_eq!(end.look(), expected, "seen {seen}, taken {taken}, tail {tail}");
                let waiting = if expected.is_ok() { tail - taken } else { seen - taken };
                assert_eq!(i64::from(end.waiting()), waiting, "a bad tail was kept");
            }
        }
    }

    /// The same for the head, which must lie between where it was and what is published.
    #[test]
    fn a_head_that_cannot_be_is_a_fault() {
        let far = [1 << 16, 1 << 31, -(1 << 30)];
        for (tail, seen) in (0..=4).flat_map(|tail| (0..=tail).map(move |seen| (tail, seen))) {
            for head in (-12..=12).chain(far) {
                let mut end = end_after(4, tail, tail);
                set(&end, Word::CqHead, seen);
                end.observe_head().unwrap();
                // A CQE that is written and not published cannot have been popped.
                if tail < 4 {
                    end.take(1);
                    end.push([0; 4]);
                }
                set(&end, Word::CqHead, head);
                let possible = (seen..=tail).contains(&head);
                let expected = if possible { Ok(()) } else { Err(Fault::CqHead) };
                assert_eq!(end.observe_head(), expected, "tail {tail}, seen {seen}, head {head}");
                let kept = if possible { head } else { seen };
                assert_eq!(end.cq_head, index(kept), "a bad head was kept");
            }
        }
    }

    #[test]
    fn a_bad_head_is_found_by_room_only_when_room_is_short() {
        let mut end = end_after(4, 3, 3);
        set(&end, Word::CqHead, 4);
        assert_eq!(end.room(1), Ok(1));
        assert_eq!(end.room(2), Err(Fault::CqHead));
    }

    #[test]
    fn cq_slots_must_be_promised_before_use() {
        let too_many = "promised more CQ slots than there are";
        let mut end = end_after(4, 2, 0);
        assert_eq!((end.reserved(), end.room(4)), (2, Ok(2)));
        assert_eq!(refusal(|| end.forgo(3)), "gave back a CQ slot that was not promised");
        assert_eq!(refusal(|| end.take(3)), too_many);
        end.take(2);
        assert_eq!((end.reserved(), end.room(1)), (4, Ok(0)));
        end.forgo(1);
        for _ in 0..3 {
            end.push([0; 4]);
        }
        assert_eq!(refusal(|| end.push([0; 4])), "a CQE without a promised slot");
        assert_eq!((end.reserved(), end.room(4)), (0, Ok(1)));
        assert_eq!(refusal(|| end.take(2)), too_many, "three CQEs lie there unread");
        end.take(1);
    }

    /// What client and engine may do to a CQ of which the SQEs never run out.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(u32),
        Push,
        Forgo,
        Publish,
        Pop(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0_u32..=5).prop_map(Step::Take),
            4 => Just(Step::Push),
            1 => Just(Step::Forgo),
            3 => Just(Step::Publish),
            2 => (1_usize..=4).prop_map(Step::Pop),
        ];
        proptest::collection::vec(step, 1..200)
    }

    /// The CQ as a person would keep it: lists of what is promised, written, and lying there.
    #[derive(Default)]
    struct Model {
        promised: u32,
        written: VecDeque<u64>,
        published: VecDeque<u64>,
        popped: i64,
        next: u64,
    }

    impl Model {
        fn room(&self) -> u32 {
            let full = self.written.len() + self.published.len();
            CQ_ENTRIES - u32::try_from(full).unwrap() - self.promised
        }
    }

    proptest! {
        #![proptest_config(property(2_000))]

        #[test]
        fn the_cq_never_overflows(steps in steps()) {
            let mut end = end();
            let mut model = Model::default();
            let mut taken = 0;
            for step in steps {
                match step {
                    Step::Take(slots) => {
                        let room = end.room(slots).unwrap();
                        // Room that is not asked for may be there unknown.
                        prop_assert!(room <= model.room());
                        prop_assert_eq!(room >= slots, model.room() >= slots);
                        if room >= slots {
                            set(&end, Word::SqTail, taken + 1);
                            prop_assert_eq!(end.look(), Ok(1));
                            end.take(slots);
                            taken += 1;
                            model.promised += slots;
                        }
                    }
                    Step::Push if model.promised > 0 => {
                        end.push([model.next; 4]);
                        model.promised -= 1;
                        model.written.push_back(model.next);
                        model.next += 1;
                    }
                    Step::Forgo if model.promised > 0 => {
                        end.forgo(1);
                        model.promised -= 1;
                    }
                    Step::Publish => {
                        prop_assert_eq!(end.unpublished(), !model.written.is_empty());
                        end.publish();
                        model.published.append(&mut model.written);
                    }
                    Step::Pop(count) => {
                        for _ in 0..count.min(model.published.len()) {
                            let slot = end.memory.cqe(index(model.popped));
                            let words = slot.each_ref().map(|word| word.load(Ordering::Relaxed));
                            // A CQE that was overwritten would show here.
                            prop_assert_eq!(Some(words[0]), model.published.pop_front());
                            prop_assert_eq!(words, [words[0]; 4]);
                            model.popped += 1;
                        }
                        set(&end, Word::CqHead, model.popped);
                    }
                    Step::Push | Step::Forgo => {}
                }
                prop_assert_eq!(end.reserved(), model.promised);
                let lies = model.popped + i64::try_from(model.published.len()).unwrap();
                prop_assert_eq!(shown(&end, Word::CqTail), index(lies));
            }
            prop_assert_eq!(end.room(CQ_ENTRIES), Ok(model.room()));
        }
    }

    /// `bell_at` at each offset round each batch: the bell is due if the batch holds that CQE.
    #[test]
    fn the_bell_is_due_when_cq_tail_passes_bell_at() {
        for (old, batch) in (0..=4).flat_map(|old| (0..=4 - old).map(move |batch| (old, batch))) {
            for bell_at in (-9..=9).chain([1 << 31, -(1 << 31)]) {
                let mut end = end_after(4, old, old);
                for _ in 0..batch {
                    end.take(1);
                    end.push([0; 4]);
                }
                set(&end, Word::BellAt, bell_at);
                let due = (old..old + batch).contains(&bell_at);
                assert_eq!(end.publish(), due, "old {old}, batch {batch}, bell_at {bell_at}");
                assert!(!end.publish(), "rung for nothing");
                let rung = end.memory.counter(RingCounter::BellsRung as u8);
                assert_eq!(rung.load(Ordering::Relaxed), u64::from(due));
            }
        }
    }

    #[test]
    fn a_fresh_ring_is_mute() {
        let mut end = end();
        set(&end, Word::SqTail, 1);
        end.look().unwrap();
        end.take(1);
        end.push([0; 4]);
        assert!(!end.publish());
    }

    #[test]
    fn sleeping_and_waking() {
        let mut end = end();
        assert_eq!((end.fall_asleep(), end.asleep()), (Ok(true), true));
        assert_eq!(shown(&end, Word::EngineFlags), abi::ENGINE_NEED_WAKEUP);
        set(&end, Word::SqTail, 1);
        assert!(end.asleep(), "only the engine wakes itself");
        end.wake();
        assert_eq!((shown(&end, Word::EngineFlags), end.asleep()), (0, false));

        assert_eq!((end.fall_asleep(), end.asleep()), (Ok(false), false));
        assert_eq!(shown(&end, Word::EngineFlags), 0);
        assert_eq!(end.waiting(), 1, "the last look was for nothing");

        set(&end, Word::SqTail, 0);
        assert_eq!(end.fall_asleep(), Err(Fault::SqTailBack));
        let sleeps = end.memory.counter(RingCounter::Sleeps as u8);
        assert_eq!(sleeps.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn flags_outlast_sleep() {
        let mut end = end();
        end.close();
        assert_eq!(end.fall_asleep(), Ok(true));
        let both = abi::ENGINE_CLOSING | abi::ENGINE_NEED_WAKEUP;
        assert_eq!(shown(&end, Word::EngineFlags), both);
        end.wake();
        assert_eq!(shown(&end, Word::EngineFlags), abi::ENGINE_CLOSING);
    }

    #[test]
    fn a_fault_is_shown_with_its_reason_after_all_that_came_before() {
        let reasons = [
            (Fault::SqTailBeyond, abi::FAULT_SQ_TAIL_BEYOND),
            (Fault::SqTailBack, abi::FAULT_SQ_TAIL_BACK),
            (Fault::CqHead, abi::FAULT_CQ_HEAD),
        ];
        for (fault, reason) in reasons {
            let mut end = end();
            set(&end, Word::SqTail, 2);
            end.look().unwrap();
            end.take(1);
            end.take(1);
            end.push([7; 4]);
            end.fault(fault);
            let flags = abi::ENGINE_FAULTED | u32::from(reason) << 16;
            assert_eq!(shown(&end, Word::EngineFlags), flags);
            assert_eq!(shown(&end, Word::SqHead), index(2));
            assert_eq!(shown(&end, Word::CqTail), index(1));
        }
    }
}
