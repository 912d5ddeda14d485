//! The engine's core: a state machine over values, driven one bounded turn at a time.
//!
//! ```text
//! turn(now):  reap -> hear -> wind -> intake -> schedule -> post -> publish
//! ```
//!
//! Commands come in through [`Engine::command`], answers go out through [`Engine::reply`]; SQEs and
//! CQEs move through the rings' memory. Reaping first lets a full pipe refill in the same turn;
//! publishing last costs one release a ring. Hearing is of peers, if there are any. Every loop
//! has a budget.
//!
//! **Invariants**: every SQE taken gets one final CQE, unless its ring is faulted or it asked to
//! skip a success; credits taken = requests in the fabric; an op's references to its regions are
//! held from intake to its final CQE; nothing is allocated after [`Engine::new`] but by whoever
//! makes a command.
//! **Deliberately absent**: clocks, threads, descriptors, locks, names, secrets.

mod abroad;
#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
mod audit;
mod barrier;
mod burst;
mod caps;
mod chain;
mod command;
mod finish;
mod fold;
#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
pub(crate) mod graph;
mod intake;
#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
mod laws;
mod lines;
mod meter;
mod owner;
mod pages;
mod rails;
mod record;
mod reroute;
mod returned;
mod schedule;
mod search;
mod started;
mod tables;
mod tent;
#[cfg(all(test, not(verbring_loom)))]
mod tests;
mod ties;
mod untaken;
mod validate;
mod why;
mod winding;
mod wire;

use std::collections::VecDeque;

use crate::abi::{Class, Counter, PAGES_MAX, TelemetryHeader};
use crate::edges::Edges;
use crate::fabric::{Done, Fabric, Request};
use crate::fold::Folds;
use crate::ids::{RecordId, RegionId, RingId};
use crate::ledger::{LANE, Ledger, List};
use crate::ring::Memory;
use crate::sched::ahead::Ahead;
use crate::sched::credits::Window;
use crate::sched::pace::{GRAIN_BYTES, Pace};
use crate::sched::{Bounds, Mode, Policy, Scheduler, Shape};
use crate::telemetry::{Page, Recorder};

pub use command::{Command, Event, Reply, Why};
pub use tables::{Ring, Wind};
#[cfg(not(verbring_loom))]
pub(crate) use validate::{FLAGS_SERVED, OPCODES_SERVED};

use finish::Leavers;
use lines::Abroad;
use meter::Meter;
use owner::Owner;
use pages::PagePool;
use search::Query;
use tables::{Posts, Region, Session, Share};
use ties::LIVE_MAX;

/// Sizes of an engine's tables, and its budgets. All are fixed at start.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The engine's number.
    pub engine: u8,
    /// Ops in flight.
    pub records: u32,
    /// Page-list blocks.
    pub list_blocks: u32,
    /// Edges of ops that wait.
    pub edges: u32,
    /// Sessions.
    pub sessions_max: u32,
    /// Rings.
    pub rings_max: u32,
    /// Regions and imports.
    pub regions_max: u32,
    /// Requests in flight.
    pub window_wrs: u32,
    /// Bytes in flight.
    pub window_bytes: u64,
    /// Bytes of a slice.
    pub slice_bytes: u32,
    /// Bytes given to rails in one turn: once it was so many, and what the cards move in a
    /// millisecond, no more is begun with. The rest of what windows hold goes in the turns after.
    /// So a device whose driver moves the bytes while it posts (Soft-RoCE) keeps the engine from
    /// rings and completions for no longer than these take. Chains that go on in a turn have as
    /// many beside.
    pub turn_bytes: u64,
    /// SQEs taken from one ring in a turn.
    pub intake_budget: u32,
    /// Nanoseconds without an SQE after which a ring leaves the poll set.
    pub ring_idle_ns: u64,
    /// Nanoseconds without any rail to a peer that works, after which ops that wait for one end.
    pub cut_off_ns: u64,
    /// Which op goes next, and what bounds hold beside the windows.
    pub policy: Policy,
}

impl Limits {
    fn check(&self) {
        let some = self.slice_bytes > 0 && self.turn_bytes > 0 && self.intake_budget > 0;
        assert!(some, "or nothing would ever move");
        let longest = PagePool::blocks_for(PAGES_MAX);
        // Half of the pool is set aside for each session's part.
        assert!(self.list_blocks >= 2 * longest, "or the longest list could never be taken");
        assert!(self.edges >= 2 * LIVE_MAX, "or an op might never have its edges");
        assert!(self.regions_max <= 1 << RegionId::INDEX_BITS, "or a place would have no id");
    }
}

/// What a turn found to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// SQEs taken.
    pub taken: u32,
    /// Requests completed.
    pub reaped: u32,
    /// Requests posted.
    pub posted: u32,
    /// Something is under way that a further turn may move, though nothing came in.
    pub busy: bool,
}

impl Turn {
    /// True if the turn moved something, or another one may.
    #[must_use]
    pub fn worked(&self) -> bool {
        self.busy || self.taken > 0 || self.reaped > 0 || self.posted > 0
    }
}

/// What wakes an engine that sleeps, beside bells and commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The completion of work on a rail, or an arrival: the host arms the device's channel, and
    /// makes one more turn before it sleeps.
    pub completions: bool,
    /// Time itself: a rail is in doubt or being rebuilt, or a queued op has a deadline. The host
    /// makes a turn every while.
    pub timed: bool,
}

/// The core of one engine, over a fabric and a kind of ring memory.
#[derive(Debug)]
pub struct Engine<F: Fabric, M> {
    limits: Limits,
    fabric: F,
    ledger: Ledger,
    /// Ops that stay on this host, and those of them that were let in as a whole.
    lanes: Scheduler,
    admitted: List<LANE>,
    abroad: Abroad,
    window: Window,
    ahead: Ahead,
    pace: Pace,
    posts: Posts,
    pages: PagePool,
    /// What may be folded, and what is.
    folds: Folds,
    sessions: Vec<Session>,
    /// Where what is known of ended ops is left, by session.
    recorders: Vec<Option<Recorder>>,
    /// What is counted for the telemetry page.
    meter: Meter,
    owners: Vec<Owner>,
    rings: Vec<Option<Box<Ring<M>>>>,
    regions: Vec<Region>,
    record_share: Share,
    block_share: Share,
    edge_share: Share,
    edges: Edges,
    /// Rings with a DRAIN that may be the first of its ring's ops now.
    drains: Vec<u32>,
    /// Ops that wait, and have risen: those that they wait for are to rise, too.
    raising: List<LANE>,
    /// Requests of this host may be chained; and whose was posted last there.
    chains: bool,
    last_here: Option<RecordId>,
    /// Rings with a [`wire::Lift`].
    lifts: Vec<u32>,
    /// Rings that are looked at each turn.
    polled: Vec<u32>,
    poll_from: usize,
    /// Rings that sleep with SQEs that could not be taken.
    blocked: Vec<u32>,
    /// When the first of them fell asleep.
    blocked_ns: u64,
    /// Rings with CQEs or frees to publish.
    dirty: Vec<u32>,
    /// Rings that were published in the last turn, and whose bells may have been asked for
    /// meanwhile.
    unsure: Vec<u32>,
    /// Rings being wound up.
    winding: Vec<u32>,
    /// Regions being taken back that have ARMs.
    disarming: Vec<u32>,
    /// Rings whose client is to be woken.
    bells: Vec<u32>,
    flushes: List<LANE>,
    query: Option<Query>,
    replies: VecDeque<Reply<F::Memory, M>>,
    events: VecDeque<Event>,
    /// What the next doorbell gives to the fabric, in the first places.
    batch: Box<[Request]>,
    /// Ops that have ended, and whose holdings are to go back.
    leavers: Leavers,
    done: Vec<Done>,
    /// Ops in lanes that have a deadline, and where the sweep for them stands.
    deadlines: u32,
    sweep_from: u32,
    /// When its last pass began.
    swept_ns: u64,
    sequence: u64,
    /// The class of the op that could not go on last, and held others back: on this host, and
    /// towards peers.
    held: [Option<Class>; 2],
    /// Regions withdrawn so far, by revocation or removal: an op that was checked at the same
    /// count need not be checked again.
    withdrawn: u64,
    turns: u64,
    strays: u64,
    /// Counters of sessions that are gone.
    departed: [u64; Counter::COUNT],
    now_ns: u64,
}

/// Replies that may wait for the host; commands are not taken beyond.
const REPLIES_MAX: usize = 1024;
/// With more rings in the poll set, a whole turn is made to look at them.
const STIRRED_MAX: usize = 8;
/// Rings looked at in one turn.
const RINGS_PER_TURN: usize = 256;
/// A ring that sleeps with SQEs is looked at again after this long, if anything is awake.
const BLOCKED_LOOK_NS: u64 = 1_000_000;
/// With peers, the time between two sweeps for deadlines of ops that are not at a head.
const SWEEP_EVERY_NS: u64 = 1_000_000;
/// Records looked at for searches, barriers and sweeps in one turn.
const STEPS_PER_TURN: u32 = 256;

/// The window of this host's own device. Without scheduling the device's depth is all that bounds.
fn near_window(limits: &Limits, depth: u32) -> Window {
    let Policy { mode, window_ops, reserve_ops, reserve_bytes, .. } = limits.policy;
    let bounds = Bounds { ops: window_ops, wrs: depth, bytes: limits.window_bytes };
    if mode == Mode::Direct {
        return Window::new(Bounds { wrs: depth, ..Bounds::NONE });
    }
    Window::with_reserve(bounds, reserve_ops, reserve_bytes)
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Makes an engine; everything it will ever need is allocated here.
    ///
    /// # Panics
    /// If limits contradict each other.
    pub fn new(limits: Limits, fabric: F) -> Self {
        limits.check();
        let depth = fabric.limits().depth.min(limits.window_wrs);
        let rings = limits.rings_max as usize;
        let abroad = Abroad::depth(&fabric);
        let batch = depth as usize + 1;
        let in_fabric = depth + abroad;
        let policy = &limits.policy;
        let shape =
            Shape { sessions: limits.sessions_max, peers: 1, window_bytes: limits.window_bytes };
        let window = near_window(&limits, depth);
        Self {
            ledger: Ledger::new(limits.engine, limits.records),
            lanes: Scheduler::new(policy, shape),
            admitted: List::EMPTY,
            abroad: Abroad::new(&fabric, limits.sessions_max, limits.slice_bytes, policy),
            window,
            ahead: Ahead::new(depth),
            pace: Pace::new(limits.slice_bytes, policy.slice_ns, GRAIN_BYTES),
            // What was handed back keeps its place until it is posted again.
            posts: Posts::new(depth, 4 * abroad),
            pages: PagePool::new(limits.list_blocks),
            folds: Folds::new(limits.records, policy.coalesce, policy.coalesce_key),
            sessions: vec![Session::NONE; limits.sessions_max as usize],
            recorders: (0..limits.sessions_max).map(|_| None).collect(),
            meter: Meter::new(fabric.rails(), limits.sessions_max),
            owners: vec![Owner::NONE; limits.sessions_max as usize],
            rings: (0..rings).map(|_| None).collect(),
            regions: vec![Region::NONE; limits.regions_max as usize],
            record_share: Share::new(limits.records, limits.sessions_max),
            block_share: Share::new(limits.list_blocks, limits.sessions_max),
            edge_share: Share::new(limits.edges, limits.sessions_max),
            edges: Edges::new(limits.edges),
            drains: Vec::with_capacity(rings),
            raising: List::EMPTY,
            lifts: Vec::with_capacity(rings),
            chains: fabric.limits().chain_max > 1 && policy.mode != Mode::Tent,
            last_here: None,
            polled: Vec::with_capacity(rings),
            poll_from: 0,
            blocked: Vec::with_capacity(rings),
            blocked_ns: 0,
            dirty: Vec::with_capacity(rings),
            unsure: Vec::with_capacity(rings),
            winding: Vec::with_capacity(rings),
            disarming: Vec::with_capacity(limits.regions_max as usize),
            // At most one of this turn's publication, and one of the last one's.
            bells: Vec::with_capacity(2 * rings),
            flushes: List::default(),
            query: None,
            // Beside those to commands just taken: one for each ring and region that is going, and
            // for each import that is withdrawn.
            replies: VecDeque::with_capacity(REPLIES_MAX + rings + 2 * limits.regions_max as usize),
            // A region may be revoked, and then removed.
            events: VecDeque::with_capacity(rings + 2 * limits.regions_max as usize),
            // One more than fits, so that it is the window that tells when it is full.
            batch: vec![Request::NONE; batch].into(),
            leavers: Leavers::NONE,
            done: Vec::with_capacity(in_fabric as usize),
            deadlines: 0,
            sweep_from: 0,
            swept_ns: 0,
            sequence: 0,
            held: [None; 2],
            withdrawn: 0,
            turns: 0,
            strays: 0,
            departed: [0; Counter::COUNT],
            now_ns: 0,
            limits,
            fabric,
        }
    }

    /// Makes one bounded, non-blocking pass. `now_ns` is monotonic.
    pub fn turn(&mut self, now_ns: u64) -> Turn {
        self.turn_by(now_ns, || now_ns)
    }

    /// [`Engine::turn`] that asks for the time once more if a device was done with something by the
    /// time that a post returned: that may have taken long.
    pub fn turn_by(&mut self, now_ns: u64, clock: impl FnOnce() -> u64) -> Turn {
        self.now_ns = now_ns.max(self.now_ns);
        self.turns += 1;
        let abroad = self.abroad();
        let open = self.ledger.open_count();
        let mut turn = Turn { reaped: self.reap(), ..Turn::default() };
        if self.folds.parts() {
            self.part();
        }
        if abroad {
            self.hear_arrivals();
        }
        self.step_purge();
        if self.blocked() {
            self.wake_blocked();
        }
        self.wind();
        self.step_cancel_query();
        turn.taken = self.intake();
        let flushed = self.step_flushes();
        self.step_ties();
        self.sweep_deadlines();
        self.age();
        turn.posted = self.schedule();
        if abroad {
            let sent = self.schedule_abroad();
            turn.posted += sent;
            // Some devices have done it all by the time that the post returns.
            turn.reaped += if sent > 0 { self.reap_abroad(clock) } else { 0 };
            self.abroad.moved = flushed || self.ledger.open_count() != open;
        }
        self.step_why_query();
        self.publish();
        self.meter.publish(self.now_ns);
        turn.busy = self.busy();
        turn
    }

    /// True if a further turn may move something that is already here.
    fn busy(&self) -> bool {
        let here = !self.lanes.is_empty()
            || !self.admitted.is_empty()
            || self.window.wrs() > 0
            || !self.unsure.is_empty()
            || !self.disarming.is_empty()
            || self.folds.parts()
            || self.query.is_some()
            || self.ties_busy()
            || self.abroad.purge.is_some()
            || !self.replies.is_empty();
        // Without peers whatever a FLUSH or a ring's end waits for is under way here.
        here || if self.abroad() {
            self.busy_abroad()
        } else {
            !self.flushes.is_empty() || !self.winding.is_empty()
        }
    }

    /// The next ring whose client's bell must be rung.
    #[inline]
    pub fn bell(&mut self) -> Option<RingId> {
        self.bells.pop().map(RingId)
    }

    /// The next answer to a command.
    pub fn reply(&mut self) -> Option<Reply<F::Memory, M>> {
        self.replies.pop_front()
    }

    /// The next thing that happened unasked.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// True if there is a reply or an event to be heard.
    #[inline]
    pub fn has_news(&self) -> bool {
        !self.replies.is_empty() || !self.events.is_empty()
    }

    /// True if a turn may find new SQEs: a look at the tails alone, of a few rings.
    #[inline]
    pub fn stirred(&self) -> bool {
        self.polled.len() > STIRRED_MAX
            || self.polled.iter().any(|&id| {
                let ring = self.rings[id as usize].as_ref();
                ring.is_some_and(|ring| !ring.fenceless && ring.end.stirred())
            })
    }

    /// True if another command can be taken.
    #[inline]
    pub fn accepts(&self) -> bool {
        self.query.is_none() && self.replies.len() < REPLIES_MAX / 2
    }

    /// The fabric, for whoever adopts, connects and releases its rails.
    pub fn fabric_mut(&mut self) -> &mut F {
        &mut self.fabric
    }

    /// How this engine's telemetry page is laid out; identity fields are zero.
    pub fn telemetry_header(&self) -> &TelemetryHeader {
        self.meter.header()
    }

    /// From now on what is counted is copied to this page.
    ///
    /// # Panics
    /// If it is laid out otherwise than [`Engine::telemetry_header`].
    pub fn keep_telemetry(&mut self, page: Page) {
        self.meter.tallies().copy_to(page);
    }

    /// What a host that sleeps must attend to beside bells and commands.
    pub fn watches(&self) -> Watch {
        Watch {
            completions: self.abroad(),
            timed: self.abroad()
                && (self.fabric.restless() || self.deadlines > 0 || self.abroad.cut_off != 0),
        }
    }

    /// Notifications of peers that named what they were not lent. They were dropped.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    /// Turns made.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Puts every ring to sleep, for a host that wants to wait for bells; false if SQEs came in
    /// the meantime, or a ring turned out broken: then make another turn.
    pub fn fall_asleep(&mut self) -> bool {
        if !self.dirty.is_empty() || self.busy() {
            return false;
        }
        while let Some(&ring) = self.polled.last() {
            if !self.park(ring) {
                return false;
            }
        }
        self.meter.tallies().publish_all();
        true
    }

    /// Puts a ring whose bell was rung back into the poll set.
    pub fn wake(&mut self, id: RingId) {
        let now_ns = self.now_ns;
        let Some(ring) = self.rings.get_mut(id.0 as usize).and_then(Option::as_mut) else { return };
        ring.rung = true;
        self.blocked.retain(|&blocked| blocked != id.0);
        if ring.polled || ring.phase != tables::Phase::Live {
            return;
        }
        ring.end.wake();
        ring.polled = true;
        ring.last_active_ns = now_ns;
        self.polled.push(id.0);
    }

    /// Takes a ring out of the poll set, asleep; false if it has SQEs, or was found broken.
    fn park(&mut self, id: u32) -> bool {
        let Some(ring) = self.rings[id as usize].as_mut() else { return false };
        if ring.search.is_some() || (ring.fenceless && ring.rung) {
            return false;
        }
        if ring.blocked {
            // What it waits for comes from elsewhere: its client reads CQEs, or others finish.
            ring.end.ask_for_bell();
            self.unpoll(id);
            if self.blocked.is_empty() {
                self.blocked_ns = self.now_ns;
            }
            self.blocked.push(id);
            return true;
        }
        if ring.end.waiting() > 0 {
            return false;
        }
        if ring.fenceless {
            ring.end.ask_for_bell();
            self.unpoll(id);
            return true;
        }
        match ring.end.fall_asleep() {
            Ok(true) => {
                self.unpoll(id);
                true
            }
            Ok(false) => false,
            Err(fault) => {
                self.fault(id, fault);
                false
            }
        }
    }

    /// True if a ring sleeps with SQEs that could not be taken. Nobody is bound to ring its bell
    /// for that, so a host that sleeps makes a turn now and then.
    pub fn blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    /// Looks at the rings that sleep with SQEs again, once they have done so for a while.
    fn wake_blocked(&mut self) {
        if self.now_ns < self.blocked_ns + BLOCKED_LOOK_NS {
            return;
        }
        let mut rings = std::mem::take(&mut self.blocked);
        rings.drain(..).for_each(|ring| self.wake(RingId(ring)));
        self.blocked = rings;
    }

    fn unpoll(&mut self, id: u32) {
        if let Some(ring) = self.rings[id as usize].as_mut() {
            ring.polled = false;
            let owner = self.sessions[ring.session.0 as usize].owner;
            self.owners[owner as usize].pass_by(id);
        }
        self.blocked.retain(|&blocked| blocked != id);
        // Whoever puts all rings to sleep begins with the last.
        if let Some(at) = self.polled.iter().rposition(|&polled| polled == id) {
            self.polled.swap_remove(at);
        }
    }

    fn ring(&mut self, id: RingId) -> &mut Ring<M> {
        match self.rings[id.0 as usize].as_mut() {
            Some(ring) => ring,
            None => unreachable!("a record outlived its ring"),
        }
    }

    fn touch(&mut self, id: RingId) {
        let ring = self.ring(id);
        if !ring.dirty {
            ring.dirty = true;
            self.dirty.push(id.0);
        }
    }
}
