//! Descriptors where none belong, too many of them, of every wrong kind, and such as hang whoever
//! closes them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use verbring::abi::{self, Detail, Head, Kind, OBJECT_RING, REGION_MEMFD, errno};
use zerocopy::IntoBytes;

use super::raw::Wire;
use super::slow::Slow;
use super::stage::Stage;

const PROBE: Head = Head { kind: Kind::Probe as u16, reserved: 0, bytes: 16, tag: 9 };

fn memfd_request(bytes: u64) -> abi::RegionRequest {
    let head = Head { kind: Kind::Region as u16, reserved: 0, bytes: 32, tag: 9 };
    abi::RegionRequest { head, source: REGION_MEMFD, flags: 0, bytes }
}

/// Up to 253 descriptors, which is all that the kernel lets a message bring, where there may be
/// none or one.
#[test]
fn surplus() {
    let mut stage = Stage::set("surplus descriptors");
    let mut wire = stage.wire();
    let null = File::open("/dev/null").unwrap();
    while stage.goes_on() {
        for count in [1, 2, 4, 5, 6, 7, 64, 253] {
            let all = vec![null.as_raw_fd(); count];
            let answer = wire.say(PROBE.as_bytes(), &all);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
            if count > 1 {
                let answer = wire.say(memfd_request(4096).as_bytes(), &all);
                stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
            }
        }
        wire.probe().done();
    }
    drop((wire, null));
    stage.finish();
}

/// A message that ends its session brings 253 descriptors, and more messages that nobody will read
/// bring more.
#[test]
fn of_messages_that_are_not_read() {
    let mut stage = Stage::set("descriptors of messages never read");
    let null = File::open("/dev/null").unwrap();
    let all = [null.as_raw_fd(); 253];
    while stage.goes_on() {
        let wire = stage.connect();
        // Not HELLO: refused, and the end.
        wire.send(PROBE.as_bytes(), &[]).unwrap();
        for _ in 0..4 {
            let _ = wire.send(PROBE.as_bytes(), &all);
            stage.tally.attempts += 1;
        }
        let answer = wire.receive();
        stage.tally.answer(answer).refused(errno::EPROTO, Detail::Message);
        wire.receive().over();
        stage.tally.ended += 1;
    }
    drop(null);
    stage.finish();
}

/// Everything that is no memfd, offered as one.
#[test]
fn of_every_wrong_kind() {
    let mut stage = Stage::set("descriptors of every wrong kind");
    let mut wire = stage.wire();
    let ring = wire.ring(2, 2);
    let path = OFlag::O_PATH.bits();
    let o_path = |name| File::options().read(true).custom_flags(path).open(name).unwrap();
    let (pipe_out, pipe_in) = nix::unistd::pipe().unwrap();
    let pair = |kind| socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (stream, _other) = pair(SockType::Stream);
    let (datagram, _another) = pair(SockType::Datagram);
    let file = std::env::temp_dir().join(format!("verbring-hostile-file-{}", std::process::id()));
    let mut kinds: Vec<OwnedFd> = vec![
        pipe_out,
        pipe_in,
        stream,
        datagram,
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0,
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into(),
        verbring::control::fds::pidfd_open(std::process::id() as i32).unwrap(),
        File::open("/").unwrap().into(),
        File::open("/proc/self/maps").unwrap().into(),
        File::options().read(true).write(true).open("/dev/zero").unwrap().into(),
        o_path("/").into(),
        o_path("/dev/zero").into(),
        File::options().read(true).write(true).create_new(true).open(&file).unwrap().into(),
    ];
    std::fs::remove_file(file).unwrap();
    // The control socket itself, which thus travels over itself; and the ring's bells.
    for own in [&wire.socket, &ring.sq_bell, &ring.cq_bell] {
        kinds.push(own.try_clone().unwrap());
    }
    while stage.goes_on() {
        for kind in &kinds {
            let answer = wire.ask_region(REGION_MEMFD, 4096, &[kind.as_raw_fd()]);
            let text = stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
            assert!(text.contains("memfd_create"), "says what to send: {text}");
        }
    }
    wire.release(OBJECT_RING, ring.number).done();
    drop((wire, ring, kinds, _other, _another));
    stage.finish();
}

/// The control socket is sent over itself, unread, and every other descriptor of it is closed: only
/// the message that nobody reads keeps it. The session must not live on that.
#[test]
fn a_socket_that_holds_itself() {
    let mut stage = Stage::set("a control socket that holds itself");
    while stage.goes_on() {
        let wire = stage.wire();
        let own = wire.socket.as_raw_fd();
        for _ in 0..8 {
            wire.send(PROBE.as_bytes(), &[own, own]).unwrap();
            stage.tally.attempts += 1;
        }
        drop(wire);
        stage.tally.ended += 1;
    }
    stage.finish();
}

/// A file whose last close hangs for an hour, left with the engine in every way there is. Only
/// its own session may wait for that; the others go on, on the data path and on the control path.
#[test]
fn that_hang_when_closed() {
    let mut stage = Stage::set("descriptors that hang when closed");
    let null = File::open("/dev/null").unwrap();
    let mut rounds = 0;
    while stage.goes_on() || rounds < 8 {
        let mut slow: Vec<Slow> = (0..6).map(|_| Slow::new()).collect();
        let mut wires: Vec<Wire> = (0..6).map(|_| stage.wire()).collect();
        let raw: Vec<RawFd> = slow.iter().map(Slow::raw).collect();
        let many = |first| [vec![null.as_raw_fd(); 252], vec![first]].concat();
        // In the place of a memfd; too large for any quota; where none belongs; as the last of 253.
        wires[0].send(memfd_request(4096).as_bytes(), &raw[..1]).unwrap();
        wires[1].send(memfd_request(u64::MAX).as_bytes(), &raw[1..2]).unwrap();
        wires[2].send(PROBE.as_bytes(), &raw[2..3]).unwrap();
        wires[3].send(PROBE.as_bytes(), &many(raw[3])).unwrap();
        // Behind a message that ends the session; and behind the client's own end.
        wires[4].send(&[7], &[]).unwrap();
        let _ = wires[4].send(PROBE.as_bytes(), &raw[4..5]);
        let last = wires.pop().unwrap();
        last.send(PROBE.as_bytes(), &many(raw[5])).unwrap();
        drop(last);
        for slow in &mut slow {
            slow.leave_it_there();
        }
        stage.tally.attempts += 6;
        stage.tally.ended += 2;
        let details =
            [Detail::Descriptors, Detail::Quota, Detail::Descriptors, Detail::Descriptors];
        let expect = |stage: &mut Stage, at: usize| {
            let answer = wires[at].receive();
            let errno = if at == 1 { errno::EDQUOT } else { errno::EINVAL };
            answer.refused(errno, details[at]);
            stage.tally.refuse(errno, details[at] as u16);
        };
        (0..3).for_each(|at| expect(&mut stage, at));
        // All of that hangs now. Somebody else wants a ring and a region.
        let mut other = stage.wire();
        let ring = other.ring(2, 2);
        other.region(4096);
        other.release(OBJECT_RING, ring.number).done();
        // The kernel closes what is beyond four before it hands over the message.
        drop(slow);
        expect(&mut stage, 3);
        drop(wires);
        rounds += 1;
    }
    drop(null);
    stage.finish();
}
