//! Regions across engines: what peers have of ours, what we have of theirs, and what they tell.
//!
//! A **loan** is a region of ours that a rail's peer may touch. The engine keeps no keys: it knows
//! which rails have a region, so that FLUSH with REVOKE and the region's end wait until none has
//! it any more, and so that a peer is believed only about what it was lent.
//!
//! A **peer import** is a region of theirs. It names itself as its target, so that epochs,
//! references and withdrawal are those of any region.
//!
//! **Invariants**: no loan begins once its region is revoked or going; a Withdraw is answered when
//! no request through its import is with the fabric.
//! **Deliberately absent**: names, secrets, keys, connections.

use crate::abi::{Detail, RIGHT_NOTIFY, errno};
use crate::fabric::{Arrival, Fabric};
use crate::ids::{RegionId, SessionId};
use crate::plant::{Plant, planted};
use crate::ring::Memory;

use super::lines::{RAILS_MAX, rails_below};
use super::tables::{Region, RegionKind};
use super::{Engine, Reply};

impl<F: Fabric, M: Memory> Engine<F, M> {
    pub(super) fn add_peer_import(
        &mut self,
        id: RegionId,
        session: SessionId,
        bytes: u64,
        (rights, rails): (u32, [u64; 3]),
    ) {
        let known = rails_below(self.fabric.rails());
        let named = |set: &u64| *set != 0 && *set & !known == 0;
        assert!(rails.iter().all(named), "an import by a rail that cannot be");
        for set in rails {
            self.abroad.join(set);
            self.fabric.share(set);
        }
        let epoch = self.regions[id.index() as usize].epoch.wrapping_add(1);
        self.add_region(id, session, bytes, RegionKind::Peer { epoch, rights, rails });
    }

    /// The peer takes back what is behind an import: as a revocation does, for this import alone.
    pub(super) fn begin_withdraw(&mut self, id: RegionId, token: u64) {
        let far = |region: &&mut Region| {
            let peer = matches!(region.kind, RegionKind::Peer { .. });
            region.id == Some(id) && peer && region.withdrawing.is_none()
        };
        let Some(region) = self.regions.get_mut(id.index() as usize).filter(far) else {
            let (errno, detail) = (errno::ENOENT, Detail::RemoteRegion);
            self.replies.push_back(Reply::Failed { token, errno, detail });
            return;
        };
        region.epoch = region.epoch.wrapping_add(1);
        region.withdrawing = Some(token);
        region.awaited = true;
        self.withdrawn += 1;
        self.purge();
        self.region_rested(id.index());
    }

    /// Answers those who wait for a region to be named by nobody, if it is so.
    #[cold]
    pub(super) fn region_rested(&mut self, index: u32) {
        let region = &mut self.regions[index as usize];
        if region.remote_refs == 0
            && let Some(token) = region.withdrawing.take()
        {
            region.awaited = region.removing.is_some();
            self.replies.push_back(Reply::Done { token });
        }
        let region = &self.regions[index as usize];
        if region.removing.is_some() && region.idle() {
            self.remove_region_now(index);
        }
    }

    /// A region of ours that is there, and not on its way out.
    fn own(&mut self, id: RegionId) -> Option<&mut Region> {
        self.regions.get_mut(id.index() as usize).filter(|region| {
            region.id == Some(id) && region.kind == RegionKind::Own && region.removing.is_none()
        })
    }

    pub(super) fn lend(
        &mut self,
        id: RegionId,
        rail: u16,
        rights: u32,
        heard: u32,
    ) -> Result<(), (i32, Detail)> {
        let rails = self.fabric.rails();
        let region = self.own(id).ok_or((errno::ESTALE, Detail::Revoked))?;
        if rail == 0 || rail >= rails {
            return Err((errno::EINVAL, Detail::None));
        }
        if heard != region.revocations {
            return Err((errno::ESTALE, Detail::Revoked));
        }
        region.lent |= 1 << rail;
        if rights & RIGHT_NOTIFY != 0 {
            region.lent_notify |= 1 << rail;
        }
        Ok(())
    }

    pub(super) fn take_loan_back(&mut self, id: RegionId, rail: u16) {
        let Some(region) = self.regions.get_mut(id.index() as usize) else { return };
        if region.id != Some(id) || rail >= RAILS_MAX || planted(Plant::LoanKept) {
            return;
        }
        region.lent &= !(1 << rail);
        region.lent_notify &= !(1 << rail);
        if region.awaited {
            self.region_rested(id.index());
        }
    }

    pub(super) fn set_home(
        &mut self,
        id: RegionId,
        rail: u16,
        memory: F::Memory,
    ) -> Result<(), (i32, Detail)> {
        let rails = self.fabric.rails();
        let region = self.own(id).ok_or((errno::ENOENT, Detail::LocalRegion))?;
        if rail == 0 || rail >= rails {
            return Err((errno::EINVAL, Detail::None));
        }
        region.home = rail;
        self.abroad.join(1 << rail);
        self.fabric.set_home(id.index(), memory);
        Ok(())
    }

    /// Hears what peers say they changed, a bounded number of times a turn.
    pub(super) fn hear_arrivals(&mut self) {
        let mut arrived = std::mem::take(&mut self.abroad.arrived);
        arrived.clear();
        self.fabric.arrivals(&mut arrived);
        for arrival in &arrived {
            let Arrival { rail, region, immediate } = *arrival;
            let id = RegionId(region);
            let lent = self.own(id).is_some_and(|region| region.lent_notify >> rail & 1 != 0);
            if lent {
                self.notify(id.index(), immediate);
            } else {
                self.strays += 1;
            }
        }
        self.abroad.arrived = arrived;
    }
}
