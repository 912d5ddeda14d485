//! Credits are conserved: depth, windows, records, references, promised CQ slots, quotas and
//! notifications that are held are those of what is in flight, whenever one looks.

use super::{Invariant, hold, within};
use crate::fabric::qp::sim::Net;
use crate::fabric::qp::{CreditAudit, RECEIVES_KEPT};
use crate::sim::cable::Cable;
use crate::sim::node::Node;

/// Of one engine and its rails, between two turns.
pub(in crate::sim) fn of(node: &mut Node) {
    within(Invariant::Credits, || node.engine.audit());
    let rails = node.rails_mut();
    within(Invariant::Credits, || rails.audit());
}

/// At rest, the right to send a notification is with its sender, or owed to it; and each receive
/// is posted, or about to be.
pub(in crate::sim) fn between(cable: &Cable, nodes: &mut [Node], net: &Net) {
    if !cable.ready() {
        return;
    }
    let ends = cable.ends.iter().map(|end| nodes[end.node].rails_mut().credit_audit(end.rail));
    let Some(ends) = ends.collect::<Option<Vec<CreditAudit>>>() else { return };
    for (at, own) in ends.iter().enumerate() {
        // Rails of one connection lie one behind the other.
        let peer = ends[if ends.len() == 1 { at } else { at ^ 1 }];
        let (granted, used, receives) = (own.granted, peer.used, peer.receives);
        hold!(
            Credits,
            granted + used == receives,
            "a rail may send {granted} notifications and is owed {used} of {receives}"
        );
        let posted = cable.number(at).map_or(0, |number| net.receives(number));
        let (missing, receives) = (own.missing, own.receives);
        hold!(
            Credits,
            posted + missing == receives + RECEIVES_KEPT,
            "{posted} receives are posted and {missing} are missing of {receives} and the kept"
        );
    }
}
