//! What moves bytes. One request in, one completion out.
//!
//! The engine posts requests and polls completions; it does not know whether a card, a copy loop
//! or a simulated world is behind them. Neither call blocks or reads a clock.

#[cfg(all(any(test, feature = "sim"), not(verbring_loom)))]
#[doc(hidden)]
pub mod conformance;
#[cfg(not(verbring_loom))]
mod local;
#[cfg(not(verbring_loom))]
mod pair;
#[cfg(not(verbring_loom))]
pub mod qp;
#[cfg(not(verbring_loom))]
pub mod verbs;

#[cfg(not(verbring_loom))]
pub use local::Local;
#[cfg(not(verbring_loom))]
pub use pair::{Held, Pair};

use crate::abi::Page;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Local to remote.
    Write,
    /// Remote to local.
    Read,
    /// Adds `arg[0]` to a remote u64, old value to local.
    FetchAdd,
    /// Replaces a remote u64 by `arg[1]` if it is `arg[0]`, old value to local.
    CmpSwap,
}

/// One work request. Ranges and rights were checked by the engine; a fabric checks again what its
/// own safety rests on.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Comes back in the completion; no two requests have the same.
    pub ticket: u64,
    /// What to do.
    pub verb: Verb,
    /// Index of the local region.
    pub local: u32,
    /// Index of the remote region.
    pub remote: u32,
    /// Byte offset into the local region.
    pub local_offset: u64,
    /// Byte offset into the remote region.
    pub remote_offset: u64,
    /// Bytes to move.
    pub bytes: u32,
    /// Operands of atomics.
    pub arg: [u64; 2],
    /// Which rail it goes by, where the fabric has several.
    pub rail: u16,
    /// `REQUEST_*` bits; only those that [`Limits`] offers.
    pub flags: u16,
    /// With [`REQUEST_NOTIFY`]: what the owner of the remote region is told.
    pub immediate: u32,
    /// How often it was under way already: as it was handed back ([`DONE_RETURNED`]).
    pub attempts: u8,
}

impl Request {
    /// Nothing, for places that are yet to be filled.
    pub const NONE: Self = Self {
        ticket: 0,
        verb: Verb::Write,
        local: u32::MAX,
        remote: u32::MAX,
        local_offset: 0,
        remote_offset: 0,
        bytes: 0,
        arg: [0; 2],
        rail: 0,
        flags: 0,
        immediate: 0,
        attempts: 0,
    };
}

/// Depends on the request that this rail took just before, whatever that does, whoever it is of,
/// and however long ago it ended. Offered by [`Limits::chain_max`].
///
/// **Order.** It takes effect at the remote side after that one did, and what it brings from here
/// is read after what a READ or an atomic in front of it in the chain brought is in place. (Where a
/// rail other than 0 leads back to this host, the far end of one request may be the near end of the
/// next: bytes that a WRITE leaves there are not waited for. Rail 0 knows no such gap.) This holds
/// too where a chain is repeated: it is repeated in order, from the first that has not succeeded.
///
/// **Failure.** It succeeds only if the one before it succeeded. It ends with:
/// * `ECANCELED` and [`DONE_FLUSHED`], if that one failed, in whatever way: with its own errno, by
///   being cut like this, or because it was flushed and could not be repeated. [`DONE_MAYBE`] is
///   beside it only if it is an atomic, or has notified, and may have been done: not if what failed
///   in front of it was refused. (One that could never have been carried out may say so, with its
///   own errno; and on a rail whose peer is gone all that is posted ends with `EHOSTDOWN`.)
/// * [`DONE_RETURNED`], if that one was handed back; also if it is posted only then.
/// * an errno of the path (`EIO`, as a rule), [`DONE_FLUSHED`] and perhaps [`DONE_MAYBE`], if it
///   was under way when the rail failed and cannot be repeated, though that one is repeated or
///   handed back. In the first case it is told before that one, which may still fail.
///
/// What succeeds or is handed back is told in order. What failed may be told before what it is
/// chained to has ended, where that is repeated. A failure costs no request that is not behind it
/// in its chain, save that what cannot be repeated may have to end as flushed.
pub const REQUEST_CHAIN: u16 = 1 << 0;
/// The owner of the remote region is told once all bytes are in place. Offered by
/// [`Limits::notifies`].
pub const REQUEST_NOTIFY: u16 = 1 << 1;

/// Never shares a work request with a neighbour.
pub const REQUEST_APART: u16 = 1 << 2;

/// How a request ended. Nothing can still touch its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The request's ticket.
    pub ticket: u64,
    /// 0, or a positive errno.
    pub errno: i32,
    /// `DONE_*` bits.
    pub flags: u16,
    /// How often it was posted again, here or before it was handed over, since the queue pair under
    /// it had failed. With [`DONE_RETURNED`]: how often it will have been, if it is posted again.
    pub attempts: u8,
}

impl Done {
    /// An end with nothing to add.
    #[inline]
    #[must_use]
    pub fn new(ticket: u64, errno: i32) -> Self {
        Self { ticket, errno, flags: 0, attempts: 0 }
    }
}

/// It failed with its queue pair, not by its own fault.
pub const DONE_FLUSHED: u16 = 1 << 0;
/// Whether it took effect is not known, and repeating it would not be harmless.
pub const DONE_MAYBE: u16 = 1 << 1;
/// All its bytes are in place; what failed is the notification.
pub const DONE_PLACED: u16 = 1 << 2;

/// It did not end: its rail failed, and it is handed back, to be posted by another rail of the same
/// set ([`Fabric::share`]), or of another ([`Fabric::part`]). Nothing of it can still happen, and
/// repeating it is harmless.
pub const DONE_RETURNED: u16 = 1 << 3;

/// What a fabric can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests it holds at once, over all rails.
    pub depth: u32,
    /// `FABRIC_*`, as in a CQE's detail.
    pub fabric: u8,
    /// Most requests of a chain ([`REQUEST_CHAIN`]) that are under way at once; 1 means that
    /// there are no chains, and that only a completion tells that the next may start.
    pub chain_max: u32,
    /// It carries [`REQUEST_NOTIFY`] to whoever owns the remote region.
    pub notifies: bool,
}

/// Why a rail takes nothing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its depth is used up.
    Depth,
    /// The device had no memory for the last post.
    Memory,
    /// It is being connected for the first time, or there is no such rail.
    Connecting,
    /// It is in doubt: what is under way is brought to its end.
    Degraded,
    /// It is being rebuilt after that, or is connected again and on trial.
    Rebuilding,
    /// Its card erred too often, and pauses.
    Paused,
    /// Its peer is gone. Requests are taken, and end at once as failed.
    Dead,
}

/// What a rail takes at the next post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Requests without [`REQUEST_NOTIFY`], in the common case of one piece of memory each.
    pub requests: u32,
    /// How many of them may have it: credits of the peer. A flow that needs one waits by itself;
    /// it holds nothing that others want.
    pub notifies: u32,
    /// Why nothing is taken.
    pub stop: Option<Stop>,
}

/// A notification from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The rail it came by.
    pub rail: u16,
    /// The region that it speaks of, by the id this side exported it with. Set by the peer:
    /// to be looked at before it is believed.
    pub region: u32,
    /// The sender's immediate.
    pub immediate: u32,
}

/// Moves bytes between regions.
pub trait Fabric {
    /// What a region is to this fabric.
    type Memory;

    /// What it can take. Constant.
    fn limits(&self) -> Limits;

    /// Makes a region known under an index that is not in use.
    fn attach(&mut self, region: u32, memory: Self::Memory);

    /// Forgets a region that no request names any more, and hands its memory back.
    fn detach(&mut self, region: u32) -> Option<Self::Memory>;

    /// Copies a page list out of a region, once; false if the range does not lie inside.
    fn read_pages(&self, region: u32, offset: u64, pages: &mut [Page]) -> bool;

    /// Takes a prefix of `batch`, in order, and returns its length. Requests of one rail that
    /// follow each other go with one doorbell; the first one that is not taken ends the prefix.
    fn post(&mut self, batch: &[Request]) -> usize;

    /// Works for a bounded time and appends completions, never beyond `done`'s capacity.
    fn poll(&mut self, now_ns: u64, done: &mut Vec<Done>);

    /// [`Fabric::poll`] of what devices have done by themselves: nothing is moved in it.
    #[inline]
    fn poll_rails(&mut self, _now_ns: u64, _done: &mut Vec<Done>) {}

    /// What a rail takes at the next post.
    fn room(&self, _rail: u16) -> Room {
        Room { requests: u32::MAX, notifies: 0, stop: None }
    }

    /// Appends notifications from peers, never beyond `out`'s capacity. Taking one lets its
    /// sender send another.
    fn arrivals(&mut self, _out: &mut Vec<Arrival>) {}

    /// How many rails there may be; their numbers are below this. Constant. Rail 0 stays on this
    /// host; the others lead to peers, or back to this host by a device, and carry
    /// [`REQUEST_NOTIFY`] and [`REQUEST_CHAIN`].
    #[inline]
    fn rails(&self) -> u16 {
        1
    }

    /// `FABRIC_*` of a rail, as in a CQE's detail.
    #[inline]
    fn fabric_of(&self, _rail: u16) -> u8 {
        self.limits().fabric
    }

    /// Which of several devices carries a rail, from 0, below 4. Asked when a rail is used for the
    /// first time in a while: its number may be given to another device later.
    #[inline]
    fn card_of(&self, _rail: u16) -> u8 {
        0
    }

    /// Requests that a rail holds at once, at most.
    fn depth_of(&self, _rail: u16) -> u32 {
        self.limits().depth
    }

    /// Gives a region the keys by which requests of this host reach it over a rail that leads
    /// back here.
    fn set_home(&mut self, _region: u32, _memory: Self::Memory) {}

    /// These rails lead to the same place: what one of them fails to do is handed back, for another
    /// to do, and it takes nothing more until it has shown that it works. One that is named alone
    /// shares with none, whatever was said of its number before.
    fn share(&mut self, _rails: u64) {}

    /// From now on, until it is detached, what a failed rail had for this remote region is handed
    /// back ([`DONE_RETURNED`]), whether other rails lead there or not: it may go elsewhere now.
    fn part(&mut self, _region: u32) {}

    /// Requests that went along in the work request of a neighbour, since the start.
    fn merged(&self) -> u64 {
        0
    }

    /// True if a later poll may move something though nothing completes until then: time itself
    /// is waited for.
    fn restless(&self) -> bool {
        false
    }
}
