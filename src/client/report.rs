//! What an engine says about itself, its counters, and single ops.

use std::fmt;
use std::ops::Index;
use std::time::Duration;

use super::{Ticket, plight};
use crate::abi::{self, Class, Counter, Opcode, ProbeReply, StatsReply, WhyReply};

/// What an engine serves, and how much of it this session may have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Probe {
    /// Bit n: opcode n is served. See [`Probe::serves`].
    pub opcodes: u64,
    /// SQE flags that are served, `abi::SQE_*`.
    pub sqe_flags: u64,
    /// Features offered.
    pub features: u64,
    /// Bit n: fabric n is there, `abi::FABRIC_*`.
    pub fabrics: u64,
    /// Most bytes of one op.
    pub op_bytes_max: u32,
    /// Most pages of a WRITEV or READV.
    pub pages_max: u32,
    /// Most SQ or CQ entries of one ring.
    pub entries_max: u32,
    /// Rings this session may have.
    pub rings_max: u32,
    /// Regions and imports this session may have.
    pub regions_max: u32,
    /// Most urgent class this session may use; `None` if this version does not know it.
    pub class_ceiling: Option<Class>,
    /// Bytes this uid may have in regions.
    pub region_bytes_max: u64,
    /// Ops in flight on the device.
    pub window_ops: u32,
    /// Bytes in flight on the device.
    pub window_bytes: u64,
    /// A large op moves in slices of this many bytes.
    pub slice_bytes: u32,
    /// This uid, as the engine knows it.
    pub uid: u32,
    /// Whose contract is in force for this uid; `None` if this version does not know it.
    pub contract: Option<ContractOf>,
    /// Sessions this uid may have.
    pub sessions_max: u32,
    /// Ops this uid may have in flight.
    pub ops_max: u32,
    /// Bytes that this uid's ops in flight may ask for; one op may ask for more, alone.
    pub ops_bytes_max: u64,
    /// Bytes of class high that this uid may have posted; one request may have more, alone.
    pub high_bytes_max: u64,
    /// This uid's share beside others of the same class, 1 to 64.
    pub weight: u32,
    /// Control messages a second of this uid that are answered at once.
    pub control_per_s: u32,
}

/// Whose contract is in force for a uid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContractOf {
    /// The quota of all uids: this one has none of its own.
    All,
    /// Its own, over the quota of all.
    Uid,
}

impl ContractOf {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            abi::CONTRACT_ALL => Some(Self::All),
            abi::CONTRACT_UID => Some(Self::Uid),
            _ => None,
        }
    }
}

impl Probe {
    /// True if the engine serves this opcode.
    #[must_use]
    pub fn serves(&self, opcode: Opcode) -> bool {
        self.opcodes >> opcode as u8 & 1 != 0
    }

    /// True if this fabric, an `abi::FABRIC_*` number, is in use.
    #[must_use]
    pub fn uses(&self, fabric: u8) -> bool {
        self.fabrics.checked_shr(u32::from(fabric)).is_some_and(|bits| bits & 1 != 0)
    }
}

impl From<ProbeReply> for Probe {
    fn from(reply: ProbeReply) -> Self {
        Self {
            opcodes: reply.opcodes,
            sqe_flags: reply.sqe_flags,
            features: reply.features,
            fabrics: reply.fabrics,
            op_bytes_max: reply.op_bytes_max,
            pages_max: reply.pages_max,
            entries_max: reply.entries_max,
            rings_max: reply.rings_max,
            regions_max: reply.regions_max,
            class_ceiling: u8::try_from(reply.class_ceiling).ok().and_then(Class::from_byte),
            region_bytes_max: reply.region_bytes_max,
            window_ops: reply.window_ops,
            window_bytes: reply.window_bytes,
            slice_bytes: reply.slice_bytes,
            uid: reply.uid,
            contract: ContractOf::from_number(reply.contract),
            sessions_max: reply.sessions_max,
            ops_max: reply.ops_max,
            ops_bytes_max: reply.ops_bytes_max,
            high_bytes_max: reply.high_bytes_max,
            weight: reply.weight,
            control_per_s: reply.control_per_s,
        }
    }
}

/// Whose counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This session's.
    Session,
    /// The engine's: for its own uid and root only.
    Engine,
}

impl Scope {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Session => abi::STATS_SESSION,
            Self::Engine => abi::STATS_ENGINE,
        }
    }
}

/// Counters, indexed by [`Counter`]: `stats[Counter::Bytes]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats([u64; Counter::COUNT]);

impl Stats {
    /// Returns all places, also those that no counter of this version has.
    #[must_use]
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }
}

impl Index<Counter> for Stats {
    type Output = u64;

    fn index(&self, counter: Counter) -> &u64 {
        &self.0[usize::from(counter as u8)]
    }
}

impl From<StatsReply> for Stats {
    fn from(reply: StatsReply) -> Self {
        Self(reply.counters)
    }
}

/// Which op [`Session::cancel`](super::Session::cancel) and [`Session::why`](super::Session::why)
/// mean: one of this session's rings, and the op's number, record or `user_data` in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpRef {
    pub(super) ring: u32,
    pub(super) by: u32,
    pub(super) target: u64,
}

impl OpRef {
    /// Means the op with this SQE number, 0 for the ring's first.
    #[must_use]
    pub fn number(ring: u32, number: u64) -> Self {
        Self::new(ring, abi::CANCEL_BY_NUMBER, number)
    }

    /// Means the op with this ledger record.
    #[must_use]
    pub fn record(ring: u32, record: u64) -> Self {
        Self::new(ring, abi::CANCEL_BY_RECORD, record)
    }

    /// Means the op with this ledger record in whatever ring, of any session of this uid (of any,
    /// for root): for [`Session::why`](super::Session::why) alone, and if
    /// [`Probe::features`] has `abi::FEATURE_RECORDER`.
    #[must_use]
    pub fn record_anywhere(record: u64) -> Self {
        Self::new(abi::RING_ANY, abi::CANCEL_BY_RECORD, record)
    }

    /// Means the oldest op in flight with this `user_data`: for entries of a
    /// [`RawRing`](super::RawRing).
    #[must_use]
    pub fn user_data(ring: u32, user_data: u64) -> Self {
        Self::new(ring, abi::CANCEL_BY_USER_DATA, user_data)
    }

    fn new(ring: u32, by: u64, target: u64) -> Self {
        let [by, _]: [u32; 2] = zerocopy::transmute!(by);
        Self { ring, by, target }
    }
}

impl From<Ticket> for OpRef {
    fn from(ticket: Ticket) -> Self {
        Self::number(ticket.ring(), ticket.number())
    }
}

/// Where an op in flight is, and what it waits for; or an SQE that is not taken yet. Shown
/// (`Display`), it says so in sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Why {
    /// The op's ledger record; 0 before it is taken.
    pub record: u64,
    /// Its number in its ring.
    pub number: u64,
    /// Its ring's number.
    pub ring: u32,
    /// Its session's number.
    pub session: u32,
    /// Its `user_data`; 0 if the engine has not copied its SQE yet.
    pub user_data: u64,
    /// When it was taken: nanoseconds of CLOCK_MONOTONIC; 0 before.
    pub taken_ns: u64,
    /// Since intake.
    pub age: Duration,
    /// From intake to first post; `None` if nothing of it is posted. The rest of `age` is service.
    pub queued: Option<Duration>,
    /// Bytes asked for.
    pub bytes: u64,
    /// Bytes placed so far.
    pub bytes_done: u64,
    /// Ops before it in its flow, counted up to 4,095; before it is taken, SQEs of its ring.
    pub ahead: u32,
    /// Other flows of its lane that have ops queued, counted up to 4,095.
    pub flows: u32,
    /// Times it was to go on and found no credit.
    pub defers: u32,
    /// What it does; `None` if this version does not know it, or its SQE was not copied yet.
    pub opcode: Option<Opcode>,
    /// Its class; `None` likewise.
    pub class: Option<Class>,
    /// Its lane, beside its class: 0 ops of users, 1 the engine's own.
    pub origin: u8,
    /// By which rule the engine takes ops from lanes, an `abi::MODE_*` number.
    pub mode: u8,
    /// Where it is, an `abi::STATE_*` number.
    pub state: u16,
    /// What it waits for, an `abi::WAIT_*` number.
    pub wait: u16,
    /// Of what it waits for: how much is in use, and how much there is, in the unit that `wait`
    /// names. `None` if it is nothing that is counted.
    pub used: Option<(u64, u64)>,
    /// How much of that the op wants next.
    pub wants: u64,
    /// Of an op that waits for predecessors: how many are not over, and the SQE number of one.
    pub after: Option<(u64, u64)>,
    /// The rails that may carry what it posts next, with their `abi::RAIL_*`; none if it stays on
    /// the engine's host. Of an op that is posted whole, the one that it went by.
    pub rails: Vec<(u16, u8)>,
    /// The rail that it went by last, or is to go by; 0 is the engine's host.
    pub rail: u16,
    /// Requests given to the fabric so far; saturates at 65,535.
    pub posts: u32,
    /// Of these, how many are under way.
    pub in_fabric: u32,
}

impl Why {
    /// Returns since its first post; `None` if nothing of it is posted.
    #[must_use]
    pub fn service(&self) -> Option<Duration> {
        self.queued.map(|queued| self.age.saturating_sub(queued))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        plight::tell(self, f)
    }
}

impl From<WhyReply> for Why {
    fn from(reply: WhyReply) -> Self {
        let known = reply.state != abi::STATE_UNTAKEN || reply.class != 0;
        let waiting = reply.state == abi::STATE_WAITING;
        let set = (0..64).filter(|rail| reply.rails >> rail & 1 != 0);
        let opcode = u8::try_from(reply.opcode).ok().and_then(Opcode::from_byte);
        Self {
            record: reply.record,
            number: reply.number,
            ring: reply.ring,
            session: reply.session,
            user_data: reply.user_data,
            taken_ns: reply.taken_ns,
            age: Duration::from_nanos(reply.age_ns),
            queued: (reply.posts > 0).then(|| Duration::from_nanos(reply.queued_ns)),
            bytes: reply.bytes,
            bytes_done: reply.bytes_done,
            ahead: reply.ahead,
            flows: reply.flows,
            defers: reply.defers,
            opcode: opcode.filter(|_| known),
            class: u8::try_from(reply.class).ok().and_then(Class::from_byte).filter(|_| known),
            origin: reply.origin,
            mode: reply.mode,
            state: reply.state,
            wait: reply.wait,
            used: (reply.limit > 0).then_some((reply.used, reply.limit)),
            wants: if waiting { 0 } else { reply.wants },
            after: waiting.then_some((reply.used, reply.wants)),
            rails: set.zip(reply.rail_states.to_le_bytes()).collect(),
            rail: reply.rail,
            posts: reply.posts,
            in_fabric: reply.in_fabric,
        }
    }
}
