//! A connection between two controls, and the rail that it keeps: production's own state machine
//! for a rail, over a wire that takes its time and a card that takes its time.

use std::collections::VecDeque;

use super::check::hold;
use super::counts::{Count, Counts};
use super::node::Node;
use crate::control::peers::joint::{Act, Job, Joint, Say, Step};
use crate::fabric::qp::provider::{Caps, Endpoint, Move, ProviderControl};
use crate::fabric::qp::sim::Net;
use crate::fabric::qp::{News, Told};
use crate::random::Random;

/// How long things take, at most, ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delays {
    pub(super) control_ns: u64,
    pub(super) card_ns: u64,
}

/// What a step of a cable draws from, acts on and counts in.
#[derive(Debug)]
pub(super) struct Chance<'a> {
    pub(super) random: &'a mut Random,
    pub(super) net: &'a Net,
    pub(super) counts: &'a mut Counts,
    /// How often a card does not do what it is asked, per mille.
    pub(super) refusals: u64,
}

impl Chance<'_> {
    /// Draws whether a card does not do what it is asked. What is reset for good is: no rail could
    /// ever be given up otherwise. A rail to oneself is made once.
    fn refuses(&mut self, step: Step, ends: usize) -> bool {
        let may = match step {
            Step::End | Step::Destroy => false,
            Step::Create => ends > 1,
            Step::Endpoint(_) | Step::Up(_) | Step::Quiet(_) | Step::Reset(_) => true,
        };
        let refuses = may && self.refusals > 0 && self.random.below(1_000) < self.refusals;
        self.counts.many(Count::CardRefused, u64::from(refuses));
        refuses
    }
}

/// What an act of a joint is counted as.
fn passage(act: &Act) -> Option<Count> {
    Some(match act {
        Act::Send(Say::Ready { .. }) => Count::JointReady,
        Act::Send(Say::Up { .. }) => Count::JointUp,
        Act::Send(Say::Quiet { .. }) => Count::JointQuiet,
        Act::Tell(_, News::Connected { .. }) => Count::JointConnected,
        Act::Tell(_, News::Broken) => Count::JointBroken,
        Act::Tell(_, News::Quiet) => Count::JointBothQuiet,
        Act::Tell(_, News::Reset) => Count::JointReset,
        Act::Tell(_, News::Gone) => Count::JointGone,
        Act::Release => Count::JointReleased,
        Act::Fail(_) => Count::JointFailed,
        Act::Over => Count::JointOver,
        Act::Card(..) => return None,
    })
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
    /// When its queue pair will fail, and the device says so.
    breaks_at_ns: Option<u64>,
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
                breaks_at_ns: None,
                over: false,
                buried: false,
            }
        });
        Self { ends: ends.collect(), lost: false, mended: false, delays }
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

    /// The connection is gone: each end comes to its end by itself.
    ///
    /// Production has no lease yet that holds an end back until the other one must be quiet: so
    /// nothing lands late here, which would show that.
    pub(super) fn lose(&mut self, net: &Net) {
        self.lost = true;
        for number in self.ends.iter().filter_map(|end| end.joint.number()) {
            net.forget_late(number);
        }
        for end in &mut self.ends {
            end.heard.clear();
            end.joint.lose();
        }
    }

    /// An engine is dead, with its end.
    pub(super) fn bury(&mut self, node: usize, net: &Net) {
        self.lose(net);
        for end in self.ends.iter_mut().filter(|end| end.node == node) {
            end.over = true;
            end.buried = true;
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

    /// A queue pair, if it is one of these, will fail.
    pub(super) fn break_later(&mut self, number: u32, at_ns: u64) {
        for end in self.ends.iter_mut().filter(|end| end.joint.number() == Some(number)) {
            end.breaks_at_ns.get_or_insert(at_ns);
        }
    }

    /// A device failed: it says so of each of its queue pairs.
    pub(super) fn device_failed(&mut self, node: usize) {
        for end in self.ends.iter_mut().filter(|end| end.node == node && !end.over) {
            end.joint.broken();
        }
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
    pub(super) fn step(&mut self, now_ns: u64, nodes: &mut [Node], chance: &mut Chance<'_>) {
        for at in 0..self.ends.len() {
            if self.ends[at].over {
                continue;
            }
            let end = &mut self.ends[at];
            if let Some(number) = end.joint.number().filter(|_| end.breaks(now_ns)) {
                end.breaks_at_ns = None;
                chance.net.break_pair(number);
                end.joint.broken();
            }
            while self.ends[at].heard.front().is_some_and(|(due, _)| *due <= now_ns) {
                let Some((_, say)) = self.ends[at].heard.pop_front() else { break };
                let heard = self.ends[at].joint.heard(&say);
                hold!(Control, heard.is_ok(), "{heard:?}");
            }
            while self.ends[at].card.front().is_some_and(|(due, ..)| *due <= now_ns) {
                let Some((_, step, job)) = self.ends[at].card.pop_front() else { break };
                let refuses = chance.refuses(step, self.ends.len());
                self.ends[at].carry_out(step, &job, &mut nodes[..], refuses);
            }
            while let Some(act) = self.ends[at].joint.act() {
                self.act(at, act, now_ns, nodes, chance);
            }
        }
    }

    fn act(
        &mut self,
        at: usize,
        act: Act,
        now_ns: u64,
        nodes: &mut [Node],
        chance: &mut Chance<'_>,
    ) {
        let count = self.ends.len();
        if let Some(passage) = passage(&act) {
            chance.counts.add(passage);
        }
        match act {
            Act::Send(say) => {
                if !self.lost {
                    let other = &mut self.ends[(at + 1) % count];
                    let last = other.heard.back().map_or(0, |(due, _)| *due);
                    let due = now_ns + chance.random.below(self.delays.control_ns);
                    other.heard.push_back((due.max(last), say));
                }
            }
            Act::Card(step, job) => {
                let end = &mut self.ends[at];
                let last = end.card.back().map_or(0, |(due, ..)| *due);
                let due = now_ns + chance.random.below(self.delays.card_ns);
                end.card.push_back((due.max(last), step, job));
            }
            Act::Tell(epoch, news) => {
                let end = &self.ends[at];
                nodes[end.node].rails_mut().tell(Told { rail: end.rail, epoch, news });
            }
            Act::Release => self.ends[at].destroy(nodes),
            Act::Fail(_) => self.lose(chance.net),
            Act::Over => self.ends[at].over = true,
        }
    }
}

impl End {
    fn is(&self, node: usize, rail: u16) -> bool {
        !self.over && self.node == node && self.rail == rail
    }

    fn breaks(&self, now_ns: u64) -> bool {
        self.breaks_at_ns.is_some_and(|at_ns| at_ns <= now_ns)
    }

    fn carry_out(&mut self, step: Step, job: &Job, nodes: &mut [Node], refuses: bool) {
        let node = &mut nodes[self.node];
        let settings = node.settings;
        let outcome = match job {
            Job::Create { .. } if refuses => {
                self.joint.created(None);
                return;
            }
            Job::Endpoint { .. } if refuses => Outcome::Endpoint(None),
            Job::Move { .. } if refuses => Outcome::Moved(false),
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
        let wanted = self.joint.created(Some((made.number, made.caps)));
        if wanted && node.rails_mut().adopt(self.rail, made.pair, made.caps).is_err() {
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
