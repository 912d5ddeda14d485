//! An engine of a simulated world, and what its control keeps about it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::loans::token_of;
use super::options::Options;
use crate::abi::RIGHTS_ALL;
use crate::engine::{Command, Engine, Event, Reply, Ring};
use crate::fabric::qp::provider::{Access, Key, PathSettings, ProviderControl, Registration};
use crate::fabric::qp::sim::{Net, SimControl, SimProvider};
use crate::fabric::qp::{self, CardKeys, Rails, Wish};
use crate::fabric::{Held, Local, Pair};
use crate::ids::{RegionId, RingId, SessionId};
use crate::ring::Heap;
use crate::shm::Mapping;

pub(super) type Core = Engine<Pair<SimProvider>, Arc<Heap>>;

/// What peers may do with what is lent.
pub(super) const ALL: Access = Access { write: true, read: true, atomics: true };

/// An engine, and its control.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) engine: Core,
    /// By card.
    pub(super) controls: Vec<SimControl>,
    pub(super) settings: PathSettings,
    pub(super) rails: qp::Config,
    /// Revocations heard of, by region.
    revoked: BTreeMap<RegionId, u32>,
    free_regions: Vec<RegionId>,
    next_region: u32,
    next_rail: u16,
    free_rails: Vec<u16>,
    next_token: u64,
    pub(super) replies: VecDeque<Reply<Held, Arc<Heap>>>,
    pub(super) events: VecDeque<Event>,
}

impl Node {
    pub(super) fn new(number: usize, options: &Options, net: &Net) -> Self {
        let (provider, controls) = net.cards(&options.cards, options.rails.completions());
        let mut limits = options.limits;
        limits.engine = u8::try_from(number).unwrap_or(u8::MAX);
        let local = Local::new(limits.regions_max, limits.window_wrs, limits.slice_bytes);
        let fabric = Pair::new(local, Some(Rails::new(provider, options.rails)));
        Self {
            engine: Engine::new(limits, fabric),
            controls,
            settings: PathSettings { timeout: options.timeout, retry: 2, ..PathSettings::DEFAULT },
            rails: options.rails,
            revoked: BTreeMap::new(),
            free_regions: Vec::new(),
            next_region: 0,
            next_rail: 1,
            free_rails: Vec::new(),
            next_token: 0,
            replies: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(super) fn rails_mut(&mut self) -> &mut Rails<SimProvider> {
        self.engine.fabric_mut().rails_mut().expect("every engine has rails")
    }

    pub(super) fn wish(&mut self) -> Option<Wish> {
        self.rails_mut().wish()
    }

    /// A number for another rail, if there is one.
    pub(super) fn take_rail(&mut self) -> Option<u16> {
        let rail = self.free_rails.pop().unwrap_or(self.next_rail);
        if rail >= self.rails.rails_max {
            return None;
        }
        self.next_rail = self.next_rail.max(rail + 1);
        Some(rail)
    }

    pub(super) fn give_rail(&mut self, rail: u16) {
        self.free_rails.push(rail);
    }

    pub(super) fn take_region(&mut self) -> RegionId {
        self.free_regions.pop().unwrap_or_else(|| {
            self.next_region += 1;
            RegionId::new(1, self.next_region)
        })
    }

    pub(super) fn give_region(&mut self, region: RegionId) {
        self.free_regions.push(RegionId::new(region.generation() % 4000 + 1, region.index()));
    }

    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// Carries out a command that is answered at once.
    fn do_now(&mut self, token: u64, command: Command<Held, Arc<Heap>>) {
        match self.ask(token, command) {
            Reply::Done { .. } => {}
            other => panic!("a command was answered with {other:?}"),
        }
    }

    /// The answer to a command that is answered at once; answers to others are kept.
    pub(super) fn ask(
        &mut self,
        token: u64,
        command: Command<Held, Arc<Heap>>,
    ) -> Reply<Held, Arc<Heap>> {
        self.engine.command(command);
        loop {
            let reply = self.engine.reply().expect("an answer at once");
            if token_of(&reply) == token {
                return reply;
            }
            self.replies.push_back(reply);
        }
    }

    /// Makes a session with one ring; its memory.
    pub(super) fn open(&mut self, session: SessionId, options: &Options) -> Arc<Heap> {
        let contract = options.contract;
        let owner = session.0 % options.owners;
        self.engine.command(Command::AddSession { session, owner, contract });
        let heap = Arc::new(Heap::new(options.sq_entries, options.cq_entries, u32::MAX - 20));
        let token = self.token();
        let ring = Ring::new(RingId(session.0), session, Arc::clone(&heap), false);
        self.do_now(token, Command::AddRing { ring: Box::new(ring), token });
        heap
    }

    /// Makes a region, registered for this host's own use.
    pub(super) fn region(&mut self, session: SessionId, bytes: u64) -> (RegionId, Arc<Mapping>) {
        let memory = Arc::new(Mapping::anonymous(bytes).expect("memory"));
        (self.add_region(session, &memory), memory)
    }

    pub(super) fn add_region(&mut self, session: SessionId, memory: &Arc<Mapping>) -> RegionId {
        let region = self.take_region();
        let bytes = memory.bytes();
        let none = Access { write: false, read: false, atomics: false };
        let (_, keys) = self.register(memory, none);
        let card = qp::Memory::own(Arc::clone(memory), keys, region.0);
        let held = Held { mapping: Some(Arc::clone(memory)), card: Some(card) };
        let token = self.token();
        self.do_now(token, Command::AddRegion { region, session, bytes, memory: held, token });
        region
    }

    /// Registers a memory with every card: what each calls it, and the keys.
    pub(super) fn register(
        &mut self,
        memory: &Arc<Mapping>,
        access: Access,
    ) -> (Vec<u32>, CardKeys) {
        let mut all = CardKeys::default();
        let mut ids = Vec::new();
        for (control, card) in self.controls.iter_mut().zip(0..) {
            let made = control.register(memory, access).expect("a simulated device has room");
            let Registration { id, keys } = made;
            ids.push(id);
            all.put(card, keys);
        }
        (ids, all)
    }

    /// Ends what [`Node::register`] made.
    pub(super) fn deregister(&mut self, ids: &[u32]) {
        for (control, id) in self.controls.iter_mut().zip(ids) {
            control.deregister(*id).expect("a registration of ours");
        }
    }

    /// From now on atomics on a region of ours go by the rail that leads back here.
    pub(super) fn set_home(&mut self, region: RegionId, memory: &Arc<Mapping>, rail: u16) {
        let (_, keys) = self.register(memory, ALL);
        let card = qp::Memory::own(Arc::clone(memory), keys, region.0);
        let held = Held { mapping: Some(Arc::clone(memory)), card: Some(card) };
        let token = self.token();
        self.do_now(token, Command::SetHome { region, rail, memory: held, token });
    }

    /// An import of a region of this very engine.
    pub(super) fn import(&mut self, session: SessionId, target: RegionId) -> RegionId {
        let region = self.take_region();
        let token = self.token();
        let rights = RIGHTS_ALL;
        self.do_now(token, Command::AddImport { region, session, target, rights, token });
        region
    }

    /// An import of a peer's region, by its keys.
    pub(super) fn peer_import(
        &mut self,
        session: SessionId,
        rails: u64,
        bytes: u64,
        (keys, name): (&CardKeys, RegionId),
    ) -> RegionId {
        let region = self.take_region();
        let mut told = CardKeys::default();
        for card in (0_u8..).take(self.controls.len()) {
            let keys = keys.of(card).iter().map(|key| Key { lkey: 0, ..*key });
            told.put(card, keys.collect());
        }
        let card = qp::Memory::peer(told, name.0);
        assert!(card.is_some(), "keys of a peer");
        let held = Held { mapping: None, card };
        let token = self.token();
        self.do_now(
            token,
            Command::AddPeerImport {
                region,
                session,
                bytes,
                rights: RIGHTS_ALL,
                rails: [rails; 3],
                memory: held,
                token,
            },
        );
        region
    }

    /// Lends a region to a rail's peer; false if its owner has revoked it meanwhile.
    pub(super) fn lend(&mut self, region: RegionId, rail: u16) -> bool {
        let token = self.token();
        let heard = self.revoked.get(&region).copied().unwrap_or(0);
        let rights = RIGHTS_ALL;
        let answer = self.ask(token, Command::Lend { region, rail, rights, heard, token });
        matches!(answer, Reply::Done { .. })
    }

    pub(super) fn take_back(&mut self, region: RegionId, rail: u16) {
        let token = self.token();
        self.do_now(token, Command::TakeBack { region, rail, token });
    }

    /// Makes a turn and hears what there is to hear. Some devices have time pass in it.
    pub(super) fn turn(&mut self, net: &Net) {
        self.engine.turn_by(net.now_ns(), || net.now_ns());
        while let Some(reply) = self.engine.reply() {
            self.replies.push_back(reply);
        }
        while let Some(event) = self.engine.event() {
            if let Event::Revoked { region } = event {
                *self.revoked.entry(region).or_default() += 1;
            }
            self.events.push_back(event);
        }
        while self.engine.bell().is_some() {}
    }
}
