//! Tests of the scheduler as a whole.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod orders;
mod reference;
mod stock;
mod tent;
mod whole;
