//! Fate tables tell the truth: what is posted is shown as posted before it can take effect, and
//! what a table calls not started had no effect when its engine is dead.

use super::{Invariant, hold, within};
use crate::sim::client::Out;
use crate::sim::node::Node;

/// Of one engine's rings, between two turns.
pub(in crate::sim) fn of(node: &Node) {
    within(Invariant::Fates, || node.engine.audit_fates());
}

/// Of an op whose engine died: its slot as it was before it, as far as that is known, and as it
/// is now.
pub(in crate::sim) fn not_started(out: &Out, before: Option<&[u8]>, now: &[u8]) {
    let same = before.is_none_or(|before| before == now);
    hold!(Fates, same, "it was not started, and yet its slot is another: {out:?}");
}
