//! Two engines, joined by a rail or two, and one client, which has imported a
//! region of the other engine's. Nothing is drawn.

use std::sync::Arc;

use super::cable::{Cable, Chance, Delays};
use super::counts::Counts;
use super::loans::{Ends, Loan};
use super::node::Node;
use super::options::Options;
use crate::fabric::qp::sim::Net;
use crate::ids::SessionId;
use crate::random::Random;
use crate::ring::{ClientEnd, Heap};
use crate::shm::Mapping;

const STEP_NS: u64 = 4_000;
/// The rails between the engines, as the first engine numbers them. Rail 1 is where production
/// leads back to its own host.
pub(super) const RAILS: [u16; 2] = [2, 3];

/// Both engines, and what the first one's client has.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) net: Net,
    pub(super) nodes: Vec<Node>,
    pub(super) cables: Vec<Cable>,
    pub(super) end: ClientEnd<Arc<Heap>>,
    /// Its region and its import.
    pub(super) own: u32,
    pub(super) import: u32,
    /// What is in its region, and in the one that is imported.
    pub(super) near: Arc<Mapping>,
    pub(super) far: Arc<Mapping>,
    random: Random,
    counts: Counts,
}

impl Joined {
    /// Each region has so many bytes. Cards, and which of them have a rail each, are the options'
    /// to say.
    pub(super) fn new(options: &Options, bytes: u64) -> Self {
        let net = Net::new();
        let mut nodes: Vec<_> = (0..2).map(|at| Node::new(at, options, &net)).collect();
        let session = SessionId(0);
        let heaps: Vec<_> = nodes.iter_mut().map(|node| node.open(session, options)).collect();
        let (own, near) = nodes[0].region(session, bytes);
        let (target, far) = nodes[1].region(session, bytes);
        let delays = Delays { control_ns: 50_000, card_ns: 100_000 };
        let mut ends = Vec::new();
        for node in &mut nodes {
            assert_eq!(node.take_rail(), Some(1));
        }
        for (rail, card) in RAILS.into_iter().zip(options.strands.iter().copied()) {
            for (at, node) in nodes.iter_mut().enumerate() {
                assert_eq!(node.take_rail(), Some(rail));
                ends.push((at, rail, card));
            }
        }
        let cables = vec![Cable::new(&ends, &nodes, delays)];
        let lent = Ends { owner: 1, user: 0, cable: 0 };
        let loan = Loan::new(lent, target, &far, &[session], &mut nodes, &cables[0]);
        let import = loan.expect("a region that nobody revokes").imports[0];
        let end = ClientEnd::new(Arc::clone(&heaps[0]));
        let (random, counts) = (Random::new(5), Counts::default());
        let (own, import) = (own.0, import.0);
        Self { net, nodes, cables, end, own, import, near, far, random, counts }
    }

    /// As a world's step.
    pub(super) fn step(&mut self) {
        self.net.advance(STEP_NS);
        for at in 0..self.nodes.len() {
            self.nodes[at].turn(&self.net);
            while let Some(wish) = self.nodes[at].wish() {
                self.cables[0].wish(at, wish);
            }
        }
        let Self { random, net, counts, .. } = self;
        let mut chance = Chance { random, net, counts, refusals: 0 };
        self.cables[0].step(net.now_ns(), &mut self.nodes, &mut chance);
    }
}
