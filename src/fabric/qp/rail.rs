//! One rail: a queue pair's state, the requests it took, and the work posted for them.
//!
//! A request becomes one work request for each piece of memory it crosses, and one more if it
//! notifies. `taken` holds requests in the order they came; `works` holds what is posted, in the
//! order of the send queue. Both move in order, since a reliable connection does.
//!
//! **Invariants**: every posted work request that belongs to a request is in `works` exactly
//! once; `used` is the work that taken requests still stand for, posted or not, and never above
//! `depth` unless one request alone is larger; two more places are kept back, for one message
//! that returns credit and one marker.

use super::Counts;
use super::message::Credits;
use super::status::{EIO, Fault};
use super::track::Track;
use super::trial::Trust;
use crate::abi::errno;
use crate::fabric::{
    DONE_FLUSHED, DONE_MAYBE, DONE_PLACED, DONE_RETURNED, Done, REQUEST_CHAIN, REQUEST_NOTIFY,
    Request, Room, Stop, Verb,
};
use crate::plant::{Plant, planted};

/// Send queue entries beyond a rail's depth: for the credit message and for the marker.
pub const SENDS_KEPT: u32 = 2;

/// What a rail is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RailState {
    /// There is no such rail.
    Absent,
    /// New, and not connected yet.
    Connecting,
    /// Takes requests.
    Ready,
    /// Connected again, and not trusted yet: it takes nothing.
    Trial,
    /// In doubt: takes nothing, waits until both ends are quiet and all work has ended.
    Degraded,
    /// Reset, and on its way to be connected again.
    Rebuilding,
    /// Its peer is gone: every request ends at once.
    Dead,
}

impl RailState {
    /// How many there are.
    pub const COUNT: usize = Self::Dead as usize + 1;
}

/// How far the posting of a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Bytes are left to post, from `cursor` on.
    Data,
    /// The notification is left.
    Notify,
    /// Nothing is left.
    Whole,
}

/// A request that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) request: Request,
    pub(super) stage: Stage,
    pub(super) cursor: u32,
    /// Work requests posted and not resolved.
    pub(super) in_flight: u32,
    /// Work requests not resolved, posted or not.
    pub(super) works: u32,
    /// How often it was repeated on a rebuilt queue pair.
    pub(super) attempts: u8,
    /// The first failure, and whether it struck the bytes (or else the notification).
    pub(super) failure: Option<(Fault, i32)>,
    pub(super) data_failed: bool,
    /// The provider refused to post it: it is not handed back, but ends as failed.
    pub(super) refused: bool,
    /// It goes by itself: the provider refused it together with others.
    pub(super) alone: bool,
    /// Its work request, that was others' too, was refused before it had any effect. Which of them
    /// was at fault is not known: each goes by itself the next time.
    pub(super) split: bool,
    /// It is handed back at once, as what it is chained to was.
    pub(super) sent_back: bool,
    /// The rail's `last` before it was taken.
    pub(super) last_before: Last,
}

/// What became of the request that was taken last: one that is chained to it depends on that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// It succeeded, or may still.
    Sound,
    /// It failed.
    Failed,
    /// It was handed back.
    Returned,
}

/// READs and atomics of the chain that is being posted: their results come back after they left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// There are none.
    None,
    /// A fence stands behind them: what follows starts after them. At the time of its post they may
    /// still be under way, so no bytes are to be copied then.
    Fenced,
    /// They may still be under way when what follows starts.
    Open,
}

impl Taken {
    pub(super) fn new(request: Request, works: u32) -> Self {
        Self {
            request,
            stage: Stage::Data,
            cursor: 0,
            in_flight: 0,
            works,
            attempts: request.attempts,
            failure: None,
            data_failed: false,
            refused: false,
            alone: false,
            split: false,
            sent_back: false,
            last_before: Last::Sound,
        }
    }

    pub(super) fn chained(&self) -> bool {
        self.request.flags & REQUEST_CHAIN != 0
    }

    pub(super) fn notifies(&self) -> bool {
        self.request.flags & REQUEST_NOTIFY != 0
    }

    /// Something of it was posted.
    pub(super) fn begun(&self) -> bool {
        self.cursor > 0 || self.stage != Stage::Data
    }

    /// All of it was posted, or will never be, and nothing is in flight.
    pub(super) fn over(&self) -> bool {
        self.works == 0
    }

    /// It may be carried out a second time without harm.
    pub(super) fn repeatable(&self) -> bool {
        let plain = matches!(self.request.verb, Verb::Write | Verb::Read);
        let told = self.notifies() && self.stage == Stage::Whole;
        (plain || planted(Plant::AtomicAgain)) && (!told || planted(Plant::NotifyAgain))
    }

    /// It was under way in two failures of which nobody knows the cause: it goes alone, so that a
    /// third is its own.
    pub(super) fn suspect(&self) -> bool {
        self.attempts >= 2
    }

    pub(super) fn fail(&mut self, failure: (Fault, i32), data: bool) {
        self.failure.get_or_insert(failure);
        self.data_failed |= data;
    }

    /// It failed in such a way that nothing behind it in its queue pair took effect.
    pub(super) fn shut_out_the_rest(&self) -> bool {
        self.failure.is_some_and(|(fault, errno)| fault != Fault::Path && errno != EIO)
    }

    /// It is cut, since what it is chained to failed; `untouched` if it certainly had no effect.
    pub(super) fn cut(&mut self, untouched: bool) {
        self.failure = Some((Fault::Path, errno::ECANCELED));
        if untouched {
            (self.cursor, self.stage) = (0, Stage::Data);
        }
    }

    /// Its work request failed, which was others' too. If one of them was at fault, nobody knows
    /// which; so none is.
    pub(super) fn fail_together(&mut self, (fault, errno): (Fault, i32)) {
        if fault == Fault::Path {
            return self.fail((fault, errno), true);
        }
        self.split = errno != EIO;
        self.fail((Fault::Path, EIO), true);
    }

    /// It may do better another time. So may what the peer's card has called invalid, since nothing
    /// is asked for here that is: it was seen of Soft-RoCE after time-outs, of WRITEs of several
    /// packets only.
    pub(super) fn worth_another_try(&self) -> bool {
        let invalid = (Fault::Refused, errno::EINVAL);
        self.failure.is_some_and(|failure| failure.0 == Fault::Path || failure == invalid)
    }

    /// The peer's card would not have it.
    pub(super) fn refused_by_peer(&self) -> bool {
        self.failure.is_some_and(|(fault, _)| fault == Fault::Refused)
    }

    /// What the peer's card would not have fails as what it never saw. What it refused before it
    /// touched anything had no effect, and neither had the notification behind it.
    pub(super) fn blame_the_path(&mut self, verdict: Option<(Fault, i32)>) {
        if self.errno() != EIO {
            (self.cursor, self.stage) = (0, Stage::Data);
        }
        self.failure = verdict;
    }

    pub(super) fn errno(&self) -> i32 {
        self.failure.map_or(0, |(_, errno)| errno)
    }

    /// It is handed back, having been under way so often.
    pub(super) fn returned(&self, attempts: u8) -> Done {
        Done { flags: DONE_RETURNED, attempts, ..Done::new(self.request.ticket, 0) }
    }

    pub(super) fn done(&self) -> Done {
        if self.sent_back {
            return self.returned(self.attempts);
        }
        let (ticket, attempts) = (self.request.ticket, self.attempts);
        let Some((fault, errno)) = self.failure else {
            return Done { attempts, ..Done::new(ticket, 0) };
        };
        let mut flags = 0;
        if fault == Fault::Path {
            flags |= DONE_FLUSHED;
        }
        let uncertain = fault == Fault::Path || errno == EIO;
        if uncertain && self.begun() && !self.repeatable() {
            flags |= DONE_MAYBE;
        }
        if self.notifies() && self.stage == Stage::Whole && !self.data_failed {
            flags |= DONE_PLACED;
        }
        Done { ticket, errno, flags, attempts }
    }
}

/// What a posted work request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Bytes of a request.
    Data,
    /// The notification of a request.
    Notify,
    /// A message that only returns credit.
    Credit,
    /// A WRITE of nothing, whose completion tells that all before it is over.
    Marker,
}

/// A work request that is posted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) role: Role,
    pub(super) signaled: bool,
    /// The provider did not say whether this was posted.
    pub(super) doubt: bool,
    /// The request's position, for data and notifications.
    pub(super) taken: u32,
    /// How many requests it stands for, from that one on.
    pub(super) count: u32,
    /// The request's cursor before it, to take it back.
    pub(super) cursor: u32,
    /// The rail's `answers` before it.
    pub(super) answers: Answers,
    /// Credit that the message returns.
    pub(super) credits: u32,
}

impl Work {
    pub(super) const NONE: Self = Self {
        role: Role::Marker,
        signaled: false,
        doubt: false,
        taken: 0,
        count: 1,
        cursor: 0,
        answers: Answers::None,
        credits: 0,
    };
}

impl Work {
    /// Positions of the requests that it stands for.
    #[inline]
    pub(super) fn requests(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.taken;
        (0..self.count).map(move |ahead| first.wrapping_add(ahead))
    }
}

/// A slot of `works`: how often it was used, so that late completions are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamp {
    pub(super) generation: u32,
    /// The use that was taken back last. A completion of it would show that the provider had
    /// posted more than it said.
    pub(super) burnt: u32,
}

/// A rail.
#[derive(Debug)]
pub(super) struct Rail {
    pub(super) state: RailState,
    /// Counts queue pair lives: every connection has its own.
    pub(super) epoch: u32,
    pub(super) depth: u32,
    pub(super) inline_bytes: u32,
    /// Local ranges of one work request, at most.
    pub(super) ranges_max: u32,
    /// The card that its queue pair is on; the peer has a number of its own for its end.
    pub(super) card: u8,
    /// Other rails lead to the same place.
    pub(super) shared: bool,
    pub(super) trust: Trust,
    /// Entries of the completion queue that it may fill.
    pub(super) completions: u32,
    pub(super) taken: Track<Taken>,
    /// Position of the first request that is not posted whole.
    pub(super) next: u32,
    pub(super) used: u32,
    pub(super) works: Track<Work>,
    pub(super) stamps: Box<[Stamp]>,
    /// Of `works`, those that belong to requests.
    pub(super) data_posted: u32,
    /// Work requests since the last signalled one.
    pub(super) unsignaled: u32,
    pub(super) answers: Answers,
    pub(super) last: Last,
    pub(super) marker_posted: bool,
    pub(super) credits: Credits,
    /// The device had no memory for a post; since when nothing could be posted at all.
    pub(super) starved: bool,
    pub(super) stuck_since_ns: Option<u64>,
    /// While degraded: since when, and whether both ends were asked to fall quiet.
    pub(super) degraded_ns: u64,
    pub(super) quiesce_asked: bool,
    /// While degraded: when both ends were quiet, and whether a reset was asked for.
    pub(super) quiet_since_ns: Option<u64>,
    pub(super) reset_asked: bool,
    /// Where the first work of this life is, or will be; and that nobody answered it.
    pub(super) first_work: u32,
    pub(super) barren: bool,
    /// The oldest work at the last look for lost completions, and at how many it was the oldest.
    pub(super) seen_head: u32,
    pub(super) seen_looks: u64,
    /// It is degraded because work gave no sign of life: the first to be flushed is the cause.
    pub(super) silent: bool,
    /// The remote region of the request that it failed by, if that was at fault itself, until the
    /// control side is told.
    pub(super) offender: Option<u32>,
    /// A connection is to be asked for once receives are posted.
    pub(super) connect_due: bool,
    /// It is on the list of rails to look at.
    pub(super) listed: bool,
}

impl Rail {
    /// A place for a rail of `depth`, with `receives` for notifications.
    pub(super) fn new(depth: u32, receives: u32) -> Self {
        let works = Track::new(depth + SENDS_KEPT, Work::NONE);
        let nothing = Request {
            ticket: 0,
            verb: Verb::Write,
            local: 0,
            remote: 0,
            local_offset: 0,
            remote_offset: 0,
            bytes: 0,
            arg: [0; 2],
            rail: 0,
            flags: 0,
            immediate: 0,
            attempts: 0,
        };
        let taken = Track::new(depth, Taken::new(nothing, 0));
        Self {
            state: RailState::Absent,
            epoch: 0,
            depth,
            inline_bytes: 0,
            ranges_max: 1,
            card: 0,
            shared: false,
            trust: Trust::default(),
            completions: 0,
            next: taken.tail(),
            taken,
            used: 0,
            stamps: vec![Stamp::default(); works.capacity() as usize].into_boxed_slice(),
            works,
            data_posted: 0,
            unsignaled: 0,
            answers: Answers::None,
            last: Last::Sound,
            marker_posted: false,
            credits: Credits::new(receives),
            starved: false,
            stuck_since_ns: None,
            degraded_ns: 0,
            quiesce_asked: false,
            quiet_since_ns: None,
            reset_asked: false,
            first_work: 0,
            barren: false,
            seen_head: 0,
            seen_looks: 0,
            silent: false,
            offender: None,
            connect_due: false,
            listed: false,
        }
    }

    /// Passes to another state; every change is one of these, and counted.
    pub(super) fn go(&mut self, to: RailState, counts: &mut Counts) {
        counts.passages[self.state as usize][to as usize] += 1;
        self.state = to;
    }

    pub(super) fn room(&self) -> Room {
        let stop = match self.state {
            RailState::Absent | RailState::Connecting => Some(Stop::Connecting),
            RailState::Degraded => Some(Stop::Degraded),
            RailState::Rebuilding | RailState::Trial => Some(Stop::Rebuilding),
            RailState::Dead => Some(Stop::Dead),
            RailState::Ready if self.used >= self.depth => Some(Stop::Depth),
            RailState::Ready if self.starved => Some(Stop::Memory),
            RailState::Ready => None,
        };
        let takes = matches!(stop, None | Some(Stop::Memory));
        let requests = if takes { self.depth - self.used } else { 0 };
        let notifies = if takes { self.credits.free() } else { 0 };
        Room { requests, notifies, stop }
    }

    /// [`Rail::room`] while its card pauses.
    pub(super) fn room_in_pause(&self) -> Room {
        match self.state {
            RailState::Absent | RailState::Dead => self.room(),
            _ => Room { requests: 0, notifies: 0, stop: Some(Stop::Paused) },
        }
    }

    /// True if a request of `works` work requests can be taken.
    pub(super) fn admits(&self, works: u32, notifies: bool) -> bool {
        let room = self.used + works <= self.depth || self.used == 0;
        room && self.taken.len() < self.taken.capacity() && (!notifies || self.credits.free() > 0)
    }

    /// Ends a request that has a failure before it is posted (any further).
    pub(super) fn give_up(&mut self, at: u32, failure: (Fault, i32)) {
        let taken = &mut self.taken[at];
        let unposted = taken.works - taken.in_flight;
        if taken.notifies() && taken.stage != Stage::Whole {
            self.credits.unreserve();
        }
        taken.fail(failure, taken.stage == Stage::Data);
        taken.works -= unposted;
        self.used -= unposted;
    }

    /// A request was refused by the provider: it fails, and with it what is chained to it.
    pub(super) fn refuse(&mut self, at: u32, errno: i32) {
        self.give_up(at, (Fault::Request, errno));
        self.taken[at].refused = true;
        let mut next = at.wrapping_add(1);
        let cut = !planted(Plant::ChainUncut);
        while cut && self.taken.contains(next) && self.taken[next].chained() {
            self.give_up(next, (Fault::Path, errno::ECANCELED));
            self.taken[next].refused = true;
            next = next.wrapping_add(1);
        }
        if next == self.taken.tail() {
            self.last = Last::Failed;
        }
        self.next = next;
    }
}
