//! Both ends of a flight recorder: the engine writes each entry in one go, readers come when they
//! like.
//!
//! ```text
//!  engine                                   reader
//!  sequence = 0 (relaxed)                   sequence (acquire); 0: nothing here
//!  fence (release)                          the other words (relaxed)   sync: entry-visible
//!  the other words (relaxed)    ------>     fence (acquire)
//!  sequence (release)                       sequence (relaxed); another: torn, or overwritten
//! ```
//!
//! A reader whose two looks at the sequence agree has the entry whole. An engine that is killed
//! between its first store and its last leaves one entry that reads as empty, and no other.
//!
//! **Invariants**: one writer; it never reads the memory back, so that nothing a client might do to
//! it can lead the engine astray.
//! **Deliberately absent**: what an entry means (`abi`); descriptors and seals (`control`).
//! **Tests**: here on the heap; `tests/ledger.rs` over the memfd, with an engine that is killed.

use std::sync::Arc;

#[cfg(not(verbring_loom))]
use crate::abi::{RECORD_STRIDE, RECORDER_HEADER_BYTES, RecorderHeader};
#[cfg(not(verbring_loom))]
use crate::shm::Mapping;
use crate::sync::{AtomicU64, Ordering, fence};

/// The engine's end of a session's flight recorder.
#[derive(Debug)]
pub struct Recorder {
    lines: Lines,
    /// Entries, less one.
    mask: u32,
    /// Entries written so far; wraps.
    written: u32,
}

/// The entries' memory, a cache line each.
#[derive(Debug)]
enum Lines {
    #[cfg(not(verbring_loom))]
    Mapped(Arc<Mapping>),
    Heap(Arc<[[AtomicU64; 8]]>),
}

impl Recorder {
    /// Makes a recorder in fresh, zeroed memory, and writes its header.
    ///
    /// # Panics
    /// If the header is not one of [`RecorderHeader::lay_out`], or does not fit the mapping.
    #[cfg(not(verbring_loom))]
    #[must_use]
    pub fn create(mapping: Arc<Mapping>, header: &RecorderHeader) -> Self {
        let ours = (header.header_bytes, header.entry_stride);
        assert_eq!(ours, (RECORDER_HEADER_BYTES, RECORD_STRIDE), "a recorder of another layout");
        assert!(header.entries.is_power_of_two() && header.bytes() <= mapping.bytes());
        mapping.write(0, zerocopy::IntoBytes::as_bytes(header));
        Self { lines: Lines::Mapped(mapping), mask: header.entries - 1, written: 0 }
    }

    /// Makes a recorder on the heap, and returns what it writes to: for tests and benches.
    ///
    /// # Panics
    /// If `entries` is not a power of two.
    #[must_use]
    pub fn on_heap(entries: u32) -> (Self, Arc<[[AtomicU64; 8]]>) {
        assert!(entries.is_power_of_two());
        let lines: Arc<[_]> = (0..entries).map(|_| [0; 8].map(AtomicU64::new)).collect();
        let heap = Lines::Heap(Arc::clone(&lines));
        (Self { lines: heap, mask: entries - 1, written: 0 }, lines)
    }

    /// Writes an entry over the oldest one. The low half of its first word, the sequence, is set
    /// here.
    #[inline(always)]
    pub fn write(&mut self, [first, rest @ ..]: [u64; 8]) {
        let place = self.written & self.mask;
        self.written = self.written.wrapping_add(1);
        let line = match &self.lines {
            #[cfg(not(verbring_loom))]
            Lines::Mapped(mapping) => {
                let at = u64::from(RECORDER_HEADER_BYTES);
                mapping.line(at + u64::from(place) * u64::from(RECORD_STRIDE))
            }
            Lines::Heap(lines) => &lines[place as usize],
        };
        let [sequence, words @ ..] = line;
        sequence.store(0, Ordering::Relaxed);
        // sync: entry-visible. On x86 this is an order to the compiler alone.
        fence(Ordering::Release);
        for (word, value) in words.iter().zip(rest) {
            word.store(value, Ordering::Relaxed);
        }
        const LOW: u64 = u32::MAX as u64;
        sequence.store(first & !LOW | u64::from(self.written), Ordering::Release);
    }
}

/// Reads the entry in a place, if there is one that is whole.
#[must_use]
pub fn read_entry(line: &[AtomicU64; 8]) -> Option<[u64; 8]> {
    let first = line[0].load(Ordering::Acquire);
    let mut words = [first; 8];
    for (value, word) in words.iter_mut().zip(line).skip(1) {
        *value = word.load(Ordering::Relaxed);
    }
    // sync: entry-visible.
    fence(Ordering::Acquire);
    let written = first & u64::from(u32::MAX) != 0;
    (written && line[0].load(Ordering::Relaxed) == first).then_some(words)
}

#[cfg(all(test, not(verbring_loom)))]
mod tests {
    use super::*;

    fn entry(of: u64) -> [u64; 8] {
        [of << 32 | 0xffff_ffff, of, of, of, of, of, of, !of]
    }

    #[test]
    fn the_last_entries_are_there_and_numbered() {
        let (mut recorder, lines) = Recorder::on_heap(4);
        assert_eq!(lines.iter().filter_map(read_entry).count(), 0);
        for of in 1..=6 {
            recorder.write(entry(of));
        }
        let found: Vec<_> = lines.iter().map(|line| read_entry(line).unwrap()).collect();
        let expected = [5, 6, 3, 4].map(|of| {
            let [_, rest @ ..] = entry(of);
            (of << 32 | of, rest)
        });
        let found: Vec<_> = found.iter().map(|[first, rest @ ..]| (*first, *rest)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_entry_that_is_being_written_is_not_there() {
        let (mut recorder, lines) = Recorder::on_heap(1);
        recorder.write(entry(7));
        assert!(read_entry(&lines[0]).is_some());
        let whole = lines[0][0].load(Ordering::Relaxed);
        lines[0][0].store(whole & !u64::from(u32::MAX), Ordering::Relaxed);
        assert!(read_entry(&lines[0]).is_none());
    }

    #[test]
    fn readers_beside_a_writer_see_whole_entries_or_none() {
        let (mut recorder, lines) = Recorder::on_heap(2);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0_u64;
                while seen < 400_000 - 1 {
                    for line in lines.iter() {
                        let Some([first, of, rest @ ..]) = read_entry(line) else { continue };
                        assert_eq!(first >> 32, of, "torn");
                        assert_eq!(rest, [of, of, of, of, of, !of], "torn");
                        seen = seen.max(of);
                    }
                }
            });
            for of in 1..=400_000 {
                recorder.write(entry(of));
            }
            reader.join().unwrap();
        });
    }
}
