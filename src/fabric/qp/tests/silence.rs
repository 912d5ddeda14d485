//! What a device does not say: work without a signal, posts of which nothing is known, completions
//! that never come, and an engine that stands still meanwhile. Nothing leaks, and all ends.

use std::sync::atomic::Ordering;

use super::super::provider::WcStatus;
use super::super::sim::{Say, WorkPlan};
use super::super::{Config, EIO, ETIMEDOUT, RailState};
use super::faults::{add, ends, notify, plan, two, write};
use super::pair::{CONFIG, Shape, Two};
use crate::abi::errno;
use crate::fabric::conformance::{Harness, succeed};
use crate::fabric::{DONE_FLUSHED, DONE_MAYBE, Done, Fabric, Request};

/// The times that a device which is asked for its state needs, all together, are below this.
const BACK_NS: u64 = 1_000_000;

fn by(rail: u16, request: Request) -> Request {
    Request { rail, ..request }
}

/// Steps until a rail is ready; the time that it took.
fn until_ready(two: &mut Two, rail: u16, done: &mut Vec<Done>) -> u64 {
    let begun_ns = two.net.now_ns();
    for _ in 0..200_000 {
        let now_ns = two.advance();
        two.near.poll(now_ns, done);
        if two.near.state(rail) == RailState::Ready {
            return now_ns - begun_ns;
        }
    }
    panic!("rail {rail} does not come back: {:?}", two.near.counts());
}

/// Of a post so many are taken, none with a signal; then so many posts take nothing, also not the
/// marker that would ask for their end.
#[test]
fn f05_a_post_of_which_nothing_is_taken_behind_unsignaled_work_leaks_nothing() {
    for unsignaled in 1..CONFIG.signal_every {
        for failures in 1..6 {
            for error in [errno::ENOMEM, errno::EINVAL] {
                let mut two = two();
                let number = two.join.number(0, 0);
                two.net.plan_post(number, plan(unsignaled, Say::Right, errno::ENOMEM));
                for _ in 0..failures {
                    two.net.plan_post(number, plan(0, Say::Right, error));
                }
                let batch: Vec<_> = (0..u64::from(unsignaled) + 1).map(write).collect();
                let taken = two.near.post(&batch);
                assert_eq!(taken, unsignaled as usize);
                // One more, which meets a device that takes nothing.
                let again = two.near.post(&batch[taken..]);
                let done = ends(&mut two, taken + again);
                assert!(done[..taken].iter().all(|end| end.errno == 0), "{done:?}");
                assert!(done[taken..].iter().all(|end| end.errno == error), "{done:?}");
                assert!(two.near.at_rest());
                assert_eq!(two.near.room(0).requests, CONFIG.depth, "depth came back");
                assert_eq!(two.near.counts().degraded, 0);
                succeed(&mut two, &(0..40).map(write).collect::<Vec<_>>());
            }
        }
    }
}

/// Depth 10, chains of 4, and no signal but those that the fabric itself finds needed: the third
/// chain has no room before the first has ended.
#[test]
fn f06_a_chain_without_room_waits_for_work_that_is_signaled() {
    let config = Config { depth: 10, signal_every: 1 << 20, ..CONFIG };
    let mut two = Two::new(Shape { config, ..Shape::DEFAULT });
    let requests: Vec<_> = (0..40).map(write).collect();
    let mut chains = requests.chunks(4);
    for room in [4, 4, 2] {
        assert_eq!(two.near.post(chains.next().unwrap()), room);
        let works = &two.near.rails[0].works;
        assert!(works[works.tail().wrapping_sub(1)].signaled, "the last of each post");
    }
    assert_eq!(two.near.room(0).requests, 0);
    let begun_ns = two.net.now_ns();
    ends(&mut two, 10);
    assert!(two.near.at_rest());
    succeed(&mut two, &requests[10..]);
    assert!(two.net.now_ns() - begun_ns < config.lost_ns, "it came to a time-out");
    let counts = two.near.counts();
    assert_eq!((counts.degraded, counts.silent, counts.partial), (0, 0, 0));
}

/// Two queue pairs carry work without a signal when the second one's post fails, nobody knows
/// where. The first is asked for its end by a marker, the second is rebuilt.
#[test]
fn f07_of_two_queue_pairs_only_the_one_whose_post_failed_is_rebuilt() {
    for taken in 0..4 {
        for error in [errno::ENOMEM, errno::EINVAL] {
            let mut two = Two::new(Shape { rails: 2, ..Shape::DEFAULT });
            let numbers = [0, 1].map(|rail| two.join.number(rail, 0));
            two.net.plan_post(numbers[0], plan(2, Say::Right, errno::ENOMEM));
            two.net.plan_post(numbers[1], plan(taken, Say::Missing, error));
            let first: Vec<_> = (0..3).map(|n| by(0, write(n))).collect();
            let second: Vec<_> = (3..7).map(|n| by(1, write(n))).collect();
            assert_eq!((two.near.post(&first), two.near.post(&second)), (2, 4));
            assert_eq!(two.near.state(0), RailState::Ready);
            assert_eq!(two.near.state(1), RailState::Degraded);
            let done = ends(&mut two, 6);
            assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
            let counts = two.near.counts();
            assert_eq!((counts.degraded, counts.partial, counts.doubts), (1, 1, 1));
            assert!(counts.markers >= 1, "{counts:?}");
            assert!(two.near.at_rest());
            for rail in [0, 1] {
                assert_eq!(two.near.room(rail).requests, CONFIG.depth);
            }
        }
    }
}

fn losing(count: u32) -> Two {
    // In big steps: the time after which work is taken for lost is long.
    let two = Two::new(Shape { step_ns: CONFIG.lost_ns / 40, ..Shape::DEFAULT });
    two.net.lose_completions(two.join.number(0, 0), count);
    two
}

/// The completion never comes. What can be repeated is, what cannot ends as timed out, and neither
/// before both ends are quiet.
#[test]
fn f08_a_completion_that_never_comes_is_a_timeout_and_only_after_both_ends_are_quiet() {
    for (request, errno, flags) in [
        (write(1), 0, 0),
        (add(1), ETIMEDOUT, DONE_FLUSHED | DONE_MAYBE),
        (notify(1), ETIMEDOUT, DONE_FLUSHED | DONE_MAYBE),
    ] {
        let mut two = losing(1);
        assert_eq!(two.near.post(&[request]), 1);
        let begun_ns = two.net.now_ns();
        let mut done = Vec::with_capacity(4);
        // The control side takes its time: until it has answered, nothing may end.
        for _ in 0..200 {
            if two.near.state(0) == RailState::Ready {
                two.net.advance(CONFIG.lost_ns / 40);
                two.near.poll(two.net.now_ns(), &mut done);
            }
        }
        let waited_ns = two.net.now_ns() - begun_ns;
        assert!((CONFIG.lost_ns..2 * CONFIG.lost_ns).contains(&waited_ns), "{waited_ns} ns");
        for _ in 0..100 {
            two.net.advance(CONFIG.lost_ns / 40);
            two.near.poll(two.net.now_ns(), &mut done);
        }
        assert_eq!(done, [], "nobody has said yet that both ends are quiet");
        let found = ends(&mut two, 1);
        assert_eq!((found[0].errno, found[0].flags & (DONE_FLUSHED | DONE_MAYBE)), (errno, flags));
        let counts = two.near.counts();
        assert_eq!((counts.silent, counts.degraded), (1, 1));
        assert!(two.near.at_rest());
        if request.ticket == 1 && errno != 0 && request.flags == 0 {
            let sum = two.far().word64(64).load(Ordering::Relaxed);
            assert_eq!(sum, 1, "it was done, and not repeated");
        }
        succeed(&mut two, &[write(2)]);
    }
}

/// Of several the first is the one that was not answered, those behind it are flushed.
#[test]
fn f08_work_behind_a_lost_completion_is_flushed_and_one_that_comes_later_speaks_for_it() {
    let mut two = losing(1);
    let batch: Vec<_> = (0..6).map(add).collect();
    // The fourth's completion is lost, the sixth's comes: it is the later one's that counts.
    assert_eq!(two.near.post(&batch), 6);
    assert_eq!(ends(&mut two, 6), (0..6).map(|n| Done::new(n, 0)).collect::<Vec<_>>());
    assert_eq!(two.near.counts().silent, 0);
    let mut two = losing(2);
    assert_eq!(two.near.post(&batch), 6);
    let found = ends(&mut two, 6);
    let errnos: Vec<_> = found.iter().map(|end| end.errno).collect();
    assert_eq!(errnos[0], ETIMEDOUT, "{found:?}");
    assert!(errnos[1..].iter().all(|errno| [0, EIO].contains(errno)), "{found:?}");
    assert_eq!(two.near.counts().silent, 1);
    assert!(two.near.at_rest());
}

/// Slow is not lost: work that takes nearly so long, again and again, is waited for.
#[test]
fn f08_slow_work_is_waited_for() {
    let mut two = losing(0);
    two.net.delay(two.join.number(0, 0), CONFIG.lost_ns / 4);
    for n in 0..20 {
        assert_eq!(two.near.post(&[write(n)]), 1);
        assert_eq!(ends_soon(&mut two), [Done::new(n, 0)]);
    }
    assert_eq!(two.near.counts().degraded, 0);
}

fn ends_soon(two: &mut Two) -> Vec<Done> {
    let mut done = Vec::with_capacity(4);
    for _ in 0..1_000 {
        let now_ns = two.advance();
        two.near.poll(now_ns, &mut done);
        if !done.is_empty() {
            break;
        }
    }
    done
}

/// Every queue pair takes another time, and all of them change it meanwhile.
#[test]
fn f10_completions_in_any_order_over_queue_pairs_find_their_requests() {
    let mut two = Two::new(Shape { rails: 4, ..Shape::DEFAULT });
    let delays = [900_000, 300, 70_000, 8_000];
    let mut done: Vec<Done> = Vec::with_capacity(400);
    let mut sent = 0;
    let mut order = Vec::new();
    while order.len() < 400 {
        for rail in 0..4_u16 {
            let number = two.join.number(rail, 0);
            two.net.delay(number, delays[(sent + usize::from(rail)) % 4]);
            while sent < 400 && sent % 4 == usize::from(rail) {
                if two.near.post(&[by(rail, add(sent as u64))]) == 0 {
                    break;
                }
                sent += 1;
            }
        }
        let now_ns = two.advance();
        done.clear();
        two.near.poll(now_ns, &mut done);
        assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
        order.extend(done.iter().map(|end| end.ticket));
    }
    assert!(!order.is_sorted(), "they came in order: nothing was shuffled");
    for rail in 0..4 {
        assert!(order.iter().filter(|ticket| *ticket % 4 == rail).is_sorted(), "rail {rail}");
    }
    order.sort_unstable();
    assert_eq!(order, (0..400).collect::<Vec<_>>());
    for n in 0..400 {
        assert_eq!(two.far().word64(n * 64).load(Ordering::Relaxed), 1, "{n} once");
    }
    assert!(two.near.at_rest());
}

/// One is refused by the peer; what was behind it is flushed, and says so.
#[test]
fn f11_the_first_error_is_the_cause_and_what_it_takes_along_is_marked_as_flushed() {
    let mut two = two();
    let status = WcStatus::RemoteAccess;
    two.net.plan_work(two.join.number(0, 0), WorkPlan { after: 2, status, effect: false });
    assert_eq!(two.near.post(&(0..8).map(add).collect::<Vec<_>>()), 8);
    let found = ends(&mut two, 8);
    let [done, done_too, guilty, flushed @ ..] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!([*done, *done_too], [0, 1].map(|n| Done::new(n, 0)));
    assert_eq!(*guilty, Done::new(2, errno::EACCES));
    for (end, n) in flushed.iter().zip(3..) {
        assert_eq!(*end, Done { flags: DONE_FLUSHED | DONE_MAYBE, ..Done::new(n, EIO) });
    }
    assert!(two.near.at_rest());
}

/// The rail is in doubt, and all that was posted succeeds without a word.
#[test]
fn f13_a_queue_pair_in_doubt_whose_work_all_succeeds_is_back_in_bounded_time() {
    for unsignaled in 0..CONFIG.signal_every {
        let mut two = two();
        let number = two.join.number(0, 0);
        two.net.plan_post(number, plan(unsignaled, Say::Missing, errno::ENOMEM));
        let batch: Vec<_> = (0..3).map(write).collect();
        assert_eq!(two.near.post(&batch), 3);
        assert_eq!(two.near.state(0), RailState::Degraded);
        let mut done = Vec::with_capacity(8);
        let back_ns = until_ready(&mut two, 0, &mut done);
        assert!(back_ns < BACK_NS, "{back_ns} ns with {unsignaled} posted");
        done.extend(ends(&mut two, 3 - done.len()));
        assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
        assert_eq!(two.near.counts().degraded, 1);
        assert!(two.near.at_rest());
    }
}

/// Wherever the engine stands still for 100 ms, longer than any of the fabric's times, nothing is
/// taken for lost that only was not looked at.
#[test]
fn f26_an_engine_that_stands_still_for_100_ms_loses_nothing() {
    for broken in [false, true] {
        for at in 0..60 {
            let config = Config { lost_ns: 40_000_000, ..CONFIG };
            let mut two = Two::new(Shape { config, ..Shape::DEFAULT });
            if broken {
                let status = WcStatus::RetryExceeded;
                let number = two.join.number(0, 0);
                two.net.plan_work(number, WorkPlan { after: 3, status, effect: false });
            }
            let batch: Vec<_> = (0..12).map(write).collect();
            assert_eq!(two.near.post(&batch), 12);
            let mut done = Vec::with_capacity(16);
            for step in 0..400 {
                if step == at {
                    two.net.advance(100_000_000);
                }
                let now_ns = two.advance();
                two.near.poll(now_ns, &mut done);
            }
            assert_eq!(done.len(), 12, "it stood still at step {at}");
            assert!(done.iter().all(|end| end.errno == 0), "{at}: {done:?}");
            let counts = two.near.counts();
            assert_eq!((counts.silent, counts.degraded), (0, u64::from(broken)));
            assert!(two.near.at_rest());
        }
    }
}

/// More completions wait to be read than one poll reads, and those of one queue pair are behind
/// all others: that they were not read for long says nothing of the device.
#[test]
fn f26_completions_that_wait_to_be_read_are_not_taken_for_lost() {
    let depth = 600;
    let config = Config { depth, signal_every: 1, lost_ns: 40_000_000, ..CONFIG };
    let mut two = Two::new(Shape { config, rails: 2, ..Shape::DEFAULT });
    two.net.delay(two.join.number(0, 0), 11_900_000);
    two.net.delay(two.join.number(1, 0), 12_000_000);
    let batch: Vec<_> = (0..u64::from(depth)).map(write).collect();
    assert_eq!(two.near.post(&batch), batch.len());
    assert_eq!(two.near.post(&[by(1, write(600))]), 1);
    let mut done = Vec::with_capacity(700);
    // It is looked at twice while all is under way, and then not for longer than work may take.
    for _ in 0..2 {
        two.net.advance(config.lost_ns / 4);
        two.near.poll(two.net.now_ns(), &mut done);
    }
    assert_eq!(done, []);
    two.net.advance(100_000_000);
    for _ in 0..10 {
        two.near.poll(two.net.now_ns(), &mut done);
    }
    assert_eq!(done.len(), 601);
    assert!(done.iter().all(|end| end.errno == 0), "{done:?}");
    let counts = two.near.counts();
    assert_eq!((counts.silent, counts.degraded), (0, 0));
    assert!(two.near.at_rest());
}
