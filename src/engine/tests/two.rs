//! Two engines joined by rails over simulated devices: two worlds, one wire, one clock.

use std::sync::Arc;

use super::world::{Client, LIMITS, STEP_NS, World};
use crate::abi::{
    CANCEL_BY_NUMBER, CQE_NOTIFY, Cqe, Opcode, RIGHT_ATOMIC, RIGHT_READ, RIGHT_WRITE, RIGHTS_ALL,
    Sqe,
};
use crate::engine::{Command, Limits, Reply, Why};
use crate::fabric::qp::join::Join;
use crate::fabric::qp::provider::{Access, PathSettings, ProviderControl, Registration};
use crate::fabric::qp::sim::{Net, SimConfig, SimControl, SimProvider};
use crate::fabric::qp::{CardKeys, Config, Memory, RailState, Rails, Recovery};
use crate::fabric::{Held, Local, Pair};
use crate::ids::{RegionId, SessionId};
use crate::seeds::Random;
use crate::shm::Mapping;

pub(super) const CONFIG: Config = Config {
    fabric: crate::abi::FABRIC_VERBS,
    rails_max: 4,
    depth: 8,
    receives: 4,
    inline_bytes: 64,
    signal_every: 4,
    message_bytes_max: 1 << 20,
    merge_bytes_max: 0,
    regions_max: LIMITS.regions_max,
    attempts_max: 3,
    stuck_ns: 5_000_000,
    grace_ns: 20_000,
    drain_ns: 1_000_000,
    lost_ns: 2_000_000_000,
    recovery: Recovery {
        backoff_first_ns: 20_000,
        backoff_max_ns: 1_000_000,
        pause_first_ns: 3_000_000,
        pause_max_ns: 12_000_000,
        ..Recovery::DEFAULT
    },
};

/// Bytes of every region here.
pub(super) const BYTES: u64 = 64 << 10;

/// Client of each side's own session.
pub(super) const ME: usize = 0;

pub(super) struct Two {
    pub(super) worlds: [World<Pair<SimProvider>>; 2],
    pub(super) net: Net,
    pub(super) join: Join<SimControl>,
    /// The control side does what rails wish.
    pub(super) served: bool,
    /// A side whose engine makes no turns.
    pub(super) stopped: Option<usize>,
}

const LOCAL_ONLY: Access = Access { write: false, read: false, atomics: false };

fn access(rights: u32) -> Access {
    let has = |right| rights & right != 0;
    Access { write: has(RIGHT_WRITE), read: has(RIGHT_READ), atomics: has(RIGHT_ATOMIC) }
}

impl Two {
    /// Both ends of `rails` rails, from 1 on, connected. Each side has one session, with a ring.
    pub(super) fn new(rails: u16) -> Self {
        Self::with(LIMITS, CONFIG, rails)
    }

    pub(super) fn with(limits: Limits, config: Config, rails: u16) -> Self {
        Self::by(limits, config, rails, PathSettings::DEFAULT)
    }

    pub(super) fn by(limits: Limits, config: Config, rails: u16, path: PathSettings) -> Self {
        let net = Net::new();
        let sides = [0; 2].map(|_| {
            let (provider, control) = net.device(SimConfig::DEFAULT, config.completions());
            let local = Local::new(limits.regions_max, limits.window_wrs, limits.slice_bytes);
            let fabric = Pair::new(local, Some(Rails::new(provider, config)));
            (World::new(limits, fabric), control)
        });
        let [(a, first), (b, second)] = sides;
        let mut join = Join::new([first, second], path).without_rail_0();
        let mut worlds = [a, b];
        // Places that differ by side, and with them what regions are filled with: bytes that are
        // alike on both sides have been moved.
        worlds[1].next_region(1);
        for _ in 0..rails {
            let [a, b] = worlds.each_mut().map(rails_of);
            join.open([a, b], &config).unwrap();
        }
        for world in &mut worlds {
            let session = world.session(0);
            world.ring(session, 64, 64);
        }
        let mut two = Self { worlds, net, join, served: true, stopped: None };
        two.settle();
        for rail in 1..=rails {
            assert_eq!([0, 1].map(|side| two.state(side, rail)), [RailState::Ready; 2]);
        }
        two
    }

    /// Both sides' uids may have only so much of class high posted: nothing but one request, a few
    /// slices, or all there is.
    pub(super) fn bound_high(&mut self, random: &mut Random) {
        for world in &mut self.worlds {
            world.engine.owners[0].high_max = random.pick(&[1, 600, u64::MAX]);
        }
    }

    pub(super) fn state(&mut self, side: usize, rail: u16) -> RailState {
        rails_of(&mut self.worlds[side]).state(rail)
    }

    /// One turn of both engines, the wire and the control side. True if anything moved.
    pub(super) fn step(&mut self) -> bool {
        self.net.advance(STEP_NS);
        let mut worked = false;
        for side in (0..2).filter(|side| self.stopped != Some(*side)) {
            worked |= self.worlds[side].turn().worked();
        }
        if self.served {
            let [a, b] = self.worlds.each_mut().map(rails_of);
            worked |= self.join.serve([a, b]).unwrap();
        }
        worked
    }

    pub(super) fn steps(&mut self, count: u32) {
        for _ in 0..count {
            self.step();
        }
    }

    /// Goes on until both engines would sleep, nothing is on the wire, and no rail waits for time.
    pub(super) fn settle(&mut self) {
        for _ in 0..100_000 {
            let worked = self.step();
            let [a, b] = &self.worlds;
            let restless = a.engine.watches().timed || b.engine.watches().timed;
            if !worked && !restless && self.net.is_still() {
                return;
            }
        }
        panic!("no rest after 100,000 steps");
    }

    /// Adds a region of a side's first session, registered for its own use.
    pub(super) fn region(&mut self, side: usize) -> RegionId {
        self.region_of(side, SessionId(0))
    }

    pub(super) fn region_of(&mut self, side: usize, session: SessionId) -> RegionId {
        let id = self.worlds[side].next_region(1);
        let mapping = self.worlds[side].mapping(id, BYTES);
        let registration = self.register(side, &mapping, LOCAL_ONLY);
        let card =
            Some(Memory::own(Arc::clone(&mapping), CardKeys::first(registration.keys), id.0));
        let memory = Held { mapping: Some(mapping), card };
        self.worlds[side].add_region(id, session, BYTES, memory);
        id
    }

    fn register(&mut self, side: usize, mapping: &Arc<Mapping>, access: Access) -> Registration {
        self.join.control(side).register(mapping, access).unwrap()
    }

    /// Keys of a region with the rights of a loan.
    fn keys(&mut self, side: usize, region: RegionId, rights: u32) -> CardKeys {
        let mapping = Arc::clone(&self.worlds[side].memory[&region.0]);
        CardKeys::first(self.register(side, &mapping, access(rights)).keys)
    }

    /// Runs a command that is answered at once.
    pub(super) fn told(
        &mut self,
        side: usize,
        command: impl FnOnce(u64) -> Command<Held, super::watched::Watched>,
    ) -> u64 {
        let token = self.worlds[side].token();
        self.worlds[side].engine.command(command(token));
        token
    }

    pub(super) fn done(&mut self, side: usize, token: u64) -> bool {
        match self.worlds[side].reply(token) {
            Some(Reply::Done { .. }) => true,
            None => false,
            other => panic!("answered with {other:?}"),
        }
    }

    /// Lends a region on a rail; the errno if it is refused.
    pub(super) fn lend(
        &mut self,
        side: usize,
        region: RegionId,
        (rail, rights, heard): (u16, u32, u32),
    ) -> Result<(), i32> {
        let token = self.told(side, |token| Command::Lend { region, rail, rights, heard, token });
        match self.worlds[side].reply(token) {
            Some(Reply::Done { .. }) => Ok(()),
            Some(Reply::Failed { errno, .. }) => Err(errno),
            other => panic!("answered with {other:?}"),
        }
    }

    pub(super) fn take_back(&mut self, side: usize, region: RegionId, rail: u16) {
        let token = self.told(side, |token| Command::TakeBack { region, rail, token });
        assert!(self.done(side, token));
    }

    /// Lends a region of one side on rails, and imports it at the other.
    pub(super) fn offer(
        &mut self,
        owner: usize,
        region: RegionId,
        rights: u32,
        rails: [u16; 3],
    ) -> RegionId {
        for rail in rails {
            self.lend(owner, region, (rail, rights, 0)).unwrap();
        }
        self.import_as(owner, region, rights, (rails, region))
    }

    /// Lends a region of one side on the rails of a set, and imports it at the other.
    pub(super) fn offer_set(
        &mut self,
        owner: usize,
        region: RegionId,
        rights: u32,
        set: u64,
    ) -> RegionId {
        for rail in (0..64).filter(|rail| set >> rail & 1 != 0) {
            self.lend(owner, region, (rail, rights, 0)).unwrap();
        }
        self.import_set(SessionId(0), owner, rights, ([set; 3], region), region)
    }

    /// Lends a region of one side on one rail, and imports it at the other for a session there.
    pub(super) fn offer_to(
        &mut self,
        session: SessionId,
        owner: usize,
        region: RegionId,
        rail: u16,
    ) -> RegionId {
        self.lend(owner, region, (rail, RIGHTS_ALL, 0)).unwrap();
        self.import_set(session, owner, RIGHTS_ALL, ([1 << rail; 3], region), region)
    }

    /// Imports a region of `owner`'s, as one that its notifications call `name`.
    pub(super) fn import_as(
        &mut self,
        owner: usize,
        region: RegionId,
        rights: u32,
        (rails, name): ([u16; 3], RegionId),
    ) -> RegionId {
        let sets = rails.map(|rail| 1 << rail);
        self.import_set(SessionId(0), owner, rights, (sets, name), region)
    }

    pub(super) fn import_set(
        &mut self,
        session: SessionId,
        owner: usize,
        rights: u32,
        (rails, name): ([u64; 3], RegionId),
        region: RegionId,
    ) -> RegionId {
        let keys = self.keys(owner, region, rights);
        let memory = Memory::peer(keys, name.0).unwrap();
        let importer = 1 - owner;
        let id = self.worlds[importer].next_region(2);
        let held = Held { mapping: None, card: Some(memory) };
        let token = self.told(importer, |token| Command::AddPeerImport {
            region: id,
            session,
            bytes: BYTES,
            rights,
            rails,
            memory: held,
            token,
        });
        assert!(self.done(importer, token));
        id
    }

    /// Sends atomics on a region by a rail that leads back here.
    pub(super) fn set_home(&mut self, side: usize, region: RegionId, rail: u16) {
        let keys = self.keys(side, region, RIGHT_ATOMIC);
        let memory = Held { mapping: None, card: Memory::peer(keys, region.0) };
        let token = self.told(side, |token| Command::SetHome { region, rail, memory, token });
        assert!(self.done(side, token));
    }

    pub(super) fn push(&mut self, side: usize, sqe: Sqe) -> u64 {
        self.worlds[side].push(ME, sqe)
    }

    pub(super) fn pop(&mut self, side: usize) -> Vec<Cqe> {
        self.worlds[side].pop(ME)
    }

    /// Runs one op to its end; its only CQE.
    pub(super) fn run(&mut self, side: usize, sqe: Sqe) -> Cqe {
        self.push(side, sqe);
        self.settle();
        let cqes: Vec<Cqe> =
            self.pop(side).into_iter().filter(|cqe| cqe.flags & CQE_NOTIFY == 0).collect();
        assert_eq!(cqes.len(), 1, "{cqes:?}");
        cqes[0]
    }

    /// WHY, without a turn of the other side.
    pub(super) fn why(&mut self, side: usize, number: u64) -> Option<Why> {
        let world = &mut self.worlds[side];
        let token = world.query(ME, CANCEL_BY_NUMBER, number, false);
        world.turn();
        match world.reply(token) {
            Some(Reply::Why { why, .. }) => Some(why),
            _ => None,
        }
    }

    pub(super) fn client(&self, side: usize) -> &Client {
        &self.worlds[side].clients[ME]
    }

    pub(super) fn expect_rest(&mut self) {
        for world in &mut self.worlds {
            assert!(rails_of(world).at_rest(), "a fabric with something left");
            let loans = world.engine.regions.iter().any(|region| region.lent != 0);
            if !loans {
                world.expect_rest();
            }
        }
    }
}

pub(super) fn rails_of(world: &mut World<Pair<SimProvider>>) -> &mut Rails<SimProvider> {
    world.engine.fabric_mut().rails_mut().unwrap()
}

/// A transfer of `bytes` between equal offsets.
pub(super) fn transfer(opcode: Opcode, ids: (RegionId, RegionId), at: u64, bytes: u32) -> Sqe {
    Sqe {
        opcode: opcode as u8,
        local_region: ids.0.0,
        remote_region: ids.1.0,
        local_offset: at,
        remote_offset: at,
        bytes,
        ..Sqe::default()
    }
}

/// FETCH_ADD at equal offsets.
pub(super) fn add(ids: (RegionId, RegionId), at: u64, value: u64) -> Sqe {
    Sqe { arg: [value, 0], ..transfer(Opcode::FetchAdd, ids, at, 0) }
}
