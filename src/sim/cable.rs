//! A connection between two controls, and the rail that it keeps: production's own state machine
//! for a rail, over a wire that takes its time and a card that takes its time.

use std::collections::VecDeque;

use super::node::Node;
use crate::control::peers::joint::{Act, Job, Joint, Say, Step};
use crate::fabric::qp::Told;
use crate::fabric::qp::provider::{Caps, Endpoint, Move, ProviderControl};
use crate::random::Random;

/// How long things take, at most, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delays {
    pub(super) control_ns: u64,
    pub(super) card_ns: u64,
}

impl Delays {
    /// How long an end that hears nothing waits: the other end finds out in half of that, and the
    /// card has then time for whatever it was asked for before.
    fn lease_ns(&self) -> u64 {
        2 * (self.control_ns + 8 * self.card_ns) + 100_000
    }
}

/// What card work came to.
#[derive(Clone, Debug)]
enum Outcome {
    Endpoint(Option<Endpoint>),
    Moved(bool),
}

/// One end: a rail of an engine.
#[derive(Debug)]
pub(super) struct End {
    /// The engine.
    pub(super) node: usize,
    /// Its number for the rail.
    pub(super) rail: u16,
    joint: Joint,
    /// What the other end said, and when it arrives.
    heard: VecDeque<(u64, Say)>,
    /// Card work under way, and when it is done: one after the other.
    card: VecDeque<(u64, Step, Job)>,
    /// When it hears that the connection is lost, and when that nothing of its is delivered at the
    /// other end any more.
    lost_at_ns: Option<u64>,
    silent_at_ns: Option<u64>,
    /// It has said that it delivers nothing more.
    bye_said: bool,
    /// Nothing of it is left.
    over: bool,
    /// Its engine died: another one may be in its place.
    pub(super) buried: bool,
}

/// Two ends, or one that is joined to itself.
#[derive(Debug)]
pub(super) struct Cable {
    pub(super) ends: Vec<End>,
    pub(super) lost: bool,
    /// Nobody can say BYE: each end has its lease.
    cut: bool,
    /// Another one is in its place.
    pub(super) mended: bool,
    delays: Delays,
}

impl Cable {
    /// Joins rails; both are made and connected by what follows.
    pub(super) fn new(places: &[(usize, u16)], nodes: &[Node], delays: Delays) -> Self {
        let ends = places.iter().map(|&(node, rail)| {
            let config = &nodes[node].rails;
            End {
                node,
                rail,
                joint: Joint::new(nodes[node].settings, config.caps(), config.receives),
                heard: VecDeque::new(),
                card: VecDeque::new(),
                lost_at_ns: None,
                silent_at_ns: None,
                bye_said: false,
                over: false,
                buried: false,
            }
        });
        Self { ends: ends.collect(), lost: false, cut: false, mended: false, delays }
    }

    /// The rail's number at one of its engines.
    pub(super) fn rail_at(&self, node: usize) -> Option<u16> {
        self.ends.iter().find(|end| end.node == node).map(|end| end.rail)
    }

    /// The queue pair's number of an end.
    pub(super) fn number(&self, end: usize) -> Option<u32> {
        self.ends[end].joint.number()
    }

    /// Both ends are connected.
    pub(super) fn ready(&self) -> bool {
        !self.lost && self.ends.iter().all(|end| end.joint.ready())
    }

    /// Nothing is left of it.
    pub(super) fn over(&self) -> bool {
        self.ends.iter().all(|end| end.over)
    }

    /// A rail wishes something.
    pub(super) fn wish(&mut self, node: usize, wish: crate::fabric::qp::Wish) {
        let end = self.ends.iter_mut().find(|end| end.is(node, wish.rail));
        if let Some(end) = end {
            end.joint.wish(wish.epoch, wish.ask);
        }
    }

    /// True if a rail of an engine is this one's.
    pub(super) fn has(&self, node: usize, rail: u16) -> bool {
        self.ends.iter().any(|end| end.is(node, rail))
    }

    /// The connection is lost. One end knows now; the other hears it from that one or, where the
    /// connection is cut, finds out by itself before the lease is over.
    pub(super) fn lose(&mut self, cut: bool, now_ns: u64, random: &mut Random) {
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        self.cut = cut;
        let lease_ns = self.delays.lease_ns();
        let first = random.index(self.ends.len());
        for (at, end) in self.ends.iter_mut().enumerate() {
            let later = if cut { lease_ns / 2 } else { self.delays.control_ns };
            end.lost_at_ns = Some(now_ns + if at == first { 0 } else { random.below(later) });
        }
    }

    /// An engine is dead, with its end: the other one hears of it, and that its queue pair is gone.
    pub(super) fn bury(&mut self, node: usize, now_ns: u64, random: &mut Random) {
        self.lose(false, now_ns, random);
        let heard_ns = now_ns + random.below(self.delays.control_ns);
        for end in &mut self.ends {
            if end.node == node {
                end.over = true;
                end.buried = true;
            } else {
                let known_ns = end.silent_at_ns.unwrap_or(heard_ns);
                end.silent_at_ns = Some(heard_ns.min(known_ns));
            }
        }
    }

    /// What becomes of the ends of a lost connection.
    fn part(&mut self, now_ns: u64, random: &mut Random) {
        let due = |at_ns: Option<u64>| at_ns.is_some_and(|at_ns| at_ns <= now_ns);
        let (count, lease_ns) = (self.ends.len(), self.delays.lease_ns());
        for at in 0..count {
            let end = &mut self.ends[at];
            if end.over {
                continue;
            }
            if due(end.lost_at_ns) && !end.joint.lost() {
                end.heard.clear();
                end.joint.lose();
                if self.cut {
                    end.silent_at_ns.get_or_insert(now_ns + lease_ns);
                }
            }
            if due(end.silent_at_ns) && end.joint.lost() {
                end.joint.silent();
            }
            if end.joint.hushed() && !self.cut && !std::mem::replace(&mut end.bye_said, true) {
                let heard_ns = now_ns + random.below(self.delays.control_ns);
                let other = &mut self.ends[(at + 1) % count];
                let lost_at_ns = other.lost_at_ns.unwrap_or(heard_ns);
                other.lost_at_ns = Some(heard_ns.min(lost_at_ns));
                let silent_at_ns = other.silent_at_ns.unwrap_or(heard_ns);
                other.silent_at_ns = Some(heard_ns.min(silent_at_ns));
            }
        }
    }

    pub(super) fn touches(&self, node: usize) -> bool {
        self.ends.iter().any(|end| end.node == node && !end.buried)
    }

    /// The queue pairs that an engine has of it.
    pub(super) fn numbers_at(&self, node: usize) -> Vec<u32> {
        let ends = self.ends.iter().filter(|end| end.node == node && !end.buried);
        ends.filter_map(|end| end.joint.number()).collect()
    }

    /// Nobody uses an end's rail any more.
    pub(super) fn release(&mut self, node: usize) {
        for end in self.ends.iter_mut().filter(|end| end.node == node) {
            end.joint.release();
        }
    }

    /// True if an end's rail is dead: what uses it is to be given up.
    pub(super) fn dead_at(&self, node: usize) -> bool {
        self.ends.iter().any(|end| end.node == node && (end.over || end.joint.dead()))
    }

    /// Lets both ends do what is due.
    pub(super) fn step(&mut self, now_ns: u64, nodes: &mut [Node], random: &mut Random) {
        if self.lost {
            self.part(now_ns, random);
        }
        for at in 0..self.ends.len() {
            if self.ends[at].over {
                continue;
            }
            while self.ends[at].heard.front().is_some_and(|(due, _)| *due <= now_ns) {
                let Some((_, say)) = self.ends[at].heard.pop_front() else { break };
                let heard = self.ends[at].joint.heard(&say);
                assert_eq!(heard, Ok(()), "a control broke the rules");
            }
            while self.ends[at].card.front().is_some_and(|(due, ..)| *due <= now_ns) {
                let Some((_, step, job)) = self.ends[at].card.pop_front() else { break };
                self.ends[at].carry_out(step, &job, &mut nodes[..]);
            }
            while let Some(act) = self.ends[at].joint.act() {
                self.act(at, act, now_ns, nodes, random);
            }
        }
    }

    fn act(&mut self, at: usize, act: Act, now_ns: u64, nodes: &mut [Node], random: &mut Random) {
        let count = self.ends.len();
        match act {
            Act::Send(say) => {
                if !self.lost {
                    let other = &mut self.ends[(at + 1) % count];
                    let last = other.heard.back().map_or(0, |(due, _)| *due);
                    let due = now_ns + random.below(self.delays.control_ns);
                    other.heard.push_back((due.max(last), say));
                }
            }
            Act::Card(step, job) => {
                let end = &mut self.ends[at];
                let last = end.card.back().map_or(0, |(due, ..)| *due);
                let due = now_ns + random.below(self.delays.card_ns);
                end.card.push_back((due.max(last), step, job));
            }
            Act::Tell(epoch, news) => {
                let end = &self.ends[at];
                nodes[end.node].rails_mut().tell(Told { rail: end.rail, epoch, news });
            }
            Act::Release => self.ends[at].destroy(nodes),
            Act::Fail(_) => self.lose(false, now_ns, random),
            Act::Over => self.ends[at].over = true,
        }
    }
}

impl End {
    fn is(&self, node: usize, rail: u16) -> bool {
        !self.over && self.node == node && self.rail == rail
    }

    fn carry_out(&mut self, step: Step, job: &Job, nodes: &mut [Node]) {
        let node = &mut nodes[self.node];
        let settings = node.settings;
        let outcome = match job {
            Job::Create { caps } => {
                self.create(*caps, node);
                return;
            }
            Job::Endpoint { number, credits } => {
                Outcome::Endpoint(node.control.endpoint(*number, &settings, *credits).ok())
            }
            Job::Move { number, moves } => {
                Outcome::Moved(moves.iter().all(|to| node.control.modify(*number, to).is_ok()))
            }
        };
        match (step, outcome) {
            (Step::Endpoint(life), Outcome::Endpoint(endpoint)) => {
                self.joint.endpoint(life, endpoint);
            }
            (step, Outcome::Moved(well)) => self.joint.moved(step, well),
            (step, outcome) => panic!("{step:?} came to {outcome:?}"),
        }
    }

    fn create(&mut self, caps: Caps, node: &mut Node) {
        let made =
            node.control.create(caps).ok().filter(|made| {
                node.control.modify(made.number, &Move::Init(node.settings)).is_ok()
            });
        let Some(made) = made else {
            self.joint.created(None);
            return;
        };
        self.joint.created(Some((made.number, made.caps)));
        if node.rails_mut().adopt(self.rail, made.pair, made.caps, 0).is_err() {
            self.joint.refused();
        }
    }

    fn destroy(&mut self, nodes: &mut [Node]) {
        let node = &mut nodes[self.node];
        let number = self.joint.number().expect("an adopted queue pair has a number");
        if let Some(pair) = node.rails_mut().release(self.rail) {
            assert_eq!(pair, number, "another queue pair came back");
        }
        node.control.destroy(number, number).expect("a queue pair of ours");
        self.joint.destroyed();
    }
}
