//! Ports whose addresses come and go under an engine, and pairs of addresses that do not come up.
//! The card and the other engine are played; the engine and its rails are real.

use std::net::Ipv6Addr;
use std::thread;

use super::joint::Say;
use super::message::{Hello, Message};
use super::scripted::{Door, HELLO, Other, no_pair};
use super::two_cards::{NUMBER, Stage, endpoint};
use crate::control::{Address, CardDone, PairWork};
use crate::fabric::qp::provider::{Endpoint, Move, PathSettings, ProviderError};
use crate::fabric::verbs::AsyncEvent;

fn gid(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn at(gid_index: u8, text: &str) -> Address {
    Address { gid_index, gid: gid(text) }
}

/// What the other end says of itself.
fn theirs(text: &str, life: u32, round: u32) -> Message {
    let endpoint = Endpoint { gid: gid(text), ..endpoint(0) };
    Message::Joint(0, Say::Ready { life, endpoint, round })
}

impl Stage {
    /// The card's port is said to have changed, and has these addresses.
    fn changes_to(&self, addresses: &[Address]) {
        self.card.say(0, CardDone::Event(0, AsyncEvent::AddressesChanged(1)));
        self.looked_at(0, addresses);
    }

    /// The card is asked for the address at this place.
    fn asked_for(&self, index: u8) -> u64 {
        let (token, work) = self.pair_work(0);
        let PairWork::Endpoint { settings, .. } = work else { panic!("{work:?}") };
        assert_eq!(settings.gid_index, index);
        token
    }

    fn has_none(&self, token: u64) {
        let hint = "it is only played";
        self.card
            .say(token, CardDone::Failed(ProviderError::NoAddress { port: 1, index: 0, hint }));
    }

    /// The card tells this end, which is said to the other in this life and round.
    fn told(&self, other: &Other, token: u64, life: u32, round: u32) {
        self.card.say(token, CardDone::Endpoint(endpoint(0)));
        let ready = Message::Joint(0, Say::Ready { life, endpoint: endpoint(0), round });
        assert_eq!(other.hear(), Some(ready));
    }

    /// Both ends come up.
    fn comes_up(&self, other: &Other, life: u32) {
        let moves = self.moves(0, true);
        assert!(matches!(moves[..], [Move::ReadyToReceive(_), Move::ReadyToSend(_)]), "{moves:?}");
        assert_eq!(other.hear(), Some(Message::Joint(0, Say::Up { life })));
        other.say(&Message::Joint(0, Say::Up { life }));
    }

    /// A life ends at both ends.
    fn ends_life(&self, other: &Other, life: u32) {
        assert_eq!(self.moves(0, true), [Move::Error]);
        let quiet = Message::Joint(0, Say::Quiet { life });
        assert_eq!(other.hear(), Some(quiet.clone()));
        other.say(&quiet);
        let moves = self.moves(0, true);
        assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    }
}

#[test]
fn an_address_that_has_another_place_is_found_there_without_a_new_life() {
    let stage = Stage::new("moved", 1, 3);
    stage.changes_to(&[at(4, "::ffff:10.0.0.7"), at(6, "fd00::7")]);
    let (other, tokens) = stage.greet(1, 1);
    stage.makes(0, tokens[0]);
    other.say(&theirs("::ffff:10.0.0.9", 0, 0));
    let token = stage.asked_for(4);
    stage.has_none(token);
    stage.looked_at(0, &[at(6, "fd00::7"), at(9, "::ffff:10.0.0.7")]);
    let token = stage.asked_for(9);
    stage.told(&other, token, 0, 0);
    stage.comes_up(&other, 0);
    stage.settled(&other);

    // It is in use, and its place changes once more: what is up stays up, and the next life knows.
    stage.changes_to(&[at(2, "::ffff:10.0.0.7"), at(6, "fd00::7")]);
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(0, AsyncEvent::PairFailed(NUMBER)));
    stage.ends_life(&other, 0);
    other.say(&theirs("::ffff:10.0.0.9", 1, 0));
    let token = stage.asked_for(2);
    stage.told(&other, token, 1, 0);
    stage.comes_up(&other, 1);
    stage.settled(&other);
}

#[test]
fn a_place_that_the_settings_name_is_waited_for() {
    let pinned = |config| crate::host::Config { verbs_gid: vec![4], ..config };
    let stage = Stage::with("pinned", 1, 3, pinned);
    let index = PathSettings::DEFAULT.gid_index;
    let (other, tokens) = stage.greet(1, 1);
    stage.makes(0, tokens[0]);
    for _ in 0..3 {
        // After pauses, and without a look at the table.
        let token = stage.asked_for(index);
        stage.has_none(token);
    }
    let token = stage.asked_for(index);
    stage.card.say(0, CardDone::Event(0, AsyncEvent::AddressesChanged(1)));
    stage.told(&other, token, 0, 0);
    other.say(&theirs("::ffff:10.0.0.9", 0, 0));
    stage.comes_up(&other, 0);
    stage.settled(&other);
}

/// We have come, and lead: all our addresses, then all again in the next round.
#[test]
fn a_pair_of_addresses_that_does_not_come_up_is_followed_by_the_next() {
    let stage = Stage::new("next-pair", 1, 3);
    stage.changes_to(&[at(4, "::ffff:10.0.0.7"), at(6, "::ffff:10.9.0.7")]);
    let door = Door::open("next-pair-door");
    let url = door.url();
    thread::scope(|scope| {
        let connect = scope.spawn(|| stage.session.connect_peer(&url));
        let (other, _) = door.greeted();
        other.say(&Message::Welcome(Hello { cards: 1, ..HELLO }));
        let tokens = stage.asked_for_pairs(1);
        stage.makes(0, tokens[0]);
        for (life, (index, round)) in (0..).zip([(4, 0), (6, 0), (4, 1)]) {
            let token = stage.asked_for(index);
            stage.told(&other, token, life, round);
            other.say(&theirs("::ffff:10.0.0.9", life, 0));
            stage.moves(0, false);
            stage.looked_at(0, &[at(4, "::ffff:10.0.0.7"), at(6, "::ffff:10.9.0.7")]);
            stage.ends_life(&other, life);
        }
        let token = stage.asked_for(6);
        stage.told(&other, token, 3, 1);
        other.say(&theirs("::ffff:10.0.0.9", 3, 0));
        stage.comes_up(&other, 3);
        connect.join().unwrap().expect("a pair that works");
        // What worked is what is tried first.
        stage.card.say(0, CardDone::Event(0, AsyncEvent::PairFailed(NUMBER)));
        stage.ends_life(&other, 3);
        let token = stage.asked_for(6);
        stage.card.say(token, no_pair());
        stage.looked_at(0, &[]);
    });
}

/// The other leads, and says which round it is: the next nearest is taken.
#[test]
fn whoever_follows_takes_the_next_nearest_in_the_next_round() {
    let stage = Stage::new("following", 1, 3);
    stage.changes_to(&[at(4, "::ffff:10.0.0.7"), at(6, "::ffff:10.9.0.7"), at(1, "fe80::7")]);
    let (other, tokens) = stage.greet(1, 1);
    stage.makes(0, tokens[0]);
    for (life, (round, index)) in (0..).zip([(0, 4), (1, 6), (2, 4)]) {
        other.say(&theirs("::ffff:10.0.0.9", life, round));
        let token = stage.asked_for(index);
        stage.told(&other, token, life, 0);
        stage.moves(0, true);
        assert_eq!(other.hear(), Some(Message::Joint(0, Say::Up { life })));
        // It did not come up at the other end.
        other.say(&Message::Joint(0, Say::Quiet { life }));
        assert_eq!(stage.moves(0, true), [Move::Error]);
        assert_eq!(other.hear(), Some(Message::Joint(0, Say::Quiet { life })));
        let moves = stage.moves(0, true);
        assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    }
}

/// Both ends are in RTS, but nothing that either has sent was ever answered: whoever notices says
/// so, and whoever leads takes the next pair.
#[test]
fn a_pair_of_addresses_that_carries_nothing_is_followed_by_the_next() {
    let addresses = [at(4, "::ffff:10.0.0.7"), at(6, "::ffff:10.9.0.7")];
    let stage = Stage::new("carries-nothing", 1, 3);
    stage.changes_to(&addresses);
    let door = Door::open("carries-nothing-door");
    let url = door.url();
    thread::scope(|scope| {
        let connect = scope.spawn(|| stage.session.connect_peer(&url));
        let (other, _) = door.greeted();
        other.say(&Message::Welcome(Hello { cards: 1, ..HELLO }));
        let tokens = stage.asked_for_pairs(1);
        stage.makes(0, tokens[0]);
        for (life, (index, barren)) in (0..).zip([(4, true), (6, false), (6, true), (4, true)]) {
            let token = stage.asked_for(index);
            stage.told(&other, token, life, life / 3);
            other.say(&theirs("::ffff:10.0.0.9", life, 0));
            stage.comes_up(&other, life);
            if barren {
                other.say(&Message::Joint(0, Say::Barren { life }));
            }
            other.say(&Message::Joint(0, Say::Quiet { life }));
            assert_eq!(stage.moves(0, true), [Move::Error]);
            assert_eq!(other.hear(), Some(Message::Joint(0, Say::Quiet { life })));
            let moves = stage.moves(0, true);
            assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
        }
        connect.join().unwrap().expect("it was up");
        stage.asked_for(6);
        // Said of what is not up, it is a breach.
        other.say(&Message::Joint(0, Say::Barren { life: 4 }));
        assert_eq!(stage.moves(0, true), [Move::Reset]);
    });
}

/// Of two rails that work the one whose address is gone is not waited for.
#[test]
fn a_rail_whose_address_is_gone_is_rebuilt_while_another_works() {
    let stage = Stage::new("gone-address", 2, 5);
    let there = Address { gid_index: 4, gid: endpoint(1).gid };
    stage.card.say(0, CardDone::Event(1, AsyncEvent::AddressesChanged(2)));
    stage.looked_at(1, &[there]);
    let (other, tokens) = stage.greet(2, 2);
    for (card, token) in (0..).zip(tokens) {
        stage.makes(card, token);
        stage.joins(&other, card, 0);
    }
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(1, AsyncEvent::AddressesChanged(2)));
    stage.looked_at(1, &[Address { gid_index: 7, ..there }]);
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(1, AsyncEvent::AddressesChanged(2)));
    stage.looked_at(1, &[Address { gid: [9; 16], ..there }]);
    assert_eq!(stage.moves(1, true), [Move::Error]);
    assert_eq!(other.hear(), Some(Message::Joint(1, Say::Quiet { life: 0 })));
}
