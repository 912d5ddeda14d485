//! What a bad cable costs two hosts: packets are lost, then all of them for a while, then the far
//! port has another address. The connection between the engines goes by the same cable, so it is
//! ill along with the rails.
//!
//! What may come of it: ops take longer; an op whose end the wire never told is repeated by the
//! engine, unless it is atomic: then it may have been done, and says so. If the other engine is
//! silent for too long, or a rail cannot be had again, the connection is lost, every op has its
//! verdict, and whoever asks for the peer again has it as soon as it is there.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use verbring::{Import, Session};

use super::engine::{PATIENCE, settle};
use super::hosts::{Host, KeyFile, Load, Target, reach};
use super::side::{Place, places};
use super::wire::{Wire, ip, netdev, sent};

const NEAR_AT: &str = "10.99.0.1:7480";
const FAR_AT: &str = "10.99.1.1:7481";
const SILENCE_MS: u32 = 3_000;

/// Between two addresses of one machine TCP goes by no cable, unless it is told to; it is until
/// this is dropped. Rails are bound to their addresses, and cross anyhow.
struct ByCable;

const RULE: &str = "pref 250 to 10.99.1.1 ipproto tcp dport 7481 lookup 100";

impl ByCable {
    fn lead() -> Self {
        ip(&format!("rule add {RULE}"));
        Self
    }
}

impl Drop for ByCable {
    fn drop(&mut self) {
        ip(&format!("rule del {RULE}"));
    }
}

/// Two hosts, and a load from a client of the one to a region of the other.
struct Loaded {
    near: Host,
    far: Host,
    key: KeyFile,
    session: Session,
    target: Target,
    import: Import,
    load: Load,
    /// How often the peer had to be asked for again.
    anew: u32,
}

impl Loaded {
    fn start(near_at: &str, far_at: &str, silence_ms: u32) -> Self {
        Self::with(near_at, far_at, silence_ms, &[])
    }

    /// The engines have more settings.
    fn with(near_at: &str, far_at: &str, silence_ms: u32, more: &[[&str; 2]]) -> Self {
        let [first, second] = places();
        let key = KeyFile::new();
        let near = Host::with("near", &[&first], near_at, silence_ms, &key, more);
        let far = Host::with("far", &[&second], far_at, silence_ms, &key, more);
        let session = near.served.session();
        let target = Target::at(&far);
        let (import, _) = reach(&session, &far.url, &target.secret);
        let mut load = Load::new(&session);
        load.run_writes(&import, 100);
        assert_eq!(load.tally.failed(), 0, "{:?}", load.tally);
        Self { near, far, key, session, target, import, load, anew: 0 }
    }

    /// Runs for so long, whatever comes; the peer is asked for again when it is lost.
    fn run(&mut self, span: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < span {
            let failed = self.load.tally.failed();
            self.load.run_for(&self.import, span.saturating_sub(begun.elapsed()));
            if self.load.tally.failed() > failed {
                self.load.drain(PATIENCE);
                self.ask_again();
            }
        }
    }

    /// Runs for so long while nothing can arrive; stops pushing when the peer is lost.
    fn weather(&mut self, span: Duration) {
        let (begun, failed) = (Instant::now(), self.load.tally.failed_writes);
        while begun.elapsed() < span {
            if self.load.tally.failed_writes == failed {
                self.load.push(&self.import);
            }
            self.load.take();
        }
    }

    /// The import is good, or there is another.
    fn ask_again(&mut self) {
        let before = self.load.tally;
        self.load.run_writes(&self.import, 1);
        self.load.drain(PATIENCE);
        if self.load.tally.failed_writes > before.failed_writes {
            (self.import, _) = reach(&self.session, &self.far.url, &self.target.secret);
            self.anew += 1;
        }
    }

    /// All comes to its end, the way is of use again, and what arrived is right.
    fn judge(&mut self, what: &str) {
        let drained = self.load.drain(PATIENCE);
        let (at_first, begun) = (self.load.tally, Instant::now());
        while self.load.tally.writes < at_first.writes + 200 {
            self.ask_again();
            self.load.run_writes(&self.import, 200);
            self.load.drain(PATIENCE);
            assert!(begun.elapsed() < PATIENCE, "{what}: it is not of use again");
        }
        self.load.compare(&self.target.region);
        assert!(self.near.lives() && self.far.lives(), "{what}: an engine is gone");
        println!(
            "{what}: the last op ended after {drained:.1?}, 200 WRITEs more took {:.1?}; so far \
             {:?}, the peer asked for again {} times",
            begun.elapsed(),
            self.load.tally,
            self.anew
        );
    }

    fn end(self) {
        println!("ops that failed: {:#?}", self.load.failures);
        drop(self);
        for place in places() {
            settle(&place.device);
        }
    }
}

fn ends([first, second]: &[Place; 2]) -> [&Place; 2] {
    [first, second]
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn lost_packets_cost_time_and_no_byte() {
    let places = places();
    let by_cable = ByCable::lead();
    let mut loaded = Loaded::start(NEAR_AT, FAR_AT, SILENCE_MS);
    for share in ["1%", "10%"] {
        let before = loaded.load.tally;
        let wire = Wire::losing(ends(&places), share);
        loaded.run(Duration::from_secs(6));
        drop(wire);
        let done = loaded.load.tally.writes - before.writes;
        println!("{share} lost: {done} WRITEs in 6 s");
        assert!(done > 0, "{share} lost: nothing arrived");
        loaded.judge(&format!("{share} lost"));
    }
    loaded.end();
    drop(by_cable);
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_blackout_ends_and_what_was_under_way_with_it() {
    let places = places();
    let by_cable = ByCable::lead();
    let wires = ends(&places).map(netdev);
    // The one outlasts it; the other may take the peer for lost, and has it again after it.
    for silence_ms in [10_000, 3_000] {
        let mut loaded = Loaded::start(NEAR_AT, FAR_AT, silence_ms);
        let wire = Wire::silent(ends(&places));
        let before = wires.each_ref().map(|wire| sent(wire));
        loaded.weather(Duration::from_secs(2));
        let after = wires.each_ref().map(|wire| sent(wire));
        drop(wire);
        // Of what was being sent when it began a few may have got through.
        let passed = [0, 1].map(|at| after[at] - before[at]);
        assert!(passed.iter().all(|passed| *passed < 8), "it was none: {passed:?} packets");
        loaded.judge(&format!("2 s of nothing, lost after {silence_ms} ms"));
        loaded.end();
    }
    drop(by_cable);
}

/// The far port's address and the ways to it; as it was when this is dropped.
struct Address {
    port: Place,
    netdev: String,
    kept: Vec<String>,
}

const RULES: [&str; 2] = [
    "pref 260 from 10.99.0.1 to 10.99.1.9 lookup 100",
    "pref 261 from 10.99.1.9 to 10.99.0.1 lookup 101",
];

impl Address {
    fn of(port: &Place) -> Self {
        let netdev = netdev(port);
        let text = ip(&format!("route show table all dev {netdev}"));
        // The kernel lays its own anew.
        let ours = |line: &&str| line.contains(" table ") && !line.contains("proto kernel");
        let kept = text.lines().filter(ours).map(|line| format!("{line} dev {netdev}")).collect();
        Self { port: port.clone(), netdev, kept }
    }

    /// Another takes its place; returns where that is in the port's table, for which the old one
    /// stays as long as a queue pair has it.
    fn change(&self, near: &Place) -> u8 {
        let wire = &self.netdev;
        ip(&format!("addr del 10.99.1.1/24 dev {wire}"));
        ip(&format!("addr add 10.99.1.9/24 dev {wire}"));
        ip(&format!("route add 10.99.1.9/32 dev {} src 10.99.0.1 table 100", netdev(near)));
        ip(&format!("route add 10.99.0.1/32 dev {wire} src 10.99.1.9 table 101"));
        for rule in RULES {
            ip(&format!("rule add {rule}"));
        }
        let begun = Instant::now();
        loop {
            let found = (0..16).find(|index| self.gid(*index).ends_with("ffff:0a63:0109"));
            if let Some(index) = found {
                return index;
            }
            assert!(begun.elapsed() < PATIENCE, "the port does not get the address");
            sleep(Duration::from_millis(20));
        }
    }

    fn gid(&self, index: u8) -> String {
        let path = format!("/sys/class/infiniband/{}/ports/1/gids/{index}", self.port.device);
        fs::read_to_string(path).unwrap_or_default().trim().to_string()
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let wire = &self.netdev;
        let quietly = |words: String| {
            let _ =
                Command::new("ip").args(words.split_whitespace()).stderr(Stdio::null()).status();
        };
        for rule in RULES {
            quietly(format!("rule del {rule}"));
        }
        quietly("route del 10.99.1.9/32 table 100".to_string());
        quietly(format!("addr del 10.99.1.9/24 dev {wire}"));
        // Its place in the table is free once nobody has it any more.
        let begun = Instant::now();
        while !self.gid(self.port.settings.gid_index).ends_with("ffff:0a63:0101")
            && begun.elapsed() < PATIENCE
        {
            quietly(format!("addr del 10.99.1.1/24 dev {wire}"));
            sleep(Duration::from_millis(200));
            quietly(format!("addr add 10.99.1.1/24 dev {wire}"));
            sleep(Duration::from_millis(200));
        }
        for route in &self.kept {
            quietly(format!("route replace {route}"));
        }
    }
}

/// The engines choose the addresses of their ports by themselves. When the far one's goes, and
/// another comes at another place of the table, their rail is connected again by that: the same
/// connection, of which ops notice that they took a while, and of atomics that were under way
/// nobody knows.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_rail_is_connected_again_by_an_address_that_comes_at_another_place() {
    let [first, second] = places();
    let address = Address::of(&second);
    let chosen = [["--verbs-gid", "auto"]];
    let mut loaded = Loaded::with("127.0.0.1:7482", "127.0.0.1:7483", 10_000, &chosen);
    let gid_index = address.change(&first);
    assert_ne!(gid_index, second.settings.gid_index, "a queue pair keeps the old place");
    let before = loaded.load.tally;
    let begun = Instant::now();
    while loaded.load.tally.writes < before.writes + 100 {
        loaded.load.push(&loaded.import);
        loaded.load.take();
        assert_eq!(loaded.load.tally.failed_writes, 0, "{:#?}", loaded.load.failures);
        assert!(begun.elapsed() < PATIENCE, "it does not come back");
    }
    println!("100 WRITEs by GID {gid_index} {:.1?} after the change", begun.elapsed());
    loaded.judge("the address at its new place");
    assert_eq!(loaded.anew, 0, "nobody asked for the peer again");
    loaded.end();
    drop(address);
}

/// An engine's settings name a place in the port's table of addresses. When the address that was
/// there goes, rails cannot be had, though the engines still hear each other: in the end the
/// connection is lost, and all ops have ended. An engine that is started with the new address is a
/// peer again, with nothing done at the other.
#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn an_address_that_changes_under_an_engine_hangs_nothing() {
    let [first, second] = places();
    let address = Address::of(&second);
    let mut loaded = Loaded::start("127.0.0.1:7480", "127.0.0.1:7481", SILENCE_MS);
    let gid_index = address.change(&first);
    loaded.weather(Duration::from_secs(3));
    let drained = loaded.load.drain(PATIENCE);
    loaded.load.compare(&loaded.target.region);
    println!("address gone: all ops ended {drained:.1?} after 3 s, {:?}", loaded.load.tally);
    assert!(loaded.load.tally.failed_writes > 0, "nothing can have arrived");
    assert!(loaded.near.lives() && loaded.far.lives(), "an engine is gone");

    loaded.far.served.kill();
    let mut moved = second.clone();
    moved.settings.gid_index = gid_index;
    loaded.far = Host::start("far-moved", &moved, "127.0.0.1:7481", SILENCE_MS, &loaded.key);
    loaded.target = Target::at(&loaded.far);
    let url = &loaded.far.url;
    let (import, reached) = reach(&loaded.session, url, &loaded.target.secret);
    (loaded.import, loaded.anew) = (import, loaded.anew + 1);
    loaded.load.begin_anew();
    println!("reached in {reached:.1?} with the new address, GID {gid_index}");
    loaded.judge("the new address");
    loaded.end();
    drop(address);
}
