//! The client's end: pushes SQEs, pops CQEs, goes to sleep, and reads the verdict after a death.
//!
//! The engine may be hostile too: its head and tail are compared before they are believed.

use super::{Fault, KEPT, Kept, Memory, Word, fences, order};
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
#[repr(align(128))]
pub struct ClientEnd<M> {
    memory: M,
    /// SQEs pushed, as a number that does not wrap.
    pushed: u64,
    /// SQEs published.
    published: u64,
    /// SQEs taken, as last seen.
    taken: u64,
    /// What `pushed` may come to without another look at the engine's head.
    limit: u64,
    /// CQEs copied out of the ring.
    copied: u32,
    /// `cq_head` as last published.
    released: u32,
    /// `cq_tail` as last seen.
    cq_tail: u32,
    /// CQEs that were copied and not popped yet.
    kept: Kept<4>,
}

impl<M: Memory> ClientEnd<M> {
    /// Takes the client's end of ring memory that no client has used before.
    pub fn new(memory: M) -> Self {
        let first = memory.first_index();
        let limit = u64::from(memory.sq_entries());
        Self {
            memory,
            pushed: 0,
            published: 0,
            taken: 0,
            limit,
            copied: first,
            released: first,
            cq_tail: first,
            kept: Kept::new(),
        }
    }

    /// Returns how many SQEs can be pushed now.
    #[inline]
    pub fn room(&mut self) -> u32 {
        if self.limit == self.pushed {
            self.observe_taken();
        }
        low32(self.limit - self.pushed)
    }

    /// True if so many SQEs can be pushed now. Unlike [`Self::room`] it looks as soon as that
    /// matters, not only when the SQ seems full.
    pub fn has_room(&mut self, count: u32) -> bool {
        if self.limit - self.pushed < u64::from(count) {
            self.observe_taken();
        }
        self.limit - self.pushed >= u64::from(count)
    }

    #[cold]
    fn observe_taken(&mut self) {
        // sync: sqe-free, fate-visible (acquire)
        let head = self.memory.word(Word::SqHead).load(order::TAKEN_OBSERVE);
        let advance = head.wrapping_sub(self.index(self.taken));
        // A head that cannot be is not believed: the ring then looks full for ever.
        if u64::from(advance) <= self.published - self.taken {
            self.taken += u64::from(advance);
            self.limit += u64::from(advance);
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
        self.write(number, words);
        self.pushed += 1;
        Some(number)
    }

    /// Writes SQEs one behind the other, as many as there is room for; returns how many.
    ///
    /// The slots' lines come from the engine's cache. Stores leave a core in order, so every other
    /// store between two slots keeps their journeys from overlapping: here there is none, and that
    /// makes half the difference to pushing one by one.
    #[inline]
    pub fn push_all(&mut self, sqes: impl IntoIterator<Item = [u64; 8]>) -> u32 {
        let first = self.pushed;
        let mut next = first;
        let mut sqes = sqes.into_iter();
        loop {
            let limit = self.limit;
            while next < limit {
                let Some(words) = sqes.next() else { break };
                self.write(next, words);
                next += 1;
            }
            self.pushed = next;
            if next < limit || self.room() == 0 {
                return low32(next - first);
            }
        }
    }

    #[inline]
    fn write(&self, number: u64, words: [u64; 8]) {
        let slot = self.memory.sqe(self.index(number));
        for (at, word) in words.into_iter().enumerate() {
            slot[at].store(word, Ordering::Relaxed);
        }
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
        let known = self.cq_tail.wrapping_sub(self.popped());
        if known > 0 { Ok(known) } else { self.observe_tail() }
    }

    /// CQEs popped.
    #[inline]
    fn popped(&self) -> u32 {
        self.copied.wrapping_sub(self.kept.count())
    }

    /// Looks at the engine's tail; returns how many CQEs can be popped.
    ///
    /// # Errors
    /// A [`Fault`] if it cannot be.
    #[inline]
    pub fn observe_tail(&mut self) -> Result<u32, Fault> {
        // sync: cqe-visible (acquire)
        let tail = self.memory.word(Word::CqTail).load(order::CQE_OBSERVE);
        // Slots that were not given back cannot have been written anew.
        let unread = tail.wrapping_sub(self.released);
        if unread > self.memory.cq_entries() || unread < self.cq_tail.wrapping_sub(self.released) {
            return Err(Fault::CqHead);
        }
        self.cq_tail = tail;
        Ok(tail.wrapping_sub(self.popped()))
    }

    /// Pops a CQE: from those that were copied out before, or with the next ones from the ring.
    /// The slots of what was copied are given back with [`Self::release`].
    ///
    /// # Errors
    /// A [`Fault`] if the engine's tail cannot be.
    #[inline(always)]
    pub fn pop(&mut self) -> Result<Option<[u64; 4]>, Fault> {
        if self.kept.count() == 0 && self.copy()? == 0 {
            return Ok(None);
        }
        let words = self.kept.entry(0);
        self.kept.pass(1);
        Ok(Some(words))
    }

    /// Pops all CQEs that are there and hands each to `each`; returns how many that were. Whoever
    /// pops several saves time over popping them one by one. As with [`Self::pop`], their slots
    /// are given back with [`Self::release`].
    ///
    /// # Errors
    /// A [`Fault`] if the engine's tail cannot be; nothing is popped then.
    #[inline]
    pub fn pop_all(&mut self, mut each: impl FnMut([u64; 4])) -> Result<u32, Fault> {
        let ready = self.observe_tail()?;
        for _ in 0..self.kept.count() {
            each(self.kept.entry(0));
            self.kept.pass(1);
        }
        let mut index = self.copied;
        while index != self.cq_tail {
            let slot = self.memory.cqe(index);
            each(core::array::from_fn(|at| slot[at].load(Ordering::Relaxed)));
            index = index.wrapping_add(1);
        }
        self.copied = index;
        Ok(ready)
    }

    /// Copies CQEs out of the ring; none is left of those copied before.
    #[inline(never)]
    fn copy(&mut self) -> Result<u32, Fault> {
        let count = self.ready()?.min(KEPT);
        let Self { memory, kept, copied, .. } = self;
        kept.keep(count, |ahead| {
            let slot = memory.cqe(copied.wrapping_add(ahead));
            core::array::from_fn(|at| slot[at].load(Ordering::Relaxed))
        });
        self.copied = self.copied.wrapping_add(count);
        Ok(count)
    }

    /// Gives the slots of all CQEs that were copied out back to the engine.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.copied {
            self.released = self.copied;
            // sync: cqe-free (release)
            self.memory.word(Word::CqHead).store(self.copied, order::POPPED);
        }
    }

    /// Asks for the bell once `want` CQEs (at least 1) are ready; true if the client may sleep
    /// now, false if they are there already.
    ///
    /// # Errors
    /// A [`Fault`] if the engine's tail cannot be.
    pub fn arm_bell(&mut self, want: u32) -> Result<bool, Fault> {
        let want = want.clamp(1, self.memory.cq_entries());
        // "Passes" means: the bell is due when cq_tail moves beyond bell_at.
        let bell_at = self.popped().wrapping_add(want - 1);
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

#[cfg(test)]
#[cfg(not(verbring_loom))]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::ring::{EngineEnd, Heap};
    use crate::seeds::property;

    const FIRST_INDEX: u32 = u32::MAX - 2;
    const SQ_ENTRIES: u32 = 4;
    const CQ_ENTRIES: u32 = 4;

    type Client = ClientEnd<Arc<Heap>>;
    type Engine = EngineEnd<Arc<Heap>>;

    fn ends() -> (Client, Engine) {
        let memory = Arc::new(Heap::new(SQ_ENTRIES, CQ_ENTRIES, FIRST_INDEX));
        (ClientEnd::new(Arc::clone(&memory)), EngineEnd::new(memory))
    }

    fn index(number: i64) -> u32 {
        FIRST_INDEX.wrapping_add(count(number.rem_euclid(1 << 32)))
    }

    fn count(number: i64) -> u32 {
        u32::try_from(number).unwrap()
    }

    /// Writes a cursor as an engine would that has moved it to `number`.
    fn set(client: &Client, word: Word, number: i64) {
        client.memory.word(word).store(index(number), Ordering::Relaxed);
    }

    fn shown(client: &Client, word: Word) -> u32 {
        client.memory.word(word).load(Ordering::Relaxed)
    }

    /// Pushes and publishes `count` SQEs, and has the engine answer them all.
    fn answer(client: &mut Client, engine: &mut Engine, count: u32) {
        for number in 0..count {
            client.push([u64::from(number); 8]).unwrap();
        }
        client.publish();
        engine.look().unwrap();
        for number in 0..count {
            engine.take(1);
            engine.push([u64::from(number); 4]);
        }
        engine.publish_taken();
    }

    #[test]
    fn f28_numbers_run_on_while_cursors_wrap() {
        let (mut client, mut engine) = ends();
        for number in 0..100 {
            let words = core::array::from_fn(|at| 1000 * number + at as u64);
            assert_eq!((client.pushed(), client.push(words)), (number, Some(number)));
            assert_eq!(engine.look(), Ok(0), "seen before it was published");
            client.publish();
            assert_eq!(shown(&client, Word::SqTail), index(number.cast_signed() + 1));
            assert_eq!((engine.look(), engine.peek(0)), (Ok(1), words));
            engine.room(1).unwrap();
            engine.take(1);
            engine.publish_taken();
            engine.push([words[0], words[1], words[2], words[3]]);
            assert_eq!(client.pop(), Ok(None), "seen before it was published");
            engine.publish();
            assert_eq!(client.pop(), Ok(Some([words[0], words[1], words[2], words[3]])));
            assert_eq!(shown(&client, Word::CqHead), index(number.cast_signed()));
            client.release();
            assert_eq!(shown(&client, Word::CqHead), index(number.cast_signed() + 1));
        }
    }

    #[test]
    fn a_full_sq_takes_no_more() {
        let (mut client, mut engine) = ends();
        for number in 0..4 {
            assert_eq!((client.room(), client.push([7; 8])), (4 - number, Some(number.into())));
        }
        assert_eq!((client.room(), client.push([8; 8])), (0, None));
        client.publish();
        assert_eq!(client.push([8; 8]), None, "published is not taken");
        engine.look().unwrap();
        engine.take(1);
        assert_eq!(client.push([8; 8]), None, "taken is not given back");
        engine.publish_taken();
        assert_eq!((client.room(), client.push([8; 8])), (1, Some(4)));
        assert_eq!(client.push([8; 8]), None);
        for ahead in 0..3 {
            assert_eq!(engine.peek(ahead), [7; 8], "overwritten before it was taken");
        }
    }

    #[test]
    fn several_are_pushed_as_far_as_there_is_room() {
        let (mut client, mut engine) = ends();
        let sqes = |from: u64| (from..).map(|number| [number; 8]);
        assert_eq!(client.push_all(sqes(0).take(3)), 3);
        assert_eq!(client.push_all(sqes(3)), 1, "four slots");
        assert_eq!((client.push_all(sqes(9)), client.pushed()), (0, 4));
        client.publish();
        engine.look().unwrap();
        assert_eq!(engine.take_many(2), Ok(2));
        engine.publish_taken();
        assert_eq!(client.push_all(sqes(4)), 2, "two were taken");
        client.publish();
        engine.look().unwrap();
        let seen = (0..4).map(|ahead| engine.peek(ahead)[7]).collect::<Vec<_>>();
        assert_eq!(seen, [2, 3, 4, 5], "in order, and none was consumed in vain");
    }

    #[test]
    fn all_are_popped_also_those_that_were_copied_before() {
        let (mut client, mut engine) = ends();
        let mut popped = Vec::new();
        for round in 0..50 {
            answer(&mut client, &mut engine, 4);
            engine.publish();
            // One by one copies all four out; the rest of them is handed out with the others.
            if round % 2 == 0 {
                popped.push(client.pop().unwrap().unwrap()[0]);
                let rest = client.pop_all(|words| popped.push(words[0]));
                assert_eq!(rest, Ok(3));
            } else {
                assert_eq!(client.pop_all(|words| popped.push(words[0])), Ok(4));
            }
            assert_eq!((client.ready(), client.pop_all(|_| unreachable!())), (Ok(0), Ok(0)));
            client.release();
            engine.observe_head().unwrap();
        }
        assert_eq!(popped, [0, 1, 2, 3].repeat(50));
        set(&client, Word::CqTail, 1 << 20);
        assert_eq!(client.pop_all(|_| unreachable!("a tail that cannot be")), Err(Fault::CqHead));
    }

    #[test]
    fn publishing_nothing_writes_nothing() {
        let (mut client, mut engine) = ends();
        assert_eq!(engine.fall_asleep(), Ok(true));
        assert!(!client.publish(), "there is nothing to wake the engine for");
        client.push([0; 8]).unwrap();
        assert!(client.publish());
        assert!(!client.publish());
    }

    #[test]
    fn the_doorbell_is_asked_for_while_the_engine_sleeps() {
        let (mut client, mut engine) = ends();
        client.push([0; 8]).unwrap();
        assert!(!client.publish());
        engine.look().unwrap();
        engine.take(1);
        assert_eq!(engine.fall_asleep(), Ok(true));
        for _ in 0..2 {
            client.push([0; 8]).unwrap();
            assert!(client.publish(), "a sleeper is rung until it says that it woke");
        }
        engine.wake();
        client.push([0; 8]).unwrap();
        assert!(!client.publish());
    }

    /// Each number of CQEs wanted against each number that are there, popped and not popped.
    #[test]
    fn the_bell_is_armed_for_the_last_cqe_wanted() {
        for want in 0..=6 {
            for (before, popped) in (0..=3).flat_map(|n| (0..=n).map(move |popped| (n, popped))) {
                let (mut client, mut engine) = ends();
                answer(&mut client, &mut engine, 4 - 1);
                // The client knows `before` CQEs, has popped some, and the engine has three.
                set(&client, Word::CqTail, before);
                client.observe_tail().unwrap();
                for _ in 0..popped {
                    client.pop().unwrap().unwrap();
                }
                let wanted = want.clamp(1, CQ_ENTRIES);
                let sleeps = (before - popped) < i64::from(wanted);
                assert_eq!(client.arm_bell(want), Ok(sleeps), "want {want} of {before}-{popped}");
                let bell_at = shown(&client, Word::BellAt);
                assert_eq!(bell_at, index(popped + i64::from(wanted) - 1));
                assert_eq!(client.ready(), Ok(count(before - popped)));
            }
        }
    }

    #[test]
    fn a_sleeping_client_is_rung_once_for_the_cqe_it_waits_for() {
        let (mut client, mut engine) = ends();
        for _ in 0..4 {
            client.push([0; 8]).unwrap();
        }
        client.publish();
        assert_eq!(client.arm_bell(2), Ok(true));
        engine.look().unwrap();
        let mut rung = Vec::new();
        for _ in 0..4 {
            engine.take(1);
            engine.push([0; 4]);
            rung.push(engine.publish());
        }
        assert_eq!(rung, [false, true, false, false]);
        assert_eq!(client.arm_bell(2), Ok(false), "they are there already");
    }

    /// A hostile engine: every tail near the cursors after every history, and some far away.
    #[test]
    fn a_tail_that_cannot_be_is_refused() {
        let far = [1 << 16, 1 << 31, -(1 << 30)];
        for (seen, popped) in (0..=4).flat_map(|n| (0..=n).map(move |popped| (n, popped))) {
            for tail in (-12..=12).chain(far) {
                let (mut client, _) = ends();
                set(&client, Word::CqTail, seen);
                client.observe_tail().unwrap();
                for _ in 0..popped {
                    client.pop().unwrap().unwrap();
                }
                client.release();
                set(&client, Word::CqTail, tail);
                // With the first one popped all that were seen are copied out and given back.
                let given_back = if popped > 0 { seen } else { 0 };
                let possible = (seen..=given_back + 4).contains(&tail);
                let expected = if possible { Ok(count(tail - popped)) } else { Err(Fault::CqHead) };
                assert_eq!(
                    client.observe_tail(),
                    expected,
                    "seen {seen}, popped {popped}, tail {tail}"
                );
                let kept = if possible { tail } else { seen };
                assert_eq!(client.cq_tail, index(kept), "a bad tail was kept");
                assert_eq!(client.arm_bell(1).is_ok(), possible);
            }
        }
    }

    #[test]
    fn a_bad_tail_stops_pop_when_nothing_good_is_left() {
        let (mut client, mut engine) = ends();
        answer(&mut client, &mut engine, 2);
        engine.publish();
        assert_eq!(client.ready(), Ok(2));
        set(&client, Word::CqTail, 7);
        assert!(client.pop().is_ok_and(|words| words.is_some()));
        assert!(client.pop().is_ok_and(|words| words.is_some()));
        assert_eq!(client.pop(), Err(Fault::CqHead));
    }

    /// A head that cannot be gives no room: the ring looks full, and nothing is overwritten.
    #[test]
    fn a_head_that_cannot_be_is_not_believed() {
        for head in (-12..=12).chain([1 << 16, 1 << 31, -(1 << 30)]) {
            let (mut client, mut engine) = ends();
            // Two of four are taken; then two more are pushed, one of them published.
            for _ in 0..4 {
                client.push([0; 8]).unwrap();
            }
            client.publish();
            engine.look().unwrap();
            engine.take(1);
            engine.take(1);
            engine.publish_taken();
            client.push([0; 8]).unwrap();
            client.publish();
            client.push([0; 8]).unwrap();
            assert_eq!(client.room(), 0);
            set(&client, Word::SqHead, head);
            let possible = (2..=5).contains(&head);
            let room = if possible { count(head - 2) } else { 0 };
            assert_eq!(client.room(), room, "head {head}");
        }
    }

    /// The engine dies after each step of each way that an op can go: what is read then is true.
    /// Steps are named by what the op has done so far.
    #[test]
    fn verdict_is_true_after_each_step() {
        use Verdict::{Done, Indeterminate, NotStarted};
        type Way = &'static [(&'static str, fn(&mut Engine), Verdict)];
        let done: Way = &[
            ("pushed", |_| {}, NotStarted),
            ("entered", |engine| engine.fate_accepted(2, 9, 0), NotStarted),
            ("taken", |engine| engine.take(1), NotStarted),
            ("published", Engine::publish_taken, NotStarted),
            ("marked", |engine| engine.fate_posted(2, 0), Indeterminate),
            ("refused", |engine| engine.fate_accepted(2, 9, 0), NotStarted),
            ("marked again", |engine| engine.fate_posted(2, 0), Indeterminate),
            ("landed, its CQE to be skipped", |engine| engine.forgo(1), Indeterminate),
            ("freed", |engine| engine.fate_freed(2), Done),
            ("its place taken by another", |engine| engine.fate_accepted(2, 10, 1), Done),
            ("its place posted by another", |engine| engine.fate_posted(2, 1), Done),
        ];
        let (mut client, mut engine) = ends();
        client.push([0; 8]).unwrap();
        client.push([0; 8]).unwrap();
        client.publish();
        engine.look().unwrap();
        for (name, step, verdict) in done {
            step(&mut engine);
            assert_eq!(client.verdict(0), *verdict, "after it was {name}");
            assert_eq!(client.verdict(2), NotStarted, "never pushed");
        }
        assert_eq!(client.verdict(1), Indeterminate, "seen by its entry, not by sq_head");
    }

    #[test]
    fn verdicts_of_a_full_table_are_told_apart() {
        let (mut client, mut engine) = ends();
        for _ in 0..4 {
            client.push([0; 8]).unwrap();
        }
        client.publish();
        engine.look().unwrap();
        for number in 0..4 {
            engine.fate_accepted(3 - number, 50, u64::from(number));
            engine.take(1);
        }
        engine.publish_taken();
        engine.fate_posted(2, 1);
        engine.fate_freed(1);
        let verdicts = [0, 1, 2, 3, 4].map(|number| client.verdict(number));
        use Verdict::{Done, Indeterminate, NotStarted};
        assert_eq!(verdicts, [NotStarted, Indeterminate, Done, NotStarted, NotStarted]);
    }

    /// What a hostile engine may write, and what the client does meanwhile.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Word(usize, u32),
        Fate(u32, u64),
        Push,
        Publish,
        Pop,
        Arm(u32),
        Verdict(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let near = (0_u32..16).prop_map(|near| FIRST_INDEX.wrapping_add(near).wrapping_sub(6));
        let value = prop_oneof![4 => near, 1 => any::<u32>()];
        let step = prop_oneof![
            3 => (0_usize..3, value).prop_map(|(word, value)| Step::Word(word, value)),
            1 => (any::<u32>(), any::<u64>()).prop_map(|(place, word)| Step::Fate(place, word)),
            4 => Just(Step::Push),
            2 => Just(Step::Publish),
            3 => Just(Step::Pop),
            1 => any::<u32>().prop_map(Step::Arm),
            1 => (0_u64..20).prop_map(Step::Verdict),
        ];
        proptest::collection::vec(step, 1..100)
    }

    proptest! {
        #![proptest_config(property(1_000))]

        /// Whatever the engine writes, the client's own cursors stay within the rings' bounds.
        #[test]
        fn a_hostile_engine_moves_nothing_out_of_bounds(steps in steps()) {
            let (mut client, _) = ends();
            for step in steps {
                match step {
                    Step::Word(word, value) => {
                        let word = [Word::SqHead, Word::CqTail, Word::EngineFlags][word];
                        client.memory.word(word).store(value, Ordering::Relaxed);
                    }
                    Step::Fate(place, word) => {
                        client.memory.fate(place)[1].store(word, Ordering::Relaxed);
                    }
                    Step::Push => {
                        let room = client.room();
                        prop_assert_eq!(client.push([1; 8]).is_some(), room > 0);
                    }
                    Step::Publish => {
                        client.publish();
                    }
                    Step::Pop => {
                        if let Ok(Some(_)) = client.pop() {
                            client.release();
                        }
                    }
                    Step::Arm(want) => {
                        let _ = client.arm_bell(want);
                    }
                    Step::Verdict(number) => {
                        let verdict = client.verdict(number);
                        prop_assert!(verdict != Verdict::Done || number < client.taken);
                    }
                }
                prop_assert!(client.taken <= client.published);
                prop_assert!(client.published <= client.pushed);
                prop_assert!(client.pushed - client.taken <= u64::from(SQ_ENTRIES));
                prop_assert!(client.cq_tail.wrapping_sub(client.released) <= CQ_ENTRIES);
            }
        }
    }
}
