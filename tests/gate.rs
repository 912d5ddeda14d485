//! The gate to other hosts through `verbring serve`: what it refuses to start with, and what a
//! flood at the door costs those who are inside.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use verbring::gate::Key;
use verbring::host::Config;
use verbring::{Engine, Nop, RingOptions};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("verbring-gate-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(psk_file: Option<PathBuf>) -> Config {
    let mut config = Config::default();
    config.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    config.psk_file = psk_file;
    config
}

#[test]
fn an_engine_that_cannot_open_its_gate_does_not_start_and_says_why() {
    let folder = Folder::new("start");
    let why = |config: Config| {
        let error = Engine::builder().config(config).spawn().unwrap_err();
        error.to_string()
    };
    let text = why(config(None));
    assert!(text.contains("psk_file is not set") && text.contains("verbring key"), "{text}");
    let missing = why(config(Some(folder.0.join("none"))));
    assert!(missing.contains("none"), "{missing}");
    let path = folder.0.join("open");
    Key::make(&path).unwrap();
    let engine = Engine::builder().config(config(Some(path.clone()))).spawn().unwrap();
    let taken = engine.listening().unwrap();
    let mut second = config(Some(path.clone()));
    second.listen = Some(taken);
    let text = why(second);
    assert!(text.contains(&format!("cannot listen at {taken}")), "{text}");
    engine.shutdown().unwrap();
    assert!(TcpStream::connect(taken).is_err(), "nobody listens any more");
    // Nothing listens unless asked to.
    let mut only_key = config(Some(path));
    only_key.listen = None;
    assert_eq!(Engine::builder().config(only_key).spawn().unwrap().listening(), None);
}

/// In turns of a quarter of a second, with a thousand strangers a second at the door and without,
/// for `VERBRING_GATE_SECONDS` (1 by default): what one op costs a client, printed, not judged.
#[test]
fn what_a_flood_at_the_door_costs_those_inside() {
    let folder = Folder::new("flood");
    let path = folder.0.join("key");
    Key::make(&path).unwrap();
    let engine = Engine::builder().config(config(Some(path))).spawn().unwrap();
    let address = engine.listening().unwrap();
    let seconds = std::env::var("VERBRING_GATE_SECONDS").map_or(1, |text| text.parse().unwrap());
    let session = engine.connect().unwrap();
    let mut ring = session.ring(RingOptions::default()).unwrap();
    let (state, come) = (AtomicU8::new(0), AtomicU64::new(0));
    let mut took: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = Instant::now();
            loop {
                match state.load(Ordering::Relaxed) {
                    2 => break,
                    1 => {
                        drop(TcpStream::connect(address).unwrap());
                        come.fetch_add(1, Ordering::Relaxed);
                        next += Duration::from_millis(1);
                    }
                    _ => next = Instant::now() + Duration::from_millis(1),
                }
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        for turn in 0..8 * seconds {
            let flood = turn % 2 == 1;
            state.store(u8::from(flood), Ordering::Relaxed);
            let until = Instant::now() + Duration::from_millis(250);
            while Instant::now() < until {
                let since = Instant::now();
                ring.push(Nop::new()).unwrap();
                ring.submit_and_wait(1, None).unwrap();
                let done = ring.reap().unwrap().unwrap();
                done.result.unwrap();
                let ns = u64::try_from(since.elapsed().as_nanos()).unwrap();
                took[usize::from(flood)].push(ns);
            }
        }
        state.store(2, Ordering::Relaxed);
    });
    let mut line = format!("gate: {} strangers in {seconds} s;", come.load(Ordering::Relaxed));
    for (name, took) in ["without", "with"].into_iter().zip(&mut took) {
        took.sort_unstable();
        let at = |part: usize| took[(took.len() - 1) * part / 1_000];
        let (half, most) = (at(500), at(990));
        line += &format!(" {name} them {} ops, p50 {half} ns, p99 {most} ns;", took.len());
    }
    println!("{line}");
    assert!(come.load(Ordering::Relaxed) > 0);
    ring.release().unwrap();
    engine.shutdown().unwrap();
}
