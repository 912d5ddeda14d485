//! The fabric of queue pairs: the one piece between the engine and every provider of verbs.
//!
//! [`Rails`] makes a [`Fabric`] of a [`Provider`]: one request in, one completion out, whatever
//! the device does beneath. Depth, selective signalling, post entries, partial posts, flushes,
//! credit for notifications, degrading and rebuilding are here, and only here: what runs over the
//! simulator in tests is what runs over RDMA.
//!
//! The way of a request: [`Fabric::post`] takes it into its rail's table (`rail`), `post` makes
//! work requests of it and rings one doorbell for all, `complete` brings work completions back to
//! their entries, and the request leaves when all before it have left. When a queue pair fails,
//! `recover` decides about what was under way.
//!
//! Two parties use it. The engine posts, polls, and takes arrivals. The control thread is asked
//! by values ([`Wish`]) and answers by values ([`Told`]): it moves queue pairs, talks to the
//! peer's control, and never touches what is in here.
//!
//! **Invariants**: an entry exists before its work request is posted; a request ends once;
//! nothing is ever waited for without a signalled work request behind it; a request that failed
//! with its queue pair ends or is repeated only when neither end can still deliver it.
//! **Deliberately absent**: time sources, sockets, threads, and any allocation after `new`.
//! **Tests**: `fabric::conformance`, and `tests` here with a model and planted faults.

#[cfg(any(test, feature = "sim"))]
mod audit;
mod complete;
#[cfg(any(test, feature = "sim"))]
pub mod join;
mod memory;
mod merge;
mod message;
mod post;
pub mod provider;
mod rail;
mod recover;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod status;
#[cfg(test)]
mod tests;
mod track;
mod trial;

use std::collections::VecDeque;

use thiserror::Error;

#[cfg(any(test, feature = "sim"))]
pub use audit::CreditAudit;
pub use memory::{CARDS_MAX, CardKeys, Memory};
pub use message::RECEIVES_KEPT;
pub use rail::{RailState, SENDS_KEPT};
pub use recover::{Ask, News, Told, Wish};
pub use status::{EHOSTDOWN, EIO, ETIMEDOUT};
pub use trial::Recovery;

use self::provider::{Broken, Caps, Provider, Range, Wc, Wr};
use self::rail::Rail;
use self::trial::Card;
use super::{Arrival, Done, Fabric, Limits, Request, Room};
use crate::abi::Page;
use crate::plant::{Plant, planted};

/// Sizes and times of a fabric of queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// `FABRIC_*`, as in a CQE's detail.
    pub fabric: u8,
    /// Rails.
    pub rails_max: u16,
    /// Work requests of one rail that may be posted, 1 to 16,384.
    pub depth: u32,
    /// Notifications that a peer may send before any is handed out, at least 1.
    pub receives: u32,
    /// A WRITE of at most so many bytes goes inline.
    pub inline_bytes: u32,
    /// At least every so many work requests one is signalled, at least 1.
    pub signal_every: u32,
    /// Bytes of one work request: the least of the ports' limits.
    pub message_bytes_max: u32,
    /// Neighbours share a work request of at most so many bytes; 0: they never do. One slice, or
    /// less: what was cut stays cut.
    pub merge_bytes_max: u32,
    /// Region indices are below this.
    pub regions_max: u32,
    /// How often a request is repeated on a rebuilt queue pair before it ends.
    /// With fewer than 3, innocents may end with a guilty one whose refusal was lost.
    pub attempts_max: u8,
    /// A rail that can post nothing, with nothing in flight, for so long is rebuilt, ns.
    pub stuck_ns: u64,
    /// When the other end failed, how long our work may take to end by itself, ns: more than an
    /// answer needs on the wire, and far less than a time-out.
    pub grace_ns: u64,
    /// Both ends being quiet, work that does not end within this is taken for lost, ns.
    pub drain_ns: u64,
    /// A rail with work posted, none of which has completed for so long, has lost a completion: it
    /// is rebuilt, ns. More than the device's own time-out, which has the first word.
    pub lost_ns: u64,
    /// How failures that repeat themselves are met.
    pub recovery: Recovery,
}

impl Config {
    /// What to ask of the device for each queue pair.
    #[must_use]
    pub fn caps(&self) -> Caps {
        Caps {
            sends: self.depth + SENDS_KEPT,
            receives: self.receives + RECEIVES_KEPT,
            inline_bytes: self.inline_bytes.max(provider::MESSAGE_BYTES),
            ranges: if self.merge_bytes_max > 0 { provider::RANGES_MAX } else { 1 },
        }
    }

    /// Entries that the completion queue needs, if every queue pair gets what is asked for.
    #[must_use]
    pub fn completions(&self) -> u32 {
        (self.caps().sends + self.caps().receives) * u32::from(self.rails_max)
    }
}

/// A queue pair cannot become a rail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The number is in use, or beyond `rails_max`.
    #[error("rail {rail} is in use or not below {rails_max}: release it first, or raise rails_max")]
    Rail {
        /// The rail.
        rail: u16,
        /// The limit.
        rails_max: u16,
    },
    /// There can be no such card.
    #[error("card {card} is not below {CARDS_MAX}: give the engine fewer cards")]
    Card {
        /// The card.
        card: u8,
    },
    /// The device gave too little.
    #[error(
        "a queue pair with {sends} sends and {receives} receives is too small: at least {} and {} \
         are needed; close other queue pairs, or use another device",
        SENDS_KEPT + 1,
        RECEIVES_KEPT + 1
    )]
    Caps {
        /// Sends given.
        sends: u32,
        /// Receives given.
        receives: u32,
    },
    /// The completion queue could overflow.
    #[error(
        "the completion queue has {have} entries, {used} are spoken for and {want} more are \
         needed: make it larger, or the depth smaller"
    )]
    Completions {
        /// Entries it has.
        have: u32,
        /// Entries that other rails may fill.
        used: u32,
        /// Entries of this queue pair.
        want: u32,
    },
}

/// What happened, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lists posted, or tried to.
    pub doorbells: u64,
    /// Rails that polls looked after, each as often as it was.
    pub attended: u64,
    /// Entries made, each before its work request is posted. Every one ends in one of the ways
    /// below, or is open.
    pub entered: u64,
    /// Entries whose work request the device did not take.
    pub taken_back: u64,
    /// Entries of which the device did not say whether it took their work requests.
    pub doubtful: u64,
    /// Entries whose own completion said that they succeeded.
    pub completed: u64,
    /// Entries that succeeded by the completion of a later one.
    pub released: u64,
    /// Entries whose own completion said that they failed.
    pub failed: u64,
    /// Entries that were flushed, on their way to a reset.
    pub drained: u64,
    /// Entries that were still open when their queue pair was reset: nobody knows their end.
    pub orphaned: u64,
    /// How often rails went from one state to another: `passages[from][to]`, as numbers.
    pub passages: [[u64; RailState::COUNT]; RailState::COUNT],
    /// Work requests posted.
    pub works: u64,
    /// Of these, signalled.
    pub signaled: u64,
    /// Completions that belong to nothing: late or repeated. They moved nothing.
    pub stale: u64,
    /// Completions of work that the provider had said was not posted.
    pub ghosts: u64,
    /// Posts of which a known part was taken.
    pub partial: u64,
    /// Posts of which it is not known how much was taken.
    pub doubts: u64,
    /// Markers posted.
    pub markers: u64,
    /// Messages posted that only return credit.
    pub credit_messages: u64,
    /// Queue pairs that failed or were given up.
    pub degraded: u64,
    /// Of these, those whose work gave no sign of life for too long.
    pub silent: u64,
    /// Lives of rails in which nobody answered the first that was posted.
    pub barren: u64,
    /// Requests that went along in the work request of one before them.
    pub merged: u64,
    /// Requests that were repeated.
    pub repeats: u64,
    /// Requests handed back, for another rail to do.
    pub returned: u64,
    /// Rails that were probed before they took requests again, and how many of these failed.
    pub probes: u64,
    /// Probes that failed, or were cut short.
    pub probes_failed: u64,
    /// Errors that were a card's own.
    pub card_errors: u64,
    /// Times that a card paused.
    pub pauses: u64,
    /// Messages from peers that were none, or granted too much.
    pub violations: u64,
    /// Answers of the control side to something that was not asked.
    pub stale_news: u64,
}

/// Completions looked at in one round, and rounds in one poll.
const ROUND: usize = 64;
const ROUNDS: usize = 4;

/// The fabric of queue pairs.
#[derive(Debug)]
pub struct Rails<P> {
    provider: P,
    config: Config,
    rails: Box<[Rail]>,
    regions: Box<[Option<Memory>]>,
    /// Of a region: what a failed rail had for it is handed back.
    parted: Box<[bool]>,
    /// Requests in all rails' tables, and ends to report: together below a fixed number.
    live: u32,
    finished: VecDeque<Done>,
    finished_max: u32,
    arrivals: VecDeque<(Arrival, u32)>,
    wishes: VecDeque<Wish>,
    /// Rails to look at in the next poll.
    listed: VecDeque<u16>,
    /// Completion queue entries that rails may fill, by card.
    completions: [u32; CARDS_MAX],
    cards: [Card; CARDS_MAX],
    /// Where jitter comes from.
    jitter: u64,
    now_ns: u64,
    /// When rails are looked through for lost completions again.
    look_ns: u64,
    counts: Counts,
    /// Scratch.
    list: Vec<Wr>,
    ranges: Vec<Range>,
    wcs: Vec<Wc>,
}

impl<P: Provider> Rails<P> {
    /// Makes a fabric without rails. Everything it will ever need is allocated here.
    ///
    /// # Panics
    /// If a size is out of the range that [`Config`] gives.
    #[must_use]
    pub fn new(provider: P, config: Config) -> Self {
        assert!((1..=16_384).contains(&config.depth), "depth");
        assert!(config.receives > 0 && config.signal_every > 0, "receives, signal_every");
        assert!(config.recovery.card_errors_max > 0, "card_errors_max");
        assert!(config.message_bytes_max > 0 && config.rails_max > 0, "message_bytes_max, rails");
        let rail = || Rail::new(config.depth, config.receives);
        let rails: Box<[_]> = (0..config.rails_max).map(|_| rail()).collect();
        let requests: u32 = rails.iter().map(|rail| rail.taken.capacity()).sum();
        let count = usize::from(config.rails_max);
        let arrivals = count * (config.receives + RECEIVES_KEPT) as usize;
        Self {
            provider,
            config,
            rails,
            regions: (0..config.regions_max).map(|_| None).collect(),
            parted: vec![false; config.regions_max as usize].into(),
            live: 0,
            finished: VecDeque::with_capacity(requests as usize),
            finished_max: requests,
            arrivals: VecDeque::with_capacity(arrivals),
            wishes: VecDeque::with_capacity(2 * count),
            listed: VecDeque::with_capacity(count),
            completions: [0; CARDS_MAX],
            cards: [Card::default(); CARDS_MAX],
            jitter: config.recovery.seed,
            now_ns: 0,
            look_ns: 0,
            counts: Counts::default(),
            list: Vec::with_capacity((config.depth + SENDS_KEPT) as usize),
            ranges: Vec::with_capacity(config.depth as usize),
            wcs: Vec::with_capacity(ROUND),
        }
    }

    /// Makes a queue pair of a card, which is in INIT, a rail. It is connected by the wish that
    /// follows. The peer's queue pair is on its card of the same number.
    ///
    /// # Errors
    /// [`AdoptError`]; the queue pair comes back with it.
    pub fn adopt(
        &mut self,
        number: u16,
        pair: P::Pair,
        caps: Caps,
        card: u8,
    ) -> Result<(), (AdoptError, P::Pair)> {
        let rails_max = self.config.rails_max;
        if usize::from(card) >= CARDS_MAX {
            return Err((AdoptError::Card { card }, pair));
        }
        let free = |rail: &&mut Rail| rail.state == RailState::Absent;
        let Some(rail) = self.rails.get_mut(usize::from(number)).filter(free) else {
            return Err((AdoptError::Rail { rail: number, rails_max }, pair));
        };
        let Caps { sends, receives, inline_bytes, ranges } = caps;
        if sends <= SENDS_KEPT || receives <= RECEIVES_KEPT {
            return Err((AdoptError::Caps { sends, receives }, pair));
        }
        let used = &mut self.completions[usize::from(card)];
        let (have, before) = (self.provider.completions_max(card), *used);
        let want = sends.saturating_add(receives);
        if have.saturating_sub(before) < want {
            return Err((AdoptError::Completions { have, used: before, want }, pair));
        }
        *used += want;
        rail.card = card;
        rail.trust = trial::Trust::default();
        rail.completions = want;
        let given = if planted(Plant::DepthAsked) { u32::MAX } else { sends - SENDS_KEPT };
        rail.depth = self.config.depth.min(given);
        rail.inline_bytes = self.config.inline_bytes.min(inline_bytes);
        rail.ranges_max = ranges.clamp(1, provider::RANGES_MAX);
        rail.go(RailState::Connecting, &mut self.counts);
        let receives = self.config.receives.min(receives - RECEIVES_KEPT);
        self.provider.adopt(number, pair);
        self.begin(number, receives);
        Ok(())
    }

    /// Forgets a rail whose peer is gone, and hands its queue pair back. `None` in other states.
    pub fn release(&mut self, number: u16) -> Option<P::Pair> {
        let rail = self.rails.get_mut(usize::from(number))?;
        if rail.state != RailState::Dead {
            return None;
        }
        assert!(rail.taken.is_empty() && rail.works.is_empty(), "a dead rail with work");
        rail.go(RailState::Absent, &mut self.counts);
        rail.shared = false;
        self.completions[usize::from(rail.card)] -= rail.completions;
        self.provider.release(number)
    }

    /// What a rail is doing.
    #[must_use]
    pub fn state(&self, rail: u16) -> RailState {
        self.rails.get(usize::from(rail)).map_or(RailState::Absent, |rail| rail.state)
    }

    /// What happened, since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Work requests posted on a rail and not resolved, those that belong to no request too.
    #[must_use]
    pub fn posted(&self, rail: u16) -> u32 {
        self.rails.get(usize::from(rail)).map_or(0, |rail| rail.works.len())
    }

    /// True if no request is under way, none is to be reported, and every credit is back.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        let quiet = |rail: &Rail| {
            rail.used == 0
                && rail.works.is_empty()
                && rail.data_posted == 0
                && rail.credits.at_rest()
        };
        self.live == 0 && self.finished.is_empty() && self.rails.iter().all(quiet)
    }

    /// Asks for an event at the next completion. Poll once more after it.
    ///
    /// # Errors
    /// A positive errno.
    pub fn arm(&mut self) -> Result<(), i32> {
        self.provider.arm()
    }

    /// The provider.
    pub fn provider(&mut self) -> &mut P {
        &mut self.provider
    }

    /// Puts a rail on the list of those that the next poll looks at.
    fn attend(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        if !std::mem::replace(&mut rail.listed, true) {
            self.listed.push_back(number);
        }
    }

    fn report(&mut self, done: &mut Vec<Done>) {
        while done.len() < done.capacity()
            && let Some(end) = self.finished.pop_front()
        {
            done.push(end);
        }
    }
}

impl<P: Provider> Fabric for Rails<P> {
    type Memory = Memory;

    fn limits(&self) -> Limits {
        Limits {
            depth: self.config.depth * u32::from(self.config.rails_max),
            fabric: self.config.fabric,
            chain_max: self.config.depth,
            notifies: true,
        }
    }

    fn attach(&mut self, region: u32, memory: Memory) {
        let place = &mut self.regions[region as usize];
        assert!(place.is_none(), "attached a region twice");
        *place = Some(memory);
        self.parted[region as usize] = false;
    }

    fn detach(&mut self, region: u32) -> Option<Memory> {
        self.regions.get_mut(region as usize)?.take()
    }

    fn read_pages(&self, region: u32, offset: u64, pages: &mut [Page]) -> bool {
        let memory = self.regions.get(region as usize).and_then(Option::as_ref);
        let Some(mapping) = memory.and_then(Memory::mapping) else { return false };
        let bytes = zerocopy::IntoBytes::as_mut_bytes(pages);
        if !mapping.holds(offset, bytes.len() as u64) {
            return false;
        }
        mapping.read(offset, bytes);
        true
    }

    fn post(&mut self, batch: &[Request]) -> usize {
        let mut taken = 0;
        while taken < batch.len() {
            let rail = batch[taken].rail;
            let run = batch[taken..].iter().take_while(|request| request.rail == rail);
            let length = run.clone().count();
            let accepted = run.take_while(|request| self.accept(request)).count();
            let back = self.send_accepted(rail, accepted);
            taken += accepted - back;
            if accepted < length || back > 0 {
                break;
            }
        }
        taken
    }

    fn poll(&mut self, now_ns: u64, done: &mut Vec<Done>) {
        self.now_ns = now_ns;
        self.report(done);
        let mut wcs = std::mem::take(&mut self.wcs);
        for _ in 0..ROUNDS {
            wcs.clear();
            let broken = self.provider.poll(&mut wcs).err();
            for wc in &wcs {
                self.complete(wc);
            }
            if let Some(Broken { card, .. }) = broken {
                self.degrade_card(card);
                break;
            }
            if wcs.len() < wcs.capacity() {
                break;
            }
        }
        self.wcs = wcs;
        if now_ns >= self.look_ns {
            self.look_for_lost();
        }
        for _ in 0..self.listed.len() {
            let Some(number) = self.listed.pop_front() else { break };
            self.rails[usize::from(number)].listed = false;
            self.counts.attended += 1;
            self.look_after(number);
        }
        self.report(done);
    }

    fn rails(&self) -> u16 {
        self.config.rails_max
    }

    fn fabric_of(&self, _rail: u16) -> u8 {
        self.config.fabric
    }

    fn depth_of(&self, _rail: u16) -> u32 {
        self.config.depth
    }

    fn card_of(&self, rail: u16) -> u8 {
        self.rails.get(usize::from(rail)).map_or(0, |rail| rail.card)
    }

    fn set_home(&mut self, region: u32, memory: Memory) {
        if let Some(Some(place)) = self.regions.get_mut(region as usize) {
            place.set_home(memory);
        }
    }

    fn share(&mut self, rails: u64) {
        let several = rails.count_ones() > 1;
        for (rail, number) in self.rails.iter_mut().zip(0..) {
            if rails.checked_shr(number).unwrap_or(0) & 1 != 0 {
                rail.shared = several;
            }
        }
    }

    fn part(&mut self, region: u32) {
        self.parted[region as usize] = true;
    }

    fn merged(&self) -> u64 {
        self.counts.merged
    }

    fn restless(&self) -> bool {
        // A wish that nobody took may have found no room on its way to the control side.
        !self.listed.is_empty() || !self.wishes.is_empty()
    }

    fn room(&self, rail: u16) -> Room {
        match self.rails.get(usize::from(rail)) {
            Some(rail) if self.cards[usize::from(rail.card)].paused() => rail.room_in_pause(),
            Some(rail) => rail.room(),
            None => Room { requests: 0, notifies: 0, stop: Some(super::Stop::Connecting) },
        }
    }

    fn arrivals(&mut self, out: &mut Vec<Arrival>) {
        while out.len() < out.capacity()
            && let Some((arrival, epoch)) = self.arrivals.pop_front()
        {
            out.push(arrival);
            let rail = &mut self.rails[usize::from(arrival.rail)];
            rail.credits.hand_out(rail.epoch == epoch);
            self.attend(arrival.rail);
        }
    }
}
