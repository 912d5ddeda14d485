//! What the control threads ask of the engine, and what it answers.

use crate::abi::{Class, Counter, Detail, Opcode, errno};
use crate::fabric::Fabric;
use crate::ids::{RecordId, RegionId, RingId, SessionId};
use crate::ledger::NIL;
use crate::ring::{Fault, Memory};
use crate::sched::Contract;
use crate::telemetry::Recorder;

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
        /// The uid's place: sessions with the same one share its contract.
        owner: u32,
        /// What that uid may have.
        contract: Contract,
    },
    /// From now on leaves what is known of each of a session's ops, once it is over, in its flight
    /// recorder. Not answered; the recorder's memory is to outlive the session.
    SetRecorder {
        /// Its place.
        session: SessionId,
        /// Where to.
        recorder: Recorder,
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
    /// Makes an import of a peer's region live; what it names is itself. Answered by Done.
    AddPeerImport {
        /// Its id.
        region: RegionId,
        /// Whose it is.
        session: SessionId,
        /// The size of the region behind it.
        bytes: u64,
        /// `RIGHT_*` bits.
        rights: u32,
        /// The rails to the peer by class, a bit each. Two sets of an engine, of whatever import
        /// and class, are equal or disjoint.
        rails: [u64; 3],
        /// The peer's memory, as its keys admit it.
        memory: Mem,
        /// Comes back in the answer.
        token: u64,
    },
    /// From now on ops by a peer import go by these rails; those of which requests are with the
    /// fabric end where they are, and what comes back of them undone goes by these, too. Answered
    /// by Done, or Failed if the import is gone or withdrawn.
    Reroute {
        /// Which import.
        region: RegionId,
        /// The rails by class, under the rule of [`Command::AddPeerImport`].
        rails: [u64; 3],
        /// Comes back in the answer.
        token: u64,
    },
    /// Answered by Done once each queued op has been looked at, and waits for the rails that its
    /// import names by now: whatever rail none names, and which is dead, may be released then.
    Clear {
        /// Comes back in the answer.
        token: u64,
    },
    /// The peer withdraws what a peer import stands for: new ops and queued ones fail as revoked.
    /// Answered by Done, once no op through it is under way.
    Withdraw {
        /// Which import.
        region: RegionId,
        /// Comes back in the answer.
        token: u64,
    },
    /// Has an own region be known to a rail's peer; once more for the same rail widens it.
    /// Answered by Done or Failed.
    Lend {
        /// Which region.
        region: RegionId,
        /// The rail whose peer may touch it.
        rail: u16,
        /// `RIGHT_*` bits: with RIGHT_NOTIFY its arrivals are believed. The others are the keys'.
        rights: u32,
        /// How many [`Event::Revoked`] of this region the caller has heard. If there are more, what
        /// it decided was decided before the owner revoked it: the loan fails as revoked.
        heard: u32,
        /// Comes back in the answer.
        token: u64,
    },
    /// A rail's peer cannot touch a region any more: it acknowledged that, or is gone, and the
    /// keys are withdrawn. Answered by Done.
    TakeBack {
        /// Which region.
        region: RegionId,
        /// The rail that had it.
        rail: u16,
        /// Comes back in the answer.
        token: u64,
    },
    /// From now on atomics of this engine's own sessions on a region go by a rail that leads back
    /// to this host, not by the CPU. Comes before the region's first import with RIGHT_ATOMIC.
    /// Answered by Done or Failed.
    SetHome {
        /// Which region.
        region: RegionId,
        /// The rail.
        rail: u16,
        /// The region's memory with keys that admit atomics by that rail.
        memory: Mem,
        /// Comes back in the answer.
        token: u64,
    },
    /// Takes back a region or import. Answered by RegionGone, once no op names it and no rail has
    /// it; if a rail has it, [`Event::Revoked`] asks for it back.
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
    /// Looks for the op with this record among those of one uid, or of all: answered by Why or
    /// Failed.
    Find {
        /// Its record.
        record: RecordId,
        /// The uid's place: ops of its sessions alone are found. `None` finds all.
        owner: Option<u32>,
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
    pub opcode: Option<Opcode>,
    pub class: Option<Class>,
    pub state: u16,
    pub wait: u16,
    pub taken_ns: u64,
    pub used: u64,
    pub limit: u64,
    pub wants: u64,
    pub rails: u64,
    pub rail_states: u64,
    pub ring: RingId,
    pub session: SessionId,
    pub flows: u32,
    pub posts: u32,
    pub in_fabric: u32,
    pub rail: u16,
    pub origin: u8,
    pub mode: u8,
}

/// Something that happened unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A region's exports were revoked by its owner, or it is removed while rails have it. What
    /// rails have of it is to be taken back.
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
            Command::AddSession { session, owner, contract } => {
                let place = &mut self.sessions[session.0 as usize];
                assert!(!place.live, "opened a session twice");
                let ceiling = contract.ceiling;
                *place = Session { live: true, owner, ceiling, ..Session::NONE };
                self.owners[owner as usize].sign(&contract);
                self.lanes.adopt(session, owner, contract.weight);
                self.abroad.adopt(session, owner, &contract);
                self.meter.begin_session(session);
            }
            Command::SetRecorder { session, recorder } => {
                self.recorders[session.0 as usize] = Some(recorder);
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
            Command::AddPeerImport { region, session, bytes, rights, rails, memory, token } => {
                self.fabric.attach(region.index(), memory);
                self.add_peer_import(region, session, bytes, (rights, rails));
                self.replies.push_back(Reply::Done { token });
            }
            Command::Reroute { region, rails, token } => {
                let outcome = self.reroute(region, rails);
                self.answer(outcome, token);
            }
            Command::Clear { token } => self.begin_clear(token),
            Command::Withdraw { region, token } => self.begin_withdraw(region, token),
            Command::Lend { region, rail, rights, heard, token } => {
                let outcome = self.lend(region, rail, rights, heard);
                self.answer(outcome, token);
            }
            Command::TakeBack { region, rail, token } => {
                self.take_loan_back(region, rail);
                self.replies.push_back(Reply::Done { token });
            }
            Command::SetHome { region, rail, memory, token } => {
                let outcome = self.set_home(region, rail, memory);
                self.answer(outcome, token);
            }
            Command::RemoveRegion { region, token } => self.remove_region(region, token),
            Command::Query { ring, by, target, cancel, token } => {
                let state = self.rings.get(ring.0 as usize).and_then(Option::as_ref);
                let first = state.map_or(NIL, |ring| ring.ops.head());
                let taken = state.map_or(0, |ring| ring.next_number);
                let search = Search::new(by, target, NIL, first);
                self.query = Some(Query { search, ring, cancel, token, taken });
            }
            Command::Find { record, owner, token } => {
                let reply = self.find(record, owner, token);
                self.replies.push_back(reply);
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

    fn answer(&mut self, outcome: Result<(), (i32, Detail)>, token: u64) {
        self.replies.push_back(match outcome {
            Ok(()) => Reply::Done { token },
            Err((errno, detail)) => Reply::Failed { token, errno, detail },
        });
    }

    pub(super) fn add_region(
        &mut self,
        id: RegionId,
        session: SessionId,
        bytes: u64,
        kind: RegionKind,
    ) {
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
        region.awaited = true;
        if region.lent != 0 {
            region.revocations = region.revocations.wrapping_add(1);
            self.events.push_back(Event::Revoked { region: id });
        }
        self.withdrawn += 1;
        self.purge();
        let region = &self.regions[index as usize];
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
        self.recorders[id.0 as usize] = None;
        self.meter.end_session(id);
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
            counters[Counter::Merged as usize] = self.fabric.merged();
            counters[Counter::Records as usize] = u64::from(self.ledger.capacity());
        }
        counters
    }
}
