//! What does an op cost the engine? One turn over a fabric that does nothing and a ring on the
//! heap: intake, validation, record, fate table, lane, credits, post, completion, publication.
//!
//! A higher number here means that the engine's own work has grown: with both ends of the ring on
//! one core there is no cache line that travels, and the null fabric moves no byte. It is held
//! against the 40 ns an op that `io_uring` needs for a NOP. `client` is the client's share of each
//! round (push, publish, pop), which the other numbers include: subtract it.
//!
//! `alloc` columns stay empty: a turn allocates nothing.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use verbring::abi::{FABRIC_LOCAL, Opcode, Page, RIGHTS_ALL, SQE_COALESCE, Sqe};
use verbring::engine::{Command, Engine, Limits, Ring};
use verbring::fabric::{Done, Fabric, Request};
use verbring::ids::{RegionId, RingId, SessionId};
use verbring::ring::{ClientEnd, EngineEnd, Heap};
use verbring::sched::{Contract, Policy};
use verbring::telemetry::{self, Recorder};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const ENTRIES: u32 = 1024;
const REGION_BYTES: u64 = 1 << 20;
/// SQEs pushed before the engine looks.
const BATCHES: [u32; 4] = [1, 8, 32, 64];

const LIMITS: Limits = Limits {
    engine: 1,
    records: 4096,
    list_blocks: 64,
    edges: 64,
    sessions_max: 4,
    rings_max: 8,
    regions_max: 32,
    window_wrs: 64,
    window_bytes: 256 << 10,
    slice_bytes: 128 << 10,
    turn_bytes: 256 << 10,
    intake_budget: 64,
    ring_idle_ns: u64::MAX,
    cut_off_ns: u64::MAX,
    policy: Policy::DEFAULT,
};

/// Completes every request at the next poll, and moves nothing.
#[derive(Debug, Default)]
struct Null {
    posted: Vec<u64>,
}

impl Fabric for Null {
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
        done.extend(self.posted.drain(..).map(|ticket| Done::new(ticket, 0)));
    }
}

/// An engine with one session that has a ring, a region, and an import of that region.
struct World {
    engine: Engine<Null, Arc<Heap>>,
    client: ClientEnd<Arc<Heap>>,
    now_ns: u64,
}

impl World {
    /// An engine that leaves an entry in a flight recorder for each op.
    fn recorded() -> Self {
        let mut world = Self::new();
        let (recorder, _lines) = Recorder::on_heap(1_024);
        world.engine.command(Command::SetRecorder { session: SessionId(0), recorder });
        world
    }

    /// An engine that copies what it counts to a telemetry page.
    fn watched() -> Self {
        let mut world = Self::new();
        let (page, _lines) = telemetry::Page::on_heap(world.engine.telemetry_header());
        world.engine.keep_telemetry(page);
        world
    }

    fn new() -> Self {
        let fabric = Null { posted: Vec::with_capacity(LIMITS.window_wrs as usize) };
        let mut engine = Engine::new(LIMITS, fabric);
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
        Self { engine, client: ClientEnd::new(heap), now_ns: 1 }
    }

    /// Pushes a batch, lets the engine work until all of it is answered, and pops the CQEs.
    fn round(&mut self, sqe: Sqe, batch: u32) {
        self.round_of(batch, |_| sqe);
    }

    /// [`World::round`] of ops that may differ.
    fn round_of(&mut self, batch: u32, sqe: impl Fn(u32) -> Sqe) {
        for at in 0..batch {
            self.client.push(sqe(at).to_words());
        }
        self.client.publish();
        let mut popped = 0;
        while popped < batch {
            self.now_ns += 1_000;
            self.engine.turn(self.now_ns);
            while let Ok(Some(words)) = self.client.pop() {
                divan::black_box(words);
                popped += 1;
            }
        }
        self.client.release();
    }
}

fn transfer(opcode: Opcode) -> Sqe {
    Sqe {
        opcode: opcode as u8,
        local_region: RegionId::new(1, 0).0,
        remote_region: RegionId::new(1, 1).0,
        remote_offset: REGION_BYTES / 2,
        bytes: 4096,
        ..Sqe::default()
    }
}

#[divan::bench(args = BATCHES)]
fn nop(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::new();
    let sqe = Sqe::default();
    bencher.counter(ItemsCount::new(batch)).bench_local(|| world.round(sqe, batch));
}

#[divan::bench(args = BATCHES)]
fn write(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::new();
    let sqe = transfer(Opcode::Write);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| world.round(sqe, batch));
}

/// `write`, with a flight recorder: what it takes more is what the recorder costs an op.
#[divan::bench(args = BATCHES)]
fn write_recorded(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::recorded();
    let sqe = transfer(Opcode::Write);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| world.round(sqe, batch));
}

/// `write`, with a telemetry page: what it takes more is what copying to it costs an op. Ops are
/// counted in `write`, too.
#[divan::bench(args = BATCHES)]
fn write_watched(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::watched();
    let sqe = transfer(Opcode::Write);
    bencher.counter(ItemsCount::new(batch)).bench_local(|| world.round(sqe, batch));
}

/// Ops to one place after another: none is like another that is under way.
fn spread(world: &mut World, flags: u16, batch: u32) {
    let base = transfer(Opcode::Write);
    world.round_of(batch, |at| Sqe {
        flags,
        local_offset: u64::from(at) * 64,
        remote_offset: REGION_BYTES / 2 + u64::from(at) * 64,
        bytes: 64,
        ..base
    });
}

/// WRITEs to places of their own, without a flag: what `coalesce_miss` is held against.
#[divan::bench(args = BATCHES)]
fn spread_out(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::new();
    bencher.counter(ItemsCount::new(batch)).bench_local(|| spread(&mut world, 0, batch));
}

/// The same with COALESCE: nothing is folded, and what it takes more is what a miss costs. It is to
/// be no more than 25 ns an op.
#[divan::bench(args = BATCHES)]
fn coalesce_miss(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::new();
    bencher.counter(ItemsCount::new(batch)).bench_local(|| spread(&mut world, SQE_COALESCE, batch));
}

/// All of a batch are alike: the first is carried out, the others end with it.
#[divan::bench(args = BATCHES)]
fn coalesce_hit(bencher: Bencher<'_, '_>, batch: u32) {
    let mut world = World::new();
    let sqe = Sqe { flags: SQE_COALESCE, ..transfer(Opcode::Write) };
    bencher.counter(ItemsCount::new(batch)).bench_local(|| world.round(sqe, batch));
}

#[divan::bench]
fn idle_turn(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    bencher.bench_local(|| {
        world.now_ns += 100;
        world.engine.turn(world.now_ns)
    });
}

/// The same rounds with an engine's end that answers without an engine: the ring alone.
#[divan::bench(args = BATCHES)]
fn client(bencher: Bencher<'_, '_>, batch: u32) {
    let heap = Arc::new(Heap::new(ENTRIES, ENTRIES, 0));
    let mut client = ClientEnd::new(Arc::clone(&heap));
    let mut engine = EngineEnd::new(heap);
    let sqe = Sqe::default();
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        for _ in 0..batch {
            client.push(sqe.to_words());
        }
        client.publish();
        let waiting = engine.look().unwrap_or(0);
        for ahead in 0..waiting {
            divan::black_box(engine.peek(0));
            let _ = (ahead, engine.room(1));
            engine.take(1);
            engine.push([0; 4]);
        }
        engine.publish_taken();
        engine.publish();
        while let Ok(Some(words)) = client.pop() {
            divan::black_box(words);
        }
        client.release();
    });
}
