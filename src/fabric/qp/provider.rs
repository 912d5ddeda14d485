//! What a queue pair provider is: libibverbs, or a simulator of it.
//!
//! Two traits, since two threads use a device. [`Provider`] is the data path: post a list, poll
//! completions; the engine thread owns it, and nothing in it blocks, allocates or reads a clock.
//! [`ProviderControl`] is the slow path: make queue pairs, move their states, register memory;
//! a control thread owns it, and every call may take a system call or milliseconds. What control
//! makes ([`ProviderControl::Pair`]) is handed over as a value and given to
//! [`Provider::adopt`]; it comes back by [`Provider::release`] before it is destroyed.
//!
//! The words are those of verbs, without its pointers: memory is named by address and key, and a
//! key admits exactly the range it was registered for. A provider therefore may be given any
//! numbers at all: what a key does not admit ends as an error completion, never as an access.
//!
//! **Deliberately absent**: depth, signalling, retries of whole requests, credits. All that is
//! one piece above this seam, and the same for every provider.

use thiserror::Error;

/// What the 64 bits of a `wr_id` say, of receives too: generation << 32 | rail << 16 | slot.
///
/// A provider hands them back unchanged. It may read the rail out of them, so that a completion
/// is brought to its queue pair without looking for the queue pair's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrId(pub u64);

impl WrId {
    /// The slot of a receive: receives are not told apart, since they complete in order.
    pub const RECEIVE: u16 = u16::MAX;

    /// Composes an id.
    #[must_use]
    pub fn new(generation: u32, rail: u16, slot: u16) -> Self {
        Self(u64::from(generation) << 32 | u64::from(rail) << 16 | u64::from(slot))
    }

    /// How often the slot was used before; for a receive the queue pair's epoch.
    #[must_use]
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The rail that the queue pair was adopted as.
    #[must_use]
    pub fn rail(self) -> u16 {
        (self.0 >> 16 & 0xffff) as u16
    }

    /// The place in the rail's table of posted work, or [`WrId::RECEIVE`].
    #[must_use]
    pub fn slot(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

/// What a work request does (`IBV_WR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrVerb {
    /// `RDMA_WRITE`. With 0 bytes no key is looked at, at either end.
    Write,
    /// `RDMA_READ`.
    Read,
    /// `ATOMIC_FETCH_AND_ADD` of `arg[0]`; the old value goes to the local 8 bytes.
    FetchAdd,
    /// `ATOMIC_CMP_AND_SWP`: `arg[0]` is compared, `arg[1]` is put in its place.
    CmpSwap,
    /// `SEND` of a message: the [`MESSAGE_BYTES`] bytes of `arg`, little-endian, always inline.
    Send,
}

impl WrVerb {
    /// True if what follows in order needs a fence: its result comes back after the request left.
    #[must_use]
    pub fn answers(self) -> bool {
        matches!(self, Self::Read | Self::FetchAdd | Self::CmpSwap)
    }
}

/// Bytes of a message: what a SEND carries and a receive buffer holds.
pub const MESSAGE_BYTES: u32 = 16;

/// A range of local memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub address: u64,
    /// Its key.
    pub lkey: u32,
    /// Its length.
    pub bytes: u32,
}

/// Local ranges of a work request beyond what it names itself: a part of the list beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// The first of them.
    pub first: u16,
    /// How many; 0 if the work request's own range is all there is.
    pub count: u16,
}

impl Ranges {
    /// None: there is one range, in the work request itself.
    pub const NONE: Self = Self { first: 0, count: 0 };

    /// The part of the list.
    #[must_use]
    pub fn of(self, all: &[Range]) -> &[Range] {
        all.get(usize::from(self.first)..)
            .and_then(|all| all.get(..self.count.into()))
            .unwrap_or(&[])
    }
}

/// Most local ranges of one work request that are ever asked for.
pub const RANGES_MAX: u32 = 16;

/// One work request, with one local range or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wr {
    /// A [`WrId`]; comes back in the completion.
    pub wr_id: u64,
    /// What to do.
    pub verb: WrVerb,
    /// Completes with a [`Wc`] also on success (`SEND_SIGNALED`). Errors always do.
    pub signaled: bool,
    /// Starts after all earlier READs and atomics of this queue pair are done (`SEND_FENCE`).
    pub fence: bool,
    /// A WRITE whose bytes are copied at post (`SEND_INLINE`), at most [`Caps::inline_bytes`].
    /// The provider checks that they lie inside the memory of `lkey`: libibverbs would not.
    pub inline: bool,
    /// Local address. Not looked at for SEND and for 0 bytes.
    pub address: u64,
    /// Local key.
    pub lkey: u32,
    /// Bytes to move; 8 for atomics, [`MESSAGE_BYTES`] for SEND.
    pub bytes: u32,
    /// Address at the peer. Not looked at for SEND.
    pub remote_address: u64,
    /// The peer's key.
    pub rkey: u32,
    /// Operands of atomics; a SEND's message.
    pub arg: [u64; 2],
    /// The local side of a WRITE or READ, if it is in several ranges: `address` and `lkey` are
    /// those of the first then, and `bytes` their sum. At most [`Caps::ranges`].
    pub ranges: Ranges,
}

impl Wr {
    /// Its local ranges, in order.
    pub fn local<'a>(&self, all: &'a [Range]) -> impl Iterator<Item = Range> + 'a {
        let own = Range { address: self.address, lkey: self.lkey, bytes: self.bytes };
        let several = self.ranges.of(all);
        several.is_empty().then_some(own).into_iter().chain(several.iter().copied())
    }
}

/// A list was not posted whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("post stopped at {taken:?} with errno {errno}")]
pub struct BadPost {
    /// How many of the list were posted: the index of `bad_wr`. `None` if the provider did not
    /// say (a null `bad_wr`) or pointed outside the list: then any prefix may be posted.
    pub taken: Option<u32>,
    /// Positive errno: ENOMEM for a full queue, EINVAL for a state or a value.
    pub errno: i32,
}

/// What completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WcKind {
    /// A posted work request. On an error this and `wr_id` are all that is known of it.
    Work,
    /// A receive; `message` is what came.
    Receive,
}

/// How a work request ended (`IBV_WC_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WcStatus {
    /// `SUCCESS`.
    Success,
    /// `LOC_LEN_ERR`.
    LocalLength,
    /// `LOC_QP_OP_ERR`.
    LocalOperation,
    /// `LOC_PROT_ERR`: the local key does not admit the range.
    LocalProtection,
    /// `WR_FLUSH_ERR`: another request, or the queue pair's own move, was the cause.
    Flushed,
    /// `BAD_RESP_ERR`.
    BadResponse,
    /// `LOC_ACCESS_ERR`.
    LocalAccess,
    /// `REM_INV_REQ_ERR`.
    RemoteInvalid,
    /// `REM_ACCESS_ERR`: the remote key does not admit it.
    RemoteAccess,
    /// `REM_OP_ERR`.
    RemoteOperation,
    /// `RETRY_EXC_ERR`: the peer does not answer.
    RetryExceeded,
    /// `RNR_RETRY_EXC_ERR`: the peer has no receive posted.
    ReceiverNotReady,
    /// `REM_ABORT_ERR`.
    RemoteAborted,
    /// `FATAL_ERR`: the device.
    Fatal,
    /// `RESP_TIMEOUT_ERR`.
    ResponseTimeout,
    /// Any other, as its number.
    Other(u32),
}

impl WcStatus {
    /// From the number in `ibv_wc.status`.
    #[must_use]
    pub fn from_ibv(number: u32) -> Self {
        match number {
            0 => Self::Success,
            1 => Self::LocalLength,
            2 => Self::LocalOperation,
            4 => Self::LocalProtection,
            5 => Self::Flushed,
            7 => Self::BadResponse,
            8 => Self::LocalAccess,
            9 => Self::RemoteInvalid,
            10 => Self::RemoteAccess,
            11 => Self::RemoteOperation,
            12 => Self::RetryExceeded,
            13 => Self::ReceiverNotReady,
            16 => Self::RemoteAborted,
            19 => Self::Fatal,
            20 => Self::ResponseTimeout,
            other => Self::Other(other),
        }
    }
}

/// One work completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wc {
    /// As it was posted.
    pub wr_id: u64,
    /// The queue pair's number on its device. Of interest to people; `wr_id` has the rail.
    pub number: u32,
    /// How it ended.
    pub status: WcStatus,
    /// What it was.
    pub kind: WcKind,
    /// Bytes moved, where the provider says so.
    pub bytes: u32,
    /// A received message; only with [`WcKind::Receive`], success, and [`MESSAGE_BYTES`] bytes.
    pub message: [u64; 2],
    /// The vendor's code for an error.
    pub vendor_error: u32,
}

/// A card's completion queue is broken: overrun, or the device is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the completion queue of card {card} is broken, errno {errno}")]
pub struct Broken {
    /// The card.
    pub card: u8,
    /// Positive errno.
    pub errno: i32,
}

/// The data path of an engine's cards, a completion queue each. One thread owns it.
///
/// Order per queue pair is that of a reliable connection: requests start in order, complete in
/// order, and every signalled or failed one completes once. After the first error the queue pair
/// is in ERROR: all that was posted before, and whatever is posted then, completes as
/// [`WcStatus::Flushed`], signalled or not.
pub trait Provider {
    /// A queue pair, as control made it.
    type Pair;

    /// Entries of a card's completion queue; 0 for one that is not there. Constant. Whoever posts
    /// stays below it.
    fn completions_max(&self, card: u8) -> u32;

    /// Makes a queue pair known as a rail that is not in use. It is in INIT; completions of it
    /// carry its rail in their `wr_id`.
    fn adopt(&mut self, rail: u16, pair: Self::Pair);

    /// Forgets a rail, and hands its queue pair back.
    fn release(&mut self, rail: u16) -> Option<Self::Pair>;

    /// [`Provider::post_ranges`] of work requests with one local range each.
    ///
    /// # Errors
    /// As there.
    fn post(&mut self, rail: u16, list: &[Wr]) -> Result<(), BadPost> {
        self.post_ranges(rail, list, &[])
    }

    /// Posts a list in order with one doorbell; `ranges` is what [`Wr::ranges`] name a part of.
    /// Fails without side effects for a rail that is not known (`taken: Some(0)`, EINVAL).
    ///
    /// # Errors
    /// [`BadPost`]: a prefix was posted, and follows its way as if it had been posted alone.
    fn post_ranges(&mut self, rail: u16, list: &[Wr], ranges: &[Range]) -> Result<(), BadPost>;

    /// Posts `count` receives of one message each, all with the same `wr_id`. The provider owns
    /// their buffers: receives of one queue pair complete in order, so a ring of as many as the
    /// queue pair's [`Caps::receives`] is enough. Possible in INIT and later states.
    ///
    /// # Errors
    /// [`BadPost`], as for [`Provider::post`].
    fn post_receives(&mut self, rail: u16, wr_id: u64, count: u32) -> Result<(), BadPost>;

    /// Appends completions of all cards, never beyond `out`'s capacity; fewer only if there are no
    /// more now.
    ///
    /// # Errors
    /// [`Broken`]; what was appended counts all the same.
    fn poll(&mut self, out: &mut Vec<Wc>) -> Result<(), Broken>;

    /// Asks for one event on each card's channel at the next completion. Poll once more after
    /// it: what completed before this call gives no event.
    ///
    /// # Errors
    /// A positive errno.
    fn arm(&mut self) -> Result<(), i32>;
}

/// What a device and its port can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Queue pairs.
    pub pairs_max: u32,
    /// Work requests of one queue (`max_qp_wr`); may be over-reported.
    pub depth_max: u32,
    /// Entries of a completion queue.
    pub completions_max: u32,
    /// Memory registrations.
    pub registrations_max: u32,
    /// Bytes of one registration (`max_mr_size`).
    pub registration_bytes_max: u64,
    /// Bytes of one message (the port's `max_msg_sz`).
    pub message_bytes_max: u32,
    /// Local ranges of one work request, of READs too (`max_sge`, `max_sge_rd`), at least 1.
    pub ranges_max: u32,
    /// READs and atomics that a queue pair answers at once (`max_qp_rd_atom`).
    pub reads_in_max: u8,
    /// READs and atomics that a queue pair has outstanding (`max_qp_init_rd_atom`).
    pub reads_out_max: u8,
    /// Path MTU that the port has active, bytes: 256, 512, 1024, 2048 or 4096.
    pub mtu_bytes: u32,
    /// Atomics exclude each other on this device (`IBV_ATOMIC_HCA` or better).
    pub atomics: bool,
}

/// Sizes of one queue pair: asked for, and given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Work requests that the send queue holds.
    pub sends: u32,
    /// Receives that the receive queue holds.
    pub receives: u32,
    /// Bytes that a WRITE or SEND may carry inline; at least [`MESSAGE_BYTES`].
    pub inline_bytes: u32,
    /// Local ranges of one work request, at least 1.
    pub ranges: u32,
}

/// How a path is to be used. The defaults are [`PathSettings::DEFAULT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSettings {
    /// The device's port, from 1.
    pub port: u8,
    /// Index into the port's table of GIDs.
    pub gid_index: u8,
    /// Largest path MTU to use, bytes; the least of this and both ends' is taken.
    pub mtu_bytes_max: u32,
    /// Time to an acknowledgement: 4.096 us * 2^this, 1 to 31.
    pub timeout: u8,
    /// Repeats without an acknowledgement, 0 to 7.
    pub retry: u8,
    /// Repeats while the peer has no receive, 0 to 7; 7 is without end.
    pub rnr_retry: u8,
    /// How long the peer is told to wait for a receive of ours (IBTA code, 0 to 31).
    pub rnr_timer: u8,
    /// Service level, 0 to 15.
    pub service_level: u8,
    /// Traffic class (DSCP and ECN, for RoCE).
    pub traffic_class: u8,
    /// Hops.
    pub hop_limit: u8,
}

impl PathSettings {
    /// About half a second until a silent peer is noticed; receives are credited, so rarely
    /// wanting.
    pub const DEFAULT: Self = Self {
        port: 1,
        gid_index: 0,
        mtu_bytes_max: 4096,
        timeout: 14,
        retry: 7,
        rnr_retry: 7,
        rnr_timer: 12,
        service_level: 0,
        traffic_class: 0,
        hop_limit: 64,
    };
}

/// One end of a connection, as the other end must know it. Two sides exchange these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The queue pair's number, 24 bits.
    pub number: u32,
    /// Its first packet sequence number, 24 bits, random.
    pub psn: u32,
    /// Its GID.
    pub gid: [u8; 16],
    /// Its LID; 0 on Ethernet.
    pub lid: u16,
    /// Its largest MTU, bytes.
    pub mtu_bytes: u32,
    /// READs and atomics that it answers at once.
    pub reads_in: u8,
    /// READs and atomics that it would have outstanding.
    pub reads_out: u8,
    /// Messages it has receives posted for: the first credit of the other end. Receives that
    /// are kept back for credit messages are not in it.
    pub credits: u32,
}

/// Both ends and the settings: what a queue pair needs to reach RTR and RTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// This end.
    pub own: Endpoint,
    /// The other end.
    pub peer: Endpoint,
    /// The path between them.
    pub settings: PathSettings,
}

impl Link {
    /// The MTU in force, bytes: the least of both ends and the setting.
    #[must_use]
    pub fn mtu_bytes(&self) -> u32 {
        self.own.mtu_bytes.min(self.peer.mtu_bytes).min(self.settings.mtu_bytes_max)
    }

    /// READs and atomics that this end may have outstanding (`max_rd_atomic`).
    #[must_use]
    pub fn reads_out(&self) -> u8 {
        self.own.reads_out.min(self.peer.reads_in)
    }

    /// READs and atomics that this end must answer at once (`max_dest_rd_atomic`).
    #[must_use]
    pub fn reads_in(&self) -> u8 {
        self.own.reads_in.min(self.peer.reads_out)
    }
}

/// A queue pair's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairState {
    /// Holds nothing; what it held gives no completion any more.
    Reset,
    /// Receives can be posted.
    Init,
    /// RTR.
    ReadyToReceive,
    /// RTS.
    ReadyToSend,
    /// Everything posted is flushed.
    Error,
    /// SQD, SQE or one that is not known.
    Other,
}

/// A move to another state, with what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// From any state.
    Reset,
    /// From RESET: the port (`settings.port`), and remote WRITE, READ and atomics admitted.
    Init(PathSettings),
    /// From INIT: destination, MTU, `rq_psn` (the peer's psn), `reads_in`, rnr timer, address.
    ReadyToReceive(Link),
    /// From RTR: `sq_psn` (our psn), timeout, retries, `reads_out`.
    ReadyToSend(Link),
    /// From any state.
    Error,
}

/// What others may do with registered memory. Local writing is always admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Peers may WRITE.
    pub write: bool,
    /// Peers may READ.
    pub read: bool,
    /// Peers may use atomics.
    pub atomics: bool,
}

/// One registered piece of a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it starts in the memory, bytes.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// The address that work requests use for `offset`.
    pub address: u64,
    /// For our own work requests.
    pub lkey: u32,
    /// For those of peers.
    pub rkey: u32,
}

/// A memory registered with one device: one key, or several where the device's limit splits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Names it to [`ProviderControl::deregister`].
    pub id: u32,
    /// In order of offset, without gaps, together the whole memory.
    pub keys: Box<[Key]>,
}

/// A queue pair that was made.
#[derive(Debug)]
pub struct Created<P> {
    /// For [`Provider::adopt`].
    pub pair: P,
    /// Its number: names it to [`ProviderControl`].
    pub number: u32,
    /// What it really holds; found by making it, since devices over-report.
    pub caps: Caps,
}

/// A control call failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The system or the device refused.
    #[error("{call} failed with errno {errno}: {hint}")]
    Os {
        /// The call.
        call: &'static str,
        /// Positive errno.
        errno: i32,
        /// What to do about it.
        hint: &'static str,
    },
    /// More than the device has, or a value that cannot be.
    #[error("{field} is {value}, beyond {limit}: {hint}")]
    Limit {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is possible.
        limit: u64,
        /// What to do about it.
        hint: &'static str,
    },
    /// No address is at a place of a port's table.
    #[error("place {index} of port {port}'s table of GIDs is empty: {hint}")]
    NoAddress {
        /// The port, from 1.
        port: u8,
        /// The place.
        index: u8,
        /// What to do about it.
        hint: &'static str,
    },
    /// A move that the state does not permit.
    #[error("queue pair {number} is in {have:?}, from which it cannot go to {want:?}")]
    State {
        /// The queue pair's number.
        number: u32,
        /// Its state.
        have: PairState,
        /// The state asked for.
        want: PairState,
    },
    /// No queue pair or registration of this number.
    #[error("no {what} {number} on this device")]
    Unknown {
        /// `queue pair` or `registration`.
        what: &'static str,
        /// The number.
        number: u32,
    },
}

/// The slow path of the same device. A control thread owns it; every call may block.
pub trait ProviderControl {
    /// A queue pair on its way to [`Provider::adopt`]; may cross threads.
    type Pair;
    /// Memory that can be registered. Registering keeps it alive.
    type Memory;

    /// What the device can do.
    fn limits(&self) -> DeviceLimits;

    /// Makes a queue pair in RESET, its completions going to the device's one queue. Asks for
    /// less until the device agrees, down to 1 send, 1 receive, 1 range and [`MESSAGE_BYTES`]
    /// inline.
    ///
    /// # Errors
    /// If not even that can be had, or the completion queue cannot hold all that was asked for.
    fn create(&mut self, ask: Caps) -> Result<Created<Self::Pair>, ProviderError>;

    /// This end of a queue pair, with a fresh random psn.
    ///
    /// # Errors
    /// If the number is not known, or the port has no such GID.
    fn endpoint(
        &mut self,
        number: u32,
        settings: &PathSettings,
        credits: u32,
    ) -> Result<Endpoint, ProviderError>;

    /// Moves a queue pair to another state.
    ///
    /// # Errors
    /// If the number is not known, or the device refuses.
    fn modify(&mut self, number: u32, to: &Move) -> Result<(), ProviderError>;

    /// Asks for a queue pair's state.
    ///
    /// # Errors
    /// If the number is not known, or the device refuses.
    fn state(&mut self, number: u32) -> Result<PairState, ProviderError>;

    /// Ends a queue pair. Completions of it that were not polled may be lost.
    ///
    /// # Errors
    /// If the device refuses; the queue pair is then leaked, not used again.
    fn destroy(&mut self, number: u32, pair: Self::Pair) -> Result<(), ProviderError>;

    /// Registers a whole memory, split at the device's limit.
    ///
    /// # Errors
    /// If the device refuses: for want of locked memory, mostly. Nothing stays registered then.
    fn register(
        &mut self,
        memory: &Self::Memory,
        access: Access,
    ) -> Result<Registration, ProviderError>;

    /// Ends a registration: after this no key of it admits anything, and the memory is let go.
    ///
    /// # Errors
    /// If the id is not known, or the device refuses; the memory then stays.
    fn deregister(&mut self, id: u32) -> Result<(), ProviderError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wr_id_gives_back_what_was_put_in() {
        for (generation, rail, slot) in [(0, 0, 0), (u32::MAX, 1, WrId::RECEIVE), (7, 0xffff, 3)] {
            let id = WrId::new(generation, rail, slot);
            assert_eq!((id.generation(), id.rail(), id.slot()), (generation, rail, slot));
        }
    }

    #[test]
    fn a_link_takes_the_least_of_both_ends() {
        let own = Endpoint {
            number: 1,
            psn: 2,
            gid: [0; 16],
            lid: 0,
            mtu_bytes: 4096,
            reads_in: 16,
            reads_out: 8,
            credits: 4,
        };
        let peer = Endpoint { mtu_bytes: 1024, reads_in: 4, reads_out: 2, ..own };
        let link = Link { own, peer, settings: PathSettings::DEFAULT };
        assert_eq!((link.mtu_bytes(), link.reads_out(), link.reads_in()), (1024, 4, 2));
        let settings = PathSettings { mtu_bytes_max: 512, ..PathSettings::DEFAULT };
        assert_eq!(Link { settings, ..link }.mtu_bytes(), 512);
    }
}
