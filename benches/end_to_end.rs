//! What does an op cost from push to pop, with the engine on a thread of this process?
//!
//! `verbring bench` is the measurement: its client is a process of its own, both sides have a CPU,
//! and it gives percentiles. This one only shows changes. A higher number here, with `engine.rs`
//! and `ring.rs` unchanged, means that the way between the two threads has grown longer: lines
//! that travel between the cores, the engine thread's loop around a turn, the client's wait. A
//! higher number of `typed` alone means that leases and the slab have become dearer. A batch of 1
//! is a round trip, where both sides wait for each other; in a batch of 32 they work at once. It
//! is held against the 40 ns an op that `io_uring` needs for a NOP (the batch), and against two
//! journeys of a line from core to core (one op).
//!
//! Neither side sleeps in it. With fewer than two CPUs to itself it measures the kernel's
//! scheduler.
#![allow(missing_docs, reason = "a benchmark's functions are named for its report")]

use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use verbring::abi::{Opcode, Sqe};
use verbring::host::Config;
use verbring::{
    Engine, Import, Lease, Nop, RawRing, Region, Rights, Ring, RingOptions, Session, Write,
};

fn main() {
    divan::main();
}

/// Many, since what two threads do together varies more than what one does.
const SAMPLES: u32 = 10_000;
/// Ops in flight at once.
const BATCHES: [u32; 2] = [1, 32];
const WRITES: u32 = 32;
const WRITE_BYTES: u32 = 4096;
const REGION_BYTES: u64 = 1 << 20;
/// The upper half of the region is written to.
const TARGET_OFFSET: u64 = REGION_BYTES / 2;
/// Longer than any wait here: nobody goes to sleep.
const SPIN: Duration = Duration::from_secs(1);

/// An engine on its threads, and a session with a region that it imports from itself.
struct World {
    region: Region,
    import: Import,
    session: Session,
    /// Last, so that it is dropped when its session is gone.
    _engine: Engine,
}

impl World {
    fn new() -> Self {
        let mut config = Config::default();
        config.spin_us = u32::try_from(SPIN.as_micros()).expect("a second in microseconds");
        let engine = Engine::builder().config(config).spawn().expect("an engine");
        let session = engine.connect().expect("a session");
        let region = session.alloc(REGION_BYTES).expect("a region");
        let secret = region.export("bench", Rights::WRITE).expect("an export");
        let import = session.import("bench", None, &secret).expect("an import");
        Self { region, import, session, _engine: engine }
    }
}

fn options() -> RingOptions {
    RingOptions { spin: SPIN, ..RingOptions::default() }
}

/// Whole entries through a `RawRing`.
mod raw {
    use super::*;

    /// Pushes a batch, waits until all of it is answered, and pops the CQEs.
    fn round(ring: &mut RawRing, sqes: impl IntoIterator<Item = Sqe>, batch: u32) {
        assert_eq!(ring.push_all(sqes), batch);
        ring.submit_and_wait(batch, None).expect("a ring that lives");
        for _ in 0..batch {
            let cqe = ring.pop().expect("a ring that lives").expect("a CQE that is ready");
            assert!(cqe.res >= 0, "the op failed with {}", cqe.res);
        }
    }

    #[divan::bench(args = BATCHES, sample_count = SAMPLES)]
    fn nop(bencher: Bencher<'_, '_>, batch: u32) {
        let world = World::new();
        let mut ring = world.session.raw_ring(options()).expect("a ring");
        let counted = bencher.counter(ItemsCount::new(batch));
        counted.bench_local(|| round(&mut ring, (0..batch).map(|_| Sqe::default()), batch));
    }

    #[divan::bench(args = [WRITES], sample_count = SAMPLES)]
    fn write(bencher: Bencher<'_, '_>, batch: u32) {
        let world = World::new();
        let mut ring = world.session.raw_ring(options()).expect("a ring");
        let sqe = |at| Sqe {
            opcode: Opcode::Write as u8,
            local_region: world.region.id(),
            remote_region: world.import.id(),
            local_offset: u64::from(at * WRITE_BYTES),
            remote_offset: TARGET_OFFSET + u64::from(at * WRITE_BYTES),
            bytes: WRITE_BYTES,
            ..Sqe::default()
        };
        let counted =
            bencher.counter(ItemsCount::new(batch)).counter(BytesCount::new(batch * WRITE_BYTES));
        counted.bench_local(|| round(&mut ring, (0..batch).map(sqe), batch));
    }
}

/// Ops and leases through a `Ring`.
mod typed {
    use super::*;

    #[divan::bench(args = BATCHES, sample_count = SAMPLES)]
    fn nop(bencher: Bencher<'_, '_>, batch: u32) {
        let world = World::new();
        let mut ring = world.session.ring(options()).expect("a ring");
        bencher.counter(ItemsCount::new(batch)).bench_local(|| {
            for _ in 0..batch {
                ring.push(Nop::new()).expect("room in the ring");
            }
            ring.submit_and_wait(batch as usize, None).expect("a ring that lives");
            for _ in 0..batch {
                reap(&mut ring);
            }
        });
    }

    #[divan::bench(args = [WRITES], sample_count = SAMPLES)]
    fn write(bencher: Bencher<'_, '_>, batch: u32) {
        let world = World::new();
        let mut ring = world.session.ring(options()).expect("a ring");
        let lend = |at| {
            let from = u64::from(at * WRITE_BYTES);
            world.region.lend(from..from + u64::from(WRITE_BYTES)).expect("a lease")
        };
        let mut leases: Vec<_> = (0..batch).map(lend).collect();
        let counted =
            bencher.counter(ItemsCount::new(batch)).counter(BytesCount::new(batch * WRITE_BYTES));
        counted.bench_local(|| {
            for lease in leases.drain(..) {
                let to = world.import.at(TARGET_OFFSET + lease.offset());
                ring.push(Write::new(lease, to)).expect("room in the ring");
            }
            ring.submit_and_wait(batch as usize, None).expect("a ring that lives");
            for _ in 0..batch {
                leases.extend(reap(&mut ring));
            }
        });
        assert_eq!(leases.len(), batch as usize, "leases were lost");
    }

    fn reap(ring: &mut Ring) -> Option<Lease> {
        let completion = ring.reap().expect("a ring that lives").expect("one that is ready");
        completion.result.expect("a success");
        completion.lease
    }
}
