//! Nobody is crowded out: neither by a flood, nor by many sessions of one user, nor by large ops.

use crate::abi::Class;
use crate::ids::SessionId;
use crate::random::Random;
use crate::sched::{Mode, Policy, Scheduler, Shape};
use crate::seeds::each_seed;

use super::stock::{Stock, Want};

/// Bytes each session is served in `ops` ops, all of them having some at all times.
fn served(stock: &mut Stock, sizes: &[u32], ops: u32) -> Vec<u64> {
    let want = |session: usize| {
        let bytes = sizes[session];
        Want { session: u32::try_from(session).unwrap(), ..Want::of(Class::Medium, bytes) }
    };
    for session in 0..sizes.len() {
        (0..2).for_each(|_| stock.add(want(session), 0));
    }
    let mut bytes = vec![0; sizes.len()];
    for _ in 0..ops {
        let slot = stock.scheduler.first(&stock.ledger).unwrap();
        let session = stock.ledger[slot].session.0 as usize;
        stock.serve(slot);
        bytes[session] += u64::from(sizes[session]);
        stock.add(want(session), 0);
    }
    bytes
}

/// Jain's index in thousandths: 1,000 if all have the same.
fn jain(shares: &[u64]) -> u128 {
    let sum: u128 = shares.iter().map(|&share| u128::from(share)).sum();
    let squares: u128 = shares.iter().map(|&share| u128::from(share).pow(2)).sum();
    sum.pow(2) * 1_000 / (squares * shares.len() as u128)
}

fn stock(mode: Mode, sessions: u32, records: u32) -> Stock {
    let shape = Shape { sessions, peers: 1, window_bytes: 64 << 20 };
    Stock::new(&Policy { mode, ..Policy::DEFAULT }, shape, records)
}

#[test]
fn s18_flows_of_all_sizes_of_ops_share_evenly() {
    each_seed(5, |seed| {
        let mut random = Random::new(seed);
        for (mode, count) in [(Mode::Weighted, 40_u32), (Mode::Strict, 40), (Mode::Weighted, 1_000)]
        {
            let sizes: Vec<u32> =
                (0..count).map(|_| random.pick(&[512, 4 << 10, 64 << 10])).collect();
            let mut stock = stock(mode, count, 2 * count);
            let shares = served(&mut stock, &sizes, 2_000 * count.min(100));
            assert!(jain(&shares) >= 950, "{mode}, {count} flows: {}", jain(&shares));
        }
        // As they come, the small ones get next to nothing.
        let sizes = [512, 512, 4 << 10, 1 << 20];
        let shares = served(&mut stock(Mode::Fifo, 4, 8), &sizes, 2_000);
        assert!(jain(&shares) < 500);
    });
}

/// A flow that has a thousand ops queued gets what a flow gets that has two.
#[test]
fn s18_a_flood_gets_the_share_of_one() {
    let mut stock = stock(Mode::Weighted, 10, 1_100);
    (0..1_000).for_each(|_| stock.add(Want::of(Class::Medium, 4_096), 0));
    let shares = served(&mut stock, &[4_096; 10], 10_000);
    assert!(jain(&shares) >= 999, "{shares:?}");
}

#[test]
fn s18_a_hundred_sessions_of_one_user_get_the_share_of_one() {
    for (weight, must) in [(1, 500), (3, 750)] {
        let mut stock = stock(Mode::Weighted, 101, 202);
        (0..100).for_each(|session| stock.scheduler.adopt(SessionId(session), 7, weight));
        stock.scheduler.adopt(SessionId(100), 8, 1);
        let shares = served(&mut stock, &[4_096; 101], 40_000);
        let (many, one) = (shares[..100].iter().sum::<u64>(), shares[100]);
        let part = many * 1_000 / (many + one);
        assert!(part.abs_diff(must) <= 5, "weight {weight}: {part}");
        assert!(jain(&shares[..100]) >= 990);
    }
}

/// The same of peers: a session with work for many is served as one with work for one.
#[test]
fn a_session_with_many_peers_gets_the_share_of_one() {
    let shape = Shape { sessions: 2, peers: 9, window_bytes: 64 << 20 };
    let mut stock = Stock::new(&Policy::DEFAULT, shape, 40);
    let want = |session: u32, line: u16| Want {
        session,
        line,
        ..Want::of(Class::Medium, 4_096 << (line % 3))
    };
    let flows: Vec<(u32, u16)> = (0..8).map(|line| (0, line)).chain([(1, 8)]).collect();
    for &(session, line) in flows.iter().chain(&flows) {
        stock.add(want(session, line), 0);
    }
    let (mut sessions, mut lines) = ([0_u64; 2], [0_u64; 9]);
    for _ in 0..20_000 {
        let slot = stock.scheduler.first(&stock.ledger).unwrap();
        let (session, line) = (stock.ledger[slot].session.0, stock.ledger[slot].line);
        let bytes = u64::from(stock.ledger[slot].op.bytes);
        stock.serve(slot);
        stock.add(want(session, line), 0);
        sessions[session as usize] += bytes;
        lines[usize::from(line)] += bytes;
    }
    assert!(jain(&sessions) >= 999, "{sessions:?}");
    assert!(jain(&lines[..8]) >= 999, "{lines:?}");
}

/// S9: the engine's own work and that of users alternate by bytes, and never across classes.
#[test]
fn s9_origins_alternate_in_a_class() {
    // A quantum is an eighth of the window: one op of the larger kind.
    let shape = Shape { sessions: 1, peers: 1, window_bytes: 8 * 4_096 };
    let mut stock = Stock::new(&Policy::STRICT, shape, 64);
    for (class, origin, bytes) in
        [(Class::Low, 1, 1_024), (Class::High, 0, 4_096), (Class::High, 1, 1_024)]
    {
        (0..8).for_each(|_| stock.add(Want { origin, ..Want::of(class, bytes) }, 0));
    }
    let order: Vec<(Class, u8)> = std::iter::from_fn(|| {
        let slot = stock.scheduler.first(&stock.ledger)?;
        let record = &stock.ledger[slot];
        let what = (record.op.class, record.origin);
        stock.serve(slot);
        Some(what)
    })
    .collect();
    assert_eq!(order.len(), 24);
    assert!(order[..16].iter().all(|(class, _)| *class == Class::High), "{order:?}");
    // Four ops of 1 KiB weigh as much as one of 4 KiB.
    let internal = order[..10].iter().filter(|(_, origin)| *origin == 1).count();
    assert!((7..=8).contains(&internal), "{order:?}");
}

/// The least there is: a scheduler for one session.
#[test]
fn one_session_is_enough() {
    for mode in Mode::ALL {
        let shape = Shape { sessions: 1, peers: 1, window_bytes: 1 };
        let scheduler = Scheduler::new(&Policy { mode, ..Policy::DEFAULT }, shape);
        assert!(scheduler.is_empty() && scheduler.queued() == 0 && scheduler.parked() == 0);
    }
}
