//! Two engines with two cards each, joined by two cables: ops go by both rails, and when a cable
//! is cut they go on by the other. Nothing is lost, nothing is applied twice, and the rail that was
//! cut comes back.
//!
//! Each direction writes ever new bytes to places of its own and adds to a counter; what the other
//! end holds afterwards is compared with what was told of every op.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

use verbring::abi::FABRIC_VERBS;
use verbring::client::Peer;
use verbring::host::Config;
use verbring::{
    Completion, Engine, FetchAdd, Flush, Import, Region, Rights, Ring, RingOptions, Session,
    Ticket, Write,
};

use super::engine::{PATIENCE, config_at};
use super::side::{Place, noise, places, second_places};
use super::wire::ip;

/// Bytes of one WRITE, and places that WRITEs go to.
const BYTES: u64 = 4096;
const PLACES: u64 = 48;
/// Where the counter is, and where its old values come to.
const COUNTER: u64 = PLACES * BYTES;
const OLD: u64 = COUNTER + BYTES;
const REGION_BYTES: u64 = OLD + BYTES;
/// Atomics under way at a time.
const ADDS: u64 = 4;

/// An engine with a card on each cable.
struct Side {
    engine: Engine,
    session: Session,
    region: Region,
    url: String,
}

impl Side {
    fn start(name: &str, cards: [&Place; 2]) -> Self {
        let mut config: Config = config_at(cards[0]);
        let other = config_at(cards[1]);
        config.verbs_device.extend(other.verbs_device);
        config.verbs_gid.extend(other.verbs_gid);
        // A silent peer is noticed after half a second.
        (config.verbs_timeout, config.verbs_retry) = (14, 7);
        let socket = std::env::temp_dir().join(format!("verbring-{}-{name}", std::process::id()));
        let engine = Engine::builder().config(config).socket(&socket).spawn().expect("an engine");
        let devices = cards.map(|place| place.device.clone());
        let told: Vec<_> = engine.cards().iter().map(|card| card.device.clone()).collect();
        assert_eq!(told, devices);
        assert_eq!(engine.verbs().map(|first| first.device.clone()).as_ref(), devices.first());
        let session = engine.connect().expect("a session");
        let region = session.alloc(REGION_BYTES).expect("a region");
        let url = format!("unix:{}", socket.display());
        Self { engine, session, region, url }
    }
}

/// What is under way.
#[derive(Clone, Copy, Debug)]
enum Op {
    Write { place: u64, version: u64 },
    Add,
}

/// Load from one engine to the other.
struct Load {
    ring: Ring,
    near: Region,
    import: Import,
    under_way: VecDeque<(Ticket, Op)>,
    /// By place: what was written last, if it was.
    written: Vec<Option<u64>>,
    busy: Vec<bool>,
    adding: u64,
    version: u64,
    /// ADDs that were done, and those of which it is not known.
    added: u64,
    unknown: u64,
    /// WRITEs ended, by rail.
    by_rail: [u64; 64],
    seed: u64,
}

fn content(seed: u64, place: u64, version: u64) -> Vec<u8> {
    noise(BYTES.try_into().expect("small"), seed << 48 | place << 32 | version << 1)
}

impl Load {
    fn new(from: &Side, to: &Side, seed: u64) -> (Self, Peer) {
        let secret = to.region.export("there", Rights::ALL).expect("an export");
        let peer = from.session.connect_peer_over(&to.url, FABRIC_VERBS).expect("a peer");
        let import = peer.import("there", None, &secret).expect("an import");
        let near = from.session.alloc(REGION_BYTES).expect("a region");
        let ring = from.session.ring(RingOptions::new(64, 128)).expect("a ring");
        let count = usize::try_from(PLACES).expect("small");
        let load = Self {
            ring,
            near,
            import,
            under_way: VecDeque::new(),
            written: vec![None; count],
            busy: vec![false; count],
            adding: 0,
            version: 0,
            added: 0,
            unknown: 0,
            by_rail: [0; 64],
            seed,
        };
        (load, peer)
    }

    /// Pushes as much as there is room for, and takes what has ended.
    fn step(&mut self, adds: bool) {
        for place in 0..PLACES {
            let at = usize::try_from(place).expect("small");
            if self.busy[at] {
                continue;
            }
            self.version += 1;
            let version = self.version;
            let mut lease = self.near.lend(place * BYTES..(place + 1) * BYTES).expect("free");
            // Most of a page stays as it was: an emulated machine is slow to make noise.
            lease.write(0, &content(self.seed, place, version)[..64]);
            let op = Write::new(lease, self.import.at(place * BYTES));
            let Ok(ticket) = self.ring.push(op) else { break };
            self.busy[at] = true;
            self.under_way.push_back((ticket, Op::Write { place, version }));
        }
        while adds && self.adding < ADDS {
            let free = (0..ADDS).find_map(|at| self.near.lend(OLD + 8 * at..OLD + 8 * at + 8).ok());
            let Some(lease) = free else { break };
            let op = FetchAdd::new(lease, self.import.at(COUNTER), 1).expect("a word");
            let Ok(ticket) = self.ring.push(op) else { break };
            self.adding += 1;
            self.under_way.push_back((ticket, Op::Add));
        }
        self.ring.submit();
        while let Some(done) = self.ring.reap().expect("a sound ring") {
            self.ended(&done);
        }
    }

    fn ended(&mut self, done: &Completion) {
        let at = self.under_way.iter().position(|(ticket, _)| *ticket == done.ticket);
        let (_, op) = self.under_way.remove(at.expect("an op of ours, once")).expect("it is there");
        match op {
            Op::Write { place, version } => {
                assert_eq!(done.result, Ok(4096), "{done:?}");
                assert_eq!(done.fabric, FABRIC_VERBS, "{done:?}");
                let at = usize::try_from(place).expect("small");
                (self.written[at], self.busy[at]) = (Some(version), false);
                self.by_rail[usize::from(done.rail)] += 1;
            }
            Op::Add => {
                self.adding -= 1;
                match &done.result {
                    Ok(_) => self.added += 1,
                    // It was on the wire when that was cut: nobody can know, and it is told so.
                    Err(error) if error.maybe_done => self.unknown += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    }

    fn writes(&self) -> u64 {
        self.by_rail.iter().sum()
    }

    /// Waits for the end of all.
    fn drain(&mut self) {
        let begun = Instant::now();
        while !self.under_way.is_empty() {
            self.ring.submit_and_wait(1, Some(Duration::from_millis(200))).expect("a wait");
            while let Some(done) = self.ring.reap().expect("a sound ring") {
                self.ended(&done);
            }
            assert!(begun.elapsed() < PATIENCE, "it hangs: {:?}", self.under_way);
        }
    }

    /// What arrived is what was said to have.
    fn compare(&self, far: &Region) {
        for (place, version) in (0..PLACES).zip(&self.written) {
            let Some(version) = version else { continue };
            let mut found = vec![0; 64];
            far.lend(place * BYTES..place * BYTES + 64).expect("free").read(0, &mut found);
            let expected = content(self.seed, place, *version);
            assert!(found == expected[..64], "place {place} does not hold version {version}");
        }
        let counter = far.lend(COUNTER..COUNTER + 8).expect("free").u64(0);
        let known = self.added..=self.added + self.unknown;
        assert!(known.contains(&counter), "{counter} was counted, {known:?} were told");
    }
}

/// Packets that a device has sent, and received.
fn packets(device: &str) -> [u64; 2] {
    ["sent_pkts", "rcvd_pkts"].map(|counter| {
        let path = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/{counter}");
        fs::read_to_string(path).expect("a counter").trim().parse().expect("a number")
    })
}

/// A cable that can be cut.
pub(crate) struct Cable {
    wire: String,
    /// What leads by it, with the table that says so: gone once it is down.
    routes: Vec<String>,
    cut: Cell<bool>,
}

impl Cable {
    pub(crate) fn of(place: &Place) -> Self {
        let path = format!("/sys/class/infiniband/{}/ports/1/gid_attrs/ndevs/1", place.device);
        let wire = fs::read_to_string(path).expect("a network device").trim().to_string();
        let text = ip(&format!("route show table all dev {wire}"));
        // The kernel lays its own anew.
        let ours = |line: &&str| line.contains(" table ") && !line.contains("proto kernel");
        let routes = text.lines().filter(ours).map(|line| format!("{line} dev {wire}")).collect();
        Self { wire, routes, cut: Cell::new(false) }
    }

    pub(crate) fn cut(&self) {
        ip(&format!("link set {} down", self.wire));
        self.cut.set(true);
    }

    pub(crate) fn mend(&self) {
        ip(&format!("link set {} up", self.wire));
        for route in &self.routes {
            ip(&format!("route replace {route}"));
        }
        self.cut.set(false);
    }
}

impl Drop for Cable {
    /// A test that fails leaves the cable to the next one as it was.
    fn drop(&mut self) {
        if self.cut.get() {
            self.mend();
        }
    }
}

/// Both directions, for a while; returns WRITEs a second, of each.
fn run(loads: &mut [Load; 2], span: Duration, adds: bool) -> [f64; 2] {
    let before = loads.each_ref().map(Load::writes);
    let begun = Instant::now();
    while begun.elapsed() < span {
        for load in &mut *loads {
            load.step(adds);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let after = loads.each_ref().map(Load::writes);
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    let rate = |at: usize| (after[at] - before[at]) as f64 / took;
    [rate(0), rate(1)]
}

/// Has both directions run until each has used so many rails since now, and none but these.
fn run_until_rails(loads: &mut [Load; 2], rails: u64, adds: bool) -> Duration {
    let before = loads.each_ref().map(|load| load.by_rail);
    let begun = Instant::now();
    loop {
        run(loads, Duration::from_millis(20), adds);
        let used = |load: &Load, before: &[u64; 64]| {
            load.by_rail.iter().zip(before).filter(|(now, before)| now > before).count() as u64
        };
        if loads.iter().zip(&before).all(|(load, before)| used(load, before) >= rails) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < PATIENCE, "not {rails} rails in time");
    }
}

fn tell(when: &str, [one, other]: [f64; 2]) {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let mib = BYTES as f64 / f64::from(1 << 20);
    println!(
        "{when:30} {one:7.0} + {other:7.0} WRITEs/s of 4 KiB, {:6.2} MiB/s",
        (one + other) * mib
    );
}

fn start() -> ([Side; 2], [Load; 2], [Place; 4]) {
    let ([a0, b0], [a1, b1]) = (places(), second_places());
    let sides = [Side::start("a", [&a0, &a1]), Side::start("b", [&b0, &b1])];
    let [a, b] = &sides;
    let (there, peer) = Load::new(a, b, 1);
    let (back, _) = Load::new(b, a, 2);
    assert!(peer.rail() > 0);
    (sides, [there, back], [a0, b0, a1, b1])
}

#[test]
#[ignore = "needs four RDMA ports on two cables: tests/run vm"]
fn two_cables_carry_one_load_and_either_carries_it_alone() {
    let (sides, mut loads, all) = start();
    let before = all.each_ref().map(|place| packets(&place.device));
    run_until_rails(&mut loads, 2, true);
    let both = run(&mut loads, Duration::from_secs(3), true);
    tell("both rails", both);
    for (place, [sent, received]) in all.iter().zip(before) {
        let [now_sent, now_received] = packets(&place.device);
        println!(
            "{}: {} packets sent, {} received",
            place.device,
            now_sent - sent,
            now_received - received
        );
        assert!(now_sent > sent + 100 && now_received > received + 100, "{}", place.device);
    }

    // The second cable first: atomics go by the other, and none is in doubt.
    for (at, name) in [(2, "second"), (0, "first")] {
        let cable = Cable::of(&all[at]);
        let idle = packets(&all[at].device);
        // The first rail carries the atomics; those that are under way when it is cut cannot be
        // known, and new ones would wait for it.
        let adds = at == 2;
        cable.cut();
        let moment = run(&mut loads, Duration::from_secs(1), adds);
        tell(&format!("the second after the {name} is cut"), moment);
        let alone = run(&mut loads, Duration::from_secs(3), adds);
        tell("by the other rail", alone);
        assert!(alone.iter().all(|rate| *rate > 0.0), "they stand still");
        cable.mend();
        let mended = run_until_rails(&mut loads, 2, adds);
        println!(
            "{:30} {:.2} s after the cable was mended",
            "the rail is back",
            mended.as_secs_f64()
        );
        let again = run(&mut loads, Duration::from_secs(3), true);
        tell("both rails again", again);
        let [sent, _] = packets(&all[at].device);
        assert!(sent > idle[0], "it carries again");
        let unknown: u64 = loads.iter().map(|load| load.unknown).sum();
        if at == 2 {
            assert_eq!(unknown, 0, "atomics go by the first cable alone");
        }
    }
    for load in &mut loads {
        load.drain();
    }
    for (load, far) in loads.iter().zip([1, 0]) {
        println!("{} ADDs done, {} not known", load.added, load.unknown);
        load.compare(&sides[far].region);
    }
    // What is given back and revoked over two rails is over on both.
    for (side, load) in sides.iter().rev().zip(&mut loads) {
        let mut ring = side.session.ring(RingOptions::new(8, 8)).expect("a ring");
        ring.push(Flush::region(&side.region).revoke()).expect("room");
        ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
        let done = ring.reap().expect("a sound ring").expect("a completion in time");
        assert_eq!(done.result, Ok(0));
        let lease = load.near.lend(0..64).expect("free");
        load.ring.push(Write::new(lease, load.import.at(0))).expect("room");
        load.ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
        let refused = load.ring.reap().expect("a sound ring").expect("a completion in time");
        refused.result.expect_err("it was revoked");
    }
    drop(loads);
    for side in sides {
        let Side { engine, session, region, .. } = side;
        drop((region, session));
        engine.shutdown().expect("a clean end");
    }
}
