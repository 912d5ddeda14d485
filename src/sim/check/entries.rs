//! What a card has in its queue has an entry: it was entered before it was posted, and its entry
//! stays until it can do nothing more.

use super::hold;
use crate::fabric::qp::sim::Net;
use crate::sim::cable::Cable;
use crate::sim::node::Node;

/// Of every queue pair of a cable.
pub(in crate::sim) fn of(cable: &Cable, nodes: &mut [Node], net: &Net) {
    for (at, end) in cable.ends.iter().enumerate().filter(|(_, end)| !end.buried) {
        let Some(number) = cable.number(at) else { continue };
        let rails = nodes[end.node].rails_mut();
        for wr_id in net.occupied(number) {
            let held = rails.holds(wr_id);
            hold!(Entries, held, "queue pair {number} has {wr_id:#x}, which has no entry");
        }
    }
}
