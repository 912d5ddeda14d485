//! Both ends of a telemetry page: the engine counts in memory of its own, and copies out what has
//! changed now and then; readers come when they like.
//!
//! ```text
//!  engine                                   reader
//!  sequence odd (relaxed)                   sequence (acquire); odd: again
//!  fence (release)                          the other words (relaxed)   sync: block-visible
//!  lines that changed (relaxed) ------>     fence (acquire)
//!  sequence even (release)                  sequence (relaxed); another: again
//! ```
//!
//! To copy costs much more than to count, so it is done once in [`EVERY_NS`]: however many ops
//! change a line meanwhile, it is copied once. A turn copies a bounded number of blocks.
//!
//! **Invariants**: one writer, which never reads what it shares; a block is in `changed` if and
//! only if one of its lines is marked; nothing is allocated after [`Tallies::new`].
//! **Deliberately absent**: what is counted, and when (`engine`); descriptors and seals.
//! **Tests**: here on the heap; `tests/telemetry.rs` over the memfd.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::abi::{BLOCK_COUNTERS, HISTOGRAM_BUCKETS, Tally, TelemetryHeader};
#[cfg(not(verbring_loom))]
use crate::abi::{BLOCK_STRIDE, TELEMETRY_HEADER_BYTES};
#[cfg(not(verbring_loom))]
use crate::shm::Mapping;
use crate::sync::{AtomicU64, Ordering, fence};

/// Words of a block.
pub const BLOCK_WORDS: usize = (BLOCK_COUNTERS + 2 * HISTOGRAM_BUCKETS) as usize;
/// Lines of a block; which of them changed is a word.
const LINES: usize = BLOCK_WORDS / 8;
const _: () = assert!(LINES == 64);

/// Nanoseconds between two copies of the same block, and so how old what is read may be; but an
/// engine that goes to sleep copies all there is.
pub const EVERY_NS: u64 = 500_000;
/// Blocks copied in one turn.
const BLOCKS_PER_TURN: usize = 16;

/// First word of the histogram of queue waits.
pub const WAIT_AT: usize = BLOCK_COUNTERS as usize;
/// First word of the histogram of service times.
pub const SERVICE_AT: usize = (BLOCK_COUNTERS + HISTOGRAM_BUCKETS) as usize;

/// The words of a block.
pub type Words = [u64; BLOCK_WORDS];

/// The marks of the lines that hold these words.
#[inline(always)]
#[must_use]
pub const fn lines_of(words: &[usize]) -> u64 {
    let (mut lines, mut at) = (0, 0);
    while at < words.len() {
        lines |= 1 << (words[at] / 8);
        at += 1;
    }
    lines
}

/// What an engine counts, and the page that it copies it to, if it has one.
#[derive(Debug)]
pub struct Tallies {
    header: TelemetryHeader,
    blocks: Box<[Aligned]>,
    /// Lines of each block that have changed since they were copied, a bit each.
    marks: Box<[u64]>,
    /// Blocks with such lines, the first to change first.
    changed: VecDeque<u32>,
    page: Option<Page>,
    /// When the next copies are due; `u64::MAX` without a page.
    due_ns: u64,
}

/// Where the lines of a block are the cache's.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Aligned(Words);

/// The engine's end of a telemetry page.
#[derive(Debug)]
pub struct Page {
    memory: Memory,
    blocks: u64,
}

/// The blocks' shared memory.
#[derive(Debug)]
enum Memory {
    #[cfg(not(verbring_loom))]
    Mapped(Mapping),
    Heap(Arc<[[AtomicU64; 8]]>),
}

impl Tallies {
    /// Counts of an engine with so many rails and sessions, on no page.
    #[must_use]
    pub fn new(rails: u16, sessions: u32) -> Self {
        let header = TelemetryHeader::lay_out(rails.into(), sessions);
        let blocks = usize::try_from(header.blocks()).unwrap_or(usize::MAX);
        Self {
            header,
            blocks: vec![Aligned([0; BLOCK_WORDS]); blocks].into(),
            marks: vec![0; blocks].into(),
            changed: VecDeque::with_capacity(blocks),
            page: None,
            due_ns: u64::MAX,
        }
    }

    /// How its page is laid out; identity fields are zero.
    #[must_use]
    pub fn header(&self) -> &TelemetryHeader {
        &self.header
    }

    /// From now on what is counted is copied to this page.
    ///
    /// # Panics
    /// If it has more or fewer blocks than [`Tallies::header`] says.
    pub fn copy_to(&mut self, page: Page) {
        assert_eq!(page.blocks, self.header.blocks(), "a page of another layout");
        self.page = Some(page);
        self.due_ns = 0;
    }

    /// A block's words, to be counted in; the lines that change are those marked.
    #[inline(always)]
    pub fn touch(&mut self, block: u32, lines: u64) -> &mut Words {
        let place = block as usize;
        if self.marks[place] == 0 {
            self.note_changed(block);
        }
        self.marks[place] |= lines;
        &mut self.blocks[place].0
    }

    #[cold]
    #[inline(never)]
    fn note_changed(&mut self, block: u32) {
        self.changed.push_back(block);
    }

    /// Adds to one word of a block.
    #[inline(always)]
    pub fn add(&mut self, block: u32, word: usize, by: u64) {
        self.touch(block, lines_of(&[word]))[word] += by;
    }

    /// What a block holds, but for its sequence and what is derived when it is copied.
    #[must_use]
    pub fn block(&self, block: u32) -> &Words {
        &self.blocks[block as usize].0
    }

    /// A session's place is taken: its counts begin at 0.
    pub fn begin_session(&mut self, session: u32) {
        self.clear_session(session);
    }

    /// A session is gone: what it counted is of those that are gone.
    pub fn end_session(&mut self, session: u32) {
        let words = self.blocks[self.header.session_block(session) as usize].0;
        let gone = self.touch(self.header.gone_block(), u64::MAX);
        for (word, (sum, own)) in gone.iter_mut().zip(words).enumerate() {
            if word != Tally::Sequence as usize && word != Tally::Uses as usize {
                *sum += own;
            }
        }
        self.clear_session(session);
    }

    fn clear_session(&mut self, session: u32) {
        let words = self.touch(self.header.session_block(session), u64::MAX);
        let uses = words[Tally::Uses as usize] + 1;
        words[1..].fill(0);
        words[Tally::Uses as usize] = uses;
    }

    /// True if it is time to copy what has changed, be it nothing.
    #[inline]
    #[must_use]
    pub fn due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// Copies what has changed: a bounded number of blocks.
    #[cold]
    pub fn publish(&mut self, now_ns: u64) {
        for _ in 0..BLOCKS_PER_TURN {
            let Some(block) = self.changed.pop_front() else { break };
            self.copy(block);
        }
        if self.changed.is_empty() {
            self.due_ns = now_ns.saturating_add(EVERY_NS);
        }
    }

    /// Copies all that has changed: before a sleep.
    pub fn publish_all(&mut self) {
        if self.page.is_none() {
            return;
        }
        while let Some(block) = self.changed.pop_front() {
            self.copy(block);
        }
    }

    /// Copies the lines of a block that have changed.
    fn copy(&mut self, block: u32) {
        let Some(page) = &self.page else { return };
        // The first line has the sequence, and what is derived.
        let mut marks = std::mem::take(&mut self.marks[block as usize]) | 1;
        let words = &mut self.blocks[block as usize].0;
        let rails = self.header.lanes..self.header.gone_block();
        derive(words, rails.contains(&block));
        let sequence = words[Tally::Sequence as usize];
        words[Tally::Sequence as usize] = sequence.wrapping_add(2);
        let first = &page.line(block, 0)[Tally::Sequence as usize];
        first.store(sequence.wrapping_add(1), Ordering::Relaxed);
        // sync: block-visible. On x86 this is an order to the compiler alone.
        fence(Ordering::Release);
        while marks != 0 {
            let line = marks.trailing_zeros() as usize;
            marks &= marks - 1;
            let shared = page.line(block, line);
            for (at, value) in words[line * 8..][..8].iter().enumerate() {
                if (line, at) != (0, Tally::Sequence as usize) {
                    shared[at].store(*value, Ordering::Relaxed);
                }
            }
        }
        first.store(sequence.wrapping_add(2), Ordering::Release);
    }
}

/// What is queued and in flight follows from the counts.
fn derive(words: &mut Words, rail: bool) {
    let of = |tally: Tally| words[tally as usize];
    let posted = of(Tally::Dispatched).wrapping_sub(of(Tally::Requeued));
    let ended = of(Tally::Completed).wrapping_add(of(Tally::Failed));
    let queued = of(Tally::Enqueued).wrapping_sub(of(Tally::Withdrawn)).wrapping_sub(posted);
    words[Tally::Queued as usize] = if rail { 0 } else { queued };
    words[Tally::InFlight as usize] = posted.wrapping_sub(ended);
}

impl Page {
    /// Makes a page in fresh, zeroed memory, and writes its header.
    ///
    /// # Panics
    /// If the header is not one of [`TelemetryHeader::lay_out`], or does not fit the mapping.
    #[cfg(not(verbring_loom))]
    #[must_use]
    pub fn create(mapping: Mapping, header: &TelemetryHeader) -> Self {
        let ours = TelemetryHeader::lay_out(header.rails, header.sessions);
        let TelemetryHeader { boot_id, engine, engine_pid, .. } = *header;
        let ours = TelemetryHeader { boot_id, engine, engine_pid, ..ours };
        assert_eq!(*header, ours, "a page of another layout");
        assert!(header.bytes() <= mapping.bytes(), "a page that ends too soon");
        mapping.write(0, zerocopy::IntoBytes::as_bytes(header));
        Self { memory: Memory::Mapped(mapping), blocks: header.blocks() }
    }

    /// Makes a page on the heap, and returns the lines of its blocks: for tests and benches.
    #[must_use]
    pub fn on_heap(header: &TelemetryHeader) -> (Self, Arc<[[AtomicU64; 8]]>) {
        let blocks = header.blocks();
        let lines: Arc<[_]> =
            (0..blocks * LINES as u64).map(|_| [0; 8].map(AtomicU64::new)).collect();
        (Self { memory: Memory::Heap(Arc::clone(&lines)), blocks }, lines)
    }

    fn line(&self, block: u32, line: usize) -> &[AtomicU64; 8] {
        match &self.memory {
            #[cfg(not(verbring_loom))]
            Memory::Mapped(mapping) => {
                let at = u64::from(block) * u64::from(BLOCK_STRIDE) + 64 * line as u64;
                mapping.line(u64::from(TELEMETRY_HEADER_BYTES) + at)
            }
            Memory::Heap(lines) => &lines[block as usize * LINES + line],
        }
    }
}

/// Reads a block of lines, of which there are some, into as many words; false if it was being
/// written. The first word read is the sequence.
pub fn read_block<'a>(lines: impl Iterator<Item = &'a [AtomicU64; 8]>, words: &mut [u64]) -> bool {
    let mut first = None;
    for (line, values) in lines.zip(words.chunks_mut(8)) {
        let load = || (&line[0], line[0].load(Ordering::Acquire));
        let (_, sequence) = *first.get_or_insert_with(load);
        if sequence % 2 == 1 {
            return false;
        }
        for (value, word) in values.iter_mut().zip(line) {
            *value = word.load(Ordering::Relaxed);
        }
    }
    // sync: block-visible.
    fence(Ordering::Acquire);
    first.is_some_and(|(word, sequence)| word.load(Ordering::Relaxed) == sequence)
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seeds::property;

    /// Lines of a block of a page on the heap.
    fn block(lines: &[[AtomicU64; 8]], number: u32) -> &[[AtomicU64; 8]] {
        &lines[number as usize * LINES..][..LINES]
    }

    fn read(lines: &[[AtomicU64; 8]], number: u32) -> Option<Words> {
        let mut words = [0; BLOCK_WORDS];
        read_block(block(lines, number).iter(), &mut words).then_some(words)
    }

    fn counting(rails: u16, sessions: u32) -> (Tallies, Arc<[[AtomicU64; 8]]>) {
        let mut tallies = Tallies::new(rails, sessions);
        let (page, lines) = Page::on_heap(tallies.header());
        tallies.copy_to(page);
        (tallies, lines)
    }

    const FAILED: usize = Tally::Failed as usize;

    proptest! {
        #![proptest_config(property(200))]

        /// The model: one sum for each word that was added to. The page has all of them after a
        /// copy of everything, and never one that was not counted.
        #[test]
        fn what_is_counted_is_copied(
            steps in proptest::collection::vec((0..12_u32, 1..BLOCK_WORDS, 1..9_u64), 1..300),
        ) {
            let (mut tallies, lines) = counting(2, 3);
            let mut model = std::collections::BTreeMap::new();
            for (now_ns, (number, word, by)) in (0_u64..).zip(steps) {
                let derived = [Tally::Queued as usize, Tally::InFlight as usize];
                if derived.contains(&word) {
                    continue;
                }
                tallies.add(number, word, by);
                *model.entry((number, word)).or_insert(0) += by;
                let now_ns = now_ns * EVERY_NS / 8;
                if tallies.due(now_ns) {
                    tallies.publish(now_ns);
                    prop_assert_eq!(read(&lines, number).unwrap()[word], model[&(number, word)]);
                }
            }
            tallies.publish_all();
            for number in 0..12 {
                let words = read(&lines, number).unwrap();
                for word in (1..BLOCK_WORDS).filter(|word| !(6..8).contains(word)) {
                    let sum = model.get(&(number, word)).copied().unwrap_or(0);
                    prop_assert_eq!(words[word], sum, "word {} of block {}", word, number);
                }
            }
        }
    }

    #[test]
    fn copies_are_made_now_and_then_and_a_bounded_number_at_a_time() {
        let blocks = u32::try_from(2 * BLOCKS_PER_TURN).unwrap();
        let (mut tallies, lines) = counting(1, blocks);
        let at = tallies.header().session_block(0);
        (at..at + blocks).for_each(|block| tallies.add(block, FAILED, 1));
        let seen = || (at..at + blocks).filter(|n| read(&lines, *n).unwrap()[FAILED] == 1).count();
        assert!(tallies.due(7));
        tallies.publish(7);
        assert_eq!(seen(), BLOCKS_PER_TURN);
        assert!(tallies.due(8), "the rest is due at once");
        tallies.publish(8);
        assert_eq!(seen(), 2 * BLOCKS_PER_TURN);
        tallies.add(at, FAILED, 1);
        assert!(!tallies.due(8 + EVERY_NS - 1) && tallies.due(8 + EVERY_NS));
    }

    #[test]
    fn a_session_begins_at_0_and_leaves_its_counts_to_those_that_are_gone() {
        let (mut tallies, lines) = counting(1, 2);
        let (own, gone) = (tallies.header().session_block(1), tallies.header().gone_block());
        for turn in 1..=3 {
            tallies.begin_session(1);
            tallies.publish_all();
            let uses = Tally::Uses as usize;
            assert_eq!(
                (read(&lines, own).unwrap()[uses], tallies.block(own)[FAILED]),
                (2 * turn - 1, 0)
            );
            tallies.add(own, FAILED, 5);
            tallies.add(own, SERVICE_AT, 5);
            tallies.end_session(1);
            tallies.publish_all();
            assert_eq!(
                read(&lines, own).unwrap()[1..],
                {
                    let mut words = [0; BLOCK_WORDS];
                    words[uses] = 2 * turn;
                    words
                }[1..]
            );
            let words = read(&lines, gone).unwrap();
            assert_eq!((words[FAILED], words[SERVICE_AT], words[uses]), (5 * turn, 5 * turn, 0));
        }
    }

    #[test]
    fn readers_beside_a_writer_see_whole_blocks_or_none() {
        let (mut tallies, lines) = counting(1, 1);
        let last = BLOCK_WORDS - 1;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while seen < 100_000 {
                    let Some(words) = read(&lines, 0) else { continue };
                    assert_eq!(words[FAILED], words[last], "torn");
                    assert!(words[FAILED] >= seen, "backwards");
                    seen = words[FAILED];
                }
            });
            for _ in 0..100_000 {
                tallies.add(0, FAILED, 1);
                tallies.add(0, last, 1);
                tallies.publish_all();
            }
            reader.join().unwrap();
        });
    }

    #[test]
    fn a_block_that_is_being_written_is_not_read() {
        let (mut tallies, lines) = counting(1, 1);
        tallies.add(0, FAILED, 1);
        tallies.publish_all();
        assert!(read(&lines, 0).is_some());
        block(&lines, 0)[0][0].fetch_add(1, Ordering::Relaxed);
        assert!(read(&lines, 0).is_none());
    }
}
