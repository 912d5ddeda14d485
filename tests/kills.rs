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
#[path = "kills/footprint.rs"]
mod footprint;
#[path = "kills/leave.rs"]
mod leave;
#[path = "kills/load.rs"]
mod load;
#[path = "kills/neighbour.rs"]
mod neighbour;
#[path = "kills/ops.rs"]
mod ops;
#[path = "kills/part.rs"]
mod part;
#[path = "kills/victim.rs"]
mod victim;

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use calls::{Activity, Ended, carry_on};
use chance::{Chance, Replay, Run};
use footprint::{Footprint, Weight};
use load::Tally;
use neighbour::{Neighbour, PEER_IDLE_OPS, Peer};
use part::{PATIENCE, Scratch, start_engine};
use verbring::Session;
use verbring::abi::Counter;
use verbring::client::Scope;
use verbring::host::Config;
use victim::Victim;

/// Not a claim of its own: what this binary does when it is started to play a part.
#[test]
fn a_part() {
    let Ok(part) = std::env::var(part::PART) else { return };
    let words: Vec<&str> = part.split('\n').collect();
    match words[0] {
        "engine" => part::play_engine(&words[1..]),
        "victim" => victim::play(&words[1..]),
        other => panic!("{other:?} is no part"),
    }
}

#[test]
fn f17_a_killed_client_leaves_nothing_and_its_neighbour_goes_on() {
    let run = Run::from_environment();
    let scratch = Scratch::new();
    let socket = scratch.socket();
    let engine = start_engine(&socket, 16 << 10);
    let observer = Session::connect(&socket).unwrap();
    let (neighbour, peer) = (Neighbour::start(&socket), Peer::start(&socket));
    neighbour.await_verified(100);
    neighbour.pause();
    let at_rest = |now: &Footprint| now.is_at_rest() && now.ops_in_flight == PEER_IDLE_OPS;
    let base = Footprint::await_such(engine.pid(), &observer, at_rest, "it must come to rest");
    let (mut weight, mut meetings) = (None, 0);
    for seed in run.seed..run.seed + run.kills {
        let _replay = Replay { test: "a_killed_client", seed };
        neighbour.resume();
        meetings += kill_client(seed, &socket, &neighbour, &peer);
        neighbour.pause();
        let returned = |now: &Footprint| *now == base;
        let what = format!("the engine must return to {base:#?}");
        Footprint::await_such(engine.pid(), &observer, returned, &what);
        // After the first one: what the allocator keeps for later is not a leak.
        weight.get_or_insert_with(|| Weight::take(engine.pid()));
    }
    let (first, last) = (weight.unwrap(), Weight::take(engine.pid()));
    let stats = observer.stats(Scope::Engine).unwrap();
    let (verified, met) = (neighbour.end(), peer.end());
    println!(
        "client killed {} times, seed {}: each time the engine was back at {base:?}; {} maps and \
         {} KiB resident at first, {} and {} at last; {} ops taken; a neighbour verified \
         {verified} ops; {met}",
        run.kills,
        run.seed,
        first.maps,
        first.resident_kib,
        last.maps,
        last.resident_kib,
        stats[Counter::Taken],
    );
    // Every victim has some MiB, so that a leak would be many times this.
    assert!(last.resident_kib < first.resident_kib + (16 << 10), "{first:?} became {last:?}");
    assert!(last.maps < first.maps + 64, "{first:?} became {last:?}");
    // To be killed breaks no rule.
    assert_eq!([stats[Counter::Faults], stats[Counter::Evicted]], [0, 0]);
    assert!(meetings == 0 || met.happened(), "no victim was met: {met}");
    drop(observer);
    assert!(engine.end().success(), "the engine came to harm");
}

/// Starts a client that is hard at work, and kills it. Returns 1 if a peer had part in that.
fn kill_client(seed: u64, socket: &Path, neighbour: &Neighbour, peer: &Peer) -> u64 {
    let mut chance = Chance::new(seed);
    let mut victim = Victim::start(socket, chance.next(), Peer::ARENA, peer.secret());
    let mut meetings = 0;
    if chance.percent(80) {
        if let Some(secret) = victim.await_begin() {
            peer.meet(victim.name(), secret);
            meetings = 1;
        }
        std::thread::sleep(Duration::from_micros(chance.below(6_000)));
    } else {
        // Somewhere between its birth and its first ops.
        std::thread::sleep(Duration::from_micros(chance.below(20_000)));
    }
    let before = neighbour.verified();
    victim.kill();
    neighbour.await_verified(before + 1_000);
    meetings
}

#[test]
fn f26_a_killed_engine_leaves_true_verdicts_and_no_call_hanging() {
    let run = Run::from_environment();
    let scratch = Scratch::new();
    let (mut tally, mut calls, mut ended, mut gone) = (Tally::default(), 0, 0, 0);
    let (least, mut kills) = (run.occurrences_min(), 0);
    let seen = |tally: &Tally| {
        tally.not_started >= least && tally.done >= least && tally.indeterminate >= least
    };
    // Ops in doubt come many at once, or not at all: some more kills, if there were too few.
    while kills < run.kills || (kills < 10 * run.kills && !seen(&tally)) {
        let seed = run.seed + kills;
        kills += 1;
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
        kills,
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
    assert!(seen(&tally), "fewer than {least} of a kind after {kills} kills");
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
    // In the act: a load kills the engine itself, right after it has submitted something.
    let mut in_the_act = (loads > 0 && chance.percent(50)).then_some(engine.pid());
    let by_load = in_the_act.is_some();
    for &activity in &activities {
        let (begin, end) = (begin.clone(), end.clone());
        let (socket, seed) = (socket.to_path_buf(), chance.next());
        let victim = in_the_act.take();
        std::thread::spawn(move || {
            let mut begin = Some(begin);
            let mut once = || {
                let Some(begin) = begin.take() else { return };
                if let Some(pid) = victim {
                    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
                }
                begin.send(activity).unwrap();
            };
            let ended = carry_on(activity, &socket, seed, &mut once);
            end.send((activity, ended)).unwrap();
        });
    }
    drop((begin, end));
    let engine = if by_load {
        Some(engine)
    } else {
        if chance.percent(80) {
            gather(&begun, activities.len(), "begin");
        }
        std::thread::sleep(Duration::from_micros(chance.below(6_000)));
        engine.kill();
        None
    };
    let ended = gather(&ends, activities.len(), "end");
    drop(engine);
    let tallies = ended.iter().filter_map(|(_, ended)| ended.tally);
    let in_doubt: u64 = tallies.map(|tally| tally.indeterminate).sum();
    assert!(in_doubt <= turn_ops_max(), "{in_doubt} ops are INDETERMINATE");
    ended.into_iter().map(|(_, ended)| ended).collect()
}

/// Ops that one turn may leave in doubt, over all rings: those whose completion it has reaped and
/// not yet published, as many again that it has posted in their place, and in each class one that
/// is posted in part and waits for credit.
fn turn_ops_max() -> u64 {
    2 * u64::from(Config::default().window_ops) + 3
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
