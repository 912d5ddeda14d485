//! WRITEV and READV: lists up to 1,024 pages, copied once, from a pool that is never overrun.

use super::script::Stage;
use super::world::{LIMITS, Pair, RECEIVER, REGION_BYTES, SENDER, World, moved, nop, outcome};
use crate::abi::{Detail, Opcode, Page, Sqe, errno};
use crate::engine::Limits;
use crate::seeds::{Random, each_seed};

/// Pages in a random order, none twice, on either side.
fn shuffled(random: &mut Random, count: u64, bytes: u64) -> Vec<Page> {
    let mut places: Vec<u64> = (0..count).collect();
    for at in (1..places.len()).rev() {
        places.swap(at, random.index(at + 1));
    }
    let page =
        |(at, place): (u64, &u64)| Page { local_offset: at * bytes, remote_offset: place * bytes };
    (0..).zip(&places).map(page).collect()
}

#[test]
fn lists_of_every_length_move_every_page_to_its_place() {
    each_seed(10, |seed| {
        let mut random = Random::new(seed);
        for count in [1, 2, 63, 64, 65, 127, 128, 129, 1_023, 1_024] {
            for opcode in [Opcode::Writev, Opcode::Readv] {
                let bytes = random.pick(&[0, 1, 7, 32, 40]);
                let mut pair = Pair::new(World::local(LIMITS), 16);
                pair.world.audited = count < 1_000;
                let pages = shuffled(&mut random, count, u64::from(bytes));
                let sqe = pair.list(opcode, &pages, bytes);
                let (mut near, mut far) =
                    (pair.world.bytes(pair.near), pair.world.bytes(pair.target));
                for page in &pages {
                    let length = bytes as usize;
                    let here = usize::try_from(page.local_offset).unwrap();
                    let there = usize::try_from(page.remote_offset).unwrap();
                    if opcode == Opcode::Writev {
                        far[there..there + length].copy_from_slice(&near[here..here + length]);
                    } else {
                        near[here..here + length].copy_from_slice(&far[there..there + length]);
                    }
                }
                let cqe = pair.world.run(SENDER, sqe);
                let all = i32::try_from(u64::from(bytes) * count).unwrap();
                assert_eq!(outcome(&cqe), moved(all), "{count} pages of {bytes}");
                assert!(pair.world.bytes(pair.near) == near, "{count} pages of {bytes}");
                assert!(pair.world.bytes(pair.target) == far, "{count} pages of {bytes}");
                pair.world.expect_rest();
            }
        }
    });
}

/// A bad page is refused wherever it stands, before any page has moved.
#[test]
fn a_bad_page_is_refused_and_nothing_moves() {
    let beyond = REGION_BYTES - 31;
    let bad = [
        Page { local_offset: beyond, remote_offset: 0 },
        Page { local_offset: 0, remote_offset: beyond },
        Page { local_offset: u64::MAX, remote_offset: 0 },
        Page { local_offset: 0, remote_offset: u64::MAX },
        Page { local_offset: 0, remote_offset: u64::MAX - 15 },
    ];
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let untouched = pair.world.bytes(pair.target);
    for count in [1, 64, 65, 200] {
        for place in [0, 1, 63, 64, count - 1] {
            for page in bad {
                let mut pages = shuffled(&mut Random::new(place as u64), count as u64, 32);
                if place >= count {
                    continue;
                }
                pages[place] = page;
                let sqe = Sqe { remote_offset: 16, ..pair.list(Opcode::Writev, &pages, 32) };
                let cqe = pair.world.run(SENDER, sqe);
                let said = (cqe.record, cqe.res, cqe.detail);
                assert_eq!(said, (0, -errno::EINVAL, Detail::Page as u16), "{page:?}");
                pair.world.expect_rest();
            }
        }
    }
    assert!(untouched == pair.world.bytes(pair.target));
}

#[test]
fn a_page_onto_itself_is_refused() {
    let mut pair = Pair::new(World::local(LIMITS), 16);
    let session = pair.world.clients[SENDER].session;
    pair.far = pair.world.import(session, pair.near);
    for (shift, good) in [(31, false), (32, true), (0, false)] {
        let pages = [
            Page { local_offset: 4096, remote_offset: 8192 },
            Page { local_offset: 1024, remote_offset: 1024 + shift },
        ];
        let sqe = pair.list(Opcode::Writev, &pages, 32);
        let cqe = pair.world.run(SENDER, sqe);
        let overlap = (cqe.res, cqe.detail) == (-errno::EINVAL, Detail::Overlap as u16);
        assert_eq!(overlap, !good, "{cqe:?}");
        assert_eq!(cqe.record == 0, overlap);
    }
}

/// What the client does to its list after the SQE was taken changes nothing.
#[test]
fn a_list_is_copied_once() {
    let stage = Stage::new();
    let mut pair = Pair::new(World::new(LIMITS, stage.fabric(LIMITS)), 16);
    stage.hold();
    let pages = shuffled(&mut Random::new(1), 100, 32);
    let sqe = pair.list(Opcode::Writev, &pages, 32);
    pair.world.push(SENDER, sqe);
    pair.world.turn();
    let garbage = vec![Page { local_offset: u64::MAX, remote_offset: u64::MAX }; 100];
    pair.list(Opcode::Writev, &garbage, 32);
    stage.release();
    pair.world.settle();
    assert_eq!(outcome(&pair.world.pop(SENDER)[0]), moved(3_200));
    let offsets: Vec<u64> = stage.plan().taken.iter().map(|r| r.remote_offset).collect();
    assert_eq!(offsets, pages.iter().map(|page| page.remote_offset).collect::<Vec<_>>());
}

/// No block free: the SQE waits in the ring, with all behind it, and nobody else does.
#[test]
fn a_list_pool_used_up_is_back_pressure() {
    let stage = Stage::new();
    let limits = Limits { list_blocks: 64, window_wrs: 1, ..LIMITS };
    let mut pair = Pair::new(World::new(limits, stage.fabric(limits)), 16);
    stage.hold();
    let pages = shuffled(&mut Random::new(1), 1_024, 32);
    for _ in 0..6 {
        let sqe = pair.list(Opcode::Writev, &pages, 32);
        pair.world.push(SENDER, sqe);
    }
    pair.world.push(SENDER, nop());
    pair.world.turn();
    let taken = pair.world.clients[SENDER].taken();
    assert!((1..6).contains(&taken), "{taken} lists of 16 blocks from a pool of 64");
    assert_eq!(pair.world.pop(SENDER), []);
    // Another session has its part, and ops without a list need none.
    let far = pair.world.import(pair.world.clients[RECEIVER].session, pair.near);
    let small = Sqe {
        opcode: Opcode::Writev as u8,
        local_region: pair.target.0,
        remote_region: far.0,
        arg: [1 << 32, 0],
        ..nop()
    };
    pair.world.memory[&pair.target.0].fill(0, 16, 0);
    pair.world.push(RECEIVER, small);
    pair.world.push(RECEIVER, nop());
    pair.world.turn();
    assert_eq!(pair.world.clients[RECEIVER].taken(), 2);
    pair.world.audited = false;
    stage.release();
    pair.world.settle();
    let sent = pair.world.pop(SENDER);
    assert_eq!(sent.len(), 7);
    assert!(sent.iter().all(|cqe| cqe.res >= 0), "{sent:?}");
    pair.world.expect_rest();
}
