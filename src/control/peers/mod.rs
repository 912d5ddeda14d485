//! Other engines of this host: connections to them, the rails that are joined over these, what is
//! lent to them, and what sessions here have of theirs.
//!
//! A **connection** is a socket between two control threads: one per URL that sessions here have
//! asked for, however many ask, and one for every engine that has reached this one. Each has rails
//! of its own, on each card that both engines have: one, or one a class where classes use their
//! path in different ways. The rails of a class, one a card, are a **set**: the fabric spreads ops
//! over those that work. Peers' numbers are a session's own names for connections.
//!
//! ```text
//!  message   what is said                 connections  sockets: reaching, greeting, losing
//!  joint     one rail, as values          rails        joints, the card and the engine thread
//!  paths     which address a rail uses, as values
//!  loans     what is lent, as values      exports      WANT and what becomes of it, at the owner
//!  patience  how long one waits, as values
//!  numbers   sessions' names for them     imports      IMPORT from a peer, until it is given back
//!                                         again        those to other hosts, when they are lost
//!  report    what operators are told      events       what the log says of rails
//!  pairing   which cards are joined       addresses    ports' addresses that change
//!  apart     rails of one flow, as values alone        their joints, loans and imports
//! ```
//!
//! **Cards are paired by reach**: those whose addresses are nearest to each other, as many as both
//! have. In what is said of a connection a pair has a number, its place; here its card has its own.
//! A connection is up while one rail of every set is. A rail that fails for good leaves it, unless
//! it is the last of a set: then the connection is lost.
//!
//! **A connection that is lost** is forgotten in this order: its queue pairs here are moved to
//! ERROR; the peer's are silent, too (it says BYE, its process is gone, or the lease is over, after
//! which nothing that was sent can still arrive); its rails are dead; its loans are taken back; no
//! op here goes by its imports; then its rails are released, and their numbers are free.
//!
//! **Rail 1** leads from this host's card 0 back to it. It carries the atomics of sessions here on
//! what peers may use atomics on, since a card's atomics and a CPU's do not exclude each other.

#[cfg(test)]
mod addressed;
mod addresses;
mod again;
mod alone;
pub(crate) mod apart;
mod connections;
mod events;
mod exports;
#[cfg(test)]
mod first_cards;
#[cfg(feature = "net")]
#[cfg(test)]
mod hosts;
mod imports;
pub(crate) mod joint;
mod loans;
#[cfg(test)]
mod logged;
pub(crate) mod message;
mod numbers;
mod pairing;
pub(crate) mod paths;
mod patience;
mod rails;
mod report;
#[cfg(test)]
mod reported;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod set_apart;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod two_cards;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use slab::Slab;

use self::addresses::Looks;
use self::again::{Again, Behind};
use self::apart::Aparts;
use self::imports::{Held, Wanted};
use self::joint::{Joint, Step};
use self::loans::Loans;
use self::numbers::Numbers;
use self::pairing::Ports;
use self::patience::{Parting, Pulse, PutOff, Withdrawals};
use self::report::{Failures, Story};
use super::card::Card;
use super::wire::Url;
use crate::abi::Export;
use crate::fabric::verbs::VerbsPair;
use crate::ids::RegionId;

/// The rail that leads back to this host.
const HOME: u16 = 1;

/// What the card's thread was asked for on behalf of peers.
#[derive(Debug)]
pub(super) enum CardFor {
    /// Work on a rail's queue pair.
    Rail { rail: u16, step: Step },
    /// A region is registered to be lent.
    Loan { connection: usize, slot: u32 },
    /// That registration ends.
    LoanOver { connection: usize, slot: u32 },
    /// EXPORT: a region is registered for atomics by way of the card.
    Home { session: usize, request: Box<Export> },
    /// A registration ends; nobody waits for it.
    Unused,
    /// A card's port is looked at.
    Addresses { card: u8 },
}

/// What the engine was asked for on behalf of peers.
#[derive(Debug)]
pub(super) enum OrderFor {
    /// A region is lent to a rail.
    Lend { connection: usize, loan: u32 },
    /// No op goes by an import any more.
    Withdraw { connection: usize, loan: u32 },
    /// EXPORT: atomics on the region go by way of the card.
    Home { session: usize, request: Box<Export> },
    /// Nothing waits for a flow's own rail any more.
    Clear { connection: usize, at: u8 },
    /// Nobody waits for it.
    Nothing,
}

/// All that the control thread knows of other engines.
#[derive(Debug)]
pub(super) struct Peers {
    connections: Slab<Connection>,
    /// By number.
    rails: Vec<Option<RailPlace>>,
    /// Sessions' names for connections.
    numbers: Numbers,
    last_tag: u64,
    /// Jobs that are on their way to a URL.
    reaching: usize,
    /// Lost connections to other hosts that are to be made anew.
    again: Vec<Again>,
    /// What became of connections of late.
    failures: Failures,
    /// What is known of the cards' addresses.
    looks: Looks,
}

/// Whose a rail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// It leads back to this host.
    Home,
    /// Of a connection, and which of its rails.
    Connection(usize, u8),
    /// Of one flow of a connection, and at which place.
    Apart(usize, u8),
}

/// A rail, as the control thread sees it.
#[derive(Debug)]
struct RailPlace {
    whose: Whose,
    /// The card that its queue pair is on.
    card: u8,
    joint: Joint,
    /// Kept here while the fabric does not have it.
    pair: Option<VerbsPair>,
    /// How often it was connected.
    connected: u32,
    /// It could not be connected, and others carry what it would.
    put_off: PutOff,
    /// Until when the peer's end must be quiet, as this one is.
    quiet_by_ns: Option<u64>,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A job is on its way to the URL.
    Reaching,
    /// HELLO was said; WELCOME is to come.
    Greeting,
    /// Its rails are being joined.
    Joining,
    /// All its rails were ready.
    Up,
    /// It is being forgotten.
    Lost,
}

/// A connection to another engine.
#[derive(Debug)]
struct Connection {
    phase: Phase,
    /// What is told of it.
    story: Story,
    /// Where it leads, if it is ours and not lost.
    url: Option<Url>,
    /// Where it leads, or led.
    led_to: Option<Url>,
    /// The other engine's, once it has said it.
    boot_id: [u64; 2],
    /// What it calls the connection, if it has made it from another host.
    link: u64,
    /// `FEATURE_*` that it has said.
    features: u32,
    /// It waits for the end of the one whose place it takes.
    behind: Option<Behind>,
    /// The address of ours by which the other host was reached.
    by: Option<IpAddr>,
    /// Where it comes from, if that is another host.
    from: Option<SocketAddr>,
    socket: Option<Arc<OwnedFd>>,
    pidfd: Option<OwnedFd>,
    pid: i32,
    /// Until when it must be up, for the first time or again.
    until_ns: Option<u64>,
    /// Our cards of its pairs, in the order of these.
    cards: Vec<u8>,
    /// How the peer's are addressed.
    told: Vec<Ports>,
    /// The pair with the peer's card 0, if there is one, and that with ours. Another engine's
    /// atomics on a region go by its owner's card 0 and by no other, as the owner's own do.
    with_theirs: Option<usize>,
    with_ours: Option<usize>,
    /// All of the first pair first; a pair's in the order of classes, if there are three.
    rails: Vec<u16>,
    /// Rails that it has on each card.
    rails_a_card: u8,
    /// Those that are one flow's alone.
    aparts: Aparts,
    /// Messages that found the socket full.
    unsent: VecDeque<Vec<u8>>,
    /// CONNECTs that wait for it: session and tag.
    waiting: Vec<(usize, u64)>,
    loans: Loans,
    /// Rails that have not answered, and whether all have lent so far: by loan.
    lends: BTreeMap<u32, (usize, bool)>,
    /// How long the peer hears nothing of us until it is lost to it.
    silence_ms: u32,
    /// What the peer is to give back, since when; and whether it is there, once it was up.
    withdrawn: Withdrawals,
    pulse: Option<Pulse>,
    /// How it is parted from, once it is lost.
    parting: Parting,
    /// Its rails were dead, and all that it had was taken back.
    loans_lost: bool,
    /// Wrong secrets, by the uid that showed them.
    wrong_secrets: BTreeMap<u32, u32>,
    /// IMPORTs that wait for an answer, by tag.
    wants: BTreeMap<u64, Wanted>,
    /// What sessions here have of the peer's, by loan.
    imports: BTreeMap<u32, Held>,
    /// Withdrawals that the engine has not answered.
    withdrawing: usize,
}

/// What an import of a peer's region is to the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abroad {
    connection: usize,
    loan: u32,
}

impl Peers {
    /// Nobody is known yet. Without a card nobody ever is.
    pub(super) fn new(card: Option<&Card>) -> Self {
        let rails = card.map_or(0, |card| card.rails_max);
        Self {
            connections: Slab::new(),
            rails: (0..rails).map(|_| None).collect(),
            numbers: Numbers::default(),
            last_tag: 0,
            reaching: 0,
            again: Vec::new(),
            failures: Failures::default(),
            looks: Looks::default(),
        }
    }
}

impl Connection {
    fn new(phase: Phase, url: Option<Url>, until_ns: u64) -> Self {
        Self {
            phase,
            led_to: url.clone(),
            story: Story::new(url.as_ref()),
            url,
            boot_id: [0; 2],
            link: 0,
            features: 0,
            behind: None,
            by: None,
            from: None,
            socket: None,
            pidfd: None,
            pid: 0,
            until_ns: Some(until_ns),
            cards: Vec::new(),
            told: Vec::new(),
            with_theirs: None,
            with_ours: None,
            rails: Vec::new(),
            rails_a_card: 1,
            aparts: Aparts::default(),
            unsent: VecDeque::new(),
            waiting: Vec::new(),
            loans: Loans::default(),
            lends: BTreeMap::new(),
            silence_ms: 0,
            withdrawn: Withdrawals::default(),
            pulse: None,
            parting: Parting::default(),
            loans_lost: false,
            wrong_secrets: BTreeMap::new(),
            wants: BTreeMap::new(),
            imports: BTreeMap::new(),
            withdrawing: 0,
        }
    }

    /// How long its end may go on as if nothing had happened when this one is lost, ns. On this
    /// host it is told at once, by its socket.
    fn unaware_ns(&self) -> u64 {
        let abroad = self.from.is_some() || matches!(self.led_to, Some(Url::Host { .. }));
        if abroad { u64::from(self.silence_ms) * 1_000_000 } else { 0 }
    }

    /// All its rails, flows' own among them.
    fn all_rails(&self) -> impl Iterator<Item = u16> + '_ {
        self.rails.iter().copied().chain(self.aparts.rails())
    }

    /// The rails that a session's ops of each class go by.
    fn sets_of(&self, session: usize) -> Option<[u64; 3]> {
        self.aparts.rail_of(session).map(|rail| [1 << rail; 3]).or_else(|| self.sets())
    }

    /// The rails that ops of each class go by, a bit each; `None` once some are gone.
    fn sets(&self) -> Option<[u64; 3]> {
        let step = usize::from(self.rails_a_card);
        let set = |class: usize| {
            let of_it = self.rails.iter().skip(class % step).step_by(step);
            of_it.fold(0_u64, |set, rail| set | 1 << rail)
        };
        let whole = !self.rails.is_empty() && self.rails.len().is_multiple_of(step);
        whole.then(|| [set(0), set(1), set(2)])
    }
}

/// What peers have to do with a region here.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// It is an import of a peer's.
    pub(super) abroad: Option<Abroad>,
    /// Its keys for atomics by way of the card, once it has any.
    pub(super) home: Option<super::card::Registered>,
    /// The engine knows of these.
    pub(super) at_home: bool,
    /// How often the engine has said that it is revoked.
    pub(super) revocations: u32,
}

/// A region, by an id that a message or event brought.
type Region = RegionId;
