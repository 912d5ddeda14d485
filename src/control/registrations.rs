//! What the control thread has done by the card's thread: asking, hearing, and regions, which are
//! registered before the engine knows them and let go once it has forgotten them.
//!
//! **Invariants**: a region's memory is registered for as long as the core may name it; one that
//! cannot be registered is refused, and charged to nobody; memory is unmapped, and its id free for
//! another, only after its registration has ended.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;

use nix::sys::resource::{Resource, getrlimit};
use tracing::warn;

use super::card::{CardAnswer, CardDone, CardOrder, CardWork};
use super::peers;
use super::server::Server;
use super::wire::{self, Refusal};
use crate::abi::{Detail, Kind, ReplyHead, errno};
use crate::fabric::qp::provider::{Access, ProviderError};
use crate::ids::RegionId;
use crate::shm::Mapping;

/// What the card's thread was asked for.
#[derive(Debug)]
pub(super) enum CardFor {
    /// MAPPED or REGION: the region's memory is registered.
    Region { session: usize, region: RegionId, tag: u64, kind: Kind, memory: Arc<Mapping> },
    /// The region is gone from the core: its registration ends.
    RegionGone { session: usize, region: RegionId, tag: Option<u64> },
    /// Rails, loans and homes.
    Peers(peers::CardFor),
}

/// For the engine's own requests: peers may do nothing with these keys.
const OWN: Access = Access { write: false, read: false, atomics: false };

impl Server {
    /// Asks the card's thread for something; it is answered, be it by the thread's end.
    pub(super) fn ask_card(&mut self, work: CardWork, what: CardFor) {
        // Token 0 is that of events.
        let token = self.card_for.insert(what) as u64 + 1;
        let sent = self.card.as_ref().is_some_and(|card| {
            let order = CardOrder { token, work };
            card.orders.send(order).is_ok()
        });
        if !sent {
            // Found by the next look at the answers.
            self.link.kick_control();
        }
    }

    /// Takes what the card's thread has to say.
    pub(super) fn hear_card(&mut self) {
        loop {
            let Some(card) = &self.card else { return };
            match card.answers.try_recv() {
                Ok(CardAnswer { token, done }) => self.card_said(token, done),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => break,
            }
        }
        while let Some(key) = self.card_for.iter().map(|(key, _)| key).next() {
            let hint = "the card's thread is gone: look at the log, and start the engine anew";
            let error = ProviderError::Os { call: "work on the card", errno: errno::EIO, hint };
            let what = self.card_for.remove(key);
            self.card_has_done(what, CardDone::Failed(error));
        }
    }

    fn card_said(&mut self, token: u64, done: CardDone) {
        if let CardDone::Event(card, event) = done {
            return self.card_happened(card, event);
        }
        let key = token.checked_sub(1).and_then(|key| usize::try_from(key).ok());
        if let Some(what) = key.and_then(|key| self.card_for.try_remove(key)) {
            self.card_has_done(what, done);
        }
    }

    fn card_has_done(&mut self, what: CardFor, done: CardDone) {
        match what {
            CardFor::Region { session, region, tag, kind, memory } => {
                self.region_registered(session, region, tag, kind, memory, done);
            }
            CardFor::RegionGone { session, region, tag } => {
                if let CardDone::Failed(error) = done {
                    warn!(region = region.0, %error, "a registration did not end");
                }
                self.region_over(session, region, tag);
            }
            CardFor::Peers(what) => self.card_did_for_peers(what, done),
        }
    }

    /// Makes a region live: on the card first, if there is one.
    pub(super) fn add_region(
        &mut self,
        session: usize,
        region: RegionId,
        memory: Arc<Mapping>,
        tag: u64,
        kind: Kind,
    ) {
        if self.card.is_none() {
            return self.admit_region(session, region, memory, tag, kind);
        }
        if let Some(place) = self.regions.get_mut(&region.0) {
            place.in_hand = true;
        }
        self.hold(session);
        let work = CardWork::Register { memory: Arc::clone(&memory), access: OWN };
        self.ask_card(work, CardFor::Region { session, region, tag, kind, memory });
    }

    fn region_registered(
        &mut self,
        session: usize,
        region: RegionId,
        tag: u64,
        kind: Kind,
        memory: Arc<Mapping>,
        done: CardDone,
    ) {
        let ended = self.sessions.get(session).is_none_or(|session| session.ending);
        let place = self.regions.get_mut(&region.0);
        if let Some(place) = place {
            place.in_hand = false;
            match done {
                CardDone::Registered(registration) => {
                    place.registration = Some(registration);
                    if ended {
                        return self.let_region_go(session, region, None);
                    }
                    self.admit_region(session, region, memory, tag, kind);
                }
                CardDone::Failed(error) => {
                    let refusal = self.unregistered(&memory, &error);
                    self.forget_region(session, region);
                    self.fail(session, kind, tag, &refusal);
                }
                _ => self.forget_region(session, region),
            }
        }
        self.settle(session);
    }

    fn unregistered(&self, memory: &Mapping, error: &ProviderError) -> Refusal {
        let card = self.card.as_ref().map_or_else(String::new, super::card::Card::name);
        let bytes = memory.bytes();
        let mut text = format!("{bytes} bytes cannot be registered with {card}: {error}");
        if let ProviderError::Os { errno: errno::ENOMEM, .. } = error {
            let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
            text += &format!(
                "; the engine may lock {limit} bytes in all (memlock); or serve with verbs = off"
            );
        }
        Refusal::new(errno::ENOMEM, Detail::None, text)
    }

    /// The core has forgotten a region: its registration ends, then its memory.
    pub(super) fn let_region_go(&mut self, session: usize, region: RegionId, tag: Option<u64>) {
        let home = self.regions.get_mut(&region.0).and_then(|place| place.links.home.take());
        if let Some(home) = home {
            // Over before the other, whose end is waited for.
            self.end_registration(home.id);
        }
        let place = self.regions.get_mut(&region.0);
        match place.and_then(|place| place.registration.take()) {
            Some(registration) => {
                let work = CardWork::Deregister { id: registration.id };
                self.ask_card(work, CardFor::RegionGone { session, region, tag });
            }
            None => self.region_over(session, region, tag),
        }
    }

    fn region_over(&mut self, session: usize, region: RegionId, tag: Option<u64>) {
        self.forget_region(session, region);
        if self.settle(session) {
            let head = wire::reply_head::<ReplyHead>(Kind::Release, tag.unwrap_or(0));
            self.answer(session, &head, &[]);
        }
    }
}
