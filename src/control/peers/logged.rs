//! What the log says of a connection's life: each event that docs/architecture.md has in its table
//! and that the other engine, played here, can bring about, with its level and fields.
//!
//! The log is a process's, and other tests write to it: what counts is what the control thread of
//! this test's engine wrote.

use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::joint::Say;
use super::message::{Hello, Message, VERSION};
use super::reported::plays_to_the_end;
use super::scripted::{Door, HELLO, Other, no_pair};
use super::two_cards::{NUMBER, Stage};
use crate::control::{CardDone, CardOrder, CardWork, PairWork};
use crate::fabric::qp::provider::{Move, ProviderError};
use crate::fabric::verbs::AsyncEvent;

/// A line of the log.
#[derive(Clone, Debug)]
struct Line {
    thread: ThreadId,
    level: Level,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.push((field.name(), text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Keeps what the control says of peers.
struct Keeper;

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

impl Subscriber for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("verbring::control::peers")
    }

    fn event(&self, event: &Event<'_>) {
        let (thread, level) = (thread::current().id(), *event.metadata().level());
        let mut line = Line { thread, level, message: String::new(), fields: Vec::new() };
        event.record(&mut line);
        LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn keep() {
    static KEPT: OnceLock<()> = OnceLock::new();
    KEPT.get_or_init(|| tracing::subscriber::set_global_default(Keeper).expect("the only one"));
}

/// All that was said so far by whoever said a line of which this is true.
fn said(so: impl Fn(&Line) -> bool) -> Vec<Line> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = lines.iter().find(|line| so(line)).expect("it was said").thread;
    lines.iter().filter(|line| line.thread == thread).cloned().collect()
}

/// Fields of every line about a rail.
const RAIL: &[&str] = &["rail", "connection", "peer", "card", "device", "queue_pair"];

/// What must have been said, at which level, with which fields beside those of its kind.
const OF_CONNECTIONS: &[(&str, Level, &[&str])] = &[
    ("connecting to another engine", Level::INFO, &["connection", "url"]),
    ("greeting another engine", Level::INFO, &["connection", "peer"]),
    ("joining rails", Level::INFO, &["connection", "peer", "pid", "rails", "cards"]),
    ("connection up", Level::INFO, &["connection", "peer", "rails"]),
    ("connection interrupted", Level::WARN, &["connection", "peer"]),
    ("connection whole again", Level::INFO, &["connection", "peer"]),
    ("connection lost", Level::INFO, &["connection", "peer", "pid", "phase", "why"]),
    ("a lost peer is silent", Level::DEBUG, &["connection", "peer"]),
    ("connection forgotten", Level::INFO, &["connection", "peer"]),
    ("rails wait for an address", Level::WARN, &["card", "device", "error"]),
    ("the card says", Level::INFO, &["card", "event"]),
    ("a port's addresses have changed", Level::INFO, &["card", "device", "addresses"]),
];
const OF_RAILS: &[(&str, Level, &[&str])] = &[
    ("a rail begins", Level::DEBUG, &[]),
    ("rail to be connected", Level::DEBUG, &["epoch"]),
    ("rail connecting", Level::DEBUG, &["gid", "ways", "because"]),
    ("rail not connected", Level::WARN, &["step", "gid", "ways", "error"]),
    ("rail put off", Level::DEBUG, &["pause_ms"]),
    ("rail connected", Level::INFO, &["epoch", "gid", "address", "because", "rebuilt"]),
    ("rail broken", Level::WARN, &["epoch", "why"]),
    ("rail in doubt", Level::DEBUG, &["epoch"]),
    ("rail quiet at both ends", Level::DEBUG, &["epoch"]),
    ("rail to be reset", Level::DEBUG, &["epoch"]),
    ("rail reset", Level::DEBUG, &["epoch"]),
    ("rail gone", Level::INFO, &["epoch"]),
    ("rail over", Level::DEBUG, &[]),
];

/// A life ends at both ends.
fn ends_life(stage: &Stage, other: &Other, life: u32) {
    assert_eq!(stage.moves(0, true), [Move::Error]);
    let quiet = Message::Joint(0, Say::Quiet { life });
    assert_eq!(other.hear(), Some(quiet.clone()));
    other.say(&quiet);
    let moves = stage.moves(0, true);
    assert!(matches!(moves[..], [Move::Reset, Move::Init(_)]), "{moves:?}");
}

/// The card is asked where it is.
fn asked(stage: &Stage) -> u64 {
    let CardOrder { token, work } = stage.card.next();
    let CardWork::Pair { work: PairWork::Endpoint { .. }, .. } = work else { panic!("{work:?}") };
    token
}

/// A connection that we make: a rail that cannot be connected at first, is, fails, comes back and
/// is lost.
fn lives(stage: &Stage, url: &str, door: &Door) {
    let session = &stage.session;
    let other = thread::scope(|scope| {
        let connect = scope.spawn(|| session.connect_peer(url).unwrap());
        let (other, _) = door.greeted();
        other.say(&Message::Welcome(Hello { cards: 1, ..HELLO }));
        let tokens = stage.asked_for_pairs(1);
        stage.makes(0, tokens[0]);
        // There is no address, and then one that cannot be used.
        let hint = "it is only played";
        let none = ProviderError::NoAddress { port: 1, index: 0, hint };
        let token = asked(stage);
        stage.card.say(token, CardDone::Failed(none));
        stage.looked_at(0, &[]);
        let token = asked(stage);
        stage.card.say(token, no_pair());
        stage.looked_at(0, &[crate::control::Address { gid_index: 1, gid: [7; 16] }]);
        ends_life(stage, &other, 0);
        stage.joins(&other, 0, 1);
        connect.join().unwrap();
        other
    });
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(0, AsyncEvent::PairFailed(NUMBER)));
    ends_life(stage, &other, 1);
    stage.joins(&other, 0, 2);
    stage.settled(&other);
    stage.card.say(0, CardDone::Event(0, AsyncEvent::PairDrained(NUMBER)));
    stage.settled(&other);
    other.say(&Message::Bye);
    plays_to_the_end(stage, 1);
}

fn check(lines: &[Line], wanted: &[(&str, Level, &[&str])], kind: &[&str]) {
    let documented = include_str!("../../../docs/architecture.md");
    for (message, level, fields) in wanted {
        let alike: Vec<_> =
            lines.iter().filter(|it| it.message == *message && it.level == *level).collect();
        let has = |line: &&Line| {
            let has = |field: &&str| line.fields.iter().any(|(name, _)| name == field);
            // What is not known is left out.
            fields.iter().chain(kind).all(|field| has(field) || *field == "queue_pair")
        };
        assert!(alike.iter().copied().any(|line| has(&line)), "{message:?}, {level}: {alike:?}");
        assert!(documented.contains(message), "{message:?} is not in docs/architecture.md");
    }
}

#[test]
fn each_change_in_a_connections_life_is_told() {
    keep();
    let stage = Stage::new("logged", 1, 3);
    let door = Door::open("logged-door");
    let url = door.url();
    lives(&stage, &url, &door);
    // The queue pair is gone before the control thread has heard of it.
    let asker = stage.engine.connect().unwrap();
    let end = std::time::Instant::now() + crate::host::tests::PATIENCE;
    while asker.peers().unwrap().iter().any(|peer| peer.phase != crate::abi::PHASE_GONE) {
        assert!(std::time::Instant::now() < end, "it is not forgotten");
    }
    let ours = |line: &Line| line.fields.iter().any(|(name, of)| *name == "url" && *of == url);
    let lines = said(ours);
    check(&lines, OF_CONNECTIONS, &[]);
    check(&lines, OF_RAILS, RAIL);
    let text = |line: &&Line| line.message == "rail connected";
    let rebuilt = lines.iter().filter(text).map(|line| {
        let field = line.fields.iter().find(|(name, _)| *name == "rebuilt");
        field.expect("it is told").1.clone()
    });
    assert_eq!(rebuilt.collect::<Vec<_>>(), ["0", "1"]);
}

#[test]
fn a_refusal_is_one_line() {
    keep();
    let stage = Stage::new("logged-refusal", 1, 3);
    let door = crate::control::peers::scripted::path("logged-refusal");
    let mut bytes = Message::Hello(HELLO).to_bytes();
    let version = VERSION + 4_321;
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    let other = Other::reach(&door);
    other.say_bytes(&bytes);
    assert!(matches!(other.hear(), Some(Message::Refuse(_))));
    drop(stage.greet(1, 1));
    let of_it = |line: &Line| {
        line.fields.iter().any(|(_, text)| text.contains(&format!("version {version} ")))
    };
    let lines: Vec<Line> = said(of_it).into_iter().filter(of_it).collect();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((line.level, line.message.as_str()), (Level::WARN, "turning another engine away"));
}
