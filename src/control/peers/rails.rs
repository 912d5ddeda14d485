//! Rails at work: joints on one side, the card's thread and the engine thread on the other.
//!
//! A connection is none the worse for a rail that fails while another of its set is left. One that
//! can be mended mends itself, as often as its rail in the fabric wishes; one that cannot leaves.

use tracing::{error, info, warn};

use super::joint::{Act, Job, Joint, Step};
use super::pairing::{Pair, Ports};
use super::paths::Paths;
use super::patience::{PutOff, Then};
use super::{CardFor, HOME, RailPlace, Whose};
use crate::clock;
use crate::control::card::{CardDone, CardWork, PairWork};
use crate::control::registrations;
use crate::control::server::Server;
use crate::fabric::qp::provider::{Created, ProviderError};
use crate::fabric::qp::{AdoptError, News, Told, Wish};
use crate::fabric::verbs::{AsyncEvent, VerbsPair};
use crate::host::link::Order;

/// How long a peer may take to have its end of a rail quiet, once this one is, ns. While others of
/// a set work nothing else ends the wait, and with it that of the ops that the rail has.
const QUIET_WITHIN_NS: u64 = if cfg!(test) { 2_000_000_000 } else { 30_000_000_000 };

impl Server {
    /// Makes the rail that leads back to this host, if there is a card.
    pub(in crate::control) fn join_home(&mut self) {
        let Some(card) = &self.card else { return };
        let (settings, caps, receives) = (card.paths[0][1], card.caps, card.receives);
        let ways = match card.pinned {
            true => Paths::only(settings),
            false => Paths::leading(settings, card.addresses_of(0), None, &[]),
        };
        let joint = Joint::by(ways, caps, receives);
        self.join_rail(HOME, Whose::Home, 0, joint);
    }

    pub(super) fn join_rail(&mut self, rail: u16, whose: Whose, card: u8, joint: Joint) {
        let Some(place) = self.peers.rails.get_mut(usize::from(rail)) else { return };
        *place = Some(RailPlace {
            whose,
            card,
            joint,
            pair: None,
            connected: 0,
            put_off: PutOff::default(),
            quiet_by_ns: None,
        });
        self.log_rail_begins(rail);
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

    /// Makes a connection's rails: one, or three, for each of these pairs of cards, with what is
    /// told of the other's. False if there are not so many.
    ///
    /// Atomics go by the lowest rail of a set. So the pair with the peer's card 0 has the lowest
    /// numbers, wherever it is in the list.
    pub(super) fn join_rails(
        &mut self,
        connection: usize,
        a_card: u8,
        pairs: &[(Pair, Ports)],
    ) -> bool {
        let Some(all) = &self.card else { return false };
        let (caps, receives, pinned) = (all.caps, all.receives, all.pinned);
        let count = pairs.len() * usize::from(a_card);
        let free = (HOME + 1..).zip(self.peers.rails.iter().skip(usize::from(HOME) + 1));
        let numbers: Vec<u16> = free
            .filter(|(_, place)| place.is_none())
            .map(|(number, _)| number)
            .take(count)
            .collect();
        let Some(entry) = self.peers.connections.get_mut(connection) else { return false };
        if numbers.len() < count {
            return false;
        }
        let (leads, by) = (entry.led_to.is_some(), entry.by);
        entry.rails_a_card = a_card;
        entry.cards = pairs.iter().map(|(pair, _)| pair.own).collect();
        entry.told = pairs.iter().map(|(_, told)| *told).collect();
        entry.with_theirs = pairs.iter().position(|(pair, _)| pair.other == 0);
        entry.with_ours = pairs.iter().position(|(pair, _)| pair.own == 0);
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_key(|at| Some(*at) != entry.with_theirs);
        entry.rails = vec![0; count];
        let mut rails = Vec::new();
        for pair in order {
            let (Pair { own: card, .. }, told) = &pairs[pair];
            let ways = all.addresses_of(*card);
            for class in 0..a_card {
                let at = pair * usize::from(a_card) + usize::from(class);
                // A rail for all classes goes as medium ops do.
                let class = if a_card == 1 { 1 } else { class };
                let settings = all.paths[usize::from(*card)][usize::from(class)];
                let ways = match (pinned, leads) {
                    (true, _) => Paths::only(settings),
                    (false, true) => Paths::leading(settings, ways, by, told),
                    (false, false) => Paths::following(settings, ways),
                };
                let joint = Joint::by(ways, caps, receives);
                let joint = if pairs.len() > 1 { joint.with_siblings() } else { joint };
                rails.push((at, *card, joint));
            }
        }
        for (number, (at, ..)) in numbers.iter().zip(&rails) {
            entry.rails[*at] = *number;
        }
        for (number, (at, card, joint)) in numbers.into_iter().zip(rails) {
            // There are at most 12.
            let whose = Whose::Connection(connection, u8::try_from(at).unwrap_or(u8::MAX));
            self.join_rail(number, whose, card, joint);
        }
        true
    }

    pub(super) fn rail(&mut self, rail: u16) -> Option<&mut RailPlace> {
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
                    Whose::Connection(key, at) | Whose::Apart(key, at) => {
                        self.say_of_rail(key, at, say);
                    }
                },
                Act::Card(step, job) => self.rail_job(rail, step, job),
                Act::Tell(epoch, news) => self.tell_rail(rail, epoch, news),
                Act::Release => self.release_rail(rail),
                Act::Fail(why) => self.fail_rail(rail, whose, why),
                Act::Over => self.rail_over(rail, whose),
            }
        }
        let Some(place) = self.rail(rail) else { return };
        if !place.joint.awaits_quiet() {
            place.quiet_by_ns = None;
        } else if place.quiet_by_ns.is_none() {
            place.quiet_by_ns = Some(clock::now_ns().saturating_add(QUIET_WITHIN_NS));
        }
        let over = place.joint.releasable();
        match place.whose {
            Whose::Home => {}
            Whose::Connection(key, _) => self.look_after(key),
            Whose::Apart(key, _) => {
                if over && let Some(connection) = self.peers.connections.get_mut(key) {
                    connection.aparts.dead(rail);
                }
                self.drive_aparts(key);
                self.look_after(key);
            }
        }
    }

    fn rail_job(&mut self, rail: u16, step: Step, job: Job) {
        if let Job::Endpoint { .. } = job {
            self.log_rail_connecting(rail);
        }
        let Some(place) = self.rail(rail) else { return };
        let (card, settings) = (place.card, place.joint.settings());
        let work = match job {
            Job::Create { caps } => PairWork::Create { caps, settings },
            Job::Endpoint { number, credits } => PairWork::Endpoint { number, settings, credits },
            Job::Move { number, moves } => PairWork::Move { number, moves },
        };
        let work = CardWork::Pair { card, work };
        self.ask_card(work, registrations::CardFor::Peers(CardFor::Rail { rail, step }));
    }

    fn tell_rail(&mut self, rail: u16, epoch: u32, news: News) {
        let Some(place) = self.rail(rail) else { return };
        if let News::Connected { .. } = news {
            place.put_off.connected();
            place.connected = place.connected.saturating_add(1);
        }
        self.log_rail_news(rail, epoch, news);
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
        let Some(place) = self.rail(rail) else { return };
        let (card, Some(number)) = (place.card, place.joint.number()) else { return };
        let what = CardFor::Rail { rail, step: Step::Destroy };
        let work = CardWork::Pair { card, work: PairWork::Destroy { number, pair } };
        self.ask_card(work, registrations::CardFor::Peers(what));
    }

    fn fail_rail(&mut self, rail: u16, whose: Whose, why: &'static str) {
        match whose {
            Whose::Home => {
                error!(rail, why, "atomics cannot go by the card: none can be exported");
                if let Some(place) = self.rail(rail) {
                    place.joint.lose();
                    // Its other end is its own.
                    place.joint.silent();
                }
            }
            Whose::Connection(key, at) => {
                if !self.any_sibling(key, at, |place| !place.joint.lost()) {
                    return self.lose_connection(key, why);
                }
                self.log_rail_leaves(rail, why);
                if let Some(place) = self.rail(rail) {
                    place.joint.leave();
                }
            }
            Whose::Apart(key, _) => self.apart_failed(key, rail, why),
        }
    }

    /// True if this can be said of another rail of the set that a connection's rail belongs to.
    fn any_sibling(&self, key: usize, at: u8, holds: impl Fn(&RailPlace) -> bool) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return false };
        let (step, at) = (usize::from(connection.rails_a_card), usize::from(at));
        let mut others =
            (0..connection.rails.len()).filter(|other| *other != at && other % step == at % step);
        others.any(|other| {
            let rail = usize::from(connection.rails[other]);
            self.peers.rails.get(rail).and_then(Option::as_ref).is_some_and(&holds)
        })
    }

    fn rail_over(&mut self, rail: u16, whose: Whose) {
        self.log_rail_over(rail);
        if let Some(place) = self.peers.rails.get_mut(usize::from(rail)) {
            *place = None;
        }
        let (Whose::Connection(key, _) | Whose::Apart(key, _)) = whose else { return };
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.rails.retain(|other| *other != rail);
            connection.aparts.gone(rail);
        }
        self.drive_aparts(key);
        self.look_after(key);
    }

    /// The card's thread has worked on a rail's queue pair.
    pub(super) fn rail_worked(&mut self, rail: u16, step: Step, done: CardDone) {
        let Some(place) = self.rail(rail) else { return };
        let done = match (step, done) {
            (Step::Endpoint(_) | Step::Up(_), CardDone::Failed(error)) if !place.joint.lost() => {
                return self.put_off_rail(rail, step, &error);
            }
            (_, CardDone::Failed(error)) => {
                warn!(rail, number = place.joint.number(), ?step, %error, "a queue pair");
                CardDone::Failed(error)
            }
            (_, done) => done,
        };
        let joint = &mut place.joint;
        match (step, done) {
            (Step::Create, CardDone::Created(Created { pair, number, caps })) => {
                if joint.created(Some((number, caps))) {
                    let card = place.card;
                    self.pass(Order::Adopt { rail, pair, caps, card });
                } else {
                    place.pair = Some(pair);
                }
            }
            (Step::Create, _) => {
                joint.created(None);
            }
            (Step::Endpoint(life), CardDone::Endpoint(endpoint)) => {
                joint.endpoint(life, Some(endpoint));
                let card = place.card;
                self.peers.looks.found(card);
            }
            (Step::Endpoint(life), _) => joint.endpoint(life, None),
            (Step::Destroy, _) => joint.destroyed(),
            (step, CardDone::Moved) => joint.moved(step, true),
            (step, _) => joint.moved(step, false),
        }
        self.drive_rail(rail);
    }

    /// A rail could not be connected: it waits a while, since the path may be down for long.
    fn put_off_rail(&mut self, rail: u16, step: Step, error: &ProviderError) {
        let Some(place) = self.rail(rail) else { return };
        let now_ns = clock::now_ns();
        let (card, ways) = (place.card, place.joint.ways());
        let then = match (step, error) {
            (Step::Endpoint(life), ProviderError::NoAddress { .. }) => Then::SeekAgain(life),
            _ => Then::NextLife(step),
        };
        let first = place.put_off.failed(then, ways, now_ns);
        if let Then::SeekAgain(_) = then {
            self.log_no_address(card, error);
        } else {
            self.log_rail_fails(rail, step, error, first);
        }
        self.log_rail_put_off(rail, now_ns);
        self.look_at_card(card);
    }

    /// Rails that could not be connected have waited long enough.
    pub(super) fn retry_rails(&mut self, now_ns: u64) {
        for rail in 0..u16::try_from(self.peers.rails.len()).unwrap_or(0) {
            self.retry_rail(rail, now_ns);
        }
    }

    /// One of them, if it has.
    pub(super) fn retry_rail(&mut self, rail: u16, now_ns: u64) {
        let Some(place) = self.rail(rail) else { return };
        match place.put_off.due(now_ns) {
            None => return,
            Some(Then::SeekAgain(life)) => place.joint.seek_again(life),
            Some(Then::NextLife(Step::Endpoint(life))) => place.joint.endpoint(life, None),
            Some(Then::NextLife(step)) => place.joint.moved(step, false),
        }
        self.drive_rail(rail);
    }

    /// Connections of which a rail has waited too long for its other end to fall quiet.
    pub(super) fn unquiet(&mut self, now_ns: u64) -> Vec<usize> {
        let mut found = Vec::new();
        for place in self.peers.rails.iter_mut().flatten() {
            let over = place.quiet_by_ns.take_if(|by_ns| now_ns >= *by_ns).is_some();
            if over && let Whose::Connection(key, _) | Whose::Apart(key, _) = place.whose {
                found.push(key);
            }
        }
        found
    }

    /// When there is something to be done about a rail that waits.
    pub(super) fn rails_due_ns(&self) -> Option<u64> {
        let due = |place: &RailPlace| {
            [place.put_off.due_ns(), place.quiet_by_ns].into_iter().flatten().min()
        };
        self.peers.rails.iter().flatten().filter_map(due).min()
    }

    /// A rail wishes something.
    pub(in crate::control) fn rail_wished(&mut self, wish: Wish) {
        let Wish { rail, epoch, ask, barren, offender } = wish;
        self.log_rail_wish(rail, epoch, ask);
        // Before the rail is told anything, so that it hands back what is to go elsewhere.
        if let Some(index) = offender {
            self.blame(rail, index);
        }
        if let Some(place) = self.rail(rail) {
            if barren {
                place.joint.barren(epoch);
            }
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

    /// A card says something by itself.
    pub(in crate::control) fn card_happened(&mut self, card: u8, event: AsyncEvent) {
        let all = match event {
            AsyncEvent::PairFailed(number) => {
                self.rails_of(card, |_, place| place.joint.number() == Some(number))
            }
            AsyncEvent::CompletionsLost | AsyncEvent::DeviceFailed => {
                error!(card, ?event, "the card has failed: start the engine anew once it works");
                self.rails_of(card, |_, _| true)
            }
            AsyncEvent::PortDown(port) => {
                warn!(card, ?event, "the card says");
                self.rails_of(card, |server, place| server.cut_off(port, place))
            }
            AsyncEvent::PortActive(_) => {
                info!(card, ?event, "the card says");
                // Whoever waits for it need not any more.
                self.retry_rails(u64::MAX);
                return self.addresses_changed(card);
            }
            AsyncEvent::AddressesChanged(_) => {
                info!(card, ?event, "the card says");
                return self.addresses_changed(card);
            }
            _ => return info!(card, ?event, "the card says"),
        };
        let why = match event {
            AsyncEvent::PairFailed(_) => "its queue pair has failed",
            AsyncEvent::PortDown(_) => "its port is down",
            _ => "its card has failed",
        };
        for rail in all {
            if let Some(place) = self.rail(rail) {
                place.joint.broken(why);
            }
            self.drive_rail(rail);
        }
    }

    /// A connection's rails on these cards are taken for broken.
    pub(super) fn break_rails_of(&mut self, key: usize, cards: &[u8]) {
        let of_it = |place: &RailPlace| match place.whose {
            Whose::Connection(of, _) | Whose::Apart(of, _) => of == key,
            Whose::Home => false,
        };
        for card in cards {
            for rail in self.rails_of(*card, |_, place| of_it(place)) {
                if let Some(place) = self.rail(rail) {
                    place.joint.broken("the other engine's card knows nothing of what it lends");
                }
                self.drive_rail(rail);
            }
        }
    }

    /// Rails on a card of which this can be said.
    pub(super) fn rails_of(&self, card: u8, holds: impl Fn(&Self, &RailPlace) -> bool) -> Vec<u16> {
        let all = (0..).zip(&self.peers.rails);
        let of_it = |place: &RailPlace| place.card == card && holds(self, place);
        all.filter(|(_, place)| place.as_ref().is_some_and(of_it)).map(|(rail, _)| rail).collect()
    }

    /// True if a rail is better taken for broken when its port goes down: another of its set works,
    /// which need not wait until this one's time-outs have passed. A rail without such is left to
    /// its card, which may outlast a short interruption.
    pub(super) fn cut_off(&self, port: u32, place: &RailPlace) -> bool {
        u32::from(place.joint.settings().port) == port && self.stand_in(place)
    }

    /// True if a rail is ready, and another of its set on another card is, too.
    pub(super) fn stand_in(&self, place: &RailPlace) -> bool {
        let Whose::Connection(key, at) = place.whose else { return false };
        place.joint.ready()
            && self.any_sibling(key, at, |other| other.card != place.card && other.joint.ready())
    }

    /// True if a connection has its rails, and one of every set is ready.
    pub(super) fn rails_ready(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return false };
        let Some(sets) = connection.sets() else { return false };
        let ready = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_some_and(|place| place.joint.ready())
        };
        let ready = connection.rails.iter().filter(|rail| ready(rail));
        let ready = ready.fold(0_u64, |set, rail| set | 1 << rail);
        sets.iter().all(|set| set & ready != 0)
    }

    /// All rails of a connection are dead or gone.
    pub(super) fn rails_dead(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return true };
        let dead = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_none_or(|place| place.joint.dead())
        };
        connection.all_rails().all(|rail| dead(&rail))
    }

    /// Nothing that a lost peer has sent is delivered here any more.
    pub(super) fn rails_hushed(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return true };
        let hushed = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_none_or(|place| place.joint.hushed())
        };
        connection.all_rails().all(|rail| hushed(&rail))
    }

    /// A rail of a connection is dead, and has not been asked to be released.
    pub(super) fn rails_releasable(&self, key: usize) -> bool {
        let Some(connection) = self.peers.connections.get(key) else { return false };
        let releasable = |rail: &u16| {
            let place = self.peers.rails.get(usize::from(*rail)).and_then(Option::as_ref);
            place.is_some_and(|place| place.joint.releasable())
        };
        connection.all_rails().any(|rail| releasable(&rail))
    }

    /// Applies something to each rail of a connection, and does what they ask for then.
    pub(super) fn each_rail(&mut self, key: usize, apply: impl Fn(&mut Joint)) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let rails: Vec<u16> = connection.all_rails().collect();
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
