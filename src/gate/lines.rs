//! The gate's thread: connections to other hosts' engines, each between a TCP socket and a local
//! one that the control thread has the other end of.
//!
//! **Bounds.** Who has not shown the key has [`PROVED_WITHIN_NS`] for it, one record of memory, and
//! a place among [`UNPROVED_MAX`]: when all are taken the one that has been there longest goes, so
//! that whoever is silent keeps nobody out. Who has shown it and does not read is not read either.
//! What is read at a time is bounded, so that nobody waits for another's torrent.
//!
//! **The end.** When the control thread closes its end, what it said before is still sent, for at
//! most [`PARTING_NS`]. When the other host is gone the control thread reads an end of file.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Backlog, listen as listen_at};
use slab::Slab;
use tracing::{debug, info, warn};

use super::channel::Channel;
use super::doorman::Doorman;
use super::reach::reach;
use super::{Arrived, Key, NotReached, Reached};
use crate::clock;
use crate::control::fds;

/// How long somebody may take to show the key, ns.
const PROVED_WITHIN_NS: u64 = 5_000_000_000;
/// How long what was said last may take to be sent, ns.
const PARTING_NS: u64 = 2_000_000_000;
/// Connections that have not shown the key.
const UNPROVED_MAX: usize = 256;
/// Connections.
const LINES_MAX: usize = 2_048;
/// Connections accepted, and reads of one of them, before others are looked at.
const BUDGET: usize = 32;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;
/// Bytes read at a time.
const READ_BYTES: usize = 4_096;
/// Bytes that wait for the other host, above which the control thread is not read.
const UNSENT_MAX: usize = 64 << 10;
/// A pause in accepting when no descriptor is free, ms.
const PAUSE_MS: u8 = 50;

/// A way to the gate's thread, which ends when nobody has one.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    key: Arc<Key>,
    rope: Arc<Rope>,
    listening: Option<SocketAddr>,
}

/// Hands the thread what was reached. Dropped, it wakes the thread to find nobody there.
#[derive(Debug)]
struct Rope {
    /// Taken only by `drop`.
    reached: Option<Sender<Made>>,
    bell: Arc<EventFd>,
}

impl Drop for Rope {
    fn drop(&mut self) {
        drop(self.reached.take());
        let _ = self.bell.write(1);
    }
}

/// A connection that this host has made.
#[derive(Debug)]
struct Made {
    tcp: TcpStream,
    to: SocketAddr,
    channel: Channel,
    inner: OwnedFd,
}

/// What is done with whoever comes in.
pub(crate) type Usher = Box<dyn FnMut(Arrived) + Send>;

impl Gate {
    /// Makes the gate, which listens if there is an address to listen at, and what is to run on
    /// its thread.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(
        key: Key,
        listen: Option<SocketAddr>,
        usher: Usher,
    ) -> std::io::Result<(Self, GateThread)> {
        let key = Arc::new(key);
        let listener = listen.map(TcpListener::bind).transpose()?;
        if let Some(listener) = &listener {
            // More than the standard library asks for: who finds the queue full waits a second.
            listen_at(listener, Backlog::new(BACKLOG)?)?;
        }
        let listening = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let bell = Arc::new(bell);
        let (reached, heard) = channel();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*bell, EpollEvent::new(EpollFlags::EPOLLIN, Mark::Bell.pack()))?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, Mark::Listener.pack()))?;
        }
        let thread = GateThread {
            key: Arc::clone(&key),
            epoll,
            listener,
            paused: false,
            bell: Arc::clone(&bell),
            heard,
            lines: Slab::new(),
            unproved: VecDeque::new(),
            doorman: Doorman::default(),
            usher,
            closing: false,
        };
        let rope = Arc::new(Rope { reached: Some(reached), bell });
        Ok((Self { key, rope, listening }, thread))
    }

    /// Where it listens, with the port that it got.
    pub(crate) fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// Connects to another host's gate: returns the socket whose datagrams go there. May take
    /// seconds.
    ///
    /// # Errors
    /// [`NotReached`].
    pub(crate) fn reach(&self, host: &str, port: u16) -> Result<Reached, NotReached> {
        let (tcp, to, channel) = reach(host, port, &self.key)?;
        let here = |what: &str, why: &dyn std::fmt::Display| {
            NotReached::Here(format!("{what} failed: {why}"))
        };
        let by = tcp.local_addr().map_err(|why| here("getsockname", &why))?.ip();
        let (inner, socket) = fds::control_pair().map_err(|why| here("socketpair", &why))?;
        tcp.set_nonblocking(true).map_err(|why| here("fcntl", &why))?;
        let gone = || NotReached::Here("the engine is ending".to_string());
        let reached = self.rope.reached.as_ref().ok_or_else(gone)?;
        reached.send(Made { tcp, to, channel, inner }).map_err(|_| gone())?;
        let _ = self.rope.bell.write(1);
        Ok(Reached { socket, by })
    }
}

/// What the epoll set tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Bell,
    Listener,
    Tcp(usize),
    Inner(usize),
}

impl Mark {
    fn pack(self) -> u64 {
        match self {
            Self::Bell => 0,
            Self::Listener => 1,
            Self::Tcp(key) => 2 + 2 * key as u64,
            Self::Inner(key) => 3 + 2 * key as u64,
        }
    }

    fn unpack(mark: u64) -> Self {
        let key = usize::try_from(mark.saturating_sub(2) / 2).unwrap_or(usize::MAX);
        match mark {
            0 => Self::Bell,
            1 => Self::Listener,
            _ if mark.is_multiple_of(2) => Self::Tcp(key),
            _ => Self::Inner(key),
        }
    }
}

/// A connection.
#[derive(Debug)]
struct Line {
    tcp: TcpStream,
    peer: SocketAddr,
    channel: Channel,
    /// The key was shown, and the control thread knows of it.
    let_in: bool,
    /// To the control thread, until one of us parts.
    inner: Option<OwnedFd>,
    /// Messages that the control thread has not taken.
    untaken: VecDeque<Vec<u8>>,
    /// Until when the key must be shown, or all be sent.
    until_ns: Option<u64>,
    /// Nothing more comes in; what is said is sent still.
    parting: bool,
    /// What the epoll set has: of the TCP socket, of the local one.
    interest: [EpollFlags; 2],
}

/// Why a line ends.
enum End {
    /// It was never let in: to be said.
    TurnedAway(String),
    /// It had been let in, or nobody is to blame.
    Over(&'static str),
}

/// What runs on the gate's thread.
pub(crate) struct GateThread {
    key: Arc<Key>,
    epoll: Epoll,
    listener: Option<TcpListener>,
    /// Nobody is accepted for a moment: no descriptor was free.
    paused: bool,
    bell: Arc<EventFd>,
    heard: Receiver<Made>,
    lines: Slab<Line>,
    /// Lines that have not shown the key, the first to come first, and until when they may; also
    /// some that have, or are gone since.
    unproved: VecDeque<(usize, u64)>,
    doorman: Doorman,
    usher: Usher,
    /// Nobody has a way here any more.
    closing: bool,
}

impl GateThread {
    /// Works until nobody has a way here any more and all is said.
    pub(crate) fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        while !(self.closing && self.lines.is_empty()) {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Err(Errno::EINTR) => continue,
                other => other.unwrap_or(0),
            };
            if self.paused {
                self.paused = false;
                self.listen();
            }
            for event in &events[..count] {
                match Mark::unpack(event.data()) {
                    Mark::Bell => {
                        let _ = self.bell.read();
                    }
                    Mark::Listener => self.accept(),
                    Mark::Tcp(key) | Mark::Inner(key) => self.step(key),
                }
            }
            self.take_reached();
            self.end_overdue();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        if self.paused {
            return EpollTimeout::from(PAUSE_MS);
        }
        let parting = self.lines.iter().filter(|(_, line)| line.parting);
        let parting = parting.filter_map(|(_, line)| line.until_ns).min();
        let first = [parting, self.unproved.front().map(|(_, until)| *until)];
        match first.into_iter().flatten().min() {
            None => EpollTimeout::NONE,
            Some(until_ns) => {
                let ms = until_ns.saturating_sub(clock::now_ns()).div_ceil(1_000_000);
                EpollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
            }
        }
    }

    fn listen(&self) {
        let Some(listener) = &self.listener else { return };
        let interest = if self.paused { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        let _ = self.epoll.modify(listener, &mut EpollEvent::new(interest, Mark::Listener.pack()));
    }

    fn accept(&mut self) {
        for _ in 0..BUDGET {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((tcp, from)) => self.come(tcp, from),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                        warn!("no descriptor is free for another connection");
                        self.paused = true;
                        return self.listen();
                    }
                    Some(Errno::EAGAIN) => return,
                    // It was gone before it was accepted.
                    _ => {}
                },
            }
        }
    }

    fn come(&mut self, tcp: TcpStream, from: SocketAddr) {
        let now_ns = clock::now_ns();
        let waiting = |(key, until_ns): &(usize, u64)| {
            self.lines.get(*key).is_some_and(|line| line.until_ns == Some(*until_ns))
        };
        self.unproved.retain(waiting);
        if self.unproved.len() >= UNPROVED_MAX
            && let Some((key, _)) = self.unproved.pop_front()
        {
            self.end(key, End::TurnedAway("others wait, and it says nothing".to_string()));
        }
        let channel = match Channel::responder(&self.key) {
            Ok(channel) if self.lines.len() < LINES_MAX => channel,
            Ok(_) => {
                let why = format!("{LINES_MAX} connections are there");
                self.doorman.turned_away(from, &why, now_ns);
                return;
            }
            Err(why) => {
                self.doorman.turned_away(from, &why, now_ns);
                return;
            }
        };
        let until_ns = now_ns + PROVED_WITHIN_NS;
        if tcp.set_nonblocking(true).is_err() {
            return;
        }
        if let Some(key) = self.add(tcp, from, channel, None) {
            self.unproved.push_back((key, until_ns));
            if let Some(line) = self.lines.get_mut(key) {
                line.until_ns = Some(until_ns);
            }
            self.step(key);
        }
    }

    fn add(
        &mut self,
        tcp: TcpStream,
        peer: SocketAddr,
        channel: Channel,
        inner: Option<OwnedFd>,
    ) -> Option<usize> {
        let _ = tcp.set_nodelay(true);
        let key = self.lines.vacant_key();
        let interest = EpollFlags::EPOLLIN;
        self.epoll.add(&tcp, EpollEvent::new(interest, Mark::Tcp(key).pack())).ok()?;
        let mut line = Line {
            tcp,
            peer,
            channel,
            let_in: inner.is_some(),
            inner: None,
            untaken: VecDeque::new(),
            until_ns: None,
            parting: false,
            interest: [interest, EpollFlags::empty()],
        };
        if let Some(inner) = inner {
            line.interest[1] = interest;
            self.epoll.add(&inner, EpollEvent::new(interest, Mark::Inner(key).pack())).ok()?;
            line.inner = Some(inner);
        }
        self.lines.insert(line);
        Some(key)
    }

    fn take_reached(&mut self) {
        loop {
            match self.heard.try_recv() {
                Ok(Made { tcp, to, channel, inner }) => {
                    info!(%to, "connected to another host's gate");
                    if let Some(key) = self.add(tcp, to, channel, Some(inner)) {
                        self.step(key);
                    }
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    if !std::mem::replace(&mut self.closing, true) {
                        self.close();
                    }
                    return;
                }
            }
        }
    }

    /// Nobody comes in any more; what was said is still sent.
    fn close(&mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = self.epoll.delete(&listener);
        }
        let all: Vec<usize> = self.lines.iter().map(|(key, _)| key).collect();
        for key in all {
            self.step(key);
            self.part(key);
        }
    }

    fn end_overdue(&mut self) {
        let now_ns = clock::now_ns();
        while let Some((key, until_ns)) = self.unproved.front().copied() {
            let waits = self.lines.get(key).is_some_and(|line| line.until_ns == Some(until_ns));
            if waits && now_ns < until_ns {
                break;
            }
            self.unproved.pop_front();
            if waits {
                self.end(key, End::TurnedAway("it did not show the key in time".to_string()));
            }
        }
        let over = |line: &Line| line.parting && line.until_ns.is_some_and(|until| now_ns >= until);
        let over: Vec<usize> =
            self.lines.iter().filter(|(_, line)| over(line)).map(|(key, _)| key).collect();
        for key in over {
            self.end(key, End::Over("what was said last could not be sent"));
        }
    }

    /// Moves what can be moved on a line.
    fn step(&mut self, key: usize) {
        let Some(line) = self.lines.get_mut(key) else { return };
        match line.step() {
            Ok(Some(first)) => self.usher_in(key, first),
            Ok(None) => {}
            Err(end) => return self.end(key, end),
        }
        let Some(line) = self.lines.get_mut(key) else { return };
        if line.parting && line.channel.unsent().is_empty() {
            return self.end(key, End::Over("all is said"));
        }
        line.watch(&self.epoll, key);
    }

    /// Somebody has shown the key, and has said something.
    fn usher_in(&mut self, key: usize, first: Vec<u8>) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let from = line.peer;
        let (inner, theirs) = match fds::control_pair() {
            Ok(pair) => pair,
            Err(why) => return self.end(key, End::TurnedAway(format!("socketpair: {why}"))),
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Mark::Inner(key).pack());
        if let Err(why) = self.epoll.add(&inner, event) {
            return self.end(key, End::TurnedAway(format!("epoll_ctl: {why}")));
        }
        (line.let_in, line.inner, line.until_ns) = (true, Some(inner), None);
        line.interest[1] = EpollFlags::EPOLLIN;
        info!(%from, "another host's engine has come in");
        (self.usher)(Arrived { socket: theirs, from, first });
    }

    /// A line takes nothing more, and ends when all that it has is sent.
    fn part(&mut self, key: usize) {
        let Some(line) = self.lines.get_mut(key) else { return };
        line.begin_parting();
        if line.channel.unsent().is_empty() {
            self.end(key, End::Over("the engine is ending"));
        }
    }

    fn end(&mut self, key: usize, why: End) {
        let Some(line) = self.lines.try_remove(key) else { return };
        match why {
            End::TurnedAway(why) => {
                self.doorman.turned_away(line.peer, &why, clock::now_ns());
                // The reason, if it is to be told; there is always room for it.
                let _ = (&line.tcp).write(line.channel.unsent());
            }
            End::Over(why) => debug!(peer = %line.peer, why, "a connection to another host ends"),
        }
        // Closed, both leave the epoll set by themselves.
    }
}

impl Line {
    /// Reads and writes what can be, some of each. Returns what was said first by who has just
    /// shown the key.
    fn step(&mut self) -> Result<Option<Vec<u8>>, End> {
        let first = if self.parting { None } else { self.read()? };
        self.hand_in()?;
        self.take_out()?;
        self.send()?;
        Ok(first)
    }

    /// Bytes of the other host, unless the control thread still has to take some.
    fn read(&mut self) -> Result<Option<Vec<u8>>, End> {
        let mut buffer = [0; READ_BYTES];
        let mut messages = Vec::new();
        for _ in 0..BUDGET {
            if !self.untaken.is_empty() {
                break;
            }
            let count = match self.tcp.read(&mut buffer) {
                Ok(0) if !self.let_in => {
                    return Err(End::TurnedAway("it left without showing the key".to_string()));
                }
                Ok(0) => return Err(End::Over("the other host has closed it")),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) if self.let_in => return Err(End::Over("the network failed")),
                Err(error) => return Err(End::TurnedAway(error.to_string())),
            };
            if let Err(why) = self.channel.hear(&buffer[..count], &mut messages) {
                if self.let_in {
                    warn!(peer = %self.peer, %why, "another host broke the rules");
                    return Err(End::Over("it broke the rules"));
                }
                return Err(End::TurnedAway(why.to_string()));
            }
            self.untaken.extend(messages.drain(..));
        }
        let proved = !self.let_in && self.channel.proved();
        Ok(if proved { self.untaken.pop_front() } else { None })
    }

    /// What came goes to the control thread.
    fn hand_in(&mut self) -> Result<(), End> {
        let Some(inner) = &self.inner else { return Ok(()) };
        while let Some(message) = self.untaken.front() {
            match fds::transmit(inner.as_fd(), message, &[], false) {
                Ok(()) => self.untaken.pop_front(),
                Err(Errno::EAGAIN) => break,
                // It has closed its end: what it said before is read below.
                Err(_) => {
                    self.untaken.clear();
                    break;
                }
            };
        }
        Ok(())
    }

    /// What the control thread says is sealed.
    fn take_out(&mut self) -> Result<(), End> {
        for _ in 0..BUDGET {
            let Some(inner) = &self.inner else { break };
            if self.channel.unsent().len() > UNSENT_MAX {
                break;
            }
            match fds::receive(inner.as_fd(), false) {
                Ok(Some(received)) => {
                    let said = self.channel.say(&received.bytes);
                    said.map_err(|_| End::Over("a message could not be sealed"))?;
                }
                Err(Errno::EAGAIN) => break,
                Ok(None) | Err(_) => {
                    self.begin_parting();
                    break;
                }
            }
        }
        Ok(())
    }

    fn begin_parting(&mut self) {
        if !std::mem::replace(&mut self.parting, true) {
            self.until_ns = Some(clock::now_ns() + PARTING_NS);
        }
        self.inner = None;
        self.untaken.clear();
    }

    fn send(&mut self) -> Result<(), End> {
        while !self.channel.unsent().is_empty() {
            match self.tcp.write(self.channel.unsent()) {
                Ok(count) => self.channel.sent(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) if self.let_in => return Err(End::Over("the network failed")),
                Err(error) => return Err(End::TurnedAway(error.to_string())),
            }
        }
        Ok(())
    }

    /// Waits for what the line can go on with.
    fn watch(&mut self, epoll: &Epoll, key: usize) {
        let unsent = !self.channel.unsent().is_empty();
        let mut tcp = EpollFlags::empty();
        tcp.set(EpollFlags::EPOLLIN, self.untaken.is_empty() && !self.parting);
        tcp.set(EpollFlags::EPOLLOUT, unsent);
        let mut local = EpollFlags::empty();
        let room = self.channel.unsent().len() <= UNSENT_MAX;
        local.set(EpollFlags::EPOLLIN, room);
        local.set(EpollFlags::EPOLLOUT, !self.untaken.is_empty());
        if self.interest[0] != tcp {
            self.interest[0] = tcp;
            let _ = epoll.modify(&self.tcp, &mut EpollEvent::new(tcp, Mark::Tcp(key).pack()));
        }
        if let Some(inner) = &self.inner
            && self.interest[1] != local
        {
            self.interest[1] = local;
            let _ = epoll.modify(inner, &mut EpollEvent::new(local, Mark::Inner(key).pack()));
        }
    }
}
