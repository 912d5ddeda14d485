//! A world without threads: one engine, a clock that moves when the test says so, and clients
//! that push into rings on the heap. After every turn the engine is audited.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::watched::{Watch, Watched};
use crate::abi::{
    CQE_NOTIFY, Class, Cqe, Detail, Opcode, Page, RIGHTS_ALL, SQE_NOTIFY, SQE_REVOKE,
    SQE_SKIP_SUCCESS, Sqe,
};
use crate::engine::{Command, Engine, Event, Limits, Reply, Ring, Turn, Wind};
use crate::fabric::{Fabric, Local};
use crate::ids::{RegionId, RingId, SessionId};
use crate::ledger::State;
use crate::ring::{ClientEnd, Fault, Heap, Memory as _, Word};
use crate::sched::{Contract, Policy};
use crate::shm::Mapping;

/// Nanoseconds from one turn to the next.
pub(super) const STEP_NS: u64 = 1_000;

/// Small tables, so that every limit is met soon.
pub(super) const LIMITS: Limits = Limits {
    engine: 3,
    records: 128,
    list_blocks: 64,
    edges: 64,
    sessions_max: 4,
    rings_max: 8,
    regions_max: 64,
    window_wrs: 4,
    window_bytes: 1024,
    slice_bytes: 256,
    turn_bytes: 1024,
    intake_budget: 8,
    ring_idle_ns: 1_000_000,
    cut_off_ns: 30_000_000_000,
    policy: Policy::STRICT,
};

/// A client thread: one ring.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) ring: RingId,
    pub(super) session: SessionId,
    pub(super) heap: Arc<Heap>,
    pub(super) end: ClientEnd<Arc<Heap>>,
}

impl Client {
    /// Pops what is there, and gives the slots back.
    pub(super) fn pop(&mut self) -> Vec<Cqe> {
        let mut cqes = Vec::new();
        while let Some(words) = self.end.pop().unwrap() {
            cqes.push(Cqe::from_words(words));
        }
        self.end.release();
        cqes
    }

    /// SQEs that the engine has taken.
    pub(super) fn taken(&self) -> u64 {
        u64::from(self.load(Word::SqHead).wrapping_sub(self.heap.first_index()))
    }

    pub(super) fn load(&self, word: Word) -> u32 {
        self.heap.word(word).load(std::sync::atomic::Ordering::Acquire)
    }

    pub(super) fn store(&self, word: Word, value: u32) {
        self.heap.word(word).store(value, std::sync::atomic::Ordering::Release);
    }
}

/// An engine and everything around it.
#[derive(Debug)]
pub(super) struct World<F: Fabric> {
    pub(super) engine: Engine<F, Watched>,
    pub(super) clients: Vec<Client>,
    /// Memory of every region that was made, by id.
    pub(super) memory: BTreeMap<u32, Arc<Mapping>>,
    pub(super) now_ns: u64,
    pub(super) replies: VecDeque<Reply<F::Memory, Watched>>,
    pub(super) events: Vec<Event>,
    pub(super) bells: Vec<RingId>,
    /// Every turn is audited; off where a test makes too many of them with too many ops.
    pub(super) audited: bool,
    regions: u32,
    tokens: u64,
}

impl World<Local> {
    /// A world over the real same-host fabric.
    pub(super) fn local(limits: Limits) -> Self {
        let depth = limits.window_wrs;
        Self::new(limits, Local::new(limits.regions_max, depth, limits.slice_bytes))
    }
}

impl<F: Fabric> World<F>
where
    F::Memory: From<Arc<Mapping>> + std::fmt::Debug,
{
    pub(super) fn new(limits: Limits, fabric: F) -> Self {
        Self {
            engine: Engine::new(limits, fabric),
            clients: Vec::new(),
            memory: BTreeMap::new(),
            now_ns: 1_000_000,
            replies: VecDeque::new(),
            events: Vec::new(),
            bells: Vec::new(),
            audited: true,
            regions: 0,
            tokens: 0,
        }
    }

    pub(super) fn session(&mut self, session: u32) -> SessionId {
        let ops_max = self.engine.limits.records;
        self.session_of(session, session, ops_max, Class::High)
    }

    pub(super) fn session_of(
        &mut self,
        session: u32,
        owner: u32,
        ops_max: u32,
        ceiling: Class,
    ) -> SessionId {
        self.session_under(session, owner, Contract { ceiling, ..Contract::of_ops(ops_max) })
    }

    pub(super) fn session_under(
        &mut self,
        session: u32,
        owner: u32,
        contract: Contract,
    ) -> SessionId {
        let session = SessionId(session);
        self.engine.command(Command::AddSession { session, owner, contract });
        session
    }

    /// Adds a ring whose counters are about to wrap; returns its client.
    pub(super) fn ring(&mut self, session: SessionId, sq_entries: u32, cq_entries: u32) -> usize {
        self.ring_of(session, sq_entries, cq_entries, false, None)
    }

    pub(super) fn ring_of(
        &mut self,
        session: SessionId,
        sq_entries: u32,
        cq_entries: u32,
        fenceless: bool,
        watch: Option<Watch>,
    ) -> usize {
        let free = |at: &u32| self.engine.rings[*at as usize].is_none();
        let ring = RingId((0..self.engine.limits.rings_max).find(free).unwrap());
        let first_index = u32::MAX - 2 - ring.0;
        let heap = Arc::new(Heap::new(sq_entries, cq_entries, first_index));
        let memory = Watched::new(Arc::clone(&heap), watch);
        let end = ClientEnd::new(Arc::clone(&heap));
        let token = self.token();
        let ring_box = Box::new(Ring::new(ring, session, memory, fenceless));
        self.engine.command(Command::AddRing { ring: ring_box, token });
        self.expect_done(token);
        self.clients.push(Client { ring, session, heap, end });
        self.clients.len() - 1
    }

    /// Adds a region, filled with a pattern of its own.
    pub(super) fn region(&mut self, session: SessionId, bytes: u64) -> RegionId {
        let id = self.next_region(1);
        self.region_again(id, session, bytes);
        id
    }

    /// An id whose place was never used.
    pub(super) fn next_region(&mut self, generation: u32) -> RegionId {
        self.regions += 1;
        RegionId::new(generation, self.regions - 1)
    }

    /// Adds a region under a chosen id.
    pub(super) fn region_again(&mut self, region: RegionId, session: SessionId, bytes: u64) {
        let memory = self.mapping(region, bytes).into();
        self.add_region(region, session, bytes, memory);
    }

    /// Memory of a region, filled with its pattern.
    pub(super) fn mapping(&mut self, region: RegionId, bytes: u64) -> Arc<Mapping> {
        let memory = Arc::new(Mapping::anonymous(bytes).unwrap());
        for offset in 0..bytes {
            memory.fill(offset, 1, pattern(region, offset));
        }
        self.memory.insert(region.0, Arc::clone(&memory));
        memory
    }

    pub(super) fn add_region(
        &mut self,
        region: RegionId,
        session: SessionId,
        bytes: u64,
        memory: F::Memory,
    ) {
        let token = self.token();
        self.engine.command(Command::AddRegion { region, session, bytes, memory, token });
        self.expect_done(token);
    }

    pub(super) fn import(&mut self, session: SessionId, target: RegionId) -> RegionId {
        self.import_of(session, target, RIGHTS_ALL).unwrap()
    }

    /// Imports with chosen rights; the failure if it is refused.
    pub(super) fn import_of(
        &mut self,
        session: SessionId,
        target: RegionId,
        rights: u32,
    ) -> Result<RegionId, (i32, Detail)> {
        let region = RegionId::new(2, self.regions);
        let token = self.token();
        self.engine.command(Command::AddImport { region, session, target, rights, token });
        match self.reply(token) {
            Some(Reply::Failed { errno, detail, .. }) => Err((errno, detail)),
            Some(Reply::Done { .. }) => {
                self.regions += 1;
                Ok(region)
            }
            other => panic!("an import was answered with {other:?}"),
        }
    }

    pub(super) fn token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    /// Begins to wind up a client's ring; the answer's token.
    pub(super) fn wind(&mut self, client: usize, mode: Wind) -> u64 {
        let (token, ring) = (self.token(), self.clients[client].ring);
        self.engine.command(Command::WindRing { ring, mode, token });
        token
    }

    /// Begins to remove a region or import; the answer's token.
    pub(super) fn remove(&mut self, region: RegionId) -> u64 {
        let token = self.token();
        self.engine.command(Command::RemoveRegion { region, token });
        token
    }

    /// Asks about an op as the control socket does; the answer's token.
    pub(super) fn query(&mut self, client: usize, by: u64, target: u64, cancel: bool) -> u64 {
        let (token, ring) = (self.token(), self.clients[client].ring);
        self.engine.command(Command::Query { ring, by, target, cancel, token });
        token
    }

    /// Makes one turn and audits what it left behind.
    pub(super) fn turn(&mut self) -> Turn {
        self.now_ns += STEP_NS;
        let turn = self.engine.turn(self.now_ns);
        self.listen();
        if self.audited {
            self.engine.audit();
            self.engine.audit_fates();
            self.engine.audit_telemetry();
        }
        turn
    }

    /// Makes turns until nothing moves any more.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.turn().worked() {
                return;
            }
        }
        panic!("10,000 turns and still at work");
    }

    /// Hears what the engine has to say.
    pub(super) fn listen(&mut self) {
        while let Some(reply) = self.engine.reply() {
            self.replies.push_back(reply);
        }
        while let Some(event) = self.engine.event() {
            self.events.push(event);
        }
        while let Some(ring) = self.engine.bell() {
            self.bells.push(ring);
        }
    }

    /// Takes the answer to a command out of those that were heard.
    pub(super) fn reply(&mut self, token: u64) -> Option<Reply<F::Memory, Watched>> {
        self.listen();
        let at = self.replies.iter().position(|reply| token_of(reply) == token)?;
        self.replies.remove(at)
    }

    pub(super) fn expect_done(&mut self, token: u64) {
        let reply = self.reply(token);
        assert!(matches!(reply, Some(Reply::Done { .. })), "not done: {reply:?}");
    }

    /// Pushes, publishes, and rings the bell if the engine asked for it; `None` if the SQ is full.
    /// The `user_data` is the SQE's number if none was set.
    pub(super) fn try_push(&mut self, client: usize, mut sqe: Sqe) -> Option<u64> {
        let client = &mut self.clients[client];
        if sqe.user_data == 0 {
            sqe.user_data = client.end.pushed();
        }
        let number = client.end.push(sqe.to_words())?;
        if client.end.publish() {
            self.engine.wake(client.ring);
        }
        Some(number)
    }

    /// Pushes; the SQ must have room.
    pub(super) fn push(&mut self, client: usize, sqe: Sqe) -> u64 {
        self.try_push(client, sqe).expect("room in the SQ")
    }

    pub(super) fn pop(&mut self, client: usize) -> Vec<Cqe> {
        self.clients[client].pop()
    }

    /// Pushes one SQE, waits until all is quiet, and pops its only CQE.
    pub(super) fn run(&mut self, client: usize, sqe: Sqe) -> Cqe {
        self.push(client, sqe);
        self.settle();
        let cqes = self.pop(client);
        assert_eq!(cqes.len(), 1, "{cqes:?}");
        cqes[0]
    }

    pub(super) fn bytes(&self, region: RegionId) -> Vec<u8> {
        let memory = &self.memory[&region.0];
        let mut bytes = vec![0; usize::try_from(memory.bytes()).unwrap()];
        memory.read(0, &mut bytes);
        bytes
    }

    /// ARMs that wait.
    pub(super) fn armed(&self) -> u32 {
        let ledger = &self.engine.ledger;
        let armed = |slot: &u32| ledger[*slot].state == State::Armed;
        u32::try_from((0..ledger.capacity()).filter(armed).count()).unwrap()
    }

    /// Asserts that nothing is under way: no record, credit, reference or block is held.
    pub(super) fn expect_rest(&self) {
        let engine = &self.engine;
        assert_eq!(engine.ledger.open_count(), 0, "open records");
        assert_eq!((engine.window.wrs(), engine.window.bytes()), (0, 0), "credits");
        assert!(engine.posts.at_rest(), "places of posts");
        assert_eq!(engine.pages.free_count(), engine.limits.list_blocks, "page blocks");
        assert!(engine.regions.iter().all(super::super::tables::Region::idle), "references");
        assert!(engine.lanes.is_empty() && engine.flushes.is_empty());
        for rail in 1..engine.fabric.rails() {
            assert!(
                engine.abroad.lanes(rail).iter().all(|(lanes, _)| lanes.is_empty()),
                "rail {rail}"
            );
            assert_eq!(engine.abroad.peer_window(rail).wrs(), 0, "credits of rail {rail}");
        }
        assert_eq!(engine.deadlines, 0);
        for owner in &engine.owners {
            assert_eq!((owner.ops, owner.bytes, owner.high), (0, 0, 0), "what an owner has");
            assert_eq!(owner.wants_high, None, "an owner out of turn");
        }
        for ring in engine.rings.iter().flatten().filter(|ring| !ring.faulted) {
            assert_eq!(ring.end.reserved(), 0, "promised CQ slots");
            assert_eq!(ring.fates.len(), ring.end.cq_entries() as usize, "fate entries");
        }
    }

    /// The `ENGINE_*` bits and fault reason that a client sees.
    pub(super) fn flags(&self, client: usize) -> u32 {
        self.clients[client].end.engine_flags()
    }

    pub(super) fn faults(&self) -> Vec<(RingId, Fault)> {
        let fault = |event: &Event| match event {
            Event::Faulted { ring, fault } => Some((*ring, *fault)),
            Event::Revoked { .. } => None,
        };
        self.events.iter().filter_map(fault).collect()
    }
}

/// One session that writes to the region of another.
#[derive(Debug)]
pub(super) struct Pair<F: Fabric<Memory = Arc<Mapping>>> {
    pub(super) world: World<F>,
    /// The sender's region.
    pub(super) near: RegionId,
    /// The sender's import of the receiver's region.
    pub(super) far: RegionId,
    /// The receiver's region.
    pub(super) target: RegionId,
}

/// Client of the sender in a [`Pair`].
pub(super) const SENDER: usize = 0;
/// Client of the receiver in a [`Pair`].
pub(super) const RECEIVER: usize = 1;
/// Bytes of each region in a [`Pair`].
pub(super) const REGION_BYTES: u64 = 64 << 10;

impl<F: Fabric<Memory = Arc<Mapping>>> Pair<F> {
    pub(super) fn new(mut world: World<F>, entries: u32) -> Self {
        let (sender, receiver) = (world.session(0), world.session(1));
        world.ring(sender, entries, entries);
        world.ring(receiver, entries, entries);
        let near = world.region(sender, REGION_BYTES);
        let target = world.region(receiver, REGION_BYTES);
        let far = world.import(sender, target);
        Self { world, near, far, target }
    }

    /// A transfer between equal offsets of the two regions.
    pub(super) fn op(&self, opcode: Opcode, offset: u64, bytes: u32) -> Sqe {
        Sqe {
            opcode: opcode as u8,
            local_region: self.near.0,
            remote_region: self.far.0,
            local_offset: offset,
            remote_offset: offset,
            bytes,
            ..Sqe::default()
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: u32) -> Sqe {
        self.op(Opcode::Write, offset, bytes)
    }

    pub(super) fn write_as(&self, class: Class, offset: u64, bytes: u32) -> Sqe {
        Sqe { class: class as u8, ..self.write(offset, bytes) }
    }

    /// An empty WRITE that notifies.
    pub(super) fn tell(&self, immediate: u32) -> Sqe {
        Sqe { flags: SQE_NOTIFY, immediate, ..self.write(0, 0) }
    }

    /// A list op, whose pages are stored at the end of the sender's region first.
    pub(super) fn list(&self, opcode: Opcode, pages: &[Page], page_bytes: u32) -> Sqe {
        let at = REGION_BYTES - 16 * pages.len() as u64;
        let memory = &self.world.memory[&self.near.0];
        memory.write(at, zerocopy::IntoBytes::as_bytes(pages));
        let arg = [(pages.len() as u64) << 32, 0];
        let base = self.op(opcode, 0, page_bytes);
        Sqe { local_offset: at, arg, ..base }
    }
}

pub(super) fn flush(region: RegionId) -> Sqe {
    Sqe { opcode: Opcode::Flush as u8, local_region: region.0, ..Sqe::default() }
}

pub(super) fn revoke(region: RegionId) -> Sqe {
    Sqe { flags: SQE_REVOKE, ..flush(region) }
}

pub(super) fn arm(region: RegionId, count: u32) -> Sqe {
    Sqe { opcode: Opcode::Arm as u8, local_region: region.0, bytes: count, ..Sqe::default() }
}

pub(super) fn cancel(by: u64, target: u64) -> Sqe {
    Sqe { opcode: Opcode::Cancel as u8, arg: [target, by], ..Sqe::default() }
}

pub(super) fn nop() -> Sqe {
    Sqe::default()
}

pub(super) fn nop_skipped() -> Sqe {
    Sqe { flags: SQE_SKIP_SUCCESS, ..nop() }
}

/// What a fresh region holds at an offset.
pub(super) fn pattern(region: RegionId, offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(region.0) * 0x51);
    u8::try_from((mixed >> 3) & 0xff).unwrap()
}

/// What a final CQE says: `res`, flags, detail.
pub(super) fn outcome(cqe: &Cqe) -> (i32, u16, u16) {
    assert!(cqe.flags & CQE_NOTIFY == 0, "a notification: {cqe:?}");
    (cqe.res, cqe.flags, cqe.detail)
}

/// The outcome of an op that failed.
pub(super) fn failed(errno: i32, flags: u16, detail: Detail) -> (i32, u16, u16) {
    (-errno, flags, detail as u16)
}

/// The outcome of a data op that moved `bytes`.
pub(super) fn moved(bytes: i32) -> (i32, u16, u16) {
    (bytes, 0, u16::from(crate::abi::FABRIC_LOCAL) << 8)
}

fn token_of<A, B>(reply: &Reply<A, B>) -> u64 {
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
