//! Imports of peers that change their rails: ops follow one by one.
//!
//! What is queued is found to be in the wrong line when it is first there, by the same look as what
//! was withdrawn ([`Record::checked`](crate::ledger::Record)), and by a walk over the records. An
//! op of which requests are with the fabric stays until none is: its line's window counts them.
//! What comes back undone follows at once.
//!
//! **Invariants**: no request is posted by a rail that its op's import has left, but for further
//! slices of an op of which some are under way there.

use crate::abi::{Detail, errno};
use crate::fabric::Fabric;
use crate::ids::RegionId;
use crate::ledger::{Aside, NIL};
use crate::ring::Memory;

use super::lines::{line_of, rails_below};
use super::tables::{Region, RegionKind};
use super::{Engine, Reply};

impl<F: Fabric, M: Memory> Engine<F, M> {
    pub(super) fn reroute(&mut self, id: RegionId, rails: [u64; 3]) -> Result<(), (i32, Detail)> {
        let known = rails_below(self.fabric.rails());
        assert!(rails.iter().all(|set| *set != 0 && *set & !known == 0), "rails that cannot be");
        let index = id.index();
        let stays = |region: &&mut Region| {
            region.id == Some(id) && region.removing.is_none() && region.withdrawing.is_none()
        };
        let region = self.regions.get_mut(index as usize).filter(stays);
        let Some(Region { kind: RegionKind::Peer { rails: now, .. }, .. }) = region else {
            return Err((errno::ENOENT, Detail::RemoteRegion));
        };
        *now = rails;
        for set in rails {
            self.abroad.join(set);
            self.fabric.share(set);
        }
        self.fabric.part(index);
        // So that what was taken before is looked at once more.
        self.withdrawn += 1;
        self.purge();
        Ok(())
    }

    /// Takes a queued op to the line of its import; false if it is there, or cannot go yet.
    #[cold]
    pub(super) fn divert(&mut self, slot: u32) -> bool {
        let record = &self.ledger[slot];
        if record.in_fabric > 0 || record.line == line_of(&self.regions, &record.op) {
            return false;
        }
        self.abroad.remove(&mut self.ledger, slot);
        self.follow_import(slot);
        if self.ledger[slot].returned == NIL {
            self.ledger[slot].aside = Aside::No;
            self.abroad.queue.push(&mut self.ledger, slot);
        } else {
            self.abroad.push_returned(&mut self.ledger, slot, false);
        }
        true
    }

    /// Has an op that is in no lane go by the rails of its import, if nothing of it is under way.
    pub(super) fn follow_import(&mut self, slot: u32) {
        let record = &mut self.ledger[slot];
        if record.in_fabric == 0 && record.checked != self.withdrawn {
            record.line = line_of(&self.regions, &record.op);
            record.rail = record.line;
        }
    }

    pub(super) fn begin_clear(&mut self, token: u64) {
        if self.abroad() {
            self.abroad.purge = Some(0);
            self.abroad.clearing.push(token);
        } else {
            self.replies.push_back(Reply::Done { token });
        }
    }

    /// All records were looked at.
    pub(super) fn end_clear(&mut self) {
        for token in self.abroad.clearing.drain(..) {
            self.replies.push_back(Reply::Done { token });
        }
    }
}
