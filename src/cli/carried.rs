//! What carried ops: how many went by each fabric and rail, as their completions say.

use serde::{Deserialize, Serialize};
use serde_json::json;
use verbring::Completion;

use super::demo::fabric_name;
use super::{Failure, grouped};

/// Ops by fabric and rail, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carried(Vec<Share>);

/// So many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Share {
    fabric: u8,
    rail: u8,
    ops: u64,
}

impl Carried {
    /// Counts a success in; one that another fabric carried than `only` is a failure.
    pub(crate) fn count(
        &mut self,
        completion: &Completion,
        only: Option<u8>,
    ) -> Result<(), Failure> {
        let Completion { fabric, rail, record, .. } = *completion;
        if let Some(only) = only.filter(|only| *only != fabric) {
            let [went, must] = [fabric, only].map(fabric_name);
            let text = format!("op {record:#018x} went by fabric {went}, but must by {must}");
            return Err(Failure::Failed(text));
        }
        self.add(Share { fabric, rail, ops: 1 });
        Ok(())
    }

    /// Counts in what was counted elsewhere.
    pub(crate) fn merge(&mut self, other: &Self) {
        for share in &other.0 {
            self.add(*share);
        }
    }

    fn add(&mut self, share: Share) {
        let place = |it: &Share| (it.fabric, it.rail);
        match self.0.binary_search_by_key(&place(&share), place) {
            Ok(at) => self.0[at].ops += share.ops,
            Err(at) => self.0.insert(at, share),
        }
    }

    /// All of them.
    pub(crate) fn ops(&self) -> u64 {
        self.0.iter().map(|share| share.ops).sum()
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let each = self.0.iter().map(|Share { fabric, rail, ops }| {
            json!({ "fabric": fabric_name(*fabric), "rail": rail, "ops": ops })
        });
        each.collect()
    }

    /// For people, a line each.
    pub(crate) fn to_text(&self) -> String {
        let each = self.0.iter().map(|Share { fabric, rail, ops }| {
            format!("  {} ops went by {}, rail {rail}\n", grouped(*ops), fabric_name(*fabric))
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use verbring::abi::{FABRIC_LOCAL, FABRIC_VERBS};

    use super::*;

    #[test]
    fn shares_are_kept_apart_in_order_and_add_up() {
        let mut carried = Carried::default();
        for (fabric, rail) in [(FABRIC_VERBS, 3), (FABRIC_LOCAL, 0), (FABRIC_VERBS, 2)] {
            carried.add(Share { fabric, rail, ops: 1 });
        }
        let mut all = carried.clone();
        all.merge(&carried);
        assert_eq!(all.ops(), 6);
        let expected = json!([
            { "fabric": "local", "rail": 0, "ops": 2 },
            { "fabric": "verbs", "rail": 2, "ops": 2 },
            { "fabric": "verbs", "rail": 3, "ops": 2 },
        ]);
        assert_eq!(all.to_json(), expected);
        assert!(all.to_text().ends_with("  2 ops went by verbs, rail 3\n"));
    }
}
