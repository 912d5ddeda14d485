//! The fate table, as a client would find it if the engine died between any two of its steps:
//! marked posted before the post, accepted before `sq_head` covers it, freed only after `cq_tail`
//! covers its CQE.

use std::sync::Arc;

use super::script::{Mood, Script, Stage};
use super::watched::{Watch, entries};
use super::world::{LIMITS, Pair, SENDER, World, cancel, flush, nop};
use crate::abi::{CANCEL_BY_NUMBER, FATE_POSTED, SQE_SKIP_SUCCESS, Sqe};
use crate::engine::Limits;
use crate::ring::Heap;
use crate::seeds::{Random, each_seed};

const WIDE: Limits = Limits { window_wrs: 8, window_bytes: 4096, ..LIMITS };

/// A pair whose third ring is watched at every access of the engine.
fn watched(entries: u32) -> (Stage, Pair<Script>, usize, Watch) {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(WIDE, stage.fabric(WIDE)), 16);
    let session = pair.world.clients[SENDER].session;
    let watch = Watch::default();
    let client = pair.world.ring_of(session, entries, entries, false, Some(watch.clone()));
    (stage, pair, client, watch)
}

/// The remote offset of SQE `number` says which op a request belongs to.
fn offset(number: u64) -> u64 {
    (number * 64) % (32 << 10)
}

/// At the moment of every post, all ops of the batch are marked.
fn check_posts(stage: &Stage, watch: &Watch, heap: &Arc<Heap>) {
    let (watch, heap) = (watch.clone(), Arc::clone(heap));
    stage.plan().on_post = Some(Box::new(move |batch| {
        watch.look(&heap);
        let posted: Vec<u64> = entries(&heap)
            .into_iter()
            .filter_map(|(number, stage)| (stage == FATE_POSTED).then_some(offset(number)))
            .collect();
        for request in batch {
            let at = request.remote_offset / 64 * 64;
            assert!(posted.contains(&at), "posted, but not marked: {request:?} {posted:?}");
        }
    }));
}

fn check_polls(stage: &Stage, watch: &Watch, heap: &Arc<Heap>) {
    let (watch, heap) = (watch.clone(), Arc::clone(heap));
    stage.plan().on_poll = Some(Box::new(move || watch.look(&heap)));
}

#[test]
fn fate_entries_tell_the_truth_between_any_two_steps() {
    each_seed(60, |seed| {
        let mut random = Random::new(seed);
        let size = random.pick(&[2, 4, 16]);
        let (stage, mut pair, client, watch) = watched(size);
        let heap = Arc::clone(&pair.world.clients[client].heap);
        check_posts(&stage, &watch, &heap);
        check_polls(&stage, &watch, &heap);
        let mood = Mood {
            random: Random::new(random.next()),
            partial: 50,
            prompt: 50,
            broken: 5,
            stale: 5,
            old: Vec::new(),
        };
        stage.plan().mood = Some(mood);
        for _ in 0..200 {
            for _ in 0..random.below(6) {
                submit(&mut random, &mut pair, client, &watch);
            }
            pair.world.turn();
            if random.chance(60) {
                pair.world.pop(client);
            }
        }
        if let Some(mood) = stage.plan().mood.as_mut() {
            (mood.partial, mood.prompt) = (0, 100);
        }
        for _ in 0..100 {
            pair.world.turn();
            pair.world.pop(client);
        }
        pair.world.expect_rest();
        assert_eq!(entries(&heap), [], "entries at rest");
        assert!(watch.looks() > 1_000, "looked {} times", watch.looks());
    });
}

fn submit(random: &mut Random, pair: &mut Pair<Script>, client: usize, watch: &Watch) {
    if pair.world.clients[client].end.room() == 0 {
        return;
    }
    let number = pair.world.clients[client].end.pushed();
    let far = Sqe { remote_offset: offset(number), ..pair.write(0, 1 + random.below32(64)) };
    let mut sqe = match random.below(10) {
        0 => nop(),
        1 => cancel(CANCEL_BY_NUMBER, number.saturating_sub(2)),
        2 => flush(pair.near),
        3 => Sqe { opcode: 99, ..nop() },
        4 => Sqe { arg: [3, 0], ..far },
        _ => far,
    };
    // A NOP has no entry: it is done where it begins, and reads as done until its CQE is seen.
    if sqe.opcode == nop().opcode {
        watch.silent(number);
    }
    if random.chance(30) {
        sqe.flags |= SQE_SKIP_SUCCESS;
        watch.silent(number);
    }
    pair.world.push(client, sqe);
}
