//! Connections to other engines: reaching them by a URL, being reached, greeting, reading and
//! writing, and losing them in any way.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{Shutdown, UnixAddr, getsockopt, shutdown, sockopt::PeerCredentials};
use tracing::{debug, info, warn};

use super::joint::Say;
use super::message::{Failure, Hello, Message, PeerError, RAILS_A_CARD_MAX};
use super::patience::{Due, Pulse};
use super::{Connection, Phase};
use crate::abi::{self, Connect, ConnectReply, Detail, Kind, REPLY, ReplyHead, errno};
use crate::clock;
use crate::control::Card;
use crate::control::fds;
use crate::control::server::{JobFor, Mark, Server};
use crate::control::wire::{self, Refusal, Url};
use crate::gate::Arrived;

/// How long a connection may take until its rails are ready, ns.
const UP_WITHIN_NS: u64 = 10_000_000_000;
/// How long a rail that failed may take to come back, ns: the other engine may be hung.
const AGAIN_WITHIN_NS: u64 = 30_000_000_000;
/// How long a peer may take to answer a WANT: it registers memory for it, ns.
pub(super) const HAVE_WITHIN_NS: u64 = 60_000_000_000;
/// How long a peer may take to give back what is withdrawn: its ops run to their end, ns.
pub(super) const BACK_WITHIN_NS: u64 = 20_000_000_000;
/// Jobs on their way to a URL at a time: each may hang in a file system.
const REACHING_MAX: usize = 16;
/// Messages read of one peer before others are looked at.
const READ_BUDGET: usize = 64;
/// Messages that wait for a peer that does not read.
const UNSENT_MAX: usize = 4_096;

fn refusal(errno: i32, detail: Detail, text: impl Into<String>) -> Refusal {
    Refusal::new(errno, detail, text)
}

impl Server {
    /// CONNECT: answered once the connection to that URL is up, or cannot be had.
    pub(in crate::control) fn connect(
        &mut self,
        key: usize,
        request: &Connect,
    ) -> Result<(), Refusal> {
        let url = wire::url(&request.url)?;
        if ![0, u32::from(abi::FABRIC_VERBS)].contains(&request.require) {
            let text = format!("require is {}, but must be 0 (any) or 2 (verbs)", request.require);
            return Err(refusal(errno::EINVAL, Detail::Require, text));
        }
        if self.card.is_none() {
            let text = format!(
                "verbs is not in use here, and nothing else reaches {url}: see verbring devices \
                 --why and the setting verbs"
            );
            return Err(refusal(errno::EOPNOTSUPP, Detail::Require, text));
        }
        match &url {
            Url::Socket(path) if UnixAddr::new(path).is_err() => {
                let bytes = path.as_os_str().len();
                let text = format!("the path has {bytes} bytes, but a socket's has at most 107");
                return Err(refusal(errno::EINVAL, Detail::Url, text));
            }
            Url::Host { .. } if self.gate.is_none() => {
                let text = format!(
                    "{url} is on another host, and this engine has no key for it: set psk_file to \
                     that of the engine there"
                );
                return Err(refusal(errno::EOPNOTSUPP, Detail::Url, text));
            }
            _ => {}
        }
        let same = |connection: &Connection| connection.url.as_ref() == Some(&url);
        let known = self.peers.connections.iter().find(|(_, connection)| same(connection));
        let connection = match known.map(|(key, _)| key) {
            Some(connection) => connection,
            None => self.reach(url)?,
        };
        self.hold(key);
        if let Some(entry) = self.peers.connections.get_mut(connection) {
            entry.waiting.push((key, request.head.tag));
        }
        self.look_after(connection);
        Ok(())
    }

    /// Sets out for a URL.
    pub(super) fn reach(&mut self, url: Url) -> Result<usize, Refusal> {
        if self.peers.reaching >= REACHING_MAX {
            let text = format!("{REACHING_MAX} other engines are being connected; try again");
            return Err(refusal(errno::EDQUOT, Detail::Quota, text));
        }
        if self.free_rails() < usize::from(self.rails_wanted()) {
            self.lose_an_idle_one();
            let text = "all rails are in use by connections: disconnect, or raise rails_max";
            return Err(refusal(errno::EDQUOT, Detail::Quota, text));
        }
        let until_ns = clock::now_ns() + UP_WITHIN_NS;
        let made = Connection::new(Phase::Reaching, Some(url.clone()), until_ns);
        let connection = self.peers.connections.insert(made);
        info!(connection, %url, "connecting to another engine");
        self.peers.reaching += 1;
        let job = self.jobs_for.insert(JobFor::Reach { connection });
        match (url, &self.gate) {
            (Url::Socket(path), _) => self.jobs.reach(job, path),
            (Url::Host { host, port }, Some(gate)) => {
                self.jobs.reach_host(job, gate.clone(), host, port);
            }
            // It was asked for above.
            (Url::Host { .. }, None) => {}
        }
        Ok(connection)
    }

    /// A connection that nobody uses gives its rails to the next that asks.
    fn lose_an_idle_one(&mut self) {
        let idle = |(key, connection): &(usize, &Connection)| {
            let nothing = connection.imports.is_empty() && connection.wants.is_empty();
            connection.phase == Phase::Up
                && connection.url.is_some()
                && nothing
                && !self.peers.numbers.names(*key)
        };
        let found = self.peers.connections.iter().find(idle).map(|(key, _)| key);
        if let Some(key) = found {
            self.lose_connection(key, "nobody uses it, and its rails are wanted");
        }
    }

    /// Rails on each card: one, or one a class where classes use their path in different ways.
    pub(super) fn rails_wanted(&self) -> u8 {
        if self.card.as_ref().is_some_and(Card::one_a_class) { RAILS_A_CARD_MAX } else { 1 }
    }

    /// Cards on which there are so many free rails each, at most `most`.
    pub(super) fn cards_for(&self, rails: u8, most: u8) -> u8 {
        let own = self.card.as_ref().map_or(0, Card::count);
        let room = self.free_rails() / usize::from(rails);
        own.min(most).min(u8::try_from(room).unwrap_or(u8::MAX))
    }

    /// A job has come to a URL, or not.
    pub(in crate::control) fn reached(
        &mut self,
        key: usize,
        came: Result<(OwnedFd, Option<IpAddr>), Refusal>,
    ) {
        self.peers.reaching -= 1;
        let phase = self.peers.connections.get(key).map(|connection| connection.phase);
        let (socket, by) = match came {
            Ok(reached) => reached,
            Err(refusal) => {
                self.give_up(key, &refusal);
                return self.look_after(key);
            }
        };
        if phase != Some(Phase::Reaching) {
            self.close_socket(Arc::new(socket));
            return self.look_after(key);
        }
        let watched = match by {
            Some(_) => self.watch_socket_of(key, socket),
            None => self.watch_peer(key, socket),
        };
        if let Err(refusal) = watched {
            return self.give_up(key, &refusal);
        }
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.enter(Phase::Greeting);
            connection.by = by;
            info!(connection = key, peer = connection.place(), "greeting another engine");
        }
        self.greet(key);
    }

    pub(super) fn own_hello(&self, rails: u8, cards: u8, link: u64) -> Hello {
        let (boot_id, silence_ms) = (self.boot_id, self.config.peer_silence_ms);
        let (pid, there) = (std::process::id(), self.card.as_ref().map_or(0, Card::count));
        let picked = [0, 1, 2, 3];
        let told = picked.map(|card| self.card.as_ref().map(|all| all.told(card)));
        let told = told.map(Option::unwrap_or_default);
        Hello { boot_id, pid, rails, cards, there, picked, told, silence_ms, link }
    }

    /// Takes a socket whose other end is another engine's of this host, if that may be a peer.
    fn watch_peer(&mut self, key: usize, socket: OwnedFd) -> Result<(), Refusal> {
        let credentials = getsockopt(&socket, PeerCredentials).map_err(|errno| {
            refusal(errno::ENETUNREACH, Detail::Peer, format!("SO_PEERCRED: {}", errno.desc()))
        });
        let pid = match credentials.and_then(|peer| judge_uid(peer.uid()).map(|()| peer.pid())) {
            Ok(pid) => pid,
            Err(refusal) => {
                self.close_socket(Arc::new(socket));
                return Err(refusal);
            }
        };
        let pidfd = fds::peer_pidfd(socket.as_fd()).or_else(|_| fds::pidfd_open(pid)).ok();
        self.watch_socket_of(key, socket)?;
        if let Some(pidfd) = &pidfd {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Mark::PeerDeath(key).pack());
            let _ = self.epoll.add(pidfd, event);
        }
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.pidfd = pidfd;
            connection.pid = pid;
        }
        Ok(())
    }

    /// Takes the socket that a peer, or the gate for it, has the other end of.
    fn watch_socket_of(&mut self, key: usize, socket: OwnedFd) -> Result<(), Refusal> {
        let socket = Arc::new(socket);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Mark::Peer(key).pack());
        if let Err(errno) = self.epoll.add(&socket, event) {
            self.close_socket(socket);
            let text = format!("epoll_ctl: {}", errno.desc());
            return Err(refusal(errno::ENOMEM, Detail::None, text));
        }
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.socket = Some(socket);
        }
        Ok(())
    }

    /// Another host's engine has come in at the gate, which has seen that it has the key.
    pub(in crate::control) fn arrived(&mut self, arrived: Arrived) {
        let Arrived { socket, from, first } = arrived;
        self.met(socket, &first, Some(from));
    }

    /// Another engine has reached this one: its first message came where clients' come.
    pub(in crate::control) fn reached_by(&mut self, socket: OwnedFd, first: &[u8]) {
        self.met(socket, first, None);
    }

    fn met(&mut self, socket: OwnedFd, first: &[u8], from: Option<SocketAddr>) {
        let until_ns = clock::now_ns() + UP_WITHIN_NS;
        let mut made = Connection::new(Phase::Joining, None, until_ns);
        made.from = from;
        let key = self.peers.connections.insert(made);
        let answered = match Message::parse(first) {
            Ok(Message::Hello(hello)) => self.welcome(key, socket, hello),
            Ok(_) => {
                let text = "the first message must be HELLO";
                Err((socket, refusal(errno::EPROTO, Detail::Message, text)))
            }
            Err(error @ PeerError::Version { .. }) => {
                Err((socket, refusal(errno::EOPNOTSUPP, Detail::Version, error.to_string())))
            }
            Err(error) => Err((socket, refusal(errno::EPROTO, Detail::Message, error.to_string()))),
        };
        if let Err((socket, refusal)) = answered {
            warn!(why = refusal.text, "turning another engine away");
            let message = Message::Refuse(failure(&refusal));
            let _ = fds::transmit(socket.as_fd(), &message.to_bytes(), &[], false);
            self.close_socket(Arc::new(socket));
            self.peers.connections.remove(key);
        }
    }

    fn welcome(
        &mut self,
        key: usize,
        socket: OwnedFd,
        hello: Hello,
    ) -> Result<(), (OwnedFd, Refusal)> {
        let rails = hello.rails.max(self.rails_wanted());
        let cards = self.cards_for(rails, hello.cards);
        let from = self.peers.connections.get(key).and_then(|connection| connection.from);
        let old = from.and_then(|_| self.place_of(key, &hello));
        let judged = match (from, getsockopt(&socket, PeerCredentials)) {
            (Some(_), _) => Ok(()),
            (None, Ok(peer)) => judge_uid(peer.uid()),
            (None, Err(errno)) => Err(refusal(errno::EACCES, Detail::Peer, errno.desc())),
        };
        let judged = judged.and_then(|()| {
            if hello.boot_id == self.boot_id {
                let text = "the URL is that of the engine itself: import with peer 0";
                return Err(refusal(errno::EINVAL, Detail::Url, text));
            }
            if self.card.is_none() {
                let text = "verbs is not in use at the other engine";
                return Err(refusal(errno::EOPNOTSUPP, Detail::Require, text));
            }
            if cards == 0 && old.is_none() { Err(no_room()) } else { Ok(()) }
        });
        if let Err(refusal) = judged {
            return Err((socket, refusal));
        }
        let watched = match from {
            Some(_) => self.watch_socket_of(key, socket),
            None => self.watch_peer(key, socket),
        };
        if let Err(refusal) = watched {
            warn!(why = refusal.text, "turning another engine away");
            self.peers.connections.remove(key);
            return Ok(());
        }
        let Hello { boot_id, pid, silence_ms, link, .. } = hello;
        let from = from.map(tracing::field::display);
        info!(connection = key, pid, from, rails, cards, "another engine has connected");
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.silence_ms = silence_ms;
            (connection.boot_id, connection.link) = (boot_id, link);
            connection.story.met(&hello);
        }
        match old {
            Some(old) => self.take_place(key, old, rails, hello),
            None => self.let_in(key, rails, cards, &hello),
        }
        Ok(())
    }

    /// A peer's socket has something, or room for something.
    pub(in crate::control) fn peer_ready(&mut self, key: usize, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.flush(key);
        }
        if flags == EpollFlags::EPOLLOUT {
            return;
        }
        for _ in 0..READ_BUDGET {
            let Some(connection) = self.peers.connections.get(key) else { return };
            let Some(socket) = &connection.socket else { return };
            match fds::peek(socket.as_fd(), &mut [0]) {
                Err(Errno::EAGAIN) => return,
                // They are closed with the socket, and not here.
                Ok((_, true)) => return self.hang_up(key, "it sends descriptors"),
                Ok((0, false)) => return self.hang_up(key, "it closed its socket"),
                Ok(_) => {}
                Err(_) => return self.hang_up(key, "its socket failed"),
            }
            match fds::receive(socket.as_fd(), false) {
                Err(Errno::EAGAIN) => return,
                Ok(Some(received)) => self.peer_said(key, &received.bytes),
                Ok(None) | Err(_) => return self.hang_up(key, "it closed its socket"),
            }
        }
    }

    fn peer_said(&mut self, key: usize, datagram: &[u8]) {
        if self.peers.connections.get(key).is_some_and(|it| it.phase == Phase::Lost) {
            // What it said before it heard of that means nothing any more.
            if let Ok(Message::Bye) = Message::parse(datagram) {
                self.peer_silent(key);
            }
            return;
        }
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            // It takes us for a client, and says why we cannot have a session.
            Err(_) if self.as_client(key, datagram) => return,
            Err(error) => {
                warn!(connection = key, %error, "another engine broke the rules");
                return self.lose_connection(key, "it sent what is no message");
            }
        };
        debug!(connection = key, kind = message.name(), "heard");
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        connection.story.heard();
        let up = matches!(connection.phase, Phase::Joining | Phase::Up);
        match message {
            Message::Welcome(hello) if connection.phase == Phase::Greeting => {
                self.welcomed(key, hello);
            }
            Message::Refuse(why) if connection.phase == Phase::Greeting => {
                let detail = Detail::from_number(why.detail).unwrap_or(Detail::Peer);
                let text = format!("the other engine refuses: {}", why.text);
                self.give_up(key, &refusal(why.errno, detail, text));
            }
            Message::Joint(at, say) if up => self.heard_of_rail(key, at, say),
            Message::Want(want) if up => self.wanted(key, &want),
            Message::Have(have) if up => self.had(key, have),
            Message::No(tag, why) if up => self.denied(key, tag, &why),
            Message::Withdraw(loan) if up => self.withdrawn(key, loan),
            Message::GiveBack(loan) if up => self.given_back(key, loan),
            Message::Call if up => self.say(key, &Message::Here),
            Message::Here if up => {
                if let Some(pulse) = &mut connection.pulse {
                    pulse.answered();
                }
            }
            Message::Bye if up => {
                self.lose_connection(key, "it has ended the connection");
                self.peer_silent(key);
            }
            other => {
                warn!(connection = key, kind = other.name(), "a message out of turn");
                self.lose_connection(key, "it sent a message out of turn");
            }
        }
    }

    /// True if a datagram is a refusal as clients get it: passed on.
    fn as_client(&mut self, key: usize, datagram: &[u8]) -> bool {
        use zerocopy::FromBytes;
        let Ok((head, text)) = ReplyHead::read_from_prefix(datagram) else { return false };
        let greeting =
            self.peers.connections.get(key).is_some_and(|it| it.phase == Phase::Greeting);
        if !greeting || head.kind & REPLY == 0 || head.status >= 0 {
            return false;
        }
        let text = String::from_utf8_lossy(text).replace(|letter: char| letter.is_control(), " ");
        let text = format!("the other engine refuses: {text}");
        let errno = head.status.checked_neg().unwrap_or(errno::EPROTO);
        self.give_up(key, &refusal(errno, Detail::Peer, text));
        true
    }

    fn welcomed(&mut self, key: usize, hello: Hello) {
        if hello.boot_id == self.boot_id {
            let text = "the URL is that of the engine itself: import with peer 0";
            return self.give_up(key, &refusal(errno::EINVAL, Detail::Url, text));
        }
        let Hello { pid, rails, cards, silence_ms, picked, told, .. } = hello;
        let there = self.card.as_ref().map_or(0, Card::count);
        let picked = &picked[..usize::from(cards)];
        if cards > there || picked.iter().any(|card| *card >= there) {
            return self.lose_connection(key, "it welcomes more cards than there are");
        }
        if !picked.contains(&0) {
            return self.lose_connection(key, "it leaves out the first card, by which atomics go");
        }
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.enter(Phase::Joining);
            connection.silence_ms = silence_ms;
            connection.story.met(&hello);
            info!(connection = key, peer = connection.place(), pid, rails, cards, "joining rails");
        }
        self.met_again(key, &hello);
        let pairs: Vec<_> = picked.iter().copied().zip(told).collect();
        // They are in the order of the other's own numbers.
        let order: Vec<usize> = (0..pairs.len()).collect();
        if !self.join_rails(key, rails, &pairs, &order) {
            let text = "all rails are in use by connections: disconnect, or raise rails_max";
            self.give_up(key, &refusal(errno::EDQUOT, Detail::Quota, text));
        }
    }

    fn heard_of_rail(&mut self, key: usize, at: u8, say: Say) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let Some(rail) = connection.rails.get(usize::from(at)).copied() else {
            return self.lose_connection(key, "it speaks of a rail that there is not");
        };
        let Some(Some(place)) = self.peers.rails.get_mut(usize::from(rail)) else { return };
        if let Err(violation) = place.joint.heard(&say) {
            warn!(connection = key, rail, %violation, "another engine broke the rules");
            return self.lose_connection(key, "it broke the rules of its rail");
        }
        self.drive_rail(rail);
    }

    /// Says something of a rail to its other end.
    pub(super) fn say_of_rail(&mut self, key: usize, at: u8, say: Say) {
        self.say(key, &Message::Joint(at, say));
    }

    /// Says something to a peer; nothing if it is lost.
    pub(super) fn say(&mut self, key: usize, message: &Message) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if connection.socket.is_none() || connection.phase == Phase::Lost {
            return;
        }
        debug!(connection = key, kind = message.name(), "said");
        connection.unsent.push_back(message.to_bytes());
        if connection.unsent.len() > UNSENT_MAX {
            return self.lose_connection(key, "it does not read");
        }
        self.flush(key);
    }

    fn flush(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let Some(socket) = &connection.socket else { return };
        let mut failed = false;
        while let Some(bytes) = connection.unsent.front() {
            match fds::transmit(socket.as_fd(), bytes, &[], false) {
                Ok(()) => connection.unsent.pop_front(),
                Err(Errno::EAGAIN) => break,
                Err(_) => {
                    failed = true;
                    break;
                }
            };
        }
        let mut interest = EpollFlags::EPOLLIN;
        if !connection.unsent.is_empty() {
            interest |= EpollFlags::EPOLLOUT;
        }
        let _ = self.epoll.modify(socket, &mut EpollEvent::new(interest, Mark::Peer(key).pack()));
        if failed {
            // What it said before may still be read, such as why it refuses.
            connection.unsent.clear();
        }
    }

    /// A connection that is not up cannot be had: those who wait for it are told why.
    fn give_up(&mut self, key: usize, why: &Refusal) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let waiting = std::mem::take(&mut connection.waiting);
        self.lose_connection(key, &why.text);
        self.fail_waiting(waiting, why);
    }

    fn fail_waiting(&mut self, waiting: Vec<(usize, u64)>, why: &Refusal) {
        for (session, tag) in waiting {
            if self.settle(session) {
                self.fail(session, Kind::Connect, tag, why);
            }
        }
    }

    /// Loses a connection, whatever it is doing. Everything of it comes to its end by and by.
    pub(in crate::control) fn lose_connection(&mut self, key: usize, why: &str) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if connection.phase == Phase::Lost {
            return;
        }
        let was = connection.enter(Phase::Lost);
        self.peers.failures.note(connection, why, clock::now_ns());
        let had_rails = matches!(was, Phase::Joining | Phase::Up);
        let lease_ns = self.card.as_ref().map_or(0, |card| card.lease_ns) + connection.unaware_ns();
        connection.parting.begin(had_rails, clock::now_ns().saturating_add(lease_ns));
        let (peer, pid) = (connection.place(), connection.pid);
        info!(connection = key, peer, pid, phase = ?was, why, "connection lost");
        let used = !connection.imports.is_empty() || self.peers.numbers.names(key);
        let until_ns = connection.parting.due_ns().filter(|_| was == Phase::Up && used);
        let again = connection.url.take().zip(until_ns);
        connection.until_ns = None;
        connection.withdrawn.forget();
        connection.pulse = None;
        connection.unsent.clear();
        let waiting = std::mem::take(&mut connection.waiting);
        self.peers.numbers.lose(key);
        let text = format!("the connection to the other engine is lost: {why}");
        self.fail_waiting(waiting, &refusal(errno::EHOSTDOWN, Detail::Peer, &*text));
        self.deny_all(key, &refusal(errno::EHOSTDOWN, Detail::Peer, text));
        self.withdraw_all(key);
        self.each_rail(key, super::joint::Joint::lose);
        self.look_after(key);
        if let Some((url, until_ns)) = again {
            self.want_again(url, until_ns);
        }
    }

    /// Loses a connection whose socket is of no use any more.
    fn hang_up(&mut self, key: usize, why: &str) {
        self.lose_connection(key, why);
        self.drop_socket(key);
    }

    /// A peer's process is gone, and its queue pairs with it: they end with its descriptors, which
    /// are closed before its death is told.
    pub(in crate::control) fn peer_died(&mut self, key: usize) {
        self.hang_up(key, "its process is gone");
        self.drop_pidfd(key);
        self.peer_silent(key);
    }

    /// Nothing that was sent to a lost peer can still be delivered.
    pub(super) fn peer_silent(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if !connection.parting.silent {
            debug!(connection = key, peer = connection.place(), "a lost peer is silent");
        }
        connection.parting.hush();
        self.each_rail(key, super::joint::Joint::silent);
        self.look_after(key);
    }

    /// Says once to a lost peer that nothing it has sent is delivered here any more; lets go of it
    /// when it is silent, too.
    fn part(&mut self, key: usize) {
        let hushed = self.rails_hushed(key);
        if hushed {
            self.let_on_behind(key);
        }
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if hushed
            && !std::mem::replace(&mut connection.parting.said, true)
            && let Some(socket) = &connection.socket
        {
            // If there is no room for it, the peer waits until its lease is over.
            let _ = fds::transmit(socket.as_fd(), &Message::Bye.to_bytes(), &[], false);
        }
        if connection.parting.said && connection.parting.silent {
            self.drop_socket(key);
            self.drop_pidfd(key);
        }
    }

    fn drop_socket(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if let Some(socket) = connection.socket.take() {
            let _ = self.epoll.delete(&socket);
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
            self.close_socket(socket);
        }
    }

    fn drop_pidfd(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if let Some(pidfd) = connection.pidfd.take() {
            let _ = self.epoll.delete(&pidfd);
        }
    }

    /// Loses all connections.
    pub(in crate::control) fn lose_all(&mut self, why: &str) {
        let all: Vec<usize> = self.peers.connections.iter().map(|(key, _)| key).collect();
        for key in all {
            self.lose_connection(key, why);
        }
    }

    /// Closes a peer's socket where it may take its time: unread descriptors may be in it.
    fn close_socket(&mut self, socket: Arc<OwnedFd>) {
        let job = self.jobs_for.insert(JobFor::PeerSocket);
        self.jobs.close(job, vec![socket]);
    }

    /// Moves a connection on as far as it can go.
    pub(super) fn look_after(&mut self, key: usize) {
        let ready = self.rails_ready(key);
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        match connection.phase {
            Phase::Joining if ready => {
                connection.enter(Phase::Up);
                connection.until_ns = None;
                connection.pulse = Some(Pulse::new(clock::now_ns(), self.config.peer_silence_ms));
                let (peer, rails) = (connection.place(), &connection.rails);
                info!(connection = key, peer, ?rails, "connection up");
            }
            Phase::Up if ready && connection.until_ns.take().is_some() => {
                info!(connection = key, peer = connection.place(), "connection whole again");
            }
            Phase::Up if ready => {}
            // A rail is being rebuilt, for which the other engine is needed.
            Phase::Up if connection.until_ns.is_none() => {
                connection.until_ns = Some(clock::now_ns() + AGAIN_WITHIN_NS);
                warn!(connection = key, peer = connection.place(), "connection interrupted");
            }
            _ => {}
        }
        let phase = self.peers.connections.get(key).map(|connection| connection.phase);
        match phase {
            Some(Phase::Up) => self.answer_waiting(key),
            Some(Phase::Lost) => {
                self.part(key);
                self.forget_by_and_by(key);
            }
            _ => {}
        }
    }

    fn answer_waiting(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let waiting = std::mem::take(&mut connection.waiting);
        let Some([_, medium, _]) = connection.sets() else { return };
        for (session, tag) in waiting {
            if !self.settle(session) {
                continue;
            }
            let peer = self.peers.numbers.number_for(session, key);
            let reply = ConnectReply {
                reply: wire::reply_head::<ConnectReply>(Kind::Connect, tag),
                peer,
                fabric: u32::from(abi::FABRIC_VERBS),
                rail: medium.trailing_zeros(),
                reserved: 0,
            };
            self.answer(session, &reply, &[]);
        }
    }

    /// A session ends: its numbers mean nothing any more.
    pub(in crate::control) fn forget_numbers(&mut self, session: usize) {
        self.peers.numbers.forget(session);
    }

    /// Forgets a lost connection, in the order that is right.
    fn forget_by_and_by(&mut self, key: usize) {
        if !self.rails_dead(key) {
            return;
        }
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if !std::mem::replace(&mut connection.loans_lost, true) {
            connection.loans.lose();
            return self.drive_loans(key);
        }
        let used = !connection.loans.over()
            || !connection.lends.is_empty()
            || !connection.imports.is_empty()
            || connection.withdrawing > 0;
        if used {
            return;
        }
        if self.rails_releasable(key) {
            return self.each_rail(key, super::joint::Joint::release);
        }
        let Some(connection) = self.peers.connections.get(key) else { return };
        if !connection.rails.is_empty() {
            return;
        }
        let reaching =
            |job: &JobFor| matches!(job, JobFor::Reach { connection } if *connection == key);
        if !self.jobs_for.iter().any(|(_, job)| reaching(job)) {
            self.drop_socket(key);
            self.drop_pidfd(key);
            let connection = self.peers.connections.remove(key);
            info!(connection = key, peer = connection.place(), "connection forgotten");
            self.let_on_behind(key);
        }
    }

    /// Milliseconds until something of a peer is overdue.
    pub(in crate::control) fn peers_due_ms(&self) -> Option<u64> {
        let due = |connection: &Connection| {
            let withdrawn = connection.withdrawn.first_ns().map(|since| since + BACK_WITHIN_NS);
            let pulse = connection.pulse.as_ref().map(Pulse::due_ns);
            let wanted = connection.wants.values().map(|want| want.since_ns + HAVE_WITHIN_NS).min();
            let lease = connection.parting.due_ns();
            [connection.until_ns, withdrawn, wanted, pulse, lease].into_iter().flatten().min()
        };
        let connections = self.peers.connections.iter().filter_map(|(_, it)| due(it)).min();
        let first =
            [connections, self.rails_due_ns(), self.again_due_ns()].into_iter().flatten().min()?;
        Some(first.saturating_sub(clock::now_ns()).div_ceil(1_000_000))
    }

    /// Loses connections whose peers have taken too long.
    pub(in crate::control) fn lose_overdue(&mut self) {
        let now_ns = clock::now_ns();
        self.retry_rails(now_ns);
        self.reach_again(now_ns);
        let over = |since: Option<u64>, within| since.is_some_and(|since| now_ns >= since + within);
        let (mut found, mut called, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for (key, connection) in &mut self.peers.connections {
            let first = connection.wants.values().map(|want| want.since_ns).min();
            if connection.phase == Phase::Lost {
                if over(connection.parting.due_ns(), 0) {
                    silent.push(key);
                }
                continue;
            }
            let pulse = connection.pulse.as_mut().map_or(Due::Nothing, |it| it.step(now_ns));
            if pulse == Due::Call {
                called.push(key);
            }
            if over(connection.until_ns, 0) {
                found.push((key, "its rails were not connected"));
            } else if over(connection.withdrawn.first_ns(), BACK_WITHIN_NS) {
                found.push((key, "it does not give back what is withdrawn"));
            } else if over(first, HAVE_WITHIN_NS) || pulse == Due::Lost {
                found.push((key, "it does not answer"));
            }
        }
        for key in self.unquiet(now_ns) {
            found.push((key, "one of its rails does not fall quiet"));
        }
        for key in silent {
            info!(connection = key, "the lease of a lost peer is over");
            self.peer_silent(key);
        }
        for key in called {
            self.say(key, &Message::Call);
        }
        for (key, why) in found {
            let text = format!("the other engine did not answer in time: {why}");
            self.give_up(key, &refusal(errno::ETIMEDOUT, Detail::Peer, text));
        }
    }
}

/// A peer must run under our uid, or as root: it is told what sessions here keep from other uids.
fn judge_uid(uid: u32) -> Result<(), Refusal> {
    let own = nix::unistd::geteuid().as_raw();
    if uid == own || uid == 0 {
        return Ok(());
    }
    let text = format!("the other engine runs under uid {uid}, but must under {own} or as root");
    Err(refusal(errno::EACCES, Detail::Peer, text))
}

/// There is no rail for another engine.
pub(super) fn no_room() -> Refusal {
    let text = "all rails of the other engine are in use: raise its rails_max";
    refusal(errno::EDQUOT, Detail::Quota, text)
}

/// A refusal, as it is said to a peer.
pub(super) fn failure(refusal: &Refusal) -> Failure {
    let Refusal { errno, detail, text } = refusal.clone();
    Failure { errno, detail: detail as u16, text }
}
