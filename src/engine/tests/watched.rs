//! Ring memory that looks at itself: before every access of the engine to a shared word, the
//! fate table, the heads and the CQEs must tell one story. So the rule is checked between any two
//! steps of the engine, as a client would find the memory if the engine died right there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::abi::{FATE_ACCEPTED, FATE_POSTED, FATE_SHIFT};
use crate::ring::{Heap, Memory, Word};

/// Ring memory as the engine sees it; the client has the heap itself.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    heap: Arc<Heap>,
    watch: Option<Watch>,
}

/// What was seen so far of one ring whose ops carry their SQE number as `user_data`.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch(Rc<RefCell<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    /// CQEs that `cq_tail` has covered.
    tail: u32,
    begun: bool,
    /// Numbers with a published CQE.
    completed: BTreeSet<u64>,
    /// Numbers that may leave without a CQE.
    silent: BTreeSet<u64>,
    looks: u64,
}

impl Watched {
    pub(super) fn new(heap: Arc<Heap>, watch: Option<Watch>) -> Self {
        Self { heap, watch }
    }

    fn look(&self) {
        if let Some(watch) = &self.watch {
            watch.look(&self.heap);
        }
    }
}

impl Watch {
    /// This SQE asks to skip its success.
    pub(super) fn silent(&self, number: u64) {
        self.0.borrow_mut().silent.insert(number);
    }

    /// How often the memory was looked at.
    pub(super) fn looks(&self) -> u64 {
        self.0.borrow().looks
    }

    /// Every SQE that the head covers has a CQE that the tail covers, or an entry, or asked for
    /// neither; nothing has two entries, or an entry beyond what was pushed.
    pub(super) fn look(&self, heap: &Heap) {
        let mut seen = self.0.borrow_mut();
        seen.looks += 1;
        let first = heap.first_index();
        let load = |word| heap.word(word).load(Ordering::Acquire);
        if !seen.begun {
            seen.begun = true;
            seen.tail = first;
        }
        let tail = load(Word::CqTail);
        while seen.tail != tail {
            let user_data = heap.cqe(seen.tail)[0].load(Ordering::Relaxed);
            seen.completed.insert(user_data);
            seen.tail = seen.tail.wrapping_add(1);
        }
        let taken = u64::from(load(Word::SqHead).wrapping_sub(first));
        let pushed = u64::from(load(Word::SqTail).wrapping_sub(first));
        let entries = entries(heap);
        let numbers: BTreeSet<u64> = entries.iter().map(|&(number, _)| number).collect();
        assert_eq!(numbers.len(), entries.len(), "an SQE with two entries: {entries:?}");
        for &(number, stage) in &entries {
            assert!(number < pushed, "an entry for SQE {number}, which was not pushed");
            assert!(
                number < taken || stage == FATE_ACCEPTED,
                "SQE {number} is posted before sq_head covers it"
            );
        }
        for number in 0..taken {
            assert!(
                numbers.contains(&number)
                    || seen.completed.contains(&number)
                    || seen.silent.contains(&number),
                "SQE {number} was taken, and has neither an entry nor a published CQE"
            );
        }
    }
}

/// The entries in use of a fate table: SQE number and stage.
pub(super) fn entries(heap: &Heap) -> Vec<(u64, u64)> {
    let word = |place| heap.fate(place)[1].load(Ordering::Acquire);
    let split = |word: u64| (word >> FATE_SHIFT, word & ((1 << FATE_SHIFT) - 1));
    let used = |&(_, stage): &(u64, u64)| stage == FATE_ACCEPTED || stage == FATE_POSTED;
    (0..heap.cq_entries()).map(word).map(split).filter(used).collect()
}

impl Memory for Watched {
    fn sq_entries(&self) -> u32 {
        self.heap.sq_entries()
    }
    fn cq_entries(&self) -> u32 {
        self.heap.cq_entries()
    }
    fn first_index(&self) -> u32 {
        self.heap.first_index()
    }
    fn word(&self, word: Word) -> &AtomicU32 {
        self.look();
        self.heap.word(word)
    }
    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        self.look();
        self.heap.sqe(index)
    }
    fn cqe(&self, index: u32) -> &[AtomicU64; 4] {
        self.look();
        self.heap.cqe(index)
    }
    fn fate(&self, index: u32) -> &[AtomicU64; 2] {
        self.look();
        self.heap.fate(index)
    }
    fn counter(&self, at: u8) -> &AtomicU64 {
        self.heap.counter(at)
    }
}
