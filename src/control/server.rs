//! The control thread: accepts sessions, gives meaning to their messages, asks the engine, and
//! cleans up after whoever leaves, in whatever way.
//!
//! One thread, one epoll set, no locks. What is slow or may hang runs as a job (`jobs`); what the
//! engine must do is a command, answered later under a token. Until then the session's socket is
//! not read: one request under way a session, so no reply can ever pile up.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slab::Slab;
use tracing::{info, warn};

use super::card::Card;
use super::fds;
use super::jobs::{Finished, Jobs, Outcome};
use super::objects::{ExportEntry, RegionPlace, RingMade, RingPlace};
use super::peers::{self, Peers};
use super::places::{Places, RegionIds};
use super::registrations::CardFor;
use super::sessions::{Owner, Session};
use super::telemetry::TelemetryMade;
use super::wire::Refusal;
use crate::abi::{Detail, Kind, SegmentHeader, errno};
use crate::clock;
use crate::engine::{Command, Event, Reply, Wind};
use crate::fabric::Held;
use crate::gate::{Arrived, Gate};
use crate::host::Config;
use crate::host::link::{Answer, Link, Order, RingBells};
use crate::ids::RingId;
use crate::ring::Mapped;
use crate::shm::Mapping;

/// What a token stands for: what to do when the engine answers.
#[derive(Debug)]
pub(super) enum Pending {
    /// MAPPED of a ring.
    RingLive { session: usize, ring: u32, tag: u64 },
    /// MAPPED or REGION: the region is live.
    RegionLive { session: usize, region: u32, tag: u64, kind: Kind },
    /// IMPORT.
    ImportLive { session: usize, region: u32, rights: u32, tag: u64 },
    /// RELEASE of a ring, the end of its session, or shutting down.
    RingWound { session: usize, ring: u32, asker: Asker },
    /// RELEASE of a region or import, or the end of its session.
    RegionRemoved { session: usize, region: u32, tag: Option<u64> },
    /// CANCEL.
    Cancel { session: usize, tag: u64 },
    /// WHY.
    Why { session: usize, tag: u64 },
    /// STATS.
    Stats { session: usize, tag: u64, engine_scope: bool },
    /// The session is gone from the core.
    SessionRemoved { session: usize },
    /// Loans, imports and homes.
    Peers(peers::OrderFor),
}

/// Who wants a ring wound up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// RELEASE: it is answered.
    Release { tag: u64 },
    /// The session's end, which waits for it.
    Departure,
    /// Shutting down. No session waits for that answer, also not one that ends meanwhile and asks
    /// again.
    Shutdown,
}

/// What a job is for.
#[derive(Debug)]
pub(super) enum JobFor {
    /// RING.
    Ring { session: usize, ring: u32, tag: u64, header: SegmentHeader, fenceless: bool },
    /// MAPPED of a ring.
    RingMapped { session: usize, ring: u32, tag: u64, made: RingMade },
    /// REGION.
    Region { session: usize, region: u32, tag: u64, source: RegionSource },
    /// MAPPED of a region.
    RegionMapped { session: usize, region: u32, tag: u64, mapping: Arc<Mapping> },
    /// RECORDER.
    Recorder { session: usize, tag: u64 },
    /// A message with descriptors, or their end.
    Aside { session: usize },
    /// A peer that cannot have a session.
    TurnedAway,
    /// On its way to another engine.
    Reach { connection: usize },
    /// Another engine's socket, to be closed.
    PeerSocket,
}

/// Where a region's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RegionSource {
    Allocated,
    Memfd,
}

/// What the epoll set tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Listener,
    Bell,
    Socket(usize),
    Death(usize),
    /// Another engine's socket.
    Peer(usize),
    /// Another engine's process.
    PeerDeath(usize),
}

impl Mark {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Bell => 1,
            Self::Socket(session) => 2 + 4 * session as u64,
            Self::Death(session) => 3 + 4 * session as u64,
            Self::Peer(connection) => 4 + 4 * connection as u64,
            Self::PeerDeath(connection) => 5 + 4 * connection as u64,
        }
    }

    fn unpack(mark: u64) -> Self {
        let Some(rest) = mark.checked_sub(2) else {
            return if mark == 0 { Self::Listener } else { Self::Bell };
        };
        let key = usize::try_from(rest / 4).unwrap_or(usize::MAX);
        match rest % 4 {
            0 => Self::Socket(key),
            1 => Self::Death(key),
            2 => Self::Peer(key),
            _ => Self::PeerDeath(key),
        }
    }
}

/// How far shutting down has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    No,
    /// Rings run to their end, until then.
    Draining {
        until_ns: u64,
    },
    /// Sessions are being ended.
    Ending,
}

/// What other threads may ask of the control thread.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Serve the other end of this socket.
    Attach(OwnedFd),
    /// Another host's engine has come in at the gate.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "nobody comes in without net"))]
    Arrived(Arrived),
    /// Drain, then end.
    Shutdown,
}

/// The control thread's state.
pub(crate) struct Server {
    pub(super) config: Config,
    pub(super) link: Arc<Link>,
    pub(super) boot_id: [u64; 2],
    pub(super) epoll: Epoll,
    listener: Option<(OwnedFd, PathBuf)>,
    asks: std::sync::mpsc::Receiver<Ask>,
    pub(super) sessions: Slab<Session>,
    pub(super) owners: HashMap<u32, Owner>,
    pub(super) owner_places: Places,
    pub(super) rings: Vec<Option<RingPlace>>,
    pub(super) ring_places: Places,
    pub(super) regions: HashMap<u32, RegionPlace>,
    pub(super) region_ids: RegionIds,
    pub(super) exports: HashMap<(u32, String), ExportEntry>,
    pub(super) pending: Slab<Pending>,
    pub(super) jobs_for: Slab<JobFor>,
    pub(super) jobs: Jobs,
    pub(super) telemetry: TelemetryMade,
    pub(super) card: Option<Card>,
    /// The way to other hosts, if there is a key for it.
    pub(super) gate: Option<Gate>,
    pub(super) card_for: Slab<CardFor>,
    pub(super) peers: Peers,
    /// Commands that found the queue full.
    backlog: VecDeque<Order>,
    pub(super) evicted: u64,
    accepts: Accepts,
    /// Peers that are being turned away.
    turned_away: usize,
    shutdown: Shutdown,
}

/// Whether sessions are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepts {
    Now,
    /// No descriptor was free; asked again after a while.
    Later,
}

/// The ways in and out of an engine.
#[derive(Debug)]
pub(crate) struct Ways {
    /// For sessions, and its path.
    pub(crate) listener: Option<(OwnedFd, PathBuf)>,
    /// To peers' memory.
    pub(crate) card: Option<Card>,
    /// To other hosts.
    pub(crate) gate: Option<Gate>,
}

/// Peers turned away at a time; each has a thread, and may make it wait.
const TURNED_AWAY_MAX: usize = 16;

impl Server {
    pub(crate) fn new(
        config: Config,
        link: Arc<Link>,
        boot_id: [u64; 2],
        telemetry: TelemetryMade,
        asks: std::sync::mpsc::Receiver<Ask>,
        ways: Ways,
    ) -> Result<Self, Errno> {
        let Ways { listener, card, gate } = ways;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN;
        epoll.add(&link.control_bell, EpollEvent::new(interest, Mark::Bell.pack()))?;
        if let Some((socket, _)) = &listener {
            epoll.add(socket, EpollEvent::new(interest, Mark::Listener.pack()))?;
        }
        let waker = Arc::clone(&link);
        Ok(Self {
            rings: (0..config.rings_max).map(|_| None).collect(),
            ring_places: Places::new(config.rings_max),
            regions: HashMap::new(),
            region_ids: RegionIds::new(config.regions_max),
            owner_places: Places::new(config.sessions_max),
            sessions: Slab::with_capacity(config.sessions_max as usize),
            owners: HashMap::new(),
            exports: HashMap::new(),
            pending: Slab::new(),
            jobs_for: Slab::new(),
            jobs: Jobs::new(Arc::new(move || waker.kick_control())),
            peers: Peers::new(card.as_ref()),
            card,
            gate,
            card_for: Slab::new(),
            backlog: VecDeque::new(),
            evicted: 0,
            accepts: Accepts::Now,
            turned_away: 0,
            shutdown: Shutdown::No,
            config,
            link,
            boot_id,
            telemetry,
            epoll,
            listener,
            asks,
        })
    }

    /// Serves until shut down, or until the engine thread is gone.
    pub(crate) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        self.join_home();
        loop {
            let timeout = self.timeout();
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => continue,
                other => other.unwrap_or(0),
            };
            if self.accepts == Accepts::Later {
                self.accepts = Accepts::Now;
                self.listen_for_sessions();
            }
            for event in &events[..count] {
                match Mark::unpack(event.data()) {
                    Mark::Listener => self.accept(),
                    Mark::Bell => {
                        let _ = self.link.control_bell.read();
                    }
                    Mark::Socket(session) => self.readable(session),
                    Mark::Death(session) => self.end_session(session, "its process is gone"),
                    Mark::Peer(connection) => self.peer_ready(connection, event.events()),
                    Mark::PeerDeath(connection) => self.peer_died(connection),
                }
            }
            self.hear();
            self.unthrottle();
            self.lose_overdue();
            if self.link.dead.load(Ordering::Acquire) {
                warn!("the engine thread is gone; ending all sessions");
                break;
            }
            if self.step_shutdown() {
                break;
            }
        }
        self.unlisten();
    }

    fn timeout(&self) -> EpollTimeout {
        let throttled = self.sessions.iter().any(|(_, session)| session.throttled);
        match self.shutdown {
            Shutdown::Draining { .. } => EpollTimeout::from(20u8),
            _ if throttled || self.accepts == Accepts::Later => EpollTimeout::from(50u8),
            _ => match self.peers_due_ms() {
                Some(ms) => EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX)),
                None => EpollTimeout::NONE,
            },
        }
    }

    fn accept(&mut self) {
        let Some((listener, _)) = &self.listener else { return };
        match fds::accept(listener.as_fd()) {
            Ok(socket) => self.attach(socket),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                // The peer stays where it is, so that asking again at once would go round and
                // round.
                warn!("no descriptor is free for another session");
                self.accepts = Accepts::Later;
                self.listen_for_sessions();
            }
            Err(_) => {}
        }
    }

    /// Has a peer told that it cannot have a session. A bounded number at a time: until one is
    /// done nobody else is let in.
    pub(super) fn turn_away(&mut self, socket: OwnedFd, refusal: Refusal) {
        let job = self.jobs_for.insert(JobFor::TurnedAway);
        self.jobs.turn_away(job, socket, refusal);
        self.turned_away += 1;
        self.listen_for_sessions();
    }

    fn turned_away(&mut self) {
        self.turned_away -= 1;
        self.listen_for_sessions();
    }

    /// Listens for sessions, or stops, as our state asks.
    fn listen_for_sessions(&self) {
        let Some((listener, _)) = &self.listener else { return };
        let now = self.accepts == Accepts::Now && self.turned_away < TURNED_AWAY_MAX;
        let interest = if now { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        let _ = self.epoll.modify(listener, &mut EpollEvent::new(interest, Mark::Listener.pack()));
    }

    pub(super) fn watch_socket(&self, session: usize, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Mark::Socket(session).pack());
        self.epoll.add(socket, event)
    }

    pub(super) fn watch_death(&self, session: usize, pidfd: BorrowedFd<'_>) -> Result<(), Errno> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Mark::Death(session).pack());
        self.epoll.add(pidfd, event)
    }

    /// Sends the engine a command.
    pub(super) fn order(&mut self, command: Command<Held, Mapped>) {
        self.order_with(command, None);
    }

    pub(super) fn order_with(&mut self, command: Command<Held, Mapped>, bells: Option<RingBells>) {
        self.pass(Order::Command { command, bells });
    }

    /// Sends the engine thread an order, behind those that wait for room.
    pub(super) fn pass(&mut self, order: Order) {
        self.backlog.push_back(order);
        self.forward();
    }

    fn forward(&mut self) {
        while let Some(order) = self.backlog.pop_front() {
            if let Err(order) = self.link.orders.push(order) {
                self.backlog.push_front(order);
                break;
            }
        }
        self.link.kick_engine();
    }

    /// Takes what others have left: asks, finished jobs, the engine's answers.
    fn hear(&mut self) {
        while let Ok(ask) = self.asks.try_recv() {
            match ask {
                Ask::Attach(socket) => self.attach(socket),
                Ask::Arrived(arrived) => self.arrived(arrived),
                Ask::Shutdown => self.begin_shutdown(),
            }
        }
        while let Some(Finished { token, outcome }) = self.jobs.finished() {
            match self.jobs_for.remove(token) {
                JobFor::Aside { session } => self.aside_over(session, outcome),
                JobFor::TurnedAway => self.turned_away(),
                JobFor::PeerSocket => {}
                JobFor::Reach { connection } => {
                    let came = match outcome {
                        Outcome::Reached(came) => came,
                        _ => {
                            let text = "no thread is free to connect with; try again";
                            Err(Refusal::new(errno::ENOMEM, Detail::None, text))
                        }
                    };
                    self.reached(connection, came);
                }
                job => self.job_finished(job, outcome),
            }
        }
        self.hear_card();
        while let Some(answer) = self.link.answers.pop() {
            match answer {
                Answer::Reply(reply) => self.answered(reply),
                Answer::Event(event) => self.happened(event),
                Answer::Bells(ring, bells) => {
                    if let Some(session) = self.session_of(ring) {
                        self.close_bells(session, bells);
                    }
                }
                Answer::Strays(ring) => {
                    if let Some(session) = self.session_of(ring) {
                        self.evict(session, Detail::Descriptors, "descriptors came over a bell");
                    }
                }
                Answer::Wish(wish) => self.rail_wished(wish),
                Answer::NotAdopted { rail, pair, error } => self.rail_refused(rail, pair, &error),
                Answer::Released { rail, pair } => self.rail_released(rail, pair),
            }
        }
        if !self.backlog.is_empty() {
            self.forward();
        }
    }

    fn session_of(&self, ring: RingId) -> Option<usize> {
        self.rings[ring.0 as usize].as_ref().map(|place| place.session)
    }

    fn answered(&mut self, reply: Reply<Held, Mapped>) {
        let token = match &reply {
            Reply::Done { token }
            | Reply::Failed { token, .. }
            | Reply::RingGone { token, .. }
            | Reply::RegionGone { token, .. }
            | Reply::Cancelled { token, .. }
            | Reply::Why { token, .. }
            | Reply::Stats { token, .. } => *token,
        };
        let Some(key) = usize::try_from(token).ok().filter(|&key| self.pending.contains(key))
        else {
            return;
        };
        let pending = self.pending.remove(key);
        self.continue_with(pending, reply);
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Revoked { region } => {
                self.exports.retain(|_, export| export.region != region);
                self.region_revoked(region);
            }
            Event::Faulted { ring, fault } => {
                let session = self.session_of(ring);
                warn!(ring = ring.0, session, %fault, "a client broke its ring");
            }
        }
    }

    fn begin_shutdown(&mut self) {
        if self.shutdown != Shutdown::No {
            return;
        }
        info!(sessions = self.sessions.len(), "draining");
        self.unlisten();
        let until_ns = clock::now_ns() + u64::from(self.config.drain_ms) * 1_000_000;
        self.shutdown = Shutdown::Draining { until_ns };
        let live: Vec<(u32, usize)> = (0u32..)
            .zip(&self.rings)
            .filter_map(|(id, ring)| {
                ring.as_ref().filter(|ring| ring.live()).map(|r| (id, r.session))
            })
            .collect();
        for (ring, session) in live {
            self.wind_ring(session, ring, Wind::Drain, Asker::Shutdown);
        }
    }

    /// Moves the shutdown on; true when everything is over.
    fn step_shutdown(&mut self) -> bool {
        match self.shutdown {
            Shutdown::No => false,
            Shutdown::Draining { until_ns } => {
                let drained = !self.rings.iter().flatten().any(|ring| ring.winding);
                if drained || clock::now_ns() >= until_ns {
                    self.shutdown = Shutdown::Ending;
                    let all: Vec<usize> = self.sessions.iter().map(|(key, _)| key).collect();
                    for session in all {
                        self.end_session(session, "the engine is shutting down");
                    }
                    // What still waits for another engine ends with this.
                    self.lose_all("the engine is shutting down");
                    return self.over();
                }
                false
            }
            Shutdown::Ending => self.over(),
        }
    }

    /// Nothing new is begun any more.
    pub(super) fn ending(&self) -> bool {
        self.shutdown != Shutdown::No
    }

    fn over(&mut self) -> bool {
        if !self.sessions.is_empty() {
            return false;
        }
        self.link.stop.store(true, Ordering::Release);
        self.link.kick_engine();
        true
    }

    fn unlisten(&mut self) {
        if let Some((socket, path)) = self.listener.take() {
            let _ = self.epoll.delete(&socket);
            let _ = std::fs::remove_file(path);
        }
    }

    /// Asks the engine to wind up a live ring.
    pub(super) fn wind_ring(&mut self, session: usize, ring: u32, mode: Wind, asker: Asker) {
        if let Some(place) = self.rings[ring as usize].as_mut() {
            place.winding = true;
        }
        let pending = Pending::RingWound { session, ring, asker };
        let token = self.pending.insert(pending) as u64;
        self.order(Command::WindRing { ring: RingId(ring), mode, token });
    }

    /// Ends a session for breaking a rule of the socket.
    pub(super) fn evict(&mut self, session: usize, detail: Detail, why: &str) {
        if self.sessions.get(session).is_none_or(|session| session.ending) {
            return;
        }
        self.evicted += 1;
        warn!(session, ?detail, why, "ending a session that broke a rule");
        self.end_session(session, why);
    }
}
