//! Several rails to one place: how ops spread over them, what becomes of those that a failed rail
//! had, and of those that no rail is left for.

use std::sync::atomic::Ordering;

use super::two::{CONFIG, Two, add, rails_of, transfer};
use super::world::{LIMITS, arm, failed, outcome};
use crate::abi::{
    CQE_MAYBE_DONE, CQE_NOTIFY, CQE_RETRYABLE, Cqe, Detail, Opcode, Page, RIGHTS_ALL, SQE_LINK,
    SQE_NOTIFY, Sqe, WAIT_RAIL, errno,
};
use crate::engine::{Command, Limits};
use crate::fabric::qp::provider::{PathSettings, WcStatus, WrVerb};
use crate::fabric::qp::sim::WorkPlan;
use crate::fabric::qp::{Config, News, RailState, Told};
use crate::ids::RegionId;
use crate::seeds::{Random, each_seed};

/// A silent peer is noticed soon.
const PATH: PathSettings = PathSettings { timeout: 1, retry: 1, ..PathSettings::DEFAULT };

/// Rails 1 and 2 to one place.
const BOTH: u64 = 0b110;

/// Side 0 with a region of its own and an import of side 1's, by both rails.
fn joined(limits: Limits) -> (Two, (RegionId, RegionId), RegionId) {
    let config = Config { attempts_max: 20, ..CONFIG };
    let mut two = Two::by(limits, config, 2, PATH);
    let near = two.region(0);
    let target = two.region(1);
    let far = two.offer_set(1, target, RIGHTS_ALL, BOTH);
    (two, (near, far), target)
}

fn cut(two: &Two, rail: u16, cut: bool) {
    two.net.cut(two.join.number(rail, 0), cut);
}

/// The rail that carried an op.
fn rail_of(cqe: &Cqe) -> u16 {
    assert!(cqe.res >= 0, "{cqe:?}");
    cqe.detail & 0xff
}

/// Bytes that were really posted on a rail of side 0, but for markers and probes.
fn posted(two: &Two, rail: u16) -> Vec<(WrVerb, u32)> {
    let posted = two.net.posted(two.join.number(rail, 0));
    posted.iter().filter(|wr| wr.bytes > 0).map(|wr| (wr.verb, wr.bytes)).collect()
}

/// CQEs of side 0, until there are so many.
fn ends(two: &mut Two, count: usize) -> Vec<Cqe> {
    let mut cqes = Vec::new();
    for _ in 0..20_000 {
        two.step();
        cqes.extend(two.pop(0));
        if cqes.len() >= count {
            break;
        }
    }
    assert_eq!(cqes.len(), count);
    cqes
}

/// Keeps `many` ops under way until `total` ended; how many each rail carried.
fn flood(two: &mut Two, ids: (RegionId, RegionId), many: usize, total: usize) -> [usize; 2] {
    let mut carried = [0; 2];
    let (mut pushed, mut over) = (0, 0);
    while over < total {
        while pushed < over + many && pushed < total {
            two.push(0, transfer(Opcode::Write, ids, 64 * (pushed as u64 % 100), 64));
            pushed += 1;
        }
        two.step();
        for cqe in two.pop(0) {
            carried[usize::from(rail_of(&cqe)) - 1] += 1;
            over += 1;
        }
    }
    carried
}

#[test]
fn equal_rails_share_and_a_slow_one_gets_less() {
    let (mut two, ids, _) = joined(LIMITS);
    // Also where neither is ever full: one op at a time goes by them in turn.
    for (many, off) in [(48, 200), (6, 100), (1, 2)] {
        let [a, b] = flood(&mut two, ids, many, 2_000);
        assert!(a.abs_diff(b) <= off, "{a} and {b} of {many} at a time");
    }
    two.net.delay(two.join.number(2, 0), 6_000);
    for many in [48, 6] {
        let [a, b] = flood(&mut two, ids, many, 2_000);
        assert!(b > 0 && b * 2 < a, "{a} and {b} of {many} at a time");
    }
    two.settle();
    two.expect_rest();
}

#[test]
fn one_op_alone_uses_both_rails() {
    let (mut two, ids, target) = joined(LIMITS);
    let cqe = two.run(0, transfer(Opcode::Write, ids, 0, 8192));
    assert_eq!(cqe.res, 8192);
    let counts = [1, 2].map(|rail| posted(&two, rail).len());
    assert!(counts.iter().all(|count| *count >= 8), "{counts:?}");
    assert_eq!(two.worlds[0].bytes(ids.0)[..8192], two.worlds[1].bytes(target)[..8192]);
}

#[test]
fn a_page_list_goes_on_by_the_rail_that_is_left() {
    let (mut two, ids, target) = joined(LIMITS);
    let pages: Vec<_> =
        (0..20).map(|n| Page { local_offset: n * 700, remote_offset: n * 900 }).collect();
    let list = 50_000;
    let memory = std::sync::Arc::clone(&two.worlds[0].memory[&ids.0.0]);
    memory.write(list, zerocopy::IntoBytes::as_bytes(&pages[..]));
    let sqe = transfer(Opcode::Writev, ids, list, 600);
    two.push(0, Sqe { remote_offset: 0, arg: [20 << 32, 0], ..sqe });
    two.steps(3);
    cut(&two, 1, true);
    assert_eq!(ends(&mut two, 1)[0].res, 12_000);
    assert!(rails_of(&mut two.worlds[0]).counts().returned > 0);
    let (near, far) = (two.worlds[0].bytes(ids.0), two.worlds[1].bytes(target));
    for n in 0..20 {
        assert_eq!(near[n * 700..n * 700 + 600], far[n * 900..n * 900 + 600], "page {n}");
    }
}

#[test]
fn what_a_failed_rail_had_under_way_goes_by_the_other() {
    let (mut two, ids, target) = joined(LIMITS);
    for n in 0..12_u64 {
        let opcode = if n % 3 == 2 { Opcode::Read } else { Opcode::Write };
        two.push(0, transfer(opcode, ids, n * 1024, 700));
    }
    two.steps(2);
    cut(&two, 1, true);
    let mut cqes = Vec::new();
    while two.state(0, 1) == RailState::Ready {
        two.step();
        cqes.extend(two.pop(0));
    }
    // Out of use after its first failed completion: only probes go by it from now on.
    let before = posted(&two, 1).len();
    cqes.extend(ends(&mut two, 12 - cqes.len()));
    for n in 12..24_u64 {
        two.push(0, transfer(Opcode::Write, ids, n * 1024, 700));
    }
    cqes.extend(ends(&mut two, 12));
    assert_eq!(posted(&two, 1).len(), before, "work on a rail that is out of use");
    assert!(cqes.iter().all(|cqe| cqe.res == 700), "{cqes:?}");
    let counts = rails_of(&mut two.worlds[0]).counts();
    assert!(counts.returned > 0 && counts.repeats == 0, "{counts:?}");
    assert_eq!(two.worlds[0].bytes(ids.0)[..700], two.worlds[1].bytes(target)[..700]);
    // It is probed, and takes work when the path is there again.
    cut(&two, 1, false);
    two.settle();
    assert_eq!([1, 2].map(|rail| two.state(0, rail)), [RailState::Ready; 2]);
    let [a, b] = flood(&mut two, ids, 48, 400);
    assert!(a.abs_diff(b) <= 40, "{a} and {b}");
    let counts = rails_of(&mut two.worlds[0]).counts();
    assert!(counts.probes > counts.probes_failed, "{counts:?}");
    two.settle();
    two.expect_rest();
}

#[test]
fn atomics_go_by_the_lowest_rail_and_wait_for_it() {
    let (mut two, ids, target) = joined(LIMITS);
    for n in 0..4 {
        two.push(0, add(ids, 8 * n, 1));
    }
    two.steps(2);
    let under_way = posted(&two, 1).len();
    cut(&two, 1, true);
    two.steps(100);
    for n in 4..8 {
        two.push(0, add(ids, 8 * n, 1));
    }
    // They are passed by.
    two.push(0, Sqe { user_data: 77, ..transfer(Opcode::Write, ids, 1024, 512) });
    two.steps(100);
    let mut cqes = two.pop(0);
    let maybe = cqes.iter().filter(|cqe| cqe.flags & CQE_MAYBE_DONE != 0).count();
    assert_eq!(maybe, under_way, "{cqes:?}");
    assert!(cqes.iter().any(|cqe| cqe.user_data == 77 && rail_of(cqe) == 2), "{cqes:?}");
    let waiting = two.why(0, 7).unwrap();
    assert_eq!(waiting.wait, WAIT_RAIL, "{waiting:?}");
    cut(&two, 1, false);
    two.settle();
    cqes.extend(two.pop(0));
    let good = cqes.iter().filter(|cqe| cqe.res == 8).inspect(|cqe| assert_eq!(rail_of(cqe), 1));
    assert_eq!(good.count(), 8 - maybe);
    assert!(posted(&two, 2).iter().all(|(verb, _)| *verb != WrVerb::FetchAdd));
    let all = two.worlds[1].bytes(target);
    for n in 4..8 {
        let at = n * 8;
        let old = super::world::pattern(target, at as u64);
        assert_eq!(all[at], old.wrapping_add(1), "an add that waited was made once");
    }
    two.expect_rest();
}

/// Chains of slices over rails that fail and come back: whoever hears a notification finds all
/// bytes, and hears of each success exactly once.
#[test]
fn notifications_follow_all_bytes_over_rails_that_fail() {
    each_seed(60, |seed| {
        let mut random = Random::new(seed);
        let (mut two, ids, target) = joined(LIMITS);
        two.bound_high(&mut random);
        // What goes by the other rail would not come in order by itself.
        let slow = 1 + u16::try_from(random.below(2)).unwrap();
        two.net.delay(two.join.number(slow, 0), 1_000 + random.below(20_000));
        two.push(1, arm(target, 30));
        for cell in 0..16_u32 {
            let (at, bytes) = (u64::from(cell) * 2048, 1 + random.below32(2000));
            let class = 1 + u8::try_from(random.below32(3)).unwrap();
            let op = transfer(Opcode::Write, ids, at, bytes);
            let immediate = cell << 16 | bytes;
            two.push(0, Sqe { flags: SQE_NOTIFY, immediate, class, ..op });
        }
        let (mut heard, mut told, mut ends) = (0, vec![0; 16], Vec::new());
        for step in 0..6_000 {
            two.step();
            if step < 1_000 && random.below(40) == 0 {
                let rail = 1 + u16::try_from(random.below(2)).unwrap();
                match random.below(3) {
                    0 => two.net.break_pair(two.join.number(rail, random.index(2))),
                    1 => cut(&two, rail, true),
                    _ => cut(&two, rail, false),
                }
            }
            if step == 1_000 {
                [1, 2].into_iter().for_each(|rail| cut(&two, rail, false));
            }
            for cqe in two.pop(1) {
                assert_eq!((cqe.flags & CQE_NOTIFY, cqe.res), (CQE_NOTIFY, 1));
                let (cell, bytes) = ((cqe.queued >> 16) as usize, (cqe.queued & 0xffff) as usize);
                let range = cell * 2048..cell * 2048 + bytes;
                let (near, far) = (two.worlds[0].bytes(ids.0), two.worlds[1].bytes(target));
                assert!(near[range.clone()] == far[range], "told of {bytes} bytes in {cell}");
                told[cell] += 1;
                heard += 1;
            }
            ends.extend(two.pop(0));
        }
        assert_eq!(ends.len(), 16, "all ended");
        assert!(told.iter().all(|times| *times <= 1), "twice: {told:?}");
        let good = ends.iter().filter(|cqe| cqe.res >= 0).count();
        let maybe = ends.iter().filter(|cqe| cqe.flags & CQE_MAYBE_DONE != 0).count();
        assert!((good..=good + maybe).contains(&heard), "{heard} of {good}, maybe {maybe}");
    });
}

#[test]
fn with_both_rails_down_ops_wait_and_go_when_one_is_back() {
    let (mut two, ids, _) = joined(LIMITS);
    two.push(0, transfer(Opcode::Write, ids, 0, 4000));
    two.steps(2);
    [1, 2].into_iter().for_each(|rail| cut(&two, rail, true));
    two.steps(300);
    let waiting = two.push(0, transfer(Opcode::Write, ids, 8192, 100));
    two.steps(300);
    assert_eq!(two.pop(0), []);
    assert_eq!(two.why(0, waiting).unwrap().wait, WAIT_RAIL);
    assert!(two.worlds[0].engine.watches().timed, "back-off and patience need the time");
    cut(&two, 2, false);
    let cqes = ends(&mut two, 2);
    assert!(cqes.iter().all(|cqe| cqe.res > 0 && rail_of(cqe) == 2), "{cqes:?}");
    cut(&two, 1, false);
    two.settle();
    two.expect_rest();
}

#[test]
fn with_both_rails_down_for_good_ops_end_in_bounded_time() {
    let (mut two, ids, _) = joined(Limits { cut_off_ns: 3_000_000, ..LIMITS });
    two.push(0, transfer(Opcode::Write, ids, 0, 4000));
    two.push(0, Sqe { flags: SQE_NOTIFY, ..transfer(Opcode::Write, ids, 8192, 3000) });
    two.steps(1);
    [1, 2].into_iter().for_each(|rail| cut(&two, rail, true));
    two.push(0, add(ids, 16384, 1));
    let mut cqes = Vec::new();
    for _ in 0..8_000 {
        two.step();
        cqes.extend(two.pop(0));
    }
    assert_eq!(cqes.len(), 3, "{cqes:?}");
    for cqe in &cqes {
        let (res, flags, detail) = outcome(cqe);
        if flags & CQE_MAYBE_DONE == 0 {
            assert_eq!((res, detail), (-errno::EHOSTDOWN, Detail::Peer as u16), "{cqe:?}");
            assert!(flags & CQE_RETRYABLE != 0, "{cqe:?}");
        }
    }
    // One that never left was certainly without effect.
    let queued = two.push(0, transfer(Opcode::Write, ids, 0, 8));
    two.step();
    assert_eq!(two.why(0, queued).unwrap().wait, WAIT_RAIL);
    let end = ends(&mut two, 1)[0];
    assert_eq!(outcome(&end), failed(errno::EHOSTDOWN, CQE_RETRYABLE, Detail::Peer));
    two.worlds[0].expect_rest();
}

/// Tells side 0 that a rail of its own has ended for good.
fn end(two: &mut Two, rail: u16) {
    let news = News::Gone;
    rails_of(&mut two.worlds[0]).tell(Told { rail, epoch: 1, news });
    assert_eq!(two.state(0, rail), RailState::Dead);
}

/// A rail that has left takes nothing that others may carry: who lacks their credit steps aside.
#[test]
fn with_one_rail_gone_who_lacks_credit_holds_nobody_back() {
    let (mut two, ids, _) = joined(LIMITS);
    end(&mut two, 1);
    two.stopped = Some(1);
    for _ in 0..2 * CONFIG.receives {
        two.push(0, Sqe { flags: SQE_NOTIFY, ..transfer(Opcode::Write, ids, 0, 8) });
    }
    let plain = two.push(0, transfer(Opcode::Write, ids, 1024, 512));
    two.steps(100);
    let cqes = two.pop(0);
    assert!(cqes.iter().any(|cqe| cqe.user_data == plain && cqe.res == 512), "{cqes:?}");
    assert!(cqes.len() < 1 + 2 * CONFIG.receives as usize, "credit was wanting");
    two.steps(100);
    assert!(!two.worlds[0].turn().worked(), "it sleeps until there is credit");
}

/// While the rails that are left are mended, the engine sleeps.
#[test]
fn with_one_rail_gone_and_the_other_down_the_engine_sleeps() {
    let (mut two, ids, _) = joined(LIMITS);
    end(&mut two, 1);
    two.served = false;
    two.net.break_pair(two.join.number(2, 0));
    two.push(0, transfer(Opcode::Write, ids, 0, 8));
    two.steps(200);
    assert!(!two.worlds[0].turn().worked(), "nothing moves");
}

/// What is handed back after its import was withdrawn is over: it waits for no rail.
#[test]
fn what_comes_back_to_a_withdrawn_import_ends_at_once() {
    let (mut two, ids, _) = joined(LIMITS);
    let other = two.region(1);
    let far = two.offer_set(1, other, RIGHTS_ALL, BOTH);
    // One on each rail, and behind one of them what is to go.
    let stays = [0, 1].map(|n| two.push(0, transfer(Opcode::Write, ids, n * 256, 100)));
    let goes = two.push(0, transfer(Opcode::Write, (ids.0, far), 0, 100));
    two.steps(1);
    [1, 2].into_iter().for_each(|rail| cut(&two, rail, true));
    let token = two.told(0, |token| Command::Withdraw { region: far, token });
    two.steps(2_000);
    let cqes = two.pop(0);
    assert!(two.done(0, token), "withdrawn, though another op waits: {cqes:?}");
    let revoked = failed(errno::ESTALE, 0, Detail::Revoked);
    let over: Vec<_> = cqes.iter().map(|cqe| (cqe.user_data, outcome(cqe))).collect();
    assert_eq!(over, [(goes, revoked)]);
    [1, 2].into_iter().for_each(|rail| cut(&two, rail, false));
    let ends = ends(&mut two, 2);
    assert!(ends.iter().all(|cqe| stays.contains(&cqe.user_data) && cqe.res == 100), "{ends:?}");
}

/// A READ whose answer is lost is repeated. What waits for it must not have been done by then.
#[test]
fn a_read_never_brings_what_was_written_behind_it() {
    for later in [Opcode::Write, Opcode::FetchAdd] {
        let (mut two, ids, target) = joined(LIMITS);
        let (old, new) = (7, 9);
        let near = two.worlds[0].memory[&ids.0.0].clone();
        let far = two.worlds[1].memory[&target.0].clone();
        far.word64(512).store(old, Ordering::Relaxed);
        near.word64(1024).store(new, Ordering::Relaxed);
        // It arrives, and is done; its answer is lost. What is on its way by then arrives, too: a
        // fence keeps what is chained to it from being that.
        two.net.land_late(true);
        for rail in [1, 2] {
            let status = WcStatus::RetryExceeded;
            let plan = WorkPlan { after: 0, status, effect: true };
            two.net.plan_work(two.join.number(rail, 0), plan);
        }
        let read = transfer(Opcode::Read, ids, 0, 8);
        let behind = match later {
            Opcode::Write => transfer(Opcode::Write, ids, 0, 8),
            _ => add(ids, 0, 2),
        };
        two.push(0, Sqe { flags: SQE_LINK, remote_offset: 512, local_offset: 0, ..read });
        two.push(0, Sqe { remote_offset: 512, local_offset: 1024, ..behind });
        let mut cqes = ends(&mut two, 2);
        cqes.sort_by_key(|cqe| cqe.user_data);
        assert_eq!(cqes[0].res, 8, "{later:?}: {cqes:?}");
        // Nobody knows whether an add went out before the failure, so that it is not repeated.
        let maybe = later != Opcode::Write && cqes[1].flags & CQE_MAYBE_DONE != 0;
        assert!(cqes[1].res == 8 || maybe, "{later:?}: {cqes:?}");
        assert!(rails_of(&mut two.worlds[0]).counts().returned > 0, "it was not repeated");
        assert_eq!(near.word64(0).load(Ordering::Relaxed), old, "{later:?}");
        let holds = far.word64(512).load(Ordering::Relaxed);
        assert!(holds == new || maybe && holds == old, "{later:?}: {holds}");
        two.expect_rest();
    }
}
