//! Numbering: which ring numbers and region ids are free. Freed places are reused last, so that a
//! stale id meets its own generation as late as possible.

use std::collections::VecDeque;

use crate::ids::RegionId;

/// Free numbers below a limit.
#[derive(Debug)]
pub(super) struct Places {
    free: VecDeque<u32>,
}

impl Places {
    pub(super) fn new(limit: u32) -> Self {
        Self { free: (0..limit).collect() }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop_front()
    }

    pub(super) fn give(&mut self, place: u32) {
        self.free.push_back(place);
    }
}

/// Free region ids: a generation a place.
#[derive(Debug)]
pub(super) struct RegionIds {
    places: Places,
    generations: Vec<u32>,
}

impl RegionIds {
    pub(super) fn new(limit: u32) -> Self {
        Self { places: Places::new(limit), generations: vec![0; limit as usize] }
    }

    pub(super) fn take(&mut self) -> Option<RegionId> {
        let place = self.places.take()?;
        let generation = &mut self.generations[place as usize];
        *generation = *generation % RegionId::GENERATION_MAX + 1;
        Some(RegionId::new(*generation, place))
    }

    pub(super) fn give(&mut self, id: RegionId) {
        self.places.give(id.index());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_zero_and_generations_go_round() {
        let mut ids = RegionIds::new(1);
        for turn in 0..=RegionId::GENERATION_MAX {
            let id = ids.take().unwrap();
            assert_eq!(id.generation(), turn % RegionId::GENERATION_MAX + 1);
            assert!(ids.take().is_none());
            ids.give(id);
        }
    }
}
