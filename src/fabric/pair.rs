//! The fabric of an engine with peers: the same-host copies, and queue pairs beside them.
//!
//! Rail 0 is [`Local`]; rails from 1 on are those of [`Rails`] under the same number, whose own
//! rail 0 is never adopted. Without queue pairs it is `Local` and one branch a call.
//!
//! A region of ours is known to both: by its mapping, and, once it is registered, by its keys. A
//! peer's is known to the card alone.

use std::sync::Arc;

use super::qp::provider::Provider;
use super::qp::{self, Rails};
use super::{Arrival, Done, Fabric, Limits, Local, Request, Room};
use crate::abi::Page;
use crate::shm::Mapping;

/// Same-host copies, and rails to peers if there is a device.
#[derive(Debug)]
pub struct Pair<P> {
    local: Local,
    rails: Option<Rails<P>>,
}

/// A region, as both fabrics see it.
#[derive(Debug, Default)]
pub struct Held {
    /// Ours: the memory itself.
    pub mapping: Option<Arc<Mapping>>,
    /// What the card knows of it: ours once it is registered, or a peer's.
    pub card: Option<qp::Memory>,
}

impl From<Arc<Mapping>> for Held {
    fn from(mapping: Arc<Mapping>) -> Self {
        Self { mapping: Some(mapping), card: None }
    }
}

impl<P: Provider> Pair<P> {
    /// Puts the two together.
    ///
    /// # Panics
    /// If there are more rails than a set of them can name ([`Pair::RAILS_MAX`]).
    #[must_use]
    pub fn new(local: Local, rails: Option<Rails<P>>) -> Self {
        let count = rails.as_ref().map_or(1, Fabric::rails);
        assert!(count <= Self::RAILS_MAX, "rails_max");
        Self { local, rails }
    }

    /// Most rails, rail 0 among them.
    pub const RAILS_MAX: u16 = 64;

    /// The rails to peers, for whoever adopts, connects and releases them.
    pub fn rails_mut(&mut self) -> Option<&mut Rails<P>> {
        self.rails.as_mut()
    }
}

impl<P: Provider> Fabric for Pair<P> {
    type Memory = Held;

    /// Those of rail 0.
    #[inline]
    fn limits(&self) -> Limits {
        self.local.limits()
    }

    fn attach(&mut self, region: u32, memory: Held) {
        if let Some(mapping) = memory.mapping {
            self.local.attach(region, mapping);
        }
        if let (Some(card), Some(rails)) = (memory.card, self.rails.as_mut()) {
            rails.attach(region, card);
        }
    }

    fn detach(&mut self, region: u32) -> Option<Held> {
        let mapping = self.local.detach(region);
        let card = self.rails.as_mut().and_then(|rails| rails.detach(region));
        let known = mapping.is_some() || card.is_some();
        known.then_some(Held { mapping, card })
    }

    fn set_home(&mut self, region: u32, memory: Held) {
        if let (Some(card), Some(rails)) = (memory.card, self.rails.as_mut()) {
            rails.set_home(region, card);
        }
    }

    fn read_pages(&self, region: u32, offset: u64, pages: &mut [Page]) -> bool {
        self.local.read_pages(region, offset, pages)
    }

    #[inline]
    fn post(&mut self, batch: &[Request]) -> usize {
        let Some(rails) = self.rails.as_mut() else { return self.local.post(batch) };
        let mut taken = 0;
        while taken < batch.len() {
            let near = batch[taken].rail == 0;
            let run = batch[taken..].iter().take_while(|request| (request.rail == 0) == near);
            let run = &batch[taken..taken + run.count()];
            let count = if near { self.local.post(run) } else { rails.post(run) };
            taken += count;
            if count < run.len() {
                break;
            }
        }
        taken
    }

    #[inline]
    fn poll(&mut self, now_ns: u64, done: &mut Vec<Done>) {
        self.local.poll(now_ns, done);
        if let Some(rails) = self.rails.as_mut() {
            rails.poll(now_ns, done);
        }
    }

    #[inline]
    fn poll_rails(&mut self, now_ns: u64, done: &mut Vec<Done>) {
        if let Some(rails) = self.rails.as_mut() {
            rails.poll(now_ns, done);
        }
    }

    fn room(&self, rail: u16) -> Room {
        match &self.rails {
            Some(rails) if rail > 0 => rails.room(rail),
            _ => self.local.room(rail),
        }
    }

    fn arrivals(&mut self, out: &mut Vec<Arrival>) {
        if let Some(rails) = self.rails.as_mut() {
            rails.arrivals(out);
        }
    }

    #[inline]
    fn rails(&self) -> u16 {
        self.rails.as_ref().map_or(1, Fabric::rails)
    }

    fn fabric_of(&self, rail: u16) -> u8 {
        match &self.rails {
            Some(rails) if rail > 0 => rails.fabric_of(rail),
            _ => self.local.fabric_of(rail),
        }
    }

    fn depth_of(&self, rail: u16) -> u32 {
        match &self.rails {
            Some(rails) if rail > 0 => rails.depth_of(rail),
            _ => self.local.depth_of(rail),
        }
    }

    fn card_of(&self, rail: u16) -> u8 {
        self.rails.as_ref().map_or(0, |rails| rails.card_of(rail))
    }

    fn share(&mut self, rails: u64) {
        if let Some(own) = self.rails.as_mut() {
            own.share(rails);
        }
    }

    fn part(&mut self, region: u32) {
        if let Some(rails) = self.rails.as_mut() {
            rails.part(region);
        }
    }

    fn merged(&self) -> u64 {
        self.rails.as_ref().map_or(0, Fabric::merged)
    }

    fn restless(&self) -> bool {
        self.rails.as_ref().is_some_and(Fabric::restless)
    }
}
