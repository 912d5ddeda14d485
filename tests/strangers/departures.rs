//! Departures at a bad moment: sessions that go while something is under way, memory and rings that
//! go while ops use them, and processes whose children keep their socket. Nothing stays behind.

use std::io::{BufRead, BufReader, Write as _};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use verbring::abi::{
    self, Counter, Cqe, Detail, Kind, OBJECT_REGION, OBJECT_RING, Opcode, REGION_ALLOCATED,
    SQE_REVOKE, Sqe, errno,
};
use zerocopy::IntoBytes;

use super::chance::Chance;
use super::raw::{HandRing, Wire};
use super::stage::{Stage, until};

const OP_BYTES: u32 = 64 << 10;

fn write(near: u32, import: u32) -> Sqe {
    Sqe {
        opcode: Opcode::Write as u8,
        local_region: near,
        remote_region: import,
        bytes: OP_BYTES,
        ..Sqe::default()
    }
}

/// Requests whose answer nobody waits for.
#[test]
fn mid_request() {
    let mut stage = Stage::set("departures, in the middle of a request");
    let mut chance = Chance::new(41);
    while stage.goes_on() || stage.tally.attempts < 500 {
        let mut wire = stage.wire();
        let (region, memory) = wire.region(4096);
        let export = wire.ask_export(region, 1, "leaving").reply::<abi::ExportReply>().0;
        let ring = HandRing::map(wire.ask_ring(2, 2));
        let number = ring.number;
        match chance.below(6) {
            0 => {
                let head = wire.head::<abi::RingRequest>(Kind::Ring);
                let (sq_entries, cq_entries) = (64, 64);
                let request =
                    abi::RingRequest { head, sq_entries, cq_entries, ..Default::default() };
                wire.send(request.as_bytes(), &[]).unwrap();
            }
            1 => {
                let head = wire.head::<abi::RegionRequest>(Kind::Region);
                let (source, flags, bytes) = (REGION_ALLOCATED, 0, 1 << 20);
                let request = abi::RegionRequest { head, source, flags, bytes };
                wire.send(request.as_bytes(), &[]).unwrap();
            }
            2 => {
                let head = wire.head::<abi::Mapped>(Kind::Mapped);
                let request = abi::Mapped { head, object: OBJECT_RING, id: number };
                wire.send(request.as_bytes(), &[]).unwrap();
            }
            3 => {
                let head = wire.head::<abi::Import>(Kind::Import);
                let (name, secret) = (super::raw::padded("leaving"), export.secret);
                let request = abi::Import { head, rights: 0, uid: abi::UID_OWN, name, secret };
                wire.send(request.as_bytes(), &[]).unwrap();
            }
            4 => {
                let head = wire.head::<abi::Release>(Kind::Release);
                let request = abi::Release { head, object: OBJECT_REGION, id: region };
                wire.send(request.as_bytes(), &[]).unwrap();
            }
            _ => {
                let head = wire.head::<abi::Stats>(Kind::Stats);
                let request = abi::Stats { head, scope: abi::STATS_SESSION, reserved: 0 };
                wire.send(request.as_bytes(), &[]).unwrap();
            }
        }
        stage.tally.attempts += 1;
        stage.tally.ended += 1;
        // The engine may be anywhere between the request and its answer.
        for _ in 0..chance.below(200) {
            std::hint::spin_loop();
        }
        drop((wire, ring, memory));
        let ended = || stage.counter(Counter::Sessions) == 2;
        until("its name is free", ended);
    }
    stage.finish();
}

/// Sessions that end with WRITEs queued and posted and ARMs waiting.
#[test]
fn ops_in_flight() {
    let mut stage = Stage::set("departures, with ops in flight");
    while stage.goes_on() {
        let mut wire = stage.wire();
        let (near, memory) = wire.region(u64::from(OP_BYTES));
        let (far, target) = wire.region(u64::from(OP_BYTES));
        let import = wire.own_import(far, "in flight");
        let mut ring = wire.ring(64, 64);
        for number in 0..64 {
            let arm =
                Sqe { opcode: Opcode::Arm as u8, local_region: far, bytes: 1, ..Sqe::default() };
            ring.write(&if number % 8 == 7 { arm } else { write(near, import) });
        }
        ring.publish();
        until("some are taken", || ring.taken() > 0);
        stage.tally.attempts += 64;
        stage.tally.ended += 1;
        drop((wire, ring, memory, target));
        until("its name is free", || stage.counter(Counter::Sessions) == 2);
    }
    stage.finish();
}

/// What an op may come to if a region or its ring goes under it.
fn judge(cqe: &Cqe) {
    let known = match -cqe.res {
        done if done == -(OP_BYTES as i32) => true,
        errno::ESTALE => cqe.detail == Detail::Revoked as u16,
        errno::ECANCELED => cqe.detail == Detail::Released as u16,
        errno::ESHUTDOWN => cqe.detail == Detail::Closing as u16,
        errno::EINVAL => {
            [Detail::LocalRegion as u16, Detail::RemoteRegion as u16].contains(&cqe.detail)
        }
        _ => false,
    };
    assert!(known, "{cqe:?}");
}

/// Regions and imports that are released, and exports that are revoked, while WRITEs go there: each
/// WRITE has one end, done or refused for that reason.
#[test]
fn regions_under_load() {
    let mut stage = Stage::set("departures, regions under load");
    let mut chance = Chance::new(42);
    while stage.goes_on() {
        let (mut owner, mut user) = (stage.wire(), stage.wire());
        let (far, target) = owner.region(u64::from(OP_BYTES));
        let mut own_ring = owner.ring(2, 2);
        let export = owner.ask_export(far, abi::RIGHTS_ALL, "load").reply::<abi::ExportReply>().0;
        let (near, memory) = user.region(u64::from(OP_BYTES));
        let import = user.ask_import("load", export.secret).reply::<abi::ImportReply>().0.region;
        let mut ring = user.ring(64, 64);
        for _ in 0..64 {
            ring.write(&write(near, import));
        }
        ring.publish();
        until("some are taken", || ring.taken() > 0);
        match chance.below(4) {
            0 => drop(owner.release(OBJECT_REGION, far).done()),
            1 => {
                let flush = Opcode::Flush as u8;
                let flags = SQE_REVOKE;
                own_ring.push(&Sqe { opcode: flush, flags, local_region: far, ..Sqe::default() });
                let cqe = own_ring.next();
                assert_eq!(cqe.res, 0, "{cqe:?}");
            }
            2 => drop(user.release(OBJECT_REGION, near).done()),
            _ => drop(user.release(OBJECT_REGION, import).done()),
        }
        for _ in 0..64 {
            let cqe = ring.next();
            judge(&cqe);
            stage.tally.attempts += 1;
            stage.tally.cqe(&cqe);
        }
        // Whatever it was, it is not to be had any more, or by its new name only.
        ring.push(&write(near, import));
        let cqe = ring.next();
        assert!(cqe.res < 0, "the region is still there: {cqe:?}");
        judge(&cqe);
        drop((owner, user, ring, own_ring, target, memory));
        until("its name is free", || stage.counter(Counter::Sessions) == 2);
    }
    assert!(stage.tally.refusals_in_all() > 0, "nothing was cut short");
    stage.finish();
}

/// Rings that are released with all their entries in use. The session goes on.
#[test]
fn rings_under_load() {
    let mut stage = Stage::set("departures, rings under load");
    let mut wire = stage.wire();
    let (near, memory) = wire.region(u64::from(OP_BYTES));
    let (far, target) = wire.region(u64::from(OP_BYTES));
    let import = wire.own_import(far, "rings");
    while stage.goes_on() {
        let mut ring = wire.ring(64, 64);
        for _ in 0..64 {
            ring.write(&write(near, import));
        }
        ring.publish();
        until("some are taken", || ring.taken() > 0);
        wire.release(OBJECT_RING, ring.number).done();
        let taken = ring.taken();
        let mut answered = 0;
        while let Some(cqe) = ring.pop() {
            judge(&cqe);
            stage.tally.cqe(&cqe);
            answered += 1;
        }
        assert_eq!(answered, taken, "each op that was taken has one end");
        stage.tally.attempts += 64;
        wire.release(OBJECT_RING, ring.number).refused(errno::EINVAL, Detail::Ring);
    }
    drop((wire, memory, target));
    stage.finish();
}

/// Set in processes that this test starts.
const SOCKET: &str = "VERBRING_STRANGERS_SOCKET";

/// A process that is killed while a child of its keeps the control socket open: the session is over
/// with the process.
#[test]
fn socket_kept_by_a_child() {
    let mut stage = Stage::set("departures, the socket kept by a child");
    while stage.goes_on() || stage.tally.attempts < 5 {
        let (mut process, keeper) = Keeper::start(&stage.socket);
        assert_eq!(stage.counter(Counter::Sessions), 3);
        // Its child ends with this input, which waiting for the process would close.
        let input = process.stdin.take();
        process.kill().unwrap();
        process.wait().unwrap();
        until("the session is over", || stage.counter(Counter::Sessions) == 2);
        assert!(keeper.holds_it(), "the child keeps the socket");
        stage.tally.attempts += 1;
        stage.tally.ended += 1;
        drop(input);
    }
    stage.finish();
}

/// The process that keeps a socket.
struct Keeper {
    link: std::path::PathBuf,
}

impl Keeper {
    fn start(socket: &Path) -> (Child, Self) {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "departures::killed_process", "--nocapture"])
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("/proc/"), "the process said {line:?}");
        (process, Self { link: line.trim_end().into() })
    }

    fn holds_it(&self) -> bool {
        let target = std::fs::read_link(&self.link);
        target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    }
}

/// Has a session, a ring and ops in it, starts a child that inherits the socket, and waits for its
/// end.
#[test]
#[ignore = "run by socket_kept_by_a_child in a process of its own"]
fn killed_process() {
    let socket = std::env::var_os(SOCKET).expect("started by the other test");
    let mut wire = Wire::connect_inheritable(Path::new(&socket));
    wire.hello().done();
    let (near, _memory) = wire.region(u64::from(OP_BYTES));
    let (far, _target) = wire.region(u64::from(OP_BYTES));
    let import = wire.own_import(far, "killed");
    let mut ring = wire.ring(64, 64);
    for number in 0..64 {
        let arm = Sqe { opcode: Opcode::Arm as u8, local_region: far, bytes: 1, ..Sqe::default() };
        ring.write(&if number % 8 == 7 { arm } else { write(near, import) });
    }
    ring.publish();
    let mut child =
        Command::new("cat").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let line = format!("/proc/{}/fd/{}\n", child.id(), wire.socket.as_raw_fd());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    child.wait().unwrap();
}
