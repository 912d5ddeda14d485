//! Faults that can be planted in the core, and which invariant each must break.

use super::check::Invariant;
use crate::plant::Plant;

macro_rules! plants {
    ($($plant:ident = $text:literal $about:literal => $invariant:ident;)*) => {
        impl Plant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$plant,)*];

            /// What it is called.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$plant => $text,)* }
            }

            /// What is done wrong, in a sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$plant => $about,)* }
            }

            /// The invariant that it must break.
            #[must_use]
            pub fn breaks(self) -> Invariant {
                match self { $(Self::$plant => Invariant::$invariant,)* }
            }
        }
    };
}

plants! {
    DepthKept = "depth-kept"
        "A request that ended keeps its part of its rail's depth." => Credits;
    GrantKept = "grant-kept"
        "A completion gives no credit back to its window." => Credits;
    OwnerKept = "owner-kept"
        "An op that ended still counts against its owner's quota." => Credits;
    BytesKept = "bytes-kept"
        "Bytes of an op that ended still count against its owner's quota." => Credits;
    HighKept = "high-kept"
        "Bytes of class high that ended still count as posted by their owner." => Credits;
    CreditKept = "credit-kept"
        "A peer is not told of receives that are free again." => Credits;
    DepthAsked = "depth-asked"
        "A rail posts as deep as was asked for, not as was given." => Depth;
    CqeTwice = "cqe-twice"
        "Some ops get a second final CQE." => OneCqe;
    CqeLost = "cqe-lost"
        "Some ops get no final CQE." => Credits;
    PostBeforeEntry = "post-before-entry"
        "An op is posted before its entry says so." => Fates;
    FoldedUnmarked = "folded-unmarked"
        "What is folded into a posted op is not shown as posted." => Fates;
    PrefixForgotten = "prefix-forgotten"
        "What a device took of a post that it cut has no entry." => Entries;
    CqeBeforeQuiet = "cqe-before-quiet"
        "A failed op ends while its queue pair can still touch its buffers." => Untouched;
    RetryBeforeQuiet = "retry-before-quiet"
        "Work is repeated before the old queue pair is dead at both ends." => Untouched;
    RetryEarly = "retry-early"
        "What a rail's own end has flushed goes by another rail at once." => Untouched;
    GoneEarly = "gone-early"
        "The ops of a lost connection end before its lease is over." => Untouched;
    AtomicAgain = "atomic-again"
        "Atomics of a failed queue pair are repeated." => Effects;
    NotifyAgain = "notify-again"
        "Notifications of a failed queue pair are repeated." => Effects;
    NeverSignalled = "never-signalled"
        "Work is waited for with nothing signalled behind it." => Ends;
    StaleHonoured = "stale-honoured"
        "A stale completion ends the work that has its place by now." => Data;
    RestPosted = "rest-posted"
        "What a device did not take of a post counts as posted." => Data;
    ChainUncut = "chain-uncut"
        "What is chained to a failure is carried out." => Effects;
    FalselyRetryable = "falsely-retryable"
        "An op that may have taken effect is said to be repeatable." => Effects;
    LoanKept = "loan-kept"
        "What a peer gave back stays lent." => Ends;
    RevokedEarly = "revoked-early"
        "A revocation is answered while peers still have the region." => Untouched;
    ReleasedEarly = "released-early"
        "An op is let go with the first of what it waits for." => Edges;
    FailureForgotten = "failure-forgotten"
        "A failure does not travel along edges." => Edges;
    DrainPassed = "drain-passed"
        "A DRAIN waits for nobody." => Edges;
}

impl Plant {
    /// The fault of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|plant| plant.name() == name)
    }

    /// True if this build can be planted in.
    #[must_use]
    pub const fn possible() -> bool {
        cfg!(verbring_plant)
    }

    /// The command whose build can.
    #[must_use]
    pub fn how(self) -> String {
        let name = self.name();
        format!("RUSTFLAGS=\"--cfg verbring_plant\" cargo run --features sim -- sim --plant {name}")
    }
}
