//! What devices may not touch any more, and whoever does it all the same.

use std::collections::{BTreeMap, BTreeSet};

use super::{Net, Place, World};
use crate::shm::Mapping;

/// A device touched what it was not to touch any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The queue pair that it did it for: the one that reads or writes the memory.
    pub number: u32,
    /// Where in the mapping.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// It wrote.
    pub wrote: bool,
    /// When, ns.
    pub at_ns: u64,
}

/// Ranges that are not to be touched, by mapping.
#[derive(Debug, Default)]
pub(super) struct Forbidden {
    /// Mapping and start to end. They do not overlap.
    ranges: BTreeMap<(usize, u64), u64>,
    /// Whole mappings.
    whole: BTreeSet<usize>,
    first: Option<Touch>,
}

impl Forbidden {
    fn strikes(&self, mapping: usize, offset: u64, bytes: u64) -> bool {
        if bytes == 0 {
            return false;
        }
        let last = offset + bytes - 1;
        let before = self.ranges.range((mapping, 0)..=(mapping, last)).next_back();
        self.whole.contains(&mapping) || before.is_some_and(|(_, end)| *end > offset)
    }
}

impl Net {
    /// From now on no device may read or write a range. Ranges are given as they are taken back.
    pub fn forbid(&self, memory: &Mapping, offset: u64, bytes: u64) {
        let key = (std::ptr::from_ref(memory).addr(), offset);
        self.world().forbidden.ranges.insert(key, offset + bytes);
    }

    /// Devices may touch a range again that was forbidden.
    pub fn allow(&self, memory: &Mapping, offset: u64, bytes: u64) {
        let key = (std::ptr::from_ref(memory).addr(), offset);
        let end = self.world().forbidden.ranges.remove(&key);
        assert!(end.is_none_or(|end| end == offset + bytes), "another range was forbidden");
    }

    /// From now on no device may touch any byte of a mapping.
    pub fn forbid_all(&self, memory: &Mapping) {
        self.world().forbidden.whole.insert(std::ptr::from_ref(memory).addr());
    }

    /// Devices may touch a mapping again that was forbidden as a whole.
    pub fn allow_all(&self, memory: &Mapping) {
        self.world().forbidden.whole.remove(&std::ptr::from_ref(memory).addr());
    }

    /// The first touch of what was forbidden.
    #[must_use]
    pub fn touched(&self) -> Option<Touch> {
        self.look().forbidden.first
    }
}

impl World {
    /// A device reads or writes memory for a queue pair.
    pub(super) fn touch(&mut self, number: usize, place: &Place, bytes: u64, wrote: bool) {
        let mapping = std::ptr::from_ref(&*place.mapping).addr();
        let offset = place.offset;
        if self.forbidden.first.is_none() && self.forbidden.strikes(mapping, offset, bytes) {
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let touch = Touch { number, offset, bytes, wrote, at_ns: self.now_ns };
            self.forbidden.first = Some(touch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_forbidden_from_its_first_byte_to_its_last() {
        let memory = Mapping::anonymous(4096).unwrap();
        let net = Net::new();
        net.forbid(&memory, 512, 512);
        let strikes = |offset, bytes| {
            let mapping = std::ptr::from_ref(&memory).addr();
            net.look().forbidden.strikes(mapping, offset, bytes)
        };
        assert!(strikes(512, 1) && strikes(1023, 1) && strikes(0, 513) && strikes(0, 4096));
        assert!(!strikes(0, 512) && !strikes(1024, 512) && !strikes(600, 0));
        net.allow(&memory, 512, 512);
        assert!(!strikes(512, 512));
        net.forbid_all(&memory);
        assert!(strikes(4095, 1));
        net.allow_all(&memory);
        assert!(!strikes(4095, 1));
    }
}
