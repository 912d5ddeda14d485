//! Verbs: queue pairs of RDMA cards, through libibverbs.so.1, which is loaded at run time.
//!
//! So one binary serves machines with and without RDMA: without the library, a device or the right
//! to open one, [`open`] returns an error that says what to do, and `local` goes on. [`open`] makes
//! the two halves that the engine's thread and a control thread own: [`VerbsProvider`] and
//! [`VerbsControl`]; [`open_several`] makes one data path over several devices. Depth, signalling
//! and recovery are not here, but in [`crate::fabric::qp`].

#[cfg(feature = "ibverbs")]
mod bindings;
mod cards;
mod choose;
mod control;
mod device;
mod error;
mod events;
#[cfg(test)]
pub(crate) mod hollow;
mod provider;
mod sys;

pub use cards::{Card, Gid, GidKind, Port, card, cards, numa_node_of};
pub use choose::{Judged, Merits, Near, Obstacle, Wish, judge};
pub use control::{Effective, VerbsControl, VerbsSettings, open, open_all, open_several};
pub use device::device_names;
pub use error::VerbsError;
pub use events::AsyncEvent;
pub use provider::{VerbsPair, VerbsProvider};
