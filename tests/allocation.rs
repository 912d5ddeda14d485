//! Claim: the core allocates nothing once it is made. The allocator of this binary counts what is
//! asked for inside calls of the engine, over 200,000 turns of mixed load under a virtual clock:
//! every opcode, good and bad, three classes, back-pressure, notifications, sleep, and rings and
//! regions that come and go.

#![allow(unsafe_code, reason = "a counting global allocator is unsafe to implement")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;

use verbring::abi::{
    CANCEL_BY_NUMBER, CQE_MORE, Cqe, Opcode, RIGHTS_ALL, SQE_NOTIFY, SQE_SKIP_SUCCESS, Sqe,
};
use verbring::engine::{Command, Engine, Limits, Reply, Ring, Wind};
use verbring::fabric::Local;
use verbring::ids::{RegionId, RingId, SessionId};
use verbring::ring::{ClientEnd, Heap};
use verbring::sched::{Contract, Policy};
use verbring::shm::Mapping;

struct Counting;

thread_local! {
    /// Calls are counted while this thread is inside the engine.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    if INSIDE.get() {
        CALLS.set(CALLS.get() + 1);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: `pointer` came from `alloc` above with this layout, as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls the engine, with the allocator watching.
fn inside<T>(call: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let result = call();
    INSIDE.set(false);
    result
}

const TURNS: u64 = 200_000;
const SESSIONS: u32 = 3;
const REGION_BYTES: u64 = 64 << 10;
const LIMITS: Limits = Limits {
    engine: 1,
    records: 256,
    list_blocks: 64,
    edges: 64,
    sessions_max: 4,
    rings_max: 8,
    regions_max: 32,
    window_wrs: 8,
    window_bytes: 4096,
    slice_bytes: 1024,
    turn_bytes: u64::MAX,
    intake_budget: 8,
    ring_idle_ns: 20_000,
    cut_off_ns: 1_000_000,
    policy: Policy::DEFAULT,
};

type Memory = Arc<Heap>;

struct World {
    engine: Engine<Local, Memory>,
    clients: Vec<ClientEnd<Memory>>,
    random: u64,
    now_ns: u64,
    token: u64,
    /// Final CQEs by opcode and success.
    seen: BTreeSet<(u8, bool)>,
    finals: u64,
    gone: u64,
}

fn own(session: u32) -> RegionId {
    RegionId::new(1, session)
}

/// The import by one session of another's region.
fn import(session: u32, target: u32) -> RegionId {
    RegionId::new(1, SESSIONS + session * SESSIONS + target)
}

impl World {
    fn new() -> Self {
        let fabric = Local::new(LIMITS.regions_max, LIMITS.window_wrs, LIMITS.slice_bytes);
        let mut world = Self {
            engine: Engine::new(LIMITS, fabric),
            clients: Vec::new(),
            random: 1,
            now_ns: 1_000_000,
            token: 0,
            seen: BTreeSet::new(),
            finals: 0,
            gone: 0,
        };
        for session in 0..SESSIONS {
            let command = Command::AddSession {
                session: SessionId(session),
                owner: session,
                contract: Contract::of_ops(100),
            };
            inside(|| world.engine.command(command));
            for ring in [2 * session, 2 * session + 1] {
                world.add_ring(ring);
            }
            world.add_region(session);
        }
        (0..SESSIONS).for_each(|target| world.add_imports(target));
        world
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.random >> 33) % end
    }

    fn token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }

    fn add_ring(&mut self, ring: u32) {
        let entries = [32, 4][ring as usize % 2];
        let heap = Arc::new(Heap::new(entries, entries, u32::MAX - 5));
        let state =
            Box::new(Ring::new(RingId(ring), SessionId(ring / 2), Arc::clone(&heap), ring == 3));
        let token = self.token();
        inside(|| self.engine.command(Command::AddRing { ring: state, token }));
        let end = ClientEnd::new(heap);
        match self.clients.get_mut(ring as usize) {
            Some(place) => *place = end,
            None => self.clients.push(end),
        }
    }

    fn add_region(&mut self, session: u32) {
        let memory = Arc::new(Mapping::anonymous(REGION_BYTES).unwrap());
        let token = self.token();
        let command = Command::AddRegion {
            region: own(session),
            session: SessionId(session),
            bytes: REGION_BYTES,
            memory,
            token,
        };
        inside(|| self.engine.command(command));
    }

    fn add_imports(&mut self, target: u32) {
        for session in 0..SESSIONS {
            let token = self.token();
            let command = Command::AddImport {
                region: import(session, target),
                session: SessionId(session),
                target: own(target),
                rights: RIGHTS_ALL,
                token,
            };
            inside(|| self.engine.command(command));
        }
    }

    fn sqe(&mut self, ring: u32) -> Sqe {
        let session = ring / 2;
        let target = u32::try_from(self.below(SESSIONS.into())).unwrap();
        let bytes = u32::try_from(self.below(3_000)).unwrap();
        let number = self.clients[ring as usize].pushed();
        let data = Sqe {
            class: u8::try_from(self.below(4)).unwrap(),
            local_region: own(session).0,
            remote_region: import(session, target).0,
            local_offset: self.below(100) * 64,
            remote_offset: 16_384 + self.below(100) * 64,
            ..Sqe::default()
        };
        let mut sqe = match self.below(20) {
            0..8 => Sqe { opcode: Opcode::Write as u8, bytes, ..data },
            8..11 => Sqe { opcode: Opcode::Read as u8, bytes, arg: [3, 0], ..data },
            // A list of zeros: the same page again and again.
            11 => Sqe { local_offset: 32_768, arg: [200 << 32, 0], bytes: 8, ..data }
                .with(Opcode::Writev),
            12 => Sqe { local_offset: 32_768, arg: [3 << 32, 0], bytes: 8, ..data }
                .with(Opcode::Readv),
            13 => data.with(Opcode::FetchAdd),
            14 => data.with(Opcode::CmpSwap),
            15 => Sqe { arg: [number.saturating_sub(3), CANCEL_BY_NUMBER], ..Sqe::default() }
                .with(Opcode::Cancel),
            16 => Sqe { local_region: own(session).0, ..Sqe::default() }.with(Opcode::Flush),
            17 => {
                Sqe { local_region: own(session).0, bytes: 2, ..Sqe::default() }.with(Opcode::Arm)
            }
            18 => Sqe::default(),
            _ => Sqe { opcode: 77, ..data },
        };
        if self.below(5) == 0 && sqe.remote_region != 0 && sqe.opcode != 77 {
            sqe.flags |= SQE_NOTIFY;
        }
        if self.below(10) == 0 && sqe.opcode != Opcode::Arm as u8 {
            sqe.flags |= SQE_SKIP_SUCCESS;
        }
        Sqe { user_data: u64::from(sqe.opcode), ..sqe }
    }

    fn turn(&mut self) {
        self.now_ns += 1_000;
        for _ in 0..self.below(4) {
            let ring = u32::try_from(self.below(2 * u64::from(SESSIONS))).unwrap();
            let sqe = self.sqe(ring);
            let client = &mut self.clients[ring as usize];
            if client.push(sqe.to_words()).is_some() && (client.publish() || ring == 3) {
                inside(|| self.engine.wake(RingId(ring)));
            }
        }
        let now_ns = self.now_ns;
        inside(|| self.engine.turn(now_ns));
        while inside(|| self.engine.bell()).is_some() {}
        while inside(|| self.engine.event()).is_some() {}
        while let Some(reply) = inside(|| self.engine.reply()) {
            self.gone +=
                u64::from(matches!(reply, Reply::RingGone { .. } | Reply::RegionGone { .. }));
        }
        let ring = usize::try_from(self.below(2 * u64::from(SESSIONS))).unwrap();
        self.read(ring);
        if self.below(50) == 0 {
            inside(|| self.engine.fall_asleep());
        }
    }

    fn read(&mut self, ring: usize) {
        let client = &mut self.clients[ring];
        while let Some(words) = client.pop().unwrap() {
            let cqe = Cqe::from_words(words);
            if cqe.flags & CQE_MORE == 0 {
                self.finals += 1;
                self.seen.insert((u8::try_from(cqe.user_data).unwrap(), cqe.res >= 0));
            }
        }
        client.release();
    }

    /// One session's rings and region leave under load, and come again.
    fn replace(&mut self, session: u32) {
        let before = self.gone;
        for ring in [2 * session, 2 * session + 1] {
            let token = self.token();
            let mode = if self.below(2) == 0 { Wind::Drain } else { Wind::Cancel };
            let command = Command::WindRing { ring: RingId(ring), mode, token };
            inside(|| self.engine.command(command));
        }
        let imports = (0..SESSIONS).map(|at| import(at, session));
        for region in imports.chain([own(session)]) {
            let token = self.token();
            inside(|| self.engine.command(Command::RemoveRegion { region, token }));
        }
        let mut turns = 0;
        while self.gone < before + 3 + u64::from(SESSIONS) {
            self.turn();
            turns += 1;
            assert!(turns < 10_000, "a session that does not leave");
        }
        for ring in [2 * session, 2 * session + 1] {
            self.read(ring as usize);
            self.add_ring(ring);
        }
        self.add_region(session);
        self.add_imports(session);
    }
}

trait With {
    fn with(self, opcode: Opcode) -> Self;
}

impl With for Sqe {
    fn with(self, opcode: Opcode) -> Self {
        Self { opcode: opcode as u8, ..self }
    }
}

#[test]
fn the_core_allocates_nothing_once_it_is_made() {
    let mut world = World::new();
    CALLS.set(0);
    for turn in 0..TURNS {
        world.turn();
        if turn % 5_000 == 4_999 {
            let session = u32::try_from(turn / 5_000 % u64::from(SESSIONS)).unwrap();
            world.replace(session);
        }
    }
    assert_eq!(CALLS.get(), 0, "calls of the allocator inside the engine");
    // The load was what it claims to be.
    assert!(world.finals > TURNS / 2, "{} ops", world.finals);
    let served = Opcode::ALL.iter().filter(|op| !matches!(op, Opcode::Join | Opcode::Run));
    for opcode in served {
        assert!(world.seen.contains(&(*opcode as u8, true)), "{opcode:?} never succeeded");
    }
    assert!(world.seen.contains(&(77, false)) && world.gone > 100, "{}", world.gone);
}

/// The instrument itself: it counts, and only inside.
#[test]
fn the_allocator_is_watched_inside_only() {
    let before = CALLS.get();
    drop(vec![1u8; 100]);
    assert_eq!(CALLS.get(), before);
    inside(|| drop(vec![1u8; 100]));
    assert_eq!(CALLS.get(), before + 2);
}
