//! How long a peer is waited for: whether it is there at all, what it is to give back, and, once
//! it is lost, until nothing that was sent to it can still be delivered; and how long a rail waits
//! that could not be connected.
//!
//! A process that is stopped keeps its socket open, and its card goes on by itself: only its
//! silence tells. So a peer that says nothing for a while is called; one that does not answer is
//! lost, or ops that wait for its engine would wait for ever.
//!
//! **Deliberately absent**: clocks. Time is what the caller says it is, in ns.

use std::collections::{BTreeMap, VecDeque};

use super::joint::Step;

/// Whether a peer is there: it is called every now and then, and has so long to answer each call.
///
/// What counts is when it was called that it has answered, not when the answer came, and nothing
/// else that it says: an answer may have been under way for long. So a peer that has lost us, and
/// answers no more from then on, is lost here, too, at most the time of silence after that.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    /// Calls that it has not answered, the oldest first.
    calls: VecDeque<u64>,
    /// When it was called last, or begun with.
    last_ns: u64,
    /// How long it may be silent.
    silence_ns: u64,
}

/// What is to be done about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Ask whether it is there.
    Call,
    /// It does not answer.
    Lost,
}

/// A peer is called whenever a fifth of the time is over that it may be silent.
const CALLS: u64 = 5;

impl Pulse {
    /// It is there now, and may be silent for so long.
    pub(super) fn new(now_ns: u64, silence_ms: u32) -> Self {
        let silence_ns = u64::from(silence_ms) * 1_000_000;
        Self { calls: VecDeque::new(), last_ns: now_ns, silence_ns }
    }

    /// It has answered the oldest call that it had not.
    pub(super) fn answered(&mut self) {
        self.calls.pop_front();
    }

    fn every_ns(&self) -> u64 {
        self.silence_ns / CALLS
    }

    /// When there is something to be done, unless it answers before.
    pub(super) fn due_ns(&self) -> u64 {
        let next = self.last_ns.saturating_add(self.every_ns());
        let lost = self.calls.front().map(|call| call + self.silence_ns - self.every_ns());
        lost.map_or(next, |lost| lost.min(next))
    }

    /// What is to be done now; whoever is to be called is taken to be. Who asks much too late was
    /// stopped, and has not heard for as long: the time to answer begins anew then.
    pub(super) fn step(&mut self, now_ns: u64) -> Due {
        let due_ns = self.due_ns();
        if now_ns < due_ns {
            return Due::Nothing;
        }
        if now_ns - due_ns > self.every_ns() {
            self.calls.iter_mut().for_each(|call| *call = now_ns);
        } else if self
            .calls
            .front()
            .is_some_and(|call| call + self.silence_ns <= now_ns + self.every_ns())
        {
            return Due::Lost;
        }
        self.calls.push_back(now_ns);
        self.last_ns = now_ns;
        Due::Call
    }
}

/// How a lost peer is parted from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parting {
    /// When the lease is over.
    until_ns: Option<u64>,
    /// BYE was said, or will not be.
    pub(super) said: bool,
    /// Its queue pairs deliver nothing of ours any more.
    pub(super) silent: bool,
}

impl Parting {
    /// It is lost just now. Who never had a rail has nothing to fall silent with.
    pub(super) fn begin(&mut self, had_rails: bool, until_ns: u64) {
        (self.said, self.silent) = (!had_rails, self.silent || !had_rails);
        self.until_ns = (!self.silent).then_some(until_ns);
    }

    /// It is silent.
    pub(super) fn hush(&mut self) {
        (self.silent, self.until_ns) = (true, None);
    }

    /// It counts as silent at this time, if not before.
    pub(super) fn no_later(&mut self, by_ns: u64) {
        self.until_ns = self.until_ns.map(|until_ns| until_ns.min(by_ns));
    }

    /// When it counts as silent, whatever it does.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.until_ns
    }
}

/// The first pause after an attempt to connect that failed, and the longest, ns.
const AGAIN_AFTER_NS: std::ops::RangeInclusive<u64> = 5_000_000..=2_000_000_000;

/// What is to be done once a rail has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The step that failed ends the life: it is tried anew in the next.
    NextLife(Step),
    /// Its port had no address: it asks again, in this life.
    SeekAgain(u32),
}

/// An attempt to connect a rail failed, and the next one is put off: longer with each round of all
/// that can be tried.
#[derive(Debug, Default)]
pub(super) struct PutOff {
    /// What is to be done, and until when nothing is.
    then: Option<(Then, u64)>,
    failures: u32,
    told: bool,
}

impl PutOff {
    /// One more has failed, of so many ways that there are. True if it is the first of which more
    /// is known than that there is no address.
    pub(super) fn failed(&mut self, then: Then, ways: u32, now_ns: u64) -> bool {
        let rounds = self.failures / ways.max(1);
        let pause_ns = AGAIN_AFTER_NS.start() << rounds.min(32);
        let known = matches!(then, Then::NextLife(_));
        let first = known && !std::mem::replace(&mut self.told, true);
        self.failures = self.failures.saturating_add(1);
        self.then = Some((then, now_ns + pause_ns.min(*AGAIN_AFTER_NS.end())));
        first
    }

    /// It is connected: the next pause is a short one again.
    pub(super) fn connected(&mut self) {
        *self = Self::default();
    }

    pub(super) fn due_ns(&self) -> Option<u64> {
        self.then.map(|(_, due_ns)| due_ns)
    }

    /// What is to be done, once its time has come.
    pub(super) fn due(&mut self, now_ns: u64) -> Option<Then> {
        self.then.take_if(|(_, due_ns)| now_ns >= *due_ns).map(|(then, _)| then)
    }
}

/// What a peer was asked to give back, each since when.
#[derive(Debug, Default)]
pub(super) struct Withdrawals(BTreeMap<u32, u64>);

impl Withdrawals {
    pub(super) fn asked(&mut self, loan: u32, now_ns: u64) {
        self.0.entry(loan).or_insert(now_ns);
    }

    pub(super) fn came_back(&mut self, loan: u32) {
        self.0.remove(&loan);
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// Since when the one that takes longest is waited for.
    pub(super) fn first_ns(&self) -> Option<u64> {
        self.0.values().copied().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn who_says_nothing_is_called_and_then_lost() {
        let mut pulse = Pulse::new(100 * SECOND, 25_000);
        assert_eq!(pulse.due_ns(), 105 * SECOND);
        assert_eq!(pulse.step(105 * SECOND - 1), Due::Nothing);
        assert_eq!(pulse.step(105 * SECOND), Due::Call);
        assert_eq!(pulse.step(105 * SECOND), Due::Nothing, "called once");
        for call in [110, 115, 120] {
            assert_eq!(pulse.due_ns(), call * SECOND);
            assert_eq!(pulse.step(call * SECOND), Due::Call);
        }
        assert_eq!(pulse.step(125 * SECOND - 1), Due::Nothing);
        assert_eq!(pulse.clone().step(125 * SECOND), Due::Lost);
        // An answer counts for the oldest call alone.
        pulse.answered();
        assert_eq!(pulse.step(125 * SECOND), Due::Call);
        assert_eq!(pulse.step(130 * SECOND), Due::Lost);
        for _ in 0..9 {
            pulse.answered();
        }
        assert_eq!(pulse.step(130 * SECOND), Due::Call);
    }

    /// Had we been stopped ourselves, it is asked first, and has all the time to answer.
    #[test]
    fn who_was_stopped_asks_anew() {
        let mut pulse = Pulse::new(100 * SECOND, 25_000);
        assert_eq!(pulse.step(105 * SECOND), Due::Call);
        assert_eq!(pulse.step(1_000 * SECOND), Due::Call);
        assert_eq!(pulse.step(1_005 * SECOND), Due::Call);
        pulse.answered();
        pulse.answered();
        for call in [1_010, 1_015, 1_020] {
            assert_eq!(pulse.step(call * SECOND), Due::Call);
        }
        assert_eq!(pulse.step(1_025 * SECOND), Due::Lost);
    }

    /// A peer that has stopped answering at some moment is lost no later than its silence allows,
    /// however late its answers from before that moment come.
    #[test]
    fn late_answers_do_not_prolong_a_lease() {
        for late in 0..20 {
            let (mut pulse, mut calls) = (Pulse::new(0, 10_000), Vec::new());
            let stops_at = 30;
            let lost_at = (0..200).find(|second| {
                // It answers what was asked before it stopped; the answers take their time.
                if calls.first().is_some_and(|call| *call + late <= *second) {
                    calls.remove(0);
                    pulse.answered();
                }
                match pulse.step(second * SECOND) {
                    Due::Call if *second < stops_at => calls.push(*second),
                    Due::Lost => return true,
                    _ => {}
                }
                false
            });
            let lost_at = lost_at.expect("it is lost");
            assert!(lost_at <= stops_at + 10, "{late}: at {lost_at}");
        }
    }

    #[test]
    fn the_next_attempt_is_put_off_for_ever_longer_up_to_a_bound() {
        let mut put_off = PutOff::default();
        assert_eq!((put_off.due_ns(), put_off.due(u64::MAX)), (None, None));
        let mut pauses = Vec::new();
        for life in 0..40 {
            let then = Then::NextLife(Step::Up(life));
            assert_eq!(put_off.failed(then, 1, SECOND), life == 0);
            let due_ns = put_off.due_ns().unwrap();
            assert_eq!(put_off.due(due_ns - 1), None);
            assert_eq!(put_off.due(due_ns), Some(then));
            assert_eq!(put_off.due(due_ns), None, "once");
            pauses.push(due_ns - SECOND);
        }
        assert_eq!(pauses[..3], [5_000_000, 10_000_000, 20_000_000]);
        assert_eq!(pauses[39], 2 * SECOND);
        put_off.connected();
        // Where there are several ways, each is tried before the pauses grow.
        let pauses = (0..7).map(|life| {
            assert!(!put_off.failed(Then::SeekAgain(life), 3, SECOND));
            put_off.due_ns().unwrap() - SECOND
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [5, 5, 5, 10, 10, 10, 20].map(|ms| ms * 1_000_000));
        assert!(put_off.failed(Then::NextLife(Step::Up(0)), 3, SECOND));
    }

    /// Revocations that overlap for long are no offence, and do not hide one that is.
    #[test]
    fn each_withdrawal_is_waited_for_by_itself() {
        let mut all = Withdrawals::default();
        for at in 0..100 {
            all.asked(at, u64::from(at) * SECOND);
            if at > 0 {
                all.came_back(at - 1);
            }
            assert_eq!(all.first_ns(), Some(u64::from(at) * SECOND));
        }
        all.came_back(99);
        assert_eq!(all.first_ns(), None);
        all.asked(7, SECOND);
        all.asked(7, 9 * SECOND);
        all.asked(8, 5 * SECOND);
        all.came_back(8);
        assert_eq!(all.first_ns(), Some(SECOND), "asked again, it is as late as it was");
        all.forget();
        assert_eq!(all.first_ns(), None);
    }

    #[test]
    fn the_lease_ends_with_silence_and_strangers_have_none() {
        let mut parting = Parting::default();
        parting.begin(true, 7 * SECOND);
        assert_eq!((parting.silent, parting.due_ns()), (false, Some(7 * SECOND)));
        parting.hush();
        assert_eq!((parting.silent, parting.due_ns()), (true, None));

        // It was silent before it was lost: its death was seen first.
        parting.begin(true, 9 * SECOND);
        assert_eq!((parting.silent, parting.due_ns()), (true, None));

        let mut known = Parting::default();
        known.begin(true, 7 * SECOND);
        known.no_later(9 * SECOND);
        assert_eq!(known.due_ns(), Some(7 * SECOND));
        known.no_later(3 * SECOND);
        assert_eq!(known.due_ns(), Some(3 * SECOND));
        parting.no_later(SECOND);
        assert_eq!(parting.due_ns(), None, "who is silent is not waited for");

        let mut stranger = Parting::default();
        stranger.begin(false, SECOND);
        assert!(stranger.silent && stranger.said, "nothing is said to it, nor waited for");
        assert_eq!(stranger.due_ns(), None);
    }
}
