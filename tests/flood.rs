//! Claim: of 1,000 rings one may flood, and the others hardly notice. By the clock, and so only
//! printed: what must hold is shown under virtual time, in `src/engine/tests/shares.rs`.
//!
//! One thread drives all rings, each of a session of its own: 999 of them have one WRITE of 4 KiB
//! under way at all times, and one has as many as its SQ takes. `VERBRING_FLOOD_MS` says for how
//! long; figures worth telling take seconds, and a release build.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};

use verbring::abi::{Opcode, Sqe};
use verbring::host::{Config, VerbsUse};
use verbring::{Engine, Import, RawRing, Region, Rights, RingOptions, Session};

const RINGS: usize = 1_000;
const BYTES: u32 = 4 << 10;
const DEEP: u32 = 256;
/// Milliseconds of each run, if nothing else is said.
const TIME_MS: u64 = 100;

struct Member {
    _session: Session,
    region: Region,
    import: Import,
    ring: RawRing,
    pushed: Instant,
    in_flight: u32,
    ops: u64,
}

impl Member {
    fn new(engine: &Engine, number: usize) -> Self {
        let session = engine.connect().unwrap();
        let region = session.alloc(2 * u64::from(BYTES)).unwrap();
        let name = format!("flood {number}");
        let secret = region.export(&name, Rights::ALL).unwrap();
        let import = session.import(&name, None, &secret).unwrap();
        let ring = session.raw_ring(RingOptions::new(DEEP, DEEP)).unwrap();
        Self {
            _session: session,
            region,
            import,
            ring,
            pushed: Instant::now(),
            in_flight: 0,
            ops: 0,
        }
    }

    fn fill(&mut self, deep: u32) {
        if self.in_flight >= deep {
            return;
        }
        self.pushed = Instant::now();
        while self.in_flight < deep {
            let sqe = Sqe {
                opcode: Opcode::Write as u8,
                local_region: self.region.id(),
                remote_region: self.import.id(),
                remote_offset: BYTES.into(),
                bytes: BYTES,
                ..Sqe::default()
            };
            self.ring.push(sqe).unwrap();
            self.in_flight += 1;
        }
        self.ring.submit();
    }

    fn empty(&mut self) -> bool {
        let before = self.in_flight;
        while let Some(cqe) = self.ring.pop().unwrap() {
            assert!(cqe.res >= 0, "{cqe:?}");
            self.in_flight -= 1;
            self.ops += 1;
        }
        before != self.in_flight
    }
}

/// Percentiles of the 999 in microseconds, their ops, and those of the flood.
fn run(members: &mut [Member], floods: bool, time: Duration) -> ([f64; 2], u64, u64) {
    members.iter_mut().for_each(|member| member.ops = 0);
    let mut latencies = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        for (at, member) in members.iter_mut().enumerate() {
            let all = at == 0;
            if member.empty() && !all {
                latencies.push(member.pushed.elapsed());
            }
            if !all || floods {
                member.fill(if all { DEEP } else { 1 });
            }
        }
    }
    while members.iter().any(|member| member.in_flight > 0) {
        for member in members.iter_mut() {
            member.empty();
        }
    }
    latencies.sort_unstable();
    let percentile = |of: usize| latencies[(latencies.len() - 1) * of / 100].as_secs_f64() * 1e6;
    let others = members[1..].iter().map(|member| member.ops).sum();
    ([percentile(50), percentile(99)], others, members[0].ops)
}

#[test]
fn one_of_a_thousand_rings_floods() {
    let mut config = Config::default();
    config.verbs = VerbsUse::Off;
    (config.sessions_max, config.rings_max) = (1_024, 1_024);
    (config.quota.sessions, config.quota.control_per_s) = (1_024, 1_000_000);
    let engine = Engine::builder().config(config).spawn().unwrap();
    let mut members: Vec<_> = (0..RINGS).map(|number| Member::new(&engine, number)).collect();
    let said = std::env::var("VERBRING_FLOOD_MS");
    let time = Duration::from_millis(said.map_or(TIME_MS, |text| text.parse().unwrap()));
    for _ in 0..3 {
        for floods in [false, true] {
            let ([p50, p99], others, flood) = run(&mut members, floods, time);
            let beside = if floods { "beside the flood" } else { "alone" };
            println!(
                "{beside}: p50 {p50:.0} us, p99 {p99:.0} us, {others} ops; {flood} of the flood"
            );
            assert!(others > 0 && (flood > 0) == floods);
        }
    }
}
