//! Between the control thread and an engine thread: two bounded queues and a way to wake each.
//!
//! The engine thread never waits for the control thread. It sleeps in `epoll_wait` on all its
//! rings' bells and on `engine_bell`; `asleep` tells others whether to write to that. The handshake
//! is the rings' own: whoever sleeps says so, fences, and looks once more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::engine::{Command, Event, Reply};
use crate::fabric::Held;
use crate::fabric::qp::provider::Caps;
use crate::fabric::qp::{AdoptError, Told, Wish};
use crate::fabric::verbs::VerbsPair;
use crate::ids::RingId;
use crate::ring::Mapped;

/// What the engine thread is to do between two turns.
#[derive(Debug)]
pub(crate) enum Order {
    /// A command, and the descriptors that the engine thread keeps for a ring.
    Command { command: Command<Held, Mapped>, bells: Option<RingBells> },
    /// Make a queue pair of a card, which is in INIT, a rail. A wish follows, or
    /// [`Answer::NotAdopted`].
    Adopt { rail: u16, pair: VerbsPair, caps: Caps, card: u8 },
    /// News of a rail.
    Tell(Told),
    /// Hand back the queue pair of a rail that is dead: [`Answer::Released`].
    Release { rail: u16 },
}

/// A ring's bells, the engine's ends.
#[derive(Debug)]
pub(crate) struct RingBells {
    /// Readable when the client has rung.
    pub(crate) from_client: OwnedFd,
    /// Rings the client.
    pub(crate) to_client: OwnedFd,
}

impl From<RingBells> for Vec<OwnedFd> {
    fn from(bells: RingBells) -> Self {
        vec![bells.from_client, bells.to_client]
    }
}

/// What comes back.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the engine thread allocates nothing for one")]
pub(crate) enum Answer {
    Reply(Reply<Held, Mapped>),
    Event(Event),
    /// A ring's bells, to be closed off the engine thread.
    Bells(RingId, RingBells),
    /// A client has sent descriptors over this ring's bell.
    Strays(RingId),
    /// A rail wants something of the control side.
    Wish(Wish),
    /// A queue pair cannot be a rail; here it is, to be destroyed.
    NotAdopted {
        rail: u16,
        pair: VerbsPair,
        error: AdoptError,
    },
    /// A rail's queue pair, to be destroyed; none if the rail is not dead, or there is no such.
    Released {
        rail: u16,
        pair: Option<VerbsPair>,
    },
}

/// What the threads of one engine share.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) orders: ArrayQueue<Order>,
    pub(crate) answers: ArrayQueue<Answer>,
    /// Rings whose bell the watcher saw while the engine was busy, each at most once.
    rung: ArrayQueue<u32>,
    /// Which rings are in `rung`.
    rung_already: Vec<AtomicBool>,
    pub(crate) asleep: AtomicBool,
    pub(crate) stop: AtomicBool,
    /// The engine thread is gone.
    pub(crate) dead: AtomicBool,
    pub(crate) sleeps: AtomicU64,
    /// All rings' bells, `engine_bell`, and the completion channels of the cards.
    pub(crate) bells: Epoll,
    /// The watcher saw the completion channel's event, which was meant for the engine thread.
    pub(crate) completed: AtomicBool,
    pub(crate) engine_bell: EventFd,
    pub(crate) control_bell: EventFd,
    pub(crate) watcher_bell: EventFd,
}

/// `engine_bell`'s mark in the epoll set; rings are marked by their number.
pub(crate) const ENGINE_BELL: u64 = u64::MAX;
/// The mark of a card's completion channel.
pub(crate) const COMPLETIONS: u64 = u64::MAX - 1;

impl Link {
    pub(crate) fn new(rings_max: u32) -> Result<Self, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let bells = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let engine_bell = EventFd::from_flags(flags)?;
        // Edge-triggered, as the rings' bells: an event goes to one of the waiting threads.
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        bells.add(&engine_bell, EpollEvent::new(interest, ENGINE_BELL))?;
        Ok(Self {
            orders: ArrayQueue::new(4096),
            answers: ArrayQueue::new(4096),
            rung: ArrayQueue::new(rings_max as usize),
            rung_already: (0..rings_max).map(|_| AtomicBool::new(false)).collect(),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            sleeps: AtomicU64::new(0),
            bells,
            completed: AtomicBool::new(false),
            engine_bell,
            control_bell: EventFd::from_flags(flags)?,
            watcher_bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?,
        })
    }

    /// Watches a ring's bell from now on.
    pub(crate) fn watch(&self, ring: u32, bells: &RingBells) -> Result<(), Errno> {
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.bells.add(bells.from_client.as_fd(), EpollEvent::new(interest, u64::from(ring)))
    }

    /// Watches a card's completion channel from now on.
    pub(crate) fn watch_completions(&self, channel: BorrowedFd<'_>) -> Result<(), Errno> {
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.bells.add(channel, EpollEvent::new(interest, COMPLETIONS))
    }

    /// Notes that a ring's bell has rung. A client may ring faster than the engine looks: the
    /// ring is noted once until then, so that no flood of one fills the queue for all.
    pub(crate) fn note_bell(&self, ring: u32) {
        let Some(already) = self.rung_already.get(ring as usize) else { return };
        if !already.swap(true, Ordering::AcqRel) {
            let _ = self.rung.push(ring);
        }
    }

    /// The next ring whose bell has rung; it may be noted again from now on.
    pub(crate) fn noted_bell(&self) -> Option<u32> {
        let ring = self.rung.pop()?;
        self.rung_already[ring as usize].store(false, Ordering::Release);
        Some(ring)
    }

    /// True if there is neither a command nor a bell for the engine thread.
    pub(crate) fn nothing_to_hear(&self) -> bool {
        self.orders.is_empty() && self.rung.is_empty()
    }

    /// Rings noted and not yet looked at.
    pub(crate) fn bells_noted(&self) -> usize {
        self.rung.len()
    }

    /// Wakes the engine thread if it sleeps; the caller has left something for it to find.
    pub(crate) fn kick_engine(&self) {
        // Pairs with the fence in the engine thread between `asleep` and its last look.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            let _ = self.engine_bell.write(1);
        }
    }

    /// Wakes the control thread.
    pub(crate) fn kick_control(&self) {
        let _ = self.control_bell.write(1);
    }
}
