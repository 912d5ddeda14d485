//! CARDS: what an engine reaches others by, one card a message.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::control::layout;
use super::{Head, ReplyHead};

/// PROBE feature: CARDS is served.
pub const FEATURE_CARDS: u64 = 1 << 3;
/// Most addresses of a card that are told.
pub const CARD_ADDRESSES_MAX: usize = 4;
/// Most bytes of a card's name.
pub const CARD_NAME_BYTES: usize = 80;

layout! {
    /// CARDS: asks for a card. For root and the engine's own uid. Served if PROBE's features have
    /// [`FEATURE_CARDS`].
    CardsRequest = 24 {
        /// Kind [`Kind::Cards`](super::Kind::Cards).
        head: Head,
        /// Its number, from 0, as PEERS has it.
        card: u32,
        /// Zero.
        reserved: u32,
    }
}

layout! {
    /// Answers CARDS; ENOENT behind the last.
    CardsReply = 200 {
        /// See [`ReplyHead`].
        reply: ReplyHead,
        /// The number that was asked for.
        card: u32,
        /// Cards in all.
        count: u32,
        /// Bytes that may be in flight by it, over all its rails.
        window_bytes: u64,
        /// Ops likewise.
        window_ops: u32,
        /// Work requests (slices and pages) likewise.
        window_wrs: u32,
        /// Its port's addresses (GIDs) that rails may use, best first; IPv4 as `::ffff:a.b.c.d`.
        addresses: [[u8; 16]; CARD_ADDRESSES_MAX],
        /// How many of `addresses` mean something; the others are zeros.
        addresses_count: u8,
        /// Zero.
        reserved: [u8; 7],
        /// UTF-8, zero padded: device and port, for people.
        name: [u8; CARD_NAME_BYTES],
    }
}

const _: () = assert!(size_of::<CardsReply>() <= super::MESSAGE_BYTES_MAX);
