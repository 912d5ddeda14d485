//! Rails that fail again and again, and cards that err: who takes work, and when.

use super::super::provider::{PathSettings, WcStatus};
use super::super::sim::{PostPlan, Say, WorkPlan};
use super::super::{Config, News, RailState, Recovery, Told};
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{Harness, request, succeed};
use crate::fabric::{DONE_RETURNED, Done, Fabric, Request, Stop, Verb};

/// A silent peer is noticed soon.
const PATH: PathSettings = PathSettings { timeout: 1, retry: 0, ..PathSettings::DEFAULT };
const BACKOFF: Recovery =
    Recovery { backoff_first_ns: 50_000, backoff_max_ns: 800_000, ..CONFIG.recovery };

fn two(rails: u16, recovery: Recovery) -> Two {
    let config = Config { recovery, ..CONFIG };
    let mut two = Two::new(Shape { rails, config, path: PATH, ..Shape::DEFAULT });
    if rails > 1 {
        two.near.share(0b11);
        two.far.share(0b11);
    }
    two
}

fn write(n: u64, rail: u16) -> Request {
    Request { rail, ..request(n, Verb::Write, n * 64, n * 64, 64) }
}

/// Lets time pass; what ended.
fn pass(two: &mut Two, ns: u64) -> Vec<Done> {
    let mut done = Vec::with_capacity(64);
    let until_ns = two.net.now_ns() + ns;
    while two.net.now_ns() < until_ns {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    done
}

/// When a rail on a dead path is probed, ns from one probe to the next.
fn waits(seed: u64) -> Vec<u64> {
    let mut two = two(2, Recovery { seed, ..BACKOFF });
    let number = two.join.number(0, 0);
    two.net.cut(number, true);
    assert_eq!(two.near.post(&[write(0, 0)]), 1);
    let mut at = Vec::new();
    let mut seen = two.net.posted(number).len();
    while at.len() < 10 {
        pass(&mut two, 500);
        let now = two.net.posted(number).len();
        if now > seen {
            at.push(two.net.now_ns());
        }
        seen = now;
    }
    at.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn a_dead_path_is_probed_less_and_less_often_but_often_enough() {
    let (a, b) = (waits(1), waits(2));
    assert_ne!(a, b, "jitter");
    assert_eq!(a, waits(1), "from a seed");
    for waits in [a, b] {
        assert!(waits[0] >= 25_000, "{waits:?}");
        assert!(waits[1] >= 50_000 && waits[2] >= 100_000 && waits[3] >= 200_000, "{waits:?}");
        // The longest, and what it takes to fail and be connected again.
        assert!(waits.iter().all(|wait| *wait <= 900_000), "{waits:?}");
    }
}

#[test]
fn a_probe_that_succeeds_brings_a_rail_back_and_no_work_goes_before() {
    let mut two = two(2, BACKOFF);
    let number = two.join.number(0, 0);
    two.net.cut(number, true);
    assert_eq!(two.near.post(&[write(0, 0), write(1, 0)]), 2);
    let done = pass(&mut two, 200_000);
    let returned = |done: &&Done| done.flags == DONE_RETURNED && done.attempts == 1;
    assert_eq!(done.iter().filter(returned).count(), 2, "{done:?}");
    assert_eq!(two.near.post(&[write(2, 0)]), 0);
    assert_eq!(two.near.room(0).stop.map(|stop| stop == Stop::Depth), Some(false));
    // The other one takes it.
    assert_eq!(two.near.post(&[write(2, 1)]), 1);
    two.net.cut(number, false);
    let mended_ns = two.net.now_ns();
    while two.near.state(0) != RailState::Ready {
        pass(&mut two, 500);
        // Else the answer of the control side wakes it.
        let tried = two.near.state(0) == RailState::Trial;
        let awake = two.near.restless() || two.net.pending(number) > 0;
        assert!(!tried || awake, "it would sleep for ever");
    }
    let took_ns = two.net.now_ns() - mended_ns;
    assert!(took_ns <= BACKOFF.backoff_max_ns + 100_000, "back after {took_ns} ns");
    let counts = two.near.counts();
    assert!(counts.probes > counts.probes_failed && counts.repeats == 0, "{counts:?}");
    succeed(&mut two, &[write(9, 0)]);
}

/// Only of a life in which nobody has answered it is said that its path may lead nowhere.
#[test]
fn a_path_that_never_answered_is_told_from_one_that_did() {
    let mut two = two(1, BACKOFF);
    let number = two.join.number(0, 0);
    succeed(&mut two, &[write(0, 0)]);
    two.net.cut(number, true);
    assert_eq!(two.near.post(&[write(0, 0), write(1, 0)]), 2);
    while two.near.counts().degraded == 0 {
        pass(&mut two, 500);
    }
    assert_eq!(two.near.counts().barren, 0, "it had answered before");
    // What is repeated in the next life finds nobody.
    while two.near.counts().degraded < 3 {
        pass(&mut two, 500);
    }
    assert_eq!(two.near.counts().barren, 2, "once a life");
    two.net.cut(number, false);
    while two.near.state(0) != RailState::Ready {
        pass(&mut two, 500);
    }
    // What was repeated is done.
    pass(&mut two, 100_000);
    succeed(&mut two, &[write(9, 0)]);
    // What the peer refuses, or its end, is nothing that the path does.
    let before = two.near.counts().barren;
    two.net.break_pair(number);
    pass(&mut two, 300_000);
    assert_eq!(two.near.counts().barren, before);
}

/// What was under way too often is not handed back for ever.
#[test]
fn attempts_are_carried_along() {
    let mut two = two(2, BACKOFF);
    for attempts in 0..=CONFIG.attempts_max {
        two.net.break_pair(two.join.number(0, 0));
        assert_eq!(two.near.post(&[Request { attempts, ..write(0, 0) }]), 1);
        let [end] = pass(&mut two, 300_000)[..] else { panic!("one end") };
        if attempts < CONFIG.attempts_max {
            assert_eq!((end.flags, end.attempts), (DONE_RETURNED, attempts + 1));
        } else {
            assert!(end.flags & DONE_RETURNED == 0 && end.errno != 0, "{end:?}");
        }
        assert_eq!(two.near.state(0), RailState::Ready);
    }
}

/// A rail may degrade between the look at its room and the post: nothing goes by it then.
#[test]
fn room_is_looked_at_again_when_work_is_posted() {
    let mut two = two(2, BACKOFF);
    let number = two.join.number(0, 0);
    assert!(two.near.room(0).requests > 3);
    let epoch = 1;
    two.near.tell(Told { rail: 0, epoch, news: News::Broken });
    assert_eq!(two.near.post(&[write(0, 0)]), 0);
    assert_eq!(two.net.posted(number).len(), 0);
    assert_eq!(two.near.counts().works, 0);
    // Also in the middle of what is posted: the second list finds that the first one's post
    // has put the rail in doubt.
    pass(&mut two, 300_000);
    let plan = PostPlan { taken: 1, say: Say::Missing, errno: errno::ENOMEM };
    two.net.plan_post(number, plan);
    assert_eq!(two.near.post(&[write(0, 0), write(1, 0)]), 2);
    assert_eq!(two.near.post(&[write(2, 0)]), 0);
    let posted = two.net.posted(number);
    assert_eq!(posted.iter().filter(|wr| wr.bytes > 0).count(), 1);
}

#[test]
fn errors_of_a_cards_own_pause_it_and_one_rail_tries_when_the_pause_is_over() {
    let recovery = Recovery { card_errors_max: 32, ..CONFIG.recovery };
    let mut two = two(2, recovery);
    let refuse = |two: &Two, number| {
        two.net.plan_post(number, PostPlan { taken: 0, say: Say::Right, errno: errno::EINVAL });
    };
    for n in 0..32_u16 {
        let rail = n % 2;
        assert_eq!(two.near.counts().pauses, 0, "{n} errors");
        refuse(&two, two.join.number(rail, 0));
        assert_eq!(two.near.post(&[write(0, rail)]), 1, "it is taken, and fails");
        // No success comes between.
    }
    assert_eq!((two.near.counts().card_errors, two.near.counts().pauses), (32, 1));
    assert_eq!([0, 1].map(|rail| two.near.room(rail).stop), [Some(Stop::Paused); 2]);
    assert_eq!(two.near.post(&[write(1, 0)]), 0);
    pass(&mut two, recovery.pause_first_ns - 10_000);
    assert_eq!(two.near.counts().probes, 0);
    // Half open: one rail is probed. The card errs once more, and pauses for twice as long.
    let both = [0, 1].map(|rail| two.join.number(rail, 0));
    let (after, effect) = (0, false);
    for number in both {
        two.net.plan_work(number, WorkPlan { after, status: WcStatus::Fatal, effect });
    }
    pass(&mut two, 100_000);
    let counts = two.near.counts();
    assert_eq!((counts.probes, counts.probes_failed, counts.pauses), (1, 1, 2), "{counts:?}");
    two.net.calm();
    pass(&mut two, 2 * recovery.pause_first_ns - 120_000);
    assert_eq!(two.near.counts().probes, 1);
    assert_eq!(two.near.room(1).stop, Some(Stop::Paused));
    pass(&mut two, 200_000);
    assert_eq!([0, 1].map(|rail| two.near.state(rail)), [RailState::Ready; 2]);
    succeed(&mut two, &[write(9, 0)]);
}

/// What is a request's, the path's or the peer's never counts against the card; and one success
/// ends a row.
#[test]
fn only_a_cards_own_errors_in_a_row_pause_it() {
    let recovery = Recovery { card_errors_max: 2, ..CONFIG.recovery };
    let mut two = two(1, recovery);
    let number = two.join.number(0, 0);
    let remote = [
        WcStatus::RemoteAccess,
        WcStatus::LocalProtection,
        WcStatus::RetryExceeded,
        WcStatus::Flushed,
    ];
    for status in remote.into_iter().cycle().take(12) {
        two.net.plan_work(number, WorkPlan { after: 0, status, effect: false });
        assert_eq!(two.near.post(&[write(0, 0)]), 1);
        pass(&mut two, 300_000);
    }
    assert_eq!(two.near.counts().card_errors, 0);
    for _ in 0..4 {
        let plan = PostPlan { taken: 0, say: Say::Right, errno: errno::EINVAL };
        two.net.plan_post(number, plan);
        assert_eq!(two.near.post(&[write(0, 0)]), 1);
        pass(&mut two, 20_000);
        succeed(&mut two, &[write(1, 0)]);
    }
    let counts = two.near.counts();
    assert_eq!((counts.card_errors, counts.pauses), (4, 0), "{counts:?}");
}

/// A probe whose end is never told is no reason to wait for ever.
#[test]
fn a_probe_whose_completion_never_comes_is_made_again() {
    let config = Config { recovery: BACKOFF, lost_ns: 200_000, drain_ns: 100_000, ..CONFIG };
    let mut two = Two::new(Shape { rails: 2, config, path: PATH, ..Shape::DEFAULT });
    two.near.share(0b11);
    let number = two.join.number(0, 0);
    two.net.break_pair(number);
    assert_eq!(two.near.post(&[write(0, 0)]), 1);
    while two.near.counts().probes == 0 {
        pass(&mut two, 500);
    }
    assert_eq!(two.near.state(0), RailState::Trial);
    two.net.lose_completions(number, 1);
    pass(&mut two, 10_000);
    assert_eq!((two.near.state(0), two.net.pending(number)), (RailState::Trial, 0));
    assert!(two.near.restless(), "only time tells that it is lost");
    pass(&mut two, 3 * config.lost_ns);
    assert_eq!(two.near.state(0), RailState::Ready);
    let counts = two.near.counts();
    assert_eq!((counts.probes, counts.probes_failed), (2, 1), "{counts:?}");
    succeed(&mut two, &[write(9, 0)]);
}

/// What was said of a number before it was a rail's is not said of the rail.
#[test]
fn a_rail_shares_nothing_with_those_that_had_its_number() {
    let mut two = two(1, BACKOFF);
    two.near.share(0b110);
    let rail = two.join.open([&mut two.near, &mut two.far], &CONFIG).unwrap();
    assert_eq!(rail, 1);
    two.near.share(0b10);
    while two.near.state(1) != RailState::Ready {
        pass(&mut two, 500);
    }
    two.net.break_pair(two.join.number(1, 0));
    assert_eq!(two.near.post(&[write(0, 1)]), 1);
    let done = pass(&mut two, 300_000);
    assert_eq!(done, [Done { attempts: 1, ..Done::new(0, 0) }]);
}
