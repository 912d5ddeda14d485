//! Depth is never exceeded: as the card counts it, of what it really gave each queue pair, and of
//! its completion queue. What rails believe is not asked.

use super::hold;
use crate::fabric::qp::sim::Net;

/// Of every card there is.
pub(in crate::sim) fn of(net: &Net) {
    let overfull = net.overfull();
    hold!(Depth, overfull == 0, "{overfull} work requests found no room in their send queue");
    let overrun = net.overruns();
    hold!(Depth, overrun == 0, "{overrun} completion queues overran");
}
