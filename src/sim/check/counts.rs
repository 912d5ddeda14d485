//! What an engine counts for its telemetry page keeps that page's laws, in whatever happens.

use super::{Invariant, within};
use crate::sim::node::Node;

/// Of one engine, between two turns.
pub(in crate::sim) fn of(node: &mut Node) {
    within(Invariant::Counts, || node.engine.audit_telemetry());
}
