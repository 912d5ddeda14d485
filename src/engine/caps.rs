//! The bound on what one uid has posted of class high at once.
//!
//! It holds over all devices: this host's own and all cards together. When the next request of an
//! op would pass it, all high ops of its uid leave the turn, on all devices, and nobody else does.
//! They come back when that request has room, or nothing of the uid's high class is posted.

use crate::abi::Class;
use crate::fabric::Fabric;
use crate::plant::{Plant, planted};
use crate::ring::Memory;

use super::Engine;

impl<F: Fabric, M: Memory> Engine<F, M> {
    /// True if so many bytes more of an op may be posted, as far as its uid's high class goes.
    #[inline]
    pub(super) fn admits_high(&self, slot: u32, bytes: u32) -> bool {
        self.high_owner(slot).is_none_or(|owner| self.owners[owner as usize].admits_high(bytes))
    }

    /// A request of an op goes to the fabric.
    #[inline]
    pub(super) fn took_high(&mut self, slot: u32, bytes: u32) {
        if let Some(owner) = self.high_owner(slot) {
            self.owners[owner as usize].high += u64::from(bytes);
        }
    }

    /// A request of an op is no more with the fabric, in whatever way.
    #[inline]
    pub(super) fn gave_high(&mut self, slot: u32, bytes: u32) {
        let Some(at) = self.high_owner(slot) else { return };
        let owner = &mut self.owners[at as usize];
        owner.high -= if planted(Plant::HighKept) { 0 } else { u64::from(bytes) };
        if owner.wants_high.is_some_and(|wanted| owner.admits_high(wanted)) {
            owner.wants_high = None;
            self.lanes.uncap(at);
            self.abroad.queue.uncap(at);
        }
    }

    /// The next request of an op, of so many bytes, would pass the bound: the high ops of its uid
    /// are out of turn from now on. False if they were already.
    #[cold]
    pub(super) fn cap_high(&mut self, slot: u32, bytes: u32) -> bool {
        let Some(at) = self.high_owner(slot) else { return false };
        let owner = &mut self.owners[at as usize];
        if owner.wants_high.is_some() {
            return false;
        }
        owner.wants_high = Some(bytes);
        self.lanes.cap(at);
        self.abroad.queue.cap(at);
        true
    }

    /// The owner of an op, if that is of class high. One that has aged is not.
    #[inline]
    fn high_owner(&self, slot: u32) -> Option<u32> {
        let record = &self.ledger[slot];
        let high = record.op.class == Class::High;
        high.then(|| self.sessions[record.session.0 as usize].owner)
    }
}
