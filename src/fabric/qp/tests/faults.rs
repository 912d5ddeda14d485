//! Planted faults, one at a time: what a device may do at the seam, and what becomes of it.

use super::super::provider::{PairState, ProviderControl, Wc, WcKind, WcStatus};
use super::super::sim::{PostPlan, Say, SimConfig, WorkPlan};
use super::super::{AdoptError, Ask, EHOSTDOWN, RailState, Rails};
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{FAR, FORGED, Harness, carry, request, succeed};
use crate::fabric::{
    DONE_FLUSHED, DONE_MAYBE, DONE_PLACED, Done, Fabric, REQUEST_CHAIN, REQUEST_NOTIFY, Request,
    Stop, Verb,
};

pub(super) fn two() -> Two {
    Two::new(Shape::DEFAULT)
}

pub(super) fn write(n: u64) -> Request {
    request(n, Verb::Write, n * 64, n * 64, 64)
}

pub(super) fn add(n: u64) -> Request {
    Request { arg: [1, 0], ..request(n, Verb::FetchAdd, n * 64, n * 64, 8) }
}

pub(super) fn notify(n: u64) -> Request {
    Request { flags: REQUEST_NOTIFY, immediate: 5, ..write(n) }
}

/// Waits for all ends of requests that were taken.
pub(super) fn ends(two: &mut Two, count: usize) -> Vec<Done> {
    let mut done = Vec::with_capacity(count + 1);
    for _ in 0..5_000 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    assert_eq!(done.len(), count);
    done.sort_by_key(|end| end.ticket);
    done
}

pub(super) fn plan(taken: u32, say: Say, errno: i32) -> PostPlan {
    PostPlan { taken, say, errno }
}

#[test]
fn f01_a_post_that_stops_halfway_is_followed_and_the_rest_goes_back() {
    for count in 1..=16_u32 {
        for taken in 0..count {
            let mut two = two();
            let number = two.join.number(0, 0);
            two.net.plan_post(number, plan(taken, Say::Right, errno::ENOMEM));
            let batch: Vec<_> = (0..u64::from(count)).map(write).collect();
            assert_eq!(two.near.post(&batch), taken as usize, "{taken} of {count}");
            assert_eq!(two.near.room(0).stop, Some(Stop::Memory));
            // Nothing follows: a marker tells the end of what was posted without a signal.
            let done = ends(&mut two, taken as usize);
            assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
            let unsignaled = taken % CONFIG.signal_every != 0;
            assert_eq!(two.near.counts().markers, u64::from(unsignaled), "{taken} of {count}");
            assert_eq!(two.near.counts().degraded, 0);
            assert!(two.near.at_rest());
            succeed(&mut two, &batch[taken as usize..]);
            assert!(two.near.at_rest());
        }
    }
}

#[test]
fn f01_a_post_may_stop_between_bytes_and_notification() {
    let mut two = two();
    two.net.plan_post(two.join.number(0, 0), plan(3, Say::Right, errno::ENOMEM));
    let batch: Vec<_> = (0..4).map(notify).collect();
    // The second request is begun, so it is taken; its notification follows by itself.
    assert_eq!(two.near.post(&batch), 2);
    assert!(ends(&mut two, 2).iter().all(|end| end.errno == 0));
    let mut told = Vec::with_capacity(8);
    two.arrivals(&mut told);
    assert_eq!(told.len(), 2);
    assert!(two.near.at_rest());
}

#[test]
fn f04_an_unknown_prefix_puts_the_rail_in_doubt_and_nothing_is_lost_or_doubled() {
    for say in [Say::Missing, Say::Wrong(6), Say::Wrong(u32::MAX)] {
        for taken in 0..=6 {
            let mut two = two();
            two.net.plan_post(two.join.number(0, 0), plan(taken, say, errno::ENOMEM));
            let batch = [write(0), add(1), write(2), notify(3), write(4)];
            assert_eq!(two.near.post(&batch), 5);
            assert_eq!(two.near.state(0), RailState::Degraded);
            let done = ends(&mut two, 5);
            let far = two.far();
            for end in &done {
                let plain = [0, 2, 4].contains(&end.ticket);
                assert!(plain == (end.errno == 0), "{say:?} {taken}: {end:?}");
                assert!(plain || end.flags & DONE_MAYBE != 0, "{end:?}");
            }
            let sum = far.word64(64).load(std::sync::atomic::Ordering::Relaxed);
            assert!(sum <= 1, "added {sum} times");
            assert_eq!((two.near.counts().doubts, two.near.state(0)), (1, RailState::Ready));
            assert!(two.near.at_rest());
            succeed(&mut two, &[write(9)]);
        }
    }
}

#[test]
fn f04_a_device_that_posts_more_than_it_says_is_found_out() {
    let mut two = two();
    two.net.plan_post(two.join.number(0, 0), plan(16, Say::Wrong(2), errno::ENOMEM));
    let batch: Vec<_> = (0..8).map(write).collect();
    assert_eq!(two.near.post(&batch), 2);
    assert!(ends(&mut two, 2).iter().all(|end| end.errno == 0));
    assert!(two.near.counts().ghosts > 0);
    assert!(two.near.counts().degraded > 0);
    assert!(two.near.at_rest());
    succeed(&mut two, &batch[2..]);
}

#[test]
fn f02_a_device_without_memory_is_tried_again_and_in_the_end_rebuilt() {
    let mut two = two();
    let number = two.join.number(0, 0);
    for _ in 0..50 {
        two.net.plan_post(number, plan(0, Say::Right, errno::ENOMEM));
    }
    let batch: Vec<_> = (0..40).map(write).collect();
    succeed(&mut two, &batch);
    assert_eq!(two.near.counts().degraded, 0);
    // From now on nothing is posted any more, with two writes taken and without a signal.
    two.net.plan_post(number, plan(2, Say::Right, errno::ENOMEM));
    for _ in 0..50_000 {
        two.net.plan_post(number, plan(0, Say::Right, errno::ENOMEM));
    }
    assert_eq!(two.near.post(&batch[..10]), 2);
    let mut done = Vec::with_capacity(4);
    for _ in 0..60_000 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    assert!(two.near.counts().degraded > 0, "{:?}", two.near.counts());
    assert_eq!(done.len(), 2, "{:?}", two.near.counts());
    assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
    assert!(two.near.at_rest());
}

/// What was not posted behind a refused link goes back, and leaves that link the youngest: what is
/// chained to it afterwards goes along with it, though others had stood in between.
#[test]
fn f03_a_link_that_comes_after_the_refused_one_is_cut_though_others_went_back() {
    let mut two = two();
    let chain = |n| Request { flags: REQUEST_CHAIN, ..write(n) };
    two.net.plan_post(two.join.number(0, 0), plan(1, Say::Right, errno::EINVAL));
    assert_eq!(two.near.post(&[write(0), chain(1), write(2), write(3)]), 2, "the rest goes back");
    let last = Request { flags: REQUEST_CHAIN | REQUEST_NOTIFY, immediate: 7, ..write(4) };
    assert_eq!(two.near.post(&[last]), 1);
    let mut done = ends(&mut two, 3);
    done.sort_by_key(|end| end.ticket);
    let told: Vec<_> = done.iter().map(|end| (end.ticket, end.errno)).collect();
    assert_eq!(told, [(0, 0), (1, errno::EINVAL), (4, errno::ECANCELED)]);
    let mut arrivals = Vec::with_capacity(4);
    two.far.arrivals(&mut arrivals);
    assert_eq!(arrivals, [], "the owner was told of bytes that never came");
    assert!(two.near.at_rest());
}

#[test]
fn f03_a_request_that_is_refused_fails_alone_and_its_chain_with_it() {
    let mut two = two();
    two.net.plan_post(two.join.number(0, 0), plan(1, Say::Right, errno::EINVAL));
    let chained = |n| Request { flags: REQUEST_CHAIN, ..write(n) };
    let batch = [write(0), write(1), chained(2), write(3)];
    assert_eq!(two.near.post(&batch), 3);
    let done = ends(&mut two, 3);
    let errnos: Vec<_> = done.iter().map(|end| end.errno).collect();
    assert_eq!(errnos, [0, errno::EINVAL, errno::ECANCELED]);
    succeed(&mut two, &batch[3..]);
    assert!(two.near.at_rest());
    assert_eq!(two.near.counts().degraded, 0);
}

#[test]
fn innocents_are_repeated_and_what_cannot_be_is_maybe_done() {
    for effect in [false, true] {
        let mut two = two();
        let status = WcStatus::RetryExceeded;
        two.net.plan_work(two.join.number(0, 0), WorkPlan { after: 2, status, effect });
        let batch = [write(0), add(1), add(2), write(3), notify(4), add(5)];
        assert_eq!(two.near.post(&batch), 6);
        let done = ends(&mut two, 6);
        let maybe = DONE_FLUSHED | DONE_MAYBE;
        let flags: Vec<_> = done.iter().map(|end| end.flags & !DONE_PLACED).collect();
        assert_eq!(flags, [0, 0, maybe, 0, maybe, maybe], "{done:?}");
        assert_eq!(done[2].errno, super::super::ETIMEDOUT);
        assert_eq!(two.near.counts().repeats, 1);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let sums = [1, 2, 5].map(|n: u64| two.far().word64(n * 64).load(relaxed));
        assert_eq!(sums, [1, u64::from(effect), 0]);
        assert!(two.near.at_rest());
    }
}

#[test]
fn f30_only_the_guilty_ends_even_if_the_cause_is_always_lost() {
    // Answers take far longer than work is given when the other end fails.
    let config = super::Config { grace_ns: 0, ..CONFIG };
    let mut two = Two::new(Shape { config, ..Shape::DEFAULT });
    two.net.delay(two.join.number(0, 0), 20_000);
    let mut batch: Vec<_> = (0..16).map(write).collect();
    batch[5].remote = FORGED;
    assert_eq!(two.near.post(&batch), 16);
    let done = ends(&mut two, 16);
    let failed: Vec<_> = done.iter().filter(|end| end.errno != 0).collect();
    assert_eq!(
        failed,
        [&Done {
            ticket: 5,
            errno: super::super::EIO,
            flags: DONE_FLUSHED,
            attempts: CONFIG.attempts_max
        }]
    );
    assert!(two.near.at_rest());
}

#[test]
fn a_card_that_fails_by_itself_is_not_what_its_requests_are_blamed_for() {
    for status in [WcStatus::LocalOperation, WcStatus::Fatal, WcStatus::Other(21)] {
        let mut two = two();
        two.net.plan_work(two.join.number(0, 0), WorkPlan { after: 1, status, effect: false });
        let batch = [write(0), write(1), add(2), write(3)];
        assert_eq!(two.near.post(&batch), 4);
        let done = ends(&mut two, 4);
        for end in &done {
            assert_eq!(end.errno == 0, end.ticket != 2, "{status:?}: {end:?}");
        }
        // An add may not be repeated, whoever is at fault.
        assert_eq!(done[2].flags, DONE_FLUSHED | DONE_MAYBE);
        assert_eq!((two.near.counts().card_errors, two.near.counts().degraded), (1, 1));
        assert!(two.near.at_rest());
    }
}

#[test]
fn what_a_card_calls_invalid_is_tried_again_before_it_is_blamed() {
    for (times, good) in [(1, true), (50, false)] {
        let mut two = two();
        let status = WcStatus::RemoteInvalid;
        for _ in 0..times {
            two.net.plan_work(two.join.number(0, 0), WorkPlan { after: 0, status, effect: false });
        }
        assert_eq!(two.near.post(&[write(0)]), 1);
        let done = ends(&mut two, 1);
        let (errno, flags) = (done[0].errno, done[0].flags);
        assert_eq!((errno, flags), (if good { 0 } else { errno::EINVAL }, 0));
        let repeats = if good { 1 } else { CONFIG.attempts_max };
        assert_eq!(two.near.counts().repeats, u64::from(repeats));
        assert!(two.near.at_rest());
    }
}

#[test]
fn a_request_is_not_repeated_for_ever() {
    let mut two = two();
    for _ in 0..50 {
        let status = WcStatus::RetryExceeded;
        two.net.plan_work(two.join.number(0, 0), WorkPlan { after: 0, status, effect: false });
    }
    assert_eq!(two.near.post(&[write(0), write(1)]), 2);
    let done = ends(&mut two, 2);
    assert!(done.iter().all(|end| end.errno != 0 && end.flags == DONE_FLUSHED), "{done:?}");
    assert_eq!(two.near.counts().repeats, 2 * u64::from(CONFIG.attempts_max));
    assert!(two.near.at_rest());
}

#[test]
fn f15_bytes_that_are_placed_are_told_from_the_notification_that_failed() {
    let mut two = two();
    let status = WcStatus::RemoteOperation;
    two.net.plan_work(two.join.number(0, 0), WorkPlan { after: 1, status, effect: false });
    assert_eq!(two.near.post(&[notify(0)]), 1);
    let done = ends(&mut two, 1);
    assert_eq!(done[0].flags, DONE_MAYBE | DONE_PLACED);
    assert!(two.near.at_rest());
}

#[test]
fn f09_late_and_repeated_completions_move_nothing() {
    let mut two = two();
    let number = two.join.number(0, 0);
    // More than there are slots, so that each is used again.
    succeed(&mut two, &(0..40).map(write).collect::<Vec<_>>());
    let old = two.net.posted(number);
    assert_eq!(two.near.post(&(0..8).map(write).collect::<Vec<_>>()), 8);
    let posted = two.near.posted(0);
    let wc = Wc {
        wr_id: 0,
        number,
        status: WcStatus::Success,
        kind: WcKind::Work,
        bytes: 0,
        message: [0; 2],
        vendor_error: 0,
    };
    for wr in &old {
        two.net.inject(number, Wc { wr_id: wr.wr_id, ..wc });
        two.net.inject(number, Wc { wr_id: wr.wr_id, status: WcStatus::Flushed, ..wc });
    }
    for wr_id in [u64::MAX, 0xffff, 1 << 63, 7 << 16] {
        two.net.inject(number, Wc { wr_id, ..wc });
        two.net.inject(number, Wc { wr_id, kind: WcKind::Receive, ..wc });
    }
    let mut done = Vec::with_capacity(64);
    two.near.poll(two.net.now_ns(), &mut done);
    assert_eq!((done.len(), two.near.posted(0)), (0, posted));
    assert_eq!(two.near.counts().stale, 2 * old.len() as u64 + 8);
    assert_eq!(two.near.state(0), RailState::Ready);
    ends(&mut two, 8);
    // The same completion twice in one round.
    assert_eq!(two.near.post(&[write(1)]), 1);
    let last = two.net.posted(number).last().unwrap().wr_id;
    two.net.inject(number, Wc { wr_id: last, ..wc });
    two.net.inject(number, Wc { wr_id: last, ..wc });
    assert_eq!(ends(&mut two, 1), [Done::new(1, 0)]);
}

#[test]
fn a_dead_peer_ends_every_request_and_stops_nobody_else() {
    let mut two = Two::new(Shape { rails: 2, ..Shape::DEFAULT });
    let by = |rail, request: Request| Request { rail, ..request };
    let number = two.join.number(0, 1);
    two.net.kill(number);
    let batch = [by(0, write(0)), by(0, add(1)), by(0, notify(2)), by(1, write(3))];
    assert_eq!(two.near.post(&batch), 4);
    let mut done = Vec::with_capacity(8);
    for _ in 0..20 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
    }
    assert_eq!(done, [Done::new(3, 0)], "the other rail goes on");
    done.clear();
    two.join.lose(1);
    for _ in 0..2_000_000 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
        if two.near.state(0) == RailState::Dead {
            break;
        }
    }
    done.extend(ends(&mut two, 3 - done.len()));
    done.sort_by_key(|end| end.ticket);
    let flags: Vec<_> = done.iter().map(|end| end.flags & !DONE_PLACED).collect();
    assert_eq!(flags, [DONE_FLUSHED, DONE_FLUSHED | DONE_MAYBE, DONE_FLUSHED | DONE_MAYBE]);
    assert_eq!(two.near.room(0).stop, Some(Stop::Dead));
    assert_eq!(two.near.post(&[by(0, write(7))]), 1);
    assert_eq!(ends(&mut two, 1)[0], Done { flags: DONE_FLUSHED, ..Done::new(7, EHOSTDOWN) });
    let pair = two.near.release(0).expect("a dead rail can be released");
    two.join.control(0).destroy(pair, pair).unwrap();
    assert_eq!(two.near.state(0), RailState::Absent);
    assert_eq!(two.near.post(&[by(0, write(8))]), 0);
}

/// What the control side had no room to hear is told later: the host must not sleep on it.
#[test]
fn a_wish_that_nobody_took_keeps_the_host_awake() {
    let mut two = two();
    assert!(!two.near.restless());
    two.near.degrade(0);
    for _ in 0..3 {
        two.near.poll(two.net.now_ns(), &mut Vec::new());
    }
    assert!(two.near.restless());
    assert_eq!(two.near.wish().map(|wish| wish.ask), Some(Ask::Quiesce));
    assert!(!two.near.restless(), "the answer will wake it");
}

/// A process that dies loses its keys before its queue pairs: who meets that is not at fault.
#[test]
fn keys_that_went_with_their_peer_are_its_death_and_not_a_refusal() {
    let refused = |request: Request| Request { remote: FORGED, ..request };
    for request in [write(0), add(0), notify(0)] {
        let mut two = two();
        assert_eq!(two.near.post(&[refused(request)]), 1);
        // It hears of the refusal, and then, instead of an answer, that nobody is there.
        let mut done = Vec::with_capacity(8);
        while two.near.state(0) == RailState::Ready {
            two.net.advance(1_000);
            two.near.poll(two.net.now_ns(), &mut done);
        }
        two.join.lose(1);
        let found = ends(&mut two, 1);
        // Nothing of it took effect, so that nothing speaks against trying it again elsewhere.
        let end = Done { flags: DONE_FLUSHED, ..Done::new(0, EHOSTDOWN) };
        assert_eq!(found, [end], "{request:?}");
        assert_eq!(two.near.state(0), RailState::Dead);
        assert!(two.near.at_rest());
        // While the peer lives, the same is the request's own fault.
        let mut two = self::two();
        assert_eq!(two.near.post(&[refused(request)]), 1);
        let found = ends(&mut two, 1);
        assert_eq!(found, [Done::new(0, errno::EACCES)], "{request:?}");
    }
}

#[test]
fn f12_a_broken_queue_pair_without_work_is_rebuilt_too() {
    let mut two = two();
    for side in [0, 1] {
        two.net.break_pair(two.join.number(0, side));
        for _ in 0..100 {
            two.step();
        }
        assert_eq!((two.near.state(0), two.far.state(0)), (RailState::Ready, RailState::Ready));
        succeed(&mut two, &[write(0), notify(1)]);
    }
    assert_eq!(two.near.counts().degraded, 2);
    let mut told = Vec::with_capacity(4);
    two.arrivals(&mut told);
    assert_eq!(told.len(), 2);
}

#[test]
fn q03_a_full_rail_stalls_no_other() {
    let mut two = Two::new(Shape { rails: 2, ..Shape::DEFAULT });
    two.net.delay(two.join.number(0, 0), 1_000_000_000);
    let slow: Vec<_> = (0..30).map(write).collect();
    assert_eq!(two.near.post(&slow), CONFIG.depth as usize);
    assert_eq!(two.near.room(0).stop, Some(Stop::Depth));
    for n in 0..100 {
        assert_eq!(two.near.post(&[Request { rail: 1, ..write(n) }]), 1);
        let mut done = Vec::with_capacity(2);
        while done.is_empty() {
            let now_ns = two.advance();
            two.near.poll(now_ns, &mut done);
        }
        assert_eq!(done, [Done::new(n, 0)]);
    }
}

#[test]
fn one_doorbell_rings_for_a_post_and_every_fourth_work_is_signaled() {
    let mut two = two();
    let before = two.near.counts();
    assert_eq!(two.near.post(&(0..15).map(write).collect::<Vec<_>>()), 15);
    let after = two.near.counts();
    assert_eq!(after.doorbells - before.doorbells, 1);
    let posted = two.net.posted(two.join.number(0, 0));
    let signaled: Vec<_> = posted.iter().map(|wr| wr.signaled).collect();
    let expected: Vec<_> = (1..=15).map(|n| n % 4 == 0 || n == 15).collect();
    assert_eq!(signaled, expected);
    ends(&mut two, 15);
    assert_eq!(two.near.post(&(0..3).map(notify).collect::<Vec<_>>()), 3);
    assert_eq!(two.near.counts().doorbells - after.doorbells, 1, "bytes and messages in one post");
}

#[test]
fn a_fence_stands_where_an_answer_is_waited_for_and_nowhere_else() {
    let mut two = two();
    let read = |n| request(n, Verb::Read, n * 64, n * 64, 64);
    let chained = |request: Request| Request { flags: request.flags | REQUEST_CHAIN, ..request };
    let batch = [
        read(0),
        chained(write(1)),
        chained(write(2)),
        write(3),
        chained(read(4)),
        write(5),
        add(6),
        chained(add(7)),
        Request { flags: REQUEST_NOTIFY, ..read(8) },
    ];
    assert_eq!(two.near.post(&batch), batch.len());
    let posted = two.net.posted(two.join.number(0, 0));
    let fences: Vec<_> = posted.iter().map(|wr| wr.fence).collect();
    assert_eq!(fences, [false, true, false, false, false, false, false, true, false, true]);
    assert!(ends(&mut two, batch.len()).iter().all(|end| end.errno == 0));
}

#[test]
fn small_writes_go_inline_as_far_as_the_queue_pair_takes_them() {
    for inline_bytes in [16, 32, 64, 200] {
        let mut sim = SimConfig::DEFAULT;
        sim.caps_max.inline_bytes = inline_bytes;
        let mut two = Two::new(Shape { sim, ..Shape::DEFAULT });
        let sizes = [0, 1, 16, 17, 32, 33, 64, 65];
        let batch: Vec<_> = sizes
            .iter()
            .map(|bytes| Request { bytes: *bytes, ..write(u64::from(*bytes)) })
            .collect();
        assert_eq!(two.near.post(&batch), batch.len());
        for wr in two.net.posted(two.join.number(0, 0)) {
            let most = inline_bytes.min(CONFIG.inline_bytes);
            assert_eq!(wr.inline, wr.bytes > 0 && wr.bytes <= most, "{wr:?}");
        }
        assert!(ends(&mut two, batch.len()).iter().all(|end| end.errno == 0));
    }
}

#[test]
fn f32_over_reported_caps_shrink_a_rail_and_too_small_ones_are_refused() {
    let mut sim = SimConfig::DEFAULT;
    sim.caps_max.sends = 5;
    let mut two = Two::new(Shape { sim, ..Shape::DEFAULT });
    assert_eq!(two.near.room(0).requests, 3);
    succeed(&mut two, &(0..64).map(write).collect::<Vec<_>>());
    assert!(two.net.occupied_most(two.join.number(0, 0)) <= 5);
    let (provider, mut control) = two.net.device(sim, CONFIG.completions());
    let mut fabric = Rails::new(provider, CONFIG);
    let made = control.create(CONFIG.caps()).unwrap();
    let small = super::Caps { sends: 2, ..made.caps };
    let refused = fabric.adopt(0, made.pair, small, 0).map_err(|(error, _)| error);
    assert!(matches!(refused, Err(AdoptError::Caps { sends: 2, .. })), "{refused:?}");
    let refused = fabric.adopt(99, made.pair, made.caps, 0).map_err(|(error, _)| error);
    assert!(matches!(refused, Err(AdoptError::Rail { rail: 99, .. })), "{refused:?}");
}

#[test]
fn q13_the_completion_queue_holds_all_that_can_complete() {
    let net = super::super::sim::Net::new();
    let need = CONFIG.caps().sends + CONFIG.caps().receives;
    let (provider, mut control) = net.device(SimConfig::DEFAULT, 2 * need - 1);
    let mut fabric = Rails::new(provider, CONFIG);
    for rail in 0..2 {
        let made = control.create(CONFIG.caps()).unwrap();
        let adopted = fabric.adopt(rail, made.pair, made.caps, 0).map_err(|(error, _)| error);
        let full = AdoptError::Completions { have: 2 * need - 1, used: need, want: need };
        assert_eq!(adopted, if rail == 0 { Ok(()) } else { Err(full) });
    }
}

#[test]
fn a_failing_post_of_receives_is_made_up_for() {
    let mut two = two();
    let number = two.join.number(0, 1);
    for taken in [0; 5] {
        two.net.plan_receives(number, plan(taken, Say::Right, errno::ENOMEM));
    }
    let mut told = 0;
    for n in 0..60 {
        succeed(&mut two, &[notify(n)]);
        let mut out = Vec::with_capacity(64);
        two.arrivals(&mut out);
        told += out.len();
    }
    let mut out = Vec::with_capacity(64);
    two.arrivals(&mut out);
    assert_eq!(told + out.len(), 60);
    assert!(two.far.counts().credit_messages > 0);
}

#[test]
fn messages_that_are_none_are_counted_and_granted_nothing() {
    let mut two = two();
    let number = two.join.number(0, 0);
    let id = super::super::provider::WrId::new(1, 0, super::super::provider::WrId::RECEIVE);
    let wc = Wc {
        wr_id: id.0,
        number,
        status: WcStatus::Success,
        kind: WcKind::Receive,
        bytes: 16,
        message: [1, 1],
        vendor_error: 0,
    };
    let before = two.near.room(0);
    for message in [[0, 0], [0, 9], [0, u64::MAX]] {
        two.net.inject(number, Wc { message, ..wc });
    }
    // More credit than there can be.
    two.net.inject(number, Wc { message: [0, 0xffff_0000_0002 << 16 | 2], ..wc });
    two.step();
    assert_eq!(two.near.counts().violations, 4);
    assert_eq!(two.near.room(0), before);
}

#[test]
fn news_of_another_life_are_ignored() {
    let mut two = two();
    use super::super::{News, Told};
    for news in [News::Broken, News::Quiet, News::Reset, News::Connected { credits: 9 }, News::Gone]
    {
        two.near.tell(Told { rail: 0, epoch: 77, news });
        two.near.tell(Told { rail: 3, epoch: 0, news });
        two.near.tell(Told { rail: 99, epoch: 0, news });
    }
    for news in [News::Quiet, News::Reset, News::Connected { credits: 9 }] {
        two.near.tell(Told { rail: 0, epoch: 1, news });
    }
    assert_eq!(two.near.state(0), RailState::Ready);
    assert_eq!(two.near.counts().stale_news, 13);
    succeed(&mut two, &[write(1)]);
}

#[test]
fn f12_an_overrun_completion_queue_degrades_every_rail() {
    let mut two = Two::new(Shape { rails: 2, ..Shape::DEFAULT });
    let number = two.join.number(0, 0);
    let wc = Wc {
        wr_id: u64::MAX,
        number,
        status: WcStatus::Success,
        kind: WcKind::Work,
        bytes: 0,
        message: [0; 2],
        vendor_error: 0,
    };
    for _ in 0..=CONFIG.completions() {
        two.net.inject(number, wc);
    }
    let mut done = Vec::with_capacity(1);
    two.near.poll(two.net.now_ns(), &mut done);
    assert_eq!([0, 1].map(|rail| two.near.state(rail)), [RailState::Degraded; 2]);
}

#[test]
fn queue_pairs_move_through_their_states() {
    let mut two = two();
    let number = two.join.number(0, 0);
    assert_eq!(two.join.control(0).state(number).unwrap(), PairState::ReadyToSend);
    assert_eq!(two.near.post(&[Request { remote: FORGED, ..write(0) }]), 1);
    let mut seen = Vec::new();
    let mut done = Vec::with_capacity(1);
    for _ in 0..200 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
        let state = two.near.state(0);
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    }
    use RailState::{Degraded, Ready, Rebuilding};
    assert_eq!(seen, [Ready, Degraded, Rebuilding, Ready]);
    assert_eq!(done, [Done::new(0, errno::EACCES)]);
    assert_eq!(carry(&mut two, &[Request { remote: FAR, ..write(1) }])[0].errno, 0);
}
