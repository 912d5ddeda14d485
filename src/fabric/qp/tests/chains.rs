//! Chains of every length over queue pairs of every depth, with no signal but those that the fabric
//! finds needed by itself: what a queue pair cannot give back it must not be waited for.
//!
//! In one system that this fabric was made to do better than, a chain that finds no room waits for
//! completions that unsignalled work never gives, and depth that a failed post had taken stays
//! taken. Both need chains that do not divide the depth, so all depths and lengths are tried.

use std::collections::VecDeque;

use super::super::sim::{PostPlan, Say};
use super::super::{Config, SENDS_KEPT};
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{Harness, request};
use crate::fabric::{Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY, Request, Verb};

/// Depth, requests of a chain, queue pairs.
type Case = (u32, u64, u16);

/// Signalled by the fabric alone.
const NEVER: u32 = 1 << 20;
/// Chains a queue pair.
const CHAINS: u64 = 5;

fn every_case() -> impl Iterator<Item = Case> {
    let depths = (1..=16).flat_map(|depth| (1..=16).map(move |chain| (depth, chain)));
    depths.flat_map(|(depth, chain)| (1..=4).map(move |rails| (depth, chain, rails)))
}

/// Chains handed out over the queue pairs in turn, every third one with a notification at its end.
fn chains((_, chain, rails): Case) -> Vec<VecDeque<Request>> {
    let mut queues = vec![VecDeque::new(); usize::from(rails)];
    for n in 0..CHAINS * chain * u64::from(rails) {
        let (which, link) = (n / chain, n % chain);
        let rail = u16::try_from(which % u64::from(rails)).unwrap();
        let mut flags = if link > 0 { REQUEST_CHAIN } else { 0 };
        if link + 1 == chain && which % 3 == 2 {
            flags |= REQUEST_NOTIFY;
        }
        let made = Request { rail, flags, ..request(n, Verb::Write, n * 8, n * 8, 8) };
        queues[usize::from(rail)].push_back(made);
    }
    queues
}

struct World {
    two: Two,
    case: Case,
    queues: Vec<VecDeque<Request>>,
    done: Vec<Done>,
    told: usize,
}

impl World {
    fn new(case: Case) -> Self {
        let (depth, _, rails) = case;
        let config = Config { depth, signal_every: NEVER, receives: 2, ..CONFIG };
        let two = Two::new(Shape { config, rails, ..Shape::DEFAULT });
        let room = 16 * usize::try_from(CHAINS).unwrap() * 4;
        Self { two, case, queues: chains(case), done: Vec::with_capacity(room), told: 0 }
    }

    /// Work is never waited for without a signal behind it, and never more than there is room for.
    fn audit(&self) {
        let (depth, _, rails) = self.case;
        for rail in 0..rails {
            let works = &self.two.near.rails[usize::from(rail)].works;
            assert!(works.len() <= depth + SENDS_KEPT, "{:?}", self.case);
            let last = works.tail().wrapping_sub(1);
            // A part that was posted without its end has a marker put behind it by the next look.
            let told = works.is_empty() || works[last].signaled || self.two.near.restless();
            assert!(told, "{:?}: no end in sight", self.case);
        }
    }

    /// Offers what waits, looks, and lets time pass; false once all has ended.
    fn step(&mut self) -> bool {
        for queue in &mut self.queues {
            let offered: Vec<_> = queue.iter().copied().take(16).collect();
            let taken = self.two.near.post(&offered);
            queue.drain(..taken);
        }
        self.audit();
        let now_ns = self.two.advance();
        self.two.near.poll(now_ns, &mut self.done);
        let mut arrivals = Vec::with_capacity(16);
        self.two.arrivals(&mut arrivals);
        self.told += arrivals.len();
        self.done.len() < self.done.capacity() && !self.over()
    }

    fn over(&self) -> bool {
        let (_, chain, rails) = self.case;
        self.done.len() as u64 == CHAINS * chain * u64::from(rails)
    }

    /// All ended well, each once, without any time-out, and every credit is back.
    fn judge(mut self) {
        let (depth, chain, rails) = self.case;
        let begun_ns = self.two.net.now_ns();
        for _ in 0..20_000 {
            if !self.step() {
                break;
            }
        }
        assert!(self.over(), "{:?} hangs: {} ended", self.case, self.done.len());
        let spent_ns = self.two.net.now_ns() - begun_ns;
        assert!(spent_ns < CONFIG.stuck_ns, "{:?} took {spent_ns} ns: a time-out", self.case);
        for _ in 0..40 {
            self.step();
        }
        assert!(self.done.iter().all(|end| (end.errno, end.flags) == (0, 0)), "{:?}", self.case);
        let mut tickets: Vec<_> = self.done.iter().map(|end| end.ticket).collect();
        tickets.sort_unstable();
        tickets.dedup();
        assert_eq!(tickets.len() as u64, CHAINS * chain * u64::from(rails), "{:?}", self.case);
        let notified = (0..CHAINS * u64::from(rails)).filter(|which| which % 3 == 2).count();
        assert_eq!(self.told, notified, "{:?}", self.case);
        assert!(self.two.near.at_rest(), "{:?}", self.case);
        for rail in 0..rails {
            // One request alone may be of more work than a queue pair of depth 1 has room for.
            assert_eq!(self.two.near.room(rail).requests, depth, "{:?}: depth is lost", self.case);
        }
        let counts = self.two.near.counts();
        assert_eq!((counts.degraded, counts.doubts, counts.repeats), (0, 0, 0));
        assert_eq!(self.two.net.overfull(), 0);
    }
}

#[test]
fn w17_every_depth_chain_and_number_of_queue_pairs_ends_without_leak_or_timeout() {
    let cases = every_case().map(|case| World::new(case).judge()).count();
    assert_eq!(cases, 16 * 16 * 4);
}

/// The same, while now and then a post stops halfway or takes nothing: what follows on the other
/// queue pairs, and what was posted without a signal, comes to its end all the same.
#[test]
fn w17_every_case_leaks_nothing_also_where_posts_stop_halfway() {
    for (at, case) in (0_u32..).zip(every_case()) {
        let world = World::new(case);
        for rail in 0..case.2 {
            let number = world.two.join.number(rail, 0);
            // The first post stops somewhere before its end; then twice nothing is taken, also not
            // the marker that follows.
            let (depth, chain, _) = case;
            let least = depth.min(u32::try_from(CHAINS * chain).unwrap());
            for taken in [(at + u32::from(rail)) % (least / 2).max(1), 0, 0] {
                world
                    .two
                    .net
                    .plan_post(number, PostPlan { taken, say: Say::Right, errno: errno::ENOMEM });
            }
        }
        world.judge();
    }
}
