//! The event `started executing`: one for each op whose first part the fabric has taken, then and
//! not before, with what it waited for.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber, subscriber};

use super::cancel::held_under;
use super::script::{Script, Stage};
use super::world::{LIMITS, Pair, SENDER, STEP_NS, flush, nop};
use crate::abi::{Class, Opcode};
use crate::engine::Limits;

type Fields = BTreeMap<&'static str, String>;

/// A subscriber that keeps what ops tell.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<Fields>>>);

impl Subscriber for Ear {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "verbring::op"
    }

    fn event(&self, event: &Event<'_>) {
        assert_eq!(*event.metadata().level(), Level::TRACE);
        let mut seen = Seen::default();
        event.record(&mut seen);
        self.0.lock().unwrap().push(seen.0);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Seen(Fields);

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_string());
    }
}

impl Ear {
    /// What was heard since the last time.
    fn heard(&self) -> Vec<Fields> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Runs a test with an ear for what its own thread tells.
///
/// Where the engine asks whether anybody listens, the answer is kept, for all threads, by whichever
/// gets there first. Another test's thread has nobody; so the place is gone by before there is an
/// ear, which has all answers given anew.
fn listened(limits: Limits, test: impl FnOnce(&Ear, Stage, Pair<Script>)) {
    let (stage, mut pair) = held_under(limits, 16);
    let sqe = pair.write(0, 64);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    stage.release();
    pair.world.settle();
    let ear = Ear::default();
    subscriber::with_default(ear.clone(), || {
        let (stage, pair) = held_under(limits, 16);
        test(&ear, stage, pair);
    });
}

#[test]
fn each_op_tells_once_that_it_has_started_and_why_not_before() {
    listened(Limits { window_wrs: 1, ..LIMITS }, |ear, stage, mut pair| {
        // Three slices, one at a time.
        let first = pair.write_as(Class::Medium, 0, 600);
        pair.world.push(SENDER, first);
        pair.world.turn();
        let [event] = &ear.heard()[..] else { panic!("one event") };
        let has = |event: &Fields, field: &str, value: &str| {
            assert_eq!(event.get(field).map(String::as_str), Some(value), "{field} of {event:?}");
        };
        let record = pair.world.engine.ledger.id(0).0;
        has(event, "message", "started executing");
        has(event, "record", &record.to_string());
        for (field, value) in [("session", "0"), ("ring", "0"), ("origin", "0"), ("defers", "1")] {
            has(event, field, value);
        }
        for (field, value) in [("class", "medium"), ("queued_ns", "0"), ("wait", "none")] {
            has(event, field, value);
        }
        assert_eq!(event.len(), 9, "{event:?}");
        let second = pair.write_as(Class::High, 1024, 64);
        pair.world.push(SENDER, second);
        pair.world.push(SENDER, nop());
        let flush = flush(pair.near);
        pair.world.push(SENDER, flush);
        for _ in 0..5 {
            pair.world.turn();
        }
        assert_eq!(ear.heard(), Vec::<Fields>::new(), "no credit, and nothing of NOPs and FLUSHes");
        stage.complete_all();
        pair.world.turn();
        let [event] = &ear.heard()[..] else { panic!("one event") };
        has(event, "class", "high");
        has(event, "wait", "window_wrs");
        has(event, "queued_ns", &(5 * STEP_NS).to_string());
        assert_ne!(event["defers"], "0");
        stage.release();
        pair.world.settle();
        assert_eq!(ear.heard(), Vec::<Fields>::new(), "later slices tell nothing");
    });
}

#[test]
fn what_the_fabric_does_not_take_has_not_started() {
    listened(LIMITS, |ear, stage, mut pair| {
        // Four requests: of the first op, of the list's two pages, of the last.
        stage.take_only(&[0, 2, 1]);
        let page = crate::abi::Page { local_offset: 0, remote_offset: 0 };
        let sqes =
            [pair.write(0, 64), pair.list(Opcode::Writev, &[page; 2], 64), pair.write(1024, 64)];
        sqes.into_iter().for_each(|sqe| assert!(pair.world.try_push(SENDER, sqe).is_some()));
        let mut heard = Vec::new();
        for _ in 0..4 {
            pair.world.turn();
            heard.push(ear.heard().len());
        }
        assert_eq!(heard, [0, 2, 0, 1], "the list begins with its first page");
        stage.release();
        pair.world.settle();
        assert_eq!(ear.heard(), Vec::<Fields>::new());
    });
}
