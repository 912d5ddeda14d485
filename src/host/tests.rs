//! Regions of an engine with a card, whose thread is played by the test: registered before they
//! are live, let go after the core has forgotten them, and refused where they cannot be.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::link::Answer;
use super::*;
use crate::abi::{Counter, errno};
use crate::client::{RingOptions, Scope, Stats};
use crate::control::{CardAnswer, CardDone, CardOrder, CardWork, PairWork, Registered};
use crate::fabric::qp::CardKeys;
use crate::fabric::qp::provider::{Access, Caps, Key, PathSettings, ProviderError};
use crate::fabric::verbs::hollow::Hollow;
use crate::shm::Mapping;
use crate::{Nop, Rights};

/// Only a failure ever waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The card's thread, as a test plays it.
pub(crate) struct Played {
    ordered: Receiver<CardOrder>,
    said: Sender<CardAnswer>,
    link: Arc<Link>,
}

impl Played {
    pub(crate) fn next(&self) -> CardOrder {
        self.ordered.recv_timeout(PATIENCE).expect("an order in time")
    }

    pub(crate) fn say(&self, token: u64, done: CardDone) {
        self.said.send(CardAnswer { token, done }).unwrap();
        self.link.kick_control();
    }

    /// A rail in its first life says by whose fault it failed. What it wishes it had wished before,
    /// so that nothing else comes of it.
    pub(crate) fn blames(&self, rail: u16, region: u32) {
        let (epoch, ask, offender) = (1, qp::Ask::Connect, Some(region));
        let wish = qp::Wish { rail, epoch, ask, barren: false, offender };
        self.link.answers.push(Answer::Wish(wish)).unwrap();
        self.link.kick_control();
    }

    /// The next order, which must be to register; it is answered.
    pub(crate) fn registers(&self, id: u32) -> Arc<Mapping> {
        let CardOrder { token, work } = self.next();
        let CardWork::Register { memory, access } = work else { panic!("{work:?}") };
        assert_eq!(access, Access { write: false, read: false, atomics: false });
        self.say(token, CardDone::Registered(registration(id, memory.bytes())));
        memory
    }

    /// The next order, which must be to end a registration; it is answered.
    pub(crate) fn deregisters(&self) -> u32 {
        let CardOrder { token, work } = self.next();
        let CardWork::Deregister { id } = work else { panic!("{work:?}") };
        self.say(token, CardDone::Deregistered);
        id
    }
}

/// By every card.
pub(crate) fn registration(id: u32, bytes: u64) -> Registered {
    let mut keys = CardKeys::default();
    for card in [0, 1] {
        let number = 100 * u32::from(card) + id;
        let key = Key { offset: 0, bytes, address: 0x1000, lkey: number, rkey: number };
        keys.put(card, Box::new([key]));
    }
    Registered { id, keys }
}

fn engine() -> (Engine, Played) {
    played(Config::default(), 2)
}

/// An engine with a card that the test plays, whose fabric has no rails.
pub(crate) fn played(config: Config, rails_max: u16) -> (Engine, Played) {
    played_over(config, rails_max, 1, None)
}

/// Sizes of the queue pairs of a card that is played.
pub(crate) const CAPS: Caps = Caps { sends: 8, receives: 8, inline_bytes: 16, ranges: 1 };

/// An engine with cards that the test plays, whose fabric has rails that carry nothing.
pub(crate) fn played_cards(config: Config, rails_max: u16, cards: &Hollow) -> (Engine, Played) {
    let limits = qp::Config {
        fabric: crate::abi::FABRIC_VERBS,
        rails_max,
        depth: 4,
        receives: 4,
        inline_bytes: 16,
        signal_every: 1,
        message_bytes_max: 1 << 30,
        merge_bytes_max: 0,
        regions_max: config.regions_max,
        attempts_max: 3,
        stuck_ns: 1 << 40,
        grace_ns: 1_000_000,
        drain_ns: 1 << 40,
        lost_ns: 1 << 40,
        recovery: qp::Recovery::DEFAULT,
    };
    let rails = Rails::new(cards.provider(), limits);
    played_over(config, rails_max, cards.count(), Some(rails))
}

fn played_over(
    config: Config,
    rails_max: u16,
    cards: u8,
    rails: Option<Rails<VerbsProvider>>,
) -> (Engine, Played) {
    let config = Config { verbs: VerbsUse::Off, ..config };
    let link = Arc::new(Link::new(config.rings_max).unwrap());
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let (orders, ordered) = channel();
    let (said, answers) = channel();
    let card = Card {
        orders: CardOrders::new(orders, bell),
        answers,
        paths: (1..=cards)
            .map(|port| [PathSettings { port, ..PathSettings::DEFAULT }; 3])
            .collect(),
        addresses: Vec::new(),
        pinned: !config.verbs_gid.is_empty(),
        caps: CAPS,
        receives: 4,
        rails_max,
        lease_ns: u64::from(config.verbs_lease_ms) * 1_000_000,
        names: (0..cards).map(|card| format!("card{card} port {}", card + 1)).collect(),
    };
    let played = Played { ordered, said, link: Arc::clone(&link) };
    let mut engine = Engine {
        config,
        verbs: Vec::new(),
        listening: None,
        link,
        asks: channel().0,
        threads: Vec::new(),
    };
    engine.launch(rails, Some(card), None::<fn()>).unwrap();
    // The rail back to this host: it stays on its way.
    let CardWork::Pair { card: 0, work: PairWork::Create { .. } } = played.next().work else {
        panic!("not a queue pair")
    };
    (engine, played)
}

fn uses(stats: &Stats) -> (u64, u64) {
    (stats[Counter::Regions], stats[Counter::RegionBytes])
}

#[test]
fn a_region_is_registered_before_it_is_live_and_let_go_after_its_end() {
    let (engine, card) = engine();
    let session = engine.connect().unwrap();
    thread::scope(|scope| {
        let alloc = scope.spawn(|| session.alloc(8192).unwrap());
        let memory = card.registers(7);
        assert_eq!(memory.bytes(), 8192);
        let region = alloc.join().unwrap();
        region.export("known", Rights::READ).unwrap();
        assert_eq!(uses(&session.stats(Scope::Session).unwrap()), (1, 8192));
        let release = scope.spawn(|| region.release().unwrap());
        assert_eq!(card.deregisters(), 7);
        release.join().unwrap();
        assert_eq!(uses(&session.stats(Scope::Session).unwrap()), (0, 0));
        assert_eq!(Arc::strong_count(&memory), 1, "nobody else has it any more");
    });
}

#[test]
fn memory_that_cannot_be_locked_is_refused_and_charged_to_nobody() {
    let (engine, card) = engine();
    let session = engine.connect().unwrap();
    thread::scope(|scope| {
        let alloc = scope.spawn(|| session.alloc(1 << 20).unwrap_err());
        let CardOrder { token, .. } = card.next();
        let hint = "raise the limit of locked memory";
        let error = ProviderError::Os { call: "ibv_reg_mr", errno: errno::ENOMEM, hint };
        card.say(token, CardDone::Failed(error));
        let error = alloc.join().unwrap();
        let refusal = error.refusal().expect("an answer");
        assert_eq!(refusal.errno, errno::ENOMEM);
        for words in ["1048576 bytes", "card0 port 1", hint, "memlock", "verbs = off"] {
            assert!(refusal.text.contains(words), "{}", refusal.text);
        }
        assert_eq!(uses(&session.stats(Scope::Session).unwrap()), (0, 0));
        // The session goes on.
        let alloc = scope.spawn(|| session.alloc(4096).unwrap());
        drop(card.registers(8));
        let region = alloc.join().unwrap();
        let release = scope.spawn(|| region.release().unwrap());
        assert_eq!(card.deregisters(), 8);
        release.join().unwrap();
    });
}

#[test]
fn a_region_whose_session_ended_meanwhile_is_let_go() {
    let (engine, card) = engine();
    let session = engine.connect().unwrap();
    thread::scope(|scope| {
        // It asks, and is gone before the card has answered.
        let asker = scope.spawn(move || {
            let region = session.alloc(4096);
            drop(session);
            region.map(drop)
        });
        let CardOrder { token, work } = card.next();
        let CardWork::Register { memory, .. } = work else { panic!("{work:?}") };
        let _ = engine.asks.send(Ask::Shutdown);
        engine.link.kick_control();
        // Sessions end now, this one too; the answer comes after that.
        assert!(asker.join().unwrap().is_err());
        card.say(token, CardDone::Registered(registration(9, memory.bytes())));
        assert_eq!(card.deregisters(), 9);
    });
    engine.shutdown().unwrap();
}

#[test]
fn a_card_whose_thread_is_gone_refuses_and_the_engine_goes_on() {
    let (engine, card) = engine();
    let session = engine.connect().unwrap();
    let link = Arc::clone(&card.link);
    drop(card);
    link.kick_control();
    let error = session.alloc(4096).unwrap_err();
    assert_eq!(error.refusal().map(|refusal| refusal.errno), Some(errno::ENOMEM), "{error}");
    let mut ring = session.ring(RingOptions::new(8, 8)).unwrap();
    ring.push(Nop::new()).unwrap();
    ring.submit_and_wait(1, None).unwrap();
    assert!(ring.reap().unwrap().is_some());
}
