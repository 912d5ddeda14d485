//! Rails pass only from states to states that follow them in the diagram of `fabric::qp::recover`;
//! each passage is counted.

use super::hold;
use crate::fabric::qp::RailState::{
    self, Absent, Connecting, Dead, Degraded, Ready, Rebuilding, Trial,
};
use crate::sim::counts::{Count, Counts};

/// Every edge of the diagram. A rail in use whose peer is gone is told first that it is broken.
pub(in crate::sim) const EDGES: [(RailState, RailState, Count); 13] = [
    (Absent, Connecting, Count::RailAdopted),
    (Connecting, Trial, Count::RailConnected),
    (Connecting, Degraded, Count::RailFailedEarly),
    (Connecting, Dead, Count::RailEndedEarly),
    (Ready, Degraded, Count::RailDegraded),
    (Degraded, Rebuilding, Count::RailReset),
    (Degraded, Dead, Count::RailEndedDegraded),
    (Rebuilding, Trial, Count::RailBack),
    (Trial, Ready, Count::RailTrusted),
    (Trial, Degraded, Count::RailDistrusted),
    (Rebuilding, Degraded, Count::RailFailedAgain),
    (Rebuilding, Dead, Count::RailEndedRebuilding),
    (Dead, Absent, Count::RailReleased),
];

/// Counts how often an engine's rails went each way.
pub(in crate::sim) fn count(
    passages: &[[u64; RailState::COUNT]; RailState::COUNT],
    counts: &mut Counts,
) {
    let mut known = 0;
    for (from, to, count) in EDGES {
        let times = passages[from as usize][to as usize];
        counts.many(count, times);
        known += times;
    }
    let all: u64 = passages.iter().flatten().sum();
    hold!(Passages, all == known, "a rail went a way that there is not: {passages:?}");
}
