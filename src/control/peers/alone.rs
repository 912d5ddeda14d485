//! Rails that are one flow's alone, at work: [`Aparts`](super::apart) on one side; joints, the core
//! and what is lent on the other.
//!
//! **Bounds**: such rails, those that peers have asked for among them, are at most a quarter of
//! what an engine may have for peers, so that bad flows never take the last rail of a new peer; at
//! most four of a connection are asked for by either end, and a session has two at most. Who gets
//! none shares on.

use tracing::{debug, info, warn};

use super::apart::{ApartAct, ERRORS_MAX};
use super::message::{FEATURE_APART, Message};
use super::paths::Paths;
use super::{OrderFor, Phase, RailPlace, Whose};
use crate::control::server::{Pending, Server};
use crate::engine::Command;

/// Rails of its own that a session may have, over all connections.
const SESSION_MAX: usize = 2;
/// One of so many rails for peers may be a flow's alone.
const ONE_OF: usize = 4;

impl Server {
    /// Rails that may be flows' alone.
    fn aparts_max(&self) -> usize {
        // Two of all lead back to this host.
        let rails = self.card.as_ref().map_or(0, |card| usize::from(card.rails_max));
        rails.saturating_sub(2) / ONE_OF
    }

    /// What this engine says of itself.
    pub(super) fn own_features(&self) -> u32 {
        if self.aparts_max() > 0 { FEATURE_APART } else { 0 }
    }

    /// The number of a rail that may be a flow's alone.
    fn spare_rail(&self) -> Option<u16> {
        let rails = || (0..).zip(&self.peers.rails).skip(2);
        let apart = |whose| matches!(whose, Whose::Apart(..));
        let used = rails().filter(|(_, it)| it.as_ref().is_some_and(|it| apart(it.whose)));
        let room = used.count() < self.aparts_max();
        rails().find(|(_, it)| it.is_none()).map(|(rail, _)| rail).filter(|_| room)
    }

    /// A rail of all has failed by the fault of a request itself, which was for this region.
    pub(super) fn blame(&mut self, rail: u16, index: u32) {
        let place = self.peers.rails.get(usize::from(rail)).and_then(Option::as_ref);
        let Some(Whose::Connection(key, _)) = place.map(|place| place.whose) else { return };
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let mut imports = connection.imports.values();
        let Some(held) = imports.find(|held| held.region.index() == index) else { return };
        let (session, region) = (held.session, held.region);
        if self.sessions.get(session).is_none_or(|session| session.ending) {
            return;
        }
        debug!(connection = key, rail, session, region = region.0, "a request has failed its rail");
        if connection.aparts.erred(session) {
            self.set_apart(key, session);
        }
    }

    /// A session that has erred too often before has something of the peer again.
    pub(super) fn set_apart_again(&mut self, key: usize, session: usize) {
        let connection = self.peers.connections.get(key);
        if connection.is_some_and(|connection| connection.aparts.wants(session)) {
            self.set_apart(key, session);
        }
    }

    /// Gets a flow a rail of its own, or says why not.
    fn set_apart(&mut self, key: usize, session: usize) {
        let place = self.peers.connections.get(key).map(super::Connection::place);
        let peer = place.unwrap_or_default();
        match self.ask_apart(key, session) {
            Ok(rail) => {
                let errors = ERRORS_MAX;
                info!(connection = key, peer, session, rail, errors, "a flow is set apart");
            }
            Err(why) => {
                info!(connection = key, peer, session, why, "a flow gets no rail of its own");
                if let Some(connection) = self.peers.connections.get_mut(key) {
                    connection.aparts.refuse(session);
                }
            }
        }
        self.drive_aparts(key);
    }

    fn ask_apart(&mut self, key: usize, session: usize) -> Result<u16, &'static str> {
        let all = self.peers.connections.iter();
        let own: usize = all.map(|(_, connection)| connection.aparts.count_of(session)).sum();
        if own >= SESSION_MAX {
            return Err("its session has as many as it may");
        }
        let connection = self.peers.connections.get(key).filter(|it| it.phase == Phase::Up);
        let connection = connection.ok_or("the connection is not up")?;
        if connection.features & FEATURE_APART == 0 {
            return Err("the other engine offers none");
        }
        let shared = connection.with_theirs.unwrap_or(0) * usize::from(connection.rails_a_card);
        let beside = |place: &&RailPlace| match place.whose {
            Whose::Connection(of, at) => of == key && usize::from(at) == shared,
            _ => false,
        };
        let mut places = self.peers.rails.iter().flatten();
        if places.find(beside).is_none_or(|place| place.joint.lost()) {
            return Err("its card has failed");
        }
        let rail = self.spare_rail().ok_or("as many as may be are in use")?;
        let connection = self.peers.connections.get_mut(key).ok_or("the connection is lost")?;
        let leading = connection.led_to.is_some();
        let asked = connection.aparts.ask(session, rail, leading);
        asked.then_some(rail).ok_or("as many as a connection may have are in use")
    }

    /// The peer asks for a rail for a flow of its own.
    pub(super) fn asked_apart(&mut self, key: usize, at: u8) {
        let spare = self.spare_rail();
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let (peer, leading) = (connection.place(), connection.led_to.is_some());
        match connection.aparts.asked(at, spare, leading) {
            Ok(true) => info!(connection = key, peer, rail = spare, "a flow there is set apart"),
            Ok(false) => info!(connection = key, peer, "a flow there gets no rail of its own"),
            Err(violation) => {
                warn!(connection = key, %violation, "another engine broke the rules");
                return self.lose_connection(key, "it asked for a rail out of turn");
            }
        }
        self.drive_aparts(key);
    }

    /// The peer says that a rail is over, or never was.
    pub(super) fn heard_over(&mut self, key: usize, at: u8) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let peer = connection.place();
        if let Some(session) = connection.aparts.over(at) {
            let why = "the other engine has none to spare, or its end has failed";
            info!(connection = key, peer, session, why, "a flow gets no rail of its own");
        }
        self.drive_aparts(key);
    }

    /// A rail of a flow's own has failed for good.
    pub(super) fn apart_failed(&mut self, key: usize, rail: u16, why: &'static str) {
        self.log_rail_leaves(rail, why);
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let peer = connection.place();
        if let Some(session) = connection.aparts.failed(rail) {
            info!(connection = key, peer, session, why, "a flow gets no rail of its own");
        }
        self.drive_aparts(key);
    }

    /// Gives back the rails of flows that have nothing of a peer any more.
    pub(super) fn give_back_aparts(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let has = |session| connection.imports.values().any(|held| held.session == session);
        let idle: Vec<usize> = connection.aparts.sessions().filter(|it| !has(*it)).collect();
        let peer = connection.place();
        for session in idle {
            info!(connection = key, peer, session, "a flow gives its own rail back");
            if let Some(connection) = self.peers.connections.get_mut(key) {
                connection.aparts.unused(session);
            }
        }
        self.drive_aparts(key);
    }

    /// A session ends: nothing that it did is another's to answer for.
    pub(super) fn forget_errors(&mut self, session: usize) {
        for (_, connection) in &mut self.peers.connections {
            connection.aparts.forget(session);
        }
    }

    /// The core has cleared a rail of a flow's own.
    pub(super) fn apart_cleared(&mut self, key: usize, at: u8) {
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.aparts.cleared(at);
        }
        self.drive_aparts(key);
        self.look_after(key);
    }

    /// Does what the rails of flows ask for.
    pub(super) fn drive_aparts(&mut self, key: usize) {
        while let Some(connection) = self.peers.connections.get_mut(key)
            && let Some(act) = connection.aparts.act()
        {
            debug!(connection = key, ?act, "apart");
            match act {
                ApartAct::Ask { at } => self.say(key, &Message::Apart(at)),
                ApartAct::Over { at } => self.say(key, &Message::Over(at)),
                ApartAct::Join { at, rail, theirs } => {
                    if theirs {
                        self.lend_all_on(key, rail);
                    }
                    self.join_apart(key, at, rail, theirs);
                }
                ApartAct::Move { session, rail } => self.move_imports(key, session, rail),
                ApartAct::Leave { rail, silent } => self.leave_apart(rail, silent),
                ApartAct::Clear { at } => {
                    let what = OrderFor::Clear { connection: key, at };
                    let token = self.pending.insert(Pending::Peers(what)) as u64;
                    self.order(Command::Clear { token });
                }
                ApartAct::TakeBack { rail } => self.take_all_back_from(key, rail),
                ApartAct::Release { rail } => {
                    if let Some(place) = self.rail(rail) {
                        place.joint.release();
                    }
                    self.drive_rail(rail);
                }
            }
        }
    }

    fn leave_apart(&mut self, rail: u16, silent: bool) {
        let Some(place) = self.rail(rail) else { return };
        if !place.joint.lost() {
            place.joint.leave();
        }
        if silent {
            place.joint.silent();
        }
        self.drive_rail(rail);
    }

    /// It goes by the card that atomics of whoever has asked for it go by.
    fn join_apart(&mut self, key: usize, at: u8, rail: u16, theirs: bool) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let pair = if theirs { connection.with_ours } else { connection.with_theirs };
        let pair = pair.unwrap_or(0);
        let on = connection.cards.get(pair).zip(connection.told.get(pair));
        let Some(((on, told), card)) = on.zip(self.card.as_ref()) else { return };
        let (caps, receives, settings) =
            (card.caps, card.receives, card.paths[usize::from(*on)][1]);
        let ways = card.addresses_of(*on);
        let ways = match (card.pinned, connection.led_to.is_some()) {
            (true, _) => Paths::only(settings),
            (false, true) => Paths::leading(settings, ways, connection.by, told),
            (false, false) => Paths::following(settings, ways),
        };
        let (joint, on) = (super::Joint::by(ways, caps, receives), *on);
        self.join_rail(rail, Whose::Apart(key, at), on, joint);
    }

    /// Has a session's imports go by its own rail, or by those of all.
    fn move_imports(&mut self, key: usize, session: usize, rail: Option<u16>) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let all = rail.map(|rail| [1 << rail; 3]).or_else(|| connection.sets());
        let Some(rails) = all else { return };
        let imports = connection.imports.values().filter(|held| held.session == session);
        for region in imports.map(|held| held.region).collect::<Vec<_>>() {
            let token = self.pending.insert(Pending::Peers(OrderFor::Nothing)) as u64;
            self.order(Command::Reroute { region, rails, token });
        }
    }

    /// Lends on a rail what is lent on the others. Nothing comes by it before it is connected,
    /// and of that the core hears later.
    fn lend_all_on(&mut self, key: usize, rail: u16) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        for (region, rights, revoked) in connection.loans.lent_regions() {
            let place = self.regions.get(&region.0).filter(|_| !revoked);
            let Some(heard) = place.map(|place| place.links.revocations) else { continue };
            let token = self.pending.insert(Pending::Peers(OrderFor::Nothing)) as u64;
            self.order(Command::Lend { region, rail, rights, heard, token });
        }
    }

    fn take_all_back_from(&mut self, key: usize, rail: u16) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        for (region, ..) in connection.loans.lent_regions() {
            let token = self.pending.insert(Pending::Peers(OrderFor::Nothing)) as u64;
            self.order(Command::TakeBack { region, rail, token });
        }
    }
}
