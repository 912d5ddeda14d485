//! The engine thread: turns while there is work, looks for a while, then sleeps on its bells.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollTimeout};

use super::link::{Answer, COMPLETIONS, ENGINE_BELL, Link, Order, RingBells};
use crate::clock;
use crate::control::fds::{Heard, hear_bell, ring_bell};
use crate::engine::{Command, Engine, Reply};
use crate::fabric::Pair;
use crate::fabric::qp::Rails;
use crate::fabric::verbs::VerbsProvider;
use crate::ids::RingId;
use crate::ring::Mapped;

/// Sets `dead` and wakes the control thread however the engine thread ends.
struct Obituary(Arc<Link>);

impl Drop for Obituary {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::SeqCst);
        self.0.kick_control();
        let _ = self.0.watcher_bell.write(1);
        let _ = self.0.engine_bell.write(1);
    }
}

/// The core in production.
pub(super) type Core = Engine<Pair<VerbsProvider>, Mapped>;

/// What the engine thread owns.
pub(super) struct EngineThread {
    engine: Core,
    link: Arc<Link>,
    bells: Vec<Option<RingBells>>,
    spin_ns: u64,
    /// How long to look for work before this sleep: `spin_ns`, or more after long work by a card.
    patience_ns: u64,
    /// Queue pairs that are rails.
    pairs: u32,
    /// The card was asked for an event, which may have come.
    armed: bool,
    /// When this stretch of being awake began, and whether the watcher knows of it.
    woke_ns: u64,
    watched: bool,
    /// Milliseconds until rings that sleep with SQEs are looked at again.
    nap_ms: u8,
}

/// Bells answered between two turns: each costs a system call.
const BELLS_PER_TURN: usize = 64;

/// Looks for SQEs between two idle turns; and where there are queue pairs, of which only a turn
/// finds what came.
const LOOKS: u32 = 16;
const LOOKS_WITH_PAIRS: u32 = 4;

/// With queue pairs, this thread looks for work as long as it has just been busy, at least for
/// the configured time, and at most for so many times that. To sleep and to wake costs more where
/// ops take longer, since it is the same machine that is slow; and no more than half the time is
/// spent in vain.
const PATIENCE_MAX: u64 = 10;

/// An idle thread pauses between its looks from then on.
const POLITE_AFTER_NS: u64 = 2_000;

/// First and last nap while a ring sleeps with SQEs that could not be taken.
const NAP_MS: std::ops::RangeInclusive<u8> = 1..=128;

/// The longest nap while time itself is waited for: by a rail in doubt, or for a deadline.
const TIMED_NAP_MS: u8 = 8;

/// A stretch of being awake that lasts longer has the bells of sleeping rings watched.
const WATCH_AFTER_NS: u64 = 20_000;

impl EngineThread {
    pub(super) fn new(engine: Core, link: Arc<Link>, rings_max: u32, spin_ns: u64) -> Self {
        let bells = (0..rings_max).map(|_| None).collect();
        let nap_ms = *NAP_MS.start();
        let (armed, watched, woke_ns) = (false, false, 0);
        let patience_ns = spin_ns;
        let pairs = 0;
        Self { engine, link, bells, spin_ns, patience_ns, pairs, armed, woke_ns, watched, nap_ms }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let _obituary = Obituary(Arc::clone(&self.link));
        let mut events = [EpollEvent::empty(); 64];
        let mut now_ns = clock::now_ns();
        let mut idle_since = now_ns;
        let mut busy_since = None;
        loop {
            let heard = self.listen();
            let turn = self.engine.turn_by(now_ns, clock::now_ns);
            self.ring_bells();
            let told = self.tell();
            if turn.worked() || heard || told {
                let began_ns = *busy_since.get_or_insert(now_ns);
                self.nap_ms = *NAP_MS.start();
                self.ask_for_watch(now_ns);
                now_ns = clock::now_ns();
                idle_since = now_ns;
                self.patience_ns = match self.pairs {
                    0 => self.spin_ns,
                    _ => patience(self.spin_ns, now_ns - began_ns),
                };
                continue;
            }
            if self.link.stop.load(Ordering::Acquire) {
                return;
            }
            busy_since = None;
            if now_ns.saturating_sub(idle_since) < self.patience_ns {
                now_ns = self.look_around(idle_since);
                continue;
            }
            // What the control thread has no room to hear yet is told before sleep.
            if !self.engine.has_news() && self.engine.fall_asleep() && !self.stirs_when_armed() {
                self.sleep(&mut events);
                self.woke_ns = clock::now_ns();
                idle_since = self.woke_ns;
                self.watched = false;
            }
            now_ns = clock::now_ns();
        }
    }

    /// Looks for SQEs alone, which costs a fraction of a turn, for a while; returns the time.
    fn look_around(&self, idle_since: u64) -> u64 {
        let mut now_ns = clock::now_ns();
        for _ in 0..if self.pairs > 0 { LOOKS_WITH_PAIRS } else { LOOKS } {
            if self.engine.stirred() {
                break;
            }
            // Polite to whoever shares the core; but it takes as long as a ring's round trip.
            if now_ns.saturating_sub(idle_since) > POLITE_AFTER_NS {
                std::hint::spin_loop();
            }
            now_ns = clock::now_ns();
        }
        now_ns
    }

    /// Takes commands, and the bells that the watcher saw. True if there were any.
    fn listen(&mut self) -> bool {
        let mut heard = false;
        // Taking from an empty queue costs a fence, which has to wait for all CQEs to leave.
        if self.link.nothing_to_hear() {
            return false;
        }
        // As many as there are now: whoever floods a bell is noted again at once.
        for _ in 0..self.link.bells_noted().min(BELLS_PER_TURN) {
            let Some(ring) = self.link.noted_bell() else { break };
            self.answer_bell(ring);
            heard = true;
        }
        while self.engine.accepts() && self.link.answers.len() + 2 < self.link.answers.capacity() {
            let Some(order) = self.link.orders.pop() else { break };
            match order {
                Order::Command { command, bells } => {
                    if let (Command::AddRing { ring, .. }, Some(bells)) = (&command, bells) {
                        self.bells[ring.id().0 as usize] = Some(bells);
                    }
                    self.engine.command(command);
                }
                Order::Adopt { .. } | Order::Tell(_) | Order::Release { .. } => self.rail(order),
            }
            heard = true;
        }
        heard
    }

    fn rails(&mut self) -> Option<&mut Rails<VerbsProvider>> {
        self.engine.fabric_mut().rails_mut()
    }

    /// Does what the control side says of a rail. Room for the answer there is: [`Self::listen`].
    fn rail(&mut self, order: Order) {
        let Some(rails) = self.rails() else { return };
        let answer = match order {
            Order::Adopt { rail, pair, caps, card } => match rails.adopt(rail, pair, caps, card) {
                Ok(()) => {
                    self.pairs += 1;
                    return;
                }
                Err((error, pair)) => Answer::NotAdopted { rail, pair, error },
            },
            Order::Tell(told) => return rails.tell(told),
            Order::Release { rail } => {
                let pair = rails.release(rail);
                self.pairs -= u32::from(pair.is_some());
                Answer::Released { rail, pair }
            }
            Order::Command { .. } => return,
        };
        let _ = self.link.answers.push(answer);
        self.link.kick_control();
    }

    /// Passes on what rails want of the control side. True if they want anything.
    fn pass_wishes(&mut self) -> bool {
        let mut wished = false;
        while self.link.answers.len() + 2 < self.link.answers.capacity() {
            let Some(wish) = self.rails().and_then(Rails::wish) else { break };
            let _ = self.link.answers.push(Answer::Wish(wish));
            wished = true;
        }
        if wished {
            self.link.kick_control();
        }
        wished
    }

    /// Has the card ring at the next completion, and looks whether one came before that: true if
    /// there is something to do. False without queue pairs.
    fn stirs_when_armed(&mut self) -> bool {
        if self.pairs == 0 {
            return false;
        }
        let armed = self.armed;
        let Some(rails) = self.rails() else { return false };
        let came = rails.provider().take_events() > 0;
        if armed && !came {
            // Asked before, and nothing has completed since.
            return false;
        }
        self.armed = rails.arm().is_ok();
        let turn = self.engine.turn(clock::now_ns());
        self.ring_bells();
        let told = self.tell();
        turn.worked() || told || !self.engine.fall_asleep()
    }

    fn answer_bell(&mut self, ring: u32) {
        let Some(Some(bells)) = self.bells.get(ring as usize) else { return };
        // Silenced before the look, so that a ring after the look is heard again.
        match hear_bell(bells.from_client.as_fd()) {
            Heard::Silenced => {}
            Heard::More => self.link.note_bell(ring),
            Heard::Strays => return self.strays(ring),
        }
        self.engine.wake(RingId(ring));
    }

    /// Descriptors in a bell, still to be taken, or not, by somebody who can wait for their end:
    /// here the bell is heard no more.
    fn strays(&mut self, ring: u32) {
        let told = self.link.answers.push(Answer::Strays(RingId(ring)));
        if told.is_err() {
            return self.link.note_bell(ring);
        }
        self.link.kick_control();
    }

    fn ring_bells(&mut self) {
        while let Some(ring) = self.engine.bell() {
            if let Some(Some(bells)) = self.bells.get(ring.0 as usize) {
                ring_bell(bells.to_client.as_fd());
            }
        }
    }

    /// Passes on what the engine has to say. True if it said anything.
    fn tell(&mut self) -> bool {
        let mut told = self.pairs > 0 && self.pass_wishes();
        if !self.engine.has_news() {
            return told;
        }
        while self.link.answers.len() + 2 < self.link.answers.capacity() {
            if let Some(reply) = self.engine.reply() {
                if let Reply::RingGone { ring, .. } = &reply
                    && let Some(bells) = self.bells[ring.id().0 as usize].take()
                {
                    // Whoever waits for this ring's bell looks again and finds it closing.
                    ring_bell(bells.to_client.as_fd());
                    let _ = self.link.answers.push(Answer::Bells(ring.id(), bells));
                }
                let _ = self.link.answers.push(Answer::Reply(reply));
            } else if let Some(event) = self.engine.event() {
                if let crate::engine::Event::Faulted { ring, .. } = event
                    && let Some(Some(bells)) = self.bells.get(ring.0 as usize)
                {
                    ring_bell(bells.to_client.as_fd());
                }
                let _ = self.link.answers.push(Answer::Event(event));
            } else {
                break;
            }
            told = true;
        }
        if told {
            self.link.kick_control();
        }
        told
    }

    /// While this thread is busy it makes no system call; the watcher listens for rings that
    /// sleep. It is told once in each stretch of being awake, and only if that lasts.
    fn ask_for_watch(&mut self, now_ns: u64) {
        if !self.watched && now_ns.saturating_sub(self.woke_ns) > WATCH_AFTER_NS {
            self.watched = true;
            let _ = self.link.watcher_bell.write(1);
        }
    }

    fn sleep(&mut self, events: &mut [EpollEvent]) {
        self.link.asleep.store(true, Ordering::Relaxed);
        // Pairs with `Link::kick_engine`.
        fence(Ordering::SeqCst);
        // A card that cannot be asked for an event is looked at now and then.
        let timed = self.pairs > 0 && (!self.armed || self.engine.watches().timed);
        let nap_ms = if timed { self.nap_ms.min(TIMED_NAP_MS) } else { self.nap_ms };
        let naps = timed || self.engine.blocked();
        let timeout = if naps { EpollTimeout::from(nap_ms) } else { EpollTimeout::NONE };
        let link = &self.link;
        let nothing = link.orders.is_empty()
            && link.bells_noted() == 0
            && !link.completed.swap(false, Ordering::Relaxed)
            && !link.stop.load(Ordering::Relaxed);
        if nothing {
            link.sleeps.fetch_add(1, Ordering::Relaxed);
            let count = loop {
                match link.bells.wait(events, timeout) {
                    Err(Errno::EINTR) => {}
                    other => break other.unwrap_or(0),
                }
            };
            self.link.asleep.store(false, Ordering::Relaxed);
            if count == 0 && naps {
                self.nap_ms = self.nap_ms.saturating_mul(2).min(*NAP_MS.end());
            }
            for event in &events[..count] {
                if event.data() == ENGINE_BELL {
                    let _ = self.link.engine_bell.read();
                } else if let Ok(ring) = u32::try_from(event.data()) {
                    self.answer_bell(ring);
                }
                // A completion's event is taken before the card is asked for another.
            }
        }
        self.link.asleep.store(false, Ordering::Relaxed);
    }
}

/// How long to look for work, after having been busy for so long with a card's help.
fn patience(spin_ns: u64, busy_ns: u64) -> u64 {
    busy_ns.clamp(spin_ns, PATIENCE_MAX * spin_ns)
}

/// Listens for the bells of sleeping rings while the engine thread is busy.
pub(super) fn watch(link: &Link) {
    let mut events = [EpollEvent::empty(); 64];
    loop {
        // Until the engine thread has been busy for a while.
        let _ = link.watcher_bell.read();
        loop {
            if link.dead.load(Ordering::Acquire) {
                return;
            }
            let count = match link.bells.wait(&mut events, EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.unwrap_or(0),
            };
            for event in &events[..count] {
                if event.data() == ENGINE_BELL {
                    // Meant for a sleeping engine thread: pass it on below.
                    let _ = link.engine_bell.read();
                } else if event.data() == COMPLETIONS {
                    link.completed.store(true, Ordering::Relaxed);
                } else if let Ok(ring) = u32::try_from(event.data()) {
                    link.note_bell(ring);
                }
            }
            fence(Ordering::SeqCst);
            if link.asleep.load(Ordering::Relaxed) {
                let _ = link.engine_bell.write(1);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_looks_as_long_as_it_was_busy_within_bounds() {
        let of = |busy_ns| patience(50, busy_ns);
        assert_eq!([0, 49, 50, 320, 500, 501].map(of), [50, 50, 50, 320, 500, 500]);
        assert_eq!(patience(0, 1_000), 0, "one that is not to look does not");
    }
}
