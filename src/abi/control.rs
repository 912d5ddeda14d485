//! Control messages: one SEQPACKET datagram each, fixed layout, descriptors beside them.
//!
//! A request is answered by exactly one reply of the same kind, tagged alike, in order. A session
//! has one request under way at a time. Every request starts with [`Head`], every reply with
//! [`ReplyHead`]; a reply whose `status` is negative ends there, followed only by UTF-8 text for
//! people (at most [`ERROR_TEXT_MAX`] bytes, no terminator).
//!
//! This file has layouts only; meaning is in `control`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{NAME_BYTES, SECRET_BYTES, URL_BYTES};

macro_rules! layout {
    (
        $(#[$doc:meta])*
        $name:ident = $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }

        const _: () = assert!(size_of::<$name>() == $bytes);

        impl $name {
            /// Name and byte offset of each field, for the frozen table.
            pub(super) const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), core::mem::offset_of!($name, $field)),)*];
        }

        impl Default for $name {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }
    };
}
pub(super) use layout;

/// Set in `kind` of every reply.
pub const REPLY: u16 = 0x8000;
/// Most bytes of error text behind a failed reply.
pub const ERROR_TEXT_MAX: usize = 240;
/// No control message is longer.
pub const MESSAGE_BYTES_MAX: usize = 512;
/// IMPORT: "my own uid" in the `uid` field.
pub const UID_OWN: u32 = u32::MAX;

/// Kinds of control message. Numbers only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Opens the session: versions, features; brings the engine's pidfd.
    Hello = 1,
    /// Makes a ring; brings segment, SQ bell and CQ bell. Live after MAPPED.
    Ring = 2,
    /// The client has mapped a ring or an engine-made region: it is sealed and goes live.
    Mapped = 3,
    /// Makes a region: allocated by the engine, or from the memfd that comes along.
    Region = 4,
    /// Offers a region under a name; brings the secret.
    Export = 5,
    /// Takes up an export.
    Import = 6,
    /// Connects to a peer engine.
    Connect = 7,
    /// Gives back a ring, region or import; answered when nothing touches it any more.
    Release = 8,
    /// Reserved: prepares a graph.
    Prepare = 9,
    /// Asks what this engine serves.
    Probe = 10,
    /// Asks for counters.
    Stats = 11,
    /// Takes back a queued op.
    Cancel = 12,
    /// Asks where an op is and what it waits for.
    Why = 13,
    /// Asks for a session's flight recorder; brings its memfd.
    Recorder = 14,
    /// Asks for the engine's telemetry page; brings its memfd.
    Telemetry = 15,
    /// Asks for a connection to another engine.
    Peers = 16,
    /// Asks for a card that other engines are reached by.
    Cards = 17,
}

impl Kind {
    /// All kinds, by number from 1.
    pub const ALL: [Self; 17] = [
        Self::Hello,
        Self::Ring,
        Self::Mapped,
        Self::Region,
        Self::Export,
        Self::Import,
        Self::Connect,
        Self::Release,
        Self::Prepare,
        Self::Probe,
        Self::Stats,
        Self::Cancel,
        Self::Why,
        Self::Recorder,
        Self::Telemetry,
        Self::Peers,
        Self::Cards,
    ];

    /// Reads a kind; `None` for an unknown one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

layout! {
    /// Starts every request.
    Head = 16 {
        /// A [`Kind`].
        kind: u16,
        /// Zero.
        reserved: u16,
        /// Bytes of the whole message.
        bytes: u32,
        /// Comes back in the reply.
        tag: u64,
    }
}

layout! {
    /// Starts every reply.
    ReplyHead = 24 {
        /// The request's kind, with [`REPLY`] set.
        kind: u16,
        /// Zero.
        reserved: u16,
        /// Bytes of the whole message.
        bytes: u32,
        /// From the request.
        tag: u64,
        /// 0, or a negative errno.
        status: i32,
        /// On failure a `DETAIL_*` code.
        detail: u32,
    }
}

layout! {
    /// HELLO: must be the first message.
    Hello = 64 {
        /// Kind [`Kind::Hello`].
        head: Head,
        /// Lowest ABI version the client speaks.
        version_min: u16,
        /// Highest ABI version the client speaks.
        version_max: u16,
        /// Zero.
        reserved: u32,
        /// Features the client wants; those not offered are refused.
        features: u64,
        /// What to call this client in logs; UTF-8, zero padded.
        name: [u8; 32],
    }
}

layout! {
    /// Answers HELLO; one descriptor: the engine's pidfd.
    HelloReply = 64 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The version both will speak.
        version: u32,
        /// The session's number.
        session: u32,
        /// Features in force.
        features: u64,
        /// As in every segment header.
        boot_id: [u64; 2],
        /// The engine's number.
        engine: u32,
        /// The engine's process.
        pid: u32,
    }
}

layout! {
    /// RING: asks for a ring.
    RingRequest = 32 {
        /// Kind [`Kind::Ring`].
        head: Head,
        /// A power of two.
        sq_entries: u32,
        /// A power of two; also the most ops in flight.
        cq_entries: u32,
        /// [`RING_FENCELESS`] or 0.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

/// RING flag: the client cannot fence between its tail and its look at `engine_flags`; it rings
/// the doorbell after every publication, and the engine may sleep without looking again.
pub const RING_FENCELESS: u32 = 1 << 0;

layout! {
    /// Answers RING; three descriptors: segment memfd, SQ bell, CQ bell (the client's ends).
    RingReply = 40 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The ring's number.
        ring: u32,
        /// Zero.
        reserved: u32,
        /// Bytes to map.
        segment_bytes: u64,
    }
}

layout! {
    /// MAPPED: answered by a bare [`ReplyHead`].
    Mapped = 24 {
        /// Kind [`Kind::Mapped`].
        head: Head,
        /// [`OBJECT_RING`] or [`OBJECT_REGION`].
        object: u32,
        /// Ring number or region id.
        id: u32,
    }
}

/// MAPPED, RELEASE: `id` is a ring number.
pub const OBJECT_RING: u32 = 1;
/// MAPPED, RELEASE: `id` is a region id (for RELEASE also an import's).
pub const OBJECT_REGION: u32 = 2;

layout! {
    /// REGION: with [`REGION_MEMFD`] one descriptor, which the client has mapped before.
    RegionRequest = 32 {
        /// Kind [`Kind::Region`].
        head: Head,
        /// [`REGION_ALLOCATED`] or [`REGION_MEMFD`].
        source: u32,
        /// [`REGION_HUGE`] or 0.
        flags: u32,
        /// Bytes, above 0; for a memfd at most its size.
        bytes: u64,
    }
}

/// REGION source: the engine makes the memory; map it, then send MAPPED.
pub const REGION_ALLOCATED: u32 = 1;
/// REGION source: the client's memfd, sealed against SHRINK and GROW. Live with the reply.
pub const REGION_MEMFD: u32 = 2;
/// REGION flag: huge pages, if the machine has them to spare (the reply tells).
pub const REGION_HUGE: u32 = 1 << 0;

layout! {
    /// Answers REGION; for an allocated region one descriptor: the memfd.
    RegionReply = 40 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The region's id: generation << 20 | index.
        region: u32,
        /// Flags in force.
        flags: u32,
        /// Bytes to map.
        bytes: u64,
    }
}

layout! {
    /// EXPORT: offers a region of this session under a name, unique for the uid.
    Export = 88 {
        /// Kind [`Kind::Export`].
        head: Head,
        /// The region.
        region: u32,
        /// `RIGHT_*` bits, at least one.
        rights: u32,
        /// UTF-8, zero padded, not empty.
        name: [u8; NAME_BYTES],
    }
}

layout! {
    /// Answers EXPORT.
    ExportReply = 56 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// What an importer must show.
        secret: [u8; SECRET_BYTES],
    }
}

/// An importer may READ.
pub const RIGHT_READ: u32 = 1 << 0;
/// An importer may WRITE.
pub const RIGHT_WRITE: u32 = 1 << 1;
/// An importer may use atomics.
pub const RIGHT_ATOMIC: u32 = 1 << 2;
/// An importer may NOTIFY.
pub const RIGHT_NOTIFY: u32 = 1 << 3;
/// Every right of ABI 1.
pub const RIGHTS_ALL: u32 = RIGHT_READ | RIGHT_WRITE | RIGHT_ATOMIC | RIGHT_NOTIFY;

layout! {
    /// IMPORT: takes up an export of any session of this engine, or of a peer.
    Import = 128 {
        /// Kind [`Kind::Import`].
        head: Head,
        /// `RIGHT_*` bits wanted; 0 takes all that are offered.
        rights: u32,
        /// The exporter's uid, at the peer if there is one, or [`UID_OWN`].
        uid: u32,
        /// The export's name.
        name: [u8; NAME_BYTES],
        /// The export's secret.
        secret: [u8; SECRET_BYTES],
        /// 0: this engine. Else a number that CONNECT brought this session.
        peer: u32,
        /// Zero.
        reserved: u32,
    }
}

layout! {
    /// Answers IMPORT.
    ImportReply = 40 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The import's id, for `remote_region`.
        region: u32,
        /// Rights granted.
        rights: u32,
        /// Bytes of the region.
        bytes: u64,
    }
}

layout! {
    /// CONNECT: reaches another engine, for this session's IMPORTs.
    Connect = 152 {
        /// Kind [`Kind::Connect`].
        head: Head,
        /// The `FABRIC_*` that must carry its ops; 0 takes any.
        require: u32,
        /// Zero.
        reserved: u32,
        /// `unix:` and the absolute path of the other engine's socket, or `verbring://HOST:PORT`;
        /// UTF-8, zero padded.
        url: [u8; URL_BYTES],
    }
}

layout! {
    /// Answers CONNECT.
    ConnectReply = 40 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The peer's number, from 1, for IMPORT. The session's own, and never given again.
        peer: u32,
        /// The `FABRIC_*` that carries ops to it.
        fabric: u32,
        /// The rail that carries medium ops to it.
        rail: u32,
        /// Zero.
        reserved: u32,
    }
}

layout! {
    /// RELEASE: answered by a bare [`ReplyHead`].
    Release = 24 {
        /// Kind [`Kind::Release`].
        head: Head,
        /// [`OBJECT_RING`] or [`OBJECT_REGION`].
        object: u32,
        /// Ring number, region id or import id.
        id: u32,
    }
}

layout! {
    /// PROBE: a bare head.
    Probe = 16 {
        /// Kind [`Kind::Probe`].
        head: Head,
    }
}

layout! {
    /// Answers PROBE.
    ProbeReply = 144 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// Bit n: opcode n is served.
        opcodes: u64,
        /// SQE flags that are served.
        sqe_flags: u64,
        /// Features offered.
        features: u64,
        /// Bit n: fabric n is there.
        fabrics: u64,
        /// Most bytes of one op.
        op_bytes_max: u32,
        /// Most pages of a WRITEV or READV.
        pages_max: u32,
        /// Most SQ or CQ entries of one ring.
        entries_max: u32,
        /// Rings this session may have.
        rings_max: u32,
        /// Regions and imports this session may have.
        regions_max: u32,
        /// Most urgent class this session may use: 1 high, 2 medium, 3 low.
        class_ceiling: u32,
        /// Bytes this uid may have in regions.
        region_bytes_max: u64,
        /// Ops in flight on the device.
        window_ops: u32,
        /// A large op moves in slices of this many bytes.
        slice_bytes: u32,
        /// Bytes in flight on the device.
        window_bytes: u64,
        /// The uid that asks, as the engine knows it.
        uid: u32,
        /// Whose contract is in force for it: [`CONTRACT_ALL`] or [`CONTRACT_UID`].
        contract: u32,
        /// Sessions this uid may have.
        sessions_max: u32,
        /// Ops this uid may have in flight.
        ops_max: u32,
        /// This uid's share beside others of the same class, 1 to 64.
        weight: u32,
        /// Control messages a second of this uid that are answered at once.
        control_per_s: u32,
        /// Bytes that this uid's ops in flight may ask for. One op may ask for more, alone.
        ops_bytes_max: u64,
        /// Bytes of class high that this uid may have posted. One request may have more, alone.
        high_bytes_max: u64,
    }
}

/// PROBE: the quota of all uids is in force.
pub const CONTRACT_ALL: u32 = 0;
/// PROBE: the asking uid has a contract of its own.
pub const CONTRACT_UID: u32 = 1;

layout! {
    /// STATS: counters of this session or of the engine.
    Stats = 24 {
        /// Kind [`Kind::Stats`].
        head: Head,
        /// [`STATS_SESSION`] or [`STATS_ENGINE`].
        scope: u32,
        /// Zero.
        reserved: u32,
    }
}

/// STATS scope: this session.
pub const STATS_SESSION: u32 = 0;
/// STATS scope: the engine; for its own uid and root only.
pub const STATS_ENGINE: u32 = 1;

/// Counters in a STATS reply, by place. Numbers only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Counter {
    /// SQEs taken.
    Taken = 0,
    /// Final outcomes, including refusals and dropped successes.
    Completed = 1,
    /// SQEs refused for a bad field.
    Refused = 2,
    /// Ops that failed after they were accepted.
    Failed = 3,
    /// Ops cancelled.
    Cancelled = 4,
    /// High-class ops completed.
    OpsHigh = 5,
    /// Medium-class ops completed.
    OpsMedium = 6,
    /// Low-class ops completed.
    OpsLow = 7,
    /// Payload bytes moved.
    Bytes = 8,
    /// Notifications delivered to a CQ slot of their own or merged into one.
    Notified = 9,
    /// Ops in flight now.
    InFlight = 10,
    /// Rings now.
    Rings = 11,
    /// Regions and imports now.
    Regions = 12,
    /// Bytes in regions now.
    RegionBytes = 13,
    /// Engine scope: sessions now.
    Sessions = 14,
    /// Engine scope: turns made.
    Turns = 15,
    /// Engine scope: times the engine thread went to sleep.
    Sleeps = 16,
    /// Engine scope: records the ledger holds in all.
    Records = 17,
    /// Engine scope: descriptors open in the engine's process.
    Descriptors = 18,
    /// Rings faulted since start.
    Faults = 19,
    /// Times an op at the head of its lane found no credit.
    Defers = 20,
    /// Client bells rung.
    BellsRung = 21,
    /// Engine scope: sessions refused or ended for a broken rule.
    Evicted = 22,
    /// Ops with edges, all of whose predecessors were over when they were taken.
    EdgesOver = 23,
    /// Ops that waited for a predecessor, or behind a DRAIN.
    EdgesLive = 24,
    /// Ops that ended since a predecessor failed.
    DepFailed = 25,
    /// COALESCE: folded into queued work of identical effect.
    FoldHit = 26,
    /// COALESCE: nothing like it was under way.
    FoldNone = 27,
    /// COALESCE: folding is switched off.
    FoldDisabled = 28,
    /// COALESCE: it has edges, or is linked.
    FoldEdges = 29,
    /// COALESCE: what is queued for the same place differs in something.
    FoldKey = 30,
    /// COALESCE: its like was posted already.
    FoldStarted = 31,
    /// SUPERSEDE: replaced by a later value while queued.
    Superseded = 32,
    /// Ops that went in the work request of a neighbour.
    Merged = 33,
}

impl Counter {
    /// Counters in a STATS reply; those not yet defined are 0.
    pub const COUNT: usize = 40;
    /// All counters, by place.
    pub const ALL: [Self; 34] = [
        Self::Taken,
        Self::Completed,
        Self::Refused,
        Self::Failed,
        Self::Cancelled,
        Self::OpsHigh,
        Self::OpsMedium,
        Self::OpsLow,
        Self::Bytes,
        Self::Notified,
        Self::InFlight,
        Self::Rings,
        Self::Regions,
        Self::RegionBytes,
        Self::Sessions,
        Self::Turns,
        Self::Sleeps,
        Self::Records,
        Self::Descriptors,
        Self::Faults,
        Self::Defers,
        Self::BellsRung,
        Self::Evicted,
        Self::EdgesOver,
        Self::EdgesLive,
        Self::DepFailed,
        Self::FoldHit,
        Self::FoldNone,
        Self::FoldDisabled,
        Self::FoldEdges,
        Self::FoldKey,
        Self::FoldStarted,
        Self::Superseded,
        Self::Merged,
    ];
}

layout! {
    /// Answers STATS.
    StatsReply = 344 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// Indexed by [`Counter`].
        counters: [u64; Counter::COUNT],
    }
}

layout! {
    /// CANCEL and WHY: which op is meant.
    OpQuery = 32 {
        /// Kind [`Kind::Cancel`] or [`Kind::Why`].
        head: Head,
        /// Ring number; for WHY by record also [`RING_ANY`](super::RING_ANY).
        ring: u32,
        /// `CANCEL_BY_*`.
        by: u32,
        /// `user_data`, SQE number or record id.
        target: u64,
    }
}

layout! {
    /// Answers CANCEL: status 0, ENOENT or EALREADY.
    CancelReply = 32 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The record taken back.
        record: u64,
    }
}

layout! {
    /// Answers WHY for an op in flight, and by number for an SQE that is not taken yet; ENOENT for
    /// what is neither.
    WhyReply = 176 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The op's record; 0 before it is taken, as are all fields that only an op has.
        record: u64,
        /// Its SQE number.
        number: u64,
        /// Its `user_data`.
        user_data: u64,
        /// Nanoseconds since intake.
        age_ns: u64,
        /// Nanoseconds from intake to first post; 0 if not posted. The rest of `age_ns` is service.
        queued_ns: u64,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes placed so far.
        bytes_done: u64,
        /// Ops before it in its flow, counted up to 4,095; before it is taken, SQEs of its ring.
        ahead: u32,
        /// Times it was at the head and found no credit.
        defers: u32,
        /// An [`Opcode`](super::Opcode).
        opcode: u16,
        /// 1 high, 2 medium, 3 low; 0 if the SQE was not even copied: then `opcode`, `bytes` and
        /// `user_data` are not known.
        class: u16,
        /// `STATE_*`.
        state: u16,
        /// `WAIT_*`.
        wait: u16,
        /// Zero.
        reserved: u64,
        /// When it was taken: CLOCK_MONOTONIC, in nanoseconds.
        taken_ns: u64,
        /// Of what it waits for: how much is in use, in the unit that `wait` names.
        used: u64,
        /// How much of that there is; 0 if it is nothing that is counted.
        limit: u64,
        /// How much of it the op wants next.
        wants: u64,
        /// The rails that may carry what it posts next, a bit each; 0 if it stays on this host.
        rails: u64,
        /// Of these rails, lowest first, a byte each: `RAIL_*`.
        rail_states: u64,
        /// Its ring.
        ring: u32,
        /// Its session.
        session: u32,
        /// Other flows of its lane that have ops queued, counted up to 4,095.
        flows: u32,
        /// Requests given to the fabric so far; saturates at 65,535.
        posts: u32,
        /// Of these, how many are under way.
        in_fabric: u32,
        /// The rail that it went by last, or is to go by; 0 is the engine's host.
        rail: u16,
        /// Its lane, beside its class: 0 ops of users, 1 the engine's own.
        origin: u8,
        /// `MODE_*`: by which rule the engine takes ops from lanes.
        mode: u8,
    }
}

layout! {
    /// RECORDER: asks for a flight recorder. Served if PROBE's features have
    /// [`FEATURE_RECORDER`](super::FEATURE_RECORDER).
    RecorderRequest = 24 {
        /// Kind [`Kind::Recorder`].
        head: Head,
        /// [`SESSION_OWN`](super::SESSION_OWN); else the recorder of the first session from this
        /// number on that has one and is of this uid (of any, for root); ENOENT behind the last.
        session: u32,
        /// Zero.
        reserved: u32,
    }
}

layout! {
    /// Answers RECORDER; one descriptor: the memfd, to be mapped for reading.
    RecorderReply = 40 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// Whose it is.
        session: u32,
        /// Entries that it has, a power of two.
        entries: u32,
        /// Bytes to map.
        bytes: u64,
    }
}

layout! {
    /// TELEMETRY: asks for the engine's telemetry page, which root and the engine's own uid may
    /// have. Served if PROBE's features have [`FEATURE_TELEMETRY`](super::FEATURE_TELEMETRY).
    TelemetryRequest = 16 {
        /// Kind [`Kind::Telemetry`].
        head: Head,
    }
}

layout! {
    /// Answers TELEMETRY; one descriptor: the memfd, to be mapped for reading.
    TelemetryReply = 32 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// Bytes to map.
        bytes: u64,
    }
}

/// WHY state: in its lane.
pub const STATE_QUEUED: u16 = 1;
/// WHY state: all or part of it is with the fabric.
pub const STATE_POSTED: u16 = 2;
/// WHY state: an ARM, waiting for notifications.
pub const STATE_ARMED: u16 = 3;
/// WHY state: a FLUSH, waiting for earlier ops.
pub const STATE_FLUSHING: u16 = 4;
/// WHY state: its SQE lies in the SQ, or is kept as a copy, and is not taken yet.
pub const STATE_UNTAKEN: u16 = 5;
/// WHY state: it waits for predecessors.
pub const STATE_WAITING: u16 = 6;
/// WHY state: folded into another op, whose end is its own.
pub const STATE_FOLDED: u16 = 7;

/// WHY mode: classes share bytes by weight.
pub const MODE_WEIGHTED: u8 = 1;
/// WHY mode: the most urgent class goes first.
pub const MODE_STRICT: u8 = 2;
/// WHY mode: first come, first served.
pub const MODE_FIFO: u8 = 3;
/// WHY mode: byte deficits as in TENT.
pub const MODE_TENT: u8 = 4;
/// WHY mode: no scheduling.
pub const MODE_DIRECT: u8 = 5;

/// WHY rail: it takes requests.
pub const RAIL_OPEN: u8 = 0;
/// WHY rail: its depth is used up.
pub const RAIL_FULL: u8 = 1;
/// WHY rail: its device had no memory for the last post.
pub const RAIL_MEMORY: u8 = 2;
/// WHY rail: it is being connected for the first time.
pub const RAIL_CONNECTING: u8 = 3;
/// WHY rail: it is in doubt, and is brought to rest.
pub const RAIL_DEGRADED: u8 = 4;
/// WHY rail: it is being rebuilt, or is on trial after that.
pub const RAIL_REBUILDING: u8 = 5;
/// WHY rail: its card erred too often, and pauses.
pub const RAIL_PAUSED: u8 = 6;
/// WHY rail: its peer is gone.
pub const RAIL_DEAD: u8 = 7;

/// WHY wait: nothing holds it.
pub const WAIT_NONE: u16 = 0;
/// WHY wait: ops of its lane are before it.
pub const WAIT_LANE: u16 = 1;
/// WHY wait: a more urgent class goes first.
pub const WAIT_CLASS: u16 = 2;
/// WHY wait: the window's ops are in use.
pub const WAIT_WINDOW_OPS: u16 = 3;
/// WHY wait: the window's bytes are in use.
pub const WAIT_WINDOW_BYTES: u16 = 4;
/// WHY wait: the fabric works on it.
pub const WAIT_FABRIC: u16 = 5;
/// WHY wait: earlier ops on the region (FLUSH).
pub const WAIT_EARLIER: u16 = 6;
/// WHY wait: a peer's notification (ARM).
pub const WAIT_NOTIFY: u16 = 7;
/// WHY wait: its rail takes nothing now: it is full, being connected, or recovering.
pub const WAIT_RAIL: u16 = 8;
/// WHY wait: its peer has no receive free for its notification.
pub const WAIT_CREDIT: u16 = 9;
/// WHY wait: the window's work requests are in use.
pub const WAIT_WINDOW_WRS: u16 = 10;
/// WHY wait: the window towards its peer is in use.
pub const WAIT_PEER: u16 = 11;
/// WHY wait: other users, sessions or peers of its lane have their turn.
pub const WAIT_TURN: u16 = 12;
/// WHY wait: its uid has as many bytes of class high posted as it may.
pub const WAIT_CAP: u16 = 13;
/// WHY wait, untaken: its ring sleeps, and its bell was not rung since the SQE came.
pub const WAIT_BELL: u16 = 14;
/// WHY wait, untaken: SQEs before it in its ring.
pub const WAIT_INTAKE: u16 = 15;
/// WHY wait, untaken: no CQ slot can be promised until its client takes completions.
pub const WAIT_CQ: u16 = 16;
/// WHY wait, untaken: its session has its part of the records, and what is for all is in use.
pub const WAIT_RECORDS: u16 = 17;
/// WHY wait, untaken: its uid has as many ops in flight as it may.
pub const WAIT_QUOTA_OPS: u16 = 18;
/// WHY wait, untaken: its uid has as many bytes in flight as it may.
pub const WAIT_QUOTA_BYTES: u16 = 19;
/// WHY wait, untaken: its session has its part of the page list blocks, and the rest is in use.
pub const WAIT_PAGES: u16 = 20;
/// WHY wait, untaken: a CANCEL before it in its ring still looks for its op.
pub const WAIT_SEARCH: u16 = 21;
/// WHY wait, untaken: nothing more is taken from its ring, which was broken or is going.
pub const WAIT_CLOSED: u16 = 22;
/// WHY wait, untaken: revocations that are yet to be told.
pub const WAIT_REVOKED: u16 = 23;
/// WHY wait: predecessors that are not over.
pub const WAIT_PREDECESSOR: u16 = 24;
/// WHY wait: the op that it was folded into.
pub const WAIT_SURVIVOR: u16 = 25;
/// WHY wait, untaken: its session has its part of the edges, and what is for all is in use.
pub const WAIT_EDGES: u16 = 26;
/// WHY wait, untaken: its uid has as many edges in use as it may.
pub const WAIT_QUOTA_EDGES: u16 = 27;
/// WHY wait, untaken: an op 32,767 SQEs before it in its ring is not over.
pub const WAIT_DISTANCE: u16 = 28;
