//! Memfds that are not what a region needs, and what their owner tries with those that were.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use verbring::abi::{
    Detail, OBJECT_REGION, OBJECT_RING, REGION_ALLOCATED, REGION_MEMFD, RegionReply, RingReply,
    errno,
};
use verbring::shm::Mapping;

use super::raw::{Answer, Wire, ring};
use super::stage::Stage;

const BYTES: u64 = 64 << 10;
const SHRINK_GROW: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);
const HOLE: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);

fn memfd(bytes: u64, seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"hostile", flags).unwrap();
    ftruncate(&fd, bytes as i64).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    fd
}

fn reopened(fd: &OwnedFd, mode: &mut OpenOptions) -> OwnedFd {
    mode.open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().into()
}

fn append_later(fd: OwnedFd) -> OwnedFd {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
    fd
}

/// Each way of not being what was asked for, with the refusal that names it.
#[test]
fn of_every_wrong_make() {
    let mut stage = Stage::set("memfds unsealed, shrunk, of wrong size or mode");
    let mut wire = stage.wire();
    let good = || memfd(BYTES, SHRINK_GROW);
    let (shrink, grow) = (SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW);
    let also = |seal| memfd(BYTES, SHRINK_GROW | seal);
    let unsealable = memfd_create(c"hostile", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&unsealable, BYTES as i64).unwrap();
    let mode = File::options;
    let all = [
        (memfd(BYTES, SealFlag::empty()), BYTES, Detail::Seals),
        (memfd(BYTES, shrink), BYTES, Detail::Seals),
        (memfd(BYTES, grow), BYTES, Detail::Seals),
        (unsealable, BYTES, Detail::Seals),
        (also(SealFlag::F_SEAL_WRITE), BYTES, Detail::Seals),
        (also(SealFlag::F_SEAL_FUTURE_WRITE), BYTES, Detail::Seals),
        (also(SealFlag::F_SEAL_SEAL), BYTES, Detail::Seals),
        (reopened(&good(), mode().read(true)), BYTES, Detail::Descriptors),
        (reopened(&good(), mode().write(true)), BYTES, Detail::Descriptors),
        (reopened(&good(), mode().read(true).append(true)), BYTES, Detail::Descriptors),
        (append_later(good()), BYTES, Detail::Descriptors),
        (good(), BYTES + 4096, Detail::Bytes),
        (good(), 1 << 40, Detail::Quota),
        (good(), u64::MAX, Detail::Quota),
        (good(), BYTES - 1, Detail::Bytes),
        (good(), 1, Detail::Bytes),
        (good(), 0, Detail::Bytes),
        (memfd(0, SHRINK_GROW), BYTES, Detail::Bytes),
    ];
    while stage.goes_on() {
        for (fd, bytes, detail) in &all {
            let answer = wire.ask_region(REGION_MEMFD, *bytes, &[fd.as_raw_fd()]);
            let errno = if *detail == Detail::Quota { errno::EDQUOT } else { errno::EINVAL };
            stage.tally.answer(answer).refused(errno, *detail);
        }
    }
    drop((wire, all));
    stage.finish();
}

/// What the owner of a region's memory tries once it is the engine's too.
#[test]
fn tampered_with_afterwards() {
    let mut stage = Stage::set("memfds resized, punched, sealed afterwards");
    let mut wire = stage.wire();
    while stage.goes_on() {
        let own = memfd(BYTES, SHRINK_GROW);
        let ours = Mapping::shared(own.as_fd(), BYTES).unwrap();
        let answer = wire.ask_region(REGION_MEMFD, BYTES, &[own.as_raw_fd()]);
        let from_memfd = answer.reply::<RegionReply>().0.region;
        let answer = wire.ask_region(REGION_ALLOCATED, BYTES, &[]);
        let (reply, mut fds) = answer.reply::<RegionReply>();
        let made = fds.pop().unwrap();
        wire.mapped(OBJECT_REGION, reply.region).done();
        for fd in [&own, &made] {
            let again = reopened(fd, File::options().read(true).write(true));
            for fd in [fd, &again] {
                let refused: [Result<(), Errno>; 6] = [
                    ftruncate(fd, 0),
                    ftruncate(fd, 4096),
                    ftruncate(fd, 2 * BYTES as i64),
                    fallocate(fd, HOLE, 0, 4096),
                    fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).map(|_| ()),
                    Mapping::shared(fd.as_fd(), BYTES).map(|_| ()).map_err(|_| Errno::EPERM),
                ];
                assert_eq!(refused, [Err(Errno::EPERM); 6]);
                let written = File::from(fd.try_clone().unwrap()).write_at(b"x", 0);
                assert_eq!(written.unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
                stage.tally.attempts += 7;
            }
        }
        // Once more, into another region: a memfd serves one.
        let answer = wire.ask_region(REGION_MEMFD, BYTES, &[own.as_raw_fd()]);
        stage.tally.answer(answer).refused(errno::EINVAL, Detail::Seals);
        ours.write(0, b"still ours");
        wire.release(OBJECT_REGION, from_memfd).done();
        wire.release(OBJECT_REGION, reply.region).done();
    }
    drop(wire);
    stage.finish();
}

/// Holes are punched while the memory is on its way in. When the region is live no hole is left,
/// and none can be made: the engine's thread never has to wait for a page, and never dies of one.
#[test]
fn punched_on_the_way() {
    let mut stage = Stage::set("memfds punched on their way in");
    let mut wire = stage.wire();
    let whole = |fd: &OwnedFd| {
        let stat = fstat(fd).unwrap();
        (stat.st_blocks * 512, stat.st_size)
    };
    while stage.goes_on() || stage.tally.attempts < 400 {
        let fd = memfd(BYTES, SHRINK_GROW);
        let over = AtomicBool::new(false);
        let region = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && fallocate(&fd, HOLE, 0, BYTES as i64).is_ok()
                {
                    std::hint::spin_loop();
                }
            });
            let answer = wire.ask_region(REGION_MEMFD, BYTES, &[fd.as_raw_fd()]);
            let region = answer.reply::<RegionReply>().0.region;
            assert_eq!(whole(&fd), (BYTES as i64, BYTES as i64), "a live region has a hole");
            over.store(true, Ordering::Relaxed);
            region
        });
        wire.release(OBJECT_REGION, region).done();

        let answer = wire.ask_region(REGION_ALLOCATED, BYTES, &[]);
        let (reply, mut fds) = answer.reply::<RegionReply>();
        let made = fds.pop().unwrap();
        fallocate(&made, HOLE, 0, BYTES as i64).unwrap();
        assert_eq!(whole(&made).0, 0);
        wire.mapped(OBJECT_REGION, reply.region).done();
        assert_eq!(whole(&made).0, BYTES as i64, "a live region has a hole");
        wire.release(OBJECT_REGION, reply.region).done();
        stage.tally.attempts += 2;
        stage.tally.granted += 2;
    }
    drop(wire);
    stage.finish();
}

/// The same for a ring's segment: its words are zero then, which the engine takes for a broken
/// client, if it looks at all.
#[test]
fn segments_punched() {
    let mut stage = Stage::set("ring segments punched and sealed early");
    let mut wire = stage.wire();
    while stage.goes_on() {
        for seal in [false, true] {
            let (reply, fds) = wire.ask_ring(16, 16).reply::<RingReply>();
            let segment = &fds[0];
            stage.tally.attempts += 1;
            if seal {
                // Sealed by the client, before the engine could: nothing more can be sealed.
                fcntl(segment, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL)).unwrap();
                let answer = wire.mapped(OBJECT_RING, reply.ring);
                answer.refused(errno::EINVAL, Detail::Seals);
                stage.tally.refuse(errno::EINVAL, Detail::Seals as u16);
                continue;
            }
            let size = reply.segment_bytes as i64;
            fallocate(segment, HOLE, 0, size).unwrap();
            wire.mapped(OBJECT_RING, reply.ring).done();
            ring(fds[1].as_fd());
            assert_eq!(fstat(segment).unwrap().st_blocks * 512, size, "a hole is left");
            wire.release(OBJECT_RING, reply.ring).done();
            stage.tally.faulted += 1;
        }
        if stage.tally.attempts.is_multiple_of(64) {
            wire = stage.wire();
        }
    }
    drop(wire);
    stage.finish();
}

/// One memfd, registered by many sessions at once: one has it, the others are told why not.
#[test]
fn registered_many_times() {
    let mut stage = Stage::set("one memfd registered many times");
    let mut wires: Vec<_> = (0..4).map(|_| stage.wire()).collect();
    while stage.goes_on() {
        let fd = memfd(BYTES, SHRINK_GROW);
        let answers: Vec<Vec<Answer>> = std::thread::scope(|scope| {
            let raw = fd.as_raw_fd();
            let eight = move |wire: &mut Wire| {
                (0..8).map(|_| wire.ask_region(REGION_MEMFD, BYTES, &[raw])).collect()
            };
            let spawn = |wire| scope.spawn(move || eight(wire));
            let threads: Vec<_> = wires.iter_mut().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut granted = 0;
        for (wire, answers) in wires.iter_mut().zip(answers) {
            for answer in answers {
                let answer = stage.tally.answer(answer);
                if let Answer::Refused { .. } = answer {
                    answer.refused(errno::EINVAL, Detail::Seals);
                    continue;
                }
                wire.release(OBJECT_REGION, answer.reply::<RegionReply>().0.region).done();
                granted += 1;
            }
        }
        assert!(granted <= 1, "{granted} regions share one memfd");
    }
    drop(wires);
    stage.finish();
}
