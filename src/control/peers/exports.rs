//! What sessions here export, as peers take it up: WANT, the loan that comes of it, and its end.
//! And what an export with atomics needs before anybody may have it.

use subtle::ConstantTimeEq;
use tracing::{debug, info, warn};

use super::connections::failure;
use super::loans::{LoanAct, NoLoan};
use super::message::{Have, KEYS_A_MESSAGE, KEYS_MAX, Message, Want};
use super::{CardFor, OrderFor, Phase, Region};
use crate::abi::{Detail, Export, Kind, RIGHT_ATOMIC, errno};
use crate::clock;
use crate::control::Registered;
use crate::control::card::{CardDone, CardWork};
use crate::control::registrations;
use crate::control::server::{Pending, Server};
use crate::control::sessions::WRONG_SECRETS_MAX;
use crate::control::wire::{self, Refusal};
use crate::engine::{Command, Reply};
use crate::fabric::Held as Memory;
use crate::fabric::qp::provider::{Access, Key};
use crate::fabric::qp::{self, CARDS_MAX};
use crate::ids::RegionId;
use crate::ring::Mapped;

/// Uids that may have shown as many wrong secrets as they may over one connection.
const GUESSERS_MAX: usize = 64;
/// Uids whose wrong secrets are counted over one connection: the peer says whom it asks for.
const ASKERS_MAX: usize = 1_024;

impl Server {
    /// A peer wants an export of a session here.
    pub(super) fn wanted(&mut self, key: usize, want: &Want) {
        match self.judge_want(key, want) {
            Ok((region, rights)) => {
                if let Some(connection) = self.peers.connections.get_mut(key) {
                    connection.loans.want(want.tag, region, rights);
                }
                self.drive_loans(key);
            }
            Err(refusal) => {
                info!(connection = key, asker = want.asker, %refusal, "an export is not lent");
                self.say(key, &Message::No(want.tag, failure(&refusal)));
                let guessed = self.peers.connections.get(key).is_some_and(|connection| {
                    let wrong = &connection.wrong_secrets;
                    let done = |wrong: &&u32| **wrong >= WRONG_SECRETS_MAX;
                    wrong.len() > ASKERS_MAX || wrong.values().filter(done).count() >= GUESSERS_MAX
                });
                if guessed {
                    self.lose_connection(key, "too many wrong secrets");
                }
            }
        }
    }

    fn judge_want(&mut self, key: usize, want: &Want) -> Result<(RegionId, u32), Refusal> {
        let name = wire::name(&want.name)?;
        let Some(connection) = self.peers.connections.get_mut(key) else {
            return Err(Refusal::new(errno::EHOSTDOWN, Detail::Peer, "the connection is lost"));
        };
        let asker = want.asker;
        let wrong = connection.wrong_secrets.get(&asker).copied().unwrap_or(0);
        if wrong >= WRONG_SECRETS_MAX {
            let text = format!("uid {asker} has shown {wrong} wrong secrets over this connection");
            return Err(Refusal::new(errno::EACCES, Detail::Secret, text));
        }
        let uid = want.uid;
        let entry = self.exports.get(&(uid, name.to_string())).ok_or_else(|| {
            let text = format!("uid {uid} exports nothing under the name {name:?} there");
            Refusal::new(errno::ENOENT, Detail::Name, text)
        })?;
        if !bool::from(entry.secret.ct_eq(&want.secret)) {
            *connection.wrong_secrets.entry(asker).or_default() += 1;
            let text = format!("the secret for {name:?} is wrong; ten wrong ones end the session");
            return Err(Refusal::new(errno::EACCES, Detail::Secret, text));
        }
        // They go by card 0 here, or they would not exclude those of others.
        let atomics = if connection.with_ours.is_some() { RIGHT_ATOMIC } else { 0 };
        let offered = entry.rights & !(RIGHT_ATOMIC ^ atomics);
        let rights = if want.rights == 0 { offered } else { want.rights };
        if rights & !entry.rights != 0 {
            let text = format!("rights {rights:#x} are wanted, {:#x} are offered", entry.rights);
            return Err(Refusal::new(errno::EACCES, Detail::Rights, text));
        }
        if rights == 0 || rights & !offered != 0 {
            let text = "atomics on it go by the first of its engine's cards, to which no rail of \
                        this connection leads: import it without RIGHT_ATOMIC, or have the cards \
                        of one network first in verbs_device at both engines";
            return Err(Refusal::new(errno::EOPNOTSUPP, Detail::Rights, text));
        }
        Ok((entry.region, rights))
    }

    /// Does what the loans of a connection ask for.
    pub(super) fn drive_loans(&mut self, key: usize) {
        while let Some(connection) = self.peers.connections.get_mut(key)
            && let Some(act) = connection.loans.act()
        {
            debug!(connection = key, ?act, "loans");
            match act {
                LoanAct::Register { slot, region, access } => {
                    self.register_loan(key, slot, region, access);
                }
                LoanAct::Lend { loan, region, rights } => self.lend(key, loan, region, rights),
                LoanAct::Have { loan, tag } => self.say_have(key, loan, tag),
                LoanAct::No { tag, why } => {
                    info!(connection = key, ?why, "an export is not lent");
                    self.say(key, &Message::No(tag, failure(&no_loan(why))));
                }
                LoanAct::Withdraw { loan } => {
                    if connection.phase != Phase::Lost {
                        connection.withdrawn.asked(loan, clock::now_ns());
                    }
                    info!(connection = key, loan, "a loan is withdrawn");
                    self.say(key, &Message::Withdraw(loan));
                }
                LoanAct::Deregister { slot, id } => {
                    let what = CardFor::LoanOver { connection: key, slot };
                    let work = CardWork::Deregister { id };
                    self.ask_card(work, registrations::CardFor::Peers(what));
                }
                LoanAct::TakeBack { region } => {
                    for rail in connection.all_rails().collect::<Vec<_>>() {
                        let token = self.pending.insert(Pending::Peers(OrderFor::Nothing)) as u64;
                        self.order(Command::TakeBack { region, rail, token });
                    }
                }
            }
        }
        if self.peers.connections.get(key).is_some_and(|it| it.phase == Phase::Lost) {
            self.look_after(key);
        }
    }

    fn register_loan(&mut self, key: usize, slot: u32, region: Region, access: Access) {
        let memory = self.regions.get(&region.0).and_then(|place| place.keep.clone());
        let Some(memory) = memory else {
            if let Some(connection) = self.peers.connections.get_mut(key) {
                connection.loans.registered(slot, None);
            }
            return;
        };
        let what = CardFor::Loan { connection: key, slot };
        let work = CardWork::Register { memory, access };
        self.ask_card(work, registrations::CardFor::Peers(what));
    }

    fn lend(&mut self, key: usize, loan: u32, region: Region, rights: u32) {
        // What the core has said of the region is known here before the loan was decided on.
        let heard = self.regions.get(&region.0).map_or(0, |place| place.links.revocations);
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let rails: Vec<u16> =
            connection.rails.iter().copied().chain(connection.aparts.lent()).collect();
        connection.lends.insert(loan, (rails.len(), true));
        for rail in rails {
            let what = OrderFor::Lend { connection: key, loan };
            let token = self.pending.insert(Pending::Peers(what)) as u64;
            self.order(Command::Lend { region, rail, rights, heard, token });
        }
    }

    /// The engine has lent a region to one of a connection's rails, or not.
    pub(super) fn lent(&mut self, key: usize, loan: u32, well: bool) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        let Some((due, all)) = connection.lends.get_mut(&loan) else { return };
        *due -= 1;
        *all &= well;
        let (due, all) = (*due, *all);
        if due == 0 {
            connection.lends.remove(&loan);
            connection.loans.lent(loan, all);
            self.drive_loans(key);
        }
    }

    fn say_have(&mut self, key: usize, loan: u32, tag: u64) {
        let Some(connection) = self.peers.connections.get(key) else { return };
        let Some((registration, region, rights)) = connection.loans.registration(loan) else {
            return;
        };
        let bytes = self.regions.get(&region.0).map_or(0, |place| place.bytes);
        // The peer has no rails on other cards, and knows those by their pairs' numbers.
        let keys: Vec<(u8, Key)> = (0..)
            .zip(&connection.cards)
            .flat_map(|(pair, card)| {
                registration.keys.of(*card).iter().map(move |key| (pair, *key))
            })
            .collect();
        let keys_total = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        let parts: Vec<Have> = (0..)
            .step_by(KEYS_A_MESSAGE)
            .zip(keys.chunks(KEYS_A_MESSAGE))
            .map(|(first, keys)| {
                let (region, keys) = (region.0, keys.to_vec());
                Have { tag, loan, region, bytes, rights, keys_total, first, keys }
            })
            .collect();
        info!(connection = key, region = region.0, rights, loan, "a region is lent");
        for part in parts {
            self.say(key, &Message::Have(part));
        }
    }

    /// A peer gives something back.
    pub(super) fn given_back(&mut self, key: usize, loan: u32) {
        let Some(connection) = self.peers.connections.get_mut(key) else { return };
        if !connection.loans.give_back(loan) {
            return self.lose_connection(key, "it gives back what it does not have");
        }
        connection.withdrawn.came_back(loan);
        info!(connection = key, loan, "a loan is given back");
        self.drive_loans(key);
    }

    /// The card's thread has registered a region for a loan, or not.
    pub(super) fn loan_registered(&mut self, key: usize, slot: u32, done: CardDone) {
        let registration = match done {
            CardDone::Registered(registration) => Some(registration),
            CardDone::Failed(error) => {
                warn!(connection = key, %error, "a region cannot be registered for a peer");
                None
            }
            _ => None,
        };
        // One that no message can name is of no use; it ends here.
        let named = |it: &Registered| {
            let count: usize = (0..).take(CARDS_MAX).map(|card| it.keys.of(card).len()).sum();
            count <= KEYS_MAX as usize
        };
        let (registration, unnamed) = match registration {
            Some(registration) if !named(&registration) => (None, Some(registration.id)),
            other => (other, None),
        };
        if let Some(id) = unnamed {
            warn!(connection = key, "a region has more pieces than a peer can be told of");
            self.end_registration(id);
        }
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.loans.registered(slot, registration);
        }
        self.drive_loans(key);
    }

    /// A loan's registration has ended.
    pub(super) fn loan_over(&mut self, key: usize, slot: u32, done: CardDone) {
        if let CardDone::Failed(error) = done {
            warn!(connection = key, %error, "a registration for a peer did not end");
        }
        if let Some(connection) = self.peers.connections.get_mut(key) {
            connection.loans.deregistered(slot);
        }
        self.drive_loans(key);
    }

    /// The engine says that a region was revoked: what is lent of it comes back.
    pub(in crate::control) fn region_revoked(&mut self, region: RegionId) {
        if let Some(place) = self.regions.get_mut(&region.0) {
            place.links.revocations = place.links.revocations.wrapping_add(1);
        }
        let all: Vec<usize> = self.peers.connections.iter().map(|(key, _)| key).collect();
        for key in all {
            if let Some(connection) = self.peers.connections.get_mut(key) {
                connection.loans.revoke(region);
            }
            self.drive_loans(key);
        }
    }

    /// True if an export must wait until atomics on its region go by way of the card; then it is
    /// asked for, and the EXPORT goes on once they do.
    ///
    /// # Errors
    /// A [`Refusal`] if they cannot.
    pub(in crate::control) fn comes_home(
        &mut self,
        session: usize,
        request: &Export,
    ) -> Result<bool, Refusal> {
        if self.card.is_none() || request.rights & RIGHT_ATOMIC == 0 {
            return Ok(false);
        }
        let Some(place) = self.regions.get(&request.region) else { return Ok(false) };
        if place.links.at_home {
            return Ok(false);
        }
        let memory = place.keep.clone().filter(|_| self.home_rail().is_some());
        let Some(memory) = memory else {
            let text = "atomics cannot be offered: the card's own queue pair has failed (see the \
                        log); export without RIGHT_ATOMIC, or serve with verbs = off";
            return Err(Refusal::new(errno::EIO, Detail::Rights, text));
        };
        self.hold(session);
        let what = CardFor::Home { session, request: Box::new(*request) };
        let access = Access { write: false, read: false, atomics: true };
        let work = CardWork::Register { memory, access };
        self.ask_card(work, registrations::CardFor::Peers(what));
        Ok(true)
    }

    /// The card's thread has registered a region for atomics, or not.
    pub(super) fn home_registered(&mut self, session: usize, request: Box<Export>, done: CardDone) {
        let region = RegionId(request.region);
        let rail = self.home_rail();
        let registration = match done {
            CardDone::Registered(registration) => registration,
            CardDone::Failed(error) => {
                let text = format!("the region cannot be registered for atomics: {error}");
                return self.export_failed(session, &request, errno::ENOMEM, &text);
            }
            _ => return self.export_failed(session, &request, errno::EIO, "no registration"),
        };
        let place = self.regions.get_mut(&region.0).filter(|place| !place.removing);
        let memory = qp::Memory::peer(registration.keys.clone(), region.0);
        let (Some(place), Some(rail), Some(memory)) = (place, rail, memory) else {
            self.end_registration(registration.id);
            let text = "the region was released just now, or the card has failed";
            return self.export_failed(session, &request, errno::ESTALE, text);
        };
        place.links.home = Some(registration);
        let what = OrderFor::Home { session, request };
        let token = self.pending.insert(Pending::Peers(what)) as u64;
        let memory = Memory { mapping: None, card: Some(memory) };
        self.order(Command::SetHome { region, rail, memory, token });
    }

    /// Ends a registration that nobody waits for.
    pub(in crate::control) fn end_registration(&mut self, id: u32) {
        let what = registrations::CardFor::Peers(CardFor::Unused);
        self.ask_card(CardWork::Deregister { id }, what);
    }

    fn at_home(&mut self, session: usize, request: &Export, reply: &Reply<Memory, Mapped>) {
        if let Reply::Failed { errno, .. } = *reply {
            let place = self.regions.get_mut(&request.region);
            if let Some(home) = place.and_then(|place| place.links.home.take()) {
                self.end_registration(home.id);
            }
            let text = "the region was released just now, or the card has failed";
            return self.export_failed(session, request, errno, text);
        }
        if let Some(place) = self.regions.get_mut(&request.region) {
            place.links.at_home = true;
            debug!(region = request.region, "atomics on a region go by way of the card");
        }
        if self.settle(session)
            && let Err(refusal) = self.export(session, request)
        {
            self.fail(session, Kind::Export, request.head.tag, &refusal);
        }
    }

    fn export_failed(&mut self, session: usize, request: &Export, errno: i32, text: &str) {
        if self.settle(session) {
            let refusal = Refusal::new(errno, Detail::LocalRegion, text);
            self.fail(session, Kind::Export, request.head.tag, &refusal);
        }
    }

    /// The card's thread has done something for peers.
    pub(in crate::control) fn card_did_for_peers(&mut self, what: CardFor, done: CardDone) {
        match what {
            CardFor::Rail { rail, step } => self.rail_worked(rail, step, done),
            CardFor::Loan { connection, slot } => self.loan_registered(connection, slot, done),
            CardFor::LoanOver { connection, slot } => self.loan_over(connection, slot, done),
            CardFor::Home { session, request } => self.home_registered(session, request, done),
            CardFor::Addresses { card } => self.card_has_addresses(card, done),
            CardFor::Unused => {
                if let CardDone::Failed(error) = done {
                    warn!(%error, "a registration did not end");
                }
            }
        }
    }

    /// The engine has done something for peers.
    pub(in crate::control) fn engine_did_for_peers(
        &mut self,
        what: OrderFor,
        reply: &Reply<Memory, Mapped>,
    ) {
        let well = matches!(reply, Reply::Done { .. });
        match what {
            OrderFor::Lend { connection, loan } => self.lent(connection, loan, well),
            OrderFor::Withdraw { connection, loan } => self.withdrawal_over(connection, loan),
            OrderFor::Home { session, request } => self.at_home(session, &request, reply),
            OrderFor::Clear { connection, at } => self.apart_cleared(connection, at),
            OrderFor::Nothing => {}
        }
    }
}

fn no_loan(why: NoLoan) -> Refusal {
    match why {
        NoLoan::Revoked => {
            let text = "the region was revoked or released just now; try again";
            Refusal::new(errno::ESTALE, Detail::Revoked, text)
        }
        NoLoan::Card => {
            let text = "the other engine's card cannot register the region: see its log";
            Refusal::new(errno::ENOMEM, Detail::None, text)
        }
        NoLoan::TooMany => {
            let text = format!("{} imports are out over this connection", super::loans::LOANS_MAX);
            Refusal::new(errno::EDQUOT, Detail::Quota, text)
        }
    }
}
