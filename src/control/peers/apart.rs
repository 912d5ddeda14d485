//! Rails that are one flow's alone, of one connection, as values: which flow gets one, what is said
//! of it, and how it is given back.
//!
//! A flow is what a session here has for the peer. A request of it that the peer's card refuses, or
//! this one's, fails the queue pair for all who share it; at its second such error the flow is
//! moved to a rail of its own, one by the card of its atomics, before the failed one takes anything
//! again. Its ops wait there until the rail is joined. If the peer has none to spare, they go back.
//!
//! ```text
//!  who asks                                          who is asked
//!  APART, and the joint begins ----------------->    lends what it has lent, and begins, too
//!                                                    or: OVER
//!  no import left, or the joint has failed:
//!  OVER, and the joint leaves ------------------>    the joint leaves; its loans are taken back
//!          <-------------------------------------    OVER, once nothing is left of it there
//!  the core has cleared its line: released
//! ```
//!
//! Who was asked may begin the end, too, if its joint fails. It says OVER once of each rail, with
//! which it knows no more of the place; what is said of a place that is not known means nothing.
//! Who asked uses the place again when it has heard that, and nothing is left at its end.
//!
//! **Invariants**: a session has one rail here at most, and its imports are told of it before the
//! peer is; a rail is released when no import names it, the core has cleared it, or its loans are
//! taken back; each APART is answered by one OVER, sooner or later, or the connection is lost.
//! **Deliberately absent**: sockets, joints, the core: all is values.

use std::collections::{BTreeMap, VecDeque};

use super::message::APARTS;

/// Errors of a flow after which it gets a rail of its own.
pub(crate) const ERRORS_MAX: u32 = 2;
/// Further ones after which it is asked for again, when there was none.
const ERRORS_AGAIN: u32 = 16;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApartAct {
    /// Say APART.
    Ask {
        /// The place.
        at: u8,
    },
    /// Say OVER.
    Over {
        /// The place.
        at: u8,
    },
    /// Make a rail there; if the peer asked for it, what is lent is lent on it first.
    Join {
        /// The place.
        at: u8,
        /// Its number here.
        rail: u16,
        /// The peer asked for it.
        theirs: bool,
    },
    /// Have a session's imports go by this rail alone, or by those of all.
    Move {
        /// The session.
        session: usize,
        /// Its own rail.
        rail: Option<u16>,
    },
    /// The rail comes to its end.
    Leave {
        /// Its number here.
        rail: u16,
        /// The other end has nothing of it any more.
        silent: bool,
    },
    /// Have the core clear it; answered by [`Aparts::cleared`].
    Clear {
        /// The place.
        at: u8,
    },
    /// Take back what was lent on it.
    TakeBack {
        /// Its number here.
        rail: u16,
    },
    /// Nobody uses the dead rail any more.
    Release {
        /// Its number here.
        rail: u16,
    },
}

/// The peer asked for what it cannot ask for. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("APART for place {at}, {why}")]
pub(crate) struct BadAsk {
    at: u8,
    why: &'static str,
}

/// A rail of a flow's own.
#[derive(Clone, Copy, Debug)]
struct Apart {
    /// The session whose it is, if that is one here; `None` if the peer asked for it.
    ours: Option<usize>,
    /// Its number here, as long as there is anything of it.
    rail: Option<u16>,
    ending: bool,
    /// The core is clearing its line, or has.
    clearing: bool,
    /// The peer has said OVER.
    closed: bool,
}

/// What a flow has done.
#[derive(Clone, Copy, Debug)]
struct Errors {
    count: u32,
    /// So many, and it gets a rail of its own.
    most: u32,
}

/// All of one connection.
#[derive(Debug, Default)]
pub(crate) struct Aparts {
    places: BTreeMap<u8, Apart>,
    errors: BTreeMap<usize, Errors>,
    lost: bool,
    /// Lines that the core was asked to clear, and has not answered for.
    clears: usize,
    acts: VecDeque<ApartAct>,
}

/// Places that one end asks for.
fn asked_by(leading: bool) -> impl Iterator<Item = u8> {
    APARTS.filter(move |at| (at % 2 == 0) == leading)
}

impl Aparts {
    /// The next thing to be done, in order.
    pub(crate) fn act(&mut self) -> Option<ApartAct> {
        self.acts.pop_front()
    }

    /// A request of a session here has failed a rail of all by its own fault. True if the flow is
    /// to have a rail of its own: [`Aparts::ask`], or [`Aparts::refuse`].
    pub(crate) fn erred(&mut self, session: usize) -> bool {
        let errors = self.errors.entry(session).or_insert(Errors { count: 0, most: ERRORS_MAX });
        errors.count = errors.count.saturating_add(1);
        self.wants(session)
    }

    /// A session has erred too often, and has no rail of its own.
    pub(crate) fn wants(&self, session: usize) -> bool {
        let bad = self.errors.get(&session).is_some_and(|errors| errors.count >= errors.most);
        bad && !self.lost && self.rail_of(session).is_none()
    }

    /// There is none for it: it shares on, and is heard again after some more errors.
    pub(crate) fn refuse(&mut self, session: usize) {
        self.errors.insert(session, Errors { count: 0, most: ERRORS_AGAIN });
    }

    /// A session's flow gets this rail. False if the connection has no place for it.
    #[must_use]
    pub(crate) fn ask(&mut self, session: usize, rail: u16, leading: bool) -> bool {
        let free = asked_by(leading).find(|at| !self.places.contains_key(at));
        let Some(at) = free.filter(|_| !self.lost) else { return false };
        self.open(at, Some(session), rail);
        self.acts.push_back(ApartAct::Move { session, rail: Some(rail) });
        self.acts.push_back(ApartAct::Ask { at });
        self.acts.push_back(ApartAct::Join { at, rail, theirs: false });
        true
    }

    fn open(&mut self, at: u8, ours: Option<usize>, rail: u16) {
        let (ending, clearing, closed) = (false, false, false);
        self.places.insert(at, Apart { ours, rail: Some(rail), ending, clearing, closed });
    }

    /// The peer asks for a rail; `None` if there is none to spare. True if it gets it.
    ///
    /// # Errors
    /// [`BadAsk`] if no peer that keeps the rules asks for that.
    pub(crate) fn asked(
        &mut self,
        at: u8,
        rail: Option<u16>,
        leading: bool,
    ) -> Result<bool, BadAsk> {
        if !asked_by(!leading).any(|theirs| theirs == at) {
            return Err(BadAsk { at, why: "which is this end's to ask for" });
        }
        if self.places.contains_key(&at) {
            return Err(BadAsk { at, why: "which is in use" });
        }
        match rail.filter(|_| !self.lost) {
            Some(rail) => {
                self.open(at, None, rail);
                self.acts.push_back(ApartAct::Join { at, rail, theirs: true });
            }
            None => self.acts.push_back(ApartAct::Over { at }),
        }
        Ok(rail.is_some())
    }

    /// The peer says OVER. The session whose flow loses its rail by that, if one here does.
    pub(crate) fn over(&mut self, at: u8) -> Option<usize> {
        let apart = self.places.get_mut(&at)?;
        apart.closed = apart.ours.is_some();
        if apart.rail.is_none() {
            self.places.remove(&at);
            return None;
        }
        let lost = apart.ours.filter(|_| !apart.ending);
        if let Some(session) = lost {
            self.refuse(session);
        }
        self.leave(at);
        lost
    }

    /// A session has no imports of the peer any more.
    pub(crate) fn unused(&mut self, session: usize) {
        let own = |apart: &Apart| apart.ours == Some(session) && !apart.ending;
        let found = self.places.iter().find(|(_, apart)| own(apart));
        if let Some(at) = found.map(|(at, _)| *at) {
            self.acts.push_back(ApartAct::Over { at });
            self.leave(at);
        }
    }

    /// A session ends: it gets no rail any more. One that it has stays until its imports are gone.
    pub(crate) fn forget(&mut self, session: usize) {
        self.errors.remove(&session);
    }

    /// A rail has failed for good. The session whose flow loses it, if one here does.
    pub(crate) fn failed(&mut self, rail: u16) -> Option<usize> {
        let at = self.place_of(rail)?;
        let apart = self.places.get(&at)?;
        let lost = apart.ours.filter(|_| !apart.ending);
        if let Some(session) = lost {
            self.refuse(session);
            self.acts.push_back(ApartAct::Over { at });
        }
        self.leave(at);
        lost
    }

    fn leave(&mut self, at: u8) {
        let Some(apart) = self.places.get_mut(&at) else { return };
        let Some(rail) = apart.rail else { return };
        let (ends, silent) = (!std::mem::replace(&mut apart.ending, true), apart.closed);
        if let Some(session) = apart.ours.filter(|_| ends) {
            self.acts.push_back(ApartAct::Move { session, rail: None });
        }
        self.acts.push_back(ApartAct::Leave { rail, silent });
    }

    /// A rail is dead, and waits for its release.
    pub(crate) fn dead(&mut self, rail: u16) {
        let Some(at) = self.place_of(rail).filter(|_| !self.lost) else { return };
        let Some(apart) = self.places.get_mut(&at) else { return };
        if std::mem::replace(&mut apart.clearing, true) {
            return;
        }
        if apart.ours.is_some() {
            self.clears += 1;
            self.acts.push_back(ApartAct::Clear { at });
        } else {
            self.acts.push_back(ApartAct::TakeBack { rail });
            self.acts.push_back(ApartAct::Release { rail });
        }
    }

    /// The core has cleared a place's rail.
    pub(crate) fn cleared(&mut self, at: u8) {
        self.clears -= 1;
        if let Some(rail) = self.places.get(&at).and_then(|apart| apart.rail) {
            self.acts.push_back(ApartAct::Release { rail });
        }
    }

    /// Nothing is left of a rail here.
    pub(crate) fn gone(&mut self, rail: u16) {
        let Some(at) = self.place_of(rail) else { return };
        let Some(apart) = self.places.get_mut(&at) else { return };
        apart.rail = None;
        let theirs = apart.ours.is_none();
        if theirs || apart.closed || self.lost {
            self.places.remove(&at);
        }
        if theirs {
            self.acts.push_back(ApartAct::Over { at });
        }
    }

    /// The connection is lost, and its rails with it: their ends come with its own.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
        let clears = self.acts.drain(..).filter(|act| matches!(act, ApartAct::Clear { .. }));
        self.clears -= clears.count();
        self.errors.clear();
        self.places.retain(|_, apart| apart.rail.is_some());
    }

    fn place_of(&self, rail: u16) -> Option<u8> {
        let found = self.places.iter().find(|(_, apart)| apart.rail == Some(rail));
        found.map(|(at, _)| *at)
    }

    /// The rail at a place.
    pub(crate) fn rail_at(&self, at: u8) -> Option<u16> {
        self.places.get(&at)?.rail
    }

    /// The rail that a session's imports go by.
    pub(crate) fn rail_of(&self, session: usize) -> Option<u16> {
        let own = |apart: &&Apart| apart.ours == Some(session) && !apart.ending;
        self.places.values().find(own)?.rail
    }

    /// All rails.
    pub(crate) fn rails(&self) -> impl Iterator<Item = u16> + '_ {
        self.places.values().filter_map(|apart| apart.rail)
    }

    /// Rails that the peer has asked for, on which what is lent is lent.
    pub(crate) fn lent(&self) -> impl Iterator<Item = u16> + '_ {
        let theirs = |apart: &&Apart| apart.ours.is_none() && !apart.ending;
        self.places.values().filter(theirs).filter_map(|apart| apart.rail)
    }

    /// Rails of a session, also those that come to their end.
    pub(crate) fn count_of(&self, session: usize) -> usize {
        self.places.values().filter(|apart| apart.ours == Some(session)).count()
    }

    /// The core has been asked for something, and may not have answered.
    pub(crate) fn clearing(&self) -> bool {
        self.clears > 0
    }

    /// Sessions that have a rail.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = usize> + '_ {
        self.places.values().filter(|apart| !apart.ending).filter_map(|apart| apart.ours)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::seeds::{Random, each_seed};

    /// What becomes of a rail at one end.
    #[derive(Clone, Copy, Debug, Default)]
    struct Rail {
        at: u8,
        left: bool,
        silent: bool,
        dead: bool,
        lent: bool,
    }

    /// One end: what it holds, and what it has said that was not heard.
    #[derive(Debug, Default)]
    struct End {
        aparts: Aparts,
        leading: bool,
        said: VecDeque<ApartAct>,
        rails: BTreeMap<u16, Rail>,
        next: u16,
        /// Sessions with imports, and the rail that these go by.
        sessions: BTreeMap<usize, Option<u16>>,
        clears: VecDeque<u8>,
    }

    impl End {
        fn new(leading: bool) -> Self {
            Self { leading, next: 2, ..Self::default() }
        }

        fn act(&mut self) {
            while let Some(act) = self.aparts.act() {
                match act {
                    ApartAct::Ask { .. } | ApartAct::Over { .. } => self.said.push_back(act),
                    ApartAct::Join { at, rail, theirs } => {
                        let rail =
                            self.rails.insert(rail, Rail { at, lent: theirs, ..Rail::default() });
                        assert!(rail.is_none(), "a number twice");
                    }
                    ApartAct::Move { session, rail } => {
                        let known = rail.is_none_or(|rail| !self.rails.contains_key(&rail));
                        assert!(known, "moved after it was joined");
                        if let Some(by) = self.sessions.get_mut(&session) {
                            *by = rail;
                        }
                    }
                    ApartAct::Leave { rail, silent } => {
                        let rail = self.rails.get_mut(&rail).expect("leaves what is not there");
                        rail.left = true;
                        rail.silent |= silent;
                    }
                    ApartAct::Clear { at } => self.clears.push_back(at),
                    ApartAct::TakeBack { rail } => {
                        let rail = self.rails.get_mut(&rail).unwrap();
                        assert!(rail.dead && std::mem::take(&mut rail.lent), "taken back early");
                    }
                    ApartAct::Release { rail } => {
                        let gone = self.rails.remove(&rail).expect("released twice");
                        assert!(gone.dead && !gone.lent, "released in use");
                        let used = self.sessions.values().any(|by| *by == Some(rail));
                        assert!(!used, "an import goes by it");
                        self.aparts.gone(rail);
                    }
                }
            }
        }

        fn err(&mut self, session: usize) {
            if self.sessions.contains_key(&session) && self.aparts.erred(session) {
                let rail = self.next;
                self.next += 1;
                if !self.aparts.ask(session, rail, self.leading) {
                    self.aparts.refuse(session);
                }
            }
            self.act();
        }

        /// A rail that has left is dead once the other end delivers nothing more.
        fn die(&mut self, silent: &BTreeSet<u8>) {
            let mut dead = Vec::new();
            for (number, rail) in &mut self.rails {
                if rail.left && !rail.dead && (rail.silent || silent.contains(&rail.at)) {
                    rail.dead = true;
                    dead.push(*number);
                }
            }
            for rail in dead {
                self.aparts.dead(rail);
                self.act();
            }
        }

        fn clear(&mut self) {
            if let Some(at) = self.clears.pop_front() {
                self.aparts.cleared(at);
                self.act();
            }
        }

        /// Hears one thing that the other end has said; nothing it says may break the rules.
        fn hear(&mut self, said: Option<ApartAct>, spare: bool) {
            match said {
                Some(ApartAct::Ask { at }) => {
                    let rail = spare.then_some(self.next);
                    self.next += 1;
                    self.aparts.asked(at, rail, self.leading).unwrap();
                }
                Some(ApartAct::Over { at }) => _ = self.aparts.over(at),
                _ => {}
            }
            self.act();
        }
    }

    /// Places where an end has nothing that delivers any more.
    fn silent(end: &End) -> BTreeSet<u8> {
        let live: BTreeSet<u8> =
            end.rails.values().filter(|rail| !rail.left).map(|rail| rail.at).collect();
        APARTS.filter(|at| !live.contains(at)).collect()
    }

    fn talk(ends: &mut [End; 2], side: usize, spare: bool) {
        let said = ends[1 - side].said.pop_front();
        ends[side].hear(said, spare);
    }

    fn settle(ends: &mut [End; 2]) {
        for _ in 0..100 {
            for side in 0..2 {
                talk(ends, side, true);
                let quiet = silent(&ends[1 - side]);
                ends[side].die(&quiet);
                ends[side].clear();
            }
        }
    }

    #[test]
    fn a_flow_is_set_apart_at_its_second_error_and_once() {
        let mut aparts = Aparts::default();
        assert!(!aparts.erred(7) && !aparts.erred(8));
        assert!(aparts.erred(7));
        assert!(aparts.ask(7, 5, true));
        let moves = ApartAct::Move { session: 7, rail: Some(5) };
        assert_eq!(aparts.act(), Some(moves), "before anybody is told");
        assert_eq!(aparts.act(), Some(ApartAct::Ask { at: 12 }));
        assert_eq!(aparts.act(), Some(ApartAct::Join { at: 12, rail: 5, theirs: false }));
        assert!(!aparts.erred(7), "it has one");
        assert_eq!((aparts.rail_of(7), aparts.rail_of(8)), (Some(5), None));
        // Its imports are gone, and it imports anew: it is known.
        aparts.unused(7);
        assert!(aparts.wants(7) && !aparts.wants(8));
        aparts.forget(7);
        assert!(!aparts.wants(7), "another session in its place is not");
    }

    #[test]
    fn who_gets_none_shares_on_and_is_heard_again_later() {
        let mut aparts = Aparts::default();
        assert!(!aparts.erred(7) && aparts.erred(7));
        aparts.refuse(7);
        assert_eq!((1..=16).map(|_| aparts.erred(7)).filter(|wants| *wants).count(), 1);
        assert!(aparts.ask(7, 5, false));
        while aparts.act().is_some() {}
        assert_eq!(aparts.over(13), Some(7), "the peer has none");
        assert_eq!(aparts.act(), Some(ApartAct::Move { session: 7, rail: None }));
        assert_eq!(aparts.act(), Some(ApartAct::Leave { rail: 5, silent: true }));
        assert!(!aparts.wants(7));
    }

    #[test]
    fn each_end_asks_for_places_of_its_own_and_no_more() {
        let mut aparts = Aparts::default();
        for session in 0..5 {
            assert_eq!(aparts.ask(session, 9, true), session < 4);
        }
        for at in (0..32).filter(|at| !APARTS.contains(at) || at % 2 == 0) {
            assert!(aparts.asked(at, Some(9), true).is_err(), "{at}");
        }
        assert_eq!(aparts.asked(13, Some(9), true), Ok(true));
        assert!(aparts.asked(13, Some(10), true).is_err(), "in use");
        assert_eq!(aparts.asked(15, None, true), Ok(false));
        assert_eq!(aparts.asked(15, None, true), Ok(false), "refused, it is free again");
    }

    /// Whatever both ends do, at the same time or not, and whenever: nothing breaks the rules, and
    /// in the end each rail was given back, and each APART was answered by one OVER.
    #[test]
    fn whatever_happens_nothing_is_left() {
        each_seed(3_000, |seed| {
            let mut random = Random::new(seed);
            let mut ends = [End::new(true), End::new(false)];
            for _ in 0..300 {
                let side = random.index(2);
                let session = random.index(6);
                match random.below(12) {
                    0 => _ = ends[side].sessions.entry(session).or_insert(None),
                    1..4 => ends[side].err(session),
                    4 => {
                        ends[side].sessions.remove(&session);
                        ends[side].aparts.unused(session);
                        ends[side].act();
                        if random.chance(30) {
                            ends[side].aparts.forget(session);
                        }
                    }
                    5 => {
                        let live = ends[side].rails.iter().filter(|(_, rail)| !rail.left);
                        let live: Vec<u16> = live.map(|(number, _)| *number).collect();
                        if !live.is_empty() && random.chance(30) {
                            ends[side].aparts.failed(random.pick(&live));
                            ends[side].act();
                        }
                    }
                    6..9 => talk(&mut ends, side, random.chance(70)),
                    9 | 10 => {
                        let quiet = silent(&ends[1 - side]);
                        ends[side].die(&quiet);
                    }
                    _ => ends[side].clear(),
                }
                for end in &ends {
                    let told: Vec<_> = end.sessions.values().filter_map(|by| *by).collect();
                    let each: BTreeSet<_> = told.iter().collect();
                    assert_eq!(told.len(), each.len(), "a rail of two flows");
                    for (session, by) in &end.sessions {
                        assert_eq!(end.aparts.rail_of(*session), *by);
                    }
                }
            }
            if random.chance(50) {
                for end in &mut ends {
                    end.aparts.lose();
                    let rails: Vec<u16> = std::mem::take(&mut end.rails).into_keys().collect();
                    assert_eq!(end.aparts.rails().collect::<BTreeSet<_>>().len(), rails.len());
                    for rail in rails {
                        end.aparts.dead(rail);
                        end.aparts.gone(rail);
                    }
                    while let Some(at) = end.clears.pop_front() {
                        assert!(end.aparts.clearing());
                        end.aparts.cleared(at);
                    }
                    assert!(end.aparts.places.is_empty() && !end.aparts.clearing());
                }
                return;
            }
            for end in &mut ends {
                for session in std::mem::take(&mut end.sessions).into_keys() {
                    end.aparts.unused(session);
                }
                end.act();
            }
            settle(&mut ends);
            for end in &ends {
                assert!(end.rails.is_empty() && end.aparts.places.is_empty(), "{end:?}");
            }
        });
    }
}
