//! Cards that do nothing, for tests of engines that have some: what is posted goes nowhere.

use std::sync::Arc;

use super::device::{QueuePair, Queues, Registered};
use super::provider::{Inbox, VerbsPair, VerbsProvider};
use crate::fabric::qp::provider::Caps;
use crate::shm::{Mapping, PAGE_BYTES};

/// An engine's cards.
pub(crate) struct Hollow(Vec<Arc<Queues>>);

impl Hollow {
    pub(crate) fn new(cards: u8) -> Self {
        Self((0..cards).map(|card| Queues::hollow(&format!("card{card}"), 1 << 16)).collect())
    }

    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.0.len()).expect("few")
    }

    pub(crate) fn provider(&self) -> VerbsProvider {
        VerbsProvider::new(self.0.clone().into())
    }

    /// A queue pair of a card.
    pub(crate) fn pair(&self, card: u8, number: u32, caps: Caps) -> VerbsPair {
        let queues = &self.0[usize::from(card)];
        let shared = Arc::new(QueuePair::hollow(queues, number));
        let buffer = Arc::new(Mapping::anonymous(PAGE_BYTES).expect("memory"));
        let inbox = Inbox::new(buffer, Registered::hollow(queues), caps.receives);
        VerbsPair { shared, inbox, caps }
    }
}
