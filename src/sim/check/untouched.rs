//! Nothing is touched after its CQE: an op's buffer and slot from its final CQE on until the next
//! op on them, and a region from the answer to its revocation on.
//!
//! Cards are told at the moment of publication what they may not touch any more, and tell whatever
//! they do to it, be it that it changes nothing. Who copies without a card is found by the bytes.

use super::hold;
use crate::fabric::qp::sim::Net;
use crate::shm::Mapping;
use crate::sim::ground::SLOT_BYTES;

/// No card may touch a buffer or slot from now on.
pub(in crate::sim) fn close(net: &Net, memory: &Mapping, offset: u64) {
    net.forbid(memory, offset, SLOT_BYTES);
}

/// The next op on it begins.
pub(in crate::sim) fn open(net: &Net, memory: &Mapping, offset: u64) {
    net.allow(memory, offset, SLOT_BYTES);
}

/// No card has touched what it may not.
pub(in crate::sim) fn by_cards(net: &Net) {
    let touch = net.touched();
    hold!(Untouched, touch.is_none(), "a card touched what was over: {touch:?}");
}

/// What lies there is what lay there when it was over.
pub(in crate::sim) fn same(what: &str, at: usize, then: &[u8], now: &[u8]) {
    hold!(Untouched, then == now, "{what} {at} changed after it was over");
}
