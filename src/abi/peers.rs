//! PEERS: what an engine knows of other engines, one connection a message.
//!
//! A reply has one size and is no longer than any message may be. So what a connection has most of
//! is told briefly: a rail has 12 bytes, and its rates are in the telemetry page, under its number.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::control::layout;
use super::{Head, ReplyHead, URL_BYTES};

/// PROBE feature: PEERS is served.
pub const FEATURE_PEERS: u64 = 1 << 2;
/// Most rails of one connection: on four cards, three each.
pub const PEER_RAILS_MAX: usize = 12;
/// Most bytes of the error text in a PEERS reply.
pub const PEER_ERROR_BYTES: usize = 152;

layout! {
    /// PEERS: asks for a connection to another engine. For root and the engine's own uid. Served if
    /// PROBE's features have [`FEATURE_PEERS`].
    PeersRequest = 24 {
        /// Kind [`Kind::Peers`](super::Kind::Peers).
        head: Head,
        /// The first place that is asked for: 0, then the last reply's `at` and one.
        at: u32,
        /// Zero.
        reserved: u32,
    }
}

layout! {
    /// A rail of a connection, as the engine's control knows it.
    PeerRail = 12 {
        /// Its queue pair's number on its device; 0 if it has none.
        queue_pair: u32,
        /// Its number, as CQEs and the telemetry page have it.
        rail: u8,
        /// The card that its queue pair is on.
        card: u8,
        /// The class that goes by it: 1 high, 2 medium, 3 low; 0 all; [`PEER_RAIL_APART`].
        class: u8,
        /// `JOINT_*`.
        state: u8,
        /// How often it was connected anew; saturates.
        rebuilt: u16,
        /// With [`JOINT_PUT_OFF`] the milliseconds until it is tried again; saturates.
        put_off_ms: u16,
    }
}

layout! {
    /// Answers PEERS with the connection at or behind the place that was asked for; ENOENT behind
    /// the last. Between two replies connections come and go.
    PeersReply = 512 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// Its place.
        at: u32,
        /// Connections in all, and failures that are remembered.
        count: u32,
        /// Milliseconds that it is in its phase.
        phase_ms: u64,
        /// The other engine's; zeros until it has told.
        boot_id: [u64; 2],
        /// The other engine's process, on its host; 0 until it has told.
        pid: u32,
        /// Milliseconds since anything was heard of it; [`UNHEARD`] if nothing was.
        heard_ms: u32,
        /// Regions of the other engine that sessions here have.
        imports: u32,
        /// Regions of sessions here that the other engine has.
        loans: u32,
        /// Sessions here that have a number for it.
        sessions: u32,
        /// Milliseconds since what `error` tells; 0 without.
        error_ms: u32,
        /// `PHASE_*`.
        phase: u8,
        /// [`PEER_OURS`] or [`PEER_THEIRS`].
        direction: u8,
        /// How many of `rails` mean something; the others are zeros.
        rails_count: u8,
        /// Zero.
        reserved: [u8; 5],
        /// UTF-8, zero padded: the URL that sessions here asked for, or the address that the other
        /// engine came from; empty if it came from this host.
        place: [u8; URL_BYTES],
        /// Its rails, all of card 0 first.
        rails: [PeerRail; PEER_RAILS_MAX],
        /// UTF-8, zero padded: why the last connection to or from that place was lost, or could not
        /// be had; empty if none was. It is told of later connections too.
        error: [u8; PEER_ERROR_BYTES],
    }
}

const _: () = assert!(size_of::<PeersReply>() <= super::MESSAGE_BYTES_MAX);

/// PEERS rail class: one flow goes by it, that of a session whose requests failed the rails of all.
pub const PEER_RAIL_APART: u8 = 4;

/// PEERS: nothing was heard of it yet.
pub const UNHEARD: u32 = u32::MAX;

/// PEERS direction: sessions here asked for it.
pub const PEER_OURS: u8 = 1;
/// PEERS direction: the other engine came.
pub const PEER_THEIRS: u8 = 2;

/// PEERS phase: on the way to the URL.
pub const PHASE_REACHING: u8 = 1;
/// PEERS phase: greeted, and not answered yet.
pub const PHASE_GREETING: u8 = 2;
/// PEERS phase: rails are being joined.
pub const PHASE_JOINING: u8 = 3;
/// PEERS phase: ops can go.
pub const PHASE_UP: u8 = 4;
/// PEERS phase: lost, and being forgotten.
pub const PHASE_LOST: u8 = 5;
/// PEERS phase: there is no such connection; `error` tells what became of the last one.
pub const PHASE_GONE: u8 = 6;

/// PEERS rail: it is being connected for the first time.
pub const JOINT_CONNECTING: u8 = 1;
/// PEERS rail: it is connected.
pub const JOINT_UP: u8 = 2;
/// PEERS rail: it is in doubt, and both ends are brought to rest.
pub const JOINT_QUIESCING: u8 = 3;
/// PEERS rail: it is being connected anew.
pub const JOINT_REBUILDING: u8 = 4;
/// PEERS rail: it could not be connected, and is tried again later.
pub const JOINT_PUT_OFF: u8 = 5;
/// PEERS rail: it has failed for good, or its connection is lost.
pub const JOINT_LOST: u8 = 6;
