//! The safe client: sessions, regions, rings, and typed ops.
//!
//! ```text
//!  Session ---alloc---> Region ---lend---> Lease --\
//!     |                   |                         >-- Write, Read, ... --push--> Ring
//!     |                   \--export--> Secret      /                                |
//!     \------import(Secret)--> Import ---at---> Remote       Completion <---reap----/
//!                                                            (brings the Lease back)
//! ```
//!
//! Setting things up goes over the control socket, one request at a time, and blocks until the
//! engine answers. Ops go through the ring and cost no system call, unless one side sleeps.
//!
//! **Invariants**: every call that waits ends when the engine dies or ends the session. What the
//! engine sends or writes is checked before it is believed.
//! **Deliberately absent**: the engine; threads; anything asynchronous beyond a bell to poll.
//! **Tests**: here against a small peer that answers by hand; `tests/` against the engine.

mod cards;
mod error;
#[cfg(test)]
mod fake;
mod graph;
mod ops;
mod peer;
mod peers;
mod plight;
mod raw;
mod records;
mod region;
mod report;
mod ring;
mod story;
mod telemetry;
#[cfg(test)]
mod tests;
mod wire;

pub use cards::CardReport;
pub use error::{
    ConnectError, ControlError, LendError, OpError, PushError, PushReason, Refusal, RingError,
    Unfit, UnfitReason,
};
pub use ops::{
    Arm, Cancel, CmpSwap, FetchAdd, Flush, Join, Nop, Op, PagePair, Read, Readv, Write, Writev,
};
pub use peer::Peer;
pub use peers::{PeerRail, PeerReport, joint_words, phase_words};
pub use plight::{mode_words, rail_words, state_words};
pub use raw::{RawRing, RingOptions};
pub use records::{LedgerEntry, Recorder, RecorderError};
pub use region::{BadSecret, Import, Lease, Region, Remote, Rights, Secret};
pub use report::{ContractOf, OpRef, Probe, Scope, Stats, Why};
pub use ring::{Completion, Lost, Notification, Ring, Ticket};
pub use story::wait_words;
pub use telemetry::{Look, Tallies, Telemetry, TelemetryError};

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::abi::{self, Detail, Head, Kind};
use crate::ring::Mapped;
use crate::shm::{self, Mapping, PAGE_BYTES};
use wire::{Wire, padded};

/// A client's attachment to an engine: owns regions, imports and rings.
///
/// Clones mean the same session, and may be used from any thread; requests take turns. The session
/// ends, and the engine takes everything back, when the last clone is gone and with it all
/// regions, leases, imports and rings, each of which holds one.
///
/// # Examples
/// ```
/// use verbring::{Engine, Session, abi::Opcode};
///
/// let path = std::env::temp_dir().join(format!("verbring-doc-{}", std::process::id()));
/// let engine = Engine::builder().socket(&path).spawn()?; // or `verbring serve --socket PATH`
/// let session = Session::connect(&path)?;
/// assert!(session.probe()?.serves(Opcode::Write));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    attached: Arc<Attached>,
}

#[derive(Debug)]
struct Attached {
    wire: Wire,
    /// Tells sessions of this process apart, whatever engines they belong to.
    uid: u64,
    hello: abi::HelloReply,
    recorder: Option<Recorder>,
}

static SESSIONS: AtomicU64 = AtomicU64::new(1);

impl Session {
    /// Opens a session with the engine that listens at `path`. It has a flight recorder, if the
    /// engine keeps them and the quota allows.
    ///
    /// # Errors
    /// [`ConnectError`] if nobody listens there or the engine does not take us.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::from_socket(dial(path.as_ref())?)
    }

    /// Opens a session without a flight recorder: of its ops nothing is kept, and that costs
    /// nothing.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn connect_unrecorded(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        Self::greet(dial(path.as_ref())?, false)
    }

    /// Opens a session over a control socket that is connected already; otherwise as
    /// [`Session::connect`].
    ///
    /// # Errors
    /// [`ConnectError`] if the engine does not take us.
    pub fn from_socket(socket: OwnedFd) -> Result<Self, ConnectError> {
        Self::greet(socket, true)
    }

    fn greet(socket: OwnedFd, recorded: bool) -> Result<Self, ConnectError> {
        let wire = Wire::new(socket);
        let hello = |head| abi::Hello {
            head,
            version_min: abi::ABI_VERSION,
            version_max: abi::ABI_VERSION,
            reserved: 0,
            features: abi::FEATURES,
            name: own_name(),
        };
        let (hello, [pidfd]): (abi::HelloReply, _) = wire.call(Kind::Hello, hello, None)?;
        if hello.version != u32::from(abi::ABI_VERSION) || hello.features & !abi::FEATURES != 0 {
            let what = "a version or feature that was not asked for";
            return Err(ControlError::Protocol { what }.into());
        }
        wire.watch(pidfd);
        let uid = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let recorder = if recorded { own_recorder(&wire)? } else { None };
        Ok(Self { attached: Arc::new(Attached { wire, uid, hello, recorder }) })
    }

    /// Returns this session's flight recorder, if it has one.
    #[must_use]
    pub fn recorder(&self) -> Option<&Recorder> {
        self.attached.recorder.as_ref()
    }

    /// Returns what became of this session's ops that ended last, oldest first; also after the
    /// engine's death. Empty without a flight recorder. NOPs, and SQEs that were refused, leave
    /// nothing.
    #[must_use]
    pub fn last_records(&self) -> Vec<LedgerEntry> {
        self.recorder().map(Recorder::records).unwrap_or_default()
    }

    /// Returns what became of the op with this record, as its completion names it, if it is over
    /// and its entry is not overwritten yet.
    #[must_use]
    pub fn find_record(&self, record: u64) -> Option<LedgerEntry> {
        self.recorder()?.find(record)
    }

    /// Maps the flight recorders of all live sessions of this uid (of all uids, for root).
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with EOPNOTSUPP if the engine keeps none.
    pub fn recorders(&self) -> Result<Vec<Recorder>, ControlError> {
        if self.probe()?.features & abi::FEATURE_RECORDER == 0 {
            return Err(unserved(Kind::Recorder, "this engine keeps no flight recorders"));
        }
        let (mut found, mut from) = (Vec::new(), 0);
        loop {
            match ask_recorder(self.wire(), from) {
                Ok(recorder) => {
                    from = recorder.session() + 1;
                    found.push(recorder);
                }
                Err(ControlError::Refused(refusal)) if refusal.errno == abi::errno::ENOENT => {
                    return Ok(found);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Maps the engine's telemetry page, for root and the engine's own uid: what goes through each
    /// lane, rail and session. To look at it asks nothing of the engine.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with EACCES for anybody else, and with EOPNOTSUPP if the engine
    /// has none.
    pub fn telemetry(&self) -> Result<Telemetry, ControlError> {
        if self.probe()?.features & abi::FEATURE_TELEMETRY == 0 {
            return Err(unserved(Kind::Telemetry, "this engine has no telemetry page"));
        }
        let request = |head| abi::TelemetryRequest { head };
        let (reply, [memfd]): (abi::TelemetryReply, _) =
            self.wire().call(Kind::Telemetry, request, None)?;
        let telemetry = match Telemetry::open(memfd) {
            Ok(telemetry) => telemetry,
            Err(TelemetryError::Memory(error)) => return Err(error.into()),
            Err(_) => return Err(ControlError::Protocol { what: "a telemetry page that is none" }),
        };
        if telemetry.bytes() != reply.bytes || telemetry.boot_id() != self.boot_id() {
            return Err(ControlError::Protocol { what: "another engine's telemetry page" });
        }
        Ok(telemetry)
    }

    /// Makes a ring for typed ops. A thread that submits has a ring of its own.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with `Detail::Entries` for entry counts that cannot be.
    pub fn ring(&self, options: RingOptions) -> Result<Ring, ControlError> {
        Ok(Ring::new(self.raw_ring(options)?))
    }

    /// Makes a ring for whole entries.
    ///
    /// # Errors
    /// As [`Session::ring`].
    pub fn raw_ring(&self, options: RingOptions) -> Result<RawRing, ControlError> {
        let RingOptions { sq_entries, cq_entries, spin } = options;
        let request =
            |head| abi::RingRequest { head, sq_entries, cq_entries, flags: 0, reserved: 0 };
        let (reply, [segment, sq_bell, cq_bell]): (abi::RingReply, _) =
            self.wire().call(Kind::Ring, request, None)?;
        self.mapped(abi::OBJECT_RING, reply.ring, || {
            let mapping = map_made(segment.as_fd(), reply.segment_bytes)?;
            mapping.populate()?;
            let memory = Mapped::open(Arc::new(mapping))?;
            let header = memory.header();
            let asked = [sq_entries, cq_entries, reply.ring];
            if [header.sq_entries, header.cq_entries, header.ring] != asked {
                return Err(ControlError::Protocol { what: "a ring other than the one asked for" });
            }
            Ok(memory)
        })
        .map(|memory| RawRing::new(self.clone(), memory, [sq_bell, cq_bell], spin))
    }

    /// Makes a region of zeroed memory that the engine allocates.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with `Detail::Quota` beyond what this uid may have.
    pub fn alloc(&self, bytes: u64) -> Result<Region, ControlError> {
        self.allocate(bytes, 0)
    }

    /// Makes a region in huge pages, if the machine has them to spare; [`Region::is_huge`] tells.
    ///
    /// # Errors
    /// As [`Session::alloc`].
    pub fn alloc_huge(&self, bytes: u64) -> Result<Region, ControlError> {
        self.allocate(bytes, abi::REGION_HUGE)
    }

    fn allocate(&self, bytes: u64, flags: u32) -> Result<Region, ControlError> {
        let request =
            |head| abi::RegionRequest { head, source: abi::REGION_ALLOCATED, flags, bytes };
        let (reply, [memory]): (abi::RegionReply, _) =
            self.wire().call(Kind::Region, request, None)?;
        let mapping = self.mapped(abi::OBJECT_REGION, reply.region, || {
            if reply.bytes < bytes {
                return Err(ControlError::Protocol { what: "a region smaller than asked for" });
            }
            Ok(map_made(memory.as_fd(), reply.bytes)?)
        })?;
        let huge = reply.flags & abi::REGION_HUGE != 0;
        Ok(Region::new(self.clone(), reply.region, huge, mapping))
    }

    /// Makes a region from the first `bytes` of a memfd of ours, a multiple of 4,096. It must be
    /// sealed against shrinking and growing; the engine seals it further, so that nobody can map
    /// it for writing any more.
    ///
    /// # Errors
    /// [`ControlError::Memory`] if it is not such a memfd; a refusal as for [`Session::alloc`].
    pub fn region_from_memfd(&self, memfd: OwnedFd, bytes: u64) -> Result<Region, ControlError> {
        shm::inspect(memfd.as_fd(), bytes)?;
        // Once the engine has sealed it, it is too late to map it.
        let mapping = Mapping::shared(memfd.as_fd(), bytes)?;
        let request =
            |head| abi::RegionRequest { head, source: abi::REGION_MEMFD, flags: 0, bytes };
        let (reply, []): (abi::RegionReply, _) =
            self.wire().call(Kind::Region, request, Some(memfd.as_fd()))?;
        let huge = reply.flags & abi::REGION_HUGE != 0;
        Ok(Region::new(self.clone(), reply.region, huge, mapping))
    }

    /// Takes up an export of this engine under its name and secret, of this uid or another one.
    /// Grants all rights that are offered. [`Peer::import`] does so at another engine.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with ENOENT for an unknown name, with EACCES for a wrong secret.
    pub fn import(
        &self,
        name: &str,
        uid: Option<u32>,
        secret: &Secret,
    ) -> Result<Import, ControlError> {
        self.take_up(0, name, uid, secret)
    }

    /// IMPORT, from a peer or (0) from this engine.
    fn take_up(
        &self,
        peer: u32,
        name: &str,
        uid: Option<u32>,
        secret: &Secret,
    ) -> Result<Import, ControlError> {
        let name = padded(name).ok_or(ControlError::Name)?;
        let uid = uid.unwrap_or(abi::UID_OWN);
        let secret = *secret.as_bytes();
        let request = |head| abi::Import { head, rights: 0, uid, name, secret, peer, reserved: 0 };
        let (reply, []): (abi::ImportReply, _) = self.wire().call(Kind::Import, request, None)?;
        let rights = Rights::from_bits(reply.rights);
        Ok(Import::new(self.clone(), reply.region, rights, reply.bytes))
    }

    /// Asks what this engine serves, and how much of it this session may have.
    ///
    /// # Errors
    /// [`ControlError`] if the session or the engine is over.
    pub fn probe(&self) -> Result<Probe, ControlError> {
        let (reply, []): (abi::ProbeReply, _) =
            self.wire().call(Kind::Probe, |head| abi::Probe { head }, None)?;
        Ok(reply.into())
    }

    /// Asks for counters.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with EACCES if the engine's are not for us.
    pub fn stats(&self, scope: Scope) -> Result<Stats, ControlError> {
        let request = |head| abi::Stats { head, scope: scope.number(), reserved: 0 };
        let (reply, []): (abi::StatsReply, _) = self.wire().call(Kind::Stats, request, None)?;
        Ok(reply.into())
    }

    /// Takes back an op that is still queued, even if its ring is full. Returns its record; its
    /// own completion follows in the ring, with ECANCELED.
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with ENOENT if there is no such op in flight (any more), with
    /// EALREADY if it has been posted.
    pub fn cancel(&self, op: impl Into<OpRef>) -> Result<u64, ControlError> {
        let query = op_query(op.into());
        let (reply, []): (abi::CancelReply, _) = self.wire().call(Kind::Cancel, query, None)?;
        Ok(reply.record)
    }

    /// Asks where an op is and what it waits for; by number also an SQE that is not taken yet. The
    /// ring may be that of any session of this uid (of any, for root).
    ///
    /// # Errors
    /// [`ControlError`]; a refusal with ENOENT if there is no such op in flight (any more), with
    /// EINVAL if there is no such ring.
    pub fn why(&self, op: impl Into<OpRef>) -> Result<Why, ControlError> {
        let query = op_query(op.into());
        let (reply, []): (abi::WhyReply, _) = self.wire().call(Kind::Why, query, None)?;
        Ok(reply.into())
    }

    /// True once the engine's process is gone. From then on verdicts are final.
    #[must_use]
    pub fn engine_gone(&self) -> bool {
        self.wire().engine_gone()
    }

    /// Returns whether the engine is dead, or has ended this session; never waits.
    #[must_use]
    pub fn over(&self) -> bool {
        self.wire().hung_up() || self.engine_gone()
    }

    /// Returns the engine's pidfd: readable once its process is gone.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        let Some(pidfd) = self.wire().pidfd() else {
            unreachable!("a session exists only after HELLO brought it");
        };
        pidfd
    }

    /// Returns the session's number in its engine.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.attached.hello.session
    }

    /// Returns the engine's number, as record ids carry it.
    #[must_use]
    pub fn engine(&self) -> u32 {
        self.attached.hello.engine
    }

    /// Returns the process id of the engine, as the engine sees it.
    #[must_use]
    pub fn engine_pid(&self) -> u32 {
        self.attached.hello.pid
    }

    /// Returns what the engine drew at random when it started: another one, another engine.
    #[must_use]
    pub fn boot_id(&self) -> [u64; 2] {
        self.attached.hello.boot_id
    }

    fn wire(&self) -> &Wire {
        &self.attached.wire
    }

    fn uid(&self) -> u64 {
        self.attached.uid
    }

    fn export(&self, region: u32, name: &str, rights: Rights) -> Result<Secret, ControlError> {
        let name = padded(name).ok_or(ControlError::Name)?;
        let request = |head| abi::Export { head, region, rights: rights.bits(), name };
        let (reply, []): (abi::ExportReply, _) = self.wire().call(Kind::Export, request, None)?;
        Ok(Secret::from_bytes(reply.secret))
    }

    /// Takes up what the engine has made, and tells it so; or gives it back.
    fn mapped<T>(
        &self,
        object: u32,
        id: u32,
        take_up: impl FnOnce() -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let taken = take_up().and_then(|taken| {
            self.bare(Kind::Mapped, |head| abi::Mapped { head, object, id })?;
            Ok(taken)
        });
        if taken.is_err() {
            // The first error is the one to tell.
            let _ = self.release_object(object, id);
        }
        taken
    }

    fn release_object(&self, object: u32, id: u32) -> Result<(), ControlError> {
        self.bare(Kind::Release, |head| abi::Release { head, object, id })
    }

    /// A request whose reply says no more than that it was done.
    fn bare<Q: zerocopy::IntoBytes + zerocopy::Immutable>(
        &self,
        kind: Kind,
        request: impl FnOnce(Head) -> Q,
    ) -> Result<(), ControlError> {
        let (_, []): (abi::ReplyHead, _) = self.wire().call(kind, request, None)?;
        Ok(())
    }
}

/// Connects to an engine's socket.
fn dial(path: &Path) -> Result<OwnedFd, ConnectError> {
    let dial = || {
        let kind = SockType::SeqPacket;
        let end = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        connect(end.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(end)
    };
    dial().map_err(|source: Errno| ConnectError::Socket {
        path: path.to_path_buf(),
        source: source.into(),
    })
}

/// What an engine would answer to a request that PROBE says it does not serve.
fn unserved(request: Kind, text: &str) -> ControlError {
    let (detail, detail_number) = (Detail::Message, u32::from(Detail::Message as u16));
    let (errno, text) = (abi::errno::EOPNOTSUPP, text.to_string());
    Refusal { request, errno, detail, detail_number, text }.into()
}

/// Asks for this session's recorder. What an engine refuses is done without.
fn own_recorder(wire: &Wire) -> Result<Option<Recorder>, ControlError> {
    let (probe, []): (abi::ProbeReply, _) =
        wire.call(Kind::Probe, |head| abi::Probe { head }, None)?;
    if probe.features & abi::FEATURE_RECORDER == 0 {
        return Ok(None);
    }
    match ask_recorder(wire, abi::SESSION_OWN) {
        Ok(recorder) => Ok(Some(recorder)),
        Err(ControlError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// RECORDER: the own one, or the first from a session's number on that we may see.
fn ask_recorder(wire: &Wire, session: u32) -> Result<Recorder, ControlError> {
    let request = |head| abi::RecorderRequest { head, session, reserved: 0 };
    let (reply, [memfd]): (abi::RecorderReply, _) = wire.call(Kind::Recorder, request, None)?;
    let recorder = match Recorder::open(memfd) {
        Ok(recorder) => recorder,
        Err(RecorderError::Memory(error)) => return Err(error.into()),
        Err(_) => return Err(ControlError::Protocol { what: "a flight recorder that is none" }),
    };
    let asked = session == abi::SESSION_OWN || recorder.session() >= session;
    if recorder.session() != reply.session || recorder.session() == u32::MAX || !asked {
        return Err(ControlError::Protocol { what: "another session's flight recorder" });
    }
    Ok(recorder)
}

fn op_query(op: OpRef) -> impl FnOnce(Head) -> abi::OpQuery {
    let OpRef { ring, by, target } = op;
    move |head| abi::OpQuery { head, ring, by, target }
}

/// Maps memory that the engine made: a memfd that cannot shrink, so that no access can fault.
fn map_made(memfd: BorrowedFd<'_>, bytes: u64) -> Result<Mapping, shm::ShmError> {
    let pages = bytes.checked_next_multiple_of(PAGE_BYTES);
    shm::inspect(memfd, pages.unwrap_or(u64::MAX))?;
    Mapping::shared(memfd, bytes)
}

/// What to call this process in the engine's logs.
fn own_name() -> [u8; 32] {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    let end = (0..=name.len().min(32)).rev().find(|end| name.is_char_boundary(*end));
    padded(&name[..end.unwrap_or(0)]).unwrap_or_default()
}
