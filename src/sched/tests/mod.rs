//! Tests of the scheduler as a whole.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod fairness;
mod order;
mod orders;
mod reference;
mod room;
mod run;
mod shares;
mod stock;
mod tent;
mod whole;
