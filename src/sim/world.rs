//! One world, from its seed to its end.

use std::sync::Arc;

use super::Report;
use super::cable::{Cable, Chance, Delays};
use super::check;
use super::client::{Client, Place, Target};
use super::counts::{Count, Counts};
use super::faults;
use super::ground::{BUFFERS, Ground, SLOT_BYTES};
use super::loans::{Ends, Loan, token_of};
use super::node::Node;
use super::options::Options;
use crate::engine::Event;
use crate::fabric::Fabric;
use crate::fabric::qp::sim::Net;
use crate::ids::{RegionId, SessionId};
use crate::random::Random;
use crate::shm::Mapping;

/// One step of so many is followed by a look at all that an engine holds.
const LOOKS_EVERY: u64 = 24;

/// A region that is written to: where it is.
#[derive(Debug)]
struct Land {
    node: usize,
    region: RegionId,
    memory: Arc<Mapping>,
    revoked: bool,
}

pub(super) struct World {
    options: Options,
    random: Random,
    net: Net,
    nodes: Vec<Node>,
    cables: Vec<Cable>,
    loans: Vec<Loan>,
    clients: Vec<Client>,
    grounds: Vec<Ground>,
    places: Vec<Land>,
    /// Ports that are down: until when, of which engine's card.
    downs: Vec<(u64, usize, usize)>,
    counts: Counts,
    trace: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let options = Options::draw(&mut random);
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
            downs: Vec::new(),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
        };
        world.counts.add(Count::Worlds);
        world.populate();
        world
    }

    fn delays(&self) -> Delays {
        Delays { control_ns: self.options.control_ns, card_ns: self.options.card_ns }
    }

    /// Makes clients and regions, and joins engines.
    fn populate(&mut self) {
        let rows = self.options.clients;
        for row in 0..rows {
            let engine = row % self.options.engines;
            let session = session_of(row);
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
            let place = Place { net, engine, row, own, memory, ground, heap, ceiling, ties };
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
                    let import = self.nodes[engine].import(session_of(client), place.region);
                    self.clients[client].targets.push(Target::new(import.0, at));
                }
            }
        }
    }

    /// Connects two engines, and lends each other's regions.
    fn join(&mut self, near: usize, far: usize) {
        let mut ends = Vec::new();
        for card in self.options.strands.clone() {
            for node in [near, far] {
                let Some(rail) = self.nodes[node].take_rail() else {
                    // Another time, when there are as many.
                    ends.iter().for_each(|&(node, rail, _): &(usize, u16, u8)| {
                        self.nodes[node].give_rail(rail);
                    });
                    return;
                };
                ends.push((node, rail, card));
            }
        }
        let delays = self.delays();
        let cable = self.cables.len();
        self.cables.push(Cable::new(&ends, &self.nodes, delays));
        for (owner, user) in [(near, far), (far, near)] {
            self.lend_all(owner, user, cable);
        }
    }

    fn lend_all(&mut self, owner: usize, user: usize, cable: usize) {
        let users: Vec<usize> =
            (0..self.clients.len()).filter(|at| self.clients[*at].engine == user).collect();
        let sessions: Vec<_> = users.iter().map(|at| session_of(*at)).collect();
        for ground in 0..self.places.len() {
            let place = &self.places[ground];
            if place.node != owner || place.revoked {
                continue;
            }
            let ends = Ends { owner, user, cable };
            let (region, memory) = (place.region, Arc::clone(&place.memory));
            let wire = &self.cables[cable];
            let nodes = &mut self.nodes;
            let Some(loan) = Loan::new(ends, region, &memory, &sessions, nodes, wire) else {
                continue;
            };
            for (client, import) in users.iter().zip(&loan.imports) {
                self.clients[*client].reach(import.0, ground);
            }
            self.loans.push(loan);
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
            let client = &mut self.clients[at];
            if self.random.below(8) == 0 && !client.broken {
                client.break_ring(&mut self.grounds);
                self.counts.add(Count::ClientHostile);
            } else {
                client.away_until_ns = now_ns + self.random.below(500_000);
                self.counts.add(Count::ClientSlow);
            }
        }
        if revoke {
            let at = self.random.index(self.clients.len());
            let client = &mut self.clients[at];
            if !client.broken && client.quiet.is_none() && client.revoke() {
                self.places[at].revoked = true;
                self.counts.add(Count::Revoked);
            }
        }
    }

    /// An engine's process is killed, and another one started in its place.
    fn die(&mut self, node: usize) {
        self.counts.add(Count::EngineDied);
        let now_ns = self.net.now_ns();
        self.count(node);
        for cable in self.cables.iter_mut().filter(|cable| cable.touches(node)) {
            for number in cable.numbers_at(node) {
                self.net.kill(number);
            }
            cable.bury(node, now_ns, &mut self.random);
        }
        for loan in &mut self.loans {
            loan.bury(node);
        }
        self.nodes[node] = Node::new(node, &self.options, &self.net);
        let rail = self.nodes[node].take_rail().expect("the first rail");
        let delays = self.delays();
        self.cables.push(Cable::new(&[(node, rail, 0)], &self.nodes, delays));
        let rows = 0..self.clients.len();
        let of_it: Vec<usize> = rows.filter(|at| self.clients[*at].engine == node).collect();
        for at in &of_it {
            let client = &mut self.clients[*at];
            client.outlive(&mut self.grounds, &mut self.counts, &mut self.trace);
            client.quiet = None;
            self.net.allow_all(self.grounds[*at].memory());
            self.grounds[*at].notices.forget(client.heard);
            let session = session_of(*at);
            let heap = self.nodes[node].open(session, &self.options);
            let own = self.nodes[node].add_region(session, &client.memory);
            let ground = self.nodes[node].add_region(session, &self.places[*at].memory);
            self.nodes[node].set_home(ground, &self.places[*at].memory, rail);
            client.attach(own.0, ground.0, heap);
            self.places[*at].region = ground;
            self.places[*at].revoked = false;
        }
        for client in &of_it {
            for ground in &of_it {
                let target = self.places[*ground].region;
                let import = self.nodes[node].import(session_of(*client), target);
                self.clients[*client].reach(import.0, *ground);
            }
        }
    }

    /// Gives up what is left of lost connections, and joins engines anew.
    fn mend(&mut self) {
        for at in 0..self.cables.len() {
            if !self.cables[at].lost || self.cables[at].ends.len() < 2 || self.cables[at].mended {
                continue;
            }
            let ends = [0, 1].map(|end: usize| self.cables[at].ends[end].node);
            for node in ends {
                if !self.cables[at].dead_at(node) {
                    continue;
                }
                let mut let_go = true;
                for loan in self.loans.iter_mut().filter(|loan| loan.cable == at) {
                    if loan.user == node {
                        loan.remove_imports(&mut self.nodes);
                        let_go &= loan.let_go();
                    }
                }
                if let_go {
                    self.cables[at].release(node);
                }
            }
            let over = self.cables[at].over()
                && self.loans.iter().all(|loan| loan.cable != at || loan.over());
            if over {
                self.cables[at].mended = true;
                for end in &self.cables[at].ends {
                    if !end.buried {
                        self.nodes[end.node].give_rail(end.rail);
                    }
                }
                self.loans.retain(|loan| loan.cable != at);
                self.counts.add(Count::Rejoined);
                self.join(ends[0], ends[1]);
            }
        }
    }

    pub(super) fn run(mut self) -> Report {
        for _ in 0..self.options.steps {
            self.plant(self.net.now_ns());
            faults::plant(
                &self.net,
                &mut self.cables,
                &self.options.rates,
                &mut self.random,
                &mut self.counts,
            );
            self.step(true);
        }
        self.net.calm();
        self.ports_up(u64::MAX);
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
        for client in &mut self.clients {
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
            self.nodes[at].turn(now_ns);
            self.counts.add(Count::Turns);
            while let Some(wish) = self.nodes[at].wish() {
                for cable in self.cables.iter_mut().filter(|cable| cable.has(at, wish.rail)) {
                    cable.wish(at, wish);
                }
            }
            self.hear(at, now_ns);
        }
        for client in &mut self.clients {
            client.witness(&self.grounds, &mut self.counts);
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
    /// which may wait for a rail that is being rebuilt.
    fn quiet(&mut self) -> bool {
        self.clients.iter().all(|client| client.open() == 0)
            && self.net.is_still()
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
    fn count(&mut self, at: usize) {
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

fn session_of(client: usize) -> SessionId {
    SessionId(u32::try_from(client).unwrap_or(u32::MAX))
}
