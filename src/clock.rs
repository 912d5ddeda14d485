//! The only reader of time.

use nix::time::{ClockId, clock_gettime};

/// Returns monotonic nanoseconds. On Linux this is a vDSO read, no system call.
#[must_use]
#[inline]
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}
