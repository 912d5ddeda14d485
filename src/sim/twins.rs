//! Ops of one effect, under way together: they ask to be folded, and have a slot and a buffer in
//! common. Which of them are carried out is the engine's affair; so a slot and a buffer are judged,
//! and given back, when the last of them has ended.

use std::collections::BTreeMap;

use super::client::Out;
use crate::abi::{CQE_MAYBE_DONE, Cqe, errno};

/// By buffer: those of which more than one is under way.
#[derive(Debug, Default)]
pub(super) struct Twins(BTreeMap<usize, Set>);

#[derive(Debug)]
struct Set {
    /// Those that have not ended, and those whose CQE is not published.
    open: u32,
    unpublished: u32,
    /// The one that says most of what lies in slot and buffer now.
    told: Option<(Out, Cqe)>,
}

/// A success says most of what was done, then whoever does not know. What was flushed may have
/// been done; what was late was not.
fn says(cqe: &Cqe) -> u8 {
    match cqe.res {
        0.. => 3,
        _ if cqe.flags & CQE_MAYBE_DONE != 0 => 2,
        late => u8::from(late != -errno::ETIME),
    }
}

impl Twins {
    /// So many are under way with a buffer.
    pub(super) fn begin(&mut self, buffer: usize, count: u32) {
        self.0.insert(buffer, Set { open: count, unpublished: count, told: None });
    }

    /// One was published: true if nobody else uses its buffer.
    pub(super) fn publish(&mut self, buffer: usize) -> bool {
        let Some(set) = self.0.get_mut(&buffer) else { return true };
        set.unpublished -= 1;
        set.unpublished == 0
    }

    /// One has ended: what became of all, if it was the last.
    pub(super) fn end(&mut self, out: Out, cqe: Cqe) -> Option<(Out, Cqe)> {
        let Some(set) = self.0.get_mut(&out.buffer) else { return Some((out, cqe)) };
        set.open -= 1;
        if set.told.as_ref().is_none_or(|(_, told)| says(told) < says(&cqe)) {
            set.told = Some((out, cqe));
        }
        if set.open > 0 {
            return None;
        }
        self.0.remove(&out.buffer).and_then(|set| set.told)
    }

    /// True if an op has others beside it.
    pub(super) fn has(&self, buffer: usize) -> bool {
        self.0.contains_key(&buffer)
    }

    /// Nothing more will be heard of any.
    pub(super) fn abandon(&mut self) {
        self.0.clear();
    }
}
