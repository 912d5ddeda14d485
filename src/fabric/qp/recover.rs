//! Rails that fail, and come back: what is asked of the control side, what it answers, and what
//! becomes of the requests that were under way.
//!
//! ```text
//!  adopt --> Connecting --Connected--> Ready --error, doubt, Broken--> Degraded
//!                                        ^                                |  both ends quiet,
//!                                        |                                v  all work ended
//!                                    Connected <-- Rebuilding <--Reset-- reset asked
//!  Gone, from any of these: Dead --release--> Absent
//! ```
//!
//! There is one place where requests of a failed queue pair are decided about: [`Rails::converge`].
//! By then our queue pair is reset and the peer's cannot deliver any more, so nothing is under
//! way on any wire. READs, and WRITEs that had not notified yet, are repeated, in order; what was
//! itself at fault fails; what cannot be repeated fails as maybe done; and what is chained to a
//! failure is cancelled.

use super::Rails;
use super::provider::{Provider, WcStatus, WrId};
use super::rail::{Answers, Last, RailState, Stage, Taken};
use super::status::{EHOSTDOWN, Fault};
use crate::plant::{Plant, planted};

/// What the control side is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Move the queue pair to ERROR, and tell the peer's control, whose rail is told
    /// [`News::Broken`] and will wish the same. Answer [`News::Quiet`] once it has; if the peer
    /// cannot be reached, when the lease is over after which it does so by itself, or
    /// [`News::Gone`]. The peer's queue pair is not to be moved before its rail wishes it: it may
    /// still be waiting to hear which of its requests was at fault.
    Quiesce,
    /// All work has ended: move the queue pair to RESET and INIT. Answer [`News::Reset`].
    Reset,
    /// Receives are posted: bring the queue pair to RTS together with the peer's, once that one
    /// wishes it, too. Answer [`News::Connected`], or [`News::Gone`].
    Connect,
}

/// What a rail wants of the control side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The rail.
    pub rail: u16,
    /// Its epoch; the answer carries it.
    pub epoch: u32,
    /// What is to be done.
    pub ask: Ask,
    /// Nobody answered the first that was posted in this life, nor anything since: whether the path
    /// leads to the peer at all is not known.
    pub barren: bool,
    /// The queue pair failed by the fault of a request itself: the index of its remote region.
    /// Told once, before the queue pair's reset.
    pub offender: Option<u32>,
}

/// What the control side has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The queue pair failed: an event of the device, or the peer said so.
    Broken,
    /// Answer to [`Ask::Quiesce`].
    Quiet,
    /// Answer to [`Ask::Reset`].
    Reset,
    /// Answer to [`Ask::Connect`].
    Connected {
        /// Notifications that the peer has receives for.
        credits: u32,
    },
    /// The peer is gone, or the rail is to end: our queue pair is in RESET, and the peer's cannot
    /// deliver any more. Every request ends.
    Gone,
}

/// News of a rail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The rail.
    pub rail: u16,
    /// The epoch it is about.
    pub epoch: u32,
    /// What happened.
    pub news: News,
}

/// What became of the request before, where all that was under way is decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// It succeeded.
    Whole,
    /// It is posted again by this rail.
    Kept,
    /// It failed; in such a way, perhaps, that nothing behind it took effect.
    Failed { shut_out: bool },
    /// It was handed back.
    Returned,
}

/// How it is decided whether a request that was under way fails.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// The rail ends: nothing is repeated here.
    verdict: Option<(Fault, i32)>,
    /// As `verdict`, of one that is not handed back.
    gone: Option<(Fault, i32)>,
    attempts_max: u8,
}

impl Rule {
    /// Leaves a request its failure, or takes it away; true if that was such a failure that nothing
    /// behind it took effect.
    fn apply(self, taken: &mut Taken) -> bool {
        let Self { verdict, gone, attempts_max } = self;
        let whole = taken.over() && taken.failure.is_none();
        let hurt = taken.worth_another_try();
        let shut_out = taken.shut_out_the_rest();
        if !whole && taken.failure.is_none() {
            taken.failure = gone;
        } else if verdict.is_some() && taken.refused_by_peer() {
            // It was going by then, and took its keys along: nobody is at fault here.
            taken.blame_the_path(verdict);
        } else if hurt && taken.errno() != crate::abi::errno::ECANCELED {
            let again = taken.repeatable() && (taken.attempts < attempts_max || taken.split);
            taken.failure = match gone {
                Some(gone) => Some(gone),
                None => taken.failure.filter(|_| !again),
            };
        }
        shut_out
    }
}

/// In so many parts the time is divided after which work is taken for lost.
const LOOKS: u64 = 4;

impl<P: Provider> Rails<P> {
    /// Takes the next wish to the control side, oldest first. A rail has one at a time.
    pub fn wish(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    /// Hears the control side. News of an earlier life of the queue pair, or answers to nothing,
    /// are counted and ignored.
    pub fn tell(&mut self, told: Told) {
        let Some(rail) = self.rails.get_mut(usize::from(told.rail)) else { return };
        let state = rail.state;
        if state == RailState::Absent || told.epoch != rail.epoch {
            self.counts.stale_news += 1;
            return;
        }
        match (told.news, state) {
            (News::Gone, RailState::Dead) => {}
            (News::Gone, _) => self.end(told.rail),
            (News::Broken, _) => self.wind_down(told.rail),
            (News::Quiet, RailState::Degraded) if rail.quiesce_asked => {
                rail.quiet_since_ns.get_or_insert(self.now_ns);
                self.attend(told.rail);
            }
            (News::Reset, RailState::Degraded) if rail.reset_asked => self.rebuild(told.rail),
            (News::Connected { credits }, RailState::Connecting | RailState::Rebuilding)
                if !rail.connect_due =>
            {
                rail.credits.connect(credits);
                self.connected(told.rail);
            }
            _ => self.counts.stale_news += 1,
        }
    }

    /// Starts a life of a queue pair, which is in INIT.
    pub(super) fn begin(&mut self, number: u16, receives: u32) {
        let rail = &mut self.rails[usize::from(number)];
        rail.epoch = rail.epoch.wrapping_add(1);
        rail.credits.restart(receives);
        rail.connect_due = true;
        (rail.first_work, rail.barren) = (rail.works.tail(), false);
        rail.marker_posted = false;
        rail.answers = Answers::None;
        rail.unsignaled = 0;
        rail.starved = false;
        rail.stuck_since_ns = None;
        rail.quiesce_asked = false;
        rail.quiet_since_ns = None;
        rail.reset_asked = false;
        rail.silent = false;
        rail.offender = None;
        self.attend(number);
    }

    /// Looks for rails whose oldest work has been the same for too long: a device that answers for
    /// all that it was given has not answered for this, and will not. Looks are counted, not time:
    /// an engine that stood still finds much to be polled first.
    #[cold]
    pub(super) fn look_for_lost(&mut self) {
        self.look_ns = self.now_ns.saturating_add(self.config.lost_ns / LOOKS);
        for number in 0..self.config.rails_max {
            let rail = &mut self.rails[usize::from(number)];
            let head = rail.works.head();
            let moved = std::mem::replace(&mut rail.seen_head, head) != head;
            let posts = matches!(rail.state, RailState::Ready | RailState::Trial);
            if moved || rail.works.is_empty() || !posts {
                rail.seen_looks = 0;
                continue;
            }
            rail.seen_looks += 1;
            if rail.seen_looks > LOOKS {
                rail.silent = true;
                self.counts.silent += 1;
                self.suspect_path(number, head, WcStatus::ResponseTimeout);
                self.degrade(number);
            }
        }
    }

    /// A rail is in doubt: no new work, and both ends are to fall quiet at once.
    pub(super) fn degrade(&mut self, number: u16) {
        self.wind_down(number);
        let rail = &mut self.rails[usize::from(number)];
        if rail.state == RailState::Degraded && !rail.quiesce_asked {
            rail.quiesce_asked = true;
            self.ask(number, Ask::Quiesce);
        }
    }

    /// The other end has failed: no new work; what is posted gets a while to end by itself, since
    /// the answer that says which request was at fault may be on its way.
    pub(super) fn wind_down(&mut self, number: u16) {
        use RailState::{Connecting, Ready, Rebuilding, Trial};
        let state = self.rails[usize::from(number)].state;
        if !matches!(state, Connecting | Ready | Rebuilding | Trial) {
            return;
        }
        self.distrust(number);
        let rail = &mut self.rails[usize::from(number)];
        rail.go(RailState::Degraded, &mut self.counts);
        rail.connect_due = false;
        rail.degraded_ns = self.now_ns;
        self.counts.degraded += 1;
        self.wishes.retain(|wish| wish.rail != number);
        self.attend(number);
    }

    /// A card's completion queue is broken: every rail on it is in doubt.
    pub(super) fn degrade_card(&mut self, card: u8) {
        for number in 0..self.config.rails_max {
            if self.rails[usize::from(number)].card == card {
                self.degrade(number);
            }
        }
    }

    fn ask(&mut self, rail: u16, ask: Ask) {
        let state = &mut self.rails[usize::from(rail)];
        let (epoch, barren, offender) = (state.epoch, state.barren, state.offender.take());
        self.wishes.push_back(Wish { rail, epoch, ask, barren, offender });
    }

    /// Does what a rail on the list needs.
    pub(super) fn look_after(&mut self, number: u16) {
        match self.rails[usize::from(number)].state {
            RailState::Absent | RailState::Dead => {}
            RailState::Connecting | RailState::Rebuilding => {
                self.post_receives(number);
                let rail = &mut self.rails[usize::from(number)];
                if rail.connect_due && rail.credits.missing() == 0 {
                    rail.connect_due = false;
                    self.ask(number, Ask::Connect);
                }
            }
            RailState::Ready => {
                self.post_receives(number);
                self.pump(number);
                self.settle(number);
            }
            RailState::Trial => {
                self.post_receives(number);
                if self.rails[usize::from(number)].state == RailState::Trial {
                    self.try_out(number);
                }
            }
            RailState::Degraded => self.drain(number),
        }
    }

    fn post_receives(&mut self, number: u16) {
        let rail = &mut self.rails[usize::from(number)];
        let missing = rail.credits.missing();
        if missing == 0 {
            return;
        }
        let id = WrId::new(rail.epoch, number, WrId::RECEIVE);
        match self.provider.post_receives(number, id.0, missing) {
            Ok(()) => rail.credits.posted(missing),
            Err(bad) => match bad.taken.filter(|taken| *taken < missing) {
                Some(taken) => {
                    rail.credits.posted(taken);
                    self.attend(number);
                }
                None => self.degrade(number),
            },
        }
    }

    /// Waits for the end of a degraded rail's work, then asks for its reset. Work whose end the
    /// device would not tell has a marker put behind it, which is flushed after it.
    fn drain(&mut self, number: u16) {
        let rail = &self.rails[usize::from(number)];
        if !rail.quiesce_asked {
            let waited_ns = self.now_ns.saturating_sub(rail.degraded_ns);
            if rail.works.is_empty() || waited_ns > self.config.grace_ns {
                self.degrade(number);
            } else {
                self.attend(number);
            }
            return;
        }
        if planted(Plant::RetryEarly) && rail.shared && rail.works.is_empty() {
            self.converge(number, None);
        }
        let rail = &self.rails[usize::from(number)];
        let Some(since) = rail.quiet_since_ns.filter(|_| !rail.reset_asked) else { return };
        let over = self.now_ns.saturating_sub(since) > self.config.drain_ns;
        if rail.works.is_empty() || over {
            self.rails[usize::from(number)].reset_asked = true;
            self.ask(number, Ask::Reset);
            return;
        }
        let last = rail.works[rail.works.tail().wrapping_sub(1)];
        if !rail.marker_posted && (!last.signaled || last.doubt) {
            self.post_marker(number);
        }
        self.attend(number);
    }

    fn rebuild(&mut self, number: u16) {
        self.converge(number, None);
        let rail = &mut self.rails[usize::from(number)];
        rail.go(RailState::Rebuilding, &mut self.counts);
        let receives = rail.credits.receives();
        self.begin(number, receives);
    }

    /// The peer is gone.
    fn end(&mut self, number: u16) {
        self.converge(number, Some((Fault::Path, EHOSTDOWN)));
        self.wishes.retain(|wish| wish.rail != number);
        self.give_up_probing(number);
        let rail = &mut self.rails[usize::from(number)];
        rail.go(RailState::Dead, &mut self.counts);
        rail.connect_due = false;
        rail.credits.restart(0);
    }

    /// Decides about every request of a queue pair that neither end can use any more: reports
    /// what is over, and lays out anew what is repeated; or hands it back, where other rails lead
    /// to the same place. With `verdict` nothing is repeated here.
    fn converge(&mut self, number: u16, verdict: Option<(Fault, i32)>) {
        let attempts_max = self.config.attempts_max;
        let rail = &mut self.rails[usize::from(number)];
        self.counts.orphaned += u64::from(rail.works.len());
        rail.abandon();
        rail.credits.unreserve_all();
        let (first, end) = (rail.taken.head(), rail.taken.tail());
        let (mut at, mut keep, mut before) = (first, first, Before::Whole);
        rail.used = 0;
        while at != end {
            let mut taken = rail.taken[at];
            if taken.split {
                (taken.cursor, taken.stage) = (0, Stage::Data);
            }
            let whole = taken.over() && taken.failure.is_none();
            let hurt = taken.worth_another_try();
            let chained = taken.chained() && !planted(Plant::ChainUncut);
            // Nothing of it can still happen, and to do it again is harmless. It does not go ahead
            // of what it is chained to.
            let parted = self.parted.get(taken.request.remote as usize) == Some(&true);
            let spare = (rail.shared || parted)
                && (taken.repeatable() || !taken.begun())
                && !(chained && before == Before::Kept);
            let gone = verdict.filter(|_| !spare);
            let rule = Rule { verdict, gone, attempts_max };
            let shut_out = match before {
                Before::Failed { shut_out } if chained && !whole => {
                    taken.cut(shut_out);
                    shut_out
                }
                _ => rule.apply(&mut taken),
            };
            let failed = taken.failure.is_some();
            before = Before::Whole;
            if whole || failed {
                self.finished.push_back(taken.done());
                self.live -= 1;
                if failed {
                    before = Before::Failed { shut_out };
                } else if taken.sent_back {
                    before = Before::Returned;
                }
            } else if spare {
                self.finished.push_back(taken.returned(taken.attempts + u8::from(hurt)));
                self.counts.returned += 1;
                self.live -= 1;
                before = Before::Returned;
            } else {
                before = Before::Kept;
                rail.taken[keep] = taken;
                if hurt {
                    let request = &taken.request;
                    let works = super::post::works(&self.regions, &self.config, rail.card, request);
                    rail.rewind(keep, works.unwrap_or(1));
                    self.counts.repeats += 1;
                }
                rail.used += rail.taken[keep].works;
                if taken.notifies() && rail.taken[keep].stage != Stage::Whole {
                    rail.credits.reserve();
                }
                keep = keep.wrapping_add(1);
            }
            at = at.wrapping_add(1);
        }
        // If the last one walked is not the last one taken, that one ended in an earlier failure.
        if rail.last == Last::Sound {
            rail.last = match before {
                Before::Whole | Before::Kept => Last::Sound,
                Before::Failed { .. } => Last::Failed,
                Before::Returned => Last::Returned,
            };
        }
        rail.taken.cut(keep);
        rail.next = first;
    }
}
