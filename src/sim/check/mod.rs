//! What must hold in every world, one file an invariant; and what is said when one does not.
//!
//! A checker looks at what a card, a client or an engine did, and ends the world with [`Broken`]
//! if that cannot be. It never mends, skips or clamps.

pub(super) mod counts;
pub(super) mod credits;
pub(super) mod data;
pub(super) mod depth;
pub(super) mod edges;
pub(super) mod effects;
pub(super) mod ends;
pub(super) mod entries;
pub(super) mod fates;
pub(super) mod once;
pub(super) mod passages;
pub(super) mod rest;
pub(super) mod untouched;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use thiserror::Error;

use crate::plant::Plant;

macro_rules! invariants {
    ($($(#[$doc:meta])* $name:ident = $text:literal $about:literal;)*) => {
        /// Something that must hold in every world.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Invariant {
            $(#[doc = $about] $(#[$doc])* $name,)*
        }

        impl Invariant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it is called.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What must hold, in a sentence.
            #[must_use]
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* }
            }
        }
    };
}

invariants! {
    OneCqe = "one_cqe" "Every SQE that was taken gets one final CQE.";
    Credits = "credits" "What is held is what is in flight.";
    Depth = "depth" "No queue of a card is asked to hold more than it was made for.";
    Counts = "counts" "What is counted keeps the laws of the telemetry page.";
    Entries = "entries" "What a card has in its queue has an entry.";
    Passages = "passages" "Rails pass only from states to states that follow them.";
    Edges = "edges" "An op starts when what it waits for is over, and inherits failures.";
    Fates = "fates" "Fate tables tell the truth about ops.";
    Data = "data" "What a CQE says is true of the bytes.";
    Effects = "effects" "Atomics and notifications take effect as often as their ends say.";
    Untouched = "untouched" "Nothing is touched after its CQE, or its revocation.";
    AtRest = "at_rest" "At rest nothing is held.";
    Ends = "ends" "Without further faults everything comes to its end.";
    Control = "control" "A control keeps the rules that the other one holds it to.";
    /// For what production itself asserts.
    Assertion = "assertion" "No assertion fails.";
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that must hold did not; the seed is all that is needed to see it again.
#[derive(Clone, Debug, Error)]
#[error("broken in world {seed}: {invariant}: {why}")]
pub struct Broken {
    /// What should have held.
    pub invariant: Invariant,
    /// The world's seed.
    pub seed: u64,
    /// How many engines it has, if that was asked for.
    pub engines: Option<u16>,
    /// The fault that was planted in the core, if one was.
    pub plant: Option<Plant>,
    /// What was seen instead.
    pub why: String,
}

impl Broken {
    /// The command that shows it again.
    #[must_use]
    pub fn replay(&self) -> String {
        let engines = self.engines.map(|engines| format!(" --engines {engines}"));
        let planted = self.plant.map(|plant| format!(" --plant {}", plant.name()));
        let (engines, planted) = (engines.unwrap_or_default(), planted.unwrap_or_default());
        format!("verbring sim --worlds 1 --seed {}{engines}{planted}", self.seed)
    }
}

/// What a checker has found, on its way out of the world.
struct Found {
    invariant: Invariant,
    why: String,
}

/// Ends the world: an invariant is broken.
#[cold]
pub(super) fn broken(invariant: Invariant, why: impl fmt::Display) -> ! {
    resume_unwind(Box::new(Found { invariant, why: why.to_string() }))
}

/// Ends the world if something does not hold.
macro_rules! hold {
    ($invariant:ident, $holds:expr, $($why:tt)+) => {
        if !$holds {
            $crate::sim::check::broken(
                $crate::sim::check::Invariant::$invariant,
                format_args!($($why)+),
            );
        }
    };
}
pub(super) use hold;

/// Runs checks that speak by panics; one of them breaks `invariant`.
pub(super) fn within(invariant: Invariant, check: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(check)) {
        broken(invariant, said(&*panic));
    }
}

/// Runs a world, and says what was broken in it.
pub(super) fn watch<T>(
    (seed, engines, plant): (u64, Option<u16>, Option<Plant>),
    world: impl FnOnce() -> T,
) -> Result<T, Broken> {
    catch_unwind(AssertUnwindSafe(world)).map_err(|panic| match panic.downcast::<Found>() {
        Ok(found) => {
            let Found { invariant, why } = *found;
            Broken { invariant, seed, engines, plant, why }
        }
        Err(panic) => {
            let (invariant, why) = (Invariant::Assertion, said(&*panic).to_string());
            Broken { invariant, seed, engines, plant, why }
        }
    })
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}
