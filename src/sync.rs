//! The atomics of everything that is model-checked: `core`'s, or loom's under `verbring_loom`.
//!
//! The cfg carries our name, so that a loom build does not switch other crates to loom.
//! Loom models `fence(SeqCst)` but not SeqCst accesses; the handshakes here use fences only.

#[cfg(not(verbring_loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(verbring_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
