//! What goes next, and how much may be in flight.
//!
//! [`Scheduler`] keeps the queued ops of a device and says which goes next; the windows of
//! [`credits`] say whether it may. The mode of a [`Policy`] decides the order.

pub mod ahead;
pub mod bound;
pub mod credits;
mod fair;
mod flows;
pub mod lanes;
mod owners;
pub mod pace;
pub mod policy;
mod rows;
mod run;
mod scheduler;
mod solo;
mod tent;
#[cfg(all(test, not(verbring_loom)))]
mod tests;
mod tree;
mod turns;

pub use policy::{Bounds, Contract, Mode, Policy};
pub use run::Run;
pub use scheduler::{Place, Scheduler, Shape};
