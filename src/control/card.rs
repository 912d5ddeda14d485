//! What the control thread asks of the thread that owns the cards, and what it answers.
//!
//! Calls of a [`ProviderControl`] may block for milliseconds, so they are carried out elsewhere: by
//! one thread, in the order in which they were asked for, each answered once under its token. What
//! is in here is values: the same work is carried out over a simulator in tests.
//!
//! A queue pair is a card's: its number means something together with that card's. Memory is
//! registered with all cards, under one id.
//!
//! [`ProviderControl`]: crate::fabric::qp::provider::ProviderControl

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender};

use nix::sys::eventfd::EventFd;

use super::peers::paths::Address;
use crate::fabric::qp::CardKeys;
use crate::fabric::qp::provider::{
    Access, Caps, Created, Endpoint, Move, PathSettings, ProviderError,
};
use crate::fabric::verbs::{AsyncEvent, VerbsPair};
use crate::shm::Mapping;

/// Something to be done by the card's thread.
#[derive(Debug)]
pub(crate) enum CardWork<P = VerbsPair> {
    /// Something about one card's queue pair.
    Pair {
        /// The card.
        card: u8,
        /// What is to be done.
        work: PairWork<P>,
    },
    /// Registers memory with every card. Answered by [`CardDone::Registered`].
    Register {
        /// All of it is registered.
        memory: Arc<Mapping>,
        /// What peers may do with it.
        access: Access,
    },
    /// Ends a registration with every card. Answered by [`CardDone::Deregistered`].
    Deregister {
        /// The registration's id.
        id: u32,
    },
    /// Reads anew which addresses a card's port has. Answered by [`CardDone::Addresses`].
    Addresses {
        /// The card.
        card: u8,
    },
}

/// Something to be done about a queue pair, on its card.
#[derive(Debug)]
pub(crate) enum PairWork<P = VerbsPair> {
    /// Makes a queue pair and brings it to INIT. What cannot be brought there is destroyed.
    /// Answered by [`CardDone::Created`].
    Create {
        /// Sizes to ask for.
        caps: Caps,
        /// How its path is to be used.
        settings: PathSettings,
    },
    /// Asks for this end of a queue pair, with a fresh psn. Answered by [`CardDone::Endpoint`].
    Endpoint {
        /// The queue pair's number.
        number: u32,
        /// How its path is to be used.
        settings: PathSettings,
        /// Notifications that it has receives for.
        credits: u32,
    },
    /// Moves a queue pair from state to state; the first move that fails is the last. Answered by
    /// [`CardDone::Moved`].
    Move {
        /// The queue pair's number.
        number: u32,
        /// One after the other.
        moves: Vec<Move>,
    },
    /// Destroys a queue pair. Answered by [`CardDone::Destroyed`].
    Destroy {
        /// Its number.
        number: u32,
        /// The data path's half, which has come back from there.
        pair: P,
    },
}

/// Memory that every card knows, but those that have failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    /// Names it to [`CardWork::Deregister`].
    pub(crate) id: u32,
    /// What each card knows it by.
    pub(crate) keys: CardKeys,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum CardDone<P = VerbsPair> {
    /// A queue pair is in INIT.
    Created(Created<P>),
    /// This end of a queue pair.
    Endpoint(Endpoint),
    /// All moves were made.
    Moved,
    /// The queue pair is gone.
    Destroyed,
    /// The memory is registered.
    Registered(Registered),
    /// No key of the registration admits anything any more.
    Deregistered,
    /// Those that a peer may be reached from, best first.
    Addresses(Vec<Address>),
    /// It cannot be done.
    Failed(ProviderError),
    /// Nothing that was asked for: a card says something by itself. The token is 0.
    Event(u8, AsyncEvent),
}

/// Work on its way to the card's thread. No token that is answered is 0.
#[derive(Debug)]
pub(crate) struct CardOrder<P = VerbsPair> {
    /// Comes back in the answer.
    pub(crate) token: u64,
    /// What is to be done.
    pub(crate) work: CardWork<P>,
}

/// An answer on its way back; whoever sends it kicks the control thread.
#[derive(Debug)]
pub(crate) struct CardAnswer<P = VerbsPair> {
    /// The order's.
    pub(crate) token: u64,
    /// What came of it.
    pub(crate) done: CardDone<P>,
}

/// The way to the card's thread, which waits for its bell.
#[derive(Debug)]
pub(crate) struct CardOrders<P = VerbsPair> {
    /// Taken only by `drop`.
    sender: Option<Sender<CardOrder<P>>>,
    bell: Arc<EventFd>,
}

impl<P> CardOrders<P> {
    pub(crate) fn new(sender: Sender<CardOrder<P>>, bell: Arc<EventFd>) -> Self {
        Self { sender: Some(sender), bell }
    }

    /// Asks for something. It is answered under its token.
    ///
    /// # Errors
    /// If the card's thread is gone.
    pub(crate) fn send(&self, order: CardOrder<P>) -> Result<(), SendError<CardOrder<P>>> {
        let Some(sender) = &self.sender else { return Err(SendError(order)) };
        sender.send(order)?;
        let _ = self.bell.write(1);
        Ok(())
    }
}

impl<P> Drop for CardOrders<P> {
    fn drop(&mut self) {
        // Closed before the bell rings, so that whoever wakes finds the end.
        drop(self.sender.take());
        let _ = self.bell.write(1);
    }
}

/// The cards, as the control thread has them: there if verbs is in use.
#[derive(Debug)]
pub(crate) struct Card<P = VerbsPair> {
    /// To the card's thread, which ends when this is dropped.
    pub(crate) orders: CardOrders<P>,
    /// From the card's thread.
    pub(crate) answers: Receiver<CardAnswer<P>>,
    /// By card, how each class uses its path, high, medium, low: one queue pair a connection and
    /// card if they are all equal, else one a class.
    pub(crate) paths: Vec<[PathSettings; 3]>,
    /// By card, the addresses that a peer may be reached from, best first; none on InfiniBand
    /// without such.
    pub(crate) addresses: Vec<Vec<Address>>,
    /// The settings say which address of each port is used, and no other.
    pub(crate) pinned: bool,
    /// Sizes to ask for, for each queue pair.
    pub(crate) caps: Caps,
    /// Receives for notifications of each rail, without those that are kept back.
    pub(crate) receives: u32,
    /// Rails that the fabric has room for, rail 0 among them.
    pub(crate) rails_max: u16,
    /// How long a lost peer that may still be there is waited for, until nothing that was sent to
    /// it can be delivered any more, ns.
    pub(crate) lease_ns: u64,
    /// By card, the device and its port, for people.
    pub(crate) names: Vec<String>,
}

impl<P> Card<P> {
    /// How many cards there are.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.paths.len()).unwrap_or(u8::MAX)
    }

    /// All of them, for people.
    pub(crate) fn name(&self) -> String {
        self.names.join(" and ")
    }

    /// A card's device and port, for people.
    pub(crate) fn name_of(&self, card: u8) -> &str {
        self.names.get(usize::from(card)).map_or("", String::as_str)
    }

    /// The addresses of a card's port.
    pub(crate) fn addresses_of(&self, card: u8) -> &[Address] {
        self.addresses.get(usize::from(card)).map_or(&[], Vec::as_slice)
    }

    /// What other engines are told of a card's addresses.
    pub(crate) fn told(&self, card: u8) -> [[u8; 16]; 4] {
        let mut told = [[0; 16]; 4];
        for (place, address) in told.iter_mut().zip(self.addresses_of(card)) {
            *place = address.gid;
        }
        told
    }

    /// True if each class has a queue pair of its own: the classes use their paths differently.
    pub(crate) fn one_a_class(&self) -> bool {
        self.paths.iter().any(|[high, medium, low]| high != medium || medium != low)
    }
}
