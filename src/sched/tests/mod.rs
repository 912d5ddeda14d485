//! Tests of the scheduler as a whole.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod stock;
mod tent;
mod whole;
