//! The ring's protocol, model-checked: loom runs the production ends through every interleaving
//! and every value that a weakly ordered machine may show (up to a bound on preemptions).
//!
//! Claimed, each by tests named after it: entries are seen whole and slots are not overwritten
//! while they are read; no moment of a death gives a wrong verdict; neither sleep loses a wake-up;
//! last words come last. Every test also demands that each outcome it speaks of did occur.
//! `tests/loom-all` weakens one ordering after the other and demands that a test here fails.
//!
//! What loom cannot show: it never lets a load return a store that runs later, so a slot that is
//! overwritten too early is found by [`Watched`] slots, which check happens-before. Its full fences
//! are a little stronger than the language's.
#![cfg(verbring_loom)]
#![expect(unsafe_code, reason = "loom's cells are not Sync, and watched slots are shared")]
#![expect(clippy::unwrap_used, reason = "an error here is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Tally, Ordering as TallyOrdering};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use verbring::abi;
use verbring::ring::{self, ClientEnd, EngineEnd, Fault, Heap, Memory, Verdict, Word};

/// Runs a model to its end, then demands that every outcome occurred.
fn check<const OUTCOMES: usize>(
    names: [&'static str; OUTCOMES],
    model: impl Fn(&Tallies<OUTCOMES>) + Send + Sync + 'static,
) {
    let tallies = Arc::new(Tallies([const { Tally::new(0) }; OUTCOMES]));
    let executions = Arc::new(Tally::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    {
        let (tallies, executions) = (Arc::clone(&tallies), Arc::clone(&executions));
        builder.check(move || {
            executions.fetch_add(1, TallyOrdering::Relaxed);
            model(&tallies);
        });
    }
    print!("{} executions", executions.load(TallyOrdering::Relaxed));
    for (name, tally) in names.iter().zip(&tallies.0) {
        let count = tally.load(TallyOrdering::Relaxed);
        print!(", {name}: {count}");
        assert!(count > 0, "never seen: {name}");
    }
    println!();
}

/// How often each outcome occurred, over all executions of a model.
struct Tallies<const OUTCOMES: usize>([Tally; OUTCOMES]);

impl<const OUTCOMES: usize> Tallies<OUTCOMES> {
    fn count(&self, outcome: usize) {
        self.0[outcome].fetch_add(1, TallyOrdering::Relaxed);
    }
}

/// A bell as sockets make it: a ring before the wait is kept, and rings merge. A wait that nobody
/// ends is a deadlock, which loom reports.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.heard.wait(rung).unwrap();
        }
        *rung = false;
    }
}

const FIRST_INDEX: u32 = u32::MAX;

fn sqe(number: u64) -> [u64; 8] {
    core::array::from_fn(|at| (number + 1) << 8 | at as u64)
}

fn cqe(number: u64) -> [u64; 4] {
    core::array::from_fn(|at| (number + 1) << 16 | at as u64)
}

fn record(number: u64) -> u64 {
    1 << 32 | number
}

/// Takes the SQE at the head, which must be `number`, into the fate table.
fn take<M: Memory>(engine: &mut EngineEnd<M>, place: u32, number: u64) {
    assert_eq!(engine.peek(0), sqe(number), "an SQE that was not written");
    engine.fate_accepted(place, record(number), number);
    engine.take(1);
    engine.publish_taken();
}

/// Takes and answers `count` SQEs as they come; `idle` is called when none waits.
fn serve<M: Memory>(
    engine: &mut EngineEnd<M>,
    count: u64,
    mut published: impl FnMut(bool),
    mut idle: impl FnMut(&mut EngineEnd<M>),
) {
    let mut number = 0;
    while number < count {
        if engine.look().unwrap() == 0 || engine.room(1).unwrap() == 0 {
            idle(engine);
            continue;
        }
        assert_eq!(engine.peek(0), sqe(number), "an SQE that was not written");
        engine.take(1);
        engine.publish_taken();
        engine.push(cqe(number));
        published(engine.publish());
        number += 1;
    }
}

/// Answers `count` SQEs that are there as the engine's turns do: a bell that was not found at
/// publication is looked for once more before the next.
fn serve_by_turns<M: Memory>(
    engine: &mut EngineEnd<M>,
    count: u64,
    mut published: impl FnMut(bool),
) {
    let mut unsure = false;
    for number in 0..=count {
        if std::mem::take(&mut unsure) {
            EngineEnd::<M>::order_bells();
            published(engine.bell_due());
        }
        if number == count {
            return;
        }
        engine.look().unwrap();
        engine.take(1);
        engine.push(cqe(number));
        engine.publish_taken();
        match engine.publish_first() {
            ring::Bell::Due => published(true),
            ring::Bell::Unsure => unsure = true,
            ring::Bell::Silent => unreachable!("a CQE was pushed"),
        }
    }
}

// ---- Publication ------------------------------------------------------------------------------

/// Three messages each way through two slots: one slot is used again, and the cursors wrap.
fn three_messages_through_two_slots<E, C>(mut engine: EngineEnd<E>, mut client: ClientEnd<C>)
where
    E: Memory + Send + 'static,
    C: Memory,
{
    let engine = thread::spawn(move || {
        serve(&mut engine, 3, |_| {}, |_| thread::yield_now());
        engine
    });
    let (mut pushed, mut popped) = (0, 0);
    while popped < 3 {
        if pushed < 3
            && let Some(number) = client.push(sqe(pushed))
        {
            assert_eq!(number, pushed);
            client.publish();
            pushed += 1;
        } else if let Some(words) = client.pop().unwrap() {
            assert_eq!(words, cqe(popped), "a CQE that was not written");
            client.release();
            popped += 1;
        } else {
            thread::yield_now();
        }
    }
    let mut engine = engine.join().unwrap();
    assert_eq!(engine.look(), Ok(0));
    assert_eq!(engine.room(2), Ok(2));
    assert_eq!(client.observe_tail(), Ok(0));
    assert_eq!((client.push(sqe(3)), client.push(sqe(4))), (Some(3), Some(4)));
}

#[test]
fn entries_are_seen_whole() {
    check([], |_| {
        let memory = Arc::new(Heap::new(2, 2, FIRST_INDEX));
        three_messages_through_two_slots(
            EngineEnd::new(Arc::clone(&memory)),
            ClientEnd::new(memory),
        );
    });
}

/// A ring whose slots are watched: loom fails if one is written while it may still be read.
struct Watched {
    heap: Heap,
    sqes: [UnsafeCell<()>; 2],
    cqes: [UnsafeCell<()>; 2],
}

// SAFETY: the cells hold nothing; loom only notes who looks at them, under its own lock.
unsafe impl Sync for Watched {}

/// One side's view of a watched ring: the client writes SQEs and reads CQEs, the engine the other
/// way round.
struct View<const CLIENT: bool>(Arc<Watched>);

fn watch(slots: &[UnsafeCell<()>; 2], index: u32, writes: bool) {
    let slot = &slots[index as usize & 1];
    if writes { slot.with_mut(|_| ()) } else { slot.with(|_| ()) }
}

impl<const CLIENT: bool> Memory for View<CLIENT> {
    fn sq_entries(&self) -> u32 {
        self.0.heap.sq_entries()
    }
    fn cq_entries(&self) -> u32 {
        self.0.heap.cq_entries()
    }
    fn first_index(&self) -> u32 {
        self.0.heap.first_index()
    }
    fn word(&self, word: Word) -> &AtomicU32 {
        self.0.heap.word(word)
    }
    fn sqe(&self, index: u32) -> &[AtomicU64; 8] {
        watch(&self.0.sqes, index, CLIENT);
        self.0.heap.sqe(index)
    }
    fn cqe(&self, index: u32) -> &[AtomicU64; 4] {
        watch(&self.0.cqes, index, !CLIENT);
        self.0.heap.cqe(index)
    }
    fn fate(&self, index: u32) -> &[AtomicU64; 2] {
        self.0.heap.fate(index)
    }
    fn counter(&self, at: u8) -> &AtomicU64 {
        self.0.heap.counter(at)
    }
}

#[test]
fn slots_are_given_back_when_read() {
    check([], |_| {
        let watched = Arc::new(Watched {
            heap: Heap::new(2, 2, FIRST_INDEX),
            sqes: [(); 2].map(UnsafeCell::new),
            cqes: [(); 2].map(UnsafeCell::new),
        });
        three_messages_through_two_slots(
            EngineEnd::new(View::<false>(Arc::clone(&watched))),
            ClientEnd::new(View::<true>(watched)),
        );
    });
}

// ---- Fates ------------------------------------------------------------------------------------

/// A ring with `count` SQEs published and one word of memory each that its op will set.
fn ring_with_sqes(count: u64) -> (EngineEnd<Arc<Heap>>, ClientEnd<Arc<Heap>>, Effects) {
    let memory = Arc::new(Heap::new(4, 2, FIRST_INDEX));
    let engine = EngineEnd::new(Arc::clone(&memory));
    let mut client = ClientEnd::new(memory);
    for number in 0..count {
        assert_eq!(client.push(sqe(number)), Some(number));
    }
    client.publish();
    let effects = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    (engine, client, effects)
}

type Effects = Arc<Vec<AtomicU64>>;

const NOT_STARTED: usize = 0;
const INDETERMINATE: usize = 1;
const DONE: usize = 2;
const ALL_VERDICTS: [&str; 3] = ["NOT_STARTED", "INDETERMINATE", "DONE"];

fn post(engine: &EngineEnd<Arc<Heap>>, place: u32, number: u64) {
    engine.fate_posted(place, number);
    EngineEnd::<Arc<Heap>>::fates_posted();
}

/// The engine's way with two ops that share a place in the fate table. Op 0 succeeds and its CQE
/// is skipped. The first post of op 1 is refused; the second succeeds.
fn a_skipped_success_then_a_post_refused(engine: &mut EngineEnd<Arc<Heap>>, effects: &Effects) {
    engine.look().unwrap();
    take(engine, 0, 0);
    post(engine, 0, 0);
    effects[0].store(1, Ordering::Relaxed);
    engine.forgo(1);
    engine.fate_freed(0);

    take(engine, 0, 1);
    post(engine, 0, 1);
    engine.fate_accepted(0, record(1), 1);
    post(engine, 0, 1);
    effects[1].store(1, Ordering::Relaxed);
    engine.push(cqe(1));
    engine.publish();
    engine.fate_freed(0);
}

/// Reads the verdict on `number` at any moment. The client may have seen the effect before, and
/// looks for it afterwards.
fn judge(number: u64) {
    check(ALL_VERDICTS, move |tallies| {
        let (mut engine, mut client, effects) = ring_with_sqes(2);
        let engine = {
            let effects = Arc::clone(&effects);
            thread::spawn(move || a_skipped_success_then_a_post_refused(&mut engine, &effects))
        };
        let effect = &effects[usize::try_from(number).unwrap()];
        let landed = effect.load(Ordering::Acquire) == 1;
        match client.verdict(number) {
            Verdict::NotStarted => {
                assert!(!landed, "an op that landed was judged NOT_STARTED");
                tallies.count(NOT_STARTED);
            }
            Verdict::Indeterminate => tallies.count(INDETERMINATE),
            Verdict::Done => {
                let landed = effect.load(Ordering::Relaxed) == 1;
                assert!(landed, "an op that did not land was judged DONE");
                let ready = client.observe_tail().unwrap();
                assert!(u64::from(ready) >= number, "an entry was cleared before its CQE");
                tallies.count(DONE);
            }
        }
        engine.join().unwrap();
        assert_eq!(client.verdict(number), Verdict::Done);
        assert_eq!(client.verdict(2), Verdict::NotStarted);
    });
}

#[test]
fn verdict_on_a_skipped_success_is_true() {
    judge(0);
}

#[test]
fn verdict_on_an_op_posted_twice_is_true() {
    judge(1);
}

/// The entry of an op that was accepted shows the op's record, or that of the place's next op.
#[test]
fn an_accepted_entry_shows_its_record() {
    check(["accepted"], |tallies| {
        let (mut engine, client, effects) = ring_with_sqes(2);
        let engine = thread::spawn(move || {
            a_skipped_success_then_a_post_refused(&mut engine, &effects);
        });
        let entry = client.memory().fate(0);
        let word = entry[1].load(Ordering::Acquire);
        let shown = entry[0].load(Ordering::Relaxed);
        if word & 3 != abi::FATE_FREE {
            assert!(shown >= record(word >> abi::FATE_SHIFT), "an entry without its record");
            tallies.count(0);
        }
        engine.join().unwrap();
        assert_eq!(entry[0].load(Ordering::Relaxed), record(1));
    });
}

/// A CQE means that the op's effect is there, whatever else was looked at before.
#[test]
fn a_cqe_comes_after_its_effect() {
    check(["early", "there"], |tallies| {
        let (mut engine, mut client, effects) = ring_with_sqes(2);
        let engine = {
            let effects = Arc::clone(&effects);
            thread::spawn(move || a_skipped_success_then_a_post_refused(&mut engine, &effects))
        };
        if let Some(words) = client.pop().unwrap() {
            assert_eq!(words, cqe(1));
            assert_eq!(effects[0].load(Ordering::Relaxed), 1);
            assert_eq!(effects[1].load(Ordering::Relaxed), 1);
            tallies.count(1);
        } else {
            tallies.count(0);
        }
        engine.join().unwrap();
    });
}

/// An op cancelled while queued, and a refused one, are never judged DONE before their CQE.
#[test]
fn verdict_on_a_cancelled_op_is_true() {
    check(["NOT_STARTED", "answered"], |tallies| {
        let (mut engine, mut client, _) = ring_with_sqes(1);
        let engine = thread::spawn(move || {
            engine.look().unwrap();
            take(&mut engine, 0, 0);
            engine.push(cqe(0));
            engine.publish();
            engine.fate_freed(0);
        });
        match client.verdict(0) {
            Verdict::NotStarted => tallies.count(0),
            Verdict::Indeterminate => panic!("an op never posted was judged INDETERMINATE"),
            Verdict::Done => {
                assert_eq!(client.pop(), Ok(Some(cqe(0))), "judged DONE before its CQE");
                tallies.count(1);
            }
        }
        engine.join().unwrap();
    });
}

// ---- Sleep ------------------------------------------------------------------------------------

#[test]
fn f31_the_engine_is_woken() {
    check(["slept", "work came while falling asleep", "rung"], |tallies| {
        let memory = Arc::new(Heap::new(2, 2, FIRST_INDEX));
        let mut engine = EngineEnd::new(Arc::clone(&memory));
        let mut client = ClientEnd::new(memory);
        let bell = Arc::new(Bell::default());
        let ringer = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || {
                let mut rung = 0;
                for number in 0..2 {
                    assert_eq!(client.push(sqe(number)), Some(number));
                    if client.publish() {
                        bell.ring();
                        rung += 1;
                    }
                }
                rung
            })
        };
        let idle = |engine: &mut EngineEnd<Arc<Heap>>| {
            if engine.fall_asleep().unwrap() {
                tallies.count(0);
                assert!(engine.asleep());
                bell.wait();
                engine.wake();
            } else {
                tallies.count(1);
            }
            assert!(!engine.asleep());
        };
        serve(&mut engine, 2, |_| {}, idle);
        if ringer.join().unwrap() > 0 {
            tallies.count(2);
        }
    });
}

/// The client waits for `want` CQEs at a time until it has all three.
fn sleep_for(want: u32, by_turns: bool) {
    check(["slept", "CQEs came while falling asleep", "not rung"], move |tallies| {
        let memory = Arc::new(Heap::new(4, 4, FIRST_INDEX));
        let mut engine = EngineEnd::new(Arc::clone(&memory));
        let mut client = ClientEnd::new(memory);
        for number in 0..3 {
            assert_eq!(client.push(sqe(number)), Some(number));
        }
        client.publish();
        let bell = Arc::new(Bell::default());
        let ringer = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || {
                let mut muted = 0;
                let published = |due| {
                    if due {
                        bell.ring();
                    } else {
                        muted += 1;
                    }
                };
                if by_turns {
                    serve_by_turns(&mut engine, 3, published);
                } else {
                    serve(&mut engine, 3, published, |_| unreachable!());
                }
                muted
            })
        };
        let mut popped = 0;
        while popped < 3 {
            while let Some(words) = client.pop().unwrap() {
                assert_eq!(words, cqe(popped));
                popped += 1;
            }
            client.release();
            let left = 3 - u32::try_from(popped).unwrap();
            if left == 0 {
                break;
            }
            if client.arm_bell(want.min(left)).unwrap() {
                tallies.count(0);
                bell.wait();
            } else {
                tallies.count(1);
            }
        }
        if ringer.join().unwrap() > 0 {
            tallies.count(2);
        }
    });
}

#[test]
fn f31_a_client_that_waits_for_one_is_woken() {
    sleep_for(1, false);
}

#[test]
fn f31_a_client_that_waits_for_two_is_woken() {
    sleep_for(2, false);
}

#[test]
fn a_client_is_woken_by_an_engine_that_looks_at_bells_a_turn_later() {
    sleep_for(1, true);
    sleep_for(2, true);
}

// ---- Last words -------------------------------------------------------------------------------

/// A client that sees CLOSING sees which SQEs were taken, and that no more will be.
#[test]
fn closing_comes_after_the_last_sq_head() {
    check(["open", "closing"], |tallies| {
        let memory = Arc::new(Heap::new(2, 2, FIRST_INDEX));
        let mut engine = EngineEnd::new(Arc::clone(&memory));
        let mut client = ClientEnd::new(memory);
        for number in 0..2 {
            assert_eq!(client.push(sqe(number)), Some(number));
        }
        client.publish();
        let engine = thread::spawn(move || {
            engine.look().unwrap();
            take(&mut engine, 0, 0);
            engine.close();
        });
        if client.engine_flags() & abi::ENGINE_CLOSING == 0 {
            tallies.count(0);
        } else {
            assert_eq!(client.room(), 1, "closing, and sq_head was not the last");
            tallies.count(1);
        }
        engine.join().unwrap();
    });
}

/// A client that sees FAULTED sees the last CQE there will be, though nobody published it before.
#[test]
fn a_fault_comes_after_the_last_cqe() {
    check(["sound", "faulted"], |tallies| {
        let memory = Arc::new(Heap::new(2, 2, FIRST_INDEX));
        let mut engine = EngineEnd::new(Arc::clone(&memory));
        let mut client = ClientEnd::new(memory);
        assert_eq!(client.push(sqe(0)), Some(0));
        client.publish();
        let engine = thread::spawn(move || {
            engine.look().unwrap();
            take(&mut engine, 0, 0);
            engine.push(cqe(0));
            engine.fault(Fault::SqTailBack);
        });
        if client.engine_flags() & abi::ENGINE_FAULTED == 0 {
            tallies.count(0);
        } else {
            assert_eq!(client.pop(), Ok(Some(cqe(0))), "faulted, and a CQE came later");
            tallies.count(1);
        }
        engine.join().unwrap();
    });
}
