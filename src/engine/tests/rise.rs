//! Priority is inherited: what a high op waits for goes as high, past a flood of low ops; over
//! edges, chains, JOINs and DRAINs; and each op rises twice at most.

use super::edges::join;
use super::script::{Script, Stage};
use super::world::{LIMITS, Pair, SENDER, World};
use crate::abi::{Class, SQE_DRAIN, SQE_HARDLINK, SQE_LINK, Sqe};
use crate::engine::Limits;
use crate::sched::{Mode, Policy};

/// One request at a time; a flood of low ops is queued before anything else.
fn flooded(mode: Mode) -> (Stage, Pair<Script>) {
    let policy = Policy { mode, ..Policy::STRICT };
    let limits = Limits { records: 256, window_wrs: 1, policy, ..LIMITS };
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 128);
    stage.hold();
    for at in 0..FLOOD {
        let sqe = pair.write_as(Class::Low, at * 64, 8);
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..20 {
        pair.world.turn();
    }
    assert_eq!((stage.held(), pair.world.engine.ledger.open_count()), (1, 60));
    (stage, pair)
}

const FLOOD: u64 = 60;

/// Offsets in the order of their posts, once everything has ended.
fn order(stage: &Stage, pair: &mut Pair<Script>) -> Vec<u64> {
    for _ in 0..400 {
        stage.complete_all();
        pair.world.turn();
    }
    pair.world.expect_rest();
    stage.plan().taken.iter().map(|request| request.remote_offset / 64).collect()
}

/// The places in that order of those beyond the flood.
fn places(stage: &Stage, pair: &mut Pair<Script>) -> Vec<usize> {
    let order = order(stage, pair);
    (FLOOD..).map_while(|offset| order.iter().position(|at| *at == offset)).collect()
}

/// Pushes ops behind the flood, and looks when they went; the first post was before them.
fn run(mode: Mode, make: impl Fn(&Pair<Script>) -> Vec<Sqe>) -> Vec<usize> {
    let (stage, mut pair) = flooded(mode);
    for sqe in make(&pair) {
        pair.world.push(SENDER, sqe);
    }
    for _ in 0..10 {
        pair.world.turn();
    }
    places(&stage, &mut pair)
}

fn at(pair: &Pair<Script>, class: Class, place: u64) -> Sqe {
    pair.write_as(class, (FLOOD + place) * 64, 8)
}

#[test]
fn s13_what_a_high_op_waits_for_goes_as_high_under_a_flood_of_low_ones() {
    for mode in [Mode::Strict, Mode::Weighted] {
        let found = run(mode, |pair| {
            let high = Sqe { edges: [1, 0], ..at(pair, Class::High, 1) };
            vec![at(pair, Class::Low, 0), high]
        });
        // In weighted mode low ones have their share of what goes between.
        let slack = if mode == Mode::Strict { 0 } else { 4 };
        assert!(found[0] <= 1 + slack && found[1] <= 2 + 2 * slack, "{mode}: {found:?}");
        // Nobody is high: they wait for all that was there before.
        let found = run(mode, |pair| {
            let low = Sqe { edges: [1, 0], ..at(pair, Class::Low, 1) };
            vec![at(pair, Class::Low, 0), low]
        });
        assert_eq!(found, [60, 61], "{mode}");
    }
}

#[test]
fn s13_a_chain_rises_from_its_end_over_edges_links_joins_and_drains() {
    let chain = |flag: u16, edge: u16| {
        move |pair: &Pair<Script>| {
            let mut sqes: Vec<Sqe> = (0..6)
                .map(|place| {
                    let class = if place == 5 { Class::High } else { Class::Low };
                    let edges = [if place > 0 { edge } else { 0 }, 0];
                    Sqe { flags: flag, edges, ..at(pair, class, place) }
                })
                .collect();
            sqes[5].flags = 0;
            sqes
        }
    };
    for (flag, edge) in [(0, 1), (0, 1 | 1 << 15), (SQE_LINK, 0), (SQE_HARDLINK, 0)] {
        let found = run(Mode::Strict, chain(flag, edge));
        assert_eq!(found, [1, 2, 3, 4, 5, 6], "{flag} {edge:#x}");
    }
    // Four that are low, a JOIN of a JOIN of them, and one that is high.
    let found = run(Mode::Strict, |pair| {
        let mut sqes: Vec<Sqe> = (0..4).map(|place| at(pair, Class::Low, place)).collect();
        let joined = |edges: &[u16]| Sqe { class: Class::Low as u8, ..join(edges) };
        sqes.push(joined(&[1, 2]));
        sqes.push(joined(&[1, 4, 5]));
        sqes.push(Sqe { edges: [1, 0], ..at(pair, Class::High, 4) });
        sqes
    });
    assert!(found[..4].iter().all(|place| (1..5).contains(place)), "{found:?}");
    assert_eq!(found[4], 5);
    // A high DRAIN lifts all that is before it, the flood too; one behind a low DRAIN lifts that.
    for (drain, after) in [(Class::High, Class::Low), (Class::Low, Class::High)] {
        let (stage, mut pair) = flooded(Mode::Strict);
        let sqe = Sqe { flags: SQE_DRAIN, ..at(&pair, drain, 0) };
        pair.world.push(SENDER, sqe);
        let sqe = at(&pair, after, 1);
        pair.world.push(SENDER, sqe);
        for _ in 0..10 {
            pair.world.turn();
        }
        let engine = &pair.world.engine;
        let open = (0..engine.ledger.capacity()).map(|slot| &engine.ledger[slot]);
        let open = open.filter(|record| record.state != crate::ledger::State::Free);
        let low = open.filter(|record| record.number <= FLOOD && record.class != Class::High);
        // The one that is posted whole need not.
        assert!(low.count() <= 1, "{drain:?} {after:?}");
        assert_eq!(places(&stage, &mut pair), [60, 61]);
    }
}

/// Low, then medium, then high: no op is moved more often than there are classes above its own.
#[test]
fn s13_an_op_rises_at_most_twice_and_says_what_was_asked_for() {
    let (stage, mut pair) = flooded(Mode::Strict);
    let low = at(&pair, Class::Low, 0);
    pair.world.push(SENDER, low);
    let class = |pair: &Pair<Script>| {
        let engine = &pair.world.engine;
        let all = (0..engine.ledger.capacity()).map(|slot| &engine.ledger[slot]);
        let mut ours = all.filter(|record| record.number == FLOOD);
        ours.find(|record| record.state != crate::ledger::State::Free).map(|it| it.class)
    };
    let mut seen = Vec::new();
    for (place, asked) in (1..).zip([
        Class::Low,
        Class::Medium,
        Class::Low,
        Class::Medium,
        Class::High,
        Class::Medium,
        Class::High,
    ]) {
        let edges = [u16::try_from(place).unwrap(), 0];
        let sqe = Sqe { edges, ..at(&pair, asked, place) };
        pair.world.push(SENDER, sqe);
        pair.world.turn();
        pair.world.turn();
        seen.push(class(&pair).unwrap());
    }
    use Class::{High, Low, Medium};
    assert_eq!(seen, [Low, Medium, Medium, Medium, High, High, High]);
    let why = super::why::why(&mut pair, SENDER, FLOOD).unwrap();
    assert_eq!(why.class, Some(Low), "what was asked for");
    let found = places(&stage, &mut pair);
    assert_eq!(found[0], 1);
}
