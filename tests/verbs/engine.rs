//! One engine with a card: that it says so, that its regions are registered for as long as they
//! live, that it rests when nothing happens, and that what is in the way is told.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use verbring::abi::{Counter, FABRIC_LOCAL, FABRIC_VERBS, errno};
use verbring::client::Scope;
use verbring::host::{Config, VerbsUse};
use verbring::{Engine, Rights, RingOptions, Session, Write};

use super::side::{Place, places};

/// Only a failure ever waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of an engine that uses a place.
pub(crate) fn config_at(place: &Place) -> Config {
    let mut config = Config::default();
    config.verbs = VerbsUse::Require;
    let device = format!("{}:{}", place.device, place.settings.port);
    config.verbs_device = vec![device.parse().expect("a device")];
    config.verbs_gid = vec![place.settings.gid_index];
    config
}

fn start(config: Config) -> Engine {
    Engine::builder().config(config).spawn().expect("an engine")
}

/// How many of a kind of resource the kernel counts on a device: "qp", "mr". A device has one
/// queue pair of its own.
pub(crate) fn resources(kind: &str, device: &str) -> usize {
    let listed = Command::new("rdma").args(["resource", "show"]).output().expect("rdma");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(&format!(" {device}: ")));
    let words: Vec<_> = line.expect("the device").split_whitespace().collect();
    let at = words.iter().position(|word| *word == kind).expect("the kind");
    words[at + 1].parse().expect("a count")
}

/// Waits until a device has nothing but its own: who was there before is all gone.
pub(crate) fn settle(device: &str) {
    let begun = Instant::now();
    while resources("mr", device) > 0 || resources("qp", device) > 1 {
        assert!(begun.elapsed() < PATIENCE, "something is left on {device}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn an_engine_says_which_card_it_uses() {
    let [place, _] = places();
    let engine = start(config_at(&place));
    let verbs = engine.verbs().expect("a card");
    assert_eq!((verbs.device.as_str(), verbs.port), (place.device.as_str(), 1));
    assert_eq!(verbs.gid_index, place.settings.gid_index);
    assert_eq!((verbs.pairs_max, verbs.depth, verbs.receives), (31, 128, 64));
    let fabrics = engine.connect().expect("a session").probe().expect("an answer").fabrics;
    assert_eq!(fabrics, 1 << FABRIC_LOCAL | 1 << FABRIC_VERBS);
    // As many rails as the device has completions for, rather than none.
    let mut config = config_at(&place);
    (config.verbs_depth, config.verbs_receives, config.rails_max) = (8192, 4096, 64);
    let engine = start(config);
    let few = engine.verbs().expect("a card").pairs_max;
    assert!((1..63).contains(&few), "{few} queue pairs of 12,288 works");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn regions_are_registered_while_they_live() {
    let [place, _] = places();
    settle(&place.device);
    let engine = start(config_at(&place));
    let session = engine.connect().expect("a session");
    let registered = || resources("mr", &place.device);
    let before = registered();
    let regions = [session.alloc(1 << 16), session.alloc(4096)].map(|made| made.expect("memory"));
    assert_eq!(registered(), before + 2);
    let [source, target] = regions;
    let secret = target.export("target", Rights::ALL).expect("an export");
    let import = session.import("target", None, &secret).expect("an import");
    let mut ring = session.ring(RingOptions::new(8, 8)).expect("a ring");
    let mut lease = source.lend(0..4096).expect("a lease");
    lease.fill(0x5a);
    ring.push(Write::new(lease, import.at(0))).expect("room");
    ring.submit_and_wait(1, Some(PATIENCE)).expect("a completion");
    assert_eq!(ring.reap().expect("a sound ring").expect("one").result, Ok(4096));
    import.release().expect("released");
    target.release().expect("released");
    assert_eq!(registered(), before + 1);
    drop((ring, source, session));
    engine.shutdown().expect("a clean end");
    // With the engine everything ends.
    settle(&place.device);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn an_engine_with_a_card_rests_when_nothing_happens() {
    let [place, _] = places();
    let engine = start(config_at(&place));
    let session = engine.connect().expect("a session");
    let ring = session.ring(RingOptions::new(8, 8)).expect("a ring");
    let counted = || {
        let stats = session.stats(Scope::Engine).expect("counters");
        (stats[Counter::Turns], stats[Counter::Sleeps])
    };
    sleep(Duration::from_millis(500));
    let (turns, sleeps) = counted();
    sleep(Duration::from_secs(2));
    let (later, slept) = counted();
    // Its own question wakes it; nothing else does.
    assert!(slept - sleeps <= 2, "woke {} times", slept - sleeps);
    assert!(later - turns < 100_000, "made {} turns", later - turns);
    drop(ring);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn what_cannot_be_used_is_told_and_only_missed_where_it_is_required() {
    let [place, _] = places();
    let mut config = config_at(&place);
    config.verbs_device = vec!["rxe7".parse().expect("a device")];
    let error = Engine::builder().config(config.clone()).spawn().expect_err("there is no rxe7");
    let source = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(source.starts_with("there is no device rxe7: set verbs_device to one of rxe0, rxe1"));
    config.verbs = VerbsUse::Auto;
    let engine = start(config);
    assert_eq!(engine.verbs(), None);
    let fabrics = engine.connect().expect("a session").probe().expect("an answer").fabrics;
    assert_eq!(fabrics, 1 << FABRIC_LOCAL);
}

/// An engine in a process of its own; it dies with the value.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Served {
    /// `before` is what the shell does before it becomes the engine.
    pub(crate) fn start(name: &str, place: &Place, before: &str, settings: &[&str]) -> Self {
        Self::with_cards(name, &[place], before, settings)
    }

    /// It has several cards. The address of each is its place's, unless the settings say.
    pub(crate) fn with_cards(
        name: &str,
        cards: &[&Place],
        before: &str,
        settings: &[&str],
    ) -> Self {
        let socket = std::env::temp_dir().join(format!("verbring-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&socket);
        let each = |tell: fn(&Place) -> String| {
            cards.iter().map(|card| tell(card)).collect::<Vec<_>>().join(",")
        };
        let devices = each(|card| format!("{}:{}", card.device, card.settings.port));
        let gids = each(|card| card.settings.gid_index.to_string());
        let told = settings.contains(&"--verbs-gid");
        let gids = if told { Vec::new() } else { vec!["--verbs-gid".to_string(), gids] };
        let child = Command::new("bash")
            .args(["-c", &format!("{before} \"$@\""), "bash", env!("CARGO_BIN_EXE_verbring")])
            .args(["serve", "--verbs", "require", "--verbs-device", &devices])
            .arg("--socket")
            .arg(&socket)
            .args(gids)
            .args(settings)
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| !name.starts_with("VERBRING_")))
            .stdout(Stdio::null())
            .spawn()
            .expect("an engine");
        let mut served = Self { child, socket };
        let begun = Instant::now();
        while !served.socket.exists() {
            let ended = served.child.try_wait().expect("a child");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "{name} does not serve");
            sleep(Duration::from_millis(10));
        }
        served
    }

    pub(crate) fn session(&self) -> Session {
        Session::connect(&self.socket).expect("a session")
    }

    /// Dies at once, without a word.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn memory_that_may_not_be_locked_is_refused_with_what_to_do() {
    let [place, _] = places();
    // Root may lock what it likes, unless it gives that right up.
    let before = "ulimit -l 8192; exec setpriv --bounding-set -ipc_lock --inh-caps -ipc_lock";
    let served = Served::start("unlocked", &place, before, &[]);
    let session = served.session();
    let error = session.alloc(16 << 20).expect_err("more than may be locked");
    let refusal = error.refusal().expect("an answer");
    assert_eq!(refusal.errno, errno::ENOMEM);
    for words in ["16777216 bytes", "ibv_reg_mr", "8388608 bytes in all (memlock)", "ulimit -l"] {
        assert!(refusal.text.contains(words), "{}", refusal.text);
    }
    let stats = session.stats(Scope::Session).expect("counters");
    assert_eq!((stats[Counter::Regions], stats[Counter::RegionBytes]), (0, 0));
    drop(session.alloc(1 << 16).expect("so much may be locked"));
}
