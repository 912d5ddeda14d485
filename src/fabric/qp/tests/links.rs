//! Chains whose links pass a token on: WRITEs of what the READ before has brought, READs of what
//! the WRITE before has left, additions to it in between, notifications on the way. Over rails that
//! share their work or do not, with faults of every kind.
//!
//! Held: a link that takes effect too early, or out of turn, passes something else on than the
//! token; so whatever succeeded has passed it on. One that fails costs the rest of its chain, and
//! no other that may be repeated. What is handed back comes back in order, whole from the first
//! link on, and is posted again in order, by any rail.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::super::Config;
use super::model::plant;
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{Harness, request};
use crate::fabric::{
    Arrival, DONE_FLUSHED, DONE_MAYBE, DONE_RETURNED, Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY,
    Request, Verb,
};
use crate::seeds::{Random, each_seed};

const LINKS: u64 = 12;
const CHAINS: u64 = 24;
const RAILS: u16 = 3;
/// Bytes of a chain at both ends: a word for each link and one more.
const CHAIN_BYTES: u64 = (LINKS + 1) * 8 * 2;

/// One link, and what it passes on.
#[derive(Clone, Debug)]
struct Link {
    request: Request,
    value: u64,
    told: u32,
    outcome: Option<Done>,
}

impl Link {
    fn good(&self) -> bool {
        self.outcome.is_some_and(|end| end.errno == 0 && end.flags == 0)
    }

    fn returned(&self) -> bool {
        self.outcome.is_some_and(|end| end.flags & DONE_RETURNED != 0)
    }

    fn failed(&self) -> bool {
        self.outcome.is_some_and(|end| end.errno != 0)
    }
}

#[derive(Debug)]
struct Chain {
    links: Vec<Link>,
    /// The first link of those that go one behind the other, and how many were taken in all.
    start: usize,
    taken: usize,
    /// Links from here on are over though they were never taken.
    limit: usize,
}

struct World {
    two: Two,
    random: Random,
    chains: Vec<Chain>,
    /// Which chains go by a rail: the first goes on until all of it was taken.
    queues: Vec<VecDeque<usize>>,
    shared: bool,
    /// Nothing is heard of what ended.
    deaf: bool,
    handed_back: u64,
    held: u64,
}

fn draw(random: &mut Random, which: u64, token: u64) -> Vec<Link> {
    let base = which * CHAIN_BYTES;
    let (mut far, mut at, mut value) = (false, base, token);
    let mut links = Vec::new();
    for n in 0..1 + random.below(LINKS) {
        let ticket = which << 8 | n;
        let next = base + (n + 1) * 8;
        let mut made = if !far {
            request(ticket, Verb::Write, at, next, 8)
        } else if random.chance(30) {
            let add = random.below(1 << 20);
            value = value.wrapping_add(add);
            let old = next + CHAIN_BYTES / 2;
            Request { arg: [add, 0], ..request(ticket, Verb::FetchAdd, old, at, 8) }
        } else {
            request(ticket, Verb::Read, next, at, 8)
        };
        if made.verb != Verb::FetchAdd {
            (far, at) = (!far, next);
        }
        if made.verb == Verb::Write && random.chance(25) {
            made.flags |= REQUEST_NOTIFY;
            made.immediate = u32::try_from(ticket).unwrap();
        }
        links.push(Link { request: made, value, told: 0, outcome: None });
    }
    links
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let config = Config {
            depth: 1 + random.below32(16),
            receives: 1 + random.below32(8),
            signal_every: 1 + random.below32(8),
            attempts_max: u8::MAX,
            merge_bytes_max: random.pick(&[0, 64]),
            ..CONFIG
        };
        let shared = random.chance(60);
        let shape = Shape { config, rails: RAILS, step_ns: 1_000, ..Shape::DEFAULT };
        let mut two = Two::new(shape);
        if shared {
            two.near.share(0b111);
            two.far.share(0b111);
        }
        let mut queues = vec![VecDeque::new(); usize::from(RAILS)];
        let mut chains = Vec::new();
        for which in 0..CHAINS {
            let token = random.next();
            two.near().write(which * CHAIN_BYTES, &token.to_le_bytes());
            let links = draw(&mut random, which, token);
            queues[random.index(usize::from(RAILS))].push_back(chains.len());
            chains.push(Chain { limit: links.len(), links, start: 0, taken: 0 });
        }
        Self { two, random, chains, queues, shared, deaf: false, handed_back: 0, held: 0 }
    }

    fn offer(&mut self) {
        let rail = self.random.index(self.queues.len());
        let mut batch = Vec::new();
        for &which in &self.queues[rail] {
            let chain = &self.chains[which];
            for n in chain.taken..chain.limit {
                let mut request = chain.links[n].request;
                request.rail = u16::try_from(rail).unwrap();
                request.flags |= if n > chain.start { REQUEST_CHAIN } else { 0 };
                batch.push(request);
            }
        }
        batch.truncate(1 + self.random.index(12));
        let taken = self.two.near.post(&batch);
        for request in &batch[..taken] {
            let which = usize::try_from(request.ticket >> 8).unwrap();
            let chain = &mut self.chains[which];
            chain.taken += 1;
            if chain.taken == chain.limit {
                assert_eq!(self.queues[rail].pop_front(), Some(which));
            }
        }
    }

    fn poll(&mut self) {
        let now_ns = self.two.advance();
        if self.random.chance(3) {
            self.deaf = !self.deaf;
        }
        let room = if self.deaf { 0 } else { 1 + self.random.index(8) };
        let mut done = Vec::with_capacity(room);
        self.two.near.poll(now_ns, &mut done);
        for end in done {
            self.hear(end);
        }
        self.two.near.audit();
        let mut out: Vec<Arrival> = Vec::with_capacity(self.random.index(3));
        self.two.arrivals(&mut out);
        for arrival in out {
            let (which, n) = (arrival.immediate >> 8, arrival.immediate & 0xff);
            self.chains[which as usize].links[n as usize].told += 1;
        }
    }

    /// What succeeds, or is handed back, does so in order, and behind what has succeeded, or was
    /// handed back.
    fn hear(&mut self, end: Done) {
        let which = usize::try_from(end.ticket >> 8).unwrap();
        let n = usize::try_from(end.ticket & 0xff).unwrap();
        let chain = &mut self.chains[which];
        let known = (chain.start..chain.taken).contains(&n) && chain.links[n].outcome.is_none();
        assert!(known, "{end:?} {chain:?}");
        chain.links[n].outcome = Some(end);
        let before = &chain.links[chain.start..n];
        if chain.links[n].good() {
            assert!(before.iter().all(Link::good), "{end:?} {chain:?}");
        } else if chain.links[n].returned() {
            assert!(self.shared, "{end:?}");
            assert!(before.iter().all(|link| link.good() || link.returned()), "{end:?} {chain:?}");
            self.handed_back += 1;
        }
        let mut under_way = chain.links[chain.start..chain.taken].iter();
        if under_way.all(|link| link.outcome.is_some()) {
            self.again(which);
        }
    }

    /// Has what was handed back of a chain go once more, when all of it is back.
    fn again(&mut self, which: usize) {
        let chain = &mut self.chains[which];
        let Some(first) = chain.links.iter().position(Link::returned) else { return };
        let behind = &chain.links[first..chain.taken];
        assert!(behind.iter().all(|link| !link.good()), "{chain:?}");
        let failed = behind.iter().position(Link::failed);
        if let Some(failed) = failed {
            chain.limit = first + failed;
            self.held += 1;
        }
        for link in &mut chain.links[first..chain.limit] {
            link.outcome = None;
        }
        (chain.start, chain.taken) = (first, first);
        for queue in &mut self.queues {
            queue.retain(|other| *other != which);
        }
        let rail = self.random.index(self.queues.len());
        self.queues[rail].push_back(which);
    }

    fn over(&self) -> bool {
        let over =
            |chain: &Chain| chain.links[..chain.limit].iter().all(|link| link.outcome.is_some());
        self.chains.iter().all(over) && self.two.near.at_rest()
    }

    fn run(&mut self) {
        for _ in 0..1_000 {
            if self.random.chance(4) {
                let rail = u16::try_from(self.random.below(u64::from(RAILS))).unwrap();
                plant(&mut self.random, &self.two, rail);
            }
            self.offer();
            self.poll();
        }
        self.two.net.calm();
        for _ in 0..20_000 {
            self.deaf = false;
            self.offer();
            self.poll();
            if self.over() {
                break;
            }
        }
        assert!(self.over(), "chains hang: {:?} {:?}", self.two.near.counts(), self.queues);
        for _ in 0..50 {
            self.poll();
        }
    }

    fn judge(&self) {
        for chain in &self.chains {
            for (n, link) in chain.links.iter().enumerate() {
                let Some(end) = link.outcome else { continue };
                let context = format!("link {n}: {chain:?}");
                let before = n.checked_sub(1).map(|before| &chain.links[before]);
                let told = link.request.flags & REQUEST_NOTIFY != 0;
                let most = u32::from(told && (link.good() || end.flags & DONE_MAYBE != 0));
                let least = u32::from(told && link.good());
                assert!((least..=most).contains(&link.told), "{context}");
                if link.good() {
                    assert!(before.is_none_or(Link::good), "{context}");
                    self.passed_on(link, before, &context);
                } else if n >= chain.limit {
                    // It failed when those before it were handed back; what became of them later is
                    // nothing to it.
                    let plain = link.request.verb != Verb::FetchAdd && !told;
                    assert!(n > chain.limit || !plain, "{context}");
                    assert!(end.flags & DONE_FLUSHED != 0, "{context}");
                } else if before.is_some_and(Link::failed) {
                    // What cannot be repeated may have failed while the one before it was repeated.
                    let plain = link.request.verb != Verb::FetchAdd && !told;
                    assert!(end.errno == errno::ECANCELED || !plain, "{context}");
                    assert!(end.flags & DONE_FLUSHED != 0, "{context}");
                } else {
                    // It failed by itself, or could not be repeated.
                    let plain = link.request.verb != Verb::FetchAdd && !told;
                    assert!(!(plain && end.flags & DONE_FLUSHED != 0), "{context}");
                    assert!(end.errno != errno::ECANCELED, "{context}");
                }
            }
        }
    }

    fn passed_on(&self, link: &Link, before: Option<&Link>, context: &str) {
        let word = |at| {
            let mut word = [0; 8];
            self.two.near().read(at, &mut word);
            u64::from_le_bytes(word)
        };
        let landed = word(link.request.local_offset);
        match link.request.verb {
            Verb::FetchAdd => assert_eq!(Some(landed), before.map(|link| link.value), "{context}"),
            _ => assert_eq!(landed, link.value, "{context}"),
        }
    }
}

#[test]
fn whatever_fails_chains_pass_on_what_their_links_have_brought() {
    let sums = RefCell::new([0_u64; 4]);
    each_seed(600, |seed| {
        let mut world = World::new(seed);
        world.run();
        world.judge();
        let counts = world.two.near.counts();
        let seen = [1, counts.repeats, world.handed_back, world.held];
        for (sum, seen) in sums.borrow_mut().iter_mut().zip(seen) {
            *sum += seen;
        }
    });
    let sums = sums.into_inner();
    assert!(sums[0] == 1 || sums.iter().all(|sum| *sum > 50), "{sums:?}");
    println!("worlds, repeats, handed back, of these behind what failed: {sums:?}");
}

/// What is chained to a request that was handed back goes the same way, though it was posted later:
/// it must not go ahead of it.
#[test]
fn what_is_chained_to_what_was_handed_back_is_handed_back_too() {
    let mut two = Two::new(Shape { rails: 2, ..Shape::DEFAULT });
    two.near.share(0b11);
    let write = |n: u64, flags| Request { flags, ..request(n, Verb::Write, n * 8, n * 8, 8) };
    two.near().fill(0, 64, 7);
    two.net.cut(two.join.number(0, 0), true);
    assert_eq!(two.near.post(&[write(1, 0)]), 1);
    two.net.break_pair(two.join.number(0, 0));
    two.net.cut(two.join.number(0, 0), false);
    for _ in 0..400 {
        two.step();
    }
    // It is in use again, and nobody has heard of what became of the first.
    let late = [write(2, REQUEST_CHAIN), write(3, REQUEST_CHAIN | REQUEST_NOTIFY), write(4, 0)];
    assert_eq!(two.near.post(&late), 3);
    let mut done = Vec::with_capacity(8);
    for _ in 0..100 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    let ends: Vec<_> = done.iter().map(|end| (end.ticket, end.errno, end.flags)).collect();
    let back = DONE_RETURNED;
    assert_eq!(ends, [(1, 0, back), (2, 0, back), (3, 0, back), (4, 0, 0)]);
    assert_eq!(two.near.counts().returned, 3);
    let there = [1, 2, 3, 4].map(|n| two.far().word64(n * 8).load(Ordering::Relaxed) != 0);
    assert_eq!(there, [false, false, false, true]);
    two.near.audit();
    assert!(two.near.at_rest());
}
