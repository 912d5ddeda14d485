//! Addresses of the cards' ports, which come and go while the engine runs.
//!
//! They are read when the engine starts, and anew whenever a card says that they have changed, a
//! port comes up, or a rail could not be connected: on the card's thread, one look a card at a
//! time. What is found is what rails choose from at their next attempt ([`Paths`]). Where the
//! settings name a place (`verbs_gid`), that is waited for, and nothing else is looked at.
//!
//! **Invariants**: while a look at a card is under way, all that happens to it asks for one more at
//! the most; that a port has no address is told once, until one was found there again.
//!
//! [`Paths`]: super::paths::Paths

use tracing::{info, warn};

use super::RailPlace;
use super::paths::Address;
use crate::control::card::{CardDone, CardWork};
use crate::control::registrations;
use crate::control::server::Server;
use crate::fabric::qp::CARDS_MAX;
use crate::fabric::qp::provider::ProviderError;

/// What is known of each card's looks.
#[derive(Debug, Default)]
pub(super) struct Looks([Look; CARDS_MAX]);

#[derive(Clone, Copy, Debug, Default)]
struct Look {
    under_way: bool,
    /// Something has happened since it began.
    again: bool,
    /// It was told that there is no address.
    told: bool,
}

impl Looks {
    fn of(&mut self, card: u8) -> Option<&mut Look> {
        self.0.get_mut(usize::from(card))
    }

    /// A rail has found its address there.
    pub(super) fn found(&mut self, card: u8) {
        if let Some(look) = self.of(card) {
            look.told = false;
        }
    }

    /// True if it is to be told that there is none.
    fn tell(&mut self, card: u8) -> bool {
        self.of(card).is_some_and(|look| !std::mem::replace(&mut look.told, true))
    }

    /// True if a card is to be looked at now.
    fn begin(&mut self, card: u8) -> bool {
        let Some(look) = self.of(card) else { return false };
        look.again = look.under_way;
        !std::mem::replace(&mut look.under_way, true)
    }

    /// The look is over; true if another one is to follow.
    fn end(&mut self, card: u8) -> bool {
        let Some(look) = self.of(card) else { return false };
        look.under_way = false;
        std::mem::take(&mut look.again)
    }
}

fn has(addresses: &[Address], gid: [u8; 16]) -> bool {
    addresses.iter().any(|address| address.gid == gid)
}

impl Server {
    /// A card says that its port's addresses have changed, or that it has come up.
    pub(super) fn addresses_changed(&mut self, card: u8) {
        if self.card.as_ref().is_some_and(|known| known.pinned) {
            // It may be the one that rails wait for.
            return self.retry_rails_on(card);
        }
        self.look_at_card(card);
    }

    /// A card's port may have other addresses than are known.
    pub(super) fn look_at_card(&mut self, card: u8) {
        let pinned = self.card.as_ref().is_none_or(|known| known.pinned);
        if !pinned && self.peers.looks.begin(card) {
            let what = registrations::CardFor::Peers(super::CardFor::Addresses { card });
            self.ask_card(CardWork::Addresses { card }, what);
        }
    }

    /// A card's port was looked at.
    pub(super) fn card_has_addresses(&mut self, card: u8, done: CardDone) {
        if self.peers.looks.end(card) {
            self.look_at_card(card);
        }
        let CardDone::Addresses(found) = done else { return };
        let Some(known) = self.card.as_mut() else { return };
        let at = usize::from(card);
        if known.addresses.len() <= at {
            known.addresses.resize(at + 1, Vec::new());
        }
        if known.addresses[at] == found {
            return;
        }
        let before = std::mem::replace(&mut known.addresses[at], found.clone());
        let (device, told) = (known.name_of(card), found.iter().map(ToString::to_string));
        let told: Vec<_> = told.collect();
        info!(card, device, addresses = told.join(", "), "a port's addresses have changed");
        for rail in self.rails_of(card, |_, _| true) {
            if let Some(place) = self.rail(rail) {
                place.joint.renew(&found);
            }
        }
        let gone: Vec<_> = before.iter().filter(|it| !has(&found, it.gid)).copied().collect();
        self.break_rails_by(card, &gone);
        self.retry_rails_on(card);
    }

    /// Rails whose address is gone need not wait for their time-outs, if others carry what they
    /// would. Without such a rail is left to its card: an address may go and come.
    fn break_rails_by(&mut self, card: u8, gone: &[Address]) {
        let by = |server: &Self, place: &RailPlace| {
            place.joint.address().is_some_and(|gid| has(gone, gid)) && server.stand_in(place)
        };
        for rail in self.rails_of(card, by) {
            if let Some(place) = self.rail(rail) {
                place.joint.broken("its address is gone");
            }
            self.drive_rail(rail);
        }
    }

    /// A rail's port has no address where it looked for one: told once, for all rails there.
    pub(super) fn log_no_address(&mut self, card: u8, error: &ProviderError) {
        if !self.peers.looks.tell(card) {
            return;
        }
        let Some(known) = &self.card else { return };
        let device = known.name_of(card);
        if known.pinned {
            warn!(card, device, %error, "rails wait for the address that verbs_gid names");
        } else {
            warn!(card, device, %error, "rails wait for an address");
        }
    }

    /// Rails on a card that wait need not any more.
    fn retry_rails_on(&mut self, card: u8) {
        for rail in self.rails_of(card, |_, _| true) {
            self.retry_rail(rail, u64::MAX);
        }
    }
}
