//! One engine among many: what a turn costs it, with so many peers that it has nothing to do with.
//!
//! A hub is joined to all the others, has imported a region of each, and has written to it once.
//! From then on it works with one of them. Nothing goes wrong, and nothing is drawn: whatever a
//! turn does more than with fewer peers, it does for those that are idle.

use std::sync::Arc;

use super::cable::{Cable, Chance, Delays};
use super::counts::Counts;
use super::loans::{Ends, Loan};
use super::node::Node;
use super::options::Options;
use crate::abi::{Cqe, Opcode, Sqe};
use crate::engine::Limits;
use crate::fabric::Pair;
use crate::fabric::qp::sim::{Net, SimConfig, SimProvider};
use crate::fabric::qp::{Config, RailState};
use crate::ids::{RingId, SessionId};
use crate::random::Random;
use crate::ring::{ClientEnd, Heap};
use crate::sched::{Contract, Policy};

const MS: u64 = 1_000_000;
const STEP_NS: u64 = 500;
const SESSION: SessionId = SessionId(0);
const OP_BYTES: u32 = 64;
/// The same whatever the number of peers, since tables have it.
const RAILS_MAX: u16 = Pair::<SimProvider>::RAILS_MAX;

/// What turns have asked of the device, and how many rails they looked after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Turns of the hub.
    pub turns: u64,
    /// Looks at the device's completion queue.
    pub polls: u64,
    /// Lists posted.
    pub doorbells: u64,
    /// Rails that were looked after: each as often as it was.
    pub rails: u64,
}

/// A hub, a peer that it works with, and peers that are idle.
#[derive(Debug)]
pub struct Idle {
    net: Net,
    nodes: Vec<Node>,
    cables: Vec<Cable>,
    random: Random,
    counts: Counts,
    end: ClientEnd<Arc<Heap>>,
    own: u32,
    /// By peer; the first is the one that works.
    imports: Vec<u32>,
    turns: u64,
}

fn options(engines: usize) -> Options {
    let mut options = Options::draw(&mut Random::new(1));
    options.engines = engines;
    options.cards = vec![SimConfig::DEFAULT];
    options.strands = vec![0];
    (options.sq_entries, options.cq_entries) = (64, 64);
    options.limits = Limits {
        regions_max: 2 * u32::from(RAILS_MAX),
        window_wrs: 64,
        window_bytes: 1 << 20,
        slice_bytes: 64 << 10,
        intake_budget: 64,
        cut_off_ns: 1_000 * MS,
        policy: Policy::DEFAULT,
        ..options.limits
    };
    (options.contract, options.owners) = (Contract::of_ops(options.limits.records), 1);
    options.rails = Config {
        rails_max: RAILS_MAX,
        depth: 32,
        receives: 8,
        inline_bytes: OP_BYTES,
        signal_every: 4,
        message_bytes_max: SimConfig::DEFAULT.limits.message_bytes_max,
        merge_bytes_max: 0,
        regions_max: options.limits.regions_max,
        // Nothing gets lost here.
        lost_ns: 1_000_000 * MS,
        ..options.rails
    };
    options
}

impl Idle {
    /// Joins a hub to one peer, and to so many more that are idle, at most 61.
    ///
    /// # Panics
    /// If there are more, or if they cannot be joined.
    #[must_use]
    pub fn new(idle: u16) -> Self {
        let peers = usize::from(idle) + 1;
        let options = options(peers + 1);
        let net = Net::new();
        let mut nodes: Vec<_> =
            (0..options.engines).map(|at| Node::new(at, &options, &net)).collect();
        let heaps: Vec<_> = nodes.iter_mut().map(|node| node.open(SESSION, &options)).collect();
        let (own, _) = nodes[0].region(SESSION, OP_BYTES.into());
        for node in &mut nodes {
            // Rail 1 is where production leads back to its own host.
            assert_eq!(node.take_rail(), Some(1));
        }
        let (mut cables, mut imports) = (Vec::new(), Vec::new());
        for peer in 1..=peers {
            let ends = [0, peer].map(|at| (at, nodes[at].take_rail().expect("a rail"), 0));
            cables.push(Cable::new(&ends, &nodes, Delays { control_ns: 1, card_ns: 1 }));
            let (target, far) = nodes[peer].region(SESSION, OP_BYTES.into());
            let lent = Ends { owner: peer, user: 0, cable: peer - 1 };
            let loan = Loan::new(lent, target, &far, &[SESSION], &mut nodes, &cables[peer - 1]);
            imports.push(loan.expect("a region that nobody revokes").imports[0].0);
        }
        let mut hub = Self {
            net,
            nodes,
            cables,
            random: Random::new(1),
            counts: Counts::default(),
            end: ClientEnd::new(Arc::clone(&heaps[0])),
            own: own.0,
            imports,
            turns: 0,
        };
        while !hub.joined() {
            hub.pass();
            hub.turn();
        }
        for peer in 0..peers {
            hub.push_to(peer);
            hub.finish(1);
        }
        hub
    }

    fn joined(&mut self) -> bool {
        let rails = self.nodes[0].rails_mut();
        let mut rails = self.cables.iter().flat_map(|cable| cable.rails_at(0)).map(|rail| {
            let state = rails.state(rail);
            state == RailState::Ready
        });
        rails.all(|ready| ready) && self.cables.iter().all(Cable::ready)
    }

    /// Makes one turn of the hub, and nothing else.
    #[inline(never)]
    pub fn turn(&mut self) {
        self.turns += 1;
        self.nodes[0].engine.turn(self.net.now_ns());
    }

    /// Lets time pass, 500 ns, for everybody else: wires, controls and peers.
    pub fn pass(&mut self) {
        self.net.advance(STEP_NS);
        let now_ns = self.net.now_ns();
        for at in 0..self.nodes.len() {
            if at > 0 {
                self.nodes[at].turn(&self.net);
            }
            while let Some(wish) = self.nodes[at].wish() {
                for cable in self.cables.iter_mut().filter(|cable| cable.has(at, wish.rail)) {
                    cable.wish(at, wish);
                }
            }
        }
        let Self { random, net, counts, .. } = self;
        let mut chance = Chance { random, net, counts, refusals: 0 };
        for cable in &mut self.cables {
            cable.step(now_ns, &mut self.nodes, &mut chance);
        }
    }

    /// Has the hub's client push WRITEs of 64 bytes to the peer that it works with, at most 32.
    pub fn push(&mut self, ops: u32) {
        (0..ops).for_each(|_| self.push_to(0));
    }

    fn push_to(&mut self, peer: usize) {
        let sqe = Sqe {
            opcode: Opcode::Write as u8,
            local_region: self.own,
            remote_region: self.imports[peer],
            bytes: OP_BYTES,
            ..Sqe::default()
        };
        self.end.push(sqe.to_words());
        if self.end.publish() {
            self.nodes[0].engine.wake(RingId(SESSION.0));
        }
    }

    /// Goes on until so many ops have ended.
    ///
    /// # Panics
    /// If one of them failed.
    pub fn finish(&mut self, ops: u32) {
        let mut ended = 0;
        while ended < ops {
            self.turn();
            self.pass();
            while let Some(words) = self.end.pop().expect("an engine's tail that can be") {
                let cqe = Cqe::from_words(words);
                assert_eq!(u32::try_from(cqe.res), Ok(OP_BYTES), "{cqe:?}");
                ended += 1;
            }
            self.end.release();
        }
    }

    /// What the hub's turns have asked for since the start.
    pub fn asked(&mut self) -> Asked {
        let counts = self.nodes[0].rails_mut().counts();
        Asked {
            turns: self.turns,
            polls: self.nodes[0].controls[0].polls(),
            doorbells: counts.doorbells,
            rails: counts.attended,
        }
    }
}

impl std::ops::Sub for Asked {
    type Output = Self;

    /// What was asked for since.
    fn sub(self, before: Self) -> Self {
        Self {
            turns: self.turns - before.turns,
            polls: self.polls - before.polls,
            doorbells: self.doorbells - before.doorbells,
            rails: self.rails - before.rails,
        }
    }
}
