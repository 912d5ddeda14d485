//! What engines have lent to each other, and how it comes back.

use std::sync::Arc;

use super::cable::Cable;
use super::node::{ALL, Node};
use crate::engine::{Command, Reply};
use crate::ids::{RegionId, SessionId};
use crate::shm::Mapping;

/// A region of one engine in the hands of another.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) owner: usize,
    pub(super) region: RegionId,
    pub(super) user: usize,
    pub(super) cable: usize,
    registrations: Vec<u32>,
    /// Imports made of it, one a client.
    pub(super) imports: Vec<RegionId>,
    stage: Stage,
    /// Imports that the user's engine still has, each with the token of its removal, once asked.
    removing: Vec<(Option<u64>, RegionId)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Lent,
    /// The user's control hears of it then.
    Withdrawing(u64),
    /// Its engine lets go of the imports; tokens that are still to be answered.
    LettingGo(Vec<u64>),
    /// The owner's control hears of it then.
    GivingBack(u64),
    Back,
}

/// Where a loan is between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) owner: usize,
    pub(super) user: usize,
    pub(super) cable: usize,
}

impl Loan {
    /// Lends a region; `None` if it was revoked meanwhile.
    pub(super) fn new(
        ends: Ends,
        region: RegionId,
        memory: &Arc<Mapping>,
        sessions: &[SessionId],
        nodes: &mut [Node],
        cable: &Cable,
    ) -> Option<Self> {
        let Ends { owner, user, cable: at } = ends;
        if !cable.rails_at(owner).all(|rail| nodes[owner].lend(region, rail)) {
            return None;
        }
        let (registrations, keys) = nodes[owner].register(memory, ALL);
        let theirs = cable.rails_at(user).fold(0, |set, rail| set | 1 << rail);
        let keys = (&keys, region);
        let import =
            |session: &SessionId| nodes[user].peer_import(*session, theirs, memory.bytes(), keys);
        let imports: Vec<_> = sessions.iter().map(import).collect();
        Some(Self {
            owner,
            region,
            user,
            cable: at,
            registrations,
            removing: imports.iter().map(|import| (None, *import)).collect(),
            imports,
            stage: Stage::Lent,
        })
    }

    /// The owner wants it back: its control says so, and the other one hears it then.
    pub(super) fn withdraw(&mut self, at_ns: u64) {
        if self.stage == Stage::Lent {
            self.stage = Stage::Withdrawing(at_ns);
        }
    }

    /// Nothing is left of it at either side.
    pub(super) fn over(&self) -> bool {
        self.stage == Stage::Back && self.let_go()
    }

    /// The user's engine has no import of it any more.
    pub(super) fn let_go(&self) -> bool {
        self.removing.is_empty()
    }

    /// An engine was buried, and another one is in its place: what it had is gone with it.
    pub(super) fn bury(&mut self, node: usize) {
        if self.user == node {
            self.removing.clear();
            if self.stage != Stage::Back {
                self.stage = Stage::Lent;
            }
        }
        if self.owner == node {
            self.stage = Stage::Back;
        }
    }

    /// The user's clients give their imports back.
    pub(super) fn remove_imports(&mut self, nodes: &mut [Node]) {
        let node = &mut nodes[self.user];
        for (asked, import) in &mut self.removing {
            if asked.is_none() {
                let token = node.token();
                node.engine.command(Command::RemoveRegion { region: *import, token });
                *asked = Some(token);
            }
        }
    }

    /// The user's engine has answered; true if it was about this loan.
    pub(super) fn answered(
        &mut self,
        token: u64,
        now_ns: u64,
        delay_ns: u64,
        nodes: &mut [Node],
    ) -> bool {
        if let Some(at) = self.removing.iter().position(|(asked, _)| *asked == Some(token)) {
            let (_, import) = self.removing.swap_remove(at);
            nodes[self.user].give_region(import);
            return true;
        }
        let Stage::LettingGo(tokens) = &mut self.stage else { return false };
        let Some(at) = tokens.iter().position(|open| *open == token) else { return false };
        tokens.swap_remove(at);
        if tokens.is_empty() {
            self.stage = Stage::GivingBack(now_ns + delay_ns);
        }
        true
    }

    /// Goes on, if it is time. With a lost connection nobody says anything: each side acts when
    /// its own end of the rail is dead.
    pub(super) fn step(&mut self, now_ns: u64, nodes: &mut [Node], cable: &Cable) {
        if self.stage == Stage::Back {
            return;
        }
        if cable.lost {
            if cable.dead_at(self.owner) {
                self.end(nodes, cable);
            }
            return;
        }
        match &self.stage {
            Stage::Withdrawing(at_ns) if *at_ns <= now_ns => {
                let mut tokens = Vec::new();
                for import in &self.imports {
                    let node = &mut nodes[self.user];
                    let token = node.token();
                    node.engine.command(Command::Withdraw { region: *import, token });
                    tokens.push(token);
                }
                self.stage = Stage::LettingGo(tokens);
            }
            Stage::GivingBack(at_ns) if *at_ns <= now_ns => self.end(nodes, cable),
            _ => {}
        }
    }

    /// Withdraws the keys, and tells the engine that it has the region for itself.
    fn end(&mut self, nodes: &mut [Node], cable: &Cable) {
        let node = &mut nodes[self.owner];
        node.deregister(&self.registrations);
        for rail in cable.rails_at(self.owner) {
            node.take_back(self.region, rail);
        }
        self.stage = Stage::Back;
    }
}

/// What an answer is about, as far as tokens go.
pub(super) fn token_of<Mem, M>(reply: &Reply<Mem, M>) -> u64 {
    match reply {
        Reply::Done { token }
        | Reply::Failed { token, .. }
        | Reply::RingGone { token, .. }
        | Reply::RegionGone { token, .. }
        | Reply::Cancelled { token, .. }
        | Reply::Why { token, .. }
        | Reply::Stats { token, .. } => *token,
    }
}
