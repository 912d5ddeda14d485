//! One world, from its seed to its end.

use std::sync::Arc;

use super::Report;
use super::cable::{Cable, Chance, Delays};
use super::check;
use super::client::{Client, Place, Target};
use super::counts::{Count, Counts};
use super::faults;
use super::ground::{BUFFERS, Ground, SLOT_BYTES};
use super::loans::{Loan, token_of};
use super::node::Node;
use super::options::Options;
use crate::engine::Event;
use crate::fabric::Fabric;
use crate::fabric::qp::sim::Net;
use crate::ids::RegionId;
use crate::random::Random;
use crate::shm::Mapping;

/// One step of so many is followed by a look at all that an engine holds.
const LOOKS_EVERY: u64 = 24;

/// A region that is written to: where it is.
#[derive(Debug)]
pub(super) struct Land {
    pub(super) node: usize,
    pub(super) region: RegionId,
    pub(super) memory: Arc<Mapping>,
    pub(super) revoked: bool,
}

pub(super) struct World {
    pub(super) options: Options,
    pub(super) random: Random,
    pub(super) net: Net,
    pub(super) nodes: Vec<Node>,
    pub(super) cables: Vec<Cable>,
    pub(super) loans: Vec<Loan>,
    pub(super) clients: Vec<Client>,
    pub(super) grounds: Vec<Ground>,
    pub(super) places: Vec<Land>,
    /// Engines that died and are not back: until when.
    pub(super) away: Vec<(u64, usize)>,
    /// Ports that are down: until when, of which engine's card.
    downs: Vec<(u64, usize, usize)>,
    pub(super) counts: Counts,
    pub(super) trace: u64,
}

impl World {
    /// The world of a seed; with so many engines, or with as many as the seed draws.
    pub(super) fn new(seed: u64, engines: Option<u16>) -> Self {
        let mut random = Random::new(seed);
        let options = match engines {
            Some(engines) => Options::crowd(&mut random, engines),
            None => Options::draw(&mut random),
        };
        let net = Net::new();
        net.land_late(options.late);
        let nodes = (0..options.engines).map(|at| Node::new(at, &options, &net)).collect();
        let mut world = Self {
            options,
            random,
            net,
            nodes,
            cables: Vec::new(),
            loans: Vec::new(),
            clients: Vec::new(),
            grounds: Vec::new(),
            places: Vec::new(),
            away: Vec::new(),
            downs: Vec::new(),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
        };
        world.counts.add(Count::Worlds);
        world.populate();
        world
    }

    pub(super) fn delays(&self) -> Delays {
        Delays { control_ns: self.options.control_ns, card_ns: self.options.card_ns }
    }

    /// Makes clients and regions, and joins engines.
    fn populate(&mut self) {
        let rows = self.options.clients;
        for row in 0..rows {
            let engine = row % self.options.engines;
            let session = self.options.session_of(row);
            let node = &mut self.nodes[engine];
            let heap = node.open(session, &self.options);
            let (own, memory) = node.region(session, BUFFERS as u64 * SLOT_BYTES);
            let (ground, target) = node.region(session, Ground::bytes(rows));
            self.grounds.push(Ground::new(Arc::clone(&target), rows));
            self.places.push(Land { node: engine, region: ground, memory: target, revoked: false });
            let net = self.net.clone();
            let ceiling = self.options.contract.ceiling;
            let (own, ground) = (own.0, ground.0);
            let ties = self.options.ties;
            let place =
                Place { net, engine, row, session, own, memory, ground, heap, ceiling, ties };
            self.clients.push(Client::new(place));
        }
        for node in 0..self.options.engines {
            let rail = self.nodes[node].take_rail().expect("the first rail");
            let delays = self.delays();
            self.cables.push(Cable::new(&[(node, rail, 0)], &self.nodes, delays));
            for place in self.places.iter().filter(|place| place.node == node) {
                self.nodes[node].set_home(place.region, &place.memory, rail);
            }
        }
        for far in 0..self.options.engines {
            (0..far).for_each(|near| self.join(near, far));
        }
        for client in 0..self.clients.len() {
            let engine = self.clients[client].engine;
            for (at, place) in self.places.iter().enumerate() {
                if place.node == engine {
                    let session = self.clients[client].session;
                    let import = self.nodes[engine].import(session, place.region);
                    self.clients[client].targets.push(Target::new(import.0, at));
                }
            }
        }
    }

    /// Faults of engines, connections and clients.
    fn plant(&mut self, now_ns: u64) {
        let rates = self.options.rates;
        let mut struck = |rate| self.random.below(1_000) < rate;
        let [death, loss, client, revoke] =
            [rates.deaths, rates.control, rates.clients, rates.revokes].map(&mut struck);
        let [device, port] = [rates.devices, rates.ports].map(struck);
        if device {
            let node = self.random.index(self.nodes.len());
            let card = self.random.index(self.options.cards.len());
            self.nodes[node].controls[card].fail(now_ns + self.random.below(300_000));
            self.cables.iter_mut().for_each(|cable| cable.device_failed(node, card));
            self.counts.add(Count::DeviceFailed);
        }
        if port {
            let node = self.random.index(self.nodes.len());
            let card = self.random.index(self.options.cards.len());
            self.nodes[node].controls[card].set_port(false);
            let until_ns = now_ns + self.random.below(self.options.step_ns * 200);
            self.downs.push((until_ns, node, card));
            self.counts.add(Count::PortDown);
        }
        if death {
            let node = self.random.index(self.nodes.len());
            self.die(node);
        }
        if loss {
            let at = self.random.index(self.cables.len());
            if self.cables[at].ends.len() == 2 && !self.cables[at].lost {
                let cut = self.random.below(3) == 0;
                self.cables[at].lose(cut, now_ns, &mut self.random);
                self.counts.add(if cut { Count::ControlCut } else { Count::ControlLost });
            }
        }
        if client {
            let at = self.random.index(self.clients.len());
            let there = !self.is_away(self.clients[at].engine);
            let client = &mut self.clients[at];
            if self.random.below(8) == 0 && !client.broken && there {
                client.break_ring(&mut self.grounds);
                self.counts.add(Count::ClientHostile);
            } else {
                client.away_until_ns = now_ns + self.random.below(500_000);
                self.counts.add(Count::ClientSlow);
            }
        }
        if revoke {
            let at = self.random.index(self.clients.len());
            let there = !self.is_away(self.clients[at].engine);
            let client = &mut self.clients[at];
            if there && !client.broken && client.quiet.is_none() && client.revoke() {
                self.places[at].revoked = true;
                self.counts.add(Count::Revoked);
            }
        }
    }

    pub(super) fn run(mut self) -> Report {
        for _ in 0..self.options.steps {
            self.plant(self.net.now_ns());
            for _ in 0..self.options.faults() {
                faults::plant(
                    &self.net,
                    &mut self.cables,
                    &self.options.rates,
                    &mut self.random,
                    &mut self.counts,
                );
            }
            self.step(true);
        }
        self.net.calm();
        self.ports_up(u64::MAX);
        self.come_back(u64::MAX);
        for client in &mut self.clients {
            client.away_until_ns = 0;
        }
        let mut steps = 0;
        while !self.quiet() {
            self.step(false);
            steps += 1;
            check::ends::wait(steps, || self.what_hangs());
        }
        self.judge();
        Report { counts: self.counts, trace: self.trace }
    }

    /// Takes ports up whose time has come.
    fn ports_up(&mut self, now_ns: u64) {
        let (over, down): (Vec<_>, Vec<_>) =
            self.downs.iter().partition(|(until_ns, ..)| *until_ns <= now_ns);
        for (_, node, card) in over {
            if !down.iter().any(|other| (other.1, other.2) == (node, card)) {
                self.nodes[node].controls[card].set_port(true);
            }
        }
        self.downs = down;
    }

    fn step(&mut self, work: bool) {
        self.net.advance(1 + self.random.below(2 * self.options.step_ns));
        check::untouched::by_cards(&self.net);
        let now_ns = self.net.now_ns();
        self.ports_up(now_ns);
        self.come_back(now_ns);
        for client in &mut self.clients {
            if self.away.iter().any(|(_, node)| *node == client.engine) {
                continue;
            }
            let away = client.broken || client.away_until_ns > now_ns;
            if std::mem::take(&mut client.bell) {
                self.nodes[client.engine].engine.wake(client.ring());
            }
            if away {
                continue;
            }
            if work && self.random.below(3) == 0 {
                client.work(&mut self.random, &mut self.grounds, &mut self.counts);
            }
            if !work || self.random.below(2) == 0 {
                client.hear(&mut self.grounds, &mut self.counts, &mut self.trace);
            }
            client.listen();
            if std::mem::take(&mut client.bell) {
                self.nodes[client.engine].engine.wake(client.ring());
            }
        }
        self.mend();
        for at in 0..self.nodes.len() {
            if self.is_away(at) {
                continue;
            }
            self.nodes[at].turn(&self.net);
            self.counts.add(Count::Turns);
            while let Some(wish) = self.nodes[at].wish() {
                for cable in self.cables.iter_mut().filter(|cable| cable.has(at, wish.rail)) {
                    cable.wish(at, wish);
                }
            }
            self.hear(at, self.net.now_ns());
        }
        let now_ns = self.net.now_ns();
        for client in &mut self.clients {
            if !self.away.iter().any(|(_, node)| *node == client.engine) {
                client.witness(&self.grounds, &mut self.counts);
            }
        }
        let refusals = if work { self.options.rates.cards } else { 0 };
        let Self { random, net, counts, .. } = self;
        let mut chance = Chance { random, net, counts, refusals };
        for cable in &mut self.cables {
            cable.step(now_ns, &mut self.nodes, &mut chance);
        }
        for loan in &mut self.loans {
            loan.step(now_ns, &mut self.nodes, &self.cables[loan.cable]);
        }
        check::depth::of(&self.net);
        if self.random.below(LOOKS_EVERY) == 0 {
            let at = self.random.index(self.nodes.len());
            self.look(at);
        }
    }

    /// Looks at all that an engine holds, and at what its card does.
    fn look(&mut self, at: usize) {
        check::credits::of(&mut self.nodes[at]);
        check::counts::of(&mut self.nodes[at]);
        check::fates::of(&self.nodes[at]);
        for cable in self.cables.iter().filter(|cable| cable.touches(at)) {
            check::entries::of(cable, &mut self.nodes, &self.net);
        }
    }

    /// Hears what an engine had to say to its control.
    fn hear(&mut self, at: usize, now_ns: u64) {
        while let Some(reply) = self.nodes[at].replies.pop_front() {
            let token = token_of(&reply);
            for loan in self.loans.iter_mut().filter(|loan| loan.user == at) {
                let delay = self.random.below(self.options.control_ns);
                loan.answered(token, now_ns, delay, &mut self.nodes);
            }
        }
        while let Some(event) = self.nodes[at].events.pop_front() {
            let Event::Revoked { region } = event else { continue };
            for loan in &mut self.loans {
                if loan.owner == at && loan.region == region {
                    let delay = self.random.below(self.options.control_ns);
                    loan.withdraw(now_ns + delay);
                }
            }
        }
    }

    /// Nothing is under way anywhere, but for ARMs: no op of a client that broke its ring either,
    /// which may wait for a rail that is being rebuilt. And all engines are joined.
    fn quiet(&mut self) -> bool {
        self.clients.iter().all(|client| client.open() == 0)
            && self.net.is_still()
            && !self.cables.iter().any(Cable::awaited)
            && self.nodes.iter_mut().map(Node::rails_mut).all(|rails| {
                // A rail that waits to be probed is not at its end yet.
                rails.at_rest() && !rails.restless()
            })
    }

    fn what_hangs(&self) -> String {
        let open: Vec<_> = self.clients.iter().map(Client::open).collect();
        let ready: Vec<_> = self.cables.iter().map(Cable::ready).collect();
        format!("open ops {open:?}, cables ready {ready:?}, {:?}", self.options)
    }

    /// What must hold at the end.
    fn judge(&mut self) {
        // What was told last is still to be heard.
        let mut steps = 0;
        // A rail may be connected again, and probed, in that while.
        while steps < 200 || !self.quiet() {
            self.step(false);
            steps += 1;
            check::ends::wait(steps, || self.what_hangs());
        }
        for client in &self.clients {
            client.unmoved(&self.grounds);
        }
        for (ground, client) in self.grounds.iter().zip(&self.clients) {
            check::effects::adds(ground);
            if !client.broken {
                check::effects::notices(ground, client.heard);
            }
        }
        for cable in &self.cables {
            check::credits::between(cable, &mut self.nodes, &self.net);
        }
        for at in 0..self.nodes.len() {
            self.look(at);
            let arms = self.clients.iter().filter(|client| client.engine == at && client.armed());
            let arms = arms.count() as u64;
            check::rest::of(&mut self.nodes[at], arms);
            self.count(at);
        }
        self.counts.many(Count::LandedLate, self.net.landed_late());
        self.counts.many(Count::LandedGivenUp, self.net.landed_held());
    }

    /// Counts what an engine's rails went through.
    pub(super) fn count(&mut self, at: usize) {
        let counts = self.nodes[at].rails_mut().counts();
        check::passages::count(&counts.passages, &mut self.counts);
        for (count, by) in [
            (Count::Works, counts.works),
            (Count::Doorbells, counts.doorbells),
            (Count::Degraded, counts.degraded),
            (Count::Repeats, counts.repeats),
            (Count::Returned, counts.returned),
            (Count::Probes, counts.probes),
            (Count::ProbesFailed, counts.probes_failed),
            (Count::CardErrors, counts.card_errors),
            (Count::Pauses, counts.pauses),
            (Count::Partial, counts.partial),
            (Count::Doubts, counts.doubts),
            (Count::StaleCompletions, counts.stale),
            (Count::Markers, counts.markers),
            (Count::CreditMessages, counts.credit_messages),
            (Count::StaleNews, counts.stale_news),
            (Count::EntryTentative, counts.entered),
            (Count::EntryPosted, counts.works),
            (Count::EntryTakenBack, counts.taken_back),
            (Count::EntryDoubtful, counts.doubtful),
            (Count::EntryCompleted, counts.completed),
            (Count::EntryReleased, counts.released),
            (Count::EntryFailed, counts.failed),
            (Count::EntryDrained, counts.drained),
            (Count::EntryOrphaned, counts.orphaned),
        ] {
            self.counts.many(count, by);
        }
    }
}
