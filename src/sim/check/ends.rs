//! Without further faults everything comes to its end, in bounded time.

use super::hold;

/// Steps without faults in which everything must come to its end.
const PATIENCE: u64 = 200_000;

/// Another step without faults, and things are still under way.
pub(in crate::sim) fn wait(steps: u64, what_hangs: impl FnOnce() -> String) {
    hold!(Ends, steps < PATIENCE, "it hangs: {}", what_hangs());
}
