//! What does it cost to choose the next op, and to account for it?
//!
//! An op's way: it is pushed, found to be the first, the window takes it, it is charged and
//! removed, and the window gets its credit back. The argument is the number of flows that have
//! ops; with one, that is what a single ring pays. A higher number there means that the shortest
//! way has more steps; one that grows with the flows means that the scheduler looks at more of
//! them, or that they lie worse in the cache. The goal: <= 40 ns an op at 1, 64 and 1,000 flows.
//!
//! `pick` has four ops of 4 KiB queued in every flow, each flow of another user, classes in turn;
//! the op served comes back at the end of its flow. `alone` is one op at a time: each finds an
//! empty scheduler and leaves it empty.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use divan::{AllocProfiler, Bencher};
use verbring::abi::Class;
use verbring::ids::{RingId, SessionId};
use verbring::ledger::{Ledger, Op};
use verbring::sched::credits::{Ask, Window};
use verbring::sched::{Bounds, Mode, Policy, Scheduler, Shape};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const FLOWS: [u32; 3] = [1, 64, 1_000];
const DEEP: u32 = 4;
const BYTES: u32 = 4_096;
const WINDOW_OPS: u32 = 64;
const WINDOW_BYTES: u64 = 64 << 20;
const BOUNDS: Bounds = Bounds { ops: WINDOW_OPS, wrs: WINDOW_OPS, bytes: WINDOW_BYTES };
const ASK: Ask = Ask { bytes: BYTES, enters: true, internal: false };

struct World {
    ledger: Ledger,
    scheduler: Scheduler,
    window: Window,
    passes: u32,
}

impl World {
    fn new(mode: Mode, flows: u32) -> Self {
        let shape = Shape { sessions: flows, peers: 1, window_bytes: WINDOW_BYTES };
        let mut scheduler = Scheduler::new(&Policy { mode, ..Policy::DEFAULT }, shape);
        for session in 0..flows {
            scheduler.adopt(SessionId(session), 1_000 + session, 1);
        }
        let ledger = Ledger::new(0, flows * DEEP);
        Self { ledger, scheduler, window: Window::new(BOUNDS), passes: 0 }
    }

    /// Queues the ops of all flows; those of one do not lie in a row.
    fn fill(&mut self, flows: u32, deep: u32) {
        for session in (0..deep).flat_map(|_| 0..flows) {
            let class = Class::ALL[session as usize % 3];
            let op = Op { class, bytes: BYTES, ..Op::NOP };
            *self.ledger.vacant().expect("a record that is free") = op;
            let (slot, record) =
                self.ledger.open(SessionId(session), RingId(0), 0).expect("a record that is free");
            record.sequence = slot.into();
            self.scheduler.push(&mut self.ledger, slot);
        }
    }

    /// The next op is served whole, and its record queued again.
    fn serve(&mut self, mode: Mode) {
        if mode == Mode::Tent {
            if self.passes.is_multiple_of(WINDOW_OPS) {
                self.scheduler.begin(WINDOW_OPS, WINDOW_BYTES);
            }
            self.passes += 1;
        }
        let slot = self.scheduler.first(&self.ledger).expect("a queued op");
        let grant = self.window.take(ASK).expect("room in the window");
        self.scheduler.charge(&self.ledger, slot, BYTES);
        self.scheduler.remove(&mut self.ledger, slot);
        self.window.give(grant, true, false);
        self.ledger[slot].sequence += u64::from(self.ledger.capacity());
        self.scheduler.push(&mut self.ledger, slot);
    }
}

const MODES: [Mode; 4] = [Mode::Weighted, Mode::Strict, Mode::Fifo, Mode::Tent];

#[divan::bench(args = FLOWS, consts = [0, 1, 2, 3], sample_size = 1_000)]
fn pick<const MODE: usize>(bencher: Bencher<'_, '_>, flows: u32) {
    let mode = MODES[MODE];
    let mut world = World::new(mode, flows);
    world.fill(flows, DEEP);
    bencher.bench_local(|| world.serve(mode));
}

#[divan::bench(consts = [0, 1, 2, 3], sample_size = 1_000)]
fn alone<const MODE: usize>(bencher: Bencher<'_, '_>) {
    let mode = MODES[MODE];
    let mut world = World::new(mode, 1);
    world.fill(1, 1);
    bencher.bench_local(|| world.serve(mode));
}
