//! An engine with two cards, and another engine that the test plays: one rail is enough, a rail
//! that is lost comes back or leaves without the connection, and what is lent is lent and taken
//! back on both. The cards are played, too; the engine and its rails are real, over queue pairs
//! that carry nothing.

use std::mem::ManuallyDrop;
use std::thread;

use super::joint::Say;
use super::message::{Have, Hello, Message, Want};
use super::scripted::{
    Door, HELLO, Other, alloc, let_go, makes_pair, no_pair, path, refusal, serves, want,
};
use crate::abi::errno;
use crate::control::{Address, CardDone, CardOrder, CardWork, PairWork};
use crate::fabric::qp::provider::{Created, Endpoint, Move};
use crate::fabric::verbs::AsyncEvent;
use crate::fabric::verbs::hollow::Hollow;
use crate::host::tests::{CAPS, PATIENCE, Played, played_cards, registration};
use crate::host::{Config, Engine};
use crate::{Flush, Region, Rights, RingOptions, Session};

/// An engine with cards, and all that the test plays for it. The cards end first, so that an engine
/// whose test has failed does not wait for them.
pub(super) struct Stage {
    pub(super) card: Played,
    pub(super) session: Session,
    pub(super) engine: Engine,
    hollow: Hollow,
    pub(super) socket: std::path::PathBuf,
}

impl Stage {
    pub(super) fn new(name: &str, cards: u8, rails_max: u16) -> Self {
        Self::with(name, cards, rails_max, |config| config)
    }

    /// With some other settings.
    pub(super) fn with(
        name: &str,
        cards: u8,
        rails_max: u16,
        change: impl FnOnce(Config) -> Config,
    ) -> Self {
        let socket = path(name);
        let hollow = Hollow::new(cards);
        // The other engine is this very process: its death is not seen.
        let verbs_lease_ms = 50;
        let config = Config {
            socket: Some(socket.clone()),
            verbs_lease_ms,
            // Nobody here answers calls.
            peer_silence_ms: 600_000,
            ..Config::default()
        };
        let (engine, card) = played_cards(change(config), rails_max, &hollow);
        let session = engine.connect().unwrap();
        Self { engine, session, card, hollow, socket }
    }

    /// The other engine has come, and is welcomed with so many cards; each has been asked for a
    /// queue pair, under these tokens.
    pub(super) fn greet(&self, asks: u8, gets: u8) -> (Other, Vec<u64>) {
        self.greet_as(Hello { cards: asks, ..HELLO }, gets)
    }

    pub(super) fn greet_as(&self, hello: Hello, gets: u8) -> (Other, Vec<u64>) {
        let other = Other::reach(&self.socket);
        other.say(&Message::Hello(hello));
        let Some(Message::Welcome(hello)) = other.hear() else { panic!("no welcome") };
        assert_eq!((hello.rails, hello.cards), (1, gets));
        (other, self.asked_for_pairs(gets))
    }

    pub(super) fn asked_for_pairs(&self, cards: u8) -> Vec<u64> {
        let asked = |card| {
            let CardOrder { token, work } = self.card.next();
            assert!(makes_pair(&work, card), "{work:?}");
            token
        };
        (0..cards).map(asked).collect()
    }

    /// A card has made what it was asked for: numbers are a card's own, and may be the same.
    pub(super) fn makes(&self, card: u8, token: u64) {
        let pair = self.hollow.pair(card, NUMBER, CAPS);
        self.card.say(token, CardDone::Created(Created { pair, number: NUMBER, caps: CAPS }));
    }

    /// The next order, which is about the queue pair of a card.
    pub(super) fn pair_work(&self, card: u8) -> (u64, PairWork) {
        let CardOrder { token, work } = self.card.next();
        let CardWork::Pair { card: on, work } = work else { panic!("{work:?}") };
        assert_eq!(on, card, "{work:?}");
        (token, work)
    }

    /// The card is asked to move its queue pair; it does, or not.
    pub(super) fn moves(&self, card: u8, well: bool) -> Vec<Move> {
        let (token, work) = self.pair_work(card);
        let PairWork::Move { number: NUMBER, moves } = work else { panic!("{work:?}") };
        self.card.say(token, if well { CardDone::Moved } else { no_pair() });
        moves
    }

    /// A rail that wishes to be connected is, in this life.
    pub(super) fn joins(&self, other: &Other, card: u8, life: u32) {
        let (token, work) = self.pair_work(card);
        let PairWork::Endpoint { number: NUMBER, settings, .. } = work else { panic!("{work:?}") };
        // Each card is used by its own settings.
        assert_eq!(settings.port, card + 1);
        self.card.say(token, CardDone::Endpoint(endpoint(card)));
        let ready = Message::Joint(card, ready(card, life));
        assert_eq!(other.hear(), Some(ready.clone()));
        other.say(&ready);
        let moves = self.moves(card, true);
        assert!(matches!(moves[..], [Move::ReadyToReceive(_), Move::ReadyToSend(_)]), "{moves:?}");
        let up = Message::Joint(card, Say::Up { life });
        assert_eq!(other.hear(), Some(up.clone()));
        other.say(&up);
    }

    /// The card is asked to move its queue pair, and takes its time.
    #[cfg(feature = "net")]
    pub(super) fn asked_to_move(&self, card: u8) -> (u64, Vec<Move>) {
        let (token, work) = self.pair_work(card);
        let PairWork::Move { number: NUMBER, moves } = work else { panic!("{work:?}") };
        (token, moves)
    }

    /// It has moved it.
    #[cfg(feature = "net")]
    pub(super) fn moved(&self, token: u64) {
        self.card.say(token, CardDone::Moved);
    }

    /// The card is asked to destroy its queue pair, and does.
    #[cfg(feature = "net")]
    pub(super) fn destroys(&self) {
        let (token, work) = self.pair_work(0);
        assert!(matches!(work, PairWork::Destroy { number: NUMBER, .. }), "{work:?}");
        self.card.say(token, CardDone::Destroyed);
    }

    /// It cannot do what it was asked for.
    #[cfg(feature = "net")]
    pub(super) fn fails(&self, token: u64, why: CardDone) {
        self.card.say(token, why);
    }

    /// The next order, by a word: `create`, or `reset`.
    #[cfg(feature = "net")]
    pub(super) fn next(&self) -> (&'static str, u64) {
        let CardOrder { token, work } = self.card.next();
        match work {
            CardWork::Pair { work: PairWork::Create { .. }, .. } => ("create", token),
            CardWork::Pair { work: PairWork::Move { moves, .. }, .. }
                if moves.last() == Some(&Move::Reset) =>
            {
                ("reset", token)
            }
            work => panic!("{work:?}"),
        }
    }

    /// A card's port is looked at, and has these addresses.
    pub(super) fn looked_at(&self, card: u8, addresses: &[Address]) {
        let CardOrder { token, work } = self.card.next();
        assert!(matches!(work, CardWork::Addresses { card: at } if at == card), "{work:?}");
        self.card.say(token, CardDone::Addresses(addresses.to_vec()));
    }

    /// Everybody has heard what was said before.
    pub(super) fn settled(&self, other: &Other) {
        other.say(&Message::Call);
        assert_eq!(other.hear(), Some(Message::Here));
        serves(&self.engine);
    }

    /// The other engine has an export; the keys are those of both cards, or of one.
    pub(super) fn lends(&self, other: &Other, want: Want, cards: &[u8]) -> u32 {
        other.say(&Message::Want(want));
        let CardOrder { token, work } = self.card.next();
        let CardWork::Register { memory, .. } = work else { panic!("{work:?}") };
        self.card.say(token, CardDone::Registered(registration(8, memory.bytes())));
        let heard = other.hear();
        let Some(Message::Have(Have { loan, keys, .. })) = heard else { panic!("{heard:?}") };
        let keys: Vec<_> = keys.iter().map(|(card, key)| (*card, key.rkey)).collect();
        let expected: Vec<_> =
            cards.iter().map(|card| (*card, 8 + 100 * u32::from(*card))).collect();
        assert_eq!(keys, expected);
        loan
    }

    /// A region that is not released by a test that fails: nobody would play the card for it.
    pub(super) fn export(&self) -> (ManuallyDrop<Region>, Want) {
        let region = alloc(&self.session, &self.card);
        let secret = region.export("there", Rights::READ | Rights::WRITE).unwrap();
        (ManuallyDrop::new(region), want(1, 0, "there", *secret.as_bytes()))
    }

    pub(super) fn let_go(self, region: ManuallyDrop<Region>) {
        let_go(ManuallyDrop::into_inner(region), &self.card);
    }
}

/// What the device calls a queue pair.
pub(super) const NUMBER: u32 = 5;

pub(super) fn endpoint(card: u8) -> Endpoint {
    Endpoint {
        number: NUMBER,
        psn: 7,
        gid: [card; 16],
        lid: 0,
        mtu_bytes: 1024,
        reads_in: 4,
        reads_out: 4,
        credits: 4,
    }
}

fn ready(card: u8, life: u32) -> Say {
    Say::Ready { life, endpoint: endpoint(card), round: 0 }
}

#[test]
fn engines_use_as_many_cards_as_both_have_and_have_rails_for() {
    for (own, asks, gets) in [(2, 1, 1), (1, 2, 1), (2, 2, 2), (2, 4, 2)] {
        let stage = Stage::new("both", own, 5);
        let (_other, tokens) = stage.greet(asks, gets);
        assert_eq!(tokens.len(), usize::from(gets));
    }
    // One rail is left for peers.
    let stage = Stage::new("few", 2, 3);
    let _other = stage.greet(2, 1);

    // And the other way: we come, and are welcomed with fewer, or with more than there are.
    let stage = Stage::new("coming", 2, 5);
    let door = Door::open("door");
    for cards in [1, 3] {
        thread::scope(|scope| {
            let connect = scope.spawn(|| stage.session.connect_peer(&door.url()).unwrap_err());
            let (other, hello) = door.greeted();
            assert_eq!((hello.rails, hello.cards), (1, 2));
            other.say(&Message::Welcome(Hello { cards, ..HELLO }));
            if cards == 1 {
                let tokens = stage.asked_for_pairs(1);
                drop(other);
                assert_eq!(refusal(&connect.join().unwrap()).0, errno::EHOSTDOWN);
                stage.card.say(tokens[0], no_pair());
            } else {
                let (found, text) = refusal(&connect.join().unwrap());
                assert!(found == errno::EHOSTDOWN && text.contains("more cards"), "{text}");
            }
        });
    }
}

#[test]
fn a_connection_is_up_though_one_card_cannot_make_its_queue_pair() {
    for left in [0, 1] {
        let stage = Stage::new("one-of-two", 2, 5);
        let door = Door::open("one-of-two-door");
        thread::scope(|scope| {
            let connect = scope.spawn(|| stage.session.connect_peer(&door.url()));
            let (other, _) = door.greeted();
            other.say(&Message::Welcome(Hello { cards: 2, ..HELLO }));
            let tokens = stage.asked_for_pairs(2);
            stage.card.say(tokens[usize::from(1 - left)], no_pair());
            stage.makes(left, tokens[usize::from(left)]);
            stage.joins(&other, left, 0);
            let peer = connect.join().unwrap().expect("one rail is enough");
            assert!(peer.rail() > 1);
            // What the other engine says of the rail that there is not is heard all the same.
            let ready = ready(1 - left, 0);
            other.say(&Message::Joint(1 - left, ready));
            stage.settled(&other);
            // The last one may not fail.
            stage.card.say(0, CardDone::Event(left, AsyncEvent::PairFailed(NUMBER)));
            stage.moves(left, false);
            assert_eq!(stage.moves(left, true), [Move::Error]);
            assert_eq!(other.hear(), Some(Message::Bye), "the connection is lost");
            other.say(&Message::Bye);
            assert_eq!(stage.moves(left, true), [Move::Reset]);
            assert_eq!(other.hear(), None);
        });
    }
}

#[test]
fn without_any_queue_pair_there_is_no_connection() {
    let stage = Stage::new("none-of-two", 2, 5);
    let (other, tokens) = stage.greet(2, 2);
    stage.card.say(tokens[1], no_pair());
    stage.settled(&other);
    stage.card.say(tokens[0], no_pair());
    other.is_left("no rail");
    serves(&stage.engine);
}

/// Both ends of a rail fall quiet and are joined anew; those of the other hear nothing of it.
fn comes_back(stage: &Stage, other: &Other, card: u8, life: u32) {
    assert_eq!(stage.moves(card, true), [Move::Error]);
    let quiet = Message::Joint(card, Say::Quiet { life });
    assert_eq!(other.hear(), Some(quiet.clone()));
    stage.settled(other);
    other.say(&quiet);
    let moves = stage.moves(card, true);
    assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    stage.joins(other, card, life + 1);
}

#[test]
fn a_rail_is_lost_and_comes_back_while_the_other_stays() {
    let stage = Stage::new("back", 2, 5);
    let (other, tokens) = stage.greet(2, 2);
    for (card, token) in (0..).zip(tokens) {
        stage.makes(card, token);
        stage.joins(&other, card, 0);
    }
    // By the device's word, of a queue pair whose number the other card has given, too.
    stage.card.say(0, CardDone::Event(1, AsyncEvent::PairFailed(NUMBER)));
    comes_back(&stage, &other, 1, 0);
    // A port that went down is not waited for; another port is none of its business.
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(1, AsyncEvent::PortDown(1)));
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(1, AsyncEvent::PortDown(2)));
    assert_eq!(stage.moves(1, true), [Move::Error]);
    assert_eq!(other.hear(), Some(Message::Joint(1, Say::Quiet { life: 1 })));
    // The one that is left is left to its card when its port goes down, too.
    stage.card.say(0, CardDone::Event(0, AsyncEvent::PortDown(1)));
    stage.settled(&other);
    other.say(&Message::Joint(1, Say::Quiet { life: 1 }));
    let moves = stage.moves(1, true);
    assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    stage.joins(&other, 1, 2);
    // By the other end's word.
    other.say(&Message::Joint(0, Say::Quiet { life: 0 }));
    assert_eq!(stage.moves(0, true), [Move::Error]);
    assert_eq!(other.hear(), Some(Message::Joint(0, Say::Quiet { life: 0 })));
    let moves = stage.moves(0, true);
    assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    stage.joins(&other, 0, 1);
    stage.settled(&other);
}

/// A rail whose other end never falls quiet keeps its ops: the connection does not outlast it.
#[test]
fn a_rail_whose_other_end_does_not_fall_quiet_ends_the_connection() {
    let stage = Stage::new("unquiet", 2, 5);
    let (other, tokens) = stage.greet(2, 2);
    for (card, token) in (0..).zip(tokens) {
        stage.makes(card, token);
        stage.joins(&other, card, 0);
    }
    stage.card.say(0, CardDone::Event(1, AsyncEvent::PairFailed(NUMBER)));
    assert_eq!(stage.moves(1, true), [Move::Error]);
    assert_eq!(other.hear(), Some(Message::Joint(1, Say::Quiet { life: 0 })));
    // It is there, and the other rail works.
    stage.settled(&other);
    assert_eq!(stage.moves(0, true), [Move::Error], "the connection is lost");
    other.is_left("in time");
}

/// However often a rail cannot be connected, the connection outlasts it.
#[test]
fn a_rail_that_cannot_be_connected_is_tried_again_while_the_other_works() {
    let stage = Stage::new("again", 2, 5);
    let (other, tokens) = stage.greet(2, 2);
    for (card, token) in (0..).zip(tokens) {
        stage.makes(card, token);
        if card == 0 {
            stage.joins(&other, card, 0);
        }
    }
    for life in 0..9 {
        let (token, work) = stage.pair_work(1);
        assert!(matches!(work, PairWork::Endpoint { .. }), "{work:?}");
        stage.card.say(token, no_pair());
        stage.looked_at(1, &[]);
        assert_eq!(stage.moves(1, true), [Move::Error]);
        let quiet = Message::Joint(1, Say::Quiet { life });
        assert_eq!(other.hear(), Some(quiet.clone()));
        other.say(&quiet);
        let moves = stage.moves(1, true);
        assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    }
    stage.joins(&other, 1, 9);
    stage.settled(&other);
}

#[test]
fn a_card_that_fails_takes_its_rail_along_and_nothing_else() {
    let stage = Stage::new("fatal", 2, 5);
    let (region, wanted) = stage.export();
    let (other, tokens) = stage.greet(2, 2);
    for (card, token) in (0..).zip(tokens) {
        stage.makes(card, token);
        stage.joins(&other, card, 0);
    }
    stage.card.say(0, CardDone::Event(1, AsyncEvent::DeviceFailed));
    stage.moves(1, false);
    assert_eq!(stage.moves(1, false), [Move::Error], "once more, for good");
    assert_eq!(stage.moves(1, false), [Move::Reset], "that must do, then");
    // Nothing moves by it any more, and the other end must know.
    let quiet = Message::Joint(1, Say::Quiet { life: 0 });
    assert_eq!(other.hear(), Some(quiet.clone()));
    stage.settled(&other);
    other.say(&quiet);
    assert_eq!(stage.moves(1, false), [Move::Reset], "the other end is silent, too");
    other.say(&Message::Joint(1, ready(1, 1)));
    stage.settled(&other);
    let loan = stage.lends(&other, wanted, &[0, 1]);
    other.say(&Message::GiveBack(loan));
    assert_eq!(stage.card.deregisters(), 8);
    stage.settled(&other);
    stage.let_go(region);
}

#[test]
fn what_is_lent_over_two_rails_is_withdrawn_from_both() {
    for cards in [2, 1] {
        let stage = Stage::new("withdrawn", 2, 5);
        let (region, wanted) = stage.export();
        let (other, tokens) = stage.greet(cards, cards);
        for (card, token) in (0..).zip(tokens) {
            stage.makes(card, token);
            stage.joins(&other, card, 0);
        }
        let shared: Vec<u8> = (0..cards).collect();
        let loan = stage.lends(&other, wanted, &shared);
        let mut ring = stage.session.ring(RingOptions::new(8, 8)).unwrap();
        ring.push(Flush::region(&region).revoke()).unwrap();
        ring.submit();
        assert_eq!(other.hear(), Some(Message::Withdraw(loan)));
        stage.settled(&other);
        assert!(ring.reap().unwrap().is_none(), "it is not given back yet");
        other.say(&Message::GiveBack(loan));
        assert_eq!(stage.card.deregisters(), 8);
        ring.submit_and_wait(1, Some(PATIENCE)).unwrap();
        let done = ring.reap().unwrap().expect("nothing of it is left on any rail");
        assert_eq!(done.result, Ok(0));
        stage.let_go(region);
    }
}

#[test]
fn keys_of_cards_that_they_do_not_share_end_the_connection() {
    use crate::fabric::qp::provider::Key;
    for (cards, last) in [(1, 1), (2, 2)] {
        let stage = Stage::new("keys", 2, 5);
        let door = Door::open("keys-door");
        thread::scope(|scope| {
            let connect = scope.spawn(|| stage.session.connect_peer(&door.url()).unwrap());
            let (other, _) = door.greeted();
            other.say(&Message::Welcome(Hello { cards, ..HELLO }));
            let tokens = stage.asked_for_pairs(cards);
            for (card, token) in (0..).zip(tokens) {
                stage.makes(card, token);
                stage.joins(&other, card, 0);
            }
            let peer = connect.join().unwrap();
            for good in [true, false] {
                let secret = crate::Secret::from_bytes([1; 32]);
                let (loan, all) = (1 + u32::from(good), if good { cards } else { last + 1 });
                let import = thread::scope(|scope| {
                    let imported = scope.spawn(|| peer.import("there", None, &secret));
                    let heard = other.hear();
                    let Some(Message::Want(Want { tag, .. })) = heard else { panic!("{heard:?}") };
                    let key = Key { offset: 0, bytes: 4096, address: 4096, lkey: 0, rkey: 1 };
                    let keys = (0..all).map(|card| (card, key)).collect();
                    let (region, bytes, rights) = (1, 4096, Rights::READ.bits());
                    let (keys_total, first) = (u32::from(all), 0);
                    let have = Have { tag, loan, region, bytes, rights, keys_total, first, keys };
                    other.say(&Message::Have(have));
                    imported.join().unwrap()
                });
                assert_eq!(import.is_ok(), good, "{import:?}");
                if let Ok(import) = import {
                    import.release().unwrap();
                    assert_eq!(other.hear(), Some(Message::GiveBack(loan)));
                } else {
                    for card in 0..cards {
                        assert_eq!(stage.moves(card, true), [Move::Error]);
                    }
                    assert_eq!(other.hear(), Some(Message::Bye));
                }
            }
        });
    }
}

/// Whoever is reached pairs cards by their addresses.
#[test]
fn cards_are_paired_by_their_networks() {
    let stage = Stage::new("networks", 2, 5);
    let gid = |network: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, network, 0, 1];
    for card in [0, 1] {
        let event = AsyncEvent::AddressesChanged(u32::from(card) + 1);
        stage.card.say(0, CardDone::Event(card, event));
        stage.looked_at(card, &[Address { gid_index: 3, gid: gid(card) }]);
    }
    let mut told = HELLO.told;
    (told[0][0], told[1][0], told[2][0]) = (gid(1), gid(7), gid(0));
    for (cards, picked) in [(2, [2, 0]), (1, [0, 1])] {
        let other = Other::reach(&stage.socket);
        other.say(&Message::Hello(Hello { cards, there: 3, told, ..HELLO }));
        let Some(Message::Welcome(hello)) = other.hear() else { panic!("no welcome") };
        let pairs = usize::from(hello.cards);
        assert_eq!((hello.cards, &hello.picked[..pairs]), (cards, &picked[..pairs]));
        assert_eq!((hello.told[0][0], hello.told[1][0]), (gid(0), gid(1)));
        // The lowest rail, by which atomics go, leads to the other's first card.
        let tokens: Vec<u64> = (0..cards)
            .rev()
            .map(|card| {
                let CardOrder { token, work } = stage.card.next();
                assert!(makes_pair(&work, card), "{work:?}");
                token
            })
            .collect();
        for token in tokens {
            stage.card.say(token, no_pair());
        }
        other.is_left("no rail");
    }
}

/// Whoever reaches another is told the pairs; both speak of them by their numbers, whatever the
/// cards' own are.
#[test]
fn what_is_lent_is_known_by_pairs() {
    let stage = Stage::new("by-pairs", 2, 5);
    let (region, wanted) = stage.export();
    let door = Door::open("by-pairs-door");
    let url = door.url();
    let session = stage.engine.connect().unwrap();
    thread::scope(|scope| {
        let connect = scope.spawn(|| session.connect_peer(&url).map(drop));
        let (other, hello) = door.greeted();
        assert_eq!((hello.cards, hello.there), (2, 2));
        other.say(&Message::Welcome(Hello { cards: 2, picked: [1, 0, 2, 3], ..HELLO }));
        for card in [1, 0] {
            let CardOrder { token, work } = stage.card.next();
            assert!(makes_pair(&work, card), "{work:?}");
            stage.makes(card, token);
        }
        for _ in 0..2 {
            let CardOrder { token, work } = stage.card.next();
            let CardWork::Pair { card, work } = work else { panic!("{work:?}") };
            assert!(matches!(work, PairWork::Endpoint { .. }), "{work:?}");
            stage.card.say(token, CardDone::Endpoint(endpoint(card)));
            let heard = other.hear();
            // Our card 1 is in pair 0, card 0 in pair 1.
            assert_eq!(heard, Some(Message::Joint(1 - card, ready(card, 0))));
        }
        other.say(&Message::Want(wanted));
        let CardOrder { token, work } = stage.card.next();
        let CardWork::Register { memory, .. } = work else { panic!("{work:?}") };
        stage.card.say(token, CardDone::Registered(registration(8, memory.bytes())));
        let heard = other.hear();
        let Some(Message::Have(Have { loan, keys, .. })) = heard else { panic!("{heard:?}") };
        let keys: Vec<_> = keys.iter().map(|(pair, key)| (*pair, key.rkey)).collect();
        assert_eq!(keys, [(0, 108), (1, 8)]);
        other.say(&Message::GiveBack(loan));
        assert_eq!(stage.card.deregisters(), 8);
        stage.settled(&other);
        drop(other);
        connect.join().unwrap().unwrap_err();
    });
    // Nobody plays the cards for its release.
    let _: ManuallyDrop<Region> = region;
}
