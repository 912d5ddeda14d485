//! Control messages that break a rule: an answer that says which, and, if the sender cannot be
//! understood any more, the end of its session and of nothing else.

use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::errno::Errno;
use verbring::abi::{
    self, Detail, Head, Hello, Kind, OBJECT_REGION, OBJECT_RING, OpQuery, Opcode, RIGHT_READ,
    RIGHTS_ALL, Sqe, UID_OWN, errno,
};
use zerocopy::IntoBytes;

use super::chance::Chance;
use super::raw::{Answer, HandRing, Wire, padded};
use super::stage::{Stage, until};

/// A message of each kind with nothing wrong about it but its ids and names.
fn well_formed(kind: Kind) -> Vec<u8> {
    fn of<Q>(kind: Kind) -> Head {
        Head { kind: kind as u16, reserved: 0, bytes: size_of::<Q>() as u32, tag: 7 }
    }
    match kind {
        Kind::Hello => {
            let head = of::<Hello>(kind);
            Hello { head, version_min: 1, version_max: 1, ..Hello::default() }.as_bytes().into()
        }
        Kind::Ring => abi::RingRequest {
            head: of::<abi::RingRequest>(kind),
            sq_entries: 2,
            cq_entries: 2,
            ..abi::RingRequest::default()
        }
        .as_bytes()
        .into(),
        Kind::Mapped => {
            abi::Mapped { head: of::<abi::Mapped>(kind), object: 1, id: u32::MAX }.as_bytes().into()
        }
        Kind::Region => abi::RegionRequest {
            head: of::<abi::RegionRequest>(kind),
            source: abi::REGION_ALLOCATED,
            flags: 0,
            bytes: 4096,
        }
        .as_bytes()
        .into(),
        Kind::Export => abi::Export {
            head: of::<abi::Export>(kind),
            region: u32::MAX,
            rights: RIGHTS_ALL,
            name: padded("nothing"),
        }
        .as_bytes()
        .into(),
        Kind::Import => abi::Import {
            head: of::<abi::Import>(kind),
            rights: 0,
            uid: UID_OWN,
            name: padded("nothing"),
            secret: [0; 32],
        }
        .as_bytes()
        .into(),
        Kind::Release => abi::Release { head: of::<abi::Release>(kind), object: 1, id: u32::MAX }
            .as_bytes()
            .into(),
        Kind::Stats => {
            let head = of::<abi::Stats>(kind);
            abi::Stats { head, scope: abi::STATS_SESSION, reserved: 0 }.as_bytes().into()
        }
        Kind::Cancel | Kind::Why => {
            let head = of::<OpQuery>(kind);
            OpQuery { head, ring: u32::MAX, by: 0, target: 0 }.as_bytes().into()
        }
        Kind::Connect | Kind::Prepare | Kind::Probe => {
            abi::Probe { head: of::<abi::Probe>(kind) }.as_bytes().into()
        }
    }
}

/// Says how long the message is.
fn say_length(message: &mut [u8], bytes: usize) {
    message[4..8].copy_from_slice(&(bytes as u32).to_le_bytes());
}

/// Kinds that this engine serves.
fn served(chance: &mut Chance) -> Kind {
    loop {
        let kind = chance.of(&Kind::ALL);
        if !matches!(kind, Kind::Connect | Kind::Prepare) {
            return kind;
        }
    }
}

/// Truncated, oversized, of an unknown kind, with a wrong length or a reserved field set, a reply
/// for a request: each is answered EPROTO, and is its session's last.
#[test]
fn malformed() {
    let mut stage = Stage::set("messages, malformed");
    let mut chance = Chance::new(11);
    while stage.goes_on() || stage.tally.attempts < 2_000 {
        let kind = served(&mut chance);
        let mut message = well_formed(kind);
        let whole = message.len();
        match chance.below(8) {
            0 => message.truncate(1 + chance.below(whole as u64 - 1) as usize),
            1 => {
                // The length is right, but not for this kind.
                let bytes = 16 + chance.below(600) as usize;
                message.resize(if bytes == whole { whole + 1 } else { bytes }, 0);
                let bytes = message.len();
                say_length(&mut message, bytes);
            }
            2 => message.resize(whole + 1 + chance.below(4_000) as usize, 0xff),
            3 => say_length(&mut message, chance.u32() as usize | 1 << 31),
            4 => message[2..4].copy_from_slice(&(chance.u16() | 1).to_le_bytes()),
            5 => {
                let strange = chance.of(&[0, 14, 15, 255, 256, 0x7fff]);
                message[..2].copy_from_slice(&u16::to_le_bytes(strange));
            }
            6 => {
                let reply = kind as u16 | abi::REPLY;
                message[..2].copy_from_slice(&reply.to_le_bytes());
            }
            _ => {
                // HELLO, RING and STATS have reserved fields of their own.
                let (kind, at) =
                    chance.of(&[(Kind::Hello, 20), (Kind::Ring, 28), (Kind::Stats, 20)]);
                message = well_formed(kind);
                message[at + chance.below(4) as usize] = 1;
            }
        }
        let wire = stage.wire();
        stage.tally.answer(wire.say(&message, &[])).refused(errno::EPROTO, Detail::Message);
        wire.receive().over();
        stage.tally.ended += 1;
    }
    let empty = stage.wire();
    stage.tally.answer(empty.say(&[], &[])).over();
    drop(empty);
    stage.finish();
}

/// Before HELLO, HELLO twice, versions and features that are not there, MAPPED for what waits for
/// none, kinds that are not served.
#[test]
fn out_of_order() {
    let mut stage = Stage::set("messages, out of order");
    let neighbour = stage.neighbour.ids;
    while stage.goes_on() {
        for kind in Kind::ALL {
            let wire = Wire::connect(&stage.socket);
            let answer = stage.tally.answer(wire.say(&well_formed(kind), &[]));
            match kind {
                Kind::Hello => {
                    answer.done();
                    let again = stage.tally.answer(wire.say(&well_formed(kind), &[]));
                    again.refused(errno::EPROTO, Detail::Message);
                    wire.receive().over();
                }
                Kind::Connect | Kind::Prepare => {
                    answer.refused(errno::EOPNOTSUPP, Detail::Message);
                }
                _ => {
                    answer.refused(errno::EPROTO, Detail::Message);
                    wire.receive().over();
                }
            }
        }
        let mut wire = Wire::connect(&stage.socket);
        for (low, high, features) in [(0, 0, 0), (2, 9, 0), (9, 2, 0), (1, 1, 1), (1, 1, u64::MAX)]
        {
            let hello = |head| Hello {
                head,
                version_min: low,
                version_max: high,
                features,
                ..Hello::default()
            };
            let answer = wire.ask(Kind::Hello, hello, &[]);
            stage.tally.answer(answer).refused(errno::EOPNOTSUPP, Detail::Version);
        }
        wire.hello().done();
        let live = wire.ring(2, 2);
        let waits = HandRing::map(wire.ask_ring(2, 2));
        let (region, _memory) = wire.region(4096);
        let mut other = stage.wire();
        for (object, id) in [
            (OBJECT_RING, live.number),
            (OBJECT_RING, neighbour.ring),
            (OBJECT_RING, 1_023),
            (OBJECT_RING, u32::MAX),
            (OBJECT_REGION, region),
            (OBJECT_REGION, neighbour.near),
            (OBJECT_REGION, neighbour.import),
            (OBJECT_REGION, 0),
        ] {
            let answer = stage.tally.answer(wire.mapped(object, id));
            answer.refused(errno::EINVAL, Detail::Ring);
        }
        let answer = stage.tally.answer(other.mapped(OBJECT_RING, waits.number));
        answer.refused(errno::EINVAL, Detail::Ring);
        let answer = stage.tally.answer(wire.mapped(3, live.number));
        answer.refused(errno::EINVAL, Detail::Message);
        wire.mapped(OBJECT_RING, waits.number).done();
        // Its session had better not be served worse for all that.
        let mut ring = live;
        ring.push(&Sqe::default());
        assert_eq!(ring.next().res, 0);
    }
    stage.finish();
}

/// Random bytes, half of them behind a head that is right. Whatever it means, there is an answer or
/// an end.
#[test]
fn random_bytes() {
    let mut stage = Stage::with("messages, random bytes", |config| {
        config.quota.region_bytes = 64 << 20;
        config.quota.sessions = 256;
    });
    let mut chance = Chance::new(12);
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut wire = stage.wire();
    while stage.goes_on() || stage.tally.attempts < 10_000 {
        let mut message = if chance.once_in(2) {
            let mut message = well_formed(served(&mut chance));
            for byte in &mut message[16..] {
                // Small fields are likelier to mean something.
                if chance.once_in(4) {
                    *byte = chance.of(&[0, 1, 2, 4, 255, chance.clone().u16() as u8]);
                }
            }
            message
        } else {
            let length = 1 + chance.below(600) as usize;
            chance.bytes(length)
        };
        if message.len() > 16 && chance.once_in(16) {
            let at = chance.below(16) as usize;
            message[at] ^= 1 << chance.below(8);
        }
        let fds = [null.as_raw_fd(); 6];
        let fds = if chance.once_in(8) { &fds[..chance.below(7) as usize] } else { &[] };
        let answer = stage.tally.answer(wire.say(&message, fds));
        let broken = matches!(answer, Answer::Refused { errno: errno::EPROTO, .. });
        if broken || matches!(answer, Answer::Over) || chance.once_in(64) {
            wire = stage.wire();
        }
    }
    drop((wire, null));
    stage.finish();
}

/// Replies that nobody reads: the socket takes some, then the session is over.
#[test]
fn unread_replies() {
    let mut stage = Stage::with("messages, replies unread", |config| {
        config.quota.control_per_s = 1_000_000;
    });
    while stage.goes_on() {
        let wire = stage.wire();
        let message = well_formed(Kind::Probe);
        until("the session is ended", || {
            loop {
                match wire.send(&message, &[]) {
                    Ok(()) => stage.tally.attempts += 1,
                    Err(Errno::EAGAIN) => return false,
                    Err(_) => return true,
                }
            }
        });
        stage.tally.ended += 1;
    }
    stage.finish();
}

/// More messages a second than the quota: all are answered, later; others do not notice.
#[test]
fn floods() {
    const PER_SECOND: u32 = 400;
    let mut stage = Stage::with("messages, floods", |config| {
        config.quota.control_per_s = PER_SECOND;
    });
    let mut wires: Vec<Wire> = (0..4).map(|_| stage.wire()).collect();
    let (start, mut answered) = (Instant::now(), 0);
    while stage.goes_on() || answered < 3 * PER_SECOND {
        for wire in &mut wires {
            stage.tally.answer(wire.probe()).done();
            answered += 1;
        }
    }
    // A second's quota may be used up at both ends of the time.
    let most = (start.elapsed().as_secs() as u32 + 2) * PER_SECOND;
    assert!(answered <= most, "{answered} answers, at most {most} were due");
    // Some more, and gone before they are read.
    for wire in wires {
        let message = well_formed(Kind::Probe);
        while wire.send(&message, &[]).is_ok() {
            stage.tally.attempts += 1;
        }
    }
    stage.finish();
}

/// Names and secrets that are no names and no secrets, and rights that nobody offers.
#[test]
fn names_and_secrets() {
    let mut stage = Stage::set("messages, names and secrets");
    let (mut owner, mut thief) = (stage.wire(), stage.wire());
    let (region, _memory) = owner.region(4096);
    let export = owner.ask_export(region, RIGHT_READ, "offered").reply::<abi::ExportReply>().0;
    let unpadded = {
        let mut name = padded("x");
        name[5] = b'y';
        name
    };
    while stage.goes_on() {
        for name in [[0; abi::NAME_BYTES], [0xff; abi::NAME_BYTES], unpadded] {
            let request = |head| abi::Export { head, region, rights: RIGHTS_ALL, name };
            let answer = stage.tally.answer(owner.ask(Kind::Export, request, &[]));
            answer.refused(errno::EINVAL, Detail::Name);
            let secret = export.secret;
            let import = |head| abi::Import { head, rights: 0, uid: UID_OWN, name, secret };
            let answer = stage.tally.answer(thief.ask(Kind::Import, import, &[]));
            answer.refused(errno::EINVAL, Detail::Name);
        }
        for rights in [0, RIGHTS_ALL + 1, u32::MAX] {
            let answer = stage.tally.answer(owner.ask_export(region, rights, "more"));
            answer.refused(errno::EINVAL, Detail::Rights);
        }
        for name in ["offered", "neighbour"] {
            let answer = stage.tally.answer(owner.ask_export(region, RIGHT_READ, name));
            answer.refused(errno::EEXIST, Detail::Name);
        }
        let answer = stage.tally.answer(thief.ask_import("nobody's", export.secret));
        answer.refused(errno::ENOENT, Detail::Name);
        let name = padded("offered");
        for (rights, uid, errno, detail) in [
            (RIGHTS_ALL, UID_OWN, errno::EACCES, Detail::Rights),
            (abi::RIGHT_WRITE, UID_OWN, errno::EACCES, Detail::Rights),
            (RIGHTS_ALL + 1, UID_OWN, errno::EINVAL, Detail::Rights),
            (0, UID_OWN - 1, errno::ENOENT, Detail::Name),
        ] {
            let secret = export.secret;
            let import = |head| abi::Import { head, rights, uid, name, secret };
            let answer = stage.tally.answer(thief.ask(Kind::Import, import, &[]));
            answer.refused(errno, detail);
        }
        let mut guesser = stage.wire();
        for guess in 0..10 {
            let mut secret = export.secret;
            secret[guess * 3] ^= 1;
            let answer = stage.tally.answer(guesser.ask_import("offered", secret));
            answer.refused(errno::EACCES, Detail::Secret);
        }
        guesser.receive().over();
        stage.tally.ended += 1;
    }
    // What was offered is still to be had.
    thief.ask_import("offered", export.secret).done();
    drop((owner, thief, _memory));
    stage.finish();
}

/// Ids of other sessions in every message and entry that takes one.
#[test]
fn forged_ids() {
    let mut stage = Stage::set("messages, forged ids");
    let mut wire = stage.wire();
    let mut ring = wire.ring(16, 16);
    let (near, _near) = wire.region(4096);
    let import = wire.own_import(near, "own");
    let ids = stage.neighbour.ids;
    let strange_regions = [ids.near, ids.far, ids.import, near ^ 1 << 20, 0, u32::MAX];
    while stage.goes_on() {
        for region in strange_regions.into_iter().chain([import]) {
            let answer = stage.tally.answer(wire.ask_export(region, RIGHTS_ALL, "forged"));
            answer.refused(errno::EINVAL, Detail::LocalRegion);
        }
        for region in strange_regions {
            let answer = stage.tally.answer(wire.release(OBJECT_REGION, region));
            answer.refused(errno::EINVAL, Detail::LocalRegion);
        }
        for number in [ids.ring, 1_023, u32::MAX] {
            let answer = stage.tally.answer(wire.release(OBJECT_RING, number));
            answer.refused(errno::EINVAL, Detail::Ring);
            let answer = stage.tally.answer(wire.mapped(OBJECT_RING, number));
            answer.refused(errno::EINVAL, Detail::Ring);
            for kind in [Kind::Cancel, Kind::Why] {
                let query = |head| OpQuery { head, ring: number, by: 0, target: 0 };
                let answer = stage.tally.answer(wire.ask(kind, query, &[]));
                answer.refused(errno::EINVAL, Detail::Ring);
            }
        }
        let answer = stage.tally.answer(wire.release(3, ring.number));
        answer.refused(errno::EINVAL, Detail::LocalRegion);
        for region in strange_regions {
            for opcode in [Opcode::Write, Opcode::Read, Opcode::FetchAdd] {
                let honest = Sqe {
                    opcode: opcode as u8,
                    local_region: near,
                    remote_region: import,
                    bytes: if opcode == Opcode::FetchAdd { 0 } else { 8 },
                    ..Sqe::default()
                };
                let local = Sqe { local_region: region, ..honest };
                refuse(&mut stage, &mut ring, &local, Detail::LocalRegion);
                let remote = Sqe { remote_region: region, ..honest };
                refuse(&mut stage, &mut ring, &remote, Detail::RemoteRegion);
            }
            for (opcode, bytes) in [(Opcode::Flush, 0), (Opcode::Arm, 1)] {
                let opcode = opcode as u8;
                let sqe = Sqe { opcode, local_region: region, bytes, ..Sqe::default() };
                refuse(&mut stage, &mut ring, &sqe, Detail::LocalRegion);
            }
        }
    }
    drop((wire, ring, _near));
    stage.finish();
}

fn refuse(stage: &mut Stage, ring: &mut HandRing, sqe: &Sqe, detail: Detail) {
    ring.push(sqe);
    let cqe = ring.next();
    stage.tally.attempts += 1;
    stage.tally.cqe(&cqe);
    assert_eq!((cqe.res, cqe.detail), (-errno::EINVAL, detail as u16), "{sqe:?}");
}
