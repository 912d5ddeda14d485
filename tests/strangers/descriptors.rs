//! Descriptors that nobody asked for, and memory that is not what it should be: refused, closed,
//! and none kept.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use verbring::abi::{
    self, Detail, Kind, OBJECT_REGION, OBJECT_RING, Opcode, REGION_ALLOCATED, REGION_MEMFD,
    RingReply, Sqe, errno,
};
use verbring::shm::Mapping;

use super::chance::Chance;
use super::raw::{Answer, HandRing, Wire};
use super::stage::Stage;

/// Most descriptors that the kernel lets one message bring.
const MOST: usize = 253;
const BYTES: u64 = 8_192;

fn memfd(bytes: u64, seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"verbring-stranger", flags).unwrap();
    ftruncate(&fd, bytes as i64).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    fd
}

fn both() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

/// Every message that a session can send, with 1 to 253 descriptors that it does not take.
#[allow(clippy::too_many_lines, reason = "one attack, told in order")]
#[test]
fn surplus() {
    let mut stage = Stage::set("descriptors, surplus");
    let mut chance = Chance::new(21);
    let (memory, null) = (memfd(BYTES, both()), File::open("/dev/null").unwrap());
    let mut wire = stage.wire();
    while stage.goes_on() || stage.tally.attempts < 1_000 {
        let count = match chance.below(3) {
            0 => chance.of(&[1, 2, 3, 4, 5, 6, 7, 252, MOST]),
            _ => 1 + chance.below(MOST as u64) as usize,
        };
        let raw = chance.of(&[memory.as_raw_fd(), null.as_raw_fd(), wire.socket.as_raw_fd()]);
        let fds = vec![raw; count];
        let answer = match chance.of(&Kind::ALL) {
            Kind::Hello => {
                // Also as a session's first message, which may then be said again.
                let mut fresh = Wire::connect(&stage.socket);
                let hello = |head| abi::Hello {
                    head,
                    version_min: 1,
                    version_max: 1,
                    ..Default::default()
                };
                let answer = fresh.ask(Kind::Hello, hello, &fds);
                fresh.hello().done();
                answer
            }
            Kind::Ring => {
                let (sq_entries, cq_entries) = (2, 2);
                let request = |head| abi::RingRequest {
                    head,
                    sq_entries,
                    cq_entries,
                    ..abi::RingRequest::default()
                };
                wire.ask(Kind::Ring, request, &fds)
            }
            Kind::Region if count > 1 && chance.once_in(2) => {
                wire.ask_region(REGION_MEMFD, BYTES, &fds)
            }
            Kind::Region => wire.ask_region(REGION_ALLOCATED, BYTES, &fds),
            kind @ (Kind::Mapped | Kind::Release) => {
                wire.ask(kind, |head| abi::Mapped { head, object: 1, id: 0 }, &fds)
            }
            kind @ (Kind::Cancel | Kind::Why) => {
                wire.ask(kind, |head| abi::OpQuery { head, ..Default::default() }, &fds)
            }
            Kind::Export => wire.ask(
                Kind::Export,
                |head| abi::Export { head, region: 0, rights: 1, name: [b'n'; abi::NAME_BYTES] },
                &fds,
            ),
            Kind::Import => {
                let request = |head| abi::Import {
                    head,
                    rights: 0,
                    uid: abi::UID_OWN,
                    name: [b'n'; abi::NAME_BYTES],
                    secret: [0; abi::SECRET_BYTES],
                };
                wire.ask(Kind::Import, request, &fds)
            }
            Kind::Stats => {
                wire.ask(Kind::Stats, |head| abi::Stats { head, scope: 0, reserved: 0 }, &fds)
            }
            Kind::Connect | Kind::Prepare | Kind::Probe => {
                wire.ask(Kind::Probe, |head| abi::Probe { head }, &fds)
            }
        };
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
        if chance.once_in(32) {
            // Sent and never looked after: most are still in the socket when it is closed.
            for _ in 0..4 {
                let _ = wire.send(&[0; 16], &fds);
            }
            wire = stage.wire();
        }
    }
    drop((wire, memory, null));
    stage.finish();
}

/// REGION with no descriptor, or with one that is no memfd.
#[test]
fn not_memory() {
    let mut stage = Stage::set("descriptors, not memory");
    let mut wire = stage.wire();
    let pipe = nix::unistd::pipe().unwrap();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let event = EventFd::new().unwrap();
    let [directory, null] = ["/", "/dev/null"].map(|path| File::open(path).unwrap());
    let path = std::env::temp_dir().join(format!("verbring-stranger-{}", std::process::id()));
    let file = File::create_new(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(BYTES).unwrap();
    let (socket, peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let strangers: [BorrowedFd<'_>; 8] = [
        pipe.0.as_fd(),
        pipe.1.as_fd(),
        epoll.0.as_fd(),
        event.as_fd(),
        directory.as_fd(),
        null.as_fd(),
        socket.as_fd(),
        peer.as_fd(),
    ];
    while stage.goes_on() {
        let answer = wire.ask_region(REGION_MEMFD, BYTES, &[]);
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
        for stranger in strangers {
            let answer = wire.ask_region(REGION_MEMFD, BYTES, &[stranger.as_raw_fd()]);
            stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
        }
        // A socket that lies in its own buffer would keep itself alive.
        let own = wire.socket.as_raw_fd();
        let answer = wire.ask_region(REGION_MEMFD, BYTES, &[own]);
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Descriptors);
        // A file of a tmpfs has seals, and not the right ones.
        let answer = wire.ask_region(REGION_MEMFD, BYTES, &[file.as_raw_fd()]);
        match stage.tally.answer(answer) {
            Answer::Refused { errno: errno::EINVAL, detail, .. } => {
                let expected = [Detail::Descriptors, Detail::Seals];
                assert!(expected.iter().any(|&expected| detail == u32::from(expected as u16)));
            }
            other => panic!("a file as memory: {other:?}"),
        }
        // And left behind in the buffer, with its only other owner gone.
        let short = stage.wire();
        for _ in 0..3 {
            let _ = short.send(&[0; 32], &[short.socket.as_raw_fd()]);
            stage.tally.attempts += 1;
        }
    }
    drop((wire, pipe, epoll, event, directory, null, file, socket, peer));
    stage.finish();
}

/// Memfds that their owner could still change, that forbid what the engine needs, or that are
/// smaller than was said.
#[test]
fn bad_memory() {
    let mut stage = Stage::set("descriptors, bad memory");
    let mut wire = stage.wire();
    let none = SealFlag::empty();
    while stage.goes_on() {
        for (seals, detail) in [
            (none, Detail::Seals),
            (SealFlag::F_SEAL_SHRINK, Detail::Seals),
            (SealFlag::F_SEAL_GROW, Detail::Seals),
            (both() | SealFlag::F_SEAL_WRITE, Detail::Seals),
            (both() | SealFlag::F_SEAL_FUTURE_WRITE, Detail::Seals),
            (both() | SealFlag::F_SEAL_SEAL, Detail::Seals),
        ] {
            let fd = memfd(BYTES, seals);
            offer(&mut stage, &mut wire, BYTES, &fd, detail);
        }
        let fixed = memfd_create(c"verbring-stranger", MFdFlags::MFD_CLOEXEC).unwrap();
        ftruncate(&fixed, BYTES as i64).unwrap();
        offer(&mut stage, &mut wire, BYTES, &fixed, Detail::Seals);

        let fd = memfd(BYTES, both());
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let reader = File::open(&path).unwrap();
        offer(&mut stage, &mut wire, BYTES, &reader, Detail::Descriptors);
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        offer(&mut stage, &mut wire, BYTES, &writer, Detail::Descriptors);
        let appender = OpenOptions::new().read(true).append(true).open(&path).unwrap();
        offer(&mut stage, &mut wire, BYTES, &appender, Detail::Descriptors);
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        offer(&mut stage, &mut wire, BYTES, &fd, Detail::Descriptors);

        for (said, is) in [
            (BYTES + 4096, BYTES),
            (BYTES - 1, BYTES),
            (1, BYTES),
            (0, BYTES),
            (5_000, 5_000),
            (4096, 0),
        ] {
            let fd = memfd(is, both());
            offer(&mut stage, &mut wire, said, &fd, Detail::Bytes);
        }
        let fd = memfd(BYTES, both());
        for said in [1 << 60, u64::MAX - 4095, u64::MAX] {
            let answer = wire.ask_region(REGION_MEMFD, said, &[fd.as_raw_fd()]);
            stage.tally.answer(answer).refused(errno::EDQUOT, Detail::Quota);
        }
        for (source, flags, bytes, detail) in [
            (0, 0, BYTES, Detail::Message),
            (3, 0, BYTES, Detail::Message),
            (REGION_ALLOCATED, 2, BYTES, Detail::Flags),
            (REGION_ALLOCATED, u32::MAX, BYTES, Detail::Flags),
            (REGION_ALLOCATED, 0, 0, Detail::Bytes),
        ] {
            let request = |head| abi::RegionRequest { head, source, flags, bytes };
            let answer = wire.ask(Kind::Region, request, &[]);
            stage.tally.answer(answer).refused(errno::EINVAL, detail);
        }
    }
    drop(wire);
    stage.finish();
}

fn offer(stage: &mut Stage, wire: &mut Wire, bytes: u64, fd: &impl AsRawFd, detail: Detail) {
    let answer = wire.ask_region(REGION_MEMFD, bytes, &[fd.as_raw_fd()]);
    stage.tally.answer(answer).refused(errno::EINVAL, detail);
}

/// One memfd offered again and again, and by two sessions at once: it becomes one region.
#[test]
fn same_memory() {
    let mut stage = Stage::set("descriptors, the same memory again");
    let mut wires = [stage.wire(), stage.wire()];
    while stage.goes_on() {
        let fd = memfd(BYTES, both());
        for wire in &mut wires {
            let head = wire.head::<abi::RegionRequest>(Kind::Region);
            let request = abi::RegionRequest { head, source: REGION_MEMFD, flags: 0, bytes: BYTES };
            wire.send(zerocopy::IntoBytes::as_bytes(&request), &[fd.as_raw_fd()]).unwrap();
        }
        let mut regions = Vec::new();
        for (index, wire) in wires.iter().enumerate() {
            let answer = stage.tally.answer(wire.receive());
            if let Answer::Done(..) = &answer {
                regions.push((index, answer.reply::<abi::RegionReply>().0.region));
            }
        }
        assert_eq!(regions.len(), 1, "one region of one memfd");
        for wire in &mut wires {
            offer(&mut stage, wire, BYTES, &fd, Detail::Seals);
        }
        for (index, region) in regions {
            wires[index].release(OBJECT_REGION, region).done();
        }
    }
    drop(wires);
    stage.finish();
}

/// What its owner tries with memory that the engine serves: no size, no hole, no new writable map.
#[test]
fn changed_afterwards() {
    let mut stage = Stage::set("descriptors, memory changed afterwards");
    let mut wire = stage.wire();
    while stage.goes_on() {
        let fd = memfd(BYTES, both());
        let memory = Mapping::shared(fd.as_fd(), BYTES).unwrap();
        let answer = wire.ask_region(REGION_MEMFD, BYTES, &[fd.as_raw_fd()]);
        let region = answer.reply::<abi::RegionReply>().0.region;
        change(&mut stage, fd.as_fd(), BYTES);
        let import = wire.own_import(region, "changed");

        let answer = wire.ask_region(REGION_ALLOCATED, BYTES, &[]);
        let (reply, fds) = answer.reply::<abi::RegionReply>();
        let target = Mapping::shared(fds[0].as_fd(), BYTES).unwrap();
        wire.mapped(OBJECT_REGION, reply.region).done();
        change(&mut stage, fds[0].as_fd(), BYTES);

        let (ring_reply, ring_fds) = wire.ask_ring(2, 2).reply::<RingReply>();
        let segment = ring_fds[0].try_clone().unwrap();
        let mut ring = HandRing::of(&ring_reply, ring_fds);
        wire.mapped(OBJECT_RING, ring.number).done();
        change(&mut stage, segment.as_fd(), ring_reply.segment_bytes);

        memory.fill(0, BYTES, 0x5a);
        ring.push(&Sqe {
            opcode: Opcode::Read as u8,
            local_region: reply.region,
            remote_region: import,
            bytes: BYTES as u32,
            ..Sqe::default()
        });
        assert_eq!(ring.next().res, BYTES as i32);
        let mut bytes = vec![0; BYTES as usize];
        target.read(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0x5a), "the region is what it was");
        wire.release(OBJECT_RING, ring.number).done();
        for region in [import, region, reply.region] {
            wire.release(OBJECT_REGION, region).done();
        }
    }
    drop(wire);
    stage.finish();
}

fn change(stage: &mut Stage, fd: BorrowedFd<'_>, bytes: u64) {
    let raw: RawFd = fd.as_raw_fd();
    for size in [0, bytes / 2, bytes + 4096] {
        assert!(ftruncate(fd, size as i64).is_err(), "a new size");
    }
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert!(fallocate(fd, hole, 0, 4096).is_err(), "a hole");
    assert!(Mapping::shared(fd, bytes).is_err(), "a new map");
    let path = format!("/proc/self/fd/{raw}");
    let again = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert!(Mapping::shared(again.as_fd(), bytes).is_err(), "a map of the file opened again");
    assert!(nix::unistd::write(&again, &[1]).is_err(), "a write");
    stage.tally.attempts += 7;
}

/// Memory of the engine's that its client spoils before it says MAPPED: holes, and seals that
/// leave the engine none. What cannot be sealed does not go live.
#[test]
fn changed_before() {
    let mut stage = Stage::set("descriptors, memory changed before MAPPED");
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    while stage.goes_on() {
        let mut wire = stage.wire();
        let (ring, fds) = wire.ask_ring(2, 2).reply::<RingReply>();
        let _ = fallocate(&fds[0], hole, 0, ring.segment_bytes as i64);
        stage.tally.answer(wire.mapped(OBJECT_RING, ring.ring)).done();

        let (region, region_fds) =
            wire.ask_region(REGION_ALLOCATED, BYTES, &[]).reply::<abi::RegionReply>();
        let _ = fallocate(&region_fds[0], hole, 0, BYTES as i64);
        stage.tally.answer(wire.mapped(OBJECT_REGION, region.region)).done();

        let (ring, fds) = wire.ask_ring(2, 2).reply::<RingReply>();
        fcntl(&fds[0], FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
        let answer = stage.tally.answer(wire.mapped(OBJECT_RING, ring.ring));
        assert!(matches!(answer, Answer::Refused { .. }), "went live: {answer:?}");
        let (region, fds) =
            wire.ask_region(REGION_ALLOCATED, BYTES, &[]).reply::<abi::RegionReply>();
        fcntl(&fds[0], FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
        let answer = stage.tally.answer(wire.mapped(OBJECT_REGION, region.region));
        assert!(matches!(answer, Answer::Refused { .. }), "went live: {answer:?}");
        wire.probe().done();
    }
    stage.finish();
}
