//! One final CQE for every SQE that was taken: none twice, none for nothing, none that was to be
//! skipped. That none is missing, [`ends`](super::ends) finds.

use std::collections::BTreeMap;

use super::hold;
use crate::abi::Cqe;
use crate::sim::client::Out;

/// Ops of one client whose final CQE has not come.
#[derive(Debug, Default)]
pub(in crate::sim) struct Open(BTreeMap<u64, Out>);

impl Open {
    /// An op is under way; its `user_data` is its own.
    pub(in crate::sim) fn begin(&mut self, user_data: u64, out: Out) {
        assert!(self.0.insert(user_data, out).is_none(), "user_data {user_data} twice");
    }

    /// A final CQE came.
    pub(in crate::sim) fn end(&mut self, cqe: &Cqe) -> Out {
        let out = self.0.remove(&cqe.user_data);
        hold!(OneCqe, out.is_some(), "a CQE for nothing, or a second one: {cqe:?}");
        let out = out.unwrap_or_else(|| unreachable!());
        let unasked = out.skips && cqe.res >= 0;
        hold!(OneCqe, !unasked, "a success that was to be skipped: {cqe:?}");
        out
    }

    /// The fate table says that a success was skipped.
    pub(in crate::sim) fn skip(&mut self, user_data: u64) -> Option<Out> {
        self.0.remove(&user_data)
    }

    /// What is under way under a `user_data`.
    pub(in crate::sim) fn get(&self, user_data: u64) -> Option<&Out> {
        self.0.get(&user_data)
    }

    pub(in crate::sim) fn iter(&self) -> impl Iterator<Item = (u64, &Out)> {
        self.0.iter().map(|(user_data, out)| (*user_data, out))
    }

    pub(in crate::sim) fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing more will be heard of any: their engine is dead, or their ring broken.
    pub(in crate::sim) fn abandon(&mut self) -> BTreeMap<u64, Out> {
        std::mem::take(&mut self.0)
    }
}
