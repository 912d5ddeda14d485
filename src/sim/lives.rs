//! Engines are joined, die, and come back.

use std::sync::Arc;

use super::cable::Cable;
use super::counts::Count;
use super::loans::{Ends, Loan};
use super::node::Node;
use super::world::World;

impl World {
    /// Connects two engines, and lends each other's regions.
    pub(super) fn join(&mut self, near: usize, far: usize) {
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
        let sessions: Vec<_> = users.iter().map(|at| self.clients[*at].session).collect();
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

    /// An engine's process is killed; another one will be started in its place.
    pub(super) fn die(&mut self, node: usize) {
        if self.is_away(node) {
            return;
        }
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
        for at in self.clients_of(node) {
            let client = &mut self.clients[at];
            client.outlive(&mut self.grounds, &mut self.counts, &mut self.trace);
            client.quiet = None;
            self.net.allow_all(self.grounds[at].memory());
            self.grounds[at].notices.forget(client.heard);
        }
        let longest_ns = self.options.step_ns * self.options.away_steps;
        self.away.push((now_ns + self.random.below(longest_ns), node));
    }

    fn clients_of(&self, node: usize) -> Vec<usize> {
        (0..self.clients.len()).filter(|at| self.clients[*at].engine == node).collect()
    }

    /// It died, and is not back.
    pub(super) fn is_away(&self, node: usize) -> bool {
        self.away.iter().any(|(_, away)| *away == node)
    }

    /// Starts engines anew whose time has come.
    pub(super) fn come_back(&mut self, now_ns: u64) {
        let (back, away) = self.away.iter().partition(|(until_ns, _)| *until_ns <= now_ns);
        self.away = away;
        let back: Vec<(u64, usize)> = back;
        for (_, node) in back {
            self.counts.add(Count::EngineReturned);
            self.start(node);
        }
    }

    /// Clients attach to an engine that has just been started. Its peers join it by and by.
    fn start(&mut self, node: usize) {
        let rail = self.nodes[node].take_rail().expect("the first rail");
        let delays = self.delays();
        self.cables.push(Cable::new(&[(node, rail, 0)], &self.nodes, delays));
        let of_it = self.clients_of(node);
        for at in &of_it {
            let client = &mut self.clients[*at];
            let session = client.session;
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
                let import = self.nodes[node].import(self.clients[*client].session, target);
                self.clients[*client].reach(import.0, *ground);
            }
        }
    }

    /// Gives up what is left of lost connections, and joins engines anew.
    pub(super) fn mend(&mut self) {
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
            let there = ends.iter().all(|node| !self.is_away(*node));
            let over = there
                && self.cables[at].over()
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
}
