//! Page lists that change while they are copied: each entry is read once, and what was read is
//! what is judged and moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use verbring::abi::{Detail, FABRIC_LOCAL, OBJECT_RING, Opcode, Sqe, errno};

use super::chance::Chance;
use super::stage::Stage;

const REGION_BYTES: u64 = 1 << 20;
const PAGES: u64 = 256;
const PAGE_BYTES: u32 = 64;
/// Where good pages land: below this. Above it nothing may ever change.
const GOOD_BELOW: u64 = 64 << 10;

/// A thread keeps rewriting the entries of a list, good and bad in turn, while READVs and WRITEVs
/// of it run. An entry that was good when judged and bad when used would move bytes where no good
/// entry points, or outside the region.
#[test]
fn changed_while_copied() {
    let mut stage = Stage::set("page lists changed while they are copied");
    let mut wire = stage.wire();
    let mut ring = wire.ring(16, 64);
    let (near, near_memory) = wire.region(REGION_BYTES);
    let (far, far_memory) = wire.region(REGION_BYTES);
    let import = wire.own_import(far, "lists");
    let list_at = REGION_BYTES - 16 * PAGES;
    let near_memory = Arc::new(near_memory);
    far_memory.fill(GOOD_BELOW, REGION_BYTES - GOOD_BELOW, 0xEE);
    near_memory.fill(GOOD_BELOW, list_at - GOOD_BELOW, 0xEE);
    let stop = Arc::new(AtomicBool::new(false));
    let mutator = {
        let (memory, stop) = (Arc::clone(&near_memory), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut chance = Chance::new(40);
            while !stop.load(Ordering::Relaxed) {
                // Mostly good ones, or no list would ever be.
                for word in 0..2 * PAGES {
                    let good = chance.below(GOOD_BELOW / 64) * 64;
                    let bad = [REGION_BYTES - 63, u64::MAX - 63, 1 << 40];
                    let value = if chance.once_in(2_000) { chance.of(&bad) } else { good };
                    memory.word64(list_at + 8 * word).store(value, Ordering::Relaxed);
                }
            }
        })
    };
    while stage.goes_on() || stage.tally.attempts < 5_000 {
        for at in 0..16u64 {
            let sqe = Sqe {
                opcode: [Opcode::Writev, Opcode::Readv][(at % 2) as usize] as u8,
                local_region: near,
                remote_region: import,
                local_offset: list_at,
                bytes: PAGE_BYTES,
                arg: [PAGES << 32, 0],
                ..Sqe::default()
            };
            ring.write(&sqe);
        }
        ring.publish();
        for _ in 0..16 {
            let cqe = ring.next();
            let all = PAGES as i32 * PAGE_BYTES as i32;
            let done = (cqe.res, cqe.detail) == (all, u16::from(FABRIC_LOCAL) << 8);
            let refused = (-cqe.res, cqe.detail) == (errno::EINVAL, Detail::Page as u16);
            assert!(done || refused && cqe.record == 0, "{cqe:?}");
            stage.tally.attempts += 1;
            stage.tally.cqe(&cqe);
        }
    }
    stop.store(true, Ordering::Relaxed);
    mutator.join().unwrap();
    assert!(stage.tally.granted > 0 && stage.tally.refusals(errno::EINVAL, Detail::Page) > 0);
    for (memory, end) in [(&far_memory, REGION_BYTES), (&*near_memory, list_at)] {
        let mut rest = vec![0; (end - GOOD_BELOW) as usize];
        memory.read(GOOD_BELOW, &mut rest);
        assert!(rest.iter().all(|byte| *byte == 0xEE), "bytes where no good entry points");
    }
    wire.release(OBJECT_RING, ring.number).done();
    drop((wire, ring, near_memory, far_memory));
    stage.finish();
}
