//! The ring as a moving thing: cursors, publication, the fate table, and going to sleep.
//!
//! [`EngineEnd`] and [`ClientEnd`] each own private heads and tails and see the shared words only
//! through [`Memory`]. What the other side wrote is a hint that is compared with the private
//! cursors; a value that cannot be is a [`Fault`] of this ring and nothing else.
//!
//! ```text
//!  client                                   engine
//!  sqe words (relaxed)                      sq_tail (acquire)          sync: sqe-visible
//!  sq_tail (release)          ------>       sqe words (relaxed), once
//!  cq_tail (acquire)                        cqe words (relaxed)        sync: cqe-visible
//!  cqe words (relaxed), once  <------       cq_tail (release)
//!
//!  sq_tail; fence; engine_flags?            NEED_WAKEUP; fence; sq_tail?   sync: engine-sleep
//!  bell_at; fence; cq_tail?                 cq_tail; fence; bell_at?       sync: client-sleep
//! ```
//!
//! **Invariants**: every slot is read once, word by word, between an acquire and a release of its
//! cursor; the engine never reads back what it wrote.
//! **Deliberately absent**: what an entry means; descriptors; clocks.
//! **Tests**: here with hostile words; `tests/loom.rs` for every ordering.

mod client_end;
mod engine_end;
#[cfg(not(verbring_loom))]
mod mapped;
mod memory;

pub use client_end::{ClientEnd, Verdict};
pub use engine_end::{EngineEnd, Fault};
#[cfg(not(verbring_loom))]
pub use mapped::{BadSegment, Mapped};
pub use memory::{Heap, Memory, Word};

use crate::sync::Ordering;

/// One ordering per sync point. Each can be weakened by `--cfg verbring_weak="..."`, and
/// `tests/run loom` requires loom to find a counterexample for every one.
pub(crate) mod order {
    use super::Ordering;

    // sync: sqe-visible, cqe-visible (release)
    #[cfg(not(verbring_weak = "publish"))]
    pub(crate) const PUBLISH: Ordering = Ordering::Release;
    #[cfg(verbring_weak = "publish")]
    pub(crate) const PUBLISH: Ordering = Ordering::Relaxed;

    // sync: sqe-visible, cqe-visible (acquire)
    #[cfg(not(verbring_weak = "observe"))]
    pub(crate) const OBSERVE: Ordering = Ordering::Acquire;
    #[cfg(verbring_weak = "observe")]
    pub(crate) const OBSERVE: Ordering = Ordering::Relaxed;

    // sync: fate-visible (release); its acquire is in `ClientEnd::verdict`.
    #[cfg(not(verbring_weak = "fate"))]
    pub(crate) const FATE: Ordering = Ordering::Release;
    #[cfg(verbring_weak = "fate")]
    pub(crate) const FATE: Ordering = Ordering::Relaxed;
}

/// The four full fences of the two sleep handshakes.
///
/// Each handshake is store-then-load on both sides, of two different words: whoever sleeps writes
/// "I sleep" and then looks for work; whoever makes work writes the work and then looks for
/// sleepers. Without a full fence between the two steps on *each* side, both loads may return the
/// old values, and the sleeper is never rung. Release and acquire order neither pair.
pub(crate) mod full_fence {
    use crate::sync::{Ordering, fence};

    /// The engine, between NEED_WAKEUP and its last look at `sq_tail`.
    #[inline]
    pub(crate) fn engine_sleeps() {
        if cfg!(not(verbring_weak = "engine_fence")) {
            fence(Ordering::SeqCst);
        }
    }

    /// The client, between `sq_tail` and its look at `engine_flags`.
    #[inline]
    pub(crate) fn client_published() {
        if cfg!(not(verbring_weak = "client_fence")) {
            fence(Ordering::SeqCst);
        }
    }

    /// The engine, between `cq_tail` and its look at `bell_at`.
    #[inline]
    pub(crate) fn engine_published() {
        if cfg!(not(verbring_weak = "bell_engine_fence")) {
            fence(Ordering::SeqCst);
        }
    }

    /// The client, between `bell_at` and its last look at `cq_tail`.
    #[inline]
    pub(crate) fn client_sleeps() {
        if cfg!(not(verbring_weak = "bell_client_fence")) {
            fence(Ordering::SeqCst);
        }
    }
}
