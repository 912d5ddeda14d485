//! The protocol by hand: a control socket and a ring that say whatever they are told to say.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, sendmsg,
    socket,
};
use verbring::abi::{
    self, AT_CQ_HEAD, AT_CQ_TAIL, AT_ENGINE_FLAGS, AT_SQ_HEAD, AT_SQ_TAIL, Cqe, Detail, Head,
    Hello, Kind, ReplyHead, RingReply, RingRequest, SegmentHeader, Sqe,
};
use verbring::control::fds;
use verbring::shm::Mapping;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::stage::PATIENCE;

/// A control socket.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) socket: OwnedFd,
    tag: u64,
}

/// What came back.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The request was carried out.
    Done(Vec<u8>, Vec<OwnedFd>),
    /// It was refused.
    Refused { errno: i32, detail: u32, text: String },
    /// The session is over.
    Over,
}

impl Wire {
    /// Connects, and says nothing yet.
    pub(crate) fn connect(path: &Path) -> Self {
        Self::connect_with(path, SockFlag::SOCK_CLOEXEC)
    }

    /// Connects with a socket that children inherit.
    pub(crate) fn connect_inheritable(path: &Path) -> Self {
        Self::connect_with(path, SockFlag::empty())
    }

    fn connect_with(path: &Path, flags: SockFlag) -> Self {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Self { socket, tag: 0 }
    }

    /// Sends any bytes with any descriptors, without waiting for room.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[RawFd]) -> Result<(), Errno> {
        let slices = [std::io::IoSlice::new(bytes)];
        let rights = [ControlMessage::ScmRights(descriptors)];
        let attached = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.socket.as_raw_fd(), &slices, attached, flags, None).map(|_| ())
    }

    /// Waits for one datagram.
    pub(crate) fn receive(&self) -> Answer {
        let timeout = PollTimeout::try_from(PATIENCE).unwrap();
        let mut watched = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut watched, timeout), Ok(1), "no answer within {PATIENCE:?}");
        // A peer that closed over our unread words says so first; what it had said comes after.
        let first = fds::receive(self.socket.as_fd(), false);
        let again = |first| match first {
            Err(Errno::ECONNRESET) => fds::receive(self.socket.as_fd(), false),
            other => other,
        };
        match again(first) {
            Ok(Some(received)) => Answer::read(received.bytes, received.descriptors),
            Ok(None) | Err(Errno::ECONNRESET | Errno::EPIPE) => Answer::Over,
            Err(errno) => panic!("recvmsg: {errno}"),
        }
    }

    /// Sends any bytes and waits for what comes back.
    pub(crate) fn say(&self, bytes: &[u8], descriptors: &[RawFd]) -> Answer {
        match self.send(bytes, descriptors) {
            // What the engine sent before it hung up can still be read.
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => self.receive(),
            Err(errno) => panic!("sendmsg: {errno}"),
        }
    }

    /// Composes a request's head.
    pub(crate) fn head<Q>(&mut self, kind: Kind) -> Head {
        self.tag += 1;
        Head { kind: kind as u16, reserved: 0, bytes: size_of::<Q>() as u32, tag: self.tag }
    }

    /// Sends a well-formed request and waits for its answer.
    pub(crate) fn ask<Q: IntoBytes + Immutable>(
        &mut self,
        kind: Kind,
        request: impl FnOnce(Head) -> Q,
        descriptors: &[RawFd],
    ) -> Answer {
        let head = self.head::<Q>(kind);
        let request = request(head);
        self.say(request.as_bytes(), descriptors)
    }

    pub(crate) fn hello(&mut self) -> Answer {
        let hello = |head| Hello { head, version_min: 1, version_max: 1, ..Hello::default() };
        self.ask(Kind::Hello, hello, &[])
    }

    pub(crate) fn probe(&mut self) -> Answer {
        self.ask(Kind::Probe, |head| abi::Probe { head }, &[])
    }

    pub(crate) fn mapped(&mut self, object: u32, id: u32) -> Answer {
        self.ask(Kind::Mapped, |head| abi::Mapped { head, object, id }, &[])
    }

    pub(crate) fn release(&mut self, object: u32, id: u32) -> Answer {
        self.ask(Kind::Release, |head| abi::Release { head, object, id }, &[])
    }

    pub(crate) fn ask_ring(&mut self, sq_entries: u32, cq_entries: u32) -> Answer {
        let request = |head| RingRequest { head, sq_entries, cq_entries, ..RingRequest::default() };
        self.ask(Kind::Ring, request, &[])
    }

    pub(crate) fn ask_region(&mut self, source: u32, bytes: u64, fds: &[RawFd]) -> Answer {
        let request = |head| abi::RegionRequest { head, source, flags: 0, bytes };
        self.ask(Kind::Region, request, fds)
    }

    /// Makes a ring and says that it is mapped.
    pub(crate) fn ring(&mut self, sq_entries: u32, cq_entries: u32) -> HandRing {
        let answer = self.ask_ring(sq_entries, cq_entries);
        let ring = HandRing::map(answer);
        self.mapped(abi::OBJECT_RING, ring.number).done();
        ring
    }

    /// Makes a region and says that it is mapped.
    pub(crate) fn region(&mut self, bytes: u64) -> (u32, Mapping) {
        let (reply, fds) =
            self.ask_region(abi::REGION_ALLOCATED, bytes, &[]).reply::<abi::RegionReply>();
        let mapping = Mapping::shared(fds[0].as_fd(), reply.bytes).unwrap();
        self.mapped(abi::OBJECT_REGION, reply.region).done();
        (reply.region, mapping)
    }

    pub(crate) fn ask_export(&mut self, region: u32, rights: u32, name: &str) -> Answer {
        let name = padded(name);
        self.ask(Kind::Export, |head| abi::Export { head, region, rights, name }, &[])
    }

    pub(crate) fn ask_import(&mut self, name: &str, secret: [u8; 32]) -> Answer {
        self.ask_peer_import(0, name, secret)
    }

    pub(crate) fn ask_peer_import(&mut self, peer: u32, name: &str, secret: [u8; 32]) -> Answer {
        let name = padded(name);
        let uid = abi::UID_OWN;
        let import = |head| abi::Import { head, rights: 0, uid, name, secret, peer, reserved: 0 };
        self.ask(Kind::Import, import, &[])
    }

    pub(crate) fn ask_connect(&mut self, require: u32, url: &[u8]) -> Answer {
        let mut field = [0; abi::URL_BYTES];
        field[..url.len()].copy_from_slice(url);
        let connect = |head| abi::Connect { head, require, reserved: 0, url: field };
        self.ask(Kind::Connect, connect, &[])
    }

    /// Exports a region of this session to itself; returns the import.
    pub(crate) fn own_import(&mut self, region: u32, name: &str) -> u32 {
        let export = self.ask_export(region, abi::RIGHTS_ALL, name).reply::<abi::ExportReply>().0;
        self.ask_import(name, export.secret).reply::<abi::ImportReply>().0.region
    }
}

/// A name as messages carry it.
pub(crate) fn padded(name: &str) -> [u8; abi::NAME_BYTES] {
    let mut field = [0; abi::NAME_BYTES];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}

impl Answer {
    fn read(bytes: Vec<u8>, descriptors: Vec<OwnedFd>) -> Self {
        let (head, text) = ReplyHead::read_from_prefix(&bytes).expect("a reply has a head");
        assert_eq!(head.bytes as usize, bytes.len(), "a reply says its length");
        assert_ne!(head.kind & abi::REPLY, 0, "a reply says that it is one");
        if head.status == 0 {
            return Self::Done(bytes, descriptors);
        }
        assert!(descriptors.is_empty(), "a refusal brings nothing");
        let text = std::str::from_utf8(text).expect("text is UTF-8").to_string();
        assert!(!text.is_empty() && text.len() <= abi::ERROR_TEXT_MAX, "a refusal says why");
        Self::Refused { errno: -head.status, detail: head.detail, text }
    }

    /// Insists on success.
    pub(crate) fn done(self) -> Vec<OwnedFd> {
        match self {
            Self::Done(_, descriptors) => descriptors,
            other => panic!("was not carried out: {other:?}"),
        }
    }

    /// Insists on success, and reads the reply.
    pub(crate) fn reply<R: FromBytes>(self) -> (R, Vec<OwnedFd>) {
        match self {
            Self::Done(bytes, descriptors) => {
                (R::read_from_bytes(&bytes).expect("a reply of its kind's length"), descriptors)
            }
            other => panic!("was not carried out: {other:?}"),
        }
    }

    /// Insists on a refusal of this kind, and returns its text.
    pub(crate) fn refused(self, errno: i32, detail: Detail) -> String {
        match self {
            Self::Refused { errno: is, detail: about, text }
                if (is, about) == (errno, u32::from(detail as u16)) =>
            {
                text
            }
            other => panic!("not refused with {errno} about {detail}: {other:?}"),
        }
    }

    /// Insists that the session is over.
    pub(crate) fn over(self) {
        assert!(matches!(self, Self::Over), "the session goes on: {self:?}");
    }
}

/// A ring whose every word can be written.
#[derive(Debug)]
pub(crate) struct HandRing {
    pub(crate) memory: Arc<Mapping>,
    pub(crate) header: SegmentHeader,
    pub(crate) number: u32,
    pub(crate) sq_bell: OwnedFd,
    pub(crate) cq_bell: OwnedFd,
    /// The tail and the head of an honest client.
    pub(crate) tail: u32,
    pub(crate) popped: u32,
}

impl HandRing {
    /// Maps what came with the answer to RING.
    pub(crate) fn map(answer: Answer) -> Self {
        let (reply, descriptors) = answer.reply::<RingReply>();
        let [segment, sq_bell, cq_bell] = <[OwnedFd; 3]>::try_from(descriptors).unwrap();
        let memory = Arc::new(Mapping::shared(segment.as_fd(), reply.segment_bytes).unwrap());
        let mut header = SegmentHeader::default();
        memory.read(0, header.as_mut_bytes());
        let first = header.first_index;
        let number = reply.ring;
        Self { memory, header, number, sq_bell, cq_bell, tail: first, popped: first }
    }

    /// Writes an entry where the next one goes, full or not, and shows it to the engine.
    pub(crate) fn push(&mut self, sqe: &Sqe) {
        self.write(sqe);
        self.publish();
    }

    /// Writes an entry where the next one goes.
    pub(crate) fn write(&mut self, sqe: &Sqe) {
        let slot = u64::from(self.tail & (self.header.sq_entries - 1));
        let at = self.header.sq_offset + slot * u64::from(self.header.sqe_stride);
        for (word, value) in (0..).zip(sqe.to_words()) {
            self.memory.word64(at + 8 * word).store(value, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the engine what was written, and wakes it.
    pub(crate) fn publish(&self) {
        self.store(AT_SQ_TAIL, self.tail);
        self.ring_bell();
    }

    /// Writes a word of the header page.
    pub(crate) fn store(&self, at: u64, value: u32) {
        self.memory.word32(at).store(value, Ordering::SeqCst);
    }

    /// Reads a word of the header page.
    pub(crate) fn load(&self, at: u64) -> u32 {
        self.memory.word32(at).load(Ordering::SeqCst)
    }

    pub(crate) fn ring_bell(&self) {
        ring(self.sq_bell.as_fd());
    }

    /// Entries that were taken.
    pub(crate) fn taken(&self) -> u32 {
        self.load(AT_SQ_HEAD).wrapping_sub(self.header.first_index)
    }

    /// Free SQ slots.
    pub(crate) fn room(&self) -> u32 {
        self.header.sq_entries - self.tail.wrapping_sub(self.load(AT_SQ_HEAD))
    }

    /// CQEs that wait to be popped.
    pub(crate) fn ready(&self) -> u32 {
        self.load(AT_CQ_TAIL).wrapping_sub(self.popped)
    }

    pub(crate) fn pop(&mut self) -> Option<Cqe> {
        if self.ready() == 0 {
            return None;
        }
        let cqe = self.cqe(self.popped);
        self.popped = self.popped.wrapping_add(1);
        self.store(AT_CQ_HEAD, self.popped);
        Some(cqe)
    }

    /// Reads a CQ slot.
    pub(crate) fn cqe(&self, index: u32) -> Cqe {
        let slot = u64::from(index & (self.header.cq_entries - 1));
        let at = self.header.cq_offset + slot * u64::from(self.header.cqe_stride);
        let word = |word: u64| self.memory.word64(at + 8 * word).load(Ordering::Relaxed);
        Cqe::from_words([word(0), word(1), word(2), word(3)])
    }

    /// Waits for a CQE.
    pub(crate) fn next(&mut self) -> Cqe {
        super::stage::until("a CQE comes", || self.ready() > 0);
        self.pop().unwrap()
    }

    /// The fault reason, if the engine has given this ring up.
    pub(crate) fn fault(&self) -> Option<u16> {
        let flags = self.load(AT_ENGINE_FLAGS);
        (flags & abi::ENGINE_FAULTED != 0).then_some((flags >> 16) as u16)
    }
}

/// Sends one byte over a bell; a full or dead one is nobody's concern.
pub(crate) fn ring(bell: BorrowedFd<'_>) {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let _ = send(bell.as_raw_fd(), &[1], flags);
}
