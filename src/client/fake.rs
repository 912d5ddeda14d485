//! A stand-in for the engine: a thread that answers control messages by the book, and rings whose
//! other end the test moves by hand. What is pushed is looked at, what is popped was put there.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Session;
use crate::abi::{self, Cqe, Detail, Head, Kind, ReplyHead, SegmentHeader, Sqe, errno};
use crate::control::fds::{self, Received};
use crate::ring::{EngineEnd, Mapped};
use crate::shm::{self, Mapping};

/// Cursors wrap within the first few entries.
const FIRST_INDEX: u32 = u32::MAX - 3;
/// The counter that STATS reports in place n is this plus n.
pub(super) const STATS_FROM: u64 = 1000;
/// The record that CANCEL and WHY report.
pub(super) const RECORD: u64 = 7 << 32 | 5;
/// The rail to every peer.
pub(super) const PEER_RAIL: u8 = 5;
/// Number of the first ring.
pub(super) const FIRST_RING: u32 = 40;

/// The control side of a session.
pub(super) struct Fake {
    socket: OwnedFd,
    /// The process whose pidfd the client got; ours if there is none.
    process: Option<Child>,
    server: Option<JoinHandle<()>>,
    rings: Receiver<FakeRing>,
    peers: Arc<Mutex<Told>>,
}

/// What PEERS tells.
#[derive(Default)]
struct Told {
    peers: Vec<abi::PeersReply>,
    /// What CARDS tells.
    cards: Vec<abi::CardsReply>,
    /// Whatever place is asked for, all are behind it.
    lies: bool,
}

/// The engine's end of a ring.
pub(super) struct FakeRing {
    pub(super) end: EngineEnd<Mapped>,
    sq_bell: OwnedFd,
    cq_bell: OwnedFd,
}

impl Fake {
    /// Opens a session with an engine that lives in this process.
    pub(super) fn attach() -> (Session, Self) {
        Self::start(None)
    }

    /// Opens a session with an engine that can be killed.
    pub(super) fn attach_mortal() -> (Session, Self) {
        let process = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Self::start(Some(process.unwrap()))
    }

    fn start(process: Option<Child>) -> (Session, Self) {
        let pid = process.as_ref().map_or_else(std::process::id, Child::id);
        let (client, socket) = fds::control_pair().unwrap();
        let (sender, rings) = channel();
        let end = socket.try_clone().unwrap();
        let peers = Arc::<Mutex<Told>>::default();
        let told = Arc::clone(&peers);
        let server = std::thread::spawn(move || Serving::new(end, pid, sender, told).serve());
        let fake = Self { socket, process, server: Some(server), rings, peers };
        (Session::from_socket(client).unwrap(), fake)
    }

    /// Returns the other end of the ring that was made last.
    pub(super) fn ring(&self) -> FakeRing {
        self.rings.recv().unwrap()
    }

    /// PEERS tells of these.
    pub(super) fn tell<const PEERS: usize>(&self, peers: [abi::PeersReply; PEERS]) {
        self.peers.lock().unwrap().peers = peers.into();
    }

    /// CARDS tells of these.
    pub(super) fn has<const CARDS: usize>(&self, cards: [abi::CardsReply; CARDS]) {
        self.peers.lock().unwrap().cards = cards.into();
    }

    /// PEERS tells of them again and again.
    pub(super) fn lie_about_places(&self) {
        self.peers.lock().unwrap().lies = true;
    }

    /// Kills the engine, the way a kernel does: sockets first.
    pub(super) fn kill(&mut self) {
        self.hang_up();
        let process = self.process.as_mut().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Ends the session.
    pub(super) fn hang_up(&mut self) {
        use std::os::fd::AsRawFd;
        let both = nix::sys::socket::Shutdown::Both;
        // A client that is gone has closed it already.
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), both);
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        if !std::thread::panicking() {
            self.hang_up();
        }
    }
}

impl FakeRing {
    /// Takes the next SQE, which must be there.
    pub(super) fn take(&mut self) -> Sqe {
        assert!(self.end.look().unwrap() > 0, "an SQE was published");
        assert!(self.end.room(1).unwrap() > 0, "the client has given slots back");
        let sqe = Sqe::from_words(self.end.peek(0));
        assert_ne!(self.end.room(1), Ok(0), "the CQ is full");
        self.end.take(1);
        self.end.publish_taken();
        sqe
    }

    /// Publishes a CQE, and rings if the client asked for it.
    pub(super) fn complete(&mut self, cqe: Cqe) {
        self.end.push(cqe.to_words());
        if self.end.publish() {
            fds::ring_bell(self.cq_bell.as_fd());
        }
    }

    /// Takes an SQE and completes it with this result.
    pub(super) fn serve(&mut self, res: i32) -> Sqe {
        let sqe = self.take();
        let detail = u16::from(abi::FABRIC_LOCAL) << 8;
        self.complete(Cqe { user_data: sqe.user_data, record: 9, res, detail, ..Cqe::default() });
        sqe
    }

    /// Sleeps until the client rings.
    pub(super) fn sleep(&mut self) {
        while self.end.fall_asleep().unwrap() {
            let mut watched =
                [nix::poll::PollFd::new(self.sq_bell.as_fd(), nix::poll::PollFlags::POLLIN)];
            super::wire::wait(&mut watched, None).unwrap();
            assert!(fds::silence_bell(self.sq_bell.as_fd()), "the client is there");
            self.end.wake();
        }
    }
}

/// The thread behind the socket.
struct Serving {
    socket: OwnedFd,
    pid: u32,
    rings: Sender<FakeRing>,
    /// Made and not yet mapped by the client.
    unsealed: Option<OwnedFd>,
    ids: u32,
    peers: u32,
    told: Arc<Mutex<Told>>,
}

impl Serving {
    fn new(socket: OwnedFd, pid: u32, rings: Sender<FakeRing>, told: Arc<Mutex<Told>>) -> Self {
        Self { socket, pid, rings, unsealed: None, ids: FIRST_RING, peers: 0, told }
    }

    fn serve(mut self) {
        while let Ok(Some(message)) = fds::receive(self.socket.as_fd(), true) {
            let (head, _) = Head::read_from_prefix(&message.bytes).unwrap();
            assert_eq!(head.bytes as usize, message.bytes.len());
            self.answer(head, &message);
        }
    }

    fn answer(&mut self, head: Head, message: &Received) {
        match Kind::from_number(head.kind).unwrap() {
            Kind::Hello => {
                let hello: abi::Hello = body(message);
                assert_eq!((hello.version_min, hello.version_max, hello.features), (1, 1, 0));
                let pidfd = fds::pidfd_open(i32::try_from(self.pid).unwrap()).unwrap();
                let reply = abi::HelloReply {
                    version: 1,
                    session: 3,
                    boot_id: [1, 2],
                    engine: 4,
                    pid: self.pid,
                    ..Default::default()
                };
                self.send(head, reply, &[pidfd]);
            }
            Kind::Ring => self.make_ring(head, &body(message)),
            Kind::Region => self.make_region(head, &body(message), message),
            Kind::Mapped => {
                shm::seal_for_good(self.unsealed.take().unwrap().as_fd()).unwrap();
                self.send(head, ReplyHead::default(), &[]);
            }
            Kind::Export => {
                let export: abi::Export = body(message);
                let secret = [export.name[0]; 32];
                self.send(head, abi::ExportReply { secret, ..Default::default() }, &[]);
            }
            Kind::Import => self.import(head, &body(message)),
            Kind::Release => self.send(head, ReplyHead::default(), &[]),
            Kind::Probe => {
                let opcodes = 1 << abi::Opcode::Write as u8;
                let fabrics = 1 << abi::FABRIC_LOCAL;
                let features = abi::FEATURE_PEERS | abi::FEATURE_CARDS;
                let reply = abi::ProbeReply {
                    opcodes,
                    fabrics,
                    features,
                    class_ceiling: 2,
                    ..Default::default()
                };
                self.send(head, reply, &[]);
            }
            Kind::Stats => {
                let counters = core::array::from_fn(|at| STATS_FROM + at as u64);
                self.send(head, abi::StatsReply { counters, ..Default::default() }, &[]);
            }
            Kind::Cancel => {
                let query: abi::OpQuery = body(message);
                assert_eq!(u64::from(query.by), abi::CANCEL_BY_NUMBER);
                let reply = abi::CancelReply { record: RECORD, ..Default::default() };
                self.send(head, reply, &[]);
            }
            Kind::Why => {
                let query: abi::OpQuery = body(message);
                let number = query.target;
                let reply = abi::WhyReply { record: RECORD, number, ..Default::default() };
                self.send(head, reply, &[]);
            }
            Kind::Connect => self.connect(head, &body(message)),
            Kind::Peers => self.tell_of_peers(head, &body(message)),
            Kind::Cards => self.tell_of_cards(head, &body(message)),
            Kind::Recorder | Kind::Telemetry | Kind::Prepare => {
                panic!("the client does not send it")
            }
        }
    }

    fn make_ring(&mut self, head: Head, request: &abi::RingRequest) {
        let ring = self.next_id();
        let lay_out = SegmentHeader::lay_out(request.sq_entries, request.cq_entries);
        let header = SegmentHeader { ring, first_index: FIRST_INDEX, ..lay_out };
        let segment_bytes = header.segment_bytes;
        let segment = shm::create(c"fake-ring", segment_bytes, false).unwrap();
        let mapping = Mapping::shared(segment.as_fd(), segment_bytes).unwrap();
        let memory = Mapped::create(Arc::new(mapping), header).unwrap();
        let (sq_bell, client_sq_bell) = fds::bell_pair().unwrap();
        let (cq_bell, client_cq_bell) = fds::bell_pair().unwrap();
        let reply = abi::RingReply { ring, segment_bytes, ..Default::default() };
        self.unsealed = Some(segment.try_clone().unwrap());
        self.send(head, reply, &[segment, client_sq_bell, client_cq_bell]);
        let ring = FakeRing { end: EngineEnd::new(memory), sq_bell, cq_bell };
        // The test may be over.
        let _ = self.rings.send(ring);
    }

    fn make_region(&mut self, head: Head, request: &abi::RegionRequest, message: &Received) {
        let abi::RegionRequest { source, flags, bytes, .. } = *request;
        let reply = abi::RegionReply { region: self.next_id(), flags, bytes, ..Default::default() };
        if source == abi::REGION_MEMFD {
            shm::inspect(message.descriptors[0].as_fd(), bytes).unwrap();
            shm::seal_for_good(message.descriptors[0].as_fd()).unwrap();
            return self.send(head, reply, &[]);
        }
        let memory = shm::create(c"fake-region", bytes.next_multiple_of(4096), false).unwrap();
        self.unsealed = Some(memory.try_clone().unwrap());
        self.send(head, reply, &[memory]);
    }

    fn import(&mut self, head: Head, import: &abi::Import) {
        let there = (import.peer == 0) == (import.name[0] != b'p') && import.peer <= self.peers;
        if there && import.secret == [import.name[0]; 32] {
            let region = self.next_id();
            let rights = abi::RIGHT_READ | abi::RIGHT_WRITE;
            let reply = abi::ImportReply { region, rights, bytes: 8192, ..Default::default() };
            return self.send(head, reply, &[]);
        }
        let mut bytes = reply_head(head, 0);
        bytes.status = -errno::EACCES;
        bytes.detail = Detail::Secret as u32;
        send_failure(&self.socket, bytes, "wrong secret for \u{2018}x\u{2019}");
    }

    /// Whatever is asked for, it is verbs; some URLs are answered wrongly.
    fn connect(&mut self, head: Head, connect: &abi::Connect) {
        if connect.require > u32::from(abi::FABRIC_VERBS) {
            let mut bytes = reply_head(head, 0);
            bytes.status = -errno::EOPNOTSUPP;
            bytes.detail = Detail::Require as u32;
            return send_failure(&self.socket, bytes, "no such fabric");
        }
        self.peers += 1;
        let (peer, rail) = match &connect.url[..10] {
            b"unix:/zero" => (0, u32::from(PEER_RAIL)),
            b"unix:/rail" => (self.peers, 256),
            _ => (self.peers, u32::from(PEER_RAIL)),
        };
        let fabric = u32::from(abi::FABRIC_VERBS);
        self.send(head, abi::ConnectReply { peer, fabric, rail, ..Default::default() }, &[]);
    }

    fn tell_of_peers(&self, head: Head, request: &abi::PeersRequest) {
        let told = self.told.lock().unwrap();
        let found = told.peers.iter().find(|peer| told.lies || peer.at >= request.at);
        match found {
            Some(peer) => self.send(head, *peer, &[]),
            None => self.tell_no_more(head),
        }
    }

    fn tell_of_cards(&self, head: Head, request: &abi::CardsRequest) {
        match self.told.lock().unwrap().cards.get(request.card as usize) {
            Some(card) => self.send(head, *card, &[]),
            None => self.tell_no_more(head),
        }
    }

    fn tell_no_more(&self, head: Head) {
        let mut bytes = reply_head(head, 0);
        bytes.status = -errno::ENOENT;
        send_failure(&self.socket, bytes, "no more");
    }

    fn next_id(&mut self) -> u32 {
        self.ids += 1;
        self.ids - 1
    }

    /// Sends a reply whose head is filled in here.
    fn send<R: IntoBytes + Immutable>(&self, head: Head, reply: R, attached: &[OwnedFd]) {
        let mut bytes = reply.as_bytes().to_vec();
        let filled = reply_head(head, bytes.len());
        bytes[..size_of::<ReplyHead>()].copy_from_slice(filled.as_bytes());
        let attached: Vec<_> = attached.iter().map(OwnedFd::as_fd).collect();
        // A client that was refused may be gone.
        let _ = fds::transmit(self.socket.as_fd(), &bytes, &attached, true);
    }
}

/// A connection that is up, as PEERS tells of it.
pub(super) fn told(at: u32) -> abi::PeersReply {
    let field = |text: &str, field: &mut [u8]| field[..text.len()].copy_from_slice(text.as_bytes());
    let mut reply = abi::PeersReply {
        at,
        count: 5,
        phase_ms: 7_000,
        boot_id: [3, 4],
        pid: 9,
        heard_ms: 20,
        imports: 1,
        loans: 2,
        sessions: 3,
        error_ms: 60_000,
        phase: abi::PHASE_UP,
        direction: abi::PEER_OURS,
        rails_count: 2,
        ..Default::default()
    };
    field(&format!("unix:/{at}"), &mut reply.place);
    field("it is\u{fc}\ngone\x1b?", &mut reply.error);
    let state = abi::JOINT_UP;
    reply.rails[0] = abi::PeerRail { rail: 6, state, ..Default::default() };
    reply.rails[1] = abi::PeerRail {
        queue_pair: 77,
        rail: 7,
        card: 1,
        class: 3,
        state: abi::JOINT_PUT_OFF,
        rebuilt: 8,
        put_off_ms: 40,
    };
    reply
}

/// A card, as CARDS tells of it.
pub(super) fn card(card: u32) -> abi::CardsReply {
    let name = format!("mlx5_{card} port 2");
    let mut reply = abi::CardsReply {
        card,
        count: 2,
        window_bytes: 2 << 20,
        window_ops: 64,
        window_wrs: 256,
        addresses_count: 2,
        ..Default::default()
    };
    reply.name[..name.len()].copy_from_slice(name.as_bytes());
    for (place, address) in reply.addresses.iter_mut().zip(["::ffff:10.0.0.7", "fd00::7"]) {
        *place = address.parse::<std::net::Ipv6Addr>().unwrap().octets();
    }
    reply
}

/// The head of a success.
pub(super) fn reply_head(head: Head, bytes: usize) -> ReplyHead {
    ReplyHead {
        kind: head.kind | abi::REPLY,
        bytes: u32::try_from(bytes).unwrap(),
        tag: head.tag,
        ..Default::default()
    }
}

/// Sends a failed reply.
pub(super) fn send_failure(socket: &OwnedFd, mut head: ReplyHead, text: &str) {
    head.bytes = u32::try_from(size_of::<ReplyHead>() + text.len()).unwrap();
    let bytes = [head.as_bytes(), text.as_bytes()].concat();
    fds::transmit(socket.as_fd(), &bytes, &[], true).unwrap();
}

fn body<T: FromBytes>(message: &Received) -> T {
    T::read_from_bytes(&message.bytes).unwrap()
}
