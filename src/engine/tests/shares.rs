//! Who gets how much, and who waits how long, under virtual time: over a device of a known rate.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use super::world::{LIMITS, STEP_NS, World};
use crate::abi::{Class, FABRIC_LOCAL, Opcode, Page, Sqe};
use crate::engine::Limits;
use crate::fabric::{self, Done, Fabric, Request};
use crate::ids::{RegionId, SessionId};
use crate::ledger::State;
use crate::random::Random;
use crate::sched::bound::Device;
use crate::sched::{Contract, Mode, Policy};
use crate::shm::Mapping;

/// Serves requests one after the other, each in a time of its own, and moves nothing.
#[derive(Debug)]
pub(super) struct Paced {
    clock: Rc<Cell<u64>>,
    flying: VecDeque<(u64, u64)>,
    depth: u32,
    free_ns: u64,
}

/// Nanoseconds for each KiB, and for each request.
pub(super) const KIB_NS: u64 = 100;
pub(super) const REQUEST_NS: u64 = 50;

impl Fabric for Paced {
    type Memory = Arc<Mapping>;

    fn limits(&self) -> fabric::Limits {
        fabric::Limits { depth: self.depth, fabric: FABRIC_LOCAL, chain_max: 1, notifies: false }
    }

    fn attach(&mut self, _region: u32, _memory: Arc<Mapping>) {}

    fn detach(&mut self, _region: u32) -> Option<Arc<Mapping>> {
        None
    }

    fn read_pages(&self, _region: u32, _offset: u64, _pages: &mut [Page]) -> bool {
        false
    }

    fn post(&mut self, batch: &[Request]) -> usize {
        for request in batch {
            let begins_ns = self.free_ns.max(self.clock.get());
            self.free_ns = begins_ns + REQUEST_NS + u64::from(request.bytes) * KIB_NS / 1024;
            self.flying.push_back((request.ticket, self.free_ns));
        }
        batch.len()
    }

    fn poll(&mut self, now_ns: u64, done: &mut Vec<Done>) {
        while let Some(&(ticket, ends_ns)) = self.flying.front()
            && ends_ns <= now_ns
            && done.len() < done.capacity()
        {
            done.push(Done::new(ticket, 0));
            self.flying.pop_front();
        }
    }
}

/// Clients, each with a session, a ring and a region of its own.
pub(super) struct Stage {
    pub(super) world: World<Paced>,
    clock: Rc<Cell<u64>>,
    pub(super) clients: Vec<Member>,
}

pub(super) struct Member {
    ring: usize,
    own: RegionId,
    import: RegionId,
    /// When the ops under way were pushed, by `user_data`, from 1.
    pushed_ns: Vec<u64>,
    /// How long each of them took; 0 while it is under way.
    pub(super) took_ns: Vec<u64>,
    pub(super) in_flight: u32,
    bytes: u64,
    latencies: Vec<u64>,
}

/// Enough for one that pushes whatever it may.
const SQ_ENTRIES: u32 = 32;

impl Stage {
    /// Clients of these owners.
    pub(super) fn new(limits: Limits, owners: &[u32]) -> Self {
        let clock = Rc::new(Cell::new(0));
        let depth = limits.window_wrs;
        let fabric = Paced { clock: Rc::clone(&clock), flying: VecDeque::new(), depth, free_ns: 0 };
        let mut world = World::new(limits, fabric);
        world.audited = false;
        let clients = (0..).zip(owners).map(|(session, &owner)| {
            let contract = Contract::of_ops(limits.records);
            let session = world.session_under(session, owner, contract);
            Member::new(&mut world, session)
        });
        let clients = clients.collect();
        Self { world, clock, clients }
    }

    pub(super) fn push(&mut self, client: usize, class: Class, bytes: u32) {
        self.push_tied(client, (class, bytes), [0; 2], 0);
    }

    /// Pushes an op with edges, and flags for what comes behind it.
    pub(super) fn push_tied(
        &mut self,
        client: usize,
        (class, bytes): (Class, u32),
        edges: [u16; 2],
        flags: u16,
    ) {
        let member = &mut self.clients[client];
        member.pushed_ns.push(self.world.now_ns);
        member.took_ns.push(0);
        let sqe = Sqe {
            opcode: Opcode::Write as u8,
            class: class as u8,
            edges,
            flags,
            user_data: member.pushed_ns.len() as u64,
            local_region: member.own.0,
            remote_region: member.import.0,
            remote_offset: HALF,
            bytes,
            ..Sqe::default()
        };
        if self.world.try_push(member.ring, sqe).is_some() {
            member.in_flight += 1;
        } else {
            member.pushed_ns.pop();
            member.took_ns.pop();
        }
    }

    /// Has a client always have so many ops under way.
    pub(super) fn flood(&mut self, client: usize, class: Class, bytes: u32, deep: u32) {
        while self.clients[client].in_flight < deep {
            self.push(client, class, bytes);
        }
    }

    pub(super) fn turn(&mut self) {
        self.clock.set(self.world.now_ns + STEP_NS);
        self.world.turn();
        let now_ns = self.world.now_ns;
        for member in &mut self.clients {
            if member.in_flight == 0 {
                continue;
            }
            for cqe in self.world.pop(member.ring) {
                let bytes = u64::try_from(cqe.res).expect("a success");
                let at = usize::try_from(cqe.user_data).unwrap() - 1;
                member.in_flight -= 1;
                member.bytes += bytes;
                let took_ns = now_ns - member.pushed_ns[at];
                member.took_ns[at] = took_ns;
                member.latencies.push(took_ns);
            }
        }
    }

    fn bytes(&self) -> Vec<u64> {
        self.clients.iter().map(|member| member.bytes).collect()
    }
}

/// Regions are larger than what lies behind them, since nothing is moved.
const HALF: u64 = 1 << 30;

impl Member {
    fn new(world: &mut World<Paced>, session: SessionId) -> Self {
        let own = world.next_region(1);
        let memory = world.mapping(own, 64);
        world.add_region(own, session, 2 * HALF, memory);
        let import = world.import(session, own);
        let ring = world.ring(session, SQ_ENTRIES, 2 * SQ_ENTRIES);
        Self {
            ring,
            own,
            import,
            pushed_ns: Vec::new(),
            took_ns: Vec::new(),
            in_flight: 0,
            bytes: 0,
            latencies: Vec::new(),
        }
    }
}

/// The value below which 99 of 100 lie.
fn p99(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[(values.len() - 1) * 99 / 100]
}

/// Jain's index of fairness: 1 if all are equal, 1/n if one has all.
fn jain(values: &[u64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "an index between 0 and 1")]
    let values: Vec<f64> = values.iter().map(|value| *value as f64).collect();
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    let count = values.len() as f64;
    sum * sum / (count * squares)
}

pub(super) fn limits(
    policy: Policy,
    window_wrs: u32,
    window_bytes: u64,
    slice_bytes: u32,
) -> Limits {
    Limits {
        records: 16_384,
        sessions_max: 1_024,
        rings_max: 1_024,
        regions_max: 4_096,
        list_blocks: 4_096,
        edges: 4_096,
        window_wrs,
        window_bytes,
        slice_bytes,
        intake_budget: 64,
        policy,
        ..LIMITS
    }
}

/// Floods of bulk in all classes; then one op comes. It is never put off for longer than the bound
/// that `verbring qos --bound` prints, whatever the window and the slices, and in every class.
#[test]
fn no_wait_is_longer_than_its_printed_bound() {
    let mut random = Random::new(6);
    for round in 0..60 {
        let mode = if round % 2 == 0 { Mode::Weighted } else { Mode::Strict };
        let policy = Policy { mode, min_share: [0, 50, 50], ..Policy::DEFAULT };
        let slice_bytes = 4_096 << random.below(6);
        let window_bytes = u64::from(slice_bytes) * (1 + random.below(8));
        let window_wrs = 1 + random.below32(64);
        let limits = limits(policy, window_wrs, window_bytes, slice_bytes);
        let mut stage = Stage::new(limits, &[0, 1, 2, 3]);
        let device = Device {
            window_bytes,
            window_wrs,
            slice_bytes,
            rails: 1,
            bytes_per_s: 1024 * 1_000_000_000 / KIB_NS,
            wr_ns: REQUEST_NS,
        };
        let class = Class::ALL[round % 3];
        let others: Vec<Class> = Class::ALL.into_iter().filter(|other| *other != class).collect();
        let bytes = [64, 4_096, 1 << 20][random.index(3)];
        for _ in 0..20 {
            for _ in 0..random.below(400) {
                for (client, other) in others.iter().enumerate() {
                    stage.flood(client, *other, bytes, 16);
                }
                stage.turn();
            }
            stage.push(3, class, 4_096);
            while stage.clients[3].in_flight > 0 {
                for (client, other) in others.iter().enumerate() {
                    stage.flood(client, *other, bytes, 16);
                }
                stage.turn();
            }
        }
        // It is its own slices that it waits for, too: all but the last.
        let wait_ns = device.worst_wait_ns(&policy, class, 4_096).expect("a bound");
        // Intake and completion are a turn late each; the device, that falls dry between two turns,
        // loses a turn for each window that it holds.
        let turns_ns = STEP_NS * (4 + wait_ns / device.window_ns().max(STEP_NS));
        let bound_ns = wait_ns + device.time_ns(4_096, 1) + turns_ns;
        let worst_ns = *stage.clients[3].latencies.iter().max().unwrap();
        assert!(worst_ns <= bound_ns, "{worst_ns} > {bound_ns}: {mode} {class:?} {device:?}");
    }
}

/// One of 1,000 rings floods; the others send a little each. Theirs takes at most twice as long at
/// the 99th of 100 as without the flood, if the window is as small as the load alone needs: what it
/// holds when an op comes is not taken back.
#[test]
fn a_flood_of_one_ring_is_hardly_felt_by_999_others() {
    let run = |floods: bool| {
        let limits = limits(Policy::DEFAULT, 64, 16 << 10, 4 << 10);
        let owners: Vec<u32> = (0..1_000).collect();
        let mut stage = Stage::new(limits, &owners);
        let mut random = Random::new(9);
        for _ in 0..3_000 {
            // About half of what the device can do: 450 ns for each of them.
            for _ in 0..random.below(3) {
                let client = 1 + random.index(999);
                stage.push(client, Class::Medium, 4_096);
            }
            if floods {
                stage.flood(0, Class::Medium, 4_096, 30);
            }
            stage.turn();
        }
        let latencies = stage.clients[1..].iter().flat_map(|member| member.latencies.clone());
        let latencies: Vec<u64> = latencies.collect();
        assert!(latencies.len() > 2_000, "{} ops", latencies.len());
        (p99(latencies), stage.clients[0].bytes)
    };
    let (alone_ns, _) = run(false);
    let (beside_ns, flooded) = run(true);
    assert!(beside_ns <= 2 * alone_ns, "{beside_ns} ns beside a flood, {alone_ns} ns alone");
    assert!(flooded > 1 << 20, "what others do not use is the flood's: {flooded} bytes");
}

/// One of 1,000 rings floods; the others have one op under way at all times.
#[test]
fn a_flood_takes_no_more_than_its_turn_from_999_busy_rings() {
    let run = |floods: bool| {
        let limits = limits(Policy::DEFAULT, 64, 256 << 10, 128 << 10);
        let owners: Vec<u32> = (0..1_000).collect();
        let mut stage = Stage::new(limits, &owners);
        for _ in 0..4_000 {
            for client in 1..1_000 {
                stage.flood(client, Class::Medium, 4_096, 1);
            }
            if floods {
                stage.flood(0, Class::Medium, 64 << 10, 30);
            }
            stage.turn();
        }
        let latencies = stage.clients[1..].iter().flat_map(|member| member.latencies.clone());
        p99(latencies.collect())
    };
    let (alone_ns, beside_ns) = (run(false), run(true));
    assert!(beside_ns <= 2 * alone_ns, "{beside_ns} ns beside a flood, {alone_ns} ns alone");
}

/// All want all they can get: all get the same, whatever the size of their ops.
#[test]
fn all_who_want_all_get_the_same() {
    let limits = limits(Policy::DEFAULT, 64, 256 << 10, 64 << 10);
    let owners: Vec<u32> = (0..200).collect();
    let mut stage = Stage::new(limits, &owners);
    for _ in 0..30_000 {
        for client in 0..200 {
            let bytes = [4_096, 16 << 10, 256 << 10][client % 3];
            stage.flood(client, Class::Low, bytes, 24);
        }
        stage.turn();
    }
    let index = jain(&stage.bytes());
    assert!(index >= 0.95, "Jain's index is {index}");
}

/// A uid with 100 sessions gets what a uid with one gets.
#[test]
fn a_hundred_sessions_of_one_uid_get_one_uids_share() {
    let limits = limits(Policy::DEFAULT, 64, 64 << 10, 16 << 10);
    let owners: Vec<u32> = (0..101).map(|session| u32::from(session > 0)).collect();
    let mut stage = Stage::new(limits, &owners);
    for _ in 0..10_000 {
        for client in 0..101 {
            stage.flood(client, Class::Medium, 8_192, 24);
        }
        stage.turn();
    }
    let bytes = stage.bytes();
    let (one, hundred) = (bytes[0], bytes[1..].iter().sum::<u64>());
    assert!(one.abs_diff(hundred) <= (one + hundred) / 100, "{one} and {hundred} bytes");
    let index = jain(&bytes[1..]);
    assert!(index >= 0.95, "Jain's index within the uid is {index}");
}

/// S8, W09, W25: while others flood, each class moves at least its share.
#[test]
fn no_class_falls_below_its_minimum() {
    for (mode, least) in [(Mode::Weighted, [571, 285, 142]), (Mode::Strict, [900, 50, 50])] {
        let policy = Policy { mode, min_share: [0, 50, 50], ..Policy::DEFAULT };
        let limits = limits(policy, 64, 256 << 10, 64 << 10);
        let mut stage = Stage::new(limits, &[0, 1, 2]);
        for _ in 0..40_000 {
            for (client, class) in Class::ALL.into_iter().enumerate() {
                stage.flood(client, class, 64 << 10, 8);
            }
            stage.turn();
        }
        let bytes = stage.bytes();
        let all: u64 = bytes.iter().sum();
        for (moved, least) in bytes.iter().zip(least) {
            assert!(moved * 1_000 >= all * least * 98 / 100, "{mode}: {bytes:?}");
        }
    }
}

/// W04: a large high op among small low ones, with a window that it hardly fits, goes before two
/// windows' bytes have; in mode tent it never does.
#[test]
fn w04_a_large_op_is_not_put_off_by_small_ones() {
    for (mode, goes) in [(Mode::Weighted, true), (Mode::Strict, true), (Mode::Tent, false)] {
        let policy = Policy { mode, ..Policy::STRICT };
        // A slice is a whole op here: what is not cut must still come in.
        let limits = limits(policy, 128, 64 << 20, 64 << 20);
        let mut stage = Stage::new(limits, &[0, 1, 2, 3]);
        let keep_busy = |stage: &mut Stage| {
            for client in 0..3 {
                stage.flood(client, Class::Low, 1 << 20, 30);
            }
            stage.turn();
        };
        (0..2_000).for_each(|_| keep_busy(&mut stage));
        stage.push(3, Class::High, 48 << 20);
        let before: u64 = stage.bytes().iter().sum();
        let mut moved = 0;
        while stage.clients[3].in_flight > 0 && moved < 2_000 << 20 {
            keep_busy(&mut stage);
            moved = stage.bytes().iter().sum::<u64>() - before;
        }
        if goes {
            assert!(stage.clients[3].in_flight == 0, "{mode}: never let in");
            // It is among those bytes itself.
            assert!(moved <= (2 * 64 + 48) << 20, "{mode}: after {moved} bytes");
        } else {
            assert!(stage.clients[3].in_flight > 0, "{mode}: let in after {moved} bytes");
        }
    }
}

/// W05: what is larger than the window is moved all the same.
#[test]
fn w05_an_op_beyond_the_window_is_moved_in_every_mode() {
    for mode in Mode::ALL {
        let policy = Policy { mode, ..Policy::DEFAULT };
        let limits = limits(policy, 8, 64 << 10, 64 << 10);
        let mut stage = Stage::new(limits, &[0, 1]);
        stage.push(0, Class::Low, 1 << 20);
        for _ in 0..2_000 {
            stage.flood(1, Class::High, 512, 2);
            stage.turn();
        }
        let late = mode == Mode::Tent;
        let moved = stage.clients[0].bytes == 1 << 20;
        assert!(moved || late, "{mode}: {} bytes moved", stage.clients[0].bytes);
        while stage.clients[0].in_flight > 0 || stage.clients[1].in_flight > 0 {
            stage.turn();
        }
        assert_eq!(stage.clients[0].bytes, 1 << 20, "{mode}");
    }
}

/// A4: what is kept for the engine's own work is there when users have all the rest.
#[test]
fn a_reserve_lets_internal_work_in_beside_users_who_have_all_the_rest() {
    let policy = Policy { window_ops: 8, reserve_ops: 2, reserve_bytes: 8_192, ..Policy::STRICT };
    let limits = limits(policy, 64, 64 << 10, 4_096);
    let mut stage = Stage::new(limits, &[0, 1]);
    let users = |stage: &mut Stage| {
        stage.flood(0, Class::High, 4_096, 30);
        stage.turn();
    };
    (0..100).for_each(|_| users(&mut stage));
    assert_eq!(stage.world.engine.window.ops(), 6, "users have all that is theirs");
    // An op that waits is made one of the engine's own.
    stage.push(1, Class::Low, 4_096);
    stage.turn();
    let engine = &mut stage.world.engine;
    let own = (0..engine.ledger.capacity()).find(|&slot| {
        let record = &engine.ledger[slot];
        record.state == State::Queued && record.op.class == Class::Low
    });
    let own = own.expect("it waits behind the flood");
    engine.lanes.remove(&mut engine.ledger, own);
    engine.ledger[own].origin = 1;
    engine.lanes.push(&mut engine.ledger, own);
    let mut most = 0;
    for _ in 0..200 {
        users(&mut stage);
        most = most.max(stage.world.engine.window.ops());
        assert!(stage.world.engine.window.ops() <= 7, "users took of the reserve");
    }
    assert_eq!((stage.clients[1].in_flight, most), (0, 7), "it went beside them");
    while stage.clients[0].in_flight > 0 {
        stage.turn();
    }
    assert_eq!((stage.world.engine.window.ops(), stage.world.engine.window.bytes()), (0, 0));
}
