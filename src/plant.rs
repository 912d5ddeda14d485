//! Planted faults: places where the core can be told to do the wrong thing.
//!
//! A checker that never spoke may be blind. So each is shown what it is there for: with one fault
//! planted, worlds from seeds must break the one invariant that the fault offends
//! (`verbring sim --plant NAME`, `tests/plants`).
//!
//! Only a build with `--cfg verbring_plant` can be planted in. In every other [`planted`] is a
//! constant, and what hangs on it is not compiled into anything.

#![allow(unreachable_pub, reason = "the feature sim shows it")]

/// A fault that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plant {
    /// A request that ended keeps its part of its rail's depth.
    DepthKept,
    /// A completion gives no credit back to the window it was taken from.
    GrantKept,
    /// An op that ended still counts among those of its session's owner.
    OwnerKept,
    /// What an op that ended asked for still counts among its session's owner's bytes.
    BytesKept,
    /// A completion of class high gives its bytes not back to its owner's bound.
    HighKept,
    /// Receives of notifications that were handed out are not told of to the peer.
    CreditKept,
    /// A rail's depth is what was asked of the device, not what it gave.
    DepthAsked,
    /// Some ops get a second final CQE.
    CqeTwice,
    /// Some ops get no final CQE.
    CqeLost,
    /// Posted work whose op the fate table does not show as posted.
    PostBeforeEntry,
    /// Ops folded into posted work that the fate table does not show as posted.
    FoldedUnmarked,
    /// What a device took of a post that it cut is forgotten.
    PrefixForgotten,
    /// A failed request ends while its queue pair can still touch its buffers.
    CqeBeforeQuiet,
    /// A rail is told that both ends are quiet when its own is.
    RetryBeforeQuiet,
    /// A rail that shares its work takes its own flush alone as enough to hand it back.
    RetryEarly,
    /// A rail whose connection is lost waits neither for its peer's BYE nor for the lease.
    GoneEarly,
    /// Atomics of a failed queue pair are repeated.
    AtomicAgain,
    /// Notifications of a failed queue pair are repeated.
    NotifyAgain,
    /// The last work request of a post is not signalled.
    NeverSignalled,
    /// A completion of an earlier use of a slot ends the work that has it now.
    StaleHonoured,
    /// What a device did not take of a post counts as posted.
    RestPosted,
    /// What is chained to a failed request is carried out all the same.
    ChainUncut,
    /// An op that may have taken effect is said to be repeatable.
    FalselyRetryable,
    /// What a peer gave back stays lent.
    LoanKept,
    /// A revocation ends while peers still have the region.
    RevokedEarly,
    /// An op is let go with the first of what it waits for.
    ReleasedEarly,
    /// A failure does not travel along edges.
    FailureForgotten,
    /// A DRAIN waits for nobody.
    DrainPassed,
}

#[cfg(verbring_plant)]
mod place {
    use std::cell::Cell;

    use super::Plant;

    thread_local! {
        static PLANTED: Cell<Option<Plant>> = const { Cell::new(None) };
    }

    /// Plants a fault in everything that this thread runs from now on, or none.
    pub(crate) fn set(plant: Option<Plant>) {
        PLANTED.set(plant);
    }

    /// True if this fault is planted.
    pub(crate) fn planted(plant: Plant) -> bool {
        PLANTED.get() == Some(plant)
    }
}

#[cfg(verbring_plant)]
#[cfg_attr(not(any(test, feature = "sim")), allow(unused_imports, reason = "nobody plants"))]
pub(crate) use place::{planted, set};

/// True if this fault is planted: never, in this build.
#[cfg(not(verbring_plant))]
#[inline(always)]
pub(crate) const fn planted(_plant: Plant) -> bool {
    false
}
