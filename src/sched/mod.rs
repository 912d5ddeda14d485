//! What goes next, and how much may be in flight.
//!
//! Plain so far: three lanes in strict order, one window in ops and bytes for the device.

pub mod bound;
pub mod credits;
pub mod lanes;
pub mod policy;

pub use policy::{Bounds, Contract, Mode, Policy};
