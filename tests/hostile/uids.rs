//! Another uid: it has a contract of its own, floods as far as that goes, and takes nothing of what
//! others have. Only root can try that.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use verbring::abi::{
    CANCEL_BY_NUMBER, CONTRACT_UID, Class, Counter, Detail, Kind, OpQuery, Opcode, Probe,
    ProbeReply, Sqe, WhyReply, errno,
};
use verbring::host::UidQuota;

use super::processes::{Player, part, play};
use super::raw::{HandRing, Wire};
use super::stage::{Stage, until};

/// Nobody, to most systems.
const OTHER: u32 = 65_534;
const OPS: u32 = 64;
const OWN_OPS: u32 = 256;
const RINGS: u32 = 5;
const SESSIONS: u32 = 3;

#[test]
fn another_uid_s_flood_ends_at_its_contract() {
    if let Some(socket) = part() {
        return flood(Path::new(&socket));
    }
    if !nix::unistd::geteuid().is_root() {
        println!("not tried: it takes root to be somebody else");
        return;
    }
    let mut stage = Stage::with("another uid's flood", |config| {
        config.socket_mode = 0o666;
        (config.quota.ops, config.quota.rings, config.quota.sessions) = (OWN_OPS, 4, 16);
        let mut own = UidQuota::default();
        (own.ops, own.rings, own.sessions) = (Some(OPS), Some(RINGS), Some(SESSIONS));
        own.class_ceiling = Some(Class::Low);
        config.uid.insert(OTHER, own);
    });
    // This program must be where the other uid can run it. `cp` writes it, not this process: what
    // another test's thread forks meanwhile would hold it open for writing (ETXTBSY).
    let program = stage.socket.with_extension("program");
    let own = std::env::current_exe().unwrap();
    assert!(Command::new("cp").arg(own).arg(&program).status().unwrap().success());
    let socket = stage.socket.to_str().unwrap().to_string();
    let name = "uids::another_uid_s_flood_ends_at_its_contract";
    while stage.goes_on() {
        let mut command = Command::new(&program);
        command.uid(OTHER).gid(OTHER);
        let mut player = Player::start_by(command, name, &socket);
        assert_eq!(player.word, OPS.to_string());
        stage.tally.attempts += 400;
        stage.tally.granted += u64::from(OPS);
        // All of the own quota is there, but for what the neighbour uses of it.
        let mut wire = stage.wire();
        let (region, memory) = wire.region(4096);
        let mut rings: Vec<HandRing> = (0..3).map(|_| wire.ring(128, 128)).collect();
        wire.ask_ring(2, 2).refused(errno::EDQUOT, Detail::Quota);
        push_arms(&mut rings[0], region, OWN_OPS / 2);
        until("half of the quota is taken", || rings[0].taken() == OWN_OPS / 2);
        assert!(stage.counter(Counter::InFlight) >= u64::from(OPS + OWN_OPS / 2));
        let verified = stage.neighbour.verified();
        until("the neighbour goes on", || stage.neighbour.verified() > verified + 1_000);
        player.kill();
        drop((rings, memory, wire));
        until("all of it is over", || stage.counter(Counter::Sessions) == 2);
    }
    std::fs::remove_file(&program).unwrap();
    stage.finish();
}

/// Takes all that this uid may have, and more if it can.
fn flood(socket: &Path) {
    let wires: Vec<Wire> = (1..SESSIONS).map(|_| greeted(socket)).collect();
    let mut wire = greeted(socket);
    let text = Wire::connect(socket).hello().refused(errno::EDQUOT, Detail::Quota);
    assert!(text.contains(&format!("raise uid.{OTHER}.sessions")), "{text}");
    let probe = wire.ask(Kind::Probe, |head| Probe { head }, &[]).reply::<ProbeReply>().0;
    assert_eq!((probe.uid, probe.contract), (OTHER, CONTRACT_UID));
    assert_eq!((probe.ops_max, probe.rings_max, probe.class_ceiling), (OPS, RINGS, 3));
    let (region, _memory) = wire.region(4096);
    let mut rings: Vec<HandRing> = (0..RINGS).map(|_| wire.ring(512, 512)).collect();
    let text = wire.ask_ring(2, 2).refused(errno::EDQUOT, Detail::Quota);
    assert!(text.contains(&format!("raise uid.{OTHER}.rings")), "{text}");
    // Above its ceiling an explicit class is refused, and the default is lowered.
    let ring = &mut rings[0];
    for class in [Class::High, Class::Medium] {
        ring.push(&Sqe { class: class as u8, ..arm(region) });
        let cqe = ring.next();
        assert_eq!((cqe.res, cqe.detail), (-errno::EACCES, Detail::Class as u16));
    }
    let refused = ring.taken();
    push_arms(ring, region, 400);
    until("the contract is used up", || ring.taken() == refused + OPS);
    let why = |head| OpQuery {
        head,
        ring: ring.number,
        by: CANCEL_BY_NUMBER as u32,
        target: refused.into(),
    };
    let why = wire.ask(Kind::Why, why, &[]).reply::<WhyReply>().0;
    assert_eq!(why.class, Class::Low as u16);
    // Of all its rings and sessions together.
    let (first, others) = rings.split_at_mut(1);
    for ring in &mut *others {
        push_arms(ring, region, 100);
    }
    for _ in 0..100 {
        wire.probe().done();
    }
    let taken = first[0].taken() - refused + others.iter().map(HandRing::taken).sum::<u32>();
    play(&taken.to_string());
    drop(wires);
}

fn greeted(socket: &Path) -> Wire {
    let mut wire = Wire::connect(socket);
    wire.hello().done();
    wire
}

fn arm(region: u32) -> Sqe {
    Sqe { opcode: Opcode::Arm as u8, local_region: region, bytes: 1, ..Sqe::default() }
}

fn push_arms(ring: &mut HandRing, region: u32, count: u32) {
    for _ in 0..count {
        ring.write(&arm(region));
    }
    ring.publish();
}
