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
//!
//!                                           accepted (release)         sync: fate-entry
//!  sq_head (acquire)                        sq_head (release)          sync: fate-visible
//!  entry (acquire)            <------       posted (release); fence; the effect
//!                                           cq_tail; freed (release)
//! ```
//!
//! **Invariants**: every slot is read once, word by word, between an acquire and a release of its
//! cursor; the engine never reads back what it wrote.
//! **Deliberately absent**: what an entry means; descriptors; clocks.
//! **Tests**: here with hostile words; `tests/loom.rs` for every ordering.

mod client_end;
mod engine_end;
mod kept;
#[cfg(not(verbring_loom))]
mod mapped;
mod memory;

pub use client_end::{ClientEnd, Verdict};
pub use engine_end::{Bell, EngineEnd, Fault};
pub use kept::{KEPT, Kept};
#[cfg(not(verbring_loom))]
pub use mapped::{BadSegment, Mapped};
pub use memory::{Heap, Memory, Word};

use crate::sync::Ordering;

/// One ordering per place that needs one. Each can be weakened by `--cfg verbring_weak="..."` with
/// the name given here, and `tests/loom-all` requires loom to find a counterexample for every one.
pub(crate) mod order {
    use super::Ordering;

    macro_rules! orderings {
        ($($name:ident = $strong:ident, weak $cfg:tt;)*) => { $(
            #[cfg(not(verbring_weak = $cfg))]
            pub(crate) const $name: Ordering = Ordering::$strong;
            #[cfg(verbring_weak = $cfg)]
            pub(crate) const $name: Ordering = Ordering::Relaxed;
        )* };
    }

    orderings! {
        // sync: sqe-visible, on sq_tail.
        SQE_PUBLISH = Release, weak "sqe_publish";
        SQE_OBSERVE = Acquire, weak "sqe_observe";
        // sync: cqe-visible, on cq_tail.
        CQE_PUBLISH = Release, weak "cqe_publish";
        CQE_OBSERVE = Acquire, weak "cqe_observe";
        // sync: sqe-free, fate-visible, on sq_head: the engine's loads of a slot come before the
        // client's next stores into it, and a client that sees the head sees the fate entries.
        TAKEN = Release, weak "taken";
        TAKEN_OBSERVE = Acquire, weak "taken_observe";
        // sync: cqe-free, on cq_head: the client's loads of a slot come before the engine's next
        // stores into it.
        POPPED = Release, weak "popped";
        POPPED_OBSERVE = Acquire, weak "popped_observe";
        // sync: fate-entry, on the entry's second word.
        ACCEPTED = Release, weak "accepted";
        MARKED = Release, weak "marked";
        FREED = Release, weak "freed";
        FATE_OBSERVE = Acquire, weak "fate_observe";
        // sync: last-words, on engine_flags: a client that sees CLOSING or FAULTED sees the last
        // sq_head and cq_tail.
        FLAGS = Release, weak "flags";
        FLAGS_OBSERVE = Acquire, weak "flags_observe";
    }
}

/// The fences: four full ones, of the two sleep handshakes, and a release fence before posts.
///
/// Each handshake is store-then-load on both sides, of two different words: whoever sleeps writes
/// "I sleep" and then looks for work; whoever makes work writes the work and then looks for
/// sleepers. Without a full fence between the two steps on *each* side, both loads may return the
/// old values, and the sleeper is never rung. Release and acquire order neither pair.
pub(crate) mod fences {
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

    /// The engine, between its posted marks and the posts.
    ///
    /// The posted ops' effects are stores that are not atomic, of a copy routine or of a card, so
    /// the order cannot hang on them. Without the fence an effect may be seen while the op still
    /// reads as accepted: an op that landed would be judged NOT_STARTED.
    #[inline]
    pub(crate) fn posts_follow() {
        if cfg!(not(verbring_weak = "posted")) {
            fence(Ordering::Release);
        }
    }
}
