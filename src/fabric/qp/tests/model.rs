//! Worlds drawn from a seed: every depth from 1 to 16, chains up to 1 to 16 requests, 1 to 4
//! rails; requests of every kind; and, in the second half of the seeds, faults of every kind.
//!
//! Held at every step: never more posted than the depth and the two places kept back. Held at the
//! end, once faults have ceased: every request ended exactly once, within a bounded time; nothing
//! is left anywhere; and what each end says is true of the far memory: a success happened once, a
//! failure that is certain did not happen, one that is not happened at most once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::provider::{Caps, DeviceLimits, Wc, WcKind, WcStatus};
use super::super::sim::{PostPlan, Say, SimConfig, WorkPlan};
use super::super::{Config, SENDS_KEPT};
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{BYTES, Harness, request};
use crate::fabric::{
    Arrival, DONE_MAYBE, Done, Fabric, REQUEST_APART, REQUEST_CHAIN, REQUEST_NOTIFY, Request, Verb,
};
use crate::seeds::{Random, each_seed};

/// Places of 64 bytes. READs have the second half of both memories.
const SLOTS: u64 = BYTES / 128;
const SHAPES: u64 = 16 * 16 * 4;

struct World {
    two: Two,
    random: Random,
    rails: u16,
    depth: u32,
    /// Requests that are not taken yet, by rail.
    waiting: Vec<VecDeque<Request>>,
    all: Vec<Request>,
    taken: Vec<bool>,
    ends: Vec<Option<Done>>,
    told: Vec<u32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let shape = (seed - 1) % SHAPES;
        let depth = 1 + u32::try_from(shape % 16).unwrap();
        let chain_max = 1 + shape / 16 % 16;
        let rails = 1 + u16::try_from(shape / 256).unwrap();
        let pieces = random.chance(20);
        let message_bytes_max = if pieces { 24 } else { 1 << 30 };
        let limits = DeviceLimits {
            registration_bytes_max: if pieces { 1000 } else { 1 << 40 },
            message_bytes_max,
            ..SimConfig::DEFAULT.limits
        };
        let config = Config {
            depth,
            receives: 1 + random.below32(8),
            signal_every: 1 + random.below32(8),
            attempts_max: u8::try_from(random.below(4)).unwrap(),
            message_bytes_max,
            merge_bytes_max: random.pick(&[0, 300, 4096]),
            ..CONFIG
        };
        let ranges = random.pick(&[1, 2, 16]);
        let caps_max = Caps { ranges, ..SimConfig::DEFAULT.caps_max };
        let sim = SimConfig { limits, caps_max, ..SimConfig::DEFAULT };
        let two = Two::new(Shape { sim, config, rails, step_ns: 1_000, ..Shape::DEFAULT });
        let (near, far) = (two.near(), two.far());
        for at in 0..BYTES / 8 {
            near.write(at * 8, &random.next().to_le_bytes());
            let value = if at < SLOTS * 8 { 0 } else { random.next() };
            far.write(at * 8, &value.to_le_bytes());
        }
        let waiting = vec![VecDeque::new(); usize::from(rails)];
        let (all, taken, ends, told) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut world = Self { two, random, rails, depth, waiting, all, taken, ends, told };
        let count = 40 + world.random.below(100);
        while (world.all.len() as u64) < count {
            match world.random.chance(30) {
                true => world.draw_neighbours(),
                false => world.draw_chain(chain_max),
            }
        }
        world
    }

    fn draw_chain(&mut self, chain_max: u64) {
        let rail = u16::try_from(self.random.below(u64::from(self.rails))).unwrap();
        for link in 0..1 + self.random.below(chain_max) {
            let n = self.all.len() as u64;
            let at = n * 64;
            let bytes = self.random.below32(65);
            let mut made = match self.random.below(4) {
                0 => request(n, Verb::Read, SLOTS * 64 + at, SLOTS * 64 + at, bytes),
                // With pieces, a word may not lie in one: that ends as failed, which is right.
                1 => Request { arg: [1, 0], ..request(n, Verb::FetchAdd, at, at, 8) },
                kind => {
                    let flags = if kind == 2 { REQUEST_NOTIFY } else { 0 };
                    let immediate = u32::try_from(n).unwrap();
                    Request { flags, immediate, ..request(n, Verb::Write, at, at, bytes) }
                }
            };
            made.flags |= if link > 0 { REQUEST_CHAIN } else { 0 };
            self.wait(Request { rail, ..made });
        }
    }

    /// WRITEs or READs that may share work requests; some would not, some notify.
    fn draw_neighbours(&mut self) {
        let rail = u16::try_from(self.random.below(u64::from(self.rails))).unwrap();
        let verb = self.random.pick(&[Verb::Write, Verb::Write, Verb::Read]);
        // From one local range, or from places that are not in order.
        let turned = self.random.chance(50);
        let first = self.all.len() as u64;
        let count = 2 + self.random.below(8);
        for n in first..first + count {
            let here = if turned { 2 * first + count - 1 - n } else { n };
            let half = if verb == Verb::Read { SLOTS * 64 } else { 0 };
            let made = request(n, verb, half + here * 64, half + n * 64, 64);
            let told = verb == Verb::Write && self.random.chance(10);
            let flags = if told { REQUEST_NOTIFY } else { 0 };
            let apart = if self.random.chance(10) { REQUEST_APART } else { 0 };
            let immediate = u32::try_from(n).unwrap();
            self.wait(Request { rail, flags: flags | apart, immediate, ..made });
        }
    }

    fn wait(&mut self, made: Request) {
        self.waiting[usize::from(made.rail)].push_back(made);
        self.all.push(made);
        self.taken.push(false);
        self.ends.push(None);
        self.told.push(0);
    }

    /// Offers the heads of one or two rails' queues in one batch.
    fn offer(&mut self) {
        let mut batch = Vec::new();
        let first = self.random.index(usize::from(self.rails));
        for rail in [first, (first + 1) % usize::from(self.rails)] {
            let most = self.random.index(20) + 1;
            if batch.is_empty() || rail != first {
                batch.extend(self.waiting[rail].iter().take(most).copied());
            }
        }
        let taken = self.two.near.post(&batch);
        for request in &batch[..taken] {
            let queue = &mut self.waiting[usize::from(request.rail)];
            assert_eq!(queue.pop_front().unwrap().ticket, request.ticket);
            self.taken[usize::try_from(request.ticket).unwrap()] = true;
        }
    }

    fn poll(&mut self) {
        let now_ns = self.two.advance();
        let mut done = Vec::with_capacity(1 + self.random.index(20));
        self.two.near.poll(now_ns, &mut done);
        for end in done {
            let n = usize::try_from(end.ticket).unwrap();
            assert!(self.taken[n], "{end:?} was not taken");
            assert_eq!(self.ends[n], None, "{end:?} ended twice");
            self.ends[n] = Some(end);
        }
        for rail in 0..self.rails {
            let posted = self.two.near.posted(rail);
            assert!(posted <= self.depth + SENDS_KEPT, "{posted} posted");
            let room = self.two.near.room(rail);
            assert!(room.requests <= self.depth);
        }
    }

    fn look(&mut self) {
        let mut out: Vec<Arrival> = Vec::with_capacity(1 + self.random.index(6));
        self.two.arrivals(&mut out);
        let (near, far) = (self.two.near(), self.two.far());
        for arrival in out {
            let n = arrival.immediate as usize;
            self.told[n] += 1;
            let request = &self.all[n];
            assert!(same(&near, &far, request), "told of {n} before its bytes");
        }
    }

    fn run(&mut self, faults: bool) {
        for _ in 0..1_000 {
            if faults && self.random.chance(4) {
                let rail = u16::try_from(self.random.below(u64::from(self.rails))).unwrap();
                plant(&mut self.random, &self.two, rail);
            }
            for _ in 0..self.random.below(3) {
                self.offer();
            }
            self.poll();
            if self.random.chance(30) {
                self.look();
            }
        }
        self.two.net.calm();
        for _ in 0..20_000 {
            self.offer();
            self.poll();
            self.look();
            if self.ends.iter().all(Option::is_some) && self.two.near.at_rest() {
                break;
            }
        }
        let open = self.ends.iter().filter(|end| end.is_none()).count();
        assert_eq!(open, 0, "{open} requests hang: {:?}", self.two.near.counts());
        for _ in 0..50 {
            self.poll();
            self.look();
        }
    }

    /// What each end says, against the memories.
    fn judge(&self, faults: bool) {
        let (near, far) = (self.two.near(), self.two.far());
        for (n, request) in self.all.iter().enumerate() {
            let end = self.ends[n].unwrap();
            let (good, maybe) = (end.errno == 0, end.flags & DONE_MAYBE != 0);
            let context = format!("{request:?} {end:?}");
            assert!(!(good && end.flags != 0), "{context}");
            let times = match request.verb {
                Verb::FetchAdd => far.word64(request.remote_offset).load(Ordering::Relaxed),
                _ if request.flags & REQUEST_NOTIFY != 0 => u64::from(self.told[n]),
                _ => {
                    assert!(!good || same(&near, &far, request), "{context}");
                    continue;
                }
            };
            assert!(!good || same(&near, &far, request), "{context}");
            let most = u64::from(good || maybe);
            assert!(times <= most && times >= u64::from(good), "{times} times: {context}");
            if request.flags & REQUEST_CHAIN != 0 && good {
                let before = self.ends[n - 1].unwrap();
                assert_eq!(before.errno, 0, "not cut after {:?}: {context}", self.all[n - 1]);
            }
            let small = end.errno == errno::EINVAL;
            assert!(faults || good || small || end.errno == errno::ECANCELED, "{context}");
        }
        assert!(self.two.near.at_rest(), "{:?}", self.two.near);
        for rail in 0..self.rails {
            let number = self.two.join.number(rail, 0);
            let most = self.two.net.occupied_most(number);
            assert!(most <= (self.depth + SENDS_KEPT) as usize, "{most} in the send queue");
            assert_eq!(self.two.near.posted(rail), 0);
        }
    }
}

/// One fault, of any kind, of a rail's queue pair at either end.
pub(super) fn plant(random: &mut Random, two: &Two, rail: u16) {
    let side = usize::from(random.chance(25));
    let number = two.join.number(rail, side);
    let net = &two.net;
    let say = random.pick(&[Say::Right, Say::Right, Say::Missing, Say::Wrong(1 << 20)]);
    let errno = random.pick(&[errno::ENOMEM, errno::ENOMEM, errno::ENOMEM, errno::EINVAL]);
    let plan = PostPlan { taken: random.below32(8), say, errno };
    match random.below(7) {
        0 | 1 => net.plan_post(number, plan),
        2 => net.plan_receives(number, PostPlan { taken: random.below32(3), ..plan }),
        3 => {
            let path = [WcStatus::RetryExceeded, WcStatus::Flushed, WcStatus::Other(21)];
            let guilty = [WcStatus::RemoteAccess, WcStatus::LocalProtection];
            let effect = random.chance(40);
            let status =
                if effect || random.chance(50) { random.pick(&path) } else { random.pick(&guilty) };
            net.plan_work(number, WorkPlan { after: random.below32(6), status, effect });
        }
        4 => net.break_pair(number),
        5 => net.delay(number, 100 + random.below(8_000)),
        _ => {
            let posted = net.posted(number);
            if posted.len() < 64 {
                return;
            }
            let wr_id = posted[random.index(posted.len() - 40)].wr_id;
            let status = random.pick(&[WcStatus::Success, WcStatus::Flushed]);
            let wc = Wc {
                wr_id,
                number,
                status,
                kind: WcKind::Work,
                bytes: 0,
                message: [0; 2],
                vendor_error: 0,
            };
            net.inject(number, wc);
        }
    }
}

/// True if a request's bytes are where they should be, for WRITE and READ.
fn same(near: &Arc<crate::shm::Mapping>, far: &crate::shm::Mapping, request: &Request) -> bool {
    if request.verb == Verb::FetchAdd {
        return true;
    }
    let mut ours = vec![0; request.bytes as usize];
    let mut theirs = ours.clone();
    near.read(request.local_offset, &mut ours);
    far.read(request.remote_offset, &mut theirs);
    ours == theirs
}

#[test]
fn every_depth_chain_and_number_of_rails_ends_every_request_once() {
    each_seed(SHAPES, |seed| {
        let mut world = World::new(seed);
        world.run(false);
        world.judge(false);
        assert_eq!(world.two.near.counts().degraded, 0);
    });
}

#[test]
fn whatever_fails_every_request_ends_once_and_the_truth_is_told() {
    let sums = RefCell::new([0_u64; 9]);
    each_seed(2 * SHAPES, |seed| {
        let mut world = World::new(seed);
        world.run(true);
        world.judge(true);
        let counts = world.two.near.counts();
        let maybe = world.ends.iter().flatten().filter(|end| end.flags & DONE_MAYBE != 0).count();
        let seen = [
            1,
            counts.partial,
            counts.doubts,
            counts.degraded,
            counts.repeats,
            counts.stale,
            counts.markers,
            maybe as u64,
            counts.merged,
        ];
        for (sum, seen) in sums.borrow_mut().iter_mut().zip(seen) {
            *sum += seen;
        }
    });
    // Worlds in which nothing went wrong would prove nothing.
    let sums = sums.into_inner();
    assert!(sums[0] == 1 || sums.iter().all(|sum| *sum > 200), "{sums:?}");
    println!("worlds, partial, doubts, degraded, repeats, stale, markers, maybe, merged: {sums:?}");
}
