//! Claim: the stages of an op add up to what its client has measured, and every wait has a reason.
//!
//! Four clients drive one engine with ops of all classes, of 64 bytes to 256 KiB, more than its
//! window holds; each notes when it published an SQE and when it had popped the CQE, by the clock
//! that records are in. Nothing is asserted that depends on speed: the engine reads the clock once
//! a turn, so that an op may be published in the turn that took it, but not in a later one. All
//! times in records are such readings; the next one after an op's intake is of a later turn.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use verbring::abi::{
    Class, Cqe, Opcode, Sqe, WAIT_CLASS, WAIT_LANE, WAIT_NONE, WAIT_TURN, WAIT_WINDOW_BYTES,
    WAIT_WINDOW_OPS, WAIT_WINDOW_WRS,
};
use verbring::client::LedgerEntry;
use verbring::host::{Config, VerbsUse};
use verbring::{Engine, Rights, RingOptions, Session};

const CLIENTS: u64 = 4;
/// Of each client: together 10^5.
const OPS: u64 = 25_000;
/// In flight of each client.
const DEPTH: u64 = 48;
/// Bytes of the largest op.
const LARGEST: u32 = 256 << 10;

/// Reasons that an op may have on this host.
const REASONS: [u16; 6] =
    [WAIT_LANE, WAIT_TURN, WAIT_CLASS, WAIT_WINDOW_OPS, WAIT_WINDOW_BYTES, WAIT_WINDOW_WRS];

/// What a client measured of one op.
struct Seen {
    published_ns: u64,
    popped_ns: u64,
    cqe: Cqe,
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(Duration::from(now).as_nanos()).unwrap()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

/// Runs one client's ops; what it saw of each, with the record that is left of it.
fn run(session: &Session, client: u64) -> Vec<(Seen, LedgerEntry)> {
    let region = session.alloc(2 * u64::from(LARGEST)).unwrap();
    let name = format!("stages {client}");
    let secret = region.export(&name, Rights::ALL).unwrap();
    let import = session.import(&name, None, &secret).unwrap();
    let mut ring = session.raw_ring(RingOptions::new(64, 64)).unwrap();
    let (mut published, mut seen) = (Vec::new(), Vec::new());
    while seen.len() < usize::try_from(OPS).unwrap() {
        let from = published.len() as u64;
        let to = OPS.min(seen.len() as u64 + DEPTH);
        for number in from..to {
            let draw = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let opcode = if draw & 1 == 0 { Opcode::Write } else { Opcode::Read };
            let sqe = Sqe {
                opcode: opcode as u8,
                class: Class::ALL[usize::try_from(draw / 2 % 3).unwrap()] as u8,
                user_data: number,
                local_region: region.id(),
                remote_region: import.id(),
                remote_offset: LARGEST.into(),
                bytes: 64 << (draw / 8 % 13),
                ..Sqe::default()
            };
            ring.push(sqe).unwrap();
        }
        let published_ns = now_ns();
        ring.submit();
        published.extend((from..to).map(|_| published_ns));
        ring.wait(1, None).unwrap();
        while let Some(cqe) = ring.pop().unwrap() {
            let published_ns = published[usize::try_from(cqe.user_data).unwrap()];
            seen.push(Seen { published_ns, popped_ns: now_ns(), cqe });
        }
    }
    let records = session.last_records().into_iter();
    let mut records: BTreeMap<u64, LedgerEntry> =
        records.map(|entry| (entry.user_data, entry)).collect();
    let with_record = |seen: Seen| {
        let entry = records.remove(&seen.cqe.user_data).expect("an entry for each completion");
        (seen, entry)
    };
    seen.into_iter().map(with_record).collect()
}

/// What holds of each op, whatever the load. `turns` are readings of the engine's clock.
fn check(seen: &Seen, entry: &LedgerEntry, turns: &[u64]) {
    let Seen { published_ns, popped_ns, cqe } = seen;
    assert!(cqe.res >= 0 && cqe.record == entry.record, "{cqe:?} {entry:?}");
    let queued_ns = nanos(entry.queued.expect("it was posted"));
    let service_ns = nanos(entry.service().unwrap());
    let (taken_ns, ended_ns) = (entry.taken_ns, entry.ended_ns());
    let later = turns.partition_point(|turn| *turn <= taken_ns);
    let next_ns = turns.get(later).copied().unwrap_or(u64::MAX);
    assert!(*published_ns <= next_ns, "taken before it was published: {entry:?}, {published_ns}");
    assert!(ended_ns <= *popped_ns, "popped before it was over: {entry:?}, {popped_ns}");
    assert_eq!(taken_ns + queued_ns + service_ns, ended_ns, "{entry:?}");
    // So the stages are what the client measured, one turn being all that they may overlap.
    let before = i128::from(taken_ns) - i128::from(*published_ns);
    let after = i128::from(*popped_ns) - i128::from(ended_ns);
    let measured = i128::from(*popped_ns) - i128::from(*published_ns);
    assert_eq!(before + i128::from(queued_ns + service_ns) + after, measured);
    assert_eq!(u64::from(cqe.queued), queued_ns / 16, "{cqe:?} {entry:?}");
    assert_eq!(u64::from(cqe.service), service_ns / 16, "{cqe:?} {entry:?}");
    if queued_ns > 0 {
        assert!(REASONS.contains(&entry.wait), "it waited for {queued_ns} ns: {entry:?}");
    }
    // Only what is posted slice by slice can lack credit and not have waited to begin.
    let passed_by = [WAIT_LANE, WAIT_TURN, WAIT_CLASS].contains(&entry.wait);
    assert!(!passed_by || queued_ns > 0, "{entry:?}");
    assert!(entry.defers == 0 || entry.wait != WAIT_NONE, "{entry:?}");
}

#[test]
fn the_stages_of_a_record_add_up_to_what_the_client_measured() {
    let mut config = Config::default();
    config.verbs = VerbsUse::Off;
    config.recorder_entries = 32_768;
    (config.window_ops, config.slice_bytes, config.window_bytes) = (16, 64 << 10, 512 << 10);
    let engine = Engine::builder().config(config).spawn().unwrap();
    let all: Vec<(Seen, LedgerEntry)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let session = engine.connect().unwrap();
                scope.spawn(move || run(&session, client))
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(all.len() as u64, CLIENTS * OPS);
    let readings = all.iter().flat_map(|(_, entry)| {
        let posted_ns = entry.taken_ns + entry.queued.map_or(0, nanos);
        [entry.taken_ns, posted_ns, entry.ended_ns()]
    });
    let mut turns: Vec<u64> = readings.collect();
    turns.sort_unstable();
    turns.dedup();
    let mut reasons: BTreeMap<u16, u64> = BTreeMap::new();
    for (seen, entry) in &all {
        check(seen, entry, &turns);
        *reasons.entry(entry.wait).or_default() += 1;
    }
    let lacked = [WAIT_WINDOW_OPS, WAIT_WINDOW_BYTES].iter().any(|wait| reasons.contains_key(wait));
    assert!(lacked && reasons.contains_key(&WAIT_LANE), "no load: {reasons:?}");
    println!("{} ops in {} turns seen; by reason: {reasons:?}", all.len(), turns.len());
    tell(&all);
    engine.shutdown().unwrap();
}

/// Prints the stages' medians, for whoever looks.
fn tell(all: &[(Seen, LedgerEntry)]) {
    type Stage = fn(&Seen, &LedgerEntry) -> u64;
    let stages: [(&str, Stage); 4] = [
        ("published to taken", |seen, entry| entry.taken_ns.saturating_sub(seen.published_ns)),
        ("taken to posted", |_, entry| entry.queued.map_or(0, nanos)),
        ("posted to over", |_, entry| entry.service().map_or(0, nanos)),
        ("over to popped", |seen, entry| seen.popped_ns - entry.ended_ns()),
    ];
    for (name, stage) in stages {
        let mut times: Vec<u64> = all.iter().map(|(seen, entry)| stage(seen, entry)).collect();
        times.sort_unstable();
        println!("{name}: median {} ns", times[times.len() / 2]);
    }
}
