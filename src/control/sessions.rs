//! Sessions: attach, HELLO, reading and answering, quotas by uid, the end in any form.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt::PeerCredentials};
use tracing::{debug, info};
use zerocopy::{Immutable, IntoBytes};

use super::fds::{self, Received};
use super::jobs::Outcome;
use super::peers;
use super::recorders::RecorderMade;
use super::server::{Asker, JobFor, Mark, Pending, Server};
use super::wire::{self, Refusal, Request};
use crate::abi::{self, Detail, Hello, HelloReply, Kind, errno};
use crate::clock;
use crate::engine::{Command, Wind};
use crate::host::Quota;
use crate::host::link::RingBells;
use crate::ids::{RegionId, SessionId};

/// A session as the control thread sees it; its key is its place in the core.
#[derive(Debug)]
pub(super) struct Session {
    /// `None` once it is being closed.
    socket: Option<Arc<OwnedFd>>,
    pidfd: Option<OwnedFd>,
    pub(super) uid: u32,
    pub(super) pid: i32,
    greeted: bool,
    /// A request is under way: the socket is not read.
    pub(super) busy: bool,
    /// Too many messages this second: the socket is not read.
    pub(super) throttled: bool,
    /// A job takes a message, or closes descriptors, on its behalf: the socket is not read.
    aside: bool,
    /// Descriptors to be closed by the next such job.
    litter: Vec<Arc<OwnedFd>>,
    /// Nothing more is heard; what is outstanding is waited for.
    pub(super) ending: bool,
    /// Commands and jobs on its behalf that are not answered.
    pub(super) outstanding: u32,
    pub(super) rings: Vec<u32>,
    pub(super) regions: Vec<RegionId>,
    pub(super) wrong_secrets: u32,
    /// Its flight recorder, if it asked for one.
    pub(super) recorder: Option<RecorderMade>,
}

/// What a look at a session's socket found.
enum Arrived {
    Message(Received),
    /// A message to be received on the side.
    WithDescriptors(Arc<OwnedFd>),
    /// The end.
    Nothing,
}

impl Session {
    /// Takes a message that brings no descriptors. No copy of the socket may outlive the call here:
    /// its last close is not for the control thread.
    fn receive(&self) -> Result<Arrived, Errno> {
        let Some(socket) = &self.socket else { return Ok(Arrived::Nothing) };
        match fds::peek(socket.as_fd(), &mut [0])? {
            (_, true) => Ok(Arrived::WithDescriptors(Arc::clone(socket))),
            (0, false) => Ok(Arrived::Nothing),
            _ => fds::receive(socket.as_fd(), false)
                .map(|received| received.map_or(Arrived::Nothing, Arrived::Message)),
        }
    }

    fn transmit(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let socket = self.socket.as_ref().ok_or(Errno::EPIPE)?;
        fds::transmit(socket.as_fd(), bytes, descriptors, false)
    }

    /// True while its socket is read.
    fn listens(&self) -> bool {
        !(self.busy || self.throttled || self.aside || self.ending)
    }
}

/// What one uid uses.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) place: u32,
    pub(super) sessions: u32,
    pub(super) rings: u32,
    pub(super) regions: u32,
    /// In regions, ring segments and flight recorders.
    pub(super) bytes: u64,
    second: u64,
    messages: u32,
}

/// Wrong secrets that end a session.
pub(super) const WRONG_SECRETS_MAX: u32 = 10;

impl Server {
    /// Serves the other end of a socket, if its uid may have one more session.
    pub(super) fn attach(&mut self, socket: OwnedFd) {
        let Ok(peer) = getsockopt(&socket, PeerCredentials) else { return };
        let uid = peer.uid();
        let used = self.owners.get(&uid).map_or(0, |owner| owner.sessions);
        let full = self.sessions.len() >= self.config.sessions_max as usize;
        let quota = self.config.quota_of(uid);
        if full || used >= quota.sessions {
            let text = if full {
                format!("all {} sessions are in use; raise sessions_max", self.sessions.len())
            } else {
                let raise = self.config.quota_key(uid, "sessions");
                format!("uid {uid} has {used} sessions; raise {raise}")
            };
            return self.turn_away(socket, Refusal::new(errno::EDQUOT, Detail::Quota, text));
        }
        // The peer's pidfd tells its death even if a forked child keeps the socket open.
        let pidfd = fds::peer_pidfd(socket.as_fd()).or_else(|_| fds::pidfd_open(peer.pid())).ok();
        let key = self.sessions.vacant_key();
        if self.watch_socket(key, socket.as_fd()).is_err() {
            return;
        }
        if let Some(pidfd) = &pidfd {
            let _ = self.watch_death(key, pidfd.as_fd());
        }
        self.join_owner(uid);
        self.sessions.insert(Session {
            socket: Some(Arc::new(socket)),
            pidfd,
            uid,
            pid: peer.pid(),
            greeted: false,
            busy: false,
            throttled: false,
            aside: false,
            litter: Vec::new(),
            ending: false,
            outstanding: 0,
            rings: Vec::new(),
            regions: Vec::new(),
            wrong_secrets: 0,
            recorder: None,
        });
        let owner = self.owners[&uid].place;
        self.order(Command::AddSession { session: place(key), owner, contract: quota.contract() });
        info!(session = key, uid, pid = peer.pid(), "session attached");
    }

    fn join_owner(&mut self, uid: u32) {
        if !self.owners.contains_key(&uid) {
            // As many places as sessions, so one is free for every uid that has a session.
            let place = self.owner_places.take().unwrap_or_default();
            let owner = Owner {
                place,
                sessions: 0,
                rings: 0,
                regions: 0,
                bytes: 0,
                second: 0,
                messages: 0,
            };
            self.owners.insert(uid, owner);
        }
        if let Some(owner) = self.owners.get_mut(&uid) {
            owner.sessions += 1;
        }
    }

    /// The uid of a session; of none that there is, nobody's.
    pub(super) fn uid_of(&self, session: usize) -> u32 {
        self.sessions.get(session).map_or(abi::UID_OWN, |session| session.uid)
    }

    /// What the uid of a session may use.
    pub(super) fn quota_of(&self, session: usize) -> Quota {
        self.config.quota_of(self.uid_of(session))
    }

    /// What the uid of a session uses.
    pub(super) fn owner_of(&mut self, session: usize) -> Option<&mut Owner> {
        let uid = self.sessions.get(session)?.uid;
        self.owners.get_mut(&uid)
    }

    /// Reads one message of a session and acts on it.
    pub(super) fn readable(&mut self, key: usize) {
        let Some(session) = self.sessions.get(key) else { return };
        if !session.listens() {
            // EPOLLHUP is reported even when nothing is asked for: the client is gone.
            return self.end_session(key, "it closed its socket");
        }
        if self.over_rate(key) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.throttled = true;
            }
            return self.listen_as_due(key);
        }
        let Some(session) = self.sessions.get(key) else { return };
        match session.receive() {
            Err(Errno::EAGAIN) => {}
            Ok(Arrived::Message(received)) => self.received(key, received),
            Ok(Arrived::WithDescriptors(socket)) => {
                let job = self.jobs_for.insert(JobFor::Aside { session: key });
                self.jobs.receive(job, socket);
                self.set_aside(key);
            }
            Ok(Arrived::Nothing) | Err(_) => self.end_session(key, "it closed its socket"),
        }
    }

    /// Acts on a message.
    pub(super) fn received(&mut self, key: usize, received: Received) {
        if peers::message::is_peers(&received.bytes) {
            return self.not_a_client(key, received);
        }
        let mut descriptors = received.descriptors;
        let outcome = if received.surplus {
            let text =
                format!("more than {} descriptors came with a message", fds::DESCRIPTORS_MAX);
            Err(Refusal::new(errno::EINVAL, Detail::Descriptors, text))
        } else {
            wire::parse(&received.bytes)
                .and_then(|request| self.handle(key, &request, &mut descriptors))
        };
        self.close_aside(key, descriptors);
        if let Err(refusal) = outcome {
            let (kind, tag) = wire::head(&received.bytes).map_or((0, 0), |h| (h.kind, h.tag));
            debug!(session = key, kind, %refusal, "refused a request");
            self.send(key, &wire::failure(kind & !abi::REPLY, tag, &refusal), &[]);
            let broken = refusal.detail == Detail::Message && refusal.errno == errno::EPROTO;
            if broken {
                self.evict(key, refusal.detail, &refusal.text);
            } else if self.sessions.get(key).is_some_and(|s| s.wrong_secrets >= WRONG_SECRETS_MAX) {
                self.evict(key, Detail::Secret, "ten wrong secrets");
            }
        }
    }

    /// Another engine speaks: the session that it was taken for is over, and its socket goes on.
    fn not_a_client(&mut self, key: usize, received: Received) {
        let bare = received.descriptors.is_empty() && !received.surplus;
        self.close_aside(key, received.descriptors);
        let Some(session) = self.sessions.get_mut(key).filter(|session| !session.greeted && bare)
        else {
            return self.evict(key, Detail::Message, "a client spoke as another engine");
        };
        let socket = session.socket.take();
        if let Some(socket) = &socket {
            let _ = self.epoll.delete(socket);
        }
        self.end_session(key, "it is another engine");
        if let Some(socket) = socket.and_then(Arc::into_inner) {
            self.reached_by(socket, &received.bytes);
        }
    }

    /// Has descriptors closed that a client has sent, or that hold what a client has sent. One such
    /// job a session, since each may hang; until it is over the session is not read, and not
    /// forgotten either.
    pub(super) fn close_aside(&mut self, key: usize, descriptors: Vec<OwnedFd>) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.litter.extend(descriptors.into_iter().map(Arc::new));
        self.close_litter(key);
    }

    /// Closes a ring's bells; aside, if there are descriptors in them.
    pub(super) fn close_bells(&mut self, key: usize, bells: RingBells) {
        let mut bells = Vec::from(bells);
        bells.retain(|bell| fds::shut_bell(bell.as_fd()));
        self.close_aside(key, bells);
    }

    fn close_litter(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.aside || session.litter.is_empty() {
            return;
        }
        let litter = std::mem::take(&mut session.litter);
        let job = self.jobs_for.insert(JobFor::Aside { session: key });
        self.jobs.close(job, litter);
        self.set_aside(key);
    }

    fn set_aside(&mut self, key: usize) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.aside = true;
            session.outstanding += 1;
        }
        self.listen_as_due(key);
    }

    /// A job on the side is over.
    pub(super) fn aside_over(&mut self, key: usize, outcome: Outcome) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.aside = false;
        let received = match outcome {
            Outcome::Received(received) => Some(received),
            _ => None,
        };
        if session.ending {
            if let Some(Ok(Some(received))) = received {
                session.litter.extend(received.descriptors.into_iter().map(Arc::new));
            }
            self.close_litter(key);
            self.settle(key);
            return;
        }
        self.settle(key);
        match received {
            None | Some(Err(Errno::EAGAIN)) => {}
            Some(Ok(Some(received))) => self.received(key, received),
            Some(Ok(None) | Err(_)) => self.end_session(key, "it closed its socket"),
        }
        self.close_litter(key);
        self.listen_as_due(key);
    }

    /// Counts a message against its uid's rate; true if it is one too many this second.
    fn over_rate(&mut self, key: usize) -> bool {
        let limit = self.quota_of(key).control_per_s;
        let second = clock::now_ns() / 1_000_000_000;
        let Some(owner) = self.owner_of(key) else { return false };
        if owner.second != second {
            owner.second = second;
            owner.messages = 0;
        }
        owner.messages += 1;
        owner.messages > limit
    }

    /// Reads throttled sessions again once their second is over.
    pub(super) fn unthrottle(&mut self) {
        let second = clock::now_ns() / 1_000_000_000;
        let mut again = Vec::new();
        for (key, session) in &mut self.sessions {
            let over = self.owners.get(&session.uid).is_none_or(|owner| owner.second != second);
            if session.throttled && over {
                session.throttled = false;
                again.push(key);
            }
        }
        for key in again {
            self.listen_as_due(key);
        }
    }

    fn handle(
        &mut self,
        key: usize,
        request: &Request,
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let greeted = self.sessions.get(key).is_some_and(|session| session.greeted);
        if !greeted && !matches!(request, Request::Hello(_)) {
            let text = "the first message must be HELLO";
            return Err(Refusal::new(errno::EPROTO, Detail::Message, text));
        }
        let adopts =
            matches!(request, Request::Region(region) if region.source == abi::REGION_MEMFD);
        if descriptors.len() != usize::from(adopts) {
            let (came, want) = (descriptors.len(), usize::from(adopts));
            let text = format!("{came} descriptors came with a message that takes {want}");
            return Err(Refusal::new(errno::EINVAL, Detail::Descriptors, text));
        }
        match request {
            Request::Hello(hello) => self.hello(key, hello, greeted),
            Request::Ring(ring) => self.make_ring(key, ring),
            Request::Mapped(mapped) => self.mapped(key, mapped),
            Request::Region(region) => self.make_region(key, region, descriptors),
            Request::Export(export) => self.export(key, export),
            Request::Import(import) => self.import(key, import),
            Request::Connect(connect) => self.connect(key, connect),
            Request::Release(release) => self.release(key, release),
            Request::Probe(probe) => self.probe(key, probe),
            Request::Stats(stats) => self.stats(key, stats),
            Request::Cancel(query) => self.query(key, query, true),
            Request::Why(query) if query.ring == abi::RING_ANY => self.why_anywhere(key, query),
            Request::Why(query) => self.query(key, query, false),
            Request::Recorder(recorder) => self.recorder(key, recorder),
            Request::Telemetry(telemetry) => self.show_telemetry(key, telemetry),
            Request::Peers(peers) => self.show_peers(key, peers),
            Request::Cards(cards) => self.show_card(key, cards),
        }
    }

    fn hello(&mut self, key: usize, hello: &Hello, greeted: bool) -> Result<(), Refusal> {
        if greeted {
            let text = "HELLO came twice";
            return Err(Refusal::new(errno::EPROTO, Detail::Message, text));
        }
        let (low, high) = (hello.version_min, hello.version_max);
        if !(low..=high).contains(&abi::ABI_VERSION) {
            let text = format!(
                "the client speaks ABI {low} to {high}, this engine speaks {}",
                abi::ABI_VERSION
            );
            return Err(Refusal::new(errno::EOPNOTSUPP, Detail::Version, text));
        }
        if hello.features & !abi::FEATURES != 0 {
            let text = format!("features {:#x} are not offered", hello.features & !abi::FEATURES);
            return Err(Refusal::new(errno::EOPNOTSUPP, Detail::Version, text));
        }
        let own_pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let pidfd = fds::pidfd_open(own_pid).map_err(|errno| {
            let text = format!("the engine cannot open its pidfd: {errno}");
            Refusal::new(errno::ENOMEM, Detail::None, text)
        })?;
        if let Some(session) = self.sessions.get_mut(key) {
            session.greeted = true;
        }
        let reply = HelloReply {
            reply: wire::reply_head::<HelloReply>(Kind::Hello, hello.head.tag),
            version: u32::from(abi::ABI_VERSION),
            session: place(key).0,
            features: hello.features,
            boot_id: self.boot_id,
            engine: u32::from(self.config.engine),
            pid: std::process::id(),
        };
        self.send(key, reply.as_bytes(), &[pidfd.as_fd()]);
        Ok(())
    }

    /// Reads a session's socket, or stops reading it, as its state asks.
    fn listen_as_due(&self, key: usize) {
        let Some(session) = self.sessions.get(key).filter(|session| !session.ending) else {
            return;
        };
        let interest = if session.listens() { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        let mut event = EpollEvent::new(interest, Mark::Socket(key).pack());
        if let Some(socket) = &session.socket {
            let _ = self.epoll.modify(socket, &mut event);
        }
    }

    /// Marks a session's request as under way: it is read again after the reply.
    pub(super) fn hold(&mut self, key: usize) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.busy = true;
            session.outstanding += 1;
        }
        self.listen_as_due(key);
    }

    /// An answer on behalf of a session has come; true if the session still listens.
    pub(super) fn settle(&mut self, key: usize) -> bool {
        let Some(session) = self.sessions.get_mut(key) else { return false };
        session.outstanding -= 1;
        if session.ending {
            self.end_if_settled(key);
            return false;
        }
        true
    }

    /// Sends a reply and reads the session again.
    pub(super) fn answer<T: IntoBytes + Immutable>(
        &mut self,
        key: usize,
        reply: &T,
        descriptors: &[BorrowedFd<'_>],
    ) {
        self.send(key, reply.as_bytes(), descriptors);
    }

    /// Sends a failed reply and reads the session again.
    pub(super) fn fail(&mut self, key: usize, kind: Kind, tag: u64, refusal: &Refusal) {
        self.send(key, &wire::failure(kind as u16, tag, refusal), &[]);
    }

    fn send(&mut self, key: usize, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.ending {
            return;
        }
        session.busy = false;
        // One request under way a session: a client that does not read one reply is broken.
        match session.transmit(bytes, descriptors) {
            Ok(()) => self.listen_as_due(key),
            Err(Errno::EPIPE | Errno::ECONNRESET) => self.end_session(key, "it closed its socket"),
            Err(_) => self.evict(key, Detail::Message, "it does not read its replies"),
        }
    }

    /// Ends a session: exports at once, rings and regions as soon as nothing touches them.
    pub(super) fn end_session(&mut self, key: usize, why: &str) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.ending {
            return;
        }
        session.ending = true;
        info!(session = key, uid = session.uid, pid = session.pid, why, "session ends");
        if let Some(socket) = &session.socket {
            let _ = self.epoll.delete(socket);
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        if let Some(pidfd) = session.pidfd.take() {
            let _ = self.epoll.delete(&pidfd);
        }
        let (rings, regions) = (session.rings.clone(), session.regions.clone());
        self.forget_numbers(key);
        self.exports.retain(|_, export| export.session != key);
        for ring in rings {
            self.end_ring(key, ring);
        }
        for region in regions {
            self.end_region(key, region);
        }
        self.end_if_settled(key);
    }

    fn end_ring(&mut self, key: usize, ring: u32) {
        match self.rings[ring as usize].as_ref() {
            Some(place) if place.live() || place.arriving => {
                if let Some(session) = self.sessions.get_mut(key) {
                    session.outstanding += 1;
                }
                self.wind_ring(key, ring, Wind::Cancel, Asker::Departure);
            }
            Some(place) if place.winding => {
                // A drain may be under way: it must not wait for a client that is gone.
                if let Some(session) = self.sessions.get_mut(key) {
                    session.outstanding += 1;
                }
                self.wind_ring(key, ring, Wind::Cancel, Asker::Departure);
            }
            // The job's end forgets it.
            Some(place) if place.in_hand => {}
            _ => self.forget_ring(key, ring),
        }
    }

    fn end_region(&mut self, key: usize, region: RegionId) {
        let known = self.regions.get(&region.0).filter(|place| !place.in_hand);
        match known.map(|place| (place.live || place.arriving, place.removing)) {
            Some((true, false)) => {
                if let Some(session) = self.sessions.get_mut(key) {
                    session.outstanding += 1;
                }
                self.remove_region(key, region, None);
            }
            Some((_, true)) | None => {}
            Some((false, false)) => self.forget_region(key, region),
        }
    }

    fn end_if_settled(&mut self, key: usize) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if !session.ending || session.outstanding > 0 {
            return;
        }
        if let Some(socket) = session.socket.take_if(|socket| fds::unread(socket.as_fd())) {
            session.litter.push(socket);
            return self.close_litter(key);
        }
        let token = self.pending.insert(Pending::SessionRemoved { session: key }) as u64;
        self.order(Command::RemoveSession { session: place(key), token });
        // Counted so that this happens once.
        if let Some(session) = self.sessions.get_mut(key) {
            session.outstanding = u32::MAX;
        }
    }

    /// The core has let go of a session: its place is free.
    pub(super) fn session_removed(&mut self, key: usize) {
        if self.sessions.get(key).is_some_and(|session| session.recorder.is_some()) {
            self.give_back_recorder(key);
        }
        let Some(session) = self.sessions.try_remove(key) else { return };
        if let Some(owner) = self.owners.get_mut(&session.uid) {
            owner.sessions -= 1;
            if owner.sessions == 0 {
                let place = owner.place;
                self.owners.remove(&session.uid);
                self.owner_places.give(place);
            }
        }
        debug!(session = key, "session over");
    }
}

/// A session's place in the core.
pub(super) fn place(key: usize) -> SessionId {
    SessionId(u32::try_from(key).unwrap_or(u32::MAX))
}
