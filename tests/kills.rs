//! Claim: whoever is killed takes nobody along.
//!
//! A client that is killed at any moment leaves nothing behind in the engine: memory, descriptors
//! and records return to where they were, and a neighbour's verified ops go on without an error.
//!
//! An engine that is killed at any moment leaves no call of its clients hanging, and the verdict on
//! every op whose completion did not come is true: NOT_STARTED has not landed, DONE has, and
//! INDETERMINATE covers no more than one turn's ops. Truth is read off memory that outlives the
//! engine: both sides of every op are memfds of the client.
//!
//! Engines and killed clients are processes of their own (`kills/part.rs`). The moment is drawn by
//! chance after what is to be interrupted has begun, or, sometimes, while it has not. 20 kills of
//! each kind; `VERBRING_KILLS=200` for more. `VERBRING_SEED` has the same draws again.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "kills/calls.rs"]
mod calls;
#[path = "kills/chance.rs"]
mod chance;
#[path = "kills/load.rs"]
mod load;
#[path = "kills/ops.rs"]
mod ops;
#[path = "kills/part.rs"]
mod part;

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use calls::{Activity, Ended, carry_on};
use chance::{Chance, Replay, Run};
use load::Tally;
use part::{PATIENCE, Scratch, start_engine};

/// Not a claim of its own: what this binary does when it is started to play a part.
#[test]
fn a_part() {
    let Ok(part) = std::env::var(part::PART) else { return };
    let words: Vec<&str> = part.split('\n').collect();
    match words[0] {
        "engine" => part::play_engine(&words[1..]),
        other => panic!("{other:?} is no part"),
    }
}

#[test]
fn a_killed_engine_leaves_true_verdicts_and_no_call_hanging() {
    let run = Run::from_environment();
    let scratch = Scratch::new();
    let (mut tally, mut calls, mut ended, mut gone) = (Tally::default(), 0, 0, 0);
    for seed in run.seed..run.seed + run.kills {
        let test = "a_killed_engine";
        let _replay = Replay { test, seed };
        for end in kill_engine(seed, &scratch.socket()) {
            tally.add(&end.tally.unwrap_or_default());
            calls += end.calls;
            ended += 1;
            gone += u64::from(end.gone);
        }
    }
    println!(
        "engine killed {} times, seed {}: {} ops on {} rings, {} completed, {} NOT_STARTED, {} \
         DONE, {} INDETERMINATE (at most {} a ring; nothing, part, all landed: {:?}); {ended} \
         clients went on until then, {calls} calls, and ended with an error, {gone} with \
         \"engine gone\"",
        run.kills,
        run.seed,
        tally.ops,
        tally.rings,
        tally.completed,
        tally.not_started,
        tally.done,
        tally.indeterminate,
        tally.indeterminate_max,
        tally.in_doubt,
    );
    let least = run.occurrences_min();
    assert!(tally.not_started >= least && tally.done >= least && tally.indeterminate >= least);
}

/// Starts an engine, sets clients to work, and kills it.
fn kill_engine(seed: u64, socket: &Path) -> Vec<Ended> {
    let mut chance = Chance::new(seed);
    let slice_bytes = chance.one_of(&[4 << 10, 16 << 10, 128 << 10]);
    let engine = start_engine(socket, slice_bytes);
    let loads = chance.one_of(&[2, 2, 2, 1, 1, 0]);
    let mut activities: Vec<Activity> =
        (0..loads).map(|_| chance.one_of(&Activity::LOADS)).collect();
    let callers = chance.below(3);
    activities.extend((0..callers).map(|_| chance.one_of(&Activity::CALLS)));

    let (begin, begun) = channel();
    let (end, ends) = channel();
    for &activity in &activities {
        let (begin, end) = (begin.clone(), end.clone());
        let (socket, seed) = (socket.to_path_buf(), chance.next());
        std::thread::spawn(move || {
            let mut begin = Some(begin);
            let mut once = || {
                if let Some(begin) = begin.take() {
                    begin.send(activity).unwrap();
                }
            };
            let ended = carry_on(activity, &socket, seed, &mut once);
            end.send((activity, ended)).unwrap();
        });
    }
    drop((begin, end));
    if chance.percent(80) {
        gather(&begun, activities.len(), "begin");
    }
    std::thread::sleep(Duration::from_micros(chance.below(6_000)));
    engine.kill();
    gather(&ends, activities.len(), "end").into_iter().map(|(_, ended)| ended).collect()
}

/// Waits for as many messages as there are clients.
fn gather<T: std::fmt::Debug>(from: &Receiver<T>, count: usize, what: &str) -> Vec<T> {
    let mut got = Vec::new();
    while got.len() < count {
        match from.recv_timeout(PATIENCE) {
            Ok(one) => got.push(one),
            Err(why) => panic!("{} of {count} clients did {what} ({why}): {got:?}", got.len()),
        }
    }
    got
}
