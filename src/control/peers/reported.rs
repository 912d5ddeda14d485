//! What operators are told of connections that tests play: phases, rails, and why the last one was
//! lost. The cards are played; the engine and its rails are real.

use std::net::Ipv6Addr;
use std::thread;
use std::time::{Duration, Instant};

use super::joint::Say;
use super::message::{Hello, Message};
use super::scripted::{Door, HELLO, no_pair};
use super::two_cards::{NUMBER, Stage};
use crate::abi;
use crate::client::{CardReport, PeerReport};
use crate::control::{Address, CardDone, CardOrder, CardWork, PairWork};
use crate::fabric::qp::provider::Move;
use crate::fabric::verbs::AsyncEvent;
use crate::host::tests::PATIENCE;
use crate::{Engine, Session};

/// The only row that PEERS tells.
fn row(session: &Session) -> PeerReport {
    let mut peers = session.peers().unwrap();
    assert_eq!(peers.len(), 1, "{peers:?}");
    peers.remove(0)
}

/// Asks until it is so: what the engine thread does is not waited for otherwise.
fn until(session: &Session, so: impl Fn(&PeerReport) -> bool) -> PeerReport {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = row(session);
        if so(&found) {
            return found;
        }
        assert!(Instant::now() < end, "in vain: {found:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn states(peer: &PeerReport) -> Vec<u8> {
    peer.rails.iter().map(|rail| rail.state).collect()
}

fn why(peer: &PeerReport) -> &str {
    peer.error.as_ref().map_or("", |(why, _)| why)
}

/// The cards do all that they are asked for, until so many queue pairs are destroyed.
pub(super) fn plays_to_the_end(stage: &Stage, mut pairs: u32) {
    while pairs > 0 {
        let CardOrder { token, work } = stage.card.next();
        let CardWork::Pair { work, .. } = work else { panic!("{work:?}") };
        match work {
            PairWork::Move { .. } => stage.card.say(token, CardDone::Moved),
            PairWork::Destroy { .. } => {
                stage.card.say(token, CardDone::Destroyed);
                pairs -= 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_connection_is_told_of_in_every_phase() {
    let stage = Stage::new("told", 2, 5);
    let asker = stage.engine.connect().unwrap();
    assert_eq!(asker.peers().unwrap(), []);
    let door = Door::open("told-door");
    let url = door.url();
    let other = thread::scope(|scope| {
        let connect = scope.spawn(|| stage.session.connect_peer(&url).unwrap());
        let (other, _) = door.greeted();
        let peer = row(&asker);
        assert_eq!((peer.ours, &peer.place, peer.phase), (true, &url, abi::PHASE_GREETING));
        assert_eq!((peer.boot_id, peer.pid, peer.heard), (None, None, None));
        assert!(peer.rails.is_empty() && peer.error.is_none() && peer.sessions == 0);

        other.say(&Message::Welcome(Hello { cards: 2, ..HELLO }));
        let tokens = stage.asked_for_pairs(2);
        let peer = row(&asker);
        let met = (peer.phase, peer.boot_id, peer.pid);
        assert_eq!(met, (abi::PHASE_JOINING, Some([1, 2]), Some(3)));
        assert!(peer.heard.is_some());
        let rails: Vec<_> = peer.rails.iter().map(|it| (it.rail, it.card, it.class)).collect();
        assert_eq!(rails, [(2, 0, None), (3, 1, None)]);
        assert_eq!(states(&peer), [abi::JOINT_CONNECTING; 2]);
        assert_eq!(peer.rails[0].queue_pair, None);

        for (card, token) in (0..).zip(tokens) {
            stage.makes(card, token);
            stage.joins(&other, card, 0);
        }
        connect.join().unwrap();
        other
    });
    stage.settled(&other);
    let peer = row(&asker);
    assert_eq!((peer.phase, peer.sessions, peer.imports, peer.loans), (abi::PHASE_UP, 1, 0, 0));
    assert_eq!(states(&peer), [abi::JOINT_UP; 2]);
    assert_eq!((peer.rails[1].queue_pair, peer.rails[1].rebuilt), (Some(NUMBER), 0));

    // A rail in doubt, in its new life, and back.
    stage.card.say(0, CardDone::Event(1, AsyncEvent::PairFailed(NUMBER)));
    assert_eq!(stage.moves(1, true), [Move::Error]);
    let quiet = Message::Joint(1, Say::Quiet { life: 0 });
    assert_eq!(other.hear(), Some(quiet.clone()));
    assert_eq!(states(&row(&asker)), [abi::JOINT_UP, abi::JOINT_QUIESCING]);
    other.say(&quiet);
    let moves = stage.moves(1, true);
    assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
    until(&asker, |peer| states(peer) == [abi::JOINT_UP, abi::JOINT_REBUILDING]);
    stage.joins(&other, 1, 1);
    stage.settled(&other);
    let peer = row(&asker);
    assert_eq!((states(&peer), peer.rails[1].rebuilt), (vec![abi::JOINT_UP; 2], 1));
    assert_eq!(peer.phase, abi::PHASE_UP);

    // Lost, and forgotten; why is remembered.
    other.say(&Message::Bye);
    let peer = until(&asker, |peer| peer.phase == abi::PHASE_LOST);
    assert_eq!((&peer.place, peer.sessions), (&url, 0));
    assert_eq!(states(&peer), [abi::JOINT_LOST; 2]);
    assert_eq!(why(&peer), "it has ended the connection");
    plays_to_the_end(&stage, 2);
    let peer = until(&asker, |peer| peer.phase == abi::PHASE_GONE);
    assert_eq!((peer.ours, &peer.place, peer.rails.len()), (true, &url, 0));
    assert_eq!((peer.boot_id, peer.pid), (Some([1, 2]), Some(3)));
    assert_eq!(why(&peer), "it has ended the connection");
}

#[test]
fn why_a_url_could_not_be_had_is_told_until_another_reason_takes_its_place() {
    let stage = Stage::new("failed", 1, 3);
    let asker = stage.engine.connect().unwrap();
    let door = Door::open("failed-door");
    let url = door.url();
    drop(door);
    stage.session.connect_peer(&url).unwrap_err();
    let peer = row(&asker);
    assert_eq!((peer.ours, &peer.place, peer.phase), (true, &url, abi::PHASE_GONE));
    assert!(why(&peer).contains("no engine listens"), "{peer:?}");

    let door = Door::open("failed-door");
    thread::scope(|scope| {
        let connect = scope.spawn(|| stage.session.connect_peer(&url).unwrap_err());
        let (other, _) = door.greeted();
        let peer = row(&asker);
        assert_eq!(peer.phase, abi::PHASE_GREETING);
        assert!(why(&peer).contains("no engine listens"), "of the last one: {peer:?}");
        drop(other);
        connect.join().unwrap();
    });
    let peer = until(&asker, |peer| peer.phase == abi::PHASE_GONE);
    assert_eq!(why(&peer), "it closed its socket");
}

#[test]
fn engines_that_have_come_are_told_of_too() {
    let stage = Stage::new("came", 1, 3);
    let asker = stage.engine.connect().unwrap();
    let (other, tokens) = stage.greet(1, 1);
    let peer = row(&asker);
    assert_eq!((peer.ours, peer.place.as_str(), peer.phase), (false, "", abi::PHASE_JOINING));
    assert_eq!((peer.boot_id, peer.pid), (Some(HELLO.boot_id), Some(HELLO.pid)));
    drop(other);
    let peer = until(&asker, |peer| peer.phase == abi::PHASE_LOST);
    assert_eq!(why(&peer), "it closed its socket");
    stage.card.say(tokens[0], no_pair());
    let peer = until(&asker, |peer| peer.phase == abi::PHASE_GONE);
    assert_eq!((peer.ours, why(&peer)), (false, "it closed its socket"));
    // It comes again: a process is known by its number.
    let (again, _) = stage.greet(1, 1);
    let peer = row(&asker);
    assert_eq!((peer.phase, why(&peer)), (abi::PHASE_JOINING, "it closed its socket"));
    drop(again);
}

/// What is lent is counted while it is out.
#[test]
fn loans_are_counted() {
    let stage = Stage::new("counted", 1, 3);
    let asker = stage.engine.connect().unwrap();
    let (region, wanted) = stage.export();
    let (other, tokens) = stage.greet(1, 1);
    stage.makes(0, tokens[0]);
    stage.joins(&other, 0, 0);
    stage.settled(&other);
    assert_eq!((row(&asker).loans, row(&asker).phase), (0, abi::PHASE_UP));
    let loan = stage.lends(&other, wanted, &[0]);
    assert_eq!(row(&asker).loans, 1);
    other.say(&Message::GiveBack(loan));
    assert_eq!(stage.card.deregisters(), 8);
    stage.settled(&other);
    assert_eq!(row(&asker).loans, 0);
    stage.let_go(region);
}

/// Cards are told of with their windows, and with the addresses that they have at the time.
#[test]
fn cards_are_told_of() {
    let stage = Stage::with("cards", 2, 5, |config| crate::host::Config {
        verbs_window_ops: 65,
        verbs_window_wrs: 257,
        verbs_window_bytes: 3 << 20,
        ..config
    });
    let cards = stage.session.cards().unwrap();
    let told: Vec<_> = cards.iter().map(|it| (it.card, it.name.as_str())).collect();
    assert_eq!(told, [(0, "card0 port 1"), (1, "card1 port 2")]);
    for card in &cards {
        let CardReport { window_ops, window_wrs, window_bytes, addresses, .. } = card;
        assert_eq!((*window_ops, *window_wrs, *window_bytes), (65, 257, 3 << 20));
        assert!(addresses.is_empty());
    }
    stage.card.say(0, CardDone::Event(1, AsyncEvent::AddressesChanged(2)));
    let texts = ["::ffff:10.0.0.7", "fd00::1", "fd00::2", "fd00::3", "fd00::4"];
    let there = texts.map(|text| text.parse::<Ipv6Addr>().unwrap());
    let found = there.map(|it| Address { gid_index: 1, gid: it.octets() });
    stage.looked_at(1, &found);
    let end = Instant::now() + PATIENCE;
    loop {
        let cards = stage.session.cards().unwrap();
        assert!(cards[0].addresses.is_empty());
        if cards[1].addresses == there[..4] {
            break;
        }
        assert!(Instant::now() < end, "in vain: {cards:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Without a card there are no peers, and that is an answer.
#[test]
fn an_engine_without_a_card_has_no_peers() {
    let engine = Engine::builder().spawn().unwrap();
    let session = engine.connect().unwrap();
    assert_eq!(session.peers().unwrap(), []);
    assert_eq!(session.cards().unwrap(), []);
}
