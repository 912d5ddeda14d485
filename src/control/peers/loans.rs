//! What is lent to the peer of one connection: regions of sessions here, under keys that admit what
//! was granted and no more.
//!
//! A loan is an export that the peer has taken up. Its region is registered once more for it, with
//! exactly the rights of the loan; loans of the same region and rights share that registration, and
//! the last one takes it along. The core knows a region as lent to a rail or not; that is ordered
//! before the peer is told of the loan, and taken back after the last key of the region is gone:
//! so whoever waits for the region in the core waits for its keys.
//!
//! ```text
//!  want -> Register (if no key fits) -> Lend -> Have ... give_back -> Deregister -> TakeBack
//!                                                 |
//!                               revoke -> Withdraw -> give_back -> as above
//! ```
//!
//! The connection's loss gives everything back, whatever was under way. While keys of a region are
//! being withdrawn nothing of it is lent anew.
//!
//! **Invariants**: a key is deregistered once, and only when no loan has it; a region is taken back
//! once for all its loans, if it was ever lent.
//! **Deliberately absent**: sockets, the card, names and secrets: all is values.

use std::collections::{BTreeMap, VecDeque};

use crate::abi;
use crate::control::Registered;
use crate::fabric::qp::provider::Access;
use crate::ids::RegionId;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoanAct {
    /// Register the region; answered by [`Loans::registered`].
    Register {
        /// Names it in the answer.
        slot: u32,
        /// The region.
        region: RegionId,
        /// What the peer may do with it.
        access: Access,
    },
    /// Order the core to lend the region on every rail; answered by [`Loans::lent`].
    Lend {
        /// Names it in the answer.
        loan: u32,
        /// The region.
        region: RegionId,
        /// Rights of this loan.
        rights: u32,
    },
    /// Tell the peer that it has it. The registration is [`Loans::registration`].
    Have {
        /// The loan.
        loan: u32,
        /// From its WANT.
        tag: u64,
    },
    /// Tell the peer that it cannot have it.
    No {
        /// From its WANT.
        tag: u64,
        /// Why not.
        why: NoLoan,
    },
    /// Tell the peer to give it back.
    Withdraw {
        /// The loan.
        loan: u32,
    },
    /// End a registration; answered by [`Loans::deregistered`].
    Deregister {
        /// Names it in the answer.
        slot: u32,
        /// The registration.
        id: u32,
    },
    /// Order the core to take the region back from every rail. No key of it is left.
    TakeBack {
        /// The region.
        region: RegionId,
    },
}

/// Why something cannot be lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoLoan {
    /// The region was revoked or released meanwhile, or earlier keys of it are being withdrawn.
    Revoked,
    /// The card could not register it.
    Card,
    /// The peer has as many loans as a connection may have.
    TooMany,
}

/// How far a loan has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It waits for its key.
    Registering,
    /// It waits for the core.
    Lending,
    /// The peer has it.
    Out,
    /// The peer is to give it back.
    Withdrawing,
}

#[derive(Clone, Copy, Debug)]
struct Loan {
    region: RegionId,
    rights: u32,
    slot: u32,
    tag: u64,
    stage: Stage,
    /// It was revoked before the peer had it.
    revoked: bool,
}

/// A registration of a region, for loans of the same rights.
#[derive(Debug)]
struct Slot {
    region: RegionId,
    access: Access,
    registration: Option<Registered>,
    loans: u32,
    /// The card could not.
    failed: bool,
    /// No loan may join: it failed, or is being withdrawn or ended.
    closed: bool,
}

/// A region of which something is lent, or was.
#[derive(Clone, Copy, Debug, Default)]
struct Lent {
    loans: u32,
    slots: u32,
    /// The core was asked to lend it.
    lent: bool,
    /// It was revoked: until all is back, nothing more.
    revoked: bool,
}

/// Everything that is lent over one connection.
#[derive(Debug, Default)]
pub(crate) struct Loans {
    loans: BTreeMap<u32, Loan>,
    slots: BTreeMap<u32, Slot>,
    regions: BTreeMap<RegionId, Lent>,
    next: u32,
    lost: bool,
    acts: VecDeque<LoanAct>,
}

/// Loans of one connection.
pub(crate) const LOANS_MAX: usize = 65_536;

/// What a peer with these rights may do to memory.
fn access(rights: u32) -> Access {
    let has = |right| rights & right != 0;
    Access {
        write: has(abi::RIGHT_WRITE),
        read: has(abi::RIGHT_READ),
        atomics: has(abi::RIGHT_ATOMIC),
    }
}

impl Loans {
    /// The next thing to be done, in order.
    pub(crate) fn act(&mut self) -> Option<LoanAct> {
        self.acts.pop_front()
    }

    /// Nothing is lent, and nothing is under way.
    pub(crate) fn over(&self) -> bool {
        self.regions.is_empty() && self.acts.is_empty()
    }

    /// Loans that the peer has, or is about to have.
    pub(crate) fn count(&self) -> usize {
        self.loans.len()
    }

    /// The peer is to give something back.
    #[cfg(test)]
    pub(crate) fn withdrawing(&self) -> bool {
        self.loans.values().any(|loan| loan.stage == Stage::Withdrawing)
    }

    /// What a loan that the peer is told of is registered as, with its region and rights.
    pub(crate) fn registration(&self, loan: u32) -> Option<(&Registered, RegionId, u32)> {
        let loan = self.loans.get(&loan)?;
        let registration = self.slots.get(&loan.slot)?.registration.as_ref()?;
        Some((registration, loan.region, loan.rights))
    }

    /// Regions that the core has lent, or was asked to lend, with the rights of all their loans;
    /// and whether they were revoked.
    pub(crate) fn lent_regions(&self) -> Vec<(RegionId, u32, bool)> {
        let lent = self.regions.iter().filter(|(_, entry)| entry.lent);
        let rights = |region| {
            let of_it = self.loans.values().filter(|loan| loan.region == region);
            of_it.fold(0, |rights, loan| rights | loan.rights)
        };
        lent.map(|(region, entry)| (*region, rights(*region), entry.revoked)).collect()
    }

    /// The peer wants a region, and may have it with these rights.
    pub(crate) fn want(&mut self, tag: u64, region: RegionId, rights: u32) {
        let lent = self.regions.get(&region).copied().unwrap_or_default();
        let refusal = match lent.revoked || self.lost {
            true => Some(NoLoan::Revoked),
            false => (self.loans.len() >= LOANS_MAX).then_some(NoLoan::TooMany),
        };
        if let Some(why) = refusal {
            return self.acts.push_back(LoanAct::No { tag, why });
        }
        let access = access(rights);
        let fits = |slot: &Slot| slot.region == region && slot.access == access && !slot.closed;
        let found = self.slots.iter().find(|(_, slot)| fits(slot));
        let (slot, ready) = match found {
            Some((number, slot)) => (*number, slot.registration.is_some()),
            None => (self.open_slot(region, access), false),
        };
        let loan = self.number();
        let stage = if ready { Stage::Lending } else { Stage::Registering };
        self.loans.insert(loan, Loan { region, rights, slot, tag, stage, revoked: false });
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.loans += 1;
        }
        let entry = self.regions.entry(region).or_default();
        entry.loans += 1;
        if ready {
            entry.lent = true;
            self.acts.push_back(LoanAct::Lend { loan, region, rights });
        }
    }

    fn number(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            let number = self.next;
            if !self.loans.contains_key(&number) && !self.slots.contains_key(&number) {
                return number;
            }
        }
    }

    fn open_slot(&mut self, region: RegionId, access: Access) -> u32 {
        let slot = self.number();
        let made =
            Slot { region, access, registration: None, loans: 0, failed: false, closed: false };
        self.slots.insert(slot, made);
        self.regions.entry(region).or_default().slots += 1;
        self.acts.push_back(LoanAct::Register { slot, region, access });
        slot
    }

    /// The card has registered a region, or could not: `None`.
    pub(crate) fn registered(&mut self, number: u32, registration: Option<Registered>) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        let waiting: Vec<u32> = self
            .loans
            .iter()
            .filter(|(_, loan)| loan.slot == number && loan.stage == Stage::Registering)
            .map(|(number, _)| *number)
            .collect();
        let failed = registration.is_none();
        slot.registration = registration;
        slot.failed = failed;
        slot.closed |= failed;
        if slot.loans == 0 {
            return self.close_slot(number);
        }
        for number in waiting {
            let Some(loan) = self.loans.get_mut(&number) else { continue };
            if failed {
                self.drop_loan(number, Some(NoLoan::Card));
            } else if loan.revoked {
                self.drop_loan(number, Some(NoLoan::Revoked));
            } else {
                loan.stage = Stage::Lending;
                let Loan { region, rights, .. } = *loan;
                self.regions.entry(region).or_default().lent = true;
                self.acts.push_back(LoanAct::Lend { loan: number, region, rights });
            }
        }
    }

    /// The core has lent a loan's region on every rail; or not on all, since the region is gone.
    pub(crate) fn lent(&mut self, number: u32, well: bool) {
        let Some(loan) = self.loans.get_mut(&number) else { return };
        if loan.stage != Stage::Lending {
            return;
        }
        if !well || loan.revoked {
            return self.drop_loan(number, Some(NoLoan::Revoked));
        }
        loan.stage = Stage::Out;
        let tag = loan.tag;
        self.acts.push_back(LoanAct::Have { loan: number, tag });
    }

    /// A region's exports were revoked, or it is being released: all that is lent of it comes back.
    pub(crate) fn revoke(&mut self, region: RegionId) {
        let Some(entry) = self.regions.get_mut(&region) else { return };
        entry.revoked = true;
        for slot in self.slots.values_mut().filter(|slot| slot.region == region) {
            slot.closed = true;
        }
        for (number, loan) in self.loans.iter_mut().filter(|(_, loan)| loan.region == region) {
            match loan.stage {
                Stage::Registering | Stage::Lending => loan.revoked = true,
                Stage::Out => {
                    loan.stage = Stage::Withdrawing;
                    self.acts.push_back(LoanAct::Withdraw { loan: *number });
                }
                Stage::Withdrawing => {}
            }
        }
    }

    /// The peer gives a loan back: nothing there touches it any more. False if it has no such loan.
    #[must_use]
    pub(crate) fn give_back(&mut self, number: u32) -> bool {
        let stage = self.loans.get(&number).map(|loan| loan.stage);
        let out = matches!(stage, Some(Stage::Out | Stage::Withdrawing));
        if out {
            self.drop_loan(number, None);
        }
        out
    }

    /// The connection is lost, and our queue pairs are reset: nothing can touch anything any more.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
        let all: Vec<(u32, Stage)> = self.loans.iter().map(|(n, loan)| (*n, loan.stage)).collect();
        for (number, stage) in all {
            match stage {
                Stage::Out | Stage::Withdrawing | Stage::Registering => {
                    self.drop_loan(number, None);
                }
                // The core's answer ends it.
                Stage::Lending => {
                    if let Some(loan) = self.loans.get_mut(&number) {
                        loan.revoked = true;
                    }
                }
            }
        }
    }

    fn drop_loan(&mut self, number: u32, no: Option<NoLoan>) {
        let Some(loan) = self.loans.remove(&number) else { return };
        if let Some(why) = no {
            self.acts.push_back(LoanAct::No { tag: loan.tag, why });
        }
        if let Some(entry) = self.regions.get_mut(&loan.region) {
            entry.loans -= 1;
        }
        let Some(slot) = self.slots.get_mut(&loan.slot) else { return };
        slot.loans -= 1;
        if slot.loans == 0 {
            self.close_slot(loan.slot);
        }
    }

    /// Nobody has a slot any more: its key ends. While it is being registered, that is waited for.
    fn close_slot(&mut self, number: u32) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        match &slot.registration {
            Some(registration) => {
                slot.closed = true;
                let id = registration.id;
                self.acts.push_back(LoanAct::Deregister { slot: number, id });
            }
            None if slot.failed => self.deregistered(number),
            None => {}
        }
    }

    /// A registration is over.
    pub(crate) fn deregistered(&mut self, number: u32) {
        let Some(slot) = self.slots.remove(&number) else { return };
        let Some(entry) = self.regions.get_mut(&slot.region) else { return };
        entry.slots -= 1;
        if entry.slots == 0 && entry.loans == 0 {
            if entry.lent {
                self.acts.push_back(LoanAct::TakeBack { region: slot.region });
            }
            self.regions.remove(&slot.region);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{RIGHT_NOTIFY, RIGHT_READ, RIGHT_WRITE};
    use crate::fabric::qp::CardKeys;
    use crate::fabric::qp::provider::Key;
    use crate::seeds::{Random, each_seed};

    /// What the card and the core hold, and what the peer was told: all that must be true.
    #[derive(Default)]
    struct World {
        loans: Loans,
        /// Asked of the card or the core, and not answered yet.
        cards: VecDeque<LoanAct>,
        cores: VecDeque<LoanAct>,
        /// By registration.
        keys: BTreeMap<u32, (RegionId, Access)>,
        lent: BTreeMap<RegionId, u32>,
        /// What the peer has, and what it is to give back.
        peer: BTreeMap<u32, (RegionId, u32)>,
        asked_back: Vec<u32>,
        answers: BTreeMap<u64, bool>,
        next_key: u32,
    }

    impl World {
        fn act(&mut self) {
            while let Some(act) = self.loans.act() {
                match act {
                    LoanAct::Register { .. } | LoanAct::Deregister { .. } => {
                        self.cards.push_back(act);
                    }
                    LoanAct::Lend { .. } => self.cores.push_back(act),
                    LoanAct::TakeBack { region } => {
                        let keys = self.keys.values().filter(|(of, _)| *of == region).count();
                        assert_eq!(keys, 0, "taken back while keys admit something");
                        self.cores.push_back(act);
                    }
                    LoanAct::Have { loan, tag } => {
                        let Some((registration, region, rights)) = self.loans.registration(loan)
                        else {
                            panic!("a loan without a key");
                        };
                        let key = self.keys[&registration.id];
                        assert_eq!(key, (region, access(rights)), "a key that admits other things");
                        assert!(self.lent.contains_key(&region), "told before the core was");
                        assert_eq!(self.answers.insert(tag, true), None);
                        self.peer.insert(loan, (region, rights));
                    }
                    LoanAct::No { tag, .. } => {
                        assert_eq!(self.answers.insert(tag, false), None);
                    }
                    LoanAct::Withdraw { loan } => {
                        assert!(self.peer.contains_key(&loan));
                        self.asked_back.push(loan);
                    }
                }
            }
        }

        fn card(&mut self, well: bool) {
            match self.cards.pop_front() {
                Some(LoanAct::Register { slot, region, access }) => {
                    let registration = well.then(|| {
                        self.next_key += 1;
                        self.keys.insert(self.next_key, (region, access));
                        let (offset, address) = (0, 4096);
                        let key = Key { offset, bytes: 1, address, lkey: 0, rkey: self.next_key };
                        let keys = CardKeys::first(Box::new([key]));
                        Registered { id: self.next_key, keys }
                    });
                    self.loans.registered(slot, registration);
                }
                Some(LoanAct::Deregister { slot, id }) => {
                    assert!(self.keys.remove(&id).is_some(), "deregistered twice");
                    self.loans.deregistered(slot);
                }
                _ => {}
            }
            self.act();
        }

        fn core(&mut self, well: bool) {
            match self.cores.pop_front() {
                Some(LoanAct::Lend { loan, region, rights }) => {
                    if well {
                        *self.lent.entry(region).or_default() |= rights;
                    }
                    self.loans.lent(loan, well);
                }
                Some(LoanAct::TakeBack { region }) => {
                    self.lent.remove(&region);
                }
                _ => {}
            }
            self.act();
        }

        fn give_back(&mut self, loan: u32) {
            self.peer.remove(&loan);
            self.asked_back.retain(|other| *other != loan);
            assert!(self.loans.give_back(loan));
            self.act();
        }

        fn settle(&mut self) {
            for _ in 0..1_000 {
                self.card(true);
                self.core(true);
                if let Some(loan) = self.asked_back.first() {
                    self.give_back(*loan);
                }
            }
        }
    }

    fn region(index: u32) -> RegionId {
        RegionId::new(1, index)
    }

    #[test]
    fn keys_are_shared_by_loans_of_the_same_rights_alone() {
        let mut world = World::default();
        for (tag, rights) in [(1, RIGHT_READ), (2, RIGHT_READ | RIGHT_NOTIFY), (3, RIGHT_WRITE)] {
            world.loans.want(tag, region(1), rights);
            world.act();
        }
        world.settle();
        assert_eq!(world.answers.values().filter(|had| **had).count(), 3);
        assert_eq!(world.keys.len(), 2, "one for reading, one for writing");
        let all: Vec<u32> = world.peer.keys().copied().collect();
        world.give_back(all[0]);
        world.settle();
        assert_eq!((world.keys.len(), world.lent.len()), (2, 1), "another loan has that key");
        world.give_back(all[1]);
        world.settle();
        assert_eq!((world.keys.len(), world.lent.len()), (1, 1));
        world.give_back(all[2]);
        world.settle();
        assert_eq!((world.keys.len(), world.lent.len()), (0, 0));
        assert!(world.loans.over());
    }

    #[test]
    fn what_was_revoked_comes_back_before_it_is_lent_again() {
        let mut world = World::default();
        world.loans.want(1, region(1), RIGHT_READ);
        world.act();
        world.settle();
        world.loans.want(2, region(1), RIGHT_WRITE);
        world.act();
        world.loans.revoke(region(1));
        world.loans.want(3, region(1), RIGHT_READ);
        world.act();
        assert_eq!(world.answers.get(&3), Some(&false));
        assert!(world.loans.withdrawing());
        world.settle();
        assert_eq!(world.answers.get(&2), Some(&false));
        assert!(world.loans.over() && world.keys.is_empty() && world.lent.is_empty());
        world.loans.want(4, region(1), RIGHT_READ);
        world.act();
        world.settle();
        assert_eq!(world.answers.get(&4), Some(&true));
    }

    #[test]
    fn a_peer_gives_back_only_what_it_has() {
        let mut world = World::default();
        world.loans.want(1, region(1), RIGHT_READ);
        world.act();
        for loan in 0..10 {
            assert!(!world.loans.give_back(loan), "not told of it yet");
        }
        world.settle();
        let loan = *world.peer.keys().next().unwrap();
        world.give_back(loan);
        assert!(!world.loans.give_back(loan), "twice");
    }

    /// Any order of wants, answers, refusals, revocations and returns, then the end of the
    /// connection: each want is answered once, and at the end no key and no loan is left.
    #[test]
    fn whatever_happens_nothing_is_left() {
        each_seed(2_000, |seed| {
            let mut random = Random::new(seed);
            let mut world = World::default();
            let mut tag = 0;
            for _ in 0..200 {
                match random.below(10) {
                    0..3 => {
                        tag += 1;
                        let rights = 1 + random.below32(15);
                        world.loans.want(tag, region(random.below32(3)), rights);
                        world.act();
                    }
                    3..5 => world.card(random.chance(90)),
                    5..7 => world.core(random.chance(90)),
                    7 => {
                        world.loans.revoke(region(random.below32(3)));
                        world.act();
                    }
                    _ => {
                        let held: Vec<u32> = world.peer.keys().copied().collect();
                        if !held.is_empty() {
                            world.give_back(random.pick(&held));
                        }
                    }
                }
            }
            if random.chance(50) {
                world.settle();
                assert_eq!(world.answers.len() as u64, tag, "a want without an answer");
            }
            world.loans.lose();
            world.act();
            for _ in 0..400 {
                world.card(true);
                world.core(true);
            }
            assert!(world.loans.over());
            assert!(world.keys.is_empty() && world.lent.is_empty());
        });
    }
}
