//! Rails at work: joints on one side, the card's thread and the engine thread on the other.

use tracing::{debug, error, info, warn};

use super::joint::{Act, Job, Joint, Step};
use super::{CardFor, HOME, RailPlace, Whose};
use crate::control::card::{CardDone, CardWork};
use crate::control::registrations;
use crate::control::server::Server;
use crate::fabric::qp::provider::{Created, PathSettings};
use crate::fabric::qp::{AdoptError, News, Told, Wish};
use crate::fabric::verbs::{AsyncEvent, VerbsPair};
use crate::host::link::Order;

impl Server {
    /// Makes the rail that leads back to this host, if there is a card.
    pub(in crate::control) fn join_home(&mut self) {
        let Some(card) = &self.card else { return };
        let (settings, caps, receives) = (card.paths[1], card.caps, card.receives);
        let joint = Joint::new(settings, caps, receives);
        self.join_rail(HOME, Whose::Home, joint);
    }

    fn join_rail(&mut self, rail: u16, whose: Whose, joint: Joint) {
        let Some(place) = self.peers.rails.get_mut(usize::from(rail)) else { return };
        *place = Some(RailPlace { whose, joint, pair: None, rebuilt: false });
        self.drive_rail(rail);
    }

    /// The rail for atomics on this host, unless it has failed.
    pub(super) fn home_rail(&self) -> Option<u16> {
        let place = self.peers.rails.get(usize::from(HOME))?.as_ref()?;
        (!place.joint.lost()).then_some(HOME)
    }

    /// Rail numbers that are free.
    pub(super) fn free_rails(&self) -> usize {
        self.peers.rails.iter().skip(usize::from(HOME) + 1).filter(|rail| rail.is_none()).count()
    }

    /// Makes a connection's rails, one or three. False if there are not so many.
    pub(super) fn join_rails(&mut self, connection: usize, count: u8) -> bool {
        let Some(card) = &self.card else { return false };
        let (paths, caps, receives) = (card.paths, card.caps, card.receives);
        let free = (HOME + 1..).zip(self.peers.rails.iter().skip(usize::from(HOME) + 1));
        let numbers: Vec<u16> = free
            .filter(|(_, place)| place.is_none())
            .map(|(number, _)| number)
            .take(usize::from(count))
            .collect();
        let Some(entry) = self.peers.connections.get_mut(connection) else { return false };
        if numbers.len() < usize::from(count) {
            return false;
        }
        entry.rails.clone_from(&numbers);
        for (number, place) in numbers.into_iter().zip(0..) {
            // A rail for all classes goes as medium ops do.
            let settings: PathSettings = paths[usize::from(if count == 1 { 1 } else { place })];
            let joint = Joint::new(settings, caps, receives);
            self.join_rail(number, Whose::Connection(connection, place), joint);
        }
        true
    }

    fn rail(&mut self, rail: u16) -> Option<&mut RailPlace> {
        self.peers.rails.get_mut(usize::from(rail))?.as_mut()
    }

    /// Does what a rail asks for.
    pub(super) fn drive_rail(&mut self, rail: u16) {
        while let Some(place) = self.rail(rail)
            && let Some(act) = place.joint.act()
        {
            let whose = place.whose;
            match act {
                Act::Send(say) => match whose {
                    Whose::Home => {
                        let heard = place.joint.heard(&say);
                        debug_assert!(heard.is_ok(), "{heard:?}");
                    }
                    Whose::Connection(key, at) => self.say_of_rail(key, at, say),
                },
                Act::Card(step, job) => self.rail_job(rail, step, job),
                Act::Tell(epoch, news) => self.tell_rail(rail, epoch, news),
                Act::Release => self.release_rail(rail),
                Act::Fail(why) => self.fail_rail(rail, whose, why),
                Act::Over => self.rail_over(rail, whose),
            }
        }
        if let Some(Whose::Connection(key, _)) = self.rail(rail).map(|place| place.whose) {
            self.look_after(key);
        }
    }

    fn rail_job(&mut self, rail: u16, step: Step, job: Job) {
        let Some(place) = self.rail(rail) else { return };
        let settings = place.joint.settings();
        let work = match job {
            Job::Create { caps } => CardWork::Create { caps, settings },
            Job::Endpoint { number, credits } => CardWork::Endpoint { number, settings, credits },
            Job::Move { number, moves } => CardWork::Move { number, moves },
        };
        self.ask_card(work, registrations::CardFor::Peers(CardFor::Rail { rail, step }));
    }

    fn tell_rail(&mut self, rail: u16, epoch: u32, news: News) {
        let Some(place) = self.rail(rail) else { return };
        if let News::Connected { .. } = news {
            let rebuilt = std::mem::replace(&mut place.rebuilt, true);
            let number = place.joint.number();
            info!(rail, number, epoch, rebuilt, "rail connected");
        } else {
            debug!(rail, epoch, ?news, "rail told");
        }
        self.pass(Order::Tell(Told { rail, epoch, news }));
    }

    fn release_rail(&mut self, rail: u16) {
        let Some(place) = self.rail(rail) else { return };
        match place.pair.take() {
            Some(pair) => self.destroy_pair(rail, pair),
            None => self.pass(Order::Release { rail }),
        }
    }

    fn destroy_pair(&mut self, rail: u16, pair: VerbsPair) {
        let Some(number) = self.rail(rail).and_then(|place| place.joint.number()) else { return };
        let what = CardFor::Rail { rail, step: Step::Destroy };
        let work = CardWork::Destroy { number, pair };
        self.ask_card(work, registrations::CardFor::Peers(what));
    }

    fn fail_rail(&mut self, rail: u16, whose: Whose, why: &'static str) {
        match whose {
            Whose::Home => {
                error!(rail, why, "atomics cannot go by the card: none can be exported");
                if let Some(place) = self.rail(rail) {
                    place.joint.lose();
                }
            }
            Whose::Connection(key, _) => self.lose_connection(key, why),
        }
    }

    fn rail_over(&mut self, rail: u16, whose: Whose) {
        if let Some(place) = self.peers.rails.get_mut(usize::from(rail)) {
            *place = None;
        }
        if let Whose::Connection(key, _) = whose {
            if let Some(connection) = self.peers.connections.get_mut(key) {
                connection.rails.retain(|other| *other != rail);
            }
            self.look_after(key);
        }
    }

    /// The card's thread has worked on a rail's queue pair.
    pub(super) fn rail_worked(&mut self, rail: u16, step: Step, done: CardDone) {
        let Some(place) = self.rail(rail) else { return };
        let joint = &mut place.joint;
        if let CardDone::Failed(error) = &done {
            warn!(rail, number = joint.number(), ?step, %error, "a queue pair");
        }
        match (step, done) {
            (Step::Create, CardDone::Created(Created { pair, number, caps })) => {
                if joint.created(Some((number, caps))) {
                    self.pass(Order::Adopt { rail, pair, caps, card: 0 });
                } else {
                    place.pair = Some(pair);
                }
            }
            (Step::Create, _) => {
                joint.created(None);
            }
            (Step::Endpoint(life), CardDone::Endpoint(endpoint)) => {
                joint.endpoint(life, Some(endpoint));
            }
            (Step::Endpoint(life), _) => joint.endpoint(life, None),
            (Step::Destroy, _) => joint.destroyed(),
            (step, CardDone::Moved) => joint.moved(step, true),
            (step, _) => joint.moved(step, false),
        }
        self.drive_rail(rail);
    }

    /// A rail wishes something.
    pub(in crate::control) fn rail_wished(&mut self, wish: Wish) {
        let Wish { rail, epoch, ask } = wish;
        debug!(rail, epoch, ?ask, "rail wishes");
        if let Some(place) = self.rail(rail) {
            place.joint.wish(epoch, ask);
        }
        self.drive_rail(rail);
    }

    /// The fabric would not have a queue pair.
    pub(in crate::control) fn rail_refused(
        &mut self,
        rail: u16,
        pair: VerbsPair,
        error: &AdoptError,
    ) {
        warn!(rail, %error, "a queue pair cannot become a rail");
        if let Some(place) = self.rail(rail) {
            place.pair = Some(pair);
            place.joint.refused();
        }
        self.drive_rail(rail);
    }

    /// The fabric has let go of a rail.
    pub(in crate::control) fn rail_released(&mut self, rail: u16, pair: Option<VerbsPair>) {
        match pair {
            Some(pair) => self.destroy_pair(rail, pair),
            None => {
                error!(rail, "a rail that is dead was not released");
                if let Some(place) = self.rail(rail) {
                    place.joint.destroyed();
                }
                self.drive_rail(rail);
            }
        }
    }

    /// The device says something by itself.
    pub(in crate::control) fn card_happened(&mut self, event: AsyncEvent) {
        let all: Vec<u16> = match event {
            AsyncEvent::PairFailed(number) => {
                let of = |place: &RailPlace| place.joint.number() == Some(number);
                let found = (0..).zip(&self.peers.rails);
                found
                    .filter(|(_, place)| place.as_ref().is_some_and(of))
                    .map(|(rail, _)| rail)
                    .collect()
            }
            AsyncEvent::CompletionsLost | AsyncEvent::DeviceFailed => {
                error!(?event, "the card has failed: start the engine anew once it works");
                (0..).zip(&self.peers.rails).map(|(rail, _)| rail).collect()
            }
            AsyncEvent::PortDown(_) | AsyncEvent::AddressesChanged(_) => {
                return warn!(?event, "the card says");
            }
            _ => return info!(?event, "the card says"),
        };
        for rail in all {
            if let Some(place) = self.rail(rail) {
                debug!(rail, ?event, "a rail's queue pair has failed");
                place.joint.broken();
            }
            self.drive_rail(rail);
        }
    }

    /// True if a connection has its rails and all are ready.
    pub(super) fn rails_ready(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return false };
        let ready = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_some_and(|place| place.joint.ready())
        };
        !connection.rails.is_empty() && connection.rails.iter().all(ready)
    }

    /// All rails of a connection are dead or gone.
    pub(super) fn rails_dead(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return true };
        let dead = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_none_or(|place| place.joint.dead())
        };
        connection.rails.iter().all(dead)
    }

    /// A rail of a connection is dead, and has not been asked to be released.
    pub(super) fn rails_releasable(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return false };
        let releasable = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_some_and(|place| place.joint.releasable())
        };
        connection.rails.iter().any(releasable)
    }

    /// Applies something to each rail of a connection, and does what they ask for then.
    pub(super) fn each_rail(&mut self, key: usize, apply: impl Fn(&mut Joint)) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let rails = connection.rails.clone();
        // All before any is driven: driving one looks after the connection, and so at the others.
        for rail in &rails {
            if let Some(place) = self.rail(*rail) {
                apply(&mut place.joint);
            }
        }
        for rail in rails {
            self.drive_rail(rail);
        }
    }
}
