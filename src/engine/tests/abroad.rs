//! Regions across two engines: loans and their end, withdrawal, atomics at home, and peers that
//! speak of what they were not lent.

use super::two::{Two, add, rails_of, transfer};
use super::world::{arm, failed, flush, outcome, revoke};
use crate::abi::{
    CQE_NOTIFY, Detail, FABRIC_VERBS, Opcode, RIGHT_NOTIFY, RIGHT_WRITE, RIGHTS_ALL, SQE_NOTIFY,
    Sqe, errno,
};
use crate::engine::{Command, Event, Reply};
use crate::fabric::qp::provider::{
    Caps, Link, Move, PathSettings, ProviderControl, WcStatus, WrVerb,
};
use crate::fabric::qp::sim::WorkPlan;
use crate::fabric::qp::{Ask, News, RailState, Told};
use crate::ids::{RegionId, SessionId};
use crate::seeds::{Random, each_seed};

struct Route {
    two: Two,
    ids: (RegionId, RegionId),
    target: RegionId,
}

fn route() -> Route {
    let mut two = Two::new(1);
    let (near, target) = (two.region(0), two.region(1));
    let far = two.offer(1, target, RIGHTS_ALL, [1; 3]);
    Route { two, ids: (near, far), target }
}

const REVOKED: (i32, u16, u16) = (-errno::ESTALE, 0, Detail::Revoked as u16);

fn withdraw(two: &mut Two, region: RegionId) -> u64 {
    two.told(0, |token| Command::Withdraw { region, token })
}

fn removed(two: &mut Two, side: usize, token: u64) -> bool {
    match two.worlds[side].reply(token) {
        Some(Reply::RegionGone { .. }) => true,
        None => false,
        other => panic!("a removal was answered with {other:?}"),
    }
}

/// The answer comes when nothing through the import is with the fabric, and not before; what is
/// posted runs to its end, what is queued and what comes later does not.
#[test]
fn withdraw_waits_for_what_is_posted_and_ends_what_is_queued() {
    each_seed(60, |seed| {
        let mut random = Random::new(seed);
        let Route { mut two, ids, .. } = route();
        let count = 1 + random.below(12);
        for at in 0..count {
            two.push(0, transfer(Opcode::Write, ids, at * 2048, random.below32(1500)));
        }
        two.steps(random.below32(20));
        let token = withdraw(&mut two, ids.1);
        let late = two.push(0, transfer(Opcode::Write, ids, 0, 8));
        let import = ids.1.index() as usize;
        for _ in 0..200 {
            two.step();
            let open = two.worlds[0].engine.regions[import].remote_refs;
            if two.done(0, token) {
                assert_eq!(open, 0, "answered while an op is under way");
                assert_eq!(two.worlds[0].engine.posts.open_posts().count(), 0);
                break;
            }
            assert!(open > 0, "not answered though nothing is under way");
        }
        two.settle();
        let ends = two.pop(0);
        assert_eq!(ends.len() as u64, count + 1);
        for cqe in &ends {
            let refused = outcome(cqe) == REVOKED;
            assert!(refused || cqe.res >= 0 && cqe.user_data != late, "{cqe:?}");
        }
        let region = ids.1;
        let token = two.worlds[0].remove(region);
        assert!(removed(&mut two, 0, token));
        two.expect_rest();
    });
}

/// Ops that are parked on a rail that takes nothing do not keep a Withdraw, a FLUSH or a ring
/// waiting.
#[test]
fn withdraw_finds_what_is_parked() {
    let Route { mut two, ids, .. } = route();
    two.served = false;
    two.net.break_pair(two.join.number(1, 0));
    two.steps(40);
    // Behind one that stays.
    let (own, other) = (two.region(0), two.region(1));
    let stays = two.offer(1, other, RIGHTS_ALL, [1; 3]);
    let first = two.push(0, transfer(Opcode::Write, (own, stays), 0, 8));
    for _ in 0..20 {
        two.push(0, transfer(Opcode::Write, ids, 0, 600));
    }
    two.push(0, flush(ids.0));
    two.steps(5);
    assert_eq!(two.pop(0), []);
    assert!(!two.worlds[0].turn().worked(), "a FLUSH that waits for a rail lets the engine sleep");
    let token = withdraw(&mut two, ids.1);
    two.steps(3);
    assert!(two.done(0, token));
    let ends: Vec<_> = two.pop(0).iter().map(outcome).collect();
    assert_eq!(ends.iter().filter(|end| **end == REVOKED).count(), 20);
    assert_eq!(ends.last(), Some(&(0, 0, 0)), "and the FLUSH");
    let again = withdraw(&mut two, RegionId::new(9, 40));
    let answer = two.worlds[0].reply(again);
    assert!(matches!(answer, Some(Reply::Failed { errno: errno::ENOENT, .. })), "{answer:?}");
    two.served = true;
    two.settle();
    let ends: Vec<_> = two.pop(0).iter().map(|cqe| (cqe.user_data, cqe.res)).collect();
    assert_eq!(ends, [(first, 8)]);
    two.expect_rest();
}

/// A withdrawn import may be released before the last op through it has ended.
#[test]
fn an_import_is_released_while_it_is_withdrawn() {
    let Route { mut two, ids, .. } = route();
    two.push(0, transfer(Opcode::Write, ids, 0, 900));
    two.steps(1);
    let gone = withdraw(&mut two, ids.1);
    let removal = two.worlds[0].remove(ids.1);
    assert!(!two.done(0, gone) && !removed(&mut two, 0, removal));
    two.settle();
    assert!(two.done(0, gone) && removed(&mut two, 0, removal));
    two.expect_rest();
}

#[test]
fn revoke_and_removal_wait_until_no_rail_has_the_region() {
    for remove in [false, true] {
        let mut two = Two::new(2);
        let target = two.region(1);
        for (rail, rights) in [(1, RIGHT_WRITE), (2, RIGHTS_ALL), (1, RIGHT_NOTIFY)] {
            assert_eq!(two.lend(1, target, (rail, rights, 0)), Ok(()));
        }
        two.worlds[1].events.clear();
        let token = if remove {
            two.worlds[1].remove(target)
        } else {
            two.push(1, revoke(target));
            0
        };
        two.settle();
        assert_eq!(two.worlds[1].events, [Event::Revoked { region: target }]);
        assert_eq!(two.lend(1, target, (1, RIGHT_WRITE, 0)), Err(errno::ESTALE));
        for rail in [1, 2] {
            assert_eq!(two.pop(1), []);
            assert!(!remove || !removed(&mut two, 1, token));
            two.take_back(1, target, rail);
            two.settle();
        }
        if remove {
            assert!(removed(&mut two, 1, token));
        } else {
            assert_eq!(two.pop(1).iter().map(outcome).collect::<Vec<_>>(), [(0, 0, 0)]);
            assert_eq!(two.lend(1, target, (1, RIGHT_WRITE, 0)), Err(errno::ESTALE), "unheard");
            assert_eq!(two.lend(1, target, (1, RIGHT_WRITE, 1)), Ok(()), "lent anew");
            two.take_back(1, target, 1);
        }
        two.expect_rest();
    }
}

#[test]
fn what_cannot_be_lent_is_refused() {
    let Route { mut two, ids, target } = route();
    assert_eq!(two.lend(1, target, (0, RIGHTS_ALL, 0)), Err(errno::EINVAL), "this host");
    assert_eq!(two.lend(1, target, (4, RIGHTS_ALL, 0)), Err(errno::EINVAL), "no such rail");
    assert_eq!(two.lend(0, ids.1, (1, RIGHTS_ALL, 0)), Err(errno::ESTALE), "an import");
    assert_eq!(two.lend(1, RegionId::new(7, 50), (1, RIGHTS_ALL, 0)), Err(errno::ESTALE));
    two.take_back(1, RegionId::new(7, 50), 1);
    two.take_back(1, target, 77);
}

/// A peer is believed only about what it was lent, and only while it is.
#[test]
fn arrivals_about_what_was_not_lent_are_strays() {
    let Route { mut two, ids, target } = route();
    two.push(1, arm(target, 8));
    let tell = |immediate| {
        let op = transfer(Opcode::Write, ids, 0, 8);
        Sqe { flags: SQE_NOTIFY, immediate, ..op }
    };
    two.run(0, tell(1));
    assert_eq!(two.pop(1).len(), 1);
    two.take_back(1, target, 1);
    two.run(0, tell(2));
    assert_eq!((two.pop(1).len(), two.worlds[1].engine.strays()), (0, 1), "taken back");
    two.lend(1, target, (1, RIGHT_WRITE, 0)).unwrap();
    two.run(0, tell(3));
    assert_eq!((two.pop(1).len(), two.worlds[1].engine.strays()), (0, 2), "without NOTIFY");
    two.lend(1, target, (1, RIGHT_NOTIFY, 0)).unwrap();
    two.run(0, tell(4));
    let heard = two.pop(1);
    assert_eq!((heard[0].flags & CQE_NOTIFY, heard[0].queued), (CQE_NOTIFY, 4), "widened");
    // A region that never was, and a place beyond the table.
    for name in [RegionId::new(3, target.index()), RegionId::new(1, 1 << 19)] {
        let far = two.import_as(1, target, RIGHTS_ALL, ([1; 3], name));
        let op = transfer(Opcode::Write, (ids.0, far), 0, 8);
        two.run(0, Sqe { flags: SQE_NOTIFY, ..op });
    }
    assert_eq!(two.worlds[1].engine.strays(), 4);
    assert_eq!(two.pop(1), []);
}

/// A queue pair of side 0 to itself, as rail 2.
fn loopback(two: &mut Two) -> u32 {
    let config = super::two::CONFIG;
    let Caps { sends, receives, inline_bytes, ranges } = config.caps();
    let settings = PathSettings::DEFAULT;
    let control = two.join.control(0);
    let made = control.create(Caps { sends, receives, inline_bytes, ranges }).unwrap();
    control.modify(made.number, &Move::Init(settings)).unwrap();
    let own = control.endpoint(made.number, &settings, config.receives).unwrap();
    let link = Link { own, peer: own, settings };
    let rails = rails_of(&mut two.worlds[0]);
    assert!(rails.adopt(2, made.pair, made.caps, 0).is_ok());
    two.served = false;
    two.step();
    let wish = rails_of(&mut two.worlds[0]).wish().unwrap();
    assert_eq!((wish.rail, wish.ask), (2, Ask::Connect));
    let control = two.join.control(0);
    control.modify(made.number, &Move::ReadyToReceive(link)).unwrap();
    control.modify(made.number, &Move::ReadyToSend(link)).unwrap();
    let news = News::Connected { credits: config.receives };
    rails_of(&mut two.worlds[0]).tell(Told { rail: 2, epoch: wish.epoch, news });
    two.served = true;
    two.settle();
    assert_eq!(two.state(0, 2), RailState::Ready);
    made.number
}

/// Once a region has a home, its own host's atomics go by the card like those of peers: a lost
/// update would show.
#[test]
fn atomics_of_this_host_go_home_and_nothing_else_does() {
    let mut two = Two::new(1);
    let number = loopback(&mut two);
    let (near, target) = (two.region(0), two.region(0));
    let theirs = two.region(1);
    two.set_home(0, target, 2);
    let own = two.worlds[0].import(SessionId(0), target);
    let far = two.offer(0, target, RIGHTS_ALL, [1; 3]);
    two.worlds[0].memory[&target.0].write(0, &[0; 8]);
    two.push(0, arm(target, 8));
    for at in 0..10 {
        let flags = if at == 9 { SQE_NOTIFY } else { 0 };
        two.push(0, Sqe { flags, local_offset: at * 8, ..add((near, own), 0, 1) });
        two.push(1, Sqe { local_offset: at * 8, ..add((theirs, far), 0, 100) });
    }
    two.settle();
    let ends = two.pop(0);
    let (told, ends): (Vec<_>, Vec<_>) =
        ends.into_iter().partition(|cqe| cqe.flags & CQE_NOTIFY != 0);
    let home = (8, 0, u16::from(FABRIC_VERBS) << 8 | 2);
    assert!(ends.iter().all(|cqe| outcome(cqe) == home) && ends.len() == 10, "{ends:?}");
    assert_eq!(told.len(), 1, "the owner hears of it once, from its engine");
    let adds = |number| {
        let posted = two.net.posted(number);
        posted.iter().filter(|wr| wr.verb == WrVerb::FetchAdd).count()
    };
    assert_eq!(adds(number), 10);
    assert_eq!(two.worlds[0].bytes(target)[..8], 1010_u64.to_le_bytes());
    let sqe = transfer(Opcode::Write, (near, own), 1024, 64);
    assert_eq!(outcome(&two.run(0, sqe)).2 >> 8, u16::from(crate::abi::FABRIC_LOCAL));
    assert_eq!(two.worlds[0].engine.strays(), 0);
    two.take_back(0, target, 1);
    let token = two.worlds[0].remove(target);
    two.settle();
    assert!(removed(&mut two, 0, token));
    assert_eq!(two.pop(0).len(), 1, "the ARM");
    let sqe = add((near, own), 0, 1);
    assert_eq!(outcome(&two.run(0, sqe)), REVOKED);
    two.expect_rest();
}

/// An atomic that failed with its queue pair may have been done, and says so.
#[test]
fn an_atomic_that_was_cut_off_is_maybe_done() {
    let Route { mut two, ids, target } = route();
    two.worlds[1].memory[&target.0].write(0, &[0; 8]);
    let (status, effect) = (WcStatus::RetryExceeded, true);
    two.net.plan_work(two.join.number(1, 0), WorkPlan { after: 0, status, effect });
    let cqe = two.run(0, add(ids, 0, 5));
    let flags = crate::abi::CQE_FLUSHED | crate::abi::CQE_MAYBE_DONE;
    assert_eq!(outcome(&cqe), failed(errno::ETIMEDOUT, flags, Detail::Wire));
    assert_eq!(two.worlds[1].bytes(target)[..8], 5_u64.to_le_bytes(), "it was");
    two.expect_rest();
}
