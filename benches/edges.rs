//! What does it cost to wait for another op?
//!
//! `pool` is the list of edges alone: what is wired to one op is told when that is over. The others
//! are an engine over a fabric that moves nothing and holds back what it is given until it is told,
//! so that everybody has to wait: a WRITE, and behind it NOPs that wait for one (`fan`), each for
//! the one before (`chain`) or for two (`braid`), or, side by side, for nobody (`apart`). `writes`
//! is a chain of WRITEs that end in the turn after they were posted.
//!
//! A higher number in `fan` less `apart` means that wiring and release of an edge have grown: the
//! goal is <= 30 ns. `writes` less `writes_apart` is what a link of a chain takes, and above all a
//! turn of the engine. Both ends of the ring are on one core.
//!
//! `alloc` columns stay empty: waiting allocates nothing.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use verbring::abi::{FABRIC_LOCAL, Opcode, Page, RIGHTS_ALL, Sqe};
use verbring::edges::Edges;
use verbring::engine::{Command, Engine, Limits, Ring};
use verbring::fabric::{Done, Fabric, Request};
use verbring::ids::{RecordId, RegionId, RingId, SessionId};
use verbring::ledger::NIL;
use verbring::ring::{ClientEnd, Heap};
use verbring::sched::{Contract, Policy};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const ENTRIES: u32 = 4_096;
const REGION_BYTES: u64 = 1 << 20;
/// Ops behind the first.
const WIDTHS: [u32; 4] = [1, 16, 256, 2_048];

const LIMITS: Limits = Limits {
    engine: 1,
    records: 8_192,
    list_blocks: 64,
    edges: 16_384,
    sessions_max: 4,
    rings_max: 8,
    regions_max: 32,
    window_wrs: 4_096,
    window_bytes: 64 << 20,
    slice_bytes: 128 << 10,
    turn_bytes: u64::MAX,
    intake_budget: 1_024,
    ring_idle_ns: u64::MAX,
    cut_off_ns: u64::MAX,
    policy: Policy::DEFAULT,
};

/// Completes every request at a poll that finds it open, and moves nothing.
#[derive(Debug)]
struct Held {
    posted: Vec<u64>,
    open: Rc<Cell<bool>>,
}

impl Fabric for Held {
    type Memory = ();

    fn limits(&self) -> verbring::fabric::Limits {
        verbring::fabric::Limits {
            depth: LIMITS.window_wrs,
            fabric: FABRIC_LOCAL,
            chain_max: 1,
            notifies: false,
        }
    }

    fn attach(&mut self, _region: u32, (): ()) {}

    fn detach(&mut self, _region: u32) -> Option<()> {
        Some(())
    }

    fn read_pages(&self, _region: u32, _offset: u64, _pages: &mut [Page]) -> bool {
        false
    }

    #[inline]
    fn post(&mut self, batch: &[Request]) -> usize {
        self.posted.extend(batch.iter().map(|request| request.ticket));
        batch.len()
    }

    #[inline]
    fn poll(&mut self, _now_ns: u64, done: &mut Vec<Done>) {
        if self.open.get() {
            done.extend(self.posted.drain(..).map(|ticket| Done::new(ticket, 0)));
        }
    }
}

/// An engine with one session that has a ring, a region, and an import of that region.
struct World {
    engine: Engine<Held, Arc<Heap>>,
    client: ClientEnd<Arc<Heap>>,
    open: Rc<Cell<bool>>,
    now_ns: u64,
}

impl World {
    fn new() -> Self {
        let open = Rc::new(Cell::new(true));
        let posted = Vec::with_capacity(LIMITS.window_wrs as usize);
        let mut engine = Engine::new(LIMITS, Held { posted, open: Rc::clone(&open) });
        let heap = Arc::new(Heap::new(ENTRIES, ENTRIES, 0));
        let session = SessionId(0);
        let own = RegionId::new(1, 0);
        let ring = Box::new(Ring::new(RingId(0), session, Arc::clone(&heap), false));
        for command in [
            Command::AddSession { session, owner: 0, contract: Contract::of_ops(ENTRIES) },
            Command::AddRegion { region: own, session, bytes: REGION_BYTES, memory: (), token: 1 },
            Command::AddImport {
                region: RegionId::new(1, 1),
                session,
                target: own,
                rights: RIGHTS_ALL,
                token: 2,
            },
            Command::AddRing { ring, token: 3 },
        ] {
            engine.command(command);
        }
        while engine.reply().is_some() {}
        Self { engine, client: ClientEnd::new(heap), open, now_ns: 1 }
    }

    fn turn(&mut self) {
        self.now_ns += 1_000;
        self.engine.turn(self.now_ns);
    }

    /// Pushes a graph, has the engine take all of it while nothing ends, and then lets it run.
    fn round(&mut self, graph: &[Sqe]) {
        for sqe in graph {
            self.client.push(sqe.to_words());
        }
        self.client.publish();
        self.open.set(false);
        for _ in 0..=graph.len() / LIMITS.intake_budget as usize {
            self.turn();
        }
        self.open.set(true);
        let mut popped = 0;
        while popped < graph.len() {
            self.turn();
            while let Ok(Some(words)) = self.client.pop() {
                divan::black_box(words);
                popped += 1;
            }
        }
        self.client.release();
    }
}

fn write() -> Sqe {
    Sqe {
        opcode: Opcode::Write as u8,
        local_region: RegionId::new(1, 0).0,
        remote_region: RegionId::new(1, 1).0,
        remote_offset: REGION_BYTES / 2,
        bytes: 64,
        ..Sqe::default()
    }
}

/// A WRITE, and so many ops behind it, each with the edges that are given for its place.
fn graph(width: u32, each: Sqe, edges: impl Fn(u16) -> [u16; 2]) -> Vec<Sqe> {
    let behind = (1..=width).map(|at| Sqe { edges: edges(u16::try_from(at).unwrap_or(0)), ..each });
    std::iter::once(write()).chain(behind).collect()
}

fn run(bencher: Bencher<'_, '_>, graph: &[Sqe]) {
    let mut world = World::new();
    bencher.counter(ItemsCount::new(graph.len())).bench_local(|| world.round(graph));
}

#[divan::bench(args = WIDTHS)]
fn apart(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, Sqe::default(), |_| [0, 0]));
}

#[divan::bench(args = WIDTHS)]
fn fan(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, Sqe::default(), |at| [at, 0]));
}

#[divan::bench(args = WIDTHS)]
fn chain(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, Sqe::default(), |_| [1, 0]));
}

/// Two edges an op.
#[divan::bench(args = WIDTHS)]
fn braid(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, Sqe::default(), |at| [1, if at > 1 { 2 } else { 0 }]));
}

#[divan::bench(args = WIDTHS)]
fn writes_apart(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, write(), |_| [0, 0]));
}

/// All behind the first: what is wired and released is a WRITE that moves nothing.
#[divan::bench(args = WIDTHS)]
fn writes_fan(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, write(), |at| [at, 0]));
}

#[divan::bench(args = WIDTHS)]
fn writes(bencher: Bencher<'_, '_>, width: u32) {
    run(bencher, &graph(width, write(), |_| [1, 0]));
}

/// So many edges of one op are wired, settled and told.
#[divan::bench(args = WIDTHS)]
fn pool(bencher: Bencher<'_, '_>, width: u32) {
    let mut edges = Edges::new(16_384);
    bencher.counter(ItemsCount::new(width)).bench_local(|| {
        let mut list = NIL;
        for at in 0..width {
            edges.add(&mut list, RecordId(u64::from(at)), RingId(0), false);
        }
        edges.settle(list, None);
        while let Some(settled) = edges.take() {
            divan::black_box(settled);
        }
    });
}
