//! What sessions here have of a peer's: IMPORT with a peer, the answer to it, its withdrawal, and
//! giving it back.

use tracing::{info, warn};

use super::message::{Failure, Have, Message, Want};
use super::{Abroad, OrderFor, Phase};
use crate::abi::{Detail, Import, Kind, UID_OWN, errno};
use crate::clock;
use crate::control::server::{Pending, Server};
use crate::control::sessions::{WRONG_SECRETS_MAX, place};
use crate::control::wire::Refusal;
use crate::engine::Command;
use crate::fabric::Held as Memory;
use crate::fabric::qp::provider::Key;
use crate::fabric::qp::{self, CardKeys};
use crate::ids::RegionId;

/// An IMPORT that waits for the peer.
#[derive(Debug)]
pub(super) struct Wanted {
    session: usize,
    region: RegionId,
    tag: u64,
    rights: u32,
    /// What came of HAVE so far: the first part without its keys, and all keys.
    part: Option<Have>,
    keys: Vec<(u8, Key)>,
    pub(super) since_ns: u64,
}

/// An import of a peer's region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) session: usize,
    pub(super) region: RegionId,
    /// The engine was asked to let no op go by it any more.
    withdrawing: bool,
}

impl Server {
    /// IMPORT from a peer: the peer is asked. The request's name and rights were looked at.
    pub(in crate::control) fn import_abroad(
        &mut self,
        session: usize,
        request: &Import,
    ) -> Result<(), Refusal> {
        let refused = |errno, text: String| Err(Refusal::new(errno, Detail::Peer, text));
        let peer = request.peer;
        let Some(known) = self.peers.numbers.connection(session, peer) else {
            let text = format!("peer {peer} is none of this session's; CONNECT first");
            return refused(errno::EINVAL, text);
        };
        let up =
            |key: &usize| self.peers.connections.get(*key).is_some_and(|it| it.phase == Phase::Up);
        let Some(key) = known.filter(up) else {
            let text = format!("the connection to peer {peer} is lost; CONNECT anew");
            return refused(errno::EHOSTDOWN, text);
        };
        let region = self.new_region(session, 0, 0, true)?;
        if let Some(place) = self.regions.get_mut(&region.0) {
            // Until the peer answers there is nothing that the engine could let go of.
            place.in_hand = true;
        }
        let asker = self.sessions.get(session).map_or(UID_OWN, |session| session.uid);
        let uid = if request.uid == UID_OWN { asker } else { request.uid };
        self.peers.last_tag += 1;
        let tag = self.peers.last_tag;
        let Import { rights, name, secret, .. } = *request;
        let wanted = Wanted {
            session,
            region,
            tag: request.head.tag,
            rights,
            part: None,
            keys: Vec::new(),
            since_ns: clock::now_ns(),
        };
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.wants.insert(tag, wanted);
        }
        self.hold(session);
        self.say(key, &Message::Want(Want { tag, uid, asker, rights, name, secret }));
        Ok(())
    }

    /// A peer has lent what was asked for, or a part of it was told.
    pub(super) fn had(&mut self, key: usize, have: Have) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let Some(wanted) = connection.wants.get_mut(&have.tag) else {
            return self.lose_connection(key, "it lends what nobody wanted");
        };
        let Have { keys, first, .. } = have;
        let rest = Have { keys: Vec::new(), first: 0, ..have };
        let follows = wanted.part.as_ref().is_none_or(|part| *part == rest);
        let in_order = usize::try_from(first) == Ok(wanted.keys.len());
        let asked = wanted.rights == 0 || wanted.rights == rest.rights;
        if !follows || !in_order || !asked || connection.imports.contains_key(&rest.loan) {
            return self.lose_connection(key, "it lends something else than was wanted");
        }
        wanted.keys.extend(keys);
        if wanted.keys.len() < rest.keys_total as usize {
            wanted.part = Some(rest);
            return;
        }
        let Some(wanted) = connection.wants.remove(&rest.tag) else { return };
        self.take_up(key, wanted, &rest);
    }

    /// All keys of an import are there: it becomes live.
    fn take_up(&mut self, key: usize, wanted: Wanted, have: &Have) {
        let Have { loan, region: name, bytes, rights, .. } = *have;
        let Wanted { session, region, tag, keys, .. } = wanted;
        let covered = keys.last().and_then(|(_, key)| key.offset.checked_add(key.bytes));
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let cards = connection.cards.clone();
        // Of pairs that there are not there are none.
        let shared = keys.iter().all(|(pair, _)| usize::from(*pair) < cards.len());
        let keys = by_card(&cards, &keys);
        let mute: Vec<u8> =
            cards.iter().copied().filter(|card| keys.of(*card).is_empty()).collect();
        let memory = qp::Memory::peer(keys, name)
            .filter(|_| shared && bytes > 0 && covered.is_some_and(|covered| covered >= bytes));
        let Some((memory, rails)) = memory.zip(connection.sets_of(session)) else {
            self.deny(wanted_by(session, region, tag), &gone());
            return self.lose_connection(key, "its keys do not cover what it lends");
        };
        let live = self.sessions.get(session).is_some_and(|session| !session.ending);
        let entry = self.regions.get_mut(&region.0).filter(|_| live);
        let Some(entry) = entry else {
            self.say(key, &Message::GiveBack(loan));
            self.forget_region(session, region);
            self.settle(session);
            return;
        };
        entry.in_hand = false;
        entry.arriving = true;
        entry.bytes = bytes;
        entry.links.abroad = Some(Abroad { connection: key, loan });
        connection.imports.insert(loan, Held { session, region, withdrawing: false });
        info!(connection = key, session, region = region.0, rights, loan, "a region is imported");
        // The request is under way since it was sent on: its session's hold is taken over.
        let pending = Pending::ImportLive { session, region: region.0, rights, tag };
        let token = self.pending.insert(pending) as u64;
        let memory = Memory { mapping: None, card: Some(memory) };
        let place = place(session);
        // A card that knows nothing of it has failed there, and its rails will be heard to have.
        self.break_rails_of(key, &mute);
        let add = |session| Command::AddPeerImport {
            region,
            session,
            bytes,
            rights,
            rails,
            memory,
            token,
        };
        self.order(add(place));
        self.set_apart_again(key, session);
    }

    /// A peer does not lend what was asked for.
    pub(super) fn denied(&mut self, key: usize, tag: u64, why: &Failure) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let Some(wanted) = connection.wants.remove(&tag) else {
            return self.lose_connection(key, "it denies what nobody wanted");
        };
        let detail = Detail::from_number(why.detail).unwrap_or(Detail::Peer);
        let session = wanted.session;
        info!(connection = key, session, why = why.text, "an import is denied");
        let secret = detail == Detail::Secret;
        if secret && let Some(session) = self.sessions.get_mut(session) {
            session.wrong_secrets += 1;
        }
        self.deny(wanted, &Refusal::new(why.errno, detail, why.text.clone()));
        let wrong = self.sessions.get(session).map_or(0, |session| session.wrong_secrets);
        if secret && wrong >= WRONG_SECRETS_MAX {
            self.evict(session, Detail::Secret, "ten wrong secrets");
        }
    }

    fn deny(&mut self, wanted: Wanted, why: &Refusal) {
        let Wanted { session, region, tag, .. } = wanted;
        self.forget_region(session, region);
        if self.settle(session) {
            self.fail(session, Kind::Import, tag, why);
        }
    }

    /// The connection is lost: every IMPORT that waits for it fails.
    pub(super) fn deny_all(&mut self, key: usize, why: &Refusal) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        for wanted in std::mem::take(&mut connection.wants).into_values() {
            self.deny(wanted, why);
        }
    }

    /// A peer withdraws what it lent: it is given back once no op here goes by it.
    pub(super) fn withdrawn(&mut self, key: usize, loan: u32) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        // One that is not known was given back just now: the two have crossed.
        let Some(held) = connection.imports.get_mut(&loan) else { return };
        if std::mem::replace(&mut held.withdrawing, true) {
            return;
        }
        let region = held.region;
        connection.withdrawing += 1;
        info!(connection = key, region = region.0, loan, "an import is withdrawn");
        let what = OrderFor::Withdraw { connection: key, loan };
        let token = self.pending.insert(Pending::Peers(what)) as u64;
        self.order(Command::Withdraw { region, token });
    }

    /// The connection is lost: no op may go by what was imported over it.
    pub(super) fn withdraw_all(&mut self, key: usize) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let all: Vec<u32> = connection.imports.keys().copied().collect();
        for loan in all {
            self.withdrawn(key, loan);
        }
    }

    /// No op goes by a withdrawn import any more.
    pub(super) fn withdrawal_over(&mut self, key: usize, loan: u32) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        connection.withdrawing -= 1;
        if let Some(held) = connection.imports.remove(&loan) {
            if let Some(place) = self.regions.get_mut(&held.region.0) {
                place.links.abroad = None;
            }
            info!(connection = key, region = held.region.0, loan, "an import is over");
            self.say(key, &Message::GiveBack(loan));
        }
        self.give_back_aparts(key);
        self.look_after(key);
    }

    /// A region is forgotten here: if it was an import of a peer's, it is given back.
    pub(in crate::control) fn give_back(&mut self, abroad: Abroad) {
        let Abroad { connection: key, loan } = abroad;
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if connection.imports.remove(&loan).is_none() {
            return warn!(connection = key, loan, "given back twice");
        }
        info!(connection = key, loan, "an import is given back");
        self.say(key, &Message::GiveBack(loan));
        self.give_back_aparts(key);
        self.look_after(key);
    }
}

/// By our cards, what comes by the pairs' numbers.
fn by_card(cards: &[u8], keys: &[(u8, Key)]) -> CardKeys {
    let mut all = CardKeys::default();
    for (pair, card) in (0..).zip(cards) {
        let of_it = keys.iter().filter(|(of, _)| *of == pair).map(|(_, key)| *key);
        all.put(*card, of_it.collect());
    }
    all
}

fn gone() -> Refusal {
    let text = "the other engine's keys do not cover what it lends";
    Refusal::new(errno::EPROTO, Detail::Peer, text)
}

fn wanted_by(session: usize, region: RegionId, tag: u64) -> Wanted {
    let (rights, since_ns) = (0, 0);
    Wanted { session, region, tag, rights, part: None, keys: Vec::new(), since_ns }
}
