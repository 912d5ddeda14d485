//! Atomics of other engines go by the owner's first card, wherever that is among the pairs, and
//! where it is in none of them, not at all.

use std::mem::ManuallyDrop;
use std::thread;

use super::message::{Have, Hello, Message, Want};
use super::scripted::{Door, HELLO, Other, alloc, makes_pair, no_pair, want};
use super::two_cards::Stage;
use crate::abi::{RIGHT_ATOMIC, RIGHT_READ, errno};
use crate::client::Rights;
use crate::control::card::{CardDone, CardOrder, CardWork};
use crate::fabric::verbs::AsyncEvent;
use crate::host::tests::registration;

/// The lowest rail of a set carries its atomics: it is the one to the other engine's card 0.
#[test]
fn the_lowest_rail_leads_to_the_other_engines_first_card() {
    for (picked, own, lowest) in [([0, 1], [0, 1], 0), ([0, 1], [1, 0], 1), ([1, 0], [0, 1], 1)] {
        let stage = Stage::new("first-cards", 2, 5);
        let door = Door::open("first-cards-door");
        let url = door.url();
        let asker = stage.engine.connect().unwrap();
        let session = stage.engine.connect().unwrap();
        thread::scope(|scope| {
            let connect = scope.spawn(|| session.connect_peer(&url).map(drop));
            let (other, _) = door.greeted();
            let picked = [picked[0], picked[1], 2, 3];
            let own = [own[0], own[1], 2, 3];
            other.say(&Message::Welcome(Hello { cards: 2, picked, own, ..HELLO }));
            let orders = [stage.card.next(), stage.card.next()];
            let mut rails: Vec<_> = asker.peers().unwrap().remove(0).rails;
            rails.sort_by_key(|rail| rail.rail);
            let cards: Vec<u8> = rails.iter().map(|rail| rail.card).collect();
            assert_eq!(cards, [lowest, 1 - lowest], "{picked:?} {own:?}");
            for order in orders {
                stage.card.say(order.token, no_pair());
            }
            other.is_left("no rail");
            connect.join().unwrap().unwrap_err();
        });
    }
}

/// Our card 0 has an address of another kind than the other engine's only card.
#[test]
fn without_our_first_card_no_atomics_are_lent() {
    let stage = Stage::new("no-first-card", 2, 5);
    let region = ManuallyDrop::new(alloc(&stage.session, &stage.card));
    let secret = thread::scope(|scope| {
        let export = scope.spawn(|| region.export("there", Rights::READ | Rights::ATOMIC));
        let CardOrder { token, work } = stage.card.next();
        let CardWork::Register { memory, access, .. } = work else { panic!("{work:?}") };
        assert!(access.atomics);
        stage.card.say(token, CardDone::Registered(registration(7, memory.bytes())));
        export.join().unwrap().unwrap()
    });
    let gid = |kind: u8| match kind {
        0 => [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1],
        _ => [253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    };
    for card in [0, 1] {
        let event = AsyncEvent::AddressesChanged(u32::from(card) + 1);
        stage.card.say(0, CardDone::Event(card, event));
        let address = super::paths::Address { gid_index: 3, gid: gid(card) };
        stage.looked_at(card, &[address]);
    }
    for (kind, first) in [(0, true), (1, false)] {
        let mut told = HELLO.told;
        told[0][0] = gid(kind);
        let other = Other::reach(&stage.socket);
        other.say(&Message::Hello(Hello { cards: 1, there: 1, told, ..HELLO }));
        let Some(Message::Welcome(hello)) = other.hear() else { panic!("no welcome") };
        assert_eq!((hello.cards, hello.own[0]), (1, kind));
        let pair = stage.card.next();
        assert!(makes_pair(&pair.work, kind), "{:?}", pair.work);
        let asked = want(1, 0, "there", *secret.as_bytes());
        other.say(&Message::Want(Want { rights: RIGHT_ATOMIC, ..asked }));
        if !first {
            let heard = other.hear();
            let Some(Message::No(1, why)) = heard else { panic!("{heard:?}") };
            assert_eq!(why.errno, errno::EOPNOTSUPP, "{why:?}");
            assert!(why.text.contains("first of its engine's cards"), "{why:?}");
            // Who takes what there is gets the rest.
            other.say(&Message::Want(asked));
        }
        let CardOrder { token, work } = stage.card.next();
        let CardWork::Register { memory, access, .. } = work else { panic!("{work:?}") };
        assert_eq!((access.atomics, access.read), (first, !first));
        stage.card.say(token, CardDone::Registered(registration(8, memory.bytes())));
        let heard = other.hear();
        let Some(Message::Have(Have { loan, rights, .. })) = heard else { panic!("{heard:?}") };
        assert_eq!(rights, if first { RIGHT_ATOMIC } else { RIGHT_READ });
        other.say(&Message::GiveBack(loan));
        assert_eq!(stage.card.deregisters(), 8);
        stage.card.say(pair.token, no_pair());
        other.is_left("no rail");
    }
}
