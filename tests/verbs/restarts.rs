//! The engine of another host is killed under load and started again on the same address, again
//! and again: every op ends once and in time, nothing is applied twice, and the engine that stays
//! carries the next load without anybody's doing at it.
//!
//! `VERBRING_RESTARTS` says how often; less is asked of a machine that is emulated.

use std::thread;
use std::time::{Duration, Instant};

use verbring::Import;

use super::engine::settle;
use super::hosts::{Host, KeyFile, Load, Target, reach};
use super::side::places;

const RESTARTS: u32 = 6;
const SILENCE_MS: u32 = 3_000;
/// Silence and lease are 3.5 s; the machine may be slow beside that.
const VERDICTS_WITHIN: Duration = Duration::from_secs(20);

fn restarts() -> u32 {
    let told = std::env::var("VERBRING_RESTARTS").ok();
    told.map_or(RESTARTS, |told| told.parse().expect("VERBRING_RESTARTS: a number"))
}

/// An engine dies while more and more is asked of it, until that is noticed, and maybe is started
/// again meanwhile. Returns how long it was until the last verdict.
fn die(
    far: &mut Host,
    load: &mut Load,
    import: &Import,
    again: Option<impl FnOnce() -> Host + Send>,
) -> (Duration, Option<Host>) {
    let dying = &mut far.served.child;
    dying.kill().expect("killed");
    let killed = Instant::now();
    thread::scope(|scope| {
        let starting = again.map(|again| {
            scope.spawn(move || {
                dying.wait().expect("waited for");
                again()
            })
        });
        while load.tally.failed() == 0 {
            load.push(import);
            load.take();
            assert!(killed.elapsed() < VERDICTS_WITHIN, "nobody is told");
        }
        load.drain(VERDICTS_WITHIN);
        let took = killed.elapsed();
        assert!(took < VERDICTS_WITHIN, "the last verdict after {took:?}");
        (took, starting.map(|starting| starting.join().expect("another engine")))
    })
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn an_engine_killed_under_load_and_started_again_costs_what_was_under_way() {
    const AT: &str = "10.99.1.1:7471";
    let [first, second] = places();
    let key = KeyFile::new();
    let mut near = Host::start("near", &first, "10.99.0.1:7470", SILENCE_MS, &key);
    let session = near.served.session();
    let mut load = Load::new(&session);
    let mut far = Host::start("far-0", &second, AT, SILENCE_MS, &key);
    let (mut slowest, mut all) = (Duration::ZERO, [0; 4]);
    for life in 1..=restarts() {
        let target = Target::at(&far);
        let (import, resumed) = reach(&session, &far.url, &target.secret);
        load.begin_anew();
        load.run_writes(&import, 200);
        assert_eq!(load.tally.failed(), 0, "{:?}", load.tally);
        let next = || Host::start(&format!("far-{life}"), &second, AT, SILENCE_MS, &key);
        // Every other time nobody is there until each op has its verdict.
        let at_once = life % 2 == 0;
        let (took, early) = die(&mut far, &mut load, &import, at_once.then_some(next));
        far.served.kill();
        load.compare(&target.region);
        let tally = load.tally;
        println!(
            "life {life}: reached in {resumed:.1?}; {} WRITEs, {} ADDs done; failed {} WRITEs, \
             {} ADDs may be done, {} ADDs not; {}, the last verdict {took:.1?} after its death",
            tally.writes,
            tally.adds,
            tally.failed_writes,
            tally.unknown_adds,
            tally.refused_adds,
            if at_once { "started again" } else { "nobody there" },
        );
        slowest = slowest.max(took);
        let told = [tally.writes, tally.adds, tally.failed_writes, tally.unknown_adds];
        all = [0, 1, 2, 3].map(|at| all[at] + told[at]);
        assert!(near.lives(), "the engine that was not killed is gone");
        far = early.unwrap_or_else(next);
    }
    // It is of use still.
    let target = Target::at(&far);
    let (import, resumed) = reach(&session, &far.url, &target.secret);
    load.begin_anew();
    load.run_writes(&import, 200);
    load.drain(VERDICTS_WITHIN);
    assert_eq!(load.tally.failed(), 0, "{:?}", load.tally);
    load.compare(&target.region);
    println!(
        "{} lives: WRITEs and ADDs done, WRITEs failed, ADDs that may be done: {all:?}; the \
         slowest verdict after {slowest:.1?}; reached at last in {resumed:.1?}",
        restarts(),
    );
    println!("ops that failed: {:#?}", load.failures);
    drop((import, target, load, session, far, near));
    settle(&first.device);
    settle(&second.device);
}
