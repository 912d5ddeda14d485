//! Two engines joined by cards, and sessions of both: what crosses arrives, what may not is
//! refused, what is atomic stays so, and a peer that dies costs its own ops alone.

use std::io::{BufRead, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use verbring::abi::{Class, Counter, Detail, FABRIC_VERBS, errno};
use verbring::client::{Peer, Scope};
use verbring::host::{Config, VerbsUse};
use verbring::{
    Arm, CmpSwap, Completion, Engine, FetchAdd, Flush, Import, Nop, PagePair, Read, Readv, Region,
    Rights, Ring, RingOptions, Secret, Session, Write, Writev,
};

use super::engine::{PATIENCE, Served, config_at, resources, settle};
use super::side::{Place, places};

const BYTES: u64 = 1 << 20;

/// An engine of this process, a session of it, and its region.
pub(crate) struct Side {
    pub(crate) engine: Engine,
    pub(crate) session: Session,
    pub(crate) region: Region,
    pub(crate) ring: Ring,
    pub(crate) url: String,
}

impl Side {
    pub(crate) fn start(name: &str, config: Config) -> Self {
        let socket = std::env::temp_dir().join(format!("verbring-{}-{name}", std::process::id()));
        let engine = Engine::builder().config(config).socket(&socket).spawn().expect("an engine");
        let session = engine.connect().expect("a session");
        let region = session.alloc(BYTES).expect("a region");
        let ring = session.ring(RingOptions::new(64, 128)).expect("a ring");
        let url = format!("unix:{}", socket.display());
        Self { engine, session, region, ring, url }
    }

    fn next(&mut self) -> Completion {
        next(&mut self.ring)
    }

    /// Waits for the end of one op, which went well, by the card.
    fn done(&mut self, bytes: u32, peer: &Peer) -> Completion {
        let done = self.next();
        assert_eq!(done.result, Ok(bytes), "{done:?}");
        assert_eq!((done.fabric, done.rail), (FABRIC_VERBS, peer.rail()), "{done:?}");
        done
    }
}

fn next(ring: &mut Ring) -> Completion {
    ring.submit_and_wait(1, Some(PATIENCE)).expect("a wait");
    ring.reap().expect("a sound ring").expect("a completion in time")
}

/// Two engines, ours connected to the other; there a region is exported with these rights.
struct Joined {
    near: Side,
    far: Side,
    peer: Peer,
    secret: Secret,
    import: Import,
}

fn join(near: &Place, far: &Place, rights: Rights) -> Joined {
    // Ours sleeps whenever it can: what completes must wake it.
    let mut sleepy = config_at(near);
    sleepy.spin_us = 0;
    let (near, far) = (Side::start("near", sleepy), Side::start("far", config_at(far)));
    let secret = far.region.export("there", rights).expect("an export");
    let peer = near.session.connect_peer_over(&far.url, FABRIC_VERBS).expect("a peer");
    let import = peer.import("there", None, &secret).expect("an import");
    assert_eq!((import.bytes(), import.rights()), (BYTES, rights));
    Joined { near, far, peer, secret, import }
}

/// Runs a test from a port to the other, and to itself.
fn both_ways(rights: Rights, test: impl Fn(Joined)) {
    let [first, second] = places();
    test(join(&first, &second, rights));
    test(join(&first, &first, rights));
}

pub(crate) fn pattern(bytes: u64, seed: u64) -> Vec<u8> {
    let mut word = seed | 1;
    let mut next = || {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        word.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

pub(crate) fn read(region: &Region, at: u64, bytes: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(bytes).expect("small")];
    region.lend(at..at + bytes).expect("free").read(0, &mut out);
    out
}

pub(crate) fn word(region: &Region, at: u64) -> u64 {
    region.lend(at..at + 8).expect("free").u64(0)
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn every_kind_of_op_crosses_and_says_by_what() {
    both_ways(Rights::ALL, |joined| {
        let Joined { mut near, mut far, peer, import, .. } = joined;
        let armed = far.ring.push(Arm::new(&far.region, 2)).expect("room");
        far.ring.submit();
        // Several slices, and a notification behind them.
        let bytes = 300_001;
        let sent = pattern(bytes, 7);
        let mut lease = near.region.lend(5..5 + bytes).expect("free");
        lease.write(0, &sent);
        near.ring.push(Write::new(lease, import.at(77)).notify(0xc0ffee)).expect("room");
        drop(near.done(300_001, &peer));
        let told = far.next();
        assert_eq!((told.ticket, told.result), (armed, Ok(1)));
        assert_eq!(told.notification.map(|told| told.immediate), Some(0xc0ffee));
        assert!(read(&far.region, 77, bytes) == sent, "what was written is there");

        let lease = near.region.lend(400_000..400_000 + bytes).expect("free");
        near.ring.push(Read::new(lease, import.at(77)).class(Class::High)).expect("room");
        drop(near.done(300_001, &peer));
        assert!(read(&near.region, 400_000, bytes) == sent, "what was read is the same");

        far.region.lend(800_000..800_008).expect("free").set_u64(0, 1000);
        for (old, addend) in [(1000, 42), (1042, u64::MAX)] {
            let lease = near.region.lend(0..8).expect("free");
            near.ring
                .push(FetchAdd::new(lease, import.at(800_000), addend).expect("a word"))
                .expect("room");
            assert_eq!(near.done(8, &peer).lease.expect("it came back").u64(0), old);
        }
        for (expected, new) in [(1, 2), (1041, 77)] {
            let lease = near.region.lend(0..8).expect("free");
            let op = CmpSwap::new(lease, import.at(800_000), expected, new).expect("a word");
            near.ring.push(op).expect("room");
            assert_eq!(near.done(8, &peer).lease.expect("it came back").u64(0), 1041);
        }
        assert_eq!(word(&far.region, 800_000), 77);

        let pages = [(0, 65_536), (4096, 0), (8192, 131_072)];
        let pages = pages.map(|(local, remote)| PagePair { local, remote });
        let mut lease = near.region.lend(0..16_384).expect("free");
        let sent = pattern(12_288, 9);
        lease.write(0, &sent);
        let op = Writev::new(lease, 12_288, &pages, 4096, import.at(500_000)).expect("pages");
        near.ring.push(op).expect("room");
        let mut lease = near.done(12_288, &peer).lease.expect("it came back");
        for (page, pair) in sent.chunks(4096).zip(pages) {
            assert!(read(&far.region, 500_000 + pair.remote, 4096) == page, "{pair:?}");
        }
        lease.fill(0);
        let op = Readv::new(lease, 12_288, &pages, 4096, import.at(500_000)).expect("pages");
        near.ring.push(op).expect("room");
        drop(near.done(12_288, &peer));
        assert!(read(&near.region, 0, 12_288) == sent, "pages came back");

        // A notification alone.
        let empty = near.region.lend(0..0).expect("free");
        near.ring.push(Write::new(empty, import.at(0)).notify(9)).expect("room");
        drop(near.done(0, &peer));
        assert_eq!(far.next().notification.map(|told| told.immediate), Some(9));
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn many_ops_of_all_classes_cross_and_none_is_lost() {
    both_ways(Rights::ALL, |joined| {
        let Joined { mut near, far, peer, import, .. } = joined;
        let sent = pattern(BYTES, 3);
        near.region.lend(0..BYTES).expect("free").write(0, &sent);
        let (chunk, mut at, mut ended) = (4096, 0, 0);
        let classes = [Class::High, Class::Medium, Class::Low];
        while ended < BYTES / chunk {
            while at < BYTES / chunk {
                let lease = near.region.lend(at * chunk..(at + 1) * chunk).expect("free");
                let class = classes[usize::try_from(at % 3).expect("small")];
                let op = Write::new(lease, import.at(at * chunk)).class(class);
                if near.ring.push(op).is_err() {
                    break;
                }
                at += 1;
            }
            let done = near.next();
            assert_eq!((done.result, done.fabric), (Ok(4096), FABRIC_VERBS), "{done:?}");
            ended += 1;
        }
        assert!(read(&far.region, 0, BYTES) == sent, "all of it is there");
        let _ = peer;
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn secrets_and_rights_hold_across_engines() {
    both_ways(Rights::READ, |joined| {
        let Joined { mut near, mut far, peer, secret, import } = joined;
        far.region.lend(0..64).expect("free").fill(0x21);
        let lease = near.region.lend(0..64).expect("free");
        near.ring.push(Write::new(lease, import.at(0))).expect("room");
        let refused = near.next().result.expect_err("only READ was granted");
        assert_eq!((refused.errno, refused.detail), (errno::EACCES, Detail::Rights));
        let lease = near.region.lend(0..64).expect("free");
        near.ring.push(Read::new(lease, import.at(0))).expect("room");
        drop(near.done(64, &peer));
        assert_eq!(read(&near.region, 0, 64), [0x21; 64]);

        let unknown = peer.import("elsewhere", None, &secret).expect_err("no such name");
        assert_eq!(unknown.refusal().expect("an answer").errno, errno::ENOENT);
        let mut wrong = *secret.as_bytes();
        wrong[31] ^= 1;
        let wrong = Secret::from_bytes(wrong);
        // Another session's guesses end that one alone.
        let guesser = near.engine.connect().expect("a session");
        let there = guesser.connect_peer(&far.url).expect("a peer");
        for _ in 0..10 {
            let refused = there.import("there", None, &wrong).expect_err("a wrong secret");
            assert_eq!(refused.refusal().expect("an answer").errno, errno::EACCES);
        }
        guesser.probe().expect_err("ten wrong secrets end a session");
        let lease = near.region.lend(0..64).expect("free");
        near.ring.push(Read::new(lease, import.at(0))).expect("room");
        near.ring.submit();
        assert_eq!(near.next().result, Ok(64), "the others go on");
        far.ring.push(Nop::new()).expect("room");
        assert_eq!(far.next().result, Ok(0));
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn what_is_given_back_or_revoked_leaves_no_key_behind() {
    both_ways(Rights::ALL, |joined| {
        let Joined { mut near, mut far, peer, secret, import } = joined;
        let device = far.engine.verbs().expect("a card").device.clone();
        let lent = resources("mr", &device);
        import.release().expect("released");
        let begun = Instant::now();
        while resources("mr", &device) != lent - 1 {
            assert!(begun.elapsed() < PATIENCE, "the loan's key is still there");
            sleep(Duration::from_millis(50));
        }
        // Once more, and now its owner ends it.
        let import = peer.import("there", None, &secret).expect("an import");
        assert_eq!(resources("mr", &device), lent);
        far.ring.push(Flush::region(&far.region).revoke()).expect("room");
        assert_eq!(far.next().result, Ok(0));
        assert_eq!(resources("mr", &device), lent - 1, "nobody touches it any more");
        let lease = near.region.lend(0..64).expect("free");
        near.ring.push(Write::new(lease, import.at(0))).expect("room");
        let refused = near.next().result.expect_err("it was revoked");
        assert_eq!((refused.errno, refused.detail), (errno::ESTALE, Detail::Revoked));
        let gone = peer.import("there", None, &secret).expect_err("its exports ended");
        assert_eq!(gone.refusal().expect("an answer").errno, errno::ENOENT);
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn atomics_of_both_engines_on_one_word_lose_nothing() {
    const EACH: u64 = 400;
    both_ways(Rights::ALL, |joined| {
        let Joined { mut near, mut far, secret: _, import, .. } = joined;
        let own = far.region.export("home", Rights::ALL).expect("an export");
        let own = far.session.import("home", None, &own).expect("an import");
        let scratch = far.session.alloc(4096).expect("a region");
        let mut ends = [0; 2];
        let mut pushed = [0; 2];
        while ends != [EACH; 2] {
            let sides = [(&mut near.ring, &near.region, &import), (&mut far.ring, &scratch, &own)];
            for (side, (ring, region, target)) in sides.into_iter().enumerate() {
                while pushed[side] < EACH && pushed[side] - ends[side] < 32 {
                    let at = pushed[side] % 32 * 8;
                    let lease = region.lend(at..at + 8).expect("free");
                    let op = FetchAdd::new(lease, target.at(64), 1).expect("a word");
                    if ring.push(op).is_err() {
                        break;
                    }
                    pushed[side] += 1;
                }
                ring.submit();
                while let Some(done) = ring.reap().expect("a sound ring") {
                    assert_eq!((done.result, done.fabric), (Ok(8), FABRIC_VERBS), "{done:?}");
                    ends[side] += 1;
                }
            }
        }
        assert_eq!(word(&far.region, 64), 2 * EACH);
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn joined_engines_rest_when_nothing_happens() {
    both_ways(Rights::ALL, |joined| {
        let Joined { near, far, .. } = &joined;
        let sleeps =
            |side: &Side| side.session.stats(Scope::Engine).expect("counters")[Counter::Sleeps];
        sleep(Duration::from_millis(500));
        let before = [near, far].map(sleeps);
        sleep(Duration::from_secs(2));
        let after = [near, far].map(sleeps);
        for (before, after) in before.into_iter().zip(after) {
            assert!(after - before <= 2, "woke {} times", after - before);
        }
    });
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn classes_that_use_their_paths_differently_have_queue_pairs_of_their_own() {
    let [first, second] = places();
    let config = |place: &Place| {
        let mut config = config_at(place);
        config.verbs_traffic_class = [106, 0, 32];
        config
    };
    settle(&first.device);
    let mut near = Side::start("near", config(&first));
    let before = resources("qp", &first.device);
    let far = Side::start("far", config(&second));
    let secret = far.region.export("there", Rights::WRITE).expect("an export");
    let peer = near.session.connect_peer(&far.url).expect("a peer");
    let import = peer.import("there", None, &secret).expect("an import");
    assert_eq!(resources("qp", &first.device), before + 3);
    let mut rails = [Class::High, Class::Medium, Class::Low].map(|class| {
        let lease = near.region.lend(0..64).expect("free");
        near.ring.push(Write::new(lease, import.at(0)).class(class)).expect("room");
        let done = near.next();
        assert_eq!((done.result, done.fabric), (Ok(64), FABRIC_VERBS), "{done:?}");
        done.rail
    });
    assert_eq!(rails[1], peer.rail());
    rails.sort_unstable();
    assert!(rails[0] < rails[1] && rails[1] < rails[2], "{rails:?}");
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn whom_one_cannot_connect_to_is_told() {
    let [first, second] = places();
    let near = Side::start("near", config_at(&first));
    let nobody = near.session.connect_peer("unix:/nowhere.sock").expect_err("nobody is there");
    let refusal = nobody.refusal().expect("an answer");
    assert!([errno::ENETUNREACH, errno::EHOSTDOWN].contains(&refusal.errno), "{refusal:?}");
    let mut config = config_at(&second);
    config.verbs = VerbsUse::Off;
    let plain = Side::start("plain", config);
    for (from, to) in [(&near, &plain), (&plain, &near)] {
        let refused = from.session.connect_peer_over(&to.url, FABRIC_VERBS);
        let refused = refused.expect_err("one of them has no card");
        let refusal = refused.refusal().expect("an answer");
        assert_eq!(refusal.errno, errno::EOPNOTSUPP, "{refusal:?}");
    }
}

/// An engine in its own process, and a region of it that this process exports.
fn serve_region(name: &str, place: &Place) -> (Served, Session, Region, Secret) {
    let served = Served::start(name, place, "exec", &["--quota-sessions", "200", "--log", "warn"]);
    let session = served.session();
    let region = session.alloc(BYTES).expect("a region");
    let secret = region.export("there", Rights::ALL).expect("an export");
    (served, session, region, secret)
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_killed_peer_gives_every_op_its_verdict_and_costs_nobody_else() {
    /// Two time-outs of a queue pair are 1.1 s; the machine may be slow beside that.
    const VERDICTS_WITHIN: Duration = Duration::from_secs(15);
    /// Not EACCES, though the keys of a process that dies may go before its queue pairs do.
    const GONE: [i32; 2] = [errno::EHOSTDOWN, errno::ESTALE];
    let [first, second] = places();
    for place in [&second, &first] {
        let mut near = Side::start("near", config_at(&first));
        let (mut served, _session, _region, secret) = serve_region("far", place);
        let url = format!("unix:{}", served.socket.display());
        let peer = near.session.connect_peer_over(&url, FABRIC_VERBS).expect("a peer");
        let import = peer.import("there", None, &secret).expect("an import");
        let push = |near: &mut Side, count: &mut u64| {
            let at = *count % 64 * 8192;
            let Ok(lease) = near.region.lend(at..at + 8192) else { return false };
            let pushed = near.ring.push(Write::new(lease, import.at(at))).is_ok();
            *count += u64::from(pushed);
            pushed
        };
        let (mut pushed, mut ended, mut well) = (0, 0, 0);
        while well < 200 {
            while pushed - ended < 32 && push(&mut near, &mut pushed) {}
            let done = near.next();
            assert_eq!(done.result, Ok(8192), "{done:?}");
            (ended, well) = (ended + 1, well + 1);
        }
        // It dies while more and more is asked of it, until that is noticed.
        served.child.kill().expect("killed");
        let killed = Instant::now();
        let mut failed = 0;
        while ended < pushed || failed == 0 {
            while failed == 0 && pushed - ended < 32 && push(&mut near, &mut pushed) {}
            near.ring.submit_and_wait(1, Some(VERDICTS_WITHIN)).expect("a wait");
            let done = near.ring.reap().expect("a sound ring").expect("a verdict in time");
            ended += 1;
            if let Err(error) = done.result {
                assert!(GONE.contains(&error.errno), "{error:?}");
                failed += 1;
            }
            assert!(killed.elapsed() < VERDICTS_WITHIN, "{} without a verdict", pushed - ended);
        }
        println!("{failed} ops failed, the last verdict after {:?}", killed.elapsed());
        served.kill();
        assert!(push(&mut near, &mut pushed));
        let error = near.next().result.expect_err("nobody is there");
        assert!(GONE.contains(&error.errno), "{error:?}");

        // This engine goes on, and finds another peer.
        near.ring.push(Nop::new()).expect("room");
        assert_eq!(near.next().result, Ok(0));
        let (served, _session, _region, secret) = serve_region("next", place);
        let url = format!("unix:{}", served.socket.display());
        let peer = near.session.connect_peer_over(&url, FABRIC_VERBS).expect("a peer");
        let import = peer.import("there", None, &secret).expect("an import");
        let lease = near.region.lend(0..4096).expect("free");
        near.ring.push(Write::new(lease, import.at(0))).expect("room");
        drop(near.done(4096, &peer));
        drop(import);
        near.engine.shutdown().expect("a clean end");
    }
    settle(&first.device);
}

/// Stops the processes of an engine, or lets them go on.
fn signal(served: &Served, signal: Signal) {
    let pid = i32::try_from(served.child.id()).expect("a pid");
    kill(Pid::from_raw(pid), signal).expect("it is ours");
}

/// Writes 8192 bytes to the peer. Every third op notifies, and needs the other engine for that;
/// bytes alone its card takes by itself.
fn push(near: &mut Side, import: &Import, count: &mut u64) -> bool {
    let at = *count % 64 * 8192;
    let Ok(lease) = near.region.lend(at..at + 8192) else { return false };
    let write = Write::new(lease, import.at(at));
    let write = if count.is_multiple_of(3) { write.notify(1) } else { write };
    let pushed = near.ring.push(write).is_ok();
    *count += u64::from(pushed);
    pushed
}

/// A peer can be had there, and takes bytes and notifications.
fn crosses(near: &mut Side, url: &str, secret: &Secret) {
    let peer = near.session.connect_peer_over(url, FABRIC_VERBS).expect("a peer");
    let import = peer.import("there", None, secret).expect("an import");
    let lease = near.region.lend(0..4096).expect("free");
    near.ring.push(Write::new(lease, import.at(0)).notify(2)).expect("room");
    drop(near.done(4096, &peer));
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn a_stopped_peer_gives_every_op_its_verdict_and_costs_nobody_else() {
    /// It is called after 5 s of silence and lost 20 s later; the machine may be slow beside that.
    const VERDICTS_WITHIN: Duration = Duration::from_secs(60);
    let [first, second] = places();
    let mut near = Side::start("near", config_at(&first));
    let (served, _session, _region, secret) = serve_region("far", &second);
    let url = format!("unix:{}", served.socket.display());
    let peer = near.session.connect_peer_over(&url, FABRIC_VERBS).expect("a peer");
    let import = peer.import("there", None, &secret).expect("an import");
    let (mut pushed, mut ended) = (0, 0);
    // Stopped for a moment, nobody minds.
    for round in 0..3 {
        let resume = ended + 200;
        if round == 1 {
            signal(&served, Signal::SIGSTOP);
        }
        let stopped = Instant::now();
        while ended < resume || pushed > ended {
            if round == 1 && stopped.elapsed() > Duration::from_secs(2) {
                signal(&served, Signal::SIGCONT);
            }
            while ended < resume && pushed - ended < 32 && push(&mut near, &import, &mut pushed) {}
            near.ring.submit_and_wait(1, Some(Duration::from_millis(500))).expect("a wait");
            while let Some(done) = near.ring.reap().expect("a sound ring") {
                assert_eq!(done.result, Ok(8192), "{done:?}");
                ended += 1;
            }
            assert!(stopped.elapsed() < PATIENCE, "{} of {pushed} ended", ended);
        }
        signal(&served, Signal::SIGCONT);
    }

    // Stopped for good, it is found out.
    signal(&served, Signal::SIGSTOP);
    let stopped = Instant::now();
    let other = near.engine.connect().expect("another session");
    let mut others = other.ring(RingOptions::new(8, 8)).expect("a ring");
    let mut failed = 0;
    while ended < pushed || failed == 0 {
        while failed == 0 && pushed - ended < 32 && push(&mut near, &import, &mut pushed) {}
        near.ring.submit_and_wait(1, Some(Duration::from_millis(500))).expect("a wait");
        while let Some(done) = near.ring.reap().expect("a sound ring") {
            ended += 1;
            if let Err(error) = done.result {
                assert!([errno::EHOSTDOWN, errno::ESTALE].contains(&error.errno), "{error:?}");
                failed += 1;
            }
        }
        assert!(stopped.elapsed() < VERDICTS_WITHIN, "{} without a verdict", pushed - ended);
        // Nobody else waits for it.
        let asked = Instant::now();
        others.push(Nop::new()).expect("room");
        assert_eq!(next(&mut others).result, Ok(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "another session waits");
    }
    println!("{failed} ops failed, the last verdict after {:?}", stopped.elapsed());
    assert!(push(&mut near, &import, &mut pushed));
    near.next().result.expect_err("it is lost");
    drop(import);

    // It goes on, hears that it was left, and is a peer again.
    signal(&served, Signal::SIGCONT);
    crosses(&mut near, &url, &secret);
    drop((others, other));
    near.engine.shutdown().expect("a clean end");
    drop(served);
    settle(&first.device);
}

/// What a client process is told: its engine's socket, the peer's URL, the secret, its place.
const CLIENT: &str = "VERBRING_TEST_CLIENT";

/// One client, in a process of its own: it writes to the peer, says so, and stays.
#[test]
#[ignore = "played by `queue_pairs_are_as_many_for_64_clients_as_for_one`"]
fn one_client() {
    let Ok(told) = std::env::var(CLIENT) else { return };
    let told: Vec<_> = told.split(' ').collect();
    let [socket, url, secret, at] = told[..] else { panic!("{told:?}") };
    let session = Session::connect(socket).expect("a session");
    let peer = session.connect_peer_over(url, FABRIC_VERBS).expect("a peer");
    let import = peer.import("there", None, &secret.parse().expect("a secret")).expect("an import");
    let region = session.alloc(4096).expect("a region");
    let mut ring = session.ring(RingOptions::new(8, 8)).expect("a ring");
    let at: u64 = at.parse().expect("a place");
    let mut lease = region.lend(0..4096).expect("free");
    lease.write(0, &pattern(4096, at));
    ring.push(Write::new(lease, import.at(at * 4096))).expect("room");
    let done = next(&mut ring);
    assert_eq!((done.result, done.fabric), (Ok(4096), FABRIC_VERBS));
    println!("written");
    std::io::stdout().flush().expect("a reader");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn start_client(near: &Served, url: &str, secret: &Secret, at: u64) -> Child {
    let told = format!("{} {url} {} {at}", near.socket.display(), secret.to_hex());
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "--nocapture", "engines::one_client"])
        .env(CLIENT, told)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client")
}

/// Returns what else it will say: without a reader it would not end well.
fn wait_until_written(client: &mut Child) -> Lines<BufReader<ChildStdout>> {
    let mut out = BufReader::new(client.stdout.take().expect("a pipe")).lines();
    let written = out.any(|line| line.is_ok_and(|line| line.contains("written")));
    assert!(written, "a client ended before it had written");
    out
}

#[test]
#[ignore = "needs two RDMA ports: tests/run vm"]
fn queue_pairs_are_as_many_for_64_clients_as_for_one() {
    let [first, second] = places();
    settle(&first.device);
    let (far, _session, region, secret) = serve_region("far", &second);
    let near = Served::start("near", &first, "exec", &["--quota-sessions", "200", "--log", "warn"]);
    let url = format!("unix:{}", far.socket.display());
    let counted = || [&first, &second].map(|place| resources("qp", &place.device));
    let mut clients = vec![start_client(&near, &url, &secret, 0)];
    let mut said = vec![wait_until_written(&mut clients[0])];
    let one = counted();
    assert!(one.iter().all(|count| *count > 1), "there is a queue pair at each end: {one:?}");
    clients.extend((1..64).map(|at| start_client(&near, &url, &secret, at)));
    said.extend(clients[1..].iter_mut().map(wait_until_written));
    assert_eq!(counted(), one);
    for at in 0..64 {
        assert!(read(&region, at * 4096, 4096) == pattern(4096, at), "what client {at} wrote");
    }
    for (mut client, said) in clients.into_iter().zip(said) {
        drop(client.stdin.take());
        said.for_each(drop);
        assert!(client.wait().expect("waited for").success());
    }
}
