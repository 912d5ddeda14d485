//! One rail to a peer: what its control does, as a function of what it hears.
//!
//! It hears the rail (wishes), the peer's control (what it says of its end), the card (how work
//! came out) and the connection (its loss); it asks for messages, card work and news to the rail,
//! as [`Act`]s. It holds no socket, queue pair or clock. A rail to oneself is the same: all that
//! it says is said to itself.
//!
//! ```text
//!  Connect wished -> endpoint from the card -> READY       (who follows waits for READY: `paths`)
//!  both READY     -> RTR, RTS               -> UP
//!  both UP        -> the rail is told Connected
//!  nobody answers -> BARREN                 (another pair of addresses is next: `paths`)
//!  Quiesce wished -> ERROR                  -> QUIET       (the other's rail is told Broken)
//!  both QUIET     -> the rail is told Quiet
//!  Reset wished   -> RESET, INIT            -> the rail is told Reset: a new life
//!  lost           -> ERROR                  (the rail is told Broken)
//!  both silent    -> RESET                  -> the rail is told Gone
//! ```
//!
//! **A rail that is lost** has its queue pair moved to ERROR at once, and may say so ([`hushed`]).
//! Its requests may still be on their way to the peer: nothing is told of them before the caller
//! knows that the peer's queue pair cannot deliver them any more, and says so ([`silent`]).
//!
//! [`hushed`]: Joint::hushed
//! [`silent`]: Joint::silent
//!
//! **Lives.** A rail's epochs are its own, so what is said to the peer counts lives from 0 on. Both
//! ends must be quiet before either begins a new life; so the peer is in the same life, or it has
//! begun the next one and we are about to. Whatever else it says breaks the rules. Card work of a
//! life that is over, or has fallen quiet, comes out and is not heeded.
//!
//! **A queue pair that cannot be connected** has its rail told Broken, which ends in a new life and
//! a new attempt; a few of these in a row, and the rail has failed. One with siblings goes on
//! trying, as often as its rail wishes, while they carry what it cannot.
//!
//! **A rail that leaves** while the connection goes on says QUIET once its queue pair delivers
//! nothing more, and hears from the other end's QUIET that it is silent.
//!
//! **Tests**: `tests`, over rails in the simulator.

use std::collections::VecDeque;

use thiserror::Error;

use super::paths::{Address, Because, Heard, Paths, WAYS_MAX};
use crate::fabric::qp::provider::{Caps, Endpoint, Link, Move, PathSettings};
use crate::fabric::qp::{Ask, News, RECEIVES_KEPT};
use crate::plant::{Plant, planted};

/// What one end says of itself to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    /// It can be connected.
    Ready {
        /// Which life.
        life: u32,
        /// This end of it.
        endpoint: Endpoint,
        /// How often the end that leads has been through its addresses: see [`Paths`]. The other
        /// says 0.
        round: u32,
    },
    /// Its queue pair is in RTS.
    Up {
        /// Which life.
        life: u32,
    },
    /// Nobody has answered anything that it has posted: it is said of a queue pair in doubt, before
    /// QUIET.
    Barren {
        /// Which life.
        life: u32,
    },
    /// Its queue pair is in ERROR.
    Quiet {
        /// Which life.
        life: u32,
    },
}

/// What card work was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The queue pair.
    Create,
    /// This end of it, in a life.
    Endpoint(u32),
    /// RTR and RTS.
    Up(u32),
    /// ERROR.
    Quiet(u32),
    /// RESET and INIT.
    Reset(u32),
    /// ERROR, since the rail is lost.
    Hush,
    /// RESET, since it cannot be moved to ERROR.
    Still,
    /// RESET, for good.
    End,
    /// The queue pair's end.
    Destroy,
}

/// Card work that a rail asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Makes the queue pair and brings it to INIT; answered by [`Joint::created`].
    Create {
        /// Sizes to ask for.
        caps: Caps,
    },
    /// Asks for this end of it; answered by [`Joint::endpoint`].
    Endpoint {
        /// The queue pair's number.
        number: u32,
        /// Notifications that it has receives for.
        credits: u32,
    },
    /// Moves it; answered by [`Joint::moved`].
    Move {
        /// The queue pair's number.
        number: u32,
        /// One after the other.
        moves: Vec<Move>,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Say this to the peer.
    Send(Say),
    /// Ask this of the card.
    Card(Step, Job),
    /// Tell the rail; the epoch is the one that it is about.
    Tell(u32, News),
    /// Take the queue pair back from the fabric, and destroy it.
    Release,
    /// The connection cannot go on.
    Fail(&'static str),
    /// It is all over: nothing of it is left anywhere.
    Over,
}

/// The peer said what it could not say. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{said} of life {life} came in life {current}, {why}")]
pub(crate) struct Violation {
    said: &'static str,
    life: u32,
    current: u32,
    why: &'static str,
}

/// What this end has done in its life.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    connect_wished: bool,
    /// The card was asked for the endpoint.
    sought: bool,
    endpoint: Option<Endpoint>,
    moving: bool,
    up: bool,
    connected: bool,
    /// Nobody has answered anything, at this end or at the other.
    barren: bool,
    quiesce_wished: bool,
    quiet: bool,
}

/// What the other end has said in its life.
#[derive(Clone, Copy, Debug, Default)]
struct Other {
    life: u32,
    endpoint: Option<Endpoint>,
    round: u32,
    up: bool,
    quiet: bool,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    No,
    /// It is lost; the rail's first wish is waited for, which says its epoch. It would never come
    /// if the queue pair were reset under it: receives cannot be posted in RESET.
    Waiting,
    /// It is lost, and may have sent what the peer has not got yet: our queue pair is moved to
    /// ERROR, and the peer's silence is waited for.
    Hushing,
    /// The queue pair is being reset.
    Resetting,
    /// The rail is dead, or never was.
    Dead,
    /// The queue pair is being taken back and destroyed.
    Releasing,
    Over,
}

/// How far a rail has come, for those who look on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is being connected.
    Connecting,
    /// Both ends are connected, as far as this one knows.
    Up,
    /// It is in doubt: both ends are brought to rest, and begin anew.
    Quiescing,
    /// It is lost.
    Lost,
}

/// Where the queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    Creating,
    None,
    Adopted,
    /// The fabric would not have it, or was never asked.
    Refused,
}

/// A rail's state.
#[derive(Debug)]
pub(crate) struct Joint {
    paths: Paths,
    pair: Pair,
    number: u32,
    /// Receives for notifications.
    credits: u32,
    first_epoch: Option<u32>,
    /// The rail's epoch, once it has wished anything.
    epoch: u32,
    life: u32,
    own: Own,
    other: Other,
    end: End,
    /// The peer's queue pair delivers nothing more.
    silent: bool,
    /// Lives in a row that ended before they were connected.
    failures: u32,
    /// Other rails carry what this one cannot.
    siblings: bool,
    /// It is lost, and the connection is not.
    leaves: bool,
    /// Why the rail was told that it is broken, in this life.
    doubt: Option<&'static str>,
    acts: VecDeque<Act>,
}

/// Lives in a row that may end before they were connected, for each address that there is: at most
/// so many are at the other end.
const FAILURES_MAX: u32 = 8;
const _: () = assert!(FAILURES_MAX as usize >= WAYS_MAX);

impl Joint {
    /// Starts with a queue pair to be made, with room for `receives` notifications, and one way.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn new(settings: PathSettings, caps: Caps, receives: u32) -> Self {
        Self::by(Paths::only(settings), caps, receives)
    }

    /// Starts with a queue pair to be made, with room for `receives` notifications, and these ways.
    pub(crate) fn by(paths: Paths, caps: Caps, receives: u32) -> Self {
        let create = Act::Card(Step::Create, Job::Create { caps });
        Self {
            paths,
            pair: Pair::Creating,
            number: 0,
            credits: receives,
            first_epoch: None,
            epoch: 0,
            life: 0,
            own: Own::default(),
            other: Other::default(),
            end: End::No,
            silent: false,
            failures: 0,
            siblings: false,
            leaves: false,
            doubt: None,
            acts: VecDeque::from([create]),
        }
    }

    /// Other rails carry what this one cannot: however often it cannot be connected, it has not
    /// failed.
    pub(crate) fn with_siblings(self) -> Self {
        Self { siblings: true, ..self }
    }

    /// The next thing to be done, in order.
    pub(crate) fn act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// The queue pair's number on its device.
    pub(crate) fn number(&self) -> Option<u32> {
        matches!(self.pair, Pair::Adopted | Pair::Refused).then_some(self.number)
    }

    /// How its path is used.
    pub(crate) fn settings(&self) -> PathSettings {
        self.paths.settings()
    }

    /// Why it uses the address that it does.
    pub(crate) fn because(&self) -> Because {
        self.paths.because()
    }

    /// The address that it has told the other end in this life.
    pub(crate) fn address(&self) -> Option<[u8; 16]> {
        self.own.endpoint.map(|endpoint| endpoint.gid)
    }

    /// Addresses that it may use, at least 1.
    pub(crate) fn ways(&self) -> u32 {
        self.paths.ways()
    }

    /// Its port has these addresses now: what it does from then on goes by them.
    pub(crate) fn renew(&mut self, addresses: &[Address]) {
        self.paths.renew(addresses);
    }

    /// How far it has come.
    pub(crate) fn stage(&self) -> Stage {
        match (self.end, self.ready()) {
            (End::No, true) => Stage::Up,
            (End::No, false) if self.own.quiesce_wished => Stage::Quiescing,
            (End::No, false) => Stage::Connecting,
            _ => Stage::Lost,
        }
    }

    /// Why the rail was told that it is broken, if it was.
    pub(crate) fn doubt(&self) -> Option<&'static str> {
        self.doubt
    }

    /// It is lost: it comes to its end, or has come to it.
    pub(crate) fn lost(&self) -> bool {
        self.end != End::No
    }

    /// Both ends are connected, as far as this one knows.
    pub(crate) fn ready(&self) -> bool {
        self.own.connected && !self.own.quiesce_wished && self.end == End::No
    }

    /// The rail is dead, or there never was one: once nobody uses it, [`Joint::release`] it.
    pub(crate) fn dead(&self) -> bool {
        matches!(self.end, End::Dead | End::Releasing | End::Over)
    }

    /// It is dead, and [`Joint::release`] was not called.
    pub(crate) fn releasable(&self) -> bool {
        self.end == End::Dead
    }

    /// Nothing of it is left.
    #[cfg(test)]
    pub(crate) fn over(&self) -> bool {
        self.end == End::Over
    }

    /// The queue pair was made, or could not be: `None`. True if the caller is to give it to the
    /// fabric; else it keeps it until [`Act::Release`].
    pub(crate) fn created(&mut self, made: Option<(u32, Caps)>) -> bool {
        let lost = self.end != End::No;
        let Some((number, caps)) = made else {
            self.pair = Pair::None;
            if lost {
                self.end = End::Dead;
            } else {
                self.fail("no queue pair can be had");
            }
            return false;
        };
        self.number = number;
        self.credits = self.credits.min(caps.receives.saturating_sub(RECEIVES_KEPT));
        self.pair = if lost { Pair::Refused } else { Pair::Adopted };
        if lost {
            self.reset_for_good();
        }
        !lost
    }

    /// The fabric would not have the queue pair, which came back.
    pub(crate) fn refused(&mut self) {
        self.pair = Pair::Refused;
        match self.end {
            End::No => self.fail("the fabric cannot take another rail"),
            End::Waiting => self.end = End::Dead,
            _ => {}
        }
    }

    /// The rail wishes something.
    pub(crate) fn wish(&mut self, epoch: u32, ask: Ask) {
        let first = *self.first_epoch.get_or_insert(epoch);
        let life = epoch.wrapping_sub(first);
        self.epoch = epoch;
        if self.end == End::Waiting {
            self.reset_for_good();
        }
        if self.end != End::No {
            return;
        }
        if life != self.life {
            self.failures = if self.own.connected { 0 } else { self.failures + 1 };
            if self.own.moving && (!self.own.connected || self.own.barren) {
                self.paths.failed();
            }
            self.life = life;
            self.own = Own::default();
            self.doubt = None;
            let failures_max = FAILURES_MAX * self.paths.ways();
            if self.failures >= failures_max && !self.siblings {
                return self.fail("a queue pair cannot be connected");
            }
        }
        let number = self.number;
        match ask {
            Ask::Quiesce => {
                self.own.quiesce_wished = true;
                let moves = vec![Move::Error];
                self.card(Step::Quiet(life), Job::Move { number, moves });
            }
            Ask::Reset => {
                let moves = vec![Move::Reset, Move::Init(self.settings())];
                self.card(Step::Reset(life), Job::Move { number, moves });
            }
            Ask::Connect => {
                self.own.connect_wished = true;
                if self.peer().quiet {
                    // It failed before we came to it: this life is over before it began.
                    self.tell_broken("its other end has failed");
                } else {
                    self.seek_endpoint();
                }
            }
        }
    }

    /// Nobody has answered anything that the rail has posted in this epoch: both ends know by that
    /// that the pair of addresses did not come up, whatever their queue pairs say.
    pub(crate) fn barren(&mut self, epoch: u32) {
        let life = self.life;
        let this = self.first_epoch.is_some_and(|first| epoch.wrapping_sub(first) == life);
        if !this || std::mem::replace(&mut self.own.barren, true) {
            return;
        }
        if self.end == End::No && self.own.up && !self.own.quiet {
            self.acts.push_back(Act::Send(Say::Barren { life }));
        }
    }

    /// The peer's control says something.
    ///
    /// # Errors
    /// [`Violation`] if no peer that keeps the rules says that now.
    pub(crate) fn heard(&mut self, say: &Say) -> Result<(), Violation> {
        let (said, life) = match *say {
            Say::Ready { life, .. } => ("READY", life),
            Say::Up { life } => ("UP", life),
            Say::Barren { life } => ("BARREN", life),
            Say::Quiet { life } => ("QUIET", life),
        };
        let current = self.other.life;
        let violation = |why| Err(Violation { said, life, current, why });
        if life != current {
            // It has heard that we are quiet, so we are, or have gone on before it.
            let next = current.wrapping_add(1);
            let ended = if self.life == current { self.own.quiet } else { self.life == next };
            if life != next || !self.other.quiet || !ended {
                return violation("which is not over");
            }
            self.other = Other { life, ..Other::default() };
        }
        if self.other.quiet {
            return violation("which it had ended");
        }
        match *say {
            Say::Ready { endpoint, round, .. } => {
                if self.other.endpoint.is_some() {
                    return violation("once too often");
                }
                (self.other.endpoint, self.other.round) = (Some(endpoint), round);
            }
            Say::Up { .. } => {
                let told = self.life == life && self.own.endpoint.is_some();
                if self.other.up || self.other.endpoint.is_none() || !told {
                    return violation("before both ends were ready");
                }
                self.other.up = true;
            }
            Say::Barren { .. } if !self.other.up => return violation("before it was up"),
            Say::Barren { .. } => self.own.barren |= self.life == life,
            Say::Quiet { .. } => self.other.quiet = true,
        }
        if self.end == End::No {
            self.heed(say);
        } else if self.peer().quiet {
            self.silent();
        }
        Ok(())
    }

    fn heed(&mut self, say: &Say) {
        match say {
            Say::Ready { .. } => {
                self.seek_endpoint();
                self.try_connect();
            }
            Say::Up { .. } => self.try_ready(),
            Say::Barren { .. } => {}
            Say::Quiet { .. } if !self.peer().quiet => {}
            Say::Quiet { .. } if self.own.quiet => self.tell(News::Quiet),
            // Before it has wished anything, it is told when it does.
            Say::Quiet { .. } if self.own.connect_wished && !self.own.quiesce_wished => {
                self.tell_broken("its other end has failed");
            }
            Say::Quiet { .. } => {}
        }
    }

    /// Asks for this end of it, once it is known which address to use, and once only.
    fn seek_endpoint(&mut self) {
        let own = self.own;
        if !own.connect_wished || own.sought || own.quiesce_wished || self.end != End::No {
            return;
        }
        let Other { endpoint, round, .. } = self.peer();
        let other = endpoint.map(|endpoint| Heard { gid: endpoint.gid, round });
        if self.paths.follows() && other.is_none() {
            return;
        }
        self.own.sought = true;
        self.paths.choose(other);
        let (number, credits) = (self.number, self.credits);
        self.card(Step::Endpoint(self.life), Job::Endpoint { number, credits });
    }

    /// This end, as the card gave it; `None` if it could not.
    pub(crate) fn endpoint(&mut self, life: u32, endpoint: Option<Endpoint>) {
        if !self.heeds(life) {
            return;
        }
        let Some(endpoint) = endpoint else {
            self.paths.missing();
            return self.tell_broken("its card does not tell where it is");
        };
        self.own.endpoint = Some(endpoint);
        let round = self.paths.round();
        self.acts.push_back(Act::Send(Say::Ready { life, endpoint, round }));
        self.try_connect();
    }

    /// There was no address at the place that was chosen: what there is now is asked for.
    pub(crate) fn seek_again(&mut self, life: u32) {
        if self.heeds(life) && self.own.sought && self.own.endpoint.is_none() {
            self.own.sought = false;
            self.paths.missing();
            self.seek_endpoint();
        }
    }

    /// Moves were made, or not.
    pub(crate) fn moved(&mut self, step: Step, well: bool) {
        match step {
            Step::Up(life) if self.heeds(life) => {
                if !well {
                    return self.tell_broken("its queue pair cannot be connected");
                }
                self.own.up = true;
                self.acts.push_back(Act::Send(Say::Up { life }));
                self.try_ready();
            }
            Step::Quiet(life) if self.end == End::No && life == self.life => {
                if !well {
                    return self.fail("a queue pair cannot be moved to ERROR");
                }
                self.own.quiet = true;
                self.acts.push_back(Act::Send(Say::Quiet { life }));
                if self.peer().quiet || planted(Plant::RetryBeforeQuiet) {
                    self.tell(News::Quiet);
                }
            }
            Step::Reset(life) if self.end == End::No && life == self.life => {
                if !well {
                    return self.fail("a queue pair cannot be reset");
                }
                self.tell(News::Reset);
                // From there on the rail is in its next epoch.
                self.epoch = self.epoch.wrapping_add(1);
            }
            Step::Hush if self.end == End::Hushing && !well => {
                let (number, moves) = (self.number, vec![Move::Reset]);
                self.card(Step::Still, Job::Move { number, moves });
            }
            // A device that does neither delivers nothing, either.
            Step::Hush | Step::Still if self.end == End::Hushing => {
                self.say_quiet();
                self.try_end();
            }
            Step::End if self.end == End::Resetting => {
                self.end = End::Dead;
                if self.pair == Pair::Adopted {
                    self.tell(News::Gone);
                }
                self.say_quiet();
            }
            _ => {}
        }
    }

    /// Our queue pair is in ERROR, or reset, for good: if the connection goes on, the peer is told.
    fn say_quiet(&mut self) {
        if !std::mem::replace(&mut self.own.quiet, true) && self.leaves {
            self.acts.push_back(Act::Send(Say::Quiet { life: self.life }));
        }
    }

    /// The device says that the queue pair has failed, or is of no use, and why.
    pub(crate) fn broken(&mut self, why: &'static str) {
        if self.end == End::No && self.first_epoch.is_some() {
            self.tell_broken(why);
        }
    }

    /// The peer cannot be reached any more, or is not to be: the rail comes to its end.
    pub(crate) fn lose(&mut self) {
        if self.end != End::No {
            return;
        }
        self.end = End::Resetting;
        match self.pair {
            Pair::Creating => {}
            Pair::None => self.end = End::Dead,
            Pair::Adopted if self.first_epoch.is_none() => self.end = End::Waiting,
            Pair::Adopted if self.own.moving && !self.peer_was_quiet() => self.hush(),
            Pair::Adopted | Pair::Refused => self.reset_for_good(),
        }
    }

    fn hush(&mut self) {
        self.end = End::Hushing;
        self.tell_broken("it is lost");
        if !self.own.quiet {
            let (number, moves) = (self.number, vec![Move::Error]);
            self.card(Step::Hush, Job::Move { number, moves });
        }
        self.try_end();
    }

    /// The peer's queue pair cannot deliver anything of ours any more: its control said so, its
    /// process is gone, or the lease is over.
    pub(crate) fn silent(&mut self) {
        self.silent = true;
        self.try_end();
    }

    /// Our end is quiet, and the peer's is still to be: the rail keeps its requests until then.
    /// Of a connection that is lost it is asked otherwise ([`Joint::silent`]).
    pub(crate) fn awaits_quiet(&self) -> bool {
        match self.end {
            End::No => self.own.quiet && !self.peer_was_quiet(),
            End::Hushing => self.leaves && self.own.quiet && !self.silent,
            _ => false,
        }
    }

    /// It is lost, and our queue pair delivers nothing more of what the peer has sent.
    pub(crate) fn hushed(&self) -> bool {
        let never = matches!(self.pair, Pair::Creating | Pair::None | Pair::Refused);
        match self.end {
            End::No => false,
            End::Hushing | End::Resetting => never || self.own.quiet || !self.own.moving,
            End::Waiting | End::Dead | End::Releasing | End::Over => true,
        }
    }

    /// The peer has ended this life, and may have begun the next one.
    fn peer_was_quiet(&self) -> bool {
        self.peer().quiet || self.other.life == self.life.wrapping_add(1)
    }

    fn try_end(&mut self) {
        let silent = self.silent || planted(Plant::GoneEarly);
        if self.end == End::Hushing && self.own.quiet && silent {
            self.reset_for_good();
        }
    }

    /// It has failed for good, but the connection goes on without it: the rail comes to its end,
    /// and the peer hears that nothing moves by it any more.
    pub(crate) fn leave(&mut self) {
        self.leaves = self.end == End::No;
        self.lose();
    }

    /// Nobody uses the dead rail any more: the queue pair is to be taken back and destroyed.
    pub(crate) fn release(&mut self) {
        if self.end != End::Dead {
            return;
        }
        match self.pair {
            Pair::None | Pair::Creating => self.finish(),
            Pair::Adopted | Pair::Refused => {
                self.end = End::Releasing;
                self.acts.push_back(Act::Release);
            }
        }
    }

    /// The queue pair is destroyed.
    pub(crate) fn destroyed(&mut self) {
        if self.end == End::Releasing {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.end = End::Over;
        self.acts.push_back(Act::Over);
    }

    fn reset_for_good(&mut self) {
        self.end = End::Resetting;
        let (number, moves) = (self.number, vec![Move::Reset]);
        self.card(Step::End, Job::Move { number, moves });
    }

    /// Work of this life, which is still to be connected, is heeded.
    fn heeds(&self, life: u32) -> bool {
        self.end == End::No && life == self.life && !self.own.quiesce_wished
    }

    /// What the peer has said of this life.
    fn peer(&self) -> Other {
        if self.other.life == self.life { self.other } else { Other::default() }
    }

    fn try_connect(&mut self) {
        let (own, peer) = (self.own, self.peer());
        let (Some(near), Some(far)) = (own.endpoint, peer.endpoint) else { return };
        if own.moving || own.quiesce_wished || peer.quiet {
            return;
        }
        self.own.moving = true;
        let link = Link { own: near, peer: far, settings: self.settings() };
        let moves = vec![Move::ReadyToReceive(link), Move::ReadyToSend(link)];
        let number = self.number;
        self.card(Step::Up(self.life), Job::Move { number, moves });
    }

    fn try_ready(&mut self) {
        let peer = self.peer();
        let Some(far) = peer.endpoint else { return };
        if !self.own.up || !peer.up || peer.quiet || self.own.connected {
            return;
        }
        self.own.connected = true;
        self.tell(News::Connected { credits: far.credits });
    }

    fn fail(&mut self, why: &'static str) {
        self.acts.push_back(Act::Fail(why));
    }

    fn tell_broken(&mut self, why: &'static str) {
        self.doubt.get_or_insert(why);
        self.tell(News::Broken);
    }

    fn tell(&mut self, news: News) {
        self.acts.push_back(Act::Tell(self.epoch, news));
    }

    fn card(&mut self, step: Step, job: Job) {
        self.acts.push_back(Act::Card(step, job));
    }
}
