//! What the control threads ask of the engine, and what it answers.

use crate::abi::{Class, Counter, Detail, Opcode, errno};
use crate::fabric::Fabric;
use crate::ids::{RecordId, RegionId, RingId, SessionId};
use crate::ledger::NIL;
use crate::ring::{Fault, Memory};

use super::Engine;
use super::search::{Query, Search};
use super::tables::{Region, RegionKind, Ring, Session, Wind};
use super::validate::current;

/// A request to the engine. Places and ids are chosen by the caller, who owns the numbering.
#[derive(Debug)]
#[non_exhaustive]
pub enum Command<Mem, M> {
    /// Opens a session. Not answered.
    AddSession {
        /// Its place.
        session: SessionId,
        /// The uid's place: sessions with the same one share `ops_max`.
        owner: u32,
        /// Ops in flight of that uid.
        ops_max: u32,
        /// Its most urgent class.
        ceiling: Class,
    },
    /// Ends a session whose rings and regions are gone. Answered by Done.
    RemoveSession {
        /// Its place.
        session: SessionId,
        /// Comes back in the answer.
        token: u64,
    },
    /// Makes a ring live. Answered by Done.
    AddRing {
        /// Made by [`Ring::new`].
        ring: Box<Ring<M>>,
        /// Comes back in the answer.
        token: u64,
    },
    /// Winds up a ring. Answered by RingGone, once nothing of it is under way.
    WindRing {
        /// Which.
        ring: RingId,
        /// How.
        mode: Wind,
        /// Comes back in the answer.
        token: u64,
    },
    /// Makes a region live. Answered by Done.
    AddRegion {
        /// Its id.
        region: RegionId,
        /// Whose it is.
        session: SessionId,
        /// Its size.
        bytes: u64,
        /// Its memory.
        memory: Mem,
        /// Comes back in the answer.
        token: u64,
    },
    /// Makes an import live. Answered by Done or Failed.
    AddImport {
        /// Its id.
        region: RegionId,
        /// Whose it is.
        session: SessionId,
        /// The region behind it.
        target: RegionId,
        /// `RIGHT_*` bits.
        rights: u32,
        /// Comes back in the answer.
        token: u64,
    },
    /// Takes back a region or import. Answered by RegionGone, once no op names it.
    RemoveRegion {
        /// Which.
        region: RegionId,
        /// Comes back in the answer.
        token: u64,
    },
    /// Looks for an op: answered by Cancelled, Why or Failed.
    Query {
        /// In which ring.
        ring: RingId,
        /// `CANCEL_BY_*`.
        by: u64,
        /// What to look for.
        target: u64,
        /// Take it back, or say why it waits.
        cancel: bool,
        /// Comes back in the answer.
        token: u64,
    },
    /// Reads counters: answered by Stats.
    Stats {
        /// One session, or the sum of all that ever were.
        session: Option<SessionId>,
        /// Comes back in the answer.
        token: u64,
    },
}

/// An answer to a command.
#[derive(Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "fields are those of the command, or say themselves what they are")]
pub enum Reply<Mem, M> {
    /// It is done.
    Done { token: u64 },
    /// It cannot be done.
    Failed { token: u64, errno: i32, detail: Detail },
    /// The ring is wound up; here is its state, to be dropped elsewhere.
    RingGone { token: u64, ring: Box<Ring<M>> },
    /// The region is free; here is its memory (imports have none).
    RegionGone { token: u64, memory: Option<Mem> },
    /// The op with this record was taken back.
    Cancelled { token: u64, record: RecordId },
    /// Where an op is.
    Why { token: u64, why: Why },
    /// Counters.
    Stats { token: u64, counters: [u64; Counter::COUNT] },
}

/// Where an op is and what it waits for. Fields as in `abi::WhyReply`.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "documented in abi::WhyReply")]
pub struct Why {
    pub record: RecordId,
    pub number: u64,
    pub user_data: u64,
    pub age_ns: u64,
    pub queued_ns: u64,
    pub bytes: u64,
    pub bytes_done: u64,
    pub ahead: u32,
    pub defers: u32,
    pub opcode: Opcode,
    pub class: Class,
    pub state: u16,
    pub wait: u16,
}

/// Something that happened unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A region's exports were revoked by its owner.
    Revoked {
        /// Which.
        region: RegionId,
    },
    /// A client broke a ring.
    Faulted {
        /// Which.
        ring: RingId,
        /// How.
        fault: Fault,
    },
}

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// Takes one command; [`Engine::accepts`] has said that it can.
    pub fn command(&mut self, command: Command<F::Memory, M>) {
        match command {
            Command::AddSession { session, owner, ops_max, ceiling } => {
                let place = &mut self.sessions[session.0 as usize];
                assert!(!place.live, "opened a session twice");
                *place = Session { live: true, owner, ceiling, ..Session::NONE };
                self.owners[owner as usize].ops_max = ops_max;
            }
            Command::RemoveSession { session, token } => self.remove_session(session, token),
            Command::AddRing { ring, token } => self.add_ring(ring, token),
            Command::WindRing { ring, mode, token } => self.begin_wind(ring, mode, token),
            Command::AddRegion { region, session, bytes, memory, token } => {
                self.fabric.attach(region.index(), memory);
                self.add_region(region, session, bytes, RegionKind::Own);
                self.replies.push_back(Reply::Done { token });
            }
            Command::AddImport { region, session, target, rights, token } => {
                self.add_import(region, session, target, rights, token);
            }
            Command::RemoveRegion { region, token } => self.remove_region(region, token),
            Command::Query { ring, by, target, cancel, token } => {
                let first = self.rings.get(ring.0 as usize).and_then(Option::as_ref);
                let first = first.map_or(NIL, |ring| ring.ops.head());
                let search = Search::new(by, target, NIL, first);
                self.query = Some(Query { search, ring, cancel, token });
            }
            Command::Stats { session, token } => {
                let counters = self.stats(session);
                self.replies.push_back(Reply::Stats { token, counters });
            }
        }
    }

    fn add_ring(&mut self, mut ring: Box<Ring<M>>, token: u64) {
        let id = ring.id;
        ring.last_active_ns = self.now_ns;
        ring.polled = true;
        ring.rung = true;
        let place = &mut self.rings[id.0 as usize];
        assert!(place.is_none(), "added a ring twice");
        *place = Some(ring);
        self.polled.push(id.0);
        self.replies.push_back(Reply::Done { token });
    }

    fn add_region(&mut self, id: RegionId, session: SessionId, bytes: u64, kind: RegionKind) {
        let place = &mut self.regions[id.index() as usize];
        assert!(place.id.is_none(), "added a region twice");
        let epoch = place.epoch.wrapping_add(1);
        *place = Region { id: Some(id), session, bytes, kind, epoch, ..Region::NONE };
    }

    fn add_import(
        &mut self,
        id: RegionId,
        session: SessionId,
        target: RegionId,
        rights: u32,
        token: u64,
    ) {
        let epoch = self.regions[target.index() as usize].epoch;
        if !current(&self.regions, target, epoch) {
            let (errno, detail) = (errno::ESTALE, Detail::Revoked);
            self.replies.push_back(Reply::Failed { token, errno, detail });
            return;
        }
        let bytes = self.regions[target.index() as usize].bytes;
        self.add_region(id, session, bytes, RegionKind::Import { target, epoch, rights });
        self.replies.push_back(Reply::Done { token });
    }

    fn remove_region(&mut self, id: RegionId, token: u64) {
        let index = id.index();
        let live = |region: &&mut Region| region.id == Some(id) && region.removing.is_none();
        let Some(region) = self.regions.get_mut(index as usize).filter(live) else {
            let (errno, detail) = (errno::ENOENT, Detail::LocalRegion);
            self.replies.push_back(Reply::Failed { token, errno, detail });
            return;
        };
        region.removing = Some(token);
        self.withdrawn += 1;
        if region.idle() {
            self.remove_region_now(index);
        } else if !region.arms.is_empty() && !self.disarming.contains(&index) {
            self.disarming.push(index);
        }
    }

    pub(super) fn remove_region_now(&mut self, index: u32) {
        let memory = self.fabric.detach(index);
        let region = &mut self.regions[index as usize];
        debug_assert!(region.arms.is_empty());
        let token = region.removing.take();
        *region = Region { epoch: region.epoch, ..Region::NONE };
        if let Some(token) = token {
            self.replies.push_back(Reply::RegionGone { token, memory });
        }
    }

    fn remove_session(&mut self, id: SessionId, token: u64) {
        let session = &mut self.sessions[id.0 as usize];
        assert!(session.live, "ended a session twice");
        assert!(session.records == 0 && session.blocks == 0, "a session left with ops in flight");
        for (total, own) in self.departed.iter_mut().zip(session.counters) {
            *total += own;
        }
        *session = Session::NONE;
        self.replies.push_back(Reply::Done { token });
    }

    fn stats(&self, session: Option<SessionId>) -> [u64; Counter::COUNT] {
        let mut counters = match session {
            Some(id) => self.sessions[id.0 as usize].counters,
            None => {
                let mut sum = self.departed;
                for session in self.sessions.iter().filter(|session| session.live) {
                    for (total, own) in sum.iter_mut().zip(session.counters) {
                        *total += own;
                    }
                }
                sum
            }
        };
        let in_flight = match session {
            Some(id) => self.sessions[id.0 as usize].records,
            None => self.ledger.open_count(),
        };
        counters[Counter::InFlight as usize] = u64::from(in_flight);
        if session.is_none() {
            counters[Counter::Turns as usize] = self.turns;
            counters[Counter::Records as usize] = u64::from(self.ledger.capacity());
        }
        counters
    }
}
