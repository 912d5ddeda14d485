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

impl Delays {
    /// How long an end that hears nothing waits: the other end finds out in half of that, and the
    /// card has then time for whatever it was asked for before.
    fn lease_ns(&self) -> u64 {
        2 * (self.control_ns + 8 * self.card_ns) + 100_000
    }
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
            Step::Still | Step::End | Step::Destroy => false,
            Step::Create => ends > 1,
            Step::Endpoint(_) | Step::Up(_) | Step::Quiet(_) | Step::Reset(_) | Step::Hush => true,
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
        Act::Card(..) | Act::Send(Say::Barren { .. }) => return None,
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
    /// The card that it is on.
    on: u8,
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

/// An engine at a connection that is lost.
#[derive(Debug, Default)]
struct Side {
    node: usize,
    /// When it hears that the connection is lost.
    lost_at_ns: Option<u64>,
    /// When it hears that nothing of its is delivered at the other side any more.
    silent_at_ns: Option<u64>,
    /// It has said that it delivers nothing more itself.
    bye_said: bool,
}

/// Two ends for each of its rails, one behind the other; or one that is joined to itself.
#[derive(Debug)]
pub(super) struct Cable {
    pub(super) ends: Vec<End>,
    /// Its engines: two, or one that is joined to itself.
    sides: Vec<Side>,
    pub(super) lost: bool,
    /// Nobody can say BYE: each end has its lease.
    cut: bool,
    /// Another one is in its place.
    pub(super) mended: bool,
    delays: Delays,
}

impl Cable {
    /// Joins rails; both are made and connected by what follows.
    pub(super) fn new(places: &[(usize, u16, u8)], nodes: &[Node], delays: Delays) -> Self {
        let ends = places.iter().map(|&(node, rail, on)| {
            let config = &nodes[node].rails;
            End {
                node,
                rail,
                on,
                joint: Joint::new(nodes[node].settings, config.caps(), config.receives),
                heard: VecDeque::new(),
                card: VecDeque::new(),
                breaks_at_ns: None,
                over: false,
                buried: false,
            }
        });
        let mut nodes: Vec<usize> = places.iter().map(|place| place.0).collect();
        nodes.dedup();
        nodes.truncate(2);
        let sides = nodes.into_iter().map(|node| Side { node, ..Side::default() }).collect();
        Self { ends: ends.collect(), sides, lost: false, cut: false, mended: false, delays }
    }

    /// The rails' numbers at one of its engines.
    pub(super) fn rails_at(&self, node: usize) -> impl Iterator<Item = u16> {
        self.ends.iter().filter(move |end| end.node == node).map(|end| end.rail)
    }

    /// The queue pair's number of an end.
    pub(super) fn number(&self, end: usize) -> Option<u32> {
        self.ends[end].joint.number()
    }

    /// Both ends are connected.
    pub(super) fn ready(&self) -> bool {
        !self.lost && self.ends.iter().all(|end| end.joint.ready())
    }

    /// It is between two engines, and there is no other in its place: it is connected, or will be.
    pub(super) fn awaited(&self) -> bool {
        self.sides.len() == 2 && !self.mended && !self.ready()
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

    /// The connection is lost. One side knows now; the other hears it from that one or, where the
    /// connection is cut, finds out by itself before the lease is over.
    pub(super) fn lose(&mut self, cut: bool, now_ns: u64, random: &mut Random) {
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        self.cut = cut;
        let later = if cut { self.delays.lease_ns() / 2 } else { self.delays.control_ns };
        let first = random.index(self.sides.len());
        for (at, side) in self.sides.iter_mut().enumerate() {
            side.lost_at_ns = Some(now_ns + if at == first { 0 } else { random.below(later) });
        }
    }

    /// An engine is dead, with its ends: the other one hears of it, and that its queue pairs are
    /// gone.
    pub(super) fn bury(&mut self, node: usize, now_ns: u64, random: &mut Random) {
        self.lose(false, now_ns, random);
        for end in self.ends.iter_mut().filter(|end| end.node == node) {
            end.over = true;
            end.buried = true;
        }
        let heard_ns = now_ns + random.below(self.delays.control_ns);
        for side in self.sides.iter_mut().filter(|side| side.node != node) {
            side.silent_at_ns = Some(side.silent_at_ns.unwrap_or(heard_ns).min(heard_ns));
        }
    }

    /// What becomes of the two sides of a lost connection.
    fn part(&mut self, now_ns: u64, random: &mut Random) {
        let due = |at_ns: Option<u64>| at_ns.is_some_and(|at_ns| at_ns <= now_ns);
        let lease_ns = self.delays.lease_ns();
        for at in 0..self.sides.len() {
            let side = &mut self.sides[at];
            let ends = || self.ends.iter().filter(|end| end.node == side.node && !end.over);
            let begins = due(side.lost_at_ns) && ends().any(|end| !end.joint.lost());
            if begins && self.cut {
                side.silent_at_ns.get_or_insert(now_ns + lease_ns);
            }
            let (node, silent) = (side.node, due(side.lost_at_ns) && due(side.silent_at_ns));
            for end in self.ends.iter_mut().filter(|end| end.node == node && !end.over) {
                if begins {
                    end.heard.clear();
                    end.joint.lose();
                }
                if silent {
                    end.joint.silent();
                }
            }
            let mut ends = self.ends.iter().filter(|end| end.node == node);
            let hushed = ends.all(|end| end.joint.hushed() && !end.buried);
            let side = &mut self.sides[at];
            if hushed && !self.cut && !std::mem::replace(&mut side.bye_said, true) {
                let heard_ns = now_ns + random.below(self.delays.control_ns);
                let other = self.sides.len() - 1 - at;
                let other = &mut self.sides[other];
                other.lost_at_ns = Some(other.lost_at_ns.unwrap_or(heard_ns).min(heard_ns));
                other.silent_at_ns = Some(other.silent_at_ns.unwrap_or(heard_ns).min(heard_ns));
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

    /// A queue pair, if it is one of these, will fail.
    pub(super) fn break_later(&mut self, number: u32, at_ns: u64) {
        for end in self.ends.iter_mut().filter(|end| end.joint.number() == Some(number)) {
            end.breaks_at_ns.get_or_insert(at_ns);
        }
    }

    /// A device failed: it says so of each of its queue pairs.
    pub(super) fn device_failed(&mut self, node: usize, card: usize) {
        let of = |end: &&mut End| end.node == node && usize::from(end.on) == card && !end.over;
        for end in self.ends.iter_mut().filter(of) {
            end.joint.broken("its device says so");
        }
    }

    /// Nobody uses an end's rail any more.
    pub(super) fn release(&mut self, node: usize) {
        for end in self.ends.iter_mut().filter(|end| end.node == node) {
            end.joint.release();
        }
    }

    /// True if an engine's rails are dead: what uses them is to be given up.
    pub(super) fn dead_at(&self, node: usize) -> bool {
        let mut ends = self.ends.iter().filter(|end| end.node == node);
        ends.all(|end| end.over || end.joint.dead())
    }

    /// Lets both ends do what is due.
    pub(super) fn step(&mut self, now_ns: u64, nodes: &mut [Node], chance: &mut Chance<'_>) {
        if self.mended {
            return;
        }
        if self.lost {
            self.part(now_ns, chance.random);
        }
        for at in 0..self.ends.len() {
            if self.ends[at].over {
                continue;
            }
            let end = &mut self.ends[at];
            if let Some(number) = end.joint.number().filter(|_| end.breaks(now_ns)) {
                end.breaks_at_ns = None;
                chance.net.break_pair(number);
                end.joint.broken("its device says so");
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
        let other = if self.ends.len() == 1 { at } else { at ^ 1 };
        if let Some(passage) = passage(&act) {
            chance.counts.add(passage);
        }
        match act {
            Act::Send(say) => {
                if !self.lost {
                    let other = &mut self.ends[other];
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
            Act::Fail(_) => self.lose(false, now_ns, chance.random),
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
                let control = &mut node.controls[usize::from(self.on)];
                Outcome::Endpoint(control.endpoint(*number, &settings, *credits).ok())
            }
            Job::Move { number, moves } => {
                let control = &mut node.controls[usize::from(self.on)];
                Outcome::Moved(moves.iter().all(|to| control.modify(*number, to).is_ok()))
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
        let control = &mut node.controls[usize::from(self.on)];
        let init = Move::Init(node.settings);
        let made = control.create(caps).ok();
        let made = made.filter(|made| control.modify(made.number, &init).is_ok());
        let Some(made) = made else {
            self.joint.created(None);
            return;
        };
        let wanted = self.joint.created(Some((made.number, made.caps)));
        let rails = node.rails_mut();
        if wanted && rails.adopt(self.rail, made.pair, made.caps, self.on).is_err() {
            self.joint.refused();
        }
    }

    fn destroy(&mut self, nodes: &mut [Node]) {
        let node = &mut nodes[self.node];
        let number = self.joint.number().expect("an adopted queue pair has a number");
        if let Some(pair) = node.rails_mut().release(self.rail) {
            assert_eq!(pair, number, "another queue pair came back");
        }
        let control = &mut node.controls[usize::from(self.on)];
        control.destroy(number, number).expect("a queue pair of ours");
        self.joint.destroyed();
    }
}
